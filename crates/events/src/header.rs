//! The header line of a CSV file: which event type it is, and where each column stands.

use crate::{EVENT_TYPES, EventType, row::split_fields};

/// A recognised header line.
#[derive(Debug, Clone)]
pub struct Header {
    /// The type of every row of the file.
    pub event_type: &'static EventType,
    /// For each column of the type, the position of its field in a row.
    pub positions: Vec<usize>,
    /// How many fields the line has, further columns counted.
    pub width: usize,
    /// Whether the last column is `error`, as in a file of rejected rows dropped in again.
    pub ends_in_error: bool,
}

/// Why a line is no header of ours; says what it should look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Columns are missing, or it is a row: there is no header at all.
    #[error("the first line is not a header of a known kind of event: {found}; expected {expected}")]
    Unknown {
        /// What is there, shortened.
        found: String,
        /// The header lines of all types.
        expected: String,
    },
    /// A column stands there twice.
    #[error("the header names the column {0} twice")]
    Twice(&'static str),
}

impl Header {
    /// Recognises a header line (without its line break; a byte-order mark is skipped): the
    /// columns of a type in any order, upper or lower case, among others.
    pub fn read(line: &[u8]) -> Result<Header, HeaderError> {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let mut unquoted = Vec::new();
        let mut fields = Vec::new();
        let names: Vec<String> = match split_fields(line, &mut unquoted, &mut fields) {
            Ok(source) => fields
                .iter()
                .map(|field| String::from_utf8_lossy(&source[field.clone()]).trim().to_ascii_lowercase())
                .collect(),
            Err(_) => Vec::new(),
        };
        for event_type in EVENT_TYPES {
            let mut positions = Vec::with_capacity(event_type.columns.len());
            for column in event_type.columns {
                let mut places = names.iter().enumerate().filter(|(_, name)| *name == column.name);
                if let Some((position, _)) = places.next() {
                    positions.push(position);
                }
                if places.next().is_some() {
                    return Err(HeaderError::Twice(column.name));
                }
            }
            if positions.len() == event_type.columns.len() {
                let ends_in_error = names.last().is_some_and(|name| name == "error");
                return Ok(Header { event_type, positions, width: names.len(), ends_in_error });
            }
        }
        Err(HeaderError::unknown(line))
    }
}

impl HeaderError {
    fn unknown(line: &[u8]) -> HeaderError {
        let text = String::from_utf8_lossy(&line[..line.len().min(200)]);
        let hint =
            if text.contains(';') || text.contains('\t') { " (the columns must be separated by commas)" } else { "" };
        let expected: Vec<_> = EVENT_TYPES.iter().map(|event_type| event_type.header_line()).collect();
        HeaderError::Unknown { found: format!("{text:?}{hint}"), expected: expected.join(" or ") }
    }
}
