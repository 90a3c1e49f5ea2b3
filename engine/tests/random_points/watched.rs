//! A storage around another that lets a test look at something before each call that changes the disk: so it sees what
//! a reader may see while a job of the engine has come only half of its way.

use engine::io::{File, OpenMode, Storage};
use std::io::{IoSlice, Result};
use std::sync::{Arc, Mutex};

/// What looks.
pub(crate) type Look = Box<dyn FnMut() + Send>;

/// The storage. Clones are the same.
#[derive(Clone)]
pub(crate) struct Watched {
    inner: Arc<dyn Storage>,
    look: Arc<Mutex<Option<Look>>>,
}

impl Watched {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Watched {
        Watched { inner, look: Arc::default() }
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    /// From now on `look` is called before each change, or nothing is.
    pub(crate) fn watch(&self, look: Option<Look>) {
        *self.look.lock().expect("no look panics twice") = look;
    }

    fn look(&self) {
        if let Some(look) = self.look.lock().expect("no look panics twice").as_mut() {
            look();
        }
    }
}

impl Storage for Watched {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn File>> {
        let file = self.inner.open(path, mode)?;
        Ok(Arc::new(WatchedFile { storage: self.clone(), file }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &str) -> Result<()> {
        self.inner.create_dir(dir)
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &str) -> Result<Box<dyn Send + Sync>> {
        self.inner.lock(path)
    }
}

struct WatchedFile {
    storage: Watched,
    file: Arc<dyn File>,
}

impl File for WatchedFile {
    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.storage.look();
        self.file.write_at(slices, offset)
    }

    fn sync(&self) -> Result<()> {
        self.storage.look();
        self.file.sync()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.storage.look();
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.storage.look();
        self.file.allocate(len)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.storage.look();
        self.file.zero(offset, len)
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.file.next_data(offset)
    }
}
