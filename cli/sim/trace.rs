//! The trace of a run as a file: what the run was, then its events, one a line. `replay` needs the first part
//! alone: the events come out again, and are compared.

use super::Subject;
use super::args::Replay;
use crate::exit::{Code, Failure};
use crate::human::{self, Form};
use ::sim::options::{Options, Stack};
use ::sim::run::Outcome;
use ::sim::scenario::Scenario;
use ::sim::shrink::Reduction;
use ::sim::trace::Keep;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The first line's beginning.
const MAGIC: &str = "landfall-sim-trace";

/// What a run was.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: String,
    seed: u64,
    /// The text of the scenario; none for a drawn run.
    scenario: Option<String>,
    events: Vec<usize>,
    requests: u64,
    faulty_ns: u64,
    /// Whether the frames went through the real QUIC and TLS.
    #[serde(default)]
    full_stack: bool,
    /// Whether a drawn run was a long one.
    #[serde(default)]
    long: bool,
    /// The recorded workload that the scenario names.
    #[serde(default)]
    recording: Option<Recording>,
    trace_hash: String,
}

/// A file that a run depended on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    /// The folder that the scenario's name of the file is relative to.
    folder: PathBuf,
    /// Of its bytes.
    hash: String,
}

/// How a hash is written.
fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

pub(super) fn write(
    path: &Path,
    subject: &Subject,
    stack: Stack,
    reduction: &Reduction,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let header = Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: outcome.seed,
        scenario: subject.text.clone(),
        events: reduction.events.clone(),
        requests: reduction.max_requests,
        faulty_ns: reduction.faulty.0,
        full_stack: stack == Stack::Full,
        long: subject.long,
        recording: match subject.scenario.as_ref().and_then(Scenario::recording) {
            Some((_, hash)) => {
                let here = std::path::absolute(&subject.folder).or_else(|_| std::env::current_dir());
                let folder = here.map_err(|error| Failure::failed(error.to_string()))?;
                Some(Recording { folder, hash: hex(hash) })
            }
            None => None,
        },
        trace_hash: hex(outcome.hash),
    };
    let header = serde_json::to_string(&header).map_err(|error| Failure::failed(error.to_string()))?;
    let mut text = format!("{MAGIC} {header}\n");
    for event in &outcome.trace {
        let _ = writeln!(text, "{event}");
    }
    std::fs::write(path, text).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))
}

#[derive(Debug, Serialize)]
struct ReplayJson {
    events: u64,
    verdict: String,
    states: Vec<String>,
}

pub(super) fn replay(arguments: &Replay, form: Form) -> Result<(), Failure> {
    let path = arguments.trace.display();
    let text = std::fs::read_to_string(&arguments.trace)
        .map_err(|error| Failure::usage(format_args!("{path}: {error}")))?;
    let no_trace = || Failure::usage(format_args!("{path} is no trace of the simulator"));
    let (first, _) = text.split_once('\n').ok_or_else(no_trace)?;
    let header = first.strip_prefix(MAGIC).ok_or_else(no_trace)?;
    let header: Header = serde_json::from_str(header)
        .map_err(|error| Failure::usage(format_args!("{path}: the first line: {error}")))?;
    let own = env!("CARGO_PKG_VERSION");
    if header.version != own {
        let what = format!("{path} was written by version {}, this is {own}", header.version);
        return Err(Failure::new(Code::Refused, what).next("replay it with the version that wrote it"));
    }
    let folder = header.recording.as_ref().map(|recording| recording.folder.clone()).unwrap_or_default();
    let subject = match header.scenario {
        Some(text) => Subject::parse(&path.to_string(), text, &folder)?,
        None => Subject::drawn(header.long),
    };
    if let Some((file, hash)) = subject.scenario.as_ref().and_then(Scenario::recording)
        && header.recording.as_ref().is_none_or(|recording| recording.hash != hex(hash))
    {
        let file = folder.join(file);
        let what = format!("{} is not the file that the run in {path} was made with", file.display());
        return Err(Failure::new(Code::Refused, what).next("put that file back, or run the scenario anew"));
    }
    let reduction = Reduction {
        events: header.events,
        max_requests: header.requests,
        faulty: ::sim::clock::Span(header.faulty_ns),
    };
    let whole = subject.options(header.seed, super::stack(header.full_stack));
    let options = Options { keep: Keep::All, stop_after: arguments.until, ..reduction.apply(&whole) };
    let outcome = ::sim::run::run(options.clone());
    let hash = hex(outcome.hash);
    if arguments.until.is_none() && hash != header.trace_hash {
        let what = format!("the replay's trace hash is {hash}, the file's {}", header.trace_hash);
        return Err(Failure::new(Code::Broken, what).next("a run that does not repeat is a bug: report it"));
    }
    let states = if arguments.state { outcome.states.clone() } else { Vec::new() };
    let answer = ReplayJson { events: outcome.events, verdict: outcome.verdict.to_string(), states };
    human::answer(form, &answer, |answer| {
        let mut out = String::new();
        for event in &outcome.trace {
            let _ = writeln!(out, "{}", ::sim::report::line(event, &options));
        }
        for state in &answer.states {
            let _ = writeln!(out, "\n{state}");
        }
        let _ = writeln!(out, "\n{} events; {}", answer.events, answer.verdict);
        out
    })
}
