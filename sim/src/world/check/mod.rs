//! What should be true, checked against timelines that share no code with the engine: when it is looked at.
//!
//! Each guarantee has functions called `invariant_…`; README and DESIGN carry the same numbers. Here are the moments
//! (an opening, a welcome, a probe), lag and limits (10); the rest is apart by guarantee:
//!
//! | module | what it is |
//! |---|---|
//! | `sectors` | backings and base images hold states of the log (1, 5) |
//! | `logs` | logs are prefixes, and branches are kept (2, 7) |
//! | `scrubs` | what verification finds is there |
//! | `points` | heads and points are exact and stable (4, 5) |
//! | `end` | convergence, and the last look |
//! | `figures` | what is measured, not judged |

mod end;
mod figures;
mod logs;
mod points;
mod scrubs;
mod sectors;

pub(super) use points::{Look, Mark};

use super::{Result, World};
use crate::autopsy;
use crate::ledger::{Key, key};
use crate::rng::PPM;
use engine::peer::Hello;
use engine::state::{Keeps, Role};
use engine::types::Lsn;

impl World {
    /// A program has just opened its node.
    pub(in crate::world) fn check_opened(&mut self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let node = &live.node;
        let (role, death) = (node.role(), m.death);
        let seen = node.state().epoch_seen();
        // What a disk refused to take cannot be known any more.
        if seen < m.seen_epoch && m.is_excused() {
            self.machines[machine].seen_epoch = seen;
            return self.check_opened(machine);
        }
        if seen < m.seen_epoch {
            let detail = format!("epoch {} had been seen, after the restart it knows {seen}", m.seen_epoch);
            return Err(self.broken("invariant_one_writer", machine, detail));
        }
        if !node.is_born() {
            if m.promised.lsn > Lsn::ZERO || m.reign.is_some() {
                let detail = format!("it had acknowledged LSN {}, and is empty", m.promised.lsn);
                return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
            }
            return Ok(());
        }
        match role {
            Role::Primary => {
                let own = key(node.history().last().expect("a primary has a reign"));
                if self.timelines.contains_key(&own) {
                    self.check_writer(machine, own, death)?;
                } else {
                    self.take_reign(machine)?;
                    self.count("reign found at a start", u64::from(own.0.0 > 1));
                }
                self.machines[machine].reign = Some(own);
                self.check_log(machine, own)?;
                let tip = self.machines[machine].live.as_ref().map(|live| live.node.log().tip());
                let tip = tip.expect("it has just been opened");
                self.note_position(machine, own, tip.position())?;
                self.check_image(machine, tip.lsn, "invariant_honest_acknowledgement", Look::Whole)?;
                self.invariant_branches_kept(machine)
            }
            Role::Replica => {
                let tip = node.log().tip().position();
                if tip.lsn < m.promised.lsn && !m.is_excused() {
                    let detail = format!(
                        "LSN {} had been acknowledged, after the restart the log ends at {}",
                        m.promised.lsn, tip.lsn
                    );
                    return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
                }
                let reign = node.history().last().map(key);
                if let Some(reign) = reign {
                    self.note_position(machine, reign, tip)?;
                    self.check_log(machine, reign)?;
                }
                self.invariant_retired_before_folded(machine)?;
                self.check_points(machine, 1, Look::Whole)
            }
            Role::Fenced => {
                self.count("opened fenced", 1);
                Ok(())
            }
        }
    }

    /// Whether a writer's disk may have dropped what was durable, so that another history was written over it.
    fn is_rewritten(&self) -> bool {
        self.rewritten || self.machines.iter().any(|m| m.damaged && m.reign.is_some())
    }

    /// A primary is back after a death: what is left is what has to be (guarantees 1, 2 and 3).
    fn check_writer(&mut self, machine: usize, own: Key, death: crate::reference::Death) -> Result {
        self.rewritten |= self.machines[machine].damaged;
        let m = &self.machines[machine];
        let node = &m.live.as_ref().expect("it has just been opened").node;
        let records = autopsy::records(node, &m.disk);
        let records = match records {
            Ok(records) => records,
            Err(_) if m.is_excused() => {
                let tip = node.log().tip().lsn;
                self.timelines.get_mut(&own).expect("the caller has looked").rewind(tip);
                return Ok(());
            }
            Err(detail) => return Err(self.broken("invariant_log_is_whole", machine, detail)),
        };
        let end = autopsy::end_before_opening(node, &records);
        let timeline = &self.timelines[&own];
        let must = timeline.reference.must_survive(death);
        let left = timeline.prefix_at(end);
        if left < must && !m.damaged {
            let (lost, need) = (end, timeline.lsn_of(must));
            let detail = format!("after a {death:?} death the log ends at LSN {lost}, {need} was promised");
            return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
        }
        for other in self.machines.iter().filter(|other| other.id != m.id) {
            let follows =
                other.live.as_ref().is_some_and(|live| live.node.history().last().map(key) == Some(own));
            if follows && other.promised.lsn > end && !m.damaged && !other.wiped {
                let detail = format!(
                    "{} holds LSN {}, this primary's log ends at {end}",
                    other.name, other.promised.lsn
                );
                return Err(self.broken("invariant_prefix", machine, detail));
            }
        }
        if node.state().keeps() != Keeps::Disks && !node.is_hydrating() {
            self.invariant_write_ahead(machine, own, end)?;
        }
        let lost = timeline.reference.end().0 - left.0;
        self.count("unanswered operations lost", lost);
        let timeline = self.timelines.get_mut(&own).expect("it was just there");
        timeline.rewind(end);
        Ok(())
    }

    /// A replica let a primary in.
    pub(in crate::world) fn check_welcome(&mut self, machine: usize, peer: usize, hello: &Hello) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let durable = live.node.durable();
        if durable.lsn > hello.durable.lsn {
            let detail =
                format!("it holds LSN {}, the primary it welcomes {}", durable.lsn, hello.durable.lsn);
            return Err(self.broken("invariant_prefix", machine, detail));
        }
        let _ = peer;
        let reign = key(hello.history.last().expect("a hello has a history"));
        self.note_position(machine, reign, durable)?;
        if self.rng.chance(PPM / 4) {
            self.check_log(machine, reign)?;
            self.invariant_branches_kept(machine)?;
        }
        Ok(())
    }

    /// A promoted node's disks are whole.
    pub(in crate::world) fn check_filled(&mut self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        // It may have been fenced meanwhile: then its newest point is what it shows.
        let at = match live.node.role() {
            Role::Primary => live.node.log().tip().lsn,
            Role::Replica | Role::Fenced => live.node.durable().lsn,
        };
        self.check_image(machine, at, "invariant_points_exact", Look::Whole)
    }

    /// A look at a node at a random moment.
    pub(in crate::world) fn probe(&mut self, machine: usize, look: Look) -> Result {
        self.invariant_bounded(machine)?;
        self.invariant_honest_lag(machine)?;
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        if !live.node.is_born() || live.node.failed().is_some() {
            return Ok(());
        }
        let (role, durable) = (live.node.role(), live.node.durable().lsn);
        // Disks under a promoted node that was taken back before hold what diverged until they are folded, and those that
        // are being filled what they held before.
        let is_plain = live.node.state().keeps() != Keeps::Disks && !live.node.is_hydrating();
        let own = self.machines[machine].reign;
        self.count("probes", 1);
        match (role, own) {
            (Role::Primary, Some(own)) => {
                if is_plain {
                    self.invariant_write_ahead(machine, own, durable)?;
                }
                let tip = self.machines[machine].live.as_ref().map(|live| live.node.log().tip().lsn);
                self.check_image(machine, tip.unwrap_or_default(), "invariant_reads_are_right", look)?;
            }
            (Role::Replica, _) => self.invariant_retired_before_folded(machine)?,
            _ => {}
        }
        if role != Role::Fenced {
            self.check_points(machine, 2, look)?;
        }
        Ok(())
    }

    /// Guarantee 10: memory and disk have limits.
    pub(in crate::world) fn invariant_bounded(&self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let limits = &self.options.limits;
        let used = live.node.log().used_bytes();
        // A branch's file whose header has rotted is kept, but not counted while it cannot be told what it is.
        if used > limits.log.log_bytes && !self.machines[machine].log_damaged {
            let detail = format!("the log uses {used} bytes, the limit is {}", limits.log.log_bytes);
            return Err(self.broken("invariant_bounded", machine, detail));
        }
        Ok(())
    }

    /// The lag that is reported is never less than what is lost at a failover: a primary believes of a replica only
    /// what that replica has said.
    fn invariant_honest_lag(&self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        if live.node.role() != Role::Primary || self.any_damaged() {
            return Ok(());
        }
        let own = live.node.history().last().map(key);
        for report in live.node.report(m.clock.now(self.now())).replicas {
            let Some(replica) = self.machines.iter().find(|other| other.name == report.name) else {
                continue;
            };
            let Some(their) = &replica.live else { continue };
            let follows = their.node.history().last().map(key) == own && their.node.role() == Role::Replica;
            if follows && report.acknowledged > their.node.durable().lsn {
                let detail = format!(
                    "it reports that {} holds LSN {}, which holds {}",
                    report.name,
                    report.acknowledged,
                    their.node.durable().lsn
                );
                return Err(self.broken("invariant_honest_lag", machine, detail));
            }
        }
        Ok(())
    }
}
