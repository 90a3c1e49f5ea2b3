//! A qcow2 image, laid out before its first byte is written: what is data is known by then, so that its tables are made
//! once, and data can be written by several threads, each to its own place.
//!
//! Invariants:
//! - the order in the file is header, reference counts, tables of the first and second level, data in the order of the
//!   disk; each cluster is used once;
//! - the header comes last, when the rest is on disk. If we die before, the file is no image at all, not half of one.
//!
//! What it does not do: backing files, snapshots, compression, and reading images that somebody else has written.
//!
//! Layout: QEMU's `docs/interop/qcow2.txt`, version 3.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of a table that is a cluster long.
const ENTRIES: u64 = CLUSTER / 8;
/// Counts of 16 bits in a cluster.
const COUNTS: u64 = CLUSTER / 2;
const COUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 104;
/// Of an entry: the cluster is used once, so that it may be written in place.
const ONCE: u64 = 1 << 63;

/// Clusters of data that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first one on the disk.
    first: u64,
    /// How many.
    len: u64,
    /// The first one in the data of the file.
    index: u64,
}

/// Where everything is. Numbers are of clusters.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    size: u64,
    runs: Vec<Run>,
    /// The parts of the disk that have a table of the second level.
    parts: Vec<u64>,
    count_table: u64,
    count_blocks: u64,
    first_level: u64,
    data: u64,
}

impl Layout {
    /// For a disk of `size` bytes with data in `ranges`: ascending, first byte and the one behind the last.
    pub(crate) fn new(size: u64, ranges: impl IntoIterator<Item = (u64, u64)>) -> Layout {
        let mut runs: Vec<Run> = Vec::new();
        for (start, end) in ranges {
            let (mut first, behind) = (start / CLUSTER, end.div_ceil(CLUSTER));
            if let Some(last) = runs.last_mut() {
                first = first.max(last.first + last.len);
                if first == last.first + last.len {
                    last.len += behind.saturating_sub(first);
                    continue;
                }
            }
            let index = runs.last().map_or(0, |last| last.index + last.len);
            runs.push(Run { first, len: behind - first, index });
        }
        let data = runs.last().map_or(0, |last| last.index + last.len);
        let mut parts = runs
            .iter()
            .flat_map(|run| run.first / ENTRIES..=(run.first + run.len - 1) / ENTRIES)
            .collect::<Vec<_>>();
        parts.dedup();
        let first_level = size.div_ceil(CLUSTER).div_ceil(ENTRIES).div_ceil(ENTRIES).max(1);
        let (mut count_table, mut count_blocks) = (1, 1);
        // The counts are counted, too.
        loop {
            let all = 1 + count_table + count_blocks + first_level + parts.len() as u64 + data;
            let blocks = all.div_ceil(COUNTS);
            let table = blocks.div_ceil(ENTRIES);
            if (table, blocks) == (count_table, count_blocks) {
                return Layout { size, runs, parts, count_table, count_blocks, first_level, data };
            }
            (count_table, count_blocks) = (table, blocks);
        }
    }

    /// How long the file is.
    pub(crate) fn file_bytes(&self) -> u64 {
        (self.data_at() + self.data) * CLUSTER
    }

    /// Where a byte of the disk is in the file, if it is in the data, and for how many bytes that or its not being there
    /// holds.
    fn place(&self, at: u64) -> (Option<u64>, u64) {
        let cluster = at / CLUSTER;
        let next = self.runs.partition_point(|run| run.first + run.len <= cluster);
        match self.runs.get(next) {
            None => (None, self.size - at),
            Some(run) if run.first > cluster => (None, run.first * CLUSTER - at),
            Some(run) => {
                let host = (self.data_at() + run.index) * CLUSTER + (at - run.first * CLUSTER);
                (Some(host), (run.first + run.len) * CLUSTER - at)
            }
        }
    }

    /// Writes bytes of the disk.
    ///
    /// # Errors
    /// Of the file, and if they are where there was to be no data.
    pub(crate) fn write(&self, file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let (host, len) = self.place(at);
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX)));
            let host = host.ok_or_else(|| io::Error::other("there is data where there was none before"))?;
            file.write_all_at(part, host)?;
            at += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Reads bytes of the disk.
    pub(crate) fn read(&self, file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let (host, len) = self.place(at);
            let len = buf.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            let (part, rest) = buf.split_at_mut(len);
            match host {
                Some(host) => file.read_exact_at(part, host)?,
                None => part.fill(0),
            }
            at += part.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    /// Writes and syncs all that is no data. The data must be written before.
    pub(crate) fn finish(&self, file: &File) -> io::Result<()> {
        let counts_at = 1 + self.count_table;
        write_table(
            file,
            1,
            self.count_table,
            (counts_at..counts_at + self.count_blocks).map(|at| at * CLUSTER),
        )?;
        let all = self.data_at() + self.data;
        for block in 0..self.count_blocks {
            let used = COUNTS.min(all - block * COUNTS) as usize;
            let mut bytes = [0, 1].repeat(used);
            bytes.resize(CLUSTER as usize, 0);
            file.write_all_at(&bytes, (counts_at + block) * CLUSTER)?;
        }
        let first_at = counts_at + self.count_blocks;
        let second_at = first_at + self.first_level;
        let mut first = vec![0; (self.first_level * ENTRIES) as usize];
        for (index, part) in (0..).zip(&self.parts) {
            if let Some(entry) = first.get_mut(*part as usize) {
                *entry = ((second_at + index) * CLUSTER) | ONCE;
            }
        }
        write_table(file, first_at, self.first_level, first.into_iter())?;
        for (index, part) in (0..).zip(&self.parts) {
            let clusters = part * ENTRIES..(part + 1) * ENTRIES;
            let end = self.size.div_ceil(CLUSTER);
            let entries = clusters.take_while(|cluster| *cluster < end);
            let entries =
                entries.map(|cluster| self.place(cluster * CLUSTER).0.map_or(0, |host| host | ONCE));
            write_table(file, second_at + index, 1, entries)?;
        }
        file.sync_all()?;
        file.write_all_at(&self.header(), 0)?;
        file.sync_all()
    }

    fn header(&self) -> Vec<u8> {
        let first_at = 1 + self.count_table + self.count_blocks;
        let mut bytes = b"QFI\xfb".to_vec();
        let mut put = |value: u64, len: usize| bytes.extend_from_slice(&value.to_be_bytes()[8 - len..]);
        put(3, 4);
        // No backing file: its name's place and length.
        put(0, 8);
        put(0, 4);
        put(u64::from(CLUSTER_BITS), 4);
        put(self.size, 8);
        // Not encrypted.
        put(0, 4);
        put(self.size.div_ceil(CLUSTER).div_ceil(ENTRIES), 4);
        put(first_at * CLUSTER, 8);
        put(CLUSTER, 8);
        put(self.count_table, 4);
        // No snapshots: their number and place. No features.
        put(0, 4);
        put(0, 8);
        put(0, 8);
        put(0, 8);
        put(0, 8);
        put(u64::from(COUNT_ORDER), 4);
        put(u64::from(HEADER_BYTES), 4);
        // The end of the extensions.
        put(0, 8);
        bytes
    }

    fn data_at(&self) -> u64 {
        1 + self.count_table + self.count_blocks + self.first_level + self.parts.len() as u64
    }
}

fn write_table(file: &File, at: u64, clusters: u64, entries: impl Iterator<Item = u64>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity((clusters * CLUSTER) as usize);
    entries.for_each(|entry| bytes.extend_from_slice(&entry.to_be_bytes()));
    bytes.resize((clusters * CLUSTER) as usize, 0);
    file.write_all_at(&bytes, at * CLUSTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn every_byte_of_data_has_a_place_of_its_own() {
        let ranges = [(0, 1), (100, 200), (CLUSTER * 3 + 5, CLUSTER * 5), (GIB, GIB + CLUSTER * 2)];
        let layout = Layout::new(2 * GIB, ranges);
        assert_eq!((layout.data, layout.parts.as_slice()), (5, &[0, 2][..]));
        let data = layout.data_at() * CLUSTER;
        assert_eq!(layout.place(5), (Some(data + 5), CLUSTER - 5));
        assert_eq!(layout.place(CLUSTER + 7), (None, 2 * CLUSTER - 7));
        assert_eq!(layout.place(CLUSTER * 4), (Some(data + CLUSTER * 2), CLUSTER));
        assert_eq!(layout.place(GIB).0, Some(data + CLUSTER * 3));
        assert_eq!(layout.place(GIB + CLUSTER * 2), (None, GIB - CLUSTER * 2));
        assert_eq!(layout.file_bytes(), data + 5 * CLUSTER);
    }

    #[test]
    fn counts_count_themselves() {
        for size in [512, GIB, 70 * GIB, 4096 * GIB] {
            let layout = Layout::new(size, [(0, size)]);
            let all = layout.file_bytes() / CLUSTER;
            assert!(
                layout.count_blocks * COUNTS >= all && (layout.count_blocks - 1) * COUNTS < all,
                "{size}"
            );
            assert!(layout.count_table * ENTRIES >= layout.count_blocks, "{size}");
        }
        assert_eq!(Layout::new(GIB, []).file_bytes(), 4 * CLUSTER);
    }
}
