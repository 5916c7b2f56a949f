//! Rows of the journal in Postgres' binary COPY format: the cheapest way in.

use events::{Timestamp, stock::StockEvent};
use sqlx::PgConnection;

/// Bytes sent to the server at a time.
const CHUNK: usize = 64 << 10;
/// Seconds from 1970 to 2000.
const EPOCH_2000: i64 = 946_684_800;
/// The length of a field that is null.
const NULL: i32 = -1;

/// An event that is applied, and the record that it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalRow {
    /// The event.
    pub event: StockEvent,
    /// Where it came from.
    pub origin: Origin,
}

/// Where an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The partition of the events topic.
    pub partition: i32,
    /// The record's offset in it.
    pub offset: i64,
    /// The record's timestamp, if it has one.
    pub recorded_at: Option<Timestamp>,
}

/// Appends rows to the journal. A known id breaks the constraint `transactions_pkey`.
pub async fn copy_journal(tx: &mut PgConnection, rows: &[JournalRow], buffer: &mut Vec<u8>) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = "COPY transactions (transaction_id, event, timestamp, store_number, item_number, amount,
                                        partition, record_offset, recorded_at) FROM STDIN (FORMAT binary)";
    let mut copy = tx.copy_in_raw(statement).await?;
    buffer.clear();
    buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for row in rows {
        put(row, buffer);
        if buffer.len() >= CHUNK {
            copy.send(buffer.as_slice()).await?;
            buffer.clear();
        }
    }
    buffer.extend_from_slice(&(-1_i16).to_be_bytes());
    copy.send(buffer.as_slice()).await?;
    copy.finish().await?;
    Ok(())
}

/// One row: the number of fields, then each with its length before it.
fn put(row: &JournalRow, buffer: &mut Vec<u8>) {
    let JournalRow { event, origin: Origin { partition, offset, recorded_at } } = row;
    buffer.extend_from_slice(&9_i16.to_be_bytes());
    let mut field = |bytes: &[u8]| {
        buffer.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        buffer.extend_from_slice(bytes);
    };
    field(event.transaction_id.as_bytes());
    field(event.movement.as_str().as_bytes());
    field(&since_2000(event.date).to_be_bytes());
    field(&event.card.store.to_be_bytes());
    field(&event.card.item.to_be_bytes());
    field(&i64::from(event.value).to_be_bytes());
    field(&partition.to_be_bytes());
    field(&offset.to_be_bytes());
    match recorded_at {
        Some(recorded_at) => field(&since_2000(*recorded_at).to_be_bytes()),
        None => buffer.extend_from_slice(&NULL.to_be_bytes()),
    }
}

/// Microseconds since 2000, where Postgres' timestamps begin.
fn since_2000(timestamp: Timestamp) -> i64 {
    timestamp.0 - EPOCH_2000 * 1_000_000
}
