//! The demo's own record of what it wrote, and the test that an image is exactly a prefix of it.
//!
//! One volume is written through one connection, so its writes have one order: the order of submission. A
//! recovery point is right if it shows the first k of them, whole, and nothing of the rest. Which k it is the
//! content tells: no sequence numbers are needed, and a filesystem's own writes can be judged like any other.
//!
//! Two volumes are joined by time: a write that was acknowledged before another one was submitted comes before
//! it, on whatever volume. A point that shows the later and not the earlier one was never the state of the group.

use bytes::Bytes;
use std::ops::Range;
use std::time::Instant;

/// The unit of comparison: what a disk writes whole.
const SECTOR: usize = 512;

/// One write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// First byte.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) data: Bytes,
    /// When it was handed to the client.
    pub(crate) submitted: Instant,
    /// When its reply was in hand; `None` if that never came.
    pub(crate) acknowledged: Option<Instant>,
}

/// All writes to one volume, in the order of submission.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// The volume's size in bytes.
    size: u64,
    /// The writes.
    writes: Vec<Write>,
}

/// The prefixes of a history that an image is equal to. More than one if a write changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// The shortest.
    pub(crate) shortest: usize,
    /// The longest.
    pub(crate) longest: usize,
}

/// The prefix that comes nearest to an image that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAPrefix {
    /// Its length in writes.
    pub(crate) nearest: usize,
    /// Sectors that differ from it.
    pub(crate) differing: usize,
    /// The first byte of the first of them.
    pub(crate) offset: u64,
}

/// Acknowledged writes that are not in a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// How many.
    pub(crate) writes: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// When the first of them was acknowledged.
    pub(crate) first: Option<Instant>,
}

impl History {
    /// Nothing written yet; the volume is all zeros.
    pub(crate) fn new(size: u64) -> History {
        assert!(size.is_multiple_of(SECTOR as u64), "a volume of {size} bytes");
        History { size, writes: Vec::new() }
    }

    /// The volume's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Number of writes submitted.
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    /// Adds a write that is being submitted; returns its place.
    pub(crate) fn submit(&mut self, offset: u64, data: Bytes) -> usize {
        let whole = offset.is_multiple_of(SECTOR as u64) && data.len().is_multiple_of(SECTOR);
        assert!(whole && offset + data.len() as u64 <= self.size, "{} bytes at {offset}", data.len());
        self.writes.push(Write { offset, data, submitted: Instant::now(), acknowledged: None });
        self.writes.len() - 1
    }

    /// Notes that a write's reply came.
    pub(crate) fn acknowledge(&mut self, place: usize) {
        self.writes[place].acknowledged = Some(Instant::now());
    }

    /// Number and bytes of the acknowledged writes.
    pub(crate) fn acknowledged(&self) -> (u64, u64) {
        let acknowledged = self.writes.iter().filter(|write| write.acknowledged.is_some());
        acknowledged.fold((0, 0), |(writes, bytes), write| (writes + 1, bytes + write.data.len() as u64))
    }

    /// The acknowledged writes behind the first `prefix`.
    pub(crate) fn lost(&self, prefix: usize) -> Lost {
        let lost =
            self.writes[prefix..].iter().filter_map(|write| Some((write.acknowledged?, write.data.len())));
        lost.fold(Lost::default(), |sum, (at, bytes)| Lost {
            writes: sum.writes + 1,
            bytes: sum.bytes + bytes as u64,
            first: Some(sum.first.map_or(at, |first| first.min(at))),
        })
    }

    /// How many writes must be there at least if one was: those up to the last that had been acknowledged before
    /// `moment`.
    pub(crate) fn acknowledged_before(&self, moment: Instant) -> usize {
        let before = |write: &Write| write.acknowledged.is_some_and(|at| at < moment);
        self.writes.iter().rposition(before).map_or(0, |last| last + 1)
    }

    /// When the last write of a prefix was submitted.
    pub(crate) fn submitted(&self, prefix: usize) -> Option<Instant> {
        prefix.checked_sub(1).map(|last| self.writes[last].submitted)
    }

    /// The image after the first `prefix` writes.
    pub(crate) fn image(&self, prefix: usize) -> Vec<u8> {
        let mut image = vec![0; usize::try_from(self.size).expect("demo volumes fit into memory")];
        for write in &self.writes[..prefix] {
            image[range(write)].copy_from_slice(&write.data);
        }
        image
    }

    /// Which prefixes, of at least `range.start` and at most `range.end` writes, an image is equal to.
    pub(crate) fn prefix(&self, image: &[u8], range: Range<usize>) -> Result<Prefix, NotAPrefix> {
        assert_eq!(image.len() as u64, self.size, "the image of another volume");
        let mut model = self.image(range.start);
        let mut differs: Vec<bool> =
            model.chunks(SECTOR).zip(image.chunks(SECTOR)).map(|(model, image)| model != image).collect();
        let mut differing = differs.iter().filter(|differs| **differs).count();
        let mut found = (differing == 0).then_some(Prefix { shortest: range.start, longest: range.start });
        let mut nearest = (differing, range.start, first(&differs));
        for k in range.start..range.end {
            let write = &self.writes[k];
            let bytes = self::range(write);
            model[bytes.clone()].copy_from_slice(&write.data);
            let sectors = &mut differs[bytes.start / SECTOR..bytes.end / SECTOR];
            let both = model[bytes.clone()].chunks(SECTOR).zip(image[bytes].chunks(SECTOR));
            for (before, (model, image)) in sectors.iter_mut().zip(both) {
                let now = model != image;
                differing = differing + usize::from(now) - usize::from(*before);
                *before = now;
            }
            if differing == 0 {
                found =
                    Some(Prefix { shortest: found.map_or(k + 1, |found| found.shortest), longest: k + 1 });
            } else if found.is_none() && differing < nearest.0 {
                nearest = (differing, k + 1, first(&differs));
            }
        }
        found.ok_or(NotAPrefix {
            nearest: nearest.1,
            differing: nearest.0,
            offset: (nearest.2 * SECTOR) as u64,
        })
    }
}

fn first(differs: &[bool]) -> usize {
    differs.iter().position(|differs| *differs).unwrap_or(0)
}

fn range(write: &Write) -> Range<usize> {
    let start = usize::try_from(write.offset).expect("demo volumes fit into memory");
    start..start + write.data.len()
}

/// Whether prefixes of two volumes can have been the state of the group at one moment; if not, what is missing.
pub(crate) fn consistent(histories: [(&History, Prefix); 2]) -> Result<(), String> {
    let [a, b] = histories;
    for ((later, of), (earlier, other), which) in [(a, b, "second"), (b, a, "first")] {
        let Some(submitted) = later.submitted(of.shortest) else { continue };
        let needed = earlier.acknowledged_before(submitted);
        if other.longest < needed {
            return Err(format!(
                "write {needed} of the {which} volume had been acknowledged before a write of the other one was \
                 submitted that is there, but the volume ends at write {}",
                other.longest
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 * 512;

    fn data(sectors: usize, byte: u8) -> Bytes {
        vec![byte; sectors * SECTOR].into()
    }

    /// Writes that overlap, repeat and change nothing.
    fn history() -> History {
        let mut history = History::new(SIZE);
        for (sector, sectors, byte) in [(0, 4, 1), (2, 4, 2), (0, 1, 0), (0, 1, 3), (0, 1, 3), (15, 1, 4)] {
            history.submit(sector * 512, data(sectors, byte));
        }
        history
    }

    #[test]
    fn every_prefix_is_recognised() {
        let history = history();
        for k in 0..=history.len() {
            // The fifth write changes nothing.
            let expected = match k {
                4 | 5 => Prefix { shortest: 4, longest: 5 },
                k => Prefix { shortest: k, longest: k },
            };
            assert_eq!(history.prefix(&history.image(k), 0..history.len()), Ok(expected), "{k}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_recognised() {
        let history = history();
        let whole = history.len();
        // One write left out in the middle; one write by halves; a flipped bit; a write too many.
        let mut holed = history.image(whole);
        holed[SECTOR..2 * SECTOR].fill(0);
        let mut torn = history.image(1);
        torn[3 * SECTOR..].fill(0);
        let mut flipped = history.image(whole);
        flipped[8 * SECTOR + 7] ^= 1;
        for (image, offset) in [(holed, 512), (torn, 3 * 512), (flipped, 8 * 512)] {
            let found = history.prefix(&image, 0..whole).unwrap_err();
            assert_eq!((found.differing, found.offset), (1, offset));
        }
        // Right in itself, but outside of what was asked for.
        assert!(history.prefix(&history.image(1), 2..whole).is_err());
        assert!(history.prefix(&history.image(whole), 0..whole - 1).is_err());
    }

    #[test]
    fn losses_are_counted_by_acknowledgement() {
        let mut history = history();
        for place in [0, 1, 3, 2] {
            history.acknowledge(place);
        }
        assert_eq!(history.acknowledged(), (4, 10 * 512));
        assert_eq!(history.lost(4), Lost::default());
        let lost = history.lost(1);
        assert_eq!((lost.writes, lost.bytes), (3, 6 * 512));
        // The first one lost is the one that was acknowledged first.
        assert_eq!(lost.first, history.writes[1].acknowledged);
        assert_eq!(history.lost(2).first, history.writes[3].acknowledged);
    }

    #[test]
    fn volumes_that_never_stood_side_by_side_are_recognised() {
        let mut a = History::new(SIZE);
        let mut b = History::new(SIZE);
        let exactly = |k| Prefix { shortest: k, longest: k };
        let tick = || {
            let now = Instant::now();
            while now == Instant::now() {}
        };
        // a1 is acknowledged before b1 is submitted; a2 and b2 are in flight together.
        let a1 = a.submit(0, data(1, 1));
        tick();
        a.acknowledge(a1);
        tick();
        let b1 = b.submit(0, data(1, 2));
        tick();
        b.acknowledge(b1);
        tick();
        a.submit(512, data(1, 3));
        b.submit(512, data(1, 4));
        let judge = |k_a, k_b| consistent([(&a, exactly(k_a)), (&b, exactly(k_b))]).is_ok();
        for (k_a, k_b, right) in [
            (0, 0, true),
            (1, 0, true),
            (1, 1, true),
            (2, 1, true),
            (1, 2, true),
            (2, 2, true),
            (0, 1, false),
            (0, 2, false),
            (2, 0, false),
        ] {
            assert_eq!(judge(k_a, k_b), right, "{k_a} {k_b}");
        }
    }
}
