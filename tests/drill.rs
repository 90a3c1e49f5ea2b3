//! Recovery points that are written to: writable mounts, drills and bisect, with real processes. Nothing of it reaches
//! the replica's log, base images or points, whatever dies in between. (R15)

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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

/// The files below a folder, but for the catalog, which is made anew from the others.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.extend((!path.ends_with("catalog")).then_some(path));
            } else {
                found.insert(path.clone(), std::fs::read(path).expect("a file"));
            }
        }
    }
    found
}

/// The same once the replica has nothing left to do.
fn files_at_rest(node: &Node) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut last = files(&node.group_dir());
    let mut same = 0;
    wait_until("the replica is at rest", PATIENCE, || {
        let now = files(&node.group_dir());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same > 20
    });
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
    assert!(files_at_rest(&pair.west) == before, "log, base images and state are what they were");
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
