//! Online verification, with a whole node at each end: what has rotted is found, with its place and both digests, and
//! sent again; and nothing else is ever found, whatever guests, power cuts and retention do meanwhile.
//!
//! The reference is the list of what was written, folded into plain arrays.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config};
use engine::digest::Digest;
use engine::event::OnMismatch;
use engine::guest::Op;
use engine::log::Limits as LogLimits;
use engine::log::ship::Stretch;
use engine::node::check::Repair;
use engine::node::config::{Config, Limits, OnFull, Retention};
use engine::node::verify::{RoundReport, VerifyError};
use engine::node::work::Lane;
use engine::peer::TakesBack;
use engine::types::{Extent, Lsn, VolumeId};
use std::collections::BTreeSet;

struct Pair {
    disks: [CrashDisk; 2],
    primary: Driven,
    replica: Driven,
    /// The next record to ship, while the link is up.
    link: Option<Lsn>,
    /// The asks that this session has sent.
    asked: u64,
    images: [Vec<u8>; 2],
    random: Random,
    /// What a job of a lane came to is brought back later, so that guests write in between.
    out: [Option<engine::node::work::Done>; 2],
}

fn small(config: Config) -> Config {
    let log = LogLimits { segment_bytes: 64 << 10, log_bytes: 64 * (64 << 10), recent_bytes: 32 << 10 };
    let limits =
        Limits { log, spare_segments: 1, apply_bytes: 32 << 10, checkpoint_ms: 100, ..config.limits };
    let retention = Retention { bytes: 3 * (64 << 10), age_ns: u64::MAX, ..Retention::default() };
    Config { on_full: OnFull::Track, limits, retention, ..config }
}

fn config(index: usize) -> Config {
    small(if index == 0 { primary_config("g") } else { replica_config("g") })
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let disks = [CrashDisk::new(), CrashDisk::new()];
        let open = |index: usize| Driven::open(disks[index].storage(), config(index)).expect("opened");
        let (primary, replica) = (open(0), open(1));
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let images = [vec![0; VOLUME_BYTES as usize], vec![0; VOLUME_BYTES as usize]];
        let mut pair =
            Pair { disks, primary, replica, link: None, asked: 0, images, random, out: [None, None] };
        pair.connect();
        pair
    }

    fn write(&mut self) {
        let volume = if self.random.below(3) == 0 { B } else { A };
        let offset = self.random.below(VOLUME_BYTES / 512) * 512;
        let most = (VOLUME_BYTES - offset).min(24 << 10);
        let extent = Extent::new(offset, (1 + self.random.below(most / 512)) * 512);
        let value = (self.random.below(255) + 1) as u8;
        let value = if self.random.below(8) == 0 { 0 } else { value };
        self.write_here(volume, extent, value);
    }

    fn write_here(&mut self, volume: VolumeId, extent: Extent, value: u8) {
        let op = match value {
            0 => Op::Trim(extent),
            _ => Op::Write { offset: extent.offset, data: vec![value; extent.len as usize].into() },
        };
        self.primary.request(volume, op, false).expect("it is taken");
        let image = &mut self.images[volume.0 as usize - 1];
        image[extent.offset as usize..extent.end() as usize].fill(value);
    }

    /// The job of a lane on one side: begun, or brought back.
    fn step(&mut self, index: usize, lane: Lane) {
        let driven = if index == 0 { &mut self.primary } else { &mut self.replica };
        driven.now.mono.0 += 20_000_000;
        let now = driven.now();
        if lane == Lane::Verify {
            match self.out[index].take() {
                Some(done) => driven.node.finish(now, done),
                None => self.out[index] = driven.node.poll_job(now, lane).map(|job| job.run()),
            }
            return;
        }
        if let Some(job) = driven.node.poll_job(now, lane) {
            let done = job.run();
            let now = driven.now();
            driven.node.finish(now, done);
        }
    }

    fn work(&mut self) {
        for index in 0..2 {
            for lane in [Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk, Lane::Verify, Lane::Verify] {
                self.step(index, lane);
            }
            let driven = if index == 0 { &mut self.primary } else { &mut self.replica };
            driven.now.mono.0 += 100_000_000;
            driven.sync();
        }
    }

    fn connect(&mut self) {
        let hello = self.primary.node.hello().expect("a primary");
        let now = self.replica.now();
        let welcome = self.replica.node.accept(now, &hello, TakesBack::No).expect("the replica follows");
        let needs = self.replica.node.needs();
        let now = self.primary.now();
        let Ok(jump) = self.primary.node.attach(now, "west", &welcome, Some(&needs)) else { return };
        let mut next = welcome.durable.lsn.next();
        if let Some(jump) = jump {
            let now = self.replica.now();
            self.replica.node.jump(now, &jump).expect("the replica jumps");
            next = jump.to.lsn.next();
        }
        (self.link, self.asked) = (Some(next), 0);
    }

    fn disconnect(&mut self) {
        self.primary.node.link_changed("west", false);
        self.link = None;
    }

    /// One batch, the acknowledgement, and what the replica asks.
    fn ship(&mut self) {
        let Some(next) = self.link else { return };
        let batch = match self.primary.node.records_from(next, 64 << 10) {
            Stretch::UpToDate => return self.acknowledge(),
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => read.run().expect("the log can be read"),
            Stretch::Gone => return self.disconnect(),
        };
        self.link = Some(batch.last.next());
        let now = self.replica.now();
        self.replica.node.append(now, batch).expect("the records follow");
        self.acknowledge();
    }

    fn acknowledge(&mut self) {
        self.replica.sync();
        let now = self.primary.now();
        self.primary.node.acknowledged(now, "west", self.replica.node.acknowledgeable());
        let asks = self.replica.node.asks();
        assert!(asks.is_sorted_by(|a, b| a.0 < b.0), "numbers ascend: {asks:?}");
        for (number, ask) in asks {
            if number > self.asked {
                self.primary.node.asked(now, "west", ask);
                self.asked = number;
            }
        }
    }

    fn crash(&mut self, index: usize) {
        self.disconnect();
        self.out[index] = None;
        if index == 0 {
            // What was written is durable, so that the reference needs no LSNs.
            self.primary.sync();
        }
        let disk = self.disks[index].clone();
        let left = match self.random.below(2) {
            0 => disk.killed(),
            _ => {
                let mut outcomes = disk.outcomes(4, &mut self.random);
                let chosen = self.random.below(outcomes.len() as u64) as usize;
                outcomes.swap_remove(chosen)
            }
        };
        self.disks[index] = left.clone();
        let opened = Driven::open(left.storage(), config(index)).expect("a crash is got over");
        let driven = if index == 0 { &mut self.primary } else { &mut self.replica };
        let now = driven.now;
        *driven = opened;
        driven.now = now;
    }

    /// Goes on until the round is over and nothing is owed any more.
    fn settle(&mut self) -> RoundReport {
        for _ in 0..3_000 {
            if self.link.is_none() {
                self.connect();
            }
            self.work();
            self.ship();
            let report = self.primary.node.report(self.primary.now);
            let is_quiet = report.replicas[0].lacking.is_none()
                && self.replica.node.asks().iter().all(|(number, _)| *number <= self.asked)
                && self.replica.node.acknowledgeable() == self.primary.node.durable()
                && self.open().iter().all(|open| open.0 != Repair::Asked);
            if let Some(round) = report.round.filter(|round| round.ended.is_some() && is_quiet) {
                return round;
            }
        }
        panic!(
            "the round does not end: {:?}, {:?}",
            self.primary.node.report(self.primary.now),
            self.replica.node.checks()
        );
    }

    fn catch_up(&mut self) {
        self.primary.sync();
        while self.replica.node.durable() != self.primary.node.durable() {
            self.work();
            self.ship();
        }
    }

    fn verify(&mut self, on_mismatch: OnMismatch) -> RoundReport {
        let now = self.primary.now();
        self.primary.node.verify(now, on_mismatch).expect("a round begins");
        self.settle()
    }

    fn open(&self) -> Vec<(Repair, VolumeId, Extent)> {
        let checks = self.replica.node.checks().expect("a replica");
        checks.open.iter().map(|open| (open.repair, open.volume, open.extent)).collect()
    }

    /// What the replica's newest point shows is what the primary holds, and what was written.
    fn check_equal(&mut self) {
        let latest = self.replica.node.window().expect("points").latest;
        for volume in [A, B] {
            let image = &self.images[volume.0 as usize - 1];
            assert!(
                self.primary.read(volume, 0, VOLUME_BYTES).expect("read") == *image,
                "the primary itself"
            );
            assert!(self.replica.read_point(volume, latest) == *image, "the replica");
        }
    }
}

/// A pair that has written, and retired enough of it for the base images to hold something.
fn aged(seed: u64) -> Pair {
    let mut pair = Pair::new(seed);
    for _ in 0..80 {
        pair.write();
        pair.ship();
        pair.work();
    }
    pair.catch_up();
    (0..20).for_each(|_| pair.work());
    assert!(pair.replica.node.state().base > Lsn::ZERO, "points were retired");
    pair
}

/// Bytes of a volume that its base image alone holds, with what they are.
fn in_base(pair: &mut Pair, volume: VolumeId, name: &str) -> usize {
    let base = pair.disks[1].bytes(&format!("g/base/{name}.img"));
    let image = &pair.images[volume.0 as usize - 1];
    // A byte that the log has no version of: rot there must be seen.
    (0..base.len()).rev().find(|&at| base[at] != 0 && base[at] == image[at]).expect("something was folded")
}

#[test]
fn a_round_over_sound_copies_finds_nothing() {
    let mut pair = aged(1);
    let round = pair.verify(OnMismatch::Repair);
    assert!(round.records >= 2 && round.done_bytes == round.total_bytes, "{round:?}");
    assert!(round.busy_bytes == 0 && round.unreadable_bytes == 0);
    let verdict = &round.replicas[0];
    assert_eq!((verdict.same, verdict.unchecked), (round.records, 0), "{round:?}");
    assert_eq!(pair.replica.node.checks().expect("a replica").open, []);
    pair.check_equal();
}

#[test]
fn a_rotten_byte_of_the_base_is_found_and_repaired() {
    for seed in 1..=4 {
        let mut pair = aged(seed);
        let at = in_base(&mut pair, A, "data");
        pair.disks[1].rot("g/base/data.img", at, 0x10);
        let latest = pair.replica.node.window().expect("points").latest;
        let rotten = pair.replica.read_point(A, latest) != pair.images[0];
        if !rotten {
            // A version in the log hides it.
            continue;
        }
        let round = pair.verify(OnMismatch::Report);
        assert_eq!(round.replicas[0].mismatched, 1, "{round:?}");
        let checks = pair.replica.node.checks().expect("a replica");
        let [found] = &checks.open[..] else { panic!("{checks:?}") };
        assert!(found.volume == A && found.extent.offset <= at as u64 && (at as u64) < found.extent.end());
        let part = found.extent.offset as usize..found.extent.end() as usize;
        assert_eq!(found.expected, Digest::of(&pair.images[0][part.clone()]));
        let mut rot = pair.images[0].clone();
        rot[at] ^= 0x10;
        assert_eq!(found.found, Ok(Digest::of(&rot[part])));
        assert!(found.at.0 > round.number && found.at <= pair.primary.node.durable().lsn);
        assert_eq!(found.repair, Repair::NotWanted, "it was to report alone");
        assert!(pair.replica.node.coarse().is_empty(), "nothing was sent again");

        let round = pair.verify(OnMismatch::Repair);
        assert_eq!(round.replicas[0].mismatched, 1, "{round:?}");
        let checks = pair.replica.node.checks().expect("a replica");
        assert!(checks.open.is_empty() && checks.repaired == 1, "{checks:?}");
        assert_eq!(pair.replica.node.coarse().len(), 1, "a span has brought it");
        pair.check_equal();
        assert_eq!(pair.verify(OnMismatch::Repair).replicas[0].mismatched, 0);
    }
}

/// Rot where the primary has a hole.
#[test]
fn what_should_be_zeros_is_looked_at_too() {
    let mut pair = aged(2);
    pair.write_here(B, Extent::new(0, VOLUME_BYTES), 0);
    (0..400).for_each(|_| pair.write_here(A, Extent::new(0, 8 << 10), 7));
    pair.catch_up();
    (0..40).for_each(|_| pair.work());
    pair.disks[1].rot("g/base/wal.img", 300_000, 1);
    let latest = pair.replica.node.window().expect("points").latest;
    assert!(pair.replica.read_point(B, latest) != pair.images[1], "the trim is in the base");
    let round = pair.verify(OnMismatch::Repair);
    assert_eq!(round.replicas[0].mismatched, 1, "{round:?}");
    pair.check_equal();
}

/// Rot in a record of the replica's log: the read is refused by the record's checksum, which is a finding too.
#[test]
fn a_rotten_record_of_the_log_is_found_and_made_up_for() {
    let mut pair = aged(3);
    pair.write_here(A, Extent::new(64 << 10, 4096), 0xa5);
    pair.catch_up();
    let wanted = vec![0xa5; 4096];
    let paths = pair.disks[1].paths();
    let (path, at) = paths
        .iter()
        .filter(|path| path.starts_with("g/log/"))
        .find_map(|path| {
            let bytes = pair.disks[1].bytes(path);
            bytes.windows(4096).position(|window| window == wanted).map(|at| (path.clone(), at))
        })
        .expect("the record is there");
    pair.disks[1].rot(&path, at + 100, 4);
    let round = pair.verify(OnMismatch::Repair);
    assert!(round.replicas[0].mismatched >= 1, "{round:?}");
    let checks = pair.replica.node.checks().expect("a replica");
    assert!(checks.open.is_empty() && checks.repaired >= 1, "{checks:?}");
    pair.check_equal();
}

/// A repair that either side dies in goes on, or begins again.
#[test]
fn a_repair_survives_either_side() {
    for seed in 1..=30 {
        let mut pair = aged(seed);
        let at = in_base(&mut pair, A, "data");
        pair.disks[1].rot("g/base/data.img", at, 0x10);
        let now = pair.primary.now();
        pair.primary.node.verify(now, OnMismatch::Repair).expect("a round begins");
        let steps = pair.random.below(30);
        for _ in 0..steps {
            pair.work();
            pair.ship();
        }
        let index = pair.random.below(2) as usize;
        pair.crash(index);
        let now = pair.primary.now();
        match pair.primary.node.verify(now, OnMismatch::Repair) {
            Ok(_) | Err(VerifyError::UnderWay(_)) => {}
            Err(error) => panic!("{error}"),
        }
        pair.settle();
        pair.verify(OnMismatch::Repair);
        assert_eq!(pair.open(), [], "seed {seed}");
        pair.check_equal();
    }
}

/// Guests write into what is being read, either side dies, points are retired: no mismatch is ever found, and the
/// rounds end.
#[test]
fn nothing_is_found_that_is_not_there() {
    let (mut same, mut busy) = (0, BTreeSet::new());
    for seed in 1..=40 {
        let mut pair = Pair::new(seed);
        for _ in 0..600 {
            match pair.random.below(100) {
                0..=29 => pair.write(),
                30..=49 => pair.ship(),
                50..=54 => pair.work(),
                55..=89 => {
                    let lanes = [Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk, Lane::Verify, Lane::Verify];
                    let index = pair.random.below(2) as usize;
                    let lane = lanes[pair.random.below(lanes.len() as u64) as usize];
                    pair.step(index, lane);
                }
                90..=93 => {
                    let now = pair.primary.now();
                    let _ = pair.primary.node.verify(now, OnMismatch::Repair);
                }
                94 if pair.random.below(3) == 0 => pair.disconnect(),
                95..=97 if pair.link.is_none() => pair.connect(),
                98 if pair.random.below(4) == 0 => pair.crash(0),
                99 if pair.random.below(4) == 0 => pair.crash(1),
                _ => {}
            }
            let checks = pair.replica.node.checks().expect("a replica");
            assert!(checks.mismatched == 0, "seed {seed}: {checks:?}");
            same += u64::from(checks.same > 0);
            busy.insert(pair.primary.node.round().is_some_and(|round| round.busy_bytes > 0));
        }
        let now = pair.primary.now();
        match pair.primary.node.verify(now, OnMismatch::Repair) {
            Ok(_) | Err(VerifyError::UnderWay(_)) => {}
            Err(error) => panic!("{error}"),
        }
        pair.settle();
        let round = pair.verify(OnMismatch::Repair);
        assert_eq!(round.replicas[0].mismatched, 0, "seed {seed}: {round:?}");
        assert_eq!(round.replicas[0].same, round.records, "seed {seed}: {round:?}");
        pair.check_equal();
    }
    assert!(same > 1_000, "{same} looks at replicas that had compared something prove little");
}

/// Rot in a record that retention comes to: the fold waits, asks for the part, and goes on with what was sent again.
/// Nothing fails, and what was lost are points of before.
#[test]
fn a_fold_that_meets_rot_asks_for_the_part() {
    let mut pair = Pair::new(7);
    pair.write_here(A, Extent::new(64 << 10, 4096), 0xa5);
    pair.catch_up();
    let wanted = vec![0xa5; 4096];
    let paths = pair.disks[1].paths();
    let (path, at) = paths
        .iter()
        .filter(|path| path.starts_with("g/log/"))
        .find_map(|path| {
            let bytes = pair.disks[1].bytes(path);
            bytes.windows(4096).position(|window| window == wanted).map(|at| (path.clone(), at))
        })
        .expect("the record is there");
    pair.disks[1].rot(&path, at + 100, 4);
    let base = pair.replica.node.state().base;
    let mut waited = false;
    for step in 0..200 {
        if step < 120 {
            pair.write_here(B, Extent::new(0, 16 << 10), 4);
        }
        pair.work();
        waited |= pair.replica.node.checks().is_some_and(|checks| checks.damaged.is_some());
        pair.ship();
    }
    pair.catch_up();
    assert!(waited, "the fold has met it");
    assert_eq!(pair.replica.node.failed(), None);
    assert!(pair.replica.node.state().base > base, "retention goes on");
    assert_eq!(pair.replica.node.checks().expect("a replica").damaged, None);
    pair.check_equal();
}

#[test]
fn a_round_needs_a_primary_and_a_replica() {
    let mut pair = Pair::new(1);
    let now = pair.replica.now();
    let refused = pair.replica.node.verify(now, OnMismatch::Repair);
    assert_eq!(refused, Err(VerifyError::NotPrimary("replica")));
    let disk = CrashDisk::new();
    let alone = Config { replicas: Vec::new(), ..primary_config("g") };
    let mut alone = Driven::open(disk.storage(), alone).expect("opened");
    let now = alone.now();
    assert_eq!(alone.node.verify(now, OnMismatch::Repair), Err(VerifyError::NoReplica));
    let now = pair.primary.now();
    let number = pair.primary.node.verify(now, OnMismatch::Repair).expect("a round begins");
    match pair.primary.node.verify(now, OnMismatch::Report) {
        Err(VerifyError::UnderWay(round)) => assert_eq!(round.number, number),
        other => panic!("two rounds at once: {other:?}"),
    }
}

/// The schedule of the configuration begins rounds, the first soon.
#[test]
fn a_schedule_begins_rounds() {
    let mut pair = Pair::new(1);
    let mut scheduled = config(0);
    scheduled.verify.every_ms = Some(100_000);
    pair.disconnect();
    pair.disks[0] = pair.disks[0].killed();
    let now = pair.primary.now;
    pair.primary = Driven::open(pair.disks[0].storage(), scheduled).expect("opened");
    pair.primary.now = now;
    pair.connect();
    let mut begun = BTreeSet::new();
    for _ in 0..200 {
        pair.work();
        pair.ship();
        begun.extend(pair.primary.node.round().map(|round| round.begun));
    }
    assert!(begun.len() >= 2, "{begun:?}");
}
