//! Files that can't be imported now, and stay where they are: no permission, a directory, a
//! dangling link, no room for their refused rows.
//! Each is told of once in the log and with a receipt, and tried again at every scan.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::{
    directory::{Directory, remove, write_atomically},
    names::{free_name, receipt_name},
    receipt::{Receipt, now},
};

/// How many are kept in mind; more are passed over in silence.
const MOST: usize = 10_000;

/// The files in trouble, and what was said about them.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    /// The reason, and where its receipt is.
    known: HashMap<OsString, (String, PathBuf)>,
}

impl Troubles {
    /// Whether `name` is among them: it has been told of.
    pub(crate) fn has(&self, name: &OsStr) -> bool {
        self.known.contains_key(name)
    }

    /// `name` can't be imported.
    pub(crate) fn tell(&mut self, directory: &Directory, name: &OsStr, reason: &str) {
        if self.known.get(name).is_some_and(|(known, _)| known == reason) || self.known.len() >= MOST {
            return;
        }
        tracing::error!("{name:?} in {} can't be imported now and stays there: {reason}", directory.input.display());
        let time = now();
        let receipt = Receipt {
            file: name.to_string_lossy().into_owned(),
            event_type: None,
            rows: 0,
            accepted: 0,
            refused: 0,
            bytes: 0,
            sha256: String::new(),
            started_at: time.clone(),
            finished_at: time,
            rejected: None,
            error: Some(reason.to_owned()),
            unterminated_last_line: false,
            left_in_place: true,
        };
        let known = self.known.remove(name).map(|(_, path)| path);
        let path = known
            .or_else(|| left_in_place(directory, name))
            .unwrap_or_else(|| directory.rejected.join(receipt_name(&free_name(&directory.rejected, name))));
        let written = receipt.text().map_err(Into::into).and_then(|json| write_atomically(&path, &json));
        if let Err(error) = written {
            tracing::error!("{} can't be written: {error}", path.display());
        }
        self.known.insert(name.to_owned(), (reason.to_owned(), path));
    }

    /// `name` goes through now: what was said about it is taken back.
    pub(crate) fn over(&mut self, directory: &Directory, name: &OsStr) {
        let known = self.known.remove(name).map(|(_, path)| path);
        let path = known.or_else(|| left_in_place(directory, name));
        if let Some(Err(error)) = path.map(|path| remove(&path)) {
            tracing::warn!("the receipt of {name:?} can't be removed: {error}");
        }
    }

    /// Forgets those that are no longer there.
    pub(crate) fn keep(&mut self, directory: &Directory, there: impl Fn(&Path) -> bool) {
        let gone: Vec<_> =
            self.known.keys().filter(|name| !there(&directory.input.join(name.as_os_str()))).cloned().collect();
        for name in gone {
            self.over(directory, &name);
        }
    }
}

/// The receipt of this name, if it is one of a file left in place.
fn left_in_place(directory: &Directory, name: &OsStr) -> Option<PathBuf> {
    let path = directory.rejected.join(receipt_name(name));
    let receipt: Receipt = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
    (receipt.left_in_place && receipt.file == name.to_string_lossy()).then_some(path)
}
