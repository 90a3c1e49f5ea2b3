//! Reading a branch: the records that a promotion or an old primary's return left beside the main line.
//!
//! A branch has no list of its own. Its records stand behind the place where it left the line, in the file of that
//! place, and in files that say which record they begin behind. Several branches may leave the line, or one another, at
//! one record: so the way is found from the branch's end backwards, where each file has one before it and no more. Of a
//! branch whose end cannot be found, what can be followed from its beginning is read.
//!
//! Headers are read, and the bodies of records that hold no data.

use super::chain::Tip;
use super::format::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader, aligned};
use super::scan::{Depth, Scan};
use super::segment::Segment;
use super::ship::ReadError;
use super::{Log, Place};
use crate::event::{Kind, MAX_BODY_BYTES};
use crate::io::File;
use crate::read::InRecord;
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

/// A stretch of a branch that stands in one file.
struct Leg<'a> {
    holder: &'a Holder,
    /// Behind this record.
    after: Lsn,
    upto: Lsn,
}

/// The files of a branch, for reading what its records hold. They are not used again while this lives.
pub struct BranchFiles {
    segments: Vec<Segment>,
    seed: Seed,
}

impl BranchFiles {
    /// How to read a stretch of a payload back.
    #[must_use]
    pub(crate) fn in_record(&self, place: Place) -> Option<InRecord> {
        let segment = self.segments.iter().find(|segment| segment.slot == place.segment)?;
        Some(segment.in_record(self.seed, place.offset))
    }

    /// The tip before the first record of the first file, which may lie before the branch.
    #[must_use]
    pub fn start(&self) -> Option<Tip> {
        self.segments.first().map(|segment| segment.start)
    }

    /// The tip at one of the branch's records; `None` if it is none of them.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tip_at(&self, lsn: Lsn) -> Result<Option<Tip>, ReadError> {
        let holds = |segment: &&Segment| segment.header.first <= lsn && lsn <= segment.last;
        let Some(segment) = self.segments.iter().find(holds) else { return Ok(None) };
        Ok(Some(segment.tip_at(self.seed, lsn)?.0))
    }
}

impl BranchReader {
    /// Shows the header of each record of the branch, in order. Returns the last LSN that was found: below the branch's
    /// last if something of it is gone or cannot be read.
    ///
    /// # Errors
    /// Of the files.
    pub fn run(&self, mut visit: impl FnMut(&Header)) -> Result<Lsn, ReadError> {
        let Some(path) = self.path()? else { return self.run_forward(visit) };
        for leg in path {
            self.read_leg(&leg, |header, _| {
                visit(header);
                Ok(())
            })?;
        }
        Ok(self.branch.last)
    }

    /// Shows each record of the branch, in order: its header, where its payload stands, and its body if it holds no data.
    /// `None` if not all of the branch is there.
    ///
    /// # Errors
    /// Of the files.
    pub fn map(
        &self,
        mut visit: impl FnMut(&Header, Place, &[u8]),
    ) -> Result<Option<BranchFiles>, ReadError> {
        let Some(path) = self.path()? else { return Ok(None) };
        let mut files = BranchFiles { segments: Vec::new(), seed: self.seed };
        for leg in path {
            let slot = leg.holder.slot;
            let segment = self.read_leg(&leg, |header, at| {
                let place = Place { segment: slot, offset: at + HEADER_BYTES as u64 };
                let body = match header.kind.changes_bytes() {
                    true => Vec::new(),
                    false => self.read_body(leg.holder, header, place.offset)?,
                };
                visit(header, place, &body);
                Ok(())
            })?;
            files.segments.push(segment);
        }
        Ok(Some(files))
    }

    /// The files that lead from where the branch left the line to its end, in that order.
    fn path(&self) -> Result<Option<Vec<Leg<'_>>>, ReadError> {
        let after = self.branch.after;
        let (mut lsn, mut checksum) = (self.branch.last, None);
        let mut path = Vec::new();
        while lsn > after.lsn {
            let ends = |gap: &&Gap| gap.to.lsn == lsn && checksum == Some(gap.to.checksum);
            if let Some(gap) = self.gaps.iter().find(ends) {
                (lsn, checksum) = (gap.after.lsn, Some(gap.after.checksum));
                continue;
            }
            let Some((holder, parts_well)) = self.holder_of(lsn, checksum)? else {
                // Nothing stands behind the last jump: its end is the branch's, and no record.
                let ended = |gap: &&Gap| gap.to.lsn == lsn && gap.to.epoch == self.branch.epoch;
                match self.gaps.iter().rev().find(ended).filter(|_| checksum.is_none()) {
                    Some(gap) => (lsn, checksum) = (gap.after.lsn, Some(gap.after.checksum)),
                    None => return Ok(None),
                }
                continue;
            };
            let before = holder.header.first.prev();
            path.push(Leg { holder, after: before.max(after.lsn), upto: lsn });
            if before < after.lsn {
                path.reverse();
                return Ok(parts_well.then_some(path));
            }
            (lsn, checksum) = (before, Some(holder.header.previous));
        }
        path.reverse();
        Ok((lsn == after.lsn && checksum == Some(after.checksum)).then_some(path))
    }

    /// The file that holds a record, which is known by its checksum, or as the branch's last; and whether it also holds the
    /// record at which the branch left the line.
    fn holder_of(&self, lsn: Lsn, checksum: Option<Checksum>) -> Result<Option<(&Holder, bool)>, ReadError> {
        let mut holders: Vec<&Holder> =
            self.holders.iter().filter(|holder| holder.header.first <= lsn).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse((holder.header.epoch, holder.header.first)));
        let after = self.branch.after;
        for holder in holders {
            let Some(mut scan) = self.scan_of(holder)? else { continue };
            let mut parts_well = false;
            while scan.tip().lsn < lsn {
                match scan.next(Depth::Headers).map_err(|error| ReadError::Io { slot: holder.slot, error })? {
                    Ok((header, ..)) => {
                        parts_well |= (header.lsn, header.checksum) == (after.lsn, after.checksum);
                    }
                    Err(_) => break,
                }
            }
            let tip = scan.tip();
            let is_it = match checksum {
                Some(checksum) => tip.checksum == checksum,
                None => tip.epoch == self.branch.epoch,
            };
            if tip.lsn == lsn && is_it {
                return Ok(Some((holder, parts_well)));
            }
        }
        Ok(None)
    }

    fn scan_of(&self, holder: &Holder) -> Result<Option<Scan>, ReadError> {
        let at = SEGMENT_HEADER_BYTES as u64;
        let start = self.start_of(holder)?;
        Ok(start.map(|start| Scan::new(holder.file.clone(), self.seed, holder.header.len, at, start)))
    }

    /// Shows the records of a stretch, and where they stand.
    fn read_leg(
        &self,
        leg: &Leg<'_>,
        mut visit: impl FnMut(&Header, u64) -> Result<(), ReadError>,
    ) -> Result<Segment, ReadError> {
        let Holder { slot, file, header } = leg.holder;
        let slot = *slot;
        let gone = |at: u64, lsn: Lsn, stop| ReadError::Damaged { slot, offset: at, lsn, stop };
        let Some(mut scan) = self.scan_of(leg.holder)? else {
            return Err(gone(SEGMENT_HEADER_BYTES as u64, header.first, super::scan::Stop::NoSegment));
        };
        let mut segment = Segment::new(slot, file.clone(), *header, scan.tip());
        while scan.tip().lsn < leg.upto {
            let (before, at) = (scan.tip(), scan.offset());
            match scan.next(Depth::Headers).map_err(|error| ReadError::Io { slot, error })? {
                Ok((header, ..)) => {
                    segment.note(before, &header, at);
                    if header.lsn > leg.after {
                        visit(&header, at)?;
                    }
                }
                Err(stop) => return Err(gone(at, before.lsn.next(), stop)),
            }
        }
        Ok(segment)
    }

    /// The body of a record that holds no data.
    fn read_body(&self, holder: &Holder, header: &Header, at: u64) -> Result<Vec<u8>, ReadError> {
        let slot = holder.slot;
        let damaged =
            |stop| ReadError::Damaged { slot, offset: at - HEADER_BYTES as u64, lsn: header.lsn, stop };
        let len = header.payload_len as usize;
        if len > MAX_BODY_BYTES {
            return Err(damaged(super::format::Fault::Cut.into()));
        }
        let mut body = vec![0; aligned(len)];
        holder.file.read_at(&mut body, at).map_err(|error| ReadError::Io { slot, error })?;
        header.check_payload(self.seed, &body).map_err(|fault| damaged(fault.into()))?;
        body.truncate(len);
        Ok(body)
    }

    /// What can be followed from where the branch left the line.
    fn run_forward(&self, mut visit: impl FnMut(&Header)) -> Result<Lsn, ReadError> {
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
        let Some(mut scan) = self.scan_of(holder)? else { return Ok(here) };
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
