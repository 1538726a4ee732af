//! Which hashes are taken, which credentials pass, and what the cache keeps.

use std::time::Instant;

use argon2::password_hash::{PasswordHasher as _, SaltString};
use http::HeaderMap;

use super::*;

fn bcrypt_of_secret(version: &str) -> String {
    let parts = bcrypt::hash_with_salt("secret", 4, *b"0123456789abcdef").expect("a hash");
    let text = parts.format_for_version(bcrypt::Version::TwoB);
    text.replacen("$2b$", &format!("${version}$"), 1)
}

fn argon2_of(password: &str) -> String {
    argon2_in(argon2::Version::V0x13, password)
}

fn argon2_in(version: argon2::Version, password: &str) -> String {
    let salt = SaltString::encode_b64(b"0123456789abcdef").expect("a salt");
    let params = argon2::Params::new(8, 1, 1, None).expect("parameters");
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, version, params);
    argon2.hash_password(password.as_bytes(), &salt).expect("a hash").to_string()
}

fn users(lines: &[String]) -> Users {
    Users::new(lines.iter().map(|line| parse_line(line).expect("a line")))
}

fn headers(value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
    headers
}

fn basic(pair: &str) -> Option<Credentials> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    Credentials::of(&headers(&format!("Basic {encoded}")))
}

fn verify(users: &Users, pair: &str) -> bool {
    users.verify(&basic(pair).expect("credentials"))
}

#[test]
fn both_forms_of_hash_verify() {
    let mut lines: Vec<String> =
        ["2a", "2b", "2y"].iter().map(|version| format!("u{version}:{}", bcrypt_of_secret(version))).collect();
    lines.push(format!("argon:{}", argon2_of("pass:with:colons \u{e4}")));
    let users = users(&lines);
    assert_eq!(users.len(), 4);
    for user in ["u2a", "u2b", "u2y"] {
        assert!(verify(&users, &format!("{user}:secret")), "{user}");
        assert!(!verify(&users, &format!("{user}:secre")) && !verify(&users, &format!("{user}:")), "{user}");
    }
    assert!(verify(&users, "argon:pass:with:colons \u{e4}"));
    assert!(!verify(&users, "argon:secret") && !verify(&users, "nobody:secret") && !verify(&users, ":secret"));
}

#[test]
fn argon2_without_a_version_is_of_the_first() {
    let old = argon2_in(argon2::Version::V0x10, "secret");
    let unsaid = old.replacen("$v=16$", "$", 1);
    assert_ne!(unsaid, old);
    let users = users(&[format!("old:{old}"), format!("unsaid:{unsaid}"), format!("new:{}", argon2_of("secret"))]);
    for user in ["old", "unsaid", "new"] {
        assert!(verify(&users, &format!("{user}:secret")) && !verify(&users, &format!("{user}:secre")), "{user}");
    }
}

#[test]
fn an_unknown_user_costs_as_much_as_a_known_one() {
    let users = users(&[format!("known:{}", bcrypt::hash_with_salt("secret", 8, [7; 16]).expect("a hash"))]);
    let time = |pair: &str| {
        let credentials = basic(pair).expect("credentials");
        let begun = Instant::now();
        users.verify(&credentials);
        begun.elapsed()
    };
    let fastest = |pair: &str| (0..5).map(|_| time(pair)).min().expect("five");
    let (known, unknown) = (fastest("known:wrong"), fastest("unknown:wrong"));
    assert!(unknown * 4 > known && known * 4 > unknown, "{known:?} {unknown:?}");
}

#[test]
fn what_is_cheap_or_broken_is_refused_by_its_kind() {
    let good = bcrypt_of_secret("2b");
    let argon = argon2_of("secret");
    let cases = [
        ("nobody".to_owned(), LineError::NotAPair),
        (format!(":{good}"), LineError::NotAPair),
        ("a:$apr1$abcdefgh$0123456789012345678901".to_owned(), LineError::OtherHash),
        ("a:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".to_owned(), LineError::OtherHash),
        ("a:secret".to_owned(), LineError::OtherHash),
        ("a:".to_owned(), LineError::OtherHash),
        (format!("a:{}", good.replacen("$2b$", "$2x$", 1)), LineError::OtherHash),
        (format!("a:{}", &good[..good.len() - 1]), LineError::Malformed),
        (format!("a:{}!", &good[..good.len() - 1]), LineError::Malformed),
        (format!("a:{}", good.replacen("$04$", "$03$", 1)), LineError::Malformed),
        (format!("a:{}", good.replacen("$04$", "$17$", 1)), LineError::TooCostly),
        (format!("a:{}", good.replacen("$04$", "$99$", 1)), LineError::Malformed),
        ("a:$argon2id$".to_owned(), LineError::Malformed),
        (format!("a:{}", argon.rsplit_once('$').expect("a hash").0), LineError::Malformed),
        (format!("a:{}", argon.replacen("argon2id", "argon2x", 1)), LineError::Malformed),
        (format!("a:{}", argon.replacen("m=8", "m=4000000", 1)), LineError::TooCostly),
        (format!("a:{}", argon.replacen("v=19", "v=99", 1)), LineError::OtherVersion),
        (format!("a:{}", argon.replacen("v=19", "v=0", 1)), LineError::OtherVersion),
    ];
    for (line, error) in cases {
        assert_eq!(parse_line(&line).map(|(user, _)| user), Err(error), "{line}");
    }
    assert!(parse_line(&format!("a:{good}:a comment")).is_ok());
}

#[test]
fn only_one_well_formed_field_has_credentials() {
    assert!(basic("a:b").is_some() && basic("a:").is_some() && basic(":").is_some());
    assert!(Credentials::of(&headers("bAsIc YTpi")).is_some());
    assert!(Credentials::of(&headers("Basic YTpiYw")).is_some(), "padding may be left out");
    for value in ["", "Basic", "Basic ", "Basic !!!!", "Bearer YTpi", "Basic YWI=", "BasicYTpi"] {
        assert!(Credentials::of(&headers(value)).is_none(), "{value}");
    }
    assert!(basic("a:b\0c").is_none() && basic("a\n:b").is_none());
    assert!(basic(&format!("a:{}", "x".repeat(4096))).is_none());
    let mut two = headers("Basic YTpi");
    two.append(header::AUTHORIZATION, "Basic YTpi".parse().expect("a value"));
    assert!(Credentials::of(&two).is_none());
    assert!(Credentials::of(&HeaderMap::new()).is_none());
}

fn numbered(number: usize) -> Tag {
    let mut tag = [9; 32];
    tag[..8].copy_from_slice(&number.to_be_bytes());
    tag
}

#[test]
fn a_bad_verdict_is_kept_for_a_minute_and_a_good_one_while_it_is_used() {
    let mut verdicts = Verdicts::new(&[7; 32]);
    let mut now = Instant::now();
    let (good, bad, idle) = (numbered(1), numbered(2), numbered(3));
    assert_eq!(verdicts.get(&good, now), None);
    verdicts.put(bad, false, now);
    verdicts.put(good, true, now);
    verdicts.put(idle, true, now);
    assert_eq!(verdicts.get(&bad, now + BAD_LIFE - Duration::from_secs(1)), Some(false));
    assert_eq!(verdicts.get(&bad, now + BAD_LIFE), None, "using it does not make it longer");
    for _ in 0..5 {
        now += GOOD_LIFE - Duration::from_secs(1);
        assert_eq!(verdicts.get(&good, now), Some(true), "who comes again is known");
        verdicts.put(numbered(4), true, now);
    }
    assert_eq!(verdicts.get(&idle, now), None, "who does not is forgotten");
    assert_eq!(verdicts.good.until.len(), 2);
    assert_eq!(verdicts.get(&good, now + GOOD_LIFE), None);
}

#[test]
fn verdicts_are_bounded_and_what_is_used_stays() {
    let mut verdicts = Verdicts::new(&[7; 32]);
    let now = Instant::now();
    verdicts.put(numbered(0), true, now);
    for number in 1..4 * MOST_VERDICTS {
        let now = now + Duration::from_micros(number as u64);
        assert_eq!(verdicts.get(&numbered(0), now), Some(true), "pushed out by the {number}th");
        verdicts.put(numbered(number), true, now);
        verdicts.put(numbered(number), false, now);
        let sizes = [&verdicts.good, &verdicts.bad].map(|kept| (kept.until.len(), kept.order.len()));
        assert!(sizes.iter().all(|(until, order)| until == order && *until <= MOST_VERDICTS), "{sizes:?}");
    }
    assert_eq!(verdicts.get(&numbered(1), now), None, "the first that nobody used");
}

#[test]
fn a_tag_says_nothing_without_the_secret() {
    let credentials = basic("a:b").expect("credentials");
    assert_ne!(Verdicts::new(&[1; 32]).tag(&credentials), Verdicts::new(&[2; 32]).tag(&credentials));
}

#[test]
fn nothing_shows_a_secret() {
    let line = format!("someone:{}", bcrypt_of_secret("2b"));
    let users = users(&[line]);
    let shown = format!("{users:?} {:?} {:?}", basic("someone:hunter2"), Verdicts::new(&[1; 32]));
    assert!(!shown.contains("$2b$") && !shown.contains("hunter2"), "{shown}");
}
