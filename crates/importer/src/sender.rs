//! The producer: sends records, counts acknowledgements by chunk, and tells of failures. One
//! thread only; the client's callbacks run inside [`Sender::poll`].

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
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
};
use runtime::KafkaSettings;

use crate::{
    desk::{RESERVED, SMALL},
    flight::{Flight, Slots, Usage},
    limits::Limits,
    partitions::Partitions,
};

/// How long to wait for something to happen, at a time.
const MOMENT: Duration = Duration::from_millis(1);
/// How long what is on its way may take to arrive after a failure.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the client tells how far each partition is.
const STATISTICS: Duration = Duration::from_secs(1);

/// Why records did not arrive. The producer is of no use afterwards: [`Sender::renew`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Slots of records that Kafka has refused, and why: the first reason of each.
    pub(crate) records: BTreeMap<usize, RDKafkaErrorCode>,
    /// The producer as a whole has failed.
    pub(crate) producer: Option<RDKafkaErrorCode>,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// There is no room now.
    Full,
    /// Nothing goes any more: see [`Sender::failure`].
    Failed,
}

/// The callbacks' side.
struct Acknowledgements {
    slots: Arc<Slots>,
    failed: AtomicBool,
    failures: Mutex<Failures>,
    /// Records that will not arrive: refused, or taken back.
    lost: AtomicU64,
    partitions: Mutex<Partitions>,
}

impl Acknowledgements {
    #[cold]
    fn fail(&self, code: RDKafkaErrorCode, slot: Option<usize>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match (code, slot) {
            // these records were in the company of the one that is at fault
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

impl ClientContext for Acknowledgements {
    fn log(&self, level: RDKafkaLogLevel, _: &str, message: &str) {
        tracing::debug!("librdkafka ({level:?}): {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
        if let Some(code @ RDKafkaErrorCode::Fatal) = error.rdkafka_error_code() {
            self.fail(code, None);
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).observe(&statistics);
    }
}

impl ProducerContext for Acknowledgements {
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

/// How much the client takes.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    records: u64,
    /// Of payloads: it does not count keys and headers.
    bytes: u64,
}

/// A producer and what it has on its way.
pub(crate) struct Sender<T> {
    kafka: KafkaSettings,
    producer: BaseProducer<Acknowledgements>,
    limits: Limits,
    flight: Flight<T>,
    capacity: Capacity,
    /// Since when a failed producer is given time for what can still arrive.
    draining: Option<Instant>,
    /// The time records are stamped with, in milliseconds since 1970: read now and then.
    clock: i64,
}

impl<T> Sender<T> {
    /// Blocks while it asks Kafka for its limits.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Sender<T>> {
        let (flight, limits) = (Flight::new(), Limits::ask(kafka));
        let (producer, capacity) = produce(kafka, &limits, flight.slots())?;
        Ok(Sender { kafka: kafka.clone(), producer, limits, flight, capacity, draining: None, clock: 0 })
    }

    /// After a failure: whether all that could still be acknowledged is. What is queued is taken back;
    /// what Kafka has already been sent may well arrive, and need not be sent again.
    pub(crate) fn is_drained(&mut self) -> bool {
        let since = *self.draining.get_or_insert_with(|| {
            self.producer.purge(PurgeConfig::default().queue());
            Instant::now()
        });
        self.flight.records() <= self.producer.context().lost.load(Relaxed) || since.elapsed() > DRAIN
    }

    /// Starts again with a new producer after a failure: what was on its way is forgotten, and is the
    /// caller's to send again. `ask`: the limits may have changed, and Kafka is asked for them again.
    pub(crate) fn renew(&mut self, ask: bool) -> Result<()> {
        self.flight = Flight::new();
        self.draining = None;
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if ask {
            self.limits = Limits::ask(&self.kafka);
        }
        (self.producer, self.capacity) = produce(&self.kafka, &self.limits, self.flight.slots())?;
        Ok(())
    }

    /// Whether a topic takes a record of this size.
    pub(crate) fn fits(&self, topic: &str, bytes: usize) -> bool {
        self.limits.fits(topic, bytes, 0)
    }

    /// Whether the errors topic takes this refusal.
    pub(crate) fn fits_letter(&self, letter: &Message) -> bool {
        self.limits.fits(&letter.topic, letter.size(), letter.all_headers().count())
    }

    /// How much more there is room for.
    pub(crate) fn room(&self) -> Usage {
        Usage {
            chunks: self.flight.free_chunks(),
            records: self.capacity.records.saturating_sub(self.flight.records()),
            bytes: self.capacity.bytes.saturating_sub(self.flight.bytes()),
        }
    }

    /// Whether a record may use the room that there is: what is left of the bytes is for small ones.
    fn has_room(&self, bytes: usize) -> bool {
        bytes <= SMALL || self.flight.bytes() + bytes as u64 <= self.capacity.bytes.saturating_sub(RESERVED.bytes)
    }

    /// Partitions that take nothing, though records wait for them.
    pub(crate) fn stuck_partitions(&self) -> Vec<String> {
        self.producer.context().partitions.lock().unwrap_or_else(PoisonError::into_inner).stuck()
    }

    /// Where refusals go.
    pub(crate) fn errors_topic(&self) -> &str {
        &self.kafka.errors_topic
    }

    /// Where the events of a type go.
    pub(crate) fn topic_of(&self, event_type: &EventType) -> &str {
        self.kafka.topic_of(event_type)
    }

    /// Reads the clock for the records that follow.
    pub(crate) fn stamp(&mut self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.clock = i64::try_from(since.as_millis()).unwrap_or_default();
    }

    /// Sends a record as part of the open chunk.
    pub(crate) fn send(&mut self, topic: &str, key: &[u8], payload: &[u8]) -> Sent {
        if !self.has_room(payload.len()) {
            return Sent::Full;
        }
        let slot = self.flight.open_slot();
        let record = BaseRecord::with_opaque_to(topic, slot).key(key).payload(payload).timestamp(self.clock);
        let sent = self.producer.send(record);
        self.note(slot, payload.len(), sent.map_err(|(error, _)| error))
    }

    /// Sends a refusal to the errors topic as part of the open chunk.
    pub(crate) fn send_letter(&mut self, letter: &Message) -> Sent {
        if !self.has_room(letter.payload.len()) {
            return Sent::Full;
        }
        let slot = self.flight.open_slot();
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + 1);
        for (key, value) in letter.all_headers() {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&letter.topic, slot).payload(letter.payload.as_slice()).headers(headers);
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        self.note(slot, letter.payload.len(), sent)
    }

    fn note(&mut self, slot: usize, bytes: usize, sent: Result<(), KafkaError>) -> Sent {
        match sent {
            Ok(()) => {
                self.flight.sent(slot, bytes);
                Sent::Yes
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => Sent::Full,
                code => {
                    let code = code.unwrap_or(RDKafkaErrorCode::Unknown);
                    self.producer.context().fail(code, Some(slot));
                    Sent::Failed
                }
            },
        }
    }

    /// Closes the open chunk.
    pub(crate) fn close(&mut self, file: u64, stands_for: T) {
        self.flight.close(file, stands_for);
    }

    /// Lets the client's callbacks run for what has happened.
    pub(crate) fn poll(&self) {
        loop {
            let before = self.flight.acknowledged();
            // one event at a time: the acknowledgement of a request, with all of its records
            self.producer.poll(Duration::ZERO);
            if self.flight.acknowledged() == before {
                return;
            }
        }
    }

    /// Waits a moment for something to happen. The client's own way to wait for a millisecond or
    /// two keeps the processor busy all the time, since it counts in whole milliseconds.
    pub(crate) fn wait(&self) {
        std::thread::sleep(MOMENT);
        self.poll();
    }

    /// The next chunk all of whose records are acknowledged, in the order of their closing.
    pub(crate) fn done(&mut self) -> Option<T> {
        self.flight.done()
    }

    /// What is on its way.
    pub(crate) fn flight(&self) -> &Flight<T> {
        &self.flight
    }

    /// Whether something went wrong.
    pub(crate) fn failed(&self) -> bool {
        self.producer.context().failed.load(Relaxed)
    }

    /// What went wrong.
    pub(crate) fn failures(&self) -> Failures {
        self.producer.context().failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A producer, and how much it takes.
fn produce(
    kafka: &KafkaSettings,
    limits: &Limits,
    slots: Arc<Slots>,
) -> Result<(BaseProducer<Acknowledgements>, Capacity)> {
    let mut config = runtime::kafka::producer(kafka, "onhand-importer");
    let batch = config.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(usize::MAX);
    let number = |name| config.get(name).and_then(|number| number.parse::<u64>().ok());
    let capacity = Capacity {
        records: number("queue.buffering.max.messages").unwrap_or(u64::MAX),
        bytes: number("queue.buffering.max.kbytes").map_or(u64::MAX, |kib| kib * 1024),
    };
    config.set("batch.size", batch.min(limits.batch()).to_string());
    // a row alone need not wait for company; when there are many, they wait for those before them
    config.set("linger.ms", "0");
    config.set("statistics.interval.ms", STATISTICS.as_millis().to_string());
    let context = Acknowledgements {
        slots,
        failed: AtomicBool::new(false),
        failures: Mutex::default(),
        lost: AtomicU64::new(0),
        partitions: Mutex::default(),
    };
    Ok((BaseProducer::from_config_and_context(&config, context).context("Kafka settings")?, capacity))
}
