//! The receipt of a file: `NAME.receipt.json`.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::progress::first_version;

/// The result of importing a file: `NAME.receipt.json` next to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of this format. Receipts without it have the first one.
    #[serde(default = "first_version")]
    pub version: u32,
    /// The file's name in `input/`.
    pub file: String,
    /// The type of its events, if its header was read.
    pub event_type: Option<String>,
    /// Rows read: `accepted` and `refused`.
    pub rows: u64,
    /// Rows that are on their topic, acknowledged.
    pub accepted: u64,
    /// Rows that are on the errors topic, acknowledged.
    pub refused: u64,
    /// The size of the file; 0 if it could not be read.
    pub bytes: u64,
    /// The SHA-256 of the file, if it could be read.
    pub sha256: Option<String>,
    /// When its import was started, RFC 3339.
    pub started_at: String,
    /// When its last row was acknowledged.
    pub finished_at: String,
    /// The file in `rejected/` that holds the refused rows.
    pub rejected: Option<String>,
    /// What was wrong with the file as a whole.
    pub error: Option<String>,
    /// Its last line has no line break, and was imported as it is. The file may be complete nevertheless, or
    /// its writer may have stopped in the middle of the line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unterminated_last_line: bool,
    /// The file could not be read, is still in `input/`, and is retried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_in_place: bool,
}

impl Receipt {
    /// The JSON text.
    pub(crate) fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// The time, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
