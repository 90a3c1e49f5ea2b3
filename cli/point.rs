//! How an operator names a recovery point: `latest`, `lsn:N`, `time:T`.
//!
//! `T` is a moment (`time:2026-07-01T12:34:56Z`) or a time span back from now (`time:-10m`). A moment means the
//! last write that was taken at or before it. A span is turned into a moment once, where the command runs, so
//! that what is shown, asked and done are the same point.

use crate::{time, units};
use engine::types::{Lsn, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Which recovery point is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The newest that can be selected.
    Latest,
    /// The state after this record.
    Lsn(Lsn),
    /// The state after the last record whose time is at or before this.
    Time(Timestamp),
}

impl Point {
    /// Reads a point; a span is counted back from `now`.
    pub(crate) fn parse(text: &str, now: Timestamp) -> Result<Point, String> {
        if text == "latest" {
            return Ok(Point::Latest);
        }
        if let Some(number) = text.strip_prefix("lsn:") {
            return match number.parse() {
                Ok(0) => Err("`lsn:0` is before the first write: points start at `lsn:1`".to_owned()),
                Ok(lsn) if number.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Point::Lsn(Lsn(lsn))),
                _ => Err(format!("`{number}` is not a position: write a whole number, as in `lsn:12345`")),
            };
        }
        if let Some(when) = text.strip_prefix("time:") {
            let Some(span) = when.strip_prefix('-') else { return time::parse(when).map(Point::Time) };
            let back = u64::try_from(units::parse_duration(span)?.as_nanos()).unwrap_or(u64::MAX);
            return match now.0.checked_sub(back) {
                Some(at) => Ok(Point::Time(Timestamp(at))),
                None => Err(format!("`{text}` is before 1970")),
            };
        }
        Err(format!(
            "`{text}` is not a recovery point: write `latest`, `lsn:12345`, `time:2026-07-01T12:34:56Z` or `time:-10m`"
        ))
    }
}

/// For the command line: spans count back from this moment.
impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        Point::parse(text, time::now())
    }
}

/// The form that [`Point::parse`] reads, to the last digit.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Latest => f.write_str("latest"),
            Point::Lsn(lsn) => write!(f, "lsn:{lsn}"),
            Point::Time(at) => write!(f, "time:{}", time::format_exact(*at)),
        }
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Spans are refused here: over the control socket a point is a fixed one.
impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Point, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.starts_with("time:-") {
            return Err(serde::de::Error::custom("a span is not a fixed point: send a moment"));
        }
        Point::parse(&text, Timestamp(0)).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_751_373_296_789_000_000);

    #[test]
    fn the_three_forms() {
        assert_eq!(Point::parse("latest", NOW), Ok(Point::Latest));
        assert_eq!(Point::parse("lsn:12345", NOW), Ok(Point::Lsn(Lsn(12345))));
        assert_eq!(Point::parse("time:2025-07-01T12:34:56.789Z", NOW), Ok(Point::Time(NOW)));
        assert_eq!(Point::parse("time:-10m", NOW), Ok(Point::Time(Timestamp(NOW.0 - 600 * 1_000_000_000))));
    }

    #[test]
    fn wrong_points_show_the_right_form() {
        for (text, message) in [
            (
                "newest",
                "`newest` is not a recovery point: write `latest`, `lsn:12345`, `time:2026-07-01T12:34:56Z` or `time:-10m`",
            ),
            ("lsn:", "`` is not a position: write a whole number, as in `lsn:12345`"),
            ("lsn:+5", "`+5` is not a position: write a whole number, as in `lsn:12345`"),
            ("lsn:0", "`lsn:0` is before the first write: points start at `lsn:1`"),
            (
                "lsn:99999999999999999999",
                "`99999999999999999999` is not a position: write a whole number, as in `lsn:12345`",
            ),
            ("time:noon", "`noon` is not a time: write it as in `2026-07-01T12:34:56.789Z`"),
            ("time:-10", "`10` has no unit known here: use ms, s, m, h or d"),
            ("time:-99999d", "`time:-99999d` is before 1970"),
        ] {
            assert_eq!(Point::parse(text, NOW), Err(message.to_owned()));
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for point in
            [Point::Latest, Point::Lsn(Lsn(u64::MAX)), Point::Time(NOW), Point::Time(Timestamp(NOW.0 + 1))]
        {
            assert_eq!(Point::parse(&point.to_string(), NOW), Ok(point));
            let json = serde_json::to_string(&point).unwrap();
            assert_eq!(serde_json::from_str::<Point>(&json).unwrap(), point);
        }
        assert!(serde_json::from_str::<Point>("\"time:-10m\"").is_err());
    }
}
