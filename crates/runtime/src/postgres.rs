//! Postgres: the pool, waiting for it, and the migrations.

use std::time::Duration;

use anyhow::{Result, bail};
use sqlx::{
    ConnectOptions, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio_util::sync::CancellationToken;

use crate::{PostgresSettings, health::Health};

/// How a connection is made. Commits do not wait for the disk: a crash takes back an offset together
/// with the rows that were read before it, and they are read again. A transaction that is left open (by a process
/// that was frozen) is ended by the server, so that its locks don't hold up the process that has taken over;
/// for those that the server does not end, no lock is waited for without end.
pub fn options(settings: &PostgresSettings, application: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&settings.host)
        .port(settings.port)
        .username(&settings.user)
        .password(settings.password.expose())
        .database(&settings.database)
        .application_name(application)
        .options([
            ("idle_in_transaction_session_timeout", "10s"),
            ("lock_timeout", "3s"),
            ("synchronous_commit", "off"),
            // one plan for arrays of any length: a plan made for one batch's length would read whole
            // tables for the next
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
        ])
}

/// A service's statements look rows up by index, as many as a batch has. Plans are made at the first
/// batch, when tables are empty and reading all of them looks cheapest; they are kept while the tables
/// grow.
const BY_INDEX: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];

/// A pool of `connections`, once the database answers and these `migrations` have run. Waits for a database that
/// is not there yet and says so; stops for one that will never let us in. Returns early, with a pool
/// that may not be connected, when asked to shut down.
pub async fn connect(
    settings: &PostgresSettings,
    application: &str,
    connections: u32,
    migrations: &[&Migrator],
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        // a round trip before each transaction; one on a lost connection is tried again anyway
        .test_before_acquire(false)
        .connect_lazy_with(options(settings, application).options(BY_INDEX));
    let migrations = together(migrations);
    let attempt = async {
        loop {
            // asked by a connection of its own first: a pool tells only that it timed out
            let migrated = match options(settings, application).connect().await {
                Ok(_) => migrations.run(&pool).await,
                Err(error) => Err(error.into()),
            };
            match migrated {
                Ok(()) => return Ok(()),
                Err(error) if is_hopeless(&error) => bail!("Postgres at {settings}: {error}"),
                Err(error) => health.unhealthy("postgres", format!("waiting for {settings}: {error}")),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        done = attempt => done?,
        // the caller looks at `shutdown` next
        () = shutdown.cancelled() => return Ok(pool),
    }
    health.healthy("postgres");
    Ok(pool)
}

/// Migrations of several folders, in the order of their numbers. Others that have run on the database
/// are ignored: a service knows its own only, and is not kept from starting by a later one of another.
/// So a migration must leave the process of the release before it working.
fn together(migrations: &[&Migrator]) -> Migrator {
    let mut all: Vec<_> = migrations.iter().flat_map(|migrator| migrator.iter().cloned()).collect();
    all.sort_by_key(|migration| migration.version);
    let mut together = Migrator { migrations: all.into(), ..Migrator::DEFAULT };
    together.set_ignore_missing(true);
    together
}

/// Errors that waiting does not cure: wrong password, no such database, a migration that fails.
fn is_hopeless(error: &sqlx::migrate::MigrateError) -> bool {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(sqlx::Error::Database(error))
        | MigrateError::ExecuteMigration(sqlx::Error::Database(error), _) => {
            let code = error.code().unwrap_or_default();
            // starting up, shutting down, too many connections, lost connection, another one migrates
            !(code.starts_with("57P") || code.starts_with("53") || code.starts_with("08") || code == "55P03")
        }
        MigrateError::Execute(_) | MigrateError::ExecuteMigration(..) => false,
        _ => true,
    }
}
