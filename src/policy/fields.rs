//! The fields of a head, whoever parsed it: a `HeaderMap`, or the bytes as they came with an index of them. What is decided
//! by fields asks [`Fields`], so that it is decided alike whichever way a request takes through the proxy.

use std::ops::Range;

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{framing::decimal, head::MAX_FIELDS, pieces::put};

/// The fields of a head.
pub trait Fields {
    /// The values of all fields of this name, in their order.
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]>;

    /// All fields. Names are in any case.
    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// How many fields there are.
    fn count(&self) -> usize;

    /// The first value of this name.
    fn first<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// Whether there is a field of this name.
    fn has(&self, name: &HeaderName) -> bool {
        self.first(name).is_some()
    }

    /// Writes those whose names pass as lines of HTTP/1.1.
    fn write(&self, passes: impl Fn(&[u8]) -> bool, out: &mut BytesMut) {
        for (name, value) in self.each().filter(|(name, _)| passes(name)) {
            write_line(name, value, out);
        }
    }
}

fn write_line(name: &[u8], value: &[u8], out: &mut BytesMut) {
    put([name, b": ", if is_length(name) { decimal(value) } else { value }, b"\r\n"], out);
}

/// Whether it is `Content-Length`.
pub fn is_length(name: &[u8]) -> bool {
    same_name(name, b"content-length")
}

impl Fields for HeaderMap {
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn first<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        if self.has(name) { self.get(name).map(HeaderValue::as_bytes) } else { None }
    }

    /// Most names that are asked for are not there, and to see that of the few that are costs less than the hash of one.
    fn has(&self, name: &HeaderName) -> bool {
        self.keys().any(|known| known == name)
    }
}

/// Whether two names are the same, in any case (RFC 9110 §5.1). Every field of a head is asked for its name many times, so they
/// are compared by words, not by letters.
#[inline]
pub fn same_name(one: &[u8], other: &[u8]) -> bool {
    // Mostly told by this alone.
    one.len() == other.len() && same_letters(one, other)
}

/// The same of names that are equally long. What is between the first word and the last may overlap both.
fn same_letters(one: &[u8], other: &[u8]) -> bool {
    match (ends(one), ends(other)) {
        (Some([first, last]), Some([others_first, others_last])) => {
            same_word(first, others_first)
                && same_word(last, others_last)
                && (one.len() <= 16 || same_between(one, other))
        }
        _ => match (short(one), short(other)) {
            (Some(one), Some(other)) => same_word(one, other),
            _ => one.eq_ignore_ascii_case(other),
        },
    }
}

/// The same of what is between the first word and the last. Apart, as few names are as long.
#[inline(never)]
fn same_between(one: &[u8], other: &[u8]) -> bool {
    let same = |(one, other): (&[u8; 8], &[u8; 8])| same_word(word(one), word(other));
    one.as_chunks().0.iter().zip(other.as_chunks().0).skip(1).all(same)
}

/// The first word of a name and its last one.
fn ends(name: &[u8]) -> Option<[u64; 2]> {
    Some([word(name.first_chunk()?), word(name.last_chunk()?)])
}

/// All letters of a name of four to eight in one word; some may be in it twice.
fn short(name: &[u8]) -> Option<u64> {
    let half = |part: &[u8; 4]| u64::from(u32::from_le_bytes(*part));
    Some(half(name.first_chunk()?) << 32 | half(name.last_chunk()?))
}

fn word(part: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*part)
}

/// A byte that is 1, in each place of a word.
pub(super) const EACH: u64 = u64::MAX / 0xff;
/// The highest bit of each byte.
pub(super) const HIGHEST: u64 = 0x80 * EACH;
/// The bit in which a capital letter differs from a small one.
const CASE: u64 = 0x20 * EACH;

/// Whether eight bytes are the same but for the case of letters.
fn same_word(one: u64, other: u64) -> bool {
    let different = one ^ other;
    // Other names mostly differ in more than that bit.
    different & !CASE == 0 && (different << 2) & !letters(one) == 0
}

/// The highest bit of each byte that is a letter.
pub(super) fn letters(word: u64) -> u64 {
    // The highest bit of each sum says what follows; the others cannot reach the next byte.
    let low = (word | CASE) & (0x7f * EACH);
    let from_a = low + (0x80 - u64::from(b'a')) * EACH;
    let after_z = low + (0x7f - u64::from(b'z')) * EACH;
    (from_a ^ after_z) & !word & HIGHEST
}

/// Where the fields of a head are in its bytes. Kept and filled again, so that reading a head takes no memory.
#[derive(Clone, Debug, Default)]
pub struct Index {
    places: Vec<Place>,
    /// Has the [mark] of each name, so that most names that are asked for need not be looked for.
    marks: u64,
    /// Of a request that is written as usual: how long its method and its target are, the first words of its head.
    line: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    name: u32,
    name_length: u32,
    value: u32,
    value_length: u32,
    /// Bytes of its line, if that is written as we write it; else 0.
    line: u32,
    /// See [`mark`].
    mark: u32,
}

impl Index {
    /// Takes in the fields that were parsed out of `head`, in place of those before. Those that are no part of it (there
    /// are none) are left out.
    pub fn fill(&mut self, head: &[u8], fields: &[httparse::Header<'_>]) {
        self.clear();
        self.places.reserve(fields.len());
        // Of as much places can be told; a head is never longer.
        let head = &head[..head.len().min(u32::MAX as usize)];
        for field in fields {
            let name = field.name.as_bytes();
            if let Some(at) = place(head, name)
                && let Some(value) = place(head, field.value).or(field.value.is_empty().then_some(0))
            {
                self.push((at, name), (value, field.value.len()), 0);
            }
        }
    }

    /// Takes in one field more: where its name and its value are, how long that is, and its [line](Place).
    pub(super) fn push(&mut self, (at, name): (usize, &[u8]), (value, length): (usize, usize), line: usize) {
        // A head is not longer than numbers of this size tell.
        let [at, name_length, value, value_length, line] =
            [at, name.len(), value, length, line].map(|part| part as u32);
        let mark = mark(name);
        self.places.push(Place { name: at, name_length, value, value_length, line, mark });
        self.marks |= 1 << mark;
    }

    /// Whether there are as many as anybody takes.
    pub(super) fn is_full(&self) -> bool {
        self.places.len() >= MAX_FIELDS
    }

    /// The head begins with a method and a target that are as long.
    pub(super) fn set_line(&mut self, method: usize, target: usize) {
        self.line = u32::try_from(method).ok().zip(u32::try_from(target).ok());
    }

    /// Method and target of the request with this head, where it is written as usual.
    pub fn line<'h>(&self, head: &'h [u8]) -> Option<(&'h [u8], &'h [u8])> {
        let (method, target) = self.line?;
        let (method, rest) = head.split_at_checked(method as usize)?;
        Some((method, rest.get(1..1 + target as usize)?))
    }

    /// Forgets all fields and keeps the room.
    pub fn clear(&mut self) {
        self.places.clear();
        (self.marks, self.line) = (0, None);
    }

    /// Those among which there may be some of this name.
    #[inline]
    fn among(&self, name: &[u8]) -> &[Place] {
        if self.marks & 1 << mark(name) == 0 { &[] } else { &self.places }
    }
}

/// A number below 64 that names have in common which are equally long and begin with the same letter in any case, and few others that
/// are usual.
#[inline]
const fn mark(name: &[u8]) -> u32 {
    let first = if let [first, ..] = name { (*first | 0x20) as usize } else { 0 };
    ((name.len() + 5 * first) % 64) as u32
}

/// Names that are looked for together.
#[derive(Clone, Copy, Debug)]
pub struct Names(u64);

impl Names {
    /// These.
    pub const fn of(mut names: &[&str]) -> Self {
        let mut marks = 0;
        while let [name, rest @ ..] = names {
            marks |= 1 << mark(name.as_bytes());
            names = rest;
        }
        Self(marks)
    }
}

/// Where `part` is in `head`.
#[inline]
fn place(head: &[u8], part: &[u8]) -> Option<usize> {
    let at = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    let fits = at <= head.len() && part.len() <= head.len() - at;
    fits.then_some(at)
}

/// The fields of a head in its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'h> {
    head: &'h [u8],
    index: &'h Index,
}

impl<'h> Raw<'h> {
    /// `index` must be of this head; of another one its fields are nonsense, and none where they do not fit.
    pub fn new(head: &'h [u8], index: &'h Index) -> Self {
        Self { head, index }
    }

    /// As [`Fields::first`], for as long as there is the head.
    #[inline]
    pub fn value(&self, name: &HeaderName) -> Option<&'h [u8]> {
        let name = name.as_str().as_bytes();
        let among = self.index.among(name);
        // Mostly there is none, and nobody is called for that.
        if among.is_empty() { None } else { self.named(among, name).next() }
    }

    /// Bytes of the head.
    pub fn length(&self) -> usize {
        self.head.len()
    }

    /// All fields that have one of these names, or one [like](super::headers::is_like) it, and few others.
    pub fn likely(&self, names: Names) -> impl Iterator<Item = (&'h [u8], &'h [u8])> {
        let raw = *self;
        let likely = self.index.places.iter().filter(move |place| names.0 & 1 << place.mark != 0);
        likely.map(move |place| (raw.part(place.name, place.name_length), raw.part(place.value, place.value_length)))
    }

    /// The values of those of this name `among` some.
    fn named<'a>(&self, among: &'a [Place], name: &'a [u8]) -> impl DoubleEndedIterator<Item = &'h [u8]> {
        let raw = *self;
        let named = move |place: &&Place| {
            // Before the bytes are looked for.
            place.name_length as usize == name.len() && same_name(raw.part(place.name, place.name_length), name)
        };
        among.iter().filter(named).map(move |place| raw.part(place.value, place.value_length))
    }

    /// Where the line of a field is, if it is written as [`write_line`] does.
    fn line(&self, place: &Place) -> Option<Range<usize>> {
        let line = place.name as usize..place.name as usize + place.line as usize;
        let zeros = || is_length(self.part(place.name, place.name_length)) && self.part(place.value, 1) == b"0";
        (place.line > 0 && line.end <= self.head.len() && !zeros()).then_some(line)
    }

    fn part(&self, at: u32, length: u32) -> &'h [u8] {
        self.head.get(at as usize..at as usize + length as usize).unwrap_or_default()
    }
}

impl Fields for Raw<'_> {
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let name = name.as_str().as_bytes();
        self.named(self.index.among(name), name)
    }

    #[inline]
    fn first<'a>(&'a self, name: &'a HeaderName) -> Option<&'a [u8]> {
        self.value(name)
    }

    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let places = self.index.places.iter();
        places.map(|place| (self.part(place.name, place.name_length), self.part(place.value, place.value_length)))
    }

    fn count(&self) -> usize {
        self.index.places.len()
    }

    /// Lines that are written as we write them, one after the other, go in one piece.
    fn write(&self, passes: impl Fn(&[u8]) -> bool, out: &mut BytesMut) {
        let mut piece = 0..0;
        for place in &self.index.places {
            let name = self.part(place.name, place.name_length);
            if !passes(name) {
                continue;
            }
            match self.line(place) {
                Some(line) if line.start == piece.end => piece.end = line.end,
                line => {
                    let before = std::mem::replace(&mut piece, line.clone().unwrap_or_default());
                    out.put_slice(&self.head[before]);
                    if line.is_none() {
                        write_line(name, self.part(place.value, place.value_length), out);
                    }
                }
            }
        }
        out.put_slice(&self.head[piece]);
    }
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    fn index(head: &[u8]) -> Index {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut fields);
        assert!(request.parse(head).expect("a head").is_complete());
        let mut index = Index::default();
        index.fill(head, request.headers);
        index
    }

    #[test]
    fn names_are_found_in_any_case_and_values_keep_their_order() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nEmpty:\r\nx-tWO:  2 \r\n\r\n";
        let index = index(head);
        let raw = Raw::new(head, &index);
        let two = HeaderName::from_static("x-two");
        assert_eq!(raw.all(&two).collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(raw.all(&two).next_back(), Some(&b"2"[..]));
        assert_eq!(raw.first(&HeaderName::from_static("empty")), Some(&b""[..]));
        assert!(raw.has(&header::HOST) && !raw.has(&header::COOKIE));
        assert_eq!(raw.count(), 4);
    }

    #[test]
    fn an_index_of_another_head_gives_nothing_that_is_not_there() {
        let index = index(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n");
        let raw = Raw::new(b"short", &index);
        assert_eq!(raw.each().collect::<Vec<_>>(), [(&b""[..], &b""[..])]);
    }

    proptest! {
        #[test]
        fn names_are_the_same_in_any_case_and_no_others(name in "[!-~]{0,20}", at in 0usize..20, other in any::<u8>()) {
            let name = name.as_bytes();
            for spelled in [name.to_vec(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                prop_assert!(same_name(name, &spelled));
                let mut changed = spelled;
                if let Some(byte) = changed.get_mut(at) {
                    *byte = other;
                }
                prop_assert_eq!(same_name(name, &changed), name.eq_ignore_ascii_case(&changed));
                changed.push(b'x');
                prop_assert!(!same_name(name, &changed));
            }
        }

        #[test]
        fn bytes_and_map_say_the_same(fields in proptest::collection::vec(("[a-cA-C]{1,2}", "[ -~]{0,8}"), 0..12)) {
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let index = index(head.as_bytes());
            let raw = Raw::new(head.as_bytes(), &index);
            let mut map = HeaderMap::new();
            for (name, value) in raw.each() {
                let (name, value) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
                map.append(name.expect("a name"), value.expect("a value"));
            }
            prop_assert_eq!(raw.count(), map.count());
            for name in map.keys() {
                prop_assert_eq!(raw.all(name).collect::<Vec<_>>(), map.all(name).collect::<Vec<_>>());
                prop_assert_eq!(raw.all(name).rev().collect::<Vec<_>>(), map.all(name).rev().collect::<Vec<_>>());
            }
        }
    }
}
