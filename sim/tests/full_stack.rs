//! The second mode: the same worlds, with the link's frames through the real QUIC and TLS over simulated datagrams.
//! (N14, R01, R02, R05, R12, R14)

mod common;

use common::clean;
use sim::options::Options;
use sim::run::{Outcome, run};
use sim::scenario::{NAMES, Scenario, shipped};
use std::collections::BTreeMap;

#[test]
fn drawn_disasters_are_survived_and_the_network_did_its_worst() {
    let counters = clean(Options::swarm_full_stack, 0..120);
    let reached = [
        "batches appended",
        "session taken over",
        "promoted",
        "network: handshake",
        "network: retry",
        "network: lost datagram",
        "network: datagram that comes twice",
        "network: datagram that others overtake",
        "network: datagram too long for the path",
        "network: datagram at a full queue",
        "network: datagram into a cut",
        "network: datagram to nobody",
        "network: packets taken for lost",
        "network: stateless answer",
        "network: connection closed",
        "network: connection reset by a peer that forgot it",
        "network: connection lost by silence",
        "network: stall",
        "network: late frames of an old connection",
        "converged on one primary",
    ];
    let missing: Vec<_> =
        reached.iter().filter(|name| counters.get(**name).is_none_or(|count| *count == 0)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}, of {counters:#?}");
}

/// Links, timers and clocks over the better part of an hour each: most of the time nothing goes wrong.
#[test]
fn long_runs_are_survived() {
    let seconds = std::cell::Cell::new(0);
    let options = |seed| {
        let options = Options::swarm_long_full_stack(seed);
        seconds.set(seconds.get() + options.faulty.0 / 1_000_000_000);
        options
    };
    // `.ci/run` has many more.
    let counters = clean(options, 0..30);
    assert!(seconds.get() >= 30 * 1_000);
    let reached = [
        "promoted",
        "points pinned",
        "session lost",
        "network: stall",
        "network: late frames of an old connection",
        "network: connection lost by silence",
        "converged on one primary",
    ];
    let missing: Vec<_> = reached.iter().filter(|name| !counters.contains_key(**name)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}, of {counters:#?}");
}

fn signature(outcome: &Outcome) -> (u64, u64, u64, &BTreeMap<String, u64>) {
    (outcome.hash, outcome.events, outcome.steps, &outcome.counters)
}

/// TLS draws keys that no seed gives: they may change the bytes of datagrams, and nothing else.
#[test]
fn the_same_seed_gives_the_same_run() {
    // The last two close connections in the middle of a handshake, while a Retry is under way.
    for seed in (500..520).chain([1_000, 1_450]) {
        let (one, other) = (run(Options::swarm_full_stack(seed)), run(Options::swarm_full_stack(seed)));
        assert_eq!(signature(&one), signature(&other), "seed {seed}");
    }
}

#[test]
fn the_stack_is_really_in_between() {
    let (one, other) = (run(Options::swarm(3)), run(Options::swarm(3).full_stack()));
    assert_ne!(one.hash, other.hash);
    assert!(!one.counters.contains_key("network: handshake"));
    assert!(other.counters["network: handshake"] >= 2);
}

#[test]
fn what_the_shipped_scenarios_assert_holds() {
    for name in NAMES {
        let scenario = Scenario::parse(shipped(name).expect("it is shipped")).expect("it can be read");
        let outcome = run(scenario.options(1).full_stack());
        assert!(outcome.verdict.is_clean(), "{name}: {}", outcome.verdict);
        let broken = scenario.assertions.broken_by(&outcome);
        assert!(broken.is_empty(), "{name}: {broken:?}\n{:#?}", outcome.figures);
        assert!(outcome.figures.writes > 100, "{name}: only {} writes", outcome.figures.writes);
    }
}
