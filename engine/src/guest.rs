//! What a guest asks of a volume, and what it is told: the same for every block front end.
//!
//! A request is answered exactly once. Requests of one batch take effect in their order; requests in flight at
//! the same time on different connections take effect in the order of their LSNs, which is also the order that
//! reads and the replica see. One write request is one record: it is never seen by halves, here, after a crash,
//! or on a replica.

use crate::types::Extent;
use bytes::Bytes;

/// The longest read or write in bytes that a front end lets through: 32 MiB, the most that Linux sends.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;

/// One request to one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The front end's own number for it; comes back with the [`Completion`] and means nothing to the engine.
    pub cookie: u64,
    /// What to do.
    pub op: Op,
    /// Answer only when the effect is as durable as a flush would make it. Has no effect on reads.
    pub fua: bool,
}

/// The operations. Extents are in bytes, at any alignment, and are checked against the volume here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The bytes of an extent; at most [`MAX_REQUEST_BYTES`].
    Read(Extent),
    /// Writes `data` from `offset`; at most [`MAX_REQUEST_BYTES`].
    Write {
        /// First byte of the volume.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Answered when every write that was *answered* before this was submitted, on any connection, is durable.
    Flush,
    /// The extent reads as zeros from now on, and its space may be freed.
    Trim(Extent),
    /// The extent reads as zeros from now on.
    Zero {
        /// The range.
        extent: Extent,
        /// Keep the space allocated.
        no_hole: bool,
    },
    /// The extent will be read soon.
    Cache(Extent),
    /// Which parts of the extent are known to be holes that read as zeros.
    Status(Extent),
}

/// A success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// The answer to a read: pieces in order, whose lengths sum up to the extent's.
    Data(Vec<Piece>),
    /// The answer to a status request: at least one, in order, from the extent's start. Unless the extent was
    /// longer than the engine looks at in one go, they cover it.
    Status(Vec<Stretch>),
}

/// A part of the answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// This many zero bytes that are known to be a hole.
    Hole(u64),
}

impl Piece {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Hole(len) => *len,
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A part of the answer to a status request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Length in bytes.
    pub len: u64,
    /// A hole, which reads as zeros; otherwise it may hold anything.
    pub hole: bool,
}

/// Why a request was refused. A refused request had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The volume cannot be written: a recovery point, or a replica.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The log or the backing failed; the group is in its failed state.
    #[error("input/output error")]
    Io,
    /// Beyond the end of the volume, or malformed.
    #[error("the request is invalid")]
    Invalid,
    /// A write beyond the end of the volume, or no room for the log.
    #[error("no space")]
    NoSpace,
    /// The volume is being closed, or its node learned of a newer primary.
    #[error("the volume is no longer served here")]
    Shutdown,
}

/// The one answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// From the [`Request`].
    pub cookie: u64,
    /// How it ended.
    pub result: Result<Reply, Refusal>,
}

/// Where answers go that did not come at once. Must not block.
pub trait Later: Send + Sync {
    /// Delivers one or more answers.
    fn complete(&self, completions: Vec<Completion>);
}
