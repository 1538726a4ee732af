//! Keys of what changes at run time: the admin API, discovery, lists of backends.

use super::*;

#[test]
fn a_token_that_can_be_guessed_or_not_be_sent_is_refused() {
    let app = format!("{HEAD}upstreams: {{ app: {{ backends: [a:1] }} }}\n");
    let read = |address: &str, token: &str| {
        let text = format!("{app}admin: {{ address: \"{address}\", token_file: tokens/{token}.token }}\n");
        let report = tokens(&text).map_or_else(|report| report, |loaded| loaded.warnings);
        assert!(!report.to_string().contains("SECRET"));
        let errors = report.problems.iter().filter(|problem| problem.severity == Severity::Error);
        errors.map(|problem| problem.code).collect::<Vec<_>>()
    };
    assert_eq!(read("127.0.0.1:9180", "copy"), [""; 0]);
    for bad in ["short", "empty", "blank", "lines", "long"] {
        assert_eq!(read("127.0.0.1:9180", bad), ["bad-token"], "{bad}");
    }
    for loopback in ["127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert_eq!(read(loopback, "write"), [""; 0], "{loopback}");
    }
    for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        assert_eq!(read(open, "write"), ["admin-without-tls"], "{open}");
    }
}

#[test]
fn discovery_is_read_with_its_defaults() {
    let model = good(&format!(
        "{HEAD}
upstreams:
  a: {{ discover: {{ dns: \"App.Internal.:8080\" }} }}
  s: {{ discover: {{ dns: _http._tcp.app.internal., refresh: 1m, servers: [10.0.0.2, \"[fd00::2]:5353\"] }}, tls: {{}} }}
  f: {{ discover: {{ file: backends.yaml }}, backends: [10.0.0.1:80] }}
  g: {{ discover: {{ file: /run/g.json, refresh: 100ms }}, backends: [] }}
routes: [{{ upstream: {{ a: 1, s: 1, f: 1, g: 1 }} }}]
"
    ))
    .model;
    let discover = |name: &str| model.upstreams[name].discover.clone().expect("it is there");
    let dns = |name: &str, records, refresh, servers: &[&str]| {
        let servers = servers.iter().map(|server| server.parse().expect("it is an address")).collect();
        Discover::Dns(DiscoverDns { name: name.to_owned(), records, refresh: Duration::from_secs(refresh), servers })
    };
    assert_eq!(discover("a"), dns("app.internal", DnsRecords::Addresses { port: 8080 }, 10, &[]));
    let servers = ["10.0.0.2:53", "[fd00::2]:5353"];
    assert_eq!(discover("s"), dns("_http._tcp.app.internal", DnsRecords::Srv, 60, &servers));
    let list =
        |path: &str, millis| Discover::List(DiscoverList { path: path.into(), refresh: Duration::from_millis(millis) });
    assert_eq!(discover("f"), list("/etc/rrlb/backends.yaml", 1_000));
    assert_eq!(discover("g"), list("/run/g.json", 100));
    assert_eq!((model.upstreams["f"].backends.len(), model.upstreams["a"].backends.len()), (1, 0));
}

#[test]
fn an_upstream_may_be_empty_only_where_something_can_fill_it() {
    let upstreams = "upstreams: { a: {}, b: { backends: [] } }\nroutes: [{ upstream: { a: 1, b: 1 } }]\n";
    assert_eq!(codes(&format!("{HEAD}{upstreams}")), ["no-backends", "no-backends"]);
    assert_eq!(codes(&format!("{HEAD}{upstreams}admin: off\n")), ["no-backends", "no-backends"]);
    assert_eq!(codes(&format!("{HEAD}{upstreams}admin: {{}}\n")), [""; 0]);
    // A broken `admin` is one problem, not three.
    assert_eq!(codes(&format!("{HEAD}{upstreams}admin: {{ x: 1 }}\n")), ["unknown-key"]);
}

#[test]
fn a_list_of_backends_has_the_form_of_backends() {
    let read = |text: &str| crate::config::parse_backend_list(text, Path::new("/etc/rrlb/backends.yaml"));
    let seen = |text: &str| {
        let backends = read(text).unwrap_or_else(|report| panic!("{report}"));
        let line = |b: crate::config::model::Backend| format!("{} {} {}", b.id, b.address, b.weight.value());
        backends.into_iter().map(line).collect::<Vec<_>>()
    };
    let yaml =
        "# written by a script\n- 10.0.0.1:80\n- { id: two, address: app.internal:80, weight: 5 }\n- unix:run/a.sock\n";
    assert_eq!(
        seen(yaml),
        ["10.0.0.1:80 10.0.0.1:80 1", "two app.internal:80 5", "unix:run/a.sock unix:/etc/rrlb/run/a.sock 1"]
    );
    let json = r#"[{"id":"a","address":"10.0.0.1:80","weight":2},"[fd00::1]:80"]"#;
    assert_eq!(seen(json), ["a 10.0.0.1:80 2", "[fd00::1]:80 [fd00::1]:80 1"]);
    assert_eq!(seen("[]"), [""; 0]);
}

/// What a writer may leave behind half-done must never pass for "no backends".
#[test]
fn a_list_of_backends_that_is_wrong_is_refused_as_a_whole() {
    let codes = |text: &str| {
        let report = crate::config::parse_backend_list(text, Path::new("/etc/rrlb/backends.yaml")).expect_err(text);
        report.problems.iter().map(|problem| (problem.code, problem.path.clone())).collect::<Vec<_>>()
    };
    let one = |code: &'static str, path: &str| vec![(code, path.to_owned())];
    assert_eq!(codes(""), one("empty-file", ""));
    assert_eq!(codes("# nothing yet\n"), one("empty-file", ""));
    assert_eq!(codes("null\n"), one("empty-file", ""));
    assert_eq!(codes("backends: [10.0.0.1:80]\n"), one("wrong-type", ""));
    assert_eq!(codes("[10.0.0.1:80")[0].0, "syntax");
    assert_eq!(codes("- 10.0.0.1\n"), one("bad-address", "[0]"));
    assert_eq!(codes("- 10.0.0.1:80\n- 10.0.0.1:80\n"), one("duplicate-backend", "[1]"));
    assert_eq!(codes("- { address: 10.0.0.1:80, weight: 0 }\n"), one("all-weights-zero", ""));
    assert_eq!(codes("- { adress: 10.0.0.1:80 }\n")[0].0, "unknown-key");
    let report = crate::config::parse_backend_list("", Path::new("/etc/rrlb/backends.yaml")).expect_err("it is empty");
    assert!(report.to_string().contains("write [] for no backends"), "{report}");
}

#[test]
fn a_missing_file_is_a_report() {
    let report = crate::config::load(Path::new("/nowhere/rrlb.yaml")).expect_err("there is no such file");
    assert_eq!(report.problems.len(), 1);
    assert_eq!((report.problems[0].code, report.problems[0].span), ("cannot-read", None));
    assert!(crate::config::load(Path::new("/")).is_err());
}

#[test]
fn depth_is_bounded_also_through_aliases() {
    let deep = format!("{HEAD}x-a: {}{}\n", "[".repeat(5000), "]".repeat(5000));
    assert!(read(&deep).is_err());
    let mut text = format!("{HEAD}x-0: &a0 1\n");
    for level in 1..60 {
        text.push_str(&format!("x-{level}: &a{level} [[*a{}]]\n", level - 1));
    }
    assert!(codes(&text).contains(&"too-deep"));
}

/// Deterministic mutations of real files: cut, doubled, swapped and replaced pieces.
#[test]
fn no_text_makes_the_decoder_panic() {
    let seeds = [include_str!("../../../conf/full.yaml"), include_str!("../../../conf/pingora.yaml")];
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "&a ",
        "*a",
        "<<: *a",
        "\n",
        "\t",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "#",
        "!x ",
        "!!str ",
        "? ",
        "---\n",
        "...\n",
        "%YAML 9\n",
        "\u{0}",
        "\u{feff}",
        "\u{65e5}",
        "${",
        "${A}",
        "$${",
        "0",
        "-1",
        "~",
        "1e9",
        "99999999999999999999",
        "off",
        "unix:",
        "[::]:80",
        "\r",
        "\u{85}",
        "\u{2028}",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let rounds = std::env::var("RRLB_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300);
    for round in 0..rounds {
        let mut text: Vec<char> = seeds[round % 2].chars().collect();
        for _ in 0..=random(4) {
            let at = random(text.len());
            let until = (at + random(40)).min(text.len());
            match random(4) {
                0 => drop(text.drain(at..until)),
                1 => {
                    let copy: Vec<char> = text[at..until].to_vec();
                    let to = random(text.len());
                    text.splice(to..to, copy);
                }
                2 => drop(text.splice(at..until, pieces[random(pieces.len())].chars()).collect::<Vec<_>>()),
                _ => text.truncate(at),
            }
        }
        let text: String = text.into_iter().collect();
        let report = read(&text).map_or_else(|report| report, |loaded| loaded.warnings);
        for format in [Format::Human, Format::Short, Format::Json] {
            let _ = report.render(format);
        }
    }
}

/// Twice the size that is promised. Comparing every route with every other takes some 20 s in a debug build and suggesting a name for
/// every wrong one as long; reading takes 2 s.
#[test]
fn a_file_of_very_many_routes_is_read_in_nearly_linear_time() {
    let many = |routes: &str, line: &dyn Fn(usize) -> String| {
        let upstreams: String = (0..1_000).map(|at| format!("  app-{at}: {{ backends: [10.0.0.1:80] }}\n")).collect();
        let lines: String = (0..20_000).map(line).collect();
        let begin = std::time::Instant::now();
        let report = read(&format!("{HEAD}upstreams:\n{upstreams}{routes}{lines}"));
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        report.map_or_else(|report| report, |loaded| loaded.warnings)
    };
    let hosts = |at: usize| {
        let upstream = at % 1_000;
        format!("  - {{ match: {{ host: h{at}.test, path: /v{}, method: GET }}, upstream: app-{upstream} }}\n", at % 7)
    };
    assert_eq!(many("routes:\n", &hosts).problems.len(), 0);
    let fields = |at: usize| {
        format!("  - {{ match: {{ path: /, header: {{ X-A: a, X-B: b{at} }} }}, upstream: app-{} }}\n", at % 1_000)
    };
    assert_eq!(many("routes:\n", &fields).problems.len(), 0);
    let unknown = many("routes:\n", &|at| format!("  - {{ match: {{ path: /{at} }}, upstream: ap-{at} }}\n"));
    assert_eq!(unknown.problems[0].help.as_deref(), Some("did you mean `app-0`?"));
    let keys = many("", &|at| format!("thread{at}: 1\n"));
    // Bounded in what it shows too.
    let last = keys.problems.last().map(|problem| (problem.code, problem.message.clone()));
    assert_eq!(last, Some(("too-many-problems", "19001 more problems are not shown".to_owned())));
    assert_eq!(keys.problems.len(), 1_001);
}

#[test]
fn errors_are_kept_before_warnings_where_there_are_too_many() {
    let mut text = format!("{HEAD}upstreams: {{ app: {{ backends: [a:1] }} }}\nroutes:\n");
    (0..2_000).for_each(|_| text.push_str("  - upstream: app\n"));
    assert!(good(&text).warnings.problems.len() <= 1_001);
    text.push_str("  - upstream: nowhere\n");
    let report = read(&text).expect_err("there is an error");
    assert_eq!(report.count(Severity::Error), 1);
}
