//! Rules and SQL, joined: reads what a batch needs, decides, writes what was decided.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use events::{Message, Refusal, RefusalClass, Timestamp, stock::StockEvent};
use hashbrown::{HashMap, HashSet};
use projection::{ApplyError, Batch, BatchOutput, Decoded, Due, OUTPUT_LIMIT, Projection, Received, Record};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    cache::{Cache, CacheSize},
    copy::{self, JournalRow, Origin},
    recent_ids::RecentIds,
    rules::{Decision, Ledger, Retry, RetryPolicy},
    store::{self, NewWaitingSale, WaitingRow},
    summary::Summary,
};

/// From this attempt on, the cards are locked: others have changed them each time meanwhile.
const LOCK_FROM_ATTEMPT: u32 = 3;
/// Batches whose ids are all looked up after one that repeated an id unexpectedly: others are likely to do
/// so too, and a batch that breaks costs more than looking its ids up.
const LOOKUP_BATCHES: u32 = 20;

/// Events to stock on hand.
#[derive(Debug)]
pub struct StockProjection {
    retry_policy: RetryPolicy,
    recent_ids: RecentIds,
    /// Batches of all workers whose ids are still to be looked up, see [`LOOKUP_BATCHES`].
    lookups: AtomicU32,
    cache_size: Arc<CacheSize>,
}

impl StockProjection {
    /// `retry_policy` is for early sales.
    pub fn new(retry_policy: RetryPolicy) -> StockProjection {
        StockProjection {
            retry_policy,
            recent_ids: RecentIds::default(),
            lookups: AtomicU32::new(0),
            cache_size: Arc::default(),
        }
    }
}

impl Projection for StockProjection {
    const SERVICE: &'static str = "stock";
    type Event = StockEvent;
    type Cache = Cache;
    type Summary = Summary;

    fn decode(&self, record: &Record<'_>) -> Result<Decoded<StockEvent>, Refusal> {
        match StockEvent::decode_canonical(record.payload) {
            Some(event) => Ok(Decoded::encodable(event, |event| event.to_json().into_bytes())),
            None => StockEvent::decode(record.payload).map(Decoded::new),
        }
    }

    async fn apply(
        &self,
        tx: &mut PgConnection,
        cache: &mut Cache,
        batch: Batch<'_, StockEvent>,
        now: Timestamp,
    ) -> Result<BatchOutput<Summary>, ApplyError> {
        if batch.events.is_empty() {
            // it may have been changed by hand
            cache.next_due = None;
        }
        let (messages, summary) = if let Some(due) = batch.due {
            // it changes cards that this worker may remember
            cache.forget_cards();
            self.try_again(tx, &batch, due, now).await?
        } else if batch.events.is_empty() {
            Default::default()
        } else {
            self.apply_events(tx, cache, &batch, now).await?
        };
        let wake_at = match cache.next_due {
            Some(known) => known,
            None => *cache.next_due.insert(store::next_due(tx, batch.source).await?),
        };
        Ok(BatchOutput { messages, summary, wake_at })
    }

    fn committed(&self, summary: Summary, elapsed: Duration) {
        summary.report(elapsed);
    }
}

/// What a batch comes to.
#[derive(Default)]
struct Decided<'a> {
    journal: Vec<JournalRow>,
    new_waiting: HashMap<Uuid, NewWaitingSale<'a>>,
    /// Rows of `waiting_sales` that wait no longer.
    released: Vec<i64>,
    refused: Vec<Uuid>,
    messages: Vec<Message>,
    summary: Summary,
}

impl StockProjection {
    async fn apply_events(
        &self,
        tx: &mut PgConnection,
        cache: &mut Cache,
        batch: &Batch<'_, StockEvent>,
        now: Timestamp,
    ) -> Result<(Vec<Message>, Summary), ApplyError> {
        let events = || batch.events.iter().map(|record| &record.event);
        cache.make_room(&self.cache_size);
        let mut ledger = Ledger::with_room(batch.events.len());
        cache.read_amounts(tx, &mut ledger, events(), batch.attempt >= LOCK_FROM_ATTEMPT).await?;
        let waiting = store::waiting(tx, events()).await?;
        let ids = || events().map(|event| event.transaction_id);
        let all_looked_up = batch.attempt > 0 || self.lookups.load(Relaxed) > 0;
        let applied = if all_looked_up {
            let applied =
                read_applied(tx, &mut ledger, ids().chain(waiting.iter().map(|row| row.sale.transaction_id))).await?;
            if ids().any(|id| applied.contains(&id) && !self.recent_ids.contains(id)) {
                self.lookups.store(LOOKUP_BATCHES, Relaxed);
            } else {
                // others may do so at the same time; the number need not be exact
                self.lookups.store(self.lookups.load(Relaxed).saturating_sub(1), Relaxed);
            }
            applied
        } else {
            read_applied(tx, &mut ledger, ids().filter(|id| self.recent_ids.contains(*id))).await?
        };
        let mut rows = HashMap::new();
        // one that was applied by way of another partition meanwhile is taken out when it is due
        for row in waiting.iter().filter(|row| !applied.contains(&row.sale.transaction_id)) {
            rows.insert(row.sale.transaction_id, row);
            ledger.set_waiting(row.sale);
        }
        let mut decided = decide(&mut ledger, batch, &rows)?;

        // what waits or is refused is not copied to the journal, where a known id would show
        if !all_looked_up {
            let unseen: Vec<_> = decided.new_waiting.keys().chain(&decided.refused).copied().collect();
            if !unseen.is_empty()
                && store::applied(tx, &unseen).await?.iter().any(|event| !applied.contains(&event.transaction_id))
            {
                return Err(ApplyError::Stale);
            }
        }
        // first the items, then the waiting sales: the same order as in `try_again`, against deadlocks
        cache.write_amounts(tx, &ledger, &self.cache_size).await?;
        store::remove_waiting(tx, &decided.released).await?;
        let first_try = now.plus_micros(self.retry_policy.pause(0).as_micros() as i64);
        let mut new_waiting: Vec<_> = decided.new_waiting.into_values().collect();
        new_waiting.sort_unstable_by_key(|sale| sale.origin.offset);
        store::add_waiting(tx, batch.source, &new_waiting, first_try).await.map_err(known_id)?;
        if !new_waiting.is_empty()
            && let Some(next_due) = &mut cache.next_due
        {
            *next_due = Some(next_due.map_or(first_try, |next| next.min(first_try)));
        }
        // in the order of its key, the index is built with 40 % less work: neighbours meet on a page
        decided.journal.sort_unstable_by_key(|row| row.event.transaction_id);
        copy::copy_journal(tx, &decided.journal, &mut Vec::new()).await.map_err(known_id)?;
        ids().for_each(|id| self.recent_ids.add(id));
        Ok((decided.messages, decided.summary))
    }

    /// Tries waiting sales that are due once more.
    async fn try_again(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_, StockEvent>,
        due: Due<'_>,
        now: Timestamp,
    ) -> Result<(Vec<Message>, Summary), ApplyError> {
        let rows = store::due(tx, batch.source, due.caught_up_at, due.limit).await?;
        let (mut cache, mut ledger) = (Cache::default(), Ledger::default());
        let sales = || rows.iter().map(|row| &row.waiting.sale);
        // few rows, and others may change the cards meanwhile
        cache.read_amounts(tx, &mut ledger, sales(), true).await?;
        read_applied(tx, &mut ledger, sales().map(|sale| sale.transaction_id)).await?;
        let mut summary = Summary::default();
        let (mut journal, mut messages) = (Vec::new(), Vec::new());
        let (mut removed, mut postponed) = (Vec::new(), Vec::new());
        let mut released = Vec::new();
        for row in &rows {
            let WaitingRow { id, sale, origin } = &row.waiting;
            let mut give_up = |refusal: Refusal| {
                messages.push(batch.refuse_earlier(origin.offset, row.key.as_deref(), &row.payload, &refusal));
                summary.count(sale, &Decision::Refused(refusal));
                removed.push(*id);
            };
            if let Some(why) = due.refuse {
                let error = format!("the waiting sale cannot be applied: {why}");
                give_up(Refusal { error, class: RefusalClass::NotApplicable });
                continue;
            }
            let known = ledger.knows(sale.transaction_id);
            match (known, self.retry_policy.retry(sale, ledger.amount(sale.card), row.tries)) {
                // its id was applied from another partition meanwhile; or it fits now
                (true, _) | (_, Retry::Applied { .. }) => match ledger.decide(sale, &mut released) {
                    Decision::Refused(refusal) => give_up(refusal),
                    decision => {
                        summary.count(sale, &decision);
                        if matches!(decision, Decision::Applied { .. }) {
                            journal.push(JournalRow { event: *sale, origin: *origin });
                        }
                        removed.push(*id);
                    }
                },
                (false, Retry::Waits(pause)) => postponed.push((*id, now.plus_micros(pause.as_micros() as i64))),
                (false, Retry::GivenUp(refusal)) => give_up(refusal),
            }
        }
        store::remove_waiting(tx, &removed).await?;
        store::postpone(tx, &postponed).await?;
        cache.write_amounts(tx, &ledger, &self.cache_size).await?;
        copy::copy_journal(tx, &journal, &mut Vec::new()).await.map_err(known_id)?;
        Ok((messages, summary))
    }
}

/// Decides all events of a batch in memory. `waiting` are the sales of the ledger that waited before it.
fn decide<'a>(
    ledger: &mut Ledger,
    batch: &'a Batch<'a, StockEvent>,
    waiting: &HashMap<Uuid, &WaitingRow>,
) -> Result<Decided<'a>, ApplyError> {
    let mut decided = Decided { journal: Vec::with_capacity(batch.events.len()), ..Decided::default() };
    let (mut released, mut output_bytes) = (Vec::new(), 0);
    for record in batch.events {
        let event = &record.event;
        let decision = ledger.decide(event, &mut released);
        decided.summary.count(event, &decision);
        match decision {
            Decision::Applied { .. } => {
                decided.journal.push(JournalRow { event: *event, origin: origin(batch, record) });
            }
            Decision::Waits => {
                let (key, payload) = (batch.key(record), batch.payload(record));
                output_bytes += payload.len() + key.map_or(0, <[u8]>::len);
                let sale = NewWaitingSale { sale: *event, origin: origin(batch, record), key, payload };
                decided.new_waiting.insert(event.transaction_id, sale);
            }
            Decision::Duplicate => {}
            Decision::Refused(refusal) => {
                let message = batch.refuse(record, &refusal);
                output_bytes += message.size();
                decided.messages.push(message);
                decided.refused.push(event.transaction_id);
            }
        }
        if output_bytes > OUTPUT_LIMIT && batch.events.len() > 1 {
            return Err(ApplyError::TooLarge);
        }
        for released in released.drain(..) {
            decided.summary.count_released(&released);
            let id = released.sale.transaction_id;
            let origin = match (decided.new_waiting.remove(&id), waiting.get(&id)) {
                (Some(new), _) => new.origin,
                (None, Some(row)) => {
                    decided.released.push(row.id);
                    row.origin
                }
                (None, None) => unreachable!("only a sale that waits is released"),
            };
            decided.journal.push(JournalRow { event: released.sale, origin });
        }
    }
    Ok(decided)
}

/// Looks up which of the ids are in the journal, and has the ledger know those.
async fn read_applied(
    tx: &mut PgConnection,
    ledger: &mut Ledger,
    ids: impl Iterator<Item = Uuid>,
) -> sqlx::Result<HashSet<Uuid>> {
    let mut ids: Vec<_> = ids.collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    // in the order of the index, as the journal is written
    ids.sort_unstable();
    let applied = store::applied(tx, &ids).await?;
    applied.iter().for_each(|event| ledger.set_applied(event));
    Ok(applied.iter().map(|event| event.transaction_id).collect())
}

fn origin(batch: &Batch<'_, StockEvent>, record: &Received<StockEvent>) -> Origin {
    Origin { partition: batch.source.partition, offset: batch.offset(record), recorded_at: batch.timestamp(record) }
}

/// An id that is in the journal already, or waits, was not seen when it was decided.
fn known_id(error: sqlx::Error) -> ApplyError {
    if store::is_known_id(&error) { ApplyError::Stale } else { error.into() }
}
