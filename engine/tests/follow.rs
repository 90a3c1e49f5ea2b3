//! Records that follow, and yet cannot be: a primary with a fault of its own sends them, whole and in their place. A replica
//! that takes one stops there and says why; what it had before stays as it is.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, VOLUME_BYTES, primary_config, replica_config, replicate};
use engine::event::{FLAG_AGAIN, Kind, VolumeDefined, encode_body};
use engine::log::chain::Tip;
use engine::log::format::{HEADER_BYTES, Header, Seed, aligned};
use engine::peer::{Batch, Rebuff};
use engine::types::{Checksum, Extent, GroupId, Lsn, Timestamp, VolumeId};

/// The record behind `tip`, as a batch of one.
fn record(tip: Tip, kind: Kind, flags: u16, volume: VolumeId, extent: Extent, body: &[u8]) -> Batch {
    let seed = Seed::of(GroupId([7; 16]));
    let mut payload = body.to_vec();
    payload.resize(aligned(body.len()), 0);
    let mut header = Header {
        kind,
        flags,
        checksum: Checksum(0),
        payload_checksum: if body.is_empty() { 0 } else { seed.checksum(&[&payload]) },
        previous: tip.checksum,
        incarnation: tip.incarnation,
        lsn: tip.lsn.next(),
        epoch: tip.epoch,
        durable: tip.lsn,
        time: Timestamp(1_700_000_001_000_000_000),
        extent,
        payload_len: body.len() as u32,
        volume,
    };
    let mut bytes = [0; HEADER_BYTES];
    header.encode(seed, &mut bytes);
    let bytes = vec![[&bytes[..], &payload].concat().into()];
    Batch { first: header.lsn, last: header.lsn, bytes }
}

fn definition(name: &str, size: u64) -> Vec<u8> {
    encode_body(&VolumeDefined { name: name.to_owned(), size })
}

fn replica(disk: &CrashDisk) -> (Driven, Lsn) {
    let mut primary = Driven::open(CrashDisk::new().storage(), primary_config("g")).expect("opened");
    let mut replica = Driven::open(disk.storage(), replica_config("g")).expect("opened");
    primary.write(A, 0, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let latest = replica.node.window().expect("it has points").latest;
    (replica, latest)
}

#[test]
fn records_that_cannot_be_end_a_replica() {
    let (nowhere, beyond) = (Extent::default(), Extent::new(VOLUME_BYTES, 512));
    let odd = definition("odd", 1000);
    let away = definition("../away", 4096);
    for (what, kind, flags, volume, extent, body) in [
        ("a write beyond its volume", Kind::Zero, 0, A, beyond, &[][..]),
        ("a write to no volume", Kind::Zero, 0, VolumeId(9), Extent::new(0, 512), &[][..]),
        ("a volume of an odd size", Kind::Volume, 0, VolumeId(3), nowhere, &odd[..]),
        ("a volume with a name that leads elsewhere", Kind::Volume, 0, VolumeId(3), nowhere, &away[..]),
        ("another odd size of a volume", Kind::Volume, FLAG_AGAIN, A, nowhere, &odd[..]),
        ("a resize from another size", Kind::Resize, 0, A, Extent::new(4096, 8192), &[][..]),
        ("a resize to an odd size", Kind::Resize, 0, A, Extent::new(VOLUME_BYTES, 1000), &[][..]),
    ] {
        let disk = CrashDisk::new();
        let (mut replica, latest) = replica(&disk);
        let batch = record(replica.node.log().tip(), kind, flags, volume, extent, body);
        let now = replica.now();
        assert_eq!(replica.node.append(now, batch.clone()), Err(Rebuff::Failed), "{what}");
        let reason = replica.node.failed().map(|failed| failed.reason.clone()).unwrap_or_default();
        assert!(!reason.is_empty(), "{what}: it says why");
        assert_eq!(replica.node.append(now, batch), Err(Rebuff::Failed), "{what}: nothing more is taken");
        assert_eq!(replica.node.acknowledgeable().lsn, latest, "{what}: it is not acknowledged");
        assert_eq!(replica.read_point(A, latest)[..4096], [1; 4096], "{what}: what was there before");
    }
}

/// The same by the same hand, but in order.
#[test]
fn records_that_can_be_are_taken() {
    let disk = CrashDisk::new();
    let (mut replica, latest) = replica(&disk);
    let more = definition("more", 4096);
    for (kind, volume, extent, body) in [
        (Kind::Resize, A, Extent::new(VOLUME_BYTES, 2 * VOLUME_BYTES), &[][..]),
        (Kind::Zero, A, Extent::new(VOLUME_BYTES, 512), &[][..]),
        (Kind::Volume, VolumeId(3), Extent::default(), &more[..]),
        (Kind::Zero, VolumeId(3), Extent::new(0, 4096), &[][..]),
    ] {
        let batch = record(replica.node.log().tip(), kind, 0, volume, extent, body);
        let now = replica.now();
        replica.node.append(now, batch).expect("it follows");
    }
    replica.sync();
    assert_eq!(replica.node.acknowledgeable().lsn, Lsn(latest.0 + 4));
    drop(replica);
    let replica = Driven::open(disk.storage(), replica_config("g")).expect("opened");
    let sizes: Vec<u64> = replica.node.volume_specs().map(|spec| spec.size).collect();
    assert_eq!(sizes, [2 * VOLUME_BYTES, VOLUME_BYTES, 4096]);
}
