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

/// An octet of an IPv4 address as text, with a dot.
#[derive(Clone, Copy)]
struct Octet {
    /// What is behind the dot is dots as well.
    text: [u8; 4],
    /// The dot included.
    length: u8,
}

const OCTETS: [Octet; 256] = {
    let mut octets = [Octet { text: [b'.'; 4], length: 0 }; 256];
    let mut octet = 0;
    while octet < octets.len() {
        let [ones, tens, hundreds] = [octet % 10, octet / 10 % 10, octet / 100];
        let [ones, tens, hundreds] = [b'0' + ones as u8, b'0' + tens as u8, b'0' + hundreds as u8];
        octets[octet] = match octet {
            0..10 => Octet { text: [ones, b'.', b'.', b'.'], length: 2 },
            10..100 => Octet { text: [tens, ones, b'.', b'.'], length: 3 },
            _ => Octet { text: [hundreds, tens, ones, b'.'], length: 4 },
        };
        octet += 1;
    }
    octets
};

/// Writes an address; IPv4 by hand, which is a tenth of the work of formatting.
pub fn write_address(address: IpAddr, out: &mut impl BufMut) {
    match address {
        IpAddr::V4(address) => {
            let mut text = [0; 16];
            let mut length = 0;
            for octet in address.octets() {
                let octet = &OCTETS[usize::from(octet)];
                // What is behind the dot is written over.
                text[length..length + 4].copy_from_slice(&octet.text);
                length += usize::from(octet.length);
            }
            out.put_slice(&text[..length - 1]);
        }
        IpAddr::V6(address) => out.put_slice(address.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_shown() {
        let each = (0..=u8::MAX).map(|octet| IpAddr::from([octet, octet.wrapping_add(91), 7, octet.wrapping_mul(3)]));
        for address in each.chain(["255.255.255.255", "0.0.0.0", "2001:db8::1"].map(|text| text.parse().expect("one")))
        {
            let mut text = Vec::new();
            write_address(address, &mut text);
            assert_eq!(String::from_utf8_lossy(&text), address.to_string());
        }
    }
}
