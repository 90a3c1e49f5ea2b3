//! A failover that was to the wrong point is moved to another one, and what it set aside can be opened and taken out, with
//! real processes.

mod support;

use std::fs;
use std::path::Path;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const VOLUME_BYTES: u64 = 8 << 20;
const BLOCK: usize = 16 << 10;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;

fn connect(socket: &Path, export: &str) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served")
}

/// Writes some random blocks, and the same into what the volume should hold.
fn write(node: &Node, image: &mut [u8], random: &mut Random, count: u64) {
    let mut client = connect(&node.nbd_socket(), &format!("{GROUP}/data"));
    for _ in 0..count {
        let at = random.below(BLOCKS) as usize * BLOCK;
        random.fill(&mut image[at..at + BLOCK]);
        client.write(at as u64, &image[at..at + BLOCK]).expect("it is written");
    }
    client.flush().expect("it is durable");
    client.disconnect().expect("the client leaves");
}

fn read_all(socket: &Path, export: &str) -> Vec<u8> {
    let mut client = connect(socket, export);
    let mut image = vec![0; VOLUME_BYTES as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    client.disconnect().expect("the client leaves");
    image
}

fn served(node: &Node) -> Vec<u8> {
    read_all(&node.nbd_socket(), &format!("{GROUP}/data"))
}

fn point(node: &Node, at: &str) -> Vec<u8> {
    let point = node.mount_point(at);
    read_all(&point.socket(), &point.export("data"))
}

fn wait_follows(primary: &Node, replica: &Node) {
    wait_until("the old primary follows, and is whole", PATIENCE, || {
        let (from, to) = (primary.group(), replica.group());
        let lsn = number(&from["positions"]["durable"]);
        to["role"] == "replica"
            && from["replicas"][0]["catching_up"].is_null()
            && !to["window"].is_null()
            && number(&to["window"]["latest"]["lsn"]) == lsn
    });
}

fn no_clients(node: &Node) {
    wait_until("no client is connected", PATIENCE, || node.group()["volumes"][0]["connections"] == 0);
}

#[test]
fn a_failover_to_the_wrong_point_is_moved() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let (mut image, mut random) = (vec![0; VOLUME_BYTES as usize], Random::new(5));
    write(&pair.east, &mut image, &mut random, 100);
    let middle = (pair.wait_caught_up(), image.clone());
    write(&pair.east, &mut image, &mut random, 100);
    let last = (pair.wait_caught_up(), image.clone());
    pair.east.kill();

    // Too early a point was chosen; it was noticed when something had been written already.
    pair.west.ask(["failover", GROUP, "--to", &format!("lsn:{}", middle.0), "--yes"]);
    assert!(served(&pair.west) == middle.1, "west serves the point");
    let mut wrong = middle.1.clone();
    write(&pair.west, &mut wrong, &mut random, 30);
    let branch = format!("1-{}", middle.0);
    assert!(point(&pair.west, &format!("latest@{branch}")) == last.1, "what was set aside can be opened");
    assert!(served(&pair.west) == wrong);
    let unnamed = pair.west.try_ask(["mount-point", GROUP, "--at", &format!("lsn:{}", last.0)]);
    assert!(tool::said(&unnamed).contains(&format!("lsn:{}@{branch}", last.0)), "{}", tool::said(&unnamed));

    // Not under a client's feet.
    let to = format!("lsn:{}@{branch}", last.0);
    let client = connect(&pair.west.nbd_socket(), &format!("{GROUP}/data"));
    let plan = pair.west.ask(["failover", GROUP, "--to", &to, "--plan"]);
    assert_eq!(number(&plan["from"]["lsn"]), middle.0, "{plan}");
    assert_eq!(plan["branch"], branch.as_str(), "{plan}");
    let early = pair.west.try_ask(["failover", GROUP, "--to", &to, "--yes"]);
    assert_eq!(early.status.code(), Some(3), "{}", tool::said(&early));
    assert!(tool::said(&early).contains("NBD connections"), "{}", tool::said(&early));
    client.disconnect().expect("the client leaves");
    no_clients(&pair.west);

    let moved = pair.west.ask(["failover", GROUP, "--to", &to, "--yes"]);
    assert_eq!(number(&moved["to"]["lsn"]), last.0, "{moved}");
    assert!(served(&pair.west) == last.1, "west serves what it had set aside");
    let again = format!("latest@2-{}", middle.0);
    assert!(point(&pair.west, &again) == wrong, "what was written meanwhile is not lost either");
    pair.west.kill();
    pair.west.start();
    assert!(served(&pair.west) == last.1, "and does so behind a kill");
    assert!(point(&pair.west, &again) == wrong);

    // Back to a point of the line, and there it stays.
    no_clients(&pair.west);
    pair.west.ask(["failover", GROUP, "--to", &format!("lsn:{}", middle.0), "--yes"]);
    assert!(served(&pair.west) == middle.1, "west serves the first point again");
    let branches = pair.west.ask(["branches", "list", GROUP]);
    let ids: Vec<&str> =
        branches.as_array().expect("a list").iter().filter_map(|of| of["id"].as_str()).collect();
    assert_eq!(
        ids,
        [format!("2-{}", middle.0), format!("3-{}", middle.0)],
        "by the epochs that wrote their ends"
    );
    no_clients(&pair.west);
    pair.west.ask(["failover", GROUP, "--to", &format!("lsn:{}@3-{}", last.0, middle.0), "--yes"]);
    let mut image = last.1;
    write(&pair.west, &mut image, &mut random, 20);
    pair.west.ask(["failover", "commit", GROUP]);
    no_clients(&pair.west);
    let late = pair.west.try_ask(["failover", GROUP, "--to", &format!("lsn:{}", middle.0), "--yes"]);
    assert!(!late.status.success() && tool::said(&late).contains("committed"), "{}", tool::said(&late));
    assert!(served(&pair.west) == image);

    // The old primary is taken back to what was decided in the end.
    pair.east.start();
    pair.west.ask(["reprotect", GROUP]);
    wait_follows(&pair.west, &pair.east);
    assert!(point(&pair.east, "latest") == image, "east has what west serves");
    pair.east.stop();
    pair.west.stop();
    pair.east.verify_log("at the end");
    pair.west.verify_log("at the end");
}

#[test]
fn what_an_old_primary_wrote_alone_is_taken_out() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let (mut image, mut random) = (vec![0; VOLUME_BYTES as usize], Random::new(6));
    write(&pair.east, &mut image, &mut random, 100);
    let parted = pair.wait_caught_up();
    pair.west.stop();
    let mut alone = image.clone();
    write(&pair.east, &mut alone, &mut random, 40);
    {
        // What became zeros is something that was written, too.
        let mut client = connect(&pair.east.nbd_socket(), &format!("{GROUP}/data"));
        client.write_zeroes(0, 1 << 20).expect("zeros are written");
        alone[..1 << 20].fill(0);
        client.flush().expect("it is durable");
    }
    pair.east.kill();
    pair.west.start();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    let mut other = image.clone();
    write(&pair.west, &mut other, &mut random, 40);
    pair.east.start();
    wait_until("east is fenced", PATIENCE, || pair.east.group()["state"]["name"] == "fenced");
    pair.west.ask(["failover", "commit", GROUP]);
    pair.west.ask(["reprotect", GROUP]);
    wait_follows(&pair.west, &pair.east);

    let branches = pair.east.ask(["branches", "list", GROUP]);
    let id = branches[0]["id"].as_str().expect("a name").to_owned();
    let at = format!("latest@{id}");
    let gone = pair.east.try_ask(["mount-point", GROUP, "--at", &at]);
    assert_eq!(gone.status.code(), Some(3), "its disk has moved on: {}", tool::said(&gone));
    assert!(tool::said(&gone).contains("branches export"), "{}", tool::said(&gone));

    // The point is on west, the writes are on east.
    let onto = scratch.join("disk.img");
    let file = onto.display().to_string();
    pair.west.ask([
        "restore",
        "disk",
        &format!("{GROUP}/data"),
        "--at",
        &format!("lsn:{parted}"),
        "--to",
        &file,
    ]);
    assert!(fs::read(&onto).expect("an image") == image);
    let exported = pair.east.ask([
        "branches",
        "export",
        &format!("{GROUP}/data"),
        "--at",
        &at,
        "--onto",
        &file,
        "--yes",
    ]);
    assert!(fs::read(&onto).expect("an image") == alone, "it is what east served: {exported}");

    let small = scratch.join("small.img");
    fs::write(&small, [0; 4096]).expect("a file");
    let small = small.display().to_string();
    let wrong = pair.east.try_ask([
        "branches",
        "export",
        &format!("{GROUP}/data"),
        "--at",
        &at,
        "--onto",
        &small,
        "--yes",
    ]);
    assert_eq!(wrong.status.code(), Some(3), "{}", tool::said(&wrong));
    let line = pair.east.try_ask([
        "branches",
        "export",
        &format!("{GROUP}/data"),
        "--at",
        "latest",
        "--onto",
        &file,
        "--yes",
    ]);
    assert_eq!(line.status.code(), Some(2), "{}", tool::said(&line));
}
