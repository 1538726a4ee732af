//! The fields of a head, whoever parsed it: a `HeaderMap`, or the bytes as they came with an index of them. What is decided
//! by fields asks [`Fields`], so that it is decided alike whichever way a request takes through the proxy.

use http::{HeaderMap, HeaderName, HeaderValue};

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

    fn has(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
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
            let same = |(one, other): (&[u8; 8], &[u8; 8])| same_word(word(one), word(other));
            same_word(first, others_first)
                && same_word(last, others_last)
                && (one.len() <= 16 || one.as_chunks().0.iter().zip(other.as_chunks().0).skip(1).all(same))
        }
        _ => match (short(one), short(other)) {
            (Some(one), Some(other)) => same_word(one, other),
            _ => one.eq_ignore_ascii_case(other),
        },
    }
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
const EACH: u64 = u64::MAX / 0xff;
/// The bit in which a capital letter differs from a small one.
const CASE: u64 = 0x20 * EACH;

/// Whether eight bytes are the same but for the case of letters.
fn same_word(one: u64, other: u64) -> bool {
    let different = one ^ other;
    // Other names mostly differ in more than that bit.
    different & !CASE == 0 && (different << 2) & !letters(one) == 0
}

/// The highest bit of each byte that is a letter.
fn letters(word: u64) -> u64 {
    // The highest bit of each sum says what follows; the others cannot reach the next byte.
    let low = (word | CASE) & (0x7f * EACH);
    let from_a = low + (0x80 - u64::from(b'a')) * EACH;
    let after_z = low + (0x7f - u64::from(b'z')) * EACH;
    (from_a ^ after_z) & !word & (0x80 * EACH)
}

/// Where the fields of a head are in its bytes. Kept and filled again, so that reading a head takes no memory.
#[derive(Clone, Debug, Default)]
pub struct Index(Vec<Place>);

#[derive(Clone, Copy, Debug)]
struct Place {
    name: u32,
    name_length: u32,
    value: u32,
    value_length: u32,
}

impl Index {
    /// Takes in the fields that were parsed out of `head`, in place of those before. Those that are no part of it (there
    /// are none) are left out.
    pub fn fill(&mut self, head: &[u8], fields: &[httparse::Header<'_>]) {
        self.0.clear();
        self.0.reserve(fields.len());
        // Of as much places can be told; a head is never longer.
        let head = &head[..head.len().min(u32::MAX as usize)];
        for field in fields {
            if let Some((name, name_length)) = place(head, field.name.as_bytes())
                && let Some((value, value_length)) =
                    place(head, field.value).or(field.value.is_empty().then_some((0, 0)))
            {
                self.0.push(Place { name, name_length, value, value_length });
            }
        }
    }

    /// Forgets all fields and keeps the room.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where `part` is in `head`, and how long it is.
#[inline]
fn place(head: &[u8], part: &[u8]) -> Option<(u32, u32)> {
    let at = part.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
    let fits = at <= head.len() && part.len() <= head.len() - at;
    // Not longer than the head, which fits.
    fits.then_some((at as u32, part.len() as u32))
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
    pub fn value(&self, name: &HeaderName) -> Option<&'h [u8]> {
        self.named(name).next()
    }

    fn named(&self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'h [u8]> {
        let (raw, name) = (*self, name.as_str().as_bytes());
        let named = move |place: &&Place| {
            // Before the bytes are looked for.
            place.name_length as usize == name.len() && same_name(raw.part(place.name, place.name_length), name)
        };
        self.index.0.iter().filter(named).map(move |place| raw.part(place.value, place.value_length))
    }

    fn part(&self, at: u32, length: u32) -> &'h [u8] {
        self.head.get(at as usize..at as usize + length as usize).unwrap_or_default()
    }
}

impl Fields for Raw<'_> {
    fn all<'a>(&'a self, name: &'a HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.named(name)
    }

    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let places = self.index.0.iter();
        places.map(|place| (self.part(place.name, place.name_length), self.part(place.value, place.value_length)))
    }

    fn count(&self) -> usize {
        self.index.0.len()
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
