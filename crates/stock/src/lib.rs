//! The stock service: events in, stock on hand in Postgres, with a journal of every transaction.
//! `rules` decides, `store` and `copy` are its SQL, `projection` joins them.

mod cache;
mod copy;
mod projection;
mod recent_ids;
pub mod rules;
mod store;
mod summary;

use std::time::Duration;

use anyhow::Result;
use events::stock::EVENT_TYPE;
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, postgres};
use sqlx::migrate::Migrator;
use tokio_util::sync::CancellationToken;

pub use cache::Cache;
pub use copy::{JournalRow, Origin, copy_journal};
pub use projection::StockProjection;
pub use rules::RetryPolicy;
pub use store::forget_origins;
pub use summary::Summary;

/// The tables of stock, beside those of [`::projection::MIGRATIONS`].
pub static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/stock");

/// How long Postgres may take to let go of the connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the service runs on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker and the topics.
    pub kafka: KafkaSettings,
    /// The database.
    pub postgres: PostgresSettings,
    /// `STOCK_GROUP`: the consumer group that shares the partitions among processes.
    pub group: String,
    /// For early sales.
    pub retry_policy: RetryPolicy,
    /// `STOCK_BATCH_SIZE`: events a transaction holds at most.
    pub batch_size: usize,
    /// `STOCK_TRANSACTIONS`: transactions at a time.
    pub transactions: u32,
}

impl Settings {
    /// Reads `KAFKA_*`, `POSTGRES_*` and `STOCK_*`.
    pub fn read(env: &mut Environment) -> Settings {
        Settings {
            kafka: KafkaSettings::read(env),
            postgres: PostgresSettings::read(env),
            group: env.text_or("STOCK_GROUP", "stock"),
            retry_policy: RetryPolicy {
                tries: env.parse_or("KAFKA_EVENT_RETRIES", 5, "a number from 0 to 30", |tries| *tries <= 30),
                first_pause: env.millis_or("STOCK_RETRY_MS", 2_000),
            },
            batch_size: env
                .parse_or("STOCK_BATCH_SIZE", 16_000, "a number from 1 to 100000", |size| (1..=100_000).contains(size)),
            transactions: env
                .parse_or("STOCK_TRANSACTIONS", 3, "a number from 1 to 100", |count| (1..=100).contains(count)),
        }
    }
}

/// Runs the service until shutdown.
pub async fn run(settings: Settings, health: Health, shutdown: CancellationToken) -> Result<()> {
    // one for the relay, one for what is asked away from transactions
    let connections = settings.transactions + 2;
    let migrations = [&::projection::MIGRATIONS, &MIGRATIONS];
    let pool =
        postgres::connect(&settings.postgres, "onhand-stock", connections, &migrations, &health, &shutdown).await?;
    let projected = ::projection::Settings {
        group: settings.group,
        topics: vec![settings.kafka.topic_of(&EVENT_TYPE).to_owned()],
        output_topics: Vec::new(),
        kafka: settings.kafka,
        batch_size: settings.batch_size,
        transactions: settings.transactions as usize,
        transaction_timeout: ::projection::TRANSACTION_TIMEOUT,
    };
    let projection = StockProjection::new(settings.retry_policy);
    let ended = ::projection::run(projection, projected, pool.clone(), health, shutdown).await;
    // a transaction that was abandoned may still have its connection
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, pool.close()).await;
    ended
}
