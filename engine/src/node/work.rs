//! What a node does in the background: syncs, applies, checkpoints, folds, fills the disks of a promoted node.
//!
//! A [`Job`] holds all that it needs and runs without the node; [`Node::finish`] takes it back. There are several
//! lanes, so that a sync never waits behind bulk work, nor the backing behind a checkpoint: at most one job of each
//! is out at a time.
//!
//! What a power cut leaves of an *apply*: some of the frozen overlay is on the backing. All of it is in the durable log,
//! and the state still says that none of it is applied, so it is applied again. For the other jobs see their files.

use super::Node;
use super::check::{Check, Compared};
use super::checkpoint::{Checkpoint, Recorded};
use super::fold::{Fold, Folded};
use super::hydrate::{CatchUp, Hydrate};
use super::keep::Thin;
use super::reread::{Read, RereadFile};
use super::span::{Copied, Copy, Survey, Surveyed};
use super::verify::{Scanned, Scrub};
use crate::io::File;
use crate::log::segment::{Make, Spare};
use crate::log::{self, Sync, Synced};
use crate::overlay::{Content, Overlay};
use crate::state::Role;
use crate::types::{Extent, Lsn, Mono, Now};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of adjacent pieces that are written to a backing in one call.
const GATHER_BYTES: usize = 1 << 20;
/// Pieces likewise: what one vectored write takes.
const GATHER_PIECES: usize = 512;
/// How long nothing is begun while somebody waits for all jobs to be back.
const REST_MS: u64 = 500;
/// The piece in which zeros are written where a guest wants its space kept.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Which queue a job belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Syncs of the log: what flushes and replicas wait for.
    Sync,
    /// Files for the log, made ahead.
    Make,
    /// What guests wrote, to the backing.
    Apply,
    /// What a replica lacks, from the backing.
    Copy,
    /// Everything else.
    Bulk,
    /// What verification reads.
    Verify,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Lane; 6] = [Lane::Sync, Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk, Lane::Verify];
}

/// The book-keeping of background work.
pub(crate) struct Work {
    syncing: bool,
    pub(super) bulk: bool,
    making: bool,
    applying: bool,
    /// A guest has written since the last flush barrier in the log.
    pub(crate) written_since_barrier: bool,
    /// Bytes of records that no sync covers.
    pub(crate) unsynced_bytes: u64,
    /// The active overlays are not empty.
    dirty: bool,
    /// When that began.
    dirty_since: Option<Mono>,
    /// The LSN at which the overlays were frozen.
    frozen_at: Option<Lsn>,
    /// The backing devices hold everything up to here, though perhaps not durably.
    pub(super) applied: Lsn,
    /// The pass that brings filled disks up to date, as far as it has come.
    pub(super) catch_up: Option<CatchUp>,
    pub(super) catch_ups: u32,
    pub(super) next_checkpoint: Mono,
    /// No file is made ahead before this: there was no space for one.
    retry_at: Mono,
    /// Nothing is begun before this but syncs: somebody waits for all jobs to be back.
    rests_until: Mono,
    /// When a guest last asked for something.
    pub(crate) guest_at: Mono,
    /// When a guest first wrote something that no mark lies behind.
    pub(crate) unmarked_since: Option<Mono>,
    /// No copy is read before this.
    pub(crate) copy_at: Mono,
    /// The newest copy in the log that no sync covers, and when it was begun: a guest's flush would wait for it.
    pub(crate) unsynced_copy: Option<(Lsn, Mono)>,
    copying: bool,
    /// What replicas lack is not what is on record.
    pub(crate) lacks_changed: bool,
    /// The number of the file that was begun last.
    pub(super) lacks_file: u64,
    /// Likewise of a kept mark's.
    pub(super) kept_file: u64,
    /// A kept mark may have to go.
    pub(super) thin: bool,
    /// One that is on its way: nobody opens it any more.
    pub(super) thinning: Option<Lsn>,
}

impl Work {
    pub(crate) fn new(applied: Lsn) -> Work {
        Work {
            syncing: false,
            bulk: false,
            making: false,
            applying: false,
            written_since_barrier: true,
            unsynced_bytes: 0,
            dirty: true,
            dirty_since: None,
            frozen_at: None,
            applied,
            catch_up: None,
            catch_ups: 0,
            next_checkpoint: Mono(0),
            retry_at: Mono(0),
            rests_until: Mono(0),
            guest_at: Mono(0),
            unmarked_since: None,
            copy_at: Mono(0),
            unsynced_copy: None,
            copying: false,
            lacks_changed: false,
            lacks_file: 0,
            kept_file: 0,
            thin: true,
            thinning: None,
        }
    }

    /// Something waits for the next checkpoint.
    pub(crate) fn hurry(&mut self) {
        self.next_checkpoint = Mono(0);
    }

    pub(crate) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn is_syncing(&self) -> bool {
        self.syncing
    }

    pub(crate) fn is_making(&self) -> bool {
        self.making
    }

    pub(crate) fn is_bulk_out(&self) -> bool {
        self.bulk
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.syncing || self.bulk || self.applying || self.copying
    }

    /// Whether a job is out, of whatever kind a change of the log's files may not meet; if so, none is begun for a moment,
    /// so that there is one without.
    pub(super) fn must_rest(&mut self, now: Now, others: bool) -> bool {
        let busy = self.is_busy() || self.making || others;
        if busy {
            self.rests_until = now.mono.plus_ms(REST_MS);
        }
        busy
    }

    pub(crate) fn applied(&self) -> Lsn {
        self.applied
    }
}

/// Work that runs without the node.
pub enum Job {
    /// Sync the log.
    Sync(Sync),
    /// Write a frozen overlay to the backing devices.
    Apply(Apply),
    /// Make a segment file ahead of need.
    Make(Make),
    /// Make what was applied durable, and say so.
    Checkpoint(Box<Checkpoint>),
    /// Retire points and fold the base images.
    Fold(Box<Fold>),
    /// Give up a kept mark.
    Thin(Thin),
    /// Fill the disk of a promoted node by one step.
    Hydrate(Hydrate),
    /// Look through a part of the log that is to be given up.
    Survey(Survey),
    /// Read a part of a volume that a replica lacks.
    Copy(Copy),
    /// Read a part of a volume to tell replicas what it holds.
    Scrub(Scrub),
    /// Read a part of a point to compare it with what the primary holds.
    Check(Check),
    /// Read a file of the log again.
    Reread(RereadFile),
}

/// The outcome of a [`Job`].
#[must_use = "the node waits for it"]
pub enum Done {
    /// Of a sync.
    Sync(Synced),
    /// Of an apply.
    Apply(std::io::Result<Lsn>),
    /// Of a make.
    Make(std::io::Result<Spare>),
    /// Of a checkpoint.
    Checkpoint(Result<Recorded, String>),
    /// Of a fold.
    Fold(Result<Folded, String>),
    /// Of thinning.
    Thin(Result<(), String>),
    /// Of a step of filling.
    Hydrate(Result<(), String>),
    /// Of a survey.
    Survey(Result<Surveyed, String>),
    /// Of a copy.
    Copy(Copied),
    /// Of a scrub.
    Scrub(Scanned),
    /// Of a check.
    Check(Compared),
    /// Of a file that was read again.
    Reread(Read),
}

impl Job {
    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Job::Sync(_) => "sync",
            Job::Apply(_) => "apply",
            Job::Make(_) => "make",
            Job::Checkpoint(_) => "checkpoint",
            Job::Fold(_) => "fold",
            Job::Thin(_) => "thin",
            Job::Hydrate(_) => "hydrate",
            Job::Survey(_) => "survey",
            Job::Copy(_) => "copy",
            Job::Scrub(_) => "scrub",
            Job::Check(_) => "check",
            Job::Reread(_) => "reread",
        }
    }

    /// Does it.
    pub fn run(self) -> Done {
        match self {
            Job::Sync(sync) => Done::Sync(sync.run()),
            Job::Apply(apply) => Done::Apply(apply.run()),
            Job::Make(make) => Done::Make(log::make_spare(make)),
            Job::Checkpoint(checkpoint) => Done::Checkpoint(checkpoint.run()),
            Job::Fold(fold) => Done::Fold(fold.run()),
            Job::Thin(thin) => Done::Thin(thin.run()),
            Job::Hydrate(hydrate) => Done::Hydrate(hydrate.run()),
            Job::Survey(survey) => Done::Survey(survey.run()),
            Job::Copy(copy) => Done::Copy(copy.run()),
            Job::Scrub(scrub) => Done::Scrub(scrub.run()),
            Job::Check(check) => Done::Check(check.run()),
            Job::Reread(file) => Done::Reread(file.run()),
        }
    }
}

/// See [`Job::Apply`].
pub struct Apply {
    upto: Lsn,
    volumes: Vec<(Arc<dyn File>, Arc<Overlay>)>,
}

impl Apply {
    fn run(self) -> std::io::Result<Lsn> {
        for (backing, overlay) in &self.volumes {
            apply(&**backing, overlay)?;
        }
        Ok(self.upto)
    }
}

/// Writes an overlay to its backing in the order of the disk, adjacent pieces together.
fn apply(backing: &dyn File, overlay: &Overlay) -> std::io::Result<()> {
    let mut run: Vec<IoSlice<'_>> = Vec::new();
    let (mut start, mut end) = (0, 0);
    for (extent, content) in overlay.pieces() {
        let Content::Bytes(bytes) = content else {
            zero(backing, extent, content)?;
            continue;
        };
        let continues = extent.offset == end
            && run.len() < GATHER_PIECES
            && (end - start) as usize + bytes.len() <= GATHER_BYTES;
        if !continues {
            write_run(backing, &run, start)?;
            run.clear();
            start = extent.offset;
        }
        run.push(IoSlice::new(bytes));
        end = extent.end();
    }
    write_run(backing, &run, start)
}

fn write_run(backing: &dyn File, run: &[IoSlice<'_>], start: u64) -> std::io::Result<()> {
    if run.is_empty() { Ok(()) } else { backing.write_at(run, start) }
}

fn zero(backing: &dyn File, extent: Extent, content: &Content) -> std::io::Result<()> {
    if *content == (Content::Zero { no_hole: false }) {
        return backing.zero(extent.offset, extent.len);
    }
    let mut at = extent.offset;
    while at < extent.end() {
        let len = (extent.end() - at).min(ZEROS.len() as u64);
        backing.write_at(&[IoSlice::new(&ZEROS[..len as usize])], at)?;
        at += len;
    }
    Ok(())
}

impl Node {
    /// The next job of a lane, if there is one to do now. To be asked again whenever something was submitted,
    /// received or finished, and at [`Node::next_wake`].
    pub fn poll_job(&mut self, now: Now, lane: Lane) -> Option<Job> {
        if self.failed.is_some() || !self.is_born() {
            return None;
        }
        self.settle_handover(now);
        if lane != Lane::Sync && now.mono < self.work.rests_until {
            return None;
        }
        match lane {
            Lane::Sync if self.work.syncing || !self.sync_is_due(now) => None,
            Lane::Sync => {
                self.mark_if_due(now);
                let mut sync = self.log.begin_sync()?;
                // Where a replica keeps up, a full file is soon filled again, and best where it is.
                sync.lets_go(!self.ships());
                self.work.syncing = true;
                self.work.unsynced_bytes = 0;
                self.unsynced_since = None;
                Some(Job::Sync(sync))
            }
            Lane::Make => self.poll_make(now),
            Lane::Apply => self.poll_apply(now),
            Lane::Copy if self.work.copying => None,
            Lane::Copy => {
                let job = self.poll_copy(now);
                self.work.copying = job.is_some();
                job
            }
            Lane::Bulk => self.poll_bulk(now),
            Lane::Verify if self.reread.is_out() => None,
            Lane::Verify => {
                self.poll_verify(now).or_else(|| self.poll_check()).or_else(|| self.poll_reread(now))
            }
        }
    }

    fn poll_bulk(&mut self, now: Now) -> Option<Job> {
        if self.work.bulk {
            return None;
        }
        let job = self
            .poll_checkpoint(now)
            .or_else(|| self.poll_survey())
            .or_else(|| self.poll_fold(now))
            .or_else(|| self.poll_thin())
            .or_else(|| self.poll_hydrate());
        self.work.bulk = job.is_some();
        job
    }

    /// When to poll again though nothing happens; `None` if there is nothing to wait for.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> Option<Mono> {
        if self.failed.is_some() || !self.is_born() {
            return None;
        }
        let limits = &self.config.limits;
        let ship = self.unsynced_since.map(|since| since.plus_ms(self.sync_delay_ms()));
        let apply = self.work.dirty_since.map(|since| since.plus_ms(limits.apply_ms));
        let checkpoint = Some(self.work.next_checkpoint);
        let retry = (self.work.retry_at > now.mono).then_some(self.work.retry_at);
        let rest = (self.work.rests_until > now.mono).then_some(self.work.rests_until);
        let copies = self.followers.values().any(|follower| follower.connected && follower.lack.is_some());
        let copy = (copies && self.work.copy_at > now.mono).then_some(self.work.copy_at);
        let verify = [self.verify_wakes(now), self.reread_wakes(now)].into_iter().flatten().min();
        let ship = ship.into_iter().chain(self.mark_due_at()).min();
        [ship, apply, checkpoint, retry, rest, copy, verify].into_iter().flatten().min()
    }

    /// Whether [`Node::poll_job`] would very likely give a job of that lane now; cheap, and changes nothing.
    #[must_use]
    pub fn is_due(&self, now: Now, lane: Lane) -> bool {
        if self.failed.is_some() {
            return false;
        }
        match lane {
            Lane::Sync => !self.work.syncing && self.sync_is_due(now),
            Lane::Make => !self.work.making && now.mono >= self.work.retry_at && self.wants_segments(),
            Lane::Apply if self.work.applying => false,
            Lane::Apply => match self.work.frozen_at {
                Some(at) => at <= self.log.durable().lsn,
                None => self.active_bytes() >= self.config.limits.apply_bytes,
            },
            Lane::Copy => !self.work.copying && self.copy_is_due(now),
            Lane::Bulk => !self.work.bulk && self.is_hydrating() || self.heir().is_some(),
            Lane::Verify if self.reread.is_out() => false,
            Lane::Verify => self.verify_is_due(now) || self.check_is_due() || self.reread_is_due(now),
        }
    }

    /// Bytes of writes that no freeze has taken yet.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.volumes.values().map(|volume| volume.active.bytes()).sum()
    }

    /// When what waits for a sync will have waited long enough, if nobody asks for it before; `None` if nothing waits.
    #[must_use]
    pub fn sync_due_at(&self) -> Option<Mono> {
        let sync = self.unsynced_since.map(|since| since.plus_ms(self.sync_delay_ms()));
        sync.into_iter().chain(self.mark_due_at()).min()
    }

    /// How long a record may wait for its sync if nobody asks for it.
    #[must_use]
    pub fn sync_delay(&self) -> Duration {
        Duration::from_millis(self.sync_delay_ms())
    }

    fn sync_is_due(&self, now: Now) -> bool {
        let limits = &self.config.limits;
        if self.mark_due_at().is_some_and(|at| now.mono >= at) {
            return true;
        }
        let Some(since) = self.unsynced_since else { return false };
        self.someone_waits()
            || self.state.role == Role::Replica
            || self.work.frozen_at.is_some_and(|at| at > self.log.durable().lsn)
            || self.ships() && self.work.unsynced_bytes >= limits.ship_delay_bytes
            || self.copy_waits(now)
            || now.mono >= since.plus_ms(self.sync_delay_ms())
    }

    /// How long a record may wait for its sync though nobody waits for that: a moment for a replica's sake, as
    /// long as it may wait for the backing while none listens.
    fn sync_delay_ms(&self) -> u64 {
        let limits = &self.config.limits;
        if self.ships() { limits.ship_delay_ms } else { limits.apply_ms }
    }

    fn ships(&self) -> bool {
        self.followers.values().any(|follower| follower.connected)
    }

    /// Syncs the log here and now.
    pub(crate) fn sync_now(&mut self, now: Now) -> Result<(), String> {
        if self.failed.is_some() || self.work.syncing {
            return Err("the log failed, or is being synced".to_owned());
        }
        let Some(sync) = self.log.begin_sync() else { return Ok(()) };
        self.work.syncing = true;
        self.finish(now, Done::Sync(sync.run()));
        self.failed.as_ref().map_or(Ok(()), |failed| Err(failed.reason.clone()))
    }

    /// Takes back what a job did.
    pub fn finish(&mut self, now: Now, done: Done) {
        match done {
            Done::Sync(synced) => {
                self.work.syncing = false;
                match self.log.finish_sync(synced) {
                    Ok(()) => {
                        if self.log.tip() == self.log.durable() {
                            self.unsynced_since = None;
                        } else {
                            self.unsynced_since.get_or_insert(now.mono);
                        }
                        self.copies_synced(now);
                        self.settle();
                        self.settle_divergence();
                    }
                    Err(failure) => {
                        self.fail(now, format!("the log failed, {failure}"));
                    }
                }
            }
            Done::Apply(Ok(upto)) => {
                self.work.applying = false;
                for volume in self.volumes.values_mut() {
                    volume.frozen = None;
                }
                self.work.frozen_at = None;
                self.work.applied = upto;
            }
            Done::Apply(Err(error)) => self.fail(now, format!("writing to a volume's disk failed: {error}")),
            Done::Make(Ok(spare)) => {
                self.work.making = false;
                self.log.finish_make(spare);
            }
            Done::Make(Err(error)) => {
                self.work.making = false;
                self.cannot_now(now, &error.to_string());
            }
            Done::Checkpoint(Ok(Recorded::NoSpace)) => {
                self.work.bulk = false;
                self.work.lacks_changed = true;
                tracing::warn!(group = %self.config.name, "no space to note what replicas lack: the log is kept");
            }
            Done::Checkpoint(Ok(Recorded::All)) => {
                self.work.bulk = false;
                self.take_state();
                self.free(now);
                self.reclaim_all();
            }
            Done::Fold(Ok(folded)) => {
                self.work.bulk = false;
                self.take_state();
                self.note_fold(now, folded);
                let base = self.state.base;
                self.marks = self.marks.split_off(&base.next());
                self.work.thin = true;
                if let Some(index) = &mut self.index {
                    index.forget_through(base);
                }
            }
            Done::Hydrate(Ok(())) | Done::Thin(Ok(())) => {
                self.work.bulk = false;
                self.take_state();
            }
            Done::Survey(Ok(surveyed)) => {
                self.work.bulk = false;
                self.finish_survey(&surveyed);
                self.reclaim_all();
            }
            Done::Copy(copied) => {
                self.work.copying = false;
                self.finish_copy(now, copied);
            }
            Done::Scrub(scanned) => self.finish_scrub(now, scanned),
            Done::Check(compared) => self.finish_check(now, compared),
            Done::Reread(read) => self.finish_reread(now, read),
            Done::Checkpoint(Err(reason))
            | Done::Fold(Err(reason))
            | Done::Hydrate(Err(reason))
            | Done::Thin(Err(reason))
            | Done::Survey(Err(reason)) => {
                self.work.bulk = false;
                self.fail(now, reason);
            }
        }
    }

    /// Something that may work later, once there is space.
    fn cannot_now(&mut self, now: Now, reason: &str) {
        tracing::warn!(group = %self.config.name, reason, "no segment file could be made ahead");
        self.work.retry_at = now.mono.plus_ms(1_000);
    }

    /// Takes over what a job has changed in the state on record, together with what was changed meanwhile; a fence
    /// stands, also if it could not be put on record.
    fn take_state(&mut self) {
        let Some(file) = &self.file else { return };
        let before = std::mem::replace(&mut self.state, file.get());
        if before.role == Role::Fenced {
            (self.state.role, self.state.fenced_by) = (before.role, before.fenced_by);
        }
    }

    fn poll_make(&mut self, now: Now) -> Option<Job> {
        // What frees log files must not wait behind what cannot be had while none is freed.
        if self.work.making || now.mono < self.work.retry_at {
            return None;
        }
        let job = self.log.begin_make(self.wanted_segments())?;
        self.work.making = true;
        Some(Job::Make(job))
    }

    fn wanted_segments(&self) -> usize {
        match self.state.role {
            Role::Fenced => 0,
            Role::Primary | Role::Replica => self.config.limits.spare_segments,
        }
    }

    fn wants_segments(&self) -> bool {
        self.log.spares() < self.wanted_segments()
    }

    /// Freezes the overlays when it is time, and applies them once they are durable.
    fn poll_apply(&mut self, now: Now) -> Option<Job> {
        let serves = matches!(self.state.role, Role::Primary | Role::Fenced);
        if !serves || self.is_hydrating() {
            return None;
        }
        if self.work.frozen_at.is_none() && self.work.dirty {
            let active = self.active_bytes();
            if active == 0 {
                // Nothing of what was logged changes a byte; what is not durable yet is looked at again.
                self.work.dirty = self.log.tip() != self.log.durable();
                self.work.dirty_since = None;
                self.work.applied = self.log.durable().lsn.max(self.work.applied);
                return None;
            }
            let since = *self.work.dirty_since.get_or_insert(now.mono);
            let limits = &self.config.limits;
            if active >= limits.apply_bytes || now.mono >= since.plus_ms(limits.apply_ms) {
                for volume in self.volumes.values_mut() {
                    volume.frozen = Some(Arc::new(std::mem::take(&mut volume.active)));
                }
                self.work.frozen_at = Some(self.log.tip().lsn);
                self.work.dirty = false;
                self.work.dirty_since = None;
            }
        }
        let durable = self.log.durable().lsn;
        if self.work.applying {
            return None;
        }
        let upto = self.work.frozen_at.filter(|&at| at <= durable || planted!(ApplyBeforeDurable))?;
        let volumes = self
            .volumes
            .values()
            .filter_map(|volume| Some((volume.backing.clone()?, volume.frozen.clone()?)));
        let job = Job::Apply(Apply { upto, volumes: volumes.collect() });
        self.work.applying = true;
        Some(job)
    }
}
