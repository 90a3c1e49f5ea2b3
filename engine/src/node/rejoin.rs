//! An old primary that is taken back: it becomes a replica of the primary that took over.
//!
//! What it wrote behind the point where the histories part was never replicated. It stays in the log as a branch
//! (guarantee 7), and what it changed on the disks is made up for by a sync span that copies those extents and no
//! others: the node knows them by the headers of the branch, and names them in each of its welcomes until the log has
//! brought them all.
//!
//! - A node with base images of its own, whose points reach back to where the histories part, lacks nothing: it goes
//!   on from there as any replica does.
//! - Where the log does not reach back to the parting, since it was given up for a replica, the extents that were
//!   tracked for that replica are what diverged.
//! - One without (the first primary of a group) goes on upon the volumes' disks themselves: they hold the state at the
//!   parting, but for what the branch changed. Not a byte is copied to begin with.
//!
//! All of it is decided by one write of the state file; before it comes the file that names what diverged. A power cut
//! leaves the fenced primary or the replica, and then the log is read anew as after any death: the same code makes
//! the replica in a running process.

use super::resize::cut_specs;
use super::{Node, open};
use crate::extents::{BLOCK_BYTES, Extents};
use crate::lacks;
use crate::log::chain::Tip;
use crate::log::format::Header;
use crate::peer::{Hello, Lack, MAX_LACKS, Rebuff};
use crate::state::{Branch, Coarse, Diverged, Keeps, Role};
use crate::types::{Extent, Incarnation, Lsn, Now, Position, Reign, VolumeId};

/// Where a history leaves that of this node.
pub(super) struct Parting {
    /// The last record that both share.
    pub(super) tip: Tip,
    /// The byte behind it in its segment.
    pub(super) end: u64,
    /// What lies behind it here.
    pub(super) branch: Option<Branch>,
}

impl Node {
    /// Where a primary's history leaves this node's, whose log ends at `durable`.
    pub(super) fn parting(&self, theirs: &[Reign], durable: Position) -> Result<Parting, Rebuff> {
        let common = self.state.history.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        // The first reign of theirs that is not ours begins behind this position; nothing of ours behind it, or
        // behind the first reign of ours that is not theirs, is part of the history any more.
        let ends = [self.state.history.get(common), theirs.get(common)];
        let cut = ends.iter().flatten().map(|reign| reign.branch.lsn).fold(durable.lsn, Lsn::min);
        let cut = self.log.floor(cut);
        let found = self.log.tip_at(cut).map_err(|error| {
            tracing::warn!(%error, "the log could not be read");
            Rebuff::Failed
        })?;
        let (tip, _, end) = found.ok_or(Rebuff::TooFarBehind { durable })?;
        if let Some(theirs) = theirs.get(common)
            && theirs.branch.lsn == cut
            && theirs.branch != tip.position()
        {
            return Err(Rebuff::Diverged { at: tip.position() });
        }
        let branch = (cut < durable.lsn).then(|| Branch {
            epoch: durable.epoch,
            after: tip.position(),
            last: durable.lsn,
        });
        Ok(Parting { tip, end, branch })
    }

    /// Makes this fenced primary a replica of the primary that says hello.
    ///
    /// # Errors
    /// [`Rebuff`]: the answer to send; nothing was changed, unless the state could not be written.
    pub(super) fn rejoin(&mut self, now: Now, hello: &Hello) -> Result<(), Rebuff> {
        assert!(self.state.role.may_become(Role::Replica), "the role was checked");
        if self.work.is_busy() || self.work.is_making() {
            return Err(Rebuff::NotYet);
        }
        self.sync_now(now).map_err(|_| Rebuff::Failed)?;
        let durable = self.log.durable().position();
        let keeps = self.state.keeps();
        let known = self.parting(&hello.history, durable).and_then(|Parting { tip, branch, .. }| {
            let is_exact = keeps != Keeps::Nothing && tip.lsn >= self.state.horizon;
            let diverged = if is_exact { Extents::default() } else { self.changed_since(tip.lsn)? };
            Ok((tip, branch, is_exact, diverged))
        });
        let (tip, branch, is_exact, mut diverged) = match known {
            Err(Rebuff::TooFarBehind { .. }) if keeps == Keeps::Nothing => {
                let (tip, diverged) = self.tracked_parting(hello).ok_or(Rebuff::TooFarBehind { durable })?;
                // Of what was written since, the log holds the end.
                let after = self.log.start().position();
                let branch = (after.lsn < durable.lsn).then_some(Branch {
                    epoch: durable.epoch,
                    after,
                    last: durable.lsn,
                });
                (tip, branch, false, diverged)
            }
            known => known?,
        };
        let cut = tip.lsn;
        let restarts = cut < self.log.start().lsn;
        let defined = self.volumes_at(cut);
        // What the branch has defined goes with it.
        diverged.retain(|id| defined.contains(&id) && !planted!(ForgetDiverged));
        let (dropped, specs) = (self.stale_at(cut), self.specs_at(cut));
        let size_of = |id| specs.iter().find(|spec| spec.id == id).map_or(0, |spec| spec.size);
        let beyond =
            |(id, extent): (VolumeId, Extent)| extent.end() > size_of(id).next_multiple_of(BLOCK_BYTES);
        if diverged.runs().any(beyond) {
            // Nothing would ever bring what should stand there if the volume grows again.
            tracing::warn!(
                group = %self.config.name, after = %cut,
                "this old primary made a volume larger alone and wrote there: it is not taken back upon its disks. Move \
                 its data directory away, and it comes in as a new replica"
            );
            return Err(Rebuff::TooFarBehind { durable });
        }
        if keeps == Keeps::Nothing && !self.disks_hold_all() {
            self.work.hurry();
            return Err(Rebuff::NotYet);
        }
        let number = self.next_lacks_file();
        if !diverged.is_empty() {
            let noted = [lacks::Lacks { replica: lacks::OWN.to_owned(), extents: diverged.clone() }];
            lacks::write(&*self.storage, &self.config.dir, number, &noted).map_err(|error| {
                tracing::warn!(group = %self.config.name, %error, "what diverged could not be noted");
                if crate::io::is_no_space(&error) { Rebuff::NoSpace } else { Rebuff::Failed }
            })?;
        }
        let base = match keeps {
            // The disks hold everything up to there, and beyond it only what diverged.
            Keeps::Nothing => cut,
            Keeps::Images | Keeps::Disks => self.state.base.min(cut),
        };
        let history = hello.history.clone();
        // The sizes on record are those at what is durable on record; the log tells the others.
        let on_record = self.specs_at(cut.min(self.state.durable));
        let decided = self.update_state(now, |state| {
            state.role = Role::Replica;
            state.history = history;
            state.cut_gaps(cut);
            state.fenced_by = Vec::new();
            state.branches.extend(branch.filter(|_| !planted!(DropBranch)));
            state.incarnation = Incarnation(state.incarnation.0 + 1);
            state.durable = cut.min(state.durable);
            if restarts {
                state.start = tip;
            }
            state.hydration = None;
            cut_specs(&mut state.volumes, &on_record);
            if keeps != Keeps::Images || !is_exact {
                state.stale_disks.extend(dropped);
            }
            state.acknowledged = Vec::new();
            state.lost = Vec::new();
            state.lacks_file = if diverged.is_empty() { 0 } else { number };
            state.diverged = (!diverged.is_empty()).then_some(Diverged { after: cut, through: cut });
            state.keeps = Some(if keeps == Keeps::Nothing { Keeps::Disks } else { keeps });
            state.uncommitted = None;
            state.takes_back = false;
            state.handed_over = None;
            // One that a fold was to go to.
            state.kept.retain(|kept| kept.at <= cut);
            if is_exact {
                Node::cut_coarse(cut, &mut state.coarse);
            } else {
                (state.base, state.horizon) = (base, base);
                // The base images hold what only the branch had, and a layer what was before that.
                state.kept = Vec::new();
                let whole = Coarse { from: Lsn::ZERO, begun: cut, to: None };
                state.coarse = if diverged.is_empty() { Vec::new() } else { vec![whole] };
            }
        });
        decided.map_err(|_| Rebuff::Failed)?;
        tracing::info!(
            group = %self.config.name, after = %cut, epoch = %hello.history.last().map_or(0, |reign| reign.epoch.0),
            writes = durable.lsn.0 - cut.0, diverged_bytes = diverged.bytes(),
            "this old primary is a replica now; what it wrote alone is kept as a branch"
        );
        self.reload(now)
    }

    /// Where a primary's history leaves this node's if the log does not reach back so far, and what changed since:
    /// known if it was tracked for a replica that stood there or before.
    fn tracked_parting(&self, hello: &Hello) -> Option<(Tip, Extents)> {
        let ours = &self.state.history;
        let common = ours.iter().zip(&hello.history).take_while(|(a, b)| a == b).count();
        let at = hello.history.get(common)?.branch;
        let is_ours = common == ours.len() && self.epoch_of(at.lsn) == at.epoch;
        let tracked = self.followers.values().filter_map(|follower| follower.lack.as_ref());
        let changed = tracked.filter_map(|lack| lack.changed_since(at.lsn)).next()?;
        // A volume all of which changed may have been defined since: then no disk of the primary's holds its zeros.
        let is_new = |(id, extent): (VolumeId, Extent)| {
            self.volumes.get(&id).is_some_and(|volume| extent.offset == 0 && extent.len >= volume.spec.size)
        };
        if at.lsn > Lsn::ZERO && changed.runs().any(is_new) {
            return None;
        }
        // The record behind it begins an incarnation, whichever came before.
        let tip =
            Tip { lsn: at.lsn, epoch: at.epoch, incarnation: Incarnation::default(), checksum: at.checksum };
        is_ours.then(|| (tip, changed.clone()))
    }

    /// Reads the node's files anew, as its next start would.
    pub(super) fn reload(&mut self, now: Now) -> Result<(), Rebuff> {
        let file = self.file.clone().expect("only a node with a state is read anew");
        let (state, lock) = (self.state.clone(), self._lock.clone());
        let loaded = open::load(self.storage.clone(), self.config.clone(), Some(file), state, lock);
        match loaded {
            Ok((mut node, _)) => {
                node.answers = std::mem::take(&mut self.answers);
                node.next_ticket = self.next_ticket;
                node.pins = std::mem::take(&mut self.pins);
                node.take_kept(self);
                *self = node;
                Ok(())
            }
            Err(error) => {
                self.fail(now, format!("the group's files cannot be read: {error}"));
                Err(Rebuff::Failed)
            }
        }
    }

    /// What the records behind `lsn` have changed.
    ///
    /// # Errors
    /// If the log does not tell: it does not reach back, or cannot be read.
    pub(super) fn changed_since(&self, lsn: Lsn) -> Result<Extents, Rebuff> {
        let durable = self.log.durable();
        let mut changed = Extents::default();
        let is_gap = |gap: &crate::state::Gap| gap.after.lsn >= lsn;
        if self.state.gaps.iter().any(is_gap) {
            return Err(Rebuff::TooFarBehind { durable: durable.position() });
        }
        let headers = self.log.headers(lsn, durable.lsn, usize::MAX);
        let covered = headers.run(|header| {
            if header.kind.changes_bytes() {
                changed.insert(header.volume, header.extent);
            }
        });
        match covered {
            Ok(covered) if covered >= durable.lsn || lsn == durable.lsn => Ok(changed),
            Ok(_) => Err(Rebuff::TooFarBehind { durable: durable.position() }),
            Err(error) => {
                tracing::warn!(group = %self.config.name, %error, "the log could not be read");
                Err(Rebuff::Failed)
            }
        }
    }

    /// Whether everything that was logged is on the disks, durably.
    fn disks_hold_all(&self) -> bool {
        let settled = |volume: &super::Volume| volume.active.is_empty() && volume.frozen.is_none();
        self.state.applied >= self.log.durable().lsn && self.volumes.values().all(settled)
    }

    /// What has to be on record of what diverged; its extents join those of the replicas.
    pub(super) fn diverged_on_record(&self, lacks: &mut Vec<lacks::Lacks>) -> Option<Diverged> {
        let (Some(extents), Some(noted)) = (&self.diverged, self.state.diverged) else { return None };
        lacks.push(lacks::Lacks { replica: lacks::OWN.to_owned(), extents: extents.clone() });
        Some(Diverged { after: noted.after, through: self.log.durable().lsn })
    }

    /// The log has brought something, though not durably yet: what is not may be lost again.
    pub(super) fn note_brought(&mut self, header: &Header) {
        if self.diverged.is_some() {
            self.brought.push_back((header.lsn, header.volume, header.extent));
        }
    }

    /// Takes off what diverged what the log has brought durably.
    pub(super) fn settle_divergence(&mut self) {
        let durable = self.log.durable().lsn;
        while let Some((_, id, extent)) = self.brought.pop_front_if(|(lsn, ..)| *lsn <= durable) {
            let size = self.volumes.get(&id).map_or(0, |volume| volume.spec.size);
            if let Some(diverged) = &mut self.diverged {
                diverged.remove(id, extent, size);
                self.work.lacks_changed = true;
            }
        }
        let has_ended = self.coarse.last().is_none_or(|last| last.to.is_some_and(|to| to <= durable));
        if has_ended && self.diverged.take().is_some() {
            self.work.lacks_changed = true;
        }
    }

    /// What this replica's disks hold that is not of the main line, to be told to its primary.
    pub(super) fn diverged_lacks(&self) -> Vec<Lack> {
        let Some(diverged) = &self.diverged else { return Vec::new() };
        let runs: Vec<Lack> = diverged
            .runs()
            .filter_map(|(volume, extent)| {
                let size = self.volumes.get(&volume)?.spec.size;
                Some(Lack { volume, extent: extent.intersect(Extent::new(0, size))? })
            })
            .collect();
        let each = runs.len().div_ceil(MAX_LACKS - self.volumes.len()).max(1);
        // Of more than can be told, neighbours are told with what lies between them.
        let of_volumes = runs.chunk_by(|a, b| a.volume == b.volume);
        let merged = of_volumes.flat_map(|runs| runs.chunks(each)).map(|run| {
            let (first, last) = (run[0], run[run.len() - 1]);
            let extent = Extent::new(first.extent.offset, last.extent.end() - first.extent.offset);
            Lack { volume: first.volume, extent }
        });
        merged.collect()
    }
}
