//! The header line of a file, and the rows under it.

use events::{Header, RowError, RowReader, csv::row::is_blank};

use super::lines::{MAX_LINE_BYTES, Piece, SHOWN_BYTES};

/// The longest header line; it is kept in memory while its file is being imported.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// What the header line says about the rows that follow.
pub(crate) struct Table {
    pub(crate) rows: RowReader,
    pub(crate) header_line: Vec<u8>,
    /// Where the line after the header begins.
    pub(crate) begin: u64,
}

impl Table {
    /// Reads the header line, which ends before `begin`; `None` for a blank line. An error says what is wrong
    /// with the file.
    pub(crate) fn read(piece: Piece<'_>, begin: u64) -> Result<Option<Table>, String> {
        let (Piece::Line(line) | Piece::TooLong(line)) = piece;
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if is_blank(line) {
            return Ok(None);
        }
        if line.len() > MAX_HEADER_BYTES {
            return Err(format!("the header line is longer than {MAX_HEADER_BYTES} bytes"));
        }
        let header = Header::read(line).map_err(|error| error.to_string())?;
        Ok(Some(Table { rows: RowReader::new(header), header_line: line.to_vec(), begin }))
    }
}

/// Why a file of so many bytes, which was read to its end, has no header.
pub(crate) fn no_header(bytes: u64) -> &'static str {
    if bytes == 0 { "the file is empty" } else { "the file has no header line, only blank ones" }
}

/// The refusal of a line that is too long.
pub(crate) fn too_long() -> RowError {
    let error = format!("the line is longer than {MAX_LINE_BYTES} bytes, these are its first {SHOWN_BYTES}");
    RowError { error, column: None, columns: None }
}
