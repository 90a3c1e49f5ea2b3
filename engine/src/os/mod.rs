//! The real world behind the engine's traits: files and block devices, the clock, the catalog. No other module of
//! the engine names this one.
//!
//! | module | what it is |
//! |---|---|
//! | [`catalog`] | the catalog on disk |
//! | [`clock`] | the time |
//! | [`disk`] | names in a folder, and the lock: [`crate::io::Storage`] |
//! | [`projection`] | the catalog kept up with the log |
//! | [`runtime`] | a node on threads |
//! | `file` | an open file or block device: [`crate::io::File`] |

pub mod catalog;
pub mod clock;
pub mod disk;
mod file;
pub mod projection;
pub mod runtime;
