//! Online verification: what is found is there, and what is sent again is right from then on.

use super::super::{Result, World};
use engine::node::check::Repair;

impl World {
    /// A mismatch is a damage that a disk has done: no write, cut, fold or power cut makes one. A part that was sent
    /// again is well, unless the disk does it another harm.
    pub(in crate::world) fn invariant_mismatches_are_real(&mut self, machine: usize) -> Result {
        let m = &self.machines[machine];
        let Some(checks) = m.live.as_ref().and_then(|live| live.node.checks()) else { return Ok(()) };
        let is_sound = !m.rules && !self.machines.iter().any(|other| other.damaged);
        if let Some(open) = checks.open.first().filter(|_| is_sound) {
            let detail = format!("sound disks, and a scrub has found {open:?}");
            return Err(self.broken("invariant_mismatches_are_real", machine, detail));
        }
        // To give a part up takes a repair that was in vain, and that three times more: as many rots in one place.
        let is_log_sound = !self.machines.iter().any(|other| other.log_damaged);
        let may_rely = m.base_rots < 4 && is_log_sound && !m.rules;
        let given_up = checks.open.iter().find(|open| open.repair == Repair::GivenUp);
        if let Some(open) = given_up.filter(|_| may_rely) {
            let detail = format!("it was sent again and again, and is not well: {open:?}");
            return Err(self.broken("invariant_repairs_hold", machine, detail));
        }
        self.count("scrubs checked", 1);
        self.count("scrubs that found something", u64::from(!checks.open.is_empty()));
        self.count("scrubs after which all was well again", u64::from(checks.repaired > 0));
        Ok(())
    }
}
