//! A volume that grows while it is in use, and one that shrinks, with real processes: points keep the sizes that they had,
//! and a failover has the size of its point.

mod support;

use std::path::Path;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number};
use support::random::Random;
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const SMALL: u64 = 4 << 20;
const LARGE: u64 = 12 << 20;

fn connect(socket: &Path, export: &str) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), export, PATIENCE).expect("it is served")
}

fn live(node: &Node) -> Client {
    connect(&node.nbd_socket(), &format!("{GROUP}/data"))
}

fn write_some(client: &mut Client, image: &mut [u8], random: &mut Random) {
    for _ in 0..20 {
        let at = random.below(image.len() as u64 / 4096) as usize * 4096;
        random.fill(&mut image[at..at + 4096]);
        client.write(at as u64, &image[at..at + 4096]).expect("it is written");
    }
    client.flush().expect("it is durable");
}

fn read_all(mut client: Client) -> Vec<u8> {
    let mut image = vec![0; client.size() as usize];
    for (index, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    client.disconnect().expect("the client leaves");
    image
}

fn point(node: &Node, at: &str) -> Vec<u8> {
    let point = node.mount_point(at);
    read_all(connect(&point.socket(), &point.export("data")))
}

fn size_of(node: &Node) -> u64 {
    number(&node.group()["volumes"][0]["size_bytes"])
}

#[test]
fn a_volume_grows_and_shrinks() {
    let scratch = Scratch::new();
    let mut pair = Pair::init_symmetric(scratch.path(), &[Volume::new("data", SMALL)]);
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    let (mut image, mut random) = (vec![0; SMALL as usize], Random::new(3));
    let mut client = live(&pair.east);
    write_some(&mut client, &mut image, &mut random);
    let small = (pair.wait_caught_up(), image.clone());

    // While it is in use: whoever connects anew has the new size, and the old connection goes on.
    let volume = format!("{GROUP}/data");
    let resized = pair.east.ask(["resize", &volume, "--size", "12MiB"]);
    assert_eq!(
        (number(&resized["before_bytes"]), number(&resized["size_bytes"])),
        (SMALL, LARGE),
        "{resized}"
    );
    image.resize(LARGE as usize, 0);
    write_some(&mut client, &mut image[..SMALL as usize], &mut random);
    client.disconnect().expect("the client leaves");
    let mut client = live(&pair.east);
    assert_eq!(client.size(), LARGE);
    write_some(&mut client, &mut image, &mut random);
    let large = (pair.wait_caught_up(), image.clone());
    assert_eq!((size_of(&pair.east), size_of(&pair.west)), (LARGE, LARGE));
    assert!(point(&pair.west, &format!("lsn:{}", small.0)) == small.1, "the older point has its size");
    assert!(point(&pair.west, &format!("lsn:{}", large.0)) == large.1);

    // Not smaller while somebody is there.
    let early = pair.east.try_ask(["resize", &volume, "--size", "2MiB", "--yes"]);
    assert_eq!(early.status.code(), Some(3), "{}", tool::said(&early));
    assert!(tool::said(&early).contains("NBD connections"), "{}", tool::said(&early));
    client.disconnect().expect("the client leaves");
    wait_until("nobody is connected", PATIENCE, || pair.east.group()["volumes"][0]["connections"] == 0);
    pair.east.ask(["resize", &volume, "--size", "2MiB", "--yes"]);
    pair.east.ask(["resize", &volume, "--size", "4MiB"]);
    image.truncate(2 << 20);
    image.resize(SMALL as usize, 0);
    assert!(read_all(live(&pair.east)) == image, "what it lost does not come back");
    pair.wait_caught_up();
    assert!(point(&pair.west, &format!("lsn:{}", large.0)) == large.1, "but for points from before");
    assert!(point(&pair.west, "latest") == image);

    for (who, arguments, code) in [
        (&pair.west, ["resize", &volume, "--size", "8MiB"], 3),
        (&pair.east, ["resize", "db/nothing", "--size", "8MiB"], 3),
        (&pair.east, ["resize", &volume, "--size", "5000000"], 3),
        (&pair.east, ["resize", &volume, "--size", "many"], 2),
    ] {
        let refused = who.try_ask(arguments);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {}", tool::said(&refused));
    }

    // The configuration says the same, and a restart finds nothing to say about it.
    let config = std::fs::read_to_string(pair.east.config()).expect("a configuration");
    assert!(config.contains("size = \"4MiB\""), "{config}");
    pair.east.kill();
    pair.east.start();
    assert!(read_all(live(&pair.east)) == image);
    pair.wait_connected();
    pair.wait_caught_up();

    // A failover to a point has the size of that time.
    pair.east.kill();
    pair.west.ask(["failover", GROUP, "--to", &format!("lsn:{}", large.0), "--yes"]);
    assert!(read_all(live(&pair.west)) == large.1, "west serves the larger volume");
    pair.west.ask(["failover", "commit", GROUP]);
    pair.west.ask(["reprotect", GROUP]);
    pair.east.start();
    wait_until("east follows", PATIENCE, || {
        let (from, to) = (pair.west.group(), pair.east.group());
        to["role"] == "replica"
            && from["replicas"][0]["catching_up"].is_null()
            && !to["window"].is_null()
            && to["window"]["latest"]["lsn"] == from["positions"]["durable"]
    });
    assert!(point(&pair.east, "latest") == large.1);
}
