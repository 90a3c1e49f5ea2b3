//! Filesystems in files, put onto volumes, and what `landfall restore files` brings back of them.

use super::node::GROUP;
use super::node::Node;
use super::node::PATIENCE;
use super::node::Pair;
use super::tool;
use super::tree;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use transport::nbd::client::{Address, Client};

pub const MIB: u64 = 1 << 20;

pub const CHUNK: usize = 64 << 10;

/// What `mke2fs` makes on its own.
pub const LOST_AND_FOUND: &str = "lost+found";

/// Writes an image onto a volume, without its zeros, and waits until the replica has it; returns the LSN.
#[track_caller]
pub fn write_image(pair: &mut Pair, volume: &str, image: &Path) -> u64 {
    let address = Address::Unix(pair.east.nbd_socket());
    let mut client = Client::connect(&address, &format!("{GROUP}/{volume}"), PATIENCE).expect("it is served");
    let file = fs::File::open(image).expect("the image is there");
    let size = file.metadata().expect("it is there").len();
    assert!(size <= client.size(), "{size} bytes fit onto {volume}");
    let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
    for at in (0..size).step_by(CHUNK) {
        let len = CHUNK.min((size - at) as usize);
        file.read_exact_at(&mut new[..len], at).expect("it can be read");
        client.read(at, &mut old[..len]).expect("it can be read");
        if new[..len] != old[..len] {
            client.write(at, &new[..len]).expect("it is taken");
        }
    }
    client.flush().expect("it is durable");
    pair.wait_caught_up()
}

/// Makes an ext filesystem of `dir`.
#[track_caller]
pub fn mke2fs(image: &Path, size: u64, options: &[&str], dir: &Path) {
    let file = fs::File::create(image).expect("it can be made");
    file.set_len(size).expect("it can be long");
    let mut command = tool::command("mke2fs");
    command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]).args(options);
    tool::check(command.arg("-d").arg(dir).arg(image));
}

#[track_caller]
pub fn restore(node: &Node, volume: &str, at: &str, path: &str, to: &Path) -> Value {
    let volume = format!("{GROUP}/{volume}");
    node.ask(["restore", "files", &volume, "--at", at, "--path", path, "--to", to.to_str().expect("plain")])
}

/// The same where it does not all work out; returns the answer, if there is one, and what was said.
#[track_caller]
pub fn try_restore(node: &Node, volume: &str, path: &str, to: &Path, more: &[&str]) -> (i32, Value, String) {
    let volume = format!("{GROUP}/{volume}");
    let mut command = node.command(["restore", "files", &volume, "--json", "--at", "latest", "--path", path]);
    let output = tool::output(command.arg("--to").arg(to).args(more));
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("it ended by itself"), answer, tool::said(&output))
}

pub fn lsn(at: u64) -> String {
    format!("lsn:{at}")
}

/// A FAT, made and filled by another implementation.
#[track_caller]
pub fn make_fat(image: &Path, size: u64, kind: fatfs::FatType) {
    let mut options = fs::OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(true).open(image).expect("it can be made");
    file.set_len(size).expect("it can be long");
    fatfs::format_volume(&file, fatfs::FormatVolumeOptions::new().fat_type(kind))
        .expect("it can be formatted");
    let volume = fatfs::FileSystem::new(&file, fatfs::FsOptions::new()).expect("it was formatted");
    assert_eq!(volume.fat_type(), kind);
    let root = volume.root_dir();
    let folder = root.create_dir("a folder with a long name").expect("it can be made");
    let deeper = folder.create_dir("deeper").expect("it can be made");
    for (dir, name, content) in fat_files() {
        let dir = [&root, &folder, &deeper][dir];
        dir.create_file(&name).and_then(|mut file| file.write_all(&content)).expect("it can be written");
    }
}

pub fn fat_files() -> Vec<(usize, String, Vec<u8>)> {
    let mut files = vec![
        (0, "SHORT.TXT".to_owned(), b"short".to_vec()),
        (0, "empty".to_owned(), Vec::new()),
        (1, "größe und 漢字.txt".to_owned(), b"a long name".to_vec()),
        (2, "large".to_owned(), tree::pattern(300_001)),
    ];
    // More than a cluster of entries.
    files.extend((0..80).map(|index| (2, format!("a rather long name of a file {index}"), vec![index; 600])));
    files
}

#[track_caller]
pub fn check_fat(to: &Path) {
    let dirs = ["", "a folder with a long name", "a folder with a long name/deeper"].map(|dir| to.join(dir));
    for (dir, name, content) in fat_files() {
        assert!(fs::read(dirs[dir].join(&name)).expect("it is there") == content, "{name}");
    }
    assert_eq!(tree::walk(to).len(), fat_files().len() + 2);
}

/// Replaces all places of `old` in a file.
#[track_caller]
pub fn patch(image: &Path, old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut bytes = fs::read(image).expect("it is there");
    let places = bytes.windows(old.len()).enumerate().filter(|(_, found)| *found == old).map(|(at, _)| at);
    let places = places.collect::<Vec<_>>();
    assert!(!places.is_empty(), "{:?} is in the image", String::from_utf8_lossy(old));
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    fs::write(image, bytes).expect("it can be written");
}

/// Where in an image something is, by `debugfs`.
#[track_caller]
pub fn blocks_of(image: &Path, path: &str) -> Vec<u64> {
    let mut command = tool::command("debugfs");
    let said = tool::check(command.arg("-R").arg(format!("blocks {path}")).arg(image));
    said.split_whitespace().filter_map(|block| block.parse().ok()).collect()
}
