//! What must be true of the points of a replica, told by what was done and what was sent, and how that is looked at.

use super::plain::State;
use super::world::{EAST, Pair, VOLUMES, WEST};
use engine::node::points::Error as NoPoint;
use engine::peer::Batch;
use engine::read::Plan;
use engine::types::{Extent, Lsn};
use std::collections::BTreeSet;

/// A stretch of LSNs that a replica was not sent, or not all of whose records it had at its end: from `from` to before
/// `to`, with the end of a span behind `begun`.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) from: u64,
    pub(crate) begun: u64,
    pub(crate) to: Option<u64>,
    /// Records were left out. Else it is a span for a replica that lacks nothing: its points are whole, but the replica
    /// need not know that.
    pub(crate) is_left_out: bool,
}

/// A point that is held open.
pub(crate) struct Held {
    pub(crate) at: u64,
    pub(crate) plans: Vec<Plan>,
    pub(crate) folds: u32,
    pub(crate) until: u64,
}

/// The kind and LSN of each record of a batch, by the byte offsets of `FORMAT.md`.
fn records_of(batch: &Batch) -> Vec<(u8, u64)> {
    let bytes = batch.bytes.concat();
    let (mut records, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let lsn = u64::from_le_bytes(bytes[at + 24..at + 32].try_into().expect("eight bytes"));
        let payload = u32::from_le_bytes(bytes[at + 72..at + 76].try_into().expect("four bytes"));
        records.push((bytes[at + 5], lsn));
        at += 80 + (payload as usize).next_multiple_of(8);
    }
    records
}

const SPAN_BEGIN: u8 = 8;
const SPAN_END: u8 = 9;

impl Pair<'_> {
    // Which LSNs are no points, told by what was sent alone.

    pub(crate) fn leave_out(&mut self, from: u64, to: u64) {
        self.tally.resizes_left_out += self.plain.resizes_within(from, to);
        match self.stretches.last_mut().filter(|last| last.to.is_none()) {
            Some(open) => (open.begun, open.is_left_out) = (to + 1, true),
            None => {
                let from = if from == 0 { 0 } else { from + 1 };
                self.stretches.push(Stretch { from, begun: to + 1, to: None, is_left_out: true });
            }
        }
    }

    pub(crate) fn follow(&mut self, batch: &Batch) {
        for (kind, lsn) in records_of(batch) {
            let open = self.stretches.last_mut().filter(|last| last.to.is_none());
            match (kind, open) {
                (SPAN_BEGIN, None) => {
                    self.stretches.push(Stretch { from: lsn, begun: lsn, to: None, is_left_out: false });
                }
                (SPAN_END, Some(open)) if lsn > open.begun => {
                    open.to = Some(lsn);
                    self.tally.spans += u32::from(open.is_left_out);
                }
                _ => {}
            }
        }
    }

    /// The replica has nothing behind `last`.
    pub(crate) fn trim_stretches(&mut self, last: u64) {
        self.stretches.retain(|stretch| stretch.from <= last);
        for stretch in &mut self.stretches {
            stretch.to = stretch.to.filter(|&to| to <= last);
        }
    }

    pub(crate) fn stretch_at(&self, lsn: u64) -> Option<&Stretch> {
        self.stretches
            .iter()
            .rev()
            .find(|stretch| stretch.from <= lsn && stretch.to.is_none_or(|to| lsn < to))
    }

    // The comparison.

    pub(crate) fn check_primary(&mut self) {
        for (index, expected) in self.plain.now().iter().enumerate() {
            let seen = self.nodes[EAST].read(VOLUMES[index].0, 0, expected.len() as u64);
            assert!(seen.as_ref() == Ok(expected), "seed {}: the primary's volume {index}", self.seed);
        }
    }

    /// Reads of all of an open point.
    pub(crate) fn plans(&self, at: u64) -> Vec<Plan> {
        let (node, state) = (&self.nodes[WEST].node, self.plain.at(at));
        let specs = node.specs_at(Lsn(at));
        let sizes: Vec<u64> = specs.iter().map(|spec| spec.size).collect();
        let expected: Vec<u64> = state.iter().map(|bytes| bytes.len() as u64).collect();
        assert_eq!(sizes, expected, "seed {}: the sizes at LSN {at}", self.seed);
        let whole = |(index, size): (usize, u64)| {
            let id = VOLUMES[index].0;
            let beyond = node.plan_point(id, Lsn(at), Extent::new(size, 512));
            assert!(beyond.is_none(), "there is no more of it at LSN {at}");
            node.plan_point(id, Lsn(at), Extent::new(0, size)).expect("the volume is there")
        };
        expected.into_iter().enumerate().map(whole).collect()
    }

    pub(crate) fn check(&self, at: u64, plans: &[Plan]) {
        let expected: State = self.plain.at(at);
        assert_eq!(plans.len(), expected.len());
        for (index, (plan, expected)) in plans.iter().zip(&expected).enumerate() {
            let seen = plan.read_all().expect("a point can be read");
            let differs = (0..expected.len()).find(|&byte| seen.get(byte) != expected.get(byte));
            assert!(
                differs.is_none() && seen.len() == expected.len(),
                "seed {}, step {}: volume {index} at the point {at} differs at {differs:?}; {:?}, {:?}",
                self.seed,
                self.step,
                self.nodes[WEST].node.window(),
                self.stretches,
            );
        }
    }

    /// Any LSN that may be a point.
    pub(crate) fn random_point(&mut self) -> Option<u64> {
        let window = self.nodes[WEST].node.window()?;
        let from = window.horizon.0.max(self.first);
        (from <= window.latest.0).then(|| from + self.random.below(window.latest.0 - from + 1))
    }

    /// Opens a point, if it is one, and compares all of it; or finds the right reason why it is none. Returns whether
    /// it is one.
    pub(crate) fn visit(&mut self, at: u64) -> bool {
        if at < self.first {
            return false;
        }
        let durable = self.nodes[WEST].node.durable().lsn.0;
        let window = self.nodes[WEST].node.window();
        let (seed, step) = (self.seed, self.step);
        let stretch = self.stretch_at(at);
        let story = format!("seed {seed}, step {step}: LSN {at}, {window:?}, {stretch:?}");
        let is_left_out = stretch.is_some_and(|stretch| stretch.is_left_out);
        let is_whole = stretch.is_none();
        match self.nodes[WEST].node.pin(Lsn(at)) {
            Ok(()) => {
                let is_kept = self.kept.contains(&at);
                assert!(at >= self.retired || is_kept, "{story}: it was retired at {}", self.retired);
                assert!(at <= durable && !is_left_out, "{story}: nobody can know it");
                let plans = self.plans(at);
                self.check(at, &plans);
                self.nodes[WEST].node.unpin(Lsn(at));
                return true;
            }
            Err(NoPoint::Outside { horizon, latest, .. }) => {
                assert!(at < horizon.0 || at > latest.0, "{story}");
                let latest_is_whole = self.stretch_at(durable).is_none();
                assert!(!latest_is_whole || latest.0 == durable, "{story}: what is durable is a point");
                self.tally.retired_refused += u32::from(at < self.retired);
            }
            Err(NoPoint::Coarse { .. }) => {
                assert!(!is_whole, "{story}: it is a point");
                self.tally.coarse_refused += u32::from(is_left_out);
            }
            Err(NoPoint::NoneYet) => assert!(window.is_none(), "{story}"),
            Err(error) => panic!("{story}: {error}"),
        }
        false
    }

    /// Every kept mark is one that was set, and shows what was written up to it.
    pub(crate) fn look_at_kept(&mut self) {
        let marks = self.nodes[WEST].node.kept_marks();
        let now: BTreeSet<u64> = marks.iter().map(|(mark, _)| mark.at.0).collect();
        self.tally.thinned += self.kept.difference(&now).count() as u32;
        self.kept = now;
        assert!(marks.len() <= 16, "seed {}: {} marks are kept", self.seed, marks.len());
        for (mark, bytes) in marks {
            assert!(bytes > 0 && self.names.contains(&mark.name), "seed {}: {mark:?}", self.seed);
            if mark.at.0 >= self.first {
                assert!(self.visit(mark.at.0), "seed {}: {mark:?} is no point", self.seed);
                self.tally.kept_looks += 1;
                self.tally.kept.insert((self.seed, mark.at.0));
            }
        }
    }

    pub(crate) fn visit_some(&mut self) {
        let kept = self.kept.iter().copied().find(|_| self.random.below(3) == 0);
        if let Some(at) = kept.filter(|&at| at >= self.first && self.held.len() < 3)
            && self.nodes[WEST].node.pin(Lsn(at)).is_ok()
        {
            let (plans, folds) = (self.plans(at), self.tally.folds);
            let until = self.step + self.random.below(400);
            self.held.push(Held { at, plans, folds, until });
            self.tally.kept_held += 1;
        }
        let durable = self.nodes[WEST].node.durable().lsn.0;
        // Among those that were retired, those that are not there yet, and those that never will be.
        let odd = match self.random.below(3) {
            0 => self.random.below(self.retired.max(1)),
            1 => self.random.below(durable + 20),
            _ => {
                let horizon = self.nodes[WEST].node.window().map_or(0, |window| window.horizon.0);
                let ends = self.stretches.iter().rev().map(|stretch| (stretch.from, stretch.to));
                let ends: Vec<_> = ends.filter(|(_, to)| to.is_none_or(|to| to > horizon)).take(2).collect();
                let Some(&(from, to)) = ends.get(self.random.below(2) as usize) else { return };
                let to = to.unwrap_or(durable + 1).max(from + 1);
                from + self.random.below(to - from)
            }
        };
        self.visit(odd);
        let Some(at) = self.random_point() else { return };
        if !self.visit(at) {
            return;
        }
        self.tally.points.insert((self.seed, at));
        if self.held.len() < 3 && self.one_in(4) {
            self.nodes[WEST].node.pin(Lsn(at)).expect("it is a point");
            let (plans, folds) = (self.plans(at), self.tally.folds);
            let until = self.step + self.random.below(250);
            self.held.push(Held { at, plans, folds, until });
        }
    }

    /// Lets those go that were held for long enough: they have not moved.
    pub(crate) fn let_go(&mut self) {
        let (over, held) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.until < self.step);
        self.held = held;
        let over: Vec<Held> = over;
        for Held { at, plans, folds, .. } in over {
            self.check(at, &plans);
            self.check(at, &self.plans(at));
            self.nodes[WEST].node.unpin(Lsn(at));
            self.tally.held_over_folds += u32::from(self.tally.folds > folds);
        }
    }
}
