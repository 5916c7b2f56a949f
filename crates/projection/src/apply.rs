//! One partition's batches into Postgres: a transaction each, retried, bisected, fenced.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use events::{DeadLetter, Refusal, Timestamp, dead_letter::header};
use runtime::health::Health;
use sqlx::PgPool;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    ApplyError, Projection, Said,
    batch::{Buffer, Run},
    offsets, outbox,
};

/// What all partitions of a service share.
pub(crate) struct Shared<P> {
    pub(crate) projection: P,
    pub(crate) pool: PgPool,
    pub(crate) health: Health,
    pub(crate) errors_topic: String,
    /// Transactions at a time: more than Postgres has processors only costs memory.
    pub(crate) transactions: Semaphore,
    /// Tells the relay that there is something to publish.
    pub(crate) said: Arc<Notify>,
}

/// How applying a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// All of it is committed.
    Whole,
    /// The offset is not where this worker left it: somebody else applies this partition.
    Fenced,
    /// Asked to stop before it was done.
    Stopped,
}

/// Attempts at once after [`ApplyError::Stale`]; then with a pause.
const AT_ONCE: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl<P: Projection> Shared<P> {
    /// The wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros() as i64)
    }

    /// What was committed is logged, counted, and published.
    pub(crate) fn committed(&self, outcome: P::Outcome, began: Instant, letters: usize) {
        self.health.well("postgres");
        if letters > 0 {
            self.said.notify_one();
        }
        self.projection.committed(outcome, began.elapsed());
    }

    /// Says what is wrong and waits, longer each time. False: asked to stop meanwhile.
    pub(crate) async fn pause(&self, error: &anyhow::Error, pauses: &mut u32, stop: &CancellationToken) -> bool {
        self.health.ill("postgres", format!("trying again: {error:#}"));
        let pause = (FIRST_PAUSE * 2_u32.pow((*pauses).min(10))).min(LONGEST_PAUSE);
        *pauses += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = stop.cancelled() => false,
        }
    }
}

/// Applies the batches of one partition, one after the other.
pub(crate) struct Applier<P: Projection> {
    shared: Arc<Shared<P>>,
    topic: String,
    partition: i32,
    /// What this worker believes is the next offset.
    pub(crate) next_offset: i64,
    memory: P::Memory,
}

impl<P: Projection> Applier<P> {
    pub(crate) fn new(shared: Arc<Shared<P>>, topic: String, partition: i32, next_offset: i64) -> Applier<P> {
        Applier { shared, topic, partition, next_offset, memory: P::Memory::default() }
    }

    /// Applies a whole buffer: in one transaction, or in several when a record in it is at fault.
    pub(crate) async fn apply(&mut self, buffer: &Buffer<P::Event>, stop: &CancellationToken) -> Result<Applied> {
        let mut runs = vec![buffer.whole()];
        let (mut attempt, mut pauses) = (0, 0);
        while let Some(run) = runs.pop() {
            match self.transaction(buffer, &run, attempt).await {
                Ok(true) => {
                    (attempt, pauses) = (0, 0);
                    continue;
                }
                Ok(false) => return Ok(Applied::Fenced),
                Err(ApplyError::Fatal(error)) => return Err(error),
                Err(ApplyError::Stale) if attempt < AT_ONCE => attempt += 1,
                Err(error @ ApplyError::Stale) => {
                    attempt += 1;
                    if !self.shared.pause(&error.into(), &mut pauses, stop).await {
                        return Ok(Applied::Stopped);
                    }
                }
                Err(ApplyError::Transient(error)) => {
                    if !self.shared.pause(&error, &mut pauses, stop).await {
                        return Ok(Applied::Stopped);
                    }
                }
                Err(ApplyError::Batch(error)) => {
                    self.memory = P::Memory::default();
                    match buffer.halves(&run) {
                        Some((first, second)) => {
                            tracing::warn!(
                                "{} records of {} partition {} cannot be applied together, looking for the one at fault: {error:#}",
                                run.events.len(),
                                self.topic,
                                self.partition
                            );
                            runs.extend([second, first]);
                            continue;
                        }
                        None => match self.refuse(buffer, &run, &error).await {
                            Ok(true) => continue,
                            Ok(false) => return Ok(Applied::Fenced),
                            Err(error) => {
                                if !self.shared.pause(&error.into(), &mut pauses, stop).await {
                                    return Ok(Applied::Stopped);
                                }
                            }
                        },
                    }
                }
            }
            self.memory = P::Memory::default();
            runs.push(run);
            if stop.is_cancelled() {
                return Ok(Applied::Stopped);
            }
        }
        Ok(Applied::Whole)
    }

    /// One transaction: the offset, the service's rows, the outbox. False: fenced.
    async fn transaction(&mut self, buffer: &Buffer<P::Event>, run: &Run, attempt: u32) -> Result<bool, ApplyError> {
        let shared = Arc::clone(&self.shared);
        let _permit = shared.transactions.acquire().await.map_err(|error| ApplyError::Fatal(error.into()))?;
        let began = Instant::now();
        let mut tx = shared.pool.begin().await?;
        let source = (self.topic.as_str(), self.partition);
        if !offsets::advance(&mut tx, P::SERVICE, source, self.next_offset, run.end).await? {
            return Ok(false);
        }
        let batch = buffer.batch(P::SERVICE, P::encode, source, run);
        let mut letters = buffer.undecoded(P::SERVICE, source, self.next_offset, run);
        let refused = letters.len() as u64;
        let outcome = if batch.events.is_empty() {
            None
        } else {
            let Said { dead_letters, outcome } =
                shared.projection.apply(&mut tx, &mut self.memory, batch, shared.now(), attempt).await?;
            letters.extend(dead_letters);
            sort(&mut letters);
            Some(outcome)
        };
        outbox::put(&mut tx, P::SERVICE, &shared.errors_topic, &letters).await?;
        tx.commit().await?;
        self.next_offset = run.end;
        if refused > 0 {
            tracing::info!(
                "refused {refused} records of {} partition {} that are no events",
                self.topic,
                self.partition
            );
            metrics::counter!("onhand_projection_undecodable_total", "service" => P::SERVICE).increment(refused);
        }
        metrics::counter!("onhand_projection_batches_total", "service" => P::SERVICE).increment(1);
        metrics::histogram!("onhand_projection_batch_seconds", "service" => P::SERVICE).record(began.elapsed());
        match outcome {
            Some(outcome) => shared.committed(outcome, began, letters.len()),
            None => shared.said.notify_one(),
        }
        Ok(true)
    }

    /// Refuses the one record of a run that cannot be applied, so that it holds up nothing.
    async fn refuse(&mut self, buffer: &Buffer<P::Event>, run: &Run, why: &anyhow::Error) -> Result<bool, ApplyError> {
        let mut tx = self.shared.pool.begin().await?;
        let source = (self.topic.as_str(), self.partition);
        if !offsets::advance(&mut tx, P::SERVICE, source, self.next_offset, run.end).await? {
            return Ok(false);
        }
        let refusal = Refusal { error: format!("the record cannot be applied: {why:#}"), class: "NotApplicable" };
        let batch = buffer.batch(P::SERVICE, P::encode, source, run);
        let mut letters = buffer.undecoded(P::SERVICE, source, self.next_offset, run);
        letters.extend(batch.events.iter().map(|record| batch.refuse(record, &refusal)));
        sort(&mut letters);
        outbox::put(&mut tx, P::SERVICE, &self.shared.errors_topic, &letters).await?;
        tx.commit().await?;
        for record in batch.events {
            let offset = batch.offset(record);
            tracing::error!(
                "refused record {offset} of {} partition {}: {}",
                self.topic,
                self.partition,
                refusal.error
            );
        }
        self.next_offset = run.end;
        self.shared.said.notify_one();
        Ok(true)
    }
}

/// Refusals in the order of their records, whoever refused them; what else is said comes behind.
fn sort(letters: &mut [DeadLetter]) {
    letters.sort_by_cached_key(|letter| {
        let offset = letter.headers.iter().find(|(name, _)| *name == header::OFFSET);
        offset.and_then(|(_, offset)| offset.parse().ok()).unwrap_or(i64::MAX)
    });
}
