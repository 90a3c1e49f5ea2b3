//! A volume at a point, as the daemon serves it for a restore: read-only, and until the command is done with it.

use crate::args::{Global, OfVolume};
use crate::control;
use crate::control::api::{At, Content, Endpoint, MountRequest};
use crate::exit::{Context, Failure};
use crate::point::{BranchId, Point};
use std::time::Duration;
use transport::nbd::client::{Address, Client};

/// The daemon has this long for each answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The mount; it ends when this is dropped.
pub(super) struct Mounted {
    /// The point, as it was resolved.
    pub(super) at: At,
    /// The branch that it lies on, if it is not on the line.
    pub(super) branch: Option<BranchId>,
    name: String,
    address: Address,
    export: String,
    _control: control::Client,
}

impl Mounted {
    /// Has the daemon mount a volume at a point.
    pub(super) fn new(global: &Global, of: &OfVolume, at: Point) -> Result<Mounted, Failure> {
        Mounted::of(global, of, at, Content::Whole)
    }

    /// As [`Mounted::new`], or what a branch has written to it.
    pub(super) fn of(
        global: &Global,
        of: &OfVolume,
        at: Point,
        content: Content,
    ) -> Result<Mounted, Failure> {
        let OfVolume { group, volume } = of;
        let mut control = global.connect()?;
        let mount = control.mount(MountRequest { content, ..MountRequest::read_only(group, at) })?;
        let (at, branch) = (mount.at, mount.branch);
        let found = mount.volumes.into_iter().find(|found| found.name == *volume);
        let export = found.and_then(|found| found.export).ok_or_else(|| {
            Failure::refused(format_args!("group {group} has no volume {volume} at LSN {}", at.lsn))
                .next(format_args!("`landfall status` lists the volumes of {group}"))
        })?;
        let address = match mount.endpoint {
            Endpoint::Unix(path) => Address::Unix(path),
            Endpoint::Tcp(address) => {
                return Err(Failure::failed(format_args!("served at {address} unasked")));
            }
        };
        Ok(Mounted { at, branch, name: format!("{group}/{volume}"), address, export, _control: control })
    }

    /// A connection to it.
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.address, &self.export, PATIENCE)
            .context(|| format!("{} at LSN {} cannot be read", self.name, self.at.lsn))
    }
}
