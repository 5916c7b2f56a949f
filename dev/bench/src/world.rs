//! Where it is measured: a private Kafka and Postgres, a new topic and database for each round,
//! and the rows.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Result;
use events::{
    Header, Row, RowReader,
    generate::{Generator, Shape},
    stock::CSV,
};
use runtime::{Environment, KafkaSettings, PostgresSettings, health::Health, kafka};
use sandbox::{Shared, shared};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// 50 stores x 2,000 items, 6 partitions: the shape.
pub(crate) const PARTITIONS: i32 = 6;

pub(crate) struct World {
    servers: &'static Shared,
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

/// Incoming and sales that fit, and nothing else.
pub(crate) fn plain() -> Shape {
    Shape { early: 0.0, hopeless: 0.0, duplicates: 0.0, conflicts: 0.0, bad: 0.0, ..Shape::default() }
}

impl World {
    pub(crate) fn new() -> Result<World> {
        eprintln!("starting a private Kafka and Postgres ...");
        Ok(World { servers: shared(), files: tempfile::tempdir()? })
    }

    /// A file of generated rows, made once.
    pub(crate) fn csv(&self, rows: u64, shape: Shape, name: &str) -> Result<PathBuf> {
        let path = self.files.path().join(format!("{name}-{rows}.csv"));
        if !path.exists() {
            let mut generator = Generator::new(1, shape)?;
            let mut out = BufWriter::new(File::create(&path)?);
            writeln!(out, "{}", CSV.header_line())?;
            let mut line = Vec::new();
            for _ in 0..rows {
                line.clear();
                generator.write_row(&mut line);
                out.write_all(&line)?;
            }
            out.flush()?;
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
            runtime::postgres::connect(
                &postgres,
                "bench",
                1,
                &[&projection::MIGRATIONS, &stock::MIGRATIONS],
                &health,
                &shutdown,
            )
            .await?
            .close()
            .await;
            anyhow::Ok(())
        })?;
        Ok(Round { variables, kafka, postgres, directory, partitions })
    }
}

/// Key and payload of every row of a file that is accepted.
pub(crate) fn records(file: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let text = std::fs::read(file)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let reader = RowReader::new(Header::read(lines.next().unwrap_or_default())?);
    let mut row = Row::default();
    let mut records = Vec::new();
    for line in lines {
        if reader.read(line, &mut row).is_ok() {
            records.push((row.key.clone(), row.payload.clone()));
        }
    }
    Ok(records)
}
