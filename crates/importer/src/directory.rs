//! The import directory: `input/` for files to import, `done/` and `rejected/` for finished ones, `progress/`
//! for the progress of the others.

pub(crate) mod names;

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::finish::copier::{copy, replace};

/// The paths of the import directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    pub(crate) input: PathBuf,
    pub(crate) done: PathBuf,
    pub(crate) rejected: PathBuf,
    pub(crate) progress: PathBuf,
}

impl Directory {
    /// Creates missing folders.
    pub(crate) fn create(root: &Path) -> Result<Directory> {
        let directory = Directory {
            input: root.join("input"),
            done: root.join("done"),
            rejected: root.join("rejected"),
            progress: root.join("progress"),
        };
        for folder in [&directory.input, &directory.done, &directory.rejected, &directory.progress] {
            fs::create_dir_all(folder)
                .with_context(|| format!("IMPORT_DIRECTORY: cannot create {}", folder.display()))?;
        }
        Ok(directory)
    }

    /// The progress record of the file of this name in `input/`.
    pub(crate) fn progress_of(&self, name: &OsStr) -> PathBuf {
        self.progress.join(format!("{}.json", names::key(name)))
    }

    /// Where the refused rows of the file of this name in `input/` are collected.
    pub(crate) fn refused_of(&self, name: &OsStr) -> PathBuf {
        self.rejected.join(format!(".{}.part", names::key(name)))
    }
}

/// Writes a file such that no reader ever sees a part of it. It is not flushed to the disk: after a power
/// failure, at worst, rows are sent again.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    fs::File::create(&temporary)?.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// The name of a file until it is complete.
pub(crate) fn temporary_of(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.tmp", path.file_name().map(names::key).unwrap_or_default()))
}

/// Removes a file, if it exists.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames one of our own files, replacing a file that may have the name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, &temporary_of(to))?;
            remove(to)?;
            replace(from, to)
        }
        renamed => renamed,
    }
}

/// Renames a file without replacing another: if the name is taken, it is an error. So is a name on another
/// file system ([`io::ErrorKind::CrossesDevices`]).
pub(crate) fn rename_within(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // not every file system supports it
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        renamed => renamed.map_err(Into::into),
    }
}
