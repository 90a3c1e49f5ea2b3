//! Disks that hold data already are protected where they are, while they are in use, with real processes: nothing is
//! copied on the primary, holes and zeros cost nothing on the wire, and whatever ends a copy, it goes on where it was.
//! (R24, R06)

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number, wait_whole};
use support::random::Random;
use support::{Scratch, tool};
use transport::nbd::client::{Address, Client};

const DATA_BYTES: u64 = 24 << 20;
const DISK_BYTES: u64 = 96 << 20;
const BLOCK: usize = 64 << 10;

/// A disk with data on its first quarter, written zeros behind it, a hole, and a last block.
fn old_disk(path: &Path, random: &mut Random) -> Vec<u8> {
    let mut image = vec![0; DISK_BYTES as usize];
    random.fill(&mut image[..DATA_BYTES as usize]);
    let last = DISK_BYTES as usize - 4096;
    random.fill(&mut image[last..]);
    let file = File::create(path).expect("a file");
    file.set_len(DISK_BYTES).expect("its length");
    file.write_all_at(&image[..2 * DATA_BYTES as usize], 0).expect("data and zeros");
    file.write_all_at(&image[last..], last as u64).expect("the last block");
    image
}

fn client(socket: &Path, export: &str) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served")
}

fn read_all(socket: &Path, export: &str) -> Vec<u8> {
    let mut client = client(socket, export);
    let mut image = vec![0; DISK_BYTES as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    image
}

fn newest(node: &Node, volume: &str) -> Vec<u8> {
    let point = node.mount_point("latest");
    read_all(&point.socket(), &point.export(volume))
}

/// Writes some blocks, one in eight of them with zeros.
fn change(node: &Node, volume: &str, image: &mut [u8], random: &mut Random, writes: u64) {
    let mut client = client(&node.nbd_socket(), &format!("{GROUP}/{volume}"));
    for write in 0..writes {
        let at = random.below(image.len() as u64 / BLOCK as u64) as usize * BLOCK;
        if write % 8 == 7 {
            image[at..at + BLOCK].fill(0);
        } else {
            random.fill(&mut image[at..at + BLOCK]);
        }
        client.write(at as u64, &image[at..at + BLOCK]).expect("it is written");
    }
    client.flush().expect("it is durable");
}

fn protect(node: &Node, disk: &Path, more: &[&str]) -> std::process::Output {
    let mut command = node.command(["protect", GROUP, "old", "--backing"]);
    tool::output(command.arg(disk).args(more))
}

#[test]
fn r24_a_disk_in_use_is_protected_where_it_is() {
    let (mut pair, scratch) = support::node::started(&[Volume::new("data", 1 << 20)]);
    pair.wait_connected();
    let disk = scratch.join("old.img");
    let mut random = Random::new(24);
    let mut image = old_disk(&disk, &mut random);
    let before = number(&pair.west.group()["log"]["used_bytes"]);

    let done = protect(&pair.east, &disk, &["--no-wait", "--json"]);
    assert!(done.status.success(), "{}", tool::said(&done));
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!((&told["export"], number(&told["size_bytes"])), (&format!("{GROUP}/old").into(), DISK_BYTES));
    // In use from the first moment; and the other side dies in the middle of it, and so does this one.
    change(&pair.east, "old", &mut image, &mut random, 40);
    pair.west.kill();
    change(&pair.east, "old", &mut image, &mut random, 40);
    pair.west.start();
    change(&pair.east, "old", &mut image, &mut random, 10);
    pair.east.kill();
    pair.east.start();
    assert!(read_all(&pair.east.nbd_socket(), &format!("{GROUP}/old")) == image, "nothing is lost here");
    change(&pair.east, "old", &mut image, &mut random, 10);

    let again = protect(&pair.east, &disk, &[]);
    assert!(again.status.success(), "asked again, it waits for the end: {}", tool::said(&again));
    wait_whole(&pair.east, &pair.west);
    assert!(newest(&pair.west, "old") == image, "the replica's newest point is the disk");
    // The data, what was written to it, and what a copy that was cut off had under way: neither the hole nor the zeros,
    // of which there are 71 MiB.
    let log = number(&pair.west.group()["log"]["used_bytes"]) - before;
    assert!(log < DATA_BYTES + 110 * BLOCK as u64 + 2 * (10 << 20), "{log} bytes of log");

    // And what was written since is a point of its own.
    let lsn = pair.wait_caught_up();
    let then = image.clone();
    change(&pair.east, "old", &mut image, &mut random, 20);
    wait_whole(&pair.east, &pair.west);
    let point = pair.west.mount_point(&format!("lsn:{lsn}"));
    assert!(read_all(&point.socket(), &point.export("old")) == then, "the point before is as it was");
    drop(point);

    // The other region takes over with it.
    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    assert!(read_all(&pair.west.nbd_socket(), &format!("{GROUP}/old")) == image);
}

/// A group that begins with data: what its configuration says before its first start.
#[test]
fn a_group_begins_with_a_disk_that_holds_data() {
    let scratch = Scratch::new();
    let disk = scratch.join("old.img");
    let mut random = Random::new(25);
    let mut image = old_disk(&disk, &mut random);
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", 1 << 20)]);
    let early = protect(&pair.east, &disk, &[]);
    assert!(early.status.success(), "no daemon is needed for it: {}", tool::said(&early));
    assert!(tool::said(&early).contains("next start"), "{}", tool::said(&early));
    pair.east.start();
    change(&pair.east, "old", &mut image, &mut random, 30);
    assert!(read_all(&pair.east.nbd_socket(), &format!("{GROUP}/old")) == image);
    pair.west.start();
    let early = pair.west.try_ask(["failover", GROUP, "--to", "latest", "--yes"]);
    change(&pair.east, "old", &mut image, &mut random, 30);
    if early.status.success() {
        panic!("a replica that has not everything yet took over: {}", tool::said(&early));
    }
    pair.wait_connected();
    wait_whole(&pair.east, &pair.west);
    assert!(newest(&pair.west, "old") == image);
}

#[test]
fn what_cannot_be_protected_is_refused() {
    let (pair, scratch) = support::node::started(&[Volume::new("data", 1 << 20)]);
    let disk = scratch.join("old.img");
    old_disk(&disk, &mut Random::new(26));
    let config = std::fs::read_to_string(pair.east.config()).expect("it is there");
    let refused = |output: std::process::Output, code: i32, words: &str| {
        let said = tool::said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    };
    refused(protect(&pair.east, &scratch.join("none.img"), &[]), 3, "No such file");
    refused(protect(&pair.east, scratch.path(), &[]), 3, "neither a file nor a block device");
    refused(protect(&pair.east, &disk, &["--size", "1GiB"]), 3, "less than");
    refused(protect(&pair.east, &disk, &["--size", "1000B"]), 3, "multiple of 512");
    let odd = scratch.join("odd.img");
    std::fs::write(&odd, [1; 1000]).expect("a file");
    refused(protect(&pair.east, &odd, &[]), 3, "multiple of 512");
    refused(protect(&pair.west, &disk, &[]), 3, "replica");
    let mut other = pair.east.command(["protect", "nobody", "old", "--backing"]);
    refused(tool::output(other.arg(&disk)), 2, "no group nobody");
    assert_eq!(std::fs::read_to_string(pair.east.config()).expect("there"), config, "nothing was changed");

    let done = protect(&pair.east, &disk, &["--no-wait"]);
    assert!(done.status.success(), "{}", tool::said(&done));
    let link: PathBuf = scratch.join("by-another-name.img");
    std::os::unix::fs::symlink(&disk, &link).expect("a link");
    let mut twice = pair.east.command(["protect", GROUP, "twice", "--backing"]);
    refused(tool::output(twice.arg(&link)), 3, "protected already");
    let elsewhere = scratch.join("elsewhere.img");
    old_disk(&elsewhere, &mut Random::new(27));
    refused(protect(&pair.east, &elsewhere, &[]), 3, "has a volume old already");
}
