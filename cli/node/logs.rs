//! `log inspect`, `log verify` and `log export-trace`: a group's folder on disk, read whole and left as it is.

use crate::args::ExportTrace;
use crate::commands::export::Sink;
use crate::commands::log::{Inspection, Outcome, Segment, Stump, Verification};
use crate::control::api::{At, Moment, Reign, Role};
use crate::exit::Failure;
use ::sim::recorded::{Line, Volume};
use engine::event::{FLAG_AGAIN, FLAG_COPY, Kind, Marked, VolumeDefined, decode_body};
use engine::log::format::{Header, SEGMENT_HEADER_BYTES, Seed};
use engine::log::recovery::{OpenError, Verified};
use engine::log::scan::{Depth, Scan};
use engine::node::open::{self, Examined};
use engine::os::disk::Disk;
use engine::state;
use engine::types::{Lsn, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The records of a log that begin within a range, without payloads.
pub(crate) fn export_trace(arguments: &ExportTrace, sink: &mut dyn Sink) -> Result<(), Failure> {
    let dir = &arguments.dir;
    let Examined { state, log } = examine(dir)?;
    let log = log.map_err(Failure::corrupt)?;
    let from = Lsn(arguments.from.unwrap_or(0)).max(state.start.lsn.next());
    let to = Lsn(arguments.to.unwrap_or(u64::MAX)).min(log.tip.lsn);
    if from > to {
        let (first, last) = (state.start.lsn.next(), log.tip.lsn);
        let what = format!("{}: no record from LSN {from} to LSN {to}", dir.display());
        return Err(Failure::usage(what).next(format_args!("the log holds LSN {first} to LSN {last}")));
    }
    let mut volumes: BTreeMap<VolumeId, Volume> = state
        .volumes
        .iter()
        .map(|volume| (volume.id, Volume { name: volume.name.clone(), size: volume.size }))
        .collect();
    let seed = Seed::of(state.group);
    let mut begun: Option<Timestamp> = None;
    let mut last = Timestamp(0);
    for segment in log.segments.iter().filter(|segment| segment.header.first <= to) {
        let start = SEGMENT_HEADER_BYTES as u64;
        let mut scan = Scan::new(Arc::clone(&segment.file), seed, segment.end, start, segment.start);
        while scan.offset() < segment.end && scan.tip().lsn < to {
            let failed = |why: &dyn std::fmt::Display| {
                Failure::failed(format_args!("{}: {}: {why}", dir.display(), file_name(segment.slot)))
            };
            let (header, _, payload) = scan
                .next(Depth::Whole)
                .map_err(|error| failed(&error))?
                .map_err(|stop| failed(&stop).next("a daemon may have taken the log meanwhile: try again"))?;
            if header.kind == Kind::Volume
                && let Some(defined) = decode_body::<VolumeDefined>(payload)
            {
                let volume = Volume { name: defined.name, size: defined.size };
                volumes.insert(header.volume, volume);
            }
            // A sync span's copies, and what it repeats, are no guest's doing.
            let is_copy = header.kind.changes_bytes() && header.flags & FLAG_COPY != 0;
            let is_again = header.kind == Kind::Volume && header.flags & FLAG_AGAIN != 0;
            if header.lsn < from || is_copy || is_again {
                continue;
            }
            if begun.is_none() {
                sink.begin(volumes.values().cloned().collect())?;
            }
            // A wall clock may have been set back; a recording's time does not go back.
            last = last.max(header.time);
            let ns = last.0.saturating_sub(begun.get_or_insert(last).0);
            sink.line(&line_of(&header, payload, ns, volumes.get(&header.volume)))?;
        }
    }
    Ok(())
}

fn line_of(header: &Header, payload: &[u8], ns: u64, volume: Option<&Volume>) -> Line {
    let line = Line { lsn: header.lsn.0, ns, kind: header.kind.name().to_owned(), ..Line::default() };
    let name = || volume.map(|volume| volume.name.clone());
    match header.kind {
        kind if kind.changes_bytes() => {
            let (offset, length) = (Some(header.extent.offset), Some(header.extent.len));
            Line { volume: name(), offset, length, ..line }
        }
        Kind::Volume => Line { volume: name(), length: volume.map(|volume| volume.size), ..line },
        Kind::Mark => Line { name: decode_body::<Marked>(payload).map(|mark| mark.name), ..line },
        _ => line,
    }
}

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
    let branches = state.branches.iter().map(|branch| Stump {
        epoch: branch.epoch.0,
        first: branch.after.lsn.next().0,
        last: branch.last.0,
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
