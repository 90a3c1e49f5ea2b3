//! What the tests and benchmarks with real programs share: a primary and a replica as child processes, the
//! programs that work on their volumes, and the leaving of nothing behind.
//!
//! | module | what it is |
//! |---|---|
//! | [`node`] | a `landfall` daemon, and the pair `east` (primary) and `west` (replica) |
//! | [`image`] | filesystems in files, and restores out of volumes that hold them |
//! | [`disk`] | a volume as a mounted filesystem: FUSE file, loop device, ext4 |
//! | [`postgres`] | a PostgreSQL cluster on it |
//! | [`tool`] | running programs; saying that one is missing |
//! | [`random`] | a seeded generator |
//! | [`tree`] | a tree of files with one of each, and the comparison of two |
//!
//! What holds: whatever a value started, mounted or attached ends when it is dropped, also by a panic; processes
//! are ended by the number of the child, never by a name.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    reason = "each test binary uses its own part of this"
)]

pub mod disk;
pub mod image;
pub mod node;
pub mod postgres;
pub mod random;
pub mod relay;
pub mod tool;
pub mod tree;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A folder that is gone with the value. Its path is short: sockets lie in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch::under(&std::env::temp_dir())
    }

    /// The same elsewhere: where the kind of filesystem matters.
    pub fn under(parent: &Path) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("landfall-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        // A database server that runs as another user has to pass.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("the folder is ours");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("LANDFALL_KEEP").is_some() {
            return eprintln!("kept: {}", self.0.display());
        }
        if let Err(err) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {err}", self.0.display());
        }
    }
}

/// Waits until `is` holds. `what` says what did not come about otherwise.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !is() {
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
