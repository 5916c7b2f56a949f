//! Where it is measured: a private Kafka and Postgres, new topics and a new database for each round.

use std::path::PathBuf;

use anyhow::Result;
use events::generate::Shape;
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka};
use sandbox::{Postgres, Shared, shared};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::rows;

/// Partitions of the events topic, unless a measurement is about their number.
pub(crate) const PARTITIONS: i32 = 6;

pub(crate) struct World {
    servers: Shared,
    files: TempDir,
}

/// The variables of one round: its topics, its database, its group, its directory.
pub(crate) struct Round {
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) kafka: KafkaSettings,
    pub(crate) postgres: PostgresSettings,
    pub(crate) directory: PathBuf,
    /// Partitions of its events topic.
    pub(crate) partitions: i32,
}

impl World {
    pub(crate) fn new() -> Result<World> {
        eprintln!("starting a private Kafka and Postgres ...");
        Ok(World { servers: shared().clone(), files: tempfile::tempdir()? })
    }

    /// The same with databases on another Postgres.
    pub(crate) fn on(self, postgres: &Postgres) -> World {
        World { servers: Shared { postgres: postgres.address(), ..self.servers }, files: self.files }
    }

    /// A file of generated rows, created at the first call.
    pub(crate) fn csv(&self, count: u64, shape: Shape) -> Result<PathBuf> {
        let path = self.files.path().join(format!("{count}-rows-{}-stores-{}-early.csv", shape.stores, shape.early));
        if !path.exists() {
            rows::write_csv(&path, count, shape)?;
        }
        Ok(path)
    }

    pub(crate) fn round(&self, tokio: &tokio::runtime::Runtime, partitions: i32) -> Result<Round> {
        let mut variables = self.servers.environment(&self.servers.fresh_database()?);
        let directory = self.files.path().join(self.servers.fresh_name("importer"));
        std::fs::create_dir_all(directory.join("input"))?;
        let own = [
            ("KAFKA_EVENTS_TOPIC", self.servers.fresh_name("events")),
            ("KAFKA_ERRORS_TOPIC", self.servers.fresh_name("errors")),
            ("KAFKA_TOPIC_PARTITIONS", partitions.to_string()),
            ("STOCK_GROUP", self.servers.fresh_name("stock")),
            ("IMPORT_DIRECTORY", directory.display().to_string()),
        ];
        variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let mut env = Environment::of(variables.clone());
        let (kafka, postgres) = (KafkaSettings::read(&mut env), PostgresSettings::read(&mut env));
        env.finish()?;
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        tokio.block_on(async {
            kafka::ensure_topics(&kafka, &kafka.all_topics(), &health, &shutdown).await?;
            let migrations = [&projection::MIGRATIONS, &stock::MIGRATIONS];
            runtime::postgres::connect(&postgres, "bench", 1, &migrations, &health, &shutdown).await?.close().await;
            anyhow::Ok(())
        })?;
        Ok(Round { variables, kafka, postgres, directory, partitions })
    }
}
