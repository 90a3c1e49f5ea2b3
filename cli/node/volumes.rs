//! Volumes and recovery points as NBD exports, named `group/volume`.

use super::changes::Scratch;
use super::groups::Group;
use crate::config::Config;
use crate::control::api::{At, Content, Moment};
use crate::point::BranchId;
use engine::changes::Changes;
use engine::event::VolumeSpec;
use engine::guest::{Completion, Op, Refusal, Reply, Request};
use engine::node::branch_states::BranchStates;
use engine::os::clock;
use engine::read::{Plan, Wait};
use engine::state::Role;
use engine::types::{Extent, Lsn, Reign, VolumeId};
use std::collections::BTreeMap;
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

/// A recovery point as it was found: an LSN of the line, or of a branch.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) at: Lsn,
    pub(super) branch: Option<Arc<BranchStates>>,
}

impl Found {
    /// The point of the line that has to be kept for it.
    fn stands_on(&self) -> Lsn {
        self.branch.as_ref().map_or(self.at, |states| states.branch().after.lsn)
    }

    pub(super) fn branch_id(&self) -> Option<BranchId> {
        let branch = self.branch.as_ref()?.branch();
        Some(BranchId { epoch: branch.epoch, after: branch.after.lsn })
    }

    /// With its time.
    pub(super) fn with_time(&self, group: &Group) -> At {
        match &self.branch {
            None => group.at(self.at),
            Some(states) => At { lsn: self.at, time: Moment(states.time_of(self.at).unwrap_or_default()) },
        }
    }
}

/// A recovery point of a group, pinned for as long as this lives.
pub(super) struct Point {
    group: Arc<Group>,
    found: Found,
    content: Content,
    reign: Option<Reign>,
}

impl Point {
    pub(super) fn open(
        group: &Arc<Group>,
        found: Found,
        content: Content,
    ) -> Result<Point, engine::node::points::Error> {
        let pinned = found.stands_on();
        let reign = group.engine.with(|node, _| match content {
            Content::Whole => node.pin(pinned).map(|()| node.reign_of(pinned)),
            // The branch's own files are held, and no other is needed.
            Content::Written => Ok(node.reign_of(pinned)),
        })?;
        Ok(Point { group: group.clone(), found, content, reign })
    }

    /// The LSN, with its time.
    pub(super) fn at(&self) -> At {
        self.found.with_time(&self.group)
    }

    /// Bytes of log that are held for it beyond retention.
    pub(super) fn held_bytes(&self) -> u64 {
        match self.content {
            Content::Whole => {
                let pinned = self.found.stands_on();
                self.group.engine.peek(|node| node.held_for(pinned, clock::now()))
            }
            Content::Written => 0,
        }
    }

    /// The most that may be.
    pub(super) fn pin_limit(&self) -> u64 {
        self.group.config.pin_limit.0
    }

    /// Whether it holds as much as it may, or the log has no room for another file because of it.
    pub(super) fn costs_too_much(&self) -> bool {
        let held = self.held_bytes();
        let config = &self.group.config;
        let used = self.group.engine.peek(|node| node.log().used_bytes());
        held >= config.pin_limit.0 || held > 0 && used + config.segment.0 >= config.log_limit.0
    }

    /// The volumes that it has.
    pub(super) fn specs(&self) -> Vec<VolumeSpec> {
        self.group.engine.peek(|node| match &self.found.branch {
            None => node.specs_at(self.found.at),
            Some(states) => node.branch_volumes(states, self.found.at),
        })
    }

    /// A failover to an earlier point has set this one aside: what has its LSN now is another state.
    pub(super) fn is_set_aside(&self) -> bool {
        let pinned = self.found.stands_on();
        self.content == Content::Whole && self.group.engine.peek(|node| node.reign_of(pinned) != self.reign)
    }

    fn plan(&self, volume: VolumeId, extent: Extent) -> Result<Plan, Refusal> {
        let Found { at, branch } = &self.found;
        if let (Content::Written, Some(states)) = (self.content, branch) {
            return states.plan_written(volume, *at, extent).ok_or(Refusal::Io);
        }
        let pinned = self.found.stands_on();
        self.group.engine.peek(|node| {
            if node.reign_of(pinned) != self.reign {
                return Err(Refusal::Shutdown);
            }
            let plan = match branch {
                None => node.plan_point(volume, *at, extent),
                Some(states) => node.plan_branch(states, volume, *at, extent),
            };
            plan.ok_or(Refusal::Io)
        })
    }

    fn failed(&self, error: &std::io::Error) -> Refusal {
        tracing::warn!(group = self.group.config.name, at = %self.found.at, %error, now = %clock::now().wall, "a point could not be read");
        Refusal::Io
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        if self.content == Content::Whole {
            self.group.engine.with(|node, _| node.unpin(self.found.stands_on()));
        }
    }
}

/// What becomes of writes to a point.
pub(super) enum Writes {
    /// They are refused.
    Refused,
    /// They are kept beside it, by volume.
    Kept(BTreeMap<VolumeId, Arc<Changes>>),
}

/// The exports of a point.
pub(super) struct PointVolumes {
    point: Arc<Point>,
    writes: Writes,
}

impl PointVolumes {
    /// A point that cannot be written.
    pub(super) fn read_only(point: Arc<Point>) -> PointVolumes {
        PointVolumes { point, writes: Writes::Refused }
    }

    /// A point whose volumes can be written, for the mount of that number.
    ///
    /// # Errors
    /// Of the scratch files.
    pub(super) fn writable(
        point: Arc<Point>,
        mount: u64,
        scratch: &Scratch,
    ) -> std::io::Result<PointVolumes> {
        let fresh = PointVolumes::read_only(point.clone());
        let kept = fresh.volumes().into_iter().map(|(_, id, size)| {
            let file = scratch.file(&format!("{mount}-{}", id.0))?;
            let changes = point.group.engine.peek(|node| node.changes(id, size, file, &scratch.budget))?;
            Ok((id, Arc::new(changes)))
        });
        Ok(PointVolumes { point: point.clone(), writes: Writes::Kept(kept.collect::<std::io::Result<_>>()?) })
    }

    fn volumes(&self) -> Vec<(String, VolumeId, u64)> {
        let group = &self.point.group.config.name;
        let specs = self.point.specs().into_iter();
        specs.map(|spec| (Config::export(group, &spec.name), spec.id, spec.size)).collect()
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
        let changes = match &self.writes {
            Writes::Refused => None,
            // A volume that was defined since the mount is no part of it.
            Writes::Kept(kept) => Some(kept.get(&id)?.clone()),
        };
        Some(Arc::new(PointVolume { point: self.point.clone(), id, size, changes }))
    }
}

/// A volume as it was at a point.
struct PointVolume {
    point: Arc<Point>,
    id: VolumeId,
    size: u64,
    /// What was written to it since; `None` if it cannot be written.
    changes: Option<Arc<Changes>>,
}

impl PointVolume {
    fn answer(&self, op: &Op) -> Result<Reply, Refusal> {
        let extent = match op {
            Op::Read(extent) | Op::Status(extent) | Op::Cache(extent) => *extent,
            Op::Flush => return Ok(Reply::Done),
            Op::Write { offset, data } => Extent::new(*offset, data.len() as u64),
            Op::Trim(extent) | Op::Zero { extent, .. } => *extent,
        };
        if !extent.fits(self.size) {
            return Err(if let Op::Write { .. } = op { Refusal::NoSpace } else { Refusal::Invalid });
        }
        let below = |extent| {
            let plan = self.point.plan(self.id, extent)?;
            plan.read(Wait::Yes).map_err(|error| self.point.failed(&error))
        };
        let status_below = |extent| {
            let plan = self.point.plan(self.id, extent)?;
            plan.status().map_err(|error| self.point.failed(&error))
        };
        let changes = self.changes.as_ref();
        match op {
            Op::Read(_) => match changes {
                Some(changes) => changes.read(extent, &below),
                None => below(extent),
            }
            .map(Reply::Data),
            Op::Status(_) => match changes {
                Some(changes) => changes.status(extent, status_below),
                None => status_below(extent),
            }
            .map(Reply::Status),
            Op::Cache(_) => {
                self.point.plan(self.id, extent)?.will_need();
                Ok(Reply::Done)
            }
            Op::Flush => Ok(Reply::Done),
            Op::Write { .. } | Op::Trim(_) | Op::Zero { .. } => {
                let changes = changes.ok_or(Refusal::ReadOnly)?;
                match op {
                    Op::Write { offset, data } => changes.write(*offset, data, &below)?,
                    Op::Zero { no_hole, .. } => changes.zero(extent, *no_hole, &below)?,
                    _ => changes.zero(extent, false, &below)?,
                }
                Ok(Reply::Done)
            }
        }
    }
}

impl Export for PointVolume {
    fn shape(&self) -> Shape {
        let what = if self.changes.is_some() { "a writable copy of " } else { "" };
        let Found { at, .. } = self.point.found;
        let of = self.point.found.branch_id().map_or_else(String::new, |id| format!(" of branch {id}"));
        let description = format!("{what}group {} at LSN {at}{of}", self.point.group.config.name);
        Shape { size: self.size, read_only: self.changes.is_none(), description }
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, _later: &Arc<dyn Later>) {
        for Request { cookie, op, .. } in requests.drain(..) {
            ready.push(Completion { cookie, result: self.answer(&op) });
        }
    }
}
