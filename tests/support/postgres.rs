//! A PostgreSQL cluster in a folder: made, started, asked, killed. The server runs as the user `postgres`, which
//! needs root here.

use super::tool;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the server's programs are: Debian keeps them, by version, out of the search path.
pub fn bin_dir() -> Option<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let version = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let dir = entry.path().join("bin");
        if let Some(version) = version
            && dir.join("initdb").exists()
            && dir.join("pgbench").exists()
        {
            found.push((version, dir));
        }
    }
    found.into_iter().max().map(|(_, dir)| dir)
}

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    /// A folder on the filesystem under test.
    data: PathBuf,
    /// A folder for its socket and its log, elsewhere: what was acknowledged is known by more than the volume.
    run: PathBuf,
    /// The server's process, while it runs.
    server: Option<Pid>,
}

impl Cluster {
    /// A cluster that is there, or is made next.
    pub fn at(mount: &Path, run: &Path) -> Cluster {
        std::fs::create_dir_all(run).expect("a folder can be made");
        give_to_postgres(run);
        Cluster { data: mount.join("cluster"), run: run.to_owned(), server: None }
    }

    /// Makes it, with checksums on all its pages.
    #[track_caller]
    pub fn init(&self) {
        std::fs::create_dir(&self.data).expect("the filesystem is empty");
        give_to_postgres(&self.data);
        let mut init = server_command("initdb");
        tool::check(
            init.args(["--auth=trust", "--data-checksums", "--no-locale", "-E", "UTF8", "-D"])
                .arg(&self.data),
        );
    }

    /// Starts it, through recovery if it was not stopped cleanly, and waits until it takes connections.
    #[track_caller]
    pub fn start(&mut self) {
        // A copy has the number of the original's server in it, which runs yet, or some other process has it now.
        match std::fs::remove_file(self.data.join("postmaster.pid")) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                panic!("{}: {err}", self.data.display())
            }
            _ => {}
        }
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c shared_buffers=64MB",
            self.run.display()
        );
        let log = self.run.join("log");
        let mut start = server_command("pg_ctl");
        start
            .args(["start", "--silent", "--wait", "--timeout=60", "-o", &options, "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(&log);
        // Its stdio must not be held by the server, or the wait for its end would be one for the server's.
        start.stdout(Stdio::null()).stderr(Stdio::null());
        let status = start.status().expect("pg_ctl is there");
        assert!(
            status.success(),
            "{start:?}: {status}\n{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("a server writes it");
        let number = file.lines().next().and_then(|line| line.parse().ok()).expect("its first line");
        self.server = Pid::from_raw(number);
    }

    /// Ends it without a chance to write anything more.
    pub fn stop_at_once(&mut self) {
        let Some(server) = self.server.take() else { return };
        // Its own way of an immediate end, for all of its processes; its disk may be gone, so by the number.
        let ended = |within: Duration| {
            let start = Instant::now();
            // A process that nobody has waited for yet is as good as ended.
            while Path::new(&format!("/proc/{}/exe", server.as_raw_nonzero())).exists() {
                if start.elapsed() > within {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            true
        };
        let _ = kill_process(server, Signal::QUIT);
        if !ended(Duration::from_secs(10)) {
            let _ = kill_process(server, Signal::KILL);
            ended(Duration::from_secs(10));
        }
    }

    /// What a statement answers.
    #[track_caller]
    pub fn query(&self, statement: &str) -> String {
        let mut psql = self.psql();
        tool::check(psql.args(["-c", statement])).trim().to_owned()
    }

    /// A client that takes statements one by one.
    pub fn session(&self) -> Session {
        let mut child = self
            .psql()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql is there");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Session { child, stdin, stdout }
    }

    /// `pgbench` with these arguments.
    pub fn pgbench(&self, arguments: &[&str]) -> Command {
        let mut command = self.client_command("pgbench");
        command.args(arguments).arg("postgres");
        command
    }

    fn psql(&self) -> Command {
        let mut command = self.client_command("psql");
        command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        command
    }

    fn client_command(&self, name: &str) -> Command {
        let mut command = tool::command(&program(name));
        command.arg("-h").arg(&self.run).args(["-U", "postgres"]).current_dir("/");
        command
    }

    /// Compares every index with its table, and every table with itself.
    #[track_caller]
    pub fn check(&self) {
        let mut check = self.client_command("pg_amcheck");
        tool::check(check.args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]));
    }
}

/// A program that works on a cluster's folder, as the user that owns it.
pub fn server_command(name: &str) -> Command {
    let mut command = tool::command("runuser");
    command.args(["-u", "postgres", "--"]).arg(program(name)).current_dir("/");
    command
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}

/// See [`Cluster::session`].
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// Runs a statement that answers with one line: it is `None` if the server is gone.
    pub fn run(&mut self, statement: &str) -> Option<String> {
        self.stdin.write_all(format!("{statement};\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> String {
    bin_dir().expect("the test asked whether it is there").join(name).display().to_string()
}

#[track_caller]
fn give_to_postgres(dir: &Path) {
    tool::run("chown", [Path::new("postgres:postgres"), dir]);
    tool::run("chmod", [Path::new("0700"), dir]);
}
