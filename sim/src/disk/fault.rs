//! What goes wrong with a disk, as data.
//!
//! - A [`Rule`] says which call fails and how; rules are tried in order and the first that applies counts.
//! - A [`Blemish`] is damage on the platter. It lies over the pristine bytes and never in them, so that healing is
//!   taking it away, and so that a test can always say what should have been read.
//! - Whatever was injected is counted by name: a fault that a soak never injected was not tested.

use super::content::Sector;
use super::names::Ino;
use crate::clock::Span;
use crate::rng::Rng;
use std::collections::BTreeMap;

/// The calls of `engine::io`, to count them and to aim at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `Storage::open` of an existing file.
    Open,
    /// `Storage::open` of a new file.
    Create,
    /// `Storage::list`.
    List,
    /// `Storage::create_dir`.
    CreateDir,
    /// `Storage::remove`.
    Remove,
    /// `Storage::rename`.
    Rename,
    /// `Storage::sync_dir`.
    SyncDir,
    /// `Storage::lock`.
    Lock,
    /// `File::len` and `File::next_data`.
    Inquire,
    /// `File::read_at` and `File::read_cached_at`.
    Read,
    /// `File::write_at`.
    Write,
    /// `File::sync`.
    Sync,
    /// `File::set_len`.
    SetLen,
    /// `File::allocate`.
    Allocate,
    /// `File::zero`.
    Zero,
}

impl Call {
    /// Every kind of call.
    pub const ALL: [Call; 15] = [
        Call::Open,
        Call::Create,
        Call::List,
        Call::CreateDir,
        Call::Remove,
        Call::Rename,
        Call::SyncDir,
        Call::Lock,
        Call::Inquire,
        Call::Read,
        Call::Write,
        Call::Sync,
        Call::SetLen,
        Call::Allocate,
        Call::Zero,
    ];

    /// Whether it can change what a restarted machine finds: a place for a crash point.
    #[must_use]
    pub fn changes(self) -> bool {
        !matches!(self, Call::Open | Call::List | Call::Lock | Call::Inquire | Call::Read)
    }
}

/// How often each kind of call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Call::ALL.len()]);

impl Counts {
    /// The calls of one kind.
    #[must_use]
    pub fn of(&self, call: Call) -> u64 {
        self.0[call as usize]
    }

    /// All calls.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The calls that are places for a crash point.
    #[must_use]
    pub fn changes(&self) -> u64 {
        Call::ALL.iter().filter(|call| call.changes()).map(|call| self.of(*call)).sum()
    }

    pub(super) fn count(&mut self, call: Call) {
        self.0[call as usize] += 1;
    }
}

/// The errors of a kernel, with Linux's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the kernel's own")]
pub enum Errno {
    Eio = 5,
    Eagain = 11,
    Enomem = 12,
    Einval = 22,
    Enfile = 23,
    Emfile = 24,
    Efbig = 27,
    Enospc = 28,
    Erofs = 30,
    Eopnotsupp = 95,
    Edquot = 122,
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno as i32)
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails. Of a failed write any leading part has happened; of a failed sync nothing is known (see
    /// `engine::io`); other calls did nothing.
    Fail(Errno),
    /// A write that reports success and reaches the platter this many sectors further on instead: both places
    /// are wrong. Shows when the page cache is gone. Only for [`Call::Write`].
    Misdirect(i64),
    /// A write that reports success and never reaches the platter. Shows when the page cache is gone. Only for
    /// [`Call::Write`].
    Lose,
    /// It takes this much longer.
    Stall(Span),
}

/// Which calls of those that a rule is aimed at it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The n-th from now, counted from 1; once.
    Nth(u64),
    /// The n-th from now and all that follow.
    From(u64),
    /// Each with this probability in parts per million.
    Chance(u32),
}

/// A fault and the calls that it befalls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which kind of call; `None` for every kind.
    pub call: Option<Call>,
    /// Only on paths that begin with this; empty for all.
    pub path_prefix: String,
    /// Which of those.
    pub when: When,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// A fault of one kind of call, on whatever path.
    #[must_use]
    pub fn new(call: Call, when: When, fault: Fault) -> Rule {
        Rule { call: Some(call), path_prefix: String::new(), when, fault }
    }

    /// The same, on paths that begin so.
    #[must_use]
    pub fn on(mut self, path_prefix: &str) -> Rule {
        path_prefix.clone_into(&mut self.path_prefix);
        self
    }

    fn hits(&mut self, call: Call, path: &str, rng: &mut Rng) -> bool {
        let only_writes = matches!(self.fault, Fault::Misdirect(_) | Fault::Lose);
        let aimed = self.call.is_none_or(|aim| aim == call) && (call == Call::Write || !only_writes);
        if !aimed || !path.starts_with(&self.path_prefix) {
            return false;
        }
        match &mut self.when {
            When::Chance(ppm) => rng.chance(*ppm),
            When::Nth(left) => {
                *left = left.saturating_sub(1);
                // Used up, it stays at "never".
                *left == 0 && {
                    *left = u64::MAX;
                    true
                }
            }
            When::From(left) if *left > 1 => {
                *left -= 1;
                false
            }
            When::From(_) => true,
        }
    }
}

/// The first rule that applies to a call decides.
pub(super) fn strike(rules: &mut [Rule], call: Call, path: &str, rng: &mut Rng) -> Option<Fault> {
    // Each rule sees each call, so that "the n-th" means the same whatever other rules there are.
    let mut struck = None;
    for rule in rules {
        if rule.hits(call, path, rng) && struck.is_none() {
            struck = Some(rule.fault);
        }
    }
    struck
}

/// Damage to one sector of the platter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Blemish {
    /// One bit is flipped.
    Rot { bit: u16 },
    /// Reading fails with EIO.
    Unreadable,
    /// Other bytes are there: those of a write meant for elsewhere, or those from before a write that got lost.
    Shows(Box<Sector>),
}

/// Damage by file and sector.
pub(super) type Overlay = BTreeMap<(Ino, u64), Blemish>;

/// How long the calls take. They do not wait: the time is added up, and the scheduler asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// A read, whatever its length.
    pub read: Span,
    /// A write into the page cache.
    pub write: Span,
    /// A sync of a file, a folder, or a change of names.
    pub sync: Span,
    /// Per KiB read or written.
    pub per_kib: Span,
    /// The share of calls, in parts per million, that take ten times as long.
    pub slow_ppm: u32,
}

impl Default for Latency {
    /// A decent solid-state disk.
    fn default() -> Latency {
        Latency {
            read: Span::from_us(80),
            write: Span::from_us(10),
            sync: Span::from_us(500),
            per_kib: Span(500),
            slow_ppm: 1_000,
        }
    }
}

impl Latency {
    /// No call takes any time.
    pub const NONE: Latency =
        Latency { read: Span(0), write: Span(0), sync: Span(0), per_kib: Span(0), slow_ppm: 0 };

    pub(super) fn of(&self, call: Call, bytes: u64, rng: &mut Rng) -> Span {
        let base = match call {
            Call::Read => self.read,
            Call::Write | Call::Zero => self.write,
            Call::Open | Call::List | Call::Lock | Call::Inquire => Span(0),
            _ => self.sync,
        };
        let ns = base.0 + self.per_kib.0 * bytes / 1_024;
        if ns == 0 {
            return Span(0);
        }
        // Between half and one and a half of it, and now and then ten times as much.
        let jittered = ns / 2 + rng.below(ns + 1);
        Span(if rng.chance(self.slow_ppm) { jittered * 10 } else { jittered })
    }
}
