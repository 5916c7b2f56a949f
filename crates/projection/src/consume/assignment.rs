//! The consumer's thread. It alone knows which partitions this process has and what each of them is
//! doing; reading begins where Postgres says, never where the group says. It never waits: what
//! takes time (transactions, questions to Kafka and Postgres) runs elsewhere and comes back as an
//! [`Event`].

mod dispatch;
mod lifecycle;
mod timing;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    ConsumerOffset, Projection, TopicPartition,
    apply::{Applied, Applier, WorkerContext, batch::Buffer},
    consume::{
        partition::{Partition, State},
        probe::{Probe, Watermarks},
        rebalance::{Rebalance, RebalanceListener},
    },
};
use dispatch::Buffers;

/// The longest sleep: the group's client must be polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long the broker may take to hear that we leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens away from the consumer's thread.
pub(crate) enum Event<P: Projection> {
    /// The group's queue holds something, or the thread is to look around.
    Group,
    /// A partition's queue is no longer empty.
    Readable(TopicPartition),
    /// Where to begin.
    Begun(Id, Result<Option<i64>>),
    /// What was asked of Kafka, and for the regular check also of Postgres before.
    Answer(Id, Answer),
    /// A regular check has ended: Postgres has answered, and perhaps Kafka.
    Checked { kafka_answers: bool },
    /// A transaction under way has ended.
    Applied(Id, Applier<P>, Buffer<P::Event>, Result<Applied>),
}

/// A partition, and the generation of its reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) source: TopicPartition,
    pub(crate) generation: u64,
}

/// An answer on one partition.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) watermarks: Result<Watermarks>,
    /// What this process had committed before Postgres was asked, and Postgres' answer.
    pub(crate) checked: Option<(i64, Option<ConsumerOffset>)>,
}

pub(crate) struct Assignment<P: Projection> {
    consumer: Arc<BaseConsumer<RebalanceListener>>,
    context: Arc<WorkerContext<P>>,
    probe: Arc<Probe>,
    events: Receiver<Event<P>>,
    sender: Sender<Event<P>>,
    shutdown: CancellationToken,
    tokio: Handle,
    partitions: HashMap<TopicPartition, Partition<P>>,
    next_generation: u64,
    buffers: Buffers<P::Event>,
    /// Transactions under way, and how many there may be.
    under_way: usize,
    transactions: usize,
    /// Partitions that have a buffer to fill, and those that wait for one.
    filling: VecDeque<TopicPartition>,
    waiting: VecDeque<TopicPartition>,
    /// Partitions whose service is to be called without records.
    calls: VecDeque<TopicPartition>,
    /// Partitions whose transactions fail now: while there are some, Postgres is not healthy.
    failing: HashSet<TopicPartition>,
    polled: Instant,
    checked: Instant,
    is_checking: Arc<AtomicBool>,
    /// What Kafka is asked for while there are no partitions.
    topic: TopicPartition,
    next_timer: Instant,
}

impl<P: Projection> Assignment<P> {
    pub(crate) fn new(
        consumer: Arc<BaseConsumer<RebalanceListener>>,
        probe: Probe,
        topic: &str,
        (sender, events): (Sender<Event<P>>, Receiver<Event<P>>),
        context: Arc<WorkerContext<P>>,
        transactions: usize,
        shutdown: CancellationToken,
    ) -> Assignment<P> {
        let now = Instant::now();
        Assignment {
            consumer,
            probe: Arc::new(probe),
            events,
            sender,
            shutdown,
            tokio: Handle::current(),
            partitions: HashMap::new(),
            next_generation: 0,
            buffers: Buffers::new(transactions, context.batch_size),
            context,
            under_way: 0,
            transactions,
            filling: VecDeque::new(),
            waiting: VecDeque::new(),
            calls: VecDeque::new(),
            failing: HashSet::new(),
            polled: now,
            checked: now,
            is_checking: Arc::default(),
            topic: TopicPartition::new(topic, 0),
            next_timer: now,
        }
    }

    /// Runs until shutdown or until something stops the service; then lets the transactions under
    /// way end and leaves the group.
    pub(crate) fn run(mut self) -> Result<()> {
        let result = self.serve();
        let all: Vec<_> = self.partitions.keys().cloned().collect();
        let committed = self.committed(&all);
        let result = result.and(self.stop(&all));
        // of those that were abandoned, as far as they were before
        let committed: HashMap<_, _> = committed.into_iter().chain(self.committed(&all)).collect();
        self.commit_group_offsets(&committed.into_iter().collect::<Vec<_>>());
        self.leave();
        result
    }

    /// Leaves the group. A broker that is away need not hear of it: it will notice.
    fn leave(self) {
        let Assignment { consumer, partitions, probe, events, sender, .. } = self;
        consumer.context().close();
        let (left, leaving) = mpsc::channel::<()>();
        let leave = move || {
            // all that holds the consumer
            drop((partitions, probe, events, sender));
            drop(consumer);
            drop(left);
        };
        let spawned = std::thread::Builder::new().name(format!("{}-leave", P::SERVICE)).spawn(leave);
        if spawned.is_ok() && leaving.recv_timeout(LEAVE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(service = P::SERVICE, "left the group without its answer");
        }
    }

    fn serve(&mut self) -> Result<()> {
        let mut busy = false;
        while !self.shutdown.is_cancelled() {
            let timeout = if busy { Duration::ZERO } else { self.sleep() };
            if let Ok(event) = self.events.recv_timeout(timeout) {
                self.handle(event)?;
            }
            while let Ok(event) = self.events.try_recv() {
                self.handle(event)?;
            }
            // whatever else there is to do
            if self.polled.elapsed() >= POLL_INTERVAL {
                self.poll_group()?;
            }
            busy = self.fill()?;
            self.dispatch();
            self.timed();
        }
        Ok(())
    }

    fn handle(&mut self, event: Event<P>) -> Result<()> {
        match event {
            Event::Group => self.poll_group(),
            Event::Readable(source) => {
                self.readable(&source);
                Ok(())
            }
            Event::Begun(id, begun) => self.begun(&id, begun),
            Event::Answer(id, answer) => self.answered(&id, answer),
            Event::Checked { kafka_answers } => {
                self.postgres_answers();
                if kafka_answers && self.probe.kafka_answers() {
                    self.context.health.healthy("kafka");
                }
                Ok(())
            }
            Event::Applied(id, applier, buffer, applied) => self.applied(&id, applier, buffer, applied),
        }
    }

    /// The partition, unless reading has begun again since.
    fn current(&mut self, id: &Id) -> Option<&mut Partition<P>> {
        self.partitions.get_mut(&id.source).filter(|partition| partition.generation == id.generation)
    }

    fn poll_group(&mut self) -> Result<()> {
        self.polled = Instant::now();
        // a rebalance does not come back from `poll`, and more may be queued after it
        for _ in 0..3 {
            match self.consumer.poll(Duration::ZERO) {
                None => {}
                // every partition has a queue of its own before it is assigned
                Some(Ok(message)) => {
                    let source = TopicPartition::new(message.topic(), message.partition());
                    drop(message);
                    self.restart(&source, Duration::ZERO);
                }
                Some(Err(error)) => self.consumer_error(&error)?,
            }
        }
        for change in self.consumer.context().take_rebalances() {
            match change {
                Rebalance::Assigned(partitions) => self.assign(partitions)?,
                Rebalance::Revoked(partitions) => self.revoke(&partitions)?,
            }
        }
        Ok(())
    }

    fn committed(&self, sources: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        let committed = |source: &TopicPartition| match &self.partitions.get(source)?.state {
            State::Reading(reading) => Some((source.clone(), reading.committed)),
            State::Beginning | State::Pausing(_) => None,
        };
        sources.iter().filter_map(committed).collect()
    }

    /// For lag monitors only: no process begins at these, and none waits for an unreachable broker.
    fn commit_group_offsets(&self, offsets: &[(TopicPartition, i64)]) {
        let mut list = TopicPartitionList::new();
        for (source, offset) in offsets {
            if let Err(error) = list.add_partition_offset(&source.topic, source.partition, Offset::Offset(*offset)) {
                tracing::debug!("an offset for the group: {error}");
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!("committing the group's offsets: {error}");
        }
    }

    /// Errors that pass are reported; those that don't, stop the service.
    fn consumer_error(&self, error: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
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
            _ => self.context.health.unhealthy("kafka", error.to_string()),
        }
        Ok(())
    }
}

/// Records of a partition that are still to be read; 0 in a process that does not read it.
fn lag<P: Projection>(source: &TopicPartition) -> metrics::Gauge {
    metrics::gauge!(
        "onhand_projection_lag", "service" => P::SERVICE,
        "topic" => source.topic.to_string(), "partition" => source.partition.to_string()
    )
}
