//! Guarantees 4 and 5: what a node serves, now and at its points, is the state at an LSN, bit for bit.
//!
//! - A [`Look::Whole`] reads whole volumes: at openings, promotions and the end, and at drawn moments in between.
//! - A [`Look::Changed`] reads what was written since the place was last compared; only a run's own bug could have
//!   changed the rest, and the next whole look finds that.
//! - Looks are drawn by a generator of their own, and their reads count for nothing on the disk
//!   ([`Disk::observe`](crate::disk::Disk::observe)): how much is looked at changes no run.

use super::super::guest::flatten;
use super::super::{Result, World};
use crate::ledger::{Key, Timeline, key};
use crate::reference::{Image, Prefix};
use crate::rng::PPM;
use engine::guest::{MAX_REQUEST_BYTES, Op, Request};
use engine::node::primary::Submitted;
use engine::read::Wait;
use engine::state::Role;
use engine::types::{Extent, Lsn, VolumeId};

/// How much of a state is read back and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::world) enum Look {
    /// All of it.
    Whole,
    /// What was written since the last look at the same place.
    Changed,
}

/// Up to where a place of a node has been compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::world) struct Mark {
    /// The reign that the node followed.
    own: Key,
    /// The gaps in its history: behind another one, what it holds came by copies.
    gaps: usize,
    at: Lsn,
}

/// What of a node is compared again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    Horizon,
    Latest,
    Head,
}

/// A stretch of a volume, by its index.
type Place = (usize, Extent);

/// The probability of a [`Look::Whole`].
const WHOLE_PPM: u32 = PPM / 4;
/// Written stretches that are nearer to each other than this are read as one.
const NEAR_BYTES: u64 = 4 << 10;
/// With more stretches than this, all is read.
const MAX_PLACES: usize = 24;

impl World {
    /// How much the next check looks at.
    pub(in crate::world) fn draw_look(&mut self) -> Look {
        if self.looks.chance(WHOLE_PPM) { Look::Whole } else { Look::Changed }
    }

    /// What a node serves, or its newest point, is the state at an LSN.
    pub(in crate::world) fn check_image(
        &mut self,
        machine: usize,
        at: Lsn,
        invariant: &'static str,
        look: Look,
    ) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let Some(own) = live.node.history().last().map(key) else { return Ok(()) };
        if !self.timelines.contains_key(&own) {
            return Ok(());
        }
        let spot = if live.node.role() == Role::Primary { Spot::Head } else { Spot::Latest };
        self.compare(machine, own, spot, at, invariant, look)
    }

    /// Reads a spot of a node, and compares it with the state at an LSN.
    fn compare(
        &mut self,
        machine: usize,
        own: Key,
        spot: Spot,
        at: Lsn,
        invariant: &'static str,
        look: Look,
    ) -> Result {
        let m = &self.machines[machine];
        let gaps = m.live.as_ref().map_or(0, |live| {
            let state = live.node.state();
            state.gaps.len() + state.branch_gaps.len()
        });
        let known = m.looked[spot as usize].filter(|mark| mark.own == own && mark.gaps == gaps);
        let places = match (look, known) {
            (Look::Changed, Some(mark)) => self.changed(&self.timelines[&own], mark.at, at),
            _ => None,
        };
        let pieces = match (spot, &places) {
            (_, Some(places)) if places.is_empty() => Some(Vec::new()),
            (Spot::Head, Some(places)) => self.read_head(machine, places)?,
            (Spot::Head, None) => self.read_head(machine, &self.whole())?,
            (_, Some(places)) => self.read_places(machine, at, places)?,
            (_, None) => self.read_places(machine, at, &self.whole())?,
        };
        let Some(pieces) = pieces else { return Ok(()) };
        self.invariant_sizes(machine, own, at, spot == Spot::Head)?;
        self.compare_bytes(machine, own, at, invariant, places.as_deref(), &pieces)?;
        self.machines[machine].looked[spot as usize] = Some(Mark { own, gaps, at });
        Ok(())
    }

    /// Each volume has the size that somebody gave it.
    fn invariant_sizes(&self, machine: usize, own: Key, at: Lsn, is_head: bool) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        if self.is_rewritten() || self.machines[machine].damaged {
            return Ok(());
        }
        let specs =
            if is_head { live.node.volume_specs().cloned().collect() } else { live.node.specs_at(at) };
        for spec in specs {
            let expected = self.timelines[&own].size_at(at, spec.id.0 as usize - 1);
            if spec.size != expected {
                let detail = format!("{} has {} bytes at LSN {at}, not {expected}", spec.name, spec.size);
                return Err(self.broken("invariant_points_exact", machine, detail));
            }
        }
        Ok(())
    }

    /// Compares what was read with the state at an LSN: whole volumes, or places of them.
    fn compare_bytes(
        &self,
        machine: usize,
        own: Key,
        at: Lsn,
        invariant: &'static str,
        places: Option<&[Place]>,
        found: &Image,
    ) -> Result {
        let timeline = &self.timelines[&own];
        if self.is_rewritten() || self.machines[machine].damaged {
            return Ok(());
        }
        let Some(places) = places else {
            if timeline.is_state_at(at, found) {
                return Ok(());
            }
            let why = match timeline.reference.check(found, Prefix(0), timeline.reference.end()) {
                Ok(prefix) => format!("it is the state at LSN {}", timeline.lsn_of(prefix)),
                Err(wrong) => wrong.to_string(),
            };
            return Err(self.broken(invariant, machine, format!("not the state at LSN {at}: {why}")));
        };
        let wrong = places.iter().zip(found).find(|((volume, extent), found)| {
            timeline.range_at(at, *volume, extent.offset, extent.len) != **found
        });
        let Some(((volume, extent), _)) = wrong else { return Ok(()) };
        let detail = format!(
            "not the state at LSN {at}: volume {volume} differs within {} bytes from byte {}",
            extent.len, extent.offset
        );
        Err(self.broken(invariant, machine, detail))
    }

    /// All of all volumes.
    fn whole(&self) -> Vec<Place> {
        self.lengths().into_iter().enumerate().map(|(volume, len)| (volume, Extent::new(0, len))).collect()
    }

    /// Where two states differ, as far as anybody wrote; nothing if that is nearly everywhere.
    fn changed(&self, timeline: &Timeline, from: Lsn, to: Lsn) -> Option<Vec<Place>> {
        if to <= from {
            return (to == from).then(Vec::new);
        }
        let written = timeline.range(from.next()..=to).map(|(_, entry)| &entry.operation);
        let mut written: Vec<(usize, u64, u64)> =
            written.map(|operation| (operation.volume, operation.offset, operation.end())).collect();
        written.sort_unstable();
        let mut places: Vec<(usize, u64, u64)> = Vec::new();
        for (volume, start, end) in written {
            match places.last_mut() {
                Some(last) if last.0 == volume && start <= last.2 + NEAR_BYTES => last.2 = last.2.max(end),
                _ => places.push((volume, start, end)),
            }
        }
        let place = |(volume, start, end): (usize, u64, u64)| (volume, Extent::new(start, end - start));
        (places.len() <= MAX_PLACES).then(|| places.into_iter().map(place).collect())
    }

    /// Places as guests see them; nothing if the disk may refuse.
    fn read_head(&mut self, machine: usize, places: &[Place]) -> Result<Option<Image>> {
        let time = self.now();
        let _observing = self.machines[machine].disk.observe();
        let now = self.machines[machine].clock.now(time);
        let mut image = Vec::new();
        for (index, extent) in places {
            let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
            // It may be defined later than the point that was promoted, or be shorter by now.
            let found = live.node.volume_specs().find(|spec| spec.id.0 as usize == index + 1);
            let len = found.map_or(0, |spec| spec.size.saturating_sub(extent.offset)).min(extent.len);
            let mut bytes = Vec::with_capacity(extent.len as usize);
            while (bytes.len() as u64) < len {
                let left = len - bytes.len() as u64;
                let part =
                    Extent::new(extent.offset + bytes.len() as u64, left.min(u64::from(MAX_REQUEST_BYTES)));
                let op = Op::Read(part);
                let mut requests = vec![Request { cookie: u64::MAX, op, fua: false }];
                let mut out = Submitted::default();
                live.node.submit(now, VolumeId(*index as u32 + 1), &mut requests, &mut out);
                match out.reads.pop().map(|(_, _, plan)| plan.read(Wait::Yes)) {
                    Some(Ok(pieces)) => bytes.extend_from_slice(&flatten(&pieces)),
                    _ if self.machines[machine].is_excused() => return Ok(None),
                    Some(Err(error)) => {
                        let detail = format!("volume {index} of a sound disk cannot be read: {error}");
                        return Err(self.broken("invariant_reads_succeed", machine, detail));
                    }
                    None => {
                        let detail = format!("volume {index} is not served: {:?}", out.ready);
                        return Err(self.broken("invariant_reads_succeed", machine, detail));
                    }
                }
            }
            bytes.resize(extent.len as usize, 0);
            image.push(bytes);
        }
        Ok(Some(image))
    }

    /// All volumes at a point; nothing if the disk may refuse.
    pub(in crate::world) fn read_point(&mut self, machine: usize, at: Lsn) -> Result<Option<Image>> {
        self.read_places(machine, at, &self.whole())
    }

    /// Places at a point; nothing if the disk may refuse.
    fn read_places(&mut self, machine: usize, at: Lsn, places: &[Place]) -> Result<Option<Image>> {
        let _observing = self.machines[machine].disk.observe();
        let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
        if let Err(error) = live.node.pin(at) {
            let detail = format!("the point at LSN {at} cannot be opened: {error}");
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        let mut image = Vec::new();
        let mut failed = None;
        let specs = live.node.specs_at(at);
        for (index, extent) in places {
            // It may be defined later than this point, or be shorter at it.
            let found = specs.iter().find(|spec| spec.id.0 as usize == index + 1);
            let len = found.map_or(0, |spec| spec.size.saturating_sub(extent.offset)).min(extent.len);
            let part = Extent::new(extent.offset, len);
            let plan = live.node.plan_point(VolumeId(*index as u32 + 1), at, part).filter(|_| len > 0);
            let mut bytes = match plan.map(|plan| plan.read(Wait::Yes)) {
                Some(Ok(pieces)) => flatten(&pieces),
                None => Vec::new(),
                Some(Err(error)) => {
                    failed = Some(error);
                    continue;
                }
            };
            bytes.resize(extent.len as usize, 0);
            image.push(bytes);
        }
        live.node.unpin(at);
        match failed {
            None => Ok(Some(image)),
            Some(_) if self.machines[machine].is_excused() => Ok(None),
            Some(error) => {
                let detail = format!("the point at LSN {at} cannot be read from a sound disk: {error}");
                Err(self.broken("invariant_reads_succeed", machine, detail))
            }
        }
    }

    /// Guarantees 4 and 5: points of a node, at both ends of its window and, in a whole look, in between, are exact.
    pub(in crate::world) fn check_points(&mut self, machine: usize, between: usize, look: Look) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let Some(window) = live.node.window() else { return Ok(()) };
        let Some(own) = live.node.history().last().map(key) else { return Ok(()) };
        if !self.timelines.contains_key(&own) || self.machines[machine].damaged {
            return Ok(());
        }
        if window.latest < window.horizon {
            let detail = format!("the window is from LSN {} to {}", window.horizon, window.latest);
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        for (spot, at) in [(Spot::Horizon, window.horizon), (Spot::Latest, window.latest)] {
            if !self.is_point(machine, at) {
                let detail = format!("LSN {at} ends the window, and is no point");
                return Err(self.broken("invariant_points_stable", machine, detail));
            }
            self.compare(machine, own, spot, at, "invariant_points_exact", look)?;
        }
        if look == Look::Changed {
            self.count("looks at what changed", 1);
            return Ok(());
        }
        self.invariant_kept_marks(machine, own)?;
        for _ in 0..between {
            let at = Lsn(self.looks.between(window.horizon.0, window.latest.0));
            if !self.is_point(machine, at) {
                self.count("coarse points passed over", 1);
                continue;
            }
            if let Some(image) = self.read_point(machine, at)? {
                self.invariant_sizes(machine, own, at, false)?;
                self.compare_bytes(machine, own, at, "invariant_points_exact", None, &image)?;
            }
        }
        self.count("points read", between as u64 + 2);
        Ok(())
    }

    /// Marks that outlive the window are where they were set, and show what any point does.
    fn invariant_kept_marks(&mut self, machine: usize, own: Key) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        for (mark, _) in live.node.kept_marks() {
            let told = self.marks.get(&mark.name);
            if !told.is_some_and(|told| told.is_none_or(|at| at == mark.at)) {
                let detail = format!("the mark {} is kept at LSN {}, not at {told:?}", mark.name, mark.at);
                return Err(self.broken("invariant_points_exact", machine, detail));
            }
            if let Some(image) = self.read_point(machine, mark.at)? {
                self.invariant_sizes(machine, own, mark.at, false)?;
                self.compare_bytes(machine, own, mark.at, "invariant_points_exact", None, &image)?;
                self.count("kept marks read", 1);
            }
        }
        Ok(())
    }

    fn is_point(&self, machine: usize, at: Lsn) -> bool {
        self.machines[machine].live.as_ref().is_none_or(|live| live.node.check_point(at).is_ok())
    }

    /// Guarantee 5: the horizon never goes back, and the base is never ahead of it.
    pub(in crate::world) fn invariant_points_stay_retired(&self, machine: usize) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let state = live.node.state();
        if state.base > state.horizon {
            let detail = format!("the base is at LSN {}, the horizon at {}", state.base, state.horizon);
            return Err(self.broken("invariant_retired_before_folded", machine, detail));
        }
        Ok(())
    }
}
