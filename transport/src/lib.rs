//! Every byte of Landfall that crosses a socket.
//!
//! | module | what it is |
//! |---|---|
//! | [`link`] | the replication link: frames, session logic, and (feature `os`) its QUIC driver |
//! | [`block`] | what a block front end serves: exports, to be implemented by whoever owns the volumes |
//! | [`nbd`] | the NBD server, and a small client |
//!
//! Later siblings of the NBD server yield the same guest requests (`engine::guest`).

pub mod block;
pub mod link;
pub mod nbd;
