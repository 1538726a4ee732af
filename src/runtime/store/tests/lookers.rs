//! Promises to those who only look, and to those who start again.

use super::*;

#[test]
fn who_looks_waits_for_no_change_that_is_on_its_way_to_the_disk() {
    let store = store(model(TWO), None);
    let (began, begins) = std::sync::mpsc::channel();
    let (looked, looks) = std::sync::mpsc::channel();
    let shared = &store;
    thread::scope(|scope| {
        let drain = scope.spawn(move || {
            shared.change(&app(), None, false, |all, _| {
                began.send(()).expect("somebody waits");
                // Changes are under way here for as long as the disk takes.
                looks.recv_timeout(Duration::from_secs(20)).expect("nobody could look meanwhile");
                let patch = Patch { admin: Some(AdminState::Drain), ..Patch::default() };
                all.patch(&"a".into(), patch, Note::default())
            })
        });
        begins.recv().expect("a change");
        assert_eq!(shown(&store), "a b");
        assert_eq!((store.views().len(), store.overrides().len(), store.snapshot().members().len()), (1, 0, 1));
        assert!(store.foresee(&store.model()).conflicts.is_empty());
        assert!(!store.hand_over().contains("drain"));
        looked.send(()).expect("it waits");
        drain.join().expect("no panic").expect("drains");
    });
    assert_eq!(shown(&store), "a:drain b");
    assert!(store.hand_over().contains("drain"));
}

#[test]
fn what_a_start_has_merged_is_merged_with_the_next_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let first = store(model(TWO), Some(&file));
    let patch = Patch { weight: Weight::new(5), ..Patch::default() };
    first.change(&app(), None, false, |all, _| all.patch(&"a".into(), patch, Note::default())).expect("weighs");
    drop(first);
    let heavy = "[{ id: a, address: 127.0.0.1:1, weight: 5 }, { id: b, address: 127.0.0.1:2 }]";
    let second = store(model(heavy), Some(&file));
    assert!(second.overrides().is_empty(), "the file says the same");
    let before = fs::read(&file).expect("a journal");
    assert!(String::from_utf8_lossy(&before).contains("\"a\""), "who may never come to serve writes nothing");
    second.sweep();
    drop(second);
    let third = store(model(TWO), Some(&file));
    let weight = third.view(&app()).and_then(|view| view.membership.entry(&"a".into())).map(|entry| entry.spec.weight);
    assert_eq!(weight, Weight::new(1), "the file is followed again");
    third.sweep();
    assert_eq!(Journal::new(&file).load(0).expect("a journal"), Overrides::new());
}

#[test]
fn what_a_start_gives_back_is_kept_when_the_journal_has_it_and_only_where_nothing_was_said_since() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let over = |admin| {
        let over = crate::runtime::membership::Override { admin, ..Default::default() };
        Overrides::from([(app(), [("a".into(), over)].into())])
    };
    let (was, other) = (over(AdminState::Drain), over(AdminState::Maint));
    let mut said_since = other.clone();
    give_back(&mut said_since, was.clone(), &Overrides::new());
    assert_eq!(said_since, other);
    let mut restored = Overrides::new();
    give_back(&mut restored, was.clone(), &Overrides::new());
    assert_eq!(restored, was);
    let journal = Journal::new(&file);
    let store = Store::new(model(TWO), restored, Some(journal), Arc::new(Metrics::new("0", 1)), Arc::default());
    store.keep_start();
    assert!(!store.is_kept() && !file.exists());
    store.sweep();
    assert!(store.is_kept());
    assert!(Journal::new(&file).load(0).expect("a journal").contains_key(&app()));
    assert!(super::store(model(TWO), None).is_kept(), "nothing is to be kept");
}
