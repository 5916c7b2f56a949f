//! A projection of the tests' own, and servers with topics and a database of its own for each test.
//! A record is a word: a number, which 1,000 is divided by, or what is to go wrong.

use std::{
    collections::HashMap,
    future::{Future, pending},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use events::{DeadLetter, Refusal, Timestamp};
use projection::{ApplyError, Batch, BatchOutput, Decoded, Due, Projection, Settings, TRANSACTION_TIMEOUT};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka};
use sandbox::shared;
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "
    CREATE TABLE quotients (
        id bigint GENERATED ALWAYS AS IDENTITY, partition int, record_offset bigint, number bigint, quotient bigint,
        word text
    );
    CREATE INDEX quotients_word ON quotients (word);
    CREATE TABLE alarms (partition int, at bigint);
    CREATE TABLE rung (at bigint, now bigint, applied bigint, CONSTRAINT loud CHECK (at >= 0));";

/// What the test has told the projection, and what it was called with.
#[derive(Default)]
pub struct Desk {
    /// While set, [`Word::Held`] cannot be applied for the time being.
    pub hold: AtomicBool,
    /// Every call of `apply`: the attempt, and the offsets of the records.
    pub calls: Mutex<Vec<(u32, Vec<i64>)>>,
    /// How often records have failed that fail a number of times.
    failures: Mutex<HashMap<(i32, i64), u32>>,
    /// Numbers of records in committed batches.
    pub committed: Mutex<Vec<usize>>,
}

impl Desk {
    fn fails_again(&self, place: (i32, i64), times: u32) -> bool {
        let mut failures = self.failures.lock().expect("no panic");
        let failed = failures.entry(place).or_default();
        *failed += 1;
        *failed <= times
    }

    /// Attempts of the calls with this record.
    pub fn attempts(&self, offset: i64) -> Vec<u32> {
        let calls = self.calls.lock().expect("no panic");
        calls.iter().filter(|(_, offsets)| offsets.contains(&offset)).map(|(attempt, _)| *attempt).collect()
    }
}

/// A record, decoded.
#[derive(Debug, Clone)]
pub enum Word {
    /// 1,000 is divided by it.
    Number(i64),
    /// The service's rules refuse it.
    Refused,
    /// Not while [`Desk::hold`] is set.
    Held,
    /// Not the first so many times, for a reason that passes.
    Transient(u32),
    /// Not the first so many times, for what was assumed.
    Stale(u32),
    /// Sets an alarm for so many milliseconds from now.
    Alarm(i64),
    /// Takes so many milliseconds.
    Slow(u64),
    /// Goes into an index as it is.
    Long(String),
    /// Panics when it is applied.
    Panic,
    /// Applying it does not end.
    Stuck,
}

pub struct Division(Arc<Desk>);

impl Projection for Division {
    const SERVICE: &'static str = "division";
    type Event = Word;
    type Memory = ();
    type Outcome = usize;

    fn decode(&self, payload: &[u8]) -> Result<Decoded<Word>, Refusal> {
        let text = std::str::from_utf8(payload).expect("text");
        let words: Vec<_> = text.split(' ').collect();
        let times = || words[1].parse().expect("a number");
        let event = match words[0] {
            "refused" => Word::Refused,
            "held" => Word::Held,
            "transient" => Word::Transient(times()),
            "stale" => Word::Stale(times()),
            "alarm" => Word::Alarm(times().into()),
            "slow" => Word::Slow(times().into()),
            "long" => Word::Long(words[1].to_owned()),
            "panic" => Word::Panic,
            "stuck" => Word::Stuck,
            "panic-in-decode" => panic!("as the test asked for"),
            number => {
                let no_number = |_| Refusal { error: format!("{number} is no number"), class: "InvalidEvent" };
                Word::Number(number.parse().map_err(no_number)?)
            }
        };
        Ok(Decoded { event, canonical: false })
    }

    fn encode(_: &Word) -> Vec<u8> {
        unreachable!("nothing is canonical")
    }

    async fn apply(
        &self,
        tx: &mut PgConnection,
        (): &mut (),
        batch: Batch<'_, Word>,
        now: Timestamp,
        attempt: u32,
    ) -> Result<BatchOutput<usize>, ApplyError> {
        let (dead_letters, outcome) = match batch.due {
            Some(due) => self.ring(tx, &batch, due, now).await?,
            None if batch.events.is_empty() => (Vec::new(), 0),
            None => self.divide(tx, &batch, now, attempt).await?,
        };
        let wake_at: Option<i64> = sqlx::query_scalar("SELECT min(at) FROM alarms WHERE partition = $1")
            .bind(batch.partition)
            .fetch_one(tx)
            .await?;
        Ok(BatchOutput { dead_letters, outcome, wake_at: wake_at.map(Timestamp) })
    }

    fn committed(&self, outcome: usize, _: Duration) {
        self.0.committed.lock().expect("no panic").push(outcome);
    }
}

impl Division {
    /// Alarms ring; one before 1970 cannot.
    async fn ring(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_, Word>,
        due: Due<'_>,
        now: Timestamp,
    ) -> Result<(Vec<DeadLetter>, usize), ApplyError> {
        let ring = if due.refuse.is_some() { "false" } else { "true" };
        let sql = format!(
            "WITH due AS (DELETE FROM alarms WHERE ctid IN (
                 SELECT ctid FROM alarms WHERE partition = $1 AND at <= $2 ORDER BY at LIMIT $3) RETURNING at)
             INSERT INTO rung SELECT at, $4, (SELECT count(*) FROM quotients WHERE partition = $1) FROM due WHERE {ring}"
        );
        let query = sqlx::query(&sql).bind(batch.partition).bind(due.caught_up_at.0).bind(due.limit as i64).bind(now.0);
        let rung = query.execute(tx).await?.rows_affected() as usize;
        let payload = match due.refuse {
            Some(why) => serde_json::json!({ "error": why }),
            None => serde_json::json!({ "rung": rung }),
        };
        let letter = DeadLetter { key: None, payload: payload.to_string().into_bytes(), headers: Vec::new() };
        Ok((vec![letter], rung))
    }

    async fn divide(
        &self,
        tx: &mut PgConnection,
        batch: &Batch<'_, Word>,
        now: Timestamp,
        attempt: u32,
    ) -> Result<(Vec<DeadLetter>, usize), ApplyError> {
        let all = batch.events.iter().map(|record| batch.offset(record)).collect();
        self.0.calls.lock().expect("no panic").push((attempt, all));
        let (mut offsets, mut numbers, mut long, mut letters) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for record in batch.events {
            let offset = batch.offset(record);
            let fails_again = |times| self.0.fails_again((batch.partition, offset), times);
            match &record.event {
                Word::Number(_) => {}
                Word::Held if self.0.hold.load(Ordering::Relaxed) => {
                    return Err(ApplyError::Transient(anyhow!("it is held")));
                }
                Word::Transient(times) if fails_again(*times) => {
                    return Err(ApplyError::Transient(anyhow!("it will pass")));
                }
                Word::Stale(times) if fails_again(*times) => return Err(ApplyError::Stale),
                Word::Panic => panic!("as the test asked for"),
                Word::Stuck => pending().await,
                Word::Refused => {
                    let refusal = Refusal { error: "the rules forbid it".into(), class: "Forbidden" };
                    letters.push(batch.refuse(record, &refusal));
                    continue;
                }
                Word::Alarm(millis) => {
                    let alarm = sqlx::query("INSERT INTO alarms VALUES ($1, $2)").bind(batch.partition);
                    alarm.bind(now.0 + millis * 1_000).execute(&mut *tx).await?;
                }
                Word::Slow(millis) => {
                    sqlx::query("SELECT pg_sleep($1)").bind(*millis as f64 / 1e3).execute(&mut *tx).await?;
                }
                Word::Held | Word::Transient(_) | Word::Stale(_) | Word::Long(_) => {}
            }
            offsets.push(offset);
            numbers.push(if let Word::Number(number) = record.event { number } else { 1 });
            long.push(if let Word::Long(text) = &record.event { text.as_str() } else { "" });
        }
        sqlx::query(
            "INSERT INTO quotients (partition, record_offset, number, quotient, word)
             SELECT $1, record_offset, number, 1000 / number, word
             FROM unnest($2::bigint[], $3::bigint[], $4::text[])
                  WITH ORDINALITY AS c (record_offset, number, word, place) ORDER BY place",
        )
        .bind(batch.partition)
        .bind(offsets)
        .bind(numbers)
        .bind(long)
        .execute(tx)
        .await?;
        Ok((letters, batch.events.len()))
    }
}

pub struct House {
    pub settings: Settings,
    pub health: Health,
    pub desk: Arc<Desk>,
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

impl House {
    pub async fn new(partitions: i32) -> House {
        House::on(&shared().broker, partitions).await
    }

    /// With a Kafka of its own.
    pub async fn on(broker: &str, partitions: i32) -> House {
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
        let pool = runtime::postgres::connect(&postgres, "test", 3, &health, &shutdown).await.expect("a database");
        sqlx::raw_sql(TABLES).execute(&pool).await.expect("tables");
        let group = shared().fresh_name("division");
        let settings = Settings {
            kafka,
            group,
            topics: vec![topic],
            batch_size: 1_000,
            transactions: 4,
            transaction_timeout: TRANSACTION_TIMEOUT,
        };
        House { settings, health, desk: Arc::default(), pool, postgres, partitions }
    }

    pub fn topic(&self) -> &str {
        &self.settings.topics[0]
    }

    pub async fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let pool = runtime::postgres::connect(&self.postgres, "division", 6, &self.health, &shutdown).await;
        let division = Division(Arc::clone(&self.desk));
        let (settings, health) = (self.settings.clone(), self.health.clone());
        let service = projection::run(division, settings, pool.expect("a database"), health, shutdown.clone());
        Running { task: tokio::spawn(service), shutdown }
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
        producer.flush(PATIENCE).expect("acknowledged");
    }

    /// One that does not wait for further records.
    pub fn producer(&self) -> BaseProducer {
        kafka::producer(&self.settings.kafka, "test").set("linger.ms", "0").create().expect("a producer")
    }

    fn consumer(&self) -> BaseConsumer {
        kafka::consumer(&self.settings.kafka, "test", "unused").create().expect("a consumer")
    }

    /// The errors topic as it stands: payload, and headers.
    fn errors(&self) -> Vec<(serde_json::Value, HashMap<String, String>)> {
        let (consumer, topic) = (self.consumer(), &self.settings.kafka.errors_topic);
        let (low, high) = consumer.fetch_watermarks(topic, 0, PATIENCE).expect("watermarks");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(low)).expect("an offset");
        consumer.assign(&list).expect("assigned");
        let read = (low..high).map(|_| {
            let message = consumer.poll(PATIENCE).expect("a record").expect("a record");
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
        let committed = consumer.committed_offsets(list, PATIENCE).expect("offsets");
        committed.elements()[0].offset().to_raw()
    }

    /// Waits until every record of the topic is behind the service's offset, and the outbox is empty.
    pub async fn until_read(&self) {
        for partition in 0..self.partitions {
            let (_, high) = self.consumer().fetch_watermarks(self.topic(), partition, PATIENCE).expect("watermarks");
            self.until("everything is read", async || self.next_offset(partition).await == high).await;
        }
        self.until("everything is said", async || self.count("outbox").await == 0).await;
    }

    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        within(what, async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

/// Waits for something that must come true.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in {PATIENCE:?}: {what}"))
}
