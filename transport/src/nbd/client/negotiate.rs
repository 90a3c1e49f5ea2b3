//! The client's half of the handshake.

use super::stream::{Stream, array};
use super::{Error, Info};
use crate::nbd::proto::{
    BASE_ALLOCATION, GREETING_MAGIC, MAX_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag,
    info, option, rep,
};
use std::io::{BufReader, Read, Write};

/// The most data of one reply that is taken.
const MAX_REPLY_BYTES: u32 = 64 << 10;
/// The most replies to one option.
const MAX_REPLIES: usize = 1024;

/// Enters transmission, with structured replies and `base:allocation` if the server has them.
pub(super) fn negotiate(stream: &mut BufReader<Stream>, export: &str) -> Result<Info, Error> {
    let greeting = u64::from_be_bytes(array(stream)?);
    let magic = u64::from_be_bytes(array(stream)?);
    let flags = u16::from_be_bytes(array(stream)?);
    if greeting != GREETING_MAGIC || magic != OPTION_MAGIC {
        return Err(Error::Protocol("this is no NBD server of the newstyle"));
    }
    if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
        return Err(Error::Protocol("the server does not speak fixed newstyle"));
    }
    let flags = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    stream.get_mut().write_all(&u32::from(flags).to_be_bytes())?;

    let name = (export.len() as u32).to_be_bytes();
    let context = (BASE_ALLOCATION.len() as u32).to_be_bytes();
    let mut allocation = None;
    if optional(ask(stream, option::STRUCTURED_REPLY, &[]))?.is_some() {
        let query =
            [&name, export.as_bytes(), &1_u32.to_be_bytes(), &context, BASE_ALLOCATION.as_bytes()].concat();
        for (kind, data) in optional(ask(stream, option::SET_META_CONTEXT, &query))?.unwrap_or_default() {
            if let (rep::META_CONTEXT, Some((id, name))) = (kind, data.split_first_chunk())
                && name == BASE_ALLOCATION.as_bytes()
            {
                allocation = Some(u32::from_be_bytes(*id));
            }
        }
    }
    let wanted = [&name, export.as_bytes(), &1_u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()].concat();
    for (kind, data) in ask(stream, option::GO, &wanted)? {
        if let (rep::INFO, [0, 0, rest @ ..]) = (kind, &data[..])
            && let Some((size, flags)) = rest.split_first_chunk()
            && let Ok(flags) = flags.try_into()
        {
            let size = u64::from_be_bytes(*size);
            return Ok(Info { size, flags: u16::from_be_bytes(flags), allocation });
        }
    }
    Err(Error::Protocol("the server does not say how large the export is"))
}

/// A refusal that one can live with: that of an option which the server does not have.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::Refused { code: rep::ERR_UNSUP | rep::ERR_POLICY | rep::ERR_INVALID, .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Sends an option and takes in the replies up to the last.
fn ask(stream: &mut BufReader<Stream>, option: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    let len = (data.len() as u32).to_be_bytes();
    stream
        .get_mut()
        .write_all(&[&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len, data].concat())?;
    let mut replies = Vec::new();
    loop {
        let magic = u64::from_be_bytes(array(stream)?);
        let answered = u32::from_be_bytes(array(stream)?);
        let kind = u32::from_be_bytes(array(stream)?);
        let len = u32::from_be_bytes(array(stream)?);
        if magic != OPTION_REPLY_MAGIC || answered != option {
            return Err(Error::Protocol("a reply to an option that was not sent"));
        }
        if len > MAX_REPLY_BYTES || replies.len() == MAX_REPLIES {
            return Err(Error::Protocol("too long an answer to an option"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        if kind & rep::ERROR != 0 {
            data.truncate(MAX_STRING_BYTES);
            let message = String::from_utf8_lossy(&data).into_owned();
            return Err(Error::Refused { code: kind, message });
        }
        if kind == rep::ACK {
            return Ok(replies);
        }
        replies.push((kind, data));
    }
}
