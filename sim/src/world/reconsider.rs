//! The operator changes his mind: a promotion that is not committed is moved to another point of the line, or of a branch.

use super::{Result, World};
use crate::ledger::Key;
use crate::options::{Aside, Point};
use crate::rng::PPM;
use engine::node::branch_states::BranchStates;
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::state::Role;
use engine::types::{Extent, Lsn, VolumeId};

use super::check::Look;

impl World {
    /// Moves it, now that no job is out.
    pub(super) fn try_to_reconsider(&mut self, machine: usize) -> Result {
        let time = self.now();
        let now = self.machines[machine].clock.now(time);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some((at_ppm, aside)) = live.reconsider.take() else { return Ok(()) };
        if live.node.role() != Role::Primary || live.node.state().uncommitted.is_none() {
            self.count("nothing to reconsider", 1);
            return Ok(());
        }
        let epoch = live.node.next_epoch();
        let states = match aside {
            Aside::Branch => self.look_at_branch(machine, at_ppm)?,
            Aside::Line => None,
        };
        if self.check_power(machine)? {
            return Ok(());
        }
        let chosen = match &states {
            Some((_, at)) => Some(*at),
            None => self.choose(machine, Point::Share(at_ppm)),
        };
        let Some(at) = chosen.filter(|at| *at > Lsn::ZERO) else { return Ok(()) };
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let target = match &states {
            Some((states, at)) => Target::Branch(states, *at),
            None => Target::Line(at),
        };
        let full = live.node.log().used_bytes() + live.node.log().limits().segment_bytes
            > live.node.log().limits().log_bytes;
        let result = live.node.reconsider(now, target, epoch);
        if self.check_power(machine)? {
            self.count("reconsidering cut off", 1);
            return Ok(());
        }
        match result {
            Ok(promotion) => {
                let what = if states.is_some() { "moved to a branch's point" } else { "moved to a point" };
                self.count(what, 1);
                self.machines[machine].takes_back = false;
                let fields = [("epoch", promotion.reign.epoch.0.into()), ("at", at.0.into())];
                self.say(machine, "moved its promotion", &fields);
                self.take_reign(machine)?;
                self.check_image(machine, at, "invariant_points_exact", Look::Whole)?;
                self.invariant_branches_kept(machine)
            }
            Err(PromoteError::Busy) => {
                if let Some(live) = &mut self.machines[machine].live {
                    live.reconsider = Some((at_ppm, aside));
                }
                Ok(())
            }
            Err(error) => {
                self.count("reconsidering refused", 1);
                self.say(machine, "not moved", &[("why", error.to_string().into())]);
                if matches!(error, PromoteError::Failed(_)) && !self.machines[machine].is_excused() && !full {
                    let detail = format!("a promotion could not be moved on a sound disk: {error}");
                    return Err(self.broken("invariant_sound_disks_do_not_fail", machine, detail));
                }
                if matches!(error, PromoteError::NotSelectable { .. }) {
                    let detail = format!("a promotion cannot be moved to a listed point: {error}");
                    return Err(self.broken("invariant_points_stable", machine, detail));
                }
                Ok(())
            }
        }
    }

    /// Opens one of a node's branches at one of its points, and compares what it shows.
    pub(super) fn look_at_branch(
        &mut self,
        machine: usize,
        at_ppm: u32,
    ) -> Result<Option<(BranchStates, Lsn)>> {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(None) };
        let branches = live.node.state().branches.clone();
        let Some(branch) = branches.get(at_ppm as usize % branches.len().max(1)) else { return Ok(None) };
        if live.node.check_start(branch.after).is_err() {
            self.count("branches that left another one", 1);
            return Ok(None);
        }
        let states = match live.node.survey_branch(branch).run() {
            Ok(states) => states,
            Err(_) if m.is_excused() => return Ok(None),
            Err(error) => {
                let detail =
                    format!("the branch ({}, {}] cannot be read: {error}", branch.after.lsn, branch.last);
                return Err(self.broken("invariant_branches_kept", machine, detail));
            }
        };
        let len = u128::from(branch.last.0 - branch.after.lsn.0);
        let wanted = Lsn(branch.after.lsn.0 + 1 + ((len - 1) * u128::from(at_ppm) / u128::from(PPM)) as u64);
        let Some(at) = Some(wanted).filter(|at| states.check(*at).is_ok()).or(states.latest()) else {
            return Ok(None);
        };
        let timelines: Vec<Key> =
            self.timelines.keys().filter(|key| key.0 == branch.epoch).copied().collect();
        let mut shown = Vec::new();
        for spec in live.node.branch_volumes(&states, at) {
            let plan = live.node.plan_branch(&states, spec.id, at, Extent::new(0, spec.size));
            let read = plan.map(|plan| plan.read_all());
            match read {
                Some(Ok(bytes)) => shown.push((spec.id, bytes)),
                // Rot is told of; a plan has to be had.
                _ if m.is_excused() => return Ok(None),
                _ => {
                    let detail = format!("LSN {at} of a branch cannot be read");
                    return Err(self.broken("invariant_points_exact", machine, detail));
                }
            }
        }
        let is_of = |key: &Key| {
            shown.iter().all(|(VolumeId(id), bytes)| {
                let volume = *id as usize - 1;
                self.timelines[key].range_at(at, volume, 0, bytes.len() as u64) == **bytes
            })
        };
        if !timelines.iter().any(is_of) && !self.any_damaged() {
            let detail = format!("LSN {at} of the branch of epoch {} is not what was written", branch.epoch);
            return Err(self.broken("invariant_points_exact", machine, detail));
        }
        self.count("points of branches read", 1);
        Ok(Some((states, at)))
    }
}
