//! Which operation stands at which LSN, on every line of history that a run has seen.
//!
//! A [`Timeline`] is one reign of one primary together with the history that it continues. It joins the reference
//! (which knows no LSN) with the numbers that the engine gave: the only thing taken from the engine is the position
//! of its log before and after a batch, and a batch takes effect in its order.
//!
//! - A promotion forks the timeline of the reign before at the point that was chosen.
//! - A crash of the writer rewinds its timeline to the last record that is left; what that may be is checked by
//!   the caller before.

use crate::clock::Time;
use crate::reference::{FlushId, Image, OpId, Operation, Prefix, Reference};
use engine::types::{Epoch, Lsn, NodeId, Position, Reign};
use std::collections::BTreeMap;

/// Names a reign: two nodes may take the same epoch.
pub type Key = (Epoch, NodeId);

/// The key of a reign.
#[must_use]
pub fn key(reign: &Reign) -> Key {
    (reign.epoch, reign.node)
}

/// An operation in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it does.
    pub operation: Operation,
    /// The state right behind it.
    pub prefix: Prefix,
    /// When it took effect.
    pub at: Time,
    /// Whether its guest was told of success.
    pub answered: bool,
}

/// One line of history.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The state of the guests' world.
    pub reference: Reference,
    entries: BTreeMap<Lsn, Entry>,
    by_op: BTreeMap<OpId, Lsn>,
    /// Checksums of the log at LSNs where one was seen.
    positions: BTreeMap<Lsn, Position>,
    /// The size of each volume in bytes, from an LSN on.
    sizes: Vec<BTreeMap<Lsn, u64>>,
    /// Everything up to here is promised to survive, whatever happens to one machine.
    pub branch: Lsn,
}

impl Timeline {
    /// The first reign of a group, whose volumes hold this and have these sizes; an image is as long as its volume may get.
    #[must_use]
    pub fn new(image: Image, sizes: &[u64]) -> Timeline {
        Timeline {
            sizes: sizes.iter().map(|&size| BTreeMap::from([(Lsn::ZERO, size)])).collect(),
            reference: Reference::new(image),
            entries: BTreeMap::new(),
            by_op: BTreeMap::new(),
            positions: BTreeMap::new(),
            branch: Lsn::ZERO,
        }
    }

    /// A reign that branches off this one at an LSN.
    #[must_use]
    pub fn fork(&self, at: Lsn) -> Timeline {
        let mut fork = self.clone();
        fork.rewind(at);
        fork.branch = at;
        fork
    }

    /// An operation took effect as the record at `lsn`.
    pub fn submit(&mut self, at: Time, lsn: Lsn, operation: Operation, fua: bool) -> OpId {
        let id = self.reference.submit(operation.clone(), fua);
        let entry = Entry { operation, prefix: Prefix(id.0 + 1), at, answered: false };
        let before = self.entries.insert(lsn, entry);
        assert!(before.is_none(), "two operations at LSN {lsn}");
        self.by_op.insert(id, lsn);
        id
    }

    /// A volume has another size behind the record at `lsn`.
    pub fn resize(&mut self, lsn: Lsn, volume: usize, size: u64) {
        self.sizes[volume].insert(lsn, size);
    }

    /// The size of a volume at an LSN, in bytes.
    #[must_use]
    pub fn size_at(&self, lsn: Lsn, volume: usize) -> u64 {
        let known = self.sizes[volume].range(..=lsn).next_back();
        known.map_or(0, |(_, size)| *size)
    }

    /// The largest that a volume was behind an LSN, in bytes; 0 if its size did not change there.
    #[must_use]
    pub fn largest_since(&self, lsn: Lsn, volume: usize) -> u64 {
        self.sizes[volume].range(lsn.next()..).map(|(_, size)| *size).max().unwrap_or(0)
    }

    /// The newest size of a volume, in bytes.
    #[must_use]
    pub fn size(&self, volume: usize) -> u64 {
        self.size_at(Lsn(u64::MAX), volume)
    }

    /// Its guest was told of success.
    pub fn answer(&mut self, id: OpId) {
        self.reference.answer(id);
        if let Some(entry) = self.by_op.get(&id).and_then(|lsn| self.entries.get_mut(lsn)) {
            entry.answered = true;
        }
    }

    /// The state at an LSN, as a prefix.
    #[must_use]
    pub fn prefix_at(&self, lsn: Lsn) -> Prefix {
        self.entries.range(..=lsn).next_back().map_or(Prefix(0), |(_, entry)| entry.prefix)
    }

    /// The bytes of all volumes at an LSN.
    #[must_use]
    pub fn state_at(&self, lsn: Lsn) -> Image {
        self.reference.state(self.prefix_at(lsn))
    }

    /// Whether all volumes at an LSN are these bytes.
    #[must_use]
    pub fn is_state_at(&self, lsn: Lsn, image: &Image) -> bool {
        self.reference.is_state(self.prefix_at(lsn), image)
    }

    /// The bytes of a range of a volume at an LSN.
    #[must_use]
    pub fn range_at(&self, lsn: Lsn, volume: usize, offset: u64, len: u64) -> Vec<u8> {
        self.reference.range(self.prefix_at(lsn), volume, offset, len)
    }

    /// The operation at an LSN.
    #[must_use]
    pub fn at(&self, lsn: Lsn) -> Option<&Entry> {
        self.entries.get(&lsn)
    }

    /// The operations within a range.
    pub fn range(
        &self,
        range: impl std::ops::RangeBounds<Lsn>,
    ) -> impl DoubleEndedIterator<Item = (&Lsn, &Entry)> {
        self.entries.range(range)
    }

    /// The LSN at which a state is complete.
    #[must_use]
    pub fn lsn_of(&self, prefix: Prefix) -> Lsn {
        let id = OpId(prefix.0.wrapping_sub(1));
        self.by_op.get(&id).copied().unwrap_or_default()
    }

    /// Notes what the log's checksum at an LSN is; what another node has there has to be the same.
    ///
    /// # Errors
    ///
    /// The position that is already known, if it is another.
    pub fn note(&mut self, position: Position) -> Result<(), Position> {
        let known = *self.positions.entry(position.lsn).or_insert(position);
        if known == position { Ok(()) } else { Err(known) }
    }

    /// The position at an LSN, if it was ever seen.
    #[must_use]
    pub fn position(&self, lsn: Lsn) -> Option<Position> {
        self.positions.get(&lsn).copied()
    }

    /// The log ends at `lsn` now, and all that is left is durable.
    pub fn rewind(&mut self, lsn: Lsn) {
        let prefix = self.prefix_at(lsn);
        self.reference.rewind(prefix);
        self.entries.split_off(&lsn.next());
        self.by_op.split_off(&OpId(prefix.0));
        self.positions.split_off(&lsn.next());
        for sizes in &mut self.sizes {
            sizes.split_off(&lsn.next());
        }
        for entry in self.entries.values_mut() {
            entry.answered = true;
        }
        let all: FlushId = self.reference.submit_flush();
        self.reference.answer_flush(all);
    }
}
