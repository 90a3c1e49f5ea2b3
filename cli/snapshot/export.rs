//! `landfall snapshot export`: a volume of a snapshot, as a raw file, a qcow2 image, or on a block device. It is how a new disk
//! is made of a snapshot.
//!
//! Invariants:
//! - a file is written beside its name and takes it when it is whole and durable: it is there complete or not at all. A
//!   command that is killed leaves a hidden file, which nothing takes for the disk;
//! - what exists is overwritten only if that is asked for;
//! - a file is sparse where the snapshot has zeros; on a block device they are written;
//! - the hash is of what the target holds, read back from it.

use super::{Place, args};
use crate::args::{DiskFormat, Global};
use crate::exit::{Context, Failure};
use crate::human::{self, clean};
use crate::progress::Progress;
use crate::restore::qcow2::Layout;
use crate::units::Bytes;
use engine::snapshots::BLOCK;
use engine::snapshots::read::Reader;
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result as IoResult, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// What is read back at a time, and the zeros that are written at a time.
const PIECE_BYTES: u64 = 4 << 20;

#[derive(Serialize)]
struct Exported<'a> {
    snapshot: &'a str,
    volume: &'a str,
    to: String,
    size_bytes: u64,
    /// Of blocks that are not all zeros.
    data_bytes: u64,
    /// XXH3 with 128 bits of the disk, in hexadecimal digits.
    xxh3_128: String,
}

/// What is written to.
struct Target {
    file: File,
    kind: Kind,
}

enum Kind {
    Raw,
    Image(Layout),
    Device,
}

/// A file without its name yet, which goes away unless it gets it.
struct Fresh {
    hidden: PathBuf,
    path: PathBuf,
    named: bool,
}

/// Carries it out.
pub(super) fn run(global: &Global, arguments: &args::Export) -> Result<(), Failure> {
    let args::OfSnapshot { snapshot, volume } = &arguments.volume;
    let place = Place::of(global)?;
    let snapshots = place.snapshots()?;
    let reader = snapshots.reader(snapshot, volume).map_err(|error| place.failure(error))?;
    let name = arguments.to.display().to_string();
    let cannot = || format!("{name} cannot be written");
    let (target, fresh) = open(arguments, &reader)?;
    copy(&place, &reader, &target, &name)?;
    if let Kind::Image(layout) = &target.kind {
        layout.finish(&target.file).context(cannot)?;
    }
    target.file.sync_all().context(|| format!("{name} cannot be synced"))?;
    let xxh3_128 = hash(&target, reader.size()).context(|| format!("{name} cannot be read back"))?;
    fresh.map_or(Ok(()), Fresh::name).context(cannot)?;
    let data_bytes = reader.entries().len() as u64 * BLOCK;
    let exported = Exported { snapshot, volume, to: name, size_bytes: reader.size(), data_bytes, xxh3_128 };
    human::answer(global.form(), &exported, text)
}

fn text(exported: &Exported<'_>) -> String {
    format!(
        "{}/{}\n  to       {}\n  size     {}, {} of data written\n  XXH3-128 {}\n",
        clean(exported.snapshot),
        clean(exported.volume),
        exported.to,
        Bytes(exported.size_bytes),
        Bytes(exported.data_bytes),
        exported.xxh3_128
    )
}

/// Opens the device, or makes the file. What is there stays as it is.
fn open(arguments: &args::Export, reader: &Reader<'_>) -> Result<(Target, Option<Fresh>), Failure> {
    let path = arguments.to.as_path();
    let name = path.display();
    match std::fs::metadata(path) {
        Err(err) if err.kind() == ErrorKind::NotFound => {}
        Err(err) => return Err(err).context(|| format!("{name} cannot be looked at")),
        Ok(_) if !arguments.overwrite => {
            return Err(
                Failure::refused(format_args!("{name} exists")).next("--overwrite replaces what is there")
            );
        }
        Ok(found) if found.file_type().is_block_device() => {
            return Ok((device(arguments, reader.size())?, None));
        }
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(Failure::refused(format_args!("{name} is neither a file nor a block device"))),
    }
    // A link stays a link: what it leads to is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let fresh = Fresh::beside(path)?;
    let cannot = || format!("{} cannot be made", fresh.hidden.display());
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(&fresh.hidden).context(cannot)?;
    let (kind, len) = match arguments.format {
        DiskFormat::Raw => (Kind::Raw, reader.size()),
        DiskFormat::Qcow2 => {
            let blocks = reader.entries().iter().map(|entry| u64::from(entry.block) * BLOCK);
            let layout = Layout::new(reader.size(), blocks.map(|at| (at, (at + BLOCK).min(reader.size()))));
            let len = layout.file_bytes();
            (Kind::Image(layout), len)
        }
    };
    file.set_len(len).context(cannot)?;
    Ok((Target { file, kind }, Some(fresh)))
}

fn device(arguments: &args::Export, size: u64) -> Result<Target, Failure> {
    let name = arguments.to.display();
    if arguments.format != DiskFormat::Raw {
        return Err(Failure::refused(format_args!("{name} is a device: it is written as it is"))
            .next("leave out --format"));
    }
    let mut options = OpenOptions::new();
    // Refused by the kernel while it is mounted or otherwise in use.
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    let mut file = options.open(&arguments.to).context(|| format!("{name} cannot be written"))?;
    let room = file.seek(SeekFrom::End(0)).context(|| format!("{name} cannot be looked at"))?;
    if room < size {
        return Err(Failure::refused(format_args!("{name} has {}, the volume {}", Bytes(room), Bytes(size))));
    }
    Ok(Target { file, kind: Kind::Device })
}

fn copy(place: &Place, reader: &Reader<'_>, target: &Target, name: &str) -> Result<(), Failure> {
    let cannot = || format!("{name} cannot be written");
    let mut progress = Progress::bytes("exporting", reader.entries().len() as u64 * BLOCK);
    let mut block = vec![0; BLOCK as usize];
    let mut behind = 0;
    for entry in reader.entries() {
        let at = u64::from(entry.block) * BLOCK;
        let bytes = reader.read(entry, &mut block).map_err(|error| place.failure(error))?;
        target.zeros(behind, at).context(cannot)?;
        target.write(bytes, at).context(cannot)?;
        behind = at + bytes.len() as u64;
        progress.add(BLOCK);
    }
    target.zeros(behind, reader.size()).context(cannot)
}

impl Target {
    fn write(&self, bytes: &[u8], at: u64) -> IoResult<()> {
        match &self.kind {
            Kind::Image(layout) => layout.write(&self.file, bytes, at),
            Kind::Raw | Kind::Device => self.file.write_all_at(bytes, at),
        }
    }

    fn read(&self, buf: &mut [u8], at: u64) -> IoResult<()> {
        match &self.kind {
            Kind::Image(layout) => layout.read(&self.file, buf, at),
            Kind::Raw | Kind::Device => self.file.read_exact_at(buf, at),
        }
    }

    /// Zeros from `start` to `end`, where they are not there already: a new file has them.
    fn zeros(&self, start: u64, end: u64) -> IoResult<()> {
        if !matches!(self.kind, Kind::Device) {
            return Ok(());
        }
        let zeros = vec![0; PIECE_BYTES.min(end - start) as usize];
        let mut at = start;
        while at < end {
            let part = &zeros[..(end - at).min(PIECE_BYTES) as usize];
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

fn hash(target: &Target, size: u64) -> IoResult<String> {
    let mut progress = Progress::bytes("reading back", size);
    let mut hasher = Xxh3::new();
    let mut buf = vec![0; PIECE_BYTES as usize];
    let mut at = 0;
    while at < size {
        let part = &mut buf[..PIECE_BYTES.min(size - at) as usize];
        target.read(part, at)?;
        hasher.update(part);
        at += part.len() as u64;
        progress.add(part.len() as u64);
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

impl Fresh {
    fn beside(path: PathBuf) -> Result<Fresh, Failure> {
        let display = path.display();
        let file_name =
            path.file_name().ok_or_else(|| Failure::usage(format_args!("{display} is no name of a file")))?;
        let mut hidden = OsString::from(".");
        hidden.push(file_name);
        hidden.push(format!(".{}", std::process::id()));
        Ok(Fresh { hidden: path.with_file_name(hidden), path, named: false })
    }

    /// Gives the file its name, durably.
    fn name(mut self) -> IoResult<()> {
        std::fs::rename(&self.hidden, &self.path)?;
        self.named = true;
        let folder = self.path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.named {
            let _ = std::fs::remove_file(&self.hidden);
        }
    }
}
