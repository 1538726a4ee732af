//! Headers of the PROXY protocol: the same verdict however they come, nothing read behind them, and ours are understood.

use std::net::SocketAddr;

use super::super::proxy_protocol::{
    Header, LONGEST_ALPN, LONGEST_AUTHORITY, LONGEST_V1, LONGEST_V2, Parsed, Said, Source, Version, parse, write,
};

/// The verdict on the beginning of a connection does not depend on how it is cut.
///
/// # Panics
/// If that does not hold.
pub fn proxy_protocol(input: &[u8]) {
    let whole = parse(input);
    // Long inputs are cut near their ends and here and there.
    let step = input.len() / 512 + 1;
    for end in (0..input.len()).filter(|end| *end < 64 || end % step == 0) {
        match parse(&input[..end]) {
            Parsed::Incomplete => {}
            early => assert_eq!(early, whole, "after {end} bytes"),
        }
    }
    match &whole {
        Parsed::Incomplete => {
            let most = if input.starts_with(b"PROXY ") { LONGEST_V1 } else { LONGEST_V2 };
            assert!(input.len() < most, "asks for more after {} bytes", input.len());
        }
        Parsed::Complete(header, length) => complete(input, header, *length),
        Parsed::Absent | Parsed::Malformed => {}
    }
}

fn complete(input: &[u8], header: &Header, length: usize) {
    let most = if header.version == Version::V1 { LONGEST_V1 } else { LONGEST_V2 };
    assert!(length <= input.len().min(most));
    let own = &input[..length];
    assert_eq!(parse(own), Parsed::Complete(header.clone(), length), "something behind it was read");
    assert_eq!(parse(&own[..length - 1]), Parsed::Incomplete, "its last byte is not needed");
    let more = [own, b"\0\xff\r\nPROXY "].concat();
    assert_eq!(parse(&more), Parsed::Complete(header.clone(), length), "something behind it was read");
    assert!(header.agreed.alpn.as_ref().is_none_or(|alpn| (1..=LONGEST_ALPN).contains(&alpn.len())));
    assert!(header.agreed.authority.as_ref().is_none_or(|name| name.len() <= LONGEST_AUTHORITY));
    let said = match header.source {
        Source::Inet { from, to } => Said::Client { from, to },
        Source::Local => Said::Local,
        Source::Unix | Source::Unknown => Said::Unknown,
    };
    for version in [Version::V1, Version::V2] {
        let ours = write(version, said, &header.agreed);
        assert!(version == Version::V2 || ours.len() <= LONGEST_V1);
        let Parsed::Complete(read, length) = parse(&ours) else { panic!("ours is not understood: {ours:?}") };
        assert_eq!((read.version, length), (version, ours.len()));
        if version == Version::V2 && matches!(said, Said::Client { .. }) {
            assert_eq!(read.agreed, header.agreed);
        }
        match (said, read.source) {
            (Said::Client { from, to }, Source::Inet { from: read_from, to: read_to }) => {
                assert_eq!((plain(from), plain(to)), (plain(read_from), plain(read_to)));
            }
            (Said::Local, Source::Local | Source::Unknown) | (Said::Unknown, Source::Unknown) => {}
            (said, read) => panic!("{said:?} is read as {read:?}"),
        }
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
