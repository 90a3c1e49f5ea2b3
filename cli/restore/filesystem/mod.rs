//! Filesystems, read without being mounted: what is needed of one to list it and to copy out of it.
//!
//! | module | what it is |
//! |---|---|
//! | [`ext`] | ext2, ext3, ext4, seen as after the replay of the journal |
//! | [`fat`] | FAT12, FAT16, FAT32 |
//!
//! Invariants, of each:
//! - everything that is read is untrusted: a length is checked before it is allocated for, a loop ends, and no number
//!   from the disk can lead outside the volume;
//! - what is damaged is told, and costs no more than itself: the rest is read;
//! - nothing is written.
//!
//! Who copies has to see to it that a folder is not entered twice, and that names are fit for use.

mod ext;
mod fat;

use super::source::{Source, Trouble, Window};

/// A file or folder: what the filesystem calls it by itself, the same for all of its names.
pub(super) type NodeId = u64;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A folder.
    Folder,
    /// A file with content.
    File,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// As JSON and people have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Folder => "folder",
            Kind::File => "file",
            Kind::Link => "symlink",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::CharDevice => "char-device",
            Kind::BlockDevice => "block-device",
        }
    }
}

/// A time of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileTime {
    /// Since 1970, without leap seconds.
    pub(super) seconds: i64,
    /// Below a billion.
    pub(super) nanos: u32,
}

/// Who a file belongs to, and who may what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user's number.
    pub(super) uid: u32,
    /// The group's.
    pub(super) gid: u32,
    /// The lower 12 bits of `st_mode`.
    pub(super) mode: u16,
}

/// About a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// What it is.
    pub(super) kind: Kind,
    /// None where the filesystem has no such thing.
    pub(super) owner: Option<Owner>,
    /// Bytes of content.
    pub(super) size: u64,
    /// When the content was last changed; none if the filesystem does not say.
    pub(super) modified: Option<FileTime>,
    /// How many names it has.
    pub(super) links: u32,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it is on disk; never `.` or `..`, otherwise unchecked.
    pub(super) name: Vec<u8>,
    /// What it stands for.
    pub(super) node: NodeId,
}

/// What could be read of a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// In the order on disk.
    pub(super) entries: Vec<Entry>,
    /// Why there may be more.
    pub(super) faults: Vec<Trouble>,
}

/// Content that lies together. What no run covers is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where in the file.
    pub(super) at: u64,
    /// How much; never beyond the end of the file.
    pub(super) len: u64,
    /// Where in the filesystem.
    pub(super) place: Place,
}

/// Where content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To be read with [`Filesystem::read`] from here.
    Volume(u64),
    /// Here.
    Inline(Vec<u8>),
}

/// An extended attribute, as the system calls take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// With its namespace: `user.origin`.
    pub(super) name: Vec<u8>,
    /// The value.
    pub(super) value: Vec<u8>,
}

/// A filesystem.
pub(super) trait Filesystem {
    /// `ext4`, `FAT32`, …
    fn kind(&self) -> &'static str;

    /// What whoever uses it should know: the state of its journal, its flaws.
    fn notes(&self) -> &[String];

    /// The folder that all others are in.
    fn root(&self) -> NodeId;

    /// About a file.
    fn stat(&self, node: NodeId) -> Result<Stat, Trouble>;

    /// The names in a folder.
    fn list(&self, folder: NodeId) -> Result<Listing, Trouble>;

    /// Where a symbolic link leads.
    fn link_target(&self, node: NodeId) -> Result<Vec<u8>, Trouble>;

    /// The extended attributes; those that can be read, if not all can.
    fn attributes(&self, node: NodeId) -> (Vec<Attribute>, Option<Trouble>);

    /// Calls `each` with the content of a file, in ascending order. Returns what is missing.
    ///
    /// # Errors
    /// If nothing of it can be found, or with what `each` returned.
    fn runs(
        &self,
        node: NodeId,
        each: &mut dyn FnMut(Run) -> Result<(), Trouble>,
    ) -> Result<Vec<Trouble>, Trouble>;

    /// Fills `buf` from a place that a [`Run`] names.
    fn read(&self, place: u64, buf: &mut [u8]) -> Result<(), Trouble>;
}

/// Recognises what is in `window` and opens it. None if it is nothing that is known here.
///
/// # Errors
/// If it is known, but cannot be read.
pub(super) fn open(window: &Window) -> Result<Option<Box<dyn Filesystem>>, Trouble> {
    if let Some(found) = ext::Ext::open(window.clone())? {
        return Ok(Some(Box::new(found)));
    }
    if let Some(found) = open_fat(window)? {
        return Ok(Some(found));
    }
    match signature(window) {
        Some(_) => Ok(None),
        None => Ok(ext::Ext::open_copy(window.clone())?.map(|found| Box::new(found) as Box<dyn Filesystem>)),
    }
}

/// The same, for FAT alone.
pub(super) fn open_fat(window: &Window) -> Result<Option<Box<dyn Filesystem>>, Trouble> {
    Ok(fat::Fat::open(window.clone())?.map(|found| Box::new(found) as Box<dyn Filesystem>))
}

/// What else it may be.
fn signature(window: &Window) -> Option<&'static str> {
    let signatures: [(u64, &[u8], &str); 13] = [
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exFAT"),
        (0, b"LUKS\xba\xbe", "LUKS, which is encrypted"),
        (0x218, b"LVM2 001", "an LVM physical volume"),
        (0x1000, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID"),
        (0x1018, b"LVM2 001", "an LVM physical volume"),
        (0x8001, b"CD001", "ISO 9660"),
        (0, b"hsqs", "squashfs"),
        (0xff6, b"SWAPSPACE2", "swap space"),
        (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
        (0, b"QFI\xfb", "a qcow2 image"),
    ];
    let is_there =
        |at, signature: &[u8]| window.read_vec(at, signature.len()).is_ok_and(|found| found == signature);
    signatures.into_iter().find(|(at, signature, _)| is_there(*at, signature)).map(|(.., name)| name)
}

/// What stands at the beginning of something, for whoever has to find out why it was not recognised.
pub(super) fn describe(window: &Window) -> String {
    if let Some(name) = signature(window) {
        return name.to_owned();
    }
    let len = window.len().min(1 << 20) as usize;
    match window.read_vec(0, len) {
        Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => "zeros at its beginning".to_owned(),
        Ok(bytes) => {
            let first = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
            format!("no signature that is known here; it begins with {}", first.join(" "))
        }
        Err(err) => err.to_string(),
    }
}

#[cfg(test)]
mod tests;
