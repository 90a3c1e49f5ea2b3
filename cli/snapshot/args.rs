//! The arguments of `landfall snapshot`.

use crate::args::DiskFormat;
use crate::point::Point;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Copy all volumes of a group at a point into the node's store of snapshots
    Create(Create),
    /// The snapshots of this node, and what they use
    List,
    /// Delete one for good, and give back what it alone uses
    Delete(Delete),
    /// What differs between two, told without reading their data
    Diff(Diff),
    /// Make a disk of a volume of one: a raw file, a qcow2 image, or a block device
    Export(Export),
    /// Read all blocks, and check that they are what was written
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The group
    pub(crate) group: String,
    /// What to call it: letters, digits, `.`, `_` and `-`
    #[arg(long, value_parser = name)]
    pub(crate) name: String,
    /// latest, latest-app, mark:NAME, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of
    /// them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true, default_value = "latest")]
    pub(crate) at: Point,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The snapshot, as `snapshot list` names it; a damaged one by the name of its file
    pub(crate) name: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The snapshot that was before
    pub(crate) before: String,
    /// The snapshot that is compared with it
    pub(crate) after: String,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The volume of the snapshot
    #[arg(value_name = "NAME/VOLUME", value_parser = of_snapshot)]
    pub(crate) volume: OfSnapshot,
    /// The file or block device to write
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// The form of the file
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = DiskFormat::Raw)]
    pub(crate) format: DiskFormat,
    /// Replace what is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Which; all of them if left out
    pub(crate) name: Option<String>,
}

/// `NAME/VOLUME`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfSnapshot {
    pub(crate) snapshot: String,
    pub(crate) volume: String,
}

fn of_snapshot(text: &str) -> Result<OfSnapshot, String> {
    let parts = text.split_once('/').filter(|(snapshot, volume)| !snapshot.is_empty() && !volume.is_empty());
    let (snapshot, volume) = parts.ok_or("write NAME/VOLUME, as in before-upgrade/data")?;
    Ok(OfSnapshot { snapshot: snapshot.to_owned(), volume: volume.to_owned() })
}

fn name(text: &str) -> Result<String, String> {
    let rule = "a name has letters, digits, `.`, `_` and `-`, at most 128, and begins with none of the last";
    engine::snapshots::is_name(text).then(|| text.to_owned()).ok_or_else(|| rule.to_owned())
}
