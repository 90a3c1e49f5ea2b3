//! A bare QUIC transfer: this process sends, a child of it receives and counts. The limits are those of the link.

use super::Transfer;
use crate::common::MIB;
use crate::common::cpu::Meter;
use bytes::Bytes;
use quinn::{ClientConfig, Endpoint, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// The argument that makes this program the receiver.
pub(crate) const CHILD: &str = "--receive-quic";

const NAME: &str = "localhost";
const SEND_WINDOW_BYTES: u64 = 32 * MIB;
const RECEIVE_WINDOW_BYTES: u32 = 16 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads are to be had")
}

fn transport(mtu: u16) -> Arc<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .send_window(SEND_WINDOW_BYTES)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES));
    Arc::new(transport)
}

/// The receiver: tells its port and its certificate, takes one stream, says how long it was.
pub(crate) fn receive() {
    let mtu = std::env::args().nth(2).and_then(|text| text.parse().ok()).expect("its parent gives an MTU");
    let identity =
        rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a name is all that it takes");
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let certificate = identity.cert.der().clone();
    let mut config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).expect("they fit");
    config.transport_config(transport(mtu));
    runtime().block_on(async {
        let mut endpoint_config = quinn::EndpointConfig::default();
        endpoint_config.max_udp_payload_size(mtu).expect("an MTU");
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let endpoint = Endpoint::new(endpoint_config, Some(config), socket, Arc::new(quinn::TokioRuntime));
        let endpoint = endpoint.expect("a socket is all that it takes");
        let hex = certificate.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        println!("{} {hex}", endpoint.local_addr().expect("it is bound"));
        std::io::stdout().flush().expect("the parent listens");
        let connection = endpoint.accept().await.expect("the parent connects").await.expect("a handshake");
        let (mut reply, mut stream) = connection.accept_bi().await.expect("the parent sends");
        let mut received = 0_u64;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.expect("the parent sends") {
            received += chunk.bytes.len() as u64;
        }
        reply.write_all(&received.to_le_bytes()).await.expect("the parent waits");
        reply.finish().expect("it is open");
        connection.closed().await;
    });
}

/// Sends so many bytes, and waits until they are counted.
pub(crate) fn transfer(mtu: u16, bytes: u64) -> Transfer {
    let program = std::env::current_exe().expect("a program knows itself");
    let mut child = Command::new(program)
        .args([CHILD, &mtu.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a program can be its own child");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("the child speaks");
    let (address, hex) = line.trim().split_once(' ').expect("an address and a certificate");
    let address: SocketAddr = address.parse().expect("an address");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    let certificate = (0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate)).expect("a certificate");
    let mut config =
        ClientConfig::with_root_certificates(Arc::new(roots)).expect("roots are all that it takes");
    config.transport_config(transport(mtu));

    let meters = [std::process::id(), child.id()].map(|pid| Meter::start(vec![("", pid)]));
    let seconds = runtime().block_on(async {
        let mut endpoint =
            Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback has free ports");
        endpoint.set_default_client_config(config);
        let connection =
            endpoint.connect(address, NAME).expect("an address").await.expect("the child accepts");
        let (mut stream, mut reply) = connection.open_bi().await.expect("a stream");
        let block = Bytes::from(vec![0x5a_u8; MIB as usize]);
        let start = Instant::now();
        for _ in 0..bytes / MIB {
            stream.write_chunk(block.clone()).await.expect("the child reads");
        }
        stream.finish().expect("it is open");
        let counted = reply.read_to_end(8).await.expect("the child answers");
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(counted, (bytes / MIB * MIB).to_le_bytes(), "the child counts what was sent");
        connection.close(VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        seconds
    });
    let cpu = meters.map(|meter| meter.stop().values().sum());
    child.wait().expect("our own child");
    Transfer { bytes, seconds, cpu }
}
