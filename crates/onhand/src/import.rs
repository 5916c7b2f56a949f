//! `onhand import`: given files, at once, by the importer's own code.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use importer::{ImportProgress, Receipt};
use indicatif::{ProgressBar, ProgressStyle};
use runtime::{KafkaSettings, health::Health, kafka, logs};
use tokio_util::sync::CancellationToken;

use crate::{
    address::{self, DataDirectory},
    ending,
};

/// So long without an acknowledgement is worth a word.
const SILENCE: Duration = Duration::from_secs(3);

/// Import files now, and say what became of their rows
#[derive(Args)]
#[command(after_help = "\
The files stay where they are. Returns when Kafka has acknowledged every row; one line a file, exit \
status 1 if a row or a file was refused (`onhand tail errors` shows why). A row that was imported \
before, in this or another way, counts once. The broker is that of KAFKA_BROKER_URL, else that of a \
running `onhand up` or `onhand demo`, else localhost:9092.

Example:
  onhand import monday.csv tuesday.csv.gz")]
pub(crate) struct Arguments {
    /// CSV files with a header line; `.csv.gz` is unpacked
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(Arguments { files, data }: Arguments) -> Result<ExitCode> {
    let mut env = address::environment(&data.path);
    logs::start(&mut env);
    let settings = KafkaSettings::read(&mut env);
    env.finish()?;
    // before Kafka is waited for
    let (files, missing): (Vec<_>, Vec<_>) = files.iter().map(|file| look(file)).partition(Result::is_ok);
    for error in missing.iter().filter_map(|found| found.as_ref().err()) {
        eprintln!("onhand: {error:#}");
    }
    if files.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    ending::block_on(async {
        let never = CancellationToken::new();
        kafka::ensure_topics(&settings, &settings.all_topics(), &Health::default(), &never).await?;
        Ok(ExitCode::SUCCESS)
    })?;
    let mut all_well = missing.is_empty();
    for file in files.into_iter().flatten() {
        let line = match import(&settings, file) {
            Ok(receipt) => {
                all_well &= receipt.refused == 0 && receipt.error.is_none();
                in_words(file, &receipt)
            }
            Err(error) => {
                all_well = false;
                eprintln!("onhand: {error:#}");
                continue;
            }
        };
        writeln!(io::stdout(), "{line}").context("writing to stdout")?;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether it is a file that can be opened. Opening a named pipe would wait for its writer.
fn look(path: &Path) -> Result<&Path> {
    let kind = |of: fs::Metadata| match (of.is_file(), of.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(io::Error::other("is a directory")),
        _ => Err(io::Error::other("is not a regular file")),
    };
    let opened = fs::metadata(path).and_then(kind).and_then(|()| File::open(path));
    opened.map(|_| path).with_context(|| path.display().to_string())
}

fn import(settings: &KafkaSettings, file: &Path) -> Result<Receipt> {
    // draws on stderr, and only where that is a terminal
    let bar = ProgressBar::new(1).with_style(
        ProgressStyle::with_template("{prefix}  {bar:30}  {percent:>3}%  {msg}").context("the bar's template")?,
    );
    bar.set_prefix(file.display().to_string());
    let mut told = false;
    let receipt = importer::import_file(settings, file, |progress| {
        bar.set_length(progress.bytes_total.max(1));
        bar.set_position(progress.bytes_done);
        bar.set_message(progress_line(&progress, bar.elapsed()));
        if progress.silence > SILENCE && bar.is_hidden() && !std::mem::replace(&mut told, true) {
            eprintln!("onhand: waiting for Kafka at {}", settings.broker_url);
        }
    });
    bar.finish_and_clear();
    receipt
}

fn progress_line(progress: &ImportProgress, elapsed: Duration) -> String {
    if progress.silence > SILENCE {
        return format!("waiting for Kafka ({} s)", progress.silence.as_secs());
    }
    let rows = progress.accepted + progress.refused;
    let refused = if progress.refused > 0 { format!(", {} refused", progress.refused) } else { String::new() };
    format!("{rows} rows, {:.0}/s{refused}", rows as f64 / elapsed.as_secs_f64().max(0.001))
}

fn in_words(file: &Path, receipt: &Receipt) -> String {
    let Receipt { rows, accepted, refused, error, .. } = receipt;
    let error = error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
    let s = if *rows == 1 { "" } else { "s" };
    format!("{}: {rows} row{s}, {accepted} accepted, {refused} refused{error}", file.display())
}
