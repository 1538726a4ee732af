//! Both versions of the hand-over, against peers that speak one of them by hand.

use std::{os::fd::AsFd, sync::Mutex, thread};

use super::*;
use crate::{listener::tickets::TicketKeys, runtime::snapshot::Snapshot, telemetry::metrics::Metrics};

/// One listener, no upstreams, and what was told.
struct House {
    listener: std::net::TcpListener,
    tickets: TicketKeys,
    given: Mutex<Option<i32>>,
    refuses: bool,
}

impl House {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        Self { listener, tickets: TicketKeys::new().expect("randomness"), given: Mutex::new(None), refuses: false }
    }

    fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }
}

impl Estate for House {
    fn refusal(&self, _: i32) -> Option<String> {
        self.refuses.then(|| "not now".to_owned())
    }

    fn sockets(&self, _: i32) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(vec![(self.address(), self.listener.as_fd().try_clone_to_owned()?)])
    }

    fn state(&self) -> HandedOver {
        let yaml =
            "version: 1\nlisteners: [{ address: 127.0.0.1:1 }]\nupstreams: { app: { backends: [10.0.0.1:1] } }\n";
        let loaded = crate::config::parse(yaml, Path::new("test.yaml")).unwrap_or_else(|report| panic!("{report:?}"));
        let backends = |upstream: &crate::config::model::Upstream| upstream.backends.clone();
        let snapshot = Snapshot::build(&loaded.model, backends, None, &Metrics::new("0", 1));
        HandedOver::collect(&snapshot, &self.tickets, std::time::Duration::ZERO)
    }

    fn given(&self, pid: i32) -> Farewell {
        *self.given.lock().expect("no panic") = Some(pid);
        Farewell::new("{\"format\":\"rrlb-state\",\"version\":1,\"upstreams\":{}}".to_owned(), true)
    }
}

/// Runs one hand-over of `house` to who comes.
fn serve(house: &House, socket: &UpgradeSocket, claimed: &AtomicBool) -> Result<(), HandOverError> {
    let hand_over = loop {
        match socket.accept() {
            Ok(hand_over) => break hand_over,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    hand_over.run(house, claimed)
}

fn connect(path: &Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(&SockAddr::unix(path).expect("a path")).expect("connect");
    socket
}

fn listen(folder: &tempfile::TempDir) -> (PathBuf, UpgradeSocket) {
    let path = folder.path().join("upgrade.sock");
    let socket = UpgradeSocket::listen(&path).expect("a socket");
    (path, socket)
}

#[test]
fn a_successor_gets_sockets_and_state() {
    let (folder, house, claimed) = (tempfile::tempdir().expect("folder"), House::new(), AtomicBool::new(false));
    let (path, socket) = listen(&folder);
    thread::scope(|scope| {
        let old = scope.spawn(|| serve(&house, &socket, &claimed));
        let mut taken = Inherited::take(&path).expect("taken over");
        assert!(taken.remove(&house.address()).is_some());
        let keys = HandedOver::tickets(taken.state()).expect("keys").export();
        assert_eq!(keys[0].secret, house.tickets.export()[0].secret, "the keys are the same");
        assert_eq!(*house.given.lock().expect("no panic"), None);
        let farewell = taken.into_successor().serving().expect("it drains").expect("it knows something");
        assert!(farewell.reload && farewell.overrides(0).is_some_and(|overrides| overrides.is_empty()));
        old.join().expect("no panic").expect("handed over");
    });
    assert_eq!(*house.given.lock().expect("no panic"), i32::try_from(std::process::id()).ok());
}

#[test]
fn who_asks_by_version_1_is_served_as_before() {
    let (folder, house, claimed) = (tempfile::tempdir().expect("folder"), House::new(), AtomicBool::new(false));
    let (path, socket) = listen(&folder);
    thread::scope(|scope| {
        let old = scope.spawn(|| serve(&house, &socket, &claimed));
        let new = connect(&path);
        new.send(b"rrlb-upgrade 1").expect("sent");
        let (address, fd) = receive(&new).expect("the listener");
        assert_eq!((address, fd.is_some()), (house.address(), true));
        let (end, fd) = receive(&new).expect("the end");
        assert_eq!((end.as_str(), fd.is_none()), ("", true));
        new.send(b"serving").expect("sent");
        assert_eq!(receive(&new).expect("the answer").0, "draining");
        old.join().expect("no panic").expect("handed over");
    });
}

#[test]
fn a_process_of_version_1_is_taken_over_from() {
    let (folder, house) = (tempfile::tempdir().expect("folder"), House::new());
    let path = folder.path().join("upgrade.sock");
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.bind(&SockAddr::unix(&path).expect("a path")).expect("bind");
    socket.listen(8).expect("listen");
    thread::scope(|scope| {
        let old = scope.spawn(|| {
            loop {
                let hand_over = HandOver { connection: socket.accept().expect("a connection").0, pid: 0 };
                if receive(&hand_over.connection).expect("a hello").0.as_bytes() != b"rrlb-upgrade 1" {
                    continue;
                }
                return hand_over.give(Version::One, &house);
            }
        });
        let mut taken = Inherited::take(&path).expect("taken over");
        assert!(taken.remove(&house.address()).is_some() && taken.state().is_none());
        assert!(taken.into_successor().serving().expect("it drains").is_none());
        old.join().expect("no panic").expect("handed over");
    });
}

#[test]
fn a_state_that_is_none_does_not_hold_up_the_upgrade() {
    let (folder, house) = (tempfile::tempdir().expect("folder"), House::new());
    let path = folder.path().join("upgrade.sock");
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    socket.bind(&SockAddr::unix(&path).expect("a path")).expect("bind");
    socket.listen(8).expect("listen");
    for garbage in [None, Some("not json"), Some("{\"version\":9}")] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let old = HandOver { connection: socket.accept().expect("a connection").0, pid: 0 };
                receive(&old.connection).expect("a hello");
                let listener = house.listener.as_fd().try_clone_to_owned().expect("a descriptor");
                old.send(house.address().as_bytes(), &listener).expect("sent");
                old.connection.send(b"\n").expect("sent");
                match garbage {
                    None => drop(old.connection.send(STATE).expect("sent")),
                    Some(text) => {
                        let file = folder.path().join("state");
                        fs::write(&file, text).expect("written");
                        old.send(STATE, &fs::File::open(&file).expect("a file").into()).expect("sent");
                    }
                }
            });
            let mut taken = Inherited::take(&path).expect("taken over");
            assert!(taken.remove(&house.address()).is_some() && taken.state().is_none(), "{garbage:?}");
        });
    }
}

#[test]
fn one_that_leaves_before_it_serves_makes_room_for_the_next() {
    let (folder, house, claimed) = (tempfile::tempdir().expect("folder"), House::new(), AtomicBool::new(false));
    let (path, socket) = listen(&folder);
    for _ in 0..2 {
        thread::scope(|scope| {
            let old = scope.spawn(|| serve(&house, &socket, &claimed));
            drop(Inherited::take(&path).expect("taken over"));
            assert!(matches!(old.join().expect("no panic"), Err(HandOverError::Failed(_))));
        });
        assert!(!claimed.load(Ordering::Acquire));
        assert_eq!(*house.given.lock().expect("no panic"), None);
    }
}

#[test]
fn who_is_refused_is_told_so_and_its_claim_is_gone() {
    let (folder, house, claimed) = (tempfile::tempdir().expect("folder"), House::new(), AtomicBool::new(false));
    let (path, socket) = listen(&folder);
    let house = House { refuses: true, ..house };
    thread::scope(|scope| {
        let old = scope.spawn(|| serve(&house, &socket, &claimed));
        assert!(matches!(Inherited::take(&path), Err(StartError::HandOverBusy)));
        assert!(matches!(old.join().expect("no panic"), Err(HandOverError::NotAsked(_))));
    });
    assert!(!claimed.load(Ordering::Acquire));
}
