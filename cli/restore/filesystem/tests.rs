//! Damage at random: whatever is done to the bytes of a filesystem, reading it ends, and nothing panics.

use super::{Kind, NodeId, Place, open};
use crate::restore::source::tests::Memory;
use crate::restore::source::{Source, Window};
use crate::scratch::Scratch;
use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

/// A seeded generator: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as usize % limit
    }
}

/// Reads all there is; returns the number of files, and of bytes of content.
fn read_all(disk: Vec<u8>) -> (usize, u64) {
    let window = Window::whole(Rc::new(Memory(disk)));
    let Ok(Some(filesystem)) = open(&window) else { return (0, 0) };
    let (mut seen, mut bytes): (HashSet<NodeId>, u64) = (HashSet::new(), 0);
    let mut rest = vec![filesystem.root()];
    while let Some(node) = rest.pop() {
        if !seen.insert(node) {
            continue;
        }
        let Ok(stat) = filesystem.stat(node) else { continue };
        let _ = filesystem.attributes(node);
        let _ = filesystem.link_target(node);
        if stat.kind == Kind::Folder {
            rest.extend(
                filesystem.list(node).into_iter().flat_map(|list| list.entries).map(|entry| entry.node),
            );
            continue;
        }
        let mut end = 0;
        let mut of_this = 0;
        let ended = filesystem.runs(node, &mut |run| {
            assert!(run.at >= end && run.len > 0, "runs are in order");
            end = run.at + run.len;
            assert!(end <= stat.size, "and within the file");
            of_this += run.len;
            if let Place::Volume(place) = run.place {
                let _ = filesystem.read(place, &mut [0; 16][..run.len.min(16) as usize]);
            }
            Ok(())
        });
        assert!(of_this <= window.len(), "no more than there is room for: {ended:?}");
        bytes += of_this;
    }
    (seen.len(), bytes)
}

fn damage(what: &str, sound: &[u8], places: &[usize], rounds: u64) {
    let (files, bytes) = read_all(sound.to_vec());
    assert!(files > 20 && bytes > 10_000, "{what}: {files} files, {bytes} bytes");
    for seed in 1..=rounds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut disk = sound.to_vec();
        for _ in 0..=random.below(12) {
            let at = places[random.below(places.len())];
            match random.below(4) {
                0 => disk[at] ^= 1 << random.below(8),
                1 => disk[at] = 0xff,
                2 => disk[at..].iter_mut().take(4).for_each(|byte| *byte = 0),
                _ => {
                    let from = places[random.below(places.len())];
                    let len = random.below(64).min(disk.len() - at.max(from));
                    disk.copy_within(from..from + len, at);
                }
            }
        }
        if seed % 7 == 0 {
            disk.truncate(random.below(sound.len()));
        }
        // A panic names the seed, since that is what is printed last.
        let context = Context(format!("{what}, seed {seed}"));
        read_all(disk);
        drop(context);
    }
}

/// Says where a panic came from.
struct Context(String);

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}", self.0);
        }
    }
}

/// Only reading to the end, where there are no files to speak of.
#[test]
fn damaged_journal() {
    let scratch = Scratch::new("damage").unwrap();
    let Some(disk) = super::ext::tests::with_journal(scratch.path(), &["-t", "ext3"], "jo") else { return };
    let magic = [0xc0, 0x3b, 0x39, 0x98];
    let journal = disk.chunks(1024).position(|block| block[..4] == magic).unwrap() * 1024;
    for seed in 1..=2000 {
        let context = Context(format!("journal, seed {seed}"));
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15) | 1);
        let mut damaged = disk.clone();
        for _ in 0..=random.below(4) {
            let at = journal + random.below(10) * 1024 + random.below(96);
            damaged[at] = [0, 1, 0x7f, 0xff][random.below(4)];
        }
        read_all(damaged);
        drop(context);
    }
}

/// Places that are in use for something, from all blocks that are not zero.
fn in_use(disk: &[u8], limit: usize) -> Vec<usize> {
    let blocks = disk.chunks(128).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    blocks.flat_map(|(index, block)| (0..block.len()).map(move |at| index * 128 + at)).take(limit).collect()
}

fn content(dir: &Path) {
    for folder in ["a", "b/c"] {
        let folder = dir.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        for index in 0..12 {
            std::fs::write(folder.join(format!("file {index}")), vec![7; index * 900]).unwrap();
        }
        std::os::unix::fs::symlink("x".repeat(100), folder.join("link")).unwrap();
        std::fs::write(folder.join("large"), vec![9; 300_000]).unwrap();
    }
}

#[test]
fn damaged_ext() {
    let scratch = Scratch::new("damage").unwrap();
    let (dir, image) = (scratch.path().join("content"), scratch.path().join("image"));
    content(&dir);
    for (kind, options) in [
        ("ext2", &["-t", "ext2"][..]),
        ("ext4", &["-t", "ext4", "-O", "^metadata_csum", "-J", "size=1"]),
        ("inline", &["-t", "ext4", "-O", "^metadata_csum,inline_data,^has_journal"]),
    ] {
        std::fs::File::create(&image).and_then(|file| file.set_len(9 << 20)).unwrap();
        let mut command = Command::new("mke2fs");
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F", "-b", "1024"]).args(options);
        match command.arg("-d").arg(&dir).arg(&image).status() {
            Err(_) => return eprintln!("skipped: needs mke2fs"),
            Ok(status) => assert!(status.success(), "{kind}"),
        }
        let disk = std::fs::read(&image).unwrap();
        // Superblock, descriptors, inodes, and the first folders are at the beginning.
        damage(kind, &disk, &in_use(&disk, 60_000), 600);
    }
}

#[test]
fn damaged_fat() {
    for kind in [fatfs::FatType::Fat12, fatfs::FatType::Fat16] {
        let mut disk = Cursor::new(vec![0; if kind == fatfs::FatType::Fat12 { 2 << 20 } else { 9 << 20 }]);
        fatfs::format_volume(&mut disk, fatfs::FormatVolumeOptions::new().fat_type(kind)).unwrap();
        {
            disk.set_position(0);
            let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
            let folder = volume.root_dir().create_dir("a folder").unwrap();
            for index in 0..30 {
                let mut file = folder.create_file(&format!("a file with a name {index}")).unwrap();
                std::io::Write::write_all(&mut file, &vec![3; index * 700]).unwrap();
            }
        }
        let disk = disk.into_inner();
        damage(&format!("{kind:?}"), &disk, &in_use(&disk, 12_000), 600);
    }
}
