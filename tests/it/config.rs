//! The configuration: every broken file under tests/config gets its golden message, every file under conf/ is valid.
//! `BLESS=1` writes the golden files anew; look at the difference before it is committed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rrlb::config::{Format, Report, load, parse};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The problems of a file, whether or not they stop the start.
fn problems(path: &Path) -> Report {
    load(path).map_or_else(|report| report, |loaded| loaded.warnings)
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(ROOT).join(directory)).expect("the directory is in the repository");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

/// The broken files. A checkout leaves keys and tokens readable for all, which would be a warning in some of them.
fn broken_files() -> Vec<PathBuf> {
    for key in files("tests/config/tls", "key").into_iter().chain(files("tests/config/tokens", "token")) {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the test owns its files");
    }
    files("tests/config", "yaml")
}

/// A rendering without the directory that the repository happens to lie in.
fn portable(text: &str) -> String {
    text.replace(&format!("{ROOT}/tests/config/"), "")
}

#[test]
fn every_broken_file_has_its_golden_message() {
    let bless = std::env::var_os("BLESS").is_some();
    let files = broken_files();
    assert!(files.len() >= 45, "only {} files", files.len());
    let mut failures = String::new();
    for path in &files {
        let report = problems(path);
        assert!(!report.problems.is_empty(), "{}: nothing is wrong with it", path.display());
        let found = portable(&report.render(Format::Human));
        let golden = path.with_extension("txt");
        if bless {
            fs::write(&golden, &found).expect("the golden file can be written");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            failures.push_str(&format!("\n{}:\n{}", golden.display(), difference(&expected, &found)));
        }
    }
    assert!(failures.is_empty(), "golden messages differ (BLESS=1 writes them anew):{failures}");
}

/// The lines that differ, `-` expected and `+` found, with their numbers.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let mut out = String::new();
    for at in 0..expected.len().max(found.len()) {
        let (old, new) = (expected.get(at), found.get(at));
        if old != new {
            let line = at + 1;
            out.extend(old.map(|old| format!("{line:4} - {old}\n")));
            out.extend(new.map(|new| format!("{line:4} + {new}\n")));
        }
    }
    out
}

#[test]
fn no_golden_message_is_without_its_file() {
    for golden in files("tests/config", "txt") {
        assert!(golden.with_extension("yaml").exists(), "{} is left over", golden.display());
    }
}

#[test]
fn all_formats_agree() {
    for path in broken_files() {
        let report = problems(&path);
        let json: serde_json::Value = serde_json::from_str(&report.render(Format::Json)).expect("it is JSON");
        let short = report.render(Format::Short);
        let (short, human) = (short.lines().collect::<Vec<_>>(), report.render(Format::Human));
        let listed = json["problems"].as_array().expect("it is a list");
        assert_eq!(listed.len(), report.problems.len(), "{}", path.display());
        assert_eq!(short.len(), report.problems.len(), "{}", path.display());
        assert_eq!(json["valid"], !report.has_errors());
        let severe = |word: &str| listed.iter().filter(|problem| problem["severity"] == word).count();
        assert_eq!(
            (json["errors"].as_u64(), json["warnings"].as_u64()),
            (Some(severe("error") as u64), Some(severe("warning") as u64))
        );
        for ((problem, line), known) in listed.iter().zip(short).zip(&report.problems) {
            let place = match (problem["line"].as_u64(), problem["column"].as_u64()) {
                (Some(line), Some(column)) => format!("{}:{line}:{column}", path.display()),
                _ => path.display().to_string(),
            };
            let code = problem["code"].as_str().expect("it is a word");
            let severity = problem["severity"].as_str().expect("it is a word");
            assert!(line.starts_with(&format!("{place}: {severity}[{code}]: ")), "{line}");
            assert!(human.contains(&format!("--> {place}\n")), "{place} is not in\n{human}");
            assert_eq!((problem["path"].as_str(), code), (Some(known.path.as_str()), known.code));
            assert!(problem["end_line"].as_u64() >= problem["line"].as_u64());
        }
    }
}

#[test]
fn no_rendering_shows_more_than_the_marked_lines() {
    for path in broken_files() {
        let text = fs::read(&path).expect("it can be read");
        let report = problems(&path);
        for format in [Format::Human, Format::Short, Format::Json] {
            let rendered = report.render(format);
            assert!(!rendered.contains("SECRET"), "{}: {rendered}", path.display());
        }
        // The same with a secret on a line of its own, in front and behind, as a comment and as a value.
        let Ok(text) = String::from_utf8(text) else { continue };
        let planted = format!("# SECRET\nx-planted: SECRET\n{text}\n# SECRET\n");
        let report = parse(&planted, &path).map_or_else(|report| report, |loaded| loaded.warnings);
        for format in [Format::Human, Format::Short, Format::Json] {
            let rendered = report.render(format);
            assert!(!rendered.contains("SECRET"), "{}: {rendered}", path.display());
        }
        assert!(!format!("{report:?}").contains("SECRET"));
    }
}

#[test]
fn every_shipped_file_is_valid() {
    let shipped = files("conf", "yaml");
    assert!(shipped.len() >= 4, "{shipped:?}");
    for path in shipped {
        let loaded = load(&path).unwrap_or_else(|report| panic!("{report}"));
        let unexpected = loaded.warnings.problems.iter().find(|problem| problem.code != "open-key-file");
        assert!(unexpected.is_none(), "{}", loaded.warnings);
    }
}

#[test]
fn the_full_example_has_every_key() {
    let text = fs::read_to_string(Path::new(ROOT).join("conf/full.yaml")).expect("it is in the repository");
    let keys = rrlb::config::known_keys();
    for path in &keys {
        let name = path.rsplit('.').next().unwrap_or(path);
        let wanted = keys.iter().filter(|other| other.rsplit('.').next() == Some(name)).count();
        let colon = format!("{name}:");
        let begins_key = |at: usize| text[..at].ends_with([' ', '\n', '{', ',']);
        let found = text.match_indices(&colon).filter(|(at, _)| begins_key(*at)).count();
        assert!(found >= wanted, "conf/full.yaml has `{name}` {found} times, the decoder {wanted} times ({path})");
    }
}

#[test]
fn a_key_that_others_can_read_is_a_warning() {
    let directory = std::env::temp_dir().join(format!("rrlb-open-key-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("the temporary folder can be written");
    for name in ["good.pem", "good.key"] {
        fs::copy(Path::new(ROOT).join("tests/config/tls").join(name), directory.join(name)).expect("it is there");
    }
    let text = "certificates: { main: { cert: good.pem, key: good.key } }\n\
        listeners: [{ address: 127.0.0.1:8443, tls: { certificates: main } }]\n\
        upstreams: { app: { backends: [127.0.0.1:9001] } }\n";
    let codes = |mode: u32| {
        fs::set_permissions(directory.join("good.key"), fs::Permissions::from_mode(mode)).expect("it is ours");
        let loaded = parse(text, &directory.join("rrlb.yaml")).unwrap_or_else(|report| panic!("{report}"));
        loaded.warnings.problems.iter().map(|problem| problem.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(0o644), ["open-key-file"]);
    // Often on purpose, for a group of the proxy's own; but who is in that group is not for us to see.
    assert_eq!(codes(0o640), ["open-key-file"]);
    assert_eq!(codes(0o400), [""; 0]);
    assert_eq!(codes(0o600), [""; 0]);
    fs::remove_dir_all(&directory).expect("it is ours");
}

#[test]
fn a_token_that_others_can_read_is_a_warning() {
    let directory = tempfile::tempdir().expect("the temporary folder can be written");
    let file = directory.path().join("admin.token");
    fs::write(&file, "0123456789abcdef\n").expect("it is ours");
    let text = "listeners: [{ address: 127.0.0.1:8080 }]\n\
        upstreams: { app: { backends: [] } }\n\
        admin: { address: 127.0.0.1:9180, token_file: admin.token }\n";
    let codes = |mode: u32| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("it is ours");
        let loaded = parse(text, &directory.path().join("rrlb.yaml")).unwrap_or_else(|report| panic!("{report}"));
        loaded.warnings.problems.iter().map(|problem| problem.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(0o644), ["open-token-file"]);
    assert_eq!(codes(0o660), ["open-token-file"]);
    assert_eq!(codes(0o640), [""; 0]);
    assert_eq!(codes(0o600), [""; 0]);
}

#[test]
fn format_names_are_read() {
    assert_eq!("human".parse(), Ok(Format::Human));
    assert_eq!("short".parse(), Ok(Format::Short));
    assert_eq!("json".parse(), Ok(Format::Json));
    assert!("xml".parse::<Format>().is_err());
}
