//! Datagrams between hosts, as an IP network carries them: they get lost, come twice, overtake each other, find a
//! queue full, or are too long for the path. Nobody is told.
//!
//! Times, lengths and the generator decide what happens to a datagram, never its bytes: those are encrypted under
//! keys that no seed gives.

use super::super::{ConnId, End, Host, Link};
use crate::clock::{Queue, Span, Time};
use crate::rng::Rng;
use bytes::BytesMut;
use std::collections::{BTreeMap, BTreeSet};

/// What IPv4 and UDP put in front of each payload, in bytes.
const HEADERS_BYTES: u64 = 28;

/// The longest wait for a full link; behind that, datagrams are dropped.
const MAX_QUEUE: Span = Span::from_ms(250);

/// The bound of how much later than its neighbours a straggler comes, on a way without jitter.
const MIN_STRAGGLE: Span = Span::from_ms(1);

/// A datagram under way.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) from: Host,
    pub(super) to: Host,
    /// The connection that it is of and the end that it goes to, unless an endpoint says it for none.
    pub(super) conn: Option<(ConnId, End)>,
    /// The sender has heard from the peer's connection, so that this is meant for no other one.
    pub(super) settled: bool,
    pub(super) bytes: BytesMut,
}

impl Datagram {
    /// Whether its first packet is of the kind that opens connections (RFC 9000, section 17.2.2).
    pub(super) fn is_initial(&self) -> bool {
        self.bytes.first().is_some_and(|first| first & 0xB0 == 0x80)
    }

    /// Whether it is a Retry (RFC 9000, section 17.2.5).
    pub(super) fn is_retry(&self) -> bool {
        self.bytes.first().is_some_and(|first| first & 0xB0 == 0xB0)
    }
}

/// All datagrams.
#[derive(Debug)]
pub(super) struct Udp {
    rng: Rng,
    default_link: Link,
    links: BTreeMap<(Host, Host), Link>,
    busy_until: BTreeMap<(Host, Host), Time>,
    /// The latest arrival that was planned on a way.
    last_arrival: BTreeMap<(Host, Host), Time>,
    cuts: BTreeSet<(Host, Host)>,
    /// Towards these ends nothing arrives before a moment.
    holds: BTreeMap<(ConnId, End), Time>,
    /// The longest payload that paths carry, in bytes.
    path_mtu: usize,
    duplicate_ppm: u32,
    straggler_ppm: u32,
    under_way: Queue<Datagram>,
    counts: BTreeMap<&'static str, u64>,
}

impl Udp {
    pub(super) fn new(mut rng: Rng, link: Link) -> Udp {
        Udp {
            path_mtu: *rng.pick(&[1_200, 1_472, 1_472, 8_972]),
            duplicate_ppm: *rng.pick(&[0, 500, 20_000]),
            straggler_ppm: *rng.pick(&[0, 500, 5_000]),
            rng,
            default_link: link,
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            cuts: BTreeSet::new(),
            holds: BTreeMap::new(),
            under_way: Queue::default(),
            counts: BTreeMap::new(),
        }
    }

    /// Puts a datagram on its way.
    pub(super) fn send(&mut self, now: Time, datagram: Datagram) {
        let way = (datagram.from, datagram.to);
        let bytes = datagram.bytes.len();
        self.count("datagrams", 1);
        self.count("datagram bytes", bytes as u64);
        if self.cuts.contains(&way) {
            return self.count("datagram into a cut", 1);
        }
        if bytes > self.path_mtu {
            return self.count("datagram too long for the path", 1);
        }
        let link = self.links.get(&way).copied().unwrap_or(self.default_link);
        let busy = self.busy_until.entry(way).or_default();
        if busy.since(now) > MAX_QUEUE {
            return self.count("datagram at a full queue", 1);
        }
        let transfer = link.bandwidth.map_or(0, |rate| {
            (u128::from(bytes as u64 + HEADERS_BYTES) * 1_000_000_000 / u128::from(rate)) as u64
        });
        *busy = now.max(*busy) + Span(transfer);
        let left = *busy;
        if self.rng.chance(link.loss_ppm) {
            return self.count("lost datagram", 1);
        }
        if self.rng.chance(self.duplicate_ppm) {
            self.count("datagram that comes twice", 1);
            self.plan(left, link, datagram.clone());
        }
        self.plan(left, link, datagram);
    }

    fn plan(&mut self, left: Time, link: Link, datagram: Datagram) {
        let mut at = left + link.delay + Span(self.rng.below(link.jitter.0 + 1));
        // Datagrams on one way share queues, so that the delay of neighbours is nearly the same. A stack that finds
        // every third one out of order would rightly take the path for congested.
        let last = self.last_arrival.entry((datagram.from, datagram.to)).or_default();
        at = at.max(*last);
        if self.rng.chance(self.straggler_ppm) {
            at = at + Span(1 + self.rng.below(2 * link.jitter.0 + MIN_STRAGGLE.0));
            self.count("datagram that others overtake", 1);
        } else {
            *last = at;
        }
        // A connection that is held holds up no other on the same way.
        if let Some(until) = datagram.conn.and_then(|conn| self.holds.get(&conn)) {
            at = at.max(*until);
        }
        self.under_way.push(at, datagram);
    }

    pub(super) fn next_at(&self) -> Option<Time> {
        self.under_way.next_at()
    }

    /// The next datagram that has arrived by `now`.
    pub(super) fn arrive(&mut self, now: Time) -> Option<Datagram> {
        while let Some(datagram) = self.under_way.pop_due(now) {
            if self.cuts.contains(&(datagram.from, datagram.to)) {
                self.count("datagram into a cut", 1);
                continue;
            }
            match datagram.conn.and_then(|conn| self.holds.get(&conn).copied()) {
                Some(until) if until > self.under_way.now() => drop(self.under_way.push(until, datagram)),
                _ => return Some(datagram),
            }
        }
        None
    }

    /// Nothing of a connection arrives at that end before a moment.
    pub(super) fn hold(&mut self, id: ConnId, towards: End, until: Time) {
        let held = self.holds.entry((id, towards)).or_default();
        *held = until.max(*held);
    }

    pub(super) fn set_link(&mut self, from: Host, to: Host, link: Link) {
        self.links.insert((from, to), link);
    }

    pub(super) fn cut(&mut self, from: Host, to: Host) {
        if self.cuts.insert((from, to)) {
            self.count("cut of one direction", 1);
        }
    }

    pub(super) fn mend(&mut self, from: Host, to: Host) {
        self.cuts.remove(&(from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.links.clear();
        self.default_link.loss_ppm = 0;
    }

    pub(super) fn count(&mut self, name: &'static str, by: u64) {
        *self.counts.entry(name).or_default() += by;
    }

    pub(super) fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It did until the long runs: every later connection of the two hosts died by silence.
    #[test]
    fn a_connection_that_stands_still_holds_up_no_other() {
        let link = Link { delay: Span::from_ms(10), ..Link::default() };
        let mut udp = Udp::new(Rng::new(1), link);
        let datagram = |conn| Datagram {
            from: Host(0),
            to: Host(1),
            conn: Some((ConnId(conn), End::Listener)),
            settled: true,
            bytes: BytesMut::zeroed(100),
        };
        udp.hold(ConnId(1), End::Listener, Time(0) + Span::from_secs(1_000));
        udp.send(Time(0), datagram(1));
        udp.send(Time(0), datagram(2));
        let soon = Time(0) + Span::from_secs(1);
        let arrived = std::iter::from_fn(|| udp.arrive(soon)).map(|datagram| datagram.conn);
        let arrived: BTreeSet<_> = arrived.collect();
        assert_eq!(arrived, BTreeSet::from([Some((ConnId(2), End::Listener))]));
        assert_eq!(udp.next_at(), Some(Time(0) + Span::from_secs(1_000)));
    }
}
