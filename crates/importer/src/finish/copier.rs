//! Copies files to another file system, in a separate thread: a copy may take minutes, and nothing else should
//! wait for it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
};

use crate::{
    directory::{remove, temporary_of},
    find::watcher::Waker,
    read::source::{FileState, Links, open},
};

/// A file to be copied.
#[derive(Debug)]
pub(crate) struct CopyJob {
    /// The file's name in `input/`.
    pub(crate) name: OsString,
    pub(crate) from: PathBuf,
    /// The path of the copy until it is complete.
    pub(crate) to: PathBuf,
    /// The version of the file that was imported: no other is copied.
    pub(crate) state: FileState,
    pub(crate) links: Links,
}

/// The thread that copies.
pub(crate) struct Copier {
    copies: Sender<CopyJob>,
    pub(crate) done: Receiver<(OsString, io::Result<()>)>,
}

impl Copier {
    /// Starts the thread, which ends when this value is dropped. `waker` is used after each copy.
    pub(crate) fn start(waker: Waker) -> io::Result<Copier> {
        let (copies, wanted) = channel::<CopyJob>();
        let (sender, done) = channel();
        let work = move || {
            for copy in wanted {
                let copied = copy_imported(&copy);
                if sender.send((copy.name, copied)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        std::thread::Builder::new().name("copier".into()).spawn(work)?;
        Ok(Copier { copies, done })
    }

    pub(crate) fn copy(&self, copy: CopyJob) {
        // the thread runs as long as this value exists
        let _ = self.copies.send(copy);
    }
}

/// Copies a file of `input/` as it was imported. If it was changed since, it is not copied, which the caller
/// notices when it compares the file again.
fn copy_imported(copy: &CopyJob) -> io::Result<()> {
    let copied = copy_open(copy);
    if copied.is_err() {
        let _ = remove(&copy.to);
    }
    copied
}

fn copy_open(copy: &CopyJob) -> io::Result<()> {
    // a partial copy left by a crash must not be taken for this one
    remove(&copy.to)?;
    let mut from = match open(&copy.from, copy.links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let metadata = from.metadata()?;
    if FileState::from(&metadata) != copy.state {
        return Ok(());
    }
    let mut to = fs::File::create_new(&copy.to)?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(metadata.permissions())?;
    to.sync_all()
}

/// Copies one of our own files, with its permissions, and flushes it to the disk.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::File::open(to)?.sync_all()
}

/// Gives a copy its final name, flushes that to the disk, and removes the original.
pub(crate) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    crate::directory::rename_within(&temporary_of(to), to)?;
    if let Some(folder) = to.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_imported_is_copied() {
        let root = tempfile::tempdir().expect("a directory");
        let [from, to, other] = ["from", "to", "other"].map(|name| root.path().join(name));
        fs::write(&from, "rows").expect("written");
        fs::write(&other, "secret").expect("written");
        let state = FileState::from(&fs::metadata(&from).expect("the file"));
        let copy = CopyJob { name: "a.csv".into(), from: from.clone(), to: to.clone(), state, links: Links::Refuse };
        copy_imported(&copy).expect("copied");
        assert_eq!(fs::read_to_string(&to).expect("the copy"), "rows");

        fs::remove_file(&from).expect("removed");
        std::os::unix::fs::symlink(&other, &from).expect("a link");
        assert!(copy_imported(&copy).is_err(), "a link is not followed");
        assert!(!to.exists());

        fs::remove_file(&from).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, &from, rustix::fs::Mode::RUSR).expect("a pipe");
        assert!(copy_imported(&copy).is_err(), "opening a pipe does not wait for its writer");
        assert!(!to.exists());

        fs::remove_file(&from).expect("removed");
        fs::write(&from, "other rows").expect("written");
        fs::write(&to, "ro").expect("what a crash left");
        copy_imported(&copy).expect("looked at");
        assert!(!to.exists(), "another file is not copied");
    }
}
