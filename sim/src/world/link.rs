//! The sessions between the machines: the real state machines, on the simulated network.
//!
//! A primary dials each replica of its configuration; a replica lets a new session take over from an older one
//! with its welcome, and from then on appends nothing more of the older one.

use super::seed::Shipped;
use super::{Ev, Result, World};
use crate::clock::{Span, Time};
use crate::net::{Close, ConnId, End, Event, Host, What};
use bytes::Bytes;
use engine::log::ship::{ReadError, Stretch};
use engine::peer::TakesBack;
use engine::peer::{Batch, Hello, Jump, Rebuff};
use engine::state::Role;
use engine::types::{Epoch, Lsn};
use std::collections::VecDeque;
use transport::link::frame::Frame;
use transport::link::receiver::{self, Receiver};
use transport::link::sender::{self, Sender};

/// The longest that a dialler waits for a connection.
const CONNECT: Span = Span::from_ms(1_000);
/// The waits before dialling again.
const MIN_RETRY_MS: u64 = 20;

/// The longest record: a sync span's copy. (Guests write less at once here.)
const LONGEST_RECORD: usize = (256 << 10) + (4 << 10);

/// The primary's end of a link.
pub(super) struct Dial {
    conn: Option<ConnId>,
    hello: Option<Hello>,
    /// In whose name it said so.
    said: Option<Epoch>,
    sender: Option<Sender>,
    /// When to dial, or to give up dialling.
    pub(super) at: Time,
    retry_ms: u64,
    durable: Lsn,
    reading: bool,
}

impl Dial {
    pub(super) fn new(at: Time) -> Dial {
        Dial {
            conn: None,
            hello: None,
            said: None,
            sender: None,
            at,
            retry_ms: MIN_RETRY_MS,
            durable: Lsn::ZERO,
            reading: false,
        }
    }
}

/// The replica's end of a link.
pub(super) struct Incoming {
    peer: usize,
    pub(super) receiver: Receiver,
    inbox: VecDeque<Frame>,
    hello: Option<(Hello, TakesBack)>,
    /// Told to leave records out.
    jump: Option<Jump>,
    /// Welcomed, by a primary of that epoch.
    epoch: Option<Epoch>,
    /// The last of the node's asks that this session has sent.
    asked: u64,
    /// A copy that its replica was given.
    pub(super) shipped: Option<Shipped>,
}

impl super::machine::Live {
    /// Whether a session with a peer has got beyond its hello.
    pub(super) fn is_linked(&self) -> bool {
        self.dials.values().any(|dial| dial.sender.is_some())
            || self.incoming.values().any(|incoming| incoming.epoch.is_some())
    }
}

fn size_of(frame: &Frame) -> u64 {
    match frame {
        Frame::Batch(batch) => batch.len() as u64 + 24,
        Frame::Hello(_) | Frame::Welcome(_) | Frame::Rebuff(_) => 300,
        Frame::Needs(needs) => needs.lacks.len() as u64 * 20 + 24,
        Frame::Held(held) => held.len() as u64 * 36 + 16,
        Frame::Thin(thin) => {
            let rest: usize = thin.bytes.iter().map(Bytes::len).sum();
            (rest + thin.left_out.len() * 36 + 28) as u64
        }
        Frame::Ack(_) | Frame::Heartbeat(_) | Frame::Jump(_) | Frame::Ask(_) => 32,
    }
}

impl World {
    /// Something came over the network.
    pub(super) fn arrive(&mut self, event: Event<Frame>) -> Result {
        let Event { host, conn, end, what } = event;
        let machine = host.0 as usize;
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let session = self.options.session.clone();
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        match (end, what) {
            (End::Listener, What::Opened { peer }) => {
                let incoming = Incoming {
                    peer: peer.0 as usize,
                    receiver: Receiver::new(session, now),
                    inbox: VecDeque::new(),
                    hello: None,
                    jump: None,
                    epoch: None,
                    asked: 0,
                    shipped: None,
                };
                live.incoming.insert(conn, incoming);
            }
            (End::Listener, What::Activity) => {
                if let Some(incoming) = live.incoming.get_mut(&conn) {
                    incoming.receiver.handle_activity(now);
                }
            }
            (End::Listener, What::Message(frame)) => {
                if let Some(incoming) = live.incoming.get_mut(&conn) {
                    incoming.inbox.push_back(frame);
                }
            }
            (End::Listener, What::Closed(_)) => drop(live.incoming.remove(&conn)),
            (End::Dialer, what) => {
                let Some((target, dial)) = live.dials.iter_mut().find(|(_, dial)| dial.conn == Some(conn))
                else {
                    return Ok(());
                };
                let target = *target;
                match what {
                    What::Opened { .. } => {
                        let hello = dial.hello.take().expect("it was made when this was dialled");
                        dial.durable = hello.durable.lsn;
                        dial.sender = Some(Sender::new(session, now, hello, live.node.takes_back()));
                    }
                    What::Activity => {
                        if let Some(sender) = &mut dial.sender {
                            sender.handle_activity(now);
                        }
                    }
                    What::Message(frame) => {
                        if let Some(sender) = &mut dial.sender {
                            sender.handle_frame(now, frame);
                        }
                    }
                    What::Closed(why) => {
                        self.count(if why == Close::Refused { "dial refused" } else { "link down" }, 1);
                        self.hang_up(machine, target, false);
                    }
                }
            }
        }
        self.pump(machine)
    }

    /// Ends a session that this machine has dialled, and plans the next.
    fn hang_up(&mut self, machine: usize, target: usize, close: bool) {
        let at = self.now();
        let jitter = self.rng.below(1_000_000);
        let peer = self.machines[target].name.clone();
        let Some(live) = &mut self.machines[machine].live else { return };
        let Some(dial) = live.dials.get_mut(&target) else { return };
        if let (Some(conn), true) = (dial.conn, close) {
            self.net.close(at, conn, End::Dialer);
        }
        let wait = dial.retry_ms;
        let next = (wait * 2).min(self.options.max_retry.0 / 1_000_000);
        *dial = Dial { retry_ms: next, ..Dial::new(at + Span::from_ms(wait) + Span(jitter)) };
        live.node.link_changed(&peer, false);
    }

    /// Moves everything on that a session of this machine can do now. Returns the next time it wants to be called.
    pub(super) fn pump_sessions(&mut self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let targets: Vec<usize> = live.dials.keys().copied().collect();
        let conns: Vec<ConnId> = live.incoming.keys().copied().collect();
        for target in targets {
            self.pump_dial(machine, target)?;
        }
        for conn in conns {
            self.pump_incoming(machine, conn)?;
        }
        Ok(())
    }

    fn pump_dial(&mut self, machine: usize, target: usize) -> Result {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let peer = self.machines[target].name.clone();
        let key = self.machines[machine].reign;
        loop {
            let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
            let Some(dial) = live.dials.get_mut(&target) else { return Ok(()) };
            let Some(conn) = dial.conn else {
                if at >= dial.at
                    && let Some(hello) = live.node.hello()
                {
                    dial.said = hello.history.last().map(|reign| reign.epoch);
                    dial.hello = Some(hello);
                    dial.at = at + CONNECT;
                    dial.conn = Some(self.net.dial(at, Host(machine as u32), Host(target as u32)));
                } else if at >= dial.at {
                    dial.at = at + self.options.max_retry;
                }
                return Ok(());
            };
            // It may call in another name now: then it says so anew.
            if live.node.calls_as().is_none() || dial.said != live.node.calls_as() {
                self.hang_up(machine, target, true);
                return Ok(());
            }
            let Some(sender) = &mut dial.sender else {
                if at >= dial.at {
                    self.hang_up(machine, target, true);
                }
                return Ok(());
            };
            if sender.poll_timeout().is_some_and(|due| due <= now.mono) {
                sender.handle_timeout(now);
            }
            dial.durable = dial.durable.max(live.node.durable().lsn);
            sender.handle_durable(dial.durable);
            let window =
                self.options.session.window_bytes + LONGEST_RECORD + self.options.session.batch_bytes;
            if sender.in_flight_bytes() > window {
                let detail = format!("{} bytes in flight", sender.in_flight_bytes());
                return Err(self.broken("invariant_bounded", machine, detail));
            }
            if let Some(event) = sender.poll_event() {
                match event {
                    sender::Event::Welcomed(welcome, needs) => {
                        let attached = live.node.attach(now, &peer, &welcome, needs.as_ref());
                        match attached {
                            Ok(jump) => {
                                let next = jump.map_or(welcome.durable.lsn, |jump| jump.to.lsn).next();
                                let durable = live.node.durable().lsn;
                                let dial = live.dials.get_mut(&target).expect("it was just there");
                                dial.retry_ms = MIN_RETRY_MS;
                                dial.durable = dial.durable.max(durable);
                                let sender = dial.sender.as_mut().expect("likewise");
                                sender.handle_durable(dial.durable);
                                sender.handle_attached(jump);
                                self.count("attached", 1);
                                if let Some(jump) = jump {
                                    self.count("jumps", 1);
                                    self.say(
                                        machine,
                                        "jump",
                                        &[
                                            ("replica", (target as u64).into()),
                                            ("from", jump.from.lsn.0.into()),
                                            ("to", jump.to.lsn.0.into()),
                                        ],
                                    );
                                }
                                self.trace(machine, "attached", &[("to", target as u64), ("next", next.0)]);
                            }
                            Err(error) => {
                                self.count("attach refused", 1);
                                self.say(machine, "attach refused", &[("why", error.to_string().into())]);
                                self.hang_up(machine, target, true);
                            }
                        }
                        self.collect_answers(machine)?;
                    }
                    sender::Event::Acked(position) => {
                        live.node.acknowledged(now, &peer, position);
                        let key = key.expect("a primary has a reign");
                        self.note_position(machine, key, position)?;
                        self.trace(machine, "acked", &[("by", target as u64), ("lsn", position.lsn.0)]);
                        self.collect_answers(machine)?;
                        self.progress(machine);
                    }
                    sender::Event::Heard(_) => {}
                    sender::Event::Asked(ask) => {
                        live.node.asked(now, &peer, ask);
                        self.count("asked", 1);
                    }
                    sender::Event::Rebuffed(rebuff) => {
                        let was = live.node.role();
                        live.node.rebuffed(now, &peer, &rebuff);
                        let fenced = was == Role::Primary && live.node.role() == Role::Fenced;
                        self.count(rebuff_name(&rebuff), 1);
                        if fenced {
                            self.count("fenced", 1);
                            self.say(machine, "fenced", &[("by", rebuff.to_string().into())]);
                        } else {
                            self.say(machine, "rebuffed", &[("why", rebuff.to_string().into())]);
                        }
                        self.collect_answers(machine)?;
                    }
                    sender::Event::Lost(reason) => {
                        self.count("session lost", 1);
                        self.say(
                            machine,
                            "link down",
                            &[("to", (target as u64).into()), ("why", reason.to_string().into())],
                        );
                        self.hang_up(machine, target, true);
                    }
                }
                if self.check_power(machine)? {
                    return Ok(());
                }
                continue;
            }
            if let Some(frame) = sender.poll_transmit() {
                if let Frame::Batch(batch) = &frame {
                    let (last, durable) = (batch.last, live.node.durable().lsn);
                    if last > durable {
                        let detail = format!("LSN {last} was shipped, durable is {durable}");
                        return Err(self.broken("invariant_prefix", machine, detail));
                    }
                    self.link_bytes += size_of(&frame);
                    self.count("batches", 1);
                }
                let bytes = size_of(&frame);
                self.net.send(at, conn, End::Dialer, frame, bytes);
                continue;
            }
            if dial.reading {
                return Ok(());
            }
            let Some(want) = sender.poll_want() else { return Ok(()) };
            match live.node.records_from(want.from, want.max_bytes) {
                Stretch::Ready(batch) => {
                    self.give(machine, target, conn, batch)?;
                }
                Stretch::OnDisk(read) => {
                    dial.reading = true;
                    self.count("catch-up reads", 1);
                    let life = self.machines[machine].life;
                    let delay = Span(10_000 + self.rng.below(2_000_000));
                    let read = Box::new(read);
                    self.queue.push(at + delay, Ev::Fetched { machine, life, target, conn, read });
                    return Ok(());
                }
                Stretch::UpToDate => return Ok(()),
                Stretch::Gone => {
                    self.count("log gone", 1);
                    self.hang_up(machine, target, true);
                    return Ok(());
                }
            }
        }
    }

    /// Hands records to a session.
    fn give(&mut self, machine: usize, target: usize, conn: ConnId, batch: Batch) -> Result {
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some(dial) = live.dials.get_mut(&target).filter(|dial| dial.conn == Some(conn)) else {
            return Ok(());
        };
        if let Some(sender) = &mut dial.sender
            && !sender.is_closed()
        {
            sender.handle_records(batch);
        }
        Ok(())
    }

    /// Records were read from the disk.
    pub(super) fn fetched(
        &mut self,
        machine: usize,
        life: u64,
        target: usize,
        conn: ConnId,
        read: engine::log::ship::Read,
    ) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let result = read.run();
        if self.check_power(machine)? {
            return Ok(());
        }
        if let Some(live) = &mut self.machines[machine].live
            && let Some(dial) = live.dials.get_mut(&target).filter(|dial| dial.conn == Some(conn))
        {
            dial.reading = false;
        }
        match result {
            Ok(batch) => self.give(machine, target, conn, batch)?,
            Err(error) => {
                // A segment may have been used again since, when the session that wanted it is already over.
                self.count("catch-up read failed", 1);
                self.say(machine, "read failed", &[("why", error.to_string().into())]);
                let current = self.machines[machine].live.as_ref().and_then(|live| live.dials.get(&target));
                if current.is_some_and(|dial| dial.conn == Some(conn)) {
                    if !self.machines[machine].is_excused() {
                        let detail = format!("the log of a sound disk cannot be read: {error}");
                        return Err(self.broken("invariant_reads_succeed", machine, detail));
                    }
                    if let Some(live) = &mut self.machines[machine].live
                        && let ReadError::Damaged { lsn, .. } = error
                    {
                        live.node.log_unreadable(lsn);
                    }
                    self.hang_up(machine, target, true);
                }
            }
        }
        self.pump(machine)
    }

    fn pump_incoming(&mut self, machine: usize, conn: ConnId) -> Result {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        loop {
            let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
            let Some(incoming) = live.incoming.get_mut(&conn) else { return Ok(()) };
            let receiver = &mut incoming.receiver;
            if receiver.poll_timeout().is_some_and(|due| due <= now.mono) {
                receiver.handle_timeout(now);
            }
            if incoming.epoch.is_some() && !receiver.is_closed() {
                // Refusing comes first: the durable position may already be that of a log which has branched off.
                if live.node.role() != Role::Replica {
                    let history = live.node.history().to_vec();
                    receiver.handle_rebuff(Rebuff::Superseded { history });
                } else if live.node.failed().is_some() {
                    receiver.handle_rebuff(Rebuff::Failed);
                } else {
                    receiver.handle_durable(now, live.node.acknowledgeable());
                    for (number, ask) in live.node.asks() {
                        if number > incoming.asked {
                            receiver.handle_ask(ask);
                            incoming.asked = number;
                        }
                    }
                }
            }
            while receiver.wants_input()
                && let Some(frame) = incoming.inbox.pop_front()
            {
                receiver.handle_frame(now, frame);
            }
            let limit =
                self.options.session.unsettled_bytes + self.options.session.batch_bytes + LONGEST_RECORD;
            if receiver.unsettled_bytes() > limit {
                let detail = format!("{} bytes unsettled", receiver.unsettled_bytes());
                return Err(self.broken("invariant_bounded", machine, detail));
            }
            if incoming.hello.is_some() {
                if !self.judge(machine, conn)? {
                    return Ok(());
                }
                continue;
            }
            if incoming.jump.is_some() {
                if !self.leap(machine, conn)? {
                    return Ok(());
                }
                continue;
            }
            if let Some(event) = receiver.poll_event() {
                match event {
                    receiver::Event::Hello(hello, takes_back) => {
                        incoming.hello = Some((hello, takes_back.unwrap_or_default()));
                    }
                    receiver::Event::Jump(jump) => incoming.jump = Some(jump),
                    receiver::Event::Append(batch) => self.append(machine, conn, batch)?,
                    receiver::Event::AppendThin(thin) => self.append_thin(machine, conn, thin)?,
                    receiver::Event::Heard(heartbeat) => {
                        if incoming.epoch.is_some() {
                            live.node.heard(now, heartbeat.durable);
                        }
                    }
                    receiver::Event::Lost(reason) => {
                        while let Some(frame) = receiver.poll_transmit() {
                            let bytes = size_of(&frame);
                            self.net.send(at, conn, End::Listener, frame, bytes);
                        }
                        live.incoming.remove(&conn);
                        self.count("session ended", 1);
                        self.say(machine, "session ended", &[("why", reason.to_string().into())]);
                        // The peer closes when it has read the refusal; its silence ends what is left.
                        return Ok(());
                    }
                }
                continue;
            }
            let Some(frame) = receiver.poll_transmit() else { return Ok(()) };
            if let Frame::Ack(position) = &frame {
                let position = *position;
                let m = &mut self.machines[machine];
                m.promised = position;
                self.trace(machine, "ack", &[("lsn", position.lsn.0)]);
            }
            let bytes = size_of(&frame);
            self.net.send(at, conn, End::Listener, frame, bytes);
        }
    }

    /// Answers a hello, when no job is out; false if that has to wait.
    fn judge(&mut self, machine: usize, conn: ConnId) -> Result<bool> {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(false) };
        if !live.sync.is_idle() {
            return Ok(false);
        }
        let Some(incoming) = live.incoming.get_mut(&conn) else { return Ok(false) };
        let (hello, takes_back) = incoming.hello.take().expect("the caller has looked");
        let peer = incoming.peer;
        let before = live.node.state().epoch_seen();
        let was = (live.node.role(), live.node.durable());
        let verdict = live.node.accept(now, &hello, takes_back);
        let needs = live.node.needs();
        let diverged = needs.lacks.len() as u64;
        let after = live.node.state().epoch_seen();
        if self.check_power(machine)? {
            return Ok(false);
        }
        let theirs = hello.history.last().map_or(Epoch(0), |reign| reign.epoch);
        if verdict.is_ok() && (theirs < before || theirs < self.machines[machine].seen_epoch) {
            let detail = format!("epoch {theirs} was let in, {before} had been seen");
            return Err(self.broken("invariant_one_writer", machine, detail));
        }
        self.machines[machine].seen_epoch = self.machines[machine].seen_epoch.max(after);
        let Some(live) = &mut self.machines[machine].live else { return Ok(false) };
        let branched = live.node.durable().lsn < was.1.lsn;
        let is_kept = live.node.state().branches.iter().any(|branch| branch.last >= was.1.lsn);
        let fenced = was.0 == Role::Primary && live.node.role() == Role::Fenced;
        let taken_back = was.0 != Role::Replica && live.node.role() == Role::Replica;
        let took_over = was.0 == Role::Replica && live.node.role() == Role::Primary;
        let incoming = live.incoming.get_mut(&conn).expect("it was just there");
        incoming.receiver.handle_verdict(now, verdict.clone().map(|welcome| (needs, welcome)));
        match &verdict {
            Ok(welcome) => {
                incoming.epoch = Some(theirs);
                let others: Vec<ConnId> = live
                    .incoming
                    .iter()
                    .filter(|(id, other)| **id != conn && other.epoch.is_some())
                    .map(|(id, _)| *id)
                    .collect();
                live.incoming.retain(|id, _| !others.contains(id));
                for other in others {
                    self.net.close(at, other, End::Listener);
                    self.count("session taken over", 1);
                }
                self.machines[machine].promised = welcome.durable;
                if taken_back {
                    self.machines[machine].reign = None;
                    self.machines[machine].takes_back = false;
                    self.machines[machine].odd_base |= diverged > 0 || branched;
                    self.count("old primaries taken back", 1);
                    self.count("taken back with what diverged", u64::from(diverged > 0));
                    self.say(
                        machine,
                        "taken back",
                        &[("after", welcome.durable.lsn.0.into()), ("diverged", diverged.into())],
                    );
                }
                self.count("welcomed", 1);
                self.offer_seed(machine, conn, &hello);
                self.trace(machine, "welcome", &[("from", peer as u64), ("lsn", welcome.durable.lsn.0)]);
                if branched {
                    let last = was.1.lsn;
                    if !is_kept {
                        let detail = format!("the records up to LSN {last} are on no branch");
                        return Err(self.broken("invariant_branches_kept", machine, detail));
                    }
                    self.count("branch left behind", 1);
                    self.say(
                        machine,
                        "branch kept",
                        &[("after", welcome.durable.lsn.0.into()), ("last", was.1.lsn.0.into())],
                    );
                }
                self.check_welcome(machine, peer, &hello)?;
            }
            Err(rebuff) => {
                let name = format!("rebuff sent: {}", short(rebuff));
                self.count(&name, 1);
                self.say(machine, "refused a hello", &[("why", rebuff.to_string().into())]);
                if fenced {
                    self.count("fenced", 1);
                }
            }
        }
        if took_over {
            self.took_over(machine)?;
        }
        self.collect_answers(machine)?;
        Ok(true)
    }

    /// Leaves records out, when no sync is out; false if that has to wait.
    fn leap(&mut self, machine: usize, conn: ConnId) -> Result<bool> {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(false) };
        if !live.sync.is_idle() {
            return Ok(false);
        }
        let Some(incoming) = live.incoming.get_mut(&conn) else { return Ok(false) };
        let jump = incoming.jump.take().expect("the caller has looked");
        if incoming.epoch.is_none() {
            return Ok(true);
        }
        let result = live.node.jump(now, &jump);
        if self.check_power(machine)? {
            self.count("jump cut off", 1);
            return Ok(false);
        }
        match result {
            Ok(()) => {
                self.count("jumped", 1);
                let key = self.machines[machine].live.as_ref().and_then(|live| live.node.history().last());
                let key = crate::ledger::key(key.expect("a replica that jumps has a history"));
                self.note_position(machine, key, jump.to.position())?;
            }
            Err(rebuff) => {
                self.count("jump refused", 1);
                self.say(machine, "jump refused", &[("why", rebuff.to_string().into())]);
                if matches!(rebuff, Rebuff::Diverged { .. }) && !self.any_damaged() {
                    let detail = format!("a jump from where it stands was refused: {jump:?}");
                    return Err(self.broken("invariant_prefix", machine, detail));
                }
                if let Some(live) = &mut self.machines[machine].live
                    && let Some(incoming) = live.incoming.get_mut(&conn)
                {
                    incoming.receiver.handle_rebuff(rebuff);
                }
            }
        }
        Ok(true)
    }

    pub(super) fn append(&mut self, machine: usize, conn: ConnId, batch: Batch) -> Result {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some(epoch) = live.incoming.get(&conn).and_then(|incoming| incoming.epoch) else {
            return Ok(());
        };
        let seen = live.node.state().epoch_seen();
        let last = batch.last;
        let was_coarse = live.node.is_coarse();
        let result = live.node.append(now, batch);
        if self.check_power(machine)? {
            return Ok(());
        }
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let tip = live.node.log().tip().position();
        let reign = live.node.history().last().copied();
        let is_whole = was_coarse && !live.node.is_coarse();
        if is_whole {
            self.count("spans ended", 1);
            self.say(machine, "span ended", &[("at", tip.lsn.0.into())]);
        }
        match result {
            Ok(()) => {
                if epoch < seen {
                    let detail =
                        format!("a record of a stream of epoch {epoch} was taken, {seen} had been seen");
                    return Err(self.broken("invariant_one_writer", machine, detail));
                }
                if tip.lsn != last {
                    let detail = format!("records up to LSN {last} were taken, the log ends at {}", tip.lsn);
                    return Err(self.broken("invariant_prefix", machine, detail));
                }
                self.count("batches appended", 1);
                self.trace(machine, "append", &[("lsn", tip.lsn.0), ("sum", u64::from(tip.checksum.0))]);
                let key = crate::ledger::key(&reign.expect("a replica that appends has a history"));
                self.note_position(machine, key, tip)?;
            }
            Err(rebuff) => {
                let name = format!("append refused: {}", short(&rebuff));
                self.count(&name, 1);
                self.say(machine, "append refused", &[("why", rebuff.to_string().into())]);
                if matches!(rebuff, Rebuff::Diverged { .. }) && !self.any_damaged() {
                    let detail = "records that continue the log were taken for others".to_owned();
                    return Err(self.broken("invariant_prefix", machine, detail));
                }
                if let Some(live) = &mut self.machines[machine].live
                    && let Some(incoming) = live.incoming.get_mut(&conn)
                {
                    incoming.receiver.handle_rebuff(rebuff);
                }
            }
        }
        Ok(())
    }

    /// When a session of this machine wants to be called next.
    pub(super) fn next_session_wake(&self, machine: usize) -> Option<Time> {
        let m = &self.machines[machine];
        let live = m.live.as_ref()?;
        let sends = live.node.calls_as().is_some();
        let dials = live.dials.values().filter_map(|dial| match (&dial.sender, dial.conn) {
            (Some(sender), _) => sender.poll_timeout().map(|at| m.clock.time_of(at)),
            (None, Some(_)) => Some(dial.at),
            (None, None) => sends.then_some(dial.at),
        });
        let incoming = live
            .incoming
            .values()
            .filter_map(|incoming| incoming.receiver.poll_timeout().map(|at| m.clock.time_of(at)));
        dials.chain(incoming).min()
    }
}

fn short(rebuff: &Rebuff) -> &'static str {
    match rebuff {
        Rebuff::Superseded { .. } => "superseded",
        Rebuff::Rival { .. } => "rival",
        Rebuff::Diverged { .. } => "diverged",
        Rebuff::TooFarBehind { .. } => "too far behind",
        Rebuff::WrongGroup => "wrong group",
        Rebuff::NotAllowed => "not allowed",
        Rebuff::Failed => "failed",
        Rebuff::NoSpace => "no space",
        Rebuff::NotYet => "not yet",
    }
}

fn rebuff_name(rebuff: &Rebuff) -> &'static str {
    match rebuff {
        Rebuff::Superseded { .. } => "rebuffed: superseded",
        Rebuff::Rival { .. } => "rebuffed: rival",
        Rebuff::Diverged { .. } => "rebuffed: diverged",
        Rebuff::TooFarBehind { .. } => "rebuffed: too far behind",
        Rebuff::WrongGroup => "rebuffed: wrong group",
        Rebuff::NotAllowed => "rebuffed: not allowed",
        Rebuff::Failed => "rebuffed: failed",
        Rebuff::NoSpace => "rebuffed: no space",
        Rebuff::NotYet => "rebuffed: not yet",
    }
}
