//! What all files use in turn: one producer, one buffer. And what to do when the producer fails.

use std::time::Duration;

use anyhow::Result;
use events::Row;
use rdkafka::error::RDKafkaErrorCode;

use crate::{
    mark::Mark,
    sender::{Failures, Sender},
};

/// How much of a file is read at a time: the longest line and more.
pub(crate) const BUFFER: usize = 256 * 1024;
/// How many records a file may have on their way while a partition takes nothing.
const HELD_BACK: u64 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a chunk stands for: the part of a file up to `mark`.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) file: u64,
    /// Where its last line begins: in a chunk of a single record, that one's row. What else is in
    /// it (blank lines, the rest of a line that is too long) stands before.
    pub(crate) last_line: u64,
    pub(crate) mark: Mark,
}

/// What all files use in turn.
pub(crate) struct Desk {
    pub(crate) sender: Sender<Chunk>,
    pub(crate) buffer: Vec<u8>,
    pub(crate) row: Row,
    pub(crate) refused: Vec<u8>,
    /// Some partition takes nothing.
    pub(crate) hold_back: bool,
    /// How many records the next step may send.
    pub(crate) budget: u64,
    /// Failures since something was acknowledged.
    failures: u32,
}

/// What follows from a failure: everything that is not acknowledged is to be sent again.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Chunks with a record that Kafka has refused for a reason of its own.
    pub(crate) refused: Vec<(Chunk, RDKafkaErrorCode)>,
    /// How long to wait first.
    pub(crate) pause: Duration,
    /// Whether a topic is not there (any more).
    pub(crate) no_topic: bool,
    /// For people.
    pub(crate) reason: String,
}

impl Desk {
    pub(crate) fn new(sender: Sender<Chunk>) -> Desk {
        Desk {
            sender,
            buffer: vec![0; BUFFER],
            row: Row::default(),
            refused: Vec::new(),
            hold_back: false,
            budget: u64::MAX,
            failures: 0,
        }
    }

    /// The next chunk that is acknowledged whole.
    pub(crate) fn done(&mut self) -> Option<Chunk> {
        let chunk = self.sender.done()?;
        self.failures = 0;
        Some(chunk)
    }

    /// Starts again with a new producer, if this one has failed and what could still be acknowledged
    /// is. The caller takes that first.
    pub(crate) fn recover(&mut self) -> Result<Option<Recovery>> {
        if !self.sender.failed() || !self.sender.is_drained() {
            return Ok(None);
        }
        let Failures { records, producer } = self.sender.failures();
        let flight = self.sender.flight();
        let (by_record, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|(_, code)| is_about_a_record(*code));
        let refused: Vec<_> = by_record
            .iter()
            .filter_map(|(slot, code)| flight.of_slot(*slot).map(|(_, chunk)| (chunk.clone(), *code)))
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
            Duration::from_millis(250).saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE)
        };
        self.sender.renew()?;
        Ok(Some(Recovery { refused, pause, no_topic, reason: code.to_string() }))
    }
}

/// How many more records a file may send that has `own` on their way, where there is room for `free`
/// of all files. A file may have twice as many as are left to the others, so that however many wait for
/// a partition that takes nothing, there is room for those that could go; `hold_back`: there is such a
/// partition.
pub(crate) fn budget(free: u64, own: u64, hold_back: bool) -> u64 {
    let most = if hold_back { (free * 2).min(HELD_BACK) } else { free * 2 };
    most.saturating_sub(own)
}

/// Whether Kafka has refused a record for what it is, or for where it goes: sent again, it would be
/// refused again, and nothing else would be.
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

    #[test]
    fn however_many_files_are_stuck_there_is_room_for_others() {
        let mut free = 50_000;
        assert_eq!(budget(free, 0, false), 100_000);
        let mut files = 0;
        while free > 200 {
            // one after the other sends until it may not
            let mut own = 0;
            while budget(free, own, false) > 0 {
                (own, free) = (own + 1, free - 1);
            }
            files += 1;
        }
        assert_eq!(files, 6, "each leaves a third to the others");
        assert_eq!((budget(50_000, 0, true), budget(50_000, 30, true), budget(50_000, 200, true)), (100, 70, 0));
    }
}
