//! `landfall snapshot` with real processes: whole copies of a point that stay as they are, share what is the same, and need
//! neither the group's log nor a daemon once they are made.

mod support;

use engine::os::disk::Disk;
use engine::snapshots::BLOCK;
use engine::snapshots::read::Snapshots;
use serde_json::Value;
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
    let refused = |status: i32, says: &str, arguments: &[&str]| {
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
    refused(3, "another name", &["create", GROUP, "--name", "nightly"]);
    refused(3, "no group dbb", &["create", "dbb", "--name", "x"]);
    refused(3, "next: ", &["create", GROUP, "--name", "x", "--at", "lsn:999999999"]);
    refused(3, "next: ", &["create", GROUP, "--name", "x", "--at", "mark:none"]);
    for odd in ["a/b", "../x", "", "-x", "a b", "ä"] {
        refused(2, "letters", &["create", GROUP, &format!("--name={odd}")]);
    }
    refused(3, "did you mean `nightly`?", &["delete", "nightlyy", "--yes"]);
    refused(3, "snapshot list", &["delete", "something-else", "--yes"]);
    let list = west.ask(["snapshot", "list"]);
    assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(number(&list["used_bytes"]), BLOCK, "{list}");

    // Of another version: nothing of it is read or touched, and it is named.
    let manifest = first_manifest(west);
    let mut bytes = std::fs::read(&manifest).expect("it is there");
    bytes[8] = 9;
    let checksum = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&manifest, &bytes).expect("it can be written");
    let list = west.ask(["snapshot", "list"]);
    assert!(list["damaged"][0]["why"].as_str().is_some_and(|why| why.contains("format version 9")), "{list}");
    refused(0, "format version 9", &["create", GROUP, "--name", "beside"]);
    assert_eq!(std::fs::read(&manifest).expect("it is there"), bytes);
    assert!(bytes_of(&data_dir(west), "beside", "data") == data.bytes);
}

fn data_dir(node: &Node) -> std::path::PathBuf {
    let groups = node.group_dir();
    groups.ancestors().nth(2).expect("it is data/groups/GROUP").to_owned()
}

fn first_manifest(node: &Node) -> std::path::PathBuf {
    data_dir(node).join("snapshots/manifest-00000001")
}
