//! `onhand offsets`: where each service stands, and the way out when a topic was made anew.

use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use projection::ConsumerOffset;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};
use runtime::{KafkaSettings, PostgresSettings, kafka, postgres};
use sqlx::{ConnectOptions, PgConnection};

use crate::{
    exit,
    output::terminal::Paint,
    system::{
        target::{self, DataDirectory},
        topic_reader,
    },
};

/// Records behind a position that are counted one by one.
const COUNTED: i64 = 1_000;

/// Show where each service stands in each partition, and its lag
#[derive(Args)]
#[command(after_help = "\
A service reads on from its offset in Postgres (consumer_offsets), whatever Kafka's consumer group \
says. When its topic was deleted and created again, or is another cluster's, that offset means \
nothing and the service stops. The way on is to forget it: the service then begins at the topic's \
first record. Events that were applied before are known by their ids and change nothing.

Examples: where things stand; after the topic was created anew
  onhand offsets
  onhand offsets --forget stock --topic events")]
pub(crate) struct Arguments {
    /// Forget this service's offsets in the topic; the service must be stopped
    #[arg(long, value_name = "SERVICE", requires = "topic")]
    forget: Option<String>,
    /// The topic to forget
    #[arg(long, value_name = "TOPIC", requires = "forget")]
    topic: Option<String>,
    /// Do not ask
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
            _ => show(&kafka, &postgres).await,
        }
    })
}

async fn connect(settings: &PostgresSettings) -> Result<PgConnection> {
    postgres::options(settings, "onhand-offsets").connect().await.with_context(|| format!("Postgres at {settings}"))
}

async fn show(kafka: &KafkaSettings, settings: &PostgresSettings) -> Result<ExitCode> {
    let mut connection = connect(settings).await?;
    let positions =
        projection::consumer_offsets(&mut connection).await.context("has a service run on this database?")?;
    if positions.is_empty() {
        println!("no service has read anything yet");
        return Ok(ExitCode::SUCCESS);
    }
    let consumer = topic_reader::consumer(kafka, "onhand-offsets")?;
    println!("{:<14} {:<20} {:>9} {:>12} {:>12} {:>10}", "service", "topic", "partition", "next offset", "end", "lag");
    let (mut total, mut unknown, mut stranger) = (0, 0, false);
    for position in &positions {
        let (end, lag, note) = tokio::task::block_in_place(|| beside(&consumer, position));
        total += lag.unwrap_or(0);
        unknown += usize::from(lag.is_none());
        stranger |= !note.is_empty();
        let text = |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
        let ConsumerOffset { service, topic, partition, next_offset, .. } = position;
        let note = Paint::of_stdout().red(note);
        println!(
            "{service:<14} {topic:<20} {partition:>9} {next_offset:>12} {:>12} {:>10} {note}",
            text(end),
            text(lag)
        );
    }
    println!("{}", in_all(total, unknown));
    Ok(if stranger { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The lags together, as far as they are known.
fn in_all(total: i64, unknown: usize) -> String {
    let records = if total == 1 { "record" } else { "records" };
    match (total, unknown) {
        (_, 0) => format!("{total} {records} behind in all"),
        (0, _) => "how far behind in all is not known".to_owned(),
        (_, 1) => format!("{total} {records} behind in all, and a partition whose lag is not known"),
        _ => format!("{total} {records} behind in all, and {unknown} partitions whose lag is not known"),
    }
}

/// The partition's end, the lag, and what is wrong with the position.
fn beside(consumer: &BaseConsumer, position: &ConsumerOffset) -> (Option<i64>, Option<i64>, String) {
    let ConsumerOffset { topic, partition, next_offset, topic_identity, .. } = position;
    match (
        kafka::topic_identity(consumer.client(), topic),
        consumer.fetch_watermarks(topic, *partition, kafka::TIMEOUT),
    ) {
        (Ok(identity), Ok((_, high))) if identity != *topic_identity => {
            (Some(high), None, "not the topic that was read: created anew, or another cluster's".to_owned())
        }
        (Ok(_), Ok((low, high))) if !(low..=high).contains(next_offset) => {
            (Some(high), None, format!("the topic now holds {low} to {high}"))
        }
        (Ok(_), Ok((_, high))) => match lag(consumer, (topic, *partition), *next_offset, high) {
            Ok(lag) => (Some(high), Some(lag), String::new()),
            Err(error) => (Some(high), None, format!("{error:#}")),
        },
        (Err(error), _) => (None, None, format!("{error:#}")),
        (_, Err(error)) => (None, None, error.to_string()),
    }
}

/// Records from `next_offset` on. The first ones are counted, since an offset without a record is
/// no lag, and each transaction ends with one. Of what comes after these, each offset counts.
fn lag(consumer: &BaseConsumer, partition: (&str, i32), next_offset: i64, end: i64) -> Result<i64> {
    let (mut records, mut uncounted) = (0, 0);
    topic_reader::range(consumer, partition, next_offset..end, |message| {
        records += 1;
        if records < COUNTED {
            return ControlFlow::Continue(());
        }
        uncounted = end - (message.offset() + 1);
        ControlFlow::Break(())
    })?;
    Ok(records + uncounted)
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
            return Ok(ExitCode::FAILURE);
        }
    }
    match projection::forget(&mut connection, service, topic).await? {
        0 => bail!("{service} has no offsets in topic {topic}; `onhand offsets` lists what there is"),
        partitions => println!("forgot {partitions} partitions of {topic}; {service} begins anew when it is started"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::in_all;

    #[test]
    fn what_is_not_known_does_not_count_as_nothing() {
        assert_eq!(in_all(0, 0), "0 records behind in all");
        assert_eq!(in_all(1, 0), "1 record behind in all");
        assert_eq!(in_all(0, 2), "how far behind in all is not known");
        assert_eq!(in_all(7, 1), "7 records behind in all, and a partition whose lag is not known");
        assert_eq!(in_all(7, 2), "7 records behind in all, and 2 partitions whose lag is not known");
    }
}
