//! The servers that are measured side by side, each with a volume of its own on the same filesystem, by unix
//! socket.
//!
//! | column | what it is |
//! |---|---|
//! | `landfall` | a protected volume, its replica connected, both on this machine |
//! | `landfall, link down` | the same without its replica |
//! | `nbdkit` | `nbdkit file`: one process, a file, no protection |
//! | `qemu-nbd` | the same from qemu |
//! | `mirror` | a `qemu-storage-daemon` that writes through to a second one over NBD: what replicates in user space today |

use crate::common::{GIB, empty_file, fill, written_file};
use crate::support::node::{Control, Pair, Volume, uri};
use crate::support::{Scratch, tool, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The part of each volume that is worked on, which is all of it.
pub(crate) const VOLUME_BYTES: u64 = GIB;

const PATIENCE: Duration = Duration::from_secs(120);

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Landfall,
    LinkDown,
    Nbdkit,
    QemuNbd,
    Mirror,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Landfall, Kind::LinkDown, Kind::Nbdkit, Kind::QemuNbd, Kind::Mirror];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Landfall => "landfall",
            Kind::LinkDown => "landfall, link down",
            Kind::Nbdkit => "nbdkit",
            Kind::QemuNbd => "qemu-nbd",
            Kind::Mirror => "mirror",
        }
    }

    /// The program that it needs.
    pub(crate) fn needs(self) -> Option<&'static str> {
        match self {
            Kind::Landfall | Kind::LinkDown => None,
            Kind::Nbdkit => Some("nbdkit"),
            Kind::QemuNbd => Some("qemu-nbd"),
            Kind::Mirror => Some("qemu-storage-daemon"),
        }
    }
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// Where fio finds it.
    pub(crate) uri: String,
    /// Its processes, each with a word for it.
    pub(crate) processes: Vec<(&'static str, u32)>,
    // Dropped in this order: processes before the folders that they work in.
    pair: Option<Pair>,
    _running: Vec<Running>,
    _folders: [Scratch; 2],
}

/// What runs of a server.
struct Parts {
    uri: String,
    processes: Vec<(&'static str, u32)>,
    pair: Option<Pair>,
    running: Vec<Running>,
}

impl Server {
    /// Starts one; its files lie in a folder in `dir`, its sockets where paths are short.
    pub(crate) fn start(kind: Kind, dir: &Path) -> Server {
        let scratch = Scratch::under(dir);
        let sockets = Scratch::new();
        let disk = scratch.join("disk");
        match kind {
            // A new volume starts empty, and is filled through its front end.
            Kind::Landfall | Kind::LinkDown => empty_file(&disk, VOLUME_BYTES),
            Kind::Nbdkit | Kind::QemuNbd | Kind::Mirror => written_file(&disk, VOLUME_BYTES),
        }
        let parts = match kind {
            Kind::Landfall | Kind::LinkDown => landfall(kind, &scratch, disk, &sockets),
            Kind::Nbdkit => {
                let socket = sockets.join("nbd");
                let mut command = tool::command("nbdkit");
                command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(&disk);
                alone(&socket, "", Running::start(command))
            }
            Kind::QemuNbd => {
                let socket = sockets.join("nbd");
                let mut command = tool::command("qemu-nbd");
                command.args([
                    "--format=raw",
                    "--persistent",
                    "--shared=16",
                    "--cache=writeback",
                    "--aio=threads",
                ]);
                command.arg("--socket").arg(&socket).arg(&disk);
                alone(&socket, "", Running::start(command))
            }
            Kind::Mirror => mirror(&scratch, &disk, &sockets),
        };
        Server {
            kind,
            uri: parts.uri,
            processes: parts.processes,
            pair: parts.pair,
            _running: parts.running,
            _folders: [scratch, sockets],
        }
    }

    /// Waits until nothing is left to do of what was written.
    pub(crate) fn settle(&mut self) {
        match (&mut self.pair, self.kind) {
            (Some(pair), Kind::Landfall) => {
                pair.wait_caught_up();
            }
            (Some(pair), _) => {
                pair.wait_durable();
            }
            (None, _) => {}
        }
    }

    /// The lag in milliseconds, as often as it is asked for; only where there is a replica.
    pub(crate) fn lag(&self) -> Option<Lag> {
        let pair = self.pair.as_ref().filter(|_| self.kind == Kind::Landfall)?;
        Control::connect(&pair.east.control_socket()).map(Lag)
    }
}

/// See [`Server::lag`].
pub(crate) struct Lag(Control);

impl Lag {
    pub(crate) fn milliseconds(&mut self) -> Option<f64> {
        let status = self.0.status()?;
        status["groups"][0]["replicas"][0]["lag"]["ms"].as_f64()
    }
}

fn landfall(kind: Kind, scratch: &Scratch, disk: PathBuf, sockets: &Scratch) -> Parts {
    let volume = Volume { backing: Some(disk), ..Volume::new("data", VOLUME_BYTES) };
    let mut pair = Pair::init(scratch.path(), &[volume]);
    pair.east.put_sockets(&sockets.join("e"));
    pair.west.put_sockets(&sockets.join("w"));
    // Enough for a round of writes that no replica takes.
    pair.east.set("log_limit", "\"64GiB\"");
    pair.west.set("retention", "{ time = \"24h\", bytes = \"4GiB\" }");
    let mut processes = Vec::new();
    if kind == Kind::Landfall {
        pair.west.start();
        processes.push(("replica:", pair.west.pid()));
    }
    pair.east.start();
    processes.push(("agent:", pair.east.pid()));
    if kind == Kind::Landfall {
        pair.wait_connected();
    }
    fill(&pair.east.uri("data"), VOLUME_BYTES);
    Parts { uri: pair.east.uri("data"), processes, pair: Some(pair), running: Vec::new() }
}

fn alone(socket: &Path, export: &str, running: Running) -> Parts {
    wait_until("the server listens", PATIENCE, || UnixStream::connect(socket).is_ok());
    let processes = vec![("server:", running.pid())];
    Parts { uri: uri(socket, export), processes, pair: None, running: vec![running] }
}

/// Source and target are daemons of the same kind; the target is reached by unix socket, which is the fastest.
fn mirror(scratch: &Scratch, disk: &Path, sockets: &Scratch) -> Parts {
    let copy = scratch.join("copy");
    written_file(&copy, VOLUME_BYTES);
    let [near, far, monitor] = ["near", "far", "monitor"].map(|name| sockets.join(name));
    let target = Running::start(storage_daemon(&copy, &far, &[]));
    wait_until("the target listens", PATIENCE, || UnixStream::connect(&far).is_ok());
    let link = format!("driver=nbd,node-name=far,export=disk,server.type=unix,server.path={}", far.display());
    let chardev = format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display());
    let source = storage_daemon(
        disk,
        &near,
        &["--blockdev", &link, "--chardev", &chardev, "--monitor", "chardev=monitor"],
    );
    let source = alone(&near, "disk", Running::start(source));
    start_mirroring(&monitor);
    let processes = vec![("source:", source.processes[0].1), ("target:", target.pid())];
    Parts { processes, running: source.running.into_iter().chain([target]).collect(), ..source }
}

fn storage_daemon(disk: &Path, socket: &Path, more: &[&str]) -> Command {
    let mut command = tool::command("qemu-storage-daemon");
    command.arg("--blockdev").arg(format!("driver=file,node-name=file,filename={}", disk.display()));
    command.args(["--blockdev", "driver=raw,node-name=disk,file=file"]);
    command.args(more);
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
    command.args(["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on"]);
    command
}

/// Copies the disk, and returns when every write goes to both sides.
fn start_mirroring(monitor: &Path) {
    let stream = UnixStream::connect(monitor).expect("the monitor listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
    let mut lines = BufReader::new(stream.try_clone().expect("descriptors are to be had")).lines();
    let mut wait_for = |key: &str, value: Option<&str>| {
        loop {
            let line = lines.next().expect("the daemon lives").expect("the monitor answers");
            let answer: Value = serde_json::from_str(&line).expect("the monitor speaks JSON");
            assert!(answer.get("error").is_none(), "the monitor refuses: {answer}");
            if answer.get(key).is_some_and(|found| value.is_none_or(|value| found == value)) {
                return;
            }
        }
    };
    let say =
        |command: &str| (&stream).write_all(format!("{command}\n").as_bytes()).expect("the daemon lives");
    wait_for("QMP", None);
    say(r#"{"execute":"qmp_capabilities"}"#);
    wait_for("return", None);
    say(
        r#"{"execute":"blockdev-mirror","arguments":{"job-id":"mirror","device":"disk","target":"far","sync":"full","copy-mode":"write-blocking"}}"#,
    );
    wait_for("event", Some("BLOCK_JOB_READY"));
}

/// A process that ends with the value.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Running {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Running(child.unwrap_or_else(|err| panic!("{command:?}: {err}")))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
