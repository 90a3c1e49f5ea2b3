//! A group of this node: the engine's runtime, and what the link asks of it in both directions.

use super::paces::Paces;
use super::seeds::Seeds;
use crate::config::{self, Ack, OnFull, Role};
use crate::control::api::{At, LinkState as Shown, Moment};
use crate::exit::Failure;
use crate::time;
use bytes::Bytes;
use engine::io::Storage;
use engine::log::ship::{ReadError, Stretch};
use engine::node::config::{
    AckPolicy, Begins, Config, Limits, NewVolume, OnFull as EngineOnFull, Retention, Start, Verification,
};
use engine::node::keep::Keep;
use engine::node::primary::AttachError;
use engine::node::report::Report;
use engine::node::{Node, open};
use engine::os::clock;
use engine::os::runtime;
use engine::peer::{Ask, Batch, Hello, Jump, Needs, Rebuff, TakesBack, Welcome};
use engine::seeds::Held;
use engine::state;
use engine::types::{Epoch, GroupId, Lsn, NodeId, Position, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use transport::link::driver::{Fault, LinkState, Sink, Source, Standing};
use transport::link::frame::Heartbeat;
use transport::link::sender::Want;
use transport::link::tls::NodeName;

/// An acknowledged position is compared with the log at most so often: it costs a look at a file.
const COMPARE_EVERY_MS: u64 = 1_000;

/// A link, for people.
#[derive(Clone, Debug)]
pub(super) struct LinkInfo {
    pub(super) state: Shown,
    pub(super) since: Timestamp,
    /// The last that was measured on it.
    pub(super) rtt: Option<Duration>,
    pub(super) reason: Option<String>,
}

/// Links in one direction, by peer.
#[derive(Default)]
pub(super) struct Links(Mutex<BTreeMap<String, LinkInfo>>);

impl Links {
    /// What is known of the link with a peer.
    pub(super) fn of(&self, peer: &str) -> Option<LinkInfo> {
        self.lock().get(peer).cloned()
    }

    /// The peer that is connected, or else the one that was last.
    pub(super) fn newest(&self) -> Option<(String, LinkInfo)> {
        let links = self.lock();
        let newest = links.iter().max_by_key(|(_, link)| (link.state == Shown::Connected, link.since));
        newest.map(|(peer, link)| (peer.clone(), link.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LinkInfo>> {
        self.0.lock().expect("no holder of the lock panics")
    }

    fn refused(&self, peer: &NodeName, rebuff: &Rebuff) {
        let info = LinkInfo {
            state: Shown::Refused,
            since: time::now(),
            rtt: None,
            reason: Some(rebuff.to_string()),
        };
        self.lock().insert(peer.as_str().to_owned(), info);
    }

    fn note(&self, peer: &NodeName, state: &LinkState) {
        let mut links = self.lock();
        let known = links.get(peer.as_str());
        let (shown, reason) = match state {
            LinkState::Idle => (Shown::Connecting, Some("not dialled".to_owned())),
            // Why the last attempt failed stays to be seen while it is tried again.
            LinkState::Connecting => (Shown::Connecting, known.and_then(|known| known.reason.clone())),
            LinkState::Streaming { .. } => (Shown::Connected, None),
            LinkState::Down { reason } => (Shown::Connecting, Some(reason.clone())),
        };
        let same = known.filter(|known| known.state == shown);
        let since = same.map_or_else(time::now, |known| known.since);
        let rtt = same.and_then(|known| known.rtt);
        links.insert(peer.as_str().to_owned(), LinkInfo { state: shown, since, rtt, reason });
    }

    fn measured(&self, peer: &NodeName, rtt: Duration) {
        if let Some(info) = self.lock().get_mut(peer.as_str())
            && info.state == Shown::Connected
        {
            info.rtt = Some(rtt);
        }
    }
}

/// One group.
pub(super) struct Group {
    pub(super) config: config::Group,
    pub(super) engine: runtime::Group,
    /// NBD connections, by volume.
    pub(super) connections: Mutex<BTreeMap<String, Arc<AtomicU32>>>,
    /// The links to replicas, by peer.
    pub(super) links: Links,
    /// The links from primaries, by peer.
    pub(super) upstream: Links,
    /// Copies of its volumes that came by other means.
    pub(super) seeds: Arc<Seeds>,
    /// The highest position handed to a link.
    pub(super) shipped: AtomicU64,
    told: Arc<Told>,
    compared_ms: AtomicU64,
}

/// What the link watches. Told by the engine after every change.
struct Told {
    /// How fast replicas in a span are caught up.
    paces: Paces,
    /// While this node calls its replicas: as whom, and its durable LSN. Dropped when that changes, which ends the
    /// sessions.
    durable: Mutex<Option<(Epoch, watch::Sender<Lsn>)>>,
    standing: watch::Sender<Standing>,
}

impl Group {
    /// Bytes a second that were copied to a replica in a span lately, with `left` yet to be copied.
    pub(super) fn pace_of(&self, replica: &str, left: u64) -> Option<u64> {
        self.told.paces.of(replica, Instant::now(), left)
    }
}

impl Told {
    fn update(&self, node: &Node) {
        let mut durable = self.durable.lock().expect("no holder of the lock panics");
        *durable = node.calls_as().map(|epoch| {
            let lsn = node.durable().lsn;
            let known = durable.take().filter(|(known, _)| *known == epoch);
            let (_, sender) = known.unwrap_or_else(|| (epoch, watch::channel(lsn).0));
            sender.send_if_modified(|known| std::mem::replace(known, lsn) != lsn);
            (epoch, sender)
        });
        drop(durable);
        self.paces.note(Instant::now(), node.left_to_copy());
        let standing =
            Standing { durable: node.acknowledgeable(), refusing: refusing(node), asks: node.asks().into() };
        self.standing.send_if_modified(|known| {
            let changed = *known != standing;
            *known = standing;
            changed
        });
    }
}

fn refusing(node: &Node) -> Option<Rebuff> {
    match (node.failed(), node.role()) {
        (Some(_), _) => Some(Rebuff::Failed),
        (None, state::Role::Replica) => None,
        (None, _) => Some(Rebuff::Superseded { history: node.history().to_vec() }),
    }
}

impl Group {
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        data_dir: &Path,
        node: NodeId,
        config: &config::Group,
    ) -> Result<Group, Failure> {
        let told = Arc::new(Told {
            paces: Paces::default(),
            durable: Mutex::new(None),
            standing: watch::channel(Standing::default()).0,
        });
        let observer = told.clone();
        let opened = runtime::Group::open(
            storage,
            engine_config(node, config)?,
            &data_dir.join("groups").join(&config.name).join("catalog"),
            Box::new(move |node| observer.update(node)),
        );
        let (engine, report) = opened.map_err(|error| {
            let what = format_args!("group {}: {error}", config.name).to_string();
            match error {
                open::Error::Log(_) => Failure::corrupt(what),
                open::Error::State(engine::state::Error::Damaged { .. }) => Failure::corrupt(what),
                open::Error::BackingNotEmpty { .. }
                | open::Error::BackingTooSmall { .. }
                | open::Error::BackingMissing { .. }
                | open::Error::NothingThere { .. }
                | open::Error::BadVolume { .. }
                | open::Error::StateMissing { .. }
                | open::Error::Locked { .. } => Failure::refused(what),
                open::Error::BadLimits { .. } => Failure::usage(what),
                open::Error::Io { .. }
                | open::Error::State(_)
                | open::Error::Append(_)
                | open::Error::Busy
                | open::Error::NotNow { .. } => Failure::failed(what),
            }
        })?;
        tracing::info!(group = config.name, records = report.records, "opened");
        let group = Group {
            config: config.clone(),
            engine,
            connections: Mutex::default(),
            links: Links::default(),
            upstream: Links::default(),
            seeds: Arc::new(Seeds::new(config)),
            shipped: AtomicU64::new(0),
            told,
            compared_ms: AtomicU64::new(0),
        };
        group.engine.with(|_, _| ());
        Ok(group)
    }

    pub(super) fn report(&self) -> Report {
        self.engine.peek(|node| node.report(clock::now()))
    }

    /// A position with its time.
    pub(super) fn at(&self, lsn: Lsn) -> At {
        let time = self
            .engine
            .peek(|node| node.kept_mark(lsn).map(|mark| mark.time).or_else(|| node.log().time_of(lsn)));
        At { lsn, time: Moment(time.unwrap_or_default()) }
    }
}

fn engine_config(node: NodeId, group: &config::Group) -> Result<Config, Failure> {
    let start = match group.role {
        Role::Primary => Start::Primary {
            group: GroupId(super::random()?),
            volumes: group
                .volumes
                .iter()
                .map(|volume| NewVolume {
                    name: volume.name.clone(),
                    size: volume.size.map_or(0, |size| size.0),
                    begins: if volume.in_place { Begins::InPlace } else { Begins::Empty },
                })
                .collect(),
        },
        Role::Replica => Start::Replica,
    };
    let backings = group.volumes.iter().filter_map(|volume| {
        let path = volume.backing.as_ref()?;
        Some((volume.name.clone(), path.to_string_lossy().into_owned()))
    });
    let defaults = Limits::default();
    Ok(Config {
        name: group.name.clone(),
        node,
        dir: format!("groups/{}", group.name),
        start,
        backings: backings.collect(),
        replicas: group.replicas.iter().map(|replica| replica.name.clone()).collect(),
        ack: match group.ack {
            Ack::Local => AckPolicy::Local,
            Ack::Replica => AckPolicy::Replica,
        },
        on_full: match group.on_full {
            OnFull::Track => EngineOnFull::Track,
            OnFull::Stall => EngineOnFull::Stall,
        },
        retention: Retention {
            bytes: group.retention.bytes.0,
            age_ns: u64::try_from(group.retention.time.as_nanos()).unwrap_or(u64::MAX),
            keep: Keep {
                minutes: group.keep.minutes,
                hours: group.keep.hours,
                days: group.keep.days,
                named: group.keep.named,
                bytes: group.keep.bytes.0,
            },
        },
        limits: Limits {
            log: engine::log::Limits {
                segment_bytes: group.segment.0,
                log_bytes: group.log_limit.0,
                ..engine::log::Limits::default()
            },
            overlay_bytes: group.overlay_limit.0,
            ship_delay_ms: group.ship_delay.as_millis() as u64,
            marks_ms: group.marks.map(|every| every.as_millis() as u64),
            ..defaults
        },
        verify: Verification {
            every_ms: group.verify.every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            bytes_s: group.verify.rate.0,
        },
    })
}

fn unreadable(error: &dyn std::fmt::Display) -> Fault {
    Fault::Log(std::io::Error::other(error.to_string()))
}

impl Source for Group {
    fn hello(&self) -> Option<Hello> {
        self.engine.peek(Node::hello)
    }

    fn takes_back(&self) -> TakesBack {
        self.engine.peek(Node::takes_back)
    }

    fn attach(
        &self,
        peer: &NodeName,
        welcome: &Welcome,
        needs: Option<&Needs>,
    ) -> Result<Option<Jump>, Fault> {
        let attached = self.engine.with(|node, now| node.attach(now, peer.as_str(), welcome, needs));
        attached.map_err(|error| match error {
            AttachError::NotSending(_) => Fault::Retired,
            AttachError::TooFarBehind { needed, .. } => Fault::Trimmed(needed),
            AttachError::Diverged(_) => Fault::Diverged(welcome.durable),
            error @ (AttachError::Unknown(_)
            | AttachError::Ahead { .. }
            | AttachError::NeedsCopy(_)
            | AttachError::NotYet
            | AttachError::Append(_)
            | AttachError::Unreadable(_)) => unreadable(&error),
        })
    }

    fn asked(&self, peer: &NodeName, ask: Ask) {
        self.engine.with(|node, now| node.asked(now, peer.as_str(), ask));
    }

    fn durable(&self) -> watch::Receiver<Lsn> {
        let durable = self.told.durable.lock().expect("no holder of the lock panics");
        match &*durable {
            Some((_, sender)) => sender.subscribe(),
            // No longer primary: a channel whose sending half is gone ends the session.
            None => watch::channel(Lsn::ZERO).1,
        }
    }

    fn pace(&self) -> Duration {
        match self.config.ack {
            Ack::Local => self.config.ship_delay,
            Ack::Replica => Duration::ZERO,
        }
    }

    fn read_cached(&self, want: Want) -> Result<Option<Batch>, Fault> {
        match self.engine.peek(|node| node.records_from(want.from, want.max_bytes)) {
            Stretch::Ready(batch) => {
                self.shipped.fetch_max(batch.last.0, Ordering::Relaxed);
                Ok(Some(batch))
            }
            Stretch::OnDisk(_) => Ok(None),
            Stretch::UpToDate => Err(Fault::Retired),
            Stretch::Gone => Err(Fault::Trimmed(want.from)),
        }
    }

    fn read(&self, want: Want) -> Result<Batch, Fault> {
        match self.engine.peek(|node| node.records_from(want.from, want.max_bytes)) {
            Stretch::Ready(batch) => Ok(batch),
            Stretch::OnDisk(read) => read.run().map_err(|error| {
                if let ReadError::Damaged { lsn, .. } = error {
                    self.engine.with(|node, _| node.log_unreadable(lsn));
                }
                unreadable(&error)
            }),
            Stretch::UpToDate => Err(Fault::Retired),
            Stretch::Gone => Err(Fault::Trimmed(want.from)),
        }
        .inspect(|batch| {
            self.shipped.fetch_max(batch.last.0, Ordering::Relaxed);
        })
    }

    fn acked(&self, peer: &NodeName, durable: Position) -> Result<(), Fault> {
        let now_ms = clock::now().mono.0 / 1_000_000;
        let compared = self.compared_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(compared) >= COMPARE_EVERY_MS {
            self.compared_ms.store(now_ms, Ordering::Relaxed);
            let here = self.engine.peek(|node| node.log().tip_at(durable.lsn));
            match here.map_err(|error| unreadable(&error))? {
                Some((tip, ..)) if tip.position() != durable => return Err(Fault::Diverged(durable)),
                _ => {}
            }
        }
        self.engine.with(|node, now| node.acknowledged(now, peer.as_str(), durable));
        Ok(())
    }

    fn rebuffed(&self, peer: &NodeName, rebuff: &Rebuff) {
        tracing::warn!(group = self.config.name, %peer, %rebuff, "refused");
        self.engine.with(|node, now| node.rebuffed(now, peer.as_str(), rebuff));
        self.links.refused(peer, rebuff);
    }

    fn measured(&self, peer: &NodeName, rtt: Duration) {
        self.links.measured(peer, rtt);
    }

    fn link_changed(&self, peer: &NodeName, state: &LinkState) {
        self.links.note(peer, state);
        let connected = matches!(state, LinkState::Streaming { .. });
        self.engine.with(|node, _| node.link_changed(peer.as_str(), connected));
    }
}

/// The volumes of a node to which a sync span brings copies.
fn copying(node: &Node) -> Option<BTreeMap<VolumeId, String>> {
    node.is_coarse().then(|| node.volume_specs().map(|spec| (spec.id, spec.name.clone())).collect())
}

/// All groups, as the listener sees them.
pub(super) struct Sinks {
    groups: Vec<Arc<Group>>,
}

impl Sinks {
    pub(super) fn new(groups: Vec<Arc<Group>>) -> Sinks {
        Sinks { groups }
    }

    fn by_id(&self, id: &GroupId) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.engine.peek(|node| node.is_born() && node.state().group == *id))
    }
}

impl Sink for Sinks {
    fn hello(
        &self,
        _peer: &NodeName,
        hello: &Hello,
        takes_back: Option<TakesBack>,
    ) -> Result<(Needs, Welcome), Rebuff> {
        let group =
            self.groups.iter().find(|group| group.config.name == hello.name).ok_or(Rebuff::NotAllowed)?;
        group.engine.at_rest(|node, now| {
            (!node.is_syncing()).then(|| {
                let takes_back = takes_back.unwrap_or_default();
                node.accept(now, hello, takes_back).map(|welcome| (node.needs(), welcome))
            })
        })
    }

    fn jump(&self, group: &GroupId, jump: Jump) -> Result<(), Rebuff> {
        let group = self.by_id(group).ok_or(Rebuff::NotAllowed)?;
        group.engine.at_rest(|node, now| (!node.is_syncing()).then(|| node.jump(now, &jump)))
    }

    fn append(&self, group: &GroupId, batch: Batch) -> Result<(), Rebuff> {
        let id = group;
        let group = self.by_id(id).ok_or(Rebuff::NotAllowed)?;
        if !group.seeds.any() {
            return group.engine.with(|node, now| node.append(now, batch));
        }
        let copied = engine::seeds::copied_to(*id, &batch);
        let (taken, copying) = group.engine.with(|node, now| (node.append(now, batch), copying(node)));
        group.seeds.appended(copied, copying);
        taken
    }

    fn seeds(&self, group: &GroupId) -> Option<mpsc::Receiver<Vec<Held>>> {
        let group = self.by_id(group)?;
        let told = group.seeds.tell();
        if group.seeds.any() {
            group.seeds.appended(None, group.engine.peek(copying));
        }
        Some(told)
    }

    fn read_seed(&self, group: &GroupId, held: &Held) -> std::io::Result<Bytes> {
        let group = self.by_id(group).ok_or(std::io::ErrorKind::NotFound)?;
        group.seeds.read(held)
    }

    fn standing(&self, group: &GroupId) -> watch::Receiver<Standing> {
        match self.by_id(group) {
            Some(group) => group.told.standing.subscribe(),
            None => watch::channel(Standing::default()).1,
        }
    }

    fn heard(&self, group: &GroupId, heartbeat: Heartbeat, _at: Timestamp) {
        if let Some(group) = self.by_id(group) {
            group.engine.with(|node, now| node.heard(now, heartbeat.durable));
        }
    }

    fn measured(&self, group: &GroupId, peer: &NodeName, rtt: Duration) {
        if let Some(group) = self.by_id(group) {
            group.upstream.measured(peer, rtt);
        }
    }

    fn link_changed(&self, group: &GroupId, peer: &NodeName, state: &LinkState) {
        if let Some(group) = self.by_id(group) {
            group.upstream.note(peer, state);
        }
    }
}
