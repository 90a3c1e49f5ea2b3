//! A small log, damaged in every place in turn: each time the documented answer (`FORMAT.md`, "Torn tail or
//! corruption"), never a panic, never a durable record gone without a word, never one that came back to life.

mod common;

use common::Random;
use common::crash::CrashDisk;
use common::logs::{self, At, Facts, Record, SEGMENT_BYTES, Small, Writer};
use engine::event::Kind;
use engine::log::chain::Break;
use engine::log::format::{ALIGN, Fault, HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, Seed, SegmentHeader};
use engine::log::recovery::{OpenError, Proof, Report};
use engine::log::scan::Stop;
use engine::peer::Batch;
use engine::types::{Checksum, Epoch, Extent, Incarnation, Lsn};
use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: usize = 4096;

/// What recovery must answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The records up to here, and whether a torn tail is reported.
    Prefix { last: Lsn, torn: bool },
    /// Corruption at this LSN, in this file.
    Corrupt { lsn: Lsn, path: String, proof: Proof },
}

fn answer(result: &Result<(Report, Vec<Record>), OpenError>, small: &Small) -> Answer {
    match result {
        Ok((report, records)) => {
            let expected = small.records.iter().map(|at| &at.record);
            assert!(records.iter().eq(expected.take(records.len())), "only what was written, in its order");
            let last = records.last().map_or(small.start.lsn, |record| record.header.lsn);
            if let Some(torn) = &report.torn {
                assert_eq!(torn.lsn, last.next(), "the report names what is lost");
            }
            Answer::Prefix { last, torn: report.torn.is_some() }
        }
        Err(OpenError::Corrupt { lsn, path, proof, .. }) => {
            Answer::Corrupt { lsn: *lsn, path: path.clone(), proof: *proof }
        }
        Err(other) => panic!("neither a prefix nor corruption: {other}"),
    }
}

fn recover(disk: &CrashDisk, facts: Facts) -> Result<(Report, Vec<Record>), OpenError> {
    logs::open(disk.storage(), facts).map(|(_, report, records)| (report, records))
}

/// The table of `FORMAT.md`, for a log of which some bytes differ from what was written.
fn documented(small: &Small, disk: &CrashDisk, facts: Facts) -> Answer {
    let files: BTreeMap<String, Vec<u8>> =
        disk.paths().into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect();
    let bytes_of = |path: &str| files.get(path).map_or(&[][..], Vec::as_slice);
    let header_is_whole = |path: &str| bytes_of(path).get(..512) == Some(&small.files[path][..512]);
    let is_whole = |at: &At, range: Range<usize>| {
        bytes_of(&at.path).get(range.clone()) == Some(&small.files[&at.path][range])
    };
    let missing =
        small.records.iter().find(|at| !header_is_whole(&at.path) || !is_whole(at, at.range.clone()));
    let missing_lsn = missing.map_or(small.tip().next(), |at| at.record.header.lsn);
    // The last file that the line reaches, and the byte where it ends.
    let reached: Vec<&At> =
        small.records.iter().take_while(|at| at.record.header.lsn < missing_lsn).collect();
    let mut end = reached.last().map(|at| (at.path.clone(), at.range.end));
    if let Some(at) = missing.filter(|at| header_is_whole(&at.path)) {
        end = Some((at.path.clone(), at.range.start));
    }
    // A file of the line that lost its end, even one that needs nothing of it.
    let mut line: Vec<String> = reached.iter().map(|at| at.path.clone()).collect();
    line.extend(end.iter().map(|(path, _)| path.clone()));
    line.dedup();
    if let Some(short) = line.iter().find(|path| (bytes_of(path).len() as u64) < SEGMENT_BYTES) {
        let mut held =
            small.records.iter().filter(|at| at.path == *short && at.record.header.lsn < missing_lsn);
        let lsn = held.next_back().map_or(missing_lsn, |at| at.record.header.lsn.next());
        return Answer::Corrupt { lsn, path: short.clone(), proof: Proof::Length };
    }
    let behind: Vec<&At> = small
        .records
        .iter()
        .filter(|at| at.record.header.lsn >= missing_lsn)
        .filter(|at| is_whole(at, at.range.start..at.range.start + HEADER_BYTES))
        .collect();
    let is_blank = |path: &str| bytes_of(path).iter().take(PAGE).all(|&byte| byte == 0);
    if let Some(at) = behind.iter().find(|at| !header_is_whole(&at.path) && !is_blank(&at.path)) {
        return Answer::Corrupt { lsn: missing_lsn, path: at.path.clone(), proof: Proof::Header };
    }
    let marks = behind.iter().map(|at| at.record.header.durable).max().unwrap_or_default();
    let durable = match facts.writer {
        Writer::Own => facts.durable.max(marks),
        Writer::Other => facts.durable,
    };
    if durable >= missing_lsn {
        let path = end.map_or_else(|| logs::DIR.to_owned(), |(path, _)| path);
        return Answer::Corrupt { lsn: missing_lsn, path, proof: Proof::Durable(durable) };
    }
    let visible = end.is_some_and(|(path, at)| {
        let bytes = bytes_of(&path);
        let page_end = at.next_multiple_of(PAGE);
        match at % PAGE {
            0 => missing.is_some() && bytes.get(at..at + 4) == Some(b"LFR\x1a"),
            _ => page_end - at >= HEADER_BYTES && bytes[at..page_end].iter().any(|&byte| byte != 0),
        }
    });
    Answer::Prefix { last: missing_lsn.prev(), torn: visible || !behind.is_empty() }
}

/// Who wrote the log, and up to where the state file says that it was durable.
fn views(small: &Small) -> [Facts; 4] {
    [
        small.facts(Writer::Own, small.start.lsn),
        small.facts(Writer::Own, small.durable),
        small.facts(Writer::Other, small.start.lsn),
        small.facts(Writer::Other, small.durable),
    ]
}

/// Damages a fresh copy, and compares the answer with the documented one under every view.
fn check(small: &Small, what: &str, damage: impl Fn(&CrashDisk)) {
    for facts in views(small) {
        let disk = small.settled();
        damage(&disk);
        let expected = documented(small, &disk, facts);
        let before: Vec<_> = disk.paths().iter().map(|path| disk.bytes(path)).collect();
        let result = recover(&disk, facts);
        assert_eq!(answer(&result, small), expected, "{what}, {facts:?}");
        if result.is_err() {
            let after: Vec<_> = disk.paths().iter().map(|path| disk.bytes(path)).collect();
            assert!(before == after, "{what}: a refusal changes nothing");
        }
    }
}

fn edit(disk: &CrashDisk, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = disk.bytes(path);
    change(&mut bytes);
    disk.put(path, &bytes);
}

#[test]
fn the_small_log_is_sound() {
    let small = Small::build();
    for facts in views(&small) {
        let result = recover(&small.settled(), facts);
        assert_eq!(answer(&result, &small), Answer::Prefix { last: small.tip(), torn: false });
    }
    let kinds: std::collections::BTreeSet<Kind> =
        small.records.iter().map(|at| at.record.header.kind).collect();
    assert!(kinds.len() >= 5, "{kinds:?}");
    assert!(small.durable < small.tip(), "the last record is not durable");
}

/// W05: every bit of every header, of segments and of records.
#[test]
fn w05_every_bit_of_every_header() {
    let small = Small::build();
    for path in small.disk.paths() {
        for bit in 0..512 * 8 {
            check(&small, &format!("bit {bit} of {path}"), |disk| {
                edit(disk, &path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            });
        }
    }
    for at in &small.records {
        for bit in 0..HEADER_BYTES * 8 {
            let lsn = at.record.header.lsn;
            check(&small, &format!("bit {bit} of the header of LSN {lsn}"), |disk| {
                edit(disk, &at.path, |bytes| bytes[at.range.start + bit / 8] ^= 1 << (bit % 8));
            });
        }
    }
}

/// W05, W03: one bit of every byte, of payloads, padding, blank areas, stale records behind the tail, spare files.
#[test]
fn w05_every_byte() {
    let small = Small::build();
    for path in small.disk.paths() {
        for at in 0..SEGMENT_BYTES as usize {
            check(&small, &format!("byte {at} of {path}"), |disk| {
                edit(disk, &path, |bytes| bytes[at] ^= 1 << (at % 8));
            });
        }
    }
}

/// W01: a file that ends at any byte, as no power cut leaves it.
#[test]
fn w01_every_file_cut_short_at_every_byte() {
    let small = Small::build();
    for path in small.disk.paths() {
        for len in 0..SEGMENT_BYTES as usize {
            check(&small, &format!("{path} cut to {len}"), |disk| {
                edit(disk, &path, |bytes| bytes.truncate(len));
            });
        }
    }
}

/// W01: zeros from any byte on, as in a preallocated file.
#[test]
fn w01_every_file_blank_from_every_byte() {
    let small = Small::build();
    for path in small.disk.paths() {
        let used = small.files[&path].iter().rposition(|&byte| byte != 0).map_or(1, |last| last + 2);
        for from in 0..used {
            check(&small, &format!("{path} blank from {from}"), |disk| {
                edit(disk, &path, |bytes| bytes[from..].fill(0));
            });
        }
    }
}

/// W02, W10: each sector lost alone, with whole records behind it.
#[test]
fn w02_every_sector_lost() {
    let small = Small::build();
    for path in small.disk.paths() {
        for sector in 0..SEGMENT_BYTES as usize / 512 {
            for fill in [0, 0xff, 0xa5] {
                check(&small, &format!("sector {sector} of {path} filled with {fill}"), |disk| {
                    edit(disk, &path, |bytes| bytes[sector * 512..(sector + 1) * 512].fill(fill));
                });
            }
        }
    }
}

/// W01, W02: what a torn tail held never comes back: not at once, not when the log goes on over it.
#[test]
fn w02_nothing_behind_a_hole_comes_back() {
    let small = Small::build();
    for (index, hole) in small.records.iter().enumerate() {
        let lsn = hole.record.header.lsn;
        for byte in [0, 30, hole.range.len() - 1] {
            let disk = small.settled();
            edit(&disk, &hole.path, |bytes| bytes[hole.range.start + byte] ^= 0x40);
            let facts = small.facts(Writer::Other, small.start.lsn);
            let (mut log, report, records) = logs::open(disk.storage(), facts).expect("a torn tail");
            assert_eq!(records.len(), index);
            assert_eq!(report.torn.map(|torn| torn.lsn), Some(lsn));
            // The next opening begins; its first record may or may not reach the disk.
            logs::begin(&mut log);
            let begun = log.tip();
            drop(log);
            let mut random = Random(lsn.0 + 1);
            for disk in disk.outcomes(64, &mut random) {
                // The hole is mended: had it not been for the new incarnation, the old records would go on there.
                edit(&disk, &hole.path, |bytes| {
                    let header = Header::decode(Seed::of(logs::GROUP), &bytes[hole.range.start..]);
                    if header.map(|header| header.checksum) == Ok(hole.record.header.checksum) {
                        bytes[hole.range.start] = 0;
                    }
                });
                let facts = Facts { incarnation: Incarnation(3), ..facts };
                let (log, _, again) = logs::open(disk.storage(), facts).expect("a torn tail still");
                assert!(again.len() == index || (again.len() == index + 1 && log.tip() == begun));
                assert_eq!(again[..index], records);
            }
        }
    }
}

/// The answer to arbitrary damage: a prefix that holds everything that can be proved, or a refusal.
fn check_sanity(small: &Small, what: &str, disk: &CrashDisk, provable: Lsn) {
    for facts in views(small) {
        match recover(&disk.killed(), facts) {
            Ok((report, records)) => {
                let last = answer(&Ok((report, records)), small);
                let Answer::Prefix { last, .. } = last else { unreachable!("it was opened") };
                let proved = match facts.writer {
                    Writer::Own => facts.durable.max(provable),
                    Writer::Other => facts.durable,
                };
                assert!(last >= proved, "{what}: LSN {last} though {proved} was durable, {facts:?}");
            }
            Err(OpenError::Corrupt { lsn, path, .. }) => {
                assert!(lsn > small.start.lsn && lsn <= small.tip().next(), "{what}: {lsn}");
                assert!(path.starts_with(logs::DIR), "{what}: {path}");
            }
            Err(other) => panic!("{what}: {other}"),
        }
    }
}

/// The highest durable mark in a whole record at or behind `from` that is still where it was written.
fn provable(small: &Small, disk: &CrashDisk) -> Lsn {
    let whole = |at: &&At| {
        disk.bytes(&at.path).get(at.range.clone()) == Some(&small.disk.bytes(&at.path)[at.range.clone()])
    };
    small.records.iter().filter(whole).map(|at| at.record.header.durable).max().unwrap_or_default()
}

/// W03, W04: whole records, and whole pages, that the disk wrote to the wrong place; an old file in a new one's place.
#[test]
fn w04_misdirected_writes() {
    let small = Small::build();
    for from in &small.records {
        for to in &small.records {
            let disk = small.settled();
            let bytes = small.disk.bytes(&from.path)[from.range.clone()].to_vec();
            edit(&disk, &to.path, |there| {
                let len = bytes.len().min(there.len() - to.range.start);
                there[to.range.start..to.range.start + len].copy_from_slice(&bytes[..len]);
            });
            let what = format!("LSN {} over {}", from.record.header.lsn, to.record.header.lsn);
            check_sanity(&small, &what, &disk, provable(&small, &disk));
        }
    }
    let paths = small.disk.paths();
    let pages = |path: &str| small.disk.bytes(path).len() / PAGE;
    for from in &paths {
        for to in &paths {
            for (page, target) in (0..pages(from)).flat_map(|a| (0..pages(to)).map(move |b| (a, b))) {
                let disk = small.settled();
                let bytes = small.disk.bytes(from)[page * PAGE..(page + 1) * PAGE].to_vec();
                edit(&disk, to, |there| there[target * PAGE..(target + 1) * PAGE].copy_from_slice(&bytes));
                let what = format!("page {page} of {from} over page {target} of {to}");
                check_sanity(&small, &what, &disk, provable(&small, &disk));
            }
            let disk = small.settled();
            disk.put(to, &small.disk.bytes(from));
            check_sanity(&small, &format!("{from} over {to}"), &disk, provable(&small, &disk));
        }
    }
}

/// Several places damaged at once, at random.
#[test]
fn w05_random_damage() {
    let small = Small::build();
    let paths = small.disk.paths();
    let mut random = Random(0x5eed);
    for round in 0..3000 {
        let disk = small.settled();
        for _ in 0..1 + random.below(4) {
            let path = &paths[random.below(paths.len() as u64) as usize];
            edit(&disk, path, |bytes| {
                if bytes.is_empty() {
                    return;
                }
                let from = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[from] ^= 1 << random.below(8),
                    1 => {
                        let len = (random.below(700) as usize).min(bytes.len() - from);
                        bytes[from..from + len].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
                    }
                    _ => bytes.truncate(from),
                }
            });
        }
        check_sanity(&small, &format!("round {round}"), &disk, Lsn::ZERO);
    }
}

/// Puts a record with a valid checksum in place of the one at `at`.
fn forge(disk: &CrashDisk, at: &At, change: impl FnOnce(&mut Header)) -> Header {
    let mut header = at.record.header;
    change(&mut header);
    let mut bytes = [0; HEADER_BYTES];
    header.encode(Seed::of(logs::GROUP), &mut bytes);
    edit(disk, &at.path, |there| {
        there[at.range.start..at.range.start + HEADER_BYTES].copy_from_slice(&bytes)
    });
    header
}

/// W09: whole records that do not follow. In the middle that is corruption; none is ever chosen over another.
#[test]
fn w09_records_that_do_not_follow_are_refused() {
    let small = Small::build();
    type Change = fn(&mut Header);
    let changes: [(&str, Change); 7] = [
        ("the same LSN again", |header| header.lsn = header.lsn.prev()),
        ("a gap", |header| header.lsn = header.lsn.next()),
        ("going back", |header| header.lsn = Lsn(header.lsn.0 - 5)),
        ("another predecessor", |header| header.previous = Checksum(header.previous.0 ^ 1)),
        ("another epoch", |header| header.epoch = Epoch(2)),
        ("an older incarnation", |header| header.incarnation = Incarnation(0)),
        ("a newer incarnation", |header| header.incarnation = Incarnation(9)),
    ];
    for at in small.records.iter().skip(1) {
        for (what, change) in changes {
            let lsn = at.record.header.lsn;
            for facts in views(&small) {
                let disk = small.settled();
                forge(&disk, at, change);
                let result = recover(&disk, facts);
                let answer = answer(&result, &small);
                let must_be_there = match facts.writer {
                    Writer::Own => facts.durable.max(provable(&small, &disk)),
                    Writer::Other => facts.durable,
                };
                if must_be_there >= lsn {
                    assert!(
                        matches!(answer, Answer::Corrupt { lsn: found, .. } if found == lsn),
                        "{what}: {answer:?}"
                    );
                } else {
                    assert!(
                        matches!(answer, Answer::Prefix { last, .. } if last == lsn.prev()),
                        "{what}: {answer:?}"
                    );
                }
            }
        }
    }
}

/// W09: of two records with one LSN, both whole, the one that the next record names is the log's.
#[test]
fn w09_same_lsn_with_other_content() {
    let small = Small::build();
    for pair in small.records.windows(2) {
        let [at, next] = pair else { unreachable!("windows of two") };
        let disk = small.settled();
        forge(&disk, at, |header| header.time.0 += 1);
        // The forged record follows its predecessor, but the next one does not follow it.
        let facts = small.facts(Writer::Own, small.durable);
        let result = recover(&disk, facts);
        match result {
            Err(OpenError::Corrupt { lsn, .. }) => assert_eq!(lsn, next.record.header.lsn),
            Ok(_) => assert!(next.record.header.lsn > small.durable),
            Err(other) => panic!("{other}"),
        }
    }
}

/// W06: lengths that lie, under a valid checksum: bounded by the file, or refused as no writer writes them.
#[test]
fn w06_lengths_that_lie() {
    let small = Small::build();
    let writes = small.records.iter().filter(|at| at.record.header.kind == Kind::Write);
    for at in writes {
        for len in
            [0, 1, u32::MAX, i32::MAX as u32 + 1, 32 << 20, SEGMENT_BYTES as u32, SEGMENT_BYTES as u32 - 80]
        {
            let disk = small.settled();
            forge(&disk, at, |header| {
                header.payload_len = len;
                header.extent = Extent::new(0, u64::from(len));
            });
            check_sanity(&small, &format!("length {len}"), &disk, provable(&small, &disk));
        }
    }
}

fn batch(records: &[At], disk: &CrashDisk) -> Batch {
    let bytes: Vec<u8> =
        records.iter().flat_map(|at| disk.bytes(&at.path)[at.range.clone()].to_vec()).collect();
    let lsn = |at: Option<&At>| at.expect("a batch is not empty").record.header.lsn;
    Batch { first: lsn(records.first()), last: lsn(records.last()), bytes: vec![bytes.into()] }
}

/// W05, W09, R01: a batch that is damaged, or is not the next one, changes nothing at a replica.
#[test]
fn w09_a_batch_that_does_not_follow_changes_nothing() {
    let small = Small::build();
    let (start, rest) = small.records.split_at(4);
    let replica = CrashDisk::new();
    let facts = Facts { incarnation: Incarnation(1), ..small.facts(Writer::Other, small.start.lsn) };
    let (mut log, _, _) = logs::open(replica.storage(), facts).expect("a new log");
    let (appended, error) = log.append_batch(batch(start, &small.disk), &logs::history());
    assert!(error.is_none() && appended.len() == 4, "{error:?}");
    let tip = log.tip();
    let whole = batch(rest, &small.disk);
    let bytes = whole.bytes[0].clone();
    for byte in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[byte] ^= 1 << (byte % 8);
        let (appended, error) =
            log.append_batch(Batch { bytes: vec![damaged.into()], ..whole.clone() }, &logs::history());
        assert!(appended.is_empty(), "byte {byte}");
        assert!(matches!(error, Some(engine::log::Error::NotNext { .. })), "byte {byte}: {error:?}");
    }
    for cut in (0..bytes.len()).filter(|cut| rest.iter().all(|at| at.range.len() != *cut)) {
        let cut_off = Batch { bytes: vec![bytes.slice(..cut)], ..whole.clone() };
        let ends_with_a_record = ends(rest).contains(&cut);
        if cut > 0 && !ends_with_a_record {
            let (appended, error) = log.append_batch(cut_off, &logs::history());
            assert!(appended.is_empty() && error.is_some(), "cut at {cut}");
        }
    }
    for (from, to) in [(0, 2), (3, 5), (5, 7), (6, 8)] {
        let (appended, error) =
            log.append_batch(batch(&small.records[from..to], &small.disk), &logs::history());
        let expected = tip.lsn.next();
        assert!(appended.is_empty());
        assert!(
            matches!(&error, Some(engine::log::Error::NotNext { expected: at, stop: Stop::Break(Break::Lsn { .. }) }) if *at == expected),
            "records {from} to {to}: {error:?}"
        );
    }
    assert_eq!(log.tip(), tip);
    let (appended, error) = log.append_batch(whole, &logs::history());
    assert!(error.is_none() && appended.len() == rest.len(), "{error:?}");
    assert_eq!(log.tip().lsn, small.tip());
}

/// Where the records of a batch end in it.
fn ends(records: &[At]) -> Vec<usize> {
    let mut end = 0;
    records
        .iter()
        .map(|at| {
            end += at.range.len();
            end
        })
        .collect()
}

/// W24: each file gone, alone and with others.
#[test]
fn w24_missing_segments() {
    let small = Small::build();
    let paths = small.disk.paths();
    for set in 1..1 << paths.len() {
        check(&small, &format!("without files {set:b}"), |disk| {
            for (index, path) in paths.iter().enumerate() {
                if set & (1 << index) != 0 {
                    disk.erase(path);
                }
            }
        });
    }
}

/// W24: files that are not the log's are left alone; files that were never finished are removed.
#[test]
fn w24_unknown_and_unfinished_files() {
    let small = Small::build();
    let stranger = SegmentHeader {
        group: engine::types::GroupId([9; 16]),
        sequence: 99,
        epoch: Epoch(1),
        first: small.tip().next(),
        len: SEGMENT_BYTES,
        previous: small.records.last().expect("there are records").record.header.checksum,
    };
    let mut other_group = stranger.encode();
    other_group.resize(SEGMENT_BYTES as usize, 0);
    let alien: [(&str, Vec<u8>); 8] = [
        ("notes.txt", b"mine".to_vec()),
        ("00000009.seg.tmp", vec![0; 100]),
        ("9.seg", vec![1; 100]),
        ("4294967295.seg", vec![1; 100]),
        ("-0000001.seg", vec![1; 100]),
        ("0000001a.seg", vec![1; 100]),
        (".seg", Vec::new()),
        ("00000012.seg", other_group),
    ];
    let disk = small.settled();
    for (name, bytes) in &alien {
        disk.put(&format!("{}/{name}", logs::DIR), bytes);
    }
    disk.put(&logs::path(13), &[]);
    disk.put(&logs::path(14), &[0; 5000]);
    let (mut log, report, records) =
        logs::open(disk.storage(), small.facts(Writer::Own, small.durable)).expect("sound");
    assert_eq!((report.leftovers, report.unreadable, report.torn), (2, 0, None));
    assert_eq!(records.len(), small.records.len());
    // It goes on in files of its own.
    logs::begin(&mut log);
    for _ in 0..20 {
        logs::write(&mut log, 0, 1000);
    }
    logs::sync(&mut log);
    for (name, bytes) in &alien {
        assert_eq!(disk.bytes(&format!("{}/{name}", logs::DIR)), *bytes, "{name}");
    }
    assert!(!disk.paths().contains(&logs::path(13)) && !disk.paths().contains(&logs::path(14)));
    // The last number that a file may have is taken: an error, and the log stands.
    let disk = small.settled();
    disk.put(&logs::path(99_999_999), &vec![0; SEGMENT_BYTES as usize]);
    let (mut log, ..) = logs::open(disk.storage(), small.facts(Writer::Own, small.durable)).expect("sound");
    let make = log.begin_make(9).expect("one more is wanted");
    assert!(engine::log::make_spare(make).is_err());
}

/// The version of records behind ours.
const NEWER: u8 = engine::log::format::VERSION + 1;

/// W33: a newer version, where the program can tell that it is one, is named with its file, and nothing is changed.
#[test]
fn w33_newer_versions_are_named() {
    let small = Small::build();
    let seed = Seed::of(logs::GROUP);
    for at in &small.records {
        let disk = small.settled();
        edit(&disk, &at.path, |bytes| {
            let record = &mut bytes[at.range.clone()];
            record[4] = NEWER;
            let checksum = seed.checksum(&[&record[0..8], &record[12..HEADER_BYTES]]);
            record[8..12].copy_from_slice(&checksum.to_le_bytes());
        });
        let error = recover(&disk, small.facts(Writer::Own, small.durable)).expect_err("newer");
        assert!(matches!(&error, OpenError::Newer { path, version: NEWER } if *path == at.path), "{error}");
    }
    for path in small.disk.paths().iter().take(3) {
        let disk = small.settled();
        edit(&disk, path, |bytes| {
            bytes[8] = 2;
            let checksum = seed.checksum(&[&bytes[..508]]);
            bytes[508..512].copy_from_slice(&checksum.to_le_bytes());
        });
        let error = recover(&disk, small.facts(Writer::Own, small.durable)).expect_err("newer");
        assert!(matches!(&error, OpenError::Newer { path: named, version: 2 } if named == path), "{error}");
        assert!(error.to_string().contains("newer than this program understands"), "{error}");
    }
}

/// W07 on a whole log: files of zeros and of ones hold nothing.
#[test]
fn w07_blank_files_hold_nothing() {
    for fill in [0, 0xff] {
        let disk = CrashDisk::new();
        disk.storage().create_dir(logs::DIR).expect("a folder");
        disk.put(&logs::path(1), &vec![fill; SEGMENT_BYTES as usize]);
        let (log, report, records) =
            logs::open(disk.storage(), Facts::new(Writer::Own)).expect("an empty log");
        assert_eq!((records.len(), log.tip().lsn, report.torn), (0, Lsn::ZERO, None));
    }
}

/// The message tells what, where, why and what to do.
#[test]
fn corruption_is_told_in_full() {
    let small = Small::build();
    let at = &small.records[2];
    let disk = small.settled();
    edit(&disk, &at.path, |bytes| bytes[at.range.start + HEADER_BYTES] ^= 1);
    let error = recover(&disk, small.facts(Writer::Own, small.start.lsn)).expect_err("corrupt");
    let OpenError::Corrupt { lsn, offset, stop, .. } = &error else { panic!("{error}") };
    assert_eq!((*lsn, *offset), (at.record.header.lsn, at.range.start as u64));
    assert_eq!(*stop, Stop::Fault(Fault::PayloadChecksum));
    let text = error.to_string();
    for part in [&at.path, &format!("LSN {lsn}"), &format!("byte {offset}"), "fail over to a replica"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(SEGMENT_HEADER_BYTES % ALIGN, 0);
}
