//! Small logs, explored to the end: every crash point of a short script, and at each of them every legal subset of
//! what was not synced. (W13, W14, W22, W27; guarantees 1, 3, 8 and 11.)

use engine::guest::{Op, Request};
use engine::node::Node;
use engine::node::config::{AckPolicy, Begins, Config, NewVolume, OnFull, Retention, Start};
use engine::node::primary::Submitted;
use engine::node::work::Lane;
use engine::types::{Extent, GroupId, Mono, NodeId, Now, VolumeId};
use sim::clock::EPOCH;
use sim::disk::{Dice, Disk, Fate, Odometer, Side};
use sim::options::small_limits;
use sim::reference::{Death, Effect, Operation, Reference};
use sim::rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

const VOLUME_BYTES: u64 = 16 << 10;
/// With more open questions than this, fates are drawn instead.
const MAX_QUESTIONS: u64 = 9;
/// How many.
const DRAWN: u64 = 48;

/// A step of a script.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Writes a sector.
    Write(u64),
    /// Asks for a flush, and syncs.
    Flush,
    /// Does what there is to do in the background.
    Work,
}

fn config() -> Config {
    let limits = small_limits(16 << 10, 8);
    Config {
        name: "orders".to_owned(),
        node: NodeId([1; 16]),
        dir: "orders".to_owned(),
        start: Start::Primary {
            group: GroupId([7; 16]),
            volumes: vec![NewVolume { name: "v".to_owned(), size: VOLUME_BYTES, begins: Begins::Empty }],
        },
        backings: BTreeMap::new(),
        replicas: Vec::new(),
        ack: AckPolicy::Local,
        on_full: OnFull::Stall,
        retention: Retention::default(),
        limits: engine::node::config::Limits { spare_segments: 0, ..limits },
        verify: engine::node::config::Verification::default(),
    }
}

fn open(disk: &Disk) -> Result<Node, String> {
    let now = Now { mono: Mono(0), wall: EPOCH };
    Node::open(now, Arc::new(disk.start()), config()).map(|(node, _)| node).map_err(|error| error.to_string())
}

struct Trial {
    disk: Disk,
    reference: Reference,
}

impl Trial {
    /// Runs the script until it ends or the power goes. What the node says after that never happened.
    fn run(&mut self, script: &[Step]) {
        let Ok(mut node) = open(&self.disk) else { return };
        let mut now = Now { mono: Mono(0), wall: EPOCH };
        for (index, step) in script.iter().enumerate() {
            now.mono = now.mono.plus_ms(1_000);
            let mut out = Submitted::default();
            match step {
                Step::Write(sector) => {
                    let data = bytes::Bytes::from(vec![index as u8 + 1; 512]);
                    let operation =
                        Operation { volume: 0, offset: sector * 512, effect: Effect::Write(data.clone()) };
                    let id = self.reference.submit(operation, false);
                    let op = Op::Write { offset: sector * 512, data };
                    let mut batch = vec![Request { cookie: 1, op, fua: false }];
                    node.submit(now, VolumeId(1), &mut batch, &mut out);
                    if self.disk.is_on() && out.ready.iter().any(|completion| completion.result.is_ok()) {
                        self.reference.answer(id);
                    }
                }
                Step::Flush => {
                    let flush = self.reference.submit_flush();
                    let mut batch = vec![Request { cookie: 1, op: Op::Flush, fua: false }];
                    node.submit(now, VolumeId(1), &mut batch, &mut out);
                    if let Some(job) = node.poll_job(now, Lane::Sync) {
                        let done = job.run();
                        node.finish(now, done);
                    }
                    let answered = node.take_answers().iter().any(|answer| answer.result.is_ok());
                    if self.disk.is_on() && answered {
                        self.reference.answer_flush(flush);
                    }
                }
                Step::Work => {
                    while let Some(job) = node.poll_job(now, Lane::Bulk) {
                        let done = job.run();
                        node.finish(now, done);
                    }
                }
            }
            if !self.disk.is_on() {
                return;
            }
        }
    }

    /// What is found after one fate.
    fn check(&self, fate: &mut dyn Fate) -> Result<(), String> {
        let disk = self.disk.fork();
        disk.power_on(fate);
        let mut node = open(&disk)?;
        let mut out = Submitted::default();
        let op = Op::Read(Extent::new(0, VOLUME_BYTES));
        let mut batch = vec![Request { cookie: 1, op, fua: false }];
        node.submit(Now { mono: Mono(0), wall: EPOCH }, VolumeId(1), &mut batch, &mut out);
        let (_, _, plan) = out.reads.pop().ok_or("the volume is not served")?;
        let image = vec![plan.read_all().map_err(|error| error.to_string())?.to_vec()];
        self.reference.check_survivor(&image, Death::Power).map(drop).map_err(|wrong| wrong.to_string())
    }
}

/// Explores a script; how many ends it has.
fn explore(script: &[Step]) -> u64 {
    let mut ends = 0;
    for cut in 1_u64.. {
        let mut trial = Trial { disk: Disk::new(Rng::new(1)), reference: Reference::empty(&[VOLUME_BYTES]) };
        let side = if cut % 2 == 0 { Side::After } else { Side::Before };
        trial.disk.cut_power_at(cut.div_ceil(2), side);
        trial.run(script);
        let reached = !trial.disk.is_on();
        trial.disk.heal();
        if trial.disk.unsynced() <= MAX_QUESTIONS {
            let mut odometer = Odometer::default();
            loop {
                ends += 1;
                let checked = trial.check(&mut odometer);
                checked.unwrap_or_else(|wrong| panic!("cut {cut}, fate {:?}: {wrong}", odometer.answers()));
                if !odometer.advance() {
                    break;
                }
            }
        } else {
            for seed in 0..DRAWN {
                ends += 1;
                let mut rng = Rng::new(seed);
                let checked = trial.check(&mut Dice::new(&mut rng));
                checked.unwrap_or_else(|wrong| panic!("cut {cut}, drawn fate {seed}: {wrong}"));
            }
        }
        if !reached {
            break;
        }
    }
    ends
}

#[test]
fn w27_every_crash_point_of_the_making_of_a_group() {
    let ends = explore(&[]);
    assert!(ends > 500, "only {ends} ends");
}

#[test]
fn w13_w14_every_crash_point_of_writes_and_flushes() {
    let script = [Step::Write(0), Step::Write(1), Step::Flush, Step::Write(0), Step::Write(2)];
    let ends = explore(&script);
    assert!(ends > 1_000, "only {ends} ends");
}

#[test]
fn w27_every_crash_point_of_apply_and_checkpoint() {
    let script = [
        Step::Write(0),
        Step::Flush,
        Step::Work,
        Step::Work,
        Step::Write(0),
        Step::Write(3),
        Step::Flush,
        Step::Work,
    ];
    let ends = explore(&script);
    assert!(ends > 1_000, "only {ends} ends");
}
