//! A stock service of its own for each test: its topics, its database, its consumer group, on the
//! real Kafka and the real Postgres that all tests share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{future::Future, time::Duration};

use anyhow::Result;
use events::stock::{Card, Movement, StockEvent};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};
use runtime::{Environment, health::Health, kafka};
use sandbox::shared;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct House {
    pub variables: Vec<(String, String)>,
    pub settings: stock::Settings,
    pub topic: String,
    pub errors: String,
    pub pool: PgPool,
}

/// A service that runs in this process.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Running {
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.task.await?
    }

    /// How it ends by itself.
    pub async fn end(self) -> Result<()> {
        self.task.await?
    }
}

/// A record of the errors topic: its payload, and its headers.
#[derive(Debug, Clone)]
pub struct ErrorRecord {
    pub payload: serde_json::Value,
    pub headers: Vec<(String, String)>,
}

impl ErrorRecord {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

impl House {
    /// On the servers that all tests share, with a database of its own.
    pub async fn new(partitions: i32, variables: &[(&str, &str)]) -> House {
        let mut servers = shared().environment(&shared().fresh_database().expect("a database"));
        servers.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        House::on(partitions, servers).await
    }

    /// On servers of its own; `variables` names them, and sets what is to be other than here.
    pub async fn on(partitions: i32, variables: Vec<(String, String)>) -> House {
        let name = |prefix: &str| format!("{prefix}-{}", Uuid::new_v4());
        let (topic, errors) = (name("events"), name("errors"));
        let own = [
            ("KAFKA_EVENTS_TOPIC", topic.clone()),
            ("KAFKA_ERRORS_TOPIC", errors.clone()),
            ("KAFKA_TOPIC_PARTITIONS", partitions.to_string()),
            ("STOCK_GROUP", name("stock")),
            ("STOCK_RETRY_MS", "50".into()),
        ];
        let mut all: Vec<_> = own.map(|(name, value)| (name.to_owned(), value)).into();
        all.extend(variables);
        let mut env = Environment::of(all.clone());
        let settings = stock::Settings::read(&mut env);
        env.finish().expect("settings");
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        kafka::ensure_topics(&settings.kafka, &[&topic, &errors], &health, &shutdown).await.expect("topics");
        let migrated = runtime::postgres::connect(&settings.postgres, "test", 1, &health, &shutdown).await;
        migrated.expect("a database").close().await;
        // unlike the service's, it notices by itself when a connection is lost
        let options = runtime::postgres::options(&settings.postgres, "test");
        let pool = PgPoolOptions::new().max_connections(3).connect_with(options).await.expect("a database");
        House { variables: all, settings, topic, errors, pool }
    }

    pub fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(stock::run(self.settings.clone(), Health::default(), shutdown.clone()));
        Running { shutdown, task }
    }

    /// Sends events in this order; returns when all are acknowledged.
    pub fn send(&self, events: &[StockEvent]) {
        let records: Vec<_> = events.iter().map(|event| (event.card.to_string(), event.to_json())).collect();
        self.send_raw(records.iter().map(|(key, payload)| (key.as_bytes(), payload.as_bytes())));
    }

    pub fn send_raw<'a>(&self, records: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let producer = self.producer();
        for (key, payload) in records {
            self.produce_raw(&producer, key, payload);
        }
        producer.flush(PATIENCE).expect("acknowledged");
    }

    pub fn producer(&self) -> BaseProducer {
        kafka::producer(&self.settings.kafka, "test").create().expect("a producer")
    }

    /// Sends an event without waiting for it.
    pub fn produce(&self, producer: &BaseProducer, event: &StockEvent) {
        self.produce_raw(producer, event.card.to_string().as_bytes(), event.to_json().as_bytes());
    }

    fn produce_raw(&self, producer: &BaseProducer, key: &[u8], payload: &[u8]) {
        let mut record = BaseRecord::to(&self.topic).key(key).payload(payload);
        while let Err((_, back)) = producer.send(record) {
            record = back;
            producer.poll(Duration::from_millis(10));
        }
        producer.poll(Duration::ZERO);
    }

    /// How many records the errors topic holds.
    pub fn count_of_errors(&self) -> i64 {
        let consumer: BaseConsumer =
            kafka::consumer(&self.settings.kafka, "test", "unused").create().expect("a consumer");
        let end = |partition| consumer.fetch_watermarks(&self.errors, partition, PATIENCE).expect("watermarks").1;
        (0..self.settings.kafka.partitions).map(end).sum()
    }

    /// Everything on the errors topic now, one of each `ce_id`.
    pub fn error_records(&self) -> Vec<ErrorRecord> {
        let consumer: BaseConsumer =
            kafka::consumer(&self.settings.kafka, "test", "unused").create().expect("a consumer");
        let (mut found, mut ends, mut list) = (Vec::<ErrorRecord>::new(), Vec::new(), TopicPartitionList::new());
        for partition in 0..self.settings.kafka.partitions {
            let (low, high) = consumer.fetch_watermarks(&self.errors, partition, PATIENCE).expect("watermarks");
            if high > low {
                list.add_partition_offset(&self.errors, partition, Offset::Offset(low)).expect("an offset");
                ends.push((partition, high));
            }
        }
        consumer.assign(&list).expect("assigned");
        while !ends.is_empty() {
            let Some(Ok(message)) = consumer.poll(PATIENCE) else { panic!("errors cannot be read") };
            let headers: Vec<_> = message
                .headers()
                .iter()
                .flat_map(|headers| headers.iter())
                .map(|header| {
                    (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
                })
                .collect();
            let record = ErrorRecord {
                payload: serde_json::from_slice(message.payload().unwrap_or_default()).expect("JSON"),
                headers,
            };
            if !found.iter().any(|other| other.header("ce_id") == record.header("ce_id")) {
                found.push(record);
            }
            ends.retain(|(partition, high)| !(*partition == message.partition() && *high <= message.offset() + 1));
        }
        found
    }

    /// `(store, item, amount)` of every card.
    pub async fn items(&self) -> Vec<(i64, i64, i64)> {
        sqlx::query_as("SELECT store_id, item_id, amount FROM items ORDER BY 1, 2")
            .fetch_all(&self.pool)
            .await
            .expect("items")
    }

    pub async fn count(&self, table: &'static str) -> i64 {
        self.try_count(table).await.expect("a count")
    }

    /// None while Postgres is away.
    pub async fn try_count(&self, table: &'static str) -> Option<i64> {
        let sql = format!("SELECT count(*) FROM {table}");
        sqlx::query_scalar(&sql).fetch_one(&self.pool).await.ok()
    }

    /// Waits until every record of the topic is behind the service's offset, and the outbox is empty.
    pub async fn until_read(&self) {
        let consumer: BaseConsumer =
            kafka::consumer(&self.settings.kafka, "test", "unused").create().expect("a consumer");
        let mut total = 0;
        for partition in 0..self.settings.kafka.partitions {
            total += consumer.fetch_watermarks(&self.topic, partition, PATIENCE).expect("watermarks").1;
        }
        self.until("everything is read and said", async || {
            let read: Option<i64> = sqlx::query_scalar("SELECT sum(next_offset)::bigint FROM consumer_offsets")
                .fetch_one(&self.pool)
                .await
                .expect("offsets");
            read == Some(total) && self.count("outbox").await == 0
        })
        .await;
    }

    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        within(what, async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

/// Waits for something that must come true.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in {PATIENCE:?}: {what}"))
}

/// An event of store 4 with an id made from `number`.
pub fn event(number: u128, movement: Movement, item: i64, value: i32) -> StockEvent {
    StockEvent {
        transaction_id: Uuid::from_u128(number),
        movement,
        date: events::Timestamp(1_555_213_633_000_000),
        card: Card { store: 4, item },
        value,
    }
}
