//! Progress of a long operation, on stderr: a bar with an estimate where that is a terminal, otherwise a line now
//! and then.

use crate::human::say;
use crate::units::{Bytes, duration_ms};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal: a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// One operation.
pub(crate) struct Progress {
    what: String,
    total: u64,
    done: u64,
    files: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
    unit: Unit,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Milliseconds,
    Files,
}

impl Progress {
    /// Begins something of a known number of bytes.
    pub(crate) fn bytes(what: &str, total: u64) -> Progress {
        Progress::begin(what, total, Unit::Bytes, "{bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left")
    }

    /// Begins something that takes a known time.
    pub(crate) fn milliseconds(what: &str, total: u64) -> Progress {
        Progress::begin(what, total, Unit::Milliseconds, "{eta} left")
    }

    /// Begins something of files whose number nobody knows.
    pub(crate) fn files(what: &str) -> Progress {
        Progress::begin(what, 0, Unit::Files, "")
    }

    /// A file more.
    pub(crate) fn add_file(&mut self) {
        self.files += 1;
        self.add(0);
    }

    fn begin(what: &str, total: u64, unit: Unit, numbers: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = match unit {
                Unit::Files => "  {msg}".to_owned(),
                Unit::Bytes | Unit::Milliseconds => format!("  {{msg}} [{{bar:30}}] {numbers}"),
            };
            let style = ProgressStyle::with_template(&template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_message(what.to_owned());
            bar
        });
        let now = Instant::now();
        Progress { what: what.to_owned(), total, done: 0, files: 0, started: now, last_line: now, bar, unit }
    }

    /// So many more.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(bar) = &self.bar {
            if self.unit == Unit::Files {
                bar.set_message(format!("{}: {} files, {}", self.what, self.files, Bytes(self.done)));
            }
            bar.set_position(self.done);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let spent = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let left = spent.saturating_mul(self.total.saturating_sub(self.done)) / self.done.max(1);
            let left = duration_ms(left);
            match self.unit {
                Unit::Bytes => {
                    let (done, total) = (Bytes(self.done), Bytes(self.total));
                    say(format_args!("  {}: {done} of {total}, {left} left", self.what));
                }
                Unit::Files => {
                    say(format_args!("  {}: {} files, {}", self.what, self.files, Bytes(self.done)));
                }
                Unit::Milliseconds => say(format_args!("  {}: {left} left", self.what)),
            }
        }
    }
}

/// Takes the bar away; what came of it is said by whoever knows.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
