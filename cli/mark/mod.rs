//! `landfall mark`: a named point; and one for which the applications hold still.
//!
//! | module | what it is |
//! |---|---|
//! | [`guard`] | the thaw, by a process that outlives whoever asked for it |
//! | [`hooks`] | the scripts that come with it |
//!
//! The order for a point that is consistent for the applications:
//!
//! 1. the guard is started: from here on whatever is stopped is let go at its deadline, whatever dies;
//! 2. the script before runs, then each filesystem is frozen, which syncs it;
//! 3. the daemon marks, if the deadline has not passed by its clock, which is the guard's;
//! 4. the filesystems are thawed, in the opposite order, and the script behind runs;
//! 5. the guard is dismissed.
//!
//! What fails in 2 or 3 is followed by 4, and then, as the operator has chosen, by nothing or by a mark that says that
//! nobody was asked. A mark is never said to be consistent for the applications if anything was let go before it. What
//! fails in 4 is behind the mark, which stands: nothing is tried again, and the exit status is that of a part.
//!
//! What a script finds in its environment:
//!
//! | variable | what |
//! |---|---|
//! | `LANDFALL_GROUP`, `LANDFALL_MARK` | the group, and the name of the mark |
//! | `LANDFALL_FREEZE` | the folders whose filesystems are frozen between the scripts, a line for each |
//! | `LANDFALL_TRY` | a number that is the same in both scripts, and another one for each try on this machine |
//! | `LANDFALL_TIMEOUT` | whole seconds that the script has; when those of the one before are over, no mark is taken any more |

pub(crate) mod guard;
pub(crate) mod hooks;

use crate::args::{self, Global};
use crate::control::Client;
use crate::control::api::{Mark, MarkKind, MarkRequest};
use crate::drill::script::{self, Ended};
use crate::exit::{Code, Failure};
use crate::human::{self, clean};
use crate::time;
use guard::{Deadline, Guard};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// A script whose starter is gone is killed so long behind its limit, and before the guard thaws.
const KILL_AFTER: Duration = Duration::from_millis(500);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What is done around a mark.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) pre: Option<OsString>,
    pub(crate) post: Option<OsString>,
    pub(crate) freeze: Vec<PathBuf>,
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Mark) -> Result<(), Failure> {
    let args::Mark { group, name, freeze, pre, post, timeout, retries, otherwise } = arguments;
    let mut client = global.connect()?;
    let request = |kind| MarkRequest { group: group.clone(), name: name.clone(), kind, before_ns: None };
    let hooks = Hooks {
        group: group.clone(),
        name: name.clone(),
        pre: pre.clone(),
        post: post.clone(),
        freeze: freeze.clone(),
    };
    if hooks.pre.is_none() && hooks.post.is_none() && hooks.freeze.is_empty() {
        let mark = client.mark(request(MarkKind::CrashConsistent))?;
        return human::answer(global.form(), &mark, text(group));
    }
    let mut last = None;
    for attempt in 0..=*retries {
        if attempt > 0 {
            thread::sleep(PAUSE);
        }
        match still(&hooks, *timeout, &mut client, &request(MarkKind::ApplicationConsistent)) {
            Ok(Still { mark, let_go }) => {
                human::answer(global.form(), &mark, text(group))?;
                return let_go.map_err(|failure| {
                    let what = format!("the mark {name} is set, and stands; but {}", failure.what);
                    Failure { code: Code::Partial, ..Failure::failed(what) }
                });
            }
            Err(failure) => {
                human::say(format_args!("! {}", failure.what));
                last = Some(failure);
            }
        }
    }
    let failure = last.unwrap_or_else(|| Failure::failed("nothing was tried"));
    match otherwise {
        args::Otherwise::Skip => Err(failure.next("nothing was marked")),
        args::Otherwise::Mark => {
            let mark = client.mark(request(MarkKind::CrashConsistent))?;
            human::answer(global.form(), &mark, text(group))?;
            let what = format!("the mark {name} is not consistent for the applications: {}", failure.what);
            Err(Failure { code: Code::Partial, ..Failure::failed(what) })
        }
    }
}

fn text(group: &str) -> impl Fn(&Mark) -> String {
    move |mark| {
        let kind = match mark.kind {
            MarkKind::CrashConsistent => "as a crash would leave it",
            MarkKind::ApplicationConsistent => "consistent for the applications",
        };
        let at = time::format(mark.at.time.0);
        format!(
            "group {}: LSN {} ({at}) is marked {}, {kind}\n",
            clean(group),
            mark.at.lsn,
            clean(&mark.name)
        )
    }
}

/// A mark for which the applications held still, and what became of their going on.
struct Still {
    mark: Mark,
    let_go: Result<(), Failure>,
}

/// One try: everything that was stopped has been let go when this returns.
fn still(
    hooks: &Hooks,
    timeout: Duration,
    client: &mut Client,
    request: &MarkRequest,
) -> Result<Still, Failure> {
    let deadline = Deadline::after(timeout);
    let guard = Guard::start(hooks, deadline)?;
    let marked = stop(hooks, deadline)
        .and_then(|()| client.mark(MarkRequest { before_ns: Some(deadline.0), ..request.clone() }));
    thaw(&hooks.freeze, timeout);
    let let_go = behind(hooks, deadline, timeout);
    // Only now: if we die before, it lets go of what we have not.
    guard.dismiss();
    Ok(Still { mark: marked?, let_go })
}

/// Has the applications hold still.
fn stop(hooks: &Hooks, deadline: Deadline) -> Result<(), Failure> {
    if let Some(pre) = &hooks.pre {
        shell(hooks, pre, deadline, deadline.left(), "the script before")?;
    }
    for dir in &hooks.freeze {
        let mut freeze = Command::new("fsfreeze");
        freeze.arg("--freeze").arg(dir);
        finish(freeze, deadline.left(), &format!("freezing {}", dir.display()))?;
    }
    Ok(())
}

/// Thaws what was frozen, in the opposite order, and returns what was not. That is no failure: the guard may have been
/// faster, or nothing was frozen.
fn thaw(dirs: &[PathBuf], limit: Duration) -> Vec<PathBuf> {
    let mut unseen = Vec::new();
    for dir in dirs.iter().rev() {
        let mut thaw = Command::new("fsfreeze");
        thaw.arg("--unfreeze").arg(dir);
        let outcome = script::run(thaw, limit, &AtomicBool::new(false));
        if !outcome.is_ok_and(|outcome| outcome.ended == Ended::Exit(0)) {
            unseen.push(dir.clone());
        }
    }
    unseen.reverse();
    unseen
}

/// Runs the script behind.
fn behind(hooks: &Hooks, deadline: Deadline, limit: Duration) -> Result<(), Failure> {
    hooks.post.as_ref().map_or(Ok(()), |post| shell(hooks, post, deadline, limit, "the script behind"))
}

/// Runs a script of the try that has this deadline.
fn shell(
    hooks: &Hooks,
    script: &OsString,
    deadline: Deadline,
    limit: Duration,
    what: &str,
) -> Result<(), Failure> {
    // If we are killed, the script is too: it must not stop anything behind the guard's back.
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &format!("{:.3}", (limit + KILL_AFTER).as_secs_f64()), "sh", "-c"]);
    command.arg(script).env("LANDFALL_GROUP", &hooks.group).env("LANDFALL_MARK", &hooks.name);
    let freeze: Vec<&OsStr> = hooks.freeze.iter().map(|dir| dir.as_os_str()).collect();
    command.env("LANDFALL_FREEZE", freeze.join(OsStr::new("\n")));
    // No two tries begin in the same nanosecond and have the same time: it serves as their number.
    command.env("LANDFALL_TRY", deadline.0.to_string());
    command.env("LANDFALL_TIMEOUT", limit.as_millis().div_ceil(1_000).to_string());
    finish(command, limit, what)
}

fn finish(command: Command, limit: Duration, what: &str) -> Result<(), Failure> {
    let outcome = script::run(command, limit, &AtomicBool::new(false))
        .map_err(|error| Failure::failed(format_args!("{what}: {error}")))?;
    match outcome.ended {
        Ended::Exit(0) => Ok(()),
        ended => {
            let said = outcome.output.trim();
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            Err(Failure::failed(format_args!("{what}: {ended}{said}")))
        }
    }
}
