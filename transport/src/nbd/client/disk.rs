//! A disk as `std::io` sees it, so that a filesystem library can work on an export.

use super::{Answer, Client, Command, Durability, Error};
use bytes::Bytes;
use engine::guest::MAX_REQUEST_BYTES;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// What a [`Disk`] needs: [`Client`] and `Reconnecting` are both that.
pub trait Volume {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Does one thing and waits for it.
    ///
    /// # Errors
    ///
    /// As the implementation's.
    fn run(&mut self, command: &Command) -> Result<Answer, Error>;

    /// Fills `buf` from `offset`, in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// As [`Volume::run`].
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let mut offset = offset;
        for part in buf.chunks_mut(MAX_REQUEST_BYTES as usize) {
            match self.run(&Command::Read { offset, len: part.len() as u32 })? {
                Answer::Data(data) if data.len() == part.len() => part.copy_from_slice(&data),
                _ => return Err(Error::Protocol("no data in the answer to a read")),
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` from `offset`, in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// As [`Volume::run`]. Some of it may be written then.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut offset = offset;
        for part in data.chunks(MAX_REQUEST_BYTES as usize) {
            let data = Bytes::copy_from_slice(part);
            self.run(&Command::Write { offset, data, durability: Durability::Volatile })?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

impl Volume for Client {
    fn size(&self) -> u64 {
        Client::size(self)
    }

    fn run(&mut self, command: &Command) -> Result<Answer, Error> {
        Client::run(self, command)
    }
}

/// A position on a volume.
///
/// Reads end at the end of the volume; writes there fail with `WriteZero`, as on any device that cannot grow.
/// `flush` is the disk's: when it returns, what was written is durable.
#[derive(Debug)]
pub struct Disk<V> {
    volume: V,
    position: u64,
}

impl<V: Volume> Disk<V> {
    /// Begins at the first byte.
    pub fn new(volume: V) -> Disk<V> {
        Disk { volume, position: 0 }
    }

    /// The volume.
    pub fn into_inner(self) -> V {
        self.volume
    }

    /// The part of a request of `len` bytes that lies on the volume.
    fn reach(&self, len: usize) -> usize {
        let left = self.volume.size().saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(len).min(MAX_REQUEST_BYTES as usize)
    }
}

impl<V: Volume> Read for Disk<V> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.reach(buf.len());
        self.volume.read_at(self.position, &mut buf[..len])?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<V: Volume> Write for Disk<V> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = self.reach(data.len());
        self.volume.write_at(self.position, &data[..len])?;
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.volume.run(&Command::Flush)?;
        Ok(())
    }
}

impl<V: Volume> Seek for Disk<V> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.volume.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek before the first byte"))?;
        Ok(self.position)
    }
}
