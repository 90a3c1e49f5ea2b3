//! Makes a failing run small: fewer events, fewer requests, a shorter time, as long as it fails in the same way.

use crate::clock::Span;
use crate::options::Options;
use crate::run::{Outcome, run};

/// What is left of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The events that are kept, by their place in the list of the run.
    pub events: Vec<usize>,
    /// The most requests of one primary's guests.
    pub max_requests: u64,
    /// How long the phase with faults lasts.
    pub faulty: Span,
}

impl Reduction {
    /// Nothing taken away.
    #[must_use]
    pub fn none(options: &Options) -> Reduction {
        Reduction {
            events: (0..options.events.len()).collect(),
            max_requests: options.max_requests,
            faulty: options.faulty,
        }
    }

    /// The options that are left.
    #[must_use]
    pub fn apply(&self, options: &Options) -> Options {
        let mut left = options.clone();
        left.events = self.events.iter().filter_map(|index| options.events.get(*index)).cloned().collect();
        left.max_requests = self.max_requests;
        left.faulty = self.faulty;
        left
    }
}

/// Shrinks a run whose verdict is of a class, in at most so many runs. `tried` is told of each.
pub fn shrink(
    options: &Options,
    class: &str,
    max_runs: u32,
    mut tried: impl FnMut(u32, &Reduction),
) -> (Reduction, Option<Outcome>) {
    let mut best = Reduction::none(options);
    let mut outcome = None;
    let mut runs = 0;
    let mut fails = |candidate: &Reduction, best: &Reduction| {
        if runs >= max_runs {
            return None;
        }
        runs += 1;
        tried(runs, best);
        let outcome = run(candidate.apply(options));
        (outcome.verdict.class() == class).then_some(outcome)
    };
    loop {
        let before = best.clone();
        // Events: halves, quarters, and at last one by one.
        let mut piece = best.events.len();
        while piece > 0 {
            let mut at = 0;
            while at < best.events.len() {
                let mut candidate = best.clone();
                candidate.events.drain(at..(at + piece).min(best.events.len()));
                match fails(&candidate, &best) {
                    Some(failed) => (best, outcome) = (candidate, Some(failed)),
                    None => at += piece,
                }
            }
            piece /= 2;
        }
        for step in [2, 10] {
            loop {
                let mut candidate = best.clone();
                candidate.max_requests -= candidate.max_requests.min(100_000) / step;
                let shorter = candidate.max_requests < best.max_requests && candidate.max_requests > 0;
                match shorter.then(|| fails(&candidate, &best)).flatten() {
                    Some(failed) => (best, outcome) = (candidate, Some(failed)),
                    None => break,
                }
            }
            loop {
                let mut candidate = best.clone();
                candidate.faulty.0 -= candidate.faulty.0 / step;
                match fails(&candidate, &best) {
                    Some(failed) if candidate.faulty.0 > 1_000_000 => {
                        (best, outcome) = (candidate, Some(failed))
                    }
                    _ => break,
                }
            }
        }
        if best == before {
            return (best, outcome);
        }
    }
}
