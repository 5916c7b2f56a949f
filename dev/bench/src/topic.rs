//! What is in the events topic of a round.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result};
use events::{
    Timestamp,
    stock::{EVENT_TYPE, StockEvent},
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use runtime::kafka;
use stock::{JournalRow, Origin};
use uuid::Uuid;

use crate::world::Round;

/// The number of records.
pub(crate) fn records(round: &Round) -> Result<u64> {
    let consumer: BaseConsumer = kafka::consumer(&round.kafka, "bench", "bench").create()?;
    let topic = round.kafka.topic_of(&EVENT_TYPE);
    let mut total = 0;
    for partition in 0..round.partitions {
        total += consumer.fetch_watermarks(topic, partition, kafka::TIMEOUT)?.1;
    }
    Ok(total.try_into()?)
}

/// The events of each partition as rows of the journal, without those whose id came before.
pub(crate) fn distinct_events(round: &Round) -> Result<Vec<Vec<JournalRow>>> {
    let mut seen = HashSet::new();
    let partitions = 0..round.partitions;
    partitions
        .map(|partition| {
            let mut events = Vec::new();
            read(round, partition, i64::MAX, |row| {
                if seen.insert(row.event.transaction_id) {
                    events.push(row);
                }
            })?;
            Ok(events)
        })
        .collect()
}

/// The id of the last event of each partition that has one.
pub(crate) fn last_ids(round: &Round) -> Result<Vec<Uuid>> {
    let mut ids = Vec::new();
    for partition in 0..round.partitions {
        read(round, partition, 1, |row| ids.push(row.event.transaction_id))?;
    }
    Ok(ids)
}

/// Reads the last `most` records of a partition.
fn read(round: &Round, partition: i32, most: i64, mut each: impl FnMut(JournalRow)) -> Result<()> {
    let consumer: BaseConsumer = kafka::consumer(&round.kafka, "bench", "bench").create()?;
    let topic = round.kafka.topic_of(&EVENT_TYPE);
    let (low, high) = consumer.fetch_watermarks(topic, partition, kafka::TIMEOUT)?;
    let mut next = low.max(high.saturating_sub(most));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(next))?;
    consumer.assign(&list)?;
    while next < high {
        let message = consumer.poll(Duration::from_secs(10)).context("the topic cannot be read")??;
        next = message.offset() + 1;
        if let Ok(event) = StockEvent::decode(message.payload().unwrap_or_default()) {
            let recorded_at = message.timestamp().to_millis().map(Timestamp::from_millis);
            each(JournalRow { event, origin: Origin { partition, offset: message.offset(), recorded_at } });
        }
    }
    Ok(())
}
