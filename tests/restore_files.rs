//! `landfall restore files` and `landfall restore ls` with real processes: what was put into a filesystem comes back out
//! of a point as it was, from ext2, ext3, ext4 and FAT, in partitions and without, out of a filesystem that was in use
//! and out of one that is damaged; and nothing is written outside the target, whatever the filesystem says.

mod support;

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use support::disk::LoopDisk;
use support::node::{GROUP, Node, PATIENCE, Pair, Volume, number, started};
use support::tree::{self, Times};
use support::{Scratch, tool};
use transport::nbd::client::{Address, Client};

const MIB: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;

/// What `mke2fs` makes on its own.
const LOST_AND_FOUND: &str = "lost+found";

/// Writes an image onto a volume, without its zeros, and waits until the replica has it; returns the LSN.
#[track_caller]
fn write_image(pair: &mut Pair, volume: &str, image: &Path) -> u64 {
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
fn mke2fs(image: &Path, size: u64, options: &[&str], dir: &Path) {
    let file = fs::File::create(image).expect("it can be made");
    file.set_len(size).expect("it can be long");
    let mut command = tool::command("mke2fs");
    command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]).args(options);
    tool::check(command.arg("-d").arg(dir).arg(image));
}

#[track_caller]
fn restore(node: &Node, volume: &str, at: &str, path: &str, to: &Path) -> Value {
    let volume = format!("{GROUP}/{volume}");
    node.ask(["restore", "files", &volume, "--at", at, "--path", path, "--to", to.to_str().expect("plain")])
}

/// The same where it does not all work out; returns the answer, if there is one, and what was said.
#[track_caller]
fn try_restore(node: &Node, volume: &str, path: &str, to: &Path, more: &[&str]) -> (i32, Value, String) {
    let volume = format!("{GROUP}/{volume}");
    let mut command = node.command(["restore", "files", &volume, "--json", "--at", "latest", "--path", path]);
    let output = tool::output(command.arg("--to").arg(to).args(more));
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("it ended by itself"), answer, tool::said(&output))
}

fn lsn(at: u64) -> String {
    format!("lsn:{at}")
}

#[test]
fn a_tree_comes_back_out_of_every_kind_of_ext() {
    if !tool::has(&["root", "mke2fs"]) {
        return;
    }
    const KINDS: [(&str, &[&str], &str); 7] = [
        ("plain", &["-t", "ext4", "-b", "4096"], "ext4"),
        ("small", &["-t", "ext4", "-b", "1024"], "ext4"),
        ("inline", &["-t", "ext4", "-I", "512", "-O", "inline_data"], "ext4"),
        ("bare", &["-t", "ext4", "-O", "^metadata_csum,^64bit,meta_bg,^resize_inode", "-b", "1024"], "ext4"),
        ("bigalloc", &["-t", "ext4", "-O", "bigalloc,ea_inode,large_dir"], "ext4"),
        ("third", &["-t", "ext3"], "ext3"),
        ("second", &["-t", "ext2", "-b", "1024", "-I", "128"], "ext2"),
    ];
    let volumes = KINDS.map(|(name, ..)| Volume::new(name, 64 * MIB));
    let (mut pair, scratch) = started(&volumes);
    let origin = scratch.join("origin");
    tree::make(&origin);
    for (name, options, kind) in KINDS {
        let image = scratch.join("image");
        mke2fs(&image, 64 * MIB, options, &origin);
        write_image(&mut pair, name, &image);
        let to = scratch.join(name);
        let done = restore(&pair.west, name, "latest", "/", &to);
        assert_eq!(done["filesystem"], kind, "{name}");
        assert_eq!((number(&done["left_count"]), number(&done["hard_links"])), (0, 2), "{name}: {done}");
        // With inline data `mke2fs -d` gives files that end in a hole another length.
        let leave_out = if name == "inline" { &[LOST_AND_FOUND, "sparse"][..] } else { &[LOST_AND_FOUND] };
        let count = tree::compare(name, &origin, &to, leave_out, Times::Seconds);
        assert!(count > 800, "{count}");
        fs::remove_dir_all(&to).expect("it is ours");
    }

    // A part of it, twice, by a way over a link; the folders above have their own mode.
    let to = scratch.join("part");
    let mut command = pair.west.command(["restore", "files", "db/plain", "--at", "latest", "--json"]);
    command.args(["--path", "/etc/ssh", "--path", "link-folder/ssh/key", "--path", "/link-0"]);
    let done: Value = serde_json::from_str(&tool::check(command.arg("--to").arg(&to))).expect("JSON");
    assert_eq!(done["paths"], serde_json::json!(["/etc/ssh", "/link-0"]));
    assert_eq!(tree::walk(&to), ["etc", "etc/ssh", "etc/ssh/key", "link-0"].map(PathBuf::from));
    let about = fs::metadata(to.join("etc")).expect("it is there");
    let origin_about = fs::metadata(origin.join("etc")).expect("it is there");
    assert_eq!((about.mode(), about.mtime()), (origin_about.mode(), origin_about.mtime()));

    // What is there stays, unless that is said; a folder is gone on with.
    let key = to.join("etc/ssh/key");
    fs::write(&key, "mine").expect("it can be written");
    let (code, done, said) = try_restore(&pair.west, "plain", "/etc/ssh", &to, &[]);
    assert_eq!((code, &done["left"][0]["what"]), (7, &Value::from("exists")), "{said}");
    assert_eq!(fs::read(&key).expect("it is there"), b"mine");
    let (code, _, said) = try_restore(&pair.west, "plain", "/etc/ssh", &to, &["--force"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read(&key).expect("it is there"), b"secret");

    let listed = pair.west.ask(["restore", "ls", "db/plain", "/etc", "--at", "latest"]);
    let names = listed["entries"].as_array().expect("a list").iter().map(|entry| &entry["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["hosts", "linked-3", "ssh"]);
    let ssh = &listed["entries"][2];
    assert_eq!((&ssh["kind"], &ssh["mode"]), (&Value::from("folder"), &Value::from("2750")));
    assert_eq!(number(&listed["entries"][1]["links"]), 3);
    let all = pair.west.ask(["restore", "ls", "db/plain", "--at", "latest", "--recursive"]);
    let with_lost = tree::walk(&origin).len() + 1;
    assert_eq!(all["entries"].as_array().expect("a list").len(), with_lost);
    let long = all["entries"].as_array().expect("a list").iter().find(|entry| entry["name"] == "link-1");
    assert_eq!(long.expect("it is there")["target"], "/etc/hosts");
    let text = tool::check(&mut pair.west.command(["restore", "ls", "db/plain", "--at", "latest"]));
    assert!(text.contains("-rwsr-xr-x") && text.contains("link-0 -> etc/hosts"), "{text}");
    assert!(!text.contains('\u{1b}'), "no name moves the cursor");
}

#[test]
fn an_older_point_has_the_older_file() {
    if !tool::has(&["mke2fs", "debugfs"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", 16 * MIB)]);
    let (origin, image) = (scratch.join("origin"), scratch.join("image"));
    fs::create_dir(&origin).expect("it can be made");
    fs::write(origin.join("report"), "the first version").expect("it can be written");
    fs::write(origin.join("other"), "other").expect("it can be written");
    mke2fs(&image, 16 * MIB, &["-t", "ext4"], &origin);
    let first = write_image(&mut pair, "data", &image);
    let newer = scratch.join("newer");
    fs::write(&newer, tree::pattern(100_000)).expect("it can be written");
    let steps = format!("rm report\nwrite {} report\nrm other\n", newer.display());
    fs::write(scratch.join("steps"), steps).expect("it can be written");
    let mut change = tool::command("debugfs");
    tool::check(change.args(["-w", "-f"]).arg(scratch.join("steps")).arg(&image));
    let second = write_image(&mut pair, "data", &image);

    let (old, new) = (scratch.join("old"), scratch.join("new"));
    let done = restore(&pair.west, "data", &lsn(first), "/", &old);
    assert_eq!(number(&done["at"]["lsn"]), first);
    assert_eq!(fs::read(old.join("report")).expect("it is there"), b"the first version");
    assert_eq!(fs::read(old.join("other")).expect("it is there"), b"other");
    restore(&pair.west, "data", &lsn(second), "/report", &new);
    assert_eq!(fs::read(new.join("report")).expect("it is there"), tree::pattern(100_000));
    let gone = pair
        .west
        .try_ask(["restore", "files", "db/data", "--at", "latest", "--path", "other", "--to", "/none"]);
    assert_eq!(gone.status.code(), Some(3), "{}", tool::said(&gone));
    let primary = pair.east.try_ask(["restore", "ls", "db/data", "--at", "latest"]);
    assert_eq!(primary.status.code(), Some(3), "points are at the replica: {}", tool::said(&primary));
}

/// A filesystem that is mounted on a loop device, and its image.
struct Mounted {
    disk: LoopDisk,
    image: PathBuf,
    at: PathBuf,
}

impl Mounted {
    #[track_caller]
    fn new(scratch: &Scratch, size: u64, options: &[&str], mode: &str) -> Mounted {
        let (image, at) = (scratch.join("live"), scratch.join("live.mount"));
        let empty = scratch.join("empty");
        fs::create_dir_all(&empty).expect("it can be made");
        mke2fs(&image, size, options, &empty);
        tool::run("tune2fs", ["-o", mode, image.to_str().expect("plain")]);
        let mut disk = LoopDisk::over_file(&image);
        disk.mount(&at);
        // Nothing is committed by itself.
        tool::run("mount", ["-o", "remount,commit=300", at.to_str().expect("plain")]);
        Mounted { disk, image, at }
    }

    /// An access control list, and an attribute that only root can set.
    #[track_caller]
    fn adorn(&self, path: &Path) {
        let entry = |tag: u16, permissions: u16, id: u32| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let none = u32::MAX;
        let entries =
            [entry(1, 6, none), entry(2, 4, 1000), entry(4, 4, none), entry(16, 4, none), entry(32, 0, none)];
        tree::set_attribute(path, "system.posix_acl_access", &[vec![2, 0, 0, 0], entries.concat()].concat());
        tree::set_attribute(path, "trusted.landfall", &tree::pattern(500));
    }

    /// What a power cut would leave now: what the filesystem has sent to its disk.
    #[track_caller]
    fn cut(&self, to: &Path) {
        tool::run("cp", [Path::new("--sparse=always"), &self.image, to]);
    }
}

/// Whether what is in the journal begins before its end and goes on at its beginning.
#[track_caller]
fn goes_around(image: &Path) -> bool {
    let said = tool::check(tool::command("debugfs").args(["-R", "logdump"]).arg(image));
    let blocks = said.lines().filter(|line| line.starts_with("Found expected sequence"));
    let blocks = blocks.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).collect::<Vec<_>>();
    !blocks.is_sorted()
}

#[test]
fn a_filesystem_in_use_is_seen_as_after_the_replay_of_its_journal() {
    if !tool::has(&["root", "/dev/loop-control", "losetup", "mke2fs", "debugfs", "mount"]) {
        return;
    }
    // With checksums, with the old kind of journal, without checksums, with larger blocks, with content in the journal.
    const KINDS: [(&str, &[&str], &str); 5] = [
        ("new", &["-t", "ext4", "-b", "1024", "-J", "size=1"], "journal_data_ordered"),
        ("third", &["-t", "ext3", "-b", "1024", "-J", "size=1"], "journal_data_ordered"),
        (
            "narrow",
            &["-t", "ext4", "-O", "^metadata_csum,^64bit", "-b", "1024", "-J", "size=1"],
            "journal_data_ordered",
        ),
        ("large", &["-t", "ext4", "-b", "4096", "-J", "size=4"], "journal_data_ordered"),
        ("content", &["-t", "ext4", "-b", "4096", "-J", "size=4"], "journal_data"),
    ];
    const SIZE: u64 = 48 * MIB;
    const ROUNDS: usize = 30;
    let volumes = KINDS.map(|(name, ..)| Volume::new(name, SIZE));
    let (mut pair, scratch) = started(&volumes);
    let (mut replayed, mut around, mut points) = (0, 0, 0);
    for (name, options, mode) in KINDS {
        let live = Mounted::new(&scratch, SIZE, options, mode);
        for round in 0..ROUNDS {
            // Folders come and go, so that blocks are revoked and used for something else; the journal goes around.
            let folder = live.at.join(format!("round-{round}"));
            fs::create_dir(&folder).expect("it can be made");
            for index in 0..40 {
                let path = folder.join(format!("file {index} of a round"));
                fs::write(&path, format!("{name} {round} {index}").repeat(index * 3))
                    .expect("it can be written");
                fs::set_permissions(&path, PermissionsExt::from_mode(0o600 + index as u32))
                    .expect("it is ours");
            }
            tree::set_attribute(&folder, "user.round", round.to_string().as_bytes());
            live.adorn(&folder.join("file 7 of a round"));
            if round >= 3 {
                fs::remove_dir_all(live.at.join(format!("round-{}", round - 3))).expect("it can be removed");
            }
            tool::run("sync", ["-f", live.at.to_str().expect("plain")]);
            if round % 6 != 5 {
                continue;
            }
            // Something that may have been only begun.
            fs::write(folder.join("at the last moment"), tree::pattern(10_000)).expect("it can be written");
            let cut = scratch.join("cut");
            live.cut(&cut);
            let lsn = lsn(write_image(&mut pair, name, &cut));
            let to = scratch.join("restored");
            let done = restore(&pair.west, name, &lsn, "/", &to);
            assert_eq!(number(&done["left_count"]), 0, "{name} {round}: {done}");
            points += 1;
            replayed += usize::from(done["notes"].to_string().contains("were replayed"));
            around += usize::from(goes_around(&cut));
            // The kernel's own replay of the same is the reference.
            let reference = scratch.join("reference");
            let mut disk = LoopDisk::over_file(&cut);
            disk.mount(&reference);
            let what = format!("{name} at round {round}");
            let count = tree::compare(&what, &reference, &to, &[LOST_AND_FOUND], Times::Nanoseconds);
            assert!(count > 120, "{what}: {count}");
            disk.unmount();
            fs::remove_dir_all(&to).expect("it is ours");
        }
        let mut live = live;
        live.disk.unmount();
    }
    assert!(replayed * 2 > points, "of {points} points {replayed} had something to replay");
    assert!(around > 0, "none of the journals went around its end");
}

#[test]
fn what_is_in_fast_commits_alone_is_told() {
    if !tool::has(&["root", "/dev/loop-control", "losetup", "mke2fs", "mount"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", 64 * MIB)]);
    let mut live =
        Mounted::new(&scratch, 64 * MIB, &["-t", "ext4", "-O", "fast_commit"], "journal_data_ordered");
    fs::write(live.at.join("before"), "before").expect("it can be written");
    tool::run("sync", ["-f", live.at.to_str().expect("plain")]);
    let mut new = fs::File::create(live.at.join("new")).expect("it can be made");
    new.write_all(b"new").and_then(|()| new.sync_all()).expect("it can be synced");
    live.cut(&scratch.join("cut"));
    drop(new);
    live.disk.unmount();
    write_image(&mut pair, "data", &scratch.join("cut"));
    let to = scratch.join("to");
    let done = restore(&pair.west, "data", "latest", "/", &to);
    assert!(done["notes"].to_string().contains("fast commits, which are not replayed"), "{}", done["notes"]);
    assert_eq!(fs::read(to.join("before")).expect("it is there"), b"before");
}

#[test]
fn without_root_all_but_the_owner_comes_back() {
    // To be somebody else.
    if !tool::has(&["root", "mke2fs"]) {
        return;
    }
    const SOMEBODY: u32 = 65_534;
    let (mut pair, scratch) = started(&[Volume::new("data", 32 * MIB)]);
    let (origin, image, to) = (scratch.join("origin"), scratch.join("image"), scratch.join("to"));
    fs::create_dir_all(origin.join("folder")).expect("it can be made");
    fs::write(origin.join("folder/mine"), "mine").expect("it can be written");
    fs::write(origin.join("folder/roots"), "roots").expect("it can be written");
    fs::set_permissions(origin.join("folder/mine"), PermissionsExt::from_mode(0o4711)).expect("it is ours");
    fs::set_permissions(origin.join("folder/roots"), PermissionsExt::from_mode(0o4555)).expect("it is ours");
    tree::set_attribute(&origin.join("folder/roots"), "user.kept", b"yes");
    std::os::unix::fs::chown(origin.join("folder/mine"), Some(SOMEBODY), Some(SOMEBODY))
        .expect("we are root");
    fs::set_permissions(origin.join("folder/mine"), PermissionsExt::from_mode(0o4711)).expect("it is ours");
    mke2fs(&image, 32 * MIB, &["-t", "ext4"], &origin);
    write_image(&mut pair, "data", &image);
    fs::create_dir(&to).expect("it can be made");
    std::os::unix::fs::chown(&to, Some(SOMEBODY), Some(SOMEBODY)).expect("we are root");
    pair.west.stop();
    pair.west.give_to(SOMEBODY);
    pair.west.start();
    let done = restore(&pair.west, "data", "latest", "/folder", &to);
    assert_eq!(
        (number(&done["files"]), number(&done["without_owner"])),
        (2, 2),
        "a file and the folder: {done}"
    );
    let about = |name: &str| fs::metadata(to.join("folder").join(name)).expect("it is there");
    assert_eq!((about("mine").uid(), about("mine").mode() & 0o7777), (SOMEBODY, 0o4711));
    let roots = about("roots");
    assert_eq!((roots.uid(), roots.mode() & 0o7777), (SOMEBODY, 0o555), "no set-user bit for somebody else");
    assert_eq!(tree::attribute(&to.join("folder/roots"), "user.kept").as_deref(), Some(&b"yes"[..]));
}

/// A folder in memory, where that has so much room: making and removing files by the hundred thousand is not what is
/// tested, and takes minutes on a disk that others use.
fn in_memory(room: u64) -> Scratch {
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(found) if found.f_bavail * found.f_frsize >= room => Scratch::under(memory),
        _ => Scratch::new(),
    }
}

#[test]
fn a_hundred_thousand_files() {
    if !tool::has(&["mke2fs"]) {
        return;
    }
    const FILES: usize = 100_000;
    let (mut pair, _nodes) = started(&[Volume::new("data", 256 * MIB)]);
    let scratch = in_memory(2 << 30);
    let (origin, image, to) = (scratch.join("origin"), scratch.join("image"), scratch.join("to"));
    for folder in 0..100 {
        let path = origin.join(format!("folder-{folder:02}"));
        fs::create_dir_all(&path).expect("it can be made");
        for file in 0..FILES / 100 {
            fs::write(path.join(format!("file-{file:03}")), format!("{folder} {file}"))
                .expect("it can be written");
        }
    }
    mke2fs(&image, 256 * MIB, &["-t", "ext4", "-b", "1024", "-N", "110000"], &origin);
    write_image(&mut pair, "data", &image);
    let start = std::time::Instant::now();
    let done = restore(&pair.west, "data", "latest", "/", &to);
    eprintln!("{FILES} files were restored in {:?}", start.elapsed());
    assert_eq!((number(&done["files"]), number(&done["left_count"])), (FILES as u64, 0));
    let count = tree::compare("all", &origin, &to, &[LOST_AND_FOUND], Times::Seconds);
    assert_eq!(count, FILES + 100);
}

/// A FAT, made and filled by another implementation.
#[track_caller]
fn make_fat(image: &Path, size: u64, kind: fatfs::FatType) {
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

fn fat_files() -> Vec<(usize, String, Vec<u8>)> {
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
fn check_fat(to: &Path) {
    let dirs = ["", "a folder with a long name", "a folder with a long name/deeper"].map(|dir| to.join(dir));
    for (dir, name, content) in fat_files() {
        assert!(fs::read(dirs[dir].join(&name)).expect("it is there") == content, "{name}");
    }
    assert_eq!(tree::walk(to).len(), fat_files().len() + 2);
}

#[test]
fn every_width_of_fat() {
    let kinds = [
        ("fat12", 2 * MIB, fatfs::FatType::Fat12),
        ("fat16", 20 * MIB, fatfs::FatType::Fat16),
        ("fat32", 48 * MIB, fatfs::FatType::Fat32),
    ];
    let (mut pair, scratch) = started(&kinds.map(|(name, size, _)| Volume::new(name, size)));
    for (name, size, kind) in kinds {
        let (image, to) = (scratch.join("image"), scratch.join(name));
        make_fat(&image, size, kind);
        write_image(&mut pair, name, &image);
        let done = restore(&pair.west, name, "latest", "/", &to);
        assert_eq!(done["filesystem"], name.to_uppercase());
        assert_eq!(
            (number(&done["left_count"]), number(&done["files"])),
            (0, fat_files().len() as u64),
            "{done}"
        );
        check_fat(&to);
    }
    // Letters may be large or small.
    let some = scratch.join("some");
    restore(&pair.west, "fat16", "latest", "/short.txt", &some);
    assert_eq!(fs::read(some.join("SHORT.TXT")).expect("it is there"), b"short");
    let listed = pair.west.ask(["restore", "ls", "db/fat16", "--at", "latest"]);
    assert_eq!(listed["entries"][0]["mode"], Value::Null, "a FAT has no modes");
}

/// Where the two partitions of a disk are, in sectors.
const PARTITIONS: [(u64, u64); 2] = [(2048, 32768), (40960, 16384)];

/// A disk with an ext4 and a FAT, before it has a table.
#[track_caller]
fn make_disk(scratch: &Scratch, image: &Path, origin: &Path) -> Vec<u8> {
    let (ext, fat) = (scratch.join("ext"), scratch.join("fat"));
    mke2fs(&ext, PARTITIONS[0].1 * 512, &["-t", "ext4"], origin);
    make_fat(&fat, PARTITIONS[1].1 * 512, fatfs::FatType::Fat12);
    let mut disk = vec![0; 32 << 20];
    for ((first, sectors), part) in PARTITIONS.into_iter().zip([ext, fat]) {
        let part = fs::read(part).expect("it was made");
        disk[first as usize * 512..][..part.len()].copy_from_slice(&part);
        assert_eq!(part.len() as u64, sectors * 512);
    }
    fs::write(image, &disk).expect("it can be written");
    disk
}

fn put_mbr(disk: &mut [u8], sector: u64, index: usize, kind: u8, first: u64, sectors: u64) {
    let sector = &mut disk[sector as usize * 512..][..512];
    let entry = &mut sector[446 + index * 16..][..16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&(first as u32).to_le_bytes());
    entry[12..].copy_from_slice(&(sectors as u32).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
}

fn put_gpt(disk: &mut [u8]) {
    let last = disk.len() / 512 - 1;
    put_mbr(disk, 0, 0, 0xee, 1, last as u64);
    let mut entries = vec![0; 128 * 128];
    for (entry, (first, sectors)) in entries.chunks_mut(128).zip(PARTITIONS) {
        entry[..32].fill(0x11);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&(first + sectors - 1).to_le_bytes());
        entry[56..60].copy_from_slice(b"p\0\0\0");
    }
    for (header_at, entries_at) in [(1, 2), (last, last - 32)] {
        disk[entries_at * 512..][..entries.len()].copy_from_slice(&entries);
        let header = &mut disk[header_at * 512..][..92];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        header[24..32].copy_from_slice(&(header_at as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(entries_at as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let checksum = crc32fast::hash(header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[test]
fn disks_with_partitions() {
    if !tool::has(&["mke2fs"]) {
        return;
    }
    let names = ["mbr", "logical", "gpt", "single"];
    let (mut pair, scratch) = started(&names.map(|name| Volume::new(name, 32 * MIB)));
    let (origin, image) = (scratch.join("origin"), scratch.join("image"));
    fs::create_dir(&origin).expect("it can be made");
    fs::write(origin.join("here"), "ext").expect("it can be written");
    let plain = make_disk(&scratch, &image, &origin);
    let [(ext, ext_len), (fat, fat_len)] = PARTITIONS;
    for name in names {
        let mut disk = plain.clone();
        let numbers = match name {
            "mbr" => {
                put_mbr(&mut disk, 0, 0, 0x83, ext, ext_len);
                put_mbr(&mut disk, 0, 3, 0x0c, fat, fat_len);
                [1, 4]
            }
            "logical" => {
                put_mbr(&mut disk, 0, 1, 0x05, ext - 1, 60_000);
                put_mbr(&mut disk, ext - 1, 0, 0x83, 1, ext_len);
                put_mbr(&mut disk, ext - 1, 1, 0x05, fat - 1 - (ext - 1), fat_len + 1);
                put_mbr(&mut disk, fat - 1, 0, 0x0c, 1, fat_len);
                [5, 6]
            }
            "gpt" => {
                put_gpt(&mut disk);
                [1, 2]
            }
            _ => {
                put_mbr(&mut disk, 0, 0, 0x83, ext, ext_len);
                [1, 1]
            }
        };
        fs::write(&image, &disk).expect("it can be written");
        write_image(&mut pair, name, &image);
        let volume = format!("{GROUP}/{name}");
        let listed = pair.west.ask(["restore", "ls", &volume, "--at", "latest"]);
        let to = scratch.join(name);
        if name == "single" {
            assert_eq!(
                (number(&listed["partition"]), &listed["entries"][0]["name"]),
                (1, &Value::from("here"))
            );
            restore(&pair.west, name, "latest", "/here", &to);
            assert_eq!(fs::read(to.join("here")).expect("it is there"), b"ext");
            continue;
        }
        let parts = listed["partitions"].as_array().expect("a list");
        let found = parts.iter().map(|part| (number(&part["number"]), part["filesystem"].as_str()));
        let wanted = [(numbers[0], Some("ext4")), (numbers[1], Some("FAT12"))];
        assert_eq!(found.collect::<Vec<_>>(), wanted, "{name}");
        let (code, _, said) = try_restore(&pair.west, name, "/", &to, &[]);
        assert!(code == 2 && said.contains("--partition"), "{name}: {code}: {said}");
        let (code, _, said) = try_restore(&pair.west, name, "/", &to, &["--partition", "9"]);
        assert!(code == 3 && said.contains("no partition 9"), "{name}: {code}: {said}");
        let (code, _, said) =
            try_restore(&pair.west, name, "/", &to, &["--partition", &numbers[1].to_string()]);
        assert_eq!(code, 0, "{name}: {said}");
        check_fat(&to);
        let number = numbers[0].to_string();
        let in_it = pair.west.ask(["restore", "ls", &volume, "--at", "latest", "--partition", &number]);
        assert_eq!(in_it["entries"][0]["name"], "here", "{name}");
    }
}

/// Replaces all places of `old` in a file.
#[track_caller]
fn patch(image: &Path, old: &[u8], new: &[u8]) {
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

#[test]
fn a_hostile_filesystem_writes_nothing_outside_the_target() {
    if !tool::has(&["mke2fs", "debugfs"]) {
        return;
    }
    let (mut pair, scratch) = started(&[Volume::new("data", 16 * MIB)]);
    let (origin, image, outside) = (scratch.join("origin"), scratch.join("image"), scratch.join("outside"));
    fs::create_dir(&outside).expect("it can be made");
    for dir in ["folder", "door-1", "inner"] {
        fs::create_dir_all(origin.join(dir)).expect("it can be made");
    }
    fs::write(origin.join("good"), "good").expect("it can be written");
    fs::write(origin.join("up-up-evil1"), "evil").expect("it can be written");
    fs::write(origin.join("-absolute-x"), "evil").expect("it can be written");
    fs::write(origin.join("zero-in-it"), "evil").expect("it can be written");
    fs::write(origin.join("folder/dotdot"), "evil").expect("it can be written");
    fs::write(origin.join("door-1/evil2"), "evil").expect("it can be written");
    fs::write(origin.join("inner/file"), "inner").expect("it can be written");
    // A link to the outside, and behind it a folder of the same name.
    symlink(&outside, origin.join("door-0")).expect("it can be linked");
    mke2fs(&image, 16 * MIB, &["-t", "ext4", "-O", "^metadata_csum,^dir_index"], &origin);
    patch(&image, b"up-up-evil1", b"../../evil1");
    patch(&image, b"-absolute-x", b"/absolute/x");
    patch(&image, b"zero-in-it", b"zero\0in-it");
    patch(&image, b"door-0", b"door-X");
    patch(&image, b"door-1", b"door-X");
    // A folder in itself, and one in two places.
    let steps = "ln folder inner/circle\nln inner inner/inner\nln / inner/root\n";
    fs::write(scratch.join("steps"), steps).expect("it can be written");
    tool::check(tool::command("debugfs").args(["-w", "-f"]).arg(scratch.join("steps")).arg(&image));
    write_image(&mut pair, "data", &image);
    for (name, more) in [("keep", &[][..]), ("force", &["--force"])] {
        let to = scratch.join("a/b").join(name);
        let (code, done, said) = try_restore(&pair.west, "data", "/", &to, more);
        assert_eq!(code, 7, "{said}");
        let left = done["left"].as_array().expect("a list");
        let why =
            |path: &str| left.iter().find(|left| left["path"] == path).map(|left| left["why"].to_string());
        for path in ["/../../evil1", "//absolute/x", "/zero\0in-it", "/door-X"] {
            assert!(why(path).is_some(), "{path}: {done}");
        }
        let again = left.iter().filter(|left| left["why"].to_string().contains("already in another place"));
        assert_eq!(again.count(), 3, "{done}");
        assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0, "nothing got out: {name}");
        let around = tree::walk(&scratch.join("a"));
        assert!(
            around.iter().all(|path| *path == Path::new("b") || path.starts_with(Path::new("b"))),
            "{around:?}"
        );
        let evil = walk_names(scratch.path()).into_iter().filter(|name| name == "evil1").count();
        assert_eq!(evil, 0, "{name}");
        assert_eq!(fs::read(to.join("good")).expect("it is there"), b"good");
        assert_eq!(fs::read(to.join("inner/file")).expect("it is there"), b"inner");
    }
    // What somebody else put into the target is not gone through either.
    let to = scratch.join("prepared");
    fs::create_dir(&to).expect("it can be made");
    symlink(&outside, to.join("inner")).expect("it can be linked");
    let (code, _, said) = try_restore(&pair.west, "data", "/inner/file", &to, &["--force"]);
    assert_eq!(code, 7, "{said}");
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0, "nothing got out");
}

fn walk_names(root: &Path) -> Vec<String> {
    let names = tree::walk(root).into_iter().filter_map(|path| path.file_name().map(|name| name.to_owned()));
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Where in an image something is, by `debugfs`.
#[track_caller]
fn blocks_of(image: &Path, path: &str) -> Vec<u64> {
    let mut command = tool::command("debugfs");
    let said = tool::check(command.arg("-R").arg(format!("blocks {path}")).arg(image));
    said.split_whitespace().filter_map(|block| block.parse().ok()).collect()
}

#[test]
fn of_a_damaged_filesystem_what_can_be_read_is_restored() {
    if !tool::has(&["mke2fs", "debugfs"]) {
        return;
    }
    let sizes = [("data", 16 * MIB), ("fat", 2 * MIB), ("first", 16 * MIB), ("meta", 16 * MIB)];
    let (mut pair, scratch) = started(&sizes.map(|(name, size)| Volume::new(name, size)));
    let (origin, image, to) = (scratch.join("origin"), scratch.join("image"), scratch.join("to"));
    for dir in ["sound", "lost", "split"] {
        fs::create_dir_all(origin.join(dir)).expect("it can be made");
        for index in 0..20 {
            fs::write(origin.join(dir).join(format!("file-{index}")), tree::pattern(9000)).expect("written");
        }
    }
    // Pieces with holes in between, so that the tree of extents has blocks of its own.
    let pieces = fs::File::create(origin.join("split/pieces")).expect("it can be made");
    for index in 0..20 {
        pieces.write_all_at(&tree::pattern(4096), index * 40_960).expect("it can be written");
    }
    mke2fs(&image, 16 * MIB, &["-t", "ext4", "-b", "4096"], &origin);
    let block = blocks_of(&image, "/lost")[0];
    let mut bytes = fs::read(&image).expect("it is there");
    bytes[block as usize * 4096 + 100] ^= 0xff;
    let mut command = tool::command("debugfs");
    let said = tool::check(command.args(["-R", "ex split/pieces"]).arg(&image));
    // Its last two columns: where the node is, and how many blocks are below it.
    let node = said.lines().find(|line| line.contains("0/ 1")).expect("it has a node of its own");
    let node = node.split_whitespace().rev().nth(1).and_then(|word| word.parse::<usize>().ok());
    bytes[node.expect("its block is told") * 4096 + 20] ^= 0xff;
    let mut command = tool::command("debugfs");
    let said = tool::check(command.args(["-R", "imap sound/file-3"]).arg(&image));
    let place = said.split("located at block ").nth(1).expect("it is told");
    let mut words = place.split([',', ' ']).filter(|word| !word.is_empty());
    let block: usize = words.next().and_then(|word| word.parse().ok()).expect("a block");
    let offset = place.split("offset 0x").nth(1).and_then(|word| usize::from_str_radix(word.trim(), 16).ok());
    bytes[block * 4096 + offset.expect("an offset") + 4] ^= 0xff;
    fs::write(&image, bytes).expect("it can be written");
    write_image(&mut pair, "data", &image);

    let (code, done, said) = try_restore(&pair.west, "data", "/", &to, &[]);
    assert_eq!(code, 7, "{said}");
    let left = done["left"].as_array().expect("a list");
    let mut paths = left.iter().map(|left| left["path"].as_str().expect("a path")).collect::<Vec<_>>();
    paths.sort_unstable();
    assert_eq!(paths, ["/lost", "/sound/file-3", "/split/pieces"], "{done}");
    assert!(left.iter().all(|left| left["what"] == "damaged"), "{done}");
    assert_eq!(fs::read_dir(to.join("lost")).expect("it is there").count(), 0);
    assert!(!to.join("split/pieces").exists() && to.join("split/pieces.damaged").exists());
    for (dir, count) in [("sound", 19), ("split", 21)] {
        assert_eq!(fs::read_dir(to.join(dir)).expect("it is there").count(), count, "{dir}");
    }
    assert_eq!(fs::read(to.join("sound/file-4")).expect("it is there"), tree::pattern(9000));
    let listed = pair.west.try_ask(["restore", "ls", "db/data", "--at", "latest", "--recursive"]);
    assert_eq!(listed.status.code(), Some(7), "{}", tool::said(&listed));
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("an answer all the same");
    assert_eq!(number(&listed["fault_count"]), 2, "{}", listed["faults"]);

    // The superblock and the descriptors of the groups behind it: both have copies.
    for (volume, features) in [("first", "resize_inode"), ("meta", "meta_bg,^resize_inode")] {
        mke2fs(&image, 16 * MIB, &["-t", "ext4", "-b", "1024", "-O", features], &origin);
        let file = fs::File::options().write(true).open(&image).expect("it is there");
        file.write_all_at(&[0; 3 * 1024], 0).expect("it can be written");
        write_image(&mut pair, volume, &image);
        let to = scratch.join(volume);
        let done = restore(&pair.west, volume, "latest", "/", &to);
        assert!(done["notes"].to_string().contains("superblock is lost"), "{}", done["notes"]);
        tree::compare(volume, &origin, &to, &[LOST_AND_FOUND], Times::Seconds);
    }

    // A chain of clusters that leads back into itself.
    let fat = scratch.join("fat");
    make_fat(&fat, 2 * MIB, fatfs::FatType::Fat12);
    let mut bytes = fs::read(&fat).expect("it is there");
    let at = bytes.windows(11).position(|found| found == b"LARGE      ").expect("its entry");
    let first = usize::from(u16::from_le_bytes([bytes[at + 26], bytes[at + 27]])) + 4;
    let reserved = usize::from(u16::from_le_bytes([bytes[14], bytes[15]])) * 512 + first * 3 / 2;
    let old = u16::from_le_bytes([bytes[reserved], bytes[reserved + 1]]);
    let new = if first % 2 == 0 { old & 0xf000 | 0xffe } else { old & 0xf | 0xffe0 };
    bytes[reserved..reserved + 2].copy_from_slice(&new.to_le_bytes());
    fs::write(&fat, bytes).expect("it can be written");
    write_image(&mut pair, "fat", &fat);
    let to = scratch.join("to.fat");
    let (code, done, said) = try_restore(&pair.west, "fat", "/", &to, &[]);
    assert_eq!((code, number(&done["left_count"])), (7, 1), "{said}");
    assert!(to.join("a folder with a long name/deeper/large.damaged").exists());
    assert_eq!(fs::read(to.join("SHORT.TXT")).expect("it is there"), b"short");
}

#[test]
fn wrong_input_is_told_and_changes_nothing() {
    if !tool::has(&["mke2fs"]) {
        return;
    }
    let names = ["data", "blank", "xfs", "torn"];
    let (mut pair, scratch) = started(&names.map(|name| Volume::new(name, 16 * MIB)));
    let (origin, image, to) = (scratch.join("origin"), scratch.join("image"), scratch.join("to"));
    fs::create_dir_all(origin.join("var/lib")).expect("it can be made");
    fs::write(origin.join("var/file"), "file").expect("it can be written");
    symlink("around", origin.join("around")).expect("it can be linked");
    let mut pipe = tool::command("mkfifo");
    tool::check(pipe.arg(origin.join("var/pipe")));
    // With large blocks: a single group, and no copy of its superblock.
    mke2fs(&image, 16 * MIB, &["-t", "ext4", "-b", "4096"], &origin);
    write_image(&mut pair, "data", &image);
    fs::write(scratch.join("xfs"), b"XFSB and more").expect("it can be written");
    write_image(&mut pair, "xfs", &scratch.join("xfs"));
    patch(&image, &[0x53, 0xef], &[0x53, 0xef]);
    let mut torn = fs::read(&image).expect("it is there");
    torn[1024 + 0x18] = 99;
    fs::write(&image, torn).expect("it can be written");
    write_image(&mut pair, "torn", &image);

    let cases = [
        ("data", "/var/lib/none/deeper", 3, "the nearest folder that is there is /var/lib"),
        ("data", "/var/file/deeper", 3, "/var/file is no folder, but a file"),
        ("data", "/around/x", 3, "more than 40 links"),
        ("blank", "/", 3, "zeros at its beginning"),
        ("xfs", "/", 3, "found XFS"),
        ("torn", "/", 4, "the superblock is damaged"),
        ("none", "/", 3, "no volume none"),
    ];
    for (volume, path, wanted, message) in cases {
        let (code, _, said) = try_restore(&pair.west, volume, path, &to, &[]);
        assert_eq!(code, wanted, "{volume}{path}: {said}");
        assert!(said.contains(message), "{volume}{path}: {said}");
        assert!(!to.exists(), "nothing is made");
    }
    let (code, _, said) = try_restore(&pair.west, "data", "/", &to, &["--partition", "1"]);
    assert!(code == 3 && said.contains("no partition table"), "{said}");
    let outside = pair.west.try_ask(["restore", "ls", "db/data", "--at", "lsn:999999999"]);
    assert_eq!(outside.status.code(), Some(3), "{}", tool::said(&outside));
    let (code, _, said) = try_restore(&pair.west, "data", "/", &image, &[]);
    assert!(code == 1 && said.contains("cannot be used as a folder"), "{code}: {said}");

    // Pipes, devices and sockets are told, and no reason for another status.
    let (code, done, said) = try_restore(&pair.west, "data", "/var", &to, &[]);
    assert_eq!((code, number(&done["special_count"])), (0, 1), "{said}");
    assert_eq!(
        (&done["left"][0]["path"], &done["left"][0]["what"]),
        (&"/var/pipe".into(), &"special".into())
    );
    assert!(!to.join("var/pipe").exists());
}
