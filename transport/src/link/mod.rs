//! The replication link: how the records of a group travel from its primary to a replica.
//!
//! `transport/PROTOCOL.md` is the specification. One QUIC connection joins one primary and one replica for one
//! group; the primary dials, the replica listens, and one bidirectional stream carries the session. Groups
//! therefore never wait for each other on a shared stream, and share the network by connection.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | the messages and their bytes |
//! | [`decoder`] | frames out of a stream of bytes, without copying payloads |
//! | [`session`] | what both ends share: limits, timers, the reasons for an end |
//! | [`sender`] | the primary's end of a session, a pure state machine |
//! | [`receiver`] | the replica's end, likewise |
//!
//! These five know no socket, thread or clock: the simulator runs them on virtual time. The rest needs the
//! feature `os`:
//!
//! | module | what it is |
//! |---|---|
//! | `tls` | who a node is, and how one node proves it to another |
//! | `quic` | every limit of the QUIC stack, set from one configuration |
//! | `driver` | the traits that the owner of the logs implements, and the loops that drive a session |
//! | `dial` | the primary's side: connect, run, and connect again |
//! | `serve` | the replica's side: accept, authorise, run, take over |

#[cfg(feature = "os")]
mod admission;
#[cfg(feature = "os")]
mod backoff;
pub mod decoder;
#[cfg(feature = "os")]
pub mod dial;
#[cfg(feature = "os")]
pub mod driver;
pub mod frame;
#[cfg(feature = "os")]
mod gate;
#[cfg(feature = "os")]
pub mod quic;
pub mod receiver;
pub mod sender;
#[cfg(feature = "os")]
pub mod serve;
pub mod session;
#[cfg(feature = "os")]
pub mod tls;
#[cfg(feature = "os")]
mod wire;

/// The protocol's name in the TLS handshake. It changes when two versions cannot talk to each other at all;
/// everything smaller is [`session::MINOR`] and the feature bits.
pub const ALPN: &[u8] = b"landfall/1";
