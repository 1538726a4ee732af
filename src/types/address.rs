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

/// Each octet of an IPv4 address as text, with a dot.
const OCTETS: [[u8; 4]; 256] = {
    let mut texts = [[b'.'; 4]; 256];
    let mut octet = 0;
    while octet < texts.len() {
        let [ones, tens, hundreds] = [octet % 10, octet / 10 % 10, octet / 100];
        let [ones, tens, hundreds] = [b'0' + ones as u8, b'0' + tens as u8, b'0' + hundreds as u8];
        texts[octet] = match octet {
            0..10 => [ones, b'.', b'.', b'.'],
            10..100 => [tens, ones, b'.', b'.'],
            _ => [hundreds, tens, ones, b'.'],
        };
        octet += 1;
    }
    texts
};

/// Writes an address; IPv4 by hand, which is a tenth of the work of formatting.
pub fn write_address(address: IpAddr, out: &mut impl BufMut) {
    match address {
        IpAddr::V4(address) => {
            let mut text = [0; 16];
            let mut length = 0;
            for octet in address.octets() {
                // What is behind the dot is written over.
                text[length..length + 4].copy_from_slice(&OCTETS[usize::from(octet)]);
                length += 2 + usize::from(octet >= 10) + usize::from(octet >= 100);
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
