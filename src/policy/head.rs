//! Heads written as nearly all of them are, read in one pass. Any other is not judged here: httparse reads it then, and says what it is.
//! What is read here httparse would have read alike, which the tests hold: so nothing is accepted here alone.

use super::{
    fields::{EACH, HIGHEST, Index, letters},
    framing::is_token,
};

/// As many fields as Pingora takes.
pub const MAX_FIELDS: usize = 256;

/// The first line of a request, such as `POST /a?b HTTP/1.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLine<'a> {
    /// A token.
    pub method: &'a [u8],
    /// A path, with or without a query, of [usual](is_usual) characters.
    pub target: &'a [u8],
}

/// The first line of an answer, such as `HTTP/1.1 200 OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// Three digits.
    pub status: u16,
    /// Bytes of the line without its end.
    pub length: usize,
}

/// Reads a request's head at the beginning of `bytes`. Returns its first line and how long it is, and `index` says where its fields
/// are; `None` where it is not written as usual, or not whole.
pub fn request<'a>(bytes: &'a [u8], index: &mut Index) -> Option<(RequestLine<'a>, usize)> {
    const VERSION: &[u8] = b" HTTP/1.1\r\n";
    let method = bytes.iter().position(|byte| !is_token(*byte)).filter(|length| *length > 0)?;
    let rest = bytes.get(method..)?.strip_prefix(b" ").filter(|rest| rest.starts_with(b"/"))?;
    let target = rest.iter().position(|byte| !is_usual(*byte))?;
    if !rest.get(target..)?.starts_with(VERSION) {
        return None;
    }
    let line = RequestLine { method: bytes.get(..method)?, target: rest.get(..target)? };
    let length = fields(bytes, method + 1 + target + VERSION.len(), index)?;
    index.set_line(line.method.len(), line.target.len());
    Some((line, length))
}

/// The same of an answer's head.
pub fn answer(bytes: &[u8], index: &mut Index) -> Option<(StatusLine, usize)> {
    const PHRASE: usize = b"HTTP/1.1 200 ".len();
    let (digits, phrase) = bytes.strip_prefix(b"HTTP/1.1 ")?.split_first_chunk::<3>()?;
    if !digits.iter().all(u8::is_ascii_digit) || phrase.first() != Some(&b' ') {
        return None;
    }
    let status = digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    let length = PHRASE + text_end(bytes.get(PHRASE..)?);
    if !bytes.get(length..)?.starts_with(b"\r\n") {
        return None;
    }
    Some((StatusLine { status, length }, fields(bytes, length + 2, index)?))
}

/// Reads the fields that begin at `start`, and the empty line behind them. Returns where the head ends.
fn fields(bytes: &[u8], start: usize, index: &mut Index) -> Option<usize> {
    // What is behind cannot be told of, and no head is as long.
    let bytes = &bytes[..bytes.len().min(u32::MAX as usize)];
    let at = |rest: &[u8]| bytes.len() - rest.len();
    index.clear();
    let mut line = bytes.get(start..)?;
    loop {
        let (name, behind) = line.split_at_checked(name_end(line))?;
        if name.is_empty() {
            return behind.starts_with(b"\r\n").then(|| at(behind) + 2);
        }
        let (value, ours) = match behind {
            [b':', b' ', value @ ..] => (value, true),
            [b':', value @ ..] => (value, false),
            _ => return None,
        };
        let place = at(value);
        let (value, end) = value.split_at_checked(text_end(value))?;
        let next = end.strip_prefix(b"\r\n")?;
        // Blanks around it are none of it.
        if matches!(value, [b' ', ..] | [.., b' ']) || index.is_full() {
            return None;
        }
        index.push((at(line), name), (place, value.len()), if ours { at(next) - at(line) } else { 0 });
        line = next;
    }
}

/// Where the name ends that `text` begins with: before the first byte that is not of a token.
fn name_end(text: &[u8]) -> usize {
    // Letters and dashes, mostly.
    let (known, found) = first_of(text, |word| !(letters(word) | dashes(word)) & HIGHEST);
    match text.get(known..) {
        Some([b':', ..]) if found => known,
        rest => known + rest.map_or(0, |rest| rest.iter().take_while(|byte| is_token(**byte)).count()),
    }
}

/// Where the text ends that `text` begins with: before the first control character.
fn text_end(text: &[u8]) -> usize {
    let (known, found) = first_of(text, controls);
    if found {
        return known;
    }
    known + text.get(known..).map_or(0, |rest| rest.iter().take_while(|byte| !byte.is_ascii_control()).count())
}

/// Where the first byte is that is `marked` with its highest bit, as far as whole words can tell; and whether they could.
#[inline(always)]
fn first_of(text: &[u8], marked: impl Fn(u64) -> u64) -> (usize, bool) {
    let words = text.as_chunks().0;
    for (at, word) in words.iter().enumerate() {
        let marks = marked(u64::from_le_bytes(*word));
        if marks != 0 {
            return (8 * at + marks.trailing_zeros() as usize / 8, true);
        }
    }
    (8 * words.len(), false)
}

/// The highest bit of each byte that is a dash.
fn dashes(word: u64) -> u64 {
    let low = word & !HIGHEST;
    let (from, after) = (low + EACH * (0x80 - u64::from(b'-')), low + EACH * (0x7f - u64::from(b'-')));
    (from ^ after) & !word & HIGHEST
}

/// The highest bit of the first byte that is a control character, perhaps of others after it, and of none before it.
fn controls(word: u64) -> u64 {
    let low = word.wrapping_sub(EACH * u64::from(b' '));
    let other = (word ^ (EACH * 0x7f)).wrapping_sub(EACH);
    (low | other) & !word & HIGHEST
}

/// Whether a byte is one of those that targets are mostly made of, none of which ends one or may not stand in it.
pub fn is_usual(byte: u8) -> bool {
    const USUAL: [bool; 256] = {
        let mut usual = [false; 256];
        let mut byte = 0;
        while byte < usual.len() {
            usual[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let mut others: &[u8] = b"/-._~?=&%+,:;@!$'()*|";
        while let [byte, rest @ ..] = others {
            usual[*byte as usize] = true;
            others = rest;
        }
        usual
    };
    USUAL[usize::from(byte)]
}

/// As [`str::from_utf8`], which costs several times this for text as short as there is in heads, and nearly always ASCII.
#[inline]
pub fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{
        fields::{Fields as _, Raw},
        path::is_uri_path,
    };

    /// The fields that an index tells of.
    fn told(head: &[u8], index: &Index) -> Vec<(Vec<u8>, Vec<u8>)> {
        Raw::new(head, index).each().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    fn parsed(fields: &[httparse::Header<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
        fields.iter().map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec())).collect()
    }

    /// What is read here is what httparse reads; returns whether anything was.
    fn requests_agree(bytes: &[u8]) -> bool {
        let mut index = Index::default();
        let Some((line, length)) = request(bytes, &mut index) else { return false };
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut theirs = httparse::Request::new(&mut fields);
        assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(length)));
        assert_eq!((theirs.method, theirs.path, theirs.version), (text(line.method), text(line.target), Some(1)));
        assert_eq!(told(bytes, &index), parsed(theirs.headers));
        assert_eq!(index.line(bytes), Some((line.method, line.target)));
        assert!(!bytes[..length].windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a bare LF");
        assert!(http::Uri::try_from(line.target).is_ok());
        true
    }

    fn answers_agree(bytes: &[u8]) -> bool {
        let mut index = Index::default();
        let Some((line, length)) = answer(bytes, &mut index) else { return false };
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut theirs = httparse::Response::new(&mut fields);
        assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(length)));
        assert_eq!((theirs.code, theirs.version), (Some(line.status), Some(1)));
        assert_eq!(told(bytes, &index), parsed(theirs.headers));
        assert_eq!(&bytes[line.length..line.length + 2], b"\r\n");
        assert!(!bytes[..length].windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a bare LF");
        true
    }

    #[test]
    fn heads_as_usual_are_read() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /a/b?c=%2F HTTP/1.1\r\nHost:a\r\nEmpty:\r\nBlank: \r\nX: \u{e9} \"~\"\r\n\r\nbody",
            "X /;|* HTTP/1.1\r\n\r\n",
        ] {
            assert!(requests_agree(head.as_bytes()), "{head}");
            for cut in 0..head.find("\r\n\r\n").expect("an end") + 4 {
                assert!(!requests_agree(&head.as_bytes()[..cut]), "{head} cut at {cut}");
            }
        }
        for head in
            ["HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "HTTP/1.1 999 \r\nA: b, c\r\n\r\nbody", "HTTP/1.1 200 \u{e9}\r\n\r\n"]
        {
            assert!(answers_agree(head.as_bytes()), "{head}");
            for cut in 0..head.find("\r\n\r\n").expect("an end") + 4 {
                assert!(!answers_agree(&head.as_bytes()[..cut]), "{head} cut at {cut}");
            }
        }
        let many = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(requests_agree(many(MAX_FIELDS).as_bytes()));
        assert!(!requests_agree(many(MAX_FIELDS + 1).as_bytes()));
    }

    #[test]
    fn what_is_usual_may_stand_in_a_target() {
        for byte in (0..=u8::MAX).filter(|byte| is_usual(*byte)) {
            let letter = char::from(byte);
            assert!(letter.is_ascii_graphic() && is_uri_path(letter.encode_utf8(&mut [0; 4])), "{letter:?}");
        }
    }

    #[test]
    fn what_is_not_written_as_usual_is_left_to_others() {
        for head in [
            "\r\nGET / HTTP/1.1\r\n\r\n",
            " / HTTP/1.1\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET * HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "GET /# HTTP/1.1\r\n\r\n",
            "GET /{ HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\n\r\n",
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\n",
            "GET / HTTP/1.1\r\nA:  b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b \r\n\r\n",
            "GET / HTTP/1.1\r\nA:\tb\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
            "GET / HTTP/1.1\r\nA: 12345678\x7f\r\n\r\n",
        ] {
            assert!(!requests_agree(head.as_bytes()), "{head:?}");
        }
        for head in [
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.1 200\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\n\r\n",
            "HTTP/1.1 200 O\0\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(!answers_agree(head.as_bytes()), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn ends_are_found_where_they_are(mut text in proptest::collection::vec(any::<u8>(), 0..40), word in "[a-zA-Z-]{0,20}") {
            text.splice(..0, word.bytes());
            let (value, name) = (text_end(&text), name_end(&text));
            prop_assert_eq!(value, text.iter().position(|byte| byte.is_ascii_control()).unwrap_or(text.len()));
            prop_assert_eq!(name, text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len()));
        }

        #[test]
        fn what_is_read_httparse_reads_alike(
            fields in proptest::collection::vec(("[!-~]{0,9}", "[ -~\t]{0,20}"), 0..6),
            changes in proptest::collection::vec((0usize..200, any::<u8>()), 0..3),
            target in "/[!-~]{0,9}",
        ) {
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            for first in [format!("GET {target} HTTP/1.1"), format!("HTTP/1.1 200 {target}")] {
                let mut head = format!("{first}\r\n{lines}\r\nbody").into_bytes();
                for (at, byte) in &changes {
                    if let Some(place) = head.get_mut(*at) {
                        *place = *byte;
                    }
                }
                requests_agree(&head);
                answers_agree(&head);
            }
        }
    }
}
