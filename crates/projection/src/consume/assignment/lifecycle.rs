//! Partitions come and go: the group assigns them, each begins where Postgres says, begins again
//! after a failure, and is given up when the group says so or the service ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rdkafka::{Offset, TopicPartitionList, consumer::Consumer};
use tokio_util::sync::CancellationToken;

use super::{Assignment, Event, Id, lag};
use crate::{
    Projection, TopicPartition,
    apply::Applier,
    consume::partition::{Partition, Reading, State},
};

/// How long a transaction under way may take when its partition is given up.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

impl<P: Projection> Assignment<P> {
    pub(super) fn assign(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        // the group waits for this call; each partition follows when it is known where it begins
        self.consumer.incremental_assign(&TopicPartitionList::new()).context("taking over partitions")?;
        for source in partitions {
            self.partitions.insert(source.clone(), Partition::new());
            self.begin(&source);
        }
        Ok(())
    }

    /// Asks where to begin.
    pub(super) fn begin(&mut self, source: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        self.next_generation += 1;
        partition.generation = self.next_generation;
        partition.stop = CancellationToken::new();
        partition.state = State::Beginning;
        let id = Id { source: source.clone(), generation: partition.generation };
        let (probe, stop, sender) = (Arc::clone(&self.probe), partition.stop.clone(), self.sender.clone());
        self.tokio.spawn(async move {
            let begun = probe.begin(&id.source, &stop).await;
            // the receiver is gone when the service is ending
            let _ = sender.send(Event::Begun(id, begun));
        });
    }

    pub(super) fn begun(&mut self, id: &Id, begun: Result<Option<i64>>) -> Result<()> {
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
                // the receiver is gone when the service is ending
                let _ = sender.send(Event::Readable(source.clone()));
            }
        });
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&source.topic, source.partition, Offset::Offset(next_offset))?;
        self.consumer.incremental_assign(&list).with_context(|| format!("beginning with {source}"))?;
        tracing::info!(service = P::SERVICE, topic = %source.topic, partition = source.partition, offset = next_offset, "reading a partition");
        let applier = Applier::new(Arc::clone(&self.context), source.clone(), next_offset);
        if let Some(partition) = self.partitions.get_mut(source) {
            partition.lost_since = None;
            partition.state = State::Reading(Box::new(Reading::new(queue, applier)));
        }
        self.calls.push_back(source.clone());
        self.readable(source);
        Ok(())
    }

    /// Begins a partition again, where Postgres says, after `pause`; after its transaction under way.
    pub(super) fn restart(&mut self, source: &TopicPartition, pause: Duration) {
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
            tracing::warn!(service = P::SERVICE, "giving up partitions: {error}");
        }
    }

    pub(super) fn revoke(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.stop(partitions)?;
        self.commit_group_offsets(&self.committed(partitions));
        for source in partitions {
            self.remove(source);
            tracing::info!(service = P::SERVICE, topic = %source.topic, partition = source.partition, "gave up a partition");
            lag::<P>(source).set(0.0);
        }
        self.unassign(partitions);
        Ok(())
    }

    /// Forgets a partition; its buffer goes back.
    fn remove(&mut self, source: &TopicPartition) {
        self.failing.remove(source);
        if let Some(mut partition) = self.partitions.remove(source)
            && let Some(buffer) = partition.reading().and_then(|reading| reading.buffer.take())
        {
            self.buffers.give_back(buffer);
        }
    }

    /// Stops these partitions together, so that all of them take no longer than one may. A
    /// transaction that takes longer is abandoned: the fence decides whether it counts.
    pub(super) fn stop(&mut self, sources: &[TopicPartition]) -> Result<()> {
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
                        tracing::warn!(service = P::SERVICE, topic = %source.topic, partition = source.partition, "a transaction did not end in {STOP_TIMEOUT:?} and is abandoned");
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
        let Some(reading) = partition.reading() else { return };
        let has_buffer = reading.task_has_buffer;
        if let Some(task) = reading.task.take() {
            task.abort();
            self.under_way -= 1;
            if has_buffer {
                self.buffers.lost_one();
            }
        }
    }
}
