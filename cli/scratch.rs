//! A folder of its own, under the system's folder for temporary files, that goes away when it is dropped.
//!
//! Only its owner can look into it. A process that is killed leaves it behind.

use crate::exit::{Context, Failure};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How many names are tried.
const ATTEMPTS: u32 = 1_000;

/// The folder.
pub(crate) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes `landfall-<what>-<process>-<number>`.
    pub(crate) fn new(what: &str) -> Result<Scratch, Failure> {
        let parent = std::env::temp_dir();
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        for attempt in 0..ATTEMPTS {
            let path = parent.join(format!("landfall-{what}-{}-{attempt}", std::process::id()));
            match builder.create(&path) {
                Ok(()) => return Ok(Scratch { path, keep: false }),
                Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
                Err(err) => {
                    return Err(err).context(|| format!("a folder in {} cannot be made", parent.display()));
                }
            }
        }
        Err(Failure::failed(format_args!("{} is full of folders of this name", parent.display())))
    }

    /// A folder that somebody chose: made if it is not there, and it must be empty. It is kept.
    pub(crate) fn at(path: &Path) -> Result<Scratch, Failure> {
        let doing = || format!("the folder {} cannot be used", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).context(doing)?;
        if fs::read_dir(path).context(doing)?.next().is_some() {
            return Err(Failure::usage(format_args!("{} is not empty", path.display()))
                .next("name a folder that is empty or not there"));
        }
        let path = fs::canonicalize(path).context(doing)?;
        Ok(Scratch { path, keep: true })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Whether it is left there.
    pub(crate) fn kept(&self) -> bool {
        self.keep
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(err) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%err, path = %self.path.display(), "a temporary folder could not be removed");
        }
    }
}
