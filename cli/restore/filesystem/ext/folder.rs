//! The names in a folder: blocks of entries, hashed or not, or entries in the inode itself.
//!
//! The blocks of a hash tree look like entries without an inode to whoever does not know them, so that all blocks can
//! be read alike. A block whose checksum is wrong is left out as a whole: what would be read out of it could be
//! any file under any name.
//!
//! Layout: the kernel's `Documentation/filesystems/ext4/directory.rst`.

use super::crc::crc32c;
use crate::restore::filesystem::{Entry, Listing, NodeId};
use crate::restore::source::{Raw, Trouble};

/// Of an entry, before its name.
const HEADER_BYTES: usize = 8;
/// An entry at the end of a block that holds its checksum.
const TAIL_BYTES: usize = 12;
const TAIL_KIND: u8 = 0xde;

/// How a folder's entries are to be read.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Whether an entry holds the kind of what it names.
    pub(super) has_file_types: bool,
    /// The seed of the blocks' checksums.
    pub(super) checksum_seed: Option<u32>,
}

/// Adds the entries of a block. `index`: which one of the folder.
pub(super) fn block(bytes: &[u8], index: u64, form: Form, listing: &mut Listing) {
    if is_of_tree(bytes, index) {
        return;
    }
    if let Some(seed) = form.checksum_seed
        && !checksum_is_right(bytes, seed)
    {
        let what = format!("the names in block {index} of it are lost: the checksum is wrong");
        return listing.faults.push(Trouble::damaged(what));
    }
    if entries(bytes, form, listing).is_none() {
        let what = format!("names in block {index} of it are lost: an entry makes no sense");
        listing.faults.push(Trouble::damaged(what));
    }
}

/// Adds the entries of a part of an inode. None: what comes behind the last one added makes no sense.
pub(super) fn entries(bytes: &[u8], form: Form, listing: &mut Listing) -> Option<()> {
    let mut at = 0;
    // A stretch that is too short for an entry is left over.
    while at + HEADER_BYTES <= bytes.len() {
        let raw = Raw(bytes.get(at..)?);
        let len = record_bytes(raw.u16(4)?, bytes.len());
        let name_len = match form.has_file_types {
            true => usize::from(raw.u8(6)?),
            false => usize::from(raw.u16(6)?),
        };
        if len < HEADER_BYTES || !len.is_multiple_of(4) || len > bytes.len() - at {
            return None;
        }
        let inode = raw.u32(0)?;
        if inode != 0 {
            if name_len == 0 || HEADER_BYTES + name_len > len {
                return None;
            }
            let name = raw.bytes(HEADER_BYTES, name_len)?;
            if name != b"." && name != b".." {
                listing.entries.push(Entry { name: name.to_vec(), node: NodeId::from(inode) });
            }
        }
        at += len;
    }
    Some(())
}

/// Whether a block is of the hash tree and not of its leaves. Its checksum is elsewhere, and what stands at its end may be
/// left over from when it was a leaf.
fn is_of_tree(bytes: &[u8], index: u64) -> bool {
    let raw = Raw(bytes);
    let spans =
        |at: usize| raw.u16(at + 4).map(|len| at + record_bytes(len, bytes.len())) == Some(bytes.len());
    let is_root = index == 0 && raw.bytes(12 + HEADER_BYTES, 3) == Some(b"..\0") && spans(12);
    is_root || raw.u32(0) == Some(0) && spans(0)
}

fn checksum_is_right(bytes: &[u8], seed: u32) -> bool {
    let Some(at) = bytes.len().checked_sub(TAIL_BYTES) else { return false };
    let raw = Raw(bytes);
    raw.u32(at) == Some(0)
        && raw.u16(at + 4) == Some(TAIL_BYTES as u16)
        && raw.u16(at + 6) == Some(u16::from(TAIL_KIND) << 8)
        && raw.u32(at + 8) == Some(crc32c(seed, &bytes[..at]))
}

/// 64 KiB do not fit into 16 bits: in blocks that large the two lowest bits, which are 0, are used as well.
fn record_bytes(len: u16, block: usize) -> usize {
    match len {
        0 | 0xffff if block >= 1 << 16 => block,
        _ if block >= 1 << 16 => usize::from(len & 0xfffc) | usize::from(len & 3) << 16,
        _ => usize::from(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form { has_file_types: true, checksum_seed: None };

    fn entry(inode: u32, len: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = inode.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend([name.len() as u8, 1]);
        bytes.extend(name);
        bytes.resize(usize::from(len).max(8), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> (Vec<(u64, String)>, usize) {
        let mut listing = Listing::default();
        block(bytes, 0, FORM, &mut listing);
        let names = listing.entries.into_iter();
        let names = names.map(|entry| (entry.node, String::from_utf8_lossy(&entry.name).into_owned()));
        (names.collect(), listing.faults.len())
    }

    #[test]
    fn entries_are_read_and_those_without_an_inode_left_out() {
        let mut bytes = entry(2, 12, b".");
        bytes.extend(entry(2, 12, b".."));
        bytes.extend(entry(0, 16, b"gone"));
        bytes.extend(entry(12, 16, b"a"));
        assert_eq!(read(&bytes), (vec![(12, "a".to_owned())], 0));
    }

    #[test]
    fn what_makes_no_sense_ends_the_block_and_is_told() {
        for bad in
            [entry(13, 9, b"b"), entry(13, 0, b"b"), entry(13, 12, b""), entry(13, 400, b"b")[..16].to_vec()]
        {
            let mut bytes = entry(12, 12, b"a");
            bytes.extend(bad);
            assert_eq!(read(&bytes), (vec![(12, "a".to_owned())], 1));
        }
        let mut long = entry(13, 12, b"b");
        long[6] = 200;
        assert_eq!(read(&long), (vec![], 1));
    }

    #[test]
    fn records_of_64_kib() {
        assert_eq!(record_bytes(0xffff, 1 << 16), 1 << 16);
        assert_eq!(record_bytes(12, 1 << 16), 12);
        assert_eq!(record_bytes(0xffff, 4096), 0xffff);
    }
}
