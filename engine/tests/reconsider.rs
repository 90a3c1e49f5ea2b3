//! A promotion that is moved to other points, again and again, and the points of what it leaves behind.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config, replicate};
use engine::io::Storage;
use engine::node::branch_states::BranchStates;
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::state::Branch;
use engine::types::{Epoch, Extent, Lsn, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a guest wrote.
#[derive(Clone, Copy, Debug)]
struct Write {
    lsn: Lsn,
    volume: VolumeId,
    offset: u64,
    len: u64,
    byte: u8,
}

/// All that was ever written on the way to a record.
type Line = Vec<Write>;

fn state_at(line: &Line, volume: VolumeId, at: Lsn) -> Vec<u8> {
    let mut bytes = vec![0; VOLUME_BYTES as usize];
    for write in line.iter().filter(|write| write.volume == volume && write.lsn <= at) {
        bytes[write.offset as usize..(write.offset + write.len) as usize].fill(write.byte);
    }
    bytes
}

/// The writes of the line that a node is on, and of what it left.
#[derive(Clone, Default)]
struct Reference {
    line: Line,
    /// By epoch and last record.
    left: BTreeMap<(Epoch, Lsn), Line>,
}

impl Reference {
    fn write_some(&mut self, node: &mut Driven, random: &mut Random, count: u64) {
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
    fn of(&self, branch: &Branch) -> &Line {
        &self.left[&(branch.epoch, branch.last)]
    }

    /// Moves the line; `was` is where and when it ended.
    fn go(&mut self, was: (Epoch, Lsn), to: Line, at: Lsn) {
        let left = std::mem::replace(&mut self.line, to);
        self.left.insert(was, left);
        self.line.retain(|write| write.lsn <= at);
    }
}

fn end_of(node: &Driven) -> (Epoch, Lsn) {
    let tip = node.node.log().tip();
    (tip.epoch, tip.lsn)
}

fn check_line(node: &mut Driven, reference: &Reference) {
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
fn survey(node: &Driven, branch: &Branch) -> Option<BranchStates> {
    node.node.check_start(branch.after).ok()?;
    Some(node.node.survey_branch(branch).run().expect("all of a branch can be read"))
}

fn read_branch(node: &mut Driven, states: &BranchStates, volume: VolumeId, at: Lsn) -> Vec<u8> {
    let after = states.branch().after.lsn;
    node.node.pin(after).expect("it is a point");
    let plan = node.node.plan_branch(states, volume, at, Extent::new(0, VOLUME_BYTES));
    let bytes = plan.expect("the volume is there").read_all().expect("read").to_vec();
    node.node.unpin(after);
    bytes
}

fn check_branches(node: &mut Driven, reference: &Reference) -> usize {
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
fn promoted(storage: Arc<dyn Storage>, random: &mut Random) -> (Driven, Reference) {
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

/// One move to somewhere; the reference behind it.
fn choose(
    node: &mut Driven,
    reference: &Reference,
    random: &mut Random,
) -> (Option<BranchStates>, Lsn, Reference) {
    let mut next = reference.clone();
    let was = end_of(node);
    let branches = node.node.branches();
    if random.below(2) == 0 && !branches.is_empty() {
        let branch = branches[random.below(branches.len() as u64) as usize];
        if let Some(states) = survey(node, &branch) {
            let at = Lsn(branch.after.lsn.0 + 1 + random.below(branch.last.0 - branch.after.lsn.0));
            next.go(was, reference.of(&branch).clone(), at);
            return (Some(states), at, next);
        }
    }
    let window = node.node.window().expect("points are kept");
    // The first three records make the volumes.
    let first = window.horizon.0.max(3);
    let at = Lsn(first + random.below(window.latest.0 + 1 - first));
    next.go(was, reference.line.clone(), at);
    (None, at, next)
}

fn target(states: Option<&BranchStates>, at: Lsn) -> Target<'_> {
    states.map_or(Target::Line(at), |states| Target::Branch(states, at))
}

#[test]
fn a_promotion_moves_and_nothing_is_thrown_away() {
    let mut read = 0;
    for seed in 1..40 {
        let mut random = Random(seed * 7919);
        let disk = CrashDisk::new();
        let (mut node, mut reference) = promoted(disk.storage(), &mut random);
        for _ in 0..6 {
            for _ in 0..random.below(3) {
                let count = random.below(10);
                reference.write_some(&mut node, &mut random, count);
            }
            if random.below(2) == 0 {
                node.work();
            }
            check_line(&mut node, &reference);
            let (states, at, next) = choose(&mut node, &reference, &mut random);
            let (now, epoch) = (node.now(), node.node.next_epoch());
            let moved = node.node.reconsider(now, target(states.as_ref(), at), epoch);
            assert_eq!(moved.expect("moved").reign.branch.lsn, at, "seed {seed}");
            reference = next;
            check_line(&mut node, &reference);
            read += check_branches(&mut node, &reference);
            if random.below(2) == 0 {
                drop(node);
                node = Driven::open(disk.storage(), replica_config("group")).expect("opened");
                check_line(&mut node, &reference);
                check_branches(&mut node, &reference);
            }
        }
        reference.write_some(&mut node, &mut random, 5);
        node.work();
        let now = node.now();
        node.node.commit(now).expect("committed");
        node.work();
        assert!(!node.node.is_hydrating(), "the disks are whole");
        check_line(&mut node, &reference);
    }
    assert!(read > 100, "{read} branches were read");
}

/// A power cut at each step of it: the promotion is where it was, or where it was moved to, and nothing is missing.
#[test]
fn a_move_is_whole_or_not_at_all() {
    let (mut before, mut behind) = (0, 0);
    for seed in 1..12_u64 {
        for cut in 0..40 {
            let mut random = Random(seed * 104_729);
            let disk = CrashDisk::new();
            let (mut node, mut reference) = promoted(disk.storage(), &mut random);
            reference.write_some(&mut node, &mut random, 6);
            if seed % 2 == 0 {
                node.work();
            }
            let (states, at, next) = choose(&mut node, &reference, &mut random);
            let (now, epoch) = (node.now(), node.node.next_epoch());
            disk.cut_after(cut);
            let moved = node.node.reconsider(now, target(states.as_ref(), at), epoch);
            drop((node, states));
            let is_over = !disk.is_cut();
            for left in disk.outcomes(3, &mut random) {
                let mut node = Driven::open(left.storage(), replica_config("group")).expect("opened");
                let is_moved = node.node.state().epoch() == epoch;
                assert!(is_moved || moved.is_err(), "seed {seed}, cut {cut}: what was done stays done");
                let reference = if is_moved { &next } else { &reference };
                check_line(&mut node, reference);
                check_branches(&mut node, reference);
                (before, behind) = (before + usize::from(!is_moved), behind + usize::from(is_moved));
            }
            if is_over {
                break;
            }
        }
    }
    assert!(before > 20 && behind > 50, "{before} before, {behind} behind");
}

/// The base image has come as far as the promotion, so the log begins there; the branch begins in the middle of a file that
/// begins before.
#[test]
fn a_branch_that_leaves_where_the_log_begins() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut config = replica_config("group");
    config.retention.bytes = 1;
    let mut node = Driven::open(west.storage(), config.clone()).expect("opened");
    let (mut reference, mut random) = (Reference::default(), Random(31));
    reference.write_some(&mut primary, &mut random, 40);
    replicate(&mut primary, &mut node);
    let segment = node.node.segments()[1].clone();
    let at = Lsn((segment.header.first.0 + segment.last.0) / 2);
    let was = end_of(&node);
    let now = node.now();
    node.node.promote(now, at, Epoch(2)).expect("promoted");
    let line = reference.line.clone();
    reference.go(was, line, at);
    reference.write_some(&mut node, &mut random, 3);
    node.work();
    assert_eq!(node.node.log().start().lsn, at, "all before it is in the base image");

    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    let was = end_of(&node);
    let (now, epoch, at) = (node.now(), node.node.next_epoch(), branch.last.prev());
    node.node.reconsider(now, Target::Branch(&states, at), epoch).expect("moved");
    drop(states);
    let line = reference.of(&branch).clone();
    reference.go(was, line, at);
    for _ in 0..2 {
        check_line(&mut node, &reference);
        check_branches(&mut node, &reference);
        node.work();
        drop(node);
        node = Driven::open(west.storage(), config.clone()).expect("opened");
    }
}

/// Before its first record a line has no epoch, and all of it is a branch.
#[test]
fn a_promotion_at_the_very_beginning_is_moved() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut node = Driven::open(west.storage(), replica_config("group")).expect("opened");
    let (mut reference, mut random) = (Reference::default(), Random(32));
    reference.write_some(&mut primary, &mut random, 10);
    replicate(&mut primary, &mut node);
    let now = node.now();
    node.node.promote(now, Lsn::ZERO, Epoch(2)).expect("promoted");
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("it has a start");
    let (now, epoch) = (node.now(), node.node.next_epoch());
    node.node.reconsider(now, Target::Branch(&states, branch.last), epoch).expect("moved");
    drop(states);
    drop(node);
    let mut node = Driven::open(west.storage(), replica_config("group")).expect("opened");
    for volume in [A, B] {
        let bytes = node.read(volume, 0, VOLUME_BYTES).expect("read");
        assert!(bytes == state_at(&reference.line, volume, branch.last), "volume {volume}");
    }
}

#[test]
fn what_cannot_be_moved_is_refused() {
    let mut random = Random(77);
    let (mut node, mut reference) = promoted(CrashDisk::new().storage(), &mut random);
    reference.write_some(&mut node, &mut random, 3);
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let state = node.node.state().clone();
    let latest = node.node.log().tip().lsn;

    let beyond = node.node.reconsider(now, Target::Line(latest.next()), epoch);
    assert!(matches!(beyond, Err(PromoteError::NotSelectable { .. })), "{beyond:?}");
    let stale = node.node.reconsider(now, Target::Line(Lsn(5)), Epoch(2));
    assert!(matches!(stale, Err(PromoteError::Conflict { .. })), "{stale:?}");
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    let off = node.node.reconsider(now, Target::Branch(&states, branch.after.lsn), epoch);
    assert!(matches!(off, Err(PromoteError::Branch(_))), "{off:?}");
    assert_eq!(*node.node.state(), state, "nothing was changed");
    check_line(&mut node, &reference);

    let now = node.now();
    node.node.commit(now).expect("committed");
    let late = node.node.reconsider(now, Target::Line(Lsn(5)), epoch);
    assert!(matches!(late, Err(PromoteError::Committed { .. })), "{late:?}");
    let mut primary = Driven::open(CrashDisk::new().storage(), primary_config("group")).expect("opened");
    let now = primary.now();
    let never = primary.node.reconsider(now, Target::Line(Lsn(2)), Epoch(2));
    assert!(matches!(never, Err(PromoteError::Committed { .. })), "{never:?}");
    let mut replica = Driven::open(CrashDisk::new().storage(), replica_config("group")).expect("opened");
    let now = replica.now();
    let replica = replica.node.reconsider(now, Target::Line(Lsn(2)), Epoch(1));
    assert!(matches!(replica, Err(PromoteError::NotPromoted)), "{replica:?}");
}
