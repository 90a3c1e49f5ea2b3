//! `landfall snapshot`: whole, read-only copies of a group's volumes, which outlive its log, its retention and the group.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line |
//! | [`create`] | `snapshot create`: a point, as the daemon serves it, into the store |
//! | [`list`] | `snapshot list`: what there is, and what it uses |
//! | [`delete`] | `snapshot delete` |
//! | [`diff`] | `snapshot diff`: what differs between two |
//! | [`export`] | `snapshot export`: a disk of one |
//! | [`verify`] | `snapshot verify`: whether all can be read |
//!
//! The store is [`engine::snapshots`], in the node's data directory. Commands open it themselves, so only `create` needs a
//! daemon. Those that change it take its lock: one at a time.

pub(crate) mod args;
mod create;
mod delete;
mod diff;
mod export;
mod list;
mod verify;

use crate::args::Global;
use crate::config::diagnose::nearest;
use crate::exit::{Context, Failure};
use args::Snapshot;
use engine::io::Storage;
use engine::os::disk::Disk;
use engine::snapshots::read::Snapshots;
use engine::snapshots::{Error, FOLDER};
use std::path::PathBuf;
use std::sync::Arc;

/// Carries out one of them.
pub(crate) fn run(global: &Global, command: &Snapshot) -> Result<(), Failure> {
    match command {
        Snapshot::Create(arguments) => create::run(global, arguments),
        Snapshot::List => list::run(global),
        Snapshot::Delete(arguments) => delete::run(global, arguments),
        Snapshot::Diff(arguments) => diff::run(global, arguments),
        Snapshot::Export(arguments) => export::run(global, arguments),
        Snapshot::Verify(arguments) => verify::run(global, arguments),
    }
}

/// The node's store.
struct Place {
    /// The data directory.
    folder: PathBuf,
    storage: Arc<dyn Storage>,
}

impl Place {
    fn of(global: &Global) -> Result<Place, Failure> {
        let folder = global.load()?.node.data_dir;
        let storage = Disk::new(&folder).context(|| format!("{} cannot be opened", folder.display()))?;
        Ok(Place { folder, storage: Arc::new(storage) })
    }

    fn snapshots(&self) -> Result<Snapshots, Failure> {
        Snapshots::open(self.storage.clone()).map_err(|error| self.failure(error))
    }

    /// What an error of the store means to who asked.
    fn failure(&self, error: Error) -> Failure {
        match &error {
            Error::Io { .. } if error.is_no_space() => {
                Failure::failed(format_args!("{}: {error}", self.folder.join(FOLDER).display()))
                    .next("make room, or delete snapshots that are needed no more, and repeat the command")
            }
            Error::Io { .. } => Failure::failed(format_args!("in {}: {error}", self.folder.display())),
            Error::Held => Failure::refused(error).next("repeat the command when it is done"),
            Error::Name(_) => Failure::usage(error),
            Error::Taken(_) => Failure::refused(error)
                .next("take another name, or delete that one with `landfall snapshot delete`"),
            Error::Unknown(name) => Failure::refused(&error).next(self.instead(name)),
            Error::NoVolume { snapshot, .. } => Failure::refused(&error).next(self.volumes(snapshot)),
            Error::Damaged { .. } | Error::Version { .. } => {
                Failure::corrupt(format_args!("in {}: {error}", self.folder.display()))
                    .next("`landfall snapshot list` names what is damaged; the others can be used")
            }
            Error::Rotten { .. } => Failure::corrupt(error).next(
                "look for failing hardware; another snapshot, or the point itself, may have what was there",
            ),
            Error::Gone(_) | Error::Full => Failure::failed(error),
        }
    }

    /// What may have been meant by a name that nothing has.
    fn instead(&self, name: &str) -> String {
        let snapshots = Snapshots::open(self.storage.clone());
        let known: Vec<&str> = match &snapshots {
            Ok(snapshots) => snapshots.all().iter().map(|manifest| manifest.about.name.as_str()).collect(),
            Err(_) => Vec::new(),
        };
        match nearest(name, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`landfall snapshot list` names them".to_owned(),
        }
    }

    fn volumes(&self, snapshot: &str) -> String {
        let snapshots = Snapshots::open(self.storage.clone());
        let found = snapshots.as_ref().ok().and_then(|snapshots| snapshots.find(snapshot).ok());
        let names = found
            .map(|manifest| manifest.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>());
        format!("its volumes are: {}", names.unwrap_or_default().join(", "))
    }
}
