//! The head of a client's request on its way to a backend.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    super::{
        fields::Fields,
        forwarded::{
            Hop, Scheme, X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY, X_FORWARDED_FOR,
            X_FORWARDED_HOST, X_FORWARDED_PROTO, write_forwarded, write_x_forwarded_for,
        },
        framing::is_token,
        headers::{HeaderEdits, is_like},
    },
    Hops, Kind, Rewrite, Sink, Unedited, sign, value,
};
use crate::types::AddressText;

/// What is known of a request and its client, and what a backend is to be told of it.
#[derive(Clone, Debug)]
pub struct RequestRewrite<'a, F> {
    /// The fields as the client sent them.
    pub client: &'a F,
    /// Whether the client's words to us are still in the head.
    pub hops: Hops,
    /// The peer; `None` for a unix socket.
    pub peer: Option<&'a AddressText>,
    /// Whether the peer's forwarding fields are kept and added to; otherwise they are replaced.
    pub peer_trusted: bool,
    /// How the peer spoke to us.
    pub hop_scheme: Scheme,
    /// How the client spoke to the first proxy.
    pub scheme: Scheme,
    /// The host the client asked for.
    pub asked_host: Option<&'a str>,
    /// What the backend gets for `Host`; `None` leaves it as it is.
    pub host: Option<&'a [u8]>,
    /// HTTP/2 may split `Cookie`; HTTP/1.1 may not (RFC 9113 §8.2.3).
    pub join_cookies: bool,
    /// The password was for us.
    pub drop_authorization: bool,
    /// Fields that only the service says that was asked who this is; and what others may take for them.
    pub told: &'a [HeaderName],
    /// What it said.
    pub identity: &'a [(HeaderName, HeaderValue)],
    /// The client's certificate.
    pub certificate: ClientCert<'a>,
    /// `Via`, if any is to be added.
    pub via: Option<&'a HeaderValue>,
    /// The request's id.
    pub request_id: Option<&'a [u8]>,
    /// The operator's edits.
    pub edits: &'a HeaderEdits,
}

/// What is said of a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert<'a> {
    /// It was asked for and none was shown.
    None,
    /// Nobody asked.
    NotAsked,
    /// It was good.
    Success {
        /// Its subject.
        subject: &'a HeaderValue,
        /// Its fingerprint.
        fingerprint: &'a HeaderValue,
    },
}

impl ClientCert<'_> {
    /// What `X-Client-Cert-Verify` says where none was shown.
    pub const NONE: &'static [u8] = b"NONE";
    /// And of a good one.
    pub const SUCCESS: &'static [u8] = b"SUCCESS";
}

impl<F: Fields> Rewrite for RequestRewrite<'_, F> {
    const OURS: usize = 8;

    #[inline(never)] // asked of few
    fn passes(&self, kind: Kind, name: &[u8]) -> bool {
        let passes = match kind {
            Kind::Authorization => !self.drop_authorization,
            Kind::ClientCert | Kind::Forged | Kind::Hearsay => false,
            Kind::Cookie => !self.join_cookies,
            Kind::Forwarding => self.peer_trusted,
            Kind::Hop => self.hops == Hops::TakenOut,
            Kind::Host => self.host.is_none(),
            Kind::Length | Kind::Plain => true,
            Kind::RequestId => self.request_id.is_none(),
        };
        passes && !self.is_told(name) && !self.edits.replaces_like(name)
    }

    #[inline]
    fn kind(name: &[u8]) -> Kind {
        Kind::of_client(name)
    }

    fn passes_plain(&self) -> bool {
        self.told.is_empty() && self.edits.replaces_nothing()
    }

    fn ours(&self, to: &mut impl Sink) {
        let to = &mut Unedited { edits: self.edits, to };
        self.forwarding(to);
        for (name, value) in self.identity {
            let joined = self.join_cookies && *name == header::COOKIE;
            if !joined && !self.is_certified(name) {
                to.field(name, value);
            }
        }
        self.certificate(to);
        if self.join_cookies {
            self.cookies(to);
        }
        sign(self.via, self.request_id, to);
        if let Some(host) = self.host {
            to.text(&header::HOST, host);
        }
        self.edits.write(to.to);
    }

    fn hops(&self) -> Hops {
        self.hops
    }
}

impl<F: Fields> RequestRewrite<'_, F> {
    fn is_told(&self, name: &[u8]) -> bool {
        self.told.iter().any(|told| is_like(name, told.as_str().as_bytes()))
    }

    /// X-Forwarded-* and Forwarded: what a trusted peer said is kept and added to, what anyone else said is replaced.
    fn forwarding(&self, to: &mut impl Sink) {
        let (list, structured) = (X_FORWARDED_FOR, header::FORWARDED);
        if self.forwarding_at_once(to) {
            return;
        }
        let said = |line: &[u8]| !line.trim_ascii().is_empty();
        if self.peer.is_some() || self.hearsay(&list).is_some_and(|mut lines| lines.any(said)) {
            to.made(&list, |out| write_x_forwarded_for(self.hearsay(&list), self.peer, out));
        }
        let hop = Hop { peer: self.peer, host: self.asked_host, scheme: self.hop_scheme };
        to.made(&structured, |out| write_forwarded(self.hearsay(&structured), &hop, out));
        let said = |name: &HeaderName| self.peer_trusted && self.client.has(name);
        if !said(&X_FORWARDED_PROTO) {
            to.text(&X_FORWARDED_PROTO, self.scheme.as_str().as_bytes());
        }
        let is_text = |host: &&str| host.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if let Some(host) = self.asked_host.filter(is_text)
            && !said(&X_FORWARDED_HOST)
        {
            to.text(&X_FORWARDED_HOST, host.as_bytes());
        }
    }

    /// The same in one piece, of nearly all requests: of a peer that is not trusted and has an address, where address and host are
    /// tokens, which are written without quotes. Returns whether it was done.
    fn forwarding_at_once(&self, to: &mut impl Sink) -> bool {
        let peer = self.peer.filter(|peer| !self.peer_trusted && !peer.is_ipv6());
        let is_name = |host: &&str| !host.is_empty() && host.bytes().all(is_token);
        let (Some(peer), Some(host)) = (peer, self.asked_host.filter(is_name)) else { return false };
        let (peer, host) = (peer.as_bytes(), host.as_bytes());
        let (hop_scheme, scheme) = (self.hop_scheme.as_str().as_bytes(), self.scheme.as_str().as_bytes());
        to.lines([
            b"x-forwarded-for: ",
            peer,
            b"\r\nforwarded: for=",
            peer,
            b";host=",
            host,
            b";proto=",
            hop_scheme,
            b"\r\nx-forwarded-proto: ",
            scheme,
            b"\r\nx-forwarded-host: ",
            host,
            b"\r\n",
        ])
    }

    /// What the peer said of hops before it; nothing where it is not trusted.
    fn hearsay<'f>(&'f self, name: &'f HeaderName) -> Option<impl Iterator<Item = &'f [u8]>> {
        self.peer_trusted.then(|| self.client.all(name))
    }

    /// The client's certificate, where it was asked for.
    fn certificate(&self, to: &mut impl Sink) {
        let verify: &[u8] = match self.certificate {
            ClientCert::NotAsked => return,
            ClientCert::None => ClientCert::NONE,
            ClientCert::Success { subject, fingerprint } => {
                to.field(&X_CLIENT_CERT_SUBJECT, subject);
                to.field(&X_CLIENT_CERT_FINGERPRINT, fingerprint);
                ClientCert::SUCCESS
            }
        };
        to.text(&X_CLIENT_CERT_VERIFY, verify);
    }

    /// Whether the certificate says it, so that nobody else does.
    fn is_certified(&self, name: &HeaderName) -> bool {
        match self.certificate {
            ClientCert::NotAsked => false,
            ClientCert::None => *name == X_CLIENT_CERT_VERIFY,
            ClientCert::Success { .. } => {
                [X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY].contains(name)
            }
        }
    }

    fn cookies(&self, to: &mut impl Sink) {
        let cookie = header::COOKIE;
        let said = self.client.has(&cookie) && !self.is_told(cookie.as_str().as_bytes());
        let client = said.then(|| self.client.all(&cookie));
        let told = self.identity.iter().filter(|(name, _)| *name == cookie).map(|(_, value)| value.as_bytes());
        let mut crumbs = client.into_iter().flatten().chain(told).peekable();
        if crumbs.peek().is_some() {
            to.made(&header::COOKIE, |out| join(crumbs, out));
        }
    }
}

/// Joins what HTTP/2 may split, in a map.
pub fn join_cookies(fields: &mut HeaderMap) {
    let mut crumbs = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    if crumbs.nth(1).is_some() {
        let mut joined = BytesMut::new();
        join(fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes), &mut joined);
        fields.insert(header::COOKIE, value(joined.freeze()));
    }
}

fn join<'a>(crumbs: impl Iterator<Item = &'a [u8]>, out: &mut BytesMut) {
    for (at, crumb) in crumbs.enumerate() {
        if at > 0 {
            out.put_slice(b"; ");
        }
        out.put_slice(crumb);
    }
}
