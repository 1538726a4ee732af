//! Ejections as the store sees them: whom they count for, and what is told of them.

use super::*;
use crate::policy::outlier::Fault;

#[test]
fn one_that_is_ejected_is_nobody_to_be_left_with_but_may_be_taken_away() {
    let backends = "  app: { backends: [{ id: a, address: 127.0.0.1:1 }, { id: b, address: 127.0.0.1:2 }], \
                    eject: { consecutive_failures: 1 } }\n";
    let store = store(with_upstreams(backends), None);
    let upstream = store.view(&app()).expect("app").upstream;
    upstream.went_wrong(&upstream.backends()[0], Fault::Status(500), Instant::now());
    let refused = set(&store, "b", AdminState::Drain);
    let ejected = Refusal::OthersEjected { last: "b".into(), ejected: "a".into() };
    assert!(matches!(&refused, Err(ChangeError::Refused(refusal)) if *refusal == ejected), "{refused:?}");
    set(&store, "a", AdminState::Drain).expect("no request goes there");
    set(&store, "a", AdminState::Ready).expect("a backend");
    store.sweep_ejected(Instant::now());
    let counted = |name: &str| {
        let text = store.metrics().encode();
        let sample = format!("{name}{{upstream=\"app\",backend=\"a\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&sample).map(str::to_owned)).expect("a sample")
    };
    assert_eq!((counted("rrlb_backend_ejected"), counted("rrlb_backend_ejections_total")), ("1".into(), "1".into()));
    store.sweep_ejected(Instant::now() + Duration::from_secs(10));
    assert_eq!((counted("rrlb_backend_ejected"), counted("rrlb_backend_ejections_total")), ("0".into(), "1".into()));
    let events: Vec<_> =
        store.events().after(0, 9).0.into_iter().filter(|event| event.who == "passive check").collect();
    let told: Vec<_> = events.iter().map(|event| (event.kind, event.what.as_str(), event.why.as_str())).collect();
    let ejected = ("backend.ejected", "out for 10s", "a failure: status 500");
    assert_eq!(told, [ejected, ("backend.returned", "not ejected any more", "its time is over")]);
    set(&store, "b", AdminState::Drain).expect("a is back");
}
