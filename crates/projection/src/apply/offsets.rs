//! Offsets in Postgres, beside the rows of the records before them: the fence that makes applying exact.

use std::collections::HashMap;

use sqlx::{PgConnection, PgExecutor, PgPool, Row};

use crate::TopicPartition;

/// How far a service has read a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerOffset {
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

const COLUMNS: &str = "service, topic, partition, next_offset, topic_identity";

/// The offset of a partition, if there is one yet. Waits for no lock, so that a process that was
/// frozen in the middle of a transaction does not hold up its successor here.
pub(crate) async fn of_partition(
    executor: impl PgExecutor<'_>,
    service: &str,
    source: &TopicPartition,
) -> sqlx::Result<Option<ConsumerOffset>> {
    let sql = format!("SELECT {COLUMNS} FROM consumer_offsets WHERE service = $1 AND topic = $2 AND partition = $3");
    let query = sqlx::query(&sql).bind(service).bind(source.topic.as_ref()).bind(source.partition);
    Ok(query.fetch_optional(executor).await?.as_ref().map(from_row))
}

/// The first offset of a partition: `first`, unless another process has just written one.
pub(crate) async fn begin(
    pool: &PgPool,
    service: &str,
    source: &TopicPartition,
    first: i64,
    identity: &str,
) -> sqlx::Result<()> {
    let sql = format!("INSERT INTO consumer_offsets ({COLUMNS}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING");
    let query = sqlx::query(&sql).bind(service).bind(source.topic.as_ref()).bind(source.partition);
    query.bind(first).bind(identity).execute(pool).await?;
    Ok(())
}

/// The offset is not the expected one: another process applies this partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced {
    pub(crate) expected: i64,
    /// None: it was forgotten.
    pub(crate) found: Option<i64>,
}

/// Moves the offset from `expected` to `to`, in the transaction that writes what is between them.
pub(crate) async fn advance(
    tx: &mut PgConnection,
    service: &str,
    source: &TopicPartition,
    expected: i64,
    to: i64,
) -> sqlx::Result<Result<(), Fenced>> {
    let moved = sqlx::query(
        "UPDATE consumer_offsets SET next_offset = $5
         WHERE service = $1 AND topic = $2 AND partition = $3 AND next_offset = $4",
    )
    .bind(service)
    .bind(source.topic.as_ref())
    .bind(source.partition)
    .bind(expected)
    .bind(to)
    .execute(&mut *tx)
    .await?;
    if moved.rows_affected() == 1 {
        return Ok(Ok(()));
    }
    let found = of_partition(tx, service, source).await?.map(|offset| offset.next_offset);
    Ok(Err(Fenced { expected, found }))
}

/// Ends transactions of this service that have waited for their process for as long as
/// `idle_in_transaction_session_timeout` allows, and hold locks that no process uses. The server does it by
/// itself for one that is between two statements, but not for one in the middle of a COPY. Returns
/// how many there were.
pub(crate) async fn end_abandoned(pool: &PgPool) -> sqlx::Result<u64> {
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
           AND application_name = current_setting('application_name')
           AND xact_start IS NOT NULL AND wait_event_type = 'Client'
           AND query_start < clock_timestamp() - current_setting('idle_in_transaction_session_timeout')::interval",
    )
    .fetch_all(pool)
    .await?;
    Ok(ended.len() as u64)
}

/// The offsets of a service, by partition.
pub(crate) async fn of_service(pool: &PgPool, service: &str) -> sqlx::Result<HashMap<TopicPartition, ConsumerOffset>> {
    let sql = format!("SELECT {COLUMNS} FROM consumer_offsets WHERE service = $1");
    let rows = sqlx::query(&sql).bind(service).fetch_all(pool).await?;
    let offsets = rows.iter().map(from_row);
    Ok(offsets.map(|position| (TopicPartition::new(&position.topic, position.partition), position)).collect())
}

/// Every offset, by service, topic and partition.
pub async fn consumer_offsets(connection: &mut PgConnection) -> sqlx::Result<Vec<ConsumerOffset>> {
    let sql = format!("SELECT {COLUMNS} FROM consumer_offsets ORDER BY 1, 2, 3");
    let rows = sqlx::query(&sql).fetch_all(connection).await?;
    Ok(rows.iter().map(from_row).collect())
}

/// Forgets a service's offsets in a topic, so that it begins at the topic's first record: the way
/// on after a topic was created again. What it applied stays, and its ids keep it from applying
/// again. Returns how many partitions were forgotten.
pub async fn forget(connection: &mut PgConnection, service: &str, topic: &str) -> sqlx::Result<u64> {
    let forgotten = sqlx::query("DELETE FROM consumer_offsets WHERE service = $1 AND topic = $2")
        .bind(service)
        .bind(topic)
        .execute(connection)
        .await?;
    Ok(forgotten.rows_affected())
}

fn from_row(row: &sqlx::postgres::PgRow) -> ConsumerOffset {
    ConsumerOffset {
        service: row.get("service"),
        topic: row.get("topic"),
        partition: row.get("partition"),
        next_offset: row.get("next_offset"),
        topic_identity: row.get("topic_identity"),
    }
}
