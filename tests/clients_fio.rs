//! fio on a volume, over its own NBD engine: what it wrote it reads back, through one connection and many, and the
//! replica has the same.

mod support;

use std::path::Path;
use support::node::{Volume, started};
use support::{Scratch, tool};

const VOLUME_BYTES: u64 = 64 << 20;

/// Each job has a connection and a part of the volume of its own. Sizes go down to a sector and are not aligned
/// to more than that, so that writes begin and end within blocks and cross them.
fn job_file(uri: &str, jobs: u64) -> String {
    let part = VOLUME_BYTES / jobs;
    // The sequence repeats, so that another run can verify what this one wrote.
    let mut text = format!(
        "[global]\nioengine=nbd\nuri={uri}\nthread\niodepth=16\nsize={part}\nbsrange=512-128k\nblockalign=512\n\
         randrepeat=1\nrandseed={jobs}\nverify=crc32c\nverify_fatal=1\ndo_verify=1\n"
    );
    for job in 0..jobs {
        let pattern = ["randwrite", "write", "randwrite", "randrw"][job as usize % 4];
        let fsync = [0, 1, 32, 7][job as usize % 4];
        text += &format!("[job{job}]\noffset={}\nrw={pattern}\nfsync={fsync}\n", job * part);
    }
    text
}

fn run(scratch: &Scratch, jobs: &str) {
    let file = scratch.join("jobs.fio");
    std::fs::write(&file, jobs).expect("the folder is ours");
    // It leaves the state of its verification where it stands.
    tool::check(tool::command("fio").arg(&file).current_dir(scratch.path()));
}

fn copy_of(uri: &str, to: &Path) -> Vec<u8> {
    tool::run("nbdcopy", [uri, to.to_str().expect("a plain path")]);
    std::fs::read(to).expect("nbdcopy made it")
}

/// N16, N17: many requests in flight on several connections, flushes between them.
#[test]
fn what_fio_wrote_it_reads_back() {
    if !tool::has(&["fio-nbd", "nbdcopy"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    for jobs in [1, 4] {
        run(&scratch, &job_file(&pair.east.uri("data"), jobs));
    }
    let lsn = pair.wait_caught_up();
    let point = pair.west.mount_point(&format!("lsn:{lsn}"));
    let replica = copy_of(&point.uri("data"), &scratch.join("replica"));
    let primary = copy_of(&pair.east.uri("data"), &scratch.join("primary"));
    assert_eq!(primary.len() as u64, VOLUME_BYTES);
    assert!(primary.iter().any(|byte| *byte != 0), "fio wrote nothing");
    assert!(primary == replica, "the replica differs at LSN {lsn}");
}

/// The same over an agent's restart: what fio wrote before it, it verifies afterwards.
#[test]
fn what_fio_wrote_is_there_after_a_kill() {
    if !tool::has(&["fio-nbd"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let jobs = job_file(&pair.east.uri("data"), 2);
    run(&scratch, &jobs.replace("do_verify=1", "do_verify=0"));
    pair.east.kill();
    pair.east.start();
    run(&scratch, &format!("{}\n", jobs.replace("[job0]", "verify_only\n[job0]")));
}
