//! What should be true: plain arrays of bytes, and the list of operations that made them.
//!
//! - It shares no code and no type with the engine. It knows nothing of logs: only what guests asked for, in which
//!   order it took effect, and what they were told.
//! - The check is exact: an image is the state after some number of operations, bit for bit over all volumes of
//!   the group, or it is wrong. A hash finds the candidates, the bytes decide.
//! - What has to survive follows from the answers alone: after a power cut everything up to the last operation
//!   that was answered before an answered flush was submitted, and each answered FUA write with all before it;
//!   after a killed process every answered write.
//!
//! Operations that are in flight at the same time may take effect in any order, and which one it was is the
//! engine's choice: [`Reference::explain`] searches it, [`Reference::check`] takes the order of submission, which
//! is what an engine gives that numbers requests as they come.

mod search;

pub use search::Explanation;

use crate::hash::Hash64;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const SECTOR: usize = 512;
/// A copy of the state is kept at every so many operations, to rebuild any state quickly.
const KEYFRAME_EVERY: usize = 256;

/// What an operation does to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bytes are written.
    Write(Bytes),
    /// So many bytes become zeros.
    Zeros(u64),
}

/// An operation on one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Index of the volume in the group.
    pub volume: usize,
    /// First byte.
    pub offset: u64,
    /// What happens there.
    pub effect: Effect,
}

impl Operation {
    /// Behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len()
    }

    pub(crate) fn len(&self) -> u64 {
        match &self.effect {
            Effect::Write(bytes) => bytes.len() as u64,
            Effect::Zeros(len) => *len,
        }
    }

    /// Whether it changes whole sectors only.
    pub(crate) fn is_aligned(&self) -> bool {
        (self.offset | self.len()).is_multiple_of(SECTOR as u64)
    }

    /// Does to a stretch of a volume what it does there; whether they meet at all.
    fn overlay(&self, volume: usize, offset: u64, bytes: &mut [u8]) -> bool {
        let from = self.offset.max(offset);
        let to = self.end().min(offset + bytes.len() as u64);
        if self.volume != volume || from >= to {
            return false;
        }
        let target = &mut bytes[(from - offset) as usize..(to - offset) as usize];
        match &self.effect {
            Effect::Write(data) => {
                let skip = (from - self.offset) as usize;
                target.copy_from_slice(&data[skip..skip + target.len()]);
            }
            Effect::Zeros(_) => target.fill(0),
        }
        true
    }

    pub(crate) fn apply(&self, image: &mut Image) {
        let range = self.offset as usize..(self.offset + self.len()) as usize;
        let target = &mut image[self.volume][range];
        match &self.effect {
            Effect::Write(bytes) => target.copy_from_slice(bytes),
            Effect::Zeros(_) => target.fill(0),
        }
    }
}

/// The bytes of all volumes of a group.
pub type Image = Vec<Vec<u8>>;

/// Names an operation: its number in the order of submission, from 0, for the whole life of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// Names a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushId(u64);

/// A number of operations from the start: a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(pub u64);

/// How the writer died, which decides what it may have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The program alone: nothing that was answered is lost.
    Process,
    /// The machine: nothing that an answered flush covers is lost.
    Power,
}

/// Why an image is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is no state that there ever was.
    #[error("the image is no prefix of the operations: {0}")]
    NoPrefix(Mixture),
    /// It is an earlier or later state than the promises allow.
    #[error("the image is the state after {found} operations, but has to be one of {min} to {max}")]
    OutOfRange {
        /// The nearest state that it is.
        found: Prefix,
        /// The earliest that is allowed.
        min: Prefix,
        /// The latest that is allowed.
        max: Prefix,
    },
    /// Its volumes have other sizes.
    #[error("the image has volumes of {found:?} bytes instead of {expected:?}")]
    Sizes {
        /// What there is.
        found: Vec<u64>,
        /// What there should be.
        expected: Vec<u64>,
    },
}

/// How an image mixes states, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// The state that differs in the fewest sectors.
    pub nearest: Prefix,
    /// The sectors that differ from that, as volume and number; at most ten.
    pub sectors: Vec<(usize, u64)>,
    /// How many there are.
    pub count: usize,
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nearest is that after {}, {} sectors differ:", self.nearest, self.count)?;
        self.sectors.iter().try_for_each(|(volume, sector)| write!(f, " {volume}:{sector}"))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug)]
struct Entry {
    operation: Operation,
    /// The number of answers given before it was submitted, and the number of its own answer.
    submitted: u64,
    answered: Option<u64>,
    fua: bool,
}

/// The reference of one consistency group.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The state before the first operation that is still known.
    base: Prefix,
    entries: Vec<Entry>,
    /// `hashes[i]` is the hash of the state after `i` known operations.
    hashes: Vec<u64>,
    keyframes: BTreeMap<usize, Image>,
    current: Image,
    sector_hashes: Vec<Vec<u64>>,
    answers: u64,
    flushes: BTreeMap<FlushId, Prefix>,
    next_flush: u64,
    /// What no power cut may take any more.
    flushed: Prefix,
}

fn sector_hash(volume: usize, sector: usize, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let mut hash = Hash64::default();
    hash.word((volume as u64) << 48 | sector as u64);
    hash.bytes(bytes);
    hash.value()
}

impl Reference {
    /// A group whose volumes have these bytes.
    #[must_use]
    pub fn new(image: Image) -> Reference {
        let sector_hashes: Vec<Vec<u64>> = image
            .iter()
            .enumerate()
            .map(|(volume, bytes)| {
                bytes.chunks(SECTOR).enumerate().map(|(at, sector)| sector_hash(volume, at, sector)).collect()
            })
            .collect();
        let hash = sector_hashes.iter().flatten().fold(0, |sum, hash| sum ^ hash);
        Reference {
            base: Prefix(0),
            entries: Vec::new(),
            hashes: vec![hash],
            keyframes: BTreeMap::from([(0, image.clone())]),
            current: image,
            sector_hashes,
            answers: 0,
            flushes: BTreeMap::new(),
            next_flush: 0,
            flushed: Prefix(0),
        }
    }

    /// A group of empty volumes of these sizes in bytes.
    #[must_use]
    pub fn empty(sizes: &[u64]) -> Reference {
        Reference::new(sizes.iter().map(|size| vec![0; *size as usize]).collect())
    }

    // -- what guests do and hear

    /// An operation takes effect (it is accepted, and not answered yet). It must lie within its volume.
    pub fn submit(&mut self, operation: Operation, fua: bool) -> OpId {
        let id = OpId(self.end().0);
        let size = self.current[operation.volume].len() as u64;
        let fits = operation.offset.checked_add(operation.len()).is_some_and(|end| end <= size);
        assert!(fits, "an operation that cannot succeed was submitted: {} of {size}", operation.offset);
        if operation.len() > 0 {
            operation.apply(&mut self.current);
            let first = operation.offset as usize / SECTOR;
            let last = (operation.offset + operation.len() - 1) as usize / SECTOR;
            let mut hash = self.hashes[self.entries.len()];
            for sector in first..=last {
                let volume = &self.current[operation.volume];
                let bytes = &volume[sector * SECTOR..((sector + 1) * SECTOR).min(volume.len())];
                let new = sector_hash(operation.volume, sector, bytes);
                let old = std::mem::replace(&mut self.sector_hashes[operation.volume][sector], new);
                hash ^= old ^ new;
            }
            self.hashes.push(hash);
        } else {
            self.hashes.push(self.hashes[self.entries.len()]);
        }
        self.entries.push(Entry { operation, submitted: self.answers, answered: None, fua });
        if self.entries.len().is_multiple_of(KEYFRAME_EVERY) {
            self.keyframes.insert(self.entries.len(), self.current.clone());
        }
        id
    }

    /// A success is reported for an operation.
    pub fn answer(&mut self, id: OpId) {
        self.answers += 1;
        // One that a power cut has taken meanwhile is nobody's business any more.
        let Some(index) = id.0.checked_sub(self.base.0) else { return };
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        assert!(entry.answered.is_none(), "operation {} was answered twice", id.0);
        entry.answered = Some(self.answers);
        if entry.fua {
            self.flushed = self.flushed.max(Prefix(id.0 + 1));
        }
    }

    /// A flush is submitted.
    pub fn submit_flush(&mut self) -> FlushId {
        let id = FlushId(self.next_flush);
        self.next_flush += 1;
        let covers = self.answered_end();
        self.flushes.insert(id, covers);
        id
    }

    /// A flush is reported to have succeeded.
    pub fn answer_flush(&mut self, id: FlushId) {
        self.answers += 1;
        if let Some(covers) = self.flushes.remove(&id) {
            self.flushed = self.flushed.max(covers);
        }
    }

    /// A flush is refused, or its client is gone.
    pub fn forget_flush(&mut self, id: FlushId) {
        self.flushes.remove(&id);
    }

    // -- what should be true

    /// The state after everything that took effect.
    #[must_use]
    pub fn current(&self) -> &Image {
        &self.current
    }

    /// The number of operations that took effect.
    #[must_use]
    pub fn end(&self) -> Prefix {
        Prefix(self.base.0 + self.entries.len() as u64)
    }

    /// The oldest state that is still known.
    #[must_use]
    pub fn start(&self) -> Prefix {
        self.base
    }

    /// The earliest state that may be found after a death of the writer.
    #[must_use]
    pub fn must_survive(&self, death: Death) -> Prefix {
        match death {
            Death::Power => self.flushed,
            Death::Process => self.answered_end().max(self.flushed),
        }
    }

    /// The state after `prefix` operations. Must be known.
    #[must_use]
    pub fn state(&self, prefix: Prefix) -> Image {
        let index = self.index(prefix).unwrap_or_else(|| panic!("the state after {prefix} is not known"));
        let (at, image) = self.keyframes.range(..=index).next_back().expect("there is one at the start");
        let mut image = image.clone();
        self.entries[*at..index].iter().for_each(|entry| entry.operation.apply(&mut image));
        image
    }

    /// Whether an image is the state after `prefix` operations, bit for bit, without a copy of that state: each sector
    /// is compared with the last operation on it, or with the copy that is kept. Must be known.
    #[must_use]
    pub fn is_state(&self, prefix: Prefix, image: &Image) -> bool {
        let index = self.index(prefix).unwrap_or_else(|| panic!("the state after {prefix} is not known"));
        let (at, start) = self.keyframes.range(..=index).next_back().expect("there is one at the start");
        let since = &self.entries[*at..index];
        if !since.iter().all(|entry| entry.operation.is_aligned()) {
            return self.state(prefix) == *image;
        }
        if image.len() != start.len() || image.iter().zip(start).any(|(a, b)| a.len() != b.len()) {
            return false;
        }
        let mut seen: Vec<Vec<bool>> =
            start.iter().map(|bytes| vec![false; bytes.len().div_ceil(SECTOR)]).collect();
        for entry in since.iter().rev() {
            let Operation { volume, offset, effect } = &entry.operation;
            let (first, count) = (*offset as usize / SECTOR, entry.operation.len() as usize / SECTOR);
            for (sector, seen) in seen[*volume][first..first + count].iter_mut().enumerate() {
                if std::mem::replace(seen, true) {
                    continue;
                }
                let bytes = &image[*volume][(first + sector) * SECTOR..][..SECTOR];
                let equal = match effect {
                    Effect::Write(data) => *bytes == data[sector * SECTOR..][..SECTOR],
                    Effect::Zeros(_) => bytes.iter().all(|byte| *byte == 0),
                };
                if !equal {
                    return false;
                }
            }
        }
        seen.iter().zip(image.iter().zip(start)).all(|(seen, (image, start))| {
            let mut sectors = seen.iter().zip(image.chunks(SECTOR).zip(start.chunks(SECTOR)));
            sectors.all(|(seen, (image, start))| *seen || image == start)
        })
    }

    /// The bytes of a range of a volume in the state after `prefix` operations. Must be known.
    #[must_use]
    pub fn range(&self, prefix: Prefix, volume: usize, offset: u64, len: u64) -> Vec<u8> {
        let index = self.index(prefix).unwrap_or_else(|| panic!("the state after {prefix} is not known"));
        let (at, image) = self.keyframes.range(..=index).next_back().expect("there is one at the start");
        let mut bytes = image[volume][offset as usize..(offset + len) as usize].to_vec();
        for entry in &self.entries[*at..index] {
            entry.operation.overlay(volume, offset, &mut bytes);
        }
        bytes
    }

    /// Which states an image is, latest first: more than one if operations changed nothing. Empty if it is none.
    #[must_use]
    pub fn prefixes_of(&self, image: &Image) -> Vec<Prefix> {
        let hash = hash_image(image);
        let mut exact: Option<(u64, bool)> = None;
        let candidates = (0..self.hashes.len()).rev().filter(|index| self.hashes[*index] == hash);
        candidates
            .map(|index| Prefix(self.base.0 + index as u64))
            .filter(|prefix| {
                // Equal hashes one after the other mean that nothing was changed in between; compare once.
                let equal = match exact {
                    Some((next, equal)) if next == prefix.0 + 1 => equal,
                    _ => self.state(*prefix) == *image,
                };
                exact = Some((prefix.0, equal));
                equal
            })
            .collect()
    }

    /// Whether an image is exactly a state within `min..=max`, and which (the latest).
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn check(&self, image: &Image, min: Prefix, max: Prefix) -> Result<Prefix, Wrong> {
        let sizes = |image: &Image| image.iter().map(|volume| volume.len() as u64).collect::<Vec<_>>();
        if sizes(image) != sizes(&self.current) {
            return Err(Wrong::Sizes { found: sizes(image), expected: sizes(&self.current) });
        }
        let found = self.prefixes_of(image);
        if let Some(prefix) = found.iter().find(|prefix| (min..=max).contains(prefix)) {
            return Ok(*prefix);
        }
        match found.iter().min_by_key(|prefix| prefix.0.abs_diff(min.0).min(prefix.0.abs_diff(max.0))) {
            Some(found) => Err(Wrong::OutOfRange { found: *found, min, max }),
            None => Err(Wrong::NoPrefix(self.mixture(image))),
        }
    }

    /// [`Reference::check`] for an image found after a death of the writer.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn check_survivor(&self, image: &Image, death: Death) -> Result<Prefix, Wrong> {
        self.check(image, self.must_survive(death), self.end())
    }

    /// Whether a read may return these bytes, if operations up to `from` had been answered when it was submitted:
    /// it shows one state from then to now.
    #[must_use]
    pub fn may_read(&self, volume: usize, offset: u64, bytes: &[u8], from: Prefix) -> bool {
        let range = offset as usize..offset as usize + bytes.len();
        self.current[volume][range] == *bytes
            || self.versions(volume, offset, bytes.len() as u64, from).iter().any(|version| version == bytes)
    }

    /// What a range of a volume has held from the state `from` to now, oldest first.
    #[must_use]
    pub fn versions(&self, volume: usize, offset: u64, len: u64, from: Prefix) -> Vec<Vec<u8>> {
        let Some(first) = self.index(from) else { return Vec::new() };
        let (start, end) = (offset as usize, (offset + len) as usize);
        let (at, image) = self.keyframes.range(..=first).next_back().expect("there is one at the start");
        let mut bytes = image[volume][start..end].to_vec();
        let mut versions = Vec::new();
        for (index, entry) in self.entries.iter().enumerate().skip(*at) {
            if index == first {
                versions.push(bytes.clone());
            }
            if !entry.operation.overlay(volume, offset, &mut bytes) {
                continue;
            }
            if index >= first {
                versions.push(bytes.clone());
            }
        }
        if first == self.entries.len() {
            versions.push(bytes);
        }
        versions
    }

    // -- how history goes on

    /// After a death: the state is that after `prefix`, and what followed never happened. Whatever is left counts
    /// as answered, for nobody can tell it from what was.
    pub fn rewind(&mut self, prefix: Prefix) {
        let index = self.index(prefix).unwrap_or_else(|| panic!("the state after {prefix} is not known"));
        self.current = self.state(prefix);
        self.entries.truncate(index);
        self.hashes.truncate(index + 1);
        self.keyframes.split_off(&(index + 1));
        for (volume, hashes) in self.sector_hashes.iter_mut().enumerate() {
            for (sector, (hash, bytes)) in
                hashes.iter_mut().zip(self.current[volume].chunks(SECTOR)).enumerate()
            {
                *hash = sector_hash(volume, sector, bytes);
            }
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.answered.is_none()) {
            self.answers += 1;
            entry.answered = Some(self.answers);
        }
        self.flushes.clear();
        self.flushed = self.flushed.min(prefix);
    }

    /// Forgets the states before `prefix`, to bound memory. May keep some.
    pub fn forget(&mut self, prefix: Prefix) {
        let Some(index) = self.index(prefix) else { return };
        let Some(at) = self.keyframes.range(..=index).next_back().map(|(at, _)| *at).filter(|at| *at > 0)
        else {
            return;
        };
        if self.entries[..at].iter().any(|entry| entry.answered.is_none()) {
            return;
        }
        self.base.0 += at as u64;
        self.entries.drain(..at);
        self.hashes.drain(..at);
        self.keyframes =
            self.keyframes.split_off(&at).into_iter().map(|(key, image)| (key - at, image)).collect();
    }

    fn index(&self, prefix: Prefix) -> Option<usize> {
        prefix
            .0
            .checked_sub(self.base.0)
            .map(|index| index as usize)
            .filter(|index| *index <= self.entries.len())
    }

    /// Behind the last operation that was answered.
    fn answered_end(&self) -> Prefix {
        let answered = self.entries.iter().rposition(|entry| entry.answered.is_some());
        Prefix(self.base.0 + answered.map_or(0, |index| index as u64 + 1))
    }

    fn mixture(&self, image: &Image) -> Mixture {
        let mut state = self.keyframes[&0].clone();
        let mut differing: BTreeSet<(usize, u64)> = BTreeSet::new();
        let differs = |state: &Image, volume: usize, sector: usize| {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(state[volume].len());
            state[volume][range.clone()] != image[volume][range]
        };
        for (volume, bytes) in state.iter().enumerate() {
            let sectors = 0..bytes.len().div_ceil(SECTOR);
            differing.extend(sectors.filter(|at| differs(&state, volume, *at)).map(|at| (volume, at as u64)));
        }
        let mut best = (self.base, differing.clone());
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.operation.len() > 0) {
            let Operation { volume, offset, .. } = entry.operation;
            entry.operation.apply(&mut state);
            for sector in offset / 512..(offset + entry.operation.len()).div_ceil(512) {
                if differs(&state, volume, sector as usize) {
                    differing.insert((volume, sector));
                } else {
                    differing.remove(&(volume, sector));
                }
            }
            if differing.len() <= best.1.len() {
                best = (Prefix(self.base.0 + index as u64 + 1), differing.clone());
            }
        }
        let count = best.1.len();
        Mixture { nearest: best.0, sectors: best.1.into_iter().take(10).collect(), count }
    }
}

fn hash_image(image: &Image) -> u64 {
    image
        .iter()
        .enumerate()
        .flat_map(|(volume, bytes)| {
            bytes.chunks(SECTOR).enumerate().map(move |(at, sector)| sector_hash(volume, at, sector))
        })
        .fold(0, |sum, hash| sum ^ hash)
}

#[cfg(test)]
mod tests;
