//! The states of a branch: any of its points can be opened, as those of the line can.
//!
//! A state of a branch is the state at which it left the line, and what the branch has written since. So there are such
//! states as long as the point at which it left is kept here, which is pinned while one of them is in use. What the branch
//! has written is looked up in an index of its own, made from its records when it is first asked for; the node goes on
//! meanwhile.

use super::points::Error;
use super::resize::sizes_of;
use super::{Node, coarse, open};
use crate::event::{FLAG_AGAIN, Kind, Promoted, VolumeSpec, decode_body};
use crate::index::{Index, Origin};
use crate::log::branch::{BranchFiles, BranchReader};
use crate::log::chain::Tip;
use crate::log::ship::ReadError;
use crate::overlay::Content;
use crate::read::{From, Plan};
use crate::state::{Branch, Coarse};
use crate::types::{Extent, Lsn, NodeId, Position, Reign, Timestamp, VolumeId};

/// Why a branch has no states that can be read.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// The state that it goes on from is not here.
    #[error("the point at which the branch left the line is not kept on this node: {0}")]
    NoStart(Error),
    /// Its records are not all there.
    #[error("not all of the branch's records can be read")]
    NotWhole,
    /// They cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// Not one of its points.
    #[error("LSN {at} is not on the branch, which reaches from LSN {first} to {last}")]
    Outside {
        /// What was asked for.
        at: Lsn,
        /// Its first.
        first: Lsn,
        /// Its last.
        last: Lsn,
    },
    /// Within a sync span.
    #[error(
        "LSN {at} lies within a sync span, whose states are not whole; the newest before it is LSN {before}"
    )]
    Coarse {
        /// What was asked for.
        at: Lsn,
        /// The newest point before it.
        before: Lsn,
    },
}

/// A branch to be looked through, which takes as long as reading its headers does, and not the node.
pub struct BranchSurvey {
    branch: Branch,
    reader: BranchReader,
    node: NodeId,
    volumes: usize,
}

/// What a branch holds.
pub struct BranchStates {
    branch: Branch,
    files: BranchFiles,
    index: Index,
    /// Stretches of its LSNs that are no points.
    coarse: Vec<Coarse>,
    /// Volumes that it defined, and where.
    volumes: Vec<(Lsn, VolumeSpec)>,
    /// Volumes whose size changed on it: where, and what it is from there on.
    resizes: Vec<(Lsn, VolumeId, u64)>,
    /// Reigns that began on it, by their first records.
    reigns: Vec<(Lsn, Reign)>,
    /// Each of its LSNs stands in a record.
    pub(super) leaves_none_out: bool,
    /// Times of its records that are later than all before, ascending.
    times: Vec<(Timestamp, Lsn)>,
}

impl BranchSurvey {
    /// Looks through it.
    ///
    /// # Errors
    /// [`BranchError::NotWhole`], [`BranchError::Unreadable`].
    pub fn run(self) -> Result<BranchStates, BranchError> {
        let BranchSurvey { branch, reader, node, volumes: known } = self;
        let mut index = Index::new(branch.after.lsn);
        let (mut coarse, mut volumes, mut resizes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut reigns, mut times) = (Vec::new(), Vec::<(Timestamp, Lsn)>::new());
        let (mut last, mut leaves_none_out) = (branch.after.lsn, true);
        let files = reader.map(|header, place, body| {
            if header.lsn > last.next() {
                // Its log has jumped over what lies between: no state of that can be told.
                leaves_none_out = false;
                coarse::leave_out(&mut coarse, last, header.lsn.prev());
            }
            last = header.lsn;
            if times.last().is_none_or(|&(time, _)| time < header.time) {
                times.push((header.time, header.lsn));
            }
            coarse::follow(&mut coarse, node, header, body);
            match header.kind {
                kind if kind.changes_bytes() => open::index_record(&mut index, header, place),
                Kind::Volume if header.flags & FLAG_AGAIN == 0 => {
                    volumes.extend(open::spec_of(header, body).map(|spec| (header.lsn, spec)));
                    if coarse::defines_in_place(header) {
                        coarse::await_data(&mut coarse, header, known + volumes.len());
                    }
                }
                Kind::Resize => resizes.push((header.lsn, header.volume, sizes_of(header).1)),
                // Repeated, with a size that may have changed where records were left out.
                Kind::Volume => {
                    resizes.extend(open::spec_of(header, body).map(|spec| (header.lsn, spec.id, spec.size)));
                }
                Kind::Promote => {
                    let promoted = decode_body::<Promoted>(body);
                    reigns.extend(promoted.map(|promoted| (header.lsn, promoted.reign)));
                }
                _ => {}
            }
        })?;
        let files = files.ok_or(BranchError::NotWhole)?;
        if last < branch.last {
            // It ends in a jump, behind which nothing came.
            leaves_none_out = false;
            coarse::leave_out(&mut coarse, last, branch.last);
        }
        Ok(BranchStates { branch, files, index, coarse, volumes, resizes, reigns, leaves_none_out, times })
    }
}

impl BranchStates {
    /// Which branch.
    #[must_use]
    pub fn branch(&self) -> &Branch {
        &self.branch
    }

    /// Checks that `at` is a point.
    ///
    /// # Errors
    /// [`BranchError::Outside`], [`BranchError::Coarse`].
    pub fn check(&self, at: Lsn) -> Result<(), BranchError> {
        let Branch { after, last, .. } = self.branch;
        if at <= after.lsn || at > last {
            return Err(BranchError::Outside { at, first: after.lsn.next(), last });
        }
        match self.coarse.iter().find(|stretch| stretch.covers(at)) {
            Some(stretch) => Err(BranchError::Coarse { at, before: stretch.from.prev() }),
            None => Ok(()),
        }
    }

    /// The newest point.
    #[must_use]
    pub fn latest(&self) -> Option<Lsn> {
        self.whole_until(self.branch.last)
    }

    /// The newest point that is not younger than `time`, by the records' own times.
    #[must_use]
    pub fn point_at(&self, time: Timestamp) -> Option<Lsn> {
        let behind = self.times.partition_point(|&(of, _)| of <= time);
        let upto = match self.times.get(behind) {
            Some(&(_, lsn)) => lsn.prev(),
            None => self.branch.last,
        };
        self.whole_until(upto)
    }

    fn whole_until(&self, lsn: Lsn) -> Option<Lsn> {
        let mut at = lsn;
        for stretch in self.coarse.iter().rev() {
            if stretch.covers(at) {
                at = stretch.from.prev();
            }
        }
        (at > self.branch.after.lsn).then_some(at)
    }

    /// When the record at `lsn`, or the last before it that is later than all before, was written.
    #[must_use]
    pub fn time_of(&self, lsn: Lsn) -> Option<Timestamp> {
        let behind = self.times.partition_point(|&(_, of)| of <= lsn);
        behind.checked_sub(1).map(|index| self.times[index].0)
    }

    /// The volumes as of `at`, given those at the point at which the branch left the line.
    #[must_use]
    pub fn specs_at(&self, mut specs: Vec<VolumeSpec>, at: Lsn) -> Vec<VolumeSpec> {
        for (_, spec) in self.volumes.iter().filter(|(defined, _)| *defined <= at) {
            if specs.iter().all(|known| known.id != spec.id) {
                specs.push(spec.clone());
            }
        }
        for (_, id, size) in self.resizes.iter().filter(|(resized, ..)| *resized <= at) {
            specs.iter_mut().filter(|spec| spec.id == *id).for_each(|spec| spec.size = *size);
        }
        specs
    }

    /// Stretches that are no points, up to `at`, which is one.
    pub(super) fn coarse_until(&self, at: Lsn) -> impl Iterator<Item = Coarse> {
        self.coarse.iter().filter(move |stretch| stretch.from <= at).copied()
    }

    /// Reigns that began on the branch, up to `at`.
    pub(super) fn reigns_until(&self, at: Lsn) -> impl Iterator<Item = Reign> {
        self.reigns.iter().filter(move |(began, _)| *began <= at).map(|(_, reign)| *reign)
    }

    /// Where a log has to begin that goes on with the branch right from its own beginning: the branch's first record may
    /// stand in the middle of a file.
    pub(super) fn start(&self) -> Option<Tip> {
        self.files.start().filter(|start| start.lsn < self.branch.after.lsn)
    }

    /// The tip at a record.
    pub(super) fn tip_at(&self, at: Lsn) -> Result<Tip, BranchError> {
        self.files.tip_at(at)?.ok_or(BranchError::NotWhole)
    }

    /// A read of what the branch has written to a volume up to `at`, all else a hole; what it has made zeros is none.
    #[must_use]
    pub fn plan_written(&self, volume: VolumeId, at: Lsn, extent: Extent) -> Option<Plan> {
        let parts = self.index.resolve(volume, at, extent).ok()?.into_iter().map(|piece| {
            let from = match piece.source {
                Origin::Base => From::Memory(Content::Zero { no_hole: false }),
                Origin::Zero => From::Memory(Content::Zero { no_hole: true }),
                Origin::Payload(place) => From::Record(self.files.in_record(place)?),
            };
            Some((piece.extent, from))
        });
        Some(Plan::new(extent, parts.collect::<Option<_>>()?))
    }
}

impl Node {
    /// A branch, for looking through all of it.
    #[must_use]
    pub fn survey_branch(&self, branch: &Branch) -> BranchSurvey {
        BranchSurvey {
            branch: *branch,
            reader: self.read_branch(branch),
            node: self.config.node,
            volumes: self.volumes.len(),
        }
    }

    /// Whether the states of a branch can be read here: the position at which it left the line is a point.
    ///
    /// # Errors
    /// [`BranchError::NoStart`], [`BranchError::Unreadable`].
    pub fn check_start(&self, after: Position) -> Result<(), BranchError> {
        self.check_point(after.lsn).map_err(BranchError::NoStart)?;
        let found = self.log.tip_at(after.lsn)?.map(|(tip, ..)| tip.position());
        match found {
            Some(position) if position == after => Ok(()),
            _ => {
                let window = self.window().ok_or_else(|| BranchError::NoStart(self.no_window()))?;
                Err(BranchError::NoStart(Error::Outside {
                    asked: format!("LSN {} of epoch {}, which is on another branch,", after.lsn, after.epoch),
                    horizon: window.horizon,
                    latest: window.latest,
                    kept: Vec::new(),
                }))
            }
        }
    }

    /// A read of a volume at a point of a branch, while the point at which that left the line is pinned; `None` if there is
    /// no such volume, or the extent is not within it.
    #[must_use]
    pub fn plan_branch(&self, states: &BranchStates, id: VolumeId, at: Lsn, extent: Extent) -> Option<Plan> {
        let after = states.branch.after.lsn;
        let size = self.branch_volumes(states, at).iter().find(|spec| spec.id == id)?.size;
        if !extent.fits(size) {
            return None;
        }
        let is_older = self.volumes_at(after).contains(&id);
        let mut parts = Vec::new();
        for piece in states.index.resolve(id, at, extent).ok()? {
            let from = match piece.source {
                Origin::Base if is_older => {
                    parts.extend(self.plan_at(id, after, piece.extent)?.into_parts());
                    continue;
                }
                Origin::Base | Origin::Zero => From::Memory(Content::Zero { no_hole: false }),
                Origin::Payload(place) => From::Record(states.files.in_record(place)?),
            };
            parts.push((piece.extent, from));
        }
        Some(Plan::new(extent, parts))
    }

    /// The volumes at a point of a branch.
    #[must_use]
    pub fn branch_volumes(&self, states: &BranchStates, at: Lsn) -> Vec<VolumeSpec> {
        states.specs_at(self.specs_at(states.branch.after.lsn), at)
    }
}
