//! Reading a branch: the records that a promotion or an old primary's return left beside the main line.
//!
//! A branch has no list of its own. Its records stand behind the place where it left the line, in the file of that
//! place, and in files that begin where another of them ends: the chain tells which, as everywhere. Headers are all
//! that is read.

use super::Log;
use super::chain::Tip;
use super::format::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use super::scan::{Depth, Scan};
use super::ship::ReadError;
use crate::event::Kind;
use crate::io::File;
use crate::state::{Branch, Gap};
use crate::types::{Checksum, Epoch, Incarnation, Lsn};
use std::sync::Arc;

/// A file that may hold some of it.
struct Holder {
    slot: u32,
    file: Arc<dyn File>,
    header: SegmentHeader,
}

/// A branch to be read; without the log, which may go on meanwhile: its files stay open.
pub struct BranchReader {
    branch: Branch,
    /// Those kept for branches first.
    holders: Vec<Holder>,
    gaps: Vec<Gap>,
    seed: Seed,
}

impl Log {
    /// A branch, for reading. `gaps` are those on record.
    #[must_use]
    pub fn branch(&self, branch: &Branch, gaps: &[Gap]) -> BranchReader {
        let fits = |header: &SegmentHeader| header.epoch <= branch.epoch && header.first <= branch.last;
        let holders = self.branches.iter().chain(self.line.iter().rev()).filter(|of| fits(&of.header));
        let holders = holders.map(|of| Holder { slot: of.slot, file: of.file.clone(), header: of.header });
        BranchReader { branch: *branch, holders: holders.collect(), gaps: gaps.to_vec(), seed: self.seed }
    }
}

impl BranchReader {
    /// Shows the header of each record of the branch, in order. Returns the last LSN that was found: below the branch's
    /// last if something of it is gone or cannot be read.
    ///
    /// # Errors
    /// Of the files.
    pub fn run(&self, mut visit: impl FnMut(&Header)) -> Result<Lsn, ReadError> {
        let mut here = (self.branch.after.lsn, self.branch.after.checksum);
        while here.0 < self.branch.last {
            // Branches that left the line at one record may go on differently there.
            let fits =
                |gap: &&Gap| (gap.after.lsn, gap.after.checksum) == here && gap.to.epoch <= self.branch.epoch;
            if let Some(gap) = self.gaps.iter().filter(fits).max_by_key(|gap| gap.to.epoch) {
                here = (gap.to.lsn, gap.to.checksum);
                continue;
            }
            let before = here;
            for holder in &self.holders {
                here = self.read_on(holder, here, &mut visit)?;
                if here != before {
                    break;
                }
            }
            if here == before {
                break;
            }
        }
        Ok(here.0)
    }

    /// Shows what stands in a file behind a record; returns the last record shown, or that one.
    fn read_on(
        &self,
        holder: &Holder,
        here: (Lsn, Checksum),
        visit: &mut impl FnMut(&Header),
    ) -> Result<(Lsn, Checksum), ReadError> {
        let begins = holder.header.first == here.0.next() && holder.header.previous == here.1;
        if !begins && holder.header.first > here.0 {
            return Ok(here);
        }
        let Some(start) = self.start_of(holder)? else { return Ok(here) };
        let (file, at) = (holder.file.clone(), SEGMENT_HEADER_BYTES as u64);
        let mut scan = Scan::new(file, self.seed, holder.header.len, at, start);
        let mut last = here;
        loop {
            let tip = scan.tip();
            if tip.lsn == here.0 && tip.checksum != here.1 || tip.lsn >= self.branch.last {
                return Ok(last);
            }
            let io = |error| ReadError::Io { slot: holder.slot, error };
            match scan.next(Depth::Headers).map_err(io)? {
                Ok((header, ..)) if header.epoch > self.branch.epoch => return Ok(last),
                Ok((header, ..)) if header.lsn > here.0 => {
                    visit(&header);
                    last = (header.lsn, header.checksum);
                }
                Ok(_) => {}
                Err(_) => return Ok(last),
            }
        }
    }

    /// What the first record of a file says it follows.
    fn start_of(&self, holder: &Holder) -> Result<Option<Tip>, ReadError> {
        let mut bytes = vec![0; HEADER_BYTES];
        if holder.header.len < (SEGMENT_HEADER_BYTES + HEADER_BYTES) as u64 {
            return Ok(None);
        }
        let read = holder.file.read_at(&mut bytes, SEGMENT_HEADER_BYTES as u64);
        read.map_err(|error| ReadError::Io { slot: holder.slot, error })?;
        let Ok(first) = Header::decode(self.seed, &bytes) else { return Ok(None) };
        let begins_reign = first.kind == Kind::Promote || first.lsn == Lsn(1);
        let begins_opening = first.kind.begins_incarnation();
        Ok(Some(Tip {
            lsn: first.lsn.prev(),
            epoch: if begins_reign { Epoch(first.epoch.0.saturating_sub(1)) } else { first.epoch },
            incarnation: Incarnation(first.incarnation.0.saturating_sub(u32::from(begins_opening))),
            checksum: first.previous,
        }))
    }
}
