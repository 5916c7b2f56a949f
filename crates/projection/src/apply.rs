//! One partition's batches into Postgres: a transaction each, retried, bisected, fenced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
    /// Workers whose transactions fail now.
    pub(crate) troubled: Arc<AtomicUsize>,
}

/// A worker's failures in a row. While any worker has some, Postgres is not well.
pub(crate) struct Trouble {
    pauses: u32,
    troubled: Arc<AtomicUsize>,
}

impl Trouble {
    pub(crate) fn none(troubled: &Arc<AtomicUsize>) -> Trouble {
        Trouble { pauses: 0, troubled: Arc::clone(troubled) }
    }

    /// The last transaction went well.
    pub(crate) fn over(&mut self, health: &Health) {
        self.end();
        if self.troubled.load(Ordering::Relaxed) == 0 {
            health.well("postgres");
        }
    }

    fn next_pause(&mut self) -> Duration {
        if self.pauses == 0 {
            self.troubled.fetch_add(1, Ordering::Relaxed);
        }
        let pause = FIRST_PAUSE * 2_u32.pow(self.pauses.min(10));
        self.pauses += 1;
        pause.min(LONGEST_PAUSE)
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.pauses) > 0 {
            self.troubled.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection that is gone without a word would otherwise be waited for without end.
pub(crate) fn no_answer() -> ApplyError {
    ApplyError::Transient(anyhow::anyhow!("no answer in {ANSWER:?}"))
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
/// How long a transaction may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
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
        if letters > 0 {
            self.said.notify_one();
        }
        self.projection.committed(outcome, began.elapsed());
    }

    /// Says what is wrong and waits, longer each time. False: asked to stop meanwhile.
    pub(crate) async fn pause(&self, error: &anyhow::Error, trouble: &mut Trouble, stop: &CancellationToken) -> bool {
        self.health.ill("postgres", format!("trying again: {error:#}"));
        let pause = trouble.next_pause();
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
        let mut attempt = 0;
        let mut trouble = Trouble::none(&self.shared.troubled);
        while let Some(run) = runs.pop() {
            let shared = Arc::clone(&self.shared);
            // waiting for a turn is not waiting for an answer
            let turn = tokio::select! {
                turn = shared.transactions.acquire() => turn?,
                () = stop.cancelled() => return Ok(Applied::Stopped),
            };
            let transaction = tokio::time::timeout(ANSWER, self.transaction(buffer, &run, attempt)).await;
            drop(turn);
            match transaction.unwrap_or_else(|_| Err(no_answer())) {
                Ok(true) => {
                    attempt = 0;
                    trouble.over(&self.shared.health);
                    continue;
                }
                Ok(false) => return Ok(Applied::Fenced),
                Err(ApplyError::Fatal(error)) => return Err(error),
                Err(ApplyError::Stale) if attempt < AT_ONCE => attempt += 1,
                Err(error @ ApplyError::Stale) => {
                    attempt += 1;
                    if !self.shared.pause(&error.into(), &mut trouble, stop).await {
                        return Ok(Applied::Stopped);
                    }
                }
                Err(ApplyError::Transient(error)) => {
                    if !self.shared.pause(&error, &mut trouble, stop).await {
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
                                if !self.shared.pause(&error.into(), &mut trouble, stop).await {
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
