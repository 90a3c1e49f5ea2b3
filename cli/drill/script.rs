//! Programs that check something: the operator's own, and the system's. They get a time and a limit on what is kept of
//! what they say.
//!
//! Invariants:
//! - a program runs in a process group of its own, and the whole group is killed when its time is over or when the
//!   operator interrupts: nothing that it has started goes on then;
//! - at most [`MAX_OUTPUT_BYTES`] of its output are kept, the end of it: that is where programs say what was wrong;
//! - its stdin is empty: nobody is there to answer.
//!
//! If this process itself is killed, its programs go on, with volumes that answer nothing any more.

use crate::commands::mount;
use crate::control::api::Mount;
use crate::signal::Signals;
use crate::time;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is kept of a program's output.
pub(crate) const MAX_OUTPUT_BYTES: usize = 64 << 10;

/// How often it is looked whether a program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a program's output is waited for once it has ended: a process that it left behind may hold it open.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);

/// Whether the operator wants everything to end: set by SIGINT and its kind.
pub(crate) type Interrupted = Arc<AtomicBool>;

/// Takes the process's signals over.
pub(crate) fn interrupted(signals: Signals) -> io::Result<Interrupted> {
    let flag = Interrupted::default();
    let set = flag.clone();
    thread::Builder::new().name("interrupted".to_owned()).spawn(move || {
        while signals.wait_for(Duration::from_secs(3_600)).is_none() {}
        set.store(true, Ordering::Relaxed);
    })?;
    Ok(flag)
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with a status.
    Exit(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// It took longer than it was given.
    TimedOut,
    /// The operator did not want to wait.
    Interrupted,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exit(status) => write!(f, "exit status {status}"),
            Ended::Signal(signal) => write!(f, "ended by signal {signal}"),
            Ended::TimedOut => f.write_str("killed: it took longer than it was given"),
            Ended::Interrupted => f.write_str("killed: interrupted"),
        }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) ended: Ended,
    /// The end of its output, stdout and stderr as they came.
    pub(crate) output: String,
}

/// The operator's script on a mount: its arguments, and where to find the volumes in its environment.
pub(crate) fn command(script: &[OsString], mounted: &Mount) -> Command {
    let mut command = Command::new(&script[0]);
    command.args(&script[1..]).envs(environment(mounted));
    command
}

/// The variables that a script is given.
///
/// | variable | what |
/// |---|---|
/// | `LANDFALL_GROUP` | the group's name |
/// | `LANDFALL_LSN`, `LANDFALL_TIME` | the point |
/// | `LANDFALL_VOLUMES` | the volumes' names, with spaces between them |
/// | `LANDFALL_NBD_<VOLUME>` | a volume's NBD URI; the name in capitals, `_` for what is no letter and no digit, and `_2` behind it if another volume has that name already |
fn environment(mounted: &Mount) -> Vec<(String, String)> {
    let names = mounted.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>();
    let mut variables = vec![
        ("LANDFALL_GROUP".to_owned(), mounted.group.clone()),
        ("LANDFALL_LSN".to_owned(), mounted.at.lsn.to_string()),
        ("LANDFALL_TIME".to_owned(), time::format_exact(mounted.at.time.0)),
        ("LANDFALL_VOLUMES".to_owned(), names.join(" ")),
    ];
    for volume in &mounted.volumes {
        let Some(export) = &volume.export else { continue };
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let plain = format!("LANDFALL_NBD_{}", volume.name.chars().map(letter).collect::<String>());
        let taken = |name: &String| variables.iter().any(|(other, _)| other == name);
        let mut others = (2..).map(|number| format!("{plain}_{number}"));
        let name = if taken(&plain) { others.find(|name| !taken(name)) } else { Some(plain) };
        variables.push((name.expect("there are numbers enough"), mount::uri(&mounted.endpoint, export)));
    }
    variables
}

/// Runs a program to its end, for `limit` at the most.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn run(mut command: Command, limit: Duration, interrupted: &AtomicBool) -> io::Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let tail = Arc::new(Mutex::new(Tail::default()));
    let stdout = child.stdout.take().map(|pipe| collect(pipe, &tail));
    let stderr = child.stderr.take().map(|pipe| collect(pipe, &tail));
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break of_status(status),
            Ok(None) if interrupted.load(Ordering::Relaxed) => break kill(&mut child, Ended::Interrupted),
            Ok(None) if begun.elapsed() >= limit => break kill(&mut child, Ended::TimedOut),
            Ok(None) => thread::sleep(LOOK_EVERY),
            Err(error) => {
                kill(&mut child, Ended::Interrupted);
                return Err(error);
            }
        }
    };
    let last = Instant::now() + OUTPUT_WAIT;
    let readers = [stdout, stderr].into_iter().flatten().collect::<io::Result<Vec<_>>>()?;
    while readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < last {
        thread::sleep(LOOK_EVERY);
    }
    let output = tail.lock().expect("no holder of the lock panics").text();
    Ok(Outcome { ended, output })
}

/// Kills a child that has not been waited for, and its group.
fn kill(child: &mut Child, why: Ended) -> Ended {
    // Not waited for yet, so the number is still its own.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
    why
}

fn of_status(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exit(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// The end of an output.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    left_out: u64,
}

impl Tail {
    fn push(&mut self, part: &[u8]) {
        self.bytes.extend(part);
        let over = self.bytes.len().saturating_sub(MAX_OUTPUT_BYTES);
        self.bytes.drain(..over);
        self.left_out += over as u64;
    }

    fn text(&mut self) -> String {
        let text = String::from_utf8_lossy(self.bytes.make_contiguous());
        match self.left_out {
            0 => text.into_owned(),
            bytes => format!("[{bytes} bytes before this are left out]\n{text}"),
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static, tail: &Arc<Mutex<Tail>>) -> io::Result<JoinHandle<()>> {
    let tail = tail.clone();
    thread::Builder::new().name("output".to_owned()).spawn(move || {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut part) {
            tail.lock().expect("no holder of the lock panics").push(&part[..read]);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::sample;

    fn shell(script: &str, limit: Duration) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, limit, &AtomicBool::new(false)).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_ends_as_it_ends() {
        let outcome = shell("echo out; echo err >&2; exit 3", LONG);
        assert_eq!(outcome.ended, Ended::Exit(3));
        assert!(outcome.output.contains("out\n") && outcome.output.contains("err\n"), "{outcome:?}");
        assert_eq!(shell("kill -9 $$", LONG).ended, Ended::Signal(9));
        assert!(run(Command::new("/nowhere/no-such-program"), LONG, &AtomicBool::new(false)).is_err());
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_all_that_it_started() {
        let outcome = shell("sleep 1000 & echo $!; wait", Duration::from_millis(300));
        assert_eq!(outcome.ended, Ended::TimedOut);
        let child = outcome.output.trim();
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // Whoever inherits it may not have looked after it yet.
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
        let flag = AtomicBool::new(true);
        let mut command = Command::new("sleep");
        command.arg("1000");
        assert_eq!(run(command, LONG, &flag).unwrap().ended, Ended::Interrupted);
    }

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let outcome =
            shell("i=0; while [ $i -lt 3000 ]; do echo line $i of a long output; i=$((i+1)); done", LONG);
        assert!(outcome.output.ends_with("line 2999 of a long output\n"));
        assert!(outcome.output.len() < MAX_OUTPUT_BYTES + 100, "{}", outcome.output.len());
        assert!(outcome.output.starts_with('['), "it says that something is left out");
    }

    #[test]
    fn a_script_is_told_where_the_volumes_are() {
        let mut mount = sample().mounts.remove(0);
        let mut other = mount.volumes[0].clone();
        for name in ["da.ta", "da-ta"] {
            other.name = name.to_owned();
            other.export = Some(format!("db/{name}"));
            mount.volumes.push(other.clone());
        }
        let variables = environment(&mount);
        let of =
            |name: &str| variables.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!(of("LANDFALL_GROUP"), Some("db"));
        assert_eq!(of("LANDFALL_LSN"), Some("7"));
        assert_eq!(of("LANDFALL_VOLUMES"), Some("data da.ta da-ta"));
        assert_eq!(of("LANDFALL_NBD_DATA"), Some("nbd://127.0.0.1:1234/db/data"));
        assert_eq!(of("LANDFALL_NBD_DA_TA"), Some("nbd://127.0.0.1:1234/db/da.ta"));
        assert_eq!(of("LANDFALL_NBD_DA_TA_2"), Some("nbd://127.0.0.1:1234/db/da-ta"));
    }
}
