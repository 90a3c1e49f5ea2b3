//! The network between the nodes, message by message on virtual time.
//!
//! A connection is what a QUIC connection with one stream is to its user: reliable and in order while it lasts.
//! So within one nothing is lost, doubled or swapped; what goes wrong is this:
//!
//! - frames take long, and longer after a loss (retransmission), by delay, bandwidth and stalls of a direction;
//! - a direction of a link is cut while the other works ([`Network::cut`]): what is under way waits, and goes on
//!   if the connection still lives when the cut heals (half-open connections, black holes, R12);
//! - a connection is reset, with whatever was under way lost (R02);
//! - one end gives a connection up, and the other still gets old frames from it while a new one is already in
//!   use ([`Network::abandon`]): the only way to duplicates and swaps that there is (R01);
//! - a node vanishes, and nobody tells its peers.
//!
//! Nothing here times out: that is the sessions' business.

mod conn;
mod either;
#[cfg(feature = "full-stack")]
mod quic;

pub(crate) use either::Either;

use crate::clock::{Queue, Span, Time};
use crate::rng::Rng;
use conn::{Conn, Packet};
use std::collections::{BTreeMap, BTreeSet};

/// A node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub u32);

/// Names a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The one that dialled.
    Dialer = 0,
    /// The one that was dialled.
    Listener = 1,
}

impl End {
    /// The other end.
    #[must_use]
    pub fn other(self) -> End {
        match self {
            End::Dialer => End::Listener,
            End::Listener => End::Dialer,
        }
    }
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The least that a frame takes.
    pub delay: Span,
    /// Up to so much is added, evenly distributed.
    pub jitter: Span,
    /// Bytes a second, shared by all connections; `None` if the link is never full.
    pub bandwidth: Option<u64>,
    /// The share of frames, in parts per million, that get lost at first.
    pub loss_ppm: u32,
    /// What each loss adds.
    pub retransmission: Span,
}

impl Default for Link {
    /// Between two regions of a continent.
    fn default() -> Link {
        Link {
            delay: Span::from_ms(15),
            jitter: Span::from_ms(2),
            bandwidth: Some(125_000_000),
            loss_ppm: 0,
            retransmission: Span::from_ms(60),
        }
    }
}

/// Whether a host can be dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Off, or behind a wall: no answer at all.
    #[default]
    Silent,
    /// It is there, and nobody listens.
    Refusing,
    /// It takes connections.
    Listening,
}

/// What the peers of a vanished node learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nothing.
    Silence,
    /// A reset, one delay later.
    Reset,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The other end closed it.
    ByPeer,
    /// It broke.
    Reset,
    /// It never came to be: nobody listens.
    Refused,
}

/// What a host sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<M> {
    /// Who sees it.
    pub host: Host,
    /// On which connection.
    pub conn: ConnId,
    /// At which end.
    pub end: End,
    /// What.
    pub what: What<M>,
}

/// What happens to an end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<M> {
    /// It can be used. A listener learns with it that it has a connection.
    Opened {
        /// Who is at the other end.
        peer: Host,
    },
    /// A part of a message came. Only the real stack has parts.
    Activity,
    /// A message came.
    Message(M),
    /// It is over; nothing comes after it.
    Closed(Close),
}

/// The network.
#[derive(Clone, Debug)]
pub struct Network<M> {
    rng: Rng,
    default_link: Link,
    links: BTreeMap<(Host, Host), Link>,
    /// When the last byte of what was sent on a link has left.
    busy_until: BTreeMap<(Host, Host), Time>,
    cuts: BTreeSet<(Host, Host)>,
    hosts: BTreeMap<Host, Reach>,
    conns: BTreeMap<ConnId, Conn<M>>,
    next_conn: u64,
    /// Each says: the next packet of the stream towards this end may come.
    arrivals: Queue<(ConnId, End)>,
    injected: BTreeMap<&'static str, u64>,
}

impl<M> Network<M> {
    /// A network without hosts, whose links are all like this one.
    #[must_use]
    pub fn new(rng: Rng, link: Link) -> Network<M> {
        Network {
            rng,
            default_link: link,
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            cuts: BTreeSet::new(),
            hosts: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            arrivals: Queue::default(),
            injected: BTreeMap::new(),
        }
    }

    // -- what nodes do

    /// Says whether a host can be dialled. Connections that it has are not touched.
    pub fn set_reach(&mut self, host: Host, reach: Reach) {
        self.hosts.insert(host, reach);
    }

    /// Dials. The answer is `Opened` or `Closed`, or none for ever: the dialler has to give up by itself.
    pub fn dial(&mut self, now: Time, from: Host, to: Host) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        self.conns.insert(id, Conn::new(from, to));
        self.transmit(now, id, End::Dialer, Packet::Open, 100);
        id
    }

    /// Sends a message of so many bytes from one end. False, and nothing is sent, if that end is not open.
    pub fn send(&mut self, now: Time, id: ConnId, from: End, message: M, bytes: u64) -> bool {
        let open = self.conns.get(&id).is_some_and(|conn| conn.is_open(from));
        if open {
            self.transmit(now, id, from, Packet::Message { message, bytes }, bytes);
        }
        open
    }

    /// The bytes that an end has sent and the other has not got.
    #[must_use]
    pub fn in_flight_bytes(&self, id: ConnId, from: End) -> u64 {
        self.conns.get(&id).map_or(0, |conn| conn.stream(from.other()).bytes())
    }

    /// Closes an end, without an event there. The other end learns of it behind what is under way, or instead of
    /// it: a close may overtake data.
    pub fn close(&mut self, now: Time, id: ConnId, end: End) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| !conn.is_gone(end)) else { return };
        conn.leave(end);
        if self.rng.chance(500_000) {
            self.drop_packets(id, end.other());
        }
        self.transmit(now, id, end, Packet::Fin(Close::ByPeer), 50);
    }

    // -- what goes wrong

    /// Sets one direction between two hosts.
    pub fn set_link(&mut self, from: Host, to: Host, link: Link) {
        self.links.insert((from, to), link);
    }

    /// Cuts one direction between two hosts.
    pub fn cut(&mut self, from: Host, to: Host) {
        if self.cuts.insert((from, to)) {
            self.inject("cut of one direction");
        }
    }

    /// Heals one direction: what waited goes on.
    pub fn mend(&mut self, now: Time, from: Host, to: Host) {
        if !self.cuts.remove(&(from, to)) {
            return;
        }
        let delay = self.link(from, to).delay;
        for (id, conn) in &mut self.conns {
            for end in [End::Dialer, End::Listener] {
                if conn.host(end) == to && conn.host(end.other()) == from {
                    for _ in 0..conn.take_stalled(end) {
                        self.arrivals.push(now + delay, (*id, end));
                    }
                }
            }
        }
    }

    /// Breaks a connection: what is under way is lost, and each end learns of it if something gets through.
    pub fn reset(&mut self, now: Time, id: ConnId) {
        if self.conns.get(&id).is_none_or(Conn::is_over) {
            return;
        }
        self.inject("reset");
        for end in [End::Dialer, End::Listener] {
            self.drop_packets(id, end);
            self.transmit(now, id, end.other(), Packet::Fin(Close::Reset), 50);
        }
    }

    /// One end finds the connection broken at once. The other goes on getting what was under way, `late` later
    /// than it would have come, and only then learns that it is over.
    pub fn abandon(&mut self, now: Time, id: ConnId, end: End, late: Span) {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.is_open(end)) else { return };
        conn.hold_back(end.other(), now + late);
        // The end itself is told before anything else that is due.
        self.drop_packets(id, end);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.push_local(end, now, Packet::Fin(Close::Reset));
            self.arrivals.push(now, (id, end));
        }
        self.transmit(now, id, end, Packet::Fin(Close::Reset), 50);
        self.inject("late frames of an old connection");
    }

    /// A direction of a connection stands still for so long.
    pub fn stall(&mut self, now: Time, id: ConnId, towards: End, span: Span) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.hold_back(towards, now + span);
            self.inject("stall");
        }
    }

    /// A host loses all its connections, as it is killed or loses power.
    pub fn vanish(&mut self, now: Time, host: Host, notice: Notice) {
        for (id, end) in self.ends_of(host) {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.leave(end);
            }
            self.drop_packets(id, end);
            if notice == Notice::Reset {
                self.drop_packets(id, end.other());
                self.transmit(now, id, end, Packet::Fin(Close::Reset), 50);
            }
        }
        self.inject("vanished host");
    }

    /// Takes every fault away: cuts, and what links had of their own.
    pub fn heal(&mut self, now: Time) {
        for (from, to) in self.cuts.clone() {
            self.mend(now, from, to);
        }
        self.links.clear();
        self.default_link.loss_ppm = 0;
    }

    /// How often each fault was injected, by name.
    #[must_use]
    pub fn injected(&self) -> &BTreeMap<&'static str, u64> {
        &self.injected
    }

    /// The connections of which at least one end is open, oldest first.
    pub fn open_conns(&self) -> impl Iterator<Item = ConnId> {
        self.conns.iter().filter(|(_, conn)| !conn.is_over()).map(|(id, _)| *id)
    }

    // -- what comes of it

    /// When something may happen next.
    #[must_use]
    pub fn next_at(&self) -> Option<Time> {
        self.arrivals.next_at()
    }

    /// The next thing that has happened by `now`.
    pub fn poll(&mut self, now: Time) -> Option<Event<M>> {
        while let Some((id, end)) = self.arrivals.pop_due(now) {
            let now = self.arrivals.now();
            let event = self.arrive(now, id, end);
            if self.conns.get(&id).is_some_and(|conn| conn.is_over() && conn.is_drained()) {
                self.conns.remove(&id);
            }
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn arrive(&mut self, now: Time, id: ConnId, end: End) -> Option<Event<M>> {
        let conn = self.conns.get_mut(&id)?;
        let (host, peer) = (conn.host(end), conn.host(end.other()));
        // What an end learns by itself needs no way.
        let cut = self.cuts.contains(&(peer, host)) && !conn.stream(end).is_local();
        if cut {
            conn.stall(end);
            return None;
        }
        if let Some(until) = conn.held_back(end).filter(|until| *until > now) {
            self.arrivals.push(until, (id, end));
            return None;
        }
        let packet = conn.pop(end, now)?;
        let what = match packet {
            Packet::Open if end == End::Listener => {
                match self.hosts.get(&host).copied().unwrap_or_default() {
                    Reach::Silent => return None,
                    Reach::Refusing => {
                        conn.leave(end);
                        self.transmit(now, id, end, Packet::Fin(Close::Refused), 50);
                        return None;
                    }
                    Reach::Listening if conn.is_gone(End::Dialer) => return None,
                    Reach::Listening => {
                        conn.open(end);
                        self.transmit(now, id, end, Packet::Open, 100);
                        What::Opened { peer }
                    }
                }
            }
            _ if conn.is_gone(end) => {
                // A host that is there and knows nothing of the connection says so.
                let answers = self.hosts.get(&host).copied().unwrap_or_default() != Reach::Silent;
                let old_frames_come = conn.held_back(end.other()).is_some_and(|until| until > now);
                let asks = !matches!(packet, Packet::Fin(_)) && !conn.is_gone(end.other());
                if answers && asks && !old_frames_come {
                    self.drop_packets(id, end.other());
                    self.transmit(now, id, end, Packet::Fin(Close::Reset), 50);
                }
                return None;
            }
            Packet::Open => {
                conn.open(end);
                What::Opened { peer }
            }
            Packet::Message { message, .. } => What::Message(message),
            Packet::Fin(why) => {
                let unknown = end == End::Listener && !conn.is_open(end);
                conn.leave(end);
                if unknown {
                    return None;
                }
                What::Closed(why)
            }
        };
        Some(Event { host, conn: id, end, what })
    }

    /// Puts a packet on its way from an end.
    fn transmit(&mut self, now: Time, id: ConnId, from: End, packet: Packet<M>, bytes: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (source, target) = (conn.host(from), conn.host(from.other()));
        let link = self.link(source, target);
        let busy = self.busy_until.entry((source, target)).or_default();
        let transfer =
            link.bandwidth.map_or(0, |rate| (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64);
        *busy = now.max(*busy) + Span(transfer);
        let mut at = *busy + link.delay + Span(self.rng.below(link.jitter.0 + 1));
        // Not for ever: a link that loses everything is a cut.
        for _ in 0..8 {
            if !self.rng.chance(link.loss_ppm) {
                break;
            }
            at = at + link.retransmission;
            self.inject("lost frame");
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            at = conn.in_order(from.other(), at);
            conn.push(from.other(), at, packet);
        }
        self.arrivals.push(at, (id, from.other()));
    }

    /// Loses what is under way towards an end.
    fn drop_packets(&mut self, id: ConnId, towards: End) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.clear(towards);
        }
    }

    fn ends_of(&self, host: Host) -> Vec<(ConnId, End)> {
        let ends = |(id, conn): (&ConnId, &Conn<M>)| {
            let ends = [End::Dialer, End::Listener]
                .map(|end| (*id, end, conn.host(end) == host && !conn.is_gone(end)));
            ends.into_iter().filter(|(_, _, own)| *own).map(|(id, end, _)| (id, end)).collect::<Vec<_>>()
        };
        self.conns.iter().flat_map(ends).collect()
    }

    fn link(&self, from: Host, to: Host) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(self.default_link)
    }

    fn inject(&mut self, name: &'static str) {
        *self.injected.entry(name).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
