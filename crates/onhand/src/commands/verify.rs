//! `onhand verify`: the invariants of a live system, checked by folding the topic again.
//!
//! Memory does not grow with the number of events: everything is sorted in temporary files, and
//! compared in passes over what is sorted.
//!
//! 1. `letters`, `load`: claims of records (refused, waits) by place.
//! 2. `topic`, `load`: records, with what is claimed of them, and rows, both by transaction_id.
//! 3. `ids`: goes through these, and hands on what happened to each card.
//! 4. `cards`: goes through that, by card, with the plain rules.

mod cards;
mod copy;
mod entry;
mod ids;
mod letters;
mod load;
mod receipts;
mod report;
mod sorter;
mod topic;

use std::{
    env, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use events::stock::EVENT_TYPE;
use indicatif::{ProgressBar, ProgressStyle};
use runtime::{KafkaSettings, PostgresSettings, lifecycle, postgres};
use sqlx::{ConnectOptions, Connection};

use crate::{
    exit,
    output::terminal::Paint,
    system::{
        target::{self, DataDirectory},
        topic_reader,
    },
};
use cards::Cards;
use entry::{Occurrence, read_step};
use ids::Ids;
use letters::Letters;
use receipts::Receipts;
pub(crate) use report::{Differences, Report};
pub(crate) use sorter::Scratch;
use sorter::{Sorted, Sorter};

/// Sorters that hold a part of the memory at the same time, each twice while it writes.
const PARTS: usize = 4;

/// Check that the tables are exactly what the events say
#[derive(Args)]
#[command(after_help = "\
Reads the events topic, folds it from its beginning up to where the stock service has read with the \
plain rules, and compares: every record is in the journal, a duplicate, waiting or refused with its \
reason; a row of the journal names the record it came from; each amount is the sum of its journal and \
never negative; every row that a receipt in the import directory counts is on the topic or, refused, \
on the errors topic. The system may go on working meanwhile. What does not fit in memory is sorted in \
temporary files, some 200 bytes an event.

Exit status 0 if everything holds, 1 if something differs, 2 if it could not be checked. With --json, \
one JSON object on stdout: what was compared, and of each kind of difference the count and some \
examples.

Example: after an import
  onhand verify && echo all is well")]
pub(crate) struct Arguments {
    /// Where the importer keeps its files, to check the receipts [default: that of what runs, else importer]
    #[arg(long, value_name = "DIR", env = "IMPORT_DIRECTORY", hide_env_values = true)]
    import_directory: Option<PathBuf>,
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
    /// Memory for sorting, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    memory: u64,
    /// Where temporary files are made [default: TMPDIR, else /var/tmp]
    #[arg(short = 'T', long, value_name = "DIR")]
    temporary_directory: Option<PathBuf>,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    let (kafka, postgres) = target::servers(&mut env, &arguments.data.path)?;
    let directory = arguments.import_directory.or_else(|| env.text("IMPORT_DIRECTORY").map(PathBuf::from));
    let directory = directory.unwrap_or_else(|| "importer".into());
    let memory = usize::try_from(arguments.memory << 20).context("--memory is too large")?;
    let scratch = Scratch::new(arguments.temporary_directory, memory);
    exit::block_on(async {
        let interrupted = lifecycle::shutdown_on_signals()?;
        let check = tokio::spawn(async move { check(&kafka, &postgres, &directory, scratch).await });
        let report = tokio::select! {
            report = check => report??,
            () = interrupted.cancelled() => bail!("interrupted before everything was compared"),
        };
        let mut out = io::stdout().lock();
        let written = if arguments.json {
            io::Write::write_all(&mut out, format!("{:#}\n", report.to_json()).as_bytes())
        } else {
            report.print(Paint::of_stdout(), &mut out)
        };
        written.context("writing to stdout")?;
        Ok(if report.holds() { ExitCode::SUCCESS } else { exit::NO })
    })
}

impl Scratch {
    /// `memory`: bytes for all sorting together. The directory is for large files, which `/tmp` may
    /// keep in memory.
    pub(crate) fn new(directory: Option<PathBuf>, memory: usize) -> Scratch {
        let directory = directory.or_else(|| env::var_os("TMPDIR").filter(|name| !name.is_empty()).map(PathBuf::from));
        Scratch { directory: directory.unwrap_or_else(|| "/var/tmp".into()), memory: memory / PARTS }
    }
}

/// Compares the tables and the receipts of files with the topics. An error says why that is not
/// possible.
pub(crate) async fn check(
    kafka: &KafkaSettings,
    postgres: &PostgresSettings,
    directory: &Path,
    scratch: Scratch,
) -> Result<Report> {
    let mut connection = postgres::options(postgres, "onhand-verify")
        .options([("idle_in_transaction_session_timeout", "0")])
        .connect()
        .await
        .with_context(|| format!("Postgres at {postgres}"))?;
    let mut differences = Differences::default();
    // a receipt is written when its rows are on the topics: these are looked at later
    let receipts = Receipts::read(directory, &mut differences)?;
    // one moment of all tables; what is committed later is not looked at
    let mut tx = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let topic = kafka.topic_of(&EVENT_TYPE);
    let consumer = topic_reader::consumer(kafka, "onhand-verify")?;
    let positions = load::positions(&mut tx, topic).await?;
    tokio::task::block_in_place(|| topic::is_the_one_that_was_read(&consumer, topic, &positions))?;
    let read: Vec<_> = positions.iter().map(|position| (position.partition, position.next_offset)).collect();

    let (mut claims, mut rows, mut records) = (Sorter::new(&scratch), Sorter::new(&scratch), Sorter::new(&scratch));
    let waiting = load::waiting_sales(&mut tx, topic, &mut claims, &mut rows).await?;
    let mut letters = Letters::new(topic, &read, &mut claims, &scratch);
    // before the errors topic: what is published meanwhile is there twice, and nothing is missing
    load::outbox(&mut tx, &mut letters, &mut differences).await?;
    let refused = tokio::task::block_in_place(|| {
        letters.read(&consumer, &kafka.errors_topic, &mut differences)?;
        letters.rows(&scratch)
    })?;
    let claims = Sorted::new(vec![claims], &scratch)?;

    // both at once: the topic on a thread of its own
    let progress = bar("reading", read.iter().map(|(_, next_offset)| *next_offset as u64).sum());
    let reading = {
        let (topic, progress) = (topic.to_owned(), progress.clone());
        tokio::task::spawn_blocking(move || {
            let result = topic::read(&consumer, &topic, &read, claims, &mut records, &progress)?;
            anyhow::Ok((result, records))
        })
    };
    let mut steps = Sorter::new(&scratch);
    let ((read, records), journal) =
        tokio::try_join!(async { reading.await.context("the thread that reads the topic")? }, async {
            let journal = load::journal(&mut tx, &mut rows).await?;
            load::stock(&mut tx, &mut steps).await?;
            Ok(journal)
        },)?;
    tx.commit().await?;
    progress.finish_and_clear();
    differences.append(read.differences);

    let (duplicates, cards, found) = tokio::task::block_in_place(|| -> Result<_> {
        let progress = bar("comparing", read.records + journal);
        let mut ids = Ids::new(|entry| steps.push(entry));
        each(Sorted::new(vec![rows, records], &scratch)?, &progress, |entry| ids.occurrence(&Occurrence::read(entry)))?;
        let (duplicates, found) = ids.finish()?;
        let progress = bar("adding up", read.records);
        let mut cards = Cards::default();
        each(Sorted::new(vec![steps], &scratch)?, &progress, |entry| {
            let (card, step) = read_step(entry);
            cards.step(card, step);
            Ok(())
        })?;
        Ok((duplicates, cards.finish(), found))
    })?;
    differences.append(found);
    differences.append(cards.differences);
    let receipts =
        receipts.map(|receipts| receipts.compare(&refused, read.records + read.not_applied, &mut differences));
    let mut report = Report {
        topic: topic.to_owned(),
        records: read.records,
        journal,
        duplicates,
        waiting,
        refused: read.refused,
        cards: cards.items,
        refused_rows: refused.values().sum(),
        not_applied: read.not_applied,
        mixed: cards.mixed,
        directory: directory.to_owned(),
        receipts,
        differences,
    };
    report.add_up();
    Ok(report)
}

/// Fewer records are read within half a second.
const WORTH_A_BAR: u64 = 100_000;

/// Goes through what is sorted, and shows how far.
fn each<const N: usize>(
    mut sorted: Sorted<N>,
    progress: &ProgressBar,
    mut each: impl FnMut(&[u8; N]) -> Result<()>,
) -> Result<()> {
    let mut seen = 0_u64;
    while let Some(entry) = sorted.next()? {
        each(&entry)?;
        seen += 1;
        if seen.is_multiple_of(10_000) {
            progress.inc(10_000);
        }
    }
    progress.finish_and_clear();
    Ok(())
}

/// On stderr, where that is a terminal; none for what is done in a moment.
fn bar(what: &'static str, records: u64) -> ProgressBar {
    if records < WORTH_A_BAR {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:9} {bar:40} {human_pos} of {human_len} records, {per_sec}");
    let bar = ProgressBar::new(records).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(what)
}
