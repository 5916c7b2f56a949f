//! The records in `progress/`: how far a file is acknowledged, and, once all of it is, how to finish it.

use std::{ffi::OsString, io, os::unix::ffi::OsStringExt, path::Path};

use serde::{Deserialize, Serialize};

use crate::finish::receipt::Receipt;
use crate::read::{
    position::{Position, digest},
    source::FileState,
};

/// Of the records below: another version counts as no record, and the file is read from its beginning.
const VERSION: u32 = 1;

/// How far a file is imported: everything before `byte` is acknowledged by Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) version: u32,
    /// The file's name, for people.
    pub(crate) file: String,
    /// The file's name, its bytes in hexadecimal.
    pub(crate) name: String,
    /// Where to resume, in the unpacked text.
    pub(crate) byte: u64,
    /// Lines before that.
    pub(crate) line: u64,
    /// Whether that is inside a line that is too long, whose rest is skipped.
    pub(crate) inside_long_line: bool,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// The size of the file of refused rows.
    pub(crate) refused_bytes: u64,
    /// The SHA-256 of everything before `byte`.
    pub(crate) sha256: String,
    pub(crate) started_at: String,
}

/// How to finish a file all of whose rows are acknowledged. It is written to `progress/KEY.json` before
/// anything is moved, and becomes the receipt when everything is moved: so it says how to complete a
/// finish that was interrupted, and where to read on when the file grows afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FinishRecord {
    #[serde(flatten)]
    pub(crate) receipt: Receipt,
    pub(crate) resume: Resume,
}

/// The part of a receipt that is for the importer alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resume {
    /// Where to read on if the file grows.
    pub(crate) progress: Progress,
    /// Whether it goes to `rejected/` instead of `done/`.
    pub(crate) to_rejected: bool,
    /// Its new name, in hexadecimal. `None` if the file is gone.
    pub(crate) target: Option<String>,
    /// The new name of the file of refused rows, in hexadecimal.
    pub(crate) refused_target: Option<String>,
    /// That file's size.
    pub(crate) refused_bytes: u64,
    /// The name of the receipt, in hexadecimal.
    pub(crate) receipt_target: String,
    /// The identity of the file and the state in which it was read, so that neither another file of the
    /// same name nor a later version is taken for it.
    pub(crate) state: FileState,
}

/// The content of `progress/KEY.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// The file is being read.
    Reading(Progress),
    /// The file is being finished.
    Finishing(Box<FinishRecord>),
}

impl Record {
    /// Reads a record; one that is missing, of another version or damaged (by a power failure) counts
    /// as none. One that cannot be read now does not: an error names the path.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Record>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Record::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Record> {
        let stored = match serde_json::from_slice(bytes) {
            Ok(finished) => Record::Finishing(Box::new(finished)),
            Err(_) => Record::Reading(serde_json::from_slice(bytes).ok()?),
        };
        (stored.progress().version == VERSION).then_some(stored)
    }

    /// Where to resume.
    pub(crate) fn progress(&self) -> &Progress {
        match self {
            Record::Reading(progress) => progress,
            Record::Finishing(finished) => &finished.resume.progress,
        }
    }
}

impl FinishRecord {
    /// The JSON text of the record, which is also the receipt.
    pub(crate) fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

impl Progress {
    /// The progress of a file that is acknowledged up to `position`.
    pub(crate) fn new(file: String, name: String, position: &Position, started_at: String) -> Progress {
        Progress {
            version: VERSION,
            file,
            name,
            byte: position.byte,
            line: position.line,
            inside_long_line: position.inside_long_line,
            accepted: position.accepted,
            refused: position.refused,
            refused_bytes: position.refused_bytes,
            sha256: digest(&position.hash),
            started_at,
        }
    }

    pub(crate) fn name(&self) -> Option<OsString> {
        hex::decode(&self.name).ok().map(OsString::from_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_does_not_count_as_missing_or_damaged() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("record.json");
        assert_eq!(Record::read(&path).expect("missing"), None);
        std::fs::write(&path, "{\"version\": 1, ").expect("written");
        assert_eq!(Record::read(&path).expect("damaged"), None);
        std::fs::remove_file(&path).expect("removed");
        // an error for root, too
        std::fs::create_dir(&path).expect("a directory");
        let error = Record::read(&path).expect_err("a directory").to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
}
