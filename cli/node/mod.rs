//! The seam between the binary and the engine: a node's groups, joined to the link, the block front end and the
//! control API. No decision about data is made here; the engine makes them all.
//!
//! | module | what it is |
//! |---|---|
//! | [`groups`] | opening groups; what the link asks of one (source and sink) |
//! | [`volumes`] | volumes and points as NBD exports |
//! | [`changes`] | what guests write to a point |
//! | [`mounts`] | points that are being served |
//! | [`retention`] | how far back every write is a point |
//! | [`show`] | a node's reports in the words of the control API |
//! | [`logs`] | `log inspect`, `log verify`, `log export-trace` |

mod branches;
mod changes;
mod failover;
mod groups;
mod logs;
mod marks;
mod mounts;
mod paces;
mod protect;
mod resize;
mod retention;
mod seeds;
mod show;
mod volumes;

pub(crate) use logs::{export_trace, inspect, verify};

use crate::config::{self, Config, Tls};
use crate::control::Operator;
use crate::control::api::{
    Branch, Committed, Endpoint, Failover, Fault, FaultCode, LinkState, Loss, Mark, MarkRequest, Mount,
    MountId, MountRequest, OnMismatch, Plan, Points, PointsRequest, Promotion, Protected, Record,
    Reprotected, Resize, Resized, Resync, Round, Seeded, Status, Verify,
};
use crate::daemon;
use crate::exit::Failure;
use crate::point::{BranchId, Point};
use crate::time;
use engine::node::handover::PATIENCE_MS;
use engine::node::promote::CommitError;
use engine::node::verify::VerifyError;
use engine::os::disk::Disk;
use engine::state;
use engine::types::{Lsn, NodeId, Timestamp};
use groups::{Group, Sinks};
use mounts::Mounts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use transport::link::dial::{self, Dialler, Target};
use transport::link::quic;
use transport::link::serve::{self, Grants, Listener, Trust};
use transport::link::session;
use transport::link::tls::{Credentials, NodeName};
use transport::nbd;
use volumes::Volumes;

/// How much longer than the primary lets writes wait an answer to a planned failover may take: the primary calls again.
const HANDOVER_GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether this node has become the primary.
const HANDOVER_LOOK: Duration = Duration::from_millis(10);
/// How long the link's tasks have to end.
const LINK_STOP: Duration = Duration::from_secs(2);

/// A running node.
pub(crate) struct Node {
    config_path: PathBuf,
    name: String,
    id: NodeId,
    since: Timestamp,
    listen: Option<SocketAddr>,
    nbd_at: Vec<Endpoint>,
    groups: BTreeMap<String, Arc<Group>>,
    /// Groups that could not be opened, and why.
    closed: BTreeMap<String, String>,
    mounts: Mounts,
    server: nbd::Server,
    link: std::sync::Mutex<Option<tokio::runtime::Runtime>>,
}

/// Starts a node.
pub(crate) fn start(config: &Config, credentials: Credentials) -> Result<Node, Failure> {
    let id = node_id(&config.node.data_dir)?;
    let disk = Disk::new(&config.node.data_dir).map_err(|error| {
        Failure::failed(format_args!("the data directory {}: {error}", config.node.data_dir.display()))
    })?;
    let storage: Arc<dyn engine::io::Storage> = Arc::new(disk);
    let mut groups = BTreeMap::new();
    let mut closed = BTreeMap::new();
    for group in &config.groups {
        match Group::open(storage.clone(), &config.node.data_dir, id, group) {
            Ok(opened) => {
                groups.insert(group.name.clone(), Arc::new(opened));
            }
            // One group's disk must not keep the others from being served; but if there is no other, nobody is
            // served by a daemon that stays.
            Err(failure) if config.groups.len() == 1 => return Err(failure),
            Err(failure) => {
                tracing::warn!(group = group.name, reason = failure.what, "the group could not be opened");
                closed.insert(group.name.clone(), failure.what);
            }
        }
    }
    let (nbd, nbd_at) = serve_volumes(config, &groups)?;
    let data_dir = &config.node.data_dir;
    let mounts = Mounts::new(data_dir).map_err(|error| {
        Failure::failed(format_args!("folders for mounts in {} cannot be made: {error}", data_dir.display()))
    })?;
    let (link, listen) = start_link(config, Arc::new(credentials), &groups)?;
    Ok(Node {
        config_path: std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone()),
        name: config.node.name.clone(),
        id,
        since: time::now(),
        listen,
        nbd_at,
        groups,
        closed,
        mounts,
        server: nbd,
        link: std::sync::Mutex::new(Some(link)),
    })
}

/// This node's identity: made once, with its data directory.
fn node_id(data_dir: &Path) -> Result<NodeId, Failure> {
    let path = data_dir.join("node-id");
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::failed(format_args!("the node's identity {}: {error}", path.display()))
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let digits = text.trim();
            let parsed = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32);
            let number = parsed.ok_or_else(|| cannot(&"it is not 32 hexadecimal digits"))?;
            Ok(NodeId(number.to_be_bytes()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = NodeId(random()?);
            // Made whole under another name, so that a cut leaves either none or this one.
            let fresh = data_dir.join("node-id.new");
            let made = std::fs::write(&fresh, format!("{id}\n"))
                .and_then(|()| std::fs::File::open(&fresh)?.sync_all())
                .and_then(|()| std::fs::rename(&fresh, &path))
                .and_then(|()| std::fs::File::open(data_dir)?.sync_all());
            made.map_err(|error| cannot(&error))?;
            Ok(id)
        }
        Err(error) => Err(cannot(&error)),
    }
}

/// Random bytes for an identity.
fn random() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(16) => Ok(bytes),
        other => Err(Failure::failed(format_args!("the system gives no random numbers: {other:?}"))),
    }
}

fn serve_volumes(
    config: &Config,
    groups: &BTreeMap<String, Arc<Group>>,
) -> Result<(nbd::Server, Vec<Endpoint>), Failure> {
    let front = &config.nbd;
    let limits = nbd::Config { max_connections: front.max_connections as usize, ..nbd::Config::default() };
    let volumes = Volumes::new(groups.values().cloned().collect());
    let server = nbd::Server::new(Arc::new(volumes), limits);
    let cannot = |place: &dyn std::fmt::Display, error: std::io::Error| {
        Failure::failed(format_args!("volumes cannot be served at {place}: {error}"))
    };
    if let Some(dir) = front.socket.parent() {
        std::fs::create_dir_all(dir).map_err(|error| cannot(&front.socket.display(), error))?;
    }
    server.bind_unix(&front.socket, nbd::Tls::Off).map_err(|error| cannot(&front.socket.display(), error))?;
    let mut at = vec![Endpoint::Unix(front.socket.clone())];
    if let Some(address) = front.tcp {
        let bound =
            server.bind_tcp(address, nbd_tls(&front.tls)?).map_err(|error| cannot(&address, error))?;
        at.push(Endpoint::Tcp(bound));
    }
    Ok((server, at))
}

fn nbd_tls(tls: &Tls) -> Result<nbd::Tls, Failure> {
    Ok(match tls {
        Tls::Off => nbd::Tls::Off,
        Tls::Offered(files) => nbd::Tls::Offered(front_end_config(files)?),
        Tls::Required(files) => nbd::Tls::Required(front_end_config(files)?),
    })
}

/// TLS of the block front end: the server shows its certificate, and a client must show one of the same CA.
fn front_end_config(files: &config::Certificates) -> Result<Arc<rustls::ServerConfig>, Failure> {
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::failed(format_args!("the NBD certificates cannot be used: {error}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&files.ca).map_err(|error| cannot(&error))? {
        roots.add(certificate.map_err(|error| cannot(&error))?).map_err(|error| cannot(&error))?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| cannot(&error))?;
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| cannot(&error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| cannot(&error))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(clients).with_single_cert(chain, key))
        .map_err(|error| cannot(&error))?;
    Ok(Arc::new(config))
}

fn start_link(
    config: &Config,
    credentials: Arc<Credentials>,
    groups: &BTreeMap<String, Arc<Group>>,
) -> Result<(tokio::runtime::Runtime, Option<SocketAddr>), Failure> {
    let cannot = |error: &dyn std::fmt::Display| Failure::failed(format_args!("the link: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("link")
        .enable_all()
        .build()
        .map_err(|error| cannot(&error))?;
    let _inside = runtime.enter();
    let link = &config.link;
    let quic = quic::Config {
        max_mtu: link.max_mtu,
        max_incoming: link.max_connections as usize,
        send_window_bytes: link.window.0,
        ..quic::Config::default()
    };
    let session = session::Config {
        window_bytes: link.window.0 as usize,
        heartbeat_ms: link.heartbeat.as_millis() as u64,
        silence_ms: link.timeout.as_millis() as u64,
        ..session::Config::default()
    };
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let endpoint = quic::bind(config.node.listen.unwrap_or(any), &quic).map_err(|error| cannot(&error))?;
    let mut listen = None;
    if config.node.listen.is_some() {
        listen = endpoint.local_addr().ok();
        let mut grants = Grants::none();
        for group in &config.groups {
            for peer in &group.accept {
                let peer = NodeName::new(peer).map_err(|error| cannot(&error))?;
                grants = grants.and(&peer, &group.name);
            }
        }
        let (_keep, trust) = watch::channel(Arc::new(Trust { credentials: credentials.clone(), grants }));
        let limits = serve::Config {
            session: session.clone(),
            quic: quic.clone(),
            max_connections: link.max_connections as usize,
            ..serve::Config::default()
        };
        let sinks = Arc::new(Sinks::new(groups.values().cloned().collect()));
        let listener =
            Listener::new(endpoint.clone(), sinks, trust, limits).map_err(|error| cannot(&error))?;
        runtime.spawn(async move {
            let _keep = _keep;
            listener.run().await;
        });
    }
    let (keep, identity) = watch::channel(credentials);
    for group in groups.values() {
        for replica in &group.config.replicas {
            let seed = random()?;
            let dialler = Dialler {
                endpoint: endpoint.clone(),
                credentials: identity.clone(),
                source: group.clone(),
                target: Target {
                    node: NodeName::new(&replica.name).map_err(|error| cannot(&error))?,
                    address: replica.address.clone(),
                },
                config: dial::Config {
                    session: session.clone(),
                    quic: quic.clone(),
                    max_retry_ms: link.max_backoff.as_millis() as u64,
                    ..dial::Config::default()
                },
                seed: u64::from_le_bytes(seed[..8].try_into().expect("eight of sixteen bytes")),
            };
            runtime.spawn(dialler.run());
        }
    }
    runtime.spawn(async move {
        // The identity is read once; the sender lives as long as the node does.
        let _keep = keep;
        std::future::pending::<()>().await;
    });
    drop(_inside);
    Ok((runtime, listen))
}

impl Node {
    fn group(&self, name: &str) -> Result<&Arc<Group>, Fault> {
        if let Some(reason) = self.closed.get(name) {
            return Err(Fault::new(FaultCode::Refused, format_args!("group {name} is not open: {reason}")));
        }
        self.groups.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            let mut fault = Fault::new(FaultCode::NotFound, format_args!("this node has no group {name}"));
            fault.next = Some(format!("its groups are: {}", known.join(", ")));
            fault
        })
    }
}

impl daemon::Node for Node {
    fn defect(&self) -> Option<Failure> {
        None
    }

    fn stop(&self) {
        self.server.stop(nbd::Stop::Disconnect);
        self.mounts.end_all();
        if let Some(link) = self.link.lock().expect("no holder of the lock panics").take() {
            link.shutdown_timeout(LINK_STOP);
        }
        for group in self.groups.values() {
            group.engine.stop();
        }
    }
}

/// Where an old primary would be left without anybody to follow.
fn no_replicas(group: &str) -> Fault {
    let mut fault = Fault::new(
        FaultCode::Refused,
        format_args!("group {group}: this node has no replicas configured; nothing was changed"),
    );
    fault.next = Some(format!(
        "add the old primary to `replicas` of group {group} in the configuration, with its `address` under [[peer]], and \
         start the node again"
    ));
    fault
}

fn not_now(group: &str, error: &CommitError) -> Fault {
    let code = match error {
        CommitError::Failed(_) => FaultCode::Failed,
        CommitError::NotPrimary(_) | CommitError::Uncommitted => FaultCode::Refused,
    };
    let mut fault = Fault::new(code, format_args!("group {group}: {error}"));
    if *error == CommitError::Uncommitted {
        fault.next = Some(format!("`landfall failover commit {group}` first, once it is the right point"));
    }
    fault
}

impl Operator for Node {
    fn status(&self) -> Result<Status, Fault> {
        Ok(show::status(self))
    }

    fn points(&self, request: &PointsRequest) -> Result<Points, Fault> {
        show::points(self.group(&request.group)?, request.all_marks)
    }

    fn mount(&self, request: &MountRequest) -> Result<Mount, Fault> {
        self.mounts.mount(self.group(&request.group)?, request)
    }

    fn unmount(&self, mount: MountId) -> Result<(), Fault> {
        self.mounts.unmount(mount)
    }

    fn plan_failover(&self, group: &str, to: Point) -> Result<Plan, Fault> {
        let group = self.group(group)?;
        let plan = failover::plan(group, to)?;
        let mark = plan.branch.is_none().then(|| marks::at(group, plan.to.lsn)).flatten();
        Ok(Plan { mark, ..plan })
    }

    fn handover(&self, name: &str) -> Result<Promotion, Fault> {
        let begun = Instant::now();
        let group = self.group(name)?;
        if group.config.replicas.is_empty() {
            return Err(no_replicas(name));
        }
        let connected = group.upstream.newest().is_some_and(|(_, link)| link.state == LinkState::Connected);
        let refused = |why: &dyn std::fmt::Display| {
            let mut fault =
                Fault::new(FaultCode::Refused, format_args!("group {name}: {why}; nothing was changed"));
            fault.next = Some(format!(
                "without the primary it is `landfall failover {name} --to latest`; `landfall status` tells what each \
                 node is"
            ));
            fault
        };
        group.engine.with(|node, now| {
            if node.role() == state::Role::Replica && !connected {
                return Err(refused(&"the primary is not connected, and cannot hand it over"));
            }
            node.ask_for_group(now).map_err(|error| refused(&error))
        })?;
        let patience = Duration::from_millis(PATIENCE_MS) + HANDOVER_GRACE;
        while group.engine.peek(|node| node.role() == state::Role::Replica && node.failed().is_none()) {
            if begun.elapsed() > patience {
                let mut fault = Fault::new(
                    FaultCode::Failed,
                    format_args!("group {name}: the primary did not hand it over, and goes on serving"),
                );
                fault.next = Some(
                    "its log says why: this replica was not whole, the link too slow, or a failover to it is not \
                     committed"
                        .to_owned(),
                );
                return Err(fault);
            }
            std::thread::sleep(HANDOVER_LOOK);
        }
        let report = group.report();
        let reign = report.history.last().filter(|_| report.role == state::Role::Primary);
        let reign =
            *reign.ok_or_else(|| Fault::new(FaultCode::Failed, format_args!("group {name} failed")))?;
        Ok(Promotion {
            group: name.to_owned(),
            epoch: reign.epoch,
            to: group.at(reign.branch.lsn),
            already: false,
            took_ms: begun.elapsed().as_millis() as u64,
            nbd: self.nbd_at.clone(),
            volumes: show::volumes(group, &report),
        })
    }

    fn commit(&self, group: &str) -> Result<Committed, Fault> {
        let opened = self.group(group)?;
        let committed = opened.engine.with(|node, now| node.commit(now));
        let committed = committed.map_err(|error| not_now(group, &error))?;
        Ok(Committed { at: committed.at })
    }

    fn reprotect(&self, group: &str) -> Result<Reprotected, Fault> {
        let opened = self.group(group)?;
        let replicas: Vec<String> =
            opened.config.replicas.iter().map(|replica| replica.name.clone()).collect();
        if replicas.is_empty() {
            return Err(no_replicas(group));
        }
        opened.engine.with(|node, now| node.take_back(now)).map_err(|error| not_now(group, &error))?;
        Ok(Reprotected { replicas })
    }

    fn branches(&self, group: &str) -> Result<Vec<Branch>, Fault> {
        branches::list(self.group(group)?)
    }

    fn drop_branch(&self, group: &str, branch: BranchId) -> Result<(), Fault> {
        branches::drop(self.group(group)?, branch)
    }

    fn loss(&self, group: &str) -> Result<Loss, Fault> {
        branches::loss(self.group(group)?)
    }

    fn resync(&self, request: &Resync) -> Result<(), Fault> {
        let group = self.group(&request.group)?;
        let (name, replica) = (&request.group, &request.replica);
        group.engine.with(|node, _| {
            if node.config().replicas.iter().all(|known| known != replica) {
                let known = node.config().replicas.join(", ");
                return Err(Fault::new(
                    FaultCode::NotFound,
                    format_args!("group {name} has no replica {replica} here; it has: {known}"),
                ));
            }
            if !node.needs_copy(replica) {
                return Err(Fault::new(
                    FaultCode::Refused,
                    format_args!("group {name}: what {replica} lacks is known; nothing was changed"),
                ));
            }
            node.allow_full_copy(replica).map_err(|error| Fault::new(FaultCode::NotFound, error))
        })
    }

    fn verify(&self, request: &Verify) -> Result<Round, Fault> {
        let group = self.group(&request.group)?;
        let on_mismatch = match request.on_mismatch {
            OnMismatch::Repair => engine::event::OnMismatch::Repair,
            OnMismatch::Report => engine::event::OnMismatch::Report,
        };
        let refused =
            |code, error: VerifyError| Fault::new(code, format_args!("group {}: {error}", request.group));
        group.engine.with(|node, now| match node.verify(now, on_mismatch) {
            Err(VerifyError::UnderWay(round)) if round.on_mismatch == on_mismatch => Ok(show::round(&round)),
            Err(error @ VerifyError::UnderWay(_)) => {
                let mut fault = refused(FaultCode::Conflict, error);
                fault.next = Some("it does something else with mismatches: wait for its end".to_owned());
                Err(fault)
            }
            Err(error @ VerifyError::Failed(_)) => Err(refused(FaultCode::Failed, error)),
            Err(error @ (VerifyError::NotPrimary(_) | VerifyError::NoReplica)) => {
                Err(refused(FaultCode::Refused, error))
            }
            Ok(_) => {
                let round = node.round().expect("it has just begun");
                Ok(show::round(&round))
            }
        })
    }

    fn mark(&self, request: &MarkRequest) -> Result<Mark, Fault> {
        marks::mark(self.group(&request.group)?, request)
    }

    fn resize(&self, request: &Resize) -> Result<Resized, Fault> {
        resize::resize(self.group(&request.group)?, request)
    }

    fn protect(&self, group: &str, volume: &str) -> Result<Protected, Fault> {
        protect::protect(&self.config_path, self.group(group)?, volume)
    }

    fn seed(&self, group: &str, volume: &str) -> Result<Seeded, Fault> {
        protect::seed(&self.config_path, self.group(group)?, volume)
    }

    fn record(&self, group: &str, lsn: Lsn) -> Result<Record, Fault> {
        show::record(self.group(group)?, lsn)
    }

    fn failover(&self, request: &Failover) -> Result<Promotion, Fault> {
        let group = self.group(&request.group)?;
        let promotion = failover::carry_out(group, request, &self.nbd_at)?;
        // What they show is set aside; those at or before the point go on.
        self.mounts.end_set_aside();
        Ok(promotion)
    }
}
