//! Lists `input/`: regularly, and soon after a hint.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::ReadDir,
    io,
    path::Path,
    time::{Duration, Instant},
};

use crate::find::file_kind::{FileKind, file_kind};

/// How many names one listing returns at most.
const MAX_NAMES: usize = 10_000;
/// How many names of other kinds are remembered, so that each is reported once.
const MAX_OTHER_NAMES: usize = 1_000;
/// The shortest time between two listings.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The listings of `input/`.
#[derive(Debug)]
pub(crate) struct Scan {
    every: Duration,
    next: Instant,
    earliest: Instant,
    others: HashSet<OsString>,
    /// Where the last listing stopped at [`MAX_NAMES`]. The next one continues there, so that names which
    /// are listed every time do not starve the others.
    rest: Option<ReadDir>,
}

impl Scan {
    pub(crate) fn new(every: Duration) -> Scan {
        let now = Instant::now();
        Scan { every, next: now, earliest: now, others: HashSet::new(), rest: None }
    }

    /// If something may be new, the next listing comes soon.
    pub(crate) fn hint(&mut self, is_new: bool) {
        if is_new {
            self.next = self.next.min(self.earliest);
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// The sorted names of files to import, without those that are `known`.
    pub(crate) fn list(&mut self, input: &Path, known: impl Fn(&OsStr) -> bool) -> io::Result<Vec<OsString>> {
        let begun = Instant::now();
        self.next = begun + self.every;
        let mut names = Vec::new();
        let mut entries = match self.rest.take() {
            Some(rest) => rest,
            None => std::fs::read_dir(input)?,
        };
        while let Some(entry) = entries.next() {
            let name = entry?.file_name();
            match file_kind(&name) {
                FileKind::Csv | FileKind::Gzip if !known(&name) => names.push(name),
                FileKind::Other if !self.others.contains(&name) && self.others.len() < MAX_OTHER_NAMES => {
                    if !input.join(&name).is_dir() {
                        tracing::warn!(file = &*name.to_string_lossy(), "is neither .csv nor .csv.gz: ignored");
                    }
                    self.others.insert(name);
                }
                _ => {}
            }
            if names.len() >= MAX_NAMES {
                self.rest = Some(entries);
                break;
            }
        }
        names.sort_unstable();
        // listing a very large directory must not take all of the thread's time
        let took = begun.elapsed();
        self.earliest = begun + MIN_INTERVAL.max(took * 10);
        self.next = if self.rest.is_some() { self.earliest } else { begun + self.every.max(took * 10) };
        Ok(names)
    }
}
