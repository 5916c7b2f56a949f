//! One partition's batches into Postgres: a transaction each, retried, bisected, fenced. Knows
//! nothing of Kafka.

pub(crate) mod batch;
pub(crate) mod error;
pub(crate) mod offsets;
pub(crate) mod outbox;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, anyhow};
use events::{Message, Refusal, RefusalClass, Timestamp, dead_letter::header};
use runtime::health::Health;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    ApplyError, Due, Projection, TopicPartition,
    apply::{
        batch::{BatchRange, Buffer},
        offsets::Fenced,
    },
};

/// How often a batch whose assumptions do not hold is applied again at once.
const IMMEDIATE_RETRIES: u32 = 10;
/// Rows of timed work in one transaction at most.
const DUE_ROWS: usize = 500;
/// How long ending abandoned transactions may take.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What all partitions of a service share.
pub(crate) struct WorkerContext<P> {
    pub(crate) projection: P,
    pub(crate) pool: PgPool,
    pub(crate) health: Health,
    pub(crate) errors_topic: String,
    /// Events a transaction holds at most.
    pub(crate) batch_size: usize,
    /// How long a transaction may take.
    pub(crate) transaction_timeout: Duration,
    /// Wakes the relay: there is something to publish.
    pub(crate) outbox: Arc<Notify>,
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_micros() as i64)
}

/// How applying a batch ended.
#[derive(Debug)]
pub(crate) enum Applied {
    /// All of it is committed.
    All {
        /// When the service has timed work in this partition.
        wake_at: Option<Timestamp>,
    },
    /// Another process applies this partition: the offset is not the one that this worker left.
    Fenced(Fenced),
    /// Postgres could not do it now. What was committed of the batch is known there.
    Failed(anyhow::Error),
    /// Asked to stop before it was done.
    Stopped,
}

/// Applies the batches of one partition, one after the other.
pub(crate) struct Applier<P: Projection> {
    context: Arc<WorkerContext<P>>,
    source: TopicPartition,
    /// What this worker believes is the next offset.
    pub(crate) next_offset: i64,
    cache: P::Cache,
    /// Events a transaction may hold for now: fewer after one that was too large or too slow.
    limit: usize,
    /// When the service has timed work, as far as it has said.
    wake_at: Option<Timestamp>,
}

/// What a batch has come to while it is tried.
#[derive(Debug, Default)]
struct Attempts {
    /// How often what was assumed did not hold.
    stale: u32,
    /// Rows of timed work to take.
    due_rows: usize,
    /// Why the one row of timed work cannot be applied.
    refuse_due: Option<String>,
}

impl<P: Projection> Applier<P> {
    pub(crate) fn new(context: Arc<WorkerContext<P>>, source: TopicPartition, next_offset: i64) -> Applier<P> {
        let limit = context.batch_size;
        Applier { context, source, next_offset, cache: P::Cache::default(), limit, wake_at: None }
    }

    /// Applies a whole buffer: in one transaction, or in several when it is too large for one or a
    /// record in it is at fault. With `caught_up_at` (and no records) it does timed work. An error
    /// stops the service.
    pub(crate) async fn apply(
        &mut self,
        buffer: &Buffer<P::Event>,
        caught_up_at: Option<Timestamp>,
        stop: &CancellationToken,
    ) -> Result<Applied> {
        let mut ranges = vec![buffer.whole()];
        let mut attempts = Attempts { due_rows: DUE_ROWS, ..Attempts::default() };
        while let Some(range) = ranges.pop() {
            if stop.is_cancelled() {
                return Ok(Applied::Stopped);
            }
            if range.events.len() > self.limit
                && let Some((first, second)) = buffer.halves(&range)
            {
                ranges.extend([second, first]);
                continue;
            }
            let timeout = self.context.transaction_timeout;
            let transaction = self.transaction(buffer, &range, &attempts, caught_up_at);
            let ended = tokio::time::timeout(timeout, transaction).await;
            match ended {
                Ok(Ok(Ok(wake_at))) => {
                    self.wake_at = wake_at;
                    attempts = Attempts { due_rows: DUE_ROWS, ..Attempts::default() };
                    self.limit = (self.limit + self.limit / 8 + 1).min(self.context.batch_size);
                    continue;
                }
                Ok(Ok(Err(fenced))) => return Ok(Applied::Fenced(fenced)),
                _ => self.cache = P::Cache::default(),
            }
            match ended.unwrap_or(Err(ApplyError::TooLarge)) {
                Ok(_) => {}
                Err(ApplyError::Fatal(error)) => return Err(error),
                Err(ApplyError::Transient(error)) => return Ok(Applied::Failed(error)),
                Err(ApplyError::Blocked(error)) => {
                    end_abandoned(&self.context.pool, P::SERVICE).await;
                    return Ok(Applied::Failed(error));
                }
                Err(ApplyError::Stale) if attempts.stale < IMMEDIATE_RETRIES => {
                    attempts.stale += 1;
                    ranges.push(range);
                }
                Err(error @ ApplyError::Stale) => return Ok(Applied::Failed(error.into())),
                // also one that did not end in time: fewer records may
                Err(ApplyError::TooLarge) if range.events.len() > 1 => {
                    self.limit = range.events.len().div_ceil(2);
                    tracing::warn!(
                        service = P::SERVICE, topic = %self.source.topic, partition = self.source.partition, events = range.events.len(),
                        "too many events for one transaction, applying {} at a time", self.limit
                    );
                    ranges.push(range);
                }
                Err(ApplyError::TooLarge) if caught_up_at.is_some() && attempts.due_rows > 1 => {
                    attempts.due_rows /= 2;
                    ranges.push(range);
                }
                Err(ApplyError::TooLarge) => return Ok(Applied::Failed(anyhow!("no answer in {timeout:?}"))),
                Err(ApplyError::Batch(error)) => match buffer.halves(&range) {
                    Some((first, second)) => {
                        tracing::warn!(
                            service = P::SERVICE, topic = %self.source.topic, partition = self.source.partition, records = range.events.len(),
                            "records cannot be applied together, looking for the one at fault: {error:#}"
                        );
                        ranges.extend([second, first]);
                    }
                    // it can only be the refusals of records that are no events
                    None if range.events.is_empty() && caught_up_at.is_none() => return Ok(Applied::Failed(error)),
                    None if range.events.is_empty() => {
                        if attempts.due_rows > 1 {
                            attempts.due_rows /= 2;
                        } else if attempts.refuse_due.is_none() {
                            tracing::error!(service = P::SERVICE, topic = %self.source.topic, partition = self.source.partition, "refusing timed work: {error:#}");
                            attempts.refuse_due = Some(format!("{error:#}"));
                        } else {
                            return Ok(Applied::Failed(error));
                        }
                        ranges.push(range);
                    }
                    None => match self.refuse(buffer, &range, &error).await {
                        Ok(Ok(())) => {}
                        Ok(Err(fenced)) => return Ok(Applied::Fenced(fenced)),
                        Err(error) => return Ok(Applied::Failed(error.into())),
                    },
                },
            }
        }
        Ok(Applied::All { wake_at: self.wake_at })
    }

    /// One transaction: the offset, the service's rows, the outbox. Returns when the service has timed work.
    async fn transaction(
        &mut self,
        buffer: &Buffer<P::Event>,
        range: &BatchRange,
        attempts: &Attempts,
        caught_up_at: Option<Timestamp>,
    ) -> Result<Result<Option<Timestamp>, Fenced>, ApplyError> {
        let context = Arc::clone(&self.context);
        let began = Instant::now();
        let mut tx = context.pool.begin().await?;
        let fence = offsets::advance(&mut tx, P::SERVICE, &self.source, self.next_offset, range.end).await?;
        if let Err(fenced) = fence {
            return Ok(Err(fenced));
        }
        let mut batch = buffer.batch(P::SERVICE, &context.errors_topic, &self.source, range);
        batch.attempt = attempts.stale;
        batch.due = caught_up_at.map(|caught_up_at| Due {
            caught_up_at,
            limit: attempts.due_rows,
            refuse: attempts.refuse_due.as_deref(),
        });
        let is_empty = batch.events.is_empty() && batch.due.is_none();
        let mut messages = buffer.undecoded(&batch, self.next_offset, range);
        let undecodable = messages.len() as u64;
        let output = context.projection.apply(&mut tx, &mut self.cache, batch, now()).await?;
        messages.extend(output.messages);
        sort(&mut messages, &context.errors_topic);
        outbox::put(&mut tx, P::SERVICE, &messages).await?;
        tx.commit().await?;
        self.next_offset = range.end;
        if !messages.is_empty() {
            context.outbox.notify_one();
        }
        if undecodable > 0 {
            tracing::info!(
                service = P::SERVICE,
                topic = %self.source.topic,
                partition = self.source.partition,
                records = undecodable,
                "refused records that are no events"
            );
            metrics::counter!("onhand_projection_undecodable_total", "service" => P::SERVICE).increment(undecodable);
        }
        metrics::counter!("onhand_projection_batches_total", "service" => P::SERVICE).increment(1);
        metrics::histogram!("onhand_projection_batch_seconds", "service" => P::SERVICE).record(began.elapsed());
        if !is_empty {
            context.projection.committed(output.summary, began.elapsed());
        }
        Ok(Ok(output.wake_at))
    }

    /// Refuses the one record of a range that cannot be applied, so that it holds up nothing.
    async fn refuse(
        &mut self,
        buffer: &Buffer<P::Event>,
        range: &BatchRange,
        why: &anyhow::Error,
    ) -> Result<Result<(), Fenced>, ApplyError> {
        let mut tx = self.context.pool.begin().await?;
        let fence = offsets::advance(&mut tx, P::SERVICE, &self.source, self.next_offset, range.end).await?;
        if fence.is_err() {
            return Ok(fence);
        }
        let error = format!("the record cannot be applied: {why:#}");
        let refusal = Refusal { error, class: RefusalClass::NotApplicable };
        let batch = buffer.batch(P::SERVICE, &self.context.errors_topic, &self.source, range);
        let mut messages = buffer.undecoded(&batch, self.next_offset, range);
        messages.extend(batch.events.iter().map(|record| batch.refuse(record, &refusal)));
        sort(&mut messages, &self.context.errors_topic);
        outbox::put(&mut tx, P::SERVICE, &messages).await?;
        tx.commit().await?;
        for record in batch.events {
            tracing::error!(
                service = P::SERVICE,
                topic = %self.source.topic,
                partition = self.source.partition,
                offset = batch.offset(record),
                "refused a record: {}",
                refusal.error
            );
        }
        self.next_offset = range.end;
        self.context.outbox.notify_one();
        Ok(Ok(()))
    }
}

async fn end_abandoned(pool: &PgPool, service: &str) {
    match tokio::time::timeout(END_TIMEOUT, offsets::end_abandoned(pool)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(ended)) => {
            tracing::warn!(service, ended, "ended transactions that held locks for a process that does not answer")
        }
        // it is tried again after the next time that a lock is waited for
        Ok(Err(error)) => tracing::debug!(service, "ending abandoned transactions: {error}"),
        Err(_) => tracing::debug!(service, "ending abandoned transactions: no answer in {END_TIMEOUT:?}"),
    }
}

/// Refusals in the order of their records, whatever refused them; other messages come last, in their order.
fn sort(messages: &mut [Message], errors_topic: &str) {
    messages.sort_by_cached_key(|message| {
        let is_letter = message.topic == errors_topic;
        let offset = message.headers.iter().find(|(name, _)| is_letter && *name == header::OFFSET);
        offset.and_then(|(_, offset)| offset.parse().ok()).unwrap_or(i64::MAX)
    });
}
