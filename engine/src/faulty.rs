//! A [`Storage`] around another that fails where a test wants it to: the n-th call, of one kind or of any.
//!
//! For the tests that go through a run call by call ("fail the first; the second; …; until the run passes"). It is
//! data and counting only, so it goes around a simulated disk as well as around the real one.
//!
//! Invariants:
//! - calls are counted from 1, from [`Faulty::arm`] on, in the order in which they begin;
//! - a call that is to fail changes nothing, or a part, or everything, as its [`Effect`] says, and then fails;
//! - a sync of a file whose sync failed before is let through but counted: nobody may ask for one (guarantee 8).
//!
//! It loses nothing at a power cut: for that there is the simulated disk.

use crate::io::{File, OpenMode, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, IoSlice, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of call, named after the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Call {
    Open,
    List,
    CreateDir,
    Remove,
    Rename,
    SyncDir,
    Lock,
    Len,
    Read,
    ReadCached,
    Write,
    Sync,
    SetLen,
    Allocate,
    Zero,
    NextData,
}

impl Call {
    /// All kinds.
    pub const ALL: [Call; 16] = [
        Call::Open,
        Call::List,
        Call::CreateDir,
        Call::Remove,
        Call::Rename,
        Call::SyncDir,
        Call::Lock,
        Call::Len,
        Call::Read,
        Call::ReadCached,
        Call::Write,
        Call::Sync,
        Call::SetLen,
        Call::Allocate,
        Call::Zero,
        Call::NextData,
    ];
}

/// An error of the system, by its Linux number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errno {
    /// `EIO`: the disk failed.
    Io = 5,
    /// `ENOMEM`.
    NoMemory = 12,
    /// `EMFILE`: too many open files.
    TooManyFiles = 24,
    /// `EFBIG`: beyond the longest file that the filesystem or a limit allows.
    TooBig = 27,
    /// `ENOSPC`: the filesystem is full.
    NoSpace = 28,
    /// `EROFS`: the filesystem was remounted read-only.
    ReadOnly = 30,
    /// `EDQUOT`: the quota is used up.
    Quota = 122,
}

impl Errno {
    /// All of them.
    pub const ALL: [Errno; 7] = [
        Errno::Io,
        Errno::NoMemory,
        Errno::TooManyFiles,
        Errno::TooBig,
        Errno::NoSpace,
        Errno::ReadOnly,
        Errno::Quota,
    ];

    /// The error as the real disk would give it.
    #[must_use]
    pub fn error(self) -> Error {
        Error::from_raw_os_error(self as i32)
    }
}

/// How much of a failing call takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Of a read, a write or a zeroing the first half of its bytes; of other calls nothing.
    Half,
    /// Everything: only the answer is an error.
    Whole,
}

/// Whether a fault goes away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// The call after it goes through.
    Once,
    /// Every call of the kind fails until [`Faulty::disarm`].
    UntilDisarmed,
}

/// What is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which kind of call; `None` for any.
    pub call: Option<Call>,
    /// The n-th of them, from 1.
    pub nth: u64,
    /// With what.
    pub errno: Errno,
    /// How much of it takes effect.
    pub effect: Effect,
    /// Whether those that follow fail too.
    pub lasting: Lasting,
}

/// A storage that fails on demand. Clones share the counters and the fault.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    counts: BTreeMap<Call, u64>,
    /// Calls that failed because of the fault.
    fired: u64,
    /// Paths of files whose sync was made to fail.
    failed_syncs: BTreeSet<String>,
    /// Syncs of such files afterwards.
    resyncs: u64,
}

impl Faulty {
    /// Around `inner`, with no fault.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Faulty {
        Faulty { inner, state: Arc::default() }
    }

    /// Sets the fault, in place of any other, and every counter to zero.
    pub fn arm(&self, fault: Fault) {
        assert!(fault.nth > 0, "calls are counted from 1");
        *self.state() = State { fault: Some(fault), ..State::default() };
    }

    /// Takes the fault away, and sets every counter to zero: the disk has been mended, the process begins anew.
    pub fn disarm(&self) {
        *self.state() = State::default();
    }

    /// How many calls of a kind there were.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.state().counts.get(&call).copied().unwrap_or(0)
    }

    /// How many calls there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.state().counts.values().sum()
    }

    /// How many calls the fault made fail. Zero at the end of a run means that the run is through: it makes fewer
    /// calls than [`Fault::nth`].
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.state().fired
    }

    /// How many syncs were asked for, on any handle, of files whose sync had failed: each breaks guarantee 8.
    #[must_use]
    pub fn resyncs(&self) -> u64 {
        self.state().resyncs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and finds out whether it is to fail.
    fn begin(&self, call: Call) -> Option<Fault> {
        let mut state = self.state();
        let count = state.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        let fault = state.fault?;
        let nth = match fault.call {
            None => state.counts.values().sum(),
            Some(kind) if kind == call => count,
            Some(_) => return None,
        };
        let fails = match fault.lasting {
            Lasting::Once => nth == fault.nth,
            Lasting::UntilDisarmed => nth >= fault.nth,
        };
        state.fired += u64::from(fails);
        fails.then_some(fault)
    }

    /// A call that takes effect wholly or not at all.
    fn run<T>(&self, call: Call, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.run_in_parts(call, |half| match half {
            Part::Half => Ok(None),
            Part::Whole => run().map(Some),
        })
    }

    /// A call that can be done by half, for which it has no answer.
    fn run_in_parts<T>(&self, call: Call, run: impl FnOnce(Part) -> Result<Option<T>>) -> Result<T> {
        let Some(fault) = self.begin(call) else {
            return run(Part::Whole).map(|answer| answer.expect("a whole call has an answer"));
        };
        // Whatever the call itself says, the caller learns of the fault.
        match fault.effect {
            Effect::Nothing => {}
            Effect::Half => drop(run(Part::Half)),
            Effect::Whole => drop(run(Part::Whole)),
        }
        Err(fault.errno.error())
    }
}

/// How much of a call is to be done.
#[derive(Clone, Copy)]
enum Part {
    Half,
    Whole,
}

impl Part {
    fn of(self, len: usize) -> usize {
        match self {
            Part::Half => len / 2,
            Part::Whole => len,
        }
    }

    fn answer(self) -> Option<()> {
        match self {
            Part::Half => None,
            Part::Whole => Some(()),
        }
    }
}

impl Storage for Faulty {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let file = self.run(Call::Open, || self.inner.open(path, mode))?;
        Ok(Arc::new(FaultyFile { inner: file, storage: self.clone(), path: path.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.run(Call::List, || self.inner.list(dir))
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        self.run(Call::CreateDir, || self.inner.create_dir(dir))
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.run(Call::Remove, || {
            self.inner.remove(path)?;
            // What gets that name from here on is another file.
            self.state().failed_syncs.remove(path);
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.run(Call::Rename, || self.inner.rename(from, to))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.run(Call::SyncDir, || self.inner.sync_dir(dir))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        self.run(Call::Lock, || self.inner.lock(path))
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    storage: Faulty,
    path: String,
}

impl File for FaultyFile {
    fn len(&self) -> Result<u64> {
        self.storage.run(Call::Len, || self.inner.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.storage.run_in_parts(Call::Read, |part| {
            let len = part.of(buf.len());
            self.inner.read_at(&mut buf[..len], offset)?;
            Ok(part.answer())
        })
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.storage.run_in_parts(Call::ReadCached, |part| {
            let len = part.of(buf.len());
            self.inner.read_cached_at(&mut buf[..len], offset)?;
            Ok(part.answer())
        })
    }

    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.storage.run_in_parts(Call::Write, |part| {
            let mut left = part.of(slices.iter().map(|slice| slice.len()).sum());
            let mut taken = Vec::with_capacity(slices.len());
            for slice in slices {
                let len = left.min(slice.len());
                taken.push(IoSlice::new(&slice[..len]));
                left -= len;
            }
            self.inner.write_at(&taken, offset)?;
            Ok(part.answer())
        })
    }

    fn sync(&self) -> Result<()> {
        if self.storage.state().failed_syncs.contains(&self.path) {
            self.storage.state().resyncs += 1;
        }
        let result = self.storage.run(Call::Sync, || self.inner.sync());
        if result.is_err() {
            self.storage.state().failed_syncs.insert(self.path.clone());
        }
        result
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.storage.run(Call::SetLen, || self.inner.set_len(len))
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.storage.run(Call::Allocate, || self.inner.allocate(len))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.storage.run_in_parts(Call::Zero, |part| {
            let len = match part {
                Part::Half => len / 2,
                Part::Whole => len,
            };
            self.inner.zero(offset, len)?;
            Ok(part.answer())
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.storage.run(Call::NextData, || self.inner.next_data(offset))
    }

    fn will_need(&self, offset: u64, len: u64) {
        self.inner.will_need(offset, len);
    }
}
