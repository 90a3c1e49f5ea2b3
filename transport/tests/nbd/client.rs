//! The project's own client: across a restart of the server, as a disk, and against a server that lies.

use crate::memory::{Bench, Memory, PAGE, Pace, Random, SIZE, TIMEOUT, socket_path};
use bytes::Bytes;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use transport::nbd::client::{
    Address, Answer, Client, Command, Disk, Durability, Error, Reconnecting, Retry,
};
use transport::nbd::proto::{Errno, OPTION_MAGIC, OPTION_REPLY_MAGIC, rep};
use transport::nbd::{Config, Server, Stop, Tls};

/// N25: a guest goes on across restarts of the server without noticing, whatever was in flight.
#[test]
fn n25_a_guest_goes_on_across_restarts() {
    let bench = Bench::new(Pace::Later);
    let path = socket_path();
    let start = || {
        let server = Server::new(bench.exports.clone(), Config::default());
        server.bind_unix(&path, Tls::Off).unwrap();
        server
    };
    let first = start();
    let done = Arc::new(AtomicBool::new(false));
    let guest = thread::spawn({
        let (path, done) = (path.clone(), done.clone());
        move || {
            let retry = Retry::default();
            let mut guest = Reconnecting::connect(Address::Unix(path), "disk", TIMEOUT, retry).unwrap();
            let mut random = Random(25);
            let mut model = vec![0; 64 * 512];
            while !done.load(Ordering::Relaxed) || guest.reconnections() < 3 {
                for slot in 0..64_usize {
                    let data = random.bytes(512);
                    model[slot * 512..][..512].copy_from_slice(&data);
                    let durability = if slot % 8 == 0 { Durability::Durable } else { Durability::Volatile };
                    let command =
                        Command::Write { offset: slot as u64 * 512, data: Bytes::from(data), durability };
                    guest.submit(&command).unwrap();
                }
                guest.submit(&Command::Flush).unwrap();
                while guest.in_flight() > 0 {
                    assert_eq!(guest.collect().unwrap().1, Ok(Answer::Done));
                }
                guest.submit(&Command::Read { offset: 0, len: model.len() as u32 }).unwrap();
                assert_eq!(guest.collect().unwrap().1, Ok(Answer::Data(model.clone())));
            }
            model
        }
    });
    let mut server = first;
    for _ in 0..6 {
        let before = bench.disk.with(|state| state.requests);
        bench.disk.wait_until(|state| state.requests > before + 200);
        server.stop(Stop::Disconnect);
        drop(server);
        server = start();
    }
    done.store(true, Ordering::Relaxed);
    let model = guest.join().unwrap();
    assert_eq!(bench.disk.bytes(0, model.len()), model);
}

/// A server that is not there yet is waited for; one that never comes is given up.
#[test]
fn n25_giving_up() {
    let retry = Retry { pause: Duration::from_millis(5), give_up_after: Duration::from_millis(50) };
    let error = Reconnecting::connect(Address::Unix(socket_path()), "disk", TIMEOUT, retry).unwrap_err();
    assert!(matches!(error, Error::Io(_)));
    let bench = Bench::new(Pace::AtOnce);
    let error = Reconnecting::connect(bench.address(), "dusk", TIMEOUT, retry).unwrap_err();
    assert!(matches!(error, Error::Refused { code: rep::ERR_UNKNOWN, .. }), "{error}");
}

#[test]
fn a_disk_reads_writes_and_seeks() {
    let bench = Bench::with(Memory::new(10_000, Pace::AtOnce), Config::default(), Tls::Off);
    let mut disk = Disk::new(bench.client());
    disk.seek(SeekFrom::Start(5000)).unwrap();
    disk.write_all(&[3; 5000]).unwrap();
    assert_eq!(disk.write(&[1]).unwrap(), 0, "a disk does not grow");
    disk.flush().unwrap();
    assert_eq!(bench.disk.with(|state| state.durable.len()), 2);
    assert_eq!(disk.seek(SeekFrom::End(-5001)).unwrap(), 4999);
    let mut rest = Vec::new();
    disk.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [&[0][..], &[3; 5000]].concat());
    assert_eq!(disk.seek(SeekFrom::Current(-10_000)).unwrap(), 0);
    disk.seek(SeekFrom::Current(-1)).unwrap_err();
    disk.seek(SeekFrom::Start(20_000)).unwrap();
    assert_eq!(disk.read(&mut [0]).unwrap(), 0);
}

#[test]
fn long_reads_and_writes_are_cut_up() {
    let bench = Bench::new(Pace::AtOnce);
    let mut client = bench.client();
    let data: Vec<u8> = (0..40_u32 << 20).map(|index| (index >> 12) as u8 ^ index as u8).collect();
    client.write(77, &data).unwrap();
    let mut back = vec![0; data.len()];
    client.read(77, &mut back).unwrap();
    assert!(back == data);
    assert_eq!(bench.disk.with(|state| state.requests), 4);
    assert_eq!(client.size(), SIZE);
    assert!(!client.is_read_only());
    client.trim(0, PAGE as u32).unwrap();
    let error = client.read(SIZE, &mut [0]).unwrap_err();
    assert!(matches!(error, Error::Remote(Errno::Inval)));
    client.flush().unwrap();
}

/// Answers that break the protocol are told apart from lost connections, and nothing is allocated for them.
#[test]
fn a_server_that_lies() {
    let read = Command::Read { offset: 4096, len: 1024 };
    let chunk = |flags: u16, kind: u16, payload: &[u8]| {
        let head = [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &1_u64.to_be_bytes()].concat();
        [&0x668e_33ef_u32.to_be_bytes()[..], &head, &(payload.len() as u32).to_be_bytes(), payload].concat()
    };
    let data = |offset: u64, len: usize| [&offset.to_be_bytes()[..], &vec![7; len]].concat();
    let hole = |offset: u64, len: u32| [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("wrong magic", vec![0; 16]),
        ("unknown cookie", [&0x6744_6698_u32.to_be_bytes()[..], &[0; 12]].concat()),
        ("before the range", chunk(1, 1, &data(4095, 1024))),
        ("behind the range", chunk(1, 1, &data(4097, 1024))),
        ("too long", chunk(1, 1, &data(4096, 1025))),
        ("a huge hole", chunk(1, 2, &hole(4096, u32::MAX))),
        ("an overflowing hole", chunk(1, 2, &hole(u64::MAX, 1024))),
        ("an empty hole", chunk(1, 2, &hole(4096, 0))),
        ("overlap", [chunk(0, 1, &data(4096, 600)), chunk(1, 2, &hole(4600, 520))].concat()),
        ("a gap", chunk(1, 1, &data(4096, 1023))),
        ("nothing", chunk(1, 0, &[])),
        ("a long nothing", chunk(1, 0, &[1])),
        ("extents", chunk(1, 5, &[0; 12])),
        ("an unknown chunk", chunk(1, 77, &[0; 12])),
        ("a short error", chunk(1, 0x8001, &[0; 5])),
    ];
    for (what, lie) in lies {
        let mut client = lied_to(lie);
        client.submit(&read).unwrap();
        let error = client.collect().expect_err(what);
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
    }
    let truth = [chunk(0, 2, &hole(4608, 512)), chunk(1, 1, &data(4096, 512))].concat();
    let mut client = lied_to(truth);
    client.submit(&read).unwrap();
    let expected = [vec![7; 512], vec![0; 512]].concat();
    assert_eq!(client.collect().unwrap(), (1, Ok(Answer::Data(expected))), "chunks in any order");
    let mut client = lied_to(chunk(0, 2, &hole(4608, 512))[..10].to_vec());
    client.submit(&read).unwrap();
    assert!(matches!(client.collect(), Err(Error::Io(_))), "an end in the middle is a lost connection");
}

/// A client of a server that goes through the handshake, then says this.
fn lied_to(lie: Vec<u8>) -> Client {
    let path = socket_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let skip = |stream: &mut std::os::unix::net::UnixStream, len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let greeting = [&0x4e42_444d_4147_4943_u64.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &[0, 3]];
        stream.write_all(&greeting.concat()).unwrap();
        skip(&mut stream, 4);
        for _ in 0..3 {
            let header = skip(&mut stream, 16);
            skip(&mut stream, u32::from_be_bytes(header[12..].try_into().unwrap()) as usize);
            let reply = |kind: u32, data: &[u8]| {
                let magic = OPTION_REPLY_MAGIC.to_be_bytes();
                let len = (data.len() as u32).to_be_bytes();
                [&magic[..], &header[8..12], &kind.to_be_bytes(), &len, data].concat()
            };
            if header[11] == 7 {
                let info = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0, 1]].concat();
                stream.write_all(&reply(rep::INFO, &info)).unwrap();
            }
            stream.write_all(&reply(rep::ACK, &[])).unwrap();
        }
        skip(&mut stream, 28);
        stream.write_all(&lie).unwrap();
    });
    let client = Client::connect(&Address::Unix(path.clone()), "x", TIMEOUT).unwrap();
    std::fs::remove_file(path).unwrap();
    client
}
