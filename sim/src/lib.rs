//! The deterministic simulator of Landfall: the real engine and the real session logic, whole regions of them, in
//! one thread on virtual time.
//!
//! What the world can do:
//!
//! - [`rng`]: one seed, and labelled child generators from it;
//! - [`clock`]: virtual time, the queue of what happens next, and each node's own (wrong) wall clock;
//! - [`disk`]: a machine's disk that loses, tears and rots, after the crash model of `engine::io`;
//! - [`net`]: connections between nodes that stall, break, and go on talking after their end; with the feature
//!   `full-stack` also the real QUIC and TLS, over datagrams that get lost, doubled and swapped;
//! - [`workload`]: what guests do to their volumes.
//!
//! What should be true:
//!
//! - [`mod@reference`]: plain arrays of bytes and a list of operations, which shares no code with the engine.
//!
//! What happened:
//!
//! - [`trace`]: the log of a run, and the hash by which two runs are compared ([`hash`]).

pub mod autopsy;
pub mod clock;
pub mod disk;
pub mod hash;
pub mod ledger;
pub mod net;
pub mod options;
pub mod recorded;
pub mod reference;
pub mod report;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod trace;
pub mod watch;
pub mod workload;
mod world;
