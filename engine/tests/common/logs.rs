//! Logs without a node: built record by record, opened, read.

use super::crash::CrashDisk;
use engine::event::{Kind, Marked, Opened, VolumeDefined, encode_body};
use engine::io::Storage;
use engine::log::chain::Tip;
use engine::log::format::{HEADER_BYTES, Header, aligned};
use engine::log::recovery::{Known, OpenError, Report};
use engine::log::{Appended, Draft, Limits, Log, make_spare};
use engine::types::{Epoch, Extent, GroupId, Incarnation, Lsn, NodeId, Position, Reign, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub const GROUP: GroupId = GroupId([7; 16]);
pub const NODE: NodeId = NodeId([1; 16]);
pub const DIR: &str = "g/log";
pub const SEGMENT_BYTES: u64 = 8 << 10;
pub const LIMITS: Limits =
    Limits { segment_bytes: SEGMENT_BYTES, log_bytes: 64 * SEGMENT_BYTES, recent_bytes: 64 << 10 };

/// Whose records a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// This node's: their durable marks are about this disk.
    Own,
    /// A primary's elsewhere.
    Other,
}

/// What the state file would know.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub writer: Writer,
    pub start: Tip,
    pub durable: Lsn,
    pub incarnation: Incarnation,
}

impl Facts {
    pub fn new(writer: Writer) -> Facts {
        Facts { writer, start: Tip::default(), durable: Lsn::ZERO, incarnation: Incarnation(1) }
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub header: Header,
    pub payload: Vec<u8>,
}

pub fn history() -> Vec<Reign> {
    vec![Reign { epoch: Epoch(1), branch: Position::default(), node: NODE }]
}

/// Opens a log and reads all of it.
pub fn open(storage: Arc<dyn Storage>, facts: Facts) -> Result<(Log, Report, Vec<Record>), OpenError> {
    open_with(storage, facts, LIMITS)
}

pub fn open_with(
    storage: Arc<dyn Storage>,
    facts: Facts,
    limits: Limits,
) -> Result<(Log, Report, Vec<Record>), OpenError> {
    let history = history();
    let known = Known {
        group: GROUP,
        history: &history,
        own: &|_| facts.writer == Writer::Own,
        branches: &[],
        gaps: &[],
        start: facts.start,
        durable: facts.durable,
        headers_through: Lsn::ZERO,
        incarnation: facts.incarnation,
    };
    let mut records = Vec::new();
    let (log, report) = Log::open(storage, DIR, limits, &known, &mut |header, _, payload| {
        records.push(Record { header: *header, payload: payload.to_vec() });
        Ok(())
    })?;
    Ok((log, report, records))
}

pub fn append(log: &mut Log, kind: Kind, extent: Extent, payload: &[u8]) -> Appended {
    let group = matches!(kind, Kind::Open | Kind::Flush | Kind::Mark | Kind::Promote);
    let volume = VolumeId(u32::from(!group));
    let draft = Draft { kind, flags: 0, volume, extent, payload };
    let time = Timestamp(1_700_000_000_000_000_000 + log.tip().lsn.0);
    let (mut appended, error) = log.append(time, Epoch(1), &[draft]);
    assert!(error.is_none(), "{error:?}");
    appended.pop().expect("one record was appended")
}

pub fn begin(log: &mut Log) {
    append(log, Kind::Open, Extent::default(), &encode_body(&Opened { node: NODE }));
}

pub fn write(log: &mut Log, offset: u64, len: usize) {
    let payload: Vec<u8> = (0..len).map(|at| (at as u64 * 7 + log.tip().lsn.0 * 13) as u8 | 1).collect();
    append(log, Kind::Write, Extent::new(offset, len as u64), &payload);
}

pub fn sync(log: &mut Log) {
    if let Some(sync) = log.begin_sync() {
        log.finish_sync(sync.run()).expect("synced");
    }
}

/// A record's place on the disk.
#[derive(Clone, Debug)]
pub struct At {
    pub record: Record,
    pub path: String,
    /// Header, payload and padding.
    pub range: Range<usize>,
}

/// A small log that has lived: three segments in use, one of them a file that held older records before, and a
/// spare; every kind of record but a promotion.
pub struct Small {
    pub disk: CrashDisk,
    /// What is in its files.
    pub files: BTreeMap<String, Vec<u8>>,
    pub start: Tip,
    pub durable: Lsn,
    /// Every retained record, in order.
    pub records: Vec<At>,
}

pub fn path(slot: u32) -> String {
    format!("{DIR}/{slot:08}.seg")
}

impl Small {
    pub fn build() -> Small {
        let disk = CrashDisk::new();
        let (mut log, _, _) = open(disk.storage(), Facts::new(Writer::Own)).expect("a new log");
        // Two segments that are given back.
        begin(&mut log);
        for _ in 0..7 {
            write(&mut log, 0, 1000);
        }
        sync(&mut log);
        assert_eq!(log.segments().len(), 3);
        let start = log.start_for(log.tip().lsn);
        log.free_before(start).expect("freed");
        // Those that stay.
        let defined = VolumeDefined { name: "data".to_owned(), size: 1 << 20 };
        append(&mut log, Kind::Volume, Extent::default(), &encode_body(&defined));
        write(&mut log, 0, 512);
        write(&mut log, 4096, 1001);
        append(&mut log, Kind::Zero, Extent::new(1024, 512), &[]);
        sync(&mut log);
        append(&mut log, Kind::Flush, Extent::default(), &[]);
        write(&mut log, 8192, 2000);
        append(&mut log, Kind::Mark, Extent::default(), &encode_body(&Marked { name: "before".to_owned() }));
        write(&mut log, 512, 700);
        append(&mut log, Kind::Flush, Extent::default(), &[]);
        sync(&mut log);
        write(&mut log, 512, 900);
        write(&mut log, 1024, 300);
        append(&mut log, Kind::Zero, Extent::new(0, 4096), &[]);
        append(&mut log, Kind::Flush, Extent::default(), &[]);
        sync(&mut log);
        write(&mut log, 100, 40);
        let spare = log.begin_make(2).expect("there is room for one more");
        let spare = make_spare(spare).expect("made");
        log.finish_make(spare);
        assert_eq!(log.segments().len(), 3, "the small log has three segments");
        let (durable, slots): (_, Vec<_>) =
            (log.durable().lsn, log.segments().iter().map(|s| (s.slot, s.header.first, s.last)).collect());
        drop(log);
        let (_, report, records) =
            open(disk.killed().storage(), Facts { start, ..Facts::new(Writer::Own) }).expect("sound");
        assert_eq!(report.torn, None);
        let mut placed = Vec::new();
        let mut records = records.into_iter().peekable();
        for (slot, first, last) in slots {
            let mut offset = engine::log::format::SEGMENT_HEADER_BYTES;
            assert_eq!(records.peek().map(|record| record.header.lsn), Some(first));
            while let Some(record) = records.next_if(|record| record.header.lsn <= last) {
                let end = offset + HEADER_BYTES + aligned(record.payload.len());
                placed.push(At { record, path: path(slot), range: offset..end });
                offset = end;
            }
        }
        let files = disk.paths().into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect();
        Small { disk, files, start, durable, records: placed }
    }

    /// The disk as a new process finds it, with everything durable.
    pub fn settled(&self) -> CrashDisk {
        let disk = CrashDisk::new();
        disk.storage().create_dir(DIR).expect("a folder");
        self.files.iter().for_each(|(path, bytes)| disk.put(path, bytes));
        disk
    }

    pub fn facts(&self, writer: Writer, durable: Lsn) -> Facts {
        Facts { writer, start: self.start, durable, incarnation: Incarnation(2) }
    }

    pub fn tip(&self) -> Lsn {
        self.records.last().expect("it has records").record.header.lsn
    }
}
