//! `landfall restore disk`: a volume at a point, as a raw file, as a qcow2 image, or on a block device.
//!
//! Invariants:
//! - what exists is overwritten only if that is asked for, and never while another restore writes to it;
//! - a file is sparse where the point has holes; on a block device zeros are written there;
//! - the point is resolved once: a restore that goes on does so at the position on record, or not at all;
//! - the hash is of what the finished target holds, read back from it.
//!
//! A block device has no record beside it: the next disk under the same name could be another one. Nor has a qcow2 image,
//! which is none before it is whole.

use super::mounted::Mounted;
use super::qcow2::Layout;
use super::record::{Place, Record};
use crate::args::{self, DiskFormat, Global, OfVolume};
use crate::control::api::At;
use crate::exit::{Context, Failure};
use crate::human;
use crate::point::{Point, Which};
use crate::progress::Progress;
use crate::time;
use crate::units::{Bytes, duration_ms};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use transport::nbd::client::Client;
use xxhash_rust::xxh3::Xxh3;

/// Connections that read at the same time. A read-only point is the same on all of them.
const READERS: usize = 4;

/// What one of them takes at a time.
const CHUNK_BYTES: u64 = 4 << 20;

/// What is asked at a time for what is data.
const STATUS_BYTES: u64 = 1 << 30;

/// Synced and put on record at once: what a kill costs at most.
const STRIDE_BYTES: u64 = 256 << 20;

/// The answer.
#[derive(Serialize)]
struct Restored {
    group: String,
    volume: String,
    at: At,
    /// From the point's time to now.
    age_ms: u64,
    to: String,
    size_bytes: u64,
    /// Written by this run; the rest were holes, or there before.
    data_bytes: u64,
    /// Found on record when this run began.
    resumed_bytes: u64,
    /// XXH3 with 128 bits, in hexadecimal digits.
    xxh3_128: String,
}

/// What the bytes go to.
struct Target {
    file: File,
    kind: Kind,
}

enum Kind {
    File,
    Device,
    /// A qcow2 image; its layout, once it is known what is data.
    Image(Option<Layout>),
}

impl Target {
    fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device)
    }

    /// Whether it is on record how far it has come.
    fn is_recorded(&self) -> bool {
        matches!(self.kind, Kind::File)
    }

    fn write(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        match &self.kind {
            Kind::Image(Some(layout)) => layout.write(&self.file, bytes, at),
            _ => self.file.write_all_at(bytes, at),
        }
    }

    fn read(&self, buf: &mut [u8], at: u64) -> std::io::Result<()> {
        match &self.kind {
            Kind::Image(Some(layout)) => layout.read(&self.file, buf, at),
            _ => self.file.read_exact_at(buf, at),
        }
    }
}

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::RestoreDisk) -> Result<(), Failure> {
    let OfVolume { group, volume } = &arguments.volume;
    let path = arguments.to.as_path();
    let name = path.display().to_string();
    let place = Place::beside(path)?;
    // A new file is made behind the last refusal of the daemon, so that none is left by one.
    let (resumed, recorded) = match arguments.resume {
        true => {
            let target = open(path, arguments)?;
            let record = recorded(&place, &target, &name, arguments)?;
            (Some(target), Some(record))
        }
        false => (None, None),
    };
    let at = match (&recorded, &arguments.at) {
        (Some(record), _) => Point::lsn(record.at.lsn, record.branch),
        (None, Some(at)) => at.clone(),
        (None, None) => return Err(Failure::usage("--at is needed, or --resume")),
    };
    let mount = Mounted::new(global, &arguments.volume, at)?;
    let mut readers = (0..READERS).map(|_| mount.connect()).collect::<Result<Vec<_>, _>>()?;
    let size = readers.iter().map(Client::size).min().unwrap_or_default();
    let mut target = match resumed {
        Some(target) => target,
        None => open(path, arguments)?,
    };
    if let (Kind::Image(layout), Some(reader)) = (&mut target.kind, readers.first_mut()) {
        *layout = Some(Layout::new(size, data(reader, size).map_err(Failure::failed)?));
    }
    let mut record = match recorded {
        Some(record) if record.at == mount.at && record.size_bytes == size => record,
        Some(record) => {
            return Err(Failure::refused(format_args!(
                "LSN {} of {group}/{volume} is not any more what it was when the restore to {name} began",
                record.at.lsn
            ))
            .next("begin anew with --overwrite"));
        }
        None => {
            begin(&target, &place, &name, size)?;
            Record::new(group, volume, (mount.at, mount.branch), size)
        }
    };
    let resumed_bytes = record.done_bytes;
    let data_bytes = copy(&target, &place, &mut record, &mut readers, &name)?;
    let at = mount.at;
    drop(mount);
    if let Kind::Image(Some(layout)) = &target.kind {
        layout.finish(&target.file).context(|| format!("{name} cannot be written"))?;
    }
    let xxh3_128 = hash(&target, size).context(|| format!("{name} cannot be read back"))?;
    if target.is_recorded() {
        place.remove()?;
    }
    let age_ms = time::now().0.saturating_sub(at.time.0.0) / 1_000_000;
    let (group, volume) = (group.clone(), volume.clone());
    let restored = Restored {
        group,
        volume,
        at,
        age_ms,
        to: name,
        size_bytes: size,
        data_bytes,
        resumed_bytes,
        xxh3_128,
    };
    human::answer(global.form(), &restored, text)
}

fn text(done: &Restored) -> String {
    let Restored { group, volume, at, to, xxh3_128, .. } = done;
    let resumed = match done.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} were there", Bytes(bytes)),
    };
    format!(
        "{group}/{volume} at LSN {} ({}, {} old)\n  to       {to}\n  size     {}, {} of data written{resumed}\n  \
         XXH3-128 {xxh3_128}\n",
        at.lsn,
        time::format(at.time.0),
        duration_ms(done.age_ms),
        Bytes(done.size_bytes),
        Bytes(done.data_bytes),
    )
}

/// Opens what is to be written to, and keeps others out. Nothing is changed but that a new file is made.
fn open(path: &Path, arguments: &args::RestoreDisk) -> Result<Target, Failure> {
    let name = path.display();
    let cannot = || format!("{name} cannot be written");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if arguments.resume && arguments.format != DiskFormat::Raw {
        return Err(
            Failure::usage("only a restore to a raw file can be resumed").next("begin anew with --overwrite")
        );
    }
    let of_file = match arguments.format {
        DiskFormat::Raw => Kind::File,
        DiskFormat::Qcow2 => Kind::Image(None),
    };
    let kind = match std::fs::metadata(path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            if arguments.resume {
                return Err(Failure::refused(format_args!("{name} is not there: nothing can be resumed"))
                    .next("leave out --resume"));
            }
            options.create_new(true);
            of_file
        }
        Err(err) => return Err(err).context(cannot),
        Ok(_) if !arguments.overwrite && !arguments.resume => {
            return Err(Failure::refused(format_args!("{name} exists")).next(
                "--resume goes on with a restore that was cut off, --overwrite replaces what is there",
            ));
        }
        Ok(found) if found.is_file() => of_file,
        Ok(found) if found.file_type().is_block_device() => {
            if arguments.format != DiskFormat::Raw {
                return Err(Failure::refused(format_args!("{name} is a device: it is written as it is"))
                    .next("leave out --format"));
            }
            if arguments.resume {
                return Err(Failure::refused(format_args!(
                    "{name} is a device: no restore to it is on record"
                ))
                .next("begin anew with --overwrite"));
            }
            // Refused by the kernel while it is mounted or otherwise in use.
            options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
            Kind::Device
        }
        Ok(_) => {
            return Err(Failure::refused(format_args!("{name} is neither a file nor a block device")));
        }
    };
    let file = options.open(path).context(cannot)?;
    file.try_lock().map_err(|err| {
        Failure::refused(format_args!("{name} is in use by another restore, or cannot be locked: {err}"))
    })?;
    Ok(Target { file, kind })
}

/// What is on record for the target, if it is about the same.
fn recorded(
    place: &Place,
    target: &Target,
    name: &str,
    arguments: &args::RestoreDisk,
) -> Result<Record, Failure> {
    let anew = |what: String| Failure::refused(what).next("begin anew with --overwrite");
    let record =
        place.load()?.ok_or_else(|| anew(format!("no unfinished restore to {name} is on record")))?;
    let OfVolume { group, volume } = &arguments.volume;
    if record.group != *group || record.volume != *volume {
        return Err(anew(format!("{name} is a restore of {}/{}", record.group, record.volume)));
    }
    let of = Point::lsn(record.at.lsn, record.branch);
    if let Some(asked @ Point { which: Which::Lsn(_), .. }) = &arguments.at
        && *asked != of
    {
        return Err(anew(format!("{name} is a restore of {of}, not {asked}")));
    }
    let len = target.file.metadata().context(|| format!("{name} cannot be looked at"))?.len();
    if len != record.size_bytes {
        return Err(anew(format!("{name} has {len} bytes, but {} are on record", record.size_bytes)));
    }
    Ok(record)
}

/// Makes the target empty and of the right length.
fn begin(target: &Target, place: &Place, name: &str, size: u64) -> Result<(), Failure> {
    let cannot = || format!("{name} cannot be written");
    match &target.kind {
        Kind::File | Kind::Image(_) => {
            let len = match &target.kind {
                Kind::Image(Some(layout)) => layout.file_bytes(),
                _ => size,
            };
            place.remove()?;
            target.file.set_len(0).and_then(|()| target.file.set_len(len)).context(cannot)
        }
        Kind::Device => {
            let room = (&target.file).seek(SeekFrom::End(0)).context(cannot)?;
            if room < size {
                return Err(Failure::refused(format_args!(
                    "{name} has {}, the volume {}",
                    Bytes(room),
                    Bytes(size)
                )));
            }
            Ok(())
        }
    }
}

/// Copies what is not on record yet; returns the bytes that were data. Synced at the end.
fn copy(
    target: &Target,
    place: &Place,
    record: &mut Record,
    readers: &mut [Client],
    name: &str,
) -> Result<u64, Failure> {
    let mut progress = Progress::bytes("restoring", record.size_bytes);
    progress.add(record.done_bytes);
    let mut data = 0;
    while record.done_bytes < record.size_bytes {
        let end = record.size_bytes.min(record.done_bytes.saturating_add(STRIDE_BYTES));
        data += stride(target, record.done_bytes, end, readers, &mut progress).map_err(|why| {
            Failure::failed(format_args!("{name}: {why}")).next("--resume goes on with a raw file")
        })?;
        // Before the record says so.
        target.file.sync_all().context(|| format!("{name} cannot be synced"))?;
        record.done_bytes = end;
        if target.is_recorded() {
            place.save(record)?;
        }
    }
    Ok(data)
}

/// Where there is data, in ascending order.
pub(crate) fn data(reader: &mut Client, size: u64) -> Result<Vec<(u64, u64)>, String> {
    let (mut ranges, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    while at < size {
        let before = at;
        let len = (size - at).min(STATUS_BYTES) as u32;
        for stretch in reader.block_status(at, len).map_err(|err| err.to_string())? {
            let end = at.saturating_add(stretch.len).min(size);
            match ranges.last_mut() {
                _ if stretch.hole => {}
                Some((_, last)) if *last == at => *last = end,
                _ => ranges.push((at, end)),
            }
            at = end;
        }
        if at == before {
            return Err(format!("the daemon does not say what is at byte {at}"));
        }
    }
    Ok(ranges)
}

/// Copies a part with all readers at once.
fn stride(
    target: &Target,
    start: u64,
    end: u64,
    readers: &mut [Client],
    progress: &mut Progress,
) -> Result<u64, String> {
    let next = AtomicU64::new(start);
    let next = &next;
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for reader in readers {
            let sender = sender.clone();
            workers.push(scope.spawn(move || work(target, next, end, reader, &sender)));
        }
        drop(sender);
        for bytes in receiver {
            progress.add(bytes);
        }
        let mut data = 0;
        for worker in workers {
            data += worker.join().map_err(|_| "a thread that copied has panicked".to_owned())??;
        }
        Ok(data)
    })
}

fn work(
    target: &Target,
    next: &AtomicU64,
    end: u64,
    reader: &mut Client,
    done: &Sender<u64>,
) -> Result<u64, String> {
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let mut data = 0;
    loop {
        let from = next.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
        if from >= end {
            return Ok(data);
        }
        let to = end.min(from + CHUNK_BYTES);
        let mut at = from;
        while at < to {
            let status = reader.block_status(at, (to - at) as u32).map_err(|err| err.to_string())?;
            let before = at;
            for stretch in status {
                let len = stretch.len.min(to - at);
                let part = &mut buf[..len as usize];
                if !stretch.hole {
                    reader.read(at, part).map_err(|err| format!("reading at byte {at}: {err}"))?;
                    data += len;
                }
                if stretch.hole && target.is_device() {
                    part.fill(0);
                }
                if !stretch.hole || target.is_device() {
                    target.write(part, at).map_err(|err| format!("writing at byte {at}: {err}"))?;
                }
                at += len;
            }
            if at == before {
                return Err(format!("the daemon does not say what is at byte {at}"));
            }
        }
        // Whoever listens outlives us.
        let _ = done.send(to - from);
    }
}

fn hash(target: &Target, size: u64) -> std::io::Result<String> {
    let mut progress = Progress::bytes("reading back", size);
    let mut hasher = Xxh3::new();
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < size {
        let part = &mut buf[..CHUNK_BYTES.min(size - at) as usize];
        target.read(part, at)?;
        hasher.update(part);
        at += part.len() as u64;
        progress.add(part.len() as u64);
    }
    Ok(format!("{:032x}", hasher.digest128()))
}
