//! `landfall restore files` and `landfall restore ls` with real processes: what was put into an ext filesystem comes back out
//! of a point as it was, for every user, at every point; and what is asked for wrongly is told.

mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use support::Scratch;
use support::image::{LOST_AND_FOUND, MIB, lsn, mke2fs, patch, restore, try_restore, write_image};
use support::node::Volume;
use support::node::number;
use support::node::started;
use support::tool;
use support::tree;
use support::tree::Times;

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
    // Before its folder goes: it would make it anew.
    pair.west.stop();
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
