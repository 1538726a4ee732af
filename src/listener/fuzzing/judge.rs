//! What must hold of what was seen on both sides of the proxy.

use super::{
    lane::{Backend, Record, next},
    strict::{self, Message, Read},
    whose,
};

/// A request of the client.
pub(super) struct Asked {
    pub(super) message: Message,
    pub(super) whole: bool,
}

/// What the client has asked, and whether there is something behind it that is no request, or no whole head of one: it may be
/// refused before its end has come.
fn asked(record: &Record) -> (Vec<Asked>, bool) {
    let (mut all, mut at) = (Vec::new(), 0);
    loop {
        match next(&record.sent, at) {
            Some(Read::Whole(message, length)) => {
                all.push(Asked { message, whole: true });
                at += length;
            }
            // It may be on its way before it breaks.
            Some(Read::Part(Some(message)) | Read::Broken(message, _)) => {
                all.push(Asked { message, whole: false });
                return (all, false);
            }
            Some(Read::Part(None) | Read::Bad(_)) => return (all, true),
            None => return (all, false),
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

/// How far an answer has come.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Given {
    /// As far as it goes: what comes next is none of its body.
    Broken,
    /// Not to its end.
    Part,
    Whole,
    /// To its end, with something behind it.
    WithMore,
}

/// What stands behind interim answers, and where.
pub(super) fn last(bytes: &[u8], to_head: bool) -> (usize, Read) {
    let mut at = 0;
    loop {
        match strict::answer(&bytes[at..], to_head) {
            Read::Whole(message, length) if message.status() < 200 => at += length,
            read => return (at, read),
        }
    }
}

/// What a backend gave: the answer, if that far, and how far it is.
pub(super) fn given(bytes: &[u8], to_head: bool) -> Option<(Message, Given)> {
    let (at, read) = last(bytes, to_head);
    Some(match read {
        Read::Whole(message, length) if at + length < bytes.len() => (message, Given::WithMore),
        Read::Whole(message, _) => (message, Given::Whole),
        Read::Part(Some(message)) => (message, Given::Part),
        Read::Broken(message, _) => (message, Given::Broken),
        Read::Part(None) | Read::Bad(_) => return None,
    })
}

impl Backend {
    /// What this request's answer is made of.
    pub(super) fn gave_for(&self, request: usize) -> &[u8] {
        let end = self.requests.get(request + 1).map_or(self.gave.len(), |next| next.1);
        &self.gave[self.requests[request].1..end]
    }

    pub(super) fn request(&self, request: usize) -> Read {
        let end = self.requests.get(request + 1).map_or(self.far.got.len(), |next| next.0);
        strict::request(&self.far.got[self.requests[request].0..end])
    }

    /// Whether this request and its answer are whole, with nothing behind them.
    fn is_clean(&self, request: usize) -> bool {
        let Read::Whole(asked, _) = self.request(request) else { return false };
        let given = given(self.gave_for(request), asked.start[0] == b"HEAD");
        given.is_some_and(|(_, given)| given == Given::Whole)
    }

    /// Whether it read nothing of this request.
    pub(super) fn got_nothing_of(&self, request: usize) -> bool {
        self.requests[request].0 == self.far.got.len()
    }

    /// Whether it gave any head that is whole, if only an interim one.
    pub(super) fn has_answered(&self, request: usize, to_head: bool) -> bool {
        !matches!(strict::answer(self.gave_for(request), to_head), Read::Bad(_) | Read::Part(None))
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
            let Some(request) = backend.requests.len().checked_sub(1) else { return false };
            let Read::Whole(asked, _) = backend.request(request) else { return false };
            let gave = backend.gave_for(request);
            match last(gave, asked.start[0] == b"HEAD") {
                (_, Read::Part(_)) => true,
                // It may be waited for the end of what can be no head.
                (at, Read::Bad(_)) => !ends_head(&gave[at..]),
                (_, Read::Broken(..) | Read::Whole(..)) => false,
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

/// Whether there is an empty line that ends a head, of whatever lines, behind those before it.
fn ends_head(bytes: &[u8]) -> bool {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let empty = |line: &[u8]| matches!(line, b"\n" | b"\r\n");
    lines.by_ref().any(|line| !empty(line)) && lines.any(empty)
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
                Read::Bad(why) | Read::Broken(_, why) => panic!("a backend got no request: {why}"),
                Read::Whole(message, _) => assert!(!message.more, "something beside the data went on"),
                Read::Part(_) => {}
            }
            assert!(
                request + 1 == backend.requests.len() || backend.is_clean(request),
                "used again, and was not whole"
            );
        }
    }
    let (answers, rest, _) = to_client(record, &asked);
    assert!(answers.len() <= asked.len() + usize::from(bad), "more answers than requests");
    match rest {
        Read::Bad(why) | Read::Broken(_, why) => panic!("the client got no answer: {why}"),
        Read::Part(Some(message)) => assert!(!message.open, "the client cannot tell where the answer ends"),
        Read::Part(None) | Read::Whole(..) => {}
    }
    for (at, answer) in answers.iter().enumerate() {
        assert!(answer.all("content-length").count() <= 1, "two lengths");
        assert!(at < asked.len() || answer.is_ours(), "what is no request was answered by a backend");
    }
    whose::explain(record, &asked, &answers);
}
