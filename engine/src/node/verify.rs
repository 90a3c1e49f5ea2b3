//! A primary's side of online verification: it tells its replicas, by scrub records in the log, what its volumes hold.
//!
//! A round goes over all bytes of all volumes. A part is read without the node, as a guest's read is; if no guest has
//! written there when the read is back, a record with its digest is appended, and says so of the LSN at which it
//! stands. If one has, the part is tried again, in halves and later. Guests wait for nothing of it, and write what they
//! like.
//!
//! - Holes are told of as well, in long stretches: what should be zeros may have rotted like anything else.
//! - No more records are ahead of the replicas than they can look at soon ([`Ask::Checked`]).
//! - Reads are paced: by a rate, by the room in the log, and by the guests: at most half of the time while there are any.
//! - A part that a replica wants again is owed to it, on record, before a sync span begins in mid-session which brings
//!   it; when that has ended, the part is checked anew.
//! - Two copies cannot tell which of them is right. Ours is the one that is served, so ours is sent.
//!
//! A round is not on record: it ends with this process, or with its reign, and another one begins from the start.

use super::Node;
use super::work::Job;
use crate::digest::Digest;
use crate::event::{Kind, OnMismatch, Scrubbed, encode_body};
use crate::log::Draft;
use crate::peer::{Ask, Checked, Lack};
use crate::read::Plan;
use crate::state::Role;
use crate::types::{Extent, Lsn, Mono, Now, Timestamp, VolumeId};
use std::collections::VecDeque;

/// Bytes of one record, where there is data.
const SCRUB_BYTES: u64 = 1 << 20;
/// Bytes of one record of a hole, and what is searched for holes at once.
const LOOK_BYTES: u64 = 64 << 20;
/// A part is not cut smaller than this when guests write there.
const LEAST_BYTES: u64 = 4096;
/// A part of that size is left out of a round after so many reads that guests were faster than.
const MAX_TRIES: u32 = 6;
/// Parts that wait to be read again; beyond, they are left out of the round.
const MAX_AGAIN: usize = 4096;
/// Records that a replica has not looked at yet.
const WINDOW_RECORDS: usize = 32;
/// Parts that one replica wants again; beyond, it asks again later.
const MAX_REPAIRS: usize = 256;
/// Segments of room that are left to guests.
const RESERVE_SEGMENTS: u64 = 2;
/// Guests that asked for something within this time are there.
const GUEST_MS: u64 = 20;
/// After something that did not work.
const RETRY_MS: u64 = 500;
/// A node that has just started begins its first scheduled round after this part of the schedule's time.
const FIRST_AFTER: u64 = 10;

/// Why no round begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a primary that serves.
    #[error("this node does not serve the group: its role is {0}; verification begins on the primary")]
    NotPrimary(&'static str),
    /// The group failed.
    #[error("the group failed: {0}")]
    Failed(String),
    /// Nothing to compare with.
    #[error("no replica is configured for this group: there is nothing to compare with")]
    NoReplica,
    /// One is under way.
    #[error("round {} is under way", .0.number)]
    UnderWay(RoundReport),
}

/// A round of verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundReport {
    /// Its number: the LSN behind which it began.
    pub number: u64,
    /// What becomes of mismatches.
    pub on_mismatch: OnMismatch,
    /// When it began.
    pub begun: Timestamp,
    /// When it ended; `None` while it is under way.
    pub ended: Option<Timestamp>,
    /// Bytes of the volumes that it has passed.
    pub done_bytes: u64,
    /// Bytes of all volumes.
    pub total_bytes: u64,
    /// Scrub records so far.
    pub records: u64,
    /// Bytes that it left out because guests write there all the time.
    pub busy_bytes: u64,
    /// Bytes that could not be read here.
    pub unreadable_bytes: u64,
    /// No replica is there that could look at more of it.
    pub waits: bool,
    /// What the replicas say.
    pub replicas: Vec<Verdict>,
}

/// What a replica says of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its name.
    pub replica: String,
    /// Records whose extent is the same there.
    pub same: u64,
    /// Records whose extent is not.
    pub mismatched: u64,
    /// Records that it did not look at: it was in a sync span.
    pub skipped: u64,
    /// Records of which it has not said anything.
    pub unchecked: u64,
}

/// Rounds of verification that ended, and what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many.
    pub rounds: u64,
    /// Bytes of volumes that they passed.
    pub bytes: u64,
    /// Parts that a replica held something else in, over all replicas.
    pub mismatched: u64,
    /// Bytes that could not be read here.
    pub unreadable_bytes: u64,
    /// Parts that replicas wanted again, and that were sent.
    pub sent_again: u64,
}

struct Round {
    report: RoundReport,
    /// `None` behind the last volume.
    cursor: Option<(VolumeId, u64)>,
    /// Its newest record.
    last: Lsn,
}

/// A part to be read.
#[derive(Clone, Copy, Debug)]
struct Part {
    volume: VolumeId,
    extent: Extent,
    /// 0 for one that is checked anew.
    round: u64,
    on_mismatch: OnMismatch,
    tries: u32,
}

struct Scanning {
    part: Part,
    begun: Mono,
    /// A guest has written there meanwhile.
    touched: bool,
}

/// The book-keeping.
#[derive(Default)]
pub(crate) struct Verify {
    round: Option<Round>,
    last: Option<RoundReport>,
    pub(super) totals: Totals,
    again: VecDeque<Part>,
    scanning: Option<Scanning>,
    /// Records that some replica may not have looked at.
    sent: VecDeque<Lsn>,
    /// Nothing is read before this.
    at: Mono,
    /// When the schedule begins the next round.
    next: Option<Mono>,
}

/// What one replica has found, and what is done about it.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    /// It has looked at everything up to here.
    told: Lsn,
    checked: Checked,
    /// What it wants again.
    wants: Vec<(VolumeId, Extent)>,
    /// What is checked anew once its span has ended.
    anew: Vec<(VolumeId, Extent)>,
}

impl Verified {
    /// A session goes on behind `lsn`: what was before has been looked at, or never will be.
    pub(crate) fn attached(&mut self, lsn: Lsn) {
        self.told = self.told.max(lsn);
    }
}

/// See [`Job::Scrub`].
pub struct Scrub {
    plan: Plan,
    extent: Extent,
}

/// What a scrub read.
pub struct Scanned {
    /// As much as it has read, from the part's start.
    extent: Extent,
    /// Bytes that are not in a hole.
    data_bytes: u64,
    result: std::io::Result<Digest>,
}

impl Scrub {
    pub(super) fn run(self) -> Scanned {
        let Scrub { plan, extent } = self;
        let first = match plan.status() {
            Ok(stretches) => stretches.first().copied(),
            Err(error) => return Scanned { extent, data_bytes: 0, result: Err(error) },
        };
        let (len, is_hole) = first.map_or((extent.len, false), |stretch| (stretch.len, stretch.hole));
        let len = if is_hole { len } else { len.min(SCRUB_BYTES) };
        let extent = Extent::new(extent.offset, len);
        let data_bytes = if is_hole { 0 } else { len };
        Scanned { extent, data_bytes, result: Digest::of_plan(&plan, extent) }
    }
}

impl Verify {
    /// A part is being read.
    pub(super) fn is_reading(&self) -> bool {
        self.scanning.is_some()
    }

    /// A guest's write.
    pub(crate) fn note_change(&mut self, volume: VolumeId, extent: Extent) {
        if let Some(scanning) = self.scanning.as_mut().filter(|scanning| scanning.part.volume == volume) {
            scanning.touched |= scanning.part.extent.intersect(extent).is_some();
        }
    }

    /// Guests were faster: the part is read again in halves, or later.
    fn put_off(&mut self, part: Part, now: Now) {
        self.at = self.at.max(now.mono.plus_ms(1 << part.tries.min(6)));
        let Part { extent, tries, .. } = part;
        let middle = (extent.offset + extent.len / 2).next_multiple_of(LEAST_BYTES);
        let parts = match extent.len > LEAST_BYTES && middle < extent.end() {
            true => vec![
                Part { extent: Extent::new(extent.offset, middle - extent.offset), ..part },
                Part { extent: Extent::new(middle, extent.end() - middle), ..part },
            ],
            false => vec![Part { tries: tries + 1, ..part }],
        };
        for part in parts {
            if part.tries < MAX_TRIES && self.again.len() < MAX_AGAIN {
                self.again.push_back(part);
            } else if let Some(round) = self.round.as_mut().filter(|_| part.round > 0) {
                round.report.busy_bytes += part.extent.len;
            }
        }
    }
}

impl Node {
    /// Begins a round; returns its number.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify(&mut self, now: Now, on_mismatch: OnMismatch) -> Result<u64, VerifyError> {
        if let Some(failed) = &self.failed {
            return Err(VerifyError::Failed(failed.reason.clone()));
        }
        if self.state.role != Role::Primary {
            return Err(VerifyError::NotPrimary(self.state.role.name()));
        }
        if self.followers.is_empty() {
            return Err(VerifyError::NoReplica);
        }
        if self.verify.round.is_some() {
            return Err(self.round().map_or(VerifyError::NoReplica, VerifyError::UnderWay));
        }
        let number = self.log.tip().lsn.0.max(1);
        let report = RoundReport {
            number,
            on_mismatch,
            begun: now.wall,
            ended: None,
            done_bytes: 0,
            total_bytes: self.volume_specs().map(|spec| spec.size).sum(),
            records: 0,
            busy_bytes: 0,
            unreadable_bytes: 0,
            waits: false,
            replicas: Vec::new(),
        };
        self.verify.round = Some(Round { report, cursor: Some((VolumeId(0), 0)), last: Lsn::ZERO });
        tracing::info!(group = %self.config.name, number, ?on_mismatch, "verification begins");
        Ok(number)
    }

    /// The round that is under way, or else the one that ended last in this process.
    #[must_use]
    pub fn round(&self) -> Option<RoundReport> {
        let Some(round) = &self.verify.round else { return self.verify.last.clone() };
        let mut report = round.report.clone();
        report.waits = !self.listeners().any(|_| true);
        report.replicas = self
            .followers
            .iter()
            .map(|(name, follower)| {
                let said = Some(follower.verified.checked).filter(|checked| checked.round == report.number);
                let Checked { same, mismatched, skipped, .. } = said.unwrap_or_default();
                let unchecked = report.records.saturating_sub(same + mismatched + skipped);
                Verdict { replica: name.clone(), same, mismatched, skipped, unchecked }
            })
            .collect();
        Some(report)
    }

    /// A replica asks, in mid-session.
    pub fn asked(&mut self, now: Now, replica: &str, ask: Ask) {
        match ask {
            Ask::Handover => self.asked_for_group(now, replica),
            Ask::Checked(checked) => {
                if let Some(follower) = self.followers.get_mut(replica) {
                    let told = checked.upto.min(self.log.tip().lsn);
                    follower.verified.told = follower.verified.told.max(told);
                    follower.verified.checked = checked;
                }
            }
            Ask::Repair(Lack { volume, extent }) => {
                let size = self.volumes.get(&volume).map_or(0, |volume| volume.spec.size);
                let Some(extent) = extent.intersect(Extent::new(0, size)) else { return };
                let Some(follower) = self.followers.get_mut(replica) else { return };
                let wants = &mut follower.verified.wants;
                if wants.len() < MAX_REPAIRS && !wants.contains(&(volume, extent)) {
                    wants.push((volume, extent));
                }
            }
        }
    }

    /// Whether a part of a volume or of the log is being read to see whether it is well.
    pub(super) fn is_reading_at_rest(&self) -> bool {
        self.verify.is_reading() || self.checks.is_comparing() || self.reread.is_out()
    }

    /// The replicas that look at scrub records as they come.
    fn listeners(&self) -> impl Iterator<Item = &super::Follower> {
        self.followers.values().filter(|follower| follower.connected && follower.lack.is_none())
    }

    /// Whether a part may be read now, as far as the replicas go.
    fn is_window_open(&self) -> bool {
        let slowest = self.listeners().map(|follower| follower.verified.told).min();
        slowest
            .is_some_and(|told| self.verify.sent.iter().filter(|&&lsn| lsn > told).count() < WINDOW_RECORDS)
    }

    fn has_repairs(&self) -> bool {
        let may = |follower: &super::Follower| {
            let verified = &follower.verified;
            let ending = follower.lack.as_ref().is_some_and(super::span::Lack::is_ending);
            !verified.wants.is_empty() && !ending
                || !verified.anew.is_empty() && follower.connected && follower.lack.is_none()
        };
        self.followers.values().any(may)
    }

    /// Whether [`Node::poll_verify`] would do something.
    pub(super) fn verify_is_due(&self, now: Now) -> bool {
        let verify = &self.verify;
        let is_free = self.state.role == Role::Primary && verify.scanning.is_none() && now.mono >= verify.at;
        let has_parts = verify.round.is_some() || !verify.again.is_empty();
        is_free && (has_parts && self.is_window_open() || self.has_repairs() && !self.work.is_bulk_out())
    }

    /// When to ask again though nothing happens.
    pub(super) fn verify_wakes(&self, now: Now) -> Option<Mono> {
        let verify = &self.verify;
        let has_work = verify.round.is_some() || !verify.again.is_empty() || self.has_repairs();
        let work = (has_work && verify.at > now.mono).then_some(verify.at);
        [work, verify.next.filter(|_| verify.round.is_none())].into_iter().flatten().min()
    }

    /// The next part to read.
    pub(super) fn poll_verify(&mut self, now: Now) -> Option<Job> {
        if self.state.role != Role::Primary {
            (self.verify.round, self.verify.next) = (None, None);
            self.verify.again.clear();
            return None;
        }
        if self.verify.scanning.is_some() {
            return None;
        }
        self.keep_schedule(now);
        if now.mono < self.verify.at {
            return None;
        }
        self.begin_repairs(now);
        self.end_round(now);
        let nothing = self.verify.round.is_none() && self.verify.again.is_empty();
        if nothing || !self.is_window_open() {
            return None;
        }
        let limits = self.config.limits.log;
        let room = limits.log_bytes.saturating_sub(self.log.used_bytes());
        if room < RESERVE_SEGMENTS * limits.segment_bytes {
            self.verify.at = now.mono.plus_ms(GUEST_MS);
            return None;
        }
        let part = self.next_part()?;
        let Some(plan) = self.plan_head(part.volume, part.extent) else {
            self.verify.put_off(part, now);
            return None;
        };
        self.verify.scanning = Some(Scanning { part, begun: now.mono, touched: false });
        Some(Job::Scrub(Scrub { plan, extent: part.extent }))
    }

    /// What is checked anew comes first, what guests were faster than last.
    fn next_part(&mut self) -> Option<Part> {
        if let Some(index) = self.verify.again.iter().position(|part| part.round == 0) {
            return self.verify.again.remove(index);
        }
        if let Some(round) = &mut self.verify.round
            && let Some((id, offset)) = round.cursor
        {
            let at_or_behind = self.volumes.range(id..).map(|(&found, volume)| {
                let from = if found == id { offset } else { 0 };
                (found, from, volume.spec.size.saturating_sub(from))
            });
            if let Some((volume, from, rest)) = at_or_behind.into_iter().find(|(_, _, rest)| *rest > 0) {
                let extent = Extent::new(from, rest.min(LOOK_BYTES));
                let (round, on_mismatch) = (round.report.number, round.report.on_mismatch);
                return Some(Part { volume, extent, round, on_mismatch, tries: 0 });
            }
            round.cursor = None;
        }
        self.verify.again.pop_front()
    }

    /// Takes back what was read, and tells of it if no guest has written there.
    pub(super) fn finish_scrub(&mut self, now: Now, scanned: Scanned) {
        let Some(Scanning { part, begun, touched }) = self.verify.scanning.take() else { return };
        if self.state.role != Role::Primary || self.failed.is_some() {
            return;
        }
        let Scanned { extent, data_bytes, result } = scanned;
        let took = now.mono.0.saturating_sub(begun.0);
        let busy = now.mono.ms_since(self.work.guest_at) < GUEST_MS;
        let at_rate = u128::from(data_bytes) * 1_000_000_000 / u128::from(self.config.verify.bytes_s.max(1));
        let at_rate = u64::try_from(at_rate).unwrap_or(u64::MAX).saturating_sub(took);
        self.verify.at = Mono(now.mono.0.saturating_add(at_rate.max(if busy { took } else { 0 })));
        // The cursor is where this part began, unless it was read before.
        let Verify { round, again, .. } = &mut self.verify;
        match round.as_mut().filter(|round| part.round == round.report.number) {
            Some(round)
                if part.tries == 0
                    && round.cursor.is_some_and(|cursor| cursor <= (part.volume, part.extent.offset)) =>
            {
                round.cursor = Some((part.volume, extent.end()));
                round.report.done_bytes += extent.len;
            }
            _ if extent.len < part.extent.len => {
                let rest = Extent::new(extent.end(), part.extent.end() - extent.end());
                again.push_back(Part { extent: rest, ..part });
            }
            _ => {}
        }
        let part = Part { extent, ..part };
        let digest = match result {
            Ok(digest) => digest,
            Err(error) => {
                tracing::warn!(
                    group = %self.config.name, volume = %part.volume, offset = extent.offset, len = extent.len,
                    %error, "a part of a volume cannot be read to be verified"
                );
                if let Some(round) = &mut self.verify.round {
                    round.report.unreadable_bytes += extent.len;
                }
                return;
            }
        };
        if touched && !planted!(ScrubOverWrites) {
            self.verify.put_off(part, now);
            return;
        }
        self.append_scrub(now, part, digest);
    }

    fn append_scrub(&mut self, now: Now, part: Part, digest: Digest) {
        let Part { volume, extent, round, on_mismatch, .. } = part;
        let payload = encode_body(&Scrubbed { digest, round, on_mismatch });
        let draft = Draft { kind: Kind::Scrub, flags: 0, volume, extent, payload: &payload };
        let error = match self.begin(now) {
            Err(error) => Some(error),
            Ok(()) => {
                let (appended, error) = self.log.append(now.wall, self.state.epoch(), &[draft]);
                for record in &appended {
                    self.work.unsynced_bytes += record.header.record_len() as u64;
                }
                error
            }
        };
        if let Some(error) = error {
            self.log_refused(now, &error);
            self.verify.at = now.mono.plus_ms(RETRY_MS);
            self.verify.again.push_back(part);
            return;
        }
        self.appended(now);
        let lsn = self.log.tip().lsn;
        if let Some(round) = self.verify.round.as_mut().filter(|found| found.report.number == round) {
            round.last = lsn;
            round.report.records += 1;
        }
        let told = self.listeners().map(|follower| follower.verified.told).min().unwrap_or(lsn);
        self.verify.sent.retain(|&sent| sent > told);
        self.verify.sent.push_back(lsn);
    }

    /// Ends a round that is over, once those who listen have looked at all of it.
    fn end_round(&mut self, now: Now) {
        let Some(round) = &self.verify.round else { return };
        let is_read = round.cursor.is_none() && !self.verify.again.iter().any(|part| part.round > 0);
        let is_heard = self.listeners().all(|follower| follower.verified.told >= round.last);
        if !is_read || !is_heard {
            return;
        }
        let Some(mut report) = self.round() else { return };
        (report.ended, report.waits) = (Some(now.wall), false);
        tracing::info!(group = %self.config.name, ?report, "verification ended");
        let totals = &mut self.verify.totals;
        totals.rounds += 1;
        totals.bytes += report.done_bytes;
        totals.mismatched += report.replicas.iter().map(|verdict| verdict.mismatched).sum::<u64>();
        totals.unreadable_bytes += report.unreadable_bytes;
        (self.verify.round, self.verify.last) = (None, Some(report));
        self.verify.next = self.config.verify.every_ms.map(|every| now.mono.plus_ms(every));
    }

    /// Begins a round when the schedule says so.
    fn keep_schedule(&mut self, now: Now) {
        let Some(every) = self.config.verify.every_ms else { return };
        if self.verify.round.is_some() || self.followers.is_empty() {
            return;
        }
        let next = *self.verify.next.get_or_insert(now.mono.plus_ms(every / FIRST_AFTER));
        if now.mono >= next {
            let begun = self.verify(now, OnMismatch::Repair);
            self.verify.next = Some(now.mono.plus_ms(every));
            debug_assert!(begun.is_ok(), "{begun:?}");
        }
    }

    /// Owes replicas what they want again, and begins the spans that bring it.
    fn begin_repairs(&mut self, now: Now) {
        let names: Vec<String> = self.followers.keys().cloned().collect();
        for replica in names {
            let Some(follower) = self.followers.get_mut(&replica) else { continue };
            if follower.connected && follower.lack.is_none() {
                let anew = follower.verified.anew.drain(..).map(|(volume, extent)| {
                    let on_mismatch = OnMismatch::Repair;
                    Part { volume, extent, round: 0, on_mismatch, tries: 0 }
                });
                self.verify.again.extend(anew);
            }
            let ending = follower.lack.as_ref().is_some_and(super::span::Lack::is_ending);
            if follower.verified.wants.is_empty() || ending || self.work.is_bulk_out() {
                continue;
            }
            let lack = follower.lack.get_or_insert_default();
            for (volume, extent) in &follower.verified.wants {
                if !planted!(ForgetRepair) {
                    lack.owe(*volume, *extent);
                }
            }
            self.work.lacks_changed = true;
            if let Err(reason) = self.begin_repair(now, &replica) {
                tracing::warn!(group = %self.config.name, replica, reason, "a repair is put off");
                self.verify.at = now.mono.plus_ms(RETRY_MS);
                continue;
            }
            let Some(follower) = self.followers.get_mut(&replica) else { continue };
            let done = std::mem::take(&mut follower.verified.wants);
            self.verify.totals.sent_again += done.len() as u64;
            follower.verified.anew.extend(done);
            follower.verified.anew.truncate(MAX_REPAIRS);
        }
    }

    /// Begins a span for what a replica is owed, if it is there and none is under way.
    fn begin_repair(&mut self, now: Now, replica: &str) -> Result<(), String> {
        // If we die from here on it comes back to a primary that knows of it.
        self.record_lacks(now)?;
        let follower = &self.followers[replica];
        let may_begin = follower.lack.as_ref().is_some_and(super::span::Lack::may_begin);
        let Some(node) = follower.node.filter(|_| follower.connected && may_begin) else { return Ok(()) };
        let begun = self.begin_span(now, replica, node, None);
        begun.map(drop).map_err(|error| error.to_string())
    }
}
