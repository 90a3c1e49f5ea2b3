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
//! - Bytes sent and not acknowledged stay within the window (and one record), whatever the replica does.
//!
//! It does not judge the replica's history: the engine does, between [`Event::Welcomed`] and
//! [`Sender::handle_attached`]. It does not read the log: [`Sender::poll_want`] says what is wanted next.

use super::frame::{Acceptance, Frame, Heartbeat, Offer, check_batch};
use super::session::{Config, FEATURES, MINOR, Reason, Timer, Timers, Violation};
use engine::peer::{Batch, Hello, Rebuff, Welcome};
use engine::types::{Epoch, Lsn, Mono, Now, Position};
use std::collections::VecDeque;

/// What the driver has to know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The replica accepts, from there on. The driver lets the engine verify the position against the log, then
    /// calls [`Sender::handle_attached`], or drops the session.
    Welcomed(Welcome),
    /// Everything up to there is durable at the replica. Strictly increasing within a session.
    Acked(Position),
    /// A sign of life from the replica.
    Heard(Heartbeat),
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
    /// The one batch that waits to be transmitted: no second one is wanted before it has gone.
    outgoing: Option<Batch>,
    /// Batches handed to [`Sender::poll_transmit`]'s caller or waiting for it: last LSN and length.
    in_flight: VecDeque<(Lsn, usize)>,
    in_flight_bytes: usize,
    epoch: Epoch,
    durable: Lsn,
    sent: Lsn,
    acked: Position,
    events: VecDeque<Event>,
}

impl Sender {
    /// Opens a session: the hello is ready for transmission.
    ///
    /// # Panics
    ///
    /// If the limits of `config` contradict each other.
    #[must_use]
    pub fn new(config: Config, now: Now, hello: Hello) -> Sender {
        config.assert_valid();
        let mut timers = Timers::default();
        timers.set(Timer::Opening, now.mono.plus_ms(config.opening_ms));
        let durable = hello.durable.lsn;
        let epoch = hello.history.last().map_or(Epoch(0), |reign| reign.epoch);
        let offer = Offer { minor: MINOR, features: FEATURES, hello };
        Sender {
            config,
            state: State::Opening,
            timers,
            control: VecDeque::from([Frame::Hello(offer)]),
            outgoing: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            epoch,
            durable,
            sent: Lsn::ZERO,
            acked: Position::default(),
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
            (State::Opening, Frame::Welcome(acceptance)) => self.welcomed(now, acceptance),
            (_, Frame::Rebuff(rebuff)) => {
                self.events.push_back(Event::Rebuffed(rebuff));
                self.close(Reason::Rebuffed);
            }
            (State::Streaming, Frame::Ack(position)) => self.acked(position),
            (State::Attaching | State::Streaming, Frame::Heartbeat(heartbeat)) => {
                self.events.push_back(Event::Heard(heartbeat));
            }
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

    /// The engine has verified the welcome: records flow from right behind it.
    ///
    /// # Panics
    ///
    /// If there is no welcome to answer.
    pub fn handle_attached(&mut self) {
        if self.state == State::Closed {
            return;
        }
        assert_eq!(self.state, State::Attaching, "attached without a welcome");
        assert!(self.sent <= self.durable, "attached at LSN {}, durable is {}", self.sent, self.durable);
        self.state = State::Streaming;
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
        self.outgoing = Some(batch);
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
        self.control.pop_front().or_else(|| self.outgoing.take().map(Frame::Batch))
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

    /// Bytes of records sent and not acknowledged.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    fn welcomed(&mut self, now: Now, acceptance: Acceptance) {
        if acceptance.features & !FEATURES != 0 {
            let accepted = acceptance.features;
            return self.violated(Violation::Features { offered: FEATURES, accepted });
        }
        self.state = State::Attaching;
        self.acked = acceptance.welcome.durable;
        self.sent = acceptance.welcome.durable.lsn;
        self.timers.stop(Timer::Opening);
        self.heartbeat(now);
        self.handle_activity(now);
        self.events.push_back(Event::Welcomed(acceptance.welcome));
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
        self.outgoing = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.events.push_back(Event::Lost(reason));
    }
}
