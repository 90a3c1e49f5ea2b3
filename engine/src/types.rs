//! The numbers of the engine, each with a type of its own, so that none can be taken for another.
//!
//! The positions of a log are ordered, everywhere and at all times:
//!
//! ```text
//! appended ≥ durable ≥ shipped ≥ received ≥ replica-durable ≥ horizon
//! ```
//!
//! - *appended*: the last record that was handed to this node's log file (it survives the death of the
//!   process, not of the machine);
//! - *durable*: the last record covered by a successful sync here;
//! - *shipped*: the last record handed to the link; never above *durable*;
//! - *received*: the last record in the replica's log file;
//! - *replica-durable*: the last record that the replica acknowledged after its own sync;
//! - *horizon*: the oldest LSN that can still be selected as a recovery point.

use bincode::{Decode, Encode};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// A position in a group's log: the number of a record. The first record is 1; 0 is "before everything".
    Lsn(u64)
}
number! {
    /// One reign of one primary. The first is 1; each promotion takes the next. A node that has seen epoch E
    /// accepts nothing from an epoch below E.
    Epoch(u64)
}
number! {
    /// Counts the openings of a log by its writer within the log's life. Records of an older incarnation that
    /// stand behind a torn tail can therefore never be taken for the continuation of a newer one.
    Incarnation(u32)
}
number! {
    /// A volume within its group. The first is 1; 0 in a record means "the group as a whole".
    VolumeId(u32)
}
number! {
    /// The checksum of a record's header, which covers the previous record's checksum and the payload's: equal
    /// checksums at an LSN mean equal histories up to it. CRC-32 (IEEE 802.3), seeded by the group.
    Checksum(u32)
}
number! {
    /// Wall-clock time in nanoseconds since 1970-01-01T00:00:00Z. For people only: nothing is ordered by it.
    Timestamp(u64)
}
number! {
    /// Monotonic time in nanoseconds since an arbitrary start. For timers only; never stored.
    Mono(u64)
}

impl Lsn {
    /// The position before the first record.
    pub const ZERO: Lsn = Lsn(0);

    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0.checked_add(1).expect("2^64 records are more than any log lives to see"))
    }

    /// The position before this one; zero stays zero.
    #[must_use]
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl Mono {
    /// This moment plus `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Mono {
        Mono(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// Milliseconds from `earlier` to this moment, zero if it lies ahead.
    #[must_use]
    pub fn ms_since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// The time as an input: the engine never reads a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// For people, and for the time that a record carries.
    pub wall: Timestamp,
}

/// The identity of a consistency group for its whole life, over all regions and epochs: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct GroupId(pub [u8; 16]);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({self})")
    }
}

/// A range of bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    /// The range of `len` bytes from `offset`.
    #[must_use]
    pub fn new(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    /// The first byte behind the range; `None` if it lies beyond 2^64.
    #[must_use]
    pub fn checked_end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// The first byte behind the range, for ranges that were checked against their volume.
    #[must_use]
    pub fn end(self) -> u64 {
        self.checked_end().expect("an extent is checked against its volume before it is used")
    }

    /// Whether the range lies within a volume of `size` bytes.
    #[must_use]
    pub fn fits(self, size: u64) -> bool {
        self.checked_end().is_some_and(|end| end <= size)
    }

    /// The part that both ranges have in common.
    #[must_use]
    pub fn intersect(self, other: Extent) -> Option<Extent> {
        let start = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (start < end).then(|| Extent::new(start, end - start))
    }
}

/// A place in a log's history, in full: enough to tell whether two logs agree up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Position {
    /// The epoch of the record at `lsn`; 0 at LSN 0.
    pub epoch: Epoch,
    /// The record's LSN.
    pub lsn: Lsn,
    /// The record's checksum; 0 at LSN 0.
    pub checksum: Checksum,
}

/// Who a node is: 16 random bytes made when its data directory is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// One reign in a log's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reign {
    /// The epoch; strictly increasing along a history.
    pub epoch: Epoch,
    /// The last position of the history before this reign: its first record is `branch.lsn + 1`.
    pub branch: Position,
    /// The node that wrote it. Two nodes that were both promoted to the same epoch differ here.
    pub node: NodeId,
}
