//! Bugs that seeds of the simulator found, each as the smallest story that shows it.

mod common;

use bytes::Bytes;
use common::{A, Driven, TempDir, primary_config, replica_config, replicate};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::guest::{Op, Request};
use engine::log::ship::Stretch;
use engine::node::config::Config;
use engine::node::primary::Submitted;
use engine::node::work::Lane;
use engine::peer::{Rebuff, TakesBack};
use engine::types::{Epoch, Lsn, NodeId, Reign};
use std::sync::Arc;

fn pair() -> (TempDir, TempDir, Driven, Driven) {
    let (here, there) = (TempDir::new(), TempDir::new());
    let primary = Driven::open(here.storage(), primary_config("orders")).expect("a new group");
    let replica = Driven::open(there.storage(), replica_config("orders")).expect("a new replica");
    (here, there, primary, replica)
}

/// Seed 225: the place of a segment's last record was taken for the start of the next segment, and the cut made
/// the records before the promotion unreadable.
#[test]
fn r16_promotion_at_the_last_record_of_a_segment_keeps_what_lies_before() {
    let (_here, _there, mut primary, mut replica) = pair();
    let block = [7; 4096];
    while primary.node.segments().len() < 3 {
        primary.write(A, 0, &block).expect("there is room");
    }
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut replica);
    let at = replica.node.segments()[1].header.first.prev();
    let expected = replica.read_point(A, at);
    replica.node.promote(replica.now, at, Epoch(2)).expect("promoted");
    assert_eq!(replica.read(A, 0, 1 << 20).expect("it serves"), expected);
    assert_eq!(replica.read_point(A, Lsn(at.0 - 2)).len(), expected.len());
}

/// Seed 35: a flush waits for its whole batch, a FUA write behind it in the batch only for itself.
#[test]
fn w14_a_flush_before_a_fua_write_in_one_batch() {
    let (_here, _there, mut primary, _) = pair();
    let mut out = Submitted::default();
    let mut batch = vec![
        Request { cookie: 1, op: Op::Flush, fua: false },
        Request { cookie: 2, op: Op::Write { offset: 0, data: Bytes::from(vec![1; 512]) }, fua: true },
    ];
    let now = primary.now();
    primary.node.submit(now, A, &mut batch, &mut out);
    assert_eq!(out.waiting.len(), 2, "both wait");
    primary.sync();
    assert_eq!(primary.node.take_answers().len(), 2, "both are answered by one sync");
}

/// Seed 25: a replica that was born and never got a record follows the next primary.
#[test]
fn r08_a_replica_without_a_record_follows_a_new_primary() {
    let (_here, _unused, mut primary, _) = pair();
    let (there, third) = (TempDir::new(), TempDir::new());
    let config =
        Config { replicas: vec!["west".to_owned()], node: NodeId([3; 16]), ..replica_config("orders") };
    let mut replica = Driven::open(there.storage(), config).expect("a new replica");
    let mut late = Driven::open(third.storage(), replica_config("orders")).expect("a new replica");
    let hello = primary.node.hello().expect("it is primary");
    let now = late.now();
    late.node.accept(now, &hello, TakesBack::No).expect("it is welcome");
    assert!(late.node.promote(late.now, Lsn::ZERO, Epoch(2)).is_err(), "there is nothing to promote");
    primary.write(A, 0, &[1; 512]).expect("there is room");
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut replica);
    let at = replica.node.durable().lsn;
    replica.node.promote(replica.now, at, Epoch(2)).expect("promoted");
    replicate(&mut replica, &mut late);
    assert_eq!(late.node.durable(), replica.node.durable());
}

/// Seed 185: a replica that had adopted a reign, but none of its records, was promoted below that reign's branch:
/// its history went back, every replica refused it, and its next start read beyond the promotion.
#[test]
fn r10_a_promotion_below_an_adopted_branch_leaves_that_reign_out() {
    let (_here, _unused, mut primary, _) = pair();
    let (there, third) = (TempDir::new(), TempDir::new());
    let config = |node| Config {
        replicas: vec!["west".to_owned()],
        node: NodeId([node; 16]),
        ..replica_config("orders")
    };
    let mut first = Driven::open(there.storage(), config(3)).expect("a new replica");
    let mut second = Driven::open(third.storage(), config(4)).expect("a new replica");
    primary.write(A, 0, &[1; 512]).expect("there is room");
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut second);
    let behind = second.node.durable().lsn;
    primary.write(A, 0, &[2; 512]).expect("there is room");
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut first);
    let at = first.node.durable().lsn;
    first.node.promote(first.now, at, Epoch(2)).expect("promoted");
    let hello = first.node.hello().expect("it is primary");
    let now = second.now();
    second.node.accept(now, &hello, TakesBack::No).expect("it is welcome, though nothing was sent");
    second.node.promote(second.now, behind, Epoch(3)).expect("promoted");
    assert!(second.node.history().is_sorted_by_key(|reign| reign.branch.lsn), "{:?}", second.node.history());
    drop(second);
    let reopened = Driven::open(third.storage(), config(4)).expect("it opens");
    assert_eq!(reopened.node.history().len(), 2);
}

/// Seed 26396: a replica heard of a newer primary that it could not follow, and went on taking the stream of the
/// older one.
#[test]
fn r07_a_stream_ends_with_the_news_of_a_newer_epoch() {
    let (_here, _there, mut primary, mut replica) = pair();
    primary.write(A, 0, &[1; 512]).expect("there is room");
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut replica);
    let mut newer = primary.node.hello().expect("it is primary");
    let branch = primary.node.durable();
    newer.history.push(Reign { epoch: Epoch(2), branch, node: NodeId([9; 16]) });
    // It says that it has lost what this replica holds.
    newer.durable.lsn = Lsn(2);
    newer.node = NodeId([9; 16]);
    let now = replica.now();
    replica.node.accept(now, &newer, TakesBack::No).expect_err("it has less than it had shipped");
    primary.write(A, 0, &[2; 512]).expect("there is room");
    primary.flush().expect("a flush");
    let from = replica.node.durable().lsn.next();
    let Stretch::Ready(batch) = primary.node.records_from(from, 1 << 20) else { panic!("it is in memory") };
    let now = replica.now();
    assert!(matches!(replica.node.append(now, batch), Err(Rebuff::Superseded { .. })));
}

/// Seed 203879: a log that could not be read for a moment was taken for one with nothing left to bring the disks of a
/// promoted node up to date with.
#[test]
fn r16_disks_are_not_filled_while_the_log_cannot_be_read() {
    let (_here, _there, mut primary, _) = pair();
    let west = TempDir::new();
    let faulty = Faulty::new(west.storage());
    let mut replica =
        Driven::open(Arc::new(faulty.clone()), replica_config("orders")).expect("a new replica");
    primary.write(A, 0, &[1; 4096]).expect("there is room");
    primary.flush().expect("a flush");
    replicate(&mut primary, &mut replica);
    let (now, latest) = (replica.now(), replica.node.durable().lsn);
    replica.node.promote(now, latest, Epoch(2)).expect("promoted");
    // So much that the disks are brought up to date by a pass, which ends in the middle of a file.
    for _ in 0..8 {
        replica.write(A, 0, &[2; 4096]).expect("there is room");
    }
    replica.flush().expect("a flush");
    while let Some(job) = replica.node.poll_job(replica.now, Lane::Bulk) {
        let (done, now) = (job.run(), replica.now());
        replica.node.finish(now, done);
    }
    replica.write(A, 0, &[3; 4096]).expect("there is room");
    let (errno, effect, lasting) = (Errno::Io, Effect::Nothing, Lasting::Once);
    faulty.arm(Fault { call: Some(Call::Read), nth: 1, errno, effect, lasting });
    assert!(!replica.node.is_filled(), "who knows");
    assert!(replica.node.is_filled(), "they are");
    let now = replica.now();
    replica.node.end_hydration(now).expect("the log can be read");
    assert_eq!(replica.read(A, 0, 4096).expect("it serves"), [3; 4096]);
}
