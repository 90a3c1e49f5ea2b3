//! Stretches of the log for a replica: from memory while it keeps up, from the files when it is behind.

use super::Log;
use super::chain::Tip;
use super::format::{Fault, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed};
use super::scan::{Depth, Scan};
use super::segment::Segment;
use crate::peer::Batch;
use crate::types::{Lsn, Timestamp};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// The newest records, as they were appended.
pub(super) struct Recent {
    runs: VecDeque<Run>,
    bytes: usize,
    limit_bytes: usize,
}

struct Run {
    first: Lsn,
    last: Lsn,
    bytes: Bytes,
}

impl Recent {
    pub(super) fn new(limit_bytes: usize) -> Recent {
        Recent { runs: VecDeque::new(), bytes: 0, limit_bytes }
    }

    pub(super) fn push(&mut self, first: Lsn, last: Lsn, bytes: Bytes) {
        debug_assert!(self.runs.back().is_none_or(|run| run.last.next() == first), "runs follow each other");
        self.bytes += bytes.len();
        self.runs.push_back(Run { first, last, bytes });
        while self.bytes > self.limit_bytes
            && let Some(run) = self.runs.pop_front()
        {
            self.bytes -= run.bytes.len();
        }
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.bytes = 0;
    }

    /// Forgets what every replica has.
    fn forget_through(&mut self, lsn: Lsn) {
        while self.runs.front().is_some_and(|run| run.last <= lsn) {
            self.bytes -= self.runs.pop_front().map_or(0, |run| run.bytes.len());
        }
    }

    /// Records from `from` to at most `upto`; `None` if `from` is not here any more.
    fn read(&self, seed: Seed, from: Lsn, upto: Lsn, max_bytes: usize) -> Option<Batch> {
        let start = self.runs.partition_point(|run| run.last < from);
        let run = self.runs.get(start).filter(|run| run.first <= from)?;
        let skip = offset_of(seed, &run.bytes, run.first, from);
        let mut batch = Batch { first: from, last: from, bytes: Vec::new() };
        let mut total = 0;
        for (index, run) in self.runs.range(start..).enumerate() {
            let bytes = if index == 0 { run.bytes.slice(skip..) } else { run.bytes.clone() };
            let first = if index == 0 { from } else { run.first };
            if first > upto || (total > 0 && total + bytes.len() > max_bytes) {
                break;
            }
            // A run may be longer than a batch, and may end behind what is durable.
            let room = if total == 0 { max_bytes } else { usize::MAX };
            let (len, last) = if run.last <= upto && bytes.len() <= room {
                (bytes.len(), run.last)
            } else {
                take_while_fits(seed, &bytes, first, upto, room)
            };
            batch.bytes.push(bytes.slice(..len));
            batch.last = last;
            total += len;
            if last < run.last || total >= max_bytes {
                break;
            }
        }
        Some(batch)
    }
}

/// The length of the record at `at` of bytes that this process checked or made itself.
fn record_len_at(seed: Seed, bytes: &[u8], at: usize) -> usize {
    Header::decode(seed, &bytes[at..]).expect("what is kept in memory was checked or made here").record_len()
}

/// Where the record `lsn` starts in bytes whose first record is `first`.
fn offset_of(seed: Seed, bytes: &[u8], first: Lsn, lsn: Lsn) -> usize {
    (first.0..lsn.0).fold(0, |at, _| at + record_len_at(seed, bytes, at))
}

/// How many bytes from the start are records up to `upto` and within `room`, at least one; and the last of them.
fn take_while_fits(seed: Seed, bytes: &[u8], first: Lsn, upto: Lsn, room: usize) -> (usize, Lsn) {
    let mut lsn = first;
    let mut at = record_len_at(seed, bytes, 0);
    while lsn < upto && at < bytes.len() {
        let len = record_len_at(seed, bytes, at);
        if at + len > room {
            break;
        }
        at += len;
        lsn = lsn.next();
    }
    (at, lsn)
}

/// What there is to send.
pub enum Stretch {
    /// Nothing durable behind that position.
    UpToDate,
    /// Here it is.
    Ready(Batch),
    /// In the files: run the job, without the log.
    OnDisk(Read),
    /// No longer held: only a copy of the disk can help.
    Gone,
}

/// Reads records from the files; runs without the log.
pub struct Read {
    segment: Segment,
    seed: Seed,
    from: Lsn,
    upto: Lsn,
    max_bytes: usize,
}

/// Why records could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Of the file.
    #[error("reading segment {slot:08}: {error}")]
    Io {
        /// The file's number.
        slot: u32,
        /// What the system said.
        error: std::io::Error,
    },
    /// A record is not what was written, or the file was used again meanwhile.
    #[error("segment {slot:08}, offset {offset}, LSN {lsn}: {stop}")]
    Damaged {
        /// The file's number.
        slot: u32,
        /// Byte in it.
        offset: u64,
        /// What belongs there.
        lsn: Lsn,
        /// What is wrong.
        stop: super::scan::Stop,
    },
}

impl Read {
    /// Reads a batch: from `from` on, within one segment, at most `max_bytes` unless the first record is longer.
    ///
    /// # Errors
    /// [`ReadError`]; nothing that fails its checksum is ever handed out.
    pub fn run(self) -> Result<Batch, ReadError> {
        let Read { segment, seed, from, upto, max_bytes } = self;
        let slot = segment.slot;
        let (offset, tip) = segment.place_before(from);
        let mut scan = Scan::new(segment.file.clone(), seed, segment.end, offset, tip);
        while scan.tip().lsn.next() < from {
            step(&mut scan, slot, Depth::Headers)?;
        }
        let (start, mut tip) = (scan.offset(), scan.tip());
        // What is read is what is sent: records are checked where they lie.
        let mut bytes = BytesMut::new();
        read_to(&segment, start, &mut bytes, max_bytes)?;
        let mut used = 0;
        while tip.lsn < upto.min(segment.last) {
            let damaged =
                |stop| ReadError::Damaged { slot, offset: start + used as u64, lsn: tip.lsn.next(), stop };
            if used == 0 {
                read_to(&segment, start, &mut bytes, HEADER_BYTES)?;
            }
            if bytes.len() - used < HEADER_BYTES && used > 0 {
                break;
            }
            let header = Header::decode(seed, &bytes[used..]).map_err(|fault| damaged(fault.into()))?;
            tip.check_next(&header).map_err(|broken| damaged(broken.into()))?;
            let end = used + header.record_len();
            if end > bytes.len() {
                if used > 0 {
                    break;
                }
                // Longer than a batch: it comes alone.
                read_to(&segment, start, &mut bytes, end)?;
            }
            let payload = bytes.get(used + HEADER_BYTES..end).ok_or_else(|| damaged(Fault::Cut.into()))?;
            header.check_payload(seed, payload).map_err(|fault| damaged(fault.into()))?;
            tip = tip.advanced(&header);
            used = end;
        }
        bytes.truncate(used);
        Ok(Batch { first: from, last: tip.lsn, bytes: vec![bytes.freeze()] })
    }
}

/// Headers of records, to be read without the log. It holds their files: they are not used again meanwhile.
pub struct Headers {
    segments: Vec<Segment>,
    seed: Seed,
    after: Lsn,
    upto: Lsn,
}

impl Headers {
    /// Shows each header, in order; returns the last LSN that is covered by now, whether or not there is a record.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn run(self, mut visit: impl FnMut(&Header)) -> Result<Lsn, ReadError> {
        let mut covered = self.after;
        for segment in &self.segments {
            let (offset, tip) = segment.place_before(self.after.next());
            let mut scan = Scan::new(segment.file.clone(), self.seed, segment.end, offset, tip);
            let last = segment.last.min(self.upto);
            while scan.tip().lsn < last {
                let (header, _) = step(&mut scan, segment.slot, Depth::Headers)?;
                if header.lsn > self.after {
                    visit(&header);
                }
            }
            covered = covered.max(last);
        }
        Ok(if self.segments.is_empty() { self.upto } else { covered })
    }
}

/// Makes `bytes`, which were read from `start` of a segment, `len` long; shorter at the end of its records.
fn read_to(segment: &Segment, start: u64, bytes: &mut BytesMut, len: usize) -> Result<(), ReadError> {
    let there = bytes.len();
    let len = (segment.end - start).min(len as u64) as usize;
    if len <= there {
        return Ok(());
    }
    if there == 0 {
        // Memory that the system gives as zeros need not be written twice.
        *bytes = BytesMut::zeroed(len);
    } else {
        bytes.resize(len, 0);
    }
    let read = segment.file.read_at(&mut bytes[there..], start + there as u64);
    read.map_err(|error| ReadError::Io { slot: segment.slot, error })
}

impl Log {
    /// How to read a stretch of a payload back; `None` if its file is not held any more.
    #[must_use]
    pub(crate) fn in_record(&self, place: super::Place) -> Option<crate::read::InRecord> {
        let segment = self.line.iter().rev().find(|segment| segment.slot == place.segment)?;
        Some(segment.in_record(self.seed, place.offset))
    }

    /// Durable records from `from` on.
    #[must_use]
    pub fn read(&self, from: Lsn, max_bytes: usize) -> Stretch {
        let upto = if planted!(ShipBeforeDurable) { self.tip.lsn } else { self.durable.lsn };
        if from > upto {
            return Stretch::UpToDate;
        }
        if let Some(batch) = self.recent.read(self.seed, from, upto, max_bytes) {
            return Stretch::Ready(batch);
        }
        let segment = self.line.iter().rev().find(|segment| segment.header.first <= from);
        match segment {
            // It lies in a gap.
            Some(segment) if segment.last < from => Stretch::Gone,
            Some(segment) => {
                Stretch::OnDisk(Read { segment: segment.clone(), seed: self.seed, from, upto, max_bytes })
            }
            None => Stretch::Gone,
        }
    }

    /// Whether records from `from` on are in memory, or there are none yet.
    #[must_use]
    pub fn has_in_memory(&self, from: Lsn) -> bool {
        from > self.durable.lsn || self.recent.runs.front().is_some_and(|run| run.first <= from)
    }

    /// Lets go of the memory of records that every replica has.
    pub fn forget_through(&mut self, lsn: Lsn) {
        self.recent.forget_through(lsn);
    }

    /// The tip at a retained LSN and the byte behind its record; `None` if it is not retained. Reads up to a
    /// mebibyte.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tip_at(&self, lsn: Lsn) -> Result<Option<(Tip, u32, u64)>, ReadError> {
        // The segment that holds the record, not the one that begins behind it: the place must be the record's end.
        let Some(segment) = self.line.iter().rev().find(|segment| segment.header.first <= lsn) else {
            // A log has its start even if it has no record there: a replica whose primary was lost at once.
            let start = self.start();
            let slot = self.line.first().map_or(0, |segment| segment.slot);
            return Ok((lsn == start.lsn).then_some((start, slot, SEGMENT_HEADER_BYTES as u64)));
        };
        if lsn > segment.last {
            // In a gap; its end is a tip all the same.
            let next = self.line.iter().find(|next| next.start.lsn == lsn);
            let at_end = self.line.last().is_some_and(|last| last.last < lsn) && self.tip.lsn == lsn;
            return Ok(match next {
                Some(next) => Some((next.start, next.slot, SEGMENT_HEADER_BYTES as u64)),
                None => at_end.then_some((self.tip, segment.slot, segment.end)),
            });
        }
        let (tip, end) = segment.tip_at(self.seed, lsn)?;
        Ok(Some((tip, segment.slot, end)))
    }

    /// The segment that holds `lsn`, and a scan that stands before that record.
    fn scan_to(&self, lsn: Lsn) -> Result<Option<(&Segment, Scan)>, ReadError> {
        let Some(segment) = self.line.iter().rev().find(|segment| segment.header.first <= lsn) else {
            return Ok(None);
        };
        if lsn > segment.last {
            return Ok(None);
        }
        let (offset, tip) = segment.place_before(lsn);
        let mut scan = Scan::new(segment.file.clone(), self.seed, segment.end, offset, tip);
        while scan.tip().lsn.next() < lsn {
            step(&mut scan, segment.slot, Depth::Headers)?;
        }
        Ok(Some((segment, scan)))
    }

    /// The last position held at or before `lsn`: another one only if that lies within a gap.
    #[must_use]
    pub fn floor(&self, lsn: Lsn) -> Lsn {
        let ends_gap = lsn == self.tip.lsn || self.line.iter().any(|segment| segment.start.lsn == lsn);
        if ends_gap {
            return lsn;
        }
        match self.line.iter().rev().find(|segment| segment.header.first <= lsn) {
            Some(segment) => lsn.min(segment.last),
            None => lsn,
        }
    }

    /// The first record held at or behind `lsn`, or the one that comes next: another one than `lsn` only if that lies
    /// in a gap, or before the log.
    #[must_use]
    pub fn ceil(&self, lsn: Lsn) -> Lsn {
        let holder = self.line.iter().find(|segment| segment.last >= lsn);
        holder.map_or(self.tip.lsn.next(), |segment| segment.header.first).max(lsn)
    }

    /// The headers of the records behind `after` and up to `upto`, of a few segments at most, to be read without the
    /// log.
    #[must_use]
    pub fn headers(&self, after: Lsn, upto: Lsn, segments: usize) -> Headers {
        let within = |segment: &&Segment| segment.last > after && segment.header.first <= upto;
        let segments = self.line.iter().filter(within).take(segments).cloned().collect();
        Headers { segments, seed: self.seed, after, upto }
    }

    /// When a retained record was written.
    #[must_use]
    pub fn time_of(&self, lsn: Lsn) -> Option<Timestamp> {
        self.header_of(lsn).ok()?.map(|header| header.time)
    }

    /// The header of a record; `None` if it is not retained. Reads up to a mebibyte.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn header_of(&self, lsn: Lsn) -> Result<Option<Header>, ReadError> {
        let Some((segment, mut scan)) = self.scan_to(lsn)? else { return Ok(None) };
        step(&mut scan, segment.slot, Depth::Headers).map(|(header, _)| Some(header))
    }

    /// Bytes of records behind a retained LSN.
    #[must_use]
    pub fn bytes_after(&self, lsn: Lsn) -> Option<u64> {
        let Some((segment, scan)) = self.scan_to(lsn.next()).ok()? else {
            return (lsn >= self.tip.lsn).then_some(0);
        };
        let rest = self.line.iter().filter(|later| later.header.first > segment.header.first);
        let rest: u64 = rest.map(|later| later.end - SEGMENT_HEADER_BYTES as u64).sum();
        Some(segment.end - scan.offset() + rest)
    }

    /// The newest LSN, at most `upto`, such that no record up to it within its segment is younger than `time`;
    /// `None` if every retained record is.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn last_until(&self, time: Timestamp, upto: Lsn) -> Result<Option<Lsn>, ReadError> {
        for segment in self.line.iter().rev().filter(|segment| segment.header.first <= upto) {
            if segment.last_time <= time {
                return Ok(Some(segment.last.min(upto)));
            }
            let offset = SEGMENT_HEADER_BYTES as u64;
            let mut scan = Scan::new(segment.file.clone(), self.seed, segment.end, offset, segment.start);
            let mut found = None;
            while scan.tip().lsn < segment.last.min(upto) {
                let (header, _) = step(&mut scan, segment.slot, Depth::Headers)?;
                if header.time > time {
                    break;
                }
                found = Some(header.lsn);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// All records behind `after`, read back whole.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn records_after(&self, after: Lsn) -> Result<Vec<(Header, Bytes)>, ReadError> {
        let mut records = Vec::new();
        for segment in self.line.iter().filter(|segment| segment.last > after) {
            let (offset, tip) = segment.place_before(after.next());
            let mut scan = Scan::new(segment.file.clone(), self.seed, segment.end, offset, tip);
            while scan.tip().lsn < segment.last {
                let (header, payload) = step(&mut scan, segment.slot, Depth::Whole)?;
                if header.lsn > after {
                    records.push((header, payload));
                }
            }
        }
        Ok(records)
    }
}

/// The next record, which must be there; its payload if the depth asks for it.
pub(super) fn step(scan: &mut Scan, slot: u32, depth: Depth) -> Result<(Header, Bytes), ReadError> {
    let (offset, lsn) = (scan.offset(), scan.tip().lsn.next());
    match scan.next(depth).map_err(|error| ReadError::Io { slot, error })? {
        Ok((header, _, payload)) => Ok((header, Bytes::copy_from_slice(payload))),
        Err(stop) => Err(ReadError::Damaged { slot, offset, lsn, stop }),
    }
}
