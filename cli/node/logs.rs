//! `log inspect` and `log verify`: a group's folder on disk, read whole and left as it is.

use crate::commands::log::{Inspection, Outcome, Segment, Verification};
use crate::control::api::{At, Branch, Moment, Reign, Role, Stretch};
use crate::exit::Failure;
use engine::log::recovery::{OpenError, Verified};
use engine::node::open::{self, Examined};
use engine::os::disk::Disk;
use engine::state;
use engine::types::{Lsn, Timestamp};
use std::path::Path;
use std::sync::Arc;

fn examine(dir: &Path) -> Result<Examined, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format_args!("{}: {error}", dir.display()));
    if !dir.join("state").is_file() {
        return Err(Failure::usage(format_args!("{} is not the folder of a group", dir.display()))
            .next("name the folder that holds `state` and `log`, as in DATA_DIR/groups/GROUP"));
    }
    let absolute = std::path::absolute(dir).map_err(|error| failed(&error))?;
    let (parent, name) = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => (parent, name.to_string_lossy().into_owned()),
        _ => return Err(failed(&"it has no name")),
    };
    let disk = Disk::new(parent).map_err(|error| failed(&error))?;
    open::examine(Arc::new(disk), &name).map_err(|error| match error {
        open::Error::Locked { .. } => Failure::refused(error),
        open::Error::State(state::Error::Damaged { .. }) => Failure::corrupt(error),
        error => Failure::failed(error),
    })
}

fn file_name(slot: u32) -> String {
    format!("log/{slot:08}.seg")
}

/// Reads the outline of a log.
pub(crate) fn inspect(dir: &Path) -> Result<Inspection, Failure> {
    let Examined { state, log } = examine(dir)?;
    let log = log.map_err(Failure::corrupt)?;
    let at = |lsn: Lsn| At { lsn, time: Moment(Timestamp(0)) };
    let mut segments: Vec<Segment> = log
        .segments
        .iter()
        .map(|segment| Segment {
            file: file_name(segment.slot),
            bytes: segment.header.len,
            used_bytes: segment.end,
            records: (segment.last >= segment.header.first)
                .then_some((segment.header.first.0, segment.last.0)),
        })
        .collect();
    segments.extend(log.spares.iter().map(|&slot| Segment {
        file: file_name(slot),
        bytes: 0,
        used_bytes: 0,
        records: None,
    }));
    let first = state.start.lsn.next();
    let held = log.tip.lsn >= first;
    let reigns = state.history.iter().enumerate().map(|(index, reign)| {
        let last = state.history.get(index + 1).map_or(log.tip.lsn, |next| next.branch.lsn);
        Reign {
            epoch: reign.epoch,
            node: reign.node.to_string(),
            first: at(reign.branch.lsn.next()),
            last: at(last),
        }
    });
    let branches = state.branches.iter().map(|branch| Branch {
        epoch: branch.epoch,
        first: at(branch.after.lsn.next()),
        last: at(branch.last),
        size: Stretch { writes: branch.last.0 - branch.after.lsn.0, bytes: 0, ms: 0 },
    });
    Ok(Inspection {
        dir: dir.to_owned(),
        group: state.group.to_string(),
        role: match state.role {
            state::Role::Replica => Role::Replica,
            state::Role::Primary | state::Role::Fenced => Role::Primary,
        },
        epoch: state.epoch_seen(),
        first: held.then(|| At { lsn: first, time: time_of(&log, first) }),
        last: held.then(|| At { lsn: log.tip.lsn, time: time_of(&log, log.tip.lsn) }),
        durable: state.durable,
        applied: state.applied,
        reigns: reigns.collect(),
        branches: branches.collect(),
        segments,
    })
}

fn time_of(log: &Verified, lsn: Lsn) -> Moment {
    let segment = log.segments.iter().find(|segment| (segment.header.first..=segment.last).contains(&lsn));
    Moment(segment.map_or(Timestamp(0), |segment| segment.last_time))
}

/// Reads all of a log.
pub(crate) fn verify(dir: &Path) -> Result<Verification, Failure> {
    let Examined { state, log } = examine(dir)?;
    let (records, bytes, last, outcome) = match log {
        Ok(log) => {
            let bytes = log.segments.iter().map(|segment| segment.end).sum();
            let outcome = match &log.report.torn {
                None => Outcome::Clean,
                Some(torn) => Outcome::Torn {
                    lsn: torn.lsn,
                    file: file_name(torn.slot),
                    offset: torn.offset,
                    found: torn.stop.to_string(),
                },
            };
            (log.report.records, bytes, log.tip.lsn, outcome)
        }
        Err(OpenError::Corrupt { lsn, path, offset, stop, .. }) => {
            let outcome = Outcome::Corrupt { lsn, file: path, offset, found: stop.to_string() };
            (lsn.0.saturating_sub(state.start.lsn.next().0), 0, lsn.prev(), outcome)
        }
        Err(error) => return Err(Failure::failed(error)),
    };
    Ok(Verification { dir: dir.to_owned(), records, bytes, last, durable: state.durable, outcome })
}
