//! Marks that outlive the window: power cuts at every step of keeping and thinning them, files that rot, and disks that
//! take no more. That they show what was written while everything else happens is what `random_points` looks at.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, primary_config, replica_config, replicate, ship};
use engine::catalog::MarkKind;
use engine::event::VolumeSpec;
use engine::guest::Op;
use engine::io::{File, OpenMode, Storage};
use engine::kept::KeptMark;
use engine::node::config::{Config, Retention};
use engine::node::keep::Keep;
use engine::node::points::Error as NoPoint;
use engine::types::{Extent, Lsn, VolumeId};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// All writes go here: the tests look at nothing else.
const USED_BYTES: usize = 128 << 10;
const WINDOW_BYTES: u64 = 2 * (64 << 10);
const KEEP: Keep = Keep { minutes: 0, hours: 0, days: 0, named: 3, bytes: u64::MAX };

fn config(keep: Keep) -> Config {
    let mut config = replica_config("g");
    config.retention = Retention { bytes: WINDOW_BYTES, age_ns: u64::MAX, keep };
    config
}

/// The used bytes of both volumes.
type Bytes = [Vec<u8>; 2];

/// A primary whose guests write and whose operator marks, and what was there at each mark.
struct Source {
    primary: Driven,
    random: Random,
    now: Bytes,
    marks: BTreeMap<Lsn, (String, Bytes)>,
}

impl Source {
    fn new(seed: u64) -> Source {
        let primary =
            Driven::open(CrashDisk::new().storage(), primary_config("g")).expect("nothing is there");
        let now = [vec![0; USED_BYTES], vec![0; USED_BYTES]];
        Source { primary, random: Random(seed * 2 + 1), now, marks: BTreeMap::new() }
    }

    /// Some writes and trims, and a mark.
    fn round(&mut self) {
        for _ in 0..20 {
            let volume = self.random.below(2) as usize;
            let len = 512 * (1 + self.random.below(16));
            let offset = 512 * self.random.below((USED_BYTES as u64 - len) / 512 + 1);
            let place = offset as usize..(offset + len) as usize;
            if self.random.below(5) == 0 {
                let extent = Extent::new(offset, len);
                self.primary.request([A, B][volume], Op::Trim(extent), false).expect("done");
                self.now[volume][place].fill(0);
            } else {
                let byte = 1 + self.random.below(255) as u8;
                self.primary.write([A, B][volume], offset, &vec![byte; len as usize]).expect("done");
                self.now[volume][place].fill(byte);
            }
        }
        let name = format!("mark-{}", self.marks.len());
        let now = self.primary.now();
        let at = self.primary.node.mark(now, &name, MarkKind::Bookmark).expect("marked");
        self.marks.insert(at, (name, self.now.clone()));
    }

    fn rounds(&mut self, count: u32) {
        (0..count).for_each(|_| self.round());
    }

    fn check(&self, replica: &mut Driven, mark: &KeptMark) {
        let (name, expected) = &self.marks[&mark.at];
        assert_eq!(*name, mark.name);
        assert_eq!(read(replica, mark.at), Ok(expected.clone()), "{name} at LSN {}", mark.at);
    }

    /// Every kept mark, and every mark in the window, is what it was.
    fn check_all(&self, replica: &mut Driven) -> Vec<Lsn> {
        let kept: Vec<KeptMark> = replica.node.kept_marks().into_iter().map(|(mark, _)| mark).collect();
        kept.iter().for_each(|mark| self.check(replica, mark));
        let window = replica.node.window().expect("it has points");
        for (&at, (name, expected)) in self.marks.range(window.horizon..=window.latest) {
            assert_eq!(read(replica, at), Ok(expected.clone()), "{name} in the window");
        }
        kept.iter().map(|mark| mark.at).collect()
    }
}

fn read(replica: &mut Driven, at: Lsn) -> std::result::Result<Bytes, ErrorKind> {
    replica.node.pin(at).expect("it is a point");
    let plan = |id: VolumeId| replica.node.plan_point(id, at, Extent::new(0, USED_BYTES as u64));
    let read = |id| plan(id).expect("it is there").read_all().map(|bytes| bytes.to_vec());
    let both = read(A).and_then(|a| Ok([a, read(B)?])).map_err(|error| error.kind());
    replica.node.unpin(at);
    both
}

/// A replica with some rounds behind it, all folded as far as its window wants.
fn settled(seed: u64, rounds: u32, keep: Keep) -> (Source, CrashDisk, Driven) {
    let (mut source, disk) = (Source::new(seed), CrashDisk::new());
    let mut replica = Driven::open(disk.storage(), config(keep)).expect("nothing is there");
    for _ in 0..rounds {
        source.round();
        replicate(&mut source.primary, &mut replica);
        replica.work();
    }
    (source, disk, replica)
}

fn files(disk: &CrashDisk) -> Vec<String> {
    disk.paths().into_iter().filter(|path| path.starts_with("g/kept/")).collect()
}

#[test]
fn the_newest_named_marks_stay_behind_the_window() {
    let (source, disk, mut replica) = settled(1, 24, KEEP);
    let kept = source.check_all(&mut replica);
    let horizon = replica.node.window().expect("it has points").horizon;
    let behind: Vec<Lsn> = source.marks.range(..horizon).map(|(&at, _)| at).collect();
    assert!(behind.len() > 8 && kept == behind[behind.len() - 3..], "{kept:?} of {behind:?}");
    assert_eq!(files(&disk).len(), replica.node.state().kept.len());
    // Any other is gone, and a read beyond a volume's end is none.
    assert!(matches!(replica.node.pin(behind[0]), Err(NoPoint::Outside { .. })));
    replica.node.pin(kept[0]).expect("it is kept");
    let specs: Vec<VolumeSpec> = replica.node.specs_at(kept[0]);
    assert_eq!(specs.len(), 2);
    assert!(replica.node.plan_point(A, kept[0], Extent::new(specs[0].size, 512)).is_none());
    let rest = Extent::new(USED_BYTES as u64 - 512, 4096);
    let plan = replica.node.plan_point(A, kept[0], rest).expect("it is there");
    assert!(plan.read_all().expect("read")[512..].iter().all(|&byte| byte == 0));
    assert_eq!(plan.status().expect("told").iter().map(|stretch| stretch.len).sum::<u64>(), rest.len);
    replica.node.unpin(kept[0]);
}

/// W25, W26: nothing is overwritten before it is saved, wherever the power fails.
#[test]
fn a_power_cut_at_any_step_loses_no_kept_mark() {
    let (mut source, disk, replica) = settled(2, 10, KEEP);
    drop(replica);
    // What there is to fold and to thin, all at once.
    let before = disk.killed();
    let mut replica = Driven::open(before.storage(), config(KEEP)).expect("opened");
    source.rounds(10);
    let (mut folds, mut random) = (0, Random(77));
    replicate(&mut source.primary, &mut replica);
    drop(replica);
    let mut seen = 0;
    for calls in (0..).step_by(3) {
        let disk = before.killed();
        let mut replica = Driven::open(disk.storage(), config(KEEP)).expect("opened");
        let had: Vec<Lsn> = source.check_all(&mut replica);
        disk.cut_after(calls);
        replica.work();
        let through = !disk.is_cut();
        for outcome in disk.outcomes(3, &mut random) {
            let mut replica = Driven::open(outcome.storage(), config(KEEP)).expect("a power cut is got over");
            let kept = source.check_all(&mut replica);
            // Those that are as new as any are never lost.
            let horizon = replica.node.window().expect("it has points").horizon;
            let newest = source.marks.range(..horizon).next_back().map(|(&at, _)| at);
            assert!(newest.is_none_or(|newest| kept.contains(&newest)), "{newest:?} is lost: {kept:?}");
            replica.work();
            let after = source.check_all(&mut replica);
            assert_eq!(after.len(), 3, "{had:?}, {kept:?}, {after:?}");
            assert_eq!(files(&outcome).len(), replica.node.state().kept.len());
            seen += 1;
        }
        folds += 1;
        if through {
            break;
        }
    }
    assert!(folds > 30 && seen > 90, "{folds} cuts, {seen} outcomes");
}

/// What rots is told and not handed out, and costs what depends on it and nothing else.
#[test]
fn rot_costs_only_the_marks_that_need_what_rotted() {
    let (source, disk, replica) = settled(3, 24, KEEP);
    drop(replica);
    let paths = files(&disk);
    assert_eq!(paths.len(), 3);
    for (number, path) in paths.iter().enumerate() {
        let len = disk.bytes(path).len();
        for at in [9, 20, 40, len / 3, len / 2, len - 1] {
            let disk = disk.killed();
            disk.rot(path, at, 0x10);
            let mut replica = Driven::open(disk.storage(), config(KEEP)).expect("opened all the same");
            let kept: Vec<KeptMark> = replica.node.kept_marks().into_iter().map(|(mark, _)| mark).collect();
            // Either the file cannot be trusted any more, or only some of what it holds.
            let whole = kept.len() == 3;
            assert!(whole || kept.len() == 2 - number, "{} are left of 3, {number} rotted", kept.len());
            for (index, mark) in kept.iter().enumerate() {
                let expected = &source.marks[&mark.at].1;
                let read = read(&mut replica, mark.at);
                let may_fail = whole && index <= number;
                assert!(
                    read.as_ref() == Ok(expected) || may_fail && read == Err(ErrorKind::InvalidData),
                    "{} with rot at byte {at} of {path}",
                    mark.name
                );
            }
            replica.work();
            assert!(replica.node.failed().is_none());
        }
    }
    let gone = disk.killed();
    gone.erase(&paths[1]);
    let mut replica = Driven::open(gone.storage(), config(KEEP)).expect("opened all the same");
    assert_eq!(source.check_all(&mut replica).len(), 1);
}

/// A disk whose files of kept marks take nothing any more, from some call on.
struct Full {
    below: Arc<dyn Storage>,
    left: Arc<AtomicU32>,
    kind: ErrorKind,
}

struct FullFile {
    below: Arc<dyn File>,
    left: Arc<AtomicU32>,
    kind: ErrorKind,
}

fn take(left: &AtomicU32, kind: ErrorKind) -> Result<()> {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    taken.map(drop).map_err(|_| Error::from(kind))
}

impl Storage for Full {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        if !path.contains("/kept/") {
            return self.below.open(path, mode);
        }
        take(&self.left, self.kind)?;
        let (below, left) = (self.below.open(path, mode)?, self.left.clone());
        Ok(Arc::new(FullFile { below, left, kind: self.kind }))
    }
    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.below.list(dir)
    }
    fn create_dir(&self, dir: &str) -> Result<()> {
        self.below.create_dir(dir)
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.below.remove(path)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.below.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.below.sync_dir(dir)
    }
    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        self.below.lock(path)
    }
}

impl File for FullFile {
    fn len(&self) -> Result<u64> {
        self.below.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_at(buf, offset)
    }
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        take(&self.left, self.kind)?;
        self.below.write_at(slices, offset)
    }
    fn sync(&self) -> Result<()> {
        take(&self.left, self.kind)?;
        self.below.sync()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.below.set_len(len)
    }
    fn allocate(&self, len: u64) -> Result<()> {
        self.below.allocate(len)
    }
    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.below.zero(offset, len)
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.below.next_data(offset)
    }
}

/// R20: what keeps marks is no reason for replication to stop.
#[test]
fn a_disk_that_takes_no_kept_mark_is_not_in_the_way_of_replication() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let mut given_up = 0;
        for calls in (0..200).step_by(13) {
            let (mut source, disk) = (Source::new(4), CrashDisk::new());
            let left = Arc::new(AtomicU32::new(calls));
            let storage = Arc::new(Full { below: disk.storage(), left: left.clone(), kind });
            let mut replica = Driven::open(storage, config(KEEP)).expect("nothing is there");
            replicate(&mut source.primary, &mut replica);
            let mut next = replica.node.durable().lsn.next();
            let mut most = 0;
            for _ in 0..14 {
                source.round();
                next = ship(&mut source.primary, &mut replica, next);
                replica.work();
                assert!(replica.node.failed().is_none(), "{:?}", replica.node.failed());
                let kept = source.check_all(&mut replica);
                given_up += u32::from(kept.len() < most);
                most = kept.len();
            }
            assert_eq!(replica.node.window().expect("points").latest, source.primary.node.durable().lsn);
            assert_eq!(files(&disk).len(), replica.node.state().kept.len());
            // Once there is room again, marks are kept again.
            left.store(u32::MAX, Ordering::Relaxed);
            for _ in 0..8 {
                source.round();
                next = ship(&mut source.primary, &mut replica, next);
                replica.work();
            }
            assert_eq!(source.check_all(&mut replica).len(), 3);
        }
        assert!(given_up > 0);
    }
}

#[test]
fn a_limit_of_bytes_takes_the_oldest_and_no_policy_takes_all_but_what_is_in_use() {
    let few = Keep { bytes: 100 << 10, ..KEEP };
    let (source, disk, mut replica) = settled(5, 24, few);
    let kept = source.check_all(&mut replica);
    let bytes: u64 = replica.node.kept_marks().iter().map(|(_, bytes)| bytes).sum();
    assert!(bytes <= few.bytes && !kept.is_empty() && kept.len() < 3, "{bytes} bytes, {kept:?}");
    drop(replica);
    let mut replica = Driven::open(disk.killed().storage(), config(Keep::default())).expect("opened");
    replica.node.pin(kept[0]).expect("it is kept");
    replica.work();
    assert_eq!(source.check_all(&mut replica), [kept[0]]);
    replica.node.unpin(kept[0]);
    replica.work();
    assert!(replica.node.kept_marks().is_empty() && replica.node.state().kept.is_empty());
}

/// A failover goes to a point in the window; kept marks stay beside it, and go once the disks are plain again.
#[test]
fn kept_marks_outlive_a_failover() {
    let (mut source, disk, mut replica) = settled(6, 20, KEEP);
    let kept = source.check_all(&mut replica);
    let (now, epoch) = (replica.now(), replica.node.next_epoch());
    assert!(replica.node.promote(now, kept[0], epoch).is_err(), "its log is gone");
    let latest = replica.node.window().expect("points").latest;
    let now = replica.now();
    replica.node.promote(now, latest, epoch).expect("promoted");
    source.marks.retain(|&at, _| at <= latest);
    assert_eq!(source.check_all(&mut replica), kept);
    for number in 0..60_u8 {
        replica.write(A, u64::from(number) * 2048, &[number; 4096]).expect("written");
        replica.work();
    }
    assert!(!source.check_all(&mut replica).is_empty());
    drop(replica);
    let mut again = Driven::open(disk.killed().storage(), config(KEEP)).expect("opened");
    assert!(!source.check_all(&mut again).is_empty());
}
