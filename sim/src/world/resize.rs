//! What an operator does to whoever serves: marks, and other sizes of volumes.

use super::{Result, World};
use crate::ledger::Key;
use crate::reference::{Effect, Operation};
use crate::rng::PPM;
use engine::catalog::MarkKind;
use engine::types::Lsn;

/// Sizes are multiples of this.
const UNIT_BYTES: u64 = 512;

impl World {
    /// Marks a point on each node that serves.
    pub(super) fn mark(&mut self, application: bool) -> Result {
        let kind = if application { MarkKind::Application } else { MarkKind::Bookmark };
        for machine in 0..self.machines.len() {
            let Some(key) = self.machines[machine].reign.filter(|_| self.serves(machine)) else { continue };
            let name = format!("mark-{}", self.marks.len());
            self.marks.insert(name.clone(), None);
            let now = self.machines[machine].clock.now(self.now());
            let Some(live) = &mut self.machines[machine].live else { continue };
            let marked = live.node.mark(now, &name, kind);
            let tip = live.node.log().tip();
            if self.check_power(machine)? {
                continue;
            }
            self.trace(machine, "mark", &[("lsn", tip.lsn.0)]);
            match marked {
                Ok(at) => {
                    self.marks.insert(name, Some(at));
                    self.count("marks set", 1);
                    self.note_position(machine, key, tip.position())?;
                }
                Err(_) => self.count("marks refused", 1),
            }
            self.pump(machine)?;
        }
        Ok(())
    }

    /// Gives a volume another size on each node that serves. It gets smaller only while nobody uses it.
    pub(super) fn resize(&mut self, volume: usize, ppm: u32) -> Result {
        let first = self.options.workload.volumes[volume];
        let units = u128::from(2 * first / UNIT_BYTES - 2) * u128::from(ppm) / u128::from(PPM) + 2;
        let size = units as u64 * UNIT_BYTES;
        for machine in 0..self.machines.len() {
            let Some(key) = self.machines[machine].reign.filter(|_| self.serves(machine)) else { continue };
            let before = self.timelines[&key].size(volume);
            let is_idle = self.guests.get(&key).is_none_or(|guest| guest.outstanding() == 0);
            if size == before || size < before && !is_idle {
                self.count("resizes put off", 1);
                continue;
            }
            self.resize_one(machine, key, volume, size)?;
            self.pump(machine)?;
        }
        Ok(())
    }

    fn resize_one(&mut self, machine: usize, key: Key, volume: usize, size: u64) -> Result {
        let at = self.now();
        let now = self.machines[machine].clock.now(at);
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let tip_before = live.node.log().tip();
        let was_failed = live.node.failed().is_some();
        let resized = live.node.resize(now, &format!("v{volume}"), size);
        let tip = live.node.log().tip();
        let broke = !was_failed && live.node.failed().is_some();
        let uncertain = broke || !self.machines[machine].disk.is_on();
        // As with guests: a node that had no room for the record that begins its incarnation puts it first.
        let begins = u64::from(tip.incarnation != tip_before.incarnation);
        let mut next = Lsn(tip_before.lsn.0 + begins).next();
        let timeline = self.timelines.get_mut(&key).expect("who serves has a timeline");
        let before = timeline.size(volume);
        if size < before && (next <= tip.lsn || uncertain) {
            // What it is about to lose is zeros first.
            let effect = Effect::Zeros(before - size);
            let id = timeline.submit(at, next, Operation { volume, offset: size, effect }, false);
            if resized.is_ok() {
                timeline.answer(id);
            }
            next = next.next();
        }
        if next <= tip.lsn || uncertain {
            timeline.resize(next, volume, size);
        }
        if self.check_power(machine)? {
            self.count("resizes cut off", 1);
            return Ok(());
        }
        self.trace(machine, "resize", &[("volume", volume as u64), ("size", size), ("lsn", tip.lsn.0)]);
        let what = match (&resized, size > before) {
            (Ok(_), true) => "volumes grown",
            (Ok(_), false) => "volumes shrunk",
            (Err(_), _) => "resizes refused",
        };
        self.count(what, 1);
        if tip.lsn > tip_before.lsn {
            self.note_position(machine, key, tip.position())?;
        }
        Ok(())
    }
}
