//! Promises of the journal: what comes back, what is refused, and that a file is never half of anything.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::{
    runtime::membership::{Lease, Note, Spec},
    types::{AdminState, BackendAddress, HostPort, Source, Weight},
};

fn spec(address: BackendAddress, weight: u16) -> Spec {
    Spec { address, weight: Weight::new(weight).expect("a weight") }
}

fn inet(port: u16) -> BackendAddress {
    BackendAddress::Inet(([127, 0, 0, 1], port).into())
}

/// One of everything; the lease and what is leaving are due at these times.
fn all(due: u64, leaving: u64) -> Overrides {
    let note = Note { who: "uid 1000".into(), why: "a \"reason\"\nin two lines \u{1f600}".into(), at: 1_700_000_000 };
    let host = BackendAddress::Host(HostPort { host: "app.internal".into(), port: 80 });
    let of = |over: Override| Override { note: note.clone(), ..over };
    let app = [
        ("added", of(Override { spec: Some(spec(inet(1), 5)), ..Override::default() })),
        ("six", of(Override { spec: Some(spec(BackendAddress::Inet(([1; 8], 9).into()), 0)), ..Override::default() })),
        (
            "leased",
            of(Override {
                spec: Some(spec(host.clone(), 1)),
                lease: Some(Lease { ttl: 15_000, due }),
                ..Override::default()
            }),
        ),
        (
            "leaving",
            of(Override {
                admin: AdminState::Maint,
                leaving: Some(leaving),
                base: Some((spec(BackendAddress::Unix("/run/a b.sock".into()), 3), Source::Dns)),
                ..Override::default()
            }),
        ),
        ("gone", of(Override { removed: true, base: Some((spec(host, 1), Source::File)), ..Override::default() })),
    ];
    let app = app.into_iter().map(|(id, over)| (id.into(), over)).collect();
    Overrides::from([("app".into(), app)])
}

fn journal() -> (tempfile::TempDir, Journal) {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::new(&folder.path().join("state.json"));
    (folder, journal)
}

fn shared(overrides: &Overrides) -> BTreeMap<Name, Said> {
    overrides.iter().map(|(name, said)| (name.clone(), Arc::new(said.clone()))).collect()
}

fn save(journal: &Journal, overrides: &Overrides, now: u64) -> Result<(), SaveError> {
    journal.save(shared(overrides).iter(), now)
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = fs::read_dir(folder).expect("a folder").map(name).collect();
    names.sort();
    names
}

#[test]
fn what_was_kept_comes_back_with_its_times_counted_anew() {
    let (folder, journal) = journal();
    assert_eq!(journal.load(7).expect("no file"), Overrides::new());
    save(&journal, &all(20_000, 11_000), 10_000).expect("saves");
    assert_eq!(Journal::new(journal.path()).load(500).expect("loads"), all(15_500, 1_500));
    assert_eq!(names(folder.path()), ["state.json"]);
    let mode = fs::metadata(journal.path()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_transient_is_left_out_and_what_it_covers_is_kept() {
    let (_folder, journal) = journal();
    let lasting = Override { admin: AdminState::Drain, ..Override::default() };
    let transient = Override { spec: Some(spec(inet(1), 1)), transient: true, ..Override::default() };
    let covering = Override { beneath: Some(Box::new(lasting.clone())), ..transient.clone() };
    let overrides = Overrides::from([
        ("app".into(), [("a".into(), transient.clone()), ("b".into(), covering)].into()),
        ("other".into(), [("a".into(), transient)].into()),
    ]);
    save(&journal, &overrides, 0).expect("saves");
    assert_eq!(journal.load(0).expect("loads"), Overrides::from([("app".into(), [("b".into(), lasting)].into())]));
}

#[test]
fn every_shorter_part_of_a_journal_is_damaged() {
    let text = encode(&all(1, 1), 0);
    for length in 0..text.len() - 1 {
        assert!(decode(&text[..length], 0).is_err(), "{length} bytes were taken");
    }
    assert_eq!(decode(&text, 0).map(|_| ()), Ok(()));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let one = |said: &str| format!(r#"{{"format":"rrlb-state","version":1,"upstreams":{{"app":{{"a":{said}}}}}}}"#);
    let cases = [
        (String::new(), "EOF while parsing"),
        ("[]".into(), "line 1 column"),
        (r#"{"some":"other"}"#.into(), "missing field `format`"),
        (r#"{"format":"vim-swap","version":1,"upstreams":{}}"#.into(), r#"its `format` is "vim-swap""#),
        (r#"{"format":"rrlb-state","version":2,"backends":[]}"#.into(), "its `version` is 2; this rrlb reads 1"),
        (one("{}") + "}", "trailing characters"),
        (one(r#"{"address":"10.0.0.1:80"}"#), r#""app", "a": `address` and `weight` need each other"#),
        (one(r#"{"address":"10.0.0.1","weight":1}"#), "`10.0.0.1` is not an address"),
        (one(r#"{"address":"10.0.0.1:80","weight":1001}"#), "a weight of 1001 is over 1000"),
        (one(r#"{"weight":-1}"#), "line 1 column"),
        (one(r#"{"admin":"off"}"#), r#"`admin` cannot be "off""#),
        (one(r#"{"base":{"address":"a:1","weight":1,"source":"me"}}"#), r#"`source` cannot be "me""#),
    ];
    let (_folder, journal) = journal();
    for (text, expected) in cases {
        fs::write(journal.path(), &text).expect("writes");
        let error = journal.load(0).expect_err(&text);
        assert!(matches!(error, LoadError::Damaged(..)), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains("state.json"), "{text}: {error}");
    }
    fs::write(journal.path(), b"{\"format\":\"\xff").expect("writes");
    assert!(journal.load(0).expect_err("no text").to_string().contains("not UTF-8 text from byte 11 on"));
}

#[test]
fn fields_of_a_later_build_are_passed_over() {
    let text =
        r#"{"format":"rrlb-state","version":1,"by":"rrlb 9","upstreams":{"app":{"a":{"admin":"drain","zone":1}}}}"#;
    let read = decode(text.as_bytes(), 0).expect("reads");
    assert_eq!(read["app"]["a"].admin, AdminState::Drain);
}

#[test]
fn a_damaged_file_is_set_aside_and_never_in_place_of_another() {
    let (folder, journal) = journal();
    let mut places = Vec::new();
    for text in ["one", "two", "three"] {
        fs::write(journal.path(), text).expect("writes");
        let place = journal.set_aside().expect("moves");
        assert!(place.to_string_lossy().contains("state.json.damaged-"), "{place:?}");
        assert_eq!(fs::read_to_string(&place).expect("there"), text);
        places.push(place);
    }
    places.dedup();
    assert_eq!((places.len(), names(folder.path()).len()), (3, 3));
    assert_eq!(journal.load(0).expect("nothing is left"), Overrides::new());
    assert!(journal.set_aside().is_err());
    assert_eq!(names(folder.path()).len(), 3);
}

#[test]
fn a_failed_save_leaves_the_file_as_it_was() {
    let (folder, journal) = journal();
    save(&journal, &all(1, 1), 0).expect("saves");
    let before = fs::read(journal.path()).expect("a file");
    // What is in the way of the temporary file is a folder that is not empty.
    let temporary = with_suffix(journal.path(), ".tmp");
    fs::create_dir_all(temporary.join("full")).expect("a folder");
    let error = save(&journal, &Overrides::new(), 0).expect_err("no place to write to");
    assert!(matches!(error, SaveError::Write(..)), "{error}");
    assert_eq!(fs::read(journal.path()).expect("a file"), before);
    fs::remove_dir_all(&temporary).expect("removes");
    // What a killed process left does not matter.
    fs::write(&temporary, "half").expect("writes");
    save(&journal, &Overrides::new(), 0).expect("saves");
    assert_eq!((names(folder.path()).len(), journal.load(0).expect("loads")), (1, Overrides::new()));
    assert!(save(&Journal::new(Path::new("/dev/null/state.json")), &Overrides::new(), 0).is_err());
}

#[test]
fn what_is_in_the_file_counts_as_kept_though_the_folder_cannot_be_synced() {
    let (folder, journal) = journal();
    save(&journal, &all(1, 1), 0).expect("saves");
    let next = encode(&Overrides::new(), 0);
    journal.write_and(&next, |_| Err(io::Error::from_raw_os_error(libc::EIO))).expect("it is kept");
    assert_eq!((fs::read(journal.path()).expect("a file"), names(folder.path()).len()), (next, 1));
}

#[test]
fn a_full_disk_has_an_error_of_its_own() {
    let full = OpenOptions::new().write(true).open("/dev/full").and_then(|mut file| file.write_all(b"x"));
    let error = save_error(Path::new("/state.json"), full.expect_err("always full"));
    assert_eq!(error.to_string(), "no space left for the state file /state.json");
    let quota = save_error(Path::new("/state.json"), io::Error::from_raw_os_error(libc::EDQUOT));
    assert!(matches!(quota, SaveError::NoSpace(_)));
    let read_only = save_error(Path::new("/state.json"), io::Error::from_raw_os_error(libc::EROFS));
    assert!(matches!(read_only, SaveError::Write(..)));
}

#[test]
fn a_sealed_journal_writes_nothing_until_it_is_taken_back() {
    let (folder, journal) = journal();
    journal.seal();
    assert!(matches!(save(&journal, &all(1, 1), 0), Err(SaveError::Sealed(_))));
    assert!(names(folder.path()).is_empty());
    journal.unseal();
    save(&journal, &all(1, 1), 0).expect("saves");
}

#[test]
fn a_link_to_the_file_stays_one() {
    let (folder, journal) = journal();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).expect("a folder");
    fs::write(volume.join("kept.json"), encode(&Overrides::new(), 0)).expect("writes");
    std::os::unix::fs::symlink(volume.join("kept.json"), journal.path()).expect("links");
    save(&journal, &all(1, 1), 0).expect("saves");
    assert!(fs::symlink_metadata(journal.path()).expect("a link").is_symlink());
    assert_eq!(fs::metadata(volume.join("kept.json")).expect("a file").nlink(), 1);
    assert_eq!(journal.load(0).expect("loads"), all(15_000, 1));
}

#[test]
fn what_is_handed_over_comes_out_whole() {
    let lasting = Override { admin: AdminState::Drain, ..Override::default() };
    let transient = Override { spec: Some(spec(inet(1), 1)), transient: true, ..Override::default() };
    let covering = Override { beneath: Some(Box::new(lasting)), ..transient.clone() };
    let mut overrides = all(15_000, 1_000);
    overrides.insert("more".into(), [("t".into(), transient), ("c".into(), covering)].into());
    assert_eq!(decode(encode_all(shared(&overrides).iter(), 0).as_bytes(), 0), Ok(overrides));
}

#[test]
fn a_lease_that_is_handed_over_goes_on_with_what_is_left_of_it() {
    let mut overrides = all(15_000, 1_000);
    let beneath = Some(Box::new(overrides["app"]["leased"].clone()));
    let covering = Override { beneath, transient: true, ..Override::default() };
    overrides.entry("app".into()).or_default().insert("covering".into(), covering);
    let handed = encode_all(shared(&overrides).iter(), 11_000);
    let read = decode(handed.as_bytes(), 500).expect("readable");
    let due = Some(Lease { ttl: 15_000, due: 4_500 });
    assert_eq!(read["app"]["leased"].lease, due);
    assert_eq!(read["app"]["covering"].beneath.as_ref().expect("kept").lease, due);
    let late = encode_all(shared(&overrides).iter(), 16_000);
    let over = Some(Lease { ttl: 15_000, due: 500 });
    assert_eq!(decode(late.as_bytes(), 500).expect("readable")["app"]["leased"].lease, over);
}

#[test]
fn a_file_that_cannot_be_read_is_moved_aside_at_a_start() {
    let (folder, journal) = journal();
    // Root may read anything but this.
    std::os::unix::fs::symlink(journal.path(), journal.path()).expect("links");
    assert!(matches!(journal.load(0), Err(LoadError::Read(..))));
    assert_eq!(journal.restore(0), Overrides::new());
    assert!(names(folder.path()).iter().all(|name| name.starts_with("state.json.damaged-")));
    save(&journal, &all(1, 1), 0).expect("saves");
}

#[test]
fn a_file_that_can_neither_be_read_nor_moved_is_never_written() {
    let (_folder, journal) = journal();
    fs::create_dir(journal.path()).expect("a folder");
    fs::write(journal.path().join("precious"), "").expect("writes");
    assert_eq!(journal.restore(0), Overrides::new());
    let refused = save(&journal, &all(1, 1), 0);
    assert!(matches!(refused, Err(SaveError::Unread(_))), "{refused:?}");
    assert!(journal.path().join("precious").exists());
}

#[test]
fn what_is_written_from_memory_is_what_would_be_written_anew() {
    let (_folder, journal) = journal();
    let lasting = |weight| Override { spec: Some(spec(inet(1), weight)), ..Override::default() };
    let leaving = Override { leaving: Some(5_000), ..lasting(3) };
    let transient = Override { transient: true, ..lasting(4) };
    let of = |over: &Override| BTreeMap::from([(Name::from("a"), over.clone())]);
    let mut said = shared(&all(1, 1));
    let steps: [(&str, Option<Override>); 9] = [
        ("b", Some(lasting(1))),
        ("c", Some(leaving.clone())),
        ("b", Some(lasting(2))),
        ("a", Some(transient)),
        ("b", None),
        ("c", Some(lasting(5))),
        ("b", Some(leaving)),
        ("a", Some(lasting(6))),
        ("app", None),
    ];
    for (turn, (name, over)) in (0u64..).zip(steps) {
        match over {
            Some(over) => drop(said.insert(name.into(), Arc::new(of(&over)))),
            None => drop(said.remove(name)),
        }
        let now = turn * 100;
        journal.save(said.iter(), now).expect("saves");
        let plain: Overrides = said.iter().map(|(name, said)| (name.clone(), BTreeMap::clone(said))).collect();
        let kept = fs::read_to_string(journal.path()).expect("a file");
        assert_eq!(kept, String::from_utf8(encode(&plain, now)).expect("text"), "at {turn}");
        assert!(decode(kept.as_bytes(), 0).is_ok());
    }
}
