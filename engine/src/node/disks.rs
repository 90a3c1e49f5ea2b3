//! The files of a group's volumes: the plain disks of a primary, the base images of a replica.
//!
//! - A new volume begins on a disk that is empty, which is looked at before anything of it is made, or with what its disk
//!   holds; nothing that was there before is written over.
//! - A file whose making is not on record yet may be there or not, whatever ended the last opening; one that is on
//!   record has to be there, and no new one is made in its place.
//! - A disk is only emptied if all that it holds stands in records of a branch.
//! - A file is synced, and then its name, before anything depends on either.

use super::config::{Begins, Config, Start};
use super::open::{Error, check_spec, io};
use crate::event::VolumeSpec;
use crate::io::{File, OpenMode, Storage, make_dir};
use crate::read::is_zero;
use crate::state::{Keeps, State};
use crate::types::VolumeId;
use std::io::ErrorKind;
use std::sync::Arc;

/// Where a volume's plain disk is.
pub(super) fn backing_path(config: &Config, volume: &str) -> String {
    config.backings.get(volume).cloned().unwrap_or_else(|| format!("{}/volumes/{volume}.img", config.dir))
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(dir, _)| if dir.is_empty() { "/" } else { dir })
}

/// Checked before anything of a new group is made, so that a mistake leaves nothing behind.
pub(super) fn check_new_backings(storage: &dyn Storage, config: &Config) -> Result<(), Error> {
    let Start::Primary { volumes, .. } = &config.start else { return Ok(()) };
    for (others, volume) in volumes.iter().enumerate() {
        let spec = VolumeSpec { id: VolumeId(1), name: volume.name.clone(), size: volume.size };
        check_spec(&spec, others)?;
        if volume.begins == Begins::InPlace {
            open_in_place(storage, config, &spec)?;
            continue;
        }
        check_new_backing(storage, config, &spec)?;
    }
    Ok(())
}

pub(super) fn check_new_backing(
    storage: &dyn Storage,
    config: &Config,
    spec: &VolumeSpec,
) -> Result<(), Error> {
    let path = backing_path(config, &spec.name);
    match storage.open(&path, OpenMode::Read) {
        Ok(file) => check_empty(&*file, &path, spec),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(&path)(error)),
    }
}

fn check_empty(file: &dyn File, path: &str, spec: &VolumeSpec) -> Result<(), Error> {
    let len = file.len().map_err(io(path))?;
    if len != 0 && len < spec.size {
        let (volume, path) = (spec.name.clone(), path.to_owned());
        return Err(Error::BackingTooSmall { volume, path, len, size: spec.size });
    }
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Some((start, end)) = file.next_data(at).map_err(io(path))? {
        let mut offset = start;
        while offset < end.min(spec.size) {
            let part = (end.min(spec.size) - offset).min(buffer.len() as u64) as usize;
            file.read_at(&mut buffer[..part], offset).map_err(io(path))?;
            if !is_zero(&buffer[..part]) {
                let skip = buffer[..part].iter().position(|&byte| byte != 0).unwrap_or(0);
                let (volume, path) = (spec.name.clone(), path.to_owned());
                return Err(Error::BackingNotEmpty { volume, path, offset: offset + skip as u64 });
            }
            offset += part as u64;
        }
        if end >= spec.size {
            break;
        }
        at = end;
    }
    Ok(())
}

/// Makes or takes an empty plain disk for a new volume.
pub(super) fn make_backing(
    storage: &dyn Storage,
    path: &str,
    spec: &VolumeSpec,
) -> Result<Arc<dyn File>, Error> {
    let dir = dir_of(path);
    make_dir(storage, dir).map_err(io(dir))?;
    let file = match storage.open(path, OpenMode::Create) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let file = storage.open(path, OpenMode::Write).map_err(io(path))?;
            check_empty(&*file, path, spec)?;
            file
        }
        Err(error) => return Err(io(path)(error)),
    };
    if file.len().map_err(io(path))? < spec.size {
        file.set_len(spec.size).map_err(io(path))?;
    }
    file.sync().map_err(io(path))?;
    storage.sync_dir(dir).map_err(io(dir))?;
    Ok(file)
}

/// The disk of a volume that is protected where it is.
pub(super) fn open_in_place(
    storage: &dyn Storage,
    config: &Config,
    spec: &VolumeSpec,
) -> Result<Arc<dyn File>, Error> {
    match open_backing(storage, config, spec) {
        Err(Error::BackingMissing { volume, path }) => Err(Error::NothingThere { volume, path }),
        opened => opened,
    }
}

pub(super) fn open_backing(
    storage: &dyn Storage,
    config: &Config,
    spec: &VolumeSpec,
) -> Result<Arc<dyn File>, Error> {
    let path = backing_path(config, &spec.name);
    let file = match storage.open(&path, OpenMode::Write) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::BackingMissing { volume: spec.name.clone(), path });
        }
        opened => opened.map_err(io(&path))?,
    };
    let len = file.len().map_err(io(&path))?;
    if len < spec.size {
        return Err(Error::BackingTooSmall { volume: spec.name.clone(), path, len, size: spec.size });
    }
    Ok(file)
}

/// The disk that a promoted node fills: whatever it held is overwritten.
pub(super) fn make_target(
    storage: &dyn Storage,
    path: &str,
    spec: &VolumeSpec,
) -> Result<Arc<dyn File>, Error> {
    let dir = dir_of(path);
    make_dir(storage, dir).map_err(io(dir))?;
    let file = match storage.open(path, OpenMode::Write) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            storage.open(path, OpenMode::Create).map_err(io(path))?
        }
        opened => opened.map_err(io(path))?,
    };
    if file.len().map_err(io(path))? < spec.size {
        file.set_len(spec.size).map_err(io(path))?;
    }
    file.sync().map_err(io(path))?;
    storage.sync_dir(dir).map_err(io(dir))?;
    Ok(file)
}

/// The plain disk of a new volume.
pub(super) fn make_disk(
    storage: &dyn Storage,
    config: &Config,
    state: &State,
    spec: &VolumeSpec,
) -> Result<Arc<dyn File>, Error> {
    let path = backing_path(config, &spec.name);
    if state.stale_disks.contains(&spec.name) {
        clear(storage, &path)?;
    }
    make_backing(storage, &path, spec)
}

/// Empties a disk or base image that holds only what a branch has written since it defined the volume: its records have
/// all of it.
fn clear(storage: &dyn Storage, path: &str) -> Result<(), Error> {
    match storage.open(path, OpenMode::Write) {
        Ok(file) => {
            let len = file.len().map_err(io(path))?;
            file.zero(0, len).and_then(|()| file.sync()).map_err(io(path))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(path)(error)),
    }
}

/// Opens what a node keeps of a volume for its points, by where it keeps it.
pub(super) fn open_kept(
    storage: &dyn Storage,
    config: &Config,
    state: &State,
    spec: &VolumeSpec,
    presence: Presence,
) -> Result<Option<Arc<dyn File>>, Error> {
    let file = match (state.keeps(), presence) {
        (Keeps::Nothing, _) => return Ok(None),
        (Keeps::Images, presence) => {
            if presence == Presence::Any && state.stale_disks.contains(&spec.name) {
                clear(storage, &base_path(&config.dir, spec))?;
            }
            open_base(storage, &config.dir, spec, presence)?
        }
        (Keeps::Disks, Presence::Expected) => open_backing(storage, config, spec)?,
        (Keeps::Disks, Presence::Any) => make_disk(storage, config, state, spec)?,
    };
    Ok(Some(file))
}

/// Whether a base image may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// The state on record knows the volume, so its image was made long ago.
    Expected,
    /// The volume is new; its image is made if it is not there.
    Any,
}

fn base_path(group_dir: &str, spec: &VolumeSpec) -> String {
    format!("{group_dir}/base/{}.img", spec.name)
}

/// The base image of a volume.
pub(super) fn open_base(
    storage: &dyn Storage,
    group_dir: &str,
    spec: &VolumeSpec,
    presence: Presence,
) -> Result<Arc<dyn File>, Error> {
    let dir = format!("{group_dir}/base");
    let path = base_path(group_dir, spec);
    make_dir(storage, &dir).map_err(io(&dir))?;
    let file = match storage.open(&path, OpenMode::Write) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if presence == Presence::Expected {
                return Err(Error::BackingMissing { volume: spec.name.clone(), path });
            }
            storage.open(&path, OpenMode::Create).map_err(io(&path))?
        }
        opened => opened.map_err(io(&path))?,
    };
    if file.len().map_err(io(&path))? < spec.size {
        file.set_len(spec.size).map_err(io(&path))?;
        file.sync().map_err(io(&path))?;
    }
    if presence == Presence::Any {
        // Also if it was there: whoever made it may have died, or failed, before its name was durable, and from here on
        // the image is expected.
        storage.sync_dir(&dir).map_err(io(&dir))?;
    }
    Ok(file)
}
