//! A folder of a real filesystem as [`Storage`].
//!
//! Invariants:
//! - every name is resolved from the folder's descriptor, so that neither a change of the working directory nor a
//!   rename of the folder (or of one above it) can make two names mean different folders;
//! - every descriptor is closed on exec, so that no child process holds a lock or a segment;
//! - files are made for their owner alone: they hold what is on the disks.
//!
//! Errors are the system's, unchanged: a filesystem that was remounted read-only, a full disk or quota, too many
//! open files. The caller knows what it was about to do and says so.

use super::file::Handle;
use crate::io::{File, OpenMode, Storage};
use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// How often a lock file may be swapped under our hands before that counts as "held".
const MAX_LOCK_TRIES: u32 = 8;

/// A folder and what is below it; absolute paths are passed through.
#[derive(Debug)]
pub struct Disk {
    root: OwnedFd,
}

impl Disk {
    /// The storage in the folder `root`, which is made, durably, if it is absent.
    pub fn new(root: impl AsRef<Path>) -> Result<Disk> {
        let root = root.as_ref();
        make_dirs(CWD, root)?;
        Ok(Disk { root: open_dir(CWD, root)? })
    }
}

impl Storage for Disk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::Write => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        Ok(Arc::new(Handle::new(open(self.root.as_fd(), path, flags)?)?))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let fd = open_dir(self.root.as_fd(), here(dir))?;
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let kind = match entry.file_type() {
                // Some filesystems do not say.
                FileType::Unknown => {
                    let stat = fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            if kind != FileType::Directory {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes a folder and its parents, and their names durable.
    fn create_dir(&self, dir: &str) -> Result<()> {
        make_dirs(self.root.as_fd(), Path::new(here(dir)))
    }

    fn remove(&self, path: &str) -> Result<()> {
        Ok(fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        Ok(fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        sync_dir(self.root.as_fd(), Path::new(here(dir)))
    }

    /// Takes the lock with `flock`: it belongs to the open file, goes with the process however that dies, and is
    /// on the inode, so that a second path to the same folder (a bind mount) meets the same lock.
    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        for _ in 0..MAX_LOCK_TRIES {
            let fd = open(self.root.as_fd(), path, OFlags::RDWR | OFlags::CREATE)?;
            match rustix::io::retry_on_intr(|| fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
            // Somebody may have removed the file between our open and our lock: then we hold a lock on nothing,
            // and whoever comes next makes a new file and holds it as well.
            let ours = fs::fstat(&fd)?;
            match fs::statat(&self.root, path, AtFlags::empty()) {
                Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => {
                    return Ok(Box::new(fd));
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::new(
            ErrorKind::WouldBlock,
            format!("{path} is locked: another process is using this directory"),
        ))
    }
}

/// The empty path means the root itself.
fn here(dir: &str) -> &str {
    if dir.is_empty() { "." } else { dir }
}

fn open(at: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd> {
    let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    Ok(rustix::io::retry_on_intr(|| fs::openat(at, path, flags, mode))?)
}

fn open_dir(at: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| fs::openat(at, path.as_ref(), flags, Mode::empty()))?)
}

fn sync_dir(at: BorrowedFd<'_>, path: &Path) -> Result<()> {
    Ok(fs::fsync(open_dir(at, path)?)?)
}

/// Makes a folder and its parents. If we die half-way, those that exist are durable or gone: either is a start.
fn make_dirs(at: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match open_dir(at, path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other.map(drop),
    }
    let mut prefixes: Vec<&Path> = path.ancestors().filter(|prefix| !prefix.as_os_str().is_empty()).collect();
    prefixes.reverse();
    for prefix in prefixes {
        match fs::mkdirat(at, prefix, Mode::RWXU) {
            Ok(()) => {
                let parent = prefix.parent().filter(|parent| !parent.as_os_str().is_empty());
                sync_dir(at, parent.unwrap_or(Path::new(".")))?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    open_dir(at, path).map(drop)
}
