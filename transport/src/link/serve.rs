//! The replica's side of the link: accept, authorise, run sessions, let newer ones take over.
//!
//! Invariants:
//!
//! - A stranger costs little and disturbs nobody: connections are counted, in all and by address; each stage
//!   (handshake, hello) has a deadline; before the welcome a peer can make this node hold no more than
//!   [`quic::OPENING_WINDOW_BYTES`] of its data.
//! - A name proven by a certificate gives no right. [`Grants`] does, for each (node, group) apart: at the hello,
//!   and again whenever [`Trust`] is reloaded.
//! - For one group one session appends, the one welcomed last; an older one cannot, whatever it still receives.

use super::admission::{Admission, Counters, count};
pub use super::admission::{Counts, Grants, Trust};
use super::driver::{Clock, Closing, Code, End, Job, Sink, Standing, changed, finished, peer_chain};
use super::gate::{Gates, Opened, Peer, Received, Refused, Session};
use super::quic;
use super::receiver::{Event, Receiver};
use super::session::{Config as SessionConfig, Reason};
use super::tls::{NodeName, Side};
use super::wire::{Reader, Writer};
use engine::peer::{Hello, Rebuff, TakesBack};
use engine::seeds::Held;
use engine::types::Now;
use quinn::VarInt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The configuration of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The limits of a session.
    pub session: SessionConfig,
    /// The limits of the stack.
    pub quic: quic::Config,
    /// How long a handshake may take, in milliseconds.
    pub handshake_ms: u64,
    /// How long a refusal may take to be delivered, in milliseconds.
    pub linger_ms: u64,
    /// Connections at a time, unfinished handshakes included.
    pub max_connections: usize,
    /// Connections at a time from one address (for IPv6, from one /64 network).
    pub max_connections_per_address: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            session: SessionConfig::default(),
            quic: quic::Config::default(),
            handshake_ms: 10_000,
            linger_ms: 3_000,
            max_connections: 512,
            max_connections_per_address: 256,
        }
    }
}

/// Accepts sessions for all groups of a replica.
pub struct Listener<S> {
    shared: Arc<Shared<S>>,
    trust: watch::Receiver<Arc<Trust>>,
}

struct Shared<S> {
    endpoint: quinn::Endpoint,
    /// As it was made first; only the identity changes.
    quic: quinn::ServerConfig,
    sink: Arc<S>,
    config: Config,
    gates: Gates,
    counters: Counters,
    admission: Arc<Admission>,
}

impl<S: Sink> Listener<S> {
    /// A listener on `endpoint`, made by [`quic::bind`] or [`quic::attach`]. Nothing is accepted before
    /// [`Listener::run`].
    ///
    /// # Errors
    ///
    /// If the credentials cannot be used.
    pub fn new(
        endpoint: quinn::Endpoint,
        sink: Arc<S>,
        mut trust: watch::Receiver<Arc<Trust>>,
        config: Config,
    ) -> Result<Listener<S>, quic::Error> {
        let now = trust.borrow_and_update().clone();
        let quic = quic::server_config(&now.credentials, &config.quic)?;
        endpoint.set_server_config(Some(quic.clone()));
        let Config { max_connections, max_connections_per_address, .. } = config;
        let shared = Shared {
            endpoint,
            quic,
            sink,
            config,
            gates: Gates::default(),
            counters: Counters::default(),
            admission: Arc::new(Admission::new(max_connections, max_connections_per_address)),
        };
        Ok(Listener { shared: Arc::new(shared), trust })
    }

    /// Reads the counters, for as long as the listener or its future lives and after.
    pub fn counts(&self) -> impl Fn() -> Counts + Send + Sync + use<S> {
        let shared = self.shared.clone();
        move || shared.counters.read()
    }

    /// Accepts and runs sessions until the endpoint is closed. Dropping the future ends all sessions.
    pub async fn run(mut self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.shared.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &mut connections),
                    None => return,
                },
                Some(_) = connections.join_next() => {}
                () = changed(&mut self.trust) => self.reload(),
            }
        }
    }

    fn admit(&self, incoming: quinn::Incoming, connections: &mut JoinSet<()>) {
        let address = incoming.remote_address();
        if !incoming.remote_address_validated() && incoming.may_retry() {
            // Costs one round trip per connection, and a forged address nothing but one packet.
            if let Err(error) = incoming.retry() {
                tracing::debug!(%address, %error, "no retry sent");
            }
            return;
        }
        let Some(permit) = self.shared.admission.admit(address.ip()) else {
            count(&self.shared.counters.over_limit);
            tracing::debug!(%address, "connection refused: too many");
            return incoming.refuse();
        };
        let connection = Connection { shared: self.shared.clone(), trust: self.trust.clone() };
        connections.spawn(async move {
            connection.serve(incoming).await;
            drop(permit);
        });
    }

    fn reload(&mut self) {
        let trust = self.trust.borrow_and_update().clone();
        match quic::renewed(&self.shared.quic, &trust.credentials) {
            Ok(config) => self.shared.endpoint.set_server_config(Some(config)),
            // Not reached with credentials that were loaded: loading tries the same. New connections go on with
            // the old identity; the rights of the old ones are checked all the same.
            Err(error) => tracing::error!(%error, "the new credentials cannot be used"),
        }
    }
}

/// One connection, from its first packet to its end.
struct Connection<S> {
    shared: Arc<Shared<S>>,
    trust: watch::Receiver<Arc<Trust>>,
}

/// What a job has brought.
enum Done<S: Sink> {
    Judged(Result<Opened<S>, Rebuff>),
    Appended(Result<(), Refused>),
}

/// A session's place in the replica, once it was welcomed.
struct Place<S: Sink> {
    session: Arc<Session<S>>,
    standing: watch::Receiver<Standing>,
    /// The number of the last ask that the session has sent.
    asked: u64,
}

impl<S: Sink> Connection<S> {
    async fn serve(mut self, incoming: quinn::Incoming) {
        let address = incoming.remote_address();
        let deadline = Duration::from_millis(self.shared.config.handshake_ms);
        let handshake = async { incoming.accept()?.await };
        let connection = match timeout(deadline, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                count(&self.shared.counters.handshakes_failed);
                return tracing::debug!(%address, %error, "handshake failed");
            }
            Err(_) => {
                count(&self.shared.counters.handshakes_failed);
                return tracing::debug!(%address, "handshake took too long");
            }
        };
        let mut closing = Closing::new(connection);
        let (peer, end) = match self.peer(&closing.connection) {
            Ok(peer) => {
                let Err(end) = self.session(&closing.connection, &peer).await;
                (peer.to_string(), end)
            }
            Err(end) => ("unknown".to_owned(), end),
        };
        match &end {
            End::Session(Reason::Violation(_)) => count(&self.shared.counters.violations),
            End::Replaced => count(&self.shared.counters.replaced),
            _ => {}
        }
        tracing::debug!(%peer, %address, reason = %end, "the connection ended");
        closing.code = Code::for_end(&end);
    }

    /// Who the peer is, by the credentials of this moment.
    fn peer(&mut self, connection: &quinn::Connection) -> Result<NodeName, End> {
        let credentials = self.trust.borrow_and_update().credentials.clone();
        Ok(credentials.verify_peer(&peer_chain(connection), Side::Dialler)?)
    }

    async fn session(
        &mut self,
        connection: &quinn::Connection,
        peer: &NodeName,
    ) -> Result<std::convert::Infallible, End> {
        let clock = Clock::start();
        let mut receiver = Receiver::new(self.shared.config.session.clone(), clock.now());
        let (stream_out, stream_in) = tokio::select! {
            streams = connection.accept_bi() => streams?,
            () = clock.until(receiver.poll_timeout()) => {
                return Err(Reason::Opening { ms: self.shared.config.session.opening_ms }.into());
            }
        };
        let mut reader = Reader::new(stream_in);
        let mut writer = Writer::new(stream_out);
        let mut name = None;
        let mut place: Option<Place<S>> = None;
        let mut seeds = None;
        let mut waiting: Vec<Received> = Vec::new();
        let mut job: Option<Job<Done<S>>> = None;
        loop {
            let now = clock.now();
            if receiver.poll_timeout().is_some_and(|at| at <= now.mono) {
                receiver.handle_timeout(now);
            }
            if let Some(place) = &mut place {
                let standing = place.standing.borrow_and_update().clone();
                // Refusing comes first: the durable position may already be that of a log which has branched off.
                match standing.refusing {
                    Some(rebuff) => receiver.handle_rebuff(rebuff),
                    None => {
                        receiver.handle_durable(now, standing.durable);
                        let first = standing.asks.partition_point(|(number, _)| *number <= place.asked);
                        for (number, ask) in &standing.asks[first..] {
                            receiver.handle_ask(*ask);
                            place.asked = *number;
                        }
                    }
                }
            }
            take_frames(&mut receiver, &mut reader, now);
            while let Some(event) = receiver.poll_event() {
                match event {
                    Event::Hello(hello, takes_back) => {
                        name = Some(hello.name.clone());
                        match self.judge(connection, peer, hello, takes_back) {
                            Ok(started) => job = Some(started),
                            Err(rebuff) => receiver.handle_verdict(now, Err(rebuff)),
                        }
                    }
                    Event::Jump(jump) => waiting.push(Received::Jump(jump)),
                    Event::Append(batch) => waiting.push(Received::Batch(batch)),
                    Event::AppendThin(thin) => waiting.push(Received::Thin(thin)),
                    Event::Heard(heartbeat) => {
                        if let Some(place) = &place {
                            let group = place.session.group();
                            self.shared.sink.heard(&group, heartbeat, now.wall);
                            self.shared.sink.measured(&group, peer, connection.rtt());
                        }
                    }
                    Event::Lost(reason) => {
                        let end = self.farewell(reason, &mut receiver, &mut writer, connection).await;
                        return Err(ended(&place, end));
                    }
                }
            }
            if job.is_none()
                && !waiting.is_empty()
                && let Some(place) = &place
            {
                let append = place.session.clone().append(std::mem::take(&mut waiting));
                job = Some(Box::pin(async move { Ok(Done::Appended(append.await?)) }));
            }
            if writer.is_idle()
                && let Some(frame) = receiver.poll_transmit()
            {
                writer.push(&frame).map_err(Reason::Unsendable)?;
            }
            let step = tokio::select! {
                biased;
                done = finished(&mut job) => {
                    job = None;
                    match done {
                        Ok(Done::Judged(Ok((needs, welcome, session)))) => {
                            count(&self.shared.counters.welcomed);
                            connection.set_receive_window(VarInt::from_u32(self.shared.config.quic.receive_window_bytes));
                            receiver.handle_verdict(clock.now(), Ok((needs, welcome)));
                            let group = session.group();
                            seeds = receiver.wants_held().then(|| self.shared.sink.seeds(&group)).flatten();
                            let standing = self.shared.sink.standing(&group);
                            place = Some(Place { standing, session, asked: 0 });
                            reader.accept(receiver.accepts());
                            Ok(())
                        }
                        Ok(Done::Judged(Err(rebuff))) => {
                            receiver.handle_verdict(clock.now(), Err(rebuff));
                            Ok(())
                        }
                        Ok(Done::Appended(Ok(()))) => Ok(()),
                        Ok(Done::Appended(Err(Refused::Rebuff(rebuff)))) => {
                            receiver.handle_rebuff(rebuff);
                            Ok(())
                        }
                        Ok(Done::Appended(Err(Refused::Replaced))) => Err(End::Replaced),
                        Ok(Done::Appended(Err(Refused::Seed(error)))) => Err(End::Seed(error)),
                        Err(end) => Err(end),
                    }
                }
                () = changed(&mut self.trust) => self.recheck(connection, peer, name.as_deref()),
                end = moved(&mut place) => end,
                held = told(&mut seeds), if receiver.wants_held() => {
                    held.into_iter().for_each(|held| receiver.handle_held(held));
                    Ok(())
                }
                error = connection.closed() => Err(error.into()),
                flushed = writer.flush(), if !writer.is_idle() => flushed,
                filled = reader.fill(), if receiver.wants_input() => {
                    filled.map(|()| receiver.handle_activity(clock.now()))
                }
                () = clock.until(receiver.poll_timeout()) => Ok(()),
            };
            if let Err(end) = step {
                return Err(ended(&place, end));
            }
        }
    }

    /// Checks the right to the group, then lets the sink judge.
    fn judge(
        &self,
        connection: &quinn::Connection,
        peer: &NodeName,
        hello: Hello,
        takes_back: Option<TakesBack>,
    ) -> Result<Job<Done<S>>, Rebuff> {
        if !self.trust.borrow().grants.allows(peer, &hello.name) {
            count(&self.shared.counters.not_allowed);
            tracing::warn!(%peer, group = ?hello.name, "a node asks for a group that it has no right to");
            return Err(Rebuff::NotAllowed);
        }
        let peer = Peer { name: peer.clone(), address: connection.remote_address() };
        let gate = self.shared.gates.of(&hello.name);
        let opening = gate.open(self.shared.sink.clone(), peer, hello, takes_back);
        Ok(Box::pin(async move { Ok(Done::Judged(opening.await?)) }))
    }

    /// Do the peer's identity and right still hold, by what has just been loaded?
    fn recheck(
        &mut self,
        connection: &quinn::Connection,
        peer: &NodeName,
        name: Option<&str>,
    ) -> Result<(), End> {
        let trust = self.trust.borrow_and_update().clone();
        let actual = trust.credentials.verify_peer(&peer_chain(connection), Side::Dialler)?;
        let allowed = name.is_none_or(|name| trust.grants.allows(peer, name));
        if actual == *peer && allowed { Ok(()) } else { Err(End::NotAllowed) }
    }

    /// Delivers what a closed session still has to say, for a while.
    async fn farewell(
        &self,
        reason: Reason,
        receiver: &mut Receiver,
        writer: &mut Writer,
        connection: &quinn::Connection,
    ) -> End {
        let Some(frame) = receiver.poll_transmit() else { return reason.into() };
        if let Err(error) = writer.push(&frame) {
            return Reason::Unsendable(error).into();
        }
        let delivered = async {
            writer.finish().await?;
            // The peer's stack has it; the peer itself closes when it has read it.
            connection.closed().await;
            Ok(())
        };
        match timeout(Duration::from_millis(self.shared.config.linger_ms), delivered).await {
            Ok(Ok(())) => reason.into(),
            Ok(Err(end)) => end,
            Err(_) => End::Slow("refusal"),
        }
    }
}

/// Tells that the session is over, if there was one.
fn ended<S: Sink>(place: &Option<Place<S>>, end: End) -> End {
    if let Some(place) = place {
        place.session.end(&end.to_string());
    }
    end
}

/// Waits until the group's standing changes, or another session takes over.
async fn moved<S: Sink>(place: &mut Option<Place<S>>) -> Result<(), End> {
    let Some(place) = place else { return std::future::pending().await };
    tokio::select! {
        biased;
        () = place.session.replaced() => Err(End::Replaced),
        changed = place.standing.changed() => changed.map_err(|_| End::OwnerGone),
    }
}

/// Waits for more of what this node's seeds hold.
async fn told(seeds: &mut Option<mpsc::Receiver<Vec<Held>>>) -> Option<Vec<Held>> {
    let Some(telling) = seeds else { return std::future::pending().await };
    let held = telling.recv().await;
    if held.is_none() {
        *seeds = None;
    }
    held
}

/// Takes what has been read, as far as the session wants it.
fn take_frames(receiver: &mut Receiver, reader: &mut Reader, now: Now) {
    while receiver.wants_input() {
        match reader.poll() {
            Ok(Some(frame)) => receiver.handle_frame(now, frame),
            Ok(None) => return,
            Err(violation) => return receiver.handle_violation(violation),
        }
    }
}
