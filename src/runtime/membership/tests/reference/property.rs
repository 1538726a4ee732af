//! The property that [`Membership`] does as the reference, whatever is done to it.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::runtime::journal::{Overrides, decode, encode};

const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
#[derive(Clone, Debug)]
enum Op {
    DeclareFile(Vec<Thing>),
    DeclareFound(Vec<Thing>),
    Forget(&'static str, bool),
    Patch(&'static str, PatchOp),
    Put(&'static str, PutOp),
    Remove(&'static str, u64, bool),
    Replace(Vec<(&'static str, PutOp)>, u64, bool),
    Restart,
    Sweep(Vec<&'static str>),
    Wait(u64),
}

fn id() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&IDS[..])
}

fn drain() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..60u64]
}

fn things(source: Source) -> impl Strategy<Value = Vec<Thing>> {
    let thing = move |(id, address, weight)| Thing { id, address, weight, admin: AdminState::Ready, source };
    vec((id(), 1..7u16, 0..3u16).prop_map(thing), 0..5)
}

fn put(ttl: bool) -> impl Strategy<Value = PutOp> {
    let ttl = if ttl { option::of(1..40u64).boxed() } else { Just(None).boxed() };
    (1..7u16, option::of(0..3u16), ttl, any::<bool>(), prop::bool::weighted(0.25))
        .prop_map(|(address, weight, ttl, force, transient)| PutOp { address, weight, ttl, force, transient })
}

fn op() -> impl Strategy<Value = Op> {
    let admin = option::of(prop::sample::select(&AdminState::ALL[..]));
    let patch = (option::of(0..3u16), admin, any::<bool>(), prop::bool::weighted(0.25))
        .prop_map(|(weight, admin, force, transient)| PatchOp { weight, admin, force, transient });
    prop_oneof![
        2 => things(Source::File).prop_map(Op::DeclareFile),
        2 => things(Source::Dns).prop_map(Op::DeclareFound),
        2 => (id(), any::<bool>()).prop_map(|(id, force)| Op::Forget(id, force)),
        5 => (id(), patch).prop_map(|(id, op)| Op::Patch(id, op)),
        6 => (id(), put(true)).prop_map(|(id, op)| Op::Put(id, op)),
        4 => (id(), drain(), any::<bool>()).prop_map(|(id, drain, force)| Op::Remove(id, drain, force)),
        3 => (vec((id(), put(false)), 0..4), drain(), any::<bool>())
            .prop_map(|(puts, drain, force)| Op::Replace(puts, drain, force)),
        2 => Just(Op::Restart),
        4 => vec(id(), 0..4).prop_map(Op::Sweep),
        3 => (0..30u64).prop_map(Op::Wait),
    ]
}

fn refusal<T>(result: Result<T, Refusal>) -> Result<T, No> {
    result.map_err(|refusal| match refusal {
        Refusal::DuplicateAddress { .. } | Refusal::Leaving { .. } => No::Duplicate,
        Refusal::Exists(_) => unreachable!("only the API asks for what is new"),
        Refusal::LastReady(_) | Refusal::OthersEjected { .. } => No::LastReady,
        Refusal::NoOverride(_) => No::Unsaid,
        Refusal::NotFound(_) => No::NotFound,
        Refusal::NotLeasable { .. } => No::NotLeasable,
        Refusal::TooMany => unreachable!("there are five ids"),
    })
}

fn declared(things: &[Thing]) -> Vec<Declared> {
    let one =
        |thing: &Thing| Declared { id: thing.id.into(), spec: spec(thing.address, thing.weight), source: thing.source };
    things.iter().map(one).collect()
}

fn real_put(put: &PutOp) -> Put {
    let PutOp { address, weight, ttl, force, transient } = put;
    let weight = weight.map(|weight| Weight::new(weight).expect("a weight"));
    Put { address: at(*address), weight, ttl: *ttl, force: *force, transient: *transient }
}

fn seen(membership: &Membership) -> Vec<(String, Spec, AdminState, Source)> {
    let entry = |Entry { id, spec, admin, source }| (Name::to_string(&id), spec, admin, source);
    membership.entries().into_iter().map(entry).collect()
}

fn expected(reference: &Reference) -> Vec<(String, Spec, AdminState, Source)> {
    let entry = |thing: Thing| (thing.id.to_owned(), spec(thing.address, thing.weight), thing.admin, thing.source);
    reference.members().into_iter().map(entry).collect()
}

fn check(ops: &[Op]) -> Result<(), TestCaseError> {
    let (mut real, mut reference, mut now) = (Membership::default(), Reference::default(), 0);
    for op in ops {
        let (was, version, was_ready) = (seen(&real), real.version(), any_ready(&real));
        let mut may_end = false;
        match op {
            Op::DeclareFile(things) => {
                real.declare_file(declared(things));
                reference.file = things.clone();
                reference.declare(true);
                may_end = true;
            }
            Op::DeclareFound(things) => {
                real.declare_found(declared(things));
                reference.found = things.clone();
                reference.declare(false);
                may_end = true;
            }
            Op::Forget(id, force) => {
                let outcome = refusal(real.forget(&(*id).into(), *force));
                prop_assert_eq!(&outcome, &reference.forget(id, *force));
                may_end = *force;
                if let (Ok(_), Some(thing)) = (outcome, reference.declared(id)) {
                    let entry = real.entry(&(*id).into());
                    let restored = entry.map(|entry| (entry.spec, entry.admin, entry.source));
                    let thing = (spec(thing.address, thing.weight), AdminState::Ready, thing.source);
                    prop_assert_eq!(restored, Some(thing), "it is as declared");
                }
            }
            Op::Patch(id, op) => {
                let PatchOp { weight, admin, force, transient } = *op;
                let weight = weight.map(|weight| Weight::new(weight).expect("a weight"));
                let patch = Patch { weight, admin, force, transient };
                let outcome = refusal(real.patch(&(*id).into(), patch, Note::default()));
                prop_assert_eq!(outcome, reference.patch(id, op));
                may_end = force;
            }
            Op::Put(id, op) => {
                let outcome = refusal(real.put(&(*id).into(), real_put(op), Note::default(), now));
                prop_assert_eq!(outcome, reference.put(id, op, now));
                may_end = op.force;
            }
            Op::Remove(id, drain, force) => {
                let outcome = refusal(real.remove(&(*id).into(), *drain, *force, Note::default(), now));
                prop_assert_eq!(outcome, reference.remove(id, *drain, *force, now));
                may_end = *force;
            }
            Op::Replace(puts, drain, force) => {
                let named = puts.iter().map(|(id, put)| ((*id).into(), real_put(put))).collect();
                let outcome = refusal(real.replace(named, *drain, *force, &Note::default(), now));
                prop_assert_eq!(outcome, reference.replace(puts, *drain, *force, now));
                may_end = *force;
            }
            Op::Restart => {
                let all = Overrides::from([("app".into(), real.overrides().clone())]);
                let text = encode(&all, now);
                reference.restart(now, 7);
                now = 7;
                let mut kept = decode(&text, now).map_err(TestCaseError::fail)?;
                real = Membership::restored(kept.remove(&Name::from("app")).unwrap_or_default());
                real.declare_file(declared(&reference.file));
                real.declare_found(declared(&reference.found));
                may_end = true;
            }
            Op::Sweep(busy) => {
                let mut changed = real.sweep(now, DRAIN, |id| u32::from(busy.contains(&id.as_str())));
                changed.sort_by(|(one, _), (other, _)| one.cmp(other));
                let mut expected = reference.sweep(now, busy);
                expected.sort_by_key(|(id, _)| *id);
                let expected: Vec<_> = expected.into_iter().map(|(id, outcome)| (id.into(), outcome)).collect();
                prop_assert_eq!(changed, expected);
                may_end = true;
            }
            Op::Wait(time) => now += time,
        }
        let is = seen(&real);
        prop_assert_eq!(&is, &expected(&reference), "after {:?}", op);
        prop_assert!(may_end || !was_ready || any_ready(&real), "nobody is ready after {:?}", op);
        prop_assert_eq!(version == real.version(), was == is, "the version after {:?}", op);
        let ids: BTreeSet<&String> = is.iter().map(|(id, ..)| id).collect();
        let addresses: BTreeSet<&BackendAddress> = is.iter().map(|(_, spec, ..)| &spec.address).collect();
        prop_assert!(ids.len() == is.len() && addresses.len() == is.len(), "twice in {:?}", is);
        let said: Vec<&str> = real.overrides().keys().map(Name::as_str).collect();
        prop_assert_eq!(said, reference.live.keys().copied().collect::<Vec<_>>(), "overrides after {:?}", op);
    }
    Ok(())
}

/// More than the default of 256, which is too few for some pairs of rules; `PROPTEST_CASES` asks for more still.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(2_000), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_is_done_it_does_as_the_reference(ops in vec(op(), 1..40)) {
        check(&ops)?;
    }
}
