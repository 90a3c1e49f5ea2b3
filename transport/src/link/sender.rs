//! The primary's end of a session: says hello, ships what is durable, learns what is durable there.
//!
//! ```text
//! Opening ──Welcome──► Attaching ──handle_attached──► Streaming
//!    └──────────────────────┴──────────── Rebuff, violation, silence ──► Closed
//! ```
//!
//! Invariants:
//!
//! - `acked ≤ sent ≤ durable`: nothing above this node's durable LSN is ever shipped, and no acknowledgement of
//!   something that was not sent has any effect but to end the session.
//! - Batches are contiguous, from right behind the replica's durable position.
//!   (A jump moves `sent` ahead once, before the first of them.)
//! - Bytes sent and not acknowledged stay within the window (and one record), whatever the replica does.
//!
//! It does not judge the replica's history: the engine does, between [`Event::Welcomed`] and
//! [`Sender::handle_attached`]. It does not read the log: [`Sender::poll_want`] says what is wanted next.

use super::frame::{Acceptance, Frame, Heartbeat, Kind, LACKS_PER_FRAME, Offer, check_batch, check_thin};
use super::session::{
    Config, MAX_ASKS, MINOR, Reason, SCRUBS, SEEDS, SPANS, Timer, Timers, Violation, offer,
};
use engine::peer::{Ask, Batch, Hello, Jump, MAX_LACKS, Needs, Rebuff, TakesBack, Welcome};
use engine::seeds::Known;
use engine::types::{Epoch, GroupId, Lsn, Mono, Now, Position};
use std::collections::VecDeque;

/// What the driver has to know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The replica accepts, from there on. The driver lets the engine verify the position against the log, then
    /// calls [`Sender::handle_attached`], or drops the session. With what the replica lacks beside the records
    /// that follow; `None` if it knows of no sync spans.
    Welcomed(Welcome, Option<Needs>),
    /// Everything up to there is durable at the replica. Strictly increasing within a session.
    Acked(Position),
    /// A sign of life from the replica.
    Heard(Heartbeat),
    /// The replica asks; never before [`Sender::handle_attached`]. The same may be asked again.
    Asked(Ask),
    /// The replica refuses; [`Event::Lost`] follows.
    Rebuffed(Rebuff),
    /// The last event: the session is over.
    Lost(Reason),
}

/// A stretch of the log that there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// LSN of the first record.
    pub from: Lsn,
    /// How many bytes of whole records; a first record that is longer comes alone.
    pub max_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opening,
    Attaching,
    Streaming,
    Closed,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            State::Opening => "waiting for the welcome",
            State::Attaching => "the welcome is being verified",
            State::Streaming => "streaming",
            State::Closed => "closed",
        }
    }
}

/// The primary's end of one session with one replica. See the module.
#[derive(Debug)]
pub struct Sender {
    config: Config,
    state: State,
    timers: Timers,
    /// Frames ahead of any batch.
    control: VecDeque<Frame>,
    /// The one batch that waits to be transmitted, whole or thin: no second one is wanted before it has gone.
    outgoing: Option<Frame>,
    /// Batches handed to [`Sender::poll_transmit`]'s caller or waiting for it: last LSN and length.
    in_flight: VecDeque<(Lsn, usize)>,
    in_flight_bytes: usize,
    group: GroupId,
    epoch: Epoch,
    /// What the replica's seeds hold, as far as copies have not passed it.
    seeds: Known,
    /// The features offered, then those in force.
    features: u64,
    /// What the replica lacks, as far as it was told before the welcome.
    needs: Option<Needs>,
    /// Asked before the session was attached.
    asks: Vec<Ask>,
    durable: Lsn,
    sent: Lsn,
    acked: Position,
    /// Where a jump led: nothing in front of it was sent.
    jumped: Lsn,
    events: VecDeque<Event>,
}

impl Sender {
    /// Opens a session: the hello is ready for transmission.
    ///
    /// # Panics
    ///
    /// If the limits of `config` contradict each other.
    #[must_use]
    pub fn new(config: Config, now: Now, hello: Hello, takes_back: TakesBack) -> Sender {
        config.assert_valid();
        let mut timers = Timers::default();
        timers.set(Timer::Opening, now.mono.plus_ms(config.opening_ms));
        let durable = hello.durable.lsn;
        let epoch = hello.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let (features, group) = (offer(takes_back), hello.group);
        let offer = Offer { minor: MINOR, features, hello };
        Sender {
            config,
            state: State::Opening,
            timers,
            control: VecDeque::from([Frame::Hello(offer)]),
            outgoing: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            group,
            epoch,
            seeds: Known::default(),
            features,
            needs: None,
            asks: Vec::new(),
            durable,
            sent: Lsn::ZERO,
            acked: Position::default(),
            jumped: Lsn::ZERO,
            events: VecDeque::new(),
        }
    }

    /// A frame from the replica.
    pub fn handle_frame(&mut self, now: Now, frame: Frame) {
        if self.state == State::Closed {
            return;
        }
        self.handle_activity(now);
        let kind = frame.kind();
        match (self.state, frame) {
            (State::Opening, Frame::Needs(needs)) => self.needs(now, needs),
            (State::Opening, Frame::Welcome(acceptance)) => self.welcomed(now, acceptance),
            (_, Frame::Rebuff(rebuff)) => {
                self.events.push_back(Event::Rebuffed(rebuff));
                self.close(Reason::Rebuffed);
            }
            (State::Streaming, Frame::Ack(position)) => self.acked(position),
            (State::Attaching | State::Streaming, Frame::Heartbeat(heartbeat)) => {
                self.events.push_back(Event::Heard(heartbeat));
            }
            (State::Attaching | State::Streaming, Frame::Held(held)) => match self.features & SEEDS {
                0 => self.violated(Violation::NotInForce { frame: kind }),
                _ => self.seeds.add(&held),
            },
            (State::Attaching | State::Streaming, Frame::Ask(_)) if self.features & SPANS == 0 => {
                self.violated(Violation::NotInForce { frame: kind });
            }
            (State::Attaching | State::Streaming, Frame::Ask(Ask::Checked(_)))
                if self.features & SCRUBS == 0 =>
            {
                self.violated(Violation::NotInForce { frame: kind });
            }
            // Its welcome went out before it: the replica cannot know whether it is verified yet.
            (State::Attaching, Frame::Ask(ask)) => {
                if self.asks.len() < MAX_ASKS {
                    self.asks.push(ask);
                }
            }
            (State::Streaming, Frame::Ask(ask)) => self.events.push_back(Event::Asked(ask)),
            (state, _) => self.violated(Violation::Unexpected { frame: kind, state: state.words() }),
        }
    }

    /// Bytes arrived that are not a whole frame yet: the peer is alive.
    pub fn handle_activity(&mut self, now: Now) {
        if matches!(self.state, State::Attaching | State::Streaming) {
            self.timers.set(Timer::Silence, now.mono.plus_ms(self.config.silence_ms));
        }
    }

    /// What arrived is not a frame.
    pub fn handle_violation(&mut self, violation: Violation) {
        self.violated(violation);
    }

    /// The engine has verified the welcome: records flow from right behind it, or from right behind the end of a
    /// jump.
    ///
    /// # Panics
    ///
    /// If there is no welcome to answer; if a jump does not lead from it to something that is durable here, or
    /// the replica knows of no jumps.
    pub fn handle_attached(&mut self, jump: Option<Jump>) {
        if self.state == State::Closed {
            return;
        }
        assert_eq!(self.state, State::Attaching, "attached without a welcome");
        if let Some(jump) = jump {
            assert!(self.features & SPANS != 0, "a jump for a replica that knows of none");
            assert_eq!(jump.from, self.acked, "a jump that does not start at the welcome");
            assert!(jump.to.lsn > self.sent, "a jump from LSN {} back to {}", self.sent, jump.to.lsn);
            assert!(jump.to.epoch <= self.epoch, "a jump into epoch {}", jump.to.epoch);
            self.sent = jump.to.lsn;
            self.jumped = jump.to.lsn;
            self.control.push_back(Frame::Jump(jump));
        }
        assert!(self.sent <= self.durable, "attached at LSN {}, durable is {}", self.sent, self.durable);
        self.state = State::Streaming;
        self.events.extend(std::mem::take(&mut self.asks).into_iter().map(Event::Asked));
    }

    /// This node's durable LSN: everything up to it may be shipped. Never goes back.
    ///
    /// # Panics
    ///
    /// If it does go back.
    pub fn handle_durable(&mut self, durable: Lsn) {
        assert!(durable >= self.durable, "the durable LSN went back from {} to {durable}", self.durable);
        self.durable = durable;
    }

    /// The durable LSN that the session was last told.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// What [`Sender::poll_want`] asked for.
    ///
    /// # Panics
    ///
    /// If the batch does not continue what was sent, or holds records that are not durable here.
    pub fn handle_records(&mut self, batch: Batch) {
        if self.state == State::Closed {
            return;
        }
        assert_eq!(self.state, State::Streaming, "records before the session streams");
        assert!(self.outgoing.is_none(), "records that nobody wanted");
        assert_eq!(batch.first, self.sent.next(), "a batch that does not continue what was sent");
        assert!(batch.last <= self.durable, "LSN {} is above the durable {}", batch.last, self.durable);
        let len = batch.len();
        if let Err(error) = check_batch(batch.first, batch.last, len) {
            return self.close(Reason::Unsendable(error));
        }
        self.sent = batch.last;
        self.in_flight_bytes += len;
        self.in_flight.push_back((batch.last, len));
        let thin = self.seeds.thin(self.group, &batch).filter(|thin| check_thin(thin).is_ok());
        self.outgoing = Some(thin.map_or(Frame::Batch(batch), Frame::Thin));
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.expire(now.mono) {
            match timer {
                Timer::Opening => self.close(Reason::Opening { ms: self.config.opening_ms }),
                Timer::Silence => self.close(Reason::Silent { ms: self.config.silence_ms }),
                Timer::Heartbeat => self.heartbeat(now),
            }
        }
    }

    /// When [`Sender::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        self.timers.next()
    }

    /// The records to read next, if there is something to ship and room for it. Answered with
    /// [`Sender::handle_records`].
    #[must_use]
    pub fn poll_want(&self) -> Option<Want> {
        let room = self.config.window_bytes.saturating_sub(self.in_flight_bytes);
        let wanted = self.state == State::Streaming
            && self.outgoing.is_none()
            && self.sent < self.durable
            && self.in_flight.len() < self.config.max_batches
            // Waiting for room for a whole batch keeps batches whole when the window is the bottleneck.
            && room >= self.config.batch_bytes;
        wanted.then(|| Want { from: self.sent.next(), max_bytes: self.config.batch_bytes })
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        self.control.pop_front().or_else(|| self.outgoing.take())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes of records sent and not acknowledged, with those that were left out.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// A part of what the replica lacks. The number of frames is bounded, since only full ones may follow each
    /// other; so each may take its time.
    fn needs(&mut self, now: Now, part: Needs) {
        let mut needs = match self.needs.take() {
            None => Needs { coarse: part.coarse, lacks: Vec::new() },
            Some(needs) => {
                let full = !needs.lacks.is_empty() && needs.lacks.len() % LACKS_PER_FRAME == 0;
                if !full || part.lacks.is_empty() || part.coarse != needs.coarse {
                    return self.violated(Violation::ScatteredNeeds);
                }
                needs
            }
        };
        needs.lacks.extend(part.lacks);
        if needs.lacks.len() > MAX_LACKS {
            return self.violated(Violation::TooManyLacks { lacks: needs.lacks.len() });
        }
        self.needs = Some(needs);
        self.timers.set(Timer::Opening, now.mono.plus_ms(self.config.opening_ms));
        // The replica's session has begun, and it listens for signs of life while it talks.
        if !self.timers.is_set(Timer::Heartbeat) {
            self.heartbeat(now);
        }
    }

    fn welcomed(&mut self, now: Now, acceptance: Acceptance) {
        let (offered, accepted) = (self.features, acceptance.features);
        if accepted & !offered != 0 {
            return self.violated(Violation::Features { offered, accepted });
        }
        let spans = accepted & SPANS != 0;
        if self.needs.is_some() && !spans {
            return self.violated(Violation::NotInForce { frame: Kind::Needs });
        }
        self.features = accepted;
        self.state = State::Attaching;
        self.acked = acceptance.welcome.durable;
        self.sent = acceptance.welcome.durable.lsn;
        self.timers.stop(Timer::Opening);
        self.heartbeat(now);
        self.handle_activity(now);
        let needs = spans.then(|| self.needs.take().unwrap_or_default());
        self.events.push_back(Event::Welcomed(acceptance.welcome, needs));
    }

    fn acked(&mut self, position: Position) {
        let before = self.acked;
        if position.lsn > self.sent {
            return self.violated(Violation::AckBeyondSent { acked: position.lsn, sent: self.sent });
        }
        if position.epoch > self.epoch {
            return self.violated(Violation::AckFromBeyond { acked: position.epoch, own: self.epoch });
        }
        let repeated = position == before;
        if !repeated && (position.lsn <= before.lsn || position.epoch < before.epoch) {
            return self.violated(Violation::AckWentBack { before, after: position });
        }
        if repeated {
            return;
        }
        if position.lsn < self.jumped {
            // Between where the replica stood and where its log went on.
            return self.violated(Violation::AckBeyondSent { acked: position.lsn, sent: before.lsn });
        }
        while let Some((last, len)) = self.in_flight.front().copied()
            && last <= position.lsn
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= len;
        }
        self.acked = position;
        self.events.push_back(Event::Acked(position));
    }

    fn heartbeat(&mut self, now: Now) {
        // One that still waits is overtaken by the newer one: a blocked stream gathers none.
        self.control.retain(|frame| !matches!(frame, Frame::Heartbeat(_)));
        self.control.push_back(Frame::Heartbeat(Heartbeat { wall: now.wall, durable: self.durable }));
        self.timers.set(Timer::Heartbeat, now.mono.plus_ms(self.config.heartbeat_ms));
    }

    fn violated(&mut self, violation: Violation) {
        self.close(Reason::Violation(violation));
    }

    fn close(&mut self, reason: Reason) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.timers = Timers::default();
        self.control.clear();
        self.needs = None;
        self.asks.clear();
        self.seeds = Known::default();
        self.outgoing = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.events.push_back(Event::Lost(reason));
    }
}
