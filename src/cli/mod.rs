//! The command line: what is asked for, and the exit code that answers.

mod demo;
mod logging;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    config::{self, Format},
    server::{self, Start},
    telemetry::process_log::ProcessLog,
};

/// How the command ended; the numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// The configuration is invalid.
    InvalidConfiguration = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The process could not start: a port, a privilege, a hand-over.
    StartFailed = 6,
    /// A fault of rrlb itself.
    Internal = 70,
}

/// An edge proxy and load balancer on Cloudflare's Pingora: one binary, one YAML file.
#[derive(Debug, Parser)]
#[command(
    name = "rrlb",
    version,
    after_help = "Exit codes: 0 ok, 1 configuration invalid, 2 usage, 6 start failed, 70 internal.\n\
                  Signals: TERM drains and leaves (a second one at once), INT leaves at once, USR1 opens the access log again,\n\
                  QUIT is ignored unless a new process started with -u is taking over."
)]
struct Arguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true)]
    conf: Option<PathBuf>,
    /// Check the configuration and the files it names, and leave
    #[arg(short, long)]
    test: bool,
    /// Take the listening sockets over from the running process, which then drains
    #[arg(short, long)]
    upgrade: bool,
    /// Run in the background
    #[arg(short, long)]
    daemon: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration and the files it names (as -t)
    Check {
        /// How problems are printed
        #[arg(long, value_enum, default_value_t = Style::Human)]
        format: Style,
    },
    /// Run three small origins and the proxy of conf/pingora.yaml in front of them
    Demo,
    /// Print the version
    Version,
    /// Ask a running instance's /healthz, for a container's health check
    Healthcheck,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
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

/// Runs the command.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help is an answer and goes to standard output; a wrong argument is an error.
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return exit(if asked { Exit::Ok } else { Exit::Usage });
        }
    };
    exit(dispatch(&arguments))
}

fn exit(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

fn dispatch(arguments: &Arguments) -> Exit {
    match &arguments.command {
        Some(Command::Version) => {
            // A reader that has gone is no fault of ours.
            let _ = writeln!(std::io::stdout(), "rrlb {}", env!("CARGO_PKG_VERSION"));
            Exit::Ok
        }
        Some(Command::Demo) => demo::run_demo(),
        Some(command) => match &arguments.conf {
            None => no_file(),
            Some(file) => match command {
                Command::Check { format } => check(file, (*format).into()),
                _ => healthcheck(file),
            },
        },
        None => match &arguments.conf {
            None => no_file(),
            Some(file) if arguments.test => check(file, Format::Human),
            Some(file) => serve(file, arguments),
        },
    }
}

fn no_file() -> Exit {
    eprintln!("error: no configuration file; name one with -c FILE, or try `rrlb demo`");
    Exit::Usage
}

fn check(file: &Path, format: Format) -> Exit {
    let (report, exit) = match config::load(file) {
        Ok(loaded) => (loaded.warnings, Exit::Ok),
        Err(report) => (report, Exit::InvalidConfiguration),
    };
    let text = report.render(format);
    // Machines read standard output; people read what is wrong where errors go.
    let printed = match format {
        Format::Human if exit == Exit::Ok => {
            eprint!("{text}");
            writeln!(std::io::stdout(), "{}: the configuration is valid", file.display())
        }
        Format::Human => write!(std::io::stderr(), "{text}"),
        Format::Json | Format::Short => write!(std::io::stdout(), "{text}"),
    };
    if printed.is_ok() { exit } else { Exit::Internal }
}

fn serve(file: &Path, arguments: &Arguments) -> Exit {
    let loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(report) => {
            eprint!("{}", report.render(Format::Human));
            return Exit::InvalidConfiguration;
        }
    };
    if !loaded.warnings.problems.is_empty() {
        eprint!("{}", loaded.warnings.render(Format::Human));
    }
    let log = logging::start();
    let start = Start { config: file.to_owned(), daemon: arguments.daemon, upgrade: arguments.upgrade };
    run(&loaded.model, &start, &log)
}

fn run(model: &config::model::Model, start: &Start, log: &ProcessLog) -> Exit {
    let ended = server::run(model, start, log);
    log.flush(std::time::Duration::from_secs(2));
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("error: {error}");
            Exit::StartFailed
        }
    }
}

/// Asks `/healthz` of the instance that runs with this configuration.
fn healthcheck(file: &Path) -> Exit {
    let Ok(loaded) = config::load(file) else {
        eprintln!("error: {} is not valid; see `rrlb check -c {}`", file.display(), file.display());
        return Exit::InvalidConfiguration;
    };
    let Some(mut address) = loaded.model.metrics else {
        eprintln!("error: {} has no `metrics: {{ address }}` to ask", file.display());
        return Exit::InvalidConfiguration;
    };
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    match ask(address, "/healthz") {
        Ok(status) if status.starts_with("HTTP/1.1 200") => Exit::Ok,
        Ok(status) => {
            eprintln!("error: {address} answers {status}");
            Exit::StartFailed
        }
        Err(error) => {
            eprintln!("error: no instance answers on {address}: {error}");
            Exit::StartFailed
        }
    }
}

fn ask(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    use std::io::{BufRead, BufReader};
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
    let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_make_sense_to_clap() {
        Arguments::command().debug_assert();
    }
}
