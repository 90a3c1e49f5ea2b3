//! Reads records of one segment file in order, believing nothing before its checksum.

use super::chain::{Break, Tip};
use super::format::{Fault, HEADER_BYTES, Header, Seed, aligned};
use crate::io::File;
use std::io::Result;
use std::sync::Arc;

/// Read ahead when payloads are read too.
const AHEAD_WHOLE_BYTES: u64 = 1 << 20;
/// Read ahead when only headers are.
const AHEAD_HEADERS_BYTES: u64 = 16 << 10;

/// How much of a record is read and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The header and its place in the chain.
    Headers,
    /// The payload as well.
    Whole,
}

/// Why a scan stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// No room for another record.
    #[error("the segment is full")]
    Full,
    /// The segment is full, and no file holds the next one.
    #[error("no segment file begins with that record")]
    NoSegment,
    /// What stands there is no whole record.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// What stands there is a record, but not the next one.
    #[error(transparent)]
    Break(#[from] Break),
}

/// A position in a segment file, with the bytes around it.
pub struct Scan {
    file: Arc<dyn File>,
    seed: Seed,
    len: u64,
    offset: u64,
    tip: Tip,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl Scan {
    /// Starts at `offset`, where the record behind `tip` should stand; reads no further than `len`.
    pub fn new(file: Arc<dyn File>, seed: Seed, len: u64, offset: u64, tip: Tip) -> Scan {
        Scan { file, seed, len, offset, tip, buffer: Vec::new(), buffer_at: 0 }
    }

    /// Where the next record should stand.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The last record read.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The next record's header, its offset, and its payload (empty unless the depth is [`Depth::Whole`]). After
    /// a [`Stop`] the scan stays where it is.
    ///
    /// # Errors
    /// Of the file.
    #[expect(clippy::type_complexity, reason = "a record is these three things, used once, by the caller")]
    pub fn next(&mut self, depth: Depth) -> Result<std::result::Result<(Header, u64, &[u8]), Stop>> {
        let offset = self.offset;
        if offset + HEADER_BYTES as u64 > self.len {
            return Ok(Err(Stop::Full));
        }
        let ahead = match depth {
            Depth::Headers => AHEAD_HEADERS_BYTES,
            Depth::Whole => AHEAD_WHOLE_BYTES,
        };
        self.fill(offset, HEADER_BYTES, ahead)?;
        let header = match Header::decode(self.seed, self.slice(offset, HEADER_BYTES)) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault.into())),
        };
        if let Err(broken) = self.tip.check_next(&header) {
            return Ok(Err(broken.into()));
        }
        if offset + header.record_len() as u64 > self.len {
            return Ok(Err(Fault::Cut.into()));
        }
        let padded = aligned(header.payload_len as usize);
        if depth == Depth::Whole {
            self.fill(offset, HEADER_BYTES + padded, ahead)?;
            let payload = self.slice(offset + HEADER_BYTES as u64, padded);
            if let Err(fault) = header.check_payload(self.seed, payload) {
                return Ok(Err(fault.into()));
            }
        }
        self.offset += header.record_len() as u64;
        self.tip = self.tip.advanced(&header);
        let payload = match depth {
            Depth::Headers => &[],
            Depth::Whole => self.slice(offset + HEADER_BYTES as u64, header.payload_len as usize),
        };
        Ok(Ok((header, offset, payload)))
    }

    fn slice(&self, offset: u64, len: usize) -> &[u8] {
        let start = (offset - self.buffer_at) as usize;
        &self.buffer[start..start + len]
    }

    /// Makes `len` bytes from `offset` present; the caller has checked that the file has them.
    fn fill(&mut self, offset: u64, len: usize, ahead: u64) -> Result<()> {
        let end = offset + len as u64;
        if offset >= self.buffer_at && end <= self.buffer_at + self.buffer.len() as u64 {
            return Ok(());
        }
        let want = (len as u64).max(ahead).min(self.len - offset) as usize;
        self.buffer.resize(want, 0);
        self.buffer_at = offset;
        let read = self.file.read_at(&mut self.buffer, offset);
        if read.is_err() {
            self.buffer.clear();
        }
        read
    }
}

/// Every whole record header of this group in `bytes`, at any alignment that a writer uses: what a hole in a
/// log may hide.
pub fn headers_anywhere(seed: Seed, bytes: &[u8]) -> impl Iterator<Item = Header> + '_ {
    (0..bytes.len().saturating_sub(HEADER_BYTES - 1))
        .step_by(super::format::ALIGN)
        .filter_map(move |at| Header::decode(seed, &bytes[at..]).ok())
}
