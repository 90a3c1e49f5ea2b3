//! The scripts that come with `landfall mark`, with the real programs that they are for: what a point is with them,
//! that they refuse where a mark would claim too much, and that nothing stays stopped, whatever dies. (R16)
//!
//! How a database is judged: a client writes 1, 2, 3, … each in a transaction of its own, and counts what it has begun
//! and what was acknowledged. A point has what was acknowledged before the mark was asked for, nothing that was begun
//! behind the answer, and no gap.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use support::disk::LoopDisk;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, landfall, started};
use support::postgres::{self, Cluster, Session};
use support::{Scratch, tool, wait_until};

/// The scripts, as an operator gets them.
struct Hooks(PathBuf);

impl Hooks {
    #[track_caller]
    fn written(scratch: &Scratch) -> Hooks {
        let dir = scratch.join("hooks");
        tool::check(landfall().args(["hooks", "--to"]).arg(&dir));
        Hooks(dir)
    }

    fn call(&self, name: &str, arguments: &str) -> String {
        format!("{}/{name}.sh {arguments}", self.0.display())
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A pair with a filesystem on its volume, mounted.
fn mounted(bytes: u64, needs: &[&str]) -> Option<(Pair, Scratch, LoopDisk, PathBuf)> {
    let programs = ["fsfreeze", "setsid", "dumpe2fs"];
    if !tool::has(&support::disk::NEEDS) || !tool::has(&programs) || !tool::has(needs) {
        return None;
    }
    let (pair, scratch) = started(&[Volume::new("data", bytes)]);
    let mut disk = LoopDisk::over_nbd(&scratch.join("fuse"), &pair.east.uri("data"));
    disk.format();
    let dir = scratch.join("fs");
    disk.mount(&dir);
    Some((pair, scratch, disk, dir))
}

/// The answer of a mark that has to be set.
#[track_caller]
fn marked(command: &mut Command) -> serde_json::Value {
    let text = tool::check(command.arg("--json"));
    serde_json::from_str(&text).expect("an answer in JSON")
}

/// The marks that were set so far, by name and kind.
#[track_caller]
fn marks(pair: &Pair) -> Vec<(String, String)> {
    // One more, which comes behind all that there can be, so that it is known when all have come.
    let last = pair.east.ask(["mark", GROUP, "--name", "listed"])["lsn"].clone();
    let mut marks = Vec::new();
    wait_until("the replica lists the marks", PATIENCE, || {
        marks = pair.west.ask(["points", "list", GROUP])["marks"].as_array().expect("a list").clone();
        marks.iter().any(|mark| mark["lsn"] == last)
    });
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let marks = marks.iter().map(|mark| (text(&mark["name"]), text(&mark["kind"])));
    marks.filter(|(name, _)| name != "listed").collect()
}

/// A point as a file: its filesystem is clean as it lies there, without its journal.
#[track_caller]
fn clean_copy(node: &Node, at: &str, copy: &Path) {
    let point = node.mount_point(at);
    tool::run("nbdcopy", [&point.uri("data"), plain(copy)]);
    let header = tool::run("dumpe2fs", [Path::new("-h"), copy]);
    assert!(!header.contains("needs_recovery"), "{at}: the journal is not empty:\n{header}");
    let check = tool::output(tool::command("e2fsck").args(["-f", "-n"]).arg(copy));
    assert_eq!(check.status.code(), Some(0), "{at}: {}", tool::said(&check));
}

/// Whether a filesystem is frozen. It is found out by freezing it.
fn is_frozen(dir: &Path) -> bool {
    let freeze = tool::output(tool::command("fsfreeze").arg("--freeze").arg(dir));
    if freeze.status.success() {
        // A guard that is still there may be faster.
        tool::output(tool::command("fsfreeze").arg("--unfreeze").arg(dir));
        return false;
    }
    tool::said(&freeze).contains("busy")
}

#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Counts {
    /// Runs `write` with 1, 2, 3, … until it is told to stop, or until `write` says no.
    fn count(self: &Arc<Counts>, mut write: impl FnMut(u64) -> bool + Send + 'static) -> JoinHandle<()> {
        let counts = Arc::clone(self);
        thread::spawn(move || {
            for number in 1.. {
                counts.begun.store(number, Ordering::SeqCst);
                if counts.stop.load(Ordering::SeqCst) || !write(number) {
                    return;
                }
                counts.acknowledged.store(number, Ordering::SeqCst);
            }
        })
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Waits for some more.
    #[track_caller]
    fn wait_more(&self, what: &str) {
        let before = self.acknowledged();
        wait_until(what, PATIENCE, || self.acknowledged() > before + 20);
    }
}

/// Runs until it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A position in the WAL, as PostgreSQL writes it.
#[track_caller]
fn wal_position(text: &str) -> u64 {
    let (high, low) = text.trim().split_once('/').expect("a position in the WAL");
    let [high, low] = [high, low].map(|part| u64::from_str_radix(part, 16).expect("a number"));
    (high << 32) | low
}

/// Where the replay of a cluster that lies in a folder begins.
#[track_caller]
fn redo(cluster: &Path) -> u64 {
    let text = tool::check(postgres::server_command("pg_controldata").arg("-D").arg(cluster));
    let line = text.lines().find_map(|line| line.strip_prefix("Latest checkpoint's REDO location:"));
    wal_position(line.expect("it says where"))
}

fn insert(session: &mut Session, number: u64) -> bool {
    session.run(&format!("INSERT INTO commits VALUES ({number})")).as_deref() == Some("INSERT 0 1")
}

/// Under pgbench: the point is clean at each of its layers before anything is replayed, and right behind it.
#[test]
fn r16_postgresql_starts_on_a_point_that_its_hook_has_made() {
    let Some((pair, scratch, disk, dir)) = mounted(512 << 20, &["postgres"]) else { return };
    let hooks = Hooks::written(&scratch);
    let run = scratch.join("run");
    let mut cluster = Cluster::at(&dir, &run);
    cluster.init();
    cluster.start();
    cluster.query("CREATE TABLE commits (n bigint PRIMARY KEY)");
    tool::check(&mut cluster.pgbench(&["-i", "-q", "-s", "2"]));
    let counts = Arc::<Counts>::default();
    let mut session = cluster.session();
    let counting = counts.count(move |number| insert(&mut session, number));
    let load = cluster
        .pgbench(&["-n", "-c", "4", "-j", "1", "-T", "600"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let load = Running(load.expect("pgbench is there"));
    counts.wait_more("there is a load");

    let mark = |name: &str, more: &[&str]| {
        let mut command = pair.east.command(["mark", GROUP, "--name", name, "--timeout", "60s", "--pre"]);
        command.arg(hooks.call("postgresql", "pre")).args(["--post", &hooks.call("postgresql", "post")]);
        command.args(more).env("PGHOST", &run);
        command
    };
    let frozen = plain(&dir).to_owned();
    let wal = wal_position(&cluster.query("SELECT pg_current_wal_insert_lsn()"));
    let acknowledged = counts.acknowledged();
    let answer = marked(&mut mark("still", &["--freeze", &frozen]));
    let begun = counts.begun();
    assert_eq!(answer["kind"], "application_consistent", "{answer}");
    counts.wait_more("the load goes on behind the mark");

    // What is not so is not claimed: nothing is frozen, or not what the cluster lies on.
    for more in [&[][..], &["--freeze", "/proc"]] {
        let output = tool::output(&mut mark("claimed", more));
        assert_eq!(output.status.code(), Some(1), "{}", tool::said(&output));
        let words = "is on no filesystem that is frozen";
        assert!(tool::said(&output).contains(words), "{}", tool::said(&output));
    }
    counts.stop.store(true, Ordering::SeqCst);
    counting.join().expect("the client has ended");
    drop(load);
    cluster.stop_at_once();
    // And no server answers.
    let output = tool::output(&mut mark("skipped", &["--freeze", &frozen]));
    assert_eq!(output.status.code(), Some(1), "{}", tool::said(&output));
    let output = tool::output(&mut mark("crash", &["--freeze", &frozen, "--otherwise", "mark"]));
    assert_eq!(output.status.code(), Some(7), "{}", tool::said(&output));
    assert!(!is_frozen(&dir), "nothing stays frozen");
    let set = marks(&pair);
    let set = set.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect::<Vec<_>>();
    assert_eq!(set, [("still", "application_consistent"), ("crash", "crash_consistent")]);

    let copy = scratch.join("copy.img");
    clean_copy(&pair.west, "latest-app", &copy);
    drop(disk);
    let mut point = LoopDisk::over_file(&copy);
    let judged = scratch.join("judged");
    point.mount(&judged);
    let data = judged.join("cluster");
    assert!(redo(&data) >= wal, "the checkpoint that the point has is older than the mark");

    // No page is torn: all of them have their checksums before anything is replayed.
    let pages = scratch.join("pages");
    tool::run("cp", [Path::new("-a"), &data, &pages]);
    fs::remove_file(pages.join("postmaster.pid")).expect("the server ran");
    tool::check(postgres::server_command("pg_resetwal").arg("-f").arg(&pages));
    tool::check(postgres::server_command("pg_checksums").args(["--check", "-D"]).arg(&pages));

    let run = scratch.join("run-judged");
    let mut cluster = Cluster::at(&judged, &run);
    cluster.start();
    cluster.check();
    let found = cluster.query("SELECT count(*) || ' ' || coalesce(max(n), 0) FROM commits");
    let (count, highest) = found.split_once(' ').expect("two numbers");
    assert_eq!(count, highest, "commits are missing below the highest");
    let highest = highest.parse::<u64>().expect("a number");
    assert!((acknowledged..=begun).contains(&highest), "{highest} of {acknowledged} to {begun}");
    let sums = cluster.query(
        "SELECT count(DISTINCT s) FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION ALL \
         SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(tbalance) FROM pgbench_tellers \
         UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) sums",
    );
    assert_eq!(sums, "1", "each transaction moves its amount in all four tables");
    cluster.stop_at_once();
    point.unmount();
}

/// A client of a SQLite database, which takes statements one by one.
struct Sqlite {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Sqlite {
    #[track_caller]
    fn open(file: &Path) -> Sqlite {
        // Line by line, or it keeps its answers for itself.
        let mut command = tool::command("stdbuf");
        command.args(["-oL", "sqlite3", "-batch", "-bail", "-init", "/dev/null", "-cmd", ".timeout 60000"]);
        let child = command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("stdbuf is there");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Sqlite { child, stdin, stdout }
    }

    /// Runs statements that answer nothing; whether they did what they should.
    fn run(&mut self, statements: &str) -> bool {
        let mut line = String::new();
        self.stdin.write_all(format!("{statements}; SELECT 'done';\n").as_bytes()).is_ok()
            && self.stdout.read_line(&mut line).is_ok()
            && line == "done\n"
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn sqlite(file: &Path, statement: &str) -> String {
    let mut command = tool::command("sqlite3");
    tool::check(command.args(["-batch", "-bail", "-init", "/dev/null"]).arg(file).arg(statement))
        .trim()
        .to_owned()
}

/// What is beside a database.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", file.display()))
}

/// What a whole database of the writers holds: its highest number.
#[track_caller]
fn highest(file: &Path) -> u64 {
    assert_eq!(sqlite(file, "PRAGMA integrity_check"), "ok", "{}", file.display());
    let found =
        sqlite(file, "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT max(n) FROM a)");
    let found = found.split('|').map(|text| text.parse::<u64>().expect("a number")).collect::<Vec<_>>();
    assert!(found.iter().all(|one| *one == found[2]), "{}: a transaction is torn: {found:?}", file.display());
    found[2]
}

/// A database with a writer, in one of the ways in which SQLite keeps its transactions.
struct Written {
    file: PathBuf,
    counts: Arc<Counts>,
    counting: JoinHandle<()>,
}

impl Written {
    #[track_caller]
    fn start(file: PathBuf, journal: &str) -> Written {
        assert_eq!(sqlite(&file, &format!("PRAGMA journal_mode = {journal}")), journal);
        sqlite(
            &file,
            "CREATE TABLE a (n INTEGER PRIMARY KEY, x BLOB); CREATE TABLE b (n INTEGER PRIMARY KEY)",
        );
        let counts = Arc::<Counts>::default();
        let mut session = Sqlite::open(&file);
        let counting = counts.count(move |number| {
            // Locks of SQLite know no turns: who never pauses leaves no room for another.
            thread::sleep(Duration::from_millis(5));
            session.run(&format!(
                "BEGIN IMMEDIATE; INSERT INTO a VALUES ({number}, randomblob(8000)); \
                 INSERT INTO b VALUES ({number}); COMMIT"
            ))
        });
        Written { file, counts, counting }
    }

    #[track_caller]
    fn stop(self) {
        self.counts.stop.store(true, Ordering::SeqCst);
        self.counting.join().expect("the writer has ended");
    }
}

/// With a rollback journal and with a WAL, at once: each database file is whole by itself.
#[test]
fn r16_sqlite_needs_no_journal_at_a_point_that_its_hook_has_made() {
    let needs = ["sqlite3", "stdbuf"];
    let Some((pair, scratch, disk, dir)) = mounted(512 << 20, &needs) else { return };
    let hooks = Hooks::written(&scratch);
    let written = ["delete", "wal"].map(|journal| Written::start(dir.join(format!("{journal}.db")), journal));
    for one in &written {
        one.counts.wait_more("there is a load");
    }
    let temporary = scratch.join("tmp");
    fs::create_dir(&temporary).expect("a folder");
    let frozen = plain(&dir).to_owned();
    let files = written.iter().map(|one| plain(&one.file)).collect::<Vec<_>>().join(" ");
    let post = hooks.call("sqlite", "post");
    let mark = |name: &str, timeout: &str, pre: &str| {
        let mut command = pair.east.command(["mark", GROUP, "--name", name, "--timeout", timeout]);
        command.args(["--freeze", &frozen, "--pre", pre, "--post", &post]).env("TMPDIR", &temporary);
        command
    };
    let pre = hooks.call("sqlite", &format!("pre {files}"));

    let acknowledged = written.each_ref().map(|one| one.counts.acknowledged());
    let answer = marked(&mut mark("still", "60s", &pre));
    let begun = written.each_ref().map(|one| one.counts.begun());
    assert_eq!(answer["kind"], "application_consistent", "{answer}");
    for one in &written {
        one.counts.wait_more("the lock is gone");
    }

    // The command is killed while it keeps the locks, and the filesystem is frozen.
    let (path, there, go) = slow_fsfreeze(&scratch);
    let mut killed = mark("killed", "15s", &pre);
    let mut killed = Running(killed.env("PATH", path).spawn().expect("the command starts"));
    wait_until("it has stopped everything", PATIENCE, || there.exists());
    killed.0.kill().expect("our own child");
    killed.0.wait().expect("our own child");
    for one in &written {
        one.counts.wait_more("the guard has let go of the lock");
    }
    wait_until("no lock is kept", PATIENCE, || {
        fs::read_dir(&temporary).expect("the folder").next().is_none()
    });
    fs::write(go, "").expect("a file");
    wait_until("the guard is gone", PATIENCE, || {
        let dir = fs::File::open(&dir).expect("a folder");
        rustix::fs::flock(dir, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    });

    // What cannot be had: a database that is not there, and is not made; one where nothing is frozen.
    let odd = scratch.join("elsewhere.db");
    sqlite(&odd, "CREATE TABLE t (n)");
    for (file, words) in [(dir.join("none.db"), "no such database"), (odd, "is on no filesystem")] {
        let pre = hooks.call("sqlite", &format!("pre {} {}", written[0].file.display(), file.display()));
        let output = tool::output(&mut mark("odd", "60s", &pre));
        assert_eq!(output.status.code(), Some(1), "{}", tool::said(&output));
        assert!(tool::said(&output).contains(words), "{}", tool::said(&output));
    }
    assert!(!dir.join("none.db").exists());
    let [delete, wal] = written.each_ref().map(|one| one.file.clone());
    for one in written {
        one.stop();
    }

    // A writer in the middle of a transaction, more of it than it has memory for.
    let mut busy = Sqlite::open(&delete);
    assert!(busy.run("PRAGMA cache_size = 5; BEGIN IMMEDIATE; UPDATE a SET x = randomblob(20000)"));
    let output = tool::output(&mut mark("busy", "3s", &pre));
    assert_eq!(output.status.code(), Some(1), "{}", tool::said(&output));
    assert!(tool::said(&output).contains("locked"), "{}", tool::said(&output));
    assert!(!is_frozen(&dir));
    // With the filesystem alone the point has half of it, and says so by a hot journal.
    let half = pair.east.ask(["mark", GROUP, "--name", "half", "--freeze", &frozen]);
    drop(busy);
    assert!(
        fs::read_dir(&temporary).expect("the folder").next().is_none(),
        "no lock is kept for a try that failed"
    );

    assert_eq!(marks(&pair).len(), 2, "{half}");
    let alone = scratch.join("alone.db");
    let judged = scratch.join("judged");
    let copy = scratch.join("copy.img");
    clean_copy(&pair.west, "mark:half", &copy);
    drop(disk);
    let mut point = LoopDisk::over_file(&copy);
    point.mount(&judged);
    let journal = beside(&judged.join("delete.db"), "-journal");
    assert!(fs::metadata(&journal).is_ok_and(|found| found.len() > 0), "the check finds a hot journal");
    point.unmount();
    drop(point);

    clean_copy(&pair.west, "mark:still", &copy);
    let mut point = LoopDisk::over_file(&copy);
    point.mount(&judged);
    for (at, file) in [delete, wal].iter().enumerate() {
        let file = judged.join(file.file_name().expect("a file"));
        assert!(!beside(&file, "-journal").exists(), "a journal is there");
        // Before anybody opens it where it lies.
        fs::copy(&file, &alone).expect("a copy");
        let found = highest(&alone);
        let (must, may) = (acknowledged[at], begun[at]);
        assert!((must..=may).contains(&found), "{}: {found} of {must} to {may}", file.display());
        assert_eq!(highest(&file), found, "what is beside it holds nothing of its own");
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(beside(&alone, suffix));
        }
    }
    point.unmount();
}

/// An `fsfreeze` that waits once it has frozen something: the moment in which things die. Returns the search path with
/// it, the file that tells of it, and the one that ends the wait.
fn slow_fsfreeze(scratch: &Scratch) -> (String, PathBuf, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch.join("bin");
    let [frozen, go] = ["frozen", "go"].map(|name| scratch.join(name));
    let real = tool::find("fsfreeze").expect("the test asked for it");
    let script = format!(
        "#!/bin/sh\n{} \"$@\" || exit\n[ \"$1\" = --freeze ] || exit 0\ntouch {}\n\
         for _ in $(seq 1200); do [ -e {} ] && exit 0; sleep 0.05; done\n",
        real.display(),
        frozen.display(),
        go.display()
    );
    fs::create_dir(&dir).expect("a folder");
    let file = dir.join("fsfreeze");
    fs::write(&file, script).expect("a script");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("our own file");
    let path = std::env::var("PATH").expect("a search path");
    (format!("{}:{path}", dir.display()), frozen, go)
}

/// The command is killed while the filesystem is frozen, and then the agent is.
#[test]
fn r16_what_was_frozen_is_thawed_whoever_is_killed() {
    let Some((mut pair, scratch, disk, dir)) = mounted(64 << 20, &[]) else { return };
    let (path, frozen, go) = slow_fsfreeze(&scratch);
    let mark = |node: &Node, name: &str, timeout: &str| {
        let mut command = node.command(["mark", GROUP, "--name", name, "--timeout", timeout]);
        command.args(["--freeze", plain(&dir)]).env("PATH", &path);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Running).expect("the command starts")
    };
    let mut command = mark(&pair.east, "command", "5s");
    wait_until("it is frozen", PATIENCE, || frozen.exists());
    assert!(is_frozen(&dir));
    command.0.kill().expect("our own child");
    command.0.wait().expect("our own child");
    wait_until("the guard thaws it", PATIENCE, || !is_frozen(&dir));
    fs::write(&go, "").expect("a file");
    fs::write(dir.join("file"), "written").expect("it takes writes");
    tool::run("sync", ["-f", plain(&dir)]);

    fs::remove_file(&frozen).expect("it was there");
    fs::remove_file(&go).expect("it was there");
    let mut command = mark(&pair.east, "agent", "60s");
    wait_until("it is frozen", PATIENCE, || frozen.exists());
    assert!(is_frozen(&dir));
    pair.east.kill();
    fs::write(&go, "").expect("a file");
    let status = command.0.wait().expect("our own child");
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(!is_frozen(&dir), "it is thawed when the command has ended");
    drop(disk);

    pair.east.start();
    pair.wait_connected();
    assert_eq!(marks(&pair), [], "neither has marked anything");
}

/// The script for another machine, on this one.
#[test]
fn r16_a_filesystem_that_is_frozen_elsewhere() {
    let Some((pair, scratch, disk, dir)) = mounted(64 << 20, &[]) else { return };
    let hooks = Hooks::written(&scratch);
    let claims = scratch.join("claims");
    fs::create_dir(&claims).expect("a folder");
    let folder = plain(&dir);
    let mut command = pair.east.command(["mark", GROUP, "--name", "still", "--timeout", "10s"]);
    command.args(["--pre", &hooks.call("filesystem", &format!("pre $LANDFALL_TRY 30 {folder}"))]);
    command.args(["--post", &hooks.call("filesystem", &format!("post $LANDFALL_TRY {folder}"))]);
    let answer = marked(command.env("LANDFALL_RUN", &claims));
    assert!(!is_frozen(&dir));
    assert_eq!(answer["kind"], "application_consistent", "{answer}");
    assert_eq!(marks(&pair).len(), 1);
    clean_copy(&pair.west, "mark:still", &scratch.join("copy.img"));

    let script = |arguments: &[&str]| {
        let mut command = Command::new(hooks.0.join("filesystem.sh"));
        tool::output(command.args(arguments).arg(folder).env("LANDFALL_RUN", &claims))
    };
    // Each try lets go of its own alone.
    assert_eq!(script(&["pre", "one", "60"]).status.code(), Some(0));
    let other = script(&["pre", "other", "60"]);
    assert_eq!(other.status.code(), Some(1), "{}", tool::said(&other));
    assert!(tool::said(&other).contains("for another mark"), "{}", tool::said(&other));
    assert_eq!(script(&["post", "other"]).status.code(), Some(0));
    assert!(is_frozen(&dir));
    assert_eq!(script(&["post", "one"]).status.code(), Some(0));
    assert!(!is_frozen(&dir));
    assert_eq!(script(&["post", "one"]).status.code(), Some(0), "a second time is harmless");
    // Nobody comes back.
    assert_eq!(script(&["pre", "watched", "1"]).status.code(), Some(0));
    wait_until("the watch thaws it", PATIENCE, || !is_frozen(&dir));
    wait_until("no claim stays", PATIENCE, || fs::read_dir(&claims).expect("the folder").next().is_none());
    assert_eq!(script(&["pre", "no-number", "soon"]).status.code(), Some(2));
    drop(disk);
}

/// However a script before or behind the mark ends.
#[test]
fn r16_a_script_that_fails() {
    if !tool::has(&["setsid", "timeout"]) {
        return;
    }
    let (pair, scratch) = started(&[Volume::new("data", 1 << 20)]);
    let mark = |name: &str, arguments: &[&str]| -> Output {
        let mut command = pair.east.command(["mark", GROUP, "--name", name]);
        tool::output(command.args(arguments))
    };
    let kinds = |name: &str| {
        let all = marks(&pair).into_iter().filter(|(found, _)| found == name);
        all.map(|(_, kind)| kind).collect::<Vec<_>>()
    };
    let log = scratch.join("log");
    let post = format!("echo post $LANDFALL_TRY >>{}", log.display());
    for (at, (script, says)) in [
        ("exit 1", "exit status 1"),
        ("exit 2", "exit status 2"),
        // What a command of ours, or a check of `bisect`, would mean by it means nothing here.
        ("exit 3", "exit status 3"),
        ("exit 7", "exit status 7"),
        ("exit 125", "exit status 125"),
        ("exit 255", "exit status 255"),
        ("/nowhere/no-such-program", "exit status 127"),
        ("kill -TERM $$", "ended by signal 15"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("pre-{at}");
        let pre = format!("echo pre $LANDFALL_TRY >>{}; {script}", log.display());
        let output = mark(&name, &["--pre", &pre, "--post", &post, "--retries", "1"]);
        assert_eq!(output.status.code(), Some(1), "{script}: {}", tool::said(&output));
        assert!(tool::said(&output).contains(says), "{script}: {}", tool::said(&output));
        assert!(tool::said(&output).contains("nothing was marked"), "{}", tool::said(&output));
        assert_eq!(kinds(&name), Vec::<String>::new(), "{script}");
        // Both tries were let go of, each by its number.
        let said = fs::read_to_string(&log).expect("the scripts ran");
        let words = said.split_whitespace().collect::<Vec<_>>();
        let [a, first, b, same, c, second, d, too] = words[..] else { panic!("{script}: {said}") };
        assert_eq!([a, b, c, d], ["pre", "post", "pre", "post"]);
        assert!(first == same && second == too && first != second, "{said}");
        fs::remove_file(&log).expect("it was there");

        let output = mark(&name, &["--pre", script, "--otherwise", "mark"]);
        assert_eq!(output.status.code(), Some(7), "{script}: {}", tool::said(&output));
        assert_eq!(kinds(&name), ["crash_consistent"], "{script}");
    }
    // Behind the mark: it stands, and is not set again.
    for (at, script) in ["exit 1", "exit 7", "sleep 60"].into_iter().enumerate() {
        for otherwise in ["skip", "mark"] {
            let name = format!("post-{at}-{otherwise}");
            let output = mark(
                &name,
                &["--post", script, "--timeout", "2s", "--retries", "2", "--otherwise", otherwise],
            );
            assert_eq!(output.status.code(), Some(7), "{script}: {}", tool::said(&output));
            assert!(tool::said(&output).contains("is set, and stands"), "{}", tool::said(&output));
            assert!(!tool::said(&output).contains("nothing was marked"), "{}", tool::said(&output));
            assert_eq!(kinds(&name), ["application_consistent"], "{script}");
        }
    }
}

/// `landfall hooks`, without a daemon.
#[test]
fn the_scripts_are_listed_printed_and_written() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let dir = scratch.join("hooks");
    let list = tool::check(landfall().arg("hooks"));
    let names = list.lines().map(|line| line.split_whitespace().next().expect("a name")).collect::<Vec<_>>();
    assert_eq!(names, ["filesystem", "postgresql", "sqlite"]);
    tool::check(landfall().args(["hooks", "--to"]).arg(&dir));
    for name in names {
        let file = dir.join(format!("{name}.sh"));
        let written = fs::read_to_string(&file).expect("it was written");
        assert_eq!(tool::check(landfall().args(["hooks", name])), written);
        assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o755);
        tool::run("sh", [Path::new("-n"), &file]);
        let usage = tool::output(Command::new(&file).env("LANDFALL_TRY", "1").stdin(Stdio::null()));
        assert_eq!(usage.status.code(), Some(2), "{name}: {}", tool::said(&usage));
    }
    let write = |more: &[&str]| tool::output(landfall().args(["hooks", "--to"]).arg(&dir).args(more));
    assert_eq!(write(&[]).status.code(), Some(0), "what is there already is no failure");
    fs::write(dir.join("sqlite.sh"), "mine").expect("our own file");
    fs::remove_file(dir.join("filesystem.sh")).expect("it was written");
    let refused = write(&[]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
    assert!(!dir.join("filesystem.sh").exists(), "all or none");
    assert_eq!(fs::read_to_string(dir.join("sqlite.sh")).expect("our own file"), "mine");
    assert_eq!(write(&["--overwrite"]).status.code(), Some(0));
    let none = tool::output(landfall().args(["hooks", "mysql"]));
    assert_eq!(none.status.code(), Some(2), "{}", tool::said(&none));
}
