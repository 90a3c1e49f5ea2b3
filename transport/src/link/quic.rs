//! Every limit of the QUIC stack, set from one configuration.
//!
//! Invariants:
//!
//! - No limit is left at the stack's default, which is generous for a service that faces a network.
//! - A dialler accepts no stream; a listener accepts one bidirectional stream per connection, and holds it to
//!   [`OPENING_WINDOW_BYTES`] until the peer has been welcomed.
//! - A peer's address is proven (by a Retry round trip) before it costs a connection's state.
//!
//! It is also the one place that names the stack's socket traits: [`bind`] takes a UDP socket of the kernel's,
//! [`attach`] any other with a runtime of its own.

use super::tls::{Credentials, Error as TlsError, NodeName};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, Runtime, ServerConfig, TokioRuntime, TransportConfig, UdpPoller,
    ValidationTokenConfig, VarInt,
};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What a listener lets a peer send before it is welcomed: its hello, and a little more.
pub const OPENING_WINDOW_BYTES: u32 = 2 * super::frame::MAX_CONTROL_BYTES as u32;

/// What a dialler lets a replica send that it has not read: needs, acknowledgements, heartbeats, asks, one
/// refusal.
const REPLY_WINDOW_BYTES: u32 = 256 << 10;

/// The smallest UDP payload that a QUIC path must carry; where each connection starts.
const BASE_MTU: u16 = 1200;

/// How long after an MTU black hole longer packets are tried again, in milliseconds. The stack's minute would be
/// spent at more than twice the CPU time per byte, and what looks like a black hole may be a burst of loss.
const MTU_RETRY_MS: u64 = 10_000;

/// How many packets the peer may take in before it acknowledges (it never waits longer than 25 ms): fewer
/// acknowledgements cost less on both sides, and ten packets are little beside any window.
const ACK_EVERY_PACKETS: u32 = 10;

/// Of the handshake messages that arrive out of order, as many bytes are kept: room for long chains.
const CRYPTO_BUFFER_BYTES: usize = 32 << 10;

/// Packets of connections that nobody has accepted yet, in bytes for each. A client hello with a chain behind it
/// is far shorter.
const INCOMING_BYTES: u64 = 16 << 10;

/// The name that the stack wants to connect to. It is not sent, and not looked at: see [`super::tls`].
pub const SERVER_NAME: &str = "landfall.invalid";

/// The configuration of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The largest UDP payload in bytes that path MTU discovery tries, 1,200 to 65,527. High by default: the CPU
    /// time per byte falls strongly with it, and a path that carries less is found out by probing.
    pub max_mtu: u16,
    /// The connection is dead when nothing came for so long, in milliseconds. Above the session's own limit of
    /// silence, which also notices what acknowledges packets but says nothing.
    pub idle_timeout_ms: u32,
    /// Packets are sent at least this often, in milliseconds.
    pub keep_alive_ms: u64,
    /// Listener: bytes received on a connection and not yet read by the session.
    pub receive_window_bytes: u32,
    /// Dialler: bytes handed to the stack and not yet acknowledged by the peer's stack. They are references
    /// into the log's memory, not copies.
    pub send_window_bytes: u64,
    /// Listener: connection attempts that wait to be looked at.
    pub max_incoming: usize,
    /// The kernel's buffers of the socket, in bytes each way (as far as the system's limit allows).
    pub socket_buffer_bytes: usize,
    /// Fixes every random choice of the stack (but not of TLS), for simulations.
    pub rng_seed: Option<[u8; 32]>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max_mtu: 8_952,
            idle_timeout_ms: 15_000,
            keep_alive_ms: 2_000,
            receive_window_bytes: 16 << 20,
            send_window_bytes: 32 << 20,
            max_incoming: 256,
            socket_buffer_bytes: 4 << 20,
            rng_seed: None,
        }
    }
}

/// Why an endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A number is outside what the stack can do.
    #[error("max_mtu is {0}, it must lie between 1200 and 65527")]
    Mtu(u16),
    /// The socket cannot be bound or set up.
    #[error("the UDP socket {address}: {source}")]
    Socket {
        /// Where it was to be bound.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// Opens a UDP socket at `address` and runs the stack on it, in the current tokio runtime. It dials; it also
/// listens once [`super::serve`] runs on it.
///
/// # Errors
///
/// [`Error::Mtu`], [`Error::Socket`].
pub fn bind(address: SocketAddr, config: &Config) -> Result<Endpoint, Error> {
    let error = |source| Error::Socket { address, source };
    let socket = UdpSocket::bind(address).map_err(error)?;
    // Fewer bytes than asked for is no failure: the system's limit is the operator's choice.
    for set in
        [rustix::net::sockopt::set_socket_recv_buffer_size, rustix::net::sockopt::set_socket_send_buffer_size]
    {
        set(&socket, config.socket_buffer_bytes).map_err(|errno| error(errno.into()))?;
    }
    let inner = TokioRuntime.wrap_udp_socket(socket).map_err(error)?;
    attach(Arc::new(Segmented { inner, max_mtu: config.max_mtu }), Arc::new(TokioRuntime), config)
}

/// As [`bind`], on any socket and runtime that the stack can work with.
///
/// # Errors
///
/// [`Error::Mtu`], [`Error::Socket`].
pub fn attach(
    socket: Arc<dyn AsyncUdpSocket>,
    runtime: Arc<dyn Runtime>,
    config: &Config,
) -> Result<Endpoint, Error> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let address = socket.local_addr().map_err(|source| Error::Socket { address: unknown, source })?;
    Endpoint::new_with_abstract_socket(endpoint_config(config)?, None, socket, runtime)
        .map_err(|source| Error::Socket { address, source })
}

/// What a dialler needs to reach the node `expected`. Here, with [`server_config`] and [`endpoint_config`], for
/// those who run the stack's state machine by themselves.
///
/// # Errors
///
/// [`Error::Tls`].
pub fn client_config(
    credentials: &Arc<Credentials>,
    expected: NodeName,
    config: &Config,
) -> Result<ClientConfig, Error> {
    let tls = credentials.client_config(expected)?;
    let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3 comes with the suite that QUIC starts with");
    let mut transport = transport_config(config);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(REPLY_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(REPLY_WINDOW_BYTES))
        .send_window(config.send_window_bytes);
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport));
    Ok(client)
}

/// What a listener needs.
///
/// # Errors
///
/// [`Error::Tls`].
pub fn server_config(credentials: &Arc<Credentials>, config: &Config) -> Result<ServerConfig, Error> {
    let crypto = server_crypto(credentials)?;
    let mut transport = transport_config(config);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(config.receive_window_bytes.max(OPENING_WINDOW_BYTES)))
        .receive_window(VarInt::from_u32(OPENING_WINDOW_BYTES))
        .send_window(u64::from(REPLY_WINDOW_BYTES));
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut server = ServerConfig::with_crypto(crypto);
    server
        .transport_config(Arc::new(transport))
        .validation_token_config(tokens)
        .migration(true)
        .max_incoming(config.max_incoming)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES * config.max_incoming as u64);
    Ok(server)
}

/// The same with another identity. The key of the address-validation tokens stays: a dialler that was sent one just
/// before shows it just after, and would otherwise be ignored until it gives up.
///
/// # Errors
///
/// If the credentials cannot be used.
pub fn renewed(server: &ServerConfig, credentials: &Arc<Credentials>) -> Result<ServerConfig, Error> {
    let mut server = server.clone();
    server.crypto = server_crypto(credentials)?;
    Ok(server)
}

fn server_crypto(credentials: &Arc<Credentials>) -> Result<Arc<QuicServerConfig>, Error> {
    let tls = credentials.server_config()?;
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 comes with the suite that QUIC starts with");
    Ok(Arc::new(crypto))
}

/// A socket whose batched sends (GSO) never exceed what the kernel takes in one call.
///
/// The stack asks for up to ten packets a call, whatever their size, and the socket underneath takes the kernel's
/// refusal of more than 64 KiB for that of an MTU probe and drops all ten without a word: with packets above
/// 6,550 bytes the connection then loses whole batches, takes that for an MTU black hole, and falls to 1,200.
#[derive(Debug)]
struct Segmented {
    inner: Arc<dyn AsyncUdpSocket>,
    max_mtu: u16,
}

/// The most bytes of payload that one UDP send may have, over IPv4 and IPv6 alike.
const MAX_SEND_BYTES: usize = 65_507;

impl AsyncUdpSocket for Segmented {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(MAX_SEND_BYTES / usize::from(self.max_mtu)).max(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// What an endpoint needs, whether it dials or listens.
///
/// # Errors
///
/// [`Error::Mtu`].
pub fn endpoint_config(config: &Config) -> Result<EndpointConfig, Error> {
    let mut endpoint = EndpointConfig::default();
    endpoint.max_udp_payload_size(config.max_mtu).map_err(|_| Error::Mtu(config.max_mtu))?;
    endpoint.rng_seed(config.rng_seed);
    Ok(endpoint)
}

/// What both sides have in common.
fn transport_config(config: &Config) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(config.max_mtu).black_hole_cooldown(Duration::from_millis(MTU_RETRY_MS));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY_PACKETS));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(config.idle_timeout_ms))))
        .keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms)))
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .initial_mtu(BASE_MTU)
        .min_mtu(BASE_MTU)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .allow_spin(false)
        .enable_segmentation_offload(true);
    transport
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the socket offers to send in one call does arrive, at each packet size, as packets of that size.
    #[tokio::test]
    async fn batched_sends_fit_into_one_call() {
        for max_mtu in [1_200, 1_452, 6_551, 8_952, 16_000, 65_507] {
            let bind = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let (socket, sink) = (bind(), bind());
            sink.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
            let inner = TokioRuntime.wrap_udp_socket(socket).expect("usable");
            let socket = Segmented { inner, max_mtu };
            let count = socket.max_transmit_segments();
            assert!(count >= 1);
            let contents = vec![7; count * usize::from(max_mtu)];
            let transmit = Transmit {
                destination: sink.local_addr().expect("bound"),
                ecn: None,
                contents: &contents,
                segment_size: (count > 1).then_some(usize::from(max_mtu)),
                src_ip: None,
            };
            while socket.try_send(&transmit).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                tokio::task::yield_now().await;
            }
            let mut packet = vec![0; 65_536];
            for _ in 0..count {
                assert_eq!(sink.recv(&mut packet).expect("a packet"), usize::from(max_mtu), "of {count}");
            }
        }
    }
}
