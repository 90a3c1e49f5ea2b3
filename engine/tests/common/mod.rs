//! What the engine's tests share: a folder of their own, a clock of their own, and a node that is driven by hand
//! exactly as the runtime drives it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test binary uses its own part of this"
)]

pub mod crash;
pub mod line;
pub mod listen;
pub mod logs;
pub mod story;

use bytes::Bytes;
use engine::guest::{Completion, Op, Refusal, Reply, Request};
use engine::io::Storage;
use engine::log::recovery::Report;
use engine::log::ship::Stretch;
use engine::node::config::{
    AckPolicy, Begins, Config, Limits, NewVolume, OnFull, Retention, Start, Verification,
};
use engine::node::primary::Submitted;
use engine::node::work::Lane;
use engine::node::{Node, open};
use engine::os::disk::Disk;
use engine::peer::TakesBack;
use engine::read::Wait;
use engine::types::{Extent, GroupId, Lsn, Mono, NodeId, Now, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder that is gone with the value.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("landfall-engine-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        TempDir(path)
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(Disk::new(&self.0).expect("the folder is there"))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const VOLUME_BYTES: u64 = 1 << 20;
pub const A: VolumeId = VolumeId(1);
pub const B: VolumeId = VolumeId(2);

/// Small segments, so that tests cross their borders often.
pub fn limits() -> Limits {
    let log = engine::log::Limits { segment_bytes: 64 << 10, log_bytes: 64 << 20, recent_bytes: 256 << 10 };
    Limits { log, spare_segments: 1, catch_up_bytes: 16 << 10, ..Limits::default() }
}

pub fn primary_config(dir: &str) -> Config {
    let volume = |name: &str| NewVolume { name: name.to_owned(), size: VOLUME_BYTES, begins: Begins::Empty };
    Config {
        name: "orders".to_owned(),
        node: NodeId([1; 16]),
        dir: dir.to_owned(),
        start: Start::Primary { group: GroupId([7; 16]), volumes: vec![volume("data"), volume("wal")] },
        backings: BTreeMap::new(),
        replicas: vec!["west".to_owned()],
        ack: AckPolicy::Local,
        on_full: OnFull::Stall,
        retention: Retention::default(),
        limits: limits(),
        verify: Verification { every_ms: None, bytes_s: u64::MAX },
    }
}

pub fn replica_config(dir: &str) -> Config {
    Config { node: NodeId([2; 16]), start: Start::Replica, replicas: Vec::new(), ..primary_config(dir) }
}

/// A node, and a clock that moves a millisecond with each look at it.
pub struct Driven {
    pub node: Node,
    pub now: Now,
}

impl Driven {
    pub fn open(storage: Arc<dyn Storage>, config: Config) -> Result<Driven, open::Error> {
        Driven::open_reporting(storage, config).map(|(driven, _)| driven)
    }

    pub fn open_reporting(
        storage: Arc<dyn Storage>,
        config: Config,
    ) -> Result<(Driven, Report), open::Error> {
        listen::listen();
        let now = Now { mono: Mono(0), wall: Timestamp(1_700_000_000_000_000_000) };
        let (node, report) = Node::open(now, storage, config)?;
        Ok((Driven { node, now }, report))
    }

    pub fn now(&mut self) -> Now {
        self.now.mono.0 += 1_000_000;
        self.now.wall.0 += 1_000_000;
        self.now
    }

    /// Submits one request and runs whatever it waits for.
    pub fn request(&mut self, volume: VolumeId, op: Op, fua: bool) -> Result<Reply, Refusal> {
        let mut out = Submitted::default();
        let mut requests = vec![Request { cookie: 5, op, fua }];
        let now = self.now();
        self.node.submit(now, volume, &mut requests, &mut out);
        while out.stalled {
            self.work();
            out.stalled = false;
            let now = self.now();
            self.node.submit(now, volume, &mut requests, &mut out);
        }
        if let Some((_, _, plan)) = out.reads.pop() {
            return plan.read(Wait::Yes).map(Reply::Data).map_err(|_| Refusal::Io);
        }
        if let Some((_, ticket)) = out.waiting.pop() {
            self.sync();
            let answer = self.node.take_answers().into_iter().find(|answer| answer.ticket == ticket);
            return answer.expect("a sync answers what waits for it").result.map(|()| Reply::Done);
        }
        let Completion { cookie, result } = out.ready.pop().expect("a request is answered");
        assert_eq!(cookie, 5);
        result
    }

    pub fn write(&mut self, volume: VolumeId, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let data = Bytes::copy_from_slice(bytes);
        self.request(volume, Op::Write { offset, data }, false).map(|_| ())
    }

    pub fn flush(&mut self) -> Result<(), Refusal> {
        self.request(A, Op::Flush, false).map(|_| ())
    }

    pub fn read(&mut self, volume: VolumeId, offset: u64, len: u64) -> Result<Vec<u8>, Refusal> {
        match self.request(volume, Op::Read(Extent::new(offset, len)), false)? {
            Reply::Data(pieces) => Ok(flatten(&pieces)),
            other => panic!("a read is answered with data, not {other:?}"),
        }
    }

    pub fn read_point(&mut self, volume: VolumeId, at: Lsn) -> Vec<u8> {
        self.node.pin(at).expect("the point can be selected");
        let plan =
            self.node.plan_point(volume, at, Extent::new(0, VOLUME_BYTES)).expect("the volume is there");
        let bytes = plan.read_all().expect("the point can be read").to_vec();
        self.node.unpin(at);
        bytes
    }

    /// Runs a sync if one is due or not.
    pub fn sync(&mut self) {
        self.now.mono.0 += 1_000_000_000;
        while let Some(job) = self.node.poll_job(self.now, Lane::Sync) {
            let done = job.run();
            let now = self.now();
            self.node.finish(now, done);
        }
    }

    /// Runs background work until there is none left that time brings about.
    pub fn work(&mut self) {
        for _ in 0..4 {
            self.now.mono.0 += 10_000_000_000;
            self.sync();
            // What cannot be done is tried again and again; time goes on here, so there must be an end to it.
            for _ in 0..200 {
                let mut ran = false;
                for lane in [Lane::Make, Lane::Apply, Lane::Copy, Lane::Bulk, Lane::Verify] {
                    let Some(job) = self.node.poll_job(self.now, lane) else { continue };
                    let done = job.run();
                    let now = self.now();
                    self.node.finish(now, done);
                    self.sync();
                    ran = true;
                }
                if !ran {
                    break;
                }
            }
            if self.node.is_filled() {
                let now = self.now();
                if self.node.end_hydration(now).is_err() {
                    assert!(self.node.failed().is_some(), "what cannot be ended ends the node");
                }
            }
        }
    }
}

pub fn flatten(pieces: &[engine::guest::Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            engine::guest::Piece::Bytes(part) => bytes.extend_from_slice(part),
            engine::guest::Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    bytes
}

/// Ships everything durable from one node to the other, and the acknowledgement back.
pub fn replicate(primary: &mut Driven, replica: &mut Driven) {
    let hello = primary.node.hello().expect("a primary has something to say");
    let now = replica.now();
    let welcome = replica.node.accept(now, &hello, TakesBack::No).expect("the replica follows");
    let needs = replica.node.needs();
    let now = primary.now();
    let jump =
        primary.node.attach(now, "west", &welcome, Some(&needs)).expect("the replica can be caught up");
    let mut next = welcome.durable.lsn.next();
    if let Some(jump) = jump {
        let now = replica.now();
        replica.node.jump(now, &jump).expect("the replica leaves out what was not kept");
        next = jump.to.lsn.next();
    }
    ship(primary, replica, next);
}

/// Ships everything durable from `next` on, and the acknowledgement back.
pub fn ship(primary: &mut Driven, replica: &mut Driven, mut next: Lsn) -> Lsn {
    loop {
        let batch = match primary.node.records_from(next, 32 << 10) {
            Stretch::UpToDate => return next,
            Stretch::Ready(batch) => batch,
            Stretch::OnDisk(read) => read.run().expect("the log can be read"),
            Stretch::Gone => panic!("what a replica needs is kept"),
        };
        assert_eq!(batch.first, next);
        next = batch.last.next();
        let now = replica.now();
        replica.node.append(now, batch).expect("the records follow");
        replica.sync();
        let now = primary.now();
        primary.node.acknowledged(now, "west", replica.node.acknowledgeable());
    }
}

/// A small generator; the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
