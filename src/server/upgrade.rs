//! The hand-over: a new process asks the running one for its listening sockets, serves, and says so; only then does
//! the old one drain. If the new one fails at any point before, the old one goes on as if nothing had happened.
//!
//! The running process listens on the upgrade socket (SOCK_SEQPACKET, so that a message stays a message). The new one
//! connects and says [`HELLO`]; it gets one message per listening socket, the address as text with the descriptor, and
//! an empty address as the last. When it serves it says [`SERVING`] and is answered [`DRAINING`]; only then does it take
//! the names of the old one (upgrade socket, pid file). Closing the connection before that calls it off.

use std::{
    collections::HashMap,
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, sendmsg, sockopt,
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::StartError;

const HELLO: &[u8] = b"rrlb-upgrade 1";
const SERVING: &[u8] = b"serving";
const DRAINING: &[u8] = b"draining";
const BUSY: &[u8] = b"busy";
/// A message is an address; unix paths are the longest.
const LONGEST_MESSAGE: usize = 512;
/// How long the running process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that connects may take to say what it wants.
const HELLO_PATIENCE: Duration = Duration::from_secs(1);

/// Listening sockets taken over from the running process, by address.
pub(super) struct Inherited {
    sockets: HashMap<String, OwnedFd>,
    connection: Socket,
}

impl Inherited {
    /// Asks the running process for its sockets.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub(super) fn take(path: &Path) -> Result<Self, StartError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                StartError::NothingToTakeOver(path.to_owned())
            }
            _ => StartError::HandOver(path.to_owned(), error),
        };
        let connection = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
        connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        connection.connect(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
        connection.send(HELLO).map_err(failed)?;
        let mut sockets = HashMap::new();
        loop {
            match receive(&connection).map_err(failed)? {
                (address, Some(fd)) => {
                    sockets.insert(address, fd);
                }
                (end, None) if end.is_empty() => return Ok(Self { sockets, connection }),
                (message, None) if message.as_bytes() == BUSY => return Err(StartError::HandOverBusy),
                (message, None) => {
                    let text = format!("unexpected answer {message:?}");
                    return Err(failed(io::Error::other(text)));
                }
            }
        }
    }

    /// The socket of an address, if the running process had it.
    pub(super) fn remove(&mut self, address: &str) -> Option<OwnedFd> {
        self.sockets.remove(address)
    }

    /// What is left is closed here; the old process closes its own when it drains. What remains is the news to tell.
    pub(super) fn into_successor(self) -> Successor {
        let unix = |key: String| key.strip_prefix("admin ").unwrap_or(&key).strip_prefix("unix:").map(PathBuf::from);
        Successor { connection: self.connection, given_up: self.sockets.into_keys().filter_map(unix).collect() }
    }
}

/// The news that this process serves, to be told to the one before it.
pub(super) struct Successor {
    connection: Socket,
    /// Files of unix listeners that nobody will listen on any more.
    given_up: Vec<PathBuf>,
}

impl Successor {
    /// Tells the old process to drain, and waits until it does.
    ///
    /// # Errors
    /// It has gone meanwhile, which does no harm.
    pub(super) fn serving(self) -> io::Result<()> {
        self.connection.send(SERVING)?;
        let answer = receive(&self.connection)?.0;
        for path in &self.given_up {
            let _ = fs::remove_file(path);
        }
        if answer.as_bytes() == DRAINING { Ok(()) } else { Err(io::Error::other(format!("it answered {answer:?}"))) }
    }
}

fn receive(connection: &Socket) -> io::Result<(String, Option<OwnedFd>)> {
    let mut text = [0; LONGEST_MESSAGE];
    let mut parts = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!(RawFd);
    let (length, fd) = {
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let fd = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        (message.bytes, fd)
    };
    // SAFETY: the kernel has just made the descriptor for us, and nobody else knows of it.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    if length == 0 && fd.is_none() {
        // A message of no bytes cannot be told from the end of the connection, so none is sent.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = text.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(text).trim_end_matches('\n').to_owned(), fd))
}

/// The upgrade socket of the running process.
pub(super) struct UpgradeSocket {
    socket: Socket,
    path: PathBuf,
    inode: (u64, u64),
}

impl UpgradeSocket {
    /// Whether a process listens at `path`.
    pub(super) fn is_served(path: &Path) -> bool {
        let probe = || Socket::new(Domain::UNIX, Type::SEQPACKET, None)?.connect(&SockAddr::unix(path)?);
        probe().is_ok()
    }

    /// Listens at `path`, in place of a process before this one. Non-blocking.
    ///
    /// # Errors
    /// The folder is not writable.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        // Beside it first, then renamed: there is a socket at the path at any time, and a dead one does not matter.
        let fresh = path.with_extension(std::process::id().to_string());
        let _ = fs::remove_file(&fresh);
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        socket.bind(&SockAddr::unix(&fresh)?)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        socket.listen(8)?;
        let inode = inode(&fresh)?;
        fs::rename(&fresh, path)?;
        Ok(Self { socket, path: path.to_owned(), inode })
    }

    /// A successor that has connected; `WouldBlock` where there is none.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub(super) fn accept(&self) -> io::Result<HandOver> {
        let (connection, _) = self.socket.accept()?;
        let peer: UnixCredentials = getsockopt(&connection, sockopt::PeerCredentials)?;
        let us = nix::unistd::getuid();
        if peer.uid() != us.as_raw() && peer.uid() != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {} asked for the listening sockets", peer.uid()),
            ));
        }
        Ok(HandOver { connection, pid: peer.pid() })
    }

    /// Takes the socket away; for a process that leaves with no successor.
    pub(super) fn remove(self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("removing the upgrade socket: {error}");
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl AsRawFd for UpgradeSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A hand-over under way, seen from the old process.
pub(super) struct HandOver {
    connection: Socket,
    pid: i32,
}

impl HandOver {
    /// The process that asks.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Gives away what `sockets` returns and waits until the new process serves. Blocks. `claimed` says whether a
    /// hand-over is under way; one that only connects and says nothing does not hold up another.
    ///
    /// # Errors
    /// It left before, speaks another language, or another was first.
    pub(super) fn run(
        &self,
        sockets: impl FnOnce() -> io::Result<Vec<(String, OwnedFd)>>,
        claimed: &AtomicBool,
    ) -> Result<(), HandOverError> {
        self.greet().map_err(HandOverError::NotAsked)?;
        if claimed.swap(true, Ordering::AcqRel) {
            let _ = self.connection.send(BUSY);
            return Err(HandOverError::NotAsked(io::Error::other("another upgrade is under way")));
        }
        let outcome = sockets().and_then(|sockets| self.give(sockets));
        outcome.map_err(|error| {
            claimed.store(false, Ordering::Release);
            HandOverError::Failed(error)
        })
    }

    fn greet(&self) -> io::Result<()> {
        self.connection.set_nonblocking(false)?;
        self.connection.set_read_timeout(Some(HELLO_PATIENCE))?;
        match receive(&self.connection)?.0.as_bytes() {
            HELLO => Ok(()),
            _ => Err(io::Error::other("not an rrlb of this kind")),
        }
    }

    fn give(&self, sockets: Vec<(String, OwnedFd)>) -> io::Result<()> {
        for (address, fd) in &sockets {
            let fds = [fd.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let text = [IoSlice::new(address.as_bytes())];
            sendmsg::<()>(self.connection.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        }
        self.connection.send(b"\n")?;
        // Our copies would keep the listeners open past a drain.
        drop(sockets);
        // It may take its time: until it serves, nothing changes here.
        self.connection.set_read_timeout(None)?;
        match receive(&self.connection)?.0.as_bytes() {
            SERVING => {
                // It serves whether it hears this or not.
                let _ = self.connection.send(DRAINING);
                Ok(())
            }
            _ => Err(io::Error::other("an unexpected message")),
        }
    }
}

/// Why nothing was handed over.
#[derive(Debug)]
pub(super) enum HandOverError {
    /// The new process left before it served.
    Failed(io::Error),
    /// Nobody asked for the sockets in earnest.
    NotAsked(io::Error),
}
