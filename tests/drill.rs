//! Recovery points that are written to: writable mounts, drills and bisect, with real processes. Nothing of it reaches
//! the replica's log, base images or points, whatever dies in between. (R15)

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::disk::{self, LoopDisk};
use support::node::{GROUP, Node, PATIENCE, Volume, number, started};
use support::random::Random;
use support::{tool, wait_until};
use transport::nbd::client::{Address, Client, Error};

const VOLUME_BYTES: u64 = 8 << 20;
const BLOCK: usize = 16 << 10;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;

/// What the one guest knows of the volume.
struct Guest {
    image: Vec<u8>,
    random: Random,
}

impl Guest {
    fn new() -> Guest {
        Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(15) }
    }

    fn write(&mut self, node: &Node, count: u64) {
        let mut client = client(&node.nbd_socket(), &format!("{GROUP}/data"));
        for _ in 0..count {
            let block = self.random.below(BLOCKS) as usize;
            let range = block * BLOCK..(block + 1) * BLOCK;
            self.random.fill(&mut self.image[range.clone()]);
            client.write(range.start as u64, &self.image[range]).expect("it is written");
        }
        client.flush().expect("it is durable");
    }
}

fn client(socket: &Path, export: &str) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served")
}

fn read_all(client: &mut Client) -> Vec<u8> {
    let mut image = vec![0; client.size() as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    image
}

/// The files of a group that make its log, base images and volumes. The state is written by checkpoints, whenever they
/// are due; the catalog is made anew from the others. What points there are, `points list` says.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.extend((!path.ends_with("catalog")).then_some(path));
            } else if !path.ends_with("state") {
                found.insert(path.clone(), std::fs::read(path).expect("a file"));
            }
        }
    }
    found
}

/// The same once the replica has nothing left to do; and the points.
fn files_at_rest(node: &Node) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut last = files(&node.group_dir());
    let mut same = 0;
    wait_until("the replica is at rest", PATIENCE, || {
        let now = files(&node.group_dir());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same > 20
    });
    let mut points = node.ask(["points", "list", GROUP]);
    // What retention gives now is another moment later.
    points["window"]["retention"].take();
    last.insert("points".into(), points.to_string().into_bytes());
    last
}

/// What mounts leave on disk, as names.
fn left_behind(node: &Node) -> Vec<PathBuf> {
    ["mounts", "scratch"]
        .iter()
        .flat_map(|name| std::fs::read_dir(node.dir.join("data").join(name)).expect("a folder of the daemon"))
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

/// What differs between two looks at a replica's files, as names.
fn changed(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    let names = before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

fn mounts(node: &Node) -> Vec<serde_json::Value> {
    node.status()["mounts"].as_array().expect("a list").clone()
}

/// The socket and the export of a mount's only volume.
fn place(mount: &serde_json::Value) -> (PathBuf, String) {
    let socket = mount["endpoint"]["unix"].as_str().expect("a unix socket");
    let export = mount["volumes"][0]["export"].as_str().expect("it is served");
    (socket.into(), export.to_owned())
}

#[test]
fn r15_a_writable_mount_is_an_isolated_copy() {
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 200);
    let lsn = pair.wait_caught_up();
    let before = files_at_rest(&pair.west);

    let at = format!("lsn:{lsn}");
    let arguments = ["mount-point", GROUP, "--at", &at, "--detach", "--writable", "--scratch", "4MiB"];
    let (one, other) = (pair.west.ask(arguments), pair.west.ask(arguments));
    let plain = pair.west.mount_point(&at);
    let mut expected = guest.image.clone();
    {
        let (socket, export) = place(&one);
        let mut client = client(&socket, &export);
        assert!(!client.is_read_only());
        let mut random = Random::new(16);
        for _ in 0..100 {
            let offset = random.below(VOLUME_BYTES - 9_000) as usize;
            let len = 1 + random.below(9_000) as usize;
            let range = offset..offset + len;
            match random.below(3) {
                0 => {
                    expected[range].fill(0);
                    client.trim(offset as u64, len as u32).expect("it is trimmed");
                }
                1 => {
                    expected[range].fill(0);
                    client.write_zeroes(offset as u64, len as u32).expect("zeros are written");
                }
                _ => {
                    random.fill(&mut expected[range.clone()]);
                    client.write(offset as u64, &expected[range]).expect("it is written");
                }
            }
        }
        client.flush().expect("a flush is answered");
        assert!(read_all(&mut client) == expected, "the copy is what was written to it");
    }
    let (socket, export) = place(&one);
    assert!(read_all(&mut client(&socket, &export)) == expected, "for every connection");
    let (socket, export) = place(&other);
    assert!(
        read_all(&mut client(&socket, &export)) == guest.image,
        "another mount of the point is another copy"
    );
    let mut reader = client(&plain.socket(), &plain.export("data"));
    assert!(reader.is_read_only());
    assert!(matches!(reader.write(0, &[1]), Err(Error::Remote(_))), "a mount is read-only unless asked");
    assert!(read_all(&mut reader) == guest.image, "the point is what it was");
    drop((reader, plain));

    let used = number(&mounts(&pair.west)[0]["scratch"]["used_bytes"]);
    assert!(used > 0 && used <= 4 << 20, "{used}");
    for mount in [&one, &other] {
        pair.west.ask(["unmount", &mount["mount"].to_string()]);
    }
    let changes = changed(&before, &files_at_rest(&pair.west));
    assert_eq!(changes, Vec::<PathBuf>::new(), "log, base images and points are what they were");
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());
    guest.write(&pair.east, 50);
    pair.wait_caught_up();
    let latest = pair.west.mount_point("latest");
    assert!(read_all(&mut client(&latest.socket(), &latest.export("data"))) == guest.image);
}

#[test]
fn r15_a_full_scratch_is_the_guests_trouble_alone() {
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 50);
    pair.wait_caught_up();
    let mount = pair.west.ask([
        "mount-point",
        GROUP,
        "--at",
        "latest",
        "--detach",
        "--writable",
        "--scratch",
        "1MiB",
    ]);
    let (socket, export) = place(&mount);
    let mut writer = client(&socket, &export);
    let block = [7; 64 << 10];
    let mut taken = 0;
    let refused = loop {
        match writer.write(taken, &block) {
            Ok(()) => taken += block.len() as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(taken, 1 << 20, "as much as was allowed");
    assert!(refused.to_string().contains("NOSPC") || refused.to_string().contains("space"), "{refused}");
    writer.write(0, &block).expect("what is there can be written again");
    writer.trim(0, 64 << 10).expect("it is trimmed");
    writer.write(taken, &block).expect("there is room again");
    guest.write(&pair.east, 50);
    pair.wait_caught_up();
    assert_eq!(pair.west.group()["state"]["name"], "following");

    pair.west.kill();
    pair.west.start();
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new(), "a killed daemon leaves nothing");
    assert!(mounts(&pair.west).is_empty());
    pair.wait_connected();
    guest.write(&pair.east, 20);
    pair.wait_caught_up();
    let latest = pair.west.mount_point("latest");
    assert!(read_all(&mut client(&latest.socket(), &latest.export("data"))) == guest.image);
    let refused = pair.west.try_ask(["mount-point", GROUP, "--at", "latest", "--scratch", "1MiB"]);
    assert_eq!(refused.status.code(), Some(2), "{}", tool::said(&refused));
}

/// A script that can be run.
fn script(dir: &Path, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("check.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("our own file");
    path.display().to_string()
}

/// What `drill` says in JSON with these arguments, and the status that it ends with.
#[track_caller]
fn drilled<const N: usize>(node: &Node, arguments: [&str; N]) -> (serde_json::Value, Option<i32>) {
    let output = tool::output(node.command(["--json", "drill"]).args(arguments));
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("no report: {}", tool::said(&output))), output.status.code())
}

/// How a check came out.
fn outcome<'a>(report: &'a serde_json::Value, what: &str) -> &'a str {
    let checks = report["checks"].as_array().expect("a list");
    let found = checks.iter().find(|check| check["what"] == what);
    found.unwrap_or_else(|| panic!("no check {what}: {report}"))["outcome"].as_str().expect("a word")
}

#[test]
fn r15_a_drill_in_one_command_says_what_it_found() {
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 100);
    let early = pair.wait_caught_up();
    guest.write(&pair.east, 30);
    let lsn = pair.wait_caught_up();
    let before = files_at_rest(&pair.west);

    let page = scratch.join("drill.html").display().to_string();
    let good = script(
        scratch.path(),
        "echo \"$LANDFALL_GROUP $LANDFALL_LSN $LANDFALL_VOLUMES <b>\"; echo \"$LANDFALL_NBD_DATA\" >&2",
    );
    let at = format!("lsn:{early}");
    let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", &at, "--report", &page, "--", &good]);
    assert_eq!((status, &found["verdict"]), (Some(0), &"passed".into()), "{found}");
    assert_eq!((number(&found["at"]["lsn"]), &found["node"]), (early, &"west".into()), "{found}");
    assert_eq!(number(&found["rpo"]["behind"]["writes"]), lsn - early, "{found}");
    assert!(number(&found["rto_ms"]) <= number(&found["took_ms"]), "{found}");
    assert_eq!(outcome(&found, "served"), "passed");
    assert_eq!(outcome(&found, "header"), "not_checked", "random bytes are no filesystem");
    let said = found["checks"].as_array().expect("a list").last().expect("the script")["output"].clone();
    let said = said.as_str().expect("text");
    assert!(said.contains(&format!("db {early} data <b>")), "{said}");
    assert!(said.contains("nbd+unix:///db/data?socket="), "{said}");
    let text = std::fs::read_to_string(&page).expect("the page");
    assert!(text.contains(&format!("db {early} data &lt;b&gt;")) && text.contains("passed"), "{text}");
    assert!(
        ["src=", "href=", "<script", "http:", "https:"].iter().all(|fetched| !text.contains(fetched)),
        "{text}"
    );

    let bad = script(scratch.path(), "echo the accounts are gone; exit 7");
    let (found, status) =
        drilled(&pair.west, ["run", GROUP, "--at", "latest", "--report", &page, "--", &bad]);
    assert_eq!((status, &found["verdict"]), (Some(4), &"failed".into()), "{found}");
    assert_eq!(outcome(&found, "script"), "failed");
    let text = std::fs::read_to_string(&page).expect("the page");
    assert!(text.contains("the accounts are gone") && text.contains("exit status 7"), "{text}");
    let slow = script(scratch.path(), "sleep 1000");
    let (found, status) =
        drilled(&pair.west, ["run", GROUP, "--at", "latest", "--timeout", "200ms", "--", &slow]);
    assert_eq!(status, Some(4), "{found}");

    // One that is interrupted, and one that is killed.
    let ready = scratch.join("ready");
    // It ends with whoever has started it: a command that is killed cannot end it.
    let text = format!("touch '{}'; while [ -e /proc/$PPID/stat ]; do sleep 0.05; done", ready.display());
    let endless = script(scratch.path(), &text);
    for (signal, expected) in [(rustix::process::Signal::INT, Some(1)), (rustix::process::Signal::KILL, None)]
    {
        let mut command = pair.west.command(["drill", "run", GROUP, "--at", "latest", "--", &endless]);
        let command = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("the program is there");
        wait_until("the check runs", PATIENCE, || ready.exists());
        assert_eq!(mounts(&pair.west).len(), 1, "a drill is listed while it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("our own child");
        assert_eq!(child.wait().expect("our own child").code(), expected);
        wait_until("its drill is gone", PATIENCE, || mounts(&pair.west).is_empty());
        std::fs::remove_file(&ready).expect("the check has made it");
    }

    wait_until("the drills are over", PATIENCE, || mounts(&pair.west).is_empty());
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());
    let changes = changed(&before, &files_at_rest(&pair.west));
    assert_eq!(changes, Vec::<PathBuf>::new(), "log, base images and points are what they were");
    let refused = pair.west.try_ask(["drill", "run", GROUP, "--at", "lsn:999999"]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
}

#[test]
fn r15_a_drill_is_started_written_to_verified_and_ended() {
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 100);
    pair.wait_caught_up();
    let drill = pair.west.ask(["drill", "start", GROUP, "--at", "latest", "--limit", "2h"]);
    assert!(!drill["drill"]["ends"].is_null(), "{drill}");
    let (socket, export) = place(&drill);
    let mut writer = client(&socket, &export);
    writer.write(4_096, b"what the drill has written").expect("it is written");
    writer.flush().expect("a flush is answered");
    drop(writer);
    // The script gets the drill, with what was written to it.
    let drill_sees = script(scratch.path(), "printf '%s' \"$LANDFALL_NBD_DATA\" > \"$(dirname \"$0\")/uri\"");
    let (found, status) = drilled(&pair.west, ["verify", GROUP, "--", &drill_sees]);
    assert_eq!(status, Some(0), "{found}");
    assert!(found["rto_ms"].is_null(), "it was there already");
    let uri = std::fs::read_to_string(scratch.join("uri")).expect("the script has run");
    assert_eq!(uri, format!("nbd+unix:///{export}?socket={}", socket.display()));
    let mut bytes = [0; 26];
    client(&socket, &export).read(4_096, &mut bytes).expect("it is there");
    assert_eq!(&bytes, b"what the drill has written", "a verification does not disturb the drill");

    let number_of = drill["mount"].to_string();
    let second = pair.west.ask(["drill", "start", GROUP, "--at", "latest"]);
    let unclear = pair.west.try_ask(["drill", "end", GROUP]);
    assert_eq!(unclear.status.code(), Some(3), "there are two: {}", tool::said(&unclear));
    pair.west.ask(["drill", "end", &number_of]);
    pair.west.ask(["drill", "end", GROUP]);
    let again = pair.west.ask(["drill", "end", GROUP]);
    assert!(again["mount"].is_null(), "it was done before, and is well: {again}");
    let unknown = pair.west.try_ask(["drill", "end", &second["mount"].to_string()]);
    assert_eq!(unknown.status.code(), Some(3), "{}", tool::said(&unknown));

    // One that nobody ends.
    pair.west.ask(["drill", "start", GROUP, "--at", "latest", "--limit", "300ms"]);
    wait_until("it is ended at its limit", PATIENCE, || mounts(&pair.west).is_empty());
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());

    // One whose daemon dies.
    let drill = pair.west.ask(["drill", "start", GROUP, "--at", "latest"]);
    let (socket, export) = place(&drill);
    client(&socket, &export).write(0, &[1; 9_000]).expect("it is written");
    pair.west.kill();
    pair.west.start();
    assert!(mounts(&pair.west).is_empty());
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());
    pair.wait_connected();
    guest.write(&pair.east, 20);
    pair.wait_caught_up();
    let latest = pair.west.mount_point("latest");
    assert!(read_all(&mut client(&latest.socket(), &latest.export("data"))) == guest.image);
}

#[test]
fn r15_a_filesystem_is_checked_by_its_header_and_by_the_systems_own_program() {
    if !tool::has(&["mkfs.ext4"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let file = scratch.join("ext4.img");
    std::fs::write(&file, vec![0; VOLUME_BYTES as usize]).expect("a file");
    tool::run("mkfs.ext4", ["-q", "-O", "metadata_csum", &file.display().to_string()]);
    let image = std::fs::read(&file).expect("a file");
    let mut guest = client(&pair.east.nbd_socket(), &format!("{GROUP}/data"));
    guest.write(0, &image).expect("it is written");
    guest.flush().expect("it is durable");
    let sound = pair.wait_caught_up();

    let at = format!("lsn:{sound}");
    let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", &at]);
    assert_eq!((status, outcome(&found, "header")), (Some(0), "passed"), "{found}");
    let has_fsck = tool::has(&["root", "/dev/fuse", "nbdfuse", "e2fsck"]);
    if has_fsck {
        assert_eq!(outcome(&found, "fsck"), "passed", "{found}");
    }

    // A count of free inodes in the superblock, and its checksum no more.
    let wrong = image[1024 + 0x10] ^ 1;
    guest.write(1024 + 0x10, &[wrong]).expect("it is written");
    guest.flush().expect("it is durable");
    pair.wait_caught_up();
    let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", "latest"]);
    assert_eq!((status, outcome(&found, "header")), (Some(4), "failed"), "{found}");
    guest.write(1024 + 0x10, &[wrong ^ 1]).expect("it is written");

    // Zeros where a folder was, behind a header that is sound: the root folder's block, at least.
    if has_fsck {
        let entry = image.windows(10).position(|bytes| bytes == b"lost+found").expect("the root folder");
        guest.write_zeroes((entry / 1024 * 1024) as u64, 1024).expect("it is zeroed");
        guest.flush().expect("it is durable");
        pair.wait_caught_up();
        let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", "latest"]);
        assert_eq!((status, outcome(&found, "header")), (Some(4), "passed"), "{found}");
        assert_eq!(outcome(&found, "fsck"), "failed", "{found}");
    }
    let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", &at]);
    assert_eq!(status, Some(0), "the earlier point is as sound as before: {found}");
}

/// A point in the middle of a mounted ext4's life is what a power cut leaves: a boot would replay the journal, and so
/// does the check, on its copy; and so does the kernel, on the drill.
#[test]
fn r15_a_mounted_ext4_is_recovered_on_the_copy() {
    if !tool::has(&disk::NEEDS) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", 64 << 20)]);
    let (live, copy) = (scratch.join("live"), scratch.join("copy"));
    let mut disk = LoopDisk::over_nbd(&scratch.join("live.fuse"), &pair.east.uri("data"));
    disk.format();
    disk.mount(&live);
    for number in 0..100 {
        std::fs::write(live.join(format!("{number}")), vec![number as u8; 20_000]).expect("a file");
    }
    tool::run("sync", [Path::new("-f"), &live]);
    let lsn = pair.wait_durable();
    pair.wait_replica(lsn);

    let at = format!("lsn:{lsn}");
    let (found, status) = drilled(&pair.west, ["run", GROUP, "--at", &at]);
    assert_eq!(
        (status, outcome(&found, "header"), outcome(&found, "fsck")),
        (Some(0), "passed", "passed"),
        "{found}"
    );
    assert!(found.to_string().contains("the journal is to be replayed"), "{found}");

    let drill = pair.west.ask(["drill", "start", GROUP, "--at", &at]);
    let (socket, export) = place(&drill);
    let mut again = LoopDisk::over_nbd(&scratch.join("copy.fuse"), &support::node::uri(&socket, &export));
    again.mount(&copy);
    for number in 0..100 {
        let bytes = std::fs::read(copy.join(format!("{number}"))).expect("it was synced");
        assert!(bytes == vec![number as u8; 20_000], "file {number}");
        std::fs::remove_file(copy.join(format!("{number}"))).expect("a drill may do anything");
    }
    again.unmount();
    drop(again);
    pair.west.ask(["drill", "end", GROUP]);
    assert_eq!(
        std::fs::read_dir(&live).expect("a folder").count(),
        101,
        "production has its files, and lost+found"
    );
    disk.unmount();
}

#[test]
fn r15_a_drill_under_load_leaves_the_replica_equal_to_its_primary() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 50);
    pair.wait_caught_up();
    let done = AtomicBool::new(false);
    let (east, west) = (&pair.east, &pair.west);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                guest.write(east, 20);
            }
        });
        for round in 0..4_u8 {
            let drill = west.ask(["drill", "start", GROUP, "--at", "latest"]);
            let (socket, export) = place(&drill);
            let mut writer = client(&socket, &export);
            let before = read_all(&mut writer);
            for block in 0..BLOCKS / 4 {
                writer.write(block * 4 * BLOCK as u64, &[round | 0x80; BLOCK]).expect("it is written");
            }
            let after = read_all(&mut writer);
            let is_own = |block: usize| block.is_multiple_of(4);
            for (block, (before, after)) in before.chunks(BLOCK).zip(after.chunks(BLOCK)).enumerate() {
                let expected = if is_own(block) { vec![round | 0x80; BLOCK] } else { before.to_vec() };
                assert!(after == expected, "round {round}, block {block}: the copy stands still");
            }
            drop(writer);
            west.ask(["drill", "end", GROUP]);
        }
        done.store(true, Ordering::Relaxed);
        load.join().expect("the load goes on through the drills");
    });
    let lsn = pair.wait_caught_up();
    let latest = pair.west.mount_point(&format!("lsn:{lsn}"));
    assert!(read_all(&mut client(&latest.socket(), &latest.export("data"))) == guest.image);
    drop(latest);
    let verified = pair.east.ask(["verify", GROUP, "--wait"]);
    assert_eq!(verified["replicas"][0]["mismatched"], 0, "{verified}");
    pair.west.stop();
    pair.west.verify_log("behind the drills");
}

#[test]
fn r14_r15_a_failover_in_the_middle_of_a_drill() {
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut guest = Guest::new();
    guest.write(&pair.east, 100);
    let early = pair.wait_caught_up();
    let image = guest.image.clone();
    guest.write(&pair.east, 50);
    let late = pair.wait_caught_up();

    let kept = pair.west.ask(["drill", "start", GROUP, "--at", &format!("lsn:{early}")]);
    let set_aside = pair.west.ask(["drill", "start", GROUP, "--at", &format!("lsn:{late}")]);
    let (socket, export) = place(&kept);
    let mut drill = client(&socket, &export);
    drill.write(0, &[9; BLOCK]).expect("it is written");
    let mut expected = image.clone();
    expected[..BLOCK].fill(9);
    let (other_socket, other_export) = place(&set_aside);
    let mut other = client(&other_socket, &other_export);
    assert!(read_all(&mut other) == guest.image);

    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", &format!("lsn:{early}"), "--yes"]);
    assert!(read_all(&mut drill) == expected, "the drill goes on");
    let shown = mounts(&pair.west);
    assert_eq!(shown.len(), 1, "the drill of a point that was set aside is ended: {shown:?}");
    assert_eq!(shown[0]["mount"], kept["mount"]);
    assert!(other.read(0, &mut [0; 512]).is_err(), "and answers nothing any more");

    // Production is another thing than the drill: neither sees the other's writes.
    let mut production = Guest { image, random: Random::new(77) };
    production.write(&pair.west, 100);
    drill.write(BLOCK as u64, &[8; BLOCK]).expect("it is written");
    expected[BLOCK..2 * BLOCK].fill(8);
    pair.west.ask(["failover", "commit", GROUP]);
    production.write(&pair.west, 100);
    assert!(read_all(&mut drill) == expected, "the drill's point stays, behind the commit too");
    let served = |node: &Node| read_all(&mut client(&node.nbd_socket(), &format!("{GROUP}/data")));
    assert!(served(&pair.west) == production.image);
    let (found, status) = drilled(&pair.west, ["verify", GROUP]);
    assert_eq!(status, Some(0), "{found}");
    assert!(found["rpo"].is_null(), "this node is the primary now: {found}");
    drop(drill);
    pair.west.ask(["drill", "end", GROUP]);
    assert!(served(&pair.west) == production.image);
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());
}

/// A check that looks at the first bytes of a block: bad if a word is there. It needs nothing but the test's own client,
/// which is this test binary, run again for one test.
const LOOK_VARIABLE: &str = "LANDFALL_TEST_LOOK_FOR";

/// Not a test of its own: what the checks of `bisect` run. Says by its status whether the word is at its place.
#[test]
fn looks_for_a_word() {
    let Ok(word) = std::env::var(LOOK_VARIABLE) else { return };
    let uri = std::env::var("LANDFALL_NBD_DATA").expect("a check is told where the volume is");
    let (export, socket) =
        uri.strip_prefix("nbd+unix:///").and_then(|rest| rest.split_once("?socket=")).expect("a URI");
    let mut client = client(Path::new(socket), export);
    // As a database would: it writes before it looks.
    client.write(VOLUME_BYTES - 512, &[1; 512]).expect("a check may write");
    let mut seen = vec![0; word.len()];
    client.read(PLANTED_AT, &mut seen).expect("it can be read");
    std::process::exit(if seen == word.as_bytes() { 1 } else { 0 });
}

/// Where the bad write goes: away from what the guest writes else.
const PLANTED_AT: u64 = VOLUME_BYTES - 3 * BLOCK as u64 + 7;

#[test]
fn bisect_finds_the_write_among_thousands() {
    const WORD: &str = "all your files are encrypted";
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES), Volume::new("wal", 1 << 20)]);
    let mut random = Random::new(5);
    let mut guest = client(&pair.east.nbd_socket(), &format!("{GROUP}/data"));
    let mut write = |guest: &mut Client, count: u64| {
        for _ in 0..count {
            let offset = random.below(VOLUME_BYTES - 4 * BLOCK as u64) / 512 * 512;
            guest.write(offset, &[3; 512]).expect("it is written");
        }
        guest.flush().expect("it is durable");
    };
    write(&mut guest, 100);
    let good = pair.wait_caught_up();
    write(&mut guest, 1_234);
    let before = pair.wait_caught_up();
    guest.write(PLANTED_AT, WORD.as_bytes()).expect("it is written");
    guest.flush().expect("it is durable");
    write(&mut guest, 1_700);
    let bad = pair.wait_caught_up();
    let at_rest = files_at_rest(&pair.west);

    let own = std::env::current_exe().expect("this test's program").display().to_string();
    let look = format!("export {LOOK_VARIABLE}='{WORD}'\nexec '{own}' --exact looks_for_a_word --nocapture");
    let check = script(scratch.path(), &look);
    let (good_at, bad_at) = (format!("lsn:{good}"), format!("lsn:{bad}"));
    let bisect = |good: &str, bad: &str, jobs: &str, check: &str| {
        let arguments = ["bisect", GROUP, "--good", good, "--bad", bad, "--jobs", jobs, "--", check];
        tool::output(pair.west.command(["--json"]).args(arguments))
    };
    for jobs in ["1", "4"] {
        let output = bisect(&good_at, &bad_at, jobs, &check);
        assert!(output.status.success(), "{}", tool::said(&output));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer in JSON");
        assert_eq!(number(&found["bad"]["lsn"]), before + 1, "{found}");
        assert_eq!(number(&found["good"]["lsn"]), before, "{found}");
        let record = &found["record"];
        assert_eq!((&record["kind"], &record["volume"]), (&"write".into(), &"data".into()), "{found}");
        assert_eq!(number(&record["offset_bytes"]), PLANTED_AT);
        assert_eq!(number(&record["len_bytes"]), WORD.len() as u64);
        let tests = found["tests"].as_array().expect("a list").len();
        assert!(tests <= 2 + 12 * jobs.parse::<usize>().expect("a number"), "{tests} tests");
    }

    // What cannot be judged around the place, and checks that are no good.
    let unsure = script(
        scratch.path(),
        &format!(
            "if [ $LANDFALL_LSN -ge {before} ] && [ $LANDFALL_LSN -le {} ]; then exit 125; fi\n{look}",
            before + 2
        ),
    );
    let output = bisect(&good_at, &bad_at, "1", &unsure);
    assert_eq!(output.status.code(), Some(1), "{}", tool::said(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer in JSON");
    let range = (number(&found["good"]["lsn"]), number(&found["bad"]["lsn"]), number(&found["unjudged"]));
    assert_eq!(range, (before - 1, before + 3, 3), "{found}");
    for (text, expected) in [("exit 0", 4), ("exit 1", 4), ("kill -9 $$", 1), ("exit 130", 1)] {
        let output = bisect(&good_at, &bad_at, "2", &script(scratch.path(), text));
        assert_eq!(output.status.code(), Some(expected), "{text}: {}", tool::said(&output));
    }
    let output = bisect(&bad_at, &good_at, "1", &check);
    assert_eq!(output.status.code(), Some(2), "{}", tool::said(&output));
    // The daemon hears of a command's end when its connection is closed.
    wait_until("the mounts are gone", PATIENCE, || mounts(&pair.west).is_empty());
    let changes = changed(&at_rest, &files_at_rest(&pair.west));
    assert_eq!(changes, Vec::<PathBuf>::new(), "log, base images and points are what they were");
    assert_eq!(left_behind(&pair.west), Vec::<PathBuf>::new());
}
