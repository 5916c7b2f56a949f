//! A file of `input/` on its way, and its slice of work: read on, see whether it is complete.

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
    metrics,
    read::{
        file_reader::{FileReader, Step},
        position::Position,
        source::{FileState, Identity, Links, open},
    },
    send::sink::{Sink, budget},
};

/// How long one file is worked on before the next one's turn.
const SLICE_TIME: Duration = Duration::from_millis(50);
/// How long a part of a file may wait for its acknowledgement before no more of it is sent.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How many rows may be read beyond the first one that is not acknowledged: a crash repeats no more,
/// even where one partition is slower than the others.
const MAX_ROWS_AHEAD: u64 = 60_000;
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In the queue of files to be read.
    Reading,
    /// Read to its end so far; looked at again when its time comes.
    Idle,
    /// Read to its end, waiting for acknowledgements.
    Draining,
    /// It cannot be read further, waiting for acknowledgements of what was.
    Failed,
    /// All is acknowledged; the record of its end could not be written yet.
    Finishing,
}

/// What a slice of work came to.
#[derive(Debug)]
pub(crate) enum SliceResult {
    /// There is more to do.
    More,
    /// Kafka takes no more of this file now.
    WaitForKafka,
    /// Kafka has taken nothing of this file for a while.
    Stalled,
    /// At its end, but not complete.
    Idle,
    /// It won't get any longer; how it ended is in `summary`.
    Ended,
    /// It is another file now, or shorter: start again, for this reason.
    Restart(String),
}

/// A file on its way.
pub(crate) struct ActiveFile {
    pub(crate) name: OsString,
    path: PathBuf,
    links: Links,
    gzip: bool,
    pub(crate) reader: FileReader,
    pub(crate) stage: Stage,
    pub(crate) stability: Stability,
    /// It was written to after a part of it was read. It may have been overwritten rather than
    /// appended to, so what was read is compared once the file is complete.
    must_compare: bool,
    /// What the file was like when it was found at fault before it was complete: its writer may still
    /// be at it, or come back to a packed file that breaks off.
    corrupt_state: Option<FileState>,
    /// Set when reading has ended.
    pub(crate) summary: Option<FileSummary>,
    /// What is behind the place where reading ended, for the file's SHA-256.
    hash_position: Option<Position>,
    /// Why it cannot be read further now.
    pub(crate) failure: Option<String>,
    /// When to write the record of its end again.
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

    /// Works on the file for a while. An error is the system's, and may pass.
    pub(crate) fn run_slice(&mut self, sink: &mut Sink, times: QuietPeriods) -> io::Result<SliceResult> {
        if self.summary.is_some() {
            return self.read_whole(sink);
        }
        if let Some(seen) = self.corrupt_state {
            if let Some(slice) = self.check_identity()? {
                return Ok(slice);
            }
            // as long as it is what it was, reading it again tells nothing new
            let cut = self.gzip && self.stability.state == seen;
            if self.reader.in_flight > 0 || !self.is_complete(cut, times)? {
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

    /// Whether nothing more of the file may be sent now. What waits for a partition that is offline
    /// must not take all the room there is, or no file could go on.
    fn wait_for_kafka(&mut self, sink: &mut Sink) -> Option<SliceResult> {
        let flight = sink.producer.in_flight();
        let number = self.reader.number();
        let left = budget(sink.producer.room(), flight.usage_of(number), sink.hold_back);
        let is_stalled = flight.waiting_since(number).is_some_and(|since| since.elapsed() > STALL_TIMEOUT);
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

    /// It waits for Kafka, aside. A packed file stays open: it would have to be read from its beginning.
    fn stalled(&mut self) -> SliceResult {
        if !self.gzip {
            self.reader.source = None;
        }
        SliceResult::Stalled
    }

    /// At the end of what is there, with a last line without a line break or not: None when the
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

    /// The file cannot be read further. It may still be being written, and a packed one may have been
    /// cut by a pause of its writer.
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

    /// Looks whether the file of our name is still the one that we read, and as long.
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
                "it was cut to {size} bytes while being read, at byte {byte}"
            ))));
        }
        self.observe(&metadata);
        Ok(None)
    }

    /// Whether the file is as it was.
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

    /// Opens the file (again). A slice when it is not the same any more.
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
        let file = match &self.reader.source {
            Some(source) => source.file(),
            None => {
                reopened = open(&self.path, self.links)?;
                &reopened
            }
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        // the kernel is asked last: when it says that nobody writes, that is so
        Ok(self.stability.is_complete(Writers::None, cut, times, now, clock)
            && self.stability.is_complete(writers(file), cut, times, now, clock))
    }

    /// Whether the file is as it was when it was found to be complete. None when it has gone.
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

    /// It cannot be read further, for a reason that may pass.
    pub(crate) fn failed(&mut self, reason: String) {
        self.failure = Some(reason);
        self.reader.source = None;
        self.stage = Stage::Failed;
    }

    /// Back to what is acknowledged, to send the rest again.
    pub(crate) fn rewind(&mut self) {
        self.reader.rewind(false);
        self.summary = None;
        self.hash_position = None;
        self.stage = Stage::Reading;
    }

    /// Tells of long files every few seconds.
    fn log_progress(&mut self) {
        let (since, rows) = self.last_logged;
        let elapsed = since.elapsed();
        if elapsed < LOG_INTERVAL {
            return;
        }
        let here = &self.reader.position;
        let all = here.accepted + here.refused;
        let (read, size) = (self.reader.bytes_read(), self.stability.state.size.max(1));
        tracing::info!(
            "importing {:?}: {}% of {}, {:.0} rows/s",
            self.name,
            read.saturating_mul(100) / size,
            metrics::size(size),
            all.saturating_sub(rows) as f64 / elapsed.as_secs_f64()
        );
        self.last_logged = (Instant::now(), all);
    }
}
