//! The engine of Landfall: everything that happens to a consistency group is a record in one ordered log, and
//! everything else (a disk, a recovery point, a replica, a failover) is a reading of that log.
//!
//! A map:
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | LSN, epoch, extent and the other numbers, each a type |
//! | [`io`] | the trait between the engine and the disk, with its crash model |
//! | [`guest`] | requests and replies of block front ends |
//! | [`catalog`] | marks, times and cursors: what is looked up in a log |
//! | [`faulty`] | a storage around another that fails on demand, for tests |
//! | [`index`] | the version index: where in the log each extent stands, at any LSN |
//! | `os` | the real files, clock and catalog, behind the feature of that name |
//! | [`peer`] | what two nodes tell each other |

pub mod catalog;
pub mod faulty;
pub mod guest;
pub mod index;
pub mod io;
#[cfg(feature = "os")]
pub mod os;
pub mod peer;
pub mod types;
