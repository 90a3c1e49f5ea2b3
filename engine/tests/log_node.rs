//! A node and its log where several things happen at once or space runs out: each test is one way in which an answer
//! could be wrong.

mod common;

use common::crash::CrashDisk;
use common::story::{self, VOLUME_BYTES};
use common::{A, B, Driven, Random, replicate};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::guest::{Op, Refusal, Request};
use engine::log::ship::Stretch;
use engine::node::config::{Config, OnFull, Retention};
use engine::node::primary::Submitted;
use engine::node::work::{Job, Lane};
use engine::peer::{Rebuff, TakesBack};
use engine::state::{Error as StateError, Role, StateFile, VERSION};
use engine::types::{Epoch, Extent, Lsn, Position, Reign, VolumeId};
use std::io::ErrorKind;
use std::sync::Arc;

fn no_space(call: Call) -> Fault {
    let (errno, effect, lasting) = (Errno::NoSpace, Effect::Nothing, Lasting::UntilDisarmed);
    Fault { call: Some(call), nth: 1, errno, effect, lasting }
}

fn primary_on(disk: &CrashDisk) -> Driven {
    Driven::open(disk.storage(), story::primary()).expect("opened")
}

fn replica_on(disk: &CrashDisk) -> Driven {
    Driven::open(disk.storage(), story::replica()).expect("opened")
}

/// A replica that keeps every point.
fn keeper() -> Config {
    Config { retention: Retention::default(), ..story::replica() }
}

fn fill(node: &mut Driven, writes: u64) {
    for number in 0..writes {
        let offset = number * 1024 % (VOLUME_BYTES - 2048);
        node.write(A, offset, &[number as u8 | 1; 2048]).expect("written");
    }
    node.flush().expect("flushed");
}

/// Runs bulk work until the next job is of that name, which is handed out.
fn next_job(node: &mut Driven, name: &str) -> Job {
    for _ in 0..100 {
        node.now.mono.0 += 10_000_000_000;
        node.sync();
        for lane in Lane::ALL {
            let Some(job) = node.node.poll_job(node.now, lane) else { continue };
            if job.name() == name {
                return job;
            }
            let (done, now) = (job.run(), node.now());
            node.node.finish(now, done);
        }
    }
    panic!("no {name} came up");
}

/// W21: a sync that takes long: nobody is answered meanwhile, and then only what it covered.
#[test]
fn w21_nothing_is_answered_while_a_sync_lasts() {
    let mut node = primary_on(&CrashDisk::new());
    let submit = |node: &mut Driven, op: Op, fua: bool| {
        let mut out = Submitted::default();
        let now = node.now();
        node.node.submit(now, A, &mut vec![Request { cookie: 1, op, fua }], &mut out);
        out.waiting.pop().map(|(_, ticket)| ticket)
    };
    let write = |byte: u8| Op::Write { offset: 0, data: vec![byte; 512].into() };
    let first = submit(&mut node, write(1), true).expect("it waits");
    let job = node.node.poll_job(node.now, Lane::Sync).expect("someone waits");
    let second = submit(&mut node, write(2), true).expect("it waits");
    let third = submit(&mut node, Op::Flush, false).expect("it waits");
    for _ in 0..100 {
        node.now.mono.0 += 10_000_000_000;
        assert!(node.node.poll_job(node.now, Lane::Sync).is_none(), "one sync at a time");
        assert!(node.node.take_answers().is_empty(), "no time that passes is an answer");
    }
    assert_eq!(node.read(A, 0, 1), Ok(vec![2]), "reads go on");
    let (done, now) = (job.run(), node.now());
    node.node.finish(now, done);
    let answered: Vec<_> = node.node.take_answers().into_iter().map(|answer| answer.ticket).collect();
    assert_eq!(answered, [first], "the sync covered the first alone");
    node.sync();
    let answered: Vec<_> = node.node.take_answers().into_iter().map(|answer| answer.ticket).collect();
    assert_eq!(answered, [second, third]);
}

/// W15: the log fails in the middle of a batch: whoever waits for the part that went through is told.
#[test]
fn w15_a_batch_that_fails_half_way_answers_every_request() {
    let faulty = Faulty::new(CrashDisk::new().storage());
    let mut node = Driven::open(Arc::new(faulty.clone()), story::primary()).expect("opened");
    node.work();
    // The first write of the batch fits the segment, the second begins another.
    let write =
        |cookie, len| Request { cookie, op: Op::Write { offset: 0, data: vec![7; len].into() }, fua: true };
    let room =
        node.node.log().segments().last().map(|segment| segment.header.len - segment.end).expect("one");
    let mut batch = vec![write(1, 512), write(2, room as usize - 512)];
    let (effect, lasting) = (Effect::Nothing, Lasting::Once);
    faulty.arm(Fault { call: Some(Call::Write), nth: 2, errno: Errno::Io, effect, lasting });
    let mut out = Submitted::default();
    let now = node.now();
    node.node.submit(now, A, &mut batch, &mut out);
    assert!(node.node.failed().is_some() && faulty.fired() == 1);
    let waited = out.waiting.iter().map(|(cookie, _)| *cookie);
    let cookies: Vec<u64> = waited.chain(out.ready.iter().map(|done| done.cookie)).collect();
    assert_eq!(cookies, [1, 2]);
    assert!(out.ready.iter().all(|done| done.result == Err(Refusal::Io)));
    let answers = node.node.take_answers();
    assert_eq!(answers.len(), out.waiting.len());
    assert!(answers.iter().all(|answer| answer.result == Err(Refusal::Io)));
}

/// W17: no room for a segment: writes are refused as on a full disk, reads and flushes go on, checkpoints too; with
/// room writes go on. The same from the start.
#[test]
fn w17_without_room_for_a_segment_reads_go_on() {
    let disk = CrashDisk::new();
    let faulty = Faulty::new(disk.storage());
    let mut node = Driven::open(Arc::new(faulty.clone()), story::primary()).expect("opened");
    fill(&mut node, 3);
    faulty.arm(no_space(Call::Allocate));
    let mut last = 0;
    let refused = (1..=200_u64).find(|&number| {
        let refused = node.write(A, 0, &[number as u8; 2048]);
        last = if refused.is_ok() { number } else { last };
        refused == Err(Refusal::NoSpace)
    });
    assert!(refused.is_some(), "at last a new file is needed");
    assert!(node.node.failed().is_none());
    assert_eq!(node.read(A, 0, 2048), Ok(vec![last as u8; 2048]), "a refused write has no effect");
    node.flush().expect("what is there can be flushed");
    let applied = node.node.report(node.now).applied;
    node.work();
    assert!(node.node.report(node.now).applied > applied, "the disk is brought up to date all the same");
    // A restart changes nothing of that.
    drop(node);
    let mut node =
        Driven::open(Arc::new(faulty.clone()), story::primary()).expect("opened though it is full");
    assert_eq!(node.read(A, 0, 2048), Ok(vec![last as u8; 2048]));
    node.flush().expect("flushed");
    faulty.disarm();
    node.now.mono.0 += 10_000_000_000;
    node.write(A, 0, &[1; 2048]).expect("there is room again");
    node.flush().expect("flushed");
    drop(node);
    let mut node = primary_on(&disk);
    assert_eq!(node.read(A, 0, 2048), Ok(vec![1; 2048]));
}

/// W17, W20: a log at its limit, after a restart as before: reads are served, writes wait or are refused by policy,
/// and go on when the replica has caught up.
#[test]
fn w17_a_full_log_can_be_opened() {
    for policy in [OnFull::Refuse, OnFull::Stall] {
        let disk = CrashDisk::new();
        let mut config = story::primary();
        (config.on_full, config.limits.log.log_bytes) = (policy, 3 * config.limits.log.segment_bytes);
        config.limits.spare_segments = 0;
        let mut node = Driven::open(disk.storage(), config.clone()).expect("opened");
        let mut written = 0_u8;
        loop {
            let mut out = Submitted::default();
            let op = Op::Write { offset: 0, data: vec![written + 1; 1000].into() };
            let now = node.now();
            node.node.submit(now, A, &mut vec![Request { cookie: 1, op, fua: false }], &mut out);
            if out.stalled || out.ready.iter().any(|done| done.result.is_err()) {
                assert_eq!(out.stalled, policy == OnFull::Stall);
                break;
            }
            written += 1;
        }
        node.work();
        drop(node);
        let mut node = Driven::open(disk.storage(), config.clone()).expect("opened though its log is full");
        assert_eq!(node.read(A, 0, 1000), Ok(vec![written; 1000]));
        assert_eq!(node.node.role(), Role::Primary);
        let there = CrashDisk::new();
        let mut replica = Driven::open(there.storage(), keeper()).expect("opened");
        node.work();
        replicate(&mut node, &mut replica);
        node.work();
        node.write(A, 0, &[200; 1000]).expect("there is room again");
        node.flush().expect("flushed");
        replicate(&mut node, &mut replica);
        assert_eq!(node.node.durable(), replica.node.durable(), "the new incarnation came before the write");
    }
}

/// R05, W17: a replica without room says so, keeps what it could take, and goes on from there.
#[test]
fn r05_a_replica_without_room_resumes() {
    let mut config = story::primary();
    config.limits.log.recent_bytes = 1 << 20;
    let mut primary = Driven::open(CrashDisk::new().storage(), config).expect("opened");
    let faulty = Faulty::new(CrashDisk::new().storage());
    let mut config = keeper();
    config.limits.spare_segments = 0;
    let mut replica = Driven::open(Arc::new(faulty.clone()), config).expect("opened");
    fill(&mut primary, 4);
    replicate(&mut primary, &mut replica);
    let mut states = Vec::new();
    for number in 0..30_u64 {
        primary
            .write(A, number * 1024 % (VOLUME_BYTES - 2048), &[number as u8 | 0x80; 2048])
            .expect("written");
        states.push((primary.node.log().tip().lsn, primary.read(A, 0, VOLUME_BYTES).expect("read")));
    }
    primary.flush().expect("flushed");
    faulty.arm(no_space(Call::Allocate));
    let hello = primary.node.hello().expect("a primary");
    let (mut refused, mut partly) = (0, 0);
    for _ in 0..5 {
        let now = replica.now();
        let welcome = replica.node.accept(now, &hello, TakesBack::No).expect("it follows");
        // As much as there is in one batch, so that it cannot be taken whole.
        let Stretch::Ready(batch) = primary.node.records_from(welcome.durable.lsn.next(), 1 << 20) else {
            panic!("there is more, and in memory")
        };
        let before = replica.node.log().tip().lsn;
        assert_eq!(replica.node.append(now, batch), Err(Rebuff::NoSpace));
        refused += 1;
        partly += usize::from(replica.node.log().tip().lsn > before);
        assert!(replica.node.failed().is_none());
        replica.sync();
    }
    assert!(refused > 0 && partly > 0, "a batch was taken in part: {refused}, {partly}");
    faulty.disarm();
    replicate(&mut primary, &mut replica);
    assert_eq!(primary.node.durable(), replica.node.durable());
    for (lsn, bytes) in states {
        replica.node.pin(lsn).expect("a point");
        let plan = replica.node.plan_point(A, lsn, Extent::new(0, VOLUME_BYTES)).expect("the volume");
        assert!(plan.read_all().expect("read") == bytes, "point {lsn}");
    }
}

/// Guarantee 2: records of an epoch that the adopted history does not know are not appended.
#[test]
fn records_of_a_foreign_epoch_are_refused() {
    let mut primary = primary_on(&CrashDisk::new());
    fill(&mut primary, 4);
    let mut west = Driven::open(CrashDisk::new().storage(), keeper()).expect("opened");
    let mut north = Driven::open(CrashDisk::new().storage(), keeper()).expect("opened");
    replicate(&mut primary, &mut west);
    replicate(&mut primary, &mut north);
    let (now, at) = (west.now(), west.node.durable().lsn);
    west.node.promote(now, at, Epoch(2)).expect("promoted");
    let Stretch::Ready(batch) = west.node.records_from(at.next(), 1 << 20) else {
        panic!("the first record")
    };
    let now = north.now();
    assert_eq!(north.node.append(now, batch), Err(Rebuff::Diverged { at: north.node.durable() }));
    assert_eq!(north.node.log().tip().lsn, at);
    // And the old primary's are not, once the new history was adopted.
    fill(&mut primary, 2);
    let hello = west.node.hello().expect("a primary");
    north.node.accept(now, &hello, TakesBack::No).expect("a newer epoch");
    let Stretch::Ready(batch) = primary.node.records_from(at.next(), 1 << 20) else { panic!("more records") };
    assert!(matches!(north.node.append(now, batch), Err(Rebuff::Diverged { .. })));
    assert_eq!(north.node.log().tip().lsn, at);
}

/// Guarantee 5: a point that a fold is about to retire cannot be opened any more; one that is open is not retired.
#[test]
fn a_point_is_not_opened_under_a_fold() {
    let mut primary = primary_on(&CrashDisk::new());
    let mut replica = replica_on(&CrashDisk::new());
    fill(&mut primary, 60);
    replicate(&mut primary, &mut replica);
    let horizon = replica.node.window().expect("points").horizon;
    replica.node.pin(Lsn(5)).expect("a point");
    replica.work();
    assert!(replica.node.window().expect("points").horizon <= Lsn(5), "an open point is kept");
    replica.node.unpin(Lsn(5));
    let job = next_job(&mut replica, "fold");
    assert!(replica.node.pin(horizon.next()).is_err(), "it is being overwritten");
    let (done, now) = (job.run(), replica.now());
    replica.node.finish(now, done);
    let window = replica.node.window().expect("points");
    assert!(window.horizon > horizon);
    replica.node.pin(window.horizon).expect("the oldest that is left");
}

/// A history is not adopted while a fold may be past the place where it leaves ours.
#[test]
fn a_history_is_not_adopted_under_a_fold() {
    let mut primary = primary_on(&CrashDisk::new());
    let mut west = Driven::open(CrashDisk::new().storage(), keeper()).expect("opened");
    let mut north = replica_on(&CrashDisk::new());
    fill(&mut primary, 60);
    replicate(&mut primary, &mut west);
    replicate(&mut primary, &mut north);
    let now = west.now();
    west.node.promote(now, Lsn(6), Epoch(2)).expect("promoted");
    let hello = west.node.hello().expect("a primary");
    let job = next_job(&mut north, "fold");
    let now = north.now();
    assert!(north.node.accept(now, &hello, TakesBack::No).is_err(), "not now");
    assert_eq!(north.node.history().len(), 1);
    let (done, now) = (job.run(), north.now());
    north.node.finish(now, done);
    assert!(
        matches!(north.node.accept(now, &hello, TakesBack::No), Err(Rebuff::TooFarBehind { .. })),
        "what the new primary branched off at is folded here"
    );
}

/// Guarantee 6: what a job brings back does not undo a fence that came while it ran.
#[test]
fn a_fence_outlives_a_checkpoint_that_was_out() {
    let disk = CrashDisk::new();
    let mut node = primary_on(&disk);
    fill(&mut node, 5);
    let job = next_job(&mut node, "checkpoint");
    let done = job.run();
    let newer = Reign { epoch: Epoch(7), branch: Position::default(), node: engine::types::NodeId([9; 16]) };
    let now = node.now();
    node.node.fence(now, &[newer]);
    node.node.finish(now, done);
    assert_eq!((node.node.role(), node.node.state().epoch_seen()), (Role::Fenced, Epoch(7)));
    drop(node);
    let node = primary_on(&disk);
    assert_eq!((node.node.role(), node.node.state().epoch_seen()), (Role::Fenced, Epoch(7)));
}

/// A fenced primary's plain disk holds everything that it logged, also after a restart.
#[test]
fn a_fenced_primary_brings_its_disk_up_to_date() {
    let disk = CrashDisk::new();
    let mut node = primary_on(&disk);
    fill(&mut node, 20);
    let expected = node.read(A, 0, VOLUME_BYTES).expect("read");
    let newer = Reign { epoch: Epoch(2), branch: Position::default(), node: engine::types::NodeId([9; 16]) };
    let now = node.now();
    node.node.fence(now, &[newer]);
    drop(node);
    let mut node = primary_on(&disk);
    assert_eq!(node.node.role(), Role::Fenced);
    node.work();
    assert!(disk.bytes("g/volumes/data.img") == expected, "the plain disk is the volume");
    assert_eq!(node.node.state().applied, node.node.durable().lsn);
}

/// W26: a volume's definition is lost in a power cut after a checkpoint: it is made again, and replicas learn of it.
#[test]
fn w26_a_lost_definition_is_made_again() {
    let disk = CrashDisk::new();
    let mut node = primary_on(&disk);
    while let Some(job) = node.node.poll_job(node.now, Lane::Bulk) {
        let (done, now) = (job.run(), node.now);
        node.node.finish(now, done);
    }
    assert_eq!(node.node.durable().lsn, Lsn::ZERO, "the definitions are not durable");
    let mut random = Random(1);
    let disk = disk.outcomes(1, &mut random).remove(0);
    drop(node);
    let mut node = primary_on(&disk);
    node.write(B, 0, &[5; 512]).expect("written");
    node.flush().expect("flushed");
    let mut replica = Driven::open(CrashDisk::new().storage(), keeper()).expect("opened");
    replicate(&mut node, &mut replica);
    let names: Vec<_> = replica.node.volume_specs().map(|spec| spec.name.clone()).collect();
    assert_eq!(names, ["data", "wal"]);
}

/// A promotion to a point before a volume was defined has no such volume, here and on whoever follows.
#[test]
fn a_promotion_before_a_definition_has_no_such_volume() {
    let disks = [CrashDisk::new(), CrashDisk::new(), CrashDisk::new()];
    let mut primary = primary_on(&disks[0]);
    let config = Config { replicas: vec!["west".to_owned()], ..keeper() };
    let mut west = Driven::open(disks[1].storage(), config).expect("opened");
    let mut north = Driven::open(disks[2].storage(), keeper()).expect("opened");
    fill(&mut primary, 3);
    replicate(&mut primary, &mut west);
    replicate(&mut primary, &mut north);
    // Records 1 to 3 are the opening and two definitions.
    let now = west.now();
    west.work();
    north.work();
    west.node.promote(now, Lsn(2), Epoch(2)).expect("promoted");
    let names = |node: &Driven| node.node.volume_specs().map(|spec| spec.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&west), ["data"]);
    assert_eq!(west.write(B, 0, &[1; 512]), Err(Refusal::Shutdown));
    west.write(A, 0, &[1; 512]).expect("written");
    west.flush().expect("flushed");
    replicate(&mut west, &mut north);
    assert_eq!(names(&north), ["data"]);
    drop((west, north));
    for (disk, role) in [(&disks[1], Role::Primary), (&disks[2], Role::Replica)] {
        let node = Driven::open(disk.storage(), keeper()).expect("opened again");
        assert_eq!((names(&node), node.node.role()), (vec!["data".to_owned()], role));
    }
}

/// W35: rot under a payload, any byte of it: the read of whatever needs it is an error, and no other read is wrong.
#[test]
fn w35_rot_is_found_by_the_read_and_never_handed_out() {
    let disk = CrashDisk::new();
    let mut primary = primary_on(&CrashDisk::new());
    let mut replica = Driven::open(disk.storage(), keeper()).expect("opened");
    let mut states = Vec::new();
    for number in 0..6_u8 {
        primary.write(A, u64::from(number) * 700, &[number + 1; 1000]).expect("written");
        states.push((primary.node.log().tip().lsn, primary.read(A, 0, VOLUME_BYTES).expect("read")));
    }
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let path = disk.paths().into_iter().find(|path| path.ends_with("00000001.seg")).expect("a segment");
    let (mut found, mut unharmed) = (0, 0);
    for at in (engine::log::format::SEGMENT_HEADER_BYTES..disk.bytes(&path).len()).step_by(17) {
        disk.rot(&path, at, 4);
        for (lsn, expected) in &states {
            replica.node.pin(*lsn).expect("a point");
            let plan = replica.node.plan_point(A, *lsn, Extent::new(0, VOLUME_BYTES)).expect("the volume");
            match plan.read_all() {
                Ok(bytes) => {
                    assert!(bytes == *expected, "point {lsn} with rot at byte {at}");
                    unharmed += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
                    assert!(
                        error.to_string().contains("checksum") || error.to_string().contains("record"),
                        "{error}"
                    );
                    found += 1;
                }
            }
            replica.node.unpin(*lsn);
        }
        disk.rot(&path, at, 4);
    }
    assert!(found > 100 && unharmed > 100, "{found}, {unharmed}");
}

/// W35, guarantee 2: a primary that reads rot from its log sends nothing of it.
#[test]
fn w35_rot_is_not_shipped() {
    let disk = CrashDisk::new();
    let mut config = story::primary();
    config.limits.log.recent_bytes = 0;
    let mut node = Driven::open(disk.storage(), config).expect("opened");
    node.write(A, 0, &[1; 600]).expect("written");
    node.flush().expect("flushed");
    let Stretch::OnDisk(sound) = node.node.records_from(Lsn(1), 1 << 20) else {
        panic!("nothing is in memory")
    };
    let sound = sound.run().expect("sound");
    let path = "g/log/00000001.seg";
    let len = sound.len();
    for at in 0..len {
        disk.rot(path, engine::log::format::SEGMENT_HEADER_BYTES + at, 1);
        let Stretch::OnDisk(read) = node.node.records_from(Lsn(1), 1 << 20) else {
            panic!("nothing is in memory")
        };
        assert!(read.run().is_err(), "rot at byte {at}");
        disk.rot(path, engine::log::format::SEGMENT_HEADER_BYTES + at, 1);
    }
}

/// W37: overlapping writes of one batch and of several: the order of the log is what reads show, what a restart
/// shows, and what the replica has.
#[test]
fn w37_overlapping_writes_have_one_order() {
    let (disk, there) = (CrashDisk::new(), CrashDisk::new());
    let mut primary = primary_on(&disk);
    let mut replica = Driven::open(there.storage(), keeper()).expect("opened");
    let mut expected = vec![0; VOLUME_BYTES as usize];
    let mut random = Random(37);
    for round in 0..60 {
        let mut requests = Vec::new();
        for cookie in 0..1 + random.below(6) {
            let (offset, len) = (random.below(3000), 1 + random.below(1500));
            let range = offset as usize..(offset + len) as usize;
            let op = match random.below(4) {
                0 => {
                    expected[range].fill(0);
                    Op::Zero { extent: Extent::new(offset, len), no_hole: random.below(2) == 0 }
                }
                _ => {
                    let byte = random.below(255) as u8 + 1;
                    expected[range].fill(byte);
                    Op::Write { offset, data: vec![byte; len as usize].into() }
                }
            };
            requests.push(Request { cookie, op, fua: false });
        }
        // A read of the same batch sees its writes.
        requests.push(Request { cookie: 99, op: Op::Read(Extent::new(0, 4500)), fua: false });
        let mut out = Submitted::default();
        let now = primary.now();
        primary.node.submit(now, A, &mut requests, &mut out);
        let (_, _, plan) = out.reads.pop().expect("the read is planned");
        assert!(plan.read_all().expect("read") == expected[..4500], "round {round}");
        match round % 15 {
            4 => primary.work(),
            9 => {
                drop(primary);
                primary = primary_on(&disk);
                assert!(primary.read(A, 0, VOLUME_BYTES).expect("read") == expected, "round {round}");
            }
            _ => {}
        }
    }
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let latest = replica.node.durable().lsn;
    replica.node.pin(latest).expect("a point");
    let plan = replica.node.plan_point(A, latest, Extent::new(0, VOLUME_BYTES)).expect("the volume");
    assert!(plan.read_all().expect("read") == expected);
}

/// W38: trims and zeroes: the same bytes from memory, from the disk, after a restart, at the replica, once folded,
/// and on a promoted node's disk.
#[test]
fn w38_zeroes_replay_as_they_were_served() {
    let (disk, there) = (CrashDisk::new(), CrashDisk::new());
    let mut primary = primary_on(&disk);
    let mut replica = replica_on(&there);
    let mut expected = vec![0; VOLUME_BYTES as usize];
    for number in 0..40_u64 {
        let offset = number * 397 % 9000;
        let range = |len: u64| offset as usize..(offset + len) as usize;
        primary.write(A, offset, &[number as u8 + 1; 3000]).expect("written");
        expected[range(3000)].fill(number as u8 + 1);
        let extent = Extent::new(offset + 1, 1700);
        let op = match number % 4 {
            0 => Op::Trim(extent),
            1 => Op::Zero { extent, no_hole: true },
            2 => Op::Zero { extent, no_hole: false },
            // Long enough to be logged as zeros.
            _ => Op::Write { offset: offset + 1, data: vec![0; 5000].into() },
        };
        let len = if number % 4 == 3 { 5000 } else { 1700 };
        primary.request(A, op, number % 5 == 0).expect("zeroed");
        expected[offset as usize + 1..(offset + 1 + len) as usize].fill(0);
        assert!(primary.read(A, 0, VOLUME_BYTES).expect("read") == expected, "from memory, {number}");
    }
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    primary.work();
    assert!(disk.bytes("g/volumes/data.img") == expected, "on the disk");
    drop(primary);
    assert!(primary_on(&disk).read(A, 0, VOLUME_BYTES).expect("read") == expected, "after a restart");
    replica.work();
    assert!(replica.node.state().base > Lsn::ZERO, "something is folded");
    let at = replica.node.durable().lsn;
    let now = replica.now();
    replica.node.promote(now, at, Epoch(2)).expect("promoted");
    assert!(replica.read(A, 0, VOLUME_BYTES).expect("read") == expected, "promoted");
    replica.work();
    assert!(!replica.node.is_hydrating());
    assert!(there.bytes("g/volumes/data.img") == expected, "on the promoted disk");
}

/// Guarantee 7: a file of a branch whose header is damaged is no use to the log, but it is not used again either.
#[test]
fn a_branch_under_a_damaged_header_is_kept() {
    let disk = CrashDisk::new();
    let mut primary = primary_on(&CrashDisk::new());
    let mut west = Driven::open(disk.storage(), keeper()).expect("opened");
    fill(&mut primary, 60);
    replicate(&mut primary, &mut west);
    let now = west.now();
    west.node.promote(now, Lsn(6), Epoch(2)).expect("promoted");
    drop(west);
    let path = "g/log/00000004.seg";
    disk.rot(path, 40, 1);
    let bytes = disk.bytes(path);
    for round in 0..3 {
        let (mut node, report) = Driven::open_reporting(disk.storage(), keeper()).expect("opened");
        assert_eq!((report.unreadable, node.node.role()), (1, Role::Primary));
        for number in 0..40_u64 {
            node.write(A, number % 8 * 1024, &[round + 1; 2048]).expect("written");
        }
        node.work();
        assert!(disk.bytes(path) == bytes, "round {round}");
    }
}

/// The state file of a node that has lived a little, and a copy of its folder to damage.
fn lived() -> (CrashDisk, Vec<u8>) {
    let disk = CrashDisk::new();
    let mut node = primary_on(&disk);
    fill(&mut node, 10);
    node.work();
    drop(node);
    let state = disk.bytes("g/state");
    (disk, state)
}

/// W05, W23: damage in one place of the state: the other one has the same state. In both: a refusal.
#[test]
fn w05_every_byte_of_the_state_file() {
    let (disk, bytes) = lived();
    let open = |bytes: &[u8]| {
        disk.put("g/state", bytes);
        StateFile::open(&*disk.storage(), "g/state").map(|file| file.map(|file| file.get()))
    };
    let sound = open(&bytes).expect("sound");
    assert!(sound.is_some());
    let half = bytes.len() / 2;
    assert_eq!(bytes[..half], bytes[half..], "both places hold the same");
    let used = 32 + u32::from_le_bytes(bytes[24..28].try_into().expect("four bytes")) as usize;
    for place in [0, half] {
        for at in 0..half {
            // Behind the body there is nothing to damage, which a few places show.
            if at > used && at % 509 != 0 {
                continue;
            }
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[place + at] ^= 1 << bit;
                assert_eq!(open(&damaged).expect("one place is whole"), sound, "bit {bit} of byte {at}");
                if place == 0 && at < used {
                    damaged[half + at] ^= 1 << bit;
                    let both = open(&damaged);
                    assert!(
                        matches!(both, Err(StateError::Damaged { .. })),
                        "bit {bit} of byte {at} in both"
                    );
                }
            }
        }
        let mut cut = bytes.clone();
        cut[place..place + half].fill(0);
        assert_eq!(open(&cut).expect("one place is whole"), sound);
    }
    for len in 0..bytes.len() {
        if len % 97 != 0 && !(half - 2..=half + used).contains(&len) && len > used {
            continue;
        }
        match open(&bytes[..len]) {
            Ok(state) => assert!(state == sound || (state.is_none() && len == 0), "cut to {len}"),
            Err(StateError::Damaged { .. }) => assert!(len < used, "cut to {len}"),
            Err(other) => panic!("cut to {len}: {other}"),
        }
    }
}

/// W33, and the messages: a state that is newer, or gone from beside a log, or damaged, is not made anew.
#[test]
fn w33_a_state_that_cannot_be_used_is_not_replaced() {
    let (disk, bytes) = lived();
    let half = bytes.len() / 2;
    let mut newer = bytes.clone();
    for place in [0, half] {
        newer[place + 8] = VERSION + 1;
        let len = u32::from_le_bytes(newer[place + 24..place + 28].try_into().expect("four bytes")) as usize;
        let mut hasher = crc32fast::Hasher::new_with_initial(1);
        hasher.update(&newer[place..place + 12]);
        hasher.update(&newer[place + 16..place + 32 + len]);
        let checksum = hasher.finalize().to_le_bytes();
        newer[place + 12..place + 16].copy_from_slice(&checksum);
    }
    let mut damaged = bytes.clone();
    (damaged[20], damaged[half + 20]) = (!damaged[20], !damaged[half + 20]);
    let too_new = format!("format version {} is newer than this program understands", VERSION + 1);
    let cases: [(Option<Vec<u8>>, &str); 4] = [
        (Some(newer), &too_new),
        (Some(damaged), "is damaged in both of its places"),
        (Some(vec![0; bytes.len()]), "holds a log but no state file"),
        (None, "holds a log but no state file"),
    ];
    for (state, message) in cases {
        for config in [story::primary(), story::replica()] {
            let disk = disk.killed();
            match &state {
                Some(state) => disk.put("g/state", state),
                None => disk.erase("g/state"),
            }
            let before: Vec<_> = disk.paths().iter().map(|path| disk.bytes(path)).collect();
            let error = Driven::open(disk.storage(), config).err().expect("refused").to_string();
            assert!(error.contains(message), "{error}");
            let after: Vec<_> = disk.paths().iter().map(|path| disk.bytes(path)).collect();
            assert!(before == after, "a refusal changes nothing");
        }
    }
}

/// Guarantee 8: a state file whose sync failed is not written any more, not even by a fence.
#[test]
fn w15_a_failed_state_file_stays_failed() {
    let mut failed_state = 0;
    for nth in 1..=4 {
        let faulty = Faulty::new(CrashDisk::new().storage());
        let mut node = Driven::open(Arc::new(faulty.clone()), story::primary()).expect("opened");
        fill(&mut node, 3);
        let job = next_job(&mut node, "checkpoint");
        let (errno, effect, lasting) = (Errno::Io, Effect::Nothing, Lasting::Once);
        faulty.arm(Fault { call: Some(Call::Sync), nth, errno, effect, lasting });
        let (done, now) = (job.run(), node.now());
        node.node.finish(now, done);
        let reason = node.node.failed().map_or("", |failed| &failed.reason);
        failed_state += u32::from(reason.contains("g/state"));
        let newer =
            Reign { epoch: Epoch(7), branch: Position::default(), node: engine::types::NodeId([9; 16]) };
        node.node.fence(now, &[newer]);
        assert_eq!(node.node.role(), Role::Fenced, "in memory it is fenced all the same");
        assert_eq!(faulty.resyncs(), 0);
        assert_eq!(node.write(VolumeId(1), 0, &[1; 512]), Err(Refusal::Shutdown));
    }
    assert_eq!(failed_state, 2, "each place of the state has its sync");
}
