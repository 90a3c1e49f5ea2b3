//! What an open point costs is the log that is retired once it is closed.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, VOLUME_BYTES, primary_config, replica_config, replicate};

const BLOCK: usize = 16 << 10;

/// Writes so many blocks, and brings them to the replica.
fn write(primary: &mut Driven, replica: &mut Driven, blocks: u64) {
    for block in 0..blocks {
        let content = vec![block as u8 + 1; BLOCK];
        primary.write(A, block * BLOCK as u64 % VOLUME_BYTES, &content).expect("written");
    }
    primary.flush().expect("flushed");
    replicate(primary, replica);
    replica.work();
}

#[test]
fn what_a_pin_costs_is_what_goes_when_it_is_closed() {
    let mut primary = Driven::open(CrashDisk::new().storage(), primary_config("g")).expect("opened");
    let mut config = replica_config("g");
    config.retention.bytes = 256 << 10;
    let mut replica = Driven::open(CrashDisk::new().storage(), config).expect("opened");
    write(&mut primary, &mut replica, 4);
    let at = replica.node.window().expect("there are points").latest;
    replica.node.pin(at).expect("it is a point");
    assert_eq!(replica.node.held_for(at, replica.now), 0, "retention has not come to it");

    write(&mut primary, &mut replica, 60);
    let some = replica.node.held_for(at, replica.now);
    assert!(some > 256 << 10, "{some} bytes are held");
    write(&mut primary, &mut replica, 60);
    let more = replica.node.held_for(at, replica.now);
    assert!(more > some, "{more} bytes are held, after {some}");
    let latest = replica.node.window().expect("there are points").latest;
    assert_eq!(replica.node.held_for(latest, replica.now), 0, "the newest point holds nothing");

    let used = |replica: &Driven| replica.node.segments().iter().map(|segment| segment.end).sum::<u64>();
    let before = used(&replica);
    replica.node.unpin(at);
    for _ in 0..20 {
        replica.work();
    }
    assert_eq!(before - used(&replica), more, "all that was held is free, and nothing else");
    assert_eq!(replica.node.held_for(at, replica.now), 0);
}
