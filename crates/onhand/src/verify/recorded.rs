//! What verify reads: the refusals on the errors topic, the records of the topic, the tables.

use anyhow::{Context, Result, bail};
use events::{
    Timestamp,
    dead_letter::header,
    stock::{Card, Movement, StockEvent},
};
use futures::TryStreamExt;
use hashbrown::HashMap;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
    message::{BorrowedMessage, Headers},
};
use runtime::kafka;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::fold::{Differences, Expected, Refusals};

/// First offset and end of every partition of a topic.
pub(super) fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<(i32, i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), kafka::TIMEOUT).context("asking the broker")?;
    let topic_metadata = metadata.topics().first().context("the broker says nothing of the topic")?;
    if topic_metadata.partitions().is_empty() {
        bail!("there is no topic {topic}");
    }
    let mut ids: Vec<_> = topic_metadata.partitions().iter().map(|partition| partition.id()).collect();
    ids.sort_unstable();
    ids.into_iter()
        .map(|id| {
            let (low, high) = consumer.fetch_watermarks(topic, id, kafka::TIMEOUT)?;
            Ok((id, low, high))
        })
        .collect()
}

/// What the errors topic and the outbox hold.
#[derive(Debug, Default)]
pub(super) struct Errors {
    /// Refused records of the events topic.
    pub(super) refusals: Refusals,
    /// Ids of sales that were given up.
    pub(super) given_up: Vec<Uuid>,
    /// Refused rows by the name of their file, repeats counted once.
    pub(super) rows: HashMap<String, u64>,
}

impl Errors {
    /// Takes in a dead letter by its headers and payload, and checks that it has its reason and place.
    pub(super) fn add(
        &mut self,
        topic: &str,
        get: impl Fn(&str) -> Option<String>,
        payload: &[u8],
        seen: &mut hashbrown::HashSet<String>,
        differences: &mut Differences,
    ) {
        let Some(id) = get(events::Message::ID_HEADER) else { return };
        if !seen.insert(id.clone()) {
            return;
        }
        let object: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        if object["error"].as_str().is_none_or(str::is_empty) {
            differences.add(format!("errors: {id} has no reason"));
        }
        match get(header::CONNECTOR).as_deref() {
            Some("stock") if get(header::TOPIC).as_deref() == Some(topic) => {
                let number = |name| get(name)?.parse::<i64>().ok();
                match (number(header::PARTITION), number(header::OFFSET), get(header::CLASS)) {
                    (Some(partition), Some(offset), Some(class)) => {
                        if matches!(class.as_str(), "InsufficientStock" | "UnknownCard") {
                            self.given_up.extend(
                                object["transaction_id"].as_str().and_then(|id| Uuid::parse_str(id.trim()).ok()),
                            );
                        }
                        self.refusals.insert((partition as i32, offset), class);
                    }
                    _ => differences.add(format!("errors: {id} does not say which record it refuses")),
                }
            }
            Some("importer") => {
                *self.rows.entry_ref(object["file"].as_str().unwrap_or_default()).or_default() += 1;
                if object["file"].is_null() || object["line"].is_null() || object["byte"].is_null() {
                    differences.add(format!("errors: {id} does not say its file, line and byte"));
                }
            }
            _ => {}
        }
    }
}

/// A header of a record, as text.
pub(super) fn header_of(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    Some(String::from_utf8_lossy(header.value?).into_owned())
}

/// Which of these ids are in the tables.
pub(super) async fn known(tx: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<hashbrown::HashSet<Uuid>> {
    let sql = "SELECT transaction_id FROM transactions WHERE transaction_id = ANY($1)
               UNION ALL SELECT transaction_id FROM waiting_sales WHERE transaction_id = ANY($1)";
    let rows = sqlx::query(sql).bind(ids).fetch_all(tx).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The tables, row by row. Returns the rows of journal, waiting sales and items.
pub(super) async fn tables(tx: &mut PgConnection, expected: &mut Expected) -> Result<(u64, u64, u64)> {
    let (mut transactions, mut sales, mut items) = (0, 0, 0);
    let sql = "SELECT transaction_id, event, timestamp, store_number, item_number, amount FROM transactions";
    let mut rows = sqlx::query(sql).fetch(&mut *tx);
    while let Some(row) = rows.try_next().await? {
        expected.transaction(&stock::journal_row(&row)?);
        transactions += 1;
    }
    drop(rows);
    let sql = "SELECT transaction_id, timestamp, store_number, item_number, amount FROM waiting_sales";
    let mut rows = sqlx::query(sql).fetch(&mut *tx);
    while let Some(row) = rows.try_next().await? {
        expected.waiting_sale(&StockEvent {
            transaction_id: row.get(0),
            movement: Movement::Sale,
            date: Timestamp::from(row.get::<OffsetDateTime, _>(1)),
            card: Card { store: row.get(2), item: row.get(3) },
            value: i32::try_from(row.get::<i64, _>(4)).context("waiting_sales: an amount beyond 2^31-1")?,
        });
        sales += 1;
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT store_id, item_id, amount FROM items").fetch(&mut *tx);
    while let Some(row) = rows.try_next().await? {
        expected.item(Card { store: row.get(0), item: row.get(1) }, row.get(2));
        items += 1;
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT id FROM stores").fetch(&mut *tx);
    while let Some(row) = rows.try_next().await? {
        expected.store(row.get(0));
    }
    Ok((transactions, sales, items))
}
