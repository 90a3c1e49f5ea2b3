//! Where the bytes of a volume at a point come from: the daemon's NBD server, with a small cache before it, since what
//! a filesystem keeps about its files is read in small pieces that lie together.
//!
//! Invariants:
//! - nothing is read outside the source; a range that reaches out of it is damage in whoever named it;
//! - a place that cannot be read is told from a source that is gone: the first costs one file, the second ends all.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use transport::nbd::client::{Client, Error};

/// What is read and kept at a time.
const CHUNK_BYTES: u64 = 64 << 10;

/// Chunks that are kept: 16 MiB.
const MAX_CHUNKS: usize = 256;

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// What is there makes no sense, or that place cannot be read; others can.
    Damaged(String),
    /// It is sound, as far as can be told, but of a kind that is not understood here.
    Unsupported(String),
    /// The source is gone.
    Lost(String),
}

impl Trouble {
    /// Damage.
    pub(super) fn damaged(what: impl fmt::Display) -> Trouble {
        Trouble::Damaged(what.to_string())
    }

    /// Something that is not understood here.
    pub(super) fn unsupported(what: impl fmt::Display) -> Trouble {
        Trouble::Unsupported(what.to_string())
    }

    /// Whether nothing else can be read either.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Trouble::Lost(_))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Trouble::Damaged(what) | Trouble::Unsupported(what) | Trouble::Lost(what)) = self;
        f.write_str(what)
    }
}

/// Bytes that do not change.
pub(super) trait Source {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble>;

    /// As [`Source::read`], into memory of its own. `len` is to be checked against a limit before.
    fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, Trouble> {
        let mut buf = vec![0; len];
        self.read(offset, &mut buf)?;
        Ok(buf)
    }
}

/// Whether a range lies within `size`.
pub(super) fn check_range(offset: u64, len: u64, size: u64) -> Result<(), Trouble> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Trouble::damaged(format_args!("byte {offset} and {len} from there on lie behind the end"))),
    }
}

/// An NBD export.
pub(super) struct Export {
    client: RefCell<Client>,
    size: u64,
    cache: RefCell<Cache>,
}

#[derive(Default)]
struct Cache {
    chunks: HashMap<u64, (u64, Box<[u8]>)>,
    clock: u64,
}

impl Export {
    /// All that `client` serves.
    pub(super) fn new(client: Client) -> Export {
        Export { size: client.size(), client: RefCell::new(client), cache: RefCell::default() }
    }

    fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        self.client.borrow_mut().read(offset, buf).map_err(|err| match err {
            Error::Remote(_) => Trouble::damaged(format_args!("byte {offset} of the volume: {err}")),
            other => Trouble::Lost(format!("the daemon serves the point no more: {other}")),
        })
    }

    /// Fills `buf`, which lies in one chunk, from `start` in it.
    fn read_chunk(&self, chunk: u64, start: usize, buf: &mut [u8]) -> Result<(), Trouble> {
        let mut cache = self.cache.borrow_mut();
        cache.clock += 1;
        let clock = cache.clock;
        if !cache.chunks.contains_key(&chunk) {
            let offset = chunk * CHUNK_BYTES;
            let mut bytes = vec![0; CHUNK_BYTES.min(self.size - offset) as usize];
            self.fetch(offset, &mut bytes)?;
            if cache.chunks.len() >= MAX_CHUNKS {
                let oldest = cache.chunks.iter().min_by_key(|(_, (used, _))| *used).map(|(at, _)| *at);
                oldest.map(|oldest| cache.chunks.remove(&oldest));
            }
            cache.chunks.insert(chunk, (clock, bytes.into_boxed_slice()));
        }
        let Some((used, bytes)) = cache.chunks.get_mut(&chunk) else { return Ok(()) };
        *used = clock;
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }
}

impl Source for Export {
    fn len(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        check_range(offset, buf.len() as u64, self.size)?;
        if buf.len() as u64 >= CHUNK_BYTES {
            return self.fetch(offset, buf);
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let start = (at % CHUNK_BYTES) as usize;
            let (part, behind) = rest.split_at_mut(rest.len().min(CHUNK_BYTES as usize - start));
            self.read_chunk(at / CHUNK_BYTES, start, part)?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }
}

/// A part of a source: a partition.
#[derive(Clone)]
pub(super) struct Window {
    source: Rc<dyn Source>,
    start: u64,
    len: u64,
}

impl Window {
    /// `len` bytes from `start`, which must lie in the source.
    pub(super) fn new(source: Rc<dyn Source>, start: u64, len: u64) -> Result<Window, Trouble> {
        check_range(start, len, source.len())?;
        Ok(Window { source, start, len })
    }

    /// All of a source.
    pub(super) fn whole(source: Rc<dyn Source>) -> Window {
        let len = source.len();
        Window { source, start: 0, len }
    }
}

impl Source for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        check_range(offset, buf.len() as u64, self.len)?;
        self.source.read(self.start + offset, buf)
    }
}

/// Little-endian and big-endian numbers in bytes that may be cut off anywhere.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl<'a> Raw<'a> {
    /// `len` bytes from `at`.
    pub(super) fn bytes(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    /// A byte.
    pub(super) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    /// Little-endian, 2 bytes.
    pub(super) fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }

    /// Little-endian, 4 bytes.
    pub(super) fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }

    /// Little-endian, 8 bytes.
    pub(super) fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }

    /// Big-endian, 2 bytes.
    pub(super) fn u16_be(self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }

    /// Big-endian, 4 bytes.
    pub(super) fn u32_be(self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes in memory.
    pub(in super::super) struct Memory(pub(in super::super) Vec<u8>);

    impl Source for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
            check_range(offset, buf.len() as u64, self.len())?;
            buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
            Ok(())
        }
    }

    #[test]
    fn a_window_ends_where_it_ends() {
        let memory: Rc<dyn Source> = Rc::new(Memory((0..100).collect()));
        let window = Window::new(memory.clone(), 10, 20).unwrap();
        assert_eq!(window.read_vec(18, 2), Ok(vec![28, 29]));
        assert!(window.read_vec(19, 2).is_err());
        assert!(window.read_vec(u64::MAX, 1).is_err());
        assert!(Window::new(memory, 90, 11).is_err());
    }

    #[test]
    fn numbers_that_are_cut_off_are_none() {
        let raw = Raw(&[1, 2, 3, 4]);
        assert_eq!((raw.u32(0), raw.u32(1), raw.u16_be(2)), (Some(0x0403_0201), None, Some(0x0304)));
        assert_eq!(raw.u16(usize::MAX), None);
    }
}
