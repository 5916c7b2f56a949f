//! What all files share: one producer and one buffer, and the room in flight that each file may use. And what
//! to do when the producer fails.

use std::time::Duration;

use anyhow::Result;
use events::Row;
use rdkafka::error::RDKafkaErrorCode;

use crate::{
    read::position::Position,
    send::{
        in_flight::Usage,
        producer::{Failures, Producer},
    },
};

/// How much of a file is read at a time: more than the longest line.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;
/// How many records a file may have in flight while a partition accepts nothing.
const MAX_RECORDS_HELD_BACK: u64 = 100;
/// Room for files that have nothing in flight: a small record of each of [`MAX_ACTIVE_FILES`], and the bytes of
/// a buffer that was started while there was enough room.
pub(crate) const RESERVED: Usage = Usage { chunks: MAX_ACTIVE_FILES, records: MAX_ACTIVE_FILES, bytes: 7 << 20 };
/// How many files are imported at the same time.
pub(crate) const MAX_ACTIVE_FILES: u64 = 10_000;
/// The largest small record.
pub(crate) const SMALL_RECORD_BYTES: usize = 512;
/// The longest pause before a new producer is used.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The part of a file up to `position`, which is acknowledged as a whole.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) file: u64,
    /// Where its last line begins. In a chunk with a single record, that is the record's row: anything else
    /// in it (blank lines, the rest of a line that is too long) comes before.
    pub(crate) last_line: u64,
    /// Whether it has a single record at most, because one of its file is looked for.
    pub(crate) is_single: bool,
    pub(crate) position: Position,
}

/// What all files share.
pub(crate) struct Sink {
    pub(crate) producer: Producer<Chunk>,
    pub(crate) buffer: Vec<u8>,
    pub(crate) row: Row,
    pub(crate) refused: Vec<u8>,
    /// Some partition accepts nothing.
    pub(crate) hold_back: bool,
    /// How many records the next step may send.
    pub(crate) budget: u64,
    /// Failures since something was acknowledged.
    failures: u32,
}

/// What to do after a failure: everything that is not acknowledged has to be sent again.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Chunks with a record that Kafka has refused because of the record itself.
    pub(crate) refused: Vec<(Chunk, RDKafkaErrorCode)>,
    /// How long to wait first.
    pub(crate) pause: Duration,
    /// Whether a topic is missing.
    pub(crate) no_topic: bool,
    /// For people.
    pub(crate) reason: String,
}

impl Sink {
    pub(crate) fn new(producer: Producer<Chunk>) -> Sink {
        Sink {
            producer,
            buffer: vec![0; BUFFER_BYTES],
            row: Row::default(),
            refused: Vec::new(),
            hold_back: false,
            budget: u64::MAX,
            failures: 0,
        }
    }

    /// The next chunk that is acknowledged as a whole.
    pub(crate) fn next_done(&mut self) -> Option<Chunk> {
        let chunk = self.producer.next_done()?;
        self.failures = 0;
        Some(chunk)
    }

    /// Starts again with a new producer, if this one has failed and everything that could still be
    /// acknowledged is; the caller has taken those chunks before.
    pub(crate) fn recover(&mut self) -> Result<Option<Recovery>> {
        if !self.producer.failed() || !self.producer.is_drained() {
            return Ok(None);
        }
        let Failures { records, producer } = self.producer.failures();
        let flight = self.producer.in_flight();
        let (by_record, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|(_, code)| is_about_a_record(*code));
        let refused: Vec<_> = by_record
            .iter()
            .filter_map(|(slot, code)| flight.chunk_in_slot(*slot).map(|(_, chunk)| (chunk.clone(), *code)))
            .collect();
        let codes = || producer.iter().chain(others.iter().chain(&by_record).map(|(_, code)| code)).copied();
        let code = codes().next().unwrap_or(RDKafkaErrorCode::Unknown);
        let no_topic = codes().any(|code| {
            matches!(
                code,
                RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition
            )
        });
        let pause = if producer.is_none() && others.is_empty() && !refused.is_empty() {
            Duration::ZERO
        } else {
            self.failures += 1;
            Duration::from_millis(250).saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE)
        };
        // only a record refused because of its size means that the limits may be other ones
        self.producer.replace(!pause.is_zero() || codes().any(is_about_size))?;
        Ok(Some(Recovery { refused, pause, no_topic, reason: code.to_string() }))
    }
}

/// How many more records a file with `own` in flight may send, if there is room for `free` in total. A file may
/// use twice as much as it leaves to the others, and a file with nothing in flight may always send one
/// record, for which room is reserved. So the others continue, however many files wait for a partition that
/// accepts nothing. `hold_back`: there is such a partition.
pub(crate) fn budget(free: Usage, own: Usage, hold_back: bool) -> u64 {
    let share = |free: u64, reserved: u64| free.saturating_sub(reserved).saturating_mul(2);
    let most = share(free.records, RESERVED.records).min(if hold_back { MAX_RECORDS_HELD_BACK } else { u64::MAX });
    let has_room = own.chunks < share(free.chunks, RESERVED.chunks) && own.bytes < share(free.bytes, RESERVED.bytes);
    let left = if has_room { most.saturating_sub(own.records) } else { 0 };
    left.max(u64::from(own.chunks == 0))
}

/// Whether Kafka has refused a record because of its content or its topic: it would be refused again, and only
/// it.
fn is_about_a_record(code: RDKafkaErrorCode) -> bool {
    is_about_size(code)
        || matches!(
            code,
            RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::PolicyViolation
                | RDKafkaErrorCode::TopicAuthorizationFailed
        )
}

/// Whether a record, or a batch of several, was too large.
pub(crate) fn is_about_size(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Usage = Usage { chunks: 16_383, records: 50_000, bytes: 16 << 20 };

    /// Ten thousand files, one after the other, each send as much as they may.
    fn send_all(hold_back: bool, records: u64, bytes: u64) {
        let mut free = ALL;
        for file in 0..MAX_ACTIVE_FILES {
            let mut own = Usage::default();
            loop {
                let sent = budget(free, own, hold_back).min(records);
                if sent == 0 {
                    break;
                }
                let sent = Usage { chunks: 1, records: sent, bytes: sent * bytes };
                let takes = |free: &mut u64, sent: u64| *free = free.checked_sub(sent).expect("room");
                takes(&mut free.chunks, sent.chunks);
                takes(&mut free.records, sent.records);
                takes(&mut free.bytes, sent.bytes);
                own.chunks += sent.chunks;
                own.records += sent.records;
                own.bytes += sent.bytes;
            }
            assert!(own.records > 0, "file {file} may send nothing: {free:?}");
        }
    }

    #[test]
    fn there_is_room_for_other_files_however_many_are_stuck() {
        for hold_back in [false, true] {
            // limited by records, by chunks, and by bytes
            send_all(hold_back, 100, 100);
            send_all(hold_back, 1, 1);
            send_all(hold_back, 100, SMALL_RECORD_BYTES as u64);
        }
        let own = |records| Usage { chunks: 1, records, bytes: 0 };
        assert_eq!(budget(ALL, Usage::default(), false), 80_000);
        assert_eq!((budget(ALL, own(30), true), budget(ALL, own(200), true)), (70, 0));
    }
}
