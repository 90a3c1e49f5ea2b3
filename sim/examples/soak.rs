//! Drawn runs without the command line around them, for `.ci/coverage`: `SEEDS=1000 cargo run --example soak`.
//!
//! It stops at the first run that is not clean.

use sim::options::Options;
use sim::run::run;
use std::process::ExitCode;

/// One run in so many is a long one.
const LONG_EVERY: u64 = 20;

fn main() -> ExitCode {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1_000);
    for seed in 0..seeds {
        let long = seed % LONG_EVERY == 0;
        let outcome = run(if long { Options::swarm_long(seed) } else { Options::swarm(seed) });
        if !outcome.verdict.is_clean() {
            println!("seed {seed}, {}: {}", if long { "long" } else { "short" }, outcome.verdict);
            return ExitCode::FAILURE;
        }
    }
    println!("{seeds} seeds are clean");
    ExitCode::SUCCESS
}
