//! The header line of a CSV file: which event type it is, and the position of each column.

use crate::{Column, CsvForm, EVENT_TYPES, EventType, csv::row::split_fields};

/// A recognised header line.
#[derive(Debug, Clone)]
pub struct Header {
    /// The type of every row of the file.
    pub event_type: &'static EventType,
    /// How its rows are written.
    pub csv: &'static CsvForm,
    /// For each column of the form, the position of its field in a row, if the file has it.
    pub positions: Vec<Option<usize>>,
    /// How many fields the line has, further columns counted.
    pub width: usize,
    /// Whether the last column is `error`, as in a file of refused rows that is imported again.
    pub ends_in_error: bool,
}

/// Why a line is not a header that we know; says what it should look like.
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
    /// A column is named twice.
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
        // of several types whose required columns are there, the one that explains most of the columns
        let matches = EVENT_TYPES.iter().filter_map(|event_type| {
            let csv = event_type.csv?;
            Some((event_type, csv, positions(csv, &names)?))
        });
        let found = matches.max_by_key(|(.., positions)| positions.iter().flatten().count());
        let Some((event_type, csv, positions)) = found else { return Err(HeaderError::unknown(line)) };
        let is_twice = |column: &&Column| names.iter().filter(|name| *name == column.name).count() > 1;
        if let Some(column) = csv.columns.iter().find(is_twice) {
            return Err(HeaderError::Twice(column.name));
        }
        let ends_in_error = names.last().is_some_and(|name| name == "error");
        Ok(Header { event_type, csv, positions, width: names.len(), ends_in_error })
    }
}

/// The position of each column, when the required ones are there.
fn positions(csv: &CsvForm, names: &[String]) -> Option<Vec<Option<usize>>> {
    let position = |column: &Column| names.iter().position(|name| name == column.name);
    let positions: Vec<_> = csv.columns.iter().map(position).collect();
    let is_complete =
        csv.columns.iter().zip(&positions).all(|(column, position)| position.is_some() || !column.required);
    is_complete.then_some(positions)
}

impl HeaderError {
    fn unknown(line: &[u8]) -> HeaderError {
        let text = String::from_utf8_lossy(&line[..line.len().min(200)]);
        let hint =
            if text.contains(';') || text.contains('\t') { " (the columns must be separated by commas)" } else { "" };
        let expected: Vec<_> =
            EVENT_TYPES.iter().filter_map(|event_type| event_type.csv).map(CsvForm::header_line).collect();
        HeaderError::Unknown { found: format!("{text:?}{hint}"), expected: expected.join(" or ") }
    }
}
