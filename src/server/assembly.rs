//! The parts of a process, made of a model: listeners, proxies, what Pingora's server is told. Used at the start, and
//! again at each reload for what is new.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, ProxyServiceBuilder};

use super::{StartError, control::operations_key, process::BoundFiles, upgrade::Inherited};
use crate::{
    config::model::{self, LogTarget, Model},
    listener::{ListenSocket, Listening, Tls, certificates::Certificates},
    proxy::{App, Kit, Proxies},
    runtime::peer::TlsProfile,
    telemetry::metrics::Metrics,
    types::{ListenAddress, Name},
};

/// A listener: the socket of the process before where it had one, else bound here.
pub(super) fn listener(
    model: &model::Listener,
    certificates: &Certificates,
    metrics: &Metrics,
    inherited: Option<&mut Inherited>,
    bound: &mut BoundFiles,
) -> Result<Arc<Listening>, StartError> {
    let name = Name::from(model.address.to_string());
    let socket = match inherited.and_then(|inherited| inherited.remove(name.as_str())) {
        Some(fd) => ListenSocket::inherit(fd).map_err(|error| StartError::Io { what: name.to_string(), error })?,
        None => {
            let socket = ListenSocket::bind(&model.address)?;
            if let ListenAddress::Unix(path) = &model.address {
                bound.add(path);
            }
            socket
        }
    };
    let tls = tls(model, certificates)?;
    Ok(Arc::new(Listening::new(socket, model.clone(), tls, metrics.listener(&name))))
}

/// The TLS of a listener; `None` is plain text.
pub(super) fn tls(model: &model::Listener, certificates: &Certificates) -> Result<Option<Arc<Tls>>, StartError> {
    Ok(model.tls.as_ref().map(|tls| certificates.tls(tls)).transpose()?)
}

/// The listener of `/metrics`, with its address.
pub(super) fn operations(
    address: SocketAddr,
    inherited: Option<&mut Inherited>,
) -> Result<(String, Arc<std::net::TcpListener>), StartError> {
    let name = address.to_string();
    let fd: OwnedFd = match inherited.and_then(|inherited| inherited.remove(&operations_key(&name))) {
        Some(fd) => fd,
        None => ListenSocket::bind(&ListenAddress::Inet(address))?.into(),
    };
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true).map_err(|error| StartError::Io { what: format!("metrics on {name}"), error })?;
    Ok((name, Arc::new(listener)))
}

/// Pingora's connectors panic where they find no roots, so it must be known before.
pub(super) fn check_roots(model: &Model) -> Result<(), StartError> {
    if model.process.ca_file.is_some() || has_roots() {
        return Ok(());
    }
    let needs = |upstream: &&model::Upstream| upstream.tls.as_ref().is_some_and(|tls| tls.verify && tls.ca.is_none());
    model.upstreams.values().find(needs).map_or(Ok(()), |upstream| Err(StartError::NoRoots(upstream.name.clone())))
}

fn has_roots() -> bool {
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

/// Every way of speaking TLS to backends but the default.
pub(super) fn profiles(model: &Model) -> HashSet<TlsProfile> {
    let profile = |upstream: &model::Upstream| TlsProfile::new(upstream.tls.as_ref(), &model.process);
    model.upstreams.values().map(profile).filter(|profile| *profile != TlsProfile::default()).collect()
}

/// The proxies of one worker for these profiles. Those that `before` has are used on, with the connections they keep.
pub(super) fn proxies(
    conf: &Arc<ServerConf>,
    kit: &Arc<Kit>,
    process: &model::Process,
    profiles: &HashSet<TlsProfile>,
    before: &[&Proxies],
) -> Arc<Proxies> {
    let one = |profile: &TlsProfile| {
        let known = before.iter().find_map(|proxies| proxies.of(profile));
        known.cloned().unwrap_or_else(|| proxy(conf, kit, profile.clone(), process))
    };
    let others: HashMap<_, _> = profiles.iter().map(|profile| (profile.clone(), one(profile))).collect();
    Arc::new(Proxies::new(one(&TlsProfile::default()), others))
}

/// An `HttpProxy` with the connector of its TLS profile. Pingora's builder makes it inside a service; it is taken out.
fn proxy(conf: &Arc<ServerConf>, kit: &Arc<Kit>, profile: TlsProfile, process: &model::Process) -> Arc<HttpProxy<App>> {
    let options = profile.connector_options(process);
    let app = || App::new(kit.clone(), profile.clone());
    let mut service = ProxyServiceBuilder::new(conf, app()).client_options(options).build();
    let inside = service.app_logic_mut().expect("a service that was never started has its application");
    let spare = HttpProxy::new(app(), conf.clone());
    Arc::new(std::mem::replace(inside, spare))
}

/// What the proxies of a worker are told.
pub(super) fn worker_conf() -> Arc<ServerConf> {
    Arc::new(ServerConf { threads: 1, ..ServerConf::default() })
}

/// What Pingora's server is told.
pub(super) fn server_conf(model: &Model, daemon: bool, upgrade_sock: &Path) -> ServerConf {
    let process = &model.process;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    ServerConf {
        daemon,
        // The first process ends when the one in the background serves, or fails.
        daemon_wait_for_ready: daemon,
        error_log: process.error_log.as_ref().map(text),
        // Pingora's daemon needs one to see whether the background process lives; the operator's is ours to write.
        pid_file: text(&upgrade_sock.with_extension("starting")),
        // Binding is done by now, and so the user is changed already.
        user: None,
        group: None,
        working_directory: process.working_directory.clone(),
        threads: process.threads,
        // One event loop on one thread per worker; see `listener/worker.rs`.
        work_stealing: false,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(process.graceful_shutdown_timeout.as_secs()),
        ..ServerConf::default()
    }
}

/// Pingora's daemon panics after the fork where these fail, when nobody is there to hear it.
pub(super) fn check_background(model: &Model, daemon: bool) -> Result<(), StartError> {
    let process = &model.process;
    let io = |what: &str, path: &Path, error| StartError::Io { what: format!("{what} {}", path.display()), error };
    if !daemon {
        return Ok(());
    }
    if let Some(path) = &process.error_log {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| io("cannot open `error_log`", path, error))?;
    }
    if let Some(path) = &process.working_directory {
        std::fs::read_dir(path).map_err(|error| io("cannot use `working_directory`", path, error))?;
    }
    Ok(())
}

/// A log that cannot be opened again after a rotation goes on into the old file; better said now than then.
pub(super) fn warn_of_rotation(model: &Model) {
    if let Some(model::AccessLog { target: LogTarget::File(path), .. }) = &model.access_log
        && let Some(folder) = path.parent()
        && nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_err()
    {
        log::warn!(
            "{} is not writable for the user of `user:`; the access log cannot be made anew after a rotation",
            folder.display()
        );
    }
}
