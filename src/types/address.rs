//! Where a listener accepts and where a backend is reached.

use std::{
    fmt,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

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

/// The longest has six groups and an IPv4 address.
const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();

/// The text of an address, on the stack; of IPv4 made by hand, which is a tenth of the work of formatting.
#[derive(Clone, Copy, Debug)]
pub struct AddressText {
    text: [u8; LONGEST],
    length: u8,
    is_ipv6: bool,
}

impl AddressText {
    /// As it is shown; one of IPv4 that is written as one of IPv6 (`::ffff:a.b.c.d`) as one of IPv4.
    pub fn new(address: IpAddr) -> Self {
        let mut text = [0; LONGEST];
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let mut length = 0;
                for octet in address.octets() {
                    let octet = &OCTETS[usize::from(octet)];
                    // What is behind the dot is written over.
                    text[length..length + 4].copy_from_slice(&octet.text);
                    length += usize::from(octet.length);
                }
                Self { text, length: length as u8 - 1, is_ipv6: false }
            }
            IpAddr::V6(address) => {
                let mut rest = &mut text[..];
                // It has room for all of them.
                _ = write!(rest, "{address}");
                let left = rest.len();
                Self { text, length: (LONGEST - left) as u8, is_ipv6: true }
            }
        }
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    /// Whether it needs brackets where a port may follow.
    pub fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_shown() {
        let each = (0..=u8::MAX).map(|octet| IpAddr::from([octet, octet.wrapping_add(91), 7, octet.wrapping_mul(3)]));
        let others = [
            "255.255.255.255",
            "0.0.0.0",
            "2001:db8::1",
            "::255.255.255.255",
            "1111:2222:3333:4444:5555:6666:7777:8888",
        ];
        for address in each.chain(others.map(|text| text.parse().expect("an address"))) {
            assert_eq!(String::from_utf8_lossy(AddressText::new(address).as_bytes()), address.to_string());
        }
        let mapped = AddressText::new("::ffff:192.0.2.1".parse().expect("an address"));
        assert_eq!((mapped.as_bytes(), mapped.is_ipv6()), (&b"192.0.2.1"[..], false));
    }
}
