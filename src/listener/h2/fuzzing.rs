//! Frames both ways in any order, as the guard of an HTTP/2 connection sees them.

use std::time::{Duration, Instant};

use super::{
    pace::Patience,
    watch::{STREAMS, Verdict, Watch},
};

const PATIENCE: Patience =
    Patience { header: Duration::from_secs(10), stall: Duration::from_secs(30), rate: Some(1024) };

/// The input is a list of events: what it is, how long it is, and its bytes. A client's and a server's bytes, and time that
/// passes. The verdict does not depend on how the bytes are cut, and what is held is bounded.
///
/// # Panics
/// If that does not hold.
pub fn h2_frames(input: &[u8]) {
    let start = Instant::now();
    let whole = judged(input, start, usize::MAX);
    for size in [1, 7] {
        assert_eq!(judged(input, start, size), whole, "in parts of {size}");
    }
    // Without events, as a client's bytes.
    let raw = |size: usize| {
        let mut watch = Watch::new(PATIENCE, start);
        let verdict = input.chunks(size).try_for_each(|part| receive(&mut watch, part, start));
        (verdict, watch.seen())
    };
    assert_eq!(raw(input.len().max(1)), raw(1));
}

type Judgement = (Result<(), Verdict>, (Vec<(u32, i64, bool)>, i64, bool));

fn judged(input: &[u8], start: Instant, size: usize) -> Judgement {
    let mut watch = Watch::new(PATIENCE, start);
    let mut now = start;
    let verdict = receive(&mut watch, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).and_then(|()| {
        let mut rest = input;
        while let [kind, length, after @ ..] = rest {
            let (bytes, left) = after.split_at(usize::from(*length).min(after.len()));
            rest = left;
            match kind % 8 {
                0 => {
                    now += Duration::from_millis(u64::from(*length) * 100);
                    rest = after;
                    watch.late(now)?;
                }
                1 => {
                    watch.stands((length % 2 == 1).then_some(now));
                    watch.held(u32::from(length >> 2), length & 2 != 0, now);
                    rest = after;
                }
                2..5 => bytes.chunks(size).try_for_each(|part| send(&mut watch, part, now))?,
                _ => bytes.chunks(size).try_for_each(|part| receive(&mut watch, part, now))?,
            }
        }
        Ok(())
    });
    let seen = watch.seen();
    assert!(seen.0.len() <= STREAMS, "{} streams are held", seen.0.len());
    (verdict, seen)
}

/// As the guard does.
fn send(watch: &mut Watch, bytes: &[u8], now: Instant) -> Result<(), Verdict> {
    watch.sent(bytes, now)?;
    assert!(watch.broken().len() <= bytes.len() / 13 + 1);
    Ok(())
}

/// As the guard does.
fn receive(watch: &mut Watch, bytes: &[u8], now: Instant) -> Result<(), Verdict> {
    watch.received(bytes, now)?;
    // Of one read there are no more than frames fit into it.
    assert!(watch.opened().len() <= bytes.len() / 9 + 1);
    assert!(watch.left().len() <= bytes.len() / 13 + 1);
    Ok(())
}
