//! A set of parts of volumes: what a replica lacks, what changed while its log was not kept.
//!
//! It counts in blocks of [`BLOCK_BYTES`]: an extent that is put in covers every block it touches, one that is
//! taken out only those that it covers whole. So what the set says is missing may be more than what is, never less.
//!
//! A volume is cut into chunks of [`CHUNK_BYTES`], and a chunk that has some blocks in the set has a bitmap of 128
//! bytes, one that has them all has none. With what the map itself needs that is about 170 bytes for each chunk that
//! is touched in part and 30 for each that is touched whole: few extents cost next to nothing, a volume in which
//! each second block is in the set costs 44 MiB per tebibyte, and nothing costs more.

use crate::types::{Extent, VolumeId};
use bincode::{Decode, Encode};
use std::collections::BTreeMap;

/// The unit of the set.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit of its memory: 4 MiB.
pub const CHUNK_BYTES: u64 = BLOCK_BYTES * BLOCKS as u64;
/// Blocks in a chunk.
const BLOCKS: usize = 1024;
const WORDS: usize = BLOCKS / 64;

/// Of one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Chunk {
    /// All of its blocks.
    Full,
    /// Those whose bit is set: at least one, and not all.
    Some(Box<[u64; WORDS]>),
}

/// Blocks of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Blocks {
    chunks: BTreeMap<u64, Chunk>,
    count: u64,
}

/// Blocks of the volumes of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Extents {
    volumes: BTreeMap<VolumeId, Blocks>,
}

impl Extents {
    /// Puts an extent of a volume in.
    pub fn insert(&mut self, volume: VolumeId, extent: Extent) {
        if extent.len > 0 {
            self.volumes.entry(volume).or_default().insert(extent);
        }
    }

    /// Takes out the blocks that an extent covers whole. An extent that reaches the end of its volume covers the
    /// last block, however short that is: `size` is the volume's.
    pub fn remove(&mut self, volume: VolumeId, extent: Extent, size: u64) {
        let Some(blocks) = self.volumes.get_mut(&volume) else { return };
        blocks.remove(extent, size);
        if blocks.count == 0 {
            self.volumes.remove(&volume);
        }
    }

    /// Puts everything in that another set holds.
    pub fn add(&mut self, other: &Extents) {
        for (&volume, blocks) in &other.volumes {
            for extent in blocks.runs() {
                self.insert(volume, extent);
            }
        }
    }

    /// Forgets volumes that are not in the group any more.
    pub fn retain(&mut self, keep: impl Fn(VolumeId) -> bool) {
        self.volumes.retain(|&id, _| keep(id));
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// The bytes of its blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.volumes.values().map(|blocks| blocks.count * BLOCK_BYTES).sum()
    }

    /// The memory that it takes, in bytes, the allocator's own needs estimated.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let of = |chunk: &Chunk| match chunk {
            Chunk::Full => 30,
            Chunk::Some(_) => 30 + 8 * WORDS as u64 + 16,
        };
        self.volumes.values().flat_map(|blocks| blocks.chunks.values().map(of)).sum()
    }

    /// The first run of blocks at or behind a place, at most `max` bytes of it; `None` if there is none. The last
    /// block of a volume may reach beyond its end.
    #[must_use]
    pub fn next(&self, from: (VolumeId, u64), max: u64) -> Option<(VolumeId, Extent)> {
        let (first, offset) = from;
        self.volumes.range(first..).find_map(|(&id, blocks)| {
            let offset = if id == first { offset } else { 0 };
            blocks.next(offset, max).map(|extent| (id, extent))
        })
    }

    /// All runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = (VolumeId, Extent)> + '_ {
        self.volumes.iter().flat_map(|(&id, blocks)| blocks.runs().map(move |extent| (id, extent)))
    }
}

impl Blocks {
    fn insert(&mut self, extent: Extent) {
        let first = extent.offset / BLOCK_BYTES;
        let last = (extent.end() - 1) / BLOCK_BYTES;
        self.each_chunk(first, last + 1, |chunk, from, to| {
            let mut bits = match chunk {
                None => Box::new([0; WORDS]),
                Some(Chunk::Full) => return Some(Chunk::Full),
                Some(Chunk::Some(bits)) => bits,
            };
            set(&mut bits, from, to, true);
            Some(if bits.iter().all(|&word| word == u64::MAX) { Chunk::Full } else { Chunk::Some(bits) })
        });
    }

    fn remove(&mut self, extent: Extent, size: u64) {
        let first = extent.offset.div_ceil(BLOCK_BYTES);
        let end = if extent.end() >= size {
            extent.end().div_ceil(BLOCK_BYTES)
        } else {
            extent.end() / BLOCK_BYTES
        };
        if first >= end {
            return;
        }
        self.each_chunk(first, end, |chunk, from, to| {
            let mut bits = match chunk? {
                Chunk::Full => Box::new([u64::MAX; WORDS]),
                Chunk::Some(bits) => bits,
            };
            set(&mut bits, from, to, false);
            bits.iter().any(|&word| word != 0).then_some(Chunk::Some(bits))
        });
    }

    /// Changes each chunk that has some of the blocks `first..end`.
    fn each_chunk(
        &mut self,
        first: u64,
        end: u64,
        change: impl Fn(Option<Chunk>, usize, usize) -> Option<Chunk>,
    ) {
        let per = BLOCKS as u64;
        let mut at = first;
        while at < end {
            let index = at / per;
            let upto = end.min((index + 1) * per);
            let before = self.chunks.remove(&index);
            self.count -= before.as_ref().map_or(0, Chunk::count);
            if let Some(after) = change(before, (at % per) as usize, (upto - index * per) as usize) {
                self.count += after.count();
                self.chunks.insert(index, after);
            }
            at = upto;
        }
    }

    fn next(&self, offset: u64, max: u64) -> Option<Extent> {
        let per = BLOCKS as u64;
        let from = offset / BLOCK_BYTES;
        let start = self.chunks.range(from / per..).find_map(|(&index, chunk)| {
            let skip = if index == from / per { (from % per) as usize } else { 0 };
            (skip..BLOCKS).find(|&block| chunk.has(block)).map(|block| index * per + block as u64)
        })?;
        let most = max.div_ceil(BLOCK_BYTES).max(1);
        let mut end = start;
        while end - start < most {
            match self.chunks.get(&(end / per)) {
                Some(Chunk::Full) => end = ((end / per + 1) * per).min(start + most),
                Some(chunk) if chunk.has((end % per) as usize) => end += 1,
                _ => break,
            }
        }
        Some(Extent::new(start * BLOCK_BYTES, (end - start) * BLOCK_BYTES))
    }

    fn runs(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.next(at, u64::MAX / 2)?;
            at = run.end();
            Some(run)
        })
    }
}

impl Chunk {
    fn count(&self) -> u64 {
        match self {
            Chunk::Full => BLOCKS as u64,
            Chunk::Some(bits) => bits.iter().map(|word| u64::from(word.count_ones())).sum(),
        }
    }

    fn has(&self, block: usize) -> bool {
        match self {
            Chunk::Full => true,
            Chunk::Some(bits) => bits[block / 64] >> (block % 64) & 1 == 1,
        }
    }
}

fn set(bits: &mut [u64; WORDS], from: usize, to: usize, value: bool) {
    for (index, word) in bits.iter_mut().enumerate() {
        let (low, high) = (from.max(index * 64), to.min(index * 64 + 64));
        if low >= high {
            continue;
        }
        let mask = (u64::MAX >> (64 - (high - low))) << (low % 64);
        *word = if value { *word | mask } else { *word & !mask };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: VolumeId = VolumeId(1);

    /// Against an array of flags, with a small generator of its own.
    #[test]
    fn equals_an_array() {
        const COUNT: usize = 3 * BLOCKS + 17;
        let size = COUNT as u64 * BLOCK_BYTES - 512;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..40 {
            let mut set = Extents::default();
            let mut array = [false; COUNT];
            for _ in 0..60 {
                let offset = next(size - 1);
                let longest = if next(3) == 0 { size } else { 5 * BLOCK_BYTES };
                let extent = Extent::new(offset, 1 + next((size - offset).min(longest)));
                if next(3) > 0 {
                    set.insert(ID, extent);
                    array[(extent.offset / BLOCK_BYTES) as usize
                        ..=((extent.end() - 1) / BLOCK_BYTES) as usize]
                        .fill(true);
                } else {
                    set.remove(ID, extent, size);
                    for (block, flag) in array.iter_mut().enumerate() {
                        let whole = Extent::new(block as u64 * BLOCK_BYTES, BLOCK_BYTES);
                        let end = whole.end().min(size);
                        *flag &= !(extent.offset <= whole.offset && extent.end() >= end);
                    }
                }
                let mut seen = [false; COUNT];
                let mut last = None;
                for (_, run) in set.runs() {
                    assert!(last.is_none_or(|end| end < run.offset), "runs are in order and do not touch");
                    last = Some(run.end());
                    seen[(run.offset / BLOCK_BYTES) as usize..(run.end() / BLOCK_BYTES) as usize].fill(true);
                }
                assert_eq!(seen, array);
                let count = array.iter().filter(|&&flag| flag).count() as u64;
                assert_eq!(set.bytes(), count * BLOCK_BYTES);
                assert_eq!(set.is_empty(), count == 0);
                let (from, max) = (next(size), 1 + next(20 * BLOCK_BYTES));
                let run = set.next((ID, from), max);
                let first = (from / BLOCK_BYTES) as usize;
                let expected = (first..COUNT).find(|&block| array[block]).map(|start| {
                    let most = max.div_ceil(BLOCK_BYTES) as usize;
                    let len = array[start..].iter().take(most).take_while(|&&flag| flag).count();
                    (ID, Extent::new(start as u64 * BLOCK_BYTES, len as u64 * BLOCK_BYTES))
                });
                assert_eq!(run, expected);
            }
        }
    }

    /// The bounds that the module names.
    #[test]
    fn memory_stays_within_its_bounds() {
        const TIB: u64 = 1 << 40;
        let mut few = Extents::default();
        (0..10_000).for_each(|at| few.insert(ID, Extent::new(at * (TIB / 10_000), 4096)));
        assert!(few.memory() < 2 << 20, "10,000 extents over a tebibyte take {} bytes", few.memory());
        let mut whole = Extents::default();
        whole.insert(ID, Extent::new(0, TIB));
        assert!(whole.memory() < 8 << 20);
        let mut worst = Extents::default();
        (0..TIB / 8192 / 16).for_each(|at| worst.insert(ID, Extent::new(at * 8192, 1)));
        assert!(worst.memory() * 16 <= 44 << 20, "each second block takes {} bytes", worst.memory() * 16);
    }
}
