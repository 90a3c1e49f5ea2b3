//! `landfall restore files` and `landfall restore ls` with FAT, and with disks that have partitions.

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::Scratch;
use support::image::{MIB, check_fat, fat_files, make_fat, mke2fs, restore, try_restore, write_image};
use support::node::GROUP;
use support::node::Volume;
use support::node::number;
use support::node::started;
use support::tool;

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
