//! Folders and names: what a running machine sees, and what its journal surely holds.
//!
//! - A change to a folder survives a power cut once that folder was synced; until then each change, on its own,
//!   did or did not happen. A rename is one change, and it belongs to the folder of the new name.
//! - A folder is itself a name in its parent. What lies in a folder that is gone is gone with it.

use super::fate::Fate;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};

/// Names a file's content, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ino(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    File(Ino),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Link { path: String, entry: Entry },
    Unlink { path: String, ino: Ino },
    Rename { from: String, to: String, ino: Ino },
}

impl Change {
    fn folder(&self) -> &str {
        match self {
            Change::Link { path, .. } | Change::Unlink { path, .. } => parent(path),
            Change::Rename { to, .. } => parent(to),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        let (first, second) = match self {
            Change::Link { path, .. } | Change::Unlink { path, .. } => (path, None),
            Change::Rename { from, to, .. } => (from, Some(to.as_str())),
        };
        std::iter::once(first.as_str()).chain(second)
    }

    fn apply(self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Change::Link { path, entry } => {
                names.insert(path, entry);
            }
            Change::Unlink { path, ino } => {
                if names.get(&path) == Some(&Entry::File(ino)) {
                    names.remove(&path);
                }
            }
            Change::Rename { from, to, ino } => {
                if names.get(&from) == Some(&Entry::File(ino)) {
                    names.remove(&from);
                }
                names.insert(to, Entry::File(ino));
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    current: BTreeMap<String, Entry>,
    stable: BTreeMap<String, Entry>,
    pending: Vec<Change>,
}

/// The folder of a path; the root of relative paths is "", that of absolute ones "/".
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) => "/",
        Some(at) => &path[..at],
        None => "",
    }
}

/// A path without trailing slashes and leading dots, so that each file has one name.
pub(super) fn normal(path: &str) -> &str {
    let path = path.strip_prefix("./").unwrap_or(path);
    match path.trim_end_matches('/') {
        "" if path.starts_with('/') => "/",
        "." => "",
        trimmed => trimmed,
    }
}

impl Names {
    pub(super) fn file(&self, path: &str) -> Result<Ino> {
        match self.current.get(path) {
            Some(Entry::File(ino)) => Ok(*ino),
            Some(Entry::Folder) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn is_folder(&self, path: &str) -> bool {
        path.is_empty() || path == "/" || self.current.get(path) == Some(&Entry::Folder)
    }

    pub(super) fn create(&mut self, path: &str, ino: Ino) -> Result<()> {
        if self.current.contains_key(path) || self.is_folder(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.folder(parent(path))?;
        self.change(Change::Link { path: path.to_owned(), entry: Entry::File(ino) });
        Ok(())
    }

    pub(super) fn create_folder(&mut self, path: &str) -> Result<()> {
        if self.is_folder(path) {
            return Ok(());
        }
        if self.current.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.create_folder(parent(path))?;
        self.change(Change::Link { path: path.to_owned(), entry: Entry::Folder });
        Ok(())
    }

    /// Puts a name in place as if it had always been there.
    pub(super) fn plant(&mut self, path: &str, ino: Ino) {
        let mut folder = parent(path);
        while !folder.is_empty() && folder != "/" {
            self.current.insert(folder.to_owned(), Entry::Folder);
            self.stable.insert(folder.to_owned(), Entry::Folder);
            folder = parent(folder);
        }
        self.current.insert(path.to_owned(), Entry::File(ino));
        self.stable.insert(path.to_owned(), Entry::File(ino));
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<()> {
        let ino = self.file(path)?;
        self.change(Change::Unlink { path: path.to_owned(), ino });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let ino = self.file(from)?;
        self.folder(parent(to))?;
        if self.is_folder(to) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if from != to {
            self.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), ino });
        }
        Ok(())
    }

    /// The names of files in a folder; sub-folders are not listed.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.folder(folder)?;
        let files = self.current.iter().filter(|(_, entry)| **entry != Entry::Folder);
        let within = files.map(|(path, _)| path).filter(|path| parent(path) == folder);
        Ok(within.map(|path| path.rsplit('/').next().unwrap_or(path).to_owned()).collect())
    }

    pub(super) fn sync(&mut self, folder: &str) -> Result<()> {
        self.folder(folder)?;
        // An earlier change of a name that a later, synced one needs or replaces cannot come after it.
        let mut touched = BTreeSet::new();
        let mut settled = Vec::new();
        for at in (0..self.pending.len()).rev() {
            let change = &self.pending[at];
            if change.folder() == folder || change.paths().any(|path| touched.contains(path)) {
                touched.extend(change.paths().map(str::to_owned));
                settled.push(self.pending.remove(at));
            }
        }
        settled.into_iter().rev().for_each(|change| change.apply(&mut self.stable));
        Ok(())
    }

    /// A power cut: settles which changes have survived.
    pub(super) fn power_cut(&mut self, fate: &mut dyn Fate) {
        for change in std::mem::take(&mut self.pending) {
            if fate.pick(2) == 1 {
                change.apply(&mut self.stable);
            }
        }
        let folders: BTreeSet<String> = self
            .stable
            .iter()
            .filter(|(_, entry)| **entry == Entry::Folder)
            .map(|(path, _)| path.clone())
            .collect();
        let reachable = |path: &str| {
            let mut folder = parent(path);
            while !folder.is_empty() && folder != "/" {
                if !folders.contains(folder) {
                    return false;
                }
                folder = parent(folder);
            }
            true
        };
        self.stable.retain(|path, _| reachable(path));
        self.current.clone_from(&self.stable);
    }

    /// Every file of the running machine.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, Ino)> {
        self.current.iter().filter_map(|(path, entry)| match entry {
            Entry::File(ino) => Some((path.as_str(), *ino)),
            Entry::Folder => None,
        })
    }

    /// Changes whose fate is open.
    pub(super) fn unsynced_changes(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Whether a file has a name, or may have one after a power cut.
    pub(super) fn refers_to(&self, ino: Ino) -> bool {
        let entry = Entry::File(ino);
        let pending = |change: &Change| match change {
            Change::Link { entry: linked, .. } => *linked == entry,
            Change::Unlink { ino: linked, .. } | Change::Rename { ino: linked, .. } => *linked == ino,
        };
        self.current.values().chain(self.stable.values()).any(|named| *named == entry)
            || self.pending.iter().any(pending)
    }

    fn folder(&self, path: &str) -> Result<()> {
        if self.is_folder(path) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::NotFound, format!("the folder {path:?} does not exist")))
        }
    }

    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.current);
        self.pending.push(change);
    }
}
