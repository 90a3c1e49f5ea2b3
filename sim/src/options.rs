//! Everything that a run depends on, as data: equal options give equal runs.
//!
//! [`Options::swarm`] draws them from a seed, with many kinds of faults off in any one run; a scenario file writes
//! them down; shrinking takes pieces away.

use crate::clock::{Span, Time};
use crate::disk::{Call, Errno, Latency, Side};
use crate::net::Link;
use crate::rng::{PPM, Rng};
use crate::trace::Keep;
use crate::workload::{Alignment, Profile};
use engine::event::OnMismatch;
use engine::log;
use engine::node::config::{AckPolicy, Begins, Limits, OnFull, Retention, Verification};
use engine::node::keep::Keep as Kept;
use std::fmt;
use transport::link::session;

/// A run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of everything random that is not written down here.
    pub seed: u64,
    /// Nodes, each in a region of its own; the first is the first primary.
    pub nodes: Vec<NodeOptions>,
    /// What guests do; the group's volumes are in it.
    pub workload: Profile,
    /// What the volumes hold when the group begins.
    pub begins: Begins,
    /// The most requests of the guests of one primary.
    pub max_requests: u64,
    /// The most requests that a guest hands over at once.
    pub max_batch: usize,
    /// Of the engine.
    pub limits: Limits,
    /// Of the engine.
    pub retention: Retention,
    /// Of the engine.
    pub ack: AckPolicy,
    /// Of the engine.
    pub on_full: OnFull,
    /// Of the engine.
    pub verify: Verification,
    /// Of the sessions.
    pub session: session::Config,
    /// Whether copies of the volumes are shipped to replicas now and then.
    pub seeds: bool,
    /// The longest pause before a link is dialled again.
    pub max_retry: Span,
    /// Between all regions.
    pub link: Link,
    /// What the sessions run over.
    pub stack: Stack,
    /// How long the phase with faults lasts.
    pub faulty: Span,
    /// How long the quiet phase may last until everything has converged.
    pub healing: Span,
    /// What happens, in order of time.
    pub events: Vec<Planned>,
    /// The mean time between two looks at a random node.
    pub probe_every: Span,
    /// What is kept of the trace.
    pub keep: Keep,
    /// Stops behind so many events of the trace.
    pub stop_after: Option<u64>,
}

/// What carries the frames of the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stack {
    /// Connections that carry messages: quick, and they break in every way that a session can tell.
    #[default]
    Messages,
    /// The real QUIC and TLS, over datagrams.
    #[cfg(feature = "full-stack")]
    Full,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Its name.
    pub name: String,
    /// Its region, for the report.
    pub region: String,
    /// Its disk.
    pub latency: Latency,
}

/// Something that happens at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When.
    pub at: Time,
    /// What.
    pub event: Event,
}

/// The byte that an attacker writes.
pub const SCRAMBLE: u8 = 0xEE;

/// Which point an operator chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// At this share of the window, in parts per million: the newest is a million.
    Share(u32),
    /// The newest that was written this long ago, by the clocks that the records carry.
    Ago(Span),
}

/// What a region, a link, a disk or an operator does to a group. Nodes are numbers from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the nodes, the spans and the shares that the words name")]
pub enum Event {
    /// The power fails, and comes back after `off`.
    PowerCut { node: usize, off: Span },
    /// The power fails at the n-th call from now that changes something.
    PowerCutAt { node: usize, n: u64, side: Side, off: Span },
    /// The process is killed and started again.
    Kill { node: usize, down: Span },
    /// The process is stopped in an orderly way and started again.
    Restart { node: usize, down: Span },
    /// One direction between two nodes fails.
    Cut { from: usize, to: usize, span: Span },
    /// A node reaches no other.
    Isolate { node: usize, span: Span },
    /// Every connection breaks.
    Reset,
    /// One end of each connection gives up, the other gets old frames for so long.
    Abandon { late: Span },
    /// Connections stand still.
    Stall { span: Span },
    /// Links lose this share of frames.
    Loss { ppm: u32, span: Span },
    /// The n-th call of a kind fails on files whose path, within the group's folder, begins so.
    DiskError { node: usize, call: Call, path: String, n: u64, errno: Errno },
    /// The disk is full but for so many bytes.
    DiskFull { node: usize, room: u64, span: Span },
    /// Each call takes so much longer, and one in a hundred a hundred times that.
    SlowDisk { node: usize, extra: Span, span: Span },
    /// A bit flips in a synced sector of a log file.
    Rot { node: usize },
    /// A bit flips in a synced sector of a base image.
    RotBase { node: usize },
    /// The operator begins a round of verification.
    Verify { on_mismatch: OnMismatch },
    /// A write to the log is lost or goes elsewhere, with a report of success.
    LyingDisk { node: usize, n: u64, by: i64 },
    /// The wall clock jumps.
    ClockJump { node: usize, ns: i64 },
    /// The wall clock drifts.
    ClockDrift { node: usize, ppm: i32 },
    /// An operator promotes a node.
    Promote { node: usize, at: Point },
    /// An operator moves a promotion that is not committed, to a share of the window or of a branch.
    Reconsider { node: usize, at_ppm: u32, aside: Aside },
    /// An operator commits a promotion, and has old primaries taken back.
    Reprotect { node: usize },
    /// An operator has a replica ask its primary for the group: a planned failover.
    Handover { node: usize },
    /// A node's disk is lost and replaced by an empty one.
    Wipe { node: usize },
    /// A point is opened, and closed after a while.
    Pin { node: usize, at_ppm: u32, span: Span },
    /// A copy of a point is written to, so many times, and given up after a while.
    Drill { node: usize, at_ppm: u32, span: Span, writes: u32 },
    /// People err at a node, and at the next start of its program: nothing may come of it.
    Mistakes { node: usize },
    /// An attacker writes [`SCRAMBLE`] over all volumes of whoever serves.
    Scramble,
    /// The operator marks a point on whoever serves.
    Mark { application: bool },
    /// The operator gives a volume another size, this share of twice its first one, on whoever serves.
    Resize { volume: usize, ppm: u32 },
    /// Somebody looks at one of a node's branches, at this share of it.
    LookAside { node: usize, at_ppm: u32 },
}

/// Where a promotion is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// A point of the line.
    Line,
    /// A point of a branch, if there is one.
    Branch,
}

impl Event {
    /// Its name, for counters and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Event::PowerCut { .. } => "power cut",
            Event::PowerCutAt { .. } => "power cut at a call",
            Event::Kill { .. } => "kill",
            Event::Restart { .. } => "restart",
            Event::Cut { .. } => "one-way cut",
            Event::Isolate { .. } => "isolation",
            Event::Reset => "reset of connections",
            Event::Abandon { .. } => "abandoned connections",
            Event::Stall { .. } => "stalled connections",
            Event::Loss { .. } => "lossy links",
            Event::DiskError { .. } => "disk error",
            Event::DiskFull { .. } => "full disk",
            Event::SlowDisk { .. } => "slow disk",
            Event::Rot { .. } => "rot",
            Event::RotBase { .. } => "rot of a base image",
            Event::Verify { .. } => "verification",
            Event::LyingDisk { .. } => "lying disk",
            Event::ClockJump { .. } => "clock jump",
            Event::ClockDrift { .. } => "clock drift",
            Event::Promote { .. } => "promotion",
            Event::Reconsider { .. } => "change of mind",
            Event::Reprotect { .. } => "reprotect",
            Event::Handover { .. } => "planned failover",
            Event::Wipe { .. } => "lost disk",
            Event::Pin { .. } => "pinned point",
            Event::Drill { .. } => "drill",
            Event::Mistakes { .. } => "mistakes",
            Event::Scramble => "scramble",
            Event::Mark { .. } => "mark",
            Event::Resize { .. } => "resize",
            Event::LookAside { .. } => "look at a branch",
        }
    }

    /// All names, so that a soak can say what it never did.
    pub const NAMES: [&'static str; 29] = [
        "mark",
        "resize",
        "look at a branch",
        "power cut",
        "power cut at a call",
        "kill",
        "restart",
        "one-way cut",
        "isolation",
        "reset of connections",
        "abandoned connections",
        "stalled connections",
        "lossy links",
        "disk error",
        "full disk",
        "slow disk",
        "rot",
        "rot of a base image",
        "verification",
        "lying disk",
        "clock jump",
        "clock drift",
        "promotion",
        "reprotect",
        "planned failover",
        "lost disk",
        "pinned point",
        "drill",
        "mistakes",
    ];
}

/// Counters of transitions and crash points that a soak has to reach, or say that it did not.
pub const RARE: [&str; 15] = [
    "role: replica to primary",
    "role: primary to fenced",
    "role: fenced to replica",
    "role: fenced to primary",
    "handed over",
    "torn tails",
    "disks filled",
    "disk: failed sync",
    "disk: misdirected write",
    "disk: power cut before a write",
    "disk: power cut after a write",
    "disk: power cut before a sync",
    "disk: power cut after a sync",
    "disk: power cut before a sync of a folder",
    "disk: power cut after a sync of a folder",
];

/// The details behind the name, for a person; nothing where the name says it all.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |span: Span| span.0 as f64 / 1e9;
        let percent = |ppm: u32| f64::from(ppm) / 1e4;
        match self {
            Event::PowerCut { off, .. } => write!(f, "for {:.3} s", seconds(*off)),
            Event::PowerCutAt { n, side, off, .. } => {
                let side = if *side == Side::Before { "before" } else { "after" };
                write!(f, "{side} call {n} from here, for {:.3} s", seconds(*off))
            }
            Event::Kill { down, .. } | Event::Restart { down, .. } => {
                write!(f, "down for {:.3} s", seconds(*down))
            }
            Event::Cut { from, to, span } => {
                write!(f, "from node {from} to node {to}, for {:.3} s", seconds(*span))
            }
            Event::Isolate { span, .. } | Event::Stall { span } => write!(f, "for {:.3} s", seconds(*span)),
            Event::Verify { on_mismatch } => write!(f, "to {on_mismatch:?}"),
            Event::Reset
            | Event::Rot { .. }
            | Event::RotBase { .. }
            | Event::Reprotect { .. }
            | Event::Handover { .. }
            | Event::Wipe { .. }
            | Event::Mistakes { .. }
            | Event::Scramble => Ok(()),
            Event::Abandon { late } => write!(f, "old frames arrive for {:.3} s", seconds(*late)),
            Event::Loss { ppm, span } => {
                write!(f, "{:.2} % of frames, for {:.3} s", percent(*ppm), seconds(*span))
            }
            Event::DiskError { call, path, n, errno, .. } => {
                write!(f, "{errno:?} at {call:?} {n} from here of {path}*")
            }
            Event::DiskFull { room, span, .. } => {
                write!(f, "but for {room} bytes, for {:.3} s", seconds(*span))
            }
            Event::SlowDisk { extra, span, .. } => {
                write!(f, "{:.3} s more for each call, for {:.3} s", seconds(*extra), seconds(*span))
            }
            Event::LyingDisk { n, by: 0, .. } => write!(f, "write {n} from here to the log is lost"),
            Event::LyingDisk { n, by, .. } => write!(f, "write {n} from here to the log goes {by} bytes off"),
            Event::ClockJump { ns, .. } => write!(f, "by {:+.3} s", *ns as f64 / 1e9),
            Event::ClockDrift { ppm, .. } => write!(f, "{ppm:+} parts per million"),
            Event::Promote { at: Point::Share(1_000_000), .. } => write!(f, "at the newest point"),
            Event::Promote { at: Point::Share(ppm), .. } => {
                write!(f, "at {:.2} % of the window", percent(*ppm))
            }
            Event::Reconsider { at_ppm, aside, .. } => {
                let of = if *aside == Aside::Line { "the window" } else { "a branch" };
                write!(f, "to {:.2} % of {of}", percent(*at_ppm))
            }
            Event::Promote { at: Point::Ago(span), .. } => {
                write!(f, "at the newest point older than {:.3} s", seconds(*span))
            }
            Event::Drill { at_ppm, span, writes, .. } => write!(
                f,
                "at {:.2} % of the window, for {:.3} s, with {writes} writes",
                percent(*at_ppm),
                seconds(*span)
            ),
            Event::Mark { application: true } => write!(f, "that the applications are still for"),
            Event::Mark { application: false } => write!(f, "whatever the applications do"),
            Event::Resize { volume, ppm } => {
                write!(f, "of volume {volume}, to {:.2} % of twice its first size", percent(*ppm))
            }
            Event::LookAside { at_ppm, .. } => write!(f, "at {:.2} % of it", percent(*at_ppm)),
            Event::Pin { at_ppm, span, .. } => {
                write!(f, "at {:.2} % of the window, for {:.3} s", percent(*at_ppm), seconds(*span))
            }
        }
    }
}

/// Engine limits so small that files rotate, fold and fill within a few hundred writes.
#[must_use]
pub fn small_limits(segment_bytes: u64, segments: u64) -> Limits {
    Limits {
        log: log::Limits { segment_bytes, log_bytes: segment_bytes * segments, recent_bytes: 64 << 10 },
        overlay_bytes: 256 << 10,
        apply_bytes: 32 << 10,
        apply_ms: 50,
        checkpoint_ms: 200,
        ship_delay_ms: 10,
        ship_delay_bytes: 32 << 10,
        catch_up_bytes: 64 << 10,
        spare_segments: 1,
        marks_ms: None,
    }
}

/// Session limits that fit.
#[must_use]
pub fn small_sessions() -> session::Config {
    session::Config {
        window_bytes: 128 << 10,
        batch_bytes: 16 << 10,
        max_batches: 64,
        unsettled_bytes: 64 << 10,
        heartbeat_ms: 200,
        silence_ms: 1_000,
        opening_ms: 1_000,
    }
}

impl Options {
    /// Options drawn from a seed.
    #[must_use]
    pub fn swarm(seed: u64) -> Options {
        let root = Rng::new(seed);
        let mut rng = root.child("options");
        let rng = &mut rng;
        let nodes = 2 + rng.weighted(&[5, 4, 1]);
        let segment_bytes = *rng.pick(&[32 << 10, 64 << 10, 128 << 10]);
        let mut workload = Profile::swarm(&mut root.child("profile"));
        for size in &mut workload.volumes {
            *size = (*size).min(256 << 10);
        }
        let volumes = workload.volumes.len();
        workload.max_len = workload.max_len.min(segment_bytes / 4);
        if workload.alignment == Alignment::Pages {
            workload.max_len = workload.max_len.max(4_096);
        }
        workload.gap = Span::from_us(*rng.pick(&[500, 2_000, 5_000, 20_000]));
        let mut limits = small_limits(segment_bytes, *rng.pick(&[8, 12, 24, 64]));
        limits.apply_bytes = *rng.pick(&[4 << 10, 32 << 10, 128 << 10]);
        limits.apply_ms = *rng.pick(&[5, 50, 500]);
        limits.checkpoint_ms = *rng.pick(&[20, 200, 1_000]);
        limits.ship_delay_ms = *rng.pick(&[1, 10, 100]);
        limits.spare_segments = *rng.pick(&[0, 1, 2]);
        limits.log.recent_bytes = *rng.pick(&[0, 8 << 10, 256 << 10]);
        let mut session = small_sessions();
        session.batch_bytes = *rng.pick(&[2 << 10, 16 << 10, 64 << 10]);
        session.window_bytes = session.batch_bytes * *rng.pick(&[1, 2, 8]);
        session.unsettled_bytes = *rng.pick(&[1 << 10, 64 << 10]);
        let latency = |rng: &mut Rng| {
            let sync = Span::from_us(*rng.pick(&[50, 500, 5_000, 20_000]));
            Latency { sync, slow_ppm: *rng.pick(&[0, 1_000, 50_000]), ..Latency::default() }
        };
        let faulty = Span::from_ms(*rng.pick(&[1_000, 3_000, 8_000]));
        let regions = ["east", "west", "north", "south"];
        let mut events = draw_events(&mut root.child("events"), nodes, faulty, Span(faulty.0 / 2));
        add_reprotects(&mut root.child("reprotects"), faulty, &mut events);
        add_handovers(&mut root.child("handovers"), nodes, faulty, &mut events);
        Options {
            seed,
            nodes: (0..nodes)
                .map(|node| NodeOptions {
                    name: format!("n{node}"),
                    region: regions[node % regions.len()].to_owned(),
                    latency: latency(rng),
                })
                .collect(),
            workload,
            max_requests: *rng.pick(&[100, 400, 1_000]),
            max_batch: *rng.pick(&[1, 1, 4, 16]),
            limits,
            retention: Retention {
                bytes: segment_bytes * *rng.pick(&[1, 3, 6]),
                age_ns: *rng.pick(&[200_000_000, 3_600_000_000_000]),
                keep: draw_kept(&mut root.child("kept marks")),
            },
            ack: if rng.chance(PPM / 3) { AckPolicy::Replica } else { AckPolicy::Local },
            on_full: match (rng.chance(PPM / 3), root.child("on full").chance(PPM / 2)) {
                (true, _) => OnFull::Refuse,
                (false, false) => OnFull::Stall,
                (false, true) => OnFull::Track,
            },
            verify: Verification {
                every_ms: None,
                bytes_s: *root.child("verify rate").pick(&[1 << 20, u64::MAX]),
            },
            session,
            seeds: root.child("seeds").chance(PPM / 3),
            begins: match root.child("in place").chance(PPM / 4) {
                true => Begins::InPlace,
                false => Begins::Empty,
            },
            max_retry: Span::from_ms(1_000),
            link: Link {
                delay: Span::from_us(*rng.pick(&[200, 5_000, 40_000])),
                jitter: Span::from_us(*rng.pick(&[0, 1_000, 10_000])),
                bandwidth: *rng.pick(&[None, Some(100_000_000), Some(2_000_000)]),
                ..Link::default()
            },
            stack: Stack::Messages,
            faulty,
            healing: Span::from_secs(300),
            events: {
                let events = with_rounds(events, &mut root.child("verify"), nodes, faulty);
                let events = with_drills(events, &mut root.child("drills"), nodes, faulty);
                let events = with_mistakes(events, &mut root.child("mistakes"), nodes, faulty);
                let events = with_changes_of_mind(events, &mut root.child("changes of mind"), faulty);
                let events = with_marks(events, &mut root.child("marks"), faulty);
                let events = with_looks_aside(events, &mut root.child("looks aside"), nodes, faulty);
                with_resizes(events, &mut root.child("resizes"), volumes, faulty)
            },
            probe_every: Span(faulty.0 / 12),
            keep: Keep::Last(400),
            stop_after: None,
        }
    }
}

/// Names of drawn runs, where a scenario's name may stand.
pub const DRAWN: [&str; 2] = ["swarm", "swarm-long"];

impl Options {
    /// As [`Options::swarm`], for the better part of an hour instead of seconds: guests that write now and then, time
    /// limits as in production, and long stretches in which nothing goes wrong.
    #[must_use]
    pub fn swarm_long(seed: u64) -> Options {
        let mut options = Options::swarm(seed);
        let root = Rng::new(seed);
        let mut rng = root.child("long options");
        options.faulty = Span::from_secs(*rng.pick(&[1_000, 1_500, 3_000]));
        options.healing = Span::from_secs(600);
        options.probe_every = Span(options.faulty.0 / 40);
        options.max_requests = 2_000;
        options.workload.gap = Span::from_ms(*rng.pick(&[500, 2_000, 5_000]));
        options.limits.checkpoint_ms = *rng.pick(&[1_000, 5_000, 30_000]);
        options.limits.ship_delay_ms = *rng.pick(&[10, 100, 1_000]);
        options.retention.age_ns = *rng.pick(&[60_000_000_000, 3_600_000_000_000]);
        options.session.heartbeat_ms = *rng.pick(&[500, 1_000]);
        options.session.silence_ms = 5 * options.session.heartbeat_ms;
        options.session.opening_ms = 10 * options.session.heartbeat_ms;
        options.max_retry = Span::from_ms(*rng.pick(&[1_000, 10_000, 10_000]));
        let longest = Span::from_secs(*rng.pick(&[30, 120]));
        let events =
            draw_events(&mut root.child("long events"), options.nodes.len(), options.faulty, longest);
        let events = with_marks(events, &mut root.child("long marks"), options.faulty);
        let volumes = options.workload.volumes.len();
        options.events = with_resizes(events, &mut root.child("long resizes"), volumes, options.faulty);
        options
    }
}

#[cfg(feature = "full-stack")]
impl Options {
    /// The same through the real QUIC and TLS.
    #[must_use]
    pub fn full_stack(self) -> Options {
        Options { stack: Stack::Full, ..self }
    }

    /// As [`Options::swarm`], through the real QUIC and TLS; most of its links lose some datagrams at all
    /// times, and a few are narrow.
    #[must_use]
    pub fn swarm_full_stack(seed: u64) -> Options {
        Options::swarm(seed).over_datagrams()
    }

    /// As [`Options::swarm_long`], likewise.
    #[must_use]
    pub fn swarm_long_full_stack(seed: u64) -> Options {
        Options::swarm_long(seed).over_datagrams()
    }

    fn over_datagrams(self) -> Options {
        let seed = self.seed;
        let mut options = self.full_stack();
        options.link.loss_ppm = *Rng::new(seed).child("datagrams").pick(&[0, 1_000, 10_000, 50_000]);
        // A link that is slower than its guests: queues fill up and drop.
        if Rng::new(seed).child("narrow links").chance(PPM / 12) {
            options.link.bandwidth = Some(300_000);
        }
        options
    }
}

/// After most promotions somebody commits, and has the old primary taken back: soon, late, or in the middle of the next
/// disaster.
fn add_reprotects(rng: &mut Rng, faulty: Span, events: &mut Vec<Planned>) {
    let promotions: Vec<(Time, usize)> = events
        .iter()
        .filter_map(|planned| match planned.event {
            Event::Promote { node, .. } => Some((planned.at, node)),
            _ => None,
        })
        .collect();
    for (at, node) in promotions {
        for _ in 0..rng.below(3) {
            let after = Span(rng.below((faulty.0 - at.0).max(1)));
            events.push(Planned { at: at + after, event: Event::Reprotect { node } });
        }
    }
    events.sort_by_key(|planned| planned.at);
}

/// In a third of the runs the group is handed over, a few times, whatever else happens.
fn add_handovers(rng: &mut Rng, nodes: usize, faulty: Span, events: &mut Vec<Planned>) {
    if !rng.chance(PPM / 3) {
        return;
    }
    for _ in 0..1 + rng.below(4) {
        let (at, node) = (Time(rng.below(faulty.0)), rng.below(nodes as u64) as usize);
        events.push(Planned { at, event: Event::Handover { node } });
        // Whoever gave it away may want it back by force, as its operator does when the heir is gone.
        if rng.chance(PPM / 4) {
            let (at, node) = (at + Span(rng.below(faulty.0 / 4)), rng.below(nodes as u64) as usize);
            events.push(Planned { at, event: Event::Promote { node, at: Point::Share(PPM) } });
        }
    }
    events.sort_by_key(|planned| planned.at);
}

/// The kind of [`draw_event`] that is a promotion.
const PROMOTION: usize = 16;

/// Draws which kinds of faults there are, when they strike within `faulty`, and for how long, at most `longest`.
fn draw_events(rng: &mut Rng, nodes: usize, faulty: Span, longest: Span) -> Vec<Planned> {
    let count = *rng.pick(&[0_u64, 1, 3, 6, 10, 16]);
    let mut weights: Vec<u32> =
        (0..19).map(|_| if rng.chance(400_000) { 1 + rng.below(4) as u32 } else { 0 }).collect();
    // What the whole is for comes up in half of the runs.
    if rng.chance(PPM / 4) {
        weights[PROMOTION] += 4;
    }
    let mut events = Vec::new();
    if weights.iter().all(|weight| *weight == 0) {
        return events;
    }
    for _ in 0..count {
        let at = Time(rng.below(faulty.0));
        let event = draw_event(rng, rng.clone().weighted(&weights), nodes, longest);
        // Disasters like company: sometimes the next one strikes at nearly the same moment.
        if matches!(event, Event::Promote { .. }) && rng.chance(PPM / 4) {
            let other = draw_event(rng, PROMOTION, nodes, longest);
            events.push(Planned { at: at + Span(rng.below(2_000_000)), event: other });
        }
        // Rot is found by who reads: a start does.
        if let Event::Rot { node } = event
            && rng.chance(PPM / 2)
        {
            let down = Span(1 + rng.below(longest.0 / 4));
            events.push(Planned {
                at: at + Span(rng.below(200_000_000)),
                event: Event::PowerCut { node, off: down },
            });
        }
        events.push(Planned { at, event });
        let _ = rng.next_u64();
    }
    events.sort_by_key(|planned| planned.at);
    events
}

/// Adds rounds of verification to a quarter of the runs, and rot for them to find to some of these. The last round is
/// begun when every fault is gone.
fn with_rounds(mut events: Vec<Planned>, rng: &mut Rng, nodes: usize, faulty: Span) -> Vec<Planned> {
    if !rng.chance(PPM / 4) {
        return events;
    }
    let policies = [OnMismatch::Repair, OnMismatch::Repair, OnMismatch::Report];
    for _ in 0..1 + rng.below(4) {
        let on_mismatch = *rng.pick(&policies);
        events.push(Planned { at: Time(rng.below(faulty.0)), event: Event::Verify { on_mismatch } });
    }
    if rng.chance(PPM / 2) {
        let node = rng.below(nodes as u64) as usize;
        for _ in 0..1 + rng.below(3) {
            let at = Time(rng.below(faulty.0));
            events.push(Planned { at, event: Event::RotBase { node } });
            let event = Event::Verify { on_mismatch: OnMismatch::Repair };
            events.push(Planned { at: at + Span(rng.below(20_000_000)), event });
        }
    }
    let at = Time(faulty.0) + Span::from_ms(300);
    events.push(Planned { at, event: Event::Verify { on_mismatch: OnMismatch::Repair } });
    events.sort_by_key(|planned| planned.at);
    events
}

/// Adds drills to a quarter of the runs.
fn with_drills(mut events: Vec<Planned>, rng: &mut Rng, nodes: usize, faulty: Span) -> Vec<Planned> {
    if !rng.chance(PPM / 4) {
        return events;
    }
    for _ in 0..1 + rng.below(3) {
        let (at, node) = (Time(rng.below(faulty.0)), rng.below(nodes as u64) as usize);
        let at_ppm = if rng.chance(PPM / 2) { PPM } else { rng.below(u64::from(PPM)) as u32 };
        let span = Span(1 + rng.below(faulty.0 / 2));
        let event = Event::Drill { node, at_ppm, span, writes: 1 + rng.below(60) as u32 };
        events.push(Planned { at, event });
    }
    events.sort_by_key(|planned| planned.at);
    events
}

/// Adds mistakes of people to a fifth of the runs.
fn with_mistakes(mut events: Vec<Planned>, rng: &mut Rng, nodes: usize, faulty: Span) -> Vec<Planned> {
    if !rng.chance(PPM / 5) {
        return events;
    }
    for _ in 0..1 + rng.below(4) {
        let (at, node) = (Time(rng.below(faulty.0)), rng.below(nodes as u64) as usize);
        events.push(Planned { at, event: Event::Mistakes { node } });
    }
    events.sort_by_key(|planned| planned.at);
    events
}

/// In half of the runs marks outlive the window.
fn draw_kept(rng: &mut Rng) -> Kept {
    if !rng.chance(PPM / 2) {
        return Kept::default();
    }
    let (minutes, named) = (*rng.pick(&[0, 0, 2]), 1 + rng.below(4) as u32);
    Kept { minutes, hours: 0, days: 0, named, bytes: *rng.pick(&[u64::MAX, u64::MAX, 128 << 10]) }
}

/// In half of the runs somebody marks points, often.
fn with_marks(mut events: Vec<Planned>, rng: &mut Rng, faulty: Span) -> Vec<Planned> {
    if rng.chance(PPM / 2) {
        for _ in 0..3 + rng.below(20) {
            let at = Time(rng.below(faulty.0));
            events.push(Planned { at, event: Event::Mark { application: rng.chance(PPM / 3) } });
        }
        events.sort_by_key(|planned| planned.at);
    }
    events
}

/// In a third of the runs volumes get other sizes.
fn with_resizes(mut events: Vec<Planned>, rng: &mut Rng, volumes: usize, faulty: Span) -> Vec<Planned> {
    if rng.chance(PPM / 3) {
        for _ in 0..1 + rng.below(8) {
            let at = Time(rng.below(faulty.0));
            let (volume, ppm) = (rng.below(volumes as u64) as usize, rng.below(u64::from(PPM) + 1) as u32);
            events.push(Planned { at, event: Event::Resize { volume, ppm } });
        }
        events.sort_by_key(|planned| planned.at);
    }
    events
}

/// In half of the runs somebody looks at branches.
fn with_looks_aside(mut events: Vec<Planned>, rng: &mut Rng, nodes: usize, faulty: Span) -> Vec<Planned> {
    if rng.chance(PPM / 2) {
        for _ in 0..1 + rng.below(6) {
            let (at, node) = (Time(rng.below(faulty.0)), rng.below(nodes as u64) as usize);
            let at_ppm = rng.below(u64::from(PPM) + 1) as u32;
            events.push(Planned { at, event: Event::LookAside { node, at_ppm } });
        }
        events.sort_by_key(|planned| planned.at);
    }
    events
}

/// After half of the promotions, in half of the runs, the operator changes his mind, once or more.
fn with_changes_of_mind(mut events: Vec<Planned>, rng: &mut Rng, faulty: Span) -> Vec<Planned> {
    if !rng.chance(PPM / 2) {
        return events;
    }
    let promotions: Vec<(Time, usize)> = events
        .iter()
        .filter_map(|planned| match planned.event {
            Event::Promote { node, .. } => Some((planned.at, node)),
            _ => None,
        })
        .collect();
    for (at, node) in promotions {
        for _ in 0..rng.below(4).saturating_sub(1) {
            let after = Span(rng.below(faulty.0.saturating_sub(at.0).clamp(1, 4_000_000_000)));
            let at_ppm = *rng.pick(&[PPM, rng.clone().below(u64::from(PPM)) as u32, 0]);
            let aside = *rng.pick(&[Aside::Line, Aside::Branch]);
            events.push(Planned { at: at + after, event: Event::Reconsider { node, at_ppm, aside } });
        }
    }
    events.sort_by_key(|planned| planned.at);
    events
}

fn draw_event(rng: &mut Rng, kind: usize, nodes: usize, longest: Span) -> Event {
    let node = rng.below(nodes as u64) as usize;
    let other = (node + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
    let span = Span(1 + rng.below(longest.0));
    match kind {
        0 => Event::PowerCut { node, off: span },
        1 => {
            let side = if rng.chance(PPM / 2) { Side::Before } else { Side::After };
            Event::PowerCutAt { node, n: 1 + rng.below(60), side, off: Span(span.0 / 4) }
        }
        2 => Event::Kill { node, down: Span(span.0 / 4) },
        3 => Event::Restart { node, down: Span(span.0 / 8) },
        4 => Event::Cut { from: node, to: other, span },
        5 => Event::Isolate { node, span },
        6 => Event::Reset,
        7 => Event::Abandon { late: span },
        8 => Event::Stall { span: Span(span.0 / 2) },
        9 => Event::Loss { ppm: *rng.pick(&[10_000, 200_000, 600_000]), span },
        10 => {
            let calls =
                [Call::Sync, Call::Sync, Call::Write, Call::Write, Call::Create, Call::SyncDir, Call::Read];
            let call = *rng.pick(&calls);
            let path = (*rng.pick(&["log", "log", "state", "volumes", "base", ""])).to_owned();
            let errno = *rng.pick(&[Errno::Eio, Errno::Eio, Errno::Enospc]);
            Event::DiskError { node, call, path, n: 1 + rng.below(20), errno }
        }
        11 => Event::DiskFull { node, room: rng.below(128 << 10), span },
        12 => Event::SlowDisk { node, extra: Span::from_ms(*rng.pick(&[1, 20, 200])), span },
        13 => Event::Rot { node },
        14 => Event::ClockJump { node, ns: (rng.below(10_000_000_000_000) as i64) - 5_000_000_000_000 },
        15 => Event::ClockDrift { node, ppm: rng.below(100_000) as i32 - 50_000 },
        PROMOTION => {
            let at_ppm = if rng.chance(PPM / 2) { PPM } else { rng.below(u64::from(PPM)) as u32 };
            Event::Promote { node, at: Point::Share(at_ppm) }
        }
        17 => Event::Pin { node, at_ppm: rng.below(u64::from(PPM)) as u32, span },
        _ if rng.chance(PPM / 2) => Event::Wipe { node },
        _ => Event::LyingDisk { node, n: 1 + rng.below(20), by: *rng.pick(&[0, 1, -8, 64]) },
    }
}
