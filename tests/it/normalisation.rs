//! However a path or a host is spelled, the plain spelling's route takes the request, or nobody does; and what the origin
//! is sent. `/admin` is forbidden here, everything else goes to an origin.

use http::Request;

use crate::support::{
    http1::{Client, Message},
    http2::{Client2, Origin2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    tls::Ca,
};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// 403, by the route of `/admin`.
    Forbidden,
    /// 400, by nobody's route.
    Refused,
    /// This is what the origin was asked for.
    Sent(&'static str),
    /// The origin was asked for what the client sent.
    Same,
}
use Is::{Forbidden, Refused, Same, Sent};

/// A path, what becomes of it where it is sent on raw, and where it is sent on normalized.
const SPELLINGS: &[(&str, Is, Is)] = &[
    // The plain ones.
    ("/", Same, Same),
    ("/admin", Forbidden, Forbidden),
    ("/admin/", Forbidden, Forbidden),
    ("/admin/x", Forbidden, Forbidden),
    ("/admin?x", Forbidden, Forbidden),
    ("/admins", Same, Same),
    ("/x/admin", Same, Same),
    ("/?/../admin", Same, Same),
    ("/x?a=%2e%2e%2f&b=//%61", Same, Same),
    // Case matters in paths.
    ("/ADMIN", Same, Same),
    // Characters that need no encoding.
    ("/%61dmin", Forbidden, Forbidden),
    ("/%61%64%6D%69%6e/x", Forbidden, Forbidden),
    ("/%78/%7Ey", Same, Sent("/x/~y")),
    ("/a%2Bb+c%40@", Same, Same),
    // Slashes.
    ("//admin", Forbidden, Forbidden),
    ("///admin//x", Forbidden, Forbidden),
    ("/admin//", Forbidden, Forbidden),
    ("//x//y/", Sent("/x//y/"), Sent("/x/y/")),
    // No origin takes `evil` for the authority of a URL.
    ("//evil/admin", Sent("/evil/admin"), Sent("/evil/admin")),
    ("///evil/admin?//x", Sent("/evil/admin?//x"), Sent("/evil/admin?//x")),
    ("/x//evil/admin", Same, Sent("/x/evil/admin")),
    // Dot segments.
    ("/./admin", Forbidden, Forbidden),
    ("/x/../admin", Forbidden, Forbidden),
    ("/x/%2e%2e/admin", Forbidden, Forbidden),
    ("/x/.%2E/%2e/admin", Forbidden, Forbidden),
    ("/x//../admin", Forbidden, Forbidden),
    ("/admin/../x", Refused, Sent("/x")),
    ("/x/./y/..", Refused, Sent("/x/")),
    ("/x/.", Refused, Sent("/x/")),
    ("/..", Refused, Refused),
    ("/../admin", Refused, Refused),
    ("/%2e%2e/%2e%2e/admin", Refused, Refused),
    ("/.../admin", Same, Same),
    ("/.well-known/x", Same, Same),
    // Encoded slashes.
    ("/%2fadmin", Refused, Refused),
    ("/%2fevil/admin", Refused, Refused),
    ("/%2F%2fevil/admin", Refused, Refused),
    ("/.//evil/admin", Refused, Sent("/evil/admin")),
    ("/x/..//evil/admin", Refused, Sent("/evil/admin")),
    ("/%2fevil/x", Same, Sent("/%2Fevil/x")),
    ("/%2Fadmin", Refused, Refused),
    ("/admin%2fx", Refused, Refused),
    ("/admin%2f", Refused, Refused),
    ("/x%2fadmin", Same, Sent("/x%2Fadmin")),
    ("/x%2F..%2Fadmin", Refused, Refused),
    ("/x/..%2fadmin", Refused, Refused),
    ("/x%2f../admin", Refused, Refused),
    ("/admin/x%2Fy", Forbidden, Forbidden),
    // Backslashes.
    ("/\\admin", Refused, Refused),
    ("/%5cadmin", Refused, Refused),
    ("/%5cevil/admin", Refused, Refused),
    ("/admin\\x", Refused, Refused),
    ("/x\\..\\admin", Refused, Refused),
    ("/x/..%5Cadmin", Refused, Refused),
    ("/x\\y", Refused, Refused),
    ("/x%5Cy", Same, Same),
    // Parameters.
    ("/admin;x", Refused, Refused),
    ("/admin;x/y", Refused, Refused),
    ("/;x/admin", Refused, Refused),
    ("/;x/evil/admin", Refused, Refused),
    ("/admin%3bx", Refused, Refused),
    ("/x/..;/admin", Refused, Refused),
    ("/x/..;y=z/admin", Refused, Refused),
    ("/x/%2e%2e;/admin", Refused, Refused),
    ("/;a%2Fb/admin%2Fx", Refused, Refused),
    ("/admin/;x", Forbidden, Forbidden),
    ("/x;jsessionid=1/y", Same, Same),
    // White space and control characters.
    ("/admin%20", Same, Same),
    ("/admin%00", Refused, Refused),
    ("/admin%0a", Refused, Refused),
    ("/admin%09/x", Refused, Refused),
    ("/%7f", Refused, Refused),
    // Encoded twice: a backend that decodes once does not see `/admin`.
    ("/%2561dmin", Same, Same),
    ("/x/%252e%252e/admin", Same, Same),
    // No encoding at all.
    ("/%zz", Refused, Refused),
    ("/admin%", Refused, Refused),
    ("/%u0061dmin", Refused, Refused),
    // UTF-8, also longer than needed.
    ("/caf%C3%A9", Same, Same),
    ("/caf%c3%a9", Same, Sent("/caf%C3%A9")),
    ("/caf%E9", Same, Same),
    ("/%C1%A1dmin", Refused, Refused),
    ("/admin%C0%AFx", Refused, Refused),
    ("/%e0%80%afadmin", Refused, Refused),
    ("/%F0%80%80%AFadmin", Refused, Refused),
    ("/x/%C0%AE%C0%AE/admin", Refused, Refused),
    ("/x/%C0%AEy", Same, Same),
    // What no URL has plain.
    ("/a|b", Same, Sent("/a%7Cb")),
];

/// In HTTP/2 a fragment is gone before it is sent, and other letters than ASCII are read as what they are encoded as.
const HTTP2_ONLY: &[(&str, Is, Is)] = &[("/admin#x", Forbidden, Forbidden), ("/caf\u{e9}", Refused, Refused)];

/// Only in HTTP/1.1 a client can say this, or is refused for it.
const HTTP1_ONLY: &[(&str, Is, Is)] = &[
    ("/admin#x", Refused, Refused),
    ("/caf\u{e9}", Refused, Refused),
    ("admin", Refused, Refused),
    ("\\admin", Refused, Refused),
    ("?/admin", Refused, Refused),
    ("*", Refused, Refused),
    ("http://a.test/admin", Forbidden, Forbidden),
    ("http://a.test/%61dmin?x", Forbidden, Forbidden),
    ("http://a.test//admin", Forbidden, Forbidden),
    ("http://a.test/x/../admin", Forbidden, Forbidden),
    ("http://a.test/admin/../x", Refused, Sent("/x")),
    ("http://a.test/x%2fy?q", Sent("/x%2fy?q"), Sent("/x%2Fy?q")),
    ("http://a.test", Sent("/"), Sent("/")),
    ("http://a.test?/admin", Sent("/?/admin"), Sent("/?/admin")),
    ("http://b.test/admin", Refused, Refused),
    ("http:/admin", Refused, Refused),
    ("http:\\\\a.test/admin", Refused, Refused),
    ("//a.test/admin", Sent("/a.test/admin"), Sent("/a.test/admin")),
    ("http://a.test//evil/admin", Sent("/evil/admin"), Sent("/evil/admin")),
];

async fn before(origin: &Origin, form: &str) -> Proxy {
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        upstreams: { app: { backends: [\"<a>\"] } }
        routes:
          - { match: { path: /admin }, respond: { status: 403 } }
          - { upstream: app, path: <form> }";
    Config::new(yaml).put("a", &origin.address).put("form", form).start().await
}

/// What became of the request whose answer this is.
fn seen(origin: &Origin, before: usize, status: u16, sent: &str) -> String {
    let requests = origin.requests();
    match (status, requests.get(before..)) {
        (200, Some([request])) if request.target() == sent => "as it is".to_owned(),
        (200, Some([request])) => format!("sent {}", request.target()),
        (status, Some([])) => status.to_string(),
        other => format!("{other:?}"),
    }
}

fn expected(is: Is, sent: &str) -> String {
    match is {
        Forbidden => "403".to_owned(),
        Refused => "400".to_owned(),
        Sent(target) if target != sent => format!("sent {target}"),
        Sent(_) | Same => "as it is".to_owned(),
    }
}

#[tokio::test]
async fn http1_spellings_take_their_plain_route_or_none() {
    let mut wrong = Vec::new();
    for form in ["raw", "normalized"] {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, form).await;
        for &(target, raw, normalized) in SPELLINGS.iter().chain(HTTP1_ONLY) {
            let is = if form == "raw" { raw } else { normalized };
            let count = origin.total();
            let reply = proxy.get(target).await;
            let found = seen(&origin, count, reply.status(), target);
            if found != expected(is, target) {
                wrong.push(format!("{form} {target}: {found}, expected {is:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn http2_spellings_take_their_plain_route_or_none() {
    let mut wrong = Vec::new();
    for form in ["raw", "normalized"] {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, form).await;
        let client = Client2::prior(proxy.listen).await;
        for &(target, raw, normalized) in SPELLINGS.iter().chain(HTTP2_ONLY) {
            let is = if form == "raw" { raw } else { normalized };
            let count = origin.total();
            let reply = client.get(target).await;
            // A client leaves the fragment out, so only what comes after it could differ.
            let found = seen(&origin, count, reply.status, target);
            if found != expected(is, target) {
                wrong.push(format!("{form} {target}: {found}, expected {is:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "raw").await;
    for target in [&b"/caf\xe9"[..], b"/\xc0\xafadmin", b"/x/\xc0\xae\xc0\xae/admin", b"/a\x00b", b"/a\x7fb", b"/a\tb"]
    {
        let request = [b"GET ", target, b" HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat();
        let reply = Client::connect(proxy.listen).await.ask(request).await;
        assert_eq!(reply.status(), 400, "{}", String::from_utf8_lossy(target));
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn options_of_everything_goes_to_the_origin_as_a_star() {
    let origin = Origin::echo("a").await;
    for form in ["raw", "normalized"] {
        let proxy = before(&origin, form).await;
        for target in ["*", "http://a.test"] {
            let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: a.test\r\n\r\n");
            assert_eq!(proxy.client().await.ask(request).await.status(), 200, "{target}");
            assert_eq!(origin.requests().last().map(Message::target), Some("*"), "{target}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_says_why() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "raw").await;
    let reply = proxy.get("/admin%2Fx").await;
    assert_eq!(reply.status(), 400);
    assert!(reply.field("proxy-status").is_some_and(|said| said.contains("ambiguous_path")), "{reply:?}");
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!((line["reason"].as_str(), line["path"].as_str()), (Some("ambiguous_path"), Some("/admin%2Fx")));
    proxy.metric("rrlb_failures_total", &["reason=\"ambiguous_path\""], |count| count >= 1.0).await;
}

#[tokio::test]
async fn the_log_has_a_target_as_it_came() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "raw").await;
    assert_eq!(proxy.get("//evil//%61").await.status(), 200);
    assert_eq!(origin.only_request().target(), "/evil//%61");
    assert_eq!(proxy.access_log(1).await[0]["path"], "//evil//%61");
}

/// What nginx sees of a target, and what a servlet container sees.
fn readers(target: &str) -> [String; 2] {
    let path = target.split('?').next().unwrap_or_default();
    let cut =
        |path: &str| path.split('/').map(|s| s.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/");
    [decoded(path), decoded(&cut(path))]
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = (byte == b'%').then(|| std::str::from_utf8(&after[..2]).expect("digits"));
        bytes.push(digits.map_or(byte, |digits| u8::from_str_radix(digits, 16).expect("digits")));
        rest = if digits.is_some() { &after[2..] } else { after };
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut segments = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
}

#[tokio::test]
async fn no_mixture_of_tricks_shows_an_origin_what_is_forbidden() {
    const PIECES: [&str; 20] = [
        "/", "/", "//", "/admin", "admin", "%61dmin", "x", "/x", ".", "/..", "%2e", "%2f", "%2F", "\\", "%5C", ";",
        ";v", "%3b", "%252f", "%C0%AF",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for form in ["raw", "normalized"] {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, form).await;
        let mut client = proxy.client().await;
        let mut outcomes = [0; 3];
        for _ in 0..1500 {
            let count = 1 + random(6);
            let target = format!("/{}", (0..count).map(|_| PIECES[random(PIECES.len())]).collect::<String>());
            let reply = client.get(&target).await;
            outcomes[[200, 400, 403].iter().position(|s| *s == reply.status()).expect("one of these")] += 1;
            if reply.fields("connection").contains(&"close") {
                client = proxy.client().await;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 50), "{outcomes:?}");
        assert_eq!(origin.total(), outcomes[0]);
        for request in origin.requests() {
            for seen in readers(request.target()) {
                assert!(seen != "/admin" && !seen.starts_with("/admin/"), "{form}: {} is {seen}", request.target());
            }
        }
    }
}

#[tokio::test]
async fn a_prefix_is_stripped_however_it_was_spelled() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        upstreams: { app: { backends: [\"<a>\"] } }
        routes:
          - { match: { host: raw.test, path: /my/site }, strip_prefix: /my/site, upstream: app }
          - { match: { path: /my/site }, strip_prefix: /my/site, upstream: app, path: normalized }
          - { respond: { status: 404 } }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    for (target, raw, normalized) in [
        ("/my/site/x?q=%61", "/x?q=%61", "/x?q=%61"),
        ("//my//%73ite//%78//y", "/%78//y", "/x/y"),
        ("/my/site?q", "/?q", "/?q"),
        ("/my/site//evil.test", "/evil.test", "/evil.test"),
        ("/my/../my/site/x", "", "/x"),
        ("/my/site/../site/x", "", "/x"),
        ("/my%2Fsite/x", "", ""),
        ("/my/site;v/x", "", ""),
    ] {
        for (host, expected) in [("raw.test", raw), ("a.test", normalized)] {
            let count = origin.total();
            let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let status = proxy.client().await.ask(request).await.status();
            let sent = origin.requests().split_off(count);
            assert_eq!(status, if expected.is_empty() { 400 } else { 200 }, "{host}{target}");
            let sent: Vec<&str> = sent.iter().map(Message::target).collect();
            assert_eq!(sent, if expected.is_empty() { vec![] } else { vec![expected] }, "{host}{target}");
        }
    }
    // A prefix that is not there is not taken off, and nothing is answered twice.
    assert_eq!(proxy.get("/my/sites").await.status(), 404);
}

#[tokio::test]
async fn an_http2_origin_gets_the_same_paths() {
    let origin = Origin2::start("a", None).await;
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        upstreams: { app: { backends: [\"<a>\"], protocol: h2c } }
        routes:
          - { match: { path: /raw }, upstream: app }
          - { upstream: app, path: normalized }";
    let proxy = Config::new(yaml).put("a", origin.address).start().await;
    let client = Client2::prior(proxy.listen).await;
    let cases = [("/raw//%78?%61", "/raw//%78?%61"), ("/y//%78?%61", "/y/x?%61"), ("/raw/../z", "/z")];
    for (target, sent) in cases {
        assert_eq!(client.get(target).await.status, 200, "{target}");
        assert_eq!(proxy.get(target).await.status(), 200, "{target}");
        assert_eq!(proxy.get(&format!("http://a.test{target}")).await.status(), 200, "{target}");
        let seen = origin.requests();
        let last: Vec<&str> = seen.iter().rev().take(3).map(|seen| seen.path.as_str()).collect();
        assert_eq!(last, [sent; 3], "{target}");
        assert!(seen.iter().all(|seen| seen.authority.as_deref() == Some("a.test")), "{seen:?}");
    }
}

#[tokio::test]
async fn every_spelling_of_a_host_takes_its_route() {
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        routes:
          - { match: { host: [a.test, \"[2001:db8::1]\"] }, respond: { status: 403 } }
          - { respond: { status: 404 } }";
    let proxy = Config::new(yaml).start().await;
    let client = Client2::prior(proxy.listen).await;
    for (host, status) in [
        ("a.test", 403),
        ("A.Test", 403),
        ("a.test.", 403),
        ("a.test:8080", 403),
        ("A.TEST.:80", 403),
        ("a.test:", 403),
        ("[2001:db8::1]", 403),
        ("[2001:DB8:0:0:0:0:0:1]:443", 403),
        ("%61.test", 400),
        ("b.test", 404),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(proxy.client().await.ask(request).await.status(), status, "HTTP/1.1 {host}");
        if host.contains('%') {
            // No `:authority` to the client's library.
            continue;
        }
        let request = Request::get(format!("http://{host}/")).body(()).expect("an authority");
        assert_eq!(client.send(request, vec![], None).await.status, status, "HTTP/2 {host}");
    }
}

#[tokio::test]
async fn a_redirect_to_https_keeps_the_target_as_it_came() {
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true, redirect_https: true }]
        routes: [{ respond: { status: 404 } }]";
    let proxy = Config::new(yaml).start().await;
    let client = Client2::prior(proxy.listen).await;
    for target in ["/%61//b/../c;x%2Fy?q=//%41", "/"] {
        let location = format!("https://a.test{target}");
        assert_eq!(proxy.get(target).await.field("location"), Some(location.as_str()));
        assert_eq!(client.send(request("GET", target), vec![], None).await.field("location"), Some(location.as_str()));
    }
    let reply = proxy.client().await.ask("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(reply.field("location"), Some("https://a.test"));
}

/// With more than one way of speaking TLS to backends, a request is routed before it comes to its proxy.
#[tokio::test]
async fn the_tls_settings_are_those_of_the_route_however_it_is_spelled() {
    let (one, two) = (Ca::new(), Ca::new());
    let (a, b) = (
        Origin::tls("a", one.issue(&["origin.test"]).server(&["http/1.1"])).await,
        Origin::tls("b", two.issue(&["origin.test"]).server(&["http/1.1"])).await,
    );
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        upstreams:
          a: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <one> } }
          b: { backends: [\"<b>\"], tls: { sni: origin.test, ca: <two> } }
        routes:
          - { match: { path: /b, host: a.test }, upstream: b, path: normalized }
          - { upstream: a }";
    let config = Config::new(yaml).put("a", &a.address).put("b", &b.address);
    let first = one.write(config.dir());
    let (one, two_path) = (config.dir().join("one.pem"), config.dir().join("two.pem"));
    std::fs::rename(first, &one).expect("the folder is ours");
    std::fs::rename(two.write(config.dir()), &two_path).expect("the folder is ours");
    let proxy = config.put("one", one.display()).put("two", two_path.display()).start().await;
    let client = Client2::prior(proxy.listen).await;
    for (target, origin) in
        [("/b", "b"), ("/%62/x", "b"), ("//b", "b"), ("/x/../b", "b"), ("/c", "a"), ("/c%2Fb", "a"), ("/c?/b", "a")]
    {
        let reply = proxy.get(target).await;
        assert_eq!((reply.status(), reply.origin()), (200, origin), "HTTP/1.1 {target}");
        let reply = proxy.get(&format!("http://a.test{target}")).await;
        assert_eq!((reply.status(), reply.origin()), (200, origin), "absolute {target}");
        let reply = client.get(target).await;
        assert_eq!((reply.status, reply.field("x-origin")), (200, Some(origin)), "HTTP/2 {target}");
    }
    let star = proxy.client().await.ask("OPTIONS http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((star.status(), star.origin()), (200, "a"));
}
