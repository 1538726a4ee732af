//! Where a listener accepts and where a backend is reached.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use bytes::BufMut;

/// What a listener binds: `0.0.0.0:80`, `[::]:443`, `unix:/run/rrlb/http.sock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenAddress {
    /// A TCP address.
    Inet(SocketAddr),
    /// A unix socket's path, absolute.
    Unix(PathBuf),
}

/// Where a backend is reached: `10.0.0.11:3000`, `app.internal:80`, `unix:/run/app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendAddress {
    /// A host name and port, resolved in the background and again every so often.
    Host(HostPort),
    /// A TCP address.
    Inet(SocketAddr),
    /// A unix socket's path, absolute.
    Unix(PathBuf),
}

/// A host name and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The name, lower case, without a trailing dot.
    pub host: String,
    /// 1–65535.
    pub port: u16,
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(HostPort { host, port }) => write!(f, "{host}:{port}"),
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Writes an address; IPv4 by hand, which is a tenth of the work of formatting.
pub fn write_address(address: IpAddr, out: &mut impl BufMut) {
    match address {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    out.put_u8(b'.');
                }
                if octet >= 100 {
                    out.put_u8(b'0' + octet / 100);
                }
                if octet >= 10 {
                    out.put_u8(b'0' + octet / 10 % 10);
                }
                out.put_u8(b'0' + octet % 10);
            }
        }
        IpAddr::V6(address) => out.put_slice(address.to_string().as_bytes()),
    }
}
