//! A position in a file.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A position in a file, and what was read before it.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    /// Bytes before it, in the unpacked text.
    pub(crate) byte: u64,
    /// Lines before it.
    pub(crate) line: u64,
    pub(crate) inside_long_line: bool,
    /// Rows before it: accepted, refused.
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// Size of the file of refused rows.
    pub(crate) refused_bytes: u64,
    /// The SHA-256 of everything before it.
    pub(crate) hash: Sha256,
    /// The last bytes before it.
    pub(crate) last_bytes: LastBytes,
}

/// The last bytes before a position; fewer at the beginning of a file, at the end of the array.
pub(crate) type LastBytes = [u8; 64];

impl Default for Position {
    /// The beginning of a file.
    fn default() -> Position {
        Position {
            byte: 0,
            line: 0,
            inside_long_line: false,
            accepted: 0,
            refused: 0,
            refused_bytes: 0,
            hash: Sha256::new(),
            last_bytes: [0; 64],
        }
    }
}

impl Position {
    /// Whether it is in the middle of a line.
    pub(crate) fn is_mid_line(&self) -> bool {
        self.byte > 0 && self.last_bytes.last() != Some(&b'\n')
    }

    /// Moves over these bytes.
    pub(crate) fn advance(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.byte += bytes.len() as u64;
        let kept = bytes.len().min(self.last_bytes.len());
        self.last_bytes.rotate_left(kept);
        let from = self.last_bytes.len() - kept;
        self.last_bytes[from..].copy_from_slice(&bytes[bytes.len() - kept..]);
    }
}

/// The digest so far, in hexadecimal; the hash can be continued.
pub(crate) fn digest(hash: &Sha256) -> String {
    hex::encode(hash.clone().finalize())
}

/// A position as it is stored, to resume there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
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
}

impl From<&Position> for Checkpoint {
    fn from(position: &Position) -> Checkpoint {
        Checkpoint {
            byte: position.byte,
            line: position.line,
            inside_long_line: position.inside_long_line,
            accepted: position.accepted,
            refused: position.refused,
            refused_bytes: position.refused_bytes,
            sha256: digest(&position.hash),
        }
    }
}
