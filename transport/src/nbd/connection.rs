//! One connection in the transmission phase: who reads, who sends, and when.
//!
//! The *reader* (the thread that did the handshake) receives what the socket has, hands all whole requests in it
//! to the export in one call, and sends all answers that are ready in one send. So a plain write or a read that
//! the export can answer at once costs no hop to another thread.
//!
//! Answers that come later arrive through [`Later`] on a thread of the export, which must not wait: it sends what
//! the socket takes at once, and leaves the rest to the *writer*, a thread of this connection that may wait for a
//! slow peer. The reader does the same with its own answers, so it goes on reading while the writer waits.
//!
//! What holds:
//!
//! - at most one thread sends at a time ([`Sender`]), and what it sends is in the order of the queue;
//! - no lock is held while anything waits for the peer or the export;
//! - the reader stops reading while the limits of [`Transmission`] are reached;
//! - the end, whatever its reason: nothing is taken any more; what is in flight is answered, if the peer still
//!   listens, within a time of grace; the export is told by `detach`. Requests that were handed over take effect.

use super::handshake::Session;
use super::inbox::Inbox;
use super::proto::{Errno, REQUEST_HEADER_BYTES};
use super::reply::Outgoing;
use super::transmission::{Next, Transmission};
use super::wire::{Goodbye, Receiver, Wire};
use crate::block::{Export, Later};
use bytes::Buf;
use engine::guest::Completion;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a thread that sends looks for more to send before it leaves that to the writer: a thread of the
/// export has other connections to answer.
const DIRECT_ROUNDS: usize = 4;

/// The most bytes that a thread of the export begins to send: the rest of its work waits for the copying.
const DIRECT_BYTES_OF_EXPORT: usize = 256 << 10;

/// Stack of a writer: it moves bytes, and encrypts some.
const WRITER_STACK_BYTES: usize = 256 << 10;

/// A connection that is being served.
pub(super) struct Connection {
    wire: Wire,
    state: Mutex<State>,
    /// Tells the reader that there may be room, or nothing left to wait for.
    reader: Condvar,
    /// Tells the writer that it has something to send, or that it is over.
    writer: Condvar,
}

struct State {
    transmission: Transmission,
    /// Replies that nobody has begun to send.
    queue: Outgoing,
    /// Replies that were begun and are left to the writer; they come before `queue`.
    handed: Outgoing,
    /// Bytes that a sending thread has in its hands.
    in_hand: usize,
    /// An empty queue, to be used again.
    spare: Outgoing,
    sender: Sender,
    reader_waits: bool,
    life: Life,
}

/// Who may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// Whoever comes.
    Nobody,
    /// A thread that sends without waiting, and is at it.
    Direct,
    /// The writer, until everything is sent.
    Writer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Serving,
    /// No request is taken any more.
    Stopping,
    /// The peer cannot be reached.
    Lost,
    /// It is over.
    Closed,
}

/// Serves a session until it ends. `arrived` is what came in behind the handshake. `started` gets the connection
/// before the first request is taken, so that it can be stopped. `grace` is how long the end waits for answers to what
/// is in flight.
pub(super) fn serve(
    wire: Wire,
    arrived: Vec<u8>,
    session: Session,
    grace: Duration,
    started: impl FnOnce(&Arc<Connection>),
) -> io::Result<()> {
    let connection = Arc::new(Connection {
        wire,
        state: Mutex::new(State {
            transmission: Transmission::new(session.terms),
            queue: Outgoing::default(),
            handed: Outgoing::default(),
            in_hand: 0,
            spare: Outgoing::default(),
            sender: Sender::Nobody,
            reader_waits: false,
            life: Life::Serving,
        }),
        reader: Condvar::new(),
        writer: Condvar::new(),
    });
    let writer = thread::Builder::new().name("nbd-writer".into()).stack_size(WRITER_STACK_BYTES).spawn({
        let connection = connection.clone();
        move || connection.write()
    })?;
    started(&connection);
    let later: Arc<dyn Later> = connection.clone();
    {
        // Also if the export panics: the writer ends, the socket is closed, the export may forget us.
        let _end = End { connection: &connection, export: &*session.export, later: &later };
        connection.read(&*session.export, Inbox::new(arrived), &later);
        connection.wait_for_the_rest(grace);
    }
    // It was told to end, and it waits for nothing but a socket that is closed.
    let _ = writer.join();
    Ok(())
}

impl Connection {
    /// Takes no request any more and answers those in flight with an error.
    pub(super) fn refuse(&self, error: Errno) {
        let mut state = self.lock();
        let State { transmission, queue, .. } = &mut *state;
        transmission.refuse_all(error, queue);
        self.dispatch(state, usize::MAX);
        self.wire.stop_receiving();
    }

    /// Takes no request any more; those in flight are still answered.
    pub(super) fn wind_down(&self) {
        let mut state = self.lock();
        if state.life == Life::Serving {
            state.life = Life::Stopping;
        }
        self.wake_reader(&state);
        drop(state);
        self.wire.stop_receiving();
    }

    fn read(&self, export: &dyn Export, mut inbox: Inbox, later: &Arc<dyn Later>) {
        let mut receiver = Receiver::default();
        let mut batch = Vec::new();
        let mut ready = Vec::new();
        let mut need = REQUEST_HEADER_BYTES;
        loop {
            if inbox.len() < need {
                match self.wire.receive(&mut receiver, inbox.fillable(need), None) {
                    Ok(0) => {
                        tracing::debug!(torn_bytes = inbox.len(), "the client is gone");
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the connection is lost");
                        return self.lose();
                    }
                }
                continue;
            }
            let mut input = inbox.take();
            let next = loop {
                let mut state = self.lock();
                if state.life != Life::Serving {
                    return;
                }
                let unsent = state.in_hand + state.handed.len();
                let State { transmission, queue, .. } = &mut *state;
                let (used, next) = transmission.take(&input, unsent, &mut batch, queue);
                input.advance(used);
                if !batch.is_empty() {
                    drop(state);
                    export.submit(&mut batch, &mut ready, later);
                    batch.clear();
                    state = self.lock();
                    let State { transmission, queue, .. } = &mut *state;
                    transmission.complete(ready.drain(..), queue);
                }
                self.dispatch(state, usize::MAX);
                match next {
                    Next::Full => self.wait_for_room(),
                    other => break other,
                }
            };
            inbox.put_back(input);
            match next {
                Next::More { need: more } => need = more,
                Next::Full => {}
                Next::Disconnect => {
                    tracing::debug!("the client says goodbye");
                    return;
                }
                Next::BadMagic => {
                    tracing::debug!("wrong magic where a request was due");
                    return;
                }
            }
        }
    }

    /// Sends what is queued, if nobody is at it: as far as that goes without waiting, and only up to `at_most`
    /// bytes. Otherwise it is the writer's.
    fn dispatch<'a>(&'a self, mut state: MutexGuard<'a, State>, at_most: usize) {
        if !state.is_reachable() {
            state.queue.clear();
        }
        if state.sender == Sender::Nobody && !state.queue.is_empty() {
            if self.wire.sends_now() && state.queue.len() <= at_most {
                state.sender = Sender::Direct;
                state = self.send_directly(state);
            } else {
                state.sender = Sender::Writer;
            }
            if state.sender == Sender::Writer {
                self.writer.notify_one();
            }
        }
        self.wake_reader(&state);
    }

    fn send_directly<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        for _ in 0..DIRECT_ROUNDS {
            let mut out = state.begin_queue();
            drop(state);
            let sent = self.wire.send_now(&mut out);
            state = self.lock();
            state.in_hand = 0;
            if let Err(error) = sent {
                self.lost(&mut state, &error);
                return state;
            }
            if !out.is_empty() {
                state.handed = out;
                break;
            }
            state.spare = out;
            if state.queue.is_empty() {
                state.sender = Sender::Nobody;
                return state;
            }
        }
        state.sender = Sender::Writer;
        state
    }

    /// The writer's whole life.
    fn write(&self) {
        let mut state = self.lock();
        loop {
            match state.sender {
                _ if !state.is_reachable() => return,
                Sender::Writer if state.handed.is_empty() && state.queue.is_empty() => {
                    state.sender = Sender::Nobody;
                }
                Sender::Writer => {
                    let mut out = match state.handed.is_empty() {
                        false => mem::take(&mut state.handed),
                        true => state.begin_queue(),
                    };
                    state.in_hand = out.len();
                    drop(state);
                    let sent = self.wire.send(&mut out);
                    state = self.lock();
                    state.in_hand = 0;
                    match sent {
                        Ok(()) => state.spare = out,
                        Err(error) => self.lost(&mut state, &error),
                    }
                    self.wake_reader(&state);
                }
                Sender::Nobody | Sender::Direct => {
                    state = self.writer.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn wait_for_room(&self) {
        let mut state = self.lock();
        state.reader_waits = true;
        while state.life == Life::Serving && !state.transmission.has_room(state.unsent()) {
            state = self.reader.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reader_waits = false;
    }

    /// Waits until everything in flight is answered and sent, or nobody is there to be told, or it takes too long.
    fn wait_for_the_rest(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut state = self.lock();
        state.reader_waits = true;
        while state.is_reachable() && (state.transmission.in_flight() > 0 || state.sender != Sender::Nobody) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                tracing::warn!(
                    in_flight = state.transmission.in_flight(),
                    unsent_bytes = state.unsent(),
                    "a connection ends without its last answers"
                );
                return;
            };
            state = self.reader.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lose(&self) {
        let mut state = self.lock();
        if state.is_reachable() {
            state.life = Life::Lost;
        }
        self.writer.notify_one();
    }

    fn lost(&self, state: &mut State, error: &io::Error) {
        tracing::debug!(%error, "the client cannot be reached");
        if state.is_reachable() {
            state.life = Life::Lost;
        }
        state.sender = Sender::Nobody;
        state.queue.clear();
        state.handed.clear();
        self.writer.notify_one();
        // The reader may be waiting for a request.
        self.wire.close(Goodbye::Unsaid);
    }

    fn wake_reader(&self, state: &State) {
        if state.reader_waits {
            self.reader.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves counters that may be off; the connection ends with the thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Later for Connection {
    fn complete(&self, completions: Vec<Completion>) {
        let mut state = self.lock();
        let State { transmission, queue, .. } = &mut *state;
        transmission.complete(completions, queue);
        self.dispatch(state, DIRECT_BYTES_OF_EXPORT);
    }
}

impl State {
    /// Whether there is anybody to send to.
    fn is_reachable(&self) -> bool {
        matches!(self.life, Life::Serving | Life::Stopping)
    }

    /// Bytes that wait to be sent.
    fn unsent(&self) -> usize {
        self.queue.len() + self.handed.len() + self.in_hand
    }

    /// Takes the queue to send it.
    fn begin_queue(&mut self) -> Outgoing {
        let out = mem::replace(&mut self.queue, mem::take(&mut self.spare));
        self.in_hand = out.len();
        out
    }
}

/// Ends a connection when it goes out of scope.
struct End<'a> {
    connection: &'a Connection,
    export: &'a dyn Export,
    later: &'a Arc<dyn Later>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        let goodbye = if state.is_reachable() { Goodbye::Said } else { Goodbye::Unsaid };
        state.life = Life::Closed;
        state.transmission.abandon();
        drop(state);
        self.connection.wire.close(goodbye);
        self.connection.writer.notify_one();
        self.export.detach(self.later);
    }
}
