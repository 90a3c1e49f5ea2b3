//! What a volume does under Landfall, beside the fastest servers that protect nothing and beside what replicates
//! today: `cargo bench --bench volumes`, with `-- --help` for its options.
//!
//! Every cell is one run of fio over NBD by unix socket. Cells are measured in turn, row by row and server by
//! server, so that whatever else the machine does meets all of them; the order of the servers changes with each
//! round, and before each cell the filesystem holds nothing unwritten and the replica has everything. What counts
//! is the median of the rounds.

#[path = "../common/mod.rs"]
mod common;
mod servers;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::cpu::{Meter, Seconds};
use common::fio::{Figures, Job};
use common::options::Options;
use common::table::{Table, count, median, percentile};
use common::{GIB, MIB};
use servers::{Kind, Server, VOLUME_BYTES};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use support::tool;

const ABOUT: &str = "Volumes under Landfall beside other servers, by fio.";
const LAG_EVERY: Duration = Duration::from_millis(5);

struct Row {
    name: &'static str,
    pattern: &'static str,
    block_bytes: u64,
    depth: u32,
    fsync_every: Option<u32>,
}

const fn row(
    name: &'static str,
    pattern: &'static str,
    block_bytes: u64,
    depth: u32,
    fsync_every: Option<u32>,
) -> Row {
    Row { name, pattern, block_bytes, depth, fsync_every }
}

const ROWS: [Row; 11] = [
    row("random write 4 KiB, depth 1", "randwrite", 4096, 1, None),
    row("random write 4 KiB, depth 32", "randwrite", 4096, 32, None),
    row("same, fsync each, depth 1", "randwrite", 4096, 1, Some(1)),
    row("same, fsync each, depth 32", "randwrite", 4096, 32, Some(1)),
    row("same, fsync every 32, depth 1", "randwrite", 4096, 1, Some(32)),
    row("same, fsync every 32, depth 32", "randwrite", 4096, 32, Some(32)),
    row("sequential write 64 KiB, depth 16", "write", 64 << 10, 16, None),
    row("sequential write 1 MiB, depth 4", "write", MIB, 4, None),
    row("random read 4 KiB, depth 1", "randread", 4096, 1, None),
    row("random read 4 KiB, depth 32", "randread", 4096, 32, None),
    row("mixed 70/30 4 KiB, depth 32", "randrw", 4096, 32, None),
];

/// What was measured of a row on a server.
#[derive(Default)]
struct Cell {
    ops: Vec<f64>,
    bytes: Vec<f64>,
    p99_us: Vec<f64>,
    lag_ms: Vec<f64>,
    written_bytes: u64,
    cpu: Seconds,
}

type Cells = BTreeMap<(usize, Kind), Cell>;

fn main() {
    let options = Options::parse(ABOUT);
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    assert!(tool::find("fio").is_some(), "fio is needed");
    let is_here = |kind: &Kind| {
        let missing = kind.needs().filter(|program| tool::find(program).is_none());
        if let Some(program) = missing {
            println!("{}: left out, {program} is not here", kind.name());
        }
        missing.is_none()
    };
    let kinds = Kind::ALL
        .into_iter()
        .filter(|kind| options.wants_column(kind.name()))
        .filter(is_here)
        .collect::<Vec<_>>();
    let rows = (0..ROWS.len()).filter(|row| options.wants_row(ROWS[*row].name)).collect::<Vec<_>>();
    let mut cells = Cells::new();
    for round in 0..options.rounds {
        // New ones for each round: no server carries a round's past into the next one.
        let mut servers = kinds.iter().map(|kind| Server::start(*kind, &options.dir)).collect::<Vec<_>>();
        for (number, row) in rows.iter().enumerate() {
            for at in 0..servers.len() {
                let at = (at + round + number) % servers.len();
                let server = &mut servers[at];
                let cell = cells.entry((*row, server.kind)).or_default();
                measure(&ROWS[*row], server, &options, cell);
            }
            eprintln!("round {} of {}: {}", round + 1, options.rounds, ROWS[*row].name);
        }
    }
    report(&cells, &rows, &kinds);
}

fn measure(row: &Row, server: &mut Server, options: &Options, cell: &mut Cell) {
    server.settle();
    common::sync_filesystem(&options.dir);
    let meter = Meter::start(server.processes.clone());
    let job = Job {
        target: Job::nbd(&server.uri),
        pattern: row.pattern,
        block_bytes: row.block_bytes,
        depth: row.depth,
        fsync_every: row.fsync_every,
        size_bytes: VOLUME_BYTES,
        time: Some(Duration::from_secs(options.seconds)),
    };
    let (figures, lags) = watch_lag(server, || job.run());
    // What the replica and the appliers still have to do is part of the price.
    server.settle();
    let Figures { ops_per_second, bytes_per_second, written_bytes, p99_us } = figures;
    cell.ops.push(ops_per_second);
    cell.bytes.push(bytes_per_second);
    cell.p99_us.push(p99_us);
    cell.lag_ms.extend(lags);
    cell.written_bytes += written_bytes;
    for (name, seconds) in meter.stop() {
        *cell.cpu.entry(name).or_default() += seconds;
    }
}

/// Runs something, and asks for the lag again and again meanwhile.
fn watch_lag<T>(server: &Server, run: impl FnOnce() -> T) -> (T, Vec<f64>) {
    let Some(mut lag) = server.lag() else { return (run(), Vec::new()) };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let watcher = thread::spawn(move || {
        let mut lags = Vec::new();
        while !stopped.load(Ordering::SeqCst) {
            lags.extend(lag.milliseconds());
            thread::sleep(LAG_EVERY);
        }
        lags
    });
    let result = run();
    stop.store(true, Ordering::SeqCst);
    (result, watcher.join().expect("it only asks"))
}

fn report(cells: &Cells, rows: &[usize], kinds: &[Kind]) {
    let cell = |row: usize, kind: Kind| cells.get(&(row, kind));
    let head = || [""].into_iter().chain(kinds.iter().map(|kind| kind.name()));
    println!("\nOperations a second, median of the rounds (MiB a second where blocks are 64 KiB and more)");
    let mut table = Table::new(head());
    for row in rows {
        let speeds = kinds.iter().map(|kind| {
            let Some(cell) = cell(*row, *kind) else { return "-".to_owned() };
            if ROWS[*row].block_bytes >= 64 << 10 {
                count(median(&cell.bytes) / MIB as f64)
            } else {
                count(median(&cell.ops))
            }
        });
        table.row([ROWS[*row].name.to_owned()].into_iter().chain(speeds));
    }
    table.print();

    println!("\n99th percentile of an operation's time, in microseconds, median of the rounds");
    let mut table = Table::new(head());
    for row in rows {
        let times = kinds
            .iter()
            .map(|kind| cell(*row, *kind).map_or("-".to_owned(), |cell| count(median(&cell.p99_us))));
        table.row([ROWS[*row].name.to_owned()].into_iter().chain(times));
    }
    table.print();

    println!("\nReplication lag while this was written, in milliseconds: median, 99th percentile, most");
    let mut table = Table::new(["", "p50", "p99", "most"]);
    for row in rows {
        if let Some(found) = cell(*row, Kind::Landfall)
            && found.written_bytes > 0
        {
            let lag = |percent: f64| format!("{:.0}", percentile(&found.lag_ms, percent));
            table.row([ROWS[*row].name.to_owned(), lag(50.0), lag(99.0), lag(100.0)]);
        }
    }
    table.print();

    println!("\nCPU seconds for each GiB written, over all rounds; what follows the last write is included");
    let mut table = Table::new(head());
    let writing = || rows.iter().filter(|row| ROWS[**row].pattern != "randread");
    for row in writing() {
        let sums = kinds.iter().map(|kind| {
            let sum =
                |found: &Cell| found.cpu.values().sum::<f64>() * GIB as f64 / found.written_bytes as f64;
            cell(*row, *kind).map_or("-".to_owned(), |found| format!("{:.2}", sum(found)))
        });
        table.row([ROWS[*row].name.to_owned()].into_iter().chain(sums));
    }
    table.print();

    for kind in [Kind::Landfall, Kind::LinkDown] {
        for row in writing() {
            let Some(found) = cell(*row, kind) else { continue };
            let each = |seconds: f64| seconds * GIB as f64 / found.written_bytes as f64;
            let mut parts =
                found.cpu.iter().map(|(name, seconds)| (each(*seconds), name)).collect::<Vec<_>>();
            parts.sort_by(|a, b| b.0.total_cmp(&a.0));
            let parts = parts.iter().map(|(each, name)| format!("{name} {each:.2}")).collect::<Vec<_>>();
            println!("{}, {}: {}", kind.name(), ROWS[*row].name, parts.join(", "));
        }
    }

    println!("\nRatios of the medians");
    let ratios = [
        (Kind::LinkDown, Kind::QemuNbd),
        (Kind::LinkDown, Kind::Nbdkit),
        (Kind::Landfall, Kind::Nbdkit),
        (Kind::Landfall, Kind::QemuNbd),
        (Kind::Landfall, Kind::Mirror),
    ];
    let ratios = ratios
        .into_iter()
        .filter(|(ours, theirs)| kinds.contains(ours) && kinds.contains(theirs))
        .collect::<Vec<_>>();
    let names = ratios.iter().map(|(ours, theirs)| format!("{} / {}", ours.name(), theirs.name()));
    let mut table = Table::new(["".to_owned()].into_iter().chain(names));
    for row in rows {
        let values = ratios.iter().map(|(ours, theirs)| {
            let [ours, theirs] =
                [ours, theirs].map(|kind| cell(*row, *kind).map_or(0.0, |cell| median(&cell.ops)));
            format!("{:.2}", ours / theirs)
        });
        table.row([ROWS[*row].name.to_owned()].into_iter().chain(values));
    }
    table.print();
}
