//! One form of a path for all decisions (RFC 3986 §6.2.2): however a client spells it, the same route is found. Which
//! route that is, and what is refused because of it, is decided in `route.rs`.
//!
//! In the form, unreserved characters are plain and all others encoded with capital digits, slashes that follow each
//! other are one, and `.` and `..` are resolved. An encoded slash, a backslash and a `;parameter` stay data, as backends
//! do not agree on them; [`Canonical::readings`] says what else such a path could be to one of them. What is ambiguous
//! by itself is refused here: `..` above the root, what some backend takes for a dot segment (`..;x`, `..%2F`), encoded
//! control characters, and `%` that is no encoding.

use std::borrow::Cow;

use http::Method;

/// What a backend is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SentPath {
    /// The canonical form.
    Normalized,
    /// The path as the client sent it.
    #[default]
    Raw,
}

/// A path in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical<'a> {
    /// Begins with a slash, or is `*`.
    pub path: Cow<'a, str>,
    /// It was sent with dot segments: a backend that does not resolve them sees another path.
    pub had_dots: bool,
}

/// The host or path can be understood in more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host or path can be understood in more than one way")]
pub struct Ambiguous;

/// Whether a path has only what paths of URIs have, or what browsers leave in them as it is (`[`, `]`, `|`; the path
/// percent-encode set of the WHATWG URL standard). No client sends anything else plain, and backends do not agree on it.
pub fn is_uri_path(path: &str) -> bool {
    !path.bytes().any(|byte| matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'}'))
}

/// Path and query (with its `?`) of a request's target: origin form, absolute form or `*`. A fragment is no part of it.
pub fn split_target<'a>(method: &Method, target: &'a str) -> (&'a str, &'a str) {
    if target.starts_with('/') {
        // Nearly always.
        let Some(end) = target.bytes().position(|byte| matches!(byte, b'?' | b'#')) else { return (target, "") };
        let (path, rest) = target.split_at(end);
        let query = if rest.starts_with('?') { rest.split('#').next().unwrap_or_default() } else { "" };
        return (path, query);
    }
    let target = target.split_once('#').map_or(target, |(target, _)| target);
    let local = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('?') => {
            rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or_default()
        }
        _ => return target.split_at(target.find('?').unwrap_or(target.len())),
    };
    match local.split_at(local.find('?').unwrap_or(local.len())) {
        // RFC 9112 §3.2.4 and §3.2.1.
        ("", "") if *method == Method::OPTIONS => ("*", ""),
        ("", query) => ("/", query),
        parts => parts,
    }
}

/// The canonical form of a path without its query, as it stands in a request. A path that is in it already, as most are,
/// costs one scan.
///
/// # Errors
/// The path is ambiguous by itself.
pub fn canonical(path: &str) -> Result<Canonical<'_>, Ambiguous> {
    if is_canonical(path.as_bytes()) {
        return Ok(Canonical { path: Cow::Borrowed(path), had_dots: false });
    }
    let rest = path.strip_prefix('/').ok_or(Ambiguous)?;
    let mut form = String::with_capacity(path.len() + 16);
    let mut had_dots = false;
    let mut directory = false;
    for segment in rest.split('/') {
        let parent = form.len();
        form.push('/');
        decode(segment.as_bytes(), &mut form)?;
        let name = form.get(parent + 1..).unwrap_or_default();
        let (dots, up) = (name == "." || name == "..", name == "..");
        had_dots |= dots;
        directory = dots || name.is_empty();
        if directory {
            form.truncate(parent);
        }
        if up {
            let above = form.rfind('/').ok_or(Ambiguous)?;
            form.truncate(above);
        }
    }
    if directory {
        form.push('/');
    }
    Ok(Canonical { path: Cow::Owned(form), had_dots })
}

/// The spelling of a path in the file that requests are compared with.
///
/// # Errors
/// It could not be told apart from other paths.
pub fn pattern(path: &str) -> Result<String, Ambiguous> {
    let form = canonical(path)?;
    if !form.readings()?.is_empty() {
        return Err(Ambiguous);
    }
    Ok(form.key().into_owned())
}

impl Canonical<'_> {
    /// What patterns are compared with: the form with all characters plain that may be plain in a path (RFC 3986 §3.3).
    /// Backends are not sent this, as `%2B` and `+` are not the same to all of them.
    pub fn key(&self) -> Cow<'_, str> {
        if matches!(self.path, Cow::Borrowed(_)) || !self.path.contains('%') {
            return Cow::Borrowed(&self.path);
        }
        Reading::default().of(&self.path).map_or(Cow::Borrowed(&*self.path), |read| Cow::Owned(read.path))
    }

    /// What else the path is to a backend that takes encoded slashes or backslashes for slashes, leaves out
    /// `;parameters`, before or after it decodes, or all behind the first, or decodes UTF-8 that is longer than needed. And where
    /// it then begins with two slashes, or would without a prefix, what it is to one that takes what follows for an authority,
    /// as a reference in RFC 3986 §4.2 has it (`//authority/path`). Nearly always nothing.
    ///
    /// # Errors
    /// To one of them it has dot segments.
    pub fn readings(&self) -> Result<Vec<String>, Ambiguous> {
        let mut found = Vec::new();
        if matches!(self.path, Cow::Borrowed(_)) {
            // It was canonical as it came, and a path with any of these is not.
            return Ok(found);
        }
        let has = |what: &str| self.path.contains(what);
        let encoded = has("%");
        let overlong = encoded && has_overlong(self.path.as_bytes());
        let (slash, backslash) = (encoded && has("%2F"), encoded && has("%5C"));
        let parameter = has(";") || (encoded && has("%3B")) || overlong;
        if !(slash || backslash || parameter) {
            return Ok(found);
        }
        let key = self.key();
        let mut found_one = |reading: String| {
            if *key != reading && !found.contains(&reading) {
                found.push(reading);
            }
        };
        for (slashes, backslashes, overlongs, differs) in [
            (false, false, false, true),
            (true, false, false, slash),
            (false, true, false, backslash),
            (true, true, false, slash && backslash),
            (false, false, true, overlong),
            (true, false, true, overlong),
            (false, true, true, overlong),
            (true, true, true, overlong),
        ] {
            for parameters in Parameters::ALL {
                if !differs || (parameters != Parameters::Kept && !parameter) {
                    continue;
                }
                let Read { path, empty } = Reading { slashes, backslashes, overlongs, parameters }.of(&self.path)?;
                if let Some(at) = empty {
                    found_one(without_authority(&path, at));
                }
                found_one(path);
            }
        }
        Ok(found)
    }

    /// The path for a backend, where a client sent `path`. `prefix` (a pattern without a trailing slash) is taken off on
    /// a segment border, segment by segment, whichever way they are spelled. What is left, or all of it without a prefix,
    /// begins with exactly one slash, so that no backend reads it as `//authority`; behind that a raw path stays as it is.
    ///
    /// # Errors
    /// The path as sent has dot segments, so a backend could see another one than decided.
    pub fn sent<'a>(&'a self, path: &'a str, how: SentPath, prefix: Option<&str>) -> Result<&'a str, Ambiguous> {
        let whole = match how {
            SentPath::Normalized => &*self.path,
            SentPath::Raw if self.had_dots => return Err(Ambiguous),
            SentPath::Raw => path,
        };
        Ok(match prefix {
            // Without dots every spelling has the same segments.
            Some(prefix) if is_below(&self.key(), prefix) => without_segments(whole, prefix.matches('/').count()),
            _ => with_one_slash(whole),
        })
    }
}

/// Whether `path` is `prefix` or below it, on a segment border.
pub(super) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` without its first `count` segments, where slashes that follow each other are one.
fn without_segments(path: &str, count: usize) -> &str {
    let mut rest = path;
    for _ in 0..count {
        rest = rest.trim_start_matches('/');
        rest = rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default();
    }
    if rest.is_empty() { "/" } else { with_one_slash(rest) }
}

/// `path` with one slash where it begins with several.
fn with_one_slash(path: &str) -> &str {
    let slashes = path.len() - path.trim_start_matches('/').len();
    path.get(slashes.saturating_sub(1)..).unwrap_or(path)
}

/// A reading without the segment at `at`, which is an authority to who reads `//` before it.
fn without_authority(path: &str, at: usize) -> String {
    let (before, after) = path.split_at_checked(at).unwrap_or((path, ""));
    let rest = after.find('/').and_then(|slash| after.get(slash..)).unwrap_or("/");
    [before.trim_end_matches('/'), rest].concat()
}

/// What stands for itself in a path and has no other meaning: `pchar` of RFC 3986 without `;`.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte) || matches!(byte, b'!' | b'$' | b'&'..=b',' | b':' | b'=' | b'@')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether nothing in it could have another spelling; most paths are so.
fn is_canonical(path: &[u8]) -> bool {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0;
        while byte < plain.len() {
            plain[byte] = is_plain(byte as u8);
            byte += 1;
        }
        plain
    };
    if path.first() != Some(&b'/') {
        return path == b"*";
    }
    let mut rest = path;
    while let [b'/', after @ ..] = rest {
        let end = after.iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(after.len());
        let (segment, next) = after.split_at(end);
        // An empty one is the last, of a path that ends with a slash.
        if matches!(segment, b"." | b"..") || (segment.is_empty() && !next.is_empty()) {
            return false;
        }
        rest = next;
    }
    rest.is_empty()
}

/// Writes a segment with what is unreserved decoded, and what must be encoded.
fn decode(segment: &[u8], form: &mut String) -> Result<(), Ambiguous> {
    let mut rest = segment;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let (value, after) = escape(rest).ok_or(Ambiguous)?;
            rest = after;
            if value.is_ascii_control() {
                return Err(Ambiguous);
            } else if is_unreserved(value) {
                form.push(char::from(value));
            } else {
                encode(value, form);
            }
            continue;
        }
        rest = after;
        if is_plain(byte) || byte == b';' {
            form.push(char::from(byte));
        } else if byte.is_ascii_graphic() || !byte.is_ascii() {
            encode(byte, form);
        } else {
            return Err(Ambiguous);
        }
    }
    Ok(())
}

/// The byte of a `%` with two digits, and what comes after it.
fn escape(form: &[u8]) -> Option<(u8, &[u8])> {
    let (&[percent, high, low], rest) = form.split_first_chunk()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let value = digit(high)? * 16 + digit(low)?;
    Some((u8::try_from(value).ok().filter(|_| percent == b'%')?, rest))
}

fn encode(byte: u8, form: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    form.push('%');
    form.push(char::from(HEX[usize::from(byte >> 4)]));
    form.push(char::from(HEX[usize::from(byte & 15)]));
}

/// What becomes of `;parameters` of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Parameters {
    #[default]
    Kept,
    /// Before decoding, as Tomcat does: they end at a plain slash.
    LeftOutFirst,
    /// After decoding: `%3B` begins one too, and any slash ends it.
    LeftOutLast,
    /// The first one ends the path, as for Shiro.
    End,
}

impl Parameters {
    const ALL: [Self; 4] = [Self::Kept, Self::LeftOutFirst, Self::LeftOutLast, Self::End];
}

/// A path as a backend understands it, spelled as a key.
struct Read {
    path: String,
    /// Where the first segment begins that has an empty one before it. A prefix that is stripped has none, so what is
    /// left of a path without it begins with `//` only if it does so here.
    empty: Option<usize>,
}

/// How a backend understands a path in canonical form.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// `%2F` is a slash, as to nginx.
    slashes: bool,
    /// `\` and `%5C` are slashes, as to IIS.
    backslashes: bool,
    /// ASCII in more bytes of UTF-8 than one is ASCII.
    overlongs: bool,
    parameters: Parameters,
}

impl Reading {
    /// The path so understood.
    fn of(self, form: &str) -> Result<Read, Ambiguous> {
        let mut read = String::with_capacity(form.len());
        let mut empty = None;
        let mut segment = 0;
        let mut in_parameter = false;
        let mut rest = form.as_bytes();
        while let Some((byte, encoded, after)) = self.next(rest) {
            rest = after;
            let plain_slash = byte == b'/' && !encoded;
            if plain_slash || (self.is_slash(byte) && !(in_parameter && self.parameters == Parameters::LeftOutFirst)) {
                in_parameter = false;
                if read.get(segment..).is_some_and(is_dots) {
                    return Err(Ambiguous);
                }
                if read.ends_with('/') {
                    empty.get_or_insert(read.len());
                } else {
                    read.push('/');
                }
                segment = read.len();
                continue;
            }
            in_parameter |= byte == b';'
                && match self.parameters {
                    Parameters::Kept => false,
                    Parameters::LeftOutFirst => !encoded,
                    Parameters::LeftOutLast => true,
                    Parameters::End => break,
                };
            if in_parameter {
                continue;
            }
            if encoded && byte.is_ascii_control() {
                return Err(Ambiguous);
            }
            if is_plain(byte) || !encoded {
                read.push(char::from(byte));
            } else {
                encode(byte, &mut read);
            }
        }
        if read.get(segment..).is_some_and(is_dots) { Err(Ambiguous) } else { Ok(Read { path: read, empty }) }
    }

    fn is_slash(self, byte: u8) -> bool {
        (byte == b'/' && self.slashes) || (byte == b'\\' && self.backslashes)
    }

    /// The next byte, whether it is encoded, and what comes after it.
    fn next(self, form: &[u8]) -> Option<(u8, bool, &[u8])> {
        let (&byte, rest) = form.split_first()?;
        if byte != b'%' {
            return Some((byte, false, rest));
        }
        if let Some((byte, rest)) = overlong(form).filter(|_| self.overlongs) {
            return Some((byte, true, rest));
        }
        // In a canonical form every `%` is followed by two digits.
        escape(form).map(|(byte, rest)| (byte, true, rest))
    }
}

fn is_dots(segment: &str) -> bool {
    segment == "." || segment == ".."
}

fn has_overlong(form: &[u8]) -> bool {
    (0..form.len()).filter_map(|at| form.get(at..)).any(|form| overlong(form).is_some())
}

/// An ASCII character in two to four bytes of UTF-8, which some decoders let pass (RFC 3629 §3 forbids it), and what
/// comes after it.
fn overlong(form: &[u8]) -> Option<(u8, &[u8])> {
    let (mut high, mut rest) = escape(form)?;
    let between = match high {
        0xc0 | 0xc1 => 0,
        0xe0 => 1,
        0xf0 => 2,
        _ => return None,
    };
    for left in (0..between).rev() {
        (high, rest) = escape(rest)?;
        // The seventh bit may be in the last but one; anything more is no ASCII.
        if high != 0x80 && (left, high) != (0, 0x81) {
            return None;
        }
    }
    let (low, rest) = escape(rest)?;
    (low & 0xc0 == 0x80).then_some(((high & 1) << 6 | (low & 0x3f), rest))
}

#[cfg(test)]
mod tests;
