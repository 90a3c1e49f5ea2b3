//! Convergence: what has to be the case once everything is healed, and the last look at all nodes.

use super::super::{Result, World};
use super::Look;
use crate::ledger::{Timeline, key};
use crate::run::Violation;
use engine::node::config::{AckPolicy, OnFull};
use engine::state::{Keeps, Role};
use engine::types::Lsn;

impl World {
    /// The serving primaries of the newest epoch.
    fn winners(&self) -> Vec<usize> {
        let serving: Vec<usize> = (0..self.machines.len()).filter(|machine| self.serves(*machine)).collect();
        let epoch = |machine: &usize| self.machines[*machine].reign.map(|key| key.0);
        let newest = serving.iter().filter_map(epoch).max();
        serving.into_iter().filter(|machine| epoch(machine) == newest).collect()
    }

    /// Whether a replica that does not keep up has a reason that only a new copy of it can remove.
    fn is_beyond_help(&self, machine: usize, primary: usize) -> bool {
        let (Some(live), Some(of)) = (&self.machines[machine].live, &self.machines[primary].live) else {
            return false;
        };
        let (node, of) = (&live.node, &of.node);
        let common = node.history().iter().zip(of.history()).take_while(|(a, b)| a == b).count();
        let ends = [node.history().get(common), of.history().get(common)];
        let cut = ends.iter().flatten().map(|reign| reign.branch.lsn).fold(node.durable().lsn, Lsn::min);
        // What its disk broke, and branches that leave no room until an operator decides on them.
        let line: u64 = node.segments().iter().map(|segment| segment.header.len).sum();
        let limits = node.log().limits();
        let branches = node.log().used_bytes() - line;
        // A replica without room for the span keeps the points before it, and waits for an operator.
        let no_room =
            node.is_coarse() && node.log().used_bytes() + 2 * limits.segment_bytes > limits.log_bytes;
        // A log that is kept for an old primary which nobody has decided on takes no copies either.
        let log = of.log();
        let held = self.options.on_full != OnFull::Track
            && log.used_bytes() + 2 * log.limits().segment_bytes > log.limits().log_bytes;
        let behind = node.is_coarse() || node.durable().lsn == Lsn::ZERO;
        // Nor does one that branches leave no room in, before an operator commits.
        let full_of_branches =
            of.log().branch_bytes() + 4 * log.limits().segment_bytes > log.limits().log_bytes;
        let no_room = no_room || behind && (held || full_of_branches);
        // What cannot be read there cannot be copied.
        let unreadable = node.is_coarse() && self.machines[primary].is_excused();
        let name = &self.machines[machine].name;
        // A configuration that does not name it: its operator has not decided on it.
        let stranger = !of.config().replicas.contains(name);
        // It may have written alone to what it had made a volume larger by: its operator was told so.
        let own = node.history().last().and_then(|reign| self.timelines.get(&key(reign)));
        let grew = |own: &Timeline| {
            let mut specs = node.volume_specs();
            specs.any(|spec| {
                let volume = spec.id.0 as usize - 1;
                own.largest_since(cut, volume) > own.size_at(cut, volume)
            })
        };
        let grew_alone = node.role() == Role::Fenced && own.is_some_and(grew);
        self.machines[machine].damaged
            || self.is_rewritten()
            || stranger
            || grew_alone
            || no_room
            || unreadable
            || of.needs_copy(name)
            || branches + 4 * limits.segment_bytes > limits.log_bytes
            || cut.next() < of.log().first() && self.options.on_full != OnFull::Track
            || cut < node.state().horizon
            || cut.next() < node.log().first()
    }

    /// Whether all that can be has become one.
    pub(in crate::world) fn has_converged(&self) -> bool {
        self.straggler().is_none()
    }

    /// An old primary whose heir could take the group, and has not.
    fn offers_in_vain(&self) -> Option<usize> {
        let node = |m: &crate::world::machine::Machine| m.live.as_ref().map(|live| live.node.state().clone());
        (0..self.machines.len()).find(|&machine| {
            let Some(state) = node(&self.machines[machine]).filter(|state| state.handed_over.is_some())
            else {
                return false;
            };
            let Some(reign) = state.fenced_by.last() else { return false };
            self.machines.iter().any(|heir| {
                let stands = heir.live.as_ref().map(|live| live.node.durable());
                heir.id == reign.node && !heir.is_excused() && stands == Some(reign.branch)
            })
        })
    }

    /// What is still open.
    fn straggler(&self) -> Option<(usize, String)> {
        for (machine, m) in self.machines.iter().enumerate() {
            let Some(live) = &m.live else { return Some((machine, "its program does not run".to_owned())) };
            if let Some(failed) = live.node.failed().filter(|_| !m.damaged) {
                return Some((machine, format!("it failed: {}", failed.reason)));
            }
        }
        let winners = self.winners();
        if let Some(machine) = winners.is_empty().then(|| self.offers_in_vain()).flatten() {
            return Some((machine, "nobody has taken the group that it handed over".to_owned()));
        }
        let [winner] = winners.as_slice() else { return None };
        let primary = &self.machines[*winner].live.as_ref().expect("it serves").node;
        let tip = primary.log().tip();
        if tip != primary.log().durable() {
            return Some((*winner, format!("LSN {} is not durable", tip.lsn)));
        }
        // Disks that hold the base images of points stay as they are until the operator commits.
        let waits = primary.state().keeps() == Keeps::Disks && primary.state().uncommitted.is_some();
        if primary.is_hydrating() && !waits {
            return Some((*winner, "its disks are not whole".to_owned()));
        }
        // With nobody to follow, nothing is ever safe in another region.
        let alone = !self
            .machines
            .iter()
            .any(|m| m.live.as_ref().is_some_and(|live| live.node.role() == Role::Replica));
        let mut all_follow = !alone || self.options.ack == AckPolicy::Local;
        for (machine, m) in self.machines.iter().enumerate() {
            let node = &m.live.as_ref().expect("all run").node;
            match node.role() {
                Role::Replica if self.is_beyond_help(machine, *winner) => all_follow = false,
                Role::Replica => {
                    if node.is_coarse() {
                        return Some((machine, "its sync span has not ended".to_owned()));
                    }
                    if node.durable() != tip.position() {
                        let at = node.durable().lsn;
                        return Some((machine, format!("it stands at LSN {at}, the primary at {}", tip.lsn)));
                    }
                }
                Role::Primary if machine != *winner && !m.damaged => {
                    return Some((machine, "it still serves, though a newer primary does".to_owned()));
                }
                Role::Primary => {}
                Role::Fenced if self.machines[*winner].takes_back && !m.damaged => {
                    if !self.is_beyond_help(machine, *winner) {
                        return Some((machine, "it was not taken back".to_owned()));
                    }
                    all_follow = false;
                }
                Role::Fenced => {}
            }
        }
        let key = self.machines[*winner].reign?;
        let outstanding = self.guests.get(&key).map_or(0, crate::world::guest::Guest::outstanding);
        // An old primary follows nobody: what it lacks stays in the log, and once that is full, writes wait.
        let log = self.machines[*winner].live.as_ref().expect("all run").node.log();
        let full = log.used_bytes() + log.limits().segment_bytes > log.limits().log_bytes;
        let mut lives = self.machines.iter().filter_map(|m| m.live.as_ref());
        let held = full && lives.any(|live| live.node.role() == Role::Fenced);
        if all_follow && !held && outstanding > 0 {
            return Some((*winner, format!("{outstanding} requests are not answered")));
        }
        None
    }

    pub(in crate::world) fn not_converged(&self) -> Violation {
        match self.straggler() {
            Some((machine, why)) => self.broken("convergence", machine, why),
            None => self.violation("convergence", None, "it converged too late".to_owned()),
        }
    }

    /// Everything is quiet: the logs are the same bytes, the volumes the same state.
    pub(in crate::world) fn final_checks(&mut self) -> Result {
        self.sample();
        for machine in 0..self.machines.len() {
            self.probe(machine, Look::Whole)?;
            self.invariant_branches_kept(machine)?;
            let reign =
                self.machines[machine].live.as_ref().and_then(|live| live.node.history().last().map(key));
            if let Some(reign) = reign {
                self.check_log(machine, reign)?;
            }
        }
        let winners = self.winners();
        if let [winner] = winners.as_slice() {
            self.count("converged on one primary", 1);
            for machine in 0..self.machines.len() {
                self.invariant_logs_are_identical(*winner, machine)?;
            }
        } else {
            self.count("ended without one primary", 1);
        }
        let answered =
            self.timelines.values().map(|t| t.range(..).filter(|(_, e)| e.answered).count() as u64);
        self.figures.writes = answered.max().unwrap_or(0);
        Ok(())
    }
}
