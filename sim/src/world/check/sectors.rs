//! Guarantees 1 and 5 on the platter: each sector of a backing or of a base image is of a state that it may hold.

use super::super::{DIR, Result, World};
use crate::ledger::{Key, Timeline, key};
use crate::reference::{Effect, Image, Operation};
use crate::workload::Alignment;
use engine::types::Lsn;
use std::collections::BTreeMap;

/// Bytes of a sector.
const SECTOR: usize = 512;
/// An empty one.
const ZEROS: [u8; SECTOR] = [0; SECTOR];

impl World {
    /// Guarantee 1: each sector of a backing device holds a state of the durable log.
    pub(in crate::world) fn invariant_write_ahead(&self, machine: usize, own: Key, upto: Lsn) -> Result {
        let m = &self.machines[machine];
        if m.is_excused() || m.odd_base || self.is_rewritten() {
            return Ok(());
        }
        let mut backings = self.images(machine, "volumes");
        // What stands behind a volume's end is nobody's.
        for (volume, bytes) in backings.iter_mut().enumerate() {
            let end = self.timelines[&own].size_at(upto, volume) as usize;
            bytes[end..].fill(0);
        }
        match self.stray_sectors(&self.timelines[&own], upto, &backings).first() {
            None => Ok(()),
            Some((volume, sector)) => {
                let detail = format!(
                    "volume {volume}, sector {sector}: the backing holds what is in no state up to LSN {upto}"
                );
                Err(self.broken("invariant_write_ahead", machine, detail))
            }
        }
    }

    /// Guarantee 5: a base image holds nothing above the horizon that is durably on record.
    pub(in crate::world) fn invariant_retired_before_folded(&self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(live) = &m.live else { return Ok(()) };
        let node = &live.node;
        let Some(timeline) = node.history().last().and_then(|reign| self.timelines.get(&key(reign))) else {
            return Ok(());
        };
        if m.is_excused() || m.odd_base || !live.bulk.is_idle() || self.is_rewritten() {
            return Ok(());
        }
        let horizon = node.state().horizon;
        let bases = self.images(machine, "base");
        match self.stray_sectors(timeline, horizon, &bases).first() {
            None => Ok(()),
            Some((volume, sector)) => {
                let detail = format!(
                    "volume {volume}, sector {sector}: the base image is beyond the horizon at LSN {horizon}"
                );
                Err(self.broken("invariant_retired_before_folded", machine, detail))
            }
        }
    }

    /// The plain files of all volumes in a folder, padded to the volumes' sizes.
    fn images(&self, machine: usize, folder: &str) -> Image {
        self.lengths()
            .iter()
            .enumerate()
            .map(|(index, size)| {
                let path = format!("{DIR}/{folder}/v{index}.img");
                let mut bytes = self.machines[machine].disk.peek(&path).unwrap_or_default();
                bytes.resize(*size as usize, 0);
                bytes
            })
            .collect()
    }

    /// The sectors that are in none of the states up to an LSN.
    fn stray_sectors(&self, timeline: &Timeline, upto: Lsn, found: &Image) -> Vec<(usize, u64)> {
        let whole = |(_, entry): (_, &crate::ledger::Entry)| entry.operation.is_aligned();
        let first = self.first_image();
        match timeline.range(..=upto).all(whole) {
            true => Self::stray_whole_sectors(timeline, upto, &first, found),
            false => self.stray_pieces(timeline, upto, first, found),
        }
    }

    /// [`World::stray_sectors`] where guests write whole sectors: what a sector has ever held is what it began with,
    /// zeros, and what each operation on it left there. The newest operations explain the most, so they come first.
    fn stray_whole_sectors(
        timeline: &Timeline,
        upto: Lsn,
        first: &Image,
        found: &Image,
    ) -> Vec<(usize, u64)> {
        let is_stray = |(is, was): (&[u8], &[u8])| is != &ZEROS[..is.len()] && is != was;
        let of_volume = |(is, was): (&Vec<u8>, &Vec<u8>)| {
            is.chunks(SECTOR).zip(was.chunks(SECTOR)).map(is_stray).collect()
        };
        let mut stray: Vec<Vec<bool>> = found.iter().zip(first).map(of_volume).collect();
        let mut left: usize = stray.iter().flatten().filter(|stray| **stray).count();
        for (_, entry) in timeline.range(..=upto).rev() {
            if left == 0 {
                break;
            }
            let Operation { volume, offset, effect } = &entry.operation;
            // Zeros explain nothing that is not explained from the beginning.
            let Effect::Write(data) = effect else { continue };
            let first = *offset as usize / SECTOR;
            for (sector, data) in data.chunks(SECTOR).enumerate() {
                let sector = first + sector;
                if stray[*volume][sector] && found[*volume][sector * SECTOR..][..SECTOR] == *data {
                    stray[*volume][sector] = false;
                    left -= 1;
                }
            }
        }
        let of_volume = |(volume, stray): (usize, Vec<bool>)| {
            stray.into_iter().enumerate().filter(|(_, stray)| *stray).map(move |(at, _)| (volume, at as u64))
        };
        stray.into_iter().enumerate().flat_map(of_volume).collect()
    }

    /// [`World::stray_sectors`] where guests write less than sectors: two pieces of one sector may be applied by
    /// halves (and are applied again), so each byte has to be of some state.
    fn stray_pieces(&self, timeline: &Timeline, upto: Lsn, first: Image, found: &Image) -> Vec<(usize, u64)> {
        let by_bytes = self.options.workload.alignment == Alignment::Bytes;
        let mut stray: BTreeMap<(usize, u64), Vec<bool>> = BTreeMap::new();
        for (volume, bytes) in found.iter().enumerate() {
            for (sector, bytes) in bytes.chunks(512).enumerate() {
                let was = &first[volume][sector * SECTOR..][..bytes.len()];
                if bytes.iter().any(|byte| *byte != 0) && bytes != was {
                    let begun = |(byte, was): (&u8, &u8)| by_bytes && (*byte == 0 || byte == was);
                    let begun = bytes.iter().zip(was).map(begun).collect();
                    stray.insert((volume, sector as u64), begun);
                }
            }
        }
        let mut image = first;
        for (_, entry) in timeline.range(..=upto) {
            if stray.is_empty() {
                break;
            }
            let operation = &entry.operation;
            let sectors = operation.offset / 512..(operation.offset + operation.len()).div_ceil(512);
            // A sector that is looked for has been so from the start: what touches none of them can be left out.
            let place = |sector: u64| (operation.volume, sector);
            if stray.range(place(sectors.start)..place(sectors.end)).next().is_none() {
                continue;
            }
            operation.apply(&mut image);
            for sector in sectors {
                let place = (operation.volume, sector);
                let Some(explained) = stray.get_mut(&place) else { continue };
                let start = sector as usize * 512;
                let range = start..start + explained.len();
                let (is, has) = (&image[operation.volume][range.clone()], &found[operation.volume][range]);
                if by_bytes {
                    explained.iter_mut().zip(is.iter().zip(has)).for_each(|(byte, (a, b))| *byte |= a == b);
                }
                if is == has || by_bytes && explained.iter().all(|byte| *byte) {
                    stray.remove(&place);
                }
            }
        }
        stray.into_keys().collect()
    }
}
