//! Headers good and bad, at every split, and what is written read again.

use proptest::prelude::*;

use super::*;

fn v1(source: Source) -> Header {
    Header { version: Version::V1, source, agreed: Agreed::default() }
}

fn inet(from: &str, to: &str) -> Source {
    Source::Inet { from: from.parse().expect("an address"), to: to.parse().expect("an address") }
}

/// A version 2 header of these parts; the length is that of the rest.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short");
    [V2_START, &[command, family], &length.to_be_bytes(), rest].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("short");
    [&[kind][..], &length.to_be_bytes(), value].concat()
}

const TCP4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x1f, 0x90, 1, 0xbb];

fn source(bytes: &[u8]) -> Option<Source> {
    match parse(bytes) {
        Parsed::Complete(header, _) => Some(header.source),
        _ => None,
    }
}

#[test]
fn a_line_of_version_1_names_the_client() {
    for (line, source) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\r\n", inet("192.0.2.1:8080", "198.51.100.2:443")),
        ("PROXY TCP6 2001:db8::1 ::1 65535 0\r\n", inet("[2001:db8::1]:65535", "[::1]:0")),
        ("PROXY UNKNOWN\r\n", Source::Unknown),
        ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", Source::Unknown),
        ("PROXY UNKNOWN \r\n", Source::Unknown),
    ] {
        let longer = format!("{line}GET / HTTP/1.1\r\n");
        assert_eq!(parse(longer.as_bytes()), Parsed::Complete(v1(source), line.len()), "{line:?}");
        for split in 0..line.len() {
            assert_eq!(parse(&line.as_bytes()[..split]), Parsed::Incomplete, "{line:?} at {split}");
        }
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 16));
    assert_eq!(longest.len(), LONGEST_V1);
    assert_eq!(source(longest.as_bytes()), Some(Source::Unknown));
    assert_eq!(source(b"PROXY UNKNOWN \xff\xfe\r\n"), Some(Source::Unknown));
}

#[test]
fn a_line_that_is_not_quite_version_1_is_malformed() {
    for line in [
        "PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 8080 443\rX",
        "PROXY TCP4 192.0.2.1 198.51.100.2 8080 443 \r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY  TCP4 192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY TCP4\t192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 8080\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.2 8080 443\r\n",
        "PROXY TCP4 192.0.2 198.51.100.2 8080 443\r\n",
        "PROXY TCP4 ::1 ::1 8080 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY TCP6 fe80::1%1 ::1 8080 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 08080 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +8080 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 8080 443\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Parsed::Malformed, "{line:?}");
    }
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 15));
    assert_eq!(parse(long.as_bytes()), Parsed::Malformed);
    assert_eq!(parse(&long.as_bytes()[..LONGEST_V1]), Parsed::Malformed);
}

#[test]
fn what_is_no_header_is_told_at_its_first_other_byte() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n", b"PROXY_", b"\x16\x03\x01", b"\r\n\r\nG", b"P "] {
        assert_eq!(parse(bytes), Parsed::Absent, "{bytes:?}");
    }
    assert_eq!(parse(b""), Parsed::Incomplete);
}

#[test]
fn version_2_names_the_client_of_each_family() {
    let mut tcp6 = [0_u8; 36];
    (tcp6[0], tcp6[15], tcp6[31], tcp6[33], tcp6[35]) = (0x20, 1, 2, 80, 81);
    let unix = [0_u8; 216];
    for (command, family, rest, source) in [
        (0x21, 0x11, &TCP4[..], inet("192.0.2.1:8080", "198.51.100.2:443")),
        (0x21, 0x12, &TCP4[..], inet("192.0.2.1:8080", "198.51.100.2:443")),
        (0x21, 0x21, &tcp6[..], inet("[2000::1]:80", "[::2]:81")),
        (0x21, 0x31, &unix[..], Source::Unix),
        (0x21, 0x00, &[][..], Source::Unknown),
        (0x21, 0x00, &[9, 9, 9][..], Source::Unknown),
        (0x20, 0x00, &[][..], Source::Local),
        (0x20, 0x11, &[1, 2, 3][..], Source::Local),
    ] {
        let header = v2(command, family, rest);
        let longer = [&header[..], b"\x16\x03"].concat();
        let told = Header { version: Version::V2, source, agreed: Agreed::default() };
        assert_eq!(parse(&longer), Parsed::Complete(told, header.len()), "{header:?}");
        for split in 0..header.len() {
            assert_eq!(parse(&header[..split]), Parsed::Incomplete, "{header:?} at {split}");
        }
    }
}

#[test]
fn version_2_that_is_not_well_formed_is_refused() {
    for (command, family, rest) in [
        (0x11, 0x11, &TCP4[..]),
        (0x22, 0x11, &TCP4[..]),
        (0x31, 0x11, &TCP4[..]),
        (0x21, 0x41, &TCP4[..]),
        (0x21, 0x13, &TCP4[..]),
        (0x21, 0x11, &TCP4[..11]),
        (0x21, 0x21, &TCP4[..]),
        (0x21, 0x31, &TCP4[..]),
    ] {
        assert_eq!(parse(&v2(command, family, rest)), Parsed::Malformed, "{command:x} {family:x}");
    }
    for extension in [vec![4], vec![4, 0], vec![4, 0, 1], tlv(CRC32C, &[0; 3]), tlv(ALPN, b""), tlv(AUTHORITY, b"\xff")]
    {
        let rest = [&TCP4[..], &extension].concat();
        assert_eq!(parse(&v2(0x21, 0x11, &rest)), Parsed::Malformed, "{extension:?}");
    }
    let mut long = v2(0x21, 0x11, &TCP4);
    (long[14], long[15]) = (0xff, 0xff);
    assert_eq!(parse(&long), Parsed::Malformed);
}

#[test]
fn extensions_that_matter_are_read_and_others_passed_over() {
    let rest = [&TCP4[..], &tlv(0xea, b"x"), &tlv(4, &[0; 9]), &tlv(ALPN, b"h2"), &tlv(AUTHORITY, b"a.test")].concat();
    let Parsed::Complete(header, _) = parse(&v2(0x21, 0x11, &rest)) else { panic!("a header") };
    assert_eq!(header.agreed.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(header.agreed.authority.as_deref(), Some("a.test"));
}

/// The check value of CRC-32C, by RFC 3720 §B.4 for 32 zeros.
#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
}

#[test]
fn a_wrong_checksum_is_refused() {
    let at = V2_FIXED + TCP4.len() + 3;
    for family in [0x11, 0x00] {
        let addresses = if family == 0 { &[][..] } else { &TCP4[..] };
        let at = if family == 0 { V2_FIXED + 3 } else { at };
        let mut header = v2(0x21, family, &[addresses, &tlv(CRC32C, &[0; 4]), &tlv(4, b"pad")].concat());
        let crc = !crc32c(!0, &header);
        header[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(parse(&header), Parsed::Complete(..)));
        for bit in [at * 8, (header.len() - 1) * 8] {
            let mut wrong = header.clone();
            wrong[bit / 8] ^= 1;
            assert_eq!(parse(&wrong), Parsed::Malformed, "family {family:x}, bit {bit}");
        }
    }
}

#[test]
fn what_is_written_says_what_it_should() {
    let client = |from: &str, to: &str| Said::Client {
        from: from.parse().expect("an address"),
        to: to.parse().expect("an address"),
    };
    for (said, line) in [
        (client("192.0.2.1:1", "198.51.100.2:443"), "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n"),
        (client("[::ffff:192.0.2.1]:1", "198.51.100.2:443"), "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n"),
        (client("192.0.2.1:1", "[2001:db8::1]:443"), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 443\r\n"),
        (Said::Local, "PROXY UNKNOWN\r\n"),
        (Said::Unknown, "PROXY UNKNOWN\r\n"),
    ] {
        assert_eq!(String::from_utf8_lossy(&write(Version::V1, said, &Agreed::default())), line);
    }
    assert_eq!(source(&write(Version::V2, Said::Local, &Agreed::default())), Some(Source::Local));
    assert_eq!(source(&write(Version::V2, Said::Unknown, &Agreed::default())), Some(Source::Unknown));
}

#[test]
fn what_a_client_agreed_on_is_told_in_version_2_and_read_again() {
    let (from, to) = ("192.0.2.1:258".parse().expect("an address"), "198.51.100.2:443".parse().expect("an address"));
    let agreed = Agreed { alpn: Some(b"h2"[..].into()), authority: Some("a.test".into()) };
    let written = write(Version::V2, Said::Client { from, to }, &agreed);
    let extensions = b"\x01\x00\x02h2\x02\x00\x06a.test";
    let addresses = [192, 0, 2, 1, 198, 51, 100, 2, 1, 2, 1, 187];
    assert_eq!(written, [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x1a"[..], &addresses, extensions].concat());
    let Parsed::Complete(header, length) = parse(&written) else { panic!("{written:?}") };
    assert_eq!((header.agreed, length), (agreed.clone(), written.len()));
    assert_eq!(
        write(Version::V1, Said::Client { from, to }, &agreed),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 258 443\r\n"
    );
    for said in [Said::Local, Said::Unknown] {
        assert_eq!(write(Version::V2, said, &agreed), write(Version::V2, said, &Agreed::default()));
    }
    let long = Agreed { alpn: Some([7; 256].into()), authority: Some("x".repeat(256).into()) };
    let none = Agreed { alpn: Some([].into()), authority: None };
    for agreed in [long, none] {
        let plain = write(Version::V2, Said::Client { from, to }, &Agreed::default());
        assert_eq!(write(Version::V2, Said::Client { from, to }, &agreed), plain);
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(from: SocketAddr, to: SocketAddr) {
        for version in [Version::V1, Version::V2] {
            let written = write(version, Said::Client { from, to }, &Agreed::default());
            let Parsed::Complete(header, length) = parse(&written) else { panic!("{written:?}") };
            prop_assert_eq!(length, written.len());
            let Source::Inet { from: read, .. } = header.source else { panic!("{header:?}") };
            prop_assert_eq!((read.ip().to_canonical(), read.port()), (from.ip().to_canonical(), from.port()));
        }
    }

    #[test]
    fn no_bytes_whatever_break_it(start in 0..3_usize, rest in proptest::collection::vec(any::<u8>(), 0..400)) {
        let start = [&b""[..], V1_START, V2_START][start];
        let bytes = [start, &rest].concat();
        let whole = parse(&bytes);
        if let Parsed::Complete(_, length) = &whole {
            prop_assert!(*length <= bytes.len());
            // The same at every split, and decided by nothing behind the header.
            prop_assert_eq!(parse(&bytes[..*length]), whole.clone());
            for split in 0..*length {
                prop_assert_eq!(parse(&bytes[..split]), Parsed::Incomplete);
            }
        }
    }
}
