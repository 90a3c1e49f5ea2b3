//! What may follow what in a log: the one rule by which writer, recovery, replica and inspector agree.
//!
//! A record follows another if its LSN is the next one, it names the other's checksum, and it was written in the
//! same opening of the same reign, or is of a kind that begins a new one. A stale record that a recycled file
//! still holds, or that stands behind a tail that was torn off, fails at least one of these for certain: its
//! incarnation is older than that of whatever was written since.

use super::format::Header;
use crate::event::Kind;
use crate::types::{Checksum, Epoch, Incarnation, Lsn, Position};
use bincode::{Decode, Encode};

/// The end of a log's history as far as it was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Tip {
    /// The last record; zero before the first.
    pub lsn: Lsn,
    /// Its reign.
    pub epoch: Epoch,
    /// The opening it was written in.
    pub incarnation: Incarnation,
    /// Its checksum.
    pub checksum: Checksum,
}

/// Why a whole record does not continue a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// Not the next number.
    #[error("LSN {found} where {expected} belongs")]
    Lsn {
        /// What belongs there.
        expected: Lsn,
        /// What stands there.
        found: Lsn,
    },
    /// It follows some other record.
    #[error("it continues another history")]
    Chain,
    /// Its reign is not this one, and it does not begin one.
    #[error("epoch {found} where {expected} reigns")]
    Epoch {
        /// The reign.
        expected: Epoch,
        /// What the record says.
        found: Epoch,
    },
    /// It was written in another opening of the log.
    #[error("it was written before the log was last opened")]
    Incarnation,
}

impl Tip {
    /// Whether `header` is the next record.
    ///
    /// # Errors
    /// The first [`Break`] found.
    pub fn check_next(&self, header: &Header) -> Result<(), Break> {
        if header.lsn != self.lsn.next() {
            return Err(Break::Lsn { expected: self.lsn.next(), found: header.lsn });
        }
        if planted!(SkipChainCheck) {
            return Ok(());
        }
        if header.previous != self.checksum {
            return Err(Break::Chain);
        }
        let begins_reign = header.kind == Kind::Promote || self.lsn == Lsn::ZERO;
        let epoch_fits = if begins_reign { header.epoch > self.epoch } else { header.epoch == self.epoch };
        if !epoch_fits {
            return Err(Break::Epoch { expected: self.epoch, found: header.epoch });
        }
        let incarnation_fits = if header.kind.begins_incarnation() {
            header.incarnation > self.incarnation
        } else {
            header.incarnation == self.incarnation
        };
        incarnation_fits.then_some(()).ok_or(Break::Incarnation)
    }

    /// The tip once `header` was accepted.
    #[must_use]
    pub fn advanced(&self, header: &Header) -> Tip {
        Tip {
            lsn: header.lsn,
            epoch: header.epoch,
            incarnation: header.incarnation,
            checksum: header.checksum,
        }
    }

    /// As a position.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, lsn: self.lsn, checksum: self.checksum }
    }
}
