//! Which running instance is meant, and a connection to it. A configuration that is not valid any more keeps nobody from
//! the process that runs with an older one.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{arguments::Arguments, failure::Failure};
use crate::{
    config,
    server::{AdminSocket, admin_sockets, only_admin_socket},
};

const CONNECT: Duration = Duration::from_secs(5);
const START: &str = "start one with `rrlb -c FILE`, with `admin: {}` in the file; or say where it is with -c FILE, \
                     --socket PATH, or --address URL --token-file FILE";

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where the instance is.
#[derive(Debug)]
pub(super) enum Instance {
    /// The first of these that answers.
    Sockets {
        sockets: Vec<AdminSocket>,
        help: String,
    },
    Tcp(Tcp),
}

/// An address, and what is needed to speak there.
pub(super) struct Tcp {
    host: String,
    port: u16,
    token: String,
    tls: Option<(ServerName<'static>, TlsConnector)>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Instance {
    /// The one that the arguments name; `env` is RRLB_SOCKET.
    ///
    /// # Errors
    /// The arguments contradict each other; a token or a certificate cannot be read.
    pub(super) fn named(arguments: &Arguments, env: Option<PathBuf>) -> Result<Self, Failure> {
        let place = &arguments.place;
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        match (&place.socket, &place.address) {
            (Some(_), Some(_)) => return usage("--socket and --address name two instances; give one of them"),
            (_, None) if place.token_file.is_some() => return usage("--token-file belongs to --address"),
            (_, None) if place.ca.is_some() => return usage("--ca belongs to --address"),
            (Some(path), None) => return Ok(Self::socket(path)),
            (None, Some(url)) => {
                let Some(token) = &place.token_file else { return usage("--address needs --token-file FILE") };
                return Tcp::new(url, token, place.ca.as_deref()).map(Self::Tcp);
            }
            (None, None) => {}
        }
        Ok(match (&arguments.conf, env) {
            (Some(file), env) => Self::of_file(file, env),
            (None, Some(path)) => Self::socket(&path),
            (None, None) => Self::Sockets { sockets: only_admin_socket(), help: START.to_owned() },
        })
    }

    fn socket(path: &Path) -> Self {
        Self::Sockets { sockets: vec![named(path)], help: START.to_owned() }
    }

    fn of_file(file: &Path, env: Option<PathBuf>) -> Self {
        let shown = file.display();
        let (place, why) = match config::place(file) {
            Ok(place) => (place, None),
            Err(why) => (config::Place::default(), Some(why)),
        };
        if let Some(path) = &place.socket {
            let help = format!("start one with `rrlb -c {shown}`");
            return Self::Sockets { sockets: vec![named(path)], help };
        }
        let help = match why {
            Some(why) => format!("{shown}: {why}; these are the places where its socket is by default"),
            None if place.admin => format!("start one with `rrlb -c {shown}`"),
            None => format!("{shown} has no `admin:`; add `admin: {{}}` to it and restart"),
        };
        let env = env.filter(|_| !place.admin).map(|path| named(&path));
        let default = admin_sockets(file, place.upgrade_sock.as_deref(), place.user.as_deref());
        Self::Sockets { sockets: env.into_iter().chain(default).collect(), help }
    }

    /// `Host` of a request.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Sockets { .. } => "localhost".to_owned(),
            Self::Tcp(tcp) => tcp.shown(),
        }
    }

    /// What shows that we may.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Self::Sockets { .. } => None,
            Self::Tcp(tcp) => Some(&tcp.token),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody listens; we may not; the certificate is not trusted.
    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        match self {
            Self::Tcp(tcp) => tcp.connect().await,
            Self::Sockets { sockets, help } => {
                let mut tried = Vec::new();
                for socket in sockets {
                    let shown = socket.path.display().to_string();
                    match open(socket).await {
                        Ok(stream) => return Ok(Box::new(stream)),
                        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                            return Err(Failure::Denied(format!(
                                "{shown}: permission denied; run as the socket's user, as a member of its group, or as root"
                            )));
                        }
                        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                            return Err(Failure::Usage(format!("{shown} cannot be a socket's path: {error}")));
                        }
                        Err(error) => tried.push((shown, why(&error))),
                    }
                }
                Err(Failure::NoInstance { tried, help: help.clone() })
            }
        }
    }
}

fn named(path: &Path) -> AdminSocket {
    AdminSocket { path: path.to_owned(), owners: None }
}

async fn open(socket: &AdminSocket) -> io::Result<UnixStream> {
    if let Some(owners) = &socket.owners {
        let owner = std::fs::symlink_metadata(&socket.path)?.uid();
        if !owners.contains(&owner) {
            return Err(io::Error::other(format!(
                "it belongs to user {owner}; if that is right, name it with --socket"
            )));
        }
    }
    timeout(CONNECT, UnixStream::connect(&socket.path)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => error.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
    }
}

impl Tcp {
    fn new(url: &str, token_file: &Path, ca: Option<&Path>) -> Result<Self, Failure> {
        let usage = |text: String| Failure::Usage(text);
        let wrong = || usage(format!("--address {url}: write http://127.0.0.1:PORT or https://HOST:PORT"));
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err(wrong());
        };
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") || host.is_empty() {
            return Err(wrong());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match scheme {
            "https" => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                Some((name, connector(ca)?))
            }
            "http" if ca.is_some() => return Err(usage("--ca belongs to https".to_owned())),
            "http" if is_local(&host) => None,
            "http" => {
                return Err(usage(format!(
                    "--address {url}: the token would cross the network in the clear; use https"
                )));
            }
            _ => return Err(wrong()),
        };
        let read = std::fs::read_to_string(token_file);
        let token =
            read.map_err(|error| usage(format!("--token-file {}: {}", token_file.display(), file_why(&error))))?;
        let token = token.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let form = "the file must have one word of visible ASCII";
            return Err(usage(format!("--token-file {}: {form}", token_file.display())));
        }
        Ok(Self { host, port, token, tls })
    }

    fn shown(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        let connected = timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port))).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
            let help = "start one with `admin: { address, token_file }` in its file, or name another --address";
            Failure::NoInstance { tried: vec![(self.shown(), why(&error))], help: help.to_owned() }
        })?;
        let Some((name, connector)) = &self.tls else { return Ok(Box::new(stream)) };
        let shaken = timeout(CONNECT, connector.connect(name.clone(), stream)).await;
        match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Failure::refused(
                format!("no TLS with {}: {}", self.shown(), why(&error)),
                Some(
                    "name the certificate's authority with --ca FILE, and the host as the certificate does".to_owned(),
                ),
            )),
        }
    }
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn file_why(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound { "there is no such file".to_owned() } else { why(error) }
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, Failure> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let wrong = |why: String| Failure::Usage(format!("--ca {}: {why}", path.display()));
            let pem = std::fs::read(path).map_err(|error| wrong(file_why(&error)))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("no certificate in it".to_owned()));
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::Unexpected(format!("TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
