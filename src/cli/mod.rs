//! The command line: what is asked for, and the exit code that answers.

mod arguments;
mod backend;
mod client;
mod configuration;
mod demo;
mod events;
mod explain;
mod failure;
mod instance;
mod lifecycle;
mod logging;
mod manual;
mod reload;
mod screen;
mod sse;
mod state;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod wait;
mod wire;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use arguments::{Arguments, Command};
use clap::{Parser, error::ErrorKind};
use client::Client;
use failure::Failure;
use instance::Instance;
use screen::Screen;

use crate::{
    config::{self, Format},
    server::{self, Beginning, Start},
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
    /// No running instance was found.
    NoInstance = 3,
    /// The running instance refused, or went back to what was before.
    Refused = 4,
    /// Something was not done within its time.
    DeadlinePassed = 5,
    /// The process could not start: a port, a privilege, a hand-over.
    StartFailed = 6,
    /// A fault of rrlb itself.
    Internal = 70,
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
    let Some(command) = &arguments.command else {
        return match &arguments.conf {
            None => no_file(),
            Some(file) if arguments.test => check(file, Format::Human),
            Some(file) => serve(file, arguments),
        };
    };
    match (command, &arguments.conf) {
        (Command::Version, _) => {
            // A reader that has gone is no fault of ours.
            let _ = writeln!(std::io::stdout(), "rrlb {}", env!("CARGO_PKG_VERSION"));
            Exit::Ok
        }
        (Command::Demo, _) => demo::run_demo(),
        (Command::Check { .. } | Command::Healthcheck, None) => no_file(),
        (Command::Check { format }, Some(file)) => check(file, (*format).into()),
        (Command::Healthcheck, Some(file)) => healthcheck(file),
        _ => control(arguments, command, &mut Screen::standard(), std::env::var_os("RRLB_SOCKET").map(PathBuf::from)),
    }
}

/// Does what needs no process of its own; `env` is RRLB_SOCKET.
fn control(arguments: &Arguments, command: &Command, screen: &mut Screen, env: Option<PathBuf>) -> Exit {
    let done = match command {
        Command::Completions { shell } => manual::print_completions(*shell, screen),
        Command::Man => manual::print_manual(screen),
        Command::Schema => configuration::print_schema(screen),
        _ => Instance::named(arguments, env.filter(|path| !path.as_os_str().is_empty())).and_then(|instance| {
            let client = Client::new(instance);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::Unexpected(format!("no event loop: {error}")))?;
            runtime.block_on(ask_instance(arguments, command, &client, screen))
        }),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            screen.note(&table::clean(&failure.render()));
            failure.exit()
        }
    }
}

async fn ask_instance(
    arguments: &Arguments,
    command: &Command,
    client: &Client,
    screen: &mut Screen,
) -> Result<(), Failure> {
    match command {
        Command::Status { json, watch: false } => status::status(json.json, client, screen).await,
        Command::Status { json, watch: true } => status::watch(json.json, client, screen).await,
        Command::Backend(command) => backend::run(command, client, screen).await,
        Command::Reload { confirm, abort_if, dry_run, json } => {
            let abort_if = abort_if.as_deref();
            let ask = reload::Ask { dry_run: *dry_run, confirm: *confirm, abort_if, json: json.json };
            reload::reload(ask, client, screen).await
        }
        Command::Diff { json } => {
            let ask = reload::Ask { dry_run: true, json: json.json, ..reload::Ask::default() };
            reload::reload(ask, client, screen).await
        }
        Command::Confirm => reload::confirm(client, screen).await,
        Command::Upgrade { binary, timeout, json } => {
            lifecycle::upgrade(binary.as_deref(), *timeout, json.json, client, screen).await
        }
        Command::Stop { now } => lifecycle::stop(*now, client, screen).await,
        Command::Config { effective } => {
            configuration::config(arguments.conf.as_deref().filter(|_| *effective), client, screen).await
        }
        Command::Route { method, url, headers, from, json } => {
            let asked = explain::Asked { method, url, headers, from: *from, json: json.json };
            explain::explain(&asked, client, screen).await
        }
        Command::Errors { limit, json } => events::errors(*limit, json.json, client, screen).await,
        Command::Events { follow: true, after, json } => events::follow(*after, json.json, client, screen).await,
        Command::Events { follow: false, after, json } => events::events(*after, json.json, client, screen).await,
        Command::State(command) => state::run(command, client, screen).await,
        // `dispatch` and `control` have done these.
        Command::Check { .. }
        | Command::Completions { .. }
        | Command::Demo
        | Command::Healthcheck
        | Command::Man
        | Command::Schema
        | Command::Version => Ok(()),
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
    let beginning = match Beginning::of(file) {
        Ok(beginning) => beginning,
        Err(report) => {
            logging::complain(&report.render(Format::Human));
            return Exit::InvalidConfiguration;
        }
    };
    if !beginning.loaded.warnings.problems.is_empty() {
        eprint!("{}", beginning.loaded.warnings.render(Format::Human));
    }
    let log = logging::start();
    let start = Start { config: file.to_owned(), daemon: arguments.daemon, upgrade: arguments.upgrade };
    run(beginning, &start, &log)
}

fn run(beginning: Beginning, start: &Start, log: &ProcessLog) -> Exit {
    let ended = server::run(beginning, start, log);
    log.flush(std::time::Duration::from_secs(2));
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            logging::complain(&format!("error: {error}\n"));
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
