//! Opening a point of a long log: `cargo bench --bench mount`.
//!
//! A volume of 1 TiB, and ten million writes of 512 bytes all over it (a million with `--short`), every one of which is a
//! point. Then points at random LSNs are mounted on the replica, each with a process of the command, a connection over NBD
//! and a first read of 4 KiB: what an operator waits for.
//!
//! | row | what it is |
//! |---|---|
//! | `read-only` | `landfall mount-point --detach` and the first read |
//! | `writable` | the same with `--writable`, and a first write |
//! | `memory` | what the replica's process has more of than before the writes, for each of them |
//! | `start` | from the start of the replica's process until it answers: the log's headers are read anew |

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::GIB;
use common::options::Options;
use common::table::{Table, percentile};
use std::time::{Duration, Instant};
use support::node::{Node, Pair, Volume, number};
use support::random::Random;
use support::{Scratch, tool};
use transport::nbd::client::{Address, Client};

const PATIENCE: Duration = Duration::from_secs(600);
const SIZE: u64 = 1 << 40;
const WRITE_BYTES: u64 = 512;
const MOUNTS: u64 = 40;

fn main() {
    let options = Options::parse("Opening a point of a long log.");
    if !tool::has(&["fio"]) {
        return println!("left out: fio is needed");
    }
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    let writes = if options.rounds == 1 { 1_000_000 } else { 10_000_000 };
    let (scratch, sockets) = (Scratch::under(&options.dir), Scratch::new());
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", SIZE)]);
    pair.east.put_sockets(&sockets.join("east"));
    pair.west.put_sockets(&sockets.join("west"));
    for node in [&pair.east, &pair.west] {
        node.set("log_limit", "\"64GiB\"");
    }
    pair.west.set("retention", "{ time = \"72h\", bytes = \"60GiB\" }");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let before = resident_bytes(&pair.west);
    let begun = Instant::now();
    write(&pair.east.uri("data"), writes);
    let latest = pair.wait_caught_up();
    println!("{writes} writes in {:.0} s", begun.elapsed().as_secs_f64());
    let after = resident_bytes(&pair.west);

    let mut random = Random::new(11);
    let window = &pair.west.group()["window"];
    let horizon = number(&window["horizon"]["lsn"]).max(3);
    let mut table = Table::new(["", "median, ms", "p99, ms", "most, ms"]);
    for (name, writable) in [("read-only", false), ("writable", true)] {
        let took: Vec<f64> = (0..MOUNTS)
            .map(|_| {
                let at = horizon + random.below(latest - horizon + 1);
                let offset = random.below(SIZE / 4096) * 4096;
                let begun = Instant::now();
                let at = format!("lsn:{at}");
                let point = if writable { pair.west.mount_writable(&at) } else { pair.west.mount_point(&at) };
                let mut client =
                    Client::connect(&Address::Unix(point.socket()), &point.export("data"), PATIENCE)
                        .expect("it is served");
                client.read(offset, &mut [0; 4096]).expect("it can be read");
                if writable {
                    client.write(offset, &[1; 4096]).expect("it can be written to");
                }
                begun.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        let cells = [50.0, 99.0, 100.0].map(|percent| format!("{:.1}", percentile(&took, percent)));
        table.row([name.to_owned()].into_iter().chain(cells));
    }
    pair.west.stop();
    let begun = Instant::now();
    pair.west.start();
    let start = begun.elapsed().as_secs_f64();
    println!();
    table.print();
    let each = after.saturating_sub(before) as f64 / writes as f64;
    println!("memory: {each:.1} bytes for each write ({:.2} GiB in all)", after as f64 / GIB as f64);
    println!("start: {start:.1} s");
}

/// Writes of one sector, anywhere on the disk, none of which waits for a sync.
fn write(uri: &str, count: u64) {
    let mut fio = tool::command("fio");
    fio.args([
        "--name=job",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--iodepth=128",
        "--thread",
        "--norandommap",
    ]);
    fio.args(["--randrepeat=0", "--random_generator=tausworthe64"]);
    fio.arg(format!("--uri={uri}")).arg(format!("--bs={WRITE_BYTES}"));
    fio.arg(format!("--size={SIZE}")).arg(format!("--io_size={}", count * WRITE_BYTES));
    tool::check(&mut fio);
}

/// What the process has in memory.
fn resident_bytes(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}
