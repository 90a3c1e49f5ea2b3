//! The versions of one volume: packed entries by chunk, the wide list, and how they cover a range.
//!
//! Invariant: the entries of a chunk, and the wide versions, are in LSN order.

use super::{CHUNK_BYTES, Origin, Piece, Place, Source};
use crate::types::{Extent, Lsn};
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

/// In an entry's `segment`: the version is zeros. No segment has this number.
const NO_SEGMENT: u32 = u32::MAX;

/// Bytes that a chunk costs beside its entries: key and vector in a tree whose nodes are two thirds full, and the
/// allocator's header.
const CHUNK_OVERHEAD_BYTES: u64 = (8 + size_of::<Chunk>() as u64) * 3 / 2 + 16;

/// Bytes from `start` to `end` of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A version within a chunk. Packed by hand: there are tens of millions.
#[derive(Clone, Copy, Debug)]
struct Entry {
    lsn: Lsn,
    /// From the chunk's start, in bytes.
    start: u32,
    len: u32,
    /// [`NO_SEGMENT`] for zeros.
    segment: u32,
    /// In the segment, in bytes.
    offset: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);
const _: () = assert!(CHUNK_BYTES <= u32::MAX as u64);

/// The versions of one chunk.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    entries: Vec<Entry>,
}

/// A version that spans many chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    pub(super) lsn: Lsn,
    pub(super) extent: Extent,
    pub(super) source: Source,
}

/// The versions of one volume.
#[derive(Debug, Default)]
pub(super) struct Lane {
    chunks: BTreeMap<u64, Chunk>,
    pub(super) wide: Vec<Wide>,
    /// In all chunks.
    pub(super) entries: u64,
    /// Places for entries that are allocated in all chunks.
    capacity: u64,
}

impl Chunk {
    /// The bytes of the volume that chunk `number` stands for.
    pub(super) fn range(number: u64) -> Range {
        let start = number * CHUNK_BYTES;
        Range { start, end: start.saturating_add(CHUNK_BYTES) }
    }

    /// The entries in (`after`, `upto`].
    fn between(&self, after: Lsn, upto: Lsn) -> &[Entry] {
        let end = self.entries.partition_point(|entry| entry.lsn <= upto);
        // The usual case is that nothing waits to be swept, so this looks at one entry.
        match self.entries.first() {
            Some(first) if first.lsn <= after => {
                let start = self.entries[..end].partition_point(|entry| entry.lsn <= after);
                &self.entries[start..end]
            }
            _ => &self.entries[..end],
        }
    }
}

impl Entry {
    fn new(lsn: Lsn, start: u32, len: u32, source: Source) -> Entry {
        let (segment, offset) = match source {
            Source::Payload(place) => {
                assert!(place.segment != NO_SEGMENT, "segment number {} is reserved", place.segment);
                let offset = u32::try_from(place.offset).expect("a segment is shorter than 4 GiB");
                (place.segment, offset)
            }
            Source::Zero => (NO_SEGMENT, 0),
        };
        Entry { lsn, start, len, segment, offset }
    }

    fn source(&self) -> Source {
        match self.segment {
            NO_SEGMENT => Source::Zero,
            segment => Source::Payload(Place { segment, offset: u64::from(self.offset) }),
        }
    }

    fn range(&self, chunk_start: u64) -> Range {
        let start = chunk_start + u64::from(self.start);
        Range { start, end: start + u64::from(self.len) }
    }
}

impl Lane {
    /// Adds a version within chunk `number`.
    pub(super) fn push(&mut self, number: u64, lsn: Lsn, part: Range, source: Source) {
        let base = Chunk::range(number).start;
        let entries = &mut self.chunks.entry(number).or_default().entries;
        let start = u32::try_from(part.start - base).expect("within the chunk");
        let len = u32::try_from(part.end - part.start).expect("within the chunk");
        if entries.len() == entries.capacity() {
            // By half, from one: many chunks of a big sparse volume have a single version.
            let before = entries.capacity();
            entries.reserve_exact((before / 2).max(1));
            self.capacity += (entries.capacity() - before) as u64;
        }
        entries.push(Entry::new(lsn, start, len, source));
        self.entries += 1;
    }

    /// Cuts `range` where chunks that have versions begin and end; the stretches between them come whole.
    pub(super) fn regions(&self, range: Range) -> Regions<'_> {
        let first = range.start / CHUNK_BYTES;
        let last = range.end.saturating_sub(1) / CHUNK_BYTES;
        // An empty range must not become one that runs backwards.
        Regions { rest: range, chunks: self.chunks.range(first..=last.max(first)).peekable() }
    }

    /// Covers what it can with the newest versions in (`after`, `upto`] of `chunk` and of the wide ones.
    pub(super) fn cover(&self, chunk: Option<(u64, &Chunk)>, after: Lsn, upto: Lsn, cover: &mut Cover) {
        let (start, entries) = match chunk {
            Some((number, chunk)) => (Chunk::range(number).start, chunk.between(after, upto)),
            None => (0, &[][..]),
        };
        let whole = cover.whole;
        let wide = self.wide_between(after, upto);
        let mut wide = wide.iter().rev().filter(|wide| whole.overlaps(wide.range())).peekable();
        let mut narrow = entries.iter().rev().peekable();
        while !cover.gaps.is_empty() {
            // Versions of one LSN do not overlap, so a tie may go either way.
            let narrow_is_newer = match (narrow.peek(), wide.peek()) {
                (Some(narrow), Some(wide)) => narrow.lsn >= wide.lsn,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if narrow_is_newer {
                if let Some(entry) = narrow.next() {
                    cover.take(entry.range(start), entry.source());
                }
            } else {
                let Some(version) = wide.next() else { break };
                cover.take(version.range(), version.source);
            }
        }
    }

    /// The ranges with a version in (`after`, `upto`], in order, adjacent ones merged.
    pub(super) fn changed(&self, after: Lsn, upto: Lsn) -> impl Iterator<Item = Extent> + use<'_> {
        let mut regions = self.regions(Range { start: 0, end: u64::MAX });
        let mut ready = Vec::<Range>::new().into_iter();
        let mut held: Option<Range> = None;
        std::iter::from_fn(move || {
            loop {
                for range in ready.by_ref() {
                    match &mut held {
                        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                        _ => {
                            if let Some(done) = held.replace(range) {
                                return Some(done.extent());
                            }
                        }
                    }
                }
                match regions.next() {
                    Some((range, chunk)) => ready = self.changed_in(range, chunk, after, upto).into_iter(),
                    None => return held.take().map(Range::extent),
                }
            }
        })
    }

    /// The same within one region, in order of the start, not merged.
    fn changed_in(&self, range: Range, chunk: Option<(u64, &Chunk)>, after: Lsn, upto: Lsn) -> Vec<Range> {
        let wide = self.wide_between(after, upto).iter().map(Wide::range);
        let mut ranges: Vec<Range> = wide.filter_map(|wide| range.intersect(wide)).collect();
        if let Some((number, chunk)) = chunk {
            let start = Chunk::range(number).start;
            ranges.extend(chunk.between(after, upto).iter().map(|entry| entry.range(start)));
        }
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    pub(super) fn truncate_after(&mut self, lsn: Lsn) {
        for chunk in self.chunks.values_mut() {
            let keep = chunk.entries.partition_point(|entry| entry.lsn <= lsn);
            self.entries -= (chunk.entries.len() - keep) as u64;
            chunk.entries.truncate(keep);
        }
        let capacity = &mut self.capacity;
        self.chunks.retain(|_, chunk| {
            let keep = !chunk.entries.is_empty();
            *capacity -= if keep { 0 } else { chunk.entries.capacity() as u64 };
            keep
        });
        self.wide.truncate(self.wide.partition_point(|wide| wide.lsn <= lsn));
    }

    /// Drops wide versions at or below `lsn`.
    pub(super) fn forget_wide(&mut self, lsn: Lsn) {
        self.wide.drain(..self.wide.partition_point(|wide| wide.lsn <= lsn));
    }

    /// Drops versions at or below `lsn` in the chunks from `from` to before `to`, of which it looks at no more
    /// than `left`, and counts that down. Where it stopped, if it did before the end.
    pub(super) fn forget(&mut self, lsn: Lsn, from: u64, to: u64, left: &mut usize) -> Option<u64> {
        let mut empty = Vec::new();
        let mut stopped = None;
        if from >= to {
            return None;
        }
        for (&number, chunk) in self.chunks.range_mut(from..to) {
            if *left == 0 {
                stopped = Some(number);
                break;
            }
            *left -= 1;
            let entries = &mut chunk.entries;
            let gone = entries.partition_point(|entry| entry.lsn <= lsn);
            if gone == 0 {
                continue;
            }
            entries.drain(..gone);
            self.entries -= gone as u64;
            let before = entries.capacity();
            if entries.is_empty() {
                empty.push(number);
                self.capacity -= before as u64;
            } else if before >= entries.len() * 2 {
                entries.shrink_to(entries.len() + entries.len() / 2);
                self.capacity -= (before - entries.capacity()) as u64;
            }
        }
        for number in empty {
            self.chunks.remove(&number);
        }
        stopped
    }

    /// How many versions a chunk has.
    pub(super) fn versions(&self, chunk: u64) -> usize {
        self.chunks.get(&chunk).map_or(0, |chunk| chunk.entries.len())
    }

    /// The memory held, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.capacity * size_of::<Entry>() as u64
            + self.chunks.len() as u64 * CHUNK_OVERHEAD_BYTES
            + (self.wide.capacity() * size_of::<Wide>()) as u64
    }

    fn wide_between(&self, after: Lsn, upto: Lsn) -> &[Wide] {
        let end = self.wide.partition_point(|wide| wide.lsn <= upto);
        let start = self.wide[..end].partition_point(|wide| wide.lsn <= after);
        &self.wide[start..end]
    }
}

impl Wide {
    fn range(&self) -> Range {
        Range { start: self.extent.offset, end: self.extent.end() }
    }
}

impl Range {
    fn extent(self) -> Extent {
        Extent::new(self.start, self.end - self.start)
    }

    fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn intersect(self, other: Range) -> Option<Range> {
        let both = Range { start: self.start.max(other.start), end: self.end.min(other.end) };
        (both.start < both.end).then_some(both)
    }
}

/// See [`Lane::regions`].
pub(super) struct Regions<'a> {
    rest: Range,
    chunks: Peekable<btree_map::Range<'a, u64, Chunk>>,
}

impl<'a> Iterator for Regions<'a> {
    type Item = (Range, Option<(u64, &'a Chunk)>);

    fn next(&mut self) -> Option<Self::Item> {
        let Range { start, end } = self.rest;
        if start >= end {
            return None;
        }
        let (stop, chunk) = match self.chunks.peek() {
            Some(&(&number, _)) if Chunk::range(number).start > start => (Chunk::range(number).start, None),
            Some(_) => {
                let (&number, chunk) = self.chunks.next()?;
                (Chunk::range(number).end, Some((number, chunk)))
            }
            None => (end, None),
        };
        self.rest.start = stop.min(end);
        Some((Range { start, end: stop.min(end) }, chunk))
    }
}

/// A range that is being covered with versions, newest first.
pub(super) struct Cover {
    whole: Range,
    /// What is not covered yet: start to end. A tree, since a guest may write every second byte of a chunk.
    gaps: BTreeMap<u64, u64>,
    /// What has been found, in any order.
    found: Vec<Piece>,
}

impl Cover {
    pub(super) fn new(whole: Range) -> Cover {
        Cover { whole, gaps: BTreeMap::from([(whole.start, whole.end)]), found: Vec::new() }
    }

    /// Covers with `version` what nothing newer covers.
    fn take(&mut self, version: Range, source: Source) {
        if !self.whole.overlaps(version) {
            return;
        }
        while let Some((&start, &end)) = self.gaps.range(..version.end).next_back() {
            let Some(part) = version.intersect(Range { start, end }) else { break };
            if start < part.start {
                self.gaps.insert(start, part.start);
            } else {
                self.gaps.remove(&start);
            }
            if part.end < end {
                self.gaps.insert(part.end, end);
            }
            let source = source.skip(part.start - version.start).into();
            self.found.push(Piece { extent: part.extent(), source });
        }
    }

    /// Appends the pieces in order; what is not covered is the base image's.
    pub(super) fn finish(mut self, pieces: &mut Vec<Piece>) {
        let gaps = std::mem::take(&mut self.gaps);
        self.found.extend(
            gaps.into_iter()
                .map(|(start, end)| Piece { extent: Range { start, end }.extent(), source: Origin::Base }),
        );
        self.finish_without_base(pieces);
    }

    /// Appends in order the pieces that versions cover.
    pub(super) fn finish_without_base(mut self, pieces: &mut Vec<Piece>) {
        self.found.sort_unstable_by_key(|piece| piece.extent.offset);
        self.found.into_iter().for_each(|piece| Piece::push(pieces, piece));
    }
}
