//! Numbers with a unit, as an operator writes them: `250ms`, `64KiB`, `20%`, a weight.

use std::{fmt, time::Duration};

/// A number that was not understood; `Display` says what would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number at all, or one with signs, blanks or an unknown unit.
    #[error("not understood; write {0}")]
    Malformed(&'static str),
    /// A bare number where a unit is needed.
    #[error("the unit is missing; write {0}")]
    MissingUnit(&'static str),
    /// Larger than can be kept.
    #[error("out of range; write {0}")]
    OutOfRange(&'static str),
}

const DURATION_FORM: &str = "a number and a unit: 250ms, 5s, 2m, 1h, 1d";
const SIZE_FORM: &str = "a number and a unit: 512B, 64KiB, 16MiB, 1GiB";
const PERCENT_FORM: &str = "a percentage from 0% to 100%";

/// Reads `250ms`, `5s`, `2m`, `1h` or `1d`; several parts may follow each other (`1m30s`).
///
/// # Errors
/// A bare number has no unit; anything else that is not of this form is malformed; over 100 years is out of range.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = split_number(rest, DURATION_FORM)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_end);
        let millis: u64 = match unit {
            "" => return Err(UnitError::MissingUnit(DURATION_FORM)),
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(UnitError::Malformed(DURATION_FORM)),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|sum| *sum <= LONGEST)
            .ok_or(UnitError::OutOfRange(DURATION_FORM))?;
        rest = tail;
    }
    Ok(total)
}

fn split_number<'a>(text: &'a str, form: &'static str) -> Result<(u64, &'a str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::Malformed(form));
    }
    let number = digits.parse().map_err(|_| UnitError::OutOfRange(form))?;
    Ok((number, rest))
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Reads `512B`, `64KiB`, `16MiB` or `1GiB`.
    ///
    /// # Errors
    /// As [`parse_duration`].
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text, SIZE_FORM)?;
        let factor: u64 = match unit {
            "" => return Err(UnitError::MissingUnit(SIZE_FORM)),
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(UnitError::Malformed(SIZE_FORM)),
        };
        number.checked_mul(factor).map(Self).ok_or(UnitError::OutOfRange(SIZE_FORM))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit))
            .unwrap_or((1, "B"));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// A share from 0 % to 100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// `None` over 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// Reads `20%`.
    ///
    /// # Errors
    /// A bare number has no unit; over 100 is out of range.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text, PERCENT_FORM)?;
        match unit {
            "%" => u8::try_from(number).ok().and_then(Self::new).ok_or(UnitError::OutOfRange(PERCENT_FORM)),
            "" => Err(UnitError::MissingUnit(PERCENT_FORM)),
            _ => Err(UnitError::Malformed(PERCENT_FORM)),
        }
    }

    /// The share from 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl Percent {
    /// This share of a number, rounded down.
    pub const fn of(self, number: usize) -> usize {
        // By parts, so that nothing overflows.
        let percent = self.0 as usize;
        number / 100 * percent + number % 100 * percent / 100
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A backend's share relative to its neighbours, 0–1000; 0 gets no new requests. The default is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// The largest weight.
    pub const MAX: u16 = 1000;

    /// `None` over [`Weight::MAX`].
    pub const fn new(weight: u16) -> Option<Self> {
        if weight <= Self::MAX { Some(Self(weight)) } else { None }
    }

    /// 0–1000.
    pub const fn value(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("5"), Err(UnitError::MissingUnit(DURATION_FORM)));
        for bad in ["", "s", "-5s", "5 s", "5sec", "1.5s", "5s3"] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(parse_duration("99999999999999999d"), Err(UnitError::OutOfRange(DURATION_FORM)));
    }

    #[test]
    fn sizes_need_a_unit_and_print_as_written() {
        for text in ["512B", "64KiB", "16MiB", "1GiB", "0B"] {
            assert_eq!(ByteSize::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(ByteSize::parse("64"), Err(UnitError::MissingUnit(SIZE_FORM)));
        assert_eq!(ByteSize::parse("64kb"), Err(UnitError::Malformed(SIZE_FORM)));
        assert_eq!(ByteSize::parse("99999999999GiB"), Err(UnitError::OutOfRange(SIZE_FORM)));
    }

    #[test]
    fn percentages_end_at_a_hundred() {
        assert_eq!(Percent::parse("20%").map(Percent::fraction), Ok(0.2));
        assert_eq!(Percent::parse("101%"), Err(UnitError::OutOfRange(PERCENT_FORM)));
        assert_eq!(Percent::parse("20"), Err(UnitError::MissingUnit(PERCENT_FORM)));
    }
}
