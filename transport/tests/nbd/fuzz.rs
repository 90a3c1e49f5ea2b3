//! N15: 100,000 cases of garbage and half-garbage, from fixed seeds, against the protocol's functions; and some of
//! it against a server that has another client.

use crate::memory::{Bench, Exports, Memory, Pace, Random};
use crate::raw::{Raw, export, meta};
use bytes::{Buf, Bytes};
use engine::guest::{Completion, MAX_REQUEST_BYTES, Op, Refusal, Reply, Request};
use engine::types::Extent;
use std::io::{IoSlice, Read, Write};
use transport::nbd::handshake::{Admission, Handshake, Step, TlsPolicy};
use transport::nbd::pending::MAX_IN_FLIGHT;
use transport::nbd::proto::{OPTION_MAGIC, OPTION_REPLY_MAGIC};
use transport::nbd::reply::Outgoing;
use transport::nbd::request::{Access, Header, Metadata, Replies, Terms};
use transport::nbd::transmission::{Next, Transmission};

const CASES: u64 = 50_000;
const SIZE: u64 = 1 << 20;

/// Some bytes of a client in the handshake: right for the most part.
fn options(random: &mut Random) -> Vec<u8> {
    let flags = if random.one_in(20) { random.next() } else { random.below(4) };
    let mut bytes = (flags as u32).to_be_bytes().to_vec();
    for _ in 0..random.below(8) {
        let name = ["disk", "disk", "", "dusk", "d\0k"][random.below(5) as usize];
        // EXPORT_NAME and ABORT end it, so they are rarer.
        let option = if random.one_in(8) { random.below(3) } else { 3 + random.below(10) };
        let kind = match option {
            _ if random.one_in(4) => random.below(6),
            6 | 7 => 0,
            9 | 10 => 1,
            1 => 3,
            _ => 5,
        };
        let data = match kind {
            0 => export(name, &[random.below(5) as u16, 0xffff]),
            1 => meta(name, &["base:allocation", "base:", "x"][..random.below(4) as usize]),
            2 => {
                let len = random.below(64) as usize;
                random.bytes(len)
            }
            3 => name.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&(option as u32).to_be_bytes());
        let claimed = if random.one_in(20) { random.next() as u32 } else { data.len() as u32 };
        bytes.extend_from_slice(&claimed.to_be_bytes());
        bytes.extend_from_slice(&data);
    }
    mutate(random, &mut bytes);
    bytes
}

/// Some bytes of a client in transmission: right for the most part.
fn requests(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.below(12) {
        let len = match random.below(8) {
            0 => 0,
            1 => random.next() as u32,
            2 => SIZE as u32,
            _ => random.below(2000) as u32,
        };
        let offset = match random.below(8) {
            0 => random.next(),
            1 => SIZE - random.below(3),
            _ => random.below(SIZE),
        };
        let flags = if random.one_in(6) { 1 << random.below(6) } else { 0 };
        let command = if random.one_in(8) {
            random.below(12)
        } else {
            [0, 1, 1, 3, 4, 5, 6, 7][random.below(8) as usize]
        };
        let (offset, len) = if command == 3 && !random.one_in(8) { (0, 0) } else { (offset, len) };
        let header = Header { flags, command: command as u16, cookie: random.below(4), offset, len };
        bytes.extend_from_slice(&header.encode());
        if header.payload_bytes() <= 3000 {
            bytes.extend_from_slice(&random.bytes(header.payload_bytes() as usize));
        }
    }
    mutate(random, &mut bytes);
    bytes
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    if random.one_in(2) {
        return;
    }
    if random.one_in(10) {
        let len = random.below(300) as usize;
        *bytes = random.bytes(len);
    }
    for _ in 0..random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            _ => drop(bytes.remove(at)),
        }
    }
}

/// What a handshake comes to when its input arrives in pieces of at most `step` bytes.
fn haggle(input: &[u8], tls: TlsPolicy, admission: Admission, step: usize) -> (Vec<u8>, &'static str) {
    let catalog = Exports::default();
    let disk = Memory::new(SIZE, Pace::AtOnce);
    catalog.0.lock().unwrap().insert("disk".into(), disk);
    let mut all = Vec::new();
    let mut handshake = Handshake::new(tls, &mut all);
    let (mut start, mut end) = (0, 0);
    loop {
        let mut out = Vec::new();
        let (used, next) = handshake.handle(&input[start..end], &catalog, admission, &mut out);
        assert!(used <= end - start);
        assert!(out.len() < 2000, "one option, one answer");
        all.extend_from_slice(&out);
        start += used;
        match next {
            Step::More if end == input.len() => return (all, "more"),
            Step::More => end = (end + step).min(input.len()),
            Step::Reply => {}
            Step::StartTls => return (all, "tls"),
            Step::Serve(session) => {
                assert_eq!((session.name.as_str(), admission), ("disk", Admission::Open));
                return (all, "serve");
            }
            Step::Close => return (all, "close"),
        }
    }
}

#[test]
fn n15_handshake() {
    let mut outcomes = std::collections::BTreeMap::new();
    for seed in 0..CASES {
        let mut random = Random(seed);
        let input = options(&mut random);
        let tls = [TlsPolicy::Off, TlsPolicy::Offered, TlsPolicy::Required][random.below(3) as usize];
        let admission = if random.one_in(10) {
            [Admission::Full, Admission::Stopping][random.below(2) as usize]
        } else {
            Admission::Open
        };
        let (out, outcome) = haggle(&input, tls, admission, usize::MAX / 2);
        let step = 1 + random.below(20) as usize;
        assert_eq!(haggle(&input, tls, admission, step), (out.clone(), outcome), "seed {seed}");
        // Up to the answer to EXPORT_NAME, which has no frame, the answers are well-formed.
        let mut rest = &out[18..];
        while rest.len() >= 20 && rest[..8] == OPTION_REPLY_MAGIC.to_be_bytes() {
            let len = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
            rest = &rest[20 + len..];
        }
        assert!(
            rest.is_empty() || (outcome == "serve" && (rest.len() == 10 || rest.len() == 134)),
            "seed {seed}"
        );
        assert!(!(tls == TlsPolicy::Required && outcome == "serve"), "seed {seed}");
        *outcomes.entry(outcome).or_insert(0_u64) += 1;
    }
    for outcome in ["more", "tls", "serve", "close"] {
        assert!(outcomes.get(outcome).is_some_and(|count| *count > CASES / 100), "{outcomes:?}");
    }
}

/// What a connection comes to when its input arrives in pieces: the requests, the bytes that go out, the end.
fn transmit(input: &[u8], terms: Terms, mut step: impl FnMut() -> usize) -> (Vec<Request>, Vec<u8>, Next) {
    let mut transmission = Transmission::new(terms);
    let mut all = Vec::new();
    let mut sent = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        let mut batch = Vec::new();
        let mut out = Outgoing::default();
        let mut piece = Bytes::copy_from_slice(&input[start..end]);
        let (used, next) = transmission.take(&piece, 0, &mut batch, &mut out);
        piece.advance(used);
        start += used;
        check(&batch, &terms);
        assert_eq!(transmission.in_flight(), batch.len());
        let completions: Vec<_> = batch.iter().map(answer).collect();
        transmission.complete(completions.clone(), &mut out);
        assert_eq!(transmission.in_flight(), 0);
        let len = out.len();
        transmission.complete(completions, &mut out);
        assert_eq!(out.len(), len, "a second answer changes nothing");
        all.extend(batch.into_iter().map(|request| Request { cookie: 0, ..request }));
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 8];
            let count = out.slices(&mut slices);
            let piece: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            sent.extend_from_slice(&piece);
            out.advance(piece.len());
        }
        match next {
            Next::More { need } if end == input.len() => {
                assert!(need > piece.len() && need <= 28 + MAX_REQUEST_BYTES as usize);
                return (all, sent, next);
            }
            Next::More { .. } => end = (end + step()).min(input.len()),
            Next::Full => panic!("{} in flight never fill it up", MAX_IN_FLIGHT),
            Next::Disconnect | Next::BadMagic => return (all, sent, next),
        }
    }
}

/// Refuses some reads, so that both kinds of answers are seen.
fn answer(request: &Request) -> Completion {
    let result = match &request.op {
        Op::Read(extent) if extent.offset % 2 == 0 => {
            Ok(Reply::Data(vec![engine::guest::Piece::Bytes(vec![5; extent.len as usize].into())]))
        }
        Op::Read(_) => Err(Refusal::Io),
        Op::Status(extent) => Ok(Reply::Status(vec![engine::guest::Stretch { len: extent.len, hole: true }])),
        _ => Ok(Reply::Done),
    };
    Completion { cookie: request.cookie, result }
}

/// An export is never asked nonsense.
fn check(batch: &[Request], terms: &Terms) {
    for request in batch {
        let extent = match &request.op {
            Op::Flush => continue,
            Op::Write { offset, data } => Extent::new(*offset, data.len() as u64),
            Op::Read(extent) | Op::Trim(extent) | Op::Cache(extent) | Op::Status(extent) => *extent,
            Op::Zero { extent, .. } => *extent,
        };
        assert!(extent.len > 0 && extent.fits(terms.size), "{request:?}");
        let writes = matches!(request.op, Op::Write { .. } | Op::Trim(_) | Op::Zero { .. });
        assert!(!(writes && terms.access == Access::ReadOnly), "{request:?}");
        assert!(!(matches!(request.op, Op::Status(_)) && terms.metadata == Metadata::None), "{request:?}");
    }
}

#[test]
fn n15_transmission() {
    let (mut disconnects, mut bad_magics, mut taken) = (0_u64, 0_u64, 0_usize);
    for seed in 0..CASES {
        let mut random = Random(seed);
        let input = requests(&mut random);
        let structured = random.one_in(2);
        let terms = Terms {
            size: SIZE,
            access: if random.one_in(4) { Access::ReadOnly } else { Access::ReadWrite },
            replies: if structured { Replies::Structured } else { Replies::Simple },
            metadata: if structured && random.one_in(2) { Metadata::Allocation } else { Metadata::None },
        };
        let whole = transmit(&input, terms, || usize::MAX / 2);
        // How it is cut makes no difference to what is done, nor to how much is answered. (The order of answers
        // within a batch may differ: those that need no export come first.)
        let cut = transmit(&input, terms, || 1 + random.below(100) as usize);
        assert_eq!(whole.0, cut.0, "seed {seed}");
        assert_eq!((whole.1.len(), whole.2), (cut.1.len(), cut.2), "seed {seed}");
        taken += whole.0.len();
        disconnects += u64::from(whole.2 == Next::Disconnect);
        bad_magics += u64::from(whole.2 == Next::BadMagic);
    }
    let rare = CASES / 100;
    assert!(
        disconnects > rare && bad_magics > rare && taken as u64 > CASES,
        "{disconnects} {bad_magics} {taken}"
    );
}

/// The same against a server: another client goes on throughout.
#[test]
fn n15_garbage_on_sockets() {
    let bench = Bench::new(Pace::Later);
    let mut good = bench.client();
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut raw = match random.below(3) {
            0 => Raw::connect(&bench.socket),
            1 => Raw::simple(&bench.socket),
            _ => Raw::structured(&bench.socket),
        };
        let bytes = if random.one_in(2) { options(&mut random) } else { requests(&mut random) };
        let _ = raw.stream.write_all(&bytes);
        if random.one_in(2) {
            let _ = raw.stream.shutdown(std::net::Shutdown::Write);
            let _ = raw.stream.read_to_end(&mut Vec::new());
        }
        drop(raw);
        // Far away from where garbage writes to.
        let offset = (1 << 39) + seed * 512;
        good.write(offset, &[seed as u8; 512]).unwrap();
        let mut back = [0; 512];
        good.read(offset, &mut back).unwrap();
        assert_eq!(back, [seed as u8; 512]);
    }
    drop(good);
    bench.wait_for_connections(0);
}
