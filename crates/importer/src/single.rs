//! One given file, for the command line: imported where it is, whole, and left there.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use runtime::KafkaSettings;

use crate::{
    Receipt,
    desk::Desk,
    mark::Mark,
    names::{Named, named},
    reading::{Reading, Step},
    receipt::now,
    sender::Sender,
    source::{Links, open},
};

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
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
pub fn import_file(kafka: &KafkaSettings, path: &Path, mut tell: impl FnMut(Pace)) -> Result<Receipt> {
    let shown = path.file_name().unwrap_or(path.as_os_str());
    let gzip = named(shown) == Named::Gzip;
    let file = open(path, Links::Follow).with_context(|| path.display().to_string())?;
    let bytes_total = file.metadata()?.len();
    let mut desk = Desk::new(Sender::new(kafka)?);
    let mut reading = Reading::new(0, shown.to_string_lossy().into_owned(), gzip, None);
    reading.open(file);
    let started_at = now();
    let mut error = None;
    let mut ended = false;
    let mut heard = (Instant::now(), 0);
    let mut told = Instant::now();
    while !ended || !desk.sender.flight().is_empty() {
        let flight = desk.sender.flight();
        if ended || flight.is_full() || desk.sender.failed() || (reading.is_one_by_one() && reading.in_flight > 0) {
            desk.sender.wait();
        } else {
            match reading.step(&mut desk, true).with_context(|| path.display().to_string())? {
                Step::More => {}
                Step::Blocked => desk.sender.wait(),
                Step::End { .. } => ended = true,
                Step::Spoilt(reason) => (ended, error) = (true, Some(reason)),
                Step::Changed(why) => bail!("{}: {why}", path.display()),
            }
            desk.sender.poll();
        }
        while let Some(chunk) = desk.done() {
            reading.landed(chunk.mark);
        }
        if let Some(recovery) = desk.recover()? {
            tracing::warn!("Kafka did not take everything ({}): it is sent again", recovery.reason);
            thread::sleep(recovery.pause);
            for (chunk, code) in &recovery.refused {
                if let Err(reason) = reading.is_refused(chunk, *code) {
                    bail!("{}: {reason}", path.display());
                }
            }
            reading.rewind(false);
            reading.open(open(path, Links::Follow).with_context(|| path.display().to_string())?);
            (ended, error) = (false, None);
        }
        let flight = desk.sender.flight();
        if flight.acknowledged() != heard.1 || flight.records() == 0 {
            heard = (Instant::now(), flight.acknowledged());
        }
        if told.elapsed() > Duration::from_millis(100) || (ended && flight.is_empty()) {
            told = Instant::now();
            tell(Pace {
                bytes_done: reading.bytes_read(),
                bytes_total,
                accepted: reading.here.accepted,
                refused: reading.here.refused,
                in_flight: flight.records(),
                silence: heard.0.elapsed(),
            });
        }
    }
    let mut beyond: Mark = reading.here.clone();
    let (bytes, sha256) = loop {
        if let Some(whole) = reading.whole(&mut desk, &mut beyond)? {
            break whole;
        }
    };
    let mark = &reading.durable;
    Ok(Receipt {
        file: shown.to_string_lossy().into_owned(),
        event_type: reading.event_type().map(str::to_owned),
        rows: mark.accepted + mark.refused,
        accepted: mark.accepted,
        refused: mark.refused,
        bytes,
        sha256,
        started_at,
        finished_at: now(),
        rejected: None,
        error,
        unterminated_last_line: mark.is_inside_a_line(),
        left_in_place: false,
    })
}
