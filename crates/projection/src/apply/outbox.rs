//! The outbox: each outgoing message is a row, written in the same transaction as the rows it
//! describes, and a relay publishes it once it is durable.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use events::Message;
use rdkafka::{
    ClientConfig,
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
};
use runtime::{KafkaSettings, health::Health, kafka};
use sqlx::{PgConnection, PgPool, Row};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Messages published, and awaited, at a time, and their bytes in memory. One message is published
/// whatever its size.
const AT_A_TIME: i64 = 1_000;
const BYTES_AT_A_TIME: i64 = 1 << 20;
/// Bytes of messages written to the outbox by one statement.
const BYTES_A_STATEMENT: usize = 1 << 20;
/// How long a relay keeps its place without a sign of life. A publication that takes longer may be
/// repeated by another relay, with the same `ce_id`.
const LEASE: &str = "30 seconds";
/// How often an idle relay looks for what other processes have left.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Writes messages to the outbox, in the transaction of the rows that they describe.
pub(crate) async fn put(tx: &mut PgConnection, service: &str, messages: &[Message]) -> sqlx::Result<()> {
    // a statement holds a copy of all it writes
    let mut rest = messages;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |message: &&Message| {
            let is_first = bytes == 0;
            bytes += message.size();
            is_first || bytes <= BYTES_A_STATEMENT
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        put_some(tx, service, now).await?;
        rest = later;
    }
    Ok(())
}

async fn put_some(tx: &mut PgConnection, service: &str, messages: &[Message]) -> sqlx::Result<()> {
    let topics: Vec<_> = messages.iter().map(|message| message.topic.as_str()).collect();
    let keys: Vec<_> = messages.iter().map(|message| message.key.as_deref()).collect();
    let payloads: Vec<_> = messages.iter().map(|message| message.payload.as_slice()).collect();
    let headers: Vec<_> = messages.iter().map(headers_of).collect();
    sqlx::query(
        "INSERT INTO outbox (service, topic, key, payload, headers)
         SELECT $1, topic, key, payload, headers
         FROM unnest($2::text[], $3::bytea[], $4::bytea[], $5::jsonb[])
              WITH ORDINALITY AS message (topic, key, payload, headers, place)
         ORDER BY place",
    )
    .bind(service)
    .bind(topics)
    .bind(keys)
    .bind(payloads)
    .bind(headers)
    .execute(tx)
    .await?;
    Ok(())
}

/// Headers as the column takes them: jsonb has no NUL characters.
fn headers_of(message: &Message) -> serde_json::Value {
    let headers = message.all_headers().map(|(name, value)| (name, value.replace('\0', "\u{fffd}")));
    serde_json::json!(headers.collect::<Vec<_>>())
}

/// A row of the outbox.
struct Outgoing {
    id: i64,
    topic: String,
    key: Option<Vec<u8>>,
    payload: Vec<u8>,
    headers: Vec<(String, String)>,
}

/// Publishes one service's outbox.
pub(crate) struct Relay {
    pub(crate) service: &'static str,
    pub(crate) pool: PgPool,
    pub(crate) kafka: KafkaSettings,
    /// All that it publishes to.
    pub(crate) topics: Vec<String>,
    pub(crate) producer: ClientConfig,
    pub(crate) health: Health,
}

impl Relay {
    /// Works until shutdown; `wake` tells that a batch has left something. What is not published by
    /// then is still in the table.
    pub(crate) async fn run(self, wake: std::sync::Arc<Notify>, shutdown: CancellationToken) -> Result<()> {
        let mut producer: FutureProducer = self.producer.create().context("Kafka settings")?;
        let holder = Uuid::new_v4();
        loop {
            let round = tokio::select! {
                round = self.round(&producer, holder) => round,
                () = shutdown.cancelled() => break,
            };
            match round {
                Ok(published) => {
                    self.health.healthy("outbox");
                    if published > 0 {
                        continue;
                    }
                }
                Err(error) => {
                    self.health.unhealthy("outbox", format!("publishing messages is held up: {error:#}"));
                    // its topic may be gone, and a producer may be of no use after an error
                    let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
                    kafka::ensure_topics(&self.kafka, &topics, &self.health, &shutdown).await?;
                    producer = self.producer.create().context("Kafka settings")?;
                }
            }
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = shutdown.cancelled() => break,
            }
        }
        // another process need not wait for the lease to run out
        let release = sqlx::query("DELETE FROM relays WHERE service = $1 AND holder = $2");
        let released = release.bind(self.service).bind(holder).execute(&self.pool);
        if tokio::time::timeout(POLL_INTERVAL, released).await.is_err() {
            tracing::debug!("the relay's lease is left to run out");
        }
        Ok(())
    }

    /// Claims, publishes, deletes; returns how many messages it was.
    async fn round(&self, producer: &FutureProducer, holder: Uuid) -> Result<i64> {
        let messages = self.claim(holder).await.context("Postgres")?;
        let mut sent = Vec::with_capacity(messages.len());
        for message in &messages {
            sent.push((message.id, send(producer, message).await));
        }
        // what is acknowledged is done, whatever became of the others
        let (mut done, mut failed) = (Vec::new(), None);
        for (id, acknowledgement) in sent {
            let acknowledged = match acknowledgement {
                Ok(acknowledgement) => acknowledgement
                    .await
                    .context("the producer is gone")
                    .and_then(|acknowledged| acknowledged.map(|_| ()).map_err(|(error, _)| error.into())),
                Err(error) => Err(error),
            };
            match acknowledged {
                Ok(()) => done.push(id),
                Err(error) => failed = failed.or(Some(error.context(format!("message {id} of the outbox")))),
            }
        }
        if !done.is_empty() {
            sqlx::query("DELETE FROM outbox WHERE id = ANY($1)").bind(&done).execute(&self.pool).await?;
            metrics::counter!("onhand_outbox_published_total", "service" => self.service).increment(done.len() as u64);
        }
        failed.map_or(Ok(done.len() as i64), Err)
    }

    /// The next messages, if this process is (or now becomes) the one that publishes. Commits of
    /// batches are asynchronous: this one is not, and its flush covers all that it has seen, so
    /// nothing is said that a crash of Postgres could take back.
    async fn claim(&self, holder: Uuid) -> sqlx::Result<Vec<Outgoing>> {
        let waiting = sqlx::query("SELECT 1 FROM outbox WHERE service = $1 LIMIT 1").bind(self.service);
        if waiting.fetch_optional(&self.pool).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.pool.begin().await?;
        sqlx::query("SET LOCAL synchronous_commit = on").execute(&mut *tx).await?;
        let lease = format!(
            "INSERT INTO relays (service, holder, held_until) VALUES ($1, $2, now() + interval '{LEASE}')
             ON CONFLICT (service) DO UPDATE SET holder = $2, held_until = excluded.held_until
             WHERE relays.holder = $2 OR relays.held_until < now()"
        );
        let held = sqlx::query(&lease).bind(self.service).bind(holder).execute(&mut *tx).await?;
        if held.rows_affected() == 0 {
            return Ok(Vec::new());
        }
        // the sum needs the sizes alone: what is not fetched is not read
        let rows = sqlx::query(
            "SELECT id, topic, key, payload, headers
             FROM (SELECT *, sum(size) OVER (ORDER BY id) - size AS before
                   FROM (SELECT *, octet_length(payload) + pg_column_size(headers) + coalesce(octet_length(key), 0) AS size
                         FROM outbox WHERE service = $1 ORDER BY id LIMIT $2) AS sized) AS next
             WHERE before <= $3 ORDER BY id",
        )
        .bind(self.service)
        .bind(AT_A_TIME)
        .bind(BYTES_AT_A_TIME)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        rows.iter()
            .map(|row| {
                let headers =
                    serde_json::from_value(row.get("headers")).map_err(|error| sqlx::Error::Decode(error.into()))?;
                Ok(Outgoing {
                    id: row.get("id"),
                    topic: row.get("topic"),
                    key: row.get("key"),
                    payload: row.get("payload"),
                    headers,
                })
            })
            .collect()
    }
}

async fn send(producer: &FutureProducer, message: &Outgoing) -> Result<rdkafka::producer::DeliveryFuture> {
    let headers = message
        .headers
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    let mut record: FutureRecord<'_, Vec<u8>, Vec<u8>> =
        FutureRecord::to(&message.topic).payload(&message.payload).headers(headers);
    if let Some(key) = &message.key {
        record = record.key(key);
    }
    loop {
        match producer.send_result(record) {
            Ok(acknowledgement) => return Ok(acknowledgement),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err((error, _)) => bail!("topic {}: {error}", message.topic),
        }
    }
}
