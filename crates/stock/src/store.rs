//! The SQL of stock: reads what a batch needs, writes what was decided, with few statements over
//! arrays. Knows no rules.

use std::borrow::Cow;

use events::{
    Timestamp,
    stock::{Card, Movement, StockEvent},
};
use projection::{ApplyError, TopicPartition};
use sqlx::{PgConnection, Row, postgres::PgRow};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::copy::Origin;

/// A row of `items`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    pub(crate) id: i64,
    pub(crate) card: Card,
    pub(crate) amount: i64,
}

/// A row of `waiting_sales`, without its record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitingRow {
    pub(crate) id: i64,
    pub(crate) sale: StockEvent,
    pub(crate) origin: Origin,
}

/// A row of `waiting_sales` whose time has come.
pub(crate) struct DueRow {
    pub(crate) waiting: WaitingRow,
    pub(crate) tries: u32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

/// A sale that is to wait, with the record it came in.
pub(crate) struct NewWaitingSale<'a> {
    pub(crate) sale: StockEvent,
    pub(crate) origin: Origin,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) payload: Cow<'a, [u8]>,
}

/// A change of an item: its row, and its amount before and after.
pub(crate) struct Amount {
    pub(crate) id: i64,
    pub(crate) before: i64,
    pub(crate) now: i64,
}

/// Up to here all waiting sales are read rather than looked for.
const FEW: i64 = 500;
/// Bytes of records that are read at a time, of waiting sales that are due.
const DUE_BYTES: i64 = 1 << 20;

/// The items of these cards that exist; with `lock`, no other transaction changes them until the transaction
/// ends.
pub(crate) async fn items(tx: &mut PgConnection, cards: &[Card], lock: bool) -> sqlx::Result<Vec<Item>> {
    const SELECT: &str = "SELECT i.id, i.store_id, i.item_id, i.amount
         FROM unnest($1::bigint[], $2::bigint[]) AS c (store_id, item_id) JOIN items i USING (store_id, item_id)";
    // in the order in which amounts are set, against deadlocks
    let sql = if lock { format!("{SELECT} ORDER BY i.id FOR UPDATE OF i") } else { SELECT.to_owned() };
    let (stores, items) = columns(cards.iter());
    let rows = sqlx::query(&sql).bind(stores).bind(items).fetch_all(tx).await?;
    let item =
        |row: &PgRow| Item { id: row.get(0), card: Card { store: row.get(1), item: row.get(2) }, amount: row.get(3) };
    Ok(rows.iter().map(item).collect())
}

/// Waiting sales, oldest first: at least those of cards that stock comes in to, and those with the ids
/// of these events.
pub(crate) async fn waiting<'a>(
    tx: &mut PgConnection,
    events: impl Iterator<Item = &'a StockEvent> + Clone,
) -> sqlx::Result<Vec<WaitingRow>> {
    const COLUMNS: &str = "id, transaction_id, timestamp, store_number, item_number, amount,
                           partition, record_offset, recorded_at";
    let all = format!("SELECT {COLUMNS} FROM waiting_sales ORDER BY id LIMIT $1");
    let rows = sqlx::query(&all).bind(FEW + 1).fetch_all(&mut *tx).await?;
    if rows.len() as i64 <= FEW {
        return rows.iter().map(waiting_row).collect();
    }
    let incoming = events.clone().filter(|event| event.movement == Movement::Incoming);
    let (stores, items) = columns(incoming.map(|event| &event.card));
    let ids: Vec<_> = events.map(|event| event.transaction_id).collect();
    let some = format!(
        "SELECT {COLUMNS} FROM waiting_sales WHERE id IN (
             SELECT w.id FROM unnest($1::bigint[], $2::bigint[]) AS c (store, item)
             JOIN waiting_sales w ON w.store_number = c.store AND w.item_number = c.item
             UNION
             SELECT w.id FROM unnest($3::uuid[]) AS c (transaction_id) JOIN waiting_sales w USING (transaction_id))
         ORDER BY id"
    );
    let rows = sqlx::query(&some).bind(stores).bind(items).bind(ids).fetch_all(tx).await?;
    rows.iter().map(waiting_row).collect()
}

/// Events of the journal with these ids.
pub(crate) async fn applied(tx: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<StockEvent>> {
    let rows = sqlx::query(
        "SELECT t.transaction_id, t.event, t.timestamp, t.store_number, t.item_number, t.amount
         FROM unnest($1::uuid[]) AS c (transaction_id) JOIN transactions t USING (transaction_id)",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter().map(journal_row).collect()
}

/// Creates items, in this order, with their stores. Returns their ids, in the same order. All writers
/// must give them in the same order, or they wait for each other.
pub(crate) async fn create_items(tx: &mut PgConnection, created: &[(Card, i64)]) -> Result<Vec<i64>, ApplyError> {
    let (stores, items) = columns(created.iter().map(|(card, _)| card));
    sqlx::query("INSERT INTO stores (id) SELECT DISTINCT unnest($1::bigint[]) ORDER BY 1 ON CONFLICT DO NOTHING")
        .bind(&stores)
        .execute(&mut *tx)
        .await?;
    let amounts: Vec<_> = created.iter().map(|(_, amount)| *amount).collect();
    let rows = sqlx::query(
        "INSERT INTO items (store_id, item_id, amount)
         SELECT store_id, item_id, amount
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS c (store_id, item_id, amount, place)
         ORDER BY place
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(stores)
    .bind(items)
    .bind(amounts)
    .fetch_all(tx)
    .await?;
    // another partition's worker has created one of them
    if rows.len() != created.len() {
        return Err(ApplyError::Stale);
    }
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Sets new amounts, if every item still has the amount it had when it was read.
pub(crate) async fn set_amounts(tx: &mut PgConnection, mut amounts: Vec<Amount>) -> Result<(), ApplyError> {
    if amounts.is_empty() {
        return Ok(());
    }
    // neighbours on a page together, and every writer in the same order
    amounts.sort_unstable_by_key(|amount| amount.id);
    let ids: Vec<_> = amounts.iter().map(|amount| amount.id).collect();
    let before: Vec<_> = amounts.iter().map(|amount| amount.before).collect();
    let now: Vec<_> = amounts.iter().map(|amount| amount.now).collect();
    let updated = sqlx::query(
        "UPDATE items SET amount = c.now FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (id, before, now)
         WHERE items.id = c.id AND items.amount = c.before",
    )
    .bind(ids)
    .bind(before)
    .bind(now)
    .execute(tx)
    .await?;
    if updated.rows_affected() == amounts.len() as u64 { Ok(()) } else { Err(ApplyError::Stale) }
}

/// Takes waiting sales out. Stale when one of them is gone already.
pub(crate) async fn remove_waiting(tx: &mut PgConnection, ids: &[i64]) -> Result<(), ApplyError> {
    if ids.is_empty() {
        return Ok(());
    }
    let removed = sqlx::query("DELETE FROM waiting_sales WHERE id = ANY($1)").bind(ids).execute(tx).await?;
    if removed.rows_affected() == ids.len() as u64 { Ok(()) } else { Err(ApplyError::Stale) }
}

/// Puts sales to wait, in this order.
pub(crate) async fn add_waiting(
    tx: &mut PgConnection,
    source: &TopicPartition,
    new_waiting: &[NewWaitingSale<'_>],
    next_try_at: Timestamp,
) -> sqlx::Result<()> {
    if new_waiting.is_empty() {
        return Ok(());
    }
    let (stores, items) = columns(new_waiting.iter().map(|new_waiting| &new_waiting.sale.card));
    sqlx::query(
        "INSERT INTO waiting_sales (transaction_id, timestamp, store_number, item_number, amount, next_try_at,
                                    topic, partition, record_offset, recorded_at, key, payload)
         SELECT id, timestamp, store, item, amount, $1, $2, $3, record_offset, recorded_at, key, payload
         FROM unnest($4::uuid[], $5::timestamptz[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
                     $10::timestamptz[], $11::bytea[], $12::bytea[])
              WITH ORDINALITY AS c (id, timestamp, store, item, amount, record_offset, recorded_at, key, payload, place)
         ORDER BY place",
    )
    .bind(OffsetDateTime::from(next_try_at))
    .bind(source.topic.as_ref())
    .bind(source.partition)
    .bind(new_waiting.iter().map(|new_waiting| new_waiting.sale.transaction_id).collect::<Vec<_>>())
    .bind(new_waiting.iter().map(|new_waiting| OffsetDateTime::from(new_waiting.sale.date)).collect::<Vec<_>>())
    .bind(stores)
    .bind(items)
    .bind(new_waiting.iter().map(|new_waiting| i64::from(new_waiting.sale.value)).collect::<Vec<_>>())
    .bind(new_waiting.iter().map(|new_waiting| new_waiting.origin.offset).collect::<Vec<_>>())
    .bind(new_waiting.iter().map(|sale| sale.origin.recorded_at.map(OffsetDateTime::from)).collect::<Vec<_>>())
    .bind(new_waiting.iter().map(|new_waiting| new_waiting.key).collect::<Vec<_>>())
    .bind(new_waiting.iter().map(|new_waiting| new_waiting.payload.as_ref()).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Waiting sales of a partition that fell due up to `until`, those that did so first: up to `limit`,
/// and one or up to [`DUE_BYTES`] of records.
pub(crate) async fn due(
    tx: &mut PgConnection,
    source: &TopicPartition,
    until: Timestamp,
    limit: usize,
) -> sqlx::Result<Vec<DueRow>> {
    let rows = sqlx::query(
        // by name: a later migration may add columns while this process runs
        "SELECT w.id, w.transaction_id, w.timestamp, w.store_number, w.item_number, w.amount,
                w.partition, w.record_offset, w.recorded_at, w.tries, w.key, w.payload
         FROM (SELECT id, sum(size) OVER (ORDER BY next_try_at, id) - size AS before
               FROM (SELECT id, next_try_at, octet_length(payload) + coalesce(octet_length(key), 0) AS size
                     FROM waiting_sales WHERE topic = $1 AND partition = $2 AND next_try_at <= $3
                     ORDER BY next_try_at, id LIMIT $4) AS sized) AS due
         JOIN waiting_sales w USING (id)
         WHERE before <= $5 ORDER BY w.next_try_at, w.id",
    )
    .bind(source.topic.as_ref())
    .bind(source.partition)
    .bind(OffsetDateTime::from(until))
    .bind(limit as i64)
    .bind(DUE_BYTES)
    .fetch_all(tx)
    .await?;
    let due = |row: &PgRow| {
        Ok(DueRow {
            waiting: waiting_row(row)?,
            tries: row.get::<i32, _>("tries") as u32,
            key: row.get("key"),
            payload: row.get("payload"),
        })
    };
    rows.iter().map(due).collect()
}

/// When the next waiting sale of a partition is due.
pub(crate) async fn next_due(tx: &mut PgConnection, source: &TopicPartition) -> sqlx::Result<Option<Timestamp>> {
    let sql = "SELECT min(next_try_at) FROM waiting_sales WHERE topic = $1 AND partition = $2";
    let next: Option<OffsetDateTime> =
        sqlx::query_scalar(sql).bind(source.topic.as_ref()).bind(source.partition).fetch_one(tx).await?;
    Ok(next.map(Timestamp::from))
}

/// Counts a try of each of these and says when the next one is.
pub(crate) async fn postpone(tx: &mut PgConnection, postponed: &[(i64, Timestamp)]) -> sqlx::Result<()> {
    if postponed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE waiting_sales SET tries = tries + 1, next_try_at = c.at
         FROM unnest($1::bigint[], $2::timestamptz[]) AS c (id, at) WHERE waiting_sales.id = c.id",
    )
    .bind(postponed.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(postponed.iter().map(|(_, at)| OffsetDateTime::from(*at)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets which records the journal's rows came from, for a topic that was created again: its offsets
/// are other records'. When they were recorded stays. Returns how many rows there were; each is written
/// again, so of many this takes minutes.
pub async fn forget_origins(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let sql = "UPDATE transactions SET partition = NULL, record_offset = NULL WHERE partition IS NOT NULL";
    Ok(sqlx::query(sql).execute(connection).await?.rows_affected())
}

/// Whether the error is a transaction id that is in the journal, or waits, already.
pub(crate) fn is_known_id(error: &sqlx::Error) -> bool {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    matches!(constraint, Some("transactions_pkey" | "waiting_sales_transaction"))
}

/// A row of `transactions`.
fn journal_row(row: &PgRow) -> sqlx::Result<StockEvent> {
    let movement = Movement::from_word(row.get("event"))
        .ok_or_else(|| sqlx::Error::Decode("unknown event in the journal".into()))?;
    stock_event(row, movement)
}

fn waiting_row(row: &PgRow) -> sqlx::Result<WaitingRow> {
    let origin = Origin {
        partition: row.get("partition"),
        offset: row.get("record_offset"),
        recorded_at: row.get::<Option<OffsetDateTime>, _>("recorded_at").map(Timestamp::from),
    };
    Ok(WaitingRow { id: row.get("id"), sale: stock_event(row, Movement::Sale)?, origin })
}

/// An event from the columns that the journal and the waiting sales have in common.
fn stock_event(row: &PgRow, movement: Movement) -> sqlx::Result<StockEvent> {
    let amount: i64 = row.get("amount");
    // only checked events are written, so it fits unless somebody else wrote it
    let value =
        i32::try_from(amount).map_err(|_| sqlx::Error::Decode(format!("no event has the amount {amount}").into()))?;
    Ok(StockEvent {
        transaction_id: row.get("transaction_id"),
        movement,
        date: row.get::<OffsetDateTime, _>("timestamp").into(),
        card: Card { store: row.get("store_number"), item: row.get("item_number") },
        value,
    })
}

fn columns<'a>(cards: impl Iterator<Item = &'a Card>) -> (Vec<i64>, Vec<i64>) {
    cards.map(|card| (card.store, card.item)).unzip()
}
