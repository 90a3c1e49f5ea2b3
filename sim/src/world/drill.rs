//! A drill: somebody has a point open with a copy that can be written, writes to it, and looks whether it shows what
//! was written there and nothing else.
//!
//! The copy is an array of bytes beside [`engine::changes`]. What is written goes to a disk of its own, so that a run
//! with a drill and one without it are the same but for the drill. That the point stays what it was is checked when it
//! is closed ([`World::unpin`]), and that replication goes on by everything else.

use super::guest::flatten;
use super::machine::Pin;
use super::{Ev, Result, World};
use crate::clock::Span;
use crate::disk::{Disk, Process};
use crate::options::Point;
use crate::reference::Image;
use crate::rng::{PPM, Rng};
use engine::changes::{Budget, Changes};
use engine::extents::BLOCK_BYTES;
use engine::guest::{Piece, Refusal};
use engine::io::{OpenMode, Storage};
use engine::node::Node;
use engine::read::Wait;
use engine::types::{Extent, Lsn, VolumeId};
use std::sync::Arc;

/// The longest write of a drill.
const MOST_BYTES: u64 = 4 * BLOCK_BYTES;
/// One drill in so many has a scratch disk that is soon full.
const TIGHT_IN: u64 = 4;

/// A drill under way.
pub(super) struct Drill {
    at: Lsn,
    rng: Rng,
    budget: Arc<Budget>,
    volumes: Vec<Changes>,
    expected: Image,
    every: Span,
    /// The files are there as long as it is.
    _process: Process,
}

fn below(node: &Node, volume: usize, at: Lsn, extent: Extent) -> std::result::Result<Vec<Piece>, Refusal> {
    match node.plan_point(VolumeId(volume as u32 + 1), at, extent) {
        Some(plan) => plan.read(Wait::Yes).map_err(|_| Refusal::Io),
        // The volume is defined later than this point.
        None => Ok(vec![Piece::Hole(extent.len)]),
    }
}

impl World {
    /// Opens a point for `span`, with a copy of it that is written to so many times.
    pub(super) fn start_drill(&mut self, machine: usize, at_ppm: u32, span: Span, writes: u32) -> Result {
        let Some(at) = self.choose(machine, Point::Share(at_ppm)) else { return Ok(()) };
        if self.machines[machine].live.as_ref().is_none_or(|live| live.drill.is_some()) {
            return Ok(());
        }
        self.pin(machine, at_ppm, span)?;
        let Some(mut expected) = self.read_point(machine, at)? else { return Ok(()) };
        let life = self.machines[machine].life;
        let mut rng = self.root.child(&format!("drill {machine} {life} {}", self.now().0));
        let limit = if rng.below(TIGHT_IN) == 0 { 8 * BLOCK_BYTES } else { u64::MAX };
        let budget = Arc::new(Budget::new(limit, Box::new(|| Ok(u64::MAX))));
        let disk = Disk::new(rng.child("disk"));
        let process = disk.start();
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        if !live.pins.iter().any(|pin: &Pin| pin.at == at) {
            return Ok(());
        }
        let mut volumes = Vec::new();
        let specs = live.node.specs_at(at);
        for (volume, image) in expected.iter_mut().enumerate() {
            let id = VolumeId(volume as u32 + 1);
            // A volume that is not defined here yet ends the list.
            let Some(spec) = specs.iter().find(|spec| spec.id == id) else { break };
            let made = process
                .open(&format!("scratch-{volume}"), OpenMode::Create)
                .and_then(|file| live.node.changes(id, spec.size, file, &budget));
            let Ok(changes) = made else { break };
            // It may have been longer at other points.
            image.truncate(spec.size as usize);
            volumes.push(changes);
        }
        let every = Span(span.0 / u64::from(writes.max(1)));
        live.drill = Some(Drill { at, rng, budget, volumes, expected, every, _process: process });
        self.queue.push(self.now() + every, Ev::Drill { machine, life });
        self.count("drills begun", 1);
        Ok(())
    }

    /// One write to the copy, and one look at it.
    pub(super) fn drill_on(&mut self, machine: usize, life: u64) -> Result {
        if self.machines[machine].life != life {
            return Ok(());
        }
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some(mut drill) = live.drill.take() else { return Ok(()) };
        let pin = live.pins.iter().find(|pin| pin.at == drill.at);
        let left = |pin: &Pin| live.node.reign_of(drill.at) != pin.reign;
        if pin.is_none_or(|pin| left(pin) || drill.at > live.node.durable().lsn) {
            // It was ended, or its point was set aside.
            return self.end_drill(machine, drill);
        }
        if drill.volumes.is_empty() {
            return Ok(());
        }
        let observing = self.machines[machine].disk.observe();
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let refused = drill.write(&live.node);
        let sound = drill.looks_right(&live.node);
        drop(observing);
        match refused {
            Some(Refusal::NoSpace) => self.count("drill writes without space", 1),
            Some(_) if self.machines[machine].is_excused() => return Ok(()),
            Some(refusal) => {
                let detail = format!("a write to a copy of LSN {} was refused: {refusal:?}", drill.at);
                return Err(self.broken("invariant_drills_keep_their_writes", machine, detail));
            }
            None => self.count("drill writes", 1),
        }
        match sound {
            Ok(()) => {}
            Err(_) if self.machines[machine].is_excused() => return Ok(()),
            Err(detail) => return Err(self.broken("invariant_drills_keep_their_writes", machine, detail)),
        }
        let every = drill.every;
        if let Some(live) = &mut self.machines[machine].live {
            live.drill = Some(drill);
        }
        self.queue.push(self.now() + every, Ev::Drill { machine, life });
        Ok(())
    }

    fn end_drill(&mut self, machine: usize, drill: Drill) -> Result {
        let Drill { at, budget, volumes, .. } = drill;
        drop(volumes);
        if budget.used_bytes() > 0 {
            let detail = format!("a drill at LSN {at} has ended, and {} bytes are held", budget.used_bytes());
            return Err(self.broken("invariant_drills_leave_nothing", machine, detail));
        }
        self.count("drills ended", 1);
        Ok(())
    }
}

impl Drill {
    /// Changes something, here and in the array.
    fn write(&mut self, node: &Node) -> Option<Refusal> {
        let volume = self.rng.below(self.volumes.len() as u64) as usize;
        let size = self.expected[volume].len() as u64;
        let offset = self.rng.below(size);
        let len = (1 + self.rng.below(MOST_BYTES)).min(size - offset);
        let extent = Extent::new(offset, len);
        let range = offset as usize..extent.end() as usize;
        let byte = 1 + self.rng.below(255) as u8;
        let zeros = self.rng.chance(PPM / 4);
        let (changes, at) = (&self.volumes[volume], self.at);
        let below = |extent| below(node, volume, at, extent);
        let done = match zeros {
            true => changes.zero(extent, self.rng.chance(PPM / 2), &below),
            false => changes.write(offset, &vec![byte; len as usize], &below),
        };
        match done {
            Ok(()) => self.expected[volume][range].fill(if zeros { 0 } else { byte }),
            Err(refusal) => {
                // Parts of it may be there: take over what is.
                if let Ok(pieces) = changes.read(extent, &below) {
                    self.expected[volume][range].copy_from_slice(&flatten(&pieces));
                }
                return Some(refusal);
            }
        }
        None
    }

    /// Compares a stretch.
    fn looks_right(&mut self, node: &Node) -> std::result::Result<(), String> {
        let volume = self.rng.below(self.volumes.len() as u64) as usize;
        let size = self.expected[volume].len() as u64;
        let offset = self.rng.below(size);
        let extent = Extent::new(offset, (8 * MOST_BYTES).min(size - offset));
        let at = self.at;
        let read = self.volumes[volume].read(extent, &|extent| below(node, volume, at, extent));
        let pieces =
            read.map_err(|refusal| format!("a copy of LSN {at} cannot be read at {extent:?}: {refusal:?}"))?;
        let expected = &self.expected[volume][offset as usize..extent.end() as usize];
        let seen = flatten(&pieces);
        match seen.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(first) => Err(format!(
                "a copy of LSN {at}, volume {volume}: byte {} is {}, written was {}",
                offset + first as u64,
                seen[first],
                expected[first]
            )),
        }
    }
}
