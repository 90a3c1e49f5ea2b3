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
