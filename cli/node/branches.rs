//! What was set aside: branches of a group's log, and what the writes on them were.

use super::groups::Group;
use super::volumes::Found;
use crate::control::api::{
    At, Branch, Content, Fault, FaultCode, Loss, LostRange, LostVolume, LostWrite, MAX_LOST_RANGES,
    MAX_LOST_WRITES, Moment, Stretch,
};
use crate::point::{BranchId, Which};
use engine::event::FLAG_COPY;
use engine::log::format::Header;
use engine::node::branches::DropError;
use engine::state;
use engine::types::{Lsn, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name by which an operator means one.
fn id_of(branch: &state::Branch) -> BranchId {
    BranchId { epoch: branch.epoch, after: branch.after.lsn }
}

/// A guest's write; copies of what a volume holds already are none.
fn is_write(header: &Header) -> bool {
    header.kind.changes_bytes() && header.flags & FLAG_COPY == 0
}

fn unreadable(group: &Group, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        FaultCode::Failed,
        format_args!("group {}: a branch cannot be read: {error}", group.config.name),
    )
}

/// Reads a branch, and shows each write.
fn read(group: &Group, branch: &state::Branch, mut write: impl FnMut(&Header)) -> Result<Branch, Fault> {
    let (reader, kept) =
        group.engine.peek(|node| (node.read_branch(branch), node.state().branches.contains(branch)));
    let (mut first, mut last) = (None, None);
    let mut size = Stretch::default();
    let covered = reader.run(|header| {
        let at = At { lsn: header.lsn, time: Moment(header.time) };
        first.get_or_insert(at);
        last = Some(at);
        size.bytes += header.record_len() as u64;
        if is_write(header) {
            size.writes += 1;
            write(header);
        }
    });
    let covered = covered.map_err(|error| unreadable(group, &error))?;
    let nowhere = |lsn: Lsn| At { lsn, time: Moment(Timestamp(0)) };
    let first = first.unwrap_or_else(|| nowhere(branch.after.lsn.next()));
    let last = last.unwrap_or_else(|| nowhere(branch.last));
    size.ms = last.time.0.0.saturating_sub(first.time.0.0) / 1_000_000;
    Ok(Branch {
        id: id_of(branch),
        epoch: branch.epoch,
        first,
        last,
        size,
        kept,
        whole: covered >= branch.last,
    })
}

/// The branches of a group, oldest first.
pub(super) fn list(group: &Group) -> Result<Vec<Branch>, Fault> {
    let branches = group.engine.peek(engine::node::Node::branches);
    branches.iter().map(|branch| read(group, branch, |_| ())).collect()
}

fn find(group: &Group, id: BranchId) -> Result<state::Branch, Fault> {
    let name = &group.config.name;
    let branches = group.engine.peek(engine::node::Node::branches);
    branches.iter().find(|branch| id_of(branch) == id).copied().ok_or_else(|| {
        let known: Vec<String> = branches.iter().map(|branch| id_of(branch).to_string()).collect();
        let known =
            if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        Fault::new(FaultCode::NotFound, format_args!("group {name} has no branch {id}; {known}"))
    })
}

/// The branch that an LSN was set aside with; the newest, if there are several.
pub(super) fn that_holds(group: &Group, lsn: Lsn) -> Option<BranchId> {
    let branches = group.engine.peek(engine::node::Node::branches);
    let holds = |branch: &&state::Branch| branch.after.lsn < lsn && lsn <= branch.last;
    branches.iter().rev().find(holds).map(id_of)
}

/// A point of a branch. What is shown of it as a whole stands on the point at which the branch left the line.
pub(super) fn resolve(group: &Group, id: BranchId, which: &Which, content: Content) -> Result<Found, Fault> {
    let name = &group.config.name;
    let branch = find(group, id)?;
    if content == Content::Whole {
        let start = group.engine.peek(|node| node.check_start(branch.after));
        start.map_err(|error| {
            let mut fault = Fault::new(FaultCode::Refused, format_args!("group {name}, branch {id}: {error}"));
            fault.next = Some(format!(
                "`landfall restore disk {name}/VOLUME --at lsn:{}` where that point is kept, then `landfall branches \
                 export {name}/VOLUME --at {which}@{id} --onto` the image here",
                id.after
            ));
            fault
        })?;
    }
    let states = group.engine.peek(|node| node.survey_branch(&branch)).run();
    let states = states.map_err(|error| unreadable(group, &error))?;
    let refused = |error: &dyn std::fmt::Display| {
        Fault::new(FaultCode::Refused, format_args!("group {name}, branch {id}: {error}"))
    };
    let at = match which {
        Which::Latest => states.latest().ok_or_else(|| refused(&"none of its LSNs is a point"))?,
        Which::Lsn(lsn) => *lsn,
        Which::Mark(_) | Which::LatestApp => {
            return Err(refused(&"marks of a branch are not looked up; name the LSN"));
        }
        Which::Time(time) => {
            states.point_at(*time).ok_or_else(|| refused(&"it has no point that is as old as that"))?
        }
    };
    states.check(at).map_err(|error| refused(&error))?;
    Ok(Found { at, branch: Some(Arc::new(states)) })
}

/// Gives one up.
pub(super) fn drop(group: &Arc<Group>, id: BranchId) -> Result<(), Fault> {
    let name = &group.config.name;
    let branch = find(group, id)?;
    group.engine.with(|node, now| node.drop_branch(now, &branch)).map_err(|error| {
        let code = match error {
            DropError::NotFound => FaultCode::NotFound,
            DropError::Uncommitted | DropError::NotYet => FaultCode::Refused,
            DropError::Failed(_) => FaultCode::Failed,
        };
        let mut fault = Fault::new(code, format_args!("group {name}, branch {id}: {error}"));
        if error == DropError::Uncommitted {
            fault.next = Some(format!("`landfall failover commit {name}` first"));
        }
        fault
    })
}

/// What the newest branch says was lost.
pub(super) fn loss(group: &Arc<Group>) -> Result<Loss, Fault> {
    let name = &group.config.name;
    let branches = group.engine.peek(engine::node::Node::branches);
    let Some(newest) = branches.last() else {
        let mut fault = Fault::new(
            FaultCode::Refused,
            format_args!("group {name}: no write that this node has was left out by a failover"),
        );
        fault.next = Some("ask on the old primary, once it runs and has heard of the new one".to_owned());
        return Err(fault);
    };
    let names: BTreeMap<_, _> =
        group.report().volumes.into_iter().map(|volume| (volume.id, volume.name)).collect();
    let name_of = |id| names.get(&id).cloned().unwrap_or_else(|| format!("volume {id}"));
    let mut writes = Vec::new();
    let mut omitted = 0;
    let mut volumes: BTreeMap<_, (LostVolume, BTreeMap<u64, u64>)> = BTreeMap::new();
    let branch = read(group, newest, |header| {
        let (volume, ranges) = volumes.entry(header.volume).or_insert_with(|| {
            let name = name_of(header.volume);
            (LostVolume { name, writes: 0, bytes: 0, ranges: Vec::new(), more_ranges: 0 }, BTreeMap::new())
        });
        volume.writes += 1;
        volume.bytes += header.extent.len;
        merge(ranges, header.extent.offset, header.extent.end());
        if writes.len() < MAX_LOST_WRITES {
            writes.push(LostWrite {
                at: At { lsn: header.lsn, time: Moment(header.time) },
                volume: volume.name.clone(),
                range: LostRange { offset: header.extent.offset, bytes: header.extent.len },
            });
        } else {
            omitted += 1;
        }
    })?;
    let volumes = volumes.into_values().map(|(mut volume, ranges)| {
        volume.more_ranges = ranges.len().saturating_sub(MAX_LOST_RANGES) as u64;
        let shown = ranges.into_iter().take(MAX_LOST_RANGES);
        volume.ranges = shown.map(|(offset, end)| LostRange { offset, bytes: end - offset }).collect();
        volume
    });
    Ok(Loss {
        group: name.clone(),
        volumes: volumes.collect(),
        branch,
        writes,
        more_writes: omitted,
        older: branches.len() as u64 - 1,
    })
}

/// Joins a range to those that it touches.
fn merge(ranges: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) {
    if start == end {
        return;
    }
    while let Some((&from, &to)) = ranges.range(..=end).next_back().filter(|&(_, &to)| to >= start) {
        ranges.remove(&from);
        (start, end) = (start.min(from), end.max(to));
    }
    ranges.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::merge;
    use std::collections::BTreeMap;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = BTreeMap::new();
        for (start, end) in [(10, 20), (30, 40), (0, 5), (20, 30), (5, 6), (50, 50), (100, 110), (90, 120)] {
            merge(&mut ranges, start, end);
        }
        let found: Vec<(u64, u64)> = ranges.into_iter().collect();
        assert_eq!(found, [(0, 6), (10, 40), (90, 120)]);
    }
}
