//! Which order of the operations in flight explains an image.
//!
//! An operation comes before another if it was answered before the other was submitted; all else is free. The
//! search goes through every order that this allows, one operation at a time, and treats two ways to the same
//! operations and the same bytes as one. It is for small reaches of operations in flight (the number of states
//! doubles with each), so it has a limit and says when it gave up.

use super::{Image, Prefix, Reference, hash_image};
use std::collections::BTreeSet;

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// The image is the state after these operations in this order: numbers from the oldest known state on.
    Order(Vec<u64>),
    /// No order gives this image.
    None,
    /// More states than the limit.
    GaveUp,
}

impl Reference {
    /// Searches an order of operations that real time allows, includes at least the first `min` ones, and ends in
    /// this image. Looks at up to `limit` states.
    #[must_use]
    pub fn explain(&self, image: &Image, min: Prefix, limit: usize) -> Explanation {
        let must = (min.0.saturating_sub(self.base.0) as usize).min(self.entries.len());
        let mut seen: BTreeSet<(Vec<usize>, usize, u64)> = BTreeSet::new();
        let mut stack = vec![State { image: self.keyframes[&0].clone(), order: Vec::new() }];
        while let Some(state) = stack.pop() {
            let (solid, ahead) = state.extent(self.entries.len());
            if !seen.insert((ahead, solid, hash_image(&state.image))) {
                continue;
            }
            if seen.len() > limit {
                return Explanation::GaveUp;
            }
            if solid >= must && state.image == *image {
                return Explanation::Order(state.order.iter().map(|index| *index as u64).collect());
            }
            // Deepest in the order of submission first: that is nearly always the one.
            for next in self.possible_next(&state.order, solid).into_iter().rev() {
                let mut image = state.image.clone();
                self.entries[next].operation.apply(&mut image);
                let mut order = state.order.clone();
                order.push(next);
                stack.push(State { image, order });
            }
        }
        Explanation::None
    }

    /// The operations that may come next: nothing that is not yet in was answered before they were submitted.
    fn possible_next(&self, order: &[usize], solid: usize) -> Vec<usize> {
        let waiting = (solid..self.entries.len()).filter(|index| !order.contains(index));
        let mut possible = Vec::new();
        let mut first_answer = u64::MAX;
        for index in waiting {
            let entry = &self.entries[index];
            if entry.submitted >= first_answer {
                // All further ones were submitted later still.
                break;
            }
            first_answer = first_answer.min(entry.answered.unwrap_or(u64::MAX));
            possible.push(index);
        }
        possible
    }
}

struct State {
    image: Image,
    order: Vec<usize>,
}

impl State {
    /// The number of first operations that are all in, and those beyond that are in too, sorted.
    fn extent(&self, count: usize) -> (usize, Vec<usize>) {
        let mut within = vec![false; count];
        self.order.iter().for_each(|index| within[*index] = true);
        let solid = within.iter().position(|is_in| !is_in).unwrap_or(count);
        (solid, (solid..count).filter(|index| within[*index]).collect())
    }
}
