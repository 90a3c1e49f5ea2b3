//! An outage that is longer than the log, with real processes: production goes on, what changes is tracked, and a sync
//! span makes up for it when the replica is back; either side may die in the middle of it. (R06, W20)

mod support;

use std::path::Path;
use support::node::{GROUP, PATIENCE, Pair, Volume, number, started};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const VOLUME_BYTES: u64 = 16 << 20;
const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;

/// A volume as its one guest knows it.
struct Guest {
    image: Vec<u8>,
    random: Random,
}

impl Guest {
    fn new() -> Guest {
        Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(7) }
    }

    fn connect(pair: &Pair) -> Client {
        let address = Address::Unix(pair.east.nbd_socket());
        Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served")
    }

    /// Random blocks of a part of the volume, then a flush.
    fn write(&mut self, client: &mut Client, blocks: std::ops::Range<u64>, count: u64) {
        for _ in 0..count {
            let block = blocks.start + self.random.below(blocks.end - blocks.start);
            let range = block as usize * BLOCK..(block as usize + 1) * BLOCK;
            self.random.fill(&mut self.image[range.clone()]);
            client.write(range.start as u64, &self.image[range]).expect("production goes on");
        }
        client.flush().expect("production goes on");
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

fn catching_up(pair: &Pair) -> Option<(String, u64)> {
    let state = &pair.east.group()["replicas"][0]["catching_up"];
    (!state.is_null()).then(|| (state["state"].as_str().expect("a word").to_owned(), number(&state["bytes"])))
}

/// A pair whose agent has the smallest log that there can be.
fn small_log() -> (Pair, Scratch) {
    let scratch = Scratch::new();
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.east.set("log_limit", "\"256MiB\"");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    (pair, scratch)
}

#[test]
fn r06_w20_an_outage_longer_than_the_log() {
    let (mut pair, _scratch) = small_log();
    let mut guest = Guest::new();
    let mut client = Guest::connect(&pair);
    guest.write(&mut client, 0..BLOCKS, 500);
    let before = pair.wait_caught_up();
    let then = guest.image.clone();

    // West is gone. East writes more than its log holds, into a quarter of the volume.
    pair.west.kill();
    guest.write(&mut client, 0..BLOCKS / 4, 6_000);
    wait_until("what changes is tracked", PATIENCE, || catching_up(&pair).is_some());
    let (state, lacks) = catching_up(&pair).expect("it was just there");
    assert_eq!(state, "tracked");
    assert!(
        lacks <= VOLUME_BYTES / 4,
        "{lacks} bytes are said to have changed, in a quarter of {VOLUME_BYTES}"
    );
    let refused = pair.east.try_ask(["resync", GROUP, "west", "--yes"]);
    assert_eq!(refused.status.code(), Some(3), "what it lacks is known: {}", tool::said(&refused));

    // The agent dies while it tracks, and goes on.
    drop(client);
    pair.east.kill();
    pair.east.start();
    let mut client = Guest::connect(&pair);
    guest.write(&mut client, BLOCKS / 2..BLOCKS / 2 + 50, 500);

    // West is back; both die once more before the span can have ended.
    pair.west.start();
    wait_until("the span begins", PATIENCE, || catching_up(&pair).is_none_or(|(state, _)| state == "span"));
    pair.west.kill();
    pair.west.start();
    drop(client);
    pair.east.kill();
    pair.east.start();
    let mut client = Guest::connect(&pair);
    guest.write(&mut client, 0..BLOCKS, 300);
    wait_until("the span ends", PATIENCE, || catching_up(&pair).is_none());
    let latest = pair.wait_caught_up();

    // The point from before the outage is still there, and the newest is what the guest knows.
    for (at, image) in [(before, &then), (latest, &guest.image)] {
        let point = pair.west.mount_point(&format!("lsn:{at}"));
        assert!(read_all(&point.socket(), &point.export("data")) == *image, "the point at LSN {at}");
    }
    // What lies within the span is none, and the window says so.
    let points = pair.west.ask(["points", "list", GROUP]);
    let copied = points["window"]["retention"]["copied"].as_array().expect("a list");
    assert_eq!(copied.len(), 1, "{points}");
    let (from, to) = (copied[0]["from"].as_str().expect("a time"), copied[0]["to"].as_str().expect("a time"));
    assert!(from < to && to == points["spans"][0]["end"]["time"], "{points}");
    let text = tool::check(&mut pair.west.command(["status"]));
    let said = format!("but for {}", &from[.."2026-07-01T12:34:56".len()]);
    assert!(text.contains(&said) && text.contains("Z, copied as one\n"), "{text}");
    let within =
        pair.west.try_ask(["mount-point", GROUP, "--at", &format!("lsn:{}", before + 500), "--detach"]);
    assert_eq!(within.status.code(), Some(3), "{}", tool::said(&within));
    assert!(tool::said(&within).contains("sync span"), "{}", tool::said(&within));

    drop(client);
    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", "latest", "--yes"]);
    assert!(read_all(&pair.west.nbd_socket(), &format!("{GROUP}/data")) == guest.image, "after the failover");
    pair.west.stop();
    pair.west.verify_log("after the span and the failover");
}

/// A replica that has lost its disk comes in by a span as well, though the log does not reach back to its beginning.
#[test]
fn r04_a_replica_that_lost_its_disk() {
    let (mut pair, _scratch) = small_log();
    let mut guest = Guest::new();
    let mut client = Guest::connect(&pair);
    guest.write(&mut client, 0..BLOCKS / 8, 6_000);
    pair.wait_caught_up();
    pair.west.kill();
    std::fs::remove_dir_all(pair.west.group_dir()).expect("its disk is lost");
    guest.write(&mut client, 0..BLOCKS / 8, 200);
    pair.west.start();
    pair.wait_connected();
    wait_until("the replica is whole", PATIENCE, || {
        catching_up(&pair).is_none() && !pair.west.group()["window"].is_null()
    });
    pair.wait_caught_up();
    let point = pair.west.mount_point("latest");
    assert!(read_all(&point.socket(), &point.export("data")) == guest.image, "the newest point");
    drop(point);
    // Nothing is to be seen of this in a pair that never lost anything.
    let (other, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    assert!(catching_up(&other).is_none());
}
