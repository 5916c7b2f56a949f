//! The few statements the sandbox itself sends to Postgres.

use std::thread;

use anyhow::{Context, Result, anyhow};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::PgAddress;

/// Creates an empty database, unless it exists. The name is one of ours: letters, digits and `_`.
pub(crate) fn create_database(at: &PgAddress, name: &str) -> Result<()> {
    blocking(async {
        let mut server = connect(at).await?;
        let exists = sqlx::query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut server)
            .await?
            .get::<bool, _>(0);
        if !exists {
            let create = format!("CREATE DATABASE \"{name}\"");
            server.execute(create.as_str()).await?;
        }
        server.close().await
    })
    .with_context(|| format!("cannot create database {name} on {}:{}", at.host, at.port))
}

async fn connect(at: &PgAddress) -> sqlx::Result<PgConnection> {
    let options = PgConnectOptions::new()
        .host(&at.host)
        .port(at.port)
        .username(&at.user)
        .password(&at.password)
        .database("postgres");
    PgConnection::connect_with(&options).await
}

/// Runs a future to its end on a thread of its own: the caller may be inside a runtime, which
/// would refuse a second one on its thread.
fn blocking(work: impl Future<Output = sqlx::Result<()>> + Send) -> Result<()> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(work)?)
        });
        worker.join().map_err(|_| anyhow!("the database thread panicked"))?
    })
}
