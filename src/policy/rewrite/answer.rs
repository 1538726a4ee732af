//! The head of a backend's answer on its way to the client.

use http::{HeaderName, HeaderValue, header};

use super::{
    super::{fields::same_name, headers::HeaderEdits},
    Hops, Kind, Rewrite, Sink, Unedited, sign,
};

/// What the client is to be told beside what the backend says.
#[derive(Clone, Debug)]
pub struct AnswerRewrite<'a> {
    /// Whether the fields of framing go on; if not, whoever writes the head says where the body ends.
    pub framing: bool,
    /// Whether trailers go on to the client.
    pub trailers: bool,
    /// Rate limits, beside those that the backend may have.
    pub rate: Option<[(HeaderName, &'a HeaderValue); 2]>,
    /// `Via`, if any is to be added.
    pub via: Option<&'a HeaderValue>,
    /// The request's id.
    pub request_id: Option<&'a [u8]>,
    /// The operator's edits.
    pub edits: &'a HeaderEdits,
}

impl AnswerRewrite<'_> {
    /// Of an answer that is not the answer yet: only what is between the backend and us is taken out.
    pub const INTERIM: AnswerRewrite<'static> = AnswerRewrite {
        framing: true,
        trailers: true,
        rate: None,
        via: None,
        request_id: None,
        edits: const { &HeaderEdits { remove: Vec::new(), set: Vec::new(), add: Vec::new() } },
    };
}

impl Rewrite for AnswerRewrite<'_> {
    const OURS: usize = 4;

    #[inline(never)] // asked of few
    fn passes(&self, kind: Kind, name: &[u8]) -> bool {
        let is = |own: HeaderName| same_name(name, own.as_str().as_bytes());
        let passes = match kind {
            Kind::Hop if is(header::TRANSFER_ENCODING) => self.framing,
            Kind::Hop if is(header::TRAILER) => self.trailers,
            Kind::Hop => is(header::PROXY_AUTHENTICATE),
            Kind::Length => self.framing,
            Kind::RequestId => self.request_id.is_none(),
            _ => true,
        };
        passes && !self.edits.replaces(name)
    }

    #[inline(always)] // see `Kind::of`
    fn kind(name: &[u8]) -> Kind {
        Kind::of(name)
    }

    fn passes_plain(&self) -> bool {
        self.edits.replaces_nothing()
    }

    fn ours(&self, to: &mut impl Sink) {
        let to = &mut Unedited { edits: self.edits, to };
        for (name, value) in self.rate.iter().flatten() {
            to.field(name, value);
        }
        sign(self.via, self.request_id, to);
        self.edits.write(to.to);
    }

    fn hops(&self) -> Hops {
        Hops::Here
    }
}
