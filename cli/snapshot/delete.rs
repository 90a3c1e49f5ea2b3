//! `landfall snapshot delete`.

use super::list::{Described, Listed};
use super::{Place, args};
use crate::args::Global;
use crate::exit::Failure;
use crate::human::{self, clean};
use crate::time;
use crate::units::Bytes;
use engine::snapshots::create::Store;
use serde::Serialize;

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
    /// What that gave back.
    freed_bytes: u64,
}

/// Carries it out.
pub(super) fn run(global: &Global, arguments: &args::Delete) -> Result<(), Failure> {
    let args::Delete { name, yes } = arguments;
    let place = Place::of(global)?;
    let listed = Listed::of(&place)?;
    if let Some(found) = listed.snapshots.iter().find(|found| found.name == *name) {
        human::say(about(found));
    } else if let Some(damaged) = listed.damaged.iter().find(|damaged| damaged.file == *name) {
        human::say(format_args!("{}. It is gone for good then.", clean(&damaged.why)));
    } else {
        return Err(place.failure(engine::snapshots::Error::Unknown(name.clone())));
    }
    if !yes {
        human::confirm(&format!("Delete snapshot {name}?"))?;
    }
    let mut store = Store::open(place.storage.clone()).map_err(|error| place.failure(error))?;
    let freed_bytes = store.delete(name).map_err(|error| place.failure(error))?;
    human::answer(global.form(), &Deleted { deleted: name, freed_bytes }, |deleted| {
        format!("snapshot {} is deleted: {} are free again\n", deleted.deleted, Bytes(deleted.freed_bytes))
    })
}

fn about(found: &Described) -> String {
    let gives_back = found.own_bytes.map(|own| format!("; {} of its data are in no other", Bytes(own)));
    format!(
        "Snapshot {} of group {} at LSN {} ({}), made {}{}. It is gone for good then.",
        clean(&found.name),
        clean(&found.group),
        found.at.lsn,
        time::format(found.at.time.0),
        time::format(found.made.0),
        gives_back.unwrap_or_default()
    )
}
