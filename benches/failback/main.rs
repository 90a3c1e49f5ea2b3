//! Going back after a failover, beside a comparison of the whole disk: `cargo bench --bench failback`.
//!
//! A volume of 100 GiB, nearly all of it a hole, was taken over by the other region. There one per cent of it was
//! written, in blocks of 64 KiB all over it. Then the old primary returns.
//!
//! | column | what it is |
//! |---|---|
//! | `landfall` | from the start of the old primary until it is a whole replica: bytes that both daemons read from files, bytes of datagrams both ways |
//! | `rsync` | `rsync --inplace --no-whole-file` from the one disk to the other, as a tool does that knows of neither side's changes |
//!
//! | row | what it is |
//! |---|---|
//! | `log` | all of it stands in the log of the new primary |
//! | `tracked` | that log may take 256 MiB, so most of it is known by extents only |
//!
//! Bytes read are `rchar` of /proc/PID/io: what was asked of files, whether a disk had to move for it or not. Datagrams
//! are no files, and not in it.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::options::Options;
use common::table::Table;
use common::{GIB, MIB, empty_file};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::node::{GROUP, Pair, Volume, wait_whole};
use support::random::Random;
use support::relay::Relay;
use support::{Scratch, tool};
use transport::nbd::client::{Address, Client};

const PATIENCE: Duration = Duration::from_secs(1_800);
const SIZE: u64 = 100 * GIB;
const BLOCK_BYTES: u64 = 64 << 10;
const BLOCKS: u64 = SIZE / 100 / BLOCK_BYTES;

/// What going back took.
struct Took {
    seconds: f64,
    read: u64,
    sent: u64,
}

fn main() {
    let options = Options::parse("Going back after a failover, beside a comparison of the whole disk.");
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    let mut table = Table::new(["", "seconds", "read, MiB", "sent, MiB"]);
    let mut row = |name: &str, took: &Took| {
        let mib = |bytes: u64| format!("{:.0}", bytes as f64 / MIB as f64);
        table.row([name.to_owned(), format!("{:.1}", took.seconds), mib(took.read), mib(took.sent)]);
    };
    let mut ours = Vec::new();
    for (name, log_limit) in [("log", "4GiB"), ("tracked", "256MiB")] {
        if options.wants_row(name) {
            let took = landfall(&options.dir, log_limit);
            row(&format!("landfall, {name}"), &took);
            ours.push((name, took));
        }
    }
    let compared = tool::find("rsync").map(|_| rsync(&options.dir));
    match &compared {
        Some(took) => row("rsync", took),
        None => println!("left out: rsync is needed for the comparison"),
    }
    println!();
    table.print();
    for (name, took) in &ours {
        let of = |theirs: u64, ours: u64| theirs as f64 / ours.max(1) as f64;
        if let Some(compared) = &compared {
            println!(
                "{name}: a comparison reads {:.0} times as much, sends {:.2} times as much, takes {:.1} times as long",
                of(compared.read, took.read),
                of(compared.sent, took.sent),
                compared.seconds / took.seconds
            );
        }
        println!(
            "{name}: a full copy of the volume's bytes would send {:.0} times as much",
            of(SIZE, took.sent)
        );
    }
}

/// Writes one per cent of a disk, all over it.
fn change(mut write: impl FnMut(u64, &[u8])) {
    let mut random = Random::new(7);
    let mut block = vec![0; BLOCK_BYTES as usize];
    for _ in 0..BLOCKS {
        random.fill(&mut block);
        write(random.below(SIZE / BLOCK_BYTES) * BLOCK_BYTES, &block);
    }
}

/// Bytes that a process has read from files so far.
fn read_by(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("the kernel counts");
    line.trim().parse().expect("a number")
}

fn landfall(dir: &Path, log_limit: &str) -> Took {
    let scratch = Scratch::under(dir);
    let sockets = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", SIZE)]);
    pair.east.put_sockets(&sockets.join("e"));
    pair.west.put_sockets(&sockets.join("w"));
    pair.west.set("log_limit", &format!("\"{log_limit}\""));
    let (to_west, to_east) = (Relay::to(pair.west.listens()), Relay::to(pair.east.listens()));
    pair.east.set("address", &format!("\"{}\"", to_west.address));
    pair.west.set("address", &format!("\"{}\"", to_east.address));
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    pair.wait_caught_up();
    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    pair.west.ask(["failover", "commit", GROUP]);
    let address = Address::Unix(pair.west.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    change(|at, block| client.write(at, block).expect("it is written"));
    client.flush().expect("it is durable");
    drop(client);
    pair.west.ask(["reprotect", GROUP]);
    let west = pair.west.pid();
    let sent = || {
        [&to_west, &to_east].map(|relay| relay.bytes()).iter().map(|(there, back)| there + back).sum::<u64>()
    };
    let (read, sent_before) = (read_by(west), sent());
    let start = Instant::now();
    pair.east.start();
    wait_whole(&pair.west, &pair.east);
    let seconds = start.elapsed().as_secs_f64();
    Took { seconds, read: read_by(west) - read + read_by(pair.east.pid()), sent: sent() - sent_before }
}

fn rsync(dir: &Path) -> Took {
    let scratch = Scratch::under(dir);
    let (new, old) = (scratch.join("new/disk"), scratch.join("old/disk"));
    for disk in [&new, &old] {
        std::fs::create_dir_all(disk.parent().expect("it has one")).expect("there is room");
        empty_file(disk, SIZE);
    }
    let file = OpenOptions::new().write(true).open(&new).expect("it is there");
    change(|at, block| file.write_all_at(block, at).expect("there is room"));
    file.sync_all().expect("there is room");
    let start = Instant::now();
    let mut command = tool::command("rsync");
    command.args(["--inplace", "--no-whole-file", "--ignore-times", "--stats", "--block-size=131072"]);
    let output = command.arg(&new).arg(&old).stdin(Stdio::null()).output().expect("rsync runs");
    let seconds = start.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout).replace(',', "");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let stat = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).expect("it tells");
        line.trim_matches([':', ' ']).split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    };
    // Both ends read their disk once, whole.
    Took { seconds, read: 2 * SIZE, sent: stat("Total bytes sent") + stat("Total bytes received") }
}
