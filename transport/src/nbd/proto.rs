//! The numbers of the NBD specification, under its own names where they are not misleading.
//!
//! All integers on the wire are big-endian.

/// First eight bytes of the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting, and the first of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First eight bytes of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First four bytes of each chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Length of the header of an option: magic, option, length of data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of the header of a reply to an option: magic, option, type, length of data.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Length of the header of a request: magic, flags, type, cookie, offset, length.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Length of the header of a simple reply: magic, error, cookie.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of the header of a chunk: magic, flags, type, cookie, length.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Zeroes behind the answer to `EXPORT_NAME`, unless the client asked to be spared them.
pub const EXPORT_NAME_PADDING: usize = 124;
/// The longest string that the specification allows, in bytes.
pub const MAX_STRING_BYTES: usize = 4096;

/// The name of the one metadata context that is served.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The number that this server gives to [`BASE_ALLOCATION`].
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Handshake flags of the server; the client's have the same bits.
pub mod handshake_flag {
    /// Options can be answered with errors.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The 124 zeroes behind the answer to `EXPORT_NAME` can be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub mod option {
    /// Enter transmission, the old way that cannot be refused politely.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and enter transmission.
    pub const GO: u32 = 7;
    /// Answer reads in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit lengths; not spoken here.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of the list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit that all errors share.
    pub const ERROR: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Known, but not allowed here.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Only under TLS.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The client has to agree to block sizes first; never sent here.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// More data than the server takes for this option.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Types of facts about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The name.
    pub const NAME: u16 = 1;
    /// A line for a person.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum sizes of requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag of reads works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag of `WRITE_ZEROES` works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows the header.
    pub const WRITE: u16 = 1;
    /// End the session; never answered.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// Give up the content of a range.
    pub const TRIM: u16 = 4;
    /// Announce a read.
    pub const CACHE: u16 = 5;
    /// Write zeros without sending them.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask which parts are holes.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Answer only when durable; allowed on every command.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES`: keep the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `READ`: answer in one chunk.
    pub const DF: u16 = 1 << 2;
    /// `BLOCK_STATUS`: one extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES`: fail rather than write zeros as data.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies.
pub mod chunk {
    /// The flag of the last chunk of a reply.
    pub const DONE: u16 = 1 << 0;
    /// Nothing; only as the last chunk.
    pub const NONE: u16 = 0;
    /// Bytes from an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros from an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The bit that all errors share.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The request failed at an offset; never sent here.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Flags of extents in the context `base:allocation`.
pub mod state {
    /// No space is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// The error values that the specification allows in replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    #[error("operation not permitted")]
    Perm,
    /// The disk failed.
    #[error("input/output error")]
    Io,
    /// Out of memory.
    #[error("cannot allocate memory")]
    NoMem,
    /// A malformed request, or one beyond the end of the export.
    #[error("invalid argument")]
    Inval,
    /// No space, or a write beyond the end of the export.
    #[error("no space left on device")]
    NoSpc,
    /// A request or reply that is too long.
    #[error("value too large")]
    Overflow,
    /// A command that this export cannot do.
    #[error("operation not supported")]
    NotSup,
    /// The server is stopping.
    #[error("server is shutting down")]
    Shutdown,
    /// A value that the specification does not know.
    #[error("error {0}")]
    Other(u32),
}

impl Errno {
    /// Its value on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Errno::Perm => 1,
            Errno::Io => 5,
            Errno::NoMem => 12,
            Errno::Inval => 22,
            Errno::NoSpc => 28,
            Errno::Overflow => 75,
            Errno::NotSup => 95,
            Errno::Shutdown => 108,
            Errno::Other(code) => code,
        }
    }

    /// The error of a non-zero value from the wire.
    #[must_use]
    pub fn from_code(code: u32) -> Errno {
        match code {
            1 => Errno::Perm,
            5 => Errno::Io,
            12 => Errno::NoMem,
            22 => Errno::Inval,
            28 => Errno::NoSpc,
            75 => Errno::Overflow,
            95 => Errno::NotSup,
            108 => Errno::Shutdown,
            code => Errno::Other(code),
        }
    }
}

impl From<engine::guest::Refusal> for Errno {
    fn from(refusal: engine::guest::Refusal) -> Errno {
        use engine::guest::Refusal;
        match refusal {
            Refusal::ReadOnly => Errno::Perm,
            Refusal::Io => Errno::Io,
            Refusal::Invalid => Errno::Inval,
            Refusal::NoSpace => Errno::NoSpc,
            Refusal::Shutdown => Errno::Shutdown,
        }
    }
}
