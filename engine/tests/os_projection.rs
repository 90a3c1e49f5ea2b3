//! The catalog of a living group: it follows a log that frees what it does not need, and that a promotion cuts.
#![cfg(feature = "os")]

mod common;

use common::{A, Driven, TempDir, primary_config, replica_config, replicate};
use engine::os::projection::Projection;
use engine::types::{Epoch, Lsn};
use std::path::PathBuf;

fn catch_up(projection: &mut Projection, node: &Driven) {
    for _ in 0..1000 {
        if !projection.step(&|look| look(&node.node)).expect("projected") {
            return;
        }
    }
    panic!("there is no end to it");
}

fn write_some(primary: &mut Driven) {
    for number in 0..100_u64 {
        primary.now.wall.0 += 2_000_000_000;
        primary.write(A, number * 4096, &[number as u8; 4096]).expect("written");
    }
    primary.flush().expect("flushed");
}

fn open(dir: &TempDir, node: &Driven) -> (PathBuf, Projection) {
    let path = dir.0.join("sled");
    let projection = Projection::open(&path, node.node.durable().lsn);
    (path, projection.expect("opened"))
}

#[test]
fn what_the_log_freed_before_it_was_projected_is_passed_over() {
    let dir = TempDir::new();
    let mut config = primary_config("group");
    config.replicas.clear();
    let mut primary = Driven::open(dir.storage(), config).expect("opened");
    let (_, mut projection) = open(&dir, &primary);
    write_some(&mut primary);
    catch_up(&mut projection, &primary);
    let before = projection.projected().expect("the catalog answers");
    assert!(before.1.is_some(), "there are samples");

    write_some(&mut primary);
    primary.work();
    write_some(&mut primary);
    assert!(primary.node.log().first() > before.0.next(), "the log was freed");
    catch_up(&mut projection, &primary);
    let after = projection.projected().expect("the catalog answers");
    assert!(after > before, "{after:?}");
}

#[test]
fn a_promotion_cuts_the_catalog_where_it_cut_the_log() {
    let [east, west] = [TempDir::new(), TempDir::new()];
    let mut primary = Driven::open(east.storage(), primary_config("group")).expect("opened");
    let mut replica = Driven::open(west.storage(), replica_config("group")).expect("opened");
    write_some(&mut primary);
    replicate(&mut primary, &mut replica);
    let (path, mut projection) = open(&west, &replica);
    catch_up(&mut projection, &replica);
    let at = Lsn(replica.node.durable().lsn.0 / 2);
    let now = replica.now();
    let promotion = replica.node.promote(now, at, Epoch(2)).expect("promoted");
    assert_eq!(promotion.reign.branch.lsn, at);
    catch_up(&mut projection, &replica);
    let (through, newest) = projection.projected().expect("the catalog answers");
    assert_eq!(through, at.next(), "up to the new epoch's first record, which is kept");

    // Filling the disks frees the log below.
    replica.work();
    write_some(&mut replica);
    replica.work();
    catch_up(&mut projection, &replica);
    assert!(projection.projected().expect("the catalog answers").1 > newest);
    projection.flush().expect("flushed");
    drop(projection);
    let durable = replica.node.durable().lsn;
    let again = Projection::open(&path, durable).expect("opened");
    assert!(again.projected().expect("the catalog answers").1 > newest);
}
