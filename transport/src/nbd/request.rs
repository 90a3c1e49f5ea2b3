//! Decoding a request and judging it, before any export sees it.
//!
//! What holds: a request that passes lies within the export, is no longer than the limit, is a command that the
//! export's terms allow with flags that belong to it. So an export is never asked nonsense, and no memory is
//! taken for a length that was not checked.

use super::proto::{Errno, REQUEST_HEADER_BYTES, REQUEST_MAGIC, command, command_flag};
use engine::guest::MAX_REQUEST_BYTES;
use engine::types::Extent;

/// How reads are answered on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// A header and the bytes.
    Simple,
    /// Chunks, holes among them.
    Structured,
}

/// Whether the client chose a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// None.
    None,
    /// `base:allocation`.
    Allocation,
}

/// What one connection may do, settled by the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub size: u64,
    /// Whether it can be written.
    pub access: Access,
    /// How reads are answered.
    pub replies: Replies,
    /// What block status can be asked for.
    pub metadata: Metadata,
}

/// Whether an export can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can.
    ReadWrite,
    /// Writes are refused.
    ReadOnly,
}

/// The header of a request (the specification's "Request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// One of [`command`].
    pub command: u16,
    /// The client's own number for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Header {
    /// Decodes; `None` if the magic is wrong, after which nothing in the stream can be trusted.
    #[must_use]
    pub fn decode(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Option<Header> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *bytes;
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        (u32::from_be_bytes([m0, m1, m2, m3]) == REQUEST_MAGIC).then(|| Header {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([t0, t1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Encodes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut bytes = [0; REQUEST_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Number of payload bytes behind the header; they are there whether or not the request is any good.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.len } else { 0 }
    }

    /// The range it names.
    #[must_use]
    pub fn extent(&self) -> Extent {
        Extent::new(self.offset, u64::from(self.len))
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Hand it to the export.
    Run(Command),
    /// There is nothing to do: success.
    Nothing,
    /// Answer with an error.
    Refuse(Errno),
    /// The client takes its leave.
    Disconnect,
}

/// A command that passed; its range is the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write the payload.
    Write,
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Write zeros.
    Zero,
    /// Announce a read.
    Cache,
    /// Block status.
    Status,
}

/// Judges a request by the connection's terms.
///
/// Errors are those that the specification asks for: EINVAL for what is malformed, ENOSPC (not EINVAL) for a
/// write or zero beyond the end, EPERM for a write to a read-only export. FUA is accepted on every command.
/// A `FAST_ZERO` is always fast: a zero is one record in the log, whatever its length.
#[must_use]
pub fn judge(header: &Header, terms: &Terms) -> Verdict {
    let (run, flags, beyond_end) = match header.command {
        // The specification leaves a client that says goodbye with odd flags or fields undefined; it has still
        // said goodbye, and will not read an answer.
        command::DISC => return Verdict::Disconnect,
        command::READ => (
            Command::Read,
            match terms.replies {
                Replies::Simple => 0,
                Replies::Structured => command_flag::DF,
            },
            Errno::Inval,
        ),
        command::WRITE => (Command::Write, 0, Errno::NoSpc),
        command::FLUSH => (Command::Flush, 0, Errno::Inval),
        command::TRIM => (Command::Trim, 0, Errno::Inval),
        command::WRITE_ZEROES => {
            (Command::Zero, command_flag::NO_HOLE | command_flag::FAST_ZERO, Errno::NoSpc)
        }
        command::CACHE => (Command::Cache, 0, Errno::Inval),
        command::BLOCK_STATUS => (Command::Status, command_flag::REQ_ONE, Errno::Inval),
        _ => return Verdict::Refuse(Errno::Inval),
    };
    if header.flags & !(flags | command_flag::FUA) != 0 {
        return Verdict::Refuse(Errno::Inval);
    }
    let writes = matches!(run, Command::Write | Command::Trim | Command::Zero);
    if writes && terms.access == Access::ReadOnly {
        return Verdict::Refuse(Errno::Perm);
    }
    if matches!(run, Command::Read | Command::Write) && header.len > MAX_REQUEST_BYTES {
        return Verdict::Refuse(Errno::Inval);
    }
    if !header.extent().fits(terms.size) {
        return Verdict::Refuse(beyond_end);
    }
    match run {
        Command::Flush if header.offset != 0 || header.len != 0 => Verdict::Refuse(Errno::Inval),
        Command::Flush => Verdict::Run(run),
        Command::Status if terms.metadata == Metadata::None => Verdict::Refuse(Errno::Inval),
        // A status reply needs at least one extent, and an extent at least one byte.
        Command::Status if header.len == 0 => Verdict::Refuse(Errno::Inval),
        _ if header.len == 0 => Verdict::Nothing,
        _ => Verdict::Run(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        size: 1 << 20,
        access: Access::ReadWrite,
        replies: Replies::Structured,
        metadata: Metadata::Allocation,
    };

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> Header {
        Header { flags, command, cookie: 7, offset, len }
    }

    #[test]
    fn a_header_decodes_to_what_was_encoded_and_a_wrong_magic_to_nothing() {
        let header = header(command::TRIM, command_flag::FUA, 0x0102_0304_0506_0708, 0x1122_3344);
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for bit in 0..32 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), None, "bit {bit} of the magic");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// N09: beyond the end, with u64 overflow.
    #[test]
    fn n09_beyond_the_end() {
        for (command, error) in [
            (command::READ, Errno::Inval),
            (command::WRITE, Errno::NoSpc),
            (command::WRITE_ZEROES, Errno::NoSpc),
            (command::TRIM, Errno::Inval),
            (command::CACHE, Errno::Inval),
            (command::BLOCK_STATUS, Errno::Inval),
        ] {
            for (offset, len) in [
                (1 << 20, 1),
                ((1 << 20) - 511, 512),
                (u64::MAX, 2),
                (u64::MAX - 511, 512),
                (0, (1 << 20) + 1),
            ] {
                assert_eq!(
                    judge(&header(command, 0, offset, len), &TERMS),
                    Verdict::Refuse(error),
                    "command {command}, {len} at {offset}"
                );
            }
            assert!(matches!(judge(&header(command, 0, (1 << 20) - 1, 1), &TERMS), Verdict::Run(_)));
        }
    }

    /// N12: each flag is accepted exactly where it is documented, FUA everywhere.
    #[test]
    fn n12_flags() {
        let allowed = |command| match command {
            command::READ => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        for command in [0, 1, 3, 4, 5, 6, 7] {
            let len = if command == command::FLUSH { 0 } else { 512 };
            for flag in (0..16).map(|bit| 1 << bit) {
                let verdict = judge(&header(command, flag, 0, len), &TERMS);
                if flag == command_flag::FUA || allowed(command) & flag != 0 {
                    assert!(
                        matches!(verdict, Verdict::Run(_)),
                        "command {command} flag {flag:#x}: {verdict:?}"
                    );
                } else {
                    assert_eq!(verdict, Verdict::Refuse(Errno::Inval), "command {command} flag {flag:#x}");
                }
            }
        }
        for command in 8..=u16::MAX {
            assert_eq!(judge(&header(command, 0, 0, 512), &TERMS), Verdict::Refuse(Errno::Inval));
        }
        let simple = Terms { replies: Replies::Simple, metadata: Metadata::None, ..TERMS };
        let df = header(command::READ, command_flag::DF, 0, 512);
        assert_eq!(judge(&df, &simple), Verdict::Refuse(Errno::Inval), "DF was not offered");
        let status = header(command::BLOCK_STATUS, 0, 0, 512);
        assert_eq!(judge(&status, &simple), Verdict::Refuse(Errno::Inval), "N20: no context was chosen");
    }

    /// N13: the longest read and write pass, a byte more does not; the others have no limit but the export.
    #[test]
    fn n13_lengths() {
        let terms = Terms { size: u64::MAX, ..TERMS };
        for command in [command::READ, command::WRITE] {
            assert!(matches!(judge(&header(command, 0, 0, MAX_REQUEST_BYTES), &terms), Verdict::Run(_)));
            for len in [MAX_REQUEST_BYTES + 1, u32::MAX] {
                assert_eq!(judge(&header(command, 0, 0, len), &terms), Verdict::Refuse(Errno::Inval));
            }
        }
        for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE, command::BLOCK_STATUS] {
            assert!(matches!(judge(&header(command, 0, 0, u32::MAX), &terms), Verdict::Run(_)));
        }
    }

    /// N22: what a read-only export refuses.
    #[test]
    fn n22_read_only() {
        let terms = Terms { access: Access::ReadOnly, ..TERMS };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(judge(&header(command, 0, 0, 512), &terms), Verdict::Refuse(Errno::Perm));
        }
        for command in [command::READ, command::CACHE, command::BLOCK_STATUS] {
            assert!(matches!(judge(&header(command, 0, 0, 512), &terms), Verdict::Run(_)));
        }
    }
}
