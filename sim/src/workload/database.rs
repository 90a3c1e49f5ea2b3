//! The requests of a database: transactions into a circular write-ahead log, each made durable by a flush, and
//! the changed pages to their places at a checkpoint, after which the log is trimmed.

use super::Profile;
use crate::rng::{PPM, Rng};
use engine::types::Extent;
use std::collections::{BTreeSet, VecDeque};

const PAGE: u64 = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Write(Extent),
    Trim(Extent),
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) volume: usize,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) struct Database {
    log: Extent,
    data_volume: usize,
    data: Extent,
    /// Where the log goes on, from its start.
    cursor: u64,
    dirty: BTreeSet<u64>,
    transactions: u64,
    queue: VecDeque<Step>,
}

impl Database {
    pub(super) fn new(profile: &Profile) -> Database {
        let data_volume = profile.volumes.len() - 1;
        let (first, last) = (profile.volumes[0], profile.volumes[data_volume]);
        let shared = if data_volume == 0 { (first / 4).next_multiple_of(PAGE) } else { 0 };
        Database {
            log: Extent::new(0, if data_volume == 0 { shared } else { first }),
            data_volume,
            data: Extent::new(shared, last - shared),
            cursor: 0,
            dirty: BTreeSet::new(),
            transactions: 0,
            queue: VecDeque::new(),
        }
    }

    pub(super) fn next_step(&mut self, rng: &mut Rng) -> Step {
        loop {
            if let Some(step) = self.queue.pop_front() {
                return step;
            }
            let log_is_full = self.cursor + 4 * PAGE > self.log.len;
            if log_is_full || self.transactions >= 20 && rng.chance(PPM / 10) {
                self.checkpoint();
            } else {
                self.transaction(rng);
            }
        }
    }

    fn transaction(&mut self, rng: &mut Rng) {
        self.transactions += 1;
        for _ in 0..rng.between(1, 3) {
            self.dirty.insert(rng.below(self.data.len / PAGE));
        }
        let len = rng.between(1, 2 * PAGE / 512) * 512;
        let at = self.log.offset + self.cursor;
        self.cursor += len;
        self.queue.push_back(Step { volume: 0, what: What::Write(Extent::new(at, len)) });
        self.queue.push_back(Step { volume: 0, what: What::Flush });
    }

    fn checkpoint(&mut self) {
        self.transactions = 0;
        let volume = self.data_volume;
        for page in std::mem::take(&mut self.dirty) {
            let extent = Extent::new(self.data.offset + page * PAGE, PAGE);
            self.queue.push_back(Step { volume, what: What::Write(extent) });
        }
        self.queue.push_back(Step { volume, what: What::Flush });
        self.queue
            .push_back(Step { volume: 0, what: What::Trim(Extent::new(self.log.offset, self.log.len)) });
        self.cursor = 0;
    }
}
