//! What becomes of a head on its way through: which of its fields go on, and which of ours are put beside them, in one pass.
//! Said once, whoever holds the fields (see [`Fields`]) and whatever they go into: the bytes of HTTP/1.1, or a `HeaderMap`.

mod answer;
mod request;

pub use answer::AnswerRewrite;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
pub use request::{ClientCert, RequestRewrite, join_cookies};

use super::{
    fields::{Fields, same_name},
    forwarded::{is_client_cert_field, is_forged_field, is_forwarding_field},
    framing::decimal,
    headers::{HeaderEdits, X_REQUEST_ID, is_like, nominated_by_connection},
    pieces::put,
};

/// Where fields of ours go.
pub trait Sink {
    /// A field with this value.
    fn field(&mut self, name: &HeaderName, value: &HeaderValue);

    /// A field with this text for its value. It must be a field's value.
    fn text(&mut self, name: &HeaderName, text: &[u8]) {
        self.made(name, |out| out.put_slice(text));
    }

    /// A field whose value `write` puts at the end of what it is given. It must be a field's value.
    fn made(&mut self, name: &HeaderName, write: impl FnOnce(&mut BytesMut));

    /// Several fields at once, as lines of HTTP/1.1 that are put together of these pieces. Returns whether they were taken: not where
    /// they are no lines, or each of them is to be asked for.
    fn lines<const COUNT: usize>(&mut self, _: [&[u8]; COUNT]) -> bool {
        false
    }
}

/// Whether fields that speak to the next hop only are still in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hops {
    /// They are, and go no further, nor do those that `Connection` names.
    Here,
    /// They were taken out; what is there of them is meant.
    TakenOut,
}

/// What becomes of a head.
pub trait Rewrite {
    /// As many of our fields there are, mostly.
    const OURS: usize;

    /// What a field of this name is to a proxy: nothing, nearly always.
    fn kind(name: &[u8]) -> Kind;

    /// Whether a field goes on as it is, as far as its name says, which is of this kind.
    fn passes(&self, kind: Kind, name: &[u8]) -> bool;

    /// Whether all plain fields pass.
    fn passes_plain(&self) -> bool;

    /// Adds our fields. None of them has a name that passes, unless it is to be beside the others.
    fn ours(&self, to: &mut impl Sink);

    /// See [`Hops`].
    fn hops(&self) -> Hops;

    /// Writes `fields` as lines of HTTP/1.1, ours after those that go on, and without the empty line.
    fn write(&self, fields: &impl Fields, out: &mut BytesMut) {
        let nominated = nominated(self, fields);
        let plain = self.passes_plain() && nominated.is_empty();
        let passes = |kind, name: &[u8]| self.passes(kind, name) && !names(&nominated, name);
        let goes_on = |kind, name: &[u8]| (plain && kind == Kind::Plain) || passes(kind, name);
        fields.write(|name| goes_on(Self::kind(name), name), out);
        self.ours(&mut Wire(out));
    }

    /// The same as a map; a field that is none in HTTP/2 is left out.
    fn collect(&self, fields: &impl Fields) -> HeaderMap {
        let nominated = nominated(self, fields);
        let plain = self.passes_plain() && nominated.is_empty();
        let passes = |kind, name: &[u8]| self.passes(kind, name) && !names(&nominated, name);
        let goes_on = |kind, name: &[u8]| (plain && kind == Kind::Plain) || passes(kind, name);
        let mut map = HeaderMap::with_capacity(fields.count() + Self::OURS);
        for (name, value) in fields.each() {
            if goes_on(Self::kind(name), name)
                && let Some(name) = known(name)
            {
                let value = value.trim_ascii();
                let value = if name == header::CONTENT_LENGTH { decimal(value) } else { value };
                // Each in memory of its own: HTTP/2 remembers some of them for as long as the connection lasts.
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    _ = map.try_append(name, value);
                }
            }
        }
        self.ours(&mut Map { fields: &mut map, text: BytesMut::new() });
        map
    }

    /// The same for fields in a map, in their place.
    fn apply(&self, fields: &mut HeaderMap) {
        let gone: Vec<HeaderName> = {
            let nominated = nominated(self, fields);
            let goes = |name: &[u8]| !self.passes(Self::kind(name), name) || names(&nominated, name);
            fields.keys().filter(|name| goes(name.as_str().as_bytes())).cloned().collect()
        };
        for name in &gone {
            fields.remove(name);
        }
        if let header::Entry::Occupied(mut lengths) = fields.entry(header::CONTENT_LENGTH) {
            for length in lengths.iter_mut().filter(|length| decimal(length.as_bytes()) != length.as_bytes()) {
                *length = value(Bytes::copy_from_slice(decimal(length.as_bytes())));
            }
        }
        // Without room a map takes what still fits.
        _ = fields.try_reserve(Self::OURS);
        self.ours(&mut Map { fields, text: BytesMut::new() });
    }
}

/// The name as a map has it, if it is one. Those that answers mostly have are told by their length and their first letter, which costs
/// less than to make one.
fn known(name: &[u8]) -> Option<HeaderName> {
    let usual = match (name.len(), name.first()?.to_ascii_lowercase()) {
        (4, b'd') => header::DATE,
        (4, b'e') => header::ETAG,
        (4, b'v') => header::VARY,
        (6, b's') => header::SERVER,
        (10, b's') => header::SET_COOKIE,
        (12, b'c') => header::CONTENT_TYPE,
        (13, b'a') => header::ACCEPT_RANGES,
        (13, b'c') => header::CACHE_CONTROL,
        (13, b'l') => header::LAST_MODIFIED,
        (16, b'c') => header::CONTENT_ENCODING,
        _ => return HeaderName::from_bytes(name).ok(),
    };
    if same_name(name, usual.as_str().as_bytes()) { Some(usual) } else { HeaderName::from_bytes(name).ok() }
}

/// What `Connection` names and would go on otherwise; of framing it has no say. Takes memory only where there is such a name.
fn nominated<'f, R: Rewrite + ?Sized>(rewrite: &R, fields: &'f impl Fields) -> Vec<&'f [u8]> {
    if rewrite.hops() == Hops::TakenOut || !fields.has(&header::CONNECTION) {
        return Vec::new();
    }
    let framing = |name: &[u8]| same_name(name, header::TRANSFER_ENCODING.as_str().as_bytes());
    let passes = |name: &&[u8]| rewrite.passes(R::kind(name), name) && !framing(name);
    nominated_by_connection(fields).filter(passes).collect()
}

fn names(nominated: &[&[u8]], name: &[u8]) -> bool {
    nominated.iter().any(|nominated| same_name(nominated, name))
}

/// `Via` and the request's id, which go both ways, those of them that there are.
fn sign(via: Option<&HeaderValue>, id: Option<&[u8]>, to: &mut impl Sink) {
    // Mostly both.
    if let (Some(via), Some(id)) = (via, id)
        && to.lines([b"via: ", via.as_bytes(), b"\r\nx-request-id: ", id, b"\r\n"])
    {
        return;
    }
    if let Some(via) = via {
        to.field(&header::VIA, via);
    }
    if let Some(id) = id {
        to.text(&X_REQUEST_ID, id);
    }
}

/// The lines of a head.
struct Wire<'a>(&'a mut BytesMut);

impl Sink for Wire<'_> {
    fn field(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.text(name, value.as_bytes());
    }

    fn text(&mut self, name: &HeaderName, text: &[u8]) {
        put([name.as_str().as_bytes(), b": ", text, b"\r\n"], self.0);
    }

    fn made(&mut self, name: &HeaderName, write: impl FnOnce(&mut BytesMut)) {
        put([name.as_str().as_bytes(), b": "], self.0);
        write(self.0);
        put([b"\r\n"], self.0);
    }

    #[inline(always)] // see `put`
    fn lines<const COUNT: usize>(&mut self, pieces: [&[u8]; COUNT]) -> bool {
        put(pieces, self.0);
        true
    }
}

/// A map, and room for the values that are made.
struct Map<'a> {
    fields: &'a mut HeaderMap,
    text: BytesMut,
}

impl Map<'_> {
    /// A map that is full takes no more: as many fields nobody is sent.
    fn add(&mut self, name: &HeaderName, value: HeaderValue) {
        _ = self.fields.try_append(name, value);
    }

    fn add_made(&mut self, name: &HeaderName, text: Bytes) {
        let mut value = value(text);
        // Of this request alone: among the names and values that HTTP/2 remembers it would only take the place of others.
        value.set_sensitive(*name == X_REQUEST_ID);
        self.add(name, value);
    }
}

impl Sink for Map<'_> {
    fn field(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.add(name, value.clone());
    }

    fn text(&mut self, name: &HeaderName, text: &[u8]) {
        self.add_made(name, Bytes::copy_from_slice(text));
    }

    fn made(&mut self, name: &HeaderName, write: impl FnOnce(&mut BytesMut)) {
        self.text.reserve(128);
        write(&mut self.text);
        let text = self.text.split().freeze();
        self.add_made(name, text);
    }
}

/// What was read as a field value before, or is made of addresses and names, is one.
fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(const { HeaderValue::from_static("unknown") })
}

/// What the operator's edits do after all else.
impl HeaderEdits {
    /// Whether fields of this name go, whoever said them.
    #[inline]
    pub fn replaces(&self, name: &[u8]) -> bool {
        !self.replaces_nothing() && self.edits(name)
    }

    /// Mostly so, and every field is asked of.
    fn replaces_nothing(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }

    fn edits(&self, name: &[u8]) -> bool {
        let is = |edited: &HeaderName| same_name(name, edited.as_str().as_bytes());
        self.remove.iter().any(is) || self.set.iter().any(|(edited, _)| is(edited))
    }

    /// Whether a client's field of this name goes, as what stands in its place or is not to be there could be taken from it
    /// (see [`is_like`]).
    #[inline]
    pub fn replaces_like(&self, name: &[u8]) -> bool {
        !self.replaces_nothing() && self.edits_like(name)
    }

    fn edits_like(&self, name: &[u8]) -> bool {
        let like = |edited: &HeaderName| is_like(name, edited.as_str().as_bytes());
        self.remove.iter().any(like) || self.set.iter().any(|(edited, _)| like(edited))
    }

    fn write(&self, to: &mut impl Sink) {
        for (at, (name, value)) in self.set.iter().enumerate() {
            // The last word counts.
            if !self.set[at + 1..].iter().any(|(later, _)| later == name) {
                to.field(name, value);
            }
        }
        for (name, value) in &self.add {
            to.field(name, value);
        }
    }
}

/// Ours go where the operator has not said otherwise.
struct Unedited<'a, S> {
    edits: &'a HeaderEdits,
    to: &'a mut S,
}

impl<S: Sink> Sink for Unedited<'_, S> {
    fn field(&mut self, name: &HeaderName, value: &HeaderValue) {
        if !self.edits.replaces(name.as_str().as_bytes()) {
            self.to.field(name, value);
        }
    }

    fn text(&mut self, name: &HeaderName, text: &[u8]) {
        if !self.edits.replaces(name.as_str().as_bytes()) {
            self.to.text(name, text);
        }
    }

    fn made(&mut self, name: &HeaderName, write: impl FnOnce(&mut BytesMut)) {
        if !self.edits.replaces(name.as_str().as_bytes()) {
            self.to.made(name, write);
        }
    }

    #[inline(always)] // see `put`
    fn lines<const COUNT: usize>(&mut self, pieces: [&[u8]; COUNT]) -> bool {
        self.edits.replaces_nothing() && self.to.lines(pieces)
    }
}

/// What a field is to a proxy, by its name in any case; in an answer, as far as `Kind::of` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Authorization`
    Authorization,
    /// Ours to say, see [`is_client_cert_field`].
    ClientCert,
    /// `Cookie`
    Cookie,
    /// Nobody's, see [`is_forged_field`].
    Forged,
    /// See [`is_forwarding_field`]: trusted peers' are kept.
    Forwarding,
    /// `X-Forwarded-For` and `Forwarded`: made anew, of what trusted peers said.
    Hearsay,
    /// To the next hop only; see [`HOP_BY_HOP`](super::headers::HOP_BY_HOP). And `Trailer`.
    Hop,
    /// `Host`
    Host,
    /// `Content-Length`
    Length,
    /// Any other.
    Plain,
    /// `X-Request-Id`
    RequestId,
}

impl Kind {
    /// Of a client's field, which may say what is not the client's to say.
    fn of_client(name: &[u8]) -> Self {
        match Self::of(name) {
            Self::Plain if !is_forwarding_field(name) => Self::Plain,
            Self::Plain if is_forged_field(name) => Self::Forged,
            Self::Plain => Self::Forwarding,
            kind => kind,
        }
    }

    /// By its length and its first letter a name can be one of those that matter at most. Inlined, as most names can be none, and
    /// are told sooner than called for.
    #[inline(always)]
    fn of(name: &[u8]) -> Self {
        let Some(first) = name.first() else { return Self::Plain };
        let (own, kind) = match (first.to_ascii_lowercase(), name.len()) {
            (b'a', 13) => ("authorization", Self::Authorization),
            (b'c', 6) => ("cookie", Self::Cookie),
            (b'c', 10) => ("connection", Self::Hop),
            (b'c', 14) => ("content-length", Self::Length),
            (b'f', 9) => ("forwarded", Self::Hearsay),
            (b'h', 4) => ("host", Self::Host),
            (b'h', 14) => ("http2-settings", Self::Hop),
            (b'k', 10) => ("keep-alive", Self::Hop),
            (b'p', 16) => ("proxy-connection", Self::Hop),
            (b'p', 18) => ("proxy-authenticate", Self::Hop),
            (b'p', 19) => ("proxy-authorization", Self::Hop),
            (b't', 2) => ("te", Self::Hop),
            (b't', 7) => ("trailer", Self::Hop),
            (b't', 17) => ("transfer-encoding", Self::Hop),
            (b'u', 7) => ("upgrade", Self::Hop),
            (b'x', 12) => ("x-request-id", Self::RequestId),
            (b'x', 15) => ("x-forwarded-for", Self::Hearsay),
            (b'x', 20..) if is_client_cert_field(name) => return Self::ClientCert,
            _ => return Self::Plain,
        };
        if same_name(name, own.as_bytes()) { kind } else { Self::Plain }
    }
}

#[cfg(test)]
mod tests;
