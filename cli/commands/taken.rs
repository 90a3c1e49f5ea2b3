//! The point that a command took, in words: which, of what kind, how old.

use crate::commands::status::ago;
use crate::control::api::{At, MarkKind, PointMark};
use crate::human::clean;
use crate::point::BranchId;
use crate::time;
use engine::types::Timestamp;

/// `LSN 48211 (2026-07-01T12:34:56.789Z): mark before-upgrade, application-consistent, 3m 12s old`.
pub(crate) fn text(at: &At, branch: Option<BranchId>, mark: Option<&PointMark>, now: Timestamp) -> String {
    let branch = branch.map_or_else(String::new, |branch| format!(" of branch {branch}"));
    let name = match mark {
        Some(PointMark { name: Some(name), .. }) => format!("mark {}, ", clean(name)),
        Some(PointMark { name: None, .. }) => "periodic mark, ".to_owned(),
        None => String::new(),
    };
    let kind = match mark.map(|mark| mark.kind) {
        Some(MarkKind::ApplicationConsistent) => "application-consistent",
        Some(MarkKind::CrashConsistent) | None => "crash-consistent",
    };
    format!("LSN {}{branch} ({}): {name}{kind}, {} old", at.lsn, time::format(at.time.0), ago(at.time, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Moment;
    use engine::types::Lsn;

    #[test]
    fn a_point_in_words() {
        let now = Timestamp(1_751_373_296_789_000_000);
        let at = At { lsn: Lsn(48_211), time: Moment(Timestamp(now.0 - 192_000_000_000)) };
        let begins = "LSN 48211 (2025-07-01T12:31:44.789Z): ";
        assert_eq!(text(&at, None, None, now), format!("{begins}crash-consistent, 3m 12s old"));
        let mut mark =
            PointMark { name: Some("before-upgrade".to_owned()), kind: MarkKind::ApplicationConsistent };
        assert_eq!(
            text(&at, None, Some(&mark), now),
            format!("{begins}mark before-upgrade, application-consistent, 3m 12s old")
        );
        mark = PointMark { name: None, kind: MarkKind::CrashConsistent };
        assert_eq!(
            text(&at, Some("1-46".parse().unwrap()), Some(&mark), now),
            "LSN 48211 of branch 1-46 (2025-07-01T12:31:44.789Z): periodic mark, crash-consistent, 3m 12s old"
        );
    }
}
