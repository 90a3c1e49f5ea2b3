//! What an append to the log costs, made durable, beside fio's appends to plain files on the same filesystem:
//! `cargo bench --bench log`.
//!
//! fio writes 4 KiB blocks one behind the other and syncs after each (or after 32), once into a file that was
//! allocated and written before, which is what the log's preallocated segments are, and once into one that grows.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use common::fio::Job;
use common::options::Options;
use common::table::{Table, count, median};
use common::{MIB, written_file};
use engine::event::Kind;
use engine::log::chain::Tip;
use engine::log::recovery::Known;
use engine::log::{Draft, Limits, Log, make_spare};
use engine::os::disk::Disk;
use engine::types::{Epoch, Extent, GroupId, Incarnation, Lsn, NodeId, Position, Reign, Timestamp, VolumeId};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Scratch;
use support::random::Random;

const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: u64 = 512 * MIB;
const EPOCH: Epoch = Epoch(1);

fn main() {
    let options = Options::parse("Durable appends to the log, beside fio's to plain files.");
    std::fs::create_dir_all(&options.dir).expect("--dir names a folder");
    let columns = ["landfall's log", "fio, written before", "fio, growing"];
    let mut table =
        Table::new(["4 KiB appends a second"].into_iter().chain(columns).chain(["log / written before"]));
    for batch in [1, 32] {
        let mut found = [const { Vec::new() }; 3];
        for _ in 0..options.rounds {
            let time = Duration::from_secs(options.seconds);
            found[0].push(ours(&options.dir, batch, time));
            found[1].push(fios(&options.dir, batch, time, Before::Written));
            found[2].push(fios(&options.dir, batch, time, Before::Empty));
        }
        let speeds = found.map(|speeds| median(&speeds));
        let name = if batch == 1 { "a sync each".to_owned() } else { format!("a sync every {batch}") };
        let ratio = format!("{:.2}", speeds[0] / speeds[1]);
        table.row([name].into_iter().chain(speeds.map(count)).chain([ratio]));
    }
    println!();
    table.print();
}

#[derive(Clone, Copy)]
enum Before {
    Written,
    Empty,
}

fn fios(dir: &Path, batch: usize, time: Duration, before: Before) -> f64 {
    let scratch = Scratch::under(dir);
    let file = scratch.join("file");
    if let Before::Written = before {
        written_file(&file, FILE_BYTES);
    }
    let mut target = vec!["--ioengine=psync".to_owned(), format!("--filename={}", file.display())];
    target.push(format!("--fdatasync={batch}"));
    match before {
        Before::Written => target.push("--overwrite=1".to_owned()),
        // fio would lay the file out first.
        Before::Empty => {
            target.extend(["--file_append=1", "--fallocate=none", "--create_on_open=1"].map(str::to_owned))
        }
    }
    common::sync_filesystem(dir);
    let job = Job {
        target,
        pattern: "write",
        block_bytes: BLOCK_BYTES as u64,
        depth: 1,
        fsync_every: None,
        size_bytes: FILE_BYTES,
        time: Some(time),
    };
    job.run().ops_per_second
}

fn ours(dir: &Path, batch: usize, time: Duration) -> f64 {
    let scratch = Scratch::under(dir);
    let storage = Arc::new(Disk::new(scratch.path()).expect("the folder is ours"));
    let limits = Limits { log_bytes: FILE_BYTES, ..Limits::default() };
    let reign = Reign { epoch: EPOCH, branch: Position::default(), node: NodeId([1; 16]) };
    let known = Known {
        group: GroupId([7; 16]),
        history: &[reign],
        gaps: &[],
        branches: &[],
        own: &|_| true,
        start: Tip::default(),
        durable: Lsn::ZERO,
        headers_through: Lsn::ZERO,
        incarnation: Incarnation(1),
    };
    let (mut log, _) = Log::open(storage, "log", limits, &known, &mut |_, _, _| Ok(()))
        .expect("an empty folder is an empty log");
    let segments = (FILE_BYTES / limits.segment_bytes) as usize;
    while let Some(make) = log.begin_make(segments) {
        log.finish_make(make_spare(make).expect("there is room"));
    }
    common::sync_filesystem(dir);

    let mut payload = vec![0; BLOCK_BYTES];
    Random::new(1).fill(&mut payload);
    let mut appended = 0;
    let start = Instant::now();
    while start.elapsed() < time {
        let drafts = (0..batch).map(|number| Draft {
            kind: Kind::Write,
            flags: 0,
            volume: VolumeId(1),
            extent: Extent::new((appended + number) as u64 % 1024 * BLOCK_BYTES as u64, BLOCK_BYTES as u64),
            payload: &payload,
        });
        // One by one, as one guest at depth 1 would; the sync is what is shared.
        for draft in drafts {
            let (_, error) = log.append(Timestamp(0), EPOCH, &[draft]);
            assert!(error.is_none(), "{error:?}");
        }
        appended += batch;
        let sync = log.begin_sync().expect("there is something to sync");
        log.finish_sync(sync.run()).expect("the disk is well");
        // As a checkpoint does: what is behind is given back, and used again.
        if log.spares() == 0 {
            let durable = log.durable();
            log.free_before(log.start_for(durable.lsn)).expect("the folder is ours");
        }
    }
    appended as f64 / start.elapsed().as_secs_f64()
}
