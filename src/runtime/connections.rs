//! Which sockets lead to which backend, so that the idle ones can be closed when it is gone. Pingora's pool closes only by
//! time; but it drops a pooled connection whose socket is shut down. Costs something when a connection is made, nothing
//! per request. When a backend is gone enough for that, or has nothing to do any more, is decided here too.

use std::{
    collections::{HashMap, HashSet},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pingora_core::protocols::l4::socket::SocketAddr;

use super::{
    backend::{BackendState, Target},
    snapshot::Snapshot,
    tls::TlsClients,
};

/// The sockets to all backends. A record may outlive its socket: it says by inode which socket it means.
#[derive(Debug, Default)]
pub struct Connections {
    records: Mutex<Records>,
    tls: TlsClients,
}

#[derive(Debug, Default)]
struct Records {
    list: Vec<Record>,
    /// Places in `list`.
    by_fd: HashMap<RawFd, usize>,
    /// Where the list is looked through for records whose socket is gone.
    hand: usize,
}

#[derive(Debug)]
struct Record {
    fd: RawFd,
    inode: u64,
    target: SocketAddr,
}

impl Connections {
    /// Keeps that this socket was connected to `target`. Looks at two other records as well and drops those that are out of
    /// date, so that there are never many more of them than sockets.
    pub fn record(&self, socket: &impl AsRawFd, target: &SocketAddr) {
        let fd = socket.as_raw_fd();
        let Some(inode) = inode(fd) else { return };
        let mut records = self.lock();
        let record = Record { fd, inode, target: target.clone() };
        match records.by_fd.get(&fd).copied() {
            Some(place) => records.list[place] = record,
            None => {
                let place = records.list.len();
                records.list.push(record);
                records.by_fd.insert(fd, place);
            }
        }
        records.tidy();
        records.tidy();
    }

    /// What speaks TLS on those of our own.
    pub fn tls(&self) -> &TlsClients {
        &self.tls
    }

    /// Shuts down every socket to these, and returns how many there were. None of them may have a request in flight.
    pub fn close(&self, targets: &HashSet<&SocketAddr>) -> usize {
        let mut records = self.lock();
        let mut closed = 0;
        let mut place = 0;
        while let Some(record) = records.list.get(place) {
            if targets.contains(&record.target) {
                closed += usize::from(shut_down(record.fd, record.inode));
                records.remove(place);
            } else {
                place += 1;
            }
        }
        closed
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn tidy(&mut self) {
        self.hand = if self.hand + 1 < self.list.len() { self.hand + 1 } else { 0 };
        if self.list.get(self.hand).is_some_and(|record| inode(record.fd) != Some(record.inode)) {
            self.remove(self.hand);
        }
    }

    fn remove(&mut self, place: usize) {
        let record = self.list.swap_remove(place);
        self.by_fd.remove(&record.fd);
        if let Some(moved) = self.list.get(place) {
            self.by_fd.insert(moved.fd, place);
        }
    }
}

/// Backends that are gone from the configuration, or from an address, or get no new requests any more (drain, maintenance, a
/// weight of 0), and whose connections are not closed yet.
#[derive(Debug, Default)]
pub struct Retired {
    /// Since the last look; a worker may just be choosing one of them.
    new: Vec<Gone>,
    waiting: Vec<Gone>,
}

type Gone = (Arc<BackendState>, Arc<Target>);

impl Retired {
    /// Notes the backends of `before` that are not in `after`, or elsewhere, or not wanted there.
    pub fn note(&mut self, before: &Snapshot, after: &Snapshot) {
        let names: HashMap<_, _> = after.members().iter().map(|member| (&member.upstream.name, member)).collect();
        for member in before.members() {
            let now = names.get(&member.upstream.name);
            if now.is_some_and(|now| Arc::ptr_eq(now, member)) {
                continue;
            }
            let backends = now.map_or(&[][..], |now| now.upstream.backends());
            // Shared by both builds, where nothing about it is other.
            let others = |(index, backend): &(usize, &Arc<BackendState>)| {
                !backends.get(*index).is_some_and(|now| Arc::ptr_eq(now, backend))
            };
            let before: Vec<_> = member.upstream.backends().iter().enumerate().filter(others).collect();
            if before.is_empty() {
                continue;
            }
            let stay: HashMap<_, _> = backends.iter().map(|backend| (&backend.id, backend)).collect();
            for (_, backend) in before {
                let now = stay.get(&backend.id);
                let now = now.filter(|now| now.same_backend(backend) && now.address == backend.address);
                let retired = match now {
                    None => backend,
                    Some(now) if backend.is_wanted() && !now.is_wanted() => now,
                    Some(_) => continue,
                };
                if let Some(target) = backend.target() {
                    self.new.push((retired.clone(), target));
                }
            }
        }
    }

    /// Closes the connections to those that have no request in flight, from the second look on (between two, every worker
    /// comes to have the new snapshot), unless a backend of `snapshot` that has requests, or may get some, has the address
    /// too: connections are shared where settings are equal. Returns how many connections were closed.
    pub fn close_idle(&mut self, snapshot: &Snapshot) -> usize {
        let (idle, busy): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_idle);
        self.waiting = busy;
        let mut targets: HashSet<&SocketAddr> = idle.iter().map(|(_, target)| &***target).collect();
        if !targets.is_empty() {
            // The last one that is busy closes them then.
            for (_, target) in self.waiting.iter().chain(&self.new) {
                targets.remove(&***target);
            }
            let members = snapshot.members().iter().flat_map(|member| member.upstream.backends());
            let busy = members.filter(|backend| backend.is_wanted() || backend.in_flight() > 0);
            for target in busy.filter_map(|backend| backend.target()) {
                targets.remove(&**target);
            }
        }
        self.waiting.append(&mut self.new);
        if targets.is_empty() { 0 } else { snapshot.connections().close(&targets) }
    }
}

/// No request is in flight at the backend, or none that could have begun at this address: nobody else holds any build
/// with it.
fn is_idle((backend, _): &Gone) -> bool {
    backend.in_flight() == 0 || Arc::strong_count(backend) == 1 && backend.is_only_build()
}

/// The inode of what is open under this number.
fn inode(fd: RawFd) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for the answer, and is read only where the system has written it. The number may be closed.
    let stat = unsafe { (libc::fstat(fd, stat.as_mut_ptr()) == 0).then(|| stat.assume_init()) };
    stat.map(|stat| stat.st_ino)
}

/// Shuts the socket down, where it is still the one that was recorded. It is asked on a copy of the descriptor, which holds
/// it whatever the owner does meanwhile.
fn shut_down(fd: RawFd, recorded: u64) -> bool {
    // SAFETY: the number may be closed, or another's by now; all this does is to open a copy, which is ours.
    let copy = unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        (copy >= 0).then(|| OwnedFd::from_raw_fd(copy))
    };
    let Some(copy) = copy else { return false };
    inode(copy.as_raw_fd()) == Some(recorded) && socket2::SockRef::from(&copy).shutdown(Shutdown::Both).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ours = TcpStream::connect(address).expect("connects");
        let theirs = listener.accept().expect("accepts").0;
        (ours, theirs, SocketAddr::Inet(address))
    }

    fn is_closed(stream: &mut TcpStream, wait: Duration) -> bool {
        stream.set_read_timeout(Some(wait)).expect("a timeout");
        matches!(stream.read(&mut [0]), Ok(0))
    }

    #[test]
    fn only_sockets_to_the_target_are_shut_down() {
        let connections = Connections::default();
        let (one, mut one_far, first) = pair();
        let (two, mut two_far, second) = pair();
        connections.record(&one, &first);
        connections.record(&two, &second);
        assert_eq!(connections.close(&HashSet::from([&first])), 1);
        assert!(is_closed(&mut one_far, Duration::from_secs(5)));
        assert!(!is_closed(&mut two_far, Duration::from_millis(20)));
        assert_eq!(connections.close(&HashSet::from([&first])), 0);
        assert_eq!(connections.close(&HashSet::from([&second])), 1);
        assert!(is_closed(&mut two_far, Duration::from_secs(5)));
    }

    #[test]
    fn a_number_that_is_anothers_by_now_is_left_alone() {
        let connections = Connections::default();
        let (gone, _gone_far, target) = pair();
        connections.record(&gone, &target);
        let (other, mut other_far, _) = pair();
        let number = gone.as_raw_fd();
        // SAFETY: both are sockets of this test; `gone` becomes another name of `other`.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert_eq!(connections.close(&HashSet::from([&target])), 0);
        assert!(!is_closed(&mut other_far, Duration::from_millis(20)));
        drop(gone);
    }

    #[test]
    fn records_do_not_pile_up() {
        let connections = Connections::default();
        let mut held = Vec::new();
        for _ in 0..40 {
            let (ours, far, target) = pair();
            connections.record(&ours, &target);
            held.push((ours, far));
        }
        assert_eq!(connections.lock().list.len(), 40);
        held.clear();
        for _ in 0..40 {
            let (ours, _far, target) = pair();
            connections.record(&ours, &target);
        }
        let records = connections.lock();
        assert!(records.list.len() <= 2, "{}", records.list.len());
        assert_eq!(records.list.len(), records.by_fd.len());
    }
}
