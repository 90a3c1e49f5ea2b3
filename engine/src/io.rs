//! The one seam between the engine and the disk: a small synchronous trait.
//!
//! `engine::os` implements it with real files, `sim` with a disk that loses, tears and rots. Every method may
//! fail with any [`std::io::Error`], and the engine has an answer for each (guarantee 8). The crash model that
//! the engine is written against, and that the simulated disk enforces:
//!
//! - bytes written by [`File::write_at`] are in the kernel's hands: they survive the process, not a power cut;
//! - at a power cut each 512-byte sector written since the last successful [`File::sync`] is, on its own, old
//!   or new, in any combination;
//! - a file's existence, name and length survive a power cut only after [`Storage::sync_dir`] of its folder
//!   (and, for the length, a sync of the file);
//! - after a failed sync nothing is known about the file's unsynced sectors, and a later sync that succeeds
//!   proves nothing about them.

use std::io::{IoSlice, Result};
use std::sync::Arc;

/// The unit that a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reads only.
    Read,
    /// Existing file, reads and writes.
    Write,
    /// New file, reads and writes; fails with `AlreadyExists` if there is one.
    Create,
}

/// Folders and names. Paths are relative to the root that the storage was made for, with `/` between parts.
/// (A volume's backing may lie anywhere: an absolute path is passed through as it is.)
pub trait Storage: Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>>;

    /// The names (not paths) of the files in a folder, sorted.
    fn list(&self, dir: &str) -> Result<Vec<String>>;

    /// Makes a folder and its parents; succeeds if it is there.
    fn create_dir(&self, dir: &str) -> Result<()>;

    /// Removes a file.
    fn remove(&self, path: &str) -> Result<()>;

    /// Renames a file over whatever has the new name, atomically.
    fn rename(&self, from: &str, to: &str) -> Result<()>;

    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &str) -> Result<()>;

    /// Takes the exclusive lock at `path` (made if absent), held until the guard is dropped or the process
    /// dies, however it dies. `WouldBlock` if another holder has it.
    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>>;
}

/// Makes a folder and its parents such that a power cut cannot take them, whoever made them and however far that
/// came: a program that died between making a folder and syncing its name leaves one that only *looks* made, and
/// everything that is later synced in it would go with it.
///
/// # Errors
/// Of the storage.
pub fn make_dir(storage: &dyn Storage, dir: &str) -> Result<()> {
    storage.create_dir(dir)?;
    let Some((mut parent, _)) = dir.rsplit_once('/') else { return storage.sync_dir("") };
    if dir.starts_with('/') {
        // The folders above are the operator's.
        return storage.sync_dir(if parent.is_empty() { "/" } else { parent });
    }
    loop {
        storage.sync_dir(parent)?;
        match parent.rsplit_once('/') {
            Some((above, _)) => parent = above,
            None => return storage.sync_dir(""),
        }
    }
}

/// Whether an error says that there is no space, for now.
pub(crate) fn is_no_space(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// An open file or block device.
///
/// Implementations retry `EINTR` and short transfers; a caller sees all or an error. Concurrent calls are
/// allowed.
pub trait File: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// As [`File::read_at`], but `WouldBlock` if it would have to wait for a disk. The default cannot tell and
    /// just reads.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(buf, offset)
    }

    /// Writes the slices one behind the other from `offset`.
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()>;

    /// Makes all completed writes to this file durable (`fdatasync`). An error is final: see the module.
    fn sync(&self) -> Result<()>;

    /// Sets the length of a regular file; new bytes read as zeros and take no space.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Reserves real space for the first `len` bytes and extends the file to at least that, so that later
    /// writes there cannot run out of space, where the filesystem can promise it.
    fn allocate(&self, len: u64) -> Result<()>;

    /// Makes a range read as zeros, and frees its space where that can be done; else writes zeros.
    fn zero(&self, offset: u64, len: u64) -> Result<()>;

    /// The first stretch at or after `offset` that may hold data, as (start, end); `None` if only holes follow.
    /// A file that cannot tell answers with all the rest.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;

    /// Tells the disk that a range will be read soon. Never fails; may do nothing.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// Tells the system that what is durable of the file will not be read soon: its memory is better used for
    /// something else. Never fails; may do nothing.
    fn let_go(&self) {}
}
