//! Rules and SQL, joined: reads what a batch needs, judges, writes what was decided.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use events::{
    DeadLetter, Refusal, RefusalClass, Timestamp,
    dead_letter::RecordLocation,
    stock::{Card, StockEvent},
};
use hashbrown::{HashMap, HashSet};
use projection::{ApplyError, Batch, BatchOutput, Decoded, Due, OUTPUT_LIMIT, Projection};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    copy,
    rules::{Decision, Ledger, Retry, RetryPolicy},
    store::{self, Amount, DueRow, NewWaitingSale},
    summary::Summary,
};

/// Cards whose amounts all workers of a process remember at most.
const REMEMBERED: usize = 200_000;
/// Batches for which ids are looked up before the journal is written, after one of them was known.
const CAREFUL: u32 = 50;
/// From this attempt on, the cards are locked: others have changed them each time meanwhile.
const LOCK_FROM_ATTEMPT: u32 = 3;

/// Events to stock on hand.
#[derive(Debug)]
pub struct StockProjection {
    retry_policy: RetryPolicy,
    remembered: Arc<CacheLimit>,
}

/// What all workers of a process remember.
#[derive(Debug, Default)]
struct CacheLimit {
    cards: AtomicUsize,
    workers: AtomicUsize,
}

impl StockProjection {
    /// `retry_policy` is for early sales.
    pub fn new(retry_policy: RetryPolicy) -> StockProjection {
        StockProjection { retry_policy, remembered: Arc::default() }
    }
}

/// What a partition's worker remembers: amounts, so that most batches need not read them. They are
/// only ever believed by a compare-and-set.
#[derive(Debug, Default)]
pub struct Cache {
    ledger: Ledger,
    /// Ids of the ledger's cards in `items`.
    rows: HashMap<Card, i64>,
    careful: u32,
    /// When the partition's next waiting sale is due, if any waits; `None` when not known.
    next_due: Option<Option<Timestamp>>,
    share: Share,
}

/// A worker's part of what all workers of the process remember.
#[derive(Debug, Default)]
struct Share {
    all: Option<Arc<CacheLimit>>,
    own: usize,
}

impl Share {
    /// This worker remembers so many cards now.
    fn set(&mut self, all: &Arc<CacheLimit>, own: usize) {
        let all = self.all.get_or_insert_with(|| {
            all.workers.fetch_add(1, Ordering::Relaxed);
            Arc::clone(all)
        });
        all.cards.fetch_add(own, Ordering::Relaxed);
        all.cards.fetch_sub(self.own, Ordering::Relaxed);
        self.own = own;
    }

    /// All remember too much, and this worker more than others may.
    fn is_too_large(&self, all: &CacheLimit) -> bool {
        let workers = all.workers.load(Ordering::Relaxed).max(1);
        all.cards.load(Ordering::Relaxed) > REMEMBERED && self.own > REMEMBERED / workers
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

impl Projection for StockProjection {
    const SERVICE: &'static str = "stock";
    type Event = StockEvent;
    type Cache = Cache;
    type Summary = Summary;

    fn decode(&self, payload: &[u8]) -> Result<Decoded<StockEvent>, Refusal> {
        match StockEvent::decode_canonical(payload) {
            Some(event) => Ok(Decoded { event, canonical: true }),
            None => Ok(Decoded { event: StockEvent::decode(payload)?, canonical: false }),
        }
    }

    fn encode(event: &StockEvent) -> Vec<u8> {
        event.to_json().into_bytes()
    }

    async fn apply(
        &self,
        tx: &mut PgConnection,
        cache: &mut Cache,
        batch: Batch<'_, StockEvent>,
        now: Timestamp,
        attempt: u32,
    ) -> Result<BatchOutput<Summary>, ApplyError> {
        let source = (batch.topic, batch.partition);
        if batch.events.is_empty() {
            // it may have been changed by hand
            cache.next_due = None;
        }
        let (dead_letters, summary) = if let Some(due) = batch.due {
            // it changes cards that this worker may remember
            cache.forget_cards();
            self.try_again(tx, source, due, now).await?
        } else if batch.events.is_empty() {
            Default::default()
        } else {
            self.apply_events(tx, cache, &batch, now, attempt).await?
        };
        let wake_at = match cache.next_due {
            Some(known) => known,
            None => *cache.next_due.insert(store::next_due(tx, source).await?),
        };
        Ok(BatchOutput { dead_letters, summary, wake_at })
    }

    fn committed(&self, summary: Summary, elapsed: Duration) {
        summary.report(elapsed);
    }
}

impl StockProjection {
    async fn apply_events(
        &self,
        tx: &mut PgConnection,
        cache: &mut Cache,
        batch: &Batch<'_, StockEvent>,
        now: Timestamp,
        attempt: u32,
    ) -> Result<(Vec<DeadLetter>, Summary), ApplyError> {
        let events = || batch.events.iter().map(|record| &record.event);
        if cache.share.is_too_large(&self.remembered) {
            cache.forget_cards();
        }
        cache.read_items(tx, events(), attempt >= LOCK_FROM_ATTEMPT).await?;
        let waiting = store::waiting(tx, events()).await?;
        let mut applied = HashSet::new();
        let is_looked_up = attempt > 0 || cache.careful > 0;
        if is_looked_up {
            let ids = events().map(|event| event.transaction_id);
            applied = cache.read_applied(tx, ids.chain(waiting.iter().map(|row| row.sale.transaction_id))).await?;
        }
        let mut waiting_rows = HashMap::new();
        // one that was applied by way of another partition meanwhile is taken out when it is due
        for row in waiting.iter().filter(|row| !applied.contains(&row.sale.transaction_id)) {
            waiting_rows.insert(row.sale.transaction_id, row.id);
            cache.ledger.set_waiting(row.sale);
        }

        let mut summary = Summary::default();
        let (mut journal, mut letters) = (Vec::with_capacity(batch.events.len()), Vec::new());
        let (mut new_waiting, mut passed_through, mut removed) = (Vec::new(), HashSet::new(), Vec::new());
        let (mut released, mut refused, mut output_bytes) = (Vec::new(), Vec::new(), 0);
        for record in batch.events {
            let event = &record.event;
            let decision = cache.ledger.decide(event, &mut released);
            summary.count(event, &decision);
            match decision {
                Decision::Applied { .. } => journal.push(*event),
                Decision::Waits => {
                    let payload = batch.payload(record);
                    let (record_offset, key) = (batch.offset(record), batch.key(record));
                    output_bytes += payload.len() + key.map_or(0, <[u8]>::len);
                    new_waiting.push(NewWaitingSale { sale: *event, record_offset, key, payload });
                }
                Decision::Duplicate => {}
                Decision::Refused(refusal) => {
                    let letter = batch.refuse(record, &refusal);
                    output_bytes += letter.payload.len() + letter.key.as_ref().map_or(0, Vec::len);
                    letters.push(letter);
                    refused.push(event.transaction_id);
                }
            }
            if output_bytes > OUTPUT_LIMIT && batch.events.len() > 1 {
                return Err(ApplyError::TooLarge);
            }
            for released in released.drain(..) {
                summary.count_released(&released);
                journal.push(released.sale);
                match waiting_rows.get(&released.sale.transaction_id) {
                    Some(row) => removed.push(*row),
                    None => {
                        passed_through.insert(released.sale.transaction_id);
                    }
                }
            }
        }
        new_waiting.retain(|new_waiting| !passed_through.contains(&new_waiting.sale.transaction_id));

        // what waits or is refused is not copied to the journal, where a known id would show
        if !is_looked_up {
            refused.extend(new_waiting.iter().map(|new_waiting| new_waiting.sale.transaction_id));
            if !refused.is_empty() && !store::applied(tx, &refused).await?.is_empty() {
                return Err(ApplyError::Stale);
            }
        }

        // first the items, then the waiting sales: the same order as in `try_again`, against deadlocks
        cache.write_items(tx).await?;
        store::remove_waiting(tx, &removed).await?;
        let known = |error: sqlx::Error| if store::is_known_id(&error) { ApplyError::Stale } else { error.into() };
        let first_try = now.plus_micros(self.retry_policy.pause(0).as_micros() as i64);
        store::add_waiting(tx, (batch.topic, batch.partition), &new_waiting, first_try).await.map_err(known)?;
        if !new_waiting.is_empty()
            && let Some(next_due) = &mut cache.next_due
        {
            *next_due = Some(next_due.map_or(first_try, |next| next.min(first_try)));
        }
        // in the order of its key, the index is built with 40 % less work: neighbours meet on a page
        journal.sort_unstable_by_key(|event| event.transaction_id);
        copy::copy_journal(tx, &journal, &mut Vec::new()).await.map_err(known)?;
        cache.ledger.mark_written();
        cache.share.set(&self.remembered, cache.ledger.len());
        Ok((letters, summary))
    }

    /// Tries waiting sales that are due once more.
    async fn try_again(
        &self,
        tx: &mut PgConnection,
        source: (&str, i32),
        due: Due<'_>,
        now: Timestamp,
    ) -> Result<(Vec<DeadLetter>, Summary), ApplyError> {
        let rows = store::due(tx, source, due.caught_up_at, due.limit).await?;
        let mut cache = Cache::default();
        let sales = || rows.iter().map(|row| &row.waiting.sale);
        // few rows, and others may change the cards meanwhile
        cache.read_items(tx, sales(), true).await?;
        cache.read_applied(tx, sales().map(|sale| sale.transaction_id)).await?;
        let mut summary = Summary::default();
        let (mut journal, mut letters) = (Vec::new(), Vec::new());
        let (mut removed, mut postponed) = (Vec::new(), Vec::new());
        let mut released = Vec::new();
        for row in &rows {
            let sale = &row.waiting.sale;
            let mut give_up = |refusal: Refusal| {
                letters.push(refuse(row, &refusal));
                summary.count(sale, &Decision::Refused(refusal));
                removed.push(row.waiting.id);
            };
            if let Some(why) = due.refuse {
                let error = format!("the waiting sale cannot be applied: {why}");
                give_up(Refusal { error, class: RefusalClass::NotApplicable });
                continue;
            }
            let known = cache.ledger.knows(sale.transaction_id);
            match (known, self.retry_policy.retry(sale, cache.ledger.amount(sale.card), row.tries)) {
                // its id was applied from another partition meanwhile; or it fits now
                (true, _) | (_, Retry::Applied { .. }) => match cache.ledger.decide(sale, &mut released) {
                    Decision::Refused(refusal) => give_up(refusal),
                    decision => {
                        summary.count(sale, &decision);
                        if matches!(decision, Decision::Applied { .. }) {
                            journal.push(*sale);
                        }
                        removed.push(row.waiting.id);
                    }
                },
                (false, Retry::Waits(pause)) => {
                    postponed.push((row.waiting.id, now.plus_micros(pause.as_micros() as i64)))
                }
                (false, Retry::GivenUp(refusal)) => give_up(refusal),
            }
        }
        store::remove_waiting(tx, &removed).await?;
        store::postpone(tx, &postponed).await?;
        cache.write_items(tx).await?;
        copy::copy_journal(tx, &journal, &mut Vec::new())
            .await
            .map_err(|error| if store::is_known_id(&error) { ApplyError::Stale } else { error.into() })?;
        Ok((letters, summary))
    }
}

impl Cache {
    /// Amounts are read again when they are needed.
    fn forget_cards(&mut self) {
        self.ledger = Ledger::default();
        self.rows = HashMap::new();
    }

    /// Reads the items of cards that are not remembered; with `lock`, nobody else changes them until
    /// the transaction ends.
    async fn read_items<'a>(
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

    /// Looks up which of the ids are in the journal. When some are, more are likely to come.
    async fn read_applied(
        &mut self,
        tx: &mut PgConnection,
        ids: impl Iterator<Item = Uuid>,
    ) -> sqlx::Result<HashSet<Uuid>> {
        let mut ids: Vec<_> = ids.collect();
        // in the order of the index, as in `apply_events`
        ids.sort_unstable();
        let applied = store::applied(tx, &ids).await?;
        self.careful = if applied.is_empty() { self.careful.saturating_sub(1) } else { CAREFUL };
        for event in &applied {
            self.ledger.set_applied(event);
        }
        Ok(applied.iter().map(|event| event.transaction_id).collect())
    }

    async fn write_items(&mut self, tx: &mut PgConnection) -> Result<(), ApplyError> {
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

fn refuse(row: &DueRow, refusal: &Refusal) -> DeadLetter {
    let place = RecordLocation {
        service: StockProjection::SERVICE,
        topic: &row.topic,
        partition: row.partition,
        offset: row.record_offset,
    };
    DeadLetter::of_record(place, row.key.as_deref(), &row.payload, refusal)
}
