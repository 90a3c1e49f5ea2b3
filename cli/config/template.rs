//! The commented configuration that `init` writes.
//!
//! Invariants:
//! - it is read back by [`super::Config::parse`];
//! - every key stands in it, and a key that is commented out (`#key = value`) shows its default: with all of
//!   them put in, the configuration is the same.

use super::Role;
use crate::units::exact_bytes;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What a template is made for.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The node's name.
    pub(crate) name: String,
    /// The data directory, as it is to stand in the file.
    pub(crate) data_dir: PathBuf,
    /// The folder of the certificates, as it is to stand in the file.
    pub(crate) certificates: PathBuf,
    /// Where replication connections are taken.
    pub(crate) listen: SocketAddr,
    /// Names and addresses of other nodes.
    pub(crate) peers: Vec<(String, Option<String>)>,
    /// The groups.
    pub(crate) groups: Vec<Group>,
}

/// A group of a template.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Its name.
    pub(crate) name: String,
    /// The node's first role in it.
    pub(crate) role: Role,
    /// Its replicas.
    pub(crate) replicas: Vec<String>,
    /// Who may replicate it to this node.
    pub(crate) accept: Vec<String>,
    /// Its volumes: name, size, backing.
    pub(crate) volumes: Vec<(String, u64, Option<PathBuf>)>,
}

impl Template {
    /// The file's text.
    pub(crate) fn render(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        self.head(&mut out);
        self.peers(&mut out);
        for group in &self.groups {
            group.render(&mut out);
        }
        if self.groups.is_empty() {
            out.push_str(NO_GROUP);
        }
        out
    }

    fn head(&self, out: &mut String) {
        let name = quoted(&self.name);
        let data_dir = quoted_path(&self.data_dir);
        let listen = self.listen;
        let certificate = |file: &str| quoted_path(&self.certificates.join(file));
        let (ca, own, key) = (
            certificate("ca.pem"),
            certificate(&format!("{}.pem", self.name)),
            certificate(&format!("{}.key", self.name)),
        );
        let control = quoted_path(&self.data_dir.join("control.sock"));
        let socket = quoted_path(&self.data_dir.join("nbd.sock"));
        push(
            out,
            format_args!(
                r#"# The configuration of a Landfall node.
# A key that is commented out shows its default. Paths are relative to this file.
# Sizes: B, KiB, MiB, GiB, TiB. Durations: ms, s, m, h, d. An unknown key is an error.

[node]
# The node's name: the same as in its certificate.
name = {name}
# Logs, base images and the catalog. One daemon at a time has it.
data_dir = {data_dir}
# The socket of `landfall status` and its siblings.
#control = {control}
# UDP address on which other nodes may replicate to this one. Without it nobody can.
listen = "{listen}"
# The authority that all nodes share, and this node's own identity.
ca = {ca}
certificate = {own}
key = {key}

[nbd]
# Volumes are exported as `group/volume`.
#socket = {socket}
# TCP as well. Anyone who can connect can read and write, unless tls = "required".
#tcp = "127.0.0.1:10809"
# "off", "offered" to clients that ask, or "required". Needs the three files below.
#tls = "off"
# Client certificates are checked against `ca`.
#ca = "nbd/ca.pem"
#certificate = "nbd/server.pem"
#key = "nbd/server.key"
# Connections at the same time.
#max_connections = 256

[link]
# Sent to a replica and not yet acknowledged, at most. Bandwidth x round trip is enough.
#window = "64MiB"
# A sign of life this often; a silent connection is given up after `timeout` and dialled again, with pauses
# that grow to `max_backoff`.
#heartbeat = "1s"
#timeout = "10s"
#max_backoff = "10s"
# The largest datagram that is tried, in bytes; a path that carries less is found out by probing.
#max_mtu = 8952
# Incoming connections at the same time.
#max_connections = 64
"#
            ),
        );
    }

    fn peers(&self, out: &mut String) {
        out.push_str("\n# Other nodes. A name is the one in the node's certificate.\n");
        for (name, address) in &self.peers {
            push(out, format_args!("[[peer]]\nname = {}\n", quoted(name)));
            match address {
                Some(address) => push(out, format_args!("address = {}\n\n", quoted(address))),
                None => out.push_str(
                    "# Not dialled from here while it has no address.\n# address = \"host:10900\"\n\n",
                ),
            }
        }
        if self.peers.is_empty() {
            out.push_str("# [[peer]]\n# name = \"west\"\n# address = \"west.example.com:10900\"\n\n");
        }
    }
}

impl Group {
    fn render(&self, out: &mut String) {
        let list = |names: &[String]| names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let role = match self.role {
            Role::Primary => "primary",
            Role::Replica => "replica",
        };
        push(
            out,
            format_args!(
                r#"# A consistency group: volumes that are recovered together, to the same write.
[[group]]
# The same on all its nodes.
name = {name}
# What this node is to the group when it starts for the first time; from then on a failover decides.
role = "{role}"
# Peers that get a copy while this node is the primary.
replicas = [{replicas}]
# Peers that may replicate this group to this node.
accept = [{accept}]
# A flush is answered when it is durable here ("local"), or on a replica as well ("replica": no acknowledged
# flush is lost with the region, and each one waits for a round trip).
#ack = "local"
# A write that nobody flushes is made durable after this at the latest. With ack = "local", what is durable is sent
# no more often than this.
#ship_delay = "5ms"
# The most that the log takes on disk, the size of one of its files, and what happens at the limit, when a replica
# has been away for long: "track" notes what changes, goes on, and copies just that when the replica is back;
# "stall" lets writes wait until then.
#log_limit = "16GiB"
#segment = "64MiB"
#on_full = "track"
# The most memory for writes that are not yet in the backing.
#overlay_limit = "256MiB"
# While this node is a replica: recovery points are kept this long, and at most this much log.
#retention = {{ time = "24h", bytes = "8GiB" }}
# Behind that, marks stay recovery points: one for each of the last so many minutes, hours and days that have one, and so
# many of those with a name: say, minutes = 60, hours = 48, days = 30, named = 20. They take what was overwritten since,
# at most so many bytes; the oldest go first.
#keep = {{ minutes = 0, hours = 0, days = 0, named = 0, bytes = "64GiB" }}
# A point that is mounted, drilled or copied is not retired. What it holds of the log beyond retention is at most this,
# a quarter of log_limit unless said; then its mount is ended.
#pin_limit = "4GiB"
# While this node is the primary: replicas are compared with it, bit for bit, when `landfall verify` asks for it, and
# with every = "7d" also by themselves, so long after the last time. At most this much is read in a second.
#verify = {{ rate = "64MiB" }}
# While this node is the primary and somebody writes: a crash-consistent mark is set this often, or never ("off").
#marks = "5s"
"#,
                name = quoted(&self.name),
                replicas = list(&self.replicas),
                accept = list(&self.accept),
            ),
        );
        for (name, size, backing) in &self.volumes {
            push(
                out,
                format_args!(
                    "\n[[group.volume]]\nname = {}\n# A multiple of 512 bytes, at most 64TiB.\nsize = \"{}\"\n",
                    quoted(name),
                    exact_bytes(*size)
                ),
            );
            match backing {
                Some(backing) => push(out, format_args!("backing = {}\n", quoted_path(backing))),
                None => out.push_str(
                    "# A raw file or block device of your own. Without it: a sparse file in the data directory.\n\
                     # backing = \"/dev/vg0/data\"\n\
                     # Keep what it holds: it is copied to the replicas. Without this it has to be empty.\n\
                     # in_place = true\n",
                ),
            }
        }
        if self.volumes.is_empty() {
            out.push_str(
                "# The volumes come from the primary. A copy of one that came by other means, so that only what\n\
                 # differs travels, is named here (`landfall protect GROUP VOLUME --seed-from IMAGE` does it):\n\
                 # [[group.volume]]\n# name = \"data\"\n# seed_from = \"/mnt/shipped/data.img\"\n",
            );
        }
        out.push('\n');
    }
}

const NO_GROUP: &str = r#"# A consistency group: volumes that are recovered together, to the same write.
# [[group]]
# name = "db"
# role = "primary"
# replicas = ["west"]
# [[group.volume]]
# name = "data"
# size = "10GiB"
"#;

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all that memory takes");
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => push(&mut out, format_args!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
