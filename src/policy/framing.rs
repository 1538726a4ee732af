//! Where a request ends in the byte stream of its connection (RFC 9112 §6, §7.1). Reads stop there, so that the bytes
//! of a pipelined next request are never seen by the one before.

/// What is left of a request after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// In a chunked body; by how many bytes its extensions are more than its data so far.
    Chunked(Chunk, u16),
    /// So many bytes are left; 0 is the end.
    Counted(u64),
    /// In a chunked body that is not well-formed: nobody can say where it ends.
    Malformed,
    /// No end: the connection was given up to something else (an upgrade, HTTP/2).
    Unbounded,
}

/// A length of digits only (RFC 9110 §8.6); `None` for nothing, signs, blanks inside, lists, or more than any parser takes.
pub fn length(value: &[u8]) -> Option<u64> {
    number(value.trim_ascii())
}

/// The number that digits alone stand for; `None` for none of them, and for more than any parser takes.
pub fn number(digits: &[u8]) -> Option<u64> {
    let digit = |digit: u8| digit.is_ascii_digit().then(|| u64::from(digit - b'0'));
    let add = |number: u64, next: &u8| number.checked_mul(10)?.checked_add(digit(*next)?);
    let number = digits.iter().try_fold(0, add).filter(|_| !digits.is_empty())?;
    i64::try_from(number).is_ok().then_some(number)
}

/// A length without leading zeros, by which some read it as octal.
pub fn decimal(length: &[u8]) -> &[u8] {
    let zeros = length.iter().take_while(|byte| **byte == b'0').count();
    &length[zeros.min(length.len().saturating_sub(1))..]
}

/// Whether there is white space before or after a field's value, which HTTP/2 has no place for.
pub fn is_padded(value: &[u8]) -> bool {
    matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
}

/// What bytes of a request are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Those that belong to it.
    pub all: usize,
    /// Of these, the data of its body: all but sizes, extensions, line ends and trailers.
    pub data: usize,
    /// The size of the largest chunk that began in them.
    pub largest: u64,
}

/// A place in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the data, so many bytes left.
    Data(u64),
    /// Before the CR after the data.
    DataCr,
    /// Before the LF after the data.
    DataLf,
    /// After the last chunk, before the LF of the closing empty line.
    EndLf,
    /// In a chunk's extensions, after so many bytes of them.
    Extension(u64, u16, Extension),
    /// After the last chunk, at the beginning of a trailer line.
    LineStart(Trailers),
    /// In a chunk's size, after so many digits.
    Size(u64, u8),
    /// Before the LF that ends a chunk's size line.
    SizeLf(u64),
    /// Before the LF that ends a trailer line.
    TrailerLf(Trailers),
    /// In a trailer's name; the fold of what there is of it, see `fold`.
    TrailerName(Trailers, u64),
    /// In a trailer's value.
    TrailerValue(Trailers),
}

/// A place in a chunk's extensions (RFC 9112 §7.1.1): `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, of which
/// the first white space is not taken (see `Chunk::step`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// In a quoted string, behind a backslash.
    Escaped,
    /// In a name.
    Name,
    /// Before a name, which has to come.
    NameStart,
    /// In white space behind a name, before `=` or the next extension.
    Named,
    /// In a quoted string.
    Quoted,
    /// Behind a quoted string.
    QuotedEnd,
    /// In a value that is a token.
    Value,
    /// In white space behind a value, before the next extension.
    Valued,
    /// Before a value, which has to come.
    ValueStart,
}

/// What there was of trailers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailers {
    bytes: u16,
    lines: u8,
}

/// Bytes of one chunk's extensions. Nobody uses them but to waste our time (CVE-2023-39326).
const MOST_EXTENSION: u16 = 256;
/// Bytes by which the extensions of a body may be more than its data. Enough for every signature of a chunk, and little for
/// somebody who sends nothing else.
const MOST_EXCESS: u16 = 16 * 1024;
const MOST_TRAILER_BYTES: u16 = 32 * 1024;
const MOST_TRAILERS: u8 = 100;
/// Fields that say how the message is framed or where it goes, which it is too late for (RFC 9110 §6.5.1).
const NOT_IN_TRAILERS: [u64; 9] = [
    fold(b"connection"),
    fold(b"content-encoding"),
    fold(b"content-length"),
    fold(b"expect"),
    fold(b"host"),
    fold(b"te"),
    fold(b"trailer"),
    fold(b"transfer-encoding"),
    fold(b"upgrade"),
];

/// Whether trailers with these fields are well-formed enough to be believed in: not too many, and none of framing or routing.
pub fn may_trail<'f>(fields: impl Iterator<Item = (&'f [u8], &'f [u8])>) -> bool {
    /// Of a line, beside name and value.
    const OVERHEAD: usize = 4;
    let (mut lines, mut bytes) = (0, 0);
    for (name, value) in fields {
        (lines, bytes) = (lines + 1, bytes + name.len() + value.len() + OVERHEAD);
        if NOT_IN_TRAILERS.contains(&fold(name)) {
            return false;
        }
    }
    lines <= usize::from(MOST_TRAILERS) && bytes <= usize::from(MOST_TRAILER_BYTES)
}

impl Border {
    /// Before the body of a chunked request.
    pub const CHUNKED: Self = Self::Chunked(Chunk::Size(0, 0), 0);
    /// No body.
    pub const END: Self = Self::Counted(0);

    /// Whether the request has been read wholly.
    pub fn reached(self) -> bool {
        self == Self::END
    }

    /// The most that may be read at once without reading past what is known to belong to the request.
    pub fn room(self) -> usize {
        match self {
            Self::Counted(left) => usize::try_from(left).unwrap_or(usize::MAX),
            Self::Chunked(..) | Self::Malformed | Self::Unbounded => usize::MAX,
        }
    }

    /// Moves over `bytes` and says how many of them belong to the request; none of a malformed one's rest.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        self.take(bytes).all
    }

    /// As [`Border::advance`], and says how many of them are data.
    pub fn take(&mut self, bytes: &[u8]) -> Taken {
        let data = |length| Taken { all: length, data: length, largest: 0 };
        match self {
            Self::Malformed => Taken::default(),
            Self::Unbounded => data(bytes.len()),
            Self::Counted(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                data(taken)
            }
            Self::Chunked(..) => self.take_chunked(bytes),
        }
    }

    /// Whether what comes next is of the trailer section, its closing empty line included.
    pub fn in_trailers(self) -> bool {
        use Chunk::{EndLf, LineStart, TrailerLf, TrailerName, TrailerValue};
        let trailing =
            |place: Chunk| matches!(place, EndLf | LineStart(_) | TrailerLf(_) | TrailerName(..) | TrailerValue(_));
        matches!(self, Self::Chunked(place, _) if trailing(place))
    }

    /// As [`Border::take`], up to where data, framing and trailers meet: how many bytes, and whether they are data.
    pub fn part(&mut self, bytes: &[u8]) -> (usize, bool) {
        let Self::Chunked(place, _) = self else { return (self.advance(bytes), true) };
        if let Chunk::Data(left) = place {
            let data = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            return (self.advance(bytes.get(..data).unwrap_or_default()), true);
        }
        let framing = |border: &Self| matches!(border, Self::Chunked(place, _) if !matches!(place, Chunk::Data(_)));
        let (mut at, trailing) = (0, self.in_trailers());
        while let Some(byte) = bytes.get(at..=at).filter(|_| framing(self) && self.in_trailers() == trailing) {
            at += self.advance(byte);
        }
        (at, false)
    }

    fn take_chunked(&mut self, bytes: &[u8]) -> Taken {
        let mut taken = Taken::default();
        while taken.all < bytes.len() {
            let Self::Chunked(place, excess) = self else { return taken };
            if let Chunk::Data(left) = place {
                let data = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - taken.all);
                *left -= data as u64;
                taken.all += data;
                taken.data += data;
                if *left == 0 {
                    *place = Chunk::DataCr;
                }
                continue;
            }
            *self = place.step(bytes[taken.all], *excess);
            if *self == Self::Malformed {
                return taken;
            }
            taken.all += 1;
            if let Self::Chunked(Chunk::Data(size), _) = self {
                taken.largest = taken.largest.max(*size);
            }
        }
        taken
    }
}

impl Chunk {
    /// What is left after one byte. Stricter than RFC 9112 §7.1 has to be (no bare LF, no white space after a size):
    /// what two parsers could read in two ways is nobody's request.
    fn step(self, byte: u8, mut excess: u16) -> Border {
        /// 16 hexadecimal digits are all that fits.
        const MOST_DIGITS: u8 = 16;
        /// With one more digit it would be more than 2^63 - 1, which many take for less than nothing.
        const TOO_LARGE: u64 = 1 << 59;
        let place = match (self, byte) {
            (Self::Size(size, digits), _) if byte.is_ascii_hexdigit() && digits < MOST_DIGITS && size < TOO_LARGE => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Self::Size((size << 4) | u64::from(digit), digits + 1)
            }
            (Self::Size(size, 1..), b'\r') => Self::SizeLf(size),
            (Self::Size(size, 1..), b';') => Self::Extension(size, 0, Extension::NameStart),
            (Self::Extension(size, _, place), b'\r') if place.may_end() => Self::SizeLf(size),
            (Self::Extension(size, length, place), _) if length < MOST_EXTENSION && excess < MOST_EXCESS => {
                excess += 1;
                let Some(place) = place.step(byte) else { return Border::Malformed };
                Self::Extension(size, length + 1, place)
            }
            (Self::SizeLf(0), b'\n') => Self::LineStart(Trailers::default()),
            (Self::SizeLf(size), b'\n') => {
                excess = excess.saturating_sub(u16::try_from(size).unwrap_or(u16::MAX));
                Self::Data(size)
            }
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(0, 0),
            (Self::LineStart(_), b'\r') => Self::EndLf,
            (Self::EndLf, b'\n') => return Border::END,
            (Self::LineStart(trailers), _) if is_token(byte) => match trailers.line() {
                Some(trailers) => Self::TrailerName(trailers, fold(&[byte])),
                None => return Border::Malformed,
            },
            (Self::TrailerName(trailers, name), _) if is_token(byte) => match trailers.byte() {
                Some(trailers) => Self::TrailerName(trailers, fold_on(name, byte)),
                None => return Border::Malformed,
            },
            (Self::TrailerName(trailers, name), b':') if !NOT_IN_TRAILERS.contains(&name) => {
                Self::TrailerValue(trailers)
            }
            (Self::TrailerValue(trailers), b'\r') => Self::TrailerLf(trailers),
            (Self::TrailerValue(trailers), _) if is_text(byte) => match trailers.byte() {
                Some(trailers) => Self::TrailerValue(trailers),
                None => return Border::Malformed,
            },
            (Self::TrailerLf(trailers), b'\n') => Self::LineStart(trailers),
            _ => return Border::Malformed,
        };
        Border::Chunked(place, excess)
    }
}

impl Extension {
    /// Where one more byte leads; `None` where it may not stand.
    fn step(self, byte: u8) -> Option<Self> {
        let place = match (self, byte) {
            (Self::NameStart | Self::ValueStart, b' ' | b'\t') => self,
            (Self::NameStart | Self::Name, _) if is_token(byte) => Self::Name,
            (Self::Name | Self::Named, b' ' | b'\t') => Self::Named,
            (Self::Name | Self::Named, b'=') => Self::ValueStart,
            (Self::ValueStart, b'"') => Self::Quoted,
            (Self::ValueStart | Self::Value, _) if is_token(byte) => Self::Value,
            (Self::Quoted, b'"') => Self::QuotedEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, _) if is_text(byte) => Self::Quoted,
            (Self::Value | Self::QuotedEnd | Self::Valued, b' ' | b'\t') => Self::Valued,
            (Self::Name | Self::Named | Self::Value | Self::QuotedEnd | Self::Valued, b';') => Self::NameStart,
            _ => return None,
        };
        Some(place)
    }

    /// Whether the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::QuotedEnd | Self::Value)
    }
}

impl Trailers {
    /// Another byte; `None` is one too many.
    fn byte(self) -> Option<Self> {
        (self.bytes < MOST_TRAILER_BYTES).then_some(Self { bytes: self.bytes + 1, ..self })
    }

    /// The first byte of another line.
    fn line(self) -> Option<Self> {
        if self.lines < MOST_TRAILERS { Self { lines: self.lines + 1, ..self }.byte() } else { None }
    }
}

/// What may stand in a field's value or a quoted string (RFC 9110 §5.5, §5.6.4): no CR, no LF, no NUL.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// `tchar` (RFC 9110 §5.6.2).
pub fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut token = [false; 256];
        let mut byte = 0;
        while byte < token.len() {
            token[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let mut others: &[u8] = b"!#$%&'*+-.^_`|~";
        while let [byte, rest @ ..] = others {
            token[*byte as usize] = true;
            others = rest;
        }
        token
    };
    TOKEN[usize::from(byte)]
}

/// A name in any case as one number (FNV-1a), so that no name has to be held across reads. A name that was made to
/// collide with one of those that are refused is refused as well, which harms nobody else.
const fn fold(name: &[u8]) -> u64 {
    let mut folded = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < name.len() {
        folded = fold_on(folded, name[at]);
        at += 1;
    }
    folded
}

const fn fold_on(folded: u64, byte: u8) -> u64 {
    (folded ^ byte.to_ascii_lowercase() as u64).wrapping_mul(0x0100_0000_01b3)
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
        ends_at(b"0000000000000005\r\nhello\r\n000\r\n\r\n", Border::CHUNKED);
        ends_at(b"5;a=\"b\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", Border::CHUNKED);
        ends_at(b"5;a=\"b;c\\\"\" ; d\r\nhello\r\n0;last\r\n\r\n", Border::CHUNKED);
        ends_at(b"5; a\t= b ;c=\"\xff\\\t\";d=\"\"\r\nhello\r\n0;a;b\r\n\r\n", Border::CHUNKED);
        ends_at(b"3\r\n\r\n0\r\n0\r\nExpires: never\r\nX: y\r\n\r\n", Border::CHUNKED);
        ends_at(b"0\r\nTransfer-Encoding2: x\r\nTe-: x\r\nEmpty:\r\n\r\n", Border::CHUNKED);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed_however_it_is_split() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(300));
        let large = format!("0\r\nX: {}\r\n\r\n", "x".repeat(MOST_TRAILER_BYTES.into()));
        let many = format!("0\r\n{}\r\n", "X: y\r\n".repeat(usize::from(MOST_TRAILERS) + 1));
        for body in [
            "zz\r\n",
            "\r\n\r\n",
            " 5\r\nhello\r\n",
            "\n5\r\nhello\r\n",
            ";a\r\n",
            "5\nhello\r\n",
            "5;a\nhello\r\n",
            "5;a\rb\r\nhello\r\n",
            "5;a\0\r\nhello\r\n",
            "5;\r\nhello\r\n",
            "5; \r\nhello\r\n",
            "5;;\r\nhello\r\n",
            "5;a;\r\nhello\r\n",
            "5;=x\r\nhello\r\n",
            "5;a=\r\nhello\r\n",
            "5;a=;b\r\nhello\r\n",
            "5;a \r\nhello\r\n",
            "5;a=b \r\nhello\r\n",
            "5;a b c\r\nhello\r\n",
            "5;a=b c\r\nhello\r\n",
            "5;a=b=c\r\nhello\r\n",
            "5;a=\"x\r\nhello\r\n",
            "5;a=\"x\"y\r\nhello\r\n",
            "5;a=\"x\\\r\nhello\r\n",
            "5;a\"x\"\r\nhello\r\n",
            "5;\u{e9}\r\nhello\r\n",
            "5;a=\u{e9}\r\nhello\r\n",
            "8000000000000000\r\n",
            "FFFFFFFFFFFFFFFF\r\n",
            "5 \r\nhello\r\n",
            "5 ;a\r\nhello\r\n",
            "5\t\r\nhello\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\n",
            "5_0\r\n",
            "5\r\nhelloXX",
            "5\r\nhello\n0\r\n",
            "5\r\nhello\r0\r\n",
            "5\r\nhell\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\n\rX",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\rz\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\nX: y\r\n folded\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\ntransfer-ENCODING: chunked\r\n\r\n",
            "0\r\nX: y\r\nHost: b\r\n\r\n",
            "11111111111111111\r\n",
            "00000000000000005\r\nhello\r\n",
            &long,
            &large,
            &many,
        ] {
            for split in 0..body.len().min(64) {
                let mut border = Border::CHUNKED;
                border.advance(&body.as_bytes()[..split]);
                border.advance(&body.as_bytes()[split..]);
                assert_eq!(border, Border::Malformed, "{body:?} split at {split}");
            }
        }
    }

    #[test]
    fn extensions_may_be_more_than_the_data_by_so_much_only() {
        let chunk = |extension: usize, size: usize| {
            format!("{size:x};{}\r\n{}\r\n", "x".repeat(extension), "y".repeat(size)).into_bytes()
        };
        for (extension, size, good) in [(100, 100, true), (250, 1, false), (2, 1, false), (1, 1, true)] {
            let chunk = chunk(extension, size);
            let mut border = Border::CHUNKED;
            for _ in 0..20_000 {
                border.take(&chunk);
            }
            assert_eq!(border != Border::Malformed, good, "{extension} bytes for {size}");
        }
        let mut border = Border::CHUNKED;
        assert_eq!(border.take(&chunk(3, 5)), Taken { all: 14, data: 5, largest: 5 });
        assert_eq!(border.take(b"0\r\nX: y\r\n\r\n"), Taken { all: 11, data: 0, largest: 0 });
        let mut border = Border::CHUNKED;
        assert_eq!(border.take(b"1\r\nx\r\nff\r"), Taken { all: 9, data: 1, largest: 1 });
        assert_eq!(border.take(b"\n"), Taken { all: 1, data: 0, largest: 255 });
    }

    #[test]
    fn trailers_are_a_part_of_their_own_however_they_are_split() {
        let body = b"5;a\r\nhello\r\n0\r\nX: y\r\nZ: 1\r\n\r\n";
        for split in 0..=body.len() {
            let (mut border, mut trailers) = (Border::CHUNKED, Vec::new());
            for mut part in [&body[..split], &body[split..]] {
                while !part.is_empty() && !border.reached() {
                    let trailing = border.in_trailers();
                    let (taken, _) = border.part(part);
                    if trailing {
                        trailers.extend_from_slice(&part[..taken]);
                    }
                    part = &part[taken..];
                }
            }
            assert!(border.reached());
            assert_eq!(trailers, b"X: y\r\nZ: 1\r\n\r\n", "split at {split}");
        }
    }

    #[test]
    fn no_end_takes_everything() {
        let mut border = Border::Unbounded;
        assert_eq!(border.advance(NEXT), NEXT.len());
        assert!(!border.reached());
    }
}
