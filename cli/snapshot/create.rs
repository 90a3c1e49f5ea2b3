//! `landfall snapshot create`: a point, as the daemon serves it, into the store.
//!
//! All volumes are read from one mount, which keeps the point for as long as it takes. What is data there is read and
//! compared with the newest snapshot of the same volume; what is the same is shared. The command may die at any moment: the
//! next one that changes the store clears away what it left.

use super::{Place, args};
use crate::args::Global;
use crate::control::api::{At, Endpoint, Mount, MountRequest};
use crate::exit::{Context, Failure};
use crate::human::{self, clean};
use crate::point::Point;
use crate::progress::Progress;
use crate::restore::disk::data;
use crate::time;
use crate::units::Bytes;
use engine::snapshots::create::{Creation, Store, Taken};
use engine::snapshots::manifest::About;
use engine::snapshots::{BLOCK, FOLDER};
use rustix::fs::statvfs;
use serde::Serialize;
use std::time::Duration;
use transport::nbd::client::{Address, Client};

/// The daemon has this long for each answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is read at a time.
const PIECE_BYTES: u64 = 16 * BLOCK;

/// What a snapshot leaves free of the disk: replication writes to the same one, and must not stop for it.
const RESERVE_BYTES: u64 = 1 << 30;

/// New data between two looks at what is free.
const LOOK_BYTES: u64 = 64 << 20;

#[derive(Serialize)]
struct Created<'a> {
    name: &'a str,
    group: &'a str,
    /// The point, as it was resolved.
    at: At,
    point: Point,
    size_bytes: u64,
    /// Of blocks that are not all zeros.
    data_bytes: u64,
    /// Of these, what no older snapshot had.
    new_bytes: u64,
}

/// A volume to be copied.
struct Source {
    name: String,
    client: Client,
    /// Where it has data: first byte, and the one behind the last.
    ranges: Vec<(u64, u64)>,
}

/// Carries it out.
pub(super) fn run(global: &Global, arguments: &args::Create) -> Result<(), Failure> {
    let args::Create { group, name, at } = arguments;
    let place = Place::of(global)?;
    let mut control = global.connect()?;
    let mount = control.mount(MountRequest::read_only(group, at.clone()))?;
    let mut sources = sources(&mount)?;
    let point = Point::lsn(mount.at.lsn, mount.branch);
    let about = About {
        name: name.clone(),
        made: time::now(),
        group: group.clone(),
        lsn: mount.at.lsn,
        branch: mount.branch.map(|branch| (branch.epoch, branch.after)),
        time: mount.at.time.0,
        point: at.to_string(),
    };
    let store = Store::open(place.storage.clone()).map_err(|error| place.failure(error))?;
    for damaged in store.damaged() {
        human::say(format_args!("{}; no space is given back before it is deleted", clean(&damaged.why)));
    }
    let mut creation = store.create(about).map_err(|error| place.failure(error))?;
    if let Err(failure) = copy(&place, &mut sources, &mut creation) {
        // If that fails, too, it is left to the next command.
        let _ = creation.abandon();
        return Err(failure);
    }
    let Taken { data_bytes, new_bytes } = creation.finish().map_err(|error| place.failure(error))?;
    let size_bytes = sources.iter().map(|source| source.client.size()).sum();
    let created = Created { name, group, at: mount.at, point, size_bytes, data_bytes, new_bytes };
    human::answer(global.form(), &created, text)
}

fn text(created: &Created<'_>) -> String {
    format!(
        "snapshot {} of group {} at {} ({})\n  size {}, {} of data, {} of it new\n",
        created.name,
        clean(created.group),
        created.point,
        time::format(created.at.time.0),
        Bytes(created.size_bytes),
        Bytes(created.data_bytes),
        Bytes(created.new_bytes)
    )
}

fn sources(mount: &Mount) -> Result<Vec<Source>, Failure> {
    let address = match &mount.endpoint {
        Endpoint::Unix(path) => Address::Unix(path.clone()),
        Endpoint::Tcp(address) => return Err(Failure::failed(format_args!("served at {address} unasked"))),
    };
    let mut sources = Vec::new();
    for volume in &mount.volumes {
        let cannot = || format!("{}/{} at LSN {} cannot be read", mount.group, volume.name, mount.at.lsn);
        let export = volume.export.as_ref();
        let export = export.ok_or_else(|| Failure::failed(format_args!("{}: it is not served", cannot())))?;
        let mut client = Client::connect(&address, export, PATIENCE).context(cannot)?;
        let size = client.size();
        let ranges = data(&mut client, size).context(cannot)?;
        sources.push(Source { name: volume.name.clone(), client, ranges });
    }
    Ok(sources)
}

fn copy(place: &Place, sources: &mut [Source], creation: &mut Creation) -> Result<(), Failure> {
    let ranges = sources.iter().flat_map(|source| &source.ranges);
    let mut progress = Progress::bytes("reading", ranges.map(|(start, end)| end - start).sum());
    let (mut piece, mut next_look) = (vec![0; PIECE_BYTES as usize], 0);
    for Source { name, client, ranges } in sources {
        let size = client.size();
        creation.volume(name, size).map_err(|error| place.failure(error))?;
        let mut at = 0;
        for (start, end) in ranges.iter() {
            // Two ranges may share a block.
            at = at.max(start / BLOCK * BLOCK);
            while at < *end {
                if creation.taken().new_bytes >= next_look {
                    check_room(place)?;
                    next_look = creation.taken().new_bytes + LOOK_BYTES;
                }
                let len = PIECE_BYTES.min(end.next_multiple_of(BLOCK).min(size) - at);
                let piece = &mut piece[..len as usize];
                client.read(at, piece).context(|| format!("{name} cannot be read at byte {at}"))?;
                for (number, block) in (at / BLOCK..).zip(piece.chunks(BLOCK as usize)) {
                    creation.write(number, block).map_err(|error| place.failure(error))?;
                }
                at += len;
                progress.add(len);
            }
        }
    }
    Ok(())
}

fn check_room(place: &Place) -> Result<(), Failure> {
    // A disk of its own may be mounted there.
    let folder = place.folder.join(FOLDER);
    let disk = statvfs(&folder).context(|| format!("{} cannot be looked at", folder.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < RESERVE_BYTES + LOOK_BYTES {
        return Err(Failure::failed(format_args!(
            "only {} are free in {}: a snapshot leaves {} to replication",
            Bytes(free),
            folder.display(),
            Bytes(RESERVE_BYTES)
        ))
        .next("make room, or delete snapshots that are needed no more, and repeat the command"));
    }
    Ok(())
}
