//! Marks: a name for a point, durable and replicated; and when there can be none.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, primary_config, replica_config, replicate};
use engine::catalog::{MAX_NAME_BYTES, MarkKind};
use engine::event::{FLAG_APPLICATION, Kind};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::node::mark::MarkError;
use engine::node::work::Lane;
use engine::types::{Epoch, Lsn};
use std::sync::Arc;

fn pair() -> (Driven, Driven) {
    let mut primary = Driven::open(CrashDisk::new().storage(), primary_config("g")).expect("opened");
    let mut replica = Driven::open(CrashDisk::new().storage(), replica_config("g")).expect("opened");
    primary.write(A, 0, &[1; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    primary.node.link_changed("west", true);
    (primary, replica)
}

#[test]
fn a_mark_is_a_point_on_both_sides() {
    let (mut primary, mut replica) = pair();
    let mut marks = Vec::new();
    for (name, kind) in [("before-upgrade", MarkKind::Bookmark), ("nightly", MarkKind::Application)] {
        primary.write(A, 0, &[2 + marks.len() as u8; 4096]).expect("written");
        let now = primary.now();
        let at = primary.node.mark(now, name, kind).expect("marked");
        assert_eq!(primary.node.durable().lsn, at, "it is durable when it is answered");
        marks.push((at, kind));
    }
    primary.write(A, 0, &[9; 4096]).expect("written");
    primary.flush().expect("flushed");
    replicate(&mut primary, &mut replica);
    let (first, last) = (marks[0].0, marks[1].0);
    let mut seen = Vec::new();
    let headers = replica.node.log().headers(first.prev(), last, usize::MAX);
    headers
        .run(|header| {
            if header.kind == Kind::Mark {
                seen.push((header.lsn, header.flags))
            }
        })
        .expect("read");
    assert_eq!(seen, [(first, 0), (last, FLAG_APPLICATION)]);
    for (nth, (at, _)) in marks.into_iter().enumerate() {
        assert_eq!(replica.read_point(A, at)[..4096], [2 + nth as u8; 4096], "the state at the mark");
    }
}

#[test]
fn what_cannot_be_marked_is_refused() {
    let (mut primary, mut replica) = pair();
    let tip = primary.node.log().tip();
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "-dash", "two words", "ü", "a/b", &long] {
        let now = primary.now();
        let refused = primary.node.mark(now, name, MarkKind::Bookmark);
        assert!(matches!(refused, Err(MarkError::BadName)), "{name:?}: {refused:?}");
    }
    let now = replica.now();
    let refused = replica.node.mark(now, "noon", MarkKind::Bookmark);
    assert!(matches!(refused, Err(MarkError::NotPrimary(_))), "{refused:?}");

    // The caller tries again once the sync is back.
    assert_eq!(primary.node.log().tip(), tip, "nothing was logged");
    primary.write(A, 0, &[3; 512]).expect("written");
    primary.now.mono.0 += 1_000_000_000;
    let job = primary.node.poll_job(primary.now, Lane::Sync).expect("it is due");
    let now = primary.now();
    let refused = primary.node.mark(now, "noon", MarkKind::Bookmark);
    assert!(matches!(refused, Err(MarkError::Busy)), "{refused:?}");
    let (done, now) = (job.run(), primary.now());
    primary.node.finish(now, done);

    // Writes wait while the group is handed over, and so do marks.
    let now = replica.now();
    replica.node.ask_for_group(now).expect("it is whole");
    let (_, ask) = replica.node.asks()[0];
    let now = primary.now();
    primary.node.asked(now, "west", ask);
    assert!(primary.node.is_draining());
    let refused = primary.node.mark(now, "noon", MarkKind::Bookmark);
    assert!(matches!(refused, Err(MarkError::HandingOver)), "{refused:?}");
}

/// One that has failed says so, to whatever it is asked.
#[test]
fn who_has_failed_marks_nothing() {
    let faulty = Faulty::new(CrashDisk::new().storage());
    let mut primary = Driven::open(Arc::new(faulty.clone()), primary_config("g")).expect("opened");
    faulty.arm(Fault {
        call: Some(Call::Sync),
        nth: 1,
        errno: Errno::Io,
        effect: Effect::Nothing,
        lasting: Lasting::Once,
    });
    let now = primary.now();
    let failed = primary.node.mark(now, "noon", MarkKind::Bookmark);
    assert!(matches!(failed, Err(MarkError::Failed(_))), "{failed:?}");
    assert!(primary.node.failed().is_some(), "a failed sync is final");
    let calls = faulty.total();
    let again = primary.node.mark(now, "noon", MarkKind::Bookmark);
    assert!(matches!(again, Err(MarkError::Failed(_))), "{again:?}");
    assert!(primary.node.resize(now, "data", 4096).is_err());
    assert!(primary.node.promote(now, primary.node.durable().lsn, Epoch(1)).is_err());
    assert_eq!(faulty.total(), calls, "the disk was not asked again");
}

/// A second, in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// A primary that periodic marks, every 5 s.
fn marking(disk: &CrashDisk) -> Driven {
    let mut config = primary_config("g");
    config.limits.marks_ms = Some(5_000);
    Driven::open(disk.storage(), config).expect("opened")
}

/// Moves the clock, and runs the sync that is due then, if one is.
fn pass(primary: &mut Driven, seconds: u64) {
    primary.now.mono.0 += seconds * SECOND;
    primary.now.wall.0 += seconds * SECOND;
    assert_eq!(
        primary.node.is_due(primary.now, Lane::Sync),
        primary.node.sync_due_at().is_some_and(|at| primary.now.mono >= at),
        "the runtime is woken for what is due"
    );
    if let Some(job) = primary.node.poll_job(primary.now, Lane::Sync) {
        let (done, now) = (job.run(), primary.now());
        primary.node.finish(now, done);
    }
}

/// The unnamed marks that are durable.
fn unnamed(primary: &Driven) -> Vec<Lsn> {
    let mut seen = Vec::new();
    let log = primary.node.log();
    let headers = log.headers(log.first().prev(), primary.node.durable().lsn, usize::MAX);
    headers.run(|header| seen.extend((header.kind == Kind::Mark).then_some(header.lsn))).expect("read");
    seen
}

#[test]
fn the_clock_marks_what_was_written() {
    let disk = CrashDisk::new();
    let mut primary = marking(&disk);
    pass(&mut primary, 60);
    assert_eq!(unnamed(&primary), [], "nothing was written");

    primary.write(A, 0, &[1; 4096]).expect("written");
    pass(&mut primary, 1);
    let written = primary.node.durable().lsn;
    assert_eq!(unnamed(&primary), [], "it is not yet time, though the log is synced");
    pass(&mut primary, 5);
    assert_eq!(unnamed(&primary), [written.next()], "a sync only for the mark");
    pass(&mut primary, 3_600);
    assert_eq!(primary.node.sync_due_at(), None, "an idle disk is not woken");
    assert_eq!(unnamed(&primary).len(), 1);

    // Under steady load each takes a sync that would be anyway.
    for round in 0..60_u8 {
        primary.write(A, 4096, &[round; 512]).expect("written");
        pass(&mut primary, 1);
    }
    assert_eq!(unnamed(&primary).len(), 1 + 12, "one for every 5 writes, as they are a second apart");

    // What an operator marks need not be marked again.
    primary.write(A, 0, &[2; 512]).expect("written");
    let now = primary.now();
    primary.node.mark(now, "noon", MarkKind::Bookmark).expect("marked");
    let marks = unnamed(&primary).len();
    pass(&mut primary, 60);
    assert_eq!(unnamed(&primary).len(), marks);
}
