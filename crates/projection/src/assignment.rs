//! The consumer's thread: partitions come and go, each with its worker; reading begins where
//! Postgres says, never where the group says.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use runtime::kafka::{TIMEOUT, topic_identity};
use tokio_util::sync::CancellationToken;

use crate::{
    Projection,
    apply::Applied,
    group::{Change, Context, Partition},
    identity, offsets,
    worker::{Report, Work, Worker},
};

const POLL: Duration = Duration::from_millis(50);
/// How often the group learns our offsets, and the topic's identity is checked.
const CHECK: Duration = Duration::from_secs(5);

/// How often a partition is tried to be read on from another offset.
const SEEKS: u32 = 5;

/// How long the broker may take to hear that we leave.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) struct Assignment<P: Projection> {
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) work: Arc<Work<P>>,
    pub(crate) reports: Receiver<Report>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) workers: HashMap<Partition, Worker>,
}

impl<P: Projection> Assignment<P> {
    /// Runs until shutdown or until something stops the service; then finishes the batches in hand
    /// and leaves the group.
    pub(crate) fn run(mut self) -> Result<()> {
        let result = self.serve();
        let committed = self.offsets_of_workers();
        Worker::join_all(self.workers.drain().map(|(_, worker)| worker), &self.work.tokio);
        self.tell_group(&committed);
        self.leave();
        result
    }

    /// Leaves the group. A broker that is away need not hear of it: it will notice.
    fn leave(self) {
        self.consumer.context().close();
        let (left, leaving) = mpsc::channel::<()>();
        let consumer = self.consumer;
        let leave = move || {
            drop(consumer);
            drop(left);
        };
        let spawned = std::thread::Builder::new().name(format!("{}-farewell", P::SERVICE)).spawn(leave);
        if spawned.is_ok() && leaving.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("left the group without its answer");
        }
    }

    fn serve(&mut self) -> Result<()> {
        let mut checked = Instant::now();
        while !self.shutdown.is_cancelled() {
            match self.consumer.poll(POLL) {
                None => {}
                // fetched before its partition had a queue of its own: read it again from there
                Some(Ok(message)) => {
                    let partition =
                        (rdkafka::Message::topic(&message).to_owned(), rdkafka::Message::partition(&message));
                    drop(message);
                    self.restart(&partition)?;
                }
                Some(Err(error)) => self.consumer_error(&error)?,
            }
            for change in self.consumer.context().take_changes() {
                match change {
                    Change::Assigned(partitions) => self.assign(partitions)?,
                    Change::Revoked(partitions) => self.revoke(&partitions),
                }
            }
            while let Ok(report) = self.reports.try_recv() {
                match report {
                    Report::Ended(partition, Ok(Applied::Fenced)) => {
                        tracing::warn!(
                            "{} partition {} was applied by another process; reading its offset anew",
                            partition.0,
                            partition.1
                        );
                        self.restart(&partition)?;
                    }
                    Report::Ended(_, Ok(_)) => {}
                    Report::Ended(_, Err(error)) => return Err(error),
                    Report::Fetch(error) => self.consumer_error(&error)?,
                }
            }
            if checked.elapsed() >= CHECK {
                self.check()?;
                checked = Instant::now();
            }
        }
        Ok(())
    }

    fn assign(&mut self, partitions: Vec<Partition>) -> Result<()> {
        self.work.assigned.store(self.workers.len() + partitions.len(), Ordering::Relaxed);
        let mut begun = Vec::new();
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let Some(next_offset) = self.begin(&partition)? else { return Ok(()) };
            list.add_partition_offset(&partition.0, partition.1, Offset::Offset(next_offset))?;
            // before it is assigned, so that no record of it goes to the common queue
            let queue =
                self.consumer.split_partition_queue(&partition.0, partition.1).context("no queue for a partition")?;
            begun.push((partition, queue, next_offset));
        }
        self.consumer.incremental_assign(&list).context("taking over partitions")?;
        for (partition, queue, next_offset) in begun {
            tracing::info!("reading {} partition {} from offset {next_offset}", partition.0, partition.1);
            let worker = Worker::start(&self.work, partition.clone(), queue, next_offset)?;
            self.workers.insert(partition, worker);
        }
        Ok(())
    }

    fn revoke(&mut self, partitions: &[Partition]) {
        let gone: Vec<_> = partitions.iter().filter_map(|partition| self.workers.remove_entry(partition)).collect();
        let committed =
            gone.iter().map(|(partition, worker)| (partition.clone(), worker.next_offset.clone())).collect();
        Worker::join_all(gone.into_iter().map(|(_, worker)| worker), &self.work.tokio);
        for (topic, partition) in partitions {
            tracing::info!("gave up {topic} partition {partition}");
            lag::<P>(&(topic.clone(), *partition)).set(0.0);
        }
        self.tell_group(&committed);
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::warn!("giving up partitions: {error}");
        }
        self.work.assigned.store(self.workers.len(), Ordering::Relaxed);
    }

    /// Starts a partition's worker anew, at the offset in Postgres.
    fn restart(&mut self, partition: &Partition) -> Result<()> {
        let Some(worker) = self.workers.remove(partition) else { return Ok(()) };
        worker.join(&self.work.tokio);
        let Some(next_offset) = self.begin(partition)? else { return Ok(()) };
        let queue =
            self.consumer.split_partition_queue(&partition.0, partition.1).context("no queue for a partition")?;
        let mut left = SEEKS;
        while let Err(error) = self.consumer.seek(&partition.0, partition.1, Offset::Offset(next_offset), TIMEOUT) {
            left -= 1;
            // not ours any more: the group is about to tell
            if self.consumer.assignment()?.find_partition(&partition.0, partition.1).is_none() {
                return Ok(());
            }
            if left == 0 {
                bail!("{} partition {} cannot be read on from offset {next_offset}: {error}", partition.0, partition.1);
            }
        }
        let worker = Worker::start(&self.work, partition.clone(), queue, next_offset)?;
        self.workers.insert(partition.clone(), worker);
        Ok(())
    }

    /// Where to begin, once both Kafka and Postgres have told; none when asked to stop meanwhile.
    fn begin(&self, partition: &Partition) -> Result<Option<i64>> {
        loop {
            let why = match self.look(partition) {
                Ok(now) => {
                    let source = (partition.0.as_str(), partition.1);
                    let begin = offsets::begin(&self.work.shared.pool, P::SERVICE, source, now.low, &now.identity);
                    match self.in_time(begin) {
                        Ok(position) => {
                            identity::check(&position, &now)?;
                            return Ok(Some(position.next_offset));
                        }
                        Err(error) => ("postgres", error),
                    }
                }
                Err(error) => ("kafka", error),
            };
            self.work.shared.health.ill(why.0, format!("waiting: {:#}", why.1));
            if self.shutdown.is_cancelled() {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// An answer of Postgres. One that is frozen must not freeze this thread.
    fn in_time<T>(&self, answer: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
        let answer = async { tokio::time::timeout(TIMEOUT, answer).await };
        Ok(self.work.tokio.block_on(answer).context("no answer in time")??)
    }

    fn look(&self, partition: &Partition) -> Result<identity::Partition> {
        let identity = topic_identity(self.consumer.client(), &partition.0)?;
        let (low, high) = self.consumer.fetch_watermarks(&partition.0, partition.1, TIMEOUT)?;
        self.work.shared.health.well("kafka");
        Ok(identity::Partition { identity, low, high })
    }

    /// Every few seconds: the group learns our offsets, metrics the lag, and the topic is looked
    /// at, since one that is deleted and made anew under us keeps its name.
    fn check(&mut self) -> Result<()> {
        self.tell_group(&self.offsets_of_workers());
        for (partition, next_offset) in self.offsets_of_workers() {
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            // before Postgres is asked: what is committed meanwhile only makes its answer larger
            let believed = next_offset.load(Ordering::Relaxed);
            let now = match self.look(&partition) {
                Ok(now) => now,
                Err(error) => {
                    self.work.shared.health.ill("kafka", format!("waiting: {error:#}"));
                    return Ok(());
                }
            };
            let source = (partition.0.as_str(), partition.1);
            let begin = offsets::begin(&self.work.shared.pool, P::SERVICE, source, now.low, &now.identity);
            let position = match self.in_time(begin) {
                Ok(position) => position,
                Err(error) => {
                    self.work.shared.health.ill("postgres", format!("waiting: {error:#}"));
                    return Ok(());
                }
            };
            lag::<P>(&partition).set((now.high - position.next_offset) as f64);
            identity::check(&position, &identity::Partition { low: now.low.min(position.next_offset), ..now })?;
            if position.next_offset < believed {
                tracing::warn!(
                    "{} partition {}: Postgres was set back from offset {believed} to {}; reading that part again",
                    partition.0,
                    partition.1,
                    position.next_offset
                );
                self.restart(&partition)?;
            }
        }
        if self.work.shared.troubled.load(Ordering::Relaxed) == 0 {
            self.work.shared.health.well("postgres");
        }
        Ok(())
    }

    fn offsets_of_workers(&self) -> HashMap<Partition, Arc<AtomicI64>> {
        self.workers.iter().map(|(partition, worker)| (partition.clone(), worker.next_offset.clone())).collect()
    }

    /// For lag monitors only: nobody begins at these, and nobody waits for a broker that is away.
    fn tell_group(&self, offsets: &HashMap<Partition, Arc<AtomicI64>>) {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), offset) in offsets {
            if let Err(error) =
                list.add_partition_offset(topic, *partition, Offset::Offset(offset.load(Ordering::Relaxed)))
            {
                tracing::debug!("an offset for the group: {error}");
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!("telling the group our offsets: {error}");
        }
    }

    /// Errors that pass are said; those that don't, stop the service.
    fn consumer_error(&mut self, error: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                self.check()?;
                bail!("Kafka no longer has the record that comes next ({error}); see `onhand offsets`")
            }
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                bail!(
                    "a topic is gone while {} reads it: {error}; create it again and see `onhand offsets`",
                    P::SERVICE
                )
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::Fatal,
            ) => bail!("Kafka refuses {}: {error}", P::SERVICE),
            _ => self.work.shared.health.ill("kafka", error.to_string()),
        }
        Ok(())
    }
}

/// Records of a partition that are still to be read; 0 in a process that does not read it.
fn lag<P: Projection>((topic, partition): &Partition) -> metrics::Gauge {
    let partition = partition.to_string();
    metrics::gauge!("onhand_projection_lag", "service" => P::SERVICE, "topic" => topic.clone(), "partition" => partition)
}
