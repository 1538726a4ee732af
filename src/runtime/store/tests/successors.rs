//! What one process knew, and what of it the next one goes on with.

use super::*;

#[test]
fn what_one_process_gives_up_the_next_one_has_without_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let old = store(model(TWO), Some(&file));
    set(&old, "a", AdminState::Drain).expect("drains");
    let new = Store::new(model(TWO), Overrides::new(), Some(Journal::new(&file)), old.metrics.clone(), Arc::default());
    new.journal().expect("a journal").seal();
    add(&old, "t", Put { transient: true, ..at(8) }).expect("adds");
    fs::remove_file(&file).expect("removes");
    let handed = old.give_up();
    assert!(Journal::new(&file).load(0).expect("written again").contains_key("app"));
    assert!(matches!(add(&old, "u", Put { transient: true, ..at(7) }), Err(ChangeError::GivenUp)));
    fs::write(&file, "damaged").expect("writes");
    new.take_over(Some(crate::runtime::journal::decode(handed.as_bytes(), 0).expect("readable")));
    assert_eq!(shown(&new), "a:drain b t");
    let kept = Journal::new(&file).load(0).expect("written again");
    assert_eq!(kept[&app()].keys().map(Name::as_str).collect::<Vec<_>>(), ["a"], "t does not last");
}

#[test]
fn without_a_farewell_the_journal_tells_what_lasts_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let old = store(model(TWO), Some(&file));
    let quick = |id: &str, admin| {
        let patch = Patch { admin: Some(admin), transient: true, force: true, ..Patch::default() };
        old.change(&app(), None, true, |all, _| all.patch(&id.into(), patch, Note::default())).expect("changes")
    };
    set(&old, "a", AdminState::Drain).expect("drains");
    for id in ["t", "u"] {
        add(&old, id, Put { transient: true, ..at(if id == "t" { 8 } else { 9 }) }).expect("adds");
    }
    quick("a", AdminState::Maint);
    let handed = crate::runtime::journal::decode(old.hand_over().as_bytes(), 0).expect("readable");
    let new = Store::new(model(TWO), handed, Some(Journal::new(&file)), old.metrics.clone(), Arc::default());
    new.journal().expect("a journal").seal();
    assert_eq!(shown(&new), "a:maint b t u");
    // What the other one is told after that, before it is killed.
    add(&old, "u", at(9)).expect("for good");
    add(&old, "v", at(10)).expect("for good");
    new.take_over(None);
    assert_eq!(shown(&new), "a:maint b t u v");
    let kept = new.overrides();
    let transient = |id: &str| kept[&app()][id].transient;
    assert_eq!(["a", "t", "u", "v"].map(transient), [true, true, false, false]);
    assert_eq!(kept[&app()]["a"].beneath.as_ref().expect("what lasts").admin, AdminState::Drain);
}

#[test]
fn without_a_farewell_what_is_known_holds_where_the_journal_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    set(&store(model(TWO), Some(&file)), "a", AdminState::Drain).expect("drains");
    let new = store(model(TWO), Some(&file));
    new.journal().expect("a journal").seal();
    fs::write(&file, "damaged").expect("writes");
    new.take_over(None);
    assert_eq!(shown(&new), "a:drain b");
    assert!(Journal::new(&file).load(0).expect("written again").contains_key("app"));
}
