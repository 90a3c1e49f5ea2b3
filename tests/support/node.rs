//! A `landfall` daemon as a child process, and the pair of them that a test works on.
//!
//! What holds: a node that was started is killed when it is dropped; every wait has an end, and its message shows
//! what the daemon said last.

use super::{Scratch, tool, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// The program under test.
pub const LANDFALL: &str = env!("CARGO_BIN_EXE_landfall");

/// The group that a [`Pair`] has.
pub const GROUP: &str = "db";

/// How long anything may take that has no reason to take long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Where much has to be copied on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Two nodes with one group, `east` its primary and `west` its replica.
#[derive(Debug)]
pub struct Pair {
    pub east: Node,
    pub west: Node,
}

/// A volume of the group.
#[derive(Clone, Debug)]
pub struct Volume {
    pub name: String,
    pub size: u64,
    /// A file of the test's own; none: Landfall makes one.
    pub backing: Option<PathBuf>,
}

impl Volume {
    pub fn new(name: &str, size: u64) -> Volume {
        Volume { name: name.to_owned(), size, backing: None }
    }
}

impl Pair {
    /// Configurations and certificates, in `dir`/east and `dir`/west. Nothing runs yet.
    #[track_caller]
    pub fn init(dir: &Path, volumes: &[Volume]) -> Pair {
        Pair::init_with(dir, volumes, false)
    }

    /// The same, where each dials the other once it is the primary.
    #[track_caller]
    pub fn init_symmetric(dir: &Path, volumes: &[Volume]) -> Pair {
        Pair::init_with(dir, volumes, true)
    }

    #[track_caller]
    fn init_with(dir: &Path, volumes: &[Volume], west_dials: bool) -> Pair {
        let [east_port, west_port] = free_ports();
        let east = Node::named(dir, "east", "agent");
        let mut init = landfall();
        init.arg("init").arg("--dir").arg(&east.dir).args(["--name", "east"]);
        init.args(["--listen", &format!("127.0.0.1:{east_port}")]);
        init.args(["--peer", &format!("west=127.0.0.1:{west_port}"), "--group", GROUP]);
        for volume in volumes {
            let backing =
                volume.backing.as_ref().map_or_else(String::new, |path| format!(":{}", path.display()));
            init.args(["--volume", &format!("{}={}B{backing}", volume.name, volume.size)]);
        }
        tool::check(&mut init);
        let west = Node::named(dir, "west", "replica");
        let mut init = landfall();
        init.arg("init").arg("--dir").arg(&west.dir).args(["--name", "west"]);
        init.arg("--join").arg(east.dir.join("ca"));
        let east_peer = if west_dials { format!("east=127.0.0.1:{east_port}") } else { "east".to_owned() };
        init.args(["--listen", &format!("127.0.0.1:{west_port}"), "--peer", &east_peer, "--group", GROUP]);
        tool::check(&mut init);
        // Records are counted by many tests; whoever wants periodic marks sets them anew.
        east.set("marks", "\"off\"");
        west.set("marks", "\"off\"");
        Pair { east, west }
    }

    /// The usual beginning: both run, and the link is up.
    #[track_caller]
    pub fn start(dir: &Path, volumes: &[Volume]) -> Pair {
        let mut pair = Pair::init(dir, volumes);
        pair.west.start();
        pair.east.start();
        pair.wait_connected();
        pair
    }

    #[track_caller]
    pub fn wait_connected(&mut self) {
        let east = &self.east;
        wait_until("the link from east to west", PATIENCE, || {
            east.group()["replicas"][0]["link"]["state"] == "connected"
        });
    }

    /// Waits until everything so far is durable at the primary; returns the LSN. Others may be writing.
    #[track_caller]
    pub fn wait_durable(&mut self) -> u64 {
        let lsn = self.east.position("appended");
        let east = &self.east;
        wait_until("the primary makes it durable", PATIENCE, || east.position("durable") >= lsn);
        lsn
    }

    /// Waits until the replica has everything up to an LSN.
    #[track_caller]
    pub fn wait_replica(&mut self, lsn: u64) {
        let west = &self.west;
        wait_until("the replica has it", PATIENCE, || west.position("durable") >= lsn);
    }

    /// Waits until the replica has all that the primary has; returns the LSN. Nothing may be writing.
    #[track_caller]
    pub fn wait_caught_up(&mut self) -> u64 {
        let east = &self.east;
        let mut lsn = 0;
        wait_until("the replica has everything", PATIENCE, || {
            let positions = &east.group()["positions"];
            lsn = number(&positions["appended"]);
            number(&positions["durable"]) == lsn && positions["replica_durable"] == lsn
        });
        self.wait_replica(lsn);
        lsn
    }
}

/// Waits until `replica` is whole and has everything that `primary` has. Nothing may be writing.
#[track_caller]
pub fn wait_whole(primary: &Node, replica: &Node) {
    wait_until("the replica is whole, and has everything", LONG, || {
        let (from, to) = (primary.group(), replica.group());
        let lsn = number(&from["positions"]["durable"]);
        to["role"] == "replica"
            && from["replicas"][0]["catching_up"].is_null()
            && number(&to["positions"]["durable"]) == lsn
            && !to["window"].is_null()
            && number(&to["window"]["latest"]["lsn"]) == lsn
    });
}

/// One daemon.
#[derive(Debug)]
pub struct Node {
    pub name: &'static str,
    pub dir: PathBuf,
    sockets: PathBuf,
    role: &'static str,
    user: Option<u32>,
    child: Option<Child>,
}

impl Node {
    fn named(dir: &Path, name: &'static str, role: &'static str) -> Node {
        let dir = dir.join(name);
        Node { name, sockets: dir.join("data"), dir, role, user: None, child: None }
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("landfall.toml")
    }

    /// Where it listens for primaries.
    pub fn listens(&self) -> std::net::SocketAddr {
        let config = std::fs::read_to_string(self.config()).expect("a configuration");
        let line = config.lines().find_map(|line| line.strip_prefix("listen = ")).expect("it listens");
        line.trim_matches('"').parse().expect("an address")
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.sockets.join("nbd.sock")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.sockets.join("control.sock")
    }

    /// Puts the sockets into a folder of their own, which is made: where the node's own path would be too long.
    #[track_caller]
    pub fn put_sockets(&mut self, dir: &Path) {
        std::fs::create_dir_all(dir).expect("a folder can be made");
        self.sockets = dir.to_owned();
        self.set("control", &format!("{:?}", self.control_socket()));
        self.set("socket", &format!("{:?}", self.nbd_socket()));
    }

    /// The group's folder in the data directory.
    pub fn group_dir(&self) -> PathBuf {
        self.dir.join("data/groups").join(GROUP)
    }

    /// Where NBD clients find a volume.
    pub fn uri(&self, volume: &str) -> String {
        uri(&self.nbd_socket(), &format!("{GROUP}/{volume}"))
    }

    /// Sets a key of the configuration that its template shows as a comment. `value` is as in the file.
    #[track_caller]
    pub fn set(&self, key: &str, value: &str) {
        let path = self.config();
        let text = std::fs::read_to_string(&path).expect("init wrote a configuration");
        let mut found = 0;
        let changed = text
            .lines()
            .map(|line| match line.strip_prefix('#').unwrap_or(line).split_once(" = ") {
                Some((name, _)) if name == key => {
                    found += 1;
                    format!("{key} = {value}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect::<String>();
        assert_eq!(found, 1, "places for {key} in {}", path.display());
        std::fs::write(&path, changed).expect("the configuration can be changed");
    }

    /// Gives all that is the node's to another user, whom the daemon and the commands run as from now on. Needs root.
    #[track_caller]
    pub fn give_to(&mut self, user: u32) {
        assert!(self.child.is_none(), "{} runs", self.name);
        tool::run("chown", ["-R", &format!("{user}:{user}"), self.dir.to_str().expect("plain")]);
        self.user = Some(user);
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the daemon and does not wait.
    #[track_caller]
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.expect("the daemon's log can be written");
        let mut command = self.command([self.role]);
        command.stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("the program is there"));
    }

    #[track_caller]
    pub fn wait_ready(&mut self) {
        let start = std::time::Instant::now();
        while self.try_status().is_none() {
            let child = self.child.as_mut().expect("the node was started");
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!("{} ended: {status}\n{}", self.name, self.last_words());
            }
            assert!(start.elapsed() < PATIENCE, "{} is not ready\n{}", self.name, self.last_words());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The daemon's process.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died already; the wait tells.
            let _ = child.kill();
            child.wait().expect("our own child");
        }
    }

    /// SIGTERM, and its end, which has to be a good one.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child");
        let status = child.wait().expect("our own child");
        assert!(status.success(), "{} ended: {status}\n{}", self.name, self.last_words());
    }

    /// A command for this node.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = landfall();
        command.arg("--config").arg(self.config()).args(arguments);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs a command for this node that has to succeed, with `--json`.
    #[track_caller]
    pub fn ask<const N: usize>(&self, arguments: [&str; N]) -> Value {
        let mut command = self.command(arguments);
        let text = tool::check(command.arg("--json"));
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("{command:?}: {err}: {text}"))
    }

    /// Runs a command for this node, however it ends.
    #[track_caller]
    pub fn try_ask<const N: usize>(&self, arguments: [&str; N]) -> Output {
        tool::output(self.command(arguments).arg("--json"))
    }

    /// The answer of `status`, by the control socket: asked often, a process each time is too dear.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("{} does not answer\n{}", self.name, self.last_words()))
    }

    pub fn try_status(&self) -> Option<Value> {
        Control::connect(&self.control_socket())?.status()
    }

    /// The group in `status`.
    #[track_caller]
    pub fn group(&self) -> Value {
        self.status()["groups"][0].clone()
    }

    /// One of the positions in `status`.
    #[track_caller]
    pub fn position(&self, name: &str) -> u64 {
        number(&self.group()["positions"][name])
    }

    /// A recovery point, served read-only while the value lives.
    #[track_caller]
    pub fn mount_point(&self, at: &str) -> MountedPoint<'_> {
        let answer = self.ask(["mount-point", GROUP, "--at", at, "--detach"]);
        MountedPoint { node: self, answer }
    }

    /// One that can be written to.
    #[track_caller]
    pub fn mount_writable(&self, at: &str) -> MountedPoint<'_> {
        let answer = self.ask(["mount-point", GROUP, "--at", at, "--writable", "--detach"]);
        MountedPoint { node: self, answer }
    }

    /// Checks the log on disk; the daemon must not run. `at` tells where in the test.
    #[track_caller]
    pub fn verify_log(&self, at: &str) {
        assert_eq!(self.outcome_of_log(at), "clean", "{at}: {}", self.name);
    }

    /// The same for a daemon that was killed: the signal may have cut off the write that was under way.
    #[track_caller]
    pub fn verify_killed_log(&self, at: &str) {
        let outcome = self.outcome_of_log(at);
        assert!(outcome == "clean" || outcome == "torn", "{at}: {}: {outcome}", self.name);
    }

    #[track_caller]
    fn outcome_of_log(&self, at: &str) -> String {
        let dir = self.group_dir();
        let output = tool::output(landfall().args(["log", "verify", "--json"]).arg(&dir));
        assert!(output.status.success(), "{at}: {}\n{}", self.name, tool::said(&output));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("an answer in JSON");
        answer["outcome"]["name"].as_str().expect("a name").to_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The end of what the daemon said.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines = text.lines().collect::<Vec<_>>();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() && self.child.is_some() {
            eprintln!("-- {} said:\n{}", self.name, self.last_words());
        }
        self.kill();
    }
}

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Control(BufReader<UnixStream>);

impl Control {
    /// See [`Node::control_socket`].
    pub fn connect(socket: &Path) -> Option<Control> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(Control(BufReader::new(stream)))
    }

    pub fn status(&mut self) -> Option<Value> {
        self.0.get_mut().write_all(b"{\"version\":1,\"method\":\"status\"}\n").ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        let mut answer: Value = serde_json::from_str(&line).ok()?;
        Some(answer.get_mut("ok")?.take())
    }
}

/// See [`Node::mount_point`].
#[derive(Debug)]
pub struct MountedPoint<'a> {
    node: &'a Node,
    answer: Value,
}

impl MountedPoint<'_> {
    pub fn lsn(&self) -> u64 {
        number(&self.answer["at"]["lsn"])
    }

    #[track_caller]
    pub fn socket(&self) -> PathBuf {
        self.answer["endpoint"]["unix"].as_str().expect("it is served at a unix socket").into()
    }

    #[track_caller]
    pub fn export(&self, volume: &str) -> String {
        let volumes = self.answer["volumes"].as_array().expect("a list");
        let found = volumes.iter().find(|found| found["name"] == volume).expect("the group has that volume");
        found["export"].as_str().expect("it is served").to_owned()
    }

    #[track_caller]
    pub fn uri(&self, volume: &str) -> String {
        uri(&self.socket(), &self.export(volume))
    }
}

impl Drop for MountedPoint<'_> {
    fn drop(&mut self) {
        let mount = self.answer["mount"].to_string();
        let output = self.node.try_ask(["unmount", &mount]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("unmount {mount}: {}", tool::said(&output));
        }
    }
}

/// `landfall`, with nothing from outside that could lead it astray.
pub fn landfall() -> Command {
    let mut command = Command::new(LANDFALL);
    command.env_remove("LANDFALL_CONFIG").stdin(Stdio::null());
    command
}

/// The URI of an export at a unix socket. Names and paths of tests need no escapes.
pub fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// A number in an answer.
#[track_caller]
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} where a number was expected"))
}

/// Two UDP ports that nobody has just now.
fn free_ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("loopback has free ports"));
    sockets.map(|socket| socket.local_addr().expect("it is bound").port())
}

/// A folder with a pair in it that both run.
pub fn started(volumes: &[Volume]) -> (Pair, Scratch) {
    let scratch = Scratch::new();
    (Pair::start(scratch.path(), volumes), scratch)
}
