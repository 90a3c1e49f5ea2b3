//! Changing one's mind: a promotion that is not committed is moved to another point.
//!
//! It is moved to a point of the line, or to one of a branch that left the line, as the one which the promotion itself set
//! aside has. What was written since, by this node too, becomes a branch; nothing is thrown away.
//!
//! It is decided by one write of the state file, like a promotion: a new reign that begins at the point, under a new
//! epoch. Before it the node is what it was; behind it, and at every start, the log is read anew by the history that the
//! state tells, so that there is one way to get there, whatever dies in between. The volumes are read out of log and base
//! images at once, and their disks are filled anew.
//!
//! Whoever calls has made sure that no guest is there: what it has read before is not what it would read next.

use super::branch_states::{BranchError, BranchStates};
use super::promote::{PromoteError, Promotion};
use super::{Node, open};
use crate::state::{Branch, Hydration, Keeps, Role};
use crate::types::{Epoch, Incarnation, Lsn, Now, Position, Reign};

/// Where a promotion is moved to.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// A point of the line.
    Line(Lsn),
    /// A point of a branch.
    Branch(&'a BranchStates, Lsn),
}

impl Target<'_> {
    /// The point.
    #[must_use]
    pub fn at(&self) -> Lsn {
        match *self {
            Target::Line(at) | Target::Branch(_, at) => at,
        }
    }
}

impl Node {
    /// Moves a promotion that is not committed to another point, under `epoch`, which [`Node::next_epoch`] told when the
    /// decision was made. The points that are in use stay so.
    ///
    /// # Errors
    /// [`PromoteError`]; nothing is changed then, but for `Failed`, after which the next start tells.
    pub fn reconsider(
        &mut self,
        now: Now,
        target: Target<'_>,
        epoch: Epoch,
    ) -> Result<Promotion, PromoteError> {
        let at = target.at();
        if let Some(failed) = &self.failed {
            return Err(PromoteError::Failed(failed.reason.clone()));
        }
        match self.state.role {
            Role::Primary => {}
            Role::Fenced => return Err(PromoteError::Fenced { by: self.state.epoch_seen() }),
            Role::Replica => return Err(PromoteError::NotPromoted),
        }
        if self.state.uncommitted.is_none() {
            return Err(PromoteError::Committed { epoch: self.state.epoch() });
        }
        if epoch != self.next_epoch() {
            return Err(PromoteError::Conflict { asked: epoch, seen: self.state.epoch_seen() });
        }
        if self.work.must_rest(now, self.is_reading_at_rest()) {
            return Err(PromoteError::Busy);
        }
        self.sync_now(now).map_err(PromoteError::Failed)?;
        let latest = self.log.durable();
        let (tip, cut) = self.check_target(target)?;

        let reign = Reign { epoch, branch: tip.position(), node: self.config.node };
        let mut history: Vec<Reign> = self.state.history.clone();
        // Before the first record there is no epoch, but the group's first reign is part of whatever follows.
        let oldest = history.first().map(|reign| reign.epoch).unwrap_or_default();
        history.retain(|past| past.epoch <= cut.epoch.max(oldest) && past.branch.lsn <= cut.lsn);
        let mut volumes = self.specs_at(cut.lsn);
        let mut coarse = self.coarse.clone();
        Node::cut_coarse(cut.lsn, &mut coarse);
        let mut branches = self.state.branches.clone();
        if let Target::Branch(states, _) = target {
            let branch = *states.branch();
            branches.retain(|kept| *kept != branch);
            if at < branch.last {
                branches.push(Branch { after: tip.position(), ..branch });
            }
            history.extend(states.reigns_until(at));
            volumes = states.specs_at(volumes, at);
            coarse.extend(states.coarse_until(at));
        }
        history.push(reign);
        if cut.lsn < latest.lsn {
            branches.push(Branch { epoch: latest.epoch, after: cut, last: latest.lsn });
        }
        let start = match target {
            Target::Branch(states, _) if self.log.start().lsn == cut.lsn => states.start(),
            _ => None,
        };
        let keeps = self.state.keeps();
        let done = volumes.iter().map(|spec| (spec.id, if keeps == Keeps::Disks { spec.size } else { 0 }));
        let hydration = Hydration { at, done: done.collect() };
        // What has been written to the disks of volumes that are no part of this any more stands in records of a branch.
        let gone = self.volumes.values().filter(|known| volumes.iter().all(|spec| spec.id != known.spec.id));
        let dropped: Vec<String> = gone.map(|volume| volume.spec.name.clone()).collect();
        let incarnation = Incarnation(tip.incarnation.0.max(self.state.incarnation.0) + 1);

        let sizes = self.sizes_on_record(cut.lsn);
        let decided = self.update_state(now, |state| {
            state.history = history;
            state.own.push(epoch);
            state.branches = branches;
            state.coarse = coarse;
            state.cut_gaps(cut.lsn);
            state.start = start.unwrap_or(state.start);
            state.durable = at;
            state.sizes = sizes;
            state.incarnation = incarnation;
            state.hydration = Some(hydration);
            state.stale_disks.extend(dropped);
            state.stale_disks.retain(|name| volumes.iter().all(|spec| spec.name != *name));
            state.volumes = volumes;
            state.uncommitted = Some(at);
            state.takes_back = false;
            state.acknowledged = Vec::new();
            state.lost = Vec::new();
        });
        decided.map_err(|error| PromoteError::Failed(error.to_string()))?;

        // Decided. If we die from here on, the next start reads the log in the same way.
        self.read_anew(now).map_err(|error| {
            let reason = format!("reading the log from LSN {at} on: {error}");
            self.fail(now, reason.clone());
            PromoteError::Failed(reason)
        })?;
        tracing::info!(group = %self.config.name, %epoch, %at, "the promotion was moved to another point");
        Ok(Promotion { reign, latest: latest.lsn, primary_durable: None, repeated: false })
    }

    /// The tip at the point, and the last position that the line keeps of what it has now.
    fn check_target(&self, target: Target<'_>) -> Result<(crate::log::chain::Tip, Position), PromoteError> {
        let failed = |error: &dyn std::fmt::Display| PromoteError::Failed(error.to_string());
        match target {
            Target::Line(at) => {
                match self.check_point(at) {
                    Ok(_) => {}
                    Err(super::points::Error::Outside { horizon, latest, .. }) => {
                        return Err(PromoteError::NotSelectable { at, horizon, latest });
                    }
                    Err(error) => return Err(PromoteError::Coarse(error.to_string())),
                }
                let found = self.log.tip_at(at).map_err(|error| failed(&error))?;
                let (tip, ..) = found.ok_or_else(|| failed(&format!("LSN {at} is not in the log")))?;
                Ok((tip, tip.position()))
            }
            Target::Branch(states, at) => {
                let refused = |error: BranchError| PromoteError::Branch(error.to_string());
                if !self.state.branches.contains(states.branch()) {
                    return Err(refused(BranchError::NotWhole));
                }
                states.check(at).map_err(refused)?;
                self.check_start(states.branch().after).map_err(refused)?;
                if !states.leaves_none_out {
                    return Err(PromoteError::Branch(
                        "the branch leaves records out, which a sync span had made up for: its points can be \
                         mounted and exported, not promoted"
                            .to_owned(),
                    ));
                }
                Ok((states.tip_at(at).map_err(refused)?, states.branch().after))
            }
        }
    }

    /// Reads the log by the state on record, as a start does, and begins its reign.
    fn read_anew(&mut self, now: Now) -> Result<(), open::Error> {
        let (file, lock) = (self.file.clone(), self._lock.clone());
        let (mut node, _) =
            open::load(self.storage.clone(), self.config.clone(), file, self.state.clone(), lock)?;
        // Points that are in use, and answers that are due, are what they were.
        node.pins = std::mem::take(&mut self.pins);
        node.take_kept(self);
        node.next_ticket = self.next_ticket;
        self.refuse_waiters(crate::guest::Refusal::Shutdown);
        node.answers = std::mem::take(&mut self.answers);
        *self = node;
        match self.begin(now) {
            Err(error) if error.is_no_space() => {
                tracing::warn!(group = %self.config.name, %error, "no write is taken until there is room");
            }
            begun => begun?,
        }
        self.sync_now(now).map_err(|reason| open::Error::NotNow { reason })
    }
}
