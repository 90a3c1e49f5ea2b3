//! Encoding replies into what goes out on a connection.
//!
//! Headers are written one behind the other into one buffer; the bytes of reads stay where the export has them.
//! So a batch of plain writes is answered by one contiguous piece, and a batch of reads by one vectored send
//! without copying a byte.
//!
//! What holds: a structured reply covers the range of its read exactly once, in order, and its last chunk (and no
//! other) is flagged as the last. An export whose answer does not fit the question is reported and answered with
//! EIO: a short or long answer would put every later byte of the stream in the wrong place.

use super::pending::Ticket;
use super::proto::{
    BASE_ALLOCATION_ID, CHUNK_HEADER_BYTES, Errno, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, command, command_flag, state,
};
use super::request::{Header, Replies};
use bytes::Bytes;
use engine::guest::{Piece, Refusal, Reply, Stretch};
use std::collections::VecDeque;
use std::io::IoSlice;

/// The most extents in the answer to one block status request; the specification lets a server stop early.
pub const MAX_STATUS_EXTENTS: usize = 4096;

/// Zeros for holes that have to be sent as bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Below this, bytes are copied behind their header: cheaper than one more slice for the kernel to look at.
const COPY_BELOW: usize = 512;

/// Memory for headers that an empty queue keeps.
const KEPT_HEADS: usize = 16 << 10;

/// A queue of bytes to send: headers, and between them the bytes of reads.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Headers and small data.
    heads: Vec<u8>,
    /// How much of `heads` is sent.
    heads_sent: usize,
    /// Bytes to be sent when `heads` is sent up to the number beside them.
    data: VecDeque<(usize, Bytes)>,
    /// Bytes not sent.
    left: usize,
}

impl Outgoing {
    /// Bytes not sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left
    }

    /// Whether all is sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The next bytes to send, in as many slices as `into` has room for; returns their number.
    pub fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut head = self.heads_sent;
        let ends = self.data.iter().map(|(at, bytes)| (*at, Some(bytes)));
        for (at, bytes) in ends.chain([(self.heads.len(), None)]) {
            for slice in [&self.heads[head..at], bytes.map_or(&[], |bytes| &bytes[..])] {
                if slice.is_empty() {
                    continue;
                }
                let Some(place) = into.get_mut(count) else {
                    return count;
                };
                *place = IoSlice::new(slice);
                count += 1;
            }
            head = at;
        }
        count
    }

    /// Takes note that the next `sent` bytes were sent, and lets go of them.
    ///
    /// # Panics
    ///
    /// If more is said to be sent than was there.
    pub fn advance(&mut self, mut sent: usize) {
        assert!(sent <= self.left, "{sent} bytes sent of {}", self.left);
        self.left -= sent;
        while sent > 0 {
            let until = self.data.front().map_or(self.heads.len(), |(at, _)| *at);
            let step = sent.min(until - self.heads_sent);
            self.heads_sent += step;
            sent -= step;
            if self.heads_sent < until {
                break;
            }
            if let Some((_, bytes)) = self.data.front_mut() {
                let step = sent.min(bytes.len());
                bytes::Buf::advance(bytes, step);
                sent -= step;
                if bytes.is_empty() {
                    self.data.pop_front();
                }
            }
        }
        if self.left == 0 {
            self.clear();
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.heads.shrink_to(KEPT_HEADS);
        self.heads_sent = 0;
        self.data.clear();
        self.left = 0;
    }

    /// Answers a request.
    pub fn answer(&mut self, ticket: &Ticket, replies: Replies, result: Result<Reply, Refusal>) {
        let header = &ticket.header;
        match (header.command, result) {
            (_, Err(refusal)) => self.error(header, replies, refusal.into()),
            (command::READ, Ok(Reply::Data(pieces))) if lengths_match(header, &pieces) => {
                self.data_reply(header, replies, pieces);
            }
            (command::BLOCK_STATUS, Ok(Reply::Status(stretches))) if is_answer(&stretches) => {
                self.status(header, &stretches);
            }
            (command::READ | command::BLOCK_STATUS, Ok(reply)) => {
                tracing::error!(?header, ?reply, "an export's answer does not fit its request");
                self.error(header, replies, Errno::Io);
            }
            (_, Ok(_)) => self.success(header, replies),
        }
    }

    /// Answers a request that has nothing to say.
    pub fn success(&mut self, header: &Header, replies: Replies) {
        match (header.command, replies) {
            (command::READ, Replies::Structured) => self.chunk(header, chunk::DONE, chunk::NONE, 0),
            _ => self.simple(header, 0),
        }
    }

    /// Refuses a request.
    pub fn error(&mut self, header: &Header, replies: Replies, error: Errno) {
        match (header.command, replies) {
            (command::READ | command::BLOCK_STATUS, Replies::Structured) => {
                self.chunk(header, chunk::DONE, chunk::ERROR, 6);
                self.head(&error.code().to_be_bytes());
                self.head(&0_u16.to_be_bytes());
            }
            _ => self.simple(header, error.code()),
        }
    }

    fn data_reply(&mut self, header: &Header, replies: Replies, pieces: Vec<Piece>) {
        if replies == Replies::Simple {
            self.simple(header, 0);
            pieces.into_iter().for_each(|piece| self.piece(piece));
            return;
        }
        let mut runs = runs(&pieces);
        if runs.len() > 1 && header.has(command_flag::DF) {
            // One chunk was asked for: the holes are sent as bytes.
            runs = vec![Run { hole: false, len: u64::from(header.len), pieces: pieces.len() }];
        }
        let mut pieces = pieces.into_iter();
        let mut offset = header.offset;
        let count = runs.len();
        for (index, run) in runs.into_iter().enumerate() {
            let flags = if index + 1 == count { chunk::DONE } else { 0 };
            // A read is at most 32 MiB long, so the lengths of its parts fit.
            if run.hole {
                self.chunk(header, flags, chunk::OFFSET_HOLE, 12);
                self.head(&offset.to_be_bytes());
                self.head(&(run.len as u32).to_be_bytes());
                pieces.by_ref().take(run.pieces).for_each(drop);
            } else {
                self.chunk(header, flags, chunk::OFFSET_DATA, 8 + run.len as u32);
                self.head(&offset.to_be_bytes());
                pieces.by_ref().take(run.pieces).for_each(|piece| self.piece(piece));
            }
            offset += run.len;
        }
    }

    fn status(&mut self, header: &Header, stretches: &[Stretch]) {
        let limit = if header.has(command_flag::REQ_ONE) { 1 } else { MAX_STATUS_EXTENTS };
        let mut extents: Vec<(u32, bool)> = Vec::with_capacity(stretches.len().min(limit));
        let mut left = header.len;
        for stretch in stretches.iter().filter(|stretch| stretch.len > 0) {
            let len = u32::try_from(stretch.len).map_or(left, |len| len.min(left));
            left -= len;
            let room = extents.len() < limit;
            match extents.last_mut() {
                _ if len == 0 => break,
                Some((last, hole)) if *hole == stretch.hole => *last += len,
                _ if room => extents.push((len, stretch.hole)),
                _ => break,
            }
        }
        self.chunk(header, chunk::DONE, chunk::BLOCK_STATUS, 4 + 8 * extents.len() as u32);
        self.head(&BASE_ALLOCATION_ID.to_be_bytes());
        for (len, hole) in extents {
            let flags = if hole { state::HOLE | state::ZERO } else { 0 };
            self.head(&len.to_be_bytes());
            self.head(&flags.to_be_bytes());
        }
    }

    fn simple(&mut self, header: &Header, error: u32) {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        head[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&error.to_be_bytes());
        head[8..16].copy_from_slice(&header.cookie.to_be_bytes());
        self.head(&head);
    }

    fn chunk(&mut self, header: &Header, flags: u16, kind: u16, len: u32) {
        let mut head = [0; CHUNK_HEADER_BYTES];
        head[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&header.cookie.to_be_bytes());
        head[16..20].copy_from_slice(&len.to_be_bytes());
        self.head(&head);
    }

    fn head(&mut self, bytes: &[u8]) {
        self.heads.extend_from_slice(bytes);
        self.left += bytes.len();
    }

    fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Bytes(bytes) if bytes.len() < COPY_BELOW => self.head(&bytes),
            Piece::Bytes(bytes) => {
                self.left += bytes.len();
                self.data.push_back((self.heads.len(), bytes));
            }
            Piece::Hole(mut len) => {
                while len > 0 {
                    let step = len.min(ZEROS.len() as u64) as usize;
                    self.left += step;
                    self.data.push_back((self.heads.len(), Bytes::from_static(&ZEROS[..step])));
                    len -= step as u64;
                }
            }
        }
    }
}

/// Neighbouring pieces of one kind: one chunk.
struct Run {
    hole: bool,
    len: u64,
    pieces: usize,
}

fn runs(pieces: &[Piece]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let hole = matches!(piece, Piece::Hole(_));
        match runs.last_mut() {
            // An empty piece belongs to whatever it stands beside: a chunk must not be empty.
            Some(run) if run.hole == hole || piece.is_empty() => {
                run.len += piece.len();
                run.pieces += 1;
            }
            Some(run) if run.len == 0 => {
                *run = Run { hole, len: piece.len(), pieces: run.pieces + 1 };
            }
            _ => runs.push(Run { hole, len: piece.len(), pieces: 1 }),
        }
    }
    runs
}

fn lengths_match(header: &Header, pieces: &[Piece]) -> bool {
    let sum = pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.len()));
    sum == Some(u64::from(header.len))
}

fn is_answer(stretches: &[Stretch]) -> bool {
    stretches.iter().any(|stretch| stretch.len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(command: u16, flags: u16, offset: u64, len: u32) -> Ticket {
        Ticket { header: Header { flags, command, cookie: 0xc0_01e, offset, len }, charge: 0 }
    }

    fn bytes(byte: u8, len: usize) -> Piece {
        Piece::Bytes(Bytes::from(vec![byte; len]))
    }

    /// Sends everything in steps of `step` bytes through `room` slices.
    fn sent(mut out: Outgoing, step: usize, room: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = vec![IoSlice::new(&[]); room];
            let count = out.slices(&mut slices);
            let next: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).take(step).collect();
            assert!(!next.is_empty());
            all.extend_from_slice(&next);
            out.advance(next.len());
        }
        all
    }

    /// Type, flags and payload of each chunk.
    fn chunks(mut stream: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
        let mut chunks = Vec::new();
        while !stream.is_empty() {
            assert_eq!(stream[0..4], STRUCTURED_REPLY_MAGIC.to_be_bytes());
            assert_eq!(stream[8..16], 0xc0_01e_u64.to_be_bytes());
            let len = u32::from_be_bytes(stream[16..20].try_into().unwrap()) as usize;
            let field = |at: usize| u16::from_be_bytes([stream[at], stream[at + 1]]);
            chunks.push((field(6), field(4), stream[20..20 + len].to_vec()));
            stream = &stream[20 + len..];
        }
        chunks
    }

    #[test]
    fn what_goes_out_does_not_depend_on_how_it_is_cut() {
        let build = || {
            let mut out = Outgoing::default();
            for (index, len) in [0, 1, 511, 512, 513, 5000].into_iter().enumerate() {
                let read = ticket(command::READ, 0, 0, len as u32 + 70_000);
                let pieces = vec![bytes(index as u8 + 1, len), Piece::Hole(70_000)];
                out.answer(&read, Replies::Simple, Ok(Reply::Data(pieces)));
                out.answer(&ticket(command::WRITE, 0, 0, 1), Replies::Simple, Ok(Reply::Done));
            }
            out
        };
        let whole = sent(build(), usize::MAX, 1000);
        assert_eq!(whole.len(), build().len());
        for (step, room) in [(1, 1), (7, 2), (4096, 3), (70_001, 64)] {
            assert_eq!(sent(build(), step, room), whole, "steps of {step}, {room} slices");
        }
    }

    /// N19: chunks cover the range exactly once, neighbours of one kind are one chunk, the last is flagged.
    #[test]
    fn n19_chunks() {
        let pieces = vec![
            bytes(1, 512),
            bytes(2, 600),
            Piece::Hole(0),
            Piece::Hole(4096),
            Piece::Hole(4096),
            bytes(3, 100),
        ];
        let mut out = Outgoing::default();
        let read = ticket(command::READ, 0, 1 << 40, 512 + 600 + 8192 + 100);
        out.answer(&read, Replies::Structured, Ok(Reply::Data(pieces.clone())));
        let chunks_sent = chunks(&sent(out, usize::MAX, 64));
        let kinds: Vec<(u16, u16, usize)> =
            chunks_sent.iter().map(|(kind, flags, payload)| (*kind, *flags, payload.len())).collect();
        assert_eq!(
            kinds,
            [
                (chunk::OFFSET_DATA, 0, 8 + 1112),
                (chunk::OFFSET_HOLE, 0, 12),
                (chunk::OFFSET_DATA, chunk::DONE, 8 + 100)
            ]
        );
        let offsets: Vec<u64> = chunks_sent
            .iter()
            .map(|(_, _, payload)| u64::from_be_bytes(payload[..8].try_into().unwrap()) - (1 << 40))
            .collect();
        assert_eq!(offsets, [0, 1112, 1112 + 8192]);
        assert_eq!(chunks_sent[1].2[8..], 8192_u32.to_be_bytes());

        // DF: one chunk, the hole as zeros; a hole alone may stay one.
        let mut out = Outgoing::default();
        let df = ticket(command::READ, command_flag::DF, 0, 512 + 600 + 8192 + 100);
        out.answer(&df, Replies::Structured, Ok(Reply::Data(pieces)));
        let chunks_sent = chunks(&sent(out, usize::MAX, 64));
        assert_eq!(chunks_sent.len(), 1);
        assert_eq!(chunks_sent[0].0, chunk::OFFSET_DATA);
        assert_eq!(chunks_sent[0].2[8 + 1112..8 + 1112 + 8192], [0; 8192]);
        assert_eq!(chunks_sent[0].2.len(), 8 + 1112 + 8192 + 100);
    }

    /// N19: errors of reads are chunks, those of the others simple replies.
    #[test]
    fn n19_errors() {
        let mut out = Outgoing::default();
        out.answer(&ticket(command::READ, 0, 0, 512), Replies::Structured, Err(Refusal::Io));
        out.error(&ticket(command::BLOCK_STATUS, 0, 0, 512).header, Replies::Structured, Errno::Inval);
        let chunks_sent = chunks(&sent(out, usize::MAX, 64));
        assert_eq!(chunks_sent[0], (chunk::ERROR, chunk::DONE, vec![0, 0, 0, 5, 0, 0]));
        assert_eq!(chunks_sent[1], (chunk::ERROR, chunk::DONE, vec![0, 0, 0, 22, 0, 0]));
        for replies in [Replies::Simple, Replies::Structured] {
            let mut out = Outgoing::default();
            out.answer(&ticket(command::WRITE, 0, 0, 512), replies, Err(Refusal::NoSpace));
            let reply = sent(out, usize::MAX, 64);
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28]);
            assert_eq!(reply.len(), SIMPLE_REPLY_BYTES);
        }
    }

    /// An answer of the wrong length or kind must not reach the stream.
    #[test]
    fn an_answer_that_does_not_fit_is_an_io_error() {
        for reply in [
            Reply::Data(vec![bytes(1, 511)]),
            Reply::Data(vec![bytes(1, 512), Piece::Hole(1)]),
            Reply::Data(vec![Piece::Hole(u64::MAX), Piece::Hole(513)]),
            Reply::Data(vec![]),
            Reply::Done,
            Reply::Status(vec![Stretch { len: 512, hole: true }]),
        ] {
            let mut out = Outgoing::default();
            out.answer(&ticket(command::READ, 0, 0, 512), Replies::Simple, Ok(reply));
            assert_eq!(sent(out, usize::MAX, 64)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5]);
        }
    }

    /// N20: neighbours of one kind are one extent, the sum stays within the request, REQ_ONE gets exactly one.
    #[test]
    fn n20_extents() {
        let stretch = |len, hole| Stretch { len, hole };
        let answer = |flags, stretches: &[Stretch]| {
            let mut out = Outgoing::default();
            let status = ticket(command::BLOCK_STATUS, flags, 0, 10_000);
            out.answer(&status, Replies::Structured, Ok(Reply::Status(stretches.to_vec())));
            let (kind, flags, payload) = chunks(&sent(out, usize::MAX, 64)).remove(0);
            assert_eq!((kind, flags), (chunk::BLOCK_STATUS, chunk::DONE));
            assert_eq!(payload[..4], BASE_ALLOCATION_ID.to_be_bytes());
            let field = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            payload[4..]
                .chunks(8)
                .map(|extent| (field(&extent[..4]), field(&extent[4..])))
                .collect::<Vec<_>>()
        };
        let four = [
            stretch(1000, false),
            stretch(0, true),
            stretch(2000, false),
            stretch(500, true),
            stretch(1 << 40, false),
        ];
        assert_eq!(answer(0, &four), [(3000, 0), (500, 3), (6500, 0)]);
        assert_eq!(answer(command_flag::REQ_ONE, &four), [(3000, 0)]);
        assert_eq!(answer(0, &[stretch(u64::MAX, true)]), [(10_000, 3)]);
        let alternating: Vec<Stretch> = (0..9000).map(|index| stretch(1, index % 2 == 0)).collect();
        assert_eq!(answer(0, &alternating).len(), MAX_STATUS_EXTENTS);
    }
}
