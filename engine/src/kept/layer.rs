//! The file of one kept mark: what the base images held there and hold no longer.
//!
//! - An entry is only ever appended, and what it says of a mark is true for ever: the bytes of an extent at that LSN. So
//!   it does no harm if entries that a power cut tore off come back to life behind new ones.
//! - The state says how long the file is for certain. What stands behind that is read whole at the next opening, and ends
//!   at the first entry that is not what was written.
//! - Every entry has a checksum of its own: what rots is told, and never handed out.

use crate::catalog::MarkKind;
use crate::event::VolumeSpec;
use crate::io::{File, OpenMode, Storage, make_dir};
use crate::node::open::MAX_VOLUME_BYTES;
use crate::types::{Epoch, Extent, Lsn, Timestamp, VolumeId};
use bincode::{Decode, Encode};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::{Arc, Mutex, MutexGuard};

const MAGIC: [u8; 8] = *b"LFKEEP\x1a\n";
/// The newest version of the file's format.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 32;
/// 256 volumes with the longest names, and a mark's.
const MAX_BODY_BYTES: usize = 32 << 10;
const ENTRY_BYTES: usize = 32;
/// The most data in one entry: it is read whole to be checked.
pub(super) const MAX_ENTRY_BYTES: u64 = 64 << 10;
/// The most zeros in one entry.
const MAX_ZERO_BYTES: u64 = 1 << 30;
/// What the scan of an opening reads at once.
const WINDOW_BYTES: usize = 256 << 10;

const BODY: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_BODY_BYTES>,
> = bincode::config::standard().with_limit::<MAX_BODY_BYTES>();

/// A mark that stays a point behind the window.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KeptMark {
    /// The point.
    pub at: Lsn,
    /// The reign that it belongs to.
    pub epoch: Epoch,
    /// When it was set.
    pub time: Timestamp,
    /// What the applications were doing.
    pub kind: MarkKind,
    /// Its name; empty for one that nobody named.
    pub name: String,
    /// The volumes as they were.
    pub volumes: Vec<VolumeSpec>,
}

/// Where a stretch of a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    len: u32,
    /// Bytes of the entry before the stretch.
    skip: u32,
    /// Byte of the entry in the file; 0 for zeros.
    at: u64,
}

const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    pub(super) fn is_zeros(self) -> bool {
        self.at == 0
    }
}

#[derive(Default)]
struct Held {
    volumes: BTreeMap<VolumeId, BTreeMap<u64, Entry>>,
    /// Byte behind the last entry.
    end: u64,
}

/// One kept mark, and its file.
pub(crate) struct Layer {
    number: u64,
    mark: KeptMark,
    file: Arc<dyn File>,
    held: Mutex<Held>,
}

pub(super) fn dir(group_dir: &str) -> String {
    format!("{group_dir}/kept")
}

pub(super) fn path(group_dir: &str, number: u64) -> String {
    format!("{group_dir}/kept/{number}")
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("a kept mark's file: {what}"))
}

impl Layer {
    /// Makes the file, durably. One that is there already was never named by a state.
    pub(crate) fn create(
        storage: &dyn Storage,
        group_dir: &str,
        number: u64,
        mark: KeptMark,
    ) -> Result<Layer> {
        let dir = dir(group_dir);
        make_dir(storage, &dir)?;
        let path = path(group_dir, number);
        let file = match storage.open(&path, OpenMode::Create) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                storage.remove(&path)?;
                storage.open(&path, OpenMode::Create)?
            }
            opened => opened?,
        };
        let body = bincode::encode_to_vec(&mark, BODY).map_err(|error| Error::other(error.to_string()))?;
        let mut header = [0; HEADER_BYTES];
        header[0..8].copy_from_slice(&MAGIC);
        header[8] = VERSION;
        header[16..24].copy_from_slice(&number.to_le_bytes());
        header[24..28].copy_from_slice(&(body.len() as u32).to_le_bytes());
        let checksum = checksum_of_header(&header, &body);
        header[12..16].copy_from_slice(&checksum.to_le_bytes());
        file.write_at(&[IoSlice::new(&header), IoSlice::new(&body)], 0)?;
        file.sync()?;
        storage.sync_dir(&dir)?;
        let held = Held { end: (HEADER_BYTES + body.len()) as u64, ..Held::default() };
        Ok(Layer { number, mark, file, held: Mutex::new(held) })
    }

    /// Opens the file of which the first `durable` bytes are on record.
    ///
    /// # Errors
    /// `InvalidData` if it is not what was written.
    pub(crate) fn open(storage: &dyn Storage, group_dir: &str, number: u64, durable: u64) -> Result<Layer> {
        let file = storage.open(&path(group_dir, number), OpenMode::Write)?;
        let len = file.len()?;
        if len < durable || len < HEADER_BYTES as u64 {
            return Err(damaged(format_args!("number {number} ends at byte {len}")));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let body_len = word(24) as usize;
        let claimed = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        if header[0..8] != MAGIC || claimed != number || body_len > MAX_BODY_BYTES {
            return Err(damaged(format_args!("number {number} has no header of one")));
        }
        let mut body = vec![0; body_len];
        file.read_at(&mut body, HEADER_BYTES as u64)?;
        if checksum_of_header(&header, &body) != word(12) {
            return Err(damaged(format_args!("the header of number {number} is damaged")));
        }
        if header[8] != VERSION {
            return Err(damaged(format_args!("number {number} is of format version {}", header[8])));
        }
        let mark = match bincode::decode_from_slice(&body, BODY) {
            Ok((mark, used)) if used == body.len() => mark,
            _ => return Err(damaged(format_args!("the header of number {number} is damaged"))),
        };
        let held = Held { end: (HEADER_BYTES + body_len) as u64, ..Held::default() };
        let layer = Layer { number, mark, file, held: Mutex::new(held) };
        layer.scan(len, durable)?;
        Ok(layer)
    }

    /// Finds the entries.
    fn scan(&self, len: u64, durable: u64) -> Result<()> {
        let mut window = Window { file: &*self.file, len, start: 0, bytes: Vec::new() };
        let mut held = self.lock();
        loop {
            let at = held.end;
            let whole = window.get(at, ENTRY_BYTES)?.and_then(|bytes| Head::decode(self.number, bytes));
            let end = whole.map(|head| at + head.bytes());
            let is_sound = match (whole, end) {
                (Some(_), Some(end)) if end <= durable => true,
                (Some(head), Some(end)) if end <= len => {
                    self.read_entry(at).is_ok_and(|(read, _)| read == head)
                }
                _ => false,
            };
            match (whole, end) {
                (Some(head), Some(end)) if is_sound => {
                    held.insert(head.volume, head.extent, if head.zeros { 0 } else { at });
                    held.end = end;
                }
                _ if at < durable => {
                    return Err(damaged(format_args!("number {} is damaged at byte {at}", self.number)));
                }
                // A torn tail.
                _ => return Ok(()),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of the lock panics")
    }

    /// The mark.
    pub(crate) fn mark(&self) -> &KeptMark {
        &self.mark
    }

    /// The number of the file.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().end
    }

    /// The parts of an extent that it does not have.
    pub(super) fn missing(&self, volume: VolumeId, extent: Extent) -> Vec<Extent> {
        let parts = self.find(volume, extent);
        parts.into_iter().filter(|(_, entry)| entry.is_none()).map(|(part, _)| part).collect()
    }

    /// An extent in parts, in order: those that it has, and those that it does not.
    pub(super) fn find(&self, volume: VolumeId, extent: Extent) -> Vec<(Extent, Option<Entry>)> {
        self.lock().find(volume, extent)
    }

    /// Notes what an extent holds at the mark; what is noted of it already stays. Not durable before [`Layer::sync`]. One
    /// job at a time may do that; reads go on meanwhile.
    pub(super) fn put(&self, volume: VolumeId, extent: Extent, data: Option<&[u8]>) -> Result<()> {
        let mut offset = extent.offset;
        while offset < extent.end() {
            let most = if data.is_some() { MAX_ENTRY_BYTES } else { MAX_ZERO_BYTES };
            let part = Extent::new(offset, (extent.end() - offset).min(most));
            let skip = (offset - extent.offset) as usize;
            let payload = data.map_or(&[][..], |data| &data[skip..skip + part.len as usize]);
            let payload_checksum = crc32fast::hash(payload);
            let head = Head { volume, extent: part, zeros: data.is_none(), payload_checksum };
            let at = self.bytes();
            self.file.write_at(&[IoSlice::new(&head.encode(self.number)), IoSlice::new(payload)], at)?;
            let mut held = self.lock();
            held.insert(volume, part, if data.is_some() { at } else { 0 });
            held.end = at + head.bytes();
            offset = part.end();
        }
        Ok(())
    }

    /// Makes it durable; returns the bytes that are.
    pub(crate) fn sync(&self) -> Result<u64> {
        let end = self.lock().end;
        self.file.sync()?;
        Ok(end)
    }

    /// The first `len` bytes of a stretch, which is no zeros.
    pub(super) fn read(&self, entry: Entry, len: u64) -> Result<Bytes> {
        assert!(!entry.is_zeros(), "zeros are not read");
        let Entry { at, .. } = entry;
        let (_, data) = self.read_entry(at)?;
        let from = entry.skip as usize;
        match data.get(from..from + len as usize) {
            Some(_) => Ok(data.slice(from..from + len as usize)),
            None => Err(damaged(format_args!("number {} is damaged at byte {at}", self.number))),
        }
    }

    fn read_entry(&self, at: u64) -> Result<(Head, Bytes)> {
        let damaged = || damaged(format_args!("number {} is damaged at byte {at}", self.number));
        let mut bytes = [0; ENTRY_BYTES];
        self.file.read_at(&mut bytes, at)?;
        let head = Head::decode(self.number, &bytes).ok_or_else(damaged)?;
        let mut data = vec![0; (head.bytes() - ENTRY_BYTES as u64) as usize];
        self.file.read_at(&mut data, at + ENTRY_BYTES as u64)?;
        match crc32fast::hash(&data) == head.payload_checksum {
            true => Ok((head, data.into())),
            false => Err(damaged()),
        }
    }

    /// All stretches, in order.
    pub(super) fn stretches(&self) -> Vec<(VolumeId, Extent, Entry)> {
        let held = self.lock();
        let of = |(&volume, entries): (&VolumeId, &BTreeMap<u64, Entry>)| {
            let stretch = move |(&offset, &entry): (&u64, &Entry)| {
                (volume, Extent::new(offset, entry.len.into()), entry)
            };
            entries.iter().map(stretch).collect::<Vec<_>>()
        };
        held.volumes.iter().flat_map(of).collect()
    }
}

impl Held {
    fn find(&self, volume: VolumeId, extent: Extent) -> Vec<(Extent, Option<Entry>)> {
        let mut parts = Vec::new();
        let mut at = extent.offset;
        if let Some(entries) = self.volumes.get(&volume) {
            let first = entries.range(..=at).next_back().map_or(at, |(&offset, _)| offset);
            for (&offset, entry) in entries.range(first..extent.end()) {
                let Some(part) = Extent::new(offset, entry.len.into()).intersect(extent) else { continue };
                if part.offset > at {
                    parts.push((Extent::new(at, part.offset - at), None));
                }
                let skip = entry.skip + (part.offset - offset) as u32;
                parts.push((part, Some(Entry { len: part.len as u32, skip, at: entry.at })));
                at = part.end();
            }
        }
        if at < extent.end() {
            parts.push((Extent::new(at, extent.end() - at), None));
        }
        parts
    }

    fn insert(&mut self, volume: VolumeId, extent: Extent, at: u64) {
        for (part, entry) in self.find(volume, extent) {
            if entry.is_none() {
                let skip = (part.offset - extent.offset) as u32;
                let entry = Entry { len: part.len as u32, skip, at };
                self.volumes.entry(volume).or_default().insert(part.offset, entry);
            }
        }
    }
}

/// What stands before an entry's data:
///
/// ```text
/// 0  4  checksum of the rest, seeded by the file's number   4  4  checksum of the data   8  8  offset
/// 16 4  volume   20 4  length   24 4  1: data, 2: zeros      28 4  zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    volume: VolumeId,
    extent: Extent,
    zeros: bool,
    payload_checksum: u32,
}

impl Head {
    /// Bytes of the entry.
    fn bytes(&self) -> u64 {
        ENTRY_BYTES as u64 + if self.zeros { 0 } else { self.extent.len }
    }

    fn encode(&self, number: u64) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[4..8].copy_from_slice(&self.payload_checksum.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.extent.offset.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.volume.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.extent.len as u32).to_le_bytes());
        bytes[24..28].copy_from_slice(&(1 + u32::from(self.zeros)).to_le_bytes());
        let checksum = checksum_of_entry(number, &bytes);
        bytes[0..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if it is not whole.
    fn decode(number: u64, bytes: &[u8]) -> Option<Head> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let offset = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let (volume, len, kind) = (VolumeId(word(16)), u64::from(word(20)), word(24));
        let zeros = kind == 2;
        let most = if zeros { MAX_ZERO_BYTES } else { MAX_ENTRY_BYTES };
        let is_sound = word(0) == checksum_of_entry(number, bytes)
            && matches!(kind, 1 | 2)
            && (1..=most).contains(&len)
            && offset.checked_add(len).is_some_and(|end| end <= MAX_VOLUME_BYTES);
        is_sound.then(|| Head { volume, extent: Extent::new(offset, len), zeros, payload_checksum: word(4) })
    }
}

fn checksum_of_header(header: &[u8; HEADER_BYTES], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(1);
    hasher.update(&header[0..12]);
    hasher.update(&header[16..]);
    hasher.update(body);
    hasher.finalize()
}

fn checksum_of_entry(number: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(1);
    hasher.update(&number.to_le_bytes());
    hasher.update(&bytes[4..ENTRY_BYTES]);
    hasher.finalize()
}

/// What was read last of a file.
struct Window<'a> {
    file: &'a dyn File,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes from `at`; `None` behind the file's end.
    fn get(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        if at + len as u64 > self.len {
            return Ok(None);
        }
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            self.bytes.resize((self.len - at).min(WINDOW_BYTES as u64) as usize, 0);
            self.file.read_at(&mut self.bytes, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.bytes[from..from + len]))
    }
}
