//! What is on a volume at a point: partitions, or a filesystem.

use super::filesystem::{self, Filesystem};
use super::mounted::Mounted;
use super::partitions::{self, Partition, Table};
use super::source::{Export, Source, Trouble, Window};
use crate::args::{Global, OfVolume};
use crate::control::api::At;
use crate::exit::{Code, Failure};
use crate::human::{self, clean};
use crate::point::Point;
use crate::time;
use crate::units::{Bytes, duration_ms};
use serde::Serialize;
use std::rc::Rc;

/// Which part of the volume is meant.
pub(super) type Number = Option<u32>;

/// A volume that is opened.
pub(super) struct Opened {
    /// Which one, and when.
    pub(super) point: Described,
    /// What is on it.
    pub(super) contents: Contents,
    /// The bytes of all of it.
    pub(super) size: u64,
    _mounted: Mounted,
}

/// As the answers of commands show it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Described {
    group: String,
    volume: String,
    at: At,
    /// From the point's time to now.
    age_ms: u64,
}

/// What is on a volume.
pub(super) enum Contents {
    /// A filesystem, in a partition or all over.
    Filesystem {
        /// Where.
        partition: Number,
        /// The thing.
        filesystem: Box<dyn Filesystem>,
    },
    /// Several partitions, of which none was named; with the filesystem of each, where there is one that is known.
    Partitions(Table, Vec<Option<String>>),
}

/// Opens a volume at a point, and in it the partition that is named, or the only one.
pub(super) fn open(global: &Global, of: &OfVolume, at: Point, number: Number) -> Result<Opened, Failure> {
    let mounted = Mounted::new(global, of, at)?;
    let name = format!("{}/{}", of.group, of.volume);
    let whole = Window::whole(Rc::new(Export::new(mounted.connect()?)));
    let age_ms = time::now().0.saturating_sub(mounted.at.time.0.0) / 1_000_000;
    let (group, volume) = (of.group.clone(), of.volume.clone());
    let point = Described { group, volume, at: mounted.at, age_ms };
    let contents = contents(&whole, number, &name)?;
    Ok(Opened { point, contents, size: whole.len(), _mounted: mounted })
}

fn contents(whole: &Window, number: Number, name: &str) -> Result<Contents, Failure> {
    let table = match partitions::read(whole) {
        // The boot sector of a FAT may pass for a table.
        Ok(Some(table)) if table.kind == "MBR" && number.is_none() => {
            let fat = filesystem::open_fat(whole).map_err(|trouble| failure(name, &trouble))?;
            if let Some(filesystem) = fat {
                return Ok(Contents::Filesystem { partition: None, filesystem });
            }
            Some(table)
        }
        Ok(table) => table,
        Err(trouble) => return Err(failure(&format!("the partition table of {name}"), &trouble)),
    };
    for note in table.iter().flat_map(|table| &table.notes) {
        human::say(format_args!("{name}: {}", clean(note)));
    }
    let Some(table) = table else {
        if number.is_some() {
            return Err(
                Failure::refused(format_args!("{name} has no partition table")).next("leave out --partition")
            );
        }
        return Ok(Contents::Filesystem { partition: None, filesystem: known(whole, name)? });
    };
    let chosen = match (number, table.partitions.as_slice()) {
        (None, [only]) => only,
        (None, _) => {
            let found = table.partitions.iter().map(|partition| filesystem_of(whole, partition)).collect();
            return Ok(Contents::Partitions(table, found));
        }
        (Some(number), all) => all.iter().find(|found| found.number == number).ok_or_else(|| {
            let numbers = all.iter().map(|found| found.number.to_string()).collect::<Vec<_>>();
            Failure::refused(format_args!("{name} has no partition {number}"))
                .next(format_args!("its partitions are {}", numbers.join(", ")))
        })?,
    };
    let name = format!("partition {} of {name}", chosen.number);
    let window = window(whole, chosen).map_err(|trouble| failure(&name, &trouble))?;
    Ok(Contents::Filesystem { partition: Some(chosen.number), filesystem: known(&window, &name)? })
}

fn window(whole: &Window, partition: &Partition) -> Result<Window, Trouble> {
    Window::new(Rc::new(whole.clone()), partition.start, partition.len)
}

/// For a list: what is there, in a word or two.
fn filesystem_of(whole: &Window, partition: &Partition) -> Option<String> {
    let window = window(whole, partition).ok()?;
    match filesystem::open(&window) {
        Ok(Some(found)) => Some(found.kind().to_owned()),
        Ok(None) => None,
        Err(trouble) => Some(format!("unreadable: {trouble}")),
    }
}

fn known(window: &Window, name: &str) -> Result<Box<dyn Filesystem>, Failure> {
    let found = filesystem::open(window)
        .map_err(|trouble| failure(&format!("the filesystem of {name}"), &trouble))?;
    let found = found.ok_or_else(|| {
        Failure::refused(format_args!(
            "{name} ({}) holds no filesystem that can be read here: found {}",
            Bytes(window.len()),
            filesystem::describe(window)
        ))
        .next("ext2, ext3, ext4 and FAT can; for others, `landfall mount-point` serves the disk itself")
    })?;
    for note in found.notes() {
        human::say(format_args!("{name}: {}", clean(note)));
    }
    Ok(found)
}

/// What trouble with `what` means for the command.
pub(super) fn failure(what: &str, trouble: &Trouble) -> Failure {
    let code = match trouble {
        Trouble::Damaged(_) => Code::Corrupt,
        Trouble::Unsupported(_) => Code::Refused,
        Trouble::Lost(_) => Code::Failed,
    };
    let failure = Failure::new(code, format_args!("{what}: {}", clean(&trouble.to_string())));
    match trouble {
        Trouble::Lost(_) => failure.next("the mount has ended: look at `landfall status`, and begin anew"),
        Trouble::Damaged(_) => {
            failure.next("try an earlier point, or `landfall restore disk` and a repair of that")
        }
        Trouble::Unsupported(_) => failure.next("`landfall mount-point` serves the disk itself"),
    }
}

impl Described {
    /// A line.
    pub(super) fn text(&self, partition: Number) -> String {
        let partition = partition.map_or_else(String::new, |number| format!(", partition {number}"));
        format!(
            "{}/{}{partition} at LSN {} ({}, {} old)",
            self.group,
            self.volume,
            self.at.lsn,
            time::format(self.at.time.0),
            duration_ms(self.age_ms)
        )
    }
}
