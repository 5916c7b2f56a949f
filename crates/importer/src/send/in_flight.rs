//! Records in flight to Kafka. They are counted by chunk: a chunk has a slot, every record carries the number
//! of its slot, and an acknowledgement counts the slot down. The chunks of a file complete in the order in
//! which they were closed; files do not wait for each other.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// How many chunks may be in flight.
const MAX_CHUNKS: usize = 16 * 1024;

/// Shared with the client's callback. That runs on the same thread, so a load and a store are enough where
/// several threads would need an atomic addition.
#[derive(Debug)]
pub(crate) struct Slots {
    pending: Box<[Pending]>,
    acknowledged: AtomicU64,
    acknowledged_bytes: AtomicU64,
    /// Slots whose records are all acknowledged.
    emptied: Mutex<Vec<usize>>,
}

/// What is not acknowledged of a chunk.
#[derive(Debug, Default)]
struct Pending {
    records: AtomicU32,
    bytes: AtomicU32,
}

impl Slots {
    /// One record of the slot, of `bytes` bytes, is acknowledged.
    pub(crate) fn acknowledge(&self, slot: usize, bytes: usize) {
        let pending = &self.pending[slot];
        let left = pending.records.load(Relaxed).saturating_sub(1);
        pending.records.store(left, Relaxed);
        pending.bytes.store(pending.bytes.load(Relaxed).saturating_sub(bytes as u32), Relaxed);
        self.acknowledged.store(self.acknowledged.load(Relaxed) + 1, Relaxed);
        self.acknowledged_bytes.store(self.acknowledged_bytes.load(Relaxed) + bytes as u64, Relaxed);
        if left == 0 {
            self.emptied(slot);
        }
    }

    fn emptied(&self, slot: usize) {
        self.emptied.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }

    fn is_pending(&self, slot: usize) -> bool {
        self.pending[slot].records.load(Relaxed) > 0
    }
}

/// Chunks in flight; each carries a value of the caller.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    slots: Arc<Slots>,
    free: Vec<usize>,
    /// The slot of the chunk that is being filled.
    open: usize,
    /// Which file's chunk is in which slot.
    files: Vec<Option<u64>>,
    closed: HashMap<u64, VecDeque<Closed<T>>>,
    done: VecDeque<T>,
    sent: u64,
    sent_bytes: u64,
}

/// Chunks, records and bytes that are in flight, or that there is room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) chunks: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Closed<T> {
    slot: usize,
    at: Instant,
    value: T,
}

impl<T> InFlight<T> {
    pub(crate) fn new() -> InFlight<T> {
        let slots = Arc::new(Slots {
            pending: (0..MAX_CHUNKS).map(|_| Pending::default()).collect(),
            acknowledged: AtomicU64::new(0),
            acknowledged_bytes: AtomicU64::new(0),
            emptied: Mutex::default(),
        });
        InFlight {
            slots,
            free: (1..MAX_CHUNKS).rev().collect(),
            open: 0,
            files: vec![None; MAX_CHUNKS],
            closed: HashMap::new(),
            done: VecDeque::new(),
            sent: 0,
            sent_bytes: 0,
        }
    }

    pub(crate) fn slots(&self) -> Arc<Slots> {
        self.slots.clone()
    }

    /// Whether no chunk can be opened until one is complete.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The slot of the chunk that is being filled.
    pub(crate) fn open_slot(&self) -> usize {
        self.open
    }

    /// A record of the open chunk, of `bytes` bytes, is in flight.
    pub(crate) fn sent(&mut self, slot: usize, bytes: usize) {
        let pending = &self.slots.pending[slot];
        pending.records.store(pending.records.load(Relaxed) + 1, Relaxed);
        pending.bytes.store(pending.bytes.load(Relaxed).saturating_add(bytes as u32), Relaxed);
        self.sent += 1;
        self.sent_bytes += bytes as u64;
    }

    /// Closes the open chunk: it is complete when all of its records are acknowledged, and all chunks of its
    /// file that were closed before are complete. There must be room ([`InFlight::is_full`]).
    pub(crate) fn close(&mut self, file: u64, value: T) {
        let next = self.free.pop().expect("the caller checks is_full");
        let slot = mem::replace(&mut self.open, next);
        self.files[slot] = Some(file);
        self.closed.entry(file).or_default().push_back(Closed { slot, at: Instant::now(), value });
        if !self.slots.is_pending(slot) {
            self.slots.emptied(slot);
        }
    }

    /// The next chunk that is complete.
    pub(crate) fn next_done(&mut self) -> Option<T> {
        let emptied = mem::take(&mut *self.slots.emptied.lock().unwrap_or_else(PoisonError::into_inner));
        for slot in emptied {
            // `None`: it is being filled, or was completed together with the one before
            let Some(file) = self.files[slot] else { continue };
            let Some(chunks) = self.closed.get_mut(&file) else { continue };
            while let Some(chunk) = chunks.pop_front_if(|chunk| !self.slots.is_pending(chunk.slot)) {
                self.files[chunk.slot] = None;
                self.free.push(chunk.slot);
                self.done.push_back(chunk.value);
            }
            if chunks.is_empty() {
                self.closed.remove(&file);
            }
        }
        self.done.pop_front()
    }

    /// The file and the value of the chunk in a slot; `None` for the one that is being filled.
    pub(crate) fn chunk_in_slot(&self, slot: usize) -> Option<(u64, &T)> {
        let file = self.files[slot]?;
        let chunk = self.closed.get(&file)?.iter().find(|chunk| chunk.slot == slot)?;
        Some((file, &chunk.value))
    }

    /// Since when the file's first chunk has been waiting for its acknowledgement.
    pub(crate) fn waiting_since(&self, file: u64) -> Option<Instant> {
        Some(self.closed.get(&file)?.front()?.at)
    }

    /// Files with a chunk that has waited since before `time`.
    pub(crate) fn files_waiting_since(&self, time: Instant) -> usize {
        self.closed.values().filter(|chunks| chunks.front().is_some_and(|chunk| chunk.at < time)).count()
    }

    /// What a file has in flight, without the open chunk.
    pub(crate) fn usage_of(&self, file: u64) -> Usage {
        let mut usage = Usage::default();
        for chunk in self.closed.get(&file).into_iter().flatten() {
            let pending = &self.slots.pending[chunk.slot];
            usage.chunks += 1;
            usage.records += u64::from(pending.records.load(Relaxed));
            usage.bytes += u64::from(pending.bytes.load(Relaxed));
        }
        usage
    }

    /// How many further chunks can be opened.
    pub(crate) fn free_chunks(&self) -> u64 {
        self.free.len() as u64
    }

    /// Bytes of records in flight.
    pub(crate) fn bytes(&self) -> u64 {
        self.sent_bytes - self.slots.acknowledged_bytes.load(Relaxed)
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.closed.is_empty()
    }

    /// Records in flight.
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
    fn chunks_of_a_file_complete_in_order_and_only_when_all_of_their_records_are_acknowledged() {
        let mut in_flight = InFlight::new();
        let first = in_flight.open_slot();
        in_flight.sent(first, 10);
        in_flight.sent(first, 10);
        in_flight.slots().acknowledge(first, 10);
        assert_eq!(in_flight.next_done(), None, "it is not closed");
        in_flight.close(1, "first");
        let second = in_flight.open_slot();
        in_flight.sent(second, 10);
        in_flight.close(1, "second");
        in_flight.close(1, "empty");
        in_flight.slots().acknowledge(second, 10);
        assert_eq!(
            (in_flight.next_done(), in_flight.chunk_in_slot(second), in_flight.records()),
            (None, Some((1, &"second")), 1)
        );
        in_flight.slots().acknowledge(first, 10);
        assert_eq!(
            [in_flight.next_done(), in_flight.next_done(), in_flight.next_done()],
            [Some("first"), Some("second"), Some("empty")]
        );
        assert_eq!((in_flight.next_done(), in_flight.records(), in_flight.is_empty()), (None, 0, true));
    }

    #[test]
    fn a_file_does_not_wait_for_another() {
        let mut in_flight = InFlight::new();
        let stuck = in_flight.open_slot();
        in_flight.sent(stuck, 10);
        in_flight.close(1, "stuck");
        let other = in_flight.open_slot();
        in_flight.sent(other, 10);
        in_flight.close(2, "other");
        in_flight.slots().acknowledge(other, 10);
        assert_eq!((in_flight.next_done(), in_flight.next_done()), (Some("other"), None));
        assert_eq!(in_flight.usage_of(1), Usage { chunks: 1, records: 1, bytes: 10 });
        assert_eq!((in_flight.usage_of(2), in_flight.bytes()), (Usage::default(), 10));
        assert!(in_flight.waiting_since(1).is_some() && in_flight.waiting_since(2).is_none());
        let later = Instant::now() + std::time::Duration::from_secs(1);
        assert_eq!(in_flight.files_waiting_since(later), 1);
    }

    #[test]
    fn slots_are_reused_and_never_shared() {
        let mut in_flight = InFlight::new();
        let mut open = VecDeque::new();
        for number in 0..MAX_CHUNKS * 3 {
            let slot = in_flight.open_slot();
            assert!(!open.contains(&slot) || open.len() > 100, "slot {slot} is used twice");
            in_flight.sent(slot, 10);
            in_flight.close(7, number);
            open.push_back(slot);
            if in_flight.is_full() {
                while let Some(slot) = open.pop_front() {
                    in_flight.slots().acknowledge(slot, 10);
                    assert!(in_flight.next_done().is_some());
                }
            }
        }
    }
}
