//! The real files: what `engine::io` promises, on the filesystem of the temporary directory, on a full one, and on
//! a block device. (FAILURES.md: W15, W16, W17, W18, W19, W28, W38.)
#![cfg(feature = "os")]

use engine::io::{File, OpenMode, Storage};
use engine::os::disk::Disk;
use std::io::{ErrorKind, IoSlice, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("landfall-disk-{}-{name}", std::process::id()));
        // A run that was killed may have had the same process number.
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir(&path).expect("a temporary folder");
        Folder(path)
    }

    fn disk(&self) -> Disk {
        Disk::new(&self.0).expect("a folder")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn create(disk: &Disk, path: &str, content: &[u8]) -> Arc<dyn File> {
    let file = disk.open(path, OpenMode::Create).expect("created");
    file.write_at(&[IoSlice::new(content)], 0).expect("written");
    file
}

fn read(file: &Arc<dyn File>, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    file.read_at(&mut buf, offset).expect("read");
    buf
}

#[test]
fn names_are_relative_to_the_root_or_absolute() {
    let folder = Folder::new("names");
    let disk = Disk::new(folder.0.join("deep/root")).expect("made with its parents");
    disk.create_dir("a/b/c").expect("made");
    disk.create_dir("a/b/c").expect("is there");
    create(&disk, "a/b/two", b"2");
    create(&disk, "a/b/one", b"1");
    assert_eq!(disk.list("a/b").expect("listed"), ["one", "two"]);
    assert_eq!(disk.list("").expect("listed"), Vec::<String>::new());
    disk.rename("a/b/one", "a/b/two").expect("renamed over it");
    disk.sync_dir("a/b").expect("synced");
    disk.sync_dir("").expect("synced");
    assert_eq!(disk.list("a/b").expect("listed"), ["two"]);
    let path = folder.0.join("deep/root/a/b/two");
    let absolute = disk.open(path.to_str().expect("UTF-8"), OpenMode::Read).expect("opened");
    assert_eq!(read(&absolute, 0, 1), b"1");
    // The root is the folder, not its name.
    std::fs::rename(folder.0.join("deep"), folder.0.join("moved")).expect("renamed");
    disk.remove("a/b/two").expect("removed");
    let error = disk.open("a/b/two", OpenMode::Read).err().expect("gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(disk.list("none").expect_err("no folder").kind(), ErrorKind::NotFound);
}

#[test]
fn open_modes_do_what_they_say() {
    let folder = Folder::new("modes");
    let disk = folder.disk();
    assert_eq!(disk.open("file", OpenMode::Write).err().expect("absent").kind(), ErrorKind::NotFound);
    create(&disk, "file", b"content");
    assert_eq!(disk.open("file", OpenMode::Create).err().expect("there").kind(), ErrorKind::AlreadyExists);
    let reader = disk.open("file", OpenMode::Read).expect("opened");
    assert_eq!(read(&reader, 3, 4), b"tent");
    assert!(reader.write_at(&[IoSlice::new(b"x")], 0).is_err());
    let writer = disk.open("file", OpenMode::Write).expect("opened");
    writer.write_at(&[IoSlice::new(b"C")], 0).expect("written");
    assert_eq!(read(&reader, 0, 7), b"Content");
    for not_a_file in [".", "/dev/null"] {
        assert_eq!(
            disk.open(not_a_file, OpenMode::Read).err().expect("refused").kind(),
            ErrorKind::InvalidInput
        );
    }
}

/// W18: more slices than the kernel takes at once, empty ones among them; and an end before the last byte.
#[test]
fn w18_transfers_are_whole_or_an_error() {
    let folder = Folder::new("whole");
    let disk = folder.disk();
    let file = disk.open("file", OpenMode::Create).expect("created");
    let content: Vec<u8> = (0..5000u32 * 7).map(|i| (i % 251) as u8).collect();
    let mut slices = Vec::new();
    for (i, slice) in content.chunks(7).enumerate() {
        slices.push(IoSlice::new(slice));
        slices.extend((i % 3 == 0).then(|| IoSlice::new(&[])));
    }
    assert!(slices.len() > 4 * 1024);
    file.write_at(&slices, 4093).expect("written");
    assert_eq!(file.len().expect("length"), 4093 + 35_000);
    assert_eq!(read(&file, 4093, 35_000), content);
    file.write_at(&[], 1 << 40).expect("nothing");
    file.write_at(&[IoSlice::new(&[])], 1 << 40).expect("nothing");
    assert_eq!(file.len().expect("length"), 4093 + 35_000);
    let mut buf = [0; 2];
    for result in [file.read_at(&mut buf, 39_092), file.read_cached_at(&mut [0; 2], 39_092)] {
        assert_eq!(result.expect_err("beyond the end").kind(), ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_cached_read_gives_the_bytes_or_says_that_it_would_wait() {
    let folder = Folder::new("cached");
    let disk = folder.disk();
    let content: Vec<u8> = (0..1 << 20).map(|i| (i / 4096) as u8).collect();
    let file = create(&disk, "file", &content);
    file.sync().expect("synced");
    let mut buf = vec![0; 1 << 20];
    file.read_cached_at(&mut buf, 0).expect("just written");
    assert_eq!(buf, content);
    // Out of the cache, as far as the filesystem has one that can be emptied.
    let plain = std::fs::File::open(folder.0.join("file")).expect("opened");
    rustix::fs::fadvise(&plain, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    buf.fill(0xee);
    match file.read_cached_at(&mut buf, 0) {
        Ok(()) => assert_eq!(buf, content),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
    }
    file.will_need(0, 1 << 20);
    file.will_need(0, 0);
    assert_eq!(read(&file, 0, 1 << 20), content);
}

/// W19, W38: zeroed ranges read as zeros, also past the end, and cost no space.
#[test]
fn w38_zeroed_ranges_read_as_zeros() {
    let folder = Folder::new("zero");
    let disk = folder.disk();
    let file = create(&disk, "file", &vec![7; 1 << 20]);
    file.zero(100_000, 500_001).expect("zeroed");
    assert!(read(&file, 100_000, 500_001).iter().all(|&byte| byte == 0));
    assert_eq!((read(&file, 99_999, 1), read(&file, 600_001, 1)), (vec![7], vec![7]));
    // Across the end and behind it: the file grows, and nothing between is anything but zero.
    file.zero((1 << 20) - 10, 20).expect("zeroed");
    assert_eq!(file.len().expect("length"), (1 << 20) + 10);
    assert_eq!(read(&file, (1 << 20) - 11, 21), [&[7][..], &[0; 20]].concat());
    file.zero(8 << 20, 8 << 30).expect("zeroed");
    assert_eq!(file.len().expect("length"), (8 << 20) + (8 << 30));
    assert_eq!(read(&file, 4 << 30, 4096), vec![0; 4096]);
    file.zero(5, 0).expect("nothing");
    assert_eq!(file.zero(u64::MAX, 2).expect_err("refused").kind(), ErrorKind::InvalidInput);
    assert_eq!(read(&file, 0, 10), vec![7; 10]);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&folder.0.join("file").metadata().expect("there"));
    assert!(blocks * 512 < 4 << 20, "{blocks} blocks");
}

#[test]
fn data_is_told_from_holes() {
    let folder = Folder::new("holes");
    let disk = folder.disk();
    let file = disk.open("file", OpenMode::Create).expect("created");
    assert_eq!(file.next_data(0).expect("told"), None);
    file.set_len(64 << 20).expect("set");
    assert_eq!(read(&file, 32 << 20, 10), vec![0; 10]);
    for offset in [16 << 20, 48 << 20] {
        file.write_at(&[IoSlice::new(&[1; 4096])], offset).expect("written");
    }
    // Where holes are told, the stretches are exactly these; where not, all is one.
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = file.next_data(at).expect("told") {
        assert!(at <= start && start < end && end <= 64 << 20, "{start} {end}");
        found.push((start, end));
        at = end;
    }
    for offset in [16 << 20, 48 << 20] {
        assert!(found.iter().any(|&(start, end)| start <= offset && offset + 4096 <= end), "{found:?}");
    }
    assert_eq!(file.next_data(64 << 20).expect("told"), None);
    assert_eq!(file.next_data(1 << 50).expect("told"), None);
}

#[test]
fn reserved_space_keeps_content_and_never_shortens() {
    let folder = Folder::new("allocate");
    let disk = folder.disk();
    let file = create(&disk, "file", b"kept");
    file.allocate(4 << 20).expect("reserved");
    assert_eq!(file.len().expect("length"), 4 << 20);
    assert_eq!(read(&file, 0, 6), b"kept\0\0");
    file.allocate(4096).expect("is there");
    file.allocate(0).expect("nothing");
    assert_eq!(file.len().expect("length"), 4 << 20);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&folder.0.join("file").metadata().expect("there"));
    assert!(blocks * 512 >= 4 << 20, "{blocks} blocks");
    // A length that no file can have is an error, not an attempt to fill the disk.
    assert!(file.allocate(u64::MAX).is_err());
    assert!(file.allocate(1 << 62).is_err());
    assert_eq!(file.len().expect("length"), 4 << 20);
    file.set_len(3).expect("set");
    assert_eq!(read(&file, 0, 3), b"kep");
}

/// W28: held by the open file, so also against a second open in one process, and under any name of the folder.
#[test]
fn w28_a_second_holder_is_refused() {
    let folder = Folder::new("lock");
    let (first, second) = (folder.disk(), folder.disk());
    let guard = first.lock("lock").expect("free");
    let error = second.lock("lock").err().expect("held");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(error.to_string().contains("another process"), "{error}");
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&folder.0, &link).expect("linked");
    let other = Disk::new(&link).expect("opened");
    assert_eq!(other.lock("lock").err().expect("held").kind(), ErrorKind::WouldBlock);
    drop(guard);
    let guard = other.lock("lock").expect("free");
    assert!(first.lock("lock").is_err());
    // A lock file that somebody removed protects nothing: the next one locks a file that has the name.
    first.remove("lock").expect("removed");
    let newer = second.lock("lock").expect("another file");
    drop(guard);
    assert!(first.lock("lock").is_err());
    drop(newer);
}

#[test]
fn w28_a_bind_mount_meets_the_same_lock() {
    let folder = Folder::new("bind");
    let (one, two) = (folder.0.join("one"), folder.0.join("two"));
    let disk = Disk::new(&one).expect("made");
    std::fs::create_dir(&two).expect("made");
    let Some(_mount) = Mount::new(&["--bind", text(&one)], &two) else { return };
    let other = Disk::new(&two).expect("opened");
    let guard = disk.lock("lock").expect("free");
    assert_eq!(other.lock("lock").err().expect("held").kind(), ErrorKind::WouldBlock);
    drop(guard);
    other.lock("lock").expect("free");
}

/// The other process of the next test: takes the lock, says so, and waits to be killed.
#[test]
fn w28_helper_that_holds_a_lock() {
    let Ok(root) = std::env::var("LANDFALL_TEST_HOLD_LOCK") else { return };
    let _guard = Disk::new(root).expect("a folder").lock("lock").expect("free");
    println!("holding");
    std::io::stdout().flush().expect("flushed");
    std::io::stdin().read_line(&mut String::new()).ok();
}

#[test]
fn w28_a_killed_holder_leaves_nothing_behind() {
    let folder = Folder::new("killed");
    let disk = folder.disk();
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "w28_helper_that_holds_a_lock", "--nocapture"])
        .env("LANDFALL_TEST_HOLD_LOCK", &folder.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    assert!(lines.any(|line| line.expect("read").contains("holding")));
    assert_eq!(disk.lock("lock").err().expect("held").kind(), ErrorKind::WouldBlock);
    child.kill().expect("killed");
    child.wait().expect("dead");
    disk.lock("lock").expect("free");
}

/// W17: no room, in each way of asking for some; what is there stays as it was.
#[test]
fn w17_a_full_filesystem_is_an_error_and_no_more() {
    let folder = Folder::new("full");
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &folder.0.join("small")) else {
        return;
    };
    let disk = Disk::new(&mount.0).expect("opened");
    let file = create(&disk, "file", &[7; 4096]);
    assert_eq!(file.allocate(8 << 20).expect_err("full").kind(), ErrorKind::StorageFull);
    let megabyte = vec![8; 1 << 20];
    let error = file.write_at(&[IoSlice::new(&megabyte), IoSlice::new(&megabyte)], 4096).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(read(&file, 0, 4096), [7; 4096]);
    // W18: and read-only.
    drop(file);
    assert!(run(Command::new("mount").args(["-o", "remount,ro"]).arg(&mount.0)).is_some());
    for result in [disk.remove("file"), disk.rename("file", "other"), disk.create_dir("folder")] {
        assert_eq!(result.expect_err("read-only").kind(), ErrorKind::ReadOnlyFilesystem);
    }
    for mode in [OpenMode::Write, OpenMode::Create] {
        let path = if mode == OpenMode::Write { "file" } else { "new" };
        assert_eq!(disk.open(path, mode).err().expect("read-only").kind(), ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(read(&disk.open("file", OpenMode::Read).expect("opened"), 0, 4096), [7; 4096]);
}

#[test]
fn a_block_device_is_a_file_of_fixed_length() {
    let folder = Folder::new("block");
    std::fs::write(folder.0.join("image"), vec![5; 8 << 20]).expect("written");
    let Some(device) = Loop::new(&folder.0.join("image")) else { return };
    let disk = folder.disk();
    let file = disk.open(&device.0, OpenMode::Write).expect("opened");
    let len = 8 << 20;
    assert_eq!(file.len().expect("length"), len);
    for result in [file.set_len(len), file.set_len(4096), file.allocate(len)] {
        result.expect("long enough");
    }
    for result in [file.set_len(len + 1), file.allocate(len + 1), file.zero(len - 512, 513)] {
        assert_eq!(result.expect_err("too long").kind(), ErrorKind::InvalidInput);
    }
    // Whole pages inside, odd bytes at both ends, with neighbours that are only in the page cache.
    file.write_at(&[IoSlice::new(&[6; 20_000])], 1000).expect("written");
    file.zero(3001, 14_007).expect("zeroed");
    let expected: Vec<u8> = (0..32_768)
        .map(|i| match i {
            3001..17_008 => 0,
            1000..21_000 => 6,
            _ => 5,
        })
        .collect();
    assert_eq!(read(&file, 0, 32_768), expected);
    file.zero(4096, 100).expect("zeroed");
    file.zero(1 << 20, 4 << 20).expect("zeroed");
    file.sync().expect("synced");
    assert_eq!(read(&file, (1 << 20) - 1, 2), [5, 0]);
    assert_eq!(read(&file, (5 << 20) - 1, 2), [0, 5]);
    let mut at = 0;
    while let Some((start, end)) = file.next_data(at).expect("told") {
        assert!(at <= start && start < end && end <= len, "{start} {end}");
        at = end;
    }
    file.write_at(&[IoSlice::new(&[1; 1024])], len - 512).expect_err("beyond the end");
    assert_eq!(file.read_at(&mut [0; 1024], len - 512).expect_err("short").kind(), ErrorKind::UnexpectedEof);
    drop(file);
    // What the device's file holds is what was read through it.
    let image = std::fs::read(folder.0.join("image")).expect("read");
    assert_eq!(image[..4096], expected[..4096]);
    assert!(image[1 << 20..5 << 20].iter().all(|&byte| byte == 0));
}

/// W15, W16, on a real disk that fails: a device whose own storage is full. The kernel reports the lost pages once
/// and calls the next sync a success; the handle does not.
#[test]
fn w15_a_sync_that_failed_stays_failed() {
    let folder = Folder::new("lost");
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &folder.0.join("small")) else {
        return;
    };
    let image = mount.0.join("image");
    std::fs::File::create(&image).expect("created").set_len(64 << 20).expect("set");
    let Some(device) = Loop::new(&image) else { return };
    let disk = folder.disk();
    let file = disk.open(&device.0, OpenMode::Write).expect("opened");
    file.write_at(&[IoSlice::new(&vec![9; 16 << 20])], 0).expect("into the page cache");
    let first = file.sync().expect_err("the device has no room");
    for _ in 0..3 {
        let later = file.sync().expect_err("still");
        assert!(later.to_string().contains(&first.to_string()), "{later}");
    }
}

/// A mount that goes away with the test.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).expect("a folder");
        run(Command::new("mount").args(arguments).arg(at)).map(|_| Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// A loop device, likewise.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Option<Loop> {
        run(Command::new("losetup").args(["--find", "--show"]).arg(image)).map(Loop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").arg("-d").arg(&self.0).status().ok();
    }
}

/// What a tool said; `None`, with a message, if it is not there or not allowed.
fn run(command: &mut Command) -> Option<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => {
            eprintln!("skipped: needs {name}, as root");
            None
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
