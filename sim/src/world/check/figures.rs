//! What a failover cost and how the group went on, for reports. Nothing is judged here.

use super::super::World;
use super::super::machine::Machine;
use crate::clock::Span;
use crate::ledger::key;
use crate::run::{NodeSample, Sample};
use engine::state::Role;
use engine::types::Lsn;

impl World {
    /// Notes what a failover costs: the first one is what the figures tell of.
    pub(in crate::world) fn figure_failover(&mut self, machine: usize, at: Lsn) {
        let time = self.now();
        let Some(live) = &self.machines[machine].live else { return };
        let history = live.node.history();
        let Some(parent) = history.len().checked_sub(2).map(|index| key(&history[index])) else { return };
        let Some(timeline) = self.timelines.get(&parent) else { return };
        let lost: Vec<_> = timeline.range(at.next()..).filter(|(_, entry)| entry.answered).collect();
        let kept = timeline.range(..=at).next_back().map(|(_, entry)| entry.at);
        let last = lost.last().map(|(_, entry)| entry.at);
        if self.figures.rpo.is_some() {
            return;
        }
        self.figures.rpo = Some(match (kept, last) {
            (_, None) => Span(0),
            (kept, Some(last)) => last.since(kept.unwrap_or_default()),
        });
        self.figures.lost_writes = lost.len() as u64;
        self.figures.lost_bytes = lost.iter().map(|(_, entry)| entry.operation.len()).sum();
        let attack = |entry: &crate::ledger::Entry| match &entry.operation.effect {
            crate::reference::Effect::Write(bytes) => {
                bytes.iter().all(|byte| *byte == crate::options::SCRAMBLE)
            }
            crate::reference::Effect::Zeros(_) => false,
        };
        self.figures.attack_kept = timeline.range(..=at).filter(|(_, entry)| attack(entry)).count() as u64;
        self.failover = Some((self.outage.unwrap_or(time), machine));
    }

    /// A look at all nodes for the report.
    pub(in crate::world) fn sample(&mut self) {
        let at = self.now();
        let nodes: Vec<NodeSample> = self
            .machines
            .iter()
            .map(|m| match &m.live {
                None => NodeSample::default(),
                Some(live) => NodeSample {
                    up: true,
                    role: match live.node.role() {
                        Role::Replica => 0,
                        Role::Primary => 1,
                        Role::Fenced => 2,
                    },
                    epoch: live.node.state().epoch().0,
                    durable: live.node.durable().lsn.0,
                    horizon: live.node.state().horizon.0,
                    linked: live.is_linked(),
                },
            })
            .collect();
        for m in &self.machines {
            let Some(live) = m.live.as_ref().filter(|live| live.node.role() == Role::Primary) else {
                continue;
            };
            for replica in live.node.report(m.clock.now(at)).replicas {
                // An old primary is no replica, though it is still on the list.
                let follows = |other: &&Machine| other.name == replica.name && other.reign.is_none();
                if !self.machines.iter().any(|other| follows(&other)) {
                    continue;
                }
                let lag = replica.lag_bytes.unwrap_or_default();
                self.figures.max_lag_bytes = self.figures.max_lag_bytes.max(lag);
            }
        }
        if let Some((since, machine)) = self.failover
            && self.figures.rto.is_none()
            && let Some(guest) = self.machines[machine].reign.and_then(|key| self.guests.get(&key))
            && let Some(first) = guest.first_answer
        {
            self.figures.rto = Some(first.since(since));
        }
        self.samples.push(Sample { at, nodes });
    }
}
