//! The system's own filesystem check, on a copy of a volume that nobody else has: `nbdfuse` shows it as a file.
//!
//! The copy is first brought to where a boot would bring it (`e2fsck -p`: the journal is replayed, files that were
//! deleted while open are let go; `fsck.fat -a`: the mark of a volume in use goes), and then nothing may be wrong with it
//! (`e2fsck -f -n`, `fsck.fat -n`). Where a program is missing, or `nbdfuse` cannot serve, only the header was looked
//! at, and that is what is said.

use super::filesystem::Family;
use super::script::{self, Ended, Outcome};
use crate::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long `nbdfuse` may take to show its file, and to end.
const FUSE_WAIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What is read of what `nbdfuse` says.
const MAX_SAID_BYTES: usize = 4096;

/// What a check said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Nothing is wrong.
    Well {
        /// What ran, and what it said.
        output: String,
    },
    /// Something is.
    Damaged {
        /// How it ended.
        how: String,
        /// What ran, and what it said.
        output: String,
    },
    /// It could not be done here.
    NotDone {
        /// Why.
        why: String,
    },
}

/// Checks the volume at `uri`, and may write to it.
pub(crate) fn check(family: Family, uri: &str, limit: Duration, interrupted: &AtomicBool) -> Checked {
    let not_done = |why: String| Checked::NotDone { why };
    let (names, steps): (&[&str], &[(&[&str], i32)]) = match family {
        // A status of 1: what a boot puts right was put right.
        Family::Ext => (&["e2fsck"], &[(&["-p"], 1), (&["-f", "-n"], 0)]),
        Family::Fat => (&["fsck.fat", "fsck.vfat", "dosfsck"], &[(&["-a"], 1), (&["-n"], 0)]),
        Family::Other => return not_done("no check is known for it".to_owned()),
    };
    let Some(program) = names.iter().find_map(|name| find(name)) else {
        return not_done(format!("{} is not installed", names[0]));
    };
    let Some(nbdfuse) = find("nbdfuse") else { return not_done("nbdfuse is not installed".to_owned()) };
    let fuse = match Fuse::start(&nbdfuse, uri) {
        Ok(fuse) => fuse,
        Err(why) => return not_done(format!("nbdfuse cannot serve it: {why}")),
    };
    let begun = Instant::now();
    let mut output = String::new();
    for (arguments, worst) in steps {
        let mut command = Command::new(&program);
        command.args(*arguments).arg(&fuse.file);
        output.push_str(&format!("$ {} {}\n", names[0], arguments.join(" ")));
        let left = limit.saturating_sub(begun.elapsed());
        let Outcome { ended, output: said } = match script::run(command, left, interrupted) {
            Ok(outcome) => outcome,
            Err(error) => return not_done(format!("{} cannot be run: {error}", program.display())),
        };
        output.push_str(&said.replace(&*fuse.file.to_string_lossy(), "volume"));
        match ended {
            Ended::Exit(status) if (0..=*worst).contains(&status) => {}
            other => return Checked::Damaged { how: format!("{}: {other}", names[0]), output },
        }
    }
    Checked::Well { output }
}

/// Where a program is. The administrator's own are not on everybody's path.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A volume as a file; gone when this is dropped.
struct Fuse {
    child: Child,
    file: PathBuf,
    folder: PathBuf,
    /// Dropped last: nothing is mounted in it then.
    scratch: Option<Scratch>,
}

impl Fuse {
    fn start(nbdfuse: &Path, uri: &str) -> Result<Fuse, String> {
        let scratch = Scratch::new("drill").map_err(|failure| failure.what)?;
        let folder = scratch.path().join("mount");
        let said = scratch.path().join("said");
        let cannot = |error: std::io::Error| error.to_string();
        std::fs::create_dir(&folder).map_err(cannot)?;
        let file = folder.join("volume");
        let stderr = File::create(&said).map_err(cannot)?;
        let child = Command::new(nbdfuse)
            .args([file.as_os_str(), OsStr::new(uri)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(cannot)?;
        let mut fuse = Fuse { child, file, folder, scratch: Some(scratch) };
        let begun = Instant::now();
        while !fuse.file.exists() {
            if !matches!(fuse.child.try_wait(), Ok(None)) {
                let said = std::fs::read(said).unwrap_or_default();
                let said = String::from_utf8_lossy(&said[..said.len().min(MAX_SAID_BYTES)]).trim().to_owned();
                return Err(if said.is_empty() { "it ended at once".to_owned() } else { said });
            }
            if begun.elapsed() > FUSE_WAIT {
                return Err("it shows no file".to_owned());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(fuse)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // SIGTERM unmounts. If it does not, somebody still has the file open; then what is mounted is taken away.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > FUSE_WAIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if self.file.exists() {
            for (program, arguments) in [("fusermount3", ["-u", "-z"]), ("umount", ["-l", "-f"])] {
                if let Some(program) = find(program) {
                    let _ = Command::new(program).args(arguments).arg(&self.folder).output();
                }
            }
        }
        drop(self.scratch.take());
    }
}
