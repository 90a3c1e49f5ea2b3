//! The two nodes of the demo: their folders and configurations, and their processes.

use crate::certs::{Authority, ensure_node, make_dir, write_new};
use crate::control::Client;
use crate::control::api::Status;
use crate::exit::{Context, Failure};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The group.
pub(crate) const GROUP: &str = "demo";
/// The node that is killed.
pub(crate) const PRIMARY: &str = "east";
/// The node that takes over.
pub(crate) const REPLICA: &str = "west";
/// The volume with the filesystem.
pub(crate) const FILES: &str = "files";
/// The volume with the journal and the pages.
pub(crate) const JOURNAL: &str = "journal";
/// The volume for the user's own image.
pub(crate) const IMAGE: &str = "image";

/// How long a node may take to get ready.
const READY: Duration = Duration::from_secs(30);

/// Lines of a node's log that are shown if it ended.
const LAST_LINES: usize = 5;

/// Starts nodes: processes of this program, or whatever a test puts in their place.
pub(crate) trait Launcher {
    /// Starts `landfall COMMAND --config CONFIG` with its talk in `log`.
    fn start(&self, command: &str, config: &Path, log: &Path) -> Result<Box<dyn Process>, Failure>;
}

/// A node that was started.
pub(crate) trait Process {
    /// Ends it at once, as SIGKILL does.
    fn kill(&mut self) -> Result<(), Failure>;

    /// Why it is not running, if it is not.
    fn ended(&mut self) -> Option<String>;
}

/// A node of the demo. Killed when dropped.
pub(crate) struct Node {
    name: &'static str,
    control: PathBuf,
    log: PathBuf,
    process: Box<dyn Process>,
}

impl Node {
    /// Writes the configuration and the certificates of a node and starts it.
    pub(crate) fn start(
        launcher: &dyn Launcher,
        dir: &Path,
        authority: &Authority,
        name: &'static str,
        group: &str,
    ) -> Result<Node, Failure> {
        let dir = dir.join(name);
        make_dir(&dir)?;
        ensure_node(authority, name, &dir.join("certificates"))?;
        let config = dir.join("landfall.toml");
        let text = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"data\"\nlisten = \"127.0.0.1:0\"\n\
             ca = \"certificates/ca.pem\"\ncertificate = \"certificates/{name}.pem\"\n\
             key = \"certificates/{name}.key\"\n\n{group}"
        );
        write_new(&config, &text, 0o644)?;
        let log = dir.join("log.txt");
        let command = if name == PRIMARY { "agent" } else { "replica" };
        let process = launcher.start(command, &config, &log)?;
        Ok(Node { name, control: dir.join("data/control.sock"), log, process })
    }

    /// A connection to its control socket.
    pub(crate) fn control(&self) -> Result<Client, Failure> {
        Client::connect(&self.control)
    }

    /// Asks for its status until `ready` finds in it what it looks for.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut(Status) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + READY;
        loop {
            let status = self.control().and_then(|mut control| control.status());
            let why = match status.map(&mut ready) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => "it is not so yet".to_owned(),
                Err(failure) => failure.what,
            };
            if let Some(end) = self.process.ended() {
                return Err(Failure::failed(format_args!(
                    "{} ended ({end}):\n{}",
                    self.name,
                    self.last_lines()
                )));
            }
            if Instant::now() > deadline {
                return Err(Failure::failed(format_args!("{}: {what} took too long: {why}", self.name))
                    .next(format_args!("its log is {}", self.log.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as SIGKILL does.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill()
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// What stands behind `[node]` for the primary.
pub(crate) fn primary_group(replica: SocketAddr, volumes: &[(&str, u64)]) -> String {
    let mut text = format!(
        "[[peer]]\nname = \"{REPLICA}\"\naddress = \"{replica}\"\n\n\
         [[group]]\nname = \"{GROUP}\"\nrole = \"primary\"\nreplicas = [\"{REPLICA}\"]\naccept = [\"{REPLICA}\"]\n"
    );
    for (name, bytes) in volumes {
        text += &format!("\n[[group.volume]]\nname = \"{name}\"\nsize = \"{bytes}B\"\n");
    }
    text
}

/// The same for the replica.
pub(crate) fn replica_group() -> String {
    format!(
        "[[peer]]\nname = \"{PRIMARY}\"\n\n\
         [[group]]\nname = \"{GROUP}\"\nrole = \"replica\"\naccept = [\"{PRIMARY}\"]\n"
    )
}

/// Starts this program's own executable.
pub(crate) struct OwnExecutable;

impl Launcher for OwnExecutable {
    fn start(&self, command: &str, config: &Path, log: &Path) -> Result<Box<dyn Process>, Failure> {
        let program = std::env::current_exe().context(|| "this program's own file cannot be found")?;
        let talk = File::create(log).context(|| format!("{} cannot be written", log.display()))?;
        let child = Command::new(&program)
            .arg(command)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(talk)
            .spawn()
            .context(|| format!("{} cannot be started", program.display()))?;
        Ok(Box::new(OwnChild(child)))
    }
}

struct OwnChild(Child);

impl Process for OwnChild {
    fn kill(&mut self) -> Result<(), Failure> {
        self.0.kill().and_then(|()| self.0.wait()).map(|_| ()).context(|| "a node cannot be killed")
    }

    fn ended(&mut self) -> Option<String> {
        match self.0.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(err) => Some(err.to_string()),
        }
    }
}

/// No node outlives the demo, however that ends. (A demo that is itself killed leaves its nodes to Ctrl-C.)
impl Drop for OwnChild {
    fn drop(&mut self) {
        if self.ended().is_none()
            && let Err(failure) = Process::kill(self)
        {
            tracing::warn!(%failure, pid = self.0.id(), "a node of the demo is left behind");
        }
    }
}
