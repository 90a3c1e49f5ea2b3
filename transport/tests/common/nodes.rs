//! In-memory logs at both ends of a link, and the nodes around them.
//!
//! A record is `[length u32][LSN u64][bytes that follow from the LSN]`; a position's checksum is a running hash
//! over all records up to it, so both ends agree on a position only if they hold the same bytes.

use super::certs::{Ca, name};
use super::samples;
use bytes::Bytes;
use engine::log::chain::Tip;
use engine::peer::{Ask, Batch, Hello, Jump, Needs, Rebuff, TakesBack, Welcome};
use engine::types::{Checksum, Epoch, GroupId, Incarnation, Lsn, Position, Timestamp};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use transport::link::dial::{self, Dialler, Target};
use transport::link::driver::{Fault, LinkState, Sink, Source, Standing};
use transport::link::frame::Heartbeat;
use transport::link::quic;
use transport::link::sender::Want;
use transport::link::serve::{self, Counts, Grants, Listener, Trust};
use transport::link::session::{self};
use transport::link::tls::{Credentials, NodeName};

/// How long a test waits for something that must come, before it fails. Nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited for too long: {what}"));
}

fn record(lsn: u64, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(12 + len);
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend_from_slice(&lsn.to_le_bytes());
    bytes.extend((0..len).map(|at| (lsn as usize * 31 + at) as u8));
    Bytes::from(bytes)
}

fn position(lsn: u64, checksum: u32) -> Position {
    if lsn == 0 {
        return Position::default();
    }
    Position { epoch: Epoch(2), lsn: Lsn(lsn), checksum: Checksum(checksum) }
}

/// FNV-1a.
fn hash(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed ^ 0x811C_9DC5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A primary's log in memory.
pub struct Origin {
    pub group: String,
    id: GroupId,
    log: Mutex<OriginLog>,
    durable: watch::Sender<Lsn>,
    /// Reads below this LSN say that they need the disk.
    pub cold_below: Mutex<Lsn>,
    /// While set, there is no hello.
    pub retired: AtomicBool,
    /// What the next hello offers.
    pub takes_back: Mutex<TakesBack>,
    /// A replica that knows of jumps and stands before it is taken there.
    pub jump_to: Mutex<Lsn>,
    pub told: Mutex<Told>,
    read_bytes: AtomicUsize,
    /// The most bytes that were read and not acknowledged, at any time.
    pub peak_in_flight: AtomicUsize,
}

#[derive(Default)]
struct OriginLog {
    records: Vec<Bytes>,
    checksums: Vec<u32>,
    ends: Vec<usize>,
}

/// What an [`Origin`] was told.
#[derive(Default)]
pub struct Told {
    pub acked: Position,
    pub rebuffs: Vec<Rebuff>,
    pub states: Vec<LinkState>,
    pub heartbeats: u64,
    pub attached: Vec<Lsn>,
    pub needs: Vec<Option<Needs>>,
    pub asked: Vec<Ask>,
    pub cold_reads: u64,
}

impl Told {
    pub fn ups(&self) -> usize {
        self.states.iter().filter(|state| matches!(state, LinkState::Streaming { .. })).count()
    }

    pub fn downs(&self) -> Vec<&str> {
        let mut downs = Vec::new();
        for state in &self.states {
            if let LinkState::Down { reason } = state {
                downs.push(reason.as_str());
            }
        }
        downs
    }
}

impl Origin {
    pub fn new(group: &str) -> Arc<Origin> {
        let mut id = [b'g'; 16];
        id[..group.len().min(16)].copy_from_slice(&group.as_bytes()[..group.len().min(16)]);
        Arc::new(Origin {
            group: group.to_owned(),
            id: GroupId(id),
            log: Mutex::default(),
            durable: watch::Sender::new(Lsn::ZERO),
            cold_below: Mutex::new(Lsn::ZERO),
            retired: AtomicBool::new(false),
            takes_back: Mutex::default(),
            jump_to: Mutex::default(),
            told: Mutex::default(),
            read_bytes: AtomicUsize::new(0),
            peak_in_flight: AtomicUsize::new(0),
        })
    }

    /// Appends records with that many bytes of payload each, durable at once.
    pub fn write(&self, count: u64, len: usize) {
        let mut log = self.log.lock().expect("no panic inside");
        for _ in 0..count {
            let lsn = log.records.len() as u64 + 1;
            let record = record(lsn, len);
            let checksum = hash(log.checksums.last().copied().unwrap_or_default(), &record);
            let end = log.ends.last().copied().unwrap_or_default() + record.len();
            log.records.push(record);
            log.checksums.push(checksum);
            log.ends.push(end);
        }
        let durable = Lsn(log.records.len() as u64);
        drop(log);
        self.durable.send_replace(durable);
    }

    /// The last position.
    pub fn position(&self) -> Position {
        let log = self.log.lock().expect("no panic inside");
        position(log.records.len() as u64, log.checksums.last().copied().unwrap_or_default())
    }

    /// The position of that record.
    pub fn at(&self, lsn: Lsn) -> Option<Position> {
        let log = self.log.lock().expect("no panic inside");
        match lsn.0 {
            0 => Some(Position::default()),
            lsn => log.checksums.get(lsn as usize - 1).map(|checksum| position(lsn, *checksum)),
        }
    }

    fn take(&self, want: Want) -> Batch {
        let log = self.log.lock().expect("no panic inside");
        let from = want.from.0 as usize - 1;
        let (mut len, mut bytes) = (0, Vec::new());
        for record in &log.records[from..] {
            if !bytes.is_empty() && len + record.len() > want.max_bytes {
                break;
            }
            len += record.len();
            bytes.push(record.clone());
        }
        let last = Lsn(want.from.0 + bytes.len() as u64 - 1);
        let acked = self.told.lock().expect("no panic inside").acked.lsn.0 as usize;
        let acked_end = acked.checked_sub(1).map_or(0, |at| log.ends[at]);
        let in_flight = log.ends[last.0 as usize - 1] - acked_end;
        self.read_bytes.fetch_add(len, Ordering::Relaxed);
        self.peak_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        Batch { first: want.from, last, bytes }
    }

    /// Bytes that were read for sending, in all.
    pub fn read_bytes(&self) -> usize {
        self.read_bytes.load(Ordering::Relaxed)
    }

    pub fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().expect("no panic inside"))
    }

    /// Waits until everything written is acknowledged, with the right checksum.
    pub async fn all_acked(&self) {
        until("everything is acknowledged", || self.told(|told| told.acked) == self.position()).await;
    }
}

impl Source for Origin {
    fn hello(&self) -> Option<Hello> {
        let durable = self.position();
        (!self.retired.load(Ordering::SeqCst)).then(|| Hello {
            name: self.group.clone(),
            group: self.id,
            node: samples::PRIMARY,
            history: samples::history(),
            durable,
            first: Lsn(1),
        })
    }

    fn takes_back(&self) -> TakesBack {
        *self.takes_back.lock().expect("no panic inside")
    }

    fn attach(
        &self,
        _peer: &NodeName,
        welcome: &Welcome,
        needs: Option<&Needs>,
    ) -> Result<Option<Jump>, Fault> {
        if self.at(welcome.durable.lsn) != Some(welcome.durable) {
            return Err(Fault::Diverged(welcome.durable));
        }
        let mut told = self.told.lock().expect("no panic inside");
        told.attached.push(welcome.durable.lsn);
        told.acked = welcome.durable;
        told.needs.push(needs.cloned());
        drop(told);
        let target = *self.jump_to.lock().expect("no panic inside");
        let jumps = needs.is_some() && target > welcome.durable.lsn;
        Ok(jumps.then(|| {
            let Position { epoch, lsn, checksum } = self.at(target).expect("a jump leads into the log");
            Jump { from: welcome.durable, to: Tip { lsn, epoch, incarnation: Incarnation(1), checksum } }
        }))
    }

    fn asked(&self, _peer: &NodeName, ask: Ask) {
        self.told.lock().expect("no panic inside").asked.push(ask);
    }

    fn durable(&self) -> watch::Receiver<Lsn> {
        self.durable.subscribe()
    }

    fn read_cached(&self, want: Want) -> Result<Option<Batch>, Fault> {
        let cold = want.from < *self.cold_below.lock().expect("no panic inside");
        Ok((!cold).then(|| self.take(want)))
    }

    fn read(&self, want: Want) -> Result<Batch, Fault> {
        self.told.lock().expect("no panic inside").cold_reads += 1;
        Ok(self.take(want))
    }

    fn acked(&self, _peer: &NodeName, durable: Position) -> Result<(), Fault> {
        if self.at(durable.lsn) != Some(durable) {
            return Err(Fault::Diverged(durable));
        }
        self.told.lock().expect("no panic inside").acked = durable;
        Ok(())
    }

    fn rebuffed(&self, _peer: &NodeName, rebuff: &Rebuff) {
        if matches!(rebuff, Rebuff::Superseded { .. } | Rebuff::Rival { .. }) {
            self.retired.store(true, Ordering::SeqCst);
        }
        self.told.lock().expect("no panic inside").rebuffs.push(rebuff.clone());
    }

    fn heard(&self, _peer: &NodeName, heartbeat: Heartbeat, _at: Timestamp) {
        assert!(heartbeat.durable <= *self.durable.borrow());
        self.told.lock().expect("no panic inside").heartbeats += 1;
    }

    fn link_changed(&self, _peer: &NodeName, state: &LinkState) {
        self.told.lock().expect("no panic inside").states.push(state.clone());
    }
}

/// A replica's log in memory, for one group.
pub struct Copy {
    inner: Mutex<CopyLog>,
    resumed: Condvar,
    standing: watch::Sender<Standing>,
    /// What a hello is answered with, instead of a welcome.
    pub refuse: Mutex<Option<Rebuff>>,
    /// What is said to be lacking.
    pub needs: Mutex<Needs>,
}

#[derive(Default)]
struct CopyLog {
    received: u64,
    checksum: u32,
    bytes: usize,
    durable_bytes: usize,
    /// The most bytes that were appended and not synced, at any time.
    peak_unsynced: usize,
    /// Appends wait.
    blocked: bool,
    /// An append waits.
    waiting: bool,
    /// Syncs happen only when asked for.
    lazy: bool,
    hellos: u64,
    /// What the last hello said.
    takes_back: Option<TakesBack>,
    jumps: Vec<Jump>,
    /// So many jumps are refused.
    spoilt_jumps: u64,
    heartbeats: u64,
    broken: Option<String>,
    states: Vec<LinkState>,
}

impl Copy {
    pub fn new() -> Arc<Copy> {
        Arc::new(Copy {
            inner: Mutex::default(),
            resumed: Condvar::new(),
            standing: watch::Sender::default(),
            refuse: Mutex::default(),
            needs: Mutex::default(),
        })
    }

    fn log(&self) -> std::sync::MutexGuard<'_, CopyLog> {
        self.inner.lock().expect("no panic inside")
    }

    /// As above, once appends need not wait.
    fn unblocked(&self) -> std::sync::MutexGuard<'_, CopyLog> {
        let mut log = self.log();
        while log.blocked {
            log.waiting = true;
            let (held, waited) = self.resumed.wait_timeout(log, 2 * PATIENCE).expect("no panic inside");
            // A test that failed must be able to end.
            assert!(!waited.timed_out(), "an append was blocked and never released");
            log = held;
        }
        log.waiting = false;
        log
    }

    /// From now on appends and jumps wait, or no longer.
    pub fn block(&self, blocked: bool) {
        self.log().blocked = blocked;
        self.resumed.notify_all();
    }

    /// Whether an append waits because of [`Copy::block`].
    pub fn is_waiting(&self) -> bool {
        self.log().waiting
    }

    /// From now on nothing is synced but by [`Copy::sync`], or all at once.
    pub fn lazy(&self, lazy: bool) {
        self.log().lazy = lazy;
        if !lazy {
            self.sync();
        }
    }

    /// What was appended is durable.
    pub fn sync(&self) {
        let mut log = self.log();
        let durable = position(log.received, log.checksum);
        log.durable_bytes = log.bytes;
        self.standing.send_modify(|standing| standing.durable = durable);
    }

    /// No more records, for this reason; or again.
    pub fn set_refusing(&self, rebuff: Option<Rebuff>) {
        *self.refuse.lock().expect("no panic inside") = rebuff.clone();
        self.standing.send_modify(|standing| standing.refusing = rebuff);
    }

    /// What this node wants of its primary, from now on.
    pub fn set_asks(&self, asks: &[(u64, Ask)]) {
        self.standing.send_modify(|standing| standing.asks = Arc::from(asks));
    }

    /// What the last primary said of old primaries.
    pub fn takes_back(&self) -> Option<TakesBack> {
        self.log().takes_back
    }

    /// The next jumps are refused.
    pub fn spoil_jumps(&self, count: u64) {
        self.log().spoilt_jumps = count;
    }

    pub fn jumps(&self) -> Vec<Jump> {
        self.log().jumps.clone()
    }

    pub fn received(&self) -> u64 {
        self.log().received
    }

    pub fn received_bytes(&self) -> usize {
        self.log().bytes
    }

    pub fn hellos(&self) -> u64 {
        self.log().hellos
    }

    pub fn heartbeats(&self) -> u64 {
        self.log().heartbeats
    }

    pub fn peak_unsynced(&self) -> usize {
        self.log().peak_unsynced
    }

    pub fn states(&self) -> Vec<LinkState> {
        self.log().states.clone()
    }

    /// The replica's bytes are those of the primary, each once, in order.
    pub fn invariant_equal(&self, origin: &Origin) {
        let log = self.log();
        assert_eq!(log.broken, None);
        assert_eq!(position(log.received, log.checksum), origin.position());
    }

    fn hello(&self, hello: &Hello, takes_back: Option<TakesBack>) -> Result<(Needs, Welcome), Rebuff> {
        let mut log = self.log();
        log.hellos += 1;
        log.takes_back = takes_back;
        drop(log);
        if let Some(rebuff) = self.refuse.lock().expect("no panic inside").clone() {
            return Err(rebuff);
        }
        assert_eq!(hello.history, samples::history());
        self.sync();
        let durable = self.standing.borrow().durable;
        let needs = self.needs.lock().expect("no panic inside").clone();
        Ok((needs, Welcome { node: samples::REPLICA, durable, horizon: Lsn(1) }))
    }

    fn jump(&self, jump: Jump) -> Result<(), Rebuff> {
        let mut log = self.unblocked();
        if log.spoilt_jumps > 0 {
            log.spoilt_jumps -= 1;
            return Err(Rebuff::NoSpace);
        }
        if position(log.received, log.checksum) != jump.from {
            let stands = log.received;
            log.broken.get_or_insert(format!("{jump:?} at LSN {stands}"));
            return Err(Rebuff::Failed);
        }
        log.jumps.push(jump);
        log.received = jump.to.lsn.0;
        log.checksum = jump.to.checksum.0;
        let lazy = log.lazy;
        drop(log);
        if !lazy {
            self.sync();
        }
        Ok(())
    }

    fn append(&self, batch: Batch) -> Result<(), Rebuff> {
        let mut log = self.unblocked();
        let bytes = batch.bytes.concat();
        let mut rest = &bytes[..];
        for lsn in batch.first.0..=batch.last.0 {
            if lsn != log.received + 1 {
                let behind = log.received;
                log.broken.get_or_insert(format!("LSN {lsn} behind {behind}"));
                return Err(Rebuff::Failed);
            }
            let len = rest.first_chunk().map_or(usize::MAX, |len| u32::from_le_bytes(*len) as usize);
            let Some((record, behind)) = rest.split_at_checked(len.saturating_add(12)) else {
                return Err(Rebuff::Failed);
            };
            if record != super::nodes::record(lsn, len) {
                log.broken.get_or_insert(format!("LSN {lsn} has other bytes"));
                return Err(Rebuff::Failed);
            }
            log.received = lsn;
            log.checksum = hash(log.checksum, record);
            rest = behind;
        }
        if !rest.is_empty() {
            log.broken.get_or_insert(format!("bytes behind LSN {}", batch.last));
        }
        log.bytes += bytes.len();
        log.peak_unsynced = log.peak_unsynced.max(log.bytes - log.durable_bytes);
        let lazy = log.lazy;
        drop(log);
        if !lazy {
            self.sync();
        }
        Ok(())
    }
}

/// The replica's logs, by group.
#[derive(Default)]
pub struct Copies(Mutex<Vec<(GroupId, Arc<Copy>)>>);

impl Copies {
    pub fn of(&self, group: &GroupId) -> Arc<Copy> {
        let all = self.0.lock().expect("no panic inside");
        all.iter().find(|(id, _)| id == group).map(|(_, copy)| copy.clone()).expect("a known group")
    }

    fn known(&self, group: &GroupId) -> bool {
        self.0.lock().expect("no panic inside").iter().any(|(id, _)| id == group)
    }
}

impl Sink for Copies {
    fn hello(
        &self,
        _peer: &NodeName,
        hello: &Hello,
        takes_back: Option<TakesBack>,
    ) -> Result<(Needs, Welcome), Rebuff> {
        if !self.known(&hello.group) {
            return Err(Rebuff::WrongGroup);
        }
        self.of(&hello.group).hello(hello, takes_back)
    }

    fn jump(&self, group: &GroupId, jump: Jump) -> Result<(), Rebuff> {
        self.of(group).jump(jump)
    }

    fn append(&self, group: &GroupId, batch: Batch) -> Result<(), Rebuff> {
        self.of(group).append(batch)
    }

    fn standing(&self, group: &GroupId) -> watch::Receiver<Standing> {
        self.of(group).standing.subscribe()
    }

    fn heard(&self, group: &GroupId, _heartbeat: Heartbeat, _at: Timestamp) {
        self.of(group).log().heartbeats += 1;
    }

    fn link_changed(&self, group: &GroupId, _peer: &NodeName, state: &LinkState) {
        self.of(group).log().states.push(state.clone());
    }
}

/// Short times, small retries: failures are noticed soon.
pub fn quick_session() -> session::Config {
    session::Config { heartbeat_ms: 100, silence_ms: 1_500, opening_ms: 3_000, ..session::Config::default() }
}

pub fn quick_quic() -> quic::Config {
    quic::Config { idle_timeout_ms: 4_000, keep_alive_ms: 500, ..quic::Config::default() }
}

pub fn quick_dial() -> dial::Config {
    dial::Config {
        session: quick_session(),
        quic: quick_quic(),
        connect_ms: 3_000,
        min_retry_ms: 20,
        max_retry_ms: 200,
    }
}

pub fn quick_serve() -> serve::Config {
    serve::Config {
        session: quick_session(),
        quic: quick_quic(),
        handshake_ms: 3_000,
        linger_ms: 1_000,
        ..serve::Config::default()
    }
}

/// As the quick ones, but no session ends because this machine is busy: for tests that count sessions.
pub fn patient_dial() -> dial::Config {
    dial::Config { session: patient_session(), quic: patient_quic(), connect_ms: 30_000, ..quick_dial() }
}

/// See [`patient_dial`].
pub fn patient_serve() -> serve::Config {
    serve::Config { session: patient_session(), quic: patient_quic(), ..quick_serve() }
}

fn patient_session() -> session::Config {
    session::Config { silence_ms: 60_000, opening_ms: 30_000, ..quick_session() }
}

fn patient_quic() -> quic::Config {
    quic::Config { idle_timeout_ms: 60_000, ..quick_quic() }
}

/// A replica that listens on loopback.
pub struct Replica {
    pub address: SocketAddr,
    pub trust: watch::Sender<Arc<Trust>>,
    pub copies: Arc<Copies>,
    pub counts: Box<dyn Fn() -> Counts + Send + Sync>,
    task: JoinHandle<()>,
    endpoint: quinn::Endpoint,
}

impl Replica {
    /// Named `west`, for the groups of `origins`, which `east` may send.
    pub fn start(ca: &Ca, origins: &[&Arc<Origin>], config: serve::Config) -> Replica {
        let grants =
            origins.iter().fold(Grants::none(), |grants, origin| grants.and(&name("east"), &origin.group));
        let trust = watch::Sender::new(Arc::new(Trust { credentials: ca.node("west"), grants }));
        let copies = Arc::new(Copies::default());
        copies.0.lock().expect("new").extend(origins.iter().map(|origin| (origin.id, Copy::new())));
        Replica::listen(trust, copies, config, "127.0.0.1:0".parse().expect("an address"))
    }

    /// Another process with the same logs and the same identity, at that address.
    pub fn restart_at(&self, config: serve::Config, address: SocketAddr) -> Replica {
        let trust = watch::Sender::new(self.trust.borrow().clone());
        Replica::listen(trust, self.copies.clone(), config, address)
    }

    fn listen(
        trust: watch::Sender<Arc<Trust>>,
        copies: Arc<Copies>,
        config: serve::Config,
        address: SocketAddr,
    ) -> Replica {
        let endpoint = quic::bind(address, &config.quic).expect("a socket");
        let listener = Listener::new(endpoint.clone(), copies.clone(), trust.subscribe(), config)
            .expect("good credentials");
        let counts = Box::new(listener.counts());
        let address = endpoint.local_addr().expect("bound");
        Replica { address, trust, copies, counts, task: tokio::spawn(listener.run()), endpoint }
    }

    /// The log of that group.
    pub fn copy(&self, origin: &Origin) -> Arc<Copy> {
        self.copies.of(&origin.id)
    }

    /// Changes identity and rights.
    pub fn reload(&self, credentials: Arc<Credentials>, grants: Grants) {
        self.trust.send_replace(Arc::new(Trust { credentials, grants }));
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
        self.endpoint.close(0u32.into(), b"");
    }
}

/// A running link of the node `east` (or whoever the credentials say) to `west`.
pub struct Link {
    pub credentials: watch::Sender<Arc<Credentials>>,
    task: JoinHandle<()>,
}

impl Link {
    pub fn dial(
        credentials: Arc<Credentials>,
        origin: &Arc<Origin>,
        to: SocketAddr,
        config: dial::Config,
    ) -> Link {
        Link::dial_node(credentials, origin, to, "west", config)
    }

    pub fn dial_node(
        credentials: Arc<Credentials>,
        origin: &Arc<Origin>,
        to: SocketAddr,
        node: &str,
        config: dial::Config,
    ) -> Link {
        let credentials = watch::Sender::new(credentials);
        let dialler = Dialler {
            endpoint: quic::bind("127.0.0.1:0".parse().expect("an address"), &config.quic).expect("a socket"),
            credentials: credentials.subscribe(),
            source: origin.clone(),
            target: Target { node: name(node), address: to.to_string() },
            config,
            seed: 1,
        };
        let task = tokio::spawn(async move { match dialler.run().await {} });
        Link { credentials, task }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
