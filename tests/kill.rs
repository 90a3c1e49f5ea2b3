//! The agent is killed two hundred times at random moments (after so many requests, or so long after its start), in the middle of concurrent writes by clients that
//! reconnect, its start and its recovery included; now and then the replica as well.
//!
//! What is checked, by whom:
//!
//! - each writer, after every loss of its connection: everything that was acknowledged is there (guarantee 3), and
//!   no request ever failed: a guest would not have noticed;
//! - every few rounds, on the dead agent: the log verifies;
//! - at each rest, when nobody writes: the primary, its recovery point and the replica's at the same LSN all show
//!   the same bytes, those that the writers know of; and the plain backing files, once all is applied, are the
//!   same again: the log's fold.

mod support;

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::node::{GROUP, Pair, Volume};
use support::random::Random;
use support::{Scratch, tool};
use transport::nbd::client::{Address, Client, Command, Durability, Reconnecting, Retry, Volume as _};

const ROUNDS: u32 = 200;
const VERIFY_EVERY: u32 = 7;
const REST_EVERY: u32 = 40;
const NAMES: [&str; 2] = ["data", "wal"];
const VOLUME_BYTES: u64 = 1 << 20;
const WRITERS_OF_EACH: usize = 2;
const REGION_BYTES: usize = VOLUME_BYTES as usize / WRITERS_OF_EACH;
const SECTOR: usize = 512;
const DEPTH: usize = 8;
/// Requests between two moments at which a writer can be stopped.
const BURST: u32 = 64;
/// A little more than the time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(6);
const TIMEOUT: Duration = Duration::from_secs(20);

/// What the writers and the one who kills have in common.
#[derive(Default)]
struct Shared {
    /// Writers hold it to read, and for a rest it is held to write.
    rest: RwLock<()>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    reconnections: AtomicU64,
}

/// The writer of a region: no two of its writes that are in flight touch the same sector, so what each of them
/// leaves is certain.
struct Writer {
    shared: Arc<Shared>,
    client: Reconnecting,
    random: Random,
    start: u64,
    /// The region, as it is once everything in flight is done.
    image: Arc<Mutex<Vec<u8>>>,
    in_flight: BTreeMap<u64, Range<usize>>,
    checked_after: u64,
}

impl Writer {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let shared = Arc::clone(&self.shared);
            let _busy = shared.rest.read().expect("nobody panicked with it");
            for _ in 0..BURST {
                self.submit();
                while self.in_flight.len() >= DEPTH {
                    self.collect();
                }
                if self.client.reconnections() != self.checked_after {
                    self.check();
                }
            }
            self.check();
        }
    }

    fn submit(&mut self) {
        let sectors = 1 + self.random.below(16) as usize;
        let first = self.random.below((REGION_BYTES / SECTOR - sectors) as u64) as usize;
        let range = first * SECTOR..(first + sectors) * SECTOR;
        if self.in_flight.values().any(|busy| busy.start < range.end && range.start < busy.end) {
            return;
        }
        let offset = self.start + range.start as u64;
        let len = range.len() as u32;
        let mut image = self.image.lock().expect("nobody panicked with it");
        let (command, range) = match self.random.below(24) {
            0 => (Command::Flush, 0..0),
            1 => (Command::Trim { offset, len }, range),
            2 => (Command::Zero { offset, len, durability: Durability::Volatile }, range),
            kind => {
                let mut data = vec![0; range.len()];
                self.random.fill(&mut data);
                image[range.clone()].copy_from_slice(&data);
                let durability = if kind == 3 { Durability::Durable } else { Durability::Volatile };
                (Command::Write { offset, data: Bytes::from(data), durability }, range)
            }
        };
        if matches!(command, Command::Trim { .. } | Command::Zero { .. }) {
            image[range.clone()].fill(0);
        }
        drop(image);
        let number = self.client.submit(&command).expect("the guest goes on");
        self.in_flight.insert(number, range);
    }

    fn collect(&mut self) {
        let (number, outcome) = self.client.collect().expect("the guest goes on");
        outcome.unwrap_or_else(|errno| panic!("request {number}: {errno}"));
        self.in_flight.remove(&number).expect("it was submitted");
        self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits for all that is in flight and reads the region.
    fn check(&mut self) {
        while !self.in_flight.is_empty() {
            self.collect();
        }
        let lost = self.client.reconnections() - self.checked_after;
        self.shared.reconnections.fetch_add(lost, Ordering::SeqCst);
        self.checked_after += lost;
        let mut found = vec![0; REGION_BYTES];
        self.client.read_at(self.start, &mut found).expect("the guest goes on");
        let image = self.image.lock().expect("nobody panicked with it");
        same(&found, &image, self.start, "a writer's region");
    }
}

fn same(found: &[u8], expected: &[u8], start: u64, what: &str) {
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        let wrong = found.chunks(SECTOR).zip(expected.chunks(SECTOR)).filter(|(a, b)| a != b).count();
        panic!("{what}: {wrong} sectors are wrong, the first at byte {}", start + at as u64);
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

struct Run {
    pair: Pair,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
    /// The regions of each volume.
    images: [Vec<Arc<Mutex<Vec<u8>>>>; 2],
    scratch: Scratch,
}

impl Run {
    fn start(random: &mut Random) -> Run {
        let scratch = Scratch::new();
        let volumes = NAMES.map(|name| {
            let backing = scratch.join(&format!("{name}.img"));
            let file = std::fs::File::create(&backing).expect("the folder is ours");
            file.set_len(VOLUME_BYTES).expect("there is room");
            Volume { backing: Some(backing), ..Volume::new(name, VOLUME_BYTES) }
        });
        let mut pair = Pair::init(scratch.path(), &volumes);
        pair.west.start();
        pair.east.start();
        pair.wait_connected();
        let shared = Arc::new(Shared::default());
        let mut writers = Vec::new();
        let images = NAMES.map(|name| {
            let mut writer = |number: usize| {
                let address = Address::Unix(pair.east.nbd_socket());
                let client =
                    Reconnecting::connect(address, &format!("{GROUP}/{name}"), TIMEOUT, Retry::default());
                let image = Arc::new(Mutex::new(vec![0; REGION_BYTES]));
                let writer = Writer {
                    shared: Arc::clone(&shared),
                    client: client.expect("the agent runs"),
                    random: random.child(),
                    start: (number * REGION_BYTES) as u64,
                    image: Arc::clone(&image),
                    in_flight: BTreeMap::new(),
                    checked_after: 0,
                };
                let thread = thread::Builder::new().name(format!("{name}-{number}"));
                writers.push(thread.spawn(move || writer.run()).expect("threads are to be had"));
                image
            };
            (0..WRITERS_OF_EACH).map(&mut writer).collect::<Vec<_>>()
        });
        Run { pair, shared, writers, images, scratch }
    }

    /// Lets the writers get so many answers.
    fn wait_for_requests(&mut self, at: &str, requests: u64) {
        let upto = self.shared.acknowledged.load(Ordering::SeqCst) + requests;
        let start = Instant::now();
        while self.shared.acknowledged.load(Ordering::SeqCst) < upto {
            self.writers_live(at);
            let words = || self.pair.east.last_words();
            assert!(start.elapsed() < support::node::PATIENCE, "{at}: nothing is served\n{}", words());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// No writer has died, which is how they tell that something was wrong.
    fn writers_live(&mut self, at: &str) {
        if let Some(dead) = self.writers.iter().position(JoinHandle::is_finished) {
            let end = self.writers.swap_remove(dead).join();
            self.shared.stop.store(true, Ordering::SeqCst);
            panic!("{at}: a writer ended: {end:?}\n{}", self.pair.east.last_words());
        }
    }

    fn expected(&self, volume: usize) -> Vec<u8> {
        let regions = self.images[volume].iter();
        regions.flat_map(|image| image.lock().expect("nobody panicked with it").clone()).collect()
    }

    /// Both nodes run, and nobody writes for as long as this takes.
    fn rest(&mut self, at: &str) {
        let shared = Arc::clone(&self.shared);
        let _rest = shared.rest.write().unwrap_or_else(|_| panic!("{at}: a writer found something"));
        self.pair.wait_connected();
        let lsn = self.pair.wait_caught_up();
        let point = self.pair.west.mount_point(&format!("lsn:{lsn}"));
        for (number, name) in NAMES.iter().enumerate() {
            let expected = self.expected(number);
            let primary = read(&Address::Unix(self.pair.east.nbd_socket()), &format!("{GROUP}/{name}"));
            same(&primary, &expected, 0, &format!("{at}: the primary's {name} at LSN {lsn}"));
            let replica = read(&Address::Unix(point.socket()), &point.export(name));
            same(&replica, &expected, 0, &format!("{at}: the replica's {name} at LSN {lsn}"));
        }
    }

    /// Stops both nodes, and looks at what is on their disks.
    fn end(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer found nothing wrong");
        }
        let lsn = self.pair.wait_caught_up();
        // What is applied is on record from the next checkpoint on.
        let applied = (0..10).any(|_| {
            self.pair.east.stop();
            let inspection = inspect(&self.pair);
            let applied = support::node::number(&inspection["applied"]) >= lsn;
            if !applied {
                self.pair.east.start();
                thread::sleep(CHECKPOINT_EVERY);
            }
            applied
        });
        assert!(applied, "not all is applied: {}", inspect(&self.pair));
        self.pair.west.stop();
        self.pair.east.verify_log("the end");
        self.pair.west.verify_log("the end");
        for (number, name) in NAMES.iter().enumerate() {
            let backing = std::fs::read(self.scratch.join(&format!("{name}.img")))
                .expect("the backing is a plain file");
            same(&backing, &self.expected(number), 0, &format!("the backing of {name}"));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // By a panic: the writers would wait for an agent that does not come back.
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

fn inspect(pair: &Pair) -> serde_json::Value {
    let text =
        tool::check(support::node::landfall().args(["log", "inspect", "--json"]).arg(pair.east.group_dir()));
    serde_json::from_str(&text).expect("an answer in JSON")
}

fn read(address: &Address, export: &str) -> Vec<u8> {
    let mut client = Client::connect(address, export, TIMEOUT).expect("it is served");
    let mut bytes = vec![0; client.size() as usize];
    client.read(0, &mut bytes).expect("it can be read");
    bytes
}

/// Guarantee 3; W27, W28, W39, R02, R03, N14.
#[test]
fn two_hundred_kills_lose_nothing() {
    let mut random = Random::from_environment();
    let mut run = Run::start(&mut random);
    for round in 1..=ROUNDS {
        let at = format!("round {round}");
        if random.below(4) == 0 {
            // So soon, mostly, that the agent is still starting.
            thread::sleep(Duration::from_millis(random.below(60)));
        } else {
            run.wait_for_requests(&at, random.below(400));
            thread::sleep(Duration::from_micros(random.below(3_000)));
        }
        run.pair.east.kill();
        if round % VERIFY_EVERY == 0 {
            run.pair.east.verify_killed_log(&at);
        }
        if random.below(8) == 0 {
            run.pair.west.kill();
            run.pair.west.spawn();
        }
        run.pair.east.spawn();
        run.writers_live(&at);
        if round % REST_EVERY == 0 {
            run.pair.west.wait_ready();
            run.pair.east.wait_ready();
            run.rest(&at);
        }
    }
    run.pair.west.wait_ready();
    run.pair.east.wait_ready();
    run.rest("the last round");
    let [acknowledged, reconnections] =
        [&run.shared.acknowledged, &run.shared.reconnections].map(|count| count.load(Ordering::SeqCst));
    eprintln!("{acknowledged} requests acknowledged, {reconnections} reconnections");
    assert!(
        acknowledged > u64::from(ROUNDS) * 50,
        "{acknowledged} requests in {ROUNDS} rounds prove nothing"
    );
    assert!(
        reconnections > u64::from(ROUNDS),
        "{reconnections} reconnections in {ROUNDS} rounds prove nothing"
    );
    run.end();
}
