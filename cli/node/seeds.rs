//! The seeds of a replica's volumes: copies that came by other means, named by `seed_from` in its configuration.
//!
//! A seed is only read. It is looked at while a session with the primary goes on and a sync span is under way here, in
//! the order in which copies come, a bounded stretch ahead of them. One that does not hold what it was said to hold is
//! left alone until the daemon is started again, or told of it anew.

use crate::config;
use crate::control::api::Seed;
use engine::digest::Digest;
use engine::seeds::{self, Held, MAX_KNOWN, PIECE_BYTES};
use engine::types::VolumeId;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Error, Read, Result, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;
use transport::link::frame::HELD_PER_FRAME;

/// What is read at once.
const READ_BYTES: u64 = 4 * PIECE_BYTES;
/// Runs that are told of at once, at most.
const TELL: usize = HELD_PER_FRAME;
/// Runs that copies have not come to yet: the primary need not keep more.
const AHEAD: usize = MAX_KNOWN / 2;
/// How often it is looked whether the session is still there, while there is nothing to tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The seeds of one group.
pub(super) struct Seeds {
    group: String,
    inner: Mutex<Inner>,
    moved: Condvar,
}

#[derive(Default)]
struct Inner {
    /// By the volume's name.
    images: BTreeMap<String, Image>,
    /// The volumes of the group, by the name that seeds go by.
    names: BTreeMap<VolumeId, String>,
    /// A span is under way.
    copying: bool,
    /// Copies have come as far as this.
    passed: (VolumeId, u64),
    /// The number of the session that is told.
    session: u64,
    /// Its listener, while nothing is told.
    idle: Option<mpsc::Sender<Vec<Held>>>,
}

struct Image {
    path: PathBuf,
    file: Option<Arc<File>>,
    used_bytes: u64,
    fault: Option<String>,
}

impl Seeds {
    pub(super) fn new(group: &config::Group) -> Seeds {
        let seeds = Seeds { group: group.name.clone(), inner: Mutex::default(), moved: Condvar::new() };
        for volume in &group.volumes {
            if let Some(path) = &volume.seed_from {
                seeds.put(&volume.name, path);
            }
        }
        seeds
    }

    /// From now on there is this one; the next span makes use of it.
    pub(super) fn put(&self, volume: &str, path: &Path) {
        let opened = File::open(path);
        if let Err(error) = &opened {
            tracing::warn!(group = self.group, volume, seed = %path.display(), %error, "a seed cannot be read");
        }
        let fault = opened.as_ref().err().map(Error::to_string);
        let file = opened.ok().map(Arc::new);
        let image = Image { path: path.to_owned(), file, used_bytes: 0, fault };
        self.lock().images.insert(volume.to_owned(), image);
    }

    /// What became of a volume's seed.
    pub(super) fn of(&self, volume: &str) -> Option<Seed> {
        let inner = self.lock();
        let Image { path, used_bytes, fault, .. } = inner.images.get(volume)?;
        Some(Seed { path: path.clone(), used_bytes: *used_bytes, fault: fault.clone() })
    }

    /// Whether there are any: what else is asked of this costs nothing if not.
    pub(super) fn any(&self) -> bool {
        !self.lock().images.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// Records were appended, or a session has begun. `copying`: a span is under way behind them, with these volumes.
    pub(super) fn appended(
        self: &Arc<Seeds>,
        copied_to: Option<(VolumeId, u64)>,
        copying: Option<BTreeMap<VolumeId, String>>,
    ) {
        let mut inner = self.lock();
        inner.copying = copying.is_some();
        if let Some(names) = copying {
            inner.names = names;
        }
        if let Some(passed) = copied_to {
            inner.passed = passed;
        }
        if inner.copying
            && let Some(sender) = inner.idle.take()
        {
            let (seeds, session) = (self.clone(), inner.session);
            let teller = Teller { seeds, session, sender, told: VecDeque::new(), collected: Vec::new() };
            if let Err(error) =
                std::thread::Builder::new().name("seed".to_owned()).spawn(move || teller.run())
            {
                tracing::warn!(group = self.group, %error, "no thread for seeds");
            }
        }
        drop(inner);
        self.moved.notify_all();
    }

    /// A new session: what the seeds hold, told while it is listened to.
    pub(super) fn tell(&self) -> mpsc::Receiver<Vec<Held>> {
        let (sender, receiver) = mpsc::channel(4);
        let mut inner = self.lock();
        inner.session += 1;
        inner.passed = (VolumeId(0), 0);
        inner.idle = Some(sender);
        receiver
    }

    /// Reads what was said to be there.
    pub(super) fn read(&self, held: &Held) -> Result<bytes::Bytes> {
        let (name, file) = {
            let inner = self.lock();
            let name = inner.names.get(&held.volume).ok_or(std::io::ErrorKind::NotFound)?;
            let image = inner.images.get(name).ok_or(std::io::ErrorKind::NotFound)?;
            (name.clone(), image.file.clone().ok_or(std::io::ErrorKind::NotFound)?)
        };
        let mut bytes = vec![0; held.extent.len as usize];
        let found = file.read_exact_at(&mut bytes, held.extent.offset).and_then(|()| {
            let same = Digest::of(&bytes) == held.digest;
            same.then_some(()).ok_or_else(|| Error::other("it is written to while it is used"))
        });
        match found {
            Ok(()) => {
                if let Some(image) = self.lock().images.get_mut(&name) {
                    image.used_bytes += held.extent.len;
                }
                Ok(bytes.into())
            }
            Err(error) => {
                self.give_up(&name, &error);
                Err(error)
            }
        }
    }

    fn give_up(&self, name: &str, error: &Error) {
        if let Some(image) = self.lock().images.get_mut(name) {
            let seed = image.path.display();
            tracing::warn!(group = self.group, volume = name, %seed, %error, "a seed is left alone");
            (image.file, image.fault) = (None, Some(error.to_string()));
        }
    }
}

/// Reads the seeds ahead of the copies, for one session.
struct Teller {
    seeds: Arc<Seeds>,
    session: u64,
    sender: mpsc::Sender<Vec<Held>>,
    /// What was told and is still ahead of the copies.
    told: VecDeque<(VolumeId, u64)>,
    collected: Vec<Held>,
}

/// The session is over.
struct Over;

impl Teller {
    fn run(mut self) {
        // Once for each span: what came too late for its copies is of no use to the rest.
        if self.tell_all().is_ok() && self.wait(|inner| !inner.copying).is_ok() {
            let mut inner = self.seeds.lock();
            if inner.session == self.session {
                inner.idle = Some(self.sender);
            }
        }
    }

    fn tell_all(&mut self) -> std::result::Result<(), Over> {
        let mut at = (VolumeId(0), 0);
        loop {
            at = at.max(self.wait(|_| true)?);
            let Some((name, volume, file)) = self.next_volume(at.0) else { return Ok(()) };
            if volume > at.0 {
                at = (volume, 0);
            }
            let read = read_ahead(&file, at.1);
            let (offset, bytes) = match read {
                Ok(Some(found)) => found,
                Ok(None) => {
                    at = (VolumeId(volume.0 + 1), 0);
                    continue;
                }
                Err(error) => {
                    self.seeds.give_up(&name, &error);
                    continue;
                }
            };
            at = (volume, offset + bytes.len() as u64);
            for held in seeds::held(volume, offset, &bytes, PIECE_BYTES) {
                self.told.push_back((volume, held.extent.offset));
                self.collected.push(held);
                if self.collected.len() == TELL {
                    self.flush()?;
                }
            }
            // The first ones at once: copies are on their way.
            self.flush()?;
            while self.told.len() >= AHEAD {
                let first = self.told.front().copied();
                let passed = self.wait(|inner| first.is_none_or(|first| inner.passed >= first))?;
                self.told.retain(|told| *told >= passed);
                at = at.max(passed);
            }
        }
    }

    /// Waits until it is so; how far copies have come then.
    fn wait(&self, is_so: impl Fn(&Inner) -> bool) -> std::result::Result<(VolumeId, u64), Over> {
        let mut inner = self.seeds.lock();
        loop {
            if inner.session != self.session || self.sender.is_closed() {
                return Err(Over);
            }
            if is_so(&inner) {
                return Ok(inner.passed);
            }
            let waited = self.seeds.moved.wait_timeout(inner, LOOK_EVERY);
            inner = waited.expect("no holder of the lock panics").0;
        }
    }

    /// The first volume from there on that has a seed.
    fn next_volume(&self, from: VolumeId) -> Option<(String, VolumeId, Arc<File>)> {
        let inner = self.seeds.lock();
        inner.names.range(from..).find_map(|(id, name)| {
            let file = inner.images.get(name)?.file.clone()?;
            Some((name.clone(), *id, file))
        })
    }

    fn flush(&mut self) -> std::result::Result<(), Over> {
        if self.collected.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(std::mem::take(&mut self.collected)).map_err(|_| Over)
    }
}

/// The length of a copy that can be read, in bytes.
pub(super) fn length(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::other("neither a file nor a block device"));
    }
    file.seek(std::io::SeekFrom::End(0))
}

/// The next data of an image from an offset on, whole pieces but for the last; `None` behind its end.
fn read_ahead(file: &File, from: u64) -> Result<Option<(u64, Vec<u8>)>> {
    let from = from - from % PIECE_BYTES;
    // A block device has no holes to tell of.
    let data = match seek(file, SeekFrom::Data(from)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => from,
        Err(error) => return Err(error.into()),
    };
    let at = data - data % PIECE_BYTES;
    let mut bytes = Vec::new();
    let mut reader = file;
    reader.seek(std::io::SeekFrom::Start(at))?;
    reader.take(READ_BYTES).read_to_end(&mut bytes)?;
    Ok(if bytes.is_empty() { None } else { Some((at, bytes)) })
}
