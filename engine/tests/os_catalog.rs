//! The catalog: a projection that may be lost at any time. (DESIGN.md, section 7; FAILURES.md: W30.)
#![cfg(feature = "os")]

use engine::catalog::{
    Catalog, Cursor, Entry, Error, MAX_MARKS_PER_CALL, MAX_NAME_BYTES, Mark, MarkKind, MemoryCatalog,
    Projector, SAMPLE_EVERY_NS, Sample,
};
use engine::os::catalog::{DiskCatalog, Found, open};
use engine::types::{Checksum, Epoch, Lsn, NodeId, Position, Reign, Timestamp};
use std::path::{Path, PathBuf};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("landfall-catalog-{}-{name}", std::process::id()));
        // A run that was killed may have had the same process number.
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir(&path).expect("a temporary folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// xorshift64*.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// A log, as far as the catalog looks at it.
#[derive(Clone, Debug)]
enum Kind {
    Write,
    Mark(Mark),
    Reign(Reign),
}

type Feed = Vec<(Lsn, Timestamp, Kind)>;

/// Some records over some minutes, with a clock that is set back and forth.
fn feed(draw: &mut Draw, records: u64) -> Feed {
    let mut time = 1_700_000_000_000_000_000;
    let record = |lsn| {
        time = match draw.below(50) {
            0 => time - draw.below(20) * SAMPLE_EVERY_NS,
            1 => time + draw.below(20) * SAMPLE_EVERY_NS,
            2 => time - draw.below(SAMPLE_EVERY_NS),
            _ => time + draw.below(SAMPLE_EVERY_NS / 4),
        };
        let kind = match draw.below(20) {
            0 | 1 => {
                let kind = if draw.below(2) == 0 { MarkKind::Bookmark } else { MarkKind::Application };
                Kind::Mark(Mark { time: Timestamp(time), kind, name: format!("mark {}", draw.below(9)) })
            }
            2 => Kind::Reign(reign(lsn, lsn - 1)),
            _ => Kind::Write,
        };
        (Lsn(lsn), Timestamp(time), kind)
    };
    (1..=records).map(record).collect()
}

fn reign(epoch: u64, branch: u64) -> Reign {
    let branch = Position { epoch: Epoch(epoch - 1), lsn: Lsn(branch), checksum: Checksum(7) };
    Reign { epoch: Epoch(epoch), branch, node: NodeId([3; 16]) }
}

/// Projects what the catalog lacks of `feed`.
fn catch_up(catalog: &mut dyn Catalog, feed: &Feed) {
    let last = feed.last().map_or(Lsn::ZERO, |record| record.0);
    let mut projector = Projector::open(catalog, last).expect("opened");
    let next = projector.next();
    for (lsn, time, kind) in feed.iter().filter(|record| record.0 >= next) {
        let entry = match kind {
            Kind::Write => Entry::Other,
            Kind::Mark(mark) => Entry::Mark(mark),
            Kind::Reign(reign) => Entry::Reign(reign),
        };
        projector.project(catalog, *lsn, *time, entry).expect("projected");
    }
}

/// Everything in a catalog but how far it has come.
fn content(catalog: &dyn Catalog) -> String {
    let marks = catalog.marks(Lsn(0)..=Lsn(u64::MAX)).expect("marks");
    let (reigns, cursors) = (catalog.reigns().expect("reigns"), catalog.cursors().expect("cursors"));
    let mut samples = Vec::new();
    let mut at = catalog.lsn_at(Timestamp(0)).expect("bounds").after;
    while let Some(sample) = at {
        samples.push(sample);
        at = catalog.lsn_at(sample.time).expect("bounds").after;
    }
    assert_eq!(samples.last().copied(), catalog.newest_sample().expect("sample"));
    format!("{marks:#?} {samples:#?} {reigns:#?} {cursors:#?}")
}

fn reference(feed: &Feed) -> MemoryCatalog {
    let mut catalog = MemoryCatalog::default();
    catch_up(&mut catalog, feed);
    catalog
}

fn copy(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).ok();
    std::fs::create_dir(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("known").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("copied")),
        }
    }
}

/// The files of a catalog.
fn files(of: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(of).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn the_two_catalogs_do_the_same() {
    let folder = Folder::new("same");
    let mut draw = Draw(1);
    let mut memory = MemoryCatalog::default();
    let mut disk: DiskCatalog = open(&folder.0.join("catalog")).expect("opened").0;
    for round in 0..4000 {
        let lsn = Lsn(draw.below(60));
        let time = Timestamp(1 + draw.below(40));
        let node = NodeId([draw.below(3) as u8; 16]);
        let mark = Mark { time, kind: MarkKind::Bookmark, name: "n".repeat(draw.below(256) as usize) };
        let acknowledged = Position { epoch: Epoch(1), lsn, checksum: Checksum(lsn.0 as u32) };
        let action = draw.below(400);
        for catalog in [&mut memory as &mut dyn Catalog, &mut disk] {
            match action {
                0..100 => catalog.put_mark(lsn, &mark),
                100..250 => catalog.put_sample(Sample { time, lsn }),
                250..280 => catalog.put_reign(&reign(1 + time.0, lsn.0)),
                280..300 => catalog.put_cursor(node, &Cursor { acknowledged, time }),
                300..340 => catalog.set_projected_through(lsn),
                340..360 => catalog.truncate_after(lsn),
                360..395 => catalog.forget_before(lsn),
                395 | 396 => catalog.clear(),
                _ => catalog.flush(),
            }
            .expect("done");
        }
        if round % 500 == 499 {
            drop(disk);
            let (again, found) = open(&folder.0.join("catalog")).expect("opened");
            assert!(matches!(found, Found::Whole), "{found:?}");
            disk = again;
        }
        assert_eq!(content(&memory), content(&disk), "round {round}, action {action}");
        assert_eq!(memory.projected_through().expect("read"), disk.projected_through().expect("read"));
        let range = Lsn(draw.below(60))..=Lsn(draw.below(60));
        assert_eq!(memory.marks(range.clone()).expect("read"), disk.marks(range).expect("read"));
        let time = Timestamp(1 + draw.below(40));
        assert_eq!(memory.lsn_at(time).expect("read"), disk.lsn_at(time).expect("read"));
    }
}

/// W30: wherever the clock was set, a time finds the newest record that is not later.
#[test]
fn w30_a_time_is_found_between_its_bounds() {
    for seed in 1..200 {
        let mut draw = Draw(seed);
        let feed = feed(&mut draw, 400);
        let catalog = reference(&feed);
        check_times(&catalog, &feed, &mut draw);
        // Close bounds, where nothing was dropped: few records are left to be looked at.
        let first = feed.iter().map(|record| record.1).min().expect("records");
        assert!(catalog.lsn_at(first).expect("read").at_or_before.is_some());
    }
}

fn check_times(catalog: &dyn Catalog, feed: &Feed, draw: &mut Draw) {
    for _ in 0..50 {
        let near = feed[draw.below(feed.len() as u64) as usize].1;
        let time = Timestamp(near.0 - SAMPLE_EVERY_NS + draw.below(2 * SAMPLE_EVERY_NS));
        let newest = feed.iter().rev().find(|record| record.1 <= time).map(|record| record.0);
        let bounds = catalog.lsn_at(time).expect("read");
        match newest {
            None => assert_eq!(bounds.at_or_before, None),
            Some(newest) => {
                let from =
                    bounds.at_or_before.is_none_or(|sample| sample.lsn <= newest && sample.time <= time);
                let to = bounds.after.is_none_or(|after| newest < after.lsn && time < after.time);
                assert!(from && to, "{bounds:?} {newest:?}");
            }
        }
    }
}

#[test]
fn a_deleted_catalog_is_projected_anew_and_is_the_same() {
    let folder = Folder::new("deleted");
    let path = folder.0.join("catalog");
    let feed = feed(&mut Draw(5), 2000);
    let (mut catalog, found) = open(&path).expect("opened");
    assert!(matches!(found, Found::Absent));
    // In two goes, as a node does that is stopped in between.
    catch_up(&mut catalog, &feed[..700].to_vec());
    catalog.flush().expect("flushed");
    drop(catalog);
    let (mut catalog, found) = open(&path).expect("opened");
    assert!(matches!(found, Found::Whole));
    assert!(catalog.projected_through().expect("read") > Lsn(600));
    catch_up(&mut catalog, &feed);
    let before = content(&catalog);
    assert_eq!(before, content(&reference(&feed)));
    drop(catalog);
    std::fs::remove_dir_all(&path).expect("deleted");
    let (mut catalog, found) = open(&path).expect("opened");
    assert!(matches!(found, Found::Absent));
    assert_eq!(catalog.projected_through().expect("read"), Lsn::ZERO);
    catch_up(&mut catalog, &feed);
    assert_eq!(content(&catalog), before);
}

#[test]
fn what_a_lost_tail_left_behind_is_dropped() {
    for seed in 1..50 {
        let mut draw = Draw(seed);
        let whole = feed(&mut draw, 500);
        let mut catalog = reference(&whole);
        // The log lost its end at a power cut, and then went on with other records.
        let kept = 100 + draw.below(400) as usize;
        let mut log = whole[..kept].to_vec();
        for with_more in [false, true] {
            if with_more {
                let more = feed(&mut draw, 300).into_iter();
                log.extend(more.map(|(lsn, time, kind)| (Lsn(lsn.0 + kept as u64), time, kind)));
                log.iter_mut().skip(kept).filter(|record| matches!(record.2, Kind::Reign(_))).for_each(
                    |record| {
                        record.2 = Kind::Reign(reign(record.0.0, record.0.0 - 1));
                    },
                );
            }
            catch_up(&mut catalog, &log);
            let expected = reference(&log);
            let all = Lsn(0)..=Lsn(u64::MAX);
            assert_eq!(catalog.marks(all.clone()).expect("read"), expected.marks(all).expect("read"));
            assert_eq!(catalog.reigns().expect("read"), expected.reigns().expect("read"));
            check_times(&catalog, &log, &mut draw);
        }
    }
}

/// The state of the folder at any moment of a projection is what a killed process leaves.
#[test]
fn a_killed_process_leaves_a_catalog_that_catches_up() {
    let folder = Folder::new("killed");
    let (path, left) = (folder.0.join("catalog"), folder.0.join("left"));
    let feed = feed(&mut Draw(7), 1500);
    let (mut catalog, _) = open(&path).expect("opened");
    let expected = content(&reference(&feed));
    for upto in (50..1500).step_by(50) {
        catch_up(&mut catalog, &feed[..upto].to_vec());
        if upto % 200 == 0 {
            catalog.flush().expect("flushed");
        }
        copy(&path, &left);
        let (mut again, _) = open(&left).expect("opened");
        catch_up(&mut again, &feed);
        assert_eq!(content(&again), expected);
    }
}

/// Every file cut short, flipped, emptied, overwritten, or gone: no panic comes through, and after catching up the
/// catalog is what it should be.
#[test]
fn a_damaged_catalog_is_made_anew() {
    let folder = Folder::new("damaged");
    let (path, hurt) = (folder.0.join("catalog"), folder.0.join("hurt"));
    let feed = feed(&mut Draw(8), 1000);
    let (mut catalog, _) = open(&path).expect("opened");
    catch_up(&mut catalog, &feed);
    catalog.flush().expect("flushed");
    drop(catalog);
    let expected = content(&reference(&feed));
    let mut draw = Draw(9);
    let mut unusable = 0;
    for file in files(&path) {
        let name = file.strip_prefix(&path).expect("inside");
        let bytes = std::fs::read(&file).expect("read");
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1) as u64;
        for round in 0..60 {
            copy(&path, &hurt);
            let target = hurt.join(name);
            let mut bytes = bytes.clone();
            match round {
                0 => std::fs::remove_file(&target).expect("removed"),
                1 => std::fs::write(&target, b"").expect("written"),
                2 => std::fs::write(&target, [0xff; 9000]).expect("written"),
                3..20 if used > 0 => {
                    bytes.truncate(draw.below(used) as usize);
                    std::fs::write(&target, bytes).expect("written");
                }
                _ if used > 0 => {
                    let at = draw.below(used) as usize;
                    bytes[at] ^= 1 << draw.below(8);
                    std::fs::write(&target, bytes).expect("written");
                }
                _ => {}
            }
            let (mut catalog, found) = open(&hurt).expect("opened");
            unusable += usize::from(matches!(found, Found::Unusable(_)));
            catch_up(&mut catalog, &feed);
            assert_eq!(content(&catalog), expected, "{name:?}, round {round}: {found:?}");
        }
    }
    // Most flips hit bytes that sled does not use any more; enough do not.
    assert!(unusable >= 20, "{unusable}");
    // A file in the place of the folder.
    std::fs::remove_dir_all(&hurt).expect("removed");
    std::fs::write(&hurt, b"something else").expect("written");
    let (mut catalog, found) = open(&hurt).expect("opened");
    assert!(matches!(found, Found::Unusable(_)));
    catch_up(&mut catalog, &feed);
    assert_eq!(content(&catalog), expected);
}

#[test]
fn limits_are_kept() {
    let folder = Folder::new("limits");
    let (mut disk, _) = open(&folder.0.join("catalog")).expect("opened");
    let mut memory = MemoryCatalog::default();
    for catalog in [&mut memory as &mut dyn Catalog, &mut disk] {
        let mut mark = Mark { time: Timestamp(1), kind: MarkKind::Bookmark, name: "é".repeat(128) };
        assert!(matches!(catalog.put_mark(Lsn(1), &mark), Err(Error::NameTooLong(256))));
        mark.name.truncate(254);
        mark.name.push('x');
        assert_eq!(mark.name.len(), MAX_NAME_BYTES);
        for lsn in 1..=MAX_MARKS_PER_CALL as u64 + 1 {
            catalog.put_mark(Lsn(lsn), &mark).expect("kept");
        }
        let marks = catalog.marks(Lsn(1)..=Lsn(u64::MAX)).expect("read");
        assert_eq!(marks.len(), MAX_MARKS_PER_CALL);
        let rest = catalog.marks(marks[MAX_MARKS_PER_CALL - 1].0.next()..=Lsn(u64::MAX)).expect("read");
        assert_eq!(rest, [(Lsn(MAX_MARKS_PER_CALL as u64 + 1), mark)]);
    }
}
