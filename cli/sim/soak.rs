//! `landfall sim soak`: runs side by side, each alone in its thread, until a time or a seed is reached or somebody
//! presses Ctrl-C. Whichever it was, the report is written.

use super::args::Soak;
use super::{Subject, code_of, stack};
use crate::exit::{Code, Failure};
use crate::human::{self, Form};
use crate::signal::Signals;
use ::sim::options::{Event, RARE};
use ::sim::run::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One run in so many is done twice, and its trace hashes compared.
const TWICE_EVERY: u64 = 50;
/// The most failures that are listed.
const MAX_FAILURES: usize = 1_000;

#[derive(Clone, Debug, Serialize)]
struct Failed {
    seed: u64,
    class: String,
    verdict: String,
    repeat: String,
    #[serde(skip)]
    code: Option<Code>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    scenario: String,
    seeds: u64,
    repeated: u64,
    wall_seconds: f64,
    virtual_seconds: f64,
    seeds_per_second: f64,
    never_happened: Vec<String>,
    failures: Vec<Failed>,
    counters: BTreeMap<String, u64>,
}

/// What the threads share.
struct Shared<'a> {
    subject: &'a Subject,
    arguments: &'a Soak,
    next: AtomicU64,
    last: u64,
    stop: AtomicBool,
    done: AtomicU64,
    report: Mutex<Report>,
}

pub(super) fn run(arguments: &Soak, form: Form) -> Result<(), Failure> {
    let subject = Subject::find(arguments.scenario.as_deref())?;
    let minutes = match (arguments.minutes, arguments.seeds) {
        (None, None) => Some(1.0),
        (minutes, _) => minutes,
    };
    let (first, last) = arguments.seeds.unwrap_or((1, u64::MAX));
    let shared = Shared {
        subject: &subject,
        arguments,
        next: AtomicU64::new(first),
        last,
        stop: AtomicBool::new(false),
        done: AtomicU64::new(0),
        report: Mutex::new(Report { scenario: subject.name.clone(), ..Report::default() }),
    };
    let signals = Signals::take()?;
    let started = Instant::now();
    let deadline = minutes.map(|minutes| Duration::from_secs_f64((minutes * 60.0).clamp(0.0, 1e7)));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs).map(|_| scope.spawn(|| shared.work())).collect();
        let mut said = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            let signal = signals.wait_for(Duration::from_millis(200));
            if signal.is_some() || deadline.is_some_and(|deadline| started.elapsed() >= deadline) {
                shared.stop.store(true, Ordering::Relaxed);
            }
            let often = if std::io::stderr().is_terminal() { 1 } else { 10 };
            if said.elapsed().as_secs() >= often {
                said = Instant::now();
                shared.say(started.elapsed(), deadline, first);
            }
        }
    });
    let mut report = shared.report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.wall_seconds = started.elapsed().as_secs_f64();
    report.seeds_per_second = report.seeds as f64 / report.wall_seconds.max(1e-3);
    if subject.scenario.is_none() {
        let events = Event::NAMES.iter().map(|name| format!("event: {name}"));
        let wanted = events.chain(RARE.iter().map(|name| (*name).to_owned()));
        report.never_happened =
            wanted.filter(|name| report.counters.get(name).is_none_or(|count| *count == 0)).collect();
    }
    if let Some(path) = &arguments.junit {
        std::fs::write(path, junit(&report))
            .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    }
    human::answer(form, &report, text)?;
    let worst = report.failures.iter().filter_map(|failed| failed.code).min_by_key(|code| code.status());
    match (worst, report.failures.first()) {
        (Some(code), Some(failed)) => {
            let what = format!("{} of {} runs failed", report.failures.len(), report.seeds);
            Err(Failure::new(code, what).next(format_args!("repeat the first with `{}`", failed.repeat)))
        }
        _ if arguments.strict && !report.never_happened.is_empty() => {
            let what = format!("never happened: {}", report.never_happened.join(", "));
            Err(Failure::new(Code::NotCovered, what).next("soak longer, or over more seeds"))
        }
        _ => Ok(()),
    }
}

impl Shared<'_> {
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.last {
                return;
            }
            self.one(seed);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn one(&self, seed: u64) {
        let stack = stack(self.arguments.full_stack);
        let outcome = ::sim::run::run(self.subject.options(seed, stack));
        let broken = self.subject.assertions.broken_by(&outcome);
        let twice = seed.is_multiple_of(TWICE_EVERY);
        let again = twice.then(|| ::sim::run::run(self.subject.options(seed, stack)).hash);
        let mut repeat = match &self.arguments.scenario {
            Some(name) => format!("landfall sim run --scenario {name} --seed {seed}"),
            None => format!("landfall sim run --seed {seed}"),
        };
        if self.arguments.full_stack {
            repeat.push_str(" --full-stack");
        }
        let mut failed = None;
        if let Some(code) = code_of(&outcome.verdict, &broken) {
            let (class, verdict) = match (&outcome.verdict, broken.first()) {
                (Verdict::Clean, Some(assertion)) => ("assertion".to_owned(), assertion.clone()),
                (verdict, _) => (verdict.class().to_owned(), verdict.to_string()),
            };
            failed = Some(Failed { seed, class, verdict, repeat, code: Some(code) });
        } else if again.is_some_and(|again| again != outcome.hash) {
            let verdict = "the same seed gave two different runs".to_owned();
            let class = "determinism".to_owned();
            failed = Some(Failed { seed, class, verdict, repeat, code: Some(Code::Broken) });
        }
        let mut report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        report.seeds += 1;
        report.repeated += u64::from(twice);
        report.virtual_seconds += outcome.time.0 as f64 / 1e9;
        for (name, count) in outcome.counters {
            *report.counters.entry(name).or_default() += count;
        }
        if let Some(failed) = failed {
            human::say(format_args!("  seed {}: {}\n    {}", failed.seed, failed.verdict, failed.repeat));
            if report.failures.len() < MAX_FAILURES {
                report.failures.push(failed);
            }
        }
    }

    fn say(&self, elapsed: Duration, deadline: Option<Duration>, first: u64) {
        let done = self.done.load(Ordering::Relaxed);
        let report = self.report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let left = match deadline {
            Some(deadline) => deadline.saturating_sub(elapsed).as_secs_f64(),
            None => (self.last - first).saturating_sub(done) as f64 * seconds / (done as f64).max(1.0),
        };
        human::say(format_args!(
            "  {done} seeds, {:.1} a second; {:.0} virtual seconds a second; {} failed; {left:.0} s left",
            done as f64 / seconds,
            report.virtual_seconds / seconds,
            report.failures.len()
        ));
    }
}

fn text(report: &Report) -> String {
    let mut out = format!(
        "{}: {} seeds in {:.1} s ({:.1} a second), {:.0} virtual seconds, {} of them done twice\n\n",
        report.scenario,
        report.seeds,
        report.wall_seconds,
        report.seeds_per_second,
        report.virtual_seconds,
        report.repeated
    );
    for (name, count) in &report.counters {
        let _ = writeln!(out, "  {count:>12}  {name}");
    }
    if !report.never_happened.is_empty() {
        let _ = writeln!(out, "\nnever happened: {}", report.never_happened.join(", "));
    }
    let _ = writeln!(out, "\n{} failed", report.failures.len());
    for failed in &report.failures {
        let _ = writeln!(out, "  seed {}: {}\n    {}", failed.seed, failed.verdict, failed.repeat);
    }
    out
}

/// One test case for each failure, and one for all that passed.
fn junit(report: &Report) -> String {
    let escape = |text: &str| {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"landfall sim {}\" tests=\"{}\" \
         failures=\"{}\" time=\"{:.3}\">\n",
        escape(&report.scenario),
        report.failures.len() + 1,
        report.failures.len(),
        report.wall_seconds
    );
    let passed = report.seeds - (report.failures.len() as u64).min(report.seeds);
    let _ = writeln!(xml, "<testcase classname=\"sim\" name=\"{passed} clean seeds\"/>");
    for failed in &report.failures {
        let _ = writeln!(
            xml,
            "<testcase classname=\"sim\" name=\"seed {}\"><failure type=\"{}\" message=\"{}\">{}</failure></testcase>",
            failed.seed,
            escape(&failed.class),
            escape(&failed.verdict),
            escape(&failed.repeat)
        );
    }
    xml.push_str("</testsuite>\n</testsuites>\n");
    xml
}
