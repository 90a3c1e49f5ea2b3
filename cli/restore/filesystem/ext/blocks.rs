//! From a file's inode to the blocks that hold its content: trees of extents (ext4), and numbers of blocks with
//! blocks of such numbers behind them (ext2, ext3).
//!
//! Invariants:
//! - runs come in ascending order and never overlap, in the file; together they are no longer than the volume, since
//!   no block belongs to a file twice. So a tree that leads back into itself ends soon, whatever it says;
//! - a part of a tree that is damaged is told, and the parts beside it are followed.
//!
//! Preallocated blocks that were never written are holes.

use super::crc::crc32c;
use super::inode::{Inode, MAP_BYTES};
use super::superblock::Superblock;
use crate::restore::filesystem::{Place, Run};
use crate::restore::source::{Raw, Source, Trouble};

const EXTENT_MAGIC: u16 = 0xf30a;
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
/// Deeper trees cannot be needed for 2^32 blocks.
const MAX_DEPTH: u16 = 5;
/// An extent with more blocks than this is one of so many fewer, none of them written.
const MAX_WRITTEN: u16 = 32768;
/// What is said of one file; a tree that is damaged everywhere says it once for each place.
const MAX_FAULTS: usize = 8;
/// Then it is given up. Each node brings either content or a fault, so a tree that leads in circles comes to this.
const MAX_FAULTS_SEEN: u32 = 10_000;

/// Follows the map of one file.
pub(super) struct Blocks<'a> {
    volume: &'a dyn Source,
    sb: &'a Superblock,
    inode: &'a Inode,
    /// Blocks up to here are behind us.
    next: u64,
    /// Blocks that the file has, by its size.
    end: u64,
    /// Blocks that it may yet have, by the volume's.
    left: u64,
    pending: Option<Run>,
    faults: Vec<Trouble>,
    faults_seen: u32,
    each: &'a mut dyn FnMut(Run) -> Result<(), Trouble>,
}

/// How following goes on.
type Step = Result<(), Trouble>;

impl<'a> Blocks<'a> {
    /// For the content of `inode`, run by run.
    pub(super) fn new(
        volume: &'a dyn Source,
        sb: &'a Superblock,
        inode: &'a Inode,
        each: &'a mut dyn FnMut(Run) -> Result<(), Trouble>,
    ) -> Blocks<'a> {
        let end = inode.stat.size.div_ceil(sb.block_size);
        let (next, left, pending) = (0, sb.blocks, None);
        Blocks { volume, sb, inode, next, end, left, pending, faults: Vec::new(), faults_seen: 0, each }
    }

    /// By the tree of extents in the inode. Returns what is damaged.
    pub(super) fn extents(mut self) -> Result<Vec<Trouble>, Trouble> {
        self.node(self.inode.map(), None)?;
        self.finish()
    }

    /// By the numbers of blocks in the inode. Returns what is damaged.
    pub(super) fn numbers(mut self) -> Result<Vec<Trouble>, Trouble> {
        let raw = Raw(self.inode.map());
        for index in 0..MAP_BYTES / 4 {
            let block = u64::from(raw.u32(index * 4).unwrap_or(0));
            let level = index.saturating_sub(11) as u32;
            self.number(block, level)?;
        }
        self.finish()
    }

    fn finish(mut self) -> Result<Vec<Trouble>, Trouble> {
        if let Some(run) = self.pending.take() {
            (self.each)(run)?;
        }
        Ok(self.faults)
    }

    /// Tells of damage, and goes on if that is all it is.
    fn fault(&mut self, trouble: Trouble) -> Step {
        if trouble.is_lost() {
            return Err(trouble);
        }
        self.faults_seen += 1;
        if self.faults_seen > MAX_FAULTS_SEEN {
            return Err(Trouble::damaged("it is damaged in too many places"));
        }
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(trouble);
        }
        Ok(())
    }

    /// A node of the tree. `above`: what the node above says of its depth; none for the root.
    fn node(&mut self, bytes: &[u8], above: Option<u16>) -> Step {
        let raw = Raw(bytes);
        let header = (raw.u16(0), raw.u16(2), raw.u16(4), raw.u16(6));
        let (Some(EXTENT_MAGIC), Some(entries), Some(max), Some(depth)) = header else {
            return self.fault(Trouble::damaged("its tree of extents is damaged: a node has no signature"));
        };
        let room = (bytes.len() - HEADER_BYTES) / ENTRY_BYTES;
        let depth_is_right = above.map_or(depth <= MAX_DEPTH, |above| depth + 1 == above);
        // Only the root may be empty.
        let is_empty = entries == 0 && above.is_some();
        if entries > max || usize::from(max) > room || !depth_is_right || is_empty {
            return self
                .fault(Trouble::damaged("its tree of extents is damaged: a node cannot be as it says"));
        }
        for index in 0..usize::from(entries) {
            let Some(entry) = raw.bytes(HEADER_BYTES + index * ENTRY_BYTES, ENTRY_BYTES) else { break };
            match depth {
                0 => self.extent(Raw(entry))?,
                _ => self.child(Raw(entry), depth)?,
            }
        }
        Ok(())
    }

    fn child(&mut self, entry: Raw<'_>, depth: u16) -> Step {
        let (Some(first), Some(low), Some(high)) = (entry.u32(0), entry.u32(4), entry.u16(8)) else {
            return Ok(());
        };
        let block = u64::from(low) | u64::from(high) << 32;
        if u64::from(first) < self.next {
            return self.fault(Trouble::damaged("its tree of extents is damaged: it leads backwards"));
        }
        let bytes = match self.block(block) {
            Ok(bytes) => bytes,
            Err(trouble) => return self.fault(trouble),
        };
        if let Some(seed) = self.inode.checksum_seed {
            // Behind the last entry that there is room for.
            let max = Raw(&bytes).u16(4).unwrap_or(0);
            let end = HEADER_BYTES + usize::from(max) * ENTRY_BYTES;
            let covered = bytes.get(..end).map(|covered| crc32c(seed, covered));
            if covered.is_none() || covered != Raw(&bytes).u32(end) {
                return self.fault(Trouble::damaged(format_args!(
                    "its tree of extents is damaged: block {block} has a wrong checksum"
                )));
            }
        }
        self.node(&bytes, Some(depth))
    }

    fn extent(&mut self, entry: Raw<'_>) -> Step {
        let fields = (entry.u32(0), entry.u16(4), entry.u16(6), entry.u32(8));
        let (Some(first), Some(len), Some(high), Some(low)) = fields else { return Ok(()) };
        let block = u64::from(low) | u64::from(high) << 32;
        if len == 0 {
            return self.fault(Trouble::damaged("its tree of extents is damaged: one of them is empty"));
        }
        if len > MAX_WRITTEN {
            return self.pass(u64::from(first), u64::from(len - MAX_WRITTEN));
        }
        self.run(u64::from(first), u64::from(len), block)
    }

    /// A block's number in a map of `level` blocks of numbers in between; 0 is a hole.
    fn number(&mut self, block: u64, level: u32) -> Step {
        let each = self.sb.block_size / 4;
        let covers = each.pow(level);
        let first = self.next;
        if block == 0 || first >= self.end {
            return self.pass(first, covers);
        }
        if level == 0 {
            return self.run(first, 1, block);
        }
        match self.block(block) {
            Err(trouble) => {
                self.fault(trouble)?;
                self.pass(first, covers)
            }
            Ok(bytes) => {
                for index in 0..each as usize {
                    if self.next >= self.end {
                        break;
                    }
                    let below = u64::from(Raw(&bytes).u32(index * 4).unwrap_or(0));
                    self.number(below, level - 1)?;
                }
                self.next = first + covers;
                Ok(())
            }
        }
    }

    fn block(&self, block: u64) -> Result<Vec<u8>, Trouble> {
        if block == 0 || block >= self.sb.blocks {
            return Err(Trouble::damaged(format_args!(
                "its content cannot be found by way of block {block}"
            )));
        }
        self.volume.read_vec(block * self.sb.block_size, self.sb.block_size as usize)
    }

    /// A stretch without content.
    fn pass(&mut self, first: u64, len: u64) -> Step {
        if first < self.next {
            return self.fault(Trouble::damaged("its tree of extents is damaged: two of them overlap"));
        }
        self.next = first + len;
        Ok(())
    }

    /// A stretch with content, joined with the one before if it goes on there.
    fn run(&mut self, first: u64, len: u64, block: u64) -> Step {
        let damaged = |what: &str| Trouble::damaged(format_args!("{what}, at block {first} of it"));
        if first < self.next {
            return self.fault(damaged("its tree of extents is damaged: two of them overlap"));
        }
        self.next = first + len;
        // Blocks behind the end of a file are left over from something.
        let len = self.end.min(self.next).saturating_sub(first);
        if len == 0 {
            return Ok(());
        }
        if block == 0 || block.saturating_add(len) > self.sb.blocks {
            return self.fault(damaged("its content would lie outside the filesystem"));
        }
        let Some(left) = self.left.checked_sub(len) else {
            // Nothing behind it is looked at.
            self.end = first;
            return self.fault(damaged("it would have more content than there is room for"));
        };
        self.left = left;
        let size = self.sb.block_size;
        let (at, place) = (first * size, block * size);
        let bytes = (len * size).min(self.inode.stat.size - at);
        if let Some(Run { at: before, len, place: Place::Volume(start) }) = &mut self.pending
            && *before + *len == at
            && *start + *len == place
        {
            *len += bytes;
            return Ok(());
        }
        match self.pending.replace(Run { at, len: bytes, place: Place::Volume(place) }) {
            Some(run) => (self.each)(run),
            None => Ok(()),
        }
    }
}
