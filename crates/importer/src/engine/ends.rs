//! The engine's part that takes acknowledgements and ends files whose rows are all acknowledged.

use std::{
    ffi::OsStr,
    io,
    time::{Duration, Instant},
};

use super::Engine;
use crate::{
    desk::Chunk,
    directory::write_atomically,
    figures,
    finish::{complete, complete_left, decide, decide_again, place},
    import::{Import, Stage},
    receipt::{name_to_hex, now},
};

/// How often a file's progress is written.
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// When moving a file is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Takes what Kafka has acknowledged.
    pub(super) fn take_acknowledgements(&mut self) {
        while let Some(Chunk { file: number, mark, .. }) = self.desk.done() {
            let Some(import) = self.imports.get_mut(&number) else { continue };
            figures::acknowledged(&import.reading.durable, &mark);
            import.reading.landed(mark);
            let drained = import.reading.in_flight == 0;
            if drained && import.stage == Stage::Draining {
                self.finish(number);
            } else if drained || import.written.elapsed() > WRITE_EVERY {
                import.written = Instant::now();
                let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
                let path = self.directory.progress_of(&import.name);
                let written = serde_json::to_vec(&progress).map_err(io::Error::from);
                self.well(written.and_then(|json| write_atomically(&path, &json)));
            }
        }
    }

    /// Ends a file, all of whose rows are acknowledged.
    pub(super) fn finish(&mut self, number: u64) {
        let Some(import) = self.imports.get_mut(&number) else { return };
        if let Some(decided) = &mut import.decided {
            decide_again(&self.directory, decided);
        } else {
            let Some(mut ending) = import.ending.clone() else { return };
            if !ending.gone {
                match import.is_unchanged() {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => {
                        // a packed file can't be gone on with at a byte: it is compared up to there
                        import.rewind();
                        self.queue.push_back(number);
                        return;
                    }
                    // it was complete, and all of it was read
                    Ok(None) => ending.gone = true,
                    Err(error) => return self.finish_later(number, Err(error)),
                }
            }
            let progress = import.reading.progress(&name_to_hex(&import.name), import.started_at.clone());
            let event_type = import.reading.event_type();
            // its receipt would be in the way
            self.troubles.over(&self.directory, &import.name);
            import.decided = decide(&self.directory, progress, event_type, import.identity, &ending, now());
        }
        let Some(decided) = &import.decided else { return };
        let done = self.slot.end(&self.directory, decided);
        if done.is_err() {
            // the slot is another file's next
            let path = self.directory.progress_of(&import.name);
            let kept = serde_json::to_vec(decided).map_err(io::Error::from);
            let kept = kept.and_then(|json| write_atomically(&path, &json));
            return self.finish_later(number, done.or(kept));
        }
        self.well(Ok(()));
        if let Some(import) = self.imports.get(&number) {
            tell(import);
            if let Some(finished) = import.decided.as_ref().and_then(|decided| decided.finished.as_ref())
                && let Some(place) = place(&self.directory, finished)
            {
                self.grown.note(place);
            }
        }
        self.forget(number);
        self.scan.hint(self.waiting.is_empty());
    }

    pub(super) fn finish_later(&mut self, number: u64, done: io::Result<()>) {
        self.well(done);
        if let Some(import) = self.imports.get_mut(&number) {
            import.stage = Stage::Finishing;
            self.timers.insert((Instant::now() + RETRY, number));
        }
    }

    /// Ends files that were acknowledged whole when the last process was killed, and those that
    /// have gone since.
    pub(super) fn complete_what_a_crash_left(&mut self) {
        if let Some(decided) = self.slot.left() {
            let left = complete(&self.directory, &decided).and_then(|()| self.slot.clear());
            match left {
                Ok(()) => tracing::info!("{:?} was imported before the restart", decided.file),
                Err(error) => tracing::error!("completing {:?}: {error}", decided.file),
            }
        }
        for entry in std::fs::read_dir(&self.directory.progress).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() == Some(OsStr::new("json"))
                && let Err(error) = complete_left(&self.directory, &path)
            {
                tracing::error!("completing {}: {error}", path.display());
            }
        }
    }
}

/// Says how a file ended.
fn tell(import: &Import) {
    let Some(finished) = import.decided.as_ref().and_then(|decided| decided.finished.as_ref()) else { return };
    let receipt = &finished.receipt;
    let see = receipt.rejected.as_ref().map_or(String::new(), |name| format!(" (see rejected/{name})"));
    let rows = format!(
        "{} rows, {} accepted, {} refused{see} in {} ms",
        receipt.rows,
        receipt.accepted,
        receipt.refused,
        import.started.elapsed().as_millis()
    );
    let last = if receipt.unterminated_last_line { "; its last line has no line break" } else { "" };
    match &receipt.error {
        None => tracing::info!("finished {:?} ({}): {rows}{last}", import.name, figures::size(receipt.bytes)),
        Some(error) => tracing::error!("{:?}: {error}; {rows}", import.name),
    }
    figures::finished(if finished.to_rejected { "rejected" } else { "done" });
}
