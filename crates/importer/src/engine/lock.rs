//! Keeps a second importer out of the directory: the two would send every row twice.

use std::{
    fs::{File, TryLockError},
    io,
};

use crate::directory::Directory;

/// The lock on `progress/lock`, held until the process ends.
pub(super) struct Lock {
    file: File,
}

impl Lock {
    pub(super) fn open(directory: &Directory) -> io::Result<Lock> {
        let path = directory.progress.join("lock");
        Ok(Lock { file: File::options().create(true).write(true).truncate(false).open(path)? })
    }

    /// Whether this process has the lock. On a file system without locks, it is assumed to.
    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.file.try_lock(), Err(TryLockError::WouldBlock))
    }
}
