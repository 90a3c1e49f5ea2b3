//! What guests do to their volumes.
//!
//! - Volumes are small and a part of them is hot, so that writes collide often: that is where an order shows.
//! - Each written sector says which write it is from, so that no two states look alike by accident (now and then
//!   a write repeats old bytes, or only zeros, on purpose).
//! - Which features a run uses is drawn for each run ([`Profile::swarm`]): many are off in any one of them.

mod database;
mod replay;

use crate::clock::Span;
use crate::recorded::Recording;
use crate::rng::{PPM, Rng, mix};
use bytes::Bytes;
use database::Database;
use engine::guest::{Op, Request};
use engine::types::Extent;
use replay::Replay;

/// The unit of sizes and places, unless a profile is unaligned.
const SECTOR: u64 = 512;

/// Which places come after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere, more often in the hot part.
    Random,
    /// One behind the other, around and around.
    Sequential,
    /// A write-ahead log on the first volume, with a flush for each transaction, and pages anywhere on the last
    /// volume later on. (One volume can be both.)
    Database,
}

/// Whether places and lengths keep to sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// To sectors of 512 bytes.
    Sectors,
    /// To pages of 4096 bytes.
    Pages,
    /// To nothing.
    Bytes,
}

/// Of what kind the requests are. Shares are in parts per million of all requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Sizes of the group's volumes in bytes: multiples of 4096, at least 16 KiB each.
    pub volumes: Vec<u64>,
    /// Places.
    pub pattern: Pattern,
    /// Alignment of places and lengths.
    pub alignment: Alignment,
    /// The longest write, trim or read, in bytes.
    pub max_len: u64,
    /// Reads.
    pub read_ppm: u32,
    /// Flushes.
    pub flush_ppm: u32,
    /// Trims.
    pub trim_ppm: u32,
    /// Requests to write zeros.
    pub zero_ppm: u32,
    /// The share of changes that are FUA.
    pub fua_ppm: u32,
    /// The share of places in the hot eighth of a volume.
    pub hot_ppm: u32,
    /// The mean time between two requests.
    pub gap: Span,
    /// The most requests in flight at a time; the caller holds to it.
    pub depth: usize,
    /// Requests out of a file, over and over from its first record, instead of drawn ones. Longer ones than `max_len`
    /// come in pieces, and places behind a smaller volume's end wrap around in it.
    pub recording: Option<Recording>,
}

impl Profile {
    /// A profile drawn from the seed.
    #[must_use]
    pub fn swarm(rng: &mut Rng) -> Profile {
        let mut sometimes = |choices: &[u32]| if rng.chance(PPM / 2) { 0 } else { *rng.pick(choices) };
        let flush_ppm = sometimes(&[5_000, 30_000, 300_000]);
        let read_ppm = sometimes(&[50_000, 300_000]);
        let trim_ppm = sometimes(&[5_000, 50_000, 200_000]);
        let zero_ppm = sometimes(&[5_000, 50_000]);
        let fua_ppm = sometimes(&[10_000, 300_000, PPM]);
        let hot_ppm = sometimes(&[300_000, 900_000]);
        let volumes = 1 + rng.weighted(&[2, 3, 1]);
        Profile {
            volumes: (0..volumes).map(|_| *rng.pick(&[16, 64, 256, 1_024]) * 1_024).collect(),
            pattern: *rng.pick(&[Pattern::Random, Pattern::Random, Pattern::Sequential, Pattern::Database]),
            alignment: *rng.pick(&[
                Alignment::Sectors,
                Alignment::Sectors,
                Alignment::Pages,
                Alignment::Bytes,
            ]),
            max_len: *rng.pick(&[512, 4_096, 16_384, 65_536]),
            read_ppm,
            flush_ppm,
            trim_ppm,
            zero_ppm,
            fua_ppm,
            hot_ppm,
            gap: Span::from_us(*rng.pick(&[100, 1_000, 5_000, 50_000])),
            depth: *rng.pick(&[1, 2, 8, 32]),
            recording: None,
        }
    }
}

/// When a request may be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// At once.
    Nothing,
    /// When all requests before it are answered, as an application waits for its writes before it flushes.
    AllAnswers,
}

/// The next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long after the one before.
    pub gap: Span,
    /// What it has to wait for.
    pub after: After,
    /// To which volume, counted from 0.
    pub volume: usize,
    /// The request. Its cookie counts up from 1 and is unique.
    pub request: Request,
}

/// A never-ending list of requests.
#[derive(Clone, Debug)]
pub struct Workload {
    profile: Profile,
    rng: Rng,
    cookie: u64,
    /// Where the sequential pattern goes on, for each volume.
    cursors: Vec<u64>,
    database: Database,
    replay: Option<Replay>,
    last_write: Bytes,
}

impl Workload {
    /// The requests of this profile and this seed.
    ///
    /// # Panics
    ///
    /// If a volume has a size that [`Profile::volumes`] does not allow.
    #[must_use]
    pub fn new(profile: Profile, rng: Rng) -> Workload {
        assert!(
            !profile.volumes.is_empty() && profile.max_len >= SECTOR,
            "no room for a request: {profile:?}"
        );
        let fits = profile.volumes.iter().all(|size| size % 4_096 == 0 && *size >= 16 << 10);
        assert!(fits, "volume sizes: {:?}", profile.volumes);
        let database = Database::new(&profile);
        let cursors = vec![0; profile.volumes.len()];
        let replay = profile.recording.as_ref().map(|recording| Replay::new(recording, &profile));
        Workload { profile, rng, cookie: 0, cursors, database, replay, last_write: Bytes::new() }
    }

    /// The profile.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The next request.
    pub fn next_step(&mut self) -> Step {
        self.cookie += 1;
        if let Some(replay) = &mut self.replay {
            return replay.next_step(self.rng.seed(), self.cookie);
        }
        let gap = Span(self.rng.below(self.profile.gap.0 * 2 + 1));
        let (volume, op, after) = match self.profile.pattern {
            Pattern::Database if !self.rng.chance(self.profile.read_ppm) => self.database_step(),
            _ => self.plain_step(),
        };
        let changes = matches!(op, Op::Write { .. } | Op::Trim(_) | Op::Zero { .. });
        let fua = changes && self.rng.chance(self.profile.fua_ppm);
        Step { gap, after, volume, request: Request { cookie: self.cookie, op, fua } }
    }

    fn database_step(&mut self) -> (usize, Op, After) {
        let step = self.database.next_step(&mut self.rng);
        let op = match step.what {
            database::What::Write(extent) => self.write(extent),
            database::What::Trim(extent) => Op::Trim(extent),
            database::What::Flush => return (step.volume, Op::Flush, After::AllAnswers),
        };
        (step.volume, op, After::Nothing)
    }

    fn plain_step(&mut self) -> (usize, Op, After) {
        let volume = self.rng.below(self.profile.volumes.len() as u64) as usize;
        let Profile { read_ppm, flush_ppm, trim_ppm, zero_ppm, .. } = self.profile;
        let writes = PPM.saturating_sub(read_ppm + flush_ppm + trim_ppm + zero_ppm).max(PPM / 10);
        let kind = self.rng.weighted(&[writes, read_ppm, flush_ppm, trim_ppm, zero_ppm]);
        if kind == 2 {
            let after = if self.rng.chance(PPM / 2) { After::AllAnswers } else { After::Nothing };
            return (volume, Op::Flush, after);
        }
        let extent = self.extent(volume);
        let op = match kind {
            0 => self.write(extent),
            1 => Op::Read(extent),
            3 => Op::Trim(extent),
            _ => Op::Zero { extent, no_hole: self.rng.chance(PPM / 2) },
        };
        (volume, op, After::Nothing)
    }

    fn extent(&mut self, volume: usize) -> Extent {
        let size = self.profile.volumes[volume];
        let unit = match self.profile.alignment {
            Alignment::Sectors => SECTOR,
            Alignment::Pages => 4_096.min(self.profile.max_len),
            Alignment::Bytes => 1,
        };
        let max_units = (self.profile.max_len.min(size) / unit).max(1);
        // Short ones are the most frequent, as they are in life.
        let units = if self.rng.chance(PPM / 2) {
            1 + self.rng.below(max_units.min(8))
        } else {
            1 + self.rng.below(max_units)
        };
        let len = units.min(max_units) * unit;
        let offset = if self.profile.pattern == Pattern::Sequential {
            let cursor = &mut self.cursors[volume];
            let at = if *cursor + len > size { 0 } else { *cursor };
            *cursor = at + len;
            at
        } else {
            let room = if self.rng.chance(self.profile.hot_ppm) { size / 8 } else { size };
            self.rng.below((room.saturating_sub(len)) / unit + 1) * unit
        };
        Extent::new(offset, len)
    }

    fn write(&mut self, extent: Extent) -> Op {
        let fits = self.last_write.len() as u64 >= extent.len && extent.len > 0;
        let data = if fits && self.rng.chance(20_000) {
            self.last_write.slice(..extent.len as usize)
        } else if self.rng.chance(20_000) {
            Bytes::from(vec![0; extent.len as usize])
        } else {
            stamp(self.rng.seed(), self.cookie, extent.len)
        };
        self.last_write = data.clone();
        Op::Write { offset: extent.offset, data }
    }
}

/// Bytes that no other write has, in any sector.
fn stamp(seed: u64, cookie: u64, len: u64) -> Bytes {
    let mut bytes = vec![0; len as usize];
    for (sector, bytes) in bytes.chunks_mut(SECTOR as usize).enumerate() {
        let word = mix(seed ^ cookie << 16 ^ sector as u64);
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for (at, chunk) in words.iter_mut().enumerate() {
            *chunk = word.wrapping_add(at as u64).to_le_bytes();
        }
        rest.copy_from_slice(&word.wrapping_add(words.len() as u64).to_le_bytes()[..rest.len()]);
    }
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn requests_lie_within_their_volumes_and_all_features_turn_up() {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let profile = Profile::swarm(&mut rng.child("profile"));
            let mut workload = Workload::new(profile.clone(), rng.child("workload"));
            let mut again = Workload::new(profile.clone(), rng.child("workload"));
            for cookie in 1..=100 {
                let step = workload.next_step();
                assert_eq!(step, again.next_step(), "seed {seed}");
                assert_eq!(step.request.cookie, cookie);
                let (name, extent) = match &step.request.op {
                    Op::Write { offset, data } => ("write", Extent::new(*offset, data.len() as u64)),
                    Op::Read(extent) => ("read", *extent),
                    Op::Trim(extent) => ("trim", *extent),
                    Op::Zero { extent, .. } => ("zero", *extent),
                    Op::Flush => {
                        seen.insert(if step.after == After::AllAnswers { "barrier" } else { "flush" });
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                seen.insert(name);
                assert!(
                    extent.len > 0 && extent.fits(profile.volumes[step.volume]),
                    "seed {seed}: {extent:?}"
                );
                if step.request.fua {
                    seen.insert("fua");
                    assert_ne!(name, "read");
                }
            }
            let _ = rng.next_u64();
        }
        assert_eq!(seen, BTreeSet::from(["write", "read", "trim", "zero", "flush", "barrier", "fua"]));
    }

    #[test]
    fn no_two_writes_have_a_sector_in_common() {
        let mut seen = BTreeSet::new();
        for cookie in 0..200 {
            for sector in stamp(1, cookie, 4_096).chunks(512) {
                assert!(seen.insert(sector.to_vec()), "write {cookie}");
            }
        }
    }
}
