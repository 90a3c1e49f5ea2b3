//! Reads of a volume or of a point: planned under the node's lock, carried out without it.
//!
//! A plan holds the files that it reads, and a file is not used again for new records while a plan holds it. What
//! is read from the log is checked against its record's checksum; what is read from a backing device or a base
//! image is as good as that disk, as it would be without Landfall.

use crate::guest::{Piece, Stretch};
use crate::io::File;
use crate::kept::KeptMarks;
use crate::log::chain::Tip;
use crate::log::format::{HEADER_BYTES, Seed};
use crate::log::scan::{Depth, Scan, Stop};
use crate::overlay::Content;
use crate::types::{Extent, Lsn, VolumeId};
use bytes::{Bytes, BytesMut};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

/// A run of zeros at least this long is told as a hole.
const HOLE_BYTES: usize = 4096;
/// The most stretches in the answer to one status request.
const MAX_STRETCHES: usize = 1024;

/// Whether a read may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Yes,
    /// Not at all: `WouldBlock` instead.
    No,
}

/// Where to find the bytes of a part.
#[derive(Clone)]
pub(crate) enum From {
    /// In memory.
    Memory(Content),
    /// At the same offset of a plain file or device.
    Plain(Arc<dyn File>),
    /// In a record's payload.
    Record(InRecord),
    /// Wherever a kept mark finds it when it is read.
    Kept(AtKept),
}

/// A volume at a kept mark.
#[derive(Clone)]
pub(crate) struct AtKept {
    pub(crate) marks: Arc<KeptMarks>,
    pub(crate) at: Lsn,
    pub(crate) volume: VolumeId,
    pub(crate) base: Arc<dyn File>,
}

/// A stretch of a payload in a segment file.
#[derive(Clone)]
pub(crate) struct InRecord {
    pub(crate) file: Arc<dyn File>,
    pub(crate) seed: Seed,
    /// Byte behind the segment's last record.
    pub(crate) end: u64,
    /// A place before the record from which a scan finds it.
    pub(crate) scan_from: u64,
    pub(crate) scan_tip: Tip,
    /// First byte of the stretch in the file.
    pub(crate) offset: u64,
}

/// A planned read.
#[derive(Clone)]
pub struct Plan {
    extent: Extent,
    parts: Vec<(Extent, From)>,
}

impl Plan {
    pub(crate) fn new(extent: Extent, parts: Vec<(Extent, From)>) -> Plan {
        debug_assert_eq!(parts.iter().map(|(part, _)| part.len).sum::<u64>(), extent.len);
        Plan { extent, parts }
    }

    pub(crate) fn into_parts(self) -> Vec<(Extent, From)> {
        self.parts
    }

    /// The part of it that lies in `extent`, which must lie within.
    pub(crate) fn within(&self, extent: Extent) -> Plan {
        let parts = self.parts.iter().filter_map(|(part, from)| {
            let cut = part.intersect(extent)?;
            let skip = cut.offset - part.offset;
            let from = match from {
                From::Memory(content) => From::Memory(content.slice(skip, cut.len)),
                From::Plain(file) => From::Plain(file.clone()),
                From::Record(record) => {
                    From::Record(InRecord { offset: record.offset + skip, ..record.clone() })
                }
                From::Kept(kept) => From::Kept(kept.clone()),
            };
            Some((cut, from))
        });
        Plan::new(extent, parts.collect())
    }

    /// The bytes, as pieces in order.
    ///
    /// # Errors
    /// Of the files; `InvalidData` if a record's checksum does not match: wrong data is never handed out.
    pub fn read(&self, wait: Wait) -> Result<Vec<Piece>> {
        let mut logged = match wait {
            Wait::Yes => self.read_records()?.into_iter(),
            Wait::No
                if self.parts.iter().any(|(_, from)| matches!(from, From::Record(_) | From::Kept(_))) =>
            {
                return Err(ErrorKind::WouldBlock.into());
            }
            Wait::No => Vec::new().into_iter(),
        };
        let mut pieces = Vec::with_capacity(self.parts.len());
        for (part, from) in &self.parts {
            match from {
                From::Memory(Content::Bytes(bytes)) => pieces.push(Piece::Bytes(bytes.clone())),
                From::Memory(Content::Zero { .. }) => pieces.push(Piece::Hole(part.len)),
                From::Plain(file) => {
                    let mut bytes = BytesMut::zeroed(part.len as usize);
                    match wait {
                        Wait::Yes => file.read_at(&mut bytes, part.offset)?,
                        Wait::No => file.read_cached_at(&mut bytes, part.offset)?,
                    }
                    pieces.push(piece(bytes.freeze()));
                }
                From::Record(_) => pieces.push(piece(logged.next().expect("each of them was read"))),
                From::Kept(AtKept { marks, at, volume, base }) => {
                    pieces.extend(marks.read(*at, *volume, *part, &**base)?);
                }
            }
        }
        Ok(pieces)
    }

    /// The parts that stand in records. They are read in the order of the log, so that records which lie together
    /// are looked for once.
    fn read_records(&self) -> Result<Vec<Bytes>> {
        let of_record = |(part, from): &(Extent, From)| match from {
            From::Record(record) => Some((record.clone(), part.len as usize)),
            From::Memory(_) | From::Plain(_) | From::Kept(_) => None,
        };
        let records: Vec<_> = self.parts.iter().filter_map(of_record).collect();
        let mut order: Vec<usize> = (0..records.len()).collect();
        let place = |record: &InRecord| (record.scan_tip.lsn, record.end, record.offset);
        order.sort_by_key(|&index| place(&records[index].0));
        let mut found = vec![Bytes::new(); records.len()];
        let mut walk: Option<Walk> = None;
        for index in order {
            let (record, len) = &records[index];
            let walk = match &mut walk {
                Some(walk) if walk.leads_to(record) => walk,
                other => other.insert(Walk::begin(record)),
            };
            found[index] = walk.read(record.offset, *len)?;
        }
        Ok(found)
    }

    /// The bytes in one run.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn read_all(&self) -> Result<Bytes> {
        let mut all = BytesMut::with_capacity(self.extent.len as usize);
        for piece in self.read(Wait::Yes)? {
            match piece {
                Piece::Bytes(bytes) => all.extend_from_slice(&bytes),
                Piece::Hole(len) => all.resize(all.len() + len as usize, 0),
            }
        }
        Ok(all.freeze())
    }

    /// Which parts are holes; may end before the extent does.
    ///
    /// # Errors
    /// Of the files.
    pub fn status(&self) -> Result<Vec<Stretch>> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut push = |len: u64, hole: bool| {
            match stretches.last_mut() {
                Some(last) if last.hole == hole => last.len += len,
                _ if len > 0 => stretches.push(Stretch { len, hole }),
                _ => {}
            }
            stretches.len() < MAX_STRETCHES
        };
        'parts: for (part, from) in &self.parts {
            match from {
                From::Memory(Content::Zero { no_hole }) => {
                    if !push(part.len, !no_hole) {
                        break;
                    }
                }
                From::Memory(Content::Bytes(_)) | From::Record(_) => {
                    if !push(part.len, false) {
                        break;
                    }
                }
                From::Kept(AtKept { marks, at, volume, base }) => {
                    let told = marks.status(*at, *volume, *part, &**base)?;
                    let covered: u64 = told.iter().map(|stretch| stretch.len).sum();
                    if !told.iter().all(|stretch| push(stretch.len, stretch.hole)) || covered < part.len {
                        break;
                    }
                }
                From::Plain(file) => {
                    let mut at = part.offset;
                    while at < part.end() {
                        let (start, end) = file.next_data(at)?.unwrap_or((part.end(), part.end()));
                        let (start, end) = (start.clamp(at, part.end()), end.clamp(at, part.end()));
                        if !push(start - at, true) || !push(end - start, false) {
                            break 'parts;
                        }
                        at = end;
                    }
                }
            }
        }
        Ok(stretches)
    }

    /// Asks the disks to have it ready.
    pub fn will_need(&self) {
        for (part, from) in &self.parts {
            if let From::Plain(file) = from {
                file.will_need(part.offset, part.len);
            }
        }
    }
}

/// Zeros are told as a hole, so that a front end can spare the line.
pub(crate) fn piece(bytes: Bytes) -> Piece {
    if bytes.len() >= HOLE_BYTES && is_zero(&bytes) {
        Piece::Hole(bytes.len() as u64)
    } else {
        Piece::Bytes(bytes)
    }
}

/// Whether all bytes are zero; stops at the first that is not.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    rest.iter().all(|&byte| byte == 0) && chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0)
}

/// Reading parts of records in the order in which they stand in a file.
struct Walk {
    /// The record before the first, and the byte behind the last that counts: a branch goes on in the same file.
    from: Lsn,
    end: u64,
    file: Arc<dyn File>,
    seed: Seed,
    scan: Scan,
    /// The record read last: where it begins, where it ends, its payload.
    last: (u64, u64, Bytes),
}

impl Walk {
    fn begin(record: &InRecord) -> Walk {
        let InRecord { file, seed, end, scan_from, scan_tip, .. } = record;
        let scan = Scan::new(file.clone(), *seed, *end, *scan_from, *scan_tip);
        let last = (0, 0, Bytes::new());
        Walk { from: scan_tip.lsn, end: *end, file: file.clone(), seed: *seed, scan, last }
    }

    /// Whether it comes by a record: of two files that begin behind one record, each belongs to another line.
    fn leads_to(&self, record: &InRecord) -> bool {
        (self.from, self.end) == (record.scan_tip.lsn, record.end) && Arc::ptr_eq(&self.file, &record.file)
    }

    /// `len` bytes from byte `offset` of the file, which lie in one payload, at or behind the last that were read.
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes> {
        while self.last.1 <= offset {
            let (at, before) = (self.scan.offset(), self.scan.tip());
            let end = match self.scan.next(Depth::Headers)? {
                Ok((header, ..)) => at + header.record_len() as u64,
                Err(stop) => return Err(broken(at, stop)),
            };
            if end <= offset {
                continue;
            }
            let mut whole = Scan::new(self.file.clone(), self.seed, end, at, before);
            self.last = match whole.next(Depth::Whole)? {
                Ok((_, _, payload)) => (at, end, Bytes::copy_from_slice(payload)),
                Err(stop) => return Err(broken(at, stop)),
            };
        }
        let (at, _, payload) = &self.last;
        let skip = (offset - at) as usize - HEADER_BYTES;
        match payload.get(skip..skip + len) {
            // A little of much must not keep all of it in memory.
            Some(bytes) if len < payload.len() / 2 => Ok(Bytes::copy_from_slice(bytes)),
            Some(_) => Ok(payload.slice(skip..skip + len)),
            None => Err(broken(*at, Stop::NoSegment)),
        }
    }
}

fn broken(at: u64, stop: Stop) -> Error {
    Error::new(ErrorKind::InvalidData, format!("a record of the log at byte {at}: {stop}"))
}
