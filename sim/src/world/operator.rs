//! The operator: promotes replicas, opens points.

use super::check::Look;
use super::machine::Pin;
use super::{Ev, Result, World};
use crate::clock::Span;
use crate::hash::Hash64;
use crate::ledger::{Timeline, key};
use crate::options::Point;
use crate::reference::Image;
use crate::rng::PPM;
use engine::event::OnMismatch;
use engine::node::promote::PromoteError;
use engine::state::Role;
use engine::types::{Lsn, Timestamp};

/// A hash of an image.
pub(super) fn hash_of(image: &Image) -> u64 {
    let mut hash = Hash64::default();
    image.iter().for_each(|volume| hash.bytes(volume));
    hash.value()
}

impl World {
    /// The LSN at a share of a node's window.
    pub(super) fn choose(&self, machine: usize, point: Point) -> Option<Lsn> {
        let m = &self.machines[machine];
        let node = &m.live.as_ref()?.node;
        let window = node.window()?;
        let at_ppm = match point {
            Point::Share(ppm) => ppm,
            Point::Ago(span) => {
                let now = m.clock.now(self.now()).wall;
                return node.point_at(Timestamp(now.0.saturating_sub(span.0))).ok();
            }
        };
        let span = u128::from(window.latest.0.saturating_sub(window.horizon.0));
        let at = Lsn(window.horizon.0 + (span * u128::from(at_ppm) / u128::from(PPM)) as u64);
        // Within a sync span there is none; the operator takes the newest that is offered.
        Some(if node.check_point(at).is_ok() { at } else { window.latest })
    }

    /// Begins a round of verification on whoever serves.
    pub(super) fn verify(&mut self, on_mismatch: OnMismatch) -> Result {
        let at = self.now();
        for machine in 0..self.machines.len() {
            let now = self.machines[machine].clock.now(at);
            let Some(live) = &mut self.machines[machine].live else { continue };
            let begun = live.node.verify(now, on_mismatch);
            self.count(if begun.is_ok() { "rounds begun" } else { "rounds refused" }, 1);
            self.pump(machine)?;
        }
        Ok(())
    }

    /// Promotes at last: no job is out.
    pub(super) fn try_promotion(&mut self, machine: usize) -> Result {
        let time = self.now();
        let now = self.machines[machine].clock.now(time);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some((point, epoch)) = live.promote.take() else { return Ok(()) };
        let resumes = self.machines[machine]
            .live
            .as_ref()
            .is_some_and(|live| live.node.role() == Role::Fenced && live.node.state().handed_over.is_some());
        let chosen = match &self.machines[machine].live {
            Some(live) if resumes => Some(live.node.durable().lsn),
            _ => self.choose(machine, point),
        };
        let Some(at) = chosen else {
            self.count("promotion without a window", 1);
            return Ok(());
        };
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let heard = live.node.report(now).primary;
        let seen = live.node.state().epoch_seen();
        let result = live.node.promote(now, at, epoch);
        let full = live.node.log().used_bytes() + live.node.log().limits().segment_bytes
            > live.node.log().limits().log_bytes;
        if self.check_power(machine)? {
            self.count("promotion cut off", 1);
            return Ok(());
        }
        match result {
            Ok(promotion) if promotion.repeated => self.count("promotion repeated", 1),
            Ok(promotion) => {
                self.count("promoted", 1);
                self.machines[machine].takes_back = false;
                if promotion.reign.epoch <= seen {
                    let detail = format!("epoch {} was taken, {seen} had been seen", promotion.reign.epoch);
                    return Err(self.broken("invariant_one_writer", machine, detail));
                }
                if at < promotion.latest {
                    self.count("promoted at an older point", 1);
                }
                self.say(
                    machine,
                    "promoted",
                    &[
                        ("epoch", promotion.reign.epoch.0.into()),
                        ("at", at.0.into()),
                        ("latest", promotion.latest.0.into()),
                    ],
                );
                if let Some((durable, _)) = heard {
                    self.count("promoted with a known lag", u64::from(durable >= promotion.latest));
                }
                self.figure_failover(machine, at);
                self.take_reign(machine)?;
                if resumes {
                    self.count("went on after a handover that nobody took", 1);
                    return Ok(());
                }
                self.check_image(machine, at, "invariant_points_exact", Look::Whole)?;
                self.invariant_branches_kept(machine)?;
            }
            Err(PromoteError::Busy) => {
                if let Some(live) = &mut self.machines[machine].live {
                    live.promote = Some((point, epoch));
                }
            }
            Err(error) => {
                self.count("promotion refused", 1);
                self.say(machine, "not promoted", &[("why", error.to_string().into())]);
                if matches!(error, PromoteError::Failed(_)) && !self.machines[machine].is_excused() && !full {
                    let detail = format!("a promotion on a sound disk failed: {error}");
                    return Err(self.broken("invariant_sound_disks_do_not_fail", machine, detail));
                }
                if matches!(error, PromoteError::NotSelectable { .. }) {
                    let detail = format!("a listed point cannot be promoted: {error}");
                    return Err(self.broken("invariant_points_stable", machine, detail));
                }
            }
        }
        Ok(())
    }

    /// The operator stands by a promotion, and wants the old primary as a replica.
    pub(super) fn reprotect(&mut self, machine: usize) -> Result {
        let now = self.machines[machine].clock.now(self.now());
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        if live.node.role() != Role::Primary || live.node.failed().is_some() {
            return Ok(());
        }
        let done = live.node.commit(now).and_then(|_| live.node.take_back(now));
        if self.check_power(machine)? {
            self.count("reprotect cut off", 1);
            return Ok(());
        }
        match done {
            Ok(()) => {
                self.machines[machine].takes_back = true;
                self.count("reprotected", 1);
                self.say(machine, "takes old primaries back", &[]);
            }
            Err(error) if self.machines[machine].is_excused() => {
                self.say(machine, "not reprotected", &[("why", error.to_string().into())]);
            }
            Err(error) => {
                let detail = format!("a commit on a sound disk failed: {error}");
                return Err(self.broken("invariant_sound_disks_do_not_fail", machine, detail));
            }
        }
        self.pump(machine)
    }

    /// The operator of a replica wants its primary to hand the group over.
    pub(super) fn ask_for_group(&mut self, machine: usize) -> Result {
        let now = self.machines[machine].clock.now(self.now());
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let asked = live.node.ask_for_group(now);
        self.count(if asked.is_ok() { "asked for the group" } else { "not in a state to ask" }, 1);
        self.pump(machine)
    }

    /// A replica has taken the group that its primary handed over: it has all that was ever answered there.
    pub(super) fn took_over(&mut self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let history = live.node.history().to_vec();
        let [.., before, reign] = history.as_slice() else { return Ok(()) };
        let (at, epoch) = (reign.branch.lsn, reign.epoch);
        let lost =
            self.timelines[&key(before)].range(at.next()..).filter(|(_, entry)| entry.answered).count();
        if lost > 0 && !self.any_damaged() {
            let detail =
                format!("{lost} answered writes lie behind LSN {at}, where the group was handed over");
            return Err(self.broken("invariant_handover_loses_nothing", machine, detail));
        }
        self.count("handed over", 1);
        self.say(machine, "took the group over", &[("epoch", epoch.0.into()), ("at", at.0.into())]);
        self.machines[machine].takes_back = true;
        self.figure_failover(machine, at);
        self.take_reign(machine)?;
        self.check_image(machine, at, "invariant_points_exact", Look::Whole)
    }

    /// The node writes a reign of its own now: its timeline and its guests begin.
    pub(super) fn take_reign(&mut self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let history = live.node.history().to_vec();
        let Some(reign) = history.last() else { return Ok(()) };
        let own = key(reign);
        if own.1 != self.machines[machine].id {
            let detail = format!("it is primary in another node's reign, {}", reign.epoch);
            return Err(self.broken("invariant_one_writer", machine, detail));
        }
        self.machines[machine].reign = Some(own);
        self.machines[machine].seen_epoch = self.machines[machine].seen_epoch.max(reign.epoch);
        if self.timelines.contains_key(&own) {
            return Ok(());
        }
        if self.machines[machine].base_rots > 0 {
            self.rot_spreads();
        }
        let parent = history.len().checked_sub(2).map(|before| key(&history[before]));
        let timeline = match parent {
            None => Timeline::new(self.first_image(), &self.options.workload.volumes),
            Some(parent) => {
                let Some(parent) = self.timelines.get(&parent) else {
                    let detail = format!("its history is of a reign that never was: {history:?}");
                    return Err(self.broken("invariant_one_writer", machine, detail));
                };
                parent.fork(reign.branch.lsn)
            }
        };
        self.timelines.insert(own, timeline);
        self.new_guest(own, machine);
        Ok(())
    }

    /// What a primary fills its disks from has rotted: nothing tells it, and what it serves, and sends to replicas that
    /// differ, is that.
    pub(super) fn rot_spreads(&mut self) {
        self.machines.iter_mut().for_each(|machine| machine.damaged = true);
    }

    /// Somebody opens a point, for a while.
    pub(super) fn pin(&mut self, machine: usize, at_ppm: u32, span: Span) -> Result {
        let Some(at) = self.choose(machine, Point::Share(at_ppm)) else { return Ok(()) };
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        if let Err(error) = live.node.pin(at) {
            let detail = format!("a listed point cannot be opened: {error}");
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        let image = self.read_point(machine, at)?;
        let hash = image.as_ref().map(hash_of);
        let life = self.machines[machine].life;
        if let Some(live) = &mut self.machines[machine].live {
            let reign = live.node.reign_of(at);
            live.pins.push(Pin { at, hash, reign });
            self.queue.push(self.now() + span, Ev::Unpin { machine, life, at });
            self.count("points pinned", 1);
        }
        Ok(())
    }

    /// And closes it again: it must be what it was.
    pub(super) fn unpin(&mut self, machine: usize, life: u64, at: Lsn) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some(index) = live.pins.iter().position(|pin| pin.at == at) else { return Ok(()) };
        let pin = live.pins.remove(index);
        // A promotion below it, or a new primary's history that leaves it out, takes the point away.
        let gone = live.node.reign_of(at) != pin.reign || at > live.node.durable().lsn;
        if !gone {
            let image = self.read_point(machine, at)?;
            if let (Some(before), Some(image)) = (pin.hash, image)
                && hash_of(&image) != before
                && self.machines[machine].base_rots == 0
            {
                let detail = format!("the pinned point at LSN {at} has changed");
                return Err(self.broken("invariant_points_stable", machine, detail));
            }
            let horizon = self.machines[machine].live.as_ref().map(|live| live.node.state().horizon);
            if horizon.is_some_and(|horizon| horizon > at) {
                let detail = format!("the pinned point at LSN {at} was retired");
                return Err(self.broken("invariant_points_stable", machine, detail));
            }
        }
        if let Some(live) = &mut self.machines[machine].live {
            live.node.unpin(at);
        }
        Ok(())
    }
}
