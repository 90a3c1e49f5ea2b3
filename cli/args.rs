//! The command line.
//!
//! Invariants:
//! - what is wrong with a value is said before anything is done (exit code 2);
//! - stdout carries the answer and nothing else; with `--json` it is one JSON document, see `cli/CONTROL.md`.

use crate::exit;
use crate::point::Point;
use crate::units::{self, Bytes};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Continuous replication of block devices to a second region.
#[derive(Debug, Parser)]
#[command(name = "landfall", version, after_help = exit::HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// The node's configuration [default: $LANDFALL_CONFIG, ./landfall.toml, /etc/landfall/landfall.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print the answer as one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more on stderr: -v debug, -vv trace; $LANDFALL_LOG sets it for each part
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Protect, kill, fail over and check, on this machine, in under a minute
    Demo(Demo),
    /// Write a commented configuration, a certificate authority and this node's identity
    Init(Init),
    /// Certificates of the replication link
    #[command(subcommand)]
    Cert(Cert),
    /// Run a node that protects volumes
    Agent,
    /// Run a node that receives copies; the same daemon, which expects at least one group to receive
    Replica,
    /// The node and its groups
    Status,
    /// Recovery points
    #[command(subcommand)]
    Points(Points),
    /// Serve a recovery point read-only over NBD, until Ctrl-C
    MountPoint(MountPoint),
    /// End a mount made with `mount-point --detach`
    Unmount(Unmount),
    /// Make this node the primary of a group; `failover commit GROUP` stands by it
    Failover(Failover),
    /// Take old primaries back as replicas, after a failover here that is committed
    Reprotect(Reprotect),
    /// Allow a copy of everything for a replica whose lacks are not known
    Resync(Resync),
    /// Compare the replicas of a group with its primary, bit for bit, while it is in use
    Verify(Verify),
    /// A recovery point onto something that needs no Landfall to be read
    #[command(subcommand)]
    Restore(Restore),
    /// Rehearse regional outages on virtual time, with your own policy and workload
    #[command(subcommand)]
    Sim(crate::sim::args::Sim),
    /// A group's log on disk, while no daemon has it open
    #[command(subcommand)]
    Log(Log),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// A disk image of your own, copied onto a protected volume and compared after the failover
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// How long to write before the primary is killed
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Where to work: empty or not there; it is kept [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the temporary folder
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to write
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// The node's name [default: this host's]
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    pub(crate) name: Option<String>,
    /// Where to take replication connections
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:10900")]
    pub(crate) listen: SocketAddr,
    /// Take the identity from an existing authority: the `ca` folder of another `init`
    #[arg(long, value_name = "CA_DIR")]
    pub(crate) join: Option<PathBuf>,
    /// Another node, and where it is dialled
    #[arg(long = "peer", value_name = "NODE[=HOST:PORT]", value_parser = peer)]
    pub(crate) peers: Vec<Peer>,
    /// A consistency group; without --volume behind it, this node is its replica
    #[arg(long = "group", value_name = "NAME", value_parser = name)]
    pub(crate) groups: Vec<String>,
    /// A volume of the group named before it; BACKING is a raw file or block device
    #[arg(long = "volume", value_name = "NAME=SIZE[:BACKING]", value_parser = volume)]
    pub(crate) volumes: Vec<Volume>,
    /// For each volume, the index of its group. Filled in by [`parse`], since it follows from the order.
    #[arg(skip)]
    pub(crate) volume_groups: Vec<usize>,
}

/// `NODE[=HOST:PORT]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) address: Option<String>,
}

/// `NAME=SIZE[:BACKING]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) size: Bytes,
    pub(crate) backing: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Make a node's certificate and key
    Issue(Issue),
}

#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// The node's name
    #[arg(value_name = "NODE", value_parser = node_name)]
    pub(crate) name: String,
    /// The folder of the authority
    #[arg(long, value_name = "CA_DIR", default_value = "ca")]
    pub(crate) ca: PathBuf,
    /// Where to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Points {
    /// What can be recovered: the oldest and newest point, reigns, marks, branches
    List {
        /// The group
        group: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MountPoint {
    /// The group
    pub(crate) group: String,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m)
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) at: Point,
    /// Serve at this unix socket [default: one in the node's data directory]
    #[arg(long, value_name = "PATH", conflicts_with = "tcp")]
    pub(crate) socket: Option<PathBuf>,
    /// Serve at this TCP address, to anyone who can connect
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) tcp: Option<SocketAddr>,
    /// Return at once and leave it mounted until `landfall unmount`
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Unmount {
    /// The number that `mount-point` or `status` shows
    pub(crate) mount: u64,
}

/// Arguments of `failover`: a subcommand, or the failover itself.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Failover {
    #[command(subcommand)]
    pub(crate) step: Option<FailoverStep>,
    #[command(flatten)]
    pub(crate) begin: Option<FailoverBegin>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FailoverStep {
    /// Stand by a failover: the points around it may be retired, and old primaries be taken back
    Commit(Commit),
}

#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// The group
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct Reprotect {
    /// The group
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct FailoverBegin {
    /// The group
    pub(crate) group: String,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m)
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) to: Point,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Show what it would do and cost, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub(crate) plan: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resync {
    /// The group
    pub(crate) group: String,
    /// The replica, as this node's configuration names it
    pub(crate) replica: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The group
    pub(crate) group: String,
    /// Report what differs, and send nothing again
    #[arg(long)]
    pub(crate) no_repair: bool,
    /// Wait for the end, and exit with 4 if anything differed, with 1 if not all could be compared
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Restore {
    /// Copy a volume at a point to a raw file or block device
    Disk(RestoreDisk),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreDisk {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m)
    #[arg(long, value_name = "POINT", allow_hyphen_values = true, required_unless_present = "resume")]
    pub(crate) at: Option<Point>,
    /// The file or block device to write
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Replace what is there
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Go on with a restore to this file that was cut off, at the point that it began with
    #[arg(long)]
    pub(crate) resume: bool,
}

/// `GROUP/VOLUME`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfVolume {
    pub(crate) group: String,
    pub(crate) volume: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Segments, positions and history
    Inspect {
        /// The group's folder in a data directory
        dir: PathBuf,
    },
    /// Read every record and check every checksum
    Verify {
        /// The group's folder in a data directory
        dir: PathBuf,
    },
    /// Write what guests did, without their bytes, as a workload for `landfall sim`
    ExportTrace(ExportTrace),
}

/// Arguments of `log export-trace`.
#[derive(Debug, Args)]
pub(crate) struct ExportTrace {
    /// The group's folder in a data directory
    pub(crate) dir: PathBuf,
    /// The first LSN [default: the oldest]
    #[arg(long, value_name = "LSN")]
    pub(crate) from: Option<u64>,
    /// The last LSN [default: the newest]
    #[arg(long, value_name = "LSN")]
    pub(crate) to: Option<u64>,
    /// The file to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Reads the process's arguments; ends it with a message if they are wrong, or with help if that is asked for.
pub(crate) fn parse() -> Cli {
    from(std::env::args_os()).unwrap_or_else(|err| err.exit())
}

/// Reads arguments, the program's name first.
pub(crate) fn from(
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|err| err.format(&mut command))?;
    if let (Command::Init(init), Some(matches)) = (&mut cli.command, matches.subcommand_matches("init")) {
        init.volume_groups = volume_groups(matches).ok_or_else(|| {
            command.error(clap::error::ErrorKind::ArgumentConflict, "a --volume needs a --group before it")
        })?;
    }
    Ok(cli)
}

/// Which --group stands last before each --volume.
fn volume_groups(matches: &ArgMatches) -> Option<Vec<usize>> {
    let indices = |id| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
    let groups = indices("groups");
    indices("volumes")
        .into_iter()
        .map(|volume| groups.iter().filter(|group| **group < volume).count().checked_sub(1))
        .collect()
}

fn name(text: &str) -> Result<String, String> {
    use crate::config::check::{NAME_RULE, valid_name};
    valid_name(text).then(|| text.to_owned()).ok_or_else(|| NAME_RULE.to_owned())
}

fn of_volume(text: &str) -> Result<OfVolume, String> {
    let (group, volume) = text.split_once('/').ok_or("write GROUP/VOLUME, as in db/data")?;
    Ok(OfVolume { group: name(group)?, volume: name(volume)? })
}

fn node_name(text: &str) -> Result<String, String> {
    use crate::config::check::{NODE_NAME_RULE, valid_node_name};
    valid_node_name(text).then(|| text.to_owned()).ok_or_else(|| NODE_NAME_RULE.to_owned())
}

fn peer(text: &str) -> Result<Peer, String> {
    let (node, address) = text.split_once('=').map_or((text, None), |(node, address)| (node, Some(address)));
    Ok(Peer { name: node_name(node)?, address: address.map(str::to_owned) })
}

fn volume(text: &str) -> Result<Volume, String> {
    let (volume, rest) = text.split_once('=').ok_or("write NAME=SIZE, as in data=10GiB")?;
    let (size, backing) = rest.split_once(':').map_or((rest, None), |(size, path)| (size, Some(path)));
    if backing == Some("") {
        return Err("nothing stands behind the colon: a file or block device is meant".to_owned());
    }
    let size = units::parse_bytes(size)?;
    Ok(Volume { name: name(volume)?, size, backing: backing.map(PathBuf::from) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn read(line: &str) -> Result<Cli, String> {
        from(line.split_whitespace()).map_err(|err| err.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn volumes_belong_to_the_group_before_them() {
        let cli = read(
            "landfall init --group db --volume data=10GiB --volume wal=1GiB:/dev/sdb \
             --group web --group mail --volume spool=512B:a:b",
        )
        .unwrap();
        let Command::Init(init) = cli.command else { panic!("not init") };
        assert_eq!(init.groups, ["db", "web", "mail"]);
        assert_eq!(init.volume_groups, [0, 0, 2]);
        assert_eq!(init.volumes[0].size, Bytes(10 * GIB));
        assert_eq!(init.volumes[1].backing, Some("/dev/sdb".into()));
        assert_eq!(init.volumes[2].backing, Some("a:b".into()));
        let message = read("landfall init --volume data=10GiB --group db").unwrap_err();
        assert!(message.contains("a --volume needs a --group before it"), "{message}");
    }

    #[test]
    fn wrong_values_are_explained() {
        for (line, expected) in [
            ("landfall init --group db --volume data", "write NAME=SIZE, as in data=10GiB"),
            ("landfall init --group db --volume data=10G", "did you mean `10GiB`?"),
            ("landfall init --group db --volume data=1GiB:", "nothing stands behind the colon"),
            ("landfall init --name ../x", "use 1 to 64 of a-z"),
            ("landfall init --name East", "use 1 to 64 of a-z"),
            ("landfall init --group .x", "use 1 to 64 letters"),
            ("landfall failover db --to newest", "is not a recovery point"),
            ("landfall failover db", "--to <POINT>"),
            ("landfall failover db --to latest --yes --plan", "cannot be used with"),
            ("landfall mount-point db --at latest --socket a --tcp 127.0.0.1:1", "cannot be used with"),
            ("landfall demo --seconds 0", "0 is not in 1..=600"),
            ("landfall stats", "status"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in
            ["landfall --json -vv --config a.toml status", "landfall status --json -v -v --config a.toml"]
        {
            let cli = read(line).unwrap();
            assert!(cli.global.json);
            assert_eq!((cli.global.verbose, cli.global.config), (2, Some("a.toml".into())));
        }
    }

    #[test]
    fn points_may_begin_with_a_minus() {
        let cli = read("landfall mount-point db --at time:-10m --tcp 127.0.0.1:0").unwrap();
        assert!(matches!(cli.command, Command::MountPoint(MountPoint { at: Point::Time(_), .. })));
    }
}
