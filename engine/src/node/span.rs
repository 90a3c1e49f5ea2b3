//! A primary's side of sync spans: what its replicas lack, and how they get it.
//!
//! A replica is either *in the log* (everything it lacks stands in records that are kept for it) or *lost*: the log
//! had no room for its absence. Then the records that it lacks are looked through once, every change from there on is
//! noted, and the log is not kept for it any more. When it comes back, or comes for the first time, its log jumps to
//! the present and a span begins: what it lacks is copied into the log as records like any other, while guests go on
//! writing. Since live writes are in the log too, a copy is only put there if nothing was written to its place since
//! it was read; when all of it has been acknowledged, the span ends with a record that says so.
//!
//! - What is copied leaves the set when the replica has acknowledged the copy, not before.
//! - The log is not given up before what it holds for the replica is noted, durably ([`crate::lacks`]).
//! - A replica counts as a second copy for [`AckPolicy::Replica`](super::config::AckPolicy::Replica) only while it
//!   lacks nothing.
//! - Copies are paced by the replica's acknowledgements, by the room in the log, and by the guests: while there are any,
//!   one copy at a time waits for the log's sync, so that a flush waits for little else than its own, and copies take
//!   at most half of the time.

use super::config::OnFull;
use super::report::{CatchUp, Lacking};
use super::resize::gain_of;
use super::work::Job;
use super::{Node, open};
use crate::event::{FLAG_AGAIN, FLAG_COPY, Kind, Spanned, VolumeDefined, encode_body};
use crate::extents::{BLOCK_BYTES, Extents};
use crate::guest::Piece;
use crate::lacks::{self, Lacks};
use crate::log::format::{HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::log::ship::Headers;
use crate::log::{self, Draft};
use crate::overlay::{Content, Overlay, gaps};
use crate::peer::{Jump, Needs, Welcome};
use crate::read::{Plan, Wait};
use crate::seeds::{PIECE_BYTES, zero_runs};
use crate::state::{Lost, Role};
use crate::types::{Extent, Lsn, Mono, NodeId, Now, Position, VolumeId};
use std::collections::{BTreeSet, VecDeque};

/// Bytes of a copy: what is read at once. Copies begin and end at its multiples, as seeds do.
const COPY_BYTES: u64 = PIECE_BYTES;
/// Bytes that are searched for holes at once.
const LOOK_BYTES: u64 = 64 << 20;
/// Bytes of copies that are not acknowledged yet.
const WINDOW_BYTES: u64 = 8 << 20;
/// In a small log they take this part of it, or other replicas could not follow.
const WINDOW_OF_LOG: u64 = 16;
/// Segments that a survey looks through at once.
const SURVEY_SEGMENTS: usize = 8;
/// Segments of room at which the log is given up for those who keep it full.
const GIVE_UP_SEGMENTS: u64 = 2;
/// Segments of room that copies leave to guests.
const COPY_RESERVE_SEGMENTS: u64 = 2;
/// Guests that asked for something within this time are there.
const GUEST_MS: u64 = 20;
/// After a copy that did not work.
const RETRY_MS: u64 = 500;

/// What a replica lacks beside the records that the log holds for it.
#[derive(Debug, Default)]
pub(crate) struct Lack {
    pub(crate) extents: Extents,
    /// Some of it was never in the log that is held for it: a span has to make up for it in any case.
    owed: bool,
    /// The log is not kept for it: what changes is noted.
    pub(crate) tracked: bool,
    /// The records that are yet to be looked through before the log may be given up: behind the first, up to the
    /// second.
    survey: Option<(Lsn, Lsn)>,
    /// A span is under way: what changes is in the log that it gets.
    pub(crate) joined: bool,
    /// The log holds what it needs, but cannot be read there.
    unreadable: bool,
    /// Its disks are empty, so that holes need no copy.
    fresh: bool,
    /// So are those of these volumes.
    empty: BTreeSet<VolumeId>,
    /// A replica that stands below this lacks more than is known.
    since: Lsn,
    /// How the span under way began, if with a jump: it may have to be told again.
    jump: Option<Jump>,
    /// The record that ends the span.
    ended: Option<Lsn>,
    cursor: (VolumeId, u64),
    /// Copies in the log that are not acknowledged yet, with the bytes that they take there.
    pending: VecDeque<(Lsn, VolumeId, Extent, u64)>,
    pending_bytes: u64,
    copying: Option<Copying>,
}

/// A copy that is being read.
#[derive(Debug)]
struct Copying {
    volume: VolumeId,
    extent: Extent,
    begun: Mono,
    /// What guests wrote there meanwhile.
    touched: Overlay,
}

/// See [`Job::Survey`].
pub struct Survey {
    replica: String,
    headers: Headers,
}

/// What a survey found.
pub struct Surveyed {
    replica: String,
    changed: Extents,
    /// The volumes that are new to the replica: all of them is.
    defined: Vec<VolumeId>,
    /// What volumes have grown by.
    gained: Vec<(VolumeId, Extent)>,
    upto: Lsn,
}

impl Survey {
    pub(super) fn run(self) -> Result<Surveyed, String> {
        let (mut changed, mut defined, mut gained) = (Extents::default(), Vec::new(), Vec::new());
        let covered = self.headers.run(|header| {
            if header.kind.changes_bytes() {
                changed.insert(header.volume, header.extent);
            }
            if header.kind == Kind::Volume {
                defined.push(header.volume);
            }
            if header.kind == Kind::Resize {
                gained.extend(gain_of(header).map(|extent| (header.volume, extent)));
            }
        });
        let upto = covered.map_err(|error| format!("looking through the log: {error}"))?;
        Ok(Surveyed { replica: self.replica, changed, defined, gained, upto })
    }
}

/// See [`Job::Copy`].
pub struct Copy {
    replica: String,
    volume: VolumeId,
    extent: Extent,
    plan: Plan,
    /// The most bytes of one record, a power of two: a copy ends at a multiple.
    most: u64,
    /// Whether holes are copied, too.
    holes: bool,
}

/// What a copy read.
pub struct Copied {
    replica: String,
    volume: VolumeId,
    /// How far it came, from the extent's start.
    extent: Extent,
    result: std::io::Result<Vec<(Extent, Content)>>,
}

impl Copy {
    pub(super) fn run(self) -> Copied {
        let Copy { replica, volume, extent, plan, most, holes } = self;
        let (extent, result) = match read_copy(&plan, extent, most, holes) {
            Ok((extent, contents)) => (extent, Ok(contents)),
            Err(error) => (extent, Err(error)),
        };
        Copied { replica, volume, extent, result }
    }
}

/// Reads up to `most` bytes of data, and the holes before and between them; how far it came.
fn read_copy(
    plan: &Plan,
    extent: Extent,
    most: u64,
    holes: bool,
) -> std::io::Result<(Extent, Vec<(Extent, Content)>)> {
    let mut contents = Vec::new();
    let (mut at, mut room) = (extent.offset, most);
    'stretches: for stretch in plan.status()? {
        let end = at + stretch.len;
        if stretch.hole {
            if holes {
                contents.push((Extent::new(at, stretch.len), Content::Zero { no_hole: false }));
            }
            at = end;
            continue;
        }
        while at < end {
            let piece = Extent::new(at, (end - at).min(most - at % most));
            if piece.len > room {
                break 'stretches;
            }
            read_piece(plan, piece, holes, &mut contents)?;
            (at, room) = (piece.end(), room - piece.len);
        }
    }
    Ok((Extent::new(extent.offset, at - extent.offset), contents))
}

/// Reads data; blocks of zeros in it count as holes.
fn read_piece(
    plan: &Plan,
    extent: Extent,
    holes: bool,
    contents: &mut Vec<(Extent, Content)>,
) -> std::io::Result<()> {
    let mut at = extent.offset;
    for piece in plan.within(extent).read(Wait::Yes)? {
        let part = Extent::new(at, piece.len());
        at = part.end();
        let runs = match &piece {
            Piece::Bytes(bytes) => zero_runs(part, bytes),
            Piece::Hole(_) => vec![(part, true)],
        };
        for (run, is_zero) in runs {
            match &piece {
                Piece::Bytes(bytes) if !is_zero => {
                    let from = (run.offset - part.offset) as usize;
                    contents.push((run, Content::Bytes(bytes.slice(from..from + run.len as usize))));
                }
                _ if holes => contents.push((run, Content::Zero { no_hole: false })),
                _ => {}
            }
        }
    }
    Ok(())
}

impl super::Follower {
    /// Whether it is known to stand behind the jump that its span began with, if there was one.
    fn has_jumped(&self, lack: &Lack) -> bool {
        lack.jump.is_none_or(|jump| self.acknowledged >= jump.to.lsn)
    }

    /// Begins to look for what it lacks, so that the log need not be kept for it.
    fn give_up(&mut self, start: Lsn, tip: Lsn) {
        let lack = self.lack.get_or_insert_default();
        lack.owed |= lack.joined;
        lack.fresh = false;
        lack.empty.clear();
        // It may not have heard of the jump, and stand where it stood before.
        let jumped = lack.jump.take().is_none_or(|jump| self.acknowledged >= jump.to.lsn);
        if jumped {
            lack.since = self.held.max(start);
        }
        (lack.joined, lack.tracked, lack.ended, lack.copying) = (false, false, None, None);
        lack.pending.clear();
        lack.pending_bytes = 0;
        lack.survey = Some((self.held, tip));
    }
}

impl Lack {
    /// As it is read back from the disk.
    pub(crate) fn recorded(extents: Extents, lost: &Lost) -> Lack {
        Lack { extents, owed: lost.owed, tracked: true, since: lost.since, ..Lack::default() }
    }

    /// It holds something else there than it should.
    pub(crate) fn owe(&mut self, volume: VolumeId, extent: Extent) {
        self.extents.insert(volume, extent);
        self.owed = true;
    }

    /// It has nothing of what a volume held when it was defined.
    pub(crate) fn owe_in_place(&mut self, volume: VolumeId, size: u64) {
        self.owe(volume, Extent::new(0, size));
        if !self.tracked {
            self.empty.insert(volume);
        }
    }

    /// Whether a span is about to end, and takes nothing more.
    pub(crate) fn is_ending(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether a span may begin for it, though its session goes on: the log holds all that it gets.
    pub(crate) fn may_begin(&self) -> bool {
        !self.joined && !self.tracked && self.survey.is_none() && !self.unreadable
    }

    /// All that was changed behind an LSN, and perhaps more; `None` if it is not known.
    pub(super) fn changed_since(&self, lsn: Lsn) -> Option<&Extents> {
        (self.tracked && !self.joined && self.survey.is_none() && lsn >= self.since).then_some(&self.extents)
    }

    /// Whether changes have to be noted.
    fn notes(&self) -> bool {
        !self.joined && (self.tracked || self.survey.is_some())
    }

    /// Whether the log is kept for the replica.
    pub(crate) fn holds_log(&self) -> bool {
        if planted!(FreeBeforeNoted) && self.survey.is_some() {
            return false;
        }
        self.joined || !self.tracked
    }

    /// Whether it has to be on record.
    fn counts(&self) -> bool {
        self.owed || self.tracked
    }

    fn is_ready(&self, window: u64) -> bool {
        self.joined && self.copying.is_none() && self.pending_bytes < window && self.ended.is_none()
    }
}

impl Node {
    /// Takes note of a guest's change for those who will lack it.
    pub(crate) fn note_change(&mut self, volume: VolumeId, extent: Extent) {
        self.verify.note_change(volume, extent);
        for lack in self.followers.values_mut().filter_map(|follower| follower.lack.as_mut()) {
            if lack.notes() && !planted!(ForgetTracked) {
                lack.extents.insert(volume, extent);
                self.work.lacks_changed = true;
            }
            if let Some(copying) = lack.copying.as_mut().filter(|copying| copying.volume == volume)
                && let Some(part) = copying.extent.intersect(extent)
            {
                copying.touched.insert(part, Content::Zero { no_hole: false });
            }
        }
    }

    /// All bytes of all volumes.
    fn everything(&self) -> Extents {
        let mut extents = Extents::default();
        for volume in self.volumes.values() {
            extents.insert(volume.spec.id, Extent::new(0, volume.spec.size));
        }
        extents
    }

    /// Gives up the log for the replicas that keep it full, step by step.
    pub(crate) fn poll_survey(&mut self) -> Option<Job> {
        if self.state.role != Role::Primary {
            return None;
        }
        let limits = self.config.limits.log;
        let room = limits.log_bytes.saturating_sub(self.log.used_bytes());
        let is_full = self.config.on_full == OnFull::Track && room <= GIVE_UP_SEGMENTS * limits.segment_bytes;
        if is_full {
            let tip = self.log.tip().lsn;
            let start = self.known_from();
            // Whatever else keeps the log would keep it all the same.
            let otherwise = self.log.start_for(self.needed_here().next()).lsn;
            for (name, follower) in &mut self.followers {
                let keeps = follower.held < otherwise;
                let lack = follower.lack.as_ref();
                let looks = lack.is_none_or(|lack| lack.holds_log() && lack.survey.is_none());
                if !keeps || !looks {
                    continue;
                }
                tracing::warn!(
                    group = %self.config.name, replica = %name, from = %follower.held,
                    "the log is full; what changes is tracked until this replica is back"
                );
                follower.give_up(start, tip);
                // Its session ends when it wants a record that is gone.
            }
        }
        let surveyed = self.followers.iter().find_map(|(name, follower)| {
            let (after, upto) = follower.lack.as_ref()?.survey?;
            Some((name.clone(), after, upto))
        });
        let (replica, after, upto) = surveyed?;
        let headers = self.log.headers(after, upto, SURVEY_SEGMENTS);
        Some(Job::Survey(Survey { replica, headers }))
    }

    /// Where the log begins, or goes on behind its last gap: the records behind it tell all that was changed.
    fn known_from(&self) -> Lsn {
        self.state.gaps.iter().map(|gap| gap.to.lsn).fold(self.log.start().lsn, Lsn::max)
    }

    /// A record cannot be read back: a damaged disk. What the replicas behind it lack is known by the records'
    /// headers, and is read where it was applied.
    pub fn log_unreadable(&mut self, at: Lsn) {
        let (start, tip) = (self.known_from(), self.log.tip().lsn);
        for (name, follower) in self.followers.iter_mut().filter(|(_, follower)| follower.held < at) {
            let lack = follower.lack.as_ref();
            if lack.is_none_or(|lack| lack.holds_log() && lack.survey.is_none()) {
                tracing::warn!(
                    group = %self.config.name, replica = %name, %at,
                    "the log cannot be read back for this replica; a sync span makes up for it"
                );
                follower.give_up(start, tip);
                follower.lack.get_or_insert_default().unreadable = true;
            }
        }
    }

    pub(crate) fn finish_survey(&mut self, surveyed: &Surveyed) {
        let Surveyed { replica, changed, defined, gained, upto } = surveyed;
        let volumes = &self.volumes;
        let size = |id: &VolumeId| volumes.get(id).map_or(0, |volume| volume.spec.size);
        let follower = self.followers.get_mut(replica);
        let Some(lack) = follower.and_then(|follower| follower.lack.as_mut()) else { return };
        let Some((_, last)) = lack.survey else { return };
        lack.extents.add(changed);
        defined.iter().for_each(|id| lack.extents.insert(*id, Extent::new(0, size(id))));
        gained.iter().for_each(|(id, extent)| lack.extents.insert(*id, *extent));
        lack.survey = (*upto < last).then_some((*upto, last));
        lack.tracked = lack.survey.is_none();
        self.work.lacks_changed = true;
        if lack.tracked {
            self.work.hurry();
        }
    }

    /// Puts what replicas lack on record, here and now; no job that does the same is out.
    pub(super) fn record_lacks(&mut self, now: Now) -> Result<(), String> {
        let (lacks, lost) = self.lacks_on_record();
        let number = self.next_lacks_file();
        let written = lacks::write(&*self.storage, &self.config.dir, number, &lacks);
        written.map_err(|error| format!("noting what replicas lack: {error}"))?;
        let updated = self.update_state(now, |state| {
            state.lacks_file = number;
            state.lost = lost;
        });
        updated.map_err(|error| error.to_string())?;
        self.work.lacks_changed = false;
        // The file before is removed with the next one, or at the next opening.
        Ok(())
    }

    /// What has to be on record of the replicas that lack something.
    pub(crate) fn lacks_on_record(&self) -> (Vec<Lacks>, Vec<Lost>) {
        let known_from = self.known_from();
        let counting = self.followers.iter().filter_map(|(name, follower)| {
            let lack = follower.lack.as_ref().filter(|lack| lack.counts())?;
            let through = if lack.holds_log() { follower.held } else { self.log.durable().lsn };
            let through = through.min(self.log.durable().lsn);
            // What it has acknowledged of the span under way is not in the set any more: it must not come back with less.
            let since = match lack.joined {
                true if follower.has_jumped(lack) => follower.held,
                // What stands in the log for it is known, as far back as the log goes.
                false if lack.holds_log() => lack.since.max(follower.held).max(known_from),
                _ => lack.since,
            };
            let lost = Lost { replica: name.clone(), owed: lack.owed, through, since };
            Some((Lacks { replica: name.clone(), extents: lack.extents.clone() }, lost))
        });
        counting.unzip()
    }

    /// What a replica that stands at `welcome.durable`, which the log may not hold any more, is to be told; begins
    /// its span if it needs one.
    pub(crate) fn join(
        &mut self,
        now: Now,
        replica: &str,
        welcome: &Welcome,
        needs: &Needs,
        is_held: bool,
    ) -> Result<Option<Jump>, JoinError> {
        let everything = self.everything();
        let theirs = welcome.durable;
        // What stands in no record of the log that it gets.
        let untold = |volume: &&super::Volume| is_held && volume.in_place && volume.defined > theirs.lsn;
        let in_place: Vec<(VolumeId, u64)> =
            self.volumes.values().filter(untold).map(|volume| (volume.spec.id, volume.spec.size)).collect();
        let is_ours = self.epoch_of(theirs.lsn) == theirs.epoch;
        let follower = self.followers.get_mut(replica).expect("it was looked up before");
        if is_held {
            // Whatever comes of it, this much the log need not be kept for.
            follower.held = follower.held.max(theirs.lsn);
        }
        let is_new = theirs.lsn == Lsn::ZERO;
        // A replica in a span that this node has not begun lacks what this node cannot know, whatever it tells besides.
        let knows = follower.lack.as_ref().is_some_and(|lack| lack.owed);
        let grows = !needs.lacks.is_empty() && (knows || !needs.coarse);
        if grows && self.work.is_bulk_out() {
            return Err(JoinError::NotYet);
        }
        if grows {
            let lack = follower.lack.get_or_insert_default();
            needs.lacks.iter().for_each(|part| lack.extents.insert(part.volume, part.extent));
            lack.owed = true;
            self.work.lacks_changed = true;
        }
        if !in_place.is_empty() {
            if self.work.is_bulk_out() {
                return Err(JoinError::NotYet);
            }
            let lack = follower.lack.get_or_insert_default();
            in_place.iter().for_each(|&(volume, size)| lack.owe_in_place(volume, size));
            self.work.lacks_changed = true;
        }
        let lack = follower.lack.as_ref();
        if lack.is_some_and(|lack| lack.unreadable && lack.survey.is_some()) {
            return Err(JoinError::NotYet);
        }
        if is_held && lack.is_some_and(|lack| !lack.holds_log()) && self.work.is_bulk_out() {
            // A checkpoint that is out may be about to free the log that it needs.
            return Err(JoinError::NotYet);
        }
        let is_held = is_held && !lack.is_some_and(|lack| lack.unreadable);
        if let Some(lack) = lack.filter(|lack| lack.joined)
            && follower.acknowledged <= theirs.lsn
            && lack.jump.is_some_and(|jump| !is_held && jump.from == theirs)
        {
            // It never heard of the jump.
            return Ok(lack.jump);
        }
        // Everything that it lacks is known: noted, or in the log.
        let covered = match is_held {
            true => true,
            false => is_ours && !is_new && lack.is_some_and(|lack| lack.tracked && theirs.lsn >= lack.since),
        };
        // In a span that this node knows nothing of, so that its newest points are of no use to anybody.
        let is_adrift = needs.coarse && !knows;
        let covered = covered && !is_adrift;
        if !covered {
            if !is_new && !is_adrift && !follower.full_copy {
                return Err(JoinError::NeedsCopy);
            }
            if self.work.is_bulk_out() {
                return Err(JoinError::NotYet);
            }
            let lack = follower.lack.get_or_insert_default();
            lack.extents = everything;
            (lack.owed, lack.tracked, lack.joined, lack.fresh) = (true, true, false, is_new);
            (lack.ended, lack.survey, lack.copying) = (None, None, None);
            lack.since = theirs.lsn;
            lack.pending.clear();
            lack.pending_bytes = 0;
        }
        if grows || !covered || !in_place.is_empty() {
            // On record before it hears of a span: what is on record now may be of a disk that it has lost.
            self.record_lacks(now).map_err(JoinError::Record)?;
        }
        let follower = self.followers.get_mut(replica).expect("it was looked up before");
        let Some(lack) = follower.lack.as_mut() else { return Ok(None) };
        if is_held && lack.joined {
            // It goes on where it was.
            return Ok(None);
        }
        if is_held && !lack.owed && !needs.coarse {
            follower.lack = None;
            self.work.lacks_changed = true;
            return Ok(None);
        }
        self.begin_span(now, replica, welcome.node, (!is_held).then_some(welcome.durable))
    }

    /// Begins a span for a replica, with a jump if the log does not hold what follows the place where it stands.
    pub(super) fn begin_span(
        &mut self,
        now: Now,
        replica: &str,
        node: NodeId,
        jumps_from: Option<Position>,
    ) -> Result<Option<Jump>, JoinError> {
        let to = self.log.durable();
        let epoch = self.state.epoch();
        // It may have missed any of their definitions: those that an earlier span has repeated, too.
        let volumes: Vec<_> = self.volume_specs().cloned().collect();
        self.begin(now).map_err(JoinError::Log)?;
        let body = encode_body(&Spanned { replica: node });
        self.append_control(now, epoch, Kind::SpanBegin, VolumeId(0), &body).map_err(JoinError::Log)?;
        for spec in volumes {
            let body = encode_body(&VolumeDefined { name: spec.name, size: spec.size });
            self.append_flagged(now, epoch, Kind::Volume, FLAG_AGAIN, spec.id, &body)
                .map_err(JoinError::Log)?;
        }
        let follower = self.followers.get_mut(replica).expect("it was looked up before");
        let lack = follower.lack.as_mut().expect("a span is for what is lacked");
        (lack.joined, lack.owed, lack.tracked, lack.survey, lack.ended) = (true, true, false, None, None);
        lack.unreadable = false;
        lack.cursor = (VolumeId(0), 0);
        lack.pending.clear();
        lack.pending_bytes = 0;
        follower.full_copy = false;
        self.work.lacks_changed = true;
        tracing::info!(
            group = %self.config.name, replica, bytes = lack.extents.bytes(),
            "a sync span begins"
        );
        let jump = jumps_from.map(|from| Jump { from, to });
        self.lack_of(replica).jump = jump;
        let follower = self.followers.get_mut(replica).expect("it was looked up before");
        if let Some(jump) = jump {
            follower.held = jump.to.lsn;
        }
        Ok(jump)
    }

    /// What may have kept a replica from being reclaimed is done: one that has everything will not say so again.
    pub(crate) fn reclaim_all(&mut self) {
        let durable = self.log.durable().lsn;
        let has_all = self.followers.iter().filter(|(_, follower)| follower.acknowledged >= durable);
        let names: Vec<String> = has_all.map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.copies_acknowledged(name));
        // It may be the second copy that a flush waits for.
        self.settle();
    }

    /// A replica for which the log was given up has not even noticed: all that it has not acknowledged is still there.
    fn reclaim(&mut self, replica: &str) {
        // A checkpoint that is out may be about to free the log that it needs.
        let undecided = self.work.is_bulk_out();
        let first = self.log.first();
        let Some(follower) = self.followers.get_mut(replica) else { return };
        let Some(lack) = follower.lack.as_mut().filter(|lack| !lack.joined && follower.connected) else {
            return;
        };
        if undecided || lack.unreadable || follower.acknowledged.next() < first {
            return;
        }
        if !lack.owed {
            follower.lack = None;
        } else {
            (lack.joined, lack.tracked, lack.survey) = (true, false, None);
            follower.held = follower.acknowledged;
        }
        self.work.lacks_changed = true;
    }

    /// Something was acknowledged by a replica in a span.
    pub(crate) fn copies_acknowledged(&mut self, replica: &str) {
        self.reclaim(replica);
        let Some(follower) = self.followers.get_mut(replica) else { return };
        let acknowledged = follower.acknowledged;
        let Some(lack) = follower.lack.as_mut().filter(|lack| lack.joined) else { return };
        while let Some((_, id, extent, bytes)) = lack.pending.pop_front_if(|(lsn, ..)| *lsn <= acknowledged) {
            lack.pending_bytes -= bytes;
            let size = self.volumes.get(&id).map_or(0, |volume| volume.spec.size);
            lack.extents.remove(id, extent, size);
            self.work.lacks_changed = true;
        }
        if lack.ended.is_some_and(|ended| ended <= acknowledged) {
            follower.lack = None;
            self.work.lacks_changed = true;
            tracing::info!(group = %self.config.name, replica, "the sync span ended: this replica is whole");
        }
    }

    /// Bytes of copies that may be in the log and not acknowledged.
    fn copy_window(&self) -> u64 {
        WINDOW_BYTES.min(self.config.limits.log.log_bytes / WINDOW_OF_LOG)
    }

    /// Whether a copy could be read now.
    pub(crate) fn copy_is_due(&self, now: Now) -> bool {
        let window = self.copy_window();
        let ready = |follower: &super::Follower| {
            follower.connected && follower.lack.as_ref().is_some_and(|lack| lack.is_ready(window))
        };
        !self.copy_waits(now) && now.mono >= self.work.copy_at && self.followers.values().any(ready)
    }

    /// Whether the next copy waits for the log's sync.
    pub(super) fn copy_waits(&self, now: Now) -> bool {
        self.work.unsynced_copy.is_some() && self.has_guests(now)
    }

    /// Whether guests asked for something lately.
    fn has_guests(&self, now: Now) -> bool {
        now.mono.ms_since(self.work.guest_at) < GUEST_MS
    }

    /// A sync has ended. Beside guests, a copy takes half of the time at most, the log's sync with it.
    pub(super) fn copies_synced(&mut self, now: Now) {
        let durable = self.log.durable().lsn;
        if let Some((_, begun)) = self.work.unsynced_copy.take_if(|(lsn, _)| *lsn <= durable)
            && self.has_guests(now)
        {
            let took = now.mono.0.saturating_sub(begun.0);
            self.work.copy_at = self.work.copy_at.max(Mono(now.mono.0 + took));
        }
    }

    /// Whether the log has room for copies beside what guests write.
    #[must_use]
    pub fn has_room_to_copy(&self) -> bool {
        let limits = self.config.limits.log;
        let room = limits.log_bytes.saturating_sub(self.log.used_bytes());
        room >= COPY_RESERVE_SEGMENTS * limits.segment_bytes
    }

    /// The most bytes of a copy's records: the pieces that volumes are cut into, in a log of these limits.
    #[must_use]
    pub fn copy_piece_bytes(&self) -> u64 {
        let fits = self.config.limits.log.segment_bytes - (SEGMENT_HEADER_BYTES + HEADER_BYTES) as u64;
        1 << COPY_BYTES.min(fits).min(self.copy_window()).max(BLOCK_BYTES).ilog2()
    }

    /// The next copy to read, or the end of a span.
    pub(crate) fn poll_copy(&mut self, now: Now) -> Option<Job> {
        if self.state.role != Role::Primary || !self.copy_is_due(now) {
            return None;
        }
        if !self.has_room_to_copy() {
            self.work.copy_at = now.mono.plus_ms(GUEST_MS);
            return None;
        }
        let window = self.copy_window();
        let most = self.copy_piece_bytes();
        let names: Vec<String> = self.followers.keys().cloned().collect();
        for replica in names {
            let follower = &self.followers[&replica];
            let Some(lack) =
                follower.lack.as_ref().filter(|lack| follower.connected && lack.is_ready(window))
            else {
                continue;
            };
            let found = lack.extents.next(lack.cursor, LOOK_BYTES);
            let idle = lack.pending.is_empty();
            let size = found.and_then(|(id, _)| self.volumes.get(&id)).map_or(0, |volume| volume.spec.size);
            let part = found.and_then(|(id, run)| Some((id, run.intersect(Extent::new(0, size))?)));
            let Some((volume, extent)) = part else {
                match found {
                    // Of a volume that is gone, or behind its end.
                    Some((id, run)) => self.lack_of(&replica).extents.remove(id, run, run.end()),
                    None if !lack.extents.is_empty() && idle => {
                        self.lack_of(&replica).cursor = (VolumeId(0), 0)
                    }
                    None if idle => self.end_span(now, &replica),
                    None => {}
                }
                continue;
            };
            let holes = !lack.fresh && !lack.empty.contains(&volume);
            let Some(plan) = self.plan_head(volume, extent) else { continue };
            let touched = Overlay::default();
            let lack = self.lack_of(&replica);
            lack.copying = Some(Copying { volume, extent, begun: now.mono, touched });
            return Some(Job::Copy(Copy { replica, volume, extent, plan, most, holes }));
        }
        None
    }

    fn lack_of(&mut self, replica: &str) -> &mut Lack {
        let follower = self.followers.get_mut(replica).expect("a replica is not forgotten");
        follower.lack.as_mut().expect("it was just there")
    }

    fn end_span(&mut self, now: Now, replica: &str) {
        let Some(node) = self.followers[replica].node else { return };
        let body = encode_body(&Spanned { replica: node });
        let epoch = self.state.epoch();
        match self.append_control(now, epoch, Kind::SpanEnd, VolumeId(0), &body) {
            Ok(()) => {
                let ended = self.log.tip().lsn;
                self.lack_of(replica).ended = Some(ended);
            }
            Err(_) => self.work.copy_at = now.mono.plus_ms(RETRY_MS),
        }
    }

    /// Puts into the log what was read, but for what guests wrote there meanwhile.
    pub(crate) fn finish_copy(&mut self, now: Now, copied: Copied) {
        let Copied { replica, volume, extent, result } = copied;
        let follower = self.followers.get_mut(&replica);
        let Some(lack) = follower.and_then(|follower| follower.lack.as_mut()) else { return };
        let Some(copying) = lack.copying.take().filter(|_| lack.joined) else { return };
        if self.state.role != Role::Primary || self.failed.is_some() {
            return;
        }
        let took = now.mono.0.saturating_sub(copying.begun.0);
        self.work.copy_at = if self.has_guests(now) { Mono(now.mono.0 + took) } else { now.mono };
        let contents = match result {
            Ok(contents) => contents,
            Err(error) => {
                tracing::warn!(group = %self.config.name, replica, %error, "a copy could not be read");
                self.work.copy_at = now.mono.plus_ms(RETRY_MS);
                return;
            }
        };
        let mut left: Vec<(Extent, Content)> = Vec::new();
        for (part, content) in contents {
            let touched: Vec<_> = match planted!(CopyOverWrites) {
                true => Vec::new(),
                false => copying.touched.within(part).collect(),
            };
            let rest = gaps(part, &touched).into_iter();
            left.extend(rest.map(|gap| (gap, content.slice(gap.offset - part.offset, gap.len))));
        }
        let drafts: Vec<Draft<'_>> = left
            .iter()
            .map(|(extent, content)| {
                let (kind, payload) = match content {
                    Content::Bytes(bytes) => (Kind::Write, &bytes[..]),
                    Content::Zero { .. } => (Kind::Zero, &[][..]),
                };
                Draft { kind, flags: FLAG_COPY, volume, extent: *extent, payload }
            })
            .collect();
        let (appended, error) = match drafts.is_empty() {
            true => (Vec::new(), None),
            false => self.log.append(now.wall, self.state.epoch(), &drafts),
        };
        if let Some(record) = appended.last() {
            self.appended(now);
            self.work.unsynced_copy = Some((record.header.lsn, copying.begun));
        }
        for record in &appended {
            self.work.unsynced_bytes += record.header.record_len() as u64;
            if let Some(index) = &mut self.index {
                open::index_record(index, &record.header, record.place);
            }
        }
        if let Some(error) = error {
            // What was appended does no harm, and is copied again.
            self.log_refused(now, &error);
            self.work.copy_at = now.mono.plus_ms(RETRY_MS);
            return;
        }
        let lsn = self.log.tip().lsn;
        let lack = self.lack_of(&replica);
        lack.cursor = (volume, extent.end());
        // A hole takes nothing, and yet there is a bound to how many are on their way.
        let bytes: u64 = appended.iter().map(|record| record.header.record_len() as u64).sum();
        let bytes = bytes.max(BLOCK_BYTES);
        lack.pending_bytes += bytes;
        lack.pending.push_back((lsn, volume, extent, bytes));
        // It may be acknowledged already, if it needed no record.
        self.copies_acknowledged(&replica);
        self.settle();
    }

    /// What a replica lacks, for reports.
    pub(crate) fn lacking(&self, follower: &super::Follower) -> Option<Lacking> {
        if follower.needs_copy {
            let bytes = self.volume_specs().map(|spec| spec.size).sum();
            return Some(Lacking { state: CatchUp::NeedsCopy, bytes });
        }
        let lack = follower.lack.as_ref()?;
        let state = if lack.joined { CatchUp::Span } else { CatchUp::Tracked };
        Some(Lacking { state, bytes: lack.extents.bytes() })
    }

    /// Bytes that are yet to be copied to each replica in a span.
    pub fn left_to_copy(&self) -> impl Iterator<Item = (&str, u64)> {
        self.followers.iter().filter_map(|(name, follower)| {
            let lack = follower.lack.as_ref().filter(|lack| lack.joined)?;
            Some((name.as_str(), lack.extents.bytes()))
        })
    }

    /// Whether only a copy of everything could catch a replica up, and nobody has allowed it.
    #[must_use]
    pub fn needs_copy(&self, replica: &str) -> bool {
        self.followers.get(replica).is_some_and(|follower| follower.needs_copy)
    }

    /// Allows a whole copy to be made for a replica whose lacks are not known.
    ///
    /// # Errors
    /// If there is no such replica.
    pub fn allow_full_copy(&mut self, replica: &str) -> Result<(), super::primary::AttachError> {
        match self.followers.get_mut(replica) {
            Some(follower) => {
                follower.full_copy = true;
                Ok(())
            }
            None => Err(super::primary::AttachError::Unknown(replica.to_owned())),
        }
    }
}

/// Why a replica cannot be caught up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// Only a copy of everything would do.
    #[error("only a copy of everything would do")]
    NeedsCopy,
    /// What it lacks is being looked for.
    #[error("what it lacks is being looked for")]
    NotYet,
    /// It could not be put on record.
    #[error("{0}")]
    Record(String),
    /// The log takes no record.
    #[error("the log takes no record: {0}")]
    Log(log::Error),
}
