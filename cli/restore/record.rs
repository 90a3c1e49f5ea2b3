//! How far a restore to a file has come: a small JSON file beside the target, so that it can go on after a kill or a
//! power cut.
//!
//! Invariants:
//! - the record never claims what is not on disk. The order is: the target's bytes are written; the target is synced;
//!   the new record is written under another name and synced; it is renamed over the old one; the folder is synced. If
//!   we die anywhere in between, the older record stands, which claims less;
//! - a record of an earlier restore to the same name is removed, and the folder synced, before the target gets its
//!   length. If we die before that, the target's length is not what the record says, and it is not taken up;
//! - the record goes when the target is whole and synced.
//!
//! What is on record is a beginning of the volume: all of it up to `done_bytes`, nothing known of the rest.

use crate::control::api::At;
use crate::exit::{Context, Failure};
use crate::point::BranchId;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// The version of the record; another is refused.
const VERSION: u32 = 1;

/// What is longer is no record.
const MAX_BYTES: u64 = 64 << 10;

/// What is being restored, and how much of it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    /// The group's name.
    pub(super) group: String,
    /// The volume's name.
    pub(super) volume: String,
    /// The point, as it was resolved when the restore began.
    pub(super) at: At,
    /// The branch that it lies on, if it is not on the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) branch: Option<BranchId>,
    /// The volume's size there.
    pub(super) size_bytes: u64,
    /// So much of its beginning is in the target, and synced.
    pub(super) done_bytes: u64,
}

impl Record {
    /// Of a restore that has nothing yet.
    pub(super) fn new(
        group: &str,
        volume: &str,
        (at, branch): (At, Option<BranchId>),
        size_bytes: u64,
    ) -> Record {
        let (group, volume) = (group.to_owned(), volume.to_owned());
        Record { version: VERSION, group, volume, at, branch, size_bytes, done_bytes: 0 }
    }
}

/// Where the record of a target lies.
pub(super) struct Place {
    path: PathBuf,
    fresh: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// Beside `target`.
    pub(super) fn beside(target: &Path) -> Result<Place, Failure> {
        let name = target
            .file_name()
            .ok_or_else(|| Failure::usage(format_args!("{} is no name of a file", target.display())))?;
        let with = |end: &str| {
            let mut name = OsString::from(name);
            name.push(end);
            target.with_file_name(name)
        };
        let parent = target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        Ok(Place { path: with(".restore"), fresh: with(".restore.new"), folder: parent.to_owned() })
    }

    /// What is on record; none if there is no record.
    pub(super) fn load(&self) -> Result<Option<Record>, Failure> {
        let cannot = || format!("{} cannot be read", self.path.display());
        let file = match File::open(&self.path) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.context(cannot)?,
        };
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).context(cannot)?;
        let record: Record = serde_json::from_str(&text).context(cannot)?;
        if record.version != VERSION || record.done_bytes > record.size_bytes {
            return Err(Failure::failed(format_args!("{}: it is no record of ours", cannot())));
        }
        Ok(Some(record))
    }

    /// Puts `record` in place of what was there. The target must be synced as far as it says.
    pub(super) fn save(&self, record: &Record) -> Result<(), Failure> {
        let cannot = || format!("{} cannot be written", self.path.display());
        let text = serde_json::to_vec(record).context(cannot)?;
        let mut file = File::create(&self.fresh).context(cannot)?;
        file.write_all(&text).and_then(|()| file.sync_all()).context(cannot)?;
        fs::rename(&self.fresh, &self.path).context(cannot)?;
        self.sync_folder()
    }

    /// Takes the record away, for good.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(err).context(|| format!("{} cannot be removed", self.path.display()));
            }
            _ => {}
        }
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), Failure> {
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .context(|| format!("{} cannot be synced", self.folder.display()))
    }
}
