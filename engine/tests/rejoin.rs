//! An old primary that is taken back, and whose new primary is lost before all that diverged has come over: it follows the
//! one after that, which never had some of what it got.

mod common;

use common::crash::CrashDisk;
use common::{A, Driven, VOLUME_BYTES, primary_config, replica_config};
use engine::faulty::{Effect, Errno, Fault, Faulty, Lasting};
use engine::log::ship::Stretch;
use engine::node::config::Config;
use engine::peer::Rebuff;
use engine::state::Role;
use engine::types::{Epoch, Lsn, NodeId};
use std::sync::Arc;

const BLOCK: usize = 4096;

fn config(number: u8, replicas: [&str; 2]) -> Config {
    let config = if number == 1 { primary_config("orders") } else { replica_config("orders") };
    let replicas = replicas.iter().map(|name| (*name).to_owned()).collect();
    Config { node: NodeId([number; 16]), replicas, ..config }
}

/// Calls a replica; the next record that it is to get.
fn call(from: &mut Driven, to: &mut Driven, name: &str) -> Result<Lsn, Rebuff> {
    for _ in 0..20 {
        let (hello, takes_back) = (from.node.hello().expect("it is primary"), from.node.takes_back());
        let now = to.now();
        let welcome = match to.node.accept(now, &hello, takes_back) {
            Err(Rebuff::NotYet) => {
                to.work();
                continue;
            }
            answer => answer?,
        };
        let (needs, now) = (to.node.needs(), from.now());
        let jump = from.node.attach(now, name, &welcome, Some(&needs)).expect("it can be caught up");
        assert_eq!(jump, None, "the log holds all that it needs");
        from.node.link_changed(name, true);
        return Ok(welcome.durable.lsn.next());
    }
    panic!("it never comes to rest");
}

/// Sends so many batches at most; the next record.
fn send(from: &mut Driven, to: &mut Driven, name: &str, mut next: Lsn, batches: usize) -> Lsn {
    for _ in 0..batches {
        let batch = match from.node.records_from(next, 32 << 10) {
            Stretch::UpToDate => break,
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => read.run().expect("the log can be read"),
            Stretch::Gone => panic!("what a replica needs is kept"),
        };
        next = batch.last.next();
        let now = to.now();
        to.node.append(now, batch).expect("the records follow");
        to.sync();
        let now = from.now();
        from.node.acknowledged(now, name, to.node.acknowledgeable());
    }
    next
}

/// Sends and copies until it is whole.
fn complete(from: &mut Driven, to: &mut Driven, name: &str, mut next: Lsn) {
    for _ in 0..50 {
        from.work();
        next = send(from, to, name, next, usize::MAX);
        if !to.node.is_coarse() && to.node.durable() == from.node.durable() {
            return;
        }
    }
    panic!("it does not become whole: {:?}", to.node.needs());
}

fn promote(node: &mut Driven, epoch: Epoch) {
    let (now, at) = (node.now(), node.node.durable().lsn);
    node.node.promote(now, at, epoch).expect("promoted");
    node.node.commit(now).expect("committed");
    node.node.take_back(now).expect("old primaries are taken back");
    node.work();
}

fn write(node: &mut Driven, image: &mut [u8], block: usize, byte: u8) {
    node.write(A, (block * BLOCK) as u64, &[byte; BLOCK]).expect("written");
    node.flush().expect("flushed");
    image[block * BLOCK..(block + 1) * BLOCK].fill(byte);
}

/// East has been taken back by west, and got some of what diverged; then west is lost, and north takes over.
struct Three {
    disk: CrashDisk,
    faulty: Faulty,
    east: Driven,
    north: Driven,
    image: Vec<u8>,
}

fn three() -> Three {
    let disk = CrashDisk::new();
    let faulty = Faulty::new(disk.storage());
    let mut east = Driven::open(Arc::new(faulty.clone()), config(1, ["west", "north"])).expect("a new group");
    let mut west =
        Driven::open(CrashDisk::new().storage(), config(2, ["east", "north"])).expect("a new replica");
    let mut north =
        Driven::open(CrashDisk::new().storage(), config(3, ["east", "west"])).expect("a new replica");
    let mut image = vec![0; VOLUME_BYTES as usize];
    for block in [0, 70, 130, 200] {
        write(&mut east, &mut image, block, 1);
    }
    for (node, name) in [(&mut west, "west"), (&mut north, "north")] {
        let next = call(&mut east, node, name).expect("welcome");
        send(&mut east, node, name, next, usize::MAX);
        east.node.link_changed(name, false);
    }
    // Nobody gets these.
    let mut alone = image.clone();
    for block in [0, 1, 71, 130, 201] {
        write(&mut east, &mut alone, block, 7);
    }
    east.work();

    promote(&mut west, Epoch(2));
    write(&mut west, &mut image, 3, 2);
    let next = call(&mut west, &mut north, "north").expect("welcome");
    send(&mut west, &mut north, "north", next, usize::MAX);
    assert_eq!(north.node.durable(), west.node.durable());
    west.node.link_changed("north", false);
    // North never gets these, east does.
    let mut lost = image.clone();
    for block in [0, 3, 90, 200] {
        write(&mut west, &mut lost, block, 9);
    }
    let mut next = call(&mut west, &mut east, "east").expect("taken back");
    assert_eq!((east.node.role(), east.node.is_coarse()), (Role::Replica, true));
    let told = |node: &Driven| node.node.needs().lacks.iter().map(|lack| lack.extent.len).sum::<u64>();
    let before = told(&east);
    for _ in 0..30 {
        // A copy, and not all of them.
        west.now.mono.0 += 1_000_000_000;
        west.sync();
        if let Some(job) = west.node.poll_job(west.now, engine::node::work::Lane::Copy) {
            let (done, now) = (job.run(), west.now());
            west.node.finish(now, done);
        }
        west.sync();
        next = send(&mut west, &mut east, "east", next, usize::MAX);
        east.work();
        if told(&east) < before {
            break;
        }
    }
    let left = told(&east);
    assert!(left > 0 && left < before, "some of it has come over: {left} of {before}");

    promote(&mut north, Epoch(3));
    write(&mut north, &mut image, 4, 3);
    Three { disk, faulty, east, north, image }
}

impl Three {
    fn check(&mut self, story: &str) {
        let east = &mut self.east;
        assert_eq!(east.node.branches().len(), 2, "{story}: what it wrote alone, and what north never had");
        let latest = east.node.window().expect("it has points").latest;
        assert_eq!(latest, self.north.node.durable().lsn, "{story}");
        let bytes = east.read_point(A, latest);
        let block = bytes.iter().zip(&self.image).position(|(found, wanted)| found != wanted);
        assert_eq!(block.map(|at| at / BLOCK), None, "{story}: the first block that is not what north has");
    }
}

#[test]
fn r14_a_second_failover_while_an_old_primary_is_taken_back() {
    for (restarts_before, restarts_behind) in [(false, false), (true, false), (false, true), (true, true)] {
        let story = format!("restarts before: {restarts_before}, behind: {restarts_behind}");
        let mut three = three();
        if restarts_before {
            three.restart();
        }
        let mut next = call(&mut three.north, &mut three.east, "east").expect("welcome");
        if restarts_behind {
            three.restart();
            next = call(&mut three.north, &mut three.east, "east").expect("welcome again");
        }
        complete(&mut three.north, &mut three.east, "east", next);
        three.check(&story);
        three.restart();
        three.check(&story);
    }
}

impl Three {
    /// East dies, and is started again.
    fn restart(&mut self) {
        let left = self.disk.killed();
        let faulty = Faulty::new(left.storage());
        let opened = Driven::open(Arc::new(faulty.clone()), config(1, ["west", "north"]));
        (self.east, self.disk, self.faulty) = (opened.expect("it opens again"), left, faulty);
    }
}

/// Each error at each call of the answer, once: what diverged is never forgotten.
#[test]
fn w18_a_second_failover_on_storage_that_fails() {
    for effect in [Effect::Nothing, Effect::Whole] {
        let mut refused = 0;
        for nth in 1.. {
            let story = format!("an error at call {nth}, {effect:?}");
            let mut three = three();
            let (call_of, lasting) = (None, Lasting::Once);
            three.faulty.arm(Fault { call: call_of, nth, errno: Errno::Io, effect, lasting });
            let answer = call(&mut three.north, &mut three.east, "east");
            let fired = three.faulty.fired() > 0;
            assert_eq!(three.faulty.resyncs(), 0, "{story}");
            three.faulty.disarm();
            assert!(fired || answer.is_ok(), "{story}: {answer:?}");
            refused += usize::from(answer.is_err());
            if three.east.node.failed().is_some() {
                three.restart();
            }
            let next = call(&mut three.north, &mut three.east, "east").expect("welcome");
            complete(&mut three.north, &mut three.east, "east", next);
            three.check(&story);
            if !fired {
                break;
            }
        }
        assert!(refused > 4, "{refused} were refused");
    }
}
