//! The events topic, read from its beginning up to where stock has read, beside what is claimed of
//! its records.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use events::stock::StockEvent;
use indicatif::ProgressBar;
use projection::ConsumerOffset;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};
use runtime::{TopicPartition, kafka};

use super::{
    entry::{CLAIM, Claim, Class, Content, OCCURRENCE, Occurrence, Place, Source, read_claim},
    report::{Difference, Differences, Kind},
    sorter::{Sorted, Sorter},
};
use crate::system::topic_reader;

/// First offset and end of every partition of a topic.
pub(super) fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<(i32, i64, i64)>> {
    let metadata = consumer.fetch_metadata(Some(topic), kafka::TIMEOUT).context("asking the broker")?;
    let topic_metadata = metadata.topics().first().context("the broker says nothing of the topic")?;
    if topic_metadata.partitions().is_empty() {
        bail!("there is no topic {topic}");
    }
    let mut ids: Vec<_> = topic_metadata.partitions().iter().map(|partition| partition.id()).collect();
    ids.sort_unstable();
    ids.into_iter()
        .map(|id| {
            let (low, high) = consumer.fetch_watermarks(topic, id, kafka::TIMEOUT)?;
            Ok((id, low, high))
        })
        .collect()
}

/// An error when the topic was created again since, or is another cluster's: nothing of it would fit.
pub(super) fn is_the_one_that_was_read(
    consumer: &BaseConsumer,
    topic: &str,
    positions: &[ConsumerOffset],
) -> Result<()> {
    let Some(read) = positions.first() else { return Ok(()) };
    let now = kafka::topic_identity(consumer.client(), topic).with_context(|| format!("asking for topic {topic}"))?;
    if positions.iter().any(|position| position.topic_identity != now) {
        bail!(
            "topic {topic} is not the topic that was read: it was created again, or is another cluster's \
             (stock read {}, this one is {now}); see `onhand offsets`",
            read.topic_identity
        );
    }
    Ok(())
}

/// What a reading of the topic came to.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Records up to where stock has read.
    pub(super) records: u64,
    /// Of these, the refused ones.
    pub(super) refused: u64,
    /// Records after that.
    pub(super) not_applied: u64,
    pub(super) differences: Differences,
}

/// Reads each partition up to where stock has read. Every event of it goes to `ids`. Blocks.
pub(super) fn read(
    consumer: &BaseConsumer,
    topic: &str,
    read: &[(i32, i64)],
    claims: Sorted<CLAIM>,
    ids: &mut Sorter<OCCURRENCE>,
    progress: &ProgressBar,
) -> Result<Read> {
    let partitions = partitions(consumer, topic)?;
    if let Some((partition, _)) = read.iter().find(|(partition, _)| partitions.iter().all(|(id, ..)| id != partition)) {
        bail!("topic {topic} has no partition {partition}, but stock has read it; see `onhand offsets`");
    }
    progress.set_length(partitions.iter().map(|(_, low, high)| (high - low) as u64).sum());
    let mut reading = Reading { claims: Claims::new(claims)?, ids, result: Read::default() };
    for (partition, low, high) in partitions {
        let next = read.iter().find(|(id, _)| *id == partition).map(|(_, next)| *next);
        if next.is_some() && low > 0 {
            bail!(
                "the events of {topic} partition {partition} before offset {low} are gone (retention): the tables cannot be checked against them"
            );
        }
        if next.is_none() {
            // retention removed these before stock read any: they were on the topic, and are not applied
            reading.result.not_applied += low as u64;
        }
        let next = next.unwrap_or(low);
        if high < next {
            bail!(
                "{topic} partition {partition} ends at {high}, but stock has read up to {next}; see `onhand offsets`"
            );
        }
        let (mut ended, mut seen) = (Ok(()), 0_u64);
        topic_reader::range(consumer, &TopicPartition::new(topic, partition), low..high, |message| {
            if message.offset() < next {
                let millis = message.timestamp().to_millis();
                let place = (partition, message.offset());
                ended = reading.record(place, message.payload().unwrap_or_default(), millis);
            } else {
                reading.result.not_applied += 1;
            }
            seen += 1;
            if seen.is_multiple_of(10_000) {
                progress.inc(10_000);
            }
            if ended.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        ended?;
    }
    reading.finish()
}

struct Reading<'a> {
    claims: Claims,
    ids: &'a mut Sorter<OCCURRENCE>,
    result: Read,
}

impl Reading<'_> {
    fn record(&mut self, place: Place, payload: &[u8], millis: Option<i64>) -> Result<()> {
        while self.claims.next.is_some_and(|(claimed, _)| claimed < place) {
            self.no_record()?;
        }
        let (mut waits, mut refused) = (None, None);
        while let Some((claimed, claim)) = self.claims.next
            && claimed == place
        {
            match claim {
                Claim::Refused(class) => refused = Some(class),
                Claim::Waits(id) => {
                    if let Some(other) = waits.replace(id) {
                        let what = || format!("is where both {other} and {id} came, says waiting_sales");
                        self.differ(Kind::WrongOrigin, place, what);
                    }
                }
            }
            self.claims.advance()?;
        }
        // of a sale that waits: it is given up after the moment of the tables that we look at
        let refused = refused.filter(|_| waits.is_none());
        let decoded = match StockEvent::decode_canonical(payload) {
            Some(event) => Ok(event),
            None => StockEvent::decode(payload),
        };
        self.result.records += 1;
        self.result.refused += u64::from(refused.is_some());
        if let Some(id) = waits
            && decoded.as_ref().ok().is_none_or(|event| event.transaction_id != id)
        {
            let what = || format!("is not the sale {id}, which waits as the one that came there");
            self.differ(Kind::WrongOrigin, place, what);
        }
        match (decoded, refused) {
            // the database would not take it, which the log explains; or it was refused for no reason
            // that there is, which was reported when the letter was read
            (_, Some(Class::Unknown)) | (Ok(_), Some(Class::NotApplicable)) | (Err(_), Some(Class::InvalidEvent)) => {}
            (Err(why), _) => {
                self.differ(Kind::NotRefused, place, || format!("is not an event ({}), but was not refused", why.error))
            }
            (Ok(_), Some(Class::InvalidEvent)) => {
                self.differ(Kind::WronglyRefused, place, || "was refused as InvalidEvent, but is an event".into());
            }
            (Ok(event), refused) => {
                let content = Content::of(&event);
                let source = Source::Record { place, refused };
                let recorded_at = millis.map(|millis| events::Timestamp::from_millis(millis).0);
                let id = event.transaction_id;
                self.ids.push(Occurrence { id, source, content, recorded_at }.entry())?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Read> {
        while self.claims.next.is_some() {
            self.no_record()?;
        }
        Ok(self.result)
    }

    /// The next claim is of a record that is not on the topic.
    fn no_record(&mut self) -> Result<()> {
        match self.claims.next {
            Some((place, Claim::Waits(id))) => {
                let what = || format!("is not there, but the sale {id} waits as the one that came there");
                self.differ(Kind::WrongOrigin, place, what);
            }
            Some((place, Claim::Refused(_))) => {
                self.differ(Kind::RefusalWithoutRecord, place, || "was refused, but is not on the topic".into());
            }
            None => {}
        }
        self.claims.advance()
    }

    fn differ(&mut self, kind: Kind, place: Place, what: impl FnOnce() -> String) {
        self.result.differences.add(kind, || Difference::of_record(place, what()));
    }
}

/// The claims, in the order of the topic.
struct Claims {
    sorted: Sorted<CLAIM>,
    next: Option<(Place, Claim)>,
}

impl Claims {
    fn new(sorted: Sorted<CLAIM>) -> Result<Claims> {
        let mut claims = Claims { sorted, next: None };
        claims.advance()?;
        Ok(claims)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = self.sorted.next()?.as_ref().map(read_claim);
        Ok(())
    }
}
