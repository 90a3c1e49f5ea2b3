//! The time, which the engine is given and never asks for.

use crate::types::{Mono, Now, Timestamp};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The time of this moment. `mono` is `CLOCK_MONOTONIC`: it never goes back, and stands still while the machine is
/// suspended. `wall` is `CLOCK_REALTIME`, which is set forward and back at will; a clock before 1970 is taken
/// for 1970.
#[must_use]
pub fn now() -> Now {
    Now {
        mono: Mono(nanoseconds(clock_gettime(ClockId::Monotonic))),
        wall: Timestamp(nanoseconds(clock_gettime(ClockId::Realtime))),
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W30: no moment is an error, however the clock was set.
    #[test]
    fn w30_every_moment_has_a_number() {
        assert_eq!(nanoseconds(Timespec { tv_sec: 2, tv_nsec: 3 }), 2_000_000_003);
        assert_eq!(nanoseconds(Timespec { tv_sec: -1, tv_nsec: 999_999_999 }), 999_999_999);
        assert_eq!(nanoseconds(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }), u64::MAX);
    }

    #[test]
    fn time_passes() {
        let (first, second) = (now(), now());
        assert!(first.mono <= second.mono);
        // The year 2020 at least: the number is of nanoseconds, and since 1970.
        assert!(first.wall > Timestamp(1_577_836_800_000_000_000));
    }
}
