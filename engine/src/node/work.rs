//! What a node does in the background: syncs, applies, checkpoints, folds, fills the disks of a promoted node.
//!
//! A [`Job`] holds all that it needs and runs without the node; [`Node::finish`] takes it back. There are several
//! lanes, so that a sync never waits behind bulk work, nor the backing behind a checkpoint: at most one job of each
//! is out at a time.
//!
//! What a power cut leaves at each step:
//!
//! - *apply*: some of the frozen overlay is on the backing. All of it is in the durable log, and the state still
//!   says that none of it is applied, so it is applied again.
//! - *checkpoint*: the backing is synced, then the state says so, then log files are used again. A cut between
//!   any two repeats harmless work.
//! - *fold*: the state says first that the points are retired, then the base image is written and synced, then
//!   the state says so, then log files are used again. Until it does, reads find what is folded in the log, which
//!   is newer than whatever the base holds.
//! - *hydrate*: the disk is written and synced up to a byte, then the state says so. What guests write meanwhile
//!   is in the log and is read from there. Once the disks are whole, what changed since is copied in passes, each
//!   ended by a sync and a note in the state; a pass that dies is begun again from the note. The last stretch is
//!   applied as after any restart.

use super::span::{Copied, Copy, Survey, Surveyed};
use super::{Node, open};
use crate::guest::Piece;
use crate::io::{File, Storage};
use crate::lacks::{self, Lacks};
use crate::log::chain::Tip;
use crate::log::segment::{Make, Spare};
use crate::log::{self, Sync, Synced};
use crate::overlay::{Content, Overlay};
use crate::read::{Plan, Wait};
use crate::state::{Branch, Coarse, Gap, Hydration, Lost, Role, StateFile};
use crate::types::{Extent, Lsn, Mono, Now, VolumeId};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of adjacent pieces that are written to a backing in one call.
const GATHER_BYTES: usize = 1 << 20;
/// Pieces likewise: what one vectored write takes.
const GATHER_PIECES: usize = 512;
/// Bytes copied in one step of filling a disk.
const HYDRATE_STEP_BYTES: u64 = 4 << 20;
/// Passes after which it changes over though guests write faster than the disks are brought up to date.
const MAX_CATCH_UPS: u32 = 8;
/// Segments retired by one fold.
const FOLD_SEGMENTS: usize = 4;
/// Segments that are kept free for what comes, by retiring points before the window's own limits say so.
const FOLD_RESERVE_SEGMENTS: u64 = 2;
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
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Lane; 5] = [Lane::Sync, Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk];
}

/// A pass over what changed: the LSN it leads to, and the volume and byte that come next.
#[derive(Clone, Copy)]
struct CatchUp {
    upto: Lsn,
    volume: VolumeId,
    from: u64,
}

/// The book-keeping of background work.
pub(crate) struct Work {
    syncing: bool,
    bulk: bool,
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
    applied: Lsn,
    /// The pass that brings filled disks up to date, as far as it has come.
    catch_up: Option<CatchUp>,
    catch_ups: u32,
    next_checkpoint: Mono,
    /// No file is made ahead before this: there was no space for one.
    retry_at: Mono,
    /// When a guest last asked for something.
    pub(crate) guest_at: Mono,
    /// No copy is read before this.
    pub(crate) copy_at: Mono,
    copying: bool,
    /// What replicas lack is not what is on record.
    pub(crate) lacks_changed: bool,
    /// The number of the file that was begun last.
    lacks_file: u64,
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
            guest_at: Mono(0),
            copy_at: Mono(0),
            copying: false,
            lacks_changed: false,
            lacks_file: 0,
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

    pub(crate) fn is_bulk_out(&self) -> bool {
        self.bulk
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.syncing || self.bulk || self.applying || self.copying
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
    Fold(Fold),
    /// Fill the disk of a promoted node by one step.
    Hydrate(Hydrate),
    /// Look through a part of the log that is to be given up.
    Survey(Survey),
    /// Read a part of a volume that a replica lacks.
    Copy(Copy),
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
    Fold(Result<(), String>),
    /// Of a step of filling.
    Hydrate(Result<(), String>),
    /// Of a survey.
    Survey(Result<Surveyed, String>),
    /// Of a copy.
    Copy(Copied),
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
            Job::Hydrate(_) => "hydrate",
            Job::Survey(_) => "survey",
            Job::Copy(_) => "copy",
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
            Job::Hydrate(hydrate) => Done::Hydrate(hydrate.run()),
            Job::Survey(survey) => Done::Survey(survey.run()),
            Job::Copy(copy) => Done::Copy(copy.run()),
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
}

/// What a checkpoint puts on record.
struct Note {
    applied: Option<Lsn>,
    durable: Lsn,
    start: Tip,
    volumes: Vec<crate::event::VolumeSpec>,
    acknowledged: Vec<(String, Lsn)>,
    coarse: Vec<Coarse>,
    /// The last jump that `coarse` knows of.
    last_gap: Option<Gap>,
    epoch: crate::types::Epoch,
}

impl Checkpoint {
    fn run(self) -> Result<Recorded, String> {
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
            if note.start.lsn > state.start.lsn {
                state.start = note.start;
            }
            state.volumes = note.volumes;
            state.acknowledged = note.acknowledged;
            // A jump that came between has put its own on record.
            if state.gaps.last() == note.last_gap.as_ref() {
                state.coarse = note.coarse;
            }
            let start = state.start.lsn;
            let branches = &state.branches;
            state.gaps.retain(|gap| {
                let on = |branch: &Branch| branch.after.lsn <= gap.after.lsn && gap.after.lsn < branch.last;
                gap.after.lsn >= start || branches.iter().any(on)
            });
            if let Some(lacks) = &lacks {
                state.lacks_file = lacks.number;
                state.lost = lacks.lost.clone();
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

fn is_no_space(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// A base image, and what goes where in it.
struct FoldVolume {
    base: Arc<dyn File>,
    pieces: Vec<(Extent, Plan)>,
}

/// See [`Job::Fold`].
pub struct Fold {
    file: Arc<StateFile>,
    upto: Lsn,
    /// The oldest point from here on: behind a sync span, if `upto` lies within it.
    horizon: Lsn,
    volumes: Vec<FoldVolume>,
}

impl Fold {
    fn run(self) -> Result<(), String> {
        let (upto, horizon) = (self.upto, self.horizon);
        if planted!(FoldBeforeRetiring) {
            self.write_bases()?;
        }
        // Retire, durably, before anything is overwritten.
        let retired = self.file.update(|state| state.horizon = state.horizon.max(horizon));
        retired.map_err(|error| error.to_string())?;
        self.write_bases()?;
        let folded = self.file.update(|state| state.base = state.base.max(upto));
        folded.map(drop).map_err(|error| error.to_string())
    }

    fn write_bases(&self) -> Result<(), String> {
        for FoldVolume { base, pieces } in &self.volumes {
            for (extent, plan) in pieces {
                copy(plan, &**base, extent.offset).map_err(|error| format!("folding: {error}"))?;
            }
            base.sync().map_err(|error| format!("syncing a base image: {error}"))?;
        }
        Ok(())
    }
}

/// Copies what a plan reads to `offset` of a file.
fn copy(plan: &Plan, to: &dyn File, mut offset: u64) -> std::io::Result<()> {
    for piece in plan.read(Wait::Yes)? {
        match &piece {
            Piece::Bytes(bytes) => to.write_at(&[IoSlice::new(bytes)], offset)?,
            Piece::Hole(len) => to.zero(offset, *len)?,
        }
        offset += piece.len();
    }
    Ok(())
}

/// See [`Job::Hydrate`].
pub struct Hydrate {
    file: Arc<StateFile>,
    at: Lsn,
    step: HydrateStep,
}

enum HydrateStep {
    /// Copies a stretch of the point.
    Fill { volume: VolumeId, extent: Extent, plan: Plan, to: Arc<dyn File> },
    /// Copies what changed since.
    CatchUp { pieces: Vec<(Extent, Plan)>, to: Arc<dyn File> },
    /// Ends a pass: what the disks hold is the state at this LSN.
    Advance { upto: Lsn, disks: Vec<Arc<dyn File>> },
}

impl Hydrate {
    fn run(self) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("filling a volume's disk: {error}");
        let (at, file) = (self.at, self.file);
        let update = |change: &dyn Fn(&mut crate::state::Hydration)| {
            let updated = file.update(|state| {
                let Some(hydration) = &mut state.hydration else { return };
                assert_eq!(hydration.at, at, "one step is out at a time");
                change(hydration);
            });
            updated.map(drop).map_err(|error| error.to_string())
        };
        match &self.step {
            HydrateStep::Fill { volume, extent, plan, to } => {
                copy(plan, &**to, extent.offset).map_err(failed)?;
                to.sync().map_err(failed)?;
                update(&|hydration| {
                    if let Some((_, done)) = hydration.done.iter_mut().find(|(id, _)| id == volume) {
                        *done = extent.end();
                    }
                })
            }
            HydrateStep::CatchUp { pieces, to } => {
                pieces.iter().try_for_each(|(extent, plan)| copy(plan, &**to, extent.offset)).map_err(failed)
            }
            HydrateStep::Advance { upto, disks } => {
                disks.iter().try_for_each(|disk| disk.sync()).map_err(failed)?;
                update(&|hydration| hydration.at = *upto)
            }
        }
    }
}

impl Node {
    /// The next job of a lane, if there is one to do now. To be asked again whenever something was submitted,
    /// received or finished, and at [`Node::next_wake`].
    pub fn poll_job(&mut self, now: Now, lane: Lane) -> Option<Job> {
        if self.failed.is_some() || !self.is_born() {
            return None;
        }
        match lane {
            Lane::Sync if self.work.syncing || !self.sync_is_due(now) => None,
            Lane::Sync => {
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
        let copies = self.followers.values().any(|follower| follower.connected && follower.lack.is_some());
        let copy = (copies && self.work.copy_at > now.mono).then_some(self.work.copy_at);
        [ship, apply, checkpoint, retry, copy].into_iter().flatten().min()
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
            Lane::Bulk => !self.work.bulk && self.is_hydrating(),
        }
    }

    /// Bytes of writes that no freeze has taken yet.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.volumes.values().map(|volume| volume.active.bytes()).sum()
    }

    /// When what waits for a sync will have waited long enough, if nobody asks for it before; `None` if nothing waits.
    #[must_use]
    pub fn sync_due_at(&self) -> Option<Mono> {
        self.unsynced_since.map(|since| since.plus_ms(self.sync_delay_ms()))
    }

    /// How long a record may wait for its sync if nobody asks for it.
    #[must_use]
    pub fn sync_delay(&self) -> Duration {
        Duration::from_millis(self.sync_delay_ms())
    }

    fn sync_is_due(&self, now: Now) -> bool {
        let limits = &self.config.limits;
        let Some(since) = self.unsynced_since else { return false };
        self.someone_waits()
            || self.state.role == Role::Replica
            || self.work.frozen_at.is_some_and(|at| at > self.log.durable().lsn)
            || self.ships() && self.work.unsynced_bytes >= limits.ship_delay_bytes
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
                        self.settle();
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
            }
            Done::Fold(Ok(())) => {
                self.work.bulk = false;
                self.take_state();
                let base = self.state.base;
                if let Some(index) = &mut self.index {
                    index.forget_through(base);
                }
            }
            Done::Hydrate(Ok(())) => {
                self.work.bulk = false;
                self.take_state();
            }
            Done::Survey(Ok(surveyed)) => {
                self.work.bulk = false;
                self.finish_survey(&surveyed);
            }
            Done::Copy(copied) => {
                self.work.copying = false;
                self.finish_copy(now, copied);
            }
            Done::Checkpoint(Err(reason))
            | Done::Fold(Err(reason))
            | Done::Hydrate(Err(reason))
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
                // Nothing of what was logged changes a byte.
                self.work.dirty = false;
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

    fn poll_checkpoint(&mut self, now: Now) -> Option<Job> {
        let file = self.file.clone()?;
        let waiting = self.log.used_bytes().saturating_mul(2) > self.config.limits.log.log_bytes;
        let soon = self.work.next_checkpoint.0.saturating_sub(self.config.limits.checkpoint_ms * 900_000);
        let due = if waiting { Mono(soon) } else { self.work.next_checkpoint };
        if now.mono < due {
            return None;
        }
        self.work.next_checkpoint = now.mono.plus_ms(self.config.limits.checkpoint_ms);
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
        // A definition that is not durable may be lost, and must then be made again.
        let defined = self.volumes_at(durable);
        let volumes = self.volume_specs().filter(|spec| defined.contains(&spec.id)).cloned().collect();
        let epoch = self.state.epoch();
        let coarse = self.coarse.clone();
        let lacks = std::mem::take(&mut self.work.lacks_changed).then(|| {
            let (lacks, lost) = self.lacks_on_record();
            let number = if lost.is_empty() { 0 } else { self.next_lacks_file() };
            LacksNote { storage: self.storage.clone(), dir: self.config.dir.clone(), number, lacks, lost }
        });
        let last_gap = self.state.gaps.last().copied();
        let note = Note { applied, durable, start, volumes, acknowledged, coarse, last_gap, epoch };
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

    fn hydrating_from(&self) -> Lsn {
        self.state.hydration.as_ref().map_or(Lsn::ZERO, |hydration| hydration.at)
    }

    /// Uses files again that the state on record no longer needs.
    fn free(&mut self, now: Now) {
        if let Err(error) = self.log.free_before(self.state.start) {
            tracing::warn!(group = %self.config.name, %error, at = %now.wall, "a log file could not be freed");
        }
    }

    /// Retires the oldest points if the window is over its limits, and folds them into the base images.
    fn poll_fold(&mut self, now: Now) -> Option<Job> {
        let file = self.file.clone()?;
        let (upto, horizon) = self.fold_limit(now)?;
        let mut volumes = Vec::new();
        for volume in self.volumes.values() {
            let base = volume.base.clone()?;
            let index = self.index.as_ref()?;
            let (mut pieces, mut from) = (Vec::new(), Some(0));
            while let Some(at) = from {
                let step = index.fold_step(volume.spec.id, at, self.state.base, upto);
                from = step.next;
                for piece in step.pieces {
                    let extent = piece.extent.intersect(Extent::new(0, volume.spec.size))?;
                    pieces.push((extent, self.plan_at(volume.spec.id, upto, extent)?));
                }
            }
            volumes.push(FoldVolume { base, pieces });
        }
        // From here on nobody may open a point that the job is about to overwrite; the job puts it on record.
        self.state.horizon = self.state.horizon.max(horizon);
        Some(Job::Fold(Fold { file, upto, horizon, volumes }))
    }

    /// Up to where to fold, if it is time to: whole segments, a few at once, nothing that is in use.
    fn fold_limit(&self, now: Now) -> Option<(Lsn, Lsn)> {
        self.index.as_ref()?;
        let segments = self.log.segments();
        // A fold that was begun is ended first, whatever the limits say now: its points are retired. A long span is
        // folded bit by bit.
        if self.state.horizon > self.state.base {
            let mut ahead = segments.iter().filter(|segment| segment.last > self.state.base);
            let step = ahead.nth(FOLD_SEGMENTS).map_or(self.state.horizon, |segment| segment.last);
            return Some((step.min(self.state.horizon), self.state.horizon));
        }
        let retention = &self.config.retention;
        let pinned = self.pins.keys().next().copied().unwrap_or(Lsn(u64::MAX));
        let keep = pinned.min(self.state.hydration.as_ref().map_or(Lsn(u64::MAX), |hydration| hydration.at));
        let mut bytes: u64 = segments.iter().map(|segment| segment.end).sum();
        // Room for what comes goes before what was: a replica whose window fills its log would stand still for ever.
        let limits = &self.config.limits.log;
        let reserve = limits.log_bytes.saturating_sub(FOLD_RESERVE_SEGMENTS * limits.segment_bytes);
        let mut used = self.log.used_bytes();
        let mut upto = None;
        // The last segment is being filled.
        for segment in segments.iter().take(segments.len().saturating_sub(1)).take(FOLD_SEGMENTS + 1) {
            let old = segment.last_time.0.saturating_add(retention.age_ns) < now.wall.0;
            if segment.last > keep
                || segment.last > self.log.durable().lsn
                || !(bytes > retention.bytes || old || used > reserve)
            {
                break;
            }
            let Some(horizon) = self.retired_by(segment.last).filter(|&horizon| horizon <= keep) else {
                break;
            };
            bytes -= segment.end;
            used -= segment.header.len;
            if segment.last > self.state.base {
                upto = Some((segment.last, horizon));
            }
        }
        upto
    }

    /// The oldest point that is left if the base images are folded up to `lsn`; `None` if that may not be: within a
    /// span that has not ended there would be none.
    fn retired_by(&self, lsn: Lsn) -> Option<Lsn> {
        let (before, after) = self.whole_around(lsn);
        let none_before = before.is_none_or(|before| before < self.state.horizon);
        match after {
            Some(after) => (after <= self.log.durable().lsn).then_some(after),
            // There is no point to lose: a first copy.
            None => none_before.then_some(lsn),
        }
    }

    /// One step of filling the disks of a promoted node, or of bringing them up to date.
    fn poll_hydrate(&mut self) -> Option<Job> {
        let file = self.file.clone()?;
        let hydration = self.state.hydration.clone()?;
        let at = hydration.at;
        for (id, done) in hydration.done {
            let size = self.volumes.get(&id)?.spec.size;
            if done >= size {
                continue;
            }
            let extent = Extent::new(done, (size - done).min(HYDRATE_STEP_BYTES));
            let plan = self.plan_at(id, at, extent)?;
            let to = self.volumes.get(&id)?.backing.clone()?;
            let step = HydrateStep::Fill { volume: id, extent, plan, to };
            return Some(Job::Hydrate(Hydrate { file, at, step }));
        }
        if self.is_filled() {
            return None;
        }
        let step = self.catch_up(at)?;
        Some(Job::Hydrate(Hydrate { file, at, step }))
    }

    /// The next step of a pass over what changed since `at`.
    fn catch_up(&mut self, at: Lsn) -> Option<HydrateStep> {
        let first = *self.volumes.keys().next()?;
        let upto = self.log.durable().lsn;
        let pass = self.work.catch_up.get_or_insert(CatchUp { upto, volume: first, from: 0 });
        let CatchUp { upto, volume: id, from } = *pass;
        let Some(volume) = self.volumes.get(&id) else {
            self.work.catch_up = None;
            self.work.catch_ups += 1;
            let disks = self.volumes.values().filter_map(|volume| volume.backing.clone()).collect();
            return Some(HydrateStep::Advance { upto, disks });
        };
        let step = self.index.as_ref()?.fold_step(id, from, at, upto);
        match step.next {
            Some(next) => pass.from = next,
            None => {
                let next = self.volumes.range(VolumeId(id.0 + 1)..).next();
                pass.volume = next.map_or(VolumeId(u32::MAX), |(&id, _)| id);
                pass.from = 0;
            }
        }
        let to = volume.backing.clone()?;
        let size = volume.spec.size;
        let pieces = step.pieces.into_iter().map(|piece| {
            let extent = piece.extent.intersect(Extent::new(0, size))?;
            Some((extent, self.plan_at(id, upto, extent)?))
        });
        Some(HydrateStep::CatchUp { pieces: pieces.collect::<Option<_>>()?, to })
    }

    /// Whether the disks of a promoted node are filled and nearly up to date: the runtime then calls
    /// [`Node::end_hydration`]. Reads the log; where that fails, they are not known to be.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        let near = |hydration: &Hydration| {
            let behind = self.log.bytes_after(hydration.at);
            behind.is_some_and(|bytes| bytes <= self.config.limits.catch_up_bytes)
        };
        self.state.hydration.as_ref().is_some_and(|hydration| {
            self.is_whole(hydration) && (self.work.catch_ups >= MAX_CATCH_UPS || near(hydration))
        })
    }

    /// Whether every disk is filled, and nothing is being done to them.
    fn is_whole(&self, hydration: &Hydration) -> bool {
        let mut done = hydration.done.iter();
        done.all(|(id, done)| self.volumes.get(id).is_some_and(|volume| *done >= volume.spec.size))
            && !self.work.bulk
            && self.work.catch_up.is_none()
    }

    /// Changes a promoted node over to its filled disks: what was written since the promotion is taken from the
    /// log into the overlays, from where it is applied like everything else.
    ///
    /// # Errors
    /// Of the log, which is read. The node fails then; its next start does the same.
    pub fn end_hydration(&mut self, now: Now) -> Result<(), String> {
        let hydration = self.state.hydration.as_ref();
        assert!(hydration.is_some_and(|hydration| self.is_whole(hydration)), "the disks are filled first");
        let at = self.hydrating_from();
        let result = self.load_overlays(at).and_then(|()| {
            let recorded = self.update_state(now, |state| {
                state.hydration = None;
                state.applied = at;
            });
            recorded.map_err(|error| error.to_string())
        });
        match &result {
            Ok(()) => {
                self.work.applied = at;
                self.work.mark_dirty();
                tracing::info!(group = %self.config.name, from = %at, "the promoted disks are whole");
            }
            Err(reason) => self.fail(now, reason.clone()),
        }
        result
    }

    fn load_overlays(&mut self, after: Lsn) -> Result<(), String> {
        let records = self.log.records_after(after).map_err(|error| error.to_string())?;
        for (header, payload) in records {
            if header.kind.changes_bytes()
                && let Some(volume) = self.volumes.get_mut(&header.volume)
            {
                volume.active.insert(header.extent, open::content_of(&header, payload));
            }
        }
        Ok(())
    }
}
