//! `onhand status`: whether everything works, what lags or waits, and what could not be found out.

mod database;
mod files;
mod print;
mod services;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use runtime::{KafkaSettings, PostgresSettings};
use serde::Serialize;

use self::{database::Database, files::Files, services::ServiceStatus};
use crate::{
    exit,
    system::{
        lag::{self, PartitionLag},
        target::{self, DataDirectory},
        topic_reader,
    },
};

/// Show whether everything works, and what lags or waits
#[derive(Args)]
#[command(after_help = "\
Asks each service for its health, Kafka and Postgres for the lag, the waiting sales and the outbox, \
and looks into the import directory for unfinished files. What cannot be found out is listed with \
the reason. With --json the output is one object.

The health of services comes from `onhand up` or `onhand demo` when one runs on --data, else from \
METRICS_ADDRESS on this machine, else from the addresses of --health.

Exit status: 0 when everything is healthy, 1 when something is not (a service that does not run, too), \
2 when nothing unhealthy was found but something could not be checked.

Examples: look; wait until everything that was imported is applied; services on other machines
  onhand status
  until onhand status --json | jq -e '.lag == 0 and .files == {not_begun: 0, in_progress: []}'; do sleep 1; done
  onhand status --health importer-1:9100,stock-1:9100,stock-2:9100")]
pub(crate) struct Arguments {
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
    /// Show the lag of every partition
    #[arg(long)]
    partitions: bool,
    /// Where services serve their health (METRICS_ADDRESS): HOST:PORT, several separated by commas
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', env = "ONHAND_HEALTH", hide_env_values = true)]
    health: Vec<String>,
    #[command(flatten)]
    data: DataDirectory,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Status {
    /// Nothing unhealthy was found.
    healthy: bool,
    kafka: String,
    postgres: String,
    import_directory: PathBuf,
    services: Vec<ServiceStatus>,
    /// The sum over all partitions; `None` when one is unknown.
    lag: Option<i64>,
    /// `None` when Postgres or Kafka could not be asked.
    partitions: Option<Vec<PartitionLag>>,
    #[serde(flatten)]
    database: Database,
    files: Files,
    /// What could not be found out, and why.
    unknown: Vec<String>,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    let (kafka, postgres) = target::servers(&mut env, &arguments.data.path)?;
    let directory = PathBuf::from(env.text_or("IMPORT_DIRECTORY", "importer"));
    let group = env.text_or("STOCK_GROUP", "stock");
    let own = env.text("METRICS_ADDRESS").into_iter().collect();
    let health = if arguments.health.is_empty() { own } else { arguments.health };
    exit::block_on(async {
        let status = look(&kafka, &postgres, directory, &group, &health).await;
        if arguments.json {
            writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&status)?).context("writing to stdout")?;
        } else {
            print::print(&status, arguments.partitions)?;
        }
        Ok(exit::answer(status.healthy, status.unknown.is_empty()))
    })
}

async fn look(
    kafka: &KafkaSettings,
    postgres: &PostgresSettings,
    directory: PathBuf,
    group: &str,
    health: &[String],
) -> Status {
    let mut unknown = Vec::new();
    // files first: what they hold is counted by the others only when it has moved on
    let files = Files::read(&directory, &mut unknown);
    let (database, positions) = Database::read(postgres, &mut unknown).await;
    let (services, partitions) = tokio::task::block_in_place(|| {
        let broker = topic_reader::reachable(kafka);
        let services = services::look(broker.as_ref().ok(), group, &directory, health, &mut unknown);
        let partitions = broker.and_then(|_| positions.map(|positions| lag::of(kafka, positions)).transpose());
        let partitions = partitions.unwrap_or_else(|error| {
            unknown.push(format!("lag: {error:#}"));
            None
        });
        (services, partitions)
    });
    for of in partitions.iter().flatten() {
        let text = |why| format!("lag of {} in {} partition {}: {why}", of.service, of.topic, of.partition);
        unknown.extend(of.unknown.as_ref().map(text));
    }
    let lag = partitions.as_ref().map(lag::sum).filter(|(_, without)| *without == 0);
    let fits = partitions.iter().flatten().all(|of| of.problem.is_none());
    Status {
        healthy: services.iter().all(ServiceStatus::is_healthy) && fits,
        kafka: kafka.broker_url.clone(),
        postgres: postgres.to_string(),
        import_directory: directory,
        services,
        lag: lag.map(|(sum, _)| sum),
        partitions,
        database,
        files,
        unknown,
    }
}
