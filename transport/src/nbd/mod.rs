//! The NBD front end: volumes and recovery points as disks for any NBD client, and a small client.
//!
//! Written to the protocol's specification (`doc/proto.md` of the NetworkBlockDevice project; "the specification"
//! in this module). What the server speaks: fixed newstyle, every option of the baseline and of the block-size,
//! structured-reply, metadata-context (`base:allocation`) and TLS extensions; extended headers are answered with
//! "unsupported", upon which clients fall back.
//!
//! The protocol's logic is functions on bytes, without sockets, threads or clocks; feature `os` adds those.
//!
//! | module | what it is |
//! |---|---|
//! | [`proto`] | the numbers of the specification |
//! | [`handshake`] | the server's half of option haggling: bytes in, replies and a decision out |
//! | `option` | the data of options, and the frames of their answers |
//! | [`request`] | decoding and judging a request |
//! | [`reply`] | encoding replies into an outgoing queue |
//! | [`pending`] | the table of requests in flight |
//! | [`transmission`] | the server's half of the transmission phase: bytes in, batches out, completions in |
//! | `wire` | a socket, plain or under TLS (`os`) |
//! | `inbox` | the buffer that a connection receives into (`os`) |
//! | `connection` | one connection: who reads, who sends, and when (`os`) |
//! | `server` | listeners, limits, stopping (`os`) |
//! | `client` | a blocking client, one that reconnects, and a `Read + Write + Seek` disk (`os`) |
//!
//! What holds, everywhere:
//!
//! - nothing is allocated for a length before it is checked, and every queue has a limit;
//! - a request whose payload did not arrive whole is never applied;
//! - every request that was decoded is answered exactly once, unless the connection is lost;
//! - a connection can only hurt itself: a slow, dead or hostile peer costs its own limits, nothing else.
//!
//! Flushes: a batch is handed to the export in the connection's order, and the export answers a flush only when
//! every write that was answered before is durable, on any connection. Hence `CAN_MULTI_CONN` is advertised.

#[cfg(feature = "os")]
pub mod client;
#[cfg(feature = "os")]
mod connection;
pub mod handshake;
#[cfg(feature = "os")]
mod inbox;
mod option;
pub mod pending;
pub mod proto;
pub mod reply;
pub mod request;
#[cfg(feature = "os")]
mod server;
pub mod transmission;
#[cfg(feature = "os")]
mod wire;

#[cfg(feature = "os")]
pub use server::{Config, Server, Stop, Tls};
