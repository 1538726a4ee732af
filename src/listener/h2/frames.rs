//! Finds the frames in a stream of bytes (RFC 9113 §4.1), however it is cut: nine bytes of head each, and of the
//! payload only the beginning, where it matters.

/// Frame types (RFC 9113 §6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

const HEAD: u8 = 9;
/// Enough for a GOAWAY with the h2 crate's text.
const KEPT: usize = 48;
/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`; whether it is that, the h2 crate sees.
const PREFACE: u32 = 24;

/// The head of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    fn parse(bytes: &[u8; HEAD as usize]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    /// Of the frame at the beginning of `bytes`; `None` where it is not whole.
    pub(super) fn first(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::parse)
    }

    /// Bytes of the frame, its head included.
    pub(super) fn size(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX).saturating_add(HEAD.into())
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What is found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A frame begins; its payload is still to come.
    Head(Head),
    /// DATA that has said that so many of its bytes are padding; with the byte that says so, they are no data.
    Padding(Head, u8),
    /// One setting of a SETTINGS frame.
    Setting(u16, u32),
    /// A frame has ended; the second is the beginning of its payload, for frames of few bytes.
    End(Head, &'a [u8]),
}

/// Where in the frames a stream is. Small: every connection has two.
#[derive(Debug)]
pub(super) struct Frames {
    head: Head,
    /// Bytes of the payload (or of the preface) still to come.
    left: u32,
    /// Bytes of the head that have come; all of them while the payload is coming.
    have: u8,
    bytes: [u8; KEPT],
    kept: u8,
    preface: bool,
}

impl Frames {
    /// What a client sends: begins with the preface.
    pub(super) fn from_client() -> Self {
        Self { left: PREFACE, have: HEAD, preface: true, ..Self::from_server() }
    }

    /// What a server sends.
    pub(super) fn from_server() -> Self {
        Self { head: Head::default(), left: 0, have: 0, bytes: [0; KEPT], kept: 0, preface: false }
    }

    /// Whether a frame has begun and not ended; DATA, whose payload is a body's, only within its head.
    pub(super) fn within(&self) -> bool {
        self.have > 0 && !(self.have == HEAD && self.head.kind == DATA && !self.preface)
    }

    /// Bytes until a frame begins.
    ///
    /// # Errors
    /// Not known before so many more have come.
    pub(super) fn until_next(&self) -> Result<usize, usize> {
        match self.have {
            0 => Ok(0),
            HEAD => Ok(self.left as usize),
            have => Err(usize::from(HEAD - have)),
        }
    }

    /// Tells `see` what is found in the next bytes, until it fails.
    pub(super) fn feed<E>(
        &mut self,
        mut data: &[u8],
        mut see: impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            if self.have < HEAD {
                let here = if self.have == 0 { Head::first(data) } else { None };
                self.head = match here {
                    // Mostly all of it has come at once.
                    Some(head) => {
                        self.have = HEAD;
                        data = &data[usize::from(HEAD)..];
                        head
                    }
                    None => {
                        let taken = put(&mut self.bytes[..usize::from(HEAD)], &mut self.have, data);
                        data = &data[taken..];
                        if self.have < HEAD {
                            return Ok(());
                        }
                        Head::first(&self.bytes).unwrap_or_default()
                    }
                };
                self.left = self.head.length;
                self.kept = 0;
                see(Found::Head(self.head))?;
            }
            let take = data.len().min(self.left as usize);
            self.keep(&data[..take], &mut see)?;
            self.left -= take as u32; // no more than there was
            data = &data[take..];
            if self.left > 0 {
                return Ok(());
            }
            self.have = 0;
            if !std::mem::take(&mut self.preface) {
                see(Found::End(self.head, &self.bytes[..self.kept.into()]))?;
            }
        }
    }

    fn keep<E>(&mut self, data: &[u8], see: &mut impl FnMut(Found<'_>) -> Result<(), E>) -> Result<(), E> {
        match self.head.kind {
            _ if self.preface => {}
            DATA if self.head.has(PADDED) && self.left == self.head.length => {
                if let Some(padding) = data.first() {
                    see(Found::Padding(self.head, *padding))?;
                }
            }
            SETTINGS => {
                for byte in data {
                    self.bytes[usize::from(self.kept)] = *byte;
                    self.kept += 1;
                    if self.kept == 6 {
                        let [a, b, c, d, e, f, ..] = self.bytes;
                        self.kept = 0;
                        see(Found::Setting(u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))?;
                    }
                }
            }
            RST_STREAM | GOAWAY | WINDOW_UPDATE => {
                put(&mut self.bytes, &mut self.kept, data);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Puts behind the `have` bytes of `into` what there is room for. Returns how much that is.
fn put(into: &mut [u8], have: &mut u8, data: &[u8]) -> usize {
    let room = &mut into[usize::from(*have)..];
    let take = room.len().min(data.len());
    room[..take].copy_from_slice(&data[..take]);
    *have += take as u8; // there is room for few
    take
}

/// The number at a place of a payload; 0 where there is none.
pub(super) fn number(payload: &[u8], at: usize) -> u32 {
    let bytes = payload.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    bytes.map_or(0, u32::from_be_bytes) & 0x7fff_ffff
}
