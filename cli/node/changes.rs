//! The files in which writes to recovery points are kept.
//!
//! They have no name, so they go with the process, however that ends: a daemon that is killed leaves nothing.

use engine::changes::Budget;
use engine::io::{File, OpenMode, Storage};
use engine::os::disk::Disk;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Makes `dir` for scratch files, and removes what a daemon left there that died between making a file and taking
/// its name away.
///
/// # Errors
/// Of the system.
pub(super) fn prepare(dir: &Path) -> std::io::Result<()> {
    let disk = Disk::new(dir)?;
    disk.list("")?.iter().try_for_each(|name| disk.remove(name))
}

/// What the writes to one mount may take, in a folder.
pub(super) struct Scratch {
    dir: PathBuf,
    pub(super) budget: Arc<Budget>,
}

impl Scratch {
    /// Files in `dir`, with `limit_bytes` of data at the most.
    pub(super) fn new(dir: &Path, limit_bytes: u64) -> Scratch {
        let of = dir.to_owned();
        let free = move || {
            let free = rustix::fs::statvfs(&of)?;
            Ok(free.f_bavail.saturating_mul(free.f_frsize))
        };
        Scratch { dir: dir.to_owned(), budget: Arc::new(Budget::new(limit_bytes, Box::new(free))) }
    }

    /// An empty file. `name` is unlike that of any other file in the making.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn file(&self, name: &str) -> std::io::Result<Arc<dyn File>> {
        let disk = Disk::new(&self.dir)?;
        let file = disk.open(name, OpenMode::Create)?;
        // If we die before this, the next start removes it.
        disk.remove(name)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_has_a_name() {
        let folder = crate::scratch::Scratch::new("changes").unwrap();
        let scratch = Scratch::new(folder.path(), 1 << 20);
        let file = scratch.file("1").unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(file.len().unwrap(), 4096);
    }

    #[test]
    fn what_a_killed_daemon_left_is_removed() {
        let scratch = crate::scratch::Scratch::new("changes").unwrap();
        std::fs::write(scratch.path().join("3-1"), "left behind").unwrap();
        prepare(scratch.path()).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
