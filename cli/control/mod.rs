//! The control API: how the commands speak to a running daemon.
//!
//! | module | what it is |
//! |---|---|
//! | [`api`] | the requests and answers, as data: the contract, also of `--json` |
//! | [`client`] | one side of the socket: the commands |
//! | [`server`] | the other side: the daemon, over anything that is an [`Operator`] |
//!
//! `cli/CONTROL.md` is the specification.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod server;

pub(crate) use client::Client;
pub(crate) use server::Server;

use crate::point::{BranchId, Point};
use api::{
    Branch, Committed, Failover, Fault, Loss, Mark, MarkRequest, Mount, MountId, MountRequest, Plan, Points,
    PointsRequest, Promotion, Protected, Record, Reprotected, Resize, Resized, Resync, Round, Seeded, Status,
    Verify,
};
use engine::types::Lsn;

/// What a daemon can be asked to do. The control server calls it from up to [`server::MAX_CONNECTIONS`] threads
/// at a time; every method may block, and reports a refusal as a [`Fault`] without having changed anything.
pub(crate) trait Operator: Send + Sync {
    /// Everything that `landfall status` shows. Must answer while a group is failed, fenced or starting.
    fn status(&self) -> Result<Status, Fault>;

    /// The recovery points of a group.
    fn points(&self, request: &PointsRequest) -> Result<Points, Fault>;

    /// Pins a point and serves it over NBD until [`Operator::unmount`], or to its limit if it is a drill. Whoever asked
    /// with [`api::Hold::Connection`] is unmounted by the server when the connection ends. What is written to it goes
    /// nowhere but to a scratch file, which is gone with the mount.
    fn mount(&self, request: &MountRequest) -> Result<Mount, Fault>;

    /// Ends a mount and drops its pin. `not_found` if there is none, so that a second call tells.
    fn unmount(&self, mount: MountId) -> Result<(), Fault>;

    /// What [`Operator::failover`] to that point would do and cost. Changes nothing.
    fn plan_failover(&self, group: &str, to: Point) -> Result<Plan, Fault>;

    /// Makes this node the group's primary at a point, under `request.epoch`. Returns once writes are accepted
    /// and the new epoch is durable. `conflict` if that epoch has been seen already; the same request repeated
    /// after it succeeded answers with [`Promotion::already`] set.
    fn failover(&self, request: &Failover) -> Result<Promotion, Fault>;

    /// Has the primary hand the group over to this replica, and returns once this is the primary. `refused` where this
    /// is no whole replica whose primary is connected, or could not have the old primary as its replica; `failed` if the primary goes on serving.
    fn handover(&self, group: &str) -> Result<Promotion, Fault>;

    /// Stands by the failover that made this node the primary. Done before, or never failed over: nothing changes.
    fn commit(&self, group: &str) -> Result<Committed, Fault>;

    /// Has old primaries taken back as replicas. `refused` before a commit, and where no replica is configured.
    fn reprotect(&self, group: &str) -> Result<Reprotected, Fault>;

    /// What failovers set aside here, oldest first.
    fn branches(&self, group: &str) -> Result<Vec<Branch>, Fault>;

    /// Gives up a branch for good. `refused` before the commit of its failover.
    fn drop_branch(&self, group: &str, branch: BranchId) -> Result<(), Fault>;

    /// What the newest of them is, write by write. `refused` if there is none.
    fn loss(&self, group: &str) -> Result<Loss, Fault>;

    /// Allows a copy of everything for a replica whose lacks are not known; it begins when the replica next calls.
    /// `refused` if the replica needs none, and nothing changes then.
    fn resync(&self, request: &Resync) -> Result<(), Fault>;

    /// Begins a round of verification, and answers with it as it is then; with the one under way if that does the same
    /// with mismatches. `conflict` if it does not.
    fn verify(&self, request: &Verify) -> Result<Round, Fault>;

    /// Takes on a volume that the configuration file names by now. One that is there already is no mistake. `refused` where
    /// it cannot be protected, and nothing changes then.
    fn protect(&self, group: &str, volume: &str) -> Result<Protected, Fault>;

    /// Makes use of the seed of a volume that the configuration file names by now.
    ///
    /// # Errors
    /// It has none there, or none that can be read; this node is no replica of the group.
    fn seed(&self, group: &str, volume: &str) -> Result<Seeded, Fault>;

    /// Marks the point that everything written so far makes. `refused` on a node that is not the primary.
    fn mark(&self, request: &MarkRequest) -> Result<Mark, Fault>;

    /// Gives a volume another size. `refused` where that cannot be, and nothing changes then: if it gets smaller, also
    /// while NBD clients are connected to it.
    fn resize(&self, request: &Resize) -> Result<Resized, Fault>;

    /// What one record of a group's log is. `not_found` if the log does not hold it.
    fn record(&self, group: &str, lsn: Lsn) -> Result<Record, Fault>;
}

#[cfg(test)]
mod tests;
