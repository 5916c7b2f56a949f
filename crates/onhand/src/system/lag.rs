//! How far each service is behind in each partition that it reads.

use std::{collections::HashMap, ops::ControlFlow};

use anyhow::{Context, Result};
use projection::ConsumerOffset;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};
use runtime::{KafkaSettings, TopicPartition, kafka};
use serde::Serialize;

use crate::system::topic_reader;

/// Records after a position that are counted one by one.
const COUNTED: i64 = 1_000;

/// A service's position in a partition, and how many records come after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PartitionLag {
    pub(crate) service: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first record that is not in the tables yet.
    pub(crate) next_offset: i64,
    /// The partition's end; `None` when Kafka could not be asked.
    pub(crate) end: Option<i64>,
    /// Records from `next_offset` on; `None` when that is not known.
    pub(crate) lag: Option<i64>,
    /// Why the position does not fit the topic: a person has to decide.
    pub(crate) problem: Option<String>,
    /// Why Kafka could not be asked.
    pub(crate) unknown: Option<String>,
}

/// Asks Kafka about every position. Blocks for some seconds where it does not answer.
pub(crate) fn of(kafka: &KafkaSettings, positions: Vec<ConsumerOffset>) -> Result<Vec<PartitionLag>> {
    let consumer = topic_reader::consumer(kafka, "onhand-offsets")?;
    let mut identities = HashMap::new();
    let answers = positions.into_iter().map(|position| {
        // once a topic: where nobody answers, each question takes seconds
        let identity = identities.entry(position.topic.clone()).or_insert_with_key(|topic| {
            kafka::topic_identity(consumer.client(), topic).map_err(|error| format!("{error:#}"))
        });
        let mut of = PartitionLag {
            service: position.service,
            topic: position.topic,
            partition: position.partition,
            next_offset: position.next_offset,
            end: None,
            lag: None,
            problem: None,
            unknown: None,
        };
        match identity {
            Err(error) => of.unknown = Some(error.clone()),
            Ok(identity) => {
                if let Err(error) = of.ask(&consumer, *identity == position.topic_identity) {
                    of.unknown = Some(format!("{error:#}"));
                }
            }
        }
        of
    });
    Ok(answers.collect())
}

impl PartitionLag {
    fn ask(&mut self, consumer: &BaseConsumer, is_the_topic: bool) -> Result<()> {
        let (low, high) = consumer.fetch_watermarks(&self.topic, self.partition, kafka::TIMEOUT)?;
        self.end = Some(high);
        if !is_the_topic {
            self.problem =
                Some("not the topic that was read: it was created again, or is another cluster's".to_owned());
        } else if !(low..=high).contains(&self.next_offset) {
            self.problem = Some(format!("the topic now holds {low} to {high}"));
        } else {
            self.lag = Some(self.count(consumer, high)?);
        }
        Ok(())
    }

    /// Records from the position on. The first ones are counted, since an offset without a record is
    /// no lag, and each transaction ends with one. Of what comes after these, each offset counts.
    fn count(&self, consumer: &BaseConsumer, end: i64) -> Result<i64> {
        let (mut records, mut uncounted) = (0, 0);
        topic_reader::range(
            consumer,
            &TopicPartition::new(&self.topic, self.partition),
            self.next_offset..end,
            |message| {
                records += 1;
                if records < COUNTED {
                    return ControlFlow::Continue(());
                }
                uncounted = end - (message.offset() + 1);
                ControlFlow::Break(())
            },
        )
        .context("counting the records")?;
        Ok(records + uncounted)
    }
}

/// All lags together: the sum of those that are known, and how many are not.
pub(crate) fn sum<'a>(lags: impl IntoIterator<Item = &'a PartitionLag>) -> (i64, usize) {
    lags.into_iter()
        .fold((0, 0), |(sum, unknown), of| (sum + of.lag.unwrap_or(0), unknown + usize::from(of.lag.is_none())))
}

/// `7 records behind`
pub(crate) fn in_words((sum, unknown): (i64, usize)) -> String {
    let records = if sum == 1 { "record" } else { "records" };
    match (sum, unknown) {
        (_, 0) => format!("{sum} {records} behind"),
        (0, _) => "lag unknown".to_owned(),
        (_, 1) => format!("{sum} {records} behind, and a partition whose lag is unknown"),
        _ => format!("{sum} {records} behind, and {unknown} partitions whose lag is unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn what_is_not_known_does_not_count_as_nothing() {
        assert_eq!(in_words((0, 0)), "0 records behind");
        assert_eq!(in_words((1, 0)), "1 record behind");
        assert_eq!(in_words((0, 2)), "lag unknown");
        assert_eq!(in_words((7, 1)), "7 records behind, and a partition whose lag is unknown");
        assert_eq!(in_words((7, 2)), "7 records behind, and 2 partitions whose lag is unknown");
    }
}
