//! The first copy of a disk to another node, beside the tools that copy disks: `cargo bench --bench copy`.
//!
//! | column | what it is |
//! |---|---|
//! | `landfall` | `landfall protect` of the disk, which stays in use, until the replica is whole: read, logged, sent, checked, logged and synced there |
//! | `nbdcopy` | from one NBD server to another, both `qemu-nbd`, over TCP |
//! | `qemu-img` | `qemu-img convert` between the same |
//!
//! | row | what it is |
//! |---|---|
//! | `data` | a gibibyte of random bytes |
//! | `sparse` | a hundred gibibytes, of which 64 MiB are data, in a thousand places |
//!
//! All over loopback; the others send in the clear. A copy is over when its target has synced it.
//!
//! And what a guest of the disk feels of it (`guest`): 4 KiB at a random place and a flush, 200 times a second, before
//! the copy and while it goes on.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::options::Options;
use common::table::{Table, median};
use common::{GIB, MIB, empty_file, sync_filesystem, written_file};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};
use support::node::{GROUP, Pair, Volume};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const PATIENCE: Duration = Duration::from_secs(600);
const PLACES: u64 = 1024;
const PLACE_BYTES: u64 = 64 << 10;

/// A disk to be copied.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    size: u64,
    make: fn(&Path, u64),
}

const ROWS: [Row; 2] = [
    Row { name: "data", size: GIB, make: written_file },
    Row { name: "sparse", size: 100 * GIB, make: scattered },
];

/// Copies a row's disk once; how many seconds it took.
type CopyOnce = fn(&Path, Row) -> f64;

const COLUMNS: [(&str, CopyOnce); 3] = [("landfall", landfall), ("nbdcopy", nbdcopy), ("qemu-img", qemu_img)];

fn main() {
    let options = Options::parse("The first copy of a disk, beside nbdcopy and qemu-img convert.");
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    let needs = ["nbdcopy", "qemu-img", "qemu-nbd"];
    if needs.iter().any(|need| tool::find(need).is_none()) {
        println!("left out: {} are needed", needs.join(", "));
        return;
    }
    let mut table = Table::new([
        "seconds, median of the rounds",
        "landfall",
        "nbdcopy",
        "qemu-img",
        "nbdcopy / landfall",
    ]);
    for row in ROWS.into_iter().filter(|row| options.wants_row(row.name)) {
        let mut seconds = COLUMNS.map(|_| Vec::new());
        for _ in 0..options.rounds {
            for ((_, copy), seconds) in COLUMNS.iter().zip(&mut seconds) {
                seconds.push(copy(&options.dir, row));
            }
        }
        let [landfall, nbdcopy, qemu_img] = seconds.map(|seconds| median(&seconds));
        let of = |seconds: f64| format!("{seconds:.2}");
        let ratio = format!("{:.2}", nbdcopy / landfall);
        table.row([row.name.to_owned(), of(landfall), of(nbdcopy), of(qemu_img), ratio]);
    }
    println!();
    table.print();
    if options.wants_row("guest") {
        let rounds: Vec<[[f64; 2]; 3]> = (0..options.rounds).map(|_| guest(&options.dir)).collect();
        let of = |when: usize, which: usize| {
            median(&rounds.iter().map(|round| round[when][which]).collect::<Vec<_>>())
        };
        let mut table =
            Table::new(["a guest's write and flush, microseconds", "before", "while copied", "ratio"]);
        for (which, name) in ["p50", "p99"].iter().enumerate() {
            let (before, during) = (of(0, which), of(1, which));
            let ratio = format!("{:.2}", during / before);
            table.row([(*name).to_owned(), format!("{before:.0}"), format!("{during:.0}"), ratio]);
        }
        println!();
        table.print();
        println!("copied at {:.0} MiB/s meanwhile", of(2, 0));
    }
}

/// Median and 99th percentile of a guest's latency in microseconds, before a copy and while it goes on; and how fast that
/// went, in MiB a second.
fn guest(dir: &Path) -> [[f64; 2]; 3] {
    const DISK_BYTES: u64 = 2 * GIB;
    let scratch = Scratch::under(dir);
    let sockets = Scratch::new();
    // Another machine has a disk of its own; here it is memory.
    let elsewhere = Scratch::under(Path::new("/dev/shm"));
    std::os::unix::fs::symlink(elsewhere.path(), scratch.join("west")).expect("a link");
    let image = scratch.join("disk");
    written_file(&image, DISK_BYTES);
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("small", MIB)]);
    pair.east.put_sockets(&sockets.join("e"));
    pair.west.put_sockets(&sockets.join("w"));
    pair.east.start();
    // Protected, while there is nobody to copy to.
    let mut protect = pair.east.command(["protect", GROUP, "old", "--no-wait", "--backing"]);
    tool::check(protect.arg(&image));
    sync_filesystem(dir);
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/old"), PATIENCE).expect("it is served");
    let mut random = Random::new(9);
    let mut block = vec![0; 4096];
    let mut write = |goes_on: &mut dyn FnMut(usize) -> bool| {
        let mut took = Vec::new();
        while goes_on(took.len()) {
            random.fill(&mut block);
            let at = random.below(DISK_BYTES / 4096) * 4096;
            let start = Instant::now();
            client.write(at, &block).expect("it is written");
            client.flush().expect("it is durable");
            let passed = start.elapsed();
            took.push(passed.as_secs_f64() * 1e6);
            std::thread::sleep(Duration::from_millis(5).saturating_sub(passed));
        }
        took.sort_by(f64::total_cmp);
        [took[took.len() / 2], took[took.len() * 99 / 100]]
    };
    let before = write(&mut |count| count < 1_000);
    pair.west.start();
    wait_until("the copy begins", PATIENCE, || !pair.east.group()["replicas"][0]["catching_up"].is_null());
    let start = Instant::now();
    let during = write(&mut |count| {
        // Asked now and then only, for it takes the daemon's time.
        count % 100 != 99 || !pair.east.group()["replicas"][0]["catching_up"].is_null()
    });
    let mib_s = (DISK_BYTES / MIB) as f64 / start.elapsed().as_secs_f64();
    [before, during, [mib_s, 0.0]]
}

/// Data in places all over the disk.
fn scattered(path: &Path, size: u64) {
    empty_file(path, size);
    let file = OpenOptions::new().write(true).open(path).expect("it is there");
    let mut random = Random::new(size);
    let mut block = vec![0; PLACE_BYTES as usize];
    for place in 0..PLACES {
        random.fill(&mut block);
        file.write_all_at(&block, place * (size / PLACES)).expect("there is room");
    }
    file.sync_all().expect("there is room");
}

fn landfall(dir: &Path, row: Row) -> f64 {
    let scratch = Scratch::under(dir);
    let sockets = Scratch::new();
    let image = scratch.join("disk");
    (row.make)(&image, row.size);
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("small", MIB)]);
    pair.east.put_sockets(&sockets.join("e"));
    pair.west.put_sockets(&sockets.join("w"));
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    pair.wait_caught_up();
    sync_filesystem(dir);
    let start = Instant::now();
    let mut protect = pair.east.command(["protect", GROUP, "old", "--no-wait", "--backing"]);
    tool::check(protect.arg(&image));
    wait_until("the replica is whole", PATIENCE, || {
        pair.east.group()["replicas"][0]["catching_up"].is_null()
    });
    start.elapsed().as_secs_f64()
}

/// An NBD server of a file.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn of(file: &Path) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("loopback has free ports").port();
        let mut server = tool::command("qemu-nbd");
        server.args(["--persistent", "--format=raw", "--discard=unmap", "--bind=127.0.0.1"]);
        server.arg(format!("--port={port}")).arg(file);
        let child = server.spawn().expect("qemu-nbd is there");
        let uri = format!("nbd://127.0.0.1:{port}");
        wait_until("qemu-nbd answers", Duration::from_secs(10), || {
            tool::output(tool::command("qemu-img").args(["info", &uri])).status.success()
        });
        Server { child, uri }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn between_servers(dir: &Path, row: Row, copy: impl FnOnce(&str, &str)) -> f64 {
    let scratch = Scratch::under(dir);
    let (from, to) = (scratch.join("from"), scratch.join("to"));
    (row.make)(&from, row.size);
    empty_file(&to, row.size);
    let (from, to) = (Server::of(&from), Server::of(&to));
    sync_filesystem(dir);
    let start = Instant::now();
    copy(&from.uri, &to.uri);
    start.elapsed().as_secs_f64()
}

fn nbdcopy(dir: &Path, row: Row) -> f64 {
    between_servers(dir, row, |from, to| {
        tool::run("nbdcopy", ["--flush", "--destination-is-zero", from, to]);
    })
}

fn qemu_img(dir: &Path, row: Row) -> f64 {
    between_servers(dir, row, |from, to| {
        tool::run(
            "qemu-img",
            ["convert", "-n", "--target-is-zero", "-t", "writeback", "-f", "raw", "-O", "raw", from, to],
        );
    })
}
