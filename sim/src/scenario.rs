//! Scenario files: a run as a team writes it down, with its own policy, workload, outages and assertions.
//!
//! - A key that is not known, a topology that cannot be and a script that names an absent node are errors with
//!   line, column and the nearest name that there is.
//! - Everything has a default, so that a file says only what it is about.
//! - Times are virtual. A seed still decides what the file leaves open: places of writes, jitter, who loses what.
//!
//! `sim/scenarios/` holds those that are shipped; the first lines of each say what it proves.

mod shipped;

pub use shipped::{NAMES, shipped};

use crate::clock::{Span, Time};
use crate::disk::{Call, Errno, Latency};
use crate::net::Link;
use crate::options::{Event, NodeOptions, Options, Planned, Point, Stack, small_sessions};
use crate::recorded::Recording;
use crate::rng::PPM;
use crate::run::Outcome;
use crate::trace::Keep;
use crate::workload::{Alignment, Pattern, Profile};
use engine::log;
use engine::node::config::{AckPolicy, Begins, Limits, OnFull, Retention, Verification};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

/// The most nodes of a scenario.
pub const MAX_NODES: usize = 8;
/// Writes of a drill.
const DRILL_WRITES: u32 = 500;
/// The most events of a script.
pub const MAX_EVENTS: usize = 10_000;
/// The longest virtual time, in seconds.
pub const MAX_SECONDS: f64 = 100_000.0;
/// The largest volume, in KiB: the reference keeps every volume in memory.
pub const MAX_VOLUME_KIB: u64 = 64 << 10;

/// What is wrong with a scenario, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}{}", .meant.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default())]
pub struct Error {
    /// Counted from one.
    pub line: usize,
    /// In characters, counted from one.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// The nearest name that there is.
    pub meant: Option<String>,
}

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it proves, in a sentence.
    pub proves: String,
    /// What its user asserts.
    pub assertions: Assertions,
    recording_file: Option<String>,
    options: Options,
}

/// What must hold of the figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assertions {
    /// The most seconds of writes that a failover may lose.
    pub rpo_seconds_max: Option<f64>,
    /// The most seconds from the outage to the first answered write.
    pub rto_seconds_max: Option<f64>,
    /// The most bytes of answered writes that a failover may lose.
    pub loss_bytes_max: Option<u64>,
    /// The most bytes that may cross the links.
    pub link_bytes_max: Option<u64>,
    /// The most bytes of log that a replica may be behind.
    pub lag_bytes_max: Option<u64>,
    /// Whether there has to be a failover.
    pub failover: Option<bool>,
    /// Whether an attacker's writes must be gone.
    pub attack_gone: Option<bool>,
}

impl Assertions {
    /// What does not hold, in words.
    #[must_use]
    pub fn broken_by(&self, outcome: &Outcome) -> Vec<String> {
        let figures = &outcome.figures;
        let seconds = |span: Option<Span>| span.map(|span| span.0 as f64 / 1e9);
        let mut broken = Vec::new();
        let mut at_most = |name: &str, is: Option<f64>, max: Option<f64>| {
            if let (Some(is), Some(max)) = (is, max)
                && is > max
            {
                broken.push(format!("{name} = {max}, but it was {is}"));
            }
        };
        let bytes = |bytes: u64| Some(bytes as f64);
        at_most("rpo_seconds_max", seconds(figures.rpo), self.rpo_seconds_max);
        at_most("rto_seconds_max", seconds(figures.rto), self.rto_seconds_max);
        at_most("loss_bytes_max", bytes(figures.lost_bytes), self.loss_bytes_max.map(|max| max as f64));
        at_most("link_bytes_max", bytes(figures.link_bytes), self.link_bytes_max.map(|max| max as f64));
        at_most("lag_bytes_max", bytes(figures.max_lag_bytes), self.lag_bytes_max.map(|max| max as f64));
        let had = figures.rpo.is_some();
        match self.failover {
            Some(true) if !had => broken.push("failover = true, but there was none".to_owned()),
            Some(false) if had => broken.push("failover = false, but there was one".to_owned()),
            _ => {}
        }
        if self.rto_seconds_max.is_some() && had && figures.rto.is_none() {
            broken.push("rto_seconds_max is given, but nobody was served after the failover".to_owned());
        }
        if self.attack_gone == Some(true) && (figures.attack_kept > 0 || !had) {
            broken.push(format!("attack_gone = true, but {} of its writes are left", figures.attack_kept));
        }
        broken
    }
}

// -- the file, as it is read

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    proves: String,
    seconds: Spanned<f64>,
    #[serde(default = "default_settle")]
    settle_seconds: Spanned<f64>,
    #[serde(rename = "node")]
    nodes: Vec<NodeTable>,
    #[serde(default)]
    link: LinkTable,
    #[serde(default)]
    policy: PolicyTable,
    #[serde(default)]
    workload: WorkloadTable,
    #[serde(default, rename = "event")]
    events: Vec<EventTable>,
    #[serde(default, rename = "assert")]
    assertions: Assertions,
}

fn default_settle() -> Spanned<f64> {
    Spanned::new(0..0, 300.0)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    name: Spanned<String>,
    region: String,
    #[serde(default)]
    disk: DiskTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DiskTable {
    read_ms: f64,
    write_ms: f64,
    sync_ms: f64,
    slow_ppm: u32,
}

impl Default for DiskTable {
    fn default() -> DiskTable {
        DiskTable { read_ms: 0.08, write_ms: 0.01, sync_ms: 0.5, slow_ppm: 1_000 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LinkTable {
    delay_ms: f64,
    jitter_ms: f64,
    mbit_per_second: u64,
    loss_ppm: u32,
}

impl Default for LinkTable {
    fn default() -> LinkTable {
        LinkTable { delay_ms: 20.0, jitter_ms: 2.0, mbit_per_second: 1_000, loss_ppm: 0 }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ack {
    Local,
    Replica,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Full {
    Track,
    Stall,
    Refuse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyTable {
    ack: Ack,
    on_full: Full,
    segment_kib: Spanned<u64>,
    log_mib: Spanned<u64>,
    retention_mib: u64,
    retention_seconds: f64,
    overlay_mib: u64,
    ship_delay_ms: u64,
    checkpoint_ms: u64,
}

impl Default for PolicyTable {
    fn default() -> PolicyTable {
        PolicyTable {
            ack: Ack::Local,
            on_full: Full::Stall,
            segment_kib: Spanned::new(0..0, 1_024),
            log_mib: Spanned::new(0..0, 64),
            retention_mib: 32,
            retention_seconds: 3_600.0,
            overlay_mib: 16,
            ship_delay_ms: 10,
            checkpoint_ms: 1_000,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PatternName {
    Random,
    Sequential,
    Database,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WorkloadKind {
    /// From the seed.
    Drawn,
    /// From a file.
    Trace,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkloadTable {
    kind: WorkloadKind,
    /// A recorded workload, beside the scenario.
    file: Option<Spanned<String>>,
    /// Names for `volumes_kib`, by which a recorded workload's volumes are found.
    volume_names: Option<Spanned<Vec<String>>>,
    pattern: PatternName,
    volumes_kib: Spanned<Vec<u64>>,
    /// The volumes hold data before the group begins: they are protected where they are.
    in_place: bool,
    requests_per_second: Spanned<f64>,
    max_kib: Spanned<u64>,
    depth: Spanned<usize>,
    read_percent: u32,
    flush_percent: u32,
    trim_percent: u32,
    fua_percent: u32,
}

impl Default for WorkloadTable {
    fn default() -> WorkloadTable {
        WorkloadTable {
            kind: WorkloadKind::Drawn,
            file: None,
            volume_names: None,
            pattern: PatternName::Random,
            volumes_kib: Spanned::new(0..0, vec![1_024, 256]),
            in_place: false,
            requests_per_second: Spanned::new(0..0, 200.0),
            max_kib: Spanned::new(0..0, 16),
            depth: Spanned::new(0..0, 32),
            read_percent: 10,
            flush_percent: 5,
            trim_percent: 1,
            fua_percent: 1,
        }
    }
}

/// What can happen, by its name in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Do {
    PowerCut,
    Kill,
    Restart,
    Cut,
    Isolate,
    Reset,
    StallLinks,
    Loss,
    DiskError,
    DiskFull,
    SlowDisk,
    LoseDisk,
    ClockJump,
    ClockDrift,
    Promote,
    Reprotect,
    PlannedFailover,
    Pin,
    Drill,
    Attack,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventTable {
    at_seconds: Spanned<f64>,
    #[serde(rename = "do")]
    what: Spanned<Do>,
    /// A node.
    node: Option<Spanned<String>>,
    /// All nodes of a region.
    region: Option<Spanned<String>>,
    /// The other end of a cut.
    to: Option<Spanned<String>>,
    /// How long.
    #[serde(default)]
    for_seconds: f64,
    /// Repeats the event so often after its first time, `every_seconds` apart.
    #[serde(default)]
    repeat: u32,
    #[serde(default)]
    every_seconds: f64,
    /// A share in parts per million: of lost frames, of a clock's drift.
    ppm: Option<i32>,
    /// Milliseconds added to each call of a disk; seconds that a clock jumps.
    by: Option<f64>,
    /// For a promotion: `latest`, or seconds ago.
    #[serde(default)]
    seconds_ago: Option<f64>,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// The first [`Error`] of the text.
    pub fn parse(text: &str) -> Result<Scenario, Error> {
        Scenario::parse_with(text, &|_| Err("there are no files here".to_owned()))
    }

    /// Reads a scenario that may name files; `load` gives the text of one by the name that stands in the scenario, or
    /// says why it cannot.
    ///
    /// # Errors
    ///
    /// The first [`Error`] of the text or of a file, at the place that names it.
    pub fn parse_with(text: &str, load: &dyn Fn(&str) -> Result<String, String>) -> Result<Scenario, Error> {
        let file: File = toml::from_str(text).map_err(|error| {
            let what = error.message().to_owned();
            let quoted: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
            let meant = match quoted.split_first() {
                Some((found, known)) if what.starts_with("unknown ") => nearest(found, known),
                _ => None,
            };
            locate(text, error.span().unwrap_or(0..0), what, meant)
        })?;
        Reader { text, file: &file, load }.scenario()
    }

    /// The file that the workload comes from, by the name that stands in the scenario, and the hash of its bytes.
    #[must_use]
    pub fn recording(&self) -> Option<(&str, u64)> {
        let recording = self.options.workload.recording.as_ref()?;
        Some((self.recording_file.as_deref()?, recording.hash))
    }

    /// The options of a run with this seed.
    #[must_use]
    pub fn options(&self, seed: u64) -> Options {
        Options { seed, ..self.options.clone() }
    }
}

fn locate(text: &str, span: Range<usize>, what: String, meant: Option<String>) -> Error {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    Error { line, column, what, meant }
}

/// The name that differs by the fewest edits, if that is at most a third of its length.
#[must_use]
pub fn nearest(found: &str, names: &[&str]) -> Option<String> {
    let best = names.iter().min_by_key(|name| distance(found, name))?;
    (distance(found, best) <= best.chars().count().div_ceil(3)).then(|| (*best).to_owned())
}

/// Insertions, deletions and replacements of one character.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

struct Reader<'a> {
    text: &'a str,
    file: &'a File,
    load: &'a dyn Fn(&str) -> Result<String, String>,
}

impl Reader<'_> {
    fn error<T>(&self, at: &Spanned<T>, what: impl Into<String>) -> Error {
        locate(self.text, at.span(), what.into(), None)
    }

    fn span(&self, at: &Spanned<f64>, least: f64) -> Result<Span, Error> {
        let seconds = *at.get_ref();
        if !seconds.is_finite() || seconds < least || seconds > MAX_SECONDS {
            return Err(self.error(at, format!("{seconds} seconds; it has to be {least} to {MAX_SECONDS}")));
        }
        Ok(Span((seconds * 1e9) as u64))
    }

    fn scenario(&self) -> Result<Scenario, Error> {
        let file = self.file;
        let faulty = self.span(&file.seconds, 0.001)?;
        let healing = self.span(&file.settle_seconds, 1.0)?;
        let first = &file.nodes.first();
        if file.nodes.len() < 2 || file.nodes.len() > MAX_NODES {
            let at = first.map_or(0..0, |node| node.name.span());
            let what = format!("{} nodes; a group needs 2 to {MAX_NODES}", file.nodes.len());
            return Err(locate(self.text, at, what, None));
        }
        for (index, node) in file.nodes.iter().enumerate() {
            if file.nodes[..index].iter().any(|other| other.name.get_ref() == node.name.get_ref()) {
                return Err(self.error(&node.name, format!("a second node `{}`", node.name.get_ref())));
            }
        }
        let (limits, workload) = (self.limits()?, self.workload()?);
        let mut events = Vec::new();
        for event in &file.events {
            self.event(event, &mut events)?;
        }
        events.sort_by_key(|planned: &Planned| planned.at);
        let link = &file.link;
        let policy = &file.policy;
        let options = Options {
            seed: 0,
            nodes: file.nodes.iter().map(node_options).collect(),
            workload,
            begins: if file.workload.in_place { Begins::InPlace } else { Begins::Empty },
            max_requests: u64::MAX,
            max_batch: 1,
            limits,
            retention: Retention {
                bytes: policy.retention_mib << 20,
                age_ns: (policy.retention_seconds.max(0.0) * 1e9) as u64,
                ..Retention::default()
            },
            ack: match policy.ack {
                Ack::Local => AckPolicy::Local,
                Ack::Replica => AckPolicy::Replica,
            },
            on_full: match policy.on_full {
                Full::Track => OnFull::Track,
                Full::Stall => OnFull::Stall,
                Full::Refuse => OnFull::Refuse,
            },
            verify: Verification::default(),
            seeds: false,
            session: transport::link::session::Config {
                window_bytes: 4 << 20,
                batch_bytes: 256 << 10,
                unsettled_bytes: 8 << 20,
                heartbeat_ms: 500,
                silence_ms: 2_500,
                opening_ms: 5_000,
                ..small_sessions()
            },
            max_retry: Span::from_ms(1_000),
            link: Link {
                delay: ms(link.delay_ms),
                jitter: ms(link.jitter_ms),
                bandwidth: (link.mbit_per_second > 0).then_some(link.mbit_per_second * 125_000),
                loss_ppm: link.loss_ppm.min(PPM),
                retransmission: ms(link.delay_ms * 3.0),
            },
            stack: Stack::Messages,
            faulty,
            healing,
            events,
            probe_every: Span((faulty.0 / 20).max(1_000_000)),
            keep: Keep::Last(2_000),
            stop_after: None,
        };
        let (name, proves) = (file.name.clone(), file.proves.clone());
        let recording_file = file.workload.file.as_ref().map(|file| file.get_ref().clone());
        Ok(Scenario { name, proves, assertions: file.assertions.clone(), recording_file, options })
    }

    fn limits(&self) -> Result<Limits, Error> {
        let policy = &self.file.policy;
        let log = log::Limits {
            segment_bytes: policy.segment_kib.get_ref().saturating_mul(1 << 10),
            log_bytes: policy.log_mib.get_ref().saturating_mul(1 << 20),
            recent_bytes: 4 << 20,
        };
        if let Some(fault) = log.fault() {
            return Err(self.error(&policy.segment_kib, fault));
        }
        Ok(Limits {
            log,
            overlay_bytes: policy.overlay_mib.max(1) << 20,
            apply_bytes: 1 << 20,
            apply_ms: 200,
            checkpoint_ms: policy.checkpoint_ms.max(1),
            ship_delay_ms: policy.ship_delay_ms,
            ship_delay_bytes: 1 << 20,
            catch_up_bytes: 1 << 20,
            spare_segments: 2,
            marks_ms: None,
        })
    }

    fn workload(&self) -> Result<Profile, Error> {
        let table = &self.file.workload;
        let sizes = table.volumes_kib.get_ref();
        let sound = |kib: &u64| kib.is_multiple_of(4) && (16..=MAX_VOLUME_KIB).contains(kib);
        if sizes.is_empty() || sizes.len() > 16 || !sizes.iter().all(sound) {
            let what = format!("volumes are 1 to 16, each a multiple of 4 KiB from 16 to {MAX_VOLUME_KIB}");
            return Err(self.error(&table.volumes_kib, what));
        }
        let rate = *table.requests_per_second.get_ref();
        if !rate.is_finite() || !(0.01..=100_000.0).contains(&rate) {
            return Err(self.error(&table.requests_per_second, "requests a second are 0.01 to 100000"));
        }
        let max_len = table.max_kib.get_ref().saturating_mul(1 << 10);
        let room = self.file.policy.segment_kib.get_ref().saturating_mul(1 << 10) / 2;
        if max_len == 0 || max_len > room {
            let what = format!("the longest request is 1 to {} KiB, half of a segment", room >> 10);
            return Err(self.error(&table.max_kib, what));
        }
        if !(1..=1_024).contains(table.depth.get_ref()) {
            return Err(self.error(&table.depth, "a depth is 1 to 1024"));
        }
        let recording = self.recording()?;
        let percent = |percent: u32| percent.min(100) * 10_000;
        Ok(Profile {
            volumes: sizes.iter().map(|kib| kib << 10).collect(),
            pattern: match table.pattern {
                PatternName::Random => Pattern::Random,
                PatternName::Sequential => Pattern::Sequential,
                PatternName::Database => Pattern::Database,
            },
            alignment: Alignment::Sectors,
            max_len: max_len.max(512),
            read_ppm: percent(table.read_percent),
            flush_ppm: percent(table.flush_percent),
            trim_ppm: percent(table.trim_percent),
            zero_ppm: 0,
            fua_ppm: percent(table.fua_percent),
            hot_ppm: 300_000,
            gap: Span((1e9 / rate) as u64),
            depth: *table.depth.get_ref(),
            recording,
        })
    }

    /// The recorded workload, if the scenario names one. Its volumes are found by the scenario's names for its own, or
    /// are those of the scenario in the same order.
    fn recording(&self) -> Result<Option<Recording>, Error> {
        let table = &self.file.workload;
        let count = table.volumes_kib.get_ref().len();
        if let Some(names) = table.volume_names.as_ref().filter(|names| names.get_ref().len() != count) {
            return Err(self.error(names, format!("these are not the names of {count} volumes")));
        }
        let file = match (table.kind, &table.file) {
            (WorkloadKind::Drawn, None) => return Ok(None),
            (WorkloadKind::Drawn, Some(file)) => {
                return Err(self.error(file, "a `file` needs `kind = \"trace\"`"));
            }
            (WorkloadKind::Trace, None) => {
                let what = "a workload of the kind `trace` needs `file`".to_owned();
                let at = self.text.find("[workload]").unwrap_or(0);
                return Err(locate(self.text, at..at, what, None));
            }
            (WorkloadKind::Trace, Some(file)) => file,
        };
        let name = file.get_ref();
        let text = (self.load)(name).map_err(|why| self.error(file, format!("{name}: {why}")))?;
        let names = table.volume_names.as_ref().map(|names| names.get_ref().as_slice());
        let recording = Recording::parse(&text, names).map_err(|error| {
            let what = format!("{name}, line {}: {}", error.line, error.what);
            locate(self.text, file.span(), what, error.meant)
        })?;
        if recording.volumes.len() > count {
            let what = format!("{name} has {} volumes, the scenario {count}", recording.volumes.len());
            return Err(self.error(file, what));
        }
        Ok(Some(recording))
    }

    fn find(&self, name: &Spanned<String>) -> Result<usize, Error> {
        let names: Vec<&str> = self.file.nodes.iter().map(|node| node.name.get_ref().as_str()).collect();
        let found = names.iter().position(|known| known == name.get_ref());
        found.ok_or_else(|| {
            let what = format!("there is no node `{}`", name.get_ref());
            locate(self.text, name.span(), what, nearest(name.get_ref(), &names))
        })
    }

    /// The nodes that an event is about.
    fn nodes(&self, event: &EventTable) -> Result<Vec<usize>, Error> {
        match (&event.node, &event.region) {
            (Some(node), None) => Ok(vec![self.find(node)?]),
            (None, Some(region)) => {
                let all: Vec<&str> = self.file.nodes.iter().map(|node| node.region.as_str()).collect();
                let found: Vec<usize> =
                    (0..all.len()).filter(|index| all[*index] == region.get_ref()).collect();
                if found.is_empty() {
                    let what = format!("there is no region `{}`", region.get_ref());
                    return Err(locate(self.text, region.span(), what, nearest(region.get_ref(), &all)));
                }
                Ok(found)
            }
            (Some(node), Some(_)) => Err(self.error(node, "either `node` or `region`")),
            (None, None) => Err(self.error(&event.what, "it needs `node` or `region`")),
        }
    }

    fn event(&self, table: &EventTable, events: &mut Vec<Planned>) -> Result<(), Error> {
        let first = self.span(&table.at_seconds, 0.0)?;
        if first > self.span(&self.file.seconds, 0.0)? {
            return Err(self.error(&table.at_seconds, "this is after the scenario's end"));
        }
        let span = ms(table.for_seconds * 1e3);
        let by =
            |what: &str| table.by.ok_or_else(|| self.error(&table.what, format!("it needs `by`: {what}")));
        let of_node: Box<dyn Fn(usize) -> Event> = match table.what.get_ref() {
            Do::Reset => return self.push(table, first, &[Event::Reset], events),
            Do::StallLinks => return self.push(table, first, &[Event::Stall { span }], events),
            Do::Attack => return self.push(table, first, &[Event::Scramble], events),
            Do::Loss => {
                let ppm = table.ppm.and_then(|ppm| u32::try_from(ppm).ok());
                let ppm =
                    ppm.ok_or_else(|| self.error(&table.what, "it needs `ppm`: the share of frames"))?;
                return self.push(table, first, &[Event::Loss { ppm: ppm.min(PPM), span }], events);
            }
            Do::Cut => {
                let to = table.to.as_ref().ok_or_else(|| self.error(&table.what, "it needs `to`: a node"))?;
                let to = self.find(to)?;
                Box::new(move |from| Event::Cut { from, to, span })
            }
            Do::PowerCut => Box::new(move |node| Event::PowerCut { node, off: span }),
            Do::Kill => Box::new(move |node| Event::Kill { node, down: span }),
            Do::Restart => Box::new(move |node| Event::Restart { node, down: span }),
            Do::Isolate => Box::new(move |node| Event::Isolate { node, span }),
            Do::DiskError => Box::new(move |node| Event::DiskError {
                node,
                call: Call::Sync,
                path: "log".to_owned(),
                n: 1,
                errno: Errno::Eio,
            }),
            Do::DiskFull => Box::new(move |node| Event::DiskFull { node, room: 0, span }),
            Do::SlowDisk => {
                let extra = ms(by("milliseconds for each sync")?);
                Box::new(move |node| Event::SlowDisk { node, extra, span })
            }
            Do::LoseDisk => Box::new(|node| Event::Wipe { node }),
            Do::ClockJump => {
                let ns = (by("seconds, back if negative")? * 1e9) as i64;
                Box::new(move |node| Event::ClockJump { node, ns })
            }
            Do::ClockDrift => {
                let ppm = table.ppm.ok_or_else(|| self.error(&table.what, "it needs `ppm`"))?;
                Box::new(move |node| Event::ClockDrift { node, ppm })
            }
            Do::Promote => {
                let at = match table.seconds_ago {
                    Some(seconds) => Point::Ago(ms(seconds * 1e3)),
                    None => Point::Share(PPM),
                };
                Box::new(move |node| Event::Promote { node, at })
            }
            Do::Reprotect => Box::new(|node| Event::Reprotect { node }),
            Do::PlannedFailover => Box::new(|node| Event::Handover { node }),
            Do::Drill => Box::new(move |node| Event::Drill { node, at_ppm: PPM, span, writes: DRILL_WRITES }),
            Do::Pin => Box::new(move |node| Event::Pin { node, at_ppm: PPM / 2, span }),
        };
        let happen: Vec<Event> = self.nodes(table)?.into_iter().map(of_node).collect();
        self.push(table, first, &happen, events)
    }

    fn push(
        &self,
        table: &EventTable,
        first: Span,
        happen: &[Event],
        events: &mut Vec<Planned>,
    ) -> Result<(), Error> {
        let end = self.span(&self.file.seconds, 0.0)?;
        for round in 0..=u64::from(table.repeat) {
            let at = Time(first.0 + ms(table.every_seconds * 1e3).0 * round);
            if at.0 > end.0 {
                break;
            }
            events.extend(happen.iter().map(|event| Planned { at, event: event.clone() }));
            if events.len() > MAX_EVENTS {
                return Err(self.error(&table.what, format!("more than {MAX_EVENTS} events")));
            }
        }
        Ok(())
    }
}

fn ms(ms: f64) -> Span {
    Span((ms.clamp(0.0, MAX_SECONDS * 1e3) * 1e6) as u64)
}

fn node_options(node: &NodeTable) -> NodeOptions {
    let disk = &node.disk;
    NodeOptions {
        name: node.name.get_ref().clone(),
        region: node.region.clone(),
        latency: Latency {
            read: ms(disk.read_ms),
            write: ms(disk.write_ms),
            sync: ms(disk.sync_ms),
            slow_ppm: disk.slow_ppm.min(PPM),
            ..Latency::default()
        },
    }
}

#[cfg(test)]
mod tests;
