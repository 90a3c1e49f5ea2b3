//! What retention gives now: how far back every write is a point, and which of its limits will end that.

use super::groups::Group;
use super::show::ms_between;
use crate::control::api::{At, Copied, EndsBy, LinkState, Retention};
use crate::time;
use engine::node::report::Report;
use engine::state::Role;
use engine::types::Timestamp;

/// A newest point that is no older than this counts as now: what is on its way is told as lag.
const NOW_MS: u64 = 10_000;
/// A window that is shorter than this tells nothing of how fast the log grows.
const TELLS_MS: u64 = 60_000;

/// What the window of a group, from `horizon` to `latest`, reaches over.
pub(super) fn retention(group: &Group, report: &Report, horizon: At, latest: At) -> Retention {
    let config = &group.config;
    // The log's own limit ends the window as well.
    let limit_bytes = config.retention.bytes.0.min(config.log_limit.0);
    let used_bytes = group.engine.peek(|node| node.segments().iter().map(|segment| segment.end).sum());
    let mut retention = Retention {
        reach_ms: 0,
        up_to_now: is_up_to_now(group, report, latest, time::now()),
        limit_ms: u64::try_from(config.retention.time.as_millis()).unwrap_or(u64::MAX),
        limit_bytes,
        used_bytes,
        ends_by: None,
        ends_in_ms: None,
        copied: copied(group, report, horizon, latest),
    };
    measure(&mut retention, config.segment.0, (horizon.time.0, latest.time.0), time::now());
    retention
}

/// Whether no write is known that the window lacks, but for what is on its way.
fn is_up_to_now(group: &Group, report: &Report, latest: At, now: Timestamp) -> bool {
    if report.role != Role::Replica {
        return latest.lsn == report.durable;
    }
    let connected = group.upstream.newest().is_some_and(|(_, link)| link.state == LinkState::Connected);
    let is_whole = report.primary.is_some_and(|(told, _)| told <= latest.lsn);
    connected && (is_whole || ms_between(latest.time.0, now) < NOW_MS)
}

/// The sync spans within the window, as the times of the points around them.
fn copied(group: &Group, report: &Report, horizon: At, latest: At) -> Vec<Copied> {
    let within = report
        .coarse
        .iter()
        .filter_map(|coarse| coarse.to.map(|to| (coarse.from.prev().max(horizon.lsn), to)));
    let within = within.filter(|&(before, to)| to > horizon.lsn && before < latest.lsn);
    let time_of = |lsn| Some(group.at(lsn).time).filter(|time| time.0 > Timestamp(0)).unwrap_or(horizon.time);
    within.map(|(before, to)| Copied { from: time_of(before), to: time_of(to) }).collect()
}

/// How far the window reaches, what ends it, and when.
fn measure(retention: &mut Retention, segment: u64, (first, last): (Timestamp, Timestamp), now: Timestamp) {
    let length = ms_between(first, last);
    retention.reach_ms = if retention.up_to_now { ms_between(first, now) } else { length };
    let left_bytes = retention.limit_bytes.saturating_sub(retention.used_bytes);
    let left_ms = retention.limit_ms.saturating_sub(ms_between(first, now));
    // Points are retired by whole files, so each limit is reached a little before, and left a little behind.
    if left_bytes <= segment {
        retention.ends_by = Some(EndsBy::Bytes);
    } else if left_ms <= retention.limit_ms / 50 {
        retention.ends_by = Some(EndsBy::Time);
    } else if length >= TELLS_MS {
        let by_bytes = u128::from(left_bytes) * u128::from(length) / u128::from(retention.used_bytes.max(1));
        let by_bytes = u64::try_from(by_bytes).unwrap_or(u64::MAX);
        let first = if by_bytes < left_ms { EndsBy::Bytes } else { EndsBy::Time };
        (retention.ends_by, retention.ends_in_ms) = (Some(first), Some(by_bytes.min(left_ms)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    /// A window that began and ended so many milliseconds ago, of a log of `used` bytes.
    fn measured(began: u64, ended: u64, up_to_now: bool, used: u64) -> Retention {
        let now = Timestamp(1_751_373_296_000_000_000);
        let ago = |ms: u64| Timestamp(now.0 - ms * 1_000_000);
        let mut retention = Retention {
            reach_ms: 0,
            up_to_now,
            limit_ms: 24 * 60 * MINUTE,
            limit_bytes: 64 << 30,
            used_bytes: used,
            ends_by: None,
            ends_in_ms: None,
            copied: Vec::new(),
        };
        measure(&mut retention, 64 << 20, (ago(began), ago(ended)), now);
        retention
    }

    #[test]
    fn what_ends_a_window_first() {
        // An eighth of the bytes in an hour: they last for seven more.
        let busy = measured(60 * MINUTE, 0, true, 8 << 30);
        assert_eq!((busy.ends_by, busy.ends_in_ms), (Some(EndsBy::Bytes), Some(7 * 60 * MINUTE)));
        let quiet = measured(60 * MINUTE, 0, true, 1 << 20);
        assert_eq!((quiet.ends_by, quiet.ends_in_ms), (Some(EndsBy::Time), Some(23 * 60 * MINUTE)));
        let full = measured(60 * MINUTE, 0, true, (64 << 30) - 1);
        assert_eq!((full.ends_by, full.ends_in_ms), (Some(EndsBy::Bytes), None));
        let old = measured(24 * 60 * MINUTE, 0, true, 1 << 20);
        assert_eq!((old.ends_by, old.ends_in_ms), (Some(EndsBy::Time), None));
        let new = measured(MINUTE / 2, 0, true, 1 << 20);
        assert_eq!((new.ends_by, new.ends_in_ms), (None, None), "too early to say");
    }

    #[test]
    fn a_window_that_ended_reaches_no_further() {
        assert_eq!(measured(60 * MINUTE, 20 * MINUTE, true, 1 << 20).reach_ms, 60 * MINUTE);
        assert_eq!(measured(60 * MINUTE, 20 * MINUTE, false, 1 << 20).reach_ms, 40 * MINUTE);
    }
}
