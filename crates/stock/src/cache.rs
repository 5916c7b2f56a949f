//! What workers remember between batches, so that most of them need not read it: amounts of cards, and
//! when the next waiting sale is due.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use events::{
    Timestamp,
    stock::{Card, StockEvent},
};
use hashbrown::HashMap;
use projection::ApplyError;
use sqlx::PgConnection;

use crate::{
    rules::{Changed, Ledger},
    store::{self, Amount},
};

/// Cards whose amounts all workers of a process remember at most.
const MAX_CARDS: usize = 200_000;

/// What all workers of a process remember together.
#[derive(Debug, Default)]
pub(crate) struct CacheSize {
    cards: AtomicUsize,
    workers: AtomicUsize,
}

/// What a partition's worker remembers. Amounts are only ever believed by a compare-and-set.
#[derive(Debug, Default)]
pub struct Cache {
    cards: HashMap<Card, Row>,
    /// When the partition's next waiting sale is due, if any waits; `None` when not known.
    pub(crate) next_due: Option<Option<Timestamp>>,
    share: Share,
}

/// A card's row of `items`.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: i64,
    amount: i64,
}

/// A worker's part of what all workers of the process remember.
#[derive(Debug, Default)]
struct Share {
    all: Option<Arc<CacheSize>>,
    own: usize,
}

impl Share {
    /// This worker remembers so many cards now.
    fn set(&mut self, all: &Arc<CacheSize>, own: usize) {
        let all = self.all.get_or_insert_with(|| {
            all.workers.fetch_add(1, Ordering::Relaxed);
            Arc::clone(all)
        });
        all.cards.fetch_add(own, Ordering::Relaxed);
        all.cards.fetch_sub(self.own, Ordering::Relaxed);
        self.own = own;
    }

    /// All remember too much, and this worker more than others may.
    fn is_too_large(&self, all: &CacheSize) -> bool {
        let workers = all.workers.load(Ordering::Relaxed).max(1);
        all.cards.load(Ordering::Relaxed) > MAX_CARDS && self.own > MAX_CARDS / workers
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            all.cards.fetch_sub(self.own, Ordering::Relaxed);
            all.workers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Cache {
    /// Amounts are read again when they are needed.
    pub(crate) fn forget_cards(&mut self) {
        self.cards = HashMap::new();
    }

    /// Forgets the cards if all workers together remember too many.
    pub(crate) fn make_room(&mut self, size: &CacheSize) {
        if self.share.is_too_large(size) {
            self.forget_cards();
        }
    }

    /// Has the ledger know the amounts of the events' cards, and reads those that are not remembered;
    /// with `lock`, no other transaction changes these until this one ends.
    pub(crate) async fn read_amounts<'a>(
        &mut self,
        tx: &mut PgConnection,
        ledger: &mut Ledger,
        events: impl Iterator<Item = &'a StockEvent>,
        lock: bool,
    ) -> sqlx::Result<()> {
        let mut missing = Vec::new();
        for event in events {
            match self.cards.get(&event.card) {
                Some(row) => ledger.set_amount(event.card, row.amount),
                None => missing.push(event.card),
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        for item in store::items(tx, &missing, lock).await? {
            ledger.set_amount(item.card, item.amount);
            self.cards.insert(item.card, Row { id: item.id, amount: item.amount });
        }
        Ok(())
    }

    /// Writes the new cards and changed amounts of a ledger, and remembers them.
    pub(crate) async fn write_amounts(
        &mut self,
        tx: &mut PgConnection,
        ledger: &Ledger,
        size: &Arc<CacheSize>,
    ) -> Result<(), ApplyError> {
        let (mut created, mut amounts) = (Vec::new(), Vec::new());
        for Changed { card, before, now } in ledger.changed() {
            match before {
                None => created.push((card, now)),
                Some(before) => {
                    let row = self.cards.get_mut(&card).ok_or(ApplyError::Stale)?;
                    row.amount = now;
                    amounts.push(Amount { id: row.id, before, now });
                }
            }
        }
        // rows first, then new keys, as a batch does that locks its rows before it decides: in another
        // order, each of two such batches could wait for the other
        store::set_amounts(tx, amounts).await?;
        if !created.is_empty() {
            // another partition may be creating the same cards: in another order, each would wait for the other
            created.sort_unstable();
            let ids = store::create_items(tx, &created).await?;
            let rows = created.iter().zip(ids).map(|((card, amount), id)| (*card, Row { id, amount: *amount }));
            self.cards.extend(rows);
        }
        self.share.set(size, self.cards.len());
        Ok(())
    }
}
