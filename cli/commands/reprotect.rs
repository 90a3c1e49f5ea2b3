//! `landfall failover commit` and `landfall reprotect`: what an operator decides after a failover.

use crate::args::{self, Global};
use crate::control::api::Reprotected;
use crate::exit::Failure;
use crate::human::{self, clean};
use std::fmt::Write as _;

/// Stands by a failover.
pub(crate) fn commit(global: &Global, arguments: &args::Commit) -> Result<(), Failure> {
    let group = &arguments.group;
    let mut client = global.connect()?;
    let committed = client.commit(group)?;
    human::answer(global.form(), &committed, |committed| match committed.at {
        Some(at) => format!(
            "group {}: the failover to LSN {at} is committed; the points from before it are retired as any others\n",
            clean(group)
        ),
        None => format!("group {}: there is no failover to commit\n", clean(group)),
    })
}

/// Has old primaries taken back.
pub(crate) fn run(global: &Global, arguments: &args::Reprotect) -> Result<(), Failure> {
    let mut client = global.connect()?;
    let reprotected = client.reprotect(&arguments.group)?;
    human::answer(global.form(), &reprotected, |reprotected| text(&arguments.group, reprotected))
}

fn text(group: &str, reprotected: &Reprotected) -> String {
    let mut out =
        format!("group {}: an old primary becomes a replica when it is next dialled\n", clean(group));
    for replica in &reprotected.replicas {
        let _ = writeln!(out, "  {} is dialled", clean(replica));
    }
    out.push_str(
        "  Only what it wrote alone and what was written here since is sent; what it wrote alone is kept there as a \
         branch.\n  `landfall status` shows how far it is.\n",
    );
    out
}
