//! Seeds over a session, at both its ends as state machines: what a replica holds is left out, and put back byte for
//! byte, or not at all (R18, R19).

mod common;

use bytes::Bytes;
use common::{Rng, samples};
use engine::event::{FLAG_COPY, Kind};
use engine::log::format::{HEADER_BYTES, Header, Seed, aligned};
use engine::peer::{Batch, Needs, TakesBack};
use engine::seeds::{self, Held, MAX_KNOWN, PIECE_BYTES};
use engine::types::{Checksum, Epoch, Extent, Incarnation, Lsn, Mono, Now, Timestamp, VolumeId};
use samples::{GROUP, hello, welcome};
use transport::link::decoder::{Accept, Decoder};
use transport::link::frame::{Acceptance, Frame, HELD_PER_FRAME, Offer};
use transport::link::receiver::{self, Receiver};
use transport::link::sender::Sender;
use transport::link::session::{Config, SEEDS, SPANS};

const VOLUME: VolumeId = VolumeId(3);

fn at(ms: u64) -> Now {
    Now { mono: Mono(ms * 1_000_000), wall: Timestamp(ms * 1_000_000) }
}

/// A primary and a replica, welcomed at 77, with seeds in force.
fn session() -> (Sender, Receiver) {
    let mut sender = Sender::new(Config::default(), at(0), hello(99), TakesBack::No);
    let mut receiver = Receiver::new(Config::default(), at(0));
    let Some(offer @ Frame::Hello(Offer { features, .. })) = sender.poll_transmit() else {
        panic!("no hello")
    };
    assert!(features & SEEDS != 0);
    receiver.handle_frame(at(1), offer);
    assert!(matches!(receiver.poll_event(), Some(receiver::Event::Hello(..))));
    assert!(!receiver.wants_held(), "not before the welcome");
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    let accepted = receiver.poll_transmit().expect("a welcome");
    sender.handle_frame(at(3), accepted);
    sender.poll_event();
    sender.handle_attached(None);
    while sender.poll_transmit().is_some() {}
    (sender, receiver)
}

fn carried(frame: &Frame) -> Frame {
    let mut pieces = Vec::new();
    frame.encode(&mut pieces).expect("within the limits");
    let mut decoder = Decoder::new(Accept::Batches);
    decoder.push(Bytes::from(pieces.concat()));
    decoder.poll().expect("sound").expect("whole")
}

fn tell(sender: &mut Sender, receiver: &mut Receiver, held: &[Held]) {
    for held in held.chunks(HELD_PER_FRAME) {
        assert!(receiver.wants_held());
        receiver.handle_held(held.to_vec());
        assert!(!receiver.wants_held(), "one waits");
        let frame = receiver.poll_transmit().expect("what it holds");
        sender.handle_frame(at(4), carried(&frame));
    }
}

/// Records from LSN 78 on, each with its flags, its place and its bytes.
fn records(list: &[(u16, u64, &[u8])]) -> Batch {
    let mut bytes = Vec::new();
    let seed = Seed::of(GROUP);
    for (at, (flags, offset, payload)) in list.iter().enumerate() {
        let mut padded = payload.to_vec();
        padded.resize(aligned(payload.len()), 0);
        let mut header = Header {
            kind: Kind::Write,
            flags: *flags,
            checksum: Checksum(0),
            payload_checksum: seed.checksum(&[&padded]),
            previous: Checksum(7),
            incarnation: Incarnation(1),
            lsn: Lsn(78 + at as u64),
            epoch: Epoch(2),
            durable: Lsn(70),
            time: Timestamp(1),
            extent: Extent::new(*offset, payload.len() as u64),
            payload_len: payload.len() as u32,
            volume: VOLUME,
        };
        let mut head = [0; HEADER_BYTES];
        header.encode(seed, &mut head);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&padded);
    }
    // In odd pieces, as they come out of a log's memory.
    let pieces = bytes.chunks(70_001).map(Bytes::copy_from_slice).collect();
    Batch { first: Lsn(78), last: Lsn(77 + list.len() as u64), bytes: pieces }
}

fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.below(255) as u8 + 1).collect()
}

/// What the replica holds is left out of copies alone, and comes back as it was; what differs, or is no copy, travels.
#[test]
fn what_a_replica_holds_does_not_travel() {
    let mut rng = Rng(5);
    let volume = content(&mut rng, 6 * PIECE_BYTES as usize);
    let mut old = volume.clone();
    old[2 * PIECE_BYTES as usize + 9_000] ^= 1;
    let piece = |at: usize| &volume[at * PIECE_BYTES as usize..(at + 1) * PIECE_BYTES as usize];
    let offset = |at: u64| at * PIECE_BYTES;
    let (mut sender, mut receiver) = session();
    tell(&mut sender, &mut receiver, &seeds::held(VOLUME, 0, &old, PIECE_BYTES));
    let batch = records(&[
        (FLAG_COPY, offset(0), piece(0)),
        (0, offset(5), b"a guest's"),
        (FLAG_COPY, offset(1), piece(1)),
        // Other bytes there; other bytes here; a part of a piece; no copy; behind the cursor.
        (FLAG_COPY, offset(2), piece(2)),
        (FLAG_COPY, offset(3), piece(2)),
        (FLAG_COPY, offset(4), &piece(4)[..4_096]),
        (0, offset(5), piece(5)),
        (FLAG_COPY, offset(1), piece(1)),
    ]);
    sender.handle_records(batch.clone());
    assert!(sender.in_flight_bytes() >= batch.len(), "the window is of what the replica has to keep");
    let Some(frame @ Frame::Thin(_)) = sender.poll_transmit() else { panic!("whole") };
    let mut pieces = Vec::new();
    frame.encode(&mut pieces).expect("sound");
    let travels: usize = pieces.iter().map(Bytes::len).sum();
    let saved = batch.len() - travels;
    assert!(
        (2 * PIECE_BYTES as usize - 200..2 * PIECE_BYTES as usize).contains(&saved),
        "{saved} bytes saved"
    );
    receiver.handle_frame(at(5), carried(&frame));
    let Some(receiver::Event::AppendThin(thin)) = receiver.poll_event() else { panic!("nothing to append") };
    assert!(receiver.unsettled_bytes() >= batch.len());
    let read = |held: &Held| {
        let Extent { offset, len } = held.extent;
        Ok(Bytes::copy_from_slice(&old[offset as usize..(offset + len) as usize]))
    };
    let filled = thin.clone().fill(read).expect("a seed that is what it was");
    assert_eq!((filled.first, filled.last), (batch.first, batch.last));
    assert!(filled.bytes.concat() == batch.bytes.concat(), "not the bytes that they were");
    // One that has changed since is not taken for what it was.
    let mut changed = old.clone();
    changed[PIECE_BYTES as usize + 1] ^= 1;
    let read = |held: &Held| {
        Ok(Bytes::copy_from_slice(&changed[held.extent.offset as usize..held.extent.end() as usize]))
    };
    assert!(thin.clone().fill(read).is_err());
    assert!(thin.clone().fill(|_| Ok(Bytes::new())).is_err());
    assert!(thin.fill(|_| Err(std::io::ErrorKind::NotFound.into())).is_err());
}

/// Holes and zeros are never told of, and the cut is the same wherever the reading began.
#[test]
fn zeros_are_not_told_of() {
    let mut rng = Rng(6);
    let mut volume = content(&mut rng, 3 * PIECE_BYTES as usize + 512);
    volume[4_096..12_288].fill(0);
    volume[PIECE_BYTES as usize..2 * PIECE_BYTES as usize].fill(0);
    let whole = seeds::held(VOLUME, 0, &volume, PIECE_BYTES);
    let runs: Vec<(u64, u64)> = whole.iter().map(|held| (held.extent.offset, held.extent.len)).collect();
    assert_eq!(runs, [(0, 4_096), (12_288, PIECE_BYTES - 12_288), (2 * PIECE_BYTES, PIECE_BYTES)]);
    let later = seeds::held(VOLUME, PIECE_BYTES, &volume[PIECE_BYTES as usize..], PIECE_BYTES);
    assert_eq!(later[..], whole[2..]);
}

/// R19: a replica that tells of more than is remembered costs a primary no more than that; nor does one that says it
/// holds everything.
#[test]
fn what_is_told_is_bounded() {
    let (mut sender, mut receiver) = session();
    let liar = |at: u64| samples::held(3, at * 4_096, 4_096);
    let all: Vec<Held> = (0..2 * MAX_KNOWN as u64).map(liar).collect();
    tell(&mut sender, &mut receiver, &all);
    let bytes = content(&mut Rng(7), 4_096);
    let batch = records(&[(FLAG_COPY, 0, &bytes), (FLAG_COPY, 4_096, &bytes)]);
    sender.handle_records(batch.clone());
    assert_eq!(sender.poll_transmit(), Some(Frame::Batch(batch)), "by the digest, not by the place");
}

/// R18: neither is said to a side that does not know of it.
#[test]
fn seeds_are_not_told_of_without_their_feature() {
    let mut receiver = Receiver::new(Config::default(), at(0));
    receiver.handle_frame(at(1), Frame::Hello(Offer { minor: 0, features: SPANS, hello: hello(99) }));
    receiver.poll_event();
    receiver.handle_verdict(at(2), Ok((Needs::default(), welcome(77))));
    let Some(Frame::Welcome(Acceptance { features, .. })) = receiver.poll_transmit() else { panic!("none") };
    assert_eq!(features, SPANS);
    receiver.handle_held(vec![samples::held(3, 0, 4_096)]);
    assert!(!receiver.wants_held() && receiver.poll_transmit().is_none());
}
