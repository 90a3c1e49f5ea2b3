//! What can happen to a consistency group: the kinds of records, and the bodies of those that are not data.
//!
//! A kind's number is part of the format for ever (`FORMAT.md`). Data records carry their bytes as they are;
//! every other body is bincode, with one configuration and a size limit, so that a damaged length can never make
//! a reader allocate.

use crate::digest::Digest;
use crate::types::{NodeId, Reign, VolumeId};
use bincode::{Decode, Encode};

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The writer opened the log: a new incarnation begins. Body: [`Opened`].
    Open = 1,
    /// A volume was defined. Body: [`VolumeDefined`].
    Volume = 2,
    /// Bytes were written to an extent. Payload: the bytes.
    Write = 3,
    /// An extent reads as zeros from here on (trim and write-zeroes alike). No payload.
    Zero = 4,
    /// A guest asked that everything before this be durable. No payload.
    Flush = 5,
    /// A named or periodic recovery point. Body: [`Marked`].
    Mark = 6,
    /// A new epoch begins: the first record of a reign. Body: [`Promoted`].
    Promote = 7,
    /// A sync span begins for a replica: from here on its states are not whole. Body: [`Spanned`].
    SpanBegin = 8,
    /// A sync span ended: that replica's state is whole here. Body: [`Spanned`].
    SpanEnd = 9,
    /// What an extent holds here, for replicas to compare. Body: [`Scrubbed`].
    Scrub = 10,
    /// A volume has another size from here on. Its extent is no place: the offset is the size before, the length the size
    /// behind. No payload.
    Resize = 11,
}

/// The version of records that a program must know to understand a record of a kind and flags: a newer kind tells an
/// older program at once that it is too old.
#[must_use]
pub fn version_of(kind: Kind, flags: u16) -> u8 {
    match kind {
        Kind::SpanBegin | Kind::SpanEnd => 2,
        Kind::Scrub => 3,
        Kind::Resize => 5,
        Kind::Mark if flags & FLAG_APPLICATION != 0 => 5,
        Kind::Volume if flags & FLAG_IN_PLACE != 0 => 4,
        Kind::Write | Kind::Zero | Kind::Volume if flags & !FLAG_NO_HOLE != 0 => 2,
        _ => 1,
    }
}

impl Kind {
    /// The kind of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Open,
            2 => Kind::Volume,
            3 => Kind::Write,
            4 => Kind::Zero,
            5 => Kind::Flush,
            6 => Kind::Mark,
            7 => Kind::Promote,
            8 => Kind::SpanBegin,
            9 => Kind::SpanEnd,
            10 => Kind::Scrub,
            11 => Kind::Resize,
            _ => return None,
        })
    }

    /// Whether the record begins a new incarnation.
    #[must_use]
    pub fn begins_incarnation(self) -> bool {
        matches!(self, Kind::Open | Kind::Promote)
    }

    /// Whether the record changes a volume's bytes.
    #[must_use]
    pub fn changes_bytes(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero)
    }

    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Volume => "volume",
            Kind::Write => "write",
            Kind::Zero => "zero",
            Kind::Flush => "flush",
            Kind::Mark => "mark",
            Kind::Promote => "promote",
            Kind::SpanBegin => "span-begin",
            Kind::SpanEnd => "span-end",
            Kind::Scrub => "scrub",
            Kind::Resize => "resize",
        }
    }
}

/// Flag of a [`Kind::Zero`] record: the guest asked that the space stay allocated.
pub const FLAG_NO_HOLE: u16 = 1;

/// Flag of a [`Kind::Write`] or [`Kind::Zero`] record: a sync span's copy of what the volume holds already.
pub const FLAG_COPY: u16 = 2;

/// Flag of a [`Kind::Volume`] record: repeated for a replica that may have missed the first.
pub const FLAG_AGAIN: u16 = 4;

/// Flag of a [`Kind::Volume`] record: the volume's disk held data already, which stands in no record. A replica has to be
/// given all of it by a sync span, and its states are not whole until then.
pub const FLAG_IN_PLACE: u16 = 8;

/// Flag of a [`Kind::Mark`] record: the applications had been asked to be still, and were.
pub const FLAG_APPLICATION: u16 = 16;

/// Body of [`Kind::Open`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Opened {
    /// The writer.
    pub node: NodeId,
}

/// Body of [`Kind::Volume`]; the record's header carries the volume's number.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VolumeDefined {
    /// Unique within the group.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Body of [`Kind::Mark`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Marked {
    /// The operator's name for it; empty for a periodic mark.
    pub name: String,
}

/// Body of [`Kind::Promote`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Promoted {
    /// The reign that begins.
    pub reign: Reign,
}

/// Body of [`Kind::SpanBegin`] and [`Kind::SpanEnd`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Spanned {
    /// The replica that the span is for.
    pub replica: NodeId,
}

/// Body of [`Kind::Scrub`]; the record's header carries volume and extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Scrubbed {
    /// What the extent holds at this LSN, holes as zeros.
    pub digest: Digest,
    /// The round that it is part of, for counting: the LSN behind which that began. 0 for a part that is checked
    /// anew after a repair.
    pub round: u64,
    /// What a replica does that holds something else.
    pub on_mismatch: OnMismatch,
}

/// What becomes of a mismatch that a scrub finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum OnMismatch {
    /// It is reported, and the primary's bytes are sent again.
    Repair,
    /// It is reported.
    Report,
}

/// A volume as the log defines it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VolumeSpec {
    /// Its number in records.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// The longest encoded body of a record that is not data, in bytes.
pub const MAX_BODY_BYTES: usize = 4096;

/// The one bincode configuration of records and of the node's own state.
const BODY: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_BODY_BYTES>,
> = bincode::config::standard().with_limit::<MAX_BODY_BYTES>();

/// Encodes a body. Panics if it is larger than [`MAX_BODY_BYTES`]: names are checked where they come in.
pub fn encode_body<T: Encode>(body: &T) -> Vec<u8> {
    let bytes = bincode::encode_to_vec(body, BODY).expect("bodies hold nothing that cannot be encoded");
    assert!(bytes.len() <= MAX_BODY_BYTES, "a body of {} bytes is over the limit", bytes.len());
    bytes
}

/// Decodes a body; `None` if it is damaged, too long, or followed by anything but zero padding.
pub fn decode_body<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    let (body, used) = bincode::decode_from_slice(bytes, BODY).ok()?;
    bytes[used..].iter().all(|&byte| byte == 0).then_some(body)
}
