//! What the replication link carries, beside what the same machine can: `cargo bench --bench link`.
//!
//! | row | what it is |
//! |---|---|
//! | `landfall` | a replica that was away catches up: read from the log, sent, checked, logged and synced there |
//! | `quinn` | the same QUIC implementation with nothing around it, from one process to another: bytes out of memory and into nothing |
//! | `iperf3` | TCP, without encryption |
//!
//! All over loopback. A network path has a smaller MTU than it, and QUIC's price is by the packet, so both are
//! shown for `quinn`.

#[path = "../common/mod.rs"]
mod common;
mod quic;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::cpu::Meter;
use common::options::Options;
use common::table::{Table, median};
use common::{GIB, MIB, empty_file, fill};
use std::path::Path;
use std::time::{Duration, Instant};
use support::node::{Pair, Volume};
use support::{Scratch, tool};

const VOLUME_BYTES: u64 = GIB;
/// On most paths; and what loopback lets through.
const MTUS: [u16; 2] = [1452, 8952];

/// What one transfer was.
struct Transfer {
    bytes: u64,
    seconds: f64,
    /// CPU seconds of the sender and of the receiver.
    cpu: [f64; 2],
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some(quic::CHILD) {
        return quic::receive();
    }
    let options = Options::parse("The replication link beside a bare QUIC transfer and beside TCP.");
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    // Enough bytes for about the time that was asked for.
    let bytes = options.seconds * 512 * MIB;
    let mut rows: Vec<(String, Vec<Transfer>)> = Vec::new();
    let mut add = |name: String, transfer: Transfer| match rows.iter_mut().find(|(known, _)| *known == name) {
        Some((_, transfers)) => transfers.push(transfer),
        None => rows.push((name, vec![transfer])),
    };
    let has_iperf = tool::find("iperf3").is_some();
    if !has_iperf {
        println!("iperf3: left out, it is not here");
    }
    for _ in 0..options.rounds {
        if options.wants_row("landfall") {
            add("landfall, catching up".to_owned(), catch_up(&options.dir, bytes));
        }
        for mtu in MTUS {
            if options.wants_row("quinn") {
                add(format!("quinn, MTU {mtu}"), quic::transfer(mtu, bytes));
            }
        }
        if has_iperf && options.wants_row("iperf3") {
            add("iperf3".to_owned(), iperf(options.seconds));
        }
    }
    let of = |transfers: &[Transfer], figure: fn(&Transfer) -> f64| {
        median(&transfers.iter().map(figure).collect::<Vec<_>>())
    };
    let speed = |transfer: &Transfer| transfer.bytes as f64 / transfer.seconds / MIB as f64;
    let first = rows.first().map_or(0.0, |(_, transfers)| of(transfers, speed));
    let mut table =
        Table::new(["median of the rounds", "MiB/s", "first row's / this", "CPU s/GiB, sender", "receiver"]);
    for (name, transfers) in &rows {
        let cpu = |end: fn(&Transfer) -> f64| format!("{:.2}", of(transfers, end));
        let speed = of(transfers, speed);
        table.row([
            name.clone(),
            format!("{speed:.0}"),
            format!("{:.2}", first / speed),
            cpu(|transfer| transfer.cpu[0] * GIB as f64 / transfer.bytes as f64),
            cpu(|transfer| transfer.cpu[1] * GIB as f64 / transfer.bytes as f64),
        ]);
    }
    println!();
    table.print();
}

/// Writes with the replica away, then lets it come.
fn catch_up(dir: &Path, bytes: u64) -> Transfer {
    let scratch = Scratch::under(dir);
    let sockets = Scratch::new();
    let disk = scratch.join("disk");
    empty_file(&disk, VOLUME_BYTES);
    let volume = Volume { backing: Some(disk), ..Volume::new("data", VOLUME_BYTES) };
    let mut pair = Pair::init(scratch.path(), &[volume]);
    pair.east.put_sockets(&sockets.join("e"));
    pair.west.put_sockets(&sockets.join("w"));
    pair.east.set("log_limit", "\"64GiB\"");
    pair.east.start();
    let mut written = 0;
    while written < bytes {
        written += fill(&pair.east.uri("data"), VOLUME_BYTES);
    }
    let end = pair.wait_durable();
    common::sync_filesystem(dir);
    // The primary tries again with growing pauses; a new one tries at once.
    pair.east.stop();
    pair.west.start();
    pair.east.start();
    let meters = [&pair.east, &pair.west].map(|node| Meter::start(vec![("", node.pid())]));
    pair.wait_connected();
    let before = pair.west.position("durable");
    let start = Instant::now();
    pair.wait_replica(end);
    let seconds = start.elapsed().as_secs_f64();
    let cpu = meters.map(|meter| meter.stop().values().sum());
    // Records are all of one size but for a few.
    let bytes = (written as f64 * (end - before) as f64 / end as f64) as u64;
    Transfer { bytes, seconds, cpu }
}

fn iperf(seconds: u64) -> Transfer {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("loopback has free ports").port().to_string();
    let mut server = tool::command("iperf3");
    server.args(["--server", "--one-off", "--port", &port]).stdout(std::process::Stdio::null());
    let mut server = server.spawn().expect("iperf3 is there");
    support::wait_until("iperf3 listens", Duration::from_secs(10), || {
        // A connection would be the one that it serves.
        tool::output(tool::command("ss").args(["-Hltn", &format!("sport = :{port}")])).stdout.len() > 1
    });
    let time = seconds.to_string();
    let text = tool::run("iperf3", ["--client", "127.0.0.1", "--port", &port, "--time", &time, "--json"]);
    server.wait().expect("our own child");
    let answer: serde_json::Value = serde_json::from_str(&text).expect("iperf3 writes JSON");
    let end = &answer["end"];
    let number = |value: &serde_json::Value| value.as_f64().expect("iperf3 tells it");
    let seconds = number(&end["sum_received"]["seconds"]);
    // It gives its CPU use in percent of the time.
    let cpu = ["host_total", "remote_total"]
        .map(|of| number(&end["cpu_utilization_percent"][of]) / 100.0 * seconds);
    Transfer { bytes: number(&end["sum_received"]["bytes"]) as u64, seconds, cpu }
}
