//! The superblock of ext2, ext3 and ext4: how large everything is and where it lies.
//!
//! Invariants: block size, inode size and counts are such that no arithmetic on them overflows, and the filesystem
//! does not end behind the volume by more than what is said in [`Superblock::notes`].
//!
//! Layout: the kernel's `Documentation/filesystems/ext4/super.rst`.

use super::crc::{START, crc32c};
use crate::restore::source::{Raw, Source, Trouble};

/// Where it lies.
const OFFSET: u64 = 1024;
const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

/// Of the state: errors were found.
const STATE_ERRORS: u16 = 0x2;

const COMPAT_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;

const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_META_GROUPS: u32 = 0x10;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGE_FOLDERS: u32 = 0x4000;
/// Those above, and: multiple mount protection, flexible groups, attributes in inodes, inline data, encryption (of
/// single files) and names without case. Neither compression nor data in folder entries was ever in the kernel.
const INCOMPAT_KNOWN: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_GROUPS
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGE_FOLDERS
    | 0x100
    | 0x200
    | 0x400
    | 0x8000
    | 0x1_0000
    | 0x2_0000;

const RO_SPARSE_SUPER: u32 = 0x1;
const RO_CHECKSUMS: u32 = 0x400;

/// What is needed of it.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// Bytes; a power of two from 1024 to 65536.
    pub(super) block_size: u64,
    /// All blocks.
    pub(super) blocks: u64,
    /// All inodes.
    pub(super) inodes: u32,
    /// Bytes of each.
    pub(super) inode_size: u64,
    /// The seed of the checksums of all that is about files; none if there are none.
    pub(super) checksum_seed: Option<u32>,
    /// The inode of the journal, if it has one and it needs to be replayed.
    pub(super) journal: Option<Journal>,
    /// What whoever uses it should know.
    pub(super) notes: Vec<String>,
    /// Whether this is a copy, from the second group, because the first one is lost.
    pub(super) is_copy: bool,
    has_journal: bool,
    incompat: u32,
    ro_compat: u32,
    backups: Option<[u32; 2]>,
    first_data_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
    descriptor_bytes: u64,
    first_meta_group: u64,
}

/// Where the journal is that needs a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// In this inode.
    Inode(u32),
    /// On another device.
    Elsewhere,
}

impl Superblock {
    /// Reads it. None if there is none.
    pub(super) fn read(volume: &dyn Source, size: u64) -> Result<Option<Superblock>, Trouble> {
        if size < OFFSET + BYTES as u64 {
            return Ok(None);
        }
        let bytes = volume.read_vec(OFFSET, BYTES)?;
        if Raw(&bytes).u16(0x38) != Some(MAGIC) {
            return Ok(None);
        }
        Superblock::parse(&bytes, size, false).map(Some)
    }

    /// Reads the copy at the beginning of the second group, where `mke2fs` puts it. None if there is none that is sound.
    ///
    /// A copy does not say whether the journal needs to be replayed: the journal does.
    pub(super) fn read_copy(volume: &dyn Source, size: u64) -> Option<Superblock> {
        let of_shift = |shift: u32| {
            let block_size = 1024_u64 << shift;
            // A group has as many blocks as a block has bits. Blocks of 1 KiB are counted from the second one.
            let at = (u64::from(shift == 0) + block_size * 8) * block_size;
            let bytes = volume.read_vec(at, BYTES).ok()?;
            let raw = Raw(&bytes);
            let is_one = raw.u16(0x38)? == MAGIC && raw.u32(0x18)? == shift && raw.u16(0x5a)? == 1;
            let sb = is_one.then(|| Superblock::parse(&bytes, size, true))?.ok()?;
            (sb.blocks_per_group == block_size * 8).then_some(sb)
        };
        (0..=6).find_map(of_shift)
    }

    fn parse(bytes: &[u8], size: u64, is_copy: bool) -> Result<Superblock, Trouble> {
        let cut = || Trouble::damaged("the superblock is cut off");
        let raw = Raw(bytes);
        let u32_at = |at| raw.u32(at).ok_or_else(cut);
        let (compat, incompat, ro_compat) = match u32_at(0x4c)? {
            0 => (0, 0, 0),
            _ => (u32_at(0x5c)?, u32_at(0x60)?, u32_at(0x64)?),
        };
        if incompat & INCOMPAT_JOURNAL_DEVICE != 0 {
            return Err(Trouble::unsupported("it is no filesystem but the journal of one"));
        }
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Trouble::unsupported(format_args!(
                "it has features that are not known here ({:#x})",
                incompat & !INCOMPAT_KNOWN
            )));
        }
        let mut notes = Vec::new();
        if is_copy {
            notes.push("its superblock is lost: the copy in its second group is used".to_owned());
        }
        let has_checksums = ro_compat & RO_CHECKSUMS != 0;
        if has_checksums && crc32c(START, &bytes[..0x3fc]) != u32_at(0x3fc)? {
            notes.push("the superblock's checksum is wrong".to_owned());
        }
        if raw.u16(0x3a).is_some_and(|state| state & STATE_ERRORS != 0) {
            notes.push("its last user noted errors in it: it needs a check".to_owned());
        }
        let bad = |what: &str, value: u64| {
            Trouble::damaged(format_args!("the superblock is damaged: {what} cannot be {value}"))
        };
        let shift = u32_at(0x18)?;
        if shift > 6 {
            return Err(bad("the block size's exponent", u64::from(shift)));
        }
        let block_size = 1024_u64 << shift;
        let mut blocks = u64::from(u32_at(0x4)?);
        if incompat & INCOMPAT_64BIT != 0 {
            blocks |= u64::from(u32_at(0x150)?) << 32;
        }
        let (blocks_per_group, inodes_per_group) = (u64::from(u32_at(0x20)?), u32_at(0x28)?);
        if blocks_per_group == 0 || blocks_per_group > 1 << 28 {
            return Err(bad("the number of blocks in a group", blocks_per_group));
        }
        if inodes_per_group == 0 || u64::from(inodes_per_group) > block_size * 8 {
            return Err(bad("the number of inodes in a group", u64::from(inodes_per_group)));
        }
        let inode_size = match u32_at(0x4c)? {
            0 => 128,
            _ => u64::from(raw.u16(0x58).ok_or_else(cut)?),
        };
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > block_size {
            return Err(bad("the size of an inode", inode_size));
        }
        let descriptor_bytes = match incompat & INCOMPAT_64BIT {
            0 => 32,
            _ => u64::from(raw.u16(0xfe).ok_or_else(cut)?),
        };
        if !descriptor_bytes.is_power_of_two() || descriptor_bytes < 32 || descriptor_bytes > block_size {
            return Err(bad("the size of a group's descriptor", descriptor_bytes));
        }
        let have = size / block_size;
        if blocks == 0 || blocks > 1 << 48 {
            return Err(bad("the number of blocks", blocks));
        }
        if blocks > have {
            notes.push(format!(
                "the filesystem has {blocks} blocks of {block_size} bytes, but only {have} are here"
            ));
        }
        let uuid = raw.bytes(0x68, 16).ok_or_else(cut)?;
        let seed = match incompat & INCOMPAT_CSUM_SEED {
            0 => crc32c(START, uuid),
            _ => u32_at(0x270)?,
        };
        let has_journal = compat & COMPAT_JOURNAL != 0;
        let journal = match (has_journal && (is_copy || incompat & INCOMPAT_RECOVER != 0), u32_at(0xe0)?) {
            (false, _) => None,
            (true, 0) => Some(Journal::Elsewhere),
            (true, inode) => Some(Journal::Inode(inode)),
        };
        let backups = match compat & COMPAT_SPARSE_SUPER2 {
            0 => None,
            _ => Some([u32_at(0x24c)?, u32_at(0x250)?]),
        };
        Ok(Superblock {
            block_size,
            blocks: blocks.min(have),
            inodes: u32_at(0)?,
            inode_size,
            checksum_seed: has_checksums.then_some(seed),
            journal,
            notes,
            is_copy,
            has_journal,
            incompat,
            ro_compat,
            backups,
            first_data_block: u64::from(u32_at(0x14)?),
            blocks_per_group,
            inodes_per_group,
            descriptor_bytes,
            first_meta_group: u64::from(u32_at(0x104)?),
        })
    }

    /// `ext2`, `ext3` or `ext4`: the last one if it has anything that only that one has.
    pub(super) fn kind(&self) -> &'static str {
        let only_ext4 = self.incompat & !(INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_GROUPS);
        match (only_ext4 != 0 || self.ro_compat & !0x7 != 0, self.has_journal) {
            (true, _) => "ext4",
            (false, true) => "ext3",
            (false, false) => "ext2",
        }
    }

    /// Whether a folder's entries hold the kind of what they name; then a name has one byte for its length.
    pub(super) fn has_file_types(&self) -> bool {
        self.incompat & INCOMPAT_FILETYPE != 0
    }

    /// Whether a folder may have a size beyond 4 GiB.
    pub(super) fn has_large_folders(&self) -> bool {
        self.incompat & INCOMPAT_LARGE_FOLDERS != 0
    }

    /// Where in the volume an inode lies.
    pub(super) fn inode_offset(&self, volume: &dyn Source, inode: u32) -> Result<u64, Trouble> {
        if inode == 0 || inode > self.inodes {
            return Err(Trouble::damaged(format_args!("there is no inode {inode}")));
        }
        let group = u64::from((inode - 1) / self.inodes_per_group);
        let index = u64::from((inode - 1) % self.inodes_per_group);
        if group >= self.blocks.div_ceil(self.blocks_per_group) {
            return Err(Trouble::damaged(format_args!("inode {inode} lies behind the end")));
        }
        let descriptor = volume.read_vec(self.descriptor_offset(group), self.descriptor_bytes as usize)?;
        let raw = Raw(&descriptor);
        let low = u64::from(raw.u32(0x8).unwrap_or(0));
        // Only descriptors of 64 bytes have it.
        let table = low | u64::from(raw.u32(0x28).unwrap_or(0)) << 32;
        if table == 0 || table >= self.blocks {
            return Err(Trouble::damaged(format_args!(
                "the descriptor of group {group} is damaged: its inodes cannot lie at block {table}"
            )));
        }
        Ok(table * self.block_size + index * self.inode_size)
    }

    /// No overflow: all of it lies about where the group does, and that begins within the volume.
    fn descriptor_offset(&self, group: u64) -> u64 {
        let in_block = self.block_size / self.descriptor_bytes;
        let (meta, index) = (group / in_block, group % in_block);
        let block = match self.incompat & INCOMPAT_META_GROUPS != 0 && meta >= self.first_meta_group {
            // Behind the superblock's own.
            false if self.is_copy => self.first_data_block + self.blocks_per_group + 1 + meta,
            false => OFFSET / self.block_size + 1 + meta,
            true => {
                // There is a copy in the group behind it.
                let first = meta * in_block + u64::from(self.is_copy);
                // With blocks of 1 KiB the first one is before the superblock, unless blocks are counted from 1.
                let before = self.block_size == OFFSET && first == 0 && self.first_data_block == 0;
                let backup = u64::from(self.has_backup(first)) + u64::from(before);
                self.first_data_block + first * self.blocks_per_group + backup
            }
        };
        block * self.block_size + index * self.descriptor_bytes
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_backup(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.backups {
            _ if group == 0 => true,
            Some(backups) => backups.map(u64::from).contains(&group),
            None if self.ro_compat & RO_SPARSE_SUPER == 0 => true,
            None => group == 1 || [3, 5, 7].into_iter().any(is_power_of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::source::tests::Memory;

    fn superblock() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        let sb = &mut disk[1024..2048];
        let mut put = |at: usize, value: u32| sb[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x0, 128);
        put(0x4, 1024);
        put(0x14, 1);
        put(0x20, 8192);
        put(0x28, 128);
        put(0x38, u32::from(MAGIC));
        put(0x4c, 1);
        put(0x58, 256);
        put(0x60, INCOMPAT_FILETYPE);
        disk
    }

    fn read(disk: Vec<u8>) -> Result<Option<Superblock>, Trouble> {
        let size = disk.len() as u64;
        Superblock::read(&Memory(disk), size)
    }

    #[test]
    fn a_sound_one_is_taken_and_no_signature_is_none() {
        let sb = read(superblock()).unwrap().unwrap();
        assert_eq!((sb.block_size, sb.blocks, sb.kind()), (1024, 1024, "ext2"));
        assert!(sb.notes.is_empty());
        assert!(read(vec![0; 4096]).unwrap().is_none());
        assert!(read(vec![0; 100]).unwrap().is_none());
    }

    #[test]
    fn impossible_numbers_are_refused_or_told() {
        let with = |at: usize, value: u32| {
            let mut disk = superblock();
            disk[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
            read(disk)
        };
        for (at, value) in [
            (0x18, 7),
            (0x18, u32::MAX),
            (0x20, 0),
            (0x28, 0),
            (0x28, u32::MAX),
            (0x58, 100),
            (0x58, 2048),
            (0x4, 0),
        ] {
            assert!(matches!(with(at, value), Err(Trouble::Damaged(_))), "{at:#x} {value}");
        }
        for features in [0x1, 0x8, 0x1000, 1 << 31] {
            assert!(matches!(with(0x60, features), Err(Trouble::Unsupported(_))), "{features:#x}");
        }
        let larger = with(0x4, 5000).unwrap().unwrap();
        assert_eq!((larger.blocks, larger.notes.len()), (1024, 1));
        for inode in [0, 129, u32::MAX] {
            let disk = superblock();
            let sb = read(disk.clone()).unwrap().unwrap();
            assert!(sb.inode_offset(&Memory(disk), inode).is_err());
        }
    }

    #[test]
    fn backups_are_in_groups_of_powers() {
        let mut disk = superblock();
        disk[1024 + 0x64] = 1;
        let sb = read(disk).unwrap().unwrap();
        let found = (0..60).filter(|group| sb.has_backup(*group)).collect::<Vec<_>>();
        assert_eq!(found, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
    }
}
