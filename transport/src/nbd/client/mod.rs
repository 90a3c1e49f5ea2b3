//! A blocking NBD client: for tests, the demo and whoever wants to look at an exported disk from Rust.
//!
//! [`Client`] does one thing at a time ([`Client::read`], [`Client::write`], …) or many at once
//! ([`Client::submit`], then [`Client::collect`]). [`Reconnecting`] does the same across the loss of its
//! connection, and [`Disk`] makes a `Read + Write + Seek` of either.
//!
//! What holds: nothing that the server says is believed unchecked (lengths, cookies, that a read's chunks cover
//! its range exactly once); after an [`Error::Protocol`] or [`Error::Io`] the client is of no further use.
//!
//! What it does not do: TLS, and sending while the server does not read. With much more than the server's limit
//! of held bytes in flight and nothing collected, both sides would wait for each other.

mod disk;
mod negotiate;
mod reconnect;

pub use disk::{Disk, Volume};
pub use reconnect::{Reconnecting, Retry};

use super::proto::{
    self, CHUNK_HEADER_BYTES, Errno, REQUEST_HEADER_BYTES, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, command, command_flag, export_flag,
};
use super::request::Header;
use bytes::Bytes;
use engine::guest::{MAX_REQUEST_BYTES, Stretch};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// The longest message of a server's error that is kept, in bytes.
const MAX_MESSAGE_BYTES: u32 = proto::MAX_STRING_BYTES as u32;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server carried the request out with an error; the connection is fine.
    #[error("the server says: {0}")]
    Remote(Errno),
    /// The connection is lost. What was in flight may have taken effect or not.
    #[error("the connection is lost: {0}")]
    Io(#[from] io::Error),
    /// The server refused an option of the handshake.
    #[error("the server refuses ({code:#x}): {message}")]
    Refused {
        /// One of [`proto::rep`]'s errors.
        code: u32,
        /// What it says about it.
        message: String,
    },
    /// The server does not keep to the protocol.
    #[error("the server breaks the protocol: {0}")]
    Protocol(&'static str),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::Io(error) => error,
            Error::Remote(Errno::NoSpc) => io::Error::new(io::ErrorKind::StorageFull, error),
            Error::Remote(Errno::Perm) => io::Error::new(io::ErrorKind::PermissionDenied, error),
            Error::Remote(Errno::Inval) => io::Error::new(io::ErrorKind::InvalidInput, error),
            other => io::Error::other(other),
        }
    }
}

/// A request that can be submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
    },
    /// Writes bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// When it is answered.
        durability: Durability,
    },
    /// Makes everything that was answered before durable.
    Flush,
    /// Gives up the content of a range.
    Trim {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
    },
    /// Writes zeros.
    Zero {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
        /// When it is answered.
        durability: Durability,
    },
    /// Asks which parts are holes; only if [`Client::connect`] could agree on it.
    Status {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
    },
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as it is taken.
    Volatile,
    /// When it would survive a power cut (FUA).
    Durable,
}

/// The success of a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// What was read.
    Data(Vec<u8>),
    /// What is a hole, from the offset that was asked for; it may cover less than that.
    Status(Vec<Stretch>),
}

/// How a request ended.
pub type Outcome = Result<Answer, Errno>;

/// A connection to an export.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Stream>,
    info: Info,
    next_cookie: u64,
    in_flight: BTreeMap<u64, InFlight>,
}

/// What the handshake told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    size: u64,
    flags: u16,
    /// The number of `base:allocation`, if the server has it.
    allocation: Option<u32>,
}

#[derive(Debug)]
struct InFlight {
    header: Header,
    /// The bytes of a read as they come.
    data: Vec<u8>,
    /// Which ranges of a read have come, relative to its offset: start and end.
    covered: Vec<(u64, u64)>,
    stretches: Vec<Stretch>,
    error: Option<Errno>,
}

impl Client {
    /// Connects and enters transmission. Nothing waits longer than `timeout`, neither now nor later.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if there is no such export, or the server wants none of us.
    pub fn connect(address: &Address, export: &str, timeout: Duration) -> Result<Client, Error> {
        let stream = Stream::connect(address, timeout)?;
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let info = negotiate::negotiate(&mut stream, export)?;
        Ok(Client { stream, info, next_cookie: 1, in_flight: BTreeMap::new() })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.info.size
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags() & export_flag::READ_ONLY != 0
    }

    /// Bits of [`export_flag`].
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.info.flags
    }

    /// Sends a request without waiting for its answer. Returns the number by which [`Client::collect`] will name
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the connection is lost.
    ///
    /// # Panics
    ///
    /// If a write is longer than [`MAX_REQUEST_BYTES`].
    pub fn submit(&mut self, command: &Command) -> Result<u64, Error> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let (header, payload) = encode(cookie, command);
        let stream = self.stream.get_mut();
        if payload.is_empty() {
            stream.write_all(&header.encode())?;
        } else {
            send_both(stream, &header.encode(), payload)?;
        }
        let data = if header.command == command::READ { vec![0; header.len as usize] } else { Vec::new() };
        let in_flight = InFlight { header, data, covered: Vec::new(), stretches: Vec::new(), error: None };
        self.in_flight.insert(cookie, in_flight);
        Ok(cookie)
    }

    /// Waits for the next answer: the number of the request, and how it ended.
    ///
    /// # Errors
    ///
    /// The outer one if the connection is lost or the server breaks the protocol.
    ///
    /// # Panics
    ///
    /// If nothing is in flight.
    pub fn collect(&mut self) -> Result<(u64, Outcome), Error> {
        assert!(!self.in_flight.is_empty(), "nothing is in flight: no answer would ever come");
        loop {
            if let Some(answer) = self.reply()? {
                return Ok(answer);
            }
        }
    }

    /// Number of requests that were submitted and not collected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Does one thing and waits for it.
    ///
    /// # Errors
    ///
    /// Any [`Error`] but `Refused`.
    ///
    /// # Panics
    ///
    /// If something else is in flight.
    pub fn run(&mut self, command: &Command) -> Result<Answer, Error> {
        assert!(self.in_flight.is_empty(), "collect what was submitted first");
        self.submit(command)?;
        self.collect()?.1.map_err(Error::Remote)
    }

    /// Fills `buf` from `offset`, in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        Volume::read_at(self, offset, buf)
    }

    /// Writes `data` from `offset`, in as many requests as it takes.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        Volume::write_at(self, offset, data)
    }

    /// Makes everything that was written and answered before durable.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run(&Command::Flush).map(drop)
    }

    /// Gives up the content of a range.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn trim(&mut self, offset: u64, len: u32) -> Result<(), Error> {
        self.run(&Command::Trim { offset, len }).map(drop)
    }

    /// Writes zeros.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn write_zeroes(&mut self, offset: u64, len: u32) -> Result<(), Error> {
        self.run(&Command::Zero { offset, len, durability: Durability::Volatile }).map(drop)
    }

    /// Which parts of a range are holes; it may cover less than that.
    ///
    /// # Errors
    ///
    /// As [`Client::run`]; EINVAL from a server without `base:allocation`.
    pub fn block_status(&mut self, offset: u64, len: u32) -> Result<Vec<Stretch>, Error> {
        match self.run(&Command::Status { offset, len })? {
            Answer::Status(stretches) => Ok(stretches),
            Answer::Done | Answer::Data(_) => {
                Err(Error::Protocol("no extents in the answer to block status"))
            }
        }
    }

    /// Says goodbye. What is in flight takes effect, its answers are not waited for.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the connection is lost already.
    pub fn disconnect(mut self) -> Result<(), Error> {
        let header = Header { flags: 0, command: command::DISC, cookie: 0, offset: 0, len: 0 };
        let stream = self.stream.get_mut();
        stream.write_all(&header.encode())?;
        Ok(stream.shutdown_write()?)
    }

    /// Takes in one reply, or one chunk of one.
    fn reply(&mut self) -> Result<Option<(u64, Outcome)>, Error> {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        self.stream.read_exact(&mut head)?;
        let [m0, m1, m2, m3, a, b, c, d, cookie @ ..] = head;
        let cookie = u64::from_be_bytes(cookie);
        let Some(in_flight) = self.in_flight.get_mut(&cookie) else {
            return Err(Error::Protocol("an answer to something that was not asked"));
        };
        let last = match u32::from_be_bytes([m0, m1, m2, m3]) {
            SIMPLE_REPLY_MAGIC => {
                in_flight.simple(u32::from_be_bytes([a, b, c, d]), &mut self.stream)?;
                true
            }
            STRUCTURED_REPLY_MAGIC => {
                let mut len = [0; CHUNK_HEADER_BYTES - SIMPLE_REPLY_BYTES];
                self.stream.read_exact(&mut len)?;
                let (flags, kind) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                in_flight.chunk(kind, u32::from_be_bytes(len), self.info.allocation, &mut self.stream)?;
                flags & chunk::DONE != 0
            }
            _ => return Err(Error::Protocol("wrong magic where an answer was due")),
        };
        if !last {
            return Ok(None);
        }
        let answer = self.in_flight.remove(&cookie).map(InFlight::finish).transpose()?;
        Ok(answer.map(|answer| (cookie, answer)))
    }
}

fn encode(cookie: u64, command: &Command) -> (Header, &[u8]) {
    let fua = |durability: Durability| match durability {
        Durability::Volatile => 0,
        Durability::Durable => command_flag::FUA,
    };
    let (command, flags, offset, len, payload) = match command {
        Command::Read { offset, len } => (command::READ, 0, *offset, *len, &[][..]),
        Command::Write { offset, data, durability } => {
            assert!(data.len() <= MAX_REQUEST_BYTES as usize, "a write of {} bytes", data.len());
            (command::WRITE, fua(*durability), *offset, data.len() as u32, &data[..])
        }
        Command::Flush => (command::FLUSH, 0, 0, 0, &[][..]),
        Command::Trim { offset, len } => (command::TRIM, 0, *offset, *len, &[][..]),
        Command::Zero { offset, len, durability } => {
            (command::WRITE_ZEROES, fua(*durability), *offset, *len, &[][..])
        }
        Command::Status { offset, len } => (command::BLOCK_STATUS, 0, *offset, *len, &[][..]),
    };
    (Header { flags, command, cookie, offset, len }, payload)
}

fn send_both(stream: &mut Stream, head: &[u8; REQUEST_HEADER_BYTES], payload: &[u8]) -> io::Result<()> {
    let slices = [io::IoSlice::new(head), io::IoSlice::new(payload)];
    let sent = loop {
        match stream.write_vectored(&slices) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    let (head, payload) = match sent.checked_sub(head.len()) {
        Some(sent) => (&[][..], &payload[sent..]),
        None => (&head[sent..], payload),
    };
    stream.write_all(head)?;
    stream.write_all(payload)
}

impl InFlight {
    fn simple(&mut self, error: u32, stream: &mut impl Read) -> Result<(), Error> {
        if error != 0 {
            self.error = Some(Errno::from_code(error));
        } else if self.header.command == command::READ {
            stream.read_exact(&mut self.data)?;
            self.covered.push((0, u64::from(self.header.len)));
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        kind: u16,
        len: u32,
        allocation: Option<u32>,
        stream: &mut impl Read,
    ) -> Result<(), Error> {
        let reads = self.header.command == command::READ;
        match kind {
            chunk::NONE if len == 0 => {}
            chunk::OFFSET_DATA if reads && len > 8 => {
                let start = self.cover(u64::from_be_bytes(array(stream)?), u64::from(len - 8))?;
                stream.read_exact(&mut self.data[start..start + (len - 8) as usize])?;
            }
            chunk::OFFSET_HOLE if reads && len == 12 => {
                let offset = u64::from_be_bytes(array(stream)?);
                // The buffer was zeros from the start, and nothing else has covered this.
                self.cover(offset, u64::from(u32::from_be_bytes(array(stream)?)))?;
            }
            chunk::BLOCK_STATUS
                if self.header.command == command::BLOCK_STATUS && len > 4 && (len - 4).is_multiple_of(8) =>
            {
                let context = u32::from_be_bytes(array(stream)?);
                if Some(context) != allocation {
                    return Err(Error::Protocol("extents of a context that was not chosen"));
                }
                for _ in 0..(len - 4) / 8 {
                    let len = u64::from(u32::from_be_bytes(array(stream)?));
                    let flags = u32::from_be_bytes(array(stream)?);
                    let both = proto::state::HOLE | proto::state::ZERO;
                    self.stretches.push(Stretch { len, hole: flags & both == both });
                    let sum: u64 = self.stretches.iter().map(|stretch| stretch.len).sum();
                    if len == 0 || sum > u64::from(self.header.len) {
                        return Err(Error::Protocol("extents that do not fit the request"));
                    }
                }
            }
            kind if kind & chunk::ERROR_BIT != 0 && (6..=MAX_MESSAGE_BYTES).contains(&len) => {
                self.error = Some(Errno::from_code(u32::from_be_bytes(array(stream)?)));
                let message = u64::from(len - 4);
                if io::copy(&mut stream.take(message), &mut io::sink())? != message {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            _ => return Err(Error::Protocol("a chunk that does not fit the request")),
        }
        Ok(())
    }

    /// Takes note that a range of a read has come; returns its start in the buffer.
    fn cover(&mut self, offset: u64, len: u64) -> Result<usize, Error> {
        const OUTSIDE: Error = Error::Protocol("a chunk outside its request");
        let start = offset.checked_sub(self.header.offset).ok_or(OUTSIDE)?;
        let end = start.checked_add(len).filter(|end| *end <= u64::from(self.header.len)).ok_or(OUTSIDE)?;
        if len == 0 || self.covered.iter().any(|range| start < range.1 && range.0 < end) {
            return Err(Error::Protocol("chunks that overlap, or an empty one"));
        }
        // Chunks come in order as a rule, so this list has one entry.
        match self.covered.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.covered.push((start, end)),
        }
        Ok(start as usize)
    }

    fn finish(self) -> Result<Outcome, Error> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        let covered: u64 = self.covered.iter().map(|range| range.1 - range.0).sum();
        match self.header.command {
            command::READ if covered != u64::from(self.header.len) => {
                Err(Error::Protocol("a read whose chunks leave a gap"))
            }
            command::READ => Ok(Ok(Answer::Data(self.data))),
            command::BLOCK_STATUS if self.stretches.is_empty() => {
                Err(Error::Protocol("block status without an extent"))
            }
            command::BLOCK_STATUS => Ok(Ok(Answer::Status(self.stretches))),
            _ => Ok(Ok(Answer::Done)),
        }
    }
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A unix or TCP socket.
#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(address: &Address, timeout: Duration) -> io::Result<Stream> {
        let timeout = timeout.max(Duration::from_millis(1));
        Ok(match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                Stream::Unix(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                Stream::Tcp(stream)
            }
        })
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buf),
            Stream::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write_vectored(slices),
            Stream::Tcp(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
