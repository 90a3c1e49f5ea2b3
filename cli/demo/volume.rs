//! A volume under load: an NBD connection with several writes in flight, all of them on record.
//!
//! Invariants:
//! - the record is in the order in which writes were sent: sending and noting are one step;
//! - a write is noted before it is sent and its reply when it came, so the record never claims an acknowledgement
//!   that was not there, nor misses a write that may have happened.

use super::history::History;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use transport::nbd::client::{Client, Command, Durability, Error};

/// How far a volume is, for another thread to see.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    submitted: AtomicUsize,
    acknowledged: AtomicUsize,
}

impl Counters {
    /// Writes submitted so far.
    pub(crate) fn submitted(&self) -> usize {
        self.submitted.load(Ordering::SeqCst)
    }

    /// Writes that must be there: those up to the last that was acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }
}

/// The volume.
pub(crate) struct Volume {
    client: Client,
    history: History,
    counters: Arc<Counters>,
    /// By the client's number: the place in the history of a write; `None` for a flush.
    in_flight: BTreeMap<u64, Option<usize>>,
    depth: usize,
}

impl Volume {
    /// A volume that is all zeros, with at most `depth` requests in flight.
    pub(crate) fn new(client: Client, depth: usize) -> Volume {
        let history = History::new(client.size());
        Volume { client, history, counters: Arc::default(), in_flight: BTreeMap::new(), depth }
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.history.size()
    }

    /// How far it is.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Sends a write; waits for replies while too much is in flight.
    pub(crate) fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.make_room()?;
        let place = self.history.submit(offset, data.clone());
        self.counters.submitted.store(place + 1, Ordering::SeqCst);
        let number =
            self.client.submit(&Command::Write { offset, data, durability: Durability::Volatile })?;
        self.in_flight.insert(number, Some(place));
        Ok(())
    }

    /// Sends a flush, without waiting for its reply.
    pub(crate) fn flush_later(&mut self) -> Result<(), Error> {
        self.make_room()?;
        let number = self.client.submit(&Command::Flush)?;
        self.in_flight.insert(number, None);
        Ok(())
    }

    /// Waits until nothing is in flight.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        while !self.in_flight.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    /// The record, once the volume is done with. Replies that have arrived but were not looked at yet are taken
    /// in: whoever wrote would have seen them too.
    pub(crate) fn into_history(mut self) -> History {
        while !self.in_flight.is_empty() && self.collect().is_ok() {}
        self.history
    }

    fn make_room(&mut self) -> Result<(), Error> {
        while self.in_flight.len() >= self.depth {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Error> {
        let (number, result) = self.client.collect()?;
        let place = self.in_flight.remove(&number).ok_or(Error::Protocol("an answer to nothing"))?;
        result.map_err(Error::Remote)?;
        if let Some(place) = place {
            self.history.acknowledge(place);
            self.counters.acknowledged.fetch_max(place + 1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// The longest write that [`Medium`] makes of many.
const MAX_RUN_BYTES: usize = 256 << 10;

/// A [`Volume`] as a filesystem library sees it.
///
/// Reads are answered from a copy in memory, as a page cache would. Writes of a few bytes that follow each other
/// are gathered into one of whole sectors; the order of what does not follow each other is kept.
pub(crate) struct Medium {
    /// `None` once it was taken: whatever a filesystem still wants to write then is refused.
    volume: Option<Volume>,
    copy: Vec<u8>,
    position: usize,
    pending: Range<usize>,
}

impl Medium {
    /// A medium that is all zeros.
    pub(crate) fn new(volume: Volume) -> Medium {
        let size = usize::try_from(volume.size()).expect("demo volumes fit into memory");
        Medium { volume: Some(volume), copy: vec![0; size], position: 0, pending: 0..0 }
    }

    /// Sends what was gathered and waits for all replies. A filesystem's own buffers are not in here.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.send_pending()?;
        self.volume()?.settle()
    }

    /// Takes the volume out; what was gathered and not sent is dropped, as in a power cut.
    pub(crate) fn take_volume(&mut self) -> Option<Volume> {
        self.pending = 0..0;
        self.volume.take()
    }

    /// The volume.
    pub(crate) fn volume(&mut self) -> Result<&mut Volume, Error> {
        self.volume.as_mut().ok_or_else(|| io::Error::other("the volume was taken out").into())
    }

    fn send_pending(&mut self) -> Result<(), Error> {
        if !self.pending.is_empty() {
            let start = self.pending.start / 512 * 512;
            let end = self.pending.end.next_multiple_of(512);
            self.pending = 0..0;
            let data = Bytes::copy_from_slice(&self.copy[start..end]);
            self.volume()?.write(start as u64, data)?;
        }
        Ok(())
    }
}

impl Read for Medium {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let end = self.copy.len().min(self.position + buf.len());
        let found = &self.copy[self.position.min(end)..end];
        buf[..found.len()].copy_from_slice(found);
        self.position += found.len();
        Ok(found.len())
    }
}

impl Write for Medium {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let start = self.position.min(self.copy.len());
        let end = self.copy.len().min(start + data.len().min(MAX_RUN_BYTES));
        let follows = self.pending.start <= start
            && start <= self.pending.end
            && end.max(self.pending.end) - self.pending.start <= MAX_RUN_BYTES;
        if !follows {
            self.send_pending()?;
            self.pending = start..start;
        }
        self.copy[start..end].copy_from_slice(&data[..end - start]);
        self.pending.end = self.pending.end.max(end);
        self.position = end;
        Ok(end - start)
    }

    /// Sends what was gathered. It does not wait: what has to be durable, and when, the workload decides.
    fn flush(&mut self) -> io::Result<()> {
        Ok(self.send_pending()?)
    }
}

impl Seek for Medium {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.copy.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => (self.position as u64).checked_add_signed(offset),
        };
        self.position = position
            .and_then(|position| usize::try_from(position).ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek before the first byte"))?;
        Ok(self.position as u64)
    }
}
