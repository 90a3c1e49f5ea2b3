//! What the tests over many seeds share.

use sim::options::Options;
use sim::run::run;
use std::collections::BTreeMap;

/// Runs seeds, wants each of them clean, says which failed, and returns what was counted in all of them.
pub(crate) fn clean(
    options: impl Fn(u64) -> Options,
    seeds: impl Iterator<Item = u64>,
) -> BTreeMap<String, u64> {
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    let mut failed = Vec::new();
    for seed in seeds {
        let outcome = run(options(seed));
        for (name, count) in outcome.counters {
            *counters.entry(name).or_default() += count;
        }
        if !outcome.verdict.is_clean() {
            failed.push(format!("seed {seed}: {}", outcome.verdict));
        }
    }
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
    counters
}
