//! An inode: what a file is, and where its content and attributes begin.
//!
//! Layout: the kernel's `Documentation/filesystems/ext4/inodes.rst`.

use super::crc::crc32c;
use super::superblock::Superblock;
use crate::restore::filesystem::{FileTime, Kind, Owner, Stat};
use crate::restore::source::{Raw, Source, Trouble};

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// Where the part begins that inodes of 128 bytes have not.
const EXTRA: usize = 0x80;

/// The bytes for what leads to the content.
pub(super) const MAP_BYTES: usize = 60;

/// An inode, checked against its checksum where there is one.
pub(super) struct Inode {
    /// The bytes of it.
    pub(super) bytes: Vec<u8>,
    /// What the file is.
    pub(super) stat: Stat,
    /// The seed of the checksums of what belongs to it.
    pub(super) checksum_seed: Option<u32>,
    /// Where the block with extended attributes is; 0: nowhere.
    pub(super) attributes_block: u64,
    /// Where the extended attributes in the inode begin; none if there is no room for them.
    pub(super) attributes_at: Option<usize>,
    flags: u32,
}

/// What leads to the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// The root of a tree of extents.
    Extents,
    /// Numbers of blocks, and of blocks full of such numbers.
    Blocks,
    /// The content itself.
    Inline,
}

impl Inode {
    /// Reads inode `number`.
    pub(super) fn read(volume: &dyn Source, sb: &Superblock, number: u32) -> Result<Inode, Trouble> {
        let at = sb.inode_offset(volume, number)?;
        let bytes = volume.read_vec(at, sb.inode_size as usize)?;
        parse(bytes, sb, number)
            .unwrap_or_else(|| Err(Trouble::damaged(format_args!("inode {number} is cut off"))))
    }

    /// The 60 bytes that lead to the content, or hold it.
    pub(super) fn map(&self) -> &[u8] {
        Raw(&self.bytes).bytes(0x28, MAP_BYTES).unwrap_or_default()
    }

    /// What those are.
    ///
    /// # Errors
    /// If the content is encrypted.
    pub(super) fn layout(&self) -> Result<Layout, Trouble> {
        if self.flags & FLAG_ENCRYPTED != 0 {
            return Err(Trouble::unsupported("it is encrypted"));
        }
        Ok(match (self.flags & FLAG_INLINE != 0, self.flags & FLAG_EXTENTS != 0) {
            (true, _) => Layout::Inline,
            (_, true) => Layout::Extents,
            _ => Layout::Blocks,
        })
    }
}

/// None if the bytes end too early.
fn parse(bytes: Vec<u8>, sb: &Superblock, number: u32) -> Option<Result<Inode, Trouble>> {
    let raw = Raw(&bytes);
    let damaged = |what: &str| Some(Err(Trouble::damaged(format_args!("inode {number} {what}"))));
    let extra_bytes = if bytes.len() > EXTRA { usize::from(raw.u16(EXTRA)?) } else { 0 };
    // Whether a field of the extra part that ends there is in use.
    let has = |end: usize| extra_bytes >= end - EXTRA;
    let checksum_seed = sb.checksum_seed.map(|seed| {
        let seed = crc32c(seed, &number.to_le_bytes());
        crc32c(seed, raw.bytes(0x64, 4).unwrap_or_default())
    });
    if let Some(seed) = checksum_seed
        && !checksum_is_right(raw, seed, has(0x84))?
    {
        return damaged("has a wrong checksum");
    }
    let mode = raw.u16(0)?;
    let kind = match mode >> 12 {
        0x1 => Kind::Fifo,
        0x2 => Kind::CharDevice,
        0x4 => Kind::Folder,
        0x6 => Kind::BlockDevice,
        0x8 => Kind::File,
        0xa => Kind::Link,
        0xc => Kind::Socket,
        _ if bytes.iter().all(|byte| *byte == 0) => return damaged("was never written"),
        _ => return damaged("is of no kind"),
    };
    let links = u32::from(raw.u16(0x1a)?);
    if links == 0 {
        return damaged("is of a file that was deleted");
    }
    if extra_bytes > bytes.len().saturating_sub(EXTRA) {
        return damaged("is shorter than it says");
    }
    let extra = if has(0x8c) { raw.u32(0x88)? } else { 0 };
    let modified = FileTime {
        // Signed, with two more bits above.
        seconds: i64::from(raw.u32(0x10)?.cast_signed()) + (i64::from(extra & 3) << 32),
        nanos: if extra >> 2 < 1_000_000_000 { extra >> 2 } else { 0 },
    };
    // Elsewhere the upper half is something else.
    let has_high = kind == Kind::File || kind == Kind::Folder && sb.has_large_folders();
    let size_high = if has_high { raw.u32(0x6c)? } else { 0 };
    let high_low = |high: usize, low: usize| Some(u32::from(raw.u16(high)?) << 16 | u32::from(raw.u16(low)?));
    let stat = Stat {
        kind,
        owner: Some(Owner { uid: high_low(0x78, 0x2)?, gid: high_low(0x7a, 0x18)?, mode: mode & 0o7777 }),
        size: u64::from(raw.u32(0x4)?) | u64::from(size_high) << 32,
        modified: Some(modified),
        links,
    };
    let flags = raw.u32(0x20)?;
    let attributes_block = u64::from(raw.u32(0x68)?) | u64::from(raw.u16(0x76)?) << 32;
    let attributes_at = (bytes.len() > EXTRA && extra_bytes % 4 == 0).then_some(EXTRA + extra_bytes);
    Some(Ok(Inode { stat, checksum_seed, attributes_block, attributes_at, flags, bytes }))
}

/// The checksum is of the inode with zeros in place of itself; its upper half is in the extra part.
fn checksum_is_right(raw: Raw<'_>, seed: u32, has_high: bool) -> Option<bool> {
    let mut copy = raw.0.to_vec();
    let low = raw.u16(0x7c)?;
    copy[0x7c..0x7e].fill(0);
    let high = match has_high {
        true => Some(raw.u16(0x82)?),
        false => None,
    };
    if has_high {
        copy[0x82..0x84].fill(0);
    }
    let found = crc32c(seed, &copy);
    Some(match high {
        Some(high) => found == u32::from(high) << 16 | u32::from(low),
        None => found as u16 == low,
    })
}
