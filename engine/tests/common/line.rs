//! The writes of a line and of the branches that left it, folded into plain arrays, and nodes that are compared with them.

use super::crash::CrashDisk;
use super::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config, replicate, ship};
use engine::io::Storage;
use engine::node::branch_states::BranchStates;
use engine::node::config::{Config, OnFull};
use engine::state::Branch;
use engine::types::{Epoch, Extent, Lsn, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a guest wrote.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub lsn: Lsn,
    pub volume: VolumeId,
    pub offset: u64,
    pub len: u64,
    pub byte: u8,
}

/// All that was ever written on the way to a record.
pub type Line = Vec<Write>;

pub fn state_at(line: &Line, volume: VolumeId, at: Lsn) -> Vec<u8> {
    let mut bytes = vec![0; VOLUME_BYTES as usize];
    for write in line.iter().filter(|write| write.volume == volume && write.lsn <= at) {
        bytes[write.offset as usize..(write.offset + write.len) as usize].fill(write.byte);
    }
    bytes
}

/// The writes of the line that a node is on, and of what it left.
#[derive(Clone, Default)]
pub struct Reference {
    pub line: Line,
    /// By epoch and last record.
    pub left: BTreeMap<(Epoch, Lsn), Line>,
}

impl Reference {
    pub fn write_some(&mut self, node: &mut Driven, random: &mut Random, count: u64) {
        for _ in 0..count {
            let volume = if random.below(3) == 0 { B } else { A };
            let len = 512 * (1 + random.below(16));
            let offset = 512 * random.below((VOLUME_BYTES - len) / 512);
            let byte = 1 + random.below(255) as u8;
            node.write(volume, offset, &vec![byte; len as usize]).expect("written");
            let lsn = node.node.log().tip().lsn;
            self.line.push(Write { lsn, volume, offset, len, byte });
        }
        node.flush().expect("flushed");
    }

    /// The line that a branch is the end of.
    pub fn of(&self, branch: &Branch) -> &Line {
        &self.left[&(branch.epoch, branch.last)]
    }

    /// Moves the line; `was` is where and when it ended.
    pub fn go(&mut self, was: (Epoch, Lsn), to: Line, at: Lsn) {
        let left = std::mem::replace(&mut self.line, to);
        self.left.insert(was, left);
        self.line.retain(|write| write.lsn <= at);
    }
}

pub fn end_of(node: &Driven) -> (Epoch, Lsn) {
    let tip = node.node.log().tip();
    (tip.epoch, tip.lsn)
}

pub fn check_line(node: &mut Driven, reference: &Reference) {
    let end = node.node.log().tip().lsn;
    for volume in [A, B] {
        assert!(node.node.failed().is_none(), "{:?}", node.node.failed());
        let now = node.read(volume, 0, VOLUME_BYTES).expect("read");
        assert!(now == state_at(&reference.line, volume, end), "volume {volume} at LSN {end}");
    }
    let window = node.node.window().expect("points are kept");
    let middle = Lsn((window.horizon.0 + window.latest.0) / 2);
    for at in [window.horizon.max(Lsn(3)), middle.max(Lsn(3)), window.latest] {
        for volume in [A, B] {
            let bytes = node.read_point(volume, at);
            assert!(bytes == state_at(&reference.line, volume, at), "volume {volume} at the point {at}");
        }
    }
}

/// The states of a branch, if the point at which it left the line is kept.
pub fn survey(node: &Driven, branch: &Branch) -> Option<BranchStates> {
    node.node.check_start(branch.after).ok()?;
    Some(node.node.survey_branch(branch).run().expect("all of a branch can be read"))
}

pub fn read_branch(node: &mut Driven, states: &BranchStates, volume: VolumeId, at: Lsn) -> Vec<u8> {
    let after = states.branch().after.lsn;
    node.node.pin(after).expect("it is a point");
    let plan = node.node.plan_branch(states, volume, at, Extent::new(0, VOLUME_BYTES));
    let bytes = plan.expect("the volume is there").read_all().expect("read").to_vec();
    node.node.unpin(after);
    bytes
}

pub fn check_branches(node: &mut Driven, reference: &Reference) -> usize {
    let mut read = 0;
    for branch in node.node.branches() {
        let line = reference.of(&branch);
        let mut writes = line.iter().filter(|write| write.lsn > branch.after.lsn);
        let covered = node.node.read_branch(&branch).run(|header| {
            if header.kind.changes_bytes() {
                let write = writes.next().expect("no more than was written");
                assert_eq!((header.lsn, header.volume), (write.lsn, write.volume), "{branch:?}");
            }
        });
        assert_eq!(covered.expect("read"), branch.last, "{branch:?}");
        assert!(writes.next().is_none(), "all of what was written is on {branch:?}");
        let Some(states) = survey(node, &branch) else { continue };
        for at in
            [branch.after.lsn.next(), Lsn((branch.after.lsn.0 + branch.last.0).div_ceil(2)), branch.last]
        {
            for volume in [A, B] {
                let bytes = read_branch(node, &states, volume, at);
                assert!(bytes == state_at(line, volume, at), "volume {volume} at LSN {at} of {branch:?}");
            }
            // What the branch itself wrote, on top of where it left.
            let mut bytes = state_at(line, A, branch.after.lsn);
            let plan = states.plan_written(A, at, Extent::new(0, VOLUME_BYTES)).expect("its own");
            let (written, mut offset) = (plan.read_all().expect("read"), 0);
            for stretch in plan.status().expect("read") {
                let range = offset..offset + stretch.len as usize;
                if !stretch.hole {
                    bytes[range.clone()].copy_from_slice(&written[range]);
                }
                offset += stretch.len as usize;
            }
            assert_eq!(offset as u64, VOLUME_BYTES, "the status is of all of it");
            assert!(bytes == state_at(line, A, at), "what {branch:?} wrote up to LSN {at}");
        }
        read += 1;
    }
    read
}

/// A replica of what a primary wrote, promoted in the middle of it.
pub fn promoted(storage: Arc<dyn Storage>, random: &mut Random) -> (Driven, Reference) {
    let east = CrashDisk::new();
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut node = Driven::open(storage, replica_config("group")).expect("opened");
    let mut reference = Reference::default();
    for _ in 0..3 {
        reference.write_some(&mut primary, random, 15);
        replicate(&mut primary, &mut node);
    }
    let was = end_of(&node);
    let first = reference.line[5].lsn.0;
    let at = Lsn(first + random.below(was.1.0 - first));
    let now = node.now();
    node.node.promote(now, at, Epoch(2)).expect("promoted");
    let line = reference.line.clone();
    reference.go(was, line, at);
    (node, reference)
}

/// A replica in a sync span, over an outage that was longer than the log.
pub struct CatchingUp {
    pub primary: Driven,
    pub node: Driven,
    pub reference: Reference,
    pub random: Random,
    /// Its newest point when the outage began.
    pub before: Lsn,
    /// Left out.
    pub within: Lsn,
}

pub fn catching_up() -> CatchingUp {
    let tracking = |mut config: Config| {
        config.on_full = OnFull::Track;
        config.limits.log.log_bytes = 8 * config.limits.log.segment_bytes;
        config
    };
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), tracking(primary_config("group"))).expect("opened");
    let mut node = Driven::open(west.storage(), replica_config("group")).expect("opened");
    let (mut reference, mut random) = (Reference::default(), Random(41));
    reference.write_some(&mut primary, &mut random, 20);
    replicate(&mut primary, &mut node);
    let before = node.node.durable().lsn;
    primary.node.link_changed("west", false);
    while primary.node.log().first() <= before {
        reference.write_some(&mut primary, &mut random, 10);
        primary.work();
    }
    replicate(&mut primary, &mut node);
    primary.node.link_changed("west", true);
    assert!(node.node.is_coarse(), "records were left out");
    CatchingUp { primary, node, reference, random, before, within: before.next() }
}

impl CatchingUp {
    pub fn copy_and_ship(&mut self) {
        for _ in 0..50 {
            self.primary.work();
            let next = self.node.node.durable().lsn.next();
            ship(&mut self.primary, &mut self.node, next);
        }
    }
}

pub fn caught_up() -> CatchingUp {
    let mut two = catching_up();
    two.copy_and_ship();
    assert!(!two.node.node.is_coarse(), "the span has ended");
    two.reference.write_some(&mut two.primary, &mut two.random, 3);
    two.copy_and_ship();
    two
}
