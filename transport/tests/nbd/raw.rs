//! A client that says exactly what it is told to, right or wrong.

use crate::memory::TIMEOUT;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use transport::nbd::proto::{
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
    option, rep,
};
use transport::nbd::request::Header;

pub(crate) struct Raw<S> {
    pub(crate) stream: S,
}

/// A reply to an option: its type and data.
pub(crate) type OptionReply = (u32, Vec<u8>);

/// A simple reply or a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, payload: Vec<u8> },
}

impl Raw<UnixStream> {
    /// Connects and reads the greeting.
    pub(crate) fn connect(path: &Path) -> Raw<UnixStream> {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut raw = Raw { stream };
        assert_eq!(raw.take(8), GREETING_MAGIC.to_be_bytes());
        assert_eq!(raw.take(8), OPTION_MAGIC.to_be_bytes());
        assert_eq!(raw.take(2), [0, 3], "FIXED_NEWSTYLE and NO_ZEROES");
        raw
    }

    /// Connects and goes to the options.
    pub(crate) fn haggle(path: &Path) -> Raw<UnixStream> {
        let mut raw = Raw::connect(path);
        raw.put(&3_u32.to_be_bytes());
        raw
    }

    /// Connects and goes to transmission, with simple replies.
    pub(crate) fn simple(path: &Path) -> Raw<UnixStream> {
        let mut raw = Raw::haggle(path);
        raw.go("disk", &[]);
        raw
    }

    /// Connects and goes to transmission, with structured replies and `base:allocation`.
    pub(crate) fn structured(path: &Path) -> Raw<UnixStream> {
        let mut raw = Raw::haggle(path);
        assert_eq!(raw.ask(option::STRUCTURED_REPLY, &[]), [(rep::ACK, vec![])]);
        let replies = raw.ask(option::SET_META_CONTEXT, &meta("disk", &["base:allocation"]));
        assert_eq!(replies.len(), 2);
        raw.go("disk", &[]);
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// The server has closed the connection, and said nothing before.
    pub(crate) fn assert_closed(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}, {byte:?}"),
        }
    }

    pub(crate) fn put_option(&mut self, option: u32, data: &[u8]) {
        let len = (data.len() as u32).to_be_bytes();
        self.put(&[&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len, data].concat());
    }

    pub(crate) fn option_reply(&mut self, option: u32) -> OptionReply {
        assert_eq!(self.u64(), OPTION_REPLY_MAGIC);
        assert_eq!(self.u32(), option);
        let kind = self.u32();
        let len = self.u32();
        (kind, self.take(len as usize))
    }

    /// Sends an option and takes all replies to it, up to the final one.
    pub(crate) fn ask(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.put_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option);
            let is_last = reply.0 == rep::ACK || reply.0 & rep::ERROR != 0;
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    /// Sends an option that is to be refused; returns the type of the refusal.
    pub(crate) fn refused(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.ask(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }

    /// Enters transmission; returns what was told.
    pub(crate) fn go(&mut self, name: &str, wanted: &[u16]) -> Vec<OptionReply> {
        let replies = self.ask(option::GO, &export(name, wanted));
        assert_eq!(replies.last(), Some(&(rep::ACK, vec![])));
        replies
    }

    pub(crate) fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.put(&Header { flags, command, cookie, offset, len }.encode());
    }

    pub(crate) fn part(&mut self) -> Part {
        match self.u32() {
            SIMPLE_REPLY_MAGIC => Part::Simple { error: self.u32(), cookie: self.u64() },
            STRUCTURED_REPLY_MAGIC => {
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let len = self.u32();
                Part::Chunk { flags, kind, cookie, payload: self.take(len as usize) }
            }
            magic => panic!("magic {magic:#x}"),
        }
    }

    /// Sends a request without data either way, and takes the error of its answer; 0 for none.
    pub(crate) fn error_of(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u32 {
        self.request(command, flags, 77, offset, len);
        self.error(77)
    }

    /// The error of a simple reply or an error chunk; 0 for none.
    pub(crate) fn error(&mut self, cookie: u64) -> u32 {
        match self.part() {
            Part::Simple { error, cookie: theirs } => {
                assert_eq!(theirs, cookie);
                error
            }
            Part::Chunk { flags, kind, cookie: theirs, payload } => {
                assert_eq!((theirs, flags), (cookie, chunk::DONE));
                match kind {
                    chunk::NONE => 0,
                    chunk::ERROR => u32::from_be_bytes(payload[..4].try_into().unwrap()),
                    kind => panic!("chunk of type {kind}"),
                }
            }
        }
    }
}

/// Data of GO and INFO.
pub(crate) fn export(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|wanted| data.extend_from_slice(&wanted.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}
