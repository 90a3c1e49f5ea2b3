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
mod in_flight;
mod negotiate;
mod reconnect;
mod stream;

pub use disk::{Disk, Volume};
pub use reconnect::{Reconnecting, Retry};

use super::proto::{
    CHUNK_HEADER_BYTES, Errno, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
    command, command_flag, export_flag,
};
use super::request::Header;
use bytes::Bytes;
use engine::guest::{MAX_REQUEST_BYTES, Stretch};
use in_flight::InFlight;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use stream::Stream;

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
        /// One of [`rep`](super::proto::rep)'s errors.
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
            stream::send_both(stream, &header.encode(), payload)?;
        }
        self.in_flight.insert(cookie, InFlight::new(header));
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
