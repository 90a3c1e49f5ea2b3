//! The log's own files, read again at rest: rot is found while there is another copy of what it has eaten, and not by
//! whoever needs the records one day.
//!
//! - Each file that is full is read once in the time that verification is scheduled for, or a day, and no faster than
//!   verification reads. Headers, chain and payloads are checked, as recovery and readers do.
//! - On a primary, replicas that have not been sent the record yet get by a sync span what it would have brought them.
//! - On a replica, what cannot be read of points is told of. The newest state is repaired by verification; a fold that
//!   meets the record has its part sent again before it retires the points.
//!
//! Nothing of it is on record: a node that has just started reads all of them again.

use super::Node;
use super::work::Job;
use crate::log::scan::{Depth, Scan};
use crate::log::segment::Segment;
use crate::state::Role;
use crate::types::{Lsn, Mono, Now, Timestamp};

/// All files are read once in this time if verification has no schedule.
const DAY_MS: u64 = 24 * 3_600_000;
/// The first is read this part of the time after the start.
const FIRST_AFTER: u64 = 100;
/// What is told of at most; more is counted.
const MAX_TOLD: usize = 64;

/// A record that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotten {
    /// The file.
    pub segment: u32,
    /// The record.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub reason: String,
    /// When it was found, by this node's clock.
    pub found: Timestamp,
}

/// What was read at rest since this process began.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RereadReport {
    /// How often all files were.
    pub passes: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// Records of the retained log that cannot be read; the first of each file.
    pub rotten: Vec<Rotten>,
}

/// The book-keeping.
#[derive(Debug, Default)]
pub(crate) struct Reread {
    /// All up to here has been read in this pass.
    through: Lsn,
    /// Nothing is read before this; `None` before the first time is known.
    next: Option<Mono>,
    out: bool,
    report: RereadReport,
}

impl Reread {
    /// A file is being read.
    pub(super) fn is_out(&self) -> bool {
        self.out
    }
}

/// See [`Job::Reread`].
pub struct RereadFile {
    segment: Segment,
    seed: crate::log::format::Seed,
}

/// What became of it.
pub struct Read {
    slot: u32,
    first: Lsn,
    last: Lsn,
    bytes: u64,
    wrong: Option<(Lsn, String)>,
}

impl RereadFile {
    pub(super) fn run(self) -> Read {
        let RereadFile { segment, seed } = self;
        let from = crate::log::format::SEGMENT_HEADER_BYTES as u64;
        let mut scan = Scan::new(segment.file.clone(), seed, segment.end, from, segment.start);
        let mut wrong = None;
        while scan.tip().lsn < segment.last && wrong.is_none() {
            let lsn = scan.tip().lsn.next();
            wrong = match scan.next(Depth::Whole) {
                Ok(Ok(_)) => None,
                Ok(Err(stop)) => Some((lsn, stop.to_string())),
                Err(error) => Some((lsn, error.to_string())),
            };
        }
        let bytes = scan.offset() - from;
        Read { slot: segment.slot, first: segment.header.first, last: segment.last, bytes, wrong }
    }
}

impl Node {
    fn reread_every_ms(&self) -> u64 {
        self.config.verify.every_ms.unwrap_or(DAY_MS)
    }

    /// The next file of the log that was not read in this pass, but for the one that is being filled.
    fn next_to_reread(&self) -> Option<&Segment> {
        let segments = self.log.segments();
        let full = &segments[..segments.len().saturating_sub(1)];
        full.iter()
            .find(|segment| segment.last > self.reread.through && segment.last <= self.log.durable().lsn)
    }

    /// Whether [`Node::poll_reread`] would do something.
    pub(super) fn reread_is_due(&self, now: Now) -> bool {
        !self.reread.out && self.reread.next.is_none_or(|next| now.mono >= next)
    }

    /// When to ask again though nothing happens.
    pub(super) fn reread_wakes(&self, now: Now) -> Option<Mono> {
        self.reread.next.filter(|&next| next > now.mono)
    }

    /// The next file to read.
    pub(super) fn poll_reread(&mut self, now: Now) -> Option<Job> {
        if !self.reread_is_due(now) {
            return None;
        }
        let every = self.reread_every_ms();
        if self.reread.next.is_none() {
            self.reread.next = Some(now.mono.plus_ms(every / FIRST_AFTER));
            return None;
        }
        let files = self.log.segments().len() as u64;
        let Some(segment) = self.next_to_reread().cloned() else {
            self.reread.report.passes += u64::from(self.reread.through > Lsn::ZERO);
            self.reread.through = Lsn::ZERO;
            self.reread.next = Some(now.mono.plus_ms(every));
            return None;
        };
        // All of them within half of the time, if the rate allows it.
        let at_rate = segment.end.saturating_mul(1_000) / self.config.verify.bytes_s.max(1);
        self.reread.next = Some(now.mono.plus_ms((every / (2 * files.max(1))).min(every).max(at_rate)));
        self.reread.out = true;
        Some(Job::Reread(RereadFile { segment, seed: self.log.seed() }))
    }

    /// A file was read.
    pub(super) fn finish_reread(&mut self, now: Now, read: Read) {
        self.reread.out = false;
        let Read { slot, first, last, bytes, wrong } = read;
        self.reread.through = self.reread.through.max(last);
        let report = &mut self.reread.report;
        report.bytes += bytes;
        report.rotten.retain(|rotten| (rotten.segment, rotten.lsn >= first) != (slot, true));
        // What was cut or freed meanwhile is nobody's any more.
        let segments = self.log.segments();
        let is_held =
            segments.iter().any(|held| (held.slot, held.header.first, held.last) == (slot, first, last));
        let Some((lsn, reason)) = wrong.filter(|_| is_held) else { return };
        tracing::warn!(
            group = %self.config.name, slot, %lsn, reason, "a record of the log has rotted where it lies"
        );
        if report.rotten.len() < MAX_TOLD {
            report.rotten.push(Rotten { segment: slot, lsn, reason, found: now.wall });
        }
        if self.state.role == Role::Primary {
            self.log_unreadable(lsn);
        }
    }

    /// What was found by reading the log at rest.
    #[must_use]
    pub fn reread(&self) -> RereadReport {
        let mut report = self.reread.report.clone();
        let first = self.log.first();
        report.rotten.retain(|rotten| rotten.lsn >= first);
        report
    }
}
