//! Virtual time: the queue of what happens next, and each node's own clocks.
//!
//! - Time moves only when the queue is read, to the time of the event that is taken.
//! - Events of the same time come in the order in which they were put in: no ties are left to chance.
//! - A node never sees virtual time. It sees a monotonic clock that starts anywhere, and a wall clock that may be
//!   hours off, drift, and jump back; nothing may depend on either being right (W30, R20).

use engine::types::{Mono, Now, Timestamp};
use std::collections::BTreeMap;
use std::fmt;

/// A moment of virtual time: nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

/// A span of virtual time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl Span {
    /// So many microseconds.
    #[must_use]
    pub const fn from_us(us: u64) -> Span {
        Span(us * 1_000)
    }

    /// So many milliseconds.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Span {
        Span(ms * 1_000_000)
    }

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Span {
        Span(secs * 1_000_000_000)
    }
}

impl std::ops::Add<Span> for Time {
    type Output = Time;

    fn add(self, span: Span) -> Time {
        Time(self.0.checked_add(span.0).expect("a run is shorter than 584 years"))
    }
}

impl Time {
    /// From `earlier` to here, zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Time) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}.{:06}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

/// Names an event in the queue, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(Time, u64);

/// What happens next.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    now: Time,
    next: u64,
    events: BTreeMap<Ticket, E>,
}

impl<E> Default for Queue<E> {
    fn default() -> Queue<E> {
        Queue { now: Time::default(), next: 0, events: BTreeMap::new() }
    }
}

impl<E> Queue<E> {
    /// The time of the last event taken.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Puts an event in. A time that is past means "now".
    pub fn push(&mut self, at: Time, event: E) -> Ticket {
        let ticket = Ticket(at.max(self.now), self.next);
        self.next += 1;
        self.events.insert(ticket, event);
        ticket
    }

    /// Takes an event back, unless it has happened.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<E> {
        self.events.remove(&ticket)
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Time> {
        self.events.first_key_value().map(|(ticket, _)| ticket.0)
    }

    /// Takes the next event and moves time to it.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let (ticket, event) = self.events.pop_first()?;
        assert!(ticket.0 >= self.now, "time went back from {} to {}", self.now, ticket.0);
        self.now = ticket.0;
        Some((ticket.0, event))
    }

    /// Takes the next event if it is due at `now`.
    pub fn pop_due(&mut self, now: Time) -> Option<E> {
        if self.next_at()? > now {
            return None;
        }
        self.pop().map(|(_, event)| event)
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing will ever happen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// The clocks of one node.
#[derive(Clone, Debug)]
pub struct NodeClock {
    mono_start: u64,
    wall_offset_ns: i128,
    drift_ppm: i32,
}

/// The wall-clock time of virtual time zero on a node whose clock is right: 2030-01-01T00:00:00Z.
pub const EPOCH: Timestamp = Timestamp(1_893_456_000_000_000_000);

impl NodeClock {
    /// Clocks whose monotonic part reads `mono_start` at virtual time zero, and whose wall clock is right.
    #[must_use]
    pub fn new(mono_start: Mono) -> NodeClock {
        NodeClock { mono_start: mono_start.0, wall_offset_ns: 0, drift_ppm: 0 }
    }

    /// What the node reads.
    #[must_use]
    pub fn now(&self, at: Time) -> Now {
        let drift = i128::from(at.0) * i128::from(self.drift_ppm) / 1_000_000;
        let wall = i128::from(EPOCH.0) + i128::from(at.0) + self.wall_offset_ns + drift;
        Now {
            mono: Mono(self.mono_start.saturating_add(at.0)),
            wall: Timestamp(wall.clamp(0, i128::from(u64::MAX)) as u64),
        }
    }

    /// When a timer of the node fires.
    #[must_use]
    pub fn time_of(&self, timer: Mono) -> Time {
        Time(timer.0.saturating_sub(self.mono_start))
    }

    /// Moves the wall clock by so many nanoseconds, back if negative.
    pub fn jump(&mut self, ns: i64) {
        self.wall_offset_ns += i128::from(ns);
    }

    /// Lets the wall clock gain so many parts per million from the start of the run on, lose if negative.
    pub fn set_drift(&mut self, ppm: i32) {
        self.drift_ppm = ppm;
    }

    /// Sets the wall clock right.
    pub fn heal(&mut self) {
        self.wall_offset_ns = 0;
        self.drift_ppm = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_order_of_entry() {
        let mut queue = Queue::default();
        queue.push(Time(20), 'c');
        queue.push(Time(10), 'a');
        queue.push(Time(10), 'b');
        let gone = queue.push(Time(10), 'x');
        assert_eq!(queue.cancel(gone), Some('x'));
        assert_eq!(queue.cancel(gone), None);
        assert_eq!(queue.pop_due(Time(9)), None);
        assert_eq!(queue.pop(), Some((Time(10), 'a')));
        queue.push(Time(3), 'd');
        assert_eq!(queue.pop(), Some((Time(10), 'b')));
        assert_eq!(queue.pop(), Some((Time(10), 'd')), "an event in the past happens now");
        assert_eq!(queue.pop(), Some((Time(20), 'c')));
        assert!(queue.pop().is_none() && queue.now() == Time(20));
    }

    #[test]
    fn r20_w30_wall_clocks_skew_drift_and_jump_while_monotonic_time_goes_on() {
        let mut clock = NodeClock::new(Mono(7_000));
        let at = Time(2_000_000_000);
        assert_eq!(clock.now(at), Now { mono: Mono(2_000_007_000), wall: Timestamp(EPOCH.0 + at.0) });
        assert_eq!(clock.time_of(Mono(2_000_007_000)), at);
        clock.jump(-3_600_000_000_000);
        clock.set_drift(-500_000);
        let skewed = clock.now(at);
        assert_eq!(skewed.wall, Timestamp(EPOCH.0 + 1_000_000_000 - 3_600_000_000_000));
        assert_eq!(skewed.mono, Mono(2_000_007_000));
        clock.jump(i64::MIN);
        assert_eq!(clock.now(at).wall, Timestamp(0), "a clock before 1970 reads 1970");
        clock.heal();
        assert_eq!(clock.now(at).wall, Timestamp(EPOCH.0 + at.0));
    }
}
