//! What a recovery point is judged by: images read back over NBD, against the demo's own record.

use super::content::read_journal;
use super::history::{History, Prefix, consistent};
use crate::control::api::{Endpoint, Volume};
use crate::exit::{Context, Failure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};
use transport::nbd::client::{Address, Answer, Client, Command, Error};

/// Bytes of one read.
const READ_BYTES: u32 = 1 << 20;

/// Reads in flight.
const READS: usize = 8;

/// How long one request may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Where a volume is served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The address.
    pub(crate) address: Address,
    /// The export.
    pub(crate) export: String,
}

impl Served {
    /// The volume of that name among those that a daemon lists.
    pub(crate) fn find(endpoint: &Endpoint, volumes: &[Volume], name: &str) -> Result<Served, Failure> {
        let volume = volumes.iter().find(|volume| volume.name == name);
        let Some(export) = volume.and_then(|volume| volume.export.clone()) else {
            return Err(Failure::failed(format_args!("the volume {name} is not served at {endpoint}")));
        };
        let address = match endpoint {
            Endpoint::Unix(path) => Address::Unix(path.clone()),
            Endpoint::Tcp(address) => Address::Tcp(*address),
        };
        Ok(Served { address, export })
    }

    /// Connects.
    pub(crate) fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.address, &self.export, TIMEOUT)
            .context(|| format!("no connection to {} at {}", self.export, self.address))
    }

    /// Reads the whole volume.
    pub(crate) fn image(&self) -> Result<Vec<u8>, Failure> {
        let mut client = self.connect()?;
        let mut image = Vec::new();
        read_all(&mut client, &mut |data| {
            image.extend_from_slice(data);
            Ok(())
        })
        .context(|| format!("{} cannot be read back", self.export))?;
        Ok(image)
    }

    /// Compares the volume with a file, which may be shorter: the rest of the volume must be zeros. The first byte
    /// that differs.
    pub(crate) fn compare(&self, path: &Path, mut seen: impl FnMut(u64)) -> Result<Option<u64>, Failure> {
        let doing = || format!("{} cannot be compared with {}", self.export, path.display());
        let mut file = File::open(path).context(doing)?;
        let mut client = self.connect()?;
        let (mut offset, mut differs) = (0, None);
        read_all(&mut client, &mut |data| {
            let mut expected = Vec::with_capacity(data.len());
            (&mut file).take(data.len() as u64).read_to_end(&mut expected)?;
            expected.resize(data.len(), 0);
            if differs.is_none() {
                let first = data.iter().zip(&expected).position(|(data, expected)| data != expected);
                differs = first.map(|first| offset + first as u64);
            }
            offset += data.len() as u64;
            seen(data.len() as u64);
            Ok(())
        })
        .context(doing)?;
        Ok(differs)
    }
}

/// Reads a volume from end to end, in order, with several reads in flight.
fn read_all(client: &mut Client, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), Error> {
    let size = client.size();
    let (mut asked, mut taken) = (0, 0);
    let mut numbers = BTreeMap::new();
    let mut arrived: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    while taken < size {
        while asked < size && numbers.len() + arrived.len() < READS {
            let len = u32::try_from(size - asked).unwrap_or(READ_BYTES).min(READ_BYTES);
            numbers.insert(client.submit(&Command::Read { offset: asked, len })?, asked);
            asked += u64::from(len);
        }
        let (number, answer) = client.collect()?;
        match (numbers.remove(&number), answer.map_err(Error::Remote)?) {
            (Some(offset), Answer::Data(data)) => arrived.insert(offset, data),
            _ => return Err(Error::Protocol("a read was answered without data")),
        };
        while let Some(data) = arrived.remove(&taken) {
            take(&data)?;
            taken += data.len() as u64;
        }
    }
    Ok(())
}

/// What a recovery point turned out to be.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// The writes that it shows: of the files' volume, of the journal's.
    pub(crate) prefixes: [Prefix; 2],
    /// Batches that its journal names.
    pub(crate) batches: usize,
    /// Files that the journal names, all of which are there and whole.
    pub(crate) files: usize,
}

/// Judges two images: each an exact prefix of its volume's history within a range, both of one moment, and every
/// file that the journal names on the filesystem, whole. Otherwise what is wrong.
pub(crate) fn judge(
    histories: [&History; 2],
    images: &[Vec<u8>; 2],
    ranges: &[Range<usize>; 2],
) -> Result<Verdict, String> {
    let [files, journal] = histories;
    let prefix = |name: &str, history: &History, image: &[u8], range: &Range<usize>| {
        if image.len() as u64 != history.size() {
            return Err(format!("{name} has {} bytes instead of {}", image.len(), history.size()));
        }
        history.prefix(image, range.clone()).map_err(|not| {
            format!(
                "{name} shows none of the states after {} to {} writes; the nearest is after {}, from which {} \
                 sectors differ, the first at byte {}",
                range.start, range.end, not.nearest, not.differing, not.offset
            )
        })
    };
    let prefixes = [
        prefix("the files' volume", files, &images[0], &ranges[0])?,
        prefix("the journal's volume", journal, &images[1], &ranges[1])?,
    ];
    consistent([(files, prefixes[0]), (journal, prefixes[1])])?;
    let batches = read_journal(&images[1])?;
    let named: Vec<_> = batches.iter().flatten().collect();
    let filesystem = fatfs::FileSystem::new(Cursor::new(images[0].clone()), fatfs::FsOptions::new())
        .map_err(|err| format!("the filesystem cannot be opened: {err}"))?;
    for file in &named {
        let mut content = Vec::new();
        filesystem
            .root_dir()
            .open_file(&file.path)
            // One byte more than expected is enough to see that it is too long.
            .and_then(|found| found.take(file.bytes as u64 + 1).read_to_end(&mut content))
            .map_err(|err| format!("{}, which the journal names, cannot be read: {err}", file.path))?;
        if content.len() != file.bytes || crc32fast::hash(&content) != file.checksum {
            return Err(format!("{}, which the journal names, has another content", file.path));
        }
    }
    Ok(Verdict { prefixes, batches: batches.len(), files: named.len() })
}

/// Tries until it succeeds or the time is up; then the last failure.
pub(crate) fn patiently<T>(
    at_most: Duration,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + at_most;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}
