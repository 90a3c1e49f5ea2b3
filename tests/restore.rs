//! `landfall restore disk` with real processes: a point as a raw file or on a device, equal to what the guest had written
//! then, sparse, never over something else unasked, and gone on with after it was cut off.

mod support;

use std::os::unix::fs::{FileExt, MetadataExt};
use support::node::{GROUP, PATIENCE, Volume, number, started};
use support::random::Random;
use support::tool;
use transport::nbd::client::{Address, Client};

const BLOCK: usize = 64 << 10;
/// Longer than what is put on record at once, so that a restore can be cut off in between.
const VOLUME_BYTES: u64 = 320 << 20;
const RECORDED_BYTES: u64 = 256 << 20;

#[test]
fn a_point_becomes_a_file_and_a_restore_that_was_cut_off_goes_on() {
    let (mut pair, scratch) = started(&[Volume::new("data", VOLUME_BYTES)]);
    let mut image = vec![0; VOLUME_BYTES as usize];
    let mut random = Random::new(5);
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let mut write = |image: &mut [u8], at: usize| {
        random.fill(&mut image[at..at + BLOCK]);
        client.write(at as u64, &image[at..at + BLOCK]).expect("it is taken");
        client.flush().expect("it is durable");
    };
    for index in 0..32 {
        write(&mut image, index * (10 << 20));
    }
    let lsn = pair.wait_caught_up();
    let then = image.clone();
    // What comes behind the point is not to be seen.
    write(&mut image, 0);
    write(&mut image, 5 << 20);
    pair.wait_caught_up();

    let file = scratch.join("disk.raw");
    let (to, at) = (file.to_str().expect("plain"), format!("lsn:{lsn}"));
    for (volume, at) in [("db/data", "lsn:999999999"), ("db/none", "latest")] {
        let refused = pair.west.try_ask(["restore", "disk", volume, "--at", at, "--to", to]);
        assert_eq!(refused.status.code(), Some(3), "{volume} at {at}: {}", tool::said(&refused));
        assert!(!file.exists(), "a refusal leaves no file");
    }
    let done = pair.west.ask(["restore", "disk", "db/data", "--at", &at, "--to", to]);
    assert!(std::fs::read(&file).expect("it is there") == then, "the file is the volume at {at}");
    assert_eq!(number(&done["at"]["lsn"]), lsn);
    assert_eq!(done["xxh3_128"], engine::digest::Digest::of(&then).to_string());
    let used = std::fs::metadata(&file).expect("it is there").blocks() * 512;
    assert!(used < VOLUME_BYTES / 4, "{used} bytes are used: holes stay holes");
    assert!(!scratch.join("disk.raw.restore").exists(), "nothing is left beside it");

    let refused = pair.west.try_ask(["restore", "disk", "db/data", "--at", "latest", "--to", to]);
    assert_eq!(refused.status.code(), Some(3), "{}", tool::said(&refused));
    let refused = pair.west.try_ask(["restore", "disk", "db/data", "--resume", "--to", to]);
    assert_eq!(refused.status.code(), Some(3), "nothing is on record: {}", tool::said(&refused));
    assert!(std::fs::read(&file).expect("it is there") == then, "a refusal changes nothing");

    // As a kill leaves it behind the first stride: the beginning is there, the rest is not.
    let cut = std::fs::File::options().write(true).open(&file).expect("it is there");
    cut.set_len(RECORDED_BYTES).and_then(|()| cut.set_len(VOLUME_BYTES)).expect("it can be cut");
    // A mark that only a restore which begins anew would wipe out.
    cut.write_all_at(b"kept", 1 << 20).expect("it can be written");
    let record = serde_json::json!({
        "version": 1, "group": GROUP, "volume": "data", "at": done["at"],
        "size_bytes": VOLUME_BYTES, "done_bytes": RECORDED_BYTES,
    });
    std::fs::write(scratch.join("disk.raw.restore"), record.to_string()).expect("it can be written");
    let other = format!("lsn:{}", lsn - 1);
    let refused = pair.west.try_ask(["restore", "disk", "db/data", "--at", &other, "--resume", "--to", to]);
    assert_eq!(refused.status.code(), Some(3), "another point: {}", tool::said(&refused));
    let resumed = pair.west.ask(["restore", "disk", "db/data", "--at", "latest", "--resume", "--to", to]);
    assert_eq!((number(&resumed["at"]["lsn"]), number(&resumed["resumed_bytes"])), (lsn, RECORDED_BYTES));
    let mut wanted = then;
    wanted[1 << 20..(1 << 20) + 4].copy_from_slice(b"kept");
    assert!(std::fs::read(&file).expect("it is there") == wanted, "the rest came from the point on record");

    pair.west.ask(["restore", "disk", "db/data", "--at", "latest", "--overwrite", "--to", to]);
    assert!(std::fs::read(&file).expect("it is there") == image, "the newest point took its place");
}

/// A loop device over a file, detached when dropped.
struct Device(String);

impl Device {
    fn over(path: &std::path::Path) -> Device {
        let path = path.to_str().expect("plain");
        Device(tool::run("losetup", ["--find", "--show", path]).trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = tool::command("losetup").args(["-d", &self.0]).output();
    }
}

#[test]
fn a_device_gets_zeros_for_holes_and_nothing_behind_the_volume() {
    if !tool::has(&["root", "/dev/loop-control", "losetup"]) {
        return;
    }
    const SIZE: usize = 8 << 20;
    let (mut pair, scratch) = started(&[Volume::new("data", SIZE as u64)]);
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    client.write(1 << 20, &[7; BLOCK]).and_then(|()| client.flush()).expect("it is durable");
    pair.wait_caught_up();

    let (small, large) = (scratch.join("small"), scratch.join("large"));
    std::fs::write(&small, vec![0xff; SIZE / 2]).expect("it can be written");
    std::fs::write(&large, vec![0xff; SIZE * 2]).expect("it can be written");
    let (small, device) = (Device::over(&small), Device::over(&large));
    let plain = pair.west.try_ask(["restore", "disk", "db/data", "--at", "latest", "--to", &device.0]);
    assert_eq!(plain.status.code(), Some(3), "not unasked: {}", tool::said(&plain));
    for (to, flag) in [(&small.0, "--overwrite"), (&device.0, "--resume")] {
        let refused = pair.west.try_ask(["restore", "disk", "db/data", "--at", "latest", "--to", to, flag]);
        assert_eq!(refused.status.code(), Some(3), "{to} {flag}: {}", tool::said(&refused));
    }
    pair.west.ask(["restore", "disk", "db/data", "--at", "latest", "--to", &device.0, "--overwrite"]);
    let mut wanted = vec![0; SIZE];
    wanted[1 << 20..(1 << 20) + BLOCK].fill(7);
    wanted.resize(SIZE * 2, 0xff);
    drop(device);
    assert!(std::fs::read(&large).expect("it is there") == wanted, "the volume, and nothing behind it");
}

#[test]
fn a_qcow2_image_is_the_same_disk() {
    if !tool::has(&["qemu-img"]) {
        return;
    }
    // Over two tables of the second level, and no multiple of a cluster.
    const SIZE: u64 = (600 << 20) + 3 * 512;
    let (mut pair, scratch) = started(&[Volume::new("data", SIZE), Volume::new("empty", 1 << 20)]);
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/data"), PATIENCE).expect("it is served");
    let mut random = Random::new(8);
    let mut bytes = vec![0; 300_000];
    // At both ends, over edges of clusters, single sectors, and some that are given up again.
    for (at, len) in
        [(0, 512), (65_536 * 7 - 512, 1024), (10 << 20, 300_000), (SIZE - 512, 512), (555 << 20, 4096)]
    {
        random.fill(&mut bytes[..len]);
        client.write(at, &bytes[..len]).expect("it is taken");
    }
    for _ in 0..40 {
        let at = random.below(SIZE / 512 - 600) * 512;
        random.fill(&mut bytes[..8192]);
        client.write(at, &bytes[..8192]).expect("it is taken");
    }
    client.trim(10 << 20, 150_528).and_then(|()| client.flush()).expect("it is durable");
    pair.wait_caught_up();
    let restore = |volume: &str, format: &str, more: &[&str]| {
        let to = scratch.join(&format!("{volume}.{format}"));
        let of = format!("{GROUP}/{volume}");
        let mut command =
            pair.west.command(["restore", "disk", &of, "--at", "latest", "--json", "--format", format]);
        let output = tool::output(command.arg("--to").arg(&to).args(more));
        (to, output)
    };
    for volume in ["data", "empty"] {
        let (raw, first) = restore(volume, "raw", &[]);
        let (image, second) = restore(volume, "qcow2", &[]);
        assert!(first.status.success() && second.status.success(), "{}", tool::said(&second));
        let hash = |output: &std::process::Output| {
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an answer");
            answer["xxh3_128"].clone()
        };
        assert_eq!(hash(&first), hash(&second), "{volume}: the same disk has the same hash");
        tool::run("qemu-img", ["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), image.as_os_str()]);
        let compare = ["compare", "-f", "raw", "-F", "qcow2"].map(AsRef::<std::ffi::OsStr>::as_ref);
        tool::run("qemu-img", compare.into_iter().chain([raw.as_os_str(), image.as_os_str()]));
        let size = std::fs::metadata(&raw).expect("it is there").len();
        let info = tool::run("qemu-img", ["info".as_ref(), "--output=json".as_ref(), image.as_os_str()]);
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(number(&info["virtual-size"]), size, "{volume}");
        let len = std::fs::metadata(&image).expect("it is there").len();
        assert!(len < 8 << 20, "{volume}: {len} bytes for what is mostly holes");
        assert!(!scratch.join(&format!("{volume}.qcow2.restore")).exists(), "nothing is on record");
    }
    let (image, again) = restore("data", "qcow2", &[]);
    assert_eq!(again.status.code(), Some(3), "not unasked: {}", tool::said(&again));
    let (_, resumed) = restore("data", "qcow2", &["--resume"]);
    assert_eq!(resumed.status.code(), Some(2), "{}", tool::said(&resumed));
    let (_, over) = restore("data", "qcow2", &["--overwrite"]);
    assert!(over.status.success(), "{}", tool::said(&over));
    tool::run("qemu-img", ["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), image.as_os_str()]);
}
