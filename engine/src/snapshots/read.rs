//! The store, open for reading, without its lock: what there is, what it uses, and the bytes.

use super::manifest::{Entry, Manifest, number_of, path_of};
use super::pool::Pool;
use super::{BLOCK, Error, FOLDER};
use crate::digest::Digest;
use crate::io::Storage;
use std::io::ErrorKind;
use std::sync::Arc;

/// A manifest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its file in the folder, by which it can be deleted.
    pub file_name: String,
    /// In words.
    pub why: String,
}

impl Damaged {
    /// For damage and other versions; any other error goes on its way.
    pub(super) fn of(file_name: &str, error: Error) -> Result<Damaged, Error> {
        match error {
            Error::Damaged { .. } | Error::Version { .. } => {
                Ok(Damaged { file_name: file_name.to_owned(), why: error.to_string() })
            }
            other => Err(other),
        }
    }
}

/// The manifests of a folder, oldest first.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) manifests: Vec<Manifest>,
    pub(super) damaged: Vec<Damaged>,
    pub(super) unsealed: Vec<String>,
}

/// Looks at all manifests. A file that goes away meanwhile is none.
pub(super) fn scan(storage: &dyn Storage) -> Result<Scan, Error> {
    let mut files = match storage.list(FOLDER) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Scan::default()),
        Err(error) => return Err(Error::Io { path: FOLDER.to_owned(), error }),
    };
    files.retain(|file| number_of(file).is_some());
    files.sort_by_key(|file| number_of(file));
    let mut scan = Scan::default();
    for file in files {
        match Manifest::open(storage, &file) {
            Ok(Some(manifest)) => scan.manifests.push(manifest),
            Ok(None) => scan.unsealed.push(file),
            Err(Error::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => scan.damaged.push(Damaged::of(&file, error)?),
        }
    }
    Ok(scan)
}

/// What a snapshot uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of blocks that it refers to.
    pub used_bytes: u64,
    /// Of these, blocks that no other snapshot refers to: what its deletion gives back.
    pub own_bytes: u64,
}

/// The snapshots, as they were when this was opened.
pub struct Snapshots {
    storage: Arc<dyn Storage>,
    manifests: Vec<Manifest>,
    damaged: Vec<Damaged>,
    pool: Option<Pool>,
}

impl Snapshots {
    /// Opens the store; one that was never made is empty.
    ///
    /// # Errors
    /// Of the storage.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Snapshots, Error> {
        let scan = scan(&*storage)?;
        let pool = Pool::open(&*storage)?;
        Ok(Snapshots { storage, manifests: scan.manifests, damaged: scan.damaged, pool })
    }

    /// All that can be read, the oldest first.
    #[must_use]
    pub fn all(&self) -> &[Manifest] {
        &self.manifests
    }

    /// What cannot be read.
    #[must_use]
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// One by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Manifest, Error> {
        let found = self.manifests.iter().find(|manifest| manifest.about.name == name);
        found.ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// What each of [`Snapshots::all`] uses, and all together, in bytes. Reads all manifests; one whose entries cannot be
    /// read has no usage.
    ///
    /// # Errors
    /// Of the storage.
    pub fn usage(&self) -> Result<(Vec<Option<Usage>>, u64), Error> {
        let slots = self.pool.as_ref().map_or(Ok(0), Pool::slots)?;
        let mut references = vec![0_u32; slots as usize];
        let mut of_each = Vec::new();
        for manifest in &self.manifests {
            let slots = self.slots(manifest)?;
            for slot in slots.iter().flatten() {
                // One that lies behind the end is damage, which who reads the block is told.
                if let Some(count) = references.get_mut(*slot as usize) {
                    *count += 1;
                }
            }
            of_each.push(slots);
        }
        let total = references.iter().filter(|count| **count > 0).count() as u64 * BLOCK;
        let usage = |slots: Vec<u32>| {
            let own = slots.iter().filter(|slot| references.get(**slot as usize) == Some(&1)).count();
            Usage { used_bytes: slots.len() as u64 * BLOCK, own_bytes: own as u64 * BLOCK }
        };
        Ok((of_each.into_iter().map(|slots| slots.map(usage)).collect(), total))
    }

    fn slots(&self, manifest: &Manifest) -> Result<Option<Vec<u32>>, Error> {
        let mut slots = Vec::new();
        for volume in 0..manifest.volumes.len() {
            match manifest.entries(volume) {
                Ok(entries) => slots.extend(entries.iter().map(|entry| entry.slot)),
                Err(Error::Damaged { .. }) => return Ok(None),
                Err(other) => return Err(other),
            }
        }
        Ok(Some(slots))
    }

    /// A volume of a snapshot, to be read.
    ///
    /// # Errors
    /// There is no such snapshot or volume; of the storage.
    pub fn reader(&self, snapshot: &str, volume: &str) -> Result<Reader<'_>, Error> {
        let manifest = self.find(snapshot)?;
        let index = manifest.volume(volume)?;
        let entries = manifest.entries(index)?;
        Ok(Reader { snapshots: self, manifest, index, entries })
    }

    /// Whether a snapshot is still the one that it was.
    fn is_there(&self, manifest: &Manifest) -> Result<bool, Error> {
        match Manifest::open(&*self.storage, &manifest.file_name) {
            Ok(now) => Ok(now.is_some_and(|now| now.about == manifest.about)),
            Err(Error::Io { error, .. }) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(Error::Damaged { .. } | Error::Version { .. }) => Ok(true),
            Err(other) => Err(other),
        }
    }
}

/// A volume of a snapshot.
pub struct Reader<'a> {
    snapshots: &'a Snapshots,
    manifest: &'a Manifest,
    index: usize,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    /// Of the volume, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.volumes[self.index].size
    }

    /// The blocks that are not all zeros, in order. All else is zeros.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes of one of [`Reader::entries`], checked, into `block`, which has the length of a block. Returns those that
    /// lie in the volume.
    ///
    /// # Errors
    /// The block is damaged; the snapshot was deleted; of the storage.
    pub fn read<'b>(&self, entry: &Entry, block: &'b mut [u8]) -> Result<&'b [u8], Error> {
        assert_eq!(block.len() as u64, BLOCK, "a block is read whole");
        let offset = u64::from(entry.block) * BLOCK;
        let pool = self.snapshots.pool.as_ref();
        let read = pool.map_or(Err(ErrorKind::UnexpectedEof.into()), |pool| pool.read(entry.slot, block));
        match read {
            Ok(()) if Digest::of(block) == entry.digest => {
                let len = BLOCK.min(self.size() - offset);
                Ok(&block[..len as usize])
            }
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                Err(Error::Io { path: path_of("pool"), error })
            }
            _ => {
                let snapshot = self.manifest.about.name.clone();
                if !self.snapshots.is_there(self.manifest)? {
                    return Err(Error::Gone(snapshot));
                }
                let volume = self.manifest.volumes[self.index].name.clone();
                Err(Error::Rotten { snapshot, volume, offset })
            }
        }
    }
}
