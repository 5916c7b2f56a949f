//! Finishing a file. The finish record in `progress/KEY.json` says everything that is left to be done; each
//! step is atomic, and after a crash the next start carries out what is left, without sending anything again:
//!
//! 1. the record is written;
//! 2. the file is moved to `done/` or `rejected/`, if it is unchanged since it was read;
//! 3. the file of refused rows gets its final name;
//! 4. the record gets the receipt's name.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    directory::{
        Directory,
        names::{StoredName, free_name_except, receipt_name, refused_rows_name},
        remove, rename, rename_within, temporary_of, write_atomically,
    },
    finish::receipt::{Receipt, now},
    progress::{FinishRecord, Progress, Resume, VERSION},
    read::source::{FileState, Links, WholeFile, open},
};

/// Where files will go that are being copied to another file system or cannot be moved yet, by their names in
/// `input/`: these paths are taken, although no file has them yet.
pub(crate) type Reserved = BTreeMap<OsString, PathBuf>;

/// What was found out about a file when all of it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSummary {
    /// What was wrong with the file as a whole.
    pub(crate) error: Option<String>,
    /// Whether it is no longer in `input/`, or replaced by another file.
    pub(crate) gone: bool,
    /// Whether the last line that was read has no line break.
    pub(crate) unterminated: bool,
    /// Rows that are on their topic.
    pub(crate) accepted: u64,
    /// Rows that are on the errors topic.
    pub(crate) refused: u64,
    /// The size of the file of refused rows.
    pub(crate) refused_bytes: u64,
    /// The size and the SHA-256 of the whole file.
    pub(crate) whole: WholeFile,
}

/// The result of carrying out a finish record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FinishResult {
    /// Everything is in its place.
    Finished,
    /// The file was changed after it was read. It is still in `input/`, and has to be read on.
    Changed,
    /// The file has to be copied to another file system first; then call [`carry_out_copied`].
    NeedsCopy { from: PathBuf, copy: PathBuf, to: PathBuf },
}

/// Decides where everything goes: the record that makes finishing restartable.
pub(crate) fn plan(
    directory: &Directory,
    reserved: &Reserved,
    progress: Progress,
    event_type: Option<&str>,
    state: FileState,
    summary: &FileSummary,
    now: String,
) -> FinishRecord {
    let name = progress.name.clone();
    let to_rejected = summary.error.is_some() && !summary.gone;
    let folder = if to_rejected { &directory.rejected } else { &directory.done };
    let target = free_name_except(folder, &name, |path| is_reserved(reserved, &name, path));
    let refused_target = (summary.refused_bytes > 0)
        .then(|| name_for_refused_rows(directory, reserved, &name, to_rejected.then_some(target.as_os_str())));
    let FileSummary { accepted, refused, .. } = *summary;
    let receipt = Receipt {
        version: VERSION,
        file: progress.file.clone(),
        event_type: event_type.map(str::to_owned),
        rows: accepted + refused,
        accepted,
        refused,
        bytes: summary.whole.bytes,
        sha256: Some(summary.whole.sha256.clone()),
        started_at: progress.started_at.clone(),
        finished_at: now,
        rejected: refused_target.as_ref().map(|name| name.to_string_lossy().into_owned()),
        error: summary.error.clone(),
        unterminated_last_line: summary.unterminated,
        left_in_place: false,
    };
    let resume = Resume {
        to_rejected,
        receipt_target: receipt_name(&target).into(),
        target: (!summary.gone).then(|| target.into()),
        refused_target: refused_target.map(Into::into),
        refused_bytes: summary.refused_bytes,
        state,
        progress,
    };
    FinishRecord { receipt, resume }
}

/// A free name in `rejected/` for the refused rows of the file `name`. `whole`: the name of the file itself, if
/// it goes there too.
fn name_for_refused_rows(directory: &Directory, reserved: &Reserved, name: &OsStr, whole: Option<&OsStr>) -> OsString {
    let mut wanted = refused_rows_name(name);
    if Some(wanted.as_os_str()) == whole {
        // must not be confused with the file itself
        wanted = OsString::from(format!("rows-of-{}", wanted.display()));
    }
    free_name_except(&directory.rejected, &wanted, |path| is_reserved(reserved, name, path))
}

/// Whether a file other than `name` will go to this path.
fn is_reserved(reserved: &Reserved, name: &OsStr, path: &Path) -> bool {
    reserved.iter().any(|(other, target)| other != name && target == path)
}

/// Decides again where everything goes that is not there yet, after a finish that could not be carried out:
/// other files may have taken the names since.
fn replan(directory: &Directory, reserved: &Reserved, finished: &mut FinishRecord) {
    let resume = &finished.resume;
    let name = resume.progress.name.clone();
    let folder = if resume.to_rejected { &directory.rejected } else { &directory.done };
    let is_there = |folder: &Path, name: &StoredName| folder.join(name).symlink_metadata().is_ok();
    let is_here = state_of(&directory.input.join(&*name)).is_some_and(|here| here.identity == resume.state.identity);
    let is_taken = match &resume.target {
        Some(target) if is_here && is_reserved(reserved, &name, &folder.join(target)) => true,
        Some(target) if is_here && is_copy(&folder.join(target), finished) => false,
        Some(target) if is_here => is_there(folder, target) || is_there(folder, &resume.receipt_target),
        // it was moved there, or is gone since; on another file system it has another identity
        Some(target) => state_of(&folder.join(target)).is_some_and(|there| {
            there.identity.device == resume.state.identity.device && there.identity != resume.state.identity
        }),
        None => is_there(folder, &resume.receipt_target),
    };
    let resume = &mut finished.resume;
    if is_taken {
        let target = free_name_except(folder, &name, |path| is_reserved(reserved, &name, path));
        resume.receipt_target = receipt_name(&target).into();
        resume.target = resume.target.is_some().then(|| target.into());
    }
    if let Some(target) = &resume.refused_target
        && directory.refused_of(&name).exists()
        && is_there(&directory.rejected, target)
    {
        let whole = resume.target.as_deref().filter(|_| resume.to_rejected);
        let target = name_for_refused_rows(directory, reserved, &name, whole);
        finished.receipt.rejected = Some(target.to_string_lossy().into_owned());
        resume.refused_target = Some(target.into());
    }
}

/// Writes the finish record: from here on, a crash leaves everything that is needed to finish the file.
pub(crate) fn write_record(directory: &Directory, finished: &FinishRecord) -> io::Result<()> {
    write_atomically(&directory.progress_of(&finished.resume.progress.name), &finished.text()?)
}

/// Carries out what the record says, as far as it is not done yet. Errors name the path.
pub(crate) fn carry_out(directory: &Directory, finished: &mut FinishRecord) -> io::Result<FinishResult> {
    let resume = &finished.resume;
    let name = &resume.progress.name;
    if let Err(error) = directory.input.join(name).symlink_metadata()
        && error.kind() != io::ErrorKind::NotFound
    {
        // it may still be there, and must not count as moved
        return with_path(&directory.input.join(name), Err(error));
    }
    let folder = if resume.to_rejected { &directory.rejected } else { &directory.done };
    if let Some(target) = &resume.target {
        let (from, to) = (directory.input.join(name), folder.join(target));
        match state_of(&from) {
            Some(here) if here == resume.state && is_copy(&to, finished) => {
                let is_removed = with_path(&from, remove_original(&from, &to, resume.state))?;
                if !is_removed {
                    return Ok(FinishResult::Changed);
                }
            }
            Some(here) if here == resume.state => {
                match rename_within(&from, &to) {
                    Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                        // named after the source, so that no two copies share a name
                        return Ok(FinishResult::NeedsCopy { from, copy: temporary_of(&folder.join(name)), to });
                    }
                    renamed => with_path(&to, renamed)?,
                }
                // written to between the check and the move: move it back, unless there is a new file
                let changed =
                    state_of(&to).is_some_and(|there| there.identity == resume.state.identity && there != resume.state);
                if changed && rename_within(&to, &from).is_ok() {
                    return Ok(FinishResult::Changed);
                }
            }
            Some(here) if here.identity == resume.state.identity => return Ok(FinishResult::Changed),
            // it was moved before, or is gone
            _ => {}
        }
    }
    let refused = directory.refused_of(name);
    match &resume.refused_target {
        Some(target) if refused.exists() => {
            let target = directory.rejected.join(target);
            let cut = || File::options().write(true).open(&refused)?.set_len(resume.refused_bytes);
            with_path(&refused, cut())?;
            with_path(&target, rename_within(&refused, &target))?;
        }
        Some(_) => {}
        None => with_path(&refused, remove(&refused))?,
    }
    let receipt = folder.join(&resume.receipt_target);
    with_path(&receipt, rename(&directory.progress_of(name), &receipt))?;
    Ok(FinishResult::Finished)
}

/// Continues after the file was copied, unless it was written to meanwhile. Removes the copy if it does not
/// succeed.
pub(crate) fn carry_out_copied(
    directory: &Directory,
    reserved: &Reserved,
    finished: &mut FinishRecord,
) -> io::Result<FinishResult> {
    let name = finished.resume.progress.name.clone();
    let folder = if finished.resume.to_rejected { &directory.rejected } else { &directory.done };
    let copy = temporary_of(&folder.join(&*name));
    let ended = replan_and_carry_out(directory, reserved, finished).and_then(|end| match end {
        FinishResult::NeedsCopy { from, to, .. } => {
            let replaced = replace(&from, &copy, &to, finished.resume.state);
            if with_path(&to, replaced)? { carry_out(directory, finished) } else { Ok(FinishResult::Changed) }
        }
        end => Ok(end),
    });
    with_path(&copy, remove(&copy))?;
    ended
}

/// Gives a copy its final name, flushes that to the disk, and [removes the original](remove_original).
fn replace(from: &Path, copy: &Path, to: &Path, state: FileState) -> io::Result<bool> {
    rename_within(copy, to)?;
    if let Some(folder) = to.parent() {
        File::open(folder)?.sync_all()?;
    }
    remove_original(from, to, state)
}

/// Removes the original `from` of the copy `to`. Returns false if the original was written to since: then it
/// stays, and the copy is removed. This is checked again here, because flushing or comparing the copy may have
/// taken long.
fn remove_original(from: &Path, to: &Path, state: FileState) -> io::Result<bool> {
    match state_of(from) {
        Some(here) if here == state => remove(from)?,
        Some(here) if here.identity == state.identity => {
            remove(to)?;
            return Ok(false);
        }
        // it is gone, or another file has its name: the copy is the only one
        _ => {}
    }
    Ok(true)
}

/// Whether `path` is the copy of a file that a crash prevented from being removed.
fn is_copy(path: &Path, finished: &FinishRecord) -> bool {
    let (state, receipt) = (finished.resume.state, &finished.resume.receipt_target);
    state_of(path).is_some_and(|there| there.identity.device != state.identity.device && there.size == state.size)
        && !path.with_file_name(&**receipt).exists()
        && sha256_of(path).is_ok_and(|sha256| finished.receipt.sha256.as_ref() == Some(&sha256))
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = open(path, Links::Refuse)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Carries out a record again, after a crash or a failure.
pub(crate) fn replan_and_carry_out(
    directory: &Directory,
    reserved: &Reserved,
    finished: &mut FinishRecord,
) -> io::Result<FinishResult> {
    let before = finished.clone();
    replan(directory, reserved, finished);
    if *finished != before {
        write_record(directory, finished)?;
    }
    carry_out(directory, finished)
}

/// The record of a file that was deleted from `input/` while no importer was running.
pub(crate) fn plan_for_deleted(directory: &Directory, reserved: &Reserved, progress: Progress) -> FinishRecord {
    let summary = FileSummary {
        error: Some(format!(
            "the file was deleted while being read; {} of its rows were imported",
            progress.checkpoint.accepted
        )),
        gone: true,
        unterminated: false,
        accepted: progress.checkpoint.accepted,
        refused: progress.checkpoint.refused,
        refused_bytes: progress.checkpoint.refused_bytes,
        whole: WholeFile { bytes: progress.checkpoint.byte, sha256: progress.checkpoint.sha256.clone() },
    };
    plan(directory, reserved, progress, None, FileState::default(), &summary, now())
}

fn state_of(path: &Path) -> Option<FileState> {
    Some(FileState::from(&fs::metadata(path).ok()?))
}

fn with_path<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
