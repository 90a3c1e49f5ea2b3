//! One file or block device: what its readers see, what the platter surely holds, and what may or may not have
//! reached it.
//!
//! - `cached` is what reads return; it survives the process.
//! - `stable` is what a power cut cannot take: the state of the last successful sync.
//! - a sector in `dirty` was written since then; at a power cut it is, on its own, any version that it has had
//!   since the last sync (the disk may have written it back at any time).
//! - a sector in `limbo` was dirty when a sync failed: it is marked clean as a kernel does it, so that no later
//!   sync writes it, and no later sync proves anything about it. Only a new write to it makes it dirty again.
//! - a length set since the last sync survives, or does not, as a whole; what is cut off by a shorter one and
//!   exposed by a longer one reads as zeros.

use super::content::{Content, PAGE, PAGE_SECTORS, SECTOR, Sector, sectors_of};
use super::fate::Fate;
use std::collections::BTreeMap;

/// How many overwritten versions of an unsynced sector are remembered as possible survivors.
const VERSIONS_MAX: usize = 4;
/// How many unsynced lengths of a file are remembered as possible survivors.
const LENGTHS_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    /// Of a fixed size; its name does not depend on a folder's sync.
    Device,
}

#[derive(Clone, Copy, Debug)]
struct Length {
    len: u64,
    /// The shortest length since the last sync up to this one: what lay beyond reads as zeros.
    low: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) len: u64,
    /// Bytes from the start whose space is reserved.
    pub(super) reserved: u64,
    cached: Content,
    stable: Content,
    stable_len: u64,
    dirty: BTreeMap<u64, u32>,
    limbo: BTreeMap<u64, u32>,
    versions: BTreeMap<u64, Vec<Sector>>,
    lengths: Vec<Length>,
    lengths_limbo: bool,
}

impl Inode {
    pub(super) fn new(kind: Kind, len: u64) -> Inode {
        Inode {
            kind,
            len,
            reserved: 0,
            cached: Content::default(),
            stable: Content::default(),
            stable_len: len,
            dirty: BTreeMap::new(),
            limbo: BTreeMap::new(),
            versions: BTreeMap::new(),
            lengths: Vec::new(),
            lengths_limbo: false,
        }
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        self.cached.read(buf, offset);
    }

    /// The first so many bytes.
    pub(super) fn bytes(&self, len: u64) -> Vec<u8> {
        self.cached.bytes(len)
    }

    pub(super) fn sector(&self, sector: u64) -> &Sector {
        self.cached.sector(sector)
    }

    /// The bytes that a power cut cannot take, to the stable length.
    pub(super) fn stable(&self) -> (&Content, u64) {
        (&self.stable, self.stable_len)
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        self.touch(offset, end);
        self.cached.write(bytes, offset);
        if end > self.len {
            self.set_len(end);
        }
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut pages: Vec<u64> =
            self.cached.pages_from(offset / PAGE).take_while(|page| page * PAGE < end).collect();
        pages.extend(self.stable.pages_from(offset / PAGE).take_while(|page| page * PAGE < end));
        pages.extend(
            self.dirty.range(offset / PAGE..).map(|(page, _)| *page).take_while(|page| page * PAGE < end),
        );
        pages.sort_unstable();
        pages.dedup();
        for page in pages {
            self.touch(offset.max(page * PAGE), end.min((page + 1) * PAGE));
        }
        if offset < end {
            self.cached.zero(offset, end - offset);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.cached.zero(len, u64::MAX - len);
        }
        self.len = len;
        if self.lengths.len() == LENGTHS_MAX {
            self.lengths.remove(LENGTHS_MAX / 2);
        }
        self.lengths.push(Length { len, low: len.min(self.low()) });
    }

    /// A sync that succeeds: what is dirty, and the length, become stable; what is in limbo does not.
    pub(super) fn sync(&mut self) {
        if !self.lengths_limbo {
            if self.low() < self.stable_len {
                self.stable.zero(self.low(), u64::MAX - self.low());
            }
            self.lengths.clear();
            self.stable_len = self.len;
        }
        for (page, mask) in std::mem::take(&mut self.dirty) {
            self.stable.take_page(page, mask, &self.cached);
            if !self.versions.is_empty() {
                sectors_of(page, mask).for_each(|sector| drop(self.versions.remove(&sector)));
            }
        }
    }

    /// A sync that fails: everything unsynced is marked clean, whatever the platter holds.
    pub(super) fn sync_failed(&mut self) {
        for (page, mask) in std::mem::take(&mut self.dirty) {
            *self.limbo.entry(page).or_default() |= mask;
        }
        self.lengths_limbo |= !self.lengths.is_empty();
    }

    /// The page cache forgets what it believes to be clean: of the sectors in limbo, what the platter holds
    /// shows now.
    pub(super) fn evict(&mut self, fate: &mut dyn Fate) {
        for (page, mask) in std::mem::take(&mut self.limbo) {
            for sector in sectors_of(page, mask) {
                let survivor = self.survivor(sector, self.stable.sector(sector), fate);
                self.versions.remove(&sector);
                self.cached.set_sector(sector, &survivor);
                self.stable.set_sector(sector, &survivor);
            }
        }
        self.cached.zero(self.len, u64::MAX - self.len);
    }

    /// A power cut: settles what of the unsynced has survived.
    pub(super) fn power_cut(&mut self, fate: &mut dyn Fate) {
        let lengths = std::mem::take(&mut self.lengths);
        let mut candidates = vec![Length { len: self.stable_len, low: self.stable_len }];
        candidates.extend(lengths);
        candidates.dedup_by_key(|length| (length.len, length.low));
        let chosen = candidates[fate.pick(candidates.len())];

        let mut survived = self.stable.clone();
        if chosen.low < self.stable_len {
            survived.zero(chosen.low, u64::MAX - chosen.low);
        }
        let mut unsynced = std::mem::take(&mut self.dirty);
        for (page, mask) in std::mem::take(&mut self.limbo) {
            *unsynced.entry(page).or_default() |= mask;
        }
        for (page, mask) in unsynced {
            for sector in sectors_of(page, mask).take_while(|sector| sector * (SECTOR as u64) < chosen.len) {
                let survivor = self.survivor(sector, survived.sector(sector), fate);
                survived.set_sector(sector, &survivor);
            }
        }
        survived.zero(chosen.len, u64::MAX - chosen.len);
        self.versions.clear();
        self.lengths_limbo = false;
        self.len = chosen.len;
        self.stable_len = chosen.len;
        self.cached = survived.clone();
        self.stable = survived;
    }

    /// Whether a sector was written since the last sync, or its sync failed.
    pub(super) fn is_unsynced(&self, sector: u64) -> bool {
        let bit = 1 << (sector % PAGE_SECTORS);
        [&self.dirty, &self.limbo]
            .iter()
            .any(|masks| masks.get(&(sector / PAGE_SECTORS)).is_some_and(|mask| mask & bit != 0))
    }

    /// The number of sectors whose fate is open.
    pub(super) fn unsynced_sectors(&self) -> u64 {
        self.dirty.values().chain(self.limbo.values()).map(|mask| u64::from(mask.count_ones())).sum()
    }

    /// The first stretch of pages with data at or after a byte.
    pub(super) fn next_data(&self, offset: u64) -> Option<(u64, u64)> {
        if offset >= self.len {
            return None;
        }
        let mut pages = self.cached.pages_from(offset / PAGE);
        let first = pages.next().filter(|page| page * PAGE < self.len)?;
        let run = pages.zip(first + 1..).take_while(|(page, expected)| page == expected).count() as u64;
        Some((offset.max(first * PAGE), ((first + run + 1) * PAGE).min(self.len)))
    }

    /// Pages that the file takes from the disk's space.
    pub(super) fn charge(&self) -> u64 {
        let reserved = self.reserved.div_ceil(PAGE);
        reserved + self.cached.pages_from(reserved).count() as u64
    }

    /// Pages that a write would take in addition.
    pub(super) fn would_charge(&self, offset: u64, len: u64) -> u64 {
        let first = (offset / PAGE).max(self.reserved.div_ceil(PAGE));
        (first..(offset + len).div_ceil(PAGE)).filter(|page| !self.cached.has_page(*page)).count() as u64
    }

    /// Sectors that hold data and are synced.
    pub(super) fn settled_sectors(&self) -> Vec<u64> {
        let all = self.stable.pages_from(0).flat_map(|page| sectors_of(page, u32::MAX));
        all.filter(|sector| sector * (SECTOR as u64) < self.stable_len && !self.is_unsynced(*sector))
            .collect()
    }

    fn low(&self) -> u64 {
        self.lengths.last().map_or(self.stable_len, |length| length.low)
    }

    /// Marks the sectors of a range dirty, remembering what an earlier unsynced write left there.
    fn touch(&mut self, offset: u64, end: u64) {
        if offset >= end {
            return;
        }
        let mut sector = offset / SECTOR as u64;
        let last = (end - 1) / SECTOR as u64;
        while sector <= last {
            let page = sector / PAGE_SECTORS;
            let from = sector % PAGE_SECTORS;
            let to = (last - page * PAGE_SECTORS).min(PAGE_SECTORS - 1);
            let mask = (u32::MAX >> (PAGE_SECTORS - 1 - (to - from))) << from;
            let dirty = self.dirty.entry(page).or_default();
            let limbo = self.limbo.get(&page).copied().unwrap_or(0);
            let again = (*dirty | limbo) & mask;
            *dirty |= mask;
            if limbo & mask != 0 {
                self.limbo.insert(page, limbo & !mask);
            }
            for sector in sectors_of(page, again) {
                let versions = self.versions.entry(sector).or_default();
                if versions.len() == VERSIONS_MAX {
                    versions.remove(0);
                }
                versions.push(*self.cached.sector(sector));
            }
            sector = page * PAGE_SECTORS + to + 1;
        }
    }

    fn survivor(&self, sector: u64, old: &Sector, fate: &mut dyn Fate) -> Sector {
        // Newest last, so that a fate that always picks the last keeps everything.
        let mut candidates = vec![old];
        candidates.extend(self.versions.get(&sector).into_iter().flatten());
        candidates.push(self.cached.sector(sector));
        candidates.dedup();
        *candidates[fate.pick(candidates.len())]
    }
}
