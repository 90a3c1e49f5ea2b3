//! The server's half of the transmission phase: bytes in, a batch of requests out, completions in, replies out.
//!
//! What holds:
//!
//! - a request goes to the export only when all of it is here; of one that was cut off nothing happens;
//! - the payload of a write that is refused is skipped without being kept, whatever length it claims;
//! - at most [`MAX_IN_FLIGHT`] requests are in flight, and the bytes that
//!   requests and unsent replies hold stay below [`MAX_HELD_BYTES`] plus one request;
//! - each request is answered once, and an answer to a request that is not in flight is dropped.

use super::pending::{MAX_IN_FLIGHT, Pending, Ticket};
use super::proto::{Errno, REQUEST_HEADER_BYTES, command_flag};
use super::reply::Outgoing;
use super::request::{Command, Header, Terms, Verdict, judge};
use bytes::Bytes;
use engine::guest::{Completion, MAX_REQUEST_BYTES, Op, Request};

/// The most bytes that requests in flight and unsent replies of one connection hold. Beyond it nothing more is
/// read from the connection until some of it is gone.
pub const MAX_HELD_BYTES: usize = 64 << 20;

const _: () = assert!(MAX_HELD_BYTES >= MAX_REQUEST_BYTES as usize + REQUEST_HEADER_BYTES);
const _: () = assert!(MAX_IN_FLIGHT >= 256, "clients keep up to 128 requests in flight, tests twice that");

/// Whether new requests are still taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// They are.
    Open,
    /// Each is answered with an error.
    Refusing(Errno),
}

/// Why [`Transmission::take`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The input is used up but for a part of a request, which will be whole with `need` bytes.
    More {
        /// From the first byte that was not consumed.
        need: usize,
    },
    /// The limits are reached: the rest has to wait until [`Transmission::has_room`].
    Full,
    /// The client says goodbye. What it sends after that is not looked at.
    Disconnect,
    /// The stream is not what it should be; nothing that follows can be trusted.
    BadMagic,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Transmission {
    terms: Terms,
    intake: Intake,
    pending: Pending,
    /// Bytes of payload that are still to be skipped.
    skip: usize,
}

impl Transmission {
    /// A connection that has just left the handshake.
    #[must_use]
    pub fn new(terms: Terms) -> Transmission {
        Transmission { terms, intake: Intake::Open, pending: Pending::default(), skip: 0 }
    }

    /// Decodes requests from the front of `input` until one of the reasons in [`Next`]: those for the export go
    /// to `batch`, answers to the others to `out`. Returns how much of `input` is used up.
    ///
    /// `unsent` is the number of bytes that wait to be sent elsewhere than in `out`.
    pub fn take(
        &mut self,
        input: &Bytes,
        unsent: usize,
        batch: &mut Vec<Request>,
        out: &mut Outgoing,
    ) -> (usize, Next) {
        let skipped = self.skip.min(input.len());
        self.skip -= skipped;
        let mut used = skipped;
        loop {
            let rest = &input[used..];
            let Some(header) = rest.first_chunk::<REQUEST_HEADER_BYTES>() else {
                return (used, Next::More { need: REQUEST_HEADER_BYTES });
            };
            let Some(header) = Header::decode(header) else {
                return (used, Next::BadMagic);
            };
            if !self.has_room(unsent + out.len()) {
                return (used, Next::Full);
            }
            let verdict = match (judge(&header, &self.terms), self.intake) {
                (Verdict::Disconnect, _) => Verdict::Disconnect,
                (_, Intake::Refusing(error)) => Verdict::Refuse(error),
                (verdict, Intake::Open) => verdict,
            };
            let payload = header.payload_bytes() as usize;
            match verdict {
                Verdict::Disconnect => return (used, Next::Disconnect),
                Verdict::Refuse(error) => {
                    tracing::debug!(?header, %error, "request refused");
                    out.error(&header, self.terms.replies, error);
                    let arrived = payload.min(rest.len() - REQUEST_HEADER_BYTES);
                    self.skip = payload - arrived;
                    used += REQUEST_HEADER_BYTES + arrived;
                }
                Verdict::Nothing => {
                    out.success(&header, self.terms.replies);
                    used += REQUEST_HEADER_BYTES;
                }
                Verdict::Run(command) => {
                    let whole = REQUEST_HEADER_BYTES + payload;
                    if rest.len() < whole {
                        return (used, Next::More { need: whole });
                    }
                    let charge = match command {
                        Command::Read | Command::Write => header.len as usize,
                        _ => 0,
                    };
                    let Some(cookie) = self.pending.insert(Ticket { header, charge }) else {
                        return (used, Next::Full);
                    };
                    let op = match command {
                        Command::Read => Op::Read(header.extent()),
                        Command::Write => Op::Write {
                            offset: header.offset,
                            data: input.slice(used + REQUEST_HEADER_BYTES..used + whole),
                        },
                        Command::Flush => Op::Flush,
                        Command::Trim => Op::Trim(header.extent()),
                        Command::Zero => {
                            Op::Zero { extent: header.extent(), no_hole: header.has(command_flag::NO_HOLE) }
                        }
                        Command::Cache => Op::Cache(header.extent()),
                        Command::Status => Op::Status(header.extent()),
                    };
                    batch.push(Request { cookie, op, fua: header.has(command_flag::FUA) });
                    used += whole;
                }
            }
        }
    }

    /// Turns the export's answers into replies.
    pub fn complete(&mut self, completions: impl IntoIterator<Item = Completion>, out: &mut Outgoing) {
        for Completion { cookie, result } in completions {
            match self.pending.take(cookie) {
                Some(ticket) => out.answer(&ticket, self.terms.replies, result),
                // After `refuse_all` this is an answer that comes too late.
                None => tracing::debug!(cookie, "an answer to a request that is not in flight"),
            }
        }
    }

    /// Answers everything in flight, and everything that comes, with an error.
    pub fn refuse_all(&mut self, error: Errno, out: &mut Outgoing) {
        self.intake = Intake::Refusing(error);
        while let Some(ticket) = self.pending.take_any() {
            out.error(&ticket.header, self.terms.replies, error);
        }
    }

    /// Forgets what is in flight: nobody is there to be answered.
    pub fn abandon(&mut self) {
        while self.pending.take_any().is_some() {}
    }

    /// Whether another request is taken, with this many bytes waiting to be sent.
    #[must_use]
    pub fn has_room(&self, unsent: usize) -> bool {
        self.pending.len() < MAX_IN_FLIGHT && self.pending.charged() + unsent < MAX_HELD_BYTES
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
}
