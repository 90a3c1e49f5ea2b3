//! An open regular file or block device as [`File`].
//!
//! Invariants:
//! - once a sync has failed, every later one on this handle fails, whatever the kernel says: it reports a lost
//!   page once and then takes it for clean (guarantee 8);
//! - the file position is never used, so concurrent calls do not disturb each other;
//! - no transfer is reported short: all of it, or an error.
//!
//! Where a filesystem cannot do something (punch a hole, reserve space, tell holes, read without waiting) the
//! effect is brought about by plain reads and writes.

use crate::io::File;
use rustix::fs::{self, Advice, FallocateFlags, FileType, SeekFrom};
use rustix::io::{Errno, IoSlice, IoSliceMut, ReadWriteFlags, retry_on_intr};
use std::io::{Error, ErrorKind, Result};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most slices that the kernel takes in one call (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Zeros are written in slices of this many bytes.
const ZERO_BYTES: usize = 64 << 10;

/// How many such slices go into one call: 1 MiB.
const ZERO_SLICES: usize = 16;

/// Block devices take requests to zero in whole logical blocks, and their page cache is dropped in whole pages.
const BLOCK_ALIGNMENT: u64 = 4096;

static ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];

/// An open file or block device.
#[derive(Debug)]
pub(super) struct Handle {
    fd: OwnedFd,
    kind: Kind,
    syncs: Syncs,
    /// The filesystem knows no read that does not wait.
    always_waits: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Block,
}

/// The syncs of one file, one after the other, up to the first that fails.
///
/// One after the other because of two that overlap the kernel tells only one of a page that was lost.
#[derive(Debug, Default)]
struct Syncs {
    failed: Mutex<Option<String>>,
}

impl Handle {
    /// Wraps what was opened; `InvalidInput` if it is neither a regular file nor a block device.
    pub(super) fn new(fd: OwnedFd) -> Result<Handle> {
        let kind = match FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::BlockDevice => Kind::Block,
            _ => {
                return Err(Error::new(ErrorKind::InvalidInput, "neither a regular file nor a block device"));
            }
        };
        Ok(Handle { fd, kind, syncs: Syncs::default(), always_waits: AtomicBool::new(false) })
    }

    /// Writes zeros over a range.
    fn write_zeros(&self, mut offset: u64, end: u64) -> Result<()> {
        while offset < end {
            let mut left = (end - offset).min((ZERO_BYTES * ZERO_SLICES) as u64) as usize;
            let count = left;
            let mut slices = Vec::with_capacity(ZERO_SLICES);
            while left > 0 {
                let len = left.min(ZERO_BYTES);
                slices.push(IoSlice::new(&ZEROS[..len]));
                left -= len;
            }
            self.write_at(&slices, offset)?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Writes zeros wherever there is a hole in the first `len` bytes, and up to there. Where the filesystem does
    /// not tell holes, only what lies behind the end. A concurrent write to a hole could be lost, which is why
    /// this is for files that nobody else writes yet.
    fn fill_holes(&self, len: u64) -> Result<()> {
        let mut at = 0;
        while at < len {
            let (start, end) = self.next_data(at)?.unwrap_or((len, len));
            self.write_zeros(at, start.min(len))?;
            at = end;
        }
        Ok(())
    }

    /// Gives a range back to the filesystem; whether it could.
    fn punch(&self, mode: FallocateFlags, offset: u64, end: u64) -> Result<bool> {
        let mode = mode | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| fs::fallocate(&self.fd, mode, offset, end - offset)) {
            Ok(()) => Ok(true),
            Err(error) if is_unsupported(error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn zero_regular(&self, offset: u64, end: u64) -> Result<()> {
        let len = self.len()?;
        if !self.punch(FallocateFlags::PUNCH_HOLE, offset, end)? {
            self.write_zeros(offset, end.min(len))?;
        }
        if len < end {
            // One byte rather than a new length: it cannot cut off what a concurrent write has added.
            self.write_at(&[IoSlice::new(&ZEROS[..1])], end - 1)?;
        }
        Ok(())
    }

    fn zero_block(&self, offset: u64, end: u64) -> Result<()> {
        if end > self.len()? {
            return Err(Error::new(ErrorKind::InvalidInput, "the range lies beyond the end of the device"));
        }
        let (first, last) = (offset.next_multiple_of(BLOCK_ALIGNMENT), end - end % BLOCK_ALIGNMENT);
        if first >= last {
            return self.write_zeros(offset, end);
        }
        self.write_zeros(offset, first)?;
        // Both read as zeros afterwards, unlike a discard. Punching frees the space where the device can.
        if !self.punch(FallocateFlags::PUNCH_HOLE, first, last)?
            && !self.punch(FallocateFlags::ZERO_RANGE, first, last)?
        {
            self.write_zeros(first, last)?;
        }
        self.write_zeros(last, end)
    }
}

impl File for Handle {
    fn len(&self) -> Result<u64> {
        match self.kind {
            Kind::Regular => Ok(u64::try_from(fs::fstat(&self.fd)?.st_size).unwrap_or(0)),
            Kind::Block => Ok(fs::seek(&self.fd, SeekFrom::End(0))?),
        }
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let count = retry_on_intr(|| rustix::io::pread(&self.fd, &mut *buf, offset))?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            buf = &mut buf[count..];
            offset += count as u64;
        }
        Ok(())
    }

    fn read_cached_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() && !self.always_waits.load(Ordering::Relaxed) {
            let slices = &mut [IoSliceMut::new(buf)];
            let flags = ReadWriteFlags::NOWAIT;
            let count = match retry_on_intr(|| rustix::io::preadv2(&self.fd, slices, offset, flags)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.always_waits.store(true, Ordering::Relaxed);
                    break;
                }
                // `EAGAIN` becomes `WouldBlock`.
                Err(error) => return Err(error.into()),
            };
            buf = &mut buf[count..];
            offset += count as u64;
        }
        self.read_at(buf, offset)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        for slices in slices.chunks(MAX_SLICES) {
            let total: usize = slices.iter().map(|slice| slice.len()).sum();
            if total == 0 {
                continue;
            }
            // Nearly always the first call takes it all, and nothing has to be copied.
            let mut count = retry_on_intr(|| rustix::io::pwritev(&self.fd, slices, offset))?;
            offset += count as u64;
            if count < total {
                let mut written = count;
                let mut copy = slices.to_vec();
                let mut rest = copy.as_mut_slice();
                while written < total {
                    if count == 0 {
                        return Err(ErrorKind::WriteZero.into());
                    }
                    IoSlice::advance_slices(&mut rest, count);
                    count = retry_on_intr(|| rustix::io::pwritev(&self.fd, rest, offset))?;
                    written += count;
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.syncs.run(|| Ok(retry_on_intr(|| fs::fdatasync(&self.fd))?))
    }

    /// Sets the length of a regular file. A block device has the length that it has: a longer one is
    /// `InvalidInput`, a shorter one is taken for "at least that much" and does nothing.
    fn set_len(&self, len: u64) -> Result<()> {
        match self.kind {
            Kind::Regular => Ok(retry_on_intr(|| fs::ftruncate(&self.fd, len))?),
            Kind::Block => self.allocate(len),
        }
    }

    /// Reserves space. A file on a filesystem that cannot is filled with zeros where it has holes; it must not
    /// be written by others meanwhile.
    fn allocate(&self, len: u64) -> Result<()> {
        match self.kind {
            Kind::Regular if len == 0 => Ok(()),
            Kind::Regular => match retry_on_intr(|| fs::fallocate(&self.fd, FallocateFlags::empty(), 0, len))
            {
                // Not at `EINVAL`: that would be a length that no file can have, and filling it the disk's end.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_holes(len),
                other => Ok(other?),
            },
            Kind::Block if len <= self.len()? => Ok(()),
            Kind::Block => Err(Error::new(ErrorKind::InvalidInput, "a block device cannot grow")),
        }
    }

    /// Makes a range read as zeros. A regular file that ends before the range does becomes longer, with a hole.
    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let Some(end) = offset.checked_add(len) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the range ends beyond 2^64"));
        };
        match self.kind {
            _ if len == 0 => Ok(()),
            Kind::Regular => self.zero_regular(offset, end),
            Kind::Block => self.zero_block(offset, end),
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let len = self.len()?;
        if offset >= len {
            return Ok(None);
        }
        let start = match retry_on_intr(|| fs::seek(&self.fd, SeekFrom::Data(offset))) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) if is_unsupported(error) => return Ok(Some((offset, len))),
            Err(error) => return Err(error.into()),
        };
        // Where another thread is making holes the two answers may not fit together: then say "data".
        match retry_on_intr(|| fs::seek(&self.fd, SeekFrom::Hole(start))) {
            Ok(end) if end > start => Ok(Some((start, end))),
            Ok(_) | Err(Errno::NXIO) if start < len => Ok(Some((start, len))),
            Ok(_) | Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Some(len) = NonZeroU64::new(len) {
            // Advice only.
            fs::fadvise(&self.fd, offset, Some(len), Advice::WillNeed).ok();
        }
    }

    fn let_go(&self) {
        // Advice only.
        fs::fadvise(&self.fd, 0, None, Advice::DontNeed).ok();
    }
}

impl Syncs {
    fn run(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        // Nothing panics under this lock; were it so, the state would still be whole.
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &*failed {
            return Err(Error::other(format!("an earlier sync of this file failed: {reason}")));
        }
        let result = sync();
        if let Err(error) = &result {
            *failed = Some(error.to_string());
        }
        result
    }
}

/// The filesystem does not know the request. `EINVAL` is what old and network filesystems say; where the
/// argument really is wrong, the fallback says so.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    /// A handle on a file that has no name any more.
    fn handle(name: &str) -> Handle {
        let path = std::env::temp_dir().join(format!("landfall-{}-{name}", std::process::id()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = fs::open(&path, flags, Mode::RUSR | Mode::WUSR).expect("a temporary file");
        fs::unlink(&path).expect("removed");
        Handle::new(fd).expect("a regular file")
    }

    #[test]
    fn w15_w16_a_failed_sync_is_final() {
        let syncs = Syncs::default();
        assert!(syncs.run(|| Ok(())).is_ok());
        let error = syncs.run(|| Err(Errno::IO.into())).expect_err("fails");
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        for _ in 0..2 {
            let error = syncs.run(|| unreachable!("the kernel is not asked again")).expect_err("still fails");
            assert!(error.to_string().contains("an earlier sync"), "{error}");
        }
    }

    #[test]
    fn w19_filling_holes_keeps_what_is_there() {
        let file = handle("holes");
        file.set_len(3 << 20).expect("set");
        file.write_at(&[IoSlice::new(b"kept")], (1 << 20) + 4096).expect("written");
        file.fill_holes(4 << 20).expect("filled");
        assert_eq!(file.len().expect("length"), 4 << 20);
        assert_eq!(file.next_data(0).expect("told"), Some((0, 4 << 20)));
        let mut found = [0; 6];
        file.read_at(&mut found, (1 << 20) + 4095).expect("read");
        assert_eq!(&found, b"\0kept\0");
        assert!(fs::fstat(&file.fd).expect("stat").st_blocks as u64 * 512 >= 4 << 20);
        // Never shorter, and nothing to do the second time.
        file.fill_holes(1 << 20).expect("filled");
        assert_eq!(file.len().expect("length"), 4 << 20);
    }

    #[test]
    fn w19_zeros_are_written_where_no_hole_can_be_made() {
        let file = handle("zeros");
        let len = (2 * ZERO_BYTES * ZERO_SLICES + 4097) as u64;
        let ones = vec![1; len as usize];
        file.write_at(&[IoSlice::new(&ones)], 0).expect("written");
        file.write_zeros(1, len - 1).expect("zeroed");
        let mut found = vec![2; len as usize];
        file.read_at(&mut found, 0).expect("read");
        assert_eq!((found[0], found[len as usize - 1]), (1, 1));
        assert!(found[1..len as usize - 1].iter().all(|&byte| byte == 0));
    }
}
