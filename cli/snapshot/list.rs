//! `landfall snapshot list`: what there is, and what it uses.

use super::Place;
use crate::args::Global;
use crate::control::api::{At, Moment};
use crate::exit::Failure;
use crate::human::{self, Table, clean};
use crate::point::BranchId;
use crate::time;
use crate::units::Bytes;
use engine::snapshots::BLOCK;
use engine::snapshots::manifest::{Manifest, Volume};
use engine::snapshots::read::Usage;
use serde::Serialize;
use std::fmt::Write as _;

/// The store.
#[derive(Serialize)]
pub(super) struct Listed {
    /// The oldest first.
    pub(super) snapshots: Vec<Described>,
    /// What cannot be read.
    pub(super) damaged: Vec<Unreadable>,
    /// Of all blocks that any refers to.
    used_bytes: u64,
}

/// A snapshot.
#[derive(Serialize)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) at: At,
    /// The branch of the point, if it is not on the line.
    pub(super) branch: Option<BranchId>,
    /// The point as it was asked for.
    pub(super) point: String,
    /// When it was made.
    pub(super) made: Moment,
    pub(super) volumes: Vec<Size>,
    /// Of blocks that it refers to; null if it is damaged.
    pub(super) used_bytes: Option<u64>,
    /// Of these, blocks that no other refers to: what its deletion gives back.
    pub(super) own_bytes: Option<u64>,
}

/// A volume of a snapshot.
#[derive(Serialize)]
pub(super) struct Size {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// Of blocks that are not all zeros.
    pub(super) data_bytes: u64,
}

/// A file that cannot be read.
#[derive(Serialize)]
pub(super) struct Unreadable {
    /// Its name, by which it can be deleted.
    pub(super) file: String,
    pub(super) why: String,
}

/// Lists them.
pub(super) fn run(global: &Global) -> Result<(), Failure> {
    human::answer(global.form(), &Listed::of(&Place::of(global)?)?, text)
}

impl Listed {
    pub(super) fn of(place: &Place) -> Result<Listed, Failure> {
        let snapshots = place.snapshots()?;
        let (usage, used_bytes) = snapshots.usage().map_err(|error| place.failure(error))?;
        let described =
            snapshots.all().iter().zip(usage).map(|(manifest, usage)| Described::of(manifest, usage));
        let damaged = snapshots.damaged().iter();
        let damaged = damaged.map(|one| Unreadable { file: one.file_name.clone(), why: one.why.clone() });
        Ok(Listed { snapshots: described.collect(), damaged: damaged.collect(), used_bytes })
    }
}

impl Described {
    fn of(manifest: &Manifest, usage: Option<Usage>) -> Described {
        let about = &manifest.about;
        let size = |volume: &Volume| Size {
            name: volume.name.clone(),
            size_bytes: volume.size,
            data_bytes: volume.blocks * BLOCK,
        };
        Described {
            name: about.name.clone(),
            group: about.group.clone(),
            at: At { lsn: about.lsn, time: Moment(about.time) },
            branch: about.branch.map(|(epoch, after)| BranchId { epoch, after }),
            point: about.point.clone(),
            made: Moment(about.made),
            volumes: manifest.volumes.iter().map(size).collect(),
            used_bytes: usage.map(|usage| usage.used_bytes),
            own_bytes: usage.map(|usage| usage.own_bytes),
        }
    }
}

fn text(listed: &Listed) -> String {
    if listed.snapshots.is_empty() && listed.damaged.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let mut table = Table::new(&["SNAPSHOT", "GROUP", "LSN", "POINT OF", "MADE", "SIZE", "USED", "OWN"])
        .right(&[2, 5, 6, 7]);
    let bytes =
        |bytes: Option<u64>| bytes.map_or_else(|| "damaged".to_owned(), |bytes| Bytes(bytes).to_string());
    for one in &listed.snapshots {
        let size = one.volumes.iter().map(|volume| volume.size_bytes).sum();
        table.row(&[
            one.name.clone(),
            one.group.clone(),
            one.at.lsn.to_string(),
            time::format(one.at.time.0),
            time::format(one.made.0),
            Bytes(size).to_string(),
            bytes(one.used_bytes),
            bytes(one.own_bytes),
        ]);
    }
    let mut out = table.render();
    let _ =
        writeln!(out, "All together use {}. OWN is what deleting one gives back.", Bytes(listed.used_bytes));
    for damaged in &listed.damaged {
        let _ = writeln!(out, "{}: {}", clean(&damaged.file), clean(&damaged.why));
    }
    out
}
