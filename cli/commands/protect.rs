//! `landfall protect`: a disk that holds data becomes a volume, where it is.
//!
//! The configuration names it first, then the daemon takes it on. If this dies in between, the next start of the
//! daemon takes it on; asked again, it goes on where it was.

use crate::args::{self, Global};
use crate::config::edit::{Addition, Edited};
use crate::config::{Config, Group, Role};
use crate::control::Client;
use crate::control::api::{CatchUp, LinkState, OfVolume, Protected, Replica};
use crate::exit::{Code, Failure};
use crate::human;
use crate::progress::Progress;
use crate::units::{Bytes, exact_bytes};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the copy is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Sizes of volumes are multiples of this.
const UNIT_BYTES: u64 = 512;

/// Carries it out.
pub(crate) fn run(global: &Global, arguments: &args::Protect) -> Result<(), Failure> {
    let args::Protect { group, volume, backing, size, no_wait, seed_from } = arguments;
    let config = global.load()?;
    let known = config.groups.iter().find(|known| known.name == *group).ok_or_else(|| {
        let names: Vec<&str> = config.groups.iter().map(|known| known.name.as_str()).collect();
        Failure::usage(format_args!("{} has no group {group}", config.path.display()))
            .next(format_args!("it has: {}", names.join(", ")))
    })?;
    if let Some(image) = seed_from {
        return seed(global, &config, known, volume, image);
    }
    let backing = backing.as_ref().ok_or_else(|| Failure::usage("which disk? `--backing DISK`"))?;
    let disk = std::fs::canonicalize(backing)
        .map_err(|error| Failure::refused(format_args!("{}: {error}", backing.display())))?;
    let edited = match named(known, volume, &disk)? {
        true => None,
        false => Some(add(&config, group, volume, &disk, size.map(|size| size.0))?),
    };
    let mut client = match global.connect() {
        Err(failure) if failure.code == Code::NoDaemon => {
            if let Some(edited) = &edited {
                edited.write()?;
            }
            human::say(format!(
                "{} names {group}/{volume} now. It is protected from the next start of `landfall agent` on; use it \
                 through Landfall alone from then on.",
                config.path.display()
            ));
            return Ok(());
        }
        client => client?,
    };
    if let Some(edited) = &edited {
        edited.write()?;
    }
    let request = OfVolume { group: group.clone(), volume: volume.clone() };
    let protected = client.protect(request).map_err(|failure| match edited.map(|edited| edited.undo()) {
        Some(Err(undo)) => failure.next(undo.what),
        _ => failure,
    })?;
    human::answer(global.form(), &protected, text)?;
    if *no_wait { Ok(()) } else { wait(&mut client, group, volume) }
}

/// Gives a volume of a replica a copy that came by other means.
fn seed(global: &Global, config: &Config, group: &Group, volume: &str, image: &Path) -> Result<(), Failure> {
    if group.role == Role::Primary {
        return Err(Failure::refused(format_args!(
            "{} says that this node is the primary of {}: a seed is a replica's",
            config.path.display(),
            group.name
        ))
        .next("run it on the replica that has the copy"));
    }
    let image = std::fs::canonicalize(image)
        .map_err(|error| Failure::refused(format_args!("{}: {error}", image.display())))?;
    let kind = std::fs::metadata(&image).map(|of| of.file_type());
    if !kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
        return Err(Failure::refused(format_args!(
            "{} is neither a file nor a block device",
            image.display()
        )));
    }
    let edited = Edited::with_seed(&config.path, &group.name, volume, &image)?;
    let mut client = match global.connect() {
        Err(failure) if failure.code == Code::NoDaemon => {
            edited.write()?;
            human::say(format!(
                "{} names the seed of {}/{volume} now; `landfall replica` makes use of it.",
                config.path.display(),
                group.name
            ));
            return Ok(());
        }
        client => client?,
    };
    edited.write()?;
    let request = OfVolume { group: group.name.clone(), volume: volume.to_owned() };
    let seeded = client.seed(request).map_err(|failure| match edited.undo() {
        Err(undo) => failure.next(undo.what),
        Ok(()) => failure,
    })?;
    human::answer(global.form(), &seeded, |seeded| {
        let mut text = format!(
            "{} has a seed: {}, {}. From the next sync span on, what it holds of the volume does not travel.\n\
             Protect the volume on the primary now, if it is not yet; `landfall status` says how much was saved.\n\
             Do not write to the seed meanwhile; when the copy is done it is not needed any more.\n",
            seeded.volume,
            seeded.seed.display(),
            Bytes(seeded.size_bytes),
        );
        if let Some(size) = seeded.volume_size_bytes.filter(|size| *size != seeded.size_bytes) {
            text.push_str(&format!("The volume has {}: is this its copy?\n", Bytes(size)));
        }
        text
    })
}

/// Whether the configuration has the volume already, with that disk.
fn named(group: &Group, volume: &str, disk: &Path) -> Result<bool, Failure> {
    let Some(known) = group.volumes.iter().find(|known| known.name == volume) else { return Ok(false) };
    let same = known.backing.as_deref().is_some_and(|path| real(path) == disk);
    if same && known.in_place {
        return Ok(true);
    }
    let what = match &known.backing {
        Some(path) => format!("its disk is {}", path.display()),
        None => "its disk lies in the data directory".to_owned(),
    };
    Err(Failure::refused(format_args!("group {} has a volume {volume} already; {what}", group.name))
        .next("give this one another name"))
}

fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The configuration with the volume, once its disk has been looked at.
fn add(
    config: &Config,
    group: &str,
    volume: &str,
    disk: &Path,
    size: Option<u64>,
) -> Result<Edited, Failure> {
    for other in &config.groups {
        let taken = other
            .volumes
            .iter()
            .find(|known| known.backing.as_deref().is_some_and(|path| real(path) == disk));
        if let Some(taken) = taken {
            let export = Config::export(&other.name, &taken.name);
            return Err(Failure::refused(format_args!(
                "{} is protected already, as {export}",
                disk.display()
            )));
        }
    }
    let len = length(disk)?;
    let size = size.unwrap_or(len);
    let name = disk.display();
    if size > len {
        return Err(Failure::refused(format_args!(
            "{name} has {}, which is less than the volume's {}",
            exact_bytes(len),
            exact_bytes(size)
        )));
    }
    if size == 0 || !size.is_multiple_of(UNIT_BYTES) {
        return Err(Failure::refused(format_args!(
            "{name} has {}: a volume is a multiple of {UNIT_BYTES} bytes",
            exact_bytes(size)
        ))
        .next("`--size` protects the first so many"));
    }
    Edited::with_volume(
        &config.path,
        &Addition { group, volume, size: exact_bytes(size).to_string(), backing: disk },
    )
}

/// The length of a disk that nobody else uses.
fn length(disk: &Path) -> Result<u64, Failure> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::refused(format_args!("{}: {error}", disk.display()));
    let kind = std::fs::metadata(disk).map_err(|error| refused(&error))?.file_type();
    if kind.is_file() {
        return std::fs::metadata(disk).map(|of| of.len()).map_err(|error| refused(&error));
    }
    if !kind.is_block_device() {
        return Err(refused(&"neither a file nor a block device"));
    }
    // The kernel lends a device for oneself only if it is neither mounted nor part of another one.
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(disk, flags, Mode::empty()).map_err(|error| match error {
        Errno::BUSY => Failure::refused(format_args!(
            "{} is in use: what is written to it past Landfall would not be replicated",
            disk.display()
        ))
        .next("unmount it first, and mount it through Landfall then"),
        other => refused(&other),
    })?;
    std::fs::File::from(file).seek(SeekFrom::End(0)).map_err(|error| refused(&error))
}

fn text(protected: &Protected) -> String {
    let Protected { export, size_bytes, replicas } = protected;
    let copied = match replicas {
        0 => "there is no replica to copy it to".to_owned(),
        1 => "its data is copied to 1 replica; once that has ended it can be recovered there".to_owned(),
        count => {
            format!("its data is copied to {count} replicas; once that has ended it can be recovered there")
        }
    };
    format!("{export} is protected, {}: {copied}\n", Bytes(*size_bytes))
}

fn connected(replica: &Replica) -> bool {
    replica.link.state == LinkState::Connected
}

/// Shows how the replicas come on until all that are connected are whole.
fn wait(client: &mut Client, group: &str, volume: &str) -> Result<(), Failure> {
    let mut progress: Option<(Progress, u64)> = None;
    let mut waits = false;
    loop {
        let status = client.status()?;
        let shown = status
            .groups
            .into_iter()
            .find(|shown| shown.name == group)
            .ok_or_else(|| Failure::failed(format_args!("group {group} is not served any more")))?;
        let replicas = &shown.replicas;
        let left: u64 =
            replicas.iter().filter_map(|replica| replica.catching_up).map(|lack| lack.bytes).sum();
        if let Some(stuck) = replicas
            .iter()
            .find(|replica| replica.catching_up.is_some_and(|lack| lack.state == CatchUp::NeedsCopy))
        {
            return Err(Failure::failed(format_args!("{} needs a copy of everything", stuck.name))
                .next(format_args!("`landfall resync {group} {}` allows it", stuck.name)));
        }
        if replicas.iter().all(|replica| replica.catching_up.is_none() && connected(replica)) {
            human::say(format!("{group}/{volume}: every replica is whole"));
            return Ok(());
        }
        let any = replicas.iter().any(connected);
        if !any && !waits {
            human::say(
                "no replica is connected: the copy waits for one. Ctrl-C ends the waiting, not the copy",
            );
        }
        waits = !any;
        let (bar, before) = progress.get_or_insert_with(|| (Progress::bytes("copying", left), left));
        bar.add(before.saturating_sub(left));
        *before = (*before).min(left);
        std::thread::sleep(LOOK_EVERY);
    }
}
