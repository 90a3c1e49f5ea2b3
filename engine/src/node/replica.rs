//! A replica: lets a primary in or not, appends what it sends, says what is durable.
//!
//! What a primary may do here is decided by histories alone:
//!
//! - its newest epoch is below one that this node has seen: superseded, and told by whom (guarantee 6);
//! - the same epoch, but another node's: rivals, nothing changes;
//! - its history continues this one: welcome from the durable position;
//! - its history left this one at an LSN that this log has passed: what lies behind stays as a branch, and the
//!   log goes on from there (guarantee 7).
//!
//! The history is adopted durably before the welcome leaves: from then on nothing older is let in, whatever
//! happens to this process.

use super::rejoin::Parting;
use super::resize::{cut_specs, sizes_of};
use super::{LastPrimary, Node, Volume, coarse, disks, open};
use crate::event::{FLAG_AGAIN, Kind, MAX_BODY_BYTES};
use crate::overlay::Overlay;
use crate::peer::{Batch, Hello, Rebuff, TakesBack, Welcome};
use crate::state::{Keeps, Role};
use crate::types::{Lsn, Now, Position, Reign};
use crate::{lacks, log};

/// The most reigns of a history.
pub const MAX_REIGNS: usize = 256;

impl Node {
    /// A primary introduces itself. What an earlier session left unsynced is made durable first, so that the
    /// welcome tells where the next record goes; a caller that has a sync out brings it back before.
    ///
    /// An old primary becomes its replica if `takes_back` says so.
    ///
    /// # Errors
    /// [`Rebuff`]: the answer to send.
    pub fn accept(&mut self, now: Now, hello: &Hello, takes_back: TakesBack) -> Result<Welcome, Rebuff> {
        let Some(&newest) = hello.history.last() else { return Err(Rebuff::NotAllowed) };
        let sane = hello.history.len() <= MAX_REIGNS
            && hello.history.is_sorted_by(|a, b| a.epoch < b.epoch && a.branch.lsn <= b.branch.lsn);
        if !sane || hello.name != self.config.name {
            return Err(Rebuff::NotAllowed);
        }
        if self.is_born() && hello.group != self.state.group {
            return Err(Rebuff::WrongGroup);
        }
        self.compare_epochs(now, &hello.history, newest, takes_back)?;
        if self.failed.is_some() {
            return Err(Rebuff::Failed);
        }
        if newest.node != hello.node {
            return Err(self.take_over(now, hello, newest));
        }
        if !self.is_born() {
            let adopted = self.be_born(hello.group, hello.history.clone());
            adopted.map_err(|error| {
                // Half of it may be on disk, and a sync that failed is not repeated by this process.
                self.fail(now, format!("could not become a replica: {error}"));
                Rebuff::Failed
            })?;
        }
        if self.state.role == Role::Fenced {
            self.rejoin(now, hello)?;
        }
        let durable = self.settle_at_rest(now)?;
        let durable = self.adopt(now, hello, durable)?;
        self.end_divergence(now).map_err(|_| Rebuff::Failed)?;
        if durable.lsn > hello.durable.lsn {
            // A primary only ever sends what is durable there.
            return Err(Rebuff::Diverged { at: durable });
        }
        self.stream = Some(newest.epoch);
        self.last_primary = Some(LastPrimary { heard: now.mono, durable: hello.durable.lsn });
        Ok(Welcome { node: self.config.node, durable, horizon: self.state.horizon })
    }

    /// Who is newer, by epochs alone; fences this node if it is the older primary.
    fn compare_epochs(
        &mut self,
        now: Now,
        theirs: &[Reign],
        their: Reign,
        takes_back: TakesBack,
    ) -> Result<(), Rebuff> {
        let seen = self.state.epoch_seen();
        if their.epoch < seen && !planted!(AcceptOlderEpoch) {
            let fenced = self.state.fenced_by.last().is_some_and(|reign| reign.epoch == seen);
            let history = if fenced { &self.state.fenced_by } else { &self.state.history };
            return Err(Rebuff::Superseded { history: history.clone() });
        }
        if let Some(ours) = self.state.history.iter().find(|reign| reign.epoch == their.epoch)
            && *ours != their
        {
            return Err(Rebuff::Rival { history: self.state.history.clone() });
        }
        if self.state.role == Role::Primary && self.state.history.last() == Some(&their) {
            // The caller offers what this node has taken already.
            return Err(Rebuff::Superseded { history: self.state.history.clone() });
        }
        if their.epoch > seen {
            self.end_offer(now, theirs);
        }
        if self.state.role == Role::Primary && their.epoch > self.state.epoch() {
            self.fence(now, theirs);
        }
        match (self.state.role, takes_back) {
            (Role::Replica, _) | (Role::Fenced, TakesBack::Yes) => Ok(()),
            (Role::Primary, _) | (Role::Fenced, TakesBack::No) => Err(Rebuff::NotAllowed),
        }
    }

    /// Whether a sync is out, in which case [`Node::accept`] and [`Node::promote`] have to wait.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.work.is_syncing()
    }

    /// Takes over the primary's history, leaving what it does not contain as a branch.
    fn adopt(&mut self, now: Now, hello: &Hello, durable: Position) -> Result<Position, Rebuff> {
        if self.state.history == hello.history {
            return Ok(durable);
        }
        if self.work.is_busy() {
            // A fold that is under way may be past the place where the histories part. The next try finds it done.
            return Err(Rebuff::Failed);
        }
        let Parting { tip, end, branch } = self.parting(&hello.history, durable)?;
        let cut = tip.lsn;
        if cut < self.state.horizon {
            return Err(Rebuff::TooFarBehind { durable });
        }
        // What the branch had brought of what this node's disks lack is lacked again.
        let again = match (&self.diverged, branch) {
            (Some(diverged), Some(_)) => {
                let mut extents = self.changed_since(cut)?;
                extents.add(diverged);
                let number = self.next_lacks_file();
                let noted = [lacks::Lacks { replica: lacks::OWN.to_owned(), extents: extents.clone() }];
                lacks::write(&*self.storage, &self.config.dir, number, &noted).map_err(|error| {
                    tracing::warn!(group = %self.config.name, %error, "what diverged could not be noted");
                    Rebuff::Failed
                })?;
                Some((number, extents))
            }
            _ => None,
        };
        let history = hello.history.clone();
        let specs = self.specs_at(cut.min(self.state.durable));
        let dropped = self.stale_at(cut);
        let mut coarse = self.coarse.clone();
        Node::cut_coarse(cut, &mut coarse);
        self.update_state(now, |state| {
            state.history = history;
            Node::cut_coarse(cut, &mut state.coarse);
            state.cut_gaps(cut);
            if let Some(branch) = branch {
                state.branches.push(branch);
                state.durable = state.durable.min(cut);
                cut_specs(&mut state.volumes, &specs);
                if state.keeps() == Keeps::Disks {
                    state.stale_disks.extend(dropped);
                }
            }
            if let (Some((number, _)), Some(diverged)) = (&again, &mut state.diverged) {
                state.lacks_file = *number;
                diverged.through = cut;
            }
        })
        .map_err(|_| Rebuff::Failed)?;
        if let Some(branch) = branch {
            tracing::info!(
                group = %self.config.name, after = %cut, last = %branch.last, epoch = %branch.epoch,
                "records that the new primary never had are kept as a branch"
            );
            self.log.cut(tip, end);
            self.coarse = coarse;
            if let Some(index) = &mut self.index {
                index.truncate_after(cut);
            }
            self.cut_volumes(cut);
            self.marks.split_off(&cut.next());
        }
        if let Some((_, extents)) = again {
            self.diverged = Some(extents);
            self.brought.clear();
        }
        Ok(self.log.durable().position())
    }

    /// Makes everything appended durable, here and now.
    pub(super) fn settle_at_rest(&mut self, now: Now) -> Result<Position, Rebuff> {
        assert!(!self.work.is_syncing(), "a hello is judged while no sync is out");
        self.sync_now(now).map_err(|_| Rebuff::Failed)?;
        Ok(self.log.durable().position())
    }

    /// Appends a batch of the primary's records.
    ///
    /// # Errors
    /// [`Rebuff`]: the answer to send; the session ends with it.
    pub fn append(&mut self, now: Now, batch: Batch) -> Result<(), Rebuff> {
        if self.failed.is_some() {
            return Err(Rebuff::Failed);
        }
        // A newer primary may have been heard of that could not be welcomed: the stream of the older one ends with
        // that all the same.
        let stale = self.stream.is_none_or(|epoch| epoch < self.state.epoch_seen());
        if self.state.role != Role::Replica || stale {
            return Err(Rebuff::Superseded { history: self.state.history.clone() });
        }
        // What was appended counts, whatever kept the rest from it: it is in the log.
        let (appended, error) = self.log.append_batch(batch, &self.state.history);
        if !appended.is_empty() {
            self.appended(now);
        }
        for record in &appended {
            self.work.unsynced_bytes += record.header.record_len() as u64;
            self.follow(record).map_err(|error| {
                self.fail(now, error);
                Rebuff::Failed
            })?;
        }
        match error {
            None => Ok(()),
            Some(error @ log::Error::NotNext { .. }) => {
                tracing::warn!(group = %self.config.name, %error, "a primary sent what does not follow");
                Err(Rebuff::Diverged { at: self.log.tip().position() })
            }
            Some(error) if error.is_no_space() => Err(Rebuff::NoSpace),
            Some(error) => {
                tracing::warn!(group = %self.config.name, %error, "records could not be appended");
                self.log_refused(now, &error);
                Err(Rebuff::Failed)
            }
        }
    }

    /// Takes note of one record.
    fn follow(&mut self, record: &log::Appended) -> Result<(), String> {
        let header = &record.header;
        match header.kind {
            Kind::Write | Kind::Zero => {
                let known = self.volumes.get(&header.volume);
                let fits = known.is_some_and(|volume| header.extent.fits(volume.spec.size));
                if !fits && self.is_coarse() {
                    // The definition, or the size, was left out, and is repeated soon; the span copies what this
                    // writes.
                    return Ok(());
                }
                if !fits {
                    return Err(format!("LSN {}: a write beyond its volume", header.lsn));
                }
                let index = self.index.as_mut().expect("a replica has an index");
                open::index_record(index, header, record.place);
                self.note_brought(header);
            }
            Kind::Volume if header.flags & FLAG_AGAIN != 0 && self.volumes.contains_key(&header.volume) => {
                let spec = open::spec_of(header, &record.payload)
                    .ok_or_else(|| format!("LSN {}: a volume that cannot be", header.lsn))?;
                self.follow_resize(header, spec.size)?;
            }
            Kind::Resize => {
                let (before, behind) = sizes_of(header);
                let known = self.volumes.get(&header.volume).map(|volume| volume.spec.size);
                if known != Some(before) && !self.is_coarse() {
                    return Err(format!(
                        "LSN {}: a volume of {before} bytes, which is none here",
                        header.lsn
                    ));
                }
                self.follow_resize(header, behind)?;
            }
            // One that was taken back may know it from its own time.
            Kind::Volume
                if open::spec_of(header, &record.payload).is_some_and(|spec| {
                    self.volumes.get(&spec.id).is_some_and(|known| known.spec == spec)
                }) => {}
            Kind::Volume => {
                assert!(record.payload.len() <= MAX_BODY_BYTES, "the log has checked the length");
                let spec = open::spec_of(header, &record.payload)
                    .ok_or_else(|| format!("LSN {}: a volume that cannot be", header.lsn))?;
                let any = disks::Presence::Any;
                let base = disks::open_kept(&*self.storage, &self.config, &self.state, &spec, any)
                    .map_err(|error| error.to_string())?;
                tracing::info!(
                    group = %self.config.name, volume = spec.name, size = spec.size,
                    "volume defined"
                );
                let in_place = coarse::defines_in_place(header);
                let volume = Volume {
                    spec,
                    defined: header.lsn,
                    in_place,
                    resizes: Vec::new(),
                    backing: None,
                    base,
                    active: Overlay::default(),
                    frozen: None,
                };
                self.volumes.insert(header.volume, volume);
                if in_place && !planted!(SkipInPlace) {
                    coarse::await_data(&mut self.coarse, header, self.volumes.len());
                }
            }
            Kind::SpanBegin | Kind::SpanEnd | Kind::Promote => {
                coarse::follow(&mut self.coarse, self.config.node, header, &record.payload);
                if header.kind == Kind::SpanEnd && !self.is_coarse() {
                    tracing::info!(group = %self.config.name, at = %header.lsn, "the sync span ended");
                }
            }
            Kind::Scrub => self.note_scrub(header, &record.payload),
            Kind::Mark => self.note_mark(header),
            Kind::Open | Kind::Flush => {}
        }
        Ok(())
    }

    /// The primary said how far it is.
    pub fn heard(&mut self, now: Now, durable: Lsn) {
        self.last_primary = Some(LastPrimary { heard: now.mono, durable });
    }

    /// What to acknowledge: the position that survives a power cut here, and nothing beyond it.
    #[must_use]
    pub fn acknowledgeable(&self) -> Position {
        self.log.durable().position()
    }
}
