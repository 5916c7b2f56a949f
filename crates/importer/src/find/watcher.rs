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
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
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

/// Wakes [`ChangeWatcher::wait`] from another thread.
#[derive(Clone)]
pub(crate) struct Waker(SyncSender<Event>);

impl Waker {
    /// If the queue is full, the thread will wake up anyway.
    pub(crate) fn wake(&self) {
        let _ = self.0.try_send(Event::Wake);
    }
}

enum Event {
    /// This name in `input/` changed.
    Changed(OsString),
    Wake,
}

/// Receives changes and wake-ups.
pub(crate) struct ChangeWatcher {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    overflow: Arc<AtomicBool>,
    _watcher: Option<RecommendedWatcher>,
}

impl ChangeWatcher {
    pub(crate) fn new() -> ChangeWatcher {
        let (sender, events) = sync_channel(1024);
        ChangeWatcher { events, sender, overflow: Arc::default(), _watcher: None }
    }

    /// Watches `input/` (inotify on Linux).
    pub(crate) fn watch(&mut self, input: &Path) -> notify::Result<()> {
        let (sender, overflow) = (self.sender.clone(), self.overflow.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) if is_relevant(event.kind) => {
                if event.paths.is_empty() {
                    overflow.store(true, Relaxed);
                }
                let names = event.paths.iter().filter_map(|path| path.file_name());
                for name in names {
                    if sender.try_send(Event::Changed(name.to_owned())).is_err() {
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

    pub(crate) fn waker(&self) -> Waker {
        Waker(self.sender.clone())
    }

    /// Waits for a change, or for `time` at most.
    pub(crate) fn wait(&self, time: Duration) -> Changes {
        let first = if time.is_zero() { self.events.try_recv().ok() } else { self.events.recv_timeout(time).ok() };
        let events = first.into_iter().chain(self.events.try_iter().take(1024));
        let names = events
            .filter_map(|event| match event {
                Event::Changed(name) => Some(name),
                Event::Wake => None,
            })
            .collect();
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
