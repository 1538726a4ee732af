//! Parts of an answer, and a client whose windows are opened by hand.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncWriteExt as _, DuplexStream},
    time::timeout,
};

use super::*;

/// An answer that has begun.
struct Answer {
    client: DuplexStream,
    connection: h2::server::Connection<DuplexStream, Bytes>,
    sending: SendStream<Bytes>,
    outlet: Outlet,
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], payload].concat()
}

impl Answer {
    /// To a client whose window of a stream is at first of that size.
    async fn begin(window: u32) -> Self {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let settings = frame(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
        let request = frame(1, 5, 1, &[0x82, 0x84, 0x86, 0x41, 1, b'a']);
        let sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &request].concat();
        client.write_all(&sent).await.expect("a place for it");
        let mut connection = h2::server::handshake(server).await.expect("a connection");
        let (_, mut respond) = connection.accept().await.expect("a request").expect("a good one");
        let sending = respond.send_response(http::Response::new(()), false).expect("an answer");
        Self { client, connection, sending, outlet: Outlet::new(Arc::default()) }
    }

    fn is_held(&self) -> bool {
        self.outlet.cancel.is_held()
    }

    async fn open(&mut self, by: u8) {
        self.client.write_all(&frame(8, 0, 1, &[0, 0, 0, by])).await.expect("a place for it");
    }

    /// Moves the connection, and asks once.
    fn poll_room(&mut self, left: usize, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        assert!(self.connection.poll_accept(cx).is_pending(), "no other request, and no end");
        self.outlet.poll_room(&mut self.sending, left, cx)
    }

    async fn waits(&mut self, left: usize) {
        assert!(poll_fn(|cx| Poll::Ready(self.poll_room(left, cx).is_pending())).await);
    }

    /// Sends as much of a part as goes. Returns how much that is, and how long it was waited for.
    async fn give(&mut self, left: usize) -> (usize, Duration) {
        let began = Instant::now();
        let room = timeout(Duration::from_secs(10), poll_fn(|cx| self.poll_room(left, cx))).await;
        let room = room.expect("no hang").expect("an open stream");
        let took = began.elapsed();
        assert!(!self.is_held());
        self.sending.send_data(vec![0; room.min(left)].into(), false).expect("an open stream");
        assert!(poll_fn(|cx| Poll::Ready(self.connection.poll_accept(cx).is_pending())).await);
        (room, took)
    }
}

#[tokio::test]
async fn a_rest_of_a_window_is_waited_for_to_grow_but_not_for_long() {
    let mut answer = Answer::begin(1000).await;
    assert_eq!(answer.give(900).await.0, 900);
    let (room, took) = answer.give(100).await;
    assert!(room == 100 && took < room::PATIENCE, "it fits, after {took:?}");
    answer.waits(900).await;
    assert!(!answer.is_held(), "there is no room at all, as the windows show");
    answer.open(100).await;
    let (room, took) = answer.give(900).await;
    assert!(room == 100 && took >= room::PATIENCE, "{room} after {took:?}");
    // It grows.
    answer.open(200).await;
    answer.waits(900).await;
    assert!(answer.is_held());
    answer.open(250).await;
    let (room, took) = answer.give(900).await;
    assert!(room == 450 && took < room::PATIENCE, "{room} after {took:?}");
}

#[tokio::test]
async fn no_crumb_is_left_of_a_part_that_is_cut() {
    let mut answer = Answer::begin(1000).await;
    assert_eq!(answer.give(600).await.0, 600);
    assert_eq!(answer.give(600).await.0, 344, "of which 256 are left");
    answer.waits(256).await;
    answer.open(200).await;
    let (room, took) = answer.give(256).await;
    assert!(room == 256 && took < room::PATIENCE, "{room} after {took:?}");
}

#[tokio::test]
async fn half_of_a_small_window_is_enough() {
    for (window, by) in [(1, 1), (100, 50), (200, 100), (254, 127)] {
        let mut answer = Answer::begin(window).await;
        assert_eq!(answer.give(5000).await.0, window as usize);
        for _ in 0..20 {
            answer.waits(5000).await;
            answer.open(by).await;
            let (room, took) = answer.give(5000).await;
            assert!(room == usize::from(by) && took < room::PATIENCE, "of {window}: {room} after {took:?}");
        }
    }
}

/// Each part is less than what the window has room for.
#[tokio::test]
async fn parts_that_are_smaller_than_their_window_are_cut_into_no_crumbs_either() {
    let mut answer = Answer::begin(1000).await;
    for _ in 0..3 {
        assert_eq!(answer.give(300).await.0, 300);
    }
    answer.waits(300).await;
    assert!(answer.is_held(), "100 are left");
    answer.open(200).await;
    let (room, took) = answer.give(300).await;
    assert!(room == 300 && took < room::PATIENCE, "{room} after {took:?}");
}

/// The h2 crate tells of each change once.
#[tokio::test]
async fn room_that_was_told_of_is_used() {
    let mut answer = Answer::begin(1000).await;
    answer.sending.reserve_capacity(400);
    let told = poll_fn(|cx| answer.sending.poll_capacity(cx)).await.expect("an open stream").expect("no error");
    assert_eq!((told, answer.give(400).await.0, answer.give(900).await.0), (400, 400, 600));
}

#[tokio::test]
async fn a_part_that_waits_ends_with_its_stream() {
    let mut answer = Answer::begin(1000).await;
    assert_eq!(answer.give(900).await.0, 900);
    answer.waits(900).await;
    assert!(answer.is_held());
    answer.client.write_all(&frame(3, 0, 1, &[0, 0, 0, 8])).await.expect("a place for it");
    let ended = timeout(Duration::from_secs(10), poll_fn(|cx| answer.poll_room(900, cx))).await.expect("no hang");
    assert!(ended.is_err() && !answer.is_held());
}
