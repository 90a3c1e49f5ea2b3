//! libnbd's and qemu's tools on volumes and recovery points.

mod support;

use std::path::Path;
use support::node::{Node, Volume, started};
use support::random::Random;
use support::tool;

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 64 * MIB;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A disk image with data at its start, in its middle and at its end, and holes between.
fn image(path: &Path, bytes: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).expect("the folder is ours");
    file.set_len(bytes).expect("it is sparse");
    let mut random = Random::new(7);
    for (offset, len) in
        [(0, 3 * MIB), (bytes / 2 - 4096, 8 << 10), (bytes / 2 + 5 * MIB, MIB), (bytes - MIB, MIB)]
    {
        let mut data = vec![0; len as usize];
        random.fill(&mut data);
        file.write_all_at(&data, offset).expect("there is room");
    }
}

/// Runs commands on a volume.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    qemu_io_as(&[], uri, commands)
}

/// Runs commands on a recovery point, which qemu opens only if it is told that it cannot be written.
fn qemu_io_on_point(uri: &str, commands: &[&str]) -> String {
    qemu_io_as(&["-r"], uri, commands)
}

fn qemu_io_as(options: &[&str], uri: &str, commands: &[&str]) -> String {
    let mut command = tool::command("qemu-io");
    command.args(["-f", "raw"]).args(options);
    for part in commands {
        command.args(["-c", part]);
    }
    let output = tool::output(command.arg(uri));
    let said = tool::said(&output);
    // It reports a mismatch in words alone.
    assert!(output.status.success() && !said.contains("Pattern verification failed"), "{command:?}: {said}");
    said
}

fn same(a: &Path, b: &Path) {
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    assert!(read(a) == read(b), "{} and {} differ", a.display(), b.display());
}

/// N05, N06, N20: what a client is told about an export.
#[test]
fn nbdinfo_learns_what_it_needs() {
    if !tool::has(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let (pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES), Volume::new("wal", MIB)]);
    let uri = pair.east.uri("data");
    for feature in ["flush", "fua", "trim", "zero", "fast-zero", "multi-conn", "df", "cache"] {
        let output = tool::output(tool::command("nbdinfo").args(["--can", feature, &uri]));
        assert!(output.status.success(), "can {feature}: {}", tool::said(&output));
    }
    assert!(!tool::output(tool::command("nbdinfo").args(["--is", "readonly", &uri])).status.success());
    assert_eq!(tool::run("nbdinfo", ["--size", &uri]).trim(), VOLUME_BYTES.to_string());

    let list = tool::run("nbdinfo", ["--list", "--json", &support::node::uri(&pair.east.nbd_socket(), "")]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("nbdinfo writes JSON");
    let exports = list["exports"].as_array().expect("a list");
    let mut names = exports.iter().filter_map(|export| export["export-name"].as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    assert_eq!(names, ["db/data", "db/wal"]);

    qemu_io(&uri, &["write -P 1 8M 2M", "flush"]);
    let map = tool::run("nbdinfo", ["--map", "--json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("nbdinfo writes JSON");
    let mut data = 0;
    for extent in map.as_array().expect("a list") {
        if extent["type"] == 0 {
            data += extent["length"].as_u64().expect("a length");
        }
    }
    assert!((2 * MIB..VOLUME_BYTES / 2).contains(&data), "{data} bytes are said to be data: {map}");
}

/// nbdcopy onto a volume and off it, and off the replica; holes stay holes.
#[test]
fn nbdcopy_goes_both_ways() {
    if !tool::has(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let [from, back, off] = ["from", "back", "off"].map(|name| scratch.join(name));
    image(&from, VOLUME_BYTES);
    let uri = pair.east.uri("data");
    tool::run("nbdcopy", ["--flush", "--destination-is-zero", text(&from), &uri]);
    tool::run("nbdcopy", [&uri, text(&back)]);
    same(&from, &back);
    pair.wait_caught_up();
    let point = pair.west.mount_point("latest");
    tool::run("nbdcopy", [&point.uri("data"), text(&off)]);
    same(&from, &off);
    drop(point);

    // Over old content: without the promise of zeros the holes have to be written.
    let other = scratch.join("other");
    image(&other, VOLUME_BYTES / 2);
    std::fs::File::options()
        .write(true)
        .open(&other)
        .and_then(|file| file.set_len(VOLUME_BYTES))
        .expect("it grows");
    tool::run("nbdcopy", ["--flush", text(&other), &uri]);
    tool::run("nbdcopy", [&uri, text(&back)]);
    same(&other, &back);
}

/// qemu's image tool: a conversion onto a volume, compared off the volume and off the replica's point.
#[test]
fn qemu_img_converts_and_compares() {
    if !tool::has(&["qemu-img"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let [raw, qcow] = ["from.raw", "from.qcow2"].map(|name| scratch.join(name));
    image(&raw, VOLUME_BYTES);
    tool::run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow)]);
    let uri = pair.east.uri("data");
    tool::run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", text(&qcow), &uri]);
    let compare = |uri: &str| {
        tool::run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", text(&qcow), uri]);
    };
    compare(&uri);
    let lsn = pair.wait_caught_up();
    let at = format!("lsn:{lsn}");
    compare(&pair.west.mount_point(&at).uri("data"));

    // The point stays what it was while the volume goes on.
    qemu_io(&uri, &["write -P 0x5a 1M 64k", "flush"]);
    pair.wait_caught_up();
    compare(&pair.west.mount_point(&at).uri("data"));
    let latest = pair.west.mount_point("latest");
    qemu_io_on_point(&latest.uri("data"), &["read -P 0x5a 1M 64k"]);
    let mut differ = tool::command("qemu-img");
    differ.args(["compare", "-f", "qcow2", "-F", "raw", text(&qcow), &latest.uri("data")]);
    assert_eq!(tool::output(&mut differ).status.code(), Some(1));
}

/// N09, N11, N18, N21, N22: single requests of every kind from qemu's block layer.
#[test]
fn qemu_io_reads_what_it_wrote() {
    if !tool::has(&["qemu-io"]) {
        return;
    }
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let uri = pair.east.uri("data");
    qemu_io(
        &uri,
        &[
            "write -P 0x11 0 64k",
            "write -f -P 0x22 1M 4k",
            "write -P 0x33 5632 512",
            "aio_write -P 0x44 2M 1M",
            "aio_write -P 0x55 3M 1M",
            "aio_flush",
            "flush",
            "read -P 0x11 0 5632",
            "read -P 0x33 5632 512",
            "read -P 0x11 6144 59392",
            "read -P 0x22 1M 4k",
            "read -P 0x44 2M 1M",
            "read -P 0x55 3M 1M",
            "write -z 2M 512k",
            "write -z -u 3M 4k",
            "discard 3584k 64k",
            "flush",
            "read -P 0 2M 512k",
            "read -P 0x44 2560k 512k",
            "read -P 0 3M 4k",
            "read -P 0x55 3076k 508k",
            "read -P 0x55 3648k 448k",
        ],
    );
    pair.wait_caught_up();
    let point = pair.west.mount_point("latest");
    let commands = ["read -P 0 2M 512k", "read -P 0x55 3076k 508k", "read -P 0x22 1M 4k"];
    qemu_io_on_point(&point.uri("data"), &commands);
    // The point is read-only, and says so beforehand.
    let refused =
        tool::output(tool::command("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &point.uri("data")]));
    assert!(!refused.status.success(), "{}", tool::said(&refused));
}

/// R07, R22, R23: after a failover the replica serves what it had, and the old primary nothing new.
#[test]
fn qemu_sees_a_failover_as_one_disk() {
    if !tool::has(&["qemu-io"]) {
        return;
    }
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    qemu_io(&pair.east.uri("data"), &["write -P 0x61 0 1M", "flush"]);
    let kept = pair.wait_caught_up();
    qemu_io(&pair.east.uri("data"), &["write -P 0x62 512k 1M", "flush"]);
    pair.wait_caught_up();
    let promotion = pair.west.ask(["failover", "db", "--to", &format!("lsn:{kept}"), "--yes"]);
    assert_eq!(promotion["to"]["lsn"], kept);
    let uri = pair.west.uri("data");
    qemu_io(
        &uri,
        &["read -P 0x61 0 1M", "read -P 0 1M 512k", "write -P 0x63 8M 4k", "flush", "read -P 0x63 8M 4k"],
    );
    support::wait_until("the old primary learns of it", support::node::PATIENCE, || is_fenced(&pair.east));
    let old = pair.east.uri("data");
    let refused = tool::output(tool::command("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &old]));
    assert!(!refused.status.success(), "a fenced primary took a write: {}", tool::said(&refused));
}

fn is_fenced(node: &Node) -> bool {
    node.group()["state"]["name"] == "fenced"
}

/// A guest whose disk reconnects, as qemu's does, is not disturbed by the agent's death between two requests, and
/// what it had not flushed is there.
#[test]
fn qemu_goes_on_across_a_restart_of_the_agent() {
    use std::io::{BufRead, BufReader, Write};
    if !tool::has(&["qemu-io"]) {
        return;
    }
    let (mut pair, _scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let disk = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=db/data,\
         file.reconnect-delay=60",
        pair.east.nbd_socket().display()
    );
    let mut qemu = tool::command("qemu-io")
        .args(["--image-opts", &disk])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("qemu-io is there");
    let mut stdin = qemu.stdin.take().expect("it is piped");
    let mut stdout = BufReader::new(qemu.stdout.take().expect("it is piped"));
    let mut ask = |command: &str, answer: &str| {
        stdin.write_all(format!("{command}\n").as_bytes()).expect("qemu-io lives");
        loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).expect("qemu-io lives"), 0, "qemu-io ended at {command}");
            assert!(!line.contains("failed"), "{command}: {line}");
            if line.contains(answer) {
                return;
            }
        }
    };
    for round in 0..5_u64 {
        // (A flush, which answers with no line, could not be waited for. The forced write is one.)
        let forced = if round % 2 == 1 { "-f" } else { "" };
        ask(&format!("write {forced} -P {} {round}M 64k", round + 1), "wrote 65536/65536");
        pair.east.kill();
        pair.east.start();
        ask(&format!("read -P {} {round}M 64k", round + 1), "read 65536/65536");
    }
    drop(stdin);
    assert!(qemu.wait().expect("our own child").success());
}
