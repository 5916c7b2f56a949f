//! The consumer's thread. It alone knows which partitions this process has and what each of them is
//! doing; reading begins where Postgres says, never where the group says. It waits for nobody: what
//! takes time (transactions, questions to Kafka and Postgres) runs elsewhere and comes back as an
//! [`Event`].

mod dispatch;
mod timing;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    Position, Projection, TopicPartition,
    apply::{Applied, Applier, Work},
    batch::Buffer,
    group::{Change, Context},
    partition::{Partition, Reading, State},
    watch::{Look, Watch},
};
use dispatch::Buffers;

/// The longest sleep: the group's client must be polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a transaction under way may take when its partition is given up.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);
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
    Looked(Id, Looked),
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
pub(crate) struct Looked {
    pub(crate) look: Result<Look>,
    /// What this process had committed before Postgres was asked, and Postgres' answer.
    pub(crate) checked: Option<(i64, Option<Position>)>,
}

pub(crate) struct Assignment<P: Projection> {
    consumer: Arc<BaseConsumer<Context>>,
    work: Arc<Work<P>>,
    watch: Arc<Watch>,
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
    checked: Instant,
    next_timer: Instant,
}

impl<P: Projection> Assignment<P> {
    pub(crate) fn new(
        consumer: Arc<BaseConsumer<Context>>,
        watch: Watch,
        (sender, events): (Sender<Event<P>>, Receiver<Event<P>>),
        work: Arc<Work<P>>,
        transactions: usize,
        shutdown: CancellationToken,
    ) -> Assignment<P> {
        let now = Instant::now();
        Assignment {
            consumer,
            watch: Arc::new(watch),
            events,
            sender,
            shutdown,
            tokio: Handle::current(),
            partitions: HashMap::new(),
            next_generation: 0,
            buffers: Buffers::new(transactions, work.batch_size),
            work,
            under_way: 0,
            transactions,
            filling: VecDeque::new(),
            waiting: VecDeque::new(),
            calls: VecDeque::new(),
            checked: now,
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
        self.commit_group_offsets(&self.committed(&all).into_iter().chain(committed).collect::<Vec<_>>());
        self.leave();
        result
    }

    /// Leaves the group. A broker that is away need not hear of it: it will notice.
    fn leave(self) {
        let Assignment { consumer, partitions, watch, events, sender, .. } = self;
        consumer.context().close();
        let (left, leaving) = mpsc::channel::<()>();
        let leave = move || {
            // all that holds the consumer
            drop((partitions, watch, events, sender));
            drop(consumer);
            drop(left);
        };
        let spawned = std::thread::Builder::new().name(format!("{}-leave", P::SERVICE)).spawn(leave);
        if spawned.is_ok() && leaving.recv_timeout(LEAVE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("left the group without its answer");
        }
    }

    fn serve(&mut self) -> Result<()> {
        let mut busy = false;
        while !self.shutdown.is_cancelled() {
            let timeout = if busy { Duration::ZERO } else { self.sleep() };
            match self.events.recv_timeout(timeout) {
                Ok(event) => self.handle(event)?,
                Err(_) => self.poll_group()?,
            }
            while let Ok(event) = self.events.try_recv() {
                self.handle(event)?;
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
            Event::Looked(id, looked) => self.looked(&id, looked),
            Event::Applied(id, applier, buffer, applied) => self.applied(&id, applier, buffer, applied),
        }
    }

    /// The partition, unless reading has begun again since.
    fn current(&mut self, id: &Id) -> Option<&mut Partition<P>> {
        self.partitions.get_mut(&id.source).filter(|partition| partition.generation == id.generation)
    }

    fn poll_group(&mut self) -> Result<()> {
        // a rebalance does not come back from `poll`, and more may be queued after it
        for _ in 0..3 {
            match self.consumer.poll(Duration::ZERO) {
                None => {}
                // every partition has a queue of its own before it is assigned
                Some(Ok(message)) => tracing::error!("a record of {} came unasked", rdkafka::Message::topic(&message)),
                Some(Err(error)) => self.consumer_error(&error)?,
            }
        }
        for change in self.consumer.context().take_changes() {
            match change {
                Change::Assigned(partitions) => self.assign(partitions)?,
                Change::Revoked(partitions) => self.revoke(&partitions)?,
            }
        }
        Ok(())
    }

    fn assign(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        // the group waits for this call; each partition follows when it is known where it begins
        self.consumer.incremental_assign(&TopicPartitionList::new()).context("taking over partitions")?;
        for source in partitions {
            self.partitions.insert(source.clone(), Partition::new());
            self.begin(&source);
        }
        Ok(())
    }

    /// Asks where to begin.
    fn begin(&mut self, source: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        self.next_generation += 1;
        partition.generation = self.next_generation;
        partition.stop = CancellationToken::new();
        partition.state = State::Beginning;
        let id = Id { source: source.clone(), generation: partition.generation };
        let (watch, stop, sender) = (Arc::clone(&self.watch), partition.stop.clone(), self.sender.clone());
        self.tokio.spawn(async move {
            let begun = watch.begin(&id.source, &stop).await;
            // nobody listens when the service is ending
            let _ = sender.send(Event::Begun(id, begun));
        });
    }

    fn begun(&mut self, id: &Id, begun: Result<Option<i64>>) -> Result<()> {
        if self.current(id).is_none() {
            return Ok(());
        }
        let Some(next_offset) = begun? else { return Ok(()) };
        let source = &id.source;
        // before it is assigned, so that no record of it goes to the group's queue
        let mut queue = self
            .consumer
            .split_partition_queue(&source.topic, source.partition)
            .with_context(|| format!("no queue for {source}"))?;
        queue.set_nonempty_callback({
            let (sender, source) = (self.sender.clone(), source.clone());
            move || {
                // nobody listens when the service is ending
                let _ = sender.send(Event::Readable(source.clone()));
            }
        });
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&source.topic, source.partition, Offset::Offset(next_offset))?;
        self.consumer.incremental_assign(&list).with_context(|| format!("beginning with {source}"))?;
        tracing::info!("reading {source} from offset {next_offset}");
        let applier = Applier::new(Arc::clone(&self.work), source.clone(), next_offset);
        if let Some(partition) = self.partitions.get_mut(source) {
            partition.state = State::Reading(Box::new(Reading::new(queue, applier)));
        }
        self.calls.push_back(source.clone());
        self.readable(source);
        Ok(())
    }

    /// Begins a partition again, where Postgres says, after `pause`; after its transaction under way.
    fn restart(&mut self, source: &TopicPartition, pause: Duration) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        partition.stop.cancel();
        if let Some(reading) = partition.reading() {
            if reading.task.is_some() {
                reading.begin_again = true;
                return;
            }
            if let Some(buffer) = reading.buffer.take() {
                self.buffers.give_back(buffer);
            }
        }
        partition.state = State::Pausing(Instant::now() + pause);
        self.next_timer = Instant::now();
        self.unassign(std::slice::from_ref(source));
    }

    /// Takes partitions from the client, and their buffers back.
    fn unassign(&mut self, sources: &[TopicPartition]) {
        for queue in [&mut self.filling, &mut self.waiting, &mut self.calls] {
            queue.retain(|source| !sources.contains(source));
        }
        let assigned = self.consumer.assignment().unwrap_or_default();
        let mut list = TopicPartitionList::new();
        for source in sources {
            if assigned.find_partition(&source.topic, source.partition).is_some() {
                list.add_partition(&source.topic, source.partition);
            }
        }
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::warn!("giving up partitions: {error}");
        }
    }

    fn revoke(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.stop(partitions)?;
        self.commit_group_offsets(&self.committed(partitions));
        for source in partitions {
            self.remove(source);
            tracing::info!("gave up {source}");
            lag::<P>(source).set(0.0);
        }
        self.unassign(partitions);
        Ok(())
    }

    /// Forgets a partition; its buffer goes back.
    fn remove(&mut self, source: &TopicPartition) {
        if let Some(mut partition) = self.partitions.remove(source)
            && let Some(buffer) = partition.reading().and_then(|reading| reading.buffer.take())
        {
            self.buffers.give_back(buffer);
        }
    }

    /// Stops these partitions together, so that all of them take no longer than one may. A
    /// transaction that takes longer is left behind: the fence decides whether it counts.
    fn stop(&mut self, sources: &[TopicPartition]) -> Result<()> {
        let end = Instant::now() + STOP_TIMEOUT;
        for source in sources {
            if let Some(partition) = self.partitions.get_mut(source) {
                partition.stop.cancel();
            }
        }
        let mut result = Ok(());
        loop {
            let is_busy = |source: &&TopicPartition| {
                let partition = self.partitions.get(*source);
                partition.is_some_and(
                    |partition| matches!(&partition.state, State::Reading(reading) if reading.task.is_some()),
                )
            };
            let busy: Vec<_> = sources.iter().filter(is_busy).cloned().collect();
            if busy.is_empty() {
                return result;
            }
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                // rebalances wait for this one
                Ok(Event::Group) => {}
                Ok(event) => result = result.and(self.handle(event)),
                Err(_) => {
                    for source in busy {
                        tracing::warn!("a transaction of {source} did not end in {STOP_TIMEOUT:?} and is abandoned");
                        self.abandon(&source);
                    }
                }
            }
        }
    }

    fn abandon(&mut self, source: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        // what it says from now on is not heard
        partition.generation = 0;
        if let Some(task) = partition.reading().and_then(|reading| reading.task.take()) {
            task.abort();
            self.under_way -= 1;
            self.buffers.lost_one();
        }
    }

    fn committed(&self, sources: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        let committed = |source: &TopicPartition| match &self.partitions.get(source)?.state {
            State::Reading(reading) => Some((source.clone(), reading.committed)),
            State::Beginning | State::Pausing(_) => None,
        };
        sources.iter().filter_map(committed).collect()
    }

    /// For lag monitors only: nobody begins at these, and nobody waits for a broker that is away.
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
            _ => self.work.health.ill("kafka", error.to_string()),
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
