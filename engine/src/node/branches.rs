//! Branches: what a promotion, or an old primary's return, left beside the main line.
//!
//! - A branch is kept as long as the point that it left the line at may be chosen, and at least until the promotion
//!   is committed (guarantee 7); then its files are used again. An operator may drop one earlier.
//! - It is taken off the record first, and its files are given back behind that: a power cut in between leaves files
//!   that the next start finds to belong to nothing.
//! - A fenced primary has no branch yet, but can tell what will be one: what its log holds behind the record at which
//!   the history that fenced it leaves its own.

use super::Node;
use crate::log::branch::BranchReader;
use crate::state::{Branch, Role};
use crate::types::Now;

/// Why a branch cannot be dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DropError {
    /// None of that kind.
    #[error("there is no such branch")]
    NotFound,
    /// The operator may still move to a point on it.
    #[error("it belongs to a failover that is not committed")]
    Uncommitted,
    /// It is what this old primary wrote alone; nobody has decided on it.
    #[error("it becomes a branch once this old primary is taken back")]
    NotYet,
    /// The disk failed.
    #[error("the state could not be written: {0}")]
    Failed(String),
}

impl Node {
    /// The branches, oldest first; on a fenced primary also the one that its return would make.
    #[must_use]
    pub fn branches(&self) -> Vec<Branch> {
        let mut branches = self.state.branches.clone();
        branches.extend(self.pending_branch());
        branches
    }

    /// What a fenced primary has written that is no part of the history which fenced it.
    #[must_use]
    pub fn pending_branch(&self) -> Option<Branch> {
        let fenced = self.state.role == Role::Fenced && !self.state.fenced_by.is_empty();
        let parting = fenced.then(|| self.parting(&self.state.fenced_by, self.log.durable().position()));
        parting?.ok()?.branch
    }

    /// A branch, for reading its headers.
    #[must_use]
    pub fn read_branch(&self, branch: &Branch) -> BranchReader {
        self.log.branch(branch, &self.state.branch_gaps)
    }

    /// Gives up a branch for good.
    ///
    /// # Errors
    /// [`DropError`]; it is still there then.
    pub fn drop_branch(&mut self, now: Now, branch: &Branch) -> Result<(), DropError> {
        if !self.state.branches.contains(branch) {
            let pending = self.pending_branch().as_ref() == Some(branch);
            return Err(if pending { DropError::NotYet } else { DropError::NotFound });
        }
        if self.state.uncommitted.is_some_and(|at| at == branch.after.lsn) {
            return Err(DropError::Uncommitted);
        }
        self.give_up(now, |kept| kept != branch).map_err(DropError::Failed)
    }

    /// Gives up the branches whose points are gone.
    pub(super) fn expire_branches(&mut self, now: Now) {
        let oldest = self.state.horizon;
        let is_kept = |branch: &Branch| branch.after.lsn >= oldest;
        if self.state.uncommitted.is_none() && !self.state.branches.iter().all(is_kept) {
            // A failure has failed the group.
            let _ = self.give_up(now, is_kept);
        }
    }

    fn give_up(&mut self, now: Now, keep: impl Fn(&Branch) -> bool) -> Result<(), String> {
        let (epoch, before) = (self.state.epoch(), self.state.branches.len());
        self.update_state(now, |state| state.branches.retain(&keep)).map_err(|error| error.to_string())?;
        let dropped = before - self.state.branches.len();
        tracing::info!(group = %self.config.name, %epoch, dropped, "branches were given up");
        if let Err(error) = self.log.keep_branches(&self.state.branches) {
            tracing::warn!(group = %self.config.name, %error, "a file of a branch could not be freed");
        }
        Ok(())
    }

    /// Bytes of log files that only branches need.
    #[must_use]
    pub fn branch_bytes(&self) -> u64 {
        self.log.branch_bytes()
    }
}
