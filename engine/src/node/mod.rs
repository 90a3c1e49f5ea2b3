//! One group on one node: the machine that everything else drives.
//!
//! Inputs are calls that take `now` first; what takes long or waits for a disk comes out as a [`work::Job`], to be
//! run without the node and brought back; answers that had to wait come out of [`Node::take_answers`]. The node
//! reads no clock and starts no thread, so the simulator and the real runtime drive the very same code.
//!
//! - An answer to a flush leaves in `Node::settle` and nowhere else, and only for what is durable: here, and in
//!   the other region too under [`AckPolicy::Replica`].
//! - What may be sent to a replica is what [`Log::read`](crate::log::Log::read) gives: nothing above the durable
//!   position.
//! - Which role may become which is one table, [`Role::may_become`].
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what an operator decides |
//! | [`open`] | from the files to a node |
//! | `disks` | the files of its volumes |
//! | [`primary`] | guest requests, replicas that follow |
//! | [`replica`] | following a primary |
//! | `protect` | volumes that join a group while it runs |
//! | [`mark`] | named points |
//! | [`keep`] | marks that outlive the window |
//! | `resize` | the sizes of volumes, and their changing |
//! | [`promote`] | changing roles |
//! | [`rejoin`] | an old primary that is taken back |
//! | [`handover`] | a planned failover: no write lost, and no two primaries |
//! | [`branches`] | what was left beside the main line |
//! | [`branch_states`] | and its points |
//! | `held` | what an open point costs |
//! | [`reconsider`] | a promotion that is moved to another point |
//! | [`points`] | recovery points: choosing, opening, reading |
//! | `span` | what replicas lack, and how they get it |
//! | `coarse` | a replica in a sync span |
//! | [`verify`] | online verification: a primary tells what its volumes hold |
//! | [`check`] | and a replica compares |
//! | [`reread`] | the log's files, read again at rest |
//! | [`work`] | what is done in the background, in which lane: syncs, applies, and |
//! | [`checkpoint`] | saying on record how far the disks are, so that log is free again |
//! | [`fold`] | retiring points into the base images |
//! | [`hydrate`] | filling the disks of a promoted node |
//! | [`report`] | what a node says of itself |

pub mod branch_states;
pub mod branches;
pub mod check;
pub mod checkpoint;
mod coarse;
pub mod config;
mod disks;
pub mod fold;
pub mod handover;
mod held;
pub mod hydrate;
pub mod keep;
pub mod mark;
pub mod open;
pub mod points;
pub mod primary;
pub mod promote;
mod protect;
pub mod reconsider;
pub mod rejoin;
pub mod replica;
pub mod report;
pub mod reread;
mod resize;
pub mod span;
pub mod verify;
pub mod work;

use crate::event::VolumeSpec;
use crate::extents::Extents;
use crate::guest::Refusal;
use crate::index::Index;
use crate::io::{File, Storage};
use crate::kept::KeptMarks;
use crate::log::{self, Log};
use crate::overlay::Overlay;
use crate::state::{Coarse, Role, State, StateFile};
use crate::types::{Epoch, Extent, Lsn, Mono, NodeId, Now, Position, Reign, Timestamp, VolumeId};
use config::{AckPolicy, Config};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The number of an answer that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// An answer that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which.
    pub ticket: Ticket,
    /// How it ended.
    pub result: Result<(), Refusal>,
}

/// Why a group does not serve though its role would let it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What happened, to what, and what to do.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// A volume on this node.
pub(crate) struct Volume {
    pub(crate) spec: VolumeSpec,
    /// Where the log defines it; zero if that lies before the retained log.
    pub(crate) defined: Lsn,
    /// Its disk held data when it was defined there, which no record has brought.
    pub(crate) in_place: bool,
    /// Where its size changed in the retained log, oldest first.
    pub(crate) resizes: Vec<resize::Resized>,
    /// The plain disk; a replica has none.
    pub(crate) backing: Option<Arc<dyn File>>,
    /// The state of the volume at the LSN up to which the group is folded; a node that never was a replica has
    /// none.
    pub(crate) base: Option<Arc<dyn File>>,
    pub(crate) active: Overlay,
    pub(crate) frozen: Option<Arc<Overlay>>,
}

/// What a primary knows of one replica.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    pub(crate) acknowledged: Lsn,
    /// The log is kept from here on for it; never below what it acknowledged.
    pub(crate) held: Lsn,
    /// Who it is, once it has called.
    pub(crate) node: Option<NodeId>,
    /// What it lacks beside records of the log.
    pub(crate) lack: Option<span::Lack>,
    /// Only a copy of everything could catch it up, and nobody has allowed that.
    pub(crate) needs_copy: bool,
    /// An operator allowed a copy of everything.
    pub(crate) full_copy: bool,
    pub(crate) connected: bool,
    /// A session has compared its log with this one, as this one is.
    pub(crate) attached: bool,
    /// What it has found by scrubs, and what is done about it.
    pub(crate) verified: verify::Verified,
    /// Something that an operator must know; cleared when the link is well again.
    pub(crate) alarm: Option<String>,
}

struct Waiter {
    lsn: Lsn,
    ticket: Ticket,
}

/// One group on one node. See the module.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) storage: Arc<dyn Storage>,
    /// `None` until the node belongs to a group.
    pub(crate) file: Option<Arc<StateFile>>,
    /// The state as it is on disk.
    pub(crate) state: State,
    pub(crate) log: Log,

    /// Versions in the retained log; `None` on a node that never was a replica.
    pub(crate) index: Option<Index>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) followers: BTreeMap<String, Follower>,
    /// What the disks of a node that was taken back hold and the main line does not, as far as the log has not brought
    /// it; `None` if there is nothing of that.
    pub(crate) diverged: Option<Extents>,
    /// What the log has brought of it, as long as that may be lost again.
    brought: VecDeque<(Lsn, VolumeId, Extent)>,
    /// Stretches of LSNs that are no points, as far as the log was read; on record with the next checkpoint.
    pub(crate) coarse: Vec<Coarse>,
    pub(crate) failed: Option<Failed>,
    /// Marks that are points behind the window.
    pub(crate) kept: Arc<KeptMarks>,
    /// The marks in the log that the base images do not hold yet.
    pub(crate) marks: BTreeMap<Lsn, keep::Candidate>,
    /// How often each point is in use.
    pub(crate) pins: BTreeMap<Lsn, u32>,
    pub(crate) work: work::Work,
    pub(crate) verify: verify::Verify,
    pub(crate) checks: check::Checks,
    pub(crate) reread: reread::Reread,
    waiters: VecDeque<Waiter>,
    answers: Vec<Answer>,
    next_ticket: u64,
    /// Guests wait until a replica has everything.
    pub(crate) drain: Option<handover::Drain>,
    /// This replica has asked for the group.
    pub(crate) wish: Option<handover::Wish>,
    /// When the oldest record that is not yet durable was appended.
    pub(crate) unsynced_since: Option<Mono>,
    pub(crate) last_primary: Option<LastPrimary>,
    /// The epoch of the primary that was last welcomed by this process.
    pub(crate) stream: Option<Epoch>,
    /// The record that begins this opening of a primary is in the log: nothing else may come before it.
    pub(crate) begun: bool,
    _lock: Arc<dyn Send + Sync>,
}

/// What a replica last heard from its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastPrimary {
    /// When, by this node's clock.
    pub heard: Mono,
    /// The primary's durable LSN then.
    pub durable: Lsn,
}

impl Role {
    /// Which role may become which.
    ///
    /// ```text
    /// replica → primary   promoted by an operator, or given the group by its primary
    /// primary → fenced    learned of a newer epoch, or gave the group to a replica
    /// fenced  → replica   taken back by the newer primary
    /// fenced  → primary   went on by its operator's word: the replica that it gave the group to never took it
    /// ```
    #[must_use]
    pub fn may_become(self, next: Role) -> bool {
        matches!(
            (self, next),
            (Role::Replica | Role::Fenced, Role::Primary)
                | (Role::Primary, Role::Fenced)
                | (Role::Fenced, Role::Replica)
        )
    }
}

impl Node {
    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.state.role
    }

    /// Why the group failed, if it did.
    #[must_use]
    pub fn failed(&self) -> Option<&Failed> {
        self.failed.as_ref()
    }

    /// The durable position.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.log.durable().position()
    }

    /// The history of the main line.
    #[must_use]
    pub fn history(&self) -> &[Reign] {
        &self.state.history
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state on record.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The log, for reading.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The volumes.
    pub fn volume_specs(&self) -> impl Iterator<Item = &VolumeSpec> {
        self.volumes.values().map(|volume| &volume.spec)
    }

    /// Ends serving for good, in this process: the disk can no longer be trusted to keep what it is given.
    pub(crate) fn fail(&mut self, now: Now, reason: String) {
        if self.failed.is_none() {
            tracing::warn!(group = %self.config.name, reason, "the group failed");
            self.failed = Some(Failed { reason, at: now.wall });
        }
        self.refuse_waiters(Refusal::Io);
    }

    /// Changes the state on record. A failure here fails the group: what the disk holds is not known.
    pub(crate) fn update_state(
        &mut self,
        now: Now,
        change: impl FnOnce(&mut State),
    ) -> Result<(), crate::state::Error> {
        let file = self.file.clone().expect("a node that is not born has no state to change");
        match file.update(change) {
            Ok(state) => {
                self.state = state;
                Ok(())
            }
            Err(error) => {
                self.fail(now, format!("the state could not be written: {error}"));
                Err(error)
            }
        }
    }

    /// A ticket for an answer at `lsn`; answered at once if that is already safe.
    pub(crate) fn wait_for(&mut self, lsn: Lsn) -> Option<Ticket> {
        if self.safe() >= lsn {
            return None;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        // In LSN order, which is not that of a batch: its flush waits for all of it, a FUA write behind it only for
        // itself.
        let at = self.waiters.partition_point(|waiter| waiter.lsn <= lsn);
        self.waiters.insert(at, Waiter { lsn, ticket });
        Some(ticket)
    }

    /// Up to where a flush may be answered.
    fn safe(&self) -> Lsn {
        if planted!(AcknowledgeBeforeSync) {
            return self.log.tip().lsn;
        }
        match self.config.ack {
            AckPolicy::Local => self.log.durable().lsn,
            AckPolicy::Replica => {
                let whole = self.followers.values().filter(|follower| follower.lack.is_none());
                let elsewhere = whole.map(|follower| follower.acknowledged).max().unwrap_or_default();
                self.log.durable().lsn.min(elsewhere)
            }
        }
    }

    /// Persist, then acknowledge: the one place where answers that wait for durability are let go. Called after
    /// whatever may have moved a position.
    pub(crate) fn settle(&mut self) {
        if self.failed.is_some() || self.state.role != Role::Primary {
            return;
        }
        let safe = self.safe();
        while let Some(waiter) = self.waiters.pop_front_if(|waiter| waiter.lsn <= safe) {
            self.answers.push(Answer { ticket: waiter.ticket, result: Ok(()) });
        }
    }

    pub(crate) fn refuse_waiters(&mut self, refusal: Refusal) {
        let waiters = self.waiters.drain(..);
        self.answers.extend(waiters.map(|waiter| Answer { ticket: waiter.ticket, result: Err(refusal) }));
    }

    /// Whether an answer waits for records that are not durable here.
    pub(crate) fn someone_waits(&self) -> bool {
        self.waiters.back().is_some_and(|waiter| waiter.lsn > self.log.durable().lsn)
    }

    /// The answers that are due. The caller delivers them.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Takes note of an append.
    pub(crate) fn appended(&mut self, now: Now) {
        self.unsynced_since.get_or_insert(now.mono);
        self.work.mark_dirty();
    }

    /// The log's error as a refusal; a failed write fails the group.
    pub(crate) fn log_refused(&mut self, now: Now, error: &log::Error) -> Refusal {
        if error.is_no_space() {
            return Refusal::NoSpace;
        }
        if let log::Error::TooLong { .. } = error {
            return Refusal::Invalid;
        }
        if let log::Error::Failed(failure) = error {
            self.fail(
                now,
                format!("the log failed, {failure}; the records up to LSN {} are safe", failure.lsn),
            );
        }
        Refusal::Io
    }

    /// The reign that an LSN belongs to by this node's history; 0 for LSN 0. It changes if a promotion at an earlier
    /// LSN sets that part of the log aside: then the LSN names another state than before.
    #[must_use]
    pub fn epoch_of(&self, lsn: Lsn) -> Epoch {
        self.reign_of(lsn).map_or(Epoch(0), |reign| reign.epoch)
    }

    /// As [`Node::epoch_of`]; two nodes may have taken one epoch, and only one of them is of this history.
    #[must_use]
    pub fn reign_of(&self, lsn: Lsn) -> Option<Reign> {
        self.state.history.iter().rev().find(|reign| reign.branch.lsn < lsn).copied()
    }

    /// The volumes that are part of the history up to `lsn`. Of those that were defined before the log begins, it is
    /// only known that something came before them.
    pub(crate) fn volumes_at(&self, lsn: Lsn) -> BTreeSet<VolumeId> {
        let is_part = |volume: &Volume| lsn > Lsn::ZERO && volume.defined <= lsn;
        self.volumes.iter().filter(|(_, volume)| is_part(volume)).map(|(&id, _)| id).collect()
    }

    /// The names of the volumes that are not, and whose disks are emptied if they are defined anew: all that these hold
    /// stands in records of a branch. What was there before the volume was stays where it is.
    pub(crate) fn stale_at(&self, lsn: Lsn) -> Vec<String> {
        let defined = self.volumes_at(lsn);
        let dropped = self.volumes.iter().filter(|(id, volume)| !defined.contains(id) && !volume.in_place);
        dropped.map(|(_, volume)| volume.spec.name.clone()).collect()
    }

    /// The path of a file of this group.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.config.dir)
    }
}
