//! Frames in, verdicts out.

use super::*;

const PATIENCE: Patience = Patience { header: Duration::from_secs(10), stall: Duration::from_secs(30), rate: None };

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A connection after the preface and the first SETTINGS.
fn begun(now: Instant) -> Watch {
    let mut watch = Watch::new(PATIENCE, now);
    watch.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).expect("the preface");
    watch.received(&frame(SETTINGS, 0, 0, &[]), now).expect("SETTINGS");
    watch.received(&frame(SETTINGS, ACK, 0, &[]), now).expect("SETTINGS acknowledged");
    watch
}

/// As [`begun`], where each stream must move a KiB a second.
fn paced(now: Instant) -> Watch {
    let mut watch = begun(now);
    watch.rules.patience.rate = Some(1024);
    watch
}

/// Feeds all of it, as the guard does.
fn feed(watch: &mut Watch, bytes: &[u8], now: Instant) {
    watch.received(bytes, now).expect("nothing wrong");
    watch.opened();
}

/// Feeds the same frame until the verdict; how many were let through.
fn until(watch: &mut Watch, bytes: &[u8], now: Instant) -> (usize, Option<Verdict>) {
    for count in 0..5000 {
        if let Err(verdict) = watch.received(bytes, now) {
            return (count, Some(verdict));
        }
    }
    (5000, None)
}

#[test]
fn every_flood_has_its_name() {
    let now = Instant::now();
    for (bytes, most, kind) in [
        (frame(PING, 0, 0, &[0; 8]), 100, H2Abuse::Ping),
        (frame(PING, ACK, 0, &[0; 8]), 100, H2Abuse::Ping),
        (frame(SETTINGS, 0, 0, &[]), 50, H2Abuse::Settings),
        (frame(SETTINGS, 0, 0, &[0; 6 * 200]), 5, H2Abuse::Settings),
        (frame(2, 0, 1, &[0; 5]), 200, H2Abuse::Priority),
        (frame(0x77, 0, 0, &[]), 200, H2Abuse::Priority),
        (frame(RST_STREAM, 0, 1, &[0; 4]), 1000, H2Abuse::Reset),
        (frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 1000, H2Abuse::WindowUpdate),
    ] {
        let (count, verdict) = until(&mut begun(now), &bytes, now);
        assert_eq!(verdict, Some(Verdict::Ours(kind)));
        assert!((most / 2..=most).contains(&count), "{kind:?} after {count}");
    }
}

#[test]
fn frames_are_found_however_they_are_cut() {
    let now = Instant::now();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9, 0, 3, 0, 0, 0, 1]));
    bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x82; 40]));
    bytes.extend(frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 5]));
    for size in 1..bytes.len() {
        let mut watch = Watch::new(PATIENCE, now);
        for part in bytes.chunks(size) {
            feed(&mut watch, part, now);
        }
        assert_eq!(watch.rules.streams.find(1).map(|stream| stream.window), Some(14), "in parts of {size}");
        assert_eq!(watch.rules.begun, None);
    }
}

#[test]
fn finished_answers_allow_resets_and_unfinished_ones_do_not() {
    let now = Instant::now();
    let mut watch = begun(now);
    for stream in (1..4001).step_by(2) {
        watch.received(&frame(HEADERS, END_HEADERS, stream, &[0x82]), now).expect("a request");
        watch.sent(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]), now).expect("an answer");
        watch.received(&frame(RST_STREAM, 0, stream, &[0; 4]), now).expect("a reset of what is over");
    }
    let mut resets = 0;
    let verdict = (4001..8001).step_by(2).find_map(|stream| {
        watch.received(&frame(HEADERS, END_HEADERS, stream, &[0x82]), now).expect("a request");
        resets += 1;
        watch.received(&frame(RST_STREAM, 0, stream, &[0; 4]), now).err()
    });
    assert_eq!((verdict, resets), (Some(Verdict::Ours(H2Abuse::Reset)), 201));
}

#[test]
fn resets_for_the_clients_errors_count_and_a_backends_do_not() {
    let now = Instant::now();
    let mut watch = begun(now);
    for _ in 0..1000 {
        watch.sent(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]), now).expect("INTERNAL_ERROR");
        watch.sent(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), now).expect("CANCEL");
    }
    let mut verdict = None;
    let count = (0..1000).take_while(|_| {
        verdict = watch.sent(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 3]), now).err();
        verdict.is_none()
    });
    assert_eq!(count.count(), 200);
    assert_eq!(verdict, Some(Verdict::Ours(H2Abuse::ServerReset)));
}

#[test]
fn a_dribbled_window_is_too_much_and_a_busy_reader_is_not() {
    let now = Instant::now();
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]);
    let answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let mut watch = begun(now);
    watch.received(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]), now).expect("a window of one byte");
    watch.received(&request, now).expect("a request");
    watch.sent(&answer, now).expect("an answer");
    let crumb = |watch: &mut Watch| {
        watch.sent(&frame(DATA, 0, 1, b"x"), now).expect("DATA");
        watch.received(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), now)
    };
    let count = (0..1000).take_while(|_| crumb(&mut watch).is_ok()).count();
    assert_eq!(count, 200);
    // Messages of a few bytes, each given back at once, as some libraries do.
    let mut watch = begun(now);
    watch.received(&request, now).expect("a request");
    watch.sent(&answer, now).expect("an answer");
    for _ in 0..10_000 {
        watch.sent(&frame(DATA, 0, 1, b"x"), now).expect("DATA");
        watch.received(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), now).expect("given back");
        watch.received(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), now).expect("given back");
        watch.received(&frame(PING, 0, 0, &[0; 8]), now).expect("a ping for each answer's part");
    }
}

/// Windows of some megabytes are full when the first of it is given back: in Go by what each reading has taken.
#[test]
fn who_gives_back_what_was_on_its_way_by_small_readings_is_no_abuser() {
    let now = Instant::now();
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]);
    let answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    for (data, frames, reading) in [(16_384, 512, 512), (16_384, 512, 256), (3, 20_000, 3)] {
        let mut watch = begun(now);
        watch.received(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0x7f, 0xff, 0xff]), now).expect("a large window");
        watch.received(&frame(WINDOW_UPDATE, 0, 0, &[0, 0x7f, 0, 0]), now).expect("and that of the connection");
        watch.received(&request, now).expect("a request");
        watch.sent(&answer, now).expect("an answer");
        for _ in 0..frames {
            watch.sent(&frame(DATA, 0, 1, &vec![0; data]), now).expect("DATA");
        }
        for _ in 0..frames * data / reading {
            let by = u32::try_from(reading).expect("small").to_be_bytes();
            watch.received(&frame(WINDOW_UPDATE, 0, 1, &by), now).expect("given back");
            watch.received(&frame(WINDOW_UPDATE, 0, 0, &by), now).expect("given back");
        }
    }
}

#[test]
fn a_rest_of_a_window_that_is_given_back_as_it_came_is_no_crumb_where_most_is_large() {
    let now = Instant::now();
    let mut watch = begun(now);
    watch.received(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]), now).expect("a request");
    watch.sent(&frame(HEADERS, END_HEADERS, 1, &[0x88]), now).expect("an answer");
    for parts in [[16_384, 16_384, 16_384, 16_283, 100], [32_000, 33_240, 95, 100, 100]].repeat(1_000) {
        for part in parts {
            watch.sent(&frame(DATA, 0, 1, &vec![0; part]), now).expect("DATA");
        }
        for part in [parts[4], parts[3], parts[2], parts[1], parts[0]] {
            let by = u32::try_from(part).expect("small").to_be_bytes();
            watch.received(&frame(WINDOW_UPDATE, 0, 1, &by), now).expect("given back");
            watch.received(&frame(WINDOW_UPDATE, 0, 0, &by), now).expect("given back");
        }
    }
}

#[test]
fn what_was_begun_must_be_finished() {
    let now = Instant::now();
    let late = Err(Verdict::Ours(H2Abuse::HeaderTimeout));
    let soon = now + Duration::from_secs(9);
    let then = now + Duration::from_secs(10);
    let mut watch = Watch::new(PATIENCE, now);
    assert_eq!((watch.late(soon), watch.late(then)), (Ok(vec![]), late.clone()), "no SETTINGS");
    watch.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", soon).expect("not yet a frame");
    assert_eq!(watch.late(then), late.clone(), "SETTINGS begun");
    let mut watch = begun(now);
    assert!(watch.late(then).is_ok() && !watch.waits());
    watch.received(&frame(HEADERS, END_STREAM, 1, &[0x82]), now).expect("half a header block");
    watch.received(&frame(CONTINUATION, 0, 1, &[0x82]), soon).expect("more of it");
    assert_eq!(watch.late(then), late);
    watch.received(&frame(CONTINUATION, END_HEADERS, 1, &[0x82]), then).expect("the rest");
    assert_eq!(watch.late(then), Ok(vec![]));
    watch.received(&frame(DATA, 0, 1, &[0; 100])[..50], then).expect("a part of a body");
    assert_eq!(watch.late(then + Duration::from_secs(60)), Ok(vec![]), "bodies have deadlines of their own");
}

#[test]
fn a_frame_is_late_by_its_own_beginning_and_not_by_that_of_one_before() {
    let start = Instant::now();
    let mut watch = begun(start);
    let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0x10, 0]);
    // Each read ends within a frame, as those of a busy client may.
    watch.received(&update[..5], start).expect("a part of a frame");
    for second in 1..30 {
        let now = start + Duration::from_secs(second);
        watch.received(&[&update[5..], &update[..5]].concat(), now).expect("the rest of one, and a part of another");
        assert_eq!(watch.late(now), Ok(Vec::new()), "after {second} s");
    }
    assert_eq!(watch.late(start + Duration::from_secs(39)), Err(Verdict::Ours(H2Abuse::HeaderTimeout)));
}

#[test]
fn answers_that_wait_for_a_closed_window_end_the_connection() {
    let now = Instant::now();
    let mut watch = begun(now);
    watch.received(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), now).expect("no window");
    watch.received(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]), now).expect("a request");
    let then = now + Duration::from_secs(30);
    assert_eq!(watch.late(then), Ok(vec![]), "the backend has not answered yet");
    watch.sent(&frame(HEADERS, END_HEADERS, 1, &[0x88]), now).expect("an answer");
    assert_eq!(watch.late(then), Err(Verdict::Ours(H2Abuse::Stall)));
    watch.received(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]), now).expect("a window");
    assert_eq!(watch.late(then), Ok(vec![]));
}

#[test]
fn a_first_frame_that_is_not_settings_is_refused() {
    let now = Instant::now();
    let mut watch = Watch::new(PATIENCE, now);
    watch.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).expect("the preface");
    assert_eq!(watch.received(&frame(PING, 0, 0, &[0; 8]), now), Err(Verdict::Ours(H2Abuse::Protocol)));
}

#[test]
fn a_goaway_of_the_crates_is_named() {
    let goaway = |code: u32, text: &[u8]| {
        let payload = [&[0; 4], &code.to_be_bytes()[..], text].concat();
        begun(Instant::now()).sent(&frame(GOAWAY, 0, 0, &payload), Instant::now())
    };
    assert_eq!(goaway(0, b""), Ok(()));
    assert_eq!(goaway(11, b"too_many_continuations"), Err(Verdict::Theirs(H2Abuse::Continuation)));
    assert_eq!(goaway(11, b"too_many_resets"), Err(Verdict::Theirs(H2Abuse::Reset)));
    assert_eq!(goaway(1, b""), Err(Verdict::Theirs(H2Abuse::Protocol)));
}

#[test]
fn settings_that_nobody_acknowledges_end_the_connection() {
    let now = Instant::now();
    let mut watch = Watch::new(PATIENCE, now);
    watch.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).expect("the preface");
    watch.received(&frame(SETTINGS, 0, 0, &[]), now).expect("SETTINGS");
    assert!(watch.waits());
    assert_eq!(watch.late(now + Duration::from_secs(9)), Ok(vec![]));
    assert_eq!(watch.late(now + Duration::from_secs(10)), Err(Verdict::Ours(H2Abuse::SettingsTimeout)));
    watch.received(&frame(SETTINGS, ACK, 0, &[]), now).expect("an acknowledgement");
    assert_eq!(watch.late(now + Duration::from_secs(10)), Ok(vec![]));
}

#[test]
fn a_slow_request_is_named_once_and_only_while_it_may_be_sent() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let slow = || Ok(vec![(1, Reason::ClientTimeout)]);
    let mut watch = paced(now);
    feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
    feed(&mut watch, &frame(DATA, 0, 1, &[0; 1024]), now);
    assert_eq!((watch.late(at(5)), watch.late(at(6)), watch.late(at(7))), (Ok(vec![]), slow(), Ok(vec![])));
    // Nobody is waited for: all the windows allow has come, the request has ended, or it is answered.
    let mut watch = paced(now);
    watch.sent(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]), now).expect("a window of ten bytes");
    feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
    feed(&mut watch, &frame(DATA, 0, 1, &[0; 10]), now);
    assert_eq!(watch.late(at(3600)), Ok(vec![]), "no window");
    watch.sent(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 10]), at(3600)).expect("a window");
    assert_eq!((watch.late(at(3604)), watch.late(at(3606))), (Ok(vec![]), slow()));
    for end in [(DATA, END_STREAM), (HEADERS, END_STREAM | END_HEADERS)] {
        let mut watch = paced(now);
        feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
        feed(&mut watch, &frame(end.0, end.1, 1, &[]), now);
        assert_eq!(watch.late(at(3600)), Ok(vec![]), "ended");
    }
    let mut watch = paced(now);
    feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
    watch.sent(&frame(HEADERS, END_HEADERS, 1, &[0x88]), now).expect("an answer");
    assert_eq!(watch.late(at(3600)), Ok(vec![]), "answered");
}

#[test]
fn padding_pays_for_no_time() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    for size in [1, 9, 10, 1 << 16] {
        let mut watch = paced(now);
        feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
        // In all 16 KiB a second, of which a KiB is data in all five seconds.
        let padded = frame(DATA, PADDED, 1, &[&[255, b'x'][..], &[0; 255]].concat());
        let (mut named, before) = (None, watch.rules.room);
        let grant = u32::try_from(64 * (padded.len() - 9)).expect("few").to_be_bytes();
        for second in 0..8 {
            for stream in [0, 1] {
                watch.sent(&frame(WINDOW_UPDATE, 0, stream, &grant), at(second)).expect("a window");
            }
            for part in padded.repeat(64).chunks(size) {
                feed(&mut watch, part, at(second));
            }
            let late = watch.late(at(second)).expect("no verdict");
            named = named.or((!late.is_empty()).then_some(second));
        }
        assert_eq!(named, Some(6), "in parts of {size}: what was data has paid for a part of a second");
        assert_eq!(watch.rules.room, before, "all of it fills the window");
    }
    // A frame that says that it is padding and more is none; the h2 crate sees to it.
    let mut watch = paced(now);
    feed(&mut watch, &frame(HEADERS, END_HEADERS, 1, &[0x82]), now);
    for nonsense in [&[255, 1][..], &[0], &[]] {
        feed(&mut watch, &frame(DATA, PADDED, 1, nonsense), now);
    }
    assert_eq!(watch.late(at(5)), Ok(vec![(1, Reason::ClientTimeout)]));
}

#[test]
fn a_stalled_answer_is_named_and_all_stalled_are_a_stall() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut watch = paced(now);
    feed(&mut watch, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), now);
    for stream in [1, 3] {
        feed(&mut watch, &frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82]), now);
    }
    watch.sent(&frame(HEADERS, END_HEADERS, 1, &[0x88]), now).expect("an answer");
    assert_eq!(watch.late(at(4)), Ok(vec![]));
    assert_eq!(watch.late(at(5)), Ok(vec![(1, Reason::TooSlow)]), "the other waits for its backend");
    watch.sent(&frame(HEADERS, END_HEADERS, 3, &[0x88]), at(5)).expect("an answer");
    assert_eq!(watch.late(at(10)), Err(Verdict::Ours(H2Abuse::Stall)));
    // A connection's window that is opened a little now and then.
    let mut watch = paced(now);
    feed(&mut watch, &frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]), now);
    feed(&mut watch, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]), now);
    watch.sent(&frame(HEADERS, END_HEADERS, 1, &[0x88]), now).expect("an answer");
    watch.sent(&frame(DATA, 0, 1, &[0; 65_535]), now).expect("all that the window takes");
    let late = (1..100).find(|second| {
        watch.received(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]), at(*second)).expect("a crumb");
        watch.sent(&frame(DATA, 0, 1, &[0; 256]), at(*second)).expect("DATA");
        watch.late(at(*second)) == Err(Verdict::Ours(H2Abuse::Stall))
    });
    assert_eq!(late, Some(40), "of each second a quarter is paid for, and thirty at first");
}

/// A stream that is slower than its backend has a closed window at nearly any moment.
#[test]
fn one_that_goes_on_is_not_slow_for_those_that_stand_beside_it() {
    let start = Instant::now();
    let mut watch = paced(start);
    for stream in [1, 3] {
        watch.received(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82]), start).expect("a request");
        watch.sent(&frame(HEADERS, END_HEADERS, stream, &[0x88]), start).expect("an answer");
    }
    watch.received(&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), start).expect("a large window of the connection");
    for stream in [1, 3] {
        watch.sent(&frame(DATA, 0, stream, &[0; 65_535]), start).expect("its window is full");
    }
    let mut slow = Vec::new();
    for tenth in 1..600 {
        let now = start + Duration::from_millis(tenth * 100);
        watch.received(&frame(WINDOW_UPDATE, 0, 3, &[0, 0, 0x10, 0]), now).expect("given back");
        watch.sent(&frame(DATA, 0, 3, &[0; 4096]), now).expect("sent at once");
        slow.extend(watch.late(now).expect("no stall"));
    }
    assert_eq!(slow, [(1, Reason::TooSlow)]);
}

/// A stream whose answer has begun, where so much is left of its window and of the connection's.
fn answered(watch: &mut Watch, stream: u32, [rest, of_all]: [u16; 2], now: Instant) {
    const WINDOW: u16 = 40_000;
    feed(watch, &frame(SETTINGS, 0, 0, &[&[0, 4, 0, 0][..], &WINDOW.to_be_bytes()].concat()), now);
    feed(watch, &frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82]), now);
    watch.sent(&frame(HEADERS, END_HEADERS, stream, &[0x88]), now).expect("an answer");
    watch.rules.window = i64::from(WINDOW - rest + of_all);
    watch.sent(&frame(DATA, 0, stream, &vec![0; usize::from(WINDOW - rest)]), now).expect("DATA");
}

/// An event stream whose next event comes in an hour, and a client that gives back only what is used up.
#[test]
fn a_rest_of_a_window_waits_for_nobody_unless_a_part_does() {
    let now = Instant::now();
    let at = |millis| now + Duration::from_millis(millis);
    for rest in [[100, 20_000], [20_000, 100]] {
        let mut watch = paced(now);
        answered(&mut watch, 1, rest, now);
        assert_eq!(watch.late(at(3_600_000)), Ok(vec![]), "{rest:?} are left");
        assert!(!watch.rules.starved());
    }
    // Of each fifth of a second a part waits a tenth, and is then sent by a byte; the other tenth there is no room at all.
    let mut watch = paced(now);
    answered(&mut watch, 1, [0, 20_000], now);
    answered(&mut watch, 3, [20_000, 20_000], now);
    let mut named = Vec::new();
    for tick in 0..200 {
        let (opened, sent) = (at(tick * 200), at(tick * 200 + 100));
        feed(&mut watch, &frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), opened);
        watch.held(1, true, opened);
        assert!(watch.rules.starved());
        watch.held(1, false, sent);
        watch.sent(&frame(DATA, 0, 1, b"x"), sent).expect("a byte");
        named.extend(watch.late(sent).expect("no stall").into_iter().map(|slow| (slow, tick / 5)));
    }
    assert_eq!(named, [((1, Reason::TooSlow), 30)], "as long as may be paid for ahead");
}

#[test]
fn a_crumb_of_the_connections_window_that_streams_share_is_no_window() {
    let now = Instant::now();
    let at = |millis| now + Duration::from_millis(millis);
    let mut watch = paced(now);
    for stream in [1, 3, 5] {
        answered(&mut watch, stream, [20_000, 40], now);
    }
    // They have it in turn, and it is never used up.
    let late = (0..1000).find(|tick| {
        let (from, stream) = (at(tick * 100), [1, 3, 5][usize::try_from(tick % 3).expect("small")]);
        watch.held(stream, true, from);
        feed(&mut watch, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]), from);
        watch.sent(&frame(DATA, 0, stream, &[0; 9]), from).expect("a crumb");
        watch.late(from) == Err(Verdict::Ours(H2Abuse::Stall)) || {
            watch.held([5, 1, 3][usize::try_from(tick % 3).expect("small")], false, from);
            false
        }
    });
    let seconds = late.expect("it ends") / 10;
    assert!((30..34).contains(&seconds), "after {seconds} s: what may be paid for ahead, and a tenth of each second");
    // Who has reset what waited owes nothing.
    let mut watch = paced(now);
    answered(&mut watch, 1, [20_000, 100], now);
    watch.held(1, true, now);
    watch.received(&frame(RST_STREAM, 0, 1, &[0; 4]), now).expect("a reset");
    feed(&mut watch, &frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x82]), at(3_600_000));
    watch.sent(&frame(HEADERS, END_HEADERS, 3, &[0x88]), at(3_600_000)).expect("an answer");
    assert_eq!(watch.late(at(3_600_000)), Ok(vec![]));
}

/// The system takes what is written more slowly than backend and client are, and our own room is used up.
#[test]
fn who_has_opened_its_windows_wide_is_not_waited_for_by_a_part_that_is() {
    let now = Instant::now();
    let mut watch = paced(now);
    answered(&mut watch, 1, [35_000, 35_000], now);
    watch.held(1, true, now);
    assert!(!watch.rules.starved());
    let (count, verdict) = until(&mut watch, &frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 200]), now);
    assert!(count > 900 && verdict != Some(Verdict::Ours(H2Abuse::Dribble)), "{verdict:?} after {count}");
}

#[test]
fn crumbs_for_a_part_that_waits_for_more_are_a_dribble() {
    let now = Instant::now();
    for (stream, rest) in [(1, [10, 20_000]), (0, [20_000, 10])] {
        let mut watch = begun(now);
        answered(&mut watch, 1, rest, now);
        watch.held(1, true, now);
        let (count, verdict) = until(&mut watch, &frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1]), now);
        assert_eq!(verdict, Some(Verdict::Ours(H2Abuse::Dribble)), "after {count}");
        assert!((200..240).contains(&count), "{count}, with what the answer has earned");
    }
}

#[test]
fn who_opens_streams_and_resets_them_is_told() {
    let now = Instant::now();
    let bytes = [
        frame(HEADERS, END_HEADERS, 1, &[0x82]),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82]), // trailers
        frame(HEADERS, END_STREAM, 3, &[0x82]),
        frame(CONTINUATION, END_HEADERS, 3, &[0x82]),
        frame(RST_STREAM, 0, 3, &[0; 4]),
        frame(RST_STREAM, 0, 3, &[0; 4]),
    ]
    .concat();
    let mut watch = begun(now);
    watch.received(&bytes, now).expect("nothing wrong");
    assert_eq!(watch.opened().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(watch.left().collect::<Vec<_>>(), [3]);
    assert_eq!(watch.opened().len(), 0);
    assert_eq!(watch.left().len(), 0);
}
