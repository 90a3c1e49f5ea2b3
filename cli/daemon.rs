//! The daemon: one process for all groups of a node, whatever it is to each. `agent` and `replica` are the same;
//! they differ in what they expect to find in the configuration, so that a mistaken file is noticed at the start.
//!
//! In this order, each step undone by the one before it failing:
//!
//! 1. the configuration and the identity are checked;
//! 2. the data directory is made, and locked (a second daemon gets a clear error);
//! 3. the node starts: it opens its groups, listens, serves;
//! 4. the control socket opens: from here on `landfall status` answers;
//! 5. SIGINT, SIGTERM or SIGHUP: the socket closes, the node stops, the lock goes.
//!
//! A kill at any moment is as good as a stop: the order is for those who wait, not for the data.

use crate::certs;
use crate::config::{Config, Role};
use crate::control::{Operator, Server};
use crate::exit::Failure;
use crate::signal::Signals;
use std::sync::Arc;
use std::time::Duration;
use transport::link::tls::Credentials;

/// Which of the two commands was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// `agent`: at least one group to protect.
    Primary,
    /// `replica`: at least one group to receive.
    Replica,
}

/// A node that runs: what [`run`] needs of it.
pub(crate) trait Node: Operator {
    /// Why the node as a whole cannot go on, if that is so. (A group that failed stays, and says so in `status`.)
    fn defect(&self) -> Option<Failure>;

    /// Stops serving, and returns when nothing is in flight. NBD clients are disconnected, not refused: they
    /// reconnect to the next daemon.
    fn stop(&self);
}

/// How often the node's health is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs until a signal comes. `start` is given everything that was checked.
pub(crate) fn run<N: Node + 'static>(
    config: &Config,
    expect: Expect,
    start: impl FnOnce(&Config, Credentials) -> Result<N, Failure>,
) -> Result<(), Failure> {
    abort_on_panic();
    let signals = Signals::take()?;
    check(config, expect)?;
    let credentials = certs::load(&config.node.certificates, &config.node.name)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    certs::make_dir(&config.node.data_dir)?;
    let node = Arc::new(start(config, credentials)?);
    let control = match Server::start(&config.node.control, Arc::clone(&node) as Arc<dyn Operator>) {
        Ok(control) => control,
        Err(failure) => {
            node.stop();
            return Err(failure);
        }
    };
    tracing::info!(node = config.node.name, control = %config.node.control.display(), "ready");
    let result = loop {
        if let Some(signal) = signals.wait_for(LOOK_EVERY) {
            tracing::info!(signal, "stopping");
            break Ok(());
        }
        if let Some(failure) = node.defect() {
            break Err(failure);
        }
    };
    drop(control);
    node.stop();
    result
}

/// A panic is a mistake in this program, and whatever it was doing is in doubt: the process ends, whole and at
/// once, and its supervisor starts it again. A kill at any moment is as good as a stop; a daemon that goes on with
/// a thread missing is not.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // A damaged catalog makes sled panic; that is caught where it happens, and the catalog is given up.
        let thread = std::thread::current();
        if !thread.name().is_some_and(|name| name.starts_with("catalog-")) {
            std::process::abort();
        }
    }));
}

fn check(config: &Config, expect: Expect) -> Result<(), Failure> {
    let (role, word, other) = match expect {
        Expect::Primary => (Role::Primary, "primary", "replica"),
        Expect::Replica => (Role::Replica, "replica", "agent"),
    };
    if config.groups.iter().any(|group| group.role == role) {
        return Ok(());
    }
    let failure =
        Failure::usage(format_args!("{} has no group with `role = \"{word}\"`", config.path.display()));
    Err(match config.groups.is_empty() {
        true => failure.next("add a [[group]]"),
        false => {
            failure.next(format_args!("start it with `landfall {other}`, or name another file with --config"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;
    use std::path::Path;

    #[test]
    fn a_mistaken_file_is_noticed() {
        let head = "[node]\nname = \"a\"\ndata_dir = \"d\"\nca = \"c\"\ncertificate = \"c\"\nkey = \"k\"\n\
                    [[peer]]\nname = \"b\"\n";
        let replica = "[[group]]\nname = \"db\"\nrole = \"replica\"\naccept = [\"b\"]\n";
        let read = |text: &str| Config::parse(Path::new("x.toml"), text).unwrap();
        let config = read(&format!("{head}{replica}"));
        assert_eq!(check(&config, Expect::Replica), Ok(()));
        let failure = check(&config, Expect::Primary).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.to_string().contains("start it with `landfall replica`"), "{failure}");
        let failure = check(&read(head), Expect::Replica).unwrap_err();
        assert!(failure.to_string().contains("add a [[group]]"), "{failure}");
    }
}
