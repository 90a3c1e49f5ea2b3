//! The buffer that a connection receives into.
//!
//! Payloads of writes are handed to the export as slices of this buffer. The export copies them and lets go, and
//! then the same memory receives the next bytes; if it holds on to one, the buffer is replaced. A large write is
//! received into its final place: the buffer is made as long as the request at its front, once, when its header
//! has been checked, and what has arrived is moved to the front at most once.

use bytes::{Buf, Bytes};

/// What a connection receives in one go, when no request needs more.
const USUAL_BYTES: usize = 256 << 10;
/// Room behind a request that is longer than that, so that the next ones come in with it.
const ROOM_BEHIND: usize = 64 << 10;
/// A larger buffer is given back after this many rounds in which it was not needed.
const ROUNDS_KEPT: u32 = 64;

/// Received bytes that are not used up.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Rounds in which a large buffer was not needed.
    unneeded: u32,
}

impl Inbox {
    /// Begins with bytes that arrived earlier.
    pub(super) fn new(arrived: Vec<u8>) -> Inbox {
        Inbox { bytes: arrived, unneeded: 0 }
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The buffer to append to, with spare capacity for at least the bytes that are missing to `need`.
    pub(super) fn fillable(&mut self, need: usize) -> &mut Vec<u8> {
        let wanted = if need <= USUAL_BYTES { USUAL_BYTES } else { need + ROOM_BEHIND };
        if self.bytes.capacity() > USUAL_BYTES && wanted == USUAL_BYTES {
            self.unneeded += 1;
            if self.unneeded > ROUNDS_KEPT {
                self.bytes.shrink_to(USUAL_BYTES);
                self.unneeded = 0;
            }
        } else {
            self.unneeded = 0;
        }
        if self.bytes.capacity() < wanted {
            self.bytes.reserve_exact(wanted - self.bytes.len());
        } else if self.bytes.capacity() == self.bytes.len() {
            self.bytes.reserve(USUAL_BYTES);
        }
        &mut self.bytes
    }

    /// Takes all bytes out.
    pub(super) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.bytes))
    }

    /// Puts back what was not used up, and takes the memory back if nobody else holds on to it.
    pub(super) fn put_back(&mut self, rest: Bytes) {
        self.bytes = match rest.try_into_mut() {
            Ok(rest) => Vec::from(rest),
            Err(rest) => {
                let mut bytes = Vec::with_capacity(USUAL_BYTES.max(rest.len()));
                bytes.extend_from_slice(rest.chunk());
                bytes
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_unless_somebody_holds_on_to_it() {
        let mut inbox = Inbox::default();
        inbox.fillable(28).extend_from_slice(&[7; 1000]);
        let memory = inbox.bytes.as_ptr();
        for round in 0..10 {
            let mut input = inbox.take();
            let payload = input.slice(100..900);
            input.advance(990);
            drop(payload);
            inbox.put_back(input);
            assert_eq!(inbox.bytes, [7; 10], "round {round}");
            assert_eq!(inbox.bytes.as_ptr(), memory, "round {round}");
            assert!(inbox.bytes.capacity() >= USUAL_BYTES);
            inbox.fillable(28).extend_from_slice(&[7; 990]);
        }
        let mut input = inbox.take();
        let payload = input.slice(100..900);
        input.advance(990);
        inbox.put_back(input);
        assert_eq!(inbox.bytes, [7; 10]);
        assert_ne!(inbox.bytes.as_ptr(), memory);
        assert_eq!(payload, [7; 800][..]);
    }

    #[test]
    fn a_large_request_gets_its_place_once_and_the_memory_goes_back_later() {
        let mut inbox = Inbox::new(vec![1; 100]);
        let need = (32 << 20) + 28;
        let capacity = inbox.fillable(need).capacity();
        assert!(capacity >= need && capacity <= need + 2 * ROOM_BEHIND);
        while inbox.len() < need {
            assert_eq!(inbox.fillable(need).capacity(), capacity);
            inbox.bytes.resize((inbox.len() + (1 << 20)).min(need), 2);
        }
        let mut input = inbox.take();
        input.advance(need);
        inbox.put_back(input);
        assert!(inbox.bytes.capacity() >= need, "the next one may be as large");
        for _ in 0..=ROUNDS_KEPT {
            inbox.fillable(28);
        }
        assert!(inbox.bytes.capacity() < 2 * USUAL_BYTES);
    }
}
