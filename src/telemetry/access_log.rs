//! One line per request: JSON, or the combined format of Apache and nginx. What a client or backend sent is escaped, so
//! that no byte of it can end a field or a line. Where lines go is the writer's matter.

use std::{
    io::Write as _,
    mem::MaybeUninit,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::types::{AddressText, Reason};

/// What is logged of a request. Empty text is "not known": `null` in JSON, `-` in the combined format.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the answer was finished.
    pub time: SystemTime,
    /// The client's address; `None` for a unix socket.
    pub client: Option<&'a AddressText>,
    /// Who connected: a load balancer that told the client with a PROXY header, a trusted proxy, or the client itself. Only
    /// in JSON.
    pub peer: Option<&'a AddressText>,
    /// As sent.
    pub method: &'a [u8],
    /// As sent.
    pub host: &'a [u8],
    /// Path and query, as sent.
    pub path: &'a [u8],
    /// `HTTP/1.1`, `HTTP/2.0` …
    pub protocol: &'static str,
    /// What the client got; 0 where it got none.
    pub status: u16,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// From the head's first byte to the answer's last.
    pub duration: Duration,
    /// The upstream's name.
    pub upstream: &'a str,
    /// The id of the last backend tried.
    pub backend: &'a str,
    /// Attempts at backends; 0 where none was asked.
    pub attempts: u32,
    /// How it ended.
    pub reason: Reason,
    /// `TLSv1.3` …; empty on plain text.
    pub tls_version: &'static str,
    /// The id in `X-Request-Id`.
    pub request_id: &'a [u8],
    /// `Referer`, as sent.
    pub referer: &'a [u8],
    /// `User-Agent`, as sent.
    pub user_agent: &'a [u8],
}

/// The current second as text, kept so that only one request a second formats it. One per worker.
#[derive(Clone, Copy, Debug)]
pub struct ClockText {
    second: u64,
    rfc3339: [u8; 19],
    combined: [u8; 26],
}

impl Default for ClockText {
    fn default() -> Self {
        let mut clock = Self { second: 0, rfc3339: [0; 19], combined: [0; 26] };
        clock.format(0);
        clock
    }
}

impl ClockText {
    /// Brings the text up to `time` and returns the milliseconds within the second. Times before 1970 count as 1970.
    fn update(&mut self, time: SystemTime) -> u32 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            self.format(since.as_secs());
        }
        since.subsec_millis()
    }

    fn format(&mut self, second: u64) {
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        self.second = second;
        let (year, month, day) = date(second / 86_400);
        let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
        let name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
        // The arrays fit exactly for the years 1 to 9999; a later year is cut off.
        let _ = write!(&mut self.rfc3339[..], "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        let _ = write!(&mut self.combined[..], "{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000");
    }
}

/// Year, month (1–12) and day (1–31) of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`).
pub(crate) fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Appends one JSON object and a line feed. All keys are always there, in this order; `time` is RFC 3339 in UTC with
/// milliseconds, `duration` is in seconds.
pub fn write_json(record: &Record<'_>, clock: &mut ClockText, out: &mut Vec<u8>) {
    let millis = clock.update(record.time);
    let (upstream, backend) = (record.upstream.as_bytes(), record.backend.as_bytes());
    let Record { method, host, path, request_id, referer, user_agent, .. } = *record;
    let texts = [method, host, path, upstream, backend, request_id, referer, user_agent];
    let plain = texts.iter().all(|text| is_plain(text));
    Line::write(&texts, plain, out, |line| {
        line.put(b"{\"time\":\"")
            .put(&clock.rfc3339)
            .put(b".")
            .digits::<3>(millis)
            .put(b"Z\",\"client\":\"")
            .address(record.client)
            .put(b"\",\"peer\":\"")
            .address(record.peer)
            .put(b"\",\"method\":")
            .json(method, plain)
            .put(b",\"host\":")
            .json(host, plain)
            .put(b",\"path\":")
            .json(path, plain)
            .put(b",\"protocol\":")
            .word(record.protocol)
            .put(b",\"status\":")
            .number(record.status.into())
            .put(b",\"bytes\":")
            .number(record.bytes_sent)
            .put(b",\"bytes_received\":")
            .number(record.bytes_received)
            .put(b",\"duration\":")
            .number(record.duration.as_secs())
            .put(b".")
            .digits::<6>(record.duration.subsec_micros())
            .put(b",\"upstream\":")
            .json(upstream, plain)
            .put(b",\"backend\":")
            .json(backend, plain)
            .put(b",\"attempts\":")
            .number(record.attempts.into())
            .put(b",\"reason\":")
            .word(record.reason.as_str())
            .put(b",\"tls_version\":")
            .word(record.tls_version)
            .put(b",\"request_id\":")
            .json(request_id, plain)
            .put(b",\"referer\":")
            .json(referer, plain)
            .put(b",\"user_agent\":")
            .json(user_agent, plain)
            .put(b"}\n")
    });
}

/// Appends one line in the combined format: `client - - [time] "METHOD path PROTOCOL" status bytes "referer" "agent"`.
/// Quotes, backslashes and all but printable ASCII become `\xNN`, as nginx writes them; what could not be read is `-`. The format
/// is fixed, so the reason of a request is in JSON alone.
pub fn write_combined(record: &Record<'_>, clock: &mut ClockText, out: &mut Vec<u8>) {
    clock.update(record.time);
    let Record { method, path, referer, user_agent, .. } = *record;
    let texts = [method, path, referer, user_agent];
    let plain = texts.iter().all(|text| is_plain(text));
    Line::write(&texts, plain, out, |line| {
        let line = line.address(record.client).put(b" - - [").put(&clock.combined).put(b"] \"");
        let line = if method.is_empty() && path.is_empty() {
            line.put(b"-")
        } else {
            let line = line.combined(method, plain).put(b" ").combined(path, plain).put(b" ");
            line.copy(record.protocol.as_bytes())
        };
        let line = line.put(b"\" ").digits::<3>(record.status.into()).put(b" ").number(record.bytes_sent);
        let line = line.put(b" \"").combined(referer, plain);
        line.put(b"\" \"").combined(user_agent, plain).put(b"\"\n")
    });
}

/// The room for a line, made for all of it at once, behind what is written of it. Each piece costs a check and a copy; what is left
/// of the room is handed on by value, so that it need not be kept in memory.
struct Line<'a>(&'a mut [MaybeUninit<u8>]);

impl<'a> Line<'a> {
    /// Of a line without these texts: keys, two addresses, words of ours and numbers.
    const MOST: usize = 640;
    /// Bytes that one of a text may become: `\u0000`.
    const ESCAPED: usize = 6;

    /// Appends to `out` what `write` writes, which has no other texts than these but ours. `plain`: nothing in them needs to be
    /// escaped.
    fn write(texts: &[&[u8]], plain: bool, out: &mut Vec<u8>, write: impl FnOnce(Line<'_>) -> Line<'_>) {
        let length: usize = texts.iter().map(|text| text.len()).sum();
        let most = Self::MOST + length * if plain { 1 } else { Self::ESCAPED };
        out.reserve(most);
        let Line(rest) = write(Line(&mut out.spare_capacity_mut()[..most]));
        let written = most - rest.len();
        // SAFETY: a line is cut off the front of its room by the pieces that are written there alone, so all of it was written but
        // what is left.
        unsafe { out.set_len(out.len() + written) };
    }

    /// A piece whose length is known, so that no copying needs to be called.
    #[inline(always)]
    fn put<const LENGTH: usize>(self, piece: &[u8; LENGTH]) -> Self {
        let (room, rest) = self.0.split_first_chunk_mut().expect("there is room for all of the line");
        *room = piece.map(MaybeUninit::new);
        Self(rest)
    }

    #[inline(always)]
    fn copy(self, piece: &[u8]) -> Self {
        let (room, rest) = self.0.split_at_mut(piece.len());
        room.write_copy_of_slice(piece);
        Self(rest)
    }

    fn address(self, address: Option<&AddressText>) -> Self {
        self.copy(address.map_or(b"unix", AddressText::as_bytes))
    }

    #[inline]
    fn number(self, number: u64) -> Self {
        match number {
            0..10 => self.digits::<1>(number as u32),
            10..100 => self.digits::<2>(number as u32),
            100..1000 => self.digits::<3>(number as u32),
            _ => self.long_number(number),
        }
    }

    fn long_number(self, mut number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while number > 0 && first > 0 {
            first -= 1;
            digits[first] += (number % 10) as u8;
            number /= 10;
        }
        self.copy(&digits[first..])
    }

    /// As many digits of a number, its last ones.
    #[inline]
    fn digits<const WIDTH: usize>(self, mut number: u32) -> Self {
        let mut digits = [b'0'; WIDTH];
        for digit in digits.iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
        self.put(&digits)
    }

    /// A text of ours, in which nothing needs to be escaped; `null` for an empty one.
    #[inline]
    fn word(self, text: &str) -> Self {
        self.json(text.as_bytes(), true)
    }

    /// The same of any text.
    #[inline(always)]
    fn json(self, text: &[u8], plain: bool) -> Self {
        if text.is_empty() {
            self.put(b"null")
        } else if plain {
            self.put(b"\"").copy(text).put(b"\"")
        } else {
            self.put(b"\"").json_escaped(text).put(b"\"")
        }
    }

    /// Escapes what JSON must (RFC 8259 §7), the other control characters and the line separators of Unicode; what is not
    /// UTF-8 becomes U+FFFD.
    #[cold]
    fn json_escaped(mut self, text: &[u8]) -> Self {
        for chunk in text.utf8_chunks() {
            for letter in chunk.valid().chars() {
                self = match letter {
                    '"' | '\\' => self.put(&[b'\\', letter as u8]),
                    '\n' => self.put(b"\\n"),
                    '\r' => self.put(b"\\r"),
                    '\t' => self.put(b"\\t"),
                    '\u{2028}' => self.put(b"\\u2028"),
                    '\u{2029}' => self.put(b"\\u2029"),
                    _ if letter.is_control() => self.put(b"\\u00").put(&hexadecimal(letter as u8, b"0123456789abcdef")),
                    _ => self.copy(letter.encode_utf8(&mut [0; 4]).as_bytes()),
                };
            }
            if !chunk.invalid().is_empty() {
                self = self.copy("\u{fffd}".as_bytes());
            }
        }
        self
    }

    /// A text of the combined format.
    fn combined(mut self, text: &[u8], plain: bool) -> Self {
        if text.is_empty() {
            return self.put(b"-");
        }
        if plain {
            return self.copy(text);
        }
        for byte in text {
            self = if matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\') {
                self.put(&[*byte])
            } else {
                self.put(b"\\x").put(&hexadecimal(*byte, b"0123456789ABCDEF"))
            };
        }
        self
    }
}

fn hexadecimal(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 0xf)]]
}

/// Whether there is nothing to escape.
fn is_plain(text: &[u8]) -> bool {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = b' ' as usize;
        while byte <= b'~' as usize {
            plain[byte] = byte != b'"' as usize && byte != b'\\' as usize;
            byte += 1;
        }
        plain
    };
    // Without a branch per byte, so that it is done many bytes at a time.
    let odd = |byte: u8| !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\');
    let plain = |part: &[u8; 8]| !part.iter().fold(false, |found, byte| found | odd(*byte));
    match text.last_chunk() {
        // Some of the last bytes may be looked at twice.
        Some(last) => plain(last) && text.as_chunks().0.iter().all(plain),
        None => text.iter().all(|byte| PLAIN[usize::from(*byte)]),
    }
}

#[cfg(test)]
mod tests;
