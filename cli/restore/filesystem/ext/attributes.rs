//! Extended attributes: in the inode behind its own fields, and in a block of their own.
//!
//! Access control lists are kept in a form that is shorter than what the system calls take; they are put into the latter.
//!
//! Layout: the kernel's `Documentation/filesystems/ext4/attributes.rst`; the other form of lists:
//! `include/uapi/linux/posix_acl_xattr.h`.

use crate::restore::filesystem::Attribute;
use crate::restore::source::{Raw, Trouble};

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 16;
/// The longest value that the kernel takes.
pub(super) const MAX_VALUE_BYTES: u32 = 64 << 10;
/// The namespace and name of what an inline file has beyond the inode's own field.
const SYSTEM: u8 = 7;
const INLINE_NAME: &[u8] = b"data";

const DISK_LIST_VERSION: u32 = 1;
const CALL_LIST_VERSION: u32 = 2;
const LIST_USER: u16 = 0x2;
const LIST_GROUP: u16 = 0x8;

/// One attribute as it is kept.
pub(super) struct Kept<'a> {
    index: u8,
    name: &'a [u8],
    /// Where the value is.
    pub(super) value: Value<'a>,
}

/// Where a value is.
pub(super) enum Value<'a> {
    /// Here.
    Here(&'a [u8]),
    /// It is the content of this inode.
    Inode {
        /// Its number.
        inode: u32,
        /// Bytes, at most [`MAX_VALUE_BYTES`].
        len: u32,
    },
}

/// What an inode holds; `at` is where its own fields end.
pub(super) fn in_inode(bytes: &[u8], at: usize) -> (Vec<Kept<'_>>, Option<Trouble>) {
    if Raw(bytes).u32(at) != Some(MAGIC) {
        return (Vec::new(), None);
    }
    // Values are counted from the first entry.
    let entries = bytes.get(at + 4..).unwrap_or_default();
    read(entries, entries)
}

/// What a block holds.
pub(super) fn in_block(bytes: &[u8]) -> (Vec<Kept<'_>>, Option<Trouble>) {
    if Raw(bytes).u32(0) != Some(MAGIC) {
        return (Vec::new(), Some(damaged("their block has no signature")));
    }
    read(bytes.get(BLOCK_HEADER_BYTES..).unwrap_or_default(), bytes)
}

fn damaged(what: &str) -> Trouble {
    Trouble::damaged(format_args!("its extended attributes are damaged: {what}"))
}

fn read<'a>(entries: &'a [u8], values: &'a [u8]) -> (Vec<Kept<'a>>, Option<Trouble>) {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let raw = Raw(entries.get(at..).unwrap_or_default());
        match raw.u32(0) {
            Some(0) => return (found, None),
            Some(_) => {}
            None => return (found, Some(damaged("the list has no end"))),
        }
        let Some((kept, len)) = entry(raw, values) else {
            return (found, Some(damaged("an entry makes no sense")));
        };
        found.push(kept);
        at += len;
    }
}

/// An entry, and how long it is.
fn entry<'a>(raw: Raw<'a>, values: &'a [u8]) -> Option<(Kept<'a>, usize)> {
    let (name_len, index) = (usize::from(raw.u8(0)?), raw.u8(1)?);
    let (offset, inode, len) = (usize::from(raw.u16(2)?), raw.u32(4)?, raw.u32(8)?);
    let name = raw.bytes(ENTRY_BYTES, name_len)?;
    if len > MAX_VALUE_BYTES {
        return None;
    }
    let value = match inode {
        0 if len == 0 => Value::Here(&[]),
        0 => Value::Here(Raw(values).bytes(offset, len as usize)?),
        inode => Value::Inode { inode, len },
    };
    Some((Kept { index, name, value }, (ENTRY_BYTES + name_len).next_multiple_of(4)))
}

impl Kept<'_> {
    /// Whether this is no attribute but the rest of an inline file.
    pub(super) fn is_inline_content(&self) -> bool {
        self.index == SYSTEM && self.name == INLINE_NAME
    }

    /// As the system calls take it.
    pub(super) fn with_value(&self, value: Vec<u8>) -> Result<Attribute, Trouble> {
        let (prefix, is_list): (&[u8], bool) = match self.index {
            1 => (b"user.", false),
            2 => (b"system.posix_acl_access", true),
            3 => (b"system.posix_acl_default", true),
            4 => (b"trusted.", false),
            6 => (b"security.", false),
            SYSTEM => (b"system.", false),
            8 => (b"system.richacl", false),
            other => return Err(damaged(&format!("there is no namespace {other}"))),
        };
        let mut name = prefix.to_vec();
        name.extend_from_slice(self.name);
        if name.contains(&0) {
            return Err(damaged("a name holds a zero"));
        }
        let value = match is_list {
            true => access_list(&value).ok_or_else(|| damaged("an access control list makes no sense"))?,
            false => value,
        };
        Ok(Attribute { name, value })
    }
}

/// From the form on disk to that of the system calls.
fn access_list(kept: &[u8]) -> Option<Vec<u8>> {
    let raw = Raw(kept);
    if raw.u32(0)? != DISK_LIST_VERSION {
        return None;
    }
    let mut list = CALL_LIST_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < kept.len() {
        let (tag, permissions) = (raw.u16(at)?, raw.u16(at + 2)?);
        at += 4;
        let id = match tag {
            LIST_USER | LIST_GROUP => {
                at += 4;
                raw.u32(at - 4)?
            }
            _ => u32::MAX,
        };
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gets_the_form_of_the_system_calls() {
        // user::rw-, user:1000:r--, group::r--, mask::r--, other::---
        let disk = [
            &[1, 0, 0, 0][..],
            &[1, 0, 6, 0],
            &[2, 0, 4, 0, 0xe8, 3, 0, 0],
            &[4, 0, 4, 0],
            &[0x10, 0, 4, 0],
            &[0x20, 0, 0, 0],
        ]
        .concat();
        let call = access_list(&disk).unwrap();
        assert_eq!(call.len(), 4 + 5 * 8);
        assert_eq!(call[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(call[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(access_list(&disk[..disk.len() - 1]), None);
        assert_eq!(access_list(&[9, 0, 0, 0]), None);
    }

    #[test]
    fn a_list_of_attributes_that_is_cut_off_gives_what_is_before() {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        // "user.a" = "xy", with its value at 40 from the first entry.
        bytes[4..20].copy_from_slice(&[1, 1, 40, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        bytes[20] = b'a';
        bytes[44..46].copy_from_slice(b"xy");
        let (found, trouble) = in_inode(&bytes, 0);
        assert!(trouble.is_none() && found.len() == 1);
        let Value::Here(value) = found[0].value else { panic!("it is here") };
        assert_eq!(
            found[0].with_value(value.to_vec()),
            Ok(Attribute { name: b"user.a".to_vec(), value: b"xy".to_vec() })
        );
        // A second one whose value lies outside.
        bytes[24..40].copy_from_slice(&[1, 1, 200, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let (found, trouble) = in_inode(&bytes, 0);
        assert!(trouble.is_some() && found.len() == 1);
    }
}
