//! The store, open for changes: to create snapshots and to delete them.
//!
//! Opening it clears away what a run that was cut off has left: manifests without a seal, and slots that no manifest
//! refers to.

use super::manifest::{self, About, Draft, ENTRY_BYTES, Entry, Manifest, Volume, path_of};
use super::pool::Pool;
use super::read::{Damaged, scan};
use super::{BLOCK, Error, FOLDER, MAX_NAME, is_name};
use crate::digest::Digest;
use crate::io::{Storage, make_dir};
use std::io::ErrorKind;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Entries that are written at once: 1.5 MiB.
const MAX_WAITING: usize = 1 << 16;

/// The store, under its lock.
pub struct Store {
    storage: Arc<dyn Storage>,
    pool: Pool,
    manifests: Vec<Manifest>,
    damaged: Vec<Damaged>,
    /// For each slot of the pool, how many entries refer to it.
    references: Vec<u32>,
    /// No slot before this one is free.
    search: usize,
    _lock: Box<dyn Send + Sync>,
}

/// What a snapshot took, or its deletion gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of blocks that are not all zeros.
    pub data_bytes: u64,
    /// Of these, in slots that older snapshots do not have.
    pub new_bytes: u64,
}

impl Store {
    /// Opens the store, which is made if there is none. `storage` is the folder that [`FOLDER`] is in.
    ///
    /// # Errors
    /// Of the storage; [`Error::Held`] while another has it. A damaged manifest is none: see [`Store::damaged`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Store, Error> {
        make_dir(&*storage, FOLDER).map_err(Error::io(FOLDER))?;
        let path = path_of("lock");
        let lock = storage.lock(&path).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::Held,
            _ => Error::Io { path, error },
        })?;
        let scan = scan(&*storage)?;
        for unsealed in &scan.unsealed {
            let path = path_of(unsealed);
            storage.remove(&path).map_err(Error::io(&path))?;
        }
        let pool = Pool::open_for_writing(&*storage)?;
        // What is found may be there in memory alone; what builds on it must not outlive it.
        storage.sync_dir(FOLDER).map_err(Error::io(FOLDER))?;
        let slots = pool.slots()?;
        let (mut references, mut damaged, mut manifests) = (Vec::new(), scan.damaged, Vec::new());
        references.resize(slots as usize, 0_u32);
        for manifest in scan.manifests {
            manifest.sync()?;
            match count(&manifest, &mut references) {
                Ok(()) => manifests.push(manifest),
                Err(error) => damaged.push(Damaged::of(&manifest.file_name, error)?),
            }
        }
        let mut store = Store { storage, pool, manifests, damaged, references, search: 0, _lock: lock };
        store.free()?;
        Ok(store)
    }

    /// What cannot be read. While there is any, no space is given back.
    #[must_use]
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// Begins a snapshot. What it writes is nothing until [`Creation::finish`].
    ///
    /// # Errors
    /// The name is none, or taken; of the storage.
    pub fn create(self, about: About) -> Result<Creation, Error> {
        if !is_name(&about.name) {
            return Err(Error::Name(about.name.chars().take(MAX_NAME).collect()));
        }
        if self.manifests.iter().any(|manifest| manifest.about.name == about.name) {
            return Err(Error::Taken(about.name));
        }
        let files = self.manifests.iter().map(|manifest| &manifest.file_name);
        let files = files.chain(self.damaged.iter().map(|damaged| &damaged.file_name));
        let last = files.filter_map(|file| manifest::number_of(file)).max().unwrap_or(0);
        let draft = Draft::new(&*self.storage, &manifest::file_name(last + 1))?;
        Ok(Creation {
            store: self,
            about,
            draft,
            volumes: Vec::new(),
            open: None,
            block: vec![0; BLOCK as usize],
            older: vec![0; BLOCK as usize],
            waiting: Vec::new(),
            taken: Taken::default(),
        })
    }

    /// Deletes a snapshot by its name, or a damaged manifest by that of its file; says how many bytes that gave back.
    ///
    /// # Errors
    /// There is none of that name; of the storage.
    pub fn delete(&mut self, name: &str) -> Result<u64, Error> {
        let file_name = match self.manifests.iter().position(|manifest| manifest.about.name == name) {
            Some(index) => {
                let manifest = self.manifests.remove(index);
                for volume in 0..manifest.volumes.len() {
                    for entry in manifest.entries(volume)? {
                        self.references[entry.slot as usize] -= 1;
                    }
                }
                manifest.file_name
            }
            None => {
                let index = self.damaged.iter().position(|damaged| damaged.file_name == name);
                self.damaged.remove(index.ok_or_else(|| Error::Unknown(name.to_owned()))?).file_name
            }
        };
        let path = path_of(&file_name);
        self.storage.remove(&path).map_err(Error::io(&path))?;
        // Before that is durable the slots are still referred to.
        self.storage.sync_dir(FOLDER).map_err(Error::io(FOLDER))?;
        self.free()
    }

    /// Gives back what free slots take.
    fn free(&mut self) -> Result<u64, Error> {
        self.search = 0;
        let mut freed = 0;
        if !self.damaged.is_empty() {
            return Ok(freed);
        }
        let mut first = 0;
        for run in self.references.chunk_by(|one, next| (*one == 0) == (*next == 0)) {
            if run[0] == 0 {
                freed += self.pool.free(first, run.len() as u64)?;
            }
            first += run.len() as u64;
        }
        Ok(freed)
    }

    /// Takes a free slot.
    fn take(&mut self) -> Result<u32, Error> {
        if self.damaged.is_empty() {
            while self.references.get(self.search).is_some_and(|count| *count > 0) {
                self.search += 1;
            }
        } else {
            self.search = self.references.len();
        }
        let slot = u32::try_from(self.search).map_err(|_| Error::Full)?;
        match self.references.get_mut(self.search) {
            Some(count) => *count = 1,
            None => self.references.push(1),
        }
        Ok(slot)
    }
}

/// Counts what a manifest refers to; nothing if it is damaged.
fn count(manifest: &Manifest, references: &mut [u32]) -> Result<(), Error> {
    let volumes = (0..manifest.volumes.len()).map(|volume| manifest.entries(volume));
    let volumes = volumes.collect::<Result<Vec<_>, _>>()?;
    let slots = || volumes.iter().flatten().map(|entry| entry.slot as usize);
    if slots().any(|slot| slot >= references.len()) {
        let why = "it refers to blocks behind the end of the pool".to_owned();
        return Err(Error::Damaged { path: path_of(&manifest.file_name), why });
    }
    slots().for_each(|slot| references[slot] += 1);
    Ok(())
}

/// A snapshot that is being made. Dropped before its end it leaves slots and a file that the next [`Store::open`] clears
/// away.
pub struct Creation {
    store: Store,
    about: About,
    draft: Draft,
    volumes: Vec<Volume>,
    open: Option<OpenVolume>,
    block: Vec<u8>,
    older: Vec<u8>,
    waiting: Vec<u8>,
    taken: Taken,
}

/// The volume whose blocks come in.
struct OpenVolume {
    name: String,
    size: u64,
    /// The first block that may come.
    next: u64,
    blocks: u64,
    hasher: Xxh3,
    /// Those of the newest snapshot that has this volume, from `at` on still to come.
    older: Vec<Entry>,
    at: usize,
}

impl Creation {
    /// Begins the next volume. What is not written of it is zeros.
    ///
    /// # Errors
    /// Of the storage.
    pub fn volume(&mut self, name: &str, size: u64) -> Result<(), Error> {
        self.close()?;
        assert!(self.volumes.iter().all(|volume| volume.name != name), "volume {name} comes twice");
        let newest = self.store.manifests.iter().rev().find_map(|manifest| {
            let index = manifest.volumes.iter().position(|volume| volume.name == name)?;
            (manifest.about.group == self.about.group).then_some((manifest, index))
        });
        let older = newest.map(|(manifest, index)| manifest.entries(index)).transpose()?.unwrap_or_default();
        let hasher = Xxh3::new();
        self.open =
            Some(OpenVolume { name: name.to_owned(), size, next: 0, blocks: 0, hasher, older, at: 0 });
        Ok(())
    }

    /// The block of the open volume with that number, behind all that came before; shorter than a block only at the end
    /// of the volume.
    ///
    /// # Errors
    /// Of the storage. Then the snapshot cannot be finished; see [`Creation::abandon`].
    pub fn write(&mut self, number: u64, bytes: &[u8]) -> Result<(), Error> {
        let open = self.open.as_mut().expect("a volume was begun");
        assert!(number >= open.next, "block {number} comes behind block {}", open.next);
        let expected = open.size.saturating_sub(number * BLOCK).min(BLOCK);
        assert_eq!(bytes.len() as u64, expected, "block {number} of a volume of {} bytes", open.size);
        open.next = number + 1;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let block = u32::try_from(number).map_err(|_| Error::Full)?;
        self.block[..bytes.len()].copy_from_slice(bytes);
        self.block[bytes.len()..].fill(0);
        let digest = Digest::of(&self.block);
        while open.older.get(open.at).is_some_and(|entry| entry.block < block) {
            open.at += 1;
        }
        let alike = open.older.get(open.at).filter(|entry| entry.block == block && entry.digest == digest);
        // A block that cannot be read, or not as it was, is written anew: what is rotten is not handed on.
        let shared = alike.filter(|entry| {
            self.store.pool.read(entry.slot, &mut self.older).is_ok() && self.older == self.block
        });
        self.taken.data_bytes += BLOCK;
        let slot = match shared {
            Some(entry) => {
                self.store.references[entry.slot as usize] += 1;
                entry.slot
            }
            None => {
                let slot = self.store.take()?;
                self.store.pool.write(slot, &self.block)?;
                self.taken.new_bytes += BLOCK;
                slot
            }
        };
        let entry = Entry { block, slot, digest }.bytes();
        open.hasher.update(&entry);
        open.blocks += 1;
        self.waiting.extend_from_slice(&entry);
        if self.waiting.len() >= MAX_WAITING * ENTRY_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.waiting.is_empty() {
            self.draft.add(&self.waiting)?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        self.flush()?;
        if let Some(OpenVolume { name, size, blocks, hasher, .. }) = self.open.take() {
            let digest = Digest(hasher.digest128().to_be_bytes());
            self.volumes.push(Volume { name, size, blocks, digest });
        }
        Ok(())
    }

    /// What it has taken so far.
    #[must_use]
    pub fn taken(&self) -> Taken {
        self.taken
    }

    /// Makes the snapshot durable. On an error it is taken away again; if that fails, too, it may be there or not, and is
    /// whole if it is.
    ///
    /// # Errors
    /// Of the storage.
    pub fn finish(mut self) -> Result<Taken, Error> {
        self.close()?;
        self.store.pool.sync()?;
        let storage = &*self.store.storage;
        let path = self.draft.path().to_owned();
        if let Err(error) = self.draft.seal(storage, self.about, self.volumes) {
            // Its seal may be in memory and not on disk: who is told that it failed must not find it, until a power cut.
            let _ = storage.remove(&path).and_then(|()| storage.sync_dir(FOLDER));
            return Err(error);
        }
        Ok(self.taken)
    }

    /// Gives up, and gives back the space that it took.
    ///
    /// # Errors
    /// Of the storage; the next to open the store will try again.
    pub fn abandon(self) -> Result<(), Error> {
        let storage = self.store.storage.clone();
        drop(self);
        Store::open(storage).map(drop)
    }
}
