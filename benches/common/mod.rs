//! What the benchmarks share.
//!
//! | module | what it is |
//! |---|---|
//! | [`options`] | their command line |
//! | [`fio`] | running fio, and its figures |
//! | [`cpu`] | the CPU time of processes, by thread |
//! | [`table`] | medians, percentiles, tables |
//!
//! No figure is asserted: a benchmark fails only if something could not be run.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    reason = "each benchmark uses its own part of this"
)]

pub mod cpu;
pub mod fio;
pub mod options;
pub mod table;

/// A mebibyte.
pub const MIB: u64 = 1 << 20;
/// A gibibyte.
pub const GIB: u64 = 1 << 30;

/// Writes back everything that the filesystem of `dir` still holds, so that one measurement does not pay for
/// another's dirty pages.
pub fn sync_filesystem(dir: &std::path::Path) {
    let dir = std::fs::File::open(dir).expect("the folder is ours");
    rustix::fs::syncfs(dir).expect("the filesystem can be synced");
}

/// A file that is allocated and written once: to write it again changes no metadata.
pub fn written_file(path: &std::path::Path, bytes: u64) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("the folder is ours");
    let mut block = vec![0_u8; MIB as usize];
    let mut random = crate::support::random::Random::new(bytes);
    random.fill(&mut block);
    for _ in 0..bytes / MIB {
        file.write_all(&block).expect("there is room");
    }
    file.sync_all().expect("there is room");
}

/// A file that is all hole.
pub fn empty_file(path: &std::path::Path, bytes: u64) {
    let file = std::fs::File::create(path).expect("the folder is ours");
    file.set_len(bytes).expect("it is sparse");
}

/// Writes all of a new volume once, through its front end; returns the bytes that were written.
pub fn fill(uri: &str, bytes: u64) -> u64 {
    let target = fio::Job::nbd(uri);
    let (pattern, block_bytes, depth) = ("write", 128 << 10, 8);
    let job =
        fio::Job { target, pattern, block_bytes, depth, fsync_every: None, size_bytes: bytes, time: None };
    job.run().written_bytes
}
