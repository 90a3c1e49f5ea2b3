//! A sparse disk in memory, as the server's other side: it answers at once, later, or when it is told to.

use engine::guest::{Completion, MAX_REQUEST_BYTES, Op, Piece, Refusal, Reply, Request, Stretch};
use engine::types::Extent;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use transport::block::{Catalog, Export, Later, Shape};
use transport::nbd::client::{Address, Client};
use transport::nbd::{Config, Server, Stop, Tls};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// When it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// From `submit`.
    AtOnce,
    /// Plain writes from `submit`; the rest from one thread that answers whoever is connected, newest first.
    Later,
    /// Only what [`Memory::release`] lets go.
    Held,
    /// `submit` does not come back before this changes, as when a log is full.
    Stuck,
}

type Waiting = (Arc<dyn Later>, Vec<Request>);

pub(crate) struct Memory {
    pub(crate) shape: Shape,
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct State {
    pub(crate) pages: BTreeMap<u64, Arc<[u8]>>,
    /// The pages as of the last flush.
    pub(crate) durable: BTreeMap<u64, Arc<[u8]>>,
    pub(crate) pace: Pace,
    pub(crate) refuse: Option<Refusal>,
    waiting: VecDeque<Waiting>,
    pub(crate) requests: u64,
    pub(crate) detached: u64,
    /// Requests that ever got stuck.
    pub(crate) stuck: u64,
    pub(crate) panic_next: bool,
}

impl Memory {
    pub(crate) fn new(size: u64, pace: Pace) -> Arc<Memory> {
        Memory::with_shape(Shape { size, read_only: false, description: "a disk in memory".into() }, pace)
    }

    pub(crate) fn with_shape(shape: Shape, pace: Pace) -> Arc<Memory> {
        let state = State {
            pages: BTreeMap::new(),
            durable: BTreeMap::new(),
            pace,
            refuse: None,
            waiting: VecDeque::new(),
            requests: 0,
            detached: 0,
            stuck: 0,
            panic_next: false,
        };
        let memory = Arc::new(Memory { shape, state: Mutex::new(state), changed: Condvar::new() });
        if pace == Pace::Later {
            let weak = Arc::downgrade(&memory);
            thread::spawn(move || {
                while let Some(memory) = weak.upgrade() {
                    memory.answer_some();
                }
            });
        }
        memory
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let result = f(&mut self.state.lock().unwrap());
        self.changed.notify_all();
        result
    }

    /// Waits until something is true of it.
    pub(crate) fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, TIMEOUT, |state| !condition(state)).unwrap();
        assert!(!timeout.timed_out(), "this never became true");
    }

    /// Number of requests that wait for [`Memory::release`].
    pub(crate) fn held(&self) -> usize {
        self.with(|state| state.waiting.iter().map(|(_, requests)| requests.len()).sum())
    }

    /// Carries out and answers everything that waits, newest first.
    pub(crate) fn release(&self) {
        let waiting = self.with(|state| std::mem::take(&mut state.waiting));
        for (later, requests) in waiting.into_iter().rev() {
            let completions = requests.into_iter().rev().map(|request| self.carry_out(request)).collect();
            later.complete(completions);
        }
    }

    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        self.with(|state| {
            let mut bytes = vec![0; len];
            state.read(offset, &mut bytes);
            bytes
        })
    }

    fn answer_some(&self) {
        let state = self.state.lock().unwrap();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, Duration::from_millis(100), |state| state.waiting.is_empty())
            .unwrap();
        drop(state);
        self.release();
    }

    fn carry_out(&self, Request { cookie, op, fua }: Request) -> Completion {
        let result = self.with(|state| match state.refuse {
            Some(refusal) => Err(refusal),
            None => {
                let reply = state.carry_out(op);
                if fua {
                    state.durable = state.pages.clone();
                }
                Ok(reply)
            }
        });
        Completion { cookie, result }
    }

    fn check(&self, request: &Request) {
        let fits = |extent: &Extent| assert!(extent.len > 0 && extent.fits(self.shape.size), "{request:?}");
        match &request.op {
            Op::Write { offset, data } => {
                assert!(!self.shape.read_only && data.len() <= MAX_REQUEST_BYTES as usize);
                fits(&Extent::new(*offset, data.len() as u64));
            }
            Op::Read(extent) => {
                assert!(extent.len <= u64::from(MAX_REQUEST_BYTES));
                fits(extent);
            }
            Op::Trim(extent) | Op::Zero { extent, .. } => {
                assert!(!self.shape.read_only);
                fits(extent);
            }
            Op::Cache(extent) | Op::Status(extent) => fits(extent),
            Op::Flush => {}
        }
    }
}

impl Export for Memory {
    fn shape(&self) -> Shape {
        self.shape.clone()
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, later: &Arc<dyn Later>) {
        let (pace, panics) = self.with(|state| (state.pace, std::mem::take(&mut state.panic_next)));
        assert!(!panics, "as the test wants it");
        let count = requests.len() as u64;
        if pace == Pace::Stuck {
            self.with(|state| state.stuck += count);
            self.wait_until(|state| state.pace != Pace::Stuck);
        }
        let mut waiting = Vec::new();
        for request in requests.drain(..) {
            self.check(&request);
            let plain = matches!(request.op, Op::Write { .. }) && !request.fua;
            match pace {
                Pace::AtOnce | Pace::Stuck => ready.push(self.carry_out(request)),
                Pace::Later if plain => ready.push(self.carry_out(request)),
                Pace::Later | Pace::Held => waiting.push(request),
            }
        }
        // Whoever sees the count sees what waits as well.
        self.with(|state| {
            state.requests += count;
            if !waiting.is_empty() {
                state.waiting.push_back((later.clone(), waiting));
            }
        });
    }

    fn detach(&self, _later: &Arc<dyn Later>) {
        self.with(|state| state.detached += 1);
    }
}

impl State {
    fn carry_out(&mut self, op: Op) -> Reply {
        match op {
            Op::Read(extent) => {
                let mut pieces = Vec::new();
                self.pieces(extent, |state, extent, hole| {
                    pieces.push(if hole {
                        Piece::Hole(extent.len)
                    } else {
                        let mut bytes = vec![0; extent.len as usize];
                        state.read(extent.offset, &mut bytes);
                        Piece::Bytes(bytes.into())
                    });
                });
                return Reply::Data(pieces);
            }
            Op::Status(extent) => {
                let mut stretches: Vec<Stretch> = Vec::new();
                self.pieces(extent, |_, extent, hole| stretches.push(Stretch { len: extent.len, hole }));
                return Reply::Status(stretches);
            }
            Op::Write { offset, data } => self.write(offset, &data),
            Op::Trim(extent) | Op::Zero { extent, .. } => self.zero(extent),
            Op::Flush => self.durable = self.pages.clone(),
            Op::Cache(_) => {}
        }
        Reply::Done
    }

    /// Cuts an extent into stretches that are holes and stretches that are not.
    fn pieces(&self, extent: Extent, mut f: impl FnMut(&State, Extent, bool)) {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let page = offset / PAGE;
            let hole = !self.pages.contains_key(&page);
            let end = match hole {
                true => self.pages.range(page..).next().map_or(u64::MAX, |(page, _)| page * PAGE),
                false => (page + 1) * PAGE,
            };
            let end = end.min(extent.end());
            f(self, Extent::new(offset, end - offset), hole);
            offset = end;
        }
    }

    fn read(&self, mut offset: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let within = (offset % PAGE) as usize;
            let (part, rest) = buf.split_at_mut(buf.len().min(PAGE as usize - within));
            match self.pages.get(&(offset / PAGE)) {
                Some(page) => part.copy_from_slice(&page[within..within + part.len()]),
                None => part.fill(0),
            }
            offset += part.len() as u64;
            buf = rest;
        }
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut offset = offset;
        while !data.is_empty() {
            let within = (offset % PAGE) as usize;
            let len = data.len().min(PAGE as usize - within);
            let page = self.pages.entry(offset / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
            Arc::make_mut(page)[within..within + len].copy_from_slice(&data[..len]);
            data = &data[len..];
            offset += len as u64;
        }
    }

    fn zero(&mut self, extent: Extent) {
        let whole = extent.offset.div_ceil(PAGE)..extent.end() / PAGE;
        if whole.start >= whole.end {
            let touched: Vec<u64> = (extent.offset..extent.end()).collect();
            return touched.into_iter().for_each(|at| self.clear(at));
        }
        let inner: Vec<u64> = self.pages.range(whole.clone()).map(|(page, _)| *page).collect();
        inner.iter().for_each(|page| drop(self.pages.remove(page)));
        (extent.offset..whole.start * PAGE).for_each(|at| self.clear(at));
        (whole.end * PAGE..extent.end()).for_each(|at| self.clear(at));
    }

    fn clear(&mut self, at: u64) {
        if let Some(page) = self.pages.get_mut(&(at / PAGE)) {
            Arc::make_mut(page)[(at % PAGE) as usize] = 0;
        }
    }
}

/// Exports by name.
#[derive(Default)]
pub(crate) struct Exports(pub(crate) Mutex<BTreeMap<String, Arc<Memory>>>);

impl Catalog for Exports {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.0.lock().unwrap().get(name).map(|memory| memory.clone() as Arc<dyn Export>)
    }
}

/// A server on a unix socket of its own, with one export called "disk".
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) disk: Arc<Memory>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) socket: PathBuf,
}

pub(crate) const SIZE: u64 = 1 << 40;

impl Bench {
    pub(crate) fn new(pace: Pace) -> Bench {
        Bench::with(Memory::new(SIZE, pace), Config::default(), Tls::Off)
    }

    pub(crate) fn with(disk: Arc<Memory>, config: Config, tls: Tls) -> Bench {
        let exports = Arc::new(Exports::default());
        exports.0.lock().unwrap().insert("disk".into(), disk.clone());
        let server = Server::new(exports.clone(), config);
        let socket = socket_path();
        server.bind_unix(&socket, tls).unwrap();
        Bench { server, disk, exports, socket }
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address(), "disk", TIMEOUT).unwrap()
    }

    /// Waits until at most this many clients are left.
    pub(crate) fn wait_for_connections(&self, at_most: usize) {
        let until = std::time::Instant::now() + TIMEOUT;
        while self.server.connections() > at_most {
            assert!(std::time::Instant::now() < until, "a client does not go away");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.disk.with(|state| state.pace = Pace::AtOnce);
            self.disk.release();
            assert_eq!(self.server.stop(Stop::Disconnect), 0);
            assert!(!self.socket.exists(), "the socket file is removed");
        }
    }
}

/// A path that no other test uses.
pub(crate) fn socket_path() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("landfall-nbd-{}-{number}.sock", std::process::id()))
}

/// A generator whose sequence depends on its seed alone (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
