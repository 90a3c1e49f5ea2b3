//! The log's files are read again where they lie, and rot in them is told of before anybody needs the records.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, primary_config, replica_config, replicate};
use engine::node::config::{OnFull, Verification};
use engine::types::Lsn;

const HOUR_MS: u64 = 3_600_000;

fn verified(mut config: engine::node::config::Config) -> engine::node::config::Config {
    config.verify = Verification { every_ms: Some(HOUR_MS), bytes_s: 64 << 20 };
    config.on_full = OnFull::Track;
    config
}

fn write_some(primary: &mut Driven) {
    for number in 0..100_u64 {
        primary.write(A, number * 4096, &[number as u8 + 1; 4096]).expect("written");
    }
    primary.flush().expect("flushed");
}

/// Lets an hour go by.
fn an_hour(node: &mut Driven) {
    for _ in 0..20 {
        node.now.mono.0 += HOUR_MS * 1_000_000 / 10;
        node.work();
    }
}

/// The file and LSN of a record in the middle of a full file, and a byte of its payload.
fn in_the_middle(node: &Driven) -> (u32, Lsn, usize) {
    let segment = &node.node.segments()[1];
    let lsn = Lsn((segment.header.first.0 + segment.last.0) / 2);
    let (_, slot, end) = node.node.log().tip_at(lsn).expect("read").expect("it is there");
    (slot, lsn, end as usize - 2000)
}

#[test]
fn w35_rot_at_rest_is_found_on_a_replica() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut replica = Driven::open(west.storage(), verified(replica_config("group"))).expect("opened");
    write_some(&mut primary);
    replicate(&mut primary, &mut replica);
    an_hour(&mut replica);
    let report = replica.node.reread();
    assert!(report.passes > 0 && report.bytes > 200_000, "{report:?}");
    assert!(report.rotten.is_empty(), "{report:?}");

    let (slot, lsn, at) = in_the_middle(&replica);
    west.rot(&format!("group/log/{slot:08}.seg"), at, 1);
    an_hour(&mut replica);
    let rotten = replica.node.reread().rotten;
    assert_eq!(rotten.len(), 1, "{rotten:?}");
    assert_eq!((rotten[0].segment, rotten[0].lsn), (slot, lsn));
    assert!(replica.node.failed().is_none(), "the node goes on");

    // It may have been the cable.
    west.rot(&format!("group/log/{slot:08}.seg"), at, 1);
    an_hour(&mut replica);
    assert!(replica.node.reread().rotten.is_empty(), "what can be read again is well");
}

#[test]
fn w35_rot_at_rest_on_a_primary_is_made_up_for_by_a_span() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), verified(primary_config("group"))).expect("opened");
    let mut replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    replicate(&mut primary, &mut replica);
    primary.node.link_changed("west", false);
    write_some(&mut primary);
    primary.work();
    let (slot, lsn, at) = in_the_middle(&primary);
    assert!(primary.node.log().first() < lsn, "the log is kept for the replica");
    east.rot(&format!("group/log/{slot:08}.seg"), at, 1);
    an_hour(&mut primary);
    assert!(primary.node.log().first() > lsn, "what cannot be read is kept for nobody");
    let now = primary.now();
    let lacking = primary.node.report(now).replicas[0].lacking;
    assert!(
        lacking.is_some_and(|lacking| lacking.bytes >= 100 * 4096),
        "what it missed is owed: {lacking:?}"
    );
}
