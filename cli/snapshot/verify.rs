//! `landfall snapshot verify`: reads all blocks of snapshots, and checks them.

use super::{Place, args};
use crate::args::Global;
use crate::exit::Failure;
use crate::human::{self, clean};
use crate::progress::Progress;
use crate::units::Bytes;
use engine::digest::Digest;
use engine::snapshots::manifest::Manifest;
use engine::snapshots::read::Snapshots;
use engine::snapshots::{BLOCK, Error};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;

#[derive(Default, Serialize)]
struct Verified {
    /// That were read whole.
    snapshots: u64,
    /// That were read; what several share counts once.
    checked_bytes: u64,
    /// Blocks that are not what was written.
    rotten: Vec<Rotten>,
    /// Manifests that cannot be read.
    damaged: Vec<String>,
}

#[derive(Serialize)]
struct Rotten {
    snapshot: String,
    volume: String,
    offset: u64,
}

/// Carries it out.
pub(super) fn run(global: &Global, arguments: &args::Verify) -> Result<(), Failure> {
    let place = Place::of(global)?;
    let snapshots = place.snapshots()?;
    let mut verified = Verified::default();
    let chosen: Vec<&Manifest> = match &arguments.name {
        Some(name) => vec![snapshots.find(name).map_err(|error| place.failure(error))?],
        None => {
            verified.damaged = snapshots.damaged().iter().map(|damaged| damaged.why.clone()).collect();
            snapshots.all().iter().collect()
        }
    };
    let blocks: u64 = chosen.iter().flat_map(|manifest| &manifest.volumes).map(|volume| volume.blocks).sum();
    let mut progress = Progress::bytes("checking", blocks.saturating_mul(BLOCK));
    let mut sound = HashMap::new();
    for manifest in chosen {
        match check(&snapshots, manifest, &mut sound, &mut verified, &mut progress) {
            Ok(()) => verified.snapshots += 1,
            Err(error @ Error::Damaged { .. }) => verified.damaged.push(error.to_string()),
            Err(error @ Error::Gone(_)) => human::say(format_args!("{error}: it is left out")),
            Err(error) => return Err(place.failure(error)),
        }
    }
    drop(progress);
    human::answer(global.form(), &verified, text)?;
    match verified.rotten.len() + verified.damaged.len() {
        0 => Ok(()),
        found => Err(Failure::corrupt(format_args!("{found} damages were found")).next(
            "look for failing hardware; a snapshot that is made now takes over nothing that is damaged",
        )),
    }
}

/// Reads one. `sound` has the slots that were found sound, each with the digest of what it held.
fn check(
    snapshots: &Snapshots,
    manifest: &Manifest,
    sound: &mut HashMap<u32, Digest>,
    verified: &mut Verified,
    progress: &mut Progress,
) -> Result<(), Error> {
    let mut block = vec![0; BLOCK as usize];
    for volume in &manifest.volumes {
        let reader = snapshots.reader(&manifest.about.name, &volume.name)?;
        for entry in reader.entries() {
            progress.add(BLOCK);
            if sound.get(&entry.slot) == Some(&entry.digest) {
                continue;
            }
            verified.checked_bytes += BLOCK;
            match reader.read(entry, &mut block) {
                Ok(_) => {
                    sound.insert(entry.slot, entry.digest);
                }
                Err(Error::Rotten { snapshot, volume, offset }) => {
                    verified.rotten.push(Rotten { snapshot, volume, offset });
                }
                Err(other) => return Err(other),
            }
        }
    }
    Ok(())
}

fn text(verified: &Verified) -> String {
    let mut out =
        format!("{} snapshots, {} of data checked\n", verified.snapshots, Bytes(verified.checked_bytes));
    for Rotten { snapshot, volume, offset } in &verified.rotten {
        let _ = writeln!(out, "{}/{}: the block at byte {offset} is damaged", clean(snapshot), clean(volume));
    }
    for damaged in &verified.damaged {
        let _ = writeln!(out, "{}", clean(damaged));
    }
    out
}
