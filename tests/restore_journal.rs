//! `landfall restore files` out of a filesystem that was in use: what comes back is what a mount would show, the replay of
//! the journal included. The kernel's own replay is the reference.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use support::Scratch;
use support::disk::LoopDisk;
use support::image::{LOST_AND_FOUND, MIB, lsn, mke2fs, restore, write_image};
use support::node::Volume;
use support::node::number;
use support::node::started;
use support::tool;
use support::tree;
use support::tree::Times;

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
