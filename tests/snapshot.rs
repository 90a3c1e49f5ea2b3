//! `landfall snapshot` with real processes: whole copies of a point that stay as they are, share what is the same, and need
//! neither the group's log nor a daemon once they are made.

mod support;

use engine::os::disk::Disk;
use engine::snapshots::BLOCK;
use engine::snapshots::create::Store;
use engine::snapshots::read::Snapshots;
use serde_json::Value;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use support::node::{GROUP, Node, PATIENCE, Volume, number, started};
use support::random::Random;
use support::tool;
use transport::nbd::client::{Address, Client};

const PIECE: usize = BLOCK as usize;
/// The last block is not a whole one.
const DATA_BYTES: usize = (16 << 20) + 4096;
const WAL_BYTES: usize = 4 << 20;

/// A guest with its disk, and what it has written there.
struct Guest {
    client: Client,
    bytes: Vec<u8>,
    random: Random,
}

impl Guest {
    fn new(node: &Node, volume: &str, len: usize) -> Guest {
        let address = Address::Unix(node.nbd_socket());
        let client = Client::connect(&address, &format!("{GROUP}/{volume}"), PATIENCE).expect("it is served");
        Guest { client, bytes: vec![0; len], random: Random::new(len as u64) }
    }

    fn write(&mut self, at: usize, len: usize) {
        self.random.fill(&mut self.bytes[at..at + len]);
        self.client.write(at as u64, &self.bytes[at..at + len]).expect("it is taken");
        self.client.flush().expect("it is durable");
    }
}

/// What a snapshot holds of a volume, each block checked.
fn bytes_of(data_dir: &Path, snapshot: &str, volume: &str) -> Vec<u8> {
    let disk = Disk::new(data_dir).expect("it is there");
    let snapshots = Snapshots::open(Arc::new(disk)).expect("it is sound");
    let reader = snapshots.reader(snapshot, volume).expect("it is there");
    let (mut bytes, mut block) = (vec![0; reader.size() as usize], vec![0; PIECE]);
    for entry in reader.entries() {
        let part = reader.read(entry, &mut block).expect("it is sound");
        bytes[entry.block as usize * PIECE..][..part.len()].copy_from_slice(part);
    }
    bytes
}

fn listed<'a>(list: &'a Value, name: &str) -> &'a Value {
    let all = list["snapshots"].as_array().expect("it is a list");
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} is not in {list}"))
}

#[test]
fn snapshots_share_what_is_the_same_and_outlive_the_group() {
    let volumes = [Volume::new("data", DATA_BYTES as u64), Volume::new("wal", WAL_BYTES as u64)];
    let (mut pair, scratch) = started(&volumes);
    let mut data = Guest::new(&pair.east, "data", DATA_BYTES);
    let mut wal = Guest::new(&pair.east, "wal", WAL_BYTES);
    data.write(0, 4 * PIECE);
    data.write(DATA_BYTES - 4096, 4096);
    wal.write(PIECE + 512, 512);
    let lsn = pair.wait_caught_up();
    let first = (data.bytes.clone(), wal.bytes.clone());

    // On the replica: at a point that is passed by the time.
    data.write(PIECE, 512);
    data.write(8 * PIECE - 4096, 8192);
    pair.wait_caught_up();
    let second = (data.bytes.clone(), wal.bytes.clone());
    let west = &pair.west;
    let at = format!("lsn:{lsn}");
    let made = west.ask(["snapshot", "create", GROUP, "--name", "before", "--at", &at]);
    assert_eq!(number(&made["at"]["lsn"]), lsn);
    assert_eq!((number(&made["data_bytes"]), number(&made["new_bytes"])), (6 * BLOCK, 6 * BLOCK), "{made}");
    let made = west.ask(["snapshot", "create", GROUP, "--name", "after"]);
    assert_eq!((number(&made["data_bytes"]), number(&made["new_bytes"])), (8 * BLOCK, 3 * BLOCK), "{made}");

    let data_dir = scratch.join("west/data");
    assert!(
        bytes_of(&data_dir, "before", "data") == first.0 && bytes_of(&data_dir, "before", "wal") == first.1
    );
    assert!(
        bytes_of(&data_dir, "after", "data") == second.0 && bytes_of(&data_dir, "after", "wal") == second.1
    );
    let list = west.ask(["snapshot", "list"]);
    assert_eq!(number(&list["used_bytes"]), 9 * BLOCK, "{list}");
    let (before, after) = (listed(&list, "before"), listed(&list, "after"));
    assert_eq!((number(&before["used_bytes"]), number(&before["own_bytes"])), (6 * BLOCK, BLOCK), "{list}");
    assert_eq!((number(&after["used_bytes"]), number(&after["own_bytes"])), (8 * BLOCK, 3 * BLOCK), "{list}");
    assert_eq!(before["point"], at);
    assert_eq!(number(&before["volumes"][0]["size_bytes"]), DATA_BYTES as u64);

    // The replica, its log and its base go; the snapshots are as they were.
    pair.west.stop();
    std::fs::remove_dir_all(pair.west.group_dir()).expect("it is there");
    let asked = pair.west.try_ask(["snapshot", "delete", "before"]);
    assert_eq!(asked.status.code(), Some(6), "not unasked: {}", tool::said(&asked));
    let deleted = pair.west.ask(["snapshot", "delete", "before", "--yes"]);
    assert_eq!(number(&deleted["freed_bytes"]), BLOCK, "what it alone had");
    let list = pair.west.ask(["snapshot", "list"]);
    assert_eq!(number(&list["used_bytes"]), 8 * BLOCK, "{list}");
    assert_eq!(number(&listed(&list, "after")["own_bytes"]), 8 * BLOCK, "{list}");
    assert!(
        bytes_of(&data_dir, "after", "data") == second.0 && bytes_of(&data_dir, "after", "wal") == second.1
    );
}

#[test]
fn wrong_inputs_are_refused_and_leave_nothing() {
    let (mut pair, _scratch) = started(&[Volume::new("data", 1 << 20)]);
    let mut data = Guest::new(&pair.east, "data", 1 << 20);
    data.write(0, PIECE);
    pair.wait_caught_up();
    let west = &pair.west;
    let says = |status: i32, says: &str, arguments: &[&str]| {
        let mut command = west.command(["snapshot"]);
        let output = tool::output(command.args(arguments));
        let said = tool::said(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    };
    west.ask(["snapshot", "create", GROUP, "--name", "nightly"]);
    let output = pair.east.try_ask(["snapshot", "create", GROUP, "--name", "x"]);
    let said = tool::said(&output);
    assert!(output.status.code() == Some(3) && said.contains("replica"), "a primary has no points: {said}");
    assert!(!data_dir(&pair.east).join("snapshots").exists(), "a refusal makes no store");
    says(3, "another name", &["create", GROUP, "--name", "nightly"]);
    says(3, "no group dbb", &["create", "dbb", "--name", "x"]);
    says(3, "next: ", &["create", GROUP, "--name", "x", "--at", "lsn:999999999"]);
    says(3, "next: ", &["create", GROUP, "--name", "x", "--at", "mark:none"]);
    for odd in ["a/b", "../x", "", "-x", "a b", "ä"] {
        says(2, "letters", &["create", GROUP, &format!("--name={odd}")]);
    }
    says(3, "did you mean `nightly`?", &["delete", "nightlyy", "--yes"]);
    says(3, "snapshot list", &["delete", "something-else", "--yes"]);
    let list = west.ask(["snapshot", "list"]);
    assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(number(&list["used_bytes"]), BLOCK, "{list}");

    // One at a time changes the store; who only reads it is not kept waiting.
    let storage = Arc::new(Disk::new(data_dir(west)).expect("it is there"));
    let held = Store::open(storage).expect("nobody has it");
    says(3, "another command is changing", &["create", GROUP, "--name", "x"]);
    says(3, "another command is changing", &["delete", "nightly", "--yes"]);
    says(0, "nightly", &["list"]);
    says(0, "1 snapshots", &["verify", "nightly"]);
    drop(held);

    // Of another version: nothing of it is read or touched, and it is named.
    let manifest = first_manifest(west);
    let mut bytes = std::fs::read(&manifest).expect("it is there");
    bytes[8] = 9;
    let checksum = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&manifest, &bytes).expect("it can be written");
    let list = west.ask(["snapshot", "list"]);
    assert!(list["damaged"][0]["why"].as_str().is_some_and(|why| why.contains("format version 9")), "{list}");
    says(0, "format version 9", &["create", GROUP, "--name", "beside"]);
    assert_eq!(std::fs::read(&manifest).expect("it is there"), bytes);
    assert!(bytes_of(&data_dir(west), "beside", "data") == data.bytes);
}

#[test]
fn differences_copies_and_checks_need_no_daemon() {
    let (mut pair, scratch) = started(&[Volume::new("data", DATA_BYTES as u64)]);
    let mut data = Guest::new(&pair.east, "data", DATA_BYTES);
    data.write(0, 2 * PIECE);
    data.write(5 * PIECE, 512);
    pair.wait_caught_up();
    pair.west.ask(["snapshot", "create", GROUP, "--name", "before"]);
    let before = data.bytes.clone();
    data.write(PIECE, 512);
    data.write(DATA_BYTES - 4096, 512);
    pair.wait_caught_up();
    pair.west.ask(["snapshot", "create", GROUP, "--name", "after"]);
    pair.west.stop();

    let west = &pair.west;
    let changed = west.ask(["snapshot", "diff", "before", "after"]);
    let wanted = serde_json::json!([{
        "name": "data", "size_before_bytes": DATA_BYTES, "size_after_bytes": DATA_BYTES,
        "changed_bytes": PIECE + 4096,
        "ranges": [{"offset": PIECE, "bytes": PIECE}, {"offset": DATA_BYTES - 4096, "bytes": 4096}],
    }]);
    assert_eq!(changed["volumes"], wanted, "{changed}");

    // A new disk from each, sparse; never over something else unasked.
    let file = scratch.join("new.img");
    let to = file.to_str().expect("plain");
    let done = west.ask(["snapshot", "export", "before/data", "--to", to]);
    assert!(std::fs::read(&file).expect("it is there") == before);
    assert_eq!(done["xxh3_128"], engine::digest::Digest::of(&before).to_string());
    let used = std::fs::metadata(&file).expect("it is there").blocks() * 512;
    assert!(used < DATA_BYTES as u64 / 4, "{used} bytes are used: zeros are holes");
    let refused = west.try_ask(["snapshot", "export", "after/data", "--to", to]);
    assert_eq!(refused.status.code(), Some(3), "not unasked: {}", tool::said(&refused));
    assert!(std::fs::read(&file).expect("it is there") == before, "a refusal changes nothing");
    west.ask(["snapshot", "export", "after/data", "--to", to, "--overwrite"]);
    assert!(std::fs::read(&file).expect("it is there") == data.bytes);
    if tool::has(&["qemu-img"]) {
        let image = scratch.join("new.qcow2");
        let image = image.to_str().expect("plain");
        west.ask(["snapshot", "export", "after/data", "--to", image, "--format", "qcow2"]);
        tool::run("qemu-img", ["check", image]);
        tool::run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", to, image]);
    }
    for (of, says) in [("after/date", "its volumes are: data"), ("aftr/data", "did you mean `after`?")] {
        let refused = west.try_ask(["snapshot", "export", of, "--to", "/dev/null/none"]);
        let said = tool::said(&refused);
        assert!(refused.status.code() == Some(3) && said.contains(says), "{of}: {said}");
    }

    // A rotten block is named, and nothing is made of it; what does not have it is as it was.
    let sound = west.ask(["snapshot", "verify"]);
    assert_eq!((number(&sound["snapshots"]), number(&sound["checked_bytes"])), (2, 5 * BLOCK), "{sound}");
    let pool = std::fs::File::options()
        .write(true)
        .open(data_dir(west).join("snapshots/pool"))
        .expect("it is there");
    // The second slot: the second block of `before`, which `after` has no more.
    pool.write_all_at(b"rotten", BLOCK + 5).expect("it can be written");
    let found = west.try_ask(["snapshot", "verify"]);
    assert_eq!(found.status.code(), Some(4), "{}", tool::said(&found));
    let found: Value = serde_json::from_slice(&found.stdout).expect("the document is printed all the same");
    let wanted = serde_json::json!([{"snapshot": "before", "volume": "data", "offset": BLOCK}]);
    assert_eq!(found["rotten"], wanted, "{found}");
    let other = scratch.join("other.img");
    let failed = west.try_ask(["snapshot", "export", "before/data", "--to", other.to_str().expect("plain")]);
    assert_eq!(failed.status.code(), Some(4), "{}", tool::said(&failed));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).expect("it is there").flatten().collect();
    let names = left.iter().map(std::fs::DirEntry::file_name);
    assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("other.img")), "{left:?}");
    west.ask(["snapshot", "verify", "after"]);
    west.ask(["snapshot", "export", "after/data", "--to", to, "--overwrite"]);
    assert!(std::fs::read(&file).expect("it is there") == data.bytes);
}

/// A loop device over a file, detached when dropped.
struct Device(String);

impl Drop for Device {
    fn drop(&mut self) {
        let _ = tool::command("losetup").args(["-d", &self.0]).output();
    }
}

#[test]
fn a_device_gets_zeros_where_the_snapshot_has_them() {
    if !tool::has(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", DATA_BYTES as u64)]);
    let mut data = Guest::new(&pair.east, "data", DATA_BYTES);
    data.write(3 * PIECE, 512);
    pair.wait_caught_up();
    pair.west.ask(["snapshot", "create", GROUP, "--name", "one"]);
    let backing = scratch.join("device");
    std::fs::write(&backing, vec![0xff; 2 * DATA_BYTES]).expect("it can be written");
    let path = backing.to_str().expect("plain");
    let device = Device(tool::run("losetup", ["--find", "--show", path]).trim().to_owned());
    let refused = pair.west.try_ask(["snapshot", "export", "one/data", "--to", &device.0]);
    assert_eq!(refused.status.code(), Some(3), "not unasked: {}", tool::said(&refused));
    pair.west.ask(["snapshot", "export", "one/data", "--to", &device.0, "--overwrite"]);
    drop(device);
    let mut wanted = data.bytes.clone();
    wanted.resize(2 * DATA_BYTES, 0xff);
    assert!(std::fs::read(&backing).expect("it is there") == wanted, "the volume, and nothing behind it");
}

/// A small filesystem, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = tool::command("umount").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_ends_the_snapshot_and_nothing_else() {
    if !tool::has(&["root", "mount"]) {
        return;
    }
    let (mut pair, _scratch) = started(&[Volume::new("data", DATA_BYTES as u64)]);
    let mut data = Guest::new(&pair.east, "data", DATA_BYTES);
    data.write(0, 4 * PIECE);
    pair.wait_caught_up();
    let folder = data_dir(&pair.west).join("snapshots");
    std::fs::create_dir(&folder).expect("it is not there yet");
    let path = folder.to_str().expect("plain");
    tool::run("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", path]);
    let _small = Small(folder.clone());
    let failed = pair.west.try_ask(["snapshot", "create", GROUP, "--name", "big"]);
    let said = tool::said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("are free in") && said.contains("next: make room"), "{said}");
    let list = pair.west.ask(["snapshot", "list"]);
    assert_eq!(
        (list["snapshots"].as_array().map(Vec::len), number(&list["used_bytes"])),
        (Some(0), 0),
        "{list}"
    );
    assert_eq!(std::fs::metadata(folder.join("pool")).expect("it was made").blocks(), 0, "all is given back");
    data.write(PIECE, PIECE);
    pair.wait_caught_up();
}

fn data_dir(node: &Node) -> std::path::PathBuf {
    let groups = node.group_dir();
    groups.ancestors().nth(2).expect("it is data/groups/GROUP").to_owned()
}

fn first_manifest(node: &Node) -> std::path::PathBuf {
    data_dir(node).join("snapshots/manifest-00000001")
}
