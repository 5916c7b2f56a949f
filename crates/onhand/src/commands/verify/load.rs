//! The tables, in one snapshot, as entries.

use anyhow::{Context, Error, Result};
use events::stock::{Card, Movement};
use projection::ConsumerOffset;
use sqlx::{PgConnection, Row};

use super::{
    copy::{self, Fields},
    entry::{CLAIM, Claim, Content, OCCURRENCE, Occurrence, Place, STEP, Source, Step, Table, claim, step},
    letters::Letters,
    report::Differences,
    sorter::Sorter,
};

/// What Postgres says of a column that there is not.
const UNDEFINED_COLUMN: &str = "42703";

/// How far stock has read each partition of the topic.
pub(super) async fn positions(tx: &mut PgConnection, topic: &str) -> Result<Vec<ConsumerOffset>> {
    let mut positions = projection::consumer_offsets(tx)
        .await
        .context("reading consumer_offsets; has the stock service run on this database?")?;
    positions.retain(|position| position.service == "stock" && position.topic == topic);
    Ok(positions)
}

/// Refusals that are not published yet.
pub(super) async fn outbox(
    tx: &mut PgConnection,
    letters: &mut Letters<'_>,
    differences: &mut Differences,
) -> Result<()> {
    let mut rows = sqlx::query("SELECT payload, headers FROM outbox WHERE service = 'stock'").fetch(tx);
    while let Some(row) = futures::TryStreamExt::try_next(&mut rows).await? {
        let headers: Vec<(String, String)> = serde_json::from_value(row.get("headers")).context("outbox: headers")?;
        let get = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        letters.add(get, row.get("payload"), differences)?;
    }
    Ok(())
}

/// The waiting sales: their rows, and that of this topic's each says where it came. Returns how many
/// there are.
pub(super) async fn waiting_sales(
    tx: &mut PgConnection,
    topic: &str,
    claims: &mut Sorter<CLAIM>,
    ids: &mut Sorter<OCCURRENCE>,
) -> Result<u64> {
    let columns = "waiting_sales (transaction_id, timestamp, store_number, item_number, amount, topic, partition, record_offset, recorded_at)";
    let mut order = 0;
    copy::rows(tx, columns, |row| {
        let id = row.uuid()?;
        let content = content(row, Some(Movement::Sale))?;
        let is_here = row.text()? == topic;
        let origin = place(row)?.filter(|_| is_here);
        if let Some(place) = origin {
            claims.push(claim(place, order, Claim::Waits(id)))?;
            order += 1;
        }
        let recorded_at = row.timestamp_or_null()?;
        let source = Source::Row { table: Table::Waiting, origin };
        ids.push(Occurrence { id, source, content, recorded_at }.entry())
    })
    .await
    .map_err(explain)
    .context("reading waiting_sales")
}

/// The journal. Returns how many rows it has.
pub(super) async fn journal(tx: &mut PgConnection, ids: &mut Sorter<OCCURRENCE>) -> Result<u64> {
    let columns = "transactions (transaction_id, timestamp, store_number, item_number, amount, event, partition, record_offset, recorded_at)";
    copy::rows(tx, columns, |row| {
        let id = row.uuid()?;
        let mut content = content(row, None)?;
        content.movement = Movement::from_word(row.text()?);
        let origin = place(row)?;
        let recorded_at = row.timestamp_or_null()?;
        let source = Source::Row { table: Table::Journal, origin };
        ids.push(Occurrence { id, source, content, recorded_at }.entry())
    })
    .await
    .map_err(explain)
    .context("reading transactions")
}

/// Says what to do about tables of an older version.
fn explain(error: Error) -> Error {
    match error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error) {
        Some(database) if database.code().as_deref() == Some(UNDEFINED_COLUMN) => {
            error.context("the tables are of an older version: start a stock service of this one, which migrates them")
        }
        _ => error,
    }
}

/// Items and stores.
pub(super) async fn stock(tx: &mut PgConnection, cards: &mut Sorter<STEP>) -> Result<()> {
    let items = copy::rows(tx, "items (store_id, item_id, amount)", |row| {
        let card = Card { store: row.bigint()?, item: row.bigint()? };
        cards.push(step(card, Step::Item(row.bigint()?)))
    });
    items.await.context("reading items")?;
    let stores =
        copy::rows(tx, "stores (id)", |row| cards.push(step(Card { store: row.bigint()?, item: 0 }, Step::Store)));
    stores.await.context("reading stores")?;
    Ok(())
}

/// The columns that the journal and the waiting sales have in common.
fn content(row: &mut Fields<'_>, movement: Option<Movement>) -> Result<Content> {
    let date = row.timestamp()?;
    let card = Card { store: row.bigint()?, item: row.bigint()? };
    Ok(Content { movement, date, card, value: row.bigint()? })
}

/// Partition and offset, where they are known.
fn place(row: &mut Fields<'_>) -> Result<Option<Place>> {
    Ok(row.int_or_null()?.zip(row.bigint_or_null()?))
}
