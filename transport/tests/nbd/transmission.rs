//! N09 to N22, request by request.

use crate::memory::{Bench, Memory, PAGE, Pace, Random, SIZE};
use crate::raw::{Part, Raw};
use engine::guest::{MAX_REQUEST_BYTES, Refusal};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use transport::block::Shape;
use transport::nbd::proto::{chunk, command, command_flag, state};
use transport::nbd::{Config, Tls};

const PERM: u32 = 1;
const IO: u32 = 5;
const INVAL: u32 = 22;
const NOSPC: u32 = 28;
const SHUTDOWN: u32 = 108;

/// N09: beyond the end; N10: the payload of a refused write is skipped, and the connection lives.
#[test]
fn n09_n10_beyond_the_end() {
    let bench = Bench::new(Pace::AtOnce);
    for mut raw in [Raw::simple(&bench.socket), Raw::structured(&bench.socket)] {
        for (offset, len) in [(SIZE, 512), (SIZE - 511, 512), (u64::MAX, 512), (u64::MAX - 511, 512)] {
            assert_eq!(raw.error_of(command::READ, 0, offset, len), INVAL);
            assert_eq!(raw.error_of(command::TRIM, 0, offset, len), INVAL);
            assert_eq!(raw.error_of(command::CACHE, 0, offset, len), INVAL);
            assert_eq!(raw.error_of(command::BLOCK_STATUS, 0, offset, len), INVAL);
            assert_eq!(raw.error_of(command::WRITE_ZEROES, 0, offset, len), NOSPC);
            // The payload looks like requests: none of it may be taken for one.
            raw.request(command::WRITE, 0, 5, offset, 28 * 40);
            for _ in 0..40 {
                raw.request(command::WRITE_ZEROES, 0, 6, 0, 512);
            }
            assert_eq!(raw.error(5), NOSPC);
        }
        assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), 0);
    }
    assert!(bench.disk.with(|state| state.requests) == 2, "the export saw two flushes only");
}

/// N10, N13: a write that is too long is refused, its payload skipped as it comes; the longest one works.
#[test]
fn n13_long_requests() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::simple(&bench.socket);
    let max = MAX_REQUEST_BYTES as usize;
    raw.request(command::WRITE, 0, 1, 0, MAX_REQUEST_BYTES + 1);
    assert_eq!(raw.error(1), INVAL, "before the payload");
    raw.put(&vec![0xee; max + 1]);
    assert_eq!(raw.error_of(command::READ, 0, 0, MAX_REQUEST_BYTES + 1), INVAL);
    assert_eq!(raw.error_of(command::READ, 0, 0, u32::MAX), INVAL);
    assert!(bench.disk.with(|state| state.pages.is_empty()));

    let data = Random(13).bytes(max);
    raw.request(command::WRITE, 0, 2, 12_345, MAX_REQUEST_BYTES);
    raw.put(&data);
    assert_eq!(raw.error(2), 0);
    raw.request(command::READ, 0, 3, 12_345, MAX_REQUEST_BYTES);
    assert_eq!(raw.error(3), 0);
    assert!(raw.take(max) == data);
    // These have no limit but the export's size.
    for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert_eq!(raw.error_of(command, 0, 512, u32::MAX), 0);
    }
    assert!(bench.disk.bytes(12_345, max) == vec![0; max]);

    let mut raw = Raw::simple(&bench.socket);
    raw.request(command::WRITE, 0, 1, 0, u32::MAX);
    assert_eq!(raw.error(1), INVAL, "4 GiB are refused without being kept");
}

/// N11: nothing to do is done; what is not aligned works, whether or not block sizes were asked for.
#[test]
fn n11_zero_length_and_unaligned() {
    let bench = Bench::new(Pace::AtOnce);
    for mut raw in [Raw::simple(&bench.socket), Raw::structured(&bench.socket)] {
        for command in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES, command::CACHE] {
            for flags in [0, command_flag::FUA] {
                assert_eq!(raw.error_of(command, flags, 4096, 0), 0, "command {command}");
            }
            assert_eq!(raw.error_of(command, 0, SIZE, 0), 0, "at the very end");
            assert_ne!(raw.error_of(command, 0, SIZE + 1, 0), 0, "behind the end");
        }
        assert_eq!(raw.error_of(command::BLOCK_STATUS, 0, 0, 0), INVAL);
    }
    let mut client = bench.client();
    let mut random = Random(11);
    let mut model = vec![0_u8; 3 * PAGE as usize];
    for _ in 0..500 {
        let start = random.below(model.len() as u64) as usize;
        let len = 1 + random.below((model.len() - start) as u64) as usize;
        match random.below(4) {
            0 => {
                let mut back = vec![0; len];
                client.read(start as u64, &mut back).unwrap();
                assert_eq!(back, model[start..start + len]);
            }
            1 => {
                client.write_zeroes(start as u64, len as u32).unwrap();
                model[start..start + len].fill(0);
            }
            _ => {
                let data = random.bytes(len);
                client.write(start as u64, &data).unwrap();
                model[start..start + len].copy_from_slice(&data);
            }
        }
    }
    assert_eq!(bench.disk.bytes(0, model.len()), model);
}

/// N12: unknown commands and flags; FUA on every command.
#[test]
fn n12_unknown_commands_and_flags() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::structured(&bench.socket);
    for command in [8, 9, 100, u16::MAX] {
        assert_eq!(raw.error_of(command, 0, 0, 512), INVAL);
    }
    for command in [command::READ, command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert_eq!(raw.error_of(command, 1 << 15, 0, 512), INVAL);
        raw.request(command, command_flag::FUA, 1, 0, 512);
        match raw.part() {
            Part::Simple { error: 0, .. } => {}
            Part::Chunk { kind: chunk::OFFSET_HOLE, .. } if command == command::READ => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(raw.error_of(command::FLUSH, command_flag::FUA, 0, 0), 0);
    raw.request(command::BLOCK_STATUS, command_flag::FUA, 1, 0, 512);
    assert!(matches!(raw.part(), Part::Chunk { kind: chunk::BLOCK_STATUS, .. }));
    for (offset, len) in [(512, 0), (0, 512)] {
        assert_eq!(raw.error_of(command::FLUSH, 0, offset, len), INVAL, "reserved fields");
    }
    // A write with a flag that is not its own still has its payload.
    raw.request(command::WRITE, command_flag::DF, 1, 0, 512);
    raw.put(&[9; 512]);
    assert_eq!(raw.error(1), INVAL);
    assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), 0);
    assert!(bench.disk.with(|state| state.pages.is_empty()));
}

/// N14: a client that is lost in the middle of a write: nothing of it is applied, what came whole is.
#[test]
fn n14_lost_in_mid_payload() {
    let bench = Bench::new(Pace::AtOnce);
    let cuts = [1, 4, 27, 28, 29, 28 + 511, 28 + 4095, 28 + 4096, 28 + 150_000, 28 + 299_999];
    for (round, cut) in cuts.into_iter().enumerate() {
        let mut raw = Raw::simple(&bench.socket);
        raw.request(command::WRITE, 0, 1, 0, 8);
        raw.put(&(round as u64).to_be_bytes());
        let torn = [&header(command::WRITE, PAGE, 300_000)[..], &vec![0xbb; 300_000]].concat();
        raw.put(&torn[..cut]);
        drop(raw);
        bench.disk.wait_until(|state| state.detached == round as u64 + 1);
        assert_eq!(bench.disk.bytes(0, 8), (round as u64).to_be_bytes());
        assert_eq!(bench.disk.with(|state| state.pages.len()), 1, "cut at {cut}");
    }
    bench.client().flush().unwrap();
}

/// N14: a client that is lost, or says goodbye, with answers outstanding: its requests take effect.
#[test]
fn n14_lost_with_answers_outstanding() {
    let bench = Bench::new(Pace::Held);
    for (round, polite) in [false, true].into_iter().enumerate() {
        let mut raw = Raw::simple(&bench.socket);
        for index in 0..100 {
            raw.request(command::WRITE, 0, index, (index + 1000 * round as u64) * PAGE, 8);
            raw.put(&index.to_be_bytes());
        }
        bench.disk.wait_until(|state| state.requests == 100 * (round as u64 + 1));
        if polite {
            raw.request(command::DISC, 0, 0, 0, 0);
            raw.request(command::WRITE_ZEROES, 0, 3, 0, 1 << 30);
        } else {
            // Both directions: the answers will find nobody.
            raw.stream.shutdown(Shutdown::Both).unwrap();
        }
        bench.disk.release();
        if polite {
            // All are answered, the goodbye and what follows it is not.
            raw.take(100 * 16);
            raw.assert_closed();
        }
        bench.disk.wait_until(|state| state.detached == round as u64 + 1);
        for index in 0..100_u64 {
            let at = (index + 1000 * round as u64) * PAGE;
            assert_eq!(bench.disk.bytes(at, 8), index.to_be_bytes());
        }
    }
}

/// N14: a client that has said all it has to say, and still listens, gets its answers.
#[test]
fn n14_half_closed() {
    let bench = Bench::new(Pace::Held);
    let mut raw = Raw::simple(&bench.socket);
    for cookie in 0..20 {
        raw.request(command::FLUSH, 0, cookie, 0, 0);
    }
    raw.stream.shutdown(Shutdown::Write).unwrap();
    bench.disk.wait_until(|state| state.requests == 20);
    bench.disk.release();
    let mut answers = Vec::new();
    raw.stream.read_to_end(&mut answers).unwrap();
    assert_eq!(answers.len(), 20 * 16);
}

/// N15: a wrong magic is the end; what came before it is carried out and answered, what comes behind is not.
#[test]
fn n15_wrong_magic() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::simple(&bench.socket);
    let mut bad = header(command::WRITE_ZEROES, 0, 4096);
    bad[0] ^= 1;
    let good = [&header(command::WRITE, 0, 8)[..], b"executed"].concat();
    raw.put(&[&good[..], &bad, &header(command::TRIM, 0, 4096)].concat());
    assert_eq!(raw.error(0), 0);
    raw.assert_closed();
    assert_eq!(bench.disk.bytes(0, 8), b"executed");
    assert_eq!(bench.disk.with(|state| state.requests), 1);
}

/// N16: many in flight, answered in another order, every cookie once; one cookie may be used for all.
#[test]
fn n16_pipelining() {
    let bench = Bench::new(Pace::Later);
    for same_cookie in [false, true] {
        let mut raw = Raw::simple(&bench.socket);
        let mut writer = Raw { stream: raw.stream.try_clone().unwrap() };
        let sender = std::thread::spawn(move || {
            for index in 0..5000_u64 {
                let cookie = if same_cookie { 42 } else { index };
                match index % 4 {
                    0 => {
                        writer.request(command::WRITE, 0, cookie, index * 512, 512);
                        writer.put(&[index as u8; 512]);
                    }
                    1 => writer.request(command::FLUSH, 0, cookie, 0, 0),
                    2 => {
                        writer.request(command::WRITE, command_flag::FUA, cookie, index * 512, 512);
                        writer.put(&[index as u8; 512]);
                    }
                    _ => writer.request(command::CACHE, 0, cookie, 0, 1 << 20),
                }
            }
        });
        let mut answered = BTreeMap::new();
        for _ in 0..5000 {
            match raw.part() {
                Part::Simple { error: 0, cookie } => *answered.entry(cookie).or_insert(0) += 1,
                other => panic!("{other:?}"),
            }
        }
        sender.join().unwrap();
        if same_cookie {
            assert_eq!(answered, BTreeMap::from([(42, 5000)]));
        } else {
            assert!(answered.len() == 5000 && answered.values().all(|count| *count == 1));
        }
        for index in (0..5000_u64).step_by(2) {
            assert_eq!(bench.disk.bytes(index * 512, 512), [index as u8; 512]);
        }
    }
}

/// N17: what one connection was told is true for all: a read sees the write, a flush covers it.
#[test]
fn n17_multi_conn() {
    let bench = Bench::new(Pace::Later);
    let mut clients: Vec<_> = (0..4).map(|_| bench.client()).collect();
    for round in 0..200_u64 {
        let (a, b, c) = (round as usize % 4, (round as usize + 1) % 4, (round as usize + 2) % 4);
        clients[a].write(round * 512, &[round as u8 + 1; 512]).unwrap();
        let mut back = [0; 512];
        clients[b].read(round * 512, &mut back).unwrap();
        assert_eq!(back, [round as u8 + 1; 512]);
        clients[c].flush().unwrap();
        let durable = bench.disk.with(|state| state.durable.get(&(round * 512 / PAGE)).cloned());
        let within = (round * 512 % PAGE) as usize;
        assert_eq!(durable.unwrap()[within..within + 512], [round as u8 + 1; 512]);
    }
}

/// N18: a flush or FUA that the export holds is not answered, while others are.
#[test]
fn n18_flush_waits_for_its_answer() {
    let bench = Bench::new(Pace::Held);
    let mut raw = Raw::simple(&bench.socket);
    raw.request(command::FLUSH, 0, 1, 0, 0);
    raw.request(command::WRITE, command_flag::FUA, 2, 0, 512);
    raw.put(&[1; 512]);
    bench.disk.wait_until(|state| state.requests == 2);
    bench.disk.with(|state| state.pace = Pace::AtOnce);
    // Answered in its place, if anything were wrong: the others were sent long before.
    assert_eq!(raw.error_of(command::CACHE, 0, 0, 512), 0);
    bench.disk.release();
    assert_eq!((raw.error(2), raw.error(1)), (0, 0));
}

/// N19: structured reads cover their range exactly once, holes as holes; DF is one chunk; errors are chunks.
#[test]
fn n19_structured_reads() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::structured(&bench.socket);
    raw.request(command::WRITE, 0, 1, 4 * PAGE + 100, 3 * PAGE as u32);
    raw.put(&vec![7; 3 * PAGE as usize]);
    assert_eq!(raw.error(1), 0);
    let (offset, len) = (1000, 16 * PAGE as usize);
    let model = bench.disk.bytes(offset, len);
    for flags in [0, command_flag::DF] {
        raw.request(command::READ, flags, 9, offset, len as u32);
        let mut back = vec![0xff; len];
        let mut kinds = Vec::new();
        loop {
            let Part::Chunk { flags, kind, cookie: 9, payload } = raw.part() else { panic!("not a chunk") };
            let start = (u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset) as usize;
            match kind {
                chunk::OFFSET_DATA => back[start..start + payload.len() - 8].copy_from_slice(&payload[8..]),
                chunk::OFFSET_HOLE => {
                    let len = u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize;
                    back[start..start + len].fill(0);
                }
                kind => panic!("chunk of type {kind}"),
            }
            kinds.push(kind);
            if flags == chunk::DONE {
                break;
            }
        }
        assert!(back == model);
        let expected: &[u16] = match flags {
            0 => &[chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE],
            _ => &[chunk::OFFSET_DATA],
        };
        assert_eq!(kinds, expected);
    }
    bench.disk.with(|state| state.refuse = Some(Refusal::Io));
    raw.request(command::READ, 0, 9, 0, 512);
    let error = Part::Chunk { flags: 1, kind: chunk::ERROR, cookie: 9, payload: vec![0, 0, 0, 5, 0, 0] };
    assert_eq!(raw.part(), error);
}

/// N20: extents cover the range, a hole reads as zeros, REQ_ONE gets one, no context gets EINVAL.
#[test]
fn n20_block_status() {
    let bench = Bench::new(Pace::AtOnce);
    let mut client = bench.client();
    let mut random = Random(20);
    for _ in 0..40 {
        let page = random.below(200);
        client.write(page * PAGE, &random.bytes(PAGE as usize)).unwrap();
    }
    for _ in 0..200 {
        let offset = random.below(150 * PAGE);
        let len = 1 + random.below(60 * PAGE) as u32;
        let stretches = client.block_status(offset, len).unwrap();
        assert_eq!(stretches.iter().map(|stretch| stretch.len).sum::<u64>(), u64::from(len));
        assert!(stretches.windows(2).all(|pair| pair[0].hole != pair[1].hole), "neighbours differ");
        let mut at = offset;
        for stretch in &stretches {
            let bytes = bench.disk.bytes(at, stretch.len as usize);
            assert!(!stretch.hole || bytes.iter().all(|byte| *byte == 0));
            at += stretch.len;
        }
    }
    let mut raw = Raw::structured(&bench.socket);
    raw.request(command::BLOCK_STATUS, command_flag::REQ_ONE, 1, 300 * PAGE, u32::MAX);
    let Part::Chunk { kind: chunk::BLOCK_STATUS, flags: chunk::DONE, payload, .. } = raw.part() else {
        panic!("no extents");
    };
    let hole = state::HOLE | state::ZERO;
    assert_eq!(payload[4..], [u32::MAX.to_be_bytes(), hole.to_be_bytes()].concat());
    assert_eq!(Raw::simple(&bench.socket).error_of(command::BLOCK_STATUS, 0, 0, 512), INVAL);
}

/// N21: zeroes and trims touch their range and nothing else; all their flags are taken; a refused one does nothing.
#[test]
fn n21_zeroes_and_trim() {
    let bench = Bench::new(Pace::AtOnce);
    let mut raw = Raw::simple(&bench.socket);
    let len = 8 * PAGE as usize;
    let all_flags = [0, command_flag::NO_HOLE, command_flag::FAST_ZERO, command_flag::FUA, 0x13];
    for (command, flags) in
        [(command::WRITE_ZEROES, &all_flags[..]), (command::TRIM, &[0, command_flag::FUA])]
    {
        for &flags in flags {
            raw.request(command::WRITE, 0, 1, 0, len as u32);
            raw.put(&vec![0xdd; len]);
            assert_eq!(raw.error(1), 0);
            assert_eq!(raw.error_of(command, flags, 1000, 3 * PAGE as u32), 0);
            let bytes = bench.disk.bytes(0, len);
            let end = 1000 + 3 * PAGE as usize;
            assert!(bytes[1000..end].iter().all(|byte| *byte == 0));
            assert!(bytes[..1000].iter().chain(&bytes[end..]).all(|byte| *byte == 0xdd));
            for (refusal, error) in [(Refusal::NoSpace, NOSPC), (Refusal::Io, IO)] {
                bench.disk.with(|state| state.refuse = Some(refusal));
                assert_eq!(raw.error_of(command, flags, 0, len as u32), error);
            }
            bench.disk.with(|state| state.refuse = None);
            assert_eq!(bench.disk.bytes(0, len), bytes);
        }
    }
}

/// N22: a read-only export refuses writes of every kind, payload and all, and serves the rest.
#[test]
fn n22_read_only() {
    let shape = Shape { size: SIZE, read_only: true, description: String::new() };
    let disk = Memory::with_shape(shape, Pace::AtOnce);
    let bench = Bench::with(disk, Config::default(), Tls::Off);
    let mut raw = Raw::simple(&bench.socket);
    raw.request(command::WRITE, 0, 1, 0, 4096);
    raw.put(&[1; 4096]);
    assert_eq!(raw.error(1), PERM);
    assert_eq!(raw.error_of(command::TRIM, 0, 0, 4096), PERM);
    assert_eq!(raw.error_of(command::WRITE_ZEROES, 0, 0, 4096), PERM);
    assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), 0);
    raw.request(command::READ, 0, 2, 0, 512);
    assert_eq!(raw.error(2), 0);
    assert_eq!(raw.take(512), [0; 512]);
}

/// N23: an export that is closed, shrunk or fenced under its client: each request gets its error, none hangs.
#[test]
fn n23_refusals_of_the_export() {
    let bench = Bench::new(Pace::Later);
    let mut raw = Raw::structured(&bench.socket);
    for (refusal, error) in [
        (Refusal::Shutdown, SHUTDOWN),
        (Refusal::ReadOnly, PERM),
        (Refusal::Io, IO),
        (Refusal::Invalid, INVAL),
        (Refusal::NoSpace, NOSPC),
    ] {
        bench.disk.with(|state| state.refuse = Some(refusal));
        for command in [command::READ, command::TRIM, command::WRITE_ZEROES, command::BLOCK_STATUS] {
            assert_eq!(raw.error_of(command, 0, 0, 512), error);
        }
        assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), error);
        raw.request(command::WRITE, 0, 1, 0, 512);
        raw.put(&[1; 512]);
        assert_eq!(raw.error(1), error);
    }
    bench.disk.with(|state| state.refuse = None);
    assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), 0, "and the connection has lived through it");
}

fn header(command: u16, offset: u64, len: u32) -> [u8; 28] {
    transport::nbd::request::Header { flags: 0, command, cookie: 0, offset, len }.encode()
}

/// A goodbye in the middle of everything leaves nothing behind that is stuck.
#[test]
fn n14_many_short_lives() {
    let bench = Bench::new(Pace::Later);
    let mut random = Random(14);
    for round in 0..200 {
        let mut raw = Raw::simple(&bench.socket);
        for index in 0..random.below(20) {
            raw.request(command::FLUSH, 0, index, 0, 0);
        }
        let stop = random.below(40) as usize;
        let _ = raw.stream.write_all(&header(command::WRITE, 0, 512)[..stop.min(28)]);
        if random.one_in(2) {
            let _ = raw.stream.shutdown(Shutdown::Both);
        }
        drop(raw);
        if round % 50 == 49 {
            bench.client().flush().unwrap();
        }
    }
    bench.wait_for_connections(0);
}
