//! Where a request ends in the byte stream of its connection (RFC 9112 §6, §7.1). Reads stop there, so that the bytes
//! of a pipelined next request are never seen by the one before.

/// What is left of a request after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Border {
    /// In a chunked body.
    Chunked(Chunk),
    /// So many bytes are left; 0 is the end.
    Counted(u64),
    /// In a chunked body that is not well-formed: nobody can say where it ends.
    Malformed,
    /// No end: the connection was given up to something else (an upgrade, HTTP/2).
    Unbounded,
}

/// A place in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the data, so many bytes left.
    Data(u64),
    /// Before the CR after the data.
    DataCr,
    /// Before the LF after the data.
    DataLf,
    /// In a chunk's extension.
    Extension(u64),
    /// After the last chunk, at the beginning of a trailer line.
    LineStart,
    /// In a chunk's size, after so many digits.
    Size(u64, u8),
    /// Before the LF that ends a chunk's size line.
    SizeLf(u64),
    /// In a trailer line.
    Trailer,
    /// Before the LF that ends a trailer line.
    TrailerLf,
    /// After the last chunk, before the LF of the closing empty line.
    EndLf,
}

impl Border {
    /// Before the body of a chunked request.
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size(0, 0));
    /// No body.
    pub(super) const END: Self = Self::Counted(0);

    /// Whether the request has been read wholly.
    pub(super) fn reached(self) -> bool {
        self == Self::END
    }

    /// The most that may be read at once without reading past what is known to belong to the request.
    pub(super) fn room(self) -> usize {
        match self {
            Self::Counted(left) => usize::try_from(left).unwrap_or(usize::MAX),
            Self::Chunked(_) | Self::Malformed | Self::Unbounded => usize::MAX,
        }
    }

    /// Moves over `bytes` and says how many of them belong to the request; none of a malformed one's rest.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Malformed => 0,
            Self::Unbounded => bytes.len(),
            Self::Counted(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                taken
            }
            Self::Chunked(_) => self.advance_chunked(bytes),
        }
    }

    fn advance_chunked(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let Self::Chunked(place) = self else { return at };
            if let Chunk::Data(left) = place {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= taken as u64;
                at += taken;
                if *left == 0 {
                    *place = Chunk::DataCr;
                }
                continue;
            }
            *self = place.step(bytes[at]);
            if *self == Self::Malformed {
                return at;
            }
            at += 1;
        }
        at
    }
}

impl Chunk {
    /// What is left after one byte. Stricter than RFC 9112 §7.1 has to be (no bare LF, no white space after a size):
    /// what two parsers could read in two ways is nobody's request.
    fn step(self, byte: u8) -> Border {
        /// 16 hexadecimal digits are all that fits.
        const MOST_DIGITS: u8 = 16;
        Border::Chunked(match (self, byte) {
            (Self::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < MOST_DIGITS => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Self::Size((size << 4) | u64::from(digit), digits + 1)
            }
            (Self::Size(size, 1..), b'\r') => Self::SizeLf(size),
            (Self::Size(size, 1..), b';') => Self::Extension(size),
            (Self::Extension(size), b'\r') => Self::SizeLf(size),
            (Self::Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Self::Extension(size),
            (Self::SizeLf(0), b'\n') => Self::LineStart,
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(0, 0),
            (Self::LineStart, b'\r') => Self::EndLf,
            (Self::EndLf, b'\n') => return Border::END,
            (Self::Trailer, b'\r') => Self::TrailerLf,
            (Self::TrailerLf, b'\n') => Self::LineStart,
            (Self::LineStart | Self::Trailer, b'\t' | b' '..=b'~' | 0x80..) => Self::Trailer,
            _ => return Border::Malformed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &[u8] = b"GET / HTTP/1.1\r\n";

    fn ends_at(body: &[u8], border: Border) {
        let stream = [body, NEXT].concat();
        for split in 0..=stream.len() {
            let mut border = border;
            let first = border.advance(&stream[..split]);
            let second = if first == split { border.advance(&stream[split..]) } else { 0 };
            assert_eq!(first + second, body.len(), "split at {split} of {:?}", String::from_utf8_lossy(body));
            assert!(border.reached());
        }
    }

    #[test]
    fn a_body_ends_where_it_ends_however_it_is_split() {
        ends_at(b"", Border::END);
        ends_at(b"hello", Border::Counted(5));
        ends_at(b"0\r\n\r\n", Border::CHUNKED);
        ends_at(b"5\r\nhello\r\n0\r\n\r\n", Border::CHUNKED);
        ends_at(b"5;a=\"b\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", Border::CHUNKED);
        ends_at(b"3\r\n\r\n0\r\n0\r\nExpires: never\r\nX: y\r\n\r\n", Border::CHUNKED);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        for body in [
            "zz\r\n",
            "\r\n\r\n",
            "5\nhello\r\n",
            "5;a\nhello\r\n",
            "5 \r\nhello\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\r\nhelloXX",
            "5\r\nhello\n0\r\n",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "11111111111111111\r\n",
        ] {
            let mut border = Border::CHUNKED;
            border.advance(body.as_bytes());
            assert_eq!(border, Border::Malformed, "{body:?}");
        }
    }

    #[test]
    fn no_end_takes_everything() {
        let mut border = Border::Unbounded;
        assert_eq!(border.advance(NEXT), NEXT.len());
        assert!(!border.reached());
    }
}
