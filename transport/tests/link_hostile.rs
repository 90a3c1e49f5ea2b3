//! A listener among hostile peers, over real QUIC on loopback (R18, R19): whatever they do, a session beside
//! them goes on undisturbed.

mod common;

use bytes::Bytes;
use common::certs::{Ca, Leaf, Validity};
use common::nodes::{Link, Origin, Replica, patient_dial, patient_serve, until};
use common::{Rng, samples};
use engine::peer::{Ask, Hello, Jump, Needs, Rebuff};
use engine::types::{GroupId, Lsn, Position};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::net::SocketAddr;
use std::sync::Arc;
use transport::link::ALPN;
use transport::link::decoder::{Accept, Decoder};
use transport::link::driver::{Code, Source};
use transport::link::frame::{Frame, Kind, MAX_BATCH_BYTES, Offer};
use transport::link::sender::Want;
use transport::link::serve;
use transport::link::session::{FEATURES, SPANS};

/// Believes any server, as an attacker does.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

/// A QUIC client that keeps no rule.
fn raw_client(leaf: Option<&Leaf>, alpn: &[u8]) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match leaf {
        None => config.with_no_client_auth(),
        Some(leaf) => {
            let chain =
                CertificateDer::pem_slice_iter(leaf.chain.as_bytes()).map(|der| der.expect("PEM")).collect();
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("PEM");
            config.with_client_auth_cert(chain, key).expect("a key that fits")
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = true;
    let crypto = QuicClientConfig::try_from(config).expect("a usable suite");
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut pieces = Vec::new();
    frame.encode(&mut pieces).expect("within the limits");
    pieces.concat()
}

/// As the version before any feature says it.
fn hello(origin: &Origin) -> Vec<u8> {
    hello_with(origin, 0)
}

fn hello_with(origin: &Origin, features: u64) -> Vec<u8> {
    let hello: Hello = origin.hello().expect("a primary");
    encode(&Frame::Hello(Offer { minor: 0, features, hello }))
}

/// The frames that come back, until there is one that `wanted` accepts.
async fn expect(stream: &mut quinn::RecvStream, mut wanted: impl FnMut(&Frame) -> bool) -> Frame {
    let mut decoder = Decoder::new(Accept::Control);
    loop {
        let chunk = stream.read_chunk(4096, true).await.expect("the connection lives").expect("more to come");
        decoder.push(chunk.bytes);
        while let Some(frame) = decoder.poll().expect("a frame") {
            if wanted(&frame) {
                return frame;
            }
        }
    }
}

/// The code that the listener closes the connection with.
async fn closed_with(connection: &quinn::Connection) -> u64 {
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("closed by {other}"),
    }
}

/// A listener with one good session, and what it takes to attack it with a good certificate: `mallory` has a
/// right, but to another group.
struct Stage {
    ca: Ca,
    origin: Arc<Origin>,
    own: Arc<Origin>,
    replica: Replica,
    _link: Link,
    mallory: Leaf,
}

impl Stage {
    async fn set(config: serve::Config) -> Stage {
        let ca = Ca::new();
        let [origin, own] = ["orders", "mallorys"].map(Origin::new);
        let replica = Replica::start(&ca, &[&origin, &own], config);
        let grants = replica.trust.borrow().grants.clone();
        let grants = grants.and(&common::certs::name("mallory"), "mallorys");
        replica.reload(ca.node("west"), grants);
        let link = Link::dial(ca.node("east"), &origin, replica.address, patient_dial());
        origin.write(100, 1_000);
        origin.all_acked().await;
        let mallory = ca.issue("mallory", 66, Validity::Now);
        Stage { ca, origin, own, replica, _link: link, mallory }
    }

    fn address(&self) -> SocketAddr {
        self.replica.address
    }

    async fn connect(&self, client: &quinn::Endpoint) -> quinn::Connection {
        client.connect(self.address(), "x.invalid").expect("started").await.expect("a good certificate")
    }

    /// The good session has noticed nothing.
    async fn invariant_undisturbed(&self) {
        self.origin.write(100, 1_000);
        self.origin.all_acked().await;
        self.replica.copy(&self.origin).invariant_equal(&self.origin);
        assert_eq!(self.origin.told(|told| told.downs().len()), 0);
    }
}

/// No certificate, one of another CA, another protocol version (R18): the handshake ends there, many times over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_get_past_the_handshake() {
    let stage = Stage::set(patient_serve()).await;
    let stranger = Ca::new().issue("east", 1, Validity::Now);
    let clients = [
        raw_client(None, ALPN),
        raw_client(Some(&stranger), ALPN),
        raw_client(Some(&stage.mallory), b"landfall/2"),
    ];
    for _ in 0..20 {
        for client in &clients {
            let connected = client.connect(stage.address(), "x.invalid").expect("started").await;
            // TLS 1.3 lets a client believe for a moment that it is in.
            if let Ok(connection) = connected {
                let error = connection.closed().await;
                assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
            }
        }
    }
    until("all are counted", || (stage.replica.counts)().handshakes_failed >= 60).await;
    stage.invariant_undisturbed().await;
    assert_eq!((stage.replica.counts)().welcomed, 1);
}

/// With a good certificate, but against the protocol: each is told so by the code, and nothing else happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_end_the_connection_that_commits_them() {
    let stage = Stage::set(patient_serve()).await;
    let hello = hello(&stage.own);
    let header = |kind: u8, len: u32| [&[kind, 0, 0, 0][..], &len.to_le_bytes()].concat();
    let after = |frame: Vec<u8>| [hello.clone(), frame].concat();
    let spans = |frames: &[Frame]| {
        let frames = frames.iter().map(encode).collect::<Vec<_>>().concat();
        [hello_with(&stage.own, SPANS), frames].concat()
    };
    // The replica stands at the very beginning, as its log is empty.
    let jump = |to: u64| Jump { from: Position::default(), to: samples::jump(0, to).to };
    let ack = encode(&Frame::Ack(samples::position(2, 1)));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("noise", Rng(1).bytes(4_096)),
        ("unknown kind", header(0x7F, 0)),
        ("oversized hello", header(Kind::Hello as u8, u32::MAX)),
        ("batch before the hello", encode(&Frame::Batch(samples::batch(1, 1, 100)))),
        ("ack before the hello", ack.clone()),
        ("second hello", after(hello.clone())),
        ("ack from a primary", after(ack)),
        ("oversized batch", after(header(Kind::Batch as u8, MAX_BATCH_BYTES as u32 + 17))),
        ("gap", after(encode(&Frame::Batch(samples::batch(5, 1, 100))))),
        ("needs from a primary", spans(&[Frame::Needs(Needs { coarse: true, lacks: Vec::new() })])),
        ("ask from a primary", spans(&[Frame::Ask(Ask::Handover)])),
        ("jump before the hello", encode(&Frame::Jump(jump(5)))),
        ("jump without its feature", after(encode(&Frame::Jump(jump(5))))),
        ("jump from elsewhere", spans(&[Frame::Jump(samples::jump(3, 5))])),
        ("jump to nowhere", spans(&[Frame::Jump(jump(0))])),
        ("jump behind records", spans(&[Frame::Batch(samples::batch(1, 1, 12)), Frame::Jump(jump(5))])),
        ("half a jump", [hello_with(&stage.own, SPANS), header(Kind::Jump as u8, 4), vec![0; 4]].concat()),
        ("empty batch", after(header(Kind::Batch as u8, 16).into_iter().chain([1; 16]).collect())),
    ];
    let client = raw_client(Some(&stage.mallory), ALPN);
    for (case, bytes) in &cases {
        let connection = stage.connect(&client).await;
        let (mut out, _back) = connection.open_bi().await.expect("one stream is allowed");
        // What is said after the welcome goes out after it, or the listener does not even look.
        out.write_chunk(Bytes::from(bytes.clone())).await.expect("there is a window");
        assert_eq!(closed_with(&connection).await, Code::Violation as u64, "{case}");
    }
    assert_eq!((stage.replica.counts)().violations, cases.len() as u64);
    assert_eq!(stage.replica.copy(&stage.own).received(), 0);
    stage.invariant_undisturbed().await;
}

/// A batch that looks right and holds other bytes than its LSNs say: the log's owner refuses, in a frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_records_are_refused_by_the_log() {
    let stage = Stage::set(patient_serve()).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    out.write_all(&hello(&stage.own)).await.expect("there is a window");
    expect(&mut back, |frame| matches!(frame, Frame::Welcome(_))).await;
    out.write_all(&encode(&Frame::Batch(samples::batch(1, 1, 12)))).await.expect("there is a window");
    expect(&mut back, |frame| *frame == Frame::Rebuff(Rebuff::Failed)).await;
    connection.close(0u32.into(), b"");
    stage.invariant_undisturbed().await;
}

/// A group that exists, belongs to another, and is named right: refused, and the answer is the same as for one
/// that does not exist. The running session of that group is not replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anothers_group_is_out_of_reach() {
    let stage = Stage::set(patient_serve()).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let unknown = Origin::new("no-such-group");
    for group in [&stage.origin, &unknown] {
        let connection = stage.connect(&client).await;
        let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
        out.write_all(&hello(group)).await.expect("there is a window");
        expect(&mut back, |frame| *frame == Frame::Rebuff(Rebuff::NotAllowed)).await;
        connection.close(0u32.into(), b"");
    }
    // Its own group's name with another's identity gets to the log, which knows better.
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    let mut forged = stage.own.hello().expect("a primary");
    forged.group = GroupId([0xEE; 16]);
    out.write_all(&encode(&Frame::Hello(Offer { minor: 0, features: 0, hello: forged })))
        .await
        .expect("a window");
    expect(&mut back, |frame| *frame == Frame::Rebuff(Rebuff::WrongGroup)).await;
    assert_eq!((stage.replica.counts)().not_allowed, 2);
    assert_eq!((stage.replica.counts)().replaced, 0);
    stage.invariant_undisturbed().await;
}

/// The limits of the stack: one bidirectional stream, no other, no datagram, and before the welcome no more than
/// the opening window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_windows_are_limited() {
    let mut config = patient_serve();
    config.session.opening_ms = 60_000;
    let stage = Stage::set(config).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let connection = stage.connect(&client).await;
    assert_eq!(connection.max_datagram_size(), None);
    let (mut out, _back) = connection.open_bi().await.expect("one stream is allowed");
    let short = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(short, connection.open_bi()).await.is_err(), "a second stream");
    assert!(tokio::time::timeout(short, connection.open_uni()).await.is_err(), "a unidirectional stream");
    // The header of the longest hello, then more than that: the listener takes what the window lets in.
    let body = transport::link::frame::MAX_CONTROL_BYTES as u32;
    out.write_all(&[&[Kind::Hello as u8, 0, 0, 0][..], &body.to_le_bytes()].concat())
        .await
        .expect("a window");
    let mut sent = 0;
    let flood = async {
        loop {
            out.write_all(&[0; 1_000]).await.expect("not closed yet");
            sent += 1_000;
            if sent >= 60_000 {
                std::future::pending::<()>().await;
            }
        }
    };
    assert!(tokio::time::timeout(short, flood).await.is_err());
    stage.invariant_undisturbed().await;
    out.write_all(&[0; 10_000]).await.expect("a window");
    assert_eq!(closed_with(&connection).await, Code::Violation as u64, "the hello is read, and is none");
}

/// Slow ones: connected and silent, half a hello, a stream that is reset. Each has its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slow_are_shown_out() {
    let mut config = patient_serve();
    config.session.opening_ms = 500;
    let stage = Stage::set(config).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let silent = stage.connect(&client).await;
    let half = stage.connect(&client).await;
    let (mut out, _back) = half.open_bi().await.expect("one stream is allowed");
    let hello = hello(&stage.own);
    // A byte at a time does not extend the time.
    let trickle = tokio::spawn(async move {
        for byte in &hello[..hello.len() - 1] {
            if out.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let reset = stage.connect(&client).await;
    let (mut out, _back) = reset.open_bi().await.expect("one stream is allowed");
    out.write_all(&[1]).await.expect("a window");
    out.reset(9u32.into()).expect("open");
    assert_eq!(closed_with(&silent).await, Code::Timeout as u64);
    assert_eq!(closed_with(&half).await, Code::Timeout as u64);
    assert_eq!(closed_with(&reset).await, Code::Done as u64);
    trickle.abort();
    stage.invariant_undisturbed().await;
}

/// A flood of connections that do nothing: no more than the limits, by address and in all, are ever open; the
/// others are turned away, and the good session has its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_connections_are_limited() {
    let mut config = patient_serve();
    config.session.opening_ms = 60_000;
    config.max_connections_per_address = 20;
    let stage = Stage::set(config).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let mut open = Vec::new();
    for _ in 0..200 {
        let connecting = client.connect(stage.address(), "x.invalid").expect("started");
        if let Ok(connection) = connecting.await {
            open.push(connection);
        }
    }
    assert_eq!(open.len(), 19, "one place of the twenty is the good session's");
    assert_eq!((stage.replica.counts)().over_limit, 181);
    stage.invariant_undisturbed().await;
    // Places are given back.
    drop(open);
    drop(client);
    let client = raw_client(Some(&stage.mallory), ALPN);
    let again = async {
        while client.connect(stage.address(), "x.invalid").expect("started").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::nodes::PATIENCE, again).await.expect("a place is free again");
}

/// Packets that are no QUIC, parts of QUIC, and first packets of connections that never go on, from many ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_and_abandoned_handshakes_cost_nothing() {
    let stage = Stage::set(patient_serve()).await;
    // A first packet as a client sends it, caught on its way.
    let trap = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let client = raw_client(None, ALPN);
    let trapped = trap.local_addr().expect("bound");
    let abandoned = client.connect(trapped, "x.invalid").expect("started");
    let mut initial = vec![0; 2_000];
    let len = tokio::task::spawn_blocking(move || {
        let len = trap.recv(&mut initial).expect("a packet");
        initial.truncate(len);
        initial
    });
    let initial = len.await.expect("received");
    drop(abandoned);
    let mut rng = Rng(5);
    for round in 0..300 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut packet = initial.clone();
        match round % 3 {
            // Another connection ID: a new connection attempt that fails its checksum.
            0 => packet[8] ^= rng.next() as u8,
            1 => packet.truncate(1 + rng.below(1_200) as usize),
            _ => {
                let len = 1 + rng.below(1_400) as usize;
                packet = rng.bytes(len);
            }
        }
        for _ in 0..3 {
            socket.send_to(&packet, stage.address()).expect("sent");
        }
        socket.send_to(&initial, stage.address()).expect("sent");
    }
    stage.invariant_undisturbed().await;
    let counts = (stage.replica.counts)();
    assert_eq!(
        (counts.over_limit, counts.welcomed),
        (0, 1),
        "without a proven address nothing takes a place"
    );
}

/// R12: keys are updated under a running session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_key_updates() {
    let stage = Stage::set(patient_serve()).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    out.write_all(&hello(&stage.own)).await.expect("there is a window");
    expect(&mut back, |frame| matches!(frame, Frame::Welcome(_))).await;
    for _ in 0..3 {
        connection.force_key_update();
        out.write_all(&encode(&Frame::Heartbeat(samples::heartbeat(0)))).await.expect("a window");
        expect(&mut back, |frame| matches!(frame, Frame::Heartbeat(_))).await;
    }
    assert!(stage.replica.copy(&stage.own).heartbeats() >= 3);
    assert_eq!(stage.ca.node("x").name().as_str(), "x");
}

/// R18: a newer primary offers features and sends a frame that this version does not know and may skip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_peer_is_understood() {
    let stage = Stage::set(patient_serve()).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    let hello = stage.own.hello().expect("a primary");
    out.write_all(&encode(&Frame::Hello(Offer { minor: 9, features: u64::MAX, hello })))
        .await
        .expect("a window");
    let Frame::Welcome(acceptance) = expect(&mut back, |frame| matches!(frame, Frame::Welcome(_))).await
    else {
        unreachable!("that was waited for")
    };
    assert_eq!(acceptance.features, FEATURES);
    out.write_all(&[0x9A, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4]).await.expect("a window");
    out.write_all(&encode(&Frame::Heartbeat(samples::heartbeat(0)))).await.expect("a window");
    let copy = stage.replica.copy(&stage.own);
    until("the frame behind the unknown one is read", || copy.heartbeats() == 1).await;
}

/// R18: a primary of the version before sync spans: records flow as ever, and nothing is said that it does not know.
/// Where the replica lacks more than records, it is refused in a word that it does know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_primary_is_served() {
    let stage = Stage::set(patient_serve()).await;
    let copy = stage.replica.copy(&stage.own);
    copy.set_asks(&[(1, Ask::Handover)]);
    stage.own.write(3, 100);
    let want = Want { from: Lsn(1), max_bytes: 10_000 };
    let batch = stage.own.read_cached(want).expect("a log in memory").expect("nothing is cold");
    let client = raw_client(Some(&stage.mallory), ALPN);
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    out.write_all(&hello(&stage.own)).await.expect("there is a window");
    out.write_all(&encode(&Frame::Batch(batch))).await.expect("there is a window");
    let mut first = None;
    let done = expect(&mut back, |frame| {
        first.get_or_insert(frame.kind());
        assert!(!matches!(frame, Frame::Needs(_) | Frame::Ask(_)), "{frame:?}");
        *frame == Frame::Ack(stage.own.position())
    });
    done.await;
    assert_eq!((first, copy.takes_back()), (Some(Kind::Welcome), None));
    copy.invariant_equal(&stage.own);
    connection.close(0u32.into(), b"");

    *copy.needs.lock().expect("no panic inside") = Needs { coarse: true, lacks: Vec::new() };
    let connection = stage.connect(&client).await;
    let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
    out.write_all(&hello(&stage.own)).await.expect("there is a window");
    let refusal = Rebuff::TooFarBehind { durable: stage.own.position() };
    expect(&mut back, |frame| {
        assert!(matches!(frame, Frame::Rebuff(_)), "{frame:?}");
        *frame == Frame::Rebuff(refusal.clone())
    })
    .await;
    stage.invariant_undisturbed().await;
}

/// A client that asks for early data gets none: nothing that could be replayed is ever taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_early_data_and_no_tickets() {
    let stage = Stage::set(patient_serve()).await;
    let client = raw_client(Some(&stage.mallory), ALPN);
    for _ in 0..3 {
        let connection = stage.connect(&client).await;
        let (mut out, mut back) = connection.open_bi().await.expect("one stream is allowed");
        out.write_all(&hello(&stage.own)).await.expect("there is a window");
        expect(&mut back, |frame| matches!(frame, Frame::Welcome(_))).await;
        connection.close(0u32.into(), b"");
        // The client keeps tickets and would use one now, had it been given any.
        let connecting = client.connect(stage.address(), "x.invalid").expect("started");
        assert!(connecting.into_0rtt().is_err());
    }
}
