//! Server-sent events, read from a stream of bytes.

use super::failure::Failure;

/// Longer events are none of rrlb's.
const LONGEST: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// As it came: what is to be sent to go on behind it.
    pub(super) id: Option<String>,
    pub(super) event: String,
    pub(super) data: String,
}

/// Bytes that are not a whole event yet.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    frame: Frame,
}

impl Reader {
    /// The events that these bytes end.
    ///
    /// # Errors
    /// An event without an end.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Failure> {
        let mut frames = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.frame.data.len() > LONGEST {
                return Err(Failure::Unexpected("an event without an end".to_owned()));
            }
            if part.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                frames.extend(self.end_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(frames)
    }

    fn end_line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return (!frame.data.is_empty() || !frame.event.is_empty()).then_some(frame);
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => {
                if !self.frame.data.is_empty() {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.frame.event),
            "id" => self.frame.id = Some(value.to_owned()),
            // A comment, or a field that says nothing here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let text =
            b": hello\n\nid: 1f-7\nevent: backend.added\ndata: {\"a\":\ndata: 1}\n\nid:8\r\ndata:x\r\n\r\ndata: rest";
        let first = Frame { id: Some("1f-7".into()), event: "backend.added".into(), data: "{\"a\":\n1}".into() };
        let second = Frame { id: Some("8".into()), event: String::new(), data: "x".into() };
        for size in [1, 2, 3, 7, text.len()] {
            let mut reader = Reader::default();
            let frames: Vec<Frame> = text.chunks(size).flat_map(|chunk| reader.read(chunk).expect("events")).collect();
            assert_eq!(frames, [first.clone(), second.clone()], "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_an_end_is_not_kept_for_ever() {
        let mut reader = Reader::default();
        assert!((0..LONGEST / 1000 + 2).any(|_| reader.read(&[b'x'; 1000]).is_err()));
    }
}
