//! Volumes and recovery points as NBD exports, named `group/volume`.

use super::groups::Group;
use crate::config::Config;
use engine::guest::{Completion, Op, Refusal, Reply, Request};
use engine::os::clock;
use engine::read::Wait;
use engine::state::Role;
use engine::types::{Lsn, VolumeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use transport::block::{Catalog, Export, Later, Shape};

/// The volumes that this node serves: those of the groups whose primary it is.
pub(super) struct Volumes {
    groups: Vec<Arc<Group>>,
}

impl Volumes {
    pub(super) fn new(groups: Vec<Arc<Group>>) -> Volumes {
        Volumes { groups }
    }

    /// Every volume that is served now, by its export's name.
    fn served(&self) -> impl Iterator<Item = (String, Volume)> + '_ {
        self.groups.iter().flat_map(|group| {
            let volumes = group.engine.peek(|node| {
                let serves = node.role() == Role::Primary;
                let specs = node.volume_specs().filter(move |_| serves);
                specs.map(|spec| (spec.id, spec.name.clone(), spec.size)).collect::<Vec<_>>()
            });
            volumes.into_iter().map(|(id, name, size)| {
                let export = Config::export(&group.config.name, &name);
                (export, Volume { group: group.clone(), id, name, size, _connection: None })
            })
        })
    }
}

impl Catalog for Volumes {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.served().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        let (_, mut volume) = self.served().find(|(served, _)| served == name)?;
        let mut connections = volume.group.connections.lock().expect("no holder of the lock panics");
        let counter = connections.entry(volume.name.clone()).or_default().clone();
        drop(connections);
        volume._connection = Some(Counted::new(counter));
        Some(Arc::new(volume))
    }
}

/// One more while it lives.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(counter: Arc<AtomicU32>) -> Counted {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A live volume.
struct Volume {
    group: Arc<Group>,
    id: VolumeId,
    name: String,
    size: u64,
    _connection: Option<Counted>,
}

impl Export for Volume {
    fn shape(&self) -> Shape {
        Shape {
            size: self.size,
            read_only: false,
            description: format!("volume {} of group {}", self.name, self.group.config.name),
        }
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, later: &Arc<dyn Later>) {
        self.group.engine.submit(self.id, requests, ready, later);
    }
}

/// A recovery point of a group: read-only, and pinned for as long as this lives.
pub(super) struct Point {
    group: Arc<Group>,
    at: Lsn,
}

impl Point {
    pub(super) fn open(group: &Arc<Group>, at: Lsn) -> Result<Point, engine::node::points::Error> {
        group.engine.with(|node, _| node.pin(at))?;
        Ok(Point { group: group.clone(), at })
    }

    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    pub(super) fn at(&self) -> Lsn {
        self.at
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        self.group.engine.with(|node, _| node.unpin(self.at));
    }
}

/// The exports of a point.
pub(super) struct PointVolumes(pub(super) Arc<Point>);

impl PointVolumes {
    fn volumes(&self) -> Vec<(String, VolumeId, u64)> {
        let group = &self.0.group;
        group.engine.peek(|node| {
            node.volume_specs()
                .map(|spec| (Config::export(&group.config.name, &spec.name), spec.id, spec.size))
                .collect()
        })
    }
}

impl Catalog for PointVolumes {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.volumes().into_iter().map(|(name, ..)| name).collect();
        names.sort();
        names
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        let (_, id, size) = self.volumes().into_iter().find(|(known, ..)| known == name)?;
        Some(Arc::new(PointVolume { point: self.0.clone(), id, size }))
    }
}

/// A volume as it was at a point.
struct PointVolume {
    point: Arc<Point>,
    id: VolumeId,
    size: u64,
}

impl PointVolume {
    fn answer(&self, op: &Op) -> Result<Reply, Refusal> {
        let extent = match op {
            Op::Read(extent) | Op::Status(extent) | Op::Cache(extent) => *extent,
            Op::Flush => return Ok(Reply::Done),
            Op::Write { .. } | Op::Trim(_) | Op::Zero { .. } => return Err(Refusal::ReadOnly),
        };
        if !extent.fits(self.size) {
            return Err(Refusal::Invalid);
        }
        let plan = self.point.group.engine.peek(|node| node.plan_point(self.id, self.point.at, extent));
        let plan = plan.ok_or(Refusal::Io)?;
        let failed = |error: std::io::Error| {
            tracing::warn!(group = self.point.group.config.name, at = %self.point.at, %error, now = %clock::now().wall, "a point could not be read");
            Refusal::Io
        };
        match op {
            Op::Read(_) => plan.read(Wait::Yes).map(Reply::Data).map_err(failed),
            Op::Status(_) => plan.status().map(Reply::Status).map_err(failed),
            _ => {
                plan.will_need();
                Ok(Reply::Done)
            }
        }
    }
}

impl Export for PointVolume {
    fn shape(&self) -> Shape {
        let description = format!("group {} at LSN {}", self.point.group.config.name, self.point.at);
        Shape { size: self.size, read_only: true, description }
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, _later: &Arc<dyn Later>) {
        for Request { cookie, op, .. } in requests.drain(..) {
            ready.push(Completion { cookie, result: self.answer(&op) });
        }
    }
}
