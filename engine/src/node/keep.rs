//! Which marks outlive the window, and how they are thinned.
//!
//! Behind the window only kept marks are points ([`crate::kept`]). A mark is looked at when the window's end comes to it,
//! and again whenever one was kept since: of each of the youngest minutes, hours and days (as many as are configured) that
//! have one, one mark is kept, and the youngest of those that somebody named. Of several in one hour that is the first
//! which the applications were still for, or else the first: so what was chosen stays chosen.
//!
//! What a power cut leaves of *thinning*: entries in an older layer that it would have found in the newer one, which
//! changes nothing; after the update of the state, a file that the next start removes.

use super::Node;
use super::work::Job;
use crate::catalog::MarkKind;
use crate::event::{FLAG_APPLICATION, Kind, Marked, decode_body};
use crate::io::Storage;
use crate::kept::{self, KeptMark, KeptMarks, Layer, MAX_KEPT};
use crate::log::format::{HEADER_BYTES, Header};
use crate::log::ship::Stretch;
use crate::state::{Keeps, Kept, StateFile};
use crate::types::{Lsn, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes that one job puts from one layer into another: others wait for the lane meanwhile.
const MERGE_BYTES: u64 = 64 << 20;

/// Which marks are kept behind the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// One for each of so many minutes that have one.
    pub minutes: u32,
    /// And hours.
    pub hours: u32,
    /// And days, of 24 hours.
    pub days: u32,
    /// So many that have a name.
    pub named: u32,
    /// Bytes of disk that they may take; the oldest go first.
    pub bytes: u64,
}

/// A mark as thinning sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) time: Timestamp,
    pub(crate) application: bool,
    pub(crate) named: bool,
}

impl Candidate {
    pub(crate) fn of(header: &Header) -> Candidate {
        // An empty name is one byte.
        let (application, named) = (header.flags & FLAG_APPLICATION != 0, header.payload_len > 1);
        Candidate { time: header.time, application, named }
    }
}

impl From<&KeptMark> for Candidate {
    fn from(mark: &KeptMark) -> Candidate {
        let application = mark.kind == MarkKind::Application;
        Candidate { time: mark.time, application, named: !mark.name.is_empty() }
    }
}

const MINUTE_NS: u64 = 60_000_000_000;

impl Keep {
    /// Those of some marks that are to be kept.
    pub(crate) fn wanted(&self, marks: &BTreeMap<Lsn, Candidate>) -> BTreeSet<Lsn> {
        let mut wanted = BTreeSet::new();
        for (every, count) in
            [(MINUTE_NS, self.minutes), (60 * MINUTE_NS, self.hours), (24 * 60 * MINUTE_NS, self.days)]
        {
            let mut chosen: BTreeMap<u64, (Lsn, bool)> = BTreeMap::new();
            for (&lsn, mark) in marks {
                let best = chosen.entry(mark.time.0 / every).or_insert((lsn, mark.application));
                if mark.application && !best.1 {
                    *best = (lsn, true);
                }
            }
            wanted.extend(chosen.into_values().rev().take(count as usize).map(|(lsn, _)| lsn));
        }
        let named = marks.iter().rev().filter(|(_, mark)| mark.named);
        wanted.extend(named.take(self.named as usize).map(|(&lsn, _)| lsn));
        wanted
    }
}

/// A mark that a fold goes to, to keep it.
pub(super) struct Keeping {
    storage: Arc<dyn Storage>,
    dir: String,
    number: u64,
    /// Without its name, which its record has.
    mark: KeptMark,
    record: Stretch,
}

impl Keeping {
    /// Makes its file; `None`, and said why, if that cannot be: then it is not kept, and nothing else happens.
    pub(super) fn make(self) -> Option<(Layer, Kept)> {
        let Keeping { storage, dir, number, mut mark, record } = self;
        let at = mark.at;
        let batch = match record {
            Stretch::Ready(batch) => Ok(Some(batch)),
            Stretch::OnDisk(read) => read.run().map(Some),
            Stretch::Gone | Stretch::UpToDate => Ok(None),
        };
        let made = match batch {
            Ok(batch) => match batch.and_then(|batch| name_in(&batch.bytes.concat())) {
                Some(name) => {
                    mark.name = name;
                    Layer::create(&*storage, &dir, number, mark).map_err(|error| error.to_string())
                }
                None => Err("its record is not there".to_owned()),
            },
            Err(error) => Err(error.to_string()),
        };
        match made {
            Ok(layer) => {
                let bytes = layer.bytes();
                Some((layer, Kept { at, number, bytes }))
            }
            Err(error) => {
                tracing::warn!(%at, error, "a mark cannot be kept");
                None
            }
        }
    }
}

/// The name in the record of a mark.
fn name_in(record: &[u8]) -> Option<String> {
    let marked: Marked = decode_body(record.get(HEADER_BYTES..)?)?;
    Some(marked.name)
}

/// See [`Job::Thin`].
pub struct Thin {
    file: Arc<StateFile>,
    storage: Arc<dyn Storage>,
    dir: String,
    marks: Arc<KeptMarks>,
    gone: Arc<Layer>,
    /// The next older one, which may need what the other has.
    older: Option<Arc<Layer>>,
}

impl Thin {
    pub(super) fn run(self) -> Result<(), String> {
        let Thin { file, storage, dir, marks, gone, older } = self;
        let mut merged = None;
        if let Some(older) = &older {
            let put = kept::merge(&gone, older, MERGE_BYTES).and_then(|all| Ok((all, older.sync()?)));
            match put {
                // The rest comes with the next job.
                Ok((false, _)) => return Ok(()),
                Ok((true, bytes)) => merged = Some(bytes),
                Err(error) => {
                    tracing::warn!(at = %older.mark().at, %error, "kept marks are given up: they cannot be thinned");
                }
            }
        }
        let state = file.update(|state| {
            let Some(older) = &older else {
                state.kept.retain(|kept| kept.number != gone.number());
                return;
            };
            match merged {
                Some(bytes) => {
                    state.kept.retain(|kept| kept.number != gone.number());
                    let older = state.kept.iter_mut().find(|kept| kept.number == older.number());
                    older.into_iter().for_each(|older| older.bytes = bytes);
                }
                None => state.kept.retain(|kept| kept.at > older.mark().at),
            }
        });
        let state = state.map_err(|error| error.to_string())?;
        marks.retain(&state.kept);
        remove_files(&*storage, &dir, &state.kept);
        Ok(())
    }
}

/// Removes what the state does not name; if that fails the next opening does it.
pub(super) fn remove_files(storage: &dyn Storage, dir: &str, kept: &[Kept]) {
    if let Err(error) = kept::remove_others(storage, dir, kept) {
        tracing::debug!(%error, "a file that nobody needs was left behind");
    }
}

impl Node {
    /// Goes on with the marks of what was read anew: reads under way find what is saved from here on.
    pub(super) fn take_kept(&mut self, before: &Node) {
        before.kept.retain(&self.state.kept);
        self.kept = before.kept.clone();
        self.work.kept_file = before.work.kept_file;
    }

    /// The marks that are points behind the window, oldest first, and the bytes of disk that each takes.
    #[must_use]
    pub fn kept_marks(&self) -> Vec<(KeptMark, u64)> {
        let mut marks = self.kept.marks();
        marks.retain(|(mark, _)| self.is_kept(mark.at));
        marks
    }

    /// Whether `at` is a point only because it is kept.
    #[must_use]
    pub fn is_kept(&self, at: Lsn) -> bool {
        self.index.is_some()
            && at < self.state.horizon
            && at <= self.state.base
            && self.work.thinning != Some(at)
            && self.kept.contains(at)
    }

    /// A mark that is a point only because it is kept.
    #[must_use]
    pub fn kept_mark(&self, at: Lsn) -> Option<KeptMark> {
        self.kept.find(at).filter(|mark| self.is_kept(mark.at))
    }

    /// Takes note of a mark in the log.
    pub(super) fn note_mark(&mut self, header: &Header) {
        if header.kind == Kind::Mark && self.index.is_some() {
            self.marks.insert(header.lsn, Candidate::of(header));
        }
    }

    /// Those that are kept by now.
    fn kept_candidates(&self) -> BTreeMap<Lsn, Candidate> {
        let marks = self.kept.marks();
        let kept = marks.iter().filter(|(mark, _)| mark.at <= self.state.base);
        kept.map(|(mark, _)| (mark.at, Candidate::from(mark))).collect()
    }

    /// The first mark that is to be kept among those that a fold up to `upto` would retire.
    ///
    /// A fold that was cut off has left the base images anywhere below the horizon: what is older than that cannot be
    /// kept any more.
    pub(super) fn next_to_keep(&self, upto: Lsn) -> Option<Lsn> {
        let keep = &self.config.retention.keep;
        let is_off = keep.minutes == 0 && keep.hours == 0 && keep.days == 0 && keep.named == 0;
        // A fold over what has rotted may not stop within it.
        let may =
            self.checks.damage().is_none() && !(self.state.keeps() == Keeps::Disks && self.is_hydrating());
        if is_off || !may || self.state.kept.len() >= MAX_KEPT {
            return None;
        }
        let from = self.state.horizon.max(self.state.base.next());
        let mut candidates = self.kept_candidates();
        for (&lsn, &mark) in self.marks.range(from..).take_while(|(lsn, _)| **lsn <= upto) {
            candidates.insert(lsn, mark);
            let is_point = self.whole_around(lsn).0 == Some(lsn);
            if is_point && keep.wanted(&candidates).contains(&lsn) {
                return Some(lsn);
            }
            candidates.remove(&lsn);
        }
        None
    }

    /// What a fold needs to keep the mark at `at`; `None` if it is being kept already.
    pub(super) fn keeping(&mut self, at: Lsn) -> Option<Keeping> {
        let mark = *self.marks.get(&at)?;
        if self.state.kept.iter().any(|kept| kept.at == at) {
            return None;
        }
        let named = self.state.kept.iter().map(|kept| kept.number).max().unwrap_or(0);
        self.work.kept_file = self.work.kept_file.max(named) + 1;
        let kind = if mark.application { MarkKind::Application } else { MarkKind::Bookmark };
        let (epoch, time, volumes) = (self.epoch_of(at), mark.time, self.specs_at(at));
        Some(Keeping {
            storage: self.storage.clone(),
            dir: self.config.dir.clone(),
            number: self.work.kept_file,
            mark: KeptMark { at, epoch, time, kind, name: String::new(), volumes },
            record: self.log.read(at, 1),
        })
    }

    /// The next kept mark that is to go, if there is one.
    pub(super) fn poll_thin(&mut self) -> Option<Job> {
        if !std::mem::take(&mut self.work.thin) {
            return None;
        }
        let file = self.file.clone()?;
        let keep = &self.config.retention.keep;
        let candidates = self.kept_candidates();
        let wanted = keep.wanted(&candidates);
        let bytes: u64 = self.kept.marks().iter().map(|(_, bytes)| bytes).sum();
        let is_free = |lsn: &&Lsn| !self.pins.contains_key(lsn) || planted!(PrunePinned);
        // Nobody can open it by now.
        let begun = self.work.thinning.take();
        let begun = begun.and_then(|at| candidates.keys().find(|&&lsn| lsn == at));
        let unwanted = candidates.keys().filter(|lsn| !wanted.contains(lsn)).find(is_free);
        // A younger one needs nothing of an older one.
        let oldest = || candidates.keys().next().filter(|_| bytes > keep.bytes).filter(is_free);
        let gone = *begun.or(unwanted).or_else(oldest)?;
        let (older, gone) = self.kept.pair(gone)?;
        (self.work.thin, self.work.thinning) = (true, Some(gone.mark().at));
        tracing::info!(group = %self.config.name, at = %gone.mark().at, "a mark is not kept any longer");
        let (storage, dir, marks) = (self.storage.clone(), self.config.dir.clone(), self.kept.clone());
        Some(Job::Thin(Thin { file, storage, dir, marks, gone, older }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64, application: bool, named: bool) -> Candidate {
        Candidate { time: Timestamp(minutes * MINUTE_NS), application, named }
    }

    fn lsns(wanted: &BTreeSet<Lsn>) -> Vec<u64> {
        wanted.iter().map(|lsn| lsn.0).collect()
    }

    #[test]
    fn one_of_each_of_the_youngest_minutes_hours_and_days() {
        let every_ten = (0..300).map(|n| (Lsn(n + 1), at(n * 10, false, false)));
        let marks: BTreeMap<_, _> = every_ten.collect();
        let keep = Keep { minutes: 2, hours: 3, days: 2, ..Keep::default() };
        // 300 marks are 50 hours: three days, of which the last has two hours.
        assert_eq!(lsns(&keep.wanted(&marks)), [145, 283, 289, 295, 299, 300]);
        assert!(Keep::default().wanted(&marks).is_empty());
    }

    #[test]
    fn what_the_applications_were_still_for_goes_first() {
        let marks =
            [(Lsn(1), at(0, false, false)), (Lsn(5), at(7, true, false)), (Lsn(9), at(9, true, false))];
        let keep = Keep { hours: 1, ..Keep::default() };
        assert_eq!(lsns(&keep.wanted(&BTreeMap::from(marks))), [5]);
    }

    #[test]
    fn names_are_kept_by_number() {
        let marks = (1..=9).map(|n| (Lsn(n), at(n, false, n % 2 == 0))).collect();
        let keep = Keep { named: 2, ..Keep::default() };
        assert_eq!(lsns(&keep.wanted(&marks)), [6, 8]);
    }

    #[test]
    fn what_was_chosen_stays_chosen_as_time_goes_on() {
        let keep = Keep { minutes: 3, hours: 2, days: 1, named: 1, bytes: 0 };
        let mut kept: BTreeMap<Lsn, Candidate> = BTreeMap::new();
        let mut dropped: BTreeSet<Lsn> = BTreeSet::new();
        for n in 1..2_000 {
            kept.insert(Lsn(n), at(n / 3, n % 11 == 0, n % 13 == 0));
            let wanted = keep.wanted(&kept);
            dropped.extend(kept.keys().filter(|lsn| !wanted.contains(lsn)));
            kept.retain(|lsn, _| wanted.contains(lsn));
            assert!(kept.keys().all(|lsn| !dropped.contains(lsn)));
            assert!(kept.len() <= 7);
        }
    }
}
