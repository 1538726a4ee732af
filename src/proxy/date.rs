//! `Date` for answers that have none (RFC 9110 §6.6.1): one text per second and worker.

use std::{
    io::Write as _,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut as _, BytesMut};

use crate::telemetry::access_log::date;

/// As long as the form of the years 1970 to 9999 is (RFC 9110 §5.6.7).
const LENGTH: usize = 29;

/// The current second as a field's value.
#[derive(Debug)]
pub(super) struct DateText(Mutex<(u64, [u8; LENGTH])>);

impl Default for DateText {
    fn default() -> Self {
        Self(Mutex::new((0, text(0))))
    }
}

impl DateText {
    /// Writes it. Times before 1970 count as 1970.
    pub(super) fn write(&self, now: SystemTime, out: &mut BytesMut) {
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != second {
            *kept = (second, text(second));
        }
        out.put_slice(&kept.1);
    }
}

fn text(second: u64) -> [u8; LENGTH] {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = second / 86_400;
    let (year, month, day) = date(days);
    let name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let month = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
    let mut text = [b' '; LENGTH];
    // It fits exactly; a later year is cut off.
    let _ = write!(&mut text[..], "{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_rfc_9110_says() {
        for (second, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&text(second)), Ok(expected));
        }
    }
}
