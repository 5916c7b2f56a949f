//! Imports one given file where it is, for the command line.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use runtime::KafkaSettings;

use crate::{
    Receipt,
    find::file_kind::{FileKind, file_kind},
    finish::receipt::now,
    progress::VERSION,
    read::{
        file_reader::{FileReader, Step},
        position::Position,
        source::{Links, open},
    },
    send::{producer::Producer, sink::Sink},
};

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// Bytes of the file that were read.
    pub bytes_done: u64,
    /// The size of the file.
    pub bytes_total: u64,
    /// Rows sent to their topic.
    pub accepted: u64,
    /// Rows sent to the errors topic.
    pub refused: u64,
    /// Records that Kafka has not acknowledged yet.
    pub in_flight: u64,
    /// For how long Kafka has acknowledged nothing, though something is in flight.
    pub silence: Duration,
}

/// Imports one file and leaves it where it is; blocks until Kafka has acknowledged every row,
/// however long it is away. The topics must exist (`runtime::kafka::ensure_topics`). `tell` is
/// called several times a second. A file that could be read in part only is a receipt with an
/// `error`; an `Err` means that nothing is known to be imported.
pub fn import_file(kafka: &KafkaSettings, path: &Path, mut tell: impl FnMut(ImportProgress)) -> Result<Receipt> {
    let shown = path.file_name().unwrap_or(path.as_os_str());
    let gzip = file_kind(shown) == FileKind::Gzip;
    let file = open(path, Links::Follow).with_context(|| path.display().to_string())?;
    let bytes_total = file.metadata()?.len();
    let mut sink = Sink::new(Producer::new(kafka)?);
    let mut reader = FileReader::new(0, shown.to_string_lossy().into_owned(), gzip, None);
    reader.open(file);
    let started_at = now();
    let mut error = None;
    let mut ended = false;
    let mut last_acknowledged = (Instant::now(), 0);
    let mut told = Instant::now();
    while !ended || !sink.producer.in_flight().is_empty() {
        let flight = sink.producer.in_flight();
        if ended || flight.is_full() || sink.producer.failed() || (reader.is_one_by_one() && reader.in_flight > 0) {
            sink.producer.wait();
        } else {
            match reader.step(&mut sink, true).with_context(|| path.display().to_string())? {
                Step::More => {}
                Step::Blocked => sink.producer.wait(),
                Step::End { .. } => ended = true,
                Step::Corrupt(reason) => (ended, error) = (true, Some(reason)),
                Step::Changed(why) => bail!("{}: {why}", path.display()),
            }
            sink.producer.poll();
        }
        while let Some(chunk) = sink.next_done() {
            reader.acknowledge(chunk.position);
        }
        if let Some(recovery) = sink.recover()? {
            tracing::warn!("Kafka did not take everything ({}): it is sent again", recovery.reason);
            thread::sleep(recovery.pause);
            for (chunk, code) in &recovery.refused {
                if let Err(reason) = reader.narrow_down_refusal(chunk, *code) {
                    bail!("{}: {reason}", path.display());
                }
            }
            reader.rewind(false);
            reader.open(open(path, Links::Follow).with_context(|| path.display().to_string())?);
            (ended, error) = (false, None);
        }
        let flight = sink.producer.in_flight();
        if flight.acknowledged() != last_acknowledged.1 || flight.records() == 0 {
            last_acknowledged = (Instant::now(), flight.acknowledged());
        }
        if told.elapsed() > Duration::from_millis(100) || (ended && flight.is_empty()) {
            told = Instant::now();
            tell(ImportProgress {
                bytes_done: reader.bytes_read(),
                bytes_total,
                accepted: reader.position.accepted,
                refused: reader.position.refused,
                in_flight: flight.records(),
                silence: last_acknowledged.0.elapsed(),
            });
        }
    }
    let mut hash_position: Position = reader.position.clone();
    let whole = loop {
        if let Some(whole) = reader.hash_rest(&mut sink, &mut hash_position)? {
            break whole;
        }
    };
    let position = &reader.acknowledged;
    Ok(Receipt {
        version: VERSION,
        file: shown.to_string_lossy().into_owned(),
        event_type: reader.event_type().map(str::to_owned),
        rows: position.accepted + position.refused,
        accepted: position.accepted,
        refused: position.refused,
        bytes: whole.bytes,
        sha256: Some(whole.sha256),
        started_at,
        finished_at: now(),
        rejected: None,
        error,
        unterminated_last_line: position.is_mid_line(),
        left_in_place: false,
    })
}
