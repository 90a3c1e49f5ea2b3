//! What an extent holds, in 16 bytes: XXH3 with 128 bits, of the bytes in order, holes as the zeros that they read as.
//!
//! It looks for accidents: rot, a lost write, a mistake of ours. Two extents that differ by accident have one digest
//! with a probability of 2^-128, and it costs less than to read the bytes from any disk. It is no proof against somebody
//! who makes two contents with one digest on purpose; whoever can write to one copy but not to the other has the log's
//! chain against him, which is not in question here.

use crate::read::{Plan, Wait};
use crate::types::Extent;
use bincode::{Decode, Encode};
use std::fmt;
use std::io::Result;
use xxhash_rust::xxh3::Xxh3;

/// Bytes that are read at once.
const READ_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// See the module. In the order of the algorithm's canonical form, the most significant byte first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Xxh3::new();
        hasher.update(bytes);
        Digest(hasher.digest128().to_be_bytes())
    }

    /// Of what a plan reads of `extent`, which must lie within it. Holes are not read, and little memory is needed
    /// whatever the extent's length.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn of_plan(plan: &Plan, extent: Extent) -> Result<Digest> {
        let mut hasher = Xxh3::new();
        let mut at = extent.offset;
        while at < extent.end() {
            let rest = plan.within(Extent::new(at, extent.end() - at));
            let mut known = at;
            for stretch in rest.status()? {
                match stretch.hole {
                    true => zeros(&mut hasher, stretch.len),
                    false => data(&mut hasher, plan, Extent::new(known, stretch.len))?,
                }
                known += stretch.len;
            }
            assert!(known > at, "the status of a part tells of its beginning at least");
            at = known;
        }
        Ok(Digest(hasher.digest128().to_be_bytes()))
    }
}

fn zeros(hasher: &mut Xxh3, mut len: u64) {
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..part as usize]);
        len -= part;
    }
}

fn data(hasher: &mut Xxh3, plan: &Plan, extent: Extent) -> Result<()> {
    let mut at = extent.offset;
    while at < extent.end() {
        let part = Extent::new(at, READ_BYTES.min(extent.end() - at));
        for piece in plan.within(part).read(Wait::Yes)? {
            match piece {
                crate::guest::Piece::Bytes(bytes) => hasher.update(&bytes),
                crate::guest::Piece::Hole(len) => zeros(hasher, len),
            }
        }
        at = part.end();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Content;
    use crate::read::From;

    /// The algorithm's own test vector, so that another implementation finds the same.
    #[test]
    fn is_the_algorithm_that_it_says() {
        assert_eq!(Digest::of(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn holes_count_as_zeros_and_pieces_as_one() {
        let long = 3 * READ_BYTES + 17;
        let parts = vec![
            (Extent::new(512, 5), From::Memory(Content::Bytes(vec![7; 5].into()))),
            (Extent::new(517, long), From::Memory(Content::Zero { no_hole: false })),
            (Extent::new(517 + long, long), From::Memory(Content::Bytes(vec![9; long as usize].into()))),
        ];
        let whole = Extent::new(512, 5 + 2 * long);
        let plan = Plan::new(whole, parts);
        let mut bytes = vec![7; 5];
        bytes.resize(5 + long as usize, 0);
        bytes.resize(5 + 2 * long as usize, 9);
        assert_eq!(Digest::of_plan(&plan, whole).expect("memory can be read"), Digest::of(&bytes));
        let part = Extent::new(514, 3 + long);
        let expected = Digest::of(&bytes[2..5 + long as usize]);
        assert_eq!(Digest::of_plan(&plan, part).expect("memory can be read"), expected);
    }
}
