//! How fast replicas are caught up: what was left at moments of the last seconds.
//!
//! Noted by whoever changes something, at most twice a second; forgotten with the span.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(10);
/// Between two notes.
const STEP: Duration = Duration::from_millis(500);

/// Bytes left at moments, oldest first, by replica.
#[derive(Default)]
pub(super) struct Paces(Mutex<BTreeMap<String, VecDeque<(Instant, u64)>>>);

impl Paces {
    /// What is yet to be copied to each replica in a span, as of now.
    pub(super) fn note<'a>(&self, now: Instant, left: impl Iterator<Item = (&'a str, u64)>) {
        let mut paces = self.0.lock().expect("no holder of the lock panics");
        let mut left = left.peekable();
        if left.peek().is_none() {
            paces.clear();
            return;
        }
        let mut kept = std::mem::take(&mut *paces);
        for (replica, bytes) in left {
            let mut seen = kept.remove(replica).unwrap_or_default();
            if seen.back().is_none_or(|(at, _)| now.duration_since(*at) >= STEP) {
                seen.push_back((now, bytes));
            }
            // The last one before the window stays, so that there is always something to compare with.
            while seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
                seen.pop_front();
            }
            paces.insert(replica.to_owned(), seen);
        }
    }

    /// Bytes a second that were copied to a replica lately, with `left` yet to be copied; `None` if it is too early to say.
    pub(super) fn of(&self, replica: &str, now: Instant, left: u64) -> Option<u64> {
        let paces = self.0.lock().expect("no holder of the lock panics");
        let (then, before) = *paces.get(replica)?.front()?;
        let passed = now.duration_since(then);
        (passed >= STEP).then(|| (before.saturating_sub(left) as f64 / passed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_that_of_the_last_seconds() {
        let paces = Paces::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        paces.note(at(0), [("west", 100_000)].into_iter());
        assert_eq!(paces.of("west", at(100), 99_000), None, "too early");
        assert_eq!(paces.of("west", at(1_000), 90_000), Some(10_000));
        for second in 1..=30_u64 {
            paces.note(at(second * 1_000), [("west", 100_000 - 2_000 * second.min(20))].into_iter());
        }
        // It has stood still for ten seconds.
        assert_eq!(paces.of("west", at(30_000), 60_000), Some(0));
        assert_eq!(paces.of("east", at(30_000), 1), None);
        paces.note(at(31_000), std::iter::empty());
        assert_eq!(paces.of("west", at(32_000), 0), None, "forgotten with the span");
    }
}
