//! The search for the first bad one in a row of candidates, of which some cannot be judged.
//!
//! Invariants:
//! - the candidate `good` is good, `bad` is bad, and `good < bad`: both were judged before the search, and each answer
//!   brings them closer or says that a candidate cannot be judged;
//! - no candidate is asked for twice.
//!
//! It believes that once bad is always bad, as any bisection does. Where that is not so it still ends with a good one
//! and a bad one behind it.

use std::collections::BTreeSet;

/// Candidates that could not be judged, before the search gives up.
pub(super) const MAX_SKIPPED: usize = 1_000;

/// How many places are tried away from those that cannot be judged, before the nearest are.
const MAX_TRIES: u64 = 64;

/// What a check says of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Judged {
    /// It is bad.
    Bad,
    /// It is good.
    Good,
    /// It cannot be judged.
    Skip,
}

/// A search; candidates are numbers.
#[derive(Clone, Debug)]
pub(super) struct Search {
    good: u64,
    bad: u64,
    skipped: BTreeSet<u64>,
}

impl Search {
    pub(super) fn new(good: u64, bad: u64) -> Search {
        assert!(good < bad, "{good} is not before {bad}");
        Search { good, bad, skipped: BTreeSet::new() }
    }

    /// The newest that is known to be good before the first that is known to be bad.
    pub(super) fn good(&self) -> u64 {
        self.good
    }

    /// The first that is known to be bad.
    pub(super) fn bad(&self) -> u64 {
        self.bad
    }

    /// Candidates between the two that cannot be judged.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.range(self.good + 1..self.bad).count() as u64
    }

    /// How many are left to be judged.
    pub(super) fn left(&self) -> u64 {
        self.bad - self.good - 1 - self.skipped()
    }

    /// The next candidates to be judged, different ones and at most `jobs`; none at the end.
    pub(super) fn next(&self, jobs: u64) -> Vec<u64> {
        let mut chosen = BTreeSet::new();
        let wanted = jobs.min(self.left());
        if self.skipped.len() >= MAX_SKIPPED {
            return Vec::new();
        }
        let is_new = |chosen: &BTreeSet<u64>, at: u64| {
            (self.good + 1..self.bad).contains(&at) && !self.skipped.contains(&at) && !chosen.contains(&at)
        };
        let place = |part: u64, of: u64| {
            let span = u128::from(self.bad - self.good);
            self.good + (span * u128::from(part) / u128::from(of)) as u64
        };
        let even = (1..=wanted).map(|part| place(part, wanted + 1));
        // 1/2, 1/4, 3/4, 1/8, 5/8, ...: well away from a stretch that cannot be judged.
        let spread = (1..MAX_TRIES).map(|number: u64| place(number.reverse_bits() >> 32, 1 << 32));
        for at in even.chain(spread) {
            if (chosen.len() as u64) < wanted && is_new(&chosen, at) {
                chosen.insert(at);
            }
        }
        for at in self.good + 1..self.bad {
            if (chosen.len() as u64) >= wanted {
                break;
            }
            if is_new(&chosen, at) {
                chosen.insert(at);
            }
        }
        chosen.into_iter().collect()
    }

    /// Takes what the checks say of candidates that were asked for at once.
    pub(super) fn tell(&mut self, mut judged: Vec<(Judged, u64)>) {
        // The first bad one ends the stretch, and only what is good before it counts.
        judged.sort_unstable();
        for (judged, at) in judged {
            match judged {
                Judged::Bad if at > self.good => self.bad = self.bad.min(at),
                Judged::Good if at < self.bad => self.good = self.good.max(at),
                Judged::Skip => drop(self.skipped.insert(at)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with a check; returns the search at its end, and how many rounds and tests it took.
    fn search(last: u64, jobs: u64, check: impl Fn(u64) -> Judged) -> (Search, u64, u64) {
        let mut search = Search::new(0, last);
        let (mut rounds, mut tests) = (0, 0);
        let mut asked = BTreeSet::new();
        loop {
            let next = search.next(jobs);
            if next.is_empty() {
                return (search, rounds, tests);
            }
            assert!(next.len() as u64 <= jobs);
            assert!(next.iter().all(|at| asked.insert(*at)), "none is asked for twice");
            rounds += 1;
            tests += next.len() as u64;
            search.tell(next.into_iter().map(|at| (check(at), at)).collect());
        }
    }

    fn from(first: u64) -> impl Fn(u64) -> Judged {
        move |at| if at >= first { Judged::Bad } else { Judged::Good }
    }

    #[test]
    fn the_first_bad_one_is_found_wherever_it_is() {
        for last in [1, 2, 3, 7, 64, 1_000] {
            for first in 1..=last {
                for jobs in [1, 2, 3, 16] {
                    let (search, rounds, _) = search(last, jobs, from(first));
                    assert_eq!((search.good(), search.bad()), (first - 1, first), "of {last}, {jobs} jobs");
                    assert!(rounds <= 64 - last.leading_zeros() as u64, "{rounds} rounds for {last}");
                }
            }
        }
        let (found, rounds, _) = search(u64::MAX - 1, 1, from(0x1234_5678_9abc));
        assert_eq!(found.bad(), 0x1234_5678_9abc);
        assert!(rounds <= 64, "{rounds}");
        let (_, rounds, _) = search(1 << 40, 15, from(0x12_3456_789a));
        assert_eq!(rounds, 10, "fifteen at once divide by sixteen");
    }

    #[test]
    fn what_cannot_be_judged_is_gone_around() {
        for jobs in [1, 4] {
            // A whole stretch around the middle, and away from the first bad one.
            let skip = |at: u64| (400..600).contains(&at);
            let judge = |at| if skip(at) { Judged::Skip } else { from(800)(at) };
            let (found, _, tests) = search(1_000, jobs, judge);
            assert_eq!((found.good(), found.bad()), (799, 800));
            assert!(tests < 80, "{tests}");
            // And one that holds it.
            let judge = |at| if skip(at) { Judged::Skip } else { from(450)(at) };
            let (found, ..) = search(1_000, jobs, judge);
            assert_eq!((found.good(), found.bad(), found.left(), found.skipped()), (399, 600, 0, 200));
        }
        let (found, _, tests) = search(1 << 40, 1, |_| Judged::Skip);
        assert_eq!((found.good(), tests), (0, MAX_SKIPPED as u64), "it gives up");
    }

    #[test]
    fn a_check_that_wavers_ends_all_the_same() {
        let (found, ..) =
            search(10_000, 3, |at| if at.is_multiple_of(3) { Judged::Bad } else { Judged::Good });
        assert_eq!(found.good() + 1, found.bad());
        assert!(found.bad().is_multiple_of(3) && !found.good().is_multiple_of(3) || found.good() == 0);
    }
}
