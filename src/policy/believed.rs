//! The fields of a request as its backend will get them, as far as who they are from matters: what tells of clients and hops
//! only where the peer is trusted, what tells of the client's certificate by our own word, and what a service that was asked has
//! said in place of what the client did. Routes match by them and limits count by them, so that nobody is another by saying so.

use http::{HeaderName, HeaderValue};

use super::{
    fields::Fields,
    forwarded::{is_client_cert_field, is_forged_field, is_forwarding_field},
    headers::{is_like, nominated_by_connection},
    rewrite::ClientCert,
};

/// See above.
#[derive(Debug)]
pub struct Believed<'a, F> {
    /// The fields as the client sent them.
    pub sent: &'a F,
    /// Whether the peer's forwarding fields are believed.
    pub peer_trusted: bool,
    /// The client's certificate.
    pub certificate: ClientCert<'a>,
    /// Fields that only the service says that was asked who this is; and what others may take for them.
    pub told: &'a [HeaderName],
    /// What it said.
    pub identity: &'a [(HeaderName, HeaderValue)],
}

/// Whether it depends on more than the client's words what a field of this name says; see [`Believed`].
pub fn is_doubtful(name: &HeaderName) -> bool {
    is_forwarding_field(name) || is_client_cert_field(name)
}

impl<F: Fields> Believed<'_, F> {
    fn is_believed(&self, name: &[u8]) -> bool {
        !is_client_cert_field(name)
            && !is_forged_field(name)
            && (self.peer_trusted || !is_forwarding_field(name))
            && !self.told.iter().any(|told| is_like(name, told.as_str().as_bytes()))
            // It stays behind here (RFC 9110 §7.6.1).
            && !nominated_by_connection(self.sent).any(|nominated| nominated.eq_ignore_ascii_case(name))
    }

    /// What we say of the client's certificate.
    fn certificate(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        let (subject, fingerprint, verify) = match self.certificate {
            ClientCert::NotAsked => (None, None, None),
            ClientCert::None => (None, None, Some(ClientCert::NONE)),
            ClientCert::Success { subject, fingerprint } => {
                (Some(subject.as_bytes()), Some(fingerprint.as_bytes()), Some(ClientCert::SUCCESS))
            }
        };
        let lines = [
            (&b"x-client-cert-fingerprint"[..], fingerprint),
            (&b"x-client-cert-subject"[..], subject),
            (&b"x-client-cert-verify"[..], verify),
        ];
        lines.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    fn said<'s>(&'s self, name: &'s HeaderName) -> impl DoubleEndedIterator<Item = &'s [u8]> {
        let said = self.identity.iter().filter(move |(said, _)| said == name && !is_client_cert_field(name));
        let certificate = self.certificate().filter(move |(said, _)| *said == name.as_str().as_bytes());
        said.map(|(_, value)| value.as_bytes()).chain(certificate.map(|(_, value)| value))
    }
}

impl<F: Fields> Fields for Believed<'_, F> {
    fn all<'s>(&'s self, name: &'s HeaderName) -> impl DoubleEndedIterator<Item = &'s [u8]> {
        let sent = self.is_believed(name.as_str().as_bytes()).then(|| self.sent.all(name));
        sent.into_iter().flatten().chain(self.said(name))
    }

    fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let sent = self.sent.each().filter(|(name, _)| self.is_believed(name));
        let said = self.identity.iter().filter(|(name, _)| !is_client_cert_field(name));
        let said = said.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        sent.chain(said).chain(self.certificate())
    }

    fn count(&self) -> usize {
        self.each().count()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn seen(believed: &Believed<'_, HeaderMap>) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for (name, _) in believed.each() {
            let name = HeaderName::from_bytes(name).expect("a name");
            let one_by_one = believed.each().filter(|(other, _)| *other == name.as_str().as_bytes());
            let one_by_one: Vec<_> = one_by_one.map(|(_, value)| value).collect();
            assert_eq!(believed.all(&name).collect::<Vec<_>>(), one_by_one, "{name}");
        }
        let mut seen: Vec<_> = believed.each().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
        seen.sort_unstable();
        seen
    }

    #[test]
    fn what_is_seen_is_what_a_backend_gets() {
        let mut sent = HeaderMap::new();
        for name in
            ["x-real-ip", "x_real_ip", "x-client-cert-verify", "x_client_cert_subject", "x-user", "x_user", "x-a"]
        {
            sent.append(HeaderName::from_static(name), HeaderValue::from_static("client"));
        }
        for name in ["connection", "x-left"] {
            sent.append(HeaderName::from_static(name), HeaderValue::from_static("X-Left, connection"));
        }
        let told = [HeaderName::from_static("x-user")];
        let identity = [(told[0].clone(), HeaderValue::from_static("service"))];
        let (subject, fingerprint) = (HeaderValue::from_static("CN=a"), HeaderValue::from_static("00"));
        let mut believed = Believed {
            sent: &sent,
            peer_trusted: false,
            certificate: ClientCert::NotAsked,
            told: &told,
            identity: &[],
        };
        assert_eq!(seen(&believed), ["x-a=client"]);
        assert!(!believed.has(&told[0]), "nobody has said it yet");
        believed.peer_trusted = true;
        believed.identity = &identity;
        believed.certificate = ClientCert::None;
        let all = ["x-a=client", "x-client-cert-verify=NONE", "x-real-ip=client", "x-user=service"];
        assert_eq!(seen(&believed), all, "no name that is only like one");
        believed.certificate = ClientCert::Success { subject: &subject, fingerprint: &fingerprint };
        let certified = ["x-client-cert-fingerprint=00", "x-client-cert-subject=CN=a", "x-client-cert-verify=SUCCESS"];
        assert_eq!(&seen(&believed)[1..4], certified);
    }
}
