//! Whole lives of a node on storage that fails: each error of the system at each call of each kind, once and for
//! good, with and without effect, until the run passes. Either the node stops and says why, or it refuses a step and
//! goes on; afterwards nothing that was promised is gone, nothing that was answered, and no read is wrong. No file is
//! ever synced again after its sync failed.

mod common;

use common::crash::CrashDisk;
use common::story::{self, Promises, Reference, Source};
use common::{Random, TempDir};
use engine::faulty::{Call, Effect, Errno, Fault, Faulty, Lasting};
use engine::io::Storage;
use engine::types::Lsn;
use std::sync::Arc;

/// A life to be lived on failing storage, and what must be true of what it leaves.
trait Life {
    /// The folder as it is at the start.
    fn disk(&self) -> CrashDisk;
    /// Lives it; `Err` if the node stopped.
    fn live(&mut self, storage: Arc<dyn Storage>) -> Result<(), story::Halt>;
    /// Checks what is left: of a killed process, or of a power cut.
    fn check(&mut self, storage: Arc<dyn Storage>, after: After, story: &str);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Kill,
    PowerCut,
}

struct Primary {
    reference: Reference,
}

impl Life for Primary {
    fn disk(&self) -> CrashDisk {
        CrashDisk::new()
    }

    fn live(&mut self, storage: Arc<dyn Storage>) -> Result<(), story::Halt> {
        self.reference = Reference::default();
        story::live_as_primary(storage, &mut self.reference, 21)
    }

    fn check(&mut self, storage: Arc<dyn Storage>, after: After, story: &str) {
        let kept = match after {
            After::Kill => self.reference.answered,
            After::PowerCut => self.reference.promised,
        };
        story::check_primary(storage, &story::primary(), &self.reference, kept, story);
    }
}

struct Replica {
    first: Source,
    second: Source,
    promises: Promises,
}

impl Replica {
    fn new() -> Replica {
        let mut first = Source::primary(CrashDisk::new().storage(), 5);
        let at = Lsn(first.node.node.durable().lsn.0 - 12);
        let second = Source::promoted(&mut first, CrashDisk::new().storage(), at, 6);
        Replica { first, second, promises: Promises::default() }
    }
}

impl Life for Replica {
    fn disk(&self) -> CrashDisk {
        CrashDisk::new()
    }

    fn live(&mut self, storage: Arc<dyn Storage>) -> Result<(), story::Halt> {
        self.promises = Promises::default();
        story::live_as_replica(storage, &mut self.first, &mut self.second, &mut self.promises)
    }

    fn check(&mut self, storage: Arc<dyn Storage>, _: After, story: &str) {
        story::check_replica(storage, &mut self.first, &mut self.second, &self.promises, story);
    }
}

struct Promoted {
    before: Source,
    fed: CrashDisk,
    at: Lsn,
    reference: Reference,
}

impl Promoted {
    fn new() -> Promoted {
        let mut before = Source::primary(CrashDisk::new().storage(), 7);
        let fed = CrashDisk::new();
        let at = Lsn(before.node.node.durable().lsn.0 - 9);
        let mut replica = story::open(fed.storage(), story::replica()).expect("opened");
        common::replicate(&mut before.node, &mut replica);
        replica.work();
        let reference = before.reference.from(at);
        Promoted { before, fed, at, reference }
    }
}

impl Life for Promoted {
    fn disk(&self) -> CrashDisk {
        self.fed.killed()
    }

    fn live(&mut self, storage: Arc<dyn Storage>) -> Result<(), story::Halt> {
        self.reference = self.before.reference.from(self.at);
        story::live_as_promoted(storage, self.at, &mut self.reference, 9)
    }

    fn check(&mut self, storage: Arc<dyn Storage>, after: After, story: &str) {
        let kept = match after {
            After::Kill => self.reference.answered,
            After::PowerCut => self.reference.promised,
        };
        story::check_promoted(storage, self.at, &self.before, &self.reference, kept, story);
    }
}

/// Lives a life once with a fault. Returns whether the fault came up.
fn with_fault(life: &mut impl Life, fault: Fault) -> bool {
    let story = format!("{fault:?}");
    let disk = life.disk();
    let faulty = Faulty::new(disk.storage());
    faulty.arm(fault);
    let ended = life.live(Arc::new(faulty.clone()));
    let fired = faulty.fired() > 0;
    assert!(fired || ended.is_ok(), "{story}: nothing failed, but {ended:?}");
    assert_eq!(faulty.resyncs(), 0, "{story}: a file was synced again after its sync had failed");
    life.check(disk.killed().storage(), After::Kill, &story);
    let mut random = Random(fault.nth);
    for (number, outcome) in disk.outcomes(2, &mut random).iter().enumerate() {
        life.check(outcome.storage(), After::PowerCut, &format!("{story}, then power cut {number}"));
    }
    fired
}

/// The faults of a kind of call, or of any, one after the other until the life passes.
fn until_it_passes(
    life: &mut impl Life,
    call: Option<Call>,
    errno: impl Fn(u64) -> Errno,
    effect: Effect,
    lasting: Lasting,
) -> u64 {
    (1..)
        .find(|&nth| !with_fault(life, Fault { call, nth, errno: errno(nth), effect, lasting }))
        .expect("a life has an end")
        - 1
}

/// All of them in turn.
fn any_error(nth: u64) -> Errno {
    Errno::ALL[nth as usize % Errno::ALL.len()]
}

fn each_call_once(life: &mut impl Life) {
    for (errno, effect) in [
        (Errno::Io, Effect::Nothing),
        (Errno::Io, Effect::Half),
        (Errno::Io, Effect::Whole),
        (Errno::NoSpace, Effect::Half),
    ] {
        let calls = until_it_passes(life, None, |_| errno, effect, Lasting::Once);
        assert!(calls > 150, "a life makes more than {calls} calls");
    }
    for skip in [0, 3] {
        until_it_passes(life, None, |nth| any_error(nth + skip), Effect::Nothing, Lasting::Once);
    }
}

fn each_kind_for_good(life: &mut impl Life) {
    let mut calls = 0;
    // Space runs out, or the disk dies: by turns, each beginning at another call of the kind.
    let errors = [Errno::NoSpace, Errno::Io];
    for (index, call) in Call::ALL.into_iter().enumerate() {
        let errno = |nth: u64| errors[(index + nth as usize) % 2];
        calls += until_it_passes(life, Some(call), errno, Effect::Nothing, Lasting::UntilDisarmed);
    }
    assert!(calls > 200, "a life makes more than {calls} calls");
    until_it_passes(life, None, any_error, Effect::Nothing, Lasting::UntilDisarmed);
    until_it_passes(life, Some(Call::Write), |_| Errno::NoSpace, Effect::Half, Lasting::UntilDisarmed);
}

/// W15, W17, W18: a primary.
#[test]
fn w18_a_primary_with_each_error_at_each_call() {
    each_call_once(&mut Primary { reference: Reference::default() });
}

/// W15, W17, W18: and where it does not go away.
#[test]
fn w17_a_primary_with_errors_that_last() {
    each_kind_for_good(&mut Primary { reference: Reference::default() });
}

/// W18, R05: a replica, through folds and another history.
#[test]
fn w18_a_replica_with_each_error_at_each_call() {
    each_call_once(&mut Replica::new());
}

/// W17, R05.
#[test]
fn w17_a_replica_with_errors_that_last() {
    each_kind_for_good(&mut Replica::new());
}

/// W18: a promotion and the filling of its disks.
#[test]
fn w18_a_promotion_with_each_error_at_each_call() {
    each_call_once(&mut Promoted::new());
}

/// W17.
#[test]
fn w17_a_promotion_with_errors_that_last() {
    each_kind_for_good(&mut Promoted::new());
}

/// W15: a sync that fails as a kernel's does, taking the dirty pages with it: no flush is answered for them, and what
/// reads still gave is made durable by the next start before it is called so.
#[test]
fn w15_a_failed_sync_that_takes_the_pages_with_it() {
    for nth in 1.. {
        let (disk, mut reference) = (CrashDisk::new(), Reference::default());
        disk.fail_sync(nth);
        let ended = story::live_as_primary(disk.storage(), &mut reference, 21);
        if !disk.has_failed_sync() {
            ended.expect("nothing failed");
            assert!(nth > 20, "a life has more than {nth} syncs");
            break;
        }
        let story = format!("sync {nth}");
        let config = story::primary();
        let mut random = Random(nth);
        for outcome in disk.outcomes(4, &mut random) {
            story::check_primary(outcome.storage(), &config, &reference, reference.promised, &story);
        }
        // The machine stays up: the pages are clean, but they are not on the disk.
        let again = disk.killed();
        let opened = story::open(again.storage(), config.clone());
        let seen = opened.map(|node| node.node.durable().lsn).unwrap_or_default();
        assert!(seen >= reference.answered, "{story}: {seen}");
        for outcome in again.outcomes(2, &mut random) {
            story::check_primary(outcome.storage(), &config, &reference, reference.answered, &story);
        }
    }
}

/// W15, W17, W18 on real files, where an error leaves what the system leaves.
#[test]
fn w18_on_real_files() {
    let calls =
        [Call::Write, Call::Sync, Call::Allocate, Call::SyncDir, Call::Open, Call::SetLen, Call::Zero];
    for (index, call) in calls.into_iter().enumerate() {
        // Every call would take long; each kind begins and goes on somewhere else.
        for nth in (1 + index as u64 % 3..).step_by(3) {
            let dir = TempDir::new();
            let faulty = Faulty::new(dir.storage());
            let (effect, errno) = match nth % 2 {
                0 => (Effect::Half, Errno::NoSpace),
                _ => (Effect::Nothing, Errno::Io),
            };
            faulty.arm(Fault { call: Some(call), nth, errno, effect, lasting: Lasting::Once });
            let mut reference = Reference::default();
            let ended = story::live_as_primary(Arc::new(faulty.clone()), &mut reference, 33);
            assert_eq!(faulty.resyncs(), 0);
            let (fired, story) = (faulty.fired() > 0, format!("{call:?} {nth}"));
            assert!(fired || ended.is_ok(), "{story}: {ended:?}");
            story::check_primary(dir.storage(), &story::primary(), &reference, reference.answered, &story);
            if !fired {
                break;
            }
        }
    }
}
