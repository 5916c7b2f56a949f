//! `onhand offsets`: how far each service has read, and what to do when a topic was created again.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use projection::Projection;
use runtime::{KafkaSettings, PostgresSettings, postgres};
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::{
    exit,
    output::terminal::Paint,
    system::{
        lag::{self, PartitionLag},
        target::{self, DataDirectory},
    },
};

/// Show how far each service has read in each partition, and its lag
#[derive(Args)]
#[command(after_help = "\
A service continues at its offset in Postgres (consumer_offsets), whatever Kafka's consumer group \
says. When its topic was deleted and created again, or is another cluster's, that offset means \
nothing and the service stops. --forget removes it: the service then starts at the topic's first \
record. Events that were applied before are known by their ids and change nothing.

The lag counts records; after the first 1,000 of a partition, each offset counts as one. With --json \
the output is an object with lag (null when a partition's is unknown) and partitions.

Exit status: 0 when every offset fits its topic, 1 when one does not, 2 when that could not be checked.

Examples: the lag of all partitions; its sum, for a script; after the topic was created again
  onhand offsets
  onhand offsets --json | jq .lag
  onhand offsets --forget stock --topic events")]
pub(crate) struct Arguments {
    /// Forget this service's offsets in the topic; the service must be stopped
    #[arg(long, value_name = "SERVICE", requires = "topic")]
    forget: Option<String>,
    /// The topic to forget
    #[arg(long, value_name = "TOPIC", requires = "forget")]
    topic: Option<String>,
    /// One JSON object, for programs
    #[arg(long, conflicts_with = "forget")]
    json: bool,
    /// Do not ask for confirmation
    #[arg(long, requires = "forget")]
    yes: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    let (kafka, postgres) = target::servers(&mut env, &arguments.data.path)?;
    exit::block_on(async {
        match (&arguments.forget, &arguments.topic) {
            (Some(service), Some(topic)) => forget(&postgres, service, topic, arguments.yes).await,
            _ => show(&kafka, &postgres, arguments.json).await,
        }
    })
}

async fn connect(settings: &PostgresSettings) -> Result<PgConnection> {
    postgres::options(settings, "onhand-offsets").connect().await.with_context(|| format!("Postgres at {settings}"))
}

async fn show(kafka: &KafkaSettings, settings: &PostgresSettings, json: bool) -> Result<ExitCode> {
    let mut connection = connect(settings).await?;
    let positions =
        projection::consumer_offsets(&mut connection).await.context("has a service run on this database?")?;
    let lags = tokio::task::block_in_place(|| lag::of(kafka, positions))?;
    let (sum, unknown) = lag::sum(&lags);
    let text = if json {
        let lag = (unknown == 0).then_some(sum);
        format!("{:#}", serde_json::json!({ "lag": lag, "partitions": lags }))
    } else if lags.is_empty() {
        "no service has read anything yet".to_owned()
    } else {
        format!("{}{}", table(&lags), lag::in_words((sum, unknown)))
    };
    writeln!(io::stdout(), "{text}").context("writing to stdout")?;
    Ok(exit::answer(lags.iter().all(|of| of.problem.is_none()), lags.iter().all(|of| of.unknown.is_none())))
}

fn table(lags: &[PartitionLag]) -> String {
    let width = |of: fn(&PartitionLag) -> &str| lags.iter().map(|lag| of(lag).len()).max().unwrap_or(0).max(7);
    let (service, topic) = (width(|of| &of.service), width(|of| &of.topic));
    let mut table =
        format!("{:service$}  {:topic$}  partition   next offset           end        lag\n", "service", "topic");
    for of in lags {
        let text = |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
        let note = Paint::of_stdout().red(of.problem.as_ref().or(of.unknown.as_ref()).map_or("", String::as_str));
        let line = format!(
            "{:service$}  {:topic$}  {:>9}  {:>12}  {:>12}  {:>9}  {note}",
            of.service,
            of.topic,
            of.partition,
            of.next_offset,
            text(of.end),
            text(of.lag)
        );
        table += line.trim_end();
        table.push('\n');
    }
    table
}

async fn forget(settings: &PostgresSettings, service: &str, topic: &str, yes: bool) -> Result<ExitCode> {
    let mut connection = connect(settings).await?;
    let running: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()",
    )
    .bind(format!("onhand-{service}"))
    .fetch_one(&mut connection)
    .await?;
    if running > 0 {
        bail!("{service} is running on this database; stop it first");
    }
    if !yes {
        if !io::stdin().is_terminal() {
            bail!("say --yes to confirm: {service} will read {topic} again from its first record");
        }
        print!(
            "{service} will read {topic} again from its first record; what it applied stays. Forget its offsets? [y/N] "
        );
        io::stdout().flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            println!("nothing was changed");
            return Ok(exit::NO);
        }
    }
    let mut tx = connection.begin().await?;
    let forgotten = projection::forget(&mut tx, service, topic).await?;
    if service == stock::StockProjection::SERVICE {
        // the journal says which records it came from
        stock::forget_origins(&mut tx).await?;
    }
    tx.commit().await?;
    match forgotten {
        0 => bail!("{service} has no offsets in topic {topic}; `onhand offsets` lists what there is"),
        partitions => println!("forgot {partitions} partitions of {topic}; {service} will start at its first record"),
    }
    Ok(ExitCode::SUCCESS)
}
