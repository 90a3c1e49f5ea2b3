//! Filling the disks of a promoted node, behind the running volumes.
//!
//! The disk is written and synced up to a byte, then the state says so. What guests write meanwhile is in the log and is
//! read from there. Once the disks are whole, what changed since is copied in passes, each ended by a sync and a note
//! in the state; a pass that dies is begun again from the note. The last stretch is applied as after any restart.

use super::fold::copy;
use super::keep::remove_files;
use super::work::Job;
use super::{Node, open};
use crate::io::File;
use crate::read::Plan;
use crate::state::{Hydration, Keeps, Role, StateFile};
use crate::types::{Extent, Lsn, Now, VolumeId};
use std::sync::Arc;

/// Bytes copied in one step of filling a disk.
const HYDRATE_STEP_BYTES: u64 = 4 << 20;
/// Passes after which it changes over though guests write faster than the disks are brought up to date.
const MAX_CATCH_UPS: u32 = 8;

/// A pass over what changed: the LSN it leads to, and the volume and byte that come next.
#[derive(Clone, Copy)]
pub(super) struct CatchUp {
    upto: Lsn,
    volume: VolumeId,
    from: u64,
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
    pub(super) fn run(self) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("filling a volume's disk: {error}");
        let (at, file) = (self.at, self.file);
        let update = |change: &dyn Fn(&mut Hydration)| {
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
    /// One step of filling the disks of a promoted node, or of bringing them up to date.
    pub(super) fn poll_hydrate(&mut self) -> Option<Job> {
        let file = self.file.clone()?;
        let hydration = self.state.hydration.clone()?;
        if self.state.keeps() == Keeps::Disks {
            // They are brought up to date by folding.
            return None;
        }
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
        // What lies behind the end is of a time when the volume was longer.
        let within = step.pieces.iter().filter_map(|piece| piece.extent.intersect(Extent::new(0, size)));
        let pieces = within.map(|extent| Some((extent, self.plan_at(id, upto, extent)?)));
        Some(HydrateStep::CatchUp { pieces: pieces.collect::<Option<_>>()?, to })
    }

    /// Whether the disks of a promoted node are filled and nearly up to date: the runtime then calls
    /// [`Node::end_hydration`]. Reads the log; where that fails, they are not known to be.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        let near = |_: &Hydration| {
            let behind = self.log.bytes_after(self.hydrating_from());
            behind.is_some_and(|bytes| bytes <= self.config.limits.catch_up_bytes)
        };
        self.state.hydration.as_ref().is_some_and(|hydration| {
            self.may_end()
                && self.is_whole(hydration)
                && (self.work.catch_ups >= MAX_CATCH_UPS || near(hydration))
        })
    }

    /// Disks that hold the base images of points become the volumes' plain disks once nobody wants the points.
    fn may_end(&self) -> bool {
        let kept =
            self.state.uncommitted.is_some() || !self.pins.is_empty() || self.state.horizon > self.state.base;
        self.state.keeps() != Keeps::Disks || self.state.role == Role::Primary && !kept
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
        let (at, keeps) = (self.hydrating_from(), self.state.keeps());
        let result = self.load_overlays(at).and_then(|()| {
            let recorded = self.update_state(now, |state| {
                state.hydration = None;
                state.applied = at;
                if keeps == Keeps::Disks {
                    state.keeps = Some(Keeps::Nothing);
                    state.coarse = Vec::new();
                    // Guests are about to write where the base images were.
                    state.kept = Vec::new();
                }
            });
            recorded.map_err(|error| error.to_string())
        });
        match &result {
            Ok(()) => {
                self.work.applied = at;
                self.work.mark_dirty();
                if keeps == Keeps::Disks {
                    self.index = None;
                    self.coarse = Vec::new();
                    self.kept.retain(&[]);
                    remove_files(&*self.storage, &self.config.dir, &[]);
                    for volume in self.volumes.values_mut() {
                        volume.backing = volume.base.take();
                    }
                }
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

    pub(super) fn hydrating_from(&self) -> Lsn {
        match self.state.keeps() {
            Keeps::Disks => self.state.base,
            Keeps::Images | Keeps::Nothing => {
                self.state.hydration.as_ref().map_or(Lsn::ZERO, |hydration| hydration.at)
            }
        }
    }
}
