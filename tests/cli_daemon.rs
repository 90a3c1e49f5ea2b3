//! Two daemons as an operator sees them: `init`, `agent`, `replica`, and every command that asks them.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use transport::nbd::client::{Address, Client};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: PathBuf,
    daemons: Vec<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl World {
    /// Two nodes that know each other: `east` protects the group `db` with one volume, `west` receives it.
    fn new() -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("landfall-daemon-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mut world = World { dir, daemons: Vec::new() };
        let west = "init --dir west --name west --listen 127.0.0.1:0 --peer east --group db";
        let east = "init --dir east --name east --listen 127.0.0.1:0 --group db --volume data=16MiB";
        // The replica first, so that its port is known to the primary's configuration.
        world.run(west).ok();
        world.start("replica", "west");
        let listen = world.wait("west", |status| status["node"]["listen"].as_str().map(str::to_owned));
        world.run(&format!("{east} --join west/ca --peer west={listen}")).ok();
        world.start("agent", "east");
        world.wait("east", |status| {
            let group = &status["groups"][0];
            (group["replicas"][0]["link"]["state"] == "connected").then_some(())
        });
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_landfall"));
        command.args(line.split_whitespace()).current_dir(&self.dir).env_remove("LANDFALL_LOG");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Ran {
        Ran(line.to_owned(), self.command(line).output().unwrap())
    }

    fn start(&mut self, command: &str, node: &str) {
        let log = fs::File::create(self.path(&format!("{node}.log"))).unwrap();
        let child = self
            .command(&format!("{command} --config {node}/landfall.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemons.push(child);
    }

    /// Asks for a node's status until it shows what is looked for.
    fn wait<T>(&self, node: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(&format!("status --json --config {node}/landfall.toml")).1;
            let status = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if let Some(found) = look(&status) {
                return found;
            }
            let log = || fs::read_to_string(self.path(&format!("{node}.log"))).unwrap_or_default();
            assert!(Instant::now() < deadline, "{node}: {status:#}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes a byte over the first 64 KiB of the primary's volume, flushed; the LSN after it, once `west` has it.
    fn write(&self, byte: u8) -> u64 {
        let mut client = connect(&self.path("east/data/nbd.sock"), "db/data");
        client.write(0, &[byte; 65_536]).unwrap();
        client.flush().unwrap();
        let lsn = self.wait("east", |status| status["groups"][0]["positions"]["durable"].as_u64());
        self.wait("west", |status| {
            (status["groups"][0]["positions"]["durable"].as_u64() >= Some(lsn)).then_some(())
        });
        lsn
    }
}

struct Ran(String, Output);

impl Ran {
    #[track_caller]
    fn ok(&self) -> String {
        self.code(0)
    }

    /// Both streams, if it ended with that code.
    #[track_caller]
    fn code(&self, code: i32) -> String {
        let Ran(line, output) = self;
        let both =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{line}: {both}");
        both
    }

    #[track_caller]
    fn json(&self) -> Value {
        self.ok();
        serde_json::from_slice(&self.1.stdout).unwrap()
    }
}

fn connect(socket: &Path, export: &str) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).unwrap()
}

fn first_byte(socket: &Path, export: &str) -> u8 {
    let mut sector = [0; 512];
    connect(socket, export).read(0, &mut sector).unwrap();
    assert!(sector.iter().all(|byte| *byte == sector[0]));
    sector[0]
}

fn terminate(child: &mut Child) -> Option<i32> {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM)
        .unwrap();
    child.wait().unwrap().code()
}

#[test]
fn points_are_listed_mounted_and_unmounted() {
    let world = World::new();
    let first = world.write(1);
    let second = world.write(2);
    let text = world.run("points list db --config west/landfall.toml").ok();
    assert!(text.contains("horizon") && text.contains("latest"), "{text}");
    let points = world.run("points list db --json --config west/landfall.toml").json();
    assert!(points["window"]["latest"]["lsn"].as_u64() >= Some(second), "{points:#}");

    // Two points at the same time, each what it was.
    for (lsn, byte) in [(first, 1), (second, 2)] {
        let line = format!("mount-point db --at lsn:{lsn} --detach --json --config west/landfall.toml");
        let mount = world.run(&line).json();
        let socket = PathBuf::from(mount["endpoint"]["unix"].as_str().unwrap());
        let export = mount["volumes"][0]["export"].as_str().unwrap();
        assert_eq!(first_byte(&socket, export), byte);
        assert!(connect(&socket, export).is_read_only());
        let status = world.run("status --config west/landfall.toml").ok();
        assert!(status.contains("SERVED AT"), "{status}");
        let unmount = format!("unmount {} --config west/landfall.toml", mount["mount"]);
        world.run(&unmount).ok();
        world.run(&unmount).code(3);
        assert!(!socket.exists());
    }

    for (line, words) in [
        ("points list dbb --config west/landfall.toml", "dbb"),
        ("mount-point db --at lsn:999999 --config west/landfall.toml", "cannot be selected"),
        ("mount-point db --at time:1999-01-01T00:00:00Z --config west/landfall.toml", "cannot be selected"),
    ] {
        let said = world.run(line).code(3);
        assert!(said.contains(words), "{said}");
    }
}

/// A mount lives as long as the command that asked for it, whatever ends that.
#[test]
fn a_mount_ends_with_its_command() {
    let world = World::new();
    let lsn = world.write(1);
    let socket = world.path("point.sock");
    let line = format!("mount-point db --at lsn:{lsn} --socket point.sock --config west/landfall.toml");
    for by_kill in [false, true] {
        let mut command = world.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mounts = |status: &Value| status["mounts"].as_array().map_or(0, Vec::len);
        world.wait("west", |status| (mounts(status) == 1).then_some(()));
        assert_eq!(first_byte(&socket, "db/data"), 1);
        if by_kill {
            command.kill().unwrap();
            command.wait().unwrap();
        } else {
            assert_eq!(terminate(&mut command), Some(0));
        }
        world.wait("west", |status| (mounts(status) == 0).then_some(()));
        assert!(!socket.exists());
    }
}

/// R07, R08: a failover says what it costs, asks, is done once, and shuts the old primary out.
#[test]
fn a_failover_is_planned_confirmed_done_once_and_fences_the_old_primary() {
    let mut world = World::new();
    let first = world.write(1);
    world.write(2);

    let plan = world.run(&format!("failover db --to lsn:{first} --plan --config west/landfall.toml")).ok();
    assert!(plan.contains("Set aside as a branch") && plan.contains("Lost:"), "{plan}");
    let unasked = world.run("failover db --to latest --config west/landfall.toml");
    assert!(unasked.code(6).contains("repeat the command with --yes"));
    let role = |status: &Value| status["groups"][0]["role"].as_str().map(str::to_owned);
    assert_eq!(world.wait("west", role), "replica");

    let line = format!("failover db --to lsn:{first} --yes --json --config west/landfall.toml");
    let promotion = world.run(&line).json();
    assert_eq!(promotion["to"]["lsn"], first, "{promotion:#}");
    let socket = world.path("west/data/nbd.sock");
    assert_eq!(first_byte(&socket, "db/data"), 1);
    connect(&socket, "db/data").write(0, &[3; 65_536]).unwrap();
    assert_eq!(first_byte(&socket, "db/data"), 3);
    let points = world.run("points list db --json --config west/landfall.toml").json();
    assert_eq!(points["branches"].as_array().unwrap().len(), 1, "{points:#}");

    // The old primary learns of it, says so, and takes no writes.
    world.wait("east", |status| (status["groups"][0]["state"]["name"] == "fenced").then_some(()));
    let text = world.run("status --config east/landfall.toml").ok();
    assert!(text.contains("FENCED by epoch 2"), "{text}");
    // It may refuse the connection or the write, but nothing is taken.
    let address = Address::Unix(world.path("east/data/nbd.sock"));
    if let Ok(mut client) = Client::connect(&address, "db/data", PATIENCE) {
        client.write(0, &[9; 512]).unwrap_err();
    }

    // Restarted, each is what it was.
    for daemon in &mut world.daemons {
        assert_eq!(terminate(daemon), Some(0));
    }
    world.daemons.clear();
    for node in ["east", "west"] {
        let verified = world.run(&format!("log verify {node}/data/groups/db --json")).json();
        assert_eq!(verified["outcome"]["name"], "clean", "{node}: {verified:#}");
        world.run(&format!("log inspect {node}/data/groups/db")).ok();
    }
    world.start("replica", "west");
    assert_eq!(world.wait("west", role), "primary");
    assert_eq!(first_byte(&socket, "db/data"), 3);
    world.start("agent", "east");
    world.wait("east", |status| (status["groups"][0]["state"]["name"] == "fenced").then_some(()));
}

/// W28, and the control socket's part in it.
#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let world = World::new();
    let said = world.run("agent --config east/landfall.toml").code(3);
    assert!(said.contains("db"), "{said}");
    world.wait("east", |status| (status["groups"][0]["state"]["name"] == "serving").then_some(()));
    // Nor is a log read under a daemon's hands.
    world.run("log verify east/data/groups/db").code(3);
    world.run("log export-trace east/data/groups/db -o db.trace").code(3);
    assert!(!world.path("db.trace").exists());
}

/// A team's own load, without its bytes, through an outage in the simulator; and again from the run's trace.
#[test]
fn a_log_is_exported_and_played_in_the_simulator() {
    let mut world = World::new();
    world.write(0xA7);
    world.write(0xA8);
    world.daemons.iter_mut().for_each(|daemon| assert_eq!(terminate(daemon), Some(0)));
    world.daemons.clear();

    world.run("log export-trace east/data/groups/db -o db.trace").ok();
    let text = fs::read_to_string(world.path("db.trace")).unwrap();
    assert_eq!(world.run("log export-trace east/data/groups/db").ok(), text, "stdout has the same");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["format"], &lines[0]["version"]), (&"landfall-workload".into(), &1.into()));
    let written = lines.iter().filter(|line| line["kind"] == "write" && line["volume"] == "data");
    assert_eq!(written.filter_map(|line| line["length"].as_u64()).sum::<u64>(), 2 * 65_536);
    let last = lines.last().unwrap()["lsn"].as_u64().unwrap();
    let part = world.run(&format!("log export-trace east/data/groups/db --from {last} --to {last}")).ok();
    assert_eq!(part.lines().count(), 2, "{part}");
    world.run(&format!("log export-trace east/data/groups/db --from {}", last + 1)).code(2);
    world.run("log export-trace nowhere").code(2);
    let unwritable = world.run("log export-trace east/data/groups/db -o none/db.trace").code(1);
    assert!(unwritable.contains("none/db.trace cannot be written"), "{unwritable}");
    let left = fs::read_dir(&world.dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().contains(".trace")).count(), 1);

    let workload = "[workload]\nkind = \"trace\"\nfile = \"db.trace\"\nvolumes_kib = [1024]\n";
    let outage = world.run("sim scenarios region-outage").ok();
    let scenario = format!("{}{workload}", outage.split("[assert]").next().unwrap());
    fs::create_dir(world.path("ours")).unwrap();
    fs::write(world.path("ours/ours.toml"), &scenario).unwrap();
    let missing = world.run("sim run --scenario ours/ours.toml").code(2);
    assert!(missing.contains("db.trace cannot be read"), "{missing}");
    fs::rename(world.path("db.trace"), world.path("ours/db.trace")).unwrap();
    let run = "sim run --scenario ours/ours.toml --json";
    let hash = world.run(run).json()["trace_hash"].clone();
    let again = world.run(&format!("{run} --trace run.trace")).json()["trace_hash"].clone();
    assert_eq!(hash, again);
    world.run("sim replay run.trace").ok();
    // Another file under that name is another run.
    fs::write(world.path("ours/db.trace"), format!("{text}\n")).unwrap();
    let other = world.run("sim replay run.trace").code(3);
    assert!(other.contains("is not the file that the run in run.trace was made with"), "{other}");
    fs::write(world.path("ours/db.trace"), text.replace("\"version\":1", "\"version\":7")).unwrap();
    let version = world.run(run).code(2);
    assert!(version.contains("line 1: it is of version 7, and this reads version 1"), "{version}");
}
