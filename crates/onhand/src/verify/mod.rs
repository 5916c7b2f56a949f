//! `onhand verify`: the invariants of a live system, checked by folding the topic anew.

mod files;
mod fold;
mod recorded;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use events::stock::{EVENT_TYPE, StockEvent};
use hashbrown::HashSet;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::Message;
use runtime::{KafkaSettings, PostgresSettings, postgres};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use crate::{
    address::{self, DataDirectory},
    ending,
    terminal::Paint,
};
use files::Files;
use fold::{Differences, Fold};
use recorded::Errors;

/// Check that the tables are exactly what the events say
#[derive(Args)]
#[command(after_help = "\
Reads the events topic from its beginning up to where the stock service stands, folds it with the \
plain rules, and compares: every record is in the journal, a duplicate, waiting or refused with its \
reason; each amount is the sum of its journal and never negative; every row that a receipt in the \
import directory counts is on the topic or, refused, on the errors topic. The system may go on working \
meanwhile. Memory: some 150 bytes an event.

Exit status 0 only if everything holds.

Example: after an import
  onhand verify && echo all is well")]
pub(crate) struct Arguments {
    /// Where the importer keeps its files, to check the receipts [default: importer]
    #[arg(long, value_name = "DIR", env = "IMPORT_DIRECTORY", hide_env_values = true)]
    import_directory: Option<PathBuf>,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = address::environment(&arguments.data.path);
    let kafka = KafkaSettings::read(&mut env);
    let postgres = PostgresSettings::read(&mut env);
    let directory = arguments.import_directory.or_else(|| env.text("IMPORT_DIRECTORY").map(PathBuf::from));
    env.finish()?;
    ending::block_on(verify(kafka, postgres, directory.unwrap_or_else(|| "importer".into())))
}

async fn verify(kafka: KafkaSettings, postgres: PostgresSettings, directory: PathBuf) -> Result<ExitCode> {
    let mut connection = postgres::options(&postgres, "onhand-verify")
        .options([("idle_in_transaction_session_timeout", "0")])
        .connect()
        .await
        .with_context(|| format!("Postgres at {postgres}"))?;
    let mut differences = Differences::default();
    let files = Files::read(&directory, &mut differences)?;
    // one moment of all tables; what is committed later is not looked at
    let mut tx = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let topic = kafka.topic_of(&EVENT_TYPE);
    let read = positions(&mut tx, topic).await?;
    let mut errors = Errors::default();
    let mut seen = HashSet::new();
    outbox(&mut tx, topic, &mut errors, &mut seen, &mut differences).await?;
    let waiting: HashSet<(i32, i64)> = waiting_places(&mut tx, topic).await?;

    let consumer = recorded::consumer(&kafka)?;
    tokio::task::block_in_place(|| -> Result<()> {
        for (partition, low, high) in recorded::partitions(&consumer, &kafka.errors_topic)? {
            recorded::read(&consumer, (&kafka.errors_topic, partition), low, high, |message| {
                let get = |name: &str| recorded::header_of(message, name);
                errors.add(topic, get, message.payload().unwrap_or_default(), &mut seen, &mut differences);
            })?;
        }
        Ok(())
    })?;
    drop(seen);
    // refused after the moment we look at
    errors.refusals.retain(|place, _| {
        read.iter().any(|(partition, next)| *partition == place.0 && place.1 < *next) && !waiting.contains(place)
    });
    let revived = recorded::known(&mut tx, &errors.given_up).await?;
    let mut fold = Fold::new(std::mem::take(&mut errors.refusals), revived);
    let written = tokio::task::block_in_place(|| fold_topic(&consumer, topic, &read, &mut fold))?;
    let mut expected = fold.finish();
    let (transactions, sales, items) = recorded::tables(&mut tx, &mut expected).await?;
    tx.commit().await?;
    let unreceipted = files.as_ref().map(|files| files.compare(&errors.rows, written, &mut differences));
    let mixed = expected.mixed.len();
    let (counts, found) = expected.finish();
    differences.count += found.count;
    differences.told.extend(found.told);

    println!("{:>12} records of topic {topic}, up to where stock stands, are", grouped(counts.records));
    println!("{:>12} in the journal (transactions)", grouped(transactions));
    println!("{:>12} duplicates", grouped(counts.duplicates));
    println!("{:>12} waiting (waiting_sales)", grouped(sales));
    println!("{:>12} refused, each with its reason", grouped(counts.refused));
    println!("{:>12} cards compared (items)", grouped(items));
    println!("{:>12} refused rows of files, each with its file, line and byte", grouped(errors.rows.values().sum()));
    match &files {
        Some(files) => println!("{:>12} receipts of files in {}", grouped(files.receipts), directory.display()),
        None => println!("{:>12} no receipts: {} does not exist; files are not checked", "", directory.display()),
    }
    if let Some(rows @ 1..) = unreceipted {
        println!(
            "{:>12} refused rows have no receipt: of `onhand import`, of files still being read, or it was removed",
            grouped(rows)
        );
    }
    if mixed > 0 {
        println!(
            "{:>12} cards have records in several partitions: the order of these is not checked",
            grouped(mixed as u64)
        );
    }
    let accounted = transactions + counts.duplicates + sales + counts.refused;
    if accounted != counts.records && differences.count == 0 {
        differences.add(format!("{} records, of which {accounted} are accounted for", counts.records));
    }
    let paint = Paint::of_stdout();
    for difference in &differences.told {
        println!("{} {difference}", paint.red("differs:"));
    }
    if differences.count > 0 {
        println!("{}", paint.red(format!("{} differences", grouped(differences.count))));
        return Ok(ExitCode::FAILURE);
    }
    println!("{}", paint.green("everything holds"));
    Ok(ExitCode::SUCCESS)
}

/// Folds each partition up to where the service stands. Returns how many records the topic got in all.
fn fold_topic(
    consumer: &rdkafka::consumer::BaseConsumer,
    topic: &str,
    read: &[(i32, i64)],
    fold: &mut Fold,
) -> Result<u64> {
    let partitions = recorded::partitions(consumer, topic)?;
    let total: i64 = read.iter().map(|(_, next)| *next).sum();
    let progress = ProgressBar::new(total as u64).with_style(
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} records, {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    for (partition, next) in read {
        let Some((_, low, _)) = partitions.iter().find(|(id, ..)| id == partition) else {
            bail!("topic {topic} has no partition {partition}, but stock has read it; see `onhand offsets`");
        };
        if *low > 0 {
            bail!(
                "the events of {topic} partition {partition} before offset {low} are gone (retention): the tables cannot be checked against them"
            );
        }
        recorded::read(consumer, (topic, *partition), *low, *next, |message| {
            fold.record((*partition, message.offset()), StockEvent::decode(message.payload().unwrap_or_default()));
            progress.inc(1);
        })?;
    }
    progress.finish_and_clear();
    Ok(partitions.iter().map(|(.., high)| *high as u64).sum())
}

async fn positions(tx: &mut PgConnection, topic: &str) -> Result<Vec<(i32, i64)>> {
    let positions = projection::positions(tx)
        .await
        .context("reading consumer_offsets; has the stock service run on this database?")?;
    Ok(positions
        .into_iter()
        .filter(|position| position.service == "stock" && position.topic == topic)
        .map(|position| (position.partition, position.next_offset))
        .collect())
}

/// Refusals that are not published yet.
async fn outbox(
    tx: &mut PgConnection,
    topic: &str,
    errors: &mut Errors,
    seen: &mut HashSet<String>,
    differences: &mut Differences,
) -> Result<()> {
    let rows = sqlx::query("SELECT payload, headers FROM outbox WHERE service = 'stock'").fetch_all(tx).await?;
    for row in rows {
        let headers: Vec<(String, String)> = serde_json::from_value(row.get(1)).context("outbox: headers")?;
        let get = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        errors.add(topic, get, row.get(0), seen, differences);
    }
    Ok(())
}

async fn waiting_places(tx: &mut PgConnection, topic: &str) -> Result<HashSet<(i32, i64)>> {
    let rows = sqlx::query("SELECT partition, record_offset FROM waiting_sales WHERE topic = $1")
        .bind(topic)
        .fetch_all(tx)
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// 1,000,000
fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}
