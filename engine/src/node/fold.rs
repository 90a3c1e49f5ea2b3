//! Retention: the oldest points are retired, and their records folded into the base images.
//!
//! The state says first that the points are retired, then the base image is written and synced, then the state says so,
//! then log files are used again. Until it does, reads find what is folded in the log, which is newer than whatever
//! the base holds: a fold that dies is begun again.
//!
//! A mark that is to outlive the window ([`keep`](super::keep)) is folded to first, and its file made before its points are
//! retired. Before anything of a base image is overwritten, what it holds is durable in the file of the newest mark that
//! is kept by then.
//!
//! A record of a replica's log that has rotted stops the fold that needs it, and nothing else: the extent is asked for
//! ([`check`](super::check)), and once it was found well again the fold goes on from there. The points between show the
//! damage, or refuse to be read, and are retired with it.

use super::Node;
use super::keep::{Keeping, remove_files};
use super::work::Job;
use crate::guest::Piece;
use crate::io::{File, Storage, is_no_space};
use crate::kept::{self, KeptMarks};
use crate::read::{Plan, Wait};
use crate::state::{Keeps, Kept, Role, StateFile};
use crate::types::{Extent, Lsn, Now, VolumeId};
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

/// Segments retired by one fold.
const FOLD_SEGMENTS: usize = 4;
/// Segments that are kept free for what comes, by retiring points before the window's own limits say so.
const FOLD_RESERVE_SEGMENTS: u64 = 2;

/// A base image, and what goes where in it.
struct FoldVolume {
    id: VolumeId,
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
    /// `upto` is a mark that is kept from then on.
    keeping: Option<Keeping>,
    saving: Saving,
}

/// Where what the base images hold goes before they are overwritten.
struct Saving {
    storage: Arc<dyn Storage>,
    dir: String,
    marks: Arc<KeptMarks>,
    /// The base images hold everything up to here.
    base: Lsn,
}

/// What a fold came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// The base images are where it was to bring them.
    All,
    /// A record that it needs has rotted.
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// The part that cannot be read.
        extent: Extent,
        /// What is wrong with it.
        reason: String,
    },
}

impl Fold {
    pub(super) fn run(mut self) -> Result<Folded, String> {
        let (upto, horizon) = (self.upto, self.horizon);
        if planted!(FoldBeforeRetiring) {
            let _ = self.write_bases()?;
        }
        let kept = self.keeping.take().and_then(Keeping::make);
        let (layer, kept) = kept.map_or((None, None), |(layer, kept)| (Some(layer), Some(kept)));
        // Retire, durably, before anything is overwritten.
        let retired = self.file.update(|state| {
            state.horizon = state.horizon.max(horizon);
            // The base images go beyond a mark that an earlier fold was to go to: something of it has rotted.
            state.kept.retain(|kept| kept.at <= state.base || kept.at >= upto);
            state.kept.extend(kept);
        });
        let state = retired.map_err(|error| error.to_string())?;
        self.saving.marks.retain(&state.kept);
        layer.into_iter().for_each(|layer| self.saving.marks.push(layer));
        let saved = self.save()?;
        let written = self.write_bases()?;
        let folded = self.file.update(|state| {
            if written == Folded::All {
                state.base = state.base.max(upto);
            }
            for kept in &mut state.kept {
                kept.bytes =
                    saved.filter(|saved| saved.number == kept.number).map_or(kept.bytes, |saved| saved.bytes);
            }
        });
        folded.map_err(|error| error.to_string())?;
        Ok(written)
    }

    /// Puts what is about to be overwritten into the newest kept mark's file, durably. If that cannot be, kept marks are
    /// given up, the oldest first, until it can or there is none.
    fn save(&self) -> Result<Option<Kept>, String> {
        let Saving { storage, dir, marks, base } = &self.saving;
        while let Some(layer) = marks.newest(*base).filter(|_| !planted!(ForgetSaved)) {
            let put = self.volumes.iter().try_for_each(|FoldVolume { id, base, pieces }| {
                pieces.iter().try_for_each(|(extent, _)| kept::save(&layer, *id, *extent, &**base))
            });
            let error = match put.and_then(|()| layer.sync()) {
                Ok(bytes) => return Ok(Some(Kept { at: layer.mark().at, number: layer.number(), bytes })),
                Err(error) => error,
            };
            // Nothing is known of a file that could not be synced, but for space there may be some.
            let oldest = marks.marks().first().map(|(mark, _)| mark.at).filter(|_| is_no_space(&error));
            let through = oldest.unwrap_or(layer.mark().at);
            tracing::warn!(%error, %through, "kept marks are given up: what a fold overwrites cannot be saved");
            let state = self.file.update(|state| state.kept.retain(|kept| kept.at > through));
            let state = state.map_err(|error| error.to_string())?;
            marks.retain(&state.kept);
            remove_files(&**storage, dir, &state.kept);
        }
        Ok(None)
    }

    fn write_bases(&self) -> Result<Folded, String> {
        for FoldVolume { id, base, pieces } in &self.volumes {
            for (extent, plan) in pieces {
                match copy(plan, &**base, extent.offset) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        let (volume, extent, reason) = (*id, *extent, error.to_string());
                        return Ok(Folded::Damaged { volume, extent, reason });
                    }
                    Err(error) => return Err(format!("folding: {error}")),
                }
            }
            base.sync().map_err(|error| format!("syncing a base image: {error}"))?;
        }
        Ok(Folded::All)
    }
}

/// Copies what a plan reads to `offset` of a file.
pub(super) fn copy(plan: &Plan, to: &dyn File, mut offset: u64) -> std::io::Result<()> {
    for piece in plan.read(Wait::Yes)? {
        match &piece {
            Piece::Bytes(bytes) => to.write_at(&[IoSlice::new(bytes)], offset)?,
            Piece::Hole(len) => to.zero(offset, *len)?,
        }
        offset += piece.len();
    }
    Ok(())
}

impl Node {
    /// Retires the oldest points if the window is over its limits, and folds them into the base images.
    pub(super) fn poll_fold(&mut self, now: Now) -> Option<Job> {
        let file = self.file.clone()?;
        // A disk that was used before is emptied for a new volume until that is on record.
        if !self.state.stale_disks.is_empty() && self.volumes.len() != self.state.volumes.len() {
            return None;
        }
        let asks = self.state.role == Role::Replica;
        self.checks.forget_damage_beyond(self.log.durable().lsn, asks);
        let (upto, horizon) = self.fold_limit(now)?;
        let keeps = self.next_to_keep(upto);
        let (upto, horizon) = keeps.map_or((upto, horizon), |at| (at, at));
        let mut volumes = Vec::new();
        for volume in self.volumes.values() {
            let base = volume.base.clone()?;
            let index = self.index.as_ref()?;
            let (mut pieces, mut from) = (Vec::new(), Some(0));
            while let Some(at) = from {
                let step = index.fold_step(volume.spec.id, at, self.state.base, upto);
                from = step.next;
                for piece in step.pieces {
                    let extent = piece.extent.intersect(Extent::new(0, volume.largest()))?;
                    pieces.push((extent, self.plan_at(volume.spec.id, upto, extent)?));
                }
            }
            volumes.push(FoldVolume { id: volume.spec.id, base, pieces });
        }
        // From here on nobody may open a point that the job is about to overwrite; the job puts it on record.
        self.state.horizon = self.state.horizon.max(horizon);
        let keeping = keeps.and_then(|at| self.keeping(at));
        let saving = Saving {
            storage: self.storage.clone(),
            dir: self.config.dir.clone(),
            marks: self.kept.clone(),
            base: self.state.base,
        };
        Some(Job::Fold(Box::new(Fold { file, upto, horizon, volumes, keeping, saving })))
    }

    /// Up to where to fold, if it is time to: whole segments, a few at once, nothing that is in use.
    fn fold_limit(&self, now: Now) -> Option<(Lsn, Lsn)> {
        self.index.as_ref()?;
        // What is behind the window already is kept, and holds nothing up.
        let mut pins = self.pins.range(self.state.horizon..).map(|(&lsn, _)| lsn);
        let pinned = pins.next().filter(|_| !planted!(PrunePinned)).unwrap_or(Lsn(u64::MAX));
        match self.checks.damage() {
            // It waits for the primary.
            Some(None) => return None,
            Some(Some(well)) if pinned < well => return None,
            Some(Some(well)) if well > self.state.base => {
                let upto = well.max(self.state.horizon);
                return Some((upto, upto));
            }
            _ => {}
        }
        let segments = self.log.segments();
        // A fold that was begun is ended first, whatever the limits say now: its points are retired. A long span is
        // folded bit by bit.
        if self.state.horizon > self.state.base {
            let mut ahead = segments.iter().filter(|segment| segment.last > self.state.base);
            let step = ahead.nth(FOLD_SEGMENTS).map_or(self.state.horizon, |segment| segment.last);
            return Some((step.min(self.state.horizon), self.state.horizon));
        }
        let retention = &self.config.retention;
        if let Some(upto) = self.last_fold(pinned) {
            return Some((upto, upto));
        }
        let keep = pinned.min(self.kept_for_disks());
        let mut bytes: u64 = segments.iter().map(|segment| segment.end).sum();
        // Room for what comes goes before what was: a replica whose window fills its log would stand still for ever.
        let limits = &self.config.limits.log;
        let reserve = limits.log_bytes.saturating_sub(FOLD_RESERVE_SEGMENTS * limits.segment_bytes);
        let mut used = self.log.used_bytes();
        let mut upto = None;
        // The last segment is being filled.
        for segment in segments.iter().take(segments.len().saturating_sub(1)).take(FOLD_SEGMENTS + 1) {
            // Until the operator commits, the points around a promotion are kept, as long as the log has room for it.
            if self.state.uncommitted.is_some_and(|at| segment.last > at) && used <= reserve {
                break;
            }
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

    /// A promoted node fills its disks from a point that has to stay.
    fn kept_for_disks(&self) -> Lsn {
        match (&self.state.hydration, self.state.keeps()) {
            (Some(hydration), Keeps::Images) => hydration.at,
            _ => Lsn(u64::MAX),
        }
    }

    /// A promoted node whose disks hold the base images brings them up to date by folding all of its points, once the
    /// promotion is committed.
    fn last_fold(&self, pinned: Lsn) -> Option<Lsn> {
        let state = &self.state;
        let ends = state.hydration.is_some()
            && state.keeps() == Keeps::Disks
            && state.role == Role::Primary
            && state.uncommitted.is_none()
            && !self.is_filled();
        let ahead = self.log.segments().iter().filter(|segment| segment.last > state.base);
        let step = ahead.take(FOLD_SEGMENTS).last()?.last;
        let upto = step.min(self.log.durable().lsn).min(pinned);
        (ends && upto > state.base).then_some(upto)
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
}
