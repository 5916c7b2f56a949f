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
    desk::{Desk, budget},
    figures,
    finish::Ending,
    mark::Mark,
    names::{Named, named},
    quiet::{Quiet, QuietTimes, Writers, writers},
    reading::{Reading, Step},
    source::{FileState, Identity, Links, open},
};

/// How long one file is worked on before the next one's turn.
const SLICE: Duration = Duration::from_millis(50);
/// How long a part of a file may wait for its acknowledgement before no more of it is sent.
const STALL: Duration = Duration::from_secs(1);
/// How many rows may be read beyond the first one that is not acknowledged: a crash repeats no more,
/// even where one partition is slower than the others.
const MOST_AHEAD: u64 = 60_000;
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In the queue of files to be read.
    Reading,
    /// Read to its end so far; looked at again when its time comes.
    Parked,
    /// Read to its end, waiting for acknowledgements.
    Draining,
    /// It cannot be read further, waiting for acknowledgements of what was.
    Failed,
    /// All is acknowledged; the record of its end could not be written yet.
    Finishing,
}

/// What a slice of work came to.
#[derive(Debug)]
pub(crate) enum Slice {
    /// There is more to do.
    More,
    /// Kafka takes no more of this file now.
    Wait,
    /// Kafka has taken nothing of this file for a while.
    Stalled,
    /// At its end, but not complete.
    Park,
    /// It won't get any longer; how it ended is in `ending`.
    Ended,
    /// It is another file now, or shorter: begin anew, for this reason.
    Anew(String),
}

/// A file on its way.
pub(crate) struct Import {
    pub(crate) name: OsString,
    path: PathBuf,
    links: Links,
    gzip: bool,
    pub(crate) reading: Reading,
    pub(crate) stage: Stage,
    pub(crate) quiet: Quiet,
    /// It was written to after a part of it was read. It may have been overwritten rather than
    /// appended to, so what was read is compared once the file is complete.
    compare: bool,
    /// What the file was like when it was found at fault before it was complete: its writer may still
    /// be at it, or come back to a packed file that breaks off.
    fault_seen: Option<FileState>,
    /// Set when reading has ended.
    pub(crate) ending: Option<Ending>,
    /// What is behind the place where reading ended, for the file's SHA-256.
    beyond: Option<Mark>,
    /// Why it cannot be read further now.
    pub(crate) failure: Option<String>,
    /// When to write the record of its end again.
    pub(crate) ending_again: Backoff,
    pub(crate) started_at: String,
    pub(crate) started: Instant,
    pub(crate) written: Instant,
    said: (Instant, u64),
}

impl Import {
    pub(crate) fn new(
        name: OsString,
        path: PathBuf,
        links: Links,
        reading: Reading,
        metadata: &Metadata,
        started_at: String,
    ) -> Import {
        let now = Instant::now();
        Import {
            gzip: named(&name) == Named::Gzip,
            name,
            path,
            links,
            reading,
            stage: Stage::Reading,
            quiet: Quiet::new(metadata.into(), now),
            compare: false,
            fault_seen: None,
            ending: None,
            beyond: None,
            failure: None,
            ending_again: Backoff::default(),
            started_at,
            started: now,
            written: now,
            said: (now, 0),
        }
    }

    /// Works on the file for a while. An error is the system's, and may pass.
    pub(crate) fn slice(&mut self, desk: &mut Desk, times: QuietTimes) -> io::Result<Slice> {
        if self.ending.is_some() {
            return self.read_whole(desk);
        }
        if let Some(seen) = self.fault_seen {
            if let Some(slice) = self.look()? {
                return Ok(slice);
            }
            // as long as it is what it was, reading it again tells nothing new
            let cut = self.gzip && self.quiet.state == seen;
            if self.reading.in_flight > 0 || !self.is_complete(cut, times)? {
                return Ok(Slice::Park);
            }
            self.fault_seen = None;
            self.reading.rewind(true);
        }
        if self.reading.source.is_none() {
            match self.reopen()? {
                None => {}
                Some(slice) => return Ok(slice),
            }
        }
        if self.gzip && self.reading.here.byte == 0 && self.reading.in_flight == 0 && !self.is_complete(false, times)? {
            self.reading.source = None;
            return Ok(Slice::Park);
        }
        let until = Instant::now() + SLICE;
        let mut last = self.gzip;
        while Instant::now() < until {
            if desk.sender.flight().is_full() {
                return Ok(self.stalled());
            }
            if let Some(slice) = self.wait_for_kafka(desk) {
                return Ok(slice);
            }
            let step = self.reading.step(desk, last)?;
            desk.sender.poll();
            match step {
                Step::More => {}
                Step::Blocked if desk.sender.failed() => return Ok(Slice::Wait),
                Step::Blocked => return Ok(self.stalled()),
                Step::Changed(why) => return Ok(Slice::Anew(why)),
                Step::Spoilt(error) => return self.at_fault(error, times),
                Step::End { .. } if self.reading.is_replaying() => {
                    return Ok(Slice::Anew("it is shorter than it was".into()));
                }
                Step::End { rest: false } if last => return Ok(self.end(None, false)),
                Step::End { rest } => match self.at_end(rest, times)? {
                    None => last = true,
                    Some(slice) => return Ok(slice),
                },
            }
        }
        self.say();
        Ok(Slice::More)
    }

    /// Whether nothing more of the file may be sent now. What waits for a partition that is offline
    /// must not take all the room there is, or no file could go on.
    fn wait_for_kafka(&mut self, desk: &mut Desk) -> Option<Slice> {
        let flight = desk.sender.flight();
        let number = self.reading.number();
        let left = budget(desk.sender.room(), flight.usage_of(number), desk.hold_back);
        let is_stalled = flight.waits_since(number).is_some_and(|since| since.elapsed() > STALL);
        desk.budget = left.max(1);
        if self.reading.in_flight == 0 {
            return None;
        }
        if is_stalled {
            return Some(self.stalled());
        }
        let is_ahead = self.reading.rows_ahead() >= MOST_AHEAD;
        (is_ahead || left == 0 || self.reading.is_one_by_one()).then_some(Slice::Wait)
    }

    /// It waits for Kafka, aside. A packed file stays open: it would have to be read from its beginning.
    fn stalled(&mut self) -> Slice {
        if !self.gzip {
            self.reading.source = None;
        }
        Slice::Stalled
    }

    /// At the end of what is there, with a last line without a line break or not: None when the
    /// file is complete.
    fn at_end(&mut self, rest: bool, times: QuietTimes) -> io::Result<Option<Slice>> {
        if let Some(slice) = self.look()? {
            return Ok(Some(slice));
        }
        if self.is_complete(rest || self.quiet.state.size == 0, times)? {
            if !self.compare {
                return Ok(None);
            }
            if self.reading.in_flight == 0 {
                self.compare = false;
                self.reading.rewind(true);
                return Ok(Some(Slice::More));
            }
        }
        self.reading.source = None;
        Ok(Some(Slice::Park))
    }

    /// The file cannot be read further. It may still be being written, and a packed one may have been
    /// cut by a pause of its writer.
    fn at_fault(&mut self, error: String, times: QuietTimes) -> io::Result<Slice> {
        if let Some(slice) = self.look()? {
            return Ok(slice);
        }
        if !self.is_complete(self.gzip, times)? {
            self.fault_seen = Some(self.quiet.state);
            self.reading.source = None;
            return Ok(Slice::Park);
        }
        Ok(self.end(Some(error), false))
    }

    /// Looks whether the file of our name is still the one that we read, and as long.
    fn look(&mut self) -> io::Result<Option<Slice>> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(self.gone("deleted"))),
            Err(error) => return Err(error),
        };
        if Identity::from(&metadata) != self.quiet.state.identity {
            return Ok(Some(self.gone("replaced by another file")));
        }
        if !self.gzip && metadata.len() < self.reading.here.byte {
            let (size, byte) = (metadata.len(), self.reading.here.byte);
            return Ok(Some(Slice::Anew(format!("it was cut to {size} bytes while being read, at byte {byte}"))));
        }
        self.observe(&metadata);
        Ok(None)
    }

    /// Whether the file is as it was.
    fn observe(&mut self, metadata: &Metadata) -> bool {
        let same = self.quiet.observe(metadata.into(), Instant::now());
        self.compare |= !same && self.reading.here.byte > 0;
        same
    }

    fn gone(&mut self, how: &str) -> Slice {
        let rows = self.reading.here.accepted;
        self.end(Some(format!("the file was {how} while being read; {rows} of its rows were imported")), true)
    }

    fn end(&mut self, error: Option<String>, gone: bool) -> Slice {
        self.ending =
            Some(Ending { error, gone, unterminated: self.reading.here.is_inside_a_line(), ..Ending::default() });
        self.beyond = Some(self.reading.here.clone());
        Slice::More
    }

    /// Reads the rest of the file for its SHA-256.
    fn read_whole(&mut self, desk: &mut Desk) -> io::Result<Slice> {
        let until = Instant::now() + SLICE;
        let (Some(ending), Some(beyond)) = (&mut self.ending, &mut self.beyond) else { return Ok(Slice::More) };
        while Instant::now() < until {
            if let Some(whole) = self.reading.whole(desk, beyond)? {
                ending.whole = whole;
                self.reading.source = None;
                self.beyond = None;
                return Ok(Slice::Ended);
            }
        }
        Ok(Slice::More)
    }

    /// Opens the file (again). A slice when it is not the same any more.
    fn reopen(&mut self) -> io::Result<Option<Slice>> {
        if let Some(slice) = self.look()? {
            return Ok(Some(slice));
        }
        let file = match open(&self.path, self.links) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(self.gone("deleted"))),
            Err(error) => return Err(error),
        };
        if Identity::from(&file.metadata()?) != self.quiet.state.identity {
            return Ok(Some(self.gone("replaced by another file")));
        }
        self.reading.open(file);
        if !self.reading.fits()? {
            return Ok(Some(Slice::Anew("it was overwritten while being read".into())));
        }
        Ok(None)
    }

    fn is_complete(&self, cut: bool, times: QuietTimes) -> io::Result<bool> {
        let reopened;
        let file = match &self.reading.source {
            Some(source) => source.file(),
            None => {
                reopened = open(&self.path, self.links)?;
                &reopened
            }
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        // the kernel is asked last: when it says that nobody writes, that is so
        Ok(self.quiet.is_complete(Writers::None, cut, times, now, clock)
            && self.quiet.is_complete(writers(file), cut, times, now, clock))
    }

    /// Whether the file is as it was when it was found to be complete. None when it has gone.
    pub(crate) fn is_unchanged(&mut self) -> io::Result<Option<bool>> {
        match fs::metadata(&self.path) {
            Ok(metadata) if Identity::from(&metadata) == self.quiet.state.identity => Ok(Some(self.observe(&metadata))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// It cannot be read further, for a reason that may pass.
    pub(crate) fn failed(&mut self, reason: String) {
        self.failure = Some(reason);
        self.reading.source = None;
        self.stage = Stage::Failed;
    }

    /// Back to what is acknowledged, to send the rest again.
    pub(crate) fn rewind(&mut self) {
        self.reading.rewind(false);
        self.ending = None;
        self.beyond = None;
        self.stage = Stage::Reading;
    }

    /// Tells of long files every few seconds.
    fn say(&mut self) {
        let (since, rows) = self.said;
        let elapsed = since.elapsed();
        if elapsed < SAY_EVERY {
            return;
        }
        let here = &self.reading.here;
        let all = here.accepted + here.refused;
        let (read, size) = (self.reading.bytes_read(), self.quiet.state.size.max(1));
        tracing::info!(
            "importing {:?}: {}% of {}, {:.0} rows/s",
            self.name,
            read.saturating_mul(100) / size,
            figures::size(size),
            all.saturating_sub(rows) as f64 / elapsed.as_secs_f64()
        );
        self.said = (Instant::now(), all);
    }
}
