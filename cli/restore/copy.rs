//! Copies files and folders out of a filesystem into a target folder.
//!
//! Invariants:
//! - one thing that cannot be read or written costs itself: it is listed, and the rest goes on. What ends all is a source
//!   that is gone and a target that takes nothing more;
//! - no folder is entered twice, and all files together have no more content than the filesystem has room for: whatever
//!   a damaged or hostile filesystem says, it comes to an end;
//! - a file of which a part cannot be read is not put under its name, but under that name with `.damaged` behind it,
//!   with zeros for what is missing;
//! - a folder gets its mode and time when all that is in it is there.

use super::filesystem::{Entry, Filesystem, Kind, NodeId, Place, Stat};
use super::list::path_of;
use super::lookup::{Found, joined};
use super::source::Trouble;
use super::write::{Name, Refusal, Target, Unnamed, open_folder};
use crate::exit::Failure;
use crate::progress::Progress;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Folders in each other that are entered.
const MAX_DEPTH: usize = 4096;

/// What is read at a time, and what is tried of it where that fails.
const PIECE_BYTES: u64 = 1 << 20;
const SMALL_PIECE_BYTES: u64 = 4096;

/// What is listed of what was not restored; more is counted.
const MAX_LISTED: usize = 10_000;

/// Behind the name of a file of which a part is missing.
const DAMAGED: &[u8] = b".damaged";

/// Why something is not restored as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Why {
    /// It cannot be read, or not whole.
    Damaged,
    /// It is of a kind that cannot be read here: encrypted, say.
    Unsupported,
    /// Something of its name was there.
    Exists,
    /// It could not be written, or may not.
    NotWritten,
    /// It is a device, a socket or a pipe.
    Special,
}

/// Something that is not restored as it was.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Left {
    /// Where it is in the filesystem.
    pub(super) path: String,
    /// In a word.
    pub(super) what: Why,
    /// In words.
    pub(super) why: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Tally {
    /// Folders that were made.
    pub(super) folders: u64,
    /// Files that were written whole.
    pub(super) files: u64,
    /// Symbolic links.
    pub(super) symlinks: u64,
    /// Further names of files.
    pub(super) hard_links: u64,
    /// Bytes of content that were written; holes are none.
    pub(super) data_bytes: u64,
    /// What is not restored as it was, but for [`Why::Special`].
    pub(super) left_count: u64,
    /// Devices, sockets and pipes.
    pub(super) special_count: u64,
    /// Both, the first ones.
    pub(super) left: Vec<Left>,
}

/// A restore that is under way.
pub(super) struct Copy<'a> {
    filesystem: &'a dyn Filesystem,
    target: &'a mut Target,
    tally: Tally,
    progress: Progress,
    entered: HashSet<NodeId>,
    /// Where in the target files are that have further names.
    named: HashMap<NodeId, Vec<u8>>,
    /// Content that may yet come.
    room: u64,
    buf: Vec<u8>,
}

/// A folder that is being copied.
struct Level {
    name: Vec<u8>,
    folder: OwnedFd,
    node: NodeId,
    stat: Stat,
    is_new: bool,
    entries: std::vec::IntoIter<Entry>,
}

/// What ends one thing.
enum Stop {
    /// It alone.
    This(Why, String),
    /// Everything.
    All(Failure),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        if refusal.is_final() {
            return Stop::All(
                Failure::failed(format_args!("the target folder takes nothing more: {refusal}"))
                    .next("what is there is whole; make room, and repeat the command with --force"),
            );
        }
        let why = if refusal == Refusal::Exists { Why::Exists } else { Why::NotWritten };
        Stop::This(why, refusal.to_string())
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        match trouble {
            Trouble::Lost(_) => Stop::All(super::volume::failure("reading", &trouble)),
            Trouble::Unsupported(what) => Stop::This(Why::Unsupported, what),
            Trouble::Damaged(what) => Stop::This(Why::Damaged, what),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(err: std::io::Error) -> Stop {
        Stop::from(Errno::from_io_error(&err).map_or(Refusal::System(Errno::IO), Refusal::System))
    }
}

/// Copies what was selected, none of which lies within another, to the same paths below the target.
pub(super) fn copy(
    filesystem: &dyn Filesystem,
    selected: &[Found],
    room: u64,
    target: &mut Target,
) -> Result<Tally, Failure> {
    let mut copy = Copy {
        filesystem,
        target,
        tally: Tally::default(),
        progress: Progress::files("restoring"),
        entered: HashSet::new(),
        named: HashMap::new(),
        room,
        buf: vec![0; PIECE_BYTES as usize],
    };
    // Of folders above what was selected: the parts of the path, and what is known of the last one.
    let mut above = Vec::new();
    for found in selected {
        match copy.selected(found, &mut above) {
            Ok(()) => {}
            Err(stop) => copy.left(found.path(), stop)?,
        }
    }
    // The deepest first.
    for (parts, node, stat) in above.into_iter().rev() {
        if let Err(stop) = copy.finish_above(&parts, node, &stat) {
            copy.left(joined(parts.iter().map(Vec::as_slice)), stop)?;
        }
    }
    Ok(copy.tally)
}

type Above = Vec<(Vec<Vec<u8>>, NodeId, Stat)>;

impl Copy<'_> {
    fn selected(&mut self, found: &Found, above: &mut Above) -> Result<(), Stop> {
        let mut folder = self.target.root()?;
        let Some(((name, node), upper)) = found.parts.split_last() else {
            let (node, stat) = (self.filesystem.root(), self.filesystem.stat(self.filesystem.root())?);
            self.entered.insert(node);
            let entries = self.entries(node, &[])?;
            // The target folder itself stays as it is.
            return self
                .walk(Vec::new(), Level { name: Vec::new(), folder, node, stat, is_new: false, entries });
        };
        let mut parts = Vec::new();
        for (name, node) in upper {
            self.entered.insert(*node);
            let stat = self.filesystem.stat(*node)?;
            let (next, is_new) =
                self.target.folder(folder.as_fd(), Name::new(name)?, stat.owner.is_some())?;
            parts.push(name.clone());
            if is_new {
                self.tally.folders += 1;
                above.push((parts.clone(), *node, stat));
            }
            folder = next;
        }
        let entry = Entry { name: name.clone(), node: *node };
        match self.one(folder.as_fd(), &parts, &entry)? {
            Some(level) => self.walk(parts, level),
            None => Ok(()),
        }
    }

    /// Copies all that is in a folder.
    fn walk(&mut self, mut path: Vec<Vec<u8>>, first: Level) -> Result<(), Stop> {
        if !first.name.is_empty() {
            path.push(first.name.clone());
        }
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                let Some(level) = levels.pop() else { break };
                if level.is_new
                    && let Err(stop) = self.finish(level.folder.as_fd(), level.node, &level.stat)
                {
                    self.left(joined(path.iter().map(Vec::as_slice)), stop).map_err(Stop::All)?;
                }
                path.pop();
                continue;
            };
            let depth = path.len();
            let next = match self.one(level.folder.as_fd(), &path, &entry) {
                Ok(Some(_)) if depth >= MAX_DEPTH => Err(Stop::This(
                    Why::NotWritten,
                    format!("what is in it is more than {MAX_DEPTH} folders deep"),
                )),
                other => other,
            };
            match next {
                Ok(None) => {}
                Ok(Some(next)) => {
                    path.push(entry.name);
                    levels.push(next);
                }
                Err(stop) => {
                    let names = path.iter().map(Vec::as_slice).chain([entry.name.as_slice()]);
                    self.left(joined(names), stop).map_err(Stop::All)?;
                }
            }
        }
        Ok(())
    }

    /// Copies one thing; of a folder, the folder alone.
    fn one(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &[Vec<u8>],
        entry: &Entry,
    ) -> Result<Option<Level>, Stop> {
        let name = Name::new(&entry.name)?;
        let stat = self.filesystem.stat(entry.node)?;
        match stat.kind {
            Kind::Folder => return self.folder(folder, path, entry, stat).map(Some),
            Kind::File => self.file(folder, path, entry, &stat)?,
            Kind::Link => {
                let target = self.filesystem.link_target(entry.node)?;
                self.target.link(folder, name, &target, &stat)?;
                self.tally.symlinks += 1;
                self.progress.add(0);
            }
            special => return Err(Stop::This(Why::Special, format!("it is a {}", special.name()))),
        }
        Ok(None)
    }

    fn folder(
        &mut self,
        within: BorrowedFd<'_>,
        path: &[Vec<u8>],
        entry: &Entry,
        stat: Stat,
    ) -> Result<Level, Stop> {
        if !self.entered.insert(entry.node) {
            return Err(Stop::This(
                Why::Damaged,
                "it is a folder that is already in another place".to_owned(),
            ));
        }
        let (folder, is_new) = self.target.folder(within, Name::new(&entry.name)?, stat.owner.is_some())?;
        self.tally.folders += u64::from(is_new);
        let names = path.iter().map(Vec::as_slice).chain([entry.name.as_slice()]).collect::<Vec<_>>();
        let entries = self.entries(entry.node, &names)?;
        Ok(Level { name: entry.name.clone(), folder, node: entry.node, stat, is_new, entries })
    }

    /// The names in a folder. That there may be more is listed, and no reason to leave out these.
    fn entries(&mut self, node: NodeId, names: &[&[u8]]) -> Result<std::vec::IntoIter<Entry>, Stop> {
        let mut faults = Vec::new();
        let mut entries = Vec::new();
        match self.filesystem.list(node) {
            Ok(listing) => {
                faults = listing.faults;
                entries = listing.entries;
            }
            Err(trouble) => faults.push(trouble),
        }
        for fault in faults {
            self.left(joined(names.iter().copied()), fault.into()).map_err(Stop::All)?;
        }
        Ok(entries.into_iter())
    }

    fn file(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &[Vec<u8>],
        entry: &Entry,
        stat: &Stat,
    ) -> Result<(), Stop> {
        let name = Name::new(&entry.name)?;
        if let Some(before) = self.named.get(&entry.node) {
            match self.target.name_again(before, folder, name) {
                Ok(()) => {
                    self.tally.hard_links += 1;
                    return Ok(());
                }
                // A filesystem without hard links, too many of them, a path that is too long: a copy, then.
                Err(Refusal::System(errno)) if !Refusal::System(errno).is_final() => {
                    self.target.lacks.links += 1;
                    // Its content has been counted once.
                    self.room = self.room.saturating_add(stat.size);
                }
                Err(other) => return Err(other.into()),
            }
        }
        self.target.check_free(folder, name)?;
        let file = self.target.file(folder, stat.owner.is_some())?;
        let missing = self.content(&file, entry.node, stat)?;
        let (attributes, trouble) = self.filesystem.attributes(entry.node);
        self.target.adorn(file.file.as_fd(), stat, &attributes)?;
        if let Some(why) = missing {
            let damaged = [entry.name.as_slice(), DAMAGED].concat();
            let put = Name::new(&damaged).and_then(|name| self.target.put(&file, name));
            let kept = match put {
                Ok(()) => format!("what is left of it is in {}", path_of([damaged.as_slice()].into_iter())),
                Err(refusal) => format!("what is left of it could not be written: {refusal}"),
            };
            let kept = kept.replacen("in /", "in ", 1);
            return Err(Stop::This(Why::Damaged, format!("{why}; {kept}")));
        }
        self.target.put(&file, name)?;
        drop(file);
        self.tally.files += 1;
        if stat.links > 1 {
            let mut place = Vec::new();
            for part in path.iter().chain([&entry.name]) {
                if !place.is_empty() {
                    place.push(b'/');
                }
                place.extend_from_slice(part);
            }
            self.named.entry(entry.node).or_insert(place);
        }
        match trouble {
            Some(trouble) => Err(trouble.into()),
            None => Ok(()),
        }
    }

    /// Writes the content; says what is missing.
    fn content(&mut self, to: &Unnamed<'_>, node: NodeId, stat: &Stat) -> Result<Option<String>, Stop> {
        to.file.set_len(stat.size)?;
        let (filesystem, buf, progress) = (self.filesystem, &mut self.buf, &mut self.progress);
        let (room, written) = (&mut self.room, &mut self.tally.data_bytes);
        let (mut unreadable, mut failed) = (None, None);
        let faults = filesystem.runs(node, &mut |run| {
            *room = room.checked_sub(run.len).ok_or_else(|| {
                Trouble::damaged("there is more content in all files than the filesystem has room for")
            })?;
            let mut done = 0;
            while done < run.len {
                let part = &mut buf[..PIECE_BYTES.min(run.len - done) as usize];
                match &run.place {
                    Place::Inline(bytes) => part.copy_from_slice(&bytes[done as usize..][..part.len()]),
                    Place::Volume(place) => read(filesystem, place + done, part, &mut unreadable)?,
                }
                if let Err(err) = to.file.write_all_at(part, run.at + done) {
                    failed = Some(err);
                    return Err(Trouble::damaged("not written"));
                }
                done += part.len() as u64;
                *written += part.len() as u64;
                progress.add(part.len() as u64);
            }
            Ok(())
        });
        if let Some(err) = failed {
            return Err(err.into());
        }
        self.progress.add_file();
        match faults {
            Err(trouble @ (Trouble::Lost(_) | Trouble::Unsupported(_))) => Err(trouble.into()),
            Err(trouble) => Ok(Some(trouble.to_string())),
            Ok(faults) => {
                Ok(unreadable.or_else(|| faults.into_iter().next()).map(|trouble| trouble.to_string()))
            }
        }
    }

    fn finish(&mut self, folder: BorrowedFd<'_>, node: NodeId, stat: &Stat) -> Result<(), Stop> {
        let (attributes, trouble) = self.filesystem.attributes(node);
        self.target.adorn(folder, stat, &attributes)?;
        trouble.map_or(Ok(()), |trouble| Err(trouble.into()))
    }

    fn finish_above(&mut self, parts: &[Vec<u8>], node: NodeId, stat: &Stat) -> Result<(), Stop> {
        let mut folder = self.target.root()?;
        for part in parts {
            folder = open_folder(folder.as_fd(), Name::new(part)?)?;
        }
        self.finish(folder.as_fd(), node, stat)
    }

    /// Lists what was not restored as it was; an error if that is the end of everything.
    fn left(&mut self, path: Vec<u8>, stop: Stop) -> Result<(), Failure> {
        match stop {
            Stop::All(failure) => Err(failure),
            Stop::This(what, why) => {
                match what {
                    Why::Special => self.tally.special_count += 1,
                    _ => self.tally.left_count += 1,
                }
                if self.tally.left.len() < MAX_LISTED {
                    let path = String::from_utf8_lossy(&path).into_owned();
                    self.tally.left.push(Left { path, what, why });
                }
                Ok(())
            }
        }
    }
}

/// Reads a piece, and where that fails as much of it as can be had: the rest is zeros, and `missing` says why.
fn read(
    filesystem: &dyn Filesystem,
    place: u64,
    buf: &mut [u8],
    missing: &mut Option<Trouble>,
) -> Result<(), Trouble> {
    match filesystem.read(place, buf) {
        Err(trouble) if !trouble.is_lost() => {}
        done => return done,
    }
    for (index, part) in (0..).zip(buf.chunks_mut(SMALL_PIECE_BYTES as usize)) {
        if let Err(trouble) = filesystem.read(place + index * SMALL_PIECE_BYTES, part) {
            if trouble.is_lost() {
                return Err(trouble);
            }
            part.fill(0);
            missing.get_or_insert(trouble);
        }
    }
    Ok(())
}
