//! A service's loop, put together.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize, mpsc},
};

use anyhow::{Context as _, Result, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{KafkaSettings, health::Health, kafka, lifecycle::Tasks};
use sqlx::PgPool;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::{Projection, apply::Shared, assignment::Assignment, group::Context, outbox::Relay, timer, worker::Work};

/// What a service runs on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker, and the errors topic.
    pub kafka: KafkaSettings,
    /// The consumer group that shares the partitions among processes.
    pub group: String,
    /// The topics it reads.
    pub topics: Vec<String>,
    /// Records a transaction holds at most.
    pub batch_size: usize,
    /// Batches in Postgres at a time. The pool must have two connections more.
    pub transactions: usize,
}

/// Projects the topics into Postgres until shutdown. Returns when the batches in hand are committed
/// and the group is left; with an error when only a person can help.
pub async fn run<P: Projection>(
    projection: P,
    settings: Settings,
    pool: PgPool,
    health: Health,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    topics.push(&settings.kafka.errors_topic);
    kafka::ensure_topics(&settings.kafka, &topics, &health, &shutdown).await?;

    let shutdown = shutdown.child_token();
    let shared = Arc::new(Shared {
        projection,
        pool: pool.clone(),
        health: health.clone(),
        errors_topic: settings.kafka.errors_topic.clone(),
        transactions: Semaphore::new(settings.transactions),
        said: Arc::new(Notify::new()),
        troubled: Arc::new(AtomicUsize::new(0)),
    });
    let (sender, reports) = mpsc::channel();
    let work = Arc::new(Work {
        shared: Arc::clone(&shared),
        batch_size: settings.batch_size,
        assigned: AtomicUsize::new(0),
        reports: sender,
        tokio: Handle::current(),
    });
    let consumer: BaseConsumer<Context> = kafka::consumer(&settings.kafka, P::SERVICE, &settings.group)
        .create_with_context(Context::default())
        .context("Kafka settings")?;
    let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).context("subscribing")?;

    let assignment =
        Assignment { consumer: Arc::new(consumer), work, reports, shutdown: shutdown.clone(), workers: HashMap::new() };
    let (ended, end) = tokio::sync::oneshot::channel();
    // a thread of its own: librdkafka's calls block
    std::thread::Builder::new().name(format!("{}-consumer", P::SERVICE)).spawn(move || {
        // the receiver is gone only when the process is
        let _ = ended.send(assignment.run());
    })?;

    let mut tasks = Tasks::new(shutdown.clone());
    let stop = shutdown.clone();
    tasks.spawn("reading Kafka", async move {
        let ended = end.await.unwrap_or_else(|_| Err(anyhow!("the consumer's thread panicked")));
        stop.cancel();
        ended
    });
    tasks.spawn("timed work", timer::run(Arc::clone(&shared), shutdown.clone()));
    let producer = kafka::producer(&settings.kafka, P::SERVICE);
    let relay = Relay { service: P::SERVICE, pool, kafka: settings.kafka, producer, health };
    tasks.spawn("publishing refusals", relay.run(Arc::clone(&shared.said), shutdown));
    tasks.join().await
}
