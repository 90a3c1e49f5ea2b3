//! `landfall drill`: a recovery point as a writable copy, checked, and gone without a trace.
//!
//! A drill is a writable mount with a limit. `start` leaves it with the daemon; `run` holds it by its own connection,
//! so that a command that is killed leaves nothing. The checks of headers and filesystems work on copies of the point
//! that are theirs alone: whoever uses the drill meanwhile is not disturbed, and what is judged is the point, not what
//! somebody has made of it. The operator's script gets the drill itself.
//!
//! | module | what it is |
//! |---|---|
//! | [`filesystem`] | what a volume's header says |
//! | [`fsck`] | the system's own check |
//! | [`script`] | running programs, with limits |
//! | [`report`], [`page`] | what was found: as data, as text, as a page |

mod filesystem;
mod fsck;
mod page;
mod report;
pub(crate) mod script;

use crate::args::{self, Checks, Global};
use crate::commands::mount;
use crate::control::Client;
use crate::control::api::{Access, Endpoint, Hold, Moment, Mount, MountId, MountRequest, Role, Volume};
use crate::exit::{Context, Failure};
use crate::human;
use crate::point::Point;
use crate::signal::Signals;
use crate::time;
use engine::types::Timestamp;
use filesystem::{Header, Source};
use fsck::Checked;
use report::{Check, Kind, Outcome, Report, Rpo, Step, Verdict};
use script::{Ended, Interrupted};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use transport::nbd::client;

/// How long a volume may take to answer.
const NBD_TIMEOUT: Duration = Duration::from_secs(60);

/// Carries it out.
pub(crate) fn command(global: &Global, drill: &args::Drill) -> Result<(), Failure> {
    match drill {
        args::Drill::Start(arguments) => start(global, arguments),
        args::Drill::Verify(arguments) => verify(global, arguments),
        args::Drill::End { drill } => end(global, drill),
        args::Drill::Run(arguments) => run(global, arguments),
    }
}

fn start(global: &Global, arguments: &args::DrillStart) -> Result<(), Failure> {
    let mounted = global.connect()?.mount(request(arguments, Hold::UntilUnmount))?;
    human::answer(global.form(), &mounted, mount::text)?;
    if let Some(drill) = mounted.drill {
        let (id, ends) = (mounted.mount.0, time::format(drill.ends.0));
        human::say(format_args!(
            "drill {id} is ended at {ends}; `landfall drill verify {id}` checks it, `landfall drill end {id}` ends it"
        ));
    }
    Ok(())
}

fn request(arguments: &args::DrillStart, hold: Hold) -> MountRequest {
    MountRequest {
        hold,
        access: Access::Writable { scratch_bytes: arguments.scratch.0 },
        drill_ms: Some(u64::try_from(arguments.limit.as_millis()).unwrap_or(u64::MAX)),
        ..MountRequest::read_only(&arguments.group, arguments.at.clone())
    }
}

fn end(global: &Global, drill: &str) -> Result<(), Failure> {
    let mut client = global.connect()?;
    let mounted = match find(&mut client, drill) {
        Ok(mounted) => mounted,
        // Ended by its limit, or by somebody else: what was wanted is so.
        Err(NoDrill::Group(failure)) if client.status()?.groups.iter().any(|group| group.name == drill) => {
            human::say(format_args!("{}: nothing to end", failure.what));
            return human::answer(global.form(), &serde_json::json!({ "mount": null }), |_| String::new());
        }
        Err(NoDrill::Group(failure) | NoDrill::Other(failure)) => return Err(failure),
    };
    client.unmount(mounted.mount)?;
    human::answer(global.form(), &serde_json::json!({ "mount": mounted.mount.0 }), |_| {
        format!("drill {} ended\n", mounted.mount.0)
    })
}

/// Why a drill was not found.
enum NoDrill {
    /// None of that name or number.
    Group(Failure),
    /// Several, or nobody answers.
    Other(Failure),
}

/// The drill of a group, or of a number.
fn find(client: &mut Client, wanted: &str) -> Result<Mount, NoDrill> {
    let mounts = client.status().map_err(NoDrill::Other)?.mounts;
    let drills = mounts.into_iter().filter(|mount| mount.drill.is_some());
    let (mut of_group, others): (Vec<_>, Vec<_>) = drills.partition(|drill| drill.group == wanted);
    if of_group.len() > 1 {
        let numbers = of_group.iter().map(|drill| drill.mount.0.to_string()).collect::<Vec<_>>();
        let failure = Failure::refused(format_args!("group {wanted} has {} drills", of_group.len()));
        return Err(NoDrill::Other(
            failure.next(format_args!("name one by its number: {}", numbers.join(", "))),
        ));
    }
    let by_number = || others.into_iter().find(|drill| wanted.parse() == Ok(drill.mount.0));
    of_group.pop().or_else(by_number).ok_or_else(|| {
        let failure = Failure::refused(format_args!("there is no drill `{wanted}`"));
        NoDrill::Group(failure.next("`landfall status` lists those that there are, each with its limit"))
    })
}

fn verify(global: &Global, arguments: &args::DrillVerify) -> Result<(), Failure> {
    let mut work = Work::begin(global)?;
    let mounted = match find(&mut work.client, &arguments.drill) {
        Ok(mounted) => mounted,
        Err(NoDrill::Group(failure) | NoDrill::Other(failure)) => return Err(failure),
    };
    let rpo = work.rpo(&mounted);
    work.check(&mounted, &arguments.checks)?;
    work.conclude(global, mounted, None, rpo, &arguments.checks)
}

fn run(global: &Global, arguments: &args::DrillRun) -> Result<(), Failure> {
    let mut work = Work::begin(global)?;
    let mounted = work.client.mount(request(&arguments.start, Hold::Connection))?;
    work.step("mount");
    work.serve(&mounted);
    let rto_ms = work.begun.elapsed().as_millis() as u64;
    work.step("first bytes");
    let rpo = work.rpo(&mounted);
    work.check(&mounted, &arguments.checks)?;
    // The checks may have taken longer than its limit, which has ended it then, or a failover has.
    if work.client.status()?.mounts.iter().any(|mount| mount.mount == mounted.mount) {
        work.client.unmount(mounted.mount)?;
    }
    work.step("end");
    work.conclude(global, mounted, Some(rto_ms), rpo, &arguments.checks)
}

/// A drill that is being checked.
struct Work {
    client: Client,
    interrupted: Interrupted,
    node: String,
    begun: Instant,
    begun_at: Timestamp,
    last_step: Instant,
    steps: Vec<Step>,
    checks: Vec<Check>,
}

impl Work {
    fn begin(global: &Global) -> Result<Work, Failure> {
        let (begun, begun_at) = (Instant::now(), time::now());
        // Before anything is mounted: a Ctrl-C must find somebody who listens.
        let interrupted = script::interrupted(Signals::take()?).context(|| "signals cannot be taken")?;
        let mut client = global.connect()?;
        // Asked now: a connection that holds nothing is closed while a long check runs.
        let node = client.status()?.node.name;
        Ok(Work {
            client,
            interrupted,
            node,
            begun,
            begun_at,
            last_step: begun,
            steps: Vec::new(),
            checks: Vec::new(),
        })
    }

    fn step(&mut self, what: &str) {
        let now = Instant::now();
        let took_ms = now.duration_since(self.last_step).as_millis() as u64;
        self.steps.push(Step { what: what.to_owned(), took_ms });
        self.last_step = now;
    }

    fn note(
        &mut self,
        (what, volume): (Kind, Option<&Volume>),
        began: Instant,
        outcome: Outcome,
        found: String,
        output: String,
    ) {
        self.checks.push(Check {
            what,
            volume: volume.map(|volume| volume.name.clone()),
            outcome,
            found,
            output,
            took_ms: began.elapsed().as_millis() as u64,
        });
    }

    /// What a failover to the point would lose, now; nothing where no failover could be.
    fn rpo(&mut self, mounted: &Mount) -> Option<Rpo> {
        let plan = match self.client.plan_failover(&mounted.group, Point::lsn(mounted.at.lsn, mounted.branch))
        {
            Ok(plan) => plan,
            // This node is the primary, or has become it meanwhile: the drill goes on all the same.
            Err(failure) => {
                tracing::debug!(reason = failure.what, "there is no RPO to tell");
                return None;
            }
        };
        if plan.role != Role::Replica {
            return None;
        }
        let to_contact = |heard: Moment| heard.0.0.saturating_sub(mounted.at.time.0.0) / 1_000_000;
        let beyond = plan.last_contact.filter(|_| plan.not_received.writes > 0).map_or(0, to_contact);
        Some(Rpo {
            behind: plan.set_aside,
            not_received: plan.not_received.writes,
            ms: plan.set_aside.ms.max(beyond),
            last_contact: plan.last_contact,
        })
    }

    /// Reads the first bytes of every volume.
    fn serve(&mut self, mounted: &Mount) {
        for volume in &mounted.volumes {
            let began = Instant::now();
            let first = |mut disk: Disk| {
                let mut bytes = vec![0; disk.size().min(4096) as usize];
                disk.read(0, &mut bytes)
            };
            let (outcome, found) = match open(&mounted.endpoint, volume).and_then(first) {
                Ok(()) => (Outcome::Passed, "its first bytes".to_owned()),
                Err(error) => (Outcome::Failed, error.to_string()),
            };
            self.note((Kind::Served, Some(volume)), began, outcome, found, String::new());
        }
    }

    fn check(&mut self, mounted: &Mount, checks: &Checks) -> Result<(), Failure> {
        if self.steps.is_empty() {
            self.serve(mounted);
            self.step("first bytes");
        }
        self.check_filesystems(mounted, checks)?;
        self.step("filesystems");
        self.check_script(mounted, checks)?;
        if !checks.script.is_empty() {
            self.step("script");
        }
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Failure::failed(format_args!(
                "the drill of group {} was interrupted",
                mounted.group
            )));
        }
        Ok(())
    }

    /// Headers and filesystems, on a copy of the point that nobody else has.
    fn check_filesystems(&mut self, mounted: &Mount, checks: &Checks) -> Result<(), Failure> {
        let scratch = mounted.scratch.map_or(0, |scratch| scratch.limit_bytes);
        let own = self.client.mount(MountRequest {
            access: Access::Writable { scratch_bytes: scratch },
            ..MountRequest::read_only(&mounted.group, Point::lsn(mounted.at.lsn, mounted.branch))
        });
        let own = match own {
            Ok(own) => own,
            Err(failure) => {
                let began = Instant::now();
                // What could be checked and was not is not proven.
                let found = format!("no copy of the point can be had for it: {}", failure.what);
                self.note((Kind::Header, None), began, Outcome::Failed, found, String::new());
                return Ok(());
            }
        };
        for volume in &own.volumes {
            let began = Instant::now();
            let looked = open(&own.endpoint, volume).and_then(|mut disk| filesystem::look(&mut disk));
            let family = match looked {
                Err(error) => {
                    let found = format!("it cannot be read: {error}");
                    self.note((Kind::Header, Some(volume)), began, Outcome::Failed, found, String::new());
                    continue;
                }
                Ok(Header { family, found, wrong }) => {
                    let outcome = match (family, wrong.is_empty()) {
                        (_, false) => Outcome::Failed,
                        (filesystem::Family::Other, true) => Outcome::NotChecked,
                        (_, true) => Outcome::Passed,
                    };
                    let found = [vec![found], wrong].concat().join("; ");
                    self.note((Kind::Header, Some(volume)), began, outcome, found, String::new());
                    family
                }
            };
            let Some(export) = volume.export.as_deref().filter(|_| family != filesystem::Family::Other)
            else {
                continue;
            };
            let began = Instant::now();
            let uri = mount::uri(&own.endpoint, export);
            let (outcome, found, output) = match fsck::check(family, &uri, checks.timeout, &self.interrupted)
            {
                Checked::Well { output } => (Outcome::Passed, "nothing is wrong".to_owned(), output),
                Checked::Damaged { how, output } => (Outcome::Failed, how, output),
                Checked::NotDone { why } => {
                    (Outcome::NotChecked, format!("{why}; only the header was looked at"), String::new())
                }
            };
            self.note((Kind::Fsck, Some(volume)), began, outcome, found, output);
        }
        self.forget(own.mount);
        Ok(())
    }

    /// Ends a mount that may have ended by itself.
    fn forget(&mut self, mount: MountId) {
        if let Err(failure) = self.client.unmount(mount) {
            tracing::debug!(mount = mount.0, reason = failure.what, "a copy had ended before its checks did");
        }
    }

    fn check_script(&mut self, mounted: &Mount, checks: &Checks) -> Result<(), Failure> {
        if checks.script.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let command = script::command(&checks.script, mounted);
        let outcome = script::run(command, checks.timeout, &self.interrupted).map_err(|error| {
            let program = Path::new(&checks.script[0]).display();
            Failure::usage(format_args!("{program} cannot be run: {error}"))
                .next("name a program that is there, with a path to it, and that may be executed")
        })?;
        let passed = if outcome.ended == Ended::Exit(0) { Outcome::Passed } else { Outcome::Failed };
        self.note((Kind::Script, None), began, passed, outcome.ended.to_string(), outcome.output);
        Ok(())
    }

    fn conclude(
        self,
        global: &Global,
        mounted: Mount,
        rto_ms: Option<u64>,
        rpo: Option<Rpo>,
        checks: &Checks,
    ) -> Result<(), Failure> {
        let Work { node, begun, begun_at, steps, checks: found, .. } = self;
        let report = Report {
            node,
            group: mounted.group,
            mount: mounted.mount.0,
            at: mounted.at,
            begun: Moment(begun_at),
            took_ms: begun.elapsed().as_millis() as u64,
            rto_ms,
            rpo,
            steps,
            verdict: Verdict::of(&found),
            checks: found,
        };
        human::answer(global.form(), &report, report::text)?;
        if let Some(path) = &checks.report {
            std::fs::write(path, page::render(&report))
                .context(|| format!("the report {} cannot be written", path.display()))?;
        }
        let failed = report.checks.iter().filter(|check| check.outcome == Outcome::Failed);
        let failed = failed.map(|check| match &check.volume {
            Some(volume) => format!("{} of {volume}", check.what.name()),
            None => check.what.name().to_owned(),
        });
        match report.verdict {
            Verdict::Passed => Ok(()),
            Verdict::Failed => Err(Failure::corrupt(format_args!(
                "drill of group {} at LSN {}: failed: {}",
                report.group,
                report.at.lsn,
                failed.collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

/// A volume of a mount, over NBD.
struct Disk(client::Client);

fn open(endpoint: &Endpoint, volume: &Volume) -> io::Result<Disk> {
    let export = volume.export.as_deref().ok_or(io::ErrorKind::NotFound)?;
    let address = match endpoint {
        Endpoint::Unix(path) => client::Address::Unix(path.clone()),
        Endpoint::Tcp(address) => client::Address::Tcp(*address),
    };
    Ok(Disk(client::Client::connect(&address, export, NBD_TIMEOUT)?))
}

impl Source for Disk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(self.0.read(offset, buf)?)
    }
}
