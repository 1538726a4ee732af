//! What may be asked for. Every `///` here is help text that people read.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::Format,
    service::admin::operator::parse_abort_if,
    types::{Weight, parse_duration},
};

const AFTER_HELP: &str = "\
Exit codes:
  0   done
  1   the configuration is not valid
  2   the command line is wrong
  3   no running instance was found
  4   the running instance refused, or went back
  5   a deadline passed: of --timeout, or of an answer
  6   the start failed: a port, a privilege, a hand-over;
      healthcheck: not healthy
  70  a fault of rrlb, or an answer it did not understand

Signals of a running instance:
  HUP   reads the configuration again
  INT   leaves at once
  QUIT  is ignored unless a process started with -u takes over
  TERM  drains and leaves; twice: at once
  USR1  opens the access log again
  USR2  starts a successor, as rrlb upgrade

Environment:
  RRLB_SOCKET  the admin socket, where no option says which
  NO_COLOR     no colours on a terminal";

/// An edge proxy and load balancer on Cloudflare's Pingora: one binary, one YAML file
///
/// `rrlb -c FILE` runs in the foreground. Commands that speak with a running instance find it by the `admin.socket` of
/// -c FILE (or its default place), by --socket PATH, or by --address URL and --token-file FILE.
#[derive(Debug, Parser)]
#[command(name = "rrlb", version, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true)]
    pub(super) conf: Option<PathBuf>,
    /// Check the configuration and the files it names, and leave
    #[arg(short, long)]
    pub(super) test: bool,
    /// Take the listening sockets over from the running process, which then drains
    #[arg(short, long)]
    pub(super) upgrade: bool,
    /// Run in the background
    #[arg(short, long)]
    pub(super) daemon: bool,
    // The last of them: its heading holds for what follows.
    #[command(flatten)]
    pub(super) place: PlaceArguments,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Which running instance.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Which running instance")]
pub(super) struct PlaceArguments {
    /// The admin API's unix socket
    #[arg(long, value_name = "PATH", global = true)]
    pub(super) socket: Option<PathBuf>,
    /// The admin API over TCP: http://IP:PORT on this machine, https://HOST:PORT elsewhere
    #[arg(long, value_name = "URL", global = true)]
    pub(super) address: Option<String>,
    /// The file with the token for --address
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust for --address, in place of the system's
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) ca: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration and the files it names (as -t)
    Check {
        /// How problems are printed
        #[arg(long, value_enum, default_value_t = Style::Human)]
        format: Style,
    },
    /// The running instance in numbers
    Status {
        #[command(flatten)]
        json: Json,
        /// Again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// List, add, remove and change backends at run time
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Read the configuration file again and run with it; a file that is not valid changes nothing
    Reload {
        /// Go back by itself after this time unless `rrlb confirm` comes, also over a restart: 60s, 5m
        #[arg(long, value_name = "TIME", value_parser = positive, conflicts_with = "dry_run")]
        confirm: Option<Duration>,
        /// Go back as soon as this share of answers is 5xx, and more than in the minute before: '5xx > 2%'
        #[arg(long, value_name = "CONDITION", value_parser = condition, requires = "confirm")]
        abort_if: Option<String>,
        /// Change nothing, say what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Keep a reload that waits for its confirmation
    Confirm,
    /// What a reload would change (as reload --dry-run)
    Diff {
        #[command(flatten)]
        json: Json,
    },
    /// Start a successor and hand over to it when it serves; if it does not come to serve, nothing changes
    Upgrade {
        /// Another binary than the one that runs
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// How long the successor may take until it serves [default: 60s]
        #[arg(long, value_name = "TIME", value_parser = positive)]
        timeout: Option<Duration>,
        #[command(flatten)]
        json: Json,
    },
    /// Drain and leave: requests that are under way are finished
    Stop {
        /// Leave at once
        #[arg(long)]
        now: bool,
    },
    /// The configuration that runs, with every default written and secrets left out
    Config {
        /// Where no instance runs: of the file -c FILE
        #[arg(long)]
        effective: bool,
    },
    /// Which listener, route, upstream and backends a request would meet, and why not the others
    Route {
        /// GET, POST …
        #[arg(value_parser = method)]
        method: http::Method,
        /// In full: scheme, host, path and query
        #[arg(value_parser = url)]
        url: String,
        /// A header field, 'Name: value'; again for more
        #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = field)]
        headers: Vec<(String, String)>,
        /// The client's address; of one in `trusted_proxies` forwarding fields are believed
        #[arg(long, value_name = "IP")]
        from: Option<IpAddr>,
        #[command(flatten)]
        json: Json,
    },
    /// What failed last
    Errors {
        /// At most so many, 1 to 1000
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        json: Json,
    },
    /// What changed, who changed it and why
    Events {
        /// Go on with what happens from now on, until Ctrl-C
        #[arg(long)]
        follow: bool,
        /// Only those after this number, as the process that runs counts
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
        #[command(flatten)]
        json: Json,
    },
    /// What was changed at run time and is not in the configuration file
    #[command(subcommand)]
    State(StateCommand),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Print the completions of a shell: rrlb completions bash > /etc/bash_completion.d/rrlb
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page: rrlb man > /usr/local/share/man/man1/rrlb.1
    Man,
    /// Run three small origins and the proxy of conf/pingora.yaml in front of them
    Demo,
    /// Print the version
    Version,
    /// Ask a running instance's /healthz, for a container's health check
    Healthcheck,
}

/// What can be done with backends.
#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// The backends of one upstream, or of all
    List {
        /// The upstream
        upstream: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Add a backend, change the address of one, or renew a lease
    Add {
        /// The upstream
        upstream: String,
        /// What the backend is called
        id: String,
        /// IP:PORT, HOST:PORT or unix:PATH
        // Another id than the global --address, which would take its value.
        #[arg(id = "backend_address", value_name = "ADDRESS")]
        address: String,
        /// Its share, 0 to 1000 [default: 1]
        #[arg(long, value_name = "NUMBER", value_parser = weight())]
        weight: Option<u16>,
        /// A lease: repeat the command within this time, or the backend drains and is removed
        #[arg(long, value_name = "TIME", value_parser = positive)]
        ttl: Option<Duration>,
        /// Even if no backend is ready any more then
        #[arg(long)]
        force: bool,
        /// Forget it at a restart; an upgrade keeps it
        #[arg(long)]
        no_persist: bool,
        #[command(flatten)]
        note: Note,
    },
    /// Remove backends: no new requests, and gone when those under way are done
    Rm {
        #[command(flatten)]
        targets: Targets,
        /// How long requests may take to finish; 0s: at once [default: 30s]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        drain: Option<Duration>,
        /// Even the last one that is ready
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        note: Note,
    },
    /// No new requests; those under way are finished, health checks go on
    Drain {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        change: AdminChange,
        #[command(flatten)]
        wait: Wait,
    },
    /// New requests again
    Ready {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        change: AdminChange,
    },
    /// No new requests and no health checks
    Maint {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        change: AdminChange,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change a backend's share
    Weight {
        /// The upstream
        upstream: String,
        /// The backend
        id: String,
        /// 0 to 1000; 0: no new requests
        #[arg(value_parser = weight())]
        weight: u16,
        #[command(flatten)]
        change: AdminChange,
    },
    /// Drop what was changed at run time: as in the configuration again, or gone if it was added
    Forget {
        #[command(flatten)]
        targets: Targets,
        /// Even if no backend is ready any more then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        note: Note,
    },
}

/// What was changed at run time.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Every change that holds
    Show {
        #[command(flatten)]
        json: Json,
    },
    /// The YAML that would make the changes permanent; rrlb never writes the configuration file
    Patch,
}

/// Backends of one upstream.
#[derive(Debug, Args)]
pub(super) struct Targets {
    /// The upstream
    pub(super) upstream: String,
    /// The backends
    #[arg(required = true, value_name = "ID")]
    pub(super) ids: Vec<String>,
}

/// How a backend is changed.
#[derive(Debug, Args)]
pub(super) struct AdminChange {
    /// Even if no backend is ready any more then
    #[arg(long)]
    pub(super) force: bool,
    /// Forget it at a restart; an upgrade keeps it
    #[arg(long)]
    pub(super) no_persist: bool,
    #[command(flatten)]
    pub(super) note: Note,
}

/// Why, and how the answer is printed.
#[derive(Debug, Args)]
pub(super) struct Note {
    /// Why, for the log, the events and whoever asks later
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) json: Json,
}

/// How long.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Wait {
    /// Wait until no request is in flight, or the backend is gone
    #[arg(long)]
    pub(super) wait: bool,
    /// Wait no longer than this, and end with exit code 5 [default: without an end]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    pub(super) timeout: Option<Duration>,
}

/// For programs.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Json {
    /// Print the API's JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How `check` prints problems.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Style {
    Human,
    Json,
    Short,
}

impl From<Style> for Format {
    fn from(style: Style) -> Self {
        match style {
            Style::Human => Self::Human,
            Style::Json => Self::Json,
            Style::Short => Self::Short,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("0 would always be over; write 1s or more".to_owned()),
        time => Ok(time),
    }
}

fn weight() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(Weight::MAX))
}

fn condition(text: &str) -> Result<String, String> {
    parse_abort_if(text).map(|_| text.trim().to_owned())
}

fn method(text: &str) -> Result<http::Method, String> {
    text.parse().map_err(|_| "not a method; write GET, POST …".to_owned())
}

fn url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "not a URL; write https://example.com/path".to_owned())?;
    let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "http" || scheme == "https");
    if scheme && uri.host().is_some_and(|host| !host.is_empty()) {
        return Ok(text.to_owned());
    }
    Err("write it in full: http://HOST/PATH or https://HOST/PATH".to_owned())
}

fn field(text: &str) -> Result<(String, String), String> {
    let wrong = || "not a header field; write 'Name: value'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let name: http::HeaderName = name.trim().parse().map_err(|_| wrong())?;
    let value = http::HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
    Ok((name.as_str().to_owned(), value.to_str().map_err(|_| wrong())?.to_owned()))
}
