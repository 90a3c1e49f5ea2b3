//! The requests of a recorded workload, over and over, with bytes that the seed gives.

use super::{After, Profile, Step, stamp};
use crate::clock::Span;
use crate::recorded::{Deed, Recorded, Recording};
use engine::guest::{Op, Request};
use engine::types::Extent;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Replay {
    records: Arc<[Recorded]>,
    sizes: Vec<u64>,
    max_len: u64,
    /// The record, and how much of it has been played.
    next: usize,
    done: u64,
}

impl Replay {
    pub(super) fn new(recording: &Recording, profile: &Profile) -> Replay {
        let records = Arc::clone(&recording.records);
        Replay { records, sizes: profile.volumes.clone(), max_len: profile.max_len, next: 0, done: 0 }
    }

    pub(super) fn next_step(&mut self, seed: u64, cookie: u64) -> Step {
        let record = self.records[self.next];
        let size = self.sizes[record.volume];
        // Volumes in memory may be smaller than those that were recorded.
        let at = (record.offset + self.done) % size;
        let most = match record.deed {
            Deed::Write => self.max_len,
            Deed::Zero | Deed::Flush => u64::MAX,
        };
        let left = record.len.min(size).saturating_sub(self.done);
        let len = left.min(most).min(size - at);
        let op = match record.deed {
            Deed::Write => Op::Write { offset: at, data: stamp(seed, cookie, len) },
            Deed::Zero => Op::Trim(Extent::new(at, len)),
            Deed::Flush => Op::Flush,
        };
        let gap = if len < left {
            self.done += len;
            Span(0)
        } else {
            (self.next, self.done) = ((self.next + 1) % self.records.len(), 0);
            record.gap
        };
        Step {
            gap,
            after: After::Nothing,
            volume: record.volume,
            request: Request { cookie, op, fua: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::workload::Workload;

    #[test]
    fn records_are_played_in_pieces_that_fit_around_and_around() {
        let text = concat!(
            r#"{"format":"landfall-workload","version":1,"volumes":[{"name":"a","size":1048576}]}"#,
            "\n",
            r#"{"lsn":1,"ns":0,"kind":"write","volume":"a","offset":30720,"length":6144}"#,
            "\n",
            r#"{"lsn":2,"ns":700,"kind":"flush"}"#,
            "\n",
            r#"{"lsn":3,"ns":900,"kind":"zero","volume":"a","offset":0,"length":1048576}"#,
            "\n",
        );
        let mut profile = Profile::swarm(&mut Rng::new(1));
        (profile.volumes, profile.max_len) = (vec![32 << 10], 4_096);
        profile.recording = Some(Recording::parse(text, None).expect("it is sound"));
        let mut workload = Workload::new(profile.clone(), Rng::new(5));
        let mut again = Workload::new(profile, Rng::new(5));
        let mut steps = Vec::new();
        for cookie in 1..=8 {
            let step = workload.next_step();
            assert_eq!(step, again.next_step());
            assert_eq!(step.request.cookie, cookie);
            let place = match step.request.op {
                Op::Write { offset, data } => ("write", offset, data.len() as u64),
                Op::Trim(extent) => ("trim", extent.offset, extent.len),
                Op::Flush => ("flush", 0, 0),
                other => panic!("{other:?}"),
            };
            steps.push((place, step.gap.0));
        }
        let round = [
            (("write", 30_720, 2_048), 0),
            (("write", 0, 4_096), 700),
            (("flush", 0, 0), 200),
            (("trim", 0, 32_768), 1_000_000),
        ];
        assert_eq!(steps, [round, round].concat());
    }
}
