//! `landfall restore files` out of filesystems that are damaged, or made to do harm: what can be read comes back, the rest
//! is listed, and nothing is written outside the target.

mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use support::image::{
    LOST_AND_FOUND, MIB, blocks_of, make_fat, mke2fs, patch, restore, try_restore, write_image,
};
use support::node::Volume;
use support::node::number;
use support::node::started;
use support::tool;
use support::tree;
use support::tree::Times;

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
