//! Offsets in Postgres, beside the rows they stand for: the fence that makes applying exact.

use sqlx::{PgConnection, PgPool, Row};

/// Where a service stands in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The service.
    pub service: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first record that is not in the tables yet.
    pub next_offset: i64,
    /// Who the topic was when reading began: see [`runtime::kafka::topic_identity`].
    pub topic_identity: String,
}

/// The position in a partition; where there is none yet, it begins at `first`.
pub(crate) async fn begin(
    pool: &PgPool,
    service: &str,
    source: (&str, i32),
    first: i64,
    identity: &str,
) -> sqlx::Result<Position> {
    sqlx::query(
        "INSERT INTO consumer_offsets (service, topic, partition, next_offset, topic_identity)
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(service)
    .bind(source.0)
    .bind(source.1)
    .bind(first)
    .bind(identity)
    .execute(pool)
    .await?;
    let row = sqlx::query(
        "SELECT service, topic, partition, next_offset, topic_identity FROM consumer_offsets
         WHERE service = $1 AND topic = $2 AND partition = $3",
    )
    .bind(service)
    .bind(source.0)
    .bind(source.1)
    .fetch_one(pool)
    .await?;
    Ok(position(&row))
}

/// Moves the position from `from` to `to`, in the transaction that writes what lies between. False:
/// it is not at `from` (any more), so somebody else applies this partition.
pub(crate) async fn advance(
    tx: &mut PgConnection,
    service: &str,
    source: (&str, i32),
    from: i64,
    to: i64,
) -> sqlx::Result<bool> {
    let moved = sqlx::query(
        "UPDATE consumer_offsets SET next_offset = $5
         WHERE service = $1 AND topic = $2 AND partition = $3 AND next_offset = $4",
    )
    .bind(service)
    .bind(source.0)
    .bind(source.1)
    .bind(from)
    .bind(to)
    .execute(tx)
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Every position, by service, topic and partition.
pub async fn positions(connection: &mut PgConnection) -> sqlx::Result<Vec<Position>> {
    let rows = sqlx::query(
        "SELECT service, topic, partition, next_offset, topic_identity FROM consumer_offsets ORDER BY 1, 2, 3",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(position).collect())
}

/// Forgets a service's positions in a topic, so that it begins at the topic's first record: the way
/// on after a topic was made anew. What it applied stays, and its ids keep it from applying again.
/// Returns how many partitions were forgotten.
pub async fn forget(connection: &mut PgConnection, service: &str, topic: &str) -> sqlx::Result<u64> {
    let forgotten = sqlx::query("DELETE FROM consumer_offsets WHERE service = $1 AND topic = $2")
        .bind(service)
        .bind(topic)
        .execute(connection)
        .await?;
    Ok(forgotten.rows_affected())
}

fn position(row: &sqlx::postgres::PgRow) -> Position {
    Position {
        service: row.get(0),
        topic: row.get(1),
        partition: row.get(2),
        next_offset: row.get(3),
        topic_identity: row.get(4),
    }
}
