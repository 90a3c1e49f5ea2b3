//! `landfall sim`: the simulator as a command. What runs, and what is true, is the crate `sim`; here are files,
//! threads and what a person sees.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line |
//! | [`soak`] | many runs at a time |
//! | [`trace`] | the file that `replay` takes |

pub(crate) mod args;
mod soak;
mod trace;

use crate::exit::{Code, Failure};
use crate::human::{self, Form};
use ::sim::options::{DRAWN, Options, Stack};
use ::sim::report;
use ::sim::run::{Outcome, Verdict};
use ::sim::scenario::{self, Assertions, Scenario};
use ::sim::shrink::{Reduction, shrink};
use ::sim::trace::Keep;
use args::{Run, Shrink, Sim, Which};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The largest scenario file.
const MAX_SCENARIO_BYTES: u64 = 1 << 20;

pub(crate) fn run(command: &Sim, form: Form) -> Result<(), Failure> {
    match command {
        Sim::Run(arguments) => run_one(arguments, form),
        Sim::Soak(arguments) => soak::run(arguments, form),
        Sim::Shrink(arguments) => shrink_one(arguments, form),
        Sim::Replay(arguments) => trace::replay(arguments, form),
        Sim::Scenarios { name } => scenarios(name.as_deref(), form),
    }
}

/// What is run, with what its user asserts.
pub(crate) struct Subject {
    name: String,
    proves: String,
    assertions: Assertions,
    scenario: Option<Scenario>,
    /// Of a drawn run: whether it is a long one.
    long: bool,
    /// The scenario's text, for traces.
    text: Option<String>,
    /// Where the files are that it names.
    folder: PathBuf,
}

impl Subject {
    /// A scenario by its name or file; drawn runs without one.
    fn find(name: Option<&str>) -> Result<Subject, Failure> {
        let name = match name {
            None => return Ok(Subject::drawn(false)),
            Some(name) if name == DRAWN[0] => return Ok(Subject::drawn(false)),
            Some(name) if name == DRAWN[1] => return Ok(Subject::drawn(true)),
            Some(name) => name,
        };
        let text = match scenario::shipped(name) {
            Some(text) => return Subject::parse(name, text.to_owned(), Path::new("")),
            None => read(name)?,
        };
        Subject::parse(name, text, Path::new(name).parent().unwrap_or(Path::new("")))
    }

    fn drawn(long: bool) -> Subject {
        Subject {
            name: DRAWN[usize::from(long)].to_owned(),
            proves: "Disasters drawn from the seed.".to_owned(),
            assertions: Assertions::default(),
            scenario: None,
            long,
            text: None,
            folder: PathBuf::new(),
        }
    }

    /// Files that the scenario names are looked for in `folder`.
    fn parse(name: &str, text: String, folder: &Path) -> Result<Subject, Failure> {
        let load = |file: &str| recorded(&folder.join(file));
        let scenario = Scenario::parse_with(&text, &load)
            .map_err(|error| Failure::usage(format_args!("{name}:{error}")))?;
        Ok(Subject {
            name: scenario.name.clone(),
            proves: scenario.proves.clone(),
            assertions: scenario.assertions.clone(),
            scenario: Some(scenario),
            long: false,
            text: Some(text),
            folder: folder.to_owned(),
        })
    }

    fn options(&self, seed: u64, stack: Stack) -> Options {
        match (&self.scenario, stack) {
            (Some(scenario), Stack::Messages) => scenario.options(seed),
            (Some(scenario), Stack::Full) => scenario.options(seed).full_stack(),
            (None, Stack::Messages) if self.long => Options::swarm_long(seed),
            (None, Stack::Full) if self.long => Options::swarm_long_full_stack(seed),
            (None, Stack::Messages) => Options::swarm(seed),
            (None, Stack::Full) => Options::swarm_full_stack(seed),
        }
    }
}

fn read(name: &str) -> Result<String, Failure> {
    let path = Path::new(name);
    let missing = |error: std::io::Error| {
        let failure = Failure::usage(format_args!("scenario {name}: {error}"));
        match scenario::nearest(name, &scenario::NAMES) {
            Some(meant) => failure.next(format_args!("did you mean `{meant}`?")),
            None => failure.next("`landfall sim scenarios` lists those that are shipped"),
        }
    };
    let len = std::fs::metadata(path).map_err(missing)?.len();
    if len > MAX_SCENARIO_BYTES {
        return Err(Failure::usage(format_args!("{name}: {len} bytes are no scenario")));
    }
    std::fs::read_to_string(path).map_err(missing)
}

/// The text of a recorded workload.
fn recorded(path: &Path) -> Result<String, String> {
    let why = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let len = std::fs::metadata(path).map_err(why)?.len();
    if len > ::sim::recorded::MAX_BYTES {
        return Err(format!("{len} bytes; the largest is {}", ::sim::recorded::MAX_BYTES));
    }
    std::fs::read_to_string(path).map_err(why)
}

/// What the flag `--full-stack` means.
fn stack(full_stack: bool) -> Stack {
    if full_stack { Stack::Full } else { Stack::Messages }
}

impl Which {
    fn reduction(&self, options: &Options) -> Reduction {
        let mut reduction = Reduction::none(options);
        if let Some(events) = &self.only_events {
            reduction.events.clone_from(events);
        }
        if self.no_events {
            reduction.events.clear();
        }
        reduction.max_requests = self.requests.unwrap_or(reduction.max_requests);
        if let Some(ms) = self.faulty_ms {
            reduction.faulty = ::sim::clock::Span::from_ms(ms);
        }
        reduction
    }

    /// The command that repeats a run.
    fn command(&self, verb: &str, options: &Options, reduction: &Reduction) -> String {
        let mut command = format!("landfall sim {verb}");
        if let Some(scenario) = &self.scenario {
            let _ = write!(command, " --scenario {scenario}");
        }
        let _ = write!(command, " --seed {}", self.seed);
        if self.full_stack {
            command.push_str(" --full-stack");
        }
        let whole = Reduction::none(options);
        if reduction.events.is_empty() && !whole.events.is_empty() {
            command.push_str(" --no-events");
        } else if reduction.events != whole.events {
            let events: Vec<String> = reduction.events.iter().map(usize::to_string).collect();
            let _ = write!(command, " --only-events {}", events.join(","));
        }
        if reduction.max_requests != whole.max_requests {
            let _ = write!(command, " --requests {}", reduction.max_requests);
        }
        if reduction.faulty != whole.faulty {
            let _ = write!(command, " --faulty-ms {}", reduction.faulty.0.div_ceil(1_000_000));
        }
        command
    }
}

/// What `--json` prints of a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunJson {
    scenario: String,
    seed: u64,
    version: &'static str,
    verdict: String,
    class: String,
    broken_assertions: Vec<String>,
    trace_hash: String,
    virtual_seconds: f64,
    rpo_seconds: Option<f64>,
    rto_seconds: Option<f64>,
    lost_writes: u64,
    lost_bytes: u64,
    lag_bytes_max: u64,
    link_bytes: u64,
    writes: u64,
    repeat: String,
}

fn json(subject: &Subject, outcome: &Outcome, broken: &[String], repeat: String) -> RunJson {
    let seconds = |span: Option<::sim::clock::Span>| span.map(|span| span.0 as f64 / 1e9);
    let figures = &outcome.figures;
    RunJson {
        scenario: subject.name.clone(),
        seed: outcome.seed,
        version: env!("CARGO_PKG_VERSION"),
        verdict: outcome.verdict.to_string(),
        class: outcome.verdict.class().to_owned(),
        broken_assertions: broken.to_vec(),
        trace_hash: format!("{:016x}", outcome.hash),
        virtual_seconds: outcome.time.0 as f64 / 1e9,
        rpo_seconds: seconds(figures.rpo),
        rto_seconds: seconds(figures.rto),
        lost_writes: figures.lost_writes,
        lost_bytes: figures.lost_bytes,
        lag_bytes_max: figures.max_lag_bytes,
        link_bytes: figures.link_bytes,
        writes: figures.writes,
        repeat,
    }
}

/// The exit code of a verdict; `None` if all is well.
fn code_of(verdict: &Verdict, broken: &[String]) -> Option<Code> {
    match verdict {
        Verdict::Clean | Verdict::Stopped if broken.is_empty() => None,
        Verdict::NotConverged(_) => Some(Code::NotConverged),
        Verdict::Crashed(_) => Some(Code::Crashed),
        Verdict::Clean | Verdict::Stopped | Verdict::Broken(_) | Verdict::Error(_) => Some(Code::Broken),
    }
}

fn run_one(arguments: &Run, form: Form) -> Result<(), Failure> {
    let subject = Subject::find(arguments.which.scenario.as_deref())?;
    let whole = subject.options(arguments.which.seed, stack(arguments.which.full_stack));
    let reduction = arguments.which.reduction(&whole);
    let options = Options { keep: Keep::All, ..reduction.apply(&whole) };
    let outcome = ::sim::run::run(options.clone());
    let broken = subject.assertions.broken_by(&outcome);
    if let Some(path) = &arguments.trace {
        trace::write(path, &subject, options.stack, &reduction, &outcome)?;
    }
    if let Some(path) = &arguments.report {
        let page = report::html(&subject.name, &subject.proves, &options, &outcome, &broken);
        std::fs::write(path, page)
            .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    }
    let repeat = arguments.which.command("run", &whole, &reduction);
    let answer = json(&subject, &outcome, &broken, repeat.clone());
    human::answer(form, &answer, |_| text(&subject, &options, &outcome, &broken))?;
    match code_of(&outcome.verdict, &broken) {
        None => Ok(()),
        Some(code) => {
            Err(Failure::new(code, &outcome.verdict).next(format_args!("repeat it with `{repeat}`")))
        }
    }
}

/// The timeline, the verdict, the figures.
fn text(subject: &Subject, options: &Options, outcome: &Outcome, broken: &[String]) -> String {
    let mut out = format!(
        "{} · seed {} · landfall {}\n{}\n\n",
        subject.name,
        outcome.seed,
        env!("CARGO_PKG_VERSION"),
        subject.proves
    );
    for event in outcome.trace.iter().filter(|event| report::matters(event)) {
        let line = report::line(event, options);
        let _ = writeln!(out, "{line}");
    }
    let figures = &outcome.figures;
    let seconds = |span: Option<::sim::clock::Span>| match span {
        Some(span) => format!("{:.3} s", span.0 as f64 / 1e9),
        None => "-".to_owned(),
    };
    let rows = [
        ("RPO", seconds(figures.rpo)),
        ("RTO", seconds(figures.rto)),
        ("lost", format!("{} writes, {} bytes", figures.lost_writes, figures.lost_bytes)),
        ("largest lag", format!("{} bytes of log", figures.max_lag_bytes)),
        ("over the links", format!("{} bytes", figures.link_bytes)),
        ("answered writes", figures.writes.to_string()),
        ("virtual time", seconds(Some(::sim::clock::Span(outcome.time.0)))),
        ("trace hash", format!("{:016x}", outcome.hash)),
    ];
    out.push('\n');
    for (name, value) in rows {
        let _ = writeln!(out, "  {name:<16} {value}");
    }
    for assertion in broken {
        let _ = writeln!(out, "  assertion broken: {assertion}");
    }
    let _ = writeln!(out, "\n{}", outcome.verdict);
    out
}

#[derive(Debug, Serialize)]
struct ShrinkJson {
    class: String,
    events: Vec<usize>,
    requests: u64,
    faulty_ms: u64,
    repeat: String,
}

fn shrink_one(arguments: &Shrink, form: Form) -> Result<(), Failure> {
    let subject = Subject::find(arguments.which.scenario.as_deref())?;
    let whole = subject.options(arguments.which.seed, stack(arguments.which.full_stack));
    let options = arguments.which.reduction(&whole).apply(&whole);
    let outcome = ::sim::run::run(options.clone());
    let class = outcome.verdict.class().to_owned();
    if outcome.verdict.is_clean() {
        return Err(Failure::new(Code::Refused, "this run is clean: there is nothing to shrink"));
    }
    let mut last = std::time::Instant::now();
    let (reduction, _) = shrink(&options, &class, arguments.runs, |runs, best| {
        if last.elapsed().as_secs() >= 2 {
            last = std::time::Instant::now();
            human::say(format_args!(
                "  {runs} runs; {} events, {} requests left",
                best.events.len(),
                best.max_requests
            ));
        }
    });
    let kept = match &arguments.which.only_events {
        Some(kept) => kept.clone(),
        None => (0..whole.events.len()).collect(),
    };
    let events = reduction.events.iter().filter_map(|index| kept.get(*index)).copied().collect();
    let reduction = Reduction { events, ..reduction };
    let repeat = arguments.which.command("run", &whole, &reduction);
    let answer = ShrinkJson {
        class,
        events: reduction.events.clone(),
        requests: reduction.max_requests,
        faulty_ms: reduction.faulty.0 / 1_000_000,
        repeat: repeat.clone(),
    };
    human::answer(form, &answer, |answer| {
        format!(
            "{} still with {} events, {} requests, {} ms:\n  {repeat}\n",
            answer.class,
            answer.events.len(),
            answer.requests,
            answer.faulty_ms
        )
    })
}

#[derive(Debug, Serialize)]
struct ScenarioJson {
    name: String,
    proves: String,
}

fn scenarios(name: Option<&str>, form: Form) -> Result<(), Failure> {
    if let Some(name) = name {
        let subject = Subject::find(Some(name))?;
        let text = subject.text.unwrap_or_default();
        return human::answer(form, &ScenarioJson { name: subject.name, proves: subject.proves }, |_| text);
    }
    let mut list = Vec::new();
    for name in scenario::NAMES {
        let subject = Subject::find(Some(name))?;
        list.push(ScenarioJson { name: subject.name, proves: subject.proves });
    }
    human::answer(form, &list, |list| {
        list.iter().map(|scenario| format!("{:<22} {}\n", scenario.name, scenario.proves)).collect()
    })
}
