//! The admin API's sockets: bound like listeners, handed over like them, given to the API as they are.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use pingora_core::server::Server;
use tokio::sync::watch;

use super::{
    StartError,
    place::default_admin_sock,
    process::{Account, BoundFiles},
    upgrade::Inherited,
};
use crate::{
    config::model::{Admin, AdminTcp, Model},
    listener::{ListenSocket, certificates::Certificates},
    service::admin::{AdminApi, LiveTls, LiveTokens, Tokens, operator::Parts},
    types::ListenAddress,
};

/// Bound, and served by nobody yet.
#[derive(Default)]
pub(super) struct AdminSockets {
    unix: Option<(PathBuf, UnixListener)>,
    tcp: Option<(AdminTcp, std::net::TcpListener, Keys)>,
}

/// What a reload exchanges of the API on TCP: tokens and certificates. Whether there is TLS at all stays: what was safe
/// where one address is bound need not be so at another, and that stays too.
#[derive(Clone)]
pub(super) struct Keys {
    tokens: LiveTokens,
    tls: Option<Arc<ArcSwap<LiveTls>>>,
}

/// Made for [`Keys`], and not in use yet.
pub(super) struct NextKeys {
    tokens: Tokens,
    tls: Option<LiveTls>,
}

impl Keys {
    fn new(tcp: &AdminTcp, certificates: &Certificates) -> Result<Self, StartError> {
        let NextKeys { tokens, tls } = NextKeys::new(tcp, certificates)?;
        Ok(Self {
            tokens: Arc::new(ArcSwap::from_pointee(tokens)),
            tls: tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls))),
        })
    }

    /// Requests and handshakes from now on are held to these.
    pub(super) fn change(&self, next: NextKeys) {
        self.tokens.store(Arc::new(next.tokens));
        if let (Some(current), Some(next)) = (&self.tls, next.tls) {
            current.store(Arc::new(next));
        }
    }

    fn live_tls(&self) -> Option<LiveTls> {
        let tls = self.tls.clone()?;
        Some(Arc::new(move || (tls.load())()))
    }
}

impl NextKeys {
    /// Of a configuration.
    ///
    /// # Errors
    /// The crypto provider does not support what is asked for.
    pub(super) fn new(tcp: &AdminTcp, certificates: &Certificates) -> Result<Self, StartError> {
        let tls = tcp.tls.as_ref().map(|tls| certificates.follow_config(tls)).transpose()?;
        Ok(Self { tokens: Tokens::from(tcp), tls })
    }
}

/// What runs of `admin` after a reload: of the API on TCP, where it was and is to be, the tokens, and the certificates of one
/// that has some.
pub(super) fn runnable(before: Option<&Admin>, loaded: Option<&Admin>) -> Option<Admin> {
    let before = before?;
    let new = loaded.and_then(|admin| admin.tcp.as_ref());
    let tcp = before.tcp.as_ref().map(|tcp| {
        let AdminTcp { token, read_token, tls, .. } = new.unwrap_or(tcp).clone();
        AdminTcp { address: tcp.address, token, read_token, tls: tcp.tls.clone().map(|kept| tls.unwrap_or(kept)) }
    });
    Some(Admin { socket: before.socket.clone(), tcp })
}

/// Kept for a successor, and for the end.
#[derive(Default)]
pub(super) struct HeldAdmin {
    sockets: Vec<(String, OwnedFd)>,
    file: Option<PathBuf>,
}

impl AdminSockets {
    /// Binds what the configuration asks for, or takes it over.
    ///
    /// # Errors
    /// An address is used by another.
    pub(super) fn open(
        model: &Model,
        upgrade_sock: &Path,
        mut inherited: Option<&mut Inherited>,
        bound: &mut BoundFiles,
        account: Option<&Account>,
        certificates: &Certificates,
    ) -> Result<Self, StartError> {
        let Some(admin) = &model.admin else { return Ok(Self::default()) };
        let mut take = |key: String| inherited.as_deref_mut().and_then(|inherited| inherited.remove(&key));
        let failed = |what: String| move |error| StartError::Io { what, error };
        let path = admin
            .socket
            .clone()
            .unwrap_or_else(|| default_admin_sock(model.process.upgrade_sock.as_deref(), upgrade_sock));
        let unix: OwnedFd = match take(unix_key(&path)) {
            Some(fd) => fd,
            None => {
                let socket = ListenSocket::bind_private(&path)?;
                bound.add(&path);
                if let Some(account) = account {
                    account.own_socket(&path).map_err(failed(format!("admin socket {}", path.display())))?;
                }
                socket.into()
            }
        };
        let unix = UnixListener::from(unix);
        unix.set_nonblocking(true).map_err(failed(format!("admin socket {}", path.display())))?;
        let tcp = match &admin.tcp {
            None => None,
            Some(tcp) => {
                let fd: OwnedFd = match take(tcp_key(tcp)) {
                    Some(fd) => fd,
                    None => ListenSocket::bind(&ListenAddress::Inet(tcp.address))?.into(),
                };
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true).map_err(failed(format!("admin on {}", tcp.address)))?;
                Some((tcp.clone(), listener, Keys::new(tcp, certificates)?))
            }
        };
        Ok(Self { unix: Some((path, unix)), tcp })
    }

    /// Descriptors of their own, for a successor.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn hold(&self) -> io::Result<HeldAdmin> {
        let mut held = HeldAdmin::default();
        if let Some((path, socket)) = &self.unix {
            held.sockets.push((unix_key(path), socket.as_fd().try_clone_to_owned()?));
            held.file = Some(path.clone());
        }
        if let Some((tcp, socket, _)) = &self.tcp {
            held.sockets.push((tcp_key(tcp), socket.as_fd().try_clone_to_owned()?));
        }
        Ok(held)
    }

    /// What a reload exchanges; `None` where there is no API on TCP.
    pub(super) fn keys(&self) -> Option<Keys> {
        self.tcp.as_ref().map(|(_, _, keys)| keys.clone())
    }

    /// Adds the API to the server. It accepts from when `gate` is open until `closing` becomes true.
    pub(super) fn serve(
        self,
        server: &mut Server,
        parts: Parts,
        gate: watch::Receiver<bool>,
        closing: watch::Receiver<bool>,
    ) {
        let Self { unix, tcp } = self;
        if unix.is_none() && tcp.is_none() {
            return;
        }
        let tcp = tcp.map(|(_, listener, keys)| (listener, keys.live_tls(), keys.tokens));
        server.add_service(AdminApi::new(parts, unix.map(|(_, listener)| listener), tcp, gate, closing));
    }
}

impl HeldAdmin {
    /// Descriptors for a successor, by key.
    pub(super) fn copies(&self) -> impl Iterator<Item = io::Result<(String, OwnedFd)>> {
        self.sockets.iter().map(|(key, socket)| Ok((key.clone(), socket.try_clone()?)))
    }

    /// A successor has them, or nobody comes.
    pub(super) fn give_up(&mut self) {
        self.sockets.clear();
    }

    /// Removes the unix socket's file, for a process that leaves with no successor.
    pub(super) fn forget(&self) {
        if let Some(path) = &self.file
            && let Err(error) = std::fs::remove_file(path)
        {
            log::debug!("removing {}: {error}", path.display());
        }
    }
}

fn unix_key(path: &Path) -> String {
    format!("admin unix:{}", path.display())
}

fn tcp_key(tcp: &AdminTcp) -> String {
    format!("admin {}", tcp.address)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    use super::*;
    use crate::{
        config::{self, model::Admin},
        listener::tickets::TicketKeys,
        telemetry::metrics::Metrics,
    };

    fn certificates() -> Certificates {
        let tickets = TicketKeys::new().expect("keys");
        Certificates::new(tickets.into(), Metrics::new("1", 1).into(), Arc::default())
    }

    fn model(socket: Option<PathBuf>) -> Model {
        let text = "version: 1\nlisteners: [{ address: 127.0.0.1:1 }]\nroutes: [{ respond: { status: 200 } }]\n";
        let model = config::parse(text, Path::new("rrlb.yaml")).expect("a good file").model;
        Model { admin: Some(Admin { socket, tcp: None }), ..model }
    }

    #[test]
    fn the_socket_is_for_user_and_group_and_a_dead_one_is_replaced() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let upgrade_sock = folder.path().join("upgrade.sock");
        let path = folder.path().join("upgrade.admin.sock");
        drop(UnixListener::bind(&path).expect("a process before"));
        let certificates = certificates();
        let open =
            |bound: &mut BoundFiles| AdminSockets::open(&model(None), &upgrade_sock, None, bound, None, &certificates);
        let mut bound = BoundFiles::default();
        let sockets = open(&mut bound).expect("the one before is dead");
        assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o660);
        assert!(open(&mut BoundFiles::default()).is_err_and(|error| error.to_string().contains("another process")));
        let held = sockets.hold().expect("descriptors");
        let keys: Vec<String> = held.copies().map(|copy| copy.expect("a descriptor").0).collect();
        assert_eq!(keys, [format!("admin unix:{}", path.display())]);
        drop(bound);
        assert!(!path.exists(), "a start that fails leaves nothing behind");
    }

    #[test]
    fn the_file_is_removed_by_who_leaves_with_no_successor() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("mine.sock");
        let (certificates, mut bound) = (certificates(), BoundFiles::default());
        let model = model(Some(path.clone()));
        let sockets =
            AdminSockets::open(&model, Path::new("/unused/upgrade.sock"), None, &mut bound, None, &certificates);
        bound.keep();
        let mut held = sockets.expect("bind").hold().expect("descriptors");
        held.give_up();
        assert!(path.exists(), "a successor listens there");
        held.forget();
        assert!(!path.exists());
    }
}
