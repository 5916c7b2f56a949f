//! A service's loop, put together.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer};
use runtime::{KafkaSettings, health::Health, kafka, lifecycle::Tasks};
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::{WorkerContext, outbox::Relay},
    consume::{
        assignment::{Assignment, Event},
        probe::Probe,
        rebalance::RebalanceListener,
    },
};

/// How long a transaction may take, as a rule. One that takes longer is tried again with half of its
/// records.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What a service runs on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker, and the errors topic.
    pub kafka: KafkaSettings,
    /// The consumer group that shares the partitions among processes.
    pub group: String,
    /// The topics it reads.
    pub topics: Vec<String>,
    /// The topics it publishes to, besides the errors topic.
    pub output_topics: Vec<String>,
    /// Records a transaction holds at most.
    pub batch_size: usize,
    /// Batches in Postgres at a time. The pool must have two connections more.
    pub transactions: usize,
    /// How long a transaction may take: [`TRANSACTION_TIMEOUT`].
    pub transaction_timeout: Duration,
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
    let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
    let mut output_topics = settings.output_topics;
    output_topics.push(settings.kafka.errors_topic.clone());
    let outputs: Vec<&str> = output_topics.iter().map(String::as_str).collect();
    kafka::ensure_topics(&settings.kafka, &outputs, &health, &shutdown).await?;
    let partitions = kafka::ensure_topics(&settings.kafka, &topics, &health, &shutdown).await?;

    let shutdown = shutdown.child_token();
    let outbox = Arc::new(Notify::new());
    let context = Arc::new(WorkerContext {
        projection,
        pool: pool.clone(),
        health: health.clone(),
        errors_topic: settings.kafka.errors_topic.clone(),
        batch_size: settings.batch_size,
        transaction_timeout: settings.transaction_timeout,
        outbox: Arc::clone(&outbox),
    });
    let mut config = kafka::consumer(&settings.kafka, P::SERVICE, &settings.group);
    // the end of a partition is an event: see `assignment::timing`
    config.set("enable.partition.eof", "true");
    kafka::share_fetch_memory(&mut config, partitions);
    let mut consumer: BaseConsumer<RebalanceListener> =
        config.create_with_context(RebalanceListener::default()).context("Kafka settings")?;
    let (sender, events) = mpsc::channel();
    consumer.set_nonempty_callback({
        let sender = sender.clone();
        move || {
            // the receiver is gone when the service is ending
            let _ = sender.send(Event::Group);
        }
    });
    consumer.subscribe(&topics).context("subscribing")?;

    let client = kafka::client(&settings.kafka, P::SERVICE).create().context("Kafka settings")?;
    let probe = Probe::new(client, pool.clone(), P::SERVICE, health.clone());
    let assignment = Assignment::new(
        Arc::new(consumer),
        probe,
        topics[0],
        (sender, events),
        context,
        settings.transactions,
        shutdown.clone(),
    );
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
    let producer = kafka::producer(&settings.kafka, P::SERVICE);
    let relay = Relay { service: P::SERVICE, pool, kafka: settings.kafka, topics: output_topics, producer, health };
    tasks.spawn("publishing messages", relay.run(outbox, shutdown));
    tasks.join().await
}
