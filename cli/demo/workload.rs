//! The load: a filesystem that is filled with batches of files, and beside it, on another volume, a journal that
//! names each batch once it is written, and pages that are overwritten at random, as a database would.
//!
//! - A batch's files are acknowledged before the journal's slot that names them is sent. So a recovery point
//!   whose journal names a batch has the batch, or was never the state of the group.
//! - The two volumes are written by two threads through two connections, at the same time, until the connections
//!   break.

use super::content::{Batch, Pool, Random, SLOT_BYTES, SLOTS};
use super::history::History;
use super::volume::{Counters, Medium, Volume};
use crate::exit::{Context, Failure};
use bytes::Bytes;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use transport::nbd::client::{Client, Error};

/// Requests in flight on each volume.
pub(crate) const DEPTH: usize = 32;

/// Pages a second, at most, before the end.
const PAGES_PER_SECOND: u64 = 2_000;

/// Pages in all: at 4 KiB each, what the logs of both nodes have to hold.
const MAX_PAGES: u64 = 100_000;

/// A flush for so many pages.
const PAGES_PER_FLUSH: u64 = 128;

/// Batches in all: what the filesystem has room for.
const MAX_BATCHES: usize = 400;

/// The pause between two batches, before the end.
const BATCH_PAUSE: Duration = Duration::from_millis(40);

/// How often the pages' thread looks at the clock.
const TICK: Duration = Duration::from_millis(10);

/// The filesystem, formatted and filled, and the journal with its first slot. Everything is acknowledged.
pub(crate) struct Prepared {
    files: Shared,
    journal: Volume,
}

impl Prepared {
    /// Formats, fills, and flushes both volumes.
    pub(crate) fn new(files: Client, journal: Client) -> Result<Prepared, Failure> {
        let doing = || "the filesystem cannot be made on the protected volume";
        let files = Shared(Arc::new(Mutex::new(Medium::new(Volume::new(files, DEPTH)))));
        let batch = Batch::first();
        let make = || -> io::Result<()> {
            let options =
                fatfs::FormatVolumeOptions::new().volume_label(*b"LANDFALL   ").bytes_per_cluster(8 << 10);
            fatfs::format_volume(files.clone(), options)?;
            let filesystem = files.open()?;
            write_batch(&filesystem, &batch)?;
            filesystem.unmount()?;
            files.medium(|medium| {
                medium.settle()?;
                medium.volume()?.flush_later()?;
                medium.settle()
            })
        };
        make().context(doing)?;
        let mut journal = Volume::new(journal, DEPTH);
        let begin = |journal: &mut Volume| -> Result<(), Error> {
            journal.write(0, batch.slot())?;
            journal.settle()?;
            journal.flush_later()?;
            journal.settle()
        };
        begin(&mut journal).context(|| "the journal cannot be begun on the protected volume")?;
        Ok(Prepared { files, journal })
    }

    /// How far the two volumes are: files, journal.
    pub(crate) fn counters(&self) -> Result<[Arc<Counters>; 2], Failure> {
        let files = self.files.medium(|medium| Ok(medium.volume()?.counters()));
        Ok([files.context(|| "the filesystem's volume is gone")?, self.journal.counters()])
    }

    /// Begins to write; `seconds` is for how long, so that pages and slots last.
    pub(crate) fn run(self, seconds: u64) -> Result<Running, Failure> {
        let counters = self.counters()?;
        let Prepared { files, mut journal } = self;
        let doing = || "a thread for the load cannot be started";
        let pace = Arc::new(Pace { all_out: AtomicBool::new(false), seconds: seconds.max(1) });
        let (sender, receiver) = sync_channel(1);
        let for_thread = Arc::clone(&pace);
        let files = thread::Builder::new()
            .name("demo-files".to_owned())
            .spawn(move || {
                let end = write_batches(&files, &sender, &for_thread);
                (files.take_volume(), end)
            })
            .context(doing)?;
        let for_thread = Arc::clone(&pace);
        let journal = thread::Builder::new()
            .name("demo-journal".to_owned())
            .spawn(move || {
                let end = write_pages(&mut journal, &receiver, &for_thread);
                (Some(journal), end)
            })
            .context(doing)?;
        Ok(Running { pace, counters, threads: [files, journal] })
    }
}

/// The load while it runs.
pub(crate) struct Running {
    pace: Arc<Pace>,
    counters: [Arc<Counters>; 2],
    threads: [JoinHandle<(Option<Volume>, io::Error)>; 2],
}

struct Pace {
    /// No pauses any more.
    all_out: AtomicBool,
    seconds: u64,
}

impl Running {
    /// How far the two volumes are: files, journal.
    pub(crate) fn counters(&self) -> &[Arc<Counters>; 2] {
        &self.counters
    }

    /// From now on without pauses: as much in flight as there can be.
    pub(crate) fn all_out(&self) {
        self.pace.all_out.store(true, Ordering::SeqCst);
    }

    /// Whether one of the connections broke.
    pub(crate) fn is_over(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits until both connections have broken. The record of both volumes, and why each ended.
    pub(crate) fn end(self) -> Result<[(History, io::Error); 2], Failure> {
        let mut ends = Vec::new();
        for thread in self.threads {
            match thread.join() {
                Ok((Some(volume), end)) => ends.push((volume.into_history(), end)),
                _ => return Err(Failure::failed("a thread of the load came to an unexpected end")),
            }
        }
        ends.try_into().map_err(|_| Failure::failed("the load had not two threads"))
    }
}

/// Writes batches until the connection breaks. Then both threads end: each needs the other.
fn write_batches(files: &Shared, named: &SyncSender<Bytes>, pace: &Pace) -> io::Error {
    let write = || -> io::Result<()> {
        let filesystem = files.open()?;
        let pause = BATCH_PAUSE.max(Duration::from_millis(pace.seconds * 1_000 / MAX_BATCHES as u64));
        for number in 1.. {
            if number <= MAX_BATCHES.min(SLOTS - 1) {
                let batch = Batch::numbered(number);
                write_batch(&filesystem, &batch)?;
                files.medium(Medium::settle)?;
                named.send(batch.slot()).map_err(|_| io::Error::other("the journal's connection broke"))?;
            } else {
                // The filesystem is as full as it may get: look for the end of the connection.
                files.medium(|medium| {
                    medium.volume()?.flush_later()?;
                    medium.settle()
                })?;
            }
            if !pace.all_out.load(Ordering::SeqCst) {
                thread::sleep(pause);
            }
        }
        Ok(())
    };
    write().err().unwrap_or_else(|| io::Error::other("it ended by itself"))
}

fn write_batch<T: fatfs::ReadWriteSeek>(filesystem: &fatfs::FileSystem<T>, batch: &Batch) -> io::Result<()> {
    let root = filesystem.root_dir();
    for file in &batch.files {
        for (end, _) in file.path.match_indices('/') {
            root.create_dir(&file.path[..end])?;
        }
        let mut target = root.create_file(&file.path)?;
        target.write_all(&file.content())?;
        target.flush()?;
    }
    Ok(())
}

/// Writes pages, and the slots that are handed over, until the connection breaks.
fn write_pages(journal: &mut Volume, named: &Receiver<Bytes>, pace: &Pace) -> io::Error {
    let mut write = || -> Result<(), Error> {
        let pool = Pool::new();
        let mut random = Random::new(3);
        let first_page = SLOTS;
        let last_page = usize::try_from(journal.size()).expect("demo volumes fit into memory") / SLOT_BYTES;
        let rate = PAGES_PER_SECOND.min(MAX_PAGES / pace.seconds);
        let started = Instant::now();
        let (mut pages, mut slot) = (0, 1);
        loop {
            match named.try_recv() {
                Ok(text) => {
                    journal.write((slot * SLOT_BYTES) as u64, text)?;
                    slot += 1;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the files' connection broke").into());
                }
            }
            let due =
                u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_mul(rate) / 1_000;
            let all_out = pace.all_out.load(Ordering::SeqCst) && pages < MAX_PAGES * 2;
            if !all_out && pages >= due {
                journal.settle()?;
                thread::sleep(TICK);
                continue;
            }
            let page = first_page + random.below(last_page - first_page);
            journal.write((page * SLOT_BYTES) as u64, pool.page(&mut random))?;
            pages += 1;
            if pages.is_multiple_of(PAGES_PER_FLUSH) {
                journal.flush_later()?;
            }
        }
    };
    match write() {
        Err(error) => error.into(),
        Ok(()) => io::Error::other("it ended by itself"),
    }
}

/// A [`Medium`] that a filesystem and the load both hold.
#[derive(Clone)]
struct Shared(Arc<Mutex<Medium>>);

impl Shared {
    /// Opens the filesystem on it.
    fn open(&self) -> io::Result<fatfs::FileSystem<Shared>> {
        let mut from_the_start = self.clone();
        from_the_start.seek(SeekFrom::Start(0))?;
        fatfs::FileSystem::new(from_the_start, fatfs::FsOptions::new())
    }

    fn medium<T>(&self, act: impl FnOnce(&mut Medium) -> Result<T, Error>) -> io::Result<T> {
        act(&mut self.lock()).map_err(io::Error::from)
    }

    fn take_volume(&self) -> Option<Volume> {
        self.lock().take_volume()
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for Shared {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.lock().read(buf)
    }
}

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.lock().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.lock().seek(to)
    }
}
