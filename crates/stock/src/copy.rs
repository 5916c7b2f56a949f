//! Rows of the journal in Postgres' binary COPY format: the cheapest way in.

use events::stock::StockEvent;
use sqlx::PgConnection;

/// Bytes sent to the server at a time.
const CHUNK: usize = 64 << 10;
/// Seconds from 1970 to 2000, where Postgres' timestamps begin.
const EPOCH_2000: i64 = 946_684_800;

/// Appends the events to the journal. A known id breaks the constraint `transactions_pkey`.
pub async fn copy_journal(tx: &mut PgConnection, events: &[StockEvent], buffer: &mut Vec<u8>) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let statement = "COPY transactions (transaction_id, event, timestamp, store_number, item_number, amount) FROM STDIN (FORMAT binary)";
    let mut copy = tx.copy_in_raw(statement).await?;
    buffer.clear();
    buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for event in events {
        put(event, buffer);
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
fn put(event: &StockEvent, buffer: &mut Vec<u8>) {
    let micros = event.date.0 - EPOCH_2000 * 1_000_000;
    let amount = i64::from(event.value);
    buffer.extend_from_slice(&6_i16.to_be_bytes());
    let mut field = |bytes: &[u8]| {
        buffer.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        buffer.extend_from_slice(bytes);
    };
    field(event.transaction_id.as_bytes());
    field(event.movement.as_str().as_bytes());
    field(&micros.to_be_bytes());
    field(&event.card.store.to_be_bytes());
    field(&event.card.item.to_be_bytes());
    field(&amount.to_be_bytes());
}
