//! What both ends of a session share: limits, timers, and the reasons for an end.
//!
//! A session ends in one way only: it becomes closed, says why in a last event, and ignores everything from then
//! on. Nothing is repaired in place; the primary dials again and both start from what is durable.

use super::frame::{self, Kind};
use engine::peer::{Jump, MAX_LACKS, TakesBack};
use engine::types::{Epoch, Lsn, Mono, Position};

/// The minor version of `landfall/1` that this code speaks.
pub const MINOR: u16 = 0;

/// Feature: both sides know what sync spans need of the link, the frames Needs, Jump and Ask.
pub const SPANS: u64 = 1 << 0;

/// Feature: the primary takes a fenced node that was primary before it as its replica, and what that node wrote
/// alone is kept there as a branch. It counts only beside [`SPANS`].
pub const TAKES_BACK: u64 = 1 << 1;

/// Feature: both sides know of scrub records, and the primary of what a replica says it found by them
/// ([`Ask::Checked`](engine::peer::Ask::Checked)). It counts only beside [`SPANS`].
pub const SCRUBS: u64 = 1 << 2;

/// Feature: both sides know of seeds, the frames Held and Thin. It counts only beside [`SPANS`].
pub const SEEDS: u64 = 1 << 3;

/// The optional features that this code can use, a bit for each.
pub const FEATURES: u64 = SPANS | TAKES_BACK | SCRUBS | SEEDS;

/// The most asks that wait to be sent, or to be heard once the session has attached. What comes on top is
/// dropped: an ask is a wish, and whoever has it sees what comes of it.
pub const MAX_ASKS: usize = 64;

/// The features that a primary offers.
pub(super) fn offer(takes_back: TakesBack) -> u64 {
    match takes_back {
        TakesBack::No => SPANS | SCRUBS | SEEDS,
        TakesBack::Yes => FEATURES,
    }
}

/// What the features offered by a primary say of old primaries; `None` if it knows no sync spans.
pub(super) fn offered(features: u64) -> Option<TakesBack> {
    match (features & SPANS != 0, features & TAKES_BACK != 0) {
        (false, _) => None,
        (true, false) => Some(TakesBack::No),
        (true, true) => Some(TakesBack::Yes),
    }
}

/// The limits and intervals of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Primary: bytes of records sent and not yet durable at the replica. The last batch may exceed it by the
    /// length of one record.
    pub window_bytes: usize,
    /// Primary: bytes of records in one batch, unless a single record is longer.
    pub batch_bytes: usize,
    /// Primary: batches sent and not yet durable at the replica.
    pub max_batches: usize,
    /// Replica: bytes of records received and not yet durable, above which no more is read.
    pub unsettled_bytes: usize,
    /// Both: a heartbeat is sent this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// Both: the session ends when nothing was heard for so long, in milliseconds.
    pub silence_ms: u64,
    /// Primary: how long the answer to its hello may take; replica: how long the hello may take, in
    /// milliseconds.
    pub opening_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            window_bytes: 32 << 20,
            batch_bytes: 1 << 20,
            max_batches: 4096,
            unsettled_bytes: 64 << 20,
            heartbeat_ms: 1_000,
            silence_ms: 5_000,
            opening_ms: 10_000,
        }
    }
}

impl Config {
    /// Panics if the limits contradict each other: the owner of a configuration file checks it before.
    pub(super) fn assert_valid(&self) {
        assert!(self.batch_bytes > 0, "batch_bytes is zero");
        assert!(self.batch_bytes <= frame::MAX_BATCH_BYTES, "batch_bytes is {}", self.batch_bytes);
        assert!(self.window_bytes >= self.batch_bytes, "window_bytes is {}", self.window_bytes);
        assert!(self.max_batches > 0, "max_batches is zero");
        assert!(self.unsettled_bytes > 0, "unsettled_bytes is zero");
        assert!(self.heartbeat_ms > 0, "heartbeat_ms is zero");
        assert!(self.silence_ms > self.heartbeat_ms, "silence_ms is {}", self.silence_ms);
        assert!(self.opening_ms > 0, "opening_ms is zero");
    }
}

/// How the peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] frame::Error),
    /// A frame that has no place in this state.
    #[error("a {frame:?} frame while {state}")]
    Unexpected {
        /// The frame.
        frame: Kind,
        /// The state, in words.
        state: &'static str,
    },
    /// A frame that needs a feature which is not in force.
    #[error("a {frame:?} frame, whose feature is not in force")]
    NotInForce {
        /// The frame.
        frame: Kind,
    },
    /// A frame of needs behind one that was not full, or that says otherwise whether a sync span is open.
    #[error("the needs go on behind their end, or contradict themselves")]
    ScatteredNeeds,
    /// More extents are lacking than a replica may tell of.
    #[error("{lacks} extents are lacking, {MAX_LACKS} may be told of")]
    TooManyLacks {
        /// How many, with those of the frames before.
        lacks: usize,
    },
    /// A jump that does not start at the replica's position, or does not lead ahead of it.
    #[error("a jump from {:?} to {:?}, the replica stands at {stands:?}", .jump.from, .jump.to)]
    BadJump {
        /// Where it had to start.
        stands: Position,
        /// The jump.
        jump: Jump,
    },
    /// A jump behind records, or behind another jump.
    #[error("a jump to LSN {to}, in the middle of a session")]
    LateJump {
        /// Where it leads.
        to: Lsn,
    },
    /// The replica accepted features that were not offered.
    #[error("features {accepted:#x} accepted, {offered:#x} offered")]
    Features {
        /// What the primary offered.
        offered: u64,
        /// What the replica accepted.
        accepted: u64,
    },
    /// An acknowledgement of something that was never sent.
    #[error("LSN {acked} acknowledged, but only LSN {sent} was sent")]
    AckBeyondSent {
        /// What the replica claims.
        acked: Lsn,
        /// The last LSN sent.
        sent: Lsn,
    },
    /// An acknowledgement of a record from an epoch above the primary's own: it is not one that was sent.
    #[error("a position of epoch {acked} acknowledged, this primary's is {own}")]
    AckFromBeyond {
        /// What the replica claims.
        acked: Epoch,
        /// The primary's own.
        own: Epoch,
    },
    /// An acknowledgement that takes back an earlier one, or that names another epoch or checksum for the same
    /// LSN.
    #[error("the acknowledged position went from {before:?} to {after:?}")]
    AckWentBack {
        /// What was acknowledged before.
        before: Position,
        /// What was acknowledged now.
        after: Position,
    },
    /// A batch that does not start right behind the one before.
    #[error("a batch starts at LSN {first}, expected was LSN {expected}")]
    Gap {
        /// Where it had to start.
        expected: Lsn,
        /// Where it starts.
        first: Lsn,
    },
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The peer broke the protocol. Nothing of the offending frame had an effect.
    #[error("the peer broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// Nothing was heard from the peer.
    #[error("nothing was heard from the peer for {ms} ms")]
    Silent {
        /// For how long.
        ms: u64,
    },
    /// The hello, or the answer to it, did not come in time.
    #[error("the session did not open within {ms} ms")]
    Opening {
        /// The limit.
        ms: u64,
    },
    /// The session ended with a rebuff, received or sent, which an event of its own told of.
    #[error("the replica refused")]
    Rebuffed,
    /// A message of this side does not fit a frame.
    #[error("a message cannot be sent: {0}")]
    Unsendable(frame::Error),
}

/// The timers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The opening takes too long.
    Opening = 0,
    /// A heartbeat is due.
    Heartbeat = 1,
    /// Too long since something was heard.
    Silence = 2,
}

impl Timer {
    const ALL: [Timer; 3] = [Timer::Opening, Timer::Heartbeat, Timer::Silence];
}

/// Which timers run, and until when.
#[derive(Debug, Default)]
pub(super) struct Timers([Option<Mono>; Timer::ALL.len()]);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Mono) {
        self.0[timer as usize] = Some(at);
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Mono> {
        self.0.iter().flatten().min().copied()
    }

    /// Stops and returns a timer whose time has come.
    pub(super) fn expire(&mut self, now: Mono) -> Option<Timer> {
        let timer =
            Timer::ALL.into_iter().find(|timer| self.0[*timer as usize].is_some_and(|at| at <= now))?;
        self.stop(timer);
        Some(timer)
    }
}
