//! N07: TLS.

use crate::memory::{Bench, Memory, Pace, Random, SIZE, TIMEOUT};
use crate::raw::{Raw, export, meta};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use transport::nbd::proto::{BASE_ALLOCATION, command, option, rep};
use transport::nbd::{Config, Tls};

struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn new() -> Identity {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Identity { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's configuration; with `clients`, one that demands their certificate.
fn server(identity: &Identity, clients: Option<&Identity>) -> Arc<ServerConfig> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(clients.roots(), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    Arc::new(builder.with_single_cert(vec![identity.certificate.clone()], identity.key()).unwrap())
}

fn tls_client(
    server: &Identity,
    own: Option<&Identity>,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConnection {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(server.roots());
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_auth_cert(vec![own.certificate.clone()], own.key()).unwrap(),
    };
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

type Secure = Raw<StreamOwned<ClientConnection, UnixStream>>;

fn start_tls(mut raw: Raw<UnixStream>, client: ClientConnection) -> Secure {
    assert_eq!(raw.ask(option::STARTTLS, &[]), [(rep::ACK, vec![])]);
    Raw { stream: StreamOwned::new(client, raw.stream) }
}

fn bench(tls: Tls) -> Bench {
    Bench::with(Memory::new(SIZE, Pace::Later), Config::default(), tls)
}

/// Reads and writes of all sizes through TLS, at depth.
fn exercise<S: Read + Write>(raw: &mut Raw<S>) {
    let mut random = Random(7);
    for len in [1, 511, 4096, 16_383, 16_385, 300_000, 5 << 20] {
        let data = random.bytes(len);
        raw.request(command::WRITE, 0, 1, 1000, len as u32);
        raw.put(&data);
        assert_eq!(raw.error(1), 0);
        for cookie in 0..8 {
            raw.request(command::READ, 0, cookie, 1000, len as u32);
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            let crate::raw::Part::Simple { error: 0, cookie } = raw.part() else { panic!("no simple reply") };
            seen.push(cookie);
            assert!(raw.take(len) == data);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<_>>());
        assert_eq!(raw.error_of(command::FLUSH, 0, 0, 0), 0);
    }
}

#[test]
fn n07_offered() {
    let identity = Identity::new();
    let bench = bench(Tls::Offered(server(&identity, None)));
    let mut plain = Raw::simple(&bench.socket);
    exercise(&mut plain);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut raw = Raw::haggle(&bench.socket);
        // What was agreed upon in the clear is void afterwards.
        raw.ask(option::STRUCTURED_REPLY, &[]);
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &meta("disk", &[BASE_ALLOCATION])).len(), 2);
        let mut raw = start_tls(raw, tls_client(&identity, None, version));
        assert_eq!(raw.refused(option::STARTTLS, &[]), rep::ERR_INVALID, "TLS in TLS");
        assert_eq!(raw.refused(option::SET_META_CONTEXT, &meta("disk", &[])), rep::ERR_INVALID);
        assert_eq!(raw.ask(option::LIST, &[]).len(), 2);
        raw.go("disk", &[]);
        exercise(&mut raw);
        raw.request(command::DISC, 0, 0, 0, 0);
        let mut rest = Vec::new();
        raw.stream.read_to_end(&mut rest).expect("TLS is shut down properly");
        assert!(rest.is_empty());
    }
}

#[test]
fn n07_required() {
    let identity = Identity::new();
    let bench = bench(Tls::Required(server(&identity, None)));
    let mut raw = Raw::haggle(&bench.socket);
    for option in [option::LIST, option::STRUCTURED_REPLY, option::EXTENDED_HEADERS, 99] {
        assert_eq!(raw.refused(option, &[]), rep::ERR_TLS_REQD);
    }
    for option in [option::GO, option::INFO] {
        assert_eq!(raw.refused(option, &export("disk", &[])), rep::ERR_TLS_REQD);
        assert_eq!(raw.refused(option, &export("dusk", &[])), rep::ERR_TLS_REQD, "nothing is told");
    }
    let mut raw = start_tls(raw, tls_client(&identity, None, &rustls::version::TLS13));
    assert_eq!(raw.refused(option::GO, &export("dusk", &[])), rep::ERR_UNKNOWN);
    raw.go("disk", &[]);
    exercise(&mut raw);

    let mut raw = Raw::haggle(&bench.socket);
    raw.put_option(option::EXPORT_NAME, b"disk");
    raw.assert_closed();
    let mut raw = Raw::haggle(&bench.socket);
    assert_eq!(raw.ask(option::ABORT, &[]), [(rep::ACK, vec![])]);
}

/// A client that does not understand refusals is not offered TLS, and gets nothing where it is required.
#[test]
fn n07_clients_without_fixed_newstyle() {
    let identity = Identity::new();
    let bench = bench(Tls::Offered(server(&identity, None)));
    let mut raw = Raw::connect(&bench.socket);
    raw.put(&[0; 4]);
    assert_eq!(raw.refused(option::STARTTLS, &[]), rep::ERR_POLICY);
}

/// A stranger, and one who speaks no TLS at all, end there; others are not troubled.
#[test]
fn n07_failed_handshakes() {
    let (identity, friend, stranger) = (Identity::new(), Identity::new(), Identity::new());
    let config = Config { handshake_timeout: Duration::from_secs(2), ..Config::default() };
    let tls = Tls::Required(server(&identity, Some(&friend)));
    let bench = Bench::with(Memory::new(SIZE, Pace::Later), config, tls);
    let mut friends = {
        let client = tls_client(&identity, Some(&friend), &rustls::version::TLS13);
        start_tls(Raw::haggle(&bench.socket), client)
    };
    friends.go("disk", &[]);
    for own in [None, Some(&stranger)] {
        let client = tls_client(&identity, own, &rustls::version::TLS13);
        let mut raw = start_tls(Raw::haggle(&bench.socket), client);
        // The client's half may be done before the server's refusal is here.
        let sent = raw.stream.write_all(&[0; 16]).and_then(|()| raw.stream.flush());
        let mut byte = [0];
        let heard = sent.and_then(|()| raw.stream.read(&mut byte));
        assert!(matches!(heard, Err(_) | Ok(0)), "{heard:?}");
    }
    let mut garbage = Raw::haggle(&bench.socket);
    assert_eq!(garbage.ask(option::STARTTLS, &[]).len(), 1);
    garbage.put(&[0x5a; 100]);
    let mut alert = Vec::new();
    let _ = garbage.stream.read_to_end(&mut alert);
    assert!(alert.len() < 100, "an alert at most");
    // Options in the clear, right behind STARTTLS: whoever put them there, they are not taken for options.
    let mut injected = Raw::haggle(&bench.socket);
    let header =
        |option: u32| [&0x4948_4156_454f_5054_u64.to_be_bytes()[..], &option.to_be_bytes(), &[0; 4]].concat();
    injected.put(&[header(option::STARTTLS), header(option::ABORT), header(option::LIST)].concat());
    assert_eq!(injected.option_reply(option::STARTTLS), (rep::ACK, vec![]));
    let mut rest = Vec::new();
    let _ = injected.stream.read_to_end(&mut rest);
    assert!(!rest.windows(8).any(|window| window == 0x0003_e889_0455_65a9_u64.to_be_bytes()));
    // One that says nothing after STARTTLS runs into the deadline.
    let mut silent = Raw::haggle(&bench.socket);
    silent.ask(option::STARTTLS, &[]);
    silent.assert_closed();
    exercise(&mut friends);
}

/// TLS over TCP, with a slow reader beside.
#[test]
fn n07_tcp_with_a_slow_reader() {
    let identity = Identity::new();
    let bench = bench(Tls::Off);
    let address = bench.server.bind_tcp("127.0.0.1:0", Tls::Required(server(&identity, None))).unwrap();
    let connect = || {
        let stream = TcpStream::connect::<SocketAddr>(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut raw = Raw { stream };
        raw.take(18);
        raw.put(&3_u32.to_be_bytes());
        assert_eq!(raw.ask(option::STARTTLS, &[]), [(rep::ACK, vec![])]);
        let client = tls_client(&identity, None, &rustls::version::TLS13);
        let mut raw = Raw { stream: StreamOwned::new(client, raw.stream) };
        raw.go("disk", &[]);
        raw
    };
    let mut slow = connect();
    for cookie in 0..40 {
        slow.request(command::READ, 0, cookie, 0, 1 << 20);
    }
    exercise(&mut connect());
    for _ in 0..40 {
        assert!(matches!(slow.part(), crate::raw::Part::Simple { error: 0, .. }));
        slow.take(1 << 20);
    }
}

/// N08 under TLS: neither a record nor a TLS handshake that comes byte by byte keeps a handshake alive.
#[test]
fn n08_slow_handshakes_under_tls() {
    let identity = Identity::new();
    let config = Config { handshake_timeout: Duration::from_millis(500), ..Config::default() };
    let tls = Tls::Offered(server(&identity, None));
    let bench = Bench::with(Memory::new(SIZE, Pace::Later), config, tls);
    let drip = |stream: &mut UnixStream| {
        // The header of a long record; then its body, one byte at a time.
        let _ = stream.write_all(&[0x17, 3, 3, 0x40, 0]);
        while stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let raw = Raw::haggle(&bench.socket);
    let mut raw = start_tls(raw, tls_client(&identity, None, &rustls::version::TLS13));
    assert_eq!(raw.ask(option::LIST, &[]).len(), 2);
    drip(&mut raw.stream.sock);
    let mut raw = Raw::haggle(&bench.socket);
    assert_eq!(raw.ask(option::STARTTLS, &[]).len(), 1);
    drip(&mut raw.stream);
    bench.wait_for_connections(0);
}
