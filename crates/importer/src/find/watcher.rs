//! Wakes the importer's thread: on changes in `input/`, or on behalf of another thread. The watcher is only a
//! hint; the scan finds everything without it.

use std::{
    ffi::OsString,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};

/// What has changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Names in `input/` that changed.
    pub(crate) names: Vec<OsString>,
    /// There were more changes than names.
    pub(crate) overflowed: bool,
}

/// Receives changes and wake-ups.
pub(crate) struct ChangeWatcher {
    names: Receiver<OsString>,
    sender: SyncSender<OsString>,
    overflow: Arc<AtomicBool>,
    _watcher: Option<RecommendedWatcher>,
}

impl ChangeWatcher {
    pub(crate) fn new() -> ChangeWatcher {
        let (sender, names) = sync_channel(1024);
        ChangeWatcher { names, sender, overflow: Arc::default(), _watcher: None }
    }

    /// Watches `input/` (inotify on Linux).
    pub(crate) fn watch(&mut self, input: &Path) -> notify::Result<()> {
        let (sender, overflow) = (self.sender.clone(), self.overflow.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) if is_relevant(event.kind) => {
                if event.paths.is_empty() {
                    overflow.store(true, Relaxed);
                }
                let names = event.paths.iter().filter_map(|path| path.file_name());
                for name in names {
                    if sender.try_send(name.to_owned()).is_err() {
                        overflow.store(true, Relaxed);
                    }
                }
            }
            Ok(_) => {}
            // the kernel's queue has overflowed, for example
            Err(_) => overflow.store(true, Relaxed),
        })?;
        watcher.watch(input, RecursiveMode::NonRecursive)?;
        self._watcher = Some(watcher);
        Ok(())
    }

    /// Wakes [`ChangeWatcher::wait`] from another thread.
    pub(crate) fn waker(&self) -> SyncSender<OsString> {
        self.sender.clone()
    }

    /// Waits for a change, or for `time` at most.
    pub(crate) fn wait(&self, time: Duration) -> Changes {
        let first = if time.is_zero() { self.names.try_recv().ok() } else { self.names.recv_timeout(time).ok() };
        let names = first.into_iter().chain(self.names.try_iter().take(1024)).collect();
        Changes { names, overflowed: self.overflow.swap(false, Relaxed) }
    }
}

/// Whether an event may mean that there is something to read. The importer's own reading and moving causes
/// events too.
fn is_relevant(kind: EventKind) -> bool {
    !matches!(
        kind,
        EventKind::Access(AccessKind::Open(_) | AccessKind::Read | AccessKind::Close(AccessMode::Read))
            | EventKind::Modify(ModifyKind::Name(RenameMode::From))
            | EventKind::Remove(_)
    )
}
