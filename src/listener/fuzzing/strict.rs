//! HTTP/1.1 messages as a strict reader of its own sees them: nothing of the front or of the lane is used, so that a mistake
//! there is none here.

/// What there is at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// No message, whatever comes.
    Bad(&'static str),
    /// A message's head, with its data up to where the body is none.
    Broken(Message, &'static str),
    /// The beginning of a message: its head, where that is whole, with the data so far.
    Part(Option<Message>),
    /// A message, and how many bytes it takes.
    Whole(Message, usize),
}

/// A head, and the data of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The words of the first line: three of a request; of an answer the third is all that is left, and may be empty.
    pub(super) start: [Vec<u8>; 3],
    /// Names in lower case, values without white space around them.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) data: Vec<u8>,
    /// The body has something beside its data: extensions of chunks, trailers.
    pub(super) more: bool,
    /// It goes to the end of its connection.
    pub(super) open: bool,
}

/// How far a body goes.
enum Body {
    Chunks,
    /// To the end of the connection.
    Close,
    Length(usize),
}

impl Message {
    /// All values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| &value[..])
    }

    /// Of an answer; 0 of a request.
    pub(super) fn status(&self) -> u16 {
        std::str::from_utf8(&self.start[1]).ok().and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Whether an answer says that it is the proxy's own.
    pub(super) fn is_ours(&self) -> bool {
        self.all("proxy-status").any(|said| said.starts_with(b"rrlb"))
    }

    /// The body's framing: its length, or whether it is in chunks.
    fn framing(&self) -> Result<Option<Body>, &'static str> {
        let mut lengths: Vec<_> = self.all("content-length").collect();
        if self.status() > 0 {
            // Of answers, several that are alike are one (RFC 9110 §8.6).
            lengths.dedup();
        }
        let codings: Vec<_> = self.all("transfer-encoding").collect();
        match (&lengths[..], &codings[..]) {
            ([], []) => Ok(None),
            ([], [coding])
                if coding.eq_ignore_ascii_case(b"chunked") && !self.start.contains(&b"HTTP/1.0".to_vec()) =>
            {
                Ok(Some(Body::Chunks))
            }
            ([length], []) => {
                let good = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
                let text = std::str::from_utf8(length).unwrap_or_default();
                let length = text.parse::<u64>().ok().filter(|length| good && *length < 1 << 63);
                let length = length.ok_or("a length that is none")?;
                Ok(Some(Body::Length(usize::try_from(length).unwrap_or(usize::MAX))))
            }
            _ => Err("more than one framing"),
        }
    }
}

/// The request at the beginning of `bytes`.
pub(super) fn request(bytes: &[u8]) -> Read {
    message(
        bytes,
        |line| {
            let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let [method, target, version] = words[..] else { return Err("a request line of other than three words") };
            if method.is_empty() || !method.iter().copied().all(is_token) {
                return Err("a method that is no token");
            }
            if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
                return Err("a target with what stands in none");
            }
            if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
                return Err("another version");
            }
            Ok([method.to_vec(), target.to_vec(), version.to_vec()])
        },
        |message| Ok(message.framing()?.unwrap_or(Body::Length(0))),
    )
}

/// The answer at the beginning of `bytes`, to a request of HEAD or another one.
pub(super) fn answer(bytes: &[u8], to_head: bool) -> Read {
    message(
        bytes,
        |line| {
            let (version, rest) = line.split_at_checked(8).ok_or("no status line")?;
            if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
                return Err("another version");
            }
            let [b' ', status @ ..] = &rest[..rest.len().min(4)] else { return Err("no status") };
            if status.len() != 3 || !status.iter().all(u8::is_ascii_digit) || status[0] == b'0' {
                return Err("a status that is none");
            }
            let phrase = match &rest[4..] {
                [] => &[][..],
                [b' ', phrase @ ..] => phrase,
                _ => return Err("a status of more than three digits"),
            };
            Ok([version.to_vec(), status.to_vec(), phrase.to_vec()])
        },
        |message| {
            let status = message.status();
            // What cannot have a body has none, whatever its fields say (RFC 9112 §6.3).
            if to_head || status < 200 || matches!(status, 204 | 304) {
                return Ok(Body::Length(0));
            }
            Ok(message.framing()?.unwrap_or(Body::Close))
        },
    )
}

fn message(
    bytes: &[u8],
    start: impl Fn(&[u8]) -> Result<[Vec<u8>; 3], &'static str>,
    body: impl Fn(&Message) -> Result<Body, &'static str>,
) -> Read {
    let mut lines = Vec::new();
    let mut at = 0;
    loop {
        match line(&bytes[at..]) {
            Err(why) => return Read::Bad(why),
            Ok(None) => return Read::Part(None),
            Ok(Some(line)) => {
                at += line.len() + 2;
                if line.is_empty() {
                    break;
                }
                lines.push(line);
            }
        }
    }
    let Some((&first, rest)) = lines.split_first() else { return Read::Bad("an empty line in place of a message") };
    let head = start(first).and_then(|start| {
        let fields = rest.iter().map(|line| field(line)).collect::<Result<_, _>>()?;
        Ok(Message { start, fields, data: Vec::new(), more: false, open: false })
    });
    let framed = head.and_then(|message| Ok((body(&message)?, message)));
    match framed {
        Err(why) => Read::Bad(why),
        Ok((Body::Length(length), mut message)) => {
            let here = &bytes[at..bytes.len().min(at.saturating_add(length))];
            message.data = here.to_vec();
            if here.len() < length { Read::Part(Some(message)) } else { Read::Whole(message, at + length) }
        }
        Ok((Body::Close, mut message)) => {
            (message.data, message.open) = (bytes[at..].to_vec(), true);
            Read::Part(Some(message))
        }
        Ok((Body::Chunks, message)) => chunks(bytes, at, message),
    }
}

fn chunks(bytes: &[u8], mut at: usize, mut message: Message) -> Read {
    loop {
        let size = match line(&bytes[at..]) {
            Err(why) => return Read::Broken(message, why),
            Ok(None) => return Read::Part(Some(message)),
            Ok(Some(line)) => line,
        };
        at += size.len() + 2;
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let text = std::str::from_utf8(&size[..digits]).unwrap_or_default();
        let Ok(length) = u64::from_str_radix(text, 16) else { return Read::Broken(message, "a chunk without a size") };
        match size[digits..].first() {
            None => {}
            Some(b';') => message.more = true,
            Some(_) => return Read::Broken(message, "a chunk's size with something behind it"),
        }
        if length == 0 {
            break;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let here = &bytes[at..bytes.len().min(at.saturating_add(length))];
        message.data.extend_from_slice(here);
        if here.len() < length {
            return Read::Part(Some(message));
        }
        at += length;
        match &bytes[at..] {
            [] | [b'\r'] => return Read::Part(Some(message)),
            [b'\r', b'\n', ..] => at += 2,
            _ => return Read::Broken(message, "a chunk that does not end where it says"),
        }
    }
    loop {
        match line(&bytes[at..]) {
            Err(why) => return Read::Broken(message, why),
            Ok(None) => return Read::Part(Some(message)),
            Ok(Some(line)) => {
                at += line.len() + 2;
                if line.is_empty() {
                    return Read::Whole(message, at);
                }
                if let Err(why) = field(line) {
                    return Read::Broken(message, why);
                }
                message.more = true;
            }
        }
    }
}

/// A line without its end; `None` where that has not come.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let bad = bytes.iter().position(|byte| *byte != b'\t' && byte.is_ascii_control());
    match bad {
        None => Ok(None),
        Some(end) if bytes[end..] == *b"\r" => Ok(None),
        Some(end) if bytes[end..].starts_with(b"\r\n") => Ok(Some(&bytes[..end])),
        Some(_) => Err("a control character, or half of a line's end"),
    }
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err("a name that is no token");
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let to = value.iter().rposition(|byte| !blank(byte)).map_or(from, |last| last + 1);
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value[from..to].to_vec()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
