//! What became of a file, for people: `NAME.receipt.json`.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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

/// The time, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
