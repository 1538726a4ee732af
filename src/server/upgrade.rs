//! The hand-over: a new process asks the running one for its listening sockets, serves, and says so; only then does
//! the old one drain. If the new one fails at any point before, the old one goes on as if nothing had happened.
//!
//! The running process listens on the upgrade socket (SOCK_SEQPACKET, so that a message stays a message). The new one
//! connects and says [`HELLO_2`]; it gets one message per listening socket, the address as text with the descriptor, an
//! empty address after the last, and [`STATE`] with a descriptor of what the old one knows (see `handover`). When it
//! serves it says [`SERVING`] and is answered [`DRAINING`], with a descriptor of what was changed at run time until then; only then does it take the names of the old one (upgrade
//! socket, pid file). The old one closes the connection by its end: until then it still has requests. Closing the connection before that calls it off. In version 1 no state was handed over; a process
//! of that version is served as it was, and hangs up on [`HELLO_2`], and so is asked again in its own way.

use std::{
    collections::HashMap,
    fs,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recv, recvmsg, sendmsg, sockopt,
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    StartError,
    handover::{Farewell, HandedOver},
};

const HELLO_1: &[u8] = b"rrlb-upgrade 1";
const HELLO_2: &[u8] = b"rrlb-upgrade 2";
const STATE: &[u8] = b"state";
const SERVING: &[u8] = b"serving";
const DRAINING: &[u8] = b"draining";
/// Among the sockets, the connection to a process before the one that hands over, which still drains; a number follows.
pub(super) const DRAINING_KEY: &str = "draining ";
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
    state: Option<HandedOver>,
    connection: Socket,
}

impl Inherited {
    /// Asks the running process for its sockets, and for what it knows.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub(super) fn take(path: &Path) -> Result<Self, StartError> {
        match Self::ask(path, HELLO_2) {
            Err(StartError::HandOver(_, error)) if hung_up(&error) => Self::ask(path, HELLO_1),
            taken => taken,
        }
    }

    fn ask(path: &Path, hello: &[u8]) -> Result<Self, StartError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                StartError::NothingToTakeOver(path.to_owned())
            }
            _ => StartError::HandOver(path.to_owned(), error),
        };
        let connection = Socket::new(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
        connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        connection.connect(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
        connection.send(hello).map_err(failed)?;
        let mut sockets = HashMap::new();
        loop {
            match receive(&connection).map_err(failed)? {
                (address, Some(fd)) => {
                    sockets.insert(address, fd);
                }
                (end, None) if end.is_empty() => {
                    let state = if hello == HELLO_2 { receive(&connection).map_err(failed)?.1 } else { None };
                    return Ok(Self { sockets, state: state.and_then(read), connection });
                }
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

    /// Connections to the processes before this one, each of which ends with its process: the one that hands over, and
    /// those before it that still drain.
    pub(super) fn predecessors(&mut self) -> Vec<OwnedFd> {
        let (draining, sockets) =
            std::mem::take(&mut self.sockets).into_iter().partition(|(key, _)| key.starts_with(DRAINING_KEY));
        self.sockets = sockets;
        let mut draining: Vec<OwnedFd> = HashMap::<String, OwnedFd>::into_values(draining).collect();
        draining.extend(self.connection.try_clone().map(OwnedFd::from));
        draining
    }

    /// What the running process knows; `None` where it said nothing of use.
    pub(super) fn state(&self) -> Option<&HandedOver> {
        self.state.as_ref()
    }

    /// What is left is closed here; the old process closes its own when it drains. What remains is the news to tell.
    pub(super) fn into_successor(self) -> Successor {
        let unix = |key: String| key.strip_prefix("admin ").unwrap_or(&key).strip_prefix("unix:").map(PathBuf::from);
        Successor { connection: self.connection, given_up: self.sockets.into_keys().filter_map(unix).collect() }
    }
}

/// As a process of version 1 does on being asked in a later way.
fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn read(state: OwnedFd) -> Option<HandedOver> {
    let state = HandedOver::read(state);
    let state =
        state.inspect_err(|error| log::warn!("starting without what the process before this one knows: {error}"));
    state.ok()
}

/// Whether the process at the other end of a hand-over is still there.
pub(super) fn is_there(connection: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(connection.as_raw_fd(), &mut [0], flags) {
        Ok(length) => length > 0,
        Err(error) => matches!(error, nix::Error::EAGAIN | nix::Error::EINTR),
    }
}

/// The news that this process serves, to be told to the one before it.
pub(super) struct Successor {
    connection: Socket,
    /// Files of unix listeners that nobody will listen on any more.
    given_up: Vec<PathBuf>,
}

impl Successor {
    /// Tells the old process to drain, and waits until it does. Returns what it said last, where it said anything.
    ///
    /// # Errors
    /// It has gone meanwhile, which does no harm.
    pub(super) fn serving(self) -> io::Result<Option<Farewell>> {
        self.connection.send(SERVING)?;
        let (answer, farewell) = receive(&self.connection)?;
        for path in &self.given_up {
            let _ = fs::remove_file(path);
        }
        if answer.as_bytes() != DRAINING {
            return Err(io::Error::other(format!("it answered {answer:?}")));
        }
        let read = |file| {
            Farewell::read(file)
                .inspect_err(|error| log::error!("cannot read what was changed at run time: {error}"))
                .ok()
        };
        Ok(farewell.and_then(read))
    }
}

fn receive(connection: &Socket) -> io::Result<(String, Option<OwnedFd>)> {
    loop {
        match receive_once(connection) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

fn receive_once(connection: &Socket) -> io::Result<(String, Option<OwnedFd>)> {
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

impl AsFd for UpgradeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
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

    /// Gives away what `estate` has and waits until the new process serves. Blocks. `claimed` says whether a
    /// hand-over is under way; one that only connects and says nothing does not hold up another.
    ///
    /// # Errors
    /// It left before, speaks another language, another was first, or `estate` refuses.
    pub(super) fn run(&self, estate: &impl Estate, claimed: &AtomicBool) -> Result<(), HandOverError> {
        let version = self.greet().map_err(HandOverError::NotAsked)?;
        if claimed.swap(true, Ordering::AcqRel) {
            let _ = self.connection.send(BUSY);
            return Err(HandOverError::NotAsked(io::Error::other("another upgrade is under way")));
        }
        if let Some(why) = estate.refusal(self.pid) {
            claimed.store(false, Ordering::Release);
            let _ = self.connection.send(BUSY);
            return Err(HandOverError::NotAsked(io::Error::other(why)));
        }
        self.give(version, estate).map_err(|error| {
            claimed.store(false, Ordering::Release);
            HandOverError::Failed(error)
        })
    }

    fn send(&self, text: &[u8], fd: &OwnedFd) -> io::Result<()> {
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let text = [IoSlice::new(text)];
        sendmsg::<()>(self.connection.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    fn greet(&self) -> io::Result<Version> {
        self.connection.set_nonblocking(false)?;
        self.connection.set_read_timeout(Some(HELLO_PATIENCE))?;
        match receive(&self.connection)?.0.as_bytes() {
            HELLO_1 => Ok(Version::One),
            HELLO_2 => Ok(Version::Two),
            _ => Err(io::Error::other("not an rrlb of this kind")),
        }
    }

    fn give(&self, version: Version, estate: &impl Estate) -> io::Result<()> {
        let sockets = estate.sockets(self.pid)?;
        for (address, fd) in &sockets {
            self.send(address.as_bytes(), fd)?;
        }
        self.connection.send(b"\n")?;
        // Our copies would keep the listeners open past a drain.
        drop(sockets);
        if version == Version::Two {
            match estate.state().write() {
                Ok(state) => self.send(STATE, &state)?,
                Err(error) => {
                    log::warn!("cannot hand over what this process knows: {error}");
                    self.connection.send(STATE)?;
                }
            }
        }
        // It may take its time: until it serves, nothing changes here.
        self.connection.set_read_timeout(None)?;
        match receive(&self.connection)?.0.as_bytes() {
            SERVING => {
                let farewell = estate.given(self.pid).write();
                let farewell =
                    farewell.inspect_err(|error| log::error!("cannot hand over what was changed at run time: {error}"));
                // It serves whether it hears this or not.
                let _ = match farewell {
                    Ok(farewell) if version == Version::Two => self.send(DRAINING, &farewell),
                    _ => self.connection.send(DRAINING).map(drop),
                };
                Ok(())
            }
            _ => Err(io::Error::other("an unexpected message")),
        }
    }
}

/// What a hand-over gives away.
pub(super) trait Estate {
    /// Why process `pid`, which has its claim, gets nothing now; it may ask again. `None`: it gets everything.
    fn refusal(&self, pid: i32) -> Option<String>;

    /// Descriptors of the listening sockets, by address, for process `pid`.
    ///
    /// # Errors
    /// There is no descriptor left.
    fn sockets(&self, pid: i32) -> io::Result<Vec<(String, OwnedFd)>>;

    /// What is known at this moment.
    fn state(&self) -> HandedOver;

    /// Process `pid` serves. It is told to take over the names of this one, and what this returns.
    fn given(&self, pid: i32) -> Farewell;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// Sockets only.
    One,
    /// Sockets and state.
    Two,
}

/// Why nothing was handed over.
#[derive(Debug)]
pub(super) enum HandOverError {
    /// The new process left before it served.
    Failed(io::Error),
    /// Nobody asked for the sockets in earnest.
    NotAsked(io::Error),
}

#[cfg(test)]
mod tests;
