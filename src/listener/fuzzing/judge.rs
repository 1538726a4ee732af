//! What must hold of what was seen on both sides of the proxy.

use super::{
    lane::{Backend, Record, next},
    strict::{self, Message, Read},
};

/// A request is tried so often, and once more for each pooled connection that turns out to be closed.
const ATTEMPTS: usize = 6;

/// A request of the client.
struct Asked {
    message: Message,
    whole: bool,
}

/// What the client has asked, and whether there is something behind it that is no request.
fn asked(record: &Record) -> (Vec<Asked>, bool) {
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        match next(&record.sent, at) {
            Some(Read::Whole(message, length)) => {
                all.push(Asked { message, whole: true });
                at += length;
            }
            Some(Read::Part(Some(message))) => {
                all.push(Asked { message, whole: false });
                return (all, false);
            }
            Some(Read::Part(None)) | None => return (all, false),
            Some(Read::Bad(_)) => return (all, true),
        }
    }
}

/// The whole answers at the beginning of some bytes, without interim ones, and what stands behind them.
fn answers(bytes: &[u8], to_head: impl Fn(usize) -> bool) -> (Vec<Message>, Read, usize) {
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        match strict::answer(&bytes[at..], to_head(all.len())) {
            Read::Whole(message, length) => {
                at += length;
                if message.status() >= 200 {
                    all.push(message);
                }
            }
            rest => return (all, rest, at),
        }
    }
}

fn to_client(record: &Record, asked: &[Asked]) -> (Vec<Message>, Read, usize) {
    answers(&record.client.got, |at| asked.get(at).is_some_and(|asked| asked.message.start[0] == b"HEAD"))
}

/// What a backend gave for a request of this method: the answer, whether it is whole, and whether something follows it.
fn given(bytes: &[u8], to_head: bool) -> Option<(Message, bool, bool)> {
    let mut at = 0;
    loop {
        match strict::answer(&bytes[at..], to_head) {
            Read::Whole(message, length) if message.status() < 200 => at += length,
            Read::Whole(message, length) => return Some((message, true, at + length < bytes.len())),
            Read::Part(Some(message)) => return Some((message, false, false)),
            Read::Part(None) | Read::Bad(_) => return None,
        }
    }
}

impl Backend {
    /// What this request's answer is made of.
    fn gave_for(&self, request: usize) -> &[u8] {
        let end = self.requests.get(request + 1).map_or(self.gave.len(), |next| next.1);
        &self.gave[self.requests[request].1..end]
    }

    fn request(&self, request: usize) -> Read {
        let end = self.requests.get(request + 1).map_or(self.far.got.len(), |next| next.0);
        strict::request(&self.far.got[self.requests[request].0..end])
    }

    /// Whether this request and its answer are whole, with nothing behind them.
    fn is_clean(&self, request: usize) -> bool {
        let Read::Whole(asked, _) = self.request(request) else { return false };
        let given = given(self.gave_for(request), asked.start[0] == b"HEAD");
        given.is_some_and(|(_, whole, more)| whole && !more)
    }

    fn is_open(&self) -> bool {
        !self.closed && !self.far.ended
    }
}

/// Nothing moves. `idle`: so many connections to backends wait for a request.
///
/// # Panics
/// Something should.
pub(super) fn settled(record: &Record, idle: usize) {
    let (asked, _) = asked(record);
    let (answers, _, _) = to_client(record, &asked);
    let whole = asked.iter().filter(|asked| asked.whole).count();
    let open = || record.backends.iter().filter(|backend| backend.is_open());
    let waits = !record.client.ended && answers.len() < whole;
    if waits {
        assert!(!record.over, "no backend is left, and the client is told nothing");
        // Then it is a backend who is waited for.
        let still_to_come = |backend: &&Backend| {
            let Some(last) = backend.requests.len().checked_sub(1) else { return false };
            let Read::Whole(asked, _) = backend.request(last) else { return false };
            match given(backend.gave_for(last), asked.start[0] == b"HEAD") {
                Some((_, whole, _)) => !whole,
                None => !matches!(strict::answer(backend.gave_for(last), false), Read::Bad(_)),
            }
        };
        assert!(open().any(|backend| still_to_come(&backend)), "a request stands still");
    }
    // One more where a request is under way.
    let busy = open().count().saturating_sub(idle);
    let under_way = !record.client.ended && answers.len() < asked.len();
    assert!(busy <= usize::from(under_way), "{busy} connections are neither used nor kept");
    let unclean =
        open().filter(|backend| (0..backend.requests.len()).any(|request| !backend.is_clean(request))).count();
    assert!(unclean <= busy, "a connection is kept though something on it was not whole");
}

/// All is over.
///
/// # Panics
/// What came out is not what it may be.
pub(super) fn ended(record: &Record) {
    let (asked, bad) = asked(record);
    for backend in &record.backends {
        for request in 0..backend.requests.len() {
            match backend.request(request) {
                Read::Bad(why) => panic!("a backend got no request: {why}"),
                Read::Whole(message, _) => assert!(!message.more, "something beside the data went on"),
                Read::Part(_) => {}
            }
            assert!(
                request + 1 == backend.requests.len() || backend.is_clean(request),
                "used again, and was not whole"
            );
        }
    }
    let last = attributed(record, &asked);

    let (answers, rest, _) = to_client(record, &asked);
    assert!(answers.len() <= asked.len() + usize::from(bad), "more answers than requests");
    match rest {
        Read::Bad(why) => panic!("the client got no answer: {why}"),
        Read::Part(Some(message)) => assert!(!message.open, "the client cannot tell where the answer ends"),
        Read::Part(None) | Read::Whole(..) => {}
    }
    for (answer, asked_of) in answers.iter().zip(last) {
        assert!(answer.all("content-length").count() <= 1, "two lengths");
        if answer.has("proxy-status") {
            continue;
        }
        let Some((backend, request)) = asked_of else { panic!("an answer that no backend gave") };
        let backend = &record.backends[backend];
        let (Read::Whole(to, _) | Read::Part(Some(to))) = backend.request(request) else { panic!("to half a head") };
        let given = given(backend.gave_for(request), to.start[0] == b"HEAD");
        let Some((from, whole, _)) = given else { panic!("an answer that is not the backend's") };
        assert!(whole || from.open && backend.closed, "the backend's answer broke off, and the client is not told");
        assert_eq!((answer.status(), &answer.data), (from.status(), &from.data));
    }
}

/// Of each request of the client the last attempt: connection and position on it. Backends got nothing else, and in no other
/// order.
fn attributed(record: &Record, asked: &[Asked]) -> Vec<Option<(usize, usize)>> {
    let mut last = vec![None; asked.len()];
    let (mut at, mut attempts) = (0, 0);
    let mut seen = vec![0; record.backends.len()];
    for index in &record.order {
        let position = seen[*index];
        seen[*index] += 1;
        let (got, whole) = match record.backends[*index].request(position) {
            Read::Whole(got, _) => (got, true),
            Read::Part(Some(got)) => (got, false),
            Read::Part(None) | Read::Bad(_) => continue,
        };
        let is = |asked: &Asked| {
            let same = got.start == asked.message.start && got.all("host").eq(asked.message.all("host"));
            same && if whole {
                asked.whole && got.data == asked.message.data
            } else {
                asked.message.data.starts_with(&got.data)
            }
        };
        while attempts >= ATTEMPTS || !asked.get(at).is_some_and(is) {
            at += 1;
            attempts = 0;
            assert!(at < asked.len(), "a backend got what no client has asked: {:?}", got.start);
        }
        attempts += 1;
        last[at] = Some((*index, position));
    }
    last
}
