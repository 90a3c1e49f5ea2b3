//! The arguments of `landfall snapshot`.

use crate::point::Point;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Copy all volumes of a group at a point into the node's store of snapshots
    Create(Create),
    /// The snapshots of this node, and what they use
    List,
    /// Delete one for good, and give back what it alone uses
    Delete(Delete),
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

fn name(text: &str) -> Result<String, String> {
    let rule = "a name has letters, digits, `.`, `_` and `-`, at most 128, and begins with none of the last";
    engine::snapshots::is_name(text).then(|| text.to_owned()).ok_or_else(|| rule.to_owned())
}
