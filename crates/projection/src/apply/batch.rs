//! Records of one partition on their way into one transaction.

use std::{borrow::Cow, ops::Range};

use events::{
    Message, Refusal, Timestamp,
    dead_letter::{self, RecordLocation},
};

use crate::{Record, TopicPartition};

/// What a refusal takes beside its payload while it is written: a reason, headers, and their copy in
/// a statement. Bytes.
const REFUSAL_COST: usize = 2_048;
/// How many times its payload a refusal takes: as text, in base64, escaped, and again in a statement.
const REFUSAL_FACTOR: usize = 8;
/// The same for a payload that is kept since it may have to be refused, or to wait.
const KEPT_FACTOR: usize = 4;
/// Bytes of keys and payloads that an empty buffer has room for.
const KEPT_ROOM: usize = 1 << 20;
/// Of a longer payload a refusal holds only the beginning (`events::dead_letter`).
const REFUSED_PART: usize = 64 << 10;

/// What a service decodes from a record.
#[derive(Debug, Clone, Copy)]
pub struct Decoded<E> {
    event: E,
    encode: Option<fn(&E) -> Vec<u8>>,
}

impl<E> Decoded<E> {
    /// An event; the batch keeps the record's payload beside it.
    pub fn new(event: E) -> Decoded<E> {
        Decoded { event, encode: None }
    }

    /// An event from which `encode` makes the record's payload again, byte for byte, so that the batch
    /// need not keep it.
    pub fn encodable(event: E, encode: fn(&E) -> Vec<u8>) -> Decoded<E> {
        Decoded { event, encode: Some(encode) }
    }
}

/// A record that was decoded.
#[derive(Debug)]
pub struct Received<E> {
    /// What it says.
    pub event: E,
    span: Span,
    encode: Option<fn(&E) -> Vec<u8>>,
}

/// Records of one partition as a service applies them. There are no events when only time has passed:
/// then `due` says what timed work may be done, and without `due` the service is only asked when to
/// wake it.
#[derive(Debug)]
pub struct Batch<'a, E> {
    /// The partition they are from.
    pub source: &'a TopicPartition,
    /// Those that could be decoded, in the order of their offsets.
    pub events: &'a [Received<E>],
    /// Timed work that may be done now.
    pub due: Option<Due<'a>>,
    /// Counts from 0; rises after [`crate::ApplyError::Stale`].
    pub attempt: u32,
    pub(crate) service: &'a str,
    pub(crate) errors_topic: &'a str,
    bytes: &'a [u8],
}

/// Timed work of one partition. Like a batch it is tried again in smaller parts until the one row
/// that cannot be applied is alone, and that is refused.
#[derive(Debug, Clone, Copy)]
pub struct Due<'a> {
    /// As of this moment the partition was read to its end, and all of it is applied. What fell due
    /// later does not count yet: the record that it waits for may still be unread.
    pub caught_up_at: Timestamp,
    /// How many rows to take at most, those that fell due first.
    pub limit: usize,
    /// The one row (`limit` is 1) cannot be applied, for this reason: refuse it.
    pub refuse: Option<&'a str>,
}

/// Where a record is in its partition, when it was written, and where its bytes are in the batch: key,
/// then payload (of length 0 where the event makes it again).
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: i64,
    timestamp: Option<Timestamp>,
    start: u32,
    key_length: u32,
    payload_length: u32,
}

impl<E> Batch<'_, E> {
    /// The offset of a record.
    pub fn offset(&self, record: &Received<E>) -> i64 {
        record.span.offset
    }

    /// The timestamp of a record, see [`Record::timestamp`].
    pub fn timestamp(&self, record: &Received<E>) -> Option<Timestamp> {
        record.span.timestamp
    }

    /// A record's key; none when it has none, or an empty one.
    pub fn key(&self, record: &Received<E>) -> Option<&[u8]> {
        key_of(record.span, self.bytes)
    }

    /// A record's payload as it came.
    pub fn payload(&self, record: &Received<E>) -> Cow<'_, [u8]> {
        match record.encode {
            None => Cow::Borrowed(payload_of(record.span, self.bytes)),
            Some(encode) => Cow::Owned(encode(&record.event)),
        }
    }

    /// The dead letter that refuses a record.
    pub fn refuse(&self, record: &Received<E>, refusal: &Refusal) -> Message {
        self.refuse_earlier(record.span.offset, self.key(record), &self.payload(record), refusal)
    }

    /// The dead letter that refuses a record of this partition which came earlier and was kept.
    pub fn refuse_earlier(&self, offset: i64, key: Option<&[u8]>, payload: &[u8], refusal: &Refusal) -> Message {
        let TopicPartition { topic, partition } = self.source;
        dead_letter::of_record(
            self.errors_topic,
            RecordLocation { service: self.service, topic, partition: *partition, offset },
            key,
            payload,
            refusal,
        )
    }
}

/// A batch that is being filled; its memory is reused.
#[derive(Debug)]
pub(crate) struct Buffer<E> {
    events: Vec<Received<E>>,
    refused: Vec<(Span, Refusal)>,
    bytes: Vec<u8>,
    /// The offset after the last record.
    end: i64,
    /// Bytes of memory that its records take, now and while they are applied.
    cost: usize,
}

impl<E> Buffer<E> {
    /// An empty one, with room for so many events at once: a vector that grows takes twice as much.
    pub(crate) fn new(room: usize) -> Buffer<E> {
        Buffer { events: Vec::with_capacity(room), refused: Vec::new(), bytes: Vec::new(), end: 0, cost: 0 }
    }

    /// No records, up to the offset `end`: for timed work, and for offsets that hold no record.
    pub(crate) fn empty(end: i64) -> Buffer<E> {
        Buffer { end, ..Buffer::new(0) }
    }

    pub(crate) fn clear(&mut self) {
        self.events.clear();
        self.refused = Vec::new();
        self.bytes.clear();
        // large records must not keep their room for ever
        self.bytes.shrink_to(KEPT_ROOM);
        self.cost = 0;
    }

    pub(crate) fn push(&mut self, record: &Record<'_>, decoded: Result<Decoded<E>, Refusal>) {
        let is_kept = !matches!(decoded, Ok(Decoded { encode: Some(_), .. }));
        let key = record.key.unwrap_or_default();
        let payload = if is_kept { record.payload } else { &[] };
        let span = Span {
            offset: record.offset,
            timestamp: record.timestamp,
            start: self.bytes.len() as u32,
            key_length: key.len() as u32,
            payload_length: payload.len() as u32,
        };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(payload);
        self.end = record.offset + 1;
        let factor = if decoded.is_err() { REFUSAL_FACTOR } else { KEPT_FACTOR };
        self.cost += size_of::<Received<E>>() + key.len() + payload.len() + factor * payload.len().min(REFUSED_PART);
        if decoded.is_err() {
            self.cost += REFUSAL_COST;
        }
        match decoded {
            Ok(Decoded { event, encode }) => self.events.push(Received { event, span, encode }),
            Err(refusal) => self.refused.push((span, refusal)),
        }
    }

    /// Records in it.
    pub(crate) fn len(&self) -> usize {
        self.events.len() + self.refused.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that its records take, now and while they are applied.
    pub(crate) fn cost(&self) -> usize {
        self.cost
    }

    /// All of it, as a range to apply.
    pub(crate) fn whole(&self) -> BatchRange {
        BatchRange { events: 0..self.events.len(), end: self.end }
    }

    /// Two halves of a range; none when it has one event or none.
    pub(crate) fn halves(&self, range: &BatchRange) -> Option<(BatchRange, BatchRange)> {
        let middle = range.events.start + range.events.len() / 2;
        (range.events.len() > 1).then(|| {
            let split = self.events[middle].span.offset;
            (
                BatchRange { events: range.events.start..middle, end: split },
                BatchRange { events: middle..range.events.end, end: range.end },
            )
        })
    }

    /// The events of a range, for a service whose refusals go to `errors_topic`.
    pub(crate) fn batch<'a>(
        &'a self,
        service: &'a str,
        errors_topic: &'a str,
        source: &'a TopicPartition,
        range: &BatchRange,
    ) -> Batch<'a, E> {
        Batch {
            source,
            events: &self.events[range.events.clone()],
            due: None,
            attempt: 0,
            service,
            errors_topic,
            bytes: &self.bytes,
        }
    }

    /// Dead letters of the records from the offset `start` to the range's end that could not be decoded.
    pub(crate) fn undecoded(&self, batch: &Batch<'_, E>, start: i64, range: &BatchRange) -> Vec<Message> {
        let refused = self.refused.iter().filter(|(span, _)| (start..range.end).contains(&span.offset));
        refused
            .map(|(span, refusal)| {
                let (key, payload) = (key_of(*span, &self.bytes), payload_of(*span, &self.bytes));
                batch.refuse_earlier(span.offset, key, payload, refusal)
            })
            .collect()
    }
}

/// A part of a buffer that is applied in one transaction: its events, and the offset after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchRange {
    pub(crate) events: Range<usize>,
    pub(crate) end: i64,
}

fn key_of(span: Span, bytes: &[u8]) -> Option<&[u8]> {
    let start = span.start as usize;
    Some(&bytes[start..start + span.key_length as usize]).filter(|key| !key.is_empty())
}

fn payload_of(span: Span, bytes: &[u8]) -> &[u8] {
    let start = (span.start + span.key_length) as usize;
    &bytes[start..start + span.payload_length as usize]
}
