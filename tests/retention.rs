//! What retention gives is told as it is, with real processes: how far back, up to when, and what is no point in between.

mod support;

use serde_json::Value;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number};
use support::{Scratch, tool, wait_until};
use transport::nbd::client::{Address, Client};

const DISK_BYTES: u64 = 8 << 20;

/// Writes a block, durably.
fn write(node: &Node, content: u8) {
    let address = Address::Unix(node.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    client.write(0, &[content; 4096]).expect("it is taken");
    client.flush().expect("it is durable");
}

/// What a replica says of its window.
fn window(node: &Node) -> Value {
    node.ask(["points", "list", GROUP])["window"].clone()
}

#[test]
fn retention_tells_how_far_it_reaches() {
    let scratch = Scratch::new();
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", DISK_BYTES)]);
    pair.west.set("retention", "{ time = \"2h\", bytes = \"1GiB\" }");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    write(&pair.east, 1);
    pair.wait_caught_up();
    wait_until("the replica knows that it has everything", PATIENCE, || {
        window(&pair.west)["retention"]["up_to_now"] == true
    });
    let before = window(&pair.west)["retention"].clone();
    assert_eq!((number(&before["limit_ms"]), number(&before["limit_bytes"])), (2 * 3_600_000, 1 << 30));
    assert_eq!(before["ends_by"], Value::Null, "nobody can know yet");
    write(&pair.east, 2);
    pair.wait_caught_up();
    let after = window(&pair.west)["retention"].clone();
    assert!(number(&after["reach_ms"]) > number(&before["reach_ms"]), "it grows with time: {after}");
    assert!(
        number(&after["used_bytes"]) > number(&before["used_bytes"]),
        "and with what is written: {after}"
    );
    let text = tool::check(&mut pair.west.command(["status"]));
    assert!(text.contains("any write of the last ") && text.contains("limit: 2h, or 1 GiB of log"), "{text}");

    // The primary is gone: what it wrote meanwhile is not here, so the window ends where it does.
    pair.east.kill();
    wait_until("the replica sees that it is alone", PATIENCE, || {
        window(&pair.west)["retention"]["up_to_now"] == false
    });
    let alone = window(&pair.west);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(window(&pair.west), alone, "it reaches no further, however long nobody writes");
    let text = tool::check(&mut pair.west.command(["points", "list", GROUP]));
    assert!(text.contains("what is newer has not come"), "{text}");
}

/// Writes so many MiB, over and over the same place.
fn fill(node: &Node, mib: u64) {
    let address = Address::Unix(node.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let content = vec![7; 1 << 20];
    for at in 0..mib {
        client.write((at << 20) % DISK_BYTES, &content).expect("it is taken");
    }
    client.flush().expect("it is durable");
}

#[test]
fn a_point_in_use_is_held_up_to_a_limit() {
    let scratch = Scratch::new();
    let mut pair = Pair::init(scratch.path(), &[Volume::new("data", DISK_BYTES)]);
    // A file of the log is 64 MiB long: one may be held, not two.
    pair.west.set("retention", "{ time = \"1s\", bytes = \"1GiB\" }");
    pair.west.set("pin_limit", "\"70MiB\"");
    pair.west.start();
    pair.east.start();
    pair.wait_connected();
    write(&pair.east, 1);
    let at = pair.wait_caught_up();
    let mounted = pair.west.ask(["mount-point", GROUP, "--at", &format!("lsn:{at}"), "--detach"]);
    assert_eq!(number(&mounted["pin"]["held_bytes"]), 0, "{mounted}");
    assert_eq!(number(&mounted["pin"]["limit_bytes"]), 70 << 20);

    fill(&pair.east, 100);
    let alarm = |node: &Node| node.group()["alarms"].to_string();
    wait_until("there is a warning", PATIENCE, || alarm(&pair.west).contains("of log beyond retention"));
    let mounts = pair.west.status()["mounts"].clone();
    let held = number(&mounts[0]["pin"]["held_bytes"]);
    assert!((50 << 20..=64 << 20).contains(&held), "one file: {mounts}");
    assert!(number(&window(&pair.west)["horizon"]["lsn"]) <= at, "it is not retired");

    fill(&pair.east, 64);
    wait_until("the mount is ended", PATIENCE, || {
        pair.west.status()["mounts"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(pair.west.last_words().contains("its point held too much of the log"));
    let latest = pair.wait_caught_up();
    wait_until("what it held is retired", PATIENCE, || {
        number(&window(&pair.west)["horizon"]["lsn"]) > at && alarm(&pair.west) == "[]"
    });
    let point = pair.west.mount_point(&format!("lsn:{latest}"));
    assert_eq!(point.lsn(), latest, "a new one can be mounted");
}
