//! Copies of the volumes that somebody ships to a replica by other means than the link: they are of some moment, and
//! not always sound.

use super::{Result, World};
use crate::ledger::key;
use crate::net::{ConnId, End};
use crate::reference::Image;
use crate::rng::{PPM, Rng};
use bytes::Bytes;
use engine::peer::Hello;
use engine::seeds::{self, Held, Thin};
use engine::types::VolumeId;
use transport::link::frame::HELD_PER_FRAME;

/// So many sessions of a run with seeds have one.
const SESSIONS_PPM: u32 = PPM / 3;
/// So many of a seed's sectors were never of this volume.
const STRANGE_PPM: u32 = PPM / 64;
/// So many reads of a seed find something else than was said.
const CHANGES_PPM: u32 = PPM / 64;

/// What a replica was given.
pub(super) struct Shipped {
    image: Image,
    rng: Rng,
}

impl World {
    /// Perhaps a session's replica has been given a copy; says what it holds.
    pub(super) fn offer_seed(&mut self, machine: usize, conn: ConnId, hello: &Hello) {
        if !self.options.seeds {
            return;
        }
        let mut rng = self.root.child(&format!("seed {machine} {}", self.now().0));
        let Some(timeline) = hello.history.last().and_then(|reign| self.timelines.get(&key(reign))) else {
            return;
        };
        let Some(live) = &mut self.machines[machine].live else { return };
        let Some(incoming) = live.incoming.get_mut(&conn) else { return };
        if !incoming.receiver.wants_held() || !rng.chance(SESSIONS_PPM) {
            return;
        }
        let mut image = timeline.state_at(hello.durable.lsn);
        let piece = live.node.copy_piece_bytes();
        let mut held: Vec<Held> = Vec::new();
        for (volume, bytes) in image.iter_mut().enumerate() {
            for sector in bytes.chunks_mut(512) {
                if rng.chance(STRANGE_PPM) {
                    sector.fill(rng.next_u64() as u8);
                }
            }
            held.extend(seeds::held(VolumeId(volume as u32 + 1), 0, bytes, piece));
        }
        held.truncate(HELD_PER_FRAME);
        if !held.is_empty() {
            incoming.receiver.handle_held(held);
            incoming.shipped = Some(Shipped { image, rng });
        }
    }

    /// Puts back what was left out of records for a replica's seed, and appends them.
    pub(super) fn append_thin(&mut self, machine: usize, conn: ConnId, thin: Thin) -> Result {
        let Some(live) = &mut self.machines[machine].live else { return Ok(()) };
        let Some(incoming) = live.incoming.get_mut(&conn) else { return Ok(()) };
        let Some(shipped) = &mut incoming.shipped else { return Ok(()) };
        let parts = thin.left_out.len() as u64;
        let filled = thin.fill(|Held { volume, extent, .. }| {
            let mut bytes =
                shipped.image[volume.0 as usize - 1][extent.offset as usize..extent.end() as usize].to_vec();
            if shipped.rng.chance(CHANGES_PPM) {
                bytes[0] ^= 1;
            }
            Ok(Bytes::from(bytes))
        });
        match filled {
            Ok(batch) => {
                self.count("copies left out for a seed", parts);
                self.append(machine, conn, batch)
            }
            Err(error) => {
                self.count("seeds that had changed", 1);
                self.say(machine, "session ended", &[("why", error.to_string().into())]);
                let at = self.now();
                if let Some(live) = &mut self.machines[machine].live {
                    live.incoming.remove(&conn);
                }
                self.net.close(at, conn, End::Listener);
                Ok(())
            }
        }
    }
}
