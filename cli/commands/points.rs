//! `landfall points list`: what can be recovered.
//!
//! Every LSN from the horizon to the latest is a point; listing them all would be listing the log. So the ends,
//! the reigns and the named points are shown, and of the periodic marks the newest and how many there are.

use crate::args::Global;
use crate::commands::retention;
use crate::commands::status::{ago, stretch};
use crate::control::api::{At, MarkKind, Points, Span};
use crate::exit::Failure;
use crate::human::{self, Table, clean};
use crate::time;
use crate::units::{Bytes, count};
use engine::types::Timestamp;
use std::fmt::Write as _;

/// Carries it out.
pub(crate) fn list(global: &Global, group: &str, all: bool) -> Result<(), Failure> {
    let mut client = global.connect()?;
    let points = if all { client.all_points(group)? } else { client.points(group)? };
    human::answer(global.form(), &points, |points| text(points, time::now()))
}

fn text(points: &Points, now: Timestamp) -> String {
    let Some(window) = &points.window else {
        return format!("group {}: no recovery point yet\n", clean(&points.group));
    };
    let mut out = format!("group {}: every LSN from the horizon to the latest\n", clean(&points.group));
    for line in retention::lines(window) {
        let _ = writeln!(out, "  {line}");
    }
    let mut table = Table::new(&["POINT", "LSN", "TIME", "AGE"]).right(&[1]).indent(2);
    let mut row = |name: &str, at: &At| {
        table.row(&[name, &at.lsn.to_string(), &time::format(at.time.0), &ago(at.time, now)]);
    };
    for mark in &points.kept {
        let app = if mark.kind == MarkKind::ApplicationConsistent { " (app)" } else { "" };
        let name = if mark.name.is_empty() { "mark".to_owned() } else { format!("mark {}", mark.name) };
        row(&format!("{name}{app}, kept: {}", Bytes(mark.used_bytes)), &mark.at);
    }
    row("horizon", &window.horizon);
    for (name, at) in marks(points) {
        row(&name, at);
    }
    row("latest", &window.latest);
    out.push_str(&table.render());
    let mut reigns =
        Table::new(&["EPOCH", "WRITTEN BY", "FROM LSN", "TO LSN", "FROM"]).right(&[0, 2, 3]).indent(2);
    for reign in &points.reigns {
        reigns.row(&[
            &reign.epoch.to_string(),
            &reign.node,
            &reign.first.lsn.to_string(),
            &reign.last.lsn.to_string(),
            &time::format(reign.first.time.0),
        ]);
    }
    out.push_str(&reigns.render());
    for Span { first, end } in &points.spans {
        let _ = match end {
            Some(end) => writeln!(
                out,
                "  sync span: LSN {} to {} are no points; the next is {}, {}",
                first.lsn,
                end.lsn.prev(),
                end.lsn,
                time::format(end.time.0)
            ),
            None => writeln!(out, "  sync span: LSNs from {} on are no points until it ends", first.lsn),
        };
    }
    for branch in &points.branches {
        let _ = writeln!(
            out,
            "  branch of epoch {}: LSN {} to {} set aside by a failover ({})",
            branch.epoch,
            branch.first.lsn,
            branch.last.lsn,
            stretch(branch.size)
        );
    }
    out
}

/// The marks, oldest first. Of the periodic ones the newest alone if they were not asked for one by one.
fn marks(points: &Points) -> Vec<(String, &At)> {
    let named = points.marks.iter().map(|mark| {
        let app = if mark.kind == MarkKind::ApplicationConsistent { " (app)" } else { "" };
        (format!("mark {}{app}", mark.name), &mark.at)
    });
    let periodic = &points.periodic_marks;
    let newest = periodic.newest.iter().filter(|_| periodic.marks.is_empty());
    let count = count(periodic.count);
    let newest = newest.map(|at| (format!("periodic mark, newest of {count}"), at));
    let each = periodic.marks.iter().map(|at| ("periodic mark".to_owned(), at));
    let mut marks: Vec<(String, &At)> = named.chain(newest).chain(each).collect();
    marks.sort_by_key(|(_, at)| at.lsn);
    marks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Branch, KeptMark, Mark, Moment, PeriodicMarks, Reign, Stretch, Window};
    use engine::types::{Epoch, Lsn};

    const NOW: Timestamp = Timestamp(1_751_373_296_789_000_000);

    fn at(lsn: u64, seconds_ago: u64) -> At {
        At { lsn: Lsn(lsn), time: Moment(Timestamp(NOW.0 - seconds_ago * 1_000_000_000)) }
    }

    #[test]
    fn points_read_well() {
        let points = Points {
            group: "db".to_owned(),
            spans: vec![
                Span { first: at(20, 900), end: Some(at(31, 800)) },
                Span { first: at(91, 1), end: None },
            ],
            window: Some(Window { horizon: at(7, 3_600), latest: at(90, 1), retention: None }),
            reigns: vec![Reign {
                epoch: Epoch(1),
                node: "east".to_owned(),
                first: at(1, 9_000),
                last: at(90, 1),
            }],
            marks: vec![Mark {
                at: at(50, 60),
                name: "before the upgrade".to_owned(),
                kind: MarkKind::CrashConsistent,
            }],
            kept: vec![KeptMark {
                at: at(3, 90_000),
                name: "month-end".to_owned(),
                kind: MarkKind::ApplicationConsistent,
                used_bytes: 5 << 20,
            }],
            periodic_marks: PeriodicMarks { count: 17_280, newest: Some(at(89, 3)), marks: Vec::new() },
            branches: vec![Branch {
                id: "3-90".parse().unwrap(),
                kept: true,
                whole: true,
                epoch: Epoch(1),
                first: at(91, 1),
                last: at(95, 1),
                size: Stretch { writes: 5, bytes: 20_480, ms: 40 },
            }],
        };
        let expected = "\
group db: every LSN from the horizon to the latest
  POINT                              LSN  TIME                      AGE
  mark month-end (app), kept: 5 MiB    3  2025-06-30T11:34:56.789Z  1d 1h
  horizon                              7  2025-07-01T11:34:56.789Z  1h
  mark before the upgrade             50  2025-07-01T12:33:56.789Z  1m
  periodic mark, newest of 17,280     89  2025-07-01T12:34:53.789Z  3s
  latest                              90  2025-07-01T12:34:55.789Z  1s
  EPOCH  WRITTEN BY  FROM LSN  TO LSN  FROM
      1  east               1      90  2025-07-01T10:04:56.789Z
  sync span: LSN 20 to 30 are no points; the next is 31, 2025-07-01T12:21:36.789Z
  sync span: LSNs from 91 on are no points until it ends
  branch of epoch 1: LSN 91 to 95 set aside by a failover (5 writes, 20 KiB, 40ms)
";
        assert_eq!(text(&points, NOW), expected);
        let json = serde_json::to_string(&points).unwrap();
        assert_eq!(serde_json::from_str::<Points>(&json).unwrap(), points);
        let each = PeriodicMarks { marks: vec![at(40, 90), at(89, 3)], ..points.periodic_marks.clone() };
        let all = text(&Points { periodic_marks: each, kept: Vec::new(), ..points.clone() }, NOW);
        let table: Vec<&str> = all.lines().skip(2).take(5).collect();
        assert_eq!(
            table,
            [
                "  horizon                    7  2025-07-01T11:34:56.789Z  1h",
                "  periodic mark             40  2025-07-01T12:33:26.789Z  1m 30s",
                "  mark before the upgrade   50  2025-07-01T12:33:56.789Z  1m",
                "  periodic mark             89  2025-07-01T12:34:53.789Z  3s",
                "  latest                    90  2025-07-01T12:34:55.789Z  1s",
            ]
        );
        let none = Points { window: None, ..points };
        assert_eq!(text(&none, NOW), "group db: no recovery point yet\n");
    }
}
