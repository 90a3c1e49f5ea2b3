//! A promotion that is moved to other points, again and again, and the points of what it leaves behind.

mod common;

use common::crash::CrashDisk;
use common::line::{
    CatchingUp, Reference, caught_up, check_branches, check_line, end_of, promoted, state_at, survey,
};
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config, replicate};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::node::branch_states::BranchStates;
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::node::work::Lane;
use engine::types::{Epoch, Lsn, NodeId, Reign};
use std::sync::Arc;

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
