//! The file `pool`: slots of 64 KiB, one behind the other, without a header. What they hold is told by the manifests
//! alone; a slot that none refers to is free, and its space is given back to the filesystem.

use super::manifest::path_of;
use super::{BLOCK, Error};
use crate::io::{File, OpenMode, Storage};
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;

const FILE: &str = "pool";

/// The pool, open.
pub struct Pool {
    file: Arc<dyn File>,
    path: String,
}

impl Pool {
    /// For reading; `None` if there is none yet.
    pub(super) fn open(storage: &dyn Storage) -> Result<Option<Pool>, Error> {
        let path = path_of(FILE);
        match storage.open(&path, OpenMode::Read) {
            Ok(file) => Ok(Some(Pool { file, path })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Io { path, error }),
        }
    }

    /// For writing; made if there is none. Its name is durable with the next sync of the folder.
    pub(super) fn open_for_writing(storage: &dyn Storage) -> Result<Pool, Error> {
        let path = path_of(FILE);
        let file = match storage.open(&path, OpenMode::Write) {
            Err(error) if error.kind() == ErrorKind::NotFound => storage.open(&path, OpenMode::Create),
            other => other,
        };
        let file = file.map_err(Error::io(&path))?;
        Ok(Pool { file, path })
    }

    /// How many slots it has, a last one that is cut off among them.
    pub(super) fn slots(&self) -> Result<u64, Error> {
        Ok(self.file.len().map_err(Error::io(&self.path))?.div_ceil(BLOCK))
    }

    /// The bytes of a slot, the last of which may be missing.
    ///
    /// # Errors
    /// Of the file; `UnexpectedEof` if it is shorter.
    pub(super) fn read(&self, slot: u32, block: &mut [u8]) -> std::io::Result<()> {
        self.file.read_at(block, u64::from(slot) * BLOCK)
    }

    /// Writes a whole slot, which no manifest refers to.
    pub(super) fn write(&self, slot: u32, block: &[u8]) -> Result<(), Error> {
        assert_eq!(block.len() as u64, BLOCK, "a slot is written whole");
        self.file.write_at(&[IoSlice::new(block)], u64::from(slot) * BLOCK).map_err(Error::io(&self.path))
    }

    /// Makes all that was written durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync().map_err(Error::io(&self.path))
    }

    /// Gives back what free slots still take, and says how many bytes these have. To be cut off in it, or to lose it in a
    /// power cut, leaves them to the next time.
    pub(super) fn free(&self, first: u64, slots: u64) -> Result<u64, Error> {
        let (mut at, end) = (first * BLOCK, (first + slots) * BLOCK);
        let mut freed = 0;
        while let Some((start, stop)) = self.file.next_data(at).map_err(Error::io(&self.path))? {
            let (start, stop) = (start.max(at), stop.min(end));
            if start >= end {
                break;
            }
            self.file.zero(start, stop - start).map_err(Error::io(&self.path))?;
            freed += stop - start;
            at = stop;
        }
        Ok(freed)
    }
}
