//! What replicas lack beside the records that the log holds for them: kept in memory, and in a file of its own
//! from which an opening goes on.
//!
//! - The file may name more than a replica lacks, never less: what is copied by a sync span leaves the set only when
//!   the replica has acknowledged it, and every change that a file does not know of stands in the retained log,
//!   which is read at each opening.
//! - A file is written whole under a new number, synced, and its name synced, before the state file names it; then
//!   the one before is removed. A power cut leaves the old number or the new one, and at worst a file that nobody
//!   names, which the next one overwrites or the next opening removes.
//! - A file that is damaged is told apart from one that is whole, and then everything is lacked.

use crate::extents::Extents;
use crate::io::{OpenMode, Storage};
use bincode::{Decode, Encode};
use std::io::{Error, ErrorKind, IoSlice, Result};

/// The name under which a node notes what its own disks hold and the main line does not. No replica has it.
pub const OWN: &str = "";

const MAGIC: [u8; 8] = *b"LFLACK\x1a\n";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 32;
/// The largest body: 64 TiB of which each second block is lacked, by one replica.
const MAX_BODY_BYTES: usize = 3 << 30;

const BODY: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_BODY_BYTES>,
> = bincode::config::standard().with_limit::<MAX_BODY_BYTES>();

/// What one replica lacks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lacks {
    /// Its name.
    pub replica: String,
    /// The extents.
    pub extents: Extents,
}

fn path(dir: &str, number: u64) -> String {
    format!("{dir}/lacks-{number}")
}

/// Writes a file, durably.
///
/// # Errors
/// Of the storage; whatever is left behind is not named by anybody.
pub fn write(storage: &dyn Storage, dir: &str, number: u64, lacks: &[Lacks]) -> Result<()> {
    let body = bincode::encode_to_vec(lacks, BODY).map_err(|error| Error::other(error.to_string()))?;
    let mut header = [0; HEADER_BYTES];
    header[0..8].copy_from_slice(&MAGIC);
    header[8] = VERSION;
    header[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let checksum = checksum(&header, &body);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    let path = path(dir, number);
    let file = match storage.open(&path, OpenMode::Create) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => storage.open(&path, OpenMode::Write)?,
        opened => opened?,
    };
    file.write_at(&[IoSlice::new(&header), IoSlice::new(&body)], 0)?;
    file.set_len((HEADER_BYTES + body.len()) as u64)?;
    file.sync()?;
    storage.sync_dir(dir)
}

/// Reads a file back; `InvalidData` if it is not whole.
///
/// # Errors
/// Of the storage.
pub fn read(storage: &dyn Storage, dir: &str, number: u64) -> Result<Vec<Lacks>> {
    let damaged = || Error::new(ErrorKind::InvalidData, format!("{} is damaged", path(dir, number)));
    let file = storage.open(&path(dir, number), OpenMode::Read)?;
    let len = usize::try_from(file.len()?).map_err(|_| damaged())?;
    if !(HEADER_BYTES..=HEADER_BYTES + MAX_BODY_BYTES).contains(&len) {
        return Err(damaged());
    }
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let word = u32::from_le_bytes(header[12..16].try_into().expect("four bytes"));
    let claimed = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
    let whole = header[0..8] == MAGIC
        && header[8] == VERSION
        && claimed == body.len() as u64
        && word == checksum(header, body);
    match bincode::decode_from_slice(body, BODY) {
        Ok((lacks, used)) if whole && used == body.len() => Ok(lacks),
        _ => Err(damaged()),
    }
}

/// Removes the files that the state does not name.
///
/// # Errors
/// Of the storage.
pub fn remove_others(storage: &dyn Storage, dir: &str, number: u64) -> Result<()> {
    let others = storage.list(dir)?.into_iter().filter_map(|name| {
        let other: u64 = name.strip_prefix("lacks-")?.parse().ok()?;
        (other != number).then_some(name)
    });
    for name in others {
        storage.remove(&format!("{dir}/{name}"))?;
    }
    Ok(())
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(1);
    hasher.update(&header[0..12]);
    hasher.update(&header[16..]);
    hasher.update(body);
    hasher.finalize()
}
