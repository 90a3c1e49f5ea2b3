//! A primary and a replica on real files, driven by hand: what was written is read back, survives restarts, is
//! replicated byte for byte, and can be promoted at any point.

mod common;

use common::{A, B, Driven, Random, TempDir, VOLUME_BYTES, primary_config, replica_config, replicate};
use engine::guest::{Op, Refusal};
use engine::node::config::{AckPolicy, Retention};
use engine::peer::TakesBack;
use engine::state::Role;
use engine::types::{Epoch, Extent, Lsn, VolumeId};
use std::sync::Arc;

/// Plain arrays, and what they were at each LSN.
struct Reference {
    volumes: [Vec<u8>; 2],
    history: Vec<(Lsn, [Vec<u8>; 2])>,
}

impl Reference {
    fn new() -> Reference {
        let blank = || vec![0; VOLUME_BYTES as usize];
        Reference { volumes: [blank(), blank()], history: Vec::new() }
    }

    fn remember(&mut self, lsn: Lsn) {
        self.history.push((lsn, self.volumes.clone()));
    }
}

fn step(node: &mut Driven, reference: &mut Reference, random: &mut Random) {
    let volume = random.below(2) as usize;
    let id = VolumeId(volume as u32 + 1);
    let len = 512 * (1 + random.below(24));
    let offset = 512 * random.below((VOLUME_BYTES - len) / 512);
    let range = offset as usize..(offset + len) as usize;
    match random.below(10) {
        0 => {
            node.request(id, Op::Trim(Extent::new(offset, len)), false).expect("trimmed");
            reference.volumes[volume][range].fill(0);
        }
        1 => node.flush().expect("flushed"),
        2 => {
            let read = node.read(id, offset, len).expect("read");
            assert_eq!(read, reference.volumes[volume][range], "volume {volume} at {offset}");
        }
        _ => {
            let bytes: Vec<u8> = (0..len).map(|_| random.below(255) as u8 + 1).collect();
            node.write(id, offset, &bytes).expect("written");
            reference.volumes[volume][range].copy_from_slice(&bytes);
        }
    }
}

fn assert_equals(node: &mut Driven, reference: &Reference) {
    for (index, id) in [A, B].into_iter().enumerate() {
        let read = node.read(id, 0, VOLUME_BYTES).expect("read");
        assert!(read == reference.volumes[index], "volume {index} is not what was written");
    }
}

#[test]
fn writes_survive_restarts_of_the_process() {
    let dir = TempDir::new();
    let mut reference = Reference::new();
    let mut random = Random(1);
    for round in 0..12 {
        let mut node = Driven::open(dir.storage(), primary_config("g")).expect("opened");
        assert_equals(&mut node, &reference);
        for _ in 0..60 {
            step(&mut node, &mut reference, &mut random);
        }
        if round % 3 == 0 {
            node.work();
            assert_equals(&mut node, &reference);
        }
        // No close: the process is gone between one statement and the next.
    }
}

#[test]
fn backing_is_the_plain_disk_once_applied() {
    let dir = TempDir::new();
    let mut reference = Reference::new();
    let mut random = Random(2);
    let mut node = Driven::open(dir.storage(), primary_config("g")).expect("opened");
    for _ in 0..200 {
        step(&mut node, &mut reference, &mut random);
    }
    node.work();
    for (index, name) in ["data", "wal"].into_iter().enumerate() {
        let plain =
            std::fs::read(dir.0.join(format!("g/volumes/{name}.img"))).expect("the plain disk is there");
        assert!(plain == reference.volumes[index], "{name} is not the volume");
    }
}

/// W28: a second process gets a clear error.
#[test]
fn w28_second_start_is_refused() {
    let dir = TempDir::new();
    let _first = Driven::open(dir.storage(), primary_config("g")).expect("opened");
    let second = Driven::open(dir.storage(), primary_config("g")).err().expect("the folder is locked");
    assert!(second.to_string().contains("in use by another process"), "{second}");
}

#[test]
fn every_lsn_is_a_point_on_the_replica() {
    let (here, there) = (TempDir::new(), TempDir::new());
    let mut primary = Driven::open(here.storage(), primary_config("g")).expect("opened");
    let mut replica = Driven::open(there.storage(), replica_config("g")).expect("opened");
    let mut reference = Reference::new();
    let mut random = Random(3);
    for round in 0..10 {
        for _ in 0..20 {
            step(&mut primary, &mut reference, &mut random);
            reference.remember(primary.node.log().tip().lsn);
        }
        primary.work();
        replicate(&mut primary, &mut replica);
        assert_eq!(primary.node.durable(), replica.node.durable());
        if round % 3 == 2 {
            drop(replica);
            replica = Driven::open(there.storage(), replica_config("g")).expect("opened again");
        }
    }
    for (lsn, volumes) in &reference.history {
        assert!(replica.read_point(A, *lsn) == volumes[0], "point {lsn}");
        assert!(replica.read_point(B, *lsn) == volumes[1], "point {lsn}");
    }
}

/// Guarantee 5: points are retired before the base image is folded past them, and what stays is exact.
#[test]
fn retention_folds_and_points_stay_exact() {
    let (here, there) = (TempDir::new(), TempDir::new());
    let mut primary = Driven::open(here.storage(), primary_config("g")).expect("opened");
    let config = || {
        let mut config = replica_config("g");
        config.retention = Retention { bytes: 300 << 10, age_ns: u64::MAX, ..Retention::default() };
        config
    };
    let mut replica = Driven::open(there.storage(), config()).expect("opened");
    let mut reference = Reference::new();
    let mut random = Random(4);
    for round in 0..12 {
        for _ in 0..20 {
            step(&mut primary, &mut reference, &mut random);
            reference.remember(primary.node.log().tip().lsn);
        }
        primary.work();
        replicate(&mut primary, &mut replica);
        replica.work();
        if round % 4 == 3 {
            drop(replica);
            replica = Driven::open(there.storage(), config()).expect("opened again");
        }
        let window = replica.node.window().expect("a replica keeps points");
        for (lsn, volumes) in reference.history.iter().filter(|(lsn, _)| *lsn >= window.horizon) {
            assert!(replica.read_point(A, *lsn) == volumes[0], "point {lsn}");
            assert!(replica.read_point(B, *lsn) == volumes[1], "point {lsn}");
        }
    }
    let window = replica.node.window().expect("a replica keeps points");
    assert!(window.horizon > Lsn(1), "something was retired");
    assert!(replica.node.pin(window.horizon.prev()).is_err(), "a retired point cannot be selected");
    assert!(replica.node.log().used_bytes() < 600 << 10, "log files are used again");
}

#[test]
fn promotion_at_any_point_keeps_the_rest_as_a_branch() {
    let (here, there) = (TempDir::new(), TempDir::new());
    let mut primary = Driven::open(here.storage(), primary_config("g")).expect("opened");
    let mut replica = Driven::open(there.storage(), replica_config("g")).expect("opened");
    let mut reference = Reference::new();
    let mut random = Random(5);
    for _ in 0..150 {
        step(&mut primary, &mut reference, &mut random);
        reference.remember(primary.node.log().tip().lsn);
    }
    primary.work();
    replicate(&mut primary, &mut replica);
    let (at, volumes) = reference.history[100].clone();
    let now = replica.now();
    let promotion = replica.node.promote(now, at, Epoch(2)).expect("promoted");
    assert_eq!(promotion.reign.branch.lsn, at);
    assert_eq!(promotion.latest, primary.node.durable().lsn);
    assert_eq!(replica.node.state().branches.len(), 1);
    let mut promoted = Reference::new();
    promoted.volumes = volumes;
    assert_equals(&mut replica, &promoted);

    // It serves at once, while its disks are being filled, over restarts, and afterwards.
    for round in 0..6 {
        for _ in 0..30 {
            step(&mut replica, &mut promoted, &mut random);
        }
        assert_equals(&mut replica, &promoted);
        if round == 1 || round == 4 {
            drop(replica);
            replica = Driven::open(there.storage(), replica_config("g")).expect("opened again");
            assert_eq!(replica.node.role(), Role::Primary);
            assert_equals(&mut replica, &promoted);
        }
        if round == 2 {
            replica.work();
            assert!(!replica.node.is_hydrating(), "the disks are whole by now");
        }
    }
    let plain =
        |name: &str| std::fs::read(there.0.join(format!("g/volumes/{name}.img"))).expect("a plain disk");
    replica.work();
    assert!(plain("data") == promoted.volumes[0] && plain("wal") == promoted.volumes[1]);

    // Asked again, it says that it was done; at another point, it refuses.
    let now = replica.now();
    assert!(replica.node.promote(now, at, Epoch(2)).expect("done before").repeated);
    assert!(replica.node.promote(now, at.prev(), Epoch(2)).is_err());
    assert!(replica.node.promote(now, at, Epoch(3)).is_err());

    // R07, guarantee 6: the old primary is refused, and fences itself on hearing why.
    let hello = primary.node.hello().expect("it does not know yet");
    let rebuff = replica.node.accept(now, &hello, TakesBack::No).expect_err("an old epoch");
    primary.node.rebuffed(now, "west", &rebuff);
    assert_eq!(primary.node.role(), Role::Fenced);
    assert_eq!(primary.write(A, 0, &[1; 512]), Err(Refusal::Shutdown));
    drop(primary);
    let mut primary = Driven::open(here.storage(), primary_config("g")).expect("opened again");
    assert_eq!(primary.write(A, 0, &[1; 512]), Err(Refusal::Shutdown), "a fence outlives the process");
}

#[test]
fn second_replica_follows_the_new_primary_and_keeps_its_branch() {
    let dirs = [TempDir::new(), TempDir::new(), TempDir::new()];
    let mut config = primary_config("g");
    config.replicas.push("north".to_owned());
    let mut primary = Driven::open(dirs[0].storage(), config).expect("opened");
    let mut west_config = replica_config("g");
    west_config.replicas = vec!["west".to_owned()];
    let mut west = Driven::open(dirs[1].storage(), west_config).expect("opened");
    let mut north = Driven::open(dirs[2].storage(), replica_config("g")).expect("opened");
    let mut reference = Reference::new();
    let mut random = Random(6);
    for _ in 0..80 {
        step(&mut primary, &mut reference, &mut random);
        reference.remember(primary.node.log().tip().lsn);
    }
    primary.work();
    replicate(&mut primary, &mut west);
    replicate(&mut primary, &mut north);
    let (at, volumes) = reference.history[50].clone();
    let now = west.now();
    assert!(west.node.promote(now, at, Epoch(3)).is_err(), "R08: an epoch is decided once");
    west.node.promote(now, at, Epoch(2)).expect("promoted");
    let mut promoted = Reference::new();
    promoted.volumes = volumes;
    for _ in 0..40 {
        step(&mut west, &mut promoted, &mut random);
        promoted.remember(west.node.log().tip().lsn);
    }
    west.work();
    replicate(&mut west, &mut north);
    assert_eq!(north.node.state().branches.len(), 1, "what the new primary never had is kept");
    drop(north);
    let mut north = Driven::open(dirs[2].storage(), replica_config("g")).expect("opened again");
    for (lsn, volumes) in &promoted.history {
        assert!(north.read_point(A, *lsn) == volumes[0], "point {lsn}");
    }
    // The old primary is not let in there any more.
    let hello = primary.node.hello().expect("it does not know yet");
    let now = north.now();
    assert!(north.node.accept(now, &hello, TakesBack::No).is_err());
}

/// Guarantee 3 with `ack = "replica"`: a flush waits for the other region.
#[test]
fn flush_waits_for_the_replica_if_asked_to() {
    let (here, there) = (TempDir::new(), TempDir::new());
    let mut config = primary_config("g");
    config.ack = AckPolicy::Replica;
    let mut primary = Driven::open(here.storage(), config).expect("opened");
    let mut replica = Driven::open(there.storage(), replica_config("g")).expect("opened");
    primary.write(A, 0, &[3; 4096]).expect("a plain write waits for nothing");
    let mut out = engine::node::primary::Submitted::default();
    let mut flush = vec![engine::guest::Request { cookie: 1, op: Op::Flush, fua: false }];
    let now = primary.now();
    primary.node.submit(now, A, &mut flush, &mut out);
    primary.sync();
    assert!(primary.node.take_answers().is_empty(), "durable here is not enough");
    replicate(&mut primary, &mut replica);
    let answers = primary.node.take_answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].ticket, out.waiting[0].1);
    assert_eq!(answers[0].result, Ok(()));
}

#[test]
fn a_disk_with_data_is_not_taken_for_a_new_volume() {
    let dir = TempDir::new();
    let path = dir.0.join("disk.img");
    let mut bytes = vec![0; VOLUME_BYTES as usize];
    bytes[70_000] = 1;
    std::fs::write(&path, &bytes).expect("written");
    let mut config = primary_config("g");
    config.backings.insert("data".to_owned(), path.to_string_lossy().into_owned());
    let refused = Driven::open(dir.storage(), config).err().expect("refused");
    assert!(refused.to_string().contains("already holds data (at byte 70000)"), "{refused}");
    assert_eq!(std::fs::read(&path).expect("still there"), bytes);
    assert!(!dir.0.join("g/state").exists(), "a refusal leaves nothing behind");
}

#[test]
fn storage_is_shared_safely() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Arc<dyn engine::io::Storage>>();
    assert_send_sync::<engine::node::Node>();
}
