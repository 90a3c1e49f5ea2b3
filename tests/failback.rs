//! A region is lost, and comes back: failover, the old primary taken back as a replica, and home again by the same
//! commands, with real processes. What travels is what was written, not the disks. (R09, R14)

mod support;

use std::path::Path;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const VOLUME_BYTES: u64 = 16 << 20;
const BLOCK: usize = 16 << 10;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;

/// What the one guest knows of the volume.
struct Guest {
    image: Vec<u8>,
    random: Random,
}

impl Guest {
    fn write(&mut self, node: &Node, blocks: std::ops::Range<u64>, count: u64) {
        let address = Address::Unix(node.nbd_socket());
        let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
        for _ in 0..count {
            let block = blocks.start + self.random.below(blocks.end - blocks.start);
            let range = block as usize * BLOCK..(block as usize + 1) * BLOCK;
            self.random.fill(&mut self.image[range.clone()]);
            client.write(range.start as u64, &self.image[range]).expect("it is written");
        }
        client.flush().expect("it is durable");
    }
}

fn read_all(socket: &Path, export: &str) -> Vec<u8> {
    let mut client =
        Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served");
    let mut image = vec![0; VOLUME_BYTES as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    image
}

fn served(node: &Node) -> Vec<u8> {
    read_all(&node.nbd_socket(), &format!("{GROUP}/data"))
}

/// The newest point of a replica.
fn newest(node: &Node) -> Vec<u8> {
    let point = node.mount_point("latest");
    read_all(&point.socket(), &point.export("data"))
}

/// Waits until `replica` is whole and has everything that `primary` has.
fn wait_follows(primary: &Node, replica: &Node) {
    wait_until("the old primary follows, and is whole", PATIENCE, || {
        let (from, to) = (primary.group(), replica.group());
        let lsn = number(&from["positions"]["durable"]);
        to["role"] == "replica"
            && to["state"]["name"] == "following"
            && from["replicas"][0]["catching_up"].is_null()
            && number(&to["positions"]["durable"]) == lsn
            && !to["window"].is_null()
            && number(&to["window"]["latest"]["lsn"]) == lsn
    });
}

/// Waits until a new replica has its first point: before that it cannot be asked to take the group.
#[track_caller]
fn wait_first_point(replica: &Node) {
    wait_until("the replica has its first point", PATIENCE, || !replica.group()["window"].is_null());
}

/// The loss that east tells of is what it wrote alone: 40 writes, and every block that differs is in a range.
fn assert_lost(loss: &serde_json::Value, alone: &Guest, before: &[u8], kept: bool) {
    assert_eq!(loss["branch"]["writes"], 40, "{loss}");
    assert_eq!(loss["branch"]["kept"], kept, "{loss}");
    assert_eq!(loss["writes"].as_array().expect("a list").len(), 40);
    let volume = &loss["volumes"][0];
    assert_eq!(number(&volume["bytes"]), 40 * BLOCK as u64);
    let ranges = volume["ranges"].as_array().expect("a list");
    for (block, (now, then)) in alone.image.chunks(BLOCK).zip(before.chunks(BLOCK)).enumerate() {
        let at = (block * BLOCK) as u64;
        let told = ranges.iter().any(|range| {
            let start = number(&range["offset"]);
            start <= at && at + BLOCK as u64 <= start + number(&range["bytes"])
        });
        assert_eq!(told, now != then, "block {block}");
    }
}

#[test]
fn r09_r14_a_region_comes_back_and_production_goes_home() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let mut guest = Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(11) };
    guest.write(&pair.east, 0..BLOCKS, 600);
    pair.wait_caught_up();

    // West is cut off; east writes what nobody else will ever have, and is gone.
    pair.west.stop();
    let mut alone = Guest { image: guest.image.clone(), random: Random::new(12) };
    alone.write(&pair.east, 0..BLOCKS / 8, 40);
    pair.east.kill();

    // West takes over, and writes.
    pair.west.start();
    let early = pair.west.try_ask(["reprotect", GROUP]);
    assert_eq!(early.status.code(), Some(3), "a replica takes nobody back: {}", tool::said(&early));
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    assert!(served(&pair.west) == guest.image, "west serves what it had");
    let guest_at_failover = guest.image.clone();
    guest.write(&pair.west, BLOCKS / 4..BLOCKS / 2, 50);

    // East is back, and fenced until somebody decides.
    pair.east.start();
    wait_until("east is fenced", PATIENCE, || pair.east.group()["state"]["name"] == "fenced");
    let told = pair.east.ask(["loss", GROUP]);
    assert_lost(&told, &alone, &guest_at_failover, false);
    let early = pair.west.try_ask(["reprotect", GROUP]);
    assert_eq!(early.status.code(), Some(3), "it is not committed: {}", tool::said(&early));
    assert!(tool::said(&early).contains("failover commit"), "{}", tool::said(&early));
    pair.west.ask(["failover", "commit", GROUP]);
    pair.west.ask(["reprotect", GROUP]);
    wait_follows(&pair.west, &pair.east);
    assert!(newest(&pair.east) == guest.image, "east's newest point is what west serves");
    let points = pair.east.ask(["points", "list", GROUP]);
    let branches = points["branches"].as_array().expect("a list");
    assert_eq!(branches.len(), 1, "what east wrote alone is kept: {points}");
    assert_lost(&pair.east.ask(["loss", GROUP]), &alone, &guest_at_failover, true);
    let listed = pair.east.ask(["branches", "list", GROUP]);
    assert_eq!(listed[0]["writes"], 40, "{listed}");
    let nothing = pair.west.try_ask(["loss", GROUP]);
    assert_eq!(nothing.status.code(), Some(3), "west lost nothing: {}", tool::said(&nothing));
    guest.write(&pair.west, 0..BLOCKS, 50);
    wait_follows(&pair.west, &pair.east);

    // Either dies once more on the way.
    pair.east.kill();
    guest.write(&pair.west, 0..BLOCKS, 20);
    pair.east.start();
    wait_follows(&pair.west, &pair.east);

    // And home again.
    pair.west.stop();
    pair.east.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    assert!(served(&pair.east) == guest.image, "east serves what west had");
    guest.write(&pair.east, 0..BLOCKS, 50);
    pair.west.start();
    pair.east.ask(["failover", "commit", GROUP]);
    pair.east.ask(["reprotect", GROUP]);
    wait_follows(&pair.east, &pair.west);
    assert!(newest(&pair.west) == guest.image, "west's newest point is what east serves");

    // East's disk is a plain one again, once all is on it.
    wait_until("the points of east's time as a replica are folded", PATIENCE, || {
        pair.east.group()["window"].is_null()
    });
    assert!(served(&pair.east) == guest.image, "east on its plain disk");
    guest.write(&pair.east, 0..BLOCKS, 20);
    wait_follows(&pair.east, &pair.west);
    wait_until("the plain disk alone holds everything", PATIENCE, || {
        std::fs::read(pair.east.group_dir().join("volumes/data.img")).expect("the plain disk") == guest.image
    });
    pair.east.stop();
    pair.west.stop();
    pair.east.verify_log("at the end");
    pair.west.verify_log("at the end");
}

#[test]
fn a_planned_failover_and_back() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let mut guest = Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(21) };
    guest.write(&pair.east, 0..BLOCKS, 300);

    let wrong = pair.east.try_ask(["failover", GROUP, "--planned", "--yes"]);
    assert_eq!(wrong.status.code(), Some(3), "the primary has it already: {}", tool::said(&wrong));

    // What is on its way is not waited for: it comes first.
    wait_first_point(&pair.west);
    let before = number(&pair.east.group()["positions"]["durable"]);
    let promotion = pair.west.ask(["failover", GROUP, "--planned", "--yes"]);
    assert!(number(&promotion["to"]["lsn"]) >= before, "{promotion}");
    assert!(served(&pair.west) == guest.image, "west serves all that was written on east");
    guest.write(&pair.west, 0..BLOCKS, 100);
    wait_follows(&pair.west, &pair.east);
    let points = pair.east.ask(["points", "list", GROUP]);
    assert_eq!(points["branches"], serde_json::json!([]), "nothing was left behind");
    assert_eq!(points["spans"], serde_json::json!([]), "and nothing was copied");

    // And home, with a death of the old primary right behind.
    pair.east.ask(["failover", GROUP, "--planned", "--yes"]);
    pair.west.kill();
    assert!(served(&pair.east) == guest.image, "east serves all that was written on west");
    guest.write(&pair.east, 0..BLOCKS, 50);
    pair.west.start();
    wait_follows(&pair.east, &pair.west);
    assert!(newest(&pair.west) == guest.image, "west's newest point is what east serves");

    // Without the primary there is nobody to ask.
    pair.east.kill();
    wait_until("west has noticed", PATIENCE, || pair.west.group()["primary"]["link"]["state"] != "connected");
    let refused = pair.west.try_ask(["failover", GROUP, "--planned", "--yes"]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
    assert!(tool::said(&refused).contains("--to latest"), "{}", tool::said(&refused));
    pair.west.stop();
}

/// An old primary that nobody would dial must not be left without a replica.
#[test]
fn a_planned_failover_to_a_node_without_replicas_is_refused() {
    let (pair, _scratch) = support::node::started(&[Volume::new("data", VOLUME_BYTES)]);
    let refused = pair.west.try_ask(["failover", GROUP, "--planned", "--yes"]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
    assert!(tool::said(&refused).contains("`replicas`"), "{}", tool::said(&refused));
    assert_eq!(pair.east.group()["state"]["name"], "serving", "nothing was changed");
}

/// A guest that does not stop for it: what it was told is on west, and no error came before everything had moved.
#[test]
fn a_planned_failover_under_load_loses_nothing() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let writer = std::thread::spawn(move || {
        let (mut image, mut random) = (vec![0; VOLUME_BYTES as usize], Random::new(31));
        let mut count = 0_u64;
        loop {
            let block = random.below(BLOCKS) as usize * BLOCK..;
            let range = block.start..block.start + BLOCK;
            let before = image[range.clone()].to_vec();
            random.fill(&mut image[range.clone()]);
            let written = client.write(range.start as u64, &image[range.clone()]);
            if written.and_then(|()| client.flush()).is_err() {
                // The one that was not answered: on west if it was logged before the decision.
                return (image, range, before, count);
            }
            count += 1;
        }
    });
    wait_until("the guest is at work", PATIENCE, || number(&pair.east.group()["positions"]["durable"]) > 200);
    wait_first_point(&pair.west);
    let promotion = pair.west.ask(["failover", GROUP, "--planned", "--yes"]);
    let (mut image, range, before, count) = writer.join().expect("the guest ends when east serves no more");
    assert!(count > 50, "{count} writes were answered");
    let found = served(&pair.west);
    if found[range.clone()] == before {
        image[range].copy_from_slice(&before);
    }
    assert!(found == image, "west has each of the {count} writes that were answered: {promotion}");
    let east = pair.east.ask(["branches", "list", GROUP]);
    assert_eq!(east, serde_json::json!([]), "nothing was left out");
}

/// W29, R10: a primary whose directory is put back to an older state (a snapshot of its VM, a copy) is found out by its
/// replica, also once its log has grown past that again; the replica keeps what it has, and can be failed over to.
#[test]
fn w29_r10_a_primary_that_is_put_back_to_an_older_state() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let mut guest = Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(41) };
    guest.write(&pair.east, 0..BLOCKS, 50);
    pair.wait_caught_up();
    pair.east.stop();
    let older = scratch.path().join("older");
    copy_tree(&pair.east.group_dir(), &older);
    let old_image = guest.image.clone();
    pair.east.start();
    pair.wait_connected();
    guest.write(&pair.east, 0..BLOCKS, 50);
    let lsn = pair.wait_caught_up();
    pair.east.stop();
    std::fs::remove_dir_all(pair.east.group_dir()).expect("the newer state");
    copy_tree(&older, &pair.east.group_dir());

    // It ends below what west holds, and says so; then it grows past that, with other records.
    pair.east.start();
    let alarms = |pair: &Pair| pair.east.group()["replicas"][0]["alarms"].to_string();
    wait_until("east says that its disk has lost what was durable", PATIENCE, || {
        alarms(&pair).contains("this disk has lost what was durable")
    });
    let mut other = Guest { image: old_image, random: Random::new(42) };
    other.write(&pair.east, 0..BLOCKS, 120);
    wait_until("east says that the two are different", PATIENCE, || {
        alarms(&pair).contains("different record")
    });
    assert_eq!(pair.west.position("durable"), lsn, "nothing was taken from it");
    assert!(newest(&pair.west) == guest.image, "west's newest point is the last of the true history");

    // R10: the replica takes over, in an epoch that the old one can never use.
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    wait_until("east is fenced", PATIENCE, || pair.east.group()["state"]["name"] == "fenced");
    assert!(served(&pair.west) == guest.image, "west serves the true history");
}

/// Copies a folder as it is.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file");
        }
    }
}
