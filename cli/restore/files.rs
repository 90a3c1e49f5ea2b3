//! `landfall restore files`: files and folders of a volume at a point, into a folder here, without a mount and
//! without root.
//!
//! What comes of it is on disk when the command says so: the target's filesystem is synced before.

use super::copy::{self, Tally};
use super::lookup::{self, Found, Last, shown};
use super::volume::{self, Contents, Described, Number};
use super::write::{self, Existing, Target};
use crate::args::{self, Global};
use crate::exit::{Code, Context, Failure};
use crate::human::{self, clean};
use crate::units::Bytes;
use serde::Serialize;

/// What the answer for people lists; all is in the one for programs.
const MAX_SHOWN: usize = 50;

/// The answer.
#[derive(Serialize)]
struct Restored {
    #[serde(flatten)]
    point: Described,
    partition: Number,
    filesystem: &'static str,
    notes: Vec<String>,
    /// What was asked for, where it was found: without links on the way.
    paths: Vec<String>,
    to: String,
    #[serde(flatten)]
    tally: Tally,
    /// Files that have not got their owner back.
    without_owner: u64,
    /// Extended attributes that were not taken.
    without_attributes: u64,
    /// Hard links that became copies.
    links_copied: u64,
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::RestoreFiles) -> Result<(), Failure> {
    let opened = volume::open(global, &arguments.volume, arguments.at.clone(), arguments.partition)?;
    let name = format!("{}/{}", arguments.volume.group, arguments.volume.volume);
    let (partition, filesystem) = match opened.contents {
        Contents::Filesystem { partition, filesystem } => (partition, filesystem),
        Contents::Partitions(table, found) => {
            let parts = table.partitions.iter().zip(found);
            let parts = parts.map(|(part, kind)| {
                format!("{} ({}, {})", part.number, Bytes(part.len), kind.as_deref().unwrap_or("unknown"))
            });
            return Err(Failure::usage(format_args!("{name} has several partitions, and none is named"))
                .next(format_args!("add --partition N: {}", parts.collect::<Vec<_>>().join(", "))));
        }
    };
    let filesystem = filesystem.as_ref();
    let mut selected: Vec<Found> = Vec::new();
    for path in &arguments.paths {
        let found = lookup::find(filesystem, path, Last::AsItIs)?;
        // What lies in another one comes with that.
        if !selected.iter().any(|other| found.is_within(other)) {
            selected.retain(|other| !other.is_within(&found));
            selected.push(found);
        }
    }
    let to = arguments.to.display().to_string();
    let existing = if arguments.force { Existing::Replace } else { Existing::Keep };
    let mut target =
        Target::open(&arguments.to, existing).context(|| format!("{to} cannot be used as a folder"))?;
    write::raise_limit();
    let tally = copy::copy(filesystem, &selected, opened.size, &mut target)?;
    target.sync().context(|| format!("{to} cannot be synced"))?;
    let lacks = target.lacks;
    if lacks.owners + lacks.attributes > 0 {
        human::say(format_args!(
            "not restored: the owner of {} files, {} extended attributes ({})",
            lacks.owners,
            lacks.attributes,
            clean(&lacks.why.unwrap_or_default())
        ));
    }
    if lacks.links > 0 {
        human::say(format_args!("{} hard links could not be made, and are copies", lacks.links));
    }
    let restored = Restored {
        point: opened.point,
        partition,
        filesystem: filesystem.kind(),
        notes: filesystem.notes().to_vec(),
        paths: selected.iter().map(|found| shown(&found.path())).collect(),
        to,
        tally,
        without_owner: lacks.owners,
        without_attributes: lacks.attributes,
        links_copied: lacks.links,
    };
    human::answer(global.form(), &restored, text)?;
    match restored.tally.left_count {
        0 => Ok(()),
        count => Err(Failure::new(
            Code::Partial,
            format_args!("{count} of what was asked for is not restored as it was: it is listed above"),
        )),
    }
}

fn text(done: &Restored) -> String {
    let tally = &done.tally;
    let mut out = format!(
        "{}, {}\n  from     {}\n  to       {}\n  restored {} files, {} folders, {} symlinks, {} hard links; {} of data\n",
        done.point.text(done.partition),
        done.filesystem,
        clean(&done.paths.join(", ")),
        done.to,
        tally.files,
        tally.folders,
        tally.symlinks,
        tally.hard_links,
        Bytes(tally.data_bytes),
    );
    if tally.special_count > 0 {
        out.push_str(&format!("  skipped  {} devices, sockets or pipes\n", tally.special_count));
    }
    if tally.left_count > 0 {
        out.push_str(&format!("  not restored as it was: {}\n", tally.left_count));
    }
    for left in tally.left.iter().take(MAX_SHOWN) {
        out.push_str(&format!("    {}: {}\n", clean(&left.path), clean(&left.why)));
    }
    let all = tally.left_count + tally.special_count;
    if all > MAX_SHOWN as u64 {
        out.push_str(&format!("    and {} more: --json lists them\n", all - MAX_SHOWN as u64));
    }
    out
}
