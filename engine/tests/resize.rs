//! Volumes that grow and shrink while their group runs: each point keeps its size, and nothing that a volume lost comes back.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config, replicate};
use engine::event::VolumeSpec;
use engine::guest::Refusal;
use engine::node::config::{Config, OnFull};
use engine::node::reconsider::Target;
use engine::peer::TakesBack;
use engine::types::{Epoch, Extent, Lsn, VolumeId};
use std::collections::BTreeMap;

const UNIT: u64 = 512;

/// The volumes at every LSN that something happened at.
#[derive(Clone, Default)]
struct Reference {
    now: BTreeMap<VolumeId, Vec<u8>>,
    states: Vec<(Lsn, BTreeMap<VolumeId, Vec<u8>>)>,
    /// Nobody asks for what was.
    forgets: bool,
}

impl Reference {
    fn new() -> Reference {
        let empty = vec![0; VOLUME_BYTES as usize];
        Reference { now: [(A, empty.clone()), (B, empty)].into(), ..Reference::default() }
    }

    fn note(&mut self, at: Lsn) {
        if !self.forgets {
            self.states.push((at, self.now.clone()));
        }
    }

    fn at(&self, lsn: Lsn) -> Option<&BTreeMap<VolumeId, Vec<u8>>> {
        self.states.iter().rev().find(|(at, _)| *at <= lsn).map(|(_, state)| state)
    }

    fn cut(&mut self, lsn: Lsn) {
        self.states.retain(|(at, _)| *at <= lsn);
        self.now = self.states.last().expect("something was written").1.clone();
    }

    fn step(&mut self, node: &mut Driven, random: &mut Random) {
        let id = if random.below(3) == 0 { B } else { A };
        let size = self.now[&id].len() as u64;
        if random.below(6) == 0 {
            let new = UNIT * (1 + random.below(2 * VOLUME_BYTES / UNIT));
            let name = if id == A { "data" } else { "wal" };
            let now = node.now();
            node.node.resize(now, name, new).expect("resized");
            if new < size {
                // The record before it makes zeros of what goes.
                self.now.get_mut(&id).expect("known")[new as usize..].fill(0);
                self.note(node.node.log().tip().lsn.prev());
            }
            self.now.get_mut(&id).expect("known").resize(new as usize, 0);
        } else {
            let len = UNIT * (1 + random.below(8.min(size / UNIT)));
            let offset = UNIT * random.below((size - len) / UNIT + 1);
            let byte = 1 + random.below(255) as u8;
            node.write(id, offset, &vec![byte; len as usize]).expect("written");
            self.now.get_mut(&id).expect("known")[offset as usize..(offset + len) as usize].fill(byte);
        }
        self.note(node.node.log().tip().lsn);
    }
}

fn sizes(specs: &[VolumeSpec]) -> BTreeMap<VolumeId, u64> {
    specs.iter().map(|spec| (spec.id, spec.size)).collect()
}

fn check_newest(node: &mut Driven, reference: &Reference) {
    for (&id, bytes) in &reference.now {
        let read = node.read(id, 0, bytes.len() as u64).expect("read");
        assert!(read == *bytes, "volume {id}");
        assert_eq!(node.read(id, bytes.len() as u64, UNIT), Err(Refusal::Invalid), "there is no more of it");
    }
}

fn check_points(node: &mut Driven, reference: &Reference) {
    let Some(window) = node.node.window() else { return };
    for lsn in window.horizon.0..=window.latest.0 {
        let Some(state) = reference.at(Lsn(lsn)) else { continue };
        if node.node.pin(Lsn(lsn)).is_err() {
            continue;
        }
        let specs = node.node.specs_at(Lsn(lsn));
        assert_eq!(
            sizes(&specs),
            state.iter().map(|(&id, bytes)| (id, bytes.len() as u64)).collect(),
            "LSN {lsn}"
        );
        for (&id, bytes) in state {
            let plan = node.node.plan_point(id, Lsn(lsn), Extent::new(0, bytes.len() as u64));
            let read = plan.expect("it is there").read_all().expect("read");
            assert!(read == *bytes, "volume {id} at LSN {lsn}");
            let more = node.node.plan_point(id, Lsn(lsn), Extent::new(bytes.len() as u64, UNIT));
            assert!(more.is_none(), "there is no more of it at LSN {lsn}");
        }
        node.node.unpin(Lsn(lsn));
    }
}

fn tracking(mut config: Config) -> Config {
    config.on_full = OnFull::Track;
    config.limits.log.log_bytes = 1 << 20;
    config.retention.bytes = 256 << 10;
    config
}

#[test]
fn points_keep_their_sizes() {
    for seed in 1..25 {
        let mut random = Random(seed * 6_700_417);
        let [east, west] = [CrashDisk::new(), CrashDisk::new()];
        let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
        let mut replica = Driven::open(west.storage(), tracking(replica_config("group"))).expect("opened");
        let mut reference = Reference::new();
        for _ in 0..12 {
            for _ in 0..1 + random.below(12) {
                reference.step(&mut primary, &mut random);
            }
            primary.flush().expect("flushed");
            match random.below(6) {
                0 => {
                    drop(primary);
                    primary =
                        Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
                }
                1 => {
                    drop(replica);
                    replica =
                        Driven::open(west.storage(), tracking(replica_config("group"))).expect("opened");
                }
                2 => primary.work(),
                3 => replica.work(),
                _ => {
                    replicate(&mut primary, &mut replica);
                    check_points(&mut replica, &reference);
                }
            }
            check_newest(&mut primary, &reference);
        }
        replicate(&mut primary, &mut replica);
        check_points(&mut replica, &reference);
        replica.work();
        check_points(&mut replica, &reference);
        primary.work();
        for (id, name) in [(A, "data"), (B, "wal")] {
            let disk = east.bytes(&format!("group/volumes/{name}.img"));
            let bytes = &reference.now[&id];
            assert!(disk.len() >= bytes.len() && disk[..bytes.len()] == **bytes, "the plain disk of {name}");
            assert!(disk[bytes.len()..].iter().all(|&byte| byte == 0), "behind the end of {name}");
        }

        // A failover to a point has its sizes, and goes on from them.
        let window = replica.node.window().expect("there are points");
        let at = Lsn(window.horizon.0.max(4) + random.below(window.latest.0 - window.horizon.0.max(4) + 1));
        let epoch = replica.node.next_epoch();
        let now = replica.now();
        replica.node.promote(now, at, epoch).expect("promoted");
        reference.cut(at);
        check_newest(&mut replica, &reference);
        drop(replica);
        let mut replica = Driven::open(west.storage(), tracking(replica_config("group"))).expect("opened");
        check_newest(&mut replica, &reference);
        replica.work();
        assert!(!replica.node.is_hydrating(), "its disks are whole");
        for _ in 0..20 {
            reference.step(&mut replica, &mut random);
        }
        check_newest(&mut replica, &reference);
        replica.work();
        check_newest(&mut replica, &reference);
        check_points(&mut replica, &reference);
    }
}

/// The replica is away while the log is given up: it gets what it lacks, and the sizes, by a span.
#[test]
fn sizes_that_a_replica_missed_come_with_the_span() {
    for seed in 1..6 {
        let mut random = Random(seed * 15_485_863);
        let [east, west] = [CrashDisk::new(), CrashDisk::new()];
        let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
        let mut replica = Driven::open(west.storage(), tracking(replica_config("group"))).expect("opened");
        let mut reference = Reference { forgets: true, ..Reference::new() };
        for round in 0..3 {
            for _ in 0..30 {
                reference.step(&mut primary, &mut random);
            }
            primary.flush().expect("flushed");
            replicate(&mut primary, &mut replica);
            primary.node.link_changed("west", false);
            // More than the log holds.
            for _ in 0..200 {
                for _ in 0..5 {
                    reference.step(&mut primary, &mut random);
                }
                primary.flush().expect("flushed");
                if random.below(8) == 0 {
                    primary.work();
                }
            }
            if random.below(2) == 0 {
                drop(primary);
                primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
            }
            let durable = replica.node.durable().lsn;
            assert!(
                primary.node.log().first() > durable.next(),
                "seed {seed}, round {round}: the log was kept"
            );
            replicate(&mut primary, &mut replica);
            for _ in 0..400 {
                if primary.node.report(primary.now).replicas[0].lacking.is_none() {
                    break;
                }
                primary.work();
                let next = replica.node.durable().lsn.next();
                common::ship(&mut primary, &mut replica, next);
                // It frees its log as it goes, or has no room for the rest.
                replica.work();
            }
            let lacking = primary.node.report(primary.now).replicas[0].lacking;
            assert!(lacking.is_none(), "seed {seed}, round {round}: the span ends: {lacking:?}");
            let latest = replica.node.window().expect("it has points").latest;
            assert_eq!(latest, primary.node.durable().lsn);
            replica.node.pin(latest).expect("it is one");
            for (&id, bytes) in &reference.now {
                let plan = replica.node.plan_point(id, latest, Extent::new(0, bytes.len() as u64));
                assert!(
                    plan.expect("it is there").read_all().expect("read") == *bytes,
                    "seed {seed}: volume {id}"
                );
            }
            replica.node.unpin(latest);
        }
    }
}

/// Writes until the log does not hold any more what the replica, which is away, needs next.
fn outlast_the_log(primary: &mut Driven, replica: &Driven) {
    while primary.node.log().first() <= replica.node.durable().lsn.next() {
        for _ in 0..8 {
            primary.write(A, 0, &[1; 16 << 10]).expect("written");
        }
        primary.flush().expect("flushed");
        primary.work();
    }
}

/// Goes on with a session until the span that it began with has ended.
fn catch_up(primary: &mut Driven, replica: &mut Driven) {
    for _ in 0..400 {
        primary.sync();
        let next = replica.node.durable().lsn.next();
        common::ship(primary, replica, next);
        if primary.node.report(primary.now).replicas[0].lacking.is_none() {
            return;
        }
        primary.work();
        replica.work();
    }
    panic!("the span does not end");
}

/// A volume grows while the replica is away, and the first write to what it gained is not yet durable when the span
/// begins: so that write comes before the record that tells of the size. (Seed 2 of `random_points`.)
#[test]
fn a_write_to_what_a_volume_gained_comes_before_the_size() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
    let mut replica = Driven::open(west.storage(), tracking(replica_config("group"))).expect("opened");
    primary.write(A, 0, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    primary.node.link_changed("west", false);
    let now = primary.now();
    primary.node.resize(now, "data", 2 * VOLUME_BYTES).expect("resized");
    outlast_the_log(&mut primary, &replica);
    primary.write(A, VOLUME_BYTES, &[2; 4096]).expect("written");
    assert!(primary.node.log().tip() != primary.node.log().durable(), "it is not durable");
    let hello = primary.node.hello().expect("a primary");
    let now = replica.now();
    let welcome = replica.node.accept(now, &hello, TakesBack::No).expect("it follows");
    let (needs, now) = (replica.node.needs(), primary.now());
    let jump =
        primary.node.attach(now, "west", &welcome, Some(&needs)).expect("a span begins").expect("a jump");
    let now = replica.now();
    replica.node.jump(now, &jump).expect("it jumps");
    catch_up(&mut primary, &mut replica);
    let latest = primary.node.durable().lsn;
    replica.node.pin(latest).expect("it is a point");
    let plan = replica.node.plan_point(A, latest, Extent::new(VOLUME_BYTES, 4096)).expect("it has that size");
    assert_eq!(plan.read_all().expect("read").to_vec(), [2; 4096]);
}

/// A replica learns of a size by a span, and is started again: the points from before the span keep the size of then.
#[test]
fn points_before_a_span_keep_their_sizes_over_a_restart() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
    let mut replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    primary.write(A, 0, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let before = replica.node.window().expect("points").latest;
    primary.node.link_changed("west", false);
    let now = primary.now();
    primary.node.resize(now, "data", 2 * VOLUME_BYTES).expect("resized");
    outlast_the_log(&mut primary, &replica);
    replicate(&mut primary, &mut replica);
    primary.sync();
    let next = replica.node.durable().lsn.next();
    common::ship(&mut primary, &mut replica, next);
    let size = replica.node.volume_specs().find(|spec| spec.id == A).expect("known").size;
    assert_eq!(size, 2 * VOLUME_BYTES, "it has heard of it");
    for _ in 0..2 {
        assert_eq!(sizes(&replica.node.specs_at(before))[&A], VOLUME_BYTES);
        replica.work();
        assert_eq!(sizes(&replica.node.specs_at(before))[&A], VOLUME_BYTES);
        drop(replica);
        replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    }
}

/// A replica learns by a span that a volume is smaller, and is started again: its window goes on moving.
#[test]
fn retention_goes_on_behind_a_span_that_made_a_volume_smaller() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut config = replica_config("group");
    config.retention.bytes = 128 << 10;
    let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
    let mut replica = Driven::open(west.storage(), config.clone()).expect("opened");
    primary.write(A, VOLUME_BYTES - 4096, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    primary.node.link_changed("west", false);
    let now = primary.now();
    primary.node.resize(now, "data", VOLUME_BYTES / 2).expect("resized");
    outlast_the_log(&mut primary, &replica);
    replicate(&mut primary, &mut replica);
    catch_up(&mut primary, &mut replica);
    drop(replica);
    let mut replica = Driven::open(west.storage(), config).expect("opened");
    for _ in 0..64 {
        primary.write(A, 0, &[1; 16 << 10]).expect("written");
        primary.flush().expect("flushed");
        primary.work();
        replicate(&mut primary, &mut replica);
        replica.work();
    }
    let bytes: u64 = replica.node.segments().iter().map(|segment| segment.end).sum();
    assert!(bytes < 512 << 10, "{bytes} bytes of log are kept");
}

/// A size that a failover set aside is the branch's, and comes back with it.
#[test]
fn a_branch_has_sizes_of_its_own() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    primary.write(A, 0, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    let at = primary.node.durable().lsn;
    let now = primary.now();
    primary.node.resize(now, "data", 2 * VOLUME_BYTES).expect("resized");
    primary.write(A, VOLUME_BYTES, &[2; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let now = replica.now();
    replica.node.promote(now, at, Epoch(2)).expect("promoted");
    let size = |node: &Driven| node.node.volume_specs().find(|spec| spec.id == A).expect("known").size;
    assert_eq!(size(&replica), VOLUME_BYTES);
    replica.work();

    let branch = replica.node.branches()[0];
    let states = replica.node.survey_branch(&branch).run().expect("read");
    let latest = states.latest().expect("it has points");
    assert_eq!(sizes(&replica.node.branch_volumes(&states, latest))[&A], 2 * VOLUME_BYTES);
    assert_eq!(sizes(&replica.node.branch_volumes(&states, at.next().next()))[&A], 2 * VOLUME_BYTES);
    replica.node.pin(at).expect("it is a point");
    let plan = replica.node.plan_branch(&states, A, latest, Extent::new(VOLUME_BYTES, 4096));
    assert_eq!(plan.expect("it is there").read_all().expect("read").to_vec(), [2; 4096]);
    assert!(replica.node.plan_branch(&states, A, latest, Extent::new(2 * VOLUME_BYTES, 512)).is_none());
    replica.node.unpin(at);

    let (now, epoch) = (replica.now(), replica.node.next_epoch());
    replica.node.reconsider(now, Target::Branch(&states, latest), epoch).expect("moved");
    drop(states);
    for _ in 0..2 {
        assert_eq!(size(&replica), 2 * VOLUME_BYTES);
        assert_eq!(replica.read(A, VOLUME_BYTES, 4096).expect("read"), [2; 4096]);
        replica.work();
        drop(replica);
        replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    }
    let (now, epoch) = (replica.now(), replica.node.next_epoch());
    replica.node.reconsider(now, Target::Line(at), epoch).expect("moved back");
    assert_eq!(size(&replica), VOLUME_BYTES);
    let now = replica.now();
    replica.node.commit(now).expect("committed");
    replica.work();
    let now = replica.now();
    replica.node.resize(now, "data", 2 * VOLUME_BYTES).expect("resized");
    assert!(
        replica.read(A, VOLUME_BYTES, 4096).expect("read") == [0; 4096],
        "nothing of the branch comes back"
    );
    replica.work();
    assert!(replica.read(A, VOLUME_BYTES, 4096).expect("read") == [0; 4096]);
}

#[test]
fn what_cannot_be_resized_is_refused() {
    let mut primary = Driven::open(CrashDisk::new().storage(), primary_config("group")).expect("opened");
    let tip = primary.node.log().tip();
    let now = primary.now();
    for (name, size) in
        [("nothing", 4096), ("data", 0), ("data", 1000), ("data", u64::MAX - 511), ("data", 65 << 40)]
    {
        assert!(primary.node.resize(now, name, size).is_err(), "{name} to {size}");
    }
    primary.node.resize(now, "data", VOLUME_BYTES).expect("it has that size");
    assert_eq!(primary.node.log().tip(), tip, "nothing was logged");
    let mut replica = Driven::open(CrashDisk::new().storage(), replica_config("group")).expect("opened");
    replicate(&mut primary, &mut replica);
    let now = replica.now();
    assert!(replica.node.resize(now, "data", 4096).is_err(), "a replica has the sizes of its primary");
}

/// A power cut at each step: the volume has the one size or the other, and the bytes that go with it.
#[test]
fn a_resize_is_whole_or_not_at_all() {
    for (size, is_larger) in [(2 * VOLUME_BYTES, true), (VOLUME_BYTES / 2, false)] {
        for cut in 0..30 {
            let disk = CrashDisk::new();
            let mut random = Random(99 + cut);
            let mut primary = Driven::open(disk.storage(), primary_config("group")).expect("opened");
            primary.write(A, 0, &[1; 4096]).expect("written");
            primary.write(A, VOLUME_BYTES - 4096, &[2; 4096]).expect("written");
            primary.flush().expect("flushed");
            let now = primary.now();
            disk.cut_after(cut);
            let done = primary.node.resize(now, "data", size);
            drop(primary);
            for left in disk.outcomes(4, &mut random) {
                let mut primary = Driven::open(left.storage(), primary_config("group")).expect("opened");
                let found = primary.node.volume_specs().find(|spec| spec.id == A).expect("it is there").size;
                assert!(found == size || found == VOLUME_BYTES && done.is_err(), "cut {cut}: {found}");
                assert_eq!(primary.read(A, 0, 4096).expect("read"), [1; 4096]);
                if found == VOLUME_BYTES || is_larger {
                    let end = primary.read(A, VOLUME_BYTES - 4096, 4096).expect("read");
                    assert!(end == [2; 4096] || !is_larger && end == [0; 4096], "cut {cut}");
                }
            }
            if !disk.is_cut() {
                break;
            }
        }
    }
}
