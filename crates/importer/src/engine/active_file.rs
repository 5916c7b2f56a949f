//! A file of `input/` that is being imported, and its slice of work: read on, check whether it is
//! complete.

use std::{
    ffi::OsString,
    fs::{self, Metadata},
    io,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    backoff::Backoff,
    find::file_kind::{FileKind, file_kind},
    finish::{
        completion::FileSummary,
        stability::{QuietPeriods, Stability, Writers, writers},
    },
    progress::Progress,
    read::{
        file_reader::{FileReader, Step},
        position::Position,
        source::{FileState, Identity, Links, Source, open},
    },
    send::sink::{Sink, budget},
};

/// How long one file is worked on before it is the next one's turn.
const SLICE_TIME: Duration = Duration::from_millis(50);
/// If a chunk waits for its acknowledgement for longer, no more of its file is sent.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How many rows may be read ahead of the first one that is not acknowledged: a crash repeats at most
/// these, even if one partition is slower than the others.
const MAX_ROWS_AHEAD: u64 = 60_000;
/// How often the progress of a long file is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// What a file is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In the queue of files to be read.
    Reading,
    /// Read to its current end, or stalled; looked at again when its timer is due.
    Idle,
    /// Read to its end, waiting for acknowledgements.
    Draining,
    /// It cannot be read further; waiting for acknowledgements of what was read.
    Failed,
    /// Every row is acknowledged; the finish record could not be written yet.
    Finishing,
}

/// The result of a slice of work.
#[derive(Debug)]
pub(crate) enum SliceResult {
    /// There is more to do.
    More,
    /// No more of this file may be sent now.
    WaitForKafka,
    /// Kafka has acknowledged nothing of this file for a while.
    Stalled,
    /// Read to its current end, but not complete.
    Idle,
    /// It is complete and read; `summary` is set.
    Ended,
    /// Its content has changed: it must be read from its beginning, for this reason.
    Restart(String),
}

/// A file that is being imported.
pub(crate) struct ActiveFile {
    pub(crate) name: OsString,
    path: PathBuf,
    links: Links,
    gzip: bool,
    pub(crate) reader: FileReader,
    pub(crate) stage: Stage,
    pub(crate) stability: Stability,
    /// It was written to after a part of it was read. That may have overwritten the part rather than
    /// appended to it, so the part is compared once the file is complete.
    must_compare: bool,
    /// The state in which the file was found corrupt before it was complete: it may still be being
    /// written, and a truncated packed file may be continued.
    corrupt_state: Option<FileState>,
    /// Set when the file has been read to its end.
    pub(crate) summary: Option<FileSummary>,
    /// How far the rest of the file is hashed after that.
    hash_position: Option<Position>,
    /// Why it cannot be read further for now.
    pub(crate) failure: Option<String>,
    /// When to try again to write the finish record.
    pub(crate) finish_backoff: Backoff,
    pub(crate) started_at: String,
    pub(crate) started: Instant,
    pub(crate) written: Instant,
    last_logged: (Instant, u64),
}

impl ActiveFile {
    pub(crate) fn new(
        name: OsString,
        path: PathBuf,
        links: Links,
        reader: FileReader,
        metadata: &Metadata,
        started_at: String,
    ) -> ActiveFile {
        let now = Instant::now();
        ActiveFile {
            gzip: file_kind(&name) == FileKind::Gzip,
            name,
            path,
            links,
            reader,
            stage: Stage::Reading,
            stability: Stability::new(metadata.into(), now),
            must_compare: false,
            corrupt_state: None,
            summary: None,
            hash_position: None,
            failure: None,
            finish_backoff: Backoff::default(),
            started_at,
            started: now,
            written: now,
            last_logged: (now, 0),
        }
    }

    /// Works on the file for a while. An error comes from the operating system and may be temporary.
    pub(crate) fn run_slice(&mut self, sink: &mut Sink, times: QuietPeriods) -> io::Result<SliceResult> {
        if self.summary.is_some() {
            return self.read_whole(sink);
        }
        if let Some(seen) = self.corrupt_state {
            if let Some(slice) = self.check_identity()? {
                return Ok(slice);
            }
            // reading it again gives the same result as long as it is unchanged
            let may_be_cut = self.gzip && self.stability.state == seen;
            if self.reader.in_flight > 0 || !self.is_complete(may_be_cut, times)? {
                return Ok(SliceResult::Idle);
            }
            self.corrupt_state = None;
            self.reader.rewind(true);
        }
        if self.reader.source.is_none() {
            match self.reopen()? {
                None => {}
                Some(slice) => return Ok(slice),
            }
        }
        if self.gzip
            && self.reader.position.byte == 0
            && self.reader.in_flight == 0
            && !self.is_complete(false, times)?
        {
            self.reader.source = None;
            return Ok(SliceResult::Idle);
        }
        let until = Instant::now() + SLICE_TIME;
        let mut last = self.gzip;
        while Instant::now() < until {
            if sink.producer.in_flight().is_full() {
                return Ok(self.stalled());
            }
            if let Some(slice) = self.wait_for_kafka(sink) {
                return Ok(slice);
            }
            let step = self.reader.step(sink, last)?;
            sink.producer.poll();
            match step {
                Step::More => {}
                Step::Blocked if sink.producer.failed() => return Ok(SliceResult::WaitForKafka),
                Step::Blocked => return Ok(self.stalled()),
                Step::Changed(why) => return Ok(SliceResult::Restart(why)),
                Step::Corrupt(error) => return self.corrupt(error, times),
                Step::End { .. } if self.reader.is_replaying() => {
                    return Ok(SliceResult::Restart("it is shorter than it was".into()));
                }
                Step::End { rest: false } if last => return Ok(self.end(None, false)),
                Step::End { rest } => match self.at_end(rest, times)? {
                    None => last = true,
                    Some(slice) => return Ok(slice),
                },
            }
        }
        self.log_progress();
        Ok(SliceResult::More)
    }

    /// Whether the file has to wait before more of it may be sent. Records for an offline partition must
    /// not take all the room there is, or no file could be imported.
    fn wait_for_kafka(&mut self, sink: &mut Sink) -> Option<SliceResult> {
        let flight = sink.producer.in_flight();
        let id = self.reader.id();
        let left = budget(sink.producer.room(), flight.usage_of(id), sink.hold_back);
        let is_stalled = flight.waiting_since(id).is_some_and(|since| since.elapsed() > STALL_TIMEOUT);
        sink.budget = left.max(1);
        if self.reader.in_flight == 0 {
            return None;
        }
        if is_stalled {
            return Some(self.stalled());
        }
        let is_ahead = self.reader.rows_ahead() >= MAX_ROWS_AHEAD;
        (is_ahead || left == 0 || self.reader.is_one_by_one()).then_some(SliceResult::WaitForKafka)
    }

    /// Waits for Kafka outside the queue. A packed file stays open, since reopening it would mean reading
    /// it from its beginning.
    fn stalled(&mut self) -> SliceResult {
        if !self.gzip {
            self.reader.source = None;
        }
        SliceResult::Stalled
    }

    /// At the current end of the file; `rest`: there is a last line without a line break. `None` if the
    /// file is complete.
    fn at_end(&mut self, rest: bool, times: QuietPeriods) -> io::Result<Option<SliceResult>> {
        if let Some(slice) = self.check_identity()? {
            return Ok(Some(slice));
        }
        if self.is_complete(rest || self.stability.state.size == 0, times)? {
            if !self.must_compare {
                return Ok(None);
            }
            if self.reader.in_flight == 0 {
                self.must_compare = false;
                self.reader.rewind(true);
                return Ok(Some(SliceResult::More));
            }
        }
        self.reader.source = None;
        Ok(Some(SliceResult::Idle))
    }

    /// The file is corrupt, unless it is still being written: a packed one may only be truncated by a
    /// pause of its writer.
    fn corrupt(&mut self, error: String, times: QuietPeriods) -> io::Result<SliceResult> {
        if let Some(slice) = self.check_identity()? {
            return Ok(slice);
        }
        if !self.is_complete(self.gzip, times)? {
            self.corrupt_state = Some(self.stability.state);
            self.reader.source = None;
            return Ok(SliceResult::Idle);
        }
        Ok(self.end(Some(error), false))
    }

    /// Whether the path still names the file that is being read, and it has not become shorter.
    fn check_identity(&mut self) -> io::Result<Option<SliceResult>> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(self.gone("deleted"))),
            Err(error) => return Err(error),
        };
        if Identity::from(&metadata) != self.stability.state.identity {
            return Ok(Some(self.gone("replaced by another file")));
        }
        if !self.gzip && metadata.len() < self.reader.position.byte {
            let (size, byte) = (metadata.len(), self.reader.position.byte);
            return Ok(Some(SliceResult::Restart(format!(
                "it was truncated to {size} bytes while being read, at byte {byte}"
            ))));
        }
        self.observe(&metadata);
        Ok(None)
    }

    /// Whether the file is unchanged since it was last looked at.
    fn observe(&mut self, metadata: &Metadata) -> bool {
        let same = self.stability.observe(metadata.into(), Instant::now());
        self.must_compare |= !same && self.reader.position.byte > 0;
        same
    }

    fn gone(&mut self, how: &str) -> SliceResult {
        let rows = self.reader.position.accepted;
        self.end(Some(format!("the file was {how} while being read; {rows} of its rows were imported")), true)
    }

    fn end(&mut self, error: Option<String>, gone: bool) -> SliceResult {
        self.summary = Some(FileSummary {
            error,
            gone,
            unterminated: self.reader.position.is_mid_line(),
            ..FileSummary::default()
        });
        self.hash_position = Some(self.reader.position.clone());
        SliceResult::More
    }

    /// Reads the rest of the file for its SHA-256.
    fn read_whole(&mut self, sink: &mut Sink) -> io::Result<SliceResult> {
        let until = Instant::now() + SLICE_TIME;
        let (Some(summary), Some(hash_position)) = (&mut self.summary, &mut self.hash_position) else {
            return Ok(SliceResult::More);
        };
        while Instant::now() < until {
            if let Some(whole) = self.reader.hash_rest(sink, hash_position)? {
                summary.whole = whole;
                self.reader.source = None;
                self.hash_position = None;
                return Ok(SliceResult::Ended);
            }
        }
        Ok(SliceResult::More)
    }

    /// Opens the file (again). A result if it is not the same any more.
    fn reopen(&mut self) -> io::Result<Option<SliceResult>> {
        if let Some(slice) = self.check_identity()? {
            return Ok(Some(slice));
        }
        let file = match open(&self.path, self.links) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(self.gone("deleted"))),
            Err(error) => return Err(error),
        };
        if Identity::from(&file.metadata()?) != self.stability.state.identity {
            return Ok(Some(self.gone("replaced by another file")));
        }
        self.reader.open(file);
        if !self.reader.matches_file()? {
            return Ok(Some(SliceResult::Restart("it was overwritten while being read".into())));
        }
        Ok(None)
    }

    fn is_complete(&self, cut: bool, times: QuietPeriods) -> io::Result<bool> {
        let reopened;
        let file = match self.reader.source.as_ref().and_then(Source::file) {
            Some(file) => file,
            None => {
                reopened = open(&self.path, self.links)?;
                &reopened
            }
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        // the kernel is asked last, since a writer may come until then
        Ok(self.stability.is_complete(Writers::None, cut, times, now, clock)
            && self.stability.is_complete(writers(file), cut, times, now, clock))
    }

    /// Whether the file is unchanged since it was found to be complete. `None` if it is gone.
    pub(crate) fn is_unchanged(&mut self) -> io::Result<Option<bool>> {
        match fs::metadata(&self.path) {
            Ok(metadata) if Identity::from(&metadata) == self.stability.state.identity => {
                Ok(Some(self.observe(&metadata)))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How far it is acknowledged.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(&self.name, self.reader.checkpoint(), self.started_at.clone())
    }

    /// It cannot be read further for now.
    pub(crate) fn failed(&mut self, reason: String) {
        self.failure = Some(reason);
        self.reader.source = None;
        self.stage = Stage::Failed;
    }

    /// Goes back to what is acknowledged, to send the rest again.
    pub(crate) fn rewind(&mut self) {
        self.reader.rewind(false);
        self.summary = None;
        self.hash_position = None;
        self.stage = Stage::Reading;
    }

    /// Logs the progress of long files every few seconds.
    fn log_progress(&mut self) {
        let (since, rows) = self.last_logged;
        let elapsed = since.elapsed();
        if elapsed < LOG_INTERVAL {
            return;
        }
        let position = &self.reader.position;
        let all_rows = position.accepted + position.refused;
        let (read, size) = (self.reader.bytes_read(), self.stability.state.size.max(1));
        tracing::info!(
            file = &*self.name.to_string_lossy(),
            percent = read.saturating_mul(100) / size,
            bytes = size,
            rows = all_rows,
            rows_per_second = (all_rows.saturating_sub(rows) as f64 / elapsed.as_secs_f64()) as u64,
            "still importing"
        );
        self.last_logged = (Instant::now(), all_rows);
    }
}
