//! One file on its way: where we are in it, and the step that takes a buffer of it to Kafka. Knows
//! nothing of directories, of other files, or of when a file is complete.

mod again;
mod rows;

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use events::{Header, RowReader, csv::row::is_blank};
use rdkafka::error::RDKafkaErrorCode;

use crate::{
    desk::{BUFFER, Chunk, Desk, is_about_size},
    lines::{Lines, Piece},
    mark::{Mark, Tail},
    receipt::{Progress, digest},
    sender::Sender,
    source::{Source, SourceError},
};

/// The longest header line, which is kept as long as its file is being imported.
const LONGEST_HEADER: usize = 8 * 1024;

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
    Spoilt(String),
}

/// One file on its way.
pub(crate) struct Reading {
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
    pub(crate) here: Mark,
    /// How far it is acknowledged.
    pub(crate) durable: Mark,
    /// Where the last line begins, when it was read without its line break.
    before_last_line: Option<Mark>,
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

impl Reading {
    /// `refused_file`: where refused rows are kept.
    pub(crate) fn new(id: u64, name: String, gzip: bool, refused_file: Option<PathBuf>) -> Reading {
        Reading {
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
            here: Mark::default(),
            durable: Mark::default(),
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
    pub(crate) fn fits(&mut self) -> io::Result<bool> {
        let here = &self.here;
        let length = here.byte.min(here.last.len() as u64) as usize;
        let Some(Source::Plain(file)) = &self.source else { return Ok(true) };
        let mut found: Tail = [0; 64];
        match file.read_exact_at(&mut found[..length], here.byte - length as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(found[..length] == here.last[here.last.len() - length..]),
        }
    }

    /// The number it was given.
    pub(crate) fn number(&self) -> u64 {
        self.id
    }

    /// Rows between what is acknowledged and what is read.
    pub(crate) fn rows_ahead(&self) -> u64 {
        let rows = |mark: &Mark| mark.accepted + mark.refused;
        rows(&self.here).saturating_sub(rows(&self.durable))
    }

    /// The type of its events, when known.
    pub(crate) fn event_type(&self) -> Option<&'static str> {
        self.rows.as_ref().map(|rows| rows.header().event_type.name)
    }

    /// Bytes of the file, as it is, that were read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.source.as_ref().and_then(Source::packed).unwrap_or(self.here.byte)
    }

    /// A chunk of it is acknowledged.
    pub(crate) fn landed(&mut self, mark: Mark) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.one_by_one_until == u64::MAX
            && mark.accepted + mark.refused > self.durable.accepted + self.durable.refused
        {
            self.one_by_one_until = 0;
        }
        self.durable = mark;
    }

    /// Where to go on after a restart, or when the file grows.
    pub(crate) fn progress(&self, name: &str, started_at: String) -> Progress {
        Progress::new(self.name.clone(), name.to_owned(), self.resume_at(), started_at)
    }

    /// Everything before is acknowledged, and stays as it is when the file grows: a last line without
    /// its line break may become longer.
    pub(super) fn resume_at(&self) -> &Mark {
        self.before_last_line.as_ref().filter(|before| before.byte < self.durable.byte).unwrap_or(&self.durable)
    }

    /// Kafka has refused a record of this chunk for what it is. Which one is not known at first: they
    /// are sent again one by one. An error tells which it is, unless it is too large by itself: then it
    /// is refused as a row.
    pub(crate) fn is_refused(&mut self, chunk: &Chunk, code: RDKafkaErrorCode) -> Result<(), String> {
        if chunk.last_line >= self.one_by_one_until {
            self.one_by_one_until = chunk.mark.byte;
        } else if is_about_size(code) {
            let times = self.oversized.entry(chunk.last_line).or_default();
            *times = times.saturating_add(1);
        } else {
            return Err(format!("Kafka refuses what becomes of its line {}: {code}", chunk.mark.line));
        }
        Ok(())
    }

    /// Importing it has failed before. What it failed at may be the first row: that one goes alone, so
    /// that nothing around it is sent at every try.
    pub(crate) fn be_careful(&mut self) {
        self.is_careful = true;
        self.one_by_one_until = u64::MAX;
    }

    /// Whether the next record must wait for the acknowledgement of the one before.
    pub(crate) fn is_one_by_one(&self) -> bool {
        self.here.byte < self.one_by_one_until
    }

    /// Takes one buffer of the file to Kafka. `last`: the file is complete, so that what stands
    /// behind its last line break is a line too.
    pub(crate) fn step(&mut self, desk: &mut Desk, last: bool) -> Result<Step, io::Error> {
        let Some(source) = self.source.as_mut() else { return Ok(Step::End { rest: false }) };
        if let (Some(replay), Some(_)) = (&self.replay, &self.rows) {
            let left = replay.byte.saturating_sub(self.here.byte);
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            return match source.fill(self.here.byte, &mut desk.buffer[..length]) {
                Ok(filled) => Ok(self.compare(&desk.buffer[..filled])),
                Err(SourceError::Io(error)) => Err(error),
                Err(SourceError::Spoilt(reason)) => Ok(Step::Changed(reason)),
            };
        }
        let filled = match source.fill(self.here.byte, &mut desk.buffer) {
            Ok(filled) => filled,
            Err(SourceError::Io(error)) => return Err(error),
            Err(SourceError::Spoilt(reason)) => return Ok(Step::Spoilt(reason)),
        };
        let broken = source.is_broken();
        let at_end = filled < BUFFER && !broken;
        let mut lines = Lines::new(&desk.buffer[..filled], self.here.inside_long_line, last && at_end);
        let mut mark = self.here.clone();
        let mut step = Step::More;
        if self.rows.is_some() {
            desk.sender.stamp();
            let most = if self.is_one_by_one() { 1 } else { desk.budget };
            let sent = self.send_rows(&mut desk.sender, &mut desk.row, &mut desk.refused, &mut lines, &mut mark, most);
            step = sent.inspect_err(|_| desk.refused.clear())?;
        } else if let Err(reason) = self.read_header(&desk.sender, &mut lines, &mut mark) {
            return Ok(Step::Spoilt(reason));
        } else if self.rows.is_none() && at_end && last {
            let reason = if self.here.byte + filled as u64 == 0 {
                "the file is empty"
            } else {
                "the file has no header line, only blank ones"
            };
            return Ok(Step::Spoilt(reason.into()));
        } else if self.rows.is_none() && !at_end && lines.consumed() == 0 {
            return Ok(Step::Spoilt("the file has no header line".into()));
        }
        if !desk.refused.is_empty() {
            let kept = self.keep_refused(&mut desk.refused, &mut mark);
            desk.refused.clear();
            kept?;
        }
        let consumed = lines.consumed();
        if let Some(source) = self.source.as_mut() {
            source.give_back(&desk.buffer[consumed..filled]);
        }
        mark.pass(&desk.buffer[..consumed]);
        if last && mark.is_inside_a_line() && !self.gzip && !self.here.is_inside_a_line() {
            self.before_last_line = Some(self.here.clone());
        }
        mark.inside_long_line = lines.passing_over();
        let last_line = self.here.byte + lines.start() as u64;
        self.here = mark;
        if self.replay.is_none() && (consumed > 0 || desk.sender.failed()) {
            desk.sender.close(self.id, Chunk { file: self.id, last_line, mark: self.here.clone() });
            self.in_flight += 1;
        }
        if broken && consumed == 0 && step == Step::More {
            let reason = self.source.as_mut().and_then(Source::why_broken);
            return reason.map_or(Ok(Step::More), |error| match error {
                SourceError::Io(error) => Err(error),
                SourceError::Spoilt(reason) => Ok(Step::Spoilt(reason)),
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
    fn read_header(&mut self, sender: &Sender<Chunk>, lines: &mut Lines<'_>, mark: &mut Mark) -> Result<(), String> {
        while let Some(piece) = lines.next() {
            let (Piece::Line(line) | Piece::TooLong(line)) = piece;
            mark.line += 1;
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            if is_blank(line) {
                continue;
            }
            if line.len() > LONGEST_HEADER {
                return Err(format!("the header line is longer than {LONGEST_HEADER} bytes"));
            }
            let header = Header::read(line).map_err(|error| error.to_string())?;
            sender.topic_of(header.event_type).clone_into(&mut self.topic);
            self.header_line = line.to_vec();
            self.rows = Some(RowReader::new(header));
            self.rows_begin = self.here.byte + lines.consumed() as u64;
            break;
        }
        Ok(())
    }

    /// Reads on to the end without sending, a buffer at a time; then the whole file's size and
    /// SHA-256.
    pub(crate) fn whole(&mut self, desk: &mut Desk, beyond: &mut Mark) -> io::Result<Option<(u64, String)>> {
        let Some(source) = self.source.as_mut() else {
            return Ok(Some((self.here.byte, digest(&self.here.hash))));
        };
        if self.gzip {
            return source.rest(&mut desk.buffer);
        }
        let filled = match source.fill(beyond.byte, &mut desk.buffer) {
            Ok(filled) => filled,
            Err(SourceError::Io(error)) => return Err(error),
            Err(SourceError::Spoilt(_)) => 0,
        };
        beyond.pass(&desk.buffer[..filled]);
        Ok((filled == 0).then(|| (beyond.byte, digest(&beyond.hash))))
    }
}

#[cfg(test)]
mod tests;
