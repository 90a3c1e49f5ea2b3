//! Snapshots: whole, read-only copies of a group's volumes at a point, which need neither the group's log nor its disks.
//!
//! The store is a folder with one *pool* of blocks and one *manifest* per snapshot. A manifest says for each block of
//! each volume that is not all zeros in which *slot* of the pool it is, and its digest. Snapshots of one volume share the
//! blocks that are the same at the same place; a block is shared only after its bytes were compared, so that neither a
//! collision of digests nor a rotten block of an older snapshot gets into a newer one.
//!
//! Invariants:
//! - a manifest counts once its seal, one sector, is on disk, and everything that it refers to is durable before that;
//! - a slot that a sealed manifest refers to is never written;
//! - how many snapshots share a slot is counted from the manifests and stored nowhere, so that it cannot be wrong;
//! - one at a time changes the store, under its lock; readers take no lock: each block is checked by its digest, so that
//!   a snapshot that is deleted under its reader is an error and never wrong bytes;
//! - while a manifest is damaged nobody knows what it refers to: no slot is freed or used again until it is deleted.
//!
//! A power cut leaves a snapshot whole or not there. Slots that were written for one that is not there are free again
//! for whoever opens the store for changes next.
//!
//! | module | what it is |
//! |---|---|
//! | [`manifest`] | the file of a snapshot |
//! | [`pool`] | the slots |
//! | [`create`] | the store, open for changes: to create and to delete |
//! | [`read`] | the store, open for reading: what there is, what it uses, the bytes |
//! | [`diff`] | what differs between two |

pub mod create;
pub mod diff;
pub mod manifest;
pub mod pool;
pub mod read;

/// The folder, in the storage that the store is given.
pub const FOLDER: &str = "snapshots";

/// Bytes of a block, and of a slot.
pub const BLOCK: u64 = 64 << 10;

/// Longest name of a snapshot, in bytes.
pub const MAX_NAME: usize = 128;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of a file.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Somebody else changes the store.
    #[error("another command is changing the snapshots")]
    Held,
    /// The name is no name of a snapshot.
    #[error(
        "{0:?} is no name for a snapshot: letters, digits, `.`, `_` and `-`, at most 128, the first no `.` or `-`"
    )]
    Name(String),
    /// There is one of that name.
    #[error("there is a snapshot {0} already")]
    Taken(String),
    /// There is none of that name.
    #[error("there is no snapshot {0}")]
    Unknown(String),
    /// The snapshot has no such volume.
    #[error("snapshot {snapshot} has no volume {volume}")]
    NoVolume {
        /// The snapshot.
        snapshot: String,
        /// The volume.
        volume: String,
    },
    /// A manifest is damaged.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// In words.
        why: String,
    },
    /// Another version of Landfall wrote it.
    #[error("{path}: format version {version} is not understood by this program")]
    Version {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
    },
    /// A block is not any more what was written.
    #[error("snapshot {snapshot}, volume {volume}: the block at byte {offset} is damaged")]
    Rotten {
        /// The snapshot.
        snapshot: String,
        /// The volume.
        volume: String,
        /// Of the block's first byte.
        offset: u64,
    },
    /// It was deleted under its reader.
    #[error("snapshot {0} was deleted while it was read")]
    Gone(String),
    /// More blocks than slots can be numbered.
    #[error("the pool is full: it holds 2^32 blocks at most")]
    Full,
}

impl Error {
    pub(crate) fn io(path: &str) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |error| Error::Io { path: path.to_owned(), error }
    }

    /// Whether there was no space for it.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Io { error, .. } if crate::io::is_no_space(error))
    }
}

/// Whether a snapshot may be called that: it is a word on command lines, and a part of file names that people make.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits) && !name.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_words() {
        for good in ["a", "before-upgrade", "2026-11-23", "v1.2_x"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "-y", "a/b", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
