//! The data of options, field by field, and the frames of their answers.
//!
//! What holds: every length in an option's data is checked against what is there before anything is done with it.

use super::proto::{MAX_STRING_BYTES, OPTION_REPLY_MAGIC, rep};

/// Answers to one option.
pub(super) struct Answer<'a> {
    pub(super) option: u32,
    pub(super) out: &'a mut Vec<u8>,
}

/// A refusal: the type of the reply, and a line for a person.
pub(super) type Refusal = (u32, &'static str);

/// An export's name: a string of the specification.
pub(super) fn name_of(bytes: &[u8]) -> Result<&str, Refusal> {
    let name = std::str::from_utf8(bytes).map_err(|_| (rep::ERR_INVALID, "a name that is not UTF-8"))?;
    if name.len() > MAX_STRING_BYTES || name.contains('\0') {
        return Err((rep::ERR_INVALID, "a name that is too long, or has NUL in it"));
    }
    Ok(name)
}

/// As much of a text as fits into a string of the specification.
pub(super) fn truncated(text: &str) -> &str {
    let mut len = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

/// Fields of an option's data; each is checked against what is there.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_be_bytes)
    }

    /// A name behind its length.
    pub(super) fn name(&mut self) -> Result<&'a str, Refusal> {
        let len = self.u32()?;
        name_of(self.take(len as usize)?)
    }

    pub(super) fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }
}

const MALFORMED: Refusal = (rep::ERR_INVALID, "the option's data does not fit its length");

impl Answer<'_> {
    pub(super) fn reply(&mut self, kind: u32, data: &[&[u8]]) {
        let len: usize = data.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        data.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    pub(super) fn ack(&mut self) {
        self.reply(rep::ACK, &[]);
    }

    pub(super) fn refuse(&mut self, (kind, message): Refusal) {
        tracing::debug!(option = self.option, message, "option refused");
        self.reply(kind, &[message.as_bytes()]);
    }
}
