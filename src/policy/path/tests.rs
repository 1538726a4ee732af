//! The canonical form, what it refuses, what it costs, and what a backend is sent.

use proptest::prelude::*;

use super::*;

#[test]
fn every_spelling_has_one_form() {
    for (sent, form, dots) in [
        ("/", "/", false),
        ("*", "*", false),
        ("/a/b.c", "/a/b.c", false),
        ("//", "/", false),
        ("//a///b", "/a/b", false),
        ("/a/", "/a/", false),
        ("/a//", "/a/", false),
        ("/%61dmin", "/admin", false),
        ("/%7euser", "/~user", false),
        ("/a%2fb", "/a%2Fb", false),
        ("/%2fa", "/%2Fa", false),
        ("/a\\b", "/a%5Cb", false),
        ("/a|b[1]\"", "/a%7Cb%5B1%5D%22", false),
        ("/a/./b", "/a/b", true),
        ("/./", "/", true),
        ("/.", "/", true),
        ("/a/../b", "/b", true),
        ("/a/%2e%2E/b", "/b", true),
        ("/a/.%2e", "/", true),
        ("/a/b/..", "/a/", true),
        ("/a/.", "/a/", true),
        ("/a//..", "/", true),
        ("/.well-known/x", "/.well-known/x", false),
        ("/a/...", "/a/...", false),
        ("/..a/.b", "/..a/.b", false),
        ("/caf\u{e9}", "/caf%C3%A9", false),
        ("/caf%c3%a9", "/caf%C3%A9", false),
        ("/a;v=1/b", "/a;v=1/b", false),
        ("/a+b%2bc", "/a+b%2Bc", false),
        ("/%2561", "/%2561", false),
    ] {
        assert_eq!(canonical(sent), Ok(Canonical { path: form.into(), had_dots: dots }), "{sent}");
    }
}

#[test]
fn what_can_be_two_paths_by_itself_is_refused() {
    for sent in [
        "",
        "a",
        "**",
        "/..",
        "/a/../..",
        "/%2e%2e/",
        "/a b",
        "/a\tb",
        "/\u{7f}",
        "/%00",
        "/%0a",
        "/%7F",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%+1",
        "/%u002e",
        "/a%2f..%2fadmin",
        "/a/..%2fadmin",
        "/a%2f./b",
        "/a%5c..%5cb",
        "/a\\..\\b",
        "/a/..\\b",
        "/a/..;/b",
        "/a/.;x/b",
        "/a/..%3b/b",
        "/a/;x%2F../b",
        "/a/%2e%2e;x%2Fadmin",
        "/%2e%2e%2fadmin",
        "/a/..%5Cb",
        "/a/%C0%AE%C0%AE/b",
        "/a/.%E0%80%AE/b",
        "/a/%F0%80%80%AE%c0%af",
        "/%C0%80",
        "/x/..%c0%bb",
    ] {
        let form = canonical(sent);
        let readings = form.and_then(|form| form.readings());
        assert_eq!(readings, Err(Ambiguous), "{sent}");
    }
}

#[test]
fn usual_paths_cost_no_allocation() {
    for path in [
        "/",
        "*",
        "/index.html",
        "/api/v1/users/42/",
        "/.well-known/acme-challenge/x_Y-z~",
        "/static/app.min.js",
        "/@scope/package",
        "/a,b;".trim_end_matches(';'),
        "/v1/x:delete",
        "/(x)!$&'*+=",
    ] {
        let form = canonical(path).expect("it is canonical");
        assert!(matches!(form.path, Cow::Borrowed(_)), "{path}");
        assert!(matches!(form.key(), Cow::Borrowed(_)), "{path}");
        assert_eq!(form.readings().map(|readings| readings.capacity()), Ok(0), "{path}");
        assert!(std::ptr::eq(form.sent(path, SentPath::Normalized, None).expect("it has no dots"), path), "{path}");
    }
}

#[test]
fn a_key_is_plain_where_a_path_may_be() {
    for (sent, key) in [
        ("/%40scope/x%3Adelete", "/@scope/x:delete"),
        ("/a%2Bb%21", "/a+b!"),
        ("/a%2Fb%3B%20", "/a%2Fb%3B%20"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/[%5d", "/%5B%5D"),
    ] {
        assert_eq!(canonical(sent).expect("it is not ambiguous").key(), key, "{sent}");
        assert_eq!(pattern(key).ok().as_deref(), (!key.contains("%2F")).then_some(key));
    }
}

#[test]
fn a_pattern_has_one_spelling_or_is_none() {
    for (written, canonical) in
        [("/a", "/a"), ("//a/", "/a/"), ("/x/../a", "/a"), ("/%61", "/a"), ("/%40x", "/@x"), ("/a|b", "/a%7Cb")]
    {
        assert_eq!(pattern(written).as_deref(), Ok(canonical), "{written}");
    }
    for written in ["/a;x", "/a%2Fb", "/a\\b", "/a%3B", "/..", "/%00", "/%c0%af"] {
        assert_eq!(pattern(written), Err(Ambiguous), "{written}");
    }
}

#[test]
fn what_some_decoders_take_for_a_parameter_hides_nothing() {
    for sent in ["/x/login%c0%bb%5cz", "/x/login;a/z", "/x/login%3Ba/z", "/x/login%c0%bb/z", "/x/login%c0%bb%2fz"] {
        let readings = canonical(sent).and_then(|form| form.readings()).expect("they are paths");
        assert!(readings.iter().any(|reading| reading == "/x/login"), "{sent}: {readings:?}");
    }
}

#[test]
fn readings_are_what_other_servers_see() {
    for (sent, readings) in [
        ("/a/b", &[][..]),
        ("/a%20b", &[]),
        ("/a%2Fb", &["/a/b"]),
        ("/a%5Cb", &["/a/b"]),
        ("/a;v=1/b", &["/a/b", "/a"]),
        ("/a%3Bv/b", &["/a/b", "/a"]),
        ("/%2Fa", &["/a", "/"]),
        ("/a;b%2Fc", &["/a", "/a;b/c", "/a/c"]),
        // To who leaves out `;a` an authority follows it.
        ("/;a%2Fb/c%2Fd", &["/c%2Fd", "/;a/b/c/d", "/c/d", "/b/c/d", "/", "/d"]),
        ("/%2Fevil/admin", &["/evil/admin", "/admin"]),
        ("/%5Cevil/admin", &["/evil/admin", "/admin"]),
        ("/;/evil/admin", &["/evil/admin", "/admin", "/"]),
        ("/%2F%5C%2Fevil/admin", &["/%5C/evil/admin", "/%2F/%2Fevil/admin", "/evil/admin", "/admin"]),
        ("/site/%2Fevil/admin", &["/site/evil/admin", "/site/admin"]),
        ("/a%2F", &["/a/"]),
        ("/a%2F%2F", &["/a/"]),
        ("/%C1%A1", &["/a"]),
        ("/%C0%AF%E1%80%AF", &["/%E1%80%AF", "/%2F%E1%80%AF", "/"]),
    ] {
        let form = canonical(sent).expect("it is not ambiguous by itself");
        let mut found = form.readings().expect("it has no dots");
        found.sort();
        let mut expected = readings.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{sent}");
    }
}

#[test]
fn targets_have_a_path_and_a_query() {
    let get = Method::GET;
    for (target, parts) in [
        ("/a?b", ("/a", "?b")),
        ("/a", ("/a", "")),
        ("/a?b?c", ("/a", "?b?c")),
        ("/?x=http://b/c", ("/", "?x=http://b/c")),
        ("/http://b/c", ("/http://b/c", "")),
        ("/a#b?c", ("/a", "")),
        ("?x", ("", "?x")),
        ("*", ("*", "")),
        ("http://a.test/b?c", ("/b", "?c")),
        ("http://a.test?c/d", ("/", "?c/d")),
        ("http://a.test", ("/", "")),
        ("http://a.test#x", ("/", "")),
    ] {
        assert_eq!(split_target(&get, target), parts, "{target}");
    }
    assert_eq!(split_target(&Method::OPTIONS, "http://a.test"), ("*", ""));
    assert_eq!(split_target(&Method::OPTIONS, "http://a.test/"), ("/", ""));
}

fn sent(path: &str, how: SentPath, prefix: Option<&str>) -> Result<String, Ambiguous> {
    canonical(path)?.sent(path, how, prefix).map(str::to_owned)
}

#[test]
fn a_backend_gets_the_path_raw_or_normalized() {
    for (path, raw, normalized) in [
        ("/%61//b%2fc;x", Some("/%61//b%2fc;x"), "/a/b%2Fc;x"),
        // No backend takes what follows for an authority.
        ("//evil/admin", Some("/evil/admin"), "/evil/admin"),
        ("///%61//b", Some("/%61//b"), "/a/b"),
        ("//", Some("/"), "/"),
        ("/a%2Bb+c", Some("/a%2Bb+c"), "/a%2Bb+c"),
        ("/x/../a", None, "/a"),
        ("*", Some("*"), "*"),
    ] {
        assert_eq!(sent(path, SentPath::Raw, None).ok().as_deref(), raw, "{path}");
        assert_eq!(sent(path, SentPath::Normalized, None).as_deref(), Ok(normalized), "{path}");
    }
}

#[test]
fn prefixes_are_taken_off_on_borders_however_they_are_spelled() {
    for (path, raw, normalized) in [
        ("/site/x", "/x", "/x"),
        ("/site", "/", "/"),
        ("/site/", "/", "/"),
        ("//site//%78", "/%78", "/x"),
        ("/%73ite/%78//y", "/%78//y", "/x/y"),
        ("/site//evil.test/", "/evil.test/", "/evil.test/"),
        ("/sites", "/sites", "/sites"),
        ("/other//x", "/other//x", "/other/x"),
        ("/site;x/y", "/site;x/y", "/site;x/y"),
        ("*", "*", "*"),
    ] {
        assert_eq!(sent(path, SentPath::Raw, Some("/site")).as_deref(), Ok(raw), "{path}");
        assert_eq!(sent(path, SentPath::Normalized, Some("/site")).as_deref(), Ok(normalized), "{path}");
    }
    assert_eq!(sent("/x/../site/y", SentPath::Raw, Some("/site")), Err(Ambiguous));
    assert_eq!(sent("/x/../site/y", SentPath::Normalized, Some("/site")).as_deref(), Ok("/y"));
    assert_eq!(sent("/%40a/%3ab/c", SentPath::Normalized, Some("/@a/:b")).as_deref(), Ok("/c"));
    assert_eq!(sent("/%40a//%3ab/c", SentPath::Raw, Some("/@a/:b")).as_deref(), Ok("/c"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_form_is_its_own_form(sent in "/[a-z./%@|\\;2eEfF5cC\u{fc}]{0,24}") {
        if let Ok(form) = canonical(&sent) {
            let again = canonical(&form.path).expect("a form is not ambiguous");
            prop_assert_eq!(&again.path, &form.path);
            prop_assert!(!again.had_dots);
            prop_assert!(form.path.starts_with('/') && !form.path.contains("//"));
            let key = form.key().into_owned();
            let again = canonical(&key).expect("a key is not ambiguous");
            prop_assert_eq!(again.key(), key.as_str());
        }
    }

    #[test]
    fn the_fast_way_is_the_slow_way(sent in "/[a./@]{0,12}") {
        let form = canonical(&sent);
        // An escape of a plain character makes the same path take the slow way.
        let slow = canonical(&sent.replace('a', "%61")).map(|form| form.path.into_owned());
        prop_assert_eq!(form.map(|form| form.path.into_owned()), slow);
    }

    #[test]
    fn encoding_what_may_be_plain_changes_no_decision(sent in "/[a-z0-9./~_@:+-]{0,16}", which in any::<u32>()) {
        let encoded: String = sent.bytes().enumerate().map(|(at, byte)| {
            if byte != b'/' && which >> (at % 32) & 1 == 1 { format!("%{byte:02x}") } else { char::from(byte).to_string() }
        }).collect();
        let key = |path: &str| canonical(path).map(|form| form.key().into_owned());
        prop_assert_eq!(key(&sent), key(&encoded));
    }

    #[test]
    fn stripped_raw_and_stripped_normalized_are_the_same_path(tail in "[/a.%2Ff5c;]{0,12}", head in prop::sample::select(vec!["/site", "//%73ite", "/%73i%74e"])) {
        let path = format!("{head}{tail}");
        if let (Ok(raw), Ok(normalized)) =
            (sent(&path, SentPath::Raw, Some("/site")), sent(&path, SentPath::Normalized, Some("/site")))
        {
            prop_assert!(raw.starts_with('/') && !raw.starts_with("//"), "{}", raw);
            prop_assert_eq!(canonical(&raw).expect("the whole was not ambiguous").path, normalized);
        }
    }
}
