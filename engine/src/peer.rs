//! What two nodes tell each other about a group before records flow: plain data, carried by `transport::link`.
//!
//! The primary dials. It says [`Hello`]; the other side answers [`Welcome`] (its durable position, from which the
//! primary goes on) or a [`Rebuff`]. Which answer is right is decided by the engine alone.

use crate::log::chain::Tip;
use crate::types::{Epoch, Extent, GroupId, Lsn, NodeId, Position, Reign, VolumeId};
use bincode::{Decode, Encode};

/// A primary's introduction.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The group's name, as both configurations spell it.
    pub name: String,
    /// The group's identity.
    pub group: GroupId,
    /// Who is speaking.
    pub node: NodeId,
    /// The log's history, oldest reign first; the last is the speaker's own.
    pub history: Vec<Reign>,
    /// The speaker's durable position.
    pub durable: Position,
    /// The oldest LSN that the speaker can still send.
    pub first: Lsn,
}

/// A replica's answer: "send what follows `durable`".
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// Who is answering.
    pub node: NodeId,
    /// The last position that is durable here, on the history that the primary told.
    pub durable: Position,
    /// The oldest LSN that is selectable here.
    pub horizon: Lsn,
}

/// What a replica lacks beside the records behind its durable position: said before the [`Welcome`], by a replica
/// that knows of sync spans to a primary that does.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Needs {
    /// A sync span is not ended here: the latest LSNs are not selectable.
    pub coarse: bool,
    /// Extents that differ from the history which the primary told, whatever records follow. At most
    /// [`MAX_LACKS`]; more are merged with what lies between them.
    pub lacks: Vec<Lack>,
}

/// The most extents in [`Needs`].
pub const MAX_LACKS: usize = 1 << 18;

/// A part of a volume that a replica lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lack {
    /// The volume.
    pub volume: VolumeId,
    /// The part; never empty.
    pub extent: Extent,
}

/// Whether a primary takes a fenced node that was primary before it as its replica; what that node wrote alone is kept
/// there as a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TakesBack {
    /// It does not: the old primary stays fenced.
    #[default]
    No,
    /// It does.
    Yes,
}

/// A primary's word that the records between two positions will never come, and that a sync span follows which
/// makes up for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Jump {
    /// Where the replica stands.
    pub from: Position,
    /// Where its log goes on: the next record is the one behind this. Above `from`, and durable at the primary.
    pub to: Tip,
}

/// What a replica asks of its primary in mid-session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// Hand the group over to me: a planned failover.
    Handover,
    /// This part is not what the primary says it is: send it again.
    Repair(Lack),
    /// Nothing: it says how far the scrub records were looked at here. Said to whoever has sent some, and so knows
    /// of them.
    Checked(Checked),
}

/// What a replica has found by scrub records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Checked {
    /// Each one up to here was looked at, in whatever round, or never will be.
    pub upto: Lsn,
    /// The round that the counts are of: the newest that this process has seen.
    pub round: u64,
    /// Records whose extent holds here what they say.
    pub same: u64,
    /// Records whose extent does not, or cannot be read.
    pub mismatched: u64,
    /// Records that were not looked at: they lie within a sync span, or were too many at once.
    pub skipped: u64,
}

/// A replica's refusal; it changes nothing on the side that refuses.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Rebuff {
    /// A newer primary exists; here is its history. Whoever gets this stops serving writes.
    #[error("a newer epoch {} exists", .history.last().map_or(Epoch(0), |reign| reign.epoch))]
    Superseded {
        /// The history that ends in the newer epoch.
        history: Vec<Reign>,
    },
    /// The same epoch was taken by two nodes; here is the other history. Neither side changes.
    #[error("epoch {} was taken by two nodes: both histories are kept, an operator has to choose", .history.last().map_or(Epoch(0), |reign| reign.epoch))]
    Rival {
        /// The other history.
        history: Vec<Reign>,
    },
    /// The logs disagree at a position that both hold.
    #[error("the logs differ at LSN {}", .at.lsn)]
    Diverged {
        /// What the refusing side has there.
        at: Position,
    },
    /// The replica needs records that the primary no longer has.
    #[error("the replica stands at LSN {}, which is before the primary's oldest record", .durable.lsn)]
    TooFarBehind {
        /// Where the replica stands.
        durable: Position,
    },
    /// A different group goes by this name here.
    #[error("another group has this name here")]
    WrongGroup,
    /// This node is not configured as a replica of this group, or the certificate gives no right to it. The two
    /// are not told apart, so that a stranger learns nothing.
    #[error("this group is not accepted from this peer")]
    NotAllowed,
    /// The replica's log failed; the reason is in its own status.
    #[error("the replica is in its failed state")]
    Failed,
    /// The replica has no room; it will take records again when it has.
    #[error("the replica has no space left")]
    NoSpace,
    /// An old primary is to be taken back, and brings its disks in order first. Only said to a primary that takes old
    /// ones back.
    #[error("the old primary brings its disks in order; it is taken back then")]
    NotYet,
}

/// A run of records as they stand in the log, byte for byte; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// LSN of the first record.
    pub first: Lsn,
    /// LSN of the last record.
    pub last: Lsn,
    /// Whole records, consecutive, in one or more pieces; a piece's end need not be a record's.
    pub bytes: Vec<bytes::Bytes>,
}

impl Batch {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.iter().map(bytes::Bytes::len).sum()
    }

    /// Whether it holds no byte (a batch from a log never does).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
