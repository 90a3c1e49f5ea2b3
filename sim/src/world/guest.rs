//! Guests: one stream of requests for each reign, with what each was told.

use super::{Ev, Result, World};
use crate::clock::{Span, Time};
use crate::ledger::Key;
use crate::options::SCRAMBLE;
use crate::reference::{Effect, FlushId, OpId, Operation, Prefix};
use crate::rng::PPM;
use crate::workload::{After, Step, Workload};
use engine::guest::{Op, Piece, Refusal, Reply, Request};
use engine::node::Ticket;
use engine::node::config::AckPolicy;
use engine::node::primary::{Lookup, Submitted};
use engine::read::{Plan, Wait};
use engine::state::Role;
use engine::types::{Extent, Lsn, VolumeId};
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// The cookies of an attacker's requests.
const ATTACK: u64 = 1 << 60;

/// What was asked for.
#[derive(Clone, Debug)]
enum Asked {
    /// Not looked at by the node yet.
    Waiting { op: Op },
    /// A change, with its LSN.
    Change { op: OpId, lsn: Lsn },
    /// A flush, and the end of the log when it was taken.
    Flush { id: FlushId, lsn: Lsn },
    /// A read, and the state before it.
    Read { volume: usize, extent: Extent, from: Prefix },
    /// Something without effect.
    Nothing,
}

/// The guests of one reign.
pub(super) struct Guest {
    pub(super) machine: usize,
    workload: Workload,
    next: Option<Step>,
    asked: BTreeMap<u64, Asked>,
    flushes: BTreeMap<u64, FlushId>,
    tickets: BTreeMap<Ticket, u64>,
    stalled: Vec<(usize, Vec<Request>)>,
    pub(super) sent: u64,
    blocked: bool,
    pub(super) first_answer: Option<Time>,
}

impl Guest {
    pub(super) fn new(machine: usize, workload: Workload) -> Guest {
        Guest {
            machine,
            workload,
            next: None,
            asked: BTreeMap::new(),
            flushes: BTreeMap::new(),
            tickets: BTreeMap::new(),
            stalled: Vec::new(),
            sent: 0,
            blocked: false,
            first_answer: None,
        }
    }

    /// Requests without an answer.
    pub(super) fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// The server is gone, and with it all answers.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
        self.flushes.clear();
        self.tickets.clear();
        self.stalled.clear();
        self.blocked = false;
    }
}

/// The operation of a request, if it changes anything.
fn operation(volume: usize, op: &Op) -> Option<Operation> {
    let (offset, effect, len) = match op {
        Op::Write { offset, data } => (*offset, Effect::Write(data.clone()), data.len() as u64),
        Op::Zero { extent, .. } | Op::Trim(extent) => (extent.offset, Effect::Zeros(extent.len), extent.len),
        _ => return None,
    };
    (len > 0).then_some(Operation { volume, offset, effect })
}

/// Moves a request for a volume that had `first` bytes to what it has gained, every other time, or not; whether it lies
/// within the volume then.
fn fit(request: &mut Request, first: u64, size: u64) -> bool {
    let is_moved = size > first && (request.cookie ^ request.cookie >> 3).is_multiple_of(2);
    let by = if is_moved { size - first } else { 0 };
    match &mut request.op {
        Op::Write { offset, data } => {
            *offset += by;
            *offset + data.len() as u64 <= size
        }
        Op::Read(extent) | Op::Trim(extent) | Op::Zero { extent, .. } => {
            extent.offset += by;
            extent.fits(size)
        }
        _ => true,
    }
}

impl World {
    /// The guests of a reign take their turn.
    pub(super) fn guest_turn(&mut self, key: Key) -> Result {
        let limit = self.options.max_requests;
        let max_batch = self.options.max_batch;
        let Some(guest) = self.guests.get_mut(&key) else { return Ok(()) };
        let machine = guest.machine;
        let serves = self.machines[machine].live.as_ref().is_some_and(|live| {
            live.node.role() == Role::Primary && self.machines[machine].reign == Some(key)
        });
        if !serves || guest.sent >= limit || self.quiet || guest.blocked {
            return Ok(());
        }
        let depth = guest.workload.profile().depth;
        let mut batch: Vec<Request> = Vec::new();
        let mut volume = 0;
        let mut gap = Span(0);
        let timeline = &self.timelines[&key];
        let mut odd = 0;
        while batch.len() < max_batch && odd < max_batch {
            let mut step = match guest.next.take() {
                Some(step) => step,
                None => guest.workload.next_step(),
            };
            let (first, size) = (self.options.workload.volumes[step.volume], timeline.size(step.volume));
            if !fit(&mut step.request, first, size) {
                // The volume has no such place any more.
                odd += 1;
                continue;
            }
            let held = guest.asked.len() + batch.len() >= depth
                || step.after == After::AllAnswers && !(guest.asked.is_empty() && batch.is_empty());
            if held || !batch.is_empty() && step.volume != volume {
                if batch.is_empty() {
                    guest.blocked = true;
                }
                guest.next = Some(step);
                break;
            }
            volume = step.volume;
            gap = gap.max(step.gap);
            batch.push(step.request);
        }
        if batch.is_empty() {
            if odd > 0 {
                self.queue.push(self.now() + Span::from_ms(1), Ev::Guest(key));
            }
            return Ok(());
        }
        guest.sent += batch.len() as u64;
        let timeline = self.timelines.get_mut(&key).expect("guests have a timeline");
        for request in &batch {
            let asked = match &request.op {
                Op::Flush => {
                    let id = timeline.reference.submit_flush();
                    guest.flushes.insert(request.cookie, id);
                    Asked::Waiting { op: Op::Flush }
                }
                Op::Read(extent) => {
                    let from = timeline.reference.must_survive(crate::reference::Death::Process);
                    Asked::Read { volume, extent: *extent, from }
                }
                op => Asked::Waiting { op: op.clone() },
            };
            guest.asked.insert(request.cookie, asked);
        }
        self.count("requests", batch.len() as u64);
        self.queue.push(self.now() + Span(gap.0.max(1_000)), Ev::Guest(key));
        self.hand_over(key, volume, batch)?;
        self.pump(machine)
    }

    /// An attacker with a guest's rights writes over everything.
    pub(super) fn scramble(&mut self) -> Result {
        let piece = self.options.workload.max_len.max(512);
        for machine in 0..self.machines.len() {
            let Some(key) = self.machines[machine].reign.filter(|_| self.serves(machine)) else { continue };
            let Some(guest) = self.guests.get_mut(&key) else { continue };
            let timeline = &self.timelines[&key];
            for volume in 0..self.options.workload.volumes.len() {
                let size = timeline.size(volume);
                for (index, offset) in (0..size).step_by(piece as usize).enumerate() {
                    let cookie = ATTACK | (volume as u64) << 32 | index as u64;
                    let data = vec![SCRAMBLE; piece.min(size - offset) as usize].into();
                    let op = Op::Write { offset, data };
                    guest.asked.insert(cookie, Asked::Waiting { op: op.clone() });
                    guest.stalled.push((volume, vec![Request { cookie, op, fua: false }]));
                }
            }
            self.guest_retries(machine)?;
            self.pump(machine)?;
        }
        Ok(())
    }

    /// Tries again what the node had no room for.
    pub(super) fn guest_retries(&mut self, machine: usize) -> Result {
        let Some(key) = self.machines[machine].reign else { return Ok(()) };
        let Some(guest) = self.guests.get_mut(&key).filter(|guest| !guest.stalled.is_empty()) else {
            return Ok(());
        };
        let stalled = std::mem::take(&mut guest.stalled);
        for (volume, batch) in stalled {
            if self.machines[machine].live.is_none() {
                return Ok(());
            }
            self.hand_over(key, volume, batch)?;
            if self.check_power(machine)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether requests wait for room.
    pub(super) fn is_stalled(&self, machine: usize) -> bool {
        let key = self.machines[machine].reign;
        key.and_then(|key| self.guests.get(&key)).is_some_and(|guest| !guest.stalled.is_empty())
    }

    /// Hands a batch to the node, and draws the conclusions.
    fn hand_over(&mut self, key: Key, volume: usize, mut batch: Vec<Request>) -> Result {
        let at = self.now();
        let machine = self.guests[&key].machine;
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let all = batch.clone();
        let tip_before = live.node.log().tip();
        let was_failed = live.node.failed().is_some();
        let mut out = Submitted::default();
        live.node.submit(now, VolumeId(volume as u32 + 1), &mut batch, &mut out);
        let tip = live.node.log().tip();
        let broke = !was_failed && live.node.failed().is_some();
        let role = live.node.role();
        let powered = self.machines[machine].disk.is_on();

        // A node that had no room for the record that begins its incarnation puts it before anything else.
        let begins = u64::from(tip.incarnation != tip_before.incarnation);
        let before = Lsn(tip_before.lsn.0 + begins);
        // The first of those that change anything are the records behind `before`, in their order. If the log or
        // the machine broke in mid-write, those that follow may be in the file as well.
        let logged = tip.lsn.0 - before.0;
        let timeline = self.timelines.get_mut(&key).expect("guests have a timeline");
        let guest = self.guests.get_mut(&key).expect("it was just there");
        let uncertain = broke || !powered;
        let mut lsn = before;
        let mut taken: u64 = 0;
        for request in &all {
            let Some(operation) = operation(volume, &request.op) else { continue };
            if batch.iter().any(|left| left.cookie == request.cookie) && !uncertain {
                continue;
            }
            if taken >= logged && !uncertain {
                break;
            }
            taken += 1;
            lsn = lsn.next();
            let op = timeline.submit(at, lsn, operation, request.fua);
            guest.asked.insert(request.cookie, Asked::Change { op, lsn });
        }
        if !powered {
            return Ok(());
        }
        for request in &all {
            let left = batch.iter().any(|left| left.cookie == request.cookie);
            if let (Some(Asked::Waiting { op, .. }), false) = (guest.asked.get(&request.cookie), left) {
                let asked = match op {
                    Op::Flush => Asked::Flush { id: guest.flushes[&request.cookie], lsn: tip.lsn },
                    _ => Asked::Nothing,
                };
                guest.asked.insert(request.cookie, asked);
            }
        }
        self.trace(machine, "submit", &[("requests", all.len() as u64), ("lsn", tip.lsn.0)]);
        if logged > 0 {
            self.note_position(machine, key, tip.position())?;
        }
        if !batch.is_empty() {
            self.count("stalled requests", batch.len() as u64);
            let guest = self.guests.get_mut(&key).expect("it was just there");
            guest.stalled.push((volume, batch));
        }
        let latency = self.machines[machine].disk.take_latency();
        let life = self.machines[machine].life;
        let guest = self.guests.get_mut(&key).expect("it was just there");
        for (cookie, ticket) in out.waiting {
            guest.tickets.insert(ticket, cookie);
        }
        for completion in out.ready {
            let ok = completion.result.is_ok();
            let mutation =
                !matches!(self.guests[&key].asked.get(&completion.cookie), Some(Asked::Read { .. }));
            if ok && mutation && role != Role::Primary {
                return Err(self.broken(
                    "invariant_one_writer",
                    machine,
                    format!("a {} node answered a change with success", role.name()),
                ));
            }
            let durably = all.iter().any(|request| {
                request.cookie == completion.cookie && (request.fua || request.op == Op::Flush)
            });
            if ok && durably {
                self.invariant_honest_acknowledgement(machine, key, completion.cookie)?;
            }
            let answer = completion.result.map(|_| ());
            self.answer_later(machine, life, key, completion.cookie, answer, latency)?;
        }
        for (cookie, lookup, plan) in out.reads {
            assert_eq!(lookup, Lookup::Read, "guests ask for nothing else");
            let delay = Span(1_000 + self.rng.below(500_000));
            self.queue.push(at + delay, Ev::Read { machine, life, key, cookie, plan: Box::new(plan) });
        }
        Ok(())
    }

    fn answer_later(
        &mut self,
        machine: usize,
        life: u64,
        key: Key,
        cookie: u64,
        answer: std::result::Result<(), Refusal>,
        latency: Span,
    ) -> Result {
        if latency.0 == 0 {
            return self.answer(machine, life, key, cookie, answer);
        }
        self.queue.push(self.now() + latency, Ev::Answer { machine, life, key, cookie, answer });
        Ok(())
    }

    /// The answers that the node let go of.
    pub(super) fn collect_answers(&mut self, machine: usize) -> Result {
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let answers = live.node.take_answers();
        let role = live.node.role();
        let Some(key) = self.machines[machine].reign else { return Ok(()) };
        let life = self.machines[machine].life;
        for answer in answers {
            let Some(guest) = self.guests.get_mut(&key) else { continue };
            let Some(cookie) = guest.tickets.remove(&answer.ticket) else { continue };
            if answer.result.is_ok() && role != Role::Primary {
                let detail = format!("a {} node answered a flush with success", role.name());
                return Err(self.broken("invariant_one_writer", machine, detail));
            }
            if answer.result.is_ok() {
                self.invariant_honest_acknowledgement(machine, key, cookie)?;
            }
            let delay = Span(self.rng.below(20_000));
            self.answer_later(machine, life, key, cookie, answer.result, delay)?;
        }
        Ok(())
    }

    /// A flush or FUA write is answered only when everything up to it is durable, here and, by policy, elsewhere
    /// (guarantee 3).
    fn invariant_honest_acknowledgement(&mut self, machine: usize, key: Key, cookie: u64) -> Result {
        let lsn = match self.guests[&key].asked.get(&cookie) {
            Some(Asked::Change { lsn, .. }) | Some(Asked::Flush { lsn, .. }) => *lsn,
            _ => return Ok(()),
        };
        let live = self.machines[machine].live.as_ref().expect("it has just answered");
        let durable = live.node.durable().lsn;
        if durable < lsn {
            let detail = format!("LSN {lsn} was acknowledged as durable, durable is {durable}");
            return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
        }
        if self.options.ack == AckPolicy::Replica {
            let elsewhere = self
                .machines
                .iter()
                .enumerate()
                .any(|(other, m)| other != machine && m.promised.lsn >= lsn && !m.wiped);
            let excused = self.machines.iter().any(|m| m.wiped || m.damaged);
            if !elsewhere && !excused {
                let detail = format!("LSN {lsn} was acknowledged, and no replica has said that it holds it");
                return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
            }
        }
        Ok(())
    }

    /// An answer reaches its guest.
    pub(super) fn answer(
        &mut self,
        machine: usize,
        life: u64,
        key: Key,
        cookie: u64,
        answer: std::result::Result<(), Refusal>,
    ) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let at = self.now();
        let Some(guest) = self.guests.get_mut(&key) else { return Ok(()) };
        let timeline = self.timelines.get_mut(&key).expect("guests have a timeline");
        let Some(asked) = guest.asked.remove(&cookie) else { return Ok(()) };
        let flush = guest.flushes.remove(&cookie);
        let name = match (&asked, &answer) {
            (Asked::Change { op, .. }, Ok(())) => {
                timeline.answer(*op);
                guest.first_answer.get_or_insert(at);
                "answered change"
            }
            (Asked::Flush { id, .. }, Ok(())) => {
                timeline.reference.answer_flush(*id);
                "answered flush"
            }
            (Asked::Waiting { .. }, Ok(())) => {
                let detail = format!("request {cookie} was answered before it was taken");
                return Err(self.broken("invariant_honest_acknowledgement", machine, detail));
            }
            (_, Ok(())) => "answered other",
            (_, Err(refusal)) => {
                if let Some(flush) = flush {
                    timeline.reference.forget_flush(flush);
                }
                match refusal {
                    Refusal::Io => "refused: io",
                    Refusal::NoSpace => "refused: no space",
                    Refusal::Shutdown => "refused: shutdown",
                    Refusal::ReadOnly | Refusal::Invalid => {
                        let detail = format!("a sound request was refused: {refusal}");
                        return Err(self.broken("invariant_sound_requests_are_served", machine, detail));
                    }
                }
            }
        };
        self.trace(machine, "answer", &[("cookie", cookie), ("ok", u64::from(answer.is_ok()))]);
        self.count(name, 1);
        let guest = self.guests.get_mut(&key).expect("it was just there");
        if guest.blocked {
            guest.blocked = false;
            let pause = if answer.is_ok() { Span(1_000) } else { Span::from_ms(10) };
            self.queue.push(at + pause, Ev::Guest(key));
        }
        Ok(())
    }

    /// A read is carried out.
    pub(super) fn read(&mut self, machine: usize, life: u64, key: Key, cookie: u64, plan: &Plan) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let read = match plan.read(Wait::No) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => plan.read(Wait::Yes),
            read => read,
        };
        if !self.machines[machine].disk.is_on() {
            return self.power_lost(machine);
        }
        let pieces = match read.map(Reply::Data) {
            Ok(Reply::Data(pieces)) => pieces,
            Ok(_) => Vec::new(),
            Err(error) => {
                if !self.machines[machine].is_excused() {
                    let detail = format!("a read failed on a sound disk: {error}");
                    return Err(self.broken("invariant_reads_succeed", machine, detail));
                }
                return self.answer(machine, life, key, cookie, Err(Refusal::Io));
            }
        };
        let bytes = flatten(&pieces);
        let asked = self.guests.get(&key).and_then(|guest| guest.asked.get(&cookie)).cloned();
        if let Some(Asked::Read { volume, extent, from }) = asked
            && !self.machines[machine].damaged
        {
            let reference = &self.timelines[&key].reference;
            let versions = reference.versions(volume, extent.offset, extent.len, from);
            let of_one = |range: std::ops::Range<usize>| {
                versions.iter().any(|version| version[range.clone()] == bytes[range.clone()])
            };
            // A read beside a write may see it byte by byte, as on any disk.
            let right = bytes.len() as u64 == extent.len
                && (of_one(0..bytes.len()) || (0..bytes.len()).all(|at| of_one(at..at + 1)));
            if !right {
                let detail = format!("volume {volume}, {extent:?}: not what was written");
                return Err(self.broken("invariant_reads_are_right", machine, detail));
            }
        }
        self.answer(machine, life, key, cookie, Ok(()))?;
        self.pump(machine)
    }

    /// The workload of a new reign.
    pub(super) fn new_guest(&mut self, key: Key, machine: usize) {
        let label = format!("guests of epoch {} on {machine}", key.0);
        let mut rng = self.root.child(&label);
        let mut profile = self.options.workload.clone();
        if rng.chance(PPM / 4) {
            profile.gap = Span(profile.gap.0 / 2 + 1);
        }
        self.guests.insert(key, Guest::new(machine, Workload::new(profile, rng)));
        self.queue.push(self.now() + Span(1_000), Ev::Guest(key));
    }
}

/// The bytes of pieces.
pub(super) fn flatten(pieces: &[Piece]) -> Vec<u8> {
    let len = |piece: &Piece| match piece {
        Piece::Bytes(part) => part.len(),
        Piece::Hole(len) => *len as usize,
    };
    let mut bytes = Vec::with_capacity(pieces.iter().map(len).sum());
    for piece in pieces {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
        }
    }
    bytes
}
