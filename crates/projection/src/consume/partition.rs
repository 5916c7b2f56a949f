//! A partition of this process: how far it is read, applied, and known to be at its end.

use std::time::{Duration, Instant};

use events::Timestamp;
use rdkafka::{
    Message,
    consumer::base_consumer::PartitionQueue,
    error::{KafkaError, KafkaResult},
    message::Headers,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Projection, Record,
    apply::{Applier, batch::Buffer},
    consume::rebalance::RebalanceListener,
};

/// How long a batch waits for the next records when Kafka has more of them, and how long its first
/// record waits in all. At the end of a partition a batch does not wait: records that come while
/// others are applied make up the next one.
const LINGER: Duration = Duration::from_millis(5);
const LONGEST_LINGER: Duration = Duration::from_millis(50);
/// Records taken from one partition before the others' turn.
const SLICE: usize = 500;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A partition that the group has given to this process.
pub(crate) struct Partition<P: Projection> {
    /// Rises whenever reading begins again: what was asked for an earlier one does not count.
    pub(crate) generation: u64,
    /// Stops what is under way for this generation.
    pub(crate) stop: CancellationToken,
    pub(crate) state: State<P>,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Since when records seem to be lost.
    pub(crate) lost_since: Option<Instant>,
}

pub(crate) enum State<P: Projection> {
    /// Kafka and Postgres are asked where to begin.
    Beginning,
    /// Begins again at this time, after a failure.
    Pausing(Instant),
    Reading(Box<Reading<P>>),
}

impl<P: Projection> Partition<P> {
    pub(crate) fn new() -> Partition<P> {
        Partition {
            generation: 0,
            stop: CancellationToken::new(),
            state: State::Beginning,
            failures: 0,
            lost_since: None,
        }
    }

    pub(crate) fn reading(&mut self) -> Option<&mut Reading<P>> {
        if let State::Reading(reading) = &mut self.state { Some(reading) } else { None }
    }

    /// The pause after one more failure: longer each time.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = FIRST_PAUSE * 2_u32.pow(self.failures.min(10));
        self.failures += 1;
        pause.min(LONGEST_PAUSE)
    }
}

/// A partition that is read.
pub(crate) struct Reading<P: Projection> {
    queue: PartitionQueue<RebalanceListener>,
    /// Here, or with the transaction under way.
    pub(crate) applier: Option<Applier<P>>,
    /// The transaction under way.
    pub(crate) task: Option<JoinHandle<()>>,
    /// It has one of the buffers: it applies records.
    pub(crate) task_has_buffer: bool,
    /// The buffer that is filled.
    pub(crate) buffer: Option<Buffer<P::Event>>,
    /// When its first record came, and its last ones.
    first: Instant,
    last: Instant,
    /// Kafka has more records than were taken from the queue.
    is_behind: bool,
    /// The queue may hold something.
    pub(crate) readable: bool,
    /// It waits for a buffer.
    pub(crate) is_waiting: bool,
    /// Kafka has said that there is nothing after the last record taken from the queue.
    pub(crate) at_end: bool,
    /// The offset after the last record taken from the queue.
    pub(crate) next_read: i64,
    /// The offset after the last record that is applied.
    pub(crate) committed: i64,
    /// Begin again when the transaction under way has ended.
    pub(crate) begin_again: bool,
    /// When the service has timed work.
    pub(crate) wake_at: Option<Timestamp>,
    /// Kafka is being asked for the end.
    pub(crate) is_asked: bool,
    /// The end, and when it was asked for, while it is not reached.
    pub(crate) end: Option<(Timestamp, i64)>,
    /// As before, when reading was set back to see whether the offsets up to the end hold records.
    pub(crate) rereading: Option<(Timestamp, i64)>,
    /// Where it was the last time that the end was not reached.
    pub(crate) stuck_at: Option<i64>,
    /// A call of the service without records that is to be made.
    pub(crate) call: Option<Call>,
    /// When the last such call was made.
    pub(crate) called: Instant,
}

/// A call of the service without records.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Timed work up to this moment; `None` only asks when there will be some.
    pub(crate) caught_up_at: Option<Timestamp>,
    /// The offset up to which there is no record any more.
    pub(crate) end: i64,
}

impl<P: Projection> Reading<P> {
    pub(crate) fn new(queue: PartitionQueue<RebalanceListener>, applier: Applier<P>) -> Reading<P> {
        let next_offset = applier.next_offset;
        Reading {
            queue,
            applier: Some(applier),
            task: None,
            task_has_buffer: false,
            buffer: None,
            first: Instant::now(),
            last: Instant::now(),
            is_behind: false,
            readable: true,
            is_waiting: false,
            at_end: false,
            next_read: next_offset,
            committed: next_offset,
            begin_again: false,
            wake_at: None,
            is_asked: false,
            end: None,
            rereading: None,
            stuck_at: None,
            call: Some(Call { caught_up_at: None, end: next_offset }),
            called: Instant::now(),
        }
    }

    /// Takes records from the queue into the buffer, as long as there are some and it is not full.
    /// `known_end` is the partition's end as far as the client knows it.
    pub(crate) fn fill(
        &mut self,
        projection: &P,
        is_full: impl Fn(&Buffer<P::Event>) -> bool,
        known_end: impl FnOnce() -> Option<i64>,
    ) -> KafkaResult<()> {
        let Some(buffer) = &mut self.buffer else { return Ok(()) };
        let before = buffer.len();
        for _ in 0..SLICE {
            match self.queue.poll(Duration::ZERO) {
                None => {
                    self.readable = false;
                    break;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.at_end = true,
                Some(Err(error)) => return Err(error),
                // left over from before reading was set back
                Some(Ok(message)) if message.offset() < self.next_read => {}
                Some(Ok(message)) => {
                    if buffer.is_empty() {
                        self.first = Instant::now();
                    }
                    self.at_end = false;
                    self.rereading = None;
                    let headers: Vec<_> = message
                        .headers()
                        .into_iter()
                        .flat_map(Headers::iter)
                        .map(|header| (header.key, header.value.unwrap_or_default()))
                        .collect();
                    let record = Record {
                        topic: message.topic(),
                        partition: message.partition(),
                        offset: message.offset(),
                        key: message.key().filter(|key| !key.is_empty()),
                        payload: message.payload().unwrap_or_default(),
                        timestamp: message.timestamp().to_millis().map(Timestamp::from_millis),
                        headers: &headers,
                    };
                    buffer.push(&record, projection.decode(&record));
                    self.next_read = message.offset() + 1;
                    if is_full(buffer) {
                        break;
                    }
                }
            }
        }
        if buffer.len() > before {
            self.last = Instant::now();
        }
        self.is_behind = known_end().is_some_and(|end| self.next_read < end);
        Ok(())
    }

    /// When the buffer's records have waited long enough for others.
    pub(crate) fn ripe_at(&self) -> Option<Instant> {
        let buffer = self.buffer.as_ref()?;
        let is_ready = !buffer.is_empty() && self.applier.is_some();
        let waits = self.is_behind && !self.at_end;
        is_ready.then(|| if waits { (self.last + LINGER).min(self.first + LONGEST_LINGER) } else { self.first })
    }

    /// Whether all that was taken from the queue is applied.
    pub(crate) fn is_idle(&self) -> bool {
        self.applier.is_some() && self.buffer.as_ref().is_none_or(Buffer::is_empty) && self.committed == self.next_read
    }
}
