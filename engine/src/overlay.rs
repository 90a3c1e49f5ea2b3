//! Writes that are in the log but not yet on the backing device, newest version of each byte.
//!
//! Two of them stand over a group's backing devices. Guests write into the *active* one. Now and then it is
//! frozen: from then on it never changes, is written to the backing once all of it is durable (guarantee 1), and
//! dropped after that. So a block that is overwritten again and again is applied once in a while, in the order of
//! the disk, and "applied up to" is simply the LSN at which the freeze was made.

use crate::types::Extent;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a piece of an overlay holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes.
    Bytes(Bytes),
    /// Zeros, whose space may be freed unless the guest asked to keep it.
    Zero {
        /// Keep the space.
        no_hole: bool,
    },
}

impl Content {
    /// The part from `skip` on, `len` bytes long.
    #[must_use]
    pub fn slice(&self, skip: u64, len: u64) -> Content {
        match self {
            Content::Bytes(bytes) => Content::Bytes(bytes.slice(skip as usize..(skip + len) as usize)),
            zero @ Content::Zero { .. } => zero.clone(),
        }
    }
}

/// What a piece costs beside its bytes.
const PIECE_BYTES: u64 = 96;

/// Non-overlapping pieces by offset.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    pieces: BTreeMap<u64, (u64, Content)>,
    bytes: u64,
}

impl Overlay {
    /// Memory that it holds, roughly, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Puts a newer version of an extent in.
    pub fn insert(&mut self, extent: Extent, content: Content) {
        self.clear(extent);
        self.put(extent, content);
    }

    fn put(&mut self, extent: Extent, content: Content) {
        self.bytes += cost(extent.len, &content);
        self.pieces.insert(extent.offset, (extent.len, content));
    }

    /// Removes what an extent covers, keeping the parts of pieces that reach beyond it.
    fn clear(&mut self, extent: Extent) {
        let end = extent.end();
        if let Some((&offset, (len, _))) = self.pieces.range(..extent.offset).next_back()
            && offset + len > extent.offset
        {
            let (len, content) = self.take(offset);
            self.put(Extent::new(offset, extent.offset - offset), content.slice(0, extent.offset - offset));
            if offset + len > end {
                let skip = end - offset;
                self.put(Extent::new(end, len - skip), content.slice(skip, len - skip));
            }
        }
        while let Some((&offset, _)) = self.pieces.range(extent.offset..end).next() {
            let (len, content) = self.take(offset);
            if offset + len > end {
                let skip = end - offset;
                self.put(Extent::new(end, len - skip), content.slice(skip, len - skip));
            }
        }
    }

    fn take(&mut self, offset: u64) -> (u64, Content) {
        let (len, content) = self.pieces.remove(&offset).expect("the piece was just seen");
        self.bytes -= cost(len, &content);
        (len, content)
    }

    /// The parts of its pieces within an extent, in order.
    pub fn within(&self, extent: Extent) -> impl Iterator<Item = (Extent, Content)> + '_ {
        let before = self
            .pieces
            .range(..extent.offset)
            .next_back()
            .filter(|(offset, (len, _))| *offset + len > extent.offset);
        before.into_iter().chain(self.pieces.range(extent.offset..extent.end())).map(
            move |(&offset, (len, content))| {
                let part =
                    Extent::new(offset, *len).intersect(extent).expect("the range was chosen to overlap");
                (part, content.slice(part.offset - offset, part.len))
            },
        )
    }

    /// All pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (Extent, &Content)> {
        self.pieces.iter().map(|(&offset, (len, content))| (Extent::new(offset, *len), content))
    }
}

fn cost(len: u64, content: &Content) -> u64 {
    PIECE_BYTES
        + match content {
            Content::Bytes(_) => len,
            Content::Zero { .. } => 0,
        }
}

/// The parts of `extent` that `covered` (ordered, within it, not overlapping) leaves out.
#[must_use]
pub fn gaps(extent: Extent, covered: &[(Extent, Content)]) -> Vec<Extent> {
    let mut gaps = Vec::new();
    let mut at = extent.offset;
    for (part, _) in covered {
        if part.offset > at {
            gaps.push(Extent::new(at, part.offset - at));
        }
        at = part.end();
    }
    if at < extent.end() {
        gaps.push(Extent::new(at, extent.end() - at));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against an array of bytes, with a small generator of its own.
    #[test]
    fn equals_an_array() {
        const SIZE: usize = 64;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for _ in 0..500 {
            let mut overlay = Overlay::default();
            let mut array = [None::<u8>; SIZE];
            for step in 0..40_u8 {
                let start = next(SIZE - 1);
                let len = 1 + next(SIZE - start - 1).min(20);
                let extent = Extent::new(start as u64, len as u64);
                if next(4) == 0 {
                    overlay.insert(extent, Content::Zero { no_hole: false });
                    array[start..start + len].fill(Some(0));
                } else {
                    let value = step + 1;
                    overlay.insert(extent, Content::Bytes(vec![value; len].into()));
                    array[start..start + len].fill(Some(value));
                }
                let from = next(SIZE - 1);
                let window = Extent::new(from as u64, (1 + next(SIZE - from)).min(SIZE - from) as u64);
                let mut seen = [None; SIZE];
                let parts: Vec<_> = overlay.within(window).collect();
                for (part, content) in &parts {
                    for at in part.offset..part.end() {
                        seen[at as usize] = Some(match content {
                            Content::Bytes(bytes) => bytes[(at - part.offset) as usize],
                            Content::Zero { .. } => 0,
                        });
                    }
                }
                let range = window.offset as usize..window.end() as usize;
                assert_eq!(seen[range.clone()], array[range.clone()]);
                let missing: u64 = gaps(window, &parts).iter().map(|gap| gap.len).sum();
                let expected = array[range].iter().filter(|byte| byte.is_none()).count() as u64;
                assert_eq!(missing, expected);
            }
            let cost: u64 = overlay.pieces().map(|(extent, content)| cost(extent.len, content)).sum();
            assert_eq!(overlay.bytes(), cost, "the account of memory is exact");
        }
    }
}
