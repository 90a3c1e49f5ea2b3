//! `landfall bisect`: the first bad write between a good and a bad point, by a check of the operator's own.
//!
//! Each candidate is a writable mount of its own, so that a check may replay a journal or start a database on it. The
//! good and the bad point stay mounted to the end: what lies between them is not retired meanwhile. LSNs within sync
//! spans are no points, and no candidates.

mod search;

use crate::args::{self, Global};
use crate::control::Client;
use crate::control::api::{Access, At, Mount, MountRequest, Record, Span};
use crate::drill::script::{self, Ended, Interrupted};
use crate::exit::{Context, Failure};
use crate::human::{self, clean};
use crate::point::Point;
use crate::signal::Signals;
use crate::time;
use crate::units::{Bytes, count, duration_ms};
use engine::types::Lsn;
use search::{Judged, Search};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::Instant;

/// The exit status of a check that cannot judge.
const SKIP: i32 = 125;
/// The last exit status that means bad; above it, shells tell of signals.
const LAST_BAD: i32 = 127;

/// What a search has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Found {
    group: String,
    /// The last that is good.
    good: At,
    /// The first that is known to be bad.
    bad: At,
    /// Candidates between them that could not be judged; if there are none, `bad` is the first bad one.
    unjudged: u64,
    /// What was written at `bad`.
    record: Record,
    /// What the check said of it, the end.
    output: String,
    tests: Vec<Test>,
    took_ms: u64,
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Test {
    #[serde(with = "crate::control::api::lsn")]
    lsn: Lsn,
    judged: &'static str,
    took_ms: u64,
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Bisect) -> Result<(), Failure> {
    let begun = Instant::now();
    let interrupted = script::interrupted(Signals::take()?).context(|| "signals cannot be taken")?;
    let group = &arguments.group;
    if arguments.good.branch.or(arguments.bad.branch).is_some() {
        return Err(Failure::usage("a bisection goes along the line, not along a branch"));
    }
    let mut client = global.connect()?;
    let mut pin = |at: Point| client.mount(MountRequest::read_only(group, at));
    let (good, bad) = (pin(arguments.good.clone())?, pin(arguments.bad.clone())?);
    if good.at.lsn >= bad.at.lsn {
        return Err(Failure::usage(format_args!(
            "--good is LSN {}, and --bad LSN {}: the good point is the older one",
            good.at.lsn, bad.at.lsn
        )));
    }
    let points = client.points(group)?;
    if points.window.is_some_and(|window| good.at.lsn < window.horizon.lsn) {
        return Err(Failure::refused(format_args!(
            "--good is LSN {}, a mark kept behind the window: what was written since is known for the window alone",
            good.at.lsn
        ))
        .next("take a good point of the window, or try kept marks one by one with `landfall drill run`"));
    }
    let line = Line::new(good.at.lsn, bad.at.lsn, &points.spans);
    let mut bench = Bench { global, arguments, interrupted, tests: Vec::new(), outputs: BTreeMap::new() };
    bench.check_ends(&good, &bad)?;

    let mut search = Search::new(0, line.len() - 1);
    loop {
        let next = search.next(u64::from(arguments.jobs));
        if next.is_empty() {
            break;
        }
        let lsns: Vec<Lsn> = next.iter().map(|index| line.at(*index)).collect();
        let judged = bench.judge(&lsns)?;
        search.tell(judged.into_iter().zip(next).collect());
        human::say(format_args!(
            "between LSN {} and LSN {}: {} left",
            line.at(search.good()),
            line.at(search.bad()),
            count(search.left())
        ));
    }
    let (last_good, first_bad) = (line.at(search.good()), line.at(search.bad()));
    let record = client.record(group, first_bad)?;
    let found = Found {
        group: group.clone(),
        good: client.record(group, last_good)?.at,
        bad: record.at,
        unjudged: search.bad() - search.good() - 1,
        record,
        output: bench.outputs.remove(&first_bad).unwrap_or_default(),
        tests: bench.tests,
        took_ms: begun.elapsed().as_millis() as u64,
    };
    human::answer(global.form(), &found, text)?;
    match found.unjudged {
        0 => Ok(()),
        unjudged => Err(Failure::failed(format_args!(
            "group {group}: the first bad write is one of {}: the check could not judge what lies between",
            count(unjudged + 1)
        ))),
    }
}

/// The candidates: the points from the good one to the bad one, counted from 0.
struct Line(Vec<(Lsn, Lsn)>);

impl Line {
    fn new(good: Lsn, bad: Lsn, spans: &[Span]) -> Line {
        let mut ranges = Vec::new();
        let mut from = good;
        for span in spans.iter().filter(|span| span.first.lsn > good && span.first.lsn <= bad) {
            if from < span.first.lsn {
                ranges.push((from, span.first.lsn.prev()));
            }
            from = from.max(span.end.map_or(bad, |end| end.lsn));
        }
        if from <= bad {
            ranges.push((from, bad));
        }
        Line(ranges)
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to.0 - from.0 + 1).sum()
    }

    fn at(&self, mut index: u64) -> Lsn {
        for (from, to) in &self.0 {
            let len = to.0 - from.0 + 1;
            if index < len {
                return Lsn(from.0 + index);
            }
            index -= len;
        }
        unreachable!("a candidate is one of the line")
    }
}

/// Where candidates are tested.
struct Bench<'a> {
    global: &'a Global,
    arguments: &'a args::Bisect,
    interrupted: Interrupted,
    tests: Vec<Test>,
    /// What the check said of what it found bad.
    outputs: BTreeMap<Lsn, String>,
}

/// What became of one candidate.
struct Tested {
    judged: Judged,
    ended: Ended,
    output: String,
    took_ms: u64,
}

impl Bench<'_> {
    /// The good point has to be good and the bad one bad, or there is nothing to be found.
    fn check_ends(&mut self, good: &Mount, bad: &Mount) -> Result<(), Failure> {
        let judged = self.judge(&[good.at.lsn])?[0];
        if judged != Judged::Good {
            let output = self.outputs.remove(&good.at.lsn).unwrap_or_default();
            return Err(Failure::corrupt(format_args!(
                "LSN {}, which should be good, is {}{}",
                good.at.lsn,
                name(judged),
                said(&output)
            ))
            .next("name an older point with --good, or look whether the check is right"));
        }
        let judged = self.judge(&[bad.at.lsn])?[0];
        if judged != Judged::Bad {
            return Err(Failure::corrupt(format_args!(
                "LSN {}, which should be bad, is {}",
                bad.at.lsn,
                name(judged)
            ))
            .next("name a newer point with --bad, or look whether the check is right"));
        }
        Ok(())
    }

    /// Tests candidates at once.
    fn judge(&mut self, lsns: &[Lsn]) -> Result<Vec<Judged>, Failure> {
        let this = &*self;
        let tested: Vec<Result<Tested, Failure>> = thread::scope(|scope| {
            let started: Vec<_> = lsns.iter().map(|lsn| scope.spawn(|| this.test(*lsn))).collect();
            started.into_iter().map(|test| test.join().expect("a test does not panic")).collect()
        });
        let mut all = Vec::with_capacity(lsns.len());
        for (lsn, tested) in lsns.iter().zip(tested) {
            let Tested { judged, ended, output, took_ms } = tested?;
            human::say(format_args!("LSN {lsn}: {}, {ended}", name(judged)));
            self.tests.push(Test { lsn: *lsn, judged: name(judged), took_ms });
            if judged != Judged::Good {
                self.outputs.insert(*lsn, output);
            }
            all.push(judged);
        }
        Ok(all)
    }

    fn test(&self, lsn: Lsn) -> Result<Tested, Failure> {
        let begun = Instant::now();
        let arguments = self.arguments;
        // A connection of its own: the mount goes with it, whatever happens here.
        let mut client: Client = self.global.connect()?;
        let mounted = client.mount(MountRequest {
            access: Access::Writable { scratch_bytes: arguments.scratch.0 },
            ..MountRequest::read_only(&arguments.group, Point::lsn(lsn, None))
        })?;
        let command = script::command(&arguments.script, &mounted);
        let outcome = script::run(command, arguments.timeout, &self.interrupted).map_err(|error| {
            let program = Path::new(&arguments.script[0]).display();
            Failure::usage(format_args!("{program} cannot be run: {error}"))
                .next("name a program that is there, with a path to it, and that may be executed")
        })?;
        client.unmount(mounted.mount)?;
        let judged = match outcome.ended {
            Ended::Exit(0) => Judged::Good,
            Ended::Exit(SKIP) => Judged::Skip,
            Ended::Exit(1..=LAST_BAD) => Judged::Bad,
            Ended::Interrupted => return Err(Failure::failed("interrupted; nothing was changed")),
            other => {
                return Err(Failure::failed(format_args!(
                    "the check of LSN {lsn} did not judge: {other}{}",
                    said(&outcome.output)
                ))
                .next("0 is good, 125 cannot be judged, 1 to 127 is bad; more ends the search"));
            }
        };
        let took_ms = begun.elapsed().as_millis() as u64;
        Ok(Tested { judged, ended: outcome.ended, output: outcome.output, took_ms })
    }
}

fn name(judged: Judged) -> &'static str {
    match judged {
        Judged::Good => "good",
        Judged::Bad => "bad",
        Judged::Skip => "not to be judged",
    }
}

/// The last line of what a check said, behind a message.
fn said(output: &str) -> String {
    output.lines().last().map_or_else(String::new, |line| format!("; it said: {}", clean(line)))
}

fn text(found: &Found) -> String {
    let Found { group, good, bad, unjudged, record, tests, took_ms, .. } = found;
    let when = |at: &At| format!("LSN {}, {}", at.lsn, time::format(at.time.0));
    let mut out = match unjudged {
        0 => format!("group {}: the first bad write is {}\n", clean(group), when(bad)),
        unjudged => format!(
            "group {}: the first bad write is {} or one of the {} before it, which could not be judged\n",
            clean(group),
            when(bad),
            count(*unjudged)
        ),
    };
    let _ = match &record.volume {
        Some(volume) => writeln!(
            out,
            "  {} of volume {}: {} at byte {}, in epoch {}",
            clean(&record.kind),
            clean(volume),
            Bytes(record.len_bytes),
            record.offset_bytes,
            record.epoch
        ),
        None => writeln!(out, "  {} of the group, in epoch {}", clean(&record.kind), record.epoch),
    };
    let _ = writeln!(out, "  the last good point is {}", when(good));
    let _ = writeln!(out, "  {} tests, {}", tests.len(), duration_ms(*took_ms));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Moment;
    use engine::types::{Epoch, Timestamp};

    fn at(lsn: u64) -> At {
        At { lsn: Lsn(lsn), time: Moment(Timestamp(1_751_373_296_789_000_000)) }
    }

    #[test]
    fn sync_spans_hold_no_candidates() {
        let span = |first, end: Option<u64>| Span { first: at(first), end: end.map(at) };
        let spans = [span(3, Some(5)), span(20, Some(25)), span(25, Some(27)), span(90, None)];
        let line = Line::new(Lsn(10), Lsn(30), &spans);
        let all: Vec<u64> = (0..line.len()).map(|index| line.at(index).0).collect();
        let expected: Vec<u64> = (10..20).chain(27..=30).collect();
        assert_eq!(all, expected);
        assert_eq!(Line::new(Lsn(1), Lsn(2), &[]).len(), 2);
    }

    #[test]
    fn what_was_found_reads_well() {
        let record = Record {
            at: at(1234),
            epoch: Epoch(2),
            kind: "write".to_owned(),
            volume: Some("data".to_owned()),
            offset_bytes: 49_152,
            len_bytes: 16 << 10,
        };
        let mut found = Found {
            group: "db".to_owned(),
            good: at(1233),
            bad: at(1234),
            unjudged: 0,
            record,
            output: String::new(),
            tests: vec![Test { lsn: Lsn(1233), judged: "good", took_ms: 1 }],
            took_ms: 3_400,
        };
        let expected = "\
group db: the first bad write is LSN 1234, 2025-07-01T12:34:56.789Z
  write of volume data: 16 KiB at byte 49152, in epoch 2
  the last good point is LSN 1233, 2025-07-01T12:34:56.789Z
  1 tests, 3.40s
";
        assert_eq!(text(&found), expected);
        found.unjudged = 7;
        assert!(text(&found).contains("or one of the 7 before it, which could not be judged"));
    }
}
