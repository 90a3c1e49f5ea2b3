//! A [`Node`] on real threads: one for each lane of its work, a few that wait for disks on behalf of
//! reads. Everything they do is the node's own [`Job`]s; no decision is made here.
//!
//! - A plain write, and a read that memory or the page cache can serve, run on the caller's thread, under one short
//!   lock.
//! - A flush is answered by the thread that ran the sync which covers it: the sync thread, or, for a request that
//!   comes alone while syncs are quick, the caller's.
//! - No lock is held while a job runs or an answer is delivered.

use crate::catalog::{self, Mark};
use crate::guest::{Completion, Later, Refusal, Reply, Request};
use crate::io::Storage;
use crate::log::recovery::Report;
use crate::node::config::Config;
use crate::node::primary::{Lookup, Submitted};
use crate::node::work::{Job, Lane};
use crate::node::{Answer, Node, Ticket, open};
use crate::os::clock;
use crate::os::projection::Projection;
use crate::read::{Plan, Wait};
use crate::types::{Lsn, Mono, Now, Timestamp, VolumeId};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that wait for disks on behalf of reads.
const READERS: usize = 8;
/// Reads that may wait for one of them; beyond, the caller waits.
const READ_QUEUE: usize = 256;
/// A request that comes alone and waits for a sync gets it from the thread that brought it, if syncs take less than
/// this: two hops to another thread would take as long, and so little may hold up what comes behind it.
const DIRECT_SYNC: Duration = Duration::from_micros(400);
/// A group is busy for so long after a sync.
const BUSY: Duration = Duration::from_millis(200);
/// A catalog that failed is tried again after this time.
const CATALOG_AGAIN: Duration = Duration::from_secs(10);
/// The catalog is brought up to date this often.
const PROJECT_EVERY: Duration = Duration::from_millis(500);
/// The longest sleep of the bulk thread.
const BULK_NAP: Duration = Duration::from_millis(100);
/// The longest sleep of the sync thread; it is woken for what cannot wait so long.
const SYNC_NAP: Duration = Duration::from_secs(1);

/// Told after every change of the durable position, the role, or the health of a group; must not block.
pub type Observer = Box<dyn Fn(&Node) + Send + Sync>;

struct Waiting {
    cookie: u64,
    later: Arc<dyn Later>,
}

struct Inner {
    node: Node,
    waiting: BTreeMap<Ticket, Waiting>,
    stopping: bool,
    /// Until when the sync thread sleeps, if nobody wakes it.
    sync_wakes: Mono,
    /// When the last sync began.
    synced: Mono,
    /// What a sync takes, as a moving average.
    sync_time: Duration,
}

struct Shared {
    inner: Mutex<Inner>,
    sync: Condvar,
    make: Condvar,
    apply: Condvar,
    copy: Condvar,
    bulk: Condvar,
    verify: Condvar,
    /// Background work was done: whoever had to wait for room tries again.
    progress: Condvar,
    /// The group is to stop.
    stopped: Condvar,
    /// `None` once the group stops, which ends the reading threads.
    reads: Mutex<Option<Sender<Read>>>,
    /// `None` if it failed; the group goes on without.
    catalog: Mutex<Option<Projection>>,
    observer: Observer,
}

struct Read {
    cookie: u64,
    lookup: Lookup,
    plan: Plan,
    later: Arc<dyn Later>,
}

/// Answers that are ready to be delivered, by connection.
#[derive(Default)]
struct Outbox(Vec<(Arc<dyn Later>, Vec<Completion>)>);

impl Outbox {
    fn put(&mut self, later: Arc<dyn Later>, completion: Completion) {
        match self.0.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &later)) {
            Some((_, completions)) => completions.push(completion),
            None => self.0.push((later, vec![completion])),
        }
    }

    fn deliver(self) {
        for (later, completions) in self.0 {
            later.complete(completions);
        }
    }
}

/// A running group.
pub struct Group {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Group {
    /// Opens a group and starts its threads.
    ///
    /// # Errors
    /// As [`Node::open`].
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn open(
        storage: Arc<dyn Storage>,
        config: Config,
        catalog: &Path,
        observer: Observer,
    ) -> Result<(Group, Report), open::Error> {
        let name = config.name.clone();
        let (node, report) = Node::open(clock::now(), storage, config)?;
        let (reads, queue) = bounded(READ_QUEUE);
        let inner = Inner {
            node,
            waiting: BTreeMap::new(),
            stopping: false,
            sync_wakes: Mono(0),
            synced: Mono(0),
            sync_time: Duration::from_secs(1),
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            sync: Condvar::new(),
            make: Condvar::new(),
            apply: Condvar::new(),
            copy: Condvar::new(),
            bulk: Condvar::new(),
            verify: Condvar::new(),
            progress: Condvar::new(),
            stopped: Condvar::new(),
            reads: Mutex::new(Some(reads)),
            catalog: Mutex::new(None),
            observer,
        });
        let mut threads = Vec::new();
        let mut start = |label: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(format!("{label}-{name}"));
            threads.push(thread.spawn(run).expect("the system gives a thread"));
        };
        let of = shared.clone();
        start("log", Box::new(move || of.sync_loop()));
        let of = shared.clone();
        start("make", Box::new(move || of.work_loop(Lane::Make, &of.make)));
        let of = shared.clone();
        start("apply", Box::new(move || of.work_loop(Lane::Apply, &of.apply)));
        let of = shared.clone();
        start("copy", Box::new(move || of.work_loop(Lane::Copy, &of.copy)));
        let of = shared.clone();
        start("bulk", Box::new(move || of.work_loop(Lane::Bulk, &of.bulk)));
        let of = shared.clone();
        start("verify", Box::new(move || of.work_loop(Lane::Verify, &of.verify)));
        let of = shared.clone();
        let path = catalog.to_owned();
        start("catalog", Box::new(move || of.catalog_loop(&path)));
        for _ in 0..READERS {
            let queue: Receiver<Read> = queue.clone();
            start("read", Box::new(move || read_loop(&queue)));
        }
        Ok((Group { shared, threads: Mutex::new(threads) }, report))
    }

    /// Takes a batch of requests to a volume: see `transport::block::Export::submit`. Blocks while the group takes
    /// no more writes.
    pub fn submit(
        &self,
        volume: VolumeId,
        requests: &mut Vec<Request>,
        ready: &mut Vec<Completion>,
        later: &Arc<dyn Later>,
    ) {
        let mut reads = Vec::new();
        let is_alone = requests.len() == 1;
        let mut inner = self.shared.lock();
        loop {
            let mut out = Submitted { ready: std::mem::take(ready), ..Submitted::default() };
            let now = clock::now();
            let inner_ref = &mut *inner;
            if inner_ref.stopping {
                let refused =
                    |request: Request| Completion { cookie: request.cookie, result: Err(Refusal::Shutdown) };
                out.ready.extend(requests.drain(..).map(refused));
            } else {
                inner_ref.node.submit(now, volume, requests, &mut out);
            }
            *ready = out.ready;
            reads.append(&mut out.reads);
            let waits = !out.waiting.is_empty();
            for (cookie, ticket) in out.waiting {
                inner_ref.waiting.insert(ticket, Waiting { cookie, later: later.clone() });
            }
            if is_alone
                && waits
                && inner_ref.sync_time < DIRECT_SYNC
                && let Some(job) = inner_ref.node.poll_job(now, Lane::Sync)
            {
                drop(inner);
                self.shared.sync(job);
                break;
            }
            self.shared.wake(inner_ref, now);
            if !out.stalled {
                drop(inner);
                break;
            }
            // What is answered already must not wait for room.
            let answered = std::mem::take(ready);
            self.shared.apply.notify_one();
            drop(inner);
            if !answered.is_empty() {
                later.complete(answered);
            }
            inner = self.shared.lock();
            let (waited, _) =
                self.shared.progress.wait_timeout(inner, BULK_NAP).expect("no holder of the lock panics");
            inner = waited;
        }
        for (cookie, lookup, plan) in reads {
            match look_up(&plan, lookup, Wait::No) {
                Some(result) => ready.push(Completion { cookie, result }),
                None => {
                    let read = Read { cookie, lookup, plan, later: later.clone() };
                    let queue = self.shared.reads.lock().expect("no holder of the lock panics").clone();
                    let sent = queue.is_some_and(|queue| queue.send(read).is_ok());
                    if !sent {
                        ready.push(Completion { cookie, result: Err(Refusal::Shutdown) });
                    }
                }
            }
        }
    }

    /// Calls the node, then delivers whatever answers that brought about and wakes whoever has work.
    pub fn with<R>(&self, call: impl FnOnce(&mut Node, Now) -> R) -> R {
        self.shared.with(call)
    }

    /// Looks at the node.
    pub fn peek<R>(&self, look: impl FnOnce(&Node) -> R) -> R {
        look(&self.shared.lock().node)
    }

    /// Calls the node when no job is out, waiting for that: what a change of role needs.
    pub fn at_rest<R>(&self, mut call: impl FnMut(&mut Node, Now) -> Option<R>) -> R {
        loop {
            if let Some(result) = self.shared.with(&mut call) {
                return result;
            }
            let inner = self.shared.lock();
            let nap = Duration::from_millis(5);
            drop(self.shared.progress.wait_timeout(inner, nap).expect("no holder of the lock panics"));
        }
    }

    /// The named marks that can be selected, oldest first; none if there is no catalog.
    pub fn marks(&self) -> Vec<(Lsn, Mark)> {
        let mut named = Vec::new();
        self.each_mark(|lsn, mark| {
            if !mark.name.is_empty() {
                named.push((lsn, mark));
            }
        });
        named
    }

    /// The periodic marks, with their times, oldest first; none if there is no catalog.
    pub fn periodic_marks(&self) -> Vec<(Lsn, Timestamp)> {
        let mut unnamed = Vec::new();
        self.each_mark(|lsn, mark| {
            if mark.name.is_empty() {
                unnamed.push((lsn, mark.time));
            }
        });
        unnamed
    }

    /// The mark at a record, named or not; `None` as well if there is no catalog.
    pub fn mark_at(&self, lsn: Lsn) -> Option<Mark> {
        let catalog = self.shared.catalog.lock().expect("no holder of the lock panics");
        catalog.as_ref().and_then(|projection| projection.mark_at(lsn).ok().flatten())
    }

    /// Both; those that are seen when the catalog fails are still marks.
    fn each_mark(&self, see: impl FnMut(Lsn, Mark)) {
        let horizon = self.peek(|node| node.state().horizon);
        let catalog = self.shared.catalog.lock().expect("no holder of the lock panics");
        if let Some(projection) = catalog.as_ref()
            && let Err(error) = projection.each_mark(horizon, see)
        {
            tracing::warn!(%error, "the marks cannot all be listed");
        }
    }

    /// Stops the threads. What was appended is durable then, unless the disk fails.
    pub fn stop(&self) {
        {
            let mut inner = self.shared.lock();
            if inner.stopping {
                return;
            }
            inner.stopping = true;
        }
        self.shared.sync.notify_all();
        self.shared.make.notify_all();
        self.shared.apply.notify_all();
        self.shared.copy.notify_all();
        self.shared.bulk.notify_all();
        self.shared.verify.notify_all();
        self.shared.progress.notify_all();
        self.shared.stopped.notify_all();
        drop(self.shared.reads.lock().expect("no holder of the lock panics").take());
        let threads = std::mem::take(&mut *self.threads.lock().expect("no holder of the lock panics"));
        for thread in threads {
            let _ = thread.join();
        }
        // A thread of a connection may be at a sync yet.
        self.at_rest(|node, now| (!node.is_syncing()).then(|| node.close(now)));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Carries a lookup out; `None` if it would have to wait and must not.
fn look_up(plan: &Plan, lookup: Lookup, wait: Wait) -> Option<Result<Reply, Refusal>> {
    let result = match lookup {
        Lookup::Read => plan.read(wait).map(Reply::Data),
        Lookup::Status => plan.status().map(Reply::Status),
        Lookup::Cache => {
            plan.will_need();
            Ok(Reply::Done)
        }
    };
    match result {
        Ok(reply) => Some(Ok(reply)),
        Err(error) if error.kind() == ErrorKind::WouldBlock && wait == Wait::No => None,
        Err(error) => {
            tracing::warn!(%error, "a read failed");
            Some(Err(Refusal::Io))
        }
    }
}

fn read_loop(queue: &Receiver<Read>) {
    while let Ok(Read { cookie, lookup, plan, later }) = queue.recv() {
        let result = look_up(&plan, lookup, Wait::Yes).unwrap_or(Err(Refusal::Io));
        later.complete(vec![Completion { cookie, result }]);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    fn with<R>(&self, call: impl FnOnce(&mut Node, Now) -> R) -> R {
        let mut inner = self.lock();
        let now = clock::now();
        let result = call(&mut inner.node, now);
        let outbox = self.after(&mut inner, now);
        drop(inner);
        outbox.deliver();
        result
    }

    /// What follows every call: answers are collected, sleepers woken, observers told.
    fn after(&self, inner: &mut Inner, now: Now) -> Outbox {
        let mut outbox = Outbox::default();
        for Answer { ticket, result } in inner.node.take_answers() {
            if let Some(Waiting { cookie, later }) = inner.waiting.remove(&ticket) {
                outbox.put(later, Completion { cookie, result: result.map(|()| Reply::Done) });
            }
        }
        self.wake(inner, now);
        (self.observer)(&inner.node);
        outbox
    }

    fn wake(&self, inner: &Inner, now: Now) {
        let too_late = inner.node.sync_due_at().is_some_and(|due| due < inner.sync_wakes);
        if too_late || inner.node.is_due(now, Lane::Sync) {
            self.sync.notify_one();
        }
        let lanes = [
            (Lane::Make, &self.make),
            (Lane::Apply, &self.apply),
            (Lane::Copy, &self.copy),
            (Lane::Bulk, &self.bulk),
            (Lane::Verify, &self.verify),
        ];
        for (lane, woken) in lanes {
            if inner.node.is_due(now, lane) {
                woken.notify_one();
            }
        }
    }

    /// Runs a sync, and answers whoever waited for it.
    fn sync(&self, job: Job) {
        let began = clock::now();
        let done = job.run();
        let mut inner = self.lock();
        let now = clock::now();
        inner.synced = began.mono;
        let took = Duration::from_nanos(now.mono.0.saturating_sub(began.mono.0));
        inner.sync_time = (inner.sync_time * 3 + took) / 4;
        inner.node.finish(now, done);
        let outbox = self.after(&mut inner, now);
        drop(inner);
        outbox.deliver();
        self.progress.notify_all();
    }

    fn sync_loop(&self) {
        let mut inner = self.lock();
        while !inner.stopping {
            let now = clock::now();
            if let Some(job) = inner.node.poll_job(now, Lane::Sync) {
                drop(inner);
                self.sync(job);
                inner = self.lock();
                continue;
            }
            let nap = match inner.node.sync_due_at() {
                Some(_) => nap(&inner.node, now, SYNC_NAP),
                // To be woken by each first write behind a sync would cost each of them more than this.
                None if now.mono.0.saturating_sub(inner.synced.0) < BUSY.as_nanos() as u64 => {
                    inner.node.sync_delay().max(Duration::from_millis(1))
                }
                None => SYNC_NAP,
            };
            inner.sync_wakes = Mono(now.mono.0 + nap.as_nanos() as u64);
            inner = self.sync.wait_timeout(inner, nap).expect("no holder of the lock panics").0;
        }
    }

    /// Brings the catalog up to date now and then, until the group ends. One that fails is closed, and opened again
    /// after a while: what is damaged in it is made anew then.
    fn catalog_loop(&self, path: &Path) {
        while !self.lock().stopping {
            let error = match self.keep_catalog(path) {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(path = %path.display(), %error, "the catalog failed: marks are not listed for now");
            *self.catalog.lock().expect("no holder of the lock panics") = None;
            self.rest(CATALOG_AGAIN);
        }
    }

    /// Keeps the catalog until the group ends, or the catalog fails.
    fn keep_catalog(&self, path: &Path) -> Result<(), catalog::Error> {
        let durable = self.lock().node.durable().lsn;
        let opened = Projection::open(path, durable)?;
        *self.catalog.lock().expect("no holder of the lock panics") = Some(opened);
        loop {
            let mut catalog = self.catalog.lock().expect("no holder of the lock panics");
            let projection = catalog.as_mut().expect("nobody else takes it away");
            let more = projection.step(&|look| look(&self.lock().node))?;
            if self.lock().stopping {
                return projection.flush();
            }
            drop(catalog);
            if !more {
                self.rest(PROJECT_EVERY);
            }
        }
    }

    /// Waits, but not beyond the group's end.
    fn rest(&self, time: Duration) {
        let inner = self.lock();
        if !inner.stopping {
            drop(self.stopped.wait_timeout(inner, time).expect("no holder of the lock panics"));
        }
    }

    /// Does one lane's work, but for syncs.
    fn work_loop(&self, lane: Lane, woken: &Condvar) {
        let mut inner = self.lock();
        while !inner.stopping {
            let now = clock::now();
            if lane == Lane::Bulk && inner.node.is_filled() {
                // Reading the log back takes a moment, once in a promotion's life.
                let _ = inner.node.end_hydration(now);
            }
            if let Some(job) = inner.node.poll_job(now, lane) {
                drop(inner);
                let done = job.run();
                inner = self.lock();
                let now = clock::now();
                inner.node.finish(now, done);
                let outbox = self.after(&mut inner, now);
                drop(inner);
                outbox.deliver();
                self.progress.notify_all();
                inner = self.lock();
                continue;
            }
            inner = woken.wait_timeout(inner, BULK_NAP).expect("no holder of the lock panics").0;
        }
    }
}

/// Until the node wants to be asked again, at most `most`.
fn nap(node: &Node, now: Now, most: Duration) -> Duration {
    let wake = node.next_wake(now).map(|at| Duration::from_nanos(at.0.saturating_sub(now.mono.0)));
    wake.unwrap_or(most).clamp(Duration::from_micros(200), most)
}
