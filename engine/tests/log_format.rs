//! The bytes on disk, pinned: whole folders, each kind of record, the state. Written by this program they are the
//! fixtures, byte for byte; read from the fixtures they are what was written, and encode to the same bytes again.
//!
//! `FORMAT.md` explains them. A fixture is a text of its lines of 16 bytes; it changes only with a new format
//! version, and then beside the old one, which stays readable. To write a new one: `LANDFALL_WRITE_FIXTURES=1`.

mod common;

use common::crash::CrashDisk;
use common::logs::{self, Facts, Writer};
use common::story::{self, VOLUME_BYTES};
use common::{A, B, Driven};
use engine::catalog::MarkKind;
use engine::digest::Digest;
use engine::event::{
    self, Kind, Marked, OnMismatch, Opened, Promoted, Scrubbed, Spanned, VolumeDefined, VolumeSpec,
    decode_body, encode_body,
};
use engine::log::chain::Tip;
use engine::log::format::{HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader, aligned};
use engine::log::{Draft, Log, make_spare};
use engine::node::config::{Config, Retention};
use engine::node::keep::Keep;
use engine::state::{
    Branch, Coarse, Diverged, Gap, Hydration, Keeps, Kept, Lost, Role, SizeBefore, State, StateFile,
};
use engine::types::{
    Checksum, Epoch, Extent, GroupId, Incarnation, Lsn, NodeId, Position, Reign, Timestamp, VolumeId,
};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `length`, then the lines of 16 bytes that are not all zero; `xN` stands for N equal lines.
fn to_text(bytes: &[u8]) -> String {
    let mut text = format!("length {}\n", bytes.len());
    let mut lines = bytes.chunks(16).enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let mut count = 1;
        while lines.next_if(|(_, next)| *next == line).is_some() {
            count += 1;
        }
        if line.iter().all(|&byte| byte == 0) {
            continue;
        }
        write!(text, "{:08x}", index * 16).expect("a string takes all");
        line.iter().for_each(|byte| write!(text, " {byte:02x}").expect("a string takes all"));
        let repeated = if count > 1 { format!(" x{count}\n") } else { "\n".to_owned() };
        text.push_str(&repeated);
    }
    text
}

fn from_text(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let len =
        lines.next().and_then(|line| line.strip_prefix("length ")).expect("a fixture begins with its length");
    let mut bytes = vec![0; len.parse().expect("a number")];
    for line in lines {
        let (line, count) = line.split_once(" x").unwrap_or((line, "1"));
        let mut words = line.split(' ');
        let offset = usize::from_str_radix(words.next().expect("an offset"), 16).expect("hexadecimal");
        let line: Vec<u8> = words.map(|word| u8::from_str_radix(word, 16).expect("hexadecimal")).collect();
        for index in 0..count.parse::<usize>().expect("a number") {
            bytes[offset + index * 16..][..line.len()].copy_from_slice(&line);
        }
    }
    bytes
}

fn fixture(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.hex"));
    from_text(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The bytes are those of the fixture.
fn pin(name: &str, bytes: &[u8]) {
    let path = folder().join(format!("{name}.hex"));
    if std::env::var_os("LANDFALL_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, to_text(bytes)).expect("written");
    }
    let expected = fixture(name);
    let differs = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(
        bytes.len() == expected.len() && differs.is_none(),
        "{name}: the format has changed, first at byte {differs:?}; what is on users' disks must stay readable"
    );
}

/// Every file of a folder, against `name/…`.
fn pin_folder(name: &str, disk: &CrashDisk) {
    let mut names: Vec<String> = disk.paths().iter().map(|path| path.replace('/', "-")).collect();
    for path in disk.paths() {
        pin(&format!("{name}/{}", path.replace('/', "-")), &disk.bytes(&path));
    }
    names.sort();
    let listed = std::fs::read_dir(folder().join(name)).expect("a folder");
    let mut there: Vec<String> = listed
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("ASCII").replace(".hex", ""))
        .collect();
    there.sort();
    assert_eq!(names, there, "{name}: the same files");
}

/// A folder of the fixtures on a disk.
fn load_folder(name: &str) -> CrashDisk {
    let disk = CrashDisk::new();
    for dir in ["g", "g/log", "g/volumes", "g/base"] {
        disk.storage().create_dir(dir).expect("made");
    }
    for entry in std::fs::read_dir(folder().join(name)).expect("a folder") {
        let file = entry.expect("an entry").file_name().into_string().expect("ASCII").replace(".hex", "");
        disk.put(&file.replace('-', "/"), &fixture(&format!("{name}/{file}")));
    }
    disk
}

/// A folder, and what its two volumes hold.
struct Folder {
    disk: CrashDisk,
    volumes: [Vec<u8>; 2],
}

/// The log of a primary with two volumes and every kind of record that a guest brings about, in two segments, and a
/// spare.
fn first_reign(disk: &CrashDisk) -> (Log, [Vec<u8>; 2]) {
    let limits = story::primary().limits.log;
    let (mut log, ..) = logs::open_with(disk.storage(), Facts::new(Writer::Own), limits).expect("a new log");
    let mut volumes = [vec![0; VOLUME_BYTES as usize], vec![0; VOLUME_BYTES as usize]];
    logs::begin(&mut log);
    for (id, name) in [(1, "data"), (2, "wal")] {
        let body = encode_body(&VolumeDefined { name: name.to_owned(), size: VOLUME_BYTES });
        record(&mut log, 1, Kind::Volume, 0, id, Extent::default(), &body);
    }
    let mut write = |log: &mut Log, id: u32, offset: usize, bytes: &[u8]| {
        volumes[id as usize - 1][offset..offset + bytes.len()].copy_from_slice(bytes);
        record(log, 1, Kind::Write, 0, id, Extent::new(offset as u64, bytes.len() as u64), bytes);
    };
    write(&mut log, 1, 512, b"The quick brown fox jumps over the lazy dog.");
    for number in 0..5 {
        write(&mut log, 2, usize::from(number) * 3000, &vec![number + 1; 2999]);
    }
    record(&mut log, 1, Kind::Flush, 0, 0, Extent::default(), &[]);
    logs::sync(&mut log);
    record(&mut log, 1, Kind::Zero, 0, 1, Extent::new(516, 5), &[]);
    record(&mut log, 1, Kind::Zero, event::FLAG_NO_HOLE, 2, Extent::new(0, 100), &[]);
    volumes[0][516..521].fill(0);
    volumes[1][0..100].fill(0);
    record(
        &mut log,
        1,
        Kind::Mark,
        0,
        0,
        Extent::default(),
        &encode_body(&Marked { name: "noon".to_owned() }),
    );
    logs::sync(&mut log);
    let make = log.begin_make(1).expect("a spare is wanted");
    log.finish_make(make_spare(make).expect("made"));
    assert_eq!(log.segments().len(), 2);
    (log, volumes)
}

/// A record whose time is its LSN in seconds.
fn record(log: &mut Log, epoch: u64, kind: Kind, flags: u16, volume: u32, extent: Extent, payload: &[u8]) {
    let time = Timestamp(1_700_000_000_000_000_000 + log.tip().lsn.next().0 * 1_000_000_000);
    let draft = Draft { kind, flags, volume: VolumeId(volume), extent, payload };
    let (appended, error) = log.append(time, Epoch(epoch), &[draft]);
    assert!(error.is_none() && appended.len() == 1, "{error:?}");
}

fn specs() -> Vec<VolumeSpec> {
    let spec =
        |(id, name): (u32, &str)| VolumeSpec { id: VolumeId(id), name: name.to_owned(), size: VOLUME_BYTES };
    [(1, "data"), (2, "wal")].into_iter().map(spec).collect()
}

/// The state of a first primary that has applied nothing yet.
fn first_state(log: &Log) -> State {
    State {
        group: logs::GROUP,
        node: logs::NODE,
        role: Role::Primary,
        history: logs::history(),
        own: vec![Epoch(1)],
        fenced_by: Vec::new(),
        incarnation: Incarnation(1),
        start: Tip::default(),
        durable: log.durable().lsn,
        applied: Lsn::ZERO,
        base: Lsn::ZERO,
        horizon: Lsn::ZERO,
        hydration: None,
        volumes: specs(),
        branches: Vec::new(),
        acknowledged: vec![("west".to_owned(), Lsn(3))],
        gaps: Vec::new(),
        coarse: Vec::new(),
        lost: Vec::new(),
        lacks_file: 0,
        keeps: None,
        diverged: None,
        uncommitted: None,
        takes_back: false,
        stale_disks: Vec::new(),
        handed_over: None,
        branch_gaps: Vec::new(),
        sizes: Vec::new(),
        kept: Vec::new(),
    }
}

fn primary() -> Folder {
    let disk = CrashDisk::new();
    let (log, volumes) = first_reign(&disk);
    StateFile::create(&*disk.storage(), "g", "g/state", first_state(&log)).expect("made");
    disk.put("g/volumes/data.img", &vec![0; VOLUME_BYTES as usize]);
    disk.put("g/volumes/wal.img", &vec![0; VOLUME_BYTES as usize]);
    Folder { disk, volumes }
}

/// A replica of it, promoted before its last two records, with a write of its own; its disks not yet filled.
fn promoted() -> Folder {
    let disk = CrashDisk::new();
    let (mut log, mut volumes) = first_reign(&disk);
    let latest = log.durable();
    let at = Lsn(latest.lsn.0 - 2);
    let (tip, _, end) = log.tip_at(at).expect("readable").expect("held");
    let reign = Reign { epoch: Epoch(2), branch: tip.position(), node: NodeId([2; 16]) };
    log.cut(tip, end);
    log.set_incarnation(Incarnation(2));
    record(&mut log, 2, Kind::Promote, 0, 0, Extent::default(), &encode_body(&Promoted { reign }));
    record(&mut log, 2, Kind::Write, 0, 1, Extent::new(600, 21), b"from the second reign");
    logs::sync(&mut log);
    volumes[0][600..621].copy_from_slice(b"from the second reign");
    // The zeroes over the second volume lie behind the point.
    volumes[1][0..100].fill(1);
    let state = State {
        node: NodeId([2; 16]),
        history: [logs::history(), vec![reign]].concat(),
        own: vec![Epoch(2)],
        incarnation: Incarnation(2),
        durable: at,
        hydration: Some(Hydration { at, done: vec![(VolumeId(1), 0), (VolumeId(2), 0)] }),
        branches: vec![Branch { epoch: Epoch(1), after: tip.position(), last: latest.lsn }],
        acknowledged: Vec::new(),
        ..first_state(&log)
    };
    StateFile::create(&*disk.storage(), "g", "g/state", state).expect("made");
    for name in ["base/data", "base/wal", "volumes/data", "volumes/wal"] {
        disk.put(&format!("g/{name}.img"), &vec![0; VOLUME_BYTES as usize]);
    }
    Folder { disk, volumes }
}

#[test]
fn folders_are_written_as_ever() {
    pin_folder("primary", &primary().disk);
    pin_folder("promoted", &promoted().disk);
}

#[test]
fn folders_are_read_as_ever() {
    let expected = primary();
    let (mut node, report) =
        Driven::open_reporting(load_folder("primary").storage(), story::primary()).expect("opened");
    assert_eq!((report.torn, report.records), (None, 13));
    assert_eq!(node.node.log().tip().lsn, Lsn(14), "all of it, and this opening");
    for (volume, bytes) in [A, B].into_iter().zip(&expected.volumes) {
        assert!(node.read(volume, 0, VOLUME_BYTES).as_ref() == Ok(bytes));
    }
    assert_eq!(node.read(A, 512, 9).expect("read"), b"The \0\0\0\0\0");

    let expected = promoted();
    let disk = load_folder("promoted");
    let config =
        Config { retention: Retention::default(), replicas: vec!["west".to_owned()], ..story::replica() };
    let mut node = Driven::open(disk.storage(), config).expect("opened");
    assert_eq!((node.node.role(), node.node.history().len()), (Role::Primary, 2));
    assert_eq!(node.node.state().branches.len(), 1);
    for (volume, bytes) in [A, B].into_iter().zip(&expected.volumes) {
        assert!(node.read(volume, 0, VOLUME_BYTES).as_ref() == Ok(bytes));
    }
    node.work();
    assert!(!node.node.is_hydrating());
    for (name, bytes) in ["data", "wal"].into_iter().zip(&expected.volumes) {
        assert!(disk.bytes(&format!("g/volumes/{name}.img")) == *bytes, "{name}");
    }
}

/// Segment headers, record headers and bodies of the folders: decoded and encoded again, byte for byte.
#[test]
fn segments_encode_as_they_decode() {
    let seed = Seed::of(logs::GROUP);
    let (mut segments, mut records) = (0, 0);
    for name in ["primary", "promoted"] {
        let disk = load_folder(name);
        for path in disk.paths().iter().filter(|path| path.ends_with(".seg")) {
            let bytes = disk.bytes(path);
            let Ok(header) = SegmentHeader::decode(&bytes) else {
                assert!(bytes.iter().all(|&byte| byte == 0), "a spare is blank");
                continue;
            };
            assert_eq!(header.encode(), bytes[..SEGMENT_HEADER_BYTES]);
            segments += 1;
            let mut at = SEGMENT_HEADER_BYTES;
            while let Ok(header) = Header::decode(seed, &bytes[at..]) {
                encode_again(seed, &bytes[at..at + header.record_len()]);
                records += 1;
                at += header.record_len();
            }
            assert!(bytes[at..].iter().all(|&byte| byte == 0), "blank behind the last record");
        }
    }
    assert!(segments == 5 && records == 28, "{segments}, {records}");
}

/// Decodes a record and encodes it again: header, body, padding.
fn encode_again(seed: Seed, bytes: &[u8]) -> Kind {
    let mut header = Header::decode(seed, bytes).expect("a record");
    let (payload, padding) = bytes[HEADER_BYTES..].split_at(header.payload_len as usize);
    header.check_payload(seed, &bytes[HEADER_BYTES..]).expect("a whole record");
    let mut again = [0; HEADER_BYTES];
    header.encode(seed, &mut again);
    assert_eq!(again, bytes[..HEADER_BYTES]);
    let body = match header.kind {
        Kind::Open => encode_body(&decode_body::<Opened>(payload).expect("a body")),
        Kind::Volume => encode_body(&decode_body::<VolumeDefined>(payload).expect("a body")),
        Kind::Mark => encode_body(&decode_body::<Marked>(payload).expect("a body")),
        Kind::Promote => encode_body(&decode_body::<Promoted>(payload).expect("a body")),
        Kind::SpanBegin | Kind::SpanEnd => encode_body(&decode_body::<Spanned>(payload).expect("a body")),
        Kind::Scrub => encode_body(&decode_body::<Scrubbed>(payload).expect("a body")),
        Kind::Write | Kind::Zero | Kind::Flush | Kind::Resize => payload.to_vec(),
    };
    assert_eq!(body, payload, "{:?}", header.kind);
    assert!(padding.len() < 8 && padding.iter().all(|&byte| byte == 0));
    header.kind
}

fn reign() -> Reign {
    let branch = Position { epoch: Epoch(1), lsn: Lsn(0x1122), checksum: Checksum(0xaabb_ccdd) };
    Reign { epoch: Epoch(2), branch, node: NodeId([2; 16]) }
}

fn scrubbed(round: u64, on_mismatch: OnMismatch) -> Vec<u8> {
    encode_body(&Scrubbed { digest: Digest::of(b"thirteen byte"), round, on_mismatch })
}

/// One record of each kind, every field with a value of its own.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    type Sample = (&'static str, Kind, u16, u32, Extent, Vec<u8>);
    let spanned = encode_body(&Spanned { replica: NodeId([2; 16]) });
    let kinds: [Sample; 18] = [
        ("open", Kind::Open, 0, 0, Extent::default(), encode_body(&Opened { node: NodeId([1; 16]) })),
        (
            "volume",
            Kind::Volume,
            0,
            3,
            Extent::default(),
            encode_body(&VolumeDefined { name: "wal".to_owned(), size: 1 << 40 }),
        ),
        ("write", Kind::Write, 0, 3, Extent::new(0x1_0000_0200, 13), b"thirteen byte".to_vec()),
        ("zero", Kind::Zero, 0, 3, Extent::new(4096, 1 << 33), Vec::new()),
        ("resize", Kind::Resize, 0, 3, Extent::new(1 << 30, 3 << 30), Vec::new()),
        ("zero-no-hole", Kind::Zero, event::FLAG_NO_HOLE, 3, Extent::new(512, 512), Vec::new()),
        ("flush", Kind::Flush, 0, 0, Extent::default(), Vec::new()),
        (
            "mark-application",
            Kind::Mark,
            event::FLAG_APPLICATION,
            0,
            Extent::default(),
            encode_body(&Marked { name: "nightly".to_owned() }),
        ),
        (
            "mark",
            Kind::Mark,
            0,
            0,
            Extent::default(),
            encode_body(&Marked { name: "before-upgrade".to_owned() }),
        ),
        ("mark-periodic", Kind::Mark, 0, 0, Extent::default(), encode_body(&Marked { name: String::new() })),
        ("promote", Kind::Promote, 0, 0, Extent::default(), encode_body(&Promoted { reign: reign() })),
        ("span-begin", Kind::SpanBegin, 0, 0, Extent::default(), spanned.clone()),
        ("span-end", Kind::SpanEnd, 0, 0, Extent::default(), spanned),
        ("scrub", Kind::Scrub, 0, 3, Extent::new(0x1_0000_0200, 13), scrubbed(0x1122, OnMismatch::Report)),
        ("scrub-anew", Kind::Scrub, 0, 3, Extent::new(4096, 1 << 26), scrubbed(0, OnMismatch::Repair)),
        ("write-copy", Kind::Write, event::FLAG_COPY, 3, Extent::new(4096, 13), b"thirteen byte".to_vec()),
        ("zero-copy", Kind::Zero, event::FLAG_COPY, 3, Extent::new(4096, 1 << 33), Vec::new()),
        (
            "volume-again",
            Kind::Volume,
            event::FLAG_AGAIN,
            3,
            Extent::default(),
            encode_body(&VolumeDefined { name: "wal".to_owned(), size: 1 << 40 }),
        ),
    ];
    let seed = Seed::of(logs::GROUP);
    let record = |(name, kind, flags, volume, extent, payload): Sample| {
        let mut bytes = vec![0; HEADER_BYTES + aligned(payload.len())];
        bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        let payload_checksum = if payload.is_empty() { 0 } else { seed.checksum(&[&bytes[HEADER_BYTES..]]) };
        let mut header = Header {
            kind,
            flags,
            checksum: Checksum(0),
            payload_checksum,
            previous: Checksum(0x0102_0304),
            incarnation: Incarnation(5),
            lsn: Lsn(0x0001_0000_0007),
            epoch: Epoch(2),
            durable: Lsn(0x0001_0000_0006),
            time: Timestamp(1_700_000_000_123_456_789),
            extent,
            payload_len: payload.len() as u32,
            volume: VolumeId(volume),
        };
        let out: &mut [u8; HEADER_BYTES] = (&mut bytes[..HEADER_BYTES]).try_into().expect("a header");
        header.encode(seed, out);
        (name, bytes)
    };
    kinds.into_iter().map(record).collect()
}

#[test]
fn every_kind_of_record_is_as_ever() {
    let seed = Seed::of(logs::GROUP);
    let mut seen = std::collections::BTreeSet::new();
    for (name, bytes) in samples() {
        pin(&format!("records/{name}"), &bytes);
        seen.insert(encode_again(seed, &fixture(&format!("records/{name}"))));
    }
    let all: Vec<Kind> = (0..=u8::MAX).filter_map(Kind::from_number).collect();
    assert!(seen.into_iter().eq(all), "a sample of each kind");
}

/// A state with something in each of its fields.
fn state() -> State {
    let first = Reign { epoch: Epoch(1), branch: Position::default(), node: NodeId([1; 16]) };
    State {
        group: GroupId([7; 16]),
        node: NodeId([2; 16]),
        role: Role::Primary,
        history: vec![first, reign()],
        own: vec![Epoch(2)],
        fenced_by: vec![Reign { epoch: Epoch(3), ..reign() }],
        incarnation: Incarnation(300),
        start: Tip {
            lsn: Lsn(70_000),
            epoch: Epoch(1),
            incarnation: Incarnation(4),
            checksum: Checksum(0xdead_beef),
        },
        durable: Lsn(5_000_000_000),
        applied: Lsn(251),
        base: Lsn(250),
        horizon: Lsn(65_536),
        hydration: Some(Hydration { at: Lsn(9), done: vec![(VolumeId(1), 4 << 20), (VolumeId(2), 0)] }),
        volumes: vec![VolumeSpec { id: VolumeId(1), name: "data".to_owned(), size: 16 << 30 }],
        branches: vec![Branch { epoch: Epoch(1), after: reign().branch, last: Lsn(0x2000) }],
        acknowledged: vec![("west".to_owned(), Lsn(77))],
        gaps: Vec::new(),
        coarse: Vec::new(),
        lost: Vec::new(),
        lacks_file: 0,
        keeps: None,
        diverged: None,
        uncommitted: None,
        takes_back: false,
        stale_disks: Vec::new(),
        handed_over: None,
        branch_gaps: Vec::new(),
        sizes: Vec::new(),
        kept: Vec::new(),
    }
}

/// What version 2 has added, with something in each of its fields.
fn newer_state() -> State {
    let at = reign().branch;
    State {
        gaps: vec![Gap { after: at, to: Tip { lsn: Lsn(0x3000), ..state().start } }],
        coarse: vec![
            Coarse { from: Lsn(5), begun: Lsn(6), to: Some(Lsn(300)) },
            Coarse { from: Lsn(0x1123), begun: Lsn(0x3000), to: None },
        ],
        lost: vec![Lost { replica: "west".to_owned(), owed: true, through: Lsn(77), since: Lsn(70) }],
        lacks_file: 3,
        ..state()
    }
}

/// What version 3 has added, likewise.
fn newest_state() -> State {
    State {
        keeps: Some(Keeps::Disks),
        diverged: Some(Diverged { after: Lsn(0x1122), through: Lsn(0x1130) }),
        uncommitted: Some(Lsn(0x1122)),
        takes_back: true,
        stale_disks: vec!["scratch".to_owned()],
        handed_over: Some(Lsn(0x2244)),
        ..newer_state()
    }
}

/// Before version 4 the gaps of branches stood among those of the line.
fn apart(state: State) -> State {
    let (gaps, branch_gaps) = state.gaps.iter().partition(|gap| gap.to.epoch == state.epoch());
    State { gaps, branch_gaps, ..state }
}

#[test]
fn gaps_of_branches_stand_apart() {
    let aside = newer_state().gaps[0];
    let gap = Gap { to: Tip { epoch: state().epoch(), ..aside.to }, ..aside };
    let mixed = State { gaps: vec![gap, aside], ..newest_state() };
    let expected = State { gaps: vec![gap], branch_gaps: vec![aside], ..newest_state() };
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    let file = StateFile::create(&*disk.storage(), "g", "g/state", mixed).expect("made");
    assert_eq!(disk.bytes("g/state")[8], 3);
    let read = || StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there").get();
    assert_eq!(read(), expected);
    file.update(|state| *state = expected.clone()).expect("written");
    pin("state-4", &disk.bytes("g/state"));
    assert_eq!((disk.bytes("g/state")[8], read()), (4, expected));
}

/// And version 5 only where a size stands nowhere else.
#[test]
fn sizes_before_a_span_are_on_record() {
    let size = SizeBefore { volume: VolumeId(1), at: reign().branch, before: 8 << 30, kept: 4 << 30 };
    let expected = State { sizes: vec![size], ..apart(newest_state()) };
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    StateFile::create(&*disk.storage(), "g", "g/state", expected.clone()).expect("made");
    pin("state-5", &disk.bytes("g/state"));
    let read = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there").get();
    assert_eq!((disk.bytes("g/state")[8], read), (5, expected));
}

/// And version 6 only where marks are kept.
#[test]
fn kept_marks_are_on_record() {
    let size = SizeBefore { volume: VolumeId(1), at: reign().branch, before: 8 << 30, kept: 4 << 30 };
    let kept = vec![
        Kept { at: Lsn(249), number: 3, bytes: 5 << 30 },
        Kept { at: Lsn(65_536), number: 7, bytes: 120 },
    ];
    let expected = State { sizes: vec![size], kept, ..apart(newest_state()) };
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    StateFile::create(&*disk.storage(), "g", "g/state", expected.clone()).expect("made");
    pin("state-6", &disk.bytes("g/state"));
    let read = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there").get();
    assert_eq!((disk.bytes("g/state")[8], read), (6, expected));
}

/// The file of a kept mark: its header, data that was overwritten since, and zeros likewise.
#[test]
fn the_file_of_a_kept_mark_is_as_ever() {
    let disk = CrashDisk::new();
    let mut config = common::replica_config("g");
    let keep = Keep { named: 1, bytes: u64::MAX, ..Keep::default() };
    config.retention = Retention { bytes: 128 << 10, age_ns: u64::MAX, keep };
    let primary = CrashDisk::new();
    let mut primary = Driven::open(primary.storage(), common::primary_config("g")).expect("made");
    let mut replica = Driven::open(disk.storage(), config.clone()).expect("made");
    primary.write(VolumeId(1), 4096, b"what was there before").expect("written");
    let now = primary.now();
    let at = primary.node.mark(now, "before-upgrade", MarkKind::Application).expect("marked");
    for number in 1..=60_u8 {
        primary.write(VolumeId(1), 0, &[number; 4200]).expect("written");
        primary.write(VolumeId(2), 8192, &[number; 512]).expect("written");
    }
    primary.flush().expect("flushed");
    common::replicate(&mut primary, &mut replica);
    replica.work();
    let [kept] = replica.node.state().kept[..] else { panic!("one mark is kept") };
    let path = format!("g/kept/{}", kept.number);
    pin("kept", &disk.bytes(&path));
    drop(replica);
    disk.put(&path, &fixture("kept"));
    let mut replica = Driven::open(disk.killed().storage(), config).expect("opened");
    assert_eq!(replica.node.kept_marks()[0].0.at, at);
    let (data, wal) = (replica.read_point(VolumeId(1), at), replica.read_point(VolumeId(2), at));
    assert_eq!(&data[4096..4117], b"what was there before");
    assert!(data[..4096].iter().chain(&wal).all(|&byte| byte == 0));
}

/// And version 3 only where version 2 would not do.
#[test]
fn the_newest_state_is_as_ever() {
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    StateFile::create(&*disk.storage(), "g", "g/state", newest_state()).expect("made");
    pin("state-3", &disk.bytes("g/state"));
    assert_eq!((disk.bytes("g/state")[8], fixture("state-2")[8]), (3, 2));
    let read = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there");
    assert_eq!(read.get(), apart(newest_state()));
    // What is old in it is encoded as ever, whatever is new.
    for older in [newer_state(), state()] {
        read.update(|state| *state = older.clone()).expect("written");
        let again = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there");
        assert_eq!(again.get(), apart(older));
    }
}

/// A program that knows version 2 writes it only where it has something to say that version 1 cannot.
#[test]
fn the_newer_state_is_as_ever() {
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    StateFile::create(&*disk.storage(), "g", "g/state", newer_state()).expect("made");
    pin("state-2", &disk.bytes("g/state"));
    assert_eq!((disk.bytes("g/state")[8], fixture("state")[8]), (2, 1));
    let read = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there");
    assert_eq!(read.get(), apart(newer_state()));
}

#[test]
fn the_state_is_as_ever() {
    let disk = CrashDisk::new();
    disk.storage().create_dir("g").expect("made");
    StateFile::create(&*disk.storage(), "g", "g/state", state()).expect("made");
    pin("state", &disk.bytes("g/state"));
    let then = CrashDisk::new();
    then.storage().create_dir("g").expect("made");
    then.put("g/state", &fixture("state"));
    let read = StateFile::open(&*then.storage(), "g/state").expect("sound").expect("there");
    assert_eq!(read.get(), state());
    // The folders' states, updated once more, encode to the same bytes but for the number of the
    // update and the checksum over it.
    for name in ["primary", "promoted"] {
        let disk = load_folder(name);
        let before = disk.bytes("g/state");
        let file = StateFile::open(&*disk.storage(), "g/state").expect("sound").expect("there");
        file.update(|_| {}).expect("written");
        let after = disk.bytes("g/state");
        let counters = |at: usize| (12..24).contains(&(at % (before.len() / 2)));
        let differs = (0..before.len()).find(|&at| !counters(at) && before[at] != after[at]);
        assert_eq!((differs, before == after), (None, false), "{name}");
    }
}
