//! One file on its way: where we are in it, and the step that takes a buffer of it to Kafka. Knows
//! nothing of directories, of other files, or of when a file is complete.

mod resume;
mod rows;

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use events::{Header, RowReader, csv::row::is_blank};
use rdkafka::error::RDKafkaErrorCode;

use crate::{
    progress::Progress,
    read::{
        lines::{Lines, Piece},
        position::{LastBytes, Position, digest},
        source::{Source, SourceError},
    },
    send::{
        producer::Producer,
        sink::{BUFFER_BYTES, Chunk, Sink, is_about_size},
    },
};

/// The longest header line, which is kept as long as its file is being imported.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more.
    More,
    /// The file has no more lines now; `rest` tells whether bytes without a line break are left.
    End { rest: bool },
    /// Kafka takes no more now.
    Blocked,
    /// It is not the file it was: start anew.
    Changed(String),
    /// It is not a file we can read (further), for this reason.
    Corrupt(String),
}

/// One file on its way.
pub(crate) struct FileReader {
    id: u64,
    /// The file's name, for people.
    name: String,
    gzip: bool,
    pub(crate) source: Option<Source>,
    rows: Option<RowReader>,
    /// Where the line behind the header begins; 0 while the header is not known.
    rows_begin: u64,
    header_line: Vec<u8>,
    topic: String,
    refused_file: Option<PathBuf>,
    /// Whether a refused row is kept before its refusal is sent, because keeping one has failed:
    /// otherwise it would be sent again at every try, and what stands around it.
    is_careful: bool,
    /// How far it is read.
    pub(crate) position: Position,
    /// How far it is acknowledged.
    pub(crate) acknowledged: Position,
    /// Where the last line begins, when it was read without its line break.
    before_last_line: Option<Position>,
    /// Chunks on their way.
    pub(crate) in_flight: u32,
    /// How far an earlier process came: up to there it is only compared.
    replay: Option<Progress>,
    /// Rows that Kafka does not take because of their size, by their first byte, and how often.
    oversized: BTreeMap<u64, u8>,
    /// Up to this byte, one record at a time: Kafka has refused one of them. The largest number stands
    /// for the next row alone.
    one_by_one_until: u64,
}

impl FileReader {
    /// `refused_file`: where refused rows are kept.
    pub(crate) fn new(id: u64, name: String, gzip: bool, refused_file: Option<PathBuf>) -> FileReader {
        FileReader {
            id,
            name,
            gzip,
            source: None,
            rows: None,
            rows_begin: 0,
            header_line: Vec::new(),
            topic: String::new(),
            refused_file,
            is_careful: false,
            position: Position::default(),
            acknowledged: Position::default(),
            before_last_line: None,
            in_flight: 0,
            replay: None,
            oversized: BTreeMap::new(),
            one_by_one_until: 0,
        }
    }

    /// The file, opened (again).
    pub(crate) fn open(&mut self, file: File) {
        self.source = Some(Source::new(file, self.gzip));
    }

    /// Whether the file, opened again, has the same bytes before the place where we are: a cheap
    /// look at the last ones, for files that were overwritten in place meanwhile.
    pub(crate) fn matches_file(&mut self) -> io::Result<bool> {
        let position = &self.position;
        let length = position.byte.min(position.last_bytes.len() as u64) as usize;
        let Some(Source::Plain(file)) = &self.source else { return Ok(true) };
        let mut found: LastBytes = [0; 64];
        match file.read_exact_at(&mut found[..length], position.byte - length as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(found[..length] == position.last_bytes[position.last_bytes.len() - length..]),
        }
    }

    /// The number it was given.
    pub(crate) fn number(&self) -> u64 {
        self.id
    }

    /// Rows between what is acknowledged and what is read.
    pub(crate) fn rows_ahead(&self) -> u64 {
        let rows = |position: &Position| position.accepted + position.refused;
        rows(&self.position).saturating_sub(rows(&self.acknowledged))
    }

    /// The type of its events, when known.
    pub(crate) fn event_type(&self) -> Option<&'static str> {
        self.rows.as_ref().map(|rows| rows.header().event_type.name)
    }

    /// Bytes of the file, as it is, that were read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.source.as_ref().and_then(Source::packed_bytes_read).unwrap_or(self.position.byte)
    }

    /// A chunk of it is acknowledged.
    pub(crate) fn acknowledge(&mut self, position: Position) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.one_by_one_until == u64::MAX
            && position.accepted + position.refused > self.acknowledged.accepted + self.acknowledged.refused
        {
            self.one_by_one_until = 0;
        }
        self.acknowledged = position;
    }

    /// Where to go on after a restart, or when the file grows.
    pub(crate) fn progress(&self, name: &str, started_at: String) -> Progress {
        Progress::new(self.name.clone(), name.to_owned(), self.resume_at(), started_at)
    }

    /// Everything before is acknowledged, and stays as it is when the file grows: a last line without
    /// its line break may become longer.
    pub(super) fn resume_at(&self) -> &Position {
        self.before_last_line
            .as_ref()
            .filter(|before| before.byte < self.acknowledged.byte)
            .unwrap_or(&self.acknowledged)
    }

    /// Kafka has refused a record of this chunk for what it is. Which one is not known at first: they
    /// are sent again one by one. An error tells which it is, unless it is too large by itself: then it
    /// is refused as a row.
    pub(crate) fn narrow_down_refusal(&mut self, chunk: &Chunk, code: RDKafkaErrorCode) -> Result<(), String> {
        if chunk.last_line >= self.one_by_one_until {
            self.one_by_one_until = chunk.position.byte;
        } else if is_about_size(code) {
            let times = self.oversized.entry(chunk.last_line).or_default();
            *times = times.saturating_add(1);
        } else {
            return Err(format!("Kafka refuses what becomes of its line {}: {code}", chunk.position.line));
        }
        Ok(())
    }

    /// Importing it has failed before. What it failed at may be the first row: that one goes alone, so
    /// that nothing around it is sent at every try.
    pub(crate) fn read_carefully(&mut self) {
        self.is_careful = true;
        self.one_by_one_until = u64::MAX;
    }

    /// Whether the next record must wait for the acknowledgement of the one before.
    pub(crate) fn is_one_by_one(&self) -> bool {
        self.position.byte < self.one_by_one_until
    }

    /// Takes one buffer of the file to Kafka. `last`: the file is complete, so that what stands
    /// behind its last line break is a line too.
    pub(crate) fn step(&mut self, sink: &mut Sink, last: bool) -> Result<Step, io::Error> {
        let Some(source) = self.source.as_mut() else { return Ok(Step::End { rest: false }) };
        if let (Some(replay), Some(_)) = (&self.replay, &self.rows) {
            let left = replay.byte.saturating_sub(self.position.byte);
            let length = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            return match source.fill(self.position.byte, &mut sink.buffer[..length]) {
                Ok(filled) => Ok(self.compare(&sink.buffer[..filled])),
                Err(SourceError::Io(error)) => Err(error),
                Err(SourceError::Corrupt(reason)) => Ok(Step::Changed(reason)),
            };
        }
        let filled = match source.fill(self.position.byte, &mut sink.buffer) {
            Ok(filled) => filled,
            Err(SourceError::Io(error)) => return Err(error),
            Err(SourceError::Corrupt(reason)) => return Ok(Step::Corrupt(reason)),
        };
        let broken = source.has_error();
        let at_end = filled < BUFFER_BYTES && !broken;
        let mut lines = Lines::new(&sink.buffer[..filled], self.position.inside_long_line, last && at_end);
        let mut position = self.position.clone();
        let mut step = Step::More;
        if self.rows.is_some() {
            sink.producer.update_clock();
            let most = if self.is_one_by_one() { 1 } else { sink.budget };
            let sent =
                self.send_rows(&mut sink.producer, &mut sink.row, &mut sink.refused, &mut lines, &mut position, most);
            step = sent.inspect_err(|_| sink.refused.clear())?;
        } else if let Err(reason) = self.read_header(&sink.producer, &mut lines, &mut position) {
            return Ok(Step::Corrupt(reason));
        } else if self.rows.is_none() && at_end && last {
            let reason = if self.position.byte + filled as u64 == 0 {
                "the file is empty"
            } else {
                "the file has no header line, only blank ones"
            };
            return Ok(Step::Corrupt(reason.into()));
        } else if self.rows.is_none() && !at_end && lines.consumed() == 0 {
            return Ok(Step::Corrupt("the file has no header line".into()));
        }
        if !sink.refused.is_empty() {
            let kept = self.store_refused(&mut sink.refused, &mut position);
            sink.refused.clear();
            kept?;
        }
        let consumed = lines.consumed();
        if let Some(source) = self.source.as_mut() {
            source.unread(&sink.buffer[consumed..filled]);
        }
        position.advance(&sink.buffer[..consumed]);
        if last && position.is_mid_line() && !self.gzip && !self.position.is_mid_line() {
            self.before_last_line = Some(self.position.clone());
        }
        position.inside_long_line = lines.skipping();
        let last_line = self.position.byte + lines.start() as u64;
        self.position = position;
        if self.replay.is_none() && (consumed > 0 || sink.producer.failed()) {
            sink.producer.close(self.id, Chunk { file: self.id, last_line, position: self.position.clone() });
            self.in_flight += 1;
        }
        if broken && consumed == 0 && step == Step::More {
            let reason = self.source.as_mut().and_then(Source::take_error);
            return reason.map_or(Ok(Step::More), |error| match error {
                SourceError::Io(error) => Err(error),
                SourceError::Corrupt(reason) => Ok(Step::Corrupt(reason)),
            });
        }
        // a last line without its line break has a step of its own
        let rest = consumed < filled;
        if step == Step::More && at_end && !(rest && (last || lines.next().is_some())) {
            step = Step::End { rest };
        }
        Ok(step)
    }

    /// Finds the header line. An error says what is wrong with the file.
    fn read_header(
        &mut self,
        producer: &Producer<Chunk>,
        lines: &mut Lines<'_>,
        position: &mut Position,
    ) -> Result<(), String> {
        while let Some(piece) = lines.next() {
            let (Piece::Line(line) | Piece::TooLong(line)) = piece;
            position.line += 1;
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            if is_blank(line) {
                continue;
            }
            if line.len() > MAX_HEADER_BYTES {
                return Err(format!("the header line is longer than {MAX_HEADER_BYTES} bytes"));
            }
            let header = Header::read(line).map_err(|error| error.to_string())?;
            producer.topic_of(header.event_type).clone_into(&mut self.topic);
            self.header_line = line.to_vec();
            self.rows = Some(RowReader::new(header));
            self.rows_begin = self.position.byte + lines.consumed() as u64;
            break;
        }
        Ok(())
    }

    /// Reads on to the end without sending, a buffer at a time; then the whole file's size and
    /// SHA-256.
    pub(crate) fn hash_rest(
        &mut self,
        sink: &mut Sink,
        hash_position: &mut Position,
    ) -> io::Result<Option<(u64, String)>> {
        let Some(source) = self.source.as_mut() else {
            return Ok(Some((self.position.byte, digest(&self.position.hash))));
        };
        if self.gzip {
            return source.rest(&mut sink.buffer);
        }
        let filled = match source.fill(hash_position.byte, &mut sink.buffer) {
            Ok(filled) => filled,
            Err(SourceError::Io(error)) => return Err(error),
            Err(SourceError::Corrupt(_)) => 0,
        };
        hash_position.advance(&sink.buffer[..filled]);
        Ok((filled == 0).then(|| (hash_position.byte, digest(&hash_position.hash))))
    }
}

#[cfg(test)]
mod tests;
