//! Wall-clock time for people: RFC 3339, UTC when written, any offset when read.
//!
//! Invariants:
//! - what is written is read back to the same millisecond ([`format()`]) or nanosecond ([`format_exact`]);
//! - leap seconds do not exist (`:60` is refused), as in the records' clock itself;
//! - years 1970 to 2554, which is all that 64 bits of nanoseconds hold.

use engine::types::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// The wall clock, now. A clock before 1970 counts as 1970.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// `2026-07-01T12:34:56.789Z`, rounded down to the millisecond.
pub(crate) fn format(at: Timestamp) -> String {
    let seconds = at.0 / NANOS;
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3_600, seconds % 3_600 / 60, seconds % 60);
    let ms = at.0 % NANOS / 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// As [`format()`], with the nine digits of the nanosecond where the millisecond alone would lose some.
pub(crate) fn format_exact(at: Timestamp) -> String {
    if at.0.is_multiple_of(1_000_000) {
        return format(at);
    }
    let short = format(at);
    format!("{}.{:09}Z", &short[..short.len() - ".000Z".len()], at.0 % NANOS)
}

/// Reads `2026-07-01T12:34:56Z`, with up to nine digits of a second and an offset such as `+02:00`.
pub(crate) fn parse(text: &str) -> Result<Timestamp, String> {
    read(text).ok_or_else(|| format!("`{text}` is not a time: write it as in `2026-07-01T12:34:56.789Z`"))
}

fn read(text: &str) -> Option<Timestamp> {
    let mut rest = text.as_bytes();
    let year = number(&mut rest, 4)?;
    literal(&mut rest, b"-")?;
    let month = number(&mut rest, 2)?;
    literal(&mut rest, b"-")?;
    let day = number(&mut rest, 2)?;
    literal(&mut rest, b"Tt ")?;
    let hour = number(&mut rest, 2)?;
    literal(&mut rest, b":")?;
    let minute = number(&mut rest, 2)?;
    literal(&mut rest, b":")?;
    let second = number(&mut rest, 2)?;
    let mut nanos = 0;
    if literal(&mut rest, b".").is_some() {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        nanos = number(&mut rest, digits)? * 10u64.pow(9 - u32::try_from(digits).ok()?);
    }
    let offset = match literal(&mut rest, b"Zz+-")? {
        sign @ (b'+' | b'-') => {
            let hours = number(&mut rest, 2)?;
            literal(&mut rest, b":")?;
            let minutes = number(&mut rest, 2)?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = i64::try_from(hours * 3_600 + minutes * 60).ok()?;
            if sign == b'+' { seconds } else { -seconds }
        }
        _ => 0,
    };
    let in_range = (1970..=2554).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !rest.is_empty() || !in_range {
        return None;
    }
    let local = days(year, month, day) * DAY + hour * 3_600 + minute * 60 + second;
    local.checked_add_signed(-offset)?.checked_mul(NANOS)?.checked_add(nanos).map(Timestamp)
}

/// The year, month and day of a moment.
pub(crate) fn date(at: Timestamp) -> (u64, u64, u64) {
    civil(at.0 / NANOS / DAY)
}

fn number(rest: &mut &[u8], digits: usize) -> Option<u64> {
    let (head, tail) = rest.split_at_checked(digits)?;
    *rest = tail;
    head.iter().try_fold(0u64, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0')))
}

fn literal(rest: &mut &[u8], any_of: &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    any_of.contains(first).then(|| {
        *rest = tail;
        *first
    })
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of a year.
fn days_before(year: u64) -> u64 {
    let before = |year: u64| year * 365 + year / 4 - year / 100 + year / 400;
    before(year - 1) - before(1969)
}

fn days(year: u64, month: u64, day: u64) -> u64 {
    days_before(year) + (1..month).map(|month| days_in(year, month)).sum::<u64>() + day - 1
}

/// The date of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // 366 is never too short a year, so this guess is at most the year sought.
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut rest = days - days_before(year);
    let mut month = 1;
    while rest >= days_in(year, month) {
        rest -= days_in(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("1972-02-29T23:59:59.000Z", 68_255_999),
            ("2000-02-29T12:00:00.000Z", 951_825_600),
            ("2024-12-31T23:59:59.000Z", 1_735_689_599),
            ("2100-03-01T00:00:00.000Z", 4_107_542_400),
        ] {
            assert_eq!(format(Timestamp(seconds * NANOS)), text);
            assert_eq!(parse(text), Ok(Timestamp(seconds * NANOS)));
        }
    }

    #[test]
    fn every_day_of_the_calendar_is_read_back() {
        for day in 0..213_000 {
            let at = Timestamp((day * DAY + 86_399) * NANOS + 999_000_000);
            assert_eq!(parse(&format(at)), Ok(at));
        }
        assert_eq!(parse(&format_exact(Timestamp(u64::MAX))), Ok(Timestamp(u64::MAX)));
        assert_eq!(format(Timestamp(u64::MAX)), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn offsets_and_fractions() {
        let base = parse("2026-07-01T10:00:00Z").unwrap();
        assert_eq!(parse("2026-07-01T12:00:00+02:00"), Ok(base));
        assert_eq!(parse("2026-07-01T04:30:00-05:30"), Ok(base));
        assert_eq!(parse("2026-07-01 10:00:00.000000001Z"), Ok(Timestamp(base.0 + 1)));
        assert_eq!(parse("2026-07-01T10:00:00.5Z"), Ok(Timestamp(base.0 + NANOS / 2)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2026",
            "2026-07-01",
            "2026-07-01T10:00:00",
            "2026-07-01T10:00:00.Z",
            "2026-07-01T10:00:00.1234567890Z",
            "2026-13-01T10:00:00Z",
            "2026-00-01T10:00:00Z",
            "2025-02-29T10:00:00Z",
            "2026-07-01T24:00:00Z",
            "2026-07-01T10:00:60Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2026-07-01T10:00:00Z ",
            "2026-07-01T10:00:00+24:00",
            "２026-07-01T10:00:00Z",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
