//! Lists `input/`: every so often, and soon after a hint.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::ReadDir,
    io,
    path::Path,
    time::{Duration, Instant},
};

use crate::find::file_kind::{FileKind, file_kind};

/// How many names are taken at a time.
const MAX_NAMES: usize = 10_000;
/// How many names of other kinds are remembered, so that each is told of once.
const MAX_OTHER_NAMES: usize = 1_000;
/// The least time between two listings.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// When `input/` was listed and will be.
#[derive(Debug)]
pub(crate) struct Scan {
    every: Duration,
    next: Instant,
    earliest: Instant,
    others: HashSet<OsString>,
    /// Where the last listing stopped, when it had taken as many names as are taken at a time. The
    /// next one goes on there: names that come up every time must not keep others from their turn.
    rest: Option<ReadDir>,
}

impl Scan {
    pub(crate) fn new(every: Duration) -> Scan {
        let now = Instant::now();
        Scan { every, next: now, earliest: now, others: HashSet::new(), rest: None }
    }

    /// Something may be new: list soon.
    pub(crate) fn hint(&mut self, hint: bool) {
        if hint {
            self.next = self.next.min(self.earliest);
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// The names of files to import, in their order, without those that are `known`.
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
                        tracing::warn!("{name:?} in {} is neither .csv nor .csv.gz and is left alone", input.display());
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
        // a directory of very many files must not keep us busy with listing alone
        let took = begun.elapsed();
        self.earliest = begun + MIN_INTERVAL.max(took * 10);
        self.next = if self.rest.is_some() { self.earliest } else { begun + self.every.max(took * 10) };
        Ok(names)
    }
}
