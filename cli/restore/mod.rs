//! `landfall restore`: a recovery point onto something that needs no Landfall to be read.
//!
//! | module | what it is |
//! |---|---|
//! | [`disk`] | `restore disk`: a volume at a point, to a raw file or block device |
//! | [`record`] | how far a restore has come, beside its target |
//!
//! A restore reads what the daemon serves for it: a read-only mount that ends with the command's control connection.

pub(crate) mod disk;
mod record;
