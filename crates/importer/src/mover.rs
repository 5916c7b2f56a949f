//! Copies files to another file system, in a thread of its own: it may take minutes, and nothing else
//! should wait for it.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, SyncSender, channel},
};

use crate::directory::temporary_of;

/// A file to be copied.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Whose end it is part of: a name in `input/`.
    pub(crate) name: OsString,
    pub(crate) from: PathBuf,
    /// The copy has this file's temporary name at first.
    pub(crate) to: PathBuf,
}

/// The thread.
pub(crate) struct Mover {
    copies: Sender<Copy>,
    pub(crate) done: Receiver<(OsString, io::Result<()>)>,
}

impl Mover {
    /// Starts the thread, which ends with this value. `bell` is rung after each copy.
    pub(crate) fn start(bell: SyncSender<OsString>) -> io::Result<Mover> {
        let (copies, wanted) = channel::<Copy>();
        let (sender, done) = channel();
        let work = move || {
            for Copy { name, from, to } in wanted {
                let copied = copy(&from, &temporary_of(&to));
                if sender.send((name, copied)).is_err() {
                    return;
                }
                let _ = bell.try_send(OsString::new());
            }
        };
        std::thread::Builder::new().name("mover".into()).spawn(work)?;
        Ok(Mover { copies, done })
    }

    pub(crate) fn copy(&self, copy: Copy) {
        // the thread lives as long as we do
        let _ = self.copies.send(copy);
    }
}

/// Copies a file, with its permissions, and flushes it to the disk.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::File::open(to)?.sync_all()
}

/// Gives a copy its name, flushes that to the disk, and removes what it is a copy of.
pub(crate) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    crate::directory::rename_within(&temporary_of(to), to)?;
    if let Some(folder) = to.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    fs::remove_file(from)
}
