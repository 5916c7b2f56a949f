//! Kafka into Postgres, exactly once, whatever the service: a service brings a decoder, a batch
//! function that runs inside the transaction, and its timed work. Assignment, the offset fence,
//! batching, back-pressure, timers, the outbox, retries, bisection and shutdown are here and only here.
//! Knows nothing of any service.

mod apply;
mod consume;
mod run;
mod topic_partition;

use std::{future::Future, time::Duration};

use events::{DeadLetter, Refusal, Timestamp};
use sqlx::PgConnection;

pub use apply::{
    batch::{Batch, Decoded, Due, Received},
    error::ApplyError,
    offsets::{ConsumerOffset, consumer_offsets, forget},
};
pub use run::{Settings, TRANSACTION_TIMEOUT, run};
pub use topic_partition::TopicPartition;

/// Bytes of messages, and of rows that hold whole records, that a batch may make. A service whose
/// batch would make more returns [`ApplyError::TooLarge`], and is given half of it.
pub const OUTPUT_LIMIT: usize = 4 << 20;

/// What a service does with its events. Everything in it may be called again after a failure: the
/// effects are in the transaction that is passed in, and nowhere else.
pub trait Projection: Send + Sync + 'static {
    /// Names its consumer group, its offsets and its outbox: `stock`.
    const SERVICE: &'static str;
    /// A record, decoded.
    type Event: Send + Sync + 'static;
    /// What a service remembers of a partition between batches. Thrown away whenever a batch
    /// fails or the partition changes hands, so it must only ever save work.
    type Cache: Default + Send + 'static;
    /// What a batch did, for logs and metrics.
    type Summary: Send;

    /// Bytes to event. An error refuses this record, by itself. Called off the transaction's
    /// thread, while the batch before is being applied.
    fn decode(&self, payload: &[u8]) -> Result<Decoded<Self::Event>, Refusal>;

    /// Event to bytes: the same that a canonical one was decoded from.
    fn encode(event: &Self::Event) -> Vec<u8>;

    /// Applies events of one partition, in the order of its records, inside the transaction that
    /// also moves the offset. `attempt` counts from 0 and rises after [`ApplyError::Stale`].
    /// Without events it does the timed work of the partition, see [`Batch::due`]. Nothing else
    /// works on this partition meanwhile, in any process.
    fn apply(
        &self,
        tx: &mut PgConnection,
        memory: &mut Self::Cache,
        batch: Batch<'_, Self::Event>,
        now: Timestamp,
        attempt: u32,
    ) -> impl Future<Output = Result<BatchOutput<Self::Summary>, ApplyError>> + Send;

    /// What was done is committed, `elapsed` after it was begun: time to log and to count.
    fn committed(&self, summary: Self::Summary, elapsed: Duration);
}

/// What a batch leaves, besides its rows.
#[derive(Debug)]
pub struct BatchOutput<O> {
    /// For the errors topic.
    pub dead_letters: Vec<DeadLetter>,
    /// For [`Projection::committed`].
    pub summary: O,
    /// When this partition has timed work, if any waits. It may be called later, never before. While
    /// some waits, the service is asked again every few seconds by a batch without events.
    pub wake_at: Option<Timestamp>,
}
