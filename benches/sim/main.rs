//! How fast time goes by in the simulator, on one core: `cargo bench --bench sim`.
//!
//! There is nothing to measure it beside, so the figures are absolute, and each comes with what it is made of: events
//! of the simulated world, and writes that a guest was answered.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::options::Options;
use common::table::{Table, count, median};
use sim::options::Options as Run;
use sim::run::{Outcome, run};
use sim::scenario::{Scenario, shipped};
use std::time::{Duration, Instant};

/// What was measured in one round.
#[derive(Default)]
struct Speed {
    virtual_seconds: f64,
    events: f64,
    writes: f64,
    runs: f64,
    wall_seconds: f64,
}

impl Speed {
    /// Runs seed after seed for some time.
    fn of(time: Duration, options: impl Fn(u64) -> Run) -> Speed {
        let start = Instant::now();
        let mut speed = Speed::default();
        let mut seed = 0;
        while start.elapsed() < time {
            let outcome: Outcome = run(options(seed));
            assert!(outcome.verdict.is_clean(), "seed {seed} is not clean");
            speed.virtual_seconds += outcome.time.0 as f64 / 1e9;
            speed.events += outcome.steps as f64;
            speed.writes += outcome.figures.writes as f64;
            speed.runs += 1.0;
            seed += 1;
        }
        speed.wall_seconds = start.elapsed().as_secs_f64();
        speed
    }
}

fn main() {
    let options = Options::parse("How fast time goes by in the simulator, on one core.");
    let time = Duration::from_secs(options.seconds);
    let text = shipped("region-outage").expect("it is shipped");
    let outage = Scenario::parse(text).expect("it is sound");
    let head =
        ["for each second of wall time", "virtual seconds", "events", "answered writes", "runs a minute"];
    let mut table = Table::new(head);
    let rows: [(&str, &dyn Fn(u64) -> Run); 4] = [
        ("region-outage, 200 writes a second", &|seed| outage.options(seed)),
        ("the same, full stack", &|seed| outage.options(seed).full_stack()),
        ("swarm", &Run::swarm),
        ("swarm, full stack", &Run::swarm_full_stack),
    ];
    for (name, options_of) in rows {
        let rounds: Vec<Speed> = (0..options.rounds).map(|_| Speed::of(time, options_of)).collect();
        let rate = |of: fn(&Speed) -> f64| {
            median(&rounds.iter().map(|speed| of(speed) / speed.wall_seconds).collect::<Vec<_>>())
        };
        let cells = [
            rate(|speed| speed.virtual_seconds),
            rate(|speed| speed.events),
            rate(|speed| speed.writes),
            rate(|speed| speed.runs) * 60.0,
        ];
        table.row([name.to_owned()].into_iter().chain(cells.map(count)));
    }
    println!();
    table.print();
}
