//! Reads a file or a stream as an import would, without Kafka: which of its rows would be refused.

use std::{thread, time::Duration};

use anyhow::Result;
use events::{Row, csv::row::is_blank};
use tokio_util::sync::CancellationToken;

use crate::{
    ImportReport, Input, Receipt, StoppedAt,
    finish::receipt::now,
    import_file::open_source,
    progress::VERSION,
    read::{
        lines::{Lines, Piece},
        position::{Position, digest},
        source::Source,
        table::{Table, no_header, too_long},
    },
    send::sink::BUFFER_BYTES,
};

/// How often to look whether more of a stream has arrived.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A row that would be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedRow<'a> {
    /// Counted from 1; the header is line 1.
    pub line: u64,
    /// Its first byte in the unpacked text, counted from 0.
    pub byte: u64,
    /// The first column that is wrong, when known.
    pub column: Option<&'static str>,
    /// Everything that is wrong with it.
    pub reason: &'a str,
}

/// Reads a whole file or stream, and calls `refuse` for every row that an import would refuse. The report says
/// what the import would; only a row that is too large for its topic is not noticed, since Kafka is not asked.
pub fn check_file(
    input: Input,
    shutdown: &CancellationToken,
    refuse: impl FnMut(RefusedRow<'_>),
) -> Result<ImportReport> {
    let (file, started_at) = (input.name(), now());
    let source = open_source(input)?;
    let mut check = Check { source, table: None, position: Position::default(), row: Row::default(), refuse };
    let (end, is_stopped) = check.run(shutdown);
    let (error, position) = (end.err(), &check.position);
    let receipt = Receipt {
        version: VERSION,
        file,
        event_type: check.table.as_ref().map(|table| table.rows.header().event_type.name.to_owned()),
        rows: position.accepted + position.refused,
        accepted: position.accepted,
        refused: position.refused,
        bytes: check.source.packed_bytes_read().unwrap_or(position.byte),
        sha256: (!is_stopped && error.is_none() && check.source.packed_bytes_read().is_none())
            .then(|| digest(&position.hash)),
        started_at,
        finished_at: now(),
        rejected: None,
        unterminated_last_line: !is_stopped && position.is_mid_line(),
        error,
        left_in_place: false,
    };
    let stopped_at = is_stopped.then(|| StoppedAt { byte: position.byte, line: position.line + 1 });
    Ok(ImportReport { receipt, stopped_at })
}

struct Check<F> {
    source: Source,
    table: Option<Table>,
    position: Position,
    row: Row,
    refuse: F,
}

impl<F: FnMut(RefusedRow<'_>)> Check<F> {
    /// Reads to the end. Returns what is wrong with the file as a whole, and whether it was stopped before.
    fn run(&mut self, shutdown: &CancellationToken) -> (Result<(), String>, bool) {
        let mut buffer = vec![0; BUFFER_BYTES];
        while !shutdown.is_cancelled() {
            match self.step(&mut buffer) {
                Ok(true) => {}
                Ok(false) => return (Ok(()), false),
                Err(reason) => return (Err(reason), false),
            }
        }
        (Ok(()), true)
    }

    /// Reads one buffer; returns whether there may be another one.
    fn step(&mut self, buffer: &mut [u8]) -> Result<bool, String> {
        let has_arrived = self.source.has_arrived();
        let filled = self.source.fill(self.position.byte, buffer).map_err(|error| error.to_string())?;
        let at_end = filled < buffer.len() && !self.source.has_error();
        let begin = self.position.byte;
        let mut lines = Lines::new(&buffer[..filled], self.position.inside_long_line, at_end && has_arrived);
        while let Some(piece) = lines.next() {
            self.line(piece, begin + lines.start() as u64, begin + lines.consumed() as u64)?;
        }
        let consumed = lines.consumed();
        self.position.inside_long_line = lines.skipping();
        self.source.unread(&buffer[consumed..filled]);
        self.position.advance(&buffer[..consumed]);
        if let Source::Stream(stream) = &mut self.source {
            stream.release(self.position.byte);
        }
        if consumed > 0 {
            return Ok(true);
        }
        if let Some(error) = self.source.take_error() {
            return Err(error.to_string());
        }
        if !at_end {
            return Err("the file has no header line".into());
        }
        if !has_arrived {
            thread::sleep(POLL_INTERVAL);
            return Ok(true);
        }
        if self.table.is_none() {
            return Err(no_header(self.position.byte).into());
        }
        Ok(false)
    }

    /// One line, from byte `start` to the byte before `end`.
    fn line(&mut self, piece: Piece<'_>, start: u64, end: u64) -> Result<(), String> {
        self.position.line += 1;
        let Some(table) = &self.table else {
            self.table = Table::read(piece, end)?;
            return Ok(());
        };
        let refusal = match piece {
            Piece::Line(line) if is_blank(line) => return Ok(()),
            Piece::Line(line) => table.rows.read(line, &mut self.row).err(),
            Piece::TooLong(_) => Some(too_long()),
        };
        let Some(error) = refusal else {
            self.position.accepted += 1;
            return Ok(());
        };
        self.position.refused += 1;
        (self.refuse)(RefusedRow { line: self.position.line, byte: start, column: error.column, reason: &error.error });
        Ok(())
    }
}
