//! Branches: which of their LSNs are points, what these show, and what a damaged disk leaves of them.

mod common;

use common::crash::CrashDisk;
use common::line::{
    CatchingUp, Reference, catching_up, caught_up, check_line, end_of, promoted, read_branch, state_at,
    survey,
};
use common::{A, B, Driven, Random, primary_config, replica_config, replicate, ship};
use engine::catalog::MarkKind;
use engine::log::format::HEADER_BYTES;
use engine::log::ship::ReadError;
use engine::node::branch_states::BranchError;
use engine::node::branches::DropError;
use engine::node::config::{Begins, NewVolume};
use engine::node::promote::PromoteError;
use engine::node::reconsider::Target;
use engine::types::{Epoch, Extent, Lsn, Timestamp};

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

/// A branch that ends in a jump, behind which nothing came: its end is no record, and what stands before it is read.
#[test]
fn a_branch_that_ends_in_a_jump() {
    let CatchingUp { mut node, reference, before, .. } = catching_up();
    assert!(node.node.durable().lsn > before && node.node.durable() == node.node.log().tip().position());
    let older = Lsn(before.0 / 2);
    let now = node.now();
    node.node.promote(now, older, Epoch(2)).expect("promoted");
    let branch = node.node.branches()[0];
    assert!(branch.last > before, "the branch ends where the jump led");
    let states = survey(&node, &branch).expect("all of it is there");
    assert_eq!(states.latest(), Some(before), "what was left out is no point");
    for lsn in before.next().0..=branch.last.0 {
        assert!(matches!(states.check(Lsn(lsn)), Err(BranchError::Coarse { .. })), "LSN {lsn}");
    }
    let bytes = read_branch(&mut node, &states, A, before);
    assert!(bytes == state_at(&reference.line, A, before));
    let (now, epoch) = (node.now(), node.node.next_epoch());
    let refused = node.node.reconsider(now, Target::Branch(&states, before), epoch);
    assert!(matches!(refused, Err(PromoteError::Branch(_))), "{refused:?}");
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
