//! Regions with nodes, each of them the real engine and the real sessions on a simulated disk, clock and network;
//! guests that write; an operator; and whatever goes wrong.
//!
//! - What happens next is decided by the queue of events and the network alone: equal options, equal runs.
//! - Nothing that a node says is believed after its machine has lost power in mid-call: every call is followed by
//!   [`World::check_power`], before anything of its outcome leaves the machine.
//! - A run has two phases. In the first the planned events happen. Then every fault is taken away, and everything
//!   has to converge within bounded virtual time.
//!
//! | module | what it is |
//! |---|---|
//! | `machine` | a disk, a clock, a life of the program |
//! | `jobs` | starting, running and ending programs and their background jobs |
//! | `link` | sessions over the network |
//! | `guest` | requests and their answers |
//! | `fault` | what goes wrong |
//! | `operator` | promotions and points |
//! | `check` | what should be true |

mod check;
mod drill;
mod fault;
mod guest;
mod jobs;
mod link;
mod machine;
mod mistakes;
mod operator;
mod reconsider;
mod resize;
mod seed;

use crate::clock::{NodeClock, Queue, Span, Time};
use crate::disk::Disk;
use crate::ledger::{Key, Timeline};
use crate::net::{ConnId, Either, Host, Reach};
use crate::options::{Event, Options};
use crate::reference::{Death, Image};
use crate::rng::Rng;
use crate::run::{Figures, Sample, Violation};
use crate::trace::{Event as Traced, Place, Trace, Value};
use engine::guest::Refusal;
use engine::node::config::Begins;
use engine::node::work::Lane;
use engine::types::{Epoch, GroupId, Lsn, Mono, NodeId, Position};
use guest::Guest;
use machine::Machine;
use std::collections::BTreeMap;

pub(super) type Result<T = ()> = std::result::Result<T, Violation>;

/// The group's name.
const GROUP: &str = "orders";
/// The group's folder on every node.
const DIR: &str = "orders";

/// What happens at a moment.
enum Ev {
    Guest(Key),
    Answer { machine: usize, life: u64, key: Key, cookie: u64, answer: std::result::Result<(), Refusal> },
    Read { machine: usize, life: u64, key: Key, cookie: u64, plan: Box<engine::read::Plan> },
    JobDone { machine: usize, life: u64, lane: Lane },
    Fetched { machine: usize, life: u64, target: usize, conn: ConnId, read: Box<engine::log::ship::Read> },
    Wake { machine: usize, life: u64 },
    PowerOn { machine: usize },
    Start { machine: usize },
    Planned(usize),
    Heal(fault::Heal),
    Drill { machine: usize, life: u64 },
    Unpin { machine: usize, life: u64, at: engine::types::Lsn },
    Retry { machine: usize, life: u64 },
    Probe,
    Sample,
}

/// Everything.
pub(crate) struct World {
    options: Options,
    root: Rng,
    rng: Rng,
    /// How much a check looks at: its draws move nothing else.
    looks: Rng,
    time: Time,
    queue: Queue<Ev>,
    net: Either,
    machines: Vec<Machine>,
    timelines: BTreeMap<Key, Timeline>,
    guests: BTreeMap<Key, Guest>,
    trace: Trace,
    counters: BTreeMap<String, u64>,
    /// No new requests.
    quiet: bool,
    /// Every fault is gone.
    healed: bool,
    /// A writer whose disk broke its promises has started again, and may have written another history over what it lost.
    rewritten: bool,
    /// The marks that somebody wanted, by name, and where they are, if anybody was told.
    marks: BTreeMap<String, Option<Lsn>>,
    link_bytes: u64,
    figures: Figures,
    samples: Vec<Sample>,
    group: GroupId,
    steps: u64,
    outage: Option<Time>,
    failover: Option<(Time, usize)>,
}

/// Not a violation: the run was asked to end here.
pub(crate) const STOPPED: &str = "stopped";
/// The most events of one run: beyond, something turns in circles.
const MAX_STEPS: u64 = 3_000_000;

impl World {
    pub(crate) fn new(options: Options) -> World {
        let root = Rng::new(options.seed);
        let mut net = Either::new(root.child("network"), &options);
        let machines = options
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let mut rng = root.child(&format!("machine {index}"));
                let disk = Disk::new(root.child(&format!("disk {index}")));
                disk.set_latency(node.latency);
                net.set_reach(Host(index as u32), Reach::Refusing);
                Machine {
                    id: NodeId([index as u8 + 1; 16]),
                    name: node.name.clone(),
                    disk,
                    clock: NodeClock::new(Mono(rng.below(1 << 40))),
                    rng,
                    life: 0,
                    live: None,
                    starting: false,
                    off: None,
                    death: Death::Process,
                    promised: Position::default(),
                    seen_epoch: Epoch(0),
                    reign: None,
                    role: None,
                    looked: [None; 3],
                    rules: false,
                    damaged: false,
                    odd_base: false,
                    takes_back: false,
                    base_rots: 0,
                    log_damaged: false,
                    errs_at_start: false,
                    wiped: false,
                }
            })
            .collect();
        let mut queue = Queue::default();
        for (index, planned) in options.events.iter().enumerate() {
            queue.push(planned.at, Ev::Planned(index));
        }
        let trace = Trace::new(options.keep);
        World {
            rng: root.child("world"),
            looks: root.child("looks"),
            root,
            time: Time(0),
            queue,
            net,
            machines,
            timelines: BTreeMap::new(),
            guests: BTreeMap::new(),
            trace,
            counters: BTreeMap::new(),
            quiet: false,
            healed: false,
            rewritten: false,
            marks: BTreeMap::new(),
            link_bytes: 0,
            figures: Figures::default(),
            samples: Vec::new(),
            group: GroupId([7; 16]),
            steps: 0,
            outage: None,
            failover: None,
            options,
        }
    }

    /// The whole run.
    pub(crate) fn run(&mut self) -> Result {
        if let Some(recording) = &self.options.workload.recording {
            let fields = [("hash", recording.hash), ("records", recording.records.len() as u64)];
            self.trace.record(self.time, Place::World, "recorded workload", &fields);
        }
        if self.options.begins == Begins::InPlace {
            for (index, volume) in self.first_image().iter().enumerate() {
                self.machines[0].disk.plant_file(&format!("{DIR}/volumes/v{index}.img"), volume);
            }
        }
        for machine in 0..self.machines.len() {
            self.start(machine)?;
        }
        self.queue.push(Time(self.options.probe_every.0), Ev::Probe);
        self.queue.push(Time(0), Ev::Sample);
        let end = Time(self.options.faulty.0);
        self.run_until(end, |_| false)?;
        self.heal()?;
        self.run_until(end + Span::from_ms(500), |_| false)?;
        self.quiet = true;
        let deadline = end + self.options.healing;
        let converged = self.run_until(deadline, |world| world.steps % 16 == 0 && world.has_converged())?;
        if !converged && !self.has_converged() {
            return Err(self.not_converged());
        }
        let now = self.now();
        self.figures.converged_after = now.since(end);
        self.final_checks()
    }

    /// Lets things happen until a moment, or until `done` says so.
    fn run_until(&mut self, end: Time, done: impl Fn(&World) -> bool) -> Result<bool> {
        loop {
            if done(self) {
                return Ok(true);
            }
            if self.options.stop_after.is_some_and(|stop| self.trace.count() >= stop) {
                return Err(self.violation(STOPPED, None, String::new()));
            }
            let queued = self.queue.next_at();
            let arriving = self.net.next_at();
            let Some(at) = queued.into_iter().chain(arriving).min().filter(|at| *at <= end) else {
                return Ok(false);
            };
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.violation("convergence", None, format!("{MAX_STEPS} events and no end")));
            }
            if arriving.is_some_and(|arriving| queued.is_none_or(|queued| arriving <= queued)) {
                self.time = at;
                if let Some(event) = self.net.poll(at) {
                    self.arrive(event)?;
                }
                continue;
            }
            let Some((at, event)) = self.queue.pop() else { return Ok(false) };
            self.time = at;
            self.happen(event)?;
        }
    }

    fn happen(&mut self, event: Ev) -> Result {
        match event {
            Ev::Guest(key) => self.guest_turn(key),
            Ev::Answer { machine, life, key, cookie, answer } => {
                self.answer(machine, life, key, cookie, answer)
            }
            Ev::Read { machine, life, key, cookie, plan } => self.read(machine, life, key, cookie, &plan),
            Ev::JobDone { machine, life, lane } => self.job_done(machine, life, lane),
            Ev::Fetched { machine, life, target, conn, read } => {
                self.fetched(machine, life, target, conn, *read)
            }
            Ev::Wake { machine, life } => self.wake(machine, life),
            Ev::PowerOn { machine } => self.power_on(machine),
            Ev::Start { machine } => {
                self.machines[machine].starting = false;
                self.start(machine)
            }
            Ev::Planned(index) => {
                let event = self.options.events[index].event.clone();
                self.strike(&event)
            }
            Ev::Heal(heal) => self.heal_one(&heal),
            Ev::Drill { machine, life } => self.drill_on(machine, life),
            Ev::Unpin { machine, life, at } => self.unpin(machine, life, at),
            Ev::Retry { machine, life } => {
                if self.machines[machine].life == life {
                    self.guest_retries(machine)?;
                    self.pump(machine)?;
                }
                Ok(())
            }
            Ev::Probe => {
                let next = self.now()
                    + Span(self.options.probe_every.0 / 2)
                    + Span(self.rng.below(self.options.probe_every.0 + 1));
                self.queue.push(next, Ev::Probe);
                let machine = self.rng.below(self.machines.len() as u64) as usize;
                let look = self.draw_look();
                self.probe(machine, look)
            }
            Ev::Sample => {
                self.sample();
                let next = self.now() + Span((self.options.faulty.0 / 200).max(10_000_000));
                self.queue.push(next, Ev::Sample);
                Ok(())
            }
        }
    }

    /// What the volumes hold when the group begins: nothing, or in every other stretch something.
    fn first_image(&self) -> Image {
        let sizes = self.options.workload.volumes.iter();
        let mut rng = self.root.child("first image");
        let mut image: Image = sizes
            .map(|&size| {
                let mut volume = vec![0; size as usize];
                for stretch in volume.chunks_mut(3 * 4096) {
                    let filled = rng.below(stretch.len() as u64 + 1) as usize;
                    if self.options.begins == Begins::InPlace && rng.chance(500_000) {
                        stretch[..filled].fill(1 + rng.below(255) as u8);
                    }
                }
                volume
            })
            .collect();
        for (volume, len) in image.iter_mut().zip(self.lengths()) {
            volume.resize(len as usize, 0);
        }
        image
    }

    /// How long each volume may get in this run, in bytes: what is compared is as long.
    fn lengths(&self) -> Vec<u64> {
        let grows = self.options.events.iter().any(|planned| matches!(planned.event, Event::Resize { .. }));
        self.options.workload.volumes.iter().map(|size| if grows { 2 * size } else { *size }).collect()
    }

    // -- small things that all parts use

    fn now(&self) -> Time {
        self.time
    }

    fn count(&mut self, name: &str, by: u64) {
        match self.counters.get_mut(name) {
            Some(count) => *count += by,
            None => drop(self.counters.insert(name.to_owned(), by)),
        }
    }

    fn trace(&mut self, machine: usize, kind: &'static str, fields: &[(&'static str, u64)]) {
        self.trace.record(self.time, Place::Node(machine as u32), kind, fields);
    }

    /// An event with words.
    fn say(&mut self, machine: usize, kind: &'static str, fields: &[(&'static str, Value)]) {
        let place = Place::Node(machine as u32);
        self.trace.record_event(Traced { at: self.time, place, kind, fields: fields.to_vec() });
    }

    fn violation(&self, invariant: &'static str, node: Option<usize>, detail: String) -> Violation {
        let node = node.map(|node| self.machines[node].name.clone());
        Violation { invariant, node, detail, at: self.time }
    }

    fn broken(&self, invariant: &'static str, machine: usize, detail: String) -> Violation {
        self.violation(invariant, Some(machine), detail)
    }

    fn any_damaged(&self) -> bool {
        self.machines.iter().any(|machine| machine.damaged || machine.wiped)
    }

    /// Notes the checksum of a log at an LSN; two logs of one history that differ there are a broken prefix.
    fn note_position(&mut self, machine: usize, key: Key, position: Position) -> Result {
        let Some(timeline) = self.timelines.get_mut(&key) else { return Ok(()) };
        match timeline.note(position) {
            Ok(()) => Ok(()),
            Err(_) if self.any_damaged() => Ok(()),
            Err(known) => {
                let detail = format!("at LSN {} the log has {position:?}, elsewhere {known:?}", position.lsn);
                Err(self.broken("invariant_prefix", machine, detail))
            }
        }
    }

    /// What each node says of itself.
    fn states(&self) -> Vec<String> {
        let of = |m: &Machine| match &m.live {
            Some(live) => format!("{}: {:#?}", m.name, live.node.report(m.clock.now(self.time))),
            None if m.disk.is_on() => format!("{}: its program does not run", m.name),
            None => format!("{}: no power", m.name),
        };
        self.machines.iter().map(of).collect()
    }

    /// The outcome's parts.
    pub(crate) fn into_parts(mut self) -> Parts {
        for machine in &self.machines {
            for (name, count) in machine.disk.injected() {
                *self.counters.entry(format!("disk: {name}")).or_default() += count;
            }
        }
        for (name, count) in self.net.injected() {
            *self.counters.entry(format!("network: {name}")).or_default() += count;
        }
        self.figures.link_bytes = self.link_bytes;
        Parts {
            states: self.states(),
            hash: self.trace.hash(),
            events: self.trace.count(),
            steps: self.steps,
            time: self.time,
            counters: self.counters,
            figures: self.figures,
            samples: self.samples,
            trace: self.trace,
        }
    }
}

/// What is left of a world.
pub(crate) struct Parts {
    pub(crate) states: Vec<String>,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) steps: u64,
    pub(crate) time: Time,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) figures: Figures,
    pub(crate) samples: Vec<Sample>,
    pub(crate) trace: Trace,
}
