//! The seam between the binary and the engine: the three functions that need both.
//!
//! [`start`] opens the groups of a configuration and returns what the control server asks; [`inspect`] and
//! [`verify`] read a log on disk.

use crate::certs::Identity;
use crate::commands::log::{Inspection, Verification};
use crate::config::Config;
use crate::control::Operator;
use crate::control::api::{Failover, Fault, Mount, MountId, MountRequest, Plan, Points, Promotion, Status};
use crate::daemon;
use crate::exit::Failure;
use crate::point::Point;
use std::path::Path;

/// A running node. It has no value while the engine's runtime is not joined here.
pub(crate) enum Node {}

/// Starts a node.
pub(crate) fn start(config: &Config, identity: Identity) -> Result<Node, Failure> {
    let Identity { ca, certificate, key } = identity;
    drop((ca, certificate, key));
    Err(not_joined(&config.path))
}

/// Reads the outline of a log.
pub(crate) fn inspect(dir: &Path) -> Result<Inspection, Failure> {
    Err(not_joined(dir))
}

/// Reads all of a log.
pub(crate) fn verify(dir: &Path) -> Result<Verification, Failure> {
    Err(not_joined(dir))
}

fn not_joined(what: &Path) -> Failure {
    Failure::failed(format_args!("{}: this build holds no engine", what.display()))
}

impl daemon::Node for Node {
    fn defect(&self) -> Option<Failure> {
        match *self {}
    }

    fn stop(&self) {
        match *self {}
    }
}

impl Operator for Node {
    fn status(&self) -> Result<Status, Fault> {
        match *self {}
    }

    fn points(&self, _group: &str) -> Result<Points, Fault> {
        match *self {}
    }

    fn mount(&self, _request: &MountRequest) -> Result<Mount, Fault> {
        match *self {}
    }

    fn unmount(&self, _mount: MountId) -> Result<(), Fault> {
        match *self {}
    }

    fn plan_failover(&self, _group: &str, _to: Point) -> Result<Plan, Fault> {
        match *self {}
    }

    fn failover(&self, _request: &Failover) -> Result<Promotion, Fault> {
        match *self {}
    }
}
