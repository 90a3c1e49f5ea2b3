//! N23 to N25: how the server deals with slow, numerous and dead clients, and with its own end.

use crate::memory::{Bench, Memory, PAGE, Pace, Random, SIZE};
use crate::raw::Raw;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use transport::nbd::client::{Address, Answer, Client, Command, Durability};
use transport::nbd::pending::MAX_IN_FLIGHT;
use transport::nbd::proto::{Errno, command};
use transport::nbd::request::Header;
use transport::nbd::transmission::MAX_HELD_BYTES;
use transport::nbd::{Config, Stop, Tls};

/// N23: a server that stops for good answers what is in flight with ESHUTDOWN, on every connection.
#[test]
fn n23_stop_refuses_what_is_in_flight() {
    let bench = Bench::new(Pace::Held);
    let mut clients: Vec<_> = (0..5).map(|_| bench.client()).collect();
    for client in &mut clients {
        for _ in 0..50 {
            client.submit(&Command::Flush).unwrap();
        }
    }
    bench.disk.wait_until(|state| state.requests == 250);
    let idle_handshake = Raw::haggle(&bench.socket);
    assert_eq!(bench.server.stop(Stop::Refuse), 0);
    for client in &mut clients {
        for _ in 0..50 {
            assert_eq!(client.collect().unwrap().1, Err(Errno::Shutdown));
        }
        client.submit(&Command::Flush).and_then(|_| client.collect()).expect_err("the connection is closed");
    }
    let mut idle_handshake = idle_handshake;
    idle_handshake.assert_closed();
    UnixStream::connect(&bench.socket).expect_err("nobody listens");
    // Answers that come now find nobody, and that is all.
    bench.disk.release();
    assert_eq!(bench.server.stop(Stop::Refuse), 0, "once more is no mistake");
}

/// N23: a server that restarts lets what is in flight be answered, and takes nothing more.
#[test]
fn n23_stop_for_a_restart_answers_what_is_in_flight() {
    let bench = Bench::new(Pace::Held);
    let mut client = bench.client();
    for _ in 0..50 {
        client.submit(&Command::Flush).unwrap();
    }
    bench.disk.wait_until(|state| state.requests == 50);
    thread::scope(|scope| {
        let stopped = scope.spawn(|| bench.server.stop(Stop::Disconnect));
        while UnixStream::connect(&bench.socket).is_ok() {
            thread::yield_now();
        }
        bench.disk.release();
        assert_eq!(stopped.join().unwrap(), 0);
    });
    for _ in 0..50 {
        assert_eq!(client.collect().unwrap().1, Ok(Answer::Done));
    }
    assert_eq!(bench.disk.with(|state| state.requests), 50);
}

/// N23: an export that does not let go of a thread holds up the end for the time of grace, and no longer; its
/// client is told.
#[test]
fn n23_stop_with_an_export_that_is_stuck() {
    let config = Config { grace: Duration::from_millis(50), ..Config::default() };
    let bench = Bench::with(Memory::new(SIZE, Pace::Stuck), config, Tls::Off);
    let mut client = bench.client();
    client.submit(&Command::Flush).unwrap();
    bench.disk.wait_until(|state| state.stuck == 1);
    assert_eq!(bench.server.stop(Stop::Refuse), 1);
    assert_eq!(client.collect().unwrap().1, Err(Errno::Shutdown));
    bench.disk.with(|state| state.pace = Pace::AtOnce);
    bench.wait_for_connections(0);
    assert_eq!(bench.disk.with(|state| state.detached), 1);
}

/// N24: clients that ask for much and read nothing stop themselves only, though one thread answers all of them.
#[test]
fn n24_slow_readers() {
    const ASKED: usize = 4 * (MAX_HELD_BYTES >> 20);
    let bench = Bench::new(Pace::Later);
    let mut writer = bench.client();
    writer.write(0, &Random(24).bytes(1 << 20)).unwrap();
    let mut slow: Vec<_> = (0..4).map(|_| Raw::simple(&bench.socket)).collect();
    for raw in &mut slow {
        raw.stream.set_nonblocking(true).unwrap();
        // More than the server holds for one client: it must stop reading requests, not forget the limit.
        let header = Header { flags: 0, command: command::READ, cookie: 1, offset: 0, len: 1 << 20 };
        let many = header.encode().repeat(ASKED);
        let _ = std::io::Write::write(&mut raw.stream, &many).unwrap();
    }
    for round in 0..300_u64 {
        writer.write(round * PAGE, &[round as u8; 4096]).unwrap();
        let mut back = [0; 4096];
        writer.read(round * PAGE, &mut back).unwrap();
        assert_eq!(back, [round as u8; 4096]);
        writer.flush().unwrap();
    }
    // What the server holds for each, and what the system does: its socket buffers are no larger than that.
    let asked_by_slow = bench.disk.with(|state| state.requests) - 901;
    assert!(asked_by_slow < 4 * ((MAX_HELD_BYTES + (32 << 20)) >> 20) as u64, "{asked_by_slow}");
    // One of them comes to its senses: everything it asked for is there.
    let raw = &mut slow[0];
    raw.stream.set_nonblocking(false).unwrap();
    for _ in 0..ASKED {
        assert_eq!(raw.error(1), 0);
        raw.take(1 << 20);
    }
    // The others just vanish; the end of the bench waits for all connections.
}

/// N24: more requests in flight than the limit wait in the socket, and are answered in time.
#[test]
fn n24_in_flight_cap() {
    let bench = Bench::new(Pace::Held);
    let mut raw = Raw::simple(&bench.socket);
    let many = MAX_IN_FLIGHT + 500;
    let mut all = Vec::new();
    for cookie in 0..many as u64 {
        let header = Header { flags: 0, command: command::FLUSH, cookie, offset: 0, len: 0 };
        all.extend_from_slice(&header.encode());
    }
    raw.put(&all);
    bench.disk.wait_until(|state| state.requests == MAX_IN_FLIGHT as u64);
    assert_eq!(bench.disk.held(), MAX_IN_FLIGHT);
    bench.disk.release();
    bench.disk.wait_until(|state| state.requests == many as u64);
    bench.disk.release();
    let mut answered: Vec<u64> = (0..many)
        .map(|_| match raw.part() {
            crate::raw::Part::Simple { error: 0, cookie } => cookie,
            other => panic!("{other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..many as u64).collect::<Vec<_>>());
}

/// N24: a hundred clients at depth, each on its own part of the disk, on both kinds of socket.
#[test]
fn n24_many_connections() {
    let bench = Bench::new(Pace::Later);
    let tcp = bench.server.bind_tcp("127.0.0.1:0", Tls::Off).unwrap();
    thread::scope(|scope| {
        for number in 0..100_u64 {
            let address = if number % 2 == 0 { bench.address() } else { Address::Tcp(tcp) };
            scope.spawn(move || {
                let client = Client::connect(&address, "disk", crate::memory::TIMEOUT).unwrap();
                work_at_depth(client, number << 30, Random(number));
            });
        }
    });
    bench.wait_for_connections(0);
    assert_eq!(bench.disk.with(|state| state.detached), 100);
}

/// Writes, zeroes and reads at depth 16 on ranges that do not overlap while in flight; checks every read.
fn work_at_depth(mut client: Client, base: u64, mut random: Random) {
    const SLOTS: usize = 16;
    const SLOT_BYTES: usize = 10_000;
    let mut model = vec![vec![0; SLOT_BYTES]; SLOTS];
    let mut busy: BTreeMap<u64, (usize, Option<Vec<u8>>)> = BTreeMap::new();
    let mut free: Vec<usize> = (0..SLOTS).collect();
    for _ in 0..200 {
        if let Some(slot) = free.pop() {
            let offset = base + (slot * SLOT_BYTES) as u64;
            let (command, expected) = match random.below(4) {
                0 => (Command::Read { offset, len: SLOT_BYTES as u32 }, Some(model[slot].clone())),
                1 => {
                    model[slot].fill(0);
                    let durability = Durability::Durable;
                    (Command::Zero { offset, len: SLOT_BYTES as u32, durability }, None)
                }
                _ => {
                    model[slot] = random.bytes(SLOT_BYTES);
                    let data = Bytes::copy_from_slice(&model[slot]);
                    let durability =
                        if random.one_in(3) { Durability::Durable } else { Durability::Volatile };
                    (Command::Write { offset, data, durability }, None)
                }
            };
            let cookie = client.submit(&command).unwrap();
            busy.insert(cookie, (slot, expected));
        }
        if free.is_empty() || random.one_in(2) {
            let (cookie, answer) = client.collect().unwrap();
            let (slot, expected) = busy.remove(&cookie).unwrap();
            assert_eq!(answer, Ok(expected.map_or(Answer::Done, Answer::Data)));
            free.push(slot);
        }
    }
    while client.in_flight() > 0 {
        let (cookie, answer) = client.collect().unwrap();
        let (_, expected) = busy.remove(&cookie).unwrap();
        assert_eq!(answer, Ok(expected.map_or(Answer::Done, Answer::Data)));
    }
    let mut all = vec![0; SLOTS * SLOT_BYTES];
    client.read(base, &mut all).unwrap();
    assert_eq!(all, model.concat());
    client.disconnect().unwrap();
}

/// N25: what the kernel's client does with `-C 4` and after a loss: several connections of one guest come and go,
/// the disk stays.
#[test]
fn n25_connections_of_one_guest_come_back() {
    let bench = Bench::new(Pace::Later);
    let mut clients: Vec<_> = (0..4).map(|_| bench.client()).collect();
    for round in 0..50_u64 {
        let index = round as usize % 4;
        clients[index].write(round * PAGE, &[round as u8; 4096]).unwrap();
        clients[index] = bench.client();
        let mut back = [0; 4096];
        clients[index].read(round * PAGE, &mut back).unwrap();
        assert_eq!(back, [round as u8; 4096]);
    }
}

/// An export that panics costs its connection, not the server.
#[test]
fn a_panic_in_an_export_ends_one_connection() {
    let bench = Bench::new(Pace::AtOnce);
    let mut other = bench.client();
    let mut raw = Raw::simple(&bench.socket);
    bench.disk.with(|state| state.panic_next = true);
    raw.request(command::FLUSH, 0, 1, 0, 0);
    let mut rest = Vec::new();
    raw.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    bench.disk.wait_until(|state| state.detached == 1);
    other.write(0, b"unharmed").unwrap();
    bench.wait_for_connections(1);
}
