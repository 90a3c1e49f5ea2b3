//! The generator of everything random in a run: xoshiro256** (Blackman and Vigna), seeded by splitmix64.
//!
//! - The project owns it, so that a seed from an old report gives the same run for ever; its output is pinned by
//!   the published vectors.
//! - A [`child`](Rng::child) depends on the seed and its label alone, not on what its parent has drawn: a new
//!   consumer, or one that draws more, does not shift the others.
//! - No floating point: probabilities are in parts per million.
//!
//! It makes no secrets.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
    seed: u64,
}

/// One million: the probability 1 in the unit of [`Rng::chance`].
pub const PPM: u32 = 1_000_000;

impl Rng {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        let mut splitmix = SplitMix(seed);
        Rng { state: std::array::from_fn(|_| splitmix.next()), seed }
    }

    /// The generator that `label` has under this one's seed, however much has been drawn here.
    #[must_use]
    pub fn child(&self, label: &str) -> Rng {
        let mut hash = crate::hash::Hash64::default();
        hash.word(self.seed);
        hash.bytes(label.as_bytes());
        Rng::new(hash.value())
    }

    /// The seed that it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`, each equally likely. `bound` is above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        // Lemire's method: the high half of a product, rejecting the few low halves that would favour some values.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range: {low} to {high}");
        match (high - low).checked_add(1) {
            Some(bound) => low + self.below(bound),
            None => self.next_u64(),
        }
    }

    /// True in `ppm` of a million cases. Draws nothing for 0 and for [`PPM`].
    pub fn chance(&mut self, ppm: u32) -> bool {
        match ppm {
            0 => false,
            PPM.. => true,
            _ => self.below(u64::from(PPM)) < u64::from(ppm),
        }
    }

    /// One of the items, which must not be none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// An index, with a probability proportional to its weight. The weights' sum is above zero.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut draw = self.below(sum);
        for (index, weight) in weights.iter().enumerate() {
            match draw.checked_sub(u64::from(*weight)) {
                Some(rest) => draw = rest,
                None => return index,
            }
        }
        unreachable!("the draw is below the sum of the weights")
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let (words, rest) = bytes.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = self.next_u64().to_le_bytes());
        if !rest.is_empty() {
            rest.copy_from_slice(&self.next_u64().to_le_bytes()[..rest.len()]);
        }
    }
}

/// The finalizer of splitmix64: every bit of the input reaches every bit of the output.
#[must_use]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_vector() {
        let mut splitmix = SplitMix(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(expected, std::array::from_fn(|_| splitmix.next()));
    }

    #[test]
    fn xoshiro256_starstar_gives_the_published_vector() {
        let mut rng = Rng { state: [1, 2, 3, 4], seed: 0 };
        let expected = [
            11_520,
            0,
            1_509_978_240,
            1_215_971_899_390_074_240,
            1_216_172_134_540_287_360,
            607_988_272_756_665_600,
            16_172_922_978_634_559_625,
            8_476_171_486_693_032_832,
            10_595_114_339_597_558_777,
            2_904_607_092_377_533_576,
        ];
        assert_eq!(expected, std::array::from_fn(|_| rng.next_u64()));
    }

    #[test]
    fn children_depend_on_seed_and_label_alone() {
        let mut root = Rng::new(42);
        let before = root.child("network").next_u64();
        root.next_u64();
        assert_eq!(before, root.child("network").next_u64());
        assert_ne!(before, root.child("disk/a").next_u64());
        assert_ne!(before, Rng::new(43).child("network").next_u64());
        assert_ne!(root.child("a").child("b").next_u64(), root.child("b").child("a").next_u64());
    }

    #[test]
    fn draws_stay_in_their_bounds_and_reach_them() {
        let mut rng = Rng::new(1);
        let mut seen = [0_u32; 5];
        for _ in 0..5_000 {
            seen[rng.between(0, 4) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert!(!rng.chance(0) && rng.chance(PPM));
        let hits = (0..10_000).filter(|_| rng.chance(PPM / 4)).count();
        assert!((2_200..2_800).contains(&hits), "{hits}");
        let mut weighted = [0_u32; 3];
        (0..4_000).for_each(|_| weighted[rng.weighted(&[1, 0, 3])] += 1);
        assert!(weighted[1] == 0 && (800..1_200).contains(&weighted[0]), "{weighted:?}");
        rng.between(0, u64::MAX);
    }
}
