//! One life of a program's QUIC endpoint, and its connections.

use super::super::{ConnId, End, Host};
use crate::clock::{EPOCH, Time};
use bytes::Bytes;
use quinn_proto::{Connection, Endpoint, StreamId, TimeSource, WriteError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use transport::link::decoder::{Accept, Decoder};
use transport::link::frame::Frame;

/// Virtual time as the stack sees it.
#[derive(Clone, Debug)]
pub(super) struct StackClock {
    base: Instant,
    now: Arc<AtomicU64>,
}

impl StackClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the stack knows no other moments than those of `Instant`; only differences to this one count"
    )]
    pub(super) fn new() -> StackClock {
        StackClock { base: Instant::now(), now: Arc::default() }
    }

    pub(super) fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }

    /// Moves time on. It never goes back.
    pub(super) fn advance(&self, now: Time) {
        self.now.fetch_max(now.0, Ordering::Relaxed);
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now().0)
    }

    pub(super) fn time_of(&self, instant: Instant) -> Time {
        Time(u64::try_from(instant.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX))
    }
}

impl TimeSource for StackClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(EPOCH.0 + self.now().0)
    }
}

/// A connection as one end has it.
pub(super) struct Conn {
    pub(super) end: End,
    pub(super) peer: Host,
    /// What both ends call it.
    pub(super) id: ConnId,
    pub(super) stack: Connection,
    /// The peer's own connection has been heard of.
    pub(super) settled: bool,
    pub(super) stream: Option<StreamId>,
    pub(super) decoder: Decoder,
    /// What the stream has not taken yet.
    unwritten: VecDeque<Bytes>,
    /// The session has been told that it is open.
    pub(super) open: bool,
    /// The session is done with it, or has been told of its end.
    pub(super) left: bool,
    /// When the stack wants to be called.
    pub(super) timer: Option<Time>,
}

impl Conn {
    pub(super) fn new(end: End, peer: Host, id: ConnId, stack: Connection) -> Conn {
        Conn {
            end,
            peer,
            id,
            stack,
            settled: false,
            stream: None,
            decoder: Decoder::new(Accept::Control),
            unwritten: VecDeque::new(),
            open: false,
            left: false,
            timer: None,
        }
    }

    /// Appends a frame to what is to be written.
    pub(super) fn push(&mut self, frame: &Frame) {
        let mut pieces = Vec::new();
        frame.encode(&mut pieces).expect("what the engine says fits into frames");
        self.unwritten.extend(pieces);
    }

    /// Gives the stream what it takes; the rest waits until the peer has read.
    pub(super) fn write(&mut self) {
        let Some(stream) = self.stream else { return };
        while let Some(piece) = self.unwritten.front_mut() {
            match self.stack.send_stream(stream).write(piece) {
                Ok(len) if len == piece.len() => drop(self.unwritten.pop_front()),
                Ok(len) => drop(piece.split_to(len)),
                Err(WriteError::Blocked) => return,
                // The peer has gone, or soon tells so.
                Err(_) => return self.unwritten.clear(),
            }
        }
    }

    /// Takes what the stream has got, and gives the frames that are whole.
    pub(super) fn read(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let Some(stream) = self.stream else { return frames };
        let mut receiver = self.stack.recv_stream(stream);
        let Ok(mut chunks) = receiver.read(true) else { return frames };
        // A blocked, ended or reset stream gives no more; its connection tells why.
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.decoder.push(chunk.bytes);
            while let Some(frame) = self.decoder.poll().expect("what a peer has sent are frames") {
                frames.push(frame);
            }
        }
        // Whatever has to be told to the peer now is asked of the connection in a moment, in any case.
        let _ = chunks.finalize();
        frames
    }
}

/// An endpoint: what a program has of the stack while it lives.
pub(super) struct Node {
    pub(super) endpoint: Endpoint,
    /// By the stack's handle.
    pub(super) conns: BTreeMap<usize, Conn>,
    /// The connections that it has accepted in its life.
    pub(super) accepted: BTreeSet<ConnId>,
}

impl Node {
    /// Whether a datagram that opens a connection, or seems to, is one that the endpoint can make sense of.
    ///
    /// One of a connection that the endpoint has forgotten would be read with keys that are not its own. One in
    /// four then still looks like the start of a connection, by bits that no seed gives, and is answered; the
    /// sender ignores the answer. Such datagrams are dropped here, which changes nothing but that.
    pub(super) fn understands(&self, id: ConnId, end: End, settled: bool) -> bool {
        let knows = self.conns.values().any(|conn| (conn.id, conn.end) == (id, end));
        let opens = end == End::Listener && !settled && !self.accepted.contains(&id);
        knows || opens
    }

    /// Whether a Retry finds somebody who wants it. A connection that was closed meanwhile would read the token,
    /// whose bytes no seed gives, as if it were frames, and sometimes find an end of the connection in it.
    pub(super) fn retries(&self, id: ConnId) -> bool {
        self.conns.values().any(|conn| (conn.id, conn.end) == (id, End::Dialer) && !conn.left)
    }
}
