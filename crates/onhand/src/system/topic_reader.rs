//! Reads topics directly, from any offset, without a consumer group.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Range},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers, OwnedMessage},
};
use runtime::{KafkaSettings, TopicPartition, kafka};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How long a broker may send nothing while there is more to read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Where reading starts in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// The oldest record that is still there.
    Beginning,
    /// The next record that comes.
    End,
    Offset(i64),
    /// The first record written at or after this time, in milliseconds since 1970.
    Time(i64),
}

/// Which partitions of a topic are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection<'a> {
    All,
    One(i32),
    /// The one that Kafka's producers write records with this key to.
    OfKey(&'a [u8]),
}

/// Reads one or more topics.
pub(crate) struct TopicReader {
    consumer: BaseConsumer,
    partitions: usize,
    /// Partitions that were read to their end once.
    ended: BTreeSet<i32>,
}

impl TopicReader {
    /// A reader of all partitions of these topics. Names the topics there are when one is unknown.
    pub(crate) fn open(settings: &KafkaSettings, topics: &[&str], from: From) -> Result<TopicReader> {
        let selected: Vec<_> = topics.iter().map(|topic| (*topic, Selection::All)).collect();
        TopicReader::open_selected(settings, &selected, from)
    }

    /// A reader of some partitions.
    pub(crate) fn open_selected(
        settings: &KafkaSettings,
        topics: &[(&str, Selection<'_>)],
        from: From,
    ) -> Result<TopicReader> {
        let consumer: BaseConsumer = kafka::client(settings, "onhand-reader")
            .set("group.id", "onhand-reader")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "4096")
            .create()
            .context("Kafka settings")?;
        let known = partitions(&consumer, &settings.broker_url)?;
        let mut assignment = TopicPartitionList::new();
        for (topic, selection) in topics {
            let Some(&count) = known.get(*topic) else {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                let there = if names.is_empty() { "no topics yet".to_owned() } else { names.join(", ") };
                bail!("there is no topic {topic:?} at {}; there are: {there}", settings.broker_url);
            };
            for partition in selection.of(topic, count)? {
                let offset = from.offset(&consumer, topic, partition)?;
                assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
            }
        }
        consumer.assign(&assignment).context("reading partitions")?;
        Ok(TopicReader { consumer, partitions: assignment.count(), ended: BTreeSet::new() })
    }

    /// The next record, if one arrives within `timeout`. An error is temporary: the broker is away.
    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Option<OwnedMessage>, KafkaError> {
        match self.consumer.poll(timeout) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message.detach())),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.ended.insert(partition);
                Ok(None)
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// Whether everything that was there at the start has been read, for a reader of one topic.
    pub(crate) fn is_at_end(&self) -> bool {
        self.ended.len() == self.partitions
    }
}

impl Selection<'_> {
    fn of(self, topic: &str, count: i32) -> Result<Range<i32>> {
        match self {
            Selection::All => Ok(0..count),
            Selection::One(partition) if (0..count).contains(&partition) => Ok(partition..partition + 1),
            Selection::One(partition) => {
                bail!("topic {topic} has no partition {partition}; it has {count}, counted from 0")
            }
            Selection::OfKey(key) => {
                let partition = (murmur2(key) & 0x7fff_ffff) as i32 % count;
                Ok(partition..partition + 1)
            }
        }
    }
}

impl From {
    /// The offset in one partition. Asked once, so that "the end" is a moment and does not move.
    fn offset(self, consumer: &BaseConsumer, topic: &str, partition: i32) -> Result<i64> {
        let asking = || format!("asking for the offsets of {topic}, partition {partition}");
        let (low, high) = consumer.fetch_watermarks(topic, partition, kafka::TIMEOUT).with_context(asking)?;
        match self {
            From::Beginning => Ok(low),
            From::End => Ok(high),
            From::Offset(offset) if (low..=high).contains(&offset) => Ok(offset),
            From::Offset(offset) => {
                bail!("{topic} partition {partition} has no offset {offset}: it starts at {low}, and {high} comes next")
            }
            From::Time(millis) => {
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(topic, partition, Offset::Offset(millis))?;
                let found = consumer.offsets_for_times(list, kafka::TIMEOUT).with_context(asking)?;
                let found = found.find_partition(topic, partition).context("no answer").with_context(asking)?;
                found.error().with_context(asking)?;
                match found.offset() {
                    Offset::Offset(offset) => Ok(offset),
                    // nothing is as young
                    _ => Ok(high),
                }
            }
        }
    }
}

/// The hash by which Kafka's Java client, and onhand, choose a key's partition.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mix = |k: u32| {
        let k = k.wrapping_mul(M);
        (k ^ (k >> 24)).wrapping_mul(M)
    };
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        hash = hash.wrapping_mul(M) ^ mix(word);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let bytes = rest.iter().enumerate().fold(0, |bytes, (at, byte)| bytes | u32::from(*byte) << (8 * at));
        hash = (hash ^ bytes).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// A client of a broker that answers.
pub(crate) fn reachable(settings: &KafkaSettings) -> Result<BaseConsumer> {
    let consumer = consumer(settings, "onhand-reader")?;
    partitions(&consumer, &settings.broker_url)?;
    Ok(consumer)
}

/// A reader of partitions that belongs to no group, for [`range`].
pub(crate) fn consumer(settings: &KafkaSettings, name: &str) -> Result<BaseConsumer> {
    let mut config = kafka::consumer(settings, name, name);
    config.set("enable.partition.eof", "true");
    config.set("queued.max.messages.kbytes", "16384").set("queued.min.messages", "50000");
    config.create().context("Kafka settings")
}

/// Reads the records of a partition whose offsets are in this range, until `each` breaks. An offset
/// need not have a record: markers of transactions, and what compaction removed, come to no reader.
/// So the range ends with the first record after it, or at the partition's end.
pub(crate) fn range(
    consumer: &BaseConsumer,
    source: &TopicPartition,
    offsets: Range<i64>,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
) -> Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let TopicPartition { topic, partition } = source;
    // asked first: the end only grows
    let (_, end) = consumer.fetch_watermarks(topic, *partition, kafka::TIMEOUT)?;
    if end < offsets.end {
        bail!("{source} ends at {end}, before offset {}", offsets.end);
    }
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, *partition, Offset::Offset(offsets.start))?;
    consumer.assign(&list)?;
    loop {
        let message = match consumer.poll(READ_TIMEOUT) {
            Some(Err(KafkaError::PartitionEOF(ended))) if ended == *partition => break,
            Some(message) => message.with_context(|| format!("reading {source}"))?,
            None => bail!("reading {source}: the broker has sent nothing for {READ_TIMEOUT:?}"),
        };
        let next = message.offset() + 1;
        if next > offsets.end || each(&message).is_break() || next == offsets.end {
            break;
        }
    }
    Ok(consumer.unassign()?)
}

/// All topics with their number of partitions, without Kafka's internal ones.
fn partitions(consumer: &BaseConsumer, broker: &str) -> Result<BTreeMap<String, i32>> {
    let metadata = consumer.fetch_metadata(None, kafka::TIMEOUT).with_context(|| {
        format!("no Kafka answers at {broker} (`onhand up` starts one; KAFKA_BROKER_URL names another)")
    })?;
    let topics = metadata.topics().iter().filter(|topic| !topic.name().starts_with("__"));
    Ok(topics.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
}

/// When the record was written; none for records without a time.
pub(crate) fn time_of(message: &OwnedMessage) -> Option<OffsetDateTime> {
    let millis = message.timestamp().to_millis()?;
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// A record as one JSON object. The value is JSON where it is JSON, else text.
pub(crate) fn to_json(message: &OwnedMessage) -> Value {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let headers: Map<String, Value> = message
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        .map(|header| (header.key.to_owned(), header.value.map_or(Value::Null, text)))
        .collect();
    json!({
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": time_of(message).and_then(|time| time.format(&Rfc3339).ok()),
        "key": message.key().map(text),
        "headers": headers,
        "value": message.payload().map(|payload| serde_json::from_slice(payload).unwrap_or_else(|_| text(payload))),
    })
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    #[test]
    fn murmur2_is_that_of_the_java_client() {
        // org.apache.kafka.common.utils.UtilsTest
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
