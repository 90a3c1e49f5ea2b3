//! A planned failover: the primary stops taking writes, sees everything reach the replica, and hands the group over.
//!
//! ```text
//! replica                                  primary
//!   asks for the group            ──►      lets writes wait, ships the rest
//!   acknowledges the last record  ──►      decides: fenced by a reign of the replica's at that record (one write of
//!                                          the state file), ends its sessions, calls
//!   hello with a reign of its own ◄──      with a history that ends with it
//!   promotes itself to just that reign, tells the caller that it is superseded, and takes it back as its replica
//! ```
//!
//! - Not a write is lost and none is refused before the decision: what guests ask for meanwhile waits, and goes on
//!   here if the replica is not ready within [`PATIENCE_MS`].
//! - Before the decision a crash of either side leaves things as they were: nothing of it is on any disk. Behind it
//!   the old primary serves nothing any more, whatever happens, and goes on calling until the replica has answered
//!   as the primary. There is no moment in which both serve (guarantee 6).
//! - If the replica is lost in between, the old primary's operator ends it by making another replica the primary, or
//!   by having this node go on ([`Node::promote`]) in a reign that is newer than the one that was offered.
//! - As the two logs end at the same record, taking the old primary back needs no sync span.

use super::Node;
use crate::event::{Kind, Promoted, encode_body};
use crate::node::promote::{PromoteError, Promotion};
use crate::peer::{Hello, Rebuff};
use crate::state::Role;
use crate::types::{Epoch, Incarnation, Mono, NodeId, Now, Reign, VolumeId};

/// How long a primary lets guests wait for a replica to acknowledge the rest, in milliseconds, before it goes on as if
/// nobody had asked; and how long a replica's question holds.
pub const PATIENCE_MS: u64 = 20_000;

/// Writes wait until a replica has everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    replica: String,
    until: Mono,
}

/// A replica's question for the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The number of its ask.
    pub(super) number: u64,
    pub(super) until: Mono,
}

/// Why a replica does not ask for the group, or an old primary does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// Only a replica asks.
    #[error("this node is {}, not a replica", .0.name())]
    NotReplica(Role),
    /// It is no copy yet.
    #[error("this replica is not whole: a first copy or a sync span has not ended")]
    NotWhole,
    /// It failed.
    #[error("the group failed: {0}")]
    Failed(String),
}

impl Node {
    /// Has this replica ask its primary for the group, for as long as [`PATIENCE_MS`].
    ///
    /// # Errors
    /// [`HandoverError`]; nothing is asked then.
    pub fn ask_for_group(&mut self, now: Now) -> Result<(), HandoverError> {
        if self.state.role != Role::Replica {
            return Err(HandoverError::NotReplica(self.state.role));
        }
        if let Some(failed) = &self.failed {
            return Err(HandoverError::Failed(failed.reason.clone()));
        }
        if !self.is_born() || self.is_coarse() || self.window().is_none() {
            return Err(HandoverError::NotWhole);
        }
        let number = self.checks.number();
        self.wish = Some(Wish { number, until: now.mono.plus_ms(PATIENCE_MS) });
        Ok(())
    }

    /// Whether this replica has asked for the group, and may still get it.
    #[must_use]
    pub fn asks_for_group(&self) -> bool {
        self.wish.is_some()
    }

    /// Whether guests wait for a replica to have everything.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// A replica asks for the group.
    pub(super) fn asked_for_group(&mut self, now: Now, replica: &str) {
        let refused = match self.followers.get(replica) {
            _ if self.state.role != Role::Primary || self.failed.is_some() || self.drain.is_some() => return,
            _ if self.state.uncommitted.is_some() => Some("the failover to this node is not committed"),
            Some(follower) if follower.lack.is_none() && !follower.needs_copy => None,
            _ => Some("it is not whole"),
        };
        if let Some(why) = refused {
            tracing::warn!(group = %self.config.name, replica, why, "the group is not handed over");
            return;
        }
        tracing::info!(group = %self.config.name, replica, "writes wait: the group is to be handed over");
        self.drain = Some(Drain { replica: replica.to_owned(), until: now.mono.plus_ms(PATIENCE_MS) });
        self.settle_handover(now);
    }

    /// Hands over once the replica has everything, or gives up. Called whenever it said something, and now and then.
    pub(super) fn settle_handover(&mut self, now: Now) {
        if self.wish.is_some_and(|wish| now.mono >= wish.until || self.state.role != Role::Replica) {
            self.wish = None;
        }
        let Some(drain) = &self.drain else { return };
        if self.state.role != Role::Primary || self.failed.is_some() {
            self.drain = None;
            return;
        }
        if let Some(node) = self.heir() {
            self.drain = None;
            let mut branch = self.log.durable().position();
            if planted!(HandOverEarly) {
                let has =
                    self.followers.values().map(|follower| follower.acknowledged).max().unwrap_or_default();
                branch = self.log.tip_at(has).ok().flatten().map_or(branch, |(tip, ..)| tip.position());
            }
            self.hand_over(now, Reign { epoch: self.next_epoch(), branch, node });
        } else if now.mono >= drain.until {
            tracing::warn!(
                group = %self.config.name, replica = drain.replica,
                "the group is not handed over: the replica did not acknowledge everything in time; writes go on"
            );
            self.drain = None;
        }
    }

    /// The replica that guests wait for, once it has everything; what was answered for that has left by then.
    pub(super) fn heir(&self) -> Option<NodeId> {
        let follower = self.followers.get(&self.drain.as_ref()?.replica)?;
        let (tip, durable) = (self.log.tip(), self.log.durable());
        let is_drained = follower.acknowledged >= tip.lsn && durable == tip || planted!(HandOverEarly);
        let has_all = follower.connected && follower.lack.is_none() && is_drained;
        let is_quiet = self.waiters.is_empty() && self.answers.is_empty();
        follower.node.filter(|_| has_all && is_quiet)
    }

    /// The decision. If it does not get on record the group has failed, and the next start tells: no replica has heard
    /// of it.
    fn hand_over(&mut self, now: Now, reign: Reign) {
        let mut by = self.state.history.clone();
        by.push(reign);
        let at = reign.branch.lsn;
        let decided = self.update_state(now, |state| {
            assert!(state.role.may_become(Role::Fenced), "the role was checked");
            state.role = Role::Fenced;
            state.fenced_by = by;
            state.handed_over = Some(at);
        });
        match decided {
            Ok(()) => tracing::info!(
                group = %self.config.name, %at, epoch = %reign.epoch, to = %reign.node, "the group is handed over"
            ),
            Err(_) => self.state.role = Role::Fenced,
        }
        self.refuse_waiters(crate::guest::Refusal::Shutdown);
    }

    /// The epoch in whose name this node calls its replicas: its own, or the one that it offers. `None` if it has
    /// nothing to say. What is said anew when it changes.
    #[must_use]
    pub fn calls_as(&self) -> Option<Epoch> {
        match self.state.role {
            _ if self.failed.is_some() => None,
            Role::Primary => Some(self.state.epoch()),
            Role::Fenced if self.state.handed_over.is_some() => {
                self.state.fenced_by.last().map(|reign| reign.epoch)
            }
            Role::Fenced | Role::Replica => None,
        }
    }

    /// A hello whose history ends with a reign that is not the caller's own offers the group: becomes its primary, if it
    /// is this node's reign and this log ends where it begins.
    ///
    /// # Errors
    /// Always: the answer to send.
    pub(super) fn take_over(&mut self, now: Now, hello: &Hello, reign: Reign) -> Rebuff {
        // Somebody else's offer is none of this node's business.
        if reign.node != self.config.node || self.state.role != Role::Replica || !self.is_born() {
            return Rebuff::NotYet;
        }
        // A disk that has lost records since it acknowledged them ends elsewhere. What is here is synced before anything
        // is decided.
        let at = self.log.tip().position();
        if at != reign.branch || self.state.history != hello.history[..hello.history.len() - 1] {
            tracing::warn!(group = %self.config.name, %reign.branch.lsn, here = %at.lsn, "the group cannot be taken over");
            return Rebuff::Failed;
        }
        self.wish = None;
        match self.promote_to(now, at.lsn, reign.epoch, super::promote::How::Planned) {
            Ok(_) => Rebuff::Superseded { history: self.state.history.clone() },
            Err(PromoteError::Busy) => Rebuff::NotYet,
            Err(error) => {
                tracing::warn!(group = %self.config.name, %error, "the group cannot be taken over");
                Rebuff::Failed
            }
        }
    }

    /// The replica has taken the group, or somebody newer has: there is nothing to offer any more.
    pub(super) fn end_offer(&mut self, now: Now, history: &[Reign]) {
        let offered = self.state.fenced_by.last().map_or(Epoch(0), |reign| reign.epoch);
        let is_taken = history.last().is_some_and(|reign| reign.epoch >= offered);
        if self.state.role == Role::Fenced && self.state.handed_over.is_some() && is_taken {
            let history = history.to_vec();
            // Where it does not get on record it is said again, and answered again.
            let _ = self.update_state(now, |state| {
                state.handed_over = None;
                state.fenced_by = history;
            });
        }
    }

    /// Has an old primary go on that handed the group over to a replica which never took it. Its reign is newer than
    /// the one that was offered: should the replica take that all the same, it is superseded.
    ///
    /// # Errors
    /// [`PromoteError`], as of [`Node::promote`].
    pub(super) fn resume(&mut self, now: Now, epoch: Epoch) -> Result<Promotion, PromoteError> {
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
        let tip = self.log.durable();
        let reign = Reign { epoch, branch: tip.position(), node: self.config.node };
        let incarnation = Incarnation(tip.incarnation.0.max(self.state.incarnation.0) + 1);
        let decided = self.update_state(now, |state| {
            assert!(state.role.may_become(Role::Primary), "the role was checked");
            state.role = Role::Primary;
            state.history.push(reign);
            state.own.push(epoch);
            state.fenced_by = Vec::new();
            state.handed_over = None;
            state.incarnation = incarnation;
        });
        decided.map_err(|error| PromoteError::Failed(error.to_string()))?;
        self.log.begin_segment();
        self.log.set_incarnation(incarnation);
        let body = encode_body(&Promoted { reign });
        match self.append_control(now, epoch, Kind::Promote, VolumeId(0), &body) {
            Ok(()) => self.begun = true,
            Err(error) if error.is_no_space() => self.begun = false,
            Err(error) => {
                self.fail(now, error.to_string());
                return Err(PromoteError::Failed(error.to_string()));
            }
        }
        self.sync_now(now).map_err(PromoteError::Failed)?;
        tracing::info!(group = %self.config.name, %epoch, at = %tip.lsn, "goes on as the primary");
        Ok(Promotion { reign, latest: tip.lsn, primary_durable: None, repeated: false })
    }
}
