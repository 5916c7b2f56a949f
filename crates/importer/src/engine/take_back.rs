//! The part of the engine that moves a finished file that has grown back to `input/`. Its receipt becomes
//! a finish record again (see [`crate::finish::completion`]), and then the file is moved back. A crash in
//! between leaves the same as a crash while finishing, and is completed in the same way; the file's
//! growth is then noticed again, because the record is never newer than the file.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::Engine;
use crate::{
    directory::{Directory, names::receipt_name, remove, rename_within, temporary_of},
    finish::{completion::carry_out, late_growth::GrownFile},
    progress::{FinishRecord, Record},
    read::source::FileState,
};

impl Engine {
    /// Takes back files that have grown, to read on at the byte in their receipts.
    pub(super) fn take_back_grown(&mut self) {
        while let Ok(GrownFile { folder, name }) = self.late_growth.found.try_recv() {
            let back = self.directory.input.join(&name);
            let path = folder.join(&name);
            match back.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.cannot_take_back(path, &error);
                    continue;
                }
                // another file of that name comes first: this one will be reported again
                Ok(_) => continue,
            }
            if self.numbers.contains_key(&name) || self.pending.is_waiting(&name) {
                continue;
            }
            let receipt = folder.join(receipt_name(&name));
            let Some((mut finished, modified)) = record_to_resume(&folder, &name) else { continue };
            let moved = write_record(&self.directory, &finished, modified)
                .and_then(|()| remove(&receipt))
                .and_then(|()| rename_within(&path, &back));
            match moved {
                Ok(()) => {
                    let byte = finished.receipt.bytes;
                    tracing::info!(
                        file = &*path.to_string_lossy(),
                        byte,
                        "has grown since it was finished: reading on"
                    );
                    self.not_taken_back.remove(&path);
                    self.waiting.push_front(name);
                }
                Err(error) => {
                    self.cannot_take_back(path.clone(), &error);
                    if self.directory.progress_of(&name).exists()
                        && let Err(error) = carry_out(&self.directory, &mut finished)
                    {
                        tracing::error!(file = &*path.to_string_lossy(), %error, "cannot restore the receipt");
                    }
                }
            }
        }
    }

    /// Logs it once.
    fn cannot_take_back(&mut self, path: PathBuf, error: &io::Error) {
        let shown = path.to_string_lossy().into_owned();
        if self.not_taken_back.len() < 10_000 && self.not_taken_back.insert(path) {
            tracing::error!(
                file = shown,
                %error,
                "was written to after it was finished, and cannot be moved back to input/: move it there when it is \
                 complete"
            );
        }
    }
}

/// The record to be written for a grown file of `folder`, and the file's modification time.
fn record_to_resume(folder: &Path, name: &OsStr) -> Option<(FinishRecord, SystemTime)> {
    let receipt_name = receipt_name(name);
    let Ok(Some(Record::Finishing(mut finished))) = Record::read(&folder.join(&receipt_name)) else { return None };
    let found = folder.join(name).metadata().ok()?;
    let resume = &mut finished.resume;
    resume.progress.name = name.into();
    resume.progress.file = name.to_string_lossy().into_owned();
    resume.target = Some(name.into());
    resume.receipt_target = receipt_name.into();
    resume.state.identity = FileState::from(&found).identity;
    // its refused rows have their final name: further ones go to another file
    (resume.refused_target, resume.refused_bytes) = (None, 0);
    Some((*finished, found.modified().ok()?))
}

/// Writes the record with the modification time of the file. If the move fails, or the process is killed
/// before it, the record becomes the receipt again: if that were newer than the file, the appended rows
/// would not be noticed again.
fn write_record(directory: &Directory, finished: &FinishRecord, modified: SystemTime) -> io::Result<()> {
    let path = directory.progress_of(&finished.resume.progress.name);
    let temporary = temporary_of(&path);
    let mut file = File::create(&temporary)?;
    file.write_all(&finished.text()?)?;
    file.set_modified(modified)?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{
        finish::{
            completion::{FileSummary, Reserved, plan, replan_and_carry_out, write_record as write_finish_record},
            late_growth::GrowthScanner,
        },
        progress::Progress,
        read::{position::Position, source::WholeFile},
    };

    const NAME: &str = "a.csv";

    /// How often the file in `done/` is reported as grown.
    fn reported(directory: &Directory) -> usize {
        let found = Cell::new(0);
        assert!(GrowthScanner::default().scan(&directory.done, false, |_| {
            found.set(found.get() + 1);
            true
        }));
        found.get()
    }

    /// A finished file that has grown since, `age` ago by its modification time.
    fn grown(directory: &Directory, age: Duration) {
        let (name, content) = (OsStr::new(NAME), "the file\n");
        fs::write(directory.input.join(name), content).expect("written");
        let mut position = Position::default();
        position.advance(content.as_bytes());
        let progress = Progress::new(name, (&position).into(), "then".into());
        let state = FileState::from(&directory.input.join(name).metadata().expect("the file"));
        let whole = WholeFile { bytes: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) };
        let summary = FileSummary { accepted: 1, whole, ..FileSummary::default() };
        let reserved = Reserved::default();
        let mut finished = plan(directory, &reserved, progress, Some("stock"), state, &summary, "now".into());
        write_finish_record(directory, &finished).expect("written");
        carry_out(directory, &mut finished).expect("completed");
        assert_eq!(reported(directory), 0);
        std::thread::sleep(Duration::from_millis(20));
        let mut file = File::options().append(true).open(directory.done.join(name)).expect("the file");
        file.write_all(b"more\n").expect("written");
        file.set_modified(SystemTime::now() - age).expect("its time");
        assert_eq!(reported(directory), 1);
        std::thread::sleep(Duration::from_millis(20));
    }

    #[test]
    fn a_grown_file_is_found_again_when_the_process_is_killed_before_it_is_moved_back() {
        for age in [Duration::ZERO, Duration::from_secs(3_600)] {
            for removed in [false, true] {
                let root = tempfile::tempdir().expect("a directory");
                let directory = Directory::create(root.path()).expect("its folders");
                grown(&directory, age);
                let name = OsStr::new(NAME);
                let (finished, modified) = record_to_resume(&directory.done, name).expect("a record");
                write_record(&directory, &finished, modified).expect("written");
                if removed {
                    remove(&directory.done.join(receipt_name(name))).expect("removed");
                }
                // killed here: the next process finds the record
                let Ok(Some(Record::Finishing(mut left))) = Record::read(&directory.progress_of(name)) else {
                    panic!("no record");
                };
                replan_and_carry_out(&directory, &Reserved::default(), &mut left).expect("completed");
                assert!(!directory.progress_of(name).exists());
                assert_eq!(reported(&directory), 1, "age {age:?}, receipt removed: {removed}");
            }
        }
    }
}
