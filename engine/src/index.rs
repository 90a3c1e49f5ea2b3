//! The version index: where in the log the bytes of each volume stand, at every LSN that can still be selected.
//!
//! A volume is cut into chunks of [`CHUNK_BYTES`]; a chunk has its versions in LSN order, 24 bytes each. The state
//! at LSN X is found by going through a chunk's versions from the newest ≤ X backwards until the bytes asked for
//! are covered; what no version covers is in the base image. Opening a point is therefore nothing but choosing an
//! X: it costs no time in the volume's size or the log's length, and a read costs time in the versions of the
//! chunks that it touches. ([`View`] keeps what it found in the busiest of them.)
//!
//! Versions that span more than [`MAX_SPLIT_CHUNKS`] chunks (a trim may span a whole disk) are kept apart, in
//! one list for the volume that every read consults.
//!
//! Invariants:
//! - versions are inserted in LSN order, and no two versions of one LSN overlap (a record has one extent);
//! - the base image holds the fold of the log up to the LSN last given to [`Index::forget_through`], or further:
//!   a fold under way may only add versions at or below an LSN under which every point has been retired;
//! - a version at or below that LSN is never answered again, since its segment may be reused;
//! - [`Index::generation`] grows whenever an answer given before may have become wrong.
//!
//! It does not read or write anything, does not know which points are pinned, and is not stored: it is built
//! from the log when that is opened.

mod chunk;
#[cfg(test)]
mod tests;
mod view;

pub use view::{HOT_VERSIONS, MAX_VIEW_CHUNKS, MAX_VIEW_PIECES, View};

use crate::types::{Extent, Lsn, VolumeId};
use chunk::{Chunk, Cover, Lane, Range, Wide};
use std::collections::BTreeMap;

/// The size of a chunk in bytes: 1 MiB.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// A version that spans more chunks than this is not split but kept in the volume's list of wide versions. Above
/// the longest write, so that only trims and zeroes are wide in practice.
pub const MAX_SPLIT_CHUNKS: u64 = 64;

/// How many chunks [`Index::fold_step`] looks at in one call: a bound on how long it keeps others out.
pub const FOLD_STEP_CHUNKS: usize = 256;

/// [`Index::fold_step`] looks at no further chunk once it has this many pieces.
pub const FOLD_STEP_PIECES: usize = 1024;

/// How many chunks an insertion sweeps of forgotten versions while there are any. Two, so that a sweep ends even
/// if each insertion adds a chunk.
const SWEEP_PER_INSERT: usize = 2;

pub use crate::log::Place;

/// What a version of an extent consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Bytes in the log, in one run from this place.
    Payload(Place),
    /// Zeros.
    Zero,
}

/// Where the bytes of a [`Piece`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Bytes in the log, in one run from this place.
    Payload(Place),
    /// Zeros.
    Zero,
    /// The base image, at the same offset.
    Base,
}

/// A part of an answer: a range of a volume, and where its bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The range; never empty.
    pub extent: Extent,
    /// The origin of its first byte, and of the rest in one run.
    pub source: Origin,
}

/// Why a state cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The base image was folded past it.
    #[error("LSN {at} can no longer be read: the base image stands at LSN {folded}")]
    Folded {
        /// What was asked for.
        at: Lsn,
        /// The oldest LSN that can be read.
        folded: Lsn,
    },
    /// The log was cut below it after the view was opened: it lies on a branch now.
    #[error("LSN {at} lies on a branch: this log was cut at LSN {cut}")]
    Branched {
        /// What was asked for.
        at: Lsn,
        /// Where the log was cut.
        cut: Lsn,
    },
}

/// One step of a fold: see [`Index::fold_step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldStep {
    /// What to write into the base image, in order of the offset; none is [`Origin::Base`]. May be empty before
    /// the last step.
    pub pieces: Vec<Piece>,
    /// Where the next step begins; `None` if this was the last.
    pub next: Option<u64>,
}

/// The version index of a group.
#[derive(Debug, Default)]
pub struct Index {
    lanes: BTreeMap<VolumeId, Lane>,
    /// LSN of the newest version.
    last: Lsn,
    /// No version at or below it is inserted any more: a view stands there.
    sealed: Lsn,
    /// Versions at or below it are in the base image and do not exist any more, though some may wait to be swept.
    folded: Lsn,
    generation: u64,
    /// Where the log was cut, in the order in which that happened. A handful in a log's life.
    cuts: Vec<Lsn>,
    sweep: Sweep,
}

/// A chunk's place in the order in which chunks are swept.
type Stop = (VolumeId, u64);

/// How far the removal of forgotten versions has come. A sweep goes round all chunks from wherever the last one
/// stopped, so that frequent calls of `forget_through` starve no chunk.
#[derive(Debug, Default)]
enum Sweep {
    #[default]
    Idle,
    /// To the last chunk, then from the first to `end`.
    ToLast { next: Stop, end: Stop },
    /// To `end`.
    ToEnd { next: Stop, end: Stop },
}

impl Index {
    /// An empty index over a base image that holds the fold of the log up to `folded`.
    #[must_use]
    pub fn new(folded: Lsn) -> Index {
        Index { last: folded, sealed: folded, folded, ..Index::default() }
    }

    /// Adds a version of `extent`. An empty extent is nothing.
    ///
    /// # Panics
    /// If LSNs go backwards, if a view stands at or above `lsn`, or if the payload does not lie in the first
    /// 4 GiB of a segment: the caller has checked the record.
    pub fn insert(&mut self, volume: VolumeId, lsn: Lsn, extent: Extent, source: Source) {
        assert!(lsn >= self.last, "version at {lsn} behind one at {}", self.last);
        assert!(
            lsn > self.sealed,
            "version at {lsn}, but a view or the base image stands at {}",
            self.sealed
        );
        if extent.len == 0 {
            return;
        }
        self.last = lsn;
        let lane = self.lanes.entry(volume).or_default();
        let end = extent.end();
        let first = extent.offset / CHUNK_BYTES;
        let last = (end - 1) / CHUNK_BYTES;
        if last - first >= MAX_SPLIT_CHUNKS {
            lane.wide.push(Wide { lsn, extent, source });
        } else {
            for number in first..=last {
                let chunk = Chunk::range(number);
                let part = Range { start: chunk.start.max(extent.offset), end: chunk.end.min(end) };
                let source = source.skip(part.start - extent.offset);
                lane.push(number, lsn, part, source);
            }
        }
        if !matches!(self.sweep, Sweep::Idle) {
            self.sweep(SWEEP_PER_INSERT);
        }
    }

    /// The state of `extent` at LSN `at`: pieces in order that cover it exactly, as few as possible.
    ///
    /// Whoever reads from the places without keeping the log from being freed compares [`Index::generation`]
    /// before and after, and asks again if it grew.
    pub fn resolve(&self, volume: VolumeId, at: Lsn, extent: Extent) -> Result<Vec<Piece>, Error> {
        self.check_readable(at)?;
        let mut pieces = Vec::new();
        self.resolve_into(volume, at, extent, &mut pieces);
        Ok(pieces)
    }

    /// A view of a volume at `at`, for many reads. Until the log is cut below `at`, no version at or below it can
    /// be inserted: a point is opened only once everything up to it is here.
    pub fn view(&mut self, volume: VolumeId, at: Lsn) -> Result<View, Error> {
        self.check_readable(at)?;
        self.sealed = self.sealed.max(at);
        Ok(View::new(volume, at, self.generation, self.cuts.len()))
    }

    /// One step of bringing a copy of `volume` that holds its state at `after` to that at `upto`: the newest
    /// versions in (`after`, `upto`] in a stretch of the volume that begins at `from`. (For the base image, `after`
    /// is [`Index::folded`].) Begin with 0 and go on with [`FoldStep::next`]; the index may be
    /// changed between the steps by anything but a cut below `upto`.
    ///
    /// The steps give the same pieces if they are repeated, so a fold that dies is begun again.
    #[must_use]
    pub fn fold_step(&self, volume: VolumeId, from: u64, after: Lsn, upto: Lsn) -> FoldStep {
        let mut step = FoldStep { pieces: Vec::new(), next: None };
        let Some(lane) = self.lanes.get(&volume) else { return step };
        let rest = Range { start: from, end: u64::MAX };
        for (looked_at, (range, chunk)) in lane.regions(rest).enumerate() {
            if looked_at == FOLD_STEP_CHUNKS || step.pieces.len() >= FOLD_STEP_PIECES {
                step.next = Some(range.start);
                break;
            }
            let mut cover = Cover::new(range);
            lane.cover(chunk, after.max(self.folded), upto, &mut cover);
            cover.finish_without_base(&mut step.pieces);
        }
        step
    }

    /// The extents of `volume` that have a version in (`after`, `upto`], in order, adjacent ones merged.
    pub fn changed(
        &self,
        volume: VolumeId,
        after: Lsn,
        upto: Lsn,
    ) -> Result<impl Iterator<Item = Extent> + use<'_>, Error> {
        self.check_readable(after)?;
        Ok(self.lanes.get(&volume).into_iter().flat_map(move |lane| lane.changed(after, upto)))
    }

    /// Drops every version after `lsn`: a promotion there has begun another history.
    ///
    /// # Panics
    /// If the base image stands above `lsn`: no such point exists.
    pub fn truncate_after(&mut self, lsn: Lsn) {
        assert!(lsn >= self.folded, "cut at {lsn}, but the base image stands at {}", self.folded);
        for lane in self.lanes.values_mut() {
            lane.truncate_after(lsn);
        }
        self.last = self.last.min(lsn);
        self.sealed = self.sealed.min(lsn);
        self.cuts.push(lsn);
        self.generation += 1;
    }

    /// Drops every version at or below `lsn`: the base image durably holds them all. Takes effect at once; the
    /// memory comes back bit by bit, with [`Index::sweep`] and with each insertion. Does nothing if it was
    /// called with a higher LSN before.
    pub fn forget_through(&mut self, lsn: Lsn) {
        if lsn <= self.folded {
            return;
        }
        self.folded = lsn;
        self.sealed = self.sealed.max(lsn);
        self.last = self.last.max(lsn);
        self.generation += 1;
        for lane in self.lanes.values_mut() {
            lane.forget_wide(lsn);
        }
        let start = match self.sweep {
            Sweep::Idle => (VolumeId(0), 0),
            Sweep::ToLast { next, .. } | Sweep::ToEnd { next, .. } => next,
        };
        self.sweep = Sweep::ToLast { next: start, end: start };
    }

    /// Frees the memory of forgotten versions in about `chunks` chunks; whether there may be more.
    pub fn sweep(&mut self, chunks: usize) -> bool {
        let mut left = chunks;
        while left > 0 {
            let (next, end) = match self.sweep {
                Sweep::Idle => return false,
                Sweep::ToLast { next, .. } => (next, (VolumeId(u32::MAX), u64::MAX)),
                Sweep::ToEnd { next, end } => (next, end),
            };
            // One volume at a time: the first that has not been passed.
            let found = self.lanes.range_mut(next.0..=end.0).next();
            let after = found.and_then(|(&volume, lane)| {
                let from = if volume == next.0 { next.1 } else { 0 };
                let to = if volume == end.0 { end.1 } else { u64::MAX };
                let stopped = lane.forget(self.folded, from, to, &mut left);
                match stopped {
                    Some(chunk) => Some((volume, chunk)),
                    None => (volume < end.0).then(|| (VolumeId(volume.0 + 1), 0)),
                }
            });
            self.sweep = match (&self.sweep, after) {
                (Sweep::ToLast { end, .. }, Some(next)) => Sweep::ToLast { next, end: *end },
                (Sweep::ToLast { end, .. }, None) => Sweep::ToEnd { next: (VolumeId(0), 0), end: *end },
                (Sweep::ToEnd { end, .. }, Some(next)) => Sweep::ToEnd { next, end: *end },
                (Sweep::ToEnd { .. }, None) | (Sweep::Idle, _) => Sweep::Idle,
            };
        }
        !matches!(self.sweep, Sweep::Idle)
    }

    /// The volumes that have versions, or had some.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + use<'_> {
        self.lanes.keys().copied()
    }

    /// Grows whenever an answer given before may have become wrong: a place in it may have been freed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The oldest LSN that can be read: the base image stands there.
    #[must_use]
    pub fn folded(&self) -> Lsn {
        self.folded
    }

    /// The number of versions held, counted once for each chunk; with those that wait to be swept.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.lanes.values().map(|lane| lane.entries + lane.wide.len() as u64).sum()
    }

    /// The memory held in bytes, the allocator's own needs estimated.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lanes.values().map(Lane::bytes).sum()
    }

    /// As [`Index::resolve`], behind what is in `pieces`, for an `at` that was checked.
    fn resolve_into(&self, volume: VolumeId, at: Lsn, extent: Extent, pieces: &mut Vec<Piece>) {
        let whole = Range { start: extent.offset, end: extent.end() };
        match self.lanes.get(&volume) {
            Some(lane) => {
                for (range, chunk) in lane.regions(whole) {
                    let mut cover = Cover::new(range);
                    lane.cover(chunk, self.folded, at, &mut cover);
                    cover.finish(pieces);
                }
            }
            None if whole.start < whole.end => Piece::push(pieces, Piece { extent, source: Origin::Base }),
            None => {}
        }
    }

    /// How many versions a read in a chunk may have to look at.
    fn versions(&self, volume: VolumeId, chunk: u64) -> usize {
        self.lanes.get(&volume).map_or(0, |lane| lane.wide.len() + lane.versions(chunk))
    }

    fn check_readable(&self, at: Lsn) -> Result<(), Error> {
        if at < self.folded {
            return Err(Error::Folded { at, folded: self.folded });
        }
        Ok(())
    }
}

impl Source {
    /// What stands `bytes` further on.
    fn skip(self, bytes: u64) -> Source {
        match self {
            Source::Payload(Place { segment, offset }) => {
                Source::Payload(Place { segment, offset: offset + bytes })
            }
            Source::Zero => Source::Zero,
        }
    }
}

impl From<Source> for Origin {
    fn from(source: Source) -> Origin {
        match source {
            Source::Payload(place) => Origin::Payload(place),
            Source::Zero => Origin::Zero,
        }
    }
}

impl Piece {
    /// The part of the piece that lies in `extent`.
    #[must_use]
    pub fn cut(self, extent: Extent) -> Option<Piece> {
        let part = self.extent.intersect(extent)?;
        let skipped = part.offset - self.extent.offset;
        let source = match self.source {
            Origin::Payload(place) => Origin::from(Source::Payload(place).skip(skipped)),
            Origin::Zero | Origin::Base => self.source,
        };
        Some(Piece { extent: part, source })
    }

    /// Appends `piece`, which may become a longer last piece.
    fn push(pieces: &mut Vec<Piece>, piece: Piece) {
        if let Some(last) = pieces.last_mut()
            && last.extent.end() == piece.extent.offset
            && last.source_at_end() == piece.source
        {
            last.extent.len += piece.extent.len;
        } else {
            pieces.push(piece);
        }
    }

    /// What the byte behind the piece would come from if the piece went on.
    fn source_at_end(&self) -> Origin {
        match self.source {
            Origin::Payload(place) => Origin::from(Source::Payload(place).skip(self.extent.len)),
            Origin::Zero | Origin::Base => self.source,
        }
    }
}
