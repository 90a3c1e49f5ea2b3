//! A tree of files with everything that a filesystem can hold, and the comparison of two trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// How exactly times are compared: `mke2fs -d` writes whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    Seconds,
    Nanoseconds,
}

/// One file, in all that is to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    links: u64,
    /// The first path, in order, that is the same file.
    same_as: PathBuf,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Sets an extended attribute.
#[track_caller]
pub fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .unwrap_or_else(|err| panic!("{name} of {}: {err}", path.display()));
}

/// Reads one.
pub fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    attributes(path).remove(name.as_bytes())
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    // Most files have none; then the larger memory is not needed.
    if matches!(rustix::fs::llistxattr(path, &mut [0; 64][..]), Ok(0)) {
        return BTreeMap::new();
    }
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else { return BTreeMap::new() };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("it is listed");
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    found
}

/// Makes a tree with one of each. Everything has a time of its own, in the past.
#[track_caller]
pub fn make(root: &Path) {
    let dir = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(&path).expect("a folder can be made");
        path
    };
    let file = |path: &str, content: &[u8]| {
        fs::write(root.join(path), content).expect("a file can be written");
        root.join(path)
    };
    dir("etc/ssh");
    file("etc/hosts", b"127.0.0.1 localhost\n");
    file("etc/ssh/key", b"secret");
    file("empty", b"");
    file("tiny", b"x");
    // Less than a block, exactly one, and one more.
    for size in [59, 60, 61, 150, 1023, 1024, 1025, 4095, 4096, 4097] {
        file(&format!("sized-{size}"), &pattern(size));
    }
    // Beyond the direct and the single indirect blocks of ext2 with 1 KiB.
    file("large", &pattern(3_000_001));
    let sparse = File::create(root.join("sparse")).expect("a file can be made");
    sparse.write_all_at(b"begin", 0).expect("it can be written");
    sparse.write_all_at(&pattern(20_000), 5_000_000).expect("it can be written");
    sparse.set_len(40_000_000).expect("it can be long");
    File::create(root.join("hole")).and_then(|hole| hole.set_len(1_000_000)).expect("it can be long");
    file("linked-1", b"one file, three names");
    fs::hard_link(root.join("linked-1"), root.join("linked-2")).expect("it can be linked");
    fs::hard_link(root.join("linked-1"), root.join("etc/linked-3")).expect("it can be linked");
    for (index, target) in ["etc/hosts", "/etc/hosts", "nowhere", "../../../../etc/passwd"].iter().enumerate()
    {
        symlink(target, root.join(format!("link-{index}"))).expect("it can be linked");
    }
    symlink(format!("etc/{}", "l".repeat(250)), root.join("link-long")).expect("it can be linked");
    symlink("etc", root.join("link-folder")).expect("it can be linked");
    let deep = dir(&["deep"; 150].join("/"));
    fs::write(deep.join("bottom"), b"found").expect("a file can be written");
    // Enough for a hash tree.
    let many = dir("many");
    for index in 0..700 {
        fs::write(many.join(format!("a file with a longer name {index:05}")), format!("{index}"))
            .expect("written");
    }
    fs::write(root.join(OsStr::from_bytes(b"not utf-8 \xff\xfe")), b"raw").expect("a file can be written");
    file("line\nbreak \u{1b}[2J", b"odd");
    file("größe", b"umlaut");
    set_attribute(&file("attributed", b"content"), "user.origin", b"here");
    set_attribute(&root.join("attributed"), "user.binary", &pattern(300));
    set_attribute(&root.join("etc"), "user.folder", b"yes");
    for (path, mode) in [("tiny", 0o4755), ("empty", 0o000), ("etc/ssh/key", 0o600), ("etc/ssh", 0o2750)] {
        fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).expect("it is ours");
    }
    // From below, since each change is one of the folder above.
    let mut all = walk(root);
    all.reverse();
    for (index, path) in (0..).zip(&all) {
        let at = rustix::fs::Timespec { tv_sec: 1_500_000_000 + index * 1000, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(path), &times, flags).expect("it is ours");
    }
}

/// Bytes that are not all alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at % 251) as u8).collect()
}

/// All paths below `root`, folders before what is in them.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(root.join(&folder)).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
        for entry in entries {
            let entry = entry.expect("it can be read");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("it is there").is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

fn seen(root: &Path, leave_out: &[&str], times: Times) -> BTreeMap<PathBuf, Seen> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    for path in walk(root) {
        if leave_out.iter().any(|left| path.starts_with(left)) {
            continue;
        }
        let about = fs::symlink_metadata(root.join(&path)).expect("it is there");
        let kind = about.file_type();
        let is_special =
            kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device();
        assert!(!is_special, "{} is special", path.display());
        let same_as = first.entry(about.ino()).or_insert_with(|| path.clone()).clone();
        let nanos = if times == Times::Nanoseconds { about.mtime_nsec() } else { 0 };
        let found = Seen {
            kind: format!("{kind:?}"),
            mode: about.mode(),
            owner: (about.uid(), about.gid()),
            modified: (about.mtime(), nanos),
            size: if kind.is_dir() { 0 } else { about.size() },
            links: if kind.is_dir() { 0 } else { about.nlink() },
            same_as,
            attributes: attributes(&root.join(&path)),
        };
        all.insert(path, found);
    }
    all
}

/// Wants `found` to be what `wanted` is, in everything; files may take a few blocks more or less.
#[track_caller]
pub fn compare(what: &str, wanted: &Path, found: &Path, leave_out: &[&str], times: Times) -> usize {
    let (want, have) = (seen(wanted, leave_out, times), seen(found, leave_out, times));
    let names = |all: &BTreeMap<PathBuf, Seen>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&have), names(&want), "{what}: the names");
    for (path, want) in &want {
        let (one, other) = (wanted.join(path), found.join(path));
        assert_eq!(&have[path], want, "{what}: {}", path.display());
        if one.is_symlink() {
            assert_eq!(fs::read_link(&other).ok(), fs::read_link(&one).ok(), "{what}: {}", path.display());
        } else if one.is_file() {
            let same = fs::read(&one).expect("it is there") == fs::read(&other).expect("it is there");
            assert!(same, "{what}: {} has the same content", path.display());
            let used = |path: &Path| fs::metadata(path).expect("it is there").blocks() * 512;
            let (used, limit) = (used(&other), used(&one) + (64 << 10));
            assert!(used <= limit, "{what}: {} takes {used} bytes, not {limit}", path.display());
        }
    }
    want.len()
}
