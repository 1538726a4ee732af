//! Both directions of an attempt, over memory.

use std::{collections::VecDeque, future::poll_fn};

use http::StatusCode;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf, duplex};

use super::{super::tunnel::Side as _, *};
use crate::policy::fields::Fields as _;

fn attempt(request: &str, complete: bool, decode: bool) -> (Attempt<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    let room = Box::new(Room { out: BytesMut::from(request), ..Room::default() });
    (Attempt::new(ours, Method::GET, room, complete, decode), theirs)
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    heads: Vec<u16>,
    body: Vec<u8>,
    trailers: Vec<u8>,
    whole: bool,
    again: bool,
}

/// Everything that comes of an answer that arrives in these parts.
async fn see(parts: &[&[u8]], close: bool, decode: bool) -> Seen {
    let (mut attempt, mut backend) = attempt("GET / HTTP/1.1\r\n\r\n", true, decode);
    poll_fn(|cx| attempt.poll_flush(cx)).await;
    let mut seen = Seen::default();
    let mut parts = parts.iter();
    loop {
        let mut pending = false;
        let step = poll_fn(|cx| match attempt.poll_answer(cx) {
            Poll::Pending => {
                pending = true;
                Poll::Ready(Ok(Step::End))
            }
            ready => ready,
        })
        .await;
        if pending {
            // The event loop lets nobody go on for ever.
            tokio::task::yield_now().await;
            match parts.next() {
                Some(part) => backend.write_all(part).await.expect("room"),
                None if close => backend.shutdown().await.expect("closes"),
                None => return seen,
            }
            continue;
        }
        match step {
            Ok(Step::Head(head)) => seen.heads.push(head.status.as_u16()),
            Ok(Step::Body) => {
                seen.body.extend_from_slice(attempt.body());
                attempt.taken(attempt.body().len());
            }
            Ok(Step::End) => {
                seen.whole = true;
                seen.trailers = attempt.trailers().to_vec();
                seen.again = attempt.finish().1.is_some();
                return seen;
            }
            Err(_) => return seen,
        }
    }
}

#[tokio::test]
async fn an_answer_is_the_same_however_it_is_split() {
    for (answer, body, raw, again) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", "hello", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", "", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\nX: y\r\n\r\n",
            "hello",
            "3;x\r\nhel\r\n2\r\nlo\r\n0\r\n",
            true,
        ),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "hello", "hello", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more", "hello", "hello", false),
    ] {
        for split in 0..=answer.len() {
            let (first, second) = answer.as_bytes().split_at(split);
            let parts: Vec<&[u8]> = [first, second].into_iter().filter(|part| !part.is_empty()).collect();
            for (decode, body) in [(true, body), (false, raw)] {
                let seen = see(&parts, false, decode).await;
                // What comes after the end may not be here yet when the answer is.
                let again = if answer.ends_with("more") { seen.again } else { again };
                let trailers = if answer.contains("X: y") { b"X: y\r\n\r\n".to_vec() } else { Vec::new() };
                let expected = Seen { heads: vec![200], body: body.into(), trailers, whole: true, again };
                assert_eq!(seen, expected, "{answer} split at {split}");
            }
        }
    }
}

#[tokio::test]
async fn the_end_of_the_connection_ends_an_answer_without_a_border_and_no_other() {
    let seen = see(&[b"HTTP/1.0 200 OK\r\n\r\nhello"], true, true).await;
    assert_eq!(seen, Seen { heads: vec![200], body: b"hello".into(), whole: true, ..Seen::default() });
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    ] {
        for decode in [true, false] {
            assert!(!see(&[cut.as_bytes()], true, decode).await.whole, "{cut}");
        }
    }
}

#[tokio::test]
async fn a_connection_is_kept_where_the_last_byte_was_given_on_and_the_end_not_asked_for() {
    let (mut attempt, mut backend) = attempt("GET / HTTP/1.1\r\n\r\n", true, true);
    poll_fn(|cx| attempt.poll_flush(cx)).await;
    backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.expect("room");
    assert!(matches!(poll_fn(|cx| attempt.poll_answer(cx)).await, Ok(Step::Head(_))));
    assert!(matches!(poll_fn(|cx| attempt.poll_answer(cx)).await, Ok(Step::Body)));
    assert_eq!(attempt.split_body(), "hello");
    assert!(attempt.finish().1.is_some());
}

/// Gives an answer, then an error, then an end: as a socket that was reset.
struct Reset(u8, &'static [u8]);

impl AsyncRead for Reset {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0 += 1;
        match self.0 {
            1 => into.put_slice(self.1),
            2 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Reset {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_answer_that_broke_off_stays_so_however_often_it_is_asked_for() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\n\r\nhello"[..],
        // Read anew from behind the first CRLF the rest would be well-formed.
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n\r\n1\r\ny\r\n0\r\n\r\n",
    ] {
        let mut attempt = Attempt::new(Reset(0, answer), Method::GET, Box::default(), true, true);
        let mut body = BytesMut::new();
        let mut failures = 0;
        for _ in 0..10 {
            match poll_fn(|cx| attempt.poll_answer(cx)).await {
                Ok(Step::Head(_)) => {}
                Ok(Step::Body) => body.extend_from_slice(&attempt.split_body()),
                Ok(Step::End) => panic!("whole, with {body:?}"),
                Err(_) => failures += 1,
            }
        }
        assert!(failures > 5 && (&body[..] == b"hello" || &body[..] == b"x"), "{failures} {body:?}");
        assert!(attempt.finish().1.is_none());
    }
}

#[tokio::test]
async fn interim_answers_come_before_the_answer() {
    let all =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    let seen = see(&[all], false, true).await;
    assert_eq!(seen, Seen { heads: vec![100, 103, 204], whole: true, again: true, ..Seen::default() });
}

#[tokio::test]
async fn a_connection_that_ends_before_an_answer_says_what_had_left() {
    let (mut unsent, backend) = attempt("GET / HTTP/1.1\r\n\r\n", true, true);
    drop(backend);
    poll_fn(|cx| unsent.poll_flush(cx)).await;
    let failure = poll_fn(|cx| unsent.poll_answer(cx)).await.expect_err("no answer");
    assert!(matches!(failure, Failure::Ended(_)) && unsent.written() == 0 && !unsent.answered);
    let (mut sent, mut backend) = attempt("GET / HTTP/1.1\r\n\r\n", true, true);
    poll_fn(|cx| sent.poll_flush(cx)).await;
    let mut request = [0; 18];
    backend.read_exact(&mut request).await.expect("the request");
    drop(backend);
    let failure = poll_fn(|cx| sent.poll_answer(cx)).await.expect_err("no answer");
    assert!(matches!(failure, Failure::Ended(_)) && sent.written() == 18);
}

#[tokio::test]
async fn a_request_that_was_not_read_leaves_no_connection_behind() {
    let (mut attempt, mut backend) = attempt("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", false, true);
    poll_fn(|cx| attempt.poll_flush(cx)).await;
    assert_eq!(poll_fn(|cx| attempt.poll_upload(cx, b"half")).await, 4);
    backend.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.expect("room");
    let head = poll_fn(|cx| attempt.poll_answer(cx)).await.expect("an answer");
    assert!(matches!(head, Step::Head(head) if head.status == StatusCode::PAYLOAD_TOO_LARGE));
    assert_eq!(attempt.head().first(&http::header::CONTENT_LENGTH), Some(&b"0"[..]));
    assert_eq!(attempt.phrase(), b"Too Large");
    assert_eq!(poll_fn(|cx| attempt.poll_answer(cx)).await.expect("its end"), Step::End);
    assert!(attempt.wants_body() && attempt.finish().1.is_none());
}

#[tokio::test]
async fn a_body_is_written_in_chunks() {
    let (mut attempt, mut backend) = attempt("", false, true);
    attempt.chunk(&[b'x'; 300]);
    attempt.chunk(b"");
    attempt.bytes(b"0\r\n\r\n");
    attempt.complete();
    poll_fn(|cx| attempt.poll_flush(cx)).await;
    drop(attempt);
    let mut written = Vec::new();
    backend.read_to_end(&mut written).await.expect("all of it");
    let expected = [&b"12c\r\n"[..], &[b'x'; 300], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(written, expected);
}

proptest! {
    #[test]
    fn no_bytes_of_a_backend_are_a_fault_of_ours(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
        head in any::<bool>(),
        decode in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let start: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let parts: Vec<&[u8]> = head.then_some(start).into_iter().chain(parts.iter().map(Vec::as_slice)).collect();
        runtime.block_on(see(&parts, true, decode));
    }

    #[test]
    fn taking_chunks_off_gives_what_was_put_in(
        data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
        cut in 1usize..40,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in &data {
            stream.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            stream.extend_from_slice(chunk);
            stream.extend_from_slice(b"\r\n");
        }
        stream.extend_from_slice(b"0\r\n\r\n");
        let parts: Vec<&[u8]> = stream.chunks(cut).collect();
        let seen = runtime.block_on(see(&parts, false, true));
        prop_assert_eq!(seen, Seen { heads: vec![200], body: data.concat(), trailers: b"\r\n".into(), whole: true, again: true });
    }
}

/// What comes of bytes behind a head that is a switch, and of bytes given after it, in these parts.
#[tokio::test]
async fn after_a_switch_bytes_go_on_as_they_are_and_no_memory_is_held() {
    let (mut ours, mut backend) = attempt("GET / HTTP/1.1\r\n\r\n", true, false);
    ours.speaks(Protocol::WebSocket);
    poll_fn(|cx| ours.poll_flush(cx)).await;
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    backend.write_all(&[head, "early"].concat().into_bytes()).await.expect("room");
    let step = poll_fn(|cx| ours.poll_answer(cx)).await.expect("good");
    assert!(matches!(step, Step::Head(head) if head.is_switch()), "{step:?}");
    assert!(ours.head().has(&http::header::UPGRADE));
    let room = ours.switch();
    assert!(room.ahead.capacity() > 0);
    let mut part = [0; 3];
    for expected in ["ear", "ly"] {
        let mut into = ReadBuf::new(&mut part);
        poll_fn(|cx| ours.poll_take(cx, &mut into)).await.expect("open");
        assert_eq!(into.filled(), expected.as_bytes());
    }
    assert_eq!((ours.room.ahead.capacity(), ours.room.out.capacity()), (0, 0));
    poll_fn(|cx| ours.poll_give(cx, b"HTTP/1.1 200 OK\r\n\r\n")).await.expect("open");
    poll_fn(|cx| ours.poll_end(cx)).await.expect("open");
    let mut sent = String::new();
    backend.read_to_string(&mut sent).await.expect("text");
    assert_eq!(sent, "GET / HTTP/1.1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
    backend.write_all(b"x").await.expect("open this way");
    let mut into = ReadBuf::new(&mut part);
    poll_fn(|cx| ours.poll_take(cx, &mut into)).await.expect("open");
    assert_eq!(into.filled(), b"x");
    assert!(ours.finish().1.is_none(), "nobody else's connection");
}

/// A backend that answers so, and ends.
struct Script(VecDeque<io::Result<Vec<u8>>>);

impl AsyncRead for Script {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let parts = &mut self.get_mut().0;
        match parts.pop_front() {
            None => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(error)),
            Some(Ok(mut part)) => {
                let rest = part.split_off(part.len().min(buf.remaining()));
                buf.put_slice(&part);
                if !rest.is_empty() {
                    parts.push_front(Ok(rest));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn scripted(parts: impl IntoIterator<Item = io::Result<Vec<u8>>>) -> Attempt<Script> {
    Attempt::new(Script(parts.into_iter().collect()), Method::GET, Box::default(), true, false)
}

#[tokio::test]
async fn what_is_here_of_a_body_goes_on_in_one_piece() {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n".to_vec();
    answer.resize(answer.len() + 65_536, b'x');
    let mut attempt = scripted([Ok(answer)]);
    assert!(matches!(poll_fn(|cx| attempt.poll_answer(cx)).await, Ok(Step::Head(_))));
    assert_eq!(poll_fn(|cx| attempt.poll_answer(cx)).await.expect("a body"), Step::Body);
    assert_eq!(attempt.body().len(), 65_536);
    attempt.taken(65_536);
    assert_eq!(poll_fn(|cx| attempt.poll_answer(cx)).await.expect("an end"), Step::End);
    assert!(attempt.finish().1.is_some());
}

/// The end that a socket tells of after a reset would make the answer whole.
#[tokio::test]
async fn a_reset_seen_while_a_body_is_collected_is_told_when_the_body_has_gone_on() {
    let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    answer.resize(SMALL, b'x');
    let length = SMALL - b"HTTP/1.1 200 OK\r\n\r\n".len();
    let mut attempt = scripted([Ok(answer), Err(io::ErrorKind::ConnectionReset.into())]);
    assert!(matches!(poll_fn(|cx| attempt.poll_answer(cx)).await, Ok(Step::Head(_))));
    assert_eq!(poll_fn(|cx| attempt.poll_answer(cx)).await.expect("a body"), Step::Body);
    assert_eq!(attempt.body().len(), length);
    attempt.taken(length);
    assert!(matches!(poll_fn(|cx| attempt.poll_answer(cx)).await, Err(Failure::Truncated)));
}
