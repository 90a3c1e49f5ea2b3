//! Running programs, and saying that one is missing.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Whether everything in `needs` is here: names of programs, `root`, or paths of devices. If not, says
/// `skipped: needs X` on stderr, past the capture of the test harness, and the test is to return.
#[must_use]
pub fn has(needs: &[&str]) -> bool {
    let missing = needs.iter().filter(|need| !is_here(need)).copied().collect::<Vec<_>>();
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    // Not by `eprintln!`, which a passing test does not show. If stderr is closed, nobody wants to know.
    let _ = writeln!(std::io::stderr(), "\nskipped: needs {} ({test})", missing.join(", "));
    false
}

fn is_here(need: &str) -> bool {
    match need {
        "root" => rustix::process::geteuid().is_root(),
        "postgres" => super::postgres::bin_dir().is_some() && find("runuser").is_some(),
        "fio-nbd" => find("fio").is_some() && try_run("fio", ["--enghelp=nbd"]).contains("uri"),
        path if path.starts_with('/') => Path::new(path).exists(),
        name => find(name).is_some(),
    }
}

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A program that is to be run, wherever it is.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.stdin(Stdio::null());
    command
}

/// Runs a program that has to succeed; returns its stdout.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let mut command = command(name);
    command.args(arguments);
    check(&mut command)
}

/// Runs a command that has to succeed; returns its stdout.
#[track_caller]
pub fn check(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command, however it ends.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|err| panic!("{command:?} cannot be run: {err}"))
}

/// What a program said, on both.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn try_run<const N: usize>(name: &str, arguments: [&str; N]) -> String {
    command(name).args(arguments).output().map(|output| said(&output)).unwrap_or_default()
}
