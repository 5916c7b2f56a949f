//! What time brings: partitions that begin again after a pause, timed work of the service, and the
//! regular check of Kafka and Postgres.
//!
//! Timed work counts only up to a moment at which the partition had been read to its end: what it
//! waits for may still be unread. So when it falls due, Kafka is asked for the end, and when all up to
//! there is applied, the service is called. The last offsets may hold no record (markers of a
//! producer's transactions); then reading is set back to what was read last, and when Kafka says that
//! the end is reached without having given a record, these offsets are passed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use events::Timestamp;
use rdkafka::{Offset, consumer::Consumer};

use super::{Answer, Assignment, Event, Id, lag};
use crate::{
    Projection, TopicPartition,
    consume::{
        partition::{Call, State},
        probe::LOST_AFTER,
        topic_identity::{self, Lost},
    },
};

/// How often the group learns our offsets, and Kafka and Postgres are compared.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often the service is asked again when its timed work falls due: somebody may have changed the
/// rows by hand.
const ASK_SERVICE_INTERVAL: Duration = Duration::from_secs(10);
/// After so many questions without an answer the others are not asked in this round.
const MOST_UNANSWERED: usize = 3;
/// The pause before Kafka is asked again when records seem to be lost, or the end is not reached.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// When it is dropped, the next check may begin.
struct EndOfCheck(Arc<AtomicBool>);

impl Drop for EndOfCheck {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<P: Projection> Assignment<P> {
    /// Does what is due, and notes when something will be.
    pub(super) fn timed(&mut self) {
        let now = Instant::now();
        if self.checked + CHECK_INTERVAL <= now {
            self.checked = now;
            self.check();
        }
        if now < self.next_timer {
            return;
        }
        let wall_clock = crate::apply::now();
        let mut next = self.checked + CHECK_INTERVAL;
        let (mut begin, mut ask) = (Vec::new(), Vec::new());
        for (source, partition) in &mut self.partitions {
            match &mut partition.state {
                State::Beginning => {}
                State::Pausing(until) if *until <= now => begin.push(source.clone()),
                State::Pausing(until) => next = next.min(*until),
                State::Reading(reading) => {
                    let Some(wake_at) = reading.wake_at else { continue };
                    if reading.is_asked
                        || reading.end.is_some()
                        || reading.rereading.is_some()
                        || reading.call.is_some()
                    {
                        continue;
                    }
                    let wait = wake_at.0.saturating_sub(wall_clock.0);
                    if wait <= 0 {
                        reading.is_asked = true;
                        ask.push(Id { source: source.clone(), generation: partition.generation });
                    } else if reading.called + ASK_SERVICE_INTERVAL <= now {
                        reading.call = Some(Call { caught_up_at: None, end: reading.committed });
                        self.calls.push_back(source.clone());
                    } else {
                        next = next.min(now + Duration::from_micros(wait as u64));
                        next = next.min(reading.called + ASK_SERVICE_INTERVAL);
                    }
                }
            }
        }
        self.next_timer = next;
        for source in begin {
            self.begin(&source);
        }
        for id in ask {
            self.ask(id, Duration::ZERO);
        }
    }

    /// Asks Kafka for a partition's end.
    fn ask(&self, id: Id, pause: Duration) {
        let (probe, sender) = (Arc::clone(&self.probe), self.sender.clone());
        self.tokio.spawn(async move {
            tokio::time::sleep(pause).await;
            let watermarks = probe.watermarks(&id.source).await;
            // the receiver is gone when the service is ending
            let _ = sender.send(Event::Answer(id, Answer { watermarks, checked: None }));
        });
    }

    /// Every few seconds: the group learns our offsets, and Postgres and Kafka are compared, since a
    /// topic that is deleted and created again keeps its name, and a crash of Postgres takes back
    /// commits that it had not written yet.
    fn check(&self) {
        // one at a time: while Kafka does not answer, each takes long
        if self.is_checking.swap(true, Ordering::Relaxed) {
            return;
        }
        let all: Vec<_> = self.partitions.keys().cloned().collect();
        let committed = self.committed(&all);
        self.commit_group_offsets(&committed);
        let asked: Vec<_> = committed
            .into_iter()
            .filter_map(|(source, committed)| {
                let generation = self.partitions.get(&source)?.generation;
                Some((Id { source, generation }, committed))
            })
            .collect();
        let (probe, sender, health) = (Arc::clone(&self.probe), self.sender.clone(), self.context.health.clone());
        let (stop, is_checking, topic) = (self.shutdown.clone(), Arc::clone(&self.is_checking), self.topic.clone());
        self.tokio.spawn(stop.run_until_cancelled_owned(async move {
            let _ended = EndOfCheck(is_checking);
            // before Kafka is asked: its end only grows meanwhile
            let mut offsets = match probe.consumer_offsets().await {
                Ok(offsets) => offsets,
                Err(error) => return health.unhealthy("postgres", format!("waiting: {error:#}")),
            };
            let mut unanswered = 0;
            if asked.is_empty() && probe.watermarks(&topic).await.is_err() {
                unanswered += 1;
            }
            for (id, committed) in asked {
                let watermarks = probe.watermarks(&id.source).await;
                if let Err(error) = &watermarks {
                    unanswered += 1;
                    health.unhealthy("kafka", format!("waiting: {}: {error:#}", id.source));
                }
                let checked = Some((committed, offsets.remove(&id.source)));
                // the receiver is gone when the service is ending
                let _ = sender.send(Event::Answer(id, Answer { watermarks, checked }));
                if unanswered == MOST_UNANSWERED {
                    break;
                }
            }
            let _ = sender.send(Event::Checked { kafka_answers: unanswered == 0 });
        }));
    }

    /// An answer has come. An error stops the service.
    pub(super) fn answered(&mut self, id: &Id, Answer { watermarks, checked }: Answer) -> Result<()> {
        let is_check = checked.is_some();
        // it is asked again when somebody still waits for the answer
        self.next_timer =
            self.next_timer.min(Instant::now() + if watermarks.is_ok() { Duration::ZERO } else { ASK_AGAIN });
        let current = self.partitions.get_mut(&id.source).filter(|partition| partition.generation == id.generation);
        let Some(partition) = current else { return Ok(()) };
        let Some(reading) = partition.reading() else { return Ok(()) };
        if !is_check {
            reading.is_asked = false;
        }
        let committed = reading.committed;
        let Ok(watermarks) = watermarks else {
            // two moments apart from each other are no sign of a loss
            partition.lost_since = None;
            return Ok(());
        };
        if let Some((believed, offset)) = checked {
            let Some(offset) = offset.filter(|offset| offset.next_offset >= believed) else {
                tracing::warn!(service = P::SERVICE, topic = %id.source.topic, partition = id.source.partition, offset = believed, "Postgres was set back from this offset; reading that part again");
                self.restart(&id.source, Duration::ZERO);
                return Ok(());
            };
            lag::<P>(&id.source).set((watermarks.kafka.high - offset.next_offset).max(0) as f64);
            let mut kafka = watermarks.kafka.clone();
            if committed >= kafka.low {
                // what was applied since Postgres was asked may have been deleted since
                kafka.low = kafka.low.min(offset.next_offset);
            }
            match topic_identity::check(&offset, &kafka) {
                Ok(()) => partition.lost_since = None,
                Err(lost @ Lost::Topic(_)) => return Err(lost.into()),
                Err(lost) => {
                    // a broker that has just started may say so for a moment
                    if partition.lost_since.get_or_insert_with(Instant::now).elapsed() >= LOST_AFTER {
                        return Err(lost.into());
                    }
                    tracing::debug!(service = P::SERVICE, topic = %id.source.topic, partition = id.source.partition, "asking again: {lost}");
                    self.checked = (Instant::now() + ASK_AGAIN).checked_sub(CHECK_INTERVAL).unwrap_or(self.checked);
                    return Ok(());
                }
            }
        }
        let Some(reading) = self.current(id).and_then(|partition| partition.reading()) else { return Ok(()) };
        let is_waited_for = reading.wake_at.is_some_and(|wake_at| wake_at <= watermarks.asked_at);
        if reading.end.is_none()
            && reading.rereading.is_none()
            && (is_waited_for || reading.committed < watermarks.kafka.high)
        {
            reading.end = Some((watermarks.asked_at, watermarks.kafka.high));
        }
        self.after_end_of_partition(&id.source);
        Ok(())
    }

    /// Calls the service for timed work once all up to the end is applied; finds out whether what is
    /// left up to the end are offsets without records.
    pub(super) fn after_end_of_partition(&mut self, source: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(source) else { return };
        let generation = partition.generation;
        let Some(reading) = partition.reading() else { return };
        if let Some((asked_at, end)) = reading.end
            && reading.committed >= end
        {
            reading.end = None;
            reading.stuck_at = None;
            if reading.wake_at.is_some_and(|wake_at| wake_at <= asked_at) {
                let committed = reading.committed;
                self.call(source, asked_at, committed);
            }
            return;
        }
        if !reading.is_idle() || !reading.at_end {
            return;
        }
        if let Some((asked_at, end)) = reading.rereading {
            // nothing but markers up to the end
            reading.rereading = None;
            self.call(source, asked_at, end);
        } else if let Some((asked_at, end)) = reading.end {
            let next_read = reading.next_read;
            reading.end = None;
            if reading.stuck_at == Some(next_read) {
                reading.stuck_at = None;
                reading.at_end = false;
                reading.rereading = Some((asked_at, end));
                let seek =
                    self.consumer.seek(&source.topic, source.partition, Offset::Offset(next_read), Duration::ZERO);
                if let Err(error) = seek {
                    tracing::debug!(service = P::SERVICE, topic = %source.topic, partition = source.partition, offset = next_read, "cannot seek: {error}");
                    self.restart(source, Duration::ZERO);
                }
            } else {
                // most likely they are records that are on their way here
                reading.stuck_at = Some(next_read);
                if !reading.is_asked {
                    reading.is_asked = true;
                    self.ask(Id { source: source.clone(), generation }, ASK_AGAIN);
                }
            }
        }
    }

    /// Calls the service without records, for timed work, and moves its offset to `end`.
    fn call(&mut self, source: &TopicPartition, caught_up_at: Timestamp, end: i64) {
        let Some(reading) = self.partitions.get_mut(source).and_then(|partition| partition.reading()) else { return };
        reading.call = Some(Call { caught_up_at: Some(caught_up_at), end });
        self.calls.push_back(source.clone());
    }
}
