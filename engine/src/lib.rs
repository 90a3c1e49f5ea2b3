//! The engine of Landfall: everything that happens to a consistency group is a record in one ordered log, and
//! everything else (a disk, a recovery point, a replica, a failover) is a reading of that log.
//!
//! A map, from the bottom up:
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | LSN, epoch, extent and the other numbers, each a type |
//! | [`io`] | the trait between the engine and the disk, with its crash model |
//! | [`guest`] | requests and replies of block front ends |
//! | [`event`] | the kinds of records |
//! | [`log`] | the log: append, sync, recover, read back |
//! | [`state`] | what a node must know before it can read its log |
//! | [`index`] | the version index: where in the log each extent stands, at any LSN |
//! | [`overlay`] | writes that are in the log but not on the backing |
//! | [`changes`] | what guests write to a recovery point |
//! | [`read`] | planned reads, carried out without a lock |
//! | [`seeds`] | what a replica holds already and needs not be sent |
//! | [`digest`] | what an extent holds, in 16 bytes |
//! | [`peer`] | what two nodes tell each other |
//! | [`node`] | one group on one node: roles, requests, replication, points, background work |
//! | [`catalog`] | marks, times and cursors: what is looked up in a log |
//! | [`snapshots`] | whole copies of volumes at points, apart from the log |
//! | [`faulty`] | a storage around another that fails on demand, for tests |
//! | `planted` | mistakes on purpose, for the tests of the simulator |
//! | `os` | the real files, clock and catalog, behind the feature of that name |

/// Whether a mistake is made on purpose here: see `planted`.
#[cfg(feature = "planted")]
macro_rules! planted {
    ($mistake:ident) => {
        crate::planted::is(crate::planted::Mistake::$mistake)
    };
}
/// Never.
#[cfg(not(feature = "planted"))]
macro_rules! planted {
    ($mistake:ident) => {
        false
    };
}

pub mod catalog;
pub mod changes;
pub mod digest;
pub mod event;
pub mod extents;
pub mod faulty;
pub mod guest;
pub mod index;
pub mod io;
pub mod kept;
pub mod lacks;
pub mod log;
pub mod node;
#[cfg(feature = "os")]
pub mod os;
pub mod overlay;
pub mod peer;
#[cfg(feature = "planted")]
pub mod planted;
pub mod read;
pub mod seeds;
pub mod snapshots;
pub mod state;
pub mod types;
