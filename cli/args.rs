//! The command line.
//!
//! Invariants:
//! - what is wrong with a value is said before anything is done (exit code 2);
//! - stdout carries the answer and nothing else; with `--json` it is one JSON document, see `cli/CONTROL.md`.

use crate::exit;
use crate::point::{BranchId, Point};
use crate::units::{self, Bytes};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// Make a disk that holds data a volume of a group, where it is: its data is copied to the replicas
    Protect(Protect),
    /// Name the point that everything written so far makes, on the primary
    Mark(Mark),
    /// The scripts for `mark` that come with Landfall; with a name, its text
    Hooks(Hooks),
    /// The guard of a mark's thaw; `mark` starts it
    #[command(hide = true)]
    Thaw(Thaw),
    /// Change the size of a volume, on the primary; points before it keep theirs
    Resize(Resize),
    /// Recovery points
    #[command(subcommand)]
    Points(Points),
    /// Serve a recovery point over NBD, read-only or as a writable copy, until Ctrl-C
    MountPoint(MountPoint),
    /// End a mount made with `mount-point --detach`
    Unmount(Unmount),
    /// Open a recovery point as a writable copy, check it, and leave nothing behind
    #[command(subcommand)]
    Drill(Drill),
    /// Find the first bad write between a good and a bad point, by a check of your own
    Bisect(Bisect),
    /// Make this node the primary of a group; `failover commit GROUP` stands by it
    Failover(Failover),
    /// Take old primaries back as replicas, after a failover here that is committed
    Reprotect(Reprotect),
    /// What failovers set aside
    #[command(subcommand)]
    Branches(Branches),
    /// The writes that a failover left out, told by the old primary's log
    Loss {
        /// The group
        group: String,
    },
    /// Allow a copy of everything for a replica whose lacks are not known
    Resync(Resync),
    /// Compare the replicas of a group with its primary, bit for bit, while it is in use
    Verify(Verify),
    /// A recovery point onto something that needs no Landfall to be read
    #[command(subcommand)]
    Restore(Restore),
    /// Whole copies of a group's volumes at a point, which outlive its log and its retention
    #[command(subcommand)]
    Snapshot(crate::snapshot::args::Snapshot),
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
        /// Each periodic mark as well, not only how many there are and the newest
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct MountPoint {
    /// The group
    pub(crate) group: String,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
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
    /// Take writes: they are kept beside the point, and thrown away with the mount
    #[arg(long)]
    pub(crate) writable: bool,
    /// The most that writes may take on disk
    #[arg(long, value_name = "SIZE", default_value = SCRATCH, value_parser = units::parse_bytes, requires = "writable")]
    pub(crate) scratch: Bytes,
}

/// What the writes to a mounted point may take, if nobody says.
pub(crate) const SCRATCH: &str = "8GiB";

#[derive(Debug, Args)]
pub(crate) struct Unmount {
    /// The number that `mount-point` or `status` shows
    pub(crate) mount: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Drill {
    /// Open a point as a writable copy that is ended at its limit
    Start(DrillStart),
    /// Check a drill: filesystems by their headers and by the system's own fsck, and your script
    Verify(DrillVerify),
    /// End a drill, and throw away what was written to it
    End {
        /// The group, or the drill's number
        #[arg(value_name = "GROUP|NUMBER")]
        drill: String,
    },
    /// Start, verify and end in one; the exit status is 4 if a check fails
    Run(DrillRun),
}

#[derive(Debug, Args)]
pub(crate) struct DrillStart {
    /// The group
    pub(crate) group: String,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) at: Point,
    /// When it is ended, if nobody ends it before
    #[arg(long, value_name = "DURATION", default_value = "4h", value_parser = drill_limit)]
    pub(crate) limit: Duration,
    /// The most that writes may take on disk
    #[arg(long, value_name = "SIZE", default_value = SCRATCH, value_parser = units::parse_bytes)]
    pub(crate) scratch: Bytes,
}

#[derive(Debug, Args)]
pub(crate) struct DrillVerify {
    /// The group, or the drill's number
    #[arg(value_name = "GROUP|NUMBER")]
    pub(crate) drill: String,
    #[command(flatten)]
    pub(crate) checks: Checks,
}

#[derive(Debug, Args)]
pub(crate) struct DrillRun {
    #[command(flatten)]
    pub(crate) start: DrillStart,
    #[command(flatten)]
    pub(crate) checks: Checks,
}

#[derive(Debug, Args)]
pub(crate) struct Bisect {
    /// The group
    pub(crate) group: String,
    /// A point at which all is well: latest, lsn:N or time:T
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) good: Point,
    /// A newer one at which it is not
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) bad: Point,
    /// Points that are checked at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) jobs: u32,
    /// How long a check may take
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = units::parse_duration)]
    pub(crate) timeout: Duration,
    /// The most that the writes of a check may take on disk
    #[arg(long, value_name = "SIZE", default_value = SCRATCH, value_parser = units::parse_bytes)]
    pub(crate) scratch: Bytes,
    /// The check: a program that finds the volumes in LANDFALL_NBD_VOLUME (its name in capitals); 0 is good, 125 cannot be judged, 1 to 127 bad
    #[arg(last = true, value_name = "CHECK", required = true)]
    pub(crate) script: Vec<OsString>,
}

/// How a drill is checked.
#[derive(Debug, Args)]
pub(crate) struct Checks {
    /// Write the report as a page that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// How long the script may take, and the fsck of each volume
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = units::parse_duration)]
    pub(crate) timeout: Duration,
    /// Your own check: a program that finds the volumes in LANDFALL_NBD_VOLUME (its name in capitals), and ends with 0 if all is well
    #[arg(last = true, value_name = "CHECK")]
    pub(crate) script: Vec<OsString>,
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

#[derive(Debug, Subcommand)]
pub(crate) enum Branches {
    /// The branches of a group's log on this node
    List {
        /// The group
        group: String,
    },
    /// Put what a branch has written to a volume onto an image of the point at which it left the line
    Export(ExportBranch),
    /// Give one up for good; its files are used again
    Drop(DropBranch),
}

#[derive(Debug, Args)]
pub(crate) struct ExportBranch {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// A point of the branch, as `branches list` names it: latest@BRANCH, lsn:N@BRANCH or time:T@BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) at: Point,
    /// A raw image of the volume, or a block device of its size, as it was when the branch left the line
    #[arg(long, value_name = "IMAGE")]
    pub(crate) onto: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DropBranch {
    /// The group
    pub(crate) group: String,
    /// The branch, as `branches list` names it
    pub(crate) branch: BranchId,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
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
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true, required_unless_present = "planned")]
    pub(crate) to: Option<Point>,
    /// Have the primary hand the group over: nothing is lost, and it becomes the replica at once
    #[arg(long, conflicts_with_all = ["to", "plan"])]
    pub(crate) planned: bool,
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
    /// Copy files and folders of a volume at a point to a folder, without a mount and without root
    Files(RestoreFiles),
    /// List a folder of a volume at a point, or the volume's partitions
    Ls(RestoreList),
}

#[derive(Debug, Args)]
pub(crate) struct RestoreFiles {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) at: Point,
    /// The partition, where there are several
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// A file or folder, from the root of the filesystem; may be given more than once
    #[arg(long = "path", value_name = "PATH", required = true)]
    pub(crate) paths: Vec<OsString>,
    /// The folder to write to: /etc becomes DIR/etc
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreList {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// The folder or file, from the root of the filesystem
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: OsString,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) at: Point,
    /// The partition, where there are several
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// List what is in folders, too
    #[arg(long)]
    pub(crate) recursive: bool,
}

/// Arguments of `mark`.
#[derive(Debug, Args)]
pub(crate) struct Mark {
    /// The group
    pub(crate) group: String,
    /// The name, for `--at mark:NAME`
    #[arg(long)]
    pub(crate) name: String,
    /// Freeze the filesystem that is mounted there meanwhile; may be given more than once
    #[arg(long, value_name = "DIR")]
    pub(crate) freeze: Vec<PathBuf>,
    /// Run this by `sh -c` before: it has the applications hold still
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) pre: Option<OsString>,
    /// Run this by `sh -c` behind it, whatever became of it; a second time has to be harmless
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) post: Option<OsString>,
    /// Let go of everything after so long, whatever happens
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = units::parse_duration)]
    pub(crate) timeout: Duration,
    /// Try so many times more
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// What to do if the applications could not be asked: skip, or mark the point as a crash would leave it
    #[arg(long, value_enum, default_value_t = Otherwise::Skip)]
    pub(crate) otherwise: Otherwise,
}

/// What becomes of a mark for which the applications did not hold still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Otherwise {
    /// There is none.
    Skip,
    /// It says that nobody was asked.
    Mark,
}

#[derive(Debug, Args)]
pub(crate) struct Hooks {
    /// Only this one
    pub(crate) name: Option<String>,
    /// Write them into this folder, which is made, to be run from there
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// Replace what is there
    #[arg(long, requires = "to")]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Thaw {
    pub(crate) group: String,
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) at: u64,
    #[arg(long)]
    pub(crate) freeze: Vec<PathBuf>,
    #[arg(long)]
    pub(crate) post: Option<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// The new size, as in 20GiB
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub(crate) size: Bytes,
    /// Do not ask before it gets smaller
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Protect {
    /// The group
    pub(crate) group: String,
    /// The name of the volume
    pub(crate) volume: String,
    /// The disk: a block device that is not mounted, or a raw file
    #[arg(long, value_name = "DISK", required_unless_present = "seed_from")]
    pub(crate) backing: Option<PathBuf>,
    /// Protect so much of it from its beginning [default: all]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub(crate) size: Option<Bytes>,
    /// Do not wait until the replicas have everything
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// On a replica: a copy of the disk that came by other means, a raw file or a block device. It is compared with
    /// the primary's by hash, and only what differs travels; it is only read
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["backing", "size", "no_wait"])]
    pub(crate) seed_from: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreDisk {
    /// The volume
    #[arg(value_name = "GROUP/VOLUME", value_parser = of_volume)]
    pub(crate) volume: OfVolume,
    /// latest, lsn:N or time:T (a moment as 2026-07-01T12:34:56Z, or back from now as -10m), any of them @BRANCH
    #[arg(long, value_name = "POINT", allow_hyphen_values = true, required_unless_present = "resume")]
    pub(crate) at: Option<Point>,
    /// The file or block device to write
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// The form of the file
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = DiskFormat::Raw)]
    pub(crate) format: DiskFormat,
    /// Replace what is there
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Go on with a restore to this file that was cut off, at the point that it began with
    #[arg(long)]
    pub(crate) resume: bool,
}

/// What a restored disk is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DiskFormat {
    /// Byte for byte
    Raw,
    /// An image for qemu, as large as the data in it
    Qcow2,
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

fn drill_limit(text: &str) -> Result<Duration, String> {
    let limit = units::parse_duration(text)?;
    let lasts = 1..=u128::from(crate::control::api::MAX_DRILL_MS);
    lasts
        .contains(&limit.as_millis())
        .then_some(limit)
        .ok_or_else(|| "a drill lasts from 1ms to 30d".to_owned())
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
    use crate::point::Which;
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
            ("landfall drill start db --at latest --limit 31d", "a drill lasts from 1ms to 30d"),
            ("landfall bisect db --good lsn:1 --bad latest", "<CHECK>..."),
            ("landfall bisect db --good lsn:1 --bad latest --jobs 17 -- a", "17 is not in 1..=16"),
            ("landfall mount-point db --at latest --scratch 1GiB", "--writable"),
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
        assert!(matches!(
            cli.command,
            Command::MountPoint(MountPoint { at: Point { which: Which::Time(_), .. }, .. })
        ));
    }
}
