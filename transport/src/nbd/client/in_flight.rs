//! The client's side of one request in flight: its reply as it comes in, simple or in chunks, each part checked
//! against the request.

use super::stream::array;
use super::{Answer, Error, Outcome};
use crate::nbd::proto::{self, Errno, chunk, command};
use crate::nbd::request::Header;
use engine::guest::Stretch;
use std::io::{self, Read};

/// The longest message of a server's error that is taken, in bytes.
const MAX_MESSAGE_BYTES: u32 = proto::MAX_STRING_BYTES as u32;

#[derive(Debug)]
pub(super) struct InFlight {
    header: Header,
    /// The bytes of a read as they come.
    data: Vec<u8>,
    /// Which ranges of a read have come, relative to its offset: start and end.
    covered: Vec<(u64, u64)>,
    stretches: Vec<Stretch>,
    error: Option<Errno>,
}

impl InFlight {
    pub(super) fn new(header: Header) -> InFlight {
        let data = if header.command == command::READ { vec![0; header.len as usize] } else { Vec::new() };
        InFlight { header, data, covered: Vec::new(), stretches: Vec::new(), error: None }
    }

    /// Takes in the rest of a simple reply.
    pub(super) fn simple(&mut self, error: u32, stream: &mut impl Read) -> Result<(), Error> {
        if error != 0 {
            self.error = Some(Errno::from_code(error));
        } else if self.header.command == command::READ {
            stream.read_exact(&mut self.data)?;
            self.covered.push((0, u64::from(self.header.len)));
        }
        Ok(())
    }

    /// Takes in the payload of a chunk.
    pub(super) fn chunk(
        &mut self,
        kind: u16,
        len: u32,
        allocation: Option<u32>,
        stream: &mut impl Read,
    ) -> Result<(), Error> {
        let reads = self.header.command == command::READ;
        match kind {
            chunk::NONE if len == 0 => {}
            chunk::OFFSET_DATA if reads && len > 8 => {
                let start = self.cover(u64::from_be_bytes(array(stream)?), u64::from(len - 8))?;
                stream.read_exact(&mut self.data[start..start + (len - 8) as usize])?;
            }
            chunk::OFFSET_HOLE if reads && len == 12 => {
                let offset = u64::from_be_bytes(array(stream)?);
                // The buffer was zeros from the start, and nothing else has covered this.
                self.cover(offset, u64::from(u32::from_be_bytes(array(stream)?)))?;
            }
            chunk::BLOCK_STATUS
                if self.header.command == command::BLOCK_STATUS && len > 4 && (len - 4).is_multiple_of(8) =>
            {
                let context = u32::from_be_bytes(array(stream)?);
                if Some(context) != allocation {
                    return Err(Error::Protocol("extents of a context that was not chosen"));
                }
                for _ in 0..(len - 4) / 8 {
                    let len = u64::from(u32::from_be_bytes(array(stream)?));
                    let flags = u32::from_be_bytes(array(stream)?);
                    let both = proto::state::HOLE | proto::state::ZERO;
                    self.stretches.push(Stretch { len, hole: flags & both == both });
                    let sum: u64 = self.stretches.iter().map(|stretch| stretch.len).sum();
                    if len == 0 || sum > u64::from(self.header.len) {
                        return Err(Error::Protocol("extents that do not fit the request"));
                    }
                }
            }
            kind if kind & chunk::ERROR_BIT != 0 && (6..=MAX_MESSAGE_BYTES).contains(&len) => {
                self.error = Some(Errno::from_code(u32::from_be_bytes(array(stream)?)));
                let message = u64::from(len - 4);
                if io::copy(&mut stream.take(message), &mut io::sink())? != message {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            _ => return Err(Error::Protocol("a chunk that does not fit the request")),
        }
        Ok(())
    }

    /// Takes note that a range of a read has come; returns its start in the buffer.
    fn cover(&mut self, offset: u64, len: u64) -> Result<usize, Error> {
        const OUTSIDE: Error = Error::Protocol("a chunk outside its request");
        let start = offset.checked_sub(self.header.offset).ok_or(OUTSIDE)?;
        let end = start.checked_add(len).filter(|end| *end <= u64::from(self.header.len)).ok_or(OUTSIDE)?;
        if len == 0 || self.covered.iter().any(|range| start < range.1 && range.0 < end) {
            return Err(Error::Protocol("chunks that overlap, or an empty one"));
        }
        // Chunks come in order as a rule, so this list has one entry.
        match self.covered.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.covered.push((start, end)),
        }
        Ok(start as usize)
    }

    /// The reply is complete.
    pub(super) fn finish(self) -> Result<Outcome, Error> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        let covered: u64 = self.covered.iter().map(|range| range.1 - range.0).sum();
        match self.header.command {
            command::READ if covered != u64::from(self.header.len) => {
                Err(Error::Protocol("a read whose chunks leave a gap"))
            }
            command::READ => Ok(Ok(Answer::Data(self.data))),
            command::BLOCK_STATUS if self.stretches.is_empty() => {
                Err(Error::Protocol("block status without an extent"))
            }
            command::BLOCK_STATUS => Ok(Ok(Answer::Status(self.stretches))),
            _ => Ok(Ok(Answer::Done)),
        }
    }
}
