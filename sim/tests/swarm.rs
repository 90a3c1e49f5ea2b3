//! The swarm: whole groups through drawn disasters, every guarantee checked, every run repeatable.
//!
//! Covers W01 to W03, W13 to W17, W22, W27, W30, W39, R01 to R05, R07 to R10, R12 to R14, R16, R17, R20, R23.

mod common;

use common::clean;
use sim::options::Options;
use sim::run::{Outcome, run};
use std::collections::BTreeMap;

#[test]
fn six_hundred_seeds_are_clean_and_reach_what_they_are_for() {
    let counters = clean(Options::swarm, 0..600);
    let reached = [
        "torn tails",
        "failed nodes",
        "fenced",
        "promoted",
        "promoted at an older point",
        "branch left behind",
        "session taken over",
        "catch-up reads",
        "stalled requests",
        "refused: no space",
        "refused: shutdown",
        "rebuffed: superseded",
        "rebuff sent: too far behind",
        "job: fold",
        "job: hydrate",
        "job: checkpoint",
        "disks filled",
        "points pinned",
        "death while filling disks",
        "death in bulk work",
        "corruption found",
        "disk: failed sync",
        "disk: failed write",
        "disk: disk full",
        "disk: rot",
        "network: reset",
        "network: lost frame",
        "converged on one primary",
        "handed over",
        "scrubs checked",
        "scrubs that found something",
        "scrubs after which all was well again",
    ];
    let missing: Vec<_> =
        reached.iter().filter(|name| counters.get(**name).is_none_or(|count| *count == 0)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}, of {counters:#?}");
    let events = sim::options::Event::NAMES;
    let unused: Vec<_> =
        events.iter().filter(|name| !counters.contains_key(&format!("event: {name}"))).collect();
    assert!(unused.is_empty(), "never happened: {unused:?}");
}

/// Each of these seeds found a bug once. (Which runs they stand for depends on how options are drawn; the bugs
/// have named tests of their own beside the engine.)
#[test]
fn seeds_that_found_bugs_stay_clean() {
    // A folder that was not durable; waiters out of order; the end of a segment; a full replica promoted; branches
    // used again; a history that goes back; a window as large as the log; a log below its horizon.
    let seeds = [
        8, 17, 25, 34, 35, 60, 87, 127, 158, 185, 219, 225, 394, 562, 800, 890, 1_078, 1_210, 1_329, 1_813,
        1_920, 2_244, 9_154, 11_281, 14_042, 18_821, 21_869, 27_093, 40_115, 41_460, 48_064, 108_854, 774,
        1_183, 1_499, 2_058, 2_721, 300_099, 300_489,
    ];
    clean(Options::swarm, seeds.into_iter());
}

fn signature(outcome: &Outcome) -> (u64, u64, u64, &BTreeMap<String, u64>) {
    (outcome.hash, outcome.events, outcome.steps, &outcome.counters)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1_000..1_040 {
        let (one, other) = (run(Options::swarm(seed)), run(Options::swarm(seed)));
        assert_eq!(signature(&one), signature(&other), "seed {seed}");
    }
}

#[test]
fn different_seeds_give_different_runs() {
    let hashes: std::collections::BTreeSet<u64> =
        (0..20).map(|seed| run(Options::swarm(seed)).hash).collect();
    assert_eq!(hashes.len(), 20);
}
