//! The engine's part that takes acknowledgements and ends files whose rows are all acknowledged. An
//! end that cannot be carried out (`done/` is not writable) is written down, and its file is no longer
//! held in memory: its turn comes again after a pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    time::{Duration, Instant},
};

use super::Engine;
use crate::{
    backoff::Backoff,
    desk::Chunk,
    directory::{Directory, write_atomically},
    figures,
    finish::{self, End, Reserved, complete, complete_again, complete_copied, decide},
    import::Stage,
    mover::{Copy, Mover},
    receipt::{Finished, Progress, Stored, name_to_hex, now},
    source::{FileState, is_gone},
    trouble::Kind,
};

/// How often a file's progress is written.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// How many ends are kept in mind that cannot be carried out; further ones are found by listing.
const MOST: usize = 10_000;

/// Ends that could not be carried out: names in `input/`, and why.
#[derive(Default)]
pub(super) struct Ends {
    waiting: BTreeMap<OsString, String>,
    /// Files that are being copied to another file system.
    copied: BTreeSet<OsString>,
    /// Where those of both kinds will go.
    reserved: Reserved,
    mover: Option<Mover>,
    backoff: Backoff,
}

impl Ends {
    pub(super) fn is_waiting(&self, name: &OsStr) -> bool {
        self.waiting.contains_key(name) || self.copied.contains(name)
    }

    /// How many files are being copied to another file system.
    pub(super) fn copies(&self) -> usize {
        self.copied.len()
    }

    /// An end is no longer in the way.
    fn ended(&mut self, name: &OsStr) {
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
    /// Takes what Kafka has acknowledged.
    pub(super) fn take_acknowledgements(&mut self) {
        while let Some(Chunk { file: number, mark, .. }) = self.desk.done() {
            let Some(import) = self.imports.get_mut(&number) else { continue };
            figures::acknowledged(&import.reading.durable, &mark);
            import.reading.landed(mark);
            let drained = import.reading.in_flight == 0;
            match import.stage {
                Stage::Draining if drained => self.finish(number),
                Stage::Failed if drained => self.give_up(number),
                _ if drained || import.written.elapsed() > WRITE_EVERY => self.write_progress(number),
                _ => {}
            }
        }
    }

    /// Writes how far a file is.
    pub(super) fn write_progress(&mut self, number: u64) {
        let Some(import) = self.imports.get_mut(&number) else { return };
        import.written = Instant::now();
        let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
        let path = self.directory.progress_of(&import.name);
        let written = serde_json::to_vec(&progress).map_err(io::Error::from);
        self.note("progress", written.and_then(|json| write_atomically(&path, &json)));
    }

    /// Ends a file, all of whose rows are acknowledged.
    pub(super) fn finish(&mut self, number: u64) {
        let Some(import) = self.imports.get_mut(&number) else { return };
        let Some(mut ending) = import.ending.clone() else { return };
        if !ending.gone {
            match import.is_unchanged() {
                Ok(Some(true)) => {}
                Ok(Some(false)) => {
                    import.rewind();
                    self.queue.push_back(number);
                    return;
                }
                // it was complete, and all of it was read
                Ok(None) => ending.gone = true,
                Err(error) => {
                    self.troubles.tell(&self.directory, &import.name, Kind::Failing, &error.to_string());
                    self.report_failing();
                    return self.finish_later(number);
                }
            }
        }
        let durable = &import.reading.durable;
        ending.accepted = durable.accepted;
        ending.refused = durable.refused;
        ending.refused_bytes = durable.refused_bytes;
        let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
        let event_type = import.reading.event_type();
        // its receipt would be in the way
        self.troubles.over(&self.directory, &import.name);
        let Some(finished) =
            decide(&self.directory, &self.ends.reserved, progress, event_type, import.quiet.state, &ending, now())
        else {
            return;
        };
        if let Err(error) = finish::begin(&self.directory, &finished) {
            self.note("progress", Err(error));
            return self.finish_later(number);
        }
        let (name, elapsed) = (import.name.clone(), import.started.elapsed());
        self.note("progress", Ok(()));
        self.report_failing();
        self.forget(number);
        tell(&finished, elapsed);
        self.end(name, finished, |directory, _, finished| complete(directory, finished));
        self.scan.hint(self.waiting.is_empty());
    }

    fn finish_later(&mut self, number: u64) {
        if let Some(import) = self.imports.get_mut(&number) {
            import.stage = Stage::Finishing;
            let due = import.ending_again.failed(Instant::now());
            self.timers.insert((due, number));
        }
    }

    /// Carries out an end that is written down; whether it is no longer in the way.
    fn end(
        &mut self,
        name: OsString,
        mut finished: Finished,
        mut complete: impl FnMut(&Directory, &Reserved, &mut Finished) -> io::Result<End>,
    ) -> bool {
        match complete(&self.directory, &self.ends.reserved, &mut finished) {
            Ok(End::Complete) => {
                self.ends.ended(&name);
                true
            }
            Ok(End::Elsewhere { from, copy, to }) => {
                if self.ends.waiting.len() >= MOST && !self.ends.waiting.contains_key(&name) {
                    // its copy would fail as those of the others, and not be remembered
                    return false;
                }
                let (state, links) = (finished.resume.state, self.settings.links());
                let Some(mover) = self.mover() else { return false };
                mover.copy(Copy { name: name.clone(), from, to: copy, state, links });
                // it may wait for another try, and does so until it is really complete
                self.ends.reserved.insert(name.clone(), to);
                self.ends.copied.insert(name);
                true
            }
            Ok(End::Changed) => {
                self.ends.ended(&name);
                self.waiting.push_front(name);
                true
            }
            Err(error) => {
                self.try_later(name, &error);
                false
            }
        }
    }

    /// An end cannot be carried out now.
    fn try_later(&mut self, name: OsString, error: &io::Error) {
        if self.ends.waiting.len() < MOST || self.ends.waiting.contains_key(&name) {
            if self.ends.backoff.due().is_none() {
                self.ends.backoff.failed(Instant::now());
            }
            if self.ends.waiting.insert(name.clone(), error.to_string()).is_none() {
                tracing::error!("{name:?} is imported, but cannot be moved now: {error}");
            }
        } else {
            self.ends.reserved.remove(&name);
        }
        self.report_ends();
    }

    fn mover(&mut self) -> Option<&Mover> {
        if self.ends.mover.is_none() {
            match Mover::start(self.alarm.bell()) {
                Ok(mover) => self.ends.mover = Some(mover),
                Err(error) => tracing::error!("starting a thread: {error}"),
            }
        }
        self.ends.mover.as_ref()
    }

    /// Goes on with files that were copied to another file system.
    pub(super) fn take_copies(&mut self) {
        while let Some((name, copied)) = self.ends.mover.as_ref().and_then(|mover| mover.done.try_recv().ok()) {
            self.ends.copied.remove(&name);
            let finished = match Stored::read(&self.directory.progress_of(&name)) {
                Ok(Some(Stored::Finished(finished))) => finished,
                Ok(_) => {
                    self.ends.ended(&name);
                    continue;
                }
                Err(error) => {
                    self.try_later(name, &error);
                    continue;
                }
            };
            let mut copied = Some(copied);
            if matches!(copied, Some(Err(_))) {
                // copying may have taken longer than the pause
                self.ends.backoff.pause_again(Instant::now());
            }
            self.end(name, *finished, |directory, reserved, finished| match copied.take() {
                Some(Err(error)) => Err(error),
                _ => complete_copied(directory, reserved, finished),
            });
            self.report_ends();
        }
    }

    /// Says what waits for `done/` or `rejected/`, until nothing does.
    fn report_ends(&self) {
        match self.ends.waiting.first_key_value() {
            None => self.health.well("done"),
            Some((name, why)) => {
                let files = self.ends.waiting.len();
                self.health.ill("done", format!("{files} imported files cannot be moved: {name:?}: {why}"));
            }
        }
    }

    /// Tries again to carry out ends, when their time has come.
    pub(super) fn try_ends_again(&mut self, now: Instant) {
        if self.ends.due().is_none_or(|due| now < due) {
            return;
        }
        self.ends.backoff.failed(now);
        let Ends { waiting, copied, .. } = &self.ends;
        let names: Vec<_> = waiting.keys().filter(|name| !copied.contains(*name)).cloned().collect();
        for name in names {
            match Stored::read(&self.directory.progress_of(&name)) {
                Ok(Some(Stored::Finished(finished))) => {
                    self.end(name, *finished, complete_again);
                }
                // somebody has taken its record away: it is imported again if it is there
                Ok(_) => self.ends.ended(&name),
                Err(error) => self.try_later(name, &error),
            }
        }
        self.report_ends();
    }

    /// A file of `input/` whose end was begun before: what was read of it, if it was changed since.
    /// If not, its end is carried out.
    pub(super) fn changed_since(&mut self, name: &OsStr, finished: Finished, state: FileState) -> Option<Progress> {
        let read = finished.resume.state;
        if state.identity != read.identity || state == read {
            // or it is another file, which must wait for the end of the one that had its name
            let ended = self.end(name.to_owned(), finished, complete_again);
            if ended {
                self.report_ends();
            }
            return None;
        }
        let mut progress = finished.resume.progress;
        if !self.directory.refused_of(name).exists() {
            // they have got their name: further ones go to another file
            progress.refused_bytes = 0;
        }
        Some(progress)
    }

    /// Ends files that were acknowledged whole when the last process was killed, and those that
    /// have gone since.
    pub(super) fn complete_what_a_crash_left(&mut self) {
        let entries = std::fs::read_dir(&self.directory.progress);
        if let Err(error) = &entries {
            let error = format!("{}: {error}", self.directory.progress.display());
            self.note("progress", Err(io::Error::other(error)));
        }
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            let stored = match Stored::read(&path) {
                Ok(stored) => stored,
                Err(error) => {
                    self.note("progress", Err(error));
                    continue;
                }
            };
            let Some((name, stored)) = stored.and_then(|stored| Some((stored.progress().name()?, stored))) else {
                // half a record of a power failure, or one of another version
                self.note("progress", crate::directory::remove(&path));
                continue;
            };
            match stored {
                Stored::Finished(finished) => {
                    let state = self.directory.input.join(&name).metadata().ok().map(|found| FileState::from(&found));
                    let is_changed = |state: FileState| {
                        state.identity == finished.resume.state.identity && state != finished.resume.state
                    };
                    if !state.is_some_and(is_changed) && self.end(name.clone(), *finished, complete_again) {
                        tracing::info!("{name:?} was imported before the restart");
                    }
                }
                Stored::Reading(progress) => {
                    if is_gone(&self.directory.input.join(&name))
                        && let Some(finished) = finish::gone(&self.directory, &self.ends.reserved, progress)
                    {
                        let begun = finish::begin(&self.directory, &finished);
                        if begun.is_ok() {
                            tell(&finished, Duration::ZERO);
                            self.end(name, finished, |directory, _, finished| complete(directory, finished));
                        }
                        self.note("progress", begun);
                    }
                }
            }
        }
        self.report_ends();
    }
}

/// Says how a file ended.
fn tell(finished: &Finished, elapsed: Duration) {
    let receipt = &finished.receipt;
    let see = receipt.rejected.as_ref().map_or(String::new(), |name| format!(" (see rejected/{name})"));
    let last = if receipt.unterminated_last_line { "; its last line has no line break" } else { "" };
    let rows = format!(
        "{} rows, {} accepted, {} refused{see} in {} ms{last}",
        receipt.rows,
        receipt.accepted,
        receipt.refused,
        elapsed.as_millis()
    );
    match &receipt.error {
        None => tracing::info!("finished {:?} ({}): {rows}", receipt.file, figures::size(receipt.bytes)),
        Some(error) => tracing::error!("{:?}: {error}; {rows}", receipt.file),
    }
    figures::finished(if finished.resume.to_rejected { "rejected" } else { "done" });
}
