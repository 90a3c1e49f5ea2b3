//! Opens a log after whatever ended it: a clean close, a killed process, a power cut, a damaged disk.
//!
//! The log is read from its durably recorded start along the history of reigns. Where the next record is not
//! there, either the tail was torn off by a power cut, which is normal, or something durable is gone, which is
//! corruption and never guessed over (guarantee 11):
//!
//! - anything missing at or below the durable position on record (the state file's, a replica's acknowledgement)
//!   is corruption;
//! - so is anything at or below the durable mark of a whole record found *behind* the hole, in a reign that this
//!   node wrote itself. In a replica's files the marks are its primary's and prove nothing about this disk. Behind
//!   the hole is the rest of its file, and every file that is not part of the line, whatever its header says;
//! - so is a file of the line that is shorter than it was made, and a file whose header is damaged (neither old nor
//!   new nor blank, which is all that a power cut leaves of one sector) while the next records stand in it;
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
use super::format::{ALIGN, Fault, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use super::notes::Notes;
use super::scan::{Depth, Scan, Stop, headers_anywhere};
use super::segment::{Folder, Found, Segment, Spare};
use super::{Limits, Log, PAGE_BYTES, Place, open_folder, ship};
use crate::event::{Kind, Promoted, decode_body};
use crate::io::{File, Storage};
use crate::state::{Branch, Gap};
use crate::types::{Epoch, GroupId, Incarnation, Lsn, Reign};
use std::io::IoSlice;
use std::sync::Arc;

/// What the state file knows of the log.
pub struct Known<'a> {
    /// Whose log.
    pub group: GroupId,
    /// The reigns of its main line, oldest first; empty for a log that never had a record.
    pub history: &'a [Reign],
    /// What promotions left behind: no file that holds a record of these is used again.
    pub branches: &'a [Branch],
    /// What the main line leaves out.
    pub gaps: &'a [Gap],
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
    /// Files whose header is damaged and in which nothing was found that is needed; they are used again.
    pub unreadable: u32,
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
         {proof}; nothing was changed. Restore this file from a copy, or fail over to a replica, which holds the \
         records up to its acknowledged LSN"
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
        proof: Proof,
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

/// What tells damage from a torn tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Proof {
    /// A durable mark at or above the missing record.
    #[error("everything up to LSN {0} had been durable")]
    Durable(Lsn),
    /// A damaged segment header over records that are needed.
    #[error("a power cut leaves a segment's header old or new, and never damages it")]
    Header,
    /// A segment file that lost its end.
    #[error("a segment file has its length before it takes records, and a power cut does not shorten it")]
    Length,
}

/// A record during recovery: header, place of its payload, payload (empty up to `headers_through`).
pub type Visit<'a> = dyn FnMut(&Header, Place, &[u8]) -> std::io::Result<()> + 'a;

struct Opening<'a> {
    known: &'a Known<'a>,
    folder: Folder,
    seed: Seed,
    /// With a whole header, and not yet part of the line; by sequence number.
    candidates: Vec<Candidate>,
    /// With no header, or a damaged one.
    rest: Vec<Other>,
    /// Files that had never been finished.
    leftovers: Vec<u32>,
    line: Vec<Segment>,
    tip: Tip,
    /// The highest incarnation of any record seen.
    incarnation: Incarnation,
    report: Report,
}

/// A file with a whole header.
struct Candidate {
    spare: Spare,
    header: SegmentHeader,
    /// The file's length.
    len: u64,
}

/// A file without.
struct Other {
    spare: Spare,
    len: u64,
    /// What is wrong with its header; `None` if it is blank.
    fault: Option<Fault>,
}

/// What stands behind the place where the line ends.
#[derive(Default)]
struct Behind {
    /// The highest durable mark of this node's own.
    durable: Lsn,
    /// Whole records of the last incarnation.
    records: u64,
    /// A file with a damaged header that holds such records.
    damaged: Option<(u32, Fault)>,
}

/// The piece in which files are searched for records.
const LOOK_BYTES: u64 = 1 << 20;

impl Log {
    /// Opens the log in `dir`, and shows each retained record to `visit`, in order.
    ///
    /// # Errors
    /// [`OpenError`]; after `Corrupt` and `Newer` the files are as they were.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &str,
        limits: Limits,
        known: &Known<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(Log, Report), OpenError> {
        Opening::read(storage, dir, &limits, known, visit)?.finish(limits)
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
        let opening = Opening::read(storage, dir, &limits, known, &mut |_, _, _| Ok(()))?;
        Ok(Verified {
            report: opening.report,
            tip: opening.tip,
            segments: opening.line,
            spares: opening.rest.iter().map(|other| other.spare.slot).collect(),
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

impl<'a> Opening<'a> {
    fn read(
        storage: Arc<dyn Storage>,
        dir: &str,
        limits: &Limits,
        known: &'a Known<'a>,
        visit: &mut Visit<'_>,
    ) -> Result<Opening<'a>, OpenError> {
        let at_dir = |error| OpenError::Io { path: dir.to_owned(), error };
        let mut opening = Opening {
            known,
            seed: Seed::of(known.group),
            folder: open_folder(storage, dir, limits).map_err(at_dir)?,
            candidates: Vec::new(),
            rest: Vec::new(),
            leftovers: Vec::new(),
            line: Vec::new(),
            tip: known.start,
            incarnation: Incarnation(0),
            report: Report::default(),
        };
        for (spare, len, found) in opening.folder.find(known.group).map_err(at_dir)? {
            match found {
                Found::Segment(header) => opening.candidates.push(Candidate { spare, header, len }),
                Found::Blank => opening.rest.push(Other { spare, len, fault: None }),
                Found::Leftover => opening.leftovers.push(spare.slot),
                Found::Stranger => {}
                Found::Damaged(Fault::Version(version)) => {
                    return Err(OpenError::Newer { path: opening.folder.path(spare.slot), version });
                }
                // Its records may be missed below, and then it is named; if none are, it is free.
                Found::Damaged(fault) => opening.rest.push(Other { spare, len, fault: Some(fault) }),
            }
        }
        opening.candidates.sort_by_key(|candidate| candidate.header.sequence);
        opening.read_line(visit)?;
        Ok(opening)
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
        loop {
            loop {
                let here = self.tip.position();
                let gap = self.known.gaps.iter().find(|gap| gap.after == here).copied();
                let Some(gap) = gap else { break };
                // On record before the first record behind it was written; whatever else may follow here is older.
                self.tip = gap.to;
            }
            let Some((mut segment, len)) = self.next_segment()? else { break };
            let stop = self.read_segment(&mut segment, len, visit)?;
            if len < segment.header.len {
                let (lsn, path) = (self.tip.lsn.next(), self.folder.path(segment.slot));
                let (offset, stop) = (segment.end, Stop::Fault(Fault::Cut));
                return Err(OpenError::Corrupt { lsn, path, offset, stop, proof: Proof::Length });
            }
            let within = segment.header.first..=segment.last;
            segment.shared = self.known.branches.iter().any(|branch| within.contains(&branch.after.lsn));
            stopped = Some((segment.slot, segment.end, stop));
            self.line.push(segment);
        }
        self.judge(stopped)
    }

    /// Takes the segment that begins behind the tip out of the candidates, with the length of its file. Of two that
    /// claim to, which only a torn tail before the last opening can leave, the newer counts.
    fn next_segment(&mut self) -> Result<Option<(Segment, u64)>, OpenError> {
        let tip = self.tip;
        let begins = self.known.history.iter().rev().find(|reign| reign.branch.lsn == tip.lsn);
        let epoch = begins.map_or(tip.epoch, |reign| reign.epoch);
        let after = self.line.last().map_or(0, |segment| segment.header.sequence);
        let mut found = None;
        for (index, candidate) in self.candidates.iter().enumerate().rev() {
            let header = &candidate.header;
            let fits = header.first == tip.lsn.next()
                && header.previous == tip.checksum
                && header.epoch == epoch
                && header.sequence > after;
            if fits && !self.is_of_a_rival(candidate, begins)? {
                found = Some(index);
                break;
            }
        }
        Ok(found.map(|index| {
            let Candidate { spare: Spare { slot, file }, header, len } = self.candidates.remove(index);
            (Segment::new(slot, file, header, tip), len)
        }))
    }

    /// Whether a segment begins the reign of another node that was promoted to the same epoch at the same point: only
    /// its first record tells.
    fn is_of_a_rival(&self, candidate: &Candidate, begins: Option<&Reign>) -> Result<bool, OpenError> {
        let Some(reign) = begins else { return Ok(false) };
        let Candidate { spare: Spare { slot, file }, header, len } = candidate;
        let start = SEGMENT_HEADER_BYTES as u64;
        let mut scan = Scan::new(file.clone(), self.seed, header.len.min(*len), start, self.tip);
        Ok(match scan.next(Depth::Whole).map_err(self.io(*slot))? {
            Ok((first, _, body)) if first.kind == Kind::Promote => {
                decode_body::<Promoted>(body).is_some_and(|promoted| promoted.reign != *reign)
            }
            // What is torn or damaged is judged where it is read.
            _ => false,
        })
    }

    fn read_segment(
        &mut self,
        segment: &mut Segment,
        len: u64,
        visit: &mut Visit<'_>,
    ) -> Result<Stop, OpenError> {
        // What stands behind the beginning of a gap was torn off before it was left out.
        let gaps = self.known.gaps.iter().map(|gap| gap.after.lsn).filter(|&after| after >= self.tip.lsn);
        let limit = gaps.fold(self.limit_of(segment.header.epoch), Lsn::min);
        let start = SEGMENT_HEADER_BYTES as u64;
        let mut scan =
            Scan::new(segment.file.clone(), self.seed, segment.header.len.min(len), start, self.tip);
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
            let place = Place { segment: segment.slot, offset: offset + HEADER_BYTES as u64 };
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
        let behind = self.find_behind(slot, offset)?;
        let durable = self.known.durable.max(behind.durable);
        if let Some((slot, fault)) = behind.damaged {
            let (path, stop) = (self.folder.path(slot), Stop::Fault(fault));
            return Err(OpenError::Corrupt { lsn: missing, path, offset: 0, stop, proof: Proof::Header });
        }
        if durable >= missing {
            let path = match slot {
                0 => self.folder.dir().to_owned(),
                slot => self.folder.path(slot),
            };
            let proof = Proof::Durable(durable);
            return Err(OpenError::Corrupt { lsn: missing, path, offset, stop, proof });
        }
        let partial = match stop {
            Stop::Full | Stop::NoSegment | Stop::Break(_) => false,
            Stop::Fault(Fault::Magic) => !self.is_blank_to_page_end(offset)?,
            Stop::Fault(_) => true,
        };
        if behind.records > 0 || partial {
            let records_behind = behind.records;
            self.report.torn = Some(Torn { lsn: missing, slot, offset, stop, records_behind });
        }
        self.report.unreadable = self.rest.iter().filter(|other| other.fault.is_some()).count() as u32;
        Ok(())
    }

    /// Whether the rest of the last page is blank, as an append leaves it. Where the page is yet to be written, a
    /// file that is used again may hold anything.
    fn is_blank_to_page_end(&self, offset: u64) -> Result<bool, OpenError> {
        let Some(last) = self.line.last().filter(|_| !offset.is_multiple_of(PAGE_BYTES as u64)) else {
            return Ok(true);
        };
        let end = offset.next_multiple_of(PAGE_BYTES as u64).min(last.header.len);
        let mut rest = vec![0; (end - offset) as usize];
        last.file.read_at(&mut rest, offset).map_err(self.io(last.slot))?;
        Ok(rest.iter().all(|&byte| byte == 0))
    }

    /// Whole records of the last reign behind the place where the line ends: in that file, and in every file that
    /// is not part of the line, whose header may be old while its records are new.
    fn find_behind(&mut self, slot: u32, offset: u64) -> Result<Behind, OpenError> {
        let (known, tip) = (self.known, self.tip);
        let epoch = known.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let mut behind = Behind::default();
        let mut highest = self.incarnation.max(tip.incarnation);
        let mut note = |header: Header, damaged: Option<(u32, Fault)>| {
            if header.epoch != epoch {
                return;
            }
            highest = highest.max(header.incarnation);
            if header.lsn <= tip.lsn {
                return;
            }
            if (known.own)(header.epoch) {
                behind.durable = behind.durable.max(header.durable);
            }
            // A stale record of a recycled file can be whole, but is of an older opening.
            if header.incarnation >= tip.incarnation {
                behind.records += 1;
                behind.damaged = behind.damaged.or(damaged);
            }
        };
        if let Some(last) = self.line.last().filter(|last| last.slot == slot) {
            self.look(slot, &last.file, offset, last.header.len, &mut |header| note(header, None))?;
        }
        let start = SEGMENT_HEADER_BYTES as u64;
        let last_epoch = self.known.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let of_the_line = |candidate: &&Candidate| {
            let header = &candidate.header;
            !(header.epoch < last_epoch && header.first > self.limit_of(header.epoch))
        };
        for candidate in self.candidates.iter().filter(of_the_line) {
            let Candidate { spare: Spare { slot, file }, header, len } = candidate;
            self.look(*slot, file, start, header.len.min(*len), &mut |header| note(header, None))?;
        }
        for Other { spare: Spare { slot, file }, len, fault } in &self.rest {
            let damaged = fault.map(|fault| (*slot, fault));
            self.look(*slot, file, start, *len, &mut |header| note(header, damaged))?;
        }
        self.incarnation = highest;
        Ok(behind)
    }

    /// Shows every whole record header of a stretch of a file.
    fn look(
        &self,
        slot: u32,
        file: &Arc<dyn File>,
        from: u64,
        len: u64,
        seen: &mut dyn FnMut(Header),
    ) -> Result<(), OpenError> {
        let mut at = from;
        let mut bytes = Vec::new();
        while at + HEADER_BYTES as u64 <= len {
            let Some((start, _)) = file.next_data(at).map_err(self.io(slot))? else { break };
            at = at.max(start - start % ALIGN as u64);
            // A header that begins in this piece may end in the next.
            let piece = (LOOK_BYTES + (HEADER_BYTES - ALIGN) as u64).min(len.saturating_sub(at));
            bytes.resize(piece as usize, 0);
            file.read_at(&mut bytes, at).map_err(self.io(slot))?;
            headers_anywhere(self.seed, &bytes).for_each(&mut *seen);
            at += LOOK_BYTES;
        }
        Ok(())
    }

    /// Whether a segment that is not part of the line may hold records of a branch, by what its header says.
    fn may_be_branch(&self, header: &SegmentHeader) -> bool {
        self.known.branches.iter().any(|branch| branch.may_need(header))
    }

    /// Whether a file does hold some, of one epoch or of any.
    fn holds_branch(&self, spare: &Spare, len: u64, epoch: Option<Epoch>) -> Result<bool, OpenError> {
        let mut holds = false;
        if !self.known.branches.is_empty() {
            self.look(spare.slot, &spare.file, SEGMENT_HEADER_BYTES as u64, len, &mut |record| {
                holds |= epoch.is_none_or(|epoch| record.epoch == epoch)
                    && self.known.branches.iter().any(|branch| {
                        (branch.after.epoch..=branch.epoch).contains(&record.epoch)
                            && record.lsn > branch.after.lsn
                            && record.lsn <= branch.last
                    });
            })?;
        }
        Ok(holds)
    }

    fn is_branch(&self, candidate: &Candidate) -> Result<bool, OpenError> {
        let Candidate { spare, header, len } = candidate;
        if !self.may_be_branch(header) {
            return Ok(false);
        }
        self.holds_branch(spare, header.len.min(*len), Some(header.epoch))
    }

    fn finish(mut self, limits: Limits) -> Result<(Log, Report), OpenError> {
        for slot in std::mem::take(&mut self.leftovers) {
            let path = self.folder.path(slot);
            self.folder.remove(slot).map_err(|error| OpenError::Io { path, error })?;
            self.report.leftovers += 1;
        }
        let branches = self.sort_out_rest()?;
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
        let must_begin = self.line.last().is_some_and(|last| last.last < self.tip.lsn);
        let log = Log {
            group: self.known.group,
            seed: self.seed,
            limits,
            folder: self.folder,
            line: self.line,
            branches,
            tip: self.tip,
            durable: self.tip,
            // The state file's is higher, unless it was restored from an older copy: never twice the same.
            incarnation: self.known.incarnation.max(Incarnation(self.incarnation.0.saturating_add(1))),
            // Nothing was written behind a gap yet, if so.
            must_begin,
            page: if must_begin { Vec::new() } else { page },
            unsynced: Vec::new(),
            syncing: false,
            failure: None,
            recent: ship::Recent::new(limits.recent_bytes),
            notes: Notes::new(self.tip.lsn.next()),
            syncs: 0,
            last_syncs: None,
        };
        Ok((log, self.report))
    }

    /// What is not part of the line: a branch is kept, all else is blanked and used again.
    fn sort_out_rest(&mut self) -> Result<Vec<Segment>, OpenError> {
        let mut branches = Vec::new();
        let mut free = Vec::new();
        for Other { spare, len, fault } in std::mem::take(&mut self.rest) {
            // Nothing can be read by a header that is damaged, but what stands behind it is not thrown away.
            if fault.is_none() || !self.holds_branch(&spare, len, None)? {
                free.push(spare);
            }
        }
        for candidate in std::mem::take(&mut self.candidates) {
            let is_branch = self.is_branch(&candidate)?;
            let Candidate { spare, header, .. } = candidate;
            if is_branch {
                let start = Tip { lsn: header.first.prev(), checksum: header.previous, ..Tip::default() };
                let mut segment = Segment::new(spare.slot, spare.file, header, start);
                segment.end = header.len;
                branches.push(segment);
                continue;
            }
            free.push(spare);
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
