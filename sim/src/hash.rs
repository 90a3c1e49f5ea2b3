//! The simulator's own 64-bit hash: order-sensitive, the same in every build, process and machine.
//!
//! `std`'s hashers promise no such stability. This one is not meant to resist an adversary, only to tell two runs
//! or two images apart; where equality has to be certain the bytes are compared as well. Its definition is frozen:
//! trace hashes in old reports stay comparable.

/// A running hash of words and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash64(u64);

const START: u64 = 0x6C61_6E64_6661_6C6C;
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

impl Default for Hash64 {
    fn default() -> Hash64 {
        Hash64(START)
    }
}

impl Hash64 {
    /// Adds a word.
    pub fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
    }

    /// Adds bytes, and their number, so that `ab` + `c` differs from `a` + `bc`.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn value(self) -> u64 {
        crate::rng::mix(self.0)
    }
}

/// The hash of one run of bytes.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = Hash64::default();
    hash.bytes(bytes);
    hash.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_frozen() {
        assert_eq!(hash_bytes(b""), 0x5036392A816535AA);
        assert_eq!(hash_bytes(b"landfall"), 0x8AF99844ABF49056);
    }

    #[test]
    fn order_and_boundaries_count() {
        let of = |parts: &[&[u8]]| {
            let mut hash = Hash64::default();
            parts.iter().for_each(|part| hash.bytes(part));
            hash.value()
        };
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a", b"b"]), of(&[b"b", b"a"]));
        assert_ne!(of(&[b"a"]), of(&[b"a\0"]));
    }
}
