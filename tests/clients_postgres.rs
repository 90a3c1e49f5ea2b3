//! PostgreSQL on ext4 on a volume, under pgbench: at any recovery point and after a failover the filesystem is
//! clean, the database starts, and no commit is missing that had been acknowledged before the point's last flush.
//!
//! How the commits are judged: a client inserts 1, 2, 3, … each in a transaction of its own, and counts what it
//! has begun and what was acknowledged. A witness looks at both counts and at the primary's positions in turn:
//!
//! ```text
//! acknowledged, then durable:  what was acknowledged had been flushed, so every point ≥ durable has it
//! appended, then begun:        what was not begun by then was logged later, so no point ≤ appended has it
//! ```
//!
//! Each round of it is a line of the table against which points are held.

mod support;

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use support::disk::LoopDisk;
use support::node::{Control, Node, Volume, number, started};
use support::postgres::Cluster;
use support::random::Random;
use support::tool;

const VOLUME_BYTES: u64 = 512 << 20;
/// How long pgbench and the counting client write.
const LOAD: Duration = Duration::from_secs(12);
const POINTS: usize = 10;

#[derive(Default)]
struct Counts {
    begun: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// A line of the witness's table.
#[derive(Clone, Copy, Debug)]
struct Seen {
    acknowledged: u64,
    durable: u64,
    appended: u64,
    begun: u64,
}

/// The client that counts. It ends when it is told to, or when its server is gone.
fn count(cluster: &Cluster, counts: &Arc<Counts>) -> JoinHandle<()> {
    let mut session = cluster.session();
    let counts = Arc::clone(counts);
    thread::spawn(move || {
        for number in 1.. {
            if counts.stop.load(Ordering::SeqCst) {
                return;
            }
            counts.begun.store(number, Ordering::SeqCst);
            if session.run(&format!("INSERT INTO commits VALUES ({number})")).as_deref() != Some("INSERT 0 1")
            {
                return;
            }
            counts.acknowledged.store(number, Ordering::SeqCst);
        }
    })
}

fn witness(primary: &Node, counts: &Arc<Counts>) -> JoinHandle<Vec<Seen>> {
    let mut control = Control::connect(&primary.control_socket()).expect("the primary runs");
    let counts = Arc::clone(counts);
    thread::spawn(move || {
        let mut table = Vec::new();
        while !counts.stop.load(Ordering::SeqCst) {
            let acknowledged = counts.acknowledged.load(Ordering::SeqCst);
            // No answer: the primary was killed, and the table ends.
            let Some(status) = control.status() else { break };
            let begun = counts.begun.load(Ordering::SeqCst);
            let positions = &status["groups"][0]["positions"];
            let [appended, durable] = ["appended", "durable"].map(|name| number(&positions[name]));
            table.push(Seen { acknowledged, durable, appended, begun });
            thread::sleep(Duration::from_millis(2));
        }
        table
    })
}

/// The highest commit that a point must have, and the highest that it may have.
fn bounds(table: &[Seen], lsn: u64) -> (u64, u64) {
    let must = table.iter().filter(|seen| seen.durable <= lsn).map(|seen| seen.acknowledged).max();
    let may = table.iter().filter(|seen| seen.appended >= lsn).map(|seen| seen.begun).min();
    (must.unwrap_or(0), may.unwrap_or(u64::MAX))
}

/// What the counting client's table holds: its highest number. There must be no gap below it.
fn highest(cluster: &Cluster, what: &str) -> u64 {
    let answer = cluster.query("SELECT count(*) || ' ' || coalesce(max(n), 0) FROM commits");
    let numbers = answer.split(' ').map(|text| text.parse::<u64>().expect("a number")).collect::<Vec<_>>();
    assert_eq!(numbers[0], numbers[1], "{what}: commits are missing below the highest");
    numbers[1]
}

/// pgbench's own invariant: each transaction moves its amount in all four tables.
fn check_pgbench(cluster: &Cluster, what: &str) {
    let sums = cluster.query(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(bbalance) FROM pgbench_branches) \
         || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' \
         || (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    let sums = sums.split(' ').collect::<Vec<_>>();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{what}: the sums differ: {sums:?}");
}

/// Checks the filesystem, starts the database through its recovery, and holds it against the table.
fn judge(dir: &Path, mut disk: LoopDisk, table: &[Seen], lsn: u64) {
    let (must, may) = bounds(table, lsn);
    let what = format!("LSN {lsn}, commits {must} to {may}");
    disk.check(&what);
    disk.mount(&dir.join("judged"));
    let mut cluster = Cluster::at(&dir.join("judged"), &dir.join("run-judged"));
    cluster.start();
    let found = highest(&cluster, &what);
    assert!(found >= must, "{what}: acknowledged commits are missing, the last is {found}");
    assert!(found <= may, "{what}: commit {found} lies behind the point");
    check_pgbench(&cluster, &what);
    cluster.stop_at_once();
    disk.unmount();
    eprintln!("{what}: {found}");
}

fn pgbench(cluster: &Cluster) -> Load {
    let seconds = (LOAD.as_secs() * 10).to_string();
    let mut command = cluster.pgbench(&["-n", "-c", "4", "-j", "1", "-T", &seconds]);
    Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench is there"))
}

/// Runs until it is dropped.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// R16, R23: ten points in the middle of the load, then the primary is killed in it and the replica takes over.
#[test]
fn postgres_recovers_at_any_point_and_after_a_failover() {
    if !tool::has(&support::disk::NEEDS) || !tool::has(&["postgres"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let dir = scratch.path();
    let mut disk = LoopDisk::over_nbd(&dir.join("fuse-east"), &pair.east.uri("data"));
    disk.format();
    disk.mount(&dir.join("fs"));
    let mut cluster = Cluster::at(&dir.join("fs"), &dir.join("run"));
    cluster.init();
    cluster.start();
    cluster.query("CREATE TABLE commits (n bigint PRIMARY KEY)");
    tool::check(&mut cluster.pgbench(&["-i", "-q", "-s", "3"]));
    let first = pair.wait_durable();

    let counts = Arc::new(Counts::default());
    let counting = count(&cluster, &counts);
    let witnessing = witness(&pair.east, &counts);
    let load = pgbench(&cluster);
    let start = Instant::now();
    thread::sleep(LOAD);
    let last = pair.east.position("durable");
    let enough = counts.acknowledged.load(Ordering::SeqCst);
    assert!(enough > 20, "{enough} commits in {:?} prove nothing", start.elapsed());
    pair.wait_replica(last);

    // The points are judged while the load goes on: a point in use is stable, and the primary is not disturbed.
    let mut random = Random::from_environment();
    let lsns = (0..POINTS).map(|_| first + random.below(last - first + 1)).collect::<Vec<_>>();
    let copies = lsns.iter().map(|lsn| {
        let copy = dir.join(format!("point-{lsn}"));
        let point = pair.west.mount_point(&format!("lsn:{lsn}"));
        tool::run("nbdcopy", [&point.uri("data"), copy.to_str().expect("a plain path")]);
        copy
    });
    let copies = copies.collect::<Vec<_>>();

    // The region is lost in the middle of it.
    pair.east.kill();
    counts.stop.store(true, Ordering::SeqCst);
    let table = witnessing.join().expect("the witness has seen it all");
    drop(load);
    drop(cluster);
    counting.join().expect("the client ended with its server");
    drop(disk);

    for (lsn, copy) in lsns.iter().zip(&copies) {
        judge(dir, LoopDisk::over_file(copy), &table, *lsn);
        std::fs::remove_file(copy).expect("the folder is ours");
    }
    let promotion = pair.west.ask(["failover", "db", "--to", "latest", "--yes"]);
    let lsn = number(&promotion["to"]["lsn"]);
    assert!(lsn >= last, "the failover went to LSN {lsn}, the replica had {last}");
    judge(dir, LoopDisk::over_nbd(&dir.join("fuse-west"), &pair.west.uri("data")), &table, lsn);
}

/// With `ack = "replica"` nothing that was acknowledged is lost with the region.
#[test]
fn postgres_loses_no_commit_when_the_replica_acknowledges() {
    if !tool::has(&support::disk::NEEDS) || !tool::has(&["postgres"]) {
        return;
    }
    let scratch = support::Scratch::new();
    let dir = scratch.path();
    let mut pair = support::node::Pair::init(dir, &[Volume::new("data", VOLUME_BYTES)]);
    pair.east.set("ack", "\"replica\"");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let mut disk = LoopDisk::over_nbd(&dir.join("fuse-east"), &pair.east.uri("data"));
    disk.format();
    disk.mount(&dir.join("fs"));
    let mut cluster = Cluster::at(&dir.join("fs"), &dir.join("run"));
    cluster.init();
    cluster.start();
    cluster.query("CREATE TABLE commits (n bigint PRIMARY KEY)");
    tool::check(&mut cluster.pgbench(&["-i", "-q", "-s", "1"]));
    let counts = Arc::new(Counts::default());
    let counting = count(&cluster, &counts);
    let load = pgbench(&cluster);
    thread::sleep(LOAD / 3);
    pair.east.kill();
    drop(load);
    drop(cluster);
    counting.join().expect("the client ended with its server");
    drop(disk);
    let [acknowledged, begun] =
        [&counts.acknowledged, &counts.begun].map(|count| count.load(Ordering::SeqCst));
    assert!(acknowledged > 5, "{acknowledged} commits prove nothing");
    let promotion = pair.west.ask(["failover", "db", "--to", "latest", "--yes"]);
    let lsn = number(&promotion["to"]["lsn"]);
    let table = [Seen { acknowledged, durable: lsn, appended: lsn, begun }];
    judge(dir, LoopDisk::over_nbd(&dir.join("fuse-west"), &pair.west.uri("data")), &table, lsn);
}
