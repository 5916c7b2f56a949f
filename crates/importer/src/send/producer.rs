//! The producer: sends records, counts acknowledgements by chunk, and collects failures. One thread only; the client's callbacks run inside [`Producer::poll`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use events::{EventType, Message};
use rdkafka::{
    ClientContext, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};
use runtime::KafkaSettings;

use crate::send::{
    in_flight::{InFlight, Slots, Usage},
    partition_health::PartitionHealth,
    sink::{RESERVED, SMALL_RECORD_BYTES},
    topic_limits::TopicLimits,
};

/// How often the client is polled while waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long to wait after a failure for records that may still be acknowledged.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the client reports the state of each partition.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// Why records were not delivered. The producer cannot be used afterwards: [`Producer::replace`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Slots with records that Kafka has refused, and the first reason of each.
    pub(crate) records: BTreeMap<usize, RDKafkaErrorCode>,
    /// The producer as a whole has failed.
    pub(crate) producer: Option<RDKafkaErrorCode>,
}

/// The result of sending a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SendResult {
    /// It is in flight.
    Sent,
    /// There is no room now.
    QueueFull,
    /// The producer has failed: see [`Producer::failures`].
    Failed,
}

/// The state that the client's callbacks update.
struct DeliveryContext {
    slots: Arc<Slots>,
    failed: AtomicBool,
    failures: Mutex<Failures>,
    /// Records that will not be acknowledged: refused, or purged.
    lost: AtomicU64,
    partitions: Mutex<PartitionHealth>,
}

impl DeliveryContext {
    #[cold]
    fn fail(&self, code: RDKafkaErrorCode, slot: Option<usize>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match (code, slot) {
            // consequences of another record's failure
            (
                RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
                | RDKafkaErrorCode::InvalidDifferentRecord,
                _,
            ) => {}
            (code, Some(slot)) => {
                failures.records.entry(slot).or_insert(code);
            }
            (code, None) => failures.producer = Some(code),
        }
        self.failed.store(true, Relaxed);
    }
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, _: &str, message: &str) {
        tracing::debug!(?level, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
        if let Some(code @ RDKafkaErrorCode::Fatal) = error.rdkafka_error_code() {
            self.fail(code, None);
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).observe(&statistics);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        match result {
            Ok(record) => self.slots.acknowledge(slot, record.payload_len()),
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                self.lost.store(self.lost.load(Relaxed) + 1, Relaxed);
                self.fail(code, Some(slot));
            }
        }
    }
}

/// How much the client's queue can hold.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    records: u64,
    /// Of payloads; keys and headers are not counted.
    bytes: u64,
}

/// A producer and its records in flight.
pub(crate) struct Producer<T> {
    kafka: KafkaSettings,
    producer: BaseProducer<DeliveryContext>,
    limits: TopicLimits,
    in_flight: InFlight<T>,
    capacity: Capacity,
    /// Since when a failed producer waits for records that may still be acknowledged.
    draining: Option<Instant>,
    /// The timestamp of records, in milliseconds since 1970: read once a step.
    clock: i64,
}

impl<T> Producer<T> {
    /// Blocks for a few seconds at most, while it asks Kafka for the topics' limits.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Producer<T>> {
        let (in_flight, limits) = (InFlight::new(), TopicLimits::query(kafka));
        let (producer, capacity) = create_producer(kafka, &limits, in_flight.slots())?;
        Ok(Producer { kafka: kafka.clone(), producer, limits, in_flight, capacity, draining: None, clock: 0 })
    }

    /// After a failure: whether everything that could still be acknowledged is. Queued records are purged;
    /// those that were sent to Kafka may still be acknowledged, and then need not be sent again.
    pub(crate) fn is_drained(&mut self) -> bool {
        let since = *self.draining.get_or_insert_with(|| {
            self.producer.purge(PurgeConfig::default().queue());
            Instant::now()
        });
        self.in_flight.records() <= self.producer.context().lost.load(Relaxed) || since.elapsed() > DRAIN_TIMEOUT
    }

    /// Starts again with a new producer after a failure. Records in flight are forgotten, and the caller
    /// sends them again. `refresh_limits`: the topics' limits may have changed.
    pub(crate) fn replace(&mut self, refresh_limits: bool) -> Result<()> {
        self.in_flight = InFlight::new();
        self.draining = None;
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if refresh_limits {
            self.limits = TopicLimits::query(&self.kafka);
        }
        (self.producer, self.capacity) = create_producer(&self.kafka, &self.limits, self.in_flight.slots())?;
        Ok(())
    }

    /// Whether a topic accepts a record of this size.
    pub(crate) fn fits(&self, topic: &str, bytes: usize) -> bool {
        self.limits.fits(topic, bytes, 0)
    }

    /// Whether the errors topic accepts this dead letter.
    pub(crate) fn fits_dead_letter(&self, letter: &Message) -> bool {
        self.limits.fits(&letter.topic, letter.size(), letter.all_headers().count())
    }

    /// The room that is left.
    pub(crate) fn room(&self) -> Usage {
        Usage {
            chunks: self.in_flight.free_chunks(),
            records: self.capacity.records.saturating_sub(self.in_flight.records()),
            bytes: self.capacity.bytes.saturating_sub(self.in_flight.bytes()),
        }
    }

    /// Whether there is room for a record; the last bytes are reserved for small ones.
    fn has_room(&self, bytes: usize) -> bool {
        bytes <= SMALL_RECORD_BYTES
            || self.in_flight.bytes() + bytes as u64 <= self.capacity.bytes.saturating_sub(RESERVED.bytes)
    }

    /// Partitions that accept nothing although records wait for them.
    pub(crate) fn stuck_partitions(&self) -> Vec<String> {
        self.producer.context().partitions.lock().unwrap_or_else(PoisonError::into_inner).stuck()
    }

    /// The topic of dead letters.
    pub(crate) fn errors_topic(&self) -> &str {
        &self.kafka.errors_topic
    }

    /// The topic of an event type.
    pub(crate) fn topic_of(&self, event_type: &EventType) -> &str {
        self.kafka.topic_of(event_type)
    }

    /// Sets the timestamp of the records that follow.
    pub(crate) fn update_clock(&mut self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.clock = i64::try_from(since.as_millis()).unwrap_or_default();
    }

    /// Sends a record as part of the open chunk.
    pub(crate) fn send(&mut self, topic: &str, key: &[u8], payload: &[u8]) -> SendResult {
        if !self.has_room(payload.len()) {
            return SendResult::QueueFull;
        }
        let slot = self.in_flight.open_slot();
        let record = BaseRecord::with_opaque_to(topic, slot).key(key).payload(payload).timestamp(self.clock);
        let sent = self.producer.send(record);
        self.record_result(slot, payload.len(), sent.map_err(|(error, _)| error))
    }

    /// Sends a dead letter to the errors topic as part of the open chunk.
    pub(crate) fn send_dead_letter(&mut self, letter: &Message) -> SendResult {
        if !self.has_room(letter.payload.len()) {
            return SendResult::QueueFull;
        }
        let slot = self.in_flight.open_slot();
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + 1);
        for (key, value) in letter.all_headers() {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&letter.topic, slot).payload(letter.payload.as_slice()).headers(headers);
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        self.record_result(slot, letter.payload.len(), sent)
    }

    fn record_result(&mut self, slot: usize, bytes: usize, sent: Result<(), KafkaError>) -> SendResult {
        match sent {
            Ok(()) => {
                self.in_flight.sent(slot, bytes);
                SendResult::Sent
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => SendResult::QueueFull,
                code => {
                    let code = code.unwrap_or(RDKafkaErrorCode::Unknown);
                    self.producer.context().fail(code, Some(slot));
                    SendResult::Failed
                }
            },
        }
    }

    /// Closes the open chunk.
    pub(crate) fn close(&mut self, file: u64, value: T) {
        self.in_flight.close(file, value);
    }

    /// Runs the client's callbacks for everything that has happened.
    pub(crate) fn poll(&self) {
        loop {
            let before = self.in_flight.acknowledged();
            // serves one event at a time: the acknowledgement of a request, with all of its records
            self.producer.poll(Duration::ZERO);
            if self.in_flight.acknowledged() == before {
                return;
            }
        }
    }

    /// Waits for one [`POLL_INTERVAL`]. The client's own wait for a millisecond or two is a busy loop, since it
    /// counts in whole milliseconds.
    pub(crate) fn wait(&self) {
        std::thread::sleep(POLL_INTERVAL);
        self.poll();
    }

    /// The next chunk all of whose records are acknowledged.
    pub(crate) fn next_done(&mut self) -> Option<T> {
        self.in_flight.next_done()
    }

    /// The records in flight.
    pub(crate) fn in_flight(&self) -> &InFlight<T> {
        &self.in_flight
    }

    /// Whether the producer has failed.
    pub(crate) fn failed(&self) -> bool {
        self.producer.context().failed.load(Relaxed)
    }

    /// Why the producer has failed.
    pub(crate) fn failures(&self) -> Failures {
        self.producer.context().failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A producer, and the capacity of its queue.
fn create_producer(
    kafka: &KafkaSettings,
    limits: &TopicLimits,
    slots: Arc<Slots>,
) -> Result<(BaseProducer<DeliveryContext>, Capacity)> {
    let mut config = runtime::kafka::producer(kafka, "onhand-importer");
    let batch = config.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(usize::MAX);
    let number = |name| config.get(name).and_then(|number| number.parse::<u64>().ok());
    let capacity = Capacity {
        records: number("queue.buffering.max.messages").unwrap_or(u64::MAX),
        bytes: number("queue.buffering.max.kbytes").map_or(u64::MAX, |kib| kib * 1024),
    };
    config.set("batch.size", batch.min(limits.smallest()).to_string());
    // a single row is sent at once; many rows are batched while the requests before them are in flight
    config.set("linger.ms", "0");
    config.set("statistics.interval.ms", STATISTICS_INTERVAL.as_millis().to_string());
    let context = DeliveryContext {
        slots,
        failed: AtomicBool::new(false),
        failures: Mutex::default(),
        lost: AtomicU64::new(0),
        partitions: Mutex::default(),
    };
    Ok((BaseProducer::from_config_and_context(&config, context).context("Kafka settings")?, capacity))
}
