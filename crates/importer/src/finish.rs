//! The end of a file: each step is done whole or not at all, and what a crash leaves is completed
//! at the next start, without sending anything again.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use crate::{
    directory::{Directory, remove, rename, temporary_of, write_atomically},
    grown::Place,
    names::{free_name, receipt_name, rejected_name},
    receipt::{Finished, Progress, Receipt, name_from_hex, name_to_hex},
    source::Identity,
};

/// How a file ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// What was wrong with the file as a whole.
    pub(crate) error: Option<String>,
    /// Whether it is no longer in `input/`, or another one is.
    pub(crate) gone: bool,
    /// Whether the last line that was read has no line break.
    pub(crate) unterminated: bool,
    /// Its size and SHA-256.
    pub(crate) whole: (u64, String),
}

/// Decides where everything goes: the record that makes the end restartable.
pub(crate) fn decide(
    directory: &Directory,
    progress: Progress,
    event_type: Option<&str>,
    identity: Identity,
    ending: &Ending,
    now: String,
) -> Option<Progress> {
    let name = progress.name()?;
    let to_rejected = ending.error.is_some() && !ending.gone;
    let folder = if to_rejected { &directory.rejected } else { &directory.done };
    let target = free_name(folder, &name);
    let refused_target =
        (progress.refused_bytes > 0).then(|| name_of_refused(directory, &name, to_rejected.then_some(&target)));
    let receipt = Receipt {
        file: progress.file.clone(),
        event_type: event_type.map(str::to_owned),
        rows: progress.accepted + progress.refused,
        accepted: progress.accepted,
        refused: progress.refused,
        bytes: ending.whole.0,
        sha256: ending.whole.1.clone(),
        started_at: progress.started_at.clone(),
        finished_at: now,
        rejected: refused_target.as_ref().map(|name| name.to_string_lossy().into_owned()),
        error: ending.error.clone(),
        unterminated_last_line: ending.unterminated,
        left_in_place: false,
    };
    let finished = Finished {
        receipt,
        to_rejected,
        receipt_target: name_to_hex(&receipt_name(&target)),
        target: (!ending.gone).then(|| name_to_hex(&target)),
        refused_target: refused_target.map(|name| name_to_hex(&name)),
        device: identity.device,
        inode: identity.inode,
    };
    Some(Progress { finished: Some(finished), ..progress })
}

/// A free name for the refused rows of the file `name`, which itself goes to `rejected/` as `whole`
/// or not there.
fn name_of_refused(directory: &Directory, name: &OsStr, whole: Option<&OsString>) -> OsString {
    let mut wanted = rejected_name(name);
    if Some(&wanted) == whole {
        // cannot be told apart from the file itself
        wanted = OsString::from(format!("rows-of-{}", wanted.display()));
    }
    free_name(&directory.rejected, &wanted)
}

/// Decides again where everything goes that has not gone there yet, after an end that could not be
/// carried out: other files may have taken the names since.
pub(crate) fn decide_again(directory: &Directory, decided: &mut Progress) {
    let Some(name) = decided.name() else { return };
    let Some(finished) = &mut decided.finished else { return };
    let folder = if finished.to_rejected { &directory.rejected } else { &directory.done };
    let is_there = |folder: &Path, name: &str| folder.join(name_from_hex(name)).symlink_metadata().is_ok();
    let is_here = is_that_file(&directory.input.join(&name), finished);
    let is_taken = match &finished.target {
        Some(target) if is_here => is_there(folder, target) || is_there(folder, &finished.receipt_target),
        // it was moved there, or has gone since; on another file system it has another identity
        Some(target) => fs::metadata(folder.join(name_from_hex(target)))
            .is_ok_and(|found| found.dev() == finished.device && Identity::from(&found) != identity(finished)),
        None => is_there(folder, &finished.receipt_target),
    };
    if is_taken {
        let target = free_name(folder, &name);
        finished.receipt_target = name_to_hex(&receipt_name(&target));
        finished.target = finished.target.is_some().then(|| name_to_hex(&target));
    }
    if let Some(target) = &finished.refused_target
        && directory.refused_of(&name).exists()
        && is_there(&directory.rejected, target)
    {
        let whole = finished.target.as_deref().filter(|_| finished.to_rejected).map(name_from_hex);
        let target = name_of_refused(directory, &name, whole.as_ref());
        finished.receipt.rejected = Some(target.to_string_lossy().into_owned());
        finished.refused_target = Some(name_to_hex(&target));
    }
}

/// The file that is being ended right now: `progress/ending`. One record is written over the other,
/// since making and removing a file for each makes ext4 slow: it does not use an inode again for
/// some seconds, and searches ever longer for one it may use.
pub(crate) struct Slot {
    file: File,
}

impl Slot {
    pub(crate) fn open(directory: &Directory) -> io::Result<Slot> {
        let path = directory.progress.join("ending");
        Ok(Slot { file: File::options().create(true).read(true).write(true).truncate(false).open(path)? })
    }

    /// Whether the directory is ours: two importers at work on one would send every row twice.
    /// Where files can't be locked, it is taken to be.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self.file.try_lock(), Err(fs::TryLockError::WouldBlock))
    }

    /// The file that was being ended when the last process was killed.
    pub(crate) fn left(&self) -> Option<Progress> {
        let mut bytes = vec![0; self.file.metadata().ok()?.len().min(1 << 20) as usize];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        // an older record may be longer: its end stands behind
        serde_json::Deserializer::from_slice(&bytes).into_iter().next()?.ok()
    }

    /// Ends a file as decided.
    pub(crate) fn end(&self, directory: &Directory, decided: &Progress) -> io::Result<()> {
        self.file.write_all_at(&serde_json::to_vec(decided)?, 0)?;
        complete(directory, decided)?;
        self.clear()
    }

    /// Nothing is being ended.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.write_all_at(b"-", 0)
    }
}

/// Does what the record says, as far as it is not done yet.
pub(crate) fn complete(directory: &Directory, progress: &Progress) -> io::Result<()> {
    let (Some(finished), Some(name)) = (&progress.finished, progress.name()) else { return Ok(()) };
    let refused = directory.refused_of(&name);
    match &finished.refused_target {
        Some(target) if refused.exists() => {
            File::options().write(true).open(&refused)?.set_len(progress.refused_bytes)?;
            rename(&refused, &directory.rejected.join(name_from_hex(target)))?;
        }
        Some(_) => {}
        None => remove(&refused)?,
    }
    let folder = if finished.to_rejected { &directory.rejected } else { &directory.done };
    if let Some(target) = &finished.target {
        let (from, to) = (directory.input.join(&name), folder.join(name_from_hex(target)));
        if to.symlink_metadata().is_err() && is_that_file(&from, finished) {
            rename(&from, &to)?;
        }
    }
    // the file that told of the progress becomes the receipt: again one inode less
    let receipt = folder.join(name_from_hex(&finished.receipt_target));
    let temporary = temporary_of(&receipt);
    match rename(&directory.progress_of(&name), &temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create(&temporary)?.write_all(&finished.receipt.text()?)?;
    fs::rename(&temporary, &receipt)
}

/// Where a file is that was ended so.
pub(crate) fn place(directory: &Directory, finished: &Finished) -> Option<Place> {
    let folder = if finished.to_rejected { &directory.rejected } else { &directory.done };
    let path = folder.join(name_from_hex(finished.target.as_ref()?));
    Some(Place { path, identity: identity(finished), bytes: finished.receipt.bytes })
}

fn identity(finished: &Finished) -> Identity {
    Identity { device: finished.device, inode: finished.inode }
}

fn is_that_file(path: &Path, finished: &Finished) -> bool {
    fs::metadata(path).is_ok_and(|metadata| Identity::from(&metadata) == identity(finished))
}

/// Completes what the record at `path` says when it is of a finished file, or of one that has gone
/// since. Other files are gone on with.
pub(crate) fn complete_left(directory: &Directory, path: &Path) -> io::Result<()> {
    let Some(progress) = Progress::read(path) else { return remove(path) };
    let Some(name) = progress.name() else { return remove(path) };
    if progress.finished.is_some() {
        tracing::info!("completing {name:?}, which was imported before the restart");
        let mut decided = progress.clone();
        decide_again(directory, &mut decided);
        if decided != progress {
            write_atomically(path, &serde_json::to_vec(&decided)?)?;
        }
        return complete(directory, &decided);
    }
    if directory.input.join(&name).symlink_metadata().is_ok() {
        return Ok(());
    }
    let error = format!("the file was deleted while being read; {} of its rows were imported", progress.accepted);
    tracing::warn!("{name:?}: {error}");
    let ending =
        Ending { error: Some(error), gone: true, unterminated: false, whole: (progress.byte, progress.sha256.clone()) };
    match decide(directory, progress, None, Identity { device: 0, inode: 0 }, &ending, crate::receipt::now()) {
        Some(decided) => complete(directory, &decided),
        None => remove(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files and what is in them.
    fn everything(root: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for folder in ["done", "input", "progress", "rejected"] {
            for entry in fs::read_dir(root.join(folder)).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.file_name() != Some(OsStr::new("ending")) {
                    let name = path.strip_prefix(root).expect("below the root").display().to_string();
                    found.push((name, fs::read_to_string(&path).expect("a text")));
                }
            }
        }
        found.sort();
        found
    }

    fn text(receipt: &Receipt) -> String {
        String::from_utf8(receipt.text().expect("JSON")).expect("a text")
    }

    fn decided(directory: &Directory) -> Progress {
        let name = OsStr::new("a.csv");
        fs::write(directory.input.join(name), "the file").expect("written");
        // the last process sent more than was acknowledged, and was killed
        fs::write(directory.refused_of(name), "refused rows, and more").expect("written");
        fs::write(directory.progress_of(name), "progress").expect("written");
        let progress = Progress {
            file: "a.csv".into(),
            name: name_to_hex(name),
            byte: 8,
            line: 3,
            inside_long_line: false,
            accepted: 1,
            refused: 1,
            refused_bytes: 12,
            sha256: "5a".into(),
            started_at: "then".into(),
            finished: None,
        };
        let identity = Identity::from(&fs::metadata(directory.input.join(name)).expect("the file"));
        let ending = Ending { error: None, gone: false, unterminated: false, whole: (8, "5a".into()) };
        decide(directory, progress, Some("stock"), identity, &ending, "now".into()).expect("decided")
    }

    #[test]
    fn a_name_that_another_file_took_before_the_end_could_be_carried_out_is_left_to_it() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::create(root.path()).expect("its folders");
        let mut late = decided(&directory);
        for name in ["done/a.csv", "done/a.csv.receipt.json", "rejected/a.csv"] {
            fs::write(root.path().join(name), "another's").expect("written");
        }
        decide_again(&directory, &mut late);
        complete(&directory, &late).expect("completed");
        let receipt = late.finished.expect("finished").receipt;
        assert_eq!(receipt.rejected.as_deref(), Some("a-2.csv"));
        let mut expected = vec![
            ("done/a-2.csv".to_owned(), "the file".to_owned()),
            ("done/a-2.csv.receipt.json".into(), text(&receipt)),
            ("rejected/a-2.csv".into(), "refused rows".into()),
        ];
        for name in ["done/a.csv", "done/a.csv.receipt.json", "rejected/a.csv"] {
            expected.push((name.into(), "another's".into()));
        }
        expected.sort();
        assert_eq!(everything(root.path()), expected);
    }

    #[test]
    fn an_end_that_was_carried_out_in_part_keeps_the_names_that_are_its_own() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::create(root.path()).expect("its folders");
        let first = decided(&directory);
        let mut again = first.clone();
        fs::rename(directory.refused_of(OsStr::new("a.csv")), directory.rejected.join("a.csv")).expect("renamed");
        decide_again(&directory, &mut again);
        assert_eq!(again, first);
        fs::rename(directory.input.join("a.csv"), directory.done.join("a.csv")).expect("renamed");
        fs::write(directory.input.join("a.csv"), "the next file").expect("written");
        decide_again(&directory, &mut again);
        assert_eq!(again, first);
    }

    #[test]
    fn an_end_that_was_cut_short_anywhere_is_completed_and_a_new_file_of_that_name_is_left_alone() {
        let steps: [fn(&Directory); 4] = [
            |at| fs::rename(at.refused_of(OsStr::new("a.csv")), at.rejected.join("a.csv")).expect("renamed"),
            |at| {
                fs::rename(at.input.join("a.csv"), at.done.join("a.csv")).expect("renamed");
                fs::write(at.input.join("a.csv"), "the next file").expect("written");
            },
            |at| {
                let receipt = temporary_of(&at.done.join("a.csv.receipt.json"));
                fs::rename(at.progress_of(OsStr::new("a.csv")), receipt).expect("renamed");
            },
            |at| {
                let receipt = at.done.join("a.csv.receipt.json");
                fs::rename(temporary_of(&receipt), &receipt).expect("renamed");
            },
        ];
        for cut in 0..=steps.len() {
            let root = tempfile::tempdir().expect("a directory");
            let directory = Directory::create(root.path()).expect("its folders");
            let decided = decided(&directory);
            let slot = Slot::open(&directory).expect("the slot");
            slot.file.write_all_at(&serde_json::to_vec(&decided).expect("JSON"), 0).expect("written");
            if cut > 0 {
                // renaming follows cutting off what was not acknowledged
                let refused = directory.refused_of(OsStr::new("a.csv"));
                File::options().write(true).open(refused).expect("a file").set_len(12).expect("cut");
            }
            steps[..cut].iter().for_each(|step| step(&directory));

            let left = Slot::open(&directory).expect("the slot").left().expect("what was being ended");
            assert_eq!(left, decided);
            complete(&directory, &left).expect("completed");
            slot.clear().expect("cleared");
            assert_eq!(slot.left(), None);

            let receipt = text(&decided.finished.expect("finished").receipt);
            let mut expected = vec![
                ("done/a.csv".to_owned(), "the file".to_owned()),
                ("done/a.csv.receipt.json".into(), receipt),
                ("rejected/a.csv".into(), "refused rows".into()),
            ];
            if cut > 1 {
                expected.insert(2, ("input/a.csv".into(), "the next file".into()));
            }
            assert_eq!(everything(root.path()), expected, "cut after {cut} steps");
        }
    }
}
