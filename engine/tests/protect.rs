//! A disk that holds data joins a group that runs: a power cut at each step of that leaves a group which the volume has
//! joined, or joins at the next start, and a replica that gets all of it.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, Random, primary_config, replica_config, replicate, ship};
use engine::node::config::{Begins, Config, NewVolume, Start};
use engine::types::{Extent, VolumeId};

const OLD_BYTES: usize = 256 << 10;
const PATH: &str = "disks/old.img";

fn old_volume() -> NewVolume {
    NewVolume { name: "old".to_owned(), size: OLD_BYTES as u64, begins: Begins::InPlace }
}

/// As the operator has it once the volume is named there, which comes first.
fn named(mut config: Config) -> Config {
    config.backings.insert("old".to_owned(), PATH.to_owned());
    if let Start::Primary { volumes, .. } = &mut config.start {
        volumes.push(old_volume());
    }
    config
}

fn old_data() -> Vec<u8> {
    (0..OLD_BYTES).map(|at| (at / 512 + 1) as u8).collect()
}

fn old_id(node: &Driven) -> VolumeId {
    node.node.volume_specs().find(|spec| spec.name == "old").expect("it has joined").id
}

/// Ships and copies until the replica is whole.
fn catch_up(primary: &mut Driven, replica: &mut Driven) {
    replicate(primary, replica);
    for _ in 0..200 {
        primary.work();
        let next = replica.node.durable().lsn.next();
        ship(primary, replica, next);
        if primary.node.report(primary.now).replicas[0].lacking.is_none() && !replica.node.is_coarse() {
            return;
        }
    }
    panic!("the span does not end: {:?}", primary.node.report(primary.now).replicas);
}

fn check(primary: &mut Driven, replica: &mut Driven) {
    let id = old_id(primary);
    let data = old_data();
    assert!(primary.read(id, 0, OLD_BYTES as u64).expect("read") == data, "the disk is as it was");
    let latest = replica.node.window().expect("it has points").latest;
    assert_eq!(latest, primary.node.durable().lsn);
    replica.node.pin(latest).expect("it is one");
    let plan = replica.node.plan_point(id, latest, Extent::new(0, OLD_BYTES as u64)).expect("it is there");
    assert!(plan.read_all().expect("read") == data, "the replica has all of it");
    replica.node.unpin(latest);
}

#[test]
fn r24_a_disk_joins_a_running_group_whatever_cuts_it() {
    let (mut joined, mut cuts) = (0, 0);
    for connected in [true, false] {
        for cut in 0..60 {
            let [east, west] = [CrashDisk::new(), CrashDisk::new()];
            east.storage().create_dir("disks").expect("made");
            east.put(PATH, &old_data());
            let mut random = Random(cut + 7);
            let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
            let mut replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
            primary.write(A, 0, &[1; 4096]).expect("written");
            primary.flush().expect("flushed");
            replicate(&mut primary, &mut replica);
            primary.work();
            if !connected {
                primary.node.link_changed("west", false);
            }
            let before = replica.node.window().expect("it has points").latest;

            east.cut_after(cut);
            let now = primary.now();
            let done = primary.node.add_volume(now, &old_volume(), Some(PATH.to_owned()));
            let is_cut = east.is_cut();
            if !is_cut {
                east.cut_after(u64::MAX / 2);
                done.expect("it joins");
                assert!(primary.read(old_id(&primary), 0, 512).expect("read") == old_data()[..512]);
                catch_up(&mut primary, &mut replica);
                check(&mut primary, &mut replica);
                joined += 1;
                break;
            }
            cuts += 1;
            drop(primary);
            for left in east.outcomes(3, &mut random) {
                assert!(left.bytes(PATH) == old_data(), "cut {cut}: the disk is as it was");
                let mut primary =
                    Driven::open(left.storage(), named(primary_config("group"))).expect("opened");
                let mut replica =
                    Driven::open(west.killed().storage(), replica_config("group")).expect("opened");
                replica.read_point(A, before);
                catch_up(&mut primary, &mut replica);
                check(&mut primary, &mut replica);
            }
        }
    }
    assert!(joined == 2 && cuts > 4, "{joined}, {cuts}");
}

#[test]
fn what_cannot_join_is_refused() {
    let disk = CrashDisk::new();
    disk.storage().create_dir("disks").expect("made");
    disk.put(PATH, &old_data());
    let mut primary = Driven::open(disk.storage(), primary_config("group")).expect("opened");
    let tip = primary.node.log().tip();
    let volume = |name: &str, size: u64, begins| NewVolume { name: name.to_owned(), size, begins };
    for (what, volume, path) in [
        ("a disk that is too small", volume("old", 2 * OLD_BYTES as u64, Begins::InPlace), PATH),
        ("a disk that is not there", volume("old", 4096, Begins::InPlace), "disks/none.img"),
        ("data for an empty volume", volume("old", 4096, Begins::Empty), PATH),
        ("an odd size", volume("old", 1000, Begins::InPlace), PATH),
        ("a name that leads elsewhere", volume("../old", 4096, Begins::InPlace), PATH),
        ("a name that another one has", volume("data", 4096, Begins::InPlace), PATH),
    ] {
        let now = primary.now();
        let refused = primary.node.add_volume(now, &volume, Some(path.to_owned()));
        assert!(refused.is_err(), "{what}");
        assert_eq!(primary.node.log().tip(), tip, "{what}: nothing was logged");
    }
    let now = primary.now();
    let known = primary.node.add_volume(now, &volume("data", common::VOLUME_BYTES, Begins::Empty), None);
    assert_eq!(known.expect("it is there already").name, "data");
    assert_eq!(primary.node.log().tip(), tip);

    let mut replica = Driven::open(CrashDisk::new().storage(), replica_config("group")).expect("opened");
    replicate(&mut primary, &mut replica);
    let now = replica.now();
    assert!(
        replica.node.add_volume(now, &old_volume(), Some(PATH.to_owned())).is_err(),
        "a replica defines none"
    );
}
