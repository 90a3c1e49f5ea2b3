//! The arguments of `landfall sim`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Sim {
    /// One run: the timeline, the verdict, and what it cost
    Run(Run),
    /// Many runs of drawn disasters, or of one scenario, until a time or a seed is reached
    Soak(Soak),
    /// Make a failing run small: fewer events, fewer requests, a shorter time
    Shrink(Shrink),
    /// Repeat a run from its trace, up to an event
    Replay(Replay),
    /// The scenarios that come with Landfall; with a name, its text
    Scenarios {
        /// Which
        name: Option<String>,
    },
}

/// Which run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    /// A shipped scenario's name, or a file; without it, everything is drawn from the seed
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) scenario: Option<String>,
    /// The seed
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Through the real QUIC and TLS, over datagrams that get lost, doubled and swapped
    #[arg(long)]
    pub(crate) full_stack: bool,
    /// Only these events of the run, as `sim shrink` prints them
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) only_events: Option<Vec<usize>>,
    /// No event at all
    #[arg(long, conflicts_with = "only_events")]
    pub(crate) no_events: bool,
    /// The most requests of one primary's guests
    #[arg(long, value_name = "N")]
    pub(crate) requests: Option<u64>,
    /// Virtual milliseconds with faults
    #[arg(long, value_name = "MS")]
    pub(crate) faulty_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Write every event to a file that `sim replay` takes
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Write a page with the timeline drawn
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// A shipped scenario's name, or a file; without it, everything is drawn from the seeds, as with `swarm`; `swarm-long` draws the better part of an hour for each
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) scenario: Option<String>,
    /// Through the real QUIC and TLS, over datagrams that get lost, doubled and swapped
    #[arg(long)]
    pub(crate) full_stack: bool,
    /// How long, in minutes of wall time
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    pub(crate) minutes: Option<f64>,
    /// Which seeds: from the first up to, and without, the last
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    pub(crate) seeds: Option<(u64, u64)>,
    /// Runs at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,
    /// Fail if a kind of fault never happened
    #[arg(long)]
    pub(crate) strict: bool,
    /// Write the outcome as JUnit XML
    #[arg(long, value_name = "FILE.xml")]
    pub(crate) junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The most runs to spend
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) runs: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Written by `sim run --trace`
    pub(crate) trace: PathBuf,
    /// Stop behind so many events
    #[arg(long, value_name = "N")]
    pub(crate) until: Option<u64>,
    /// Show what each node says of itself there
    #[arg(long)]
    pub(crate) state: bool,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("`{text}` is not of the form A..B with A below B");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first < last { Ok((first, last)) } else { Err(wrong()) }
}
