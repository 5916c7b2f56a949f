//! The records in `progress/`: how far a file is acknowledged, and, once all of it is, how to finish it.

use std::{ffi::OsStr, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    directory::names::StoredName,
    finish::receipt::Receipt,
    read::{position::Checkpoint, source::FileState},
};

/// The version of the format of these records and of receipts. A record without a version has the first one;
/// records of a later version are an error, because resuming without them would send rows again.
pub(crate) const VERSION: u32 = FIRST_VERSION;
const FIRST_VERSION: u32 = 1;

pub(crate) fn first_version() -> u32 {
    FIRST_VERSION
}

/// What is read of a record first.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_version")]
    version: u32,
}

/// How far a file is imported: everything before the checkpoint is acknowledged by Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    #[serde(default = "first_version")]
    pub(crate) version: u32,
    /// The file's name, for people.
    pub(crate) file: String,
    /// The file's name.
    pub(crate) name: StoredName,
    /// Where to resume.
    #[serde(flatten)]
    pub(crate) checkpoint: Checkpoint,
    /// When the import of the file was started, RFC 3339.
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
    /// Its new name. `None` if the file is gone.
    pub(crate) target: Option<StoredName>,
    /// The new name of the file of refused rows.
    pub(crate) refused_target: Option<StoredName>,
    /// That file's size.
    pub(crate) refused_bytes: u64,
    /// The name of the receipt.
    pub(crate) receipt_target: StoredName,
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
    /// Reads a record; `None` if it is missing or damaged (by a power failure). If it cannot be read now, or
    /// is of a later version, that is an error, which names the path.
    pub(crate) fn read(path: &Path) -> io::Result<Option<Record>> {
        let parsed = match std::fs::read(path) {
            Ok(bytes) => Record::parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        parsed.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    fn parse(bytes: &[u8]) -> io::Result<Option<Record>> {
        match serde_json::from_slice(bytes) {
            Ok(Versioned { version }) if version > VERSION => {
                let reason = format!(
                    "it has format version {version}, and this importer knows versions up to {VERSION}; run the \
                     importer that wrote it, or a newer one"
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            Ok(Versioned { .. }) => {}
            Err(_) => return Ok(None),
        }
        Ok(match serde_json::from_slice(bytes) {
            Ok(finished) => Some(Record::Finishing(Box::new(finished))),
            Err(_) => serde_json::from_slice(bytes).ok().map(Record::Reading),
        })
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
    /// The progress of the file `name` that is acknowledged up to `checkpoint`.
    pub(crate) fn new(name: &OsStr, checkpoint: Checkpoint, started_at: String) -> Progress {
        Progress {
            version: VERSION,
            file: name.to_string_lossy().into_owned(),
            name: name.into(),
            checkpoint,
            started_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::position::Position;

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

    #[test]
    fn a_record_without_a_version_is_read_and_one_of_a_later_version_is_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("record.json");
        let progress = Progress::new(OsStr::new("a.csv"), (&Position::default()).into(), "then".into());
        let text = serde_json::to_string(&progress).expect("JSON");
        assert!(text.starts_with(r#"{"version":1,"file":"a.csv","name":"612e637376","byte":0,"#), "{text}");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Record::read(&path)
        };
        assert_eq!(read(&text).expect("a record"), Some(Record::Reading(progress.clone())));
        assert_eq!(read(&text.replace(r#""version":1,"#, "")).expect("a record"), Some(Record::Reading(progress)));
        let error = read(&text.replace(r#""version":1"#, r#""version":2"#)).expect_err("a later version").to_string();
        assert_eq!(
            error,
            format!(
                "{}: it has format version 2, and this importer knows versions up to 1; run the importer that wrote \
                 it, or a newer one",
                path.display()
            )
        );
        // as in receipts before they had a version
        let receipt = r#"{"file": "a.csv", "event_type": "stock", "rows": 1, "accepted": 1, "refused": 0, "bytes": 9,
            "sha256": "00", "started_at": "then", "finished_at": "now", "rejected": null, "error": null, "resume": {
            "progress": {"version": 1, "file": "a.csv", "name": "612e637376", "byte": 9, "line": 2,
            "inside_long_line": false, "accepted": 1, "refused": 0, "refused_bytes": 0, "sha256": "00",
            "started_at": "then"}, "to_rejected": false, "target": "612e637376", "refused_target": null,
            "refused_bytes": 0, "receipt_target": "61", "state": {"device": 1, "inode": 2, "size": 9,
            "modified_ns": 3}}}"#;
        let Ok(Some(Record::Finishing(finished))) = read(receipt) else { panic!("not read") };
        assert_eq!((finished.receipt.version, &*finished.resume.progress.name), (1, OsStr::new("a.csv")));
        assert!(read(&receipt.replacen('{', r#"{"version": 2, "#, 1)).is_err());
    }
}
