//! The bytes of the link's frames: golden fixtures, and what a decoder does with anything else (R18, R19).

mod common;

use bytes::Bytes;
use common::{Rng, samples};
use engine::peer::{Ask, Needs};
use engine::seeds::Thin;
use engine::types::Lsn;
use transport::link::decoder::{Accept, Decoder, MIN_PIECE_BYTES};
use transport::link::frame::{
    BATCH_PREFIX_BYTES, Error, Frame, HEADER_BYTES, HELD_PER_FRAME, IGNORABLE, Kind, LACKS_PER_FRAME,
    MAX_BATCH_BYTES, MAX_CONTROL_BYTES, THIN_PREFIX_BYTES,
};

fn encode(frame: &Frame) -> Vec<u8> {
    let mut pieces = Vec::new();
    frame.encode(&mut pieces).expect("the frame is within its limits");
    pieces.concat()
}

/// All frames in `bytes`, which come in pieces of at most `step` bytes; then the error, if there is one.
fn decode(bytes: &[u8], step: usize) -> (Vec<Frame>, Option<Error>, usize) {
    let mut decoder = Decoder::new(Accept::Batches);
    let mut frames = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.poll() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error), decoder.buffered_bytes()),
            }
        }
    }
    (frames, None, decoder.buffered_bytes())
}

/// The batch's pieces may be cut differently: compare what they hold.
fn flat(frame: Frame) -> Frame {
    match frame {
        Frame::Batch(mut batch) => {
            batch.bytes = vec![Bytes::from(batch.bytes.concat())];
            Frame::Batch(batch)
        }
        Frame::Thin(mut thin) => {
            thin.bytes = vec![Bytes::from(thin.bytes.concat())];
            Frame::Thin(thin)
        }
        other => other,
    }
}

fn header(kind: u8, len: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = kind;
    header[4..].copy_from_slice(&(len as u32).to_le_bytes());
    header
}

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/link/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let digits: Vec<u8> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// R18: the bytes of `landfall/1` are what they were when it was written down.
#[test]
fn golden_fixtures_decode_and_encode_byte_for_byte() {
    for (name, frame) in samples::frames() {
        let golden = fixture(name);
        assert_eq!(encode(&frame), golden, "{name}");
        for step in [1, 3, golden.len()] {
            let (frames, error, rest) = decode(&golden, step);
            assert_eq!((error, rest), (None, 0), "{name} in pieces of {step}");
            assert_eq!(
                frames.into_iter().map(flat).collect::<Vec<_>>(),
                std::slice::from_ref(&frame),
                "{name}"
            );
        }
    }
}

/// Fixtures exist for nothing but what is tested, and for each kind.
#[test]
fn every_kind_has_a_fixture() {
    let samples = samples::frames();
    for kind in Kind::ALL {
        assert!(samples.iter().any(|(_, frame)| frame.kind() == kind), "{kind:?}");
    }
    let dir = format!("{}/tests/fixtures/link", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .expect("the fixtures are in the repository")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("ascii"))
        .collect();
    files.sort();
    let mut names: Vec<String> = samples.iter().map(|(name, _)| format!("{name}.hex")).collect();
    names.sort();
    assert_eq!(files, names);
}

/// R19: with any one bit of any frame flipped, the decoder refuses, waits for more, or yields a message whose
/// encoding is exactly those bytes: no bit goes unread.
#[test]
fn every_bit_flip_is_an_error_or_another_message() {
    let (mut refused, mut waiting, mut other) = (0, 0, 0);
    for (name, frame) in samples::frames() {
        let golden = encode(&frame);
        for bit in 0..golden.len() * 8 {
            let mut bytes = golden.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (frames, error, _) = decode(&bytes, bytes.len());
            match (frames.as_slice(), error) {
                ([], Some(_)) => refused += 1,
                // A longer length: the rest of the frame has not come yet. Or an unknown frame to be skipped.
                ([], None) => waiting += 1,
                // A shorter length leaves bytes over, which are the start of something else.
                ([changed], _) => {
                    assert_ne!(flat(changed.clone()), frame, "{name}, bit {bit}");
                    let again = encode(changed);
                    assert_eq!(again, bytes[..again.len()], "{name}, bit {bit}");
                    other += 1;
                }
                (frames, error) => panic!("{name}, bit {bit}: {frames:?}, {error:?}"),
            }
        }
    }
    assert!(refused > 0 && waiting > 0 && other > 0, "{refused} {waiting} {other}");
}

/// R19: 100,000 streams of mutated frames and of noise, in pieces of any size: never a panic, never more held
/// than one frame's limit; what decodes is canonical; the answer does not depend on how the stream was cut.
#[test]
fn fuzz() {
    let samples: Vec<Vec<u8>> = samples::frames().iter().map(|(_, frame)| encode(frame)).collect();
    let (mut decoded, mut refused) = (0, 0);
    for seed in 0..100_000 {
        let mut rng = Rng(seed);
        let mut bytes = Vec::new();
        for _ in 0..=rng.below(3) {
            bytes.extend_from_slice(&samples[rng.below(samples.len() as u64) as usize]);
        }
        for _ in 0..rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(5) {
                0 => bytes[at] = rng.next() as u8,
                1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][rng.below(5) as usize],
                2 => drop(bytes.drain(at..(at + 1 + rng.below(16) as usize).min(bytes.len()))),
                3 => {
                    let count = rng.below(24) as usize;
                    let noise = rng.bytes(count);
                    bytes.splice(at..at, noise);
                }
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        let whole = decode(&bytes, bytes.len());
        let cut = decode(&bytes, 1 + rng.below(40) as usize);
        let frames: Vec<Frame> = whole.0.into_iter().map(flat).collect();
        assert_eq!(frames, cut.0.into_iter().map(flat).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(whole.1, cut.1, "seed {seed}");
        for frame in &frames {
            let (again, error, rest) = decode(&encode(frame), usize::MAX);
            assert_eq!((error, rest), (None, 0), "seed {seed}");
            assert_eq!(again.into_iter().map(flat).collect::<Vec<_>>(), std::slice::from_ref(frame));
        }
        decoded += frames.len();
        refused += usize::from(whole.1.is_some());
    }
    assert!(decoded > 10_000 && refused > 10_000, "{decoded} decoded, {refused} refused");
}

/// R19: a length above its limit is refused on the header alone, for each kind.
#[test]
fn oversized_lengths_are_refused_before_the_body() {
    let kinds = Kind::ALL.map(|kind| kind as u8).into_iter().chain([IGNORABLE | 1, 0xFF]);
    for kind in kinds {
        let limit = match Kind::from_byte(kind) {
            Some(Kind::Batch) => BATCH_PREFIX_BYTES + MAX_BATCH_BYTES,
            Some(Kind::Thin) => THIN_PREFIX_BYTES + MAX_BATCH_BYTES,
            _ => MAX_CONTROL_BYTES,
        };
        for len in [limit + 1, u32::MAX as usize] {
            let (frames, error, held) = decode(&header(kind, len), 1);
            assert_eq!((frames.len(), error, held), (0, Some(Error::TooLong { kind, len, limit }), 0));
        }
        let (_, error, _) = decode(&header(kind, limit), HEADER_BYTES);
        assert_eq!(error, None, "exactly the limit is allowed");
    }
}

/// R19: a count inside a body is not believed: a history of 2^61 reigns costs no memory.
#[test]
fn oversized_counts_inside_a_body_are_refused() {
    for count in [1 << 61, 1 << 32, 2_000, 3] {
        let mut body = 0u32.to_le_bytes().to_vec(); // Rebuff::Superseded
        body.extend_from_slice(&u64::to_le_bytes(count));
        let mut bytes = header(Kind::Rebuff as u8, body.len()).to_vec();
        bytes.extend_from_slice(&body);
        assert_eq!(decode(&bytes, bytes.len()).1, Some(Error::Malformed(Kind::Rebuff)), "{count}");
    }
}

/// R19: needs that need nothing, empty extents, extents beyond 2^64, more than a frame may hold, or a truth that is
/// neither true nor false: refused, and the encoder makes none of them.
#[test]
fn needs_that_cannot_be_are_refused_both_ways() {
    let raw = |coarse: u8, count: u64, lacks: &[(u64, u64)]| {
        let mut body = vec![coarse];
        body.extend_from_slice(&count.to_le_bytes());
        for (offset, len) in lacks {
            body.extend_from_slice(&3u32.to_le_bytes());
            body.extend_from_slice(&offset.to_le_bytes());
            body.extend_from_slice(&len.to_le_bytes());
        }
        let mut bytes = header(Kind::Needs as u8, body.len()).to_vec();
        bytes.extend(body);
        decode(&bytes, 999)
    };
    let malformed = Some(Error::Malformed(Kind::Needs));
    let full = vec![(4_096, 512); LACKS_PER_FRAME];
    assert_eq!((raw(1, 0, &[]).0.len(), raw(0, 1, &[(0, 1)]).0.len()), (1, 1));
    assert_eq!(raw(0, 1, &[(1, u64::MAX - 1)]).0.len(), 1, "up to the last byte");
    assert_eq!(raw(0, full.len() as u64, &full).0.len(), 1);
    let over = [&full[..], &[(0, 1)]].concat();
    for (case, (frames, error, _)) in [
        ("nothing", raw(0, 0, &[])),
        ("neither true nor false", raw(2, 0, &[])),
        ("an empty extent", raw(1, 2, &[(0, 1), (4_096, 0)])),
        ("an extent beyond 2^64", raw(0, 1, &[(2, u64::MAX - 1)])),
        ("too many for a frame", raw(0, over.len() as u64, &over)),
        ("fewer than they say", raw(0, 2, &[(0, 1)])),
        ("more than they say", raw(0, 1, &[(0, 1), (2, 1)])),
        ("a count that is a lie", raw(0, u64::MAX, &[(0, 1)])),
    ] {
        assert_eq!((frames.len(), error), (0, malformed.clone()), "{case}");
    }
    let mut out = Vec::new();
    for lacks in [vec![], vec![samples::lack(1, 0, 0)], samples::lacks(LACKS_PER_FRAME + 1)] {
        let needs = Frame::Needs(Needs { coarse: false, lacks });
        assert_eq!(needs.encode(&mut out).err(), malformed);
    }
    assert_eq!(out.len(), 0);
    let whole = Frame::Needs(Needs { coarse: true, lacks: samples::lacks(LACKS_PER_FRAME) });
    assert_eq!(decode(&encode(&whole), 4_096), (vec![whole], None, 0));
}

/// R19: a wish for nothing, for what lies beyond 2^64, or of a kind that nobody knows.
#[test]
fn asks_that_cannot_be_are_refused_both_ways() {
    let malformed = Some(Error::Malformed(Kind::Ask));
    let golden = encode(&Frame::Ask(Ask::Repair(samples::lack(1, 1, 7))));
    let with = |offset: u64, len: u64| {
        let mut bytes = golden.clone();
        let at = bytes.len() - 16;
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        bytes[at + 8..].copy_from_slice(&len.to_le_bytes());
        decode(&bytes, 64).1
    };
    assert_eq!(with(0, u64::MAX), None);
    assert_eq!((with(0, 0), with(2, u64::MAX - 1)), (malformed.clone(), malformed.clone()));
    for variant in [2, u8::MAX] {
        let mut bytes = encode(&Frame::Ask(Ask::Handover));
        bytes[HEADER_BYTES] = variant;
        assert_eq!(decode(&bytes, 64).1, malformed);
    }
    let mut out = Vec::new();
    assert_eq!(Frame::Ask(Ask::Repair(samples::lack(1, 1, 0))).encode(&mut out).err(), malformed);
    assert_eq!(out.len(), 0);
}

/// R19: what a thin batch leaves out lies in order, apart, within it, and is worth the words; lists are as long as they
/// say; a seed's runs are neither empty nor longer than a copy.
#[test]
fn thin_batches_and_seeds_that_cannot_be_are_refused_both_ways() {
    let malformed = Some(Error::Malformed(Kind::Thin));
    type Bend = fn(&mut Thin);
    let bends: [Bend; 8] = [
        |thin| thin.left_out.clear(),
        |thin| thin.left_out.swap(0, 1),
        |thin| thin.left_out[1].0 = 7 + 0x1FFF,
        |thin| thin.left_out[1].0 = 0x2000 + 22,
        |thin| thin.left_out[0].1.extent.len = 0,
        |thin| thin.left_out[0].1.extent.len = 36,
        |thin| thin.left_out[1].1.extent.len = (256 << 10) + 1,
        |thin| thin.left_out[1].1.extent.offset = u64::MAX - 1,
    ];
    for (at, bend) in bends.iter().enumerate() {
        let mut thin = samples::thin(78);
        bend(&mut thin);
        let mut out = Vec::new();
        assert_eq!(Frame::Thin(thin).encode(&mut out).err(), malformed, "{at}");
        assert_eq!(out.len(), 0);
    }
    let golden = encode(&Frame::Thin(samples::thin(78)));
    let bent = |at: usize, bytes: &[u8]| {
        let mut frame = golden.clone();
        frame[HEADER_BYTES + at..][..bytes.len()].copy_from_slice(bytes);
        decode(&frame, 50)
    };
    assert_eq!(bent(0, &[78]).1, None);
    for count in [0, 4, 1 << 20, u32::MAX] {
        assert_eq!(bent(16, &u32::to_le_bytes(count)).1, malformed, "{count} parts");
    }
    assert_eq!(bent(20, &u32::MAX.to_le_bytes()).1, malformed);
    assert!(matches!(bent(8, &[77]).1, Some(Error::BadRange { .. })));
    for held in [vec![], vec![samples::held(1, 0, 0)], vec![samples::held(1, 0, (256 << 10) + 1)]] {
        let mut out = Vec::new();
        assert_eq!(Frame::Held(held).encode(&mut out).err(), Some(Error::Malformed(Kind::Held)));
    }
    let most = Frame::Held(vec![samples::held(1, 0, 512); HELD_PER_FRAME]);
    assert_eq!(decode(&encode(&most), 4_096), (vec![most], None, 0));
    let too_many = Frame::Held(vec![samples::held(1, 0, 512); HELD_PER_FRAME + 1]);
    assert!(too_many.encode(&mut Vec::new()).is_err());
}

/// R19: a name that is not UTF-8.
#[test]
fn a_name_that_is_no_text_is_refused() {
    let mut bytes = encode(&samples::frames()[0].1);
    let at = bytes.windows(9).position(|window| window == b"orders-db").expect("the name is in the hello");
    bytes[at] = 0xFF;
    assert_eq!(decode(&bytes, 7).1, Some(Error::Malformed(Kind::Hello)));
}

/// R19: a name of 60,000 bytes would go into logs and maps.
#[test]
fn a_long_group_name_is_refused_both_ways() {
    let golden = encode(&samples::frames()[0].1);
    let name = golden.windows(9).position(|window| window == b"orders-db").expect("the name is in the hello");
    for len in [255, 256, 60_000] {
        let mut body = golden[HEADER_BYTES..name - 8].to_vec();
        body.extend_from_slice(&u64::to_le_bytes(len as u64));
        body.resize(body.len() + len, b'x');
        body.extend_from_slice(&golden[name + 9..]);
        let bytes = [&header(Kind::Hello as u8, body.len())[..], &body].concat();
        let (frames, error, _) = decode(&bytes, 4096);
        let refused = Error::TooLong { kind: Kind::Hello as u8, len, limit: 255 };
        assert_eq!((frames.len(), error), if len > 255 { (0, Some(refused.clone())) } else { (1, None) });
        let mut hello = samples::hello(1);
        hello.name = "x".repeat(len);
        let frame = Frame::Hello(transport::link::frame::Offer { minor: 0, features: 0, hello });
        assert_eq!(frame.encode(&mut Vec::new()), if len > 255 { Err(refused) } else { Ok(()) });
    }
}

/// R19: length and body disagree, both ways.
#[test]
fn a_body_longer_or_shorter_than_its_message_is_refused() {
    let golden = encode(&Frame::Ack(samples::position(2, 80)));
    let body = &golden[HEADER_BYTES..];
    for len in [0, 1, body.len() - 1, body.len() + 1] {
        let mut bytes = header(Kind::Ack as u8, len).to_vec();
        bytes.extend(body.iter().chain(&[0]).take(len));
        assert_eq!(decode(&bytes, 5).1, Some(Error::Malformed(Kind::Ack)), "{len}");
    }
}

/// R19: batches whose LSNs cannot be.
#[test]
fn impossible_ranges_are_refused() {
    let batch = |first: u64, last: u64, len: usize| {
        let mut bytes = header(Kind::Batch as u8, BATCH_PREFIX_BYTES + len).to_vec();
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&last.to_le_bytes());
        bytes.resize(bytes.len() + len, 7);
        decode(&bytes, 11)
    };
    for (first, last, len) in
        [(0, 0, 1), (0, 5, 100), (6, 5, 100), (1, 101, 100), (1, u64::MAX, 64), (1, 1, 0)]
    {
        let (frames, error, _) = batch(first, last, len);
        assert_eq!(frames, []);
        assert_eq!(error, Some(Error::BadRange { first: Lsn(first), last: Lsn(last), len }));
    }
    assert_eq!(batch(u64::MAX - 1, u64::MAX, 2).0.len(), 1);
    let short = header(Kind::Batch as u8, BATCH_PREFIX_BYTES - 1);
    let bytes = [&short[..], &[1; BATCH_PREFIX_BYTES - 1]].concat();
    assert_eq!(decode(&bytes, 64).1, Some(Error::Malformed(Kind::Batch)));
}

/// R18: unknown kinds are errors, unless they say that they may be skipped; then what follows is read.
#[test]
fn unknown_kinds_are_errors_unless_flagged_ignorable() {
    let after = Frame::Ack(samples::position(2, 80));
    for kind in 0..=u8::MAX {
        if Kind::from_byte(kind).is_some() {
            continue;
        }
        for len in [0, 1, 5_000, MAX_CONTROL_BYTES] {
            let mut bytes = header(kind, len).to_vec();
            bytes.resize(bytes.len() + len, 0xEE);
            bytes.extend(encode(&after));
            let (frames, error, held) = decode(&bytes, 700);
            if kind & IGNORABLE == 0 {
                assert_eq!((frames.len(), error, held), (0, Some(Error::UnknownKind(kind)), 0));
            } else {
                assert_eq!((frames, error, held), (vec![after.clone()], None, 0), "kind {kind}, {len} bytes");
            }
        }
    }
}

/// R18: reserved bytes are checked, so that they can be given a meaning later.
#[test]
fn reserved_bytes_must_be_zero() {
    for at in 1..4 {
        let mut bytes = encode(&Frame::Ack(samples::position(2, 80)));
        bytes[at] = 1;
        assert!(matches!(decode(&bytes, 64).1, Some(Error::Reserved(_))), "byte {at}");
    }
}

/// R19: before the welcome not even the header of a batch is let in, whatever its length.
#[test]
fn a_batch_too_early_fails_on_its_header() {
    let mut decoder = Decoder::new(Accept::Control);
    decoder.push(Bytes::copy_from_slice(&header(Kind::Batch as u8, 32 << 20)));
    assert_eq!(decoder.poll(), Err(Error::EarlyBatch));
    decoder.push(Bytes::from(encode(&Frame::Ack(samples::position(2, 80)))));
    assert_eq!(decoder.poll(), Err(Error::EarlyBatch), "a failed decoder stays failed");
    assert_eq!(decoder.buffered_bytes(), 0);
}

/// The records of a batch are handed on in the very buffers that they came in.
#[test]
fn batches_are_not_copied() {
    let bytes = Bytes::from(encode(&Frame::Batch(samples::batch(1, 16, 4096))));
    let mut decoder = Decoder::new(Accept::Batches);
    let pieces: Vec<Bytes> =
        (0..bytes.len()).step_by(1400).map(|at| bytes.slice(at..(at + 1400).min(bytes.len()))).collect();
    for piece in &pieces {
        decoder.push(piece.clone());
    }
    let Ok(Some(Frame::Batch(batch))) = decoder.poll() else { panic!("a whole batch was pushed") };
    assert_eq!(batch.len(), 16 * 4096);
    let inside = |piece: &Bytes| bytes.as_ptr_range().contains(&piece.as_ptr());
    let copied: usize = batch.bytes.iter().filter(|piece| !inside(piece)).map(Bytes::len).sum();
    assert!(copied < MIN_PIECE_BYTES, "only the short tail may be copied, not {copied} bytes");
}

/// R19: a stream cut into single bytes is gathered, or each byte would pin a whole packet buffer.
#[test]
fn tiny_pieces_are_gathered() {
    let bytes = encode(&Frame::Batch(samples::batch(1, 4, 16 << 10)));
    let mut decoder = Decoder::new(Accept::Batches);
    for byte in &bytes {
        decoder.push(Bytes::copy_from_slice(&[*byte]));
    }
    let Ok(Some(Frame::Batch(batch))) = decoder.poll() else { panic!("a whole batch was pushed") };
    assert!(batch.bytes.len() <= bytes.len() / MIN_PIECE_BYTES, "{} pieces", batch.bytes.len());
    assert_eq!(batch.bytes.concat(), bytes[HEADER_BYTES + BATCH_PREFIX_BYTES..]);
}

/// What does not fit a frame is refused by the encoder, and nothing of it is sent.
#[test]
fn what_fits_no_frame_is_not_encoded() {
    let reign = samples::history()[0];
    let mut hello = samples::hello(99);
    hello.history = vec![reign; 1_300];
    let offer = |hello| Frame::Hello(transport::link::frame::Offer { minor: 0, features: 0, hello });
    let (frames, error, _) = decode(&encode(&offer(hello.clone())), 1 << 20);
    assert_eq!((frames.len(), error), (1, None), "the documented number of reigns fits");
    hello.history = vec![reign; 1_500];
    let mut out = Vec::new();
    assert!(matches!(offer(hello).encode(&mut out), Err(Error::TooLong { .. })));
    let mut batch = samples::batch(1, 1, 1);
    batch.bytes = vec![Bytes::from(vec![0; 1 << 20]); 33];
    assert!(matches!(Frame::Batch(batch).encode(&mut out), Err(Error::TooLong { .. })));
    assert_eq!(out.len(), 0);
}
