//! Requests over HTTP/2 that are refused before anyone of us sees them: the h2 crate answers some with a bare 431 and
//! resets others. Here is found which streams those are, why, and what is added to such an answer, so that it says its reason
//! as every other does. Pure: bytes come in.

use super::frames::{HEADERS, Head, RST_STREAM};
use crate::types::Reason;

/// Streams that are remembered; those that nobody ever answers (after GOAWAY) are forgotten first.
const MOST: usize = 256;

/// Streams that were opened and did not become requests, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Not accepted yet.
    open: Vec<u32>,
    /// Those of which a refusal was on its way before they were accepted: the h2 crate gives out a stream that it has reset.
    refused: Vec<u32>,
}

/// A frame on its way to the client that refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Where in the bytes it begins.
    pub(super) at: usize,
    /// With its head.
    pub(super) length: usize,
    pub(super) stream: u32,
    pub(super) reason: Reason,
    /// It is an answer, no reset.
    pub(super) answer: bool,
}

impl Refusals {
    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether the h2 crate may have another stream to give out.
    pub(super) fn may_follow(&self) -> bool {
        !(self.open.is_empty() && self.refused.is_empty())
    }

    /// The client has opened a stream.
    pub(super) fn opened(&mut self, stream: u32) {
        if self.open.len() >= MOST {
            self.open.remove(0);
        }
        self.open.push(stream);
    }

    /// It has become a request. Returns whether it may be one: its refusal is not on its way, and told, already.
    pub(super) fn accepted(&mut self, stream: u32) -> bool {
        take(&mut self.open, stream);
        !take(&mut self.refused, stream)
    }

    /// Its refusal is on its way.
    pub(super) fn refused(&mut self, stream: u32) {
        take(&mut self.open, stream);
        if self.refused.len() >= MOST {
            self.refused.remove(0);
        }
        self.refused.push(stream);
    }

    /// The first refusal in bytes for the client, the first frame of which begins at `at`.
    pub(super) fn find(&self, data: &[u8], mut at: usize) -> Option<Refusal> {
        while let Some(head) = data.get(at..).and_then(Head::first) {
            let length = head.size();
            let payload = data.get(at..at + length).and_then(|frame| frame.get(9..)).unwrap_or_default();
            if self.open.contains(&head.stream) && matches!(head.kind, HEADERS | RST_STREAM) {
                const REFUSED_STREAM: &[u8] = &[0, 0, 0, 7];
                let reason = match head.kind {
                    // The only answer of the h2 crate's own.
                    HEADERS => Reason::HeaderTooLarge,
                    // Over the number of streams.
                    RST_STREAM if payload == REFUSED_STREAM => Reason::TooManyConcurrent,
                    _ => Reason::BadRequest,
                };
                let (stream, answer) = (head.stream, head.kind == HEADERS);
                return Some(Refusal { at, length, stream, reason, answer });
            }
            at += length;
        }
        None
    }
}

/// Takes a stream out of a list, near whose beginning it mostly is. Returns whether it was there.
fn take(from: &mut Vec<u32>, stream: u32) -> bool {
    let at = from.iter().position(|listed| *listed == stream);
    at.map(|at| from.remove(at)).is_some()
}

/// An answer's only frame with one field more; `None` where there is no room for it. A literal that is not indexed leaves
/// the table of names and values as the h2 crate has it (RFC 7541 §6.2.2).
pub(super) fn with_field(frame: &[u8], name: &str, value: &[u8]) -> Option<Vec<u8>> {
    /// A length of one byte, without Huffman coding.
    fn text(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.push(u8::try_from(text.len()).ok().filter(|length| *length < 127)?);
        out.extend_from_slice(text);
        Some(())
    }
    let mut out = frame.to_vec();
    out.push(0);
    text(name.as_bytes(), &mut out)?;
    text(value, &mut out)?;
    let length = u32::try_from(out.len().checked_sub(9)?).ok()?.to_be_bytes();
    out[..3].copy_from_slice(&length[1..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, u8::try_from(payload.len()).expect("short"), kind, 5, 0, 0, 0, stream], payload].concat()
    }

    #[test]
    fn what_refuses_a_stream_that_was_no_request_is_found() {
        let mut refusals = Refusals::default();
        for stream in [1, 5, 7, 9] {
            refusals.opened(stream);
        }
        assert!(refusals.accepted(1));
        let all = [
            frame(HEADERS, 1, &[0x88]),
            frame(HEADERS, 5, &[0x48, 1, b'x']),
            frame(RST_STREAM, 7, &[0, 0, 0, 1]),
            frame(RST_STREAM, 9, &[0, 0, 0, 7]),
        ]
        .concat();
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(refusal) = refusals.find(&all, at) {
            refusals.refused(refusal.stream);
            found.push((refusal.stream, refusal.reason, refusal.answer));
            at = refusal.at + refusal.length;
        }
        let expected =
            [(5, Reason::HeaderTooLarge, true), (7, Reason::BadRequest, false), (9, Reason::TooManyConcurrent, false)];
        assert_eq!(found, expected);
        assert!(refusals.is_empty());
        assert!(refusals.may_follow(), "what is reset is given out even so");
        assert!(!refusals.accepted(7), "it was reset before it was accepted");
        assert!(refusals.accepted(11));
    }

    #[test]
    fn an_answer_gets_a_field_more_and_the_rest_stays() {
        let with = with_field(&frame(HEADERS, 3, &[0x8c]), "a", b"bc").expect("room");
        assert_eq!(with, frame(HEADERS, 3, &[0x8c, 0, 1, b'a', 2, b'b', b'c']));
        assert_eq!(with_field(&frame(HEADERS, 3, &[0x8c]), "a", &[b'b'; 200]), None);
    }

    #[test]
    fn nothing_follows_the_last_stream_that_was_opened() {
        let mut refusals = Refusals::default();
        refusals.opened(1);
        refusals.opened(3);
        assert!(refusals.accepted(1) && refusals.may_follow());
        assert!(refusals.accepted(3) && !refusals.may_follow());
    }

    #[test]
    fn streams_that_nobody_answers_are_forgotten() {
        let mut refusals = Refusals::default();
        (0..10_000).for_each(|stream| refusals.opened(stream));
        assert_eq!(refusals.open.len(), MOST);
    }
}
