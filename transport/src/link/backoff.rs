//! How long to wait before dialling again.

use std::time::Duration;

/// Exponential, with jitter: after an outage the links of a region do not all return in the same instant.
#[derive(Debug)]
pub(super) struct Backoff {
    min_ms: u64,
    max_ms: u64,
    next_ms: u64,
    random: u64,
}

impl Backoff {
    /// Starts at `min_ms` and doubles up to `max_ms`; the jitter comes from `seed`.
    pub(super) fn new(min_ms: u64, max_ms: u64, seed: u64) -> Backoff {
        assert!(min_ms > 0 && min_ms <= max_ms, "back-off from {min_ms} to {max_ms} ms");
        Backoff { min_ms, max_ms, next_ms: min_ms, random: seed }
    }

    /// The next wait: between a half and the whole of the current step.
    pub(super) fn wait(&mut self) -> Duration {
        let step = self.next_ms;
        self.next_ms = step.saturating_mul(2).min(self.max_ms);
        Duration::from_millis(step - self.draw() % (step / 2 + 1))
    }

    /// The link was up: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.next_ms = self.min_ms;
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_again() {
        for seed in 0..1_000 {
            let mut backoff = Backoff::new(100, 5_000, seed);
            for step in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
                let wait = backoff.wait().as_millis();
                assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
            }
            backoff.reset();
            assert!(backoff.wait().as_millis() <= 100);
        }
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let waits = |seed| {
            let mut backoff = Backoff::new(1_000, 60_000, seed);
            std::array::from_fn::<_, 8, _>(|_| backoff.wait())
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }
}
