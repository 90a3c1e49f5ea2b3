//! A promotion that is moved to other points, again and again, and the points of what it leaves behind.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config, replicate, ship};
use engine::catalog::MarkKind;
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::io::Storage;
use engine::log::format::HEADER_BYTES;
use engine::log::ship::ReadError;
use engine::node::branch_states::{BranchError, BranchStates};
use engine::node::branches::DropError;
use engine::node::config::{Begins, Config, NewVolume, OnFull};
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::node::work::Lane;
use engine::state::Branch;
use engine::types::{Epoch, Extent, Lsn, NodeId, Reign, Timestamp, VolumeId};
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

/// A replica in a sync span, over an outage that was longer than the log.
struct CatchingUp {
    primary: Driven,
    node: Driven,
    reference: Reference,
    random: Random,
    /// Its newest point when the outage began.
    before: Lsn,
    /// Left out.
    within: Lsn,
}

fn catching_up() -> CatchingUp {
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
    fn copy_and_ship(&mut self) {
        for _ in 0..50 {
            self.primary.work();
            let next = self.node.node.durable().lsn.next();
            ship(&mut self.primary, &mut self.node, next);
        }
    }
}

fn caught_up() -> CatchingUp {
    let mut two = catching_up();
    two.copy_and_ship();
    assert!(!two.node.node.is_coarse(), "the span has ended");
    two.reference.write_some(&mut two.primary, &mut two.random, 3);
    two.copy_and_ship();
    two
}

/// Its points can be looked at where they are whole, but no promotion goes there: its log would not hold all that its
/// replicas need.
#[test]
fn a_branch_that_leaves_records_out() {
    let CatchingUp { mut node, mut reference, before, within, .. } = caught_up();
    let was = end_of(&node);
    let now = node.now();
    node.node.promote(now, before, Epoch(2)).expect("promoted");
    let line = reference.line.clone();
    reference.go(was, line, before);
    check_line(&mut node, &reference);
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    assert_eq!(states.latest(), Some(branch.last));
    let mut points = Vec::new();
    for lsn in before.next().0..=branch.last.0 {
        match states.check(Lsn(lsn)) {
            Ok(()) => points.push(Lsn(lsn)),
            Err(BranchError::Coarse { before: at, .. }) => assert_eq!(at, before),
            Err(error) => panic!("LSN {lsn}: {error}"),
        }
    }
    assert!(!points.contains(&within), "what was left out is no point");
    for &at in &points {
        let bytes = read_branch(&mut node, &states, A, at);
        assert!(bytes == state_at(reference.of(&branch), A, at), "LSN {at}");
    }
    // Neither is it the answer to a time.
    let begins = states.time_of(points[0]).expect("it has a time");
    assert_eq!(states.point_at(Timestamp(begins.0 - 1)), None);
    for volume in [A, B] {
        let bytes = read_branch(&mut node, &states, volume, branch.last);
        assert!(bytes == state_at(reference.of(&branch), volume, branch.last), "volume {volume}");
    }
    let covered = node.node.read_branch(&branch).run(|_| {}).expect("read");
    assert_eq!(covered, branch.last, "what is left out is known");

    let state = node.node.state().clone();
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let refused = node.node.reconsider(now, Target::Branch(&states, branch.last), epoch);
    assert!(matches!(refused, Err(PromoteError::Branch(_))), "{refused:?}");
    assert_eq!(*node.node.state(), state, "nothing was changed");
}

#[test]
fn a_promotion_behind_a_span_is_moved() {
    let CatchingUp { mut node, mut reference, before, within, .. } = caught_up();
    let (was, at) = (end_of(&node), node.node.durable().lsn);
    let now = node.now();
    node.node.promote(now, at, Epoch(2)).expect("promoted");
    let line = reference.line.clone();
    reference.go(was, line, at);
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let refused = node.node.reconsider(now, Target::Line(within), epoch);
    assert!(matches!(refused, Err(PromoteError::Coarse(_))), "{refused:?}");

    let was = end_of(&node);
    node.node.reconsider(now, Target::Line(before), epoch).expect("moved");
    let line = reference.line.clone();
    reference.go(was, line, before);
    check_line(&mut node, &reference);
}

/// A branch that ends within a span has no point.
#[test]
fn a_branch_that_ends_within_a_span() {
    let CatchingUp { mut primary, mut node, before, .. } = catching_up();
    primary.flush().expect("flushed");
    primary.work();
    let next = node.node.durable().lsn.next();
    ship(&mut primary, &mut node, next);
    assert!(node.node.is_coarse());
    let now = node.now();
    node.node.promote(now, before, Epoch(2)).expect("promoted");
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    for lsn in before.next().0..=branch.last.0 {
        let refused = states.check(Lsn(lsn));
        assert!(matches!(refused, Err(BranchError::Coarse { .. })), "LSN {lsn}: {refused:?}");
    }
    assert_eq!((states.latest(), states.point_at(node.now().wall)), (None, None));
}

/// By the records' own times, as on the line.
#[test]
fn the_points_of_a_branch_by_time() {
    let (node, _) = promoted(CrashDisk::new().storage(), &mut Random(51));
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    let first = branch.after.lsn.next();
    let mut newest = None;
    for lsn in first.0..=branch.last.0 {
        let time = states.time_of(Lsn(lsn)).expect("it is of the branch");
        let at = states.point_at(time).expect("it is a point");
        assert!(at >= Lsn(lsn), "a point that is not younger than its own time");
        assert!(newest <= Some(at), "later, and no older");
        newest = Some(at);
        let earlier = states.point_at(Timestamp(time.0 - 1));
        assert!(earlier < Some(Lsn(lsn)), "{earlier:?} at a time before LSN {lsn}");
    }
    assert_eq!(newest, Some(branch.last));
    assert_eq!(states.time_of(branch.after.lsn), None, "none of it is that old");
    assert_eq!(states.point_at(Timestamp(1)), None);
}

/// What was seen of a branch is worth nothing once it is none any more.
#[test]
fn a_branch_that_is_gone() {
    let mut random = Random(61);
    let (mut node, mut reference) = promoted(CrashDisk::new().storage(), &mut random);
    reference.write_some(&mut node, &mut random, 40);
    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    let (now, epoch) = (node.now(), node.node.next_epoch());
    node.node.reconsider(now, Target::Branch(&states, branch.last), epoch).expect("moved");
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let again = node.node.reconsider(now, Target::Branch(&states, branch.last), epoch);
    assert!(matches!(again, Err(PromoteError::Branch(_))), "it is the line now: {again:?}");
    drop(states);

    let now = node.now();
    let other = node.node.branches()[0];
    let early = node.node.drop_branch(now, &branch);
    assert_eq!(early, Err(DropError::NotFound));
    node.node.commit(now).expect("committed");
    let bytes = node.node.branch_bytes();
    assert!(bytes > 0, "it has files of its own");
    node.node.drop_branch(now, &other).expect("dropped");
    assert_eq!((node.node.branches().len(), node.node.branch_bytes()), (0, 0));
}

/// What a disk has damaged of a branch is told of, and what stands before it can still be read.
#[test]
fn rot_on_a_branch() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut node = Driven::open(west.storage(), replica_config("group")).expect("opened");
    let (mut reference, mut random) = (Reference::default(), Random(71));
    reference.write_some(&mut primary, &mut random, 20);
    let at = primary.node.durable().lsn;
    reference.write_some(&mut primary, &mut random, 25);
    let now = primary.now();
    let mark = primary.node.mark(now, "evening", MarkKind::Bookmark).expect("marked");
    reference.write_some(&mut primary, &mut random, 25);
    replicate(&mut primary, &mut node);
    let place_behind = |node: &Driven, lsn: Lsn| {
        let (_, slot, end) = node.node.log().tip_at(lsn).expect("read").expect("it is there");
        (format!("group/log/{slot:08}.seg"), end as usize)
    };
    let (path, before_mark) = place_behind(&node, mark.prev());
    let (_, behind_mark) = place_behind(&node, mark);
    assert!(behind_mark > before_mark, "both in one file");
    let now = node.now();
    node.node.promote(now, at, Epoch(2)).expect("promoted");
    let branch = node.node.branches()[0];
    let run = |node: &Driven| {
        let mut last = branch.after.lsn;
        let covered = node.node.read_branch(&branch).run(|header| {
            assert_eq!(header.lsn, last.next());
            last = header.lsn;
        });
        (covered.expect("the file can be read"), last)
    };

    // The name of the mark, which no header tells.
    west.rot(&path, before_mark + HEADER_BYTES, 1);
    assert_eq!(run(&node), (branch.last, branch.last));
    let damaged = node.node.survey_branch(&branch).run().map(drop);
    let Err(BranchError::Unreadable(ReadError::Damaged { lsn, .. })) = damaged else {
        panic!("a body that has rotted: {damaged:?}")
    };
    assert_eq!(lsn, mark);
    west.rot(&path, before_mark + HEADER_BYTES, 1);

    // The header of the record behind it.
    west.rot(&path, behind_mark + 20, 1);
    assert_eq!(run(&node), (mark, mark), "what stands before it");
    let damaged = node.node.survey_branch(&branch).run().map(drop);
    assert!(matches!(damaged, Err(BranchError::NotWhole)), "{damaged:?}");
    west.rot(&path, behind_mark + 20, 1);
    node.node.survey_branch(&branch).run().expect("it was the cable");
    drop((node, reference));
}

/// A volume whose disk held data before is part of the branch that its definition is on.
#[test]
fn a_branch_with_a_disk_that_joined() {
    const OLD: &str = "disks/old.img";
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    east.storage().create_dir("disks").expect("made");
    east.put(OLD, &[9; 4096]);
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut node = Driven::open(west.storage(), replica_config("group")).expect("opened");
    let (mut reference, mut random) = (Reference::default(), Random(81));
    reference.write_some(&mut primary, &mut random, 10);
    replicate(&mut primary, &mut node);
    primary.node.link_changed("west", true);
    primary.work();
    let at = node.node.durable().lsn;
    let now = primary.now();
    let volume = NewVolume { name: "old".to_owned(), size: 4096, begins: Begins::InPlace };
    let id = primary.node.add_volume(now, &volume, Some(OLD.to_owned())).expect("it joins").id;
    let joined = primary.node.log().tip().lsn;
    for _ in 0..10 {
        primary.work();
        let next = node.node.durable().lsn.next();
        ship(&mut primary, &mut node, next);
    }
    assert!(!node.node.is_coarse(), "it has come over");
    let now = node.now();
    node.node.promote(now, at, Epoch(2)).expect("promoted");
    assert!(node.node.volume_specs().all(|spec| spec.id != id), "it was none of the line at that point");

    let branch = node.node.branches()[0];
    let states = survey(&node, &branch).expect("its start is kept");
    let inside = states.check(joined);
    assert!(matches!(inside, Err(BranchError::Coarse { .. })), "not all of it had come: {inside:?}");
    let latest = states.latest().expect("it has come since");
    node.node.pin(at).expect("it is a point");
    let plan = node.node.plan_branch(&states, id, latest, Extent::new(0, 4096)).expect("it is there");
    assert_eq!(plan.read_all().expect("read").to_vec(), [9; 4096]);
    node.node.unpin(at);
}

/// While a job is out nothing is moved; an old primary moves nothing.
#[test]
fn who_cannot_move_a_promotion_now() {
    let mut random = Random(91);
    let (mut node, mut reference) = promoted(CrashDisk::new().storage(), &mut random);
    reference.write_some(&mut node, &mut random, 3);
    node.write(A, 0, &[1; 512]).expect("written");
    node.now.mono.0 += 1_000_000_000;
    let job = node.node.poll_job(node.now, Lane::Sync).expect("it is due");
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let line = node.node.state().uncommitted.expect("it is not committed");
    let busy = node.node.reconsider(now, Target::Line(line), epoch);
    assert!(matches!(busy, Err(PromoteError::Busy)), "{busy:?}");
    assert!(node.node.poll_job(now, Lane::Apply).is_none(), "nothing is begun meanwhile");
    let (done, now) = (job.run(), node.now());
    node.node.finish(now, done);

    let newer = Reign { epoch: Epoch(3), branch: node.node.durable(), node: NodeId([9; 16]) };
    let mut by = node.node.history().to_vec();
    by.push(newer);
    let now = node.now();
    node.node.fence(now, &by);
    let fenced = node.node.reconsider(now, Target::Line(line), Epoch(4));
    assert!(matches!(fenced, Err(PromoteError::Fenced { by: Epoch(3) })), "{fenced:?}");
}

/// A failed disk is asked for nothing more.
#[test]
fn who_has_failed_moves_nothing() {
    let faulty = Faulty::new(CrashDisk::new().storage());
    let (mut node, _) = promoted(Arc::new(faulty.clone()), &mut Random(101));
    let (at, epoch) = (node.node.state().uncommitted.expect("it is not committed"), node.node.next_epoch());
    let (errno, effect, lasting) = (Errno::Io, Effect::Nothing, Lasting::Once);
    faulty.arm(Fault { call: Some(Call::Sync), nth: 1, errno, effect, lasting });
    let now = node.now();
    let failed = node.node.reconsider(now, Target::Line(at), epoch);
    assert!(matches!(failed, Err(PromoteError::Failed(_))), "{failed:?}");
    let calls = faulty.total();
    let again = node.node.reconsider(now, Target::Line(at), epoch);
    assert!(matches!(again, Err(PromoteError::Failed(_))), "{again:?}");
    assert_eq!(faulty.total(), calls, "the disk was not asked again");
}
