//! Power cuts, at every moment and with every outcome: what was synced is there, what is there is a prefix, and
//! whoever looks twice sees the same.

mod common;

use common::Random;
use common::crash::CrashDisk;
use common::logs::{self, Facts, Record, Writer};
use common::story::{self, Promises, Reference, Source};
use engine::event::Kind;
use engine::io::Storage;
use engine::log::{Draft, Log};
use engine::types::{Epoch, Extent, Incarnation, Lsn, Timestamp, VolumeId};

/// Every outcome of up to this many is gone through; of more, this many.
const OUTCOMES: usize = 1 << 14;

fn facts(writer: Writer, incarnation: u32) -> Facts {
    Facts { incarnation: Incarnation(incarnation), ..Facts::new(writer) }
}

/// Goes through the outcomes of a power cut; `synced` is the last record that a sync covered, `all` every record.
fn check_outcomes(disk: &CrashDisk, facts: Facts, synced: Lsn, all: &[Record], what: &str) -> usize {
    let mut random = Random(0xfeed);
    let outcomes = disk.outcomes(OUTCOMES, &mut random);
    for (number, disk) in outcomes.iter().enumerate() {
        let what = format!("{what}, outcome {number}");
        let (log, report, records) =
            logs::open(disk.storage(), facts).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(log.tip().lsn >= synced, "{what}: LSN {} though {synced} was synced", log.tip().lsn);
        let expected = all.iter().filter(|record| record.header.lsn > facts.start.lsn);
        assert!(records.iter().eq(expected.take(records.len())), "{what}: not a prefix");
        assert!(report.torn.is_none_or(|torn| torn.lsn > synced), "{what}");
        assert_eq!(log.durable(), log.tip());
        drop(log);
        // W39: what recovery found is called durable, so it is: the next power cut takes nothing of it.
        for disk in [disk.killed(), disk.outcomes(1, &mut random).remove(0)] {
            let (_, again, same) =
                logs::open(disk.storage(), facts).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert_eq!(same, records, "{what}: another answer the second time");
            assert_eq!(again.records, report.records);
        }
    }
    outcomes.len()
}

fn all_of(disk: &CrashDisk, facts: Facts) -> Vec<Record> {
    logs::open(disk.killed().storage(), facts).expect("sound").2
}

/// W11, W13: small records in one page, each sector on its own.
#[test]
fn w13_every_subset_of_sectors_in_a_page() {
    for writer in [Writer::Own, Writer::Other] {
        let disk = CrashDisk::new();
        let (mut log, ..) = logs::open(disk.storage(), facts(writer, 1)).expect("a new log");
        logs::begin(&mut log);
        logs::write(&mut log, 0, 100);
        logs::sync(&mut log);
        let synced = log.durable().lsn;
        for len in [300, 700, 9, 512, 60] {
            logs::write(&mut log, 0, len);
        }
        let all = all_of(&disk, facts(writer, 1));
        let outcomes = check_outcomes(&disk, facts(writer, 2), synced, &all, "a page");
        assert!(outcomes > 100, "{outcomes}");
    }
}

/// W12, W13, W22: a batch that goes over the border of two segments, the second with a new header.
#[test]
fn w13_every_subset_of_sectors_over_two_segments() {
    let disk = CrashDisk::new();
    let (mut log, ..) = logs::open(disk.storage(), facts(Writer::Own, 1)).expect("a new log");
    logs::begin(&mut log);
    logs::write(&mut log, 0, 2600);
    logs::sync(&mut log);
    let synced = log.durable().lsn;
    let payloads: Vec<Vec<u8>> = (1..5).map(|number| vec![number; 600]).collect();
    let draft = |payload| Draft {
        kind: Kind::Write,
        flags: 0,
        volume: VolumeId(1),
        extent: Extent::new(0, 600),
        payload,
    };
    let drafts: Vec<_> = payloads.iter().map(|payload| draft(payload.as_slice())).collect();
    let (appended, error) = log.append(Timestamp(5), Epoch(1), &drafts);
    assert!(error.is_none() && appended.len() == 4 && log.segments().len() == 2);
    let all = all_of(&disk, facts(Writer::Own, 1));
    check_outcomes(&disk, facts(Writer::Own, 2), synced, &all, "two segments");
}

/// W03: a file that is used again holds whole old records wherever the new ones do not reach the disk.
#[test]
fn w03_every_subset_of_sectors_in_a_file_used_again() {
    let disk = CrashDisk::new();
    let (mut log, ..) = logs::open(disk.storage(), facts(Writer::Own, 1)).expect("a new log");
    logs::begin(&mut log);
    for _ in 0..14 {
        logs::write(&mut log, 0, 432);
    }
    logs::sync(&mut log);
    let start = log.start_for(log.tip().lsn);
    log.free_before(start).expect("freed");
    assert!(log.spares() > 0);
    while log.segments().len() < 2 {
        logs::write(&mut log, 0, 432);
    }
    let (synced, now) = (log.durable().lsn, Facts { start, ..facts(Writer::Own, 2) });
    for _ in 0..2 {
        logs::write(&mut log, 0, 432);
    }
    let all = all_of(&disk, Facts { start, ..facts(Writer::Own, 1) });
    check_outcomes(&disk, now, synced, &all, "used again");
}

/// W27: the power fails at every change that recovery makes, several times in a row, and nothing is different.
#[test]
fn w27_recovery_cut_at_every_change() {
    let disk = CrashDisk::new();
    let (mut log, ..) = logs::open(disk.storage(), facts(Writer::Own, 1)).expect("a new log");
    logs::begin(&mut log);
    for _ in 0..3 {
        logs::write(&mut log, 0, 900);
    }
    logs::sync(&mut log);
    let synced = log.durable().lsn;
    for _ in 0..5 {
        logs::write(&mut log, 0, 900);
    }
    let all = all_of(&disk, facts(Writer::Own, 1));
    drop(log);
    let mut random = Random(27);
    for outcome in disk.outcomes(40, &mut random) {
        for calls in 0.. {
            let mut disk = outcome.killed();
            // Each recovery is cut a little later than the one before.
            for more in 0..4 {
                disk.cut_after(calls + more);
                let cut = logs::open(disk.storage(), facts(Writer::Own, 2)).is_err();
                assert_eq!(cut, disk.is_cut());
                let mut outcomes = disk.outcomes(3, &mut random);
                disk = outcomes.swap_remove(random.below(outcomes.len() as u64) as usize);
            }
            let (log, _, records) = logs::open(disk.storage(), facts(Writer::Own, 2)).expect("not damaged");
            assert!(log.tip().lsn >= synced);
            assert_eq!(records[..], all[..records.len()]);
            let whole = outcome.killed();
            whole.cut_after(calls);
            if logs::open(whole.storage(), facts(Writer::Own, 2)).is_ok() {
                break;
            }
        }
    }
}

/// W39: the process died, the machine did not: what recovery takes from the page cache is on the disk before it is
/// called durable, also where a failed sync has left clean pages that never got there.
#[test]
fn w39_what_a_killed_process_left_is_made_durable_before_it_counts() {
    for failing in [false, true] {
        let disk = CrashDisk::new();
        let (mut log, ..) = logs::open(disk.storage(), facts(Writer::Own, 1)).expect("a new log");
        logs::begin(&mut log);
        for len in [500, 4000, 100, 2500, 3000] {
            logs::write(&mut log, 0, len);
        }
        if failing {
            disk.fail_sync(1);
            let sync = log.begin_sync().expect("there is something to sync");
            assert!(log.finish_sync(sync.run()).is_err());
            assert!(log.begin_sync().is_none(), "a failed log is not synced again");
        }
        let all = all_of(&disk, facts(Writer::Own, 1));
        assert_eq!(all.len(), 6);
        let disk = disk.killed();
        let (log, report, records) = logs::open(disk.storage(), facts(Writer::Own, 2)).expect("sound");
        assert_eq!((records.len(), report.torn), (6, None));
        assert_eq!(log.durable().lsn, Lsn(6));
        let mut random = Random(39);
        let dark = disk.outcomes(1, &mut random).remove(0);
        assert_eq!(all_of(&dark, facts(Writer::Own, 2)), all, "a sync failed before: {failing}");
    }
}

/// W22: a new file whose name, length or content is not durable yet holds nothing that was acknowledged.
#[test]
fn w22_a_new_file_counts_only_once_its_name_is_durable() {
    for calls in 0.. {
        let disk = CrashDisk::new();
        let (mut log, ..) = logs::open(disk.storage(), facts(Writer::Own, 1)).expect("a new log");
        disk.cut_after(calls);
        let mut synced = Lsn::ZERO;
        let mut written = 0;
        let done = fill(&mut log, &mut synced, &mut written);
        let cut = disk.is_cut();
        assert_eq!(done.is_err(), cut);
        let mut random = Random(22 + calls);
        for disk in disk.outcomes(64, &mut random) {
            let (log, _, records) =
                logs::open(disk.storage(), facts(Writer::Own, 2)).expect("nothing is damaged");
            assert!(log.tip().lsn >= synced, "cut after {calls} calls");
            assert!(records.len() as u64 <= written);
            let unfinished = disk.paths().iter().filter(|path| disk.bytes(path).is_empty()).count();
            assert_eq!(unfinished, 0, "leftovers are gone");
        }
        if !cut {
            break;
        }
    }
}

/// Appends and syncs over three segments, until something fails.
fn fill(log: &mut Log, synced: &mut Lsn, written: &mut u64) -> Result<(), String> {
    for number in 0..12_u64 {
        let kind = if number == 0 { Kind::Open } else { Kind::Write };
        let payload = vec![number as u8 + 1; 1000];
        let (volume, extent) = match kind {
            Kind::Write => (VolumeId(1), Extent::new(0, 1000)),
            _ => (VolumeId(0), Extent::default()),
        };
        *written += 1;
        let draft = Draft { kind, flags: 0, volume, extent, payload: &payload };
        if let (_, Some(error)) = log.append(Timestamp(number), Epoch(1), &[draft]) {
            return Err(error.to_string());
        }
        if number % 2 == 1 {
            let sync = log.begin_sync().expect("there is something to sync");
            log.finish_sync(sync.run()).map_err(|failure| failure.to_string())?;
            *synced = log.durable().lsn;
        }
    }
    Ok(())
}

/// How many outcomes of each power cut are looked at in a long story.
const SAMPLES: usize = 5;

/// W13, W22, W23, W25, W26, W27: a primary cut at every change that it makes; each time any outcome, and again while
/// it recovers.
#[test]
fn w26_a_primary_cut_at_every_change() {
    for calls in 0.. {
        let (disk, mut reference) = (CrashDisk::new(), Reference::default());
        disk.cut_after(calls);
        let ended = story::live_as_primary(disk.storage(), &mut reference, 11);
        assert!(ended.is_ok() || disk.is_cut(), "call {calls}: {ended:?}");
        let mut random = Random(calls + 1);
        for (number, outcome) in disk.outcomes(SAMPLES, &mut random).iter().enumerate() {
            let what = format!("cut after {calls} changes, outcome {number}");
            let outcome = recover_in_the_dark(outcome, &mut random, |storage| {
                story::open(storage, story::primary()).map(drop)
            });
            story::check_primary(outcome.storage(), &story::primary(), &reference, reference.promised, &what);
        }
        // Only the process died: nothing that was answered is gone.
        let killed = disk.killed();
        story::check_primary(killed.storage(), &story::primary(), &reference, reference.answered, "killed");
        if !disk.is_cut() {
            assert!(calls > 100, "the story is longer than that: {calls}");
            break;
        }
    }
}

/// The power fails twice more while somebody opens the folder.
fn recover_in_the_dark(
    disk: &CrashDisk,
    random: &mut Random,
    open: impl Fn(std::sync::Arc<dyn Storage>) -> Result<(), String>,
) -> CrashDisk {
    let mut disk = disk.killed();
    for _ in 0..2 {
        disk.cut_after(random.below(16));
        // Whether it came through or not.
        let _ = open(disk.storage());
        let mut outcomes = disk.outcomes(4, random);
        disk = outcomes.swap_remove(random.below(outcomes.len() as u64) as usize);
    }
    disk
}

/// W13, W22, W25, W26, W27: a replica, through folds and a new primary's history.
#[test]
fn w26_a_replica_cut_at_every_change() {
    let mut first = Source::primary(CrashDisk::new().storage(), 5);
    let at = Lsn(first.node.node.durable().lsn.0 - 12);
    let mut second = Source::promoted(&mut first, CrashDisk::new().storage(), at, 6);
    for calls in 0.. {
        let (disk, mut promises) = (CrashDisk::new(), Promises::default());
        disk.cut_after(calls);
        let ended = story::live_as_replica(disk.storage(), &mut first, &mut second, &mut promises);
        assert!(ended.is_ok() || disk.is_cut(), "call {calls}: {ended:?}");
        let mut random = Random(calls + 1);
        for (number, outcome) in disk.outcomes(SAMPLES, &mut random).iter().enumerate() {
            let what = format!("cut after {calls} changes, outcome {number}");
            let outcome = recover_in_the_dark(outcome, &mut random, |storage| {
                story::open(storage, story::replica()).map(drop)
            });
            story::check_replica(outcome.storage(), &mut first, &mut second, &promises, &what);
        }
        if !disk.is_cut() {
            assert!(calls > 100, "the story is longer than that: {calls}");
            break;
        }
    }
}

/// W26: a promotion and the filling of its disks: the replica of before, or the primary of the new epoch.
#[test]
fn w26_a_promotion_cut_at_every_change() {
    let mut source = Source::primary(CrashDisk::new().storage(), 7);
    let fed = CrashDisk::new();
    // The whole log, and the base images folded a little.
    let at = Lsn(source.node.node.durable().lsn.0 - 9);
    {
        let mut replica = story::open(fed.storage(), story::replica()).expect("opened");
        common::replicate(&mut source.node, &mut replica);
        replica.work();
        assert!(replica.node.state().base > Lsn::ZERO, "something is folded");
    }
    for calls in 0.. {
        let (disk, mut reference) = (fed.killed(), source.reference.from(at));
        disk.cut_after(calls);
        let ended = story::live_as_promoted(disk.storage(), at, &mut reference, 9);
        assert!(ended.is_ok() || disk.is_cut(), "call {calls}: {ended:?}");
        let mut random = Random(calls + 1);
        for (number, outcome) in disk.outcomes(SAMPLES, &mut random).iter().enumerate() {
            let what = format!("cut after {calls} changes, outcome {number}");
            let outcome = recover_in_the_dark(outcome, &mut random, |storage| {
                story::open(storage, story::replica()).map(drop)
            });
            story::check_promoted(outcome.storage(), at, &source, &reference, reference.promised, &what);
        }
        if !disk.is_cut() {
            assert!(calls > 60, "the story is longer than that: {calls}");
            break;
        }
    }
}
