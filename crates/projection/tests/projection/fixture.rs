//! Servers with topics and a database of its own for each test.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Result;
use projection::{MIGRATIONS, Projection, Settings, TRANSACTION_TIMEOUT};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka};
pub use sandbox::testing::within;
use sandbox::{
    shared,
    testing::{self, WAIT_TIMEOUT},
};
use sqlx::{PgPool, migrate::Migrator};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::division::{Controls, Division, TABLES};

pub struct Fixture {
    pub settings: Settings,
    pub health: Health,
    pub controls: Arc<Controls>,
    /// The test's own connections.
    pub pool: PgPool,
    postgres: PostgresSettings,
    partitions: i32,
}

/// A service that runs in this process.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Running {
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.end().await
    }

    /// How it ends by itself.
    pub async fn end(self) -> Result<()> {
        within("the service ends", self.task).await?
    }
}

/// A record of the errors topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Of the refused record.
    pub partition: i32,
    pub offset: i64,
    pub class: String,
    pub error: String,
}

impl Fixture {
    pub async fn new(partitions: i32) -> Fixture {
        Fixture::on(&shared().broker, partitions).await
    }

    /// With a Kafka of its own.
    pub async fn on(broker: &str, partitions: i32) -> Fixture {
        let mut variables = shared().environment(&shared().fresh_database().expect("a database"));
        variables.push(("KAFKA_BROKER_URL".into(), broker.to_owned()));
        let (topic, errors) = (shared().fresh_name("words"), shared().fresh_name("errors"));
        variables.push(("KAFKA_ERRORS_TOPIC".into(), errors));
        variables.push(("KAFKA_TOPIC_PARTITIONS".into(), "1".into()));
        let mut env = Environment::of(variables);
        let mut kafka = KafkaSettings::read(&mut env);
        let postgres = PostgresSettings::read(&mut env);
        env.finish().expect("settings");
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        // one partition of errors, so that the order of refusals can be seen
        kafka::ensure_topics(&kafka, &[&kafka.errors_topic], &health, &shutdown).await.expect("topics");
        kafka.partitions = partitions;
        kafka::ensure_topics(&kafka, &[&topic], &health, &shutdown).await.expect("topics");
        let pool = runtime::postgres::connect(&postgres, "test", 3, &[&MIGRATIONS], &health, &shutdown)
            .await
            .expect("a database");
        sqlx::raw_sql(TABLES).execute(&pool).await.expect("tables");
        let group = shared().fresh_name("division");
        let settings = Settings {
            kafka,
            group,
            topics: vec![topic],
            output_topics: Vec::new(),
            batch_size: 1_000,
            transactions: 4,
            transaction_timeout: TRANSACTION_TIMEOUT,
        };
        let controls = Controls::new(&settings.kafka.errors_topic);
        Fixture { settings, health, controls: controls.into(), pool, postgres, partitions }
    }

    pub fn topic(&self) -> &str {
        &self.settings.topics[0]
    }

    pub async fn start(&self) -> Running {
        self.start_with(Division(Arc::clone(&self.controls)), &[&MIGRATIONS]).await
    }

    pub async fn start_with<P: Projection>(&self, projection: P, migrations: &[&Migrator]) -> Running {
        let shutdown = CancellationToken::new();
        let pool = self.connect(migrations).await.expect("a database");
        let (settings, health) = (self.settings.clone(), self.health.clone());
        let service = projection::run(projection, settings, pool, health, shutdown.clone());
        Running { task: tokio::spawn(service), shutdown }
    }

    pub async fn connect(&self, migrations: &[&Migrator]) -> Result<PgPool> {
        let shutdown = CancellationToken::new();
        runtime::postgres::connect(&self.postgres, "projection", 6, migrations, &self.health, &shutdown).await
    }

    /// A topic of one partition that the service publishes to.
    pub async fn add_output_topic(&mut self, name: &str) {
        let topic = shared().fresh_name(name);
        let mut kafka = self.settings.kafka.clone();
        kafka.partitions = 1;
        // several event types may share a topic
        let created = kafka::ensure_topics(&kafka, &[&topic, &topic], &self.health, &CancellationToken::new()).await;
        created.expect("a topic");
        self.settings.output_topics.push(topic);
    }

    pub async fn delete_topic(&self, topic: &str) {
        let admin: AdminClient<_> = kafka::client(&self.settings.kafka, "test").create().expect("a client");
        admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("deleted");
    }

    pub fn topic_exists(&self, topic: &str) -> bool {
        let metadata = self.consumer().client().fetch_metadata(None, WAIT_TIMEOUT).expect("metadata");
        metadata.topics().iter().any(|known| known.name() == topic)
    }

    /// Sends words in this order; returns when all are acknowledged.
    pub fn send<W: AsRef<str>>(&self, partition: i32, words: impl IntoIterator<Item = W>) {
        let producer = self.producer();
        for word in words {
            let mut record = BaseRecord::<[u8], str>::to(self.topic()).partition(partition).payload(word.as_ref());
            while let Err((_, back)) = producer.send(record) {
                record = back;
                producer.poll(Duration::from_millis(10));
            }
        }
        producer.flush(WAIT_TIMEOUT).expect("acknowledged");
    }

    /// One that does not wait for further records.
    pub fn producer(&self) -> BaseProducer {
        kafka::producer(&self.settings.kafka, "test").set("linger.ms", "0").create().expect("a producer")
    }

    fn consumer(&self) -> BaseConsumer {
        kafka::consumer(&self.settings.kafka, "test", "unused").create().expect("a consumer")
    }

    /// The errors topic so far: payload, and headers.
    pub fn errors(&self) -> Vec<(serde_json::Value, HashMap<String, String>)> {
        self.messages(&self.settings.kafka.errors_topic)
    }

    /// A topic of one partition so far: payload, and headers.
    pub fn messages(&self, topic: &str) -> Vec<(serde_json::Value, HashMap<String, String>)> {
        let consumer = self.consumer();
        let (low, high) = consumer.fetch_watermarks(topic, 0, WAIT_TIMEOUT).expect("watermarks");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(low)).expect("an offset");
        consumer.assign(&list).expect("assigned");
        let read = (low..high).map(|_| {
            let message = consumer.poll(WAIT_TIMEOUT).expect("a record").expect("a record");
            let headers = message.headers().into_iter().flat_map(Headers::iter).map(|header| {
                (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
            });
            (serde_json::from_slice(message.payload().unwrap_or_default()).expect("JSON"), headers.collect())
        });
        read.collect()
    }

    /// Payloads on the errors topic, in their order.
    pub fn payloads(&self) -> Vec<serde_json::Value> {
        self.errors().into_iter().map(|(payload, _)| payload).collect()
    }

    /// Refused records, in the order in which they were published.
    pub fn refused(&self) -> Vec<Refused> {
        let one = |(payload, headers): (serde_json::Value, HashMap<String, String>)| Refused {
            partition: headers["__connect.errors.partition"].parse().expect("a number"),
            offset: headers["__connect.errors.offset"].parse().expect("a number"),
            class: headers["__connect.errors.exception.class.name"].clone(),
            error: payload["error"].as_str().expect("a reason").to_owned(),
        };
        self.errors().into_iter().map(one).collect()
    }

    /// Offsets of what was applied, in the order in which it was.
    pub async fn applied(&self, partition: i32) -> Vec<i64> {
        let sql = "SELECT record_offset FROM quotients WHERE partition = $1 ORDER BY id";
        sqlx::query_scalar(sql).bind(partition).fetch_all(&self.pool).await.expect("rows")
    }

    pub async fn next_offset(&self, partition: i32) -> i64 {
        let sql = "SELECT coalesce(max(next_offset), 0) FROM consumer_offsets WHERE partition = $1";
        sqlx::query_scalar(sql).bind(partition).fetch_one(&self.pool).await.expect("an offset")
    }

    pub async fn count(&self, table: &'static str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        sqlx::query_scalar(&sql).fetch_one(&self.pool).await.expect("a count")
    }

    /// What Kafka's consumer group knows.
    pub fn offset_of_group(&self, partition: i32) -> Option<i64> {
        let config = kafka::consumer(&self.settings.kafka, "test", &self.settings.group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(self.topic(), partition);
        let committed = consumer.committed_offsets(list, WAIT_TIMEOUT).expect("offsets");
        committed.elements()[0].offset().to_raw()
    }

    /// Waits until every record of the topic is before the service's offset, and the outbox is empty.
    pub async fn until_read(&self) {
        for partition in 0..self.partitions {
            let (_, high) =
                self.consumer().fetch_watermarks(self.topic(), partition, WAIT_TIMEOUT).expect("watermarks");
            self.until("everything is read", async || self.next_offset(partition).await == high).await;
        }
        self.until("everything is published", async || self.count("outbox").await == 0).await;
    }

    pub async fn until(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        testing::until(what, condition).await;
    }
}
