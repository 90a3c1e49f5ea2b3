//! Points that are being served, each by an NBD server of its own.
//!
//! Invariants:
//! - a point that is served is pinned, and its pin goes with the mount;
//! - a drill is ended at its limit, whoever holds it;
//! - a point that holds more of the log than it may is closed, with its mount: replication goes before it;
//! - a mount whose point a failover sets aside answers nothing from then on, and is ended: by a failover here at once, by
//!   one elsewhere that this node is taken back into a little later;
//! - a daemon that was killed leaves nothing: its scratch files have no names, and the next start removes its sockets.

use super::branches;
use super::changes::{self, Scratch};
use super::groups::Group;
use super::marks;
use super::show;
use super::volumes::{Point, PointVolumes};
use crate::control::api::{
    Access, Content, Drill, Endpoint, Fault, FaultCode, MAX_DRILL_MS, Moment, Mount, MountId, MountRequest,
    Pin, Used, Volume,
};
use crate::time;
use crate::units::Bytes;
use engine::changes::Budget;
use engine::types::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use transport::nbd::{Config, Server, Stop, Tls};

/// Points served at a time.
const MAX_MOUNTS: usize = 64;
/// How often it is looked whether a point was set aside.
const LOOK_EVERY: Duration = Duration::from_secs(5);

struct Served {
    shown: Mount,
    server: Server,
    point: Arc<Point>,
    budget: Option<Arc<Budget>>,
    /// When a drill is ended.
    ends: Option<Instant>,
}

#[derive(Default)]
struct Table {
    last: u64,
    served: BTreeMap<MountId, Served>,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// A mount began, or the node stops.
    changed: Condvar,
}

/// The mounts of a node.
pub(super) struct Mounts {
    sockets: PathBuf,
    scratch: PathBuf,
    shared: Arc<Shared>,
    watch: Mutex<Option<JoinHandle<()>>>,
}

impl Mounts {
    /// Mounts whose sockets, where nobody names one, and whose scratch files lie in folders of `data_dir`. The caller
    /// has the directory's locks: what is found there is of a daemon that is no more.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn new(data_dir: &Path) -> std::io::Result<Mounts> {
        let (sockets, scratch) = (data_dir.join("mounts"), data_dir.join("scratch"));
        changes::prepare(&scratch)?;
        changes::prepare(&sockets)?;
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        let watch = thread::Builder::new().name("mounts".to_owned()).spawn(move || watched.watch())?;
        Ok(Mounts { sockets, scratch, shared, watch: Mutex::new(Some(watch)) })
    }

    pub(super) fn list(&self) -> Vec<Mount> {
        let shown = |served: &Served| Mount {
            scratch: served
                .budget
                .as_deref()
                .map(|budget| Used { used_bytes: budget.used_bytes(), limit_bytes: budget.limit_bytes() }),
            pin: served.shown.pin.map(|pin| Pin { held_bytes: served.point.held_bytes(), ..pin }),
            ..served.shown.clone()
        };
        self.shared.lock().served.values().map(shown).collect()
    }

    pub(super) fn mount(&self, group: &Arc<Group>, request: &MountRequest) -> Result<Mount, Fault> {
        if request.drill_ms.is_some_and(|ms| ms == 0 || ms > MAX_DRILL_MS) {
            return Err(Fault::new(FaultCode::BadRequest, "a drill lasts from a millisecond to 30 days"));
        }
        let found = match (request.content, request.at.branch) {
            (Content::Whole, _) => show::resolve(group, &request.at)?,
            (Content::Written, Some(id)) => {
                branches::resolve(group, id, &request.at.which, Content::Written)?
            }
            (Content::Written, None) => {
                return Err(Fault::new(FaultCode::BadRequest, "only a branch has writes of its own"));
            }
        };
        if request.content == Content::Written && request.access != Access::ReadOnly {
            return Err(Fault::new(FaultCode::BadRequest, "what a branch has written cannot be written to"));
        }
        let mut table = self.shared.lock();
        if table.served.len() >= MAX_MOUNTS {
            return Err(Fault::new(FaultCode::Busy, format_args!("{MAX_MOUNTS} points are mounted already")));
        }
        let opened = Point::open(group, found.clone(), request.content);
        let point = opened.map_err(|error| show::no_point(group, &error))?;
        let point = Arc::new(point);
        table.last += 1;
        let id = MountId(table.last);
        let scratch = match request.access {
            Access::ReadOnly => None,
            Access::Writable { scratch_bytes } => Some(Scratch::new(&self.scratch, scratch_bytes)),
        };
        let volumes = match &scratch {
            None => PointVolumes::read_only(point.clone()),
            Some(scratch) => PointVolumes::writable(point.clone(), id.0, scratch).map_err(|error| {
                let dir = self.scratch.display();
                Fault::new(FaultCode::Failed, format_args!("scratch files cannot be made in {dir}: {error}"))
            })?,
        };
        let budget = scratch.map(|scratch| scratch.budget);
        let server = Server::new(Arc::new(volumes), Config::default());
        let endpoint = self.bind(&server, id, request.endpoint.as_ref())?;
        let volumes = point.specs().into_iter().map(|volume| Volume {
            export: Some(crate::config::Config::export(&group.config.name, &volume.name)),
            name: volume.name,
            size_bytes: volume.size,
            connections: 0,
            seed: None,
        });
        let begun = time::now();
        let limit = request.drill_ms.map(Duration::from_millis);
        let shown = Mount {
            mount: id,
            group: group.config.name.clone(),
            at: point.at(),
            branch: found.branch_id(),
            endpoint,
            volumes: volumes.collect(),
            scratch: budget
                .as_deref()
                .map(|budget| Used { used_bytes: 0, limit_bytes: budget.limit_bytes() }),
            drill: limit.map(|limit| Drill {
                begun: Moment(begun),
                ends: Moment(Timestamp(begun.0.saturating_add(limit.as_nanos() as u64))),
            }),
            pin: Some(Pin {
                since: Moment(begun),
                held_bytes: point.held_bytes(),
                limit_bytes: point.pin_limit(),
            }),
            mark: found.branch_id().is_none().then(|| marks::at(group, point.at().lsn)).flatten(),
        };
        if let Some(drill) = shown.drill {
            let ends = time::format(drill.ends.0);
            tracing::info!(drill = id.0, group = shown.group, at = %shown.at.lsn, ends, "a drill begins");
        }
        let ends = limit.map(|limit| Instant::now() + limit);
        table.served.insert(id, Served { shown: shown.clone(), server, point, budget, ends });
        self.shared.changed.notify_all();
        Ok(shown)
    }

    fn bind(&self, server: &Server, id: MountId, wanted: Option<&Endpoint>) -> Result<Endpoint, Fault> {
        let failed = |place: &dyn std::fmt::Display, error: std::io::Error| {
            Fault::new(FaultCode::Failed, format_args!("the point cannot be served at {place}: {error}"))
        };
        if let Some(Endpoint::Tcp(address)) = wanted {
            let bound = server.bind_tcp(address, Tls::Off).map_err(|error| failed(address, error))?;
            return Ok(Endpoint::Tcp(bound));
        }
        let path = match wanted {
            Some(Endpoint::Unix(path)) => path.clone(),
            _ => self.sockets.join(format!("{}.sock", id.0)),
        };
        server.bind_unix(&path, Tls::Off).map_err(|error| failed(&path.display(), error))?;
        Ok(Endpoint::Unix(path))
    }

    pub(super) fn unmount(&self, id: MountId) -> Result<(), Fault> {
        let ended = self.shared.lock().served.remove(&id);
        let ended = ended
            .ok_or_else(|| Fault::new(FaultCode::NotFound, format_args!("there is no mount {}", id.0)))?;
        ended.server.stop(Stop::Refuse);
        if ended.ends.is_some() {
            tracing::info!(drill = id.0, group = ended.shown.group, "a drill ends");
        }
        Ok(())
    }

    /// Ends the mounts of points that a failover has set aside.
    pub(super) fn end_set_aside(&self) {
        self.shared.end_set_aside();
    }

    pub(super) fn end_all(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.watch.lock().expect("no holder of the lock panics").take() {
            let _ = thread.join();
        }
        for served in self.shared.take(|_| true) {
            served.server.stop(Stop::Refuse);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the lock panics")
    }

    fn take(&self, which: impl Fn(&Served) -> bool) -> Vec<Served> {
        let mut table = self.lock();
        table.served.extract_if(.., |_, served| which(served)).map(|(_, served)| served).collect()
    }

    fn end_set_aside(&self) {
        for served in self.take(|served| served.point.is_set_aside()) {
            let (mount, at) = (served.shown.mount.0, served.shown.at.lsn);
            tracing::warn!(mount, %at, group = served.shown.group, "ended: a failover has set its point aside");
            served.server.stop(Stop::Refuse);
        }
    }

    /// Ends the mounts of points for which more log is held than may be: replication goes before them.
    fn end_costly(&self) {
        for served in self.take(|served| served.point.costs_too_much()) {
            let (mount, at, group) = (served.shown.mount.0, served.shown.at.lsn, &served.shown.group);
            let held = Bytes(served.point.held_bytes());
            let limit = Bytes(served.point.pin_limit());
            tracing::warn!(mount, %at, group, %held, %limit, "ended: its point held too much of the log");
            served.server.stop(Stop::Refuse);
        }
    }

    /// Ends what has to end by itself, until the node stops.
    fn watch(&self) {
        loop {
            self.end_set_aside();
            self.end_costly();
            let now = Instant::now();
            // Stopped without the lock: a client in the middle of a request must not hold up others' mounts.
            for served in self.take(|served| served.ends.is_some_and(|ends| ends <= now)) {
                let (mount, group) = (served.shown.mount.0, &served.shown.group);
                tracing::warn!(drill = mount, group, "a drill is ended at its limit");
                served.server.stop(Stop::Refuse);
            }
            let table = self.lock();
            if table.stopping {
                return;
            }
            if table.served.is_empty() {
                drop(self.changed.wait(table));
                continue;
            }
            let ends = table.served.values().filter_map(|served| served.ends).min();
            let left = ends.map_or(LOOK_EVERY, |ends| ends.saturating_duration_since(now));
            drop(self.changed.wait_timeout(table, left.min(LOOK_EVERY)));
        }
    }
}
