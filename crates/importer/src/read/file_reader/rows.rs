//! The rows of a buffer: each becomes a record of its topic, or a refusal on the errors topic and a
//! row in the file of refused rows.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use events::{
    Row, RowError,
    csv::row::is_blank,
    dead_letter::{self, RowLocation},
};

use super::{FileReader, Step, Target};
use crate::{
    read::{
        lines::{Lines, Piece, SHOWN_BYTES},
        position::Position,
        table::{Table, too_long},
    },
    send::{
        producer::{Producer, SendResult},
        refused_rows,
        sink::Chunk,
    },
};

/// How many bytes are written to the file of refused rows at a time.
const MAX_REFUSED_BYTES: usize = 512 * 1024;

impl FileReader {
    /// Sends the lines of a buffer, at most `max_records` records.
    pub(super) fn send_rows(
        &mut self,
        producer: &mut Producer<Chunk>,
        row: &mut Row,
        refused: &mut Vec<u8>,
        lines: &mut Lines<'_>,
        position: &mut Position,
        max_records: u64,
    ) -> io::Result<Step> {
        let mut sent = 0;
        while let Some(piece) = lines.next() {
            let Some(Target { table: Table { rows, .. }, topic }) = &self.target else { break };
            let byte = self.position.byte + lines.start() as u64;
            let known = if self.oversized.is_empty() { None } else { self.oversized.get(&byte) };
            let (line, error) = match piece {
                Piece::Line(line) if is_blank(line) => {
                    position.line += 1;
                    continue;
                }
                Piece::Line(line) if known.is_some() => too_large(line, topic),
                Piece::Line(line) => match rows.read(line, row) {
                    Ok(()) if !producer.fits(topic, row.key.len() + row.payload.len()) => too_large(line, topic),
                    Ok(()) => match producer.send(topic, &row.key, &row.payload) {
                        SendResult::Sent => {
                            position.line += 1;
                            position.accepted += 1;
                            sent += 1;
                            if sent >= max_records {
                                return Ok(Step::More);
                            }
                            continue;
                        }
                        SendResult::QueueFull | SendResult::Failed => {
                            lines.unread();
                            return Ok(Step::Blocked);
                        }
                    },
                    Err(error) => (line, error),
                },
                Piece::TooLong(shown) => (shown, too_long()),
            };
            let (ends_in_error, width) = (rows.header().ends_in_error, rows.header().width);
            if self.is_careful && position.line > self.position.line {
                // the rows before it get their own chunk, and are not sent again if this one fails
                lines.unread();
                return Ok(Step::More);
            }
            let before = refused.len();
            refused_rows::write_row(refused, line, &error.error, ends_in_error, width);
            let kept = position.refused_bytes;
            if self.is_careful {
                self.store_refused(refused, position)?;
                refused.clear();
            }
            let place = RowLocation { file: &self.name, line: position.line + 1, byte, column: error.column };
            let letter = dead_letter::of_row(producer.errors_topic(), place, topic, line, &error);
            let unsendable = known.is_some_and(|times| *times > 1) || !producer.fits_dead_letter(&letter);
            if unsendable {
                tracing::error!(
                    file = self.name,
                    line = place.line,
                    byte,
                    reason = error.error,
                    "a refused row is larger than the errors topic allows: it is in rejected/ only"
                );
            } else if producer.send_dead_letter(&letter) != SendResult::Sent {
                lines.unread();
                refused.truncate(before);
                position.refused_bytes = kept;
                return Ok(Step::Blocked);
            }
            position.line += 1;
            position.refused += 1;
            sent += 1;
            if sent >= max_records || refused.len() > MAX_REFUSED_BYTES {
                return Ok(Step::More);
            }
        }
        Ok(Step::More)
    }

    /// Appends refused rows to their file.
    pub(super) fn store_refused(&self, rows: &mut Vec<u8>, position: &mut Position) -> io::Result<()> {
        let (Some(path), Some(target)) = (&self.refused_file, &self.target) else { return Ok(()) };
        self.write_refused(path, &target.table, rows, position).map_err(|error| {
            io::Error::new(error.kind(), format!("its refused rows cannot be written to rejected/: {error}"))
        })
    }

    fn write_refused(&self, path: &Path, table: &Table, rows: &mut Vec<u8>, position: &mut Position) -> io::Result<()> {
        if position.refused_bytes == 0 {
            let mut header = Vec::new();
            refused_rows::write_header(&mut header, &table.header_line, table.rows.header().ends_in_error);
            rows.splice(..0, header);
        }
        let file = File::options().create(true).write(true).truncate(false).open(path)?;
        file.set_len(position.refused_bytes)?;
        file.write_all_at(rows, position.refused_bytes)?;
        position.refused_bytes += rows.len() as u64;
        Ok(())
    }
}

/// The refusal of a row that is larger than its topic allows.
fn too_large<'a>(line: &'a [u8], topic: &str) -> (&'a [u8], RowError) {
    let error = format!("the row is too large for the topic {topic} (its max.message.bytes)");
    (&line[..line.len().min(SHOWN_BYTES)], RowError { error, column: None, columns: None })
}
