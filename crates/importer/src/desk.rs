//! What all files use in turn: one producer, one buffer. And what to do when the producer fails.

use std::time::Duration;

use anyhow::Result;
use events::Row;
use rdkafka::error::RDKafkaErrorCode;

use crate::{
    mark::Mark,
    sender::{Batches, Sender},
};

/// How much of a file is read at a time: the longest line and more.
pub(crate) const BUFFER: usize = 256 * 1024;
/// How many records go one by one before larger requests are tried again.
const SINGLES: u64 = 20_000;
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
    /// Failures since something was acknowledged.
    failures: u32,
}

/// What follows from a failure: everything that is not acknowledged is to be sent again.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// The chunk of one row that Kafka does not take because of its size.
    pub(crate) oversized: Option<Chunk>,
    /// How long to wait first.
    pub(crate) pause: Duration,
    /// Whether a topic is not there (any more).
    pub(crate) no_topic: bool,
    /// For people.
    pub(crate) reason: String,
}

impl Desk {
    pub(crate) fn new(sender: Sender<Chunk>) -> Desk {
        Desk { sender, buffer: vec![0; BUFFER], row: Row::default(), refused: Vec::new(), failures: 0 }
    }

    /// The next chunk that is acknowledged whole.
    pub(crate) fn done(&mut self) -> Option<Chunk> {
        let chunk = self.sender.done()?;
        self.failures = 0;
        Some(chunk)
    }

    /// Begins anew with a new producer, if this one has failed.
    pub(crate) fn recover(&mut self) -> Result<Option<Recovery>> {
        if !self.sender.failed() {
            return Ok(None);
        }
        let failure = self.sender.failure();
        let code = failure.as_ref().map_or(RDKafkaErrorCode::Unknown, |failure| failure.code);
        let chunk = failure.and_then(|failure| self.sender.flight().of_slot(failure.slot?).cloned());
        let too_large = matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize);
        let (batches, oversized) = match (self.sender.batches(), too_large) {
            (batches, false) => (batches, None),
            (Batches::Large, true) => (Batches::Small, None),
            (Batches::Small, true) => (Batches::Single, None),
            (Batches::Single, true) => (Batches::Single, chunk),
        };
        let pause = if too_large {
            Duration::ZERO
        } else {
            self.failures += 1;
            Duration::from_millis(250).saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE)
        };
        self.sender.renew(batches)?;
        let no_topic = matches!(
            code,
            RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
        );
        Ok(Some(Recovery { oversized, pause, no_topic, reason: code.to_string() }))
    }

    /// Whether records went one by one for long enough: nothing more should be sent until what is
    /// on its way is acknowledged, and then larger requests are tried again.
    pub(crate) fn widen(&mut self) -> Result<bool> {
        if self.sender.batches() != Batches::Single || self.sender.flight().acknowledged() < SINGLES {
            return Ok(false);
        }
        if self.sender.flight().is_empty() {
            self.sender.renew(Batches::Small)?;
            return Ok(false);
        }
        Ok(true)
    }
}
