//! The messages of the link, and their bytes.
//!
//! Invariants:
//!
//! - **Canonical**: a frame has exactly one encoding. Whatever decodes encodes to the same bytes again, so no bit
//!   on the wire is without a meaning or a check.
//! - **Bounded**: a length is compared with its limit before one byte of the body is waited or allocated for.
//! - **Frozen**: the body of a frame kind never changes within `landfall/1`. What is new comes as a new kind.
//!
//! It carries no checksum of its own: TLS authenticates each packet, and records bring theirs, computed once
//! when they entered the log. Bytes are taken off a stream by [`super::decoder`].

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use engine::digest::Digest;
use engine::peer::{Ask, Batch, Hello, Jump, Lack, Needs, Rebuff, Welcome};
use engine::seeds::{Held, PIECE_BYTES, Thin};
use engine::types::{Extent, Lsn, Position, Timestamp, VolumeId};

/// Length of the header in front of each body.
pub const HEADER_BYTES: usize = 8;

/// The longest body of any frame but a batch. A history of 1,300 reigns fits.
pub const MAX_CONTROL_BYTES: usize = 64 << 10;

/// The longest name of a group, in bytes.
pub const MAX_GROUP_NAME_BYTES: usize = 255;

/// Length of the two LSNs at the head of a batch's body.
pub const BATCH_PREFIX_BYTES: usize = 16;

/// The most bytes of records in one batch: one record with the longest write that a guest may send (32 MiB) and
/// 4 KiB for its header and padding.
pub const MAX_BATCH_BYTES: usize = (32 << 20) + (4 << 10);

/// The most extents in one frame of needs; longer needs come in several frames, all but the last of them full.
pub const LACKS_PER_FRAME: usize = 2_048;

/// The most runs of blocks in one frame of what seeds hold.
pub const HELD_PER_FRAME: usize = 1_024;

/// Length of the two LSNs and the count at the head of a thin batch's body.
pub const THIN_PREFIX_BYTES: usize = 20;

/// Length of what a thin batch says of each part that was left out.
pub const LEFT_OUT_BYTES: usize = 36;

/// The bit of a kind that says: who does not know this kind skips the frame and goes on.
pub const IGNORABLE: u8 = 0x80;

/// The one way control messages are encoded: little-endian, fixed-width integers (a variable-width one would
/// have several encodings), never more than [`MAX_CONTROL_BYTES`].
const BODY: Configuration<LittleEndian, Fixint, Limit<MAX_CONTROL_BYTES>> = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding()
    .with_limit::<MAX_CONTROL_BYTES>();

/// What a frame is; the first byte of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// [`Frame::Hello`].
    Hello = 1,
    /// [`Frame::Welcome`].
    Welcome = 2,
    /// [`Frame::Rebuff`].
    Rebuff = 3,
    /// [`Frame::Batch`].
    Batch = 4,
    /// [`Frame::Ack`].
    Ack = 5,
    /// [`Frame::Heartbeat`].
    Heartbeat = 6,
    /// [`Frame::Needs`].
    Needs = 7,
    /// [`Frame::Jump`].
    Jump = 8,
    /// [`Frame::Ask`].
    Ask = 9,
    /// [`Frame::Held`].
    Held = 10,
    /// [`Frame::Thin`].
    Thin = 11,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 11] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Rebuff,
        Kind::Batch,
        Kind::Ack,
        Kind::Heartbeat,
        Kind::Needs,
        Kind::Jump,
        Kind::Ask,
        Kind::Held,
        Kind::Thin,
    ];

    /// The kind of that number, if this version knows it.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A primary's opening: what it speaks, and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Offer {
    /// The speaker's minor version. For people and logs: behaviour depends on `features` alone.
    pub minor: u16,
    /// A bit for each optional feature that the speaker can use. Unknown bits are ignored.
    pub features: u64,
    /// Who is speaking, about which group.
    pub hello: Hello,
}

/// A replica's answer to an [`Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Acceptance {
    /// The speaker's minor version.
    pub minor: u16,
    /// The features in force for the session: a subset of what was offered.
    pub features: u64,
    /// Where the replica stands.
    pub welcome: Welcome,
}

/// A sign of life, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Heartbeat {
    /// The speaker's wall clock. For people: skew is shown, nothing is decided by it.
    pub wall: Timestamp,
    /// The speaker's durable LSN, so that the other side can say how far apart the two are.
    pub durable: Lsn,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Primary to replica, first and once.
    Hello(Offer),
    /// Replica to primary, once: records may flow.
    Welcome(Acceptance),
    /// Replica to primary, at any time after the hello: no (more) records. Ends the session.
    Rebuff(Rebuff),
    /// Primary to replica: records, right behind those of the batch before.
    Batch(Batch),
    /// Replica to primary: everything up to here is durable at the replica.
    Ack(Position),
    /// Both ways.
    Heartbeat(Heartbeat),
    /// Replica to primary, before the welcome, as often as it takes: a part of what it lacks.
    Needs(Needs),
    /// Primary to replica, before the first batch: the records up to there will not come.
    Jump(Jump),
    /// Replica to primary, after the welcome.
    Ask(Ask),
    /// Replica to primary, after the welcome: what its seeds hold.
    Held(Vec<Held>),
    /// Primary to replica, in the place of a batch: what the replica said it holds is left out.
    Thin(Thin),
}

/// Why bytes are no frame, or a message fits no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A kind that this version does not know, and that does not say that it may be skipped.
    #[error("frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of a frame header are {0:#08x}, not zero")]
    Reserved(u32),
    /// The body's length is above the limit of its kind, or a name in it above that of names.
    #[error("a frame of kind {kind:#04x} claims {len} bytes, the limit is {limit}")]
    TooLong {
        /// First byte of the header.
        kind: u8,
        /// The claimed length.
        len: usize,
        /// The limit for this kind.
        limit: usize,
    },
    /// The body is no encoding of its kind's message, the message says what none may, or something stands
    /// behind it.
    #[error("the body of a {0:?} frame is malformed")]
    Malformed(Kind),
    /// A batch without records, or whose LSNs cannot be: going back, from zero, or more records than bytes.
    #[error("a batch of {len} bytes claims the records {first} to {last}")]
    BadRange {
        /// The claimed first LSN.
        first: Lsn,
        /// The claimed last LSN.
        last: Lsn,
        /// Bytes of records.
        len: usize,
    },
    /// A batch before the session allows one.
    #[error("a batch before the welcome")]
    EarlyBatch,
}

impl Frame {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Frame::Hello(_) => Kind::Hello,
            Frame::Welcome(_) => Kind::Welcome,
            Frame::Rebuff(_) => Kind::Rebuff,
            Frame::Batch(_) => Kind::Batch,
            Frame::Ack(_) => Kind::Ack,
            Frame::Heartbeat(_) => Kind::Heartbeat,
            Frame::Needs(_) => Kind::Needs,
            Frame::Jump(_) => Kind::Jump,
            Frame::Ask(_) => Kind::Ask,
            Frame::Held(_) => Kind::Held,
            Frame::Thin(_) => Kind::Thin,
        }
    }

    /// Appends the frame's bytes to `out`, as pieces; the pieces of a batch are the batch's own, not copies.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] if the message fits no frame (a history of thousands of reigns); [`Error::BadRange`]
    /// or [`Error::Malformed`] for one that no decoder would take. Nothing is appended then.
    pub fn encode(&self, out: &mut Vec<Bytes>) -> Result<(), Error> {
        match self {
            Frame::Hello(body) => {
                check_name(&body.hello.name)?;
                control(Kind::Hello, body, out)
            }
            Frame::Welcome(body) => control(Kind::Welcome, body, out),
            Frame::Rebuff(body) => control(Kind::Rebuff, body, out),
            Frame::Ack(body) => control(Kind::Ack, body, out),
            Frame::Heartbeat(body) => control(Kind::Heartbeat, body, out),
            Frame::Needs(needs) => {
                check_needs(needs)?;
                control(Kind::Needs, &(needs.coarse, &needs.lacks), out)
            }
            Frame::Jump(body) => control(Kind::Jump, body, out),
            Frame::Ask(body) => {
                check_ask(body)?;
                control(Kind::Ask, body, out)
            }
            Frame::Held(held) => {
                check_held(held)?;
                control(Kind::Held, held, out)
            }
            Frame::Batch(batch) => {
                let len = batch.len();
                check_batch(batch.first, batch.last, len)?;
                let mut head = BytesMut::with_capacity(HEADER_BYTES + BATCH_PREFIX_BYTES);
                put_header(Kind::Batch, BATCH_PREFIX_BYTES + len, &mut head);
                head.put_u64_le(batch.first.0);
                head.put_u64_le(batch.last.0);
                out.push(head.freeze());
                out.extend(batch.bytes.iter().filter(|piece| !piece.is_empty()).cloned());
                Ok(())
            }
            Frame::Thin(thin) => {
                check_thin(thin)?;
                let rest: usize = thin.bytes.iter().map(Bytes::len).sum();
                let prefix = THIN_PREFIX_BYTES + thin.left_out.len() * LEFT_OUT_BYTES;
                let mut head = BytesMut::with_capacity(HEADER_BYTES + prefix);
                put_header(Kind::Thin, prefix + rest, &mut head);
                head.put_u64_le(thin.first.0);
                head.put_u64_le(thin.last.0);
                head.put_u32_le(thin.left_out.len() as u32);
                for (at, Held { volume, extent, digest }) in &thin.left_out {
                    head.put_u32_le(*at);
                    head.put_u32_le(volume.0);
                    head.put_u64_le(extent.offset);
                    head.put_u32_le(u32::try_from(extent.len).expect("checked"));
                    head.put_slice(&digest.0);
                }
                out.push(head.freeze());
                out.extend(thin.bytes.iter().filter(|piece| !piece.is_empty()).cloned());
                Ok(())
            }
        }
    }

    /// The control message of `kind` whose whole body is `body`; a batch has no such form.
    pub(super) fn decode_control(kind: Kind, body: &[u8]) -> Result<Frame, Error> {
        match kind {
            Kind::Hello => {
                let offer: Offer = parse(kind, body)?;
                check_name(&offer.hello.name)?;
                Ok(Frame::Hello(offer))
            }
            Kind::Welcome => parse(kind, body).map(Frame::Welcome),
            Kind::Rebuff => parse(kind, body).map(Frame::Rebuff),
            Kind::Ack => parse(kind, body).map(Frame::Ack),
            Kind::Heartbeat => parse(kind, body).map(Frame::Heartbeat),
            Kind::Needs => {
                let (coarse, lacks) = parse(kind, body)?;
                let needs = Needs { coarse, lacks };
                check_needs(&needs)?;
                Ok(Frame::Needs(needs))
            }
            Kind::Jump => parse(kind, body).map(Frame::Jump),
            Kind::Ask => {
                let ask = parse(kind, body)?;
                check_ask(&ask)?;
                Ok(Frame::Ask(ask))
            }
            Kind::Held => {
                let held: Vec<Held> = parse(kind, body)?;
                check_held(&held)?;
                Ok(Frame::Held(held))
            }
            Kind::Batch | Kind::Thin => Err(Error::Malformed(kind)),
        }
    }
}

/// What a thin batch's list says of one part that was left out.
pub(super) fn decode_left_out(mut bytes: &[u8]) -> (u32, Held) {
    let (at, volume) = (bytes.get_u32_le(), VolumeId(bytes.get_u32_le()));
    let extent = Extent::new(bytes.get_u64_le(), u64::from(bytes.get_u32_le()));
    let mut digest = Digest([0; 16]);
    bytes.copy_to_slice(&mut digest.0);
    (at, Held { volume, extent, digest })
}

/// The checked header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `None` for an unknown kind that may be skipped.
    pub(super) kind: Option<Kind>,
    /// Length of the body in bytes, within the limit of the kind.
    pub(super) len: usize,
}

impl Header {
    /// Layout, little-endian:
    ///
    /// ```text
    /// 0  u8   kind; 0x80 = may be skipped by who does not know it
    /// 1  u24  reserved, zero
    /// 4  u32  length of the body
    /// ```
    pub(super) fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Header, Error> {
        let [byte, r0, r1, r2, l0, l1, l2, l3] = bytes;
        let reserved = u32::from_le_bytes([r0, r1, r2, 0]);
        if reserved != 0 {
            return Err(Error::Reserved(reserved));
        }
        let kind = Kind::from_byte(byte);
        if kind.is_none() && byte & IGNORABLE == 0 {
            return Err(Error::UnknownKind(byte));
        }
        let limit = match kind {
            Some(Kind::Batch) => BATCH_PREFIX_BYTES + MAX_BATCH_BYTES,
            // What is left out is longer than the words for it.
            Some(Kind::Thin) => THIN_PREFIX_BYTES + MAX_BATCH_BYTES,
            _ => MAX_CONTROL_BYTES,
        };
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if len > limit {
            return Err(Error::TooLong { kind: byte, len, limit });
        }
        Ok(Header { kind, len })
    }
}

/// What holds for every batch, checked before it is sent and when it arrives.
pub(super) fn check_batch(first: Lsn, last: Lsn, len: usize) -> Result<(), Error> {
    if len > MAX_BATCH_BYTES {
        return Err(Error::TooLong { kind: Kind::Batch as u8, len, limit: MAX_BATCH_BYTES });
    }
    // A record takes a byte at the very least. (How long one really is, the engine knows and checks.)
    if first == Lsn::ZERO || first > last || last.0 - first.0 >= len as u64 {
        return Err(Error::BadRange { first, last, len });
    }
    Ok(())
}

/// What holds for every thin batch, likewise: with what was left out it is a batch.
pub(super) fn check_thin(thin: &Thin) -> Result<(), Error> {
    let sound = |held: &Held| is_held(held) && held.extent.len > LEFT_OUT_BYTES as u64;
    let listed = !thin.left_out.is_empty() && thin.left_out.iter().all(|(_, held)| sound(held));
    let len = thin.whole_len().filter(|_| listed).ok_or(Error::Malformed(Kind::Thin))?;
    check_batch(thin.first, thin.last, len)
}

/// Who holds nothing says nothing.
fn check_held(held: &[Held]) -> Result<(), Error> {
    let sound = !held.is_empty() && held.len() <= HELD_PER_FRAME && held.iter().all(is_held);
    sound.then_some(()).ok_or(Error::Malformed(Kind::Held))
}

fn is_held(held: &Held) -> bool {
    (1..=PIECE_BYTES).contains(&held.extent.len) && held.extent.checked_end().is_some()
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.len() {
        0..=MAX_GROUP_NAME_BYTES => Ok(()),
        len => Err(Error::TooLong { kind: Kind::Hello as u8, len, limit: MAX_GROUP_NAME_BYTES }),
    }
}

/// Who lacks nothing sends no frame of needs, so one that says nothing is none.
fn check_needs(needs: &Needs) -> Result<(), Error> {
    let speaks = needs.coarse || !needs.lacks.is_empty();
    let sound = speaks && needs.lacks.len() <= LACKS_PER_FRAME && needs.lacks.iter().all(is_sound);
    sound.then_some(()).ok_or(Error::Malformed(Kind::Needs))
}

fn check_ask(ask: &Ask) -> Result<(), Error> {
    let sound = match ask {
        Ask::Handover | Ask::Checked(_) => true,
        Ask::Repair(lack) => is_sound(lack),
    };
    sound.then_some(()).ok_or(Error::Malformed(Kind::Ask))
}

/// Not empty, and no end beyond 2^64. (Whether there is such a volume, and how long it is, the engine knows.)
fn is_sound(lack: &Lack) -> bool {
    lack.extent.len > 0 && lack.extent.checked_end().is_some()
}

fn put_header(kind: Kind, len: usize, out: &mut BytesMut) {
    out.put_u8(kind as u8);
    out.put_bytes(0, 3);
    out.put_u32_le(u32::try_from(len).expect("bodies are limited to far less than 4 GiB"));
}

fn control<T: Encode>(kind: Kind, body: &T, out: &mut Vec<Bytes>) -> Result<(), Error> {
    let body = bincode::encode_to_vec(body, BODY).map_err(|_| Error::Malformed(kind))?;
    if body.len() > MAX_CONTROL_BYTES {
        return Err(Error::TooLong { kind: kind as u8, len: body.len(), limit: MAX_CONTROL_BYTES });
    }
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    put_header(kind, body.len(), &mut bytes);
    bytes.put_slice(&body);
    out.push(bytes.freeze());
    Ok(())
}

fn parse<T: Decode<()>>(kind: Kind, body: &[u8]) -> Result<T, Error> {
    match bincode::decode_from_slice(body, BODY) {
        Ok((value, used)) if used == body.len() => Ok(value),
        _ => Err(Error::Malformed(kind)),
    }
}
