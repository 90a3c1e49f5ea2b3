//! The replica's end of a session: hears who comes, takes records in order, says what is durable.
//!
//! ```text
//! Listening ──Hello──► Deciding ──handle_verdict(Ok)──► Streaming
//!     └───────────────────┴── verdict(Err), rebuff, violation, silence ──► Closed
//! ```
//!
//! Invariants:
//!
//! - Records come out in the order of their LSNs, each once, the first right behind the welcome's position, or
//!   behind the end of a jump, of which there is at most one, in front of them. (The stream cannot repeat or
//!   reorder them; a peer that does is broken, and the session ends. Records of an older connection cannot come at
//!   all: a session knows only its own stream.)
//! - An acknowledgement is sent for what the driver reported durable, and for nothing else.
//! - Acknowledgements of one session never go back. Several that wait become one, the newest.
//! - When more than the limit is received and not yet durable, [`Receiver::wants_input`] is false; the driver
//!   stops reading, and QUIC's flow control holds the sender.
//!
//! It does not judge the hello, nor look into records: the engine does both.

use super::decoder::Accept;
use super::frame::{Acceptance, Frame, Heartbeat, Kind, LACKS_PER_FRAME, Offer};
use super::session::{
    Config, FEATURES, MAX_ASKS, MINOR, Reason, SCRUBS, SEEDS, SPANS, Timer, Timers, Violation, offered,
};
use engine::peer::{Ask, Batch, Hello, Jump, Lack, MAX_LACKS, Needs, Rebuff, TakesBack, Welcome};
use engine::seeds::{Held, Thin};
use engine::types::{Lsn, Mono, Now, Position};
use std::collections::VecDeque;

/// What a batch is counted as on top of its bytes: a peer that sends tiny ones is held by the same limit.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// What the driver has to know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A primary asks to be accepted, and says whether it takes an old primary back; `None` if it knows of no
    /// sync spans. Answered with [`Receiver::handle_verdict`].
    Hello(Hello, Option<TakesBack>),
    /// The records up to there will not come: the log goes on behind it. In front of any record.
    Jump(Jump),
    /// Records to append, right behind those before.
    Append(Batch),
    /// Likewise, once what was left out of them has been put back from this node's seeds.
    AppendThin(Thin),
    /// A sign of life from the primary.
    Heard(Heartbeat),
    /// The last event: the session is over.
    Lost(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Listening,
    Deciding,
    Streaming,
    Closed,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            State::Listening => "waiting for the hello",
            State::Deciding => "the hello is being judged",
            State::Streaming => "streaming",
            State::Closed => "closed",
        }
    }
}

/// The replica's end of one session. See the module.
#[derive(Debug)]
pub struct Receiver {
    config: Config,
    state: State,
    timers: Timers,
    /// The features offered, then those in force.
    features: u64,
    /// Needs and welcome, or a rebuff: sent before anything else, a rebuff even by a closed session.
    answers: VecDeque<Frame>,
    /// What waits to be asked.
    asks: VecDeque<Ask>,
    /// What waits to be told of this node's seeds.
    held: Option<Vec<Held>>,
    heartbeat: Option<Heartbeat>,
    /// The newest durable position that was not yet sent.
    ack: Option<Position>,
    received: Lsn,
    /// The welcome's position, as long as a jump may start from it.
    jump_from: Option<Position>,
    /// Where a jump has led, until that position is durable here.
    jumped: Option<Position>,
    /// The newest durable position that was sent or waits in `ack` or `answers`.
    durable: Position,
    /// Batches that are not yet durable: last LSN, and length with overhead.
    unsettled: VecDeque<(Lsn, usize)>,
    unsettled_bytes: usize,
    events: VecDeque<Event>,
}

impl Receiver {
    /// Waits for a hello.
    ///
    /// # Panics
    ///
    /// If the limits of `config` contradict each other.
    #[must_use]
    pub fn new(config: Config, now: Now) -> Receiver {
        config.assert_valid();
        let mut timers = Timers::default();
        timers.set(Timer::Opening, now.mono.plus_ms(config.opening_ms));
        Receiver {
            config,
            state: State::Listening,
            timers,
            features: 0,
            answers: VecDeque::new(),
            asks: VecDeque::new(),
            held: None,
            heartbeat: None,
            ack: None,
            received: Lsn::ZERO,
            jump_from: None,
            jumped: None,
            durable: Position::default(),
            unsettled: VecDeque::new(),
            unsettled_bytes: 0,
            events: VecDeque::new(),
        }
    }

    /// A frame from the primary.
    pub fn handle_frame(&mut self, now: Now, frame: Frame) {
        if self.state == State::Closed {
            return;
        }
        self.handle_activity(now);
        let kind = frame.kind();
        match (self.state, frame) {
            (State::Listening, Frame::Hello(Offer { minor: _, features, hello })) => {
                self.state = State::Deciding;
                self.timers.stop(Timer::Opening);
                self.features = features;
                self.events.push_back(Event::Hello(hello, offered(features)));
            }
            (State::Streaming, Frame::Batch(batch)) => {
                let (first, last, len) = (batch.first, batch.last, batch.len());
                self.records(first, last, len, Event::Append(batch));
            }
            (State::Streaming, Frame::Thin(thin)) => match thin.whole_len() {
                Some(len) if self.features & SEEDS != 0 => {
                    self.records(thin.first, thin.last, len, Event::AppendThin(thin));
                }
                _ => self.violated(Violation::NotInForce { frame: kind }),
            },
            (State::Streaming, Frame::Jump(jump)) => self.jump(jump),
            (State::Streaming, Frame::Heartbeat(heartbeat)) => {
                self.events.push_back(Event::Heard(heartbeat));
            }
            (state, _) => self.violated(Violation::Unexpected { frame: kind, state: state.words() }),
        }
    }

    /// Bytes arrived that are not a whole frame yet: the peer is alive.
    pub fn handle_activity(&mut self, now: Now) {
        if self.timers.is_set(Timer::Silence) {
            self.timers.set(Timer::Silence, now.mono.plus_ms(self.config.silence_ms));
        }
    }

    /// What arrived is not a frame.
    pub fn handle_violation(&mut self, violation: Violation) {
        self.violated(violation);
    }

    /// The engine's answer to the hello. Needs that the primary cannot understand are as good as records that it
    /// no longer has: it is refused then.
    ///
    /// # Panics
    ///
    /// If there is no hello to answer; if there are more than [`MAX_LACKS`] lacks.
    pub fn handle_verdict(&mut self, now: Now, verdict: Result<(Needs, Welcome), Rebuff>) {
        if self.state == State::Closed {
            return;
        }
        assert_eq!(self.state, State::Deciding, "a verdict without a hello");
        match verdict {
            Ok((needs, welcome)) => {
                assert!(needs.lacks.len() <= MAX_LACKS, "{} lacks", needs.lacks.len());
                let spans = self.features & SPANS != 0;
                if !spans && needs != Needs::default() {
                    return self.handle_rebuff(Rebuff::TooFarBehind { durable: welcome.durable });
                }
                self.state = State::Streaming;
                self.received = welcome.durable.lsn;
                self.durable = welcome.durable;
                self.jump_from = spans.then_some(welcome.durable);
                // Without spans no other feature has a meaning.
                self.features &= if spans { FEATURES } else { 0 };
                self.answers.extend(split(&needs));
                let features = self.features;
                self.answers.push_back(Frame::Welcome(Acceptance { minor: MINOR, features, welcome }));
                self.timers.set(Timer::Heartbeat, now.mono.plus_ms(self.config.heartbeat_ms));
                self.timers.set(Timer::Silence, now.mono.plus_ms(self.config.silence_ms));
            }
            Err(rebuff) => self.handle_rebuff(rebuff),
        }
    }

    /// This replica takes no more records, for the reason given (it was promoted, it has no space, it failed).
    /// The rebuff is still transmitted; then the session is over. Batches that were not taken are dropped: they
    /// were never acknowledged.
    ///
    /// # Panics
    ///
    /// If no hello came before: a stranger is told nothing.
    pub fn handle_rebuff(&mut self, rebuff: Rebuff) {
        if self.state == State::Closed {
            return;
        }
        assert!(self.state != State::Listening, "a rebuff without a hello");
        self.close(Reason::Rebuffed);
        self.answers.push_back(Frame::Rebuff(rebuff));
    }

    /// Asks something of the primary. Ignored while no session streams, or with a primary that knows of no asks;
    /// dropped if [`MAX_ASKS`] wait already.
    pub fn handle_ask(&mut self, ask: Ask) {
        let needed = match ask {
            Ask::Handover | Ask::Repair(_) => SPANS,
            Ask::Checked(_) => SPANS | SCRUBS,
        };
        if self.state == State::Streaming && self.features & needed == needed && self.asks.len() < MAX_ASKS {
            self.asks.push_back(ask);
        }
    }

    /// Whether the primary would make use of what this node's seeds hold, and there is room to say more of it.
    #[must_use]
    pub fn wants_held(&self) -> bool {
        self.state == State::Streaming && self.features & SEEDS != 0 && self.held.is_none()
    }

    /// Tells what this node's seeds hold: at most [`HELD_PER_FRAME`](super::frame::HELD_PER_FRAME) runs, and never
    /// none. Ignored unless [`Receiver::wants_held`].
    pub fn handle_held(&mut self, held: Vec<Held>) {
        if self.wants_held() {
            self.held = Some(held);
        }
    }

    /// The position up to which this node's log is durable. Acknowledged if it is news about records of this
    /// session; a position above what was received is not this session's affair (a promotion here appends, too)
    /// and is not acknowledged. Nor is one that a jump has left out; its end is, once it is on record here.
    pub fn handle_durable(&mut self, now: Now, position: Position) {
        if self.state != State::Streaming || position.lsn <= self.durable.lsn || position.lsn > self.received
        {
            return;
        }
        if let Some(to) = self.jumped {
            if position.lsn < to.lsn || position.lsn == to.lsn && position != to {
                return;
            }
            self.jumped = None;
        }
        let was_paused = !self.wants_input();
        while let Some((last, len)) = self.unsettled.front().copied()
            && last <= position.lsn
        {
            self.unsettled.pop_front();
            self.unsettled_bytes -= len;
        }
        self.durable = position;
        self.ack = Some(position);
        if was_paused && self.wants_input() {
            self.timers.set(Timer::Silence, now.mono.plus_ms(self.config.silence_ms));
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(timer) = self.timers.expire(now.mono) {
            match timer {
                Timer::Opening => self.close(Reason::Opening { ms: self.config.opening_ms }),
                Timer::Silence => self.close(Reason::Silent { ms: self.config.silence_ms }),
                Timer::Heartbeat => {
                    self.heartbeat = Some(Heartbeat { wall: now.wall, durable: self.durable.lsn });
                    self.timers.set(Timer::Heartbeat, now.mono.plus_ms(self.config.heartbeat_ms));
                }
            }
        }
    }

    /// When [`Receiver::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        self.timers.next()
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        self.answers
            .pop_front()
            .or_else(|| self.asks.pop_front().map(Frame::Ask))
            .or_else(|| self.ack.take().map(Frame::Ack))
            .or_else(|| self.heartbeat.take().map(Frame::Heartbeat))
            .or_else(|| self.held.take().map(Frame::Held))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the driver should read on.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::Listening => true,
            State::Deciding | State::Closed => false,
            State::Streaming => self.unsettled_bytes <= self.config.unsettled_bytes,
        }
    }

    /// What the decoder of this session's stream may accept now.
    #[must_use]
    pub fn accepts(&self) -> Accept {
        match self.state {
            State::Streaming => Accept::Batches,
            State::Listening | State::Deciding | State::Closed => Accept::Control,
        }
    }

    /// Whether the session is over (a rebuff may still wait to be transmitted).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes received and not yet durable, with a little for each batch.
    #[must_use]
    pub fn unsettled_bytes(&self) -> usize {
        self.unsettled_bytes
    }

    /// Records came, of so many bytes with what was left out.
    fn records(&mut self, first: Lsn, last: Lsn, len: usize, append: Event) {
        let expected = self.received.next();
        if first != expected {
            return self.violated(Violation::Gap { expected, first });
        }
        let len = len + BATCH_OVERHEAD_BYTES;
        self.received = last;
        self.jump_from = None;
        self.unsettled_bytes += len;
        self.unsettled.push_back((last, len));
        self.events.push_back(append);
        if !self.wants_input() {
            // The primary's heartbeats wait behind what this side does not read, so its silence means nothing
            // now. QUIC's own idle timeout still notices a dead network.
            self.timers.stop(Timer::Silence);
        }
    }

    fn jump(&mut self, jump: Jump) {
        if self.features & SPANS == 0 {
            return self.violated(Violation::NotInForce { frame: Kind::Jump });
        }
        let Some(stands) = self.jump_from.take() else {
            return self.violated(Violation::LateJump { to: jump.to.lsn });
        };
        let ahead = jump.to.lsn > stands.lsn && jump.to.epoch >= stands.epoch;
        if jump.from != stands || !ahead {
            return self.violated(Violation::BadJump { stands, jump });
        }
        self.received = jump.to.lsn;
        self.jumped = Some(jump.to.position());
        self.events.push_back(Event::Jump(jump));
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
        self.answers.clear();
        self.asks.clear();
        self.held = None;
        self.heartbeat = None;
        self.ack = None;
        self.unsettled.clear();
        self.unsettled_bytes = 0;
        let is_dropped =
            |event: &Event| matches!(event, Event::Append(_) | Event::AppendThin(_) | Event::Jump(_));
        self.events.retain(|event| !is_dropped(event));
        self.events.push_back(Event::Lost(reason));
    }
}

/// The frames that needs are told in: none if there is nothing to tell, and all but the last full.
fn split(needs: &Needs) -> Vec<Frame> {
    let part = |lacks: &[Lack]| Frame::Needs(Needs { coarse: needs.coarse, lacks: lacks.to_vec() });
    match (needs.coarse, needs.lacks.is_empty()) {
        (false, true) => Vec::new(),
        (true, true) => vec![part(&[])],
        (_, false) => needs.lacks.chunks(LACKS_PER_FRAME).map(part).collect(),
    }
}
