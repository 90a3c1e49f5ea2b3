//! What can happen to the two nodes: guests, jobs that are out for long, a link that comes and goes, kills and power
//! cuts.

use super::Tally;
use super::common::crash::CrashDisk;
use super::common::{A, B, Driven, Random, primary_config, replica_config};
use super::judge::{Held, Stretch};
use super::plain::{Change, Plain};
use super::watched::Watched;
use engine::catalog::MarkKind;
use engine::guest::{Op, Request};
use engine::log::Limits as LogLimits;
use engine::log::ship::Stretch as Records;
use engine::node::config::{Begins, Config, Limits, NewVolume, OnFull, Retention, Start};
use engine::node::keep::Keep;
use engine::node::primary::{AttachError, Submitted};
use engine::node::work::{Done, Job, Lane};
use engine::peer::{Rebuff, TakesBack};
use engine::read::Plan;
use engine::types::{Extent, GroupId, Lsn, VolumeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const VOLUME_BYTES: u64 = 256 << 10;
pub(crate) const VOLUMES: [(VolumeId, &str); 2] = [(A, "data"), (B, "wal")];
pub(crate) const SEGMENT_BYTES: u64 = 32 << 10;

pub(crate) const EAST: usize = 0;
pub(crate) const WEST: usize = 1;

fn config(side: usize, seed: u64) -> Config {
    let mut config = if side == EAST { primary_config("g") } else { replica_config("g") };
    let segments = if side == EAST { 8 } else { 512 };
    let log = LogLimits {
        segment_bytes: SEGMENT_BYTES,
        log_bytes: segments * SEGMENT_BYTES,
        recent_bytes: 16 << 10,
    };
    config.limits =
        Limits { log, spare_segments: 1, apply_bytes: 32 << 10, checkpoint_ms: 100, ..config.limits };
    config.on_full = OnFull::Track;
    // Some windows end by their bytes, some by their age.
    let age_ns = if seed.is_multiple_of(4) { 20_000_000_000 } else { u64::MAX };
    let bytes = if seed.is_multiple_of(3) { 512 << 10 } else { u64::MAX };
    let keep = Keep { minutes: 2, hours: 1, days: 0, named: 4, bytes };
    config.retention = Retention { bytes: (64 << 10) << (seed % 4), age_ns, keep };
    if side == EAST {
        let volume =
            |name: &str| NewVolume { name: name.to_owned(), size: VOLUME_BYTES, begins: Begins::Empty };
        let volumes = VOLUMES.map(|(_, name)| volume(name)).into();
        config.start = Start::Primary { group: GroupId([7; 16]), volumes };
    }
    config
}

/// A job of a node that is under way.
pub(crate) enum Out {
    Begun(Job),
    Ended(Done),
}

/// The two nodes, and what is known of them without asking them.
pub(crate) struct Pair<'a> {
    pub(crate) seed: u64,
    pub(crate) random: Random,
    pub(crate) tally: &'a mut Tally,
    pub(crate) disks: [CrashDisk; 2],
    pub(crate) watched: [Watched; 2],
    pub(crate) nodes: [Driven; 2],
    pub(crate) out: [Vec<Out>; 2],
    /// The next record to ship, while the link is up.
    pub(crate) link: Option<u64>,
    /// The link stays down until this step.
    pub(crate) down_until: u64,
    pub(crate) step: u64,
    pub(crate) plain: Plain,
    /// The first LSN at which both volumes are there.
    pub(crate) first: u64,
    /// The primary has written the record that begins its opening.
    pub(crate) begun: bool,
    /// Everything up to here was flushed, or shipped: the primary keeps it for good.
    pub(crate) promised: u64,
    /// And the replica what it acknowledged.
    pub(crate) acknowledged: u64,
    /// Everything below was retired, for good.
    pub(crate) retired: u64,
    pub(crate) stretches: Vec<Stretch>,
    pub(crate) held: Vec<Held>,
    /// The names that marks were given, whether or not they came to be.
    pub(crate) names: BTreeSet<String>,
    /// The marks that were kept when it was last looked.
    pub(crate) kept: BTreeSet<u64>,
}

impl<'a> Pair<'a> {
    pub(crate) fn new(seed: u64, tally: &'a mut Tally) -> Pair<'a> {
        let disks = [CrashDisk::new(), CrashDisk::new()];
        let watched = [0, 1].map(|side| Watched::new(disks[side].storage()));
        let nodes = [0, 1]
            .map(|side| Driven::open(watched[side].storage(), config(side, seed)).expect("nothing is there"));
        let first = nodes[EAST].node.log().tip().lsn.0;
        Pair {
            seed,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            tally,
            disks,
            watched,
            nodes,
            out: [Vec::new(), Vec::new()],
            link: None,
            down_until: 0,
            step: 0,
            plain: Plain::new(&[VOLUME_BYTES as usize; 2]),
            first,
            begun: true,
            promised: 0,
            acknowledged: 0,
            retired: 0,
            stretches: Vec::new(),
            held: Vec::new(),
            names: BTreeSet::new(),
            kept: BTreeSet::new(),
        }
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    pub(crate) fn tip(&self) -> u64 {
        self.nodes[EAST].node.log().tip().lsn.0
    }

    /// Whether the power of a side has failed: whatever it says now is no answer. A node never fails without that.
    pub(crate) fn is_dark(&self, side: usize) -> bool {
        let failed = self.nodes[side].node.failed();
        assert!(failed.is_none() || self.disks[side].is_cut(), "seed {}: {failed:?}", self.seed);
        self.disks[side].is_cut()
    }

    pub(crate) fn pass_time(&mut self, side: usize, ms: u64) {
        self.nodes[side].now.mono.0 += ms * 1_000_000;
        self.nodes[side].now.wall.0 += ms * 1_000_000;
    }

    // What guests do.

    pub(crate) fn guest(&mut self) {
        match self.random.below(100) {
            0..=6 => self.submit(Op::Flush, Vec::new()),
            7..=9 => self.resize(),
            10..=12 => self.mark(),
            13..=23 => {
                let (volume, offset, len) = self.somewhere(64 << 10);
                let extent = Extent::new(offset as u64, len as u64);
                let op = if self.one_in(3) { Op::Zero { extent, no_hole: true } } else { Op::Trim(extent) };
                self.tally.trims += 1;
                self.submit_to(volume, op, vec![Change::Zero { volume, offset, len }]);
            }
            _ => {
                let (volume, offset, len) = self.somewhere(12 << 10);
                let stamp = self.random.below(u64::MAX);
                let zeros = self.one_in(16);
                let byte = |at: usize| (stamp >> (at % 8 * 8)) as u8 ^ (at / 512) as u8;
                let bytes: Vec<u8> = (0..len).map(|at| if zeros { 0 } else { byte(at) }).collect();
                let op = Op::Write { offset: offset as u64, data: bytes.clone().into() };
                self.submit_to(volume, op, vec![Change::Write { volume, offset, bytes }]);
            }
        }
    }

    /// At least one byte of a volume, half of the time in whole sectors.
    pub(crate) fn somewhere(&mut self, most: u64) -> (usize, usize, usize) {
        let volume = usize::from(self.one_in(3));
        let size = self.plain.now()[volume].len() as u64;
        let unit = if self.one_in(2) { 512 } else { 1 };
        let len = unit * (1 + self.random.below(most.min(size) / unit));
        let offset = unit * self.random.below((size - len) / unit + 1);
        (volume, offset as usize, len as usize)
    }

    pub(crate) fn submit(&mut self, op: Op, changes: Vec<Change>) {
        self.submit_to(0, op, changes);
    }

    pub(crate) fn submit_to(&mut self, volume: usize, op: Op, changes: Vec<Change>) {
        let fua = self.one_in(10);
        let is_flush = op == Op::Flush;
        let mut requests = vec![Request { cookie: 1, op, fua }];
        for _ in 0..100 {
            let (before, mut out) = (self.tip(), Submitted::default());
            let now = self.nodes[EAST].now();
            self.nodes[EAST].node.submit(now, VOLUMES[volume].0, &mut requests, &mut out);
            if out.stalled {
                self.note(before, &[], false);
                self.make_room();
                if self.is_dark(EAST) {
                    return;
                }
                continue;
            }
            let is_dark = self.is_dark(EAST);
            match is_flush {
                // Its barrier may be a record, which changes nothing.
                true => self.begun |= self.tip() > before,
                false => self.note(before, &changes, !is_dark),
            }
            if let Some((_, ticket)) = out.waiting.pop() {
                let upto = self.plain.last();
                self.nodes[EAST].sync();
                let answers = self.nodes[EAST].node.take_answers();
                if self.is_dark(EAST) {
                    return;
                }
                let answer = answers.iter().find(|answer| answer.ticket == ticket);
                assert_eq!(answer.expect("a sync answers what waits for it").result, Ok(()));
                self.promised = self.promised.max(upto);
            } else if !is_dark {
                assert!(out.ready[0].result.is_ok(), "{:?}", out.ready[0].result);
            }
            return;
        }
        panic!("seed {}: production is stopped by a full log", self.seed);
    }

    /// What was asked for has become the records behind `before`, or the first of them; all of them if it `is_whole`.
    /// If the power failed nobody knows, and the next opening tells.
    pub(crate) fn note(&mut self, before: u64, changes: &[Change], is_whole: bool) {
        let mut logged = (self.tip() - before) as usize;
        let mut next = before + 1;
        if !self.begun && (logged > 0 || self.is_dark(EAST)) {
            self.begun = true;
            logged = logged.saturating_sub(1);
            next += 1;
        }
        if self.is_dark(EAST) {
            logged = changes.len();
        }
        assert!(!is_whole || logged == changes.len(), "{logged} records for {changes:?}");
        for change in &changes[..logged] {
            self.plain.push(next, change.clone());
            next += 1;
        }
    }

    pub(crate) fn resize(&mut self) {
        let volume = usize::from(self.one_in(2));
        let before = self.plain.now()[volume].len();
        let size = 512 * (1 + self.random.below(2 * VOLUME_BYTES / 512) as usize);
        if size == before {
            return;
        }
        let mut changes = vec![Change::Resize { volume, size }];
        if size < before {
            // What it is about to lose is zeros first, in a record of its own.
            changes.insert(0, Change::Zero { volume, offset: size, len: before - size });
        }
        // In an outage there may be no room for long.
        for _ in 0..20 {
            let (tip, now) = (self.tip(), self.nodes[EAST].now());
            let done = self.nodes[EAST].node.resize(now, VOLUMES[volume].1, size as u64);
            let is_dark = self.is_dark(EAST);
            self.note(tip, &changes, done.is_ok() && !is_dark);
            if is_dark {
                return;
            }
            if done.is_ok() {
                self.promised = self.tip();
                *(if size < before { &mut self.tally.shrunk } else { &mut self.tally.grown }) += 1;
                return;
            }
            self.make_room();
            if self.is_dark(EAST) {
                return;
            }
        }
    }

    pub(crate) fn mark(&mut self) {
        let name = format!("mark-{}", self.names.len());
        self.names.insert(name.clone());
        let kind = if self.one_in(3) { MarkKind::Application } else { MarkKind::Bookmark };
        let (before, now) = (self.tip(), self.nodes[EAST].now());
        let marked = self.nodes[EAST].node.mark(now, &name, kind);
        if self.is_dark(EAST) {
            return;
        }
        self.begun |= self.tip() > before;
        if marked.is_ok() {
            self.promised = self.tip();
            self.tally.marks += 1;
        }
    }

    // What happens in the background.

    /// Lets the primary do whatever there is to do, and the replica say what it has.
    pub(crate) fn make_room(&mut self) {
        self.pass_time(EAST, 600);
        self.nodes[EAST].sync();
        self.poll(EAST);
        self.end_all(EAST);
        self.ship();
        self.acknowledge();
    }

    pub(crate) fn poll(&mut self, side: usize) {
        for lane in [Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk] {
            let now = self.nodes[side].now();
            let job = self.nodes[side].node.poll_job(now, lane);
            self.out[side].extend(job.map(Out::Begun));
        }
    }

    pub(crate) fn end_all(&mut self, side: usize) {
        while let Some(out) = self.out[side].pop() {
            self.advance(side, out);
        }
    }

    /// Brings one of a node's jobs a step on: to its end, or from there to the node.
    pub(crate) fn advance_some(&mut self, side: usize) {
        self.poll(side);
        if !self.out[side].is_empty() {
            let index = self.random.below(self.out[side].len() as u64) as usize;
            let out = self.out[side].swap_remove(index);
            self.advance(side, out);
        }
    }

    pub(crate) fn advance(&mut self, side: usize, out: Out) {
        let done = match out {
            Out::Begun(job) => {
                let is_fold = matches!(job, Job::Fold(_));
                let done = if is_fold { self.run_fold(job) } else { job.run() };
                return self.out[side].push(Out::Ended(done));
            }
            Out::Ended(done) => done,
        };
        let (is_fold, is_thin) = (matches!(done, Done::Fold(_)), matches!(done, Done::Thin(_)));
        let now = self.nodes[side].now();
        self.nodes[side].node.finish(now, done);
        if !self.is_dark(side) && side == WEST && (is_fold || is_thin) {
            self.look_at_kept();
        }
        if !self.is_dark(side) && is_fold {
            self.tally.folds += 1;
            let horizon = self.nodes[side].node.state().horizon.0;
            assert!(horizon >= self.retired, "the horizon went back from {} to {horizon}", self.retired);
            self.retired = horizon;
        }
    }

    /// A fold, in the midst of which points are read; now and then the power fails in it.
    pub(crate) fn run_fold(&mut self, job: Job) -> Done {
        let mut sights: Vec<(Plan, Vec<u8>)> = Vec::new();
        let mut open = Vec::new();
        for _ in 0..2 {
            let Some(at) = self.random_point().filter(|&at| self.nodes[WEST].node.pin(Lsn(at)).is_ok())
            else {
                continue;
            };
            open.push(at);
            sights.extend(self.plans(at).into_iter().zip(self.plain.at(at)));
        }
        for held in &self.held {
            sights.extend(held.plans.iter().cloned().zip(self.plain.at(held.at)));
        }
        if self.one_in(16) && !self.is_dark(WEST) {
            let calls = self.random.below(40);
            self.disks[WEST].cut_after(calls);
        }
        let (seed, step, disk, mut calls) = (self.seed, self.step, self.disks[WEST].clone(), 0);
        let looks = Arc::new(AtomicU32::new(0));
        let count = looks.clone();
        if !sights.is_empty() {
            self.watched[WEST].watch(Some(Box::new(move || {
                calls += 1;
                if calls % 5 != 1 || disk.is_cut() {
                    return;
                }
                let (plan, expected) = &sights[calls / 5 % sights.len()];
                let seen = plan.read_all().expect("a point can be read in a fold");
                assert!(
                    seen == expected[..],
                    "seed {seed}, step {step}: a point moved in the midst of a fold"
                );
                count.fetch_add(1, Ordering::Relaxed);
            })));
        }
        let done = job.run();
        self.watched[WEST].watch(None);
        self.tally.looks_in_folds += looks.load(Ordering::Relaxed);
        self.tally.folds_cut += u32::from(self.disks[WEST].is_cut());
        open.into_iter().for_each(|at| self.nodes[WEST].node.unpin(Lsn(at)));
        done
    }

    // What happens between the two.

    pub(crate) fn connect(&mut self) {
        let hello = self.nodes[EAST].node.hello().expect("a primary has something to say");
        let now = self.nodes[WEST].now();
        let welcome = match self.nodes[WEST].node.accept(now, &hello, TakesBack::No) {
            Err(_) if self.is_dark(WEST) => return,
            welcome => welcome.expect("the replica follows"),
        };
        self.trim_stretches(welcome.durable.lsn.0);
        let needs = self.nodes[WEST].node.needs();
        let now = self.nodes[EAST].now();
        let jump = match self.nodes[EAST].node.attach(now, "west", &welcome, Some(&needs)) {
            Err(_) if self.is_dark(EAST) => return,
            Err(AttachError::NotYet) => return self.disconnect(0),
            Err(error) => panic!("seed {}: the replica cannot be caught up: {error}", self.seed),
            Ok(jump) => jump,
        };
        let mut next = welcome.durable.lsn.0 + 1;
        if let Some(jump) = jump {
            if self.one_in(4) {
                // The link breaks before it is told.
                return self.disconnect(3);
            }
            self.leave_out(jump.from.lsn.0, jump.to.lsn.0);
            let now = self.nodes[WEST].now();
            match self.nodes[WEST].node.jump(now, &jump) {
                Err(_) if self.is_dark(WEST) => return,
                jumped => jumped.expect("the replica jumps"),
            }
            self.tally.jumps += 1;
            next = jump.to.lsn.0 + 1;
        }
        self.link = Some(next);
    }

    pub(crate) fn disconnect(&mut self, steps: u64) {
        self.nodes[EAST].node.link_changed("west", false);
        self.link = None;
        self.down_until = self.step.saturating_add(steps);
    }

    /// One batch; it may be lost, and the link with it.
    pub(crate) fn ship(&mut self) {
        let Some(next) = self.link else { return };
        if self.is_dark(EAST) || self.is_dark(WEST) {
            return;
        }
        let batch = match self.nodes[EAST].node.records_from(Lsn(next), 24 << 10) {
            Records::UpToDate => return,
            Records::Ready(batch) => batch,
            Records::OnDisk(read) => read.run().expect("the log can be read"),
            Records::Gone => return self.disconnect(0),
        };
        self.promised = self.promised.max(batch.last.0);
        if self.one_in(100) {
            return self.disconnect(2);
        }
        self.link = Some(batch.last.0 + 1);
        self.follow(&batch);
        let now = self.nodes[WEST].now();
        match self.nodes[WEST].node.append(now, batch) {
            Err(_) if self.is_dark(WEST) => {}
            Err(Rebuff::NoSpace) => panic!("seed {}: the replica's log is large enough", self.seed),
            appended => appended.expect("the records follow"),
        }
    }

    pub(crate) fn acknowledge(&mut self) {
        if self.link.is_none() {
            return;
        }
        self.nodes[WEST].sync();
        if self.is_dark(WEST) {
            return;
        }
        let durable = self.nodes[WEST].node.acknowledgeable();
        self.acknowledged = self.acknowledged.max(durable.lsn.0);
        let now = self.nodes[EAST].now();
        self.nodes[EAST].node.acknowledged(now, "west", durable);
    }

    // Deaths.

    /// Ends a node, as a kill does or as a power cut does, and starts it again.
    pub(crate) fn crash(&mut self, side: usize) {
        let is_power = self.disks[side].is_cut() || self.one_in(2);
        let tip = self.tip();
        self.out[side].clear();
        if self.link.is_some() {
            let steps = self.random.below(20);
            self.disconnect(steps);
        }
        self.disks[side] = match is_power {
            false => self.disks[side].killed(),
            true => {
                let mut outcomes = self.disks[side].outcomes(4, &mut self.random);
                let chosen = self.random.below(outcomes.len() as u64) as usize;
                outcomes.swap_remove(chosen)
            }
        };
        self.watched[side] = Watched::new(self.disks[side].storage());
        let opened = Driven::open_reporting(self.watched[side].storage(), config(side, self.seed));
        let (opened, report) =
            opened.unwrap_or_else(|error| panic!("seed {}: a crash is got over: {error}", self.seed));
        let now = self.nodes[side].now;
        self.nodes[side] = opened;
        self.nodes[side].now = now;
        if side == WEST {
            self.tally.replica_kills += 1;
            return self.replica_is_back();
        }
        self.tally.primary_kills += 1;
        let last = self.nodes[EAST].node.state().start.lsn.0 + report.records;
        let kept = if is_power { self.promised } else { tip };
        assert!(last >= kept, "seed {}: LSN {last} is the last, though {kept} was promised", self.seed);
        self.plain.cut(last);
        self.begun = self.tip() > last;
        self.check_primary();
    }

    pub(crate) fn replica_is_back(&mut self) {
        self.look_at_kept();
        let durable = self.nodes[WEST].node.durable().lsn.0;
        assert!(durable >= self.acknowledged, "LSN {durable} though {} was told", self.acknowledged);
        self.trim_stretches(durable);
        for index in 0..self.held.len() {
            let at = self.held[index].at;
            let opened = self.nodes[WEST].node.pin(Lsn(at));
            opened
                .unwrap_or_else(|error| panic!("seed {}: a point that was open is gone: {error}", self.seed));
            self.held[index].plans = self.plans(at);
            self.tally.held_over_kills += 1;
            self.check(at, &self.plans(at));
        }
        if let Some(window) = self.nodes[WEST].node.window() {
            for at in window.horizon.0..=window.latest.0.min(window.horizon.0 + 3) {
                self.visit(at);
            }
        }
    }
}
