//! The CPU time of a process, by the names of its threads.
//!
//! The system forgets a thread when it ends, so a [`Meter`] looks often, and remembers. What a thread did between
//! the last look at it and its end is in the process's own sum: it is shown as `ended threads`.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Of `utime` and `stime`: Linux shows them in hundredths of a second, whatever it counts in.
const TICKS_PER_SECOND: f64 = 100.0;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Seconds, by name.
pub type Seconds = BTreeMap<String, f64>;

/// Watches processes until it is stopped.
pub struct Meter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seconds>,
}

impl Meter {
    /// Watches processes, each with a word that is put before its threads' names.
    pub fn start(processes: Vec<(&'static str, u32)>) -> Meter {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut watched =
                processes.into_iter().map(|(word, pid)| Process::new(word, pid)).collect::<Vec<_>>();
            while !stopped.load(Ordering::SeqCst) {
                thread::sleep(LOOK_EVERY);
                watched.iter_mut().for_each(Process::look);
            }
            watched.iter_mut().for_each(Process::look);
            watched.iter().flat_map(Process::spent).collect()
        });
        Meter { stop, thread }
    }

    /// What was spent since the start.
    pub fn stop(self) -> Seconds {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("it only reads files")
    }
}

struct Process {
    word: &'static str,
    pid: u32,
    /// By thread: its name, its time at the first look, and at the last.
    threads: BTreeMap<u32, (String, u64, u64)>,
    first: u64,
    last: u64,
}

impl Process {
    fn new(word: &'static str, pid: u32) -> Process {
        let first = times(&format!("/proc/{pid}/stat")).map_or(0, |(_, ticks)| ticks);
        let mut process = Process { word, pid, threads: BTreeMap::new(), first, last: first };
        process.look();
        // What they had spent before is not ours.
        process.threads.values_mut().for_each(|(_, first, last)| *first = *last);
        process
    }

    fn look(&mut self) {
        if let Some((_, ticks)) = times(&format!("/proc/{}/stat", self.pid)) {
            self.last = ticks;
        }
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten() {
            let thread = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(thread) = thread else { continue };
            if let Some((name, ticks)) = times(&format!("/proc/{}/task/{thread}/stat", self.pid)) {
                self.threads.entry(thread).or_insert((String::new(), 0, 0)).2 = ticks;
                // A thread gets its name a moment after its start.
                self.threads.entry(thread).and_modify(|known| known.0 = name);
            }
        }
    }

    fn spent(&self) -> Seconds {
        let mut spent = BTreeMap::new();
        let mut sum = 0;
        for (name, first, last) in self.threads.values() {
            sum += last - first;
            // `worker-3` and `worker-4` are one thing.
            let name = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', ' ', ':']);
            *spent.entry(format!("{} {name}", self.word)).or_default() +=
                (last - first) as f64 / TICKS_PER_SECOND;
        }
        let rest = (self.last - self.first).saturating_sub(sum);
        *spent.entry(format!("{} ended threads", self.word)).or_default() += rest as f64 / TICKS_PER_SECOND;
        spent.retain(|_, seconds| *seconds > 0.0);
        spent
    }
}

/// The name and the ticks in a `stat` file: `pid (name) state …`, where a name may hold anything.
fn times(path: &str) -> Option<(String, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields = tail.split_whitespace().collect::<Vec<_>>();
    // proc(5): utime and stime are fields 14 and 15, and the state behind the name is field 3.
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some((name, ticks(14)? + ticks(15)?))
}
