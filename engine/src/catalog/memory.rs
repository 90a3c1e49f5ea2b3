//! The catalog in memory: for the simulator, for tests, and for a node whose disk does not carry the other one.

use super::{Bounds, Catalog, Cursor, MAX_MARKS_PER_CALL, Mark, Result, Sample, check_name};
use crate::types::{Epoch, Lsn, NodeId, Reign, Timestamp};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A catalog that lives as long as its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryCatalog {
    marks: BTreeMap<Lsn, Mark>,
    samples: BTreeMap<Timestamp, Lsn>,
    reigns: BTreeMap<Epoch, Reign>,
    cursors: BTreeMap<NodeId, Cursor>,
    projected_through: Lsn,
}

impl Catalog for MemoryCatalog {
    fn put_mark(&mut self, lsn: Lsn, mark: &Mark) -> Result<()> {
        check_name(mark)?;
        self.marks.insert(lsn, mark.clone());
        Ok(())
    }

    fn marks(&self, range: RangeInclusive<Lsn>) -> Result<Vec<(Lsn, Mark)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let marks = self.marks.range(range).take(MAX_MARKS_PER_CALL);
        Ok(marks.map(|(&lsn, mark)| (lsn, mark.clone())).collect())
    }

    fn put_sample(&mut self, sample: Sample) -> Result<()> {
        if self.samples.last_key_value().is_some_and(|(_, &newest)| sample.lsn <= newest) {
            return Ok(());
        }
        self.samples.split_off(&sample.time);
        self.samples.insert(sample.time, sample.lsn);
        Ok(())
    }

    fn newest_sample(&self) -> Result<Option<Sample>> {
        Ok(self.samples.last_key_value().map(sample))
    }

    fn lsn_at(&self, time: Timestamp) -> Result<Bounds> {
        let at_or_before = self.samples.range(..=time).next_back().map(sample);
        let after = self.samples.range(time..).map(sample).find(|sample| sample.time > time);
        Ok(Bounds { at_or_before, after })
    }

    fn put_reign(&mut self, reign: &Reign) -> Result<()> {
        self.reigns.insert(reign.epoch, *reign);
        Ok(())
    }

    fn reigns(&self) -> Result<Vec<Reign>> {
        Ok(self.reigns.values().copied().collect())
    }

    fn put_cursor(&mut self, node: NodeId, cursor: &Cursor) -> Result<()> {
        self.cursors.insert(node, *cursor);
        Ok(())
    }

    fn cursors(&self) -> Result<Vec<(NodeId, Cursor)>> {
        Ok(self.cursors.iter().map(|(&node, &cursor)| (node, cursor)).collect())
    }

    fn truncate_after(&mut self, lsn: Lsn) -> Result<()> {
        self.marks.split_off(&lsn.next());
        self.samples.retain(|_, of| *of <= lsn);
        // A reign's first record is the one behind its branch point.
        self.reigns.retain(|_, reign| reign.branch.lsn < lsn);
        self.projected_through = self.projected_through.min(lsn);
        Ok(())
    }

    fn forget_before(&mut self, lsn: Lsn) -> Result<()> {
        self.marks = self.marks.split_off(&lsn);
        self.samples.retain(|_, of| *of >= lsn);
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        *self = MemoryCatalog::default();
        Ok(())
    }

    fn projected_through(&self) -> Result<Lsn> {
        Ok(self.projected_through)
    }

    fn set_projected_through(&mut self, lsn: Lsn) -> Result<()> {
        self.projected_through = lsn;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn sample((&time, &lsn): (&Timestamp, &Lsn)) -> Sample {
    Sample { time, lsn }
}
