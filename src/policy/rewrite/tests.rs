//! Bytes and maps get the same fields as when each edit is made by itself.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    super::{
        fields::{Index, Raw},
        forwarded::{
            Hop, Scheme, X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY, X_FORWARDED_FOR,
            X_FORWARDED_HOST, X_FORWARDED_PROTO, write_forwarded, write_x_forwarded_for,
        },
        headers::{HOP_BY_HOP, is_like},
    },
    *,
};
use crate::types::AddressText;

/// Everything that matters to a proxy, what looks like it, and what does not matter.
const NAMES: [&str; 49] = [
    "X.Real.IP",
    "X.Client.Cert-Verify",
    "Content.Length",
    "CF-Connecting-IP",
    "client_ip",
    "Front-End-Https",
    "True-Client-IP",
    "X-Original-URL",
    "X_Rewrite-Url",
    "Accept",
    "Authorization",
    "close",
    "Connection",
    "connection",
    "Content-Length",
    "content_length",
    "Cookie",
    "COOKIE",
    "Forwarded",
    "Host",
    "host",
    "HTTP2-Settings",
    "Keep-Alive",
    "Proxy",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Set-Cookie",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "transfer_encoding",
    "Upgrade",
    "User-Agent",
    "Via",
    "X-A",
    "X-Client-Cert-Subject",
    "x_client-cert_verify",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Real-IP",
    "x_real_ip",
    "X-Request-Id",
    "x_request-id",
    "X-User",
    "X_User",
];
/// Of these, those that an operator may edit.
const EDITED: [&str; 10] = [
    "accept",
    "authorization",
    "cookie",
    "forwarded",
    "via",
    "x-a",
    "x-b",
    "x-forwarded-for",
    "x-request-id",
    "x-user",
];
/// Those that a service may tell.
const TOLD: [&str; 6] = ["authorization", "cookie", "via", "x-client-cert-verify", "x-tenant", "x-user"];

type Pairs = Vec<(HeaderName, HeaderValue)>;

/// What a [`RequestRewrite`] borrows.
#[derive(Clone, Debug)]
struct Settings {
    peer: Option<AddressText>,
    trusted: bool,
    schemes: (Scheme, Scheme),
    asked: Option<String>,
    host: Option<String>,
    join: bool,
    drop_authorization: bool,
    told: Vec<HeaderName>,
    identity: Pairs,
    certificate: u8,
    via: Option<HeaderValue>,
    id: Option<HeaderValue>,
    edits: HeaderEdits,
}

static WORD: HeaderValue = HeaderValue::from_static("a word");

impl Settings {
    fn rewrite<'a, F>(&'a self, client: &'a F) -> RequestRewrite<'a, F> {
        RequestRewrite {
            client,
            hops: Hops::Here,
            peer: self.peer.as_ref(),
            peer_trusted: self.trusted,
            hop_scheme: self.schemes.0,
            scheme: self.schemes.1,
            asked_host: self.asked.as_deref(),
            host: self.host.as_deref().map(str::as_bytes),
            join_cookies: self.join,
            drop_authorization: self.drop_authorization,
            told: &self.told,
            identity: &self.identity,
            certificate: match self.certificate {
                0 => ClientCert::NotAsked,
                1 => ClientCert::None,
                _ => ClientCert::Success { subject: &WORD, fingerprint: &WORD },
            },
            via: self.via.as_ref(),
            request_id: self.id.as_ref().map(HeaderValue::as_bytes),
            edits: &self.edits,
        }
    }

    /// The same step by step, on a map.
    fn plain(&self, client: &HeaderMap) -> HeaderMap {
        let mut fields = client.clone();
        strip(&mut fields, |_| true);
        remove(&mut fields, |name| is_client_cert_field(name) || is_forged_field(name));
        remove(&mut fields, |name| !self.trusted && is_forwarding_field(name));
        let kept = |name| fields.get_all(name).iter().map(HeaderValue::as_bytes);
        let (mut list, mut structured) = (BytesMut::new(), BytesMut::new());
        write_x_forwarded_for(Some(kept(X_FORWARDED_FOR)), self.peer.as_ref(), &mut list);
        let hop = Hop { peer: self.peer.as_ref(), host: self.asked.as_deref(), scheme: self.schemes.0 };
        write_forwarded(Some(kept(header::FORWARDED)), &hop, &mut structured);
        if !list.is_empty() {
            fields.insert(X_FORWARDED_FOR, value(list.freeze()));
        }
        fields.insert(header::FORWARDED, value(structured.freeze()));
        fields.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(self.schemes.1.as_str()));
        if let Some(host) = &self.asked {
            fields.entry(X_FORWARDED_HOST).or_insert(host.parse().expect("a value"));
        }
        if self.drop_authorization {
            fields.remove(header::AUTHORIZATION);
        }
        remove(&mut fields, |name| {
            self.told.iter().any(|told| is_like(name.as_str().as_bytes(), told.as_str().as_bytes()))
        });
        let edited: Vec<&HeaderName> =
            self.edits.remove.iter().chain(self.edits.set.iter().map(|(name, _)| name)).collect();
        remove(&mut fields, |name| {
            edited.iter().any(|edited| is_like(name.as_str().as_bytes(), edited.as_str().as_bytes()))
        });
        append(&mut fields, &self.identity);
        if self.certificate > 1 {
            fields.insert(X_CLIENT_CERT_SUBJECT, WORD.clone());
            fields.insert(X_CLIENT_CERT_FINGERPRINT, WORD.clone());
        }
        if self.certificate > 0 {
            let verify = if self.certificate > 1 { "SUCCESS" } else { "NONE" };
            fields.insert(X_CLIENT_CERT_VERIFY, HeaderValue::from_static(verify));
        }
        if self.join {
            join_cookies(&mut fields);
        }
        self.via.iter().for_each(|via| _ = fields.append(header::VIA, via.clone()));
        self.id.iter().for_each(|id| _ = fields.insert(X_REQUEST_ID, id.clone()));
        self.host.iter().for_each(|host| _ = fields.insert(header::HOST, host.parse().expect("a value")));
        edit(&mut fields, &self.edits);
        fields
    }
}

#[test]
fn what_speaks_to_the_next_hop_is_known_by_its_name() {
    for name in HOP_BY_HOP.iter().chain(&[header::TRAILER]) {
        assert_eq!(Kind::of(name.as_str().to_ascii_uppercase().as_bytes()), Kind::Hop, "{name}");
    }
}

fn remove(fields: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let gone: Vec<HeaderName> = fields.keys().filter(|name| goes(name)).cloned().collect();
    gone.iter().for_each(|name| _ = fields.remove(name));
}

fn append(fields: &mut HeaderMap, more: &Pairs) {
    more.iter().for_each(|(name, value)| _ = fields.append(name, value.clone()));
}

/// Takes out the hop-by-hop fields that `goes` takes for such.
fn strip(fields: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let nominated: Vec<HeaderName> =
        nominated_by_connection(fields).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    let trailer = [header::TRAILER];
    remove(fields, |name| nominated.contains(name) && *name != header::TRANSFER_ENCODING);
    remove(fields, |name| HOP_BY_HOP.iter().chain(&trailer).any(|hop| hop == name) && goes(name));
    let lengths: Vec<_> = fields.get_all(header::CONTENT_LENGTH).iter().cloned().collect();
    fields.remove(header::CONTENT_LENGTH);
    for length in lengths {
        let mut digits = length.as_bytes();
        while let [b'0', rest @ ..] = digits
            && !rest.is_empty()
        {
            digits = rest;
        }
        fields.append(header::CONTENT_LENGTH, HeaderValue::from_bytes(digits).expect("a value"));
    }
}

fn edit(fields: &mut HeaderMap, edits: &HeaderEdits) {
    edits.remove.iter().for_each(|name| _ = fields.remove(name));
    edits.set.iter().for_each(|(name, value)| _ = fields.insert(name, value.clone()));
    append(fields, &edits.add);
}

fn names(of: &'static [&'static str]) -> impl Strategy<Value = HeaderName> {
    select(of).prop_map(|name| HeaderName::from_bytes(name.as_bytes()).expect("a name"))
}

fn values() -> impl Strategy<Value = HeaderValue> {
    "[a-z0-9=;, \"\\\\]{0,8}".prop_map(|text| text.trim().parse().expect("a value"))
}

fn edits() -> impl Strategy<Value = HeaderEdits> {
    let pairs = || vec((names(&EDITED), values()), 0..3);
    let host = option::of(values()).prop_map(|host| host.map(|host| (header::HOST, host)));
    (vec(names(&EDITED), 0..3), pairs(), host, pairs()).prop_map(|(remove, mut set, host, add)| {
        set.extend(host);
        HeaderEdits { remove, set, add }
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let scheme = || select(&[Scheme::Http, Scheme::Https][..]);
    let told = vec(names(&TOLD), 0..3).prop_flat_map(|told| {
        let pairs = told.iter().map(|name| (Just(name.clone()), values())).collect::<Vec<_>>();
        (Just(told), pairs)
    });
    let who = (option::of(any::<IpAddr>()), any::<bool>(), (scheme(), scheme()));
    let hosts = (option::of("[a-z\\[\\]:\"]{1,6}"), option::of("[a-z]{1,6}"));
    let rest = (any::<(bool, bool)>(), 0..3u8, option::of(values()), option::of(values()), edits());
    (who, hosts, told, rest).prop_map(
        |((peer, trusted, schemes), (asked, host), (told, identity), (flags, certificate, via, id, edits))| Settings {
            peer: peer.map(AddressText::new),
            // A unix socket is nobody to be trusted.
            trusted: trusted && peer.is_some(),
            schemes,
            asked,
            host,
            join: flags.0,
            drop_authorization: flags.1,
            told,
            identity,
            certificate,
            via,
            id,
            edits,
        },
    )
}

/// Lines of a head. What `Connection` has is names.
fn lines() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let line = select(&NAMES[..]).prop_flat_map(|name| {
        let value = if name.eq_ignore_ascii_case("connection") {
            vec(select(&NAMES[..]), 0..3).prop_map(|names| names.join(", ")).boxed()
        } else {
            values().prop_map(|value| value.to_str().expect("text").to_owned()).boxed()
        };
        (Just(name), value)
    });
    vec(line, 0..10)
}

/// A head of these lines, and where its fields are.
fn head(lines: &[(&str, String)]) -> (Vec<u8>, Index) {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in lines {
        head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    indexed(head)
}

fn indexed(mut head: Vec<u8>) -> (Vec<u8>, Index) {
    head.extend_from_slice(b"\r\n");
    let (mut fields, mut index) = ([httparse::EMPTY_HEADER; 64], Index::default());
    let mut request = httparse::Request::new(&mut fields);
    assert!(request.parse(&head).expect("a head").is_complete());
    index.fill(&head, request.headers);
    (head, index)
}

/// The values of each name, in their order. White space around one is none of it (RFC 9112 §5.1): cookies that were joined may
/// end with a blank.
fn multimap(fields: &impl Fields) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in fields.each() {
        all.entry(String::from_utf8_lossy(name).to_lowercase()).or_default().push(value.trim_ascii().to_vec());
    }
    all
}

fn map(fields: &impl Fields) -> HeaderMap {
    let field = |(name, value)| (HeaderName::from_bytes(name).expect("a name"), HeaderValue::from_bytes(value));
    let mut map = HeaderMap::new();
    fields.each().map(field).for_each(|(name, value)| _ = map.append(name, value.expect("a value")));
    map
}

/// What `rewrite` writes of fields.
fn written(rewrite: &impl Rewrite, fields: &impl Fields) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut out = BytesMut::from("GET / HTTP/1.1\r\n");
    rewrite.write(fields, &mut out);
    let (head, index) = indexed(out.to_vec());
    multimap(&Raw::new(&head, &index))
}

proptest! {
    #[test]
    fn bytes_and_map_get_the_same_fields_as_step_by_step(settings in settings(), mut lines in lines()) {
        if settings.join {
            // HTTP/2 has no such field.
            lines.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
        }
        let (head, index) = head(&lines);
        let raw = Raw::new(&head, &index);
        let client = map(&raw);
        let plain = multimap(&settings.plain(&client));
        prop_assert_eq!(&written(&settings.rewrite(&raw), &raw), &plain, "bytes to bytes");
        let rewrite = settings.rewrite(&client);
        prop_assert_eq!(&written(&rewrite, &client), &plain, "map to bytes");
        let mut applied = client.clone();
        rewrite.apply(&mut applied);
        prop_assert_eq!(&multimap(&applied), &plain, "in the map");
        // As where somebody else took the hop-by-hop fields out.
        let mut stripped = client.clone();
        strip(&mut stripped, |_| true);
        RequestRewrite { hops: Hops::TakenOut, ..rewrite }.apply(&mut stripped);
        prop_assert_eq!(&multimap(&stripped), &plain, "in a map without them");
    }

    #[test]
    fn answers_too(
        trailers: bool,
        rate: bool,
        (via, id) in (option::of(values()), option::of(values())),
        mut edits in edits(),
        lines in lines(),
    ) {
        edits.set.retain(|(name, _)| *name != header::HOST);
        let rate = rate.then(|| ["ratelimit-policy", "ratelimit"].map(|name| (HeaderName::from_static(name), &WORD)));
        let (via, id) = (via.as_ref(), id.as_ref());
        let request_id = id.map(HeaderValue::as_bytes);
        let rewrite = AnswerRewrite { framing: true, trailers, rate: rate.clone(), via, request_id, edits: &edits };
        let (head, index) = head(&lines);
        let raw = Raw::new(&head, &index);
        let answer = map(&raw);

        let mut plain = answer.clone();
        strip(&mut plain, |name| {
            ![header::TRANSFER_ENCODING, header::PROXY_AUTHENTICATE, header::TRAILER].contains(name)
        });
        let interim = multimap(&plain);
        rate.iter().flatten().for_each(|(name, value)| _ = plain.append(name, (*value).clone()));
        if !trailers {
            plain.remove(header::TRAILER);
        }
        via.iter().for_each(|via| _ = plain.append(header::VIA, (*via).clone()));
        id.iter().for_each(|id| _ = plain.insert(X_REQUEST_ID, (*id).clone()));
        edit(&mut plain, &edits);

        prop_assert_eq!(&written(&rewrite, &raw), &multimap(&plain), "bytes to bytes");
        let mut applied = answer.clone();
        rewrite.apply(&mut applied);
        prop_assert_eq!(&multimap(&applied), &multimap(&plain), "in the map");
        prop_assert_eq!(&written(&AnswerRewrite::INTERIM, &raw), &interim);

        plain.remove(header::CONTENT_LENGTH);
        plain.remove(header::TRANSFER_ENCODING);
        let rewrite = AnswerRewrite { framing: false, ..rewrite };
        prop_assert_eq!(&written(&rewrite, &raw), &multimap(&plain), "without framing");
    }

    #[test]
    fn a_name_is_of_one_kind_however_it_is_spelled(name in select(&NAMES[..]), upper: u64) {
        let cased = |(at, byte): (usize, u8)| if upper >> at & 1 == 1 { byte.to_ascii_uppercase() } else { byte };
        let spelled: Vec<u8> = name.to_lowercase().bytes().enumerate().map(cased).collect();
        let plain = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        let kind = Kind::of_client(&spelled);
        prop_assert_eq!(kind, Kind::of_client(plain.as_str().as_bytes()));
        prop_assert_eq!(kind == Kind::Hop, HOP_BY_HOP.contains(&plain) || plain == header::TRAILER);
        prop_assert_eq!(kind == Kind::ClientCert, is_client_cert_field(&spelled));
        let forwarding = matches!(kind, Kind::Forged | Kind::Forwarding | Kind::Hearsay);
        prop_assert_eq!(forwarding, is_forwarding_field(&spelled));
        prop_assert_eq!(kind == Kind::Forged, is_forged_field(&spelled));
    }
}

#[test]
fn a_length_is_never_told_in_what_may_be_octal() {
    let interim = AnswerRewrite { framing: true, ..AnswerRewrite::INTERIM };
    for (said, told) in [("010", "10"), ("000", "0"), ("0", "0"), ("00042", "42"), ("42", "42")] {
        let (bytes, index) = head(&[("Content-Length", said.to_owned())]);
        let mut out = BytesMut::new();
        interim.write(&Raw::new(&bytes, &index), &mut out);
        assert_eq!(out, format!("Content-Length: {told}\r\n"));
        let mut fields = HeaderMap::from_iter([(header::CONTENT_LENGTH, said.parse().expect("a value"))]);
        interim.apply(&mut fields);
        assert_eq!(fields[header::CONTENT_LENGTH], told);
    }
}

#[test]
fn a_plain_head_is_written_in_one_piece() {
    let lines =
        [("Host", "example.com"), ("Accept", "*/*"), ("Connection", "keep-alive"), ("X-Forwarded-For", "10.9.9.9")];
    let (head, index) = head(&lines.map(|(name, value)| (name, value.to_owned())));
    let raw = Raw::new(&head, &index);
    let edits = HeaderEdits::default();
    let id = HeaderValue::from_static("1");
    let rewrite = RequestRewrite {
        client: &raw,
        hops: Hops::Here,
        peer: Some(&AddressText::new([192, 0, 2, 1].into())),
        peer_trusted: false,
        hop_scheme: Scheme::Https,
        scheme: Scheme::Https,
        asked_host: Some("example.com"),
        host: None,
        join_cookies: false,
        drop_authorization: false,
        told: &[],
        identity: &[],
        certificate: ClientCert::NotAsked,
        via: None,
        request_id: Some(id.as_bytes()),
        edits: &edits,
    };
    let mut out = BytesMut::new();
    rewrite.write(&raw, &mut out);
    let text = "Host: example.com\r\nAccept: */*\r\nx-forwarded-for: 192.0.2.1\r\n\
        forwarded: for=192.0.2.1;host=example.com;proto=https\r\nx-forwarded-proto: https\r\n\
        x-forwarded-host: example.com\r\nx-request-id: 1\r\n";
    assert_eq!(String::from_utf8_lossy(&out), text);
}

#[test]
fn a_name_that_is_known_by_sight_is_the_same_as_one_that_is_made() {
    for name in [
        "Accept-Ranges",
        "cache-control",
        "Content-Encoding",
        "CONTENT-TYPE",
        "date",
        "etag",
        "Last-Modified",
        "Server",
        "set-cookie",
        "vary",
        "dato",
        "d te",
        "X-Own",
        "",
    ] {
        assert_eq!(known(name.as_bytes()), HeaderName::from_bytes(name.as_bytes()).ok(), "{name}");
    }
}
