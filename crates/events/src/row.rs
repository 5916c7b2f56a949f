//! A line of a CSV file to a record of a topic: split, trim, check, write JSON and key, in one
//! pass and without an allocation for an accepted row. A record is a line, so an unclosed quote
//! spoils its own line and no other.

use std::ops::Range;

use crate::{Header, Kind, kind::whole};

/// A record for Kafka, cleared and filled anew for each row.
#[derive(Debug, Default)]
pub struct Row {
    /// The Kafka key: `5-12`, numbers without leading zeros.
    pub key: Vec<u8>,
    /// The JSON object: the type's columns as strings, in the type's order.
    pub payload: Vec<u8>,
}

/// Why a row is refused: one sentence that names everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// For people: `value: "0" is not a whole number from 1 to 2147483647`.
    pub error: String,
    /// The first column that is wrong, when it is known which.
    pub column: Option<&'static str>,
    /// Name and text of each column of the type; none when the columns could not be told apart.
    pub columns: Option<Vec<(&'static str, String)>>,
}

/// Reads the rows of one file.
#[derive(Debug)]
pub struct RowReader {
    header: Header,
    /// What stands before each column's value in JSON: `{"transaction_id":"`, `","event_type":"`.
    before: Vec<Vec<u8>>,
    fields: Vec<Range<usize>>,
    unquoted: Vec<u8>,
}

impl RowReader {
    /// A reader of the rows under this header.
    pub fn new(header: Header) -> RowReader {
        let columns = header.event_type.columns.iter().enumerate();
        let before = columns
            .map(|(number, column)| {
                let open = if number == 0 { "{" } else { "\"," };
                format!("{open}\"{}\":\"", column.name).into_bytes()
            })
            .collect();
        RowReader { header, before, fields: Vec::new(), unquoted: Vec::new() }
    }

    /// The header these rows stand under.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checks one line (without its line break) and writes its record to `row`. Whether a line is
    /// blank, and to be passed over, is the caller's to see: [`is_blank`].
    pub fn read(&mut self, line: &[u8], row: &mut Row) -> Result<(), RowError> {
        let apart = |error: String| RowError { error, column: None, columns: None };
        let source = match memchr::memchr2(b'"', 0, line) {
            None => split_plain(line, &mut self.fields),
            Some(from) => {
                if let Some(at) = memchr::memchr(0, &line[from..]) {
                    return Err(apart(format!("the line holds a NUL byte at its byte {}", from + at + 1)));
                }
                split_fields(line, &mut self.unquoted, &mut self.fields).map_err(apart)?
            }
        };
        let width = self.header.width;
        let extra = self.fields.iter().skip(width).any(|field| !source[field.clone()].trim_ascii().is_empty());
        // whoever corrects a rejected row may take the reason out together with its comma
        let least = width - usize::from(self.header.ends_in_error);
        if self.fields.len() < least || extra {
            return Err(apart(format!("the line has {} fields, the header has {width}", self.fields.len())));
        }
        let event_type = self.header.event_type;
        row.payload.clear();
        row.key.clear();
        let columns = event_type.columns.iter().zip(&self.header.positions);
        for ((column, position), before) in columns.zip(&self.before) {
            let value = source[self.fields[*position].clone()].trim_ascii();
            if value.is_empty() || column.kind.check(value).is_err() {
                return Err(self.refuse(line));
            }
            row.payload.extend_from_slice(before);
            row.payload.extend_from_slice(value);
        }
        row.payload.extend_from_slice(b"\"}");
        for position in event_type.key {
            let value = source[self.fields[self.header.positions[*position]].clone()].trim_ascii();
            if !row.key.is_empty() {
                row.key.push(b'-');
            }
            row.key.extend_from_slice(canonical(&event_type.columns[*position].kind, value));
        }
        Ok(())
    }

    /// The slow second look at a line that is split but not right: all that is wrong with it.
    fn refuse(&mut self, line: &[u8]) -> RowError {
        let source = split_fields(line, &mut self.unquoted, &mut self.fields).unwrap_or(line);
        let mut columns = Vec::new();
        let mut errors = Vec::new();
        let mut first = None;
        for (column, position) in self.header.event_type.columns.iter().zip(&self.header.positions) {
            let bytes = source[self.fields[*position].clone()].trim_ascii();
            let text = String::from_utf8_lossy(bytes).into_owned();
            let wrong = if bytes.is_empty() {
                Some(format!("{}: is empty", column.name))
            } else if std::str::from_utf8(bytes).is_err() {
                Some(format!("{}: {} is not valid UTF-8", column.name, shown(&text)))
            } else {
                column.kind.check(bytes).err().map(|why| format!("{}: {} {why}", column.name, shown(&text)))
            };
            if let Some(wrong) = wrong {
                first.get_or_insert(column.name);
                errors.push(wrong);
            }
            columns.push((column.name, text));
        }
        RowError { error: errors.join("; "), column: first, columns: Some(columns) }
    }
}

/// Whether a line has nothing on it.
pub fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

/// A value in quotes, shortened to what a sentence can carry.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    }
}

/// A value as it stands in the key, where two spellings of a number must not part.
fn canonical<'a>(kind: &Kind, value: &'a [u8]) -> &'a [u8] {
    match kind {
        Kind::Whole { .. } if value[0] == b'0' && whole(value).is_some() => {
            let zeros = value.iter().take_while(|byte| **byte == b'0').count();
            &value[zeros.min(value.len() - 1)..]
        }
        _ => value,
    }
}

/// Splits a line at its commas. `fields` are ranges of the returned bytes: the line itself, or
/// `unquoted` when there were quotes (RFC 4180: a field in quotes, a quote in it doubled).
pub(crate) fn split_fields<'a>(
    line: &'a [u8],
    unquoted: &'a mut Vec<u8>,
    fields: &mut Vec<Range<usize>>,
) -> Result<&'a [u8], String> {
    if memchr::memchr(b'"', line).is_none() {
        return Ok(split_plain(line, fields));
    }
    fields.clear();
    unquoted.clear();
    let mut at = 0;
    loop {
        let start = unquoted.len();
        let spaces = line[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if line.get(at + spaces) == Some(&b'"') {
            at = unquote(line, at + spaces, unquoted)?;
            at += line[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
            if !matches!(line.get(at), None | Some(b',')) {
                return Err(format!("there is text behind the closing quote, at byte {} of the line", at + 1));
            }
        } else {
            let end = memchr::memchr(b',', &line[at..]).map_or(line.len(), |comma| at + comma);
            unquoted.extend_from_slice(&line[at..end]);
            at = end;
        }
        fields.push(start..unquoted.len());
        if at >= line.len() {
            return Ok(unquoted);
        }
        at += 1;
    }
}

/// Splits a line without quotes.
fn split_plain<'a>(line: &'a [u8], fields: &mut Vec<Range<usize>>) -> &'a [u8] {
    fields.clear();
    let mut start = 0;
    for comma in memchr::memchr_iter(b',', line) {
        fields.push(start..comma);
        start = comma + 1;
    }
    fields.push(start..line.len());
    line
}

/// Appends what stands in the quotes that open at `open`; returns the place behind the closing one.
fn unquote(line: &[u8], open: usize, unquoted: &mut Vec<u8>) -> Result<usize, String> {
    let mut at = open + 1;
    loop {
        let Some(quote) = memchr::memchr(b'"', &line[at..]) else {
            return Err(format!("the quote that opens at byte {} of the line is never closed", open + 1));
        };
        unquoted.extend_from_slice(&line[at..at + quote]);
        at += quote + 1;
        if line.get(at) != Some(&b'"') {
            return Ok(at);
        }
        unquoted.push(b'"');
        at += 1;
    }
}
