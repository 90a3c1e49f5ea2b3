//! The edges of a log: nothing in it, nothing left in a segment, nothing in a request, odd sizes, large offsets, and
//! clocks that go where they like.

mod common;

use common::crash::CrashDisk;
use common::logs::{self, Facts, Writer};
use common::story::{self, VOLUME_BYTES};
use common::{A, B, Driven, TempDir, replicate};
use engine::event::Kind;
use engine::guest::{Op, Refusal, Reply};
use engine::io::{File, OpenMode, Storage};
use engine::log::format::{HEADER_BYTES, SEGMENT_HEADER_BYTES, aligned};
use engine::log::{Draft, Error, Limits, Log, Sync};
use engine::node::config::{Config, Retention};
use engine::peer::TakesBack;
use engine::types::{Epoch, Extent, Incarnation, Lsn, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice, Result};
use std::sync::{Arc, Mutex};

/// W08: a payload of no bytes, a request for no bytes: answered, in order, and not logged.
#[test]
fn w08_empty_requests_are_answered_and_not_logged() {
    let mut node = Driven::open(CrashDisk::new().storage(), story::primary()).expect("opened");
    node.flush().expect("flushed");
    let tip = node.node.log().tip();
    for offset in [0, 1, VOLUME_BYTES] {
        let none = Extent::new(offset, 0);
        for fua in [false, true] {
            let write = Op::Write { offset, data: bytes::Bytes::new() };
            for op in [write, Op::Trim(none), Op::Zero { extent: none, no_hole: true }, Op::Cache(none)] {
                assert_eq!(node.request(A, op, fua), Ok(Reply::Done));
            }
        }
        assert_eq!(node.request(A, Op::Read(none), false), Ok(Reply::Data(Vec::new())));
        assert_eq!(node.request(A, Op::Status(none), false), Ok(Reply::Status(Vec::new())));
    }
    let beyond = Op::Write { offset: VOLUME_BYTES + 1, data: bytes::Bytes::new() };
    assert_eq!(node.request(A, beyond, false), Err(Refusal::NoSpace));
    assert_eq!(node.node.log().tip(), tip);
    // And one behind a write waits for nothing but what was answered before.
    node.write(A, 0, &[1; 512]).expect("written");
    assert_eq!(node.request(A, Op::Write { offset: 0, data: bytes::Bytes::new() }, true), Ok(Reply::Done));
}

/// W32: requests need no alignment at all: what was written is read, over a restart, and at the replica.
#[test]
fn w32_requests_of_any_alignment() {
    let disk = CrashDisk::new();
    let mut node = Driven::open(disk.storage(), story::primary()).expect("opened");
    let mut expected = vec![0; VOLUME_BYTES as usize];
    for number in 0..200_u64 {
        let (offset, len) = (number * 131 % 16_000, 1 + number * 7 % 300);
        let byte = number as u8 | 1;
        node.write(B, offset, &vec![byte; len as usize]).expect("written");
        expected[offset as usize..(offset + len) as usize].fill(byte);
        if number % 50 == 20 {
            node.work();
        }
    }
    assert!(node.read(B, 0, VOLUME_BYTES).expect("read") == expected);
    assert_eq!(node.read(B, 777, 13).expect("read"), expected[777..790]);
    node.flush().expect("flushed");
    drop(node);
    let mut node = Driven::open(disk.storage(), story::primary()).expect("opened");
    assert!(node.read(B, 0, VOLUME_BYTES).expect("read") == expected);
    let keeper = Config { retention: Retention::default(), ..story::replica() };
    let mut replica = Driven::open(CrashDisk::new().storage(), keeper).expect("opened");
    node.work();
    replicate(&mut node, &mut replica);
    let latest = replica.node.durable().lsn;
    replica.node.pin(latest).expect("a point");
    let plan = replica.node.plan_point(B, latest, Extent::new(3, 16_001)).expect("the volume");
    assert!(plan.read_all().expect("read") == expected[3..16_004]);
}

/// W32: segments that are not whole pages, or hold nothing, and logs that hold no two of them, are refused.
#[test]
fn w32_limits_that_cannot_be_are_refused() {
    let good = story::primary().limits.log;
    for (segment_bytes, log_bytes) in [
        (0, 1 << 20),
        (4096, 1 << 20),
        (8191, 1 << 20),
        (8192 + 512, 1 << 20),
        (16 << 10, 31 << 10),
        (1 << 63, u64::MAX),
    ] {
        let mut config = story::primary();
        config.limits.log = Limits { segment_bytes, log_bytes, ..good };
        let dir = TempDir::new();
        let refused = Driven::open(dir.storage(), config).err().map(|error| error.to_string());
        assert!(refused.is_some(), "segments of {segment_bytes}, a log of {log_bytes}");
        assert!(!dir.0.join("g/state").exists(), "a refusal leaves nothing behind");
    }
    assert_eq!(Limits::default().fault(), None);
    assert_eq!(good.fault(), None);
}

/// W12: a request is one record, which lies in one segment: one that does not fit is refused whole, here and on a
/// replica with shorter segments.
#[test]
fn w12_a_record_longer_than_a_segment_is_refused_whole() {
    let mut config = story::primary();
    config.limits.log.segment_bytes = 8 << 10;
    let mut node = Driven::open(CrashDisk::new().storage(), config.clone()).expect("opened");
    let longest = (8 << 10) - SEGMENT_HEADER_BYTES - HEADER_BYTES;
    node.write(A, 0, &vec![7; longest]).expect("it fits exactly");
    let tip = node.node.log().tip();
    assert_eq!(node.write(A, 0, &vec![8; longest + 1]), Err(Refusal::Invalid));
    assert_eq!((node.node.log().tip(), node.node.failed().is_none()), (tip, true));
    assert_eq!(node.read(A, 0, 1), Ok(vec![7]));

    let mut primary = Driven::open(CrashDisk::new().storage(), story::primary()).expect("opened");
    primary.write(A, 0, &vec![8; longest + 1]).expect("written");
    primary.flush().expect("flushed");
    let mut config = story::replica();
    config.limits.log.segment_bytes = 8 << 10;
    let mut replica = Driven::open(CrashDisk::new().storage(), config).expect("opened");
    let hello = primary.node.hello().expect("a primary");
    let now = replica.now();
    let welcome = replica.node.accept(now, &hello, TakesBack::No).expect("it follows");
    let engine::log::ship::Stretch::Ready(batch) =
        primary.node.records_from(welcome.durable.lsn.next(), 1 << 20)
    else {
        panic!("records in memory")
    };
    assert!(replica.node.append(now, batch).is_err());
    assert!(replica.node.failed().is_none(), "a longer segment is all that it takes");
}

/// W36: a log without records, opened again and again, also with a spare file.
#[test]
fn w36_an_empty_log() {
    let disk = CrashDisk::new();
    for round in 0..4 {
        let facts = Facts { incarnation: Incarnation(round + 1), ..Facts::new(Writer::Own) };
        let (mut log, report, records) = logs::open(disk.storage(), facts).expect("an empty log");
        assert_eq!((records.len(), report.torn, log.tip().lsn), (0, None, Lsn::ZERO));
        assert!(log.begin_sync().is_none(), "there is nothing to sync");
        assert_eq!(log.tip_at(Lsn::ZERO).expect("readable").map(|(tip, ..)| tip), Some(log.tip()));
        assert!(log.tip_at(Lsn(1)).expect("readable").is_none());
        if round == 1 {
            let make = log.begin_make(1).expect("a spare is wanted");
            log.finish_make(engine::log::make_spare(make).expect("made"));
        }
        if round == 2 {
            // A segment was begun, but no record came to it.
            assert_eq!(log.spares(), 1);
        }
    }
}

/// W36: a segment filled to its last byte, and to any number of bytes before it, around the length of a header.
#[test]
fn w36_the_last_bytes_of_a_segment() {
    let room = logs::SEGMENT_BYTES as usize - SEGMENT_HEADER_BYTES;
    for left in (0..=3 * HEADER_BYTES).step_by(8) {
        let disk = CrashDisk::new();
        let (mut log, ..) = logs::open(disk.storage(), Facts::new(Writer::Own)).expect("a new log");
        logs::begin(&mut log);
        let used = log.segments()[0].end as usize - SEGMENT_HEADER_BYTES;
        let len = room - used - HEADER_BYTES - left;
        logs::write(&mut log, 0, len);
        assert_eq!(log.segments()[0].end, logs::SEGMENT_BYTES - left as u64);
        let full = log.tip();
        logs::sync(&mut log);
        let check = |last: Lsn, segments: usize| {
            let facts = Facts { incarnation: Incarnation(2), durable: full.lsn, ..Facts::new(Writer::Own) };
            let (log, report, records) = logs::open(disk.killed().storage(), facts).expect("sound");
            assert_eq!(
                (log.tip().lsn, report.torn, log.segments().len()),
                (last, None, segments),
                "{left} left"
            );
            assert_eq!(records.len() as u64, last.0);
            let (tip, _, end) = log.tip_at(full.lsn).expect("readable").expect("held");
            assert_eq!((tip, end), (full, logs::SEGMENT_BYTES - left as u64));
        };
        check(full.lsn, 1);
        // A record without payload goes into the rest if it fits there, else into the next file.
        logs::append(&mut log, Kind::Flush, Extent::default(), &[]);
        logs::sync(&mut log);
        check(full.lsn.next(), if left >= HEADER_BYTES { 1 } else { 2 });
        logs::write(&mut log, 0, 1000);
        logs::sync(&mut log);
        check(Lsn(full.lsn.0 + 2), 2);
        assert_eq!(aligned(1), 8);
    }
}

/// A disk in memory that keeps no page of zeros.
#[derive(Clone, Default)]
struct SparseDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<SparseFile>>>>,
}

#[derive(Default)]
struct SparseFile {
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    len: Mutex<u64>,
}

const PAGE: u64 = 4096;

impl Storage for SparseDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut files = self.files.lock().expect("no panic");
        if mode == OpenMode::Create {
            files.insert(path.to_owned(), Arc::default());
        }
        let file = files.get(path).ok_or(ErrorKind::NotFound)?.clone();
        Ok(Arc::new(SparseHandle(file)))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let files = self.files.lock().expect("no panic");
        Ok(files
            .keys()
            .filter_map(|path| path.strip_prefix(dir)?.strip_prefix('/'))
            .map(str::to_owned)
            .collect())
    }

    fn create_dir(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.files.lock().expect("no panic").remove(path);
        Ok(())
    }

    fn rename(&self, _: &str, _: &str) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn lock(&self, _: &str) -> Result<Box<dyn Send + std::marker::Sync>> {
        Ok(Box::new(()))
    }
}

struct SparseHandle(Arc<SparseFile>);

impl File for SparseHandle {
    fn len(&self) -> Result<u64> {
        Ok(*self.0.len.lock().expect("no panic"))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset + buf.len() as u64 > self.len()? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for (page, bytes) in self.0.pages.lock().expect("no panic").range(offset / PAGE..end.div_ceil(PAGE)) {
            let at = page * PAGE;
            let (from, to) = (at.max(offset), (at + PAGE).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let mut pages = self.0.pages.lock().expect("no panic");
        let mut at = offset;
        for slice in slices {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let (page, skip) = (at / PAGE, (at % PAGE) as usize);
                let len = rest.len().min(PAGE as usize - skip);
                let (part, more) = rest.split_at(len);
                if !engine::read::is_zero(part) || pages.contains_key(&page) {
                    pages.entry(page).or_insert_with(|| vec![0; PAGE as usize])[skip..skip + len]
                        .copy_from_slice(part);
                }
                at += len as u64;
                rest = more;
            }
        }
        let mut len = self.0.len.lock().expect("no panic");
        *len = (*len).max(at);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        *self.0.len.lock().expect("no panic") = len;
        Ok(())
    }

    fn allocate(&self, len: u64) -> Result<()> {
        let mut now = self.0.len.lock().expect("no panic");
        *now = (*now).max(len);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.write_at(&[IoSlice::new(&vec![0; len as usize])], offset)
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let pages = self.0.pages.lock().expect("no panic");
        let next = pages.range(offset / PAGE..).next();
        Ok(next.map(|(page, _)| ((page * PAGE).max(offset), (page + 1) * PAGE)))
    }
}

/// W36: records beyond 4 GiB of a segment, found and read again; and the longest record that there is.
#[test]
fn w36_offsets_beyond_4_gib() {
    const SEGMENT: u64 = (4 << 30) + (80 << 20);
    let limits = Limits { segment_bytes: SEGMENT, log_bytes: 4 * SEGMENT, recent_bytes: 0 };
    let disk: Arc<dyn Storage> = Arc::new(SparseDisk::default());
    let (mut log, ..) = logs::open_with(disk.clone(), Facts::new(Writer::Own), limits).expect("a new log");
    logs::begin(&mut log);
    let longest = vec![0; 32 << 20];
    let draft = |payload| Draft {
        kind: Kind::Write,
        flags: 0,
        volume: VolumeId(1),
        extent: Extent::new(0, 32 << 20),
        payload,
    };
    for number in 0..128 {
        let (appended, error) = log.append(Timestamp(number), Epoch(1), &[draft(longest.as_slice())]);
        assert!(error.is_none() && appended.len() == 1, "{error:?}");
    }
    logs::write(&mut log, 512, 3000);
    let place = logs::append(&mut log, Kind::Write, Extent::new(0, 700), &[9; 700]).place;
    assert!(place.offset > 4 << 30, "{place:?}");
    let sync: Sync = log.begin_sync().expect("there is something to sync");
    log.finish_sync(sync.run()).expect("synced");
    let tip = log.tip();
    assert_eq!(log.segments().len(), 1);
    drop(log);
    // Recovery reads the headers of what is known to be durable, and all of what is not.
    let history = logs::history();
    let known = engine::log::recovery::Known {
        group: logs::GROUP,
        history: &history,
        gaps: &[],
        branches: &[],
        own: &|_| true,
        start: Default::default(),
        durable: Lsn(tip.lsn.0 - 2),
        headers_through: Lsn(tip.lsn.0 - 2),
        incarnation: Incarnation(2),
    };
    let mut payloads = Vec::new();
    let (log, report) = Log::open(disk, logs::DIR, limits, &known, &mut |header, place, payload| {
        if header.lsn > Lsn(tip.lsn.0 - 2) {
            payloads.push((place, payload.to_vec()));
        }
        Ok(())
    })
    .expect("sound");
    assert_eq!((log.tip(), report.torn), (tip, None));
    assert_eq!(payloads.last(), Some(&(place, vec![9; 700])));
    let records = log.records_after(Lsn(tip.lsn.0 - 1)).expect("readable");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].1, vec![9; 700]);
    assert_eq!(log.bytes_after(Lsn(tip.lsn.0 - 1)), Some(784));
    let last = log.header_of(tip.lsn).expect("readable").expect("held");
    assert_eq!((last.lsn, last.checksum), (tip.lsn, tip.checksum));
    assert!(log.header_of(tip.lsn.next()).expect("readable").is_none(), "there is none behind the last");
}

/// W36: a payload of the longest length and one more: the second is no record.
#[test]
fn w36_the_longest_record() {
    let limits = Limits { segment_bytes: 64 << 20, log_bytes: 256 << 20, recent_bytes: 0 };
    let disk: Arc<dyn Storage> = Arc::new(SparseDisk::default());
    let (mut log, ..) = logs::open_with(disk, Facts::new(Writer::Own), limits).expect("a new log");
    logs::begin(&mut log);
    let short = Limits { segment_bytes: 32 << 20, ..limits };
    let disk: Arc<dyn Storage> = Arc::new(SparseDisk::default());
    let (mut other, ..) = logs::open_with(disk, Facts::new(Writer::Own), short).expect("a new log");
    logs::begin(&mut other);
    let payload = vec![1; 32 << 20];
    let extent = Extent::new(0, 32 << 20);
    let draft = Draft { kind: Kind::Write, flags: 0, volume: VolumeId(1), extent, payload: &payload };
    let (appended, error) = log.append(Timestamp(1), Epoch(1), &[draft]);
    assert!(appended.len() == 1 && error.is_none());
    let before = other.tip();
    let (appended, error) = other.append(Timestamp(1), Epoch(1), &[draft]);
    assert!(appended.is_empty() && matches!(error, Some(Error::TooLong { .. })), "{error:?}");
    assert_eq!(other.tip(), before);
}

/// W30: a clock that jumps anywhere: order is by LSN, a time finds a point that is not younger, and nothing else
/// depends on it.
#[test]
fn w30_a_clock_that_jumps() {
    const DAY: u64 = 24 * 3600 * 1_000_000_000;
    let noon = 1_700_000_000_000_000_000_u64;
    let times =
        [noon, noon + DAY, noon - 300 * DAY, 1, 0, u64::MAX, noon + 5, noon + DAY, noon + 2 * DAY, noon + 3];
    let (disk, there) = (CrashDisk::new(), CrashDisk::new());
    let mut primary = Driven::open(disk.storage(), story::primary()).expect("opened");
    let keeper = || Config { retention: Retention::default(), ..story::replica() };
    let mut replica = Driven::open(there.storage(), keeper()).expect("opened");
    let mut expected = Vec::new();
    // A segment is as old as its youngest record says: those with a time far ahead are kept for their bytes alone.
    let calm = std::iter::repeat_n(noon - 300 * DAY, 20);
    for (number, time) in calm.chain(times.into_iter().cycle().take(30)).enumerate() {
        // The driver's clock moves on by itself.
        primary.now.wall = Timestamp(time.min(u64::MAX - DAY));
        let bytes = vec![number as u8 + 1; 1500];
        primary.write(A, number as u64 * 100, &bytes).expect("written");
        primary.flush().expect("flushed");
        let lsn = primary.node.log().tip().lsn;
        expected.push((lsn, primary.read(A, 0, VOLUME_BYTES).expect("read")));
        let report = primary.node.report(primary.now);
        assert!(report.durable <= report.appended);
    }
    primary.now.wall = Timestamp(noon);
    replicate(&mut primary, &mut replica);
    replica.now.wall = Timestamp(0);
    for (lsn, bytes) in &expected {
        replica.node.pin(*lsn).expect("a point");
        let plan = replica.node.plan_point(A, *lsn, Extent::new(0, VOLUME_BYTES)).expect("the volume");
        assert!(plan.read_all().expect("read") == *bytes, "point {lsn}");
        replica.node.unpin(*lsn);
    }
    let window = replica.node.window().expect("points");
    for time in times.into_iter().flat_map(|time| [time.saturating_sub(1), time, time.saturating_add(1)]) {
        match replica.node.point_at(Timestamp(time)) {
            Ok(lsn) => {
                assert!(lsn >= window.horizon && lsn <= window.latest);
                let of = replica.node.log().time_of(lsn).expect("it is held");
                assert!(of <= Timestamp(time), "LSN {lsn} of {of} for {time}");
            }
            Err(error) => assert!(error.to_string().contains("before the first point"), "{error}"),
        }
    }
    // Retention by age under the same clock: points go, in order, and those that stay are exact.
    let mut config = keeper();
    config.retention = Retention { bytes: u64::MAX, age_ns: DAY, ..Retention::default() };
    drop(replica);
    let mut replica = Driven::open(there.storage(), config).expect("opened");
    let mut horizon = Lsn::ZERO;
    for wall in [0, noon - 300 * DAY, noon, noon - DAY, u64::MAX - DAY, noon] {
        replica.now.wall = Timestamp(wall);
        replica.work();
        let window = replica.node.window().expect("points");
        assert!(window.horizon >= horizon && window.horizon <= window.latest);
        horizon = window.horizon;
        for (lsn, bytes) in expected.iter().filter(|(lsn, _)| *lsn >= horizon) {
            replica.node.pin(*lsn).expect("a point");
            let plan = replica.node.plan_point(A, *lsn, Extent::new(0, VOLUME_BYTES)).expect("the volume");
            assert!(plan.read_all().expect("read") == *bytes, "point {lsn}, horizon {horizon}");
            replica.node.unpin(*lsn);
        }
    }
    assert!(horizon > Lsn::ZERO, "something was retired");
    assert!(replica.node.failed().is_none() && primary.node.failed().is_none());
}

/// W31: the same life on whatever filesystems this machine has, killed and opened again.
#[test]
fn w31_filesystems_at_hand() {
    let mut places = vec![std::env::temp_dir()];
    places.extend([std::path::PathBuf::from("/dev/shm")].into_iter().filter(|path| path.is_dir()));
    for place in places {
        let root = place.join(format!("landfall-w31-{}", std::process::id()));
        let disk = engine::os::disk::Disk::new(&root).expect("a folder");
        let storage: Arc<dyn Storage> = Arc::new(disk);
        let mut reference = story::Reference::default();
        let lived = story::live_as_primary(storage.clone(), &mut reference, 31);
        lived.unwrap_or_else(|halt| panic!("{}: {halt}", root.display()));
        let what = root.display().to_string();
        story::check_primary(storage, &story::primary(), &reference, reference.answered, &what);
        std::fs::remove_dir_all(&root).expect("removed");
    }
}
