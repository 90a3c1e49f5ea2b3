//! The configuration of a node: one TOML file, the same for `agent` and `replica`.
//!
//! | module | what it is |
//! |---|---|
//! | [`mod@file`] | the file's keys, as serde reads them |
//! | [`check`] | what must hold between them; names, sizes, limits |
//! | [`diagnose`] | errors with file, line, column and the key that was probably meant |
//! | [`template`] | the commented file that `init` writes |
//!
//! Invariants:
//! - a key that is not known is an error: nothing is silently ignored;
//! - every limit has a default that is written in the template, and a range that is checked here;
//! - a relative path is relative to the configuration file, not to where the command runs.

pub(crate) mod check;
pub(crate) mod diagnose;
pub(crate) mod edit;
pub(crate) mod file;
pub(crate) mod template;

use crate::exit::Failure;
use crate::units::{Bytes, TIB};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest configuration file.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Groups of one node.
pub(crate) const MAX_GROUPS: usize = 1024;
/// Volumes of one group.
pub(crate) const MAX_VOLUMES: usize = 256;
/// Peers of one node.
pub(crate) const MAX_PEERS: usize = 256;
/// Replicas of one group.
pub(crate) const MAX_REPLICAS: usize = 8;
/// The longest name of a node, group or volume, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 64;
/// The largest volume.
pub(crate) const MAX_VOLUME_BYTES: u64 = 64 * TIB;
/// The longest path of a unix socket that Linux takes.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where it was read from.
    pub(crate) path: PathBuf,
    /// The node itself.
    pub(crate) node: Node,
    /// Where volumes are served.
    pub(crate) nbd: Nbd,
    /// The replication link.
    pub(crate) link: Link,
    /// Other nodes.
    pub(crate) peers: Vec<Peer>,
    /// The groups.
    pub(crate) groups: Vec<Group>,
    /// What is allowed but should be looked at, in words.
    pub(crate) warnings: Vec<String>,
}

/// The node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name: also the one in its certificate.
    pub(crate) name: String,
    /// Where logs, base images and the catalog lie.
    pub(crate) data_dir: PathBuf,
    /// The control socket.
    pub(crate) control: PathBuf,
    /// Where replication connections are taken; none if absent.
    pub(crate) listen: Option<SocketAddr>,
    /// The certificates of the link.
    pub(crate) certificates: Certificates,
}

/// Paths of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The authority that every node's certificate is checked against.
    pub(crate) ca: PathBuf,
    /// This node's own.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
}

/// Where volumes are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nbd {
    /// A unix socket.
    pub(crate) socket: PathBuf,
    /// TCP, if wanted.
    pub(crate) tcp: Option<SocketAddr>,
    /// TLS on the TCP socket.
    pub(crate) tls: Tls,
    /// Connections at the same time.
    pub(crate) max_connections: u32,
}

/// TLS of the block front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Refused.
    Off,
    /// For clients that ask.
    Offered(Certificates),
    /// Clients without get nothing.
    Required(Certificates),
}

/// The replication link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Sent and not yet acknowledged, at most, for each replica.
    pub(crate) window: Bytes,
    /// A sign of life is sent this often.
    pub(crate) heartbeat: Duration,
    /// A silent connection is given up after this.
    pub(crate) timeout: Duration,
    /// The longest pause between two attempts to connect.
    pub(crate) max_backoff: Duration,
    /// The largest datagram that is tried.
    pub(crate) max_mtu: u16,
    /// Incoming connections at the same time.
    pub(crate) max_connections: u32,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name: the one in its certificate.
    pub(crate) name: String,
    /// `host:port`; absent for one that only dials this node.
    pub(crate) address: Option<String>,
}

/// A consistency group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its name, the same on all its nodes.
    pub(crate) name: String,
    /// What this node is to it when there is no log yet. Later a failover decides, not this file.
    pub(crate) role: Role,
    /// Its volumes. On a replica they may be left out: their names and sizes come from the primary.
    pub(crate) volumes: Vec<Volume>,
    /// Peers that it is replicated to while this node is its primary.
    pub(crate) replicas: Vec<Replica>,
    /// Peers that may replicate it to this node.
    pub(crate) accept: Vec<String>,
    /// When a flush is answered.
    pub(crate) ack: Ack,
    /// What happens when the log's limit is reached.
    pub(crate) on_full: OnFull,
    /// The most that the log takes on disk.
    pub(crate) log_limit: Bytes,
    /// The size of a log's file.
    pub(crate) segment: Bytes,
    /// The most memory for writes that are not yet in the backing.
    pub(crate) overlay_limit: Bytes,
    /// How long a record that nobody flushes may wait before it is made durable and sent.
    pub(crate) ship_delay: Duration,
    /// How long recovery points are kept here while this node is a replica.
    pub(crate) retention: Retention,
    /// Which marks outlive it.
    pub(crate) keep: Keep,
    /// The most log that an open point may hold beyond retention.
    pub(crate) pin_limit: Bytes,
    /// How its replicas are compared with it while this node is its primary.
    pub(crate) verify: Verify,
    /// How long a write is without a mark behind it while this node is its primary; no periodic marks if absent.
    pub(crate) marks: Option<Duration>,
}

/// A peer that a group is replicated to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replica {
    /// Its name: the one in its certificate.
    pub(crate) name: String,
    /// `host:port`.
    pub(crate) address: String,
}

/// A node's first role in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It makes the group.
    Primary,
    /// It waits for a primary.
    Replica,
}

/// When a flush is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    /// Durable here.
    Local,
    /// Durable here and on one replica.
    Replica,
}

/// What happens when the log's limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFull {
    /// Changes are tracked, and replicas catch up with a sync span.
    Track,
    /// Writes wait until there is room.
    Stall,
}

/// How long recovery points are kept: whichever limit is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// By age.
    pub(crate) time: Duration,
    /// By what the log takes.
    pub(crate) bytes: Bytes,
}

/// Which marks stay points behind the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// One of each of so many minutes.
    pub(crate) minutes: u32,
    /// And hours.
    pub(crate) hours: u32,
    /// And days.
    pub(crate) days: u32,
    /// So many that were given a name.
    pub(crate) named: u32,
    /// The most that they take on disk.
    pub(crate) bytes: Bytes,
}

/// Online verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verify {
    /// From the end of a round to the next; only when asked for if absent.
    pub(crate) every: Option<Duration>,
    /// The most that is read in a second.
    pub(crate) rate: Bytes,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Its name; the export is `group/name`.
    pub(crate) name: String,
    /// Its size: a multiple of 512. Always there on a first primary.
    pub(crate) size: Option<Bytes>,
    /// The raw file or block device behind it; absent: a file in the data directory.
    pub(crate) backing: Option<PathBuf>,
    /// When it joins the group, what its backing holds is kept; otherwise that has to be empty.
    pub(crate) in_place: bool,
    /// On a replica: a copy of it that came by other means, so that only differences travel.
    pub(crate) seed_from: Option<PathBuf>,
}

impl Config {
    /// Reads and checks a file. Every error is code 2 and names the place.
    pub(crate) fn load(path: &Path) -> Result<Config, Failure> {
        let cannot = |err: &dyn std::fmt::Display| {
            Failure::usage(format_args!("the configuration {} cannot be read: {err}", path.display()))
                .next("`landfall init` writes one; `--config` names another")
        };
        let length = std::fs::metadata(path).map_err(|err| cannot(&err))?.len();
        if length > MAX_FILE_BYTES {
            return Err(cannot(&format_args!("it is longer than {}", Bytes(MAX_FILE_BYTES))));
        }
        let text = std::fs::read_to_string(path).map_err(|err| cannot(&err))?;
        Config::parse(path, &text)
    }

    /// The same for a text that is at hand.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, Failure> {
        let file = toml::from_str::<file::File>(text)
            .map_err(|err| diagnose::from_toml(path, text, err.message(), err.span()))?;
        check::check(path, file).map_err(|complaint| diagnose::from_check(path, text, complaint))
    }

    /// The NBD export of a volume.
    pub(crate) fn export(group: &str, volume: &str) -> String {
        format!("{group}/{volume}")
    }
}

#[cfg(test)]
mod tests;
