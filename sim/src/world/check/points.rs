//! Guarantees 4 and 5: what a node serves, now and at its points, is the state at an LSN, bit for bit.

use super::super::guest::flatten;
use super::super::{Result, World};
use crate::ledger::{Key, Timeline, key};
use crate::reference::{Image, Prefix};
use engine::guest::{Op, Request};
use engine::node::primary::Submitted;
use engine::read::Wait;
use engine::state::Role;
use engine::types::{Extent, Lsn, VolumeId};

impl World {
    /// What a node serves, or its newest point, is the state at an LSN.
    pub(in crate::world) fn check_image(
        &mut self,
        machine: usize,
        at: Lsn,
        invariant: &'static str,
    ) -> Result {
        let Some(live) = &self.machines[machine].live else { return Ok(()) };
        let Some(own) = live.node.history().last().map(key) else { return Ok(()) };
        let image = match live.node.role() {
            Role::Primary => self.read_head(machine)?,
            _ => self.read_point(machine, at)?,
        };
        let Some(image) = image else { return Ok(()) };
        let Some(timeline) = self.timelines.get(&own) else { return Ok(()) };
        self.compare(machine, timeline, &image, at, invariant)
    }

    fn compare(
        &self,
        machine: usize,
        timeline: &Timeline,
        image: &Image,
        at: Lsn,
        invariant: &'static str,
    ) -> Result {
        // A writer whose disk dropped what was durable has written another history over it.
        let rewritten = self.machines.iter().any(|m| m.damaged && m.reign.is_some());
        if rewritten || self.machines[machine].damaged || timeline.is_state_at(at, image) {
            return Ok(());
        }
        let why = timeline.reference.check(image, Prefix(0), timeline.reference.end());
        let why = match why {
            Ok(prefix) => format!("it is the state at LSN {}", timeline.lsn_of(prefix)),
            Err(wrong) => wrong.to_string(),
        };
        Err(self.broken(invariant, machine, format!("not the state at LSN {at}: {why}")))
    }

    /// All volumes as guests see them; nothing if the disk may refuse.
    fn read_head(&mut self, machine: usize) -> Result<Option<Image>> {
        let time = self.now();
        let now = self.machines[machine].clock.now(time);
        let mut image = Vec::new();
        for (index, size) in self.options.workload.volumes.clone().iter().enumerate() {
            let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
            if !live.node.volume_specs().any(|spec| spec.id.0 as usize == index + 1) {
                // It is defined later than the point that was promoted.
                image.push(vec![0; *size as usize]);
                continue;
            }
            let op = Op::Read(Extent::new(0, *size));
            let mut requests = vec![Request { cookie: u64::MAX, op, fua: false }];
            let mut out = Submitted::default();
            live.node.submit(now, VolumeId(index as u32 + 1), &mut requests, &mut out);
            let Some((_, _, plan)) = out.reads.pop() else {
                if self.machines[machine].is_excused() {
                    return Ok(None);
                }
                let detail = format!("volume {index} is not served: {:?}", out.ready);
                return Err(self.broken("invariant_reads_succeed", machine, detail));
            };
            match plan.read(Wait::Yes) {
                Ok(pieces) => image.push(flatten(&pieces)),
                Err(_) if self.machines[machine].is_excused() => return Ok(None),
                Err(error) => {
                    let detail = format!("volume {index} of a sound disk cannot be read: {error}");
                    return Err(self.broken("invariant_reads_succeed", machine, detail));
                }
            }
        }
        let _ = self.machines[machine].disk.take_latency();
        Ok(Some(image))
    }

    /// All volumes at a point; nothing if the disk may refuse.
    pub(in crate::world) fn read_point(&mut self, machine: usize, at: Lsn) -> Result<Option<Image>> {
        let sizes = self.options.workload.volumes.clone();
        let Some(live) = &mut self.machines[machine].live else { return Ok(None) };
        if let Err(error) = live.node.pin(at) {
            let detail = format!("the point at LSN {at} cannot be opened: {error}");
            return Err(self.broken("invariant_points_stable", machine, detail));
        }
        let mut image = Vec::new();
        let mut failed = None;
        for (index, size) in sizes.iter().enumerate() {
            let plan = live.node.plan_point(VolumeId(index as u32 + 1), at, Extent::new(0, *size));
            match plan.map(|plan| plan.read_all()) {
                Some(Ok(bytes)) => image.push(bytes.to_vec()),
                // The volume is defined later than this point.
                None => image.push(vec![0; *size as usize]),
                Some(Err(error)) => failed = Some(error),
            }
        }
        live.node.unpin(at);
        let _ = self.machines[machine].disk.take_latency();
        match failed {
            None => Ok(Some(image)),
            Some(_) if self.machines[machine].is_excused() => Ok(None),
            Some(error) => {
                let detail = format!("the point at LSN {at} cannot be read from a sound disk: {error}");
                Err(self.broken("invariant_reads_succeed", machine, detail))
            }
        }
    }

    /// Guarantees 4 and 5: points of a node, at both ends of its window and in between, are exact.
    pub(in crate::world) fn check_points(&mut self, machine: usize, between: usize) -> Result {
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
        let mut points = vec![window.horizon, window.latest];
        for _ in 0..between {
            points.push(Lsn(self.rng.between(window.horizon.0, window.latest.0)));
        }
        for at in points {
            let node = self.machines[machine].live.as_ref().map(|live| &live.node);
            if node.is_some_and(|node| node.check_point(at).is_err()) {
                if at == window.horizon || at == window.latest {
                    let detail = format!("LSN {at} ends the window, and is no point");
                    return Err(self.broken("invariant_points_stable", machine, detail));
                }
                self.count("coarse points passed over", 1);
                continue;
            }
            self.invariant_points_exact(machine, own, at)?;
        }
        self.count("points read", between as u64 + 2);
        Ok(())
    }

    fn invariant_points_exact(&mut self, machine: usize, own: Key, at: Lsn) -> Result {
        let Some(image) = self.read_point(machine, at)? else { return Ok(()) };
        let timeline = &self.timelines[&own];
        self.compare(machine, timeline, &image, at, "invariant_points_exact")
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
