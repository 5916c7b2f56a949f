//! Reads one file: its position, and the step that takes one buffer of it to Kafka.

mod resume;
mod rows;

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use rdkafka::error::RDKafkaErrorCode;

use crate::{
    read::{
        lines::Lines,
        position::{Checkpoint, LastBytes, Position, digest},
        source::{Source, SourceError, WholeFile},
        stream::Stream,
        table::{Table, no_header},
    },
    send::{
        producer::Producer,
        sink::{BUFFER_BYTES, Chunk, Sink, is_about_size},
    },
};

/// The result of a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more.
    More,
    /// The file has no more lines now. `rest`: there are bytes after the last line break.
    End { rest: bool },
    /// Kafka accepts no more now.
    Blocked,
    /// Its content has changed, for this reason: it must be read from its beginning.
    Changed(String),
    /// It cannot be read (further) because of its content, for this reason.
    Corrupt(String),
}

/// How far rows are sent one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OneByOne {
    No,
    /// Up to this byte.
    Until(u64),
    /// Until the next row is acknowledged.
    NextRow,
}

impl OneByOne {
    /// Whether the row that begins at this byte is sent alone.
    fn contains(self, byte: u64) -> bool {
        match self {
            OneByOne::No => false,
            OneByOne::Until(end) => byte < end,
            OneByOne::NextRow => true,
        }
    }
}

/// The rows of the file, and where they go.
struct Target {
    table: Table,
    topic: String,
}

/// A file that is being read.
pub(crate) struct FileReader {
    id: u64,
    /// The file's name, for people.
    name: String,
    gzip: bool,
    pub(crate) source: Option<Source>,
    /// `None` until the header is read.
    target: Option<Target>,
    refused_file: Option<PathBuf>,
    /// Whether a refused row is stored before its refusal is sent, because storing one has failed before:
    /// otherwise its refusal and the rows around it would be sent again with every retry.
    is_careful: bool,
    /// How far it is read.
    pub(crate) position: Position,
    /// How far it is acknowledged.
    pub(crate) acknowledged: Position,
    /// Where the last line begins, if it was read without a line break.
    before_last_line: Option<Position>,
    /// Chunks that are not acknowledged.
    pub(crate) in_flight: u32,
    /// The position of an earlier reading, up to which the file is only compared.
    replay: Option<Checkpoint>,
    /// Rows that Kafka has refused because of their size, by their first byte, and how often.
    oversized: BTreeMap<u64, u8>,
    /// How far rows are sent one at a time, because one of them fails.
    one_by_one: OneByOne,
}

impl FileReader {
    /// `id`: a number that no other file has. `refused_file`: where refused rows are stored.
    pub(crate) fn new(id: u64, name: String, gzip: bool, refused_file: Option<PathBuf>) -> FileReader {
        FileReader {
            id,
            name,
            gzip,
            source: None,
            target: None,
            refused_file,
            is_careful: false,
            position: Position::default(),
            acknowledged: Position::default(),
            before_last_line: None,
            in_flight: 0,
            replay: None,
            oversized: BTreeMap::new(),
            one_by_one: OneByOne::No,
        }
    }

    /// Reads from this file, opened for the first time or again.
    pub(crate) fn open(&mut self, file: File) {
        self.source = Some(Source::new(file, self.gzip));
    }

    /// Reads from a stream, which is not opened again: it keeps what is not [released](FileReader::release).
    pub(crate) fn open_stream(&mut self, stream: Stream) {
        self.source = Some(Source::Stream(stream));
    }

    /// Lets a stream forget what is acknowledged.
    pub(crate) fn release(&mut self) {
        let byte = self.resume_at().byte;
        if let Some(Source::Stream(stream)) = &mut self.source {
            stream.release(byte);
        }
    }

    /// Whether everything that there is to read has arrived.
    pub(crate) fn has_arrived(&self) -> bool {
        self.source.as_ref().is_none_or(Source::has_arrived)
    }

    /// Whether the file, opened again, still has the same bytes before the current position: a cheap check
    /// of the last ones, for files that were overwritten in place meanwhile.
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

    /// The number that it was given.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Rows that are read, and not acknowledged.
    pub(crate) fn rows_ahead(&self) -> u64 {
        let rows = |position: &Position| position.accepted + position.refused;
        rows(&self.position).saturating_sub(rows(&self.acknowledged))
    }

    /// The type of its events, once the header is read.
    pub(crate) fn event_type(&self) -> Option<&'static str> {
        self.target.as_ref().map(|target| target.table.rows.header().event_type.name)
    }

    /// Bytes of the file that were read; of a `.csv.gz`, packed bytes.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.source.as_ref().and_then(Source::packed_bytes_read).unwrap_or(self.position.byte)
    }

    /// A chunk of the file is acknowledged, up to `position`.
    pub(crate) fn acknowledge(&mut self, position: Position) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.one_by_one == OneByOne::NextRow
            && position.accepted + position.refused > self.acknowledged.accepted + self.acknowledged.refused
        {
            self.one_by_one = OneByOne::No;
        }
        self.acknowledged = position;
    }

    /// Where to resume after a restart, or when the file grows.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        self.resume_at().into()
    }

    /// Everything before this position is acknowledged, and is final even if the file grows; a last line
    /// without a line break is not.
    pub(crate) fn resume_at(&self) -> &Position {
        self.before_last_line
            .as_ref()
            .filter(|before| before.byte < self.acknowledged.byte)
            .unwrap_or(&self.acknowledged)
    }

    /// Kafka has refused a record of this chunk because of the record itself. First, the chunk is sent again
    /// one record at a time. Once the record is known, it is refused as a row if it is too large; otherwise
    /// it is an error, which names the line.
    pub(crate) fn narrow_down_refusal(&mut self, chunk: &Chunk, code: RDKafkaErrorCode) -> Result<(), String> {
        if !chunk.is_single {
            // a batch that was refused may be of several chunks, in any order
            if !self.one_by_one.contains(chunk.position.byte) {
                self.one_by_one = OneByOne::Until(chunk.position.byte);
            }
        } else if is_about_size(code) {
            let times = self.oversized.entry(chunk.last_line).or_default();
            *times = times.saturating_add(1);
        } else {
            return Err(format!("Kafka refuses the record of line {}: {code}", chunk.position.line));
        }
        Ok(())
    }

    /// Importing the file has failed before, perhaps at its next row: that row is sent alone, so that the
    /// rows around it are not sent again with every retry.
    pub(crate) fn read_carefully(&mut self) {
        self.is_careful = true;
        self.one_by_one = OneByOne::NextRow;
    }

    /// Whether the next record must wait for the acknowledgement of the one before.
    pub(crate) fn is_one_by_one(&self) -> bool {
        self.one_by_one.contains(self.position.byte)
    }

    /// Takes one buffer of the file to Kafka. `last`: the file is complete, so that bytes after its last
    /// line break are a line too.
    pub(crate) fn step(&mut self, sink: &mut Sink, last: bool) -> Result<Step, io::Error> {
        let Some(source) = self.source.as_mut() else { return Ok(Step::End { rest: false }) };
        if let (Some(replay), Some(_)) = (&self.replay, &self.target) {
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
        let is_single = self.is_one_by_one();
        if self.target.is_some() {
            sink.producer.update_clock();
            let most = if is_single { 1 } else { sink.budget };
            let sent =
                self.send_rows(&mut sink.producer, &mut sink.row, &mut sink.refused, &mut lines, &mut position, most);
            step = sent.inspect_err(|_| sink.refused.clear())?;
        } else if let Err(reason) = self.read_header(&sink.producer, &mut lines, &mut position) {
            return Ok(Step::Corrupt(reason));
        } else if self.target.is_none() && at_end && last {
            return Ok(Step::Corrupt(no_header(self.position.byte + filled as u64).into()));
        } else if self.target.is_none() && !at_end && lines.consumed() == 0 {
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
            sink.producer
                .close(self.id, Chunk { file: self.id, last_line, is_single, position: self.position.clone() });
            self.in_flight += 1;
        }
        if broken && consumed == 0 && step == Step::More {
            let reason = self.source.as_mut().and_then(Source::take_error);
            return reason.map_or(Ok(Step::More), |error| match error {
                SourceError::Io(error) => Err(error),
                SourceError::Corrupt(reason) => Ok(Step::Corrupt(reason)),
            });
        }
        // a last line without a line break gets a step of its own
        let rest = consumed < filled;
        if step == Step::More && at_end && !(rest && (last || lines.next().is_some())) {
            step = Step::End { rest };
        }
        Ok(step)
    }

    /// Reads the header line. An error says what is wrong with the file.
    fn read_header(
        &mut self,
        producer: &Producer<Chunk>,
        lines: &mut Lines<'_>,
        position: &mut Position,
    ) -> Result<(), String> {
        while let Some(piece) = lines.next() {
            position.line += 1;
            if let Some(table) = Table::read(piece, self.position.byte + lines.consumed() as u64)? {
                let topic = producer.topic_of(table.rows.header().event_type).to_owned();
                self.target = Some(Target { table, topic });
                break;
            }
        }
        Ok(())
    }

    /// Hashes the rest of the file, one buffer at a time; returns the whole file at its end.
    pub(crate) fn hash_rest(&mut self, sink: &mut Sink, hash_position: &mut Position) -> io::Result<Option<WholeFile>> {
        let whole = |position: &Position| WholeFile { bytes: position.byte, sha256: digest(&position.hash) };
        let source = match self.source.as_mut() {
            None => return Ok(Some(whole(&self.position))),
            Some(Source::Gzip(gzip)) => return gzip.hash_rest(&mut sink.buffer),
            Some(source) => source,
        };
        let filled = match source.fill(hash_position.byte, &mut sink.buffer) {
            Ok(filled) => filled,
            Err(SourceError::Io(error)) => return Err(error),
            Err(SourceError::Corrupt(_)) => 0,
        };
        hash_position.advance(&sink.buffer[..filled]);
        Ok((filled == 0).then(|| whole(hash_position)))
    }
}

#[cfg(test)]
mod tests;
