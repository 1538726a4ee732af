//! The forms of a line, and that nothing can break them.

use proptest::prelude::*;

use super::*;

fn address(text: &str) -> &'static AddressText {
    Box::leak(Box::new(AddressText::new(text.parse().expect("an address"))))
}

fn record<'a>() -> Record<'a> {
    Record {
        time: UNIX_EPOCH + Duration::from_millis(1_709_251_199_007), // 2024-02-29, the last second
        client: Some(address("192.0.2.1")),
        peer: Some(address("10.0.0.1")),
        method: b"GET",
        host: b"example.com",
        path: b"/a?b=c",
        protocol: "HTTP/1.1",
        status: 200,
        bytes_sent: 1234,
        bytes_received: 0,
        duration: Duration::from_micros(1_002_003),
        upstream: "app",
        backend: "app-1",
        attempts: 1,
        reason: Reason::Ok,
        tls_version: "",
        request_id: b"abc",
        referer: b"",
        user_agent: b"curl/8",
    }
}

fn json(record: &Record<'_>) -> String {
    let mut out = Vec::new();
    write_json(record, &mut ClockText::default(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

fn combined(record: &Record<'_>) -> String {
    let mut out = Vec::new();
    write_combined(record, &mut ClockText::default(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn json_has_every_field() {
    assert_eq!(
        json(&record()),
        concat!(
            r#"{"time":"2024-02-29T23:59:59.007Z","client":"192.0.2.1","peer":"10.0.0.1","method":"GET","host":"example.com","#,
            r#""path":"/a?b=c","protocol":"HTTP/1.1","status":200,"bytes":1234,"bytes_received":0,"#,
            r#""duration":1.002003,"upstream":"app","backend":"app-1","attempts":1,"reason":"ok","tls_version":null,"#,
            r#""request_id":"abc","referer":null,"user_agent":"curl/8"}"#,
            "\n"
        )
    );
}

#[test]
fn combined_is_as_nginx_writes_it() {
    let plain = "192.0.2.1 - - [29/Feb/2024:23:59:59 +0000] \"GET /a?b=c HTTP/1.1\" 200 1234 \"-\" \"curl/8\"\n";
    assert_eq!(combined(&record()), plain);
    let hostile = Record { client: None, path: b"/\"\n\\\xff", status: 0, ..record() };
    assert!(combined(&hostile).starts_with("unix - - ["));
    assert!(combined(&hostile).contains("\"GET /\\x22\\x0A\\x5C\\xFF HTTP/1.1\" 000 "));
    let unread = Record { method: b"", path: b"", status: 400, ..record() };
    assert!(combined(&unread).contains("] \"-\" 400 "));
    let half = Record { path: b"", status: 400, ..record() };
    assert!(combined(&half).contains("] \"GET - HTTP/1.1\" 400 "));
}

#[test]
fn json_escapes_what_could_forge_a_line() {
    let hostile = Record { path: b"/\"\\\n\r\t\0\x7f\xc2\x85\xe2\x80\xa8\xff\xc3\xa9", ..record() };
    let expected = "\"path\":\"/\\\"\\\\\\n\\r\\t\\u0000\\u007f\\u0085\\u2028\u{fffd}\u{e9}\"";
    assert!(json(&hostile).contains(expected), "{}", json(&hostile));
}

#[test]
fn the_clock_follows_the_second_and_keeps_it() {
    let mut clock = ClockText::default();
    for (second, expected) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_400, "2000-02-29T00:00:00"),
        (951_868_800, "2000-03-01T00:00:00"),
        (4_102_444_799, "2099-12-31T23:59:59"),
        (951_868_800, "2000-03-01T00:00:00"),
    ] {
        assert_eq!(clock.update(UNIX_EPOCH + Duration::from_millis(second * 1000 + 9)), 9);
        assert_eq!(std::str::from_utf8(&clock.rfc3339), Ok(expected));
    }
    clock.update(UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(std::str::from_utf8(&clock.combined), Ok("01/Jan/1970:00:00:00 +0000"));
}

#[test]
fn numbers_are_whole_and_padded() {
    for (number, expected) in
        [(0, "0"), (7, "7"), (10, "10"), (1234, "1234"), (99_999, "99999"), (u64::MAX, "18446744073709551615")]
    {
        let mut out = Vec::new();
        Line::write(&[], true, &mut out, |line| line.number(number));
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
    let mut out = Vec::new();
    Line::write(&[], true, &mut out, |line| line.digits::<3>(7).digits::<6>(1002));
    assert_eq!(out, b"007001002");
}

#[test]
fn the_longest_line_has_room() {
    let longest = Record {
        client: Some(address("1111:2222:3333:4444:5555:6666:7777:8888")),
        peer: Some(address("1111:2222:3333:4444:5555:6666:7777:8888")),
        method: &[0; 300],
        host: &[0; 300],
        path: &[0; 300],
        status: u16::MAX,
        bytes_sent: u64::MAX,
        bytes_received: u64::MAX,
        duration: Duration::MAX,
        attempts: u32::MAX,
        reason: *Reason::ALL.iter().max_by_key(|reason| reason.as_str().len()).expect("there are some"),
        tls_version: "TLSv1.3",
        request_id: &[0; 300],
        referer: &[0; 300],
        user_agent: &[0; 300],
        ..record()
    };
    let room = Line::MOST + (3 + 5 + 6 * 300) * Line::ESCAPED;
    assert!(json(&longest).len() <= room - 64 && combined(&longest).len() <= room);
}

proptest! {
    #[test]
    fn no_bytes_forge_a_line(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let hostile = Record {
            method: &bytes, host: &bytes, path: &bytes, request_id: &bytes, referer: &bytes, user_agent: &bytes, ..record()
        };
        for line in [json(&hostile), combined(&hostile)] {
            let body = line.strip_suffix('\n').expect("a line feed ends it");
            let forges = |letter: char| letter.is_control() || ('\u{2028}'..='\u{2029}').contains(&letter);
            prop_assert!(!body.contains(forges));
        }
        // Every quote that is not escaped belongs to the form: 2 per key and 2 per text.
        let text = json(&hostile).replace("\\\\", "").replace("\\\"", "");
        let nulls = text.matches(":null").count();
        prop_assert_eq!(text.matches('"').count(), 2 * 19 + 2 * (14 - nulls));
        prop_assert_eq!(combined(&hostile).matches('"').count(), 6);
    }
}
