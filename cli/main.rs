//! The `landfall` binary: arguments, configuration, certificates, the daemon around the engine and the link, the
//! control API between the two kinds of command, and what a person sees. The only place that joins the parts.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line |
//! | [`exit`] | exit codes, and the error that carries one |
//! | [`config`] | the configuration file |
//! | [`certs`], [`init`] | identities; what `init` and `cert issue` write |
//! | [`control`] | requests from commands to a running daemon |
//! | [`commands`] | the commands that ask a daemon or read a log |
//! | [`drill`] | `drill`: a point as a writable copy, checked |
//! | [`bisect`] | `bisect`: the first bad write |
//! | [`daemon`] | `agent` and `replica` |
//! | [`node`] | the engine's runtime, joined to the above |
//! | [`restore`] | `restore`: a point to a disk image or device, or files out of it |
//! | [`snapshot`] | `snapshot`: whole copies that outlive the log |
//! | [`sim`] | `sim`: the simulator as a command |
//! | [`demo`] | `demo`: protect, kill, fail over and check |
//! | [`human`], [`progress`], [`units`], [`time`], [`point`] | how things are shown and read |
//! | [`log_setup`], [`signal`], [`scratch`] | small things of the process |

mod args;
mod bisect;
mod certs;
mod commands;
mod config;
mod control;
mod daemon;
mod demo;
mod drill;
mod exit;
mod human;
mod init;
mod log_setup;
mod mark;
mod node;
mod point;
mod progress;
mod restore;
mod scratch;
mod signal;
mod sim;
mod snapshot;
mod time;
mod units;

use args::{Cli, Command};
use daemon::Expect;
use exit::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            human::say(format_args!("landfall: {failure}"));
            ExitCode::from(failure.code.status())
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let kind = match cli.command {
        Command::Agent | Command::Replica => log_setup::Kind::Daemon,
        _ => log_setup::Kind::Command,
    };
    log_setup::init(kind, cli.global.verbose)?;
    let global = &cli.global;
    match &cli.command {
        Command::Demo(arguments) => demo::run(global, arguments),
        Command::Init(arguments) => init::init(arguments, global.form()),
        Command::Cert(args::Cert::Issue(arguments)) => init::issue(arguments, global.form()),
        Command::Agent => daemon::run(&global.load()?, Expect::Primary, node::start),
        Command::Replica => daemon::run(&global.load()?, Expect::Replica, node::start),
        Command::Status => commands::status::run(global),
        Command::Mark(arguments) => mark::run(global, arguments),
        Command::Hooks(arguments) => mark::hooks::run(global, arguments),
        Command::Thaw(arguments) => mark::guard::run(arguments),
        Command::Resize(arguments) => commands::resize::run(global, arguments),
        Command::Protect(arguments) => commands::protect::run(global, arguments),
        Command::Points(args::Points::List { group, all }) => commands::points::list(global, group, *all),
        Command::MountPoint(arguments) => commands::mount::mount(global, arguments),
        Command::Unmount(arguments) => commands::mount::unmount(global, arguments),
        Command::Drill(drill) => drill::command(global, drill),
        Command::Bisect(arguments) => bisect::run(global, arguments),
        Command::Failover(arguments) => commands::failover::run(global, arguments),
        Command::Reprotect(arguments) => commands::reprotect::run(global, arguments),
        Command::Branches(args::Branches::List { group }) => commands::branches::list(global, group),
        Command::Branches(args::Branches::Export(arguments)) => restore::onto::run(global, arguments),
        Command::Branches(args::Branches::Drop(arguments)) => commands::branches::drop(global, arguments),
        Command::Loss { group } => commands::branches::loss(global, group),
        Command::Resync(arguments) => commands::resync::run(global, arguments),
        Command::Verify(arguments) => commands::verify::run(global, arguments),
        Command::Restore(args::Restore::Disk(arguments)) => restore::disk::run(global, arguments),
        Command::Restore(args::Restore::Ls(arguments)) => restore::list::run(global, arguments),
        Command::Restore(args::Restore::Files(arguments)) => restore::files::run(global, arguments),
        Command::Snapshot(command) => snapshot::run(global, command),
        Command::Sim(command) => sim::run(command, global.form()),
        Command::Log(args::Log::Inspect { dir }) => commands::log::inspect(global, dir, node::inspect),
        Command::Log(args::Log::Verify { dir }) => commands::log::verify(global, dir, node::verify),
        Command::Log(args::Log::ExportTrace(arguments)) => {
            commands::export::run(arguments, node::export_trace)
        }
    }
}
