//! Imports one given file where it is, or a stream, for the command line.

use std::{
    io::Read,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use runtime::{KafkaSettings, health::Health, kafka::ensure_topics};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    Receipt,
    find::file_kind::{FileKind, file_kind},
    finish::receipt::now,
    progress::VERSION,
    read::{
        file_reader::{FileReader, Step},
        source::{Links, Source, WholeFile, open},
        stream::Stream,
    },
    send::{producer::Producer, sink::Sink},
};

/// How long to wait for acknowledgements when it is stopped, or cannot read any further.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(6);
/// How often to report the progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// How often to look whether it is stopped, while it pauses.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What to import.
pub enum Input {
    /// A file; `.csv.gz` is unpacked.
    File(PathBuf),
    /// Bytes that can be read once, such as standard input. If they begin like a gzip file, they are unpacked.
    Stream(Box<dyn Read + Send>),
}

impl Input {
    /// What refused rows give as their file: its name without the directory, `-` for a stream.
    pub(crate) fn name(&self) -> String {
        match self {
            Input::File(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            Input::Stream(_) => "-".into(),
        }
    }
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// Bytes of the file that were read.
    pub bytes_done: u64,
    /// The size of the file; `None` for a stream.
    pub bytes_total: Option<u64>,
    /// Rows sent to their topic.
    pub accepted: u64,
    /// Rows sent to the errors topic.
    pub refused: u64,
    /// Records that Kafka has not acknowledged yet.
    pub in_flight: u64,
    /// For how long Kafka has acknowledged nothing, though something is in flight.
    pub silence: Duration,
}

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// What is acknowledged, and what was wrong with the file as a whole.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// If it did not come to the end of the file: everything before this is acknowledged.
    pub stopped_at: Option<StoppedAt>,
}

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StoppedAt {
    /// In the unpacked text, counted from 0.
    pub byte: u64,
    /// Counted from 1.
    pub line: u64,
}

/// Imports one file and leaves it where it is, or a stream; blocks until Kafka has acknowledged every row,
/// however long it is unavailable, or until `shutdown`. Missing topics are created. `report` is called several
/// times a second. An `Err` means that nothing was read or sent; any later failure is in the report.
///
/// Must be called on a thread that may block, within a multi-threaded Tokio runtime
/// (`tokio::task::spawn_blocking`).
pub fn import_file(
    kafka: &KafkaSettings,
    input: Input,
    shutdown: &CancellationToken,
    report: impl FnMut(ImportProgress),
) -> Result<ImportReport> {
    let mut import = FileImport::start(kafka, input, shutdown, report)?;
    let end = import.run();
    Ok(import.into_report(end))
}

/// Why an import has ended.
enum End {
    /// The file was read to its end.
    Complete,
    /// The file was read up to a corrupt part.
    Corrupt(String),
    /// It cannot be read or sent any further.
    Failed(String),
    Stopped,
}

struct FileImport<'a, R> {
    kafka: &'a KafkaSettings,
    shutdown: &'a CancellationToken,
    report: R,
    path: Option<PathBuf>,
    name: String,
    bytes_total: Option<u64>,
    started_at: String,
    sink: Sink,
    reader: FileReader,
    /// When Kafka last acknowledged something, and the number of acknowledgements then.
    last_acknowledged: (Instant, u64),
    reported: Instant,
}

impl<'a, R: FnMut(ImportProgress)> FileImport<'a, R> {
    fn start(kafka: &'a KafkaSettings, input: Input, shutdown: &'a CancellationToken, report: R) -> Result<Self> {
        let name = input.name();
        let is_gzip = matches!(&input, Input::File(path) if is_gzip(path));
        let mut reader = FileReader::new(0, name.clone(), is_gzip, None);
        let (path, bytes_total) = match input {
            Input::File(path) => {
                let shown = || path.display().to_string();
                let file = open(&path, Links::Follow).with_context(shown)?;
                let bytes_total = file.metadata().with_context(shown)?.len();
                reader.open(file);
                (Some(path), Some(bytes_total))
            }
            Input::Stream(stream) => {
                reader.open_stream(Stream::start(stream).context("starting a thread")?);
                (None, None)
            }
        };
        let now_sending = Instant::now();
        Ok(FileImport {
            kafka,
            shutdown,
            report,
            path,
            name,
            bytes_total,
            started_at: now(),
            sink: Sink::new(Producer::new(kafka)?),
            reader,
            last_acknowledged: (now_sending, 0),
            reported: now_sending,
        })
    }

    fn run(&mut self) -> End {
        let mut end = None;
        let mut deadline = None;
        loop {
            if !matches!(end, Some(End::Failed(_))) && self.shutdown.is_cancelled() {
                end = Some(End::Stopped);
            }
            if let Some(End::Stopped | End::Failed(_)) = end {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + SHUTDOWN_TIMEOUT);
                if self.sink.producer.failed() || Instant::now() > deadline {
                    break;
                }
            }
            if end.is_some() && self.sink.producer.in_flight().is_empty() {
                break;
            }
            let must_wait = self.sink.producer.in_flight().is_full()
                || self.sink.producer.failed()
                || (self.reader.is_one_by_one() && self.reader.in_flight > 0);
            if end.is_some() || must_wait {
                self.sink.producer.wait();
            } else {
                end = self.step();
            }
            while let Some(chunk) = self.sink.next_done() {
                self.reader.acknowledge(chunk.position);
                self.reader.release();
            }
            match self.recover() {
                Ok(false) => {}
                // what was read may have to be sent again
                Ok(true) if matches!(end, Some(End::Complete | End::Corrupt(_))) => end = None,
                Ok(true) => {}
                Err(error) => end = Some(End::Failed(format!("{error:#}"))),
            }
            self.report_progress(end.is_some());
        }
        end.unwrap_or(End::Complete)
    }

    /// Sends the next buffer; returns why there is no next one.
    fn step(&mut self) -> Option<End> {
        // asked before, since the rest may arrive between the step and the question
        let has_arrived = self.reader.has_arrived();
        let step = self.reader.step(&mut self.sink, has_arrived);
        self.sink.producer.poll();
        match step {
            Ok(Step::More) => None,
            Ok(Step::End { .. }) if has_arrived => Some(End::Complete),
            Ok(Step::Blocked | Step::End { .. }) => {
                self.sink.producer.wait();
                None
            }
            Ok(Step::Corrupt(reason)) => Some(End::Corrupt(reason)),
            Ok(Step::Changed(reason)) => Some(End::Failed(reason)),
            Err(error) => Some(End::Failed(error.to_string())),
        }
    }

    /// If the producer has failed, goes on with a new one. Returns whether it has.
    fn recover(&mut self) -> Result<bool> {
        let Some(recovery) = self.sink.recover()? else { return Ok(false) };
        let pause_ms = u64::try_from(recovery.pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            file = self.name,
            reason = recovery.reason,
            pause_ms,
            "Kafka did not accept everything: sending again what is not acknowledged"
        );
        for (chunk, code) in &recovery.refused {
            self.reader.narrow_down_refusal(chunk, *code).map_err(anyhow::Error::msg)?;
        }
        self.reader.rewind(false);
        if let Some(path) = &self.path {
            self.reader.open(open(path, Links::Follow)?);
        }
        if recovery.no_topic {
            let (topics, health) = (self.kafka.all_topics(), Health::default());
            let created = ensure_topics(self.kafka, &topics, &health, self.shutdown);
            tokio::runtime::Handle::try_current().context("no Tokio runtime")?.block_on(created)?;
        }
        let until = Instant::now() + recovery.pause;
        while Instant::now() < until && !self.shutdown.is_cancelled() {
            thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }

    fn report_progress(&mut self, has_ended: bool) {
        let in_flight = self.sink.producer.in_flight();
        let acknowledged = in_flight.acknowledged();
        if acknowledged != self.last_acknowledged.1 || in_flight.records() == 0 {
            self.last_acknowledged = (Instant::now(), acknowledged);
        }
        if self.reported.elapsed() < REPORT_INTERVAL && !(has_ended && in_flight.is_empty()) {
            return;
        }
        self.reported = Instant::now();
        (self.report)(ImportProgress {
            bytes_done: self.reader.bytes_read(),
            bytes_total: self.bytes_total,
            accepted: self.reader.position.accepted,
            refused: self.reader.position.refused,
            in_flight: in_flight.records(),
            silence: self.last_acknowledged.0.elapsed(),
        });
    }

    fn into_report(mut self, end: End) -> ImportReport {
        let (end, whole) = match end {
            End::Complete | End::Corrupt(_) => match self.hash_rest() {
                Ok(whole) => (end, Some(whole)),
                Err(error) => (End::Failed(error.to_string()), None),
            },
            end => (end, None),
        };
        let (error, is_stopped) = match end {
            End::Complete => (None, false),
            End::Corrupt(reason) => (Some(reason), false),
            End::Failed(reason) => (Some(reason), true),
            End::Stopped => (None, true),
        };
        let position = &self.reader.acknowledged;
        let resume_at = self.reader.resume_at();
        let receipt = Receipt {
            version: VERSION,
            file: self.name,
            event_type: self.reader.event_type().map(str::to_owned),
            rows: position.accepted + position.refused,
            accepted: position.accepted,
            refused: position.refused,
            bytes: whole.as_ref().map_or(resume_at.byte, |whole| whole.bytes),
            sha256: whole.map(|whole| whole.sha256),
            started_at: self.started_at,
            finished_at: now(),
            rejected: None,
            error,
            unterminated_last_line: !is_stopped && position.is_mid_line(),
            left_in_place: false,
        };
        let stopped_at = is_stopped.then(|| StoppedAt { byte: resume_at.byte, line: resume_at.line + 1 });
        ImportReport { receipt, stopped_at }
    }

    fn hash_rest(&mut self) -> std::io::Result<WholeFile> {
        let mut hash_position = self.reader.position.clone();
        loop {
            if let Some(whole) = self.reader.hash_rest(&mut self.sink, &mut hash_position)? {
                return Ok(whole);
            }
        }
    }
}

fn is_gzip(path: &Path) -> bool {
    path.file_name().is_some_and(|name| file_kind(name) == FileKind::Gzip)
}

/// Opens an input on its own, without a reader.
pub(crate) fn open_source(input: Input) -> Result<Source> {
    Ok(match input {
        Input::File(path) => {
            let file = open(&path, Links::Follow).with_context(|| path.display().to_string())?;
            Source::new(file, is_gzip(&path))
        }
        Input::Stream(stream) => Source::Stream(Stream::start(stream).context("starting a thread")?),
    })
}
