//! The sizes of volumes, which change while the group runs.
//!
//! - A size is changed by a record, so each point has the size that its LSN says. What a volume has more reads as zeros.
//! - Before a volume gets smaller, what it loses is logged as zeros: points before keep it, and a volume that grows again
//!   does not get it back from anywhere.
//! - A disk is made long enough, and what it gains zeros, durably, before the record that needs it is (or, on a replica,
//!   again at the next start). It is never cut shorter: what lies behind the
//!   volume's end is a hole, and points may still need a longer base image.
//!
//! If we die between the zeros and the record of a smaller size, the volume is as long as before, and its end is zeros: it
//! was asked to go.

use super::open::{Error, check_spec, io};
use super::primary::Submitted;
use super::{Node, Volume, disks};
use crate::event::{Kind, VolumeSpec};
use crate::guest::{Op, Request};
use crate::index::Source;
use crate::io::File;
use crate::log::Draft;
use crate::log::format::Header;
use crate::state::{Role, SizeBefore};
use crate::types::{Extent, Lsn, Now, Position, VolumeId};
use std::collections::BTreeMap;

/// Where a volume's size changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resized {
    /// From here on it has another one.
    pub(crate) at: Lsn,
    /// The size until then, in bytes.
    pub(crate) before: u64,
    /// If the record does not say that size, as the change was left out: then it has to be on record here.
    pub(crate) unsaid: Option<Unsaid>,
}

/// What a record leaves unsaid, as records before it were left out here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsaid {
    record: Position,
    /// The volume was no longer than this at some time in between: what it has behind it is zeros.
    kept: u64,
}

impl Unsaid {
    /// Of a record behind which a volume has `behind` bytes that was known to have `before`.
    fn of(header: &Header, before: u64, behind: u64) -> Option<Unsaid> {
        let said = (header.kind == Kind::Resize).then(|| sizes_of(header).0);
        let kept = said.map_or(behind, |said| said.min(behind));
        (said != Some(before)).then(|| Unsaid { record: position_of(header), kept })
    }

    /// What the volume lost.
    fn gone(self, before: u64) -> Option<Extent> {
        (self.kept < before).then(|| Extent::new(self.kept, before - self.kept))
    }
}

fn position_of(header: &Header) -> Position {
    Position { epoch: header.epoch, lsn: header.lsn, checksum: header.checksum }
}

/// What a record of kind [`Kind::Resize`] says: the size before it and behind it, in bytes.
pub(crate) fn sizes_of(header: &Header) -> (u64, u64) {
    (header.extent.offset, header.extent.len)
}

/// What a record of kind [`Kind::Resize`] adds to its volume, if it adds something.
pub(crate) fn gain_of(header: &Header) -> Option<Extent> {
    let (before, behind) = sizes_of(header);
    (behind > before).then(|| Extent::new(before, behind - before))
}

/// Takes the sizes of some volumes, and drops those that are not among them.
pub(crate) fn cut_specs(specs: &mut Vec<VolumeSpec>, kept: &[VolumeSpec]) {
    specs.retain_mut(|spec| match kept.iter().find(|kept| kept.id == spec.id) {
        Some(kept) => {
            spec.size = kept.size;
            true
        }
        None => false,
    });
}

impl Volume {
    /// Its size at a point, in bytes.
    pub(crate) fn size_at(&self, at: Lsn) -> u64 {
        self.resizes.iter().find(|resized| resized.at > at).map_or(self.spec.size, |resized| resized.before)
    }

    /// The largest that it is at any point.
    pub(crate) fn largest(&self) -> u64 {
        self.resizes.iter().map(|resized| resized.before).fold(self.spec.size, u64::max)
    }

    /// The log ends at `at` now.
    pub(super) fn cut(&mut self, at: Lsn) {
        self.spec.size = self.size_at(at);
        self.resizes.retain(|resized| resized.at <= at);
    }
}

/// Makes a disk or base image at least `size` bytes long, with nothing but zeros behind byte `from`, durably.
pub(super) fn lengthen(file: &dyn File, volume: &str, path: &str, from: u64, size: u64) -> Result<(), Error> {
    let len = file.len().map_err(io(path))?;
    if len < size {
        // That fails on a device, which is looked at below.
        let _ = file.set_len(size);
    }
    let len = file.len().map_err(io(path))?;
    if len < size {
        return Err(Error::BackingTooSmall { volume: volume.to_owned(), path: path.to_owned(), len, size });
    }
    if from < size {
        file.zero(from, size - from).map_err(io(path))?;
    }
    file.sync().map_err(io(path))
}

impl Node {
    /// The volumes as they are at `at`.
    #[must_use]
    pub fn specs_at(&self, at: Lsn) -> Vec<VolumeSpec> {
        if let Some(mark) = self.kept_mark(at) {
            return mark.volumes;
        }
        let defined = self.volumes_at(at);
        let volumes = self.volumes.iter().filter(|(id, _)| defined.contains(id));
        volumes.map(|(_, volume)| VolumeSpec { size: volume.size_at(at), ..volume.spec.clone() }).collect()
    }

    /// Drops what the volumes became behind `at`.
    pub(super) fn cut_volumes(&mut self, at: Lsn) {
        let defined = self.volumes_at(at);
        self.volumes.retain(|id, _| defined.contains(id));
        self.volumes.values_mut().for_each(|volume| volume.cut(at));
    }

    /// Makes the disks of a volume long enough. What stands behind its end is of no use to anybody, be it from before
    /// the volume was or of a branch; but a base image may hold there what points from before it got smaller need.
    fn lengthen_disks(&self, volume: &Volume, size: u64) -> Result<(), Error> {
        let path = disks::backing_path(&self.config, &volume.spec.name);
        if let Some(disk) = &volume.backing {
            lengthen(&**disk, &volume.spec.name, &path, volume.spec.size, size)?;
        }
        if let Some(base) = &volume.base {
            lengthen(&**base, &volume.spec.name, &path, volume.largest(), size)?;
        }
        Ok(())
    }

    /// Changes the size of a volume, durably. If it gets smaller no guest may be there, which the caller has looked at:
    /// what lies behind the new end is gone. One that has that size is no mistake.
    ///
    /// # Errors
    /// [`Error`]; the group goes on as it was. For [`Error::Busy`] it may be tried again.
    pub fn resize(&mut self, now: Now, name: &str, size: u64) -> Result<VolumeSpec, Error> {
        let not_now = |reason: String| Err(Error::NotNow { reason });
        if let Some(failed) = &self.failed {
            return not_now(failed.reason.clone());
        }
        if self.state.role != Role::Primary || self.drain.is_some() {
            return not_now(format!(
                "its role is {}; the size is changed on the primary",
                self.state.role.name()
            ));
        }
        if self.is_hydrating() {
            return not_now("its disks are still being filled after a failover".to_owned());
        }
        let Some(volume) = self.volumes.values().find(|volume| volume.spec.name == name) else {
            return Err(Error::BadVolume {
                volume: name.to_owned(),
                reason: "there is no such volume".to_owned(),
            });
        };
        let before = volume.spec.size;
        let spec = VolumeSpec { size, ..volume.spec.clone() };
        check_spec(&spec, 0)?;
        if size == before {
            return Ok(spec);
        }
        if size < before && self.work.must_rest(now, self.is_reading_at_rest()) {
            return Err(Error::Busy);
        }
        let volume = &self.volumes[&spec.id];
        self.lengthen_disks(volume, size)?;
        self.begin(now)?;
        if size < before && !planted!(KeepLostBytes) {
            self.zero_end(now, spec.id, Extent::new(size, before - size))?;
        }
        let draft = Draft {
            kind: Kind::Resize,
            flags: 0,
            volume: spec.id,
            extent: Extent::new(before, size),
            payload: &[],
        };
        let (appended, error) = self.log.append(now.wall, self.state.epoch(), &[draft]);
        if let Some(error) = error {
            self.log_refused(now, &error);
            return Err(Error::Append(error));
        }
        self.appended(now);
        let at = appended.first().map_or(self.log.tip().lsn, |record| record.header.lsn);
        self.take_size(spec.id, at, size, None);
        if size > before {
            // Whoever is away may hold there what the volume lost when it was that long before.
            self.note_change(spec.id, Extent::new(before, size - before));
        }
        self.sync_now(now).map_err(|reason| Error::NotNow { reason })?;
        tracing::info!(group = %self.config.name, volume = spec.name, before, size, %at, "a volume was resized");
        Ok(spec)
    }

    /// What a volume is about to lose is zeros first.
    fn zero_end(&mut self, now: Now, id: VolumeId, extent: Extent) -> Result<(), Error> {
        let request = Request { cookie: 0, op: Op::Zero { extent, no_hole: false }, fua: false };
        let (mut requests, mut out) = (vec![request], Submitted::default());
        self.submit(now, id, &mut requests, &mut out);
        match out.ready.pop().map(|completion| completion.result) {
            Some(Ok(_)) => Ok(()),
            // It would have to wait for room in the log.
            None if out.stalled => Err(Error::Busy),
            Some(Err(_)) | None => {
                Err(Error::NotNow { reason: "the end of the volume could not be made zeros".to_owned() })
            }
        }
    }

    fn take_size(&mut self, id: VolumeId, at: Lsn, size: u64, unsaid: Option<Unsaid>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if !planted!(ForgetSize) {
            volume.resizes.push(Resized { at, before: volume.spec.size, unsaid });
        }
        volume.spec.size = size;
    }

    /// The sizes that no record up to `durable` says, and that a point may still have.
    pub(super) fn sizes_on_record(&self, durable: Lsn) -> Vec<SizeBefore> {
        let wanted = self.state.base..=durable;
        let of = |(&volume, known): (&VolumeId, &Volume)| {
            let within = known.resizes.iter().filter(|resized| wanted.contains(&resized.at));
            let size = |&Resized { before, unsaid, .. }: &Resized| {
                unsaid.map(|Unsaid { record, kept }| SizeBefore { volume, at: record, before, kept })
            };
            within.filter_map(size).collect::<Vec<_>>()
        };
        self.volumes.iter().flat_map(of).collect()
    }

    /// A primary has changed the size of a volume, or repeats a definition with another size: the change was left out
    /// here, and with it that what the volume lost is zeros.
    pub(super) fn follow_resize(&mut self, header: &Header, size: u64) -> Result<(), String> {
        let Header { volume: id, lsn: at, .. } = *header;
        let Some(volume) = self.volumes.get(&id) else { return Ok(()) };
        let before = volume.spec.size;
        let unsaid = Unsaid::of(header, before, size);
        if volume.spec.size == size {
            return Ok(());
        }
        check_spec(&VolumeSpec { size, ..volume.spec.clone() }, 0).map_err(|error| error.to_string())?;
        // A base image that is long already stays so: what it has there is zeros, or of older points.
        self.lengthen_disks(volume, size).map_err(|error| error.to_string())?;
        tracing::info!(group = %self.config.name, volume = volume.spec.name, size, %at, "a volume has another size");
        if let (Some(index), Some(gone)) = (&mut self.index, unsaid.and_then(|unsaid| unsaid.gone(before))) {
            index.insert(id, at, gone, Source::Zero);
        }
        self.take_size(id, at, size, unsaid);
        Ok(())
    }
}

/// The sizes of volumes, as a log is read by its headers.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    resizes: BTreeMap<VolumeId, Vec<Resized>>,
}

impl Sizes {
    /// A size changed at a record, which may be one of those `on_record`; `known` is what it was and is otherwise. Returns
    /// what is zeros behind the record though no record says so.
    pub(super) fn note(
        &mut self,
        header: &Header,
        on_record: &[SizeBefore],
        known: Option<(u64, u64)>,
    ) -> Option<Extent> {
        let record = position_of(header);
        let found = on_record.iter().find(|size| size.volume == header.volume && size.at == record);
        let (before, unsaid) = match (found, known) {
            (Some(&SizeBefore { before, kept, .. }), _) => (before, Some(Unsaid { record, kept })),
            (None, Some((before, behind))) => (before, Unsaid::of(header, before, behind)),
            (None, None) => return None,
        };
        self.resizes.entry(header.volume).or_default().push(Resized { at: header.lsn, before, unsaid });
        unsaid?.gone(before)
    }

    /// Of one volume, oldest first.
    pub(super) fn take(&mut self, id: VolumeId) -> Vec<Resized> {
        self.resizes.remove(&id).unwrap_or_default()
    }
}
