//! What guests write to a recovery point: kept beside it, and gone with the mount.
//!
//! Invariants:
//! - nothing is written to the log, the base images or the points: what a guest changes goes to a file of its own, at
//!   the volume's own offsets, and a block of 4 KiB that no guest has changed is read from the point;
//! - the file has no name, so it goes with the process, however that ends: a daemon that is killed leaves nothing;
//! - the blocks of all volumes of a mount that hold data stay within its [`Budget`], and the disk keeps
//!   [`RESERVE_BYTES`] free: a guest that writes more is told that there is no space, and replication has its own;
//! - memory is bounded by the volumes: two sets of [`engine::extents`], at the worst 88 MiB for each tebibyte.
//!
//! It promises no durability. The mount ends with the daemon, and what was written to it is gone then by intent, so
//! a flush is answered at once: what it vouches for lasts as long as the mount does.

use engine::extents::{BLOCK_BYTES, Extents};
use engine::guest::{MAX_REQUEST_BYTES, Piece, Refusal, Stretch};
use engine::io::{File, OpenMode, Storage};
use engine::os::disk::Disk;
use engine::types::{Extent, VolumeId};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the scratch files leave free of their disk: it may be the one that the log lies on.
const RESERVE_BYTES: u64 = 1 << 30;
/// The most stretches in the answer to one status request.
const MAX_STRETCHES: usize = 1024;
/// The sets know volumes; each of these is for one.
const THIS: VolumeId = VolumeId(0);

/// What the writes to one mount may take.
#[derive(Debug)]
pub(super) struct Budget {
    dir: PathBuf,
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Budget {
    /// Files in `dir`, with `limit_bytes` of data at the most.
    pub(super) fn new(dir: &Path, limit_bytes: u64) -> Budget {
        Budget { dir: dir.to_owned(), limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    /// What is used, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn take(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes == 0 {
            return Ok(());
        }
        let free = rustix::fs::statvfs(&self.dir).map_err(|_| Refusal::Io)?;
        if free.f_bavail.saturating_mul(free.f_frsize) < RESERVE_BYTES.saturating_add(bytes) {
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

/// Makes `dir` for scratch files, and removes what a daemon left there that died between making a file and taking
/// its name away.
///
/// # Errors
/// Of the system.
pub(super) fn prepare(dir: &Path) -> std::io::Result<()> {
    let disk = Disk::new(dir)?;
    disk.list("")?.iter().try_for_each(|name| disk.remove(name))
}

/// What was written to one volume of a mount.
pub(super) struct Changes {
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
pub(super) type Below<'a> = &'a dyn Fn(Extent) -> Result<Vec<Piece>, Refusal>;

impl Changes {
    /// For the volume number `volume` of `size` bytes. `name` is unlike that of any other file in the making.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn new(budget: &Arc<Budget>, name: &str, size: u64) -> std::io::Result<Changes> {
        let disk = Disk::new(&budget.dir)?;
        let file = disk.open(name, OpenMode::Create)?;
        // If we die before this, the next start removes it.
        disk.remove(name)?;
        file.set_len(size)?;
        Ok(Changes { file, size, budget: budget.clone(), maps: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().expect("no holder of the lock panics")
    }

    /// The bytes of an extent within the volume.
    pub(super) fn read(&self, extent: Extent, below: Below<'_>) -> Result<Vec<Piece>, Refusal> {
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
    pub(super) fn status(
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
    pub(super) fn write(&self, offset: u64, data: &[u8], below: Below<'_>) -> Result<(), Refusal> {
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
    pub(super) fn zero(&self, extent: Extent, no_hole: bool, below: Below<'_>) -> Result<(), Refusal> {
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
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Refusal::NoSpace,
        _ => {
            tracing::warn!(%error, "a scratch file of a mount");
            Refusal::Io
        }
    }
}

const _: () = assert!((MAX_REQUEST_BYTES as u64).is_multiple_of(BLOCK_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// Not a multiple of a block, as a volume need not be.
    const SIZE: u64 = 3 * engine::extents::CHUNK_BYTES + 3 * BLOCK_BYTES + 1536;

    fn below(image: &[u8]) -> impl Fn(Extent) -> Result<Vec<Piece>, Refusal> + '_ {
        |extent: Extent| {
            let bytes = &image[extent.offset as usize..extent.end() as usize];
            // As a point answers: in pieces, some of them holes.
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            Ok([first, rest]
                .into_iter()
                .filter(|part| !part.is_empty())
                .map(|part| match part.iter().all(|&byte| byte == 0) {
                    true => Piece::Hole(part.len() as u64),
                    false => Piece::Bytes(part.to_vec().into()),
                })
                .collect())
        }
    }

    fn joined(pieces: Vec<Piece>) -> Vec<u8> {
        pieces.into_iter().fold(Vec::new(), |mut all, piece| {
            match piece {
                Piece::Bytes(bytes) => all.extend_from_slice(&bytes),
                Piece::Hole(len) => all.resize(all.len() + len as usize, 0),
            }
            all
        })
    }

    /// Writes, trims and zeros at any alignment, against an array; and the accounts against the array's blocks.
    #[test]
    fn equals_an_array() {
        let scratch = Scratch::new("changes").unwrap();
        let image: Vec<u8> =
            (0..SIZE).map(|at| if at % 30_000 < 9_000 { 0 } else { (at % 251) as u8 }).collect();
        let below = below(&image);
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |limit: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % limit
        };
        for round in 0..12 {
            let budget = Arc::new(Budget::new(scratch.path(), u64::MAX));
            let changes = Changes::new(&budget, &format!("{round}"), SIZE).unwrap();
            let mut model = image.clone();
            for step in 0..60_u8 {
                let align = [1, 512, BLOCK_BYTES][next(3) as usize];
                let offset = next(SIZE) / align * align;
                let longest = if next(8) == 0 { SIZE } else { 5 * BLOCK_BYTES };
                let len = (1 + next(longest)).next_multiple_of(align).min(SIZE - offset);
                let extent = Extent::new(offset, len);
                let range = offset as usize..extent.end() as usize;
                match next(4) {
                    0 => {
                        changes.zero(extent, false, &below).unwrap();
                        model[range].fill(0);
                    }
                    1 => {
                        changes.zero(extent, true, &below).unwrap();
                        model[range].fill(0);
                    }
                    _ => {
                        model[range.clone()].fill(step | 1);
                        changes.write(offset, &model[range], &below).unwrap();
                    }
                }
                let (offset, len) = (next(SIZE), 1 + next(9 * BLOCK_BYTES));
                let extent = Extent::new(offset, len.min(SIZE - offset));
                let seen = joined(changes.read(extent, &below).unwrap());
                assert!(seen == model[offset as usize..extent.end() as usize], "round {round}, step {step}");
                let told = changes.status(extent, |part| Ok(vec![Stretch { len: part.len, hole: false }]));
                let mut at = offset as usize;
                for stretch in told.unwrap() {
                    let end = at + stretch.len as usize;
                    assert!(!stretch.hole || model[at..end].iter().all(|&byte| byte == 0));
                    at = end;
                }
                assert_eq!(at as u64, extent.end());
                assert_eq!(budget.used_bytes(), changes.lock().held.bytes());
            }
            assert!(joined(changes.read(Extent::new(0, SIZE), &below).unwrap()) == model, "round {round}");
            drop(changes);
            assert_eq!(budget.used_bytes(), 0);
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "no file has a name");
    }

    /// Parts of the same blocks, from several connections at once: none loses what another has written.
    #[test]
    fn neighbours_in_a_block_do_not_lose_each_others_writes() {
        let scratch = Scratch::new("changes").unwrap();
        let image = vec![9; SIZE as usize];
        let budget = Arc::new(Budget::new(scratch.path(), u64::MAX));
        let changes = Changes::new(&budget, "1", SIZE).unwrap();
        let sectors = 2_048;
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let (changes, image) = (&changes, &image);
                scope.spawn(move || {
                    for sector in (u64::from(writer)..sectors).step_by(4).filter(|sector| sector % 5 != 0) {
                        changes.write(sector * 512, &[writer; 512], &below(image)).unwrap();
                    }
                });
            }
        });
        let seen = joined(changes.read(Extent::new(0, sectors * 512), &below(&image)).unwrap());
        for (sector, bytes) in seen.chunks(512).enumerate() {
            let expected = if sector % 5 == 0 { 9 } else { (sector % 4) as u8 };
            assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector}");
        }
    }

    #[test]
    fn a_full_scratch_refuses_and_a_trim_makes_room() {
        let scratch = Scratch::new("changes").unwrap();
        let image = vec![7; SIZE as usize];
        let below = below(&image);
        let budget = Arc::new(Budget::new(scratch.path(), 2 * BLOCK_BYTES));
        let one = Changes::new(&budget, "1", SIZE).unwrap();
        let other = Changes::new(&budget, "2", SIZE).unwrap();
        one.write(100, &[1; 10], &below).unwrap();
        other.write(BLOCK_BYTES - 1, &[1], &below).unwrap();
        assert_eq!(one.write(BLOCK_BYTES, &[2], &below), Err(Refusal::NoSpace), "of all volumes together");
        let past = Extent::new(BLOCK_BYTES, BLOCK_BYTES);
        assert_eq!(one.zero(past, true, &below), Err(Refusal::NoSpace), "space is asked for");
        one.zero(past, false, &below).unwrap();
        one.write(0, &[3; BLOCK_BYTES as usize], &below).unwrap();
        other.zero(Extent::new(0, BLOCK_BYTES), false, &below).unwrap();
        one.write(BLOCK_BYTES + 5, &[2], &below).unwrap();
        let block = joined(one.read(past, &below).unwrap());
        assert!(block.iter().enumerate().all(|(at, &byte)| byte == if at == 5 { 2 } else { 0 }));
    }

    #[test]
    fn what_a_killed_daemon_left_is_removed() {
        let scratch = Scratch::new("changes").unwrap();
        std::fs::write(scratch.path().join("3-1"), "left behind").unwrap();
        prepare(scratch.path()).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
