//! Snapshots: they are whole or not there, share what is the same, and say when they are damaged.

mod common;

use common::crash::CrashDisk;
use common::{Random, TempDir};
use engine::faulty::{Effect, Errno, Fault, Faulty, Lasting};
use engine::io::Storage;
use engine::snapshots::create::{Store, Taken};
use engine::snapshots::diff::diff;
use engine::snapshots::manifest::About;
use engine::snapshots::read::{Snapshots, Usage};
use engine::snapshots::{BLOCK, Error};
use engine::types::{Epoch, Extent, Lsn, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Outcomes of a power cut that are looked at.
const OUTCOMES: usize = 24;

/// The last block is not a whole one.
const DATA_BYTES: u64 = 3 * BLOCK + 4096;
const WAL_BYTES: u64 = 2 * BLOCK;

/// A group's volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Disks(BTreeMap<&'static str, Vec<u8>>);

impl Disks {
    fn new() -> Disks {
        let blank = |bytes: u64| vec![0; bytes as usize];
        Disks(BTreeMap::from([("data", blank(DATA_BYTES)), ("wal", blank(WAL_BYTES))]))
    }

    /// Fills a range.
    fn fill(&self, volume: &'static str, at: u64, len: u64, byte: u8) -> Disks {
        let mut disks = self.clone();
        let bytes = disks.0.get_mut(volume).expect("it is there");
        bytes[at as usize..(at + len) as usize].fill(byte);
        disks
    }
}

fn about(name: &str) -> About {
    let (made, time) = (Timestamp(2), Timestamp(1));
    let branch = Some((Epoch(1), Lsn(5)));
    let (group, point) = ("g".to_owned(), "latest".to_owned());
    About { name: name.to_owned(), made, group, lsn: Lsn(7), branch, time, point }
}

fn create(storage: Arc<dyn Storage>, name: &str, disks: &Disks) -> Result<Taken, Error> {
    let mut creation = Store::open(storage)?.create(about(name))?;
    for (volume, bytes) in &disks.0 {
        creation.volume(volume, bytes.len() as u64)?;
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate() {
            creation.write(number as u64, block)?;
        }
    }
    creation.finish()
}

fn delete(storage: Arc<dyn Storage>, name: &str) -> Result<u64, Error> {
    Store::open(storage)?.delete(name)
}

/// All that a snapshot holds, read through its checks.
fn read(snapshots: &Snapshots, name: &str) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut disks = BTreeMap::new();
    let mut block = vec![0; BLOCK as usize];
    for volume in &snapshots.find(name)?.volumes {
        let reader = snapshots.reader(name, &volume.name)?;
        let mut bytes = vec![0; reader.size() as usize];
        for entry in reader.entries() {
            let part = reader.read(entry, &mut block)?;
            bytes[u64::from(entry.block) as usize * BLOCK as usize..][..part.len()].copy_from_slice(part);
        }
        disks.insert(volume.name.clone(), bytes);
    }
    Ok(disks)
}

fn check(storage: Arc<dyn Storage>, expected: &BTreeMap<String, Disks>, what: &str) {
    let snapshots = Snapshots::open(storage).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(snapshots.damaged(), [], "{what}");
    let names: Vec<&str> = snapshots.all().iter().map(|manifest| manifest.about.name.as_str()).collect();
    assert_eq!(names, expected.keys().map(String::as_str).collect::<Vec<_>>(), "{what}");
    for (name, disks) in expected {
        let found = read(&snapshots, name).unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        let found: BTreeMap<&str, Vec<u8>> =
            found.iter().map(|(volume, bytes)| (volume.as_str(), bytes.clone())).collect();
        assert!(found == disks.0, "{what}: {name}");
    }
}

fn states() -> (Disks, Disks, Disks) {
    let first = Disks::new().fill("data", 0, 2 * BLOCK, 1).fill("wal", BLOCK, 512, 2);
    let second = first.fill("data", BLOCK, 512, 3).fill("data", 3 * BLOCK, 4096, 4);
    let third = second.fill("data", 0, BLOCK, 0).fill("wal", 0, 1, 5);
    (first, second, third)
}

/// What is done to the store, step by step, until one fails: each step's snapshots before and after it.
fn story(storage: &Arc<dyn Storage>) -> Vec<BTreeMap<String, Disks>> {
    let (first, second, third) = states();
    let mut now = BTreeMap::new();
    let mut after = vec![now.clone()];
    let steps: [(&str, Option<&Disks>); 5] =
        [("a", Some(&first)), ("b", Some(&second)), ("a", None), ("c", Some(&third)), ("b", None)];
    for (name, disks) in steps {
        let done = match disks {
            Some(disks) => create(storage.clone(), name, disks).map(drop),
            None => delete(storage.clone(), name).map(drop),
        };
        match disks {
            Some(disks) => now.insert(name.to_owned(), disks.clone()),
            None => now.remove(name),
        };
        after.push(now.clone());
        if done.is_err() {
            return after;
        }
    }
    // Nothing was under way.
    after.push(now);
    after
}

/// Slots of the pool that hold anything.
fn slots_in_use(disk: &CrashDisk) -> u64 {
    let pool = disk.bytes("snapshots/pool");
    pool.chunks(BLOCK as usize).filter(|slot| slot.iter().any(|byte| *byte != 0)).count() as u64
}

/// After a cut at any call, whatever becomes of what was not synced: all that was promised is there, whole; what was under
/// way is whole or not there; the next who changes the store finds no slot lost and none used twice.
#[test]
fn a_power_cut_at_any_moment_leaves_each_snapshot_whole_or_absent() {
    let mut random = Random(0xfeed);
    let (mut calls, mut cuts) = (0, 0);
    loop {
        let disk = CrashDisk::new();
        disk.cut_after(calls);
        let after = story(&disk.storage());
        let is_done = !disk.is_cut();
        let [.., before, behind] = &after[..] else { panic!("a story has states") };
        let mut left = disk.outcomes(OUTCOMES, &mut random);
        left.push(disk.killed());
        for (number, left) in left.into_iter().enumerate() {
            let what = format!("cut after {calls} calls, outcome {number}");
            let found = Snapshots::open(left.storage()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let names = found.all().iter().map(|manifest| &manifest.about.name);
            let expected = if behind.keys().eq(names) { behind } else { before };
            check(left.storage(), expected, &what);
            // Life goes on, on what was found.
            let (_, _, third) = states();
            create(left.storage(), "z", &third).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut expected = expected.clone();
            expected.insert("z".to_owned(), third);
            check(left.storage(), &expected, &what);
            let (_, total) =
                Snapshots::open(left.storage()).and_then(|all| all.usage()).expect("it is sound");
            assert_eq!(slots_in_use(&left) * BLOCK, total, "{what}: slots are lost");
            // And is itself durable.
            let after_cut = left.outcomes(1, &mut random).remove(0);
            check(after_cut.storage(), &expected, &what);
            cuts += 1;
        }
        if is_done {
            break;
        }
        calls += 1;
    }
    assert!(cuts > 200, "only {cuts} cuts in {calls} calls");
}

/// A sync that fails once is an error, and the promise is not given; what was promised before is whole.
#[test]
fn a_failed_sync_fails_the_snapshot_and_no_other() {
    let (first, second, _) = states();
    for nth in 1..=4 {
        let disk = CrashDisk::new();
        create(disk.storage(), "a", &first).expect("the disk is sound");
        disk.fail_sync(nth);
        let done = create(disk.storage(), "b", &second);
        assert_eq!(done.is_err(), disk.has_failed_sync(), "sync {nth}");
        for left in disk.outcomes(OUTCOMES, &mut Random(nth)) {
            let snapshots = Snapshots::open(left.storage()).expect("the disk is sound");
            let found = read(&snapshots, "a").expect("it was promised");
            assert_eq!(found["data"], first.0["data"], "sync {nth}");
            match read(&snapshots, "b") {
                Ok(found) => assert_eq!(found["data"], second.0["data"], "sync {nth}"),
                Err(error) => {
                    assert!(matches!(error, Error::Unknown(_)) && done.is_err(), "sync {nth}: {error}")
                }
            }
        }
    }
}

/// Each call in turn fails, once or from then on, half done or done: that is an error, what was promised is whole, nothing is
/// left of what failed once the disk is mended, and no file is synced again after its sync failed.
#[test]
fn an_error_at_any_call_fails_the_snapshot_and_leaves_nothing_of_it() {
    let (first, second, third) = states();
    for (errno, effect, lasting) in [
        (Errno::NoSpace, Effect::Nothing, Lasting::UntilDisarmed),
        (Errno::NoSpace, Effect::Half, Lasting::Once),
        (Errno::Io, Effect::Nothing, Lasting::Once),
        (Errno::Io, Effect::Whole, Lasting::Once),
        (Errno::ReadOnly, Effect::Nothing, Lasting::UntilDisarmed),
    ] {
        for nth in 1.. {
            let what = format!("{errno:?}, {effect:?}, {lasting:?}, call {nth}");
            let disk = CrashDisk::new();
            create(disk.storage(), "a", &first).expect("the disk is sound");
            let faulty = Faulty::new(disk.storage());
            faulty.arm(Fault { call: None, nth, errno, effect, lasting });
            let made = create(Arc::new(faulty.clone()), "b", &second);
            let fired = faulty.fired() > 0;
            assert_eq!(faulty.resyncs(), 0, "{what}");
            // A block of the snapshot before that cannot be read is written anew: that fails nothing.
            let mut expected = BTreeMap::from([("a".to_owned(), first.clone())]);
            if made.is_ok() {
                expected.insert("b".to_owned(), second.clone());
            }
            let disk = disk.killed();
            create(disk.storage(), "z", &third).unwrap_or_else(|error| panic!("{what}: {error}"));
            expected.insert("z".to_owned(), third.clone());
            let found = Snapshots::open(disk.storage()).expect("the disk is sound");
            let is_kept = made.is_err() && lasting == Lasting::UntilDisarmed && found.find("b").is_ok();
            if is_kept {
                // Nor could it be taken away: it is whole, then.
                expected.insert("b".to_owned(), second.clone());
            }
            check(disk.storage(), &expected, &what);
            let (_, total) =
                Snapshots::open(disk.storage()).and_then(|all| all.usage()).expect("it is sound");
            assert_eq!(slots_in_use(&disk) * BLOCK, total, "{what}: slots are lost");
            if !fired {
                assert!(made.is_ok() && nth > 20, "{what}: {made:?}");
                break;
            }
        }
    }
}

#[test]
fn unchanged_blocks_are_shared_and_used_bytes_add_up() {
    let folder = TempDir::new();
    let (first, second, third) = states();
    let made = create(folder.storage(), "a", &first).expect("there is room");
    assert_eq!(made, Taken { data_bytes: 3 * BLOCK, new_bytes: 3 * BLOCK });
    let made = create(folder.storage(), "b", &second).expect("there is room");
    assert_eq!(made, Taken { data_bytes: 4 * BLOCK, new_bytes: 2 * BLOCK });
    let usage = |name: &str| {
        let snapshots = Snapshots::open(folder.storage()).expect("it is sound");
        let (usage, total) = snapshots.usage().expect("it is sound");
        let index = snapshots.all().iter().position(|manifest| manifest.about.name == name);
        (usage[index.expect("it is there")].expect("it is sound"), total)
    };
    assert_eq!(usage("a"), (Usage { used_bytes: 3 * BLOCK, own_bytes: BLOCK }, 5 * BLOCK));
    assert_eq!(usage("b"), (Usage { used_bytes: 4 * BLOCK, own_bytes: 2 * BLOCK }, 5 * BLOCK));
    assert_eq!(delete(folder.storage(), "a").expect("it is there"), BLOCK, "what it alone had");
    assert_eq!(usage("b"), (Usage { used_bytes: 4 * BLOCK, own_bytes: 4 * BLOCK }, 4 * BLOCK));
    create(folder.storage(), "c", &third).expect("there is room");
    let expected = BTreeMap::from([("b".to_owned(), second), ("c".to_owned(), third)]);
    check(folder.storage(), &expected, "after a deletion");
    let pool = std::fs::metadata(folder.0.join("snapshots/pool")).expect("it is there");
    assert_eq!(pool.len(), 5 * BLOCK, "the freed slot was used again");
}

#[test]
fn differences_are_told_by_the_manifests() {
    let folder = TempDir::new();
    let (first, second, _) = states();
    create(folder.storage(), "a", &first).expect("there is room");
    create(folder.storage(), "b", &second).expect("there is room");
    let snapshots = Snapshots::open(folder.storage()).expect("it is sound");
    let (a, b) = (snapshots.find("a").expect("it is there"), snapshots.find("b").expect("it is there"));
    let changes = diff(a, b).expect("they are sound");
    let expected = vec![Extent::new(BLOCK, BLOCK), Extent::new(3 * BLOCK, 4096)];
    assert_eq!((changes[0].name.as_str(), &changes[0].ranges), ("data", &expected));
    assert_eq!((changes[1].name.as_str(), &changes[1].ranges), ("wal", &Vec::new()));
    assert_eq!(diff(b, a).expect("they are sound")[0].ranges, expected, "the same from the other side");
}

/// The damage is named; a newer snapshot does not take it over; the others are as they were.
#[test]
fn a_rotten_block_is_named_and_not_handed_on() {
    let disk = CrashDisk::new();
    let (first, ..) = states();
    create(disk.storage(), "a", &first).expect("there is room");
    // The second slot: the second block of `data`.
    disk.rot("snapshots/pool", BLOCK as usize + 77, 1);
    let snapshots = Snapshots::open(disk.storage()).expect("the manifests are sound");
    match read(&snapshots, "a") {
        Err(Error::Rotten { snapshot, volume, offset }) => {
            assert_eq!((snapshot.as_str(), volume.as_str(), offset), ("a", "data", BLOCK));
        }
        other => panic!("{other:?}"),
    }
    let made = create(disk.storage(), "b", &first).expect("there is room");
    assert_eq!(made.new_bytes, BLOCK, "what is rotten is written anew, the rest is shared");
    let snapshots = Snapshots::open(disk.storage()).expect("the manifests are sound");
    assert_eq!(read(&snapshots, "b").expect("it is whole")["data"], first.0["data"]);
}

/// Nobody knows which slots it had: none is used again until it is deleted, by the name of its file.
#[test]
fn a_damaged_manifest_frees_nothing_until_it_is_deleted() {
    for at in [3, 9, 511, 515] {
        let disk = CrashDisk::new();
        let (first, second, third) = states();
        create(disk.storage(), "a", &first).expect("there is room");
        create(disk.storage(), "b", &second).expect("there is room");
        disk.rot("snapshots/manifest-00000001", at, 1);
        let before = disk.bytes("snapshots/pool");
        let mut store = Store::open(disk.storage()).expect("damage does not close the store");
        assert_eq!(store.damaged()[0].file_name, "manifest-00000001", "byte {at}");
        assert_eq!(store.delete("b").expect("it is there"), 0, "byte {at}");
        drop(store);
        create(disk.storage(), "c", &third).expect("there is room");
        assert_eq!(disk.bytes("snapshots/pool")[..before.len()], before, "byte {at}: no slot was touched");
        assert!(delete(disk.storage(), "manifest-00000001").expect("it is there") > 0, "byte {at}");
        check(disk.storage(), &BTreeMap::from([("c".to_owned(), third)]), "after the deletion");
        let (_, total) = Snapshots::open(disk.storage()).and_then(|all| all.usage()).expect("it is sound");
        assert_eq!(slots_in_use(&disk) * BLOCK, total, "byte {at}: all else was given back");
    }
}

#[test]
fn another_version_is_left_alone() {
    let disk = CrashDisk::new();
    let (first, ..) = states();
    create(disk.storage(), "a", &first).expect("there is room");
    let path = "snapshots/manifest-00000001";
    let mut bytes = disk.bytes(path);
    bytes[8] = 2;
    let checksum = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&checksum.to_le_bytes());
    disk.put(path, &bytes);
    let pool = disk.bytes("snapshots/pool");
    let snapshots = Snapshots::open(disk.storage()).expect("the others can be read");
    assert!(snapshots.damaged()[0].why.contains("format version 2"), "{:?}", snapshots.damaged());
    create(disk.storage(), "b", &first).expect("there is room");
    assert_eq!(disk.bytes(path), bytes);
    assert_eq!(disk.bytes("snapshots/pool")[..pool.len()], pool);
}

#[test]
fn a_snapshot_that_is_deleted_under_its_reader_is_an_error_and_no_wrong_bytes() {
    let folder = TempDir::new();
    let (first, _, third) = states();
    create(folder.storage(), "a", &first).expect("there is room");
    let snapshots = Snapshots::open(folder.storage()).expect("it is sound");
    delete(folder.storage(), "a").expect("it is there");
    // The file has the old number, the slots have other bytes.
    create(folder.storage(), "b", &third).expect("there is room");
    assert!(matches!(read(&snapshots, "a"), Err(Error::Gone(name)) if name == "a"));
}

#[test]
fn one_at_a_time_changes_the_store_and_names_are_not_taken_twice() {
    let folder = TempDir::new();
    let (first, ..) = states();
    let store = Store::open(folder.storage()).expect("it can be made");
    assert!(matches!(Store::open(folder.storage()), Err(Error::Held)));
    drop(store);
    create(folder.storage(), "a", &first).expect("there is room");
    assert!(matches!(create(folder.storage(), "a", &first), Err(Error::Taken(_))));
    assert!(matches!(create(folder.storage(), "a/b", &first), Err(Error::Name(_))));
    assert!(matches!(delete(folder.storage(), "b"), Err(Error::Unknown(_))));
    check(folder.storage(), &BTreeMap::from([("a".to_owned(), first)]), "after the refusals");
}

/// What a snapshot that was given up has written is given back at once.
#[test]
fn a_snapshot_that_is_given_up_leaves_nothing() {
    let disk = CrashDisk::new();
    let (first, second, _) = states();
    create(disk.storage(), "a", &first).expect("there is room");
    let used = slots_in_use(&disk);
    let mut creation =
        Store::open(disk.storage()).and_then(|store| store.create(about("b"))).expect("it is free");
    creation.volume("data", DATA_BYTES).expect("it is sound");
    creation.write(1, &second.0["data"][BLOCK as usize..2 * BLOCK as usize]).expect("there is room");
    assert_eq!(slots_in_use(&disk), used + 1);
    creation.abandon().expect("the disk is sound");
    assert_eq!(slots_in_use(&disk), used);
    check(disk.storage(), &BTreeMap::from([("a".to_owned(), first)]), "given up");
    assert!(!disk.paths().contains(&"snapshots/manifest-00000002".to_owned()));
}
