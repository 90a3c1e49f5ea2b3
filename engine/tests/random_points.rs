//! Points at random LSNs of a random workload, against plain arrays, while retention folds without a break and either
//! node is killed now and then.
//!
//! One primary and one replica. Guests write, trim, flush and resize; the link is down for a while or for so long that
//! the log is given up and a sync span follows; jobs are out for long, so that everything else happens between their
//! beginning, their end and the node's hearing of it. What is asserted:
//!
//! - a point that is served shows what was done up to its LSN and nothing else, in its sizes, over both volumes;
//! - one that is held open does not move, however far retention comes, also in the middle of a fold, and also through a
//!   plan that was made when it was opened; a kill takes the opening and not the point;
//! - one that is retired is refused for good, and so is one whose records were left out or only half made up for;
//! - any other is served;
//! - marks that are kept behind the window show what any point does, for as long as they are kept, however the base images
//!   move on, and whatever is thinned around them.

mod common;
#[path = "random_points/judge.rs"]
mod judge;
#[path = "random_points/plain.rs"]
mod plain;
#[path = "random_points/watched.rs"]
mod watched;
#[path = "random_points/world.rs"]
mod world;

use std::collections::BTreeSet;
use world::{EAST, Pair, WEST};

const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;
const STEPS: u64 = 8_000;

/// How often each thing happened.
#[derive(Debug, Default)]
struct Tally {
    points: BTreeSet<(u64, u64)>,
    folds: u32,
    folds_cut: u32,
    looks_in_folds: u32,
    held_over_folds: u32,
    held_over_kills: u32,
    replica_kills: u32,
    primary_kills: u32,
    jumps: u32,
    spans: u32,
    grown: u32,
    shrunk: u32,
    resizes_left_out: u32,
    trims: u32,
    retired_refused: u32,
    coarse_refused: u32,
    marks: u32,
    kept: BTreeSet<(u64, u64)>,
    kept_looks: u32,
    kept_held: u32,
    thinned: u32,
}

impl Pair<'_> {
    fn live(&mut self) {
        while self.step < STEPS {
            self.step += 1;
            [EAST, WEST].into_iter().for_each(|side| self.pass_time(side, 20));
            match self.random.below(100) {
                0..=44 => self.guest(),
                45..=74 => {
                    self.ship();
                    if self.one_in(2) {
                        self.acknowledge();
                    }
                }
                75..=89 => self.visit_some(),
                90..=94 => self.nodes[EAST].sync(),
                95 if self.one_in(4) => self.crash(WEST),
                96 if self.one_in(16) => self.crash(EAST),
                97 if self.one_in(4) => {
                    let (side, calls) = (usize::from(!self.one_in(4)), self.random.below(30));
                    self.disks[side].cut_after(calls);
                }
                98 if self.link.is_some() && self.one_in(5) => {
                    // Often for longer than the log lasts.
                    let is_long = self.one_in(2);
                    let steps = if is_long { 250 } else { 20 };
                    self.disconnect(steps);
                }
                _ => {}
            }
            self.revive();
            self.advance_some(WEST);
            if self.one_in(2) {
                self.advance_some(EAST);
            }
            self.revive();
            self.let_go();
            if self.link.is_none() && self.step >= self.down_until {
                self.connect();
                self.revive();
            }
        }
    }

    /// Starts whatever has lost its power.
    fn revive(&mut self) {
        for side in [EAST, WEST] {
            if self.is_dark(side) {
                self.crash(side);
            }
        }
    }

    /// Heals everything and goes on until the replica is whole and up to date; all of its points are right then.
    fn converge(&mut self) {
        for side in [EAST, WEST] {
            self.crash(side);
        }
        self.step = u64::MAX;
        self.let_go();
        for _ in 0..3_000 {
            if self.link.is_none() {
                self.connect();
            }
            for side in [EAST, WEST] {
                self.pass_time(side, 100);
                self.poll(side);
                self.end_all(side);
            }
            self.nodes[EAST].sync();
            self.ship();
            self.acknowledge();
            let latest = self.nodes[EAST].node.durable();
            let window = self.nodes[WEST].node.window();
            let lacks = self.nodes[EAST].node.report(self.nodes[EAST].now).replicas[0].lacking;
            if lacks.is_none() && window.is_some_and(|window| window.latest == latest.lsn) {
                assert!(latest.lsn.0 >= self.plain.last() && self.tip() == latest.lsn.0);
                self.check_primary();
                self.look_at_kept();
                (self.first..=latest.lsn.0 + 1).for_each(|at| {
                    self.visit(at);
                });
                return;
            }
        }
        panic!("seed {}: the replica is not whole: {:?}", self.seed, self.stretches);
    }
}

fn run(seed: u64, tally: &mut Tally) {
    let mut pair = Pair::new(seed, tally);
    pair.live();
    pair.converge();
}

/// R13, R14, R16: see the module.
#[test]
fn a_thousand_points_at_random_lsns_are_what_was_written() {
    let mut tally = Tally::default();
    SEEDS.for_each(|seed| run(seed, &mut tally));
    let points = tally.points.len();
    let kept = tally.kept.len();
    tally.points.clear();
    tally.kept.clear();
    println!("{points} points, {kept} kept marks; {tally:?}");
    assert!(points >= 1_000, "{points} points");
    let Tally { folds, folds_cut, looks_in_folds, held_over_folds, held_over_kills, .. } = tally;
    assert!(folds > 0 && folds_cut > 0 && looks_in_folds > 0, "{tally:?}");
    assert!(held_over_folds > 0 && held_over_kills > 0, "{tally:?}");
    assert!(tally.replica_kills > 0 && tally.primary_kills > 0, "{tally:?}");
    assert!(tally.jumps > 0 && tally.spans > 0, "{tally:?}");
    assert!(tally.grown > 0 && tally.shrunk > 0 && tally.trims > 0, "{tally:?}");
    assert!(tally.resizes_left_out > 0, "{tally:?}");
    assert!(kept >= 100 && tally.kept_looks > 0 && tally.kept_held > 0 && tally.thinned > 0, "{tally:?}");
    assert!(tally.retired_refused > 0 && tally.coarse_refused > 0, "{tally:?}");
}

/// The test of the test: mistakes that can be planted in the engine, and that this is to find, are found.
#[cfg(feature = "planted")]
#[test]
fn mistakes_are_found() {
    use engine::planted::{Mistake, plant};
    use std::panic::catch_unwind;
    let mistakes = [
        Mistake::PrunePinned,
        Mistake::FoldBeforeRetiring,
        Mistake::MovingPoint,
        Mistake::PointInsideSpan,
        Mistake::ForgetTracked,
        Mistake::CopyOverWrites,
        Mistake::ShipBeforeDurable,
        Mistake::DropLastOfBatch,
        Mistake::ForgetSaved,
    ];
    let missed: Vec<Mistake> = mistakes
        .into_iter()
        .filter(|&mistake| {
            plant(Some(mistake));
            let is_found =
                SEEDS.into_iter().any(|seed| catch_unwind(|| run(seed, &mut Tally::default())).is_err());
            plant(None);
            !is_found
        })
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
}
