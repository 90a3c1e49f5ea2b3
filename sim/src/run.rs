//! One run, from options to a verdict.

use crate::clock::{Span, Time};
use crate::options::Options;
use crate::trace::Event;
use crate::watch::Watch;
use crate::world::{STOPPED, World};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A guarantee that was broken, or something else that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The check that found it.
    pub invariant: &'static str,
    /// On which node.
    pub node: Option<String>,
    /// What was found.
    pub detail: String,
    /// When.
    pub at: Time,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.invariant)?;
        if let Some(node) = &self.node {
            write!(f, "on {node} ")?;
        }
        write!(f, "at {}: {}", self.at.to_string().trim(), self.detail)
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was promised was kept.
    Clean,
    /// A guarantee was broken.
    Broken(Violation),
    /// Everything was healed, and it did not converge in time.
    NotConverged(Violation),
    /// The engine logged an event of level ERROR.
    Error(String),
    /// The engine panicked.
    Crashed(String),
    /// It was asked to end before its end.
    Stopped,
}

impl Verdict {
    /// Whether nothing was wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Verdict::Clean
    }

    /// What failed, in one word that two runs can be compared by.
    #[must_use]
    pub fn class(&self) -> &str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Broken(violation) => violation.invariant,
            Verdict::NotConverged(_) => "convergence",
            Verdict::Error(_) => "error event",
            Verdict::Crashed(_) => "crash",
            Verdict::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Clean => f.write_str("clean"),
            Verdict::Broken(violation) => write!(f, "broken: {violation}"),
            Verdict::NotConverged(violation) => write!(f, "not converged: {violation}"),
            Verdict::Error(error) => write!(f, "an event of level ERROR: {error}"),
            Verdict::Crashed(message) => write!(f, "crashed: {message}"),
            Verdict::Stopped => f.write_str("stopped where it was asked to"),
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Of the first failover: time between the last write that was kept and the last that was answered.
    pub rpo: Option<Span>,
    /// Likewise: answered writes that are not part of the new history.
    pub lost_writes: u64,
    /// Likewise, their bytes.
    pub lost_bytes: u64,
    /// Likewise: time from the outage (or the order to fail over) to the first answered write.
    pub rto: Option<Span>,
    /// Of the first failover: an attacker's writes that are part of the new history.
    pub attack_kept: u64,
    /// The largest lag seen, in bytes of log.
    pub max_lag_bytes: u64,
    /// Bytes of records sent over all links.
    pub link_bytes: u64,
    /// How long convergence took once everything was healed.
    pub converged_after: Span,
    /// Answered writes.
    pub writes: u64,
}

/// The state of the group at a moment, for drawings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Time,
    /// For each node: up, role (0 replica, 1 primary, 2 fenced), epoch, durable LSN.
    pub nodes: Vec<NodeSample>,
}

/// A node at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSample {
    /// Its program runs.
    pub up: bool,
    /// 0 replica, 1 primary, 2 fenced.
    pub role: u8,
    /// The epoch that it writes or follows.
    pub epoch: u64,
    /// Its durable LSN.
    pub durable: u64,
    /// Its oldest selectable LSN.
    pub horizon: u64,
    /// A session with a peer has got beyond its hello.
    pub linked: bool,
}

/// A run's outcome.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// The hash of its trace: equal for equal options.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Steps of the world.
    pub steps: u64,
    /// Virtual time.
    pub time: Time,
    /// What was done and met, by name.
    pub counters: BTreeMap<String, u64>,
    /// What was measured.
    pub figures: Figures,
    /// The group over time.
    pub samples: Vec<Sample>,
    /// The events that were kept.
    pub trace: Vec<Event>,
    /// What each node said of itself at the end.
    pub states: Vec<String>,
}

/// Runs.
#[must_use]
pub fn run(options: Options) -> Outcome {
    let watch = Watch::default();
    let seed = options.seed;
    let mut world = World::new(options);
    let ran =
        tracing::subscriber::with_default(watch.clone(), || catch_unwind(AssertUnwindSafe(|| world.run())));
    let verdict = match ran {
        Ok(Ok(())) => Verdict::Clean,
        Ok(Err(violation)) if violation.invariant == STOPPED => Verdict::Stopped,
        Ok(Err(violation)) if violation.invariant == "convergence" => Verdict::NotConverged(violation),
        Ok(Err(violation)) => Verdict::Broken(violation),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().cloned();
            let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Verdict::Crashed(message.unwrap_or_else(|| "a panic without words".to_owned()))
        }
    };
    let errors = watch.take();
    let verdict = match (verdict, errors.first()) {
        (Verdict::Clean, Some(error)) => Verdict::Error(error.clone()),
        (verdict, _) => verdict,
    };
    let parts = world.into_parts();
    Outcome {
        seed,
        verdict,
        hash: parts.hash,
        events: parts.events,
        steps: parts.steps,
        time: parts.time,
        counters: parts.counters,
        figures: parts.figures,
        samples: parts.samples,
        trace: parts.trace.events().cloned().collect(),
        states: parts.states,
    }
}
