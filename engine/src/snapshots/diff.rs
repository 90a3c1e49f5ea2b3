//! What differs between two snapshots, told by their manifests alone: no block is read.
//!
//! Two blocks are taken for the same if they have one digest: for accidents that is certain enough; somebody who makes two
//! contents with one digest on purpose can hide his change from this, and from this alone.

use super::manifest::{Entry, Manifest};
use super::{BLOCK, Error};
use crate::types::Extent;

/// How a volume differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The volume.
    pub name: String,
    /// Its size in the first, if it was there.
    pub size_before: Option<u64>,
    /// Its size in the second, if it is there.
    pub size_after: Option<u64>,
    /// Whole blocks that differ, in order, those that touch as one, within the larger size. What is only in one of them
    /// and is all zeros does not differ.
    pub ranges: Vec<Extent>,
}

/// How the volumes of `after` differ from those of `before`, in the order of `after`, and then those that are gone.
///
/// # Errors
/// Of the storage, or a manifest is damaged.
pub fn diff(before: &Manifest, after: &Manifest) -> Result<Vec<Change>, Error> {
    let index = |of: &Manifest, name: &str| of.volumes.iter().position(|volume| volume.name == name);
    let names = after.volumes.iter().map(|volume| &volume.name);
    let gone = before.volumes.iter().map(|volume| &volume.name).filter(|name| index(after, name).is_none());
    let mut changes = Vec::new();
    for name in names.chain(gone) {
        let side = |of: &Manifest| -> Result<(Option<u64>, Vec<Entry>), Error> {
            match index(of, name) {
                Some(index) => Ok((Some(of.volumes[index].size), of.entries(index)?)),
                None => Ok((None, Vec::new())),
            }
        };
        let ((size_before, old), (size_after, new)) = (side(before)?, side(after)?);
        let size = size_before.max(size_after).unwrap_or(0);
        changes.push(Change {
            name: name.clone(),
            size_before,
            size_after,
            ranges: ranges(&old, &new, size),
        });
    }
    Ok(changes)
}

fn ranges(old: &[Entry], new: &[Entry], size: u64) -> Vec<Extent> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut ranges: Vec<Extent> = Vec::new();
    loop {
        let block = match (old.peek(), new.peek()) {
            (None, None) => return ranges,
            (one, other) => one.into_iter().chain(other).map(|entry| entry.block).min().unwrap_or_default(),
        };
        let one = old.next_if(|entry| entry.block == block).map(|entry| entry.digest);
        let other = new.next_if(|entry| entry.block == block).map(|entry| entry.digest);
        if one == other {
            continue;
        }
        let offset = u64::from(block) * BLOCK;
        let len = BLOCK.min(size - offset);
        match ranges.last_mut() {
            Some(last) if last.end() == offset => *last = Extent::new(last.offset, last.len + len),
            _ => ranges.push(Extent::new(offset, len)),
        }
    }
}
