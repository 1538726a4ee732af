//! One line per request: JSON, or the combined format of Apache and nginx. What a client or backend sent is escaped, so
//! that no byte of it can end a field or a line. Where lines go is the writer's matter.

use std::{
    io::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::types::{Reason, write_address};

/// What is logged of a request. Empty text is "not known": `null` in JSON, `-` in the combined format.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When the answer was finished.
    pub time: SystemTime,
    /// The client's address; `None` for a unix socket.
    pub client: Option<IpAddr>,
    /// Who connected: a load balancer that told the client with a PROXY header, a trusted proxy, or the client itself. Only
    /// in JSON.
    pub peer: Option<IpAddr>,
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

/// What is before a text in JSON.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":\"")
    };
}
/// Appends one JSON object and a line feed. All keys are always there, in this order; `time` is RFC 3339 in UTC with
/// milliseconds, `duration` is in seconds.
pub fn write_json(record: &Record<'_>, clock: &mut ClockText, out: &mut Vec<u8>) {
    let millis = clock.update(record.time);
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(&clock.rfc3339);
    out.push(b'.');
    push_padded(u64::from(millis), 3, out);
    out.extend_from_slice(b"Z\",\"client\":\"");
    push_client(record.client, out);
    out.extend_from_slice(b"\",\"peer\":\"");
    push_client(record.peer.map(|peer| peer.to_canonical()), out);
    out.push(b'"');
    push_json_field(key!("method"), record.method, out);
    push_json_field(key!("host"), record.host, out);
    push_json_field(key!("path"), record.path, out);
    push_json_word(key!("protocol"), record.protocol.as_bytes(), out);
    push_json_number(b",\"status\":", u64::from(record.status), out);
    push_json_number(b",\"bytes\":", record.bytes_sent, out);
    push_json_number(b",\"bytes_received\":", record.bytes_received, out);
    push_json_number(b",\"duration\":", record.duration.as_secs(), out);
    out.push(b'.');
    push_padded(u64::from(record.duration.subsec_micros()), 6, out);
    push_json_field(key!("upstream"), record.upstream.as_bytes(), out);
    push_json_field(key!("backend"), record.backend.as_bytes(), out);
    push_json_number(b",\"attempts\":", u64::from(record.attempts), out);
    push_json_word(key!("reason"), record.reason.as_str().as_bytes(), out);
    push_json_word(key!("tls_version"), record.tls_version.as_bytes(), out);
    push_json_field(key!("request_id"), record.request_id, out);
    push_json_field(key!("referer"), record.referer, out);
    push_json_field(key!("user_agent"), record.user_agent, out);
    out.extend_from_slice(b"}\n");
}

/// Appends one line in the combined format: `client - - [time] "METHOD path PROTOCOL" status bytes "referer" "agent"`.
/// Quotes, backslashes and all but printable ASCII become `\xNN`, as nginx writes them; what could not be read is `-`. The format
/// is fixed, so the reason of a request is in JSON alone.
pub fn write_combined(record: &Record<'_>, clock: &mut ClockText, out: &mut Vec<u8>) {
    clock.update(record.time);
    push_client(record.client, out);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(&clock.combined);
    out.extend_from_slice(b"] \"");
    if record.method.is_empty() && record.path.is_empty() {
        out.push(b'-');
    } else {
        for word in [record.method, record.path] {
            if word.is_empty() {
                out.push(b'-');
            }
            push_hex_escaped(word, out);
            out.push(b' ');
        }
        out.extend_from_slice(record.protocol.as_bytes());
    }
    out.extend_from_slice(b"\" ");
    push_padded(u64::from(record.status), 3, out);
    out.push(b' ');
    push_padded(record.bytes_sent, 1, out);
    for field in [record.referer, record.user_agent] {
        out.extend_from_slice(b" \"");
        if field.is_empty() {
            out.push(b'-');
        } else {
            push_hex_escaped(field, out);
        }
        out.push(b'"');
    }
    out.push(b'\n');
}

fn push_client(client: Option<IpAddr>, out: &mut Vec<u8>) {
    match client {
        // Writing to memory cannot fail.
        Some(IpAddr::V4(address)) => write_address(IpAddr::V4(address), out),
        Some(address) => drop(write!(out, "{address}")),
        None => out.extend_from_slice(b"unix"),
    }
}

/// A number with at least `width` digits, up to 20.
fn push_padded(mut number: u64, width: usize, out: &mut Vec<u8>) {
    if number < 10 && width <= 1 {
        out.push(b'0' + number as u8);
        return;
    }
    let mut digits = [b'0'; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
    }
    out.extend_from_slice(digits.get(digits.len() - used.max(width).min(digits.len())..).unwrap_or_default());
}

fn push_json_number(key: &[u8], number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(key);
    push_padded(number, 1, out);
}

/// A text of ours, in which nothing needs to be escaped. `key` ends with the quote before it.
fn push_json_word(key: &str, text: &[u8], out: &mut Vec<u8>) {
    let key = key.as_bytes();
    if let ([bare @ .., _], []) = (key, text) {
        out.extend_from_slice(bare);
        out.extend_from_slice(b"null");
        return;
    }
    out.extend_from_slice(key);
    out.extend_from_slice(text);
    out.push(b'"');
}

/// As [`push_json_word`], of any text.
fn push_json_field(key: &str, text: &[u8], out: &mut Vec<u8>) {
    if is_plain(text) {
        push_json_word(key, text, out);
    } else {
        out.extend_from_slice(key.as_bytes());
        push_json_escaped(text, out);
        out.push(b'"');
    }
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

/// Escapes what JSON must (RFC 8259 §7), the other control characters and the line separators of Unicode; what is not
/// UTF-8 becomes U+FFFD.
fn push_json_escaped(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' | '\\' => out.extend_from_slice(&[b'\\', letter as u8]),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\u{2028}' | '\u{2029}' => drop(write!(out, "\\u{:04x}", letter as u32)),
                _ if letter.is_control() => drop(write!(out, "\\u{:04x}", letter as u32)),
                _ => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn push_hex_escaped(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\') {
            out.push(*byte);
        } else {
            out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
        }
    }
}

#[cfg(test)]
mod tests;
