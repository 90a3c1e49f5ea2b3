//! A disk in memory with the crash model of `engine::io`, small enough to go through its outcomes one by one.
//!
//! Each sector written since the last sync is, after a power cut, what it was before or any of what was written to
//! it since, independently of every other; so are the length of a file and each name in a folder. What a killed
//! process leaves is simply all of it, still unsynced.

use super::Random;
use engine::io::{File, OpenMode, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = engine::io::SECTOR as usize;

#[derive(Clone, Default)]
struct Inode {
    /// What is on the medium.
    disk: Vec<u8>,
    /// What a read gives.
    cache: Vec<u8>,
    /// Everything that was written to a sector since the last sync.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Clone, Default)]
struct Inner {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
    locks: BTreeSet<String>,
    next_inode: u64,
    /// Calls so far that change something on the medium or may.
    calls: u64,
    cut_after: Option<u64>,
    syncs: u64,
    failing_sync: Option<u64>,
}

/// The disk. Clones share it; see [`CrashDisk::killed`] for a copy.
#[derive(Clone, Default)]
pub struct CrashDisk(Arc<Mutex<Inner>>);

impl CrashDisk {
    pub fn new() -> CrashDisk {
        CrashDisk::default()
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics in here")
    }

    /// The power fails after that many more changing calls: every later call is an error without effect.
    pub fn cut_after(&self, calls: u64) {
        let mut inner = self.lock();
        inner.cut_after = Some(inner.calls + calls);
    }

    /// Whether the power failed.
    pub fn is_cut(&self) -> bool {
        let inner = self.lock();
        inner.cut_after.is_some_and(|limit| inner.calls > limit)
    }

    /// The n-th sync of a file from now on (from 1) fails as a kernel's does: what it should have written is lost,
    /// but reads still give it, and no later sync writes it.
    pub fn fail_sync(&self, nth: u64) {
        let mut inner = self.lock();
        inner.failing_sync = Some(inner.syncs + nth);
    }

    /// Whether the sync that was to fail has failed.
    pub fn has_failed_sync(&self) -> bool {
        let inner = self.lock();
        inner.failing_sync.is_some_and(|nth| inner.syncs >= nth)
    }

    /// A copy as a new process finds it: whatever was unsynced still is.
    pub fn killed(&self) -> CrashDisk {
        let mut copy = self.lock().clone();
        copy.locks.clear();
        (copy.cut_after, copy.failing_sync) = (None, None);
        CrashDisk(Arc::new(Mutex::new(copy)))
    }

    /// What a power cut may leave: all outcomes if there are at most `limit`, else that many of them, among them
    /// the one where nothing unsynced survives and the one where all of it does.
    pub fn outcomes(&self, limit: usize, random: &mut Random) -> Vec<CrashDisk> {
        let radices = self.radices();
        let all = radices
            .iter()
            .try_fold(1_usize, |all, &radix| all.checked_mul(radix).filter(|&all| all <= limit));
        let mut picks: Vec<Vec<usize>> = Vec::new();
        match all {
            Some(all) => picks.extend((0..all).map(|number| {
                let mut rest = number;
                radices
                    .iter()
                    .map(|&radix| {
                        let pick = rest % radix;
                        rest /= radix;
                        pick
                    })
                    .collect()
            })),
            None => {
                picks.push(vec![0; radices.len()]);
                picks.push(radices.iter().map(|radix| radix - 1).collect());
                while picks.len() < limit {
                    picks.push(radices.iter().map(|&radix| random.below(radix as u64) as usize).collect());
                }
            }
        }
        picks.iter().map(|pick| self.outcome(pick)).collect()
    }

    /// How many things may become of each unsynced name, length and sector.
    fn radices(&self) -> Vec<usize> {
        let inner = self.lock();
        let names = inner.unsynced_names().len();
        let inodes = inner.inodes.values().flat_map(|inode| {
            let len = (inode.disk.len() != inode.cache.len()).then_some(2);
            len.into_iter().chain(inode.dirty.values().map(|versions| versions.len() + 1))
        });
        std::iter::repeat_n(2, names).chain(inodes).collect()
    }

    fn outcome(&self, pick: &[usize]) -> CrashDisk {
        let mut inner = self.lock().clone();
        let mut pick = pick.iter().copied();
        let mut next = || pick.next().expect("there is a pick for each choice");
        for name in inner.unsynced_names() {
            if next() == 1 {
                match inner.names.get(&name).copied() {
                    Some(inode) => inner.durable_names.insert(name, inode),
                    None => inner.durable_names.remove(&name),
                };
            }
        }
        for inode in inner.inodes.values_mut() {
            let len = match inode.disk.len() != inode.cache.len() && next() == 1 {
                true => inode.cache.len(),
                false => inode.disk.len(),
            };
            inode.disk.resize(inode.disk.len().max(inode.cache.len()), 0);
            for (sector, versions) in std::mem::take(&mut inode.dirty) {
                let at = sector * SECTOR;
                if let Some(version) = next().checked_sub(1).and_then(|index| versions.get(index)) {
                    inode.disk[at..at + version.len()].copy_from_slice(version);
                }
            }
            inode.disk.resize(len, 0);
            inode.cache.clone_from(&inode.disk);
        }
        inner.names.clone_from(&inner.durable_names);
        let used: BTreeSet<u64> = inner.names.values().copied().collect();
        inner.inodes.retain(|id, _| used.contains(id));
        inner.locks.clear();
        (inner.cut_after, inner.failing_sync) = (None, None);
        CrashDisk(Arc::new(Mutex::new(inner)))
    }

    /// The number of unsynced sectors of a file.
    pub fn unsynced_sectors(&self, path: &str) -> usize {
        let inner = self.lock();
        inner.names.get(path).map_or(0, |inode| inner.inodes[inode].dirty.len())
    }

    /// All paths, sorted.
    pub fn paths(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// The bytes of a file.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.inodes[&inner.names[path]].cache.clone()
    }

    /// Damages or makes a file, durably.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.next_inode += 1;
        let id = inner.next_inode;
        let inode = Inode { disk: bytes.to_vec(), cache: bytes.to_vec(), dirty: BTreeMap::new() };
        inner.inodes.insert(id, inode);
        inner.names.insert(path.to_owned(), id);
        inner.durable_names.insert(path.to_owned(), id);
    }

    /// Flips bits of a byte on the medium, under whoever has the file open.
    pub fn rot(&self, path: &str, at: usize, bits: u8) {
        let mut inner = self.lock();
        let id = inner.names[path];
        let inode = inner.inodes.get_mut(&id).expect("a name has a file");
        inode.cache[at] ^= bits;
        inode.disk[at] ^= bits;
    }

    /// Removes a file, durably.
    pub fn erase(&self, path: &str) {
        let mut inner = self.lock();
        inner.names.remove(path);
        inner.durable_names.remove(path);
    }
}

impl Inner {
    fn unsynced_names(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.names.keys().chain(self.durable_names.keys()).collect();
        let differs = |name: &&&String| self.names.get(**name) != self.durable_names.get(**name);
        all.iter().filter(differs).map(|name| (*name).clone()).collect()
    }

    /// Counts a call; an error once the power has failed.
    fn call(&mut self, changes: bool) -> Result<()> {
        self.calls += u64::from(changes && !self.is_dark());
        match self.is_dark() {
            true => Err(Error::other("the power failed")),
            false => Ok(()),
        }
    }

    fn is_dark(&self) -> bool {
        self.cut_after.is_some_and(|limit| self.calls > limit)
    }
}

impl Inode {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[at..end].copy_from_slice(bytes);
        for sector in at / SECTOR..end.div_ceil(SECTOR) {
            let from = sector * SECTOR;
            let version = self.cache[from..(from + SECTOR).min(self.cache.len())].to_vec();
            let old = self.disk.get(from..(from + version.len()).min(self.disk.len())).unwrap_or_default();
            let versions = self.dirty.entry(sector).or_default();
            let same = match versions.last() {
                Some(last) => *last == version,
                None => *old == version,
            };
            if !same {
                versions.push(version);
            }
            if versions.is_empty() {
                self.dirty.remove(&sector);
            }
        }
    }

    fn set_len(&mut self, len: usize) {
        self.cache.resize(len, 0);
        self.dirty.retain(|sector, _| sector * SECTOR < len);
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Storage for CrashDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut inner = self.lock();
        inner.call(mode == OpenMode::Create)?;
        let inode = match (inner.names.get(path).copied(), mode) {
            (Some(_), OpenMode::Create) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::Create) => {
                inner.next_inode += 1;
                let inode = inner.next_inode;
                inner.inodes.insert(inode, Inode::default());
                inner.names.insert(path.to_owned(), inode);
                inode
            }
            (None, _) => return Err(ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Handle { disk: self.clone(), inode }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let mut inner = self.lock();
        inner.call(false)?;
        if !inner.dirs.contains(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let names = inner.names.keys().filter(|path| dir_of(path) == dir);
        Ok(names.map(|path| path[dir.len() + 1..].to_owned()).collect())
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        let mut inner = self.lock();
        let is_new = !inner.dirs.contains(dir);
        inner.call(is_new)?;
        inner.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.call(true)?;
        inner.names.remove(path).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, _: &str, _: &str) -> Result<()> {
        panic!("the engine renames nothing: this disk does not know how a cut falls between two names")
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.call(true)?;
        for name in inner.unsynced_names().into_iter().filter(|name| dir_of(name) == dir) {
            match inner.names.get(&name).copied() {
                Some(inode) => inner.durable_names.insert(name, inode),
                None => inner.durable_names.remove(&name),
            };
        }
        Ok(())
    }

    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        let mut inner = self.lock();
        inner.call(false)?;
        if !inner.locks.insert(path.to_owned()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Guard { disk: self.clone(), path: path.to_owned() }))
    }
}

struct Guard {
    disk: CrashDisk,
    path: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.path);
    }
}

struct Handle {
    disk: CrashDisk,
    inode: u64,
}

impl Handle {
    fn with<R>(&self, changes: bool, run: impl FnOnce(&mut Inode) -> Result<R>) -> Result<R> {
        let mut inner = self.disk.lock();
        inner.call(changes)?;
        run(inner.inodes.get_mut(&self.inode).expect("an open file is there"))
    }
}

impl File for Handle {
    fn len(&self) -> Result<u64> {
        self.with(false, |inode| Ok(inode.cache.len() as u64))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(false, |inode| {
            let at = offset as usize;
            let bytes = inode.cache.get(at..at + buf.len()).ok_or(ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.with(true, |inode| {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            inode.write(offset as usize, &bytes);
            Ok(())
        })
    }

    fn sync(&self) -> Result<()> {
        let mut inner = self.disk.lock();
        inner.call(true)?;
        inner.syncs += 1;
        let fails = inner.failing_sync == Some(inner.syncs);
        let inode = inner.inodes.get_mut(&self.inode).expect("an open file is there");
        if fails {
            inode.dirty.clear();
            return Err(Error::from_raw_os_error(5));
        }
        let dirty = std::mem::take(&mut inode.dirty);
        inode.disk.resize(inode.cache.len(), 0);
        for (sector, versions) in dirty {
            let last = versions.last().expect("a dirty sector was written");
            let at = sector * SECTOR;
            inode.disk[at..at + last.len()].copy_from_slice(last);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.with(true, |inode| {
            inode.set_len(len as usize);
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.with(true, |inode| {
            inode.set_len(inode.cache.len().max(len as usize));
            Ok(())
        })
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.with(true, |inode| {
            inode.write(offset as usize, &vec![0; len as usize]);
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.with(false, |inode| {
            let len = inode.cache.len() as u64;
            Ok((offset < len).then_some((offset, len)))
        })
    }
}
