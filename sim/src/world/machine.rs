//! A machine: a disk, a clock, and at most one life of the program.

use super::check::Mark;
use super::drill::Drill;
use super::link::{Dial, Incoming};
use crate::clock::{NodeClock, Span, Time};
use crate::disk::{Disk, Process};
use crate::ledger::Key;
use crate::net::ConnId;
use crate::options::{Aside, Point};
use crate::reference::Death;
use crate::rng::Rng;
use engine::node::Node;
use engine::node::work::{Done, Job};
use engine::state::Role;
use engine::types::{Epoch, Lsn, NodeId, Position, Reign};
use std::collections::BTreeMap;

/// A place for a job that is out.
pub(super) enum Slot {
    /// None is.
    Idle,
    /// It takes effect at the end of its time.
    ToRun(Job),
    /// It has taken effect; the node does not know yet.
    Ran(Done),
}

impl Slot {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Slot::Idle)
    }
}

/// A point that somebody has open.
pub(super) struct Pin {
    pub(super) at: Lsn,
    /// The reign that it is of.
    pub(super) reign: Option<Reign>,
    pub(super) hash: Option<u64>,
}

/// One life of the program.
pub(super) struct Live {
    pub(super) process: Process,
    pub(super) node: Node,
    pub(super) sync: Slot,
    pub(super) bulk: Slot,
    /// What verification reads.
    pub(super) verify: Slot,
    pub(super) dials: BTreeMap<usize, Dial>,
    pub(super) incoming: BTreeMap<ConnId, Incoming>,
    pub(super) wake: Option<Time>,
    /// An operator waits for a moment of rest, to promote there, under that epoch.
    pub(super) promote: Option<(Point, Epoch)>,
    /// He waits for one to move a promotion: to a share of the window, or of a branch.
    pub(super) reconsider: Option<(u32, Aside)>,
    /// The supervisor ends it soon: its node has failed.
    pub(super) restarting: bool,
    /// The sync of the log that is out met an error of the disk.
    pub(super) sync_failed: bool,
    pub(super) pins: Vec<Pin>,
    /// Somebody writes to a copy of a point.
    pub(super) drill: Option<Drill>,
}

/// A machine.
pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) clock: NodeClock,
    pub(super) rng: Rng,
    /// Counts births and deaths, so that events of an earlier life are known as such.
    pub(super) life: u64,
    pub(super) live: Option<Live>,
    /// A start is planned.
    pub(super) starting: bool,
    /// How long the power stays off when a planned cut strikes.
    pub(super) off: Option<Span>,
    /// How the last life ended, or the worst end since the node was last looked at.
    pub(super) death: Death,
    /// The highest position that this node said is durable here, on the line that it follows.
    pub(super) promised: Position,
    pub(super) seen_epoch: Epoch,
    /// The reign that it wrote last.
    pub(super) reign: Option<Key>,
    /// The role that it was last seen in.
    pub(super) role: Option<Role>,
    /// Up to where each place of it has been compared.
    pub(super) looked: [Option<Mark>; 3],
    /// Rules of the disk may strike.
    pub(super) rules: bool,
    /// Its disk has broken its own promises.
    pub(super) damaged: bool,
    /// It was taken back with disks that were beyond the parting: what diverged is in them until the line is folded or
    /// applied over it.
    pub(super) odd_base: bool,
    /// Its operator wants old primaries as its replicas.
    pub(super) takes_back: bool,
    /// Times that a base image of it has rotted.
    pub(super) base_rots: u32,
    /// Its log has rotted, or was lied about.
    pub(super) log_damaged: bool,
    /// Whoever starts its program next makes mistakes first.
    pub(super) errs_at_start: bool,
    /// It lost its disk.
    pub(super) wiped: bool,
}

impl Machine {
    /// Whether reads may fail, or what was promised may be gone, for reasons that no program can help.
    pub(super) fn is_excused(&self) -> bool {
        self.rules || self.damaged
    }
}
