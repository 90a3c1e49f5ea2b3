//! What an operator decides about a group on a node.

use super::keep::Keep;
use crate::log;
use crate::types::{GroupId, NodeId};
use std::collections::BTreeMap;

/// When a flush is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// When it is durable here.
    Local,
    /// When it is durable here and on at least one replica: no acknowledged flush is lost with the region.
    Replica,
}

/// What happens when the log has reached its limit, which means that a replica has been away for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The log is given up for the replicas that keep it full: what changes is tracked, and a sync span catches them
    /// up when they are back. Production goes on.
    Track,
    /// Writes wait until the log has room again.
    Stall,
    /// Writes are refused as a full disk would.
    Refuse,
}

/// What a new volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begins {
    /// Nothing: its disk must be empty, or is made.
    #[default]
    Empty,
    /// What its disk holds already, which is not copied here.
    InPlace,
}

/// A volume of a group that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// See [`Begins`].
    pub begins: Begins,
}

/// What to do if there is nothing in the group's folder yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Make a group, and be its first primary.
    Primary {
        /// Its identity: random.
        group: GroupId,
        /// Its volumes, in the order of their numbers.
        volumes: Vec<NewVolume>,
    },
    /// Wait for a primary; the group and its volumes come with the log.
    Replica,
}

/// How long a replica keeps every write selectable. The window ends at whichever comes first; behind it some marks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of log.
    pub bytes: u64,
    /// Nanoseconds, by the records' own times.
    pub age_ns: u64,
    /// See [`Keep`].
    pub keep: Keep,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { bytes: 8 << 30, age_ns: 24 * 3600 * 1_000_000_000, keep: Keep::default() }
    }
}

/// The limits and paces of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the log.
    pub log: log::Limits,
    /// Bytes of writes not yet on the backing above which writes wait for the disk.
    pub overlay_bytes: u64,
    /// Bytes of writes after which they are taken to the backing.
    pub apply_bytes: u64,
    /// Milliseconds after which they are, however few.
    pub apply_ms: u64,
    /// Milliseconds between two checkpoints.
    pub checkpoint_ms: u64,
    /// Milliseconds that a record without a flush may wait before it is made durable and sent.
    pub ship_delay_ms: u64,
    /// Bytes that may wait so.
    pub ship_delay_bytes: u64,
    /// Bytes of log that may be left when a promoted node changes over to its filled disks: they go into memory.
    pub catch_up_bytes: u64,
    /// Files made ahead of need.
    pub spare_segments: usize,
    /// Milliseconds that a guest's write is without a mark behind it; `None` for none but named marks.
    pub marks_ms: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            log: log::Limits::default(),
            overlay_bytes: 256 << 20,
            apply_bytes: 32 << 20,
            apply_ms: 500,
            checkpoint_ms: 5_000,
            ship_delay_ms: 10,
            ship_delay_bytes: 4 << 20,
            catch_up_bytes: 32 << 20,
            spare_segments: 2,
            marks_ms: None,
        }
    }
}

/// Online verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Milliseconds from the end of a round to the beginning of the next; `None` for none but those that an operator
    /// begins. Nothing of it is on record: a node that has just started begins its first a tenth of that time later.
    pub every_ms: Option<u64>,
    /// The most bytes of volumes that are read in a second.
    pub bytes_s: u64,
}

impl Default for Verification {
    fn default() -> Verification {
        Verification { every_ms: None, bytes_s: 64 << 20 }
    }
}

/// A group on a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's name.
    pub name: String,
    /// This node.
    pub node: NodeId,
    /// The group's folder.
    pub dir: String,
    /// See [`Start`].
    pub start: Start,
    /// Where the plain disks are, by the volumes' names; others lie in the group's folder.
    pub backings: BTreeMap<String, String>,
    /// The replicas that the log is kept for, by name.
    pub replicas: Vec<String>,
    /// See [`AckPolicy`].
    pub ack: AckPolicy,
    /// See [`OnFull`].
    pub on_full: OnFull,
    /// See [`Retention`].
    pub retention: Retention,
    /// See [`Limits`].
    pub limits: Limits,
    /// See [`Verification`].
    pub verify: Verification,
}
