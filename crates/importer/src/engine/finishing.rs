//! The part of the engine that takes acknowledgements and finishes files whose rows are all acknowledged.
//! If a finish cannot be carried out (`done/` is not writable, for example), its record stays in
//! `progress/`, only its name is kept in memory, and it is retried after a pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    time::{Duration, Instant},
};

use super::{Engine, millis};
use crate::{
    backoff::Backoff,
    directory::{Directory, write_atomically},
    engine::active_file::Stage,
    finish::{
        blocked_files::BlockKind,
        completion::{self, FinishResult, Reserved, carry_out, carry_out_copied, plan, replan_and_carry_out},
        copier::{Copier, CopyJob},
        receipt::{Receipt, now},
    },
    metrics,
    progress::{FinishRecord, Progress, Record},
    read::source::{FileState, is_gone},
    send::sink::Chunk,
};

/// How often a file's progress is written, at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// How many finishes that cannot be carried out are remembered; further ones are found by listing.
const MAX_PENDING: usize = 10_000;

/// Finishes that could not be carried out yet.
#[derive(Default)]
pub(super) struct PendingFinishes {
    /// Names in `input/`, and why they failed.
    waiting: BTreeMap<OsString, String>,
    /// Names of files that are being copied to another file system.
    copied: BTreeSet<OsString>,
    /// Where the files of both kinds will go.
    reserved: Reserved,
    copier: Option<Copier>,
    backoff: Backoff,
}

impl PendingFinishes {
    pub(super) fn is_waiting(&self, name: &OsStr) -> bool {
        self.waiting.contains_key(name) || self.copied.contains(name)
    }

    /// How many files are being copied to another file system.
    pub(super) fn copies(&self) -> usize {
        self.copied.len()
    }

    /// A finish is no longer pending.
    fn remove(&mut self, name: &OsStr) {
        self.waiting.remove(name);
        self.reserved.remove(name);
        if self.waiting.is_empty() {
            self.backoff = Backoff::default();
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.backoff.due().filter(|_| !self.waiting.is_empty())
    }
}

impl Engine {
    /// Takes the chunks that Kafka has acknowledged.
    pub(super) fn take_acknowledgements(&mut self) {
        while let Some(Chunk { file: number, position, .. }) = self.sink.next_done() {
            let Some(file) = self.active.get_mut(&number) else { continue };
            metrics::acknowledged(&file.reader.acknowledged, &position);
            file.reader.acknowledge(position);
            let drained = file.reader.in_flight == 0;
            match file.stage {
                Stage::Draining if drained => self.finish(number),
                Stage::Failed if drained => self.give_up(number),
                _ if drained || file.written.elapsed() > PROGRESS_INTERVAL => self.write_progress(number),
                _ => {}
            }
        }
    }

    /// Writes how far a file is acknowledged.
    pub(super) fn write_progress(&mut self, number: u64) {
        let Some(file) = self.active.get_mut(&number) else { return };
        file.written = Instant::now();
        let progress = file.progress();
        let path = self.directory.progress_of(&file.name);
        let written = serde_json::to_vec(&progress).map_err(io::Error::from);
        self.report_io("progress", written.and_then(|json| write_atomically(&path, &json)));
    }

    /// Finishes a file all of whose rows are acknowledged.
    pub(super) fn finish(&mut self, number: u64) {
        let Some(file) = self.active.get_mut(&number) else { return };
        let Some(mut summary) = file.summary.clone() else { return };
        if !summary.gone {
            match file.is_unchanged() {
                Ok(Some(true)) => {}
                Ok(Some(false)) => {
                    file.rewind();
                    self.queue.push_back(number);
                    return;
                }
                // it was complete, and read to its end
                Ok(None) => summary.gone = true,
                Err(error) => {
                    self.blocked.report(&self.directory, &file.name, BlockKind::Failing, &error.to_string());
                    self.report_blocked();
                    return self.finish_later(number);
                }
            }
        }
        let acknowledged = &file.reader.acknowledged;
        summary.accepted = acknowledged.accepted;
        summary.refused = acknowledged.refused;
        summary.refused_bytes = acknowledged.refused_bytes;
        let progress = file.progress();
        let event_type = file.reader.event_type();
        // a receipt that says it is blocked would take its name
        self.blocked.clear(&self.directory, &file.name);
        let finished =
            plan(&self.directory, &self.pending.reserved, progress, event_type, file.stability.state, &summary, now());
        if let Err(error) = completion::write_record(&self.directory, &finished) {
            self.report_io("progress", Err(error));
            return self.finish_later(number);
        }
        let (name, elapsed) = (file.name.clone(), file.started.elapsed());
        self.report_io("progress", Ok(()));
        self.report_blocked();
        self.forget(number);
        log_finished(&finished, elapsed);
        self.finish_recorded(name, finished, |directory, _, finished| carry_out(directory, finished));
        self.scan.hint(self.waiting.is_empty());
    }

    fn finish_later(&mut self, number: u64) {
        if let Some(file) = self.active.get_mut(&number) {
            file.stage = Stage::Finishing;
            let due = file.finish_backoff.failed(Instant::now());
            self.timers.insert((due, number));
        }
    }

    /// Carries out a recorded finish by `step`. Returns whether it is no longer pending.
    fn finish_recorded(
        &mut self,
        name: OsString,
        mut finished: FinishRecord,
        mut step: impl FnMut(&Directory, &Reserved, &mut FinishRecord) -> io::Result<FinishResult>,
    ) -> bool {
        match step(&self.directory, &self.pending.reserved, &mut finished) {
            Ok(FinishResult::Finished) => {
                self.pending.remove(&name);
                true
            }
            Ok(FinishResult::NeedsCopy { from, copy, to }) => {
                if self.pending.waiting.len() >= MAX_PENDING && !self.pending.waiting.contains_key(&name) {
                    // its copy would fail like those of the others, and could not be remembered
                    return false;
                }
                let (state, links) = (finished.resume.state, self.settings.links());
                let Some(copier) = self.copier() else { return false };
                copier.copy(CopyJob { name: name.clone(), from, to: copy, state, links });
                // if it is pending already, it stays so until it is carried out
                self.pending.reserved.insert(name.clone(), to);
                self.pending.copied.insert(name);
                true
            }
            Ok(FinishResult::Changed) => {
                self.pending.remove(&name);
                self.waiting.push_front(name);
                true
            }
            Err(error) => {
                self.retry_later(name, &error);
                false
            }
        }
    }

    /// A finish cannot be carried out now.
    fn retry_later(&mut self, name: OsString, error: &io::Error) {
        if self.pending.waiting.len() < MAX_PENDING || self.pending.waiting.contains_key(&name) {
            if self.pending.backoff.due().is_none() {
                self.pending.backoff.failed(Instant::now());
            }
            if self.pending.waiting.insert(name.clone(), error.to_string()).is_none() {
                tracing::error!(file = &*name.to_string_lossy(), %error, "imported, but cannot be moved now");
            }
        } else {
            self.pending.reserved.remove(&name);
        }
        self.report_pending_finishes();
    }

    fn copier(&mut self) -> Option<&Copier> {
        if self.pending.copier.is_none() {
            match Copier::start(self.watcher.waker()) {
                Ok(copier) => self.pending.copier = Some(copier),
                Err(error) => tracing::error!(%error, "cannot start the thread that copies files"),
            }
        }
        self.pending.copier.as_ref()
    }

    /// Continues with files that have been copied to another file system.
    pub(super) fn take_finished_copies(&mut self) {
        while let Some((name, copied)) = self.pending.copier.as_ref().and_then(|copier| copier.done.try_recv().ok()) {
            self.pending.copied.remove(&name);
            let finished = match Record::read(&self.directory.progress_of(&name)) {
                Ok(Some(Record::Finishing(finished))) => finished,
                Ok(_) => {
                    self.pending.remove(&name);
                    continue;
                }
                Err(error) => {
                    self.retry_later(name, &error);
                    continue;
                }
            };
            let mut copied = Some(copied);
            if matches!(copied, Some(Err(_))) {
                // copying may have taken longer than the pause before the next retry
                self.pending.backoff.pause_again(Instant::now());
            }
            self.finish_recorded(name, *finished, |directory, reserved, finished| match copied.take() {
                Some(Err(error)) => Err(error),
                _ => carry_out_copied(directory, reserved, finished),
            });
            self.report_pending_finishes();
        }
    }

    /// Reports which finishes are pending, until none is.
    fn report_pending_finishes(&self) {
        match self.pending.waiting.first_key_value() {
            None => self.health.healthy("done"),
            Some((name, why)) => {
                let files = self.pending.waiting.len();
                self.health.unhealthy("done", format!("{files} imported files cannot be moved: {name:?}: {why}"));
            }
        }
    }

    /// Retries pending finishes that are due.
    pub(super) fn retry_finishes(&mut self, now: Instant) {
        if self.pending.due().is_none_or(|due| now < due) {
            return;
        }
        self.pending.backoff.failed(now);
        let PendingFinishes { waiting, copied, .. } = &self.pending;
        let names: Vec<_> = waiting.keys().filter(|name| !copied.contains(*name)).cloned().collect();
        for name in names {
            match Record::read(&self.directory.progress_of(&name)) {
                Ok(Some(Record::Finishing(finished))) => {
                    self.finish_recorded(name, *finished, replan_and_carry_out);
                }
                // somebody has removed its record: it is imported again if it still is in `input/`
                Ok(_) => self.pending.remove(&name),
                Err(error) => self.retry_later(name, &error),
            }
        }
        self.report_pending_finishes();
    }

    /// For a file of `input/` that has a finish record: how far it was read, if it was changed since.
    /// Otherwise the finish is carried out.
    pub(super) fn progress_if_changed(
        &mut self,
        name: &OsStr,
        finished: FinishRecord,
        state: FileState,
    ) -> Option<Progress> {
        let read = finished.resume.state;
        if state.identity != read.identity || state == read {
            // another file of this name must wait until this one is finished
            let ended = self.finish_recorded(name.to_owned(), finished, replan_and_carry_out);
            if ended {
                self.report_pending_finishes();
            }
            return None;
        }
        let mut progress = finished.resume.progress;
        if !self.directory.refused_of(name).exists() {
            // they have their final name: further ones go to another file
            progress.checkpoint.refused_bytes = 0;
        }
        Some(progress)
    }

    /// Finishes files that were wholly acknowledged when the previous process was killed, and those that
    /// have been deleted since.
    pub(super) fn finish_after_crash(&mut self) {
        let entries = std::fs::read_dir(&self.directory.progress);
        if let Err(error) = &entries {
            let error = format!("{}: {error}", self.directory.progress.display());
            self.report_io("progress", Err(io::Error::other(error)));
        }
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            let stored = match Record::read(&path) {
                Ok(stored) => stored,
                Err(error) => {
                    self.report_io("progress", Err(error));
                    continue;
                }
            };
            let Some(stored) = stored else {
                // a record truncated by a power failure
                self.report_io("progress", crate::directory::remove(&path));
                continue;
            };
            let name = stored.progress().name.to_os_string();
            match stored {
                Record::Finishing(finished) => {
                    let state = self.directory.input.join(&name).metadata().ok().map(|found| FileState::from(&found));
                    let is_changed = |state: FileState| {
                        state.identity == finished.resume.state.identity && state != finished.resume.state
                    };
                    if !state.is_some_and(is_changed)
                        && self.finish_recorded(name.clone(), *finished, replan_and_carry_out)
                    {
                        tracing::info!(file = &*name.to_string_lossy(), "imported before the restart, moved now");
                    }
                }
                Record::Reading(progress) => {
                    if is_gone(&self.directory.input.join(&name)) {
                        let finished = completion::plan_for_deleted(&self.directory, &self.pending.reserved, progress);
                        let written = completion::write_record(&self.directory, &finished);
                        if written.is_ok() {
                            log_finished(&finished, Duration::ZERO);
                            self.finish_recorded(name, finished, |directory, _, finished| {
                                carry_out(directory, finished)
                            });
                        }
                        self.report_io("progress", written);
                    }
                }
            }
        }
        self.report_pending_finishes();
    }
}

/// Logs the result of a file.
fn log_finished(finished: &FinishRecord, elapsed: Duration) {
    let Receipt { file, event_type, rows, accepted, refused, bytes, rejected, error, .. } = &finished.receipt;
    let (file, event_type, rejected) = (file.as_str(), event_type.as_deref(), rejected.as_deref());
    let elapsed_ms = millis(elapsed);
    let unterminated_last_line = finished.receipt.unterminated_last_line.then_some(true);
    match error {
        None => tracing::info!(
            file,
            event_type,
            bytes,
            rows,
            accepted,
            refused,
            rejected,
            unterminated_last_line,
            elapsed_ms,
            "finished"
        ),
        Some(error) => tracing::error!(
            file,
            error,
            event_type,
            bytes,
            rows,
            accepted,
            refused,
            rejected,
            elapsed_ms,
            "finished with an error"
        ),
    }
    metrics::finished(if finished.resume.to_rejected { "rejected" } else { "done" });
}
