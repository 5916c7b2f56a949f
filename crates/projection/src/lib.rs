//! Kafka into Postgres, exactly once, whatever the service: a service brings a decoder, a batch
//! function that runs inside the transaction, and its timed work. Assignment, the offset fence,
//! batching, back-pressure, timers, the outbox, retries, bisection and shutdown are here and only here.
//! Knows nothing of any service.

mod apply;
mod consume;
mod record;
mod run;

use std::{future::Future, time::Duration};

use events::{Message, Refusal, Timestamp};
use sqlx::{PgConnection, migrate::Migrator};

pub use apply::{
    batch::{Batch, Decoded, Due, Received},
    error::ApplyError,
    offsets::{ConsumerOffset, consumer_offsets, forget},
};
pub use record::Record;
pub use run::{Settings, TRANSACTION_TIMEOUT, run};
pub use runtime::TopicPartition;

/// The tables that every service needs: offsets, outbox, relays.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/projection");

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

    /// A record to an event. An error refuses this record only. Called on the thread that reads Kafka,
    /// while earlier batches are being applied.
    fn decode(&self, record: &Record<'_>) -> Result<Decoded<Self::Event>, Refusal>;

    /// Applies one partition's batch in order, inside the transaction that also moves the offset. A
    /// batch without events does the partition's timed work, see [`Batch::due`]. Nothing else works
    /// on this partition meanwhile, in any process.
    fn apply(
        &self,
        tx: &mut PgConnection,
        cache: &mut Self::Cache,
        batch: Batch<'_, Self::Event>,
        now: Timestamp,
    ) -> impl Future<Output = Result<BatchOutput<Self::Summary>, ApplyError>> + Send;

    /// A batch is committed, `elapsed` after it was begun: for logs and metrics.
    fn committed(&self, summary: Self::Summary, elapsed: Duration);
}

/// What a batch leaves, besides its rows.
#[derive(Debug)]
pub struct BatchOutput<S> {
    /// Messages to publish once the batch is durable: dead letters ([`Batch::refuse`]), which are published
    /// in the order of their records, and others for [`Settings::output_topics`], in this order.
    pub messages: Vec<Message>,
    /// For [`Projection::committed`].
    pub summary: S,
    /// When this partition has timed work, if any waits. It may be called later, never before. While
    /// some waits, the service is asked again every few seconds by a batch without events.
    pub wake_at: Option<Timestamp>,
}

impl<S> BatchOutput<S> {
    /// No messages, no timed work.
    pub fn new(summary: S) -> BatchOutput<S> {
        BatchOutput { messages: Vec::new(), summary, wake_at: None }
    }
}
