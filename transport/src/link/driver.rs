//! What the owner of the logs implements to be replicated: a [`Source`] on the primary, a [`Sink`] on the
//! replica; and what both loops that drive a session share.
//!
//! Persist, then send, then acknowledge is kept by construction: a source hands out durable records only, and a
//! replica's acknowledgement comes from its [`Standing`], which moves after its own sync.

use super::frame::Heartbeat;
use super::sender::Want;
use super::session::{Reason, Violation};
use super::tls::{self, NodeName};
use bytes::Bytes;
use engine::peer::{Ask, Batch, Hello, Jump, Needs, Rebuff, TakesBack, Welcome};
use engine::seeds::Held;
use engine::types::{GroupId, Lsn, Mono, Now, Position, Timestamp};
use quinn::VarInt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

/// One group's log on its primary, for one or more replicas.
///
/// Methods marked *(blocking)* are called on threads that may block; the others are called in the loop that also
/// serves heartbeats and must return at once.
pub trait Source: Send + Sync + 'static {
    /// The introduction; `None` while this node is not the group's primary, and then nothing is dialled.
    fn hello(&self) -> Option<Hello>;

    /// Whether a fenced node that was primary before may become a replica of this one. Asked after
    /// [`Source::hello`], for the same hello.
    fn takes_back(&self) -> TakesBack {
        TakesBack::No
    }

    /// Verifies a welcome against the log *(blocking)*: does this log hold exactly that position? With what the
    /// replica lacks beside the records behind it; `None` if it knows of no sync spans.
    ///
    /// Returns where the records go on if not right behind the welcome: a jump from its position to one that is
    /// durable here, and only if `needs` is not `None`.
    ///
    /// # Errors
    ///
    /// Ends the session; it is tried again later.
    fn attach(
        &self,
        peer: &NodeName,
        welcome: &Welcome,
        needs: Option<&Needs>,
    ) -> Result<Option<Jump>, Fault>;

    /// The replica asks, after [`Source::attach`]. It asks again in each session, until it has what it wants or
    /// wants it no more.
    fn asked(&self, _peer: &NodeName, _ask: Ask) {}

    /// This node's durable LSN. Never goes back. Dropping the sending half ends the sessions: this node is no
    /// longer the primary.
    fn durable(&self) -> watch::Receiver<Lsn>;

    /// The shortest time between two looks at [`Source::durable`]. Each shipment costs both sides packets and the
    /// replica a sync, however small it is; zero where somebody waits for the replica.
    fn pace(&self) -> Duration {
        Duration::ZERO
    }

    /// The records that are wanted, if that needs no wait for a disk; `None` if it does.
    ///
    /// # Errors
    ///
    /// As [`Source::read`].
    fn read_cached(&self, want: Want) -> Result<Option<Batch>, Fault>;

    /// The records that are wanted *(blocking)*: from [`Want::from`], as many whole ones as fit into
    /// [`Want::max_bytes`], at least one, and none above the durable LSN.
    ///
    /// # Errors
    ///
    /// Ends the session: the log failed, or was trimmed (the next hello says so).
    fn read(&self, want: Want) -> Result<Batch, Fault>;

    /// Everything up to `durable` is durable at `peer`. The position's checksum is the replica's: equal to this
    /// log's at that LSN, or the two have diverged (R11).
    ///
    /// # Errors
    ///
    /// Ends the session: [`Fault::Diverged`].
    fn acked(&self, peer: &NodeName, durable: Position) -> Result<(), Fault>;

    /// The replica refuses *(blocking)*. When this returns, what it told has been acted upon: a primary that is
    /// superseded has stopped serving writes.
    fn rebuffed(&self, peer: &NodeName, rebuff: &Rebuff);

    /// A sign of life from the replica, heard at `at`.
    fn heard(&self, _peer: &NodeName, _heartbeat: Heartbeat, _at: Timestamp) {}

    /// The way to the replica and back takes so long, as QUIC measures it; told with each sign of life.
    fn measured(&self, _peer: &NodeName, _rtt: Duration) {}

    /// The link went up or down.
    fn link_changed(&self, _peer: &NodeName, _state: &LinkState) {}
}

/// The logs of a replica, one for each group.
///
/// For one group, [`Sink::hello`], [`Sink::jump`] and [`Sink::append`] are never called at the same time, and once
/// a hello was welcomed nothing of an older session is appended any more.
pub trait Sink: Send + Sync + 'static {
    /// Judges a hello *(blocking)*. The peer's right to the group's name has been checked. `takes_back` is what
    /// the primary says of old primaries; `None` if it knows of no sync spans, and then needs other than none are
    /// answered with [`Rebuff::TooFarBehind`] by the link. More lacks than
    /// [`MAX_LACKS`](engine::peer::MAX_LACKS) are a bug.
    ///
    /// The first batch appended after a welcome starts right behind the welcome's position, or behind the end of
    /// the one jump in front of it. What an older session
    /// appended and nobody has synced yet must therefore be synced before the answer (and be part of it), or
    /// dropped.
    ///
    /// # Errors
    ///
    /// The refusal, which goes to the peer; an older session of the group goes on undisturbed.
    fn hello(
        &self,
        peer: &NodeName,
        hello: &Hello,
        takes_back: Option<TakesBack>,
    ) -> Result<(Needs, Welcome), Rebuff>;

    /// The records up to [`Jump::to`] will not come *(blocking)*; the next batch starts right behind it. Once that
    /// position is durable here, [`Sink::standing`] may name it.
    ///
    /// # Errors
    ///
    /// Nothing was changed; the refusal goes to the peer, and the session ends.
    fn jump(&self, group: &GroupId, jump: Jump) -> Result<(), Rebuff>;

    /// Checks and appends records *(blocking)*. Does not wait for a sync: [`Sink::standing`] tells of it.
    ///
    /// # Errors
    ///
    /// Nothing was appended; the refusal goes to the peer, and the session ends.
    fn append(&self, group: &GroupId, batch: Batch) -> Result<(), Rebuff>;

    /// What this node's seeds hold of the group's volumes, told bit by bit; `None` if it has none, or needs none. Called
    /// after a welcome to a primary that can make use of it. Never an empty list, nor one of more than
    /// [`HELD_PER_FRAME`](super::frame::HELD_PER_FRAME).
    fn seeds(&self, _group: &GroupId) -> Option<mpsc::Receiver<Vec<Held>>> {
        None
    }

    /// Reads what a seed was said to hold *(blocking)*. The link checks that it does.
    ///
    /// # Errors
    ///
    /// Nothing was appended, and the session ends. This seed is not to be told of in the next one.
    fn read_seed(&self, _group: &GroupId, _held: &Held) -> std::io::Result<Bytes> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Where the group stands, from now on; called after a welcome. Dropping the sending half ends the session.
    fn standing(&self, group: &GroupId) -> watch::Receiver<Standing>;

    /// A sign of life from the primary, heard at `at`: with the standing it gives lag and clock skew.
    fn heard(&self, _group: &GroupId, _heartbeat: Heartbeat, _at: Timestamp) {}

    /// The way to the primary and back takes so long, as QUIC measures it; told with each sign of life.
    fn measured(&self, _group: &GroupId, _peer: &NodeName, _rtt: Duration) {}

    /// A session with `peer` began or ended.
    fn link_changed(&self, _group: &GroupId, _peer: &NodeName, _state: &LinkState) {}
}

/// Where a group stands at the replica.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// The last position covered by a successful sync here.
    pub durable: Position,
    /// No more records are taken, for this reason: the group was promoted here, has no space, has failed.
    pub refusing: Option<Rebuff>,
    /// What this node wants of its primary, each with a number of its own: from 1, ascending in the list, and
    /// never given again to another ask while this node runs. At most [`MAX_ASKS`](super::session::MAX_ASKS).
    ///
    /// It is what is wanted *now*, not a queue: an ask stays in it until it has been granted or is wanted no more.
    /// A session sends each number once, the next session all that are there. So it does no harm that a watch may
    /// skip values: what is skipped was no longer wanted.
    pub asks: Arc<[(u64, Ask)]>,
}

/// What an operator sees of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not dialling: this node is not the group's primary.
    Idle,
    /// Dialling.
    Connecting,
    /// Records may flow.
    Streaming {
        /// The other end.
        address: SocketAddr,
    },
    /// The session ended or could not be opened.
    Down {
        /// Why, for a person.
        reason: String,
    },
}

/// Why a source ends a session.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The replica holds something that this log does not.
    #[error("the replica's position {0:?} is not in this log")]
    Diverged(Position),
    /// The log cannot be read.
    #[error("the log cannot be read: {0}")]
    Log(#[from] std::io::Error),
    /// The wanted records are no longer in the log.
    #[error("LSN {0} is no longer in the log")]
    Trimmed(Lsn),
    /// This node is no longer the group's primary.
    #[error("this node is no longer the primary")]
    Retired,
}

/// Why a connection ended: what is logged and shown.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The session ended.
    #[error(transparent)]
    Session(#[from] Reason),
    /// The connection failed, or the peer closed it.
    #[error("the connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The connection could not be started.
    #[error("dialling: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The address does not resolve.
    #[error("the address {address}: {source}")]
    Address {
        /// As configured.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The handshake, or a refusal's delivery, took too long.
    #[error("the {0} took too long")]
    Slow(&'static str),
    /// The peer ended the stream.
    #[error("the peer ended the stream")]
    StreamEnded,
    /// The identity of one side no longer holds.
    #[error(transparent)]
    Identity(#[from] tls::Error),
    /// The stack cannot be configured.
    #[error(transparent)]
    Config(#[from] super::quic::Error),
    /// The source ended it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The replica refused.
    #[error("the replica refused: {0}")]
    Rebuffed(Rebuff),
    /// The certificate no longer gives a right to the group.
    #[error("the peer has no right to this group any more")]
    NotAllowed,
    /// What was left out for this node's seed cannot be put back from it.
    #[error("a seed cannot be used: {0}")]
    Seed(std::io::Error),
    /// A newer session of the same group took over.
    #[error("a newer connection took over")]
    Replaced,
    /// The owner of the log is gone, or one of its methods panicked.
    #[error("the log's owner is gone")]
    OwnerGone,
}

impl From<Violation> for End {
    fn from(violation: Violation) -> End {
        End::Session(Reason::Violation(violation))
    }
}

/// The codes that a connection is closed with. For the log of the other side: nothing is decided by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The process ends, or the session is no longer wanted.
    Done = 0,
    /// The peer broke the protocol.
    Violation = 1,
    /// The peer was silent or slow.
    Timeout = 2,
    /// A rebuff was exchanged.
    Rebuffed = 3,
    /// A newer connection took over.
    Replaced = 4,
    /// The peer's identity or rights no longer hold.
    NotAllowed = 5,
    /// This side cannot go on: its log failed, or the two logs differ.
    Failed = 6,
}

impl Code {
    pub(super) fn for_end(end: &End) -> Code {
        match end {
            End::Session(Reason::Violation(_)) => Code::Violation,
            End::Session(Reason::Silent { .. } | Reason::Opening { .. }) | End::Slow(_) => Code::Timeout,
            End::Session(Reason::Rebuffed) | End::Rebuffed(_) => Code::Rebuffed,
            End::Session(Reason::Unsendable(_)) | End::Fault(_) | End::Seed(_) | End::OwnerGone => {
                Code::Failed
            }
            End::Replaced => Code::Replaced,
            End::NotAllowed | End::Identity(_) => Code::NotAllowed,
            End::Connection(_)
            | End::Connect(_)
            | End::Address { .. }
            | End::StreamEnded
            | End::Config(_) => Code::Done,
        }
    }
}

/// A connection that is closed when it is dropped, whichever way its loop ends.
pub(super) struct Closing {
    pub(super) connection: quinn::Connection,
    pub(super) code: Code,
}

impl Closing {
    pub(super) fn new(connection: quinn::Connection) -> Closing {
        Closing { connection, code: Code::Done }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(self.code as u32), b"");
    }
}

/// The certificates that the peer showed in the handshake.
pub(super) fn peer_chain(connection: &quinn::Connection) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}

/// Runs calls that may block on threads that may, one at a time.
///
/// A loop that is dropped cannot take back the call it has started. With turns, the next loop waits for that call
/// without a thread of its own: a disk that hangs holds up one thread, however often the link is tried again.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Waits for the turn, then runs `call` to its end.
    ///
    /// # Errors
    ///
    /// [`End::OwnerGone`] if it panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, End> {
        let turn = self.0.clone().lock_owned().await;
        let running = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            call()
        });
        running.await.map_err(|_| End::OwnerGone)
    }
}

/// What a session waits for while it goes on.
pub(super) type Job<T> = Pin<Box<dyn Future<Output = Result<T, End>> + Send>>;

/// Waits until the job is done; if there is none, for ever.
pub(super) async fn finished<T>(job: &mut Option<Job<T>>) -> Result<T, End> {
    match job {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

/// Waits for the next value. An owner that is gone changes nothing any more.
pub(super) async fn changed<T>(watch: &mut watch::Receiver<T>) {
    if watch.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The time for a session, from the runtime's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(super) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: Mono(nanos(self.start.elapsed())), wall: Timestamp(nanos(wall)) }
    }

    /// Waits until then; without a deadline, for ever.
    pub(super) async fn until(self, deadline: Option<Mono>) {
        match deadline {
            Some(at) => tokio::time::sleep_until(self.start + Duration::from_nanos(at.0)).await,
            None => std::future::pending().await,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
