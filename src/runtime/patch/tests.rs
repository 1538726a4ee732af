//! Promises of the patch: what it prints is a configuration, and with it nothing is left for the journal but states.

use std::path::Path;

use super::*;
use crate::{
    config,
    runtime::membership::{Lease, Patch, Put},
    types::{BackendAddress, Weight},
};

const BEFORE: &str = "
version: 1
listeners: [{ address: \"127.0.0.1:0\" }]
upstreams:
  app:
    backends:
      - { id: a, address: 10.0.0.1:80 }
      - { id: b, address: 10.0.0.2:80, weight: 2 }
      - { id: c, address: 10.0.0.3:80 }
      - { id: d, address: app.internal:80 }
  other: { backends: [10.0.1.1:80] }
routes: [{ upstream: app }]
";

fn model(text: &str) -> Model {
    config::parse(text, Path::new("test.yaml")).unwrap_or_else(|report| panic!("{report:?}\n{text}")).model
}

/// `text` with what a patch says in place of its upstreams of the same name.
fn patched(text: &str, patch: &str) -> String {
    let other = "  other: { backends: [10.0.1.1:80] }\n";
    let head = &text[..text.find("upstreams:").expect("has upstreams")];
    format!("{head}{patch}{other}routes: [{{ upstream: app }}]\n")
}

fn membership(model: &Model, overrides: BTreeMap<Name, Override>) -> Membership {
    let mut membership = Membership::restored(overrides);
    let upstream = &model.upstreams[&Name::from("app")];
    membership.declare_file(
        upstream
            .backends
            .iter()
            .map(|backend| Declared {
                id: backend.id.clone(),
                spec: Spec { address: backend.address.clone(), weight: backend.weight },
                source: Source::File,
            })
            .collect(),
    );
    membership
}

fn note(why: &str) -> Note {
    Note { who: "uid 1000".into(), why: why.into(), at: 1_700_000_000 }
}

fn put(port: u16, weight: Option<u16>) -> Put {
    let address = BackendAddress::Inet(([10, 0, 9, 9], port).into());
    Put { address, weight: weight.and_then(Weight::new), ttl: None, force: false, transient: false }
}

fn changed(model: &Model) -> Membership {
    let mut all = membership(model, BTreeMap::new());
    all.patch(&"b".into(), Patch { weight: Weight::new(7), ..Patch::default() }, note("canary\nupstreams: {}"))
        .expect("b");
    all.patch(&"d".into(), Patch { admin: Some(AdminState::Drain), ..Patch::default() }, note("disk")).expect("d");
    all.put(&"a".into(), put(1, None), note(""), 0).expect("a");
    all.put(&"new:1".into(), put(2, Some(3)), note("more"), 0).expect("new");
    all.remove(&"c".into(), 0, false, note("broken"), 0).expect("c");
    all
}

#[test]
fn the_patched_file_leaves_nothing_but_states_to_the_journal() {
    let before = model(BEFORE);
    let said = changed(&before);
    let overrides = Overrides::from([("app".into(), said.overrides().clone())]);
    let text = patch(&before, &overrides);
    let after = membership(&model(&patched(BEFORE, &text)), said.overrides().clone());
    let of = |membership: &Membership| -> Vec<(Name, Spec, AdminState)> {
        membership.entries().into_iter().map(|entry| (entry.id, entry.spec, entry.admin)).collect()
    };
    assert_eq!(of(&after), of(&said), "{text}");
    assert_eq!(of(&said).len(), 4);
    let left: Vec<&str> = after.overrides().keys().map(Name::as_str).collect();
    assert_eq!(left, ["d"], "{text}");
    assert_eq!(after.overrides()[&Name::from("d")].spec, None);
    assert_eq!(patch(&before, &overrides), text);
}

#[test]
fn comments_say_what_is_other_and_who_did_it_and_why() {
    let before = model(BEFORE);
    let text = patch(&before, &Overrides::from([("app".into(), changed(&before).overrides().clone())]));
    for line in [
        "      # address 10.0.0.1:80 -> 10.0.9.9:1, by uid 1000, 2023-11-14T22:13:20Z\n      - { id: \"a\", address: \"10.0.9.9:1\", weight: 1 }",
        "      # weight 2 -> 7, by uid 1000, 2023-11-14T22:13:20Z: canary\\nupstreams: {}\n      - { id: \"b\"",
        "      # drain, by uid 1000, 2023-11-14T22:13:20Z: disk: the file cannot say that, the journal goes on to\n      - { id: \"d\"",
        "      # added, by uid 1000, 2023-11-14T22:13:20Z: more\n      - { id: \"new:1\", address: \"10.0.9.9:2\", weight: 3 }",
        "      # removed: c at 10.0.0.3:80, by uid 1000, 2023-11-14T22:13:20Z: broken\n",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("other"), "an upstream without changes is not named: {text}");
}

#[test]
fn what_ends_by_itself_is_left_out() {
    let before = model(BEFORE);
    let mut said = membership(&before, BTreeMap::new());
    said.put(&"leased".into(), Put { ttl: Some(1000), ..put(1, None) }, note(""), 0).expect("leases");
    said.put(&"passing".into(), Put { transient: true, ..put(2, None) }, note(""), 0).expect("adds");
    said.put(&"leaving".into(), put(3, None), note(""), 0).expect("adds");
    said.remove(&"leaving".into(), 1000, false, note(""), 0).expect("leaves");
    said.remove(&"c".into(), 1000, false, note(""), 0).expect("leaves");
    let text = patch(&before, &Overrides::from([("app".into(), said.overrides().clone())]));
    let ids: Vec<Name> =
        model(&patched(BEFORE, &text)).upstreams[&Name::from("app")].backends.iter().map(|b| b.id.clone()).collect();
    assert_eq!(ids.iter().map(Name::as_str).collect::<Vec<_>>(), ["a", "b", "d"], "{text}");
    assert!(text.contains("# leased registers itself"), "{text}");
    assert!(text.contains("# removed: leaving") && text.contains("# removed: c at 10.0.0.3:80"), "{text}");
    assert!(!text.contains("passing"), "{text}");
}

#[test]
fn with_nothing_to_take_over_it_is_an_empty_mapping() {
    let before = model(BEFORE);
    let none = patch(&before, &Overrides::new());
    assert!(none.ends_with("upstreams: {}\n"), "{none}");
    let spec = Spec { address: BackendAddress::Unix("/run/x".into()), weight: Weight::default() };
    let lease = Override { spec: Some(spec), lease: Some(Lease { ttl: 1, due: 1 }), ..Override::default() };
    let gone = Overrides::from([("gone".into(), [("x".into(), lease)].into())]);
    assert!(patch(&before, &gone).contains("# Upstream gone is not in the file"));
}

#[test]
fn what_looks_like_a_variable_is_text() {
    assert_eq!(quoted("unix:/run/${A}\"\u{1}.sock"), r#""unix:/run/$${A}\"\u0001.sock""#);
}
