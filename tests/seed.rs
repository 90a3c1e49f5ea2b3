//! A replica that was given a copy of a disk by other means, with real processes: only what differs travels, whatever
//! the copy holds, and whatever becomes of it. (R24)

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use support::node::{GROUP, PATIENCE, Pair, Volume, number, wait_whole};
use support::random::Random;
use support::relay::Relay;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const MIB: usize = 1 << 20;
const DISK_BYTES: usize = 192 * MIB;
const DATA_BYTES: usize = 160 * MIB;

/// A pair with a relay in between that counts, a disk on one side, and a copy of it on the other.
fn prepared(scratch: &Scratch, random: &mut Random) -> (Pair, Relay, Vec<u8>) {
    let pair = Pair::init(scratch.path(), &[Volume::new("data", 1 << 20)]);
    let relay = Relay::to(pair.west.listens());
    pair.east.set("address", &format!("\"{}\"", relay.address));
    let mut image = vec![0; DISK_BYTES];
    random.fill(&mut image[..DATA_BYTES]);
    // Zeros here and there, which are data to no one.
    for at in (0..DATA_BYTES).step_by(7 * MIB) {
        image[at + 8_192..at + 20_480].fill(0);
    }
    for name in ["disk.img", "copy.img"] {
        write(&scratch.join(name), &image);
    }
    (pair, relay, image)
}

fn write(path: &Path, image: &[u8]) {
    let file = File::create(path).expect("a file");
    file.set_len(image.len() as u64).expect("its length");
    file.write_all_at(&image[..DATA_BYTES], 0).expect("its data");
}

fn seed(pair: &Pair, image: &Path) -> Output {
    let mut command = pair.west.command(["protect", GROUP, "old", "--seed-from"]);
    tool::output(command.arg(image))
}

fn protect(pair: &Pair, disk: &Path) {
    let mut command = pair.east.command(["protect", GROUP, "old", "--no-wait", "--backing"]);
    tool::check(command.arg(disk));
}

fn newest(pair: &Pair) -> Vec<u8> {
    let point = pair.west.mount_point("latest");
    let mut client =
        Client::connect(&Address::Unix(point.socket()), &point.export("old"), PATIENCE).expect("served");
    let mut image = vec![0; DISK_BYTES];
    for (index, part) in image.chunks_mut(MIB).enumerate() {
        client.read((index * MIB) as u64, part).expect("it can be read");
    }
    image
}

/// What the replica says of its seed, once it knows the volume.
fn told(pair: &Pair) -> Option<serde_json::Value> {
    let group = pair.west.group();
    let volume = group["volumes"].as_array()?.iter().find(|volume| volume["name"] == "old")?;
    Some(volume["seed"].clone())
}

fn wait_used(pair: &Pair) {
    let used = || told(pair).is_some_and(|seed| number(&seed["used_bytes"]) > 0);
    wait_until("some of the copy was made use of", PATIENCE, used);
}

/// The copy is of yesterday: a sixteenth of it differs. Guests write meanwhile, and the replica dies in the middle.
#[test]
fn only_what_differs_travels() {
    let scratch = Scratch::new();
    let mut random = Random::new(61);
    let (mut pair, relay, mut image) = prepared(&scratch, &mut random);
    let copy = OpenOptions::new().write(true).open(scratch.join("copy.img")).expect("it is there");
    let mut differs = 0;
    for piece in (0..DATA_BYTES / (256 << 10)).step_by(16) {
        copy.write_all_at(b"yesterday's", (piece * (256 << 10) + 4_000) as u64).expect("it is changed");
        differs += 256 << 10;
    }
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    // In the middle of a session.
    let said = tool::said(&seed(&pair, &scratch.join("copy.img")));
    assert!(said.contains("192MiB") || said.contains("192 MiB"), "{said}");
    let before = relay.bytes().0;
    protect(&pair, &scratch.join("disk.img"));
    let mut client =
        Client::connect(&Address::Unix(pair.east.nbd_socket()), &format!("{GROUP}/old"), PATIENCE)
            .expect("served");
    for _ in 0..64 {
        let at = random.below((DISK_BYTES / 4_096) as u64) as usize * 4_096;
        random.fill(&mut image[at..at + 4_096]);
        client.write(at as u64, &image[at..at + 4_096]).expect("it is written");
    }
    client.flush().expect("it is durable");
    wait_used(&pair);
    pair.west.kill();
    pair.west.start();
    wait_whole(&pair.east, &pair.west);
    let travelled = (relay.bytes().0 - before) as usize;
    println!(
        "{} MiB of data, {} MiB in pieces that differ: {} MiB travelled",
        DATA_BYTES / MIB,
        differs / MIB,
        travelled / MIB
    );
    // What differs; what guests wrote, and the pieces that they wrote in; and what was on its way when copies began
    // before the copy was looked at, and when the replica died.
    let most = differs + 64 * (256 << 10) / 4 + 2 * 24 * MIB;
    assert!(travelled < most, "{travelled} bytes, {most} expected at most");
    assert!(newest(&pair) == image, "the replica's newest point is the disk");
    assert!(told(&pair).is_some_and(|seed| seed["fault"].is_null()));
    drop(client);
    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
}

/// A copy of something else, one that is too short, and one that is written to: the disk arrives all the same.
#[test]
fn a_copy_of_something_else_does_no_harm() {
    let scratch = Scratch::new();
    let mut random = Random::new(62);
    let (mut pair, _relay, image) = prepared(&scratch, &mut random);
    let mut other = vec![0; DISK_BYTES / 2];
    random.fill(&mut other);
    File::create(scratch.join("copy.img")).expect("a file").write_all_at(&other, 0).expect("written");
    // Before there is a daemon; named in the configuration.
    let early = seed(&pair, &scratch.join("copy.img"));
    assert!(
        early.status.success() && tool::said(&early).contains("landfall replica"),
        "{}",
        tool::said(&early)
    );
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    protect(&pair, &scratch.join("disk.img"));
    wait_whole(&pair.east, &pair.west);
    assert!(newest(&pair) == image);
    assert_eq!(told(&pair).map(|seed| number(&seed["used_bytes"])), Some(0));
}

/// A copy that changes while it is used is found out, is left alone, and says so.
#[test]
fn a_copy_that_changes_is_left_alone() {
    let scratch = Scratch::new();
    let mut random = Random::new(63);
    let (mut pair, _relay, image) = prepared(&scratch, &mut random);
    let early = seed(&pair, &scratch.join("copy.img"));
    assert!(early.status.success(), "{}", tool::said(&early));
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    protect(&pair, &scratch.join("disk.img"));
    wait_used(&pair);
    let copy = OpenOptions::new().write(true).open(scratch.join("copy.img")).expect("it is there");
    for piece in 0..DATA_BYTES / (256 << 10) {
        copy.write_all_at(b"changed", (piece * (256 << 10)) as u64).expect("it is changed");
    }
    wait_whole(&pair.east, &pair.west);
    assert!(newest(&pair) == image);
    let seed = told(&pair).expect("the volume is there");
    // Unless all of it was used before.
    if number(&seed["used_bytes"]) < DATA_BYTES as u64 - 8 * MIB as u64 {
        assert!(seed["fault"].as_str().is_some_and(|fault| fault.contains("written to")), "{seed}");
    }
}

#[test]
fn what_is_no_seed_is_refused() {
    let scratch = Scratch::new();
    let mut random = Random::new(64);
    let (mut pair, _relay, _) = prepared(&scratch, &mut random);
    pair.west.start();
    pair.east.start();
    let config = |pair: &Pair| std::fs::read_to_string(pair.west.config()).expect("it is there");
    let before = config(&pair);
    let refused = |output: Output, code: i32, words: &str| {
        let said = tool::said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    };
    refused(seed(&pair, &scratch.join("none.img")), 3, "No such file");
    refused(seed(&pair, scratch.path()), 3, "neither a file nor a block device");
    let mut here = pair.east.command(["protect", GROUP, "old", "--seed-from"]);
    refused(tool::output(here.arg(scratch.join("copy.img"))), 3, "a seed is a replica's");
    let mut both = pair.west.command(["protect", GROUP, "old", "--backing", "/dev/null", "--seed-from"]);
    refused(tool::output(both.arg(scratch.join("copy.img"))), 2, "cannot be used with");
    let mut none = pair.west.command(["protect", GROUP, "old"]);
    refused(tool::output(&mut none), 2, "--backing");
    let mut nobody = pair.west.command(["protect", "nobody", "old", "--seed-from"]);
    refused(tool::output(nobody.arg(scratch.join("copy.img"))), 2, "has no group");
    assert_eq!(config(&pair), before, "what is refused is not written");
}
