//! The superblock of ext2, ext3 and ext4, and the superblock of their journal. Layouts: the kernel's
//! `Documentation/filesystems/ext4/{super,journal}.rst`.

use super::{Family, Header, Source, u16_at, u32_at};
use std::io;

const AT: usize = 1024;
const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const COMPAT_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
/// Features that only ext4 has: extents, 64 bits, flexible groups.
const INCOMPAT_EXT4: u32 = 0x40 | INCOMPAT_64BIT | 0x200;
/// Large files, checksums of groups, of metadata.
const RO_COMPAT_EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | RO_COMPAT_CHECKSUMS;
const RO_COMPAT_CHECKSUMS: u32 = 0x400;

/// How deep an extent tree may be.
const MAX_DEPTH: usize = 5;

/// Looks at the superblock; `None` if there is none.
pub(super) fn look(start: &[u8], source: &mut dyn Source) -> io::Result<Option<Header>> {
    let Some(sb) = start.get(AT..AT + BYTES).filter(|sb| u16_at(sb, 0x38) == MAGIC) else { return Ok(None) };
    let (compat, incompat, ro_compat) = (u32_at(sb, 0x5c), u32_at(sb, 0x60), u32_at(sb, 0x64));
    let name = match (incompat & INCOMPAT_EXT4, ro_compat & RO_COMPAT_EXT4, compat & COMPAT_JOURNAL) {
        (0, 0, 0) => "ext2",
        (0, 0, _) => "ext3",
        _ => "ext4",
    };
    let mut said = Vec::new();
    let mut wrong = Vec::new();

    if ro_compat & RO_COMPAT_CHECKSUMS != 0 {
        match crc32c(&sb[..0x3fc]) == u32_at(sb, 0x3fc) {
            true => said.push("the superblock's checksum is right".to_owned()),
            false => wrong.push("the superblock's checksum does not match".to_owned()),
        }
    }
    let block_bytes = match u32_at(sb, 0x18) {
        log @ 0..=6 => 1024_u64 << log,
        log => {
            wrong.push(format!("blocks of 2^{log} KiB are too large"));
            return Ok(Some(Header { family: Family::Ext, found: name.to_owned(), wrong }));
        }
    };
    let high = if incompat & INCOMPAT_64BIT != 0 { u64::from(u32_at(sb, 0x150)) } else { 0 };
    let blocks = high << 32 | u64::from(u32_at(sb, 0x4));
    match blocks.checked_mul(block_bytes) {
        Some(bytes) if bytes > 0 && bytes <= source.size() => {
            said.insert(0, format!("{blocks} blocks of {block_bytes} bytes"));
        }
        _ => wrong.push(format!(
            "it says that it has {blocks} blocks of {block_bytes} bytes, and the volume has {} bytes",
            source.size()
        )),
    }
    let state = u16_at(sb, 0x3a);
    if state & STATE_ERRORS != 0 {
        wrong.push("the kernel has noted errors in it".to_owned());
    }
    let has_journal = compat & COMPAT_JOURNAL != 0;
    match (has_journal, incompat & INCOMPAT_RECOVER != 0) {
        (true, true) => said.push("the journal is to be replayed, as after a power cut".to_owned()),
        (true, false) => said.push("the journal needs no replay".to_owned()),
        (false, true) => wrong.push("it asks for a replay of a journal that it does not have".to_owned()),
        (false, false) if state & STATE_CLEAN == 0 => {
            said.push("no journal, and in use at that moment: only a full check tells more".to_owned());
        }
        (false, false) => said.push("no journal, unmounted cleanly".to_owned()),
    }
    if has_journal && wrong.is_empty() {
        match journal(sb, block_bytes, source)? {
            Ok(words) => said.push(words),
            Err(words) => wrong.push(words),
        }
    }
    Ok(Some(Header { family: Family::Ext, found: format!("{name}, {}", said.join(", ")), wrong }))
}

/// The journal's superblock: what is well, or what is wrong.
fn journal(sb: &[u8], block_bytes: u64, source: &mut dyn Source) -> io::Result<Result<String, String>> {
    const INTERNAL: u32 = 8;
    if u32_at(sb, 0xe0) != INTERNAL || sb[0xfd] != 1 {
        return Ok(Ok("its journal is not where it can be found from here".to_owned()));
    }
    // The journal's inode has a copy of its block map in the superblock: 15 words, and the size.
    let mut map = sb[0x10c..0x10c + 60].to_vec();
    let nowhere = Err("the way to its journal is damaged".to_owned());
    let mut block = u64::from(u32_at(&map, 0));
    for depth in 0.. {
        if u16_at(&map, 0) != 0xf30a {
            break;
        }
        let high_at = if u16_at(&map, 6) == 0 { 12 + 6 } else { 12 + 8 };
        let low_at = if u16_at(&map, 6) == 0 { 12 + 8 } else { 12 + 4 };
        block = u64::from(u16_at(&map, high_at)) << 32 | u64::from(u32_at(&map, low_at));
        if u16_at(&map, 6) == 0 {
            break;
        }
        let mut node = vec![0; block_bytes as usize];
        if depth == MAX_DEPTH || !read(source, block, block_bytes, &mut node)? || u16_at(&node, 0) != 0xf30a {
            return Ok(nowhere);
        }
        map = node;
    }
    let mut head = [0; 1024];
    if block == 0 || !read(source, block, block_bytes, &mut head)? {
        return Ok(nowhere);
    }
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if word(0) != 0xc03b_3998 || !(3..=4).contains(&word(4)) || u64::from(word(12)) != block_bytes {
        return Ok(Err("its journal has no superblock".to_owned()));
    }
    Ok(match word(0x20) {
        0 => Ok("the journal's superblock is sound".to_owned()),
        error => Err(format!("its journal was aborted with error {error}")),
    })
}

/// Reads from a block on; false if it does not lie in the volume.
fn read(source: &mut dyn Source, block: u64, block_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
    let offset = block.checked_mul(block_bytes);
    let fits = |offset: &u64| offset.checked_add(buf.len() as u64).is_some_and(|end| end <= source.size());
    match offset.filter(fits) {
        Some(offset) => source.read(offset, buf).map(|()| true),
        None => Ok(false),
    }
}

/// CRC-32C as ext4 has it: from all ones, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock of a small ext3 with a journal at block 9.
    fn volume() -> Vec<u8> {
        let mut volume = vec![0; 64 << 10];
        let mut put = |at: usize, bytes: &[u8]| volume[at..at + bytes.len()].copy_from_slice(bytes);
        put(AT + 0x4, &64_u32.to_le_bytes());
        put(AT + 0x38, &MAGIC.to_le_bytes());
        put(AT + 0x3a, &1_u16.to_le_bytes());
        put(AT + 0x5c, &COMPAT_JOURNAL.to_le_bytes());
        put(AT + 0xe0, &8_u32.to_le_bytes());
        put(AT + 0xfd, &[1]);
        put(AT + 0x10c, &9_u32.to_le_bytes());
        put(9 << 10, &0xc03b_3998_u32.to_be_bytes());
        put((9 << 10) + 4, &4_u32.to_be_bytes());
        put((9 << 10) + 12, &1024_u32.to_be_bytes());
        volume
    }

    fn looked(mut volume: Vec<u8>) -> (String, Vec<String>) {
        let header = super::super::look(&mut volume).unwrap();
        assert_eq!(header.family, Family::Ext);
        (header.found, header.wrong)
    }

    #[test]
    fn a_sound_header_says_how_it_was_left() {
        let (found, wrong) = looked(volume());
        let expected =
            "ext3, 64 blocks of 1024 bytes, the journal needs no replay, the journal's superblock is sound";
        assert_eq!((found.as_str(), wrong), (expected, Vec::new()));
        let mut in_use = volume();
        in_use[AT + 0x60] = INCOMPAT_RECOVER as u8;
        assert!(looked(in_use).0.contains("is to be replayed"));
    }

    #[test]
    fn what_is_damaged_is_said() {
        for (at, byte, expected) in [
            (AT + 0x4, 65, "65 blocks of 1024 bytes, and the volume has 65536 bytes"),
            (AT + 0x18, 9, "too large"),
            (AT + 0x3a, 2, "noted errors"),
            (9 << 10, 0, "no superblock"),
            ((9 << 10) + 0x23, 5, "aborted with error 5"),
            (AT + 0x10d, 1, "the way to its journal is damaged"),
            (AT + 0x65, 4, "checksum does not match"),
        ] {
            let mut volume = volume();
            volume[at] = byte;
            let (_, wrong) = looked(volume);
            assert!(wrong.iter().any(|wrong| wrong.contains(expected)), "{expected}: {wrong:?}");
        }
    }

    /// The check value of CRC-32C, which is inverted at the end where ext4's is not.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
