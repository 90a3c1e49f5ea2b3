//! The server's half of the handshake: option haggling as a function of bytes.
//!
//! What holds:
//!
//! - [`Handshake::handle`] takes at most one option at a time, so what one call writes is bounded by one answer;
//! - data of an option that is unknown, or longer than [`MAX_OPTION_BYTES`], is skipped without being kept, and
//!   haggling goes on;
//! - where TLS is required, nothing is told about exports before it is up; what was negotiated before TLS is
//!   forgotten when it comes up.
//!
//! Time is the caller's business: a handshake has a deadline, whatever the client does.

use super::option::{Answer, Fields, Refusal, name_of, truncated};
use super::proto::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, EXPORT_NAME_PADDING, GREETING_MAGIC, OPTION_HEADER_BYTES,
    OPTION_MAGIC, export_flag, handshake_flag, info, option, rep,
};
use super::request::{Access, Metadata, Replies, Terms};
use crate::block::{Catalog, Export, Shape};
use engine::guest::MAX_REQUEST_BYTES;
use std::sync::Arc;

/// The most data of one option that is looked at.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// The smallest request, in bytes, and what offsets and lengths are multiples of. Exports take any alignment, and
/// clients that keep to the letter of a larger minimum (libnbd does) could not copy an image of odd size.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// The size whose multiples are served best, in bytes.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

const _: () = assert!(MIN_BLOCK_BYTES.is_power_of_two() && MIN_BLOCK_BYTES <= 64 << 10);
const _: () =
    assert!(MAX_REQUEST_BYTES >= 1 << 20 && MAX_REQUEST_BYTES.is_multiple_of(PREFERRED_BLOCK_BYTES));

/// Whether a listener speaks TLS (the specification's NOTLS, SELECTIVETLS and FORCEDTLS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// No.
    Off,
    /// If the client wants to.
    Offered,
    /// Everything else is refused before it.
    Required,
}

/// Whether the server takes this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It does.
    Open,
    /// It has as many as it may: each option is refused, so that the client can say why it failed.
    Full,
    /// It is stopping.
    Stopping,
}

/// What comes next.
pub enum Step {
    /// More input is needed.
    More,
    /// Send the answer, then call again.
    Reply,
    /// Send the answer, then take what follows in the input as the client's TLS handshake; then call
    /// [`Handshake::encrypted`] and go on.
    StartTls,
    /// Send the answer, then serve: what follows in the input is the transmission phase.
    Serve(Session),
    /// Send the answer, if there is one, and close.
    Close,
}

/// The outcome of a handshake.
pub struct Session {
    /// The export's name as the client said it.
    pub name: String,
    /// The export.
    pub export: Arc<dyn Export>,
    /// What was agreed upon.
    pub terms: Terms,
}

/// The state of one handshake.
#[derive(Debug)]
pub struct Handshake {
    tls: TlsPolicy,
    channel: Channel,
    stage: Stage,
    padding: usize,
    replies: Replies,
    /// The export for which `base:allocation` was chosen.
    metadata: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Plain,
    Encrypted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The client's flags are due.
    Flags,
    /// An option is due, after this many bytes of an earlier one.
    Option { skip: u64 },
}

impl Handshake {
    /// Begins; `out` gets the greeting.
    #[must_use]
    pub fn new(tls: TlsPolicy, out: &mut Vec<u8>) -> Handshake {
        out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Handshake {
            tls,
            channel: Channel::Plain,
            stage: Stage::Flags,
            padding: EXPORT_NAME_PADDING,
            replies: Replies::Simple,
            metadata: None,
        }
    }

    /// TLS is up: everything that was negotiated in the clear is forgotten, since anybody may have said it.
    pub fn encrypted(&mut self) {
        self.channel = Channel::Encrypted;
        self.replies = Replies::Simple;
        self.metadata = None;
    }

    /// Takes the client's flags, or one option, from the front of `input`; writes the answer to `out`. Returns
    /// how much of `input` is used up.
    pub fn handle(
        &mut self,
        input: &[u8],
        catalog: &dyn Catalog,
        admission: Admission,
        out: &mut Vec<u8>,
    ) -> (usize, Step) {
        match self.stage {
            Stage::Flags => {
                let Some(flags) = input.first_chunk() else {
                    return (0, Step::More);
                };
                (flags.len(), self.flags(u32::from_be_bytes(*flags)))
            }
            Stage::Option { skip: 0 } => self.option(input, catalog, admission, out),
            Stage::Option { skip } => {
                let skipped = skip.min(input.len() as u64);
                self.stage = Stage::Option { skip: skip - skipped };
                (skipped as usize, if skipped < skip { Step::More } else { Step::Reply })
            }
        }
    }

    fn flags(&mut self, flags: u32) -> Step {
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            tracing::debug!(flags, "unknown client flags");
            return Step::Close;
        }
        if flags & fixed == 0 && self.tls == TlsPolicy::Offered {
            // TLS is for clients that understand refusals; this one goes on in the clear.
            self.tls = TlsPolicy::Off;
        }
        if flags & no_zeroes != 0 {
            self.padding = 0;
        }
        self.stage = Stage::Option { skip: 0 };
        Step::Reply
    }

    fn option(
        &mut self,
        input: &[u8],
        catalog: &dyn Catalog,
        admission: Admission,
        out: &mut Vec<u8>,
    ) -> (usize, Step) {
        let Some(header) = input.first_chunk::<OPTION_HEADER_BYTES>() else {
            return (0, Step::More);
        };
        let mut fields = Fields(header);
        let (Ok(magic), Ok(option), Ok(len)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return (0, Step::Close);
        };
        if magic != OPTION_MAGIC {
            tracing::debug!("wrong magic where an option was due");
            return (0, Step::Close);
        }
        let mut answer = Answer { option, out };
        if let Some(refusal) = self.gate(option, len, admission) {
            if option == option::EXPORT_NAME {
                return (OPTION_HEADER_BYTES, Step::Close);
            }
            answer.refuse(refusal);
            self.stage = Stage::Option { skip: u64::from(len) };
            return (OPTION_HEADER_BYTES, Step::Reply);
        }
        let whole = OPTION_HEADER_BYTES + len as usize;
        let Some(data) = input.get(OPTION_HEADER_BYTES..whole) else {
            return (0, Step::More);
        };
        let step = match self.answer(option, data, catalog, &mut answer) {
            Ok(step) => step,
            Err(refusal) => {
                answer.refuse(refusal);
                Step::Reply
            }
        };
        (whole, step)
    }

    /// What can be said of an option without its data.
    fn gate(&self, option: u32, len: u32, admission: Admission) -> Option<Refusal> {
        if option == option::ABORT {
            return (len > MAX_OPTION_BYTES).then_some((rep::ERR_TOO_BIG, "too much data"));
        }
        match admission {
            Admission::Open => {}
            Admission::Full => return Some((rep::ERR_POLICY, "the server has as many clients as it may")),
            Admission::Stopping => return Some((rep::ERR_SHUTDOWN, "the server is stopping")),
        }
        if self.tls == TlsPolicy::Required && self.channel == Channel::Plain && option != option::STARTTLS {
            return Some((rep::ERR_TLS_REQD, "this server speaks TLS only"));
        }
        match option {
            option::EXPORT_NAME
            | option::LIST
            | option::STARTTLS
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT => {
                (len > MAX_OPTION_BYTES).then_some((rep::ERR_TOO_BIG, "too much data"))
            }
            _ => Some((rep::ERR_UNSUP, "unknown option")),
        }
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        catalog: &dyn Catalog,
        answer: &mut Answer<'_>,
    ) -> Result<Step, Refusal> {
        match option {
            option::ABORT => {
                answer.ack();
                return Ok(Step::Close);
            }
            option::EXPORT_NAME => return Ok(self.export_name(data, catalog, answer.out)),
            option::LIST => {
                Fields(data).end()?;
                for name in catalog.names() {
                    answer.reply(rep::SERVER, &[&(name.len() as u32).to_be_bytes(), name.as_bytes()]);
                }
            }
            option::STARTTLS => {
                Fields(data).end()?;
                if self.channel == Channel::Encrypted {
                    return Err((rep::ERR_INVALID, "TLS is up already"));
                }
                if self.tls == TlsPolicy::Off {
                    return Err((rep::ERR_POLICY, "TLS is not configured here"));
                }
                answer.ack();
                return Ok(Step::StartTls);
            }
            option::STRUCTURED_REPLY => {
                Fields(data).end()?;
                self.replies = Replies::Structured;
            }
            option::INFO | option::GO => {
                let session = self.info(data, catalog, answer)?;
                answer.ack();
                return Ok(if option == option::GO { Step::Serve(session) } else { Step::Reply });
            }
            option::LIST_META_CONTEXT => self.list_contexts(data, catalog, answer)?,
            option::SET_META_CONTEXT => self.set_contexts(data, catalog, answer)?,
            _ => return Err((rep::ERR_UNSUP, "unknown option")),
        }
        answer.ack();
        Ok(Step::Reply)
    }

    fn export_name(&self, data: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) -> Step {
        let Some(session) = name_of(data).ok().and_then(|name| self.session(name, catalog)) else {
            tracing::debug!("EXPORT_NAME of an unknown export");
            return Step::Close;
        };
        out.extend_from_slice(&session.terms.size.to_be_bytes());
        out.extend_from_slice(&transmission_flags(&session.terms).to_be_bytes());
        out.resize(out.len() + self.padding, 0);
        Step::Serve(session)
    }

    fn info(&self, data: &[u8], catalog: &dyn Catalog, answer: &mut Answer<'_>) -> Result<Session, Refusal> {
        let mut fields = Fields(data);
        let name = fields.name()?;
        let count = fields.u16()?;
        let asked = fields.take(2 * usize::from(count))?;
        fields.end()?;
        let asked_for = |wanted: u16| asked.chunks_exact(2).any(|asked| asked == wanted.to_be_bytes());
        let session = self.session(name, catalog).ok_or((rep::ERR_UNKNOWN, "no such export"))?;
        let terms = &session.terms;
        let flags = transmission_flags(terms).to_be_bytes();
        answer.reply(rep::INFO, &[&info::EXPORT.to_be_bytes(), &terms.size.to_be_bytes(), &flags]);
        if asked_for(info::NAME) {
            answer.reply(rep::INFO, &[&info::NAME.to_be_bytes(), name.as_bytes()]);
        }
        if asked_for(info::DESCRIPTION) {
            let shape = session.export.shape();
            let text = truncated(&shape.description);
            answer.reply(rep::INFO, &[&info::DESCRIPTION.to_be_bytes(), text.as_bytes()]);
        }
        if asked_for(info::BLOCK_SIZE) {
            let [min, preferred, max] =
                [MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, MAX_REQUEST_BYTES].map(u32::to_be_bytes);
            answer.reply(rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), &min, &preferred, &max]);
        }
        Ok(session)
    }

    fn list_contexts(
        &self,
        data: &[u8],
        catalog: &dyn Catalog,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refusal> {
        // "base:" alone is a wildcard here, and no query asks for all there are.
        let (_, found) = self.contexts(data, catalog, |query| query == b"base:")?;
        if found != Found::Nothing {
            answer.reply(rep::META_CONTEXT, &[&[0; 4], BASE_ALLOCATION.as_bytes()]);
        }
        Ok(())
    }

    fn set_contexts(
        &mut self,
        data: &[u8],
        catalog: &dyn Catalog,
        answer: &mut Answer<'_>,
    ) -> Result<(), Refusal> {
        // Each attempt replaces the choice before it, a failed one too.
        self.metadata = None;
        let (name, found) = self.contexts(data, catalog, |_| false)?;
        if found == Found::Allocation {
            self.metadata = Some(name.to_owned());
            answer.reply(rep::META_CONTEXT, &[&BASE_ALLOCATION_ID.to_be_bytes(), BASE_ALLOCATION.as_bytes()]);
        }
        Ok(())
    }

    /// The export of a metadata option, and what its queries found.
    fn contexts<'a>(
        &self,
        data: &'a [u8],
        catalog: &dyn Catalog,
        wildcard: impl Fn(&[u8]) -> bool,
    ) -> Result<(&'a str, Found), Refusal> {
        if self.replies == Replies::Simple {
            return Err((rep::ERR_INVALID, "structured replies have to be negotiated first"));
        }
        let mut fields = Fields(data);
        let name = fields.name()?;
        let count = fields.u32()?;
        let mut found = if count == 0 { Found::NoQuery } else { Found::Nothing };
        // Each query takes four bytes at least, so the data ends the loop whatever the count claims.
        for _ in 0..count {
            let len = fields.u32()?;
            let query = fields.take(len as usize)?;
            if query == BASE_ALLOCATION.as_bytes() || wildcard(query) {
                found = Found::Allocation;
            }
        }
        fields.end()?;
        catalog.find(name).ok_or((rep::ERR_UNKNOWN, "no such export"))?;
        Ok((name, found))
    }

    fn session(&self, name: &str, catalog: &dyn Catalog) -> Option<Session> {
        let export = catalog.find(name)?;
        let Shape { size, read_only, .. } = export.shape();
        let metadata = match &self.metadata {
            Some(chosen_for) if chosen_for == name => Metadata::Allocation,
            _ => Metadata::None,
        };
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let terms = Terms { size, access, replies: self.replies, metadata };
        Some(Session { name: name.to_owned(), export, terms })
    }
}

/// What the queries of a metadata option found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    NoQuery,
    Allocation,
}

/// The flags that tell a client what an export can do.
fn transmission_flags(terms: &Terms) -> u16 {
    use export_flag::*;
    let all = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    let access = match terms.access {
        Access::ReadOnly => READ_ONLY,
        Access::ReadWrite => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
    };
    let replies = match terms.replies {
        Replies::Simple => 0,
        Replies::Structured => SEND_DF,
    };
    all | access | replies
}
