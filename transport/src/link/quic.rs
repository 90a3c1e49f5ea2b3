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
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, Runtime, ServerConfig, TokioRuntime, TransportConfig, ValidationTokenConfig, VarInt,
};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// What a listener lets a peer send before it is welcomed: its hello, and a little more.
pub const OPENING_WINDOW_BYTES: u32 = 2 * super::frame::MAX_CONTROL_BYTES as u32;

/// What a dialler lets a replica send that it has not read: acknowledgements, heartbeats, one refusal.
const REPLY_WINDOW_BYTES: u32 = 256 << 10;

/// The smallest UDP payload that a QUIC path must carry; where each connection starts.
const BASE_MTU: u16 = 1200;

/// Of the handshake messages that arrive out of order, as many bytes are kept: room for long chains.
const CRYPTO_BUFFER_BYTES: usize = 32 << 10;

/// Packets of connections that nobody has accepted yet, in bytes for each. A client hello with a chain behind it
/// is far shorter.
const INCOMING_BYTES: u64 = 16 << 10;

/// The name that the stack wants to connect to. It is not sent, and not looked at: see [`super::tls`].
pub(super) const SERVER_NAME: &str = "landfall.invalid";

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
    Endpoint::new(endpoint_config(config)?, None, socket, Arc::new(TokioRuntime)).map_err(error)
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

/// What a dialler needs to reach the node `expected`.
pub(super) fn client_config(
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
pub(super) fn server_config(credentials: &Arc<Credentials>, config: &Config) -> Result<ServerConfig, Error> {
    let tls = credentials.server_config()?;
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 comes with the suite that QUIC starts with");
    let mut transport = transport_config(config);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(config.receive_window_bytes.max(OPENING_WINDOW_BYTES)))
        .receive_window(VarInt::from_u32(OPENING_WINDOW_BYTES))
        .send_window(u64::from(REPLY_WINDOW_BYTES));
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport))
        .validation_token_config(tokens)
        .migration(true)
        .max_incoming(config.max_incoming)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES * config.max_incoming as u64);
    Ok(server)
}

fn endpoint_config(config: &Config) -> Result<EndpointConfig, Error> {
    let mut endpoint = EndpointConfig::default();
    endpoint.max_udp_payload_size(config.max_mtu).map_err(|_| Error::Mtu(config.max_mtu))?;
    endpoint.rng_seed(config.rng_seed);
    Ok(endpoint)
}

/// What both sides have in common.
fn transport_config(config: &Config) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(config.max_mtu);
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
        .ack_frequency_config(Some(AckFrequencyConfig::default()))
        .allow_spin(false)
        .enable_segmentation_offload(true);
    transport
}
