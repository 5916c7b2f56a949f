//! What is written about a file: its progress while it is read, and its receipt afterwards.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::names::{hex, unhex};

/// What became of a file: `NAME.receipt.json` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The file's name in `input/`.
    pub file: String,
    /// The type of its events, when its header was known.
    pub event_type: Option<String>,
    /// Rows read: `accepted` and `refused`.
    pub rows: u64,
    /// Rows that are on their topic, acknowledged.
    pub accepted: u64,
    /// Rows that are on the errors topic, acknowledged.
    pub refused: u64,
    /// The size of the file.
    pub bytes: u64,
    /// The SHA-256 of the file.
    pub sha256: String,
    /// When it was begun, RFC 3339.
    pub started_at: String,
    /// When its last row was acknowledged.
    pub finished_at: String,
    /// The file in `rejected/` that holds the refused rows.
    pub rejected: Option<String>,
    /// What was wrong with the file as a whole.
    pub error: Option<String>,
    /// Its last line has no line break, and was read as it is: the file may be complete all the
    /// same, or its writer stopped in the middle.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unterminated_last_line: bool,
    /// The file could not be read, is still in `input/`, and is tried again and again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_in_place: bool,
}

impl Receipt {
    /// As it is written: JSON for people, a text file.
    pub(crate) fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// How far a file is: everything before `byte` is acknowledged by Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The file's name, for people.
    pub(crate) file: String,
    /// The file's name, its bytes in hexadecimal.
    pub(crate) name: String,
    /// Where to go on, in the unpacked text.
    pub(crate) byte: u64,
    /// Lines before that.
    pub(crate) line: u64,
    /// Whether that is inside a line that is too long, whose rest is passed over.
    pub(crate) inside_long_line: bool,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// The size of the file of refused rows.
    pub(crate) refused_bytes: u64,
    /// The SHA-256 of everything before `byte`.
    pub(crate) sha256: String,
    pub(crate) started_at: String,
    /// Set when all is acknowledged and only files are left to be moved.
    pub(crate) finished: Option<Finished>,
}

/// What is left to do with a finished file. Each step may have been done already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) receipt: Receipt,
    /// Whether it goes to `rejected/` instead of `done/`.
    pub(crate) to_rejected: bool,
    /// Its new name, in hexadecimal. None when it has gone away by itself.
    pub(crate) target: Option<String>,
    /// The new name of the file of refused rows, in hexadecimal.
    pub(crate) refused_target: Option<String>,
    /// The name of the receipt, in hexadecimal.
    pub(crate) receipt_target: String,
    /// Which file it is, so that another of the same name is not taken for it.
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Progress {
    /// Reads a record; one that is missing or spoilt (by a power failure) counts as none.
    pub(crate) fn read(path: &Path) -> Option<Progress> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub(crate) fn name(&self) -> Option<OsString> {
        unhex(&self.name).map(OsString::from_vec)
    }
}

/// The bytes of a name, for a record.
pub(crate) fn name_to_hex(name: &std::ffi::OsStr) -> String {
    hex(name.as_bytes())
}

/// The name in a record.
pub(crate) fn name_from_hex(text: &str) -> OsString {
    OsString::from_vec(unhex(text).unwrap_or_default())
}

/// The digest so far, as text; the hash goes on.
pub(crate) fn digest(hash: &Sha256) -> String {
    hex(&hash.clone().finalize())
}

/// The time, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
