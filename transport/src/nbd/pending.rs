//! The requests of one connection that the export has not answered.
//!
//! What holds:
//!
//! - the export gets a number of ours, not the client's cookie: clients may use one cookie for several requests
//!   in flight, and each is answered with the cookie it came with;
//! - a number comes back only after 2^32 uses of its slot, so an answer that comes twice is noticed and dropped;
//! - the number of requests and the bytes that their answers or payloads may take are counted.

use super::request::Header;

/// The most requests of one connection in flight. Linux keeps up to 128 for each connection, fio and libnbd as
/// many as they are told.
pub const MAX_IN_FLIGHT: usize = 1024;

/// A request in flight, with what is needed to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The request as it came.
    pub header: Header,
    /// Bytes of memory that it may hold: a read's answer, a write's payload.
    pub charge: usize,
}

/// The table.
#[derive(Debug, Default)]
pub struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
    charged: usize,
}

#[derive(Debug)]
struct Slot {
    /// How many requests this slot has held; the upper half of the number that the export gets.
    generation: u32,
    ticket: Option<Ticket>,
}

impl Pending {
    /// Takes a request in and returns the number to give to the export; `None` if the table is full.
    pub fn insert(&mut self, ticket: Ticket) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_IN_FLIGHT => {
                self.slots.push(Slot { generation: 0, ticket: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        self.charged += ticket.charge;
        slot.ticket = Some(ticket);
        Some(number(slot.generation, index))
    }

    /// Takes out the request of a number that [`Pending::insert`] returned; `None` if it is not in flight.
    pub fn take(&mut self, number: u64) -> Option<Ticket> {
        let index = number as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != (number >> 32) as u32 {
            return None;
        }
        let ticket = slot.ticket.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.charged -= ticket.charge;
        Some(ticket)
    }

    /// Takes out any one request.
    pub fn take_any(&mut self) -> Option<Ticket> {
        let index = self.slots.iter().position(|slot| slot.ticket.is_some())?;
        self.take(number(self.slots[index].generation, index as u32))
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the requests in flight may hold.
    #[must_use]
    pub fn charged(&self) -> usize {
        self.charged
    }
}

fn number(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(cookie: u64) -> Ticket {
        let header = Header { flags: 0, command: 0, cookie, offset: 0, len: 512 };
        Ticket { header, charge: 512 }
    }

    /// N16: one cookie used for all of them; each comes back once.
    #[test]
    fn n16_a_number_is_good_for_one_answer() {
        let mut pending = Pending::default();
        let numbers: Vec<u64> = (0..MAX_IN_FLIGHT).map(|_| pending.insert(ticket(9)).unwrap()).collect();
        assert_eq!(pending.insert(ticket(9)), None, "full");
        assert_eq!(pending.charged(), MAX_IN_FLIGHT * 512);
        for &number in numbers.iter().rev() {
            assert_eq!(pending.take(number), Some(ticket(9)));
            assert_eq!(pending.take(number), None, "a second answer");
        }
        assert!(pending.is_empty());
        assert_eq!(pending.charged(), 0);
        let again = pending.insert(ticket(1)).unwrap();
        assert!(!numbers.contains(&again), "a late second answer must not hit a new request");
        assert_eq!(pending.take_any(), Some(ticket(1)));
        assert_eq!(pending.take_any(), None);
    }
}
