//! A state of a volume that is read many times: a mounted point, a drill, a restore.
//!
//! A busy chunk (a database's log, a filesystem's journal) may have hundreds of thousands of versions, and a read
//! of a block that was last written long ago would go through them each time. A view therefore resolves a busy
//! chunk once, whole, and keeps the result. Quiet chunks are resolved anew: that costs less than keeping them.
//!
//! Invariant: what is kept was resolved in the index's present generation.

use super::{CHUNK_BYTES, Chunk, Error, Index, Piece};
use crate::types::{Extent, Lsn, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// A chunk with more versions than this is kept once resolved. To look at so many takes about ten microseconds,
/// to resolve a whole chunk several times that.
pub const HOT_VERSIONS: usize = 4096;

/// How many resolved pieces a view keeps (32 bytes each); the chunks kept longest make way.
pub const MAX_VIEW_PIECES: usize = 1 << 18;

/// An extent of more chunks than this is resolved without looking at what is kept.
pub const MAX_VIEW_CHUNKS: u64 = 64;

/// A volume at one LSN. Made by [`Index::view`], and used with that index only.
#[derive(Debug)]
pub struct View {
    volume: VolumeId,
    at: Lsn,
    /// [`HOT_VERSIONS`], but in tests.
    pub(super) hot: usize,
    generation: u64,
    /// How often the log had been cut when the view was opened.
    cuts: usize,
    kept: BTreeMap<u64, Box<[Piece]>>,
    /// The keys of `kept`, oldest first.
    order: VecDeque<u64>,
    /// The pieces in `kept`.
    pieces: usize,
}

impl View {
    pub(super) fn new(volume: VolumeId, at: Lsn, generation: u64, cuts: usize) -> View {
        let (kept, order) = (BTreeMap::new(), VecDeque::new());
        View { volume, at, hot: HOT_VERSIONS, generation, cuts, kept, order, pieces: 0 }
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The LSN.
    #[must_use]
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// As [`Index::resolve`] at the view's LSN.
    pub fn resolve(&mut self, index: &Index, extent: Extent) -> Result<Vec<Piece>, Error> {
        self.refresh(index)?;
        let mut pieces = Vec::new();
        let (start, end) = (extent.offset, extent.end());
        if start == end {
            return Ok(pieces);
        }
        let (first, last) = (start / CHUNK_BYTES, (end - 1) / CHUNK_BYTES);
        if last - first >= MAX_VIEW_CHUNKS {
            index.resolve_into(self.volume, self.at, extent, &mut pieces);
            return Ok(pieces);
        }
        for number in first..=last {
            let range = Chunk::range(number);
            let whole = Extent::new(range.start, range.end - range.start);
            let Some(part) = whole.intersect(extent) else { continue };
            if index.versions(self.volume, number) <= self.hot {
                index.resolve_into(self.volume, self.at, part, &mut pieces);
                continue;
            }
            let kept = self.keep(index, number, whole);
            let from = kept.partition_point(|piece| piece.extent.end() <= part.offset);
            let parts = kept[from..].iter().map_while(|piece| piece.cut(part));
            parts.for_each(|piece| Piece::push(&mut pieces, piece));
        }
        Ok(pieces)
    }

    /// The pieces of a whole chunk, resolved now or before.
    fn keep(&mut self, index: &Index, number: u64, whole: Extent) -> &[Piece] {
        if !self.kept.contains_key(&number) {
            let mut pieces = Vec::new();
            index.resolve_into(self.volume, self.at, whole, &mut pieces);
            while self.pieces + pieces.len() > MAX_VIEW_PIECES
                && let Some(oldest) = self.order.pop_front()
            {
                self.pieces -= self.kept.remove(&oldest).map_or(0, |pieces| pieces.len());
            }
            self.pieces += pieces.len();
            self.order.push_back(number);
            self.kept.insert(number, pieces.into_boxed_slice());
        }
        &self.kept[&number]
    }

    /// Drops what may be wrong, and finds out whether the LSN can still be read.
    fn refresh(&mut self, index: &Index) -> Result<(), Error> {
        if self.generation == index.generation {
            return Ok(());
        }
        index.check_readable(self.at)?;
        if let Some(&cut) = index.cuts[self.cuts..].iter().find(|&&cut| cut < self.at) {
            return Err(Error::Branched { at: self.at, cut });
        }
        self.kept.clear();
        self.order.clear();
        self.pieces = 0;
        self.generation = index.generation;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Source;

    #[test]
    fn a_view_keeps_a_bounded_number_of_pieces() {
        let mut index = Index::default();
        let per_chunk = CHUNK_BYTES / 1024;
        let chunks = 2 * MAX_VIEW_PIECES as u64 / per_chunk;
        for block in 0..chunks * per_chunk {
            // Every second half kilobyte: twice as many pieces.
            let extent = Extent::new(block * 1024, 512);
            index.insert(VolumeId(1), Lsn(block + 1), extent, Source::Zero);
        }
        let mut view = index.view(VolumeId(1), Lsn(chunks * per_chunk)).expect("readable");
        view.hot = 64;
        for chunk in 0..chunks {
            let extent = Extent::new(chunk * CHUNK_BYTES, 4096);
            assert_eq!(view.resolve(&index, extent).expect("readable").len(), 8);
            assert!(view.pieces <= MAX_VIEW_PIECES);
            assert_eq!(view.kept.len(), view.order.len());
        }
        assert!(view.pieces > MAX_VIEW_PIECES / 2);
    }
}
