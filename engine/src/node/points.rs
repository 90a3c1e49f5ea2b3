//! Recovery points: every durable LSN from the horizon on is one.
//!
//! A point that is in use is pinned: retention does not move past it, so what it shows does not change.

use super::Node;
use crate::log::ship::ReadError;
use crate::read::Plan;
use crate::types::{Extent, Lsn, Timestamp, VolumeId};

/// Why there is no such point.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node keeps no points.
    #[error("this node keeps no recovery points: it writes the log, its replicas keep the points")]
    NotKept,
    /// Outside the window.
    #[error("{asked} cannot be selected: the points here reach from LSN {horizon} to {latest}")]
    Outside {
        /// What was asked for.
        asked: String,
        /// The oldest.
        horizon: Lsn,
        /// The newest.
        latest: Lsn,
    },
    /// The log could not be read.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

/// The points that can be selected: any LSN from `horizon` to `latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The oldest.
    pub horizon: Lsn,
    /// The newest.
    pub latest: Lsn,
}

impl Node {
    /// The selectable points; `None` if this node keeps none.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        (self.index.is_some() && self.is_born())
            .then(|| Window { horizon: self.state.horizon, latest: self.log.durable().lsn })
    }

    /// Whether `at` can be selected.
    ///
    /// # Errors
    /// [`Error`].
    pub fn check_point(&self, at: Lsn) -> Result<Window, Error> {
        let window = self.window().ok_or(Error::NotKept)?;
        if at < window.horizon || at > window.latest {
            return Err(Error::Outside {
                asked: format!("LSN {at}"),
                horizon: window.horizon,
                latest: window.latest,
            });
        }
        Ok(window)
    }

    /// Opens a point: it stays as it is until [`Node::unpin`]. Costs nothing in the size of volume or log.
    ///
    /// # Errors
    /// [`Error`].
    pub fn pin(&mut self, at: Lsn) -> Result<(), Error> {
        self.check_point(at)?;
        *self.pins.entry(at).or_default() += 1;
        Ok(())
    }

    /// Closes a point.
    pub fn unpin(&mut self, at: Lsn) {
        let uses = self.pins.get_mut(&at).expect("a point is closed as often as it was opened");
        *uses -= 1;
        if *uses == 0 {
            self.pins.remove(&at);
        }
    }

    /// A read of a volume at a pinned point; `None` if there is no such volume, or the extent is not within it.
    #[must_use]
    pub fn plan_point(&self, id: VolumeId, at: Lsn, extent: Extent) -> Option<Plan> {
        debug_assert!(self.pins.contains_key(&at), "a point is opened before it is read");
        let at = if planted!(MovingPoint) { self.log.durable().lsn } else { at };
        let volume = self.volumes.get(&id)?;
        extent.fits(volume.spec.size).then(|| self.plan_at(id, at, extent)).flatten()
    }

    /// The newest point that is not younger than `time`, by the records' own times. If the primary's clock went
    /// back, the newest LSN whose time, and that of everything before it in its segment, is not beyond `time`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn point_at(&self, time: Timestamp) -> Result<Lsn, Error> {
        let window = self.window().ok_or(Error::NotKept)?;
        match self.log.last_until(time, window.latest)? {
            Some(lsn) if lsn >= window.horizon => Ok(lsn),
            _ => Err(Error::Outside {
                asked: "a time before the first point".to_owned(),
                horizon: window.horizon,
                latest: window.latest,
            }),
        }
    }
}
