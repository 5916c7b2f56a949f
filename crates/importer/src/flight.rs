//! What is on its way to Kafka. Records are counted in chunks, not one by one: a chunk has a slot,
//! every record carries its slot's number, and an acknowledgement counts the slot down. Chunks are
//! done in the order in which they were closed.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

/// How many chunks may be on their way.
const SLOTS: usize = 1024;

/// Shared with the client's callback, which runs on the same thread: so a load and a store do
/// where threads would need an atomic addition.
#[derive(Debug)]
pub(crate) struct Slots {
    pending: Box<[AtomicU32]>,
    acknowledged: AtomicU64,
}

impl Slots {
    /// One record of the slot is acknowledged.
    pub(crate) fn acknowledge(&self, slot: usize) {
        let pending = &self.pending[slot];
        pending.store(pending.load(Relaxed).saturating_sub(1), Relaxed);
        self.acknowledged.store(self.acknowledged.load(Relaxed) + 1, Relaxed);
    }
}

/// Chunks on their way; each carries what it stands for.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    slots: Arc<Slots>,
    closed: VecDeque<T>,
    /// The number of the first chunk in `closed`; its slot is the remainder.
    first: usize,
    sent: u64,
}

impl<T> Flight<T> {
    pub(crate) fn new() -> Flight<T> {
        let pending = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        let slots = Arc::new(Slots { pending, acknowledged: AtomicU64::new(0) });
        Flight { slots, closed: VecDeque::new(), first: 0, sent: 0 }
    }

    pub(crate) fn slots(&self) -> Arc<Slots> {
        self.slots.clone()
    }

    /// Whether no chunk can be begun until one is done.
    pub(crate) fn is_full(&self) -> bool {
        self.closed.len() >= SLOTS - 1
    }

    /// The slot of the chunk that is being filled.
    pub(crate) fn open_slot(&self) -> usize {
        (self.first + self.closed.len()) % SLOTS
    }

    /// A record of the open chunk is on its way.
    pub(crate) fn sent(&mut self, slot: usize) {
        let pending = &self.slots.pending[slot];
        pending.store(pending.load(Relaxed) + 1, Relaxed);
        self.sent += 1;
    }

    /// Closes the open chunk: it is done when all of its records are acknowledged.
    pub(crate) fn close(&mut self, stands_for: T) {
        self.closed.push_back(stands_for);
    }

    /// The next chunk that is done.
    pub(crate) fn done(&mut self) -> Option<T> {
        if self.slots.pending[self.first % SLOTS].load(Relaxed) > 0 {
            return None;
        }
        let stands_for = self.closed.pop_front()?;
        self.first += 1;
        Some(stands_for)
    }

    /// What the chunk of a slot stands for; None for the one that is being filled.
    pub(crate) fn of_slot(&self, slot: usize) -> Option<&T> {
        self.closed.get((slot + SLOTS - self.first % SLOTS) % SLOTS)
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.closed.is_empty()
    }

    /// Records on their way.
    pub(crate) fn records(&self) -> u64 {
        self.sent - self.acknowledged()
    }

    /// Records acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.slots.acknowledged.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_done_in_order_and_only_when_all_of_their_records_are_acknowledged() {
        let mut flight = Flight::new();
        let first = flight.open_slot();
        flight.sent(first);
        flight.sent(first);
        flight.slots().acknowledge(first);
        assert_eq!(flight.done(), None, "it is not closed");
        flight.close("first");
        let second = flight.open_slot();
        flight.sent(second);
        flight.close("second");
        flight.close("empty");
        flight.slots().acknowledge(second);
        assert_eq!((flight.done(), flight.of_slot(second), flight.records()), (None, Some(&"second"), 1));
        flight.slots().acknowledge(first);
        assert_eq!([flight.done(), flight.done(), flight.done()], [Some("first"), Some("second"), Some("empty")]);
        assert_eq!((flight.done(), flight.records(), flight.is_empty()), (None, 0, true));
    }

    #[test]
    fn slots_are_used_again_and_never_twice_at_a_time() {
        let mut flight = Flight::new();
        for number in 0..SLOTS * 3 {
            let slot = flight.open_slot();
            flight.sent(slot);
            flight.close(number);
            if flight.is_full() {
                let oldest = number + 2 - SLOTS;
                assert_eq!(flight.of_slot(oldest % SLOTS), Some(&oldest));
                flight.slots().acknowledge(oldest % SLOTS);
                assert_eq!(flight.done(), Some(oldest));
            }
        }
    }
}
