//! The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): reads the header that a load balancer sends before
//! anything else, and writes our own. Who may send one is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

#[cfg(test)]
mod tests;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// What a header said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it was written.
    pub version: Version,
    /// Who is at the other end.
    pub source: Source,
    /// What the client agreed on with the first who spoke TLS to it.
    pub agreed: Agreed,
}

/// What is known of a client's TLS session. Version 1 has no words for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol that was agreed on (PP2_TYPE_ALPN), 1 to [`LONGEST_ALPN`] bytes.
    pub alpn: Option<Box<[u8]>>,
    /// The name the client asked for (PP2_TYPE_AUTHORITY), at most [`LONGEST_AUTHORITY`] bytes.
    pub authority: Option<Box<str>>,
}

/// Who is at the other end of the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client at an address.
    Inet {
        /// The client's.
        from: SocketAddr,
        /// Where the client connected to.
        to: SocketAddr,
    },
    /// The load balancer itself, such as its health check: the connection's own addresses hold.
    Local,
    /// A client of a unix socket.
    Unix,
    /// A client that the load balancer says nothing about: the connection's own addresses hold.
    Unknown,
}

/// What the beginning of a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// No header of either version.
    Absent,
    /// A header of so many bytes.
    Complete(Header, usize),
    /// More bytes are needed to know.
    Incomplete,
    /// A header that is not well-formed; the connection is to be closed.
    Malformed,
}

/// A version 1 header with its CRLF.
pub const LONGEST_V1: usize = 107;
/// A version 2 header with everything in it. The format has room for 64 KiB; what is in use, a client certificate
/// included, is far less.
pub const LONGEST_V2: usize = 16 * 1024;
/// A name of ALPN (RFC 7301 §3.1).
pub const LONGEST_ALPN: usize = 255;
/// A host name.
pub const LONGEST_AUTHORITY: usize = 255;

const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Start, version and command, family, length.
const V2_FIXED: usize = 16;
const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;

/// Reads the beginning of a connection. Never asks for more than [`LONGEST_V2`] bytes.
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if begins(V2_START) {
        return if bytes.len() < V2_FIXED { short_v2(bytes) } else { parse_v2(bytes) };
    }
    match begins(V1_START) {
        true if bytes.len() < V1_START.len() => Parsed::Incomplete,
        true => parse_v1(bytes),
        false => Parsed::Absent,
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if line.len() < LONGEST_V1 { Parsed::Incomplete } else { Parsed::Malformed };
    };
    match line[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if line.len() < LONGEST_V1 => return Parsed::Incomplete,
        _ => return Parsed::Malformed,
    }
    match std::str::from_utf8(&line[V1_START.len()..end]).ok().and_then(source_v1) {
        Some(source) => Parsed::Complete(Header { version: Version::V1, source, agreed: Agreed::default() }, end + 2),
        // What follows UNKNOWN need not be text.
        None if is_unknown(&line[V1_START.len()..end]) => {
            let header = Header { version: Version::V1, source: Source::Unknown, agreed: Agreed::default() };
            Parsed::Complete(header, end + 2)
        }
        None => Parsed::Malformed,
    }
}

fn is_unknown(rest: &[u8]) -> bool {
    rest.strip_prefix(b"UNKNOWN").is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b' '))
}

/// `TCP4 FROM TO PORT PORT`, one blank between each two.
fn source_v1(rest: &str) -> Option<Source> {
    let mut words = rest.split(' ');
    let family = words.next()?;
    let mut address = || {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let (from, to) = (address()?, address()?);
    let (from_port, to_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| Source::Inet { from: (from, from_port).into(), to: (to, to_port).into() })
}

/// Digits without leading zeros.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

/// What is wrong in the fixed part is said as soon as it is here.
fn short_v2(bytes: &[u8]) -> Parsed {
    let command = bytes.get(12).is_none_or(|byte| matches!(byte, 0x20 | 0x21));
    let family = bytes.get(13).is_none_or(|byte| byte >> 4 <= 3 && byte & 15 <= 2);
    if command && family { Parsed::Incomplete } else { Parsed::Malformed }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let (command, family) = (bytes[12], bytes[13]);
    let total = V2_FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if short_v2(&bytes[..V2_FIXED]) == Parsed::Malformed || total > LONGEST_V2 {
        return Parsed::Malformed;
    }
    let Some(header) = bytes.get(..total) else { return Parsed::Incomplete };
    let read = if command == 0x20 {
        // Everything behind it is to be passed over.
        Some((Source::Local, Agreed::default()))
    } else {
        proxied_v2(header, family)
    };
    read.map_or(Parsed::Malformed, |(source, agreed)| {
        Parsed::Complete(Header { version: Version::V2, source, agreed }, total)
    })
}

/// The addresses count whether the client came over TCP or over UDP (QUIC).
fn proxied_v2(header: &[u8], family: u8) -> Option<(Source, Agreed)> {
    let rest = &header[V2_FIXED..];
    let (source, taken) = match (family >> 4, family & 15) {
        (1, 1 | 2) => {
            let addresses: &[u8; 12] = rest.first_chunk()?;
            let ip = |at: usize| Ipv4Addr::new(addresses[at], addresses[at + 1], addresses[at + 2], addresses[at + 3]);
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            (Source::Inet { from: (ip(0), port(8)).into(), to: (ip(4), port(10)).into() }, 12)
        }
        (2, 1 | 2) => {
            let addresses: &[u8; 36] = rest.first_chunk()?;
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&addresses[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            (Source::Inet { from: (ip(0), port(32)).into(), to: (ip(16), port(34)).into() }, 36)
        }
        (3, 1 | 2) => {
            rest.get(..216)?;
            (Source::Unix, 216)
        }
        // Nothing is said of what follows, so it need not make sense; a checksum that does must be right.
        _ => {
            return match extensions(header, 0) {
                Ok(found) => Some((Source::Unknown, found)),
                Err(bad) if bad.checksum => None,
                Err(_) => Some((Source::Unknown, Agreed::default())),
            };
        }
    };
    extensions(header, taken).ok().map(|agreed| (source, agreed))
}

/// Extensions that are not well-formed, or whose checksum is wrong.
struct Bad {
    checksum: bool,
}

/// Reads type, length and value of each extension after `addresses` bytes of addresses. Those that are not known, and
/// NOOP, are passed over.
fn extensions(header: &[u8], addresses: usize) -> Result<Agreed, Bad> {
    const MALFORMED: Bad = Bad { checksum: false };
    let mut found = Agreed::default();
    let mut at = V2_FIXED + addresses;
    while at < header.len() {
        let [kind, high, low] = *header.get(at..at + 3).and_then(|head| head.first_chunk::<3>()).ok_or(MALFORMED)?;
        let from = at + 3;
        at = from + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(from..at).ok_or(MALFORMED)?;
        match kind {
            ALPN if value.is_empty() || value.len() > LONGEST_ALPN => return Err(MALFORMED),
            ALPN => found.alpn = Some(value.into()),
            AUTHORITY => {
                let name = std::str::from_utf8(value).ok().filter(|name| name.len() <= LONGEST_AUTHORITY);
                found.authority = Some(name.ok_or(MALFORMED)?.into());
            }
            CRC32C => {
                let told: [u8; 4] = value.try_into().map_err(|_| MALFORMED)?;
                // Counted with zeros in its own place.
                let crc = crc32c(crc32c(crc32c(!0, &header[..from]), &[0; 4]), &header[at..]);
                if u32::from_be_bytes(told) != !crc {
                    return Err(Bad { checksum: true });
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Castagnoli's CRC (RFC 3720 §B.4), without the inversions at its ends. A table of our own: sixteen lines, where the
/// `crc32c` crate would bring a build script and assembly for a few dozen bytes per connection.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let (mut crc, mut bit) = (at as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[at] = crc;
            at += 1;
        }
        table
    };
    bytes.iter().fold(crc, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// What a header of ours says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The connection is for a client at an address.
    Client {
        /// The client's.
        from: SocketAddr,
        /// Where the client connected to.
        to: SocketAddr,
    },
    /// The connection is our own, such as a health check.
    Local,
    /// The connection is for a client without an address.
    Unknown,
}

/// Writes a header. Version 1 has no word for a connection of our own but UNKNOWN. What the client `agreed` on goes where
/// version 2 has an address of it; what is longer than a header may hold is left out.
pub fn write(version: Version, said: Said, agreed: &Agreed) -> Vec<u8> {
    let said = match said {
        Said::Client { from, to } => one_family(from, to),
        other => other,
    };
    match version {
        Version::V1 => match said {
            Said::Client { from, to } => {
                let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
                format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
            }
            Said::Local | Said::Unknown => b"PROXY UNKNOWN\r\n".to_vec(),
        },
        Version::V2 => write_v2(said, agreed),
    }
}

fn write_v2(said: Said, agreed: &Agreed) -> Vec<u8> {
    let mut out = Vec::with_capacity(V2_FIXED + 36);
    out.extend_from_slice(V2_START);
    match said {
        Said::Client { from, to } => {
            let alpn = agreed.alpn.as_deref().filter(|alpn| (1..=LONGEST_ALPN).contains(&alpn.len()));
            let authority = agreed.authority.as_deref().filter(|name| name.len() <= LONGEST_AUTHORITY);
            let extensions = [alpn.map(|alpn| (ALPN, alpn)), authority.map(|name| (AUTHORITY, name.as_bytes()))];
            let (family, addresses) = if from.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            // Both are short.
            let length = |value: &[u8]| (value.len() as u16).to_be_bytes();
            let more: u16 = extensions.iter().flatten().map(|(_, value)| 3 + value.len() as u16).sum();
            out.extend_from_slice(&[0x21, family]);
            out.extend_from_slice(&(addresses + more).to_be_bytes());
            for ip in [from.ip(), to.ip()] {
                match ip {
                    IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                }
            }
            out.extend_from_slice(&from.port().to_be_bytes());
            out.extend_from_slice(&to.port().to_be_bytes());
            for (kind, value) in extensions.into_iter().flatten() {
                out.push(kind);
                out.extend_from_slice(&length(value));
                out.extend_from_slice(value);
            }
        }
        Said::Local => out.extend_from_slice(&[0x20, 0, 0, 0]),
        Said::Unknown => out.extend_from_slice(&[0x21, 0, 0, 0]),
    }
    out
}

/// Both as IPv4 where both are, or are mapped; else both as IPv6.
fn one_family(from: SocketAddr, to: SocketAddr) -> Said {
    let (short_from, short_to) = (from.ip().to_canonical(), to.ip().to_canonical());
    let long = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        IpAddr::V6(_) => ip,
    };
    let (from_ip, to_ip) = match (short_from, short_to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (short_from, short_to),
        _ => (long(short_from), long(short_to)),
    };
    Said::Client { from: (from_ip, from.port()).into(), to: (to_ip, to.port()).into() }
}
