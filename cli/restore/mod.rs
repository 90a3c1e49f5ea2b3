//! `landfall restore`: a recovery point onto something that needs no Landfall to be read.
//!
//! | module | what it is |
//! |---|---|
//! | [`disk`] | `restore disk`: a volume at a point, to a raw file or block device |
//! | [`record`] | how far such a restore has come, beside its target |
//! | [`qcow2`] | the form of an image that qemu takes |
//! | [`files`] | `restore files`: files and folders at a point, to a folder |
//! | [`onto`] | `branches export`: what a branch has written, onto an image |
//! | [`list`] | `restore ls`: what could be restored |
//! | [`mounted`] | the point, served by the daemon |
//! | [`volume`], [`source`], [`partitions`] | its bytes, and what they are divided into |
//! | [`filesystem`], [`lookup`] | ext2, ext3, ext4 and FAT; paths in them |
//! | [`copy`], [`mod@write`] | what is copied, and how it is written |
//!
//! A restore reads what the daemon serves for it: a read-only mount that ends with the command's control connection.

mod copy;
pub(crate) mod disk;
pub(crate) mod files;
mod filesystem;
pub(crate) mod list;
mod lookup;
mod mounted;
pub(crate) mod onto;
mod partitions;
pub(crate) mod qcow2;
mod record;
mod source;
mod volume;
mod write;
