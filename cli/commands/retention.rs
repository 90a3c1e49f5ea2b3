//! What retention gives now, in words.

use crate::control::api::{EndsBy, Retention, Window};
use crate::time;
use crate::units::{Bytes, duration_ms};

/// What a window reaches over, what its limits are, and what of it was copied as one: a line each.
pub(crate) fn lines(window: &Window) -> Vec<String> {
    let Some(retention) = &window.retention else { return Vec::new() };
    let reach = rounded(retention.reach_ms);
    let writes = match retention.up_to_now {
        true => format!("any write of the last {reach}"),
        false => {
            let latest = time::format(window.latest.time.0);
            format!("any write of the {reach} up to {latest}; what is newer has not come")
        }
    };
    let mut lines = vec![format!("{writes} ({})", limits(retention))];
    for copied in &retention.copied {
        let (from, to) = (time::format(copied.from.0), time::format(copied.to.0));
        lines.push(format!("but for {from} to {to}, copied as one"));
    }
    lines
}

fn limits(retention: &Retention) -> String {
    let Retention { limit_ms, limit_bytes, used_bytes, .. } = *retention;
    let ends = match (retention.ends_by, retention.ends_in_ms) {
        (None, _) => "too early to say which ends it first".to_owned(),
        (Some(by), None) => format!("ended by {}", name(by)),
        (Some(by), Some(left)) => format!("ends first by {}, in about {}", name(by), rounded(left)),
    };
    format!(
        "limit: {}, or {} of log, of which {} are used: {ends}",
        duration_ms(limit_ms),
        Bytes(limit_bytes),
        Bytes(used_bytes)
    )
}

fn name(by: EndsBy) -> &'static str {
    match by {
        EndsBy::Time => "time",
        EndsBy::Bytes => "bytes",
    }
}

/// In whole seconds, rounded down: a window never reaches further than is said.
fn rounded(ms: u64) -> String {
    duration_ms(if ms < 1_000 { ms } else { ms / 1_000 * 1_000 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{At, Copied, Moment};
    use engine::types::{Lsn, Timestamp};

    fn at(lsn: u64, second: u64) -> At {
        At { lsn: Lsn(lsn), time: Moment(Timestamp((1_751_373_296 + second) * 1_000_000_000)) }
    }

    #[test]
    fn a_window_in_words() {
        let retention = Retention {
            reach_ms: 11_520_900,
            up_to_now: true,
            limit_ms: 86_400_000,
            limit_bytes: 64 << 30,
            used_bytes: 8 << 30,
            ends_by: Some(EndsBy::Bytes),
            ends_in_ms: Some(3_600_000),
            copied: Vec::new(),
        };
        let said = |retention: &Retention| {
            let retention = Some(retention.clone());
            lines(&Window { horizon: at(7, 0), latest: at(90, 60), retention })
        };
        let limit = "limit: 1d, or 64 GiB of log, of which 8 GiB are used";
        assert_eq!(
            said(&retention),
            [format!("any write of the last 3h 12m ({limit}: ends first by bytes, in about 1h)")]
        );
        let full = Retention { ends_in_ms: None, ..retention.clone() };
        assert_eq!(said(&full), [format!("any write of the last 3h 12m ({limit}: ended by bytes)")]);
        let behind = Retention {
            up_to_now: false,
            ends_by: None,
            copied: vec![Copied { from: at(8, 3).time, to: at(30, 44).time }],
            ..retention
        };
        assert_eq!(
            said(&behind),
            [
                format!(
                    "any write of the 3h 12m up to 2025-07-01T12:35:56.000Z; what is newer has not come \
                     ({limit}: too early to say which ends it first)"
                ),
                "but for 2025-07-01T12:34:59.000Z to 2025-07-01T12:35:40.000Z, copied as one".to_owned(),
            ]
        );
    }
}
