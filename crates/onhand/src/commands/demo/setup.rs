//! The demo's own topics, database and import directory, which are empty at each start.
//!
//! On servers of the user's own it deletes only what an earlier demo created: a database is marked by
//! its comment; of topics, which have none, the identities are kept in the demo's directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka, postgres};
use sandbox::Sandbox;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

/// Beside the user's own.
const DATABASE: &str = "onhand_demo";
/// The comment on a database that is the demo's.
const MARK: &str = "created by onhand demo, which drops it when it starts again";
/// In the demo's directory: the identities of the topics that it created, one a line.
const TOPICS: &str = "topics";
/// How long a deleted topic may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What the demo runs on.
pub(crate) struct Setup {
    pub(crate) kafka: KafkaSettings,
    pub(crate) postgres: PostgresSettings,
    /// The importer's directory.
    pub(crate) directory: PathBuf,
    /// Where the importer finds files.
    pub(crate) input: PathBuf,
    /// What was set, for commands that look for a running system.
    pub(crate) variables: Vec<(String, String)>,
}

/// Creates all of it, after what an earlier demo has left is deleted, and sets `env` accordingly.
pub(crate) async fn create(
    servers: &Sandbox,
    root: &Path,
    env: &mut Environment,
    shutdown: &CancellationToken,
) -> Result<Setup> {
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
    // both looked at before anything is deleted
    let mut connection = PgConnection::connect_with(&postgres::options(&outer, "onhand-demo"))
        .await
        .with_context(|| format!("Postgres at {outer}"))?;
    if servers.postgres.is_none() {
        database_is_ours(&mut connection, &outer).await?;
    }
    let topics = Topics::new(&kafka, root)?;
    let existing = topics.existing()?;
    if servers.kafka.is_none() {
        topics.are_ours(&existing)?;
    }
    create_database(&mut connection).await.with_context(|| format!("database {DATABASE} at {outer}"))?;
    connection.close().await?;
    topics.delete(&existing).await?;
    kafka::ensure_topics(&kafka, &kafka.all_topics(), &Health::default(), shutdown).await?;
    topics.note()?;
    Ok(Setup { kafka, postgres, input: directory.join("input"), directory, variables })
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

/// An error when there is such a database, but no demo created it.
async fn database_is_ours(connection: &mut PgConnection, outer: &PostgresSettings) -> Result<()> {
    let sql = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
    let comment: Option<Option<String>> = sqlx::query_scalar(sql).bind(DATABASE).fetch_optional(connection).await?;
    if comment.is_some_and(|comment| comment.as_deref() != Some(MARK)) {
        bail!(
            "there is a database {DATABASE} at {outer} that onhand demo did not create; it begins with an empty one \
             of this name, but deletes nothing of yours: rename or drop yours, or unset POSTGRES_HOSTNAME, and it \
             starts a private Postgres"
        );
    }
    Ok(())
}

/// Without FORCE: a demo that runs elsewhere keeps its database, and its user learns nothing of ours.
async fn create_database(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("DROP DATABASE IF EXISTS onhand_demo").execute(&mut *connection).await?;
    sqlx::raw_sql("CREATE DATABASE onhand_demo").execute(&mut *connection).await?;
    sqlx::raw_sql(&format!("COMMENT ON DATABASE onhand_demo IS '{MARK}'")).execute(&mut *connection).await?;
    Ok(())
}

/// The topics that the demo needs.
struct Topics<'a> {
    settings: &'a KafkaSettings,
    admin: AdminClient<DefaultClientContext>,
    /// Where their identities are kept.
    note: PathBuf,
}

impl Topics<'_> {
    fn new<'a>(settings: &'a KafkaSettings, root: &Path) -> Result<Topics<'a>> {
        let admin = kafka::client(settings, "onhand-demo").create().context("Kafka settings")?;
        Ok(Topics { settings, admin, note: root.join(TOPICS) })
    }

    /// Those that there are. Blocks this thread, but not the runtime.
    fn existing(&self) -> Result<Vec<&str>> {
        let metadata = tokio::task::block_in_place(|| self.admin.inner().fetch_metadata(None, kafka::TIMEOUT))
            .with_context(|| format!("Kafka at {}", self.settings.broker_url))?;
        let there = |topic: &&str| metadata.topics().iter().any(|existing| existing.name() == *topic);
        Ok(self.settings.all_topics().into_iter().filter(there).collect())
    }

    /// An error when the demo of this directory did not create one of them.
    fn are_ours(&self, existing: &[&str]) -> Result<()> {
        let noted = match fs::read_to_string(&self.note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            noted => noted.with_context(|| self.note.display().to_string())?,
        };
        for topic in existing {
            let identity = self.identity(topic)?;
            if !noted.lines().any(|line| line == identity) {
                bail!(
                    "there is a topic {topic} at {} that this demo did not create ({} lists those that it did); it \
                     begins with an empty one of this name, but deletes nothing of yours: delete it, or unset \
                     KAFKA_BROKER_URL, and it starts a private Kafka",
                    self.settings.broker_url,
                    self.note.display()
                );
            }
        }
        Ok(())
    }

    async fn delete(&self, existing: &[&str]) -> Result<()> {
        // librdkafka takes no empty list
        if existing.is_empty() {
            return Ok(());
        }
        let options = AdminOptions::new().operation_timeout(Some(kafka::TIMEOUT));
        let deleted = self.admin.delete_topics(existing, &options).await;
        for deleted in deleted.with_context(|| format!("deleting topics at {}", self.settings.broker_url))? {
            if let Err((topic, code)) = deleted {
                bail!("topic {topic} of an earlier demo cannot be deleted: {code}");
            }
        }
        let started = Instant::now();
        while !self.existing()?.is_empty() {
            ensure!(started.elapsed() < GONE_WITHIN, "the topics of an earlier demo do not go away");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Keeps the identities of the topics that were just created.
    fn note(&self) -> Result<()> {
        let topics = self.settings.all_topics();
        let identities: Vec<_> = topics.iter().map(|topic| self.identity(topic)).collect::<Result<_>>()?;
        fs::write(&self.note, identities.join("\n") + "\n").with_context(|| self.note.display().to_string())
    }

    fn identity(&self, topic: &str) -> Result<String> {
        tokio::task::block_in_place(|| kafka::topic_identity(self.admin.inner(), topic))
            .with_context(|| format!("asking for topic {topic}"))
    }
}
