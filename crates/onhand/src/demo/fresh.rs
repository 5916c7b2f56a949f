//! The demo's own place: topics, a database and an import directory that are empty at each start,
//! and nobody else's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    types::RDKafkaErrorCode,
};
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka, postgres};
use sandbox::Sandbox;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

/// Beside the user's own.
const DATABASE: &str = "onhand_demo";
/// How long a deleted topic may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Where the demo happens.
pub(crate) struct Place {
    pub(crate) kafka: KafkaSettings,
    pub(crate) postgres: PostgresSettings,
    /// Where the importer finds files.
    pub(crate) input: PathBuf,
    /// What was set, for commands that look for a running system.
    pub(crate) variables: Vec<(String, String)>,
}

/// Empties the demo's place and sets `env` accordingly.
pub(crate) async fn make(
    servers: &Sandbox,
    root: &Path,
    env: &mut Environment,
    shutdown: &CancellationToken,
) -> Result<Place> {
    let mut variables = servers.environment();
    for (name, value) in &variables {
        env.set(name, value.as_str());
    }
    let outer = PostgresSettings::read(env);
    let directory = root.join("importer");
    let mut set = |name: &str, value: String| {
        env.set(name, value.as_str());
        variables.retain(|(known, _)| known != name);
        variables.push((name.to_owned(), value));
    };
    set("POSTGRES_DB", DATABASE.to_owned());
    set("IMPORT_DIRECTORY", directory.display().to_string());
    // what can't be sold is refused after some 6 seconds instead of a minute
    set("STOCK_RETRY_MS", "200".to_owned());
    set("KAFKA_EVENT_RETRIES", "5".to_owned());
    // enough to see that records of a card stay together
    set("KAFKA_TOPIC_PARTITIONS", "3".to_owned());
    if servers.kafka.is_none() {
        // on a broker of the user's own, names of our own
        set("STOCK_GROUP", "onhand-demo-stock".to_owned());
        set("KAFKA_ERRORS_TOPIC", "onhand-demo-errors".to_owned());
        for event_type in events::EVENT_TYPES {
            set(event_type.topic.0, format!("onhand-demo-{}", event_type.topic.1));
        }
    }
    let (kafka, postgres) = (KafkaSettings::read(env), PostgresSettings::read(env));
    env.finish()?;

    empty_directory(&directory).with_context(|| format!("emptying {}", directory.display()))?;
    empty_database(&outer).await.with_context(|| format!("making the database {DATABASE} at {outer}"))?;
    delete_topics(&kafka).await?;
    kafka::ensure_topics(&kafka, &kafka.all_topics(), &Health::default(), shutdown).await?;
    Ok(Place { kafka, postgres, input: directory.join("input"), variables })
}

/// Puts a file there as a careful producer does: whole, under a name that is passed over, then
/// renamed.
pub(crate) fn drop_file(input: &Path, name: &str, content: &str) -> Result<()> {
    let hidden = input.join(format!(".{name}"));
    let dropped = fs::create_dir_all(input)
        .and_then(|()| fs::write(&hidden, content))
        .and_then(|()| fs::rename(&hidden, input.join(name)));
    dropped.with_context(|| format!("writing {}", input.join(name).display()))
}

fn empty_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(directory.join("input"))
}

async fn empty_database(outer: &PostgresSettings) -> Result<()> {
    let mut connection = PgConnection::connect_with(&postgres::options(outer, "onhand-demo")).await?;
    sqlx::query("DROP DATABASE IF EXISTS onhand_demo WITH (FORCE)").execute(&mut connection).await?;
    sqlx::query("CREATE DATABASE onhand_demo").execute(&mut connection).await?;
    Ok(connection.close().await?)
}

async fn delete_topics(settings: &KafkaSettings) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(settings, "onhand-demo").create().context("Kafka settings")?;
    let options = AdminOptions::new().operation_timeout(Some(kafka::TIMEOUT));
    let topics = settings.all_topics();
    let deleted = admin.delete_topics(&topics, &options).await;
    for deleted in deleted.with_context(|| format!("deleting topics at {}", settings.broker_url))? {
        match deleted {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => anyhow::bail!("topic {topic} of an earlier demo cannot be deleted: {code}"),
        }
    }
    let started = Instant::now();
    loop {
        let metadata = tokio::task::block_in_place(|| admin.inner().fetch_metadata(None, kafka::TIMEOUT))?;
        if !metadata.topics().iter().any(|topic| topics.contains(&topic.name())) {
            return Ok(());
        }
        ensure!(started.elapsed() < GONE_WITHIN, "the topics of an earlier demo do not go away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
