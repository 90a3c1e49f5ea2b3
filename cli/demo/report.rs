//! What the demo found out, and how it says so.

use crate::human::{Table, clean};
use crate::units::{Bytes, count, duration_ms};
use serde::Serialize;
use std::path::PathBuf;

/// The result, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Writes that were acknowledged before the primary was killed, on the two volumes under load.
    pub(crate) writes: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Writes in flight at the kill: sent and not answered.
    pub(crate) in_flight: u64,
    /// What of the acknowledged writes is not on the replica.
    pub(crate) rpo: Rpo,
    /// From the kill until the replica had answered a read and a flushed write.
    pub(crate) rto_ms: u64,
    /// Of that, how long the failover itself took.
    pub(crate) failover_ms: u64,
    /// The checks.
    pub(crate) checks: Vec<Check>,
    /// The folder, if it was kept.
    pub(crate) dir: Option<PathBuf>,
}

/// What was lost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rpo {
    /// Acknowledged writes.
    pub(crate) writes: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The age of the oldest of them at the kill.
    pub(crate) ms: u64,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What was checked.
    pub(crate) what: String,
    /// Whether it holds.
    pub(crate) ok: bool,
    /// What was found.
    pub(crate) found: String,
}

impl Check {
    /// The outcome of a check.
    pub(crate) fn of(what: &str, result: Result<String, String>) -> Check {
        let (ok, found) = match result {
            Ok(found) => (true, found),
            Err(found) => (false, found),
        };
        Check { what: what.to_owned(), ok, found }
    }
}

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::default();
        let writes = |writes: u64, bytes: u64| format!("{} ({})", count(writes), Bytes(bytes));
        table.row(&["acknowledged writes", &writes(self.writes, self.bytes)]);
        table.row(&["in flight at the kill", &count(self.in_flight)]);
        table.row(&[
            "RPO: acknowledged and lost",
            &format!(
                "{} writes, {}, {}",
                count(self.rpo.writes),
                Bytes(self.rpo.bytes),
                duration_ms(self.rpo.ms)
            ),
        ]);
        table.row(&[
            "RTO: kill to first read and flushed write",
            &format!("{} (failover {})", duration_ms(self.rto_ms), duration_ms(self.failover_ms)),
        ]);
        let mut text = format!("\n{}\n", table.render());
        let mut checks = Table::default();
        for check in &self.checks {
            checks.row(&[if check.ok { "ok" } else { "FAILED" }, &check.what, &check.found]);
        }
        text += &checks.render();
        if let Some(dir) = &self.dir {
            text += &format!("\nkept: {}\n", clean(&dir.to_string_lossy()));
        }
        text
    }

    /// Whether all checks hold.
    pub(crate) fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}
