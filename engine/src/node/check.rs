//! A replica's side of online verification: it compares what the primary's scrub records say with what is here.
//!
//! - A record is looked at once it is durable, by a read of the point at its LSN, out of log and base image. The point
//!   is pinned as long as that takes, so no fold passes it. Nothing else waits for it.
//! - What is no point cannot be compared: LSNs within a sync span of this replica are skipped, and so is what retention
//!   was faster than. Skipped is not the same, and not a mismatch.
//! - A mismatch is kept with both digests until a later scrub of the same part finds it well, and while it is wanted the
//!   primary is asked for the part, in each session.
//! - A fold that meets a record which has rotted waits here for the same: its part is asked for, and found well.
//! - None of this is on record here. If we die between finding and asking, the next round finds it again: the
//!   damage is on the disk, not in our memory of it. Once asked, it is on the primary's record until it is repaired.

use super::Node;
use super::fold::Folded;
use crate::digest::Digest;
use crate::event::{OnMismatch, Scrubbed, decode_body};
use crate::log::format::Header;
use crate::overlay::{Content, Overlay, gaps};
use crate::peer::{Ask, Checked, Lack};
use crate::read::Plan;
use crate::state::Role;
use crate::types::{Epoch, Extent, Lsn, Now, Timestamp, VolumeId};
use std::collections::VecDeque;

/// Records that wait to be looked at; the primary sends less than that ahead. Beyond, they are skipped.
const MAX_WAITING: usize = 1024;
/// Mismatches that are kept; beyond, they are counted alone, and found again by the next round.
pub const MAX_FOUND: usize = 256;
/// Parts that the primary is asked for at a time: below what the link holds.
const MAX_ASKED: usize = 32;
/// After so many repairs of one part that left it as it was no more is asked for: the disk does not keep what it is
/// given.
const MAX_REPAIRS: u32 = 3;

/// A part that is not what the primary says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The volume.
    pub volume: VolumeId,
    /// The part.
    pub extent: Extent,
    /// At which LSN.
    pub at: Lsn,
    /// When it was found, by this node's clock.
    pub time: Timestamp,
    /// What the primary holds.
    pub expected: Digest,
    /// What is here, or why that cannot be read.
    pub found: Result<Digest, String>,
    /// What is done about it.
    pub repair: Repair,
}

/// What is done about a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: the round was to report alone.
    NotWanted,
    /// The primary is asked to send the part again.
    Asked,
    /// It was sent again and again, and is still not what it should be.
    GivenUp,
}

/// What scrubs have found on a replica since this process began.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChecksReport {
    /// Of the newest round.
    pub newest: Checked,
    /// Records that wait to be looked at.
    pub waiting: u64,
    /// Records of all rounds.
    pub same: u64,
    /// Likewise.
    pub mismatched: u64,
    /// Likewise.
    pub skipped: u64,
    /// Mismatches that a later scrub has found well again.
    pub repaired: u64,
    /// Those that none has, at most [`MAX_FOUND`].
    pub open: Vec<Mismatch>,
    /// A part that retention could not read out of the log, and why; it waits for the primary to send it again.
    pub damaged: Option<(VolumeId, Extent, String)>,
}

struct Known {
    mismatch: Mismatch,
    /// The parts of it that a later scrub has found well.
    well: Overlay,
    repairs: u32,
    /// The number of its ask.
    number: u64,
}

/// A part that a fold could not read.
struct Damage {
    volume: VolumeId,
    extent: Extent,
    /// It lies at or below this.
    at: Lsn,
    reason: String,
    /// The parts of it that a later scrub has found well.
    well: Overlay,
    /// The LSN at which all of it is.
    well_at: Option<Lsn>,
    /// The number of its ask.
    number: u64,
}

#[derive(Clone, Copy)]
struct Waiting {
    lsn: Lsn,
    epoch: Epoch,
    volume: VolumeId,
    extent: Extent,
    scrubbed: Scrubbed,
}

/// The book-keeping.
#[derive(Default)]
pub(crate) struct Checks {
    waiting: VecDeque<Waiting>,
    checking: Option<Waiting>,
    report: ChecksReport,
    known: Vec<Known>,
    damage: Option<Damage>,
    numbers: u64,
    /// The number under which `report.newest` is said; 0 if there is nothing to say.
    said: u64,
}

/// See [`Job::Check`](super::work::Job::Check).
pub struct Check {
    plan: Plan,
    extent: Extent,
}

/// What a check read.
pub struct Compared {
    result: std::io::Result<Digest>,
}

impl Check {
    pub(super) fn run(self) -> Compared {
        Compared { result: Digest::of_plan(&self.plan, self.extent) }
    }
}

enum Outcome {
    Same,
    Skipped,
    Mismatched,
}

impl Checks {
    /// A part is being compared.
    pub(super) fn is_comparing(&self) -> bool {
        self.checking.is_some()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Counts a record that is done with.
    fn count(&mut self, round: u64, outcome: &Outcome, tip: Lsn) {
        let newest = &mut self.report.newest;
        if round > newest.round {
            *newest = Checked { round, ..Checked::default() };
        }
        // What is checked anew is of no round.
        let mut unused = Checked::default();
        let counts = if round == newest.round { newest } else { &mut unused };
        let (of_round, of_all) = match outcome {
            Outcome::Same => (&mut counts.same, &mut self.report.same),
            Outcome::Skipped => (&mut counts.skipped, &mut self.report.skipped),
            Outcome::Mismatched => (&mut counts.mismatched, &mut self.report.mismatched),
        };
        (*of_round, *of_all) = (*of_round + 1, *of_all + 1);
        let next = self.checking.as_ref().or(self.waiting.front()).map(|waiting| waiting.lsn);
        self.report.newest.upto = next.map_or(tip, Lsn::prev);
        self.said = self.number();
    }

    /// The part that a fold could not read: the LSN from which on it is well, once there is one.
    pub(super) fn damage(&self) -> Option<Option<Lsn>> {
        self.damage.as_ref().map(|damage| damage.well_at)
    }

    /// The log was cut: what was found well behind its end is not any more. The fold finds the damage again. A node that
    /// is no replica any more has nobody to ask, and waits for nobody.
    pub(super) fn forget_damage_beyond(&mut self, end: Lsn, asks: bool) {
        if !asks || self.damage().flatten().is_some_and(|well| well > end) {
            self.damage = None;
        }
    }

    /// A part was found well at an LSN.
    fn found_well(&mut self, checked: &Waiting) {
        if let Some(damage) = self.damage.as_mut().filter(|damage| damage.volume == checked.volume)
            && damage.at < checked.lsn
            && let Some(part) = damage.extent.intersect(checked.extent)
        {
            damage.well.insert(part, Content::Zero { no_hole: false });
            let well: Vec<_> = damage.well.within(damage.extent).collect();
            if gaps(damage.extent, &well).is_empty() && damage.well_at.is_none() {
                damage.well_at = Some(checked.lsn);
            }
        }
        for known in self.known.iter_mut().filter(|known| known.mismatch.volume == checked.volume) {
            if known.mismatch.at < checked.lsn
                && let Some(part) = known.mismatch.extent.intersect(checked.extent)
            {
                known.well.insert(part, Content::Zero { no_hole: false });
            }
        }
        let before = self.known.len();
        self.known.retain(|known| {
            let well: Vec<_> = known.well.within(known.mismatch.extent).collect();
            !gaps(known.mismatch.extent, &well).is_empty()
        });
        self.report.repaired += (before - self.known.len()) as u64;
    }

    fn found_other(&mut self, now: Now, checked: &Waiting, found: Result<Digest, String>) {
        let Waiting { lsn, volume, extent, scrubbed, .. } = *checked;
        // What is known of it is about the same damage, or about some of it.
        let touches = |known: &Known| {
            known.mismatch.volume == volume && known.mismatch.extent.intersect(extent).is_some()
        };
        let repairs = self.known.iter().filter(|known| touches(known)).map(|known| known.repairs).max();
        let repairs = match scrubbed.round {
            0 => repairs.unwrap_or(0) + 1,
            _ => 0,
        };
        self.known.retain(|known| !(touches(known) && is_within(known.mismatch.extent, extent)));
        let repair = match scrubbed.on_mismatch {
            OnMismatch::Report => Repair::NotWanted,
            OnMismatch::Repair if repairs >= MAX_REPAIRS => Repair::GivenUp,
            OnMismatch::Repair => Repair::Asked,
        };
        if self.known.len() < MAX_FOUND {
            let expected = scrubbed.digest;
            let mismatch = Mismatch { volume, extent, at: lsn, time: now.wall, expected, found, repair };
            let number = self.number();
            self.known.push(Known { mismatch, well: Overlay::default(), repairs, number });
        }
    }
}

fn is_within(part: Extent, whole: Extent) -> bool {
    part.intersect(whole) == Some(part)
}

impl Node {
    /// A scrub record came.
    pub(super) fn note_scrub(&mut self, header: &Header, payload: &[u8]) {
        let Some(scrubbed) = decode_body::<Scrubbed>(payload) else { return };
        let Header { lsn, epoch, volume, extent, .. } = *header;
        self.checks.waiting.push_back(Waiting { lsn, epoch, volume, extent, scrubbed });
        if self.checks.waiting.len() > MAX_WAITING
            && let Some(oldest) = self.checks.waiting.pop_front()
        {
            self.checks.count(oldest.scrubbed.round, &Outcome::Skipped, lsn);
        }
    }

    /// Whether a record could be looked at.
    pub(super) fn check_is_due(&self) -> bool {
        let durable = self.log.durable().lsn;
        let first = self.checks.waiting.front();
        self.checks.checking.is_none() && first.is_some_and(|waiting| waiting.lsn <= durable)
    }

    /// The next comparison.
    pub(super) fn poll_check(&mut self) -> Option<super::work::Job> {
        while self.check_is_due() {
            let waiting = self.checks.waiting.pop_front()?;
            match self.plan_check(&waiting) {
                Some(plan) => {
                    *self.pins.entry(waiting.lsn).or_default() += 1;
                    self.checks.checking = Some(waiting);
                    return Some(super::work::Job::Check(Check { plan, extent: waiting.extent }));
                }
                None => {
                    self.checks.count(waiting.scrubbed.round, &Outcome::Skipped, self.log.tip().lsn);
                }
            }
        }
        None
    }

    /// A read of what a record tells of; `None` if it cannot be compared.
    fn plan_check(&self, waiting: &Waiting) -> Option<Plan> {
        let Waiting { lsn, volume, extent, .. } = *waiting;
        let fits = extent.fits(self.volumes.get(&volume)?.size_at(lsn));
        let is_point = self.is_of_the_line(waiting) && self.check_point(lsn).is_ok();
        (fits && is_point).then(|| self.plan_at(volume, lsn, extent)).flatten()
    }

    /// Whether a record is still part of what this replica follows.
    fn is_of_the_line(&self, waiting: &Waiting) -> bool {
        self.state.role == Role::Replica && self.epoch_of(waiting.lsn) == waiting.epoch
    }

    /// Takes back what was read.
    pub(super) fn finish_check(&mut self, now: Now, compared: Compared) {
        let Some(checked) = self.checks.checking.take() else { return };
        self.unpin(checked.lsn);
        let round = checked.scrubbed.round;
        let outcome = match compared.result {
            // The log was cut below it meanwhile, or this is no replica any more.
            _ if !self.is_of_the_line(&checked) => Outcome::Skipped,
            Ok(digest) if digest == checked.scrubbed.digest => {
                self.checks.found_well(&checked);
                Outcome::Same
            }
            other => {
                let found = other.map_err(|error| error.to_string());
                tracing::warn!(
                    group = %self.config.name, volume = %checked.volume, offset = checked.extent.offset,
                    len = checked.extent.len, at = %checked.lsn, expected = %checked.scrubbed.digest, ?found,
                    "this copy is not what the primary holds"
                );
                self.checks.found_other(now, &checked, found);
                Outcome::Mismatched
            }
        };
        self.checks.count(round, &outcome, self.log.tip().lsn);
    }

    /// What became of a fold. A primary has nobody to ask: there a record that has rotted ends the group's serving.
    pub(super) fn note_fold(&mut self, now: Now, folded: Folded) {
        let Folded::Damaged { volume, extent, reason } = folded else {
            let base = self.state.base;
            if self.checks.damage().flatten().is_some_and(|well| well <= base) {
                self.checks.damage = None;
            }
            return;
        };
        if self.state.role != Role::Replica {
            self.fail(now, format!("folding: {reason}"));
            return;
        }
        tracing::warn!(
            group = %self.config.name, %volume, offset = extent.offset, len = extent.len, reason,
            "a record has rotted in the log: its part is asked for, and points are retired when it has come"
        );
        let number = self.checks.number();
        let (at, well) = (self.log.durable().lsn, Overlay::default());
        self.checks.damage = Some(Damage { volume, extent, at, reason, well, well_at: None, number });
    }

    /// What this node asks of its primary now, each with its number: see the link's standing.
    #[must_use]
    pub fn asks(&self) -> Vec<(u64, Ask)> {
        if self.state.role != Role::Replica {
            return Vec::new();
        }
        let wanted = self.checks.known.iter().filter(|known| known.mismatch.repair == Repair::Asked);
        let mut asks: Vec<_> = wanted
            .map(|known| {
                let Mismatch { volume, extent, .. } = known.mismatch;
                (known.number, Ask::Repair(Lack { volume, extent }))
            })
            .collect();
        asks.sort_by_key(|(number, _)| *number);
        asks.truncate(MAX_ASKED);
        if let Some(damage) = self.checks.damage.as_ref().filter(|damage| damage.well_at.is_none()) {
            let Damage { volume, extent, number, .. } = *damage;
            asks.push((number, Ask::Repair(Lack { volume, extent })));
        }
        if let Some(wish) = self.wish {
            asks.push((wish.number, Ask::Handover));
        }
        if self.checks.said > 0 {
            asks.push((self.checks.said, Ask::Checked(self.checks.report.newest)));
        }
        asks.sort_by_key(|(number, _)| *number);
        asks
    }

    /// What scrubs have found here; `None` on a primary.
    #[must_use]
    pub fn checks(&self) -> Option<ChecksReport> {
        let checks = &self.checks;
        (self.state.role == Role::Replica).then(|| ChecksReport {
            waiting: checks.waiting.len() as u64,
            damaged: checks
                .damage
                .as_ref()
                .map(|damage| (damage.volume, damage.extent, damage.reason.clone())),
            open: checks.known.iter().map(|known| known.mismatch.clone()).collect(),
            ..checks.report.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrub(lsn: u64, round: u64, extent: Extent) -> Waiting {
        let scrubbed = Scrubbed { digest: Digest::of(b"theirs"), round, on_mismatch: OnMismatch::Repair };
        Waiting { lsn: Lsn(lsn), epoch: Epoch(1), volume: VolumeId(1), extent, scrubbed }
    }

    fn open(checks: &Checks) -> Vec<(Extent, Repair)> {
        checks.known.iter().map(|known| (known.mismatch.extent, known.mismatch.repair)).collect()
    }

    /// A disk that does not keep what it is given is not written to for ever; the next round tries once more.
    #[test]
    fn a_part_that_stays_wrong_is_given_up() {
        let mut checks = Checks::default();
        let whole = Extent::new(0, 1 << 20);
        let find = |checks: &mut Checks, lsn, round| {
            checks.found_other(Now::default(), &scrub(lsn, round, whole), Ok(Digest::of(b"ours")));
            open(checks)
        };
        assert_eq!(find(&mut checks, 10, 9), [(whole, Repair::Asked)]);
        assert_eq!(find(&mut checks, 20, 0), [(whole, Repair::Asked)]);
        assert_eq!(find(&mut checks, 30, 0), [(whole, Repair::Asked)]);
        assert_eq!(find(&mut checks, 40, 0), [(whole, Repair::GivenUp)]);
        assert_eq!(find(&mut checks, 50, 49), [(whole, Repair::Asked)]);
    }

    /// What is found well in parts is well when all of them are.
    #[test]
    fn a_mismatch_is_over_when_all_of_it_was_found_well() {
        let mut checks = Checks::default();
        let part = |offset, len| Extent::new(offset, len);
        checks.found_other(Now::default(), &scrub(10, 9, part(4096, 8192)), Err("gone".to_owned()));
        checks.found_well(&scrub(9, 9, part(0, 1 << 20)));
        checks.found_well(&scrub(11, 0, part(0, 8192)));
        checks.found_well(&scrub(12, 0, part(8192, 512)));
        assert_eq!(open(&checks).len(), 1, "some of it was not looked at since");
        checks.found_well(&scrub(13, 0, part(8192 + 512, 1 << 20)));
        assert_eq!((open(&checks).len(), checks.report.repaired), (0, 1));
    }
}
