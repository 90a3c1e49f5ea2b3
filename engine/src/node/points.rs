//! Recovery points: every durable LSN from the horizon on is one.
//!
//! A point that is in use is pinned: retention does not move past it, so what it shows does not change.

use super::Node;
use crate::changes::{Budget, Changes};
use crate::io::File;
use crate::kept::KeptMark;
use crate::log::ship::ReadError;
use crate::read::{AtKept, From, Plan};
use crate::types::{Extent, Lsn, Timestamp, VolumeId};
use std::sync::Arc;

/// Why there is no such point.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node keeps no points.
    #[error("this node keeps no recovery points: it writes the log, its replicas keep the points")]
    NotKept,
    /// Outside the window.
    #[error(
        "{asked} cannot be selected: the points here reach from LSN {horizon} to {latest}{}",
        beside(kept)
    )]
    Outside {
        /// What was asked for.
        asked: String,
        /// The oldest.
        horizon: Lsn,
        /// The newest.
        latest: Lsn,
        /// The marks behind the window that are nearest: the one before and the one after, as far as there are any.
        kept: Vec<Lsn>,
    },
    /// Within a sync span.
    #[error(
        "{asked} lies within a sync span, whose states are not whole; the nearest points are {}",
        nearest(*before, *after)
    )]
    Coarse {
        /// What was asked for.
        asked: String,
        /// The newest point before the span.
        before: Option<Lsn>,
        /// The oldest behind it.
        after: Option<Lsn>,
    },
    /// None yet.
    #[error("there is no recovery point yet: the first copy of the disks has not ended")]
    NoneYet,
    /// The log could not be read.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

fn beside(kept: &[Lsn]) -> String {
    match kept {
        [] => String::new(),
        [one] => format!("; behind them the nearest mark is LSN {one}"),
        [before, after, ..] => format!("; behind them the nearest marks are LSN {before} and LSN {after}"),
    }
}

fn nearest(before: Option<Lsn>, after: Option<Lsn>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("LSN {before} and LSN {after}"),
        (Some(one), None) => format!("LSN {one}, before it; it has not ended"),
        (None, Some(one)) => format!("LSN {one}, behind it"),
        (None, None) => "none: it has not ended".to_owned(),
    }
}

/// The points that can be selected: any LSN from `horizon` to `latest`, but for those within a sync span
/// ([`Node::coarse`]), and both of them for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The oldest.
    pub horizon: Lsn,
    /// The newest.
    pub latest: Lsn,
}

impl Node {
    /// The selectable points; `None` if this node keeps none, or has none yet.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        if self.index.is_none() || !self.is_born() {
            return None;
        }
        if planted!(PointInsideSpan) {
            return Some(Window { horizon: self.state.horizon, latest: self.log.durable().lsn });
        }
        let (latest, _) = self.whole_around(self.log.durable().lsn);
        let (_, horizon) = self.whole_around(self.state.horizon);
        let (horizon, latest) = (horizon?, latest?);
        // A replica that has no record yet has nothing that anybody could want.
        (horizon <= latest && latest > Lsn::ZERO).then_some(Window { horizon, latest })
    }

    /// Why there is no window, if there is none.
    #[must_use]
    pub fn no_window(&self) -> Error {
        if self.index.is_some() { Error::NoneYet } else { Error::NotKept }
    }

    /// Whether `at` can be opened: a point of the window, or a mark that is kept behind it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn check_open(&self, at: Lsn) -> Result<(), Error> {
        if self.is_kept(at) { Ok(()) } else { self.check_point(at).map(drop) }
    }

    /// The kept marks on both sides of what `is_before` tells.
    fn kept_beside(&self, is_before: impl Fn(&KeptMark) -> bool) -> Vec<Lsn> {
        let marks = self.kept_marks();
        let split = marks.partition_point(|(mark, _)| is_before(mark));
        let before = split.checked_sub(1).and_then(|index| marks.get(index));
        [before, marks.get(split)].into_iter().flatten().map(|(mark, _)| mark.at).collect()
    }

    /// Whether `at` is a point of the window, any of which a failover may go to.
    ///
    /// # Errors
    /// [`Error`].
    pub fn check_point(&self, at: Lsn) -> Result<Window, Error> {
        let window = self.window().ok_or_else(|| self.no_window())?;
        if at < window.horizon || at > window.latest {
            return Err(Error::Outside {
                asked: format!("LSN {at}"),
                horizon: window.horizon,
                latest: window.latest,
                kept: if at < window.horizon { self.kept_beside(|mark| mark.at <= at) } else { Vec::new() },
            });
        }
        let (before, after) = self.whole_around(at);
        if before != Some(at) && !planted!(PointInsideSpan) {
            return Err(Error::Coarse { asked: format!("LSN {at}"), before, after });
        }
        Ok(window)
    }

    /// Opens a point: it stays as it is until [`Node::unpin`]. Costs nothing in the size of volume or log.
    ///
    /// # Errors
    /// [`Error`].
    pub fn pin(&mut self, at: Lsn) -> Result<(), Error> {
        self.check_open(at)?;
        *self.pins.entry(at).or_default() += 1;
        Ok(())
    }

    /// Closes a point.
    pub fn unpin(&mut self, at: Lsn) {
        let uses = self.pins.get_mut(&at).expect("a point is closed as often as it was opened");
        *uses -= 1;
        if *uses == 0 {
            self.pins.remove(&at);
            self.work.thin = true;
        }
    }

    /// A read of a volume at a pinned point; `None` if there is no such volume, or the extent is not within it.
    #[must_use]
    pub fn plan_point(&self, id: VolumeId, at: Lsn, extent: Extent) -> Option<Plan> {
        debug_assert!(self.pins.contains_key(&at), "a point is opened before it is read");
        let at = if planted!(MovingPoint) { self.log.durable().lsn } else { at };
        let volume = self.volumes.get(&id)?;
        if at >= self.state.horizon {
            return extent.fits(volume.size_at(at)).then(|| self.plan_at(id, at, extent)).flatten();
        }
        let mark = self.kept.find(at)?;
        let spec = mark.volumes.iter().find(|spec| spec.id == id)?;
        let kept = AtKept { marks: self.kept.clone(), at, volume: id, base: volume.base.clone()? };
        extent.fits(spec.size).then(|| Plan::new(extent, vec![(extent, From::Kept(kept))]))
    }

    /// What guests write to a volume of `size` bytes at an open point is kept in `file`, which is empty: nothing of it
    /// reaches the node.
    ///
    /// # Errors
    /// Of the file.
    pub fn changes(
        &self,
        id: VolumeId,
        size: u64,
        file: Arc<dyn File>,
        budget: &Arc<Budget>,
    ) -> std::io::Result<Changes> {
        if planted!(DrillReachesBase)
            && let Some(base) = self.volumes.get(&id).and_then(|volume| volume.base.as_ref())
        {
            return Changes::new(base.clone(), budget, size);
        }
        Changes::new(file, budget, size)
    }

    /// The newest point that is not younger than `time`, by the records' own times. If the primary's clock went
    /// back, the newest LSN whose time, and that of everything before it in its segment, is not beyond `time`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn point_at(&self, time: Timestamp) -> Result<Lsn, Error> {
        let window = self.window().ok_or_else(|| self.no_window())?;
        let found = self.log.last_until(time, window.latest)?;
        match found.and_then(|lsn| self.whole_around(lsn).0) {
            Some(lsn) if lsn >= window.horizon => Ok(lsn),
            _ => Err(Error::Outside {
                asked: "a time before the first point".to_owned(),
                horizon: window.horizon,
                latest: window.latest,
                kept: self.kept_beside(|mark| mark.time <= time),
            }),
        }
    }
}
