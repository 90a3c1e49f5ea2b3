//! A primary: requests of guests, and the replicas that follow.
//!
//! A batch of requests becomes one append: its writes in their order, then a flush barrier if one was asked for.
//! A plain write is answered when the append returns (the kernel has its record), a flush or FUA write when
//! `Node::settle` says so. Reads of the batch are planned after its writes, so they see them.

use super::config::OnFull;
use super::span::JoinError;
use super::{Node, Ticket, Volume, open};
use crate::event::{FLAG_NO_HOLE, Kind};
use crate::guest::{Completion, MAX_REQUEST_BYTES, Op, Refusal, Reply, Request};
use crate::index::Origin;
use crate::log::ship::Stretch;
use crate::log::{self, Draft};
use crate::overlay::{Content, gaps};
use crate::peer::{Hello, Jump, Needs, Rebuff, Welcome};
use crate::read::{From, Plan, is_zero};
use crate::state::Role;
use crate::types::{Extent, Lsn, Now, Position, VolumeId};

/// A write of zeros at least this long is logged as a zero record, which carries no bytes.
const ZERO_BYTES: usize = 4096;

/// What became of a batch of requests.
#[derive(Default)]
pub struct Submitted {
    /// Answered.
    pub ready: Vec<Completion>,
    /// To be read without the node, then answered.
    pub reads: Vec<(u64, Lookup, Plan)>,
    /// Answered when the ticket comes up in [`Node::take_answers`].
    pub waiting: Vec<(u64, Ticket)>,
    /// The node takes no more writes just now; they are still in the batch, to be submitted again when
    /// background work was done.
    pub stalled: bool,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The bytes.
    Read,
    /// Which parts are holes.
    Status,
    /// Nothing: have them ready.
    Cache,
}

/// Why a replica that answered cannot be followed up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// This node is not primary any more, or failed.
    #[error("this node does not send: {0}")]
    NotSending(String),
    /// Not in the configuration.
    #[error("{0} is not configured as a replica of this group")]
    Unknown(String),
    /// It holds something else than this log at that position.
    #[error("the replica holds a different record at LSN {0}: its copy has diverged, and must be made anew")]
    Diverged(Lsn),
    /// It holds more than was ever durable here.
    #[error(
        "the replica stands at LSN {replica}, this log ends at {here}: this disk has lost what was durable"
    )]
    Ahead {
        /// The replica's durable LSN.
        replica: Lsn,
        /// Ours.
        here: Lsn,
    },
    /// What it needs is no longer in the log.
    #[error("the replica needs LSN {needed}, the log begins at {first}: its copy must be made anew")]
    TooFarBehind {
        /// The next it needs.
        needed: Lsn,
        /// The oldest held.
        first: Lsn,
    },
    /// What it lacks is not known.
    #[error(
        "the replica stands at LSN {0} and lacks what is not known any more: only a copy of everything can catch it \
         up; its points stay as they are until that is allowed with `landfall resync`"
    )]
    NeedsCopy(Lsn),
    /// What it lacks is being looked for.
    #[error("what the replica lacks is being looked for in the log")]
    NotYet,
    /// The log takes no record of a span just now.
    #[error("the log takes no records: {0}")]
    Append(String),
    /// The log could not be read.
    #[error("{0}")]
    Unreadable(String),
}

impl Node {
    /// Takes a batch of requests to one volume. Requests that stay in `requests` were not looked at because
    /// [`Submitted::stalled`].
    pub fn submit(&mut self, now: Now, id: VolumeId, requests: &mut Vec<Request>, out: &mut Submitted) {
        if let Some(refusal) = self.refuses_all(id) {
            out.ready.extend(
                requests.drain(..).map(|request| Completion { cookie: request.cookie, result: Err(refusal) }),
            );
            return;
        }
        let mut batch = std::mem::take(requests);
        batch.retain(|request| match self.check(id, request) {
            Ok(()) => true,
            Err(refusal) => {
                out.ready.push(Completion { cookie: request.cookie, result: Err(refusal) });
                false
            }
        });
        let (lookups, mutations): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|request| is_lookup(&request.op));
        if !mutations.is_empty() {
            let writes = mutations.iter().any(|request| request.op != Op::Flush);
            match self.is_draining() || writes && self.overlay_is_full() {
                true => *requests = mutations,
                false => *requests = self.log_batch(now, id, mutations, out),
            }
        }
        out.stalled = !requests.is_empty();
        for request in &lookups {
            self.plan(now, id, request, out);
        }
    }

    /// Why no request at all is served, if so.
    fn refuses_all(&self, id: VolumeId) -> Option<Refusal> {
        let serving = self.state.role == Role::Primary && self.volumes.contains_key(&id);
        (!serving).then_some(Refusal::Shutdown)
    }

    fn check(&self, id: VolumeId, request: &Request) -> Result<(), Refusal> {
        let size = self.volumes[&id].spec.size;
        let beyond = |extent: &Extent, refusal| if extent.fits(size) { Ok(()) } else { Err(refusal) };
        match &request.op {
            Op::Read(extent) if extent.len > u64::from(MAX_REQUEST_BYTES) => Err(Refusal::Invalid),
            Op::Read(extent) | Op::Cache(extent) | Op::Status(extent) => beyond(extent, Refusal::Invalid),
            _ if self.failed.is_some() => Err(Refusal::Io),
            Op::Write { data, .. } if data.len() > MAX_REQUEST_BYTES as usize => Err(Refusal::Invalid),
            Op::Write { offset, data } => beyond(&Extent::new(*offset, data.len() as u64), Refusal::NoSpace),
            Op::Zero { extent, .. } => beyond(extent, Refusal::NoSpace),
            Op::Trim(extent) => beyond(extent, Refusal::Invalid),
            Op::Flush => Ok(()),
        }
    }

    /// Whether writes have to wait for the backing.
    fn overlay_is_full(&self) -> bool {
        self.active_bytes() >= self.config.limits.overlay_bytes
    }

    /// Logs the mutations of a batch and answers what can be answered. Returns those that have to wait for room.
    fn log_batch(
        &mut self,
        now: Now,
        id: VolumeId,
        mutations: Vec<Request>,
        out: &mut Submitted,
    ) -> Vec<Request> {
        let mut drafts: Vec<Draft<'_>> =
            mutations.iter().filter_map(|request| draft_of(id, &request.op)).collect();
        let flushes = mutations.iter().any(|request| request.op == Op::Flush);
        if flushes && (!drafts.is_empty() || self.work.written_since_barrier) {
            let (volume, extent) = (VolumeId(0), Extent::default());
            drafts.push(Draft { kind: Kind::Flush, flags: 0, volume, extent, payload: &[] });
        }
        let (appended, error) = match drafts.is_empty() {
            true => (Vec::new(), None),
            false => match self.begin(now) {
                Ok(()) => self.log.append(now.wall, self.state.epoch(), &drafts),
                Err(error) => (Vec::new(), Some(error)),
            },
        };
        if !appended.is_empty() {
            self.appended(now);
        }
        self.work.guest_at = now.mono;
        for record in &appended {
            self.work.written_since_barrier = record.header.kind != Kind::Flush;
            self.work.unsynced_bytes += record.header.record_len() as u64;
            if record.header.kind.changes_bytes() {
                self.work.unmarked_since.get_or_insert(now.mono);
                self.take_in(record);
            }
        }
        let waits = self.config.on_full != OnFull::Refuse;
        let stalls = waits && matches!(error, Some(log::Error::Full { .. }));
        let refusal = error.filter(|_| !stalls).map(|error| self.log_refused(now, &error));
        let mut records = appended.iter().filter(|record| record.header.kind.changes_bytes());
        let mut left = Vec::new();
        for request in mutations {
            let logs = draft_of(id, &request.op).is_some();
            let lsn = match logs.then(|| records.next()) {
                Some(Some(record)) => record.header.lsn,
                // Everything up to here covers a flush, whether or not its barrier could be logged.
                None if self.failed.is_none() => self.log.tip().lsn,
                Some(None) if stalls => {
                    left.push(request);
                    continue;
                }
                Some(None) | None => {
                    let result = Err(refusal.unwrap_or(Refusal::Io));
                    out.ready.push(Completion { cookie: request.cookie, result });
                    continue;
                }
            };
            let must_wait = request.fua || request.op == Op::Flush;
            match must_wait.then(|| self.wait_for(lsn)).flatten() {
                Some(ticket) => out.waiting.push((request.cookie, ticket)),
                None => out.ready.push(Completion { cookie: request.cookie, result: Ok(Reply::Done) }),
            }
        }
        if self.failed.is_some() {
            // The log failed within the batch: what was appended before may not become durable any more.
            self.refuse_waiters(Refusal::Io);
        }
        left
    }

    /// Makes a record that was appended visible to reads.
    fn take_in(&mut self, record: &log::Appended) {
        self.note_change(record.header.volume, record.header.extent);
        if let Some(index) = &mut self.index {
            open::index_record(index, &record.header, record.place);
        }
        if self.is_hydrating() {
            return;
        }
        let volume = self.volumes.get_mut(&record.header.volume).expect("the volume was checked");
        let content = open::content_of(&record.header, record.payload.clone());
        volume.active.insert(record.header.extent, content);
    }

    fn plan(&mut self, now: Now, id: VolumeId, request: &Request, out: &mut Submitted) {
        self.work.guest_at = now.mono;
        let (lookup, extent) = match &request.op {
            Op::Read(extent) => (Lookup::Read, *extent),
            Op::Status(extent) => (Lookup::Status, *extent),
            Op::Cache(extent) => (Lookup::Cache, *extent),
            _ => unreachable!("only lookups are planned"),
        };
        if extent.len == 0 {
            let reply = match lookup {
                Lookup::Read => Reply::Data(Vec::new()),
                Lookup::Status => Reply::Status(Vec::new()),
                Lookup::Cache => Reply::Done,
            };
            out.ready.push(Completion { cookie: request.cookie, result: Ok(reply) });
            return;
        }
        match self.plan_head(id, extent) {
            Some(plan) => out.reads.push((request.cookie, lookup, plan)),
            None => out.ready.push(Completion { cookie: request.cookie, result: Err(Refusal::Io) }),
        }
    }

    /// A read of a volume as it is now.
    pub(crate) fn plan_head(&self, id: VolumeId, extent: Extent) -> Option<Plan> {
        let volume = &self.volumes[&id];
        match &volume.backing {
            Some(backing) if !self.is_hydrating() => {
                let mut parts: Vec<(Extent, From)> = Vec::new();
                let active: Vec<_> = volume.active.within(extent).collect();
                for gap in gaps(extent, &active) {
                    let frozen: Vec<_> = volume.frozen.iter().flat_map(|frozen| frozen.within(gap)).collect();
                    let backed = gaps(gap, &frozen).into_iter();
                    parts.extend(backed.map(|gap| (gap, From::Plain(backing.clone()))));
                    parts.extend(frozen.into_iter().map(|(part, content)| (part, From::Memory(content))));
                }
                parts.extend(active.into_iter().map(|(part, content)| (part, From::Memory(content))));
                parts.sort_by_key(|(part, _)| part.offset);
                Some(Plan::new(extent, parts))
            }
            _ => self.plan_at(id, self.log.tip().lsn, extent),
        }
    }

    /// A read of a volume as it was at an LSN, out of log and base image.
    pub(crate) fn plan_at(&self, id: VolumeId, at: Lsn, extent: Extent) -> Option<Plan> {
        let Volume { base, .. } = self.volumes.get(&id)?;
        let pieces = self.index.as_ref()?.resolve(id, at, extent).ok()?;
        let parts = pieces.into_iter().map(|piece| {
            let from = match piece.source {
                Origin::Zero => From::Memory(Content::Zero { no_hole: false }),
                Origin::Base => From::Plain(base.clone()?),
                Origin::Payload(place) => From::Record(self.log.in_record(place)?),
            };
            Some((piece.extent, from))
        });
        Some(Plan::new(extent, parts.collect::<Option<Vec<_>>>()?))
    }

    /// Whether records go from here to replicas.
    fn sends(&self) -> bool {
        self.state.role == Role::Primary && self.failed.is_none()
    }

    /// What this node says to a replica that it dials, as the primary or to hand the group over; `None` if it has
    /// nothing to say.
    #[must_use]
    pub fn hello(&self) -> Option<Hello> {
        self.calls_as()?;
        let history = if self.sends() { &self.state.history } else { &self.state.fenced_by };
        Some(Hello {
            name: self.config.name.clone(),
            group: self.state.group,
            node: self.config.node,
            history: history.clone(),
            durable: self.log.durable().position(),
            first: self.log.first(),
        })
    }

    /// A replica said where it stands: checks that its log is a prefix of this one. It goes on behind its durable
    /// position, or where the jump says. `needs` is `None` for a replica that knows of no sync spans.
    ///
    /// # Errors
    /// [`AttachError`], which stays in the report until the replica is well again.
    pub fn attach(
        &mut self,
        now: Now,
        replica: &str,
        welcome: &Welcome,
        needs: Option<&Needs>,
    ) -> Result<Option<Jump>, AttachError> {
        let result = self.check_attach(now, replica, welcome, needs);
        let Some(follower) = self.followers.get_mut(replica) else {
            return Err(AttachError::Unknown(replica.to_owned()));
        };
        follower.needs_copy = matches!(result, Err(AttachError::NeedsCopy(_)));
        match &result {
            Ok(_) => {
                // R04: it must never hold less than it acknowledged.
                let lost = follower.acknowledged > welcome.durable.lsn;
                follower.alarm = lost.then(|| {
                    format!(
                        "the replica had acknowledged LSN {} and came back with {}: its disk has lost records; \
                         they are sent again",
                        follower.acknowledged, welcome.durable.lsn
                    )
                });
                (follower.connected, follower.attached) = (true, true);
                follower.node = Some(welcome.node);
                follower.acknowledged = welcome.durable.lsn;
                let from =
                    result.as_ref().ok().copied().flatten().map_or(welcome.durable.lsn, |jump| jump.to.lsn);
                follower.verified.attached(from);
                if matches!(result, Ok(None)) {
                    follower.held = welcome.durable.lsn;
                }
                self.settle();
            }
            Err(error) => follower.alarm = Some(error.to_string()),
        }
        if let Some(alarm) = self.followers.get(replica).and_then(|follower| follower.alarm.as_ref()) {
            tracing::warn!(group = %self.config.name, replica, alarm, at = %now.wall, "replica");
        }
        result
    }

    fn check_attach(
        &mut self,
        now: Now,
        replica: &str,
        welcome: &Welcome,
        needs: Option<&Needs>,
    ) -> Result<Option<Jump>, AttachError> {
        if !self.sends() {
            return Err(AttachError::NotSending(self.why_not_sending()));
        }
        if !self.followers.contains_key(replica) {
            return Err(AttachError::Unknown(replica.to_owned()));
        }
        let (theirs, here) = (welcome.durable, self.log.durable().lsn);
        if theirs.lsn > here {
            return Err(AttachError::Ahead { replica: theirs.lsn, here });
        }
        let is_held = match self.log.tip_at(theirs.lsn) {
            Err(error) => return Err(AttachError::Unreadable(error.to_string())),
            // What a gap of this log leaves out cannot be sent.
            Ok(Some((tip, ..))) if tip.position() == theirs => {
                self.state.gaps.iter().all(|gap| gap.after.lsn < theirs.lsn)
            }
            Ok(Some(_)) => return Err(AttachError::Diverged(theirs.lsn)),
            Ok(None) => false,
        };
        let Some(needs) = needs else {
            let lacks = self.followers[replica].lack.is_some();
            return match is_held && !lacks {
                true => Ok(None),
                false => {
                    Err(AttachError::TooFarBehind { needed: theirs.lsn.next(), first: self.log.first() })
                }
            };
        };
        self.join(now, replica, welcome, needs, is_held).map_err(|error| match error {
            JoinError::NotYet => AttachError::NotYet,
            JoinError::NeedsCopy => AttachError::NeedsCopy(theirs.lsn),
            JoinError::Record(reason) => AttachError::Append(reason),
            JoinError::Log(error) => AttachError::Append(error.to_string()),
        })
    }

    fn why_not_sending(&self) -> String {
        match &self.failed {
            Some(failed) => failed.reason.clone(),
            None => format!("its role is {}", self.state.role.name()),
        }
    }

    /// Durable records from `from` on.
    #[must_use]
    pub fn records_from(&self, from: Lsn, max_bytes: usize) -> Stretch {
        if self.sends() { self.log.read(from, max_bytes) } else { Stretch::UpToDate }
    }

    /// A replica holds everything up to `durable`. The link has checked that so much was sent.
    pub fn acknowledged(&mut self, now: Now, replica: &str, durable: Position) {
        // A session from before the line was changed speaks of records that are none of it.
        let attached = |follower: &&mut super::Follower| follower.attached;
        let Some(follower) = self.followers.get_mut(replica).filter(attached) else { return };
        follower.acknowledged = follower.acknowledged.max(durable.lsn);
        follower.held = follower.held.max(durable.lsn);
        self.copies_acknowledged(replica);
        self.settle();
        self.settle_handover(now);
    }

    /// The link to a replica came or went.
    pub fn link_changed(&mut self, replica: &str, connected: bool) {
        if let Some(follower) = self.followers.get_mut(replica) {
            follower.connected = connected;
            follower.attached &= connected;
        }
    }

    /// A replica refused this primary.
    pub fn rebuffed(&mut self, now: Now, replica: &str, rebuff: &Rebuff) {
        let here = self.log.durable().lsn;
        if let Some(follower) = self.followers.get_mut(replica) {
            follower.alarm = Some(match rebuff {
                // This node's directory was put back to an older state.
                Rebuff::Diverged { at } if at.lsn > here => {
                    AttachError::Ahead { replica: at.lsn, here }.to_string()
                }
                Rebuff::Diverged { at } => AttachError::Diverged(at.lsn).to_string(),
                other => other.to_string(),
            });
            follower.connected = false;
        }
        if let Rebuff::Superseded { history } = rebuff {
            self.fence(now, history);
            self.end_offer(now, history);
        }
    }

    /// Up to where no replica that the log is kept for needs it; the log's end if there is none.
    pub(crate) fn held_for_replicas(&self) -> Lsn {
        // One that only a copy of everything can catch up has no use for records from before it. (What is on record of its
        // lacks may need them all the same.)
        let keeps = |follower: &&super::Follower| match &follower.lack {
            Some(lack) => lack.holds_log(),
            None => !follower.needs_copy,
        };
        let slowest = self.followers.values().filter(keeps).map(|follower| follower.held).min();
        slowest.unwrap_or(self.log.durable().lsn)
    }
}

fn is_lookup(op: &Op) -> bool {
    matches!(op, Op::Read(_) | Op::Status(_) | Op::Cache(_))
}

/// The record of an operation; `None` if there is nothing to record.
fn draft_of(id: VolumeId, op: &Op) -> Option<Draft<'_>> {
    let draft = |kind, flags, extent, payload| Draft { kind, flags, volume: id, extent, payload };
    match op {
        Op::Write { offset, data } if data.len() >= ZERO_BYTES && is_zero(data) => {
            Some(draft(Kind::Zero, FLAG_NO_HOLE, Extent::new(*offset, data.len() as u64), &[]))
        }
        Op::Write { offset, data } if !data.is_empty() => {
            Some(draft(Kind::Write, 0, Extent::new(*offset, data.len() as u64), data))
        }
        Op::Zero { extent, no_hole } if extent.len > 0 => {
            Some(draft(Kind::Zero, if *no_hole { FLAG_NO_HOLE } else { 0 }, *extent, &[]))
        }
        Op::Trim(extent) if extent.len > 0 => Some(draft(Kind::Zero, 0, *extent, &[])),
        _ => None,
    }
}
