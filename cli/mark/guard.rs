//! A process that lets go of what was stopped, if whoever stopped it does not.
//!
//! - It is started before anything is stopped, in a session of its own, so that no signal to its parent reaches it.
//! - Its parent dismisses it by a word on its standard input. If the parent dies instead, or is late, it thaws and runs the
//!   script behind when the deadline is over, and not before: a request to mark that the parent had sent may be on its way, and the
//!   daemon refuses it from the deadline on.
//! - It holds a lock on what it may thaw, so that it never thaws what was frozen for another mark.
//! - To thaw what is not frozen, and to run the script behind a second time, has to be harmless; the README says so.
//!
//! The deadline is of the clock that all processes of a machine share, and that no one sets.

use super::Hooks;
use crate::args;
use crate::exit::{Context, Failure};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// What dismisses it.
const DONE: &[u8] = b"done\n";
/// It thaws so long behind the deadline: scripts that nobody waits for any more are dead by then.
const MARGIN: Duration = Duration::from_secs(1);
/// A freeze may hang in a sync that nothing ends, and succeed late: what was not thawed is looked at again so often, a
/// second apart.
const AGAIN: u32 = 60;
/// The script behind has this long, if the guard has to run it.
const POST_LIMIT: Duration = Duration::from_secs(60);

/// A moment, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) u64);

impl Deadline {
    /// So much from now.
    pub(super) fn after(span: Duration) -> Deadline {
        Deadline(now_ns().saturating_add(span.as_nanos() as u64))
    }

    /// Until it, if it is not over.
    pub(super) fn left(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now_ns()))
    }
}

/// Now, by that clock.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The process, as its parent sees it.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started; then nothing may be stopped.
    pub(super) fn start(hooks: &Hooks, deadline: Deadline) -> Result<Guard, Failure> {
        let program = std::env::current_exe().context(|| "the program cannot be found")?;
        let mut command = Command::new("setsid");
        command.arg(program).arg("thaw").arg(&hooks.group).arg(&hooks.name);
        command.arg("--at").arg(deadline.0.to_string());
        for dir in &hooks.freeze {
            command.arg("--freeze").arg(dir);
        }
        if let Some(post) = &hooks.post {
            command.arg("--post").arg(post);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context(|| "the guard of the thaw cannot be started")?;
        // It says when it is there.
        let mut ready = [0; 1];
        let stdout = child.stdout.as_mut();
        let is_ready = stdout.is_some_and(|stdout| stdout.read_exact(&mut ready).is_ok());
        match is_ready {
            true => Ok(Guard { child }),
            false => {
                let _ = child.kill();
                let _ = child.wait();
                Err(Failure::failed(
                    "the guard of the thaw has not come up, as while another mark is being set: nothing was stopped",
                ))
            }
        }
    }

    /// All has been let go. It is gone when this returns, and with it its locks.
    pub(super) fn dismiss(mut self) {
        if let Some(stdin) = &mut self.child.stdin {
            let _ = stdin.write_all(DONE);
        }
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The process itself: `landfall thaw`, which nobody else calls.
pub(crate) fn run(arguments: &args::Thaw) -> Result<(), Failure> {
    let args::Thaw { group, name, at, freeze, post } = arguments;
    let deadline = Deadline(*at);
    // As long as it may thaw something, nobody else may freeze that.
    let mut held = Vec::new();
    for dir in freeze {
        let opened = File::open(dir).context(|| format!("{} cannot be opened", dir.display()))?;
        flock(&opened, FlockOperation::NonBlockingLockExclusive)
            .context(|| format!("{} is being frozen for another mark", dir.display()))?;
        held.push(opened);
    }
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut said = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut said);
        // The end alone is that of the parent; then nobody dismisses it.
        if said == DONE {
            let _ = sender.send(());
        }
        thread::park();
    });
    std::io::stdout()
        .write_all(b"+")
        .and_then(|()| std::io::stdout().flush())
        .context(|| "nobody listens")?;
    if receiver.recv_timeout(deadline.left() + MARGIN).is_ok() {
        return Ok(());
    }
    let hooks = Hooks {
        group: group.clone(),
        name: name.clone(),
        pre: None,
        post: post.clone(),
        freeze: freeze.clone(),
    };
    // Each is frozen once, so what was thawed needs no further look.
    let mut unseen = super::thaw(&hooks.freeze, POST_LIMIT);
    let let_go = super::behind(&hooks, deadline, POST_LIMIT);
    for _ in 0..AGAIN {
        if unseen.is_empty() || receiver.recv_timeout(Duration::from_secs(1)).is_ok() {
            break;
        }
        unseen = super::thaw(&unseen, POST_LIMIT);
    }
    let_go
}
