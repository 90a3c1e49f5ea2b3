//! What is really in the files of a log: read from the disk's pristine bytes, past the engine and past all faults.

use crate::disk::Disk;
use bytes::Bytes;
use engine::event::Kind;
use engine::log::format::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use engine::node::Node;
use engine::state::{Gap, State};
use engine::types::{Checksum, Epoch, Lsn};
use std::collections::BTreeMap;

/// A record as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its header.
    pub header: Header,
    /// All its bytes, padding included.
    pub bytes: Bytes,
}

impl Record {
    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..HEADER_BYTES + self.header.payload_len as usize]
    }
}

/// Which of a node's gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Of its history.
    Main,
    /// Of a branch that ends in this epoch.
    Branch(Epoch),
}

/// Where a log goes on behind a record: the record itself, or the other end of the gap behind it.
#[must_use]
pub fn leap(state: &State, line: Line, lsn: Lsn, checksum: Checksum) -> (Lsn, Checksum) {
    let mut at = (lsn, checksum);
    let (gaps, epoch) = match line {
        Line::Main => (&state.gaps, state.epoch()),
        Line::Branch(epoch) => (&state.branch_gaps, epoch),
    };
    let of_line = |gap: &&Gap| gap.to.epoch <= epoch;
    // Branches that left the line at one record may go on differently there.
    let find = |at| {
        let here = gaps.iter().filter(of_line).filter(|gap| (gap.after.lsn, gap.after.checksum) == at);
        here.max_by_key(|gap| gap.to.epoch)
    };
    while let Some(gap) = find(at) {
        at = (gap.to.lsn, gap.to.checksum);
    }
    at
}

/// The records of a running node's main line, oldest first.
///
/// # Errors
///
/// Where the files do not hold what the node believes.
pub fn records(node: &Node, disk: &Disk) -> Result<Vec<Record>, String> {
    let mut records: Vec<Record> = Vec::new();
    for segment in node.segments() {
        let path = format!("{}/log/{:08}.seg", node.config().dir, segment.slot);
        let bytes = disk.peek_start(&path, segment.end).ok_or_else(|| format!("{path} is gone"))?;
        let bytes = Bytes::from(bytes);
        let mut at = SEGMENT_HEADER_BYTES;
        while (at as u64) < segment.end {
            let rest = bytes.get(at..).unwrap_or_default();
            let header = Header::decode(node.log().seed(), rest)
                .map_err(|fault| format!("{path} at byte {at}: {fault}"))?;
            let end = at + header.record_len();
            let record = (end <= bytes.len())
                .then(|| bytes.slice(at..end))
                .ok_or_else(|| format!("{path}: cut at byte {at}"))?;
            header
                .check_payload(node.log().seed(), &record[HEADER_BYTES..])
                .map_err(|fault| format!("{path} at byte {at}: {fault}"))?;
            if let Some(last) = records.last() {
                let follows = last.header.lsn.next() == header.lsn && last.header.checksum == header.previous;
                let before = leap(node.state(), Line::Main, last.header.lsn, last.header.checksum);
                let leaps = before == (header.lsn.prev(), header.previous);
                if !follows && !leaps {
                    return Err(format!("{path} at byte {at}: LSN {} does not follow", header.lsn));
                }
            }
            at = end;
            records.push(Record { header, bytes: record });
        }
    }
    Ok(records)
}

/// The last LSN before the incarnation that runs now; a node without room begins it later.
#[must_use]
pub fn end_before_opening(node: &Node, records: &[Record]) -> Lsn {
    let opening = records.iter().rev().find(|record| record.header.kind.begins_incarnation());
    match opening.filter(|record| record.header.incarnation == node.state().incarnation) {
        Some(record) => record.header.lsn.prev(),
        None => node.log().tip().lsn,
    }
}

/// The LSNs of which a whole record of an epoch up to this one is anywhere in the files of a log, with its headers.
#[must_use]
pub fn anywhere(disk: &Disk, dir: &str, seed: Seed, epoch: Epoch) -> BTreeMap<Lsn, Vec<Header>> {
    let mut found: BTreeMap<Lsn, Vec<Header>> = BTreeMap::new();
    for path in disk.paths() {
        if !path.starts_with(&format!("{dir}/log/")) || !path.ends_with(".seg") {
            continue;
        }
        let Some(bytes) = disk.peek(&path) else { continue };
        if SegmentHeader::decode(&bytes).is_err() {
            continue;
        }
        let mut at = SEGMENT_HEADER_BYTES;
        while at + HEADER_BYTES <= bytes.len() {
            let whole = Header::decode(seed, &bytes[at..]).ok().filter(|header| {
                let payload = bytes.get(at + HEADER_BYTES..at + header.record_len());
                header.epoch <= epoch && payload.is_some_and(|p| header.check_payload(seed, p).is_ok())
            });
            match whole {
                Some(header) => {
                    found.entry(header.lsn).or_default().push(header);
                    at += header.record_len();
                }
                None => at += 8,
            }
        }
    }
    found
}

/// Whether a record changes bytes of a volume.
#[must_use]
pub fn changes_bytes(record: &Record) -> bool {
    matches!(record.header.kind, Kind::Write | Kind::Zero)
}
