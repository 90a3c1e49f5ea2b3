//! The network of the second mode: the frames of the link through the real QUIC and TLS, over datagrams that get
//! lost, doubled, delayed and swapped, on virtual time.
//!
//! The state machine that the product's link runs on sockets is run here by hand, with the product's own limits,
//! certificates and encoders. Equal seeds give equal runs: every choice of the stack comes from a seed, time is
//! virtual, and what TLS draws by itself changes bytes but no length.
//!
//! What is different from [`super::Network`] is what is different about UDP:
//!
//! - Nobody refuses: a host without a program is as silent as one without power, and a program's death is noticed
//!   by silence, whatever [`Notice`] says.
//! - A cut drops what it meets; the stack sends it again, or its connection dies of it.
//! - A reset is one end that forgets the connection; the other is told by a stateless reset when it speaks next.
//! - A host reads whatever comes. That a session reads no more than it can settle is not simulated here, nor in
//!   the other mode; the session's own window bounds both.

mod host;
mod identity;
mod udp;

use super::{Close, ConnId, End, Event, Host, Link, Notice, Reach, What};
use crate::clock::{Span, Time};
use crate::rng::Rng;
use bytes::{Bytes, BytesMut};
use host::{Conn, Node, StackClock};
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointEvent, Event as StackEvent,
    Incoming, StreamEvent, VarInt,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use transport::link::decoder::Accept;
use transport::link::frame::Frame;
use transport::link::{quic, session};
use udp::{Datagram, Udp};

/// The port of every host.
const PORT: u16 = 7_000;

/// The place of an end: its host, and its stack's handle.
type Place = (Host, usize);

/// The network.
pub(crate) struct Quic {
    rng: Rng,
    clock: StackClock,
    config: quic::Config,
    udp: Udp,
    nodes: BTreeMap<Host, Node>,
    /// Counts endpoints, so that each has a seed of its own.
    lives: u64,
    next_conn: u64,
    ends: BTreeMap<(ConnId, End), Place>,
    timers: BTreeSet<(Time, Place)>,
    /// Ends whose stack has something to do.
    dirty: BTreeSet<Place>,
    events: VecDeque<Event<Frame>>,
}

fn address_of(host: Host) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0A00_0001 + host.0), PORT))
}

fn host_at(address: SocketAddr) -> Host {
    match address {
        SocketAddr::V4(address) => Host(address.ip().to_bits() - 0x0A00_0001),
        SocketAddr::V6(_) => unreachable!("hosts have addresses of version 4"),
    }
}

impl Quic {
    /// A network without hosts, whose links are all like this one. The stack's time limits stand to those of the
    /// sessions as they do by default.
    pub(crate) fn new(rng: Rng, link: Link, session: &session::Config) -> Quic {
        let config = quic::Config {
            idle_timeout_ms: u32::try_from(3 * session.silence_ms).unwrap_or(u32::MAX),
            keep_alive_ms: 2 * session.heartbeat_ms,
            ..quic::Config::default()
        };
        Quic {
            udp: Udp::new(rng.child("datagrams"), link),
            rng,
            clock: StackClock::new(),
            config,
            nodes: BTreeMap::new(),
            lives: 0,
            next_conn: 0,
            ends: BTreeMap::new(),
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    // -- what nodes do

    /// A program that listens has an endpoint.
    pub(crate) fn set_reach(&mut self, host: Host, reach: Reach) {
        if reach == Reach::Listening && !self.nodes.contains_key(&host) {
            self.lives += 1;
            let mut seed = [0; 32];
            self.rng.child(&format!("endpoint {}", self.lives)).fill(&mut seed);
            let config = quic::Config { rng_seed: Some(seed), ..self.config.clone() };
            let endpoint = quic::endpoint_config(&config).expect("the defaults are sound");
            let mut server =
                quic::server_config(&identity::credentials(host), &config).expect("good credentials");
            server.time_source(Arc::new(self.clock.clone()));
            let endpoint = Endpoint::new(Arc::new(endpoint), Some(Arc::new(server)), true, None);
            self.nodes.insert(host, Node { endpoint, conns: BTreeMap::new(), accepted: BTreeSet::new() });
        }
    }

    pub(crate) fn dial(&mut self, now: Time, from: Host, to: Host) -> ConnId {
        self.clock.advance(now);
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        let config = quic::client_config(&identity::credentials(from), identity::name(to), &self.config);
        let config = config.expect("good credentials");
        let node = self.nodes.get_mut(&from).expect("who dials has an endpoint");
        let instant = self.clock.instant();
        let (handle, stack) = node
            .endpoint
            .connect(instant, config, address_of(to), quic::SERVER_NAME)
            .expect("the address and the name are sound");
        node.conns.insert(handle.0, Conn::new(End::Dialer, to, id, stack));
        self.ends.insert((id, End::Dialer), (from, handle.0));
        self.dirty.insert((from, handle.0));
        id
    }

    /// Sends a frame. False, and nothing is sent, if that end is not open.
    pub(crate) fn send(&mut self, now: Time, id: ConnId, from: End, frame: &Frame) -> bool {
        self.clock.advance(now);
        let Some((place, conn)) = self.find(id, from).filter(|(_, conn)| conn.open && !conn.left) else {
            return false;
        };
        conn.push(frame);
        if matches!(frame, Frame::Welcome(_)) {
            // As the listener does: who is welcome may send records, and as many as the window says.
            conn.decoder.accept(Accept::Batches);
            let window = quic::Config::default().receive_window_bytes;
            conn.stack.set_receive_window(VarInt::from_u32(window));
        }
        self.dirty.insert(place);
        true
    }

    /// Closes an end, without an event there.
    pub(crate) fn close(&mut self, now: Time, id: ConnId, end: End) {
        self.clock.advance(now);
        let instant = self.clock.instant();
        let Some((place, conn)) = self.find(id, end).filter(|(_, conn)| !conn.left) else { return };
        conn.left = true;
        conn.stack.close(instant, VarInt::from_u32(0), Bytes::new());
        self.events.retain(|event| (event.conn, event.end) != (id, end));
        self.dirty.insert(place);
    }

    // -- what goes wrong

    pub(crate) fn set_link(&mut self, from: Host, to: Host, link: Link) {
        self.udp.set_link(from, to, link);
    }

    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        self.udp.cut(from, to);
    }

    pub(crate) fn mend(&mut self, _now: Time, from: Host, to: Host) {
        self.udp.mend(from, to);
    }

    /// One of the two ends forgets the connection.
    pub(crate) fn reset(&mut self, now: Time, id: ConnId) {
        self.clock.advance(now);
        let known = [End::Dialer, End::Listener].map(|end| (end, self.ends.contains_key(&(id, end))));
        let known: Vec<End> = known.into_iter().filter(|(_, known)| *known).map(|(end, _)| end).collect();
        if known.is_empty() {
            return;
        }
        self.udp.count("reset", 1);
        let end = *self.rng.pick(&known);
        self.forget(id, end);
    }

    /// One end forgets the connection. What it had sent comes late, when a new one may be in use.
    pub(crate) fn abandon(&mut self, now: Time, id: ConnId, end: End, late: Span) {
        self.clock.advance(now);
        if self.find(id, end).is_some_and(|(_, conn)| conn.open && !conn.left) {
            self.udp.count("late frames of an old connection", 1);
            self.udp.hold(id, end.other(), now + late);
            self.forget(id, end);
        }
    }

    /// Datagrams of a connection towards one end wait for so long.
    pub(crate) fn stall(&mut self, now: Time, id: ConnId, towards: End, span: Span) {
        if self.ends.keys().any(|(known, _)| *known == id) {
            self.udp.hold(id, towards, now + span);
            self.udp.count("stall", 1);
        }
    }

    /// A host's program or power is gone, its endpoint with it.
    pub(crate) fn vanish(&mut self, now: Time, host: Host, _notice: Notice) {
        self.clock.advance(now);
        self.udp.count("vanished host", 1);
        self.nodes.remove(&host);
        self.ends.retain(|_, place| place.0 != host);
        self.timers.retain(|(_, place)| place.0 != host);
        self.dirty.retain(|place| place.0 != host);
        self.events.retain(|event| event.host != host);
    }

    pub(crate) fn heal(&mut self, _now: Time) {
        self.udp.heal();
    }

    pub(crate) fn injected(&self) -> &BTreeMap<&'static str, u64> {
        self.udp.counts()
    }

    /// The connections that an end has and uses, oldest first.
    pub(crate) fn open_conns(&self) -> impl Iterator<Item = ConnId> {
        let used = |(_, (host, handle)): &(&(ConnId, End), &Place)| {
            self.nodes.get(host).and_then(|node| node.conns.get(handle)).is_some_and(|conn| !conn.left)
        };
        let ids: BTreeSet<ConnId> = self.ends.iter().filter(used).map(|((id, _), _)| *id).collect();
        ids.into_iter()
    }

    // -- what comes of it

    pub(crate) fn next_at(&self) -> Option<Time> {
        let now = self.clock.now();
        if !self.events.is_empty() || !self.dirty.is_empty() {
            return Some(now);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        self.udp.next_at().into_iter().chain(timer).min().map(|at| at.max(now))
    }

    pub(crate) fn poll(&mut self, now: Time) -> Option<Event<Frame>> {
        self.clock.advance(now);
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if let Some(place) = self.dirty.pop_first() {
                self.drive(place);
            } else if let Some(datagram) = self.udp.arrive(now) {
                self.arrive(datagram);
            } else {
                let (_, place) = self.timers.first().filter(|(at, _)| *at <= now).copied()?;
                let instant = self.clock.instant();
                if let Some(conn) = self.conn(place) {
                    conn.stack.handle_timeout(instant);
                }
                self.drive(place);
            }
        }
    }

    fn arrive(&mut self, datagram: Datagram) {
        let (initial, retry) = (datagram.is_initial(), datagram.is_retry());
        let Datagram { from, to, conn: of, settled, bytes } = datagram;
        let Some(node) = self.nodes.get_mut(&to) else {
            return self.udp.count("datagram to nobody", 1);
        };
        let lost = |(id, end): (ConnId, End)| {
            (initial && !node.understands(id, end, settled)) || (retry && !node.retries(id))
        };
        if of.is_some_and(lost) {
            return self.udp.count("datagram of a forgotten handshake", 1);
        }
        let back = of.map(|(id, end)| (id, end.other()));
        let mut answer = Vec::new();
        let instant = self.clock.instant();
        match node.endpoint.handle(instant, address_of(from), None, None, bytes, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(conn) = node.conns.get_mut(&handle.0) {
                    conn.settled |= initial;
                    conn.stack.handle_event(event);
                    self.dirty.insert((to, handle.0));
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let (id, _) = of.expect("only connections send what opens one");
                self.accept(to, from, id, incoming);
            }
            Some(DatagramEvent::Response(_)) => {
                self.udp.count("stateless answer", 1);
                self.transmit(to, from, back, false, &answer);
            }
            None => {}
        }
    }

    /// As the listener does: the dialler's address is proven first.
    fn accept(&mut self, host: Host, peer: Host, id: ConnId, incoming: Incoming) {
        let Some(node) = self.nodes.get_mut(&host) else { return };
        let mut answer = Vec::new();
        let instant = self.clock.instant();
        let back = Some((id, End::Dialer));
        if !incoming.remote_address_validated() && incoming.may_retry() {
            if node.endpoint.retry(incoming, &mut answer).is_ok() {
                self.udp.count("retry", 1);
                self.transmit(host, peer, back, false, &answer);
            }
            return;
        }
        match node.endpoint.accept(incoming, instant, &mut answer, None) {
            Ok((handle, stack)) => {
                node.conns.insert(handle.0, Conn::new(End::Listener, peer, id, stack));
                node.accepted.insert(id);
                self.dirty.insert((host, handle.0));
            }
            Err(error) if error.response.is_some() => self.transmit(host, peer, back, false, &answer),
            Err(_) => {}
        }
    }

    /// Lets an end's stack do what it has to, until it has nothing left.
    fn drive(&mut self, place: Place) {
        let instant = self.clock.instant();
        loop {
            let Some(node) = self.nodes.get_mut(&place.0) else { return };
            let Some(conn) = node.conns.get_mut(&place.1) else { return };
            // Before the endpoint, which forgets a connection that is over: the session has to know of it.
            if let Some(event) = conn.stack.poll() {
                self.happen(place, event);
                continue;
            }
            if let Some(event) = conn.stack.poll_endpoint_events() {
                let drained = event.is_drained();
                let answer = node.endpoint.handle_event(ConnectionHandle(place.1), event);
                if drained {
                    return self.remove(place);
                }
                if let Some(answer) = answer {
                    conn.stack.handle_event(answer);
                }
                continue;
            }
            conn.write();
            let mut bytes = Vec::new();
            if let Some(transmit) = conn.stack.poll_transmit(instant, 1, &mut bytes) {
                let to = host_at(transmit.destination);
                let of = Some((conn.id, conn.end.other()));
                let settled = conn.settled;
                self.transmit(place.0, to, of, settled, &bytes);
                continue;
            }
            let timer = conn.stack.poll_timeout().map(|at| self.clock.time_of(at));
            let before = std::mem::replace(&mut conn.timer, timer);
            if before != timer {
                before.map(|at| self.timers.remove(&(at, place)));
                timer.map(|at| self.timers.insert((at, place)));
            }
            return;
        }
    }

    /// The stack has something to tell.
    fn happen(&mut self, place: Place, event: StackEvent) {
        let Some(conn) = self.conn(place) else { return };
        match event {
            StackEvent::Connected => self.connected(place),
            StackEvent::ConnectionLost { reason } => {
                let (name, close) = match &reason {
                    ConnectionError::ApplicationClosed(_) => ("connection closed", Close::ByPeer),
                    ConnectionError::Reset => ("connection reset by a peer that forgot it", Close::Reset),
                    ConnectionError::TimedOut => ("connection lost by silence", Close::Reset),
                    ConnectionError::ConnectionClosed(_) => ("connection refused", Close::Refused),
                    _ => ("connection broken", Close::Reset),
                };
                let told = conn.open || conn.end == End::Dialer;
                if told && !std::mem::replace(&mut conn.left, true) {
                    self.tell(place, What::Closed(close));
                }
                self.udp.count(name, 1);
            }
            StackEvent::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                if let Some(stream) = conn.stack.streams().accept(Dir::Bi) {
                    conn.stream = Some(stream);
                    self.read(place);
                }
            }
            StackEvent::Stream(StreamEvent::Readable { .. }) => self.read(place),
            // What can be written is written whenever the end is looked after.
            _ => {}
        }
    }

    fn connected(&mut self, place: Place) {
        let Some(conn) = self.conn(place) else { return };
        let (id, end, peer) = (conn.id, conn.end, conn.peer);
        conn.open = true;
        if end == End::Dialer {
            conn.stream = conn.stack.streams().open(Dir::Bi);
        }
        self.ends.insert((id, end), place);
        self.udp.count("handshake", 1);
        self.tell(place, What::Opened { peer });
    }

    fn read(&mut self, place: Place) {
        let Some(conn) = self.conn(place) else { return };
        if conn.left {
            return;
        }
        let frames = conn.read();
        // As the product's loops do: bytes are a sign of life, whether or not a frame is whole by now.
        self.tell(place, What::Activity);
        for frame in frames {
            self.tell(place, What::Message(frame));
        }
    }

    fn tell(&mut self, place: Place, what: What<Frame>) {
        let Some(conn) = self.conn(place) else { return };
        let (conn, end) = (conn.id, conn.end);
        self.events.push_back(Event { host: place.0, conn, end, what });
    }

    /// An end loses all that it knows of a connection, and its session is told.
    fn forget(&mut self, id: ConnId, end: End) {
        let Some((place, conn)) = self.find(id, end) else { return };
        let told = !std::mem::replace(&mut conn.left, true);
        if told {
            self.tell(place, What::Closed(Close::Reset));
        }
        if let Some(node) = self.nodes.get_mut(&place.0) {
            let none = node.endpoint.handle_event(ConnectionHandle(place.1), EndpointEvent::drained());
            debug_assert!(none.is_none(), "a drained connection is told nothing");
        }
        self.remove(place);
    }

    fn remove(&mut self, place: Place) {
        let Some(conn) = self.nodes.get_mut(&place.0).and_then(|node| node.conns.remove(&place.1)) else {
            return;
        };
        let path = conn.stack.stats().path;
        self.udp.count("packets taken for lost", path.lost_packets);
        self.udp.count("MTU black holes", path.black_holes_detected);
        if let Some(at) = conn.timer {
            self.timers.remove(&(at, place));
        }
        self.dirty.remove(&place);
        if self.ends.get(&(conn.id, conn.end)) == Some(&place) {
            self.ends.remove(&(conn.id, conn.end));
        }
    }

    fn transmit(&mut self, from: Host, to: Host, conn: Option<(ConnId, End)>, settled: bool, bytes: &[u8]) {
        let bytes = BytesMut::from(bytes);
        self.udp.send(self.clock.now(), Datagram { from, to, conn, settled, bytes });
    }

    fn conn(&mut self, (host, handle): Place) -> Option<&mut Conn> {
        self.nodes.get_mut(&host)?.conns.get_mut(&handle)
    }

    fn find(&mut self, id: ConnId, end: End) -> Option<(Place, &mut Conn)> {
        let place = *self.ends.get(&(id, end))?;
        self.conn(place).map(|conn| (place, conn))
    }
}
