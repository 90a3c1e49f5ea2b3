//! What a drill has found: the document of `--json`, the text for people, and the verdict.

use crate::control::api::{At, Moment, Stretch};
use crate::human::{Table, clean};
use crate::time;
use crate::units::duration_ms;
use serde::Serialize;
use std::fmt::Write as _;

/// A drill, as far as it was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The group.
    pub(crate) group: String,
    /// The node that the drill was on.
    pub(crate) node: String,
    /// The drill's mount.
    pub(crate) mount: u64,
    /// The point.
    pub(crate) at: At,
    /// When the command began.
    pub(crate) begun: Moment,
    /// How long it took, in all.
    pub(crate) took_ms: u64,
    /// From the start of the command to the first byte that every volume has served; absent for a drill that was there
    /// already.
    pub(crate) rto_ms: Option<u64>,
    /// What would have been lost; absent where this node is no replica any more.
    pub(crate) rpo: Option<Rpo>,
    /// What was done, in order.
    pub(crate) steps: Vec<Step>,
    /// What was checked, in order.
    pub(crate) checks: Vec<Check>,
    /// What it comes to.
    pub(crate) verdict: Verdict,
}

/// What a failover to the point would have lost, when the command began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rpo {
    /// What this node has beyond the point.
    pub(crate) behind: Stretch,
    /// Records that the primary is known to have beyond that; it may have more.
    pub(crate) not_received: u64,
    /// From the point to the newest record here, or to the moment when the primary was last heard if it has more.
    pub(crate) ms: u64,
    /// When the primary was last heard.
    pub(crate) last_contact: Option<Moment>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// What.
    pub(crate) what: String,
    /// How long.
    pub(crate) took_ms: u64,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// Which.
    pub(crate) what: Kind,
    /// Of which volume; absent for the operator's own.
    pub(crate) volume: Option<String>,
    /// How it came out.
    pub(crate) outcome: Outcome,
    /// What it found, in words.
    pub(crate) found: String,
    /// The end of what its program said.
    pub(crate) output: String,
    /// How long it took.
    pub(crate) took_ms: u64,
}

/// The kinds of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The volume is served, and its first bytes can be read.
    Served,
    /// What its header says.
    Header,
    /// The system's check of the whole filesystem.
    Fsck,
    /// The operator's own.
    Script,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Served => "served",
            Kind::Header => "header",
            Kind::Fsck => "fsck",
            Kind::Script => "script",
        }
    }
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Well.
    Passed,
    /// Not well.
    Failed,
    /// There was nothing to check, or nothing to check it with.
    NotChecked,
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::NotChecked => "not checked",
        }
    }
}

/// What a drill comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// No check failed; every volume was served.
    Passed,
    /// One did.
    Failed,
}

impl Verdict {
    /// Of these checks.
    pub(crate) fn of(checks: &[Check]) -> Verdict {
        match checks.iter().any(|check| check.outcome == Outcome::Failed) {
            true => Verdict::Failed,
            false => Verdict::Passed,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
        }
    }
}

/// `3 writes and 12s`, with what the primary is known to have beside.
pub(crate) fn rpo_text(rpo: &Rpo) -> String {
    let writes = rpo.behind.writes + rpo.not_received;
    let noun = if writes == 1 { "record" } else { "records" };
    format!("{} ({writes} {noun} beyond the point)", duration_ms(rpo.ms))
}

/// The report for people.
pub(crate) fn text(report: &Report) -> String {
    let mut out = format!(
        "drill of group {} at LSN {} ({}) on {}: {}\n",
        clean(&report.group),
        report.at.lsn,
        time::format(report.at.time.0),
        clean(&report.node),
        report.verdict.name()
    );
    if let Some(rto_ms) = report.rto_ms {
        let _ = writeln!(out, "  RTO  {}, to the first byte of every volume", duration_ms(rto_ms));
    }
    if let Some(rpo) = &report.rpo {
        let _ = writeln!(out, "  RPO  {}", rpo_text(rpo));
    }
    let mut steps = Table::new(&["STEP", "TOOK"]).right(&[1]).indent(2);
    for step in &report.steps {
        steps.row(&[step.what.clone(), duration_ms(step.took_ms)]);
    }
    out.push_str(&steps.render());
    let mut checks = Table::new(&["CHECK", "VOLUME", "OUTCOME", "TOOK", "FOUND"]).right(&[3]).indent(2);
    for check in &report.checks {
        checks.row(&[
            check.what.name(),
            check.volume.as_deref().unwrap_or("-"),
            check.outcome.name(),
            &duration_ms(check.took_ms),
            &check.found,
        ]);
    }
    out.push_str(&checks.render());
    for check in report.checks.iter().filter(|check| check.outcome == Outcome::Failed) {
        for line in check.output.lines() {
            let _ = writeln!(out, "  | {}", clean(line));
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use engine::types::{Lsn, Timestamp};

    pub(in super::super) fn sample() -> Report {
        let at = At { lsn: Lsn(90), time: Moment(Timestamp(1_751_373_296_789_000_000)) };
        let check = |what, volume: Option<&str>, outcome, found: &str, output: &str| Check {
            what,
            volume: volume.map(str::to_owned),
            outcome,
            found: found.to_owned(),
            output: output.to_owned(),
            took_ms: 12,
        };
        let checks = vec![
            check(Kind::Served, Some("data"), Outcome::Passed, "its first bytes", ""),
            check(Kind::Fsck, Some("data"), Outcome::NotChecked, "nbdfuse is not installed", ""),
            check(
                Kind::Script,
                None,
                Outcome::Failed,
                "exit status 1",
                "no table <accounts> & more\n\u{1b}[2J",
            ),
        ];
        Report {
            group: "db".to_owned(),
            node: "west".to_owned(),
            mount: 3,
            at,
            begun: Moment(Timestamp(1_751_373_300_000_000_000)),
            took_ms: 5_000,
            rto_ms: Some(340),
            rpo: Some(Rpo {
                behind: Stretch { writes: 10, bytes: 40_960, ms: 800 },
                not_received: 2,
                ms: 1_250,
                last_contact: None,
            }),
            steps: vec![
                Step { what: "mount".to_owned(), took_ms: 20 },
                Step { what: "checks".to_owned(), took_ms: 4_000 },
            ],
            verdict: Verdict::of(&checks),
            checks,
        }
    }

    #[test]
    fn a_report_reads_well() {
        let expected = "\
drill of group db at LSN 90 (2025-07-01T12:34:56.789Z) on west: FAILED
  RTO  340ms, to the first byte of every volume
  RPO  1.25s (12 records beyond the point)
  STEP    TOOK
  mount   20ms
  checks    4s
  CHECK   VOLUME  OUTCOME      TOOK  FOUND
  served  data    passed       12ms  its first bytes
  fsck    data    not checked  12ms  nbdfuse is not installed
  script  -       FAILED       12ms  exit status 1
  | no table <accounts> & more
  | \u{fffd}[2J
";
        assert_eq!(text(&sample()), expected);
    }

    #[test]
    fn what_was_not_checked_does_not_fail() {
        let mut checks = sample().checks;
        assert_eq!(Verdict::of(&checks), Verdict::Failed);
        checks.pop();
        assert_eq!(Verdict::of(&checks), Verdict::Passed);
    }
}
