//! `landfall restore ls`: what is in a folder of a volume at a point, or which partitions the volume has.
//!
//! What cannot be read is told behind what can, and makes the exit status 7.

use super::filesystem::{Entry, FileTime, Filesystem, Kind, NodeId, Owner, Stat};
use super::lookup::{self, Found, Last, joined, shown};
use super::partitions::Table;
use super::volume::{self, Contents, Described, Number, failure};
use crate::args::{self, Global};
use crate::exit::{Code, Failure};
use crate::human::{self, clean};
use crate::time;
use crate::units::Bytes;
use engine::types::Timestamp;
use serde::Serialize;
use std::collections::HashSet;

/// Folders in each other that are entered.
const MAX_DEPTH: usize = 4096;

/// What is said of damage; more is counted.
const MAX_FAULTS: usize = 1000;

/// The answer for partitions.
#[derive(Serialize)]
struct Partitioned {
    #[serde(flatten)]
    point: Described,
    table: &'static str,
    notes: Vec<String>,
    partitions: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    number: u32,
    start_bytes: u64,
    size_bytes: u64,
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    /// None if it is none that is known.
    filesystem: Option<String>,
}

/// The answer for a folder.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    point: Described,
    partition: Number,
    filesystem: &'static str,
    notes: Vec<String>,
    path: String,
    entries: Vec<Line>,
    faults: Vec<Fault>,
    fault_count: u64,
}

#[derive(Serialize)]
struct Line {
    /// From the folder that was asked for.
    name: String,
    kind: &'static str,
    mode: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    links: u32,
    size_bytes: u64,
    modified: Option<String>,
    /// Of a link.
    target: Option<String>,
}

/// What could not be read.
#[derive(Serialize)]
struct Fault {
    path: String,
    why: String,
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::RestoreList) -> Result<(), Failure> {
    let opened = volume::open(global, &arguments.volume, arguments.at.clone(), arguments.partition)?;
    let (partition, filesystem) = match opened.contents {
        Contents::Partitions(table, found) => {
            return human::answer(global.form(), &partitioned(opened.point, table, found), partitions_text);
        }
        Contents::Filesystem { partition, filesystem } => (partition, filesystem),
    };
    let filesystem = filesystem.as_ref();
    let found = lookup::find(filesystem, &arguments.path, Last::Followed)?;
    let mut listed = Listed {
        point: opened.point,
        partition,
        filesystem: filesystem.kind(),
        notes: filesystem.notes().to_vec(),
        path: shown(&found.path()),
        entries: Vec::new(),
        faults: Vec::new(),
        fault_count: 0,
    };
    list(filesystem, &found, arguments.recursive, &mut listed)?;
    human::answer(global.form(), &listed, text)?;
    match listed.fault_count {
        0 => Ok(()),
        count => Err(Failure::new(
            Code::Partial,
            format_args!("{count} things could not be read: they are listed"),
        )),
    }
}

/// A folder that is being listed.
struct Level {
    names: Vec<u8>,
    entries: std::vec::IntoIter<Entry>,
}

fn list(
    filesystem: &dyn Filesystem,
    found: &Found,
    recursive: bool,
    listed: &mut Listed,
) -> Result<(), Failure> {
    let node = found.node(filesystem);
    let stat = filesystem.stat(node).map_err(|trouble| failure(&listed.path, &trouble))?;
    if stat.kind != Kind::Folder {
        let name = found.parts.last().map(|(name, _)| shown(name)).unwrap_or_default();
        listed.entries.push(line(filesystem, name, node, &stat));
        return Ok(());
    }
    let mut seen = HashSet::from([node]);
    let mut levels = vec![level(filesystem, node, Vec::new(), listed)?];
    while let Some(Level { names, entries }) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let mut path = names.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let name = shown(&path);
        let stat = match filesystem.stat(entry.node) {
            Ok(stat) => stat,
            Err(trouble) if trouble.is_lost() => return Err(failure(&name, &trouble)),
            Err(trouble) => {
                listed.fault(&path, trouble.to_string());
                continue;
            }
        };
        listed.entries.push(line(filesystem, name, entry.node, &stat));
        if !recursive || stat.kind != Kind::Folder {
            continue;
        }
        if levels.len() >= MAX_DEPTH {
            listed.fault(&path, format!("it is more than {MAX_DEPTH} folders deep"));
        } else if !seen.insert(entry.node) {
            listed.fault(&path, "it is a folder that is already in another place".to_owned());
        } else {
            let next = level(filesystem, entry.node, path, listed)?;
            levels.push(next);
        }
    }
    Ok(())
}

/// The entries of a folder by name.
fn level(
    filesystem: &dyn Filesystem,
    node: NodeId,
    names: Vec<u8>,
    listed: &mut Listed,
) -> Result<Level, Failure> {
    let mut entries = Vec::new();
    match filesystem.list(node) {
        Err(trouble) if trouble.is_lost() => return Err(failure(&shown(&names), &trouble)),
        Err(trouble) => listed.fault(&names, trouble.to_string()),
        Ok(listing) => {
            for fault in listing.faults {
                listed.fault(&names, fault.to_string());
            }
            entries = listing.entries;
        }
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Level { names, entries: entries.into_iter() })
}

impl Listed {
    fn fault(&mut self, below: &[u8], why: String) {
        self.fault_count += 1;
        if self.faults.len() < MAX_FAULTS {
            let base = self.path.trim_end_matches('/');
            let path = if below.is_empty() { self.path.clone() } else { format!("{base}/{}", shown(below)) };
            self.faults.push(Fault { path, why });
        }
    }
}

fn line(filesystem: &dyn Filesystem, name: String, node: NodeId, stat: &Stat) -> Line {
    let target = match stat.kind {
        // What is wrong with it is told by whoever copies it.
        Kind::Link => filesystem.link_target(node).ok().map(|target| shown(&target)),
        _ => None,
    };
    Line {
        name,
        kind: stat.kind.name(),
        mode: stat.owner.map(|Owner { mode, .. }| format!("{mode:04o}")),
        uid: stat.owner.map(|owner| owner.uid),
        gid: stat.owner.map(|owner| owner.gid),
        links: stat.links,
        size_bytes: stat.size,
        modified: stat.modified.and_then(moment),
        target,
    }
}

/// None before 1970 and behind what can be written: it cannot be told.
fn moment(at: FileTime) -> Option<String> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(u64::from(at.nanos))?;
    Some(time::format(Timestamp(nanos)))
}

fn partitioned(point: Described, table: Table, found: Vec<Option<String>>) -> Partitioned {
    let parts = table.partitions.into_iter().zip(found).map(|(partition, filesystem)| Part {
        number: partition.number,
        start_bytes: partition.start,
        size_bytes: partition.len,
        kind: partition.kind,
        name: partition.name,
        filesystem,
    });
    Partitioned { point, table: table.kind, notes: table.notes, partitions: parts.collect() }
}

fn partitions_text(answer: &Partitioned) -> String {
    let mut out = format!(
        "{}: {} with several partitions; --partition names one\n",
        answer.point.text(None),
        answer.table
    );
    let mut table = human::Table::new(&["PARTITION", "START", "SIZE", "FILESYSTEM", "TYPE", "NAME"]);
    table = table.right(&[0, 1, 2]).indent(2);
    for part in &answer.partitions {
        table.row(&[
            &part.number.to_string(),
            &part.start_bytes.to_string(),
            &Bytes(part.size_bytes).to_string(),
            part.filesystem.as_deref().unwrap_or("-"),
            &part.kind,
            part.name.as_deref().unwrap_or("-"),
        ]);
    }
    out.push_str(&table.render());
    out
}

fn text(listed: &Listed) -> String {
    let mut out =
        format!("{}, {}: {}\n", listed.point.text(listed.partition), listed.filesystem, clean(&listed.path));
    let mut table = human::Table::new(&["MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "NAME"]);
    table = table.right(&[1, 2, 3, 4]).indent(2);
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for entry in &listed.entries {
        let name = match &entry.target {
            Some(target) => format!("{} -> {target}", entry.name),
            None => entry.name.clone(),
        };
        table.row(&[
            &mode_text(entry),
            &entry.links.to_string(),
            &number(entry.uid),
            &number(entry.gid),
            &entry.size_bytes.to_string(),
            entry.modified.as_deref().unwrap_or("-"),
            &name,
        ]);
    }
    out.push_str(&table.render());
    for fault in &listed.faults {
        out.push_str(&format!("  cannot be read: {}: {}\n", clean(&fault.path), clean(&fault.why)));
    }
    out
}

/// As `ls -l` has it.
fn mode_text(entry: &Line) -> String {
    let kind = match entry.kind {
        "folder" => 'd',
        "symlink" => 'l',
        "fifo" => 'p',
        "socket" => 's',
        "char-device" => 'c',
        "block-device" => 'b',
        _ => '-',
    };
    let Some(mode) = entry.mode.as_deref().and_then(|mode| u16::from_str_radix(mode, 8).ok()) else {
        return format!("{kind}---------");
    };
    let mut text = String::from(kind);
    for (shift, special, small, large) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => small,
            (true, false) => large,
        });
    }
    text
}

/// The path of `name` in the folders `names`, for people.
pub(super) fn path_of<'a>(names: impl Iterator<Item = &'a [u8]>) -> String {
    shown(&joined(names))
}
