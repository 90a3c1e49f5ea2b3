//! Volumes that join a group while it runs: empty ones, and disks whose data is protected where it is.
//!
//! Data that is protected in place stands in no record. The record that defines the volume says so
//! ([`FLAG_IN_PLACE`](crate::event::FLAG_IN_PLACE)); from there on no state of a replica is whole until a sync span has
//! brought the data. What was selectable before stays so.
//!
//! - The replicas that are there are owed all of the volume, on record, before the definition is written: if we die in
//!   between, they are owed a volume that nobody knows, which costs nothing, and it is defined at the next start.
//! - The others are owed it once they call, by where they stand ([`Node::attach`]): nothing is sent before that is on
//!   record.

use super::Node;
use super::config::{Begins, NewVolume, Start};
use super::open::Error;
use crate::event::VolumeSpec;
use crate::state::Role;
use crate::types::Now;

impl Node {
    /// Adds a volume, with its disk at `backing` or where volumes of the group lie. One that is there already, of that
    /// size, is no mistake. The operator's configuration has to name it before: a node that is started without it
    /// would look for its disk elsewhere.
    ///
    /// # Errors
    /// [`Error`]; the group goes on as it was. For [`Error::Busy`] it may be tried again.
    pub fn add_volume(
        &mut self,
        now: Now,
        volume: &NewVolume,
        backing: Option<String>,
    ) -> Result<VolumeSpec, Error> {
        let not_now = |reason: String| Err(Error::NotNow { reason });
        if let Some(failed) = &self.failed {
            return not_now(failed.reason.clone());
        }
        if self.state.role != Role::Primary || self.drain.is_some() {
            return not_now(format!("its role is {}", self.state.role.name()));
        }
        if self.is_hydrating() {
            return not_now("its disks are still being filled after a failover".to_owned());
        }
        if let Some(known) = self.volumes.values().find(|known| known.spec.name == volume.name) {
            if known.spec.size == volume.size {
                return Ok(known.spec.clone());
            }
            let reason = format!("its size is {} bytes, not {}", known.spec.size, volume.size);
            return Err(Error::BadVolume { volume: volume.name.clone(), reason });
        }
        let is_ending =
            |follower: &super::Follower| follower.lack.as_ref().is_some_and(super::span::Lack::is_ending);
        if self.work.is_bulk_out() || self.followers.values().any(is_ending) {
            return Err(Error::Busy);
        }
        let spec = self.next_volume(volume);
        let before = self.config.backings.get(&spec.name).cloned();
        if let Some(backing) = backing {
            self.config.backings.insert(spec.name.clone(), backing);
        }
        let defined = self.define_for_all(now, volume, &spec);
        if defined.is_err() {
            match before {
                Some(before) => self.config.backings.insert(spec.name.clone(), before),
                None => self.config.backings.remove(&spec.name),
            };
            return defined.map(|()| spec);
        }
        if let Start::Primary { volumes, .. } = &mut self.config.start
            && volumes.iter().all(|known| known.name != volume.name)
        {
            volumes.push(volume.clone());
        }
        tracing::info!(
            group = %self.config.name, volume = spec.name, size = spec.size, begins = ?volume.begins,
            "a volume is protected"
        );
        Ok(spec)
    }

    fn define_for_all(&mut self, now: Now, volume: &NewVolume, spec: &VolumeSpec) -> Result<(), Error> {
        if volume.begins == Begins::Empty {
            return self.define(now, volume);
        }
        self.check_in_place(volume, spec)?;
        let here = self.followers.iter_mut().filter(|(_, follower)| follower.connected);
        let here: Vec<(String, bool)> = here
            .map(|(name, follower)| {
                let lacked_nothing = follower.lack.is_none();
                follower.lack.get_or_insert_default().owe_in_place(spec.id, spec.size);
                (name.clone(), lacked_nothing)
            })
            .collect();
        let recorded = match here.is_empty() {
            true => Ok(()),
            false => self.record_lacks(now).map_err(|reason| Error::NotNow { reason }),
        };
        if let Err(error) = recorded.and_then(|()| self.define(now, volume)) {
            // Nobody is owed anything for it.
            for (replica, _) in here.iter().filter(|(_, lacked_nothing)| *lacked_nothing) {
                let follower = self.followers.get_mut(replica).expect("a replica is not forgotten");
                follower.lack = None;
                self.work.lacks_changed = true;
            }
            return Err(error);
        }
        for (replica, _) in here {
            let follower = &self.followers[&replica];
            let may_begin = follower.lack.as_ref().is_some_and(super::span::Lack::may_begin);
            let Some(node) = follower.node.filter(|_| may_begin) else { continue };
            if let Err(error) = self.begin_span(now, &replica, node, None) {
                // It is owed all the same, and gets it when it calls again.
                tracing::warn!(group = %self.config.name, replica, %error, "a sync span is put off");
            }
        }
        Ok(())
    }
}
