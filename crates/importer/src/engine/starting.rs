//! The part of the engine that finds files, starts them, and gives up on them for a while.

use std::{
    ffi::{OsStr, OsString},
    io,
    time::{Duration, Instant},
};

use super::{Engine, MAX_HINTED_NAMES, RETRY_INTERVAL};
use crate::{
    directory::{Directory, remove},
    engine::active_file::{ActiveFile, Stage},
    find::file_kind::{FileKind, file_kind},
    finish::{blocked_files::BlockKind, receipt::now},
    metrics,
    progress::Record,
    read::{
        file_reader::FileReader,
        source::{is_gone, open},
    },
};

/// How often to check for the next failing file to retry: while one is being retried, and while none is
/// due.
const CHECK_WHILE_RETRYING: Duration = Duration::from_millis(10);
const CHECK_WHILE_NONE_IS_DUE: Duration = Duration::from_millis(100);
/// How long one retry may keep the next failing file waiting.
const MAX_RETRY_TIME: Duration = Duration::from_secs(10);

impl Engine {
    /// Retries failing files, one at a time and at most one a second: a record that Kafka refuses makes the
    /// producer fail for all other files too.
    pub(super) fn retry_blocked(&mut self, now: Instant) {
        if now < self.next_retry || !self.blocked.any_failing() {
            return;
        }
        self.next_retry = now + CHECK_WHILE_RETRYING;
        if let Some((number, since)) = self.retried
            && self.active.contains_key(&number)
            && now.duration_since(since) < MAX_RETRY_TIME
        {
            return;
        }
        let skip = |name: &OsStr| self.numbers.contains_key(name) || self.pending.is_waiting(name);
        match self.blocked.next_failing(now, skip) {
            Some(name) => {
                self.start(name);
                self.retried = Some((self.next_number, now));
            }
            None => self.next_retry = now + CHECK_WHILE_NONE_IS_DUE,
        }
    }

    /// Starts to import a file of `input/`.
    pub(super) fn start(&mut self, name: OsString) {
        let is_known = self.numbers.contains_key(&name) || self.pending.is_waiting(&name);
        if is_known || !self.blocked.is_due(&name, Instant::now()) {
            return;
        }
        let path = self.directory.input.join(&name);
        let opened = open(&path, self.settings.links()).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let (kind, reason) = match path.symlink_metadata() {
                    Ok(_) if error.kind() == io::ErrorKind::NotFound => {
                        (BlockKind::Unreadable, "is a broken symbolic link".into())
                    }
                    Ok(_) => (BlockKind::Unreadable, error.to_string()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                    // `input/` cannot be searched, or the disk fails
                    Err(error) => (BlockKind::Failing, error.to_string()),
                };
                self.blocked.report(&self.directory, &name, kind, &reason);
                self.report_blocked();
                return;
            }
        };
        let refused_file = self.directory.refused_of(&name);
        let shown = name.to_string_lossy().into_owned();
        let gzip = file_kind(&name) == FileKind::Gzip;
        self.next_number += 1;
        let number = self.next_number;
        let mut reader = FileReader::new(number, shown, gzip, Some(refused_file.clone()));
        if self.blocked.is_failing(&name) {
            reader.read_carefully();
        }
        let mut started_at = now();
        // a blocked file is started again and again, and logged once
        let is_blocked = self.blocked.contains(&name);
        let known = match Record::read(&self.directory.progress_of(&name)) {
            Ok(Some(Record::Finishing(finished))) => {
                let Some(progress) = self.progress_if_changed(&name, *finished, (&metadata).into()) else { return };
                Some(progress)
            }
            Ok(Some(Record::Reading(progress))) => Some(progress),
            Ok(None) => None,
            // ignoring it would send everything again
            Err(error) => {
                let reason = format!("its progress record cannot be read: {error}");
                self.blocked.report(&self.directory, &name, BlockKind::Failing, &reason);
                self.report_blocked();
                return;
            }
        };
        if let Some(progress) = known {
            let kept = std::fs::metadata(&refused_file).map_or(0, |metadata| metadata.len());
            if kept >= progress.checkpoint.refused_bytes {
                if !is_blocked {
                    let (line, byte) = (progress.checkpoint.line + 1, progress.checkpoint.byte);
                    tracing::info!(file = &*name.to_string_lossy(), line, byte, "resuming");
                }
                started_at = progress.started_at;
                reader.resume_from(progress.checkpoint);
            }
        } else if !is_blocked {
            // its size is logged when it is finished: it may still be being written
            tracing::info!(file = &*name.to_string_lossy(), "importing");
        }
        reader.open(file);
        self.active
            .insert(number, ActiveFile::new(name.clone(), path, self.settings.links(), reader, &metadata, started_at));
        self.numbers.insert(name, number);
        self.queue.push_back(number);
    }

    /// The file's content has changed: it is read again from its beginning. Rows that were sent stay on
    /// their topic.
    pub(super) fn restart(&mut self, number: u64, why: &str) {
        let Some(file) = self.active.get(&number) else { return };
        let name = file.name.clone();
        tracing::warn!(file = &*name.to_string_lossy(), reason = why, "importing again from the beginning");
        let removed = remove(&self.directory.progress_of(&name)).and(remove(&self.directory.refused_of(&name)));
        if let Err(error) = removed {
            self.blocked.report(&self.directory, &name, BlockKind::Failing, &error.to_string());
        }
        self.forget(number);
        self.waiting.push_front(name);
    }

    pub(super) fn forget(&mut self, number: u64) {
        if let Some(file) = self.active.remove(&number) {
            self.numbers.remove(&file.name);
            self.stalled.remove(&number);
        }
    }

    /// Gives up on a file for now: its progress is written, and it is retried later.
    pub(super) fn give_up(&mut self, number: u64) {
        let Some(file) = self.active.get(&number) else { return };
        let (name, reason) = (file.name.clone(), file.failure.clone().unwrap_or_default());
        if file.reader.acknowledged.byte > 0 {
            self.write_progress(number);
        }
        self.blocked.report(&self.directory, &name, BlockKind::Failing, &reason);
        self.report_blocked();
        self.forget(number);
        if self.retried.is_some_and(|(trying, _)| trying == number) {
            self.next_retry = Instant::now() + RETRY_INTERVAL;
        }
    }

    /// Reports which files fail, until none does.
    pub(super) fn report_blocked(&self) {
        match self.blocked.describe_failing() {
            Some(why) => self.health.unhealthy("files", why),
            None => self.health.healthy("files"),
        }
    }

    pub(super) fn list_input(&mut self) {
        let (numbers, ends, blocked, now) = (&self.numbers, &self.pending, &self.blocked, Instant::now());
        let known = |name: &OsStr| {
            let is_started = numbers.contains_key(name) || ends.is_waiting(name);
            is_started || blocked.is_failing(name) || !blocked.is_due(name, now)
        };
        match self.scan.list(&self.directory.input, known) {
            Ok(names) => {
                self.waiting = names.into();
                self.blocked.retain(&self.directory, |path| !is_gone(path));
                self.report_blocked();
                self.report_io("input", Ok(()));
            }
            Err(error) => {
                self.report_io("input", Err(error));
                let _ = Directory::create(&self.settings.directory);
            }
        }
        metrics::in_flight(self.sink.producer.in_flight().records(), self.active.len());
    }

    /// The watcher reported a change of this name.
    pub(super) fn changed(&mut self, name: OsString) {
        match self.numbers.get(&name) {
            Some(number) => {
                if let Some(file) = self.active.get_mut(number)
                    && file.stage == Stage::Idle
                {
                    file.stage = Stage::Reading;
                    self.queue.push_back(*number);
                }
            }
            None if matches!(file_kind(&name), FileKind::Csv | FileKind::Gzip) => {
                self.blocked.retry_soon(&name, Instant::now());
                if self.waiting.len() < MAX_HINTED_NAMES {
                    self.waiting.push_back(name);
                } else {
                    self.scan.hint(true);
                }
            }
            None => {}
        }
    }
}
