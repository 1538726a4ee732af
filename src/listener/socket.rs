//! Listening sockets: bound once, shared by all workers, handed to the next process.

use std::{
    fmt, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::Path,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Type};

use crate::types::ListenAddress;

/// Connections the kernel keeps for us before they are accepted; it cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// Anyone on the machine may connect to a unix listener, as to a TCP one on loopback.
const UNIX_MODE: u32 = 0o666;
/// Who may administrate: user and group.
const PRIVATE_MODE: u32 = 0o660;
/// Bytes of answers that the system holds for one connection before the network has asked for them. Without a bound that is up
/// to `net.ipv4.tcp_wmem`, usually 4 MiB, for a client that takes nothing; and who is that slow is seen only when no more fits.
pub(super) const UNSENT: u32 = 256 * 1024;
/// The same of a large answer whose client has taken the beginning of it well: each time there is room again costs a wake-up.
pub(super) const MOST_UNSENT: u32 = 1024 * 1024;

/// A socket that accepts.
#[derive(Debug)]
pub struct ListenSocket(socket2::Socket);

/// Why an address could not be bound; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{remedy}")]
pub struct BindError {
    address: ListenAddress,
    error: io::Error,
    remedy: Remedy,
}

#[derive(Debug)]
enum Remedy {
    InUse,
    NoSuchAddress,
    None,
    Privileged,
    UnixFolder,
}

impl ListenSocket {
    /// Binds `address` and listens.
    ///
    /// # Errors
    /// The address is used by another, does not exist on this machine, or needs privileges.
    pub fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddress::Inet(address) => bind_inet(*address),
            ListenAddress::Unix(path) => bind_unix(path, UNIX_MODE),
        };
        Self::bound(address, bound)
    }

    /// Binds a unix socket that only user and group of this process may connect to.
    ///
    /// # Errors
    /// As [`ListenSocket::bind`].
    pub fn bind_private(path: &Path) -> Result<Self, BindError> {
        Self::bound(&ListenAddress::Unix(path.to_owned()), bind_unix(path, PRIVATE_MODE))
    }

    fn bound(address: &ListenAddress, bound: io::Result<socket2::Socket>) -> Result<Self, BindError> {
        bound.map(Self).map_err(|error| {
            let unix = matches!(address, ListenAddress::Unix(_));
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => Remedy::InUse,
                io::ErrorKind::AddrNotAvailable => Remedy::NoSuchAddress,
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound if unix => Remedy::UnixFolder,
                io::ErrorKind::PermissionDenied => Remedy::Privileged,
                _ => Remedy::None,
            };
            BindError { address: address.clone(), error, remedy }
        })
    }

    /// Takes over a socket that another process has bound.
    ///
    /// # Errors
    /// The socket cannot be set to non-blocking.
    pub fn inherit(fd: OwnedFd) -> io::Result<Self> {
        let socket = socket2::Socket::from(fd);
        socket.set_nonblocking(true)?;
        if socket.domain()? != Domain::UNIX {
            bequeath(&socket)?;
        }
        Ok(Self(socket))
    }

    /// Whether a connection waits to be accepted. To ask costs 0.2 µs; to accept where none waits 3 µs, as accept4(2) makes a file first.
    pub(super) fn is_waited_for(&self) -> bool {
        let mut asked = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // What cannot be asked is tried.
        poll(&mut asked, PollTimeout::ZERO) != Ok(0)
    }

    /// Accepts one connection, non-blocking; `WouldBlock` where none waits.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub fn accept(&self) -> io::Result<(socket2::Socket, SockAddr)> {
        // SAFETY: accept4(2) writes the address and its length where it is asked to.
        let (fd, address) = unsafe {
            SockAddr::try_init(|address, length| {
                match libc::accept4(self.as_raw_fd(), address.cast(), length, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                {
                    -1 => Err(io::Error::last_os_error()),
                    fd => Ok(fd),
                }
            })?
        };
        // SAFETY: it has just been opened, and is nobody else's.
        Ok((unsafe { socket2::Socket::from_raw_fd(fd) }, address))
    }
}

impl From<ListenSocket> for OwnedFd {
    fn from(socket: ListenSocket) -> Self {
        socket.0.into()
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ListenSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn bind_inet(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A restart must not wait for the last one's closed connections. A socket that still listens is an error all the same.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` may stand beside each other.
        socket.set_only_v6(true)?;
    }
    bequeath(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// What a TCP connection has from the socket that accepted it, without a system call of its own.
fn bequeath(socket: &socket2::Socket) -> io::Result<()> {
    // A reply must not wait for the acknowledgement of the one before.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)
}

/// Changes how much the system holds for a connection; see [`UNSENT`].
pub(super) fn keep_unsent(stream: &tokio::net::TcpStream, bytes: u32) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
        log::debug!("TCP_NOTSENT_LOWAT: {error}");
    }
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<socket2::Socket> {
    let address = SockAddr::unix(path)?;
    if is_stale(path, &address)? {
        std::fs::remove_file(path)?;
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&address)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Whether `path` is a socket that nobody listens on any more.
fn is_stale(path: &Path, address: &SockAddr) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            Ok(probe.connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InUse => {
                "; another process listens there: stop it, choose another address, or start with -u to take over from a running rrlb"
            }
            Self::NoSuchAddress => "; no interface of this machine has that address",
            Self::None => "",
            Self::Privileged => {
                "; ports below 1024 need root or CAP_NET_BIND_SERVICE: start as root with `user:` set, or choose a higher port"
            }
            Self::UnixFolder => "; its folder must exist and be writable for this user",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_port_is_an_error_with_a_remedy() {
        let first = ListenSocket::bind(&ListenAddress::Inet(([127, 0, 0, 1], 0).into())).expect("bind");
        let address = first.0.local_addr().expect("address").as_socket().expect("inet");
        let error = ListenSocket::bind(&ListenAddress::Inet(address)).expect_err("it is used").to_string();
        assert!(error.contains("another process listens there"), "{error}");
    }

    #[test]
    fn connections_have_what_their_socket_has() {
        let (fresh, old) =
            (ListenAddress::Inet(([127, 0, 0, 1], 0).into()), std::net::TcpListener::bind("127.0.0.1:0"));
        let fresh = ListenSocket::bind(&fresh).expect("bind");
        for socket in [fresh, ListenSocket::inherit(old.expect("bind").into()).expect("inherit")] {
            let address = socket.0.local_addr().expect("address").as_socket().expect("inet");
            let _client = std::net::TcpStream::connect(address).expect("connect");
            let accepted = socket.accept().expect("the handshake is done").0;
            assert!(accepted.tcp_nodelay().expect("option"));
            assert_eq!(accepted.tcp_notsent_lowat().expect("option"), UNSENT);
        }
    }

    #[test]
    fn whether_a_connection_waits_is_told_without_taking_it() {
        let listener = ListenSocket::bind(&ListenAddress::Inet(([127, 0, 0, 1], 0).into())).expect("bind");
        let address = listener.0.local_addr().expect("address").as_socket().expect("inet");
        assert!(!listener.is_waited_for());
        let _client = std::net::TcpStream::connect(address).expect("connect");
        assert!(listener.is_waited_for() && listener.is_waited_for());
        listener.accept().expect("the handshake is done");
        assert!(!listener.is_waited_for());
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_living_one_is_not() {
        let folder = std::env::temp_dir().join(format!("rrlb-socket-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let address = ListenAddress::Unix(folder.join("s"));
        let first = ListenSocket::bind(&address).expect("bind");
        assert!(ListenSocket::bind(&address).expect_err("it lives").to_string().contains("another process"));
        drop(first);
        drop(ListenSocket::bind(&address).expect("the old one is dead"));
        std::fs::remove_dir_all(&folder).expect("clean up");
    }
}
