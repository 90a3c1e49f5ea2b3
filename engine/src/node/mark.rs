//! Marks: named points, which an operator or a script wants to find again, and periodic ones.
//!
//! A mark is a record like any other, so it is replicated, and a point as any LSN is. It tells what the applications were
//! doing: nothing that anybody knows of, or nothing at all, since they had been asked to be still. It is durable here when
//! it is answered.
//!
//! A periodic mark has no name. It is set when a guest's write has been without a mark behind it for the configured
//! time ([`Limits::marks_ms`](super::config::Limits::marks_ms)), with the next sync of the log, so it costs a record, and
//! a sync only where nobody writes any more. A volume that nobody writes to is not marked again.

use super::Node;
use super::keep::Candidate;
use super::promote::CommitError;
use crate::catalog::{MAX_NAME_BYTES, MarkKind};
use crate::event::{FLAG_APPLICATION, Kind, Marked, encode_body};
use crate::log;
use crate::state::Role;
use crate::types::{Lsn, Mono, Now, VolumeId};

/// Why nothing was marked.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Only a primary marks.
    #[error(transparent)]
    NotPrimary(CommitError),
    /// The group failed.
    #[error("the group failed: {0}")]
    Failed(String),
    /// A name that nobody could write.
    #[error(
        "a mark's name is 1 to {MAX_NAME_BYTES} letters, digits, dots, dashes, underscores and colons, and starts \
         with a letter or digit"
    )]
    BadName,
    /// Guests wait: the group is being handed over.
    #[error("the group is being handed over to a replica")]
    HandingOver,
    /// A sync is under way; the caller tries again.
    #[error("the log is being synced")]
    Busy,
    /// The log does not take it.
    #[error("the log takes no record: {0}")]
    Log(#[from] log::Error),
}

/// Whether a mark can have a name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
}

impl Node {
    /// Marks the state that everything appended so far makes, durably.
    ///
    /// If we die in here the mark is there or not.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn mark(&mut self, now: Now, name: &str, kind: MarkKind) -> Result<Lsn, MarkError> {
        if let Some(failed) = &self.failed {
            return Err(MarkError::Failed(failed.reason.clone()));
        }
        if self.state.role != Role::Primary {
            return Err(MarkError::NotPrimary(CommitError::NotPrimary(self.state.role)));
        }
        if !is_name(name) {
            return Err(MarkError::BadName);
        }
        if self.is_draining() {
            return Err(MarkError::HandingOver);
        }
        if self.work.is_syncing() {
            return Err(MarkError::Busy);
        }
        self.append_mark(now, name, kind)?;
        let at = self.log.tip().lsn;
        self.sync_now(now).map_err(MarkError::Failed)?;
        tracing::info!(group = %self.config.name, name, ?kind, %at, "marked");
        Ok(at)
    }

    fn append_mark(&mut self, now: Now, name: &str, kind: MarkKind) -> Result<(), log::Error> {
        let flags = match kind {
            MarkKind::Bookmark => 0,
            MarkKind::Application => FLAG_APPLICATION,
        };
        let epoch = self.state.epoch();
        self.begin(now)?;
        let body = encode_body(&Marked { name: name.to_owned() });
        self.append_flagged(now, epoch, Kind::Mark, flags, VolumeId(0), &body)?;
        if self.index.is_some() {
            let (application, named) = (kind == MarkKind::Application, !name.is_empty());
            self.marks.insert(self.log.tip().lsn, Candidate { time: now.wall, application, named });
        }
        self.work.unmarked_since = None;
        Ok(())
    }

    /// When the next periodic mark is due; `None` if nothing was written since the last one, or none can be set.
    pub(super) fn mark_due_at(&self) -> Option<Mono> {
        let may = self.state.role == Role::Primary && self.failed.is_none() && !self.is_draining();
        let every = self.config.limits.marks_ms.filter(|_| may)?;
        self.work.unmarked_since.map(|since| since.plus_ms(every))
    }

    /// Sets a periodic mark, if one is due; the sync that follows makes it durable. If the log takes none, the next
    /// is tried a whole interval later: guests need the room more.
    pub(super) fn mark_if_due(&mut self, now: Now) {
        if self.mark_due_at().is_none_or(|at| now.mono < at) {
            return;
        }
        if let Err(error) = self.append_mark(now, "", MarkKind::Bookmark) {
            tracing::debug!(group = %self.config.name, %error, "no periodic mark");
            self.work.unmarked_since = Some(now.mono);
        }
    }
}
