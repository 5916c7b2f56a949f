//! What Kafka and Postgres say of a partition, asked away from the consumer's thread: one that does
//! not answer, or a partition that is offline, holds up only the partition that is asked for.
//! Kafka is asked over a connection of its own, since a broker answers a connection's requests one
//! after the other, and the consumer's are long polls.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use events::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{
    health::Health,
    kafka::{TIMEOUT, topic_identity},
};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    ConsumerOffset, TopicPartition,
    apply::{now, offsets},
    consume::topic_identity,
};

/// Questions to Kafka at a time.
const QUESTIONS: usize = 8;
/// How long a topic's identity is believed.
const IDENTITY_AGE: Duration = Duration::from_secs(1);
/// The pause before a question is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// How long records must seem lost before that is believed: a broker that has just started, or has
/// just become the leader, may report an earlier end for a moment.
pub(crate) const LOST_AFTER: Duration = Duration::from_secs(10);

/// What Kafka says of a partition.
#[derive(Debug, Clone)]
pub(crate) struct Watermarks {
    /// The wall clock when it was asked.
    pub(crate) asked_at: Timestamp,
    pub(crate) kafka: topic_identity::Partition,
}

pub(crate) struct Probe {
    client: BaseConsumer,
    pool: PgPool,
    service: &'static str,
    health: Health,
    questions: Semaphore,
    /// Partitions that cannot begin since Kafka, or Postgres, does not answer.
    without_kafka: AtomicUsize,
    without_postgres: AtomicUsize,
    identities: Mutex<HashMap<Arc<str>, (Instant, String)>>,
}

impl Probe {
    /// `client` fetches nothing.
    pub(crate) fn new(client: BaseConsumer, pool: PgPool, service: &'static str, health: Health) -> Probe {
        Probe {
            client,
            pool,
            service,
            health,
            questions: Semaphore::new(QUESTIONS),
            without_kafka: AtomicUsize::new(0),
            without_postgres: AtomicUsize::new(0),
            identities: Mutex::default(),
        }
    }

    /// Whether no partition waits for Kafka to begin.
    pub(crate) fn kafka_answers(&self) -> bool {
        self.without_kafka.load(Ordering::Relaxed) == 0
    }

    /// Whether no partition waits for Postgres to begin.
    pub(crate) fn postgres_answers(&self) -> bool {
        self.without_postgres.load(Ordering::Relaxed) == 0
    }

    /// Asks Kafka.
    pub(crate) async fn watermarks(self: &Arc<Self>, source: &TopicPartition) -> Result<Watermarks> {
        let _turn = self.questions.acquire().await?;
        let (probe, source) = (Arc::clone(self), source.clone());
        tokio::task::spawn_blocking(move || {
            let asked_at = now();
            let identity = probe.identity(&source)?;
            let (low, high) = probe.client.fetch_watermarks(&source.topic, source.partition, TIMEOUT)?;
            Ok(Watermarks { asked_at, kafka: topic_identity::Partition { identity, low, high } })
        })
        .await?
    }

    fn identity(&self, source: &TopicPartition) -> Result<String> {
        let known = || self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, identity)) = known().get(&source.topic)
            && asked.elapsed() < IDENTITY_AGE
        {
            return Ok(identity.clone());
        }
        let identity = topic_identity(self.client.client(), &source.topic)?;
        known().insert(Arc::clone(&source.topic), (Instant::now(), identity.clone()));
        Ok(identity)
    }

    /// The offsets of the service, by partition. A frozen server must not be waited for forever.
    pub(crate) async fn consumer_offsets(&self) -> Result<HashMap<TopicPartition, ConsumerOffset>> {
        in_time(offsets::of_service(&self.pool, self.service)).await
    }

    /// Where to begin, once both Kafka and Postgres have answered and what comes next is there; `None`
    /// when asked to stop meanwhile. An error stops the service.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        source: &TopicPartition,
        stop: &CancellationToken,
    ) -> Result<Option<i64>> {
        let mut lost_since = None;
        let mut unanswered: Option<Unanswered<'_>> = None;
        loop {
            // Postgres first: what is written or applied after its answer only makes Kafka's end larger
            let asked = async {
                let offset = in_time(offsets::of_partition(&self.pool, self.service, source));
                let offset = offset.await.map_err(|error| ("postgres", error))?;
                let watermarks = self.watermarks(source).await.map_err(|error| ("kafka", error))?;
                if offset.is_none() {
                    let Watermarks { kafka: topic_identity::Partition { low, identity, .. }, .. } = &watermarks;
                    let begun = in_time(offsets::begin(&self.pool, self.service, source, *low, identity));
                    begun.await.map_err(|error| ("postgres", error))?;
                }
                Ok((offset, watermarks))
            };
            let asked = tokio::select! {
                asked = asked => asked,
                () = stop.cancelled() => return Ok(None),
            };
            match asked {
                Ok((Some(offset), watermarks)) => match topic_identity::check(&offset, &watermarks.kafka) {
                    Ok(()) => return Ok(Some(offset.next_offset)),
                    Err(lost) if lost.is_certain() => return Err(lost.into()),
                    Err(lost) => {
                        let since = *lost_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= LOST_AFTER {
                            return Err(lost.into());
                        }
                        tracing::debug!("asking again: {lost}");
                    }
                },
                // written just now, by this process or by another one: read it
                Ok((None, _)) => continue,
                Err((part, error)) => {
                    self.health.unhealthy(part, format!("waiting: {error:#}"));
                    // two moments apart from each other are no sign of a loss
                    lost_since = None;
                    let count = if part == "kafka" { &self.without_kafka } else { &self.without_postgres };
                    drop(unanswered.take());
                    unanswered = Some(Unanswered::count(count));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => return Ok(None),
            }
        }
    }
}

/// A partition that cannot begin; counted as long as it lives.
struct Unanswered<'a>(&'a AtomicUsize);

impl Unanswered<'_> {
    fn count(count: &AtomicUsize) -> Unanswered<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Unanswered(count)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(TIMEOUT, answer).await.context("no answer in time")??)
}
