//! The file of a snapshot: `manifest-NNNNNNNN`, the digits a number that no other file has at the time.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 512 | the *seal*: zeros until all the rest is durable |
//! | 512 | 24 each | the entries, volume by volume, by block |
//! | behind them | | the *head*: bincode, little-endian, varint |
//!
//! The seal is one sector, which a disk writes whole or not at all, so a manifest is there or is not. A seal that is
//! neither zeros nor sound is damage, and is never taken for a snapshot that was not finished.
//!
//! The seal: magic `LFSNAP\x1a\n` (8), version (4), length of the head (4), offset of the head (8), CRC-32 of the head
//! (4), zeros, and in the last 4 bytes the CRC-32 of the 508 before. An entry: block (4), slot (4), digest (16). The
//! digest of all entries of a volume is in the head.

use super::{BLOCK, Error, FOLDER};
use crate::digest::Digest;
use crate::io::{File, OpenMode, SECTOR, Storage};
use crate::types::{Epoch, Lsn, Timestamp};
use bincode::{Decode, Encode};
use std::io::IoSlice;
use std::sync::Arc;

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 24;

const MAGIC: [u8; 8] = *b"LFSNAP\x1a\n";
const PREFIX: &str = "manifest-";
const MAX_HEAD: u32 = 1 << 20;
const CODING: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ MAX_HEAD as usize }>,
> = bincode::config::standard().with_limit::<{ MAX_HEAD as usize }>();

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct About {
    /// Its name.
    pub name: String,
    /// When it was begun to be made.
    pub made: Timestamp,
    /// The group's name.
    pub group: String,
    /// The point.
    pub lsn: Lsn,
    /// The branch that it lies on, if it is not on the line: the reign that wrote it, and where it left the line.
    pub branch: Option<(Epoch, Lsn)>,
    /// When it was written.
    pub time: Timestamp,
    /// The point as it was asked for: `latest`, say.
    pub point: String,
}

/// A volume of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Blocks that are not all zeros.
    pub blocks: u64,
    /// Of its entries.
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Head {
    about: About,
    volumes: Vec<Volume>,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number of the block in its volume.
    pub block: u32,
    /// The number of the slot in the pool.
    pub slot: u32,
    /// Of the block's bytes, those behind the end of the volume as zeros.
    pub digest: Digest,
}

impl Entry {
    pub(super) fn bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.block.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.slot.to_le_bytes());
        bytes[8..].copy_from_slice(&self.digest.0);
        bytes
    }

    fn of(bytes: &[u8]) -> Entry {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let digest = Digest(bytes[8..ENTRY_BYTES].try_into().expect("an entry has 24 bytes"));
        Entry { block: number(0), slot: number(4), digest }
    }
}

/// A sealed manifest.
pub struct Manifest {
    /// What it is of.
    pub about: About,
    /// In the order of the group.
    pub volumes: Vec<Volume>,
    /// The name of the file in the folder.
    pub file_name: String,
    file: Arc<dyn File>,
}

/// The path of a file in the folder.
pub(super) fn path_of(file_name: &str) -> String {
    format!("{FOLDER}/{file_name}")
}

/// The name of the file with that number.
pub(super) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:08}")
}

/// The number of a file, if it is a manifest by its name.
pub(super) fn number_of(file_name: &str) -> Option<u64> {
    file_name.strip_prefix(PREFIX)?.parse().ok()
}

impl Manifest {
    /// Opens one; `None` if it is not sealed: it is being made, or that was cut off.
    ///
    /// # Errors
    /// Of the file, or it is damaged or of another version.
    pub fn open(storage: &dyn Storage, file_name: &str) -> Result<Option<Manifest>, Error> {
        let path = path_of(file_name);
        let file = storage.open(&path, OpenMode::Read).map_err(Error::io(&path))?;
        let damaged = |why: &str| Error::Damaged { path: path.clone(), why: why.to_owned() };
        let len = file.len().map_err(Error::io(&path))?;
        if len < SECTOR {
            return Ok(None);
        }
        let mut seal = [0; SECTOR as usize];
        file.read_at(&mut seal, 0).map_err(Error::io(&path))?;
        if seal.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let u32_at = |at: usize| u32::from_le_bytes(seal[at..at + 4].try_into().expect("four bytes"));
        let offset = u64::from_le_bytes(seal[16..24].try_into().expect("eight bytes"));
        if seal[..8] != MAGIC || u32_at(508) != crc32fast::hash(&seal[..508]) {
            return Err(damaged("its seal does not check"));
        }
        if u32_at(8) != VERSION {
            return Err(Error::Version { path, version: u32_at(8) });
        }
        let head_len = u32_at(12);
        if head_len > MAX_HEAD || offset.checked_add(u64::from(head_len)).is_none_or(|end| end > len) {
            return Err(damaged("it is shorter than it was"));
        }
        let mut bytes = vec![0; head_len as usize];
        file.read_at(&mut bytes, offset).map_err(Error::io(&path))?;
        if crc32fast::hash(&bytes) != u32_at(24) {
            return Err(damaged("its head does not check"));
        }
        let (head, _): (Head, _) =
            bincode::decode_from_slice(&bytes, CODING).map_err(|_| damaged("its head does not check"))?;
        let entries = head.volumes.iter().try_fold(0_u64, |sum, volume| sum.checked_add(volume.blocks));
        let end = entries.and_then(|sum| sum.checked_mul(ENTRY_BYTES as u64));
        if end.and_then(|end| end.checked_add(SECTOR)) != Some(offset) {
            return Err(damaged("its entries are not as many as its head says"));
        }
        Ok(Some(Manifest { about: head.about, volumes: head.volumes, file_name: file_name.to_owned(), file }))
    }

    /// The number of a volume in [`Manifest::volumes`].
    ///
    /// # Errors
    /// There is none of that name.
    pub fn volume(&self, name: &str) -> Result<usize, Error> {
        let no_volume = || Error::NoVolume { snapshot: self.about.name.clone(), volume: name.to_owned() };
        self.volumes.iter().position(|volume| volume.name == name).ok_or_else(no_volume)
    }

    /// The entries of a volume, by block. Needs 24 bytes of memory for each 64 KiB of its data.
    ///
    /// # Errors
    /// Of the file, or it is damaged.
    pub fn entries(&self, index: usize) -> Result<Vec<Entry>, Error> {
        let path = path_of(&self.file_name);
        let volume = &self.volumes[index];
        let before: u64 = self.volumes[..index].iter().map(|volume| volume.blocks).sum();
        let mut bytes = vec![0; volume.blocks as usize * ENTRY_BYTES];
        self.file.read_at(&mut bytes, SECTOR + before * ENTRY_BYTES as u64).map_err(Error::io(&path))?;
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        if Digest::of(&bytes) != volume.digest {
            return Err(damaged(format!("the entries of volume {} do not check", volume.name)));
        }
        let entries: Vec<Entry> = bytes.chunks_exact(ENTRY_BYTES).map(Entry::of).collect();
        let in_order = entries.is_sorted_by(|one, next| one.block < next.block);
        let last = entries.last().map_or(0, |last| u64::from(last.block) * BLOCK + 1);
        match in_order && last <= volume.size {
            true => Ok(entries),
            false => Err(damaged(format!("the entries of volume {} make no sense", volume.name))),
        }
    }

    /// Makes it durable, whoever wrote it.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync().map_err(Error::io(&path_of(&self.file_name)))
    }
}

/// A manifest that is being made.
pub(super) struct Draft {
    file: Arc<dyn File>,
    path: String,
    at: u64,
}

impl Draft {
    pub(super) fn new(storage: &dyn Storage, file_name: &str) -> Result<Draft, Error> {
        let path = path_of(file_name);
        let file = storage.open(&path, OpenMode::Create).map_err(Error::io(&path))?;
        Ok(Draft { file, path, at: SECTOR })
    }

    /// Of its file.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Adds encoded entries.
    pub(super) fn add(&mut self, entries: &[u8]) -> Result<(), Error> {
        self.file.write_at(&[IoSlice::new(entries)], self.at).map_err(Error::io(&self.path))?;
        self.at += entries.len() as u64;
        Ok(())
    }

    /// Adds the head, makes all of it durable, and then seals it. The slots must be durable before.
    pub(super) fn seal(self, storage: &dyn Storage, about: About, volumes: Vec<Volume>) -> Result<(), Error> {
        let failed = Error::io;
        let head = bincode::encode_to_vec(Head { about, volumes }, CODING).expect("a head can be encoded");
        assert!(head.len() <= MAX_HEAD as usize, "a head of {} bytes", head.len());
        let (seal, offset) = ([0; SECTOR as usize], self.at);
        self.file.write_at(&[IoSlice::new(&head)], offset).map_err(failed(&self.path))?;
        self.file.write_at(&[IoSlice::new(&seal)], 0).map_err(failed(&self.path))?;
        self.file.sync().map_err(failed(&self.path))?;
        // The name and the length, before anything says that they are there.
        storage.sync_dir(FOLDER).map_err(failed(FOLDER))?;
        let mut seal = seal;
        seal[..8].copy_from_slice(&MAGIC);
        seal[8..12].copy_from_slice(&VERSION.to_le_bytes());
        seal[12..16].copy_from_slice(&(head.len() as u32).to_le_bytes());
        seal[16..24].copy_from_slice(&offset.to_le_bytes());
        seal[24..28].copy_from_slice(&crc32fast::hash(&head).to_le_bytes());
        let checksum = crc32fast::hash(&seal[..508]);
        seal[508..].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_at(&[IoSlice::new(&seal)], 0).map_err(failed(&self.path))?;
        self.file.sync().map_err(failed(&self.path))
    }
}
