//! Opens a log after whatever ended it: a clean close, a killed process, a power cut, a damaged disk.
//!
//! The log is read from its durably recorded start along the history of reigns. Where the next record is not
//! there, either the tail was torn off by a power cut, which is normal, or something durable is gone, which is
//! corruption and never guessed over (guarantee 11):
//!
//! - anything missing at or below the durable position on record (the state file's, a replica's acknowledgement)
//!   is corruption;
//! - so is anything at or below the durable mark of a whole record found *behind* the hole, in a reign that this
//!   node wrote itself. In a replica's files the marks are its primary's and prove nothing about this disk;
//! - all else is a torn tail: cut at the hole and reported.
//!
//! What recovery writes, in this order, each step idempotent, so that a crash in it is a crash like any other:
//!
//! 1. headers of segments behind a torn tail become blank, so that they can never chain on to later records;
//! 2. every page behind the recorded durable position is written again and synced. The records may exist in the
//!    page cache alone (the process died, the machine did not), and after a failed sync even a *clean* page may;
//!    so they are made dirty first, and only what a sync of ours covered is called durable.
//!
//! The new incarnation, which the caller has made durable before, keeps whatever stays behind the tail dead.

use super::chain::Tip;
use super::format::{Fault, Header, SEGMENT_HEADER_BYTES, Seed};
use super::scan::{Depth, Scan, Stop, headers_anywhere};
use super::segment::{Folder, Found, Segment, Spare};
use super::{Limits, Log, PAGE_BYTES, Place, open_folder, ship};
use crate::io::{File, Storage};
use crate::types::{Epoch, GroupId, Incarnation, Lsn, Reign};
use std::io::IoSlice;
use std::sync::Arc;

/// What the state file knows of the log.
pub struct Known<'a> {
    /// Whose log.
    pub group: GroupId,
    /// The reigns of its main line, oldest first; empty for a log that never had a record.
    pub history: &'a [Reign],
    /// The reigns among them that this node wrote itself.
    pub own: &'a dyn Fn(Epoch) -> bool,
    /// Where the retained log begins.
    pub start: Tip,
    /// The highest position that is known to have been durable here.
    pub durable: Lsn,
    /// Records up to here need only their headers read; `visit` gets no payload for them.
    pub headers_through: Lsn,
    /// The incarnation of this opening, durably on record.
    pub incarnation: Incarnation,
}

/// What the log looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records read.
    pub records: u64,
    /// Where the tail was torn off, if it was.
    pub torn: Option<Torn>,
    /// Files that had never been finished, now removed.
    pub leftovers: u32,
}

/// A tail that a power cut tore off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The first LSN that is lost.
    pub lsn: Lsn,
    /// The file where it would have been.
    pub slot: u32,
    /// The byte.
    pub offset: u64,
    /// What was found there.
    pub stop: Stop,
    /// Whole records found behind the hole, none of which had been durable.
    pub records_behind: u64,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Of the files.
    #[error("{path}: {error}")]
    Io {
        /// File or folder.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Something durable is gone.
    #[error(
        "the log is damaged: LSN {lsn} is missing or unreadable in {path} at byte {offset} ({stop}), though \
         everything up to LSN {durable} had been durable; nothing was changed. Restore this file from a copy, or \
         fail over to a replica, which holds the records up to its acknowledged LSN"
    )]
    Corrupt {
        /// What belongs there.
        lsn: Lsn,
        /// The file.
        path: String,
        /// The byte in it.
        offset: u64,
        /// What was found.
        stop: Stop,
        /// What proves the loss.
        durable: Lsn,
    },
    /// A newer Landfall wrote here.
    #[error("{path}: format version {version} is newer than this program understands")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u8,
    },
}

/// A record during recovery: header, place of its payload, payload (empty up to `headers_through`).
pub type Visit<'a> = dyn FnMut(&Header, Place, &[u8]) -> std::io::Result<()> + 'a;

struct Opening<'a> {
    known: &'a Known<'a>,
    folder: Folder,
    seed: Seed,
    /// Not yet part of the line.
    candidates: Vec<(u32, Arc<dyn File>, super::format::SegmentHeader)>,
    line: Vec<Segment>,
    tip: Tip,
    report: Report,
}

impl Log {
    /// Opens the log in `dir`, and shows each retained record to `visit`, in order.
    ///
    /// # Errors
    /// [`OpenError`]; the files are as they were then, but for leftovers.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &str,
        limits: Limits,
        known: &Known<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(Log, Report), OpenError> {
        let (opening, rest) = Opening::read(storage, dir, &limits, known, visit)?;
        opening.finish(rest, limits)
    }

    /// Reads the log in `dir` whole and judges it as [`Log::open`] does, but changes nothing. Returns its segments
    /// too, and the files that hold no records.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn verify(
        storage: Arc<dyn Storage>,
        dir: &str,
        limits: Limits,
        known: &Known<'_>,
    ) -> Result<Verified, OpenError> {
        let (opening, rest) = Opening::read(storage, dir, &limits, known, &mut |_, _, _| Ok(()))?;
        Ok(Verified {
            report: opening.report,
            tip: opening.tip,
            segments: opening.line,
            spares: rest.blanks.iter().map(|spare| spare.slot).collect(),
        })
    }
}

/// What [`Log::verify`] found.
pub struct Verified {
    /// As of an opening.
    pub report: Report,
    /// The last record.
    pub tip: Tip,
    /// The files that hold the log, in its order.
    pub segments: Vec<Segment>,
    /// The numbers of files that hold no records.
    pub spares: Vec<u32>,
}

/// Files that are not, or not certainly, part of the log.
struct Rest {
    blanks: Vec<Spare>,
    leftovers: Vec<u32>,
}

impl<'a> Opening<'a> {
    fn read(
        storage: Arc<dyn Storage>,
        dir: &str,
        limits: &Limits,
        known: &'a Known<'a>,
        visit: &mut Visit<'_>,
    ) -> Result<(Opening<'a>, Rest), OpenError> {
        let at_dir = |error| OpenError::Io { path: dir.to_owned(), error };
        let mut folder = open_folder(storage, dir, limits).map_err(at_dir)?;
        let mut candidates = Vec::new();
        let mut rest = Rest { blanks: Vec::new(), leftovers: Vec::new() };
        for (Spare { slot, file }, found) in folder.find(known.group).map_err(at_dir)? {
            match found {
                Found::Segment(header) => candidates.push((slot, file, header)),
                Found::Blank => rest.blanks.push(Spare { slot, file }),
                Found::Leftover => rest.leftovers.push(slot),
                Found::Foreign(Fault::Version(version)) => {
                    return Err(OpenError::Newer { path: folder.path(slot), version });
                }
                // Its records may be missed below, and then it is named; if none are, it is free.
                Found::Foreign(_) => rest.blanks.push(Spare { slot, file }),
            }
        }
        candidates.sort_by_key(|(_, _, header)| header.sequence);
        let mut opening = Opening {
            known,
            seed: Seed::of(known.group),
            folder,
            candidates,
            line: Vec::new(),
            tip: known.start,
            report: Report::default(),
        };
        opening.read_line(visit)?;
        Ok((opening, rest))
    }
}

impl Opening<'_> {
    fn io(&self, slot: u32) -> impl FnOnce(std::io::Error) -> OpenError + use<> {
        let path = self.folder.path(slot);
        move |error| OpenError::Io { path, error }
    }

    /// The last LSN of the main line in a reign.
    fn limit_of(&self, epoch: Epoch) -> Lsn {
        let next = self.known.history.iter().find(|reign| reign.epoch > epoch);
        next.map_or(Lsn(u64::MAX), |reign| reign.branch.lsn)
    }

    /// Reads segment after segment until nothing continues the line.
    fn read_line(&mut self, visit: &mut Visit<'_>) -> Result<(), OpenError> {
        let mut stopped = None;
        while let Some(mut segment) = self.next_segment() {
            let stop = self.read_segment(&mut segment, visit)?;
            stopped = Some((segment.slot, segment.end, stop));
            self.line.push(segment);
        }
        self.judge(stopped)
    }

    /// Takes the segment that begins behind the tip out of the candidates. Of two that claim to, which only a
    /// torn tail before the last opening can leave, the newer counts.
    fn next_segment(&mut self) -> Option<Segment> {
        let tip = self.tip;
        let epoch = match self.known.history.iter().find(|reign| reign.branch.lsn == tip.lsn) {
            Some(reign) => {
                self.known.history.iter().rev().find(|r| r.branch.lsn == tip.lsn).unwrap_or(reign).epoch
            }
            None => tip.epoch,
        };
        let after = self.line.last().map_or(0, |segment| segment.header.sequence);
        let index = self.candidates.iter().rposition(|(_, _, header)| {
            header.first == tip.lsn.next()
                && header.previous == tip.checksum
                && header.epoch == epoch
                && header.sequence > after
        })?;
        let (slot, file, header) = self.candidates.remove(index);
        Some(Segment::new(slot, file, header, tip))
    }

    fn read_segment(&mut self, segment: &mut Segment, visit: &mut Visit<'_>) -> Result<Stop, OpenError> {
        let limit = self.limit_of(segment.header.epoch);
        let start = SEGMENT_HEADER_BYTES as u64;
        let mut scan = Scan::new(segment.file.clone(), self.seed, segment.header.len, start, self.tip);
        loop {
            let before = scan.tip();
            if before.lsn >= limit {
                return Ok(Stop::Full);
            }
            let lsn = before.lsn.next();
            let depth = if lsn <= self.known.headers_through { Depth::Headers } else { Depth::Whole };
            let (header, offset, payload) = match scan.next(depth).map_err(self.io(segment.slot))? {
                Ok(record) => record,
                Err(Stop::Fault(Fault::Version(version))) => {
                    return Err(OpenError::Newer { path: self.folder.path(segment.slot), version });
                }
                Err(stop) => return Ok(stop),
            };
            let place = Place { segment: segment.slot, offset: offset + super::HEADER_BYTES as u64 };
            visit(&header, place, payload).map_err(self.io(segment.slot))?;
            segment.note(before, &header, offset);
            self.tip = self.tip.advanced(&header);
            self.report.records += 1;
        }
    }

    /// Torn tail or corruption: see the module.
    fn judge(&mut self, stopped: Option<(u32, u64, Stop)>) -> Result<(), OpenError> {
        let missing = self.tip.lsn.next();
        let (slot, offset, stop) = match stopped {
            Some((slot, offset, Stop::Full)) => (slot, offset, Stop::NoSegment),
            Some(stopped) => stopped,
            None => (0, 0, Stop::NoSegment),
        };
        let (mut proof, mut behind) = (self.known.durable, 0);
        for header in self.find_behind(slot, offset)? {
            if header.lsn < missing {
                continue;
            }
            if (self.known.own)(header.epoch) {
                proof = proof.max(header.durable);
            }
            // A stale record of a recycled file can be whole, but is of an older opening.
            behind += u64::from(header.incarnation == self.tip.incarnation);
        }
        if proof >= missing {
            let path = self.folder.path(slot);
            return Err(OpenError::Corrupt { lsn: missing, path, offset, stop, durable: proof });
        }
        let partial =
            !matches!(stop, Stop::Full | Stop::NoSegment | Stop::Fault(Fault::Magic) | Stop::Break(_));
        if behind > 0 || partial {
            self.report.torn = Some(Torn { lsn: missing, slot, offset, stop, records_behind: behind });
        }
        Ok(())
    }

    /// Whole records of the last reign behind the place where the line ends: in that file, and in files that
    /// were begun later.
    fn find_behind(&self, slot: u32, offset: u64) -> Result<Vec<Header>, OpenError> {
        let epoch = self.known.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let mut found = Vec::new();
        let mut look = |slot: u32, file: &Arc<dyn File>, from: u64, len: u64| -> Result<(), OpenError> {
            let mut bytes = vec![0; len.saturating_sub(from) as usize];
            file.read_at(&mut bytes, from).map_err(self.io(slot))?;
            found.extend(headers_anywhere(self.seed, &bytes).filter(|header| header.epoch == epoch));
            Ok(())
        };
        if let Some(last) = self.line.last().filter(|last| last.slot == slot) {
            look(slot, &last.file, offset, last.header.len)?;
        }
        let after = self.line.last().map_or(0, |segment| segment.header.sequence);
        for (slot, file, header) in &self.candidates {
            if header.epoch == epoch && header.sequence > after {
                look(*slot, file, SEGMENT_HEADER_BYTES as u64, header.len)?;
            }
        }
        Ok(found)
    }

    fn finish(mut self, rest: Rest, limits: Limits) -> Result<(Log, Report), OpenError> {
        for slot in rest.leftovers {
            let path = self.folder.path(slot);
            self.folder.remove(slot).map_err(|error| OpenError::Io { path, error })?;
            self.report.leftovers += 1;
        }
        let branches = self.sort_out_rest(rest.blanks)?;
        self.make_durable()?;
        let page = match self.line.last() {
            Some(last) => {
                let mut page = vec![0; (last.end % PAGE_BYTES as u64) as usize];
                let at = last.end - page.len() as u64;
                last.file.read_at(&mut page, at).map_err(self.io(last.slot))?;
                page
            }
            None => Vec::new(),
        };
        let log = Log {
            group: self.known.group,
            seed: self.seed,
            limits,
            folder: self.folder,
            line: self.line,
            branches,
            tip: self.tip,
            durable: self.tip,
            incarnation: self.known.incarnation,
            must_begin: false,
            page,
            unsynced: Vec::new(),
            syncing: false,
            failure: None,
            recent: ship::Recent::new(limits.recent_bytes),
        };
        Ok((log, self.report))
    }

    /// What is not part of the line: a branch is kept, all else is blanked and used again.
    fn sort_out_rest(&mut self, blanks: Vec<Spare>) -> Result<Vec<Segment>, OpenError> {
        let mut branches = Vec::new();
        let last_epoch = self.known.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let mut free = blanks;
        for (slot, file, header) in std::mem::take(&mut self.candidates) {
            let of_ended_reign = header.epoch < last_epoch;
            if of_ended_reign && header.first > self.limit_of(header.epoch) {
                let start = Tip { lsn: header.first.prev(), checksum: header.previous, ..Tip::default() };
                let mut segment = Segment::new(slot, file, header, start);
                segment.end = header.len;
                branches.push(segment);
                continue;
            }
            free.push(Spare { slot, file });
        }
        let blank = vec![0; SEGMENT_HEADER_BYTES];
        for Spare { slot, file } in free {
            let io = self.io(slot);
            file.write_at(&[IoSlice::new(&blank)], 0).and_then(|()| file.sync()).map_err(io)?;
            let io = self.io(slot);
            self.folder.recycle(slot, file).map_err(io)?;
        }
        Ok(branches)
    }

    /// Step 2 of the module: what may not be on disk is written again and synced.
    fn make_durable(&mut self) -> Result<(), OpenError> {
        for segment in &self.line {
            let empty = segment.last < segment.header.first;
            if segment.last <= self.known.durable && !empty {
                continue;
            }
            let (from, _) = segment.place_before(self.known.durable.next());
            let from = if segment.start.lsn >= self.known.durable { 0 } else { from };
            let mut at = from - from % PAGE_BYTES as u64;
            while at < segment.end {
                let mut chunk = vec![0; (segment.end - at).min(1 << 20) as usize];
                segment.file.read_at(&mut chunk, at).map_err(self.io(segment.slot))?;
                segment.file.write_at(&[IoSlice::new(&chunk)], at).map_err(self.io(segment.slot))?;
                at += chunk.len() as u64;
            }
            segment.file.sync().map_err(self.io(segment.slot))?;
        }
        Ok(())
    }
}
