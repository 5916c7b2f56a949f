//! The producer: sends records, counts acknowledgements by chunk, and tells of failures. One
//! thread only; the client's callbacks run inside [`Sender::poll`].

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use events::{DeadLetter, EventType};
use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
};
use runtime::KafkaSettings;

use crate::flight::{Flight, Slots};

/// How long to wait for something to happen, at a time.
const MOMENT: Duration = Duration::from_millis(1);

/// Why records did not arrive. The producer is of no use afterwards: [`Sender::renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: RDKafkaErrorCode,
    /// The slot of the record; none when it was the producer as a whole.
    pub(crate) slot: Option<usize>,
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

/// How many records may stand in one request to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Batches {
    /// As many as are good for speed.
    Large,
    /// Some kilobytes: for topics that take no large ones.
    Small,
    /// One record, and one chunk each: to find the one that is too large by itself.
    Single,
}

/// The callbacks' side.
struct Acknowledgements {
    slots: Arc<Slots>,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl Acknowledgements {
    #[cold]
    fn fail(&self, failure: Failure) {
        let mut known = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // purging fails the rest of the queue: the first failure is the cause, and one that
        // names its record says most
        if known.as_ref().is_none_or(|known| known.slot.is_none() && failure.slot.is_some()) {
            *known = Some(failure);
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
            self.fail(Failure { code, slot: None });
        }
    }
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        match result {
            Ok(_) => self.slots.acknowledge(slot),
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                self.fail(Failure { code, slot: Some(slot) });
            }
        }
    }
}

/// A producer and what it has on its way.
pub(crate) struct Sender<T> {
    kafka: KafkaSettings,
    producer: BaseProducer<Acknowledgements>,
    flight: Flight<T>,
    batches: Batches,
    /// The time records are stamped with, in milliseconds since 1970: read now and then.
    clock: i64,
}

impl<T> Sender<T> {
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Sender<T>> {
        let flight = Flight::new();
        let producer = produce(kafka, Batches::Large, flight.slots())?;
        Ok(Sender { kafka: kafka.clone(), producer, flight, batches: Batches::Large, clock: 0 })
    }

    /// Begins anew after a failure: what was on its way is forgotten, and is the caller's to send
    /// again.
    pub(crate) fn renew(&mut self, batches: Batches) -> Result<()> {
        self.flight = Flight::new();
        self.batches = batches;
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.producer = produce(&self.kafka, batches, self.flight.slots())?;
        Ok(())
    }

    /// Where the events of a type go.
    pub(crate) fn topic_of(&self, event_type: &EventType) -> &str {
        self.kafka.topic_of(event_type)
    }

    pub(crate) fn batches(&self) -> Batches {
        self.batches
    }

    /// Reads the clock for the records that follow.
    pub(crate) fn stamp(&mut self) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.clock = i64::try_from(since.as_millis()).unwrap_or_default();
    }

    /// Sends a record as part of the open chunk.
    pub(crate) fn send(&mut self, topic: &str, key: &[u8], payload: &[u8]) -> Sent {
        let slot = self.flight.open_slot();
        let record = BaseRecord::with_opaque_to(topic, slot).key(key).payload(payload).timestamp(self.clock);
        let sent = self.producer.send(record);
        self.note(slot, sent.map_err(|(error, _)| error))
    }

    /// Sends a refusal to the errors topic as part of the open chunk.
    pub(crate) fn send_letter(&mut self, letter: &DeadLetter) -> Sent {
        let slot = self.flight.open_slot();
        let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len());
        for (key, value) in &letter.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let topic = self.kafka.errors_topic.clone();
        let record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&topic, slot).payload(letter.payload.as_slice()).headers(headers);
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        self.note(slot, sent)
    }

    fn note(&mut self, slot: usize, sent: Result<(), KafkaError>) -> Sent {
        match sent {
            Ok(()) => {
                self.flight.sent(slot);
                Sent::Yes
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => Sent::Full,
                code => {
                    let code = code.unwrap_or(RDKafkaErrorCode::Unknown);
                    self.producer.context().fail(Failure { code, slot: Some(slot) });
                    Sent::Failed
                }
            },
        }
    }

    /// Closes the open chunk.
    pub(crate) fn close(&mut self, stands_for: T) {
        self.flight.close(stands_for);
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

    /// Waits a while for room for further records; whether there may be some.
    pub(crate) fn make_room(&mut self) -> bool {
        let before = self.flight.acknowledged();
        for _ in 0..50 {
            self.poll();
            if self.flight.acknowledged() > before || self.failed() {
                return !self.failed();
            }
            std::thread::sleep(MOMENT);
        }
        false
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
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.producer.context().failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn produce(kafka: &KafkaSettings, batches: Batches, slots: Arc<Slots>) -> Result<BaseProducer<Acknowledgements>> {
    let mut config = runtime::kafka::producer(kafka, "onhand-importer");
    match batches {
        Batches::Large => {}
        Batches::Small => {
            config.set("batch.size", "16384");
        }
        Batches::Single => {
            config.set("batch.num.messages", "1");
        }
    }
    let context = Acknowledgements { slots, failed: AtomicBool::new(false), failure: Mutex::new(None) };
    BaseProducer::from_config_and_context(&config, context).context("Kafka settings")
}
