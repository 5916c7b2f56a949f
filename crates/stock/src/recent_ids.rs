//! Which transaction ids have been seen lately: a hint that an id is worth looking up in the journal.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use uuid::Uuid;

/// Groups of slots; with [`SLOTS`] of 4 bytes each, 2 MiB for about half a million ids.
const GROUPS: usize = 1 << 17;
const SLOTS: usize = 4;

/// Fingerprints of the last half million ids or so, shared by all workers of a process. It may forget an id,
/// and may (rarely) take one for another: a hint says only where to look first.
#[derive(Debug)]
pub(crate) struct RecentIds {
    /// Groups of slots, the latest first; 0 is an empty slot.
    slots: Box<[AtomicU32]>,
}

impl Default for RecentIds {
    fn default() -> RecentIds {
        RecentIds { slots: (0..GROUPS * SLOTS).map(|_| AtomicU32::new(0)).collect() }
    }
}

impl RecentIds {
    /// Whether this id, or one with the same fingerprint, was added lately.
    pub(crate) fn contains(&self, id: Uuid) -> bool {
        let (group, fingerprint) = self.place(id);
        group.iter().any(|slot| slot.load(Relaxed) == fingerprint)
    }

    /// Adds an id in the place of the oldest one of its group. Workers may race for a group: then one
    /// of the ids is forgotten.
    pub(crate) fn add(&self, id: Uuid) {
        let (group, fingerprint) = self.place(id);
        let mut next = fingerprint;
        for slot in group {
            let previous = slot.load(Relaxed);
            slot.store(next, Relaxed);
            if previous == fingerprint {
                break;
            }
            next = previous;
        }
    }

    fn place(&self, id: Uuid) -> (&[AtomicU32], u32) {
        let (high, low) = id.as_u64_pair();
        // ids that are counted up, or begin with a time, must spread as random ones do
        let hash = (high.rotate_left(32) ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let group = (hash >> 47) as usize * SLOTS;
        (&self.slots[group..group + SLOTS], (hash as u32).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_last_hundred_thousand_are_known_and_others_are_not() {
        let ids: Vec<_> = (0..200_000_u128).map(|number| Uuid::from_u128(number << 64 | number)).collect();
        let recent = RecentIds::default();
        assert!(!recent.contains(ids[0]));
        let (added, others) = ids.split_at(100_000);
        added.iter().for_each(|id| recent.add(*id));
        assert_eq!(added.iter().filter(|id| !recent.contains(**id)).count(), 0);
        assert!(others.iter().filter(|id| recent.contains(**id)).count() < 5);
    }

    #[test]
    fn an_id_that_is_added_again_does_not_push_out_others() {
        let recent = RecentIds::default();
        // ids of one group
        let group = |id: Uuid| recent.place(id).0.as_ptr();
        let first = Uuid::from_u128(7);
        let same: Vec<_> =
            (8_u128..).map(Uuid::from_u128).filter(|id| group(*id) == group(first)).take(SLOTS).collect();
        recent.add(first);
        recent.add(same[0]);
        for _ in 0..10 {
            recent.add(same[1]);
        }
        assert!(recent.contains(first) && recent.contains(same[0]) && recent.contains(same[1]));
        recent.add(same[2]);
        recent.add(same[3]);
        assert!(!recent.contains(first), "the oldest makes room");
    }
}
