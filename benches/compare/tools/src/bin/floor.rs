//! The floor: takes connections and relays their bytes to backends in turn, one backend connection each, and reads none
//! of them. What no proxy that moves bytes through user space can do for less.
//!
//! `floor THREADS LISTEN BACKEND...`; every thread has a listener and an epoll of its own.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

/// As large as the buffers of the proxies.
const BUFFER: usize = 64 << 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, listen, backends @ ..] = arguments.as_slice() else {
        eprintln!("usage: floor THREADS LISTEN BACKEND...");
        std::process::exit(2);
    };
    let parse = |text: &String| text.parse::<SocketAddr>().expect("an address, such as 127.0.0.1:9001");
    let (listen, backends) = (parse(listen), backends.iter().map(parse).collect::<Vec<_>>());
    let threads: usize = threads.parse().expect("THREADS is a number");
    let running: Vec<_> = (0..threads.max(1))
        .map(|_| {
            let backends = backends.clone();
            std::thread::spawn(move || Relay::new(listen, backends)?.run())
        })
        .collect();
    running.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
}

/// One end of a relayed connection.
struct End {
    stream: TcpStream,
    peer: RawFd,
    /// What could not be written to this end yet; while there is any, nothing is read from the peer.
    rest: Vec<u8>,
    /// The peer has sent everything; this end is shut down once the rest is written.
    finish: bool,
    finished: bool,
}

struct Relay {
    epoll: RawFd,
    listener: TcpListener,
    backends: Vec<SocketAddr>,
    turn: usize,
    ends: HashMap<RawFd, End>,
    buffer: Vec<u8>,
}

impl Relay {
    fn new(listen: SocketAddr, backends: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = reuseport(listen)?;
        listener.set_nonblocking(true)?;
        // SAFETY: no memory is passed.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let relay = Self { epoll, listener, backends, turn: 0, ends: HashMap::new(), buffer: vec![0; BUFFER] };
        relay.watch(libc::EPOLL_CTL_ADD, relay.listener.as_raw_fd(), libc::EPOLLIN);
        Ok(relay)
    }

    fn watch(&self, operation: libc::c_int, fd: RawFd, events: libc::c_int) {
        let mut event = libc::epoll_event { events: events as u32, u64: fd as u64 };
        // SAFETY: `event` lives through the call.
        unsafe { libc::epoll_ctl(self.epoll, operation, fd, &mut event) };
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
        loop {
            // SAFETY: the kernel writes at most 256 events.
            let count = unsafe { libc::epoll_wait(self.epoll, events.as_mut_ptr(), 256, -1) };
            for event in &events[..count.max(0) as usize] {
                let (fd, ready) = (event.u64 as RawFd, event.events as libc::c_int);
                if fd == self.listener.as_raw_fd() {
                    self.accept();
                } else if ready & libc::EPOLLOUT != 0 && !self.flush(fd)
                    || ready & !libc::EPOLLOUT != 0 && !self.relay(fd)
                {
                    self.close(fd);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((client, _)) = self.listener.accept() {
            let backend = self.backends[self.turn % self.backends.len()];
            self.turn += 1;
            let Ok(server) = TcpStream::connect(backend) else { continue };
            let (one, other) = (client.as_raw_fd(), server.as_raw_fd());
            for (stream, peer) in [(client, other), (server, one)] {
                let _ = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
                self.watch(libc::EPOLL_CTL_ADD, stream.as_raw_fd(), libc::EPOLLIN);
                let end = End { stream, peer, rest: Vec::new(), finish: false, finished: false };
                self.ends.insert(end.stream.as_raw_fd(), end);
            }
        }
    }

    /// Reads once and writes to the peer. False where the connection has ended.
    fn relay(&mut self, fd: RawFd) -> bool {
        let Some(end) = self.ends.get(&fd) else { return true };
        let Some(peer) = self.ends.get(&end.peer) else { return false };
        if !peer.rest.is_empty() || peer.finish {
            // The writer's end has gone while its bytes wait, or it has hung up on both sides.
            return !peer.rest.is_empty();
        }
        let other = end.peer;
        let count = match io::Read::read(&mut &end.stream, &mut self.buffer) {
            Ok(count) => count,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if count == 0 {
            self.watch(libc::EPOLL_CTL_MOD, fd, 0);
            return self.finish(fd, other);
        }
        let written = match io::Write::write(&mut &peer.stream, &self.buffer[..count]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        if written < count {
            let rest = self.buffer[written..count].to_vec();
            if let Some(peer) = self.ends.get_mut(&other) {
                peer.rest = rest;
            }
            self.watch(libc::EPOLL_CTL_MOD, fd, 0);
            self.watch(libc::EPOLL_CTL_MOD, other, libc::EPOLLIN | libc::EPOLLOUT);
        }
        true
    }

    /// Writes what is left for this end, and lets its peer read again.
    fn flush(&mut self, fd: RawFd) -> bool {
        let Some(end) = self.ends.get_mut(&fd) else { return true };
        match io::Write::write(&mut &end.stream, &end.rest) {
            Ok(written) => end.rest.drain(..written),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if end.rest.is_empty() {
            let peer = end.peer;
            self.watch(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN);
            self.watch(libc::EPOLL_CTL_MOD, peer, libc::EPOLLIN);
        }
        true
    }

    /// `from` has ended: so does what is written to `to`. False where both have.
    fn finish(&mut self, from: RawFd, to: RawFd) -> bool {
        if let Some(end) = self.ends.get_mut(&to) {
            end.finish = true;
            end.finished = true;
            let _ = end.stream.shutdown(std::net::Shutdown::Write);
        }
        !self.ends.get(&from).is_some_and(|end| end.finished)
    }

    /// Drops both ends; the kernel forgets them in the epoll.
    fn close(&mut self, fd: RawFd) {
        if let Some(end) = self.ends.remove(&fd) {
            self.ends.remove(&end.peer);
        }
    }
}

/// A listener that others of this process may share the port with.
fn reuseport(address: SocketAddr) -> io::Result<TcpListener> {
    let SocketAddr::V4(address) = address else { return Err(io::Error::other("LISTEN is an IPv4 address")) };
    let (on, size) = (1_i32, std::mem::size_of::<i32>() as libc::socklen_t);
    // SAFETY: the descriptor is new and owned by the listener at once; `on` and `raw` live through the calls.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = TcpListener::from_raw_fd(fd);
        for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const on).cast(), size);
        }
        let mut raw: libc::sockaddr_in = std::mem::zeroed();
        raw.sin_family = libc::AF_INET as u16;
        raw.sin_port = address.port().to_be();
        raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
        let length = std::mem::size_of_val(&raw) as libc::socklen_t;
        if libc::bind(fd, (&raw const raw).cast(), length) != 0 || libc::listen(fd, 1024) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(listener)
    }
}
