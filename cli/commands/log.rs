//! `landfall log inspect` and `landfall log verify`: a group's log on disk, without a daemon.
//!
//! Neither changes a byte, and neither takes the log's lock for longer than it reads: a log that a daemon has
//! open is refused. `verify` ends with code 4 if something that had been durable is missing or damaged.

use crate::args::Global;
use crate::control::api::{At, Reign, Role, epoch, lsn};
use crate::exit::Failure;
use crate::human::{self, Table, clean};
use crate::time;
use crate::units::{Bytes, count};
use engine::types::{Epoch, Lsn};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Answer of `log inspect`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Inspection {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// The group's identity.
    pub(crate) group: String,
    /// What this node is to it.
    pub(crate) role: Role,
    /// The highest epoch seen.
    #[serde(with = "epoch")]
    pub(crate) epoch: Epoch,
    /// The oldest record; absent in an empty log.
    pub(crate) first: Option<At>,
    /// The newest record; absent in an empty log.
    pub(crate) last: Option<At>,
    /// The highest position that is known to have been durable.
    #[serde(with = "lsn")]
    pub(crate) durable: Lsn,
    /// The backing devices hold everything up to here.
    #[serde(with = "lsn")]
    pub(crate) applied: Lsn,
    /// The reigns, oldest first.
    pub(crate) reigns: Vec<Reign>,
    /// What failovers set aside.
    pub(crate) branches: Vec<Stump>,
    /// The files, in the log's order; spare ones last.
    pub(crate) segments: Vec<Segment>,
}

/// A branch as the state on record names it; a running node tells what is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stump {
    /// The epoch that wrote it.
    pub(crate) epoch: u64,
    /// The LSN of its first record.
    pub(crate) first: u64,
    /// And of its last.
    pub(crate) last: u64,
}

/// A file of a log.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Segment {
    /// Its name in the folder.
    pub(crate) file: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// What of it is records.
    pub(crate) used_bytes: u64,
    /// Its first and last record; absent in a spare file.
    pub(crate) records: Option<(u64, u64)>,
}

/// Answer of `log verify`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verification {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// Records read, header and payload.
    pub(crate) records: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// The last good record.
    #[serde(with = "lsn")]
    pub(crate) last: Lsn,
    /// The highest position that is known to have been durable.
    #[serde(with = "lsn")]
    pub(crate) durable: Lsn,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// How a verification ended. `{"name":"torn","lsn":5,...}`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Every record is whole.
    Clean,
    /// The end was torn off by a power cut; nothing of it had been durable. The next start cuts it.
    Torn {
        /// The first record that is not there.
        #[serde(with = "lsn")]
        lsn: Lsn,
        /// The file.
        file: String,
        /// The byte in it.
        offset: u64,
        /// What was found there.
        found: String,
    },
    /// Something that had been durable is missing or damaged.
    Corrupt {
        /// The record.
        #[serde(with = "lsn")]
        lsn: Lsn,
        /// The file.
        file: String,
        /// The byte in it.
        offset: u64,
        /// What was found there.
        found: String,
    },
}

/// Carries out `log inspect`.
pub(crate) fn inspect(
    global: &Global,
    dir: &Path,
    read: impl FnOnce(&Path) -> Result<Inspection, Failure>,
) -> Result<(), Failure> {
    human::answer(global.form(), &read(dir)?, inspection_text)
}

/// Carries out `log verify`.
pub(crate) fn verify(
    global: &Global,
    dir: &Path,
    read: impl FnOnce(&Path) -> Result<Verification, Failure>,
) -> Result<(), Failure> {
    let verification = read(dir)?;
    human::answer(global.form(), &verification, verification_text)?;
    match &verification.outcome {
        Outcome::Clean | Outcome::Torn { .. } => Ok(()),
        Outcome::Corrupt { lsn, .. } => Err(Failure::corrupt(format_args!(
            "the log in {} is damaged at LSN {lsn}, which had been durable",
            dir.display()
        ))
        .next("restore the file from a copy, or fail over to a replica, which holds what it acknowledged")),
    }
}

fn inspection_text(it: &Inspection) -> String {
    let role = match it.role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    };
    let mut out =
        format!("{}\n  group    {}, {role}, epoch {}\n", it.dir.display(), clean(&it.group), it.epoch);
    let _ = match (it.first, it.last) {
        (Some(first), Some(last)) => writeln!(
            out,
            "  records  LSN {} ({}) to {} ({})",
            first.lsn,
            time::format(first.time.0),
            last.lsn,
            time::format(last.time.0)
        ),
        _ => writeln!(out, "  records  none"),
    };
    let _ = writeln!(out, "  durable  at least to LSN {}; applied to LSN {}", it.durable, it.applied);
    let mut reigns = Table::new(&["EPOCH", "WRITTEN BY", "FROM LSN", "TO LSN"]).right(&[0, 2, 3]).indent(2);
    for reign in &it.reigns {
        let (first, last) = (reign.first.lsn.to_string(), reign.last.lsn.to_string());
        reigns.row(&[&reign.epoch.to_string(), &reign.node, &first, &last]);
    }
    out.push_str(&reigns.render());
    for branch in &it.branches {
        let _ = writeln!(out, "  branch of epoch {}: LSN {} to {}", branch.epoch, branch.first, branch.last);
    }
    let mut files =
        Table::new(&["FILE", "SIZE", "USED", "FROM LSN", "TO LSN"]).right(&[1, 2, 3, 4]).indent(2);
    for segment in &it.segments {
        let (from, to) = segment.records.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |(from, to)| (from.to_string(), to.to_string()),
        );
        let (size, used) = (Bytes(segment.bytes).to_string(), Bytes(segment.used_bytes).to_string());
        files.row(&[&segment.file, &size, &used, &from, &to]);
    }
    out.push_str(&files.render());
    out
}

fn verification_text(it: &Verification) -> String {
    let mut out = format!(
        "{}\n  {} records, {}, last good LSN {}, known to have been durable to LSN {}\n",
        it.dir.display(),
        count(it.records),
        Bytes(it.bytes),
        it.last,
        it.durable
    );
    let _ = match &it.outcome {
        Outcome::Clean => writeln!(out, "  clean"),
        Outcome::Torn { lsn, file, offset, found } => writeln!(
            out,
            "  torn at LSN {lsn} ({} at byte {offset}: {}): nothing there had been durable, the next start cuts it off",
            clean(file),
            clean(found)
        ),
        Outcome::Corrupt { lsn, file, offset, found } => {
            writeln!(out, "  DAMAGED at LSN {lsn} ({} at byte {offset}: {})", clean(file), clean(found))
        }
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;
    use crate::exit::Code;

    fn global() -> Global {
        args::from(["landfall", "--json", "status"]).unwrap().global
    }

    fn verification(outcome: Outcome) -> Verification {
        Verification {
            dir: "/d/db".into(),
            records: 1_234,
            bytes: 5 << 20,
            last: Lsn(9),
            durable: Lsn(9),
            outcome,
        }
    }

    #[test]
    fn damage_of_what_was_durable_is_code_4_a_torn_tail_is_not() {
        let place = |lsn| (Lsn(lsn), "00000001.seg".to_owned(), 4_096, "checksum".to_owned());
        let (lsn, file, offset, found) = place(10);
        let torn = Outcome::Torn { lsn, file, offset, found };
        let (lsn, file, offset, found) = place(8);
        let corrupt = Outcome::Corrupt { lsn, file, offset, found };
        for (outcome, code, words) in [
            (Outcome::Clean, None, "  clean\n"),
            (torn, None, "torn at LSN 10 (00000001.seg at byte 4096: checksum)"),
            (corrupt, Some(Code::Corrupt), "DAMAGED at LSN 8 (00000001.seg at byte 4096: checksum)"),
        ] {
            let text = verification_text(&verification(outcome.clone()));
            assert!(text.contains(words), "{text}");
            assert!(text.contains("1,234 records, 5 MiB, last good LSN 9"), "{text}");
            let result = verify(&global(), Path::new("/d/db"), |_| Ok(verification(outcome)));
            assert_eq!(result.err().map(|failure| failure.code), code);
        }
    }
}
