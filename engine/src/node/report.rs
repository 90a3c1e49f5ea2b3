//! What a node says of itself: plain data, for status screens, metrics and the simulator.

use super::Node;
use crate::log;
use crate::state::{Branch, Role};
use crate::types::{Epoch, GroupId, Lsn, Reign, Timestamp, VolumeId};

/// A group on a node, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The group's name.
    pub name: String,
    /// Its identity; `None` for a replica whose primary has never called.
    pub group: Option<GroupId>,
    /// The role.
    pub role: Role,
    /// Why it failed, if it did.
    pub failed: Option<super::Failed>,
    /// The epoch it writes or follows.
    pub epoch: Epoch,
    /// The reigns of its history.
    pub history: Vec<Reign>,
    /// The epoch that fenced it, if one did.
    pub fenced_by: Option<Epoch>,
    /// Last record in the log file.
    pub appended: Lsn,
    /// Last record that survives a power cut.
    pub durable: Lsn,
    /// The backing devices hold everything up to here; `None` where there are none.
    pub applied: Option<Lsn>,
    /// Stretches of LSNs that are no points: sync spans.
    pub coarse: Vec<crate::state::Coarse>,
    /// Selectable points; `None` where none are kept.
    pub points: Option<super::points::Window>,
    /// Bytes of log files in use, and their limit.
    pub log_bytes: u64,
    /// See there.
    pub log_limit_bytes: u64,
    /// Versions in the index.
    pub index_entries: u64,
    /// Bytes of writes not yet on the backing devices.
    pub overlay_bytes: u64,
    /// Bytes of the disks of a promoted node that are filled, and of all; `None` if that is done.
    pub hydration: Option<(u64, u64)>,
    /// The volumes.
    pub volumes: Vec<VolumeReport>,
    /// The replicas of a primary.
    pub replicas: Vec<ReplicaReport>,
    /// The point of a promotion that is not committed.
    pub uncommitted: Option<Lsn>,
    /// Guests wait until a replica has everything, to take the group.
    pub draining: bool,
    /// Where this old primary handed the group over to a replica that has not answered as the primary yet.
    pub handed_over: Option<Lsn>,
    /// Old primaries are taken back as replicas.
    pub takes_back: bool,
    /// What promotions left behind.
    pub branches: Vec<Branch>,
    /// The round of verification that is under way on a primary, or the one that ended last in this process.
    pub round: Option<super::verify::RoundReport>,
    /// What scrubs have found on a replica.
    pub checks: Option<super::check::ChecksReport>,
    /// What was read of the log at rest.
    pub reread: super::reread::RereadReport,
    /// Rounds of verification that this primary ended since the process began, and what came of them.
    pub verified: super::verify::Totals,
    /// What a replica last heard of its primary's durable LSN, and the milliseconds since.
    pub primary: Option<(Lsn, u64)>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeReport {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// A replica, as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// Its name.
    pub name: String,
    /// Whether a session is up.
    pub connected: bool,
    /// The last LSN that it acknowledged.
    pub acknowledged: Lsn,
    /// Records that are durable here but not acknowledged.
    pub lag_records: u64,
    /// Bytes of log between the two, if the log still holds the place.
    pub lag_bytes: Option<u64>,
    /// When the oldest of them was written.
    pub lag_since: Option<Timestamp>,
    /// What it lacks beside records of the log; `None` if it lacks nothing else.
    pub lacking: Option<Lacking>,
    /// Something that an operator must know.
    pub alarm: Option<String>,
}

/// What a replica lacks that no record of the log would bring it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// What is being done about it.
    pub state: CatchUp,
    /// Bytes, in whole blocks.
    pub bytes: u64,
}

/// How a replica that lacks something is caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// The log is not kept for it: what changes is tracked until it is back.
    Tracked,
    /// A sync span copies what it lacks.
    Span,
    /// What it lacks is not known: only a copy of everything would do, which an operator has to allow.
    NeedsCopy,
}

impl Node {
    /// Everything about the group.
    #[must_use]
    pub fn report(&self, now: crate::types::Now) -> Report {
        let appended = self.log.tip().lsn;
        Report {
            name: self.config.name.clone(),
            group: self.is_born().then_some(self.state.group),
            role: self.state.role,
            failed: self.failed.clone(),
            epoch: self.state.epoch(),
            history: self.state.history.clone(),
            fenced_by: self.state.fenced_by.last().map(|reign| reign.epoch),
            appended,
            durable: self.log.durable().lsn,
            applied: (self.state.role != Role::Replica && !self.is_hydrating()).then(|| self.work.applied()),
            coarse: self.coarse().to_vec(),
            points: self.window(),
            log_bytes: self.log.used_bytes(),
            log_limit_bytes: self.log.limits().log_bytes,
            index_entries: self.index.as_ref().map_or(0, crate::index::Index::entries),
            overlay_bytes: self.volumes.values().map(|volume| volume.active.bytes()).sum(),
            hydration: self.state.hydration.as_ref().map(|hydration| {
                let all = self.volumes.values().map(|volume| volume.spec.size).sum();
                (hydration.done.iter().map(|(_, done)| done).sum(), all)
            }),
            volumes: self
                .volumes
                .values()
                .map(|volume| VolumeReport {
                    id: volume.spec.id,
                    name: volume.spec.name.clone(),
                    size: volume.spec.size,
                })
                .collect(),
            replicas: self.replica_reports(),
            uncommitted: self.state.uncommitted,
            draining: self.is_draining(),
            handed_over: self.state.handed_over,
            takes_back: self.state.takes_back,
            branches: self.state.branches.clone(),
            round: self.round(),
            checks: self.checks(),
            reread: self.reread(),
            verified: self.verify.totals,
            primary: self.last_primary.map(|last| (last.durable, now.mono.ms_since(last.heard))),
        }
    }

    fn replica_reports(&self) -> Vec<ReplicaReport> {
        let durable = self.log.durable().lsn;
        self.followers
            .iter()
            .map(|(name, follower)| {
                let lags = durable > follower.acknowledged;
                let next = follower.acknowledged.next();
                ReplicaReport {
                    name: name.clone(),
                    connected: follower.connected,
                    acknowledged: follower.acknowledged,
                    lag_records: durable.0.saturating_sub(follower.acknowledged.0),
                    lag_bytes: if lags { self.log.bytes_after(follower.acknowledged) } else { Some(0) },
                    lag_since: if lags { self.log.time_of(next) } else { None },
                    lacking: self.lacking(follower),
                    alarm: follower.alarm.clone(),
                }
            })
            .collect()
    }

    /// The state of the log's files, for `log inspect`.
    #[must_use]
    pub fn segments(&self) -> &[log::segment::Segment] {
        self.log.segments()
    }
}
