//! The primary's side of a link: connect, run a session, and connect again.
//!
//! Invariants:
//!
//! - One link is one future: whoever drops it ends the link, and the connection is closed.
//! - Nothing here keeps state from one session to the next but the back-off: where to go on is the replica's
//!   answer each time.
//! - Memory is bounded: one batch waits to be written, the stack holds references to at most its send window,
//!   and a session has at most its window in flight.

use super::backoff::Backoff;
use super::driver::{
    Clock, Closing, Code, End, Fault, Job, LinkState, Source, Turn, changed, finished, peer_chain,
};
use super::quic;
use super::sender::{Event, Sender};
use super::session::Config as SessionConfig;
use super::tls::{Credentials, NodeName, Side};
use super::wire::{Reader, Writer};
use engine::peer::{Batch, Hello, Jump};
use engine::types::{Lsn, Now};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// The configuration of a dialler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The limits of a session.
    pub session: SessionConfig,
    /// The limits of the stack.
    pub quic: quic::Config,
    /// How long one address may take to connect, in milliseconds.
    pub connect_ms: u64,
    /// The first wait after a failure, in milliseconds.
    pub min_retry_ms: u64,
    /// The longest wait after failures, in milliseconds.
    pub max_retry_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            session: SessionConfig::default(),
            quic: quic::Config::default(),
            connect_ms: 10_000,
            min_retry_ms: 100,
            max_retry_ms: 5_000,
        }
    }
}

/// Where a replica is, and who it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name in its certificate.
    pub node: NodeName,
    /// `host:port`, looked up at each attempt; all its addresses are tried in turn.
    pub address: String,
}

/// One link: one group, one replica.
pub struct Dialler<S> {
    /// Made by [`quic::bind`] or [`quic::attach`]; links may share it.
    pub endpoint: quinn::Endpoint,
    /// This node's identity; a new one is taken up by the next attempt, and the current peer is verified against
    /// it at once.
    pub credentials: watch::Receiver<Arc<Credentials>>,
    /// The group's log.
    pub source: Arc<S>,
    /// The replica.
    pub target: Target,
    /// Limits.
    pub config: Config,
    /// For the jitter of the back-off.
    pub seed: u64,
}

/// Hands records to the session. The log may have become more durable since the session was last told, and the
/// source gives what is durable when it reads.
fn take(sender: &mut Sender, batch: Batch) {
    // It may reach beyond what the session has been told of yet.
    sender.handle_durable(sender.durable().max(batch.last));
    sender.handle_records(batch);
}

/// Lets records flow, from where a jump leads if there is one. As in [`take`], that may be beyond what the
/// session has been told.
fn attach(sender: &mut Sender, jump: Option<Jump>) {
    if let Some(jump) = &jump {
        sender.handle_durable(sender.durable().max(jump.to.lsn));
    }
    sender.handle_attached(jump);
}

impl<S: Source> Dialler<S> {
    /// Keeps the link up, until it is dropped.
    pub async fn run(self) -> Infallible {
        let state = LinkState::Connecting;
        let mut link = Link { dialler: self, turn: Turn::default(), state, outage: None };
        link.run().await
    }
}

/// A link that runs.
struct Link<S> {
    dialler: Dialler<S>,
    turn: Turn,
    /// What was told last.
    state: LinkState,
    /// The reason that was logged last, while the link is down.
    outage: Option<String>,
}

impl<S: Source> Link<S> {
    async fn run(&mut self) -> Infallible {
        let mut backoff = Backoff::new(
            self.dialler.config.min_retry_ms,
            self.dialler.config.max_retry_ms,
            self.dialler.seed,
        );
        loop {
            // Before the hello: where that is of a newer reign, the session ends with this.
            let durable = self.dialler.source.durable();
            match self.dialler.source.hello() {
                Some(hello) => {
                    self.changed(LinkState::Connecting);
                    let Err(end) = self.attempt(hello, durable, &mut backoff).await;
                    self.changed(LinkState::Down { reason: end.to_string() });
                }
                None => self.changed(LinkState::Idle),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Tells of a change. An outage is logged once for each reason, not once for each attempt.
    fn changed(&mut self, state: LinkState) {
        let peer = &self.dialler.target.node;
        match &state {
            LinkState::Idle if self.state == state => return,
            LinkState::Down { reason } if self.outage.as_ref() != Some(reason) => {
                tracing::info!(%peer, %reason, "the link is down");
                self.outage = Some(reason.clone());
            }
            LinkState::Streaming { address } => {
                tracing::info!(%peer, %address, "the link is up");
                self.outage = None;
            }
            LinkState::Idle | LinkState::Connecting | LinkState::Down { .. } => {
                tracing::debug!(%peer, ?state, "the link is tried");
            }
        }
        self.dialler.source.link_changed(peer, &state);
        self.state = state;
    }

    async fn attempt(
        &mut self,
        hello: Hello,
        durable: watch::Receiver<Lsn>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, End> {
        let connection = self.connect().await?;
        let mut closing = Closing::new(connection);
        let end = match self.session(&closing.connection, hello, durable, backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        closing.code = Code::for_end(&end);
        let path = closing.connection.stats().path;
        tracing::debug!(
            peer = %self.dialler.target.node,
            rtt = ?path.rtt,
            mtu = path.current_mtu,
            sent_packets = path.sent_packets,
            lost_packets = path.lost_packets,
            mtu_black_holes = path.black_holes_detected,
            "how the path was"
        );
        Err(end)
    }

    async fn connect(&mut self) -> Result<quinn::Connection, End> {
        let address = &self.dialler.target.address;
        let failed = |source| End::Address { address: address.clone(), source };
        let patience = Duration::from_millis(self.dialler.config.connect_ms);
        let found = timeout(patience, tokio::net::lookup_host(address)).await;
        let addresses: Vec<SocketAddr> =
            found.map_err(|_| End::Slow("look-up of the address"))?.map_err(failed)?.collect();
        let credentials = self.dialler.credentials.borrow_and_update().clone();
        let config =
            quic::client_config(&credentials, self.dialler.target.node.clone(), &self.dialler.config.quic)?;
        let mut end = failed(std::io::ErrorKind::NotFound.into());
        for address in addresses {
            let connecting =
                self.dialler.endpoint.connect_with(config.clone(), address, quic::SERVER_NAME)?;
            match timeout(patience, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => end = error.into(),
                Err(_) => end = End::Slow("handshake"),
            }
            tracing::debug!(peer = %self.dialler.target.node, %address, reason = %end, "no connection");
        }
        Err(end)
    }

    async fn session(
        &mut self,
        connection: &quinn::Connection,
        hello: Hello,
        mut durable: watch::Receiver<Lsn>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, End> {
        let clock = Clock::start();
        let (stream_out, stream_in) = connection.open_bi().await?;
        let mut reader = Reader::new(stream_in);
        let mut writer = Writer::new(stream_out);
        let takes_back = self.dialler.source.takes_back();
        let mut sender = Sender::new(self.dialler.config.session.clone(), clock.now(), hello, takes_back);
        let mut job: Option<Job<Done>> = None;
        let mut ship_at = Instant::now();
        loop {
            let now = clock.now();
            if sender.poll_timeout().is_some_and(|at| at <= now.mono) {
                sender.handle_timeout(now);
            }
            // The hello may have been made from newer state than what the watch has been told yet.
            let mut behind = *durable.borrow_and_update() > sender.durable();
            if behind && Instant::now() >= ship_at {
                ship_at = Instant::now() + self.dialler.source.pace();
                sender.handle_durable(*durable.borrow());
                behind = false;
            }
            while let Some(event) = sender.poll_event() {
                if matches!(event, Event::Heard(_)) {
                    self.dialler.source.measured(&self.dialler.target.node, connection.rtt());
                }
                if let Some(started) = self.handle_event(event, now).await? {
                    assert!(job.is_none(), "a session is welcomed once, before it reads");
                    job = Some(started);
                }
            }
            if job.is_none() {
                job = self.fill(&mut sender)?;
            }
            if writer.is_idle()
                && let Some(frame) = sender.poll_transmit()
            {
                writer.push(&frame).map_err(super::session::Reason::Unsendable)?;
            }
            tokio::select! {
                biased;
                done = finished(&mut job) => {
                    job = None;
                    match done? {
                        Done::Attached(jump) => {
                            backoff.reset();
                            self.changed(LinkState::Streaming { address: connection.remote_address() });
                            attach(&mut sender, jump);
                        }
                        Done::Read(batch) => take(&mut sender, batch),
                    }
                }
                () = changed(&mut self.dialler.credentials) => self.recheck(connection)?,
                changed = durable.changed(), if !behind => changed.map_err(|_| Fault::Retired)?,
                () = sleep_until(ship_at), if behind => {}
                // Before the writer, which learns of a closed connection first: a refusal may stand before its end.
                filled = reader.fill() => {
                    filled?;
                    handle_input(&mut sender, &mut reader, clock.now());
                }
                flushed = writer.flush(), if !writer.is_idle() => flushed?,
                () = clock.until(sender.poll_timeout()) => {}
            }
        }
    }

    async fn handle_event(&self, event: Event, now: Now) -> Result<Option<Job<Done>>, End> {
        let (source, peer) = (self.dialler.source.clone(), self.dialler.target.node.clone());
        match event {
            Event::Welcomed(welcome, needs) => {
                return Ok(Some(
                    self.job(move || source.attach(&peer, &welcome, needs.as_ref()).map(Done::Attached)),
                ));
            }
            Event::Acked(position) => source.acked(&peer, position)?,
            Event::Heard(heartbeat) => source.heard(&peer, heartbeat, now.wall),
            Event::Asked(ask) => source.asked(&peer, ask),
            Event::Rebuffed(rebuff) => {
                let end = End::Rebuffed(rebuff.clone());
                self.turn.run(move || source.rebuffed(&peer, &rebuff)).await?;
                return Err(end);
            }
            Event::Lost(reason) => return Err(reason.into()),
        }
        Ok(None)
    }

    /// Gives the session what it wants, from memory at once or from the disk by a job.
    fn fill(&self, sender: &mut Sender) -> Result<Option<Job<Done>>, End> {
        let Some(want) = sender.poll_want() else { return Ok(None) };
        if let Some(batch) = self.dialler.source.read_cached(want)? {
            take(sender, batch);
            return Ok(None);
        }
        let source = self.dialler.source.clone();
        Ok(Some(self.job(move || source.read(want).map(Done::Read))))
    }

    fn job(&self, call: impl FnOnce() -> Result<Done, Fault> + Send + 'static) -> Job<Done> {
        let turn = self.turn.clone();
        Box::pin(async move { Ok(turn.run(call).await??) })
    }

    /// Does the peer still hold, by the credentials that have just been loaded?
    fn recheck(&mut self, connection: &quinn::Connection) -> Result<(), End> {
        let credentials = self.dialler.credentials.borrow_and_update().clone();
        let actual = credentials.verify_peer(&peer_chain(connection), Side::Listener)?;
        let expected = &self.dialler.target.node;
        if actual != *expected {
            return Err(super::tls::Error::WrongNode { expected: expected.clone(), actual }.into());
        }
        Ok(())
    }
}

/// What a job on a thread that may block has done.
enum Done {
    Attached(Option<Jump>),
    Read(Batch),
}

fn handle_input(sender: &mut Sender, reader: &mut Reader, now: Now) {
    sender.handle_activity(now);
    loop {
        match reader.poll() {
            Ok(Some(frame)) => sender.handle_frame(now, frame),
            Ok(None) => return,
            Err(violation) => return sender.handle_violation(violation),
        }
    }
}
