//! `landfall branches` and `landfall loss`: what failovers set aside.

use crate::args::{self, Global};
use crate::commands::status::stretch;
use crate::control::api::{Branch, Loss, LostRange};
use crate::exit::Failure;
use crate::human::{self, Table, clean};
use crate::time;
use crate::units::{Bytes, count};
use std::fmt::Write as _;

/// Ranges of a volume that are printed for people; `--json` has more.
const SHOWN_RANGES: usize = 8;

/// Lists them.
pub(crate) fn list(global: &Global, group: &str) -> Result<(), Failure> {
    let branches = global.connect()?.branches(group)?;
    human::answer(global.form(), &branches, |branches: &Vec<Branch>| table(group, branches))
}

/// Gives one up.
pub(crate) fn drop(global: &Global, arguments: &args::DropBranch) -> Result<(), Failure> {
    let args::DropBranch { group, branch, yes } = arguments;
    let mut client = global.connect()?;
    let known = client.branches(group)?;
    if let Some(known) = known.iter().find(|known| known.id == *branch) {
        human::say(format!(
            "Branch {branch} of group {}: {}. It is gone for good then.",
            clean(group),
            about(known)
        ));
        if !yes {
            human::confirm(&format!("Drop branch {branch}?"))?;
        }
    }
    client.drop_branch(group, *branch)?;
    human::answer(global.form(), &serde_json::json!({ "dropped": branch }), |_| {
        format!("group {}: branch {} is dropped\n", clean(group), branch)
    })
}

/// What was lost.
pub(crate) fn loss(global: &Global, group: &str) -> Result<(), Failure> {
    let loss = global.connect()?.loss(group)?;
    human::answer(global.form(), &loss, loss_text)
}

fn about(branch: &Branch) -> String {
    let mut out = format!(
        "LSN {} to {}, {}, from {} on",
        branch.first.lsn,
        branch.last.lsn,
        stretch(branch.size),
        time::format(branch.first.time.0)
    );
    if !branch.whole {
        out.push_str(", not all of which can be read");
    }
    out
}

fn table(group: &str, branches: &[Branch]) -> String {
    if branches.is_empty() {
        return format!("group {}: no branches\n", clean(group));
    }
    let heads = ["BRANCH", "EPOCH", "FROM LSN", "TO LSN", "WRITES", "LOG", "FIRST WRITTEN", "STATE"];
    let mut table = Table::new(&heads).right(&[1, 2, 3, 4, 5]);
    for branch in branches {
        let state = match (branch.kept, branch.whole) {
            (true, true) => "kept",
            (false, true) => "not taken back yet",
            (_, false) => "damaged",
        };
        table.row(&[
            &branch.id.to_string(),
            &branch.epoch.to_string(),
            &branch.first.lsn.to_string(),
            &branch.last.lsn.to_string(),
            &count(branch.size.writes),
            &Bytes(branch.size.bytes).to_string(),
            &time::format(branch.first.time.0),
            state,
        ]);
    }
    table.render()
}

fn loss_text(loss: &Loss) -> String {
    let branch = &loss.branch;
    let mut out =
        format!("group {}: lost with branch {}: {}\n", clean(&loss.group), branch.id, about(branch));
    let mut table = Table::new(&["VOLUME", "WRITES", "BYTES", "RANGES"]).right(&[1, 2]).indent(2);
    for volume in &loss.volumes {
        let range = |range: &LostRange| format!("{}+{}", range.offset, range.bytes);
        let mut ranges: Vec<String> = volume.ranges.iter().take(SHOWN_RANGES).map(range).collect();
        let more = volume.ranges.len().saturating_sub(SHOWN_RANGES) as u64 + volume.more_ranges;
        if more > 0 {
            ranges.push(format!("and {more} more"));
        }
        table.row(&[
            &volume.name,
            &count(volume.writes),
            &Bytes(volume.bytes).to_string(),
            &ranges.join(" "),
        ]);
    }
    out.push_str(&table.render());
    let _ = writeln!(
        out,
        "  Each write, with its time, is in `--json`. A range is its first byte, and how many."
    );
    if loss.older > 0 {
        let _ = writeln!(
            out,
            "  Older branches: {}; `landfall branches list {}`",
            loss.older,
            clean(&loss.group)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{At, LostVolume, Moment, Stretch};
    use engine::types::{Epoch, Lsn, Timestamp};

    fn branch() -> Branch {
        let at = |lsn, ms: u64| At {
            lsn: Lsn(lsn),
            time: Moment(Timestamp(1_751_373_296_789_000_000 + ms * 1_000_000)),
        };
        Branch {
            id: "1-46".parse().unwrap(),
            epoch: Epoch(1),
            first: at(47, 0),
            last: at(58, 1_500),
            size: Stretch { writes: 10, bytes: 40_960, ms: 1_500 },
            kept: true,
            whole: true,
        }
    }

    #[test]
    fn branches_read_well() {
        assert_eq!(
            table("db", &[branch()]),
            "BRANCH  EPOCH  FROM LSN  TO LSN  WRITES     LOG  FIRST WRITTEN             STATE\n  1-46      1        47      \
             58      10  40 KiB  2025-07-01T12:34:56.789Z  kept\n"
                .replace("\n  1-46", "\n1-46  ")
        );
        assert_eq!(table("db", &[]), "group db: no branches\n");
    }

    #[test]
    fn a_loss_reads_well() {
        let ranges = (0..10).map(|index| LostRange { offset: index * 8_192, bytes: 4_096 }).collect();
        let volume =
            LostVolume { name: "data".to_owned(), writes: 10, bytes: 40_960, ranges, more_ranges: 3 };
        let loss = Loss {
            group: "db".to_owned(),
            branch: branch(),
            volumes: vec![volume],
            writes: Vec::new(),
            more_writes: 0,
            older: 1,
        };
        let text = loss_text(&loss);
        assert!(text.starts_with(
            "group db: lost with branch 1-46: LSN 47 to 58, 10 writes, 40 KiB, 1.50s, from 2025-07-01T12:34:56.789Z on\n"
        ), "{text}");
        assert!(text.contains("0+4096 8192+4096"), "{text}");
        assert!(text.contains("and 5 more"), "{text}");
        assert!(text.contains("Older branches: 1"), "{text}");
    }
}
