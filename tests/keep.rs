//! Marks that outlive the window in which every write is a point, with real processes.

mod support;

use std::path::Path;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const VOLUME_BYTES: u64 = 4 << 20;
const BLOCK: usize = 1 << 20;
/// Retention goes by files of the log, which hold 64 MiB.
const WRITES: usize = 40;

fn read_all(socket: &Path, export: &str) -> Vec<u8> {
    let mut client =
        Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served");
    let mut image = vec![0; client.size() as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    image
}

/// A guest that knows what it wrote, and a mark behind each round of that.
struct Guest {
    image: Vec<u8>,
    random: Random,
    marks: Vec<(String, Vec<u8>)>,
}

impl Guest {
    fn round(&mut self, pair: &mut Pair) {
        let socket = Address::Unix(pair.east.nbd_socket());
        let mut client = Client::connect(&socket, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
        for _ in 0..WRITES {
            let block = self.random.below(VOLUME_BYTES / BLOCK as u64) as usize;
            let range = block * BLOCK..(block + 1) * BLOCK;
            let stamp = self.random.below(u64::MAX).to_le_bytes();
            for (at, part) in self.image[range.clone()].chunks_mut(4096).enumerate() {
                part.fill(stamp[at % 8] | 1);
            }
            client.write(range.start as u64, &self.image[range]).expect("it is written");
        }
        client.flush().expect("it is durable");
        let name = format!("round-{}", self.marks.len());
        pair.east.ask(["mark", GROUP, "--name", &name]);
        self.marks.push((name, self.image.clone()));
        pair.wait_caught_up();
    }

    fn image_of(&self, name: &str) -> &[u8] {
        let found = self.marks.iter().find(|(mark, _)| mark == name);
        &found.expect("it was set").1
    }
}

fn kept(west: &Node) -> Vec<String> {
    let points = west.ask(["points", "list", GROUP]);
    let marks = points["kept"].as_array().expect("a list");
    marks.iter().map(|mark| mark["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn marks_stay_behind_the_window_and_are_thinned() {
    let scratch = Scratch::new();
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", VOLUME_BYTES)]);
    pair.west.set("retention", "{ time = \"1s\" }");
    pair.west.set("keep", "{ named = 3, bytes = \"1GiB\" }");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let mut guest =
        Guest { image: vec![0; VOLUME_BYTES as usize], random: Random::new(5), marks: Vec::new() };
    for _ in 0..9 {
        guest.round(&mut pair);
    }
    wait_until("three marks are kept", PATIENCE, || {
        let kept = kept(&pair.west);
        kept.len() == 3 && kept[0] != "round-0"
    });
    // Nothing comes any more, so nothing moves any more.
    let mut last = kept(&pair.west);
    wait_until("retention is done", PATIENCE, || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = kept(&pair.west);
        std::mem::replace(&mut last, now.clone()) == now
    });
    let check = |west: &Node| {
        for name in &last {
            let point = west.mount_point(&format!("mark:{name}"));
            let seen = read_all(&point.socket(), &point.export("data"));
            assert!(seen == guest.image_of(name), "{name}");
        }
    };
    check(&pair.west);
    pair.west.kill();
    pair.west.start();
    pair.wait_connected();
    check(&pair.west);

    // As text, above the horizon.
    let list = tool::check(&mut pair.west.command(["points", "list", GROUP]));
    let line = list.lines().find(|line| line.contains(&format!("mark {}", last[0]))).expect("it is listed");
    assert!(line.contains("kept: "), "{list}");

    // It is taken out, and written to, as any point.
    let target = scratch.join("out.raw");
    let at = format!("mark:{}", last[1]);
    let disk = format!("{GROUP}/data");
    pair.west.ask(["restore", "disk", &disk, "--at", &at, "--to", target.to_str().expect("plain")]);
    assert!(std::fs::read(&target).expect("it was written") == guest.image_of(&last[1]));
    let points = pair.west.ask(["points", "list", GROUP]);
    let lsn = number(&points["kept"][0]["lsn"]);

    // But no failover goes there, and what was not kept is gone.
    let plan = pair.west.try_ask(["failover", GROUP, "--plan", "--to", &at]);
    assert_eq!(plan.status.code(), Some(3), "{}", tool::said(&plan));
    assert!(tool::said(&plan).contains("a mark kept behind the window"), "{}", tool::said(&plan));
    let beside = format!("lsn:{}", lsn + 1);
    let gone = pair.west.try_ask(["mount-point", GROUP, "--at", &beside, "--detach"]);
    assert_eq!(gone.status.code(), Some(3), "{}", tool::said(&gone));
    assert!(
        tool::said(&gone).contains(&format!("the nearest marks are LSN {lsn} and LSN")),
        "{}",
        tool::said(&gone)
    );
    let first = pair.west.try_ask(["mount-point", GROUP, "--at", "mark:round-0", "--detach"]);
    assert_eq!(first.status.code(), Some(3), "{}", tool::said(&first));
}
