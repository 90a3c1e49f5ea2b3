//! Checkpoints: the backing devices are synced, the state says how far they are, and log files are used again.
//!
//! A power cut between any two of these repeats harmless work. What replicas lack goes to a file of its own before the
//! state names it, and the state says where the log begins before any of it is freed ([`crate::lacks`]).

use super::Node;
use super::work::Job;
use crate::event::VolumeSpec;
use crate::io::{File, Storage, is_no_space};
use crate::lacks::{self, Lacks};
use crate::log::chain::Tip;
use crate::state::{Branch, Coarse, Diverged, Gap, Lost, Role, SizeBefore, StateFile};
use crate::types::{Epoch, Lsn, Mono, Now};
use std::sync::Arc;

/// See [`Job::Checkpoint`].
pub struct Checkpoint {
    file: Arc<StateFile>,
    backings: Vec<Arc<dyn File>>,
    lacks: Option<LacksNote>,
    note: Note,
}

/// What replicas lack, to be put on record.
struct LacksNote {
    storage: Arc<dyn Storage>,
    dir: String,
    /// The number of the file; 0 if there is nothing to write.
    number: u64,
    lacks: Vec<Lacks>,
    lost: Vec<Lost>,
    diverged: Option<Diverged>,
}

/// What a checkpoint puts on record.
struct Note {
    applied: Option<Lsn>,
    durable: Lsn,
    start: Tip,
    volumes: Vec<VolumeSpec>,
    sizes: Vec<SizeBefore>,
    acknowledged: Vec<(String, Lsn)>,
    coarse: Vec<Coarse>,
    /// The last jump that `coarse` knows of.
    last_gap: Option<Gap>,
    epoch: Epoch,
}

impl Checkpoint {
    pub(super) fn run(self) -> Result<Recorded, String> {
        for backing in &self.backings {
            backing.sync().map_err(|error| format!("syncing a volume's disk: {error}"))?;
        }
        let (note, lacks) = (self.note, self.lacks);
        if let Some(LacksNote { storage, dir, number, lacks, .. }) = &lacks
            && *number > 0
        {
            // Before the state names it, and before the log that it stands for is freed.
            match lacks::write(&**storage, dir, *number, lacks) {
                Ok(()) => {}
                // Then the log is kept until there is space, and nothing else is put on record.
                Err(error) if is_no_space(&error) => return Ok(Recorded::NoSpace),
                Err(error) => return Err(format!("noting what replicas lack: {error}")),
            }
        }
        let updated = self.file.update(|state| {
            // A promotion or a new primary may have come between; what it wrote stands.
            if state.epoch() != note.epoch {
                return;
            }
            if let Some(applied) = note.applied {
                state.applied = state.applied.max(applied);
            }
            state.durable = state.durable.max(note.durable);
            // Files before the new start are freed behind this; until then the log in memory still goes over their gaps.
            let start = state.start.lsn;
            if note.start.lsn > start {
                state.start = note.start;
            }
            state.volumes = note.volumes;
            state.sizes = note.sizes;
            let (stale, volumes) = (&mut state.stale_disks, &state.volumes);
            stale.retain(|name| volumes.iter().all(|spec| spec.name != *name));
            state.acknowledged = note.acknowledged;
            // A jump that came between has put its own on record.
            if state.gaps.last() == note.last_gap.as_ref() {
                state.coarse = note.coarse;
            }
            let branches = &state.branches;
            state.gaps.retain(|gap| gap.after.lsn >= start);
            state.branch_gaps.retain(|gap| {
                let on = |branch: &Branch| branch.after.lsn <= gap.after.lsn && gap.after.lsn < branch.last;
                branches.iter().any(on)
            });
            if let Some(lacks) = &lacks {
                state.lacks_file = lacks.number;
                state.lost = lacks.lost.clone();
                state.diverged = lacks.diverged;
            }
        });
        let state = updated.map_err(|error| error.to_string())?;
        if let Some(LacksNote { storage, dir, .. }) = &lacks
            && let Err(error) = lacks::remove_others(&**storage, dir, state.lacks_file)
        {
            // The next opening removes it.
            tracing::debug!(%error, "a file that nobody needs was left behind");
        }
        Ok(Recorded::All)
    }
}

/// What a checkpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is on record.
    All,
    /// There was no space to note what replicas lack: nothing was changed.
    NoSpace,
}

impl Node {
    pub(super) fn poll_checkpoint(&mut self, now: Now) -> Option<Job> {
        let file = self.file.clone()?;
        let waiting = self.log.used_bytes().saturating_mul(2) > self.config.limits.log.log_bytes;
        let soon = self.work.next_checkpoint.0.saturating_sub(self.config.limits.checkpoint_ms * 900_000);
        let due = if waiting { Mono(soon) } else { self.work.next_checkpoint };
        if now.mono < due {
            return None;
        }
        self.work.next_checkpoint = now.mono.plus_ms(self.config.limits.checkpoint_ms);
        self.expire_branches(now);
        let replays = !self.is_hydrating() && self.state.role != Role::Replica;
        let applied = replays.then_some(self.work.applied);
        let durable = self.log.durable().lsn;
        let acknowledged: Vec<_> =
            self.followers.iter().map(|(name, follower)| (name.clone(), follower.acknowledged)).collect();
        let start = self.log.start_for(self.free_limit(applied).next());
        let horizon = self.state.horizon;
        self.coarse.retain(|stretch| stretch.to.is_none_or(|to| to > horizon));
        let unchanged = applied.is_none_or(|applied| applied == self.state.applied)
            && durable == self.state.durable
            && start.lsn <= self.state.start.lsn
            && acknowledged == self.state.acknowledged
            && self.coarse == self.state.coarse
            && !self.work.lacks_changed;
        if unchanged {
            return None;
        }
        let backings = match applied.is_some_and(|applied| applied > self.state.applied) {
            true => self.volumes.values().filter_map(|volume| volume.backing.clone()).collect(),
            false => Vec::new(),
        };
        // A definition that is not durable may be lost, and must then be made again; likewise a size.
        let volumes = self.specs_at(durable);
        let sizes = self.sizes_on_record(durable);
        let epoch = self.state.epoch();
        let coarse = self.coarse.clone();
        let lacks = std::mem::take(&mut self.work.lacks_changed).then(|| {
            let (mut lacks, lost) = self.lacks_on_record();
            let diverged = self.diverged_on_record(&mut lacks);
            let number = if lacks.is_empty() { 0 } else { self.next_lacks_file() };
            let (storage, dir) = (self.storage.clone(), self.config.dir.clone());
            LacksNote { storage, dir, number, lacks, lost, diverged }
        });
        let last_gap = self.state.gaps.last().copied();
        let note = Note { applied, durable, start, volumes, sizes, acknowledged, coarse, last_gap, epoch };
        Some(Job::Checkpoint(Box::new(Checkpoint { file, backings, lacks, note })))
    }

    pub(crate) fn next_lacks_file(&mut self) -> u64 {
        self.work.lacks_file = self.work.lacks_file.max(self.state.lacks_file) + 1;
        self.work.lacks_file
    }

    /// The last LSN that nobody needs any more: not a replica, not the backing, not the base image.
    fn free_limit(&self, applied: Option<Lsn>) -> Lsn {
        let here = self.needed_by_disks(applied);
        if self.state.role == Role::Replica { here } else { here.min(self.held_for_replicas()) }
    }

    /// The last LSN that this node itself does not need any more.
    pub(crate) fn needed_here(&self) -> Lsn {
        let replays = !self.is_hydrating() && self.state.role != Role::Replica;
        self.needed_by_disks(replays.then_some(self.work.applied))
    }

    fn needed_by_disks(&self, applied: Option<Lsn>) -> Lsn {
        let mut limit = self.log.durable().lsn;
        if self.state.role != Role::Replica {
            limit = limit.min(applied.unwrap_or_else(|| self.hydrating_from()));
        }
        if self.index.is_some() {
            limit = limit.min(self.state.base);
        }
        limit
    }

    /// Uses files again that the state on record no longer needs.
    pub(super) fn free(&mut self, now: Now) {
        if let Err(error) = self.log.free_before(self.state.start) {
            tracing::warn!(group = %self.config.name, %error, at = %now.wall, "a log file could not be freed");
        }
        self.define_late(now);
    }
}
