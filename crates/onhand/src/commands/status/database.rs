//! What the tables say: sales that wait, refusals on their way to Kafka, and offsets.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use projection::ConsumerOffset;
use runtime::{PostgresSettings, postgres};
use serde::Serialize;
use sqlx::{ConnectOptions, FromRow, PgConnection};
use time::{OffsetDateTime, serde::rfc3339};
use uuid::Uuid;

/// How long Postgres may take to let us in.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Serialize)]
pub(super) struct Database {
    /// `None` when Postgres could not be asked.
    pub(super) waiting_sales: Option<WaitingSales>,
    /// Messages that are not published yet; `None` when Postgres could not be asked.
    pub(super) outbox: Option<Outbox>,
}

#[derive(Debug, Serialize)]
pub(super) struct WaitingSales {
    pub(super) count: i64,
    /// The one that arrived first.
    pub(super) oldest: Option<WaitingSale>,
}

#[derive(Debug, Serialize, FromRow)]
pub(super) struct WaitingSale {
    pub(super) transaction_id: Uuid,
    pub(super) store_number: i64,
    pub(super) item_number: i64,
    pub(super) amount: i64,
    pub(super) tries: i32,
    /// When it happened.
    #[serde(with = "rfc3339")]
    pub(super) timestamp: OffsetDateTime,
    #[serde(with = "rfc3339")]
    pub(super) next_try_at: OffsetDateTime,
}

#[derive(Debug, Serialize)]
pub(super) struct Outbox {
    pub(super) count: i64,
    /// The one that is published next.
    pub(super) oldest: Option<Message>,
}

#[derive(Debug, Serialize, FromRow)]
pub(super) struct Message {
    pub(super) id: i64,
    pub(super) service: String,
    pub(super) topic: String,
}

impl Database {
    /// Asks Postgres; positions are there for Kafka to be asked about.
    pub(super) async fn read(
        settings: &PostgresSettings,
        unknown: &mut Vec<String>,
    ) -> (Database, Option<Vec<ConsumerOffset>>) {
        match read(settings).await {
            Ok((database, positions)) => (database, Some(positions)),
            Err(error) => {
                unknown.push(format!("lag, waiting sales and outbox: {error:#}"));
                Default::default()
            }
        }
    }
}

async fn read(settings: &PostgresSettings) -> Result<(Database, Vec<ConsumerOffset>)> {
    let options = postgres::options(settings, "onhand-status");
    let Ok(connected) = tokio::time::timeout(TIMEOUT, options.connect()).await else {
        bail!("Postgres at {settings}: no answer in {TIMEOUT:?}");
    };
    let mut connection = connected.with_context(|| format!("Postgres at {settings}"))?;
    tables(&mut connection).await.map_err(|error| match &error {
        // undefined_table
        sqlx::Error::Database(database) if database.code().as_deref() == Some("42P01") => {
            anyhow::anyhow!("Postgres at {settings}: no stock service has run on this database yet")
        }
        _ => anyhow::Error::from(error).context(format!("Postgres at {settings}")),
    })
}

async fn tables(connection: &mut PgConnection) -> sqlx::Result<(Database, Vec<ConsumerOffset>)> {
    let waiting = sqlx::query_scalar("SELECT count(*) FROM waiting_sales").fetch_one(&mut *connection).await?;
    let oldest = sqlx::query_as(
        "SELECT transaction_id, store_number, item_number, amount, tries, timestamp, next_try_at
         FROM waiting_sales ORDER BY id LIMIT 1",
    );
    let oldest = oldest.fetch_optional(&mut *connection).await?;
    let messages = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut *connection).await?;
    let next = sqlx::query_as("SELECT id, service, topic FROM outbox ORDER BY id LIMIT 1");
    let next = next.fetch_optional(&mut *connection).await?;
    let database = Database {
        waiting_sales: Some(WaitingSales { count: waiting, oldest }),
        outbox: Some(Outbox { count: messages, oldest: next }),
    };
    Ok((database, projection::consumer_offsets(connection).await?))
}
