//! The user's own disk image, onto a protected volume.

use super::check::Served;
use crate::exit::{Context, Failure};
use crate::progress::Progress;
use bytes::Bytes;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use transport::nbd::client::{Client, Command, Durability, Error};

/// Bytes of one write. The image is written as it would be by any copying program: in order, large.
const WRITE_BYTES: usize = 256 << 10;

/// Writes in flight.
const DEPTH: usize = 16;

/// The size of a volume that takes the image: whole sectors.
pub(crate) fn volume_bytes(path: &Path) -> Result<u64, Failure> {
    let doing = || format!("the image {} cannot be used", path.display());
    let file = File::open(path).context(doing)?;
    let metadata = file.metadata().context(doing)?;
    if !metadata.is_file() {
        return Err(Failure::usage(format_args!("{}: it is not a regular file", doing())));
    }
    if metadata.len() == 0 {
        return Err(Failure::usage(format_args!("{}: it is empty", doing())));
    }
    Ok(metadata.len().next_multiple_of(512))
}

/// Copies it, but for what is zeros already, and flushes. The bytes that were written.
pub(crate) fn copy(path: &Path, to: &Served) -> Result<u64, Failure> {
    let doing = || format!("{} cannot be copied to {}", path.display(), to.export);
    let mut file = File::open(path).context(doing)?;
    let mut client = to.connect()?;
    let mut progress = Progress::bytes("copying the image", client.size());
    let (mut offset, mut written) = (0, 0);
    loop {
        let mut data = Vec::with_capacity(WRITE_BYTES);
        (&mut file).take(WRITE_BYTES as u64).read_to_end(&mut data).context(doing)?;
        if data.is_empty() {
            break;
        }
        let read = data.len() as u64;
        data.resize(data.len().next_multiple_of(512), 0);
        if data.iter().any(|byte| *byte != 0) {
            while client.in_flight() >= DEPTH {
                collect(&mut client).context(doing)?;
            }
            written += data.len() as u64;
            let command =
                Command::Write { offset, data: Bytes::from(data), durability: Durability::Volatile };
            client.submit(&command).context(doing)?;
        }
        offset += read;
        progress.add(read);
    }
    while client.in_flight() > 0 {
        collect(&mut client).context(doing)?;
    }
    client.flush().context(doing)?;
    Ok(written)
}

fn collect(client: &mut Client) -> Result<(), Error> {
    client.collect()?.1.map(|_| ()).map_err(Error::Remote)
}
