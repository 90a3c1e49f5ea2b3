//! What guests write to a recovery point: kept beside it, and gone with the mount.
//!
//! Invariants:
//! - nothing is written to the log, the base images or the points: what a guest changes goes to a file of its own, at
//!   the volume's own offsets, and a block of 4 KiB that no guest has changed is read from the point;
//! - the blocks of all volumes of a mount that hold data stay within its [`Budget`], and the disk keeps
//!   a gibibyte free: a guest that writes more is told that there is no space, and replication has its own;
//! - memory is bounded by the volumes: two sets of [`crate::extents`], at the worst 88 MiB for each tebibyte.
//!
//! It promises no durability. The mount ends with the daemon, and what was written to it is gone then by intent, so
//! a flush is answered at once: what it vouches for lasts as long as the mount does.

use crate::extents::{BLOCK_BYTES, Extents};
use crate::guest::{MAX_REQUEST_BYTES, Piece, Refusal, Stretch};
use crate::io::{File, is_no_space};
use crate::types::{Extent, VolumeId};
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the scratch files leave free of their disk: it may be the one that the log lies on.
const RESERVE_BYTES: u64 = 1 << 30;
/// The most stretches in the answer to one status request.
const MAX_STRETCHES: usize = 1024;
/// The sets know volumes; each of these is for one.
const THIS: VolumeId = VolumeId(0);

/// Tells what is free on the disk of the files, in bytes.
pub type Free = Box<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

/// What the writes to one mount may take.
pub struct Budget {
    free: Free,
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Budget {
    /// With `limit_bytes` of data at the most.
    #[must_use]
    pub fn new(limit_bytes: u64, free: Free) -> Budget {
        Budget { free, limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    /// What is used, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn take(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes == 0 {
            return Ok(());
        }
        let free = (self.free)().map_err(|_| Refusal::Io)?;
        if free < RESERVE_BYTES.saturating_add(bytes) {
            return Err(Refusal::NoSpace);
        }
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit_bytes);
        let taken = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|_| Refusal::NoSpace)
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What was written to one volume of a mount.
pub struct Changes {
    file: Arc<dyn File>,
    size: u64,
    budget: Arc<Budget>,
    maps: Mutex<Maps>,
}

/// A block in neither set is the point's.
#[derive(Default)]
struct Maps {
    /// Blocks that are not the point's any more.
    changed: Extents,
    /// Those of them that hold data; the others read as zeros.
    held: Extents,
}

/// Where a part of a volume comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Point,
    File,
    Zero,
}

/// Reads the point beneath.
pub type Below<'a> = &'a dyn Fn(Extent) -> Result<Vec<Piece>, Refusal>;

impl Changes {
    /// In `file`, which is empty, for a volume of `size` bytes.
    ///
    /// # Errors
    /// Of the file.
    pub fn new(file: Arc<dyn File>, budget: &Arc<Budget>, size: u64) -> std::io::Result<Changes> {
        file.set_len(size)?;
        Ok(Changes { file, size, budget: budget.clone(), maps: Mutex::default() })
    }

    /// What is used of the budget, in bytes.
    ///
    /// # Panics
    /// If another thread panicked in here.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().held.bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().expect("no holder of the lock panics")
    }

    /// The bytes of an extent within the volume.
    ///
    /// # Errors
    /// Of the file, and of the point.
    ///
    /// # Panics
    /// If another thread panicked in here.
    pub fn read(&self, extent: Extent, below: Below<'_>) -> Result<Vec<Piece>, Refusal> {
        let parts = self.lock().parts(extent);
        let mut pieces = Vec::with_capacity(parts.len());
        for (part, from) in parts {
            match from {
                From::Point => pieces.extend(below(part)?),
                From::Zero => pieces.push(Piece::Hole(part.len)),
                From::File => {
                    let mut bytes = vec![0; part.len as usize];
                    self.file.read_at(&mut bytes, part.offset).map_err(|error| refusal(&error))?;
                    pieces.push(Piece::Bytes(bytes.into()));
                }
            }
        }
        Ok(pieces)
    }

    /// Which parts of an extent are holes; `below` tells of the point's.
    ///
    /// # Errors
    /// Of the point.
    ///
    /// # Panics
    /// If another thread panicked in here.
    pub fn status(
        &self,
        extent: Extent,
        below: impl Fn(Extent) -> Result<Vec<Stretch>, Refusal>,
    ) -> Result<Vec<Stretch>, Refusal> {
        let parts = self.lock().parts(extent);
        let mut stretches = Vec::new();
        for (part, from) in parts {
            match from {
                From::Point => {
                    let told = below(part)?;
                    let covered: u64 = told.iter().map(|stretch| stretch.len).sum();
                    stretches.extend(told);
                    if covered < part.len {
                        // The point did not look at all of it: the answer ends here.
                        break;
                    }
                }
                From::Zero => stretches.push(Stretch { len: part.len, hole: true }),
                From::File => stretches.push(Stretch { len: part.len, hole: false }),
            }
            if stretches.len() >= MAX_STRETCHES {
                break;
            }
        }
        Ok(stretches)
    }

    /// Writes within the volume.
    ///
    /// # Errors
    /// Of the file, and of the point; [`Refusal::NoSpace`] beyond the budget.
    ///
    /// # Panics
    /// If another thread panicked in here.
    pub fn write(&self, offset: u64, data: &[u8], below: Below<'_>) -> Result<(), Refusal> {
        self.write_in(&mut self.lock(), offset, data, below)
    }

    fn write_in(&self, maps: &mut Maps, offset: u64, data: &[u8], below: Below<'_>) -> Result<(), Refusal> {
        if data.is_empty() {
            return Ok(());
        }
        let extent = Extent::new(offset, data.len() as u64);
        let blocks = self.around(extent);
        let new = blocks.len.next_multiple_of(BLOCK_BYTES) - overlap(&maps.held, blocks);
        self.budget.take(new)?;
        let written = || {
            let head = self.beside(maps, Extent::new(blocks.offset, offset - blocks.offset), below)?;
            let tail = self.beside(maps, Extent::new(extent.end(), blocks.end() - extent.end()), below)?;
            let slices = [IoSlice::new(&head), IoSlice::new(data), IoSlice::new(&tail)];
            self.file.write_at(&slices, offset - head.len() as u64).map_err(|error| refusal(&error))
        };
        if let Err(refused) = written() {
            // Blocks that were the point's are so still; as on any disk, what a failed write leaves is not known.
            self.budget.give_back(new);
            return Err(refused);
        }
        maps.held.insert(THIS, blocks);
        maps.changed.insert(THIS, blocks);
        Ok(())
    }

    /// What has to be written beside new bytes to make their block whole: nothing if the block is in the file.
    fn beside(&self, maps: &Maps, rest: Extent, below: Below<'_>) -> Result<Vec<u8>, Refusal> {
        if rest.len == 0 || maps.parts(rest).iter().all(|(_, from)| *from != From::Point) {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::with_capacity(rest.len as usize);
        for piece in below(rest)? {
            match piece {
                Piece::Bytes(part) => bytes.extend_from_slice(&part),
                Piece::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        Ok(bytes)
    }

    /// Makes an extent within the volume read as zeros; `no_hole` keeps its space for later writes.
    ///
    /// # Errors
    /// As [`Changes::write`].
    ///
    /// # Panics
    /// If another thread panicked in here.
    pub fn zero(&self, extent: Extent, no_hole: bool, below: Below<'_>) -> Result<(), Refusal> {
        if extent.len == 0 {
            return Ok(());
        }
        let mut maps = self.lock();
        let whole = self.within(extent);
        let zeros = [0; BLOCK_BYTES as usize];
        let mut at = extent.offset;
        while at < extent.end() {
            if whole.len > 0 && at == whole.offset {
                at = whole.end();
                continue;
            }
            // An edge: a part of one block.
            let upto = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(extent.end());
            self.write_in(&mut maps, at, &zeros[..(upto - at) as usize], below)?;
            at = upto;
        }
        if whole.len == 0 {
            return Ok(());
        }
        let held = overlap(&maps.held, whole);
        let new = if no_hole { whole.len.next_multiple_of(BLOCK_BYTES) - held } else { 0 };
        self.budget.take(new)?;
        for run in runs(&maps.held, whole) {
            if let Err(error) = self.file.zero(run.offset, run.len) {
                self.budget.give_back(new);
                return Err(refusal(&error));
            }
        }
        maps.changed.insert(THIS, whole);
        if no_hole {
            maps.held.insert(THIS, whole);
        } else {
            maps.held.remove(THIS, whole, self.size);
            self.budget.give_back(held);
        }
        Ok(())
    }

    /// The blocks that an extent touches, as far as the volume goes.
    fn around(&self, extent: Extent) -> Extent {
        let start = extent.offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = extent.end().next_multiple_of(BLOCK_BYTES).min(self.size);
        Extent::new(start, end - start)
    }

    /// The blocks that an extent covers whole; the last of a volume is whole however short it is.
    fn within(&self, extent: Extent) -> Extent {
        let start = extent.offset.next_multiple_of(BLOCK_BYTES);
        let end =
            if extent.end() == self.size { self.size } else { extent.end() / BLOCK_BYTES * BLOCK_BYTES };
        Extent::new(start.min(end), end.saturating_sub(start))
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        // The mount is gone as well; but a figure that is wrong would mislead whoever looks at it meanwhile.
        self.budget.give_back(self.lock().held.bytes());
    }
}

impl Maps {
    /// An extent in parts, in order.
    fn parts(&self, extent: Extent) -> Vec<(Extent, From)> {
        let mut parts = Vec::new();
        let mut at = extent.offset;
        let mut push = |upto: u64, from, at: &mut u64| {
            if upto > *at {
                parts.push((Extent::new(*at, upto - *at), from));
                *at = upto;
            }
        };
        for changed in runs(&self.changed, extent) {
            push(changed.offset, From::Point, &mut at);
            for held in runs(&self.held, changed) {
                push(held.offset, From::Zero, &mut at);
                push(held.end(), From::File, &mut at);
            }
            push(changed.end(), From::Zero, &mut at);
        }
        push(extent.end(), From::Point, &mut at);
        parts
    }
}

/// The parts of an extent that lie in a set.
fn runs(set: &Extents, extent: Extent) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut at = extent.offset;
    while at < extent.end() {
        let Some((_, run)) =
            set.next((THIS, at / BLOCK_BYTES * BLOCK_BYTES), extent.end() - at + BLOCK_BYTES)
        else {
            break;
        };
        let Some(part) = run.intersect(extent) else { break };
        at = run.end();
        found.push(part);
    }
    found
}

/// The bytes of the blocks of a set that lie in `blocks`, which begins at a block and ends at one or with the volume.
fn overlap(set: &Extents, blocks: Extent) -> u64 {
    runs(set, blocks).iter().map(|run| run.len.next_multiple_of(BLOCK_BYTES)).sum()
}

fn refusal(error: &std::io::Error) -> Refusal {
    if is_no_space(error) {
        return Refusal::NoSpace;
    }
    tracing::warn!(%error, "a scratch file of a mount");
    Refusal::Io
}

const _: () = assert!((MAX_REQUEST_BYTES as u64).is_multiple_of(BLOCK_BYTES));
