//! Who began neither HTTP/1 nor HTTP/2, and may have meant the latter.

/// To one who began neither HTTP/1 nor HTTP/2 where both are spoken: SETTINGS and GOAWAY with PROTOCOL_ERROR.
pub(in crate::listener) const NO_PREFACE: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";

/// Whether what was refused has not even the shape of an HTTP/1 request, so that a failed HTTP/2 preface is likelier:
/// a first line of three words, the second no path and the third no version.
pub(in crate::listener) fn is_no_http1(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(target), Some(version), None) => {
            !target.contains(&b'/') && target != b"*" && !version.is_empty() && !version.starts_with(b"HTTP/")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_no_http1;

    #[test]
    fn only_what_has_no_shape_of_http1_counts_as_a_failed_preface() {
        assert!(is_no_http1(b"INVALID CONNECTION PREFACE\r\n\r\n"));
        for line in ["GET / HTTP/9.9\r\n", "GET /\r\n", "GET / HTTQ/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nXX", "garbage", ""]
        {
            assert!(!is_no_http1(line.as_bytes()), "{line:?}");
        }
    }
}
