//! N01 to N08, and the limits on clients.

use crate::memory::{Bench, Exports, Memory, PAGE, Pace, SIZE, TIMEOUT};
use crate::raw::{Raw, export, meta};
use engine::guest::MAX_REQUEST_BYTES;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use transport::block::Shape;
use transport::nbd::client::Client;
use transport::nbd::handshake::{Admission, Handshake, MAX_OPTION_BYTES, Step, TlsPolicy};
use transport::nbd::proto::{BASE_ALLOCATION, OPTION_MAGIC, export_flag, info, option, rep};
use transport::nbd::{Config, Server, Stop, Tls};

const ACK: (u32, Vec<u8>) = (rep::ACK, Vec::new());

fn flags_of(replies: &[(u32, Vec<u8>)]) -> u16 {
    let export = replies.iter().find(|(kind, data)| *kind == rep::INFO && data.starts_with(&[0, 0]));
    let data = &export.expect("INFO_EXPORT is always sent").1;
    assert_eq!(data.len(), 12);
    u16::from_be_bytes([data[10], data[11]])
}

/// N01: both flags are offered (checked at every connection), the known ones are taken, any other one is the end.
#[test]
fn n01_unknown_client_flags_end_the_connection() {
    let bench = Bench::new(Pace::AtOnce);
    for flags in 0..4_u32 {
        let mut raw = Raw::connect(&bench.socket);
        raw.put(&flags.to_be_bytes());
        assert_eq!(raw.ask(option::ABORT, &[]), [ACK]);
        raw.assert_closed();
    }
    for bit in 2..32 {
        let mut raw = Raw::connect(&bench.socket);
        raw.put(&(1_u32 << bit | 3).to_be_bytes());
        raw.assert_closed();
    }
}

/// N02: unknown options are refused, their data skipped, and haggling goes on.
#[test]
fn n02_unknown_options() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::haggle(&bench.socket);
    for option in [0, 4, 12, 1000, u32::MAX] {
        for len in [0, 1, 100_000] {
            assert_eq!(raw.refused(option, &vec![0xa5; len]), rep::ERR_UNSUP, "option {option}");
        }
    }
    assert_eq!(raw.refused(option::EXTENDED_HEADERS, &[]), rep::ERR_UNSUP, "N06");
    assert_eq!(raw.refused(option::LIST, &[0]), rep::ERR_INVALID);
    assert_eq!(raw.refused(option::STRUCTURED_REPLY, &[0]), rep::ERR_INVALID);
    let list = raw.ask(option::LIST, &[]);
    assert_eq!(list, [(rep::SERVER, b"\0\0\0\x04disk".to_vec()), ACK]);
    assert_eq!(raw.ask(option::ABORT, &[]), [ACK]);
    raw.assert_closed();
}

/// N03: INFO and GO say the same; what is wrong with their data is told apart.
#[test]
fn n03_info_and_go() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::haggle(&bench.socket);
    let everything =
        export("disk", &[info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77, 0xffff]);
    let told = raw.ask(option::INFO, &everything);
    let kinds: Vec<u16> =
        told[..told.len() - 1].iter().map(|(_, data)| u16::from_be_bytes([data[0], data[1]])).collect();
    assert_eq!(
        kinds,
        [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE],
        "unknown ones are ignored"
    );
    assert_eq!(told[0].1[2..10], SIZE.to_be_bytes());
    assert_eq!(told[1].1[2..], *b"disk");
    assert_eq!(told[2].1[2..], *b"a disk in memory");

    assert_eq!(raw.refused(option::GO, &export("dusk", &[])), rep::ERR_UNKNOWN);
    assert_eq!(raw.refused(option::GO, &export("", &[])), rep::ERR_UNKNOWN, "there is no default export");
    let sound = export("disk", &[info::BLOCK_SIZE]);
    for cut in 0..sound.len() {
        assert_eq!(raw.refused(option::INFO, &sound[..cut]), rep::ERR_INVALID, "cut at {cut}");
    }
    assert_eq!(raw.refused(option::INFO, &[&sound[..], &[0]].concat()), rep::ERR_INVALID, "a byte too many");
    let mut long_name = sound.clone();
    long_name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(raw.refused(option::GO, &long_name), rep::ERR_INVALID);
    assert_eq!(raw.refused(option::GO, &export(&"x".repeat(4097), &[])), rep::ERR_INVALID);
    assert_eq!(raw.refused(option::GO, &export("di\0k", &[])), rep::ERR_INVALID);
    let mut not_utf8 = sound;
    not_utf8[4] = 0xff;
    assert_eq!(raw.refused(option::GO, &not_utf8), rep::ERR_INVALID);

    assert_eq!(raw.ask(option::GO, &everything), told, "GO says what INFO said");
    assert_eq!(raw.error_of(0, 0, 0, 1 << 31), 22, "and it is the transmission phase now");
}

/// N04: EXPORT_NAME with and without the 124 zeroes; an unknown name cannot be answered.
#[test]
fn n04_export_name() {
    let bench = Bench::new(Pace::AtOnce);
    for (flags, zeroes) in [(0_u32, 124), (1, 124), (2, 0), (3, 0)] {
        let mut raw = Raw::connect(&bench.socket);
        raw.put(&flags.to_be_bytes());
        raw.put_option(option::EXPORT_NAME, b"disk");
        assert_eq!(raw.u64(), SIZE);
        let told = u16::from_be_bytes(raw.take(2).try_into().unwrap());
        assert_ne!(told & export_flag::HAS_FLAGS, 0);
        assert_eq!(raw.take(zeroes), vec![0; zeroes]);
        assert_eq!(raw.error_of(3, 0, 0, 0), 0, "a flush");
    }
    for name in [&b"dusk"[..], b"", b"di\0k", b"\xff", &[b'x'; 70_000]] {
        let mut raw = Raw::haggle(&bench.socket);
        raw.put_option(option::EXPORT_NAME, &name[..name.len().min(60_000)]);
        raw.assert_closed();
    }
}

/// N05: block sizes on request; an export of odd size can be read to its last byte.
#[test]
fn n05_block_sizes() {
    let bench = Bench::new(Pace::AtOnce);
    bench.exports.0.lock().unwrap().insert("odd".into(), Memory::new(PAGE * 3 + 77, Pace::AtOnce));
    let mut raw = Raw::haggle(&bench.socket);
    for name in ["disk", "odd"] {
        let told = raw.ask(option::INFO, &export(name, &[info::BLOCK_SIZE]));
        let sizes = [info::BLOCK_SIZE.to_be_bytes().to_vec(), 1_u32.to_be_bytes().to_vec()].concat();
        let rest = [4096_u32.to_be_bytes(), MAX_REQUEST_BYTES.to_be_bytes()].concat();
        assert_eq!(told[1], (rep::INFO, [sizes, rest].concat()));
    }
    assert_eq!(raw.ask(option::INFO, &export("disk", &[])).len(), 2, "not if it was not asked for");
    raw.go("odd", &[]);
    raw.request(0, 0, 1, PAGE * 3 + 76, 1);
    assert_eq!(raw.error(1), 0);
    assert_eq!(raw.take(1), [0]);
}

/// N06: structured replies and metadata contexts.
#[test]
fn n06_structured_replies_and_contexts() {
    let bench = Bench::new(Pace::AtOnce);
    bench.exports.0.lock().unwrap().insert("other".into(), Memory::new(SIZE, Pace::AtOnce));
    let mut raw = Raw::haggle(&bench.socket);
    let base = &meta("disk", &[BASE_ALLOCATION]);
    assert_eq!(
        raw.refused(option::SET_META_CONTEXT, base),
        rep::ERR_INVALID,
        "not before structured replies"
    );
    assert_eq!(raw.refused(option::LIST_META_CONTEXT, base), rep::ERR_INVALID);
    assert_eq!(flags_of(&raw.ask(option::INFO, &export("disk", &[]))) & export_flag::SEND_DF, 0);
    assert_eq!(raw.ask(option::STRUCTURED_REPLY, &[]), [ACK]);
    assert_ne!(flags_of(&raw.ask(option::INFO, &export("disk", &[]))) & export_flag::SEND_DF, 0);

    let listed = (rep::META_CONTEXT, [&[0; 4], BASE_ALLOCATION.as_bytes()].concat());
    for queries in [&[][..], &["base:"], &[BASE_ALLOCATION], &["x-dirty:", "base:", BASE_ALLOCATION]] {
        let found = raw.ask(option::LIST_META_CONTEXT, &meta("disk", queries));
        assert_eq!(found, [listed.clone(), ACK], "{queries:?}");
    }
    assert_eq!(raw.ask(option::LIST_META_CONTEXT, &meta("disk", &["x-dirty:", "base:allocated", ""])), [ACK]);
    for queries in [&[][..], &["base:"], &["qemu:dirty-bitmap:x"]] {
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &meta("disk", queries)), [ACK], "{queries:?}");
    }
    let chosen = raw.ask(option::SET_META_CONTEXT, &meta("disk", &[BASE_ALLOCATION, "y", BASE_ALLOCATION]));
    assert_eq!(chosen.len(), 2, "a context that is asked for twice is one");
    assert_eq!(chosen[0].1[4..], *BASE_ALLOCATION.as_bytes());

    assert_eq!(raw.refused(option::SET_META_CONTEXT, &meta("dusk", &[BASE_ALLOCATION])), rep::ERR_UNKNOWN);
    for cut in 0..base.len() {
        assert_eq!(raw.refused(option::SET_META_CONTEXT, &base[..cut]), rep::ERR_INVALID, "cut at {cut}");
    }
    let mut claims_more = base.clone();
    claims_more[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(raw.refused(option::SET_META_CONTEXT, &claims_more), rep::ERR_INVALID, "2^32 queries");

    // A failed choice undoes the one before it; one for another export does not count.
    raw.go("disk", &[]);
    assert_eq!(raw.error_of(7, 0, 0, 4096), 22);
    let mut raw = Raw::haggle(&bench.socket);
    raw.ask(option::STRUCTURED_REPLY, &[]);
    raw.ask(option::SET_META_CONTEXT, &meta("other", &[BASE_ALLOCATION]));
    raw.go("disk", &[]);
    assert_eq!(raw.error_of(7, 0, 0, 4096), 22);
}

/// N07 without TLS: STARTTLS is refused, and nothing changes.
#[test]
fn n07_starttls_where_it_is_not_configured() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::haggle(&bench.socket);
    assert_eq!(raw.refused(option::STARTTLS, &[]), rep::ERR_POLICY);
    assert_eq!(raw.refused(option::STARTTLS, &[1]), rep::ERR_INVALID);
    raw.go("disk", &[]);
    assert_eq!(raw.error_of(3, 0, 0, 0), 0);
}

/// N08: a length of 4 GiB costs nothing; one that is too long for a known option is skipped.
#[test]
fn n08_claimed_lengths() {
    let catalog = Exports::default();
    for option in [option::LIST, option::GO, option::ABORT, option::SET_META_CONTEXT, 99] {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(TlsPolicy::Off, &mut out);
        assert_eq!(handshake.handle(&3_u32.to_be_bytes(), &catalog, Admission::Open, &mut out).0, 4);
        out.clear();
        let header =
            [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
        let (used, _) = handshake.handle(&header, &catalog, Admission::Open, &mut out);
        assert_eq!(used, 16);
        let refusal = u32::from_be_bytes(out[12..16].try_into().unwrap());
        assert_eq!(refusal, if option == 99 { rep::ERR_UNSUP } else { rep::ERR_TOO_BIG });
        // 4 GiB of data go by in pieces; then the next option is understood.
        out.clear();
        let piece = vec![0x5a; 1 << 20];
        let mut left = u64::from(u32::MAX);
        while left > 0 {
            let len = left.min(piece.len() as u64) as usize;
            let (used, _) = handshake.handle(&piece[..len], &catalog, Admission::Open, &mut out);
            assert_eq!(used, len);
            left -= len as u64;
        }
        assert!(out.is_empty());
        let abort = [&OPTION_MAGIC.to_be_bytes()[..], &option::ABORT.to_be_bytes(), &[0; 4]].concat();
        let (used, step) = handshake.handle(&abort, &catalog, Admission::Open, &mut out);
        assert!(used == 16 && matches!(step, Step::Close));
    }
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::haggle(&bench.socket);
    assert_eq!(raw.refused(option::GO, &vec![0; MAX_OPTION_BYTES as usize + 1]), rep::ERR_TOO_BIG);
    assert_eq!(raw.refused(option::GO, &vec![0; MAX_OPTION_BYTES as usize]), rep::ERR_INVALID);
    raw.go("disk", &[]);
    let mut raw = Raw::haggle(&bench.socket);
    raw.put_option(option::EXPORT_NAME, &vec![b'x'; MAX_OPTION_BYTES as usize]);
    raw.assert_closed();
}

/// N08: handshakes that do not get on are cut off, at whatever byte they stopped, and hold up nobody.
#[test]
fn n08_slow_handshakes() {
    let config = Config { handshake_timeout: Duration::from_millis(300), ..Config::default() };
    let bench = Bench::with(Memory::new(SIZE, Pace::AtOnce), config, Tls::Off);
    let says =
        [&3_u32.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 1, 0], &[0; 20]].concat();
    let mut slow: Vec<_> = (0..says.len()).map(|cut| (cut, Raw::connect(&bench.socket))).collect();
    for (cut, raw) in &mut slow {
        raw.put(&says[..*cut]);
    }
    let mut client = bench.client();
    client.write(0, b"goes on").unwrap();
    for (_, raw) in &mut slow {
        raw.assert_closed();
    }
    // One that always says a little is cut off as well: the deadline is for the whole of it.
    let mut raw = Raw::haggle(&bench.socket);
    while raw.stream.write_all(&[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut back = [0; 7];
    client.read(0, &mut back).unwrap();
    assert_eq!(&back, b"goes on");
}

/// N15 in the handshake: a wrong magic is the end.
#[test]
fn n15_wrong_option_magic() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::haggle(&bench.socket);
    raw.put(&[0; 16]);
    raw.assert_closed();
}

/// N22, N24: what the flags promise.
#[test]
fn n22_transmission_flags() {
    use export_flag::*;
    let bench = Bench::new(Pace::AtOnce);
    let shape = Shape { size: SIZE, read_only: true, description: String::new() };
    bench.exports.0.lock().unwrap().insert("point".into(), Memory::with_shape(shape, Pace::AtOnce));
    let mut raw = Raw::haggle(&bench.socket);
    raw.ask(option::STRUCTURED_REPLY, &[]);
    let common = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_DF | CAN_MULTI_CONN | SEND_CACHE;
    let writable = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    assert_eq!(flags_of(&raw.ask(option::INFO, &export("disk", &[]))), common | writable);
    assert_eq!(flags_of(&raw.ask(option::INFO, &export("point", &[]))), common | READ_ONLY);
}

/// N23: a server that stops refuses options; ABORT is still answered.
#[test]
fn n23_options_while_stopping() {
    let catalog = Exports::default();
    let mut out = Vec::new();
    let mut handshake = Handshake::new(TlsPolicy::Off, &mut out);
    handshake.handle(&3_u32.to_be_bytes(), &catalog, Admission::Open, &mut out);
    let option = |option: u32| [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &[0; 4]].concat();
    for number in [option::LIST, option::GO, option::STARTTLS, option::STRUCTURED_REPLY, 99] {
        out.clear();
        handshake.handle(&option(number), &catalog, Admission::Stopping, &mut out);
        assert_eq!(out[12..16], rep::ERR_SHUTDOWN.to_be_bytes());
    }
    out.clear();
    handshake.handle(&option(option::ABORT), &catalog, Admission::Stopping, &mut out);
    assert_eq!(out[12..16], rep::ACK.to_be_bytes());
    out.clear();
    let (_, step) = handshake.handle(&option(option::EXPORT_NAME), &catalog, Admission::Stopping, &mut out);
    assert!(out.is_empty() && matches!(step, Step::Close));
}

/// N24: the limit on clients. Who comes too late is told so; when somebody has left, the next one is served.
#[test]
fn n24_too_many_clients() {
    let config = Config { max_connections: 3, ..Config::default() };
    let bench = Bench::with(Memory::new(SIZE, Pace::AtOnce), config, Tls::Off);
    let mut served: Vec<_> = (0..3).map(|_| bench.client()).collect();
    let mut raw = Raw::haggle(&bench.socket);
    let replies = raw.ask(option::GO, &export("disk", &[]));
    assert_eq!(replies[0].0, rep::ERR_POLICY);
    assert!(String::from_utf8_lossy(&replies[0].1).contains("as many clients"));
    assert_eq!(raw.ask(option::ABORT, &[]), [ACK]);
    raw.assert_closed();
    // However many come, those that are served are served.
    let crowd: Vec<_> =
        (0..200).map(|_| std::os::unix::net::UnixStream::connect(&bench.socket).unwrap()).collect();
    for client in &mut served {
        client.write(0, &[1; 512]).unwrap();
    }
    drop(crowd);
    served.pop().unwrap().disconnect().unwrap();
    bench.wait_for_connections(2);
    // Until the last of the crowd was seen to have gone, a newcomer may be turned away.
    let until = Instant::now() + TIMEOUT;
    let mut newcomer = loop {
        match Client::connect(&bench.address(), "disk", TIMEOUT) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    newcomer.write(0, &[2; 512]).unwrap();
}

/// The socket is its owner's; a stale file is replaced, anything else is left alone.
#[test]
fn socket_files() {
    let bench = Bench::new(Pace::AtOnce);
    let mode = std::fs::metadata(&bench.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Server::new(bench.exports.clone(), Config::default());
    let error = second.bind_unix(&bench.socket, Tls::Off).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    bench.client().flush().unwrap();

    let path = crate::memory::socket_path();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "what a dead process leaves behind");
    second.bind_unix(&path, Tls::Off).unwrap();
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    // Somebody else's file in the place of ours is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(second.stop(Stop::Disconnect), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let third = Server::new(Arc::new(Exports::default()), Config::default());
    assert_eq!(third.bind_unix(&path, Tls::Off).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}
