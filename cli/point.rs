//! How an operator names a recovery point: `latest`, `latest-app`, `lsn:N`, `time:T`, `mark:NAME`, and any of them
//! `@BRANCH`.
//!
//! `T` is a moment (`time:2026-07-01T12:34:56Z`) or a time span back from now (`time:-10m`). A moment means the
//! last write that was taken at or before it. A span is turned into a moment once, where the command runs, so
//! that what is shown, asked and done are the same point. A branch is named as `branches list` does: the epoch that
//! wrote it, and the LSN at which it left the line.

use crate::{time, units};
use engine::node::mark::is_name;
use engine::types::{Epoch, Lsn, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Which recovery point is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Which of them.
    pub(crate) which: Which,
    /// On which branch; on the line if on none.
    pub(crate) branch: Option<BranchId>,
}

/// Which point of the line, or of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The newest that can be selected.
    Latest,
    /// The state after this record.
    Lsn(Lsn),
    /// The state after the last record whose time is at or before this.
    Time(Timestamp),
    /// The state that a mark of that name marks.
    Mark(String),
    /// The newest mark that the applications were still for.
    LatestApp,
}

/// The name of a branch: the epoch that wrote it, and the LSN at which it left the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BranchId {
    /// The epoch.
    pub(crate) epoch: Epoch,
    /// The last LSN that it shares with the line.
    pub(crate) after: Lsn,
}

impl Point {
    /// The newest of the line.
    pub(crate) const LATEST: Point = Point { which: Which::Latest, branch: None };

    /// An LSN, on a branch or on the line.
    pub(crate) const fn lsn(lsn: Lsn, branch: Option<BranchId>) -> Point {
        Point { which: Which::Lsn(lsn), branch }
    }

    /// Reads a point; a span is counted back from `now`.
    pub(crate) fn parse(text: &str, now: Timestamp) -> Result<Point, String> {
        match text.rsplit_once('@') {
            Some((which, branch)) => {
                Ok(Point { which: Which::parse(which, now)?, branch: Some(branch.parse()?) })
            }
            None => Ok(Point { which: Which::parse(text, now)?, branch: None }),
        }
    }
}

/// The form that is read.
impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Latest => f.write_str("latest"),
            Which::Lsn(lsn) => write!(f, "lsn:{lsn}"),
            Which::Time(at) => write!(f, "time:{}", time::format_exact(*at)),
            Which::Mark(name) => write!(f, "mark:{name}"),
            Which::LatestApp => f.write_str("latest-app"),
        }
    }
}

impl Which {
    fn parse(text: &str, now: Timestamp) -> Result<Which, String> {
        match text {
            "latest" => return Ok(Which::Latest),
            "latest-app" => return Ok(Which::LatestApp),
            _ => {}
        }
        if let Some(name) = text.strip_prefix("mark:") {
            return match is_name(name) {
                true => Ok(Which::Mark(name.to_owned())),
                false => {
                    Err(format!("`{name}` is not the name of a mark: `landfall points list` shows them"))
                }
            };
        }
        if let Some(number) = text.strip_prefix("lsn:") {
            return match number.parse() {
                Ok(0) => Err("`lsn:0` is before the first write: points start at `lsn:1`".to_owned()),
                Ok(lsn) if number.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Which::Lsn(Lsn(lsn))),
                _ => Err(format!("`{number}` is not a position: write a whole number, as in `lsn:12345`")),
            };
        }
        if let Some(when) = text.strip_prefix("time:") {
            let Some(span) = when.strip_prefix('-') else { return time::parse(when).map(Which::Time) };
            let back = u64::try_from(units::parse_duration(span)?.as_nanos()).unwrap_or(u64::MAX);
            return match now.0.checked_sub(back) {
                Some(at) => Ok(Which::Time(Timestamp(at))),
                None => Err(format!("`{text}` is before 1970")),
            };
        }
        Err(format!(
            "`{text}` is not a recovery point: write `latest`, `latest-app`, `lsn:12345`, `time:2026-07-01T12:34:56Z`, \
             `time:-10m` or `mark:NAME`"
        ))
    }
}

impl FromStr for BranchId {
    type Err = String;

    fn from_str(text: &str) -> Result<BranchId, String> {
        let number =
            |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let parts = text.split_once('-').and_then(|(epoch, after)| Some((number(epoch)?, number(after)?)));
        match parts {
            Some((epoch, after)) => Ok(BranchId { epoch: Epoch(epoch), after: Lsn(after) }),
            None => Err(format!(
                "`{text}` is not a branch: write it as `landfall branches list` does, as in `latest@1-12345`"
            )),
        }
    }
}

/// The form that is read.
impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.after)
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
        self.which.fmt(f)?;
        self.branch.map_or(Ok(()), |branch| write!(f, "@{branch}"))
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for BranchId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BranchId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BranchId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
    const BRANCH: Option<BranchId> = Some(BranchId { epoch: Epoch(2), after: Lsn(46) });

    fn mark() -> Point {
        Point { which: Which::Mark("before-upgrade".to_owned()), branch: None }
    }

    fn app() -> Point {
        Point { which: Which::LatestApp, branch: None }
    }

    fn at(time: Timestamp) -> Point {
        Point { which: Which::Time(time), branch: None }
    }

    #[test]
    fn the_forms() {
        assert_eq!(Point::parse("latest", NOW), Ok(Point::LATEST));
        assert_eq!(Point::parse("lsn:12345", NOW), Ok(Point::lsn(Lsn(12345), None)));
        assert_eq!(Point::parse("lsn:50@2-46", NOW), Ok(Point::lsn(Lsn(50), BRANCH)));
        assert_eq!(Point::parse("latest@2-46", NOW), Ok(Point { branch: BRANCH, ..Point::LATEST }));
        assert_eq!(Point::parse("time:2025-07-01T12:34:56.789Z", NOW), Ok(at(NOW)));
        assert_eq!(Point::parse("time:-10m", NOW), Ok(at(Timestamp(NOW.0 - 600 * 1_000_000_000))));
    }

    #[test]
    fn wrong_points_show_the_right_form() {
        for (text, message) in [
            (
                "newest",
                "`newest` is not a recovery point: write `latest`, `latest-app`, `lsn:12345`, `time:2026-07-01T12:34:56Z`, \
                 `time:-10m` or `mark:NAME`",
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
            ("mark:", "`` is not the name of a mark: `landfall points list` shows them"),
            ("mark:a b", "`a b` is not the name of a mark: `landfall points list` shows them"),
            (
                "latest@46",
                "`46` is not a branch: write it as `landfall branches list` does, as in `latest@1-12345`",
            ),
            (
                "lsn:3@+1-2",
                "`+1-2` is not a branch: write it as `landfall branches list` does, as in `latest@1-12345`",
            ),
        ] {
            assert_eq!(Point::parse(text, NOW), Err(message.to_owned()));
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for point in [
            Point::LATEST,
            Point::lsn(Lsn(u64::MAX), BRANCH),
            at(NOW),
            at(Timestamp(NOW.0 + 1)),
            mark(),
            app(),
        ] {
            assert_eq!(Point::parse(&point.to_string(), NOW), Ok(point.clone()));
            let json = serde_json::to_string(&point).unwrap();
            assert_eq!(serde_json::from_str::<Point>(&json).unwrap(), point);
        }
        assert!(serde_json::from_str::<Point>("\"time:-10m\"").is_err());
    }
}
