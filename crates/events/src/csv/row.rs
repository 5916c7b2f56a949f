//! A line of a CSV file to a record of a topic: split, trim, check, write JSON and key, in one
//! pass and without an allocation for an accepted row. A record is a line, so an unclosed quote
//! affects its own line only.

use std::{borrow::Cow, ops::Range};

use crate::{Header, Kind, csv::kind::integer};

/// The most fields a line may have. A file of ours has a handful; without a limit, a line of commas
/// would take many times its size in memory.
pub const MAX_FIELDS: usize = 4_096;

/// A record for Kafka, cleared and filled again for each row. One serves any number of readers: what
/// they need for the line at hand is kept here, so that a reader's memory does not depend on its file.
#[derive(Debug, Default)]
pub struct Row {
    /// The Kafka key: `5-12`, numbers without leading zeros.
    pub key: Vec<u8>,
    /// The JSON object: the type's columns as strings, in the type's order.
    pub payload: Vec<u8>,
    scratch: Scratch,
}

/// A line that is split.
#[derive(Debug, Default)]
struct Scratch {
    fields: Vec<Range<usize>>,
    unquoted: Vec<u8>,
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
    /// What precedes each column's value in JSON: `{"transaction_id":"`, `","event_type":"`.
    before: Vec<Vec<u8>>,
}

impl RowReader {
    /// A reader of the rows under this header.
    pub fn new(header: Header) -> RowReader {
        let columns = header.csv.columns.iter().enumerate();
        let before = columns
            .map(|(number, column)| {
                let open = if number == 0 { "{" } else { "\"," };
                format!("{open}\"{}\":\"", column.name).into_bytes()
            })
            .collect();
        RowReader { header, before }
    }

    /// The header of the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Checks one line (without its line break) and writes its record to `row`. Blank lines are
    /// for the caller to skip: [`is_blank`].
    pub fn read(&self, line: &[u8], row: &mut Row) -> Result<(), RowError> {
        let Row { key, payload, scratch: Scratch { fields, unquoted } } = row;
        let apart = |error: String| RowError { error, column: None, columns: None };
        let source = match memchr::memchr2(b'"', 0, line) {
            None => split_plain(line, fields).map_err(apart)?,
            Some(from) => {
                if let Some(at) = memchr::memchr(0, &line[from..]) {
                    return Err(apart(format!("the line holds a NUL byte at its byte {}", from + at + 1)));
                }
                split_fields(line, unquoted, fields).map_err(apart)?
            }
        };
        let width = self.header.width;
        let extra = fields.iter().skip(width).any(|field| !source[field.clone()].trim_ascii().is_empty());
        // who corrects a refused row may take the reason out together with its comma
        let least = width - usize::from(self.header.ends_in_error);
        if fields.len() < least || extra {
            return Err(apart(format!("the line has {} fields, the header has {width}", fields.len())));
        }
        payload.clear();
        key.clear();
        let csv = self.header.csv;
        for ((column, position), before) in csv.columns.iter().zip(&self.header.positions).zip(&self.before) {
            let value = position.map_or(&[][..], |position| source[fields[position].clone()].trim_ascii());
            if value.is_empty() && !column.required {
                continue;
            }
            if value.is_empty() || column.kind.check(value).is_err() {
                return Err(self.refuse(source, fields));
            }
            payload.extend_from_slice(before);
            payload.extend_from_slice(value);
        }
        payload.extend_from_slice(b"\"}");
        for position in csv.key {
            let Some(field) = self.header.positions[*position] else { continue };
            let value = source[fields[field].clone()].trim_ascii();
            if !key.is_empty() {
                key.push(b'-');
            }
            key.extend_from_slice(&canonical(&csv.columns[*position].kind, value));
        }
        Ok(())
    }

    /// The slow second look at a line that is split but not right: all that is wrong with it.
    fn refuse(&self, source: &[u8], fields: &[Range<usize>]) -> RowError {
        let mut columns = Vec::new();
        let mut errors = Vec::new();
        let mut first = None;
        for (column, position) in self.header.csv.columns.iter().zip(&self.header.positions) {
            let Some(position) = position else { continue };
            let bytes = source[fields[*position].clone()].trim_ascii();
            let text = String::from_utf8_lossy(bytes).into_owned();
            let wrong = if bytes.is_empty() && !column.required {
                None
            } else if bytes.is_empty() {
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

/// A value as the key has it: two spellings of a number must have the same key.
fn canonical<'a>(kind: &Kind, value: &'a [u8]) -> Cow<'a, [u8]> {
    let (sign, digits) = value.split_at(usize::from(value[0] == b'-'));
    match kind {
        Kind::Integer { .. } if digits.first() == Some(&b'0') && integer(value).is_some() => {
            let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
            let digits = &digits[zeros.min(digits.len() - 1)..];
            if sign.is_empty() { Cow::Borrowed(digits) } else { Cow::Owned([sign, digits].concat()) }
        }
        _ => Cow::Borrowed(value),
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
        return split_plain(line, fields);
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
                return Err(format!("there is text after the closing quote, at byte {} of the line", at + 1));
            }
        } else {
            let end = memchr::memchr(b',', &line[at..]).map_or(line.len(), |comma| at + comma);
            unquoted.extend_from_slice(&line[at..end]);
            at = end;
        }
        if fields.len() == MAX_FIELDS {
            return Err(too_many_fields());
        }
        fields.push(start..unquoted.len());
        if at >= line.len() {
            return Ok(unquoted);
        }
        at += 1;
    }
}

/// Splits a line without quotes.
fn split_plain<'a>(line: &'a [u8], fields: &mut Vec<Range<usize>>) -> Result<&'a [u8], String> {
    fields.clear();
    let mut start = 0;
    for comma in memchr::memchr_iter(b',', line) {
        fields.push(start..comma);
        start = comma + 1;
        if fields.len() == MAX_FIELDS {
            return Err(too_many_fields());
        }
    }
    fields.push(start..line.len());
    Ok(line)
}

#[cold]
fn too_many_fields() -> String {
    format!("the line has more than {MAX_FIELDS} fields")
}

/// Appends what is in the quotes that open at `open`; returns the position after the closing one.
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
