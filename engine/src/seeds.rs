//! Seeds: copies of volumes that a replica was given by other means than the link, such as a disk that was shipped.
//!
//! A seed saves the way over the link, and nothing else. The replica says by digests what its seed holds ([`Held`]);
//! the primary leaves those bytes out of the copies of a sync span that have the same digest ([`Known::thin`]); the
//! replica puts them back from its seed ([`Thin::fill`]) before its log sees the records. So both logs hold what they
//! would hold without a seed, byte for byte, and the records' own checksums are checked as ever: a seed that is old,
//! of something else, or written to meanwhile costs time, and can do no harm.
//!
//! Both sides cut a volume alike: into pieces of [`PIECE_BYTES`] (less where a log is very small: see
//! [`Node::copy_piece_bytes`](crate::node::Node::copy_piece_bytes)) that begin at its multiples, and these into runs of
//! blocks that do not hold zeros alone. Where a guest writes while a copy is read the cut is another one, and the copy
//! travels whole.

use crate::digest::Digest;
use crate::event::{FLAG_COPY, Kind};
use crate::extents::BLOCK_BYTES;
use crate::log::format::{HEADER_BYTES, Header, Seed};
use crate::peer::Batch;
use crate::read::is_zero;
use crate::types::{Extent, GroupId, Lsn, VolumeId};
use bincode::{Decode, Encode};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a copy reads at once, in bytes.
pub const PIECE_BYTES: u64 = 256 << 10;

/// A run is left out only if it has so many bytes: below, saying so costs about as much.
pub const LEAST_BYTES: u64 = BLOCK_BYTES;

/// The most runs that a primary keeps of one replica: about 4 MiB of memory, and 16 GiB of a volume that is full.
pub const MAX_KNOWN: usize = 1 << 16;

/// A run of blocks that a replica's seed holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Held {
    /// The volume.
    pub volume: VolumeId,
    /// Where; never empty, and at most [`PIECE_BYTES`].
    pub extent: Extent,
    /// Of its bytes.
    pub digest: Digest,
}

/// What a part of a seed holds; `offset` is its place in the volume. In pieces of so many bytes, at most
/// [`PIECE_BYTES`].
#[must_use]
pub fn held(volume: VolumeId, offset: u64, bytes: &[u8], piece: u64) -> Vec<Held> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = piece - (offset + at as u64) % piece;
        let end = bytes.len().min(at + rest as usize);
        let whole = Extent::new(offset + at as u64, (end - at) as u64);
        for (run, zero) in zero_runs(whole, &bytes[at..end]) {
            if !zero && run.len >= LEAST_BYTES {
                let from = (run.offset - offset) as usize;
                let digest = Digest::of(&bytes[from..from + run.len as usize]);
                found.push(Held { volume, extent: run, digest });
            }
        }
        at = end;
    }
    found
}

/// The bytes of a part in runs of whole blocks that hold nothing but zeros, and of others.
pub(crate) fn zero_runs(part: Extent, bytes: &[u8]) -> Vec<(Extent, bool)> {
    let mut runs: Vec<(Extent, bool)> = Vec::new();
    let mut at = part.offset;
    for block in bytes.chunks(BLOCK_BYTES as usize) {
        let (len, zero) = (block.len() as u64, is_zero(block));
        match runs.last_mut() {
            Some((run, same)) if *same == zero => run.len += len,
            _ => runs.push((Extent::new(at, len), zero)),
        }
        at += len;
    }
    runs
}

/// Records of which parts of the payload were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thin {
    /// LSN of the first record.
    pub first: Lsn,
    /// LSN of the last record.
    pub last: Lsn,
    /// What was left out, each with its place in the whole batch; in order, apart, and never none.
    pub left_out: Vec<(u32, Held)>,
    /// The rest, in order.
    pub bytes: Vec<Bytes>,
}

impl Thin {
    /// The length of the whole batch, in bytes; `None` if what was left out does not fit into it.
    #[must_use]
    pub fn whole_len(&self) -> Option<usize> {
        let rest: usize = self.bytes.iter().map(Bytes::len).sum();
        let mut free = 0u64;
        let mut left_out = 0u64;
        for (at, held) in &self.left_out {
            let at = u64::from(*at);
            if at < free || at - left_out > rest as u64 || held.extent.len > PIECE_BYTES {
                return None;
            }
            left_out += held.extent.len;
            free = at + held.extent.len;
        }
        usize::try_from(left_out).ok()?.checked_add(rest)
    }

    /// The batch as it was, with what `read` finds in the seed.
    ///
    /// # Errors
    /// Of `read`; or what it found is not what was left out.
    ///
    /// # Panics
    /// If what was left out does not fit: see [`Thin::whole_len`].
    pub fn fill(self, mut read: impl FnMut(&Held) -> std::io::Result<Bytes>) -> std::io::Result<Batch> {
        let Thin { first, last, left_out, bytes: rest } = self;
        let mut rest = rest.into_iter();
        let mut piece = Bytes::new();
        let mut bytes = Vec::new();
        let mut at = 0;
        for (place, held) in left_out {
            while at < u64::from(place) {
                if piece.is_empty() {
                    piece = rest.next().expect("what was left out fits");
                    continue;
                }
                let part = piece.split_to(piece.len().min((u64::from(place) - at) as usize));
                at += part.len() as u64;
                bytes.push(part);
            }
            let found = read(&held)?;
            if found.len() as u64 != held.extent.len || Digest::of(&found) != held.digest {
                return Err(std::io::Error::other("the seed does not hold any more what it held"));
            }
            at += held.extent.len;
            bytes.push(found);
        }
        bytes.push(piece);
        bytes.extend(rest);
        bytes.retain(|piece| !piece.is_empty());
        Ok(Batch { first, last, bytes })
    }
}

/// What a primary knows of one replica's seeds.
#[derive(Debug, Default)]
pub struct Known {
    runs: BTreeMap<(VolumeId, u64), (u64, Digest)>,
}

impl Known {
    /// The replica has told of more. What comes on top of [`MAX_KNOWN`] is dropped.
    pub fn add(&mut self, held: &[Held]) {
        for Held { volume, extent, digest } in held {
            if self.runs.len() < MAX_KNOWN {
                self.runs.insert((*volume, extent.offset), (extent.len, *digest));
            }
        }
    }

    /// Whether nothing could be left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// A batch without what the replica holds; `None` if it holds none of it.
    ///
    /// Copies go through a volume in order: what lies in front of one is forgotten.
    pub fn thin(&mut self, group: GroupId, batch: &Batch) -> Option<Thin> {
        if self.runs.is_empty() {
            return None;
        }
        let whole = match &batch.bytes[..] {
            [bytes] => bytes.clone(),
            pieces => pieces.concat().into(),
        };
        let seed = Seed::of(group);
        let mut left_out = Vec::new();
        let mut bytes = Vec::new();
        let (mut at, mut kept) = (0, 0);
        while at < whole.len() {
            // What is no record is the replica's to refuse.
            let Ok(header) = Header::decode(seed, &whole[at..]) else { break };
            let payload = at + HEADER_BYTES;
            at += header.record_len();
            if header.flags & FLAG_COPY == 0 || header.kind != Kind::Write || at > whole.len() {
                continue;
            }
            let key = (header.volume, header.extent.offset);
            let found = self.runs.get(&key).copied();
            let passed: Vec<_> = self.runs.range((header.volume, 0)..=key).map(|(key, _)| *key).collect();
            for key in passed {
                self.runs.remove(&key);
            }
            let Some((len, digest)) = found else { continue };
            let end = payload + header.payload_len as usize;
            if len == header.extent.len && Digest::of(&whole[payload..end]) == digest {
                bytes.push(whole.slice(kept..payload));
                kept = end;
                left_out
                    .push((payload as u32, Held { volume: header.volume, extent: header.extent, digest }));
            }
        }
        if left_out.is_empty() {
            return None;
        }
        bytes.push(whole.slice(kept..));
        bytes.retain(|piece| !piece.is_empty());
        Some(Thin { first: batch.first, last: batch.last, left_out, bytes })
    }
}

/// How far the copies in a batch have come: behind the last of them.
#[must_use]
pub fn copied_to(group: GroupId, batch: &Batch) -> Option<(VolumeId, u64)> {
    let whole: Bytes = match &batch.bytes[..] {
        [bytes] => bytes.clone(),
        pieces => pieces.concat().into(),
    };
    let seed = Seed::of(group);
    let (mut at, mut last) = (0, None);
    while let Some(rest) = whole.get(at..).filter(|rest| !rest.is_empty())
        && let Ok(header) = Header::decode(seed, rest)
    {
        if header.flags & FLAG_COPY != 0 {
            last = Some((header.volume, header.extent.end()));
        }
        at += header.record_len();
    }
    last
}
