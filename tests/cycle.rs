//! A PostgreSQL under pgbench through all that can happen to its region: its disk is protected while it is in use, the link
//! is cut for longer than the log lasts, the region is lost, comes back as a replica, and takes production back. After each
//! step the filesystem is without a flaw and the database adds up; and what went over the wire is printed beside what had
//! changed. (R04, R06, R09, R14, R23, R24)

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use support::disk::LoopDisk;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number, wait_whole};
use support::postgres::Cluster;
use support::relay::Relay;
use support::{Scratch, tool, wait_until};

const DISK_BYTES: u64 = 640 << 20;

/// pgbench, until it is dropped.
struct Load(Child);

impl Load {
    fn on(cluster: &Cluster) -> Load {
        let mut command = cluster.pgbench(&["-n", "-c", "4", "-j", "1", "-T", "600"]);
        Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench is there"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each transaction of pgbench moves its amount in all four tables.
fn check_database(cluster: &Cluster, what: &str) -> u64 {
    let sums = cluster.query(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(bbalance) FROM pgbench_branches) \
         || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' \
         || (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    let sums = sums.split(' ').collect::<Vec<_>>();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{what}: the sums differ: {sums:?}");
    cluster.check();
    cluster.query("SELECT count(*) FROM pgbench_history").parse().expect("a number")
}

/// A filesystem with a database on it, served by a node.
struct Site {
    cluster: Cluster,
    disk: LoopDisk,
}

impl Site {
    /// Checks the filesystem, mounts it, and starts the database through its recovery.
    fn open(dir: &Path, node: &Node, name: &str) -> Site {
        let mut disk = LoopDisk::over_nbd(&dir.join(format!("fuse-{name}")), &node.uri("old"));
        disk.check(name);
        disk.mount(&dir.join(format!("fs-{name}")));
        let mut cluster = Cluster::at(&dir.join(format!("fs-{name}")), &dir.join(format!("run-{name}")));
        cluster.start();
        Site { cluster, disk }
    }

    /// Transactions for a while.
    fn run(&self, time: Duration) {
        let load = Load::on(&self.cluster);
        std::thread::sleep(time);
        drop(load);
    }

    /// Stops the database in its quickest way, and unmounts.
    fn close(mut self) {
        self.cluster.stop_at_once();
        self.disk.unmount();
    }

    /// Nothing is written any more: what the database and the filesystem held back is on the device.
    fn settle(&self) {
        self.cluster.query("CHECKPOINT");
        let mut before = self.disk.written_bytes();
        wait_until("writes are at rest", PATIENCE, || {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.disk.written_bytes();
            std::mem::replace(&mut before, now) == now
        });
    }

    /// The machine is gone.
    fn lose(mut self) {
        self.cluster.stop_at_once();
        drop(self.disk);
    }
}

fn catching_up(node: &Node) -> Option<(String, u64)> {
    let state = &node.group()["replicas"][0]["catching_up"];
    (!state.is_null()).then(|| (state["state"].as_str().expect("a word").to_owned(), number(&state["bytes"])))
}

/// What a session may have on its way.
const WINDOW_BYTES: u64 = 32 << 20;

/// Prints a stage, and holds what went towards the replica against the goal: a twentieth and 64 KiB more than had
/// changed. A session that breaks on a busy machine sends what was on its way again, which is let pass twice.
fn account(stage: &str, changed: u64, before: (u64, u64), now: (u64, u64)) {
    let (wire, back) = (now.0 - before.0, now.1 - before.1);
    let share = wire as f64 / changed.max(1) as f64;
    eprintln!(
        "{stage}: {changed} bytes had changed; {wire} went to the replica, {share:.3} of it, and {back} back"
    );
    let goal = changed + changed / 20 + (64 << 10);
    assert!(wire <= goal + 2 * WINDOW_BYTES, "{stage}: {wire} bytes for {changed}, the goal is {goal}");
}

/// Sync spans that a replica's points know of.
fn spans_of(replica: &Node) -> usize {
    replica.ask(["points", "list", GROUP])["spans"].as_array().expect("a list").len()
}

#[test]
fn a_database_goes_through_all_of_it() {
    if !tool::has(&support::disk::NEEDS) || !tool::has(&["postgres"]) {
        return;
    }
    let scratch = Scratch::new();
    let dir = scratch.path();

    // A disk as it stands around, with a database on it.
    let image = dir.join("old.img");
    File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
    {
        let mut disk = LoopDisk::over_file(&image);
        disk.format();
        disk.mount(&dir.join("fs-before"));
        let mut cluster = Cluster::at(&dir.join("fs-before"), &dir.join("run-before"));
        cluster.init();
        cluster.start();
        tool::check(&mut cluster.pgbench(&["-i", "-q", "-s", "5"]));
        cluster.stop_at_once();
        disk.unmount();
    }
    let data = used_bytes(&image);

    let mut pair = Pair::init_symmetric(dir, &[Volume::new("small", 1 << 20)]);
    pair.east.set("log_limit", "\"256MiB\"");
    let (to_west, to_east) = (Relay::to(pair.west.listens()), Relay::to(pair.east.listens()));
    pair.east.set("address", &format!("\"{}\"", to_west.address));
    pair.west.set("address", &format!("\"{}\"", to_east.address));
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    pair.wait_caught_up();

    // Protected where it is, and used at once.
    let before = to_west.bytes();
    let mut protect = pair.east.command(["protect", GROUP, "old", "--no-wait", "--backing"]);
    tool::check(protect.arg(&image));
    let site = Site::open(dir, &pair.east, "east");
    site.run(Duration::from_secs(2));
    site.settle();
    wait_whole(&pair.east, &pair.west);
    // Each write counts, and all of the disk: what was written before it was copied is counted twice.
    account("first copy, under load", data + site.disk.written_bytes(), before, to_west.bytes());
    let transactions = check_database(&site.cluster, "on east");
    assert!(transactions > 0, "pgbench has done something");

    // The link is cut for longer than the log lasts: what changes is tracked, and one span brings it.
    to_west.cut(true);
    wait_until("the link is down", PATIENCE, || {
        pair.east.group()["replicas"][0]["link"]["state"] != "connected"
    });
    for _ in 0..30 {
        if catching_up(&pair.east).is_some() {
            break;
        }
        tool::check(&mut site.cluster.pgbench(&["-i", "-q", "-s", "3"]));
        site.run(Duration::from_millis(500));
    }
    site.settle();
    wait_until("what changes is tracked", PATIENCE, || {
        catching_up(&pair.east).is_some_and(|(state, _)| state == "tracked")
    });
    let older = number(&pair.west.group()["window"]["latest"]["lsn"]);
    let spans = spans_of(&pair.west);
    let lacks = catching_up(&pair.east).expect("it is tracked").1;
    let before = to_west.bytes();
    to_west.cut(false);
    wait_whole(&pair.east, &pair.west);
    account("span behind an outage longer than the log", lacks, before, to_west.bytes());
    assert_eq!(spans_of(&pair.west), spans + 1, "one span has brought all of it");
    drop(pair.west.mount_point(&format!("lsn:{older}")));
    let kept = check_database(&site.cluster, "on east behind the outage");

    // The region is lost in the middle of the load.
    let load = Load::on(&site.cluster);
    std::thread::sleep(Duration::from_secs(2));
    pair.east.kill();
    drop(load);
    site.lose();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    let site = Site::open(dir, &pair.west, "west");
    assert!(check_database(&site.cluster, "on west") >= kept, "what had been replicated is there");
    site.run(Duration::from_secs(2));
    site.settle();
    let written = site.disk.written_bytes();

    // The old primary comes back, and gets what changed since, and what it had written alone.
    pair.west.ask(["failover", "commit", GROUP]);
    let before = to_east.bytes();
    pair.east.start();
    wait_until("east is fenced", PATIENCE, || pair.east.group()["state"]["name"] == "fenced");
    // Whether the kill cut anything off is a matter of milliseconds; what it did is told.
    let alone = match pair.east.ask(["branches", "list", GROUP]).as_array().expect("a list").is_empty() {
        true => 0,
        false => {
            let loss = pair.east.ask(["loss", GROUP]);
            assert!(number(&loss["branch"]["bytes"]) > 0, "{loss}");
            loss["volumes"].as_array().expect("a list").iter().map(|volume| number(&volume["bytes"])).sum()
        }
    };
    pair.west.ask(["reprotect", GROUP]);
    wait_whole(&pair.west, &pair.east);
    account("the old primary taken back", written + alone, before, to_east.bytes());
    let kept = check_database(&site.cluster, "on west with its replica");
    site.close();

    // And production goes home, with nothing lost and nothing to copy.
    wait_whole(&pair.west, &pair.east);
    let before = [&to_east, &to_west].map(|relay| relay.bytes().0);
    pair.east.ask(["failover", GROUP, "--planned", "--yes"]);
    wait_whole(&pair.east, &pair.west);
    let [there, back] = [to_east.bytes().0 - before[0], to_west.bytes().0 - before[1]];
    eprintln!("planned failover: {there} bytes went to the new primary, {back} to the old one");
    // Handshakes both ways, tried until the roles are settled, and heartbeats: more than the 64 KiB that would be wanted
    // where nothing has changed, and nothing of the disk.
    assert!(there + back < 1 << 20, "{there} and {back}");
    let site = Site::open(dir, &pair.east, "home");
    assert_eq!(check_database(&site.cluster, "at home"), kept, "nothing was lost on the way");
    site.run(Duration::from_secs(1));
    check_database(&site.cluster, "at home, under load");
    site.close();
    pair.east.stop();
    pair.west.stop();
    pair.east.verify_log("at the end");
    pair.west.verify_log("at the end");
}

/// Bytes of a file that are no holes.
fn used_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).expect("a file").blocks() * 512
}
