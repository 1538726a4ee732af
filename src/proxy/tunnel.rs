//! A WebSocket over one HTTP/2 stream (RFC 8441): what asks for it becomes the upgrade that backends on HTTP/1.1 know, with a key
//! of ours in place of the client's, which has none.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Method, Uri, Version, header, request::Parts};

use crate::types::Reason;

/// The key of an upgrade that we ask for (RFC 6455 §4.1), kept with its request.
#[derive(Clone, Debug)]
pub struct Key(String);

impl Key {
    /// Whether a backend that switches protocols has read this key.
    pub(super) fn is_answered(&self, said: Option<&HeaderValue>) -> bool {
        said.is_some_and(|said| said.as_bytes() == self.answer().as_bytes())
    }

    fn answer(&self) -> String {
        const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
        STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, [&self.0, GUID].concat().as_bytes()))
    }
}

/// Why a CONNECT of HTTP/2 is refused; `None` where it asks for a WebSocket (RFC 8441), the one protocol that is known here.
pub fn refused(request: &Parts) -> Option<Reason> {
    match request.extensions.get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str) {
        None => Some(Reason::MethodNotAllowed),
        Some("websocket") => None,
        Some(_) => Some(Reason::ProtocolUnknown),
    }
}

/// Whether a request was made of one that came over HTTP/2.
pub(super) fn is_tunnel(request: &Parts) -> bool {
    request.extensions.get::<Key>().is_some()
}

/// Makes the upgrade of a well-formed extended CONNECT.
pub fn into_upgrade(request: &mut Parts, random: u128) {
    let key = STANDARD.encode(random.to_be_bytes());
    let fields = &mut request.headers;
    fields.remove(header::CONTENT_LENGTH);
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(value) = HeaderValue::from_str(&key) {
        fields.insert(header::SEC_WEBSOCKET_KEY, value);
    }
    fields.entry(header::SEC_WEBSOCKET_VERSION).or_insert(const { HeaderValue::from_static("13") });
    let host = request.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        fields.insert(header::HOST, host);
    }
    if let Some(target) = request.uri.path_and_query() {
        request.uri = Uri::from(target.clone());
    }
    (request.method, request.version) = (Method::GET, Version::HTTP_11);
    request.extensions.insert(Key(key));
}

/// Fields of a backend's answer that are between it and us.
pub const HANDSHAKE: [HeaderName; 3] = [header::CONNECTION, header::SEC_WEBSOCKET_ACCEPT, header::UPGRADE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_in_rfc_6455() {
        let key = Key("dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        let said = |text: &'static str| HeaderValue::from_static(text);
        assert!(key.is_answered(Some(&said("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))));
        assert!(!key.is_answered(Some(&said("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="))) && !key.is_answered(None));
    }

    #[test]
    fn an_extended_connect_becomes_an_upgrade() {
        let request =
            http::Request::builder().method("CONNECT").uri("https://a.test/chat?x=1").version(Version::HTTP_2);
        let mut request = request.body(()).expect("a request").into_parts().0;
        assert_eq!(refused(&request), Some(Reason::MethodNotAllowed));
        request.extensions.insert(h2::ext::Protocol::from_static("websocket"));
        assert_eq!(refused(&request), None);
        into_upgrade(&mut request, 1);
        assert_eq!((request.method.as_str(), request.uri.to_string().as_str()), ("GET", "/chat?x=1"));
        let fields = [("host", "a.test"), ("upgrade", "websocket"), ("connection", "upgrade")];
        for (name, value) in fields.into_iter().chain([("sec-websocket-version", "13")]) {
            assert_eq!(request.headers[name], value, "{name}");
        }
        assert_eq!(request.headers["sec-websocket-key"], "AAAAAAAAAAAAAAAAAAAAAQ==");
        assert!(is_tunnel(&request));
    }
}
