//! Rules and SQL, joined: reads what a batch needs, judges, writes what was decided.

use std::time::Duration;

use events::{
    DeadLetter, Refusal, Timestamp,
    dead_letter::RecordPlace,
    stock::{Card, StockEvent},
};
use hashbrown::{HashMap, HashSet};
use projection::{ApplyError, Batch, Decoded, Due, Projection, Said};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    copy,
    outcome::Outcome,
    rules::{Ledger, Patience, Retry, Verdict},
    store::{self, Amount, DueRow, Parked},
};

/// Cards whose amounts a partition's worker remembers at most.
const REMEMBERED: usize = 50_000;
/// Batches for which ids are looked up before the journal is written, after one of them was known.
const CAREFUL: u32 = 50;
/// Waiting sales that the clock tries in one transaction.
const DUE_AT_A_TIME: i64 = 500;

/// Events to stock on hand.
#[derive(Debug)]
pub struct StockProjection {
    /// For early sales.
    pub patience: Patience,
}

/// What a partition's worker remembers: amounts, so that most batches need not read them. They are
/// only ever believed by a compare-and-set.
#[derive(Debug, Default)]
pub struct Memory {
    ledger: Ledger,
    /// Ids of the ledger's cards in `items`.
    rows: HashMap<Card, i32>,
    careful: u32,
    buffer: Vec<u8>,
}

impl Projection for StockProjection {
    const SERVICE: &'static str = "stock";
    type Event = StockEvent;
    type Memory = Memory;
    type Outcome = Outcome;

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
        memory: &mut Memory,
        batch: Batch<'_, StockEvent>,
        now: Timestamp,
        attempt: u32,
    ) -> Result<Said<Outcome>, ApplyError> {
        let events = || batch.events.iter().map(|record| &record.event);
        memory.read_items(tx, events()).await?;
        let waiting = store::waiting(tx, events()).await?;
        let mut applied = HashSet::new();
        if attempt > 0 || memory.careful > 0 {
            let ids = events().map(|event| event.transaction_id);
            applied = memory.read_applied(tx, ids.chain(waiting.iter().map(|row| row.sale.transaction_id))).await?;
        }
        let mut waiting_rows = HashMap::new();
        // one that was applied by way of another partition meanwhile is the clock's to take out
        for row in waiting.iter().filter(|row| !applied.contains(&row.sale.transaction_id)) {
            waiting_rows.insert(row.sale.transaction_id, row.id);
            memory.ledger.set_waiting(row.sale);
        }

        let mut outcome = Outcome::default();
        let (mut journal, mut letters) = (Vec::with_capacity(batch.events.len()), Vec::new());
        let (mut parked, mut unparked, mut removed) = (Vec::new(), HashSet::new(), Vec::new());
        let mut freed = Vec::new();
        for record in batch.events {
            let event = &record.event;
            let verdict = memory.ledger.judge(event, &mut freed);
            outcome.count(event, &verdict);
            match verdict {
                Verdict::Applied { .. } => journal.push(*event),
                Verdict::Waits => parked.push(Parked {
                    sale: *event,
                    record_offset: batch.offset(record),
                    key: batch.key(record),
                    payload: batch.payload(record),
                }),
                Verdict::Duplicate => {}
                Verdict::Refused(refusal) => letters.push(batch.refuse(record, &refusal)),
            }
            for freed in freed.drain(..) {
                outcome.count_freed(&freed);
                journal.push(freed.sale);
                match waiting_rows.get(&freed.sale.transaction_id) {
                    Some(row) => removed.push(*row),
                    None => {
                        unparked.insert(freed.sale.transaction_id);
                    }
                }
            }
        }
        parked.retain(|parked| !unparked.contains(&parked.sale.transaction_id));

        // what waits is not copied to the journal, where a known id would show
        let ids: Vec<_> = parked.iter().map(|parked| parked.sale.transaction_id).collect();
        if !ids.is_empty() && applied.is_empty() && !store::applied(tx, &ids).await?.is_empty() {
            return Err(ApplyError::Stale);
        }

        // first the waiting sales, then the items: the same order as in `due`, against deadlocks
        store::remove_waiting(tx, &removed).await?;
        memory.write_items(tx).await?;
        let known = |error: sqlx::Error| if store::is_known_id(&error) { ApplyError::Stale } else { error.into() };
        let first_try = now.plus_micros(self.patience.pause(0).as_micros() as i64);
        store::add_waiting(tx, (batch.topic, batch.partition), &parked, first_try).await.map_err(known)?;
        // in the order of its key, the index is built with 40 % less work: neighbours meet on a page
        journal.sort_unstable_by_key(|event| event.transaction_id);
        copy::copy_journal(tx, &journal, &mut memory.buffer).await.map_err(known)?;
        memory.ledger.settle();
        Ok(Said { dead_letters: letters, outcome })
    }

    async fn due(&self, tx: &mut PgConnection, now: Timestamp) -> Result<Due<Outcome>, ApplyError> {
        let due = store::due(tx, now, DUE_AT_A_TIME).await?;
        let said = if due.is_empty() { None } else { Some(self.try_again(tx, now, &due).await?) };
        Ok(Due { said, next: store::next_due(tx).await? })
    }

    fn committed(&self, outcome: Outcome, took: Duration) {
        outcome.report(took);
    }
}

impl StockProjection {
    async fn try_again(
        &self,
        tx: &mut PgConnection,
        now: Timestamp,
        due: &[DueRow],
    ) -> Result<Said<Outcome>, ApplyError> {
        let mut memory = Memory::default();
        let sales = || due.iter().map(|row| &row.waiting.sale);
        memory.read_items(tx, sales()).await?;
        memory.read_applied(tx, sales().map(|sale| sale.transaction_id)).await?;
        let mut outcome = Outcome::default();
        let (mut journal, mut letters) = (Vec::new(), Vec::new());
        let (mut removed, mut postponed) = (Vec::new(), Vec::new());
        let mut freed = Vec::new();
        for row in due {
            let sale = &row.waiting.sale;
            let known = memory.ledger.knows(sale.transaction_id);
            match (known, self.patience.retry(sale, memory.ledger.amount(sale.card), row.tries)) {
                // its id was applied from another partition meanwhile; or it fits now
                (true, _) | (_, Retry::Applied { .. }) => {
                    let verdict = memory.ledger.judge(sale, &mut freed);
                    outcome.count(sale, &verdict);
                    match verdict {
                        Verdict::Applied { .. } => journal.push(*sale),
                        Verdict::Refused(refusal) => letters.push(refuse(row, &refusal)),
                        Verdict::Duplicate | Verdict::Waits => {}
                    }
                    removed.push(row.waiting.id);
                }
                (false, Retry::Waits(pause)) => {
                    postponed.push((row.waiting.id, now.plus_micros(pause.as_micros() as i64)))
                }
                (false, Retry::GivenUp(refusal)) => {
                    letters.push(refuse(row, &refusal));
                    outcome.count(sale, &Verdict::Refused(refusal));
                    removed.push(row.waiting.id);
                }
            }
        }
        store::remove_waiting(tx, &removed).await?;
        store::postpone(tx, &postponed).await?;
        memory.write_items(tx).await?;
        copy::copy_journal(tx, &journal, &mut memory.buffer)
            .await
            .map_err(|error| if store::is_known_id(&error) { ApplyError::Stale } else { error.into() })?;
        Ok(Said { dead_letters: letters, outcome })
    }
}

impl Memory {
    /// Reads the items of cards that are not remembered.
    async fn read_items<'a>(
        &mut self,
        tx: &mut PgConnection,
        events: impl Iterator<Item = &'a StockEvent>,
    ) -> sqlx::Result<()> {
        if self.ledger.len() > REMEMBERED {
            self.ledger = Ledger::default();
            self.rows.clear();
        }
        let mut missing: Vec<_> = events.map(|event| event.card).filter(|card| !self.rows.contains_key(card)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        for item in store::items(tx, &missing).await? {
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
        // in the order of the index, as in `apply`
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
            let ids = store::create_items(tx, &created).await?;
            self.rows.extend(created.iter().map(|(card, _)| *card).zip(ids));
        }
        store::set_amounts(tx, amounts).await
    }
}

fn refuse(row: &DueRow, refusal: &Refusal) -> DeadLetter {
    let place = RecordPlace {
        service: StockProjection::SERVICE,
        topic: &row.topic,
        partition: row.partition,
        offset: row.record_offset,
    };
    DeadLetter::of_record(place, row.key.as_deref(), &row.payload, refusal)
}
