//! One message of each kind, with every field different from zero and from its neighbours.

use bytes::Bytes;
use engine::digest::Digest;
use engine::log::chain::Tip;
use engine::peer::{Ask, Batch, Hello, Jump, Lack, Needs, Rebuff, Welcome};
use engine::seeds::{Held, Thin};
use engine::types::{
    Checksum, Epoch, Extent, GroupId, Incarnation, Lsn, NodeId, Position, Reign, Timestamp, VolumeId,
};
use transport::link::frame::{Acceptance, Frame, Heartbeat, Offer};

pub const GROUP: GroupId = GroupId(*b"group-0123456789");
pub const PRIMARY: NodeId = NodeId(*b"node-primary-abc");
pub const REPLICA: NodeId = NodeId(*b"node-replica-xyz");

/// A position that can be told from others.
pub fn position(epoch: u64, lsn: u64) -> Position {
    Position { epoch: Epoch(epoch), lsn: Lsn(lsn), checksum: Checksum(0xC0DE_0000 | lsn as u32) }
}

/// Two reigns; the second is the primary's.
pub fn history() -> Vec<Reign> {
    vec![
        Reign { epoch: Epoch(1), branch: Position::default(), node: REPLICA },
        Reign { epoch: Epoch(2), branch: position(1, 40), node: PRIMARY },
    ]
}

pub fn hello(durable: u64) -> Hello {
    Hello {
        name: "orders-db".into(),
        group: GROUP,
        node: PRIMARY,
        history: history(),
        durable: position(2, durable),
        first: Lsn(17),
    }
}

pub fn welcome(durable: u64) -> Welcome {
    Welcome { node: REPLICA, durable: position(2, durable), horizon: Lsn(23) }
}

/// `count` records of `len` bytes each, as one piece.
pub fn batch(first: u64, count: u64, len: usize) -> Batch {
    let bytes: Vec<u8> = (first..first + count).flat_map(|lsn| vec![lsn as u8; len]).collect();
    Batch { first: Lsn(first), last: Lsn(first + count - 1), bytes: vec![Bytes::from(bytes)] }
}

pub fn heartbeat(durable: u64) -> Heartbeat {
    Heartbeat { wall: Timestamp(1_800_000_000_123_456_789), durable: Lsn(durable) }
}

pub fn lack(volume: u32, offset: u64, len: u64) -> Lack {
    Lack { volume: VolumeId(volume), extent: Extent::new(offset, len) }
}

pub fn held(volume: u32, offset: u64, len: u64) -> Held {
    let digest = Digest(std::array::from_fn(|at| 0xD0 | at as u8));
    Held { volume: VolumeId(volume), extent: Extent::new(offset, len), digest }
}

/// Two records from `first` on, of which two parts were left out.
pub fn thin(first: u64) -> Thin {
    Thin {
        first: Lsn(first),
        last: Lsn(first + 1),
        left_out: vec![(7, held(3, 0x5_0000_1000, 0x2000)), (0x2009, held(4, 0x4_0000, 0x1000))],
        bytes: vec![Bytes::from_static(b"what was not left out")],
    }
}

/// So many extents, each different.
pub fn lacks(count: usize) -> Vec<Lack> {
    (0..count as u64).map(|at| lack(1 + (at % 5) as u32, at << 16, 4_096 + at)).collect()
}

/// In the primary's reign, between two LSNs.
pub fn jump(from: u64, to: u64) -> Jump {
    let Position { epoch, lsn, checksum } = position(2, to);
    Jump { from: position(2, from), to: Tip { lsn, epoch, incarnation: Incarnation(6), checksum } }
}

/// Every frame that the protocol has, each variant of each message, by the name of its fixture.
pub fn frames() -> Vec<(&'static str, Frame)> {
    vec![
        ("hello", Frame::Hello(Offer { minor: 3, features: 0x8000_0000_0000_0001, hello: hello(99) })),
        ("welcome", Frame::Welcome(Acceptance { minor: 2, features: 0x5, welcome: welcome(77) })),
        ("rebuff-superseded", Frame::Rebuff(Rebuff::Superseded { history: history() })),
        ("rebuff-rival", Frame::Rebuff(Rebuff::Rival { history: history() })),
        ("rebuff-diverged", Frame::Rebuff(Rebuff::Diverged { at: position(1, 39) })),
        ("rebuff-too-far-behind", Frame::Rebuff(Rebuff::TooFarBehind { durable: position(1, 5) })),
        ("rebuff-wrong-group", Frame::Rebuff(Rebuff::WrongGroup)),
        ("rebuff-not-allowed", Frame::Rebuff(Rebuff::NotAllowed)),
        ("rebuff-failed", Frame::Rebuff(Rebuff::Failed)),
        ("rebuff-no-space", Frame::Rebuff(Rebuff::NoSpace)),
        ("rebuff-not-yet", Frame::Rebuff(Rebuff::NotYet)),
        ("batch", Frame::Batch(batch(78, 3, 7))),
        ("ack", Frame::Ack(position(2, 80))),
        ("heartbeat", Frame::Heartbeat(heartbeat(99))),
        (
            "needs",
            Frame::Needs(Needs {
                coarse: true,
                lacks: vec![lack(3, 0x1000, 0x2000), lack(4, 0x5_0000_7000, 0x200)],
            }),
        ),
        ("needs-coarse", Frame::Needs(Needs { coarse: true, lacks: Vec::new() })),
        ("needs-lacks", Frame::Needs(Needs { coarse: false, lacks: vec![lack(3, 0x1000, 0x2000)] })),
        ("jump", Frame::Jump(jump(77, 90))),
        ("ask-handover", Frame::Ask(Ask::Handover)),
        ("ask-repair", Frame::Ask(Ask::Repair(lack(3, 0x1000, 0x2000)))),
        ("held", Frame::Held(vec![held(3, 0x5_0000_1000, 0x2000), held(4, 0x4_0000, 0x4_0000)])),
        ("thin", Frame::Thin(thin(78))),
    ]
}
