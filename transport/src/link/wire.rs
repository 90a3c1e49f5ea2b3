//! Frames on a QUIC stream: the thin layer between a session and the stack.
//!
//! Both halves are made for `select!`: dropping a call in the middle loses nothing.

use super::decoder::{Accept, Decoder};
use super::driver::End;
use super::frame::{self, Frame};
use super::session::Violation;
use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, WriteError};

/// Pieces taken from the stack in one call.
const PIECES: usize = 64;

/// The receiving half.
pub(super) struct Reader {
    stream: RecvStream,
    decoder: Decoder,
    pieces: [Bytes; PIECES],
}

impl Reader {
    pub(super) fn new(stream: RecvStream) -> Reader {
        Reader { stream, decoder: Decoder::new(Accept::Control), pieces: [const { Bytes::new() }; PIECES] }
    }

    /// Changes what is acceptable from the next frame on.
    pub(super) fn accept(&mut self, accept: Accept) {
        self.decoder.accept(accept);
    }

    /// Waits for bytes and takes some off the stream; frames are then had from [`Reader::poll`].
    pub(super) async fn fill(&mut self) -> Result<(), End> {
        match self.stream.read_chunks(&mut self.pieces).await {
            Ok(Some(count)) => {
                for piece in &mut self.pieces[..count] {
                    self.decoder.push(std::mem::take(piece));
                }
                Ok(())
            }
            Ok(None) | Err(ReadError::Reset(_) | ReadError::ClosedStream) => Err(End::StreamEnded),
            Err(ReadError::ConnectionLost(error)) => Err(End::Connection(error)),
            Err(ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                unreachable!("the stream is read in order, and there is no 0-RTT")
            }
        }
    }

    /// The next whole frame of what has been read.
    pub(super) fn poll(&mut self) -> Result<Option<Frame>, Violation> {
        Ok(self.decoder.poll()?)
    }
}

/// The sending half.
pub(super) struct Writer {
    stream: SendStream,
    pieces: Vec<Bytes>,
    done: usize,
}

impl Writer {
    pub(super) fn new(stream: SendStream) -> Writer {
        Writer { stream, pieces: Vec::new(), done: 0 }
    }

    /// Whether everything pushed is in the stack's hands.
    pub(super) fn is_idle(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Appends a frame to what is being written.
    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), frame::Error> {
        frame.encode(&mut self.pieces)
    }

    /// Hands what was pushed to the stack, as the peer's flow control lets it.
    pub(super) async fn flush(&mut self) -> Result<(), End> {
        while self.done < self.pieces.len() {
            // Written pieces are left empty and a half-written one shortened, so a cancelled call is resumed here.
            let written = self.stream.write_chunks(&mut self.pieces[self.done..]).await.map_err(lost)?;
            self.done += written.chunks;
        }
        self.pieces.clear();
        self.done = 0;
        Ok(())
    }

    /// Writes what is left, ends the stream, and waits until the peer has all of it.
    pub(super) async fn finish(&mut self) -> Result<(), End> {
        self.flush().await?;
        self.stream.finish().map_err(|_| End::StreamEnded)?;
        match self.stream.stopped().await {
            Ok(_) => Ok(()),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(End::Connection(error)),
            Err(quinn::StoppedError::ZeroRttRejected) => unreachable!("there is no 0-RTT"),
        }
    }
}

fn lost(error: WriteError) -> End {
    match error {
        WriteError::ConnectionLost(error) => End::Connection(error),
        WriteError::Stopped(_) | WriteError::ClosedStream => End::StreamEnded,
        WriteError::ZeroRttRejected => unreachable!("there is no 0-RTT"),
    }
}
