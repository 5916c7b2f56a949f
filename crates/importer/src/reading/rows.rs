//! The rows of a buffer: each becomes a record of its topic, or a refusal on the errors topic and a
//! row in the file of refused rows.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use events::{
    Row, RowError, RowReader,
    csv::row::is_blank,
    dead_letter::{self, RowLocation},
};

use super::{Reading, Step};
use crate::{
    desk::Chunk,
    lines::{LONGEST, Lines, Piece, SHOWN},
    mark::Mark,
    refused,
    sender::{Sender, Sent},
};

/// How much may be written to the file of refused rows at a time.
const REFUSED: usize = 512 * 1024;

impl Reading {
    /// Sends the lines of a buffer, `most` records of them.
    pub(super) fn send_rows(
        &mut self,
        sender: &mut Sender<Chunk>,
        row: &mut Row,
        refused: &mut Vec<u8>,
        lines: &mut Lines<'_>,
        mark: &mut Mark,
        most: u64,
    ) -> io::Result<Step> {
        let mut sent = 0;
        while let Some(piece) = lines.next() {
            let Some(rows) = self.rows.as_mut() else { break };
            let byte = self.here.byte + lines.start() as u64;
            let known = if self.oversized.is_empty() { None } else { self.oversized.get(&byte) };
            let (line, error) = match piece {
                Piece::Line(line) if is_blank(line) => {
                    mark.line += 1;
                    continue;
                }
                Piece::Line(line) if known.is_some() => too_large(line, &self.topic),
                Piece::Line(line) => match rows.read(line, row) {
                    Ok(()) if !sender.fits(&self.topic, row.key.len() + row.payload.len()) => {
                        too_large(line, &self.topic)
                    }
                    Ok(()) => match sender.send(&self.topic, &row.key, &row.payload) {
                        Sent::Yes => {
                            mark.line += 1;
                            mark.accepted += 1;
                            sent += 1;
                            if sent >= most {
                                return Ok(Step::More);
                            }
                            continue;
                        }
                        Sent::Full | Sent::Failed => {
                            lines.take_back();
                            return Ok(Step::Blocked);
                        }
                    },
                    Err(error) => (line, error),
                },
                Piece::TooLong(shown) => {
                    let error = format!("the line is longer than {LONGEST} bytes, these are its first {SHOWN}");
                    (shown, RowError { error, column: None, columns: None })
                }
            };
            let (ends_in_error, width) = (rows.header().ends_in_error, rows.header().width);
            if self.is_careful && mark.line > self.here.line {
                // what is before it need not be sent again, whatever becomes of it
                lines.take_back();
                return Ok(Step::More);
            }
            let before = refused.len();
            refused::row(refused, line, &error.error, ends_in_error, width);
            let kept = mark.refused_bytes;
            if self.is_careful {
                self.keep_refused(refused, mark)?;
                refused.clear();
            }
            let place = RowLocation { file: &self.name, line: mark.line + 1, byte, column: error.column };
            let letter = dead_letter::of_row(sender.errors_topic(), place, &self.topic, line, &error);
            let gone = known.is_some_and(|times| *times > 1) || !sender.fits_letter(&letter);
            if gone {
                tracing::error!(
                    "{:?}, line {}: the errors topic does not take it either: {}",
                    self.name,
                    place.line,
                    error.error
                );
            } else if sender.send_letter(&letter) != Sent::Yes {
                lines.take_back();
                refused.truncate(before);
                mark.refused_bytes = kept;
                return Ok(Step::Blocked);
            }
            mark.line += 1;
            mark.refused += 1;
            sent += 1;
            if sent >= most || refused.len() > REFUSED {
                return Ok(Step::More);
            }
        }
        Ok(Step::More)
    }

    /// Writes refused rows to their file, behind those that are there.
    pub(super) fn keep_refused(&self, rows: &mut Vec<u8>, mark: &mut Mark) -> io::Result<()> {
        let (Some(path), Some(reader)) = (&self.refused_file, &self.rows) else { return Ok(()) };
        self.write_refused(path, reader, rows, mark).map_err(|error| {
            io::Error::new(error.kind(), format!("its refused rows can't be written to rejected/: {error}"))
        })
    }

    fn write_refused(&self, path: &Path, reader: &RowReader, rows: &mut Vec<u8>, mark: &mut Mark) -> io::Result<()> {
        if mark.refused_bytes == 0 {
            let mut header = Vec::new();
            refused::header(&mut header, &self.header_line, reader.header().ends_in_error);
            rows.splice(..0, header);
        }
        let file = File::options().create(true).write(true).truncate(false).open(path)?;
        file.set_len(mark.refused_bytes)?;
        file.write_all_at(rows, mark.refused_bytes)?;
        mark.refused_bytes += rows.len() as u64;
        Ok(())
    }
}

/// A row that is larger than its topic takes.
fn too_large<'a>(line: &'a [u8], topic: &str) -> (&'a [u8], RowError) {
    let error = format!("the row is too large for the topic {topic} (its max.message.bytes)");
    (&line[..line.len().min(SHOWN)], RowError { error, column: None, columns: None })
}
