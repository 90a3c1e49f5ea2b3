//! `landfall branches export`: what a branch has written to a volume, onto an image of the point at which it left the line.
//!
//! An old primary has the branch's writes, and not that point any more: its disk has moved on with the new primary. The
//! node that keeps the point restores it to an image, and here the writes are put onto that. To be cut off in the middle of
//! it leaves an image in which some of them are; to begin again puts all of them there.

use super::disk::data;
use super::mounted::Mounted;
use crate::args::{self, Global, OfVolume};
use crate::control::api::Content;
use crate::exit::{Context, Failure};
use crate::human::{self, clean};
use crate::progress::Progress;
use crate::units::Bytes;
use serde::Serialize;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};

/// Bytes of one read.
const PIECE_BYTES: u64 = 1 << 20;

#[derive(Serialize)]
struct Exported<'a> {
    group: &'a str,
    volume: &'a str,
    at: crate::point::Point,
    onto: String,
    written_bytes: u64,
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::ExportBranch) -> Result<(), Failure> {
    let OfVolume { group, volume } = &arguments.volume;
    let name = arguments.onto.display().to_string();
    if arguments.at.branch.is_none() {
        return Err(Failure::usage("--at names no branch: write it as in `latest@1-12345`")
            .next(format_args!("`landfall branches list {group}` names them")));
    }
    let mount = Mounted::of(global, &arguments.volume, arguments.at.clone(), Content::Written)?;
    let mut reader = mount.connect()?;
    let size = reader.size();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let metadata = std::fs::metadata(&arguments.onto).context(|| format!("{name} cannot be looked at"))?;
    if metadata.file_type().is_block_device() {
        // Refused by the kernel while it is mounted or otherwise in use.
        options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    } else if !metadata.is_file() || metadata.len() != size {
        return Err(Failure::refused(format_args!(
            "{name} is no image of {group}/{volume}, which has {size} bytes"
        ))
        .next(format_args!(
            "`landfall restore disk {group}/{volume} --at lsn:{} --to {name}`, on the node that keeps that point",
            arguments.at.branch.map_or(0, |branch| branch.after.0)
        )));
    }
    let image = options.open(&arguments.onto).context(|| format!("{name} cannot be written"))?;
    let ranges = data(&mut reader, size).map_err(Failure::failed)?;
    let total = ranges.iter().map(|(start, end)| end - start).sum();
    human::say(format_args!(
        "Onto {name} go {} that the branch has written to {}/{}.",
        Bytes(total),
        clean(group),
        clean(volume)
    ));
    if !arguments.yes {
        human::confirm(&format!("Write to {name}?"))?;
    }
    let mut progress = Progress::bytes("written", total);
    let mut buffer = vec![0; PIECE_BYTES as usize];
    for (start, end) in ranges {
        let mut at = start;
        while at < end {
            let piece = &mut buffer[..(end - at).min(PIECE_BYTES) as usize];
            reader.read(at, piece).context(|| format!("{group}/{volume} cannot be read at byte {at}"))?;
            image.write_all_at(piece, at).context(|| format!("{name} cannot be written"))?;
            at += piece.len() as u64;
            progress.add(piece.len() as u64);
        }
    }
    image.sync_all().context(|| format!("{name} cannot be synced"))?;
    drop(progress);
    let at = crate::point::Point::lsn(mount.at.lsn, mount.branch);
    let exported = Exported { group, volume, at, onto: name, written_bytes: total };
    human::answer(global.form(), &exported, |exported| {
        format!(
            "{}/{} at {}: {} written onto {}\n",
            clean(exported.group),
            clean(exported.volume),
            exported.at,
            Bytes(exported.written_bytes),
            exported.onto
        )
    })
}
