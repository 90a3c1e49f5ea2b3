//! What the catalog wants to know of the newest records, noted as they are appended: it need not read the log
//! while it keeps up.
//!
//! - Notes are of appended records: whoever uses them stops at the durable one.
//! - A mark or a promotion is always noted, as long as it is kept at all; of the others enough for samples of time.
//! - They are bounded, and gone with the process; then, or if they were outrun, the log itself is read.

use super::format::Header;
use crate::event::Kind;
use crate::types::{Lsn, Timestamp};
use bytes::Bytes;
use std::collections::VecDeque;

/// The most that is kept: some minutes of a busy log.
const MAX_NOTES: usize = 4096;
/// Of other records, one is noted each time their clock has moved on by this: ten for each sample of the catalog.
const EVERY_NS: u64 = 100_000_000;

/// A record that the catalog may have a use for.
#[derive(Clone, Debug)]
pub struct Note {
    /// Which.
    pub lsn: Lsn,
    /// When it was logged.
    pub time: Timestamp,
    /// What happened.
    pub kind: Kind,
    /// The record's flags.
    pub flags: u16,
    /// The payload of a mark or a promotion.
    pub body: Bytes,
}

/// The newest notes of a log.
#[derive(Debug)]
pub struct Notes {
    /// From here on nothing is missing.
    first: Lsn,
    kept: VecDeque<Note>,
    newest: Option<Timestamp>,
}

impl Notes {
    pub(super) fn new(first: Lsn) -> Notes {
        Notes { first, kept: VecDeque::new(), newest: None }
    }

    pub(super) fn take(&mut self, header: &Header, payload: &[u8]) {
        let tells = matches!(header.kind, Kind::Mark | Kind::Promote);
        let is_due =
            self.newest.is_none_or(|newest| header.time < newest || header.time.0 - newest.0 >= EVERY_NS);
        if !tells && !is_due {
            return;
        }
        self.newest = Some(header.time);
        let body = if tells { Bytes::copy_from_slice(payload) } else { Bytes::new() };
        self.kept.push_back(Note {
            lsn: header.lsn,
            time: header.time,
            kind: header.kind,
            flags: header.flags,
            body,
        });
        if self.kept.len() > MAX_NOTES
            && let Some(gone) = self.kept.pop_front()
        {
            self.first = gone.lsn.next();
        }
    }

    /// Forgets what lies behind `lsn`.
    pub(super) fn cut(&mut self, lsn: Lsn) {
        while self.kept.back().is_some_and(|note| note.lsn > lsn) {
            self.kept.pop_back();
        }
        self.newest = None;
        self.first = self.first.min(lsn.next());
    }

    /// The notes of the records `from..=upto`, in order; `None` if some are not kept any more.
    #[must_use]
    pub fn between(&self, from: Lsn, upto: Lsn) -> Option<Vec<Note>> {
        if from < self.first {
            return None;
        }
        let start = self.kept.partition_point(|note| note.lsn < from);
        Some(self.kept.range(start..).take_while(|note| note.lsn <= upto).cloned().collect())
    }
}
