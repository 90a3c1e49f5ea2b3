//! The log: one ordered run of records in preallocated, recycled segment files.
//!
//! - What [`Log::append`] returned is in the kernel's hands: it survives the process. What a [`Sync`] covered is
//!   durable: it survives the machine. Only [`Log::finish_sync`] moves the durable position.
//! - A write or sync that failed is final: the log refuses everything from then on and never syncs that file
//!   again (guarantee 8). Failing to *make* a file changes nothing and may be tried again.
//! - A page is always written whole: the part of the last page that already holds records is written again with
//!   the same bytes, the rest of it as zeros. So no append ever reads from disk, and no stale record can stand
//!   directly behind the tail.
//! - A segment holds records of one reign. Where a promotion left a reign's later records behind, they stay in
//!   their files as a branch.
//!
//! | module | what it is |
//! |---|---|
//! | [`mod@format`] | the bytes of records and segment headers |
//! | [`chain`] | what may follow what |
//! | [`segment`] | the files |
//! | [`scan`] | reading records in order |
//! | [`recovery`] | opening a log after a death |
//! | [`ship`] | reading stretches of it for a replica |
//! | [`notes`] | what the catalog wants to know of the newest records |

pub mod branch;
pub mod chain;
pub mod format;
pub mod notes;
pub mod recovery;
pub mod scan;
pub mod segment;
pub mod ship;

use crate::event::Kind;
use crate::io::{File, Storage, is_no_space};
use crate::peer::Batch;
use crate::state::Branch;
use crate::types::{Epoch, Extent, GroupId, Incarnation, Lsn, Reign, Timestamp, VolumeId};
use bytes::{Bytes, BytesMut};
use chain::Tip;
use format::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, aligned};
use notes::Notes;
use segment::{Fill, Folder, Segment, Spare};
use std::io::IoSlice;
use std::sync::Arc;

/// The unit in which files are written. Pages of most systems and blocks of most filesystems have this size.
const PAGE_BYTES: usize = 4096;

/// A file that takes so many syncs while it is filled is worth being written with zeros before: each sync of a block
/// that was only reserved writes the filesystem's journal as well.
const ZEROS_PAY_SYNCS: u32 = 256;

/// The limits of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a segment file in bytes; a multiple of 4096, with room for the longest record that is to be taken.
    pub segment_bytes: u64,
    /// Bytes of segment files in use above which appends are refused as [`Error::Full`].
    pub log_bytes: u64,
    /// Bytes of the newest records kept in memory for replicas.
    pub recent_bytes: usize,
}

impl Limits {
    /// Why these limits cannot be, if so.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Limits { segment_bytes, log_bytes, .. } = *self;
        if !segment_bytes.is_multiple_of(PAGE_BYTES as u64) || segment_bytes < MIN_SEGMENT_BYTES {
            return Some(format!(
                "a segment of {segment_bytes} bytes is not a multiple of {PAGE_BYTES} from {MIN_SEGMENT_BYTES} on"
            ));
        }
        (log_bytes / 2 < segment_bytes)
            .then(|| format!("a log of {log_bytes} bytes has no room for two segments of {segment_bytes}"))
    }
}

/// The shortest segment, which is for tests: its header and a page. A record must fit in one segment, so with less
/// than the default some writes are refused.
const MIN_SEGMENT_BYTES: u64 = 2 * PAGE_BYTES as u64;

impl Default for Limits {
    fn default() -> Limits {
        Limits { segment_bytes: 64 << 20, log_bytes: 16 << 30, recent_bytes: 64 << 20 }
    }
}

/// Why the log does not take records.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Its limit is reached: records are waiting to be applied or acknowledged.
    #[error("the log's limit of {limit_bytes} bytes is reached")]
    Full {
        /// The configured limit.
        limit_bytes: u64,
    },
    /// No new segment file could be made. Nothing changed; the next try may succeed.
    #[error("no new segment file could be made: {0}")]
    NoSegment(Arc<std::io::Error>),
    /// The record is longer than a segment of this node. Nothing changed.
    #[error("a record of {len} bytes does not fit a segment of {segment_bytes}: raise the segments' size")]
    TooLong {
        /// The record's length.
        len: usize,
        /// The configured length of segments.
        segment_bytes: u64,
    },
    /// A write or sync failed before. Final.
    #[error("the log failed: {0}")]
    Failed(Failure),
    /// A peer's bytes are not the next records.
    #[error("the records received do not continue the log at LSN {expected}: {stop}")]
    NotNext {
        /// What belongs there.
        expected: Lsn,
        /// What is wrong.
        stop: scan::Stop,
    },
}

impl Error {
    /// Whether the cause is a lack of space, which may pass.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::Full { .. } => true,
            Error::NoSegment(error) => is_no_space(error),
            Error::TooLong { .. } | Error::Failed(_) | Error::NotNext { .. } => false,
        }
    }
}

/// The write or sync that ended a log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} at LSN {lsn}: {error}")]
pub struct Failure {
    /// `write` or `sync`.
    pub operation: &'static str,
    /// The last LSN that is certainly durable.
    pub lsn: Lsn,
    /// What the system said.
    pub error: Arc<std::io::Error>,
}

/// An event to be logged.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// What happens.
    pub kind: Kind,
    /// Flags of the kind.
    pub flags: u16,
    /// To which volume; 0 for the group.
    pub volume: VolumeId,
    /// Where.
    pub extent: Extent,
    /// With which bytes.
    pub payload: &'a [u8],
}

/// Where a payload, or a part of one, lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment file's number.
    pub segment: u32,
    /// Byte in that file.
    pub offset: u64,
}

/// A record that was just appended.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Its header.
    pub header: Header,
    /// Where its payload lies on disk.
    pub place: Place,
    /// Its payload in memory.
    pub payload: Bytes,
}

/// A sync to be run without the log: `run`, then [`Log::finish_sync`].
pub struct Sync {
    files: Vec<Arc<dyn File>>,
    upto: Tip,
    lets_go: bool,
}

/// The outcome of a [`Sync`].
#[must_use = "the log does not know of the sync until it is told"]
pub struct Synced {
    upto: Tip,
    result: std::io::Result<()>,
}

impl Sync {
    /// Whether files that are full are to leave the system's memory once they are synced: nobody will read them or
    /// write to them soon.
    pub fn lets_go(&mut self, lets_go: bool) {
        self.lets_go = lets_go;
    }

    /// Syncs the files. An error of one is an error of all.
    pub fn run(self) -> Synced {
        let sync = |file: &Arc<dyn File>| match file.sync() {
            Err(_) if planted!(RetryFailedSync) => file.sync(),
            result => result,
        };
        let result = self.files.iter().try_for_each(sync);
        // Not after a failure: what memory holds may then be all that is left of it.
        if result.is_ok()
            && self.lets_go
            && let Some((_filling, full)) = self.files.split_last()
        {
            full.iter().for_each(|file| file.let_go());
        }
        Synced { upto: self.upto, result }
    }
}

/// The log of one group on one node.
pub struct Log {
    group: GroupId,
    seed: Seed,
    limits: Limits,
    folder: Folder,
    /// The history that counts, oldest first; records are appended to the last.
    line: Vec<Segment>,
    /// Whole segments of reigns that a promotion cut short.
    branches: Vec<Segment>,
    tip: Tip,
    durable: Tip,
    incarnation: Incarnation,
    /// The next record begins a new segment, whatever room there is.
    must_begin: bool,
    /// The records of the last, partly filled page.
    page: Vec<u8>,
    /// Files with records that no sync covers yet.
    unsynced: Vec<Arc<dyn File>>,
    syncing: bool,
    failure: Option<Failure>,
    recent: ship::Recent,
    notes: Notes,
    /// Syncs since the last file began.
    syncs: u32,
    /// Syncs while the one before it was filled.
    last_syncs: Option<u32>,
}

impl Log {
    /// The last record appended.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The last record that survives a power cut.
    #[must_use]
    pub fn durable(&self) -> Tip {
        self.durable
    }

    /// The oldest record still held.
    #[must_use]
    pub fn first(&self) -> Lsn {
        self.line.first().map_or(self.tip.lsn.next(), |segment| segment.header.first)
    }

    /// The tip before the oldest record still held.
    #[must_use]
    pub fn start(&self) -> Tip {
        self.line.first().map_or(self.tip, |segment| segment.start)
    }

    /// Why it takes no records any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What was noted of the newest records.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Bytes of segment files that hold needed records, branches included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.line.iter().chain(&self.branches).map(|segment| segment.header.len).sum()
    }

    /// The configured limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The seed of its checksums.
    #[must_use]
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// Its segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.line
    }

    /// The file of a slot, for reading payloads.
    #[must_use]
    pub fn file(&self, slot: u32) -> Option<&Arc<dyn File>> {
        self.line.iter().rev().chain(&self.branches).find(|segment| segment.slot == slot).map(|s| &s.file)
    }

    /// Appends events, each as one record, in order. Returns what was appended, and the error that kept the rest
    /// from it, if any; a record is never appended by halves.
    pub fn append(
        &mut self,
        time: Timestamp,
        epoch: Epoch,
        drafts: &[Draft<'_>],
    ) -> (Vec<Appended>, Option<Error>) {
        let mut appended = Vec::with_capacity(drafts.len());
        let mut rest = drafts;
        while !rest.is_empty() {
            let taken = match self.append_run(time, epoch, rest, &mut appended) {
                Ok(taken) => taken,
                Err(error) => return (appended, Some(error)),
            };
            rest = &rest[taken..];
        }
        (appended, None)
    }

    /// Appends as many events as the current segment has room for, in one write.
    fn append_run(
        &mut self,
        time: Timestamp,
        epoch: Epoch,
        drafts: &[Draft<'_>],
        appended: &mut Vec<Appended>,
    ) -> Result<usize, Error> {
        let needed = HEADER_BYTES + aligned(drafts[0].payload.len());
        self.make_room(epoch, needed)?;
        let segment = self.line.last().expect("room was made in a segment");
        let room = (segment.header.len - segment.end) as usize;
        let (slot, start) = (segment.slot, segment.end);
        let mut total = 0;
        let count = drafts
            .iter()
            .take_while(|draft| {
                total += HEADER_BYTES + aligned(draft.payload.len());
                total <= room
            })
            .count();
        let bytes_len: usize =
            drafts[..count].iter().map(|draft| HEADER_BYTES + aligned(draft.payload.len())).sum();

        let mut bytes = BytesMut::with_capacity(bytes_len);
        let mut tip = self.tip;
        let mut headers = Vec::with_capacity(count);
        for draft in &drafts[..count] {
            let at = bytes.len();
            bytes.extend_from_slice(&[0; HEADER_BYTES]);
            bytes.extend_from_slice(draft.payload);
            bytes.resize(at + HEADER_BYTES + aligned(draft.payload.len()), 0);
            let begins = draft.kind.begins_incarnation();
            let mut header = Header {
                kind: draft.kind,
                flags: draft.flags,
                checksum: Default::default(),
                payload_checksum: match draft.payload.len() {
                    0 => 0,
                    _ => self.seed.checksum(&[&bytes[at + HEADER_BYTES..]]),
                },
                previous: tip.checksum,
                incarnation: if begins { self.incarnation } else { tip.incarnation },
                lsn: tip.lsn.next(),
                epoch,
                durable: self.durable.lsn,
                time,
                extent: draft.extent,
                payload_len: draft.payload.len() as u32,
                volume: draft.volume,
            };
            let slot: &mut [u8; HEADER_BYTES] =
                (&mut bytes[at..at + HEADER_BYTES]).try_into().expect("the length is the header's");
            header.encode(self.seed, slot);
            debug_assert_eq!(tip.check_next(&header), Ok(()), "a writer follows its own rule");
            tip = tip.advanced(&header);
            headers.push((header, at));
        }
        let bytes = bytes.freeze();
        self.write(&bytes)?;
        let first = self.tip.lsn.next();
        for (header, at) in headers {
            let offset = start + at as u64;
            let from = at + HEADER_BYTES;
            let payload = bytes.slice(from..from + header.payload_len as usize);
            self.note(&header, offset, &payload);
            let place = Place { segment: slot, offset: offset + HEADER_BYTES as u64 };
            appended.push(Appended { header, place, payload });
        }
        self.recent.push(first, self.tip.lsn, bytes);
        Ok(count)
    }

    /// Appends a primary's records as they came. All of them are checked, also against the history that they must
    /// be part of, before the first is written. Returns what was appended, and the error that kept the rest from
    /// it, if any, as [`Log::append`] does; [`Error::NotNext`] changes nothing.
    pub fn append_batch(&mut self, batch: Batch, history: &[Reign]) -> (Vec<Appended>, Option<Error>) {
        let bytes = one_piece(batch.bytes);
        let mut appended = Vec::new();
        let records = match self.check_batch(&bytes, history) {
            Ok(records) => records,
            Err(error) => return (appended, Some(error)),
        };
        let error = self.append_checked(&bytes, &records, &mut appended).err();
        (appended, error)
    }

    /// The records of a batch and where they start.
    fn check_batch(&self, bytes: &Bytes, history: &[Reign]) -> Result<Vec<(Header, usize)>, Error> {
        let mut tip = self.tip;
        let mut records = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let not_next = |stop: scan::Stop| Error::NotNext { expected: tip.lsn.next(), stop };
            let header = Header::decode(self.seed, &bytes[at..]).map_err(|fault| not_next(fault.into()))?;
            tip.check_next(&header).map_err(|broken| not_next(broken.into()))?;
            let reign = history.iter().rev().find(|reign| reign.branch.lsn < header.lsn);
            let expected = reign.map_or(Epoch(0), |reign| reign.epoch);
            if header.epoch != expected {
                return Err(not_next(chain::Break::Epoch { expected, found: header.epoch }.into()));
            }
            let end = at + header.record_len();
            let payload =
                bytes.get(at + HEADER_BYTES..end).ok_or_else(|| not_next(format::Fault::Cut.into()))?;
            header.check_payload(self.seed, payload).map_err(|fault| not_next(fault.into()))?;
            tip = tip.advanced(&header);
            records.push((header, at));
            at = end;
        }
        if planted!(DropLastOfBatch) && records.len() > 1 {
            records.pop();
        }
        Ok(records)
    }

    fn append_checked(
        &mut self,
        bytes: &Bytes,
        records: &[(Header, usize)],
        appended: &mut Vec<Appended>,
    ) -> Result<(), Error> {
        let mut records = records;
        // Nobody follows a replica: memory that is let go of at once is used again while it is warm.
        self.recent.clear();
        while let Some((first, from)) = records.first() {
            self.make_room(first.epoch, first.record_len())?;
            let segment = self.line.last().expect("room was made in a segment");
            let (slot, start, room) = (segment.slot, segment.end, segment.header.len - segment.end);
            let count = records
                .iter()
                .take_while(|(header, at)| {
                    header.epoch == first.epoch && (at + header.record_len() - from) as u64 <= room
                })
                .count();
            let to = records.get(count).map_or(bytes.len(), |&(_, at)| at);
            let run = bytes.slice(*from..to);
            self.write(&run)?;
            for (header, at) in &records[..count] {
                let offset = start + (at - from) as u64;
                let from = at + HEADER_BYTES;
                let payload = bytes.slice(from..from + header.payload_len as usize);
                self.note(header, offset, &payload);
                let place = Place { segment: slot, offset: offset + HEADER_BYTES as u64 };
                appended.push(Appended { header: *header, place, payload });
            }
            records = &records[count..];
        }
        Ok(())
    }

    /// Makes the last segment one of `epoch` that has room for a record of `len` bytes.
    fn make_room(&mut self, epoch: Epoch, len: usize) -> Result<(), Error> {
        if let Some(failure) = &self.failure {
            return Err(Error::Failed(failure.clone()));
        }
        let segment_bytes = self.limits.segment_bytes;
        if len as u64 > segment_bytes - SEGMENT_HEADER_BYTES as u64 {
            return Err(Error::TooLong { len, segment_bytes });
        }
        let fits = !self.must_begin
            && self.line.last().is_some_and(|last| last.header.epoch == epoch && last.has_room_for(len));
        if fits {
            return Ok(());
        }
        if self.used_bytes() + self.limits.segment_bytes > self.limits.log_bytes {
            return Err(Error::Full { limit_bytes: self.limits.log_bytes });
        }
        if self.folder.spares() == 0 {
            let spare = self.folder.make(Fill::Reserve).run().map_err(|e| Error::NoSegment(Arc::new(e)))?;
            self.folder.add_spare(spare);
        }
        match self.folder.begin(self.group, epoch, self.tip) {
            Ok(segment) => {
                self.line.push(segment);
                self.page.clear();
                self.must_begin = false;
                self.last_syncs = Some(std::mem::take(&mut self.syncs));
                Ok(())
            }
            Err(error) => Err(Error::Failed(self.fail("write", error))),
        }
    }

    /// Writes bytes behind the tail: whole pages, see the module.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        let segment = self.line.last().expect("room was made in a segment");
        let at = segment.end - self.page.len() as u64;
        assert_eq!(at % PAGE_BYTES as u64, 0, "an append starts with a page");
        let len = self.page.len() + bytes.len();
        let padding = len.next_multiple_of(PAGE_BYTES) - len;
        let slices = [IoSlice::new(&self.page), IoSlice::new(bytes), IoSlice::new(&ZEROS[..padding])];
        let used = &slices[usize::from(self.page.is_empty())..];
        if let Err(error) = segment.file.write_at(used, at) {
            return Err(Error::Failed(self.fail("write", error)));
        }
        let file = segment.file.clone();
        if !self.unsynced.last().is_some_and(|last| Arc::ptr_eq(last, &file)) {
            self.unsynced.push(file);
        }
        let in_page = len % PAGE_BYTES;
        if in_page <= bytes.len() {
            self.page.clear();
            self.page.extend_from_slice(&bytes[bytes.len() - in_page..]);
        } else {
            self.page.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Takes note of a record that was written.
    fn note(&mut self, header: &Header, offset: u64, payload: &[u8]) {
        self.notes.take(header, payload);
        let segment = self.line.last_mut().expect("it was written to a segment");
        segment.note(self.tip, header, offset);
        self.tip = self.tip.advanced(header);
    }

    fn fail(&mut self, operation: &'static str, error: std::io::Error) -> Failure {
        let failure = Failure { operation, lsn: self.durable.lsn, error: Arc::new(error) };
        self.failure.get_or_insert_with(|| failure.clone());
        failure
    }

    /// A sync of everything appended so far; `None` if there is nothing to sync, one is under way, or the log
    /// failed.
    pub fn begin_sync(&mut self) -> Option<Sync> {
        if self.syncing || self.failure.is_some() || self.tip == self.durable {
            return None;
        }
        self.syncing = true;
        Some(Sync { files: std::mem::take(&mut self.unsynced), upto: self.tip, lets_go: false })
    }

    /// Takes the outcome of a sync. Only this moves the durable position.
    ///
    /// # Errors
    /// [`Failure`] if the sync failed: final.
    pub fn finish_sync(&mut self, synced: Synced) -> Result<(), Failure> {
        assert!(self.syncing, "a sync ends once");
        self.syncing = false;
        if let Err(error) = synced.result {
            return Err(self.fail("sync", error));
        }
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        assert!(
            synced.upto.lsn >= self.durable.lsn && synced.upto.lsn <= self.tip.lsn,
            "a sync covers what was appended"
        );
        self.durable = synced.upto;
        self.syncs = self.syncs.saturating_add(1);
        // The file that is being filled may have been written to while it was synced: `write` has put it back on
        // the list then.
        Ok(())
    }

    /// A job that makes a file ahead of need; `None` if there are enough, or no more are allowed.
    pub fn begin_make(&mut self, wanted: usize) -> Option<segment::Make> {
        let in_use = self.used_bytes() + self.folder.spares() as u64 * self.limits.segment_bytes;
        let allowed = in_use + self.limits.segment_bytes <= self.limits.log_bytes;
        (self.folder.spares() < wanted && allowed && self.failure.is_none()).then(|| {
            // With none in hand, records come faster than zeros could be written ahead of them; and where a file
            // takes few syncs, the zeros cost more than they save.
            let pays = self.last_syncs.is_none_or(|last| last.max(self.syncs) >= ZEROS_PAY_SYNCS);
            let fill = if pays && self.folder.spares() > 0 { Fill::Zeros } else { Fill::Reserve };
            self.folder.make(fill)
        })
    }

    /// Takes the file that was made.
    pub fn finish_make(&mut self, spare: Spare) {
        self.folder.add_spare(spare);
    }

    /// The number of files made ahead.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.folder.spares()
    }

    /// What [`Log::free_before`] would leave as the start: the tip before the segment that holds `lsn`.
    #[must_use]
    pub fn start_for(&self, lsn: Lsn) -> Tip {
        self.line
            .iter()
            .rev()
            .find(|segment| segment.header.first <= lsn)
            .map_or_else(|| self.start(), |segment| segment.start)
    }

    /// Gives the files back whose records all lie before `start`, which must be durably on record as the log's
    /// start by now: were a file used again before, a crash would show a log with its beginning missing.
    ///
    /// # Errors
    /// Of the folder; the file is kept then, and is found again at the next start.
    pub fn free_before(&mut self, start: Tip) -> std::io::Result<()> {
        while self
            .line
            .first()
            .is_some_and(|first| first.header.first <= start.lsn && first.last <= start.lsn)
            && self.line.len() > 1
        {
            let segment = self.line.remove(0);
            if segment.shared {
                self.branches.push(segment);
            } else {
                self.folder.recycle(segment.slot, segment.file)?;
            }
        }
        Ok(())
    }

    /// Gives the files back that none of these branches needs, which are durably on record by now. A file of which only
    /// the records tell is kept until the next opening looks.
    ///
    /// # Errors
    /// Of the folder; the files are found again at the next start.
    pub fn keep_branches(&mut self, branches: &[Branch]) -> std::io::Result<()> {
        for segment in &mut self.line {
            let within = segment.header.first..=segment.last;
            segment.shared = branches.iter().any(|branch| within.contains(&branch.after.lsn));
        }
        let (kept, free) = std::mem::take(&mut self.branches)
            .into_iter()
            .partition(|segment| branches.iter().any(|branch| branch.may_need(&segment.header)));
        self.branches = kept;
        let free: Vec<Segment> = free;
        free.into_iter().try_for_each(|segment| self.folder.recycle(segment.slot, segment.file))
    }

    /// Bytes of files that only branches need.
    #[must_use]
    pub fn branch_bytes(&self) -> u64 {
        self.branches.iter().map(|segment| segment.header.len).sum()
    }

    /// Makes the record behind the tip begin a new segment: a promotion, or a branch left behind.
    pub fn begin_segment(&mut self) {
        self.must_begin = true;
    }

    /// The incarnation that the next record which begins one carries; durably on record by now.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
    }

    /// Leaves records out: the next one is the one behind `to`. The gap is durably on record by now.
    pub fn jump(&mut self, to: Tip) {
        assert!(to.lsn > self.tip.lsn, "a log jumps forward");
        assert!(self.tip == self.durable && !self.syncing, "a log jumps when it is at rest");
        self.tip = to;
        self.durable = to;
        self.page.clear();
        self.must_begin = true;
        self.recent.clear();
    }

    /// Ends the main line at `at`, which must be durable; what lies behind stays on disk as a branch.
    pub fn cut(&mut self, at: Tip, end_of_record: u64) {
        assert!(at.lsn <= self.durable.lsn, "only what is durable can be branched off");
        assert!(self.tip == self.durable && !self.syncing, "a log is cut when it is at rest");
        while self.line.last().is_some_and(|last| last.header.first > at.lsn) {
            self.branches.extend(self.line.pop());
        }
        if let Some(last) = self.line.last_mut() {
            last.cut(at.lsn, end_of_record);
        }
        let behind = self.tip.lsn;
        self.tip = at;
        self.durable = at;
        if planted!(RenumberAfterCut) {
            self.tip.lsn = behind;
            self.durable.lsn = behind;
        }
        self.page.clear();
        self.must_begin = true;
        self.recent.clear();
        self.notes.cut(at.lsn);
    }
}

/// Joins the pieces of a batch, without a copy if there is only one.
fn one_piece(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

/// Makes a spare file; runs without the log.
///
/// # Errors
/// Of the files; nothing is left behind then but, at worst, a leftover that the next start removes.
pub fn make_spare(make: segment::Make) -> std::io::Result<Spare> {
    make.run()
}

/// Opens a folder for a log. Internal to recovery.
fn open_folder(storage: Arc<dyn Storage>, dir: &str, limits: &Limits) -> std::io::Result<Folder> {
    Folder::open(storage, dir, limits.segment_bytes)
}
