//! The crash model of `engine::io`, point by point.

use super::*;
use engine::io::{File, OpenMode, Storage};
use std::io::{ErrorKind, IoSlice};

fn disk() -> (Disk, Process) {
    let disk = Disk::new(Rng::new(7).child("disk/a"));
    let process = disk.start();
    (disk, process)
}

fn write(file: &dyn File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let (first, second) = bytes.split_at(bytes.len() / 3);
    file.write_at(&[IoSlice::new(first), IoSlice::new(second)], offset)
}

fn read(file: &dyn File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0xEE; len];
    file.read_at(&mut buf, offset).map(|()| buf)
}

/// A file with a durable name and `sectors` durable sectors of ones.
fn settled(process: &Process, path: &str, sectors: u64) -> Arc<dyn File> {
    let file = process.open(path, OpenMode::Create).expect("created");
    write(&*file, 0, &vec![1; (sectors * SECTOR) as usize]).expect("written");
    file.sync().expect("synced");
    process.sync_dir(names::parent(path)).expect("synced");
    file
}

/// What every power cut from here on can leave of a file.
fn outcomes(disk: &Disk, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    let mut outcomes = BTreeSet::new();
    let mut odometer = Odometer::default();
    loop {
        let fork = disk.fork();
        fork.power_on(&mut odometer);
        let process = fork.start();
        let found = process.open(path, OpenMode::Read).ok();
        let bytes = found.map(|file| read(&*file, 0, file.len().unwrap() as usize).unwrap());
        assert_eq!(bytes, fork.peek(path));
        outcomes.insert(bytes);
        if !odometer.advance() {
            return outcomes;
        }
    }
}

fn sectors(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| [*value; SECTOR as usize]).collect()
}

#[test]
fn w13_each_unsynced_sector_is_on_its_own_old_or_new() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 3);
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(sectors(&[1, 1, 1]))]));
    write(&*file, 0, &sectors(&[2, 2])).unwrap();
    write(&*file, 2 * SECTOR, &sectors(&[3])).unwrap();
    let all: BTreeSet<_> = (0..8_u8)
        .map(|n| Some(sectors(&[1 + (n & 1), 1 + (n >> 1 & 1), if n >> 2 == 0 { 1 } else { 3 }])))
        .collect();
    assert_eq!(outcomes(&disk, "a"), all);
    assert_eq!(disk.unsynced(), 3);
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(sectors(&[2, 2, 3]))]));
}

#[test]
fn a_sector_that_was_written_twice_may_have_any_of_its_versions_but_never_halves() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 1);
    write(&*file, 100, &[2; 50]).unwrap();
    write(&*file, 120, &[3; 50]).unwrap();
    let version = |parts: &[(usize, usize, u8)]| {
        let mut bytes = sectors(&[1]);
        parts.iter().for_each(|(at, len, value)| bytes[*at..at + len].fill(*value));
        Some(bytes)
    };
    let expected =
        BTreeSet::from([version(&[]), version(&[(100, 50, 2)]), version(&[(100, 50, 2), (120, 50, 3)])]);
    assert_eq!(outcomes(&disk, "a"), expected);
}

#[test]
fn w39_a_killed_process_loses_nothing_that_it_wrote_and_what_survives_it_is_still_unsynced() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 1);
    write(&*file, 0, &sectors(&[2])).unwrap();
    disk.kill(process.id(), &mut LoseAll);
    assert_eq!(is_gone(&file.sync().unwrap_err()), Some(Gone::Killed));
    let next = disk.start();
    let again = next.open("a", OpenMode::Write).unwrap();
    assert_eq!(read(&*again, 0, 512).unwrap(), sectors(&[2]));
    assert_eq!(outcomes(&disk, "a").len(), 2);
    again.sync().unwrap();
    assert_eq!(outcomes(&disk, "a").len(), 1);
}

#[test]
fn w22_a_name_survives_only_after_its_folder_was_synced_and_a_folder_after_its_parent() {
    let (disk, process) = disk();
    process.create_dir("log/old").unwrap();
    let file = process.open("log/old/1", OpenMode::Create).unwrap();
    write(&*file, 0, &sectors(&[1])).unwrap();
    file.sync().unwrap();
    let both = BTreeSet::from([None, Some(sectors(&[1]))]);
    assert_eq!(outcomes(&disk, "log/old/1"), both);
    process.sync_dir("log/old").unwrap();
    assert_eq!(outcomes(&disk, "log/old/1"), both, "the folder may be gone");
    process.sync_dir("log").unwrap();
    assert_eq!(outcomes(&disk, "log/old/1"), both, "its parent too");
    process.sync_dir("").unwrap();
    assert_eq!(outcomes(&disk, "log/old/1"), BTreeSet::from([Some(sectors(&[1]))]));
    assert_eq!(process.list("log/old").unwrap(), ["1"]);
    process.remove("log/old/1").unwrap();
    assert_eq!(outcomes(&disk, "log/old/1"), both);
    process.sync_dir("log/old").unwrap();
    assert_eq!(outcomes(&disk, "log/old/1"), BTreeSet::from([None]));
    assert_eq!(read(&*file, 0, 512).unwrap(), sectors(&[1]), "an open file outlives its name");
    process.sync_dir("absent").unwrap_err();
}

#[test]
fn w23_a_rename_happens_whole_or_not_at_all_and_an_unsynced_file_may_be_empty_under_its_new_name() {
    let (disk, process) = disk();
    settled(&process, "state", 1);
    let new = process.open("state.tmp", OpenMode::Create).unwrap();
    write(&*new, 0, &sectors(&[2])).unwrap();
    process.rename("state.tmp", "state").unwrap();
    process.sync_dir("").unwrap();
    let expected = BTreeSet::from([Some(vec![]), Some(sectors(&[0])), Some(sectors(&[2]))]);
    assert_eq!(outcomes(&disk, "state"), expected);

    let (disk, process) = self::disk();
    settled(&process, "state", 1);
    let new = process.open("state.tmp", OpenMode::Create).unwrap();
    write(&*new, 0, &sectors(&[2])).unwrap();
    new.sync().unwrap();
    process.rename("state.tmp", "state").unwrap();
    let expected = BTreeSet::from([Some(sectors(&[1])), Some(sectors(&[2]))]);
    assert_eq!(outcomes(&disk, "state"), expected);
    process.sync_dir("").unwrap();
    assert_eq!(outcomes(&disk, "state"), BTreeSet::from([Some(sectors(&[2]))]));
    assert_eq!(outcomes(&disk, "state.tmp"), BTreeSet::from([None]));
}

#[test]
fn a_rename_to_another_folder_belongs_to_that_folder() {
    let (disk, process) = disk();
    process.create_dir("from").unwrap();
    process.create_dir("to").unwrap();
    process.sync_dir("").unwrap();
    process.open("from/a", OpenMode::Create).unwrap().sync().unwrap();
    process.rename("from/a", "to/a").unwrap();
    process.sync_dir("from").unwrap();
    assert_eq!(outcomes(&disk, "to/a").len(), 2);
    process.sync_dir("to").unwrap();
    assert_eq!(outcomes(&disk, "to/a"), BTreeSet::from([Some(vec![])]));
    assert_eq!(outcomes(&disk, "from/a"), BTreeSet::from([None]));
}

#[test]
fn lengths_survive_only_after_a_sync_and_what_was_cut_off_never_shows_again() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 4);
    file.set_len(SECTOR).unwrap();
    file.set_len(3 * SECTOR).unwrap();
    assert_eq!(read(&*file, 0, 3 * 512).unwrap(), sectors(&[1, 0, 0]));
    let expected =
        BTreeSet::from([Some(sectors(&[1, 1, 1, 1])), Some(sectors(&[1])), Some(sectors(&[1, 0, 0]))]);
    assert_eq!(outcomes(&disk, "a"), expected);
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(sectors(&[1, 0, 0]))]));
    write(&*file, 3 * SECTOR, &sectors(&[5, 6])).unwrap();
    let appended = outcomes(&disk, "a");
    assert!(appended.contains(&Some(sectors(&[1, 0, 0]))), "the length was not synced");
    assert!(appended.contains(&Some(sectors(&[1, 0, 0, 0, 6]))), "a hole before what survived");
    assert!(read(&*file, 4 * SECTOR, 513).is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof));
    assert!(read(&*file, u64::MAX, 2).is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof));
}

#[test]
fn w15_after_a_failed_sync_a_later_one_proves_nothing() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 2);
    write(&*file, 0, &sectors(&[2])).unwrap();
    disk.add_rule(Rule::new(Call::Sync, When::Nth(1), Fault::Fail(Errno::Eio)));
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(read(&*file, 0, 512).unwrap(), sectors(&[2]), "the page cache still has it");
    write(&*file, SECTOR, &sectors(&[3])).unwrap();
    file.sync().expect("and the next sync says that all is well");
    let expected = BTreeSet::from([Some(sectors(&[1, 3])), Some(sectors(&[2, 3]))]);
    assert_eq!(outcomes(&disk, "a"), expected);
    assert_eq!(disk.injected(), BTreeMap::from([("failed sync", 1)]));

    let killed = disk.fork();
    killed.kill(process.id(), &mut LoseAll);
    assert_eq!(killed.peek("a").unwrap(), sectors(&[1, 3]), "evicted, the old bytes show");
    assert_eq!(outcomes(&killed, "a").len(), 1);

    write(&*file, 0, &sectors(&[4])).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(sectors(&[4, 3]))]), "written anew, it counts");
}

#[test]
fn w28_a_lock_is_exclusive_and_goes_with_its_holder_however_that_dies() {
    let (disk, first) = disk();
    let guard = first.lock("lock").unwrap();
    let second = disk.start();
    let refused = |process: &Process| process.lock("lock").err().map(|error| error.kind());
    assert_eq!(refused(&second), Some(ErrorKind::WouldBlock));
    assert_eq!(refused(&first), Some(ErrorKind::WouldBlock), "not twice in one process either");
    disk.kill(first.id(), &mut KeepAll);
    let held = second.lock("lock").expect("a stale lock does not block");
    drop(guard);
    let third = disk.start();
    assert_eq!(refused(&third), Some(ErrorKind::WouldBlock), "a dead holder's guard frees nothing");
    drop(held);
    let held = third.lock("lock").unwrap();
    disk.power_on(&mut KeepAll);
    disk.start().lock("lock").expect("after a power cut nobody holds it");
    drop(held);
}

#[test]
fn w17_w18_each_call_can_be_made_to_fail_and_does_nothing_then() {
    for errno in [Errno::Eio, Errno::Enospc, Errno::Emfile, Errno::Erofs, Errno::Enomem] {
        let (disk, process) = disk();
        let file = settled(&process, "a", 1);
        for call in Call::ALL {
            disk.add_rule(Rule::new(call, When::From(1), Fault::Fail(errno)));
        }
        let before = disk.digest("");
        let errors = [
            process.open("a", OpenMode::Read).err(),
            process.open("b", OpenMode::Create).err(),
            process.list("").err(),
            process.create_dir("d").err(),
            process.remove("a").err(),
            process.rename("a", "b").err(),
            process.sync_dir("").err(),
            process.lock("l").err(),
            file.len().err(),
            file.next_data(0).err(),
            read(&*file, 0, 1).err(),
            file.sync().err(),
            file.set_len(0).err(),
            file.allocate(1 << 20).err(),
            file.zero(0, 512).err(),
        ];
        for (at, error) in errors.into_iter().enumerate() {
            assert_eq!(error.and_then(|error| error.raw_os_error()), Some(errno as i32), "call {at}");
        }
        assert_eq!(disk.digest(""), before);
        assert_eq!(write(&*file, 0, &[9; 512]).unwrap_err().raw_os_error(), Some(errno as i32));
    }
}

#[test]
fn rules_count_the_calls_that_they_are_aimed_at() {
    let (disk, process) = disk();
    let log = settled(&process, "log", 1);
    let backing = settled(&process, "backing", 1);
    disk.add_rule(Rule::new(Call::Sync, When::Nth(2), Fault::Fail(Errno::Eio)).on("log"));
    disk.add_rule(Rule::new(Call::Read, When::From(2), Fault::Fail(Errno::Eio)));
    backing.sync().unwrap();
    log.sync().unwrap();
    backing.sync().unwrap();
    log.sync().unwrap_err();
    log.sync().unwrap();
    read(&*log, 0, 1).unwrap();
    read(&*backing, 0, 1).unwrap_err();
    read(&*log, 0, 1).unwrap_err();
    disk.heal();
    read(&*log, 0, 1).unwrap();
    assert_eq!(disk.counts().of(Call::Read), 4);
}

#[test]
fn a_failed_write_has_happened_in_part() {
    let mut lengths = BTreeSet::new();
    for seed in 0..60 {
        let disk = Disk::new(Rng::new(seed));
        let process = disk.start();
        let file = settled(&process, "a", 3);
        disk.add_rule(Rule::new(Call::Write, When::Nth(1), Fault::Fail(Errno::Eio)));
        write(&*file, 0, &sectors(&[2, 2, 2])).unwrap_err();
        let written = read(&*file, 0, 3 * 512).unwrap().iter().take_while(|byte| **byte == 2).count();
        lengths.insert(written / 512);
    }
    assert_eq!(lengths, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn w17_a_full_disk_takes_no_more_than_it_has_and_reserved_space_stays_usable() {
    let (disk, process) = disk();
    disk.set_capacity(Some(4 * PAGE));
    let reserved = process.open("reserved", OpenMode::Create).unwrap();
    reserved.allocate(2 * PAGE).unwrap();
    assert_eq!(disk.used_bytes(), 2 * PAGE);
    let other = process.open("other", OpenMode::Create).unwrap();
    write(&*other, 0, &vec![1; 2 * PAGE as usize]).unwrap();
    assert_eq!(write(&*other, 2 * PAGE, &[1]).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(other.allocate(3 * PAGE).unwrap_err().raw_os_error(), Some(28));
    write(&*reserved, 0, &vec![1; 2 * PAGE as usize]).expect("its space was reserved");
    write(&*other, 0, &[2; 512]).expect("overwriting takes no space");
    other.zero(0, PAGE).unwrap();
    write(&*other, 3 * PAGE, &[1]).expect("what was freed can be used");
    process.remove("reserved").unwrap();
    assert_eq!(disk.used_bytes(), 2 * PAGE);
}

#[test]
fn damage_lies_over_the_pristine_bytes_and_heals() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 4);
    assert!(disk.rot("a", 513, 7));
    assert!(disk.make_unreadable("a", 2 * SECTOR + 3));
    assert!(!disk.rot("a", 4 * SECTOR, 0) && !disk.rot("absent", 0, 0));
    assert_eq!(read(&*file, 512, 3).unwrap(), [1, 0x81, 1]);
    assert_eq!(read(&*file, 0, 2048).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(disk.peek("a").unwrap(), sectors(&[1; 4]));
    write(&*file, 2 * SECTOR, &sectors(&[2])).unwrap();
    assert_eq!(read(&*file, 2 * SECTOR, 512).unwrap(), sectors(&[2]), "a new write replaces the sector");
    disk.power_on(&mut KeepAll);
    let process = disk.start();
    let file = process.open("a", OpenMode::Read).unwrap();
    assert_eq!(read(&*file, 513, 1).unwrap(), [0x81], "damage survives the machine");
    disk.heal();
    assert_eq!(read(&*file, 513, 1).unwrap(), [1]);
    let (path, at) = disk.rot_somewhere("").unwrap();
    assert_eq!(path, "a");
    assert_ne!(read(&*file, at, 1).unwrap()[0], disk.peek("a").unwrap()[at as usize]);
}

#[test]
fn w04_misdirected_and_lost_writes_show_when_the_page_cache_is_gone() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 4);
    disk.add_rule(Rule::new(Call::Write, When::Nth(1), Fault::Misdirect(2)));
    disk.add_rule(Rule::new(Call::Write, When::Nth(2), Fault::Lose));
    write(&*file, 0, &sectors(&[2])).unwrap();
    write(&*file, SECTOR, &sectors(&[3])).unwrap();
    file.sync().unwrap();
    assert_eq!(read(&*file, 0, 2048).unwrap(), sectors(&[2, 3, 1, 1]));
    disk.drop_caches(&mut KeepAll);
    assert_eq!(read(&*file, 0, 2048).unwrap(), sectors(&[1, 1, 2, 1]));
    assert_eq!(disk.peek("a").unwrap(), sectors(&[2, 3, 1, 1]));
    disk.heal();
    assert_eq!(read(&*file, 0, 2048).unwrap(), sectors(&[2, 3, 1, 1]));
}

#[test]
fn w27_the_power_can_go_before_and_after_every_change() {
    let script = |process: &Process| -> std::io::Result<()> {
        let file = process.open("a", OpenMode::Create)?;
        write(&*file, 0, &[1; 512])?;
        let _ = file.len()?;
        file.sync()?;
        process.sync_dir("")
    };
    let (plain, process) = disk();
    script(&process).unwrap();
    assert_eq!(plain.counts().changes(), 4);
    let mut survived = Vec::new();
    for n in 1..=4 {
        for side in [Side::Before, Side::After] {
            let (disk, process) = disk();
            disk.cut_power_at(n, side);
            let error = script(&process).unwrap_err();
            assert_eq!(is_gone(&error), Some(Gone::Off));
            assert!(!disk.is_on() && !process.is_alive());
            let again =
                process.open("a", OpenMode::Read).err().expect("nothing works on a machine that is off");
            assert_eq!(is_gone(&again), Some(Gone::Off));
            disk.power_on(&mut LoseAll);
            survived.push(disk.peek("a").is_some());
            let late = process.list("").expect_err("a program does not come back with the power");
            assert_eq!(is_gone(&late), Some(Gone::Killed));
        }
    }
    assert_eq!(survived, [false, false, false, false, false, false, false, true]);
}

#[test]
fn trims_and_holes_are_sparse_and_crash_like_writes() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 4 * PAGE / SECTOR);
    file.zero(PAGE, 2 * PAGE).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some((0, PAGE)));
    assert_eq!(file.next_data(PAGE).unwrap(), Some((3 * PAGE, 4 * PAGE)));
    assert_eq!(file.next_data(4 * PAGE).unwrap(), None);
    disk.fork().power_on(&mut LoseAll);
    let lost = disk.fork();
    lost.power_on(&mut LoseAll);
    assert_eq!(lost.peek("a").unwrap(), vec![1; 4 * PAGE as usize]);
    file.sync().unwrap();
    disk.power_on(&mut LoseAll);
    assert!(disk.peek("a").unwrap()[PAGE as usize..3 * PAGE as usize].iter().all(|byte| *byte == 0));
    assert_eq!(disk.used_bytes(), 2 * PAGE);
}

#[test]
fn devices_have_absolute_paths_a_fixed_size_and_a_lasting_name() {
    let (disk, process) = disk();
    disk.plant_device("/dev/vdb", 4 * SECTOR);
    disk.plant_file("/srv/images/disk.raw", &[7; 700]);
    let device = process.open("/dev/vdb", OpenMode::Write).unwrap();
    assert_eq!(device.len().unwrap(), 4 * SECTOR);
    assert_eq!(write(&*device, 4 * SECTOR, &[1]).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(device.set_len(0).unwrap_err().raw_os_error(), Some(22));
    device.allocate(4 * SECTOR).unwrap();
    assert_eq!(device.next_data(0).unwrap(), Some((0, 4 * SECTOR)), "a device cannot tell");
    write(&*device, 0, &sectors(&[3])).unwrap();
    assert_eq!(outcomes(&disk, "/dev/vdb").len(), 2);
    let file = process.open("/srv/images/disk.raw", OpenMode::Read).unwrap();
    assert_eq!(file.len().unwrap(), 700);
    assert_eq!(write(&*file, 0, &[1]).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(process.list("/srv/images").unwrap(), ["disk.raw"]);
    assert_eq!(
        process.open("x/y", OpenMode::Create).err().map(|error| error.kind()),
        Some(ErrorKind::NotFound)
    );
}

#[test]
fn w21_time_is_added_up_for_the_scheduler() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 1);
    assert_eq!(disk.take_latency(), Span(0));
    disk.set_latency(Latency::default());
    disk.add_rule(Rule::new(Call::Sync, When::Nth(1), Fault::Stall(Span::from_secs(10))));
    file.sync().unwrap();
    assert!(disk.take_latency() > Span::from_secs(10));
    file.sync().unwrap();
    assert!((Span(1)..Span::from_secs(1)).contains(&disk.take_latency()));
    disk.set_uncached(crate::rng::PPM);
    let mut buf = [0; 1];
    assert!(file.read_cached_at(&mut buf, 0).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
}

#[test]
fn a_fork_goes_its_own_way() {
    let (disk, process) = disk();
    let file = settled(&process, "a", 1);
    let fork = disk.fork();
    assert_eq!(fork.digest(""), disk.digest(""));
    write(&*file, 0, &sectors(&[2])).unwrap();
    assert_ne!(fork.digest(""), disk.digest(""));
    assert_eq!(fork.peek("a").unwrap(), sectors(&[1]));
}

#[test]
fn the_same_seed_settles_a_power_cut_in_the_same_way() {
    let run = |seed: u64| {
        let (disk, process) = disk();
        let file = settled(&process, "a", 64);
        write(&*file, 0, &sectors(&[2; 64])).unwrap();
        disk.power_on(&mut Dice::new(&mut Rng::new(seed)));
        disk.digest("")
    };
    let digests: BTreeSet<u64> = (0..20).map(run).collect();
    assert!(digests.len() > 10, "seeds differ");
    assert_eq!(digests, (0..20).map(run).collect());
}
