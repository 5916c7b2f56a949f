//! Finished files that are written to afterwards. A writer may pause for longer than any quiet period, and then
//! append to the file in `done/`: these rows must be imported as well. A separate thread looks for such files,
//! because `done/` may hold very many, and because the imported part has to be read again to be sure that it
//! is unchanged.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::{
    directory::{Directory, names::receipt_name},
    find::{
        file_kind::{FileKind, file_kind},
        watcher::Waker,
    },
    progress::{FinishRecord, Record},
    read::source::FileState,
};

/// The shortest pause between two scans.
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// After a scan, the thread pauses for this many times as long as the scan took.
const IDLE_FACTOR: u32 = 20;
/// How many files are remembered that were written to without growing.
const MAX_REMEMBERED: usize = 10_000;

/// A finished file that is longer than its receipt says.
#[derive(Debug)]
pub(crate) struct GrownFile {
    /// `done/` or `rejected/`.
    pub(crate) folder: PathBuf,
    pub(crate) name: OsString,
}

/// The thread that looks for grown files; it ends when this is dropped.
pub(crate) struct LateGrowth {
    pub(crate) found: Receiver<GrownFile>,
    _stop: SyncSender<()>,
}

impl LateGrowth {
    /// Starts the thread. `waker` is used for every reported file.
    pub(crate) fn start(directory: &Directory, waker: Waker) -> io::Result<LateGrowth> {
        let (sender, found) = sync_channel(100);
        let (stop, stopped) = sync_channel(0);
        let folders = [directory.done.clone(), directory.rejected.clone()];
        let work = move || {
            let mut scanner = GrowthScanner::default();
            loop {
                let begun = Instant::now();
                for folder in &folders {
                    let report = |grown| {
                        waker.wake();
                        sender.send(grown).is_ok()
                    };
                    if !scanner.scan(folder, *folder == folders[1], report) {
                        return;
                    }
                }
                if stopped.recv_timeout(MIN_INTERVAL.max(begun.elapsed() * IDLE_FACTOR))
                    != Err(RecvTimeoutError::Timeout)
                {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("late-growth".into()).spawn(work)?;
        Ok(LateGrowth { found, _stop: stop })
    }
}

/// Scans for grown files, and remembers files that were written to without growing.
#[derive(Debug, Default)]
pub(crate) struct GrowthScanner {
    known: HashMap<PathBuf, FileState>,
}

impl GrowthScanner {
    /// Scans a folder. Returns false once `report` does.
    pub(crate) fn scan(&mut self, folder: &Path, rejected: bool, report: impl Fn(GrownFile) -> bool) -> bool {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !matches!(file_kind(&name), FileKind::Csv | FileKind::Gzip) {
                continue;
            }
            let path = entry.path();
            let receipt = folder.join(receipt_name(&name));
            let (Ok(file), Ok(written)) = (path.symlink_metadata(), receipt.symlink_metadata()) else { continue };
            if !file.is_file() || !may_be_newer(&file, &written) {
                continue;
            }
            let state = FileState::from(&file);
            if self.known.get(&path) == Some(&state) {
                continue;
            }
            match Record::read(&receipt) {
                Ok(Some(Record::Finishing(finished))) => match compare(&path, &finished, state) {
                    Ok(Comparison::Grown) => {
                        if !report(GrownFile { folder: folder.to_owned(), name }) {
                            return false;
                        }
                        continue;
                    }
                    Ok(Comparison::Same) => {}
                    // rejected files may be corrected in place
                    Ok(Comparison::Different) if rejected => {}
                    Ok(Comparison::Different) => tracing::warn!(
                        file = &*path.to_string_lossy(),
                        "was changed after it was finished, and is not what was imported; to import it as it is now, \
                         move it to input/"
                    ),
                    Err(error) => tracing::warn!(
                        file = &*path.to_string_lossy(),
                        %error,
                        "was written to after it was finished, and cannot be read"
                    ),
                },
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    tracing::warn!(file = &*path.to_string_lossy(), %error, "cannot check whether it has grown");
                }
                _ => continue,
            }
            if self.known.len() >= MAX_REMEMBERED {
                self.known.clear();
            }
            self.known.insert(path, state);
        }
        true
    }
}

/// Whether a file may have been written to after its receipt: a cheap check that also catches files whose
/// modification time was set back.
fn may_be_newer(file: &Metadata, receipt: &Metadata) -> bool {
    let modified = |of: &Metadata| (of.mtime(), of.mtime_nsec());
    let changed = |of: &Metadata| (of.ctime(), of.ctime_nsec());
    modified(file) >= modified(receipt) || changed(file) > changed(receipt)
}

#[derive(Debug, PartialEq, Eq)]
enum Comparison {
    /// What was imported, and more.
    Grown,
    /// What was imported.
    Same,
    /// Something else.
    Different,
}

fn compare(path: &Path, finished: &FinishRecord, state: FileState) -> io::Result<Comparison> {
    let bytes = finished.receipt.bytes;
    let read = finished.resume.state;
    if state.size == bytes && state.modified_ns == read.modified_ns && state.identity == read.identity {
        return Ok(Comparison::Same);
    }
    if state.size < bytes {
        return Ok(Comparison::Different);
    }
    let mut hash = Sha256::new();
    let mut file = File::open(path)?.take(bytes);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match finished.receipt.sha256 == Some(hex::encode(hash.finalize())) {
        false => Comparison::Different,
        true if state.size > bytes => Comparison::Grown,
        true => Comparison::Same,
    })
}
