//! What points are compared with: plain arrays and a list of what was done, in the order of its LSNs. Nothing in here
//! comes from the engine.
//!
//! - The state at an LSN is everything up to it, done one after the other.
//! - Snapshots only save time: each is what doing it all from the beginning gives.

/// Changes between two snapshots.
const SNAPSHOT_CHANGES: usize = 32;

/// What was done.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Bytes from an offset on.
    Write { volume: usize, offset: usize, bytes: Vec<u8> },
    /// Zeros.
    Zero { volume: usize, offset: usize, len: usize },
    /// Another size: what a volume gains is zeros, what it loses is gone.
    Resize { volume: usize, size: usize },
}

/// The bytes of each volume.
pub(crate) type State = Vec<Vec<u8>>;

/// The volumes, from their making on.
#[derive(Clone)]
pub(crate) struct Plain {
    changes: Vec<(u64, Change)>,
    now: State,
    /// After so many changes.
    snapshots: Vec<(usize, State)>,
}

fn apply(state: &mut State, change: &Change) {
    match change {
        Change::Write { volume, offset, bytes } => {
            state[*volume][*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Change::Zero { volume, offset, len } => state[*volume][*offset..offset + len].fill(0),
        Change::Resize { volume, size } => state[*volume].resize(*size, 0),
    }
}

impl Plain {
    /// Volumes of these sizes, all zeros.
    pub(crate) fn new(sizes: &[usize]) -> Plain {
        let now: State = sizes.iter().map(|&size| vec![0; size]).collect();
        Plain { changes: Vec::new(), snapshots: vec![(0, now.clone())], now }
    }

    /// The newest state.
    pub(crate) fn now(&self) -> &State {
        &self.now
    }

    /// The last LSN at which something was done; 0 if nothing was.
    pub(crate) fn last(&self) -> u64 {
        self.changes.last().map_or(0, |(lsn, _)| *lsn)
    }

    /// How often sizes changed behind an LSN, up to another.
    pub(crate) fn resizes_within(&self, from: u64, to: u64) -> u32 {
        let within = self.changes.iter().filter(|(lsn, _)| (from + 1..=to).contains(lsn));
        within.filter(|(_, change)| matches!(change, Change::Resize { .. })).count() as u32
    }

    /// Something was done.
    pub(crate) fn push(&mut self, lsn: u64, change: Change) {
        assert!(lsn > self.last(), "LSN {lsn} was given twice: {} was before it", self.last());
        apply(&mut self.now, &change);
        self.changes.push((lsn, change));
        if self.changes.len().is_multiple_of(SNAPSHOT_CHANGES) {
            self.snapshots.push((self.changes.len(), self.now.clone()));
        }
    }

    /// The state at an LSN.
    pub(crate) fn at(&self, lsn: u64) -> State {
        let count = self.changes.partition_point(|(at, _)| *at <= lsn);
        let snapshot = self.snapshots.iter().rev().find(|(done, _)| *done <= count);
        let (done, state) = snapshot.expect("the first is before all changes");
        let mut state = state.clone();
        self.changes[*done..count].iter().for_each(|(_, change)| apply(&mut state, change));
        state
    }

    /// Nothing behind `lsn` was kept.
    pub(crate) fn cut(&mut self, lsn: u64) {
        self.now = self.at(lsn);
        let count = self.changes.partition_point(|(at, _)| *at <= lsn);
        self.changes.truncate(count);
        self.snapshots.retain(|(done, _)| *done <= count);
    }
}
