//! The bytes of a log: record headers and segment headers, fixed little-endian layouts (`FORMAT.md`).
//!
//! - Nothing is believed before the checksum that covers it: the header's own first, then the payload's length,
//!   then the payload.
//! - The group seeds every checksum, so a record of another group, however valid, is not one here; and a page of
//!   zeros or of ones never is.
//! - Each record's checksum covers its predecessor's: equal checksums at an LSN mean equal histories up to it.
//!
//! What follows what (LSNs, epochs, incarnations) is judged by [`super::chain`], not here.

use crate::event::{FLAG_AGAIN, FLAG_APPLICATION, FLAG_COPY, FLAG_IN_PLACE, FLAG_NO_HOLE, Kind, version_of};
use crate::types::{Checksum, Epoch, Extent, GroupId, Incarnation, Lsn, Timestamp, VolumeId};

/// Length of a record's header in bytes.
pub const HEADER_BYTES: usize = 80;
/// Records start at multiples of this; the gap is zero and covered by the payload's checksum.
pub const ALIGN: usize = 8;
/// The part of a segment before its first record. One page, so that records never share one with the header.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// The longest payload of a record: one guest request is one record.
pub const MAX_PAYLOAD_BYTES: usize = crate::guest::MAX_REQUEST_BYTES as usize;
/// The longest record, padding included.
pub const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES;

/// The newest version of records; one that needs nothing new carries an older number.
pub const VERSION: u8 = 5;
/// The version of segment headers.
const SEGMENT_VERSION: u8 = 1;

const RECORD_MAGIC: [u8; 4] = *b"LFR\x1a";
const SEGMENT_MAGIC: [u8; 8] = *b"LFSEGM\x1a\n";
/// The used part of a segment's header: one sector, which a disk writes whole or not at all.
const SEGMENT_HEADER_USED: usize = 512;
/// The flags that a record of a kind may carry.
fn known_flags(kind: Kind) -> u16 {
    match kind {
        Kind::Write => FLAG_COPY,
        Kind::Zero => FLAG_NO_HOLE | FLAG_COPY,
        Kind::Volume => FLAG_AGAIN | FLAG_IN_PLACE,
        Kind::Mark => FLAG_APPLICATION,
        _ => 0,
    }
}

/// Why bytes are not a record or a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No record starts here.
    #[error("no record starts here")]
    Magic,
    /// Written by a newer Landfall.
    #[error("format version {0} is newer than this program understands ({VERSION})")]
    Version(u8),
    /// The header's checksum does not match.
    #[error("the header's checksum does not match")]
    HeaderChecksum,
    /// The header is whole but says what no writer of this version says.
    #[error("the header is malformed")]
    Malformed,
    /// The payload's checksum does not match.
    #[error("the payload's checksum does not match")]
    PayloadChecksum,
    /// The bytes end before the record does.
    #[error("the record is cut off")]
    Cut,
}

/// A record's header.
///
/// ```text
///  0  4  magic "LFR\x1a"          40  8  durable LSN known to the writer
///  4  1  version                  48  8  wall-clock time, ns since 1970
///  5  1  kind                     56  8  extent offset
///  6  2  flags                    64  8  extent length
///  8  4  checksum of the header   72  4  payload length
/// 12  4  checksum of the payload  76  4  volume
/// 16  4  checksum of the previous record's header
/// 20  4  incarnation
/// 24  8  LSN
/// 32  8  epoch
/// ```
///
/// Magic and version come first, so that a newer layout can be told before anything else is believed; then the
/// header's checksum, which covers every other byte of the header; the rest is ordered by size, so that nothing
/// is unaligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What happened.
    pub kind: Kind,
    /// Flags of the kind.
    pub flags: u16,
    /// This header's checksum; set by [`Header::encode`].
    pub checksum: Checksum,
    /// Checksum of the payload with its padding; 0 for none.
    pub payload_checksum: u32,
    /// The previous record's checksum; 0 for the first.
    pub previous: Checksum,
    /// The opening of the log in which it was written.
    pub incarnation: Incarnation,
    /// Its position.
    pub lsn: Lsn,
    /// The reign in which it was written.
    pub epoch: Epoch,
    /// The writer's durable LSN when this was written: nothing at or below it may ever be missing there.
    pub durable: Lsn,
    /// When.
    pub time: Timestamp,
    /// Where; empty for kinds that concern no extent.
    pub extent: Extent,
    /// Bytes of payload, without padding.
    pub payload_len: u32,
    /// Which volume; 0 for the group.
    pub volume: VolumeId,
}

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN));
const _: () = assert!(4 + 1 + 1 + 2 + 4 * 4 + 8 * 6 + 4 + 4 == HEADER_BYTES);

/// Rounds up to [`ALIGN`].
#[must_use]
pub fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the length is the array's")
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

/// The seed of a group's checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    /// The group's seed. Never zero, so that the checksum of zeros is not zero.
    #[must_use]
    pub fn of(group: GroupId) -> Seed {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(b"landfall");
        hasher.update(&group.0);
        Seed(hasher.finalize() | 1)
    }

    /// The checksum of the parts, one behind the other.
    #[must_use]
    pub fn checksum(self, parts: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finalize()
    }
}

impl Header {
    /// The record's length in the log, header and padding included.
    #[must_use]
    pub fn record_len(&self) -> usize {
        HEADER_BYTES + aligned(self.payload_len as usize)
    }

    /// Writes the header into `out` and sets its checksum.
    pub fn encode(&mut self, seed: Seed, out: &mut [u8; HEADER_BYTES]) {
        out[0..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = version_of(self.kind, self.flags);
        out[5] = self.kind as u8;
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_checksum.to_le_bytes());
        out[16..20].copy_from_slice(&self.previous.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.incarnation.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.lsn.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.durable.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.time.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.extent.offset.to_le_bytes());
        out[64..72].copy_from_slice(&self.extent.len.to_le_bytes());
        out[72..76].copy_from_slice(&self.payload_len.to_le_bytes());
        out[76..80].copy_from_slice(&self.volume.0.to_le_bytes());
        self.checksum = Checksum(seed.checksum(&[&out[0..8], &out[12..]]));
        out[8..12].copy_from_slice(&self.checksum.0.to_le_bytes());
    }

    /// Reads a header from the start of `bytes`.
    ///
    /// # Errors
    /// The first [`Fault`] in the order magic, version, checksum, contents.
    pub fn decode(seed: Seed, bytes: &[u8]) -> Result<Header, Fault> {
        if bytes.len() < HEADER_BYTES {
            return Err(Fault::Cut);
        }
        let bytes = &bytes[..HEADER_BYTES];
        if bytes[0..4] != RECORD_MAGIC {
            return Err(Fault::Magic);
        }
        let checksum = get_u32(bytes, 8);
        let matches = checksum == seed.checksum(&[&bytes[0..8], &bytes[12..]]);
        // A newer version may lay out everything behind its number differently; only a number that a bit flip
        // made is told from it by the checksum, which every version keeps where it is.
        if bytes[4] == 0 || bytes[4] > VERSION {
            return Err(if matches { Fault::Version(bytes[4]) } else { Fault::HeaderChecksum });
        }
        if !matches {
            return Err(Fault::HeaderChecksum);
        }
        let header = Header {
            kind: Kind::from_number(bytes[5]).ok_or(Fault::Malformed)?,
            flags: u16::from_le_bytes(get(bytes, 6)),
            checksum: Checksum(checksum),
            payload_checksum: get_u32(bytes, 12),
            previous: Checksum(get_u32(bytes, 16)),
            incarnation: Incarnation(get_u32(bytes, 20)),
            lsn: Lsn(get_u64(bytes, 24)),
            epoch: Epoch(get_u64(bytes, 32)),
            durable: Lsn(get_u64(bytes, 40)),
            time: Timestamp(get_u64(bytes, 48)),
            extent: Extent::new(get_u64(bytes, 56), get_u64(bytes, 64)),
            payload_len: get_u32(bytes, 72),
            volume: VolumeId(get_u32(bytes, 76)),
        };
        let is_of_version = bytes[4] == version_of(header.kind, header.flags);
        (is_of_version && header.is_well_formed()).then_some(header).ok_or(Fault::Malformed)
    }

    /// What a writer of this version guarantees beyond the checksum. A hostile peer can make checksums, so this
    /// is what stands between its numbers and our arithmetic.
    fn is_well_formed(&self) -> bool {
        let payload = u64::from(self.payload_len);
        let shape = match self.kind {
            Kind::Write => payload == self.extent.len && payload > 0 && self.volume != VolumeId(0),
            Kind::Zero => payload == 0 && self.extent.len > 0 && self.volume != VolumeId(0),
            Kind::Scrub => payload > 0 && self.extent.len > 0 && self.volume != VolumeId(0),
            // No arithmetic is done with the two sizes before they are looked at as such.
            Kind::Resize => {
                let Extent { offset: before, len: behind } = self.extent;
                payload == 0 && self.volume != VolumeId(0) && before > 0 && behind > 0 && before != behind
            }
            Kind::Flush => payload == 0 && self.extent == Extent::default(),
            Kind::Volume => payload > 0 && self.extent == Extent::default() && self.volume != VolumeId(0),
            Kind::Open | Kind::Mark | Kind::Promote | Kind::SpanBegin | Kind::SpanEnd => {
                payload > 0 && self.extent == Extent::default() && self.volume == VolumeId(0)
            }
        };
        shape
            && (self.flags & !known_flags(self.kind)) == 0
            && self.payload_len as usize <= MAX_PAYLOAD_BYTES
            && self.extent.checked_end().is_some()
            && (payload > 0 || self.payload_checksum == 0)
            && self.lsn > Lsn::ZERO
            && self.epoch > Epoch(0)
            && self.incarnation > Incarnation(0)
            && self.durable < self.lsn
    }

    /// Checks the payload with its padding, which must be zero.
    ///
    /// # Errors
    /// [`Fault::PayloadChecksum`].
    pub fn check_payload(&self, seed: Seed, padded: &[u8]) -> Result<(), Fault> {
        let len = self.payload_len as usize;
        assert_eq!(padded.len(), aligned(len), "a payload is checked together with its padding");
        let whole = len == 0 || self.payload_checksum == seed.checksum(&[padded]);
        let clean = padded[len..].iter().all(|&byte| byte == 0);
        (whole && clean).then_some(()).ok_or(Fault::PayloadChecksum)
    }
}

/// The first page of a segment file: 512 bytes in use, the rest zero.
///
/// ```text
///  0  8  magic "LFSEGM\x1a\n"     40  8  epoch of all its records
///  8  1  version                  48  8  LSN of its first record
///  9  7  zero                     56  8  length of the file
/// 16 16  group                    64  4  checksum of the record before the first
/// 32  8  sequence number          68 440 zero
///                                508  4  checksum of the 508 bytes before
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log it is part of.
    pub group: GroupId,
    /// Counts the segments that this node began, from 1; never repeated, also when a file is used again.
    pub sequence: u64,
    /// The reign in which all its records were written.
    pub epoch: Epoch,
    /// Its first record.
    pub first: Lsn,
    /// The file's length in bytes.
    pub len: u64,
    /// Checksum of the record before the first.
    pub previous: Checksum,
}

impl SegmentHeader {
    /// The header page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; SEGMENT_HEADER_BYTES];
        page[0..8].copy_from_slice(&SEGMENT_MAGIC);
        page[8] = SEGMENT_VERSION;
        page[16..32].copy_from_slice(&self.group.0);
        page[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        page[40..48].copy_from_slice(&self.epoch.0.to_le_bytes());
        page[48..56].copy_from_slice(&self.first.0.to_le_bytes());
        page[56..64].copy_from_slice(&self.len.to_le_bytes());
        page[64..68].copy_from_slice(&self.previous.0.to_le_bytes());
        let end = SEGMENT_HEADER_USED - 4;
        let checksum = Seed::of(self.group).checksum(&[&page[..end]]);
        page[end..SEGMENT_HEADER_USED].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Reads a header page.
    ///
    /// # Errors
    /// The first [`Fault`] in the order magic, checksum, version, contents.
    pub fn decode(page: &[u8]) -> Result<SegmentHeader, Fault> {
        if page.len() < SEGMENT_HEADER_USED {
            return Err(Fault::Cut);
        }
        if page[0..8] != SEGMENT_MAGIC {
            return Err(Fault::Magic);
        }
        let end = SEGMENT_HEADER_USED - 4;
        let group = GroupId(get(page, 16));
        if get_u32(page, end) != Seed::of(group).checksum(&[&page[..end]]) {
            return Err(Fault::HeaderChecksum);
        }
        if page[8] != SEGMENT_VERSION {
            return Err(Fault::Version(page[8]));
        }
        let header = SegmentHeader {
            group,
            sequence: get_u64(page, 32),
            epoch: Epoch(get_u64(page, 40)),
            first: Lsn(get_u64(page, 48)),
            len: get_u64(page, 56),
            previous: Checksum(get_u32(page, 64)),
        };
        let clean = page[9..16].iter().chain(&page[68..end]).all(|&byte| byte == 0);
        (clean && header.first > Lsn::ZERO && header.sequence > 0).then_some(header).ok_or(Fault::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Write,
            flags: 0,
            checksum: Checksum(0),
            payload_checksum: 0,
            previous: Checksum(7),
            incarnation: Incarnation(1),
            lsn: Lsn(9),
            epoch: Epoch(2),
            durable: Lsn(8),
            time: Timestamp(1_700_000_000_000_000_000),
            extent: Extent::new(4096, 512),
            payload_len: 512,
            volume: VolumeId(1),
        }
    }

    #[test]
    fn header_round_trip() {
        let seed = Seed::of(GroupId([3; 16]));
        let mut header = header();
        let mut bytes = [0; HEADER_BYTES];
        header.encode(seed, &mut bytes);
        assert_eq!(Header::decode(seed, &bytes), Ok(header));
    }

    /// W05 on a header: every single bit.
    #[test]
    fn w05_every_bit_of_a_header_counts() {
        let seed = Seed::of(GroupId([3; 16]));
        let mut bytes = [0; HEADER_BYTES];
        header().encode(seed, &mut bytes);
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(seed, &damaged).is_err(), "bit {bit} may flip unseen");
        }
    }

    /// W03, W04: a record of another group is none here.
    #[test]
    fn another_groups_record_is_refused() {
        let mut bytes = [0; HEADER_BYTES];
        header().encode(Seed::of(GroupId([3; 16])), &mut bytes);
        assert_eq!(Header::decode(Seed::of(GroupId([4; 16])), &bytes), Err(Fault::HeaderChecksum));
    }

    /// W07: neither zeros nor ones are a record or a segment.
    #[test]
    fn w07_blank_pages_are_nothing() {
        let seed = Seed::of(GroupId([0; 16]));
        for fill in [0, 0xff] {
            assert_eq!(Header::decode(seed, &[fill; HEADER_BYTES]), Err(Fault::Magic));
            assert_eq!(SegmentHeader::decode(&[fill; SEGMENT_HEADER_BYTES]), Err(Fault::Magic));
        }
    }

    /// W06: whatever the length says, with a valid checksum too, it is bounded before it is used.
    #[test]
    fn w06_lengths_are_bounded() {
        let seed = Seed::of(GroupId([3; 16]));
        for len in [0, u32::MAX, i32::MAX as u32 + 1, MAX_PAYLOAD_BYTES as u32 + 1] {
            let mut hostile = Header { payload_len: len, extent: Extent::new(0, u64::from(len)), ..header() };
            let mut bytes = [0; HEADER_BYTES];
            hostile.encode(seed, &mut bytes);
            assert_eq!(Header::decode(seed, &bytes), Err(Fault::Malformed), "length {len}");
        }
    }

    /// W33: a newer format is named, not guessed at.
    #[test]
    fn w33_newer_version_is_named() {
        let seed = Seed::of(GroupId([3; 16]));
        let mut bytes = [0; HEADER_BYTES];
        header().encode(seed, &mut bytes);
        bytes[4] = VERSION + 1;
        let checksum = seed.checksum(&[&bytes[0..8], &bytes[12..]]);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(seed, &bytes), Err(Fault::Version(VERSION + 1)));
    }

    #[test]
    fn segment_header_round_trip() {
        let header = SegmentHeader {
            group: GroupId([9; 16]),
            sequence: 4,
            epoch: Epoch(2),
            first: Lsn(77),
            len: 1 << 26,
            previous: Checksum(5),
        };
        let page = header.encode();
        assert_eq!(SegmentHeader::decode(&page), Ok(header));
        for bit in 0..SEGMENT_HEADER_USED * 8 {
            let mut damaged = page.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit} may flip unseen");
        }
    }
}
