//! The catalog on disk, in a sled database.
//!
//! Invariants:
//! - it may be deleted or damaged at any time while it is not open: [`open`] then makes a new one, and says so;
//! - whatever sled does when it meets bytes that it did not write, an error or a panic, is an [`Error`] here, and
//!   final: a catalog that failed once answers nothing any more;
//! - sled's own flusher is off: the log syncs, the catalog does not compete with it. A process that dies loses the
//!   last changes, which are projected again.
//!
//! Trees, keys and values (big-endian numbers as keys, so that their order is the numbers'; bincode, standard
//! configuration, at most [`MAX_VALUE_BYTES`], as values):
//!
//! | tree | key | value |
//! |---|---|---|
//! | `marks` | LSN | [`Mark`] |
//! | `samples` | time | LSN |
//! | `reigns` | epoch | [`Reign`] |
//! | `cursors` | node | [`Cursor`] |
//! | `about` | `format`, `through` | number |

use crate::catalog::{Bounds, Catalog, Cursor, Error, MAX_MARKS_PER_CALL, Mark, Result, Sample, check_name};
use crate::types::{Lsn, NodeId, Reign, Timestamp};
use bincode::{Decode, Encode};
use sled::{Db, Tree};
use std::ops::{Bound, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The most that a value may take, in bytes: four times the longest mark.
pub const MAX_VALUE_BYTES: usize = 1024;

/// The trees' format. A catalog of another one is projected anew.
const FORMAT: u64 = 1;

/// sled's cache, in bytes: a month of samples would take more, but nobody reads them all.
const CACHE_BYTES: u64 = 8 << 20;

/// How often, and how far apart, a catalog that is being closed is tried.
const PATIENCE_TRIES: u32 = 1000;
const PATIENCE_EACH: Duration = Duration::from_millis(5);

/// How [`open`] found the catalog.
#[derive(Debug)]
pub enum Found {
    /// Whole.
    Whole,
    /// Absent: it is empty now.
    Absent,
    /// In a state that cannot be used: it was deleted, and is empty now.
    Unusable(Error),
}

/// A catalog in a folder.
#[derive(Debug)]
pub struct DiskCatalog {
    db: Db,
    marks: Tree,
    samples: Tree,
    reigns: Tree,
    cursors: Tree,
    about: Tree,
    failed: AtomicBool,
}

/// Opens the catalog in the folder `path`, or makes an empty one in its place if that cannot be used. The folder is
/// the catalog's alone.
///
/// Fails if not even an empty one can be made, or if the folder is in use (the caller holds the lock of the data
/// directory, so that it is not).
pub fn open(path: &Path) -> Result<(DiskCatalog, Found)> {
    let found = match path.try_exists()? {
        false => Found::Absent,
        true => match open_when_free(path) {
            Ok(catalog) => return Ok((catalog, Found::Whole)),
            Err(error) => {
                if path.is_dir() {
                    std::fs::remove_dir_all(path)?;
                } else {
                    std::fs::remove_file(path)?;
                }
                Found::Unusable(error)
            }
        },
    };
    let catalog = DiskCatalog::open_trees(path)?;
    guard(&catalog.failed, || {
        put(&catalog.about, b"format", &FORMAT)?;
        catalog.db.flush()?;
        Ok(())
    })?;
    Ok((catalog, found))
}

/// Opens what is there. A catalog that this process has just closed may be held by a thread of sled's for a moment yet.
#[expect(clippy::disallowed_methods, reason = "sled tells nobody when it is done")]
fn open_when_free(path: &Path) -> Result<DiskCatalog> {
    for _ in 0..PATIENCE_TRIES {
        match DiskCatalog::open_as_it_is(path) {
            Err(Error::Io(error)) if is_held(&error) => std::thread::sleep(PATIENCE_EACH),
            result => return result,
        }
    }
    DiskCatalog::open_as_it_is(path)
}

/// sled wraps the system's answer in words of its own.
fn is_held(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

impl DiskCatalog {
    /// Opens what is there and reads it all, so that damage is found now and not in the middle of the work.
    fn open_as_it_is(path: &Path) -> Result<DiskCatalog> {
        let catalog = DiskCatalog::open_trees(path)?;
        guard(&catalog.failed, || {
            match get::<u64>(&catalog.about, b"format")? {
                Some(FORMAT) => {}
                Some(other) => return Err(damaged(format!("its format is {other}, not {FORMAT}"))),
                None => return Err(damaged("it has no format")),
            }
            get::<Lsn>(&catalog.about, b"through")?;
            rows::<Mark>(&catalog.marks)
                .try_for_each(|row| row.and_then(|(key, _)| number(&key)).map(drop))?;
            rows::<Reign>(&catalog.reigns)
                .try_for_each(|row| row.and_then(|(key, _)| number(&key)).map(drop))?;
            rows::<Cursor>(&catalog.cursors)
                .try_for_each(|row| row.and_then(|(key, _)| node(&key)).map(drop))?;
            let mut last = None;
            for row in rows::<Lsn>(&catalog.samples) {
                let (key, lsn) = row?;
                number(&key)?;
                if last.replace(lsn).is_some_and(|last| last >= lsn) {
                    return Err(damaged("its samples are not in order"));
                }
            }
            Ok(())
        })?;
        Ok(catalog)
    }

    fn open_trees(path: &Path) -> Result<DiskCatalog> {
        let failed = AtomicBool::new(false);
        guard(&failed, || {
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            let db = config.open()?;
            Ok(DiskCatalog {
                marks: db.open_tree("marks")?,
                samples: db.open_tree("samples")?,
                reigns: db.open_tree("reigns")?,
                cursors: db.open_tree("cursors")?,
                about: db.open_tree("about")?,
                failed: AtomicBool::new(false),
                db,
            })
        })
    }

    fn guard<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        guard(&self.failed, run)
    }
}

impl Catalog for DiskCatalog {
    fn put_mark(&mut self, lsn: Lsn, mark: &Mark) -> Result<()> {
        check_name(mark)?;
        self.guard(|| put(&self.marks, &lsn.0.to_be_bytes(), mark))
    }

    fn marks(&self, range: RangeInclusive<Lsn>) -> Result<Vec<(Lsn, Mark)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.guard(|| {
            let keys = range.start().0.to_be_bytes()..=range.end().0.to_be_bytes();
            let rows = self.marks.range(keys).take(MAX_MARKS_PER_CALL);
            rows.map(|row| {
                let (key, value) = row?;
                Ok((Lsn(number(&key)?), decode(&value)?))
            })
            .collect()
        })
    }

    fn put_sample(&mut self, sample: Sample) -> Result<()> {
        self.guard(|| {
            let key = sample.time.0.to_be_bytes();
            let mut void = Vec::new();
            for row in self.samples.iter().rev() {
                let (other, lsn) = row?;
                // The newest comes first, and the samples before it have lower LSNs still.
                if void.is_empty() && sample.lsn <= decode(&lsn)? {
                    return Ok(());
                }
                if other.as_ref() < key.as_slice() {
                    break;
                }
                void.push(other);
            }
            for key in void {
                self.samples.remove(key)?;
            }
            put(&self.samples, &key, &sample.lsn)
        })
    }

    fn newest_sample(&self) -> Result<Option<Sample>> {
        self.guard(|| self.samples.last()?.map(sample).transpose())
    }

    fn lsn_at(&self, time: Timestamp) -> Result<Bounds> {
        self.guard(|| {
            let key = time.0.to_be_bytes();
            let behind = (Bound::Excluded(key), Bound::Unbounded);
            let before = self.samples.range(..=key).next_back().transpose()?;
            let after = self.samples.range::<[u8; 8], _>(behind).next().transpose()?;
            Ok(Bounds {
                at_or_before: before.map(sample).transpose()?,
                after: after.map(sample).transpose()?,
            })
        })
    }

    fn put_reign(&mut self, reign: &Reign) -> Result<()> {
        self.guard(|| put(&self.reigns, &reign.epoch.0.to_be_bytes(), reign))
    }

    fn reigns(&self) -> Result<Vec<Reign>> {
        self.guard(|| rows::<Reign>(&self.reigns).map(|row| Ok(row?.1)).collect())
    }

    fn put_cursor(&mut self, node: NodeId, cursor: &Cursor) -> Result<()> {
        self.guard(|| put(&self.cursors, &node.0, cursor))
    }

    fn cursors(&self) -> Result<Vec<(NodeId, Cursor)>> {
        self.guard(|| {
            let rows = rows::<Cursor>(&self.cursors);
            rows.map(|row| row.and_then(|(key, cursor)| Ok((node(&key)?, cursor)))).collect()
        })
    }

    fn truncate_after(&mut self, lsn: Lsn) -> Result<()> {
        self.guard(|| {
            // First, so that if we die in between, what follows is projected and so replaced, never trusted.
            if get::<Lsn>(&self.about, b"through")?.is_some_and(|through| through > lsn) {
                put(&self.about, b"through", &lsn)?;
            }
            for row in self.marks.range(lsn.next().0.to_be_bytes()..).keys() {
                self.marks.remove(row?)?;
            }
            for row in self.samples.iter().rev() {
                let (key, of) = row?;
                if decode::<Lsn>(&of)? <= lsn {
                    break;
                }
                self.samples.remove(key)?;
            }
            for row in rows::<Reign>(&self.reigns) {
                let (key, reign) = row?;
                // A reign's first record is the one behind its branch point.
                if reign.branch.lsn >= lsn {
                    self.reigns.remove(key)?;
                }
            }
            Ok(())
        })
    }

    fn forget_before(&mut self, lsn: Lsn) -> Result<()> {
        self.guard(|| {
            for row in self.marks.range(..lsn.0.to_be_bytes()).keys() {
                self.marks.remove(row?)?;
            }
            for row in self.samples.iter() {
                let (key, of) = row?;
                if decode::<Lsn>(&of)? >= lsn {
                    break;
                }
                self.samples.remove(key)?;
            }
            Ok(())
        })
    }

    fn clear(&mut self) -> Result<()> {
        self.guard(|| {
            self.about.remove(b"through")?;
            for tree in [&self.marks, &self.samples, &self.reigns, &self.cursors] {
                tree.clear()?;
            }
            Ok(())
        })
    }

    fn projected_through(&self) -> Result<Lsn> {
        self.guard(|| Ok(get(&self.about, b"through")?.unwrap_or_default()))
    }

    fn set_projected_through(&mut self, lsn: Lsn) -> Result<()> {
        self.guard(|| put(&self.about, b"through", &lsn))
    }

    fn flush(&mut self) -> Result<()> {
        self.guard(|| self.db.flush().map(drop).map_err(Error::from))
    }
}

impl From<sled::Error> for Error {
    fn from(error: sled::Error) -> Error {
        match error {
            sled::Error::Io(error) => Error::Io(error),
            other => Error::Damaged(other.to_string()),
        }
    }
}

/// Runs `run`, if nothing has failed before, and takes a panic for an error. sled asserts what it believes of its
/// files, and asks that it not be used again after that.
fn guard<T>(failed: &AtomicBool, run: impl FnOnce() -> Result<T>) -> Result<T> {
    if failed.load(Ordering::Relaxed) {
        return Err(damaged("it failed before"));
    }
    let result = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(damaged(said.unwrap_or("the database panicked")))
        }
    };
    if result.is_err() {
        failed.store(true, Ordering::Relaxed);
    }
    result
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::Damaged(reason.into())
}

fn put(tree: &Tree, key: &[u8], value: &impl Encode) -> Result<()> {
    let value = bincode::encode_to_vec(value, config()).expect("the catalog's types have an encoding");
    assert!(value.len() <= MAX_VALUE_BYTES, "a value of {} bytes", value.len());
    tree.insert(key, value)?;
    Ok(())
}

fn get<T: Decode<()>>(tree: &Tree, key: &[u8]) -> Result<Option<T>> {
    tree.get(key)?.map(|value| decode(&value)).transpose()
}

fn rows<T: Decode<()>>(tree: &Tree) -> impl Iterator<Item = Result<(sled::IVec, T)>> {
    tree.iter().map(|row| {
        let (key, value) = row?;
        let value = decode(&value)?;
        Ok((key, value))
    })
}

fn sample((key, value): (sled::IVec, sled::IVec)) -> Result<Sample> {
    Ok(Sample { time: Timestamp(number(&key)?), lsn: decode(&value)? })
}

fn number(key: &[u8]) -> Result<u64> {
    let bytes = key.try_into().map_err(|_| damaged(format!("a key of {} bytes", key.len())))?;
    Ok(u64::from_be_bytes(bytes))
}

fn node(key: &[u8]) -> Result<NodeId> {
    let bytes = key.try_into().map_err(|_| damaged(format!("a node of {} bytes", key.len())))?;
    Ok(NodeId(bytes))
}

fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T> {
    match bincode::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => {
            Err(damaged(format!("a value of {} bytes, of which {used} mean something", bytes.len())))
        }
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_VALUE_BYTES>()
}
