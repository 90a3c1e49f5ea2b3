//! The files of a log: made ahead of need, used again when freed.
//!
//! - A file's name is its slot, for ever; what it holds is said by its header page alone. Using a file again is
//!   therefore one write, with no rename and no folder sync.
//! - A file is reserved, filled with zeros, synced, and its name made durable *before* it can take a record: an
//!   append later overwrites allocated blocks, which needs no space and no journal commit.
//! - If we die while making a file, it has no valid header and is found as a leftover at the next start.
//! - A file is only used again after the state file says, durably, that nothing in it is needed.

use super::chain::Tip;
use super::format::{Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use super::scan::{Depth, Scan};
use super::ship::{ReadError, step};
use crate::io::{File, OpenMode, Storage, make_dir};
use crate::read::InRecord;
use crate::types::{Epoch, GroupId, Lsn, Timestamp};
use std::io::{Error, IoSlice, Result};
use std::sync::Arc;

/// Bytes between two remembered places of a segment.
const WAYPOINT_BYTES: u64 = 64 << 10;
/// Freed files kept for use; more are removed.
pub const MAX_SPARES: usize = 4;
/// The highest number of a file: eight digits.
const MAX_SLOT: u32 = 99_999_999;
/// The piece in which a new file is filled with zeros.
const FILL_BYTES: usize = 1 << 20;

/// A file that holds records.
#[derive(Clone)]
pub struct Segment {
    /// The number in its name.
    pub slot: u32,
    /// Open for reading and writing.
    pub file: Arc<dyn File>,
    /// Its header page.
    pub header: SegmentHeader,
    /// The tip before its first record.
    pub start: Tip,
    /// The last record that counts.
    pub last: Lsn,
    /// The byte behind that record.
    pub end: u64,
    /// The latest time that any of its records carries.
    pub last_time: Timestamp,
    /// Behind the last record stand others that a branch still needs: the file is kept when the line is done with it.
    pub(super) shared: bool,
    /// Some records and where they start, ascending.
    waypoints: Vec<(Lsn, u64, Tip)>,
}

impl Segment {
    pub(super) fn new(slot: u32, file: Arc<dyn File>, header: SegmentHeader, start: Tip) -> Segment {
        let end = SEGMENT_HEADER_BYTES as u64;
        Segment {
            slot,
            file,
            header,
            start,
            last: start.lsn,
            end,
            last_time: Timestamp(0),
            shared: false,
            waypoints: Vec::new(),
        }
    }

    /// Takes note of a record at `offset`; `before` is the tip that it follows.
    pub(super) fn note(&mut self, before: Tip, header: &Header, offset: u64) {
        debug_assert_eq!(offset, self.end, "records of a segment stand one behind the other");
        let due = self.waypoints.last().is_none_or(|&(_, at, _)| offset - at >= WAYPOINT_BYTES);
        if due {
            self.waypoints.push((header.lsn, offset, before));
        }
        self.last = header.lsn;
        self.end = offset + header.record_len() as u64;
        self.last_time = self.last_time.max(header.time);
    }

    /// A place at or before `lsn` from which a scan finds it: the offset, and the tip before it.
    pub fn place_before(&self, lsn: Lsn) -> (u64, Tip) {
        let index = self.waypoints.partition_point(|&(at, ..)| at <= lsn);
        match index.checked_sub(1) {
            Some(index) => (self.waypoints[index].1, self.waypoints[index].2),
            None => (SEGMENT_HEADER_BYTES as u64, self.start),
        }
    }

    /// A place at or before the record that holds byte `offset`.
    pub(super) fn place_at(&self, offset: u64) -> (u64, Tip) {
        let index = self.waypoints.partition_point(|&(_, at, _)| at <= offset);
        match index.checked_sub(1) {
            Some(index) => (self.waypoints[index].1, self.waypoints[index].2),
            None => (SEGMENT_HEADER_BYTES as u64, self.start),
        }
    }

    /// How to read a stretch of a payload back that begins at byte `offset` of the file.
    pub(super) fn in_record(&self, seed: Seed, offset: u64) -> InRecord {
        let (scan_from, scan_tip) = self.place_at(offset);
        InRecord { file: self.file.clone(), seed, end: self.end, scan_from, scan_tip, offset }
    }

    /// The tip at one of the records, and the byte behind it. Reads up to a mebibyte.
    pub(super) fn tip_at(&self, seed: Seed, lsn: Lsn) -> std::result::Result<(Tip, u64), ReadError> {
        let (offset, tip) = self.place_before(lsn);
        let mut scan = Scan::new(self.file.clone(), seed, self.end, offset, tip);
        while scan.tip().lsn < lsn {
            step(&mut scan, self.slot, Depth::Headers)?;
        }
        Ok((scan.tip(), scan.offset()))
    }

    /// Forgets what lies behind `lsn`, whose record ends at `end`.
    pub(super) fn cut(&mut self, lsn: Lsn, end: u64) {
        self.waypoints.retain(|&(at, ..)| at <= lsn);
        self.shared |= end < self.end;
        self.last = lsn;
        self.end = end;
    }

    /// The bytes of a record of `len` that still fit.
    pub(super) fn has_room_for(&self, len: usize) -> bool {
        self.end + len as u64 <= self.header.len
    }
}

/// A file that can take records.
pub struct Spare {
    pub(super) slot: u32,
    pub(super) file: Arc<dyn File>,
}

impl Spare {
    /// A read that was planned before the file was freed may still hold it.
    fn is_unread(&self) -> bool {
        Arc::strong_count(&self.file) == 1
    }
}

/// The folder of a log.
pub struct Folder {
    storage: Arc<dyn Storage>,
    dir: String,
    segment_bytes: u64,
    spares: Vec<Spare>,
    next_slot: u32,
    next_sequence: u64,
}

/// What was found in a file at the start.
pub(super) enum Found {
    /// A header of this group's log.
    Segment(SegmentHeader),
    /// Of full length, but with no header: made ahead, never used.
    Blank,
    /// Not finished when the machine or the process died.
    Leftover,
    /// A damaged header, or one of a newer version.
    Damaged(super::format::Fault),
    /// Another group's: no business of this log.
    Stranger,
}

impl Folder {
    /// Makes the folder if need be.
    pub(super) fn open(storage: Arc<dyn Storage>, dir: &str, segment_bytes: u64) -> Result<Folder> {
        make_dir(&*storage, dir)?;
        Ok(Folder {
            storage,
            dir: dir.to_owned(),
            segment_bytes,
            spares: Vec::new(),
            next_slot: 1,
            next_sequence: 1,
        })
    }

    pub(super) fn dir(&self) -> &str {
        &self.dir
    }

    pub(super) fn path(&self, slot: u32) -> String {
        format!("{}/{slot:08}.seg", self.dir)
    }

    /// Every segment file with its length, by slot. Files with other names are no business of the log and are left
    /// alone.
    pub(super) fn find(&mut self, group: GroupId) -> Result<Vec<(Spare, u64, Found)>> {
        let mut found = Vec::new();
        for name in self.storage.list(&self.dir)? {
            let Some(slot) = name.strip_suffix(".seg").and_then(|digits| digits.parse::<u32>().ok()) else {
                continue;
            };
            if slot > MAX_SLOT || name != format!("{slot:08}.seg") {
                continue;
            }
            self.next_slot = self.next_slot.max(slot + 1);
            let file = self.storage.open(&self.path(slot), OpenMode::Write)?;
            let len = file.len()?;
            let mut page = vec![0; SEGMENT_HEADER_BYTES.min(usize::try_from(len).unwrap_or(usize::MAX))];
            file.read_at(&mut page, 0)?;
            let blank = page.iter().all(|&byte| byte == 0);
            let what = match SegmentHeader::decode(&page) {
                Ok(header) if header.group == group => Found::Segment(header),
                Ok(_) => Found::Stranger,
                Err(_) if blank && len != self.segment_bytes => Found::Leftover,
                Err(_) if blank => Found::Blank,
                Err(fault) => Found::Damaged(fault),
            };
            if let Found::Segment(header) = &what {
                self.next_sequence = self.next_sequence.max(header.sequence.saturating_add(1));
            }
            found.push((Spare { slot, file }, len, what));
        }
        Ok(found)
    }

    /// The number of files that can take records now.
    pub fn spares(&self) -> usize {
        self.spares.iter().filter(|spare| spare.is_unread()).count()
    }

    /// The length of new segments.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// A job that makes one more spare.
    pub(super) fn make(&mut self, fill: Fill) -> Make {
        let slot = self.next_slot;
        self.next_slot += 1;
        Make {
            storage: self.storage.clone(),
            dir: self.dir.clone(),
            path: self.path(slot),
            slot,
            len: self.segment_bytes,
            fill,
        }
    }

    pub(super) fn add_spare(&mut self, spare: Spare) {
        self.spares.push(spare);
    }

    /// Takes back a file whose records are no longer needed: as a spare, or off the disk if there are enough.
    pub(super) fn recycle(&mut self, slot: u32, file: Arc<dyn File>) -> Result<()> {
        if self.spares.len() < MAX_SPARES && file.len()? == self.segment_bytes {
            self.spares.push(Spare { slot, file });
            return Ok(());
        }
        self.remove(slot)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Result<()> {
        self.storage.remove(&self.path(slot))?;
        self.storage.sync_dir(&self.dir)
    }

    /// Begins a segment at `tip`: takes a spare, or makes a file here and now.
    pub(super) fn begin(&mut self, group: GroupId, epoch: Epoch, tip: Tip) -> Result<Segment> {
        let index = self.spares.iter().position(Spare::is_unread).expect("the caller has made one");
        let spare = self.spares.remove(index);
        let header = SegmentHeader {
            group,
            sequence: self.next_sequence,
            epoch,
            first: tip.lsn.next(),
            len: self.segment_bytes,
            previous: tip.checksum,
        };
        // If we die before the first sync, the header is old, new or (being one sector) nothing else.
        spare.file.write_at(&[IoSlice::new(&header.encode())], 0)?;
        self.next_sequence += 1;
        Ok(Segment::new(spare.slot, spare.file, header, tip))
    }
}

/// How much of a new file is written before its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Space is reserved.
    Reserve,
    /// Zeros are written as well, which makes the first syncs of real records as cheap as later ones.
    Zeros,
}

/// Makes a spare; runs without the log.
pub struct Make {
    storage: Arc<dyn Storage>,
    dir: String,
    path: String,
    slot: u32,
    len: u64,
    fill: Fill,
}

impl Make {
    pub(super) fn run(self) -> Result<Spare> {
        let made = self.try_run();
        if made.is_err() {
            // No room, most likely: do not hold on to what there was. Should this fail too, or should we die
            // here, the file is a leftover for the next start.
            let _ = self.storage.remove(&self.path);
        }
        made
    }

    fn try_run(&self) -> Result<Spare> {
        if self.slot > MAX_SLOT {
            return Err(Error::other(format!("{}: its number is beyond {MAX_SLOT}", self.path)));
        }
        let file = self.storage.open(&self.path, OpenMode::Create)?;
        file.allocate(self.len)?;
        if self.fill == Fill::Zeros {
            let zeros = vec![0; FILL_BYTES];
            let mut at = 0;
            while at < self.len {
                let part = (self.len - at).min(FILL_BYTES as u64) as usize;
                file.write_at(&[IoSlice::new(&zeros[..part])], at)?;
                at += part as u64;
            }
        }
        file.sync()?;
        if !planted!(ForgetDirectorySync) {
            self.storage.sync_dir(&self.dir)?;
        }
        Ok(Spare { slot: self.slot, file })
    }
}
