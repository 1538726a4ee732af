//! Loopback addresses nobody else uses: one 127.x.y.z per test process (from its pid), ports from a counter.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

static NEXT_PORT: AtomicU16 = AtomicU16::new(10_000);

/// An IPv4 loopback address that no other test has.
pub fn unused() -> SocketAddr {
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    assert!((10_000..32_000).contains(&port), "out of test ports");
    SocketAddr::new(ours(), port)
}

/// An IPv6 loopback address that was free a moment ago: there is only one `::1`, so this one is not certain.
pub fn unused_v6() -> SocketAddr {
    let probe = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("no IPv6 loopback");
    probe.local_addr().expect("bound socket has an address")
}

/// Whether this machine has an IPv6 loopback at all.
pub fn has_v6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Pids end below 2^22, so 127.64.0.0 to 127.127.255.255 has one address for each.
fn ours() -> IpAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 + (high & 63), middle, low))
}
