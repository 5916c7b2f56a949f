//! Files that cannot be imported for now, and stay in `input/`: no permission, a directory, a bad sector, no
//! room for their refused rows. Each is reported once in the log and with a receipt, and retried after pauses
//! that double.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    backoff::Backoff,
    directory::{
        Directory,
        names::{free_name, receipt_name},
        remove, write_atomically,
    },
    finish::receipt::{Receipt, now},
    progress::VERSION,
};

/// How many of each kind are remembered. Further unreadable ones are tried whenever they are listed; further
/// failing ones are not tried until there is room.
const MAX_REMEMBERED: usize = 10_000;

/// Why a file is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// It cannot be opened: a directory, a file without permission. Its owner has to fix that.
    Unreadable,
    /// Importing it was started and fails: because of the disk, or Kafka.
    Failing,
}

/// The blocked files, and what was reported about them.
#[derive(Debug, Default)]
pub(crate) struct BlockedFiles {
    known: HashMap<OsString, BlockedFile>,
    /// The names of those of [`BlockKind::Failing`].
    failing: BTreeSet<OsString>,
    /// Hashes of the names of further failing files.
    further: HashSet<u64>,
    is_full: bool,
}

#[derive(Debug)]
struct BlockedFile {
    kind: BlockKind,
    reason: String,
    receipt: PathBuf,
    backoff: Backoff,
}

impl BlockedFiles {
    /// Whether `name` is blocked, and reported.
    pub(crate) fn contains(&self, name: &OsStr) -> bool {
        self.known.contains_key(name)
    }

    /// Whether importing `name` has failed before.
    pub(crate) fn is_failing(&self, name: &OsStr) -> bool {
        self.failing.contains(name) || (!self.further.is_empty() && self.further.contains(&hash(name)))
    }

    /// Whether `name` may be tried, for the first time or again.
    pub(crate) fn is_due(&self, name: &OsStr, now: Instant) -> bool {
        self.known.get(name).is_none_or(|file| file.backoff.is_due(now))
    }

    /// The failing file whose retry has been due for the longest time, of those not to `skip`.
    pub(crate) fn next_failing(&self, now: Instant, skip: impl Fn(&OsStr) -> bool) -> Option<OsString> {
        let due = self.failing.iter().filter_map(|name| Some((self.known.get(name)?.backoff.due()?, name)));
        due.filter(|(due, name)| *due <= now && !skip(name)).min().map(|(_, name)| name.clone())
    }

    /// Whether any file fails.
    pub(crate) fn any_failing(&self) -> bool {
        !self.failing.is_empty()
    }

    /// `name` was changed, and may be readable now: it is retried soon.
    pub(crate) fn retry_soon(&mut self, name: &OsStr, now: Instant) {
        if let Some(file) = self.known.get_mut(name).filter(|file| file.kind == BlockKind::Unreadable) {
            file.backoff.retry_by(now);
        }
    }

    /// How many files fail, and one of them with its reason.
    pub(crate) fn describe_failing(&self) -> Option<String> {
        let name = self.failing.first()?;
        let reason = self.known.get(name).map_or("", |file| &file.reason);
        Some(format!("{} files cannot be imported: {name:?}: {reason}", self.failing.len()))
    }

    /// Reports that `name` cannot be imported.
    pub(crate) fn report(&mut self, directory: &Directory, name: &OsStr, kind: BlockKind, reason: &str) {
        if let Some(file) = self.known.get_mut(name) {
            file.backoff.failed(Instant::now());
            if file.reason == reason && file.kind == kind {
                return;
            }
        } else if self.count(kind) >= MAX_REMEMBERED {
            if kind == BlockKind::Failing {
                self.further.insert(hash(name));
            }
            if !self.is_full {
                tracing::error!(
                    files = MAX_REMEMBERED,
                    "too many files cannot be imported: further ones are not reported one by one"
                );
                self.is_full = true;
            }
            return;
        }
        tracing::error!(file = &*name.to_string_lossy(), reason, "cannot be imported now, stays in input/");
        let time = now();
        let receipt = Receipt {
            version: VERSION,
            file: name.to_string_lossy().into_owned(),
            event_type: None,
            rows: 0,
            accepted: 0,
            refused: 0,
            bytes: 0,
            sha256: None,
            started_at: time.clone(),
            finished_at: time,
            rejected: None,
            error: Some(reason.to_owned()),
            unterminated_last_line: false,
            left_in_place: true,
        };
        let known = self.known.remove(name);
        let backoff = known.as_ref().map(|file| file.backoff).unwrap_or_else(|| {
            let mut first = Backoff::default();
            first.failed(Instant::now());
            first
        });
        let path = known
            .map(|file| file.receipt)
            .or_else(|| left_in_place(directory, name))
            .unwrap_or_else(|| directory.rejected.join(receipt_name(&free_name(&directory.rejected, name))));
        let written = receipt.text().map_err(Into::into).and_then(|json| write_atomically(&path, &json));
        if let Err(error) = written {
            tracing::error!(file = &*path.to_string_lossy(), %error, "cannot write the receipt");
        }
        match kind {
            BlockKind::Failing => self.failing.insert(name.to_owned()),
            BlockKind::Unreadable => self.failing.remove(name),
        };
        self.known.insert(name.to_owned(), BlockedFile { kind, reason: reason.to_owned(), receipt: path, backoff });
    }

    /// `name` is no longer blocked: removes its receipt.
    pub(crate) fn clear(&mut self, directory: &Directory, name: &OsStr) {
        let known = self.known.remove(name).map(|file| file.receipt);
        self.failing.remove(name);
        if self.is_full && (self.failing.len() < MAX_REMEMBERED || self.further.is_empty()) {
            // there is room again, and the further ones will be listed
            self.is_full = self.known.len() >= MAX_REMEMBERED;
            self.further.clear();
        }
        let path = known.or_else(|| left_in_place(directory, name));
        if let Some(Err(error)) = path.map(|path| remove(&path)) {
            tracing::warn!(file = &*name.to_string_lossy(), %error, "cannot remove the receipt");
        }
    }

    fn count(&self, kind: BlockKind) -> usize {
        match kind {
            BlockKind::Failing => self.failing.len(),
            BlockKind::Unreadable => self.known.len() - self.failing.len(),
        }
    }

    /// Forgets files that no longer exist.
    pub(crate) fn retain(&mut self, directory: &Directory, there: impl Fn(&Path) -> bool) {
        let gone: Vec<_> =
            self.known.keys().filter(|name| !there(&directory.input.join(name.as_os_str()))).cloned().collect();
        for name in gone {
            self.clear(directory, &name);
        }
    }
}

fn hash(name: &OsStr) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The path of the receipt of this file, if it says that the file was left in place.
fn left_in_place(directory: &Directory, name: &OsStr) -> Option<PathBuf> {
    let path = directory.rejected.join(receipt_name(name));
    let receipt: Receipt = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
    (receipt.left_in_place && receipt.file == name.to_string_lossy()).then_some(path)
}
