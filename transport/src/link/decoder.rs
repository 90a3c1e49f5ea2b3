//! Frames out of a stream of bytes.
//!
//! Invariants:
//!
//! - It never asks for, or holds on to, more than one frame within its limit plus what one read brought.
//! - The bytes of a batch are handed on as they came, not copied; only pieces so short that they would pin far
//!   more memory than they carry (a hostile peer can cut a stream into single bytes) are gathered.
//! - Once it has failed it stays failed: behind a bad frame no boundary is known.

use super::frame::{
    BATCH_PREFIX_BYTES, Error, Frame, HEADER_BYTES, Header, Kind, LEFT_OUT_BYTES, MAX_CONTROL_BYTES,
    THIN_PREFIX_BYTES, check_batch, check_thin, decode_left_out,
};
use bytes::{Buf, Bytes, BytesMut};
use engine::peer::Batch;
use engine::seeds::Thin;
use engine::types::Lsn;
use std::collections::VecDeque;

/// Pieces of a batch that are shorter are copied together. A full packet at the smallest MTU of QUIC carries
/// more, so in normal traffic only the odd tail of a frame is.
pub const MIN_PIECE_BYTES: usize = 1 << 10;

/// Size of the buffers that short pieces are copied into.
const GATHER_BYTES: usize = 4 << 10;

/// Which frames are acceptable at all at this stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Control frames; a batch fails on its header, before its body is waited for. For the replica's end until
    /// it has sent its welcome, and for the primary's end for ever.
    Control,
    /// Everything.
    Batches,
}

/// Takes bytes in, gives frames out.
#[derive(Debug)]
pub struct Decoder {
    accept: Accept,
    pieces: VecDeque<Bytes>,
    /// Short pieces that arrived behind `pieces`.
    gathered: BytesMut,
    buffered_bytes: usize,
    header: Option<Header>,
    failed: Option<Error>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(accept: Accept) -> Decoder {
        Decoder {
            accept,
            pieces: VecDeque::new(),
            gathered: BytesMut::new(),
            buffered_bytes: 0,
            header: None,
            failed: None,
        }
    }

    /// Changes what is acceptable from the next header on.
    pub fn accept(&mut self, accept: Accept) {
        self.accept = accept;
    }

    /// Bytes that arrived and are not part of a frame given out.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// The next bytes of the stream. Take all frames with [`Decoder::poll`] before pushing more.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() || self.failed.is_some() {
            return;
        }
        self.buffered_bytes += piece.len();
        if piece.len() < MIN_PIECE_BYTES {
            if self.gathered.capacity() - self.gathered.len() < piece.len() {
                self.close_gathered();
                self.gathered = BytesMut::with_capacity(GATHER_BYTES);
            }
            self.gathered.extend_from_slice(&piece);
        } else {
            self.close_gathered();
            self.pieces.push_back(piece);
        }
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    ///
    /// As soon as a header or body is seen to be wrong; the same error at each call from then on.
    pub fn poll(&mut self) -> Result<Option<Frame>, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.pieces.clear();
            self.gathered = BytesMut::new();
            self.buffered_bytes = 0;
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let header = match self.header {
                Some(header) => header,
                None if self.buffered_bytes < HEADER_BYTES => return Ok(None),
                None => {
                    let mut bytes = [0; HEADER_BYTES];
                    self.take_into(&mut bytes);
                    let header = Header::decode(bytes)?;
                    if matches!(header.kind, Some(Kind::Batch | Kind::Thin)) && self.accept == Accept::Control
                    {
                        return Err(Error::EarlyBatch);
                    }
                    *self.header.insert(header)
                }
            };
            let Some(kind) = header.kind else {
                // Skipped as it comes, without being gathered first.
                let skip = header.len.min(self.buffered_bytes);
                self.take_pieces(skip, |_| ());
                self.header = (skip < header.len).then_some(Header { len: header.len - skip, ..header });
                if self.header.is_some() {
                    return Ok(None);
                }
                continue;
            };
            if self.buffered_bytes < header.len {
                return Ok(None);
            }
            self.header = None;
            return self.body(kind, header.len).map(Some);
        }
    }

    fn body(&mut self, kind: Kind, len: usize) -> Result<Frame, Error> {
        if !matches!(kind, Kind::Batch | Kind::Thin) {
            assert!(len <= MAX_CONTROL_BYTES, "header limits let {len} bytes pass");
            let mut body = vec![0; len];
            self.take_into(&mut body);
            return Frame::decode_control(kind, &body);
        }
        if kind == Kind::Thin {
            return self.thin(len);
        }
        let Some(len) = len.checked_sub(BATCH_PREFIX_BYTES) else { return Err(Error::Malformed(kind)) };
        let mut prefix = [0; BATCH_PREFIX_BYTES];
        self.take_into(&mut prefix);
        let mut prefix = &prefix[..];
        let (first, last) = (Lsn(prefix.get_u64_le()), Lsn(prefix.get_u64_le()));
        check_batch(first, last, len)?;
        let mut bytes = Vec::new();
        self.take_pieces(len, |piece| bytes.push(piece));
        Ok(Frame::Batch(Batch { first, last, bytes }))
    }

    fn thin(&mut self, len: usize) -> Result<Frame, Error> {
        let malformed = Error::Malformed(Kind::Thin);
        let Some(len) = len.checked_sub(THIN_PREFIX_BYTES) else { return Err(malformed) };
        let mut prefix = [0; THIN_PREFIX_BYTES];
        self.take_into(&mut prefix);
        let mut prefix = &prefix[..];
        let (first, last) = (Lsn(prefix.get_u64_le()), Lsn(prefix.get_u64_le()));
        let listed = prefix.get_u32_le() as usize;
        let rest = listed.checked_mul(LEFT_OUT_BYTES).and_then(|list| len.checked_sub(list));
        let rest = rest.ok_or(malformed)?;
        let mut left_out = Vec::with_capacity(listed);
        for _ in 0..listed {
            let mut part = [0; LEFT_OUT_BYTES];
            self.take_into(&mut part);
            left_out.push(decode_left_out(&part));
        }
        let mut bytes = Vec::new();
        self.take_pieces(rest, |piece| bytes.push(piece));
        let thin = Thin { first, last, left_out, bytes };
        check_thin(&thin)?;
        Ok(Frame::Thin(thin))
    }

    /// Fills `out` from the front; the caller has checked that there is enough.
    fn take_into(&mut self, mut out: &mut [u8]) {
        self.take_pieces(out.len(), |piece| {
            let (head, rest) = std::mem::take(&mut out).split_at_mut(piece.len());
            head.copy_from_slice(&piece);
            out = rest;
        });
    }

    /// Takes exactly `len` bytes off the front; the caller has checked that there are as many.
    fn take_pieces(&mut self, mut len: usize, mut each: impl FnMut(Bytes)) {
        assert!(len <= self.buffered_bytes, "{len} bytes wanted of {}", self.buffered_bytes);
        self.buffered_bytes -= len;
        while len > 0 {
            if self.pieces.is_empty() {
                self.close_gathered();
            }
            let mut piece = self.pieces.pop_front().expect("the pieces add up to the buffered bytes");
            if piece.len() > len {
                self.pieces.push_front(piece.split_off(len));
            }
            len -= piece.len();
            each(piece);
        }
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(self.gathered.split().freeze());
        }
    }
}
