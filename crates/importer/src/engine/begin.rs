//! The engine's part that finds files, begins them, and gives up on them for a while.

use std::{
    ffi::{OsStr, OsString},
    io,
    time::{Duration, Instant},
};

use super::{Engine, NAMES, RETRY};
use crate::{
    directory::{Directory, remove},
    figures,
    import::{Import, Stage},
    names::{Named, named},
    reading::Reading,
    receipt::{Stored, now},
    source::{is_gone, open},
    trouble::Kind,
};

/// How often to look whether another failing file may be tried: while one is, and while none is due.
const LOOK_WHILE_TRYING: Duration = Duration::from_millis(10);
const LOOK_WHILE_NONE_IS_DUE: Duration = Duration::from_millis(100);
/// How long a try may keep the next failing file waiting.
const LONGEST_TRY: Duration = Duration::from_secs(10);

impl Engine {
    /// Tries failing files again, one at a time and at most one a second that fails: what Kafka refuses
    /// of one costs all others their producer.
    pub(super) fn try_failing(&mut self, now: Instant) {
        if now < self.next_try || !self.troubles.any_failing() {
            return;
        }
        self.next_try = now + LOOK_WHILE_TRYING;
        if let Some((number, since)) = self.trying
            && self.imports.contains_key(&number)
            && now.duration_since(since) < LONGEST_TRY
        {
            return;
        }
        let skip = |name: &OsStr| self.numbers.contains_key(name) || self.ends.is_waiting(name);
        match self.troubles.next_failing(now, skip) {
            Some(name) => {
                self.begin(name);
                self.trying = Some((self.next_number, now));
            }
            None => self.next_try = now + LOOK_WHILE_NONE_IS_DUE,
        }
    }

    /// Takes up a file of `input/`.
    pub(super) fn begin(&mut self, name: OsString) {
        let is_known = self.numbers.contains_key(&name) || self.ends.is_waiting(&name);
        if is_known || !self.troubles.is_due(&name, Instant::now()) {
            return;
        }
        let path = self.directory.input.join(&name);
        let opened = open(&path, self.settings.links()).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let (kind, reason) = match path.symlink_metadata() {
                    Ok(_) if error.kind() == io::ErrorKind::NotFound => {
                        (Kind::Unreadable, "is a link to nowhere".into())
                    }
                    Ok(_) => (Kind::Unreadable, error.to_string()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                    // the directory cannot be searched, or the disk fails
                    Err(error) => (Kind::Failing, error.to_string()),
                };
                self.troubles.tell(&self.directory, &name, kind, &reason);
                self.report_failing();
                return;
            }
        };
        let refused_file = self.directory.refused_of(&name);
        let shown = name.to_string_lossy().into_owned();
        let gzip = named(&name) == Named::Gzip;
        self.next_number += 1;
        let number = self.next_number;
        let mut reading = Reading::new(number, shown, gzip, Some(refused_file.clone()));
        if self.troubles.is_failing(&name) {
            reading.be_careful();
        }
        let mut started_at = now();
        // a file in trouble is begun again and again
        let told = self.troubles.has(&name);
        let known = match Stored::read(&self.directory.progress_of(&name)) {
            Ok(Some(Stored::Finished(finished))) => {
                let Some(progress) = self.changed_since(&name, *finished, (&metadata).into()) else { return };
                Some(progress)
            }
            Ok(Some(Stored::Reading(progress))) => Some(progress),
            Ok(None) => None,
            // without it, everything would be sent again
            Err(error) => {
                let reason = format!("its record of progress cannot be read: {error}");
                self.troubles.tell(&self.directory, &name, Kind::Failing, &reason);
                self.report_failing();
                return;
            }
        };
        if let Some(progress) = known {
            let kept = std::fs::metadata(&refused_file).map_or(0, |metadata| metadata.len());
            if kept >= progress.refused_bytes {
                if !told {
                    tracing::info!("going on with {name:?} at line {}", progress.line + 1);
                }
                started_at = progress.started_at.clone();
                reading.go_on_from(progress);
            }
        } else if !told {
            // its size is told at the end: it may still be being written
            tracing::info!("importing {name:?}");
        }
        reading.open(file);
        self.imports
            .insert(number, Import::new(name.clone(), path, self.settings.links(), reading, &metadata, started_at));
        self.numbers.insert(name, number);
        self.queue.push_back(number);
    }

    /// The file is not what it was: what was read of it stays on the topic, and it is read again.
    pub(super) fn begin_anew(&mut self, number: u64, why: &str) {
        let Some(import) = self.imports.get(&number) else { return };
        let name = import.name.clone();
        tracing::warn!("{name:?} is imported again: {why}");
        let removed = remove(&self.directory.progress_of(&name)).and(remove(&self.directory.refused_of(&name)));
        if let Err(error) = removed {
            self.troubles.tell(&self.directory, &name, Kind::Failing, &error.to_string());
        }
        self.forget(number);
        self.waiting.push_front(name);
    }

    pub(super) fn forget(&mut self, number: u64) {
        if let Some(import) = self.imports.remove(&number) {
            self.numbers.remove(&import.name);
            self.stalled.remove(&number);
        }
    }

    /// Gives up on a file for now: what is acknowledged of it is kept, the rest is sent again when its
    /// turn comes again.
    pub(super) fn give_up(&mut self, number: u64) {
        let Some(import) = self.imports.get(&number) else { return };
        let (name, reason) = (import.name.clone(), import.failure.clone().unwrap_or_default());
        if import.reading.durable.byte > 0 {
            self.write_progress(number);
        }
        self.troubles.tell(&self.directory, &name, Kind::Failing, &reason);
        self.report_failing();
        self.forget(number);
        if self.trying.is_some_and(|(trying, _)| trying == number) {
            self.next_try = Instant::now() + RETRY;
        }
    }

    /// Says which files fail, until none does.
    pub(super) fn report_failing(&self) {
        match self.troubles.failing() {
            Some(why) => self.health.ill("files", why),
            None => self.health.well("files"),
        }
    }

    pub(super) fn look_for_files(&mut self) {
        let (numbers, ends, troubles, now) = (&self.numbers, &self.ends, &self.troubles, Instant::now());
        let known = |name: &OsStr| {
            let is_begun = numbers.contains_key(name) || ends.is_waiting(name);
            is_begun || troubles.is_failing(name) || !troubles.is_due(name, now)
        };
        match self.scan.list(&self.directory.input, known) {
            Ok(names) => {
                self.waiting = names.into();
                self.troubles.keep(&self.directory, |path| !is_gone(path));
                self.report_failing();
                self.note("input", Ok(()));
            }
            Err(error) => {
                self.note("input", Err(error));
                let _ = Directory::create(&self.settings.directory);
            }
        }
        figures::in_flight(self.desk.sender.flight().records(), self.imports.len());
    }

    /// The system told of a change.
    pub(super) fn changed(&mut self, name: OsString) {
        match self.numbers.get(&name) {
            Some(number) => {
                if let Some(import) = self.imports.get_mut(number)
                    && import.stage == Stage::Parked
                {
                    import.stage = Stage::Reading;
                    self.queue.push_back(*number);
                }
            }
            None if matches!(named(&name), Named::Csv | Named::Gzip) => {
                self.troubles.changed(&name, Instant::now());
                if self.waiting.len() < NAMES {
                    self.waiting.push_back(name);
                } else {
                    self.scan.hint(true);
                }
            }
            None => {}
        }
    }
}
