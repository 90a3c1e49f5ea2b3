//! Kept marks: points that outlive the window in which every write is one.
//!
//! The base images stand at one LSN and move on. Before a fold overwrites an extent of them, what it holds is put into the
//! file of the newest kept mark, its *layer*, if that does not have it yet. So a kept mark shows, of each extent, what the
//! first layer has that is as old as the mark or newer; what none of them has, the base image holds still.
//!
//! Invariants:
//! - a mark is kept by folding up to exactly its LSN first: from then on the base images differ from it by what its layer
//!   and the newer ones have;
//! - an extent of a base image is overwritten only once the newest layer has what it held, durably; a layer only grows,
//!   and a mark's layer is given up only once the next older one has what only that had;
//! - a read that found an extent in the base image looks again afterwards: if a layer has it by now, that is what counts.
//!
//! A kept mark costs what was overwritten between it and the next: memory of about 40 bytes for each stretch, and disk.
//! It is never a reason for replication to stop: if its file cannot be written, kept marks are given up, oldest first.

mod layer;

pub use layer::KeptMark;
pub(crate) use layer::Layer;

use crate::guest::{Piece, Stretch};
use crate::io::{File, Storage};
use crate::read::is_zero;
use crate::state::Kept;
use crate::types::{Extent, Lsn, VolumeId};
use layer::{Entry, MAX_ENTRY_BYTES};
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// The most marks that are kept at a time: the state has room for them.
pub const MAX_KEPT: usize = 256;
/// The most stretches in the answer to one status request.
const MAX_STRETCHES: usize = 1024;

/// The kept marks of a node, oldest first. Shared with the reads of points and with the job that folds.
#[derive(Default)]
pub(crate) struct KeptMarks {
    layers: Mutex<Vec<Arc<Layer>>>,
}

/// Where a part of a volume stands at a kept mark.
#[derive(Clone)]
enum Source {
    Base,
    Zeros,
    Layer(Arc<Layer>, Entry),
}

impl KeptMarks {
    /// Opens those that the state names, and removes files that it does not. Returns those that could be opened: of a
    /// layer that is damaged nobody knows what it had, so with it go all that are older.
    ///
    /// # Errors
    /// Of the storage, but for a damaged or missing file.
    pub(crate) fn open(
        storage: &dyn Storage,
        group_dir: &str,
        kept: &[Kept],
    ) -> Result<(KeptMarks, Vec<Kept>)> {
        let mut layers = Vec::new();
        let mut whole = Vec::new();
        for &Kept { at, number, bytes } in kept.iter().rev() {
            match Layer::open(storage, group_dir, number, bytes) {
                Ok(layer) if layer.mark().at == at => layers.push(Arc::new(layer)),
                Ok(_) => break,
                Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {
                    tracing::warn!(
                        %error, %at, "a kept mark is damaged: it and those before it are given up"
                    );
                    break;
                }
                Err(error) => return Err(error),
            }
            whole.push(Kept { at, number, bytes });
        }
        layers.reverse();
        whole.reverse();
        remove_others(storage, group_dir, &whole)?;
        Ok((KeptMarks { layers: Mutex::new(layers) }, whole))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Layer>>> {
        self.layers.lock().expect("no holder of the lock panics")
    }

    /// All of them.
    pub(crate) fn marks(&self) -> Vec<(KeptMark, u64)> {
        self.lock().iter().map(|layer| (layer.mark().clone(), layer.bytes())).collect()
    }

    /// Whether it is one of them.
    pub(crate) fn contains(&self, at: Lsn) -> bool {
        self.lock().iter().any(|layer| layer.mark().at == at)
    }

    /// One of them.
    pub(crate) fn find(&self, at: Lsn) -> Option<KeptMark> {
        self.lock().iter().find(|layer| layer.mark().at == at).map(|layer| layer.mark().clone())
    }

    /// The newest that is not newer than `upto`.
    pub(crate) fn newest(&self, upto: Lsn) -> Option<Arc<Layer>> {
        self.lock().iter().rev().find(|layer| layer.mark().at <= upto).cloned()
    }

    /// The newest one before `at`, and that at `at`.
    pub(crate) fn pair(&self, at: Lsn) -> Option<(Option<Arc<Layer>>, Arc<Layer>)> {
        let layers = self.lock();
        let index = layers.iter().position(|layer| layer.mark().at == at)?;
        let before = index.checked_sub(1).map(|before| layers[before].clone());
        Some((before, layers[index].clone()))
    }

    pub(crate) fn push(&self, layer: Layer) {
        self.lock().push(Arc::new(layer));
    }

    /// Keeps those that the state names.
    pub(crate) fn retain(&self, kept: &[Kept]) {
        self.lock().retain(|layer| kept.iter().any(|kept| kept.number == layer.number()));
    }

    /// The bytes of an extent of a volume at a kept mark; `base` is its base image.
    ///
    /// # Errors
    /// Of the files; `InvalidData` if what is kept is damaged, or the mark was given up meanwhile.
    pub(crate) fn read(
        &self,
        at: Lsn,
        volume: VolumeId,
        extent: Extent,
        base: &dyn File,
    ) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for (part, source) in self.resolve(at, volume, extent)? {
            match source {
                Source::Zeros => pieces.push(Piece::Hole(part.len)),
                Source::Layer(layer, entry) => pieces.push(Piece::Bytes(layer.read(entry, part.len)?)),
                Source::Base => {
                    let mut bytes = vec![0; part.len as usize];
                    base.read_at(&mut bytes, part.offset)?;
                    // A fold may have come between; what it overwrites is in a layer before it does.
                    let again = self.resolve(at, volume, part)?;
                    let mut from = 0;
                    for (part, source) in again {
                        let to = from + part.len as usize;
                        match source {
                            Source::Base => {}
                            Source::Zeros => bytes[from..to].fill(0),
                            Source::Layer(layer, entry) => {
                                bytes[from..to].copy_from_slice(&layer.read(entry, part.len)?);
                            }
                        }
                        from = to;
                    }
                    pieces.push(crate::read::piece(bytes.into()));
                }
            }
        }
        Ok(pieces)
    }

    /// Which parts are holes; may end before the extent does.
    ///
    /// # Errors
    /// As [`KeptMarks::read`].
    pub(crate) fn status(
        &self,
        at: Lsn,
        volume: VolumeId,
        extent: Extent,
        base: &dyn File,
    ) -> Result<Vec<Stretch>> {
        let mut stretches = Vec::new();
        for (part, source) in self.resolve(at, volume, extent)? {
            match source {
                Source::Zeros => stretches.push(Stretch { len: part.len, hole: true }),
                Source::Layer(..) => stretches.push(Stretch { len: part.len, hole: false }),
                Source::Base => {
                    let mut found = Vec::new();
                    let mut from = part.offset;
                    while from < part.end() && stretches.len() + found.len() < MAX_STRETCHES {
                        let (start, end) = base.next_data(from)?.unwrap_or((part.end(), part.end()));
                        let (start, end) = (start.clamp(from, part.end()), end.clamp(from, part.end()));
                        found.extend([(start - from, true), (end - start, false)]);
                        from = end;
                    }
                    // What a fold has overwritten meanwhile may have been data.
                    let moved = self
                        .resolve(at, volume, part)?
                        .iter()
                        .any(|(_, source)| !matches!(source, Source::Base));
                    if moved {
                        stretches.push(Stretch { len: part.len, hole: false });
                        continue;
                    }
                    let told = found.into_iter().filter(|(len, _)| *len > 0);
                    stretches.extend(told.map(|(len, hole)| Stretch { len, hole }));
                    if from < part.end() {
                        return Ok(stretches);
                    }
                }
            }
            if stretches.len() >= MAX_STRETCHES {
                break;
            }
        }
        Ok(stretches)
    }

    fn resolve(&self, at: Lsn, volume: VolumeId, extent: Extent) -> Result<Vec<(Extent, Source)>> {
        let layers: Vec<Arc<Layer>> =
            self.lock().iter().skip_while(|layer| layer.mark().at != at).cloned().collect();
        if layers.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("the mark at LSN {at} is not kept any more"),
            ));
        }
        let mut parts = vec![(extent, Source::Base)];
        for layer in layers {
            let mut next = Vec::with_capacity(parts.len());
            for (part, source) in parts {
                if !matches!(source, Source::Base) {
                    next.push((part, source));
                    continue;
                }
                for (part, entry) in layer.find(volume, part) {
                    let source = match entry {
                        None => Source::Base,
                        Some(entry) if entry.is_zeros() => Source::Zeros,
                        Some(entry) => Source::Layer(layer.clone(), entry),
                    };
                    next.push((part, source));
                }
            }
            parts = next;
        }
        Ok(parts)
    }
}

/// Puts into a layer what a base image holds where it is about to be overwritten, as far as the layer lacks it.
///
/// # Errors
/// Of the files.
pub(crate) fn save(layer: &Layer, volume: VolumeId, extent: Extent, base: &dyn File) -> Result<()> {
    for part in layer.missing(volume, extent) {
        let mut at = part.offset;
        while at < part.end() {
            let (start, end) = base.next_data(at)?.unwrap_or((part.end(), part.end()));
            let (start, end) = (start.clamp(at, part.end()), end.clamp(at, part.end()));
            if start > at {
                layer.put(volume, Extent::new(at, start - at), None)?;
            }
            let mut offset = start;
            while offset < end {
                let piece = Extent::new(offset, (end - offset).min(MAX_ENTRY_BYTES));
                let mut bytes = vec![0; piece.len as usize];
                base.read_at(&mut bytes, piece.offset)?;
                let data = Some(&bytes[..]).filter(|bytes| !is_zero(bytes));
                layer.put(volume, piece, data)?;
                offset = piece.end();
            }
            at = end;
        }
    }
    Ok(())
}

/// Puts into a layer what only the next newer one has, `budget` bytes at the most. Returns whether that was all.
///
/// # Errors
/// Of the files.
pub(crate) fn merge(from: &Layer, into: &Layer, mut budget: u64) -> Result<bool> {
    for (volume, extent, _) in from.stretches() {
        for part in into.missing(volume, extent) {
            // Its own parts, as it may have put a stretch together from several.
            for (part, entry) in from.find(volume, part) {
                let Some(entry) = entry else { continue };
                let data = match entry.is_zeros() {
                    true => None,
                    false => Some(from.read(entry, part.len)?),
                };
                if data.as_ref().is_some_and(|data| data.len() as u64 > budget) {
                    return Ok(false);
                }
                budget -= data.as_ref().map_or(0, |data| data.len() as u64);
                into.put(volume, part, data.as_deref())?;
            }
        }
    }
    Ok(true)
}

/// Removes the files that the state does not name.
///
/// # Errors
/// Of the storage.
pub(crate) fn remove_others(storage: &dyn Storage, group_dir: &str, kept: &[Kept]) -> Result<()> {
    let dir = layer::dir(group_dir);
    let names = match storage.list(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        let is_named = name.parse().is_ok_and(|number: u64| kept.iter().any(|kept| kept.number == number));
        if !is_named {
            storage.remove(&format!("{dir}/{name}"))?;
        }
    }
    Ok(())
}
