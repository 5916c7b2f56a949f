//! `onhand verify`: the invariants of a live system, checked by folding the topic anew.

mod files;
mod fold;
mod recorded;

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use events::stock::{EVENT_TYPE, StockEvent};
use hashbrown::HashSet;
use indicatif::{ProgressBar, ProgressStyle};
use projection::ConsumerOffset;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};
use runtime::{KafkaSettings, PostgresSettings, kafka, postgres};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::{
    address::{self, DataDirectory},
    exit, reading,
    terminal::Paint,
};
use files::Files;
use fold::{Differences, Fold, WaitingPlaces};
use recorded::Errors;

/// Check that the tables are exactly what the events say
#[derive(Args)]
#[command(after_help = "\
Reads the events topic, folds it from its beginning up to where the stock service stands with the \
plain rules, and compares: every record is in the journal, a duplicate, waiting or refused with its \
reason; each amount is the sum of its journal and never negative; every row that a receipt in the \
import directory counts is on the topic or, refused, on the errors topic. The system may go on working \
meanwhile. Memory: some 150 bytes an event.

Exit status 0 only if everything holds.

Example: after an import
  onhand verify && echo all is well")]
pub(crate) struct Arguments {
    /// Where the importer keeps its files, to check the receipts [default: that of what runs, else importer]
    #[arg(long, value_name = "DIR", env = "IMPORT_DIRECTORY", hide_env_values = true)]
    import_directory: Option<PathBuf>,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = address::environment(&arguments.data.path);
    let (kafka, postgres) = address::servers(&mut env, &arguments.data.path)?;
    let directory = arguments.import_directory.or_else(|| env.text("IMPORT_DIRECTORY").map(PathBuf::from));
    exit::block_on(verify(kafka, postgres, directory.unwrap_or_else(|| "importer".into())))
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
    let consumer = reading::consumer(&kafka, "onhand-verify")?;
    let positions = positions(&mut tx, topic).await?;
    tokio::task::block_in_place(|| is_the_topic(&consumer, topic, &positions))?;
    let read: Vec<_> = positions.iter().map(|position| (position.partition, position.next_offset)).collect();
    let mut errors = Errors::default();
    let mut seen = HashSet::new();
    outbox(&mut tx, topic, &mut errors, &mut seen, &mut differences).await?;
    let waiting = waiting_places(&mut tx, topic, &mut differences).await?;

    tokio::task::block_in_place(|| -> Result<()> {
        for (partition, low, high) in recorded::partitions(&consumer, &kafka.errors_topic)? {
            reading::range(&consumer, (&kafka.errors_topic, partition), low..high, |message| {
                let get = |name: &str| recorded::header_of(message, name);
                errors.add(topic, get, message.payload().unwrap_or_default(), &mut seen, &mut differences);
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    })?;
    drop(seen);
    // refused after the moment we look at
    errors.refusals.retain(|place, _| {
        read.iter().any(|(partition, next)| *partition == place.0 && place.1 < *next) && !waiting.contains_key(place)
    });
    let revived = recorded::known(&mut tx, &errors.given_up).await?;
    let mut fold = Fold::new(std::mem::take(&mut errors.refusals), waiting, revived);
    let behind = tokio::task::block_in_place(|| fold_topic(&consumer, topic, &read, &mut fold))?;
    let written = fold.counts.records + behind;
    let mut expected = fold.finish();
    let (transactions, sales, items) = recorded::tables(&mut tx, &mut expected).await?;
    tx.commit().await?;
    let unreceipted = files.as_ref().map(|files| files.compare(&errors.rows, written, &mut differences));
    let mixed = expected.mixed.len() as u64;
    let (counts, found) = expected.finish();
    differences.count += found.count;
    differences.told.extend(found.told);

    let line = |number: u64, text: &str| println!("{:>12} {text}", grouped(number));
    let (record, are) = (word(counts.records, "record", "records"), word(counts.records, "is", "are"));
    line(counts.records, &format!("{record} of topic {topic}, up to where stock stands, {are}"));
    line(transactions, "in the journal (transactions)");
    line(counts.duplicates, word(counts.duplicates, "duplicate", "duplicates"));
    line(sales, "waiting (waiting_sales)");
    line(counts.refused, "refused, each with its reason");
    line(items, word(items, "card compared (items)", "cards compared (items)"));
    let rows = errors.rows.values().sum();
    line(rows, &format!("refused {} of files, each with its file, line and byte", word(rows, "row", "rows")));
    let shown = directory.display();
    match &files {
        Some(files) => {
            line(files.receipts, &format!("{} of files in {shown}", word(files.receipts, "receipt", "receipts")))
        }
        None => println!("{:>12} no receipts: {shown} does not exist; files are not checked", ""),
    }
    if let Some(rows @ 1..) = unreceipted {
        let are = word(rows, "refused row has", "refused rows have");
        line(
            rows,
            &format!("{are} no receipt: of `onhand import`, of files still being read, or the receipt was removed"),
        );
    }
    if behind > 0 {
        line(behind, &format!("{} not applied yet, and not compared", word(behind, "record is", "records are")));
    }
    if mixed > 0 {
        let have = word(mixed, "card has", "cards have");
        line(mixed, &format!("{have} records in several partitions: the order of these is not checked"));
    }
    let accounted = transactions + counts.duplicates + sales + counts.refused;
    if accounted != counts.records && differences.count == 0 {
        differences.add(format!("{} {record}, of which {accounted} {are} accounted for", counts.records));
    }
    let paint = Paint::of_stdout();
    for difference in &differences.told {
        println!("{} {difference}", paint.red("differs:"));
    }
    if differences.count > 0 {
        let differ = word(differences.count, "difference", "differences");
        println!("{}", paint.red(format!("{} {differ}", grouped(differences.count))));
        return Ok(exit::NO);
    }
    println!("{}", paint.green("everything holds"));
    Ok(ExitCode::SUCCESS)
}

/// Folds each partition up to where the service stands. Returns how many records come after that.
fn fold_topic(consumer: &BaseConsumer, topic: &str, read: &[(i32, i64)], fold: &mut Fold) -> Result<u64> {
    let partitions = recorded::partitions(consumer, topic)?;
    if let Some((partition, _)) = read.iter().find(|(partition, _)| partitions.iter().all(|(id, ..)| id != partition)) {
        bail!("topic {topic} has no partition {partition}, but stock has read it; see `onhand offsets`");
    }
    let total: i64 = partitions.iter().map(|(_, low, high)| high - low).sum();
    let progress = ProgressBar::new(total as u64).with_style(
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} records, {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut behind = 0;
    for (partition, low, high) in partitions {
        let next = read.iter().find(|(id, _)| *id == partition).map(|(_, next)| *next);
        if next.is_some() && low > 0 {
            bail!(
                "the events of {topic} partition {partition} before offset {low} are gone (retention): the tables cannot be checked against them"
            );
        }
        if next.is_none() {
            // retention removed these before stock read any: they were on the topic, and are not applied
            behind += low as u64;
        }
        let next = next.unwrap_or(low);
        if high < next {
            bail!(
                "{topic} partition {partition} ends at {high}, but stock has read up to {next}; see `onhand offsets`"
            );
        }
        reading::range(consumer, (topic, partition), low..high, |message| {
            if message.offset() < next {
                let decoded = StockEvent::decode(message.payload().unwrap_or_default());
                fold.record((partition, message.offset()), decoded);
            } else {
                behind += 1;
            }
            progress.inc(1);
            ControlFlow::Continue(())
        })?;
    }
    progress.finish_and_clear();
    Ok(behind)
}

async fn positions(tx: &mut PgConnection, topic: &str) -> Result<Vec<ConsumerOffset>> {
    let mut positions = projection::consumer_offsets(tx)
        .await
        .context("reading consumer_offsets; has the stock service run on this database?")?;
    positions.retain(|position| position.service == "stock" && position.topic == topic);
    Ok(positions)
}

/// An error when the topic was made anew since, or is another cluster's: nothing of it would fit.
fn is_the_topic(consumer: &BaseConsumer, topic: &str, positions: &[ConsumerOffset]) -> Result<()> {
    let Some(read) = positions.first() else { return Ok(()) };
    let now = kafka::topic_identity(consumer.client(), topic).with_context(|| format!("asking for topic {topic}"))?;
    if positions.iter().any(|position| position.topic_identity != now) {
        bail!(
            "topic {topic} is not the topic that was read: it was created anew, or is another cluster's \
             (stock read {}, this one is {now}); see `onhand offsets`",
            read.topic_identity
        );
    }
    Ok(())
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

async fn waiting_places(tx: &mut PgConnection, topic: &str, differences: &mut Differences) -> Result<WaitingPlaces> {
    let rows = sqlx::query("SELECT partition, record_offset, transaction_id FROM waiting_sales WHERE topic = $1")
        .bind(topic)
        .fetch_all(tx)
        .await?;
    let mut places = WaitingPlaces::new();
    for row in &rows {
        let (place, id): ((i32, i64), Uuid) = ((row.get(0), row.get(1)), row.get(2));
        if let Some(other) = places.insert(place, id) {
            differences.add(format!("waiting_sales: {other} and {id} both came as record {}:{}", place.0, place.1));
        }
    }
    Ok(places)
}

/// 1,000,000
fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// 1 row, 2 rows: the word for so many.
fn word<'a>(number: u64, one: &'a str, more: &'a str) -> &'a str {
    if number == 1 { one } else { more }
}
