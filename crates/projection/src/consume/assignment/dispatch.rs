//! Records from the partitions' queues into buffers, and buffers into transactions. There are a few
//! large buffers for all partitions together: a partition with records waits for one, fills it while
//! others are being applied, and gives it back. So batches are large and memory is the same however
//! many partitions there are, and a slow database holds up the fetching.

use std::{
    ffi::CString,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use events::Timestamp;
use futures::FutureExt;
use rdkafka::{
    client::Client,
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Assignment, Event, Id, POLL_INTERVAL};
use crate::{
    Projection, TopicPartition,
    apply::{
        Applied, Applier,
        batch::{Buffer, Received},
        offsets::Fenced,
    },
    consume::{
        partition::{Call, State},
        rebalance::RebalanceListener,
    },
};

/// Bytes of memory that all buffers of a process may take together.
const MEMORY: usize = 20 << 20;
/// Buffers that are filled while all transactions are under way.
const SPARE: usize = 2;

/// The buffers of a process.
pub(super) struct Buffers<E> {
    free: Vec<Buffer<E>>,
    /// How many may still be made.
    left: usize,
    /// What each may take.
    memory: usize,
    batch_size: usize,
}

impl<E> Buffers<E> {
    pub(super) fn new(transactions: usize, batch_size: usize) -> Buffers<E> {
        let count = transactions + SPARE;
        Buffers { free: Vec::new(), left: count, memory: MEMORY / count, batch_size }
    }

    fn take(&mut self) -> Option<Buffer<E>> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        self.left = self.left.checked_sub(1)?;
        Some(Buffer::new(self.batch_size.min(self.memory / size_of::<Received<E>>())))
    }

    pub(super) fn give_back(&mut self, mut buffer: Buffer<E>) {
        buffer.clear();
        self.free.push(buffer);
    }

    /// One was left with a transaction that did not end.
    pub(super) fn lost_one(&mut self) {
        self.left += 1;
    }

    fn is_full(&self, buffer: &Buffer<E>) -> bool {
        buffer.len() >= self.batch_size || buffer.cost() >= self.memory
    }
}

fn known_end(client: &Client<RebalanceListener>, source: &TopicPartition) -> Option<i64> {
    let topic = CString::new(source.topic.as_ref()).ok()?;
    runtime::kafka::known_end(client, &topic, source.partition)
}

impl<P: Projection> Assignment<P> {
    /// A partition's queue may hold something.
    pub(super) fn readable(&mut self, source: &TopicPartition) {
        let Some(reading) = self.partitions.get_mut(source).and_then(|partition| partition.reading()) else { return };
        reading.readable = true;
        if reading.buffer.is_none() && !reading.is_waiting {
            reading.is_waiting = true;
            self.waiting.push_back(source.clone());
        }
    }

    /// Fills buffers; whether there is more to do at once.
    pub(super) fn fill(&mut self) -> Result<bool> {
        while !self.waiting.is_empty()
            && let Some(buffer) = self.buffers.take()
        {
            let Some(source) = self.waiting.pop_front() else { break };
            match self.partitions.get_mut(&source).and_then(|partition| partition.reading()) {
                Some(reading) => {
                    reading.is_waiting = false;
                    reading.buffer = Some(buffer);
                    self.filling.push_back(source);
                }
                None => self.buffers.give_back(buffer),
            }
        }
        let mut busy = false;
        for _ in 0..self.filling.len() {
            let Some(source) = self.filling.pop_front() else { break };
            let Some(partition) = self.partitions.get_mut(&source) else { continue };
            let Some(reading) = partition.reading() else { continue };
            let buffers = &self.buffers;
            if reading.readable && !reading.buffer.as_ref().is_none_or(|buffer| buffers.is_full(buffer)) {
                let known_end = || known_end(self.consumer.client(), &source);
                let filled = catch_unwind(AssertUnwindSafe(|| {
                    reading.fill(&self.context.projection, |buffer| buffers.is_full(buffer), known_end)
                }));
                match filled.map_err(|_| anyhow!("reading {source} panicked"))? {
                    Ok(()) => {}
                    Err(error) => {
                        self.filling.push_back(source.clone());
                        self.fetch_error(&source, &error)?;
                        continue;
                    }
                }
                self.after_end_of_partition(&source);
            }
            let Some(reading) = self.partitions.get_mut(&source).and_then(|partition| partition.reading()) else {
                continue;
            };
            let Some(buffer) = &reading.buffer else { continue };
            if buffer.is_empty() && !reading.readable {
                if let Some(buffer) = reading.buffer.take() {
                    self.buffers.give_back(buffer);
                }
                continue;
            }
            busy |= reading.readable && !self.buffers.is_full(buffer);
            self.filling.push_back(source);
        }
        Ok(busy)
    }

    /// An error of one partition's queue.
    fn fetch_error(&mut self, source: &TopicPartition, error: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
        if !matches!(error.rdkafka_error_code(), Some(AutoOffsetReset | OffsetOutOfRange)) {
            return self.consumer_error(error);
        }
        // beginning again finds out whether records are lost, or the broker lags for a moment
        tracing::warn!(service = P::SERVICE, topic = %source.topic, partition = source.partition, "Kafka does not have the record that comes next ({error}); asking again");
        self.restart(source, Duration::ZERO);
        Ok(())
    }

    /// Begins transactions for what is ready, as many as there may be.
    pub(super) fn dispatch(&mut self) {
        while self.under_way < self.transactions
            && let Some(source) = self.calls.pop_front()
        {
            let Some(reading) = self.partitions.get_mut(&source).and_then(|partition| partition.reading()) else {
                continue;
            };
            if let Some(Call { caught_up_at, end }) = reading.call
                && let Some(applier) = reading.applier.take()
            {
                reading.call = None;
                reading.called = Instant::now();
                // it says when the next one is
                reading.wake_at = None;
                // batches may have been applied since the call was asked for
                let end = end.max(applier.next_offset);
                self.start(&source, applier, Buffer::empty(end), caught_up_at);
            }
        }
        let now = Instant::now();
        for _ in 0..self.filling.len() {
            let Some(source) = self.filling.pop_front() else { break };
            let Some(reading) = self.partitions.get_mut(&source).and_then(|partition| partition.reading()) else {
                continue;
            };
            let is_full = reading.buffer.as_ref().is_some_and(|buffer| self.buffers.is_full(buffer));
            let is_ripe = reading.ripe_at().is_some_and(|ripe_at| is_full || ripe_at <= now);
            if is_ripe
                && self.under_way < self.transactions
                && let Some(buffer) = reading.buffer.take()
                && let Some(applier) = reading.applier.take()
            {
                let readable = reading.readable;
                self.start(&source, applier, buffer, None);
                if readable {
                    self.readable(&source);
                }
            } else {
                self.filling.push_back(source);
            }
        }
    }

    fn start(
        &mut self,
        source: &TopicPartition,
        mut applier: Applier<P>,
        buffer: Buffer<P::Event>,
        caught_up_at: Option<Timestamp>,
    ) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        let id = Id { source: source.clone(), generation: partition.generation };
        let has_buffer = !buffer.is_empty();
        let (sender, stop) = (self.sender.clone(), partition.stop.clone());
        let task = self.tokio.spawn(async move {
            let applying = AssertUnwindSafe(applier.apply(&buffer, caught_up_at, &stop)).catch_unwind().await;
            let applied = applying.unwrap_or_else(|_| Err(anyhow!("applying {} panicked", id.source)));
            // the receiver is gone when the service is ending
            let _ = sender.send(Event::Applied(id, applier, buffer, applied));
        });
        if let Some(reading) = partition.reading() {
            reading.task = Some(task);
            reading.task_has_buffer = has_buffer;
        }
        self.under_way += 1;
    }

    /// A transaction under way has ended.
    pub(super) fn applied(
        &mut self,
        id: &Id,
        applier: Applier<P>,
        buffer: Buffer<P::Event>,
        applied: Result<Applied>,
    ) -> Result<()> {
        let current = self.partitions.get_mut(&id.source).filter(|partition| partition.generation == id.generation);
        // else it was abandoned, and its buffer with it
        let Some(partition) = current else { return Ok(()) };
        let Some(reading) = partition.reading() else { return Ok(()) };
        reading.task = None;
        reading.committed = applier.next_offset;
        reading.applier = Some(applier);
        let begin_again = reading.begin_again;
        let has_calls = reading.call.is_some();
        let mut pause = begin_again.then_some(Duration::ZERO);
        match applied? {
            Applied::All { wake_at } => {
                reading.wake_at = wake_at;
                reading.next_read = reading.next_read.max(reading.committed);
                partition.failures = 0;
                self.next_timer = Instant::now();
                if self.failing.remove(&id.source) {
                    self.postgres_answers();
                }
            }
            Applied::Fenced(Fenced { expected, found }) => {
                tracing::warn!(
                    service = P::SERVICE,
                    topic = %id.source.topic,
                    partition = id.source.partition,
                    expected,
                    found,
                    "another process has applied this partition; reading on at its offset"
                );
                pause = Some(Duration::ZERO);
            }
            Applied::Failed(error) => {
                pause = Some(partition.next_pause());
                self.failing.insert(id.source.clone());
                self.context.health.unhealthy("postgres", format!("trying again: {error:#}"));
            }
            Applied::Stopped => {}
        }
        self.under_way -= 1;
        if buffer.is_empty() {
            drop(buffer);
        } else {
            self.buffers.give_back(buffer);
        }
        match pause {
            Some(pause) => self.restart(&id.source, pause),
            None if has_calls => self.calls.push_back(id.source.clone()),
            None => self.after_end_of_partition(&id.source),
        }
        Ok(())
    }

    /// Postgres is healthy when no partition fails.
    pub(super) fn postgres_answers(&self) {
        if self.failing.is_empty() && self.probe.postgres_answers() {
            self.context.health.healthy("postgres");
        }
    }

    /// How long there is nothing to do.
    pub(super) fn sleep(&self) -> Duration {
        let now = Instant::now();
        let mut until = (now + POLL_INTERVAL).min(self.next_timer);
        if self.under_way < self.transactions {
            for source in &self.filling {
                if let Some(State::Reading(reading)) = self.partitions.get(source).map(|partition| &partition.state)
                    && let Some(ripe_at) = reading.ripe_at()
                {
                    until = until.min(ripe_at);
                }
            }
        }
        until.saturating_duration_since(now)
    }
}
