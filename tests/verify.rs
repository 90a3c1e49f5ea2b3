//! Online verification with real processes: a byte that rots in a replica's log is found while guests write, told with
//! its place, left alone if that is wanted, and else sent again.

mod support;

use std::os::unix::fs::FileExt;
use support::node::{GROUP, PATIENCE, Volume, number, started};
use support::random::Random;
use support::{tool, wait_until};
use transport::nbd::client::{Address, Client};

const VOLUME_BYTES: u64 = 16 << 20;
const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = VOLUME_BYTES / BLOCK as u64;
/// The block that rots; guests leave its part of the volume alone from then on.
const ROTTEN: usize = 3;

#[test]
fn what_has_rotted_is_found_told_and_sent_again() {
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut image = vec![0; VOLUME_BYTES as usize];
    let mut random = Random::new(11);
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let mut write = |image: &mut Vec<u8>, blocks: std::ops::Range<u64>| {
        for block in blocks {
            let range = block as usize * BLOCK..(block as usize + 1) * BLOCK;
            random.fill(&mut image[range.clone()]);
            client.write(range.start as u64, &image[range]).expect("it is taken");
        }
        client.flush().expect("it is durable");
    };
    write(&mut image, 0..BLOCKS / 2);
    pair.wait_caught_up();
    let well = pair.east.ask(["verify", GROUP, "--wait"]);
    assert_eq!(well["replicas"][0]["mismatched"], 0, "{well}");
    assert!(number(&well["replicas"][0]["same"]) >= 2, "{well}");

    // One byte, in the middle of a record of the replica's log.
    let wanted = &image[ROTTEN * BLOCK..(ROTTEN + 1) * BLOCK];
    let found = std::fs::read_dir(pair.west.group_dir().join("log")).expect("its log").find_map(|entry| {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        bytes.windows(BLOCK).position(|window| window == wanted).map(|at| (path, at))
    });
    let (path, at) = found.expect("the record is there");
    let file = std::fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64 + 1_000).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x20], at as u64 + 1_000).expect("a byte");

    let told = pair.east.try_ask(["verify", GROUP, "--no-repair", "--wait"]);
    assert_eq!(told.status.code(), Some(4), "{}", tool::said(&told));
    let open = pair.west.group()["checks"]["open"].clone();
    assert_eq!(open.as_array().expect("a list").len(), 1, "{open}");
    let (offset, len) = (number(&open[0]["offset_bytes"]), number(&open[0]["len_bytes"]));
    assert!((offset..offset + len).contains(&((ROTTEN * BLOCK) as u64)), "{open}");
    assert_eq!((&open[0]["volume"], &open[0]["repair"]), (&"data".into(), &"not_wanted".into()), "{open}");
    assert!(open[0]["error"].as_str().is_some_and(|error| error.contains("checksum")), "{open}");

    let repaired = pair.east.try_ask(["verify", GROUP, "--wait"]);
    assert_eq!(repaired.status.code(), Some(4), "{}", tool::said(&repaired));
    write(&mut image, BLOCKS / 2..BLOCKS);
    wait_until("it is well again", PATIENCE, || {
        let checks = &pair.west.group()["checks"];
        checks["open"].as_array().is_some_and(Vec::is_empty) && number(&checks["repaired"]) == 1
    });
    let latest = pair.wait_caught_up();
    pair.east.ask(["verify", GROUP, "--wait"]);
    let point = pair.west.mount_point(&format!("lsn:{latest}"));
    let mut client = Client::connect(&Address::Unix(point.socket()), &point.export("data"), PATIENCE)
        .expect("it is served");
    let mut seen = vec![0; VOLUME_BYTES as usize];
    for (index, part) in seen.chunks_mut(1 << 20).enumerate() {
        client.read((index << 20) as u64, part).expect("it can be read");
    }
    assert!(seen == image, "the newest point is what the guest has written");
    let refused = pair.west.try_ask(["verify", GROUP]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
}
