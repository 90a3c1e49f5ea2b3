//! Changing roles: promotion, and being fenced.
//!
//! A promotion at X is decided by one write of the state file: before it the node is a replica, after it the
//! primary of a new epoch, whatever dies in between. Everything behind that write is repeated by the next start
//! if need be: the cut of the log at X (the history says where), the first record of the new reign, the filling
//! of the disks.

use super::{Follower, Node, disks, open};
use crate::event::{Kind, Promoted, encode_body};
use crate::guest::Refusal;
use crate::peer::TakesBack;
use crate::state::{Branch, Hydration, Keeps, Role};
use crate::types::{Epoch, Incarnation, Lsn, Now, Reign, VolumeId};

/// What a promotion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The reign that began.
    pub reign: Reign,
    /// The last record that was here, selected or not.
    pub latest: Lsn,
    /// The primary's durable LSN as it last said, if it ever did: what lies between is lost for now.
    pub primary_durable: Option<Lsn>,
    /// Whether it had been done before: nothing was changed then.
    pub repeated: bool,
}

/// What a promotion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The operator chose a point, and may choose again until the promotion is committed.
    Failover,
    /// The primary has handed the group over: there is no other point, and the old primary is taken back.
    Planned,
}

/// Why a node cannot be promoted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// It is primary already, at another point.
    #[error("this node is already primary of epoch {epoch}, promoted at LSN {at}; nothing was changed")]
    AlreadyPrimary {
        /// Its epoch.
        epoch: Epoch,
        /// Where its reign began.
        at: Lsn,
    },
    /// It was primary, and is fenced.
    #[error("this node is an old primary, fenced by epoch {by}; fail over to a replica instead")]
    Fenced {
        /// By what.
        by: Epoch,
    },
    /// No primary ever called.
    #[error("this replica has never heard of a primary: there is nothing to promote")]
    Empty,
    /// Not a point.
    #[error("LSN {at} cannot be selected: the points here reach from LSN {horizon} to {latest}")]
    NotSelectable {
        /// What was asked for.
        at: Lsn,
        /// The oldest.
        horizon: Lsn,
        /// The newest.
        latest: Lsn,
    },
    /// It lies within a sync span.
    #[error("{0}")]
    Coarse(String),
    /// There is no promotion that could be moved.
    #[error("this node is a replica: there is no promotion that could be moved")]
    NotPromoted,
    /// The promotion stands.
    #[error(
        "the promotion to epoch {epoch} is committed, or there was none: it cannot be moved. Another point can be \
         mounted, and a failover to another replica is possible"
    )]
    Committed {
        /// The epoch.
        epoch: Epoch,
    },
    /// The point of a branch cannot be had.
    #[error("{0}")]
    Branch(String),
    /// Somebody else was first, or the epoch that the caller agreed to is not the next any more.
    #[error("epoch {asked} cannot begin: epoch {seen} has been seen; nothing was changed")]
    Conflict {
        /// What was asked for.
        asked: Epoch,
        /// The newest that this node knows of.
        seen: Epoch,
    },
    /// A sync is under way; the caller tries again.
    #[error("the log is being synced")]
    Busy,
    /// The disk failed.
    #[error("the promotion failed: {0}")]
    Failed(String),
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The point of the promotion that was committed; `None` if there was none to commit.
    pub at: Option<Lsn>,
}

/// Why a promotion cannot be committed, or an old primary not be taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Only a primary has a promotion.
    #[error("this node is not primary but {}", .0.name())]
    NotPrimary(Role),
    /// The operator may still move to another point.
    #[error("the failover is not committed: until it is, it can be moved to another point")]
    Uncommitted,
    /// The disk failed.
    #[error("the state could not be written: {0}")]
    Failed(String),
}

impl Node {
    /// Makes this replica the primary of `epoch`, with the volumes as they were at `at`. The epoch is the one that
    /// [`Node::next_epoch`] told when the decision was made: of two who decided at once, the second is refused.
    ///
    /// # Errors
    /// [`PromoteError`]; the node is a replica as before then, but for `Failed`, after which the next start
    /// tells.
    pub fn promote(&mut self, now: Now, at: Lsn, epoch: Epoch) -> Result<Promotion, PromoteError> {
        match self.state.role {
            Role::Primary => return self.promoted_before(at, epoch),
            Role::Fenced if self.state.handed_over.is_some() => return self.resume(now, epoch),
            Role::Fenced => return Err(PromoteError::Fenced { by: self.state.epoch_seen() }),
            Role::Replica if self.log.tip().lsn == Lsn::ZERO => return Err(PromoteError::Empty),
            Role::Replica => {}
        }
        self.promote_to(now, at, epoch, How::Failover)
    }

    /// The promotion of a replica.
    pub(super) fn promote_to(
        &mut self,
        now: Now,
        at: Lsn,
        epoch: Epoch,
        how: How,
    ) -> Result<Promotion, PromoteError> {
        if let Some(failed) = &self.failed {
            return Err(PromoteError::Failed(failed.reason.clone()));
        }
        if epoch != self.next_epoch() {
            return Err(PromoteError::Conflict { asked: epoch, seen: self.state.epoch_seen() });
        }
        if self.work.is_busy() {
            return Err(PromoteError::Busy);
        }
        self.sync_now(now).map_err(PromoteError::Failed)?;
        let latest = self.log.durable();
        match self.check_point(at) {
            Ok(_) => {}
            Err(super::points::Error::Outside { horizon, latest, .. }) => {
                return Err(PromoteError::NotSelectable { at, horizon, latest });
            }
            Err(error) => return Err(PromoteError::Coarse(error.to_string())),
        }
        let found = self.log.tip_at(at).map_err(|error| PromoteError::Failed(error.to_string()))?;
        let (tip, _, end) =
            found.ok_or_else(|| PromoteError::Failed(format!("LSN {at} is not in the log")))?;

        let reign = Reign { epoch, branch: tip.position(), node: self.config.node };
        let branch = (at < latest.lsn).then(|| Branch {
            epoch: latest.epoch,
            after: tip.position(),
            last: latest.lsn,
        });
        // A volume that was defined behind the point is no part of it.
        let volumes = self.specs_at(at);
        // Disks that hold the base images are filled as those are folded.
        let is_filled = self.state.keeps() == Keeps::Disks;
        let done = volumes.iter().map(|spec| (spec.id, if is_filled { spec.size } else { 0 }));
        let hydration = Hydration { at, done: done.collect() };
        let dropped = self.stale_at(at);
        let incarnation = Incarnation(tip.incarnation.0.max(self.state.incarnation.0) + 1);
        let mut coarse = self.coarse.clone();
        Node::cut_coarse(at, &mut coarse);
        let sizes = self.sizes_on_record(at);
        let decided = self.update_state(now, |state| {
            assert!(state.role.may_become(Role::Primary), "the role was checked");
            state.role = Role::Primary;
            // A reign that this node was told of, and that begins behind the point, is no part of this history.
            state.history.retain(|past| past.branch.lsn <= at);
            state.history.push(reign);
            state.own.push(epoch);
            state.branches.extend(branch);
            // What is durable is not looked through again, so what was found in it has to be on record.
            state.coarse = coarse.clone();
            state.cut_gaps(at);
            state.durable = at;
            state.sizes = sizes;
            state.incarnation = incarnation;
            state.hydration = Some(hydration);
            state.volumes = volumes;
            state.uncommitted = (how == How::Failover).then_some(at);
            if is_filled {
                state.stale_disks.extend(dropped);
            }
            state.takes_back = how == How::Planned;
            // Of an earlier reign of this node.
            state.acknowledged = Vec::new();
            state.lost = Vec::new();
        });
        decided.map_err(|error| PromoteError::Failed(error.to_string()))?;

        // Decided. If we die from here on, the next start finds a primary whose reign has no record yet.
        self.log.cut(tip, end);
        self.log.set_incarnation(incarnation);
        self.coarse = coarse;
        if let Some(index) = &mut self.index {
            index.truncate_after(at);
        }
        self.cut_volumes(at);
        self.marks.split_off(&at.next());
        self.followers.values_mut().for_each(|follower| *follower = Follower::default());
        let failed = |node: &mut Node, reason: String| {
            node.fail(now, reason.clone());
            PromoteError::Failed(reason)
        };
        let body = encode_body(&Promoted { reign });
        let begun = self.append_control(now, epoch, Kind::Promote, VolumeId(0), &body);
        match begun {
            Ok(()) => self.begun = true,
            // A full replica can be promoted all the same: it serves reads, and writes once its disks are filled,
            // which makes room.
            Err(error) if error.is_no_space() => {
                tracing::warn!(group = %self.config.name, %error, "no write is taken until there is room");
            }
            Err(error) => return Err(failed(self, error.to_string())),
        }
        self.sync_now(now).map_err(PromoteError::Failed)?;
        self.prepare_hydration().map_err(|error| failed(self, error.to_string()))?;
        let primary_durable = self.last_primary.take().map(|last| last.durable);
        tracing::info!(
            group = %self.config.name, %epoch, %at, latest = %latest.lsn, "promoted to primary"
        );
        Ok(Promotion { reign, latest: latest.lsn, primary_durable, repeated: false })
    }

    /// The epoch that a promotion here would begin.
    #[must_use]
    pub fn next_epoch(&self) -> Epoch {
        Epoch(self.state.epoch_seen().0 + 1)
    }

    /// Asking again for what was done is no mistake.
    fn promoted_before(&self, at: Lsn, epoch: Epoch) -> Result<Promotion, PromoteError> {
        let reign = *self.state.history.last().expect("a primary has a reign");
        if reign.branch.lsn != at || reign.epoch != epoch || reign.epoch == Epoch(1) {
            return Err(PromoteError::AlreadyPrimary { epoch: reign.epoch, at: reign.branch.lsn });
        }
        let branch = self.state.branches.iter().find(|branch| branch.after == reign.branch);
        let latest = branch.map_or(at, |branch| branch.last);
        Ok(Promotion { reign, latest, primary_durable: None, repeated: true })
    }

    /// A newer epoch exists: serves nothing from here on, durably.
    pub fn fence(&mut self, now: Now, by: &[Reign]) {
        let newer = by.last().is_some_and(|reign| reign.epoch > self.state.epoch_seen());
        if !newer || !self.state.role.may_become(Role::Fenced) {
            return;
        }
        // In memory first: not one more write is answered, whatever the disk does.
        self.state.role = Role::Fenced;
        self.state.fenced_by = by.to_vec();
        self.refuse_waiters(Refusal::Shutdown);
        tracing::warn!(
            group = %self.config.name, epoch = %self.state.epoch_seen(),
            "a newer primary exists; this one stops serving"
        );
        let by = by.to_vec();
        let recorded = self.update_state(now, |state| {
            state.role = Role::Fenced;
            state.fenced_by = by;
        });
        if recorded.is_err() {
            self.state.role = Role::Fenced;
        }
    }

    /// Opens what the filling of a promoted node's disks needs.
    pub(crate) fn prepare_hydration(&mut self) -> Result<(), open::Error> {
        let Some(hydration) = &self.state.hydration else { return Ok(()) };
        let keeps = self.state.keeps();
        for (id, volume) in &mut self.volumes {
            if volume.backing.is_some() || keeps == Keeps::Disks {
                continue;
            }
            // What is on record as filled is not filled again, so the disk has to be the one that was.
            let is_begun = hydration.done.iter().any(|(of, done)| of == id && *done > 0);
            volume.backing = Some(match is_begun {
                true => disks::open_backing(&*self.storage, &self.config, &volume.spec)?,
                false => {
                    let path = disks::backing_path(&self.config, &volume.spec.name);
                    disks::make_target(&*self.storage, &path, &volume.spec)?
                }
            });
        }
        Ok(())
    }

    /// Whether this promoted node still fills its disks: its volumes are read out of log and base image.
    #[must_use]
    pub fn is_hydrating(&self) -> bool {
        self.state.hydration.is_some()
    }

    /// The operator stands by the promotion: the points that it left behind may be retired, and an old primary may be
    /// taken back.
    ///
    /// # Errors
    /// If this node is not primary, or its state cannot be written.
    pub fn commit(&mut self, now: Now) -> Result<Committed, CommitError> {
        if self.state.role != Role::Primary {
            return Err(CommitError::NotPrimary(self.state.role));
        }
        let Some(at) = self.state.uncommitted else { return Ok(Committed { at: None }) };
        self.update_state(now, |state| state.uncommitted = None)
            .map_err(|error| CommitError::Failed(error.to_string()))?;
        tracing::info!(group = %self.config.name, %at, "the failover is committed");
        Ok(Committed { at: Some(at) })
    }

    /// Old primaries are taken back as replicas of this one from now on.
    ///
    /// # Errors
    /// As [`Node::commit`], and while the promotion is not committed.
    pub fn take_back(&mut self, now: Now) -> Result<(), CommitError> {
        if self.state.role != Role::Primary {
            return Err(CommitError::NotPrimary(self.state.role));
        }
        if self.state.uncommitted.is_some() {
            return Err(CommitError::Uncommitted);
        }
        if self.state.takes_back {
            return Ok(());
        }
        self.update_state(now, |state| state.takes_back = true)
            .map_err(|error| CommitError::Failed(error.to_string()))
    }

    /// Whether old primaries are taken back.
    #[must_use]
    pub fn takes_back(&self) -> TakesBack {
        if self.state.takes_back { TakesBack::Yes } else { TakesBack::No }
    }

    /// Stops serving in an orderly way: answers whatever waits.
    pub fn close(&mut self, now: Now) {
        let _ = self.sync_now(now);
        self.settle();
        self.refuse_waiters(Refusal::Shutdown);
    }
}
