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
use hashbrown::{HashMap, HashSet};
use projection::ApplyError;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    rules::Ledger,
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
    pub(crate) ledger: Ledger,
    /// Ids of the ledger's cards in `items`.
    rows: HashMap<Card, i64>,
    /// The last batch repeated many ids that were not expected: look up all ids of the next one.
    pub(crate) expects_repeats: bool,
    /// When the partition's next waiting sale is due, if any waits; `None` when not known.
    pub(crate) next_due: Option<Option<Timestamp>>,
    share: Share,
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
        self.ledger = Ledger::default();
        self.rows = HashMap::new();
    }

    /// Forgets the cards if all workers together remember too many.
    pub(crate) fn make_room(&mut self, size: &CacheSize) {
        if self.share.is_too_large(size) {
            self.forget_cards();
        }
    }

    /// What was decided is written: amounts stay, all else is forgotten.
    pub(crate) fn mark_written(&mut self, size: &Arc<CacheSize>) {
        self.ledger.mark_written();
        self.share.set(size, self.ledger.len());
    }

    /// Reads the items of cards that are not remembered; with `lock`, no other transaction changes them until
    /// the transaction ends.
    pub(crate) async fn read_items<'a>(
        &mut self,
        tx: &mut PgConnection,
        events: impl Iterator<Item = &'a StockEvent>,
        lock: bool,
    ) -> sqlx::Result<()> {
        let mut missing: Vec<_> = events.map(|event| event.card).filter(|card| !self.rows.contains_key(card)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        for item in store::items(tx, &missing, lock).await? {
            self.ledger.set_amount(item.card, item.amount);
            self.rows.insert(item.card, item.id);
        }
        Ok(())
    }

    /// Looks up which of the ids are in the journal, and has the ledger know those.
    pub(crate) async fn read_applied(
        &mut self,
        tx: &mut PgConnection,
        ids: impl Iterator<Item = Uuid>,
    ) -> sqlx::Result<HashSet<Uuid>> {
        let mut ids: Vec<_> = ids.collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        // in the order of the index, as the journal is written
        ids.sort_unstable();
        let applied = store::applied(tx, &ids).await?;
        for event in &applied {
            self.ledger.set_applied(event);
        }
        Ok(applied.iter().map(|event| event.transaction_id).collect())
    }

    /// Writes new cards and changed amounts.
    pub(crate) async fn write_items(&mut self, tx: &mut PgConnection) -> Result<(), ApplyError> {
        let (mut created, mut amounts) = (Vec::new(), Vec::new());
        for changed in self.ledger.changed() {
            match changed.before {
                None => created.push((changed.card, changed.now)),
                Some(before) => {
                    let id = *self.rows.get(&changed.card).ok_or(ApplyError::Stale)?;
                    amounts.push(Amount { id, before, now: changed.now });
                }
            }
        }
        if !created.is_empty() {
            // another partition may be creating the same cards: in another order, each would wait for the other
            created.sort_unstable();
            let ids = store::create_items(tx, &created).await?;
            self.rows.extend(created.iter().map(|(card, _)| *card).zip(ids));
        }
        store::set_amounts(tx, amounts).await
    }
}
