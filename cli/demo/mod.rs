//! `landfall demo`: the whole promise on one machine, with real processes, sockets and files.
//!
//! Two nodes with fresh identities; a filesystem and a journal on a protected group of two volumes, written over
//! NBD by two connections at full depth; SIGKILL for the primary in mid-write; failover to the replica; and then
//! the judgement, by a record that the demo kept for itself.
//!
//! | module | what it is |
//! |---|---|
//! | [`nodes`] | folders, configurations and processes of the two nodes |
//! | [`content`] | files, pages and the journal that names them |
//! | [`volume`], [`workload`] | writing them, with everything on record |
//! | [`history`] | the record, and what is an exact prefix of it |
//! | [`check`] | reading points back and judging them |
//! | [`image`] | the user's own disk image |
//! | [`report`] | what came of it |
//!
//! What is checked of each recovery point:
//! - each volume is, byte for byte, the state after some first k of its writes;
//! - the two states are of one moment: nothing is missing that was acknowledged before something that is there
//!   was sent;
//! - its position fits: what was acknowledged before the position was asked for is there, and nothing that was
//!   sent later;
//! - the filesystem opens, and each file that the journal names is there and whole.

mod check;
mod content;
#[cfg(test)]
mod fake;
mod history;
mod image;
mod nodes;
mod report;
mod volume;
mod workload;

use crate::args::{self, Global};
use crate::certs::Authority;
use crate::control::Client;
use crate::control::api::{At, Failover, LinkState, MountRequest, Promotion, State};
use crate::exit::{Context, Failure};
use crate::human::{self, say};
use crate::point::{Point, Which};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::time;
use crate::units::{Bytes, count, duration_ms};
use check::{Served, Verdict, judge, patiently};
use content::Random;
use engine::types::{Lsn, Timestamp};
use history::{History, Prefix};
use nodes::{FILES, GROUP, IMAGE, JOURNAL, Launcher, Node, OwnExecutable, PRIMARY, REPLICA};
use report::{Check, Report, Rpo};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use workload::{Prepared, Running};

/// How long the load goes without pauses before the kill.
const ALL_OUT: Duration = Duration::from_millis(400);

/// How often a position is noted while the load runs.
const SAMPLE_EVERY: Duration = Duration::from_millis(150);

/// How long a promoted volume may take to be served.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is played.
struct Options {
    /// The user's own image, and the size of a volume that takes it.
    image: Option<(PathBuf, u64)>,
    /// How long the load runs before it goes all out.
    load: Duration,
    /// Size of the volume with the filesystem.
    files_bytes: u64,
    /// Size of the volume with the journal and the pages.
    journal_bytes: u64,
}

/// Carries it out. Code 4 if a check fails.
pub(crate) fn run(global: &Global, arguments: &args::Demo) -> Result<(), Failure> {
    // What cannot be played is said before anything is made.
    let image_bytes = arguments.image.as_deref().map(image::volume_bytes).transpose()?;
    let mut scratch = match &arguments.dir {
        Some(dir) => Scratch::at(dir)?,
        None => Scratch::new("demo")?,
    };
    if arguments.keep {
        scratch.keep();
    }
    let options = Options {
        image: arguments.image.clone().zip(image_bytes),
        load: Duration::from_secs(arguments.seconds),
        files_bytes: 48 << 20,
        journal_bytes: 32 << 20,
    };
    let result = play(&OwnExecutable, scratch.path(), &options);
    let good = result.as_ref().is_ok_and(Report::ok);
    if !good {
        // What went wrong is in there.
        scratch.keep();
    }
    let kept = scratch.kept().then(|| scratch.path().to_owned());
    let report = result.map_err(|failure| match &kept {
        Some(dir) => failure.next(format_args!("the nodes' folders and logs are kept in {}", dir.display())),
        None => failure,
    })?;
    human::answer(global.form(), &Report { dir: kept, ..report }, Report::text)?;
    if good { Ok(()) } else { Err(Failure::corrupt("a check failed; it is marked above")) }
}

/// Tells what goes on, with the time since the start.
struct Story {
    started: Instant,
}

impl Story {
    fn tell(&self, text: impl std::fmt::Display) {
        let ms = self.started.elapsed().as_millis();
        say(format_args!("[{:>3}.{:01}s] {text}", ms / 1_000, ms % 1_000 / 100));
    }
}

/// A position of the group's log while the load ran, and what it must and can show.
#[derive(Clone, Copy, Debug)]
struct Sample {
    lsn: Lsn,
    time: Timestamp,
    /// Of each volume: writes acknowledged before the position was asked for.
    least: [usize; 2],
    /// Writes submitted by the time that it was told.
    most: [usize; 2],
}

impl Sample {
    fn ranges(&self) -> [Range<usize>; 2] {
        [self.least[0]..self.most[0], self.least[1]..self.most[1]]
    }
}

fn play(launcher: &dyn Launcher, dir: &Path, options: &Options) -> Result<Report, Failure> {
    let story = Story { started: Instant::now() };
    story.tell(format_args!("two nodes in {}: identities, configurations, processes", dir.display()));
    let authority = Authority::ensure(&dir.join("ca"))?.0;
    let mut west = Node::start(launcher, dir, &authority, REPLICA, &nodes::replica_group())?;
    let listen = west.wait("the start", |status| status.node.listen)?;
    let mut volumes = vec![(FILES, options.files_bytes), (JOURNAL, options.journal_bytes)];
    volumes.extend(options.image.iter().map(|(_, bytes)| (IMAGE, *bytes)));
    let group = nodes::primary_group(listen, &volumes);
    let mut east = Node::start(launcher, dir, &authority, PRIMARY, &group)?;
    let (endpoint, volumes) = east.wait("the connection to the replica", |status| {
        let group = status.groups.into_iter().find(|group| group.name == GROUP)?;
        let connected = group.replicas.iter().any(|replica| replica.link.state == LinkState::Connected);
        (group.state == State::Serving && connected).then_some(())?;
        Some((status.node.nbd.into_iter().next()?, group.volumes))
    })?;
    let volume = |name| Served::find(&endpoint, &volumes, name);

    if let Some((path, _)) = &options.image {
        let copied = image::copy(path, &volume(IMAGE)?)?;
        story.tell(format_args!("{} copied onto a protected volume: {}", path.display(), Bytes(copied)));
    }
    let prepared = Prepared::new(volume(FILES)?.connect()?, volume(JOURNAL)?.connect()?)?;
    let mut samples = vec![sample(&east, &prepared.counters()?)?];
    story.tell(format_args!(
        "a FAT filesystem with {} files on one volume, a journal on the other: {} writes",
        content::Batch::first().files.len(),
        count(samples[0].most.iter().map(|writes| *writes as u64).sum())
    ));

    let running = prepared.run(options.load.as_secs())?;
    story.tell(format_args!(
        "writing to both for {}, up to {} in flight on each",
        duration_ms(u64::try_from(options.load.as_millis()).unwrap_or(u64::MAX)),
        workload::DEPTH
    ));
    let running = load(&east, running, options.load, &mut samples)?;
    let killed = Instant::now();
    east.kill()?;
    story.tell("SIGKILL for the primary, in mid-write");
    let [(files, files_end), (journal, journal_end)] = running.end()?;
    tracing::debug!(%files_end, %journal_end, "the load ended");
    let histories = [&files, &journal];

    let mut control = west.control()?;
    let promotion = fail_over(&mut control)?;
    let endpoint = promotion.nbd.first().ok_or_else(|| Failure::failed("the promoted node serves no NBD"))?;
    let volume = |name| Served::find(endpoint, &promotion.volumes, name);
    let served = [volume(FILES)?, volume(JOURNAL)?];
    touch(&served[0])?;
    let rto = killed.elapsed();
    story.tell(format_args!(
        "failed over to LSN {}, epoch {}; reads and writes go on after {}",
        promotion.to.lsn,
        promotion.epoch,
        milliseconds(rto)
    ));

    let mut checks = Vec::new();
    let state = judge_state(&served, histories, promotion.to, &samples)?;
    let prefixes = match &state {
        Ok(verdict) => verdict.prefixes,
        // Nothing can be said of losses then; the check below fails in any case.
        Err(_) => histories.map(|history| Prefix { shortest: history.len(), longest: history.len() }),
    };
    let taken_over = state.as_ref().map(|verdict| verdict.prefixes).ok();
    checks.push(Check::of("the state that was taken over", state.map(|verdict| words(&verdict))));
    if let Some((path, _)) = &options.image {
        checks.push(Check::of("your image, byte for byte", compare(path, &volume(IMAGE)?)?));
    }
    checks.push(Check::of("new writes on the promoted volumes", write_and_read_back(&served[1])?));
    story.tell("reading older points");
    checks.extend(older_points(&mut control, histories, promotion.to, &samples, taken_over)?);

    let (writes, bytes) = sum(histories.map(History::acknowledged));
    let submitted = histories.iter().map(|history| history.len() as u64).sum::<u64>();
    Ok(Report {
        writes,
        bytes,
        in_flight: submitted - writes,
        rpo: rpo(histories, prefixes, killed),
        rto_ms: milliseconds_of(rto),
        failover_ms: promotion.took_ms,
        checks,
        dir: None,
    })
}

/// Lets the load run, notes positions, and ends with everything in flight that can be.
fn load(
    east: &Node,
    running: Running,
    how_long: Duration,
    samples: &mut Vec<Sample>,
) -> Result<Running, Failure> {
    let mut progress = Progress::milliseconds("writing", milliseconds_of(how_long + ALL_OUT));
    let started = Instant::now();
    let mut seen = 0;
    loop {
        if running.is_over() {
            let ends = running.end()?.map(|(_, end)| end.to_string());
            return Err(Failure::failed(format_args!(
                "the primary stopped taking writes before anyone killed it: {}; {}",
                ends[0], ends[1]
            )));
        }
        let elapsed = started.elapsed();
        progress.add(milliseconds_of(elapsed) - seen);
        seen = milliseconds_of(elapsed);
        if elapsed >= how_long + ALL_OUT {
            return Ok(running);
        }
        if elapsed >= how_long {
            running.all_out();
        }
        samples.push(sample(east, running.counters())?);
        std::thread::sleep(SAMPLE_EVERY.min((how_long + ALL_OUT).saturating_sub(elapsed)));
    }
}

/// Notes the newest position, between two looks at what was written.
fn sample(east: &Node, counters: &[std::sync::Arc<volume::Counters>; 2]) -> Result<Sample, Failure> {
    let each = |count: fn(&volume::Counters) -> usize| [count(&counters[0]), count(&counters[1])];
    let least = each(volume::Counters::acknowledged);
    let time = time::now();
    let status = east.control()?.status()?;
    let group = status.groups.iter().find(|group| group.name == GROUP);
    let lsn = group.ok_or_else(|| Failure::failed("the primary does not know its group"))?.positions.appended;
    Ok(Sample { lsn, time, least, most: each(volume::Counters::submitted) })
}

fn fail_over(control: &mut Client) -> Result<Promotion, Failure> {
    let plan = control.plan_failover(GROUP, Point::LATEST)?;
    control.failover(Failover { group: plan.group, to: plan.to.lsn, branch: None, epoch: plan.epoch })
}

/// Reads the first sector, writes the same again and flushes: the disk is back in use, and unchanged.
fn touch(served: &Served) -> Result<(), Failure> {
    let mut client = patiently(PATIENCE, || served.connect())?;
    let mut sector = [0; 512];
    let mut touch = || {
        client.read(0, &mut sector)?;
        client.write(0, &sector)?;
        client.flush()
    };
    touch().context(|| format!("{} does not take reads and writes", served.export))
}

/// Judges what the volumes hold at a position, by what the samples around it allow.
fn judge_state(
    served: &[Served; 2],
    histories: [&History; 2],
    at: At,
    samples: &[Sample],
) -> Result<Result<Verdict, String>, Failure> {
    let mut ranges = histories.map(|history| 0..history.len());
    for sample in samples {
        for (volume, range) in ranges.iter_mut().enumerate() {
            if sample.lsn <= at.lsn {
                range.start = range.start.max(sample.least[volume]);
            }
            if sample.lsn >= at.lsn {
                range.end = range.end.min(sample.most[volume]);
            }
        }
    }
    let images = [served[0].image()?, served[1].image()?];
    Ok(judge(histories, &images, &ranges))
}

/// Opens points before the failover, read-only, and judges each.
fn older_points(
    control: &mut Client,
    histories: [&History; 2],
    latest: At,
    samples: &[Sample],
    taken_over: Option<[Prefix; 2]>,
) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    let (quiet, live) = samples.split_first().expect("the first sample was taken before the load");
    let live: Vec<&Sample> = live.iter().filter(|sample| sample.lsn < latest.lsn).collect();
    let before = point(control, histories, Point::lsn(quiet.lsn, None), &quiet.ranges())?;
    checks.push(Check::of(
        &format!("LSN {}: before the load", quiet.lsn),
        before.map(|verdict| words(&verdict)),
    ));
    // Any of them would do, in the middle of the load.
    let mut random = Random::new(latest.lsn.0);
    let Some(chosen) = live.get(live.len() / 4 + random.below((live.len() / 2).max(1))) else {
        let found = "no position of the load is old enough: the replica was too far behind".to_owned();
        checks.push(Check::of("a point in the middle of the load", Err(found)));
        return Ok(checks);
    };
    let here = point(control, histories, Point::lsn(chosen.lsn, None), &chosen.ranges())?;
    let next = chosen.lsn.next();
    let [files, journal] = chosen.ranges();
    let widened = [
        files.start..(files.end + 1).min(histories[0].len()),
        journal.start..(journal.end + 1).min(histories[1].len()),
    ];
    let there = point(control, histories, Point::lsn(next, None), &widened)?;
    let step = match (&here, &there) {
        (Ok(here), Ok(there)) => one_write_apart(here.prefixes, there.prefixes),
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
    };
    checks.push(Check::of(&format!("LSN {}: in mid-load", chosen.lsn), here.map(|verdict| words(&verdict))));
    checks.push(Check::of(&format!("LSN {next}: the next one"), step));
    let by_time = live[live.len() / 2];
    let then = point(
        control,
        histories,
        Point { which: Which::Time(by_time.time), branch: None },
        &by_time.ranges(),
    )?;
    let what = format!("{}: by time", time::format(by_time.time));
    checks.push(Check::of(&what, then.map(|verdict| words(&verdict))));
    if let Some(expected) = taken_over {
        let ranges = expected.map(|prefix| prefix.shortest..prefix.longest);
        let again = point(control, histories, Point::lsn(latest.lsn, None), &ranges)?;
        let what = format!("LSN {}: the failover's, after new writes", latest.lsn);
        checks.push(Check::of(&what, again.map(|_| "as it was".to_owned())));
    }
    Ok(checks)
}

/// Mounts a point, reads both volumes, judges them.
fn point(
    control: &mut Client,
    histories: [&History; 2],
    at: Point,
    ranges: &[Range<usize>; 2],
) -> Result<Result<Verdict, String>, Failure> {
    let request = MountRequest::read_only(GROUP, at);
    let mount = control.mount(request)?;
    let volume = |name| Served::find(&mount.endpoint, &mount.volumes, name)?.image();
    let images = [volume(FILES)?, volume(JOURNAL)?];
    control.unmount(mount.mount)?;
    Ok(judge(histories, &images, ranges))
}

/// Two neighbouring positions differ by one write at most, on one volume.
fn one_write_apart(here: [Prefix; 2], there: [Prefix; 2]) -> Result<String, String> {
    let steps = [0, 1].map(|volume| {
        let (here, there) = (here[volume], there[volume]);
        let (least, most) =
            (there.shortest.saturating_sub(here.longest), there.longest.checked_sub(here.shortest));
        most.map(|_| least)
    });
    match steps {
        [Some(files), Some(journal)] if files + journal <= 1 => {
            Ok(if files + journal == 1 { "exactly one write more" } else { "no write between them" }
                .to_owned())
        }
        [Some(files), Some(journal)] => {
            Err(format!("{files} and {journal} writes more, instead of one in all"))
        }
        _ => Err("fewer writes than the position before".to_owned()),
    }
}

fn compare(path: &Path, served: &Served) -> Result<Result<String, String>, Failure> {
    let bytes = image::volume_bytes(path)?;
    let mut progress = Progress::bytes("comparing the image", bytes);
    Ok(match served.compare(path, |seen| progress.add(seen))? {
        None => Ok(format!("{} are equal", Bytes(bytes))),
        Some(offset) => Err(format!("it differs at byte {offset}")),
    })
}

/// Writes the last page, flushes, and reads it through another connection.
fn write_and_read_back(served: &Served) -> Result<Result<String, String>, Failure> {
    let page = content::Pool::new().page(&mut Random::new(4));
    let mut writer = served.connect()?;
    let offset = writer.size() - page.len() as u64;
    let mut write = || {
        writer.write(offset, &page)?;
        writer.flush()
    };
    write().context(|| format!("{} cannot be written", served.export))?;
    let mut read = vec![0; page.len()];
    served.connect()?.read(offset, &mut read).context(|| format!("{} cannot be read back", served.export))?;
    Ok(if page == read { Ok("read back".to_owned()) } else { Err("not what was written".to_owned()) })
}

fn words(verdict: &Verdict) -> String {
    let writes: usize = verdict.prefixes.iter().map(|prefix| prefix.longest).sum();
    format!(
        "exact: {} writes, {} files of {} batches whole",
        count(writes as u64),
        count(verdict.files as u64),
        count(verdict.batches as u64)
    )
}

fn rpo(histories: [&History; 2], prefixes: [Prefix; 2], killed: Instant) -> Rpo {
    let lost = [0, 1].map(|volume| histories[volume].lost(prefixes[volume].longest));
    let (writes, bytes) = sum(lost.map(|lost| (lost.writes, lost.bytes)));
    let oldest = lost.iter().filter_map(|lost| lost.first).min();
    Rpo {
        writes,
        bytes,
        ms: oldest.map_or(0, |oldest| milliseconds_of(killed.saturating_duration_since(oldest))),
    }
}

fn sum([a, b]: [(u64, u64); 2]) -> (u64, u64) {
    (a.0 + b.0, a.1 + b.1)
}

fn milliseconds_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn milliseconds(duration: Duration) -> String {
    duration_ms(milliseconds_of(duration))
}
