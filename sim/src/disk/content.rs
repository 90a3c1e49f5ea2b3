//! The bytes of a file, sparse and cheap to copy.
//!
//! Pages are shared between copies until one of them is written, so that a whole disk can be forked at every
//! crash point. A page that is not there is a hole and reads as zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a sector, as a length.
pub(super) const SECTOR: usize = engine::io::SECTOR as usize;
/// Sectors of a page: one bit each in the masks of unsynced sectors.
pub(super) const PAGE_SECTORS: u64 = 32;
/// Bytes of a page, which is also the unit of space.
pub(super) const PAGE: u64 = PAGE_SECTORS * engine::io::SECTOR;

/// The bytes of one sector.
pub(super) type Sector = [u8; SECTOR];

const ZERO_SECTOR: Sector = [0; SECTOR];

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

/// The pieces of a range, one for each page: (page, first byte in it, number of bytes).
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (page, within) = (at / PAGE, at % PAGE);
        let take = (PAGE - within).min(end.checked_sub(at)?);
        at += take;
        (take > 0).then_some((page, within as usize, take as usize))
    })
}

impl Content {
    pub(super) fn read(&self, mut buf: &mut [u8], offset: u64) {
        for (page, within, take) in pieces(offset, buf.len() as u64) {
            let (piece, rest) = buf.split_at_mut(take);
            match self.pages.get(&page) {
                Some(bytes) => piece.copy_from_slice(&bytes[within..within + take]),
                None => piece.fill(0),
            }
            buf = rest;
        }
    }

    /// The first so many bytes.
    pub(super) fn bytes(&self, len: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len as usize);
        for (page, _, take) in pieces(0, len) {
            match self.pages.get(&page) {
                Some(page) => bytes.extend_from_slice(&page[..take]),
                None => bytes.resize(bytes.len() + take, 0),
            }
        }
        bytes
    }

    pub(super) fn write(&mut self, mut bytes: &[u8], offset: u64) {
        for (page, within, take) in pieces(offset, bytes.len() as u64) {
            let (piece, rest) = bytes.split_at(take);
            let target = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(target)[within..within + take].copy_from_slice(piece);
            bytes = rest;
        }
    }

    /// Zeros a range; whole pages become holes.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        if end == offset {
            return;
        }
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE..=(end - 1) / PAGE).map(|(page, _)| *page).collect();
        for page in touched {
            let from = offset.max(page * PAGE) - page * PAGE;
            let to = end.min(page * PAGE + PAGE) - page * PAGE;
            if to - from == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[from as usize..to as usize].fill(0);
            }
        }
    }

    pub(super) fn sector(&self, sector: u64) -> &Sector {
        let within = (sector % PAGE_SECTORS) as usize;
        self.pages.get(&(sector / PAGE_SECTORS)).map_or(&ZERO_SECTOR, |bytes| &bytes.as_chunks().0[within])
    }

    pub(super) fn set_sector(&mut self, sector: u64, bytes: &Sector) {
        if self.pages.contains_key(&(sector / PAGE_SECTORS)) || *bytes != ZERO_SECTOR {
            self.write(bytes, sector * SECTOR as u64);
        }
    }

    /// Takes the sectors of a page that `mask` names from `from`; a page taken whole is shared.
    pub(super) fn take_page(&mut self, page: u64, mask: u32, from: &Content) {
        match (from.pages.get(&page), mask) {
            (Some(bytes), u32::MAX) => {
                self.pages.insert(page, Arc::clone(bytes));
            }
            (None, u32::MAX) => {
                self.pages.remove(&page);
            }
            _ => sectors_of(page, mask).for_each(|sector| self.set_sector(sector, from.sector(sector))),
        }
    }

    pub(super) fn has_page(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// The pages at or after one that are not holes.
    pub(super) fn pages_from(&self, page: u64) -> impl Iterator<Item = u64> + '_ {
        self.pages.range(page..).map(|(page, _)| *page)
    }
}

/// The sectors of a page that a mask names.
pub(super) fn sectors_of(page: u64, mask: u32) -> impl Iterator<Item = u64> {
    (0..PAGE_SECTORS).filter(move |bit| mask & (1 << bit) != 0).map(move |bit| page * PAGE_SECTORS + bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_across_pages_and_zeros_elsewhere() {
        let mut content = Content::default();
        content.write(&[7; 1_000], PAGE - 500);
        let copy = content.clone();
        content.zero(PAGE - 10, 20);
        let mut buf = [1; 1_020];
        content.read(&mut buf, PAGE - 510);
        let expected: Vec<u8> = [vec![0; 10], vec![7; 490], vec![0; 20], vec![7; 490], vec![0; 10]].concat();
        assert_eq!(buf[..], expected[..]);
        copy.read(&mut buf, PAGE - 510);
        assert!(buf[10..1_010].iter().all(|byte| *byte == 7), "a copy does not change with its original");
        content.zero(0, u64::MAX);
        assert!(!content.has_page(0) && !content.has_page(1));
    }
}
