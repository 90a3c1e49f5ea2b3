//! The catalog: what is looked up in a log but would take a walk through it to find. Marks, the LSN of a wall-clock
//! time, reigns, and how far each replica has come.
//!
//! It is a projection of the log and nothing else: whatever happens to it, it is thrown away and projected anew
//! by [`Projector`], the same code that keeps it up to date while records are appended. (The replicas' cursors
//! are not in the log; each replica tells its own again when it connects. Until then nobody may conclude anything
//! from an absent one.)
//!
//! Invariants:
//! - whatever the catalog holds of the log is of records ≤ [`Catalog::projected_through`], or is put again, with
//!   the same effect, when those behind it are projected after a crash;
//! - samples grow in time and in LSN alike, whatever the clock did: a clock that was set back makes the samples
//!   ahead of it void, since the newest record of a time is the one that is meant.
//!
//! It holds no payload and no part of the version index, and nothing depends on it for correctness.

mod memory;

pub use memory::MemoryCatalog;

use crate::types::{Lsn, NodeId, Position, Reign, Timestamp};
use bincode::{Decode, Encode};
use std::ops::RangeInclusive;

/// The longest name of a mark, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// The most marks that one call of [`Catalog::marks`] returns.
pub const MAX_MARKS_PER_CALL: usize = 4096;

/// The wall-clock time between two samples: 1 s.
pub const SAMPLE_EVERY_NS: u64 = 1_000_000_000;

/// After so many records in which nothing was worth keeping, their projection is noted all the same.
pub const NOTE_EVERY_RECORDS: u64 = 1 << 16;

/// Why an LSN was marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MarkKind {
    /// An operator or a script wanted to find it again.
    Bookmark,
    /// The applications were quiescent: the point is consistent for them, not only for the disks.
    Application,
}

/// A named LSN.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Mark {
    /// When it was set.
    pub time: Timestamp,
    /// Why.
    pub kind: MarkKind,
    /// Its name; at most [`MAX_NAME_BYTES`]. Names need not differ.
    pub name: String,
}

/// The wall-clock time of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The time that the record carries.
    pub time: Timestamp,
    /// The record.
    pub lsn: Lsn,
}

/// Where in the log a wall-clock time lies: the newest record of that time or before stands at or behind
/// `at_or_before`, and before `after`. (A record behind `after` with an earlier time would have made it void.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The newest sample that is not later; `None` if there is none, so that one has to look from the first record.
    pub at_or_before: Option<Sample>,
    /// The oldest sample that is later; `None` if the last is not.
    pub after: Option<Sample>,
}

/// How far a replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Cursor {
    /// The last position that it acknowledged as durable there.
    pub acknowledged: Position,
    /// When it said so.
    pub time: Timestamp,
}

/// Why the catalog cannot answer. The answer to each but [`Error::NameTooLong`] is to go on without one, and to
/// project a new one when there is a chance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it holds is not what was put there.
    #[error("the catalog is damaged: {0}")]
    Damaged(String),
    /// The disk under it failed.
    #[error("the catalog cannot be read or written")]
    Io(#[from] std::io::Error),
    /// A mark's name has more than [`MAX_NAME_BYTES`].
    #[error("a mark's name has {0} bytes, more than {MAX_NAME_BYTES}")]
    NameTooLong(usize),
}

/// The result of a call to the catalog.
pub type Result<T> = std::result::Result<T, Error>;

/// The catalog of one group. Changes reach the disk in the order in which they are made; when, is only known after
/// [`Catalog::flush`].
pub trait Catalog: Send {
    /// Keeps the mark at `lsn`, in place of any other there.
    fn put_mark(&mut self, lsn: Lsn, mark: &Mark) -> Result<()>;

    /// The marks in a range, in order; the first [`MAX_MARKS_PER_CALL`] of them.
    fn marks(&self, range: RangeInclusive<Lsn>) -> Result<Vec<(Lsn, Mark)>>;

    /// Keeps a sample, and drops those that are not earlier. One whose LSN is not above the newest sample's is
    /// ignored: it was put before.
    fn put_sample(&mut self, sample: Sample) -> Result<()>;

    /// The newest sample.
    fn newest_sample(&self) -> Result<Option<Sample>>;

    /// Where a time lies.
    fn lsn_at(&self, time: Timestamp) -> Result<Bounds>;

    /// Keeps a reign, in place of any other of that epoch.
    fn put_reign(&mut self, reign: &Reign) -> Result<()>;

    /// The reigns, oldest first.
    fn reigns(&self) -> Result<Vec<Reign>>;

    /// Keeps a replica's cursor, in place of its last.
    fn put_cursor(&mut self, node: NodeId, cursor: &Cursor) -> Result<()>;

    /// The cursors, in the order of the nodes.
    fn cursors(&self) -> Result<Vec<(NodeId, Cursor)>>;

    /// Drops what is of records after `lsn`: they are on a branch now, or were lost with the log's tail. Samples
    /// that those had made void do not come back: bounds stay right, only further apart.
    fn truncate_after(&mut self, lsn: Lsn) -> Result<()>;

    /// Drops marks and samples of records before `lsn`: those points were retired.
    fn forget_before(&mut self, lsn: Lsn) -> Result<()>;

    /// Drops everything.
    fn clear(&mut self) -> Result<()>;

    /// All records up to this one have been projected; 0 for none.
    fn projected_through(&self) -> Result<Lsn>;

    /// Notes how far the projection has come, after everything up to there was put.
    fn set_projected_through(&mut self, lsn: Lsn) -> Result<()>;

    /// Makes every change up to here durable.
    fn flush(&mut self) -> Result<()>;
}

/// What a record means to the catalog.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// Nothing beyond its time.
    Other,
    /// It is a mark.
    Mark(&'a Mark),
    /// It begins a reign.
    Reign(&'a Reign),
}

/// Carries records into a catalog, in LSN order: at the opening of a log those that the catalog lacks, afterwards
/// each that becomes durable.
#[derive(Debug)]
pub struct Projector {
    through: Lsn,
    newest: Option<Sample>,
    /// Records since the catalog was last told how far it is.
    unnoted: u64,
}

impl Projector {
    /// Goes on where the catalog stands. `last` is the log's last record: whatever the catalog holds of later ones
    /// is of a tail that was lost, and is dropped.
    pub fn open(catalog: &mut dyn Catalog, last: Lsn) -> Result<Projector> {
        // Also if it has been projected less far: what was put last may not have been noted.
        catalog.truncate_after(last)?;
        let through = catalog.projected_through()?;
        Ok(Projector { through, newest: catalog.newest_sample()?, unnoted: 0 })
    }

    /// The first record that the catalog lacks.
    #[must_use]
    pub fn next(&self) -> Lsn {
        self.through.next()
    }

    /// Projects one record. After an error the catalog may hold a part of it, so the same record is projected
    /// again, or the catalog is given up.
    ///
    /// # Panics
    /// If the record was projected before.
    pub fn project(
        &mut self,
        catalog: &mut dyn Catalog,
        lsn: Lsn,
        time: Timestamp,
        entry: Entry<'_>,
    ) -> Result<()> {
        assert!(lsn > self.through, "record {lsn} is projected after {}", self.through);
        let mut note = self.unnoted + 1 >= NOTE_EVERY_RECORDS;
        match entry {
            Entry::Other => {}
            Entry::Mark(mark) => {
                catalog.put_mark(lsn, mark)?;
                note = true;
            }
            Entry::Reign(reign) => {
                catalog.put_reign(reign)?;
                note = true;
            }
        }
        if self.is_due(lsn, time) {
            let sample = Sample { time, lsn };
            catalog.put_sample(sample)?;
            self.newest = Some(sample);
            note = true;
        }
        // Last, so that a crash before it leads to doing the above again.
        if note {
            catalog.set_projected_through(lsn)?;
        }
        self.unnoted = if note { 0 } else { self.unnoted + 1 };
        self.through = lsn;
        Ok(())
    }

    /// Takes it that the records up to `lsn` hold nothing more.
    pub fn pass(&mut self, catalog: &mut dyn Catalog, lsn: Lsn) -> Result<()> {
        if lsn > self.through {
            catalog.set_projected_through(lsn)?;
            self.through = lsn;
            self.unnoted = 0;
        }
        Ok(())
    }

    /// Whether a record is to be a sample. Decided by the newest sample alone, so that a new projection of the same
    /// log gives the same samples.
    fn is_due(&self, lsn: Lsn, time: Timestamp) -> bool {
        match self.newest {
            None => true,
            Some(newest) if lsn <= newest.lsn => false,
            Some(newest) => time < newest.time || time.0 - newest.time.0 >= SAMPLE_EVERY_NS,
        }
    }
}

/// Checked before a mark is kept, by every implementation.
pub(crate) fn check_name(mark: &Mark) -> Result<()> {
    if mark.name.len() > MAX_NAME_BYTES {
        return Err(Error::NameTooLong(mark.name.len()));
    }
    Ok(())
}
