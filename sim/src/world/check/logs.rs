//! Guarantees 2 and 7: the records in the files are the operations, one log a prefix of the other, and what a
//! promotion left behind is still there.

use super::super::{DIR, Result, World};
use crate::autopsy;
use crate::ledger::{Key, Timeline};
use engine::event::{FLAG_COPY, Kind};
use engine::state::{Gap, Role};
use engine::types::{Extent, Lsn};
use std::collections::BTreeSet;

impl World {
    /// Guarantee 2 and the log's own truth: the records in the files are the operations, in their order, bit for
    /// bit.
    pub(in crate::world) fn check_log(&mut self, machine: usize, own: Key) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let records = match autopsy::records(&live.node, &m.disk) {
            Ok(records) => records,
            Err(_) if m.is_excused() => return Ok(()),
            Err(detail) => return Err(self.broken("invariant_log_is_whole", machine, detail)),
        };
        let Some(timeline) = self.timelines.get(&own) else { return Ok(()) };
        if self.any_damaged() {
            return Ok(());
        }
        self.invariant_log_is_the_operations(machine, timeline, &records)
    }

    fn invariant_log_is_the_operations(
        &self,
        machine: usize,
        timeline: &Timeline,
        records: &[autopsy::Record],
    ) -> Result {
        for record in records {
            let header = &record.header;
            let known = timeline.at(header.lsn);
            let detail = match (known, header.kind) {
                // A copy is of what the volume holds: that is seen where points are read.
                (None, Kind::Write | Kind::Zero) if header.flags & FLAG_COPY != 0 => continue,
                (None, Kind::Write | Kind::Zero) => "a record that nobody asked for".to_owned(),
                (None, _) => continue,
                (Some(_), kind) if !kind.changes_bytes() => {
                    format!("a {} record where an operation was accepted", kind.name())
                }
                (Some(entry), kind) => {
                    let operation = &entry.operation;
                    let place = header.volume.0 as usize == operation.volume + 1
                        && header.extent == Extent::new(operation.offset, operation.len());
                    let bytes = match (&operation.effect, kind) {
                        (crate::reference::Effect::Write(bytes), Kind::Write) => {
                            record.payload() == &bytes[..]
                        }
                        (crate::reference::Effect::Write(bytes), _) => bytes.iter().all(|byte| *byte == 0),
                        (crate::reference::Effect::Zeros(_), kind) => kind == Kind::Zero,
                    };
                    if place && bytes {
                        continue;
                    }
                    "a record that is not the operation".to_owned()
                }
            };
            let detail = format!("LSN {}: {detail}", header.lsn);
            return Err(self.broken("invariant_prefix", machine, detail));
        }
        let (Some(first), Some(end)) = (records.first(), records.last()) else { return Ok(()) };
        let (first, end) = (first.header.lsn, end.header.lsn);
        let gaps = self.machines[machine].live.as_ref().map(|live| &live.node.state().gaps);
        let left_out = |lsn: Lsn| {
            gaps.is_some_and(|gaps| gaps.iter().any(|gap| gap.after.lsn < lsn && lsn <= gap.to.lsn))
        };
        match timeline
            .range(first..=end)
            .filter(|&(lsn, _)| !left_out(*lsn))
            .find(|(lsn, _)| records.binary_search_by_key(*lsn, |record| record.header.lsn).is_err())
        {
            None => Ok(()),
            Some((lsn, _)) => {
                Err(self.broken("invariant_prefix", machine, format!("LSN {lsn} is missing in the log")))
            }
        }
    }

    /// Guarantee 2, at the end: byte for byte.
    pub(super) fn invariant_logs_are_identical(&self, primary: usize, replica: usize) -> Result {
        let (a, b) = (&self.machines[primary], &self.machines[replica]);
        let (Some(of), Some(live)) = (&a.live, &b.live) else { return Ok(()) };
        if primary == replica || live.node.role() != Role::Replica || live.node.durable() != of.node.durable()
        {
            return Ok(());
        }
        let (Ok(ours), Ok(theirs)) =
            (autopsy::records(&of.node, &a.disk), autopsy::records(&live.node, &b.disk))
        else {
            return match self.any_damaged() || a.rules || b.rules {
                true => Ok(()),
                false => Err(self.broken("invariant_log_is_whole", replica, "unreadable records".to_owned())),
            };
        };
        // One that was taken back where its log ended has none of the line's records yet.
        let (Some(our_first), Some(their_first)) = (ours.first(), theirs.first()) else { return Ok(()) };
        let behind_gaps = |gaps: &[Gap]| gaps.iter().map(|gap| gap.to.lsn.next()).max().unwrap_or_default();
        let first = our_first
            .header
            .lsn
            .max(their_first.header.lsn)
            .max(behind_gaps(&of.node.state().gaps))
            .max(behind_gaps(&live.node.state().gaps));
        let from = |records: &[autopsy::Record]| records.partition_point(|r| r.header.lsn < first);
        if ours[from(&ours)..] != theirs[from(&theirs)..] {
            return Err(self.broken(
                "invariant_prefix",
                replica,
                format!("its log differs from {}'s behind LSN {first}", a.name),
            ));
        }
        Ok(())
    }

    /// Guarantee 7: what a promotion left behind is still in the files.
    pub(in crate::world) fn invariant_branches_kept(&mut self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        if m.is_excused() {
            return Ok(());
        }
        for branch in &live.node.state().branches {
            let found = autopsy::anywhere(&m.disk, DIR, live.node.log().seed(), branch.epoch);
            // Forwards from the branching point, by the chain: several records may stand at an LSN, and what a
            // branch leaves out is in no file.
            let state = live.node.state();
            let mut ends = vec![(branch.after.lsn, branch.after.checksum)];
            let mut furthest = branch.after.lsn;
            // The same record may stand in several files.
            let mut seen = BTreeSet::new();
            while let Some((lsn, checksum)) = ends.pop() {
                if !seen.insert((lsn, checksum.0)) {
                    continue;
                }
                furthest = furthest.max(lsn);
                let leap = autopsy::leap(state, autopsy::Line::Branch(branch.epoch), lsn, checksum);
                ends.extend((leap.0 > lsn).then_some(leap));
                let headers = found.get(&lsn.next()).into_iter().flatten();
                let next = headers.filter(|h| h.previous == checksum).map(|h| (h.lsn, h.checksum));
                ends.extend(next.filter(|(lsn, _)| *lsn <= branch.last));
            }
            if furthest < branch.last {
                let detail = format!(
                    "LSN {} of the branch ({}, {}] is in no file any more",
                    furthest.next(),
                    branch.after.lsn,
                    branch.last
                );
                return Err(self.broken("invariant_branches_kept", machine, detail));
            }
        }
        self.count("branches seen", u64::from(!self.branches(machine)));
        Ok(())
    }

    fn branches(&self, machine: usize) -> bool {
        self.machines[machine].live.as_ref().is_none_or(|live| live.node.state().branches.is_empty())
    }
}
