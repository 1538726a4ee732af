//! Where a request ends in the byte stream of its connection (RFC 9112 §6, §7.1). Reads stop there, so that the bytes
//! of a pipelined next request are never seen by the one before.

/// What is left of a request after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Border {
    /// In a chunked body.
    Chunked(Chunk),
    /// So many bytes are left; 0 is the end.
    Counted(u64),
    /// No end: the connection was given up to something else (an upgrade, HTTP/2).
    Unbounded,
}

/// A place in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the data, so many bytes left.
    Data(u64),
    /// In the CR LF after the data.
    DataEnd,
    /// After the last chunk, at the beginning of a trailer line.
    LineStart,
    /// In a chunk's extension, up to the line's end.
    Extension(u64),
    /// In a chunk's size.
    Size(u64),
    /// In a trailer line, up to its end.
    Trailer,
    /// After the last chunk, in the CR of the closing empty line.
    TrailerEnd,
}

impl Border {
    /// Before the body of a chunked request.
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size(0));
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
            Self::Chunked(_) | Self::Unbounded => usize::MAX,
        }
    }

    /// Moves over `bytes` and says how many of them belong to the request.
    ///
    /// A body that is not well-formed is taken to its end as it comes: the parser behind refuses it, and the
    /// connection is not used again.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> usize {
        match self {
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
                    *place = Chunk::DataEnd;
                }
                continue;
            }
            match place.step(bytes[at]) {
                Some(next) => *place = next,
                None => *self = Self::END,
            }
            at += 1;
        }
        at
    }
}

impl Chunk {
    /// The place after one byte; `None` at the end of the body.
    fn step(self, byte: u8) -> Option<Self> {
        let after_size_line = |size| if size == 0 { Self::LineStart } else { Self::Data(size) };
        Some(match self {
            Self::Size(size) => match (byte as char).to_digit(16) {
                Some(digit) => Self::Size(size.saturating_mul(16).saturating_add(u64::from(digit))),
                None if byte == b'\n' => after_size_line(size),
                None => Self::Extension(size),
            },
            Self::Extension(size) if byte == b'\n' => after_size_line(size),
            Self::DataEnd if byte == b'\n' => Self::Size(0),
            Self::LineStart if byte == b'\r' => Self::TrailerEnd,
            Self::LineStart | Self::TrailerEnd if byte == b'\n' => return None,
            Self::LineStart | Self::TrailerEnd => Self::Trailer,
            Self::Trailer if byte == b'\n' => Self::LineStart,
            Self::Data(_) | Self::DataEnd | Self::Extension(_) | Self::Trailer => self,
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
    fn no_end_takes_everything() {
        let mut border = Border::Unbounded;
        assert_eq!(border.advance(NEXT), NEXT.len());
        assert!(!border.reached());
    }
}
