//! Outages longer than the log: R06, W20 and R24, on a whole node at each end.
//!
//! One primary with a small log and one replica, whose link is up for a while and down for long, and either of which
//! is killed or loses power at any moment. The reference is the list of what was written, folded into plain arrays.

mod common;

use common::crash::CrashDisk;
use common::{A, B, Driven, Random, VOLUME_BYTES, primary_config, replica_config};
use engine::guest::Op;
use engine::log::Limits as LogLimits;
use engine::log::ship::Stretch;
use engine::node::config::{Config, Limits, OnFull};
use engine::node::work::Lane;
use engine::peer::TakesBack;
use engine::types::{Extent, Lsn, VolumeId};

/// What a guest wrote: at which LSN, where, and which byte (zero for a trim).
struct Written {
    lsn: Lsn,
    volume: VolumeId,
    extent: Extent,
    value: u8,
}

struct Pair {
    disks: [CrashDisk; 2],
    primary: Driven,
    replica: Driven,
    /// The next record to ship, while the link is up.
    link: Option<Lsn>,
    written: Vec<Written>,
    random: Random,
    jumps: u32,
    spans: u32,
}

fn small(config: Config) -> Config {
    let log = LogLimits { segment_bytes: 64 << 10, log_bytes: 8 * (64 << 10), recent_bytes: 32 << 10 };
    let limits =
        Limits { log, spare_segments: 1, apply_bytes: 32 << 10, checkpoint_ms: 100, ..config.limits };
    Config { on_full: OnFull::Track, limits, ..config }
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let disks = [CrashDisk::new(), CrashDisk::new()];
        let primary = Driven::open(disks[0].storage(), small(primary_config("g"))).expect("opened");
        let replica = Driven::open(disks[1].storage(), replica_config("g")).expect("opened");
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Pair { disks, primary, replica, link: None, written: Vec::new(), random, jumps: 0, spans: 0 }
    }

    fn write(&mut self) {
        let volume = if self.random.below(3) == 0 { B } else { A };
        let offset = self.random.below(VOLUME_BYTES / 512) * 512;
        let most = (VOLUME_BYTES - offset).min(24 << 10);
        let extent = Extent::new(offset, (1 + self.random.below(most / 512)) * 512);
        let value = (self.random.below(255) + 1) as u8;
        let (op, value) = match self.random.below(8) {
            0 => (Op::Trim(extent), 0),
            _ => (Op::Write { offset, data: vec![value; extent.len as usize].into() }, value),
        };
        let before = self.primary.node.log().tip().lsn;
        let mut requests = vec![engine::guest::Request { cookie: 1, op, fua: false }];
        for _ in 0..50 {
            let mut out = engine::node::primary::Submitted::default();
            let now = self.primary.now();
            self.primary.node.submit(now, volume, &mut requests, &mut out);
            if !out.stalled {
                assert!(out.ready[0].result.is_ok(), "production goes on: {:?}", out.ready[0].result);
                break;
            }
            self.work(true);
        }
        assert!(requests.is_empty(), "production is not stopped by a full log");
        // A record of the opening may have come before it.
        let lsn = self.primary.node.log().tip().lsn;
        assert!(lsn > before);
        self.written.push(Written { lsn, volume, extent, value });
    }

    /// Everything that is to be done in the background, once over.
    fn work(&mut self, checkpoint: bool) {
        for driven in [&mut self.primary, &mut self.replica] {
            driven.now.mono.0 += if checkpoint { 200_000_000 } else { 20_000_000 };
            driven.sync();
            for lane in [Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk] {
                let now = driven.now();
                let Some(job) = driven.node.poll_job(now, lane) else { continue };
                let done = job.run();
                let now = driven.now();
                driven.node.finish(now, done);
            }
            driven.sync();
        }
    }

    fn connect(&mut self) {
        let hello = self.primary.node.hello().expect("a primary");
        let now = self.replica.now();
        let welcome = self.replica.node.accept(now, &hello, TakesBack::No).expect("the replica follows");
        let needs = self.replica.node.needs();
        let now = self.primary.now();
        let jump = match self.primary.node.attach(now, "west", &welcome, Some(&needs)) {
            Ok(jump) => jump,
            Err(error) => panic!(
                "the replica cannot be caught up: {error}; {:?}, {needs:?}, the log from {}",
                self.primary.node.state(),
                self.primary.node.log().first()
            ),
        };
        let mut next = welcome.durable.lsn.next();
        if let Some(jump) = jump {
            self.jumps += 1;
            if self.random.below(4) == 0 {
                // The link breaks before it is told.
                return self.disconnect();
            }
            let now = self.replica.now();
            self.replica.node.jump(now, &jump).expect("the replica jumps");
            next = jump.to.lsn.next();
        }
        self.link = Some(next);
    }

    /// Connects, and ships all that is durable.
    fn connect_whole(&mut self) {
        self.connect();
        while self.link.is_some_and(|next| next <= self.primary.node.durable().lsn) {
            self.ship();
        }
        self.acknowledge();
    }

    fn disconnect(&mut self) {
        self.primary.node.link_changed("west", false);
        self.link = None;
    }

    /// One batch, and perhaps the acknowledgement.
    fn ship(&mut self) {
        let Some(next) = self.link else { return };
        let batch = match self.primary.node.records_from(next, 64 << 10) {
            Stretch::UpToDate => return,
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => read.run().expect("the log can be read"),
            Stretch::Gone => return self.disconnect(),
        };
        self.link = Some(batch.last.next());
        let was = self.replica.node.is_coarse();
        let now = self.replica.now();
        self.replica.node.append(now, batch).expect("the records follow");
        self.spans += u32::from(was && !self.replica.node.is_coarse());
        if self.random.below(3) > 0 {
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        self.replica.sync();
        let now = self.primary.now();
        self.primary.node.acknowledged(now, "west", self.replica.node.acknowledgeable());
    }

    /// Ends one of the two, as a kill does or as a power cut does, and starts it again.
    fn crash(&mut self, index: usize) {
        self.disconnect();
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
        let config = if index == 0 { small(primary_config("g")) } else { replica_config("g") };
        let was = if index == 0 { &self.primary } else { &self.replica }.node.state().clone();
        let opened = Driven::open(left.storage(), config);
        let opened = opened.unwrap_or_else(|error| panic!("a crash is got over: {error}, {was:?}"));
        let driven = if index == 0 { &mut self.primary } else { &mut self.replica };
        let now = driven.now;
        *driven = opened;
        driven.now = now;
        if index == 0 {
            // What the power cut took was never durable; the opening's own record may have its number now.
            let tip = self.primary.node.log().tip();
            let opened = tip.lsn;
            self.written.retain(|written| written.lsn < opened);
        }
    }

    /// What a volume held at an LSN.
    fn image(&self, volume: VolumeId, at: Lsn) -> Vec<u8> {
        let mut image = vec![0; VOLUME_BYTES as usize];
        for written in self.written.iter().filter(|written| written.volume == volume && written.lsn <= at) {
            image[written.extent.offset as usize..written.extent.end() as usize].fill(written.value);
        }
        image
    }

    fn check_points(&mut self) {
        let Some(window) = self.replica.node.window() else { return };
        let span = window.latest.0 - window.horizon.0;
        let mut at = vec![window.horizon, window.latest];
        at.extend((0..3).map(|_| Lsn(window.horizon.0 + self.random.below(span + 1))));
        for at in at {
            if self.replica.node.check_point(at).is_err() {
                assert!(at != window.horizon && at != window.latest, "both ends of the window are points");
                continue;
            }
            for volume in [A, B] {
                if self.replica.node.volume_specs().any(|spec| spec.id == volume) {
                    let (seen, expected) = (self.replica.read_point(volume, at), self.image(volume, at));
                    let differs = (0..seen.len()).find(|&byte| seen[byte] != expected[byte]);
                    assert!(
                        differs.is_none(),
                        "the point at LSN {at} of {volume:?} differs at {differs:?}: {window:?} {:?}",
                        self.replica.node.coarse(),
                    );
                }
            }
        }
    }

    /// Heals everything and goes on until the replica is whole and up to date.
    fn converge(&mut self) {
        for _ in 0..2_000 {
            if self.link.is_none() {
                self.connect();
            }
            self.work(true);
            self.ship();
            self.acknowledge();
            let latest = self.primary.node.durable().lsn;
            let whole = self.replica.node.window().is_some_and(|window| window.latest == latest);
            if whole && !self.replica.node.is_coarse() {
                return;
            }
        }
        panic!(
            "the replica is not whole: {:?}, coarse {:?}; the primary: {:?}",
            self.replica.node.window(),
            self.replica.node.coarse(),
            self.primary.node.report(self.primary.now),
        );
    }
}

/// R06, W20, R24: see the module.
#[test]
fn r06_w20_an_outage_longer_than_the_log_is_made_up_for_by_a_span() {
    let (mut jumps, mut spans) = (0, 0);
    for seed in 1..=40 {
        let mut pair = Pair::new(seed);
        pair.connect();
        for _ in 0..700 {
            match pair.random.below(200) {
                0..=79 => pair.write(),
                80..=139 => pair.ship(),
                140..=179 => {
                    let checkpoint = pair.random.below(4) == 0;
                    pair.work(checkpoint);
                }
                180..=189 if pair.link.is_none() && pair.random.below(8) == 0 => pair.connect(),
                190..=193 if pair.random.below(3) == 0 => pair.disconnect(),
                194 if pair.random.below(3) == 0 => pair.crash(0),
                195 if pair.random.below(3) == 0 => pair.crash(1),
                196 => pair.check_points(),
                _ => {}
            }
        }
        pair.converge();
        pair.check_points();
        let latest = pair.replica.node.window().expect("points").latest;
        for volume in [A, B] {
            let seen = pair.primary.read(volume, 0, VOLUME_BYTES).expect("read");
            assert!(seen == pair.image(volume, latest), "seed {seed}: the primary itself");
        }
        jumps += pair.jumps;
        spans += pair.spans;
    }
    assert!(jumps > 20 && spans > 20, "{jumps} jumps and {spans} spans are too few to prove anything");
}

/// A replica is back while a checkpoint is out that gives up the log which it needs: either it gets that log, or a
/// span. (Seed 1 of `random_points`.)
#[test]
fn a_replica_that_comes_back_while_its_log_is_given_up() {
    let mut pair = Pair::new(1);
    pair.write();
    pair.primary.flush().expect("flushed");
    pair.connect_whole();
    pair.disconnect();
    let (mut freed, mut surveyed) = (0, false);
    for _ in 0..400 {
        pair.write();
        pair.primary.flush().expect("flushed");
        pair.primary.now.mono.0 += 200_000_000;
        for lane in [Lane::Make, Lane::Apply, Lane::Bulk, Lane::Bulk] {
            let now = pair.primary.now();
            let Some(job) = pair.primary.node.poll_job(now, lane) else { continue };
            let gives_up = job.name() == "checkpoint" && surveyed;
            surveyed |= job.name() == "survey";
            let done = job.run();
            let needed = pair.replica.node.durable().lsn.next();
            if gives_up && pair.primary.node.log().first() <= needed {
                let hello = pair.primary.node.hello().expect("a primary");
                let now = pair.replica.now();
                let welcome = pair.replica.node.accept(now, &hello, TakesBack::No).expect("it follows");
                let (needs, now) = (pair.replica.node.needs(), pair.primary.now());
                let attached = pair.primary.node.attach(now, "west", &welcome, Some(&needs));
                let now = pair.primary.now();
                pair.primary.node.finish(now, done);
                freed += u32::from(pair.primary.node.log().first() > needed);
                assert!(
                    attached.is_err() || pair.primary.node.log().first() <= needed,
                    "it was told that it gets the log behind {}",
                    welcome.durable.lsn
                );
                pair.disconnect();
            } else {
                pair.primary.node.finish(now, done);
            }
        }
    }
    assert!(freed > 0, "the log was given up");
    pair.converge();
    pair.check_points();
}
