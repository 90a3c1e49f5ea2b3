//! Running fio, and its figures.

use crate::support::tool;
use serde_json::Value;
use std::time::Duration;

/// What a job is: the part of fio's command line that tells one from another.
#[derive(Clone, Debug)]
pub struct Job {
    /// `--ioengine`, and what says where: `--uri` or `--filename`.
    pub target: Vec<String>,
    /// `randwrite`, `write`, `randread`, `randrw`.
    pub pattern: &'static str,
    pub block_bytes: u64,
    pub depth: u32,
    /// A flush after so many writes.
    pub fsync_every: Option<u32>,
    pub size_bytes: u64,
    /// Until all is written, if there is no time.
    pub time: Option<Duration>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Reads and writes a second; flushes are not counted.
    pub ops_per_second: f64,
    pub bytes_per_second: f64,
    /// All that was written.
    pub written_bytes: u64,
    /// The 99th percentile of a write's (or read's) time, in microseconds.
    pub p99_us: f64,
}

impl Job {
    /// The target of an NBD export.
    pub fn nbd(uri: &str) -> Vec<String> {
        vec!["--ioengine=nbd".to_owned(), format!("--uri={uri}")]
    }

    /// Runs it.
    #[track_caller]
    pub fn run(&self) -> Figures {
        let mut command = tool::command("fio");
        command.args(["--name=job", "--output-format=json", "--randrepeat=0", "--norandommap", "--thread"]);
        command.args(&self.target);
        command.arg(format!("--rw={}", self.pattern));
        command.arg(format!("--bs={}", self.block_bytes));
        command.arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={}", self.size_bytes));
        if self.pattern == "randrw" {
            command.arg("--rwmixread=70");
        }
        if let Some(every) = self.fsync_every {
            command.arg(format!("--fsync={every}"));
        }
        if let Some(time) = self.time {
            command.args(["--time_based"]);
            command.arg(format!("--runtime={}", time.as_secs()));
        }
        let text = tool::check(&mut command);
        // It may say a word before the document.
        let start = text.find('{').unwrap_or_else(|| panic!("{command:?} wrote no JSON: {text}"));
        let answer: Value = serde_json::from_str(&text[start..]).expect("fio writes JSON");
        figures(&answer["jobs"][0])
    }
}

fn figures(job: &Value) -> Figures {
    let sum = |key: &str| ["read", "write"].map(|way| job[way][key].as_f64().unwrap_or(0.0)).iter().sum();
    let p99 = |way: &str| job[way]["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or(0.0) / 1000.0;
    Figures {
        ops_per_second: sum("iops"),
        bytes_per_second: sum("bw_bytes"),
        written_bytes: job["write"]["io_bytes"].as_u64().unwrap_or(0),
        p99_us: p99("write").max(p99("read")),
    }
}
