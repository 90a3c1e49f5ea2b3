//! The words of the control API: plain data, in JSON one object a line.
//!
//! Invariants:
//! - [`VERSION`] is in every request and answer; within a version fields are only added;
//! - a request with an unknown method or field is refused (a daemon never drops what it was asked for), an
//!   answer's unknown fields are skipped;
//! - units stand in the names: `_bytes`, `_ms`; moments are RFC 3339 in UTC; LSNs and epochs are numbers.
//!
//! The same objects are what `--json` prints.

use crate::exit::{Code, Failure};
use crate::point::{BranchId, Point};
use crate::time;
use engine::types::{Epoch, Lsn, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The version of this API.
pub(crate) const VERSION: u32 = 1;

macro_rules! as_number {
    ($($module:ident for $name:ident),*) => {$(
        /// Serialises the engine's number as a plain one.
        pub(crate) mod $module {
            use super::{$name, Deserialize, Deserializer, Serializer};

            pub(crate) fn serialize<S: Serializer>(it: &$name, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(it.0)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                u64::deserialize(deserializer).map($name)
            }
        }
    )*};
}

as_number!(lsn for Lsn, epoch for Epoch);

/// The same for an LSN that may be absent.
mod some_lsn {
    use super::{Deserialize, Deserializer, Lsn, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(it: &Option<Lsn>, serializer: S) -> Result<S::Ok, S::Error> {
        it.map(|lsn| lsn.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Lsn>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Lsn))
    }
}

/// A wall-clock time, in RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) Timestamp);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time::format_exact(self.0))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Moment, D::Error> {
        time::parse(&String::deserialize(deserializer)?).map(Moment).map_err(serde::de::Error::custom)
    }
}

/// A request: `{"version":1,"method":"points","params":{"group":"db"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub(crate) enum Request {
    /// [`super::Operator::status`].
    Status,
    /// [`super::Operator::points`].
    Points(PointsRequest),
    /// [`super::Operator::mount`].
    Mount(MountRequest),
    /// [`super::Operator::unmount`].
    Unmount(OfMount),
    /// [`super::Operator::plan_failover`].
    PlanFailover(PlanRequest),
    /// [`super::Operator::failover`].
    Failover(Failover),
    /// [`super::Operator::handover`].
    Handover(OfGroup),
    /// [`super::Operator::commit`].
    Commit(OfGroup),
    /// [`super::Operator::reprotect`].
    Reprotect(OfGroup),
    /// [`super::Operator::branches`].
    Branches(OfGroup),
    /// [`super::Operator::drop_branch`].
    DropBranch(OfBranch),
    /// [`super::Operator::loss`].
    Loss(OfGroup),
    /// [`super::Operator::resync`].
    Resync(Resync),
    /// [`super::Operator::verify`].
    Verify(Verify),
    /// [`super::Operator::protect`].
    Protect(OfVolume),
    /// [`super::Operator::seed`].
    Seed(OfVolume),
    /// [`super::Operator::resize`].
    Resize(Resize),
    /// [`super::Operator::mark`].
    Mark(MarkRequest),
    /// [`super::Operator::record`].
    Record(OfRecord),
}

/// Parameters that name a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfGroup {
    /// The group's name.
    pub(crate) group: String,
}

/// Parameters of `points`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PointsRequest {
    /// The group's name.
    pub(crate) group: String,
    /// The periodic marks are wanted one by one.
    #[serde(default)]
    pub(crate) all_marks: bool,
}

/// Parameters that name a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfBranch {
    /// The group's name.
    pub(crate) group: String,
    /// [`Branch::id`].
    pub(crate) branch: BranchId,
}

/// Parameters that name a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfVolume {
    /// The group's name.
    pub(crate) group: String,
    /// The volume's.
    pub(crate) volume: String,
}

/// A volume that has another size. Answer to `resize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resized {
    /// The NBD export.
    pub(crate) export: String,
    /// Its size until now.
    pub(crate) before_bytes: u64,
    /// Its size.
    pub(crate) size_bytes: u64,
}

/// Another size for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    /// The group's name.
    pub(crate) group: String,
    /// The volume's name.
    pub(crate) volume: String,
    /// Its size.
    pub(crate) size_bytes: u64,
}

/// A volume that is protected. Answer to `protect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Protected {
    /// Its export.
    pub(crate) export: String,
    /// Bytes.
    pub(crate) size_bytes: u64,
    /// How many replicas its data is copied to.
    pub(crate) replicas: usize,
}

/// A volume of a replica that has a seed. Answer to `seed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seeded {
    /// The volume, as `group/volume`.
    pub(crate) volume: String,
    /// The copy.
    pub(crate) seed: PathBuf,
    /// Bytes.
    pub(crate) size_bytes: u64,
    /// The volume's, if this node knows the volume by now.
    pub(crate) volume_size_bytes: Option<u64>,
}

/// Parameters that name a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfRecord {
    /// The group's name.
    pub(crate) group: String,
    /// Its position.
    #[serde(with = "lsn")]
    pub(crate) lsn: Lsn,
}

/// One record of the log, without its bytes. Answer to `record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where and when.
    #[serde(flatten)]
    pub(crate) at: At,
    /// The epoch in which it was written.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// What it is: `write`, `zero`, `flush`, ...
    pub(crate) kind: String,
    /// The volume; absent if it is of the group as a whole.
    pub(crate) volume: Option<String>,
    /// Where in the volume.
    pub(crate) offset_bytes: u64,
    /// How much of it.
    pub(crate) len_bytes: u64,
}

/// Parameters that name a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfMount {
    /// The mount.
    pub(crate) mount: MountId,
}

/// Asks for a recovery point to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountRequest {
    /// The group.
    pub(crate) group: String,
    /// The point.
    pub(crate) at: Point,
    /// Where to serve it; a socket of the daemon's choice if absent.
    #[serde(default)]
    pub(crate) endpoint: Option<Endpoint>,
    /// For how long.
    #[serde(default)]
    pub(crate) hold: Hold,
    /// What becomes of writes.
    #[serde(default)]
    pub(crate) access: Access,
    /// It is a drill: it is ended after so many milliseconds, whoever holds it.
    #[serde(default)]
    pub(crate) drill_ms: Option<u64>,
    /// What of it.
    #[serde(default)]
    pub(crate) content: Content,
}

/// What of a point is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    /// The volumes as they were.
    #[default]
    Whole,
    /// What a branch has written to them up to the point; all else is a hole.
    Written,
}

impl MountRequest {
    /// A point as it is, at a socket of the daemon's choice, for as long as the connection.
    pub(crate) fn read_only(group: &str, at: Point) -> MountRequest {
        MountRequest {
            group: group.to_owned(),
            at,
            endpoint: None,
            hold: Hold::Connection,
            access: Access::ReadOnly,
            drill_ms: None,
            content: Content::Whole,
        }
    }
}

/// The longest that a drill may last: 30 days.
pub(crate) const MAX_DRILL_MS: u64 = 30 * 24 * 3_600_000;

/// What becomes of writes to a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Access {
    /// They are refused.
    #[default]
    ReadOnly,
    /// They are kept beside the point, and thrown away with the mount.
    Writable {
        /// The most that they may take on disk; further ones are told that there is no space.
        scratch_bytes: u64,
    },
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    /// The point of the failover; absent if there was none to commit.
    #[serde(with = "some_lsn")]
    pub(crate) at: Option<Lsn>,
}

/// Who is taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reprotected {
    /// The nodes that are dialled as replicas of the group.
    pub(crate) replicas: Vec<String>,
}

/// When a mount ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hold {
    /// With the control connection that asked for it, however that ends.
    #[default]
    Connection,
    /// With `unmount`, or with the daemon.
    UntilUnmount,
}

/// Where NBD clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Endpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// An address and port; port 0 in a request means any free one.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(f),
            Endpoint::Tcp(address) => address.fmt(f),
        }
    }
}

/// What a failover would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanRequest {
    /// The group.
    pub(crate) group: String,
    /// The point.
    pub(crate) to: Point,
}

/// Asks for a failover: the figures of a [`Plan`] that somebody has agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failover {
    /// The group.
    pub(crate) group: String,
    /// [`Plan::to`], as a position: "latest" may have moved since somebody agreed.
    #[serde(with = "lsn")]
    pub(crate) to: Lsn,
    /// [`Plan::branch`].
    #[serde(default)]
    pub(crate) branch: Option<BranchId>,
    /// [`Plan::epoch`]: whoever comes second with the same is refused.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
}

/// Allows a copy of everything for a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resync {
    /// The group.
    pub(crate) group: String,
    /// The replica's name.
    pub(crate) replica: String,
}

/// Asks for a round of verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    /// The group.
    pub(crate) group: String,
    /// What becomes of a mismatch.
    pub(crate) on_mismatch: OnMismatch,
}

/// What becomes of a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnMismatch {
    /// It is reported, and the primary's bytes are sent again.
    Repair,
    /// It is reported.
    Report,
}

/// A round of verification, on the primary. Answer to `verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Its number: the LSN behind which it began.
    pub(crate) number: u64,
    /// What becomes of a mismatch.
    pub(crate) on_mismatch: OnMismatch,
    /// When it began.
    pub(crate) begun: Moment,
    /// When it ended; absent while it is under way.
    pub(crate) ended: Option<Moment>,
    /// Bytes of the volumes that it has passed.
    pub(crate) done_bytes: u64,
    /// Bytes of all volumes.
    pub(crate) total_bytes: u64,
    /// Parts that were told of.
    pub(crate) records: u64,
    /// Bytes that were left out because guests write there all the time.
    pub(crate) busy_bytes: u64,
    /// Bytes that could not be read here.
    pub(crate) unreadable_bytes: u64,
    /// It waits for a replica.
    pub(crate) waits: bool,
    /// What the replicas say.
    pub(crate) replicas: Vec<Verdict>,
}

/// What one replica says of a round, in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Its name.
    pub(crate) replica: String,
    /// The same there.
    pub(crate) same: u64,
    /// Not the same, or unreadable.
    pub(crate) mismatched: u64,
    /// Not looked at: the replica was in a sync span.
    pub(crate) skipped: u64,
    /// Nothing was said of them: the replica was away or started anew.
    pub(crate) unchecked: u64,
}

/// What the rounds of verification that ended came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    /// How many.
    pub(crate) rounds: u64,
    /// Bytes of volumes that they passed.
    pub(crate) bytes: u64,
    /// Parts in which replicas held something else.
    pub(crate) mismatched: u64,
    /// Bytes that could not be read on the primary.
    pub(crate) unreadable_bytes: u64,
    /// Parts that were sent again.
    pub(crate) sent_again: u64,
}

/// What was read of the log at rest since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AtRest {
    /// How often all of its files were.
    pub(crate) passes: u64,
    /// Bytes of records.
    pub(crate) bytes: u64,
    /// What cannot be read any more.
    pub(crate) rotten: Vec<Rotten>,
}

/// A record of the log that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rotten {
    /// Which, and when it was found.
    #[serde(flatten)]
    pub(crate) at: At,
    /// The file's number.
    pub(crate) segment: u32,
    /// What is wrong.
    pub(crate) reason: String,
}

/// What verification has found on a replica since its daemon started, in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checks {
    /// The same as on the primary.
    pub(crate) same: u64,
    /// Not the same, or unreadable.
    pub(crate) mismatched: u64,
    /// Not looked at.
    pub(crate) skipped: u64,
    /// Mismatches that were found well later.
    pub(crate) repaired: u64,
    /// Mismatches that were not, at most 256.
    pub(crate) open: Vec<Mismatch>,
}

/// A part of a volume that is not what it is on the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mismatch {
    /// The volume.
    pub(crate) volume: String,
    /// Where it begins.
    pub(crate) offset_bytes: u64,
    /// How long it is.
    pub(crate) len_bytes: u64,
    /// At which position.
    #[serde(with = "lsn")]
    pub(crate) lsn: Lsn,
    /// When it was found.
    pub(crate) time: Moment,
    /// What the primary holds: XXH3 with 128 bits, in hexadecimal digits.
    pub(crate) expected: String,
    /// What is here; absent if it cannot be read.
    pub(crate) found: Option<String>,
    /// Why it cannot be read.
    pub(crate) error: Option<String>,
    /// What is done about it.
    pub(crate) repair: Repair,
}

/// What is done about a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Repair {
    /// Nothing: the round was to report alone.
    NotWanted,
    /// The primary was asked to send it again.
    Asked,
    /// It was sent again and again, and is still wrong.
    GivenUp,
}

/// A mount, while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct MountId(pub(crate) u64);

/// A recovery point, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct At {
    /// Its position.
    #[serde(with = "lsn")]
    pub(crate) lsn: Lsn,
    /// When the record there was written, by its primary's clock.
    pub(crate) time: Moment,
}

/// How much lies between two positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    /// Records.
    pub(crate) writes: u64,
    /// Bytes of the log.
    pub(crate) bytes: u64,
    /// Time between the two.
    pub(crate) ms: u64,
}

/// Answer to `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The daemon.
    pub(crate) node: Node,
    /// Its groups, by name.
    pub(crate) groups: Vec<Group>,
    /// Points that are being served.
    pub(crate) mounts: Vec<Mount>,
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) id: String,
    /// The program's version.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// When it started.
    pub(crate) since: Moment,
    /// Where it takes replication connections: the real port, also if 0 was configured.
    pub(crate) listen: Option<SocketAddr>,
    /// Where it serves its volumes.
    pub(crate) nbd: Vec<Endpoint>,
}

/// A consistency group on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: String,
    /// Its identity; absent on a replica that has not heard from a primary yet.
    pub(crate) id: Option<String>,
    /// What this node is to it.
    pub(crate) role: Role,
    /// How it is.
    pub(crate) state: State,
    /// The epoch.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// Where the log stands.
    pub(crate) positions: Positions,
    /// The replicas, on a primary.
    pub(crate) replicas: Vec<Replica>,
    /// The primary, on a replica that knows one.
    pub(crate) primary: Option<Upstream>,
    /// The volumes.
    pub(crate) volumes: Vec<Volume>,
    /// The log's use of the disk.
    pub(crate) log: Log,
    /// The recovery points; absent while there is none.
    pub(crate) window: Option<Window>,
    /// The point of a failover here that is not committed.
    #[serde(default, with = "some_lsn")]
    pub(crate) uncommitted: Option<Lsn>,
    /// Whether old primaries are taken back as replicas.
    #[serde(default)]
    pub(crate) takes_back: bool,
    /// Verification, on a primary: the round under way, or the one that ended last since the daemon started.
    #[serde(default)]
    pub(crate) round: Option<Round>,
    /// Verification, on a primary: all rounds that ended since the daemon started.
    #[serde(default)]
    pub(crate) verified: Option<Verified>,
    /// Verification, on a replica.
    #[serde(default)]
    pub(crate) checks: Option<Checks>,
    /// The log's files, read again where they lie.
    #[serde(default)]
    pub(crate) at_rest: AtRest,
    /// What somebody should look at, in words.
    pub(crate) alarms: Vec<String>,
}

/// What a node is to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It serves the group's volumes.
    Primary,
    /// It follows a primary.
    Replica,
}

/// How a group is on this node. `{"name":"failed","reason":"..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub(crate) enum State {
    /// The log is being read.
    Starting,
    /// A primary takes reads and writes.
    Serving,
    /// A primary takes no more writes until there is room.
    Stalled {
        /// What is full.
        reason: String,
    },
    /// A replica has a log and takes more.
    Following,
    /// A replica has not heard from any primary yet.
    Waiting,
    /// A newer primary exists: this node takes no writes.
    Fenced {
        /// The newer epoch.
        #[serde(with = "epoch")]
        epoch: Epoch,
        /// Who told.
        by: String,
    },
    /// The log, the disk or the history gives no way on without somebody's help.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// The positions of a log, in their order; see `engine::types`. Absent is what has no meaning in the role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Positions {
    /// The last record in this node's log file.
    #[serde(with = "lsn")]
    pub(crate) appended: Lsn,
    /// The last that was synced here.
    #[serde(with = "lsn")]
    pub(crate) durable: Lsn,
    /// The last handed to a link, to the replica that is furthest on.
    #[serde(with = "some_lsn", default)]
    pub(crate) shipped: Option<Lsn>,
    /// The last that a replica acknowledged as durable, from the replica that is furthest on.
    #[serde(with = "some_lsn", default)]
    pub(crate) replica_durable: Option<Lsn>,
    /// The oldest that can be selected as a recovery point.
    #[serde(with = "some_lsn", default)]
    pub(crate) horizon: Option<Lsn>,
}

/// One replica, as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replica {
    /// The node's name.
    pub(crate) name: String,
    /// Where it is dialled.
    pub(crate) address: String,
    /// The connection.
    pub(crate) link: Link,
    /// The last position that it acknowledged as durable; absent before its first answer.
    #[serde(with = "some_lsn", default)]
    pub(crate) durable: Option<Lsn>,
    /// What it does not have yet.
    pub(crate) lag: Stretch,
    /// What it lacks beside records of the log; absent if nothing.
    #[serde(default)]
    pub(crate) catching_up: Option<CatchingUp>,
    /// What somebody should look at, in words.
    pub(crate) alarms: Vec<String>,
}

/// How a replica that the log did not wait for is caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CatchingUp {
    /// What is being done.
    pub(crate) state: CatchUp,
    /// Bytes that are to be copied.
    pub(crate) bytes: u64,
    /// Bytes a second that were copied in the last ten seconds; absent where nothing is, or it is too early to say.
    #[serde(default)]
    pub(crate) bytes_s: Option<u64>,
    /// What a span waits for, if it does.
    #[serde(default)]
    pub(crate) waits_for: Option<WaitsFor>,
}

/// What a sync span waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaitsFor {
    /// The replica is not connected.
    Link,
    /// The log is full of what guests write.
    Room,
}

/// See [`CatchingUp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CatchUp {
    /// The replica is away; what changes is tracked.
    Tracked,
    /// A sync span copies what it lacks.
    Span,
    /// Only a copy of everything would do, and somebody has to allow it.
    NeedsCopy,
}

/// The primary, as a replica sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upstream {
    /// The node's name.
    pub(crate) name: String,
    /// The connection.
    pub(crate) link: Link,
    /// The last durable position that it told of.
    #[serde(with = "some_lsn", default)]
    pub(crate) durable: Option<Lsn>,
    /// What it told of and this node does not have.
    pub(crate) lag: Stretch,
}

/// A connection to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// How it is.
    pub(crate) state: LinkState,
    /// Since when; absent if never otherwise.
    pub(crate) since: Option<Moment>,
    /// Round trip, while connected, in microseconds.
    pub(crate) rtt_us: Option<u64>,
    /// Why it is not connected.
    pub(crate) reason: Option<String>,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LinkState {
    /// Records flow.
    Connected,
    /// Being dialled, or waited for.
    Connecting,
    /// The other side refused; tried again later.
    Refused,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// Its name.
    pub(crate) name: String,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// The NBD export; absent while it is not served here.
    pub(crate) export: Option<String>,
    /// NBD connections to it.
    pub(crate) connections: u32,
    /// The copy that its data is taken from where that is the same, on a replica that was given one.
    pub(crate) seed: Option<Seed>,
}

/// A copy of a volume that came by other means than the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seed {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Bytes that did not travel, since the daemon was started.
    pub(crate) used_bytes: u64,
    /// Why it is left alone.
    pub(crate) fault: Option<String>,
}

/// What the log takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Log {
    /// On disk now.
    pub(crate) used_bytes: u64,
    /// At most.
    pub(crate) limit_bytes: u64,
}

/// The recovery points, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// The oldest.
    pub(crate) horizon: At,
    /// The newest.
    pub(crate) latest: At,
    /// What that gives; absent from a daemon that does not tell.
    #[serde(default)]
    pub(crate) retention: Option<Retention>,
}

/// What retention gives now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retention {
    /// Every write of so many milliseconds is a point: of the last ones, or of those before the newest point.
    pub(crate) reach_ms: u64,
    /// They are the last ones: no write is known that the window lacks, but for what is on its way.
    pub(crate) up_to_now: bool,
    /// The limit by time.
    pub(crate) limit_ms: u64,
    /// The limit by bytes of log.
    pub(crate) limit_bytes: u64,
    /// Bytes of log in use for it.
    pub(crate) used_bytes: u64,
    /// Which limit ends it first; absent if it is too early to say.
    pub(crate) ends_by: Option<EndsBy>,
    /// In about so many milliseconds, at the pace so far; absent if that limit is reached.
    pub(crate) ends_in_ms: Option<u64>,
    /// Stretches within it whose writes are no points one by one, oldest first: sync spans.
    pub(crate) copied: Vec<Copied>,
}

/// A limit of retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndsBy {
    /// By age.
    Time,
    /// By what the log takes.
    Bytes,
}

/// A sync span within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copied {
    /// When the last point before it was written.
    pub(crate) from: Moment,
    /// When the first behind it was.
    pub(crate) to: Moment,
}

/// Answer to `points`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Points {
    /// The group.
    pub(crate) group: String,
    /// The ends; absent while there is no point.
    pub(crate) window: Option<Window>,
    /// The reigns within it, oldest first.
    pub(crate) reigns: Vec<Reign>,
    /// The sync spans within it, oldest first: their LSNs are no points.
    #[serde(default)]
    pub(crate) spans: Vec<Span>,
    /// The named marks within it, oldest first.
    pub(crate) marks: Vec<Mark>,
    /// The marks that are points behind it, oldest first.
    #[serde(default)]
    pub(crate) kept: Vec<KeptMark>,
    /// The periodic marks.
    #[serde(default)]
    pub(crate) periodic_marks: PeriodicMarks,
    /// What a failover set aside.
    pub(crate) branches: Vec<Branch>,
}

/// A mark that is a point behind the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptMark {
    /// Where.
    #[serde(flatten)]
    pub(crate) at: At,
    /// Its name; empty if nobody gave it one.
    pub(crate) name: String,
    /// What the applications were doing.
    pub(crate) kind: MarkKind,
    /// Bytes of disk that it takes: what was overwritten between it and the next.
    pub(crate) used_bytes: u64,
}

/// The periodic marks: crash-consistent points without a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeriodicMarks {
    /// How many there are.
    pub(crate) count: u64,
    /// The newest; absent if there is none.
    pub(crate) newest: Option<At>,
    /// The newest [`MAX_PERIODIC_MARKS`] of them, oldest first, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) marks: Vec<At>,
}

/// The most periodic marks that are told one by one: more than a day of them at the usual pace.
pub(crate) const MAX_PERIODIC_MARKS: usize = 20_000;

/// A stretch of LSNs that are no points: a sync span was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    /// The first of them.
    pub(crate) first: At,
    /// The first point behind them; absent while the span goes on.
    pub(crate) end: Option<At>,
}

/// A stretch of the log that one primary wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reign {
    /// The epoch.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// The node that wrote it, by name where known, else by identity.
    pub(crate) node: String,
    /// Its first position.
    pub(crate) first: At,
    /// Its last one so far.
    pub(crate) last: At,
}

/// A named point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Where.
    #[serde(flatten)]
    pub(crate) at: At,
    /// The name.
    pub(crate) name: String,
    /// What the applications were doing.
    #[serde(default)]
    pub(crate) kind: MarkKind,
}

/// What the applications were doing when a point was marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MarkKind {
    /// Nobody asked them.
    #[default]
    CrashConsistent,
    /// They had been asked to be still, and were.
    ApplicationConsistent,
}

/// A point to be marked: the one that everything written so far makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MarkRequest {
    /// The group's name.
    pub(crate) group: String,
    /// The mark's name.
    pub(crate) name: String,
    /// What the applications are doing.
    #[serde(default)]
    pub(crate) kind: MarkKind,
    /// Not from this moment on, in nanoseconds of CLOCK_MONOTONIC: the applications are let go then.
    #[serde(default)]
    pub(crate) before_ns: Option<u64>,
}

/// Writes that a failover did not take over; kept as long as the point at which they left the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Branch {
    /// Its name: the epoch, and the LSN before the first.
    pub(crate) id: BranchId,
    /// The epoch that wrote them.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// The first.
    pub(crate) first: At,
    /// The last.
    pub(crate) last: At,
    /// How much it is; `writes` are those of guests.
    #[serde(flatten)]
    pub(crate) size: Stretch,
    /// It is a branch on record; else what an old primary has written alone, which becomes one when it is taken back.
    pub(crate) kept: bool,
    /// All of it can be read.
    pub(crate) whole: bool,
}

/// The most ranges of a volume in a [`Loss`].
pub(crate) const MAX_LOST_RANGES: usize = 4_096;
/// The most writes that a [`Loss`] tells of one by one.
pub(crate) const MAX_LOST_WRITES: usize = 10_000;

/// What a failover left out. Answer to `loss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loss {
    /// The group.
    pub(crate) group: String,
    /// The branch that holds it.
    pub(crate) branch: Branch,
    /// By volume.
    pub(crate) volumes: Vec<LostVolume>,
    /// Each write, oldest first, as many as are told.
    pub(crate) writes: Vec<LostWrite>,
    /// The number of the others.
    pub(crate) more_writes: u64,
    /// Branches that are older than this one.
    pub(crate) older: u64,
}

/// Of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostVolume {
    /// Its name.
    pub(crate) name: String,
    /// Writes.
    pub(crate) writes: u64,
    /// Bytes that they wrote, counted once for each write.
    pub(crate) bytes: u64,
    /// What they touched, joined, ascending.
    pub(crate) ranges: Vec<LostRange>,
    /// The number of ranges that are not told.
    pub(crate) more_ranges: u64,
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostRange {
    /// Its first byte.
    pub(crate) offset: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostWrite {
    /// Which.
    #[serde(flatten)]
    pub(crate) at: At,
    /// To which volume.
    pub(crate) volume: String,
    /// To which part of it.
    #[serde(flatten)]
    pub(crate) range: LostRange,
}

/// A point that is being served. Answer to `mount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Its number.
    pub(crate) mount: MountId,
    /// The group.
    pub(crate) group: String,
    /// The point.
    pub(crate) at: At,
    /// The branch that it lies on, if it is not on the line.
    #[serde(default)]
    pub(crate) branch: Option<BranchId>,
    /// Where it is served.
    pub(crate) endpoint: Endpoint,
    /// The volumes, each with the export to ask for.
    pub(crate) volumes: Vec<Volume>,
    /// What writes to it take; absent if it is read-only.
    #[serde(default)]
    pub(crate) scratch: Option<Used>,
    /// Its times, if it is a drill.
    #[serde(default)]
    pub(crate) drill: Option<Drill>,
    /// What it costs; absent from a daemon that does not tell.
    #[serde(default)]
    pub(crate) pin: Option<Pin>,
    /// What is marked there; absent if nothing is.
    #[serde(default)]
    pub(crate) mark: Option<PointMark>,
}

/// What was marked at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PointMark {
    /// Its name; absent for a periodic mark.
    pub(crate) name: Option<String>,
    /// What the applications were doing.
    pub(crate) kind: MarkKind,
}

/// What a point that is in use costs: log that retention would have retired by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// Since when it is in use.
    pub(crate) since: Moment,
    /// Bytes of log that are held for it beyond retention.
    pub(crate) held_bytes: u64,
    /// At so many its mount is ended.
    pub(crate) limit_bytes: u64,
}

/// What a writable mount takes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// Now.
    pub(crate) used_bytes: u64,
    /// At the most.
    pub(crate) limit_bytes: u64,
}

/// The times of a drill, by the node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drill {
    /// When it began.
    pub(crate) begun: Moment,
    /// When it is ended, if nobody ends it before.
    pub(crate) ends: Moment,
}

/// Answer to `plan_failover`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The group.
    pub(crate) group: String,
    /// What this node is to it now.
    pub(crate) role: Role,
    /// The point.
    pub(crate) to: At,
    /// The branch that it lies on, if it is not on the line.
    #[serde(default)]
    pub(crate) branch: Option<BranchId>,
    /// What is marked at the point; absent if nothing is.
    #[serde(default)]
    pub(crate) mark: Option<PointMark>,
    /// The point of the promotion that is moved from there; absent if none is.
    #[serde(default)]
    pub(crate) from: Option<At>,
    /// The newest point.
    pub(crate) latest: At,
    /// The epoch that a failover would begin.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// (to, latest]: held here, set aside as a branch.
    pub(crate) set_aside: Stretch,
    /// What the primary is known to have beyond `latest`; it may have more.
    pub(crate) not_received: Stretch,
    /// When the primary was last heard.
    pub(crate) last_contact: Option<Moment>,
    /// What speaks against it, in words; such as a primary that is still connected.
    pub(crate) warnings: Vec<String>,
}

/// Answer to `failover`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promotion {
    /// The group.
    pub(crate) group: String,
    /// The epoch that began.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// The point that was taken over.
    pub(crate) to: At,
    /// It had been done before; nothing was changed now.
    pub(crate) already: bool,
    /// How long it took, from the request on.
    pub(crate) took_ms: u64,
    /// Where the volumes are served.
    pub(crate) nbd: Vec<Endpoint>,
    /// The volumes, each with the export to ask for.
    pub(crate) volumes: Vec<Volume>,
}

/// Why a request was not carried out; it changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    /// The kind, for programs.
    pub(crate) code: FaultCode,
    /// What happened, to what and why.
    pub(crate) message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultCode {
    /// The request is not JSON of this contract.
    BadRequest,
    /// Another version of the contract.
    Version,
    /// No such group, point or mount.
    NotFound,
    /// The state does not allow it.
    Refused,
    /// Somebody else was first.
    Conflict,
    /// A limit is reached; later it may work.
    Busy,
    /// The machine would not.
    Failed,
    /// Data is damaged.
    Corrupt,
}

impl Fault {
    /// A fault without advice.
    pub(crate) fn new(code: FaultCode, message: impl std::fmt::Display) -> Fault {
        Fault { code, message: message.to_string(), next: None }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        let code = match fault.code {
            FaultCode::BadRequest | FaultCode::Version | FaultCode::Busy | FaultCode::Failed => Code::Failed,
            FaultCode::NotFound | FaultCode::Refused | FaultCode::Conflict => Code::Refused,
            FaultCode::Corrupt => Code::Corrupt,
        };
        Failure { code, what: fault.message, next: fault.next }
    }
}
