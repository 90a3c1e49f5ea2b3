//! Planned failovers: what either side does when the other, or it itself, dies or says nothing in between.

mod common;

use bytes::Bytes;
use common::crash::CrashDisk;
use common::{A, Driven, TempDir, primary_config, replica_config, replicate};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::guest::{Op, Refusal, Request};
use engine::log::ship::Stretch;
use engine::node::config::Config;
use engine::node::handover::{HandoverError, PATIENCE_MS};
use engine::node::primary::Submitted;
use engine::node::promote::PromoteError;
use engine::node::work::Lane;
use engine::peer::{Rebuff, TakesBack};
use engine::state::Role;
use engine::types::{Epoch, NodeId};
use std::sync::Arc;

/// East, the primary, and west, whole and in acknowledged possession of everything.
struct Two {
    here: TempDir,
    _there: TempDir,
    east: Driven,
    west: Driven,
}

fn west_config() -> Config {
    Config { replicas: vec!["east".to_owned()], ..replica_config("orders") }
}

impl Two {
    fn new() -> Two {
        let (here, there) = (TempDir::new(), TempDir::new());
        let east = Driven::open(here.storage(), primary_config("orders")).expect("a new group");
        let west = Driven::open(there.storage(), west_config()).expect("a new replica");
        let mut two = Two { here, _there: there, east, west };
        two.east.write(A, 0, &[1; 4096]).expect("there is room");
        two.east.flush().expect("a flush");
        two.connect();
        two
    }

    fn connect(&mut self) {
        replicate(&mut self.east, &mut self.west);
        self.east.node.link_changed("west", true);
    }

    /// West asks for the group, and east hears it.
    fn ask(&mut self) {
        let now = self.west.now();
        self.west.node.ask_for_group(now).expect("it is whole");
        let asks = self.west.node.asks();
        assert_eq!(asks.len(), 1, "one wish: {asks:?}");
        let now = self.east.now();
        self.east.node.asked(now, "west", asks[0].1);
    }

    /// East calls west with its offer.
    fn offer(&mut self) -> Rebuff {
        let hello = self.east.node.hello().expect("it has something to offer");
        let now = self.west.now();
        let answer = self.west.node.accept(now, &hello, TakesBack::No).expect_err("never a welcome");
        let now = self.east.now();
        self.east.node.rebuffed(now, "west", &answer);
        answer
    }

    /// East's process dies, and is started again.
    fn reopen_east(&mut self) {
        let elsewhere = TempDir::new();
        let other = Driven::open(elsewhere.storage(), primary_config("orders")).expect("a new group");
        // The lock goes with the old one.
        drop(std::mem::replace(&mut self.east, other));
        self.east = Driven::open(self.here.storage(), primary_config("orders")).expect("it opens again");
    }
}

#[test]
fn a_group_is_handed_over_and_the_old_primary_follows() {
    let mut two = Two::new();
    let at = two.east.node.durable();
    two.ask();
    assert_eq!(two.east.node.role(), Role::Fenced, "all was acknowledged, so it is decided at once");
    assert_eq!(two.east.node.calls_as(), Some(Epoch(2)));
    assert_eq!(two.east.write(A, 0, &[2; 512]), Err(Refusal::Shutdown));
    assert!(matches!(two.offer(), Rebuff::Superseded { .. }));
    assert_eq!((two.west.node.role(), two.west.node.history()[1].branch), (Role::Primary, at));
    assert_eq!(two.west.node.state().uncommitted, None, "there is nothing to commit");
    assert_eq!(two.west.node.takes_back(), TakesBack::Yes);
    assert_eq!(two.east.node.calls_as(), None, "it was taken");
    two.west.write(A, 4096, &[3; 4096]).expect("it serves");
    two.west.flush().expect("a flush");

    // East's disks hold all of it once its writes are applied.
    let welcome = loop {
        two.east.now.mono = two.east.now.mono.plus_ms(1_000);
        two.east.work();
        let (hello, now) = (two.west.node.hello().expect("it is primary"), two.east.now());
        match two.east.node.accept(now, &hello, TakesBack::Yes) {
            Ok(welcome) => break welcome,
            Err(rebuff) => assert_eq!(rebuff, Rebuff::NotYet),
        }
    };
    assert_eq!(welcome.durable, at, "nothing was left out, so nothing has to be copied");
    assert!(!two.east.node.is_coarse() && two.east.node.branches().is_empty());
}

/// A death right behind the decision, of either, changes nothing of it.
#[test]
fn r14_an_offer_survives_both() {
    let mut two = Two::new();
    two.ask();
    two.reopen_east();
    assert_eq!(two.east.node.role(), Role::Fenced, "it is on record");
    assert_eq!(two.east.write(A, 0, &[2; 512]), Err(Refusal::Shutdown));
    assert_eq!(two.east.node.calls_as(), Some(Epoch(2)), "and it goes on offering");
    assert!(matches!(two.offer(), Rebuff::Superseded { .. }));
    // The answer was lost, and it is asked again.
    two.reopen_east();
    assert_eq!(two.east.node.calls_as(), None, "it was on record that west had answered");
    assert_eq!(two.west.node.role(), Role::Primary);
}

#[test]
fn writes_wait_and_go_on_if_the_replica_does_not_follow() {
    let mut two = Two::new();
    // Logged, and never shipped.
    two.east.write(A, 0, &[4; 512]).expect("there is room");
    two.ask();
    assert_eq!((two.east.node.role(), two.east.node.is_draining()), (Role::Primary, true));
    let write =
        Request { cookie: 7, op: Op::Write { offset: 0, data: Bytes::from(vec![5; 512]) }, fua: false };
    let (mut batch, mut out) = (vec![write], Submitted::default());
    let now = two.east.now();
    two.east.node.submit(now, A, &mut batch, &mut out);
    assert!(out.stalled && out.ready.is_empty() && batch.len() == 1, "it waits");
    assert_eq!(two.east.read(A, 0, 512).expect("reads go on"), [4; 512]);

    two.east.now.mono = two.east.now.mono.plus_ms(PATIENCE_MS);
    two.east.work();
    assert_eq!((two.east.node.role(), two.east.node.is_draining()), (Role::Primary, false));
    let (now, mut out) = (two.east.now(), Submitted::default());
    two.east.node.submit(now, A, &mut batch, &mut out);
    assert!(!out.stalled && out.ready[0].result.is_ok(), "it went on as if nobody had asked");
    two.west.now.mono = two.west.now.mono.plus_ms(PATIENCE_MS);
    two.west.work();
    assert!(!two.west.node.asks_for_group(), "a wish does not hold for ever");
}

#[test]
fn only_the_heir_takes_an_offer() {
    let mut two = Two::new();
    let third = TempDir::new();
    let config = Config { node: NodeId([3; 16]), ..replica_config("orders") };
    let mut north = Driven::open(third.storage(), config).expect("a new replica");
    replicate(&mut two.east, &mut north);
    two.connect();
    two.ask();
    let (hello, now) = (two.east.node.hello().expect("it offers"), north.now());
    let before = north.node.history().to_vec();
    assert_eq!(north.node.accept(now, &hello, TakesBack::No), Err(Rebuff::NotYet));
    assert_eq!((north.node.role(), north.node.history()), (Role::Replica, before.as_slice()));
    // An heir that has lost its disk has nothing to begin with.
    let fresh = TempDir::new();
    let mut lost = Driven::open(fresh.storage(), west_config()).expect("a new replica");
    let now = lost.now();
    assert_eq!(lost.node.accept(now, &hello, TakesBack::No), Err(Rebuff::NotYet));
    assert_eq!(lost.node.role(), Role::Replica);
}

/// R08: the heir never answered, the old primary goes on by its operator's word, and the heir takes the group late.
#[test]
fn r08_an_old_primary_goes_on_in_a_newer_reign() {
    let mut two = Two::new();
    two.ask();
    let offer = two.east.node.hello().expect("it offers");
    let at = two.east.node.durable().lsn;
    let old = two.east.node.promote(two.east.now, at, Epoch(2));
    assert!(matches!(old, Err(PromoteError::Conflict { .. })), "that one was given away: {old:?}");
    two.east.work();
    two.east.node.promote(two.east.now, at, Epoch(3)).expect("it goes on");
    two.east.write(A, 0, &[6; 512]).expect("it serves");
    two.east.flush().expect("a flush");
    two.reopen_east();
    assert_eq!(two.east.read(A, 0, 512).expect("it serves"), [6; 512]);

    let now = two.west.now();
    let late = two.west.node.accept(now, &offer, TakesBack::No).expect_err("an old frame arrives");
    assert!(matches!(late, Rebuff::Superseded { .. }) && two.west.node.role() == Role::Primary);
    let (hello, now) = (two.east.node.hello().expect("it is primary"), two.west.now());
    assert_eq!(two.west.node.accept(now, &hello, TakesBack::No), Err(Rebuff::NotAllowed));
    assert_eq!(two.west.node.role(), Role::Fenced, "the newer reign is east's");
}

#[test]
fn who_may_not_ask_is_told() {
    let mut two = Two::new();
    let now = two.east.now();
    assert_eq!(two.east.node.ask_for_group(now), Err(HandoverError::NotReplica(Role::Primary)));
    let (dir, config) = (TempDir::new(), replica_config("orders"));
    let mut unborn = Driven::open(dir.storage(), config).expect("a new replica");
    let now = unborn.now();
    assert_eq!(unborn.node.ask_for_group(now), Err(HandoverError::NotWhole));
}

/// A replica whose disk was put back to an older state is no heir, whatever it had acknowledged; its primary goes on, and
/// sends it again what it has lost.
#[test]
fn r04_an_heir_that_has_lost_records() {
    let [east, west] = [CrashDisk::new(), CrashDisk::new()];
    let mut east = Driven::open(east.storage(), primary_config("orders")).expect("a new group");
    let mut old = Driven::open(west.storage(), west_config()).expect("a new replica");
    east.write(A, 0, &[1; 512]).expect("there is room");
    east.flush().expect("a flush");
    replicate(&mut east, &mut old);
    let older = west.killed();
    east.write(A, 0, &[2; 512]).expect("there is room");
    east.flush().expect("a flush");
    replicate(&mut east, &mut old);
    east.node.link_changed("west", true);
    let now = old.now();
    old.node.ask_for_group(now).expect("it is whole");
    let (_, ask) = old.node.asks()[0];
    let now = east.now();
    east.node.asked(now, "west", ask);
    assert_eq!(east.node.role(), Role::Fenced);

    let mut west = Driven::open(older.storage(), west_config()).expect("it opens");
    let (hello, now) = (east.node.hello().expect("it offers"), west.now());
    assert_eq!(west.node.accept(now, &hello, TakesBack::No), Err(Rebuff::Failed));
    assert_eq!((west.node.role(), west.node.failed()), (Role::Replica, None), "nothing was changed");
    // While a job is out nothing is decided.
    let at = east.node.durable().lsn;
    east.now.mono.0 += 10_000_000_000;
    let mut lanes = [Lane::Apply, Lane::Bulk].into_iter();
    let job = lanes.find_map(|lane| east.node.poll_job(east.now, lane)).expect("it keeps its disks");
    let early = east.node.promote(east.now, at, Epoch(3));
    assert!(matches!(early, Err(PromoteError::Busy)), "{early:?}");
    let (done, now) = (job.run(), east.now());
    east.node.finish(now, done);
    east.node.promote(now, at, Epoch(3)).expect("it goes on");
    east.node.link_changed("west", false);
    replicate(&mut east, &mut west);
    assert_eq!(west.node.durable(), east.node.durable());
    let alarm = &east.node.report(east.now).replicas[0].alarm;
    assert!(alarm.as_ref().is_some_and(|alarm| alarm.contains("lost records")), "{alarm:?}");
}

/// Who has failed gives nothing, asks for nothing and takes nothing, until it is started again.
#[test]
fn who_has_failed_takes_no_part() {
    let disks = [CrashDisk::new(), CrashDisk::new()];
    let faulty = [0, 1].map(|index: usize| Faulty::new(disks[index].storage()));
    let mut east = Driven::open(Arc::new(faulty[0].clone()), primary_config("orders")).expect("a new group");
    let mut west = Driven::open(Arc::new(faulty[1].clone()), west_config()).expect("a new replica");
    east.write(A, 0, &[1; 512]).expect("there is room");
    east.flush().expect("a flush");
    replicate(&mut east, &mut west);
    east.node.link_changed("west", true);
    let fault = Fault {
        call: Some(Call::Sync),
        nth: 1,
        errno: Errno::Io,
        effect: Effect::Nothing,
        lasting: Lasting::Once,
    };

    // The replica, at its next record.
    let next = west.node.durable().lsn.next();
    east.write(A, 0, &[2; 512]).expect("there is room");
    east.flush().expect("a flush");
    let Stretch::Ready(batch) = east.node.records_from(next, 4096) else { panic!("it is in memory") };
    faulty[1].arm(fault);
    let now = west.now();
    west.node.append(now, batch.clone()).expect("it follows");
    west.sync();
    assert!(west.node.failed().is_some(), "a failed sync is final");
    let now = west.now();
    assert!(matches!(west.node.ask_for_group(now), Err(HandoverError::Failed(_))));
    assert_eq!(west.node.append(now, batch), Err(Rebuff::Failed));
    let hello = east.node.hello().expect("it is primary");
    assert_eq!(west.node.accept(now, &hello, TakesBack::No), Err(Rebuff::Failed));
    assert!(west.node.promote(now, next, Epoch(2)).is_err());

    let left = disks[1].killed();
    let mut west = Driven::open(left.storage(), west_config()).expect("it opens again");
    east.node.link_changed("west", false);
    replicate(&mut east, &mut west);
    east.node.link_changed("west", true);
    let now = west.now();
    west.node.ask_for_group(now).expect("it is whole");
    let (_, ask) = west.node.asks()[0];

    // The old primary, as it writes down that it gives the group away.
    faulty[0].arm(fault);
    let now = east.now();
    east.node.asked(now, "west", ask);
    assert!(east.node.failed().is_some() && east.node.role() == Role::Fenced, "it serves no more");
    assert!(east.node.hello().is_none(), "and offers nothing that may not be on record");
    assert!(east.write(A, 0, &[3; 512]).is_err());
    let at = east.node.durable().lsn;
    let again = east.node.promote(now, at, east.node.next_epoch());
    assert!(again.is_err(), "{again:?}");
}

/// Two nodes were promoted to one epoch at one point; the one that was left out becomes the other's replica, and its
/// next start knows its own records from those of the line, though epoch, number and place in the chain are the same.
#[test]
fn r08_a_rivals_reign_of_the_same_epoch() {
    let mut two = Two::new();
    let third = TempDir::new();
    let config =
        || Config { node: NodeId([3; 16]), replicas: vec!["west".to_owned()], ..replica_config("orders") };
    let mut north = Driven::open(third.storage(), config()).expect("a new replica");
    replicate(&mut two.east, &mut north);
    let at = two.west.node.durable().lsn;
    two.west.node.promote(two.west.now, at, Epoch(2)).expect("promoted");
    north.node.promote(north.now, at, Epoch(2)).expect("promoted");
    for (node, byte) in [(&mut two.west, 7), (&mut north, 8)] {
        for _ in 0..5 {
            node.write(A, 0, &[byte; 4096]).expect("it serves");
        }
        node.flush().expect("a flush");
    }
    // A third decision ends it: west's operator moves on, in a newer epoch.
    let fourth = TempDir::new();
    let config_of =
        Config { node: NodeId([4; 16]), replicas: vec!["west".to_owned()], ..replica_config("orders") };
    let mut south = Driven::open(fourth.storage(), config_of).expect("a new replica");
    let hello = two.west.node.hello().expect("it is primary");
    let now = south.now();
    let _ = south.node.accept(now, &hello, TakesBack::No).expect("it is welcome");
    common::ship(&mut two.west, &mut south, engine::types::Lsn(1));
    let newest = south.node.durable().lsn;
    south.node.promote(south.now, newest, Epoch(3)).expect("promoted");
    let now = south.now();
    south.node.commit(now).expect("committed");
    let (hello, now) = (south.node.hello().expect("it is primary"), north.now());
    north.node.accept(now, &hello, TakesBack::Yes).expect("it is taken back");
    assert_eq!(north.node.durable().lsn, at, "what it wrote alone is no part of the line");
    assert_eq!(north.node.branches().len(), 1);
    let mut seen = 0;
    let branch = north.node.branches()[0];
    let end = north.node.read_branch(&branch).run(|_| seen += 1).expect("it can be read");
    assert_eq!((end, seen), (branch.last, branch.last.0 - at.0), "and all of it is kept");
    drop(north);
    let north = Driven::open(third.storage(), config()).expect("it opens");
    assert_eq!(north.node.durable().lsn, at, "nor after its next start");
}
