//! Marks, and points for which the applications hold still, with real processes and a real filesystem. Nothing stays frozen,
//! whatever dies. (R16)

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::disk::LoopDisk;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number, started};
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const DISK_BYTES: u64 = 64 << 20;

/// A pair with a filesystem on its volume, mounted and with a file on it.
fn mounted() -> Option<(Pair, Scratch, LoopDisk, PathBuf)> {
    if !tool::has(&support::disk::NEEDS) || !tool::has(&["fsfreeze", "setsid", "dumpe2fs"]) {
        return None;
    }
    let (pair, scratch) = started(&[Volume::new("data", DISK_BYTES)]);
    let mut disk = LoopDisk::over_nbd(&scratch.join("fuse"), &pair.east.uri("data"));
    disk.format();
    let dir = scratch.join("fs");
    disk.mount(&dir);
    fs::write(dir.join("first"), vec![1; 100_000]).expect("a file");
    Some((pair, scratch, disk, dir))
}

/// Whether a point's filesystem needs its journal.
fn needs_recovery(node: &Node, at: &str, copy: &Path) -> bool {
    let point = node.mount_point(at);
    tool::run("nbdcopy", [&point.uri("data"), copy.to_str().expect("a plain path")]);
    let header = tool::run("dumpe2fs", [Path::new("-h"), copy]);
    if !header.contains("needs_recovery") {
        let check = tool::output(tool::command("e2fsck").args(["-f", "-n"]).arg(copy));
        assert_eq!(check.status.code(), Some(0), "{}", tool::said(&check));
    }
    fs::remove_file(copy).expect("a copy");
    header.contains("needs_recovery")
}

/// Whether a write to the filesystem comes to its end.
fn is_writable(dir: &Path) -> bool {
    let file = dir.join("probe");
    let output = tool::output(tool::command("timeout").args(["2", "touch"]).arg(file));
    output.status.success()
}

#[test]
fn r16_a_mark_that_the_filesystem_held_still_for() {
    let Some((mut pair, scratch, disk, dir)) = mounted() else { return };
    let plain = pair.east.ask(["mark", GROUP, "--name", "plain"]);
    assert_eq!(plain["kind"], "crash_consistent", "{plain}");
    let frozen = dir.to_str().expect("a plain path").to_owned();
    let script = scratch.join("ran").display().to_string();
    let still = pair.east.ask([
        "mark",
        GROUP,
        "--name",
        "still",
        "--freeze",
        &frozen,
        "--pre",
        &format!("echo pre $LANDFALL_MARK >{script}"),
        "--post",
        &format!("echo post >>{script}"),
    ]);
    assert_eq!(still["kind"], "application_consistent", "{still}");
    assert_eq!(fs::read_to_string(&script).expect("the scripts ran"), "pre still\npost\n");
    assert!(is_writable(&dir), "it is thawed");
    fs::write(dir.join("second"), vec![2; 100_000]).expect("a file");
    tool::run("sync", ["-f", &frozen]);
    pair.wait_caught_up();

    let copy = scratch.join("copy.img");
    wait_until("west lists the marks", PATIENCE, || {
        pair.west.ask(["points", "list", GROUP])["marks"].as_array().is_some_and(|marks| marks.len() == 2)
    });
    assert!(needs_recovery(&pair.west, "mark:plain", &copy), "in the middle of things it does");
    assert!(!needs_recovery(&pair.west, "mark:still", &copy), "the filesystem held still");
    assert!(!needs_recovery(&pair.west, "latest-app", &copy));
    let point = pair.west.mount_point("latest-app");
    assert_eq!(point.lsn(), number(&still["lsn"]), "the newest that is consistent for the applications");
    drop(point);

    // Names.
    pair.east.ask(["mark", GROUP, "--name", "plain"]);
    pair.wait_caught_up();
    wait_until("west knows that there are two", PATIENCE, || {
        let twice = pair.west.try_ask(["mount-point", GROUP, "--at", "mark:plain", "--detach"]);
        twice.status.code() == Some(3) && tool::said(&twice).contains("2 points are marked plain")
    });
    let none = pair.west.try_ask(["mount-point", GROUP, "--at", "mark:nothing", "--detach"]);
    assert_eq!(none.status.code(), Some(3), "{}", tool::said(&none));
    let odd = pair.east.try_ask(["mark", GROUP, "--name", "a b"]);
    assert!(!odd.status.success(), "{}", tool::said(&odd));
    let replica = pair.west.try_ask(["mark", GROUP, "--name", "here"]);
    assert_eq!(replica.status.code(), Some(3), "{}", tool::said(&replica));
    drop(disk);
}

/// Writes a block without a flush.
fn write(node: &Node, content: u8) {
    let address = Address::Unix(node.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    client.write(0, &[content; 4096]).expect("it is taken");
}

#[test]
fn marks_are_set_by_the_clock_while_somebody_writes() {
    let scratch = Scratch::new();
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", DISK_BYTES)]);
    for node in [&pair.east, &pair.west] {
        node.set("marks", "\"1s\"");
    }
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let periodic = |node: &Node| node.ask(["points", "list", GROUP])["periodic_marks"].clone();
    for round in 1..=2_u8 {
        write(&pair.east, round);
        wait_until("a mark is set behind the write", PATIENCE, || {
            periodic(&pair.west)["count"] == u64::from(round)
        });
    }
    // Nobody writes: the marks are the last records there are.
    let marked = periodic(&pair.west);
    assert_eq!(number(&marked["newest"]["lsn"]), pair.wait_caught_up(), "{marked}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(periodic(&pair.west), marked, "an idle volume is left alone");

    let all = pair.west.ask(["points", "list", GROUP, "--all"]);
    let marks = all["periodic_marks"]["marks"].as_array().expect("each of them");
    assert_eq!(marks.len(), 2, "{all}");
    assert_eq!(marks[1], marked["newest"]);
    assert_eq!(all["marks"].as_array().map(Vec::len), Some(0), "none has a name");
    let point = pair.west.mount_point(&format!("lsn:{}", marks[0]["lsn"]));
    let address = Address::Unix(point.socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let mut found = [0; 4096];
    client.read(0, &mut found).expect("it can be read");
    assert_eq!(found, [1; 4096], "the state at the first of them");
    drop((client, point));

    // A replica that takes the group over goes on with it.
    pair.east.stop();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    write(&pair.west, 3);
    wait_until("the new primary marks", PATIENCE, || periodic(&pair.west)["count"] == 3);
}

#[test]
fn r16_applications_that_do_not_hold_still() {
    let Some((pair, scratch, disk, dir)) = mounted() else { return };
    let frozen = dir.to_str().expect("a plain path").to_owned();
    let skipped = pair.east.try_ask([
        "mark",
        GROUP,
        "--name",
        "none",
        "--freeze",
        &frozen,
        "--pre",
        "echo not today; exit 3",
        "--retries",
        "1",
    ]);
    assert_eq!(skipped.status.code(), Some(1), "{}", tool::said(&skipped));
    assert!(tool::said(&skipped).contains("not today"), "{}", tool::said(&skipped));
    let late = pair.east.try_ask([
        "mark",
        GROUP,
        "--name",
        "late",
        "--freeze",
        &frozen,
        "--pre",
        "sleep 60",
        "--timeout",
        "1s",
        "--otherwise",
        "mark",
    ]);
    assert_eq!(late.status.code(), Some(7), "{}", tool::said(&late));
    assert!(is_writable(&dir), "nothing is frozen");
    wait_until("there is one mark, which says what it is", PATIENCE, || {
        let points = pair.west.ask(["points", "list", GROUP]);
        points["marks"].as_array().is_some_and(|marks| {
            marks.len() == 1 && marks[0]["name"] == "late" && marks[0]["kind"] == "crash_consistent"
        })
    });
    let none = pair.west.try_ask(["mount-point", GROUP, "--at", "latest-app", "--detach"]);
    assert_eq!(none.status.code(), Some(3), "{}", tool::said(&none));

    // Whoever froze it is killed in the middle of it.
    let ran = scratch.join("ran");
    let pre = format!("fsfreeze --freeze {frozen}; touch {}; sleep 60", ran.display());
    let post = format!("fsfreeze --unfreeze {frozen} || true");
    let mut command = pair.east.command([
        "mark",
        GROUP,
        "--name",
        "killed",
        "--pre",
        &pre,
        "--post",
        &post,
        "--timeout",
        "4s",
    ]);
    let mut child = command.spawn().expect("the command starts");
    wait_until("it is frozen", PATIENCE, || ran.exists());
    assert!(!is_writable(&dir), "it is frozen");
    child.kill().expect("killed");
    child.wait().expect("gone");
    wait_until("the guard thaws it", Duration::from_secs(30), || is_writable(&dir));

    drop(disk);
}
