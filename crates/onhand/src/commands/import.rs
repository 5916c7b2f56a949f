//! `onhand import`: given files, or standard input, at once, by the importer's own code.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use importer::{ImportProgress, ImportReport, Input, RefusedRow, check_file, import_file};
use indicatif::{ProgressBar, ProgressStyle};
use runtime::{KafkaSettings, health::Health, kafka, lifecycle, logs};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    exit,
    system::target::{self, DataDirectory},
};

/// Say that Kafka is awaited after this long without an acknowledgement.
const SILENCE: Duration = Duration::from_secs(3);
/// How many refused rows of a file are listed with `--json`, which is in memory.
const MAX_LISTED: usize = 1_000;

/// Import files now, and say what became of their rows
#[derive(Args)]
#[command(after_help = "\
The files stay where they are. Returns when Kafka has acknowledged every row, with one line a file. \
The exit status is 0 if every row was accepted, 1 if rows were refused (`onhand tail errors` shows \
why), and 2 if a file could not be read or sent to its end. A row that was imported before, in this \
or another way, counts once; so after Ctrl-C, which says what was acknowledged, the same command can \
be run again. The broker is that of KAFKA_BROKER_URL, else that of a running `onhand up` or `onhand \
demo`, else localhost:9092.

Examples:
  onhand import monday.csv tuesday.csv.gz
  onhand import --dry-run monday.csv
  zcat *.csv.gz | onhand import --json -")]
pub(crate) struct Arguments {
    /// CSV files with a header line; `.csv.gz` is unpacked. `-` is standard input, packed or not
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only list the rows that would be refused; Kafka is not needed
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Summary {
    dry_run: bool,
    rows: u64,
    accepted: u64,
    refused: u64,
    files: Vec<FileSummary>,
}

#[derive(Serialize)]
struct FileSummary {
    /// As it was given.
    path: String,
    /// Why nothing of it was read; a report has an `error` of its own.
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(flatten)]
    report: Option<ImportReport>,
    /// With `--dry-run`, up to [`MAX_LISTED`] of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused_rows: Option<Vec<Refusal>>,
}

#[derive(Serialize)]
struct Refusal {
    line: u64,
    byte: u64,
    column: Option<&'static str>,
    error: String,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    logs::start(&mut env);
    let kafka = if arguments.dry_run { None } else { Some(KafkaSettings::read(&mut env)) };
    env.finish()?;
    // before Kafka is waited for
    let inputs: Vec<_> = arguments.files.iter().map(|path| (path.clone(), input(path))).collect();
    exit::block_on(async {
        let shutdown = lifecycle::shutdown_on_signals()?;
        if let Some(kafka) = kafka.as_ref().filter(|_| inputs.iter().any(|(_, input)| input.is_ok())) {
            kafka::ensure_topics(kafka, &kafka.all_topics(), &Health::default(), &shutdown).await?;
        }
        let import = Import { kafka, json: arguments.json, shutdown };
        tokio::task::spawn_blocking(move || import.run(inputs)).await.context("the import panicked")?
    })
}

/// The input of this name, if it can be opened. Opening a named pipe would wait for its writer.
fn input(path: &Path) -> Result<Input> {
    if path == Path::new("-") {
        return Ok(Input::Stream(Box::new(io::stdin())));
    }
    let kind = |of: fs::Metadata| match (of.is_file(), of.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(io::Error::other("is a directory")),
        _ => Err(io::Error::other("is not a regular file")),
    };
    let opened = fs::metadata(path).and_then(kind).and_then(|()| File::open(path));
    opened.map(|_| Input::File(path.to_owned())).with_context(|| path.display().to_string())
}

struct Import {
    /// `None` for a dry run.
    kafka: Option<KafkaSettings>,
    json: bool,
    shutdown: CancellationToken,
}

impl Import {
    fn run(&self, inputs: Vec<(PathBuf, Result<Input>)>) -> Result<ExitCode> {
        let mut summary = Summary { dry_run: self.kafka.is_none(), rows: 0, accepted: 0, refused: 0, files: vec![] };
        let mut has_failed = false;
        for (path, input) in inputs {
            let mut refused_rows = None;
            let result = input.and_then(|input| {
                anyhow::ensure!(!self.shutdown.is_cancelled(), "{}: stopped before it was read", path.display());
                match &self.kafka {
                    Some(kafka) => self.import(kafka, &path, input),
                    None => self.check(&path, input, refused_rows.insert(Vec::new())),
                }
            });
            let mut file = FileSummary { path: path.display().to_string(), failure: None, report: None, refused_rows };
            match result {
                Ok(report) => {
                    let receipt = &report.receipt;
                    has_failed |= receipt.error.is_some() || report.stopped_at.is_some();
                    summary.rows += receipt.rows;
                    summary.accepted += receipt.accepted;
                    summary.refused += receipt.refused;
                    if !self.json {
                        let line = in_words(&path, &report, summary.dry_run);
                        writeln!(io::stdout(), "{line}").context("writing to stdout")?;
                    }
                    file.report = Some(report);
                }
                Err(error) => {
                    has_failed = true;
                    eprintln!("onhand: {error:#}");
                    file.failure = Some(format!("{error:#}"));
                }
            }
            summary.files.push(file);
        }
        if self.json {
            let text = serde_json::to_string_pretty(&summary)?;
            writeln!(io::stdout(), "{text}").context("writing to stdout")?;
        }
        Ok(match (has_failed, summary.refused) {
            (true, _) => ExitCode::from(exit::ERROR),
            (false, 0) => ExitCode::SUCCESS,
            (false, _) => ExitCode::FAILURE,
        })
    }

    fn import(&self, kafka: &KafkaSettings, path: &Path, input: Input) -> Result<ImportReport> {
        // draws on stderr, and only where that is a terminal
        let bar = ProgressBar::new(1).with_style(
            ProgressStyle::with_template("{prefix}  {bar:30}  {percent:>3}%  {msg}").context("the bar's template")?,
        );
        bar.set_prefix(path.display().to_string());
        let mut is_silence_reported = false;
        let report = import_file(kafka, input, &self.shutdown, |progress| {
            // of a stream, all that is known is read
            bar.set_length(progress.bytes_total.unwrap_or(progress.bytes_done).max(1));
            bar.set_position(progress.bytes_done);
            bar.set_message(progress_line(&progress, bar.elapsed()));
            if progress.silence > SILENCE && bar.is_hidden() && !std::mem::replace(&mut is_silence_reported, true) {
                eprintln!("onhand: waiting for Kafka at {}", kafka.broker_url);
            }
        });
        bar.finish_and_clear();
        report
    }

    fn check(&self, path: &Path, input: Input, listed: &mut Vec<Refusal>) -> Result<ImportReport> {
        let mut printed = Ok(());
        let report = check_file(input, &self.shutdown, |RefusedRow { line, byte, column, reason }| {
            if !self.json {
                if printed.is_ok() {
                    printed = writeln!(io::stdout(), "{}:{line}: {reason}", path.display());
                }
            } else if listed.len() < MAX_LISTED {
                listed.push(Refusal { line, byte, column, error: reason.to_owned() });
            }
        });
        printed.context("writing to stdout")?;
        report
    }
}

fn progress_line(progress: &ImportProgress, elapsed: Duration) -> String {
    if progress.silence > SILENCE {
        return format!("waiting for Kafka ({} s)", progress.silence.as_secs());
    }
    let rows = progress.accepted + progress.refused;
    let refused = if progress.refused > 0 { format!(", {} refused", progress.refused) } else { String::new() };
    format!("{rows} rows, {:.0}/s{refused}", rows as f64 / elapsed.as_secs_f64().max(0.001))
}

fn in_words(path: &Path, ImportReport { receipt, stopped_at }: &ImportReport, is_dry_run: bool) -> String {
    let (rows, accepted, refused) = (receipt.rows, receipt.accepted, receipt.refused);
    let s = if rows == 1 { "" } else { "s" };
    let would = if is_dry_run { " would be" } else { "" };
    let mut text = format!("{}: {rows} row{s}, {accepted}{would} accepted, {refused}{would} refused", path.display());
    if let Some(error) = &receipt.error {
        text += &format!("; {error}");
    }
    if let Some(at) = stopped_at {
        let done = if is_dry_run { "read" } else { "acknowledged" };
        text += &format!("; stopped: everything before byte {} (line {}) is {done}", at.byte, at.line);
    }
    text
}
