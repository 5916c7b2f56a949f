//! How large a record each topic accepts: its `max.message.bytes`.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use runtime::KafkaSettings;

/// Kafka's default for `max.message.bytes`.
const DEFAULT_MAX_BYTES: usize = 1_048_588;
/// What Kafka adds to a batch of one record, at most: its header, lengths, timestamps.
const BATCH_OVERHEAD: usize = 100;
/// What Kafka adds to each header of a record.
const HEADER_OVERHEAD: usize = 10;

/// `max.message.bytes` by topic.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicLimits {
    topics: HashMap<String, usize>,
}

impl TopicLimits {
    /// Asks the broker; for a topic that it does not describe, assumes Kafka's default. Blocks for a few
    /// seconds at most.
    pub(crate) fn query(kafka: &KafkaSettings) -> TopicLimits {
        let names = kafka.all_topics();
        let asked = runtime::kafka::client(kafka, "onhand-importer").create();
        let Ok(admin): Result<AdminClient<DefaultClientContext>, _> = asked else { return TopicLimits::default() };
        let topics: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let timeout = Some(Duration::from_secs(2));
        let options = AdminOptions::new().request_timeout(timeout).operation_timeout(timeout);
        let described = match futures::executor::block_on(admin.describe_configs(&topics, &options)) {
            Ok(described) => described,
            Err(error) => {
                tracing::warn!(%error, assumed_bytes = DEFAULT_MAX_BYTES, "cannot read max.message.bytes of the topics");
                return TopicLimits::default();
            }
        };
        let mut limits = TopicLimits::default();
        for (name, described) in names.iter().zip(described) {
            let limit = described.map_err(|code| code.to_string()).and_then(|config| {
                let value = config.entry_map().get("max.message.bytes").and_then(|entry| entry.value.clone());
                value.and_then(|value| value.parse().ok()).ok_or_else(|| "no value".to_owned())
            });
            match limit {
                Ok(limit) => {
                    limits.topics.insert((*name).to_owned(), limit);
                }
                Err(error) => {
                    tracing::warn!(
                        topic = name,
                        error,
                        assumed_bytes = DEFAULT_MAX_BYTES,
                        "cannot read max.message.bytes of the topic"
                    );
                }
            }
        }
        limits
    }

    /// Whether the topic accepts a record of this size, before compression.
    pub(crate) fn fits(&self, topic: &str, bytes: usize, headers: usize) -> bool {
        bytes + BATCH_OVERHEAD + headers * HEADER_OVERHEAD
            <= self.topics.get(topic).copied().unwrap_or(DEFAULT_MAX_BYTES)
    }

    /// The largest batch that every topic accepts.
    pub(crate) fn smallest(&self) -> usize {
        self.topics.values().copied().min().unwrap_or(DEFAULT_MAX_BYTES).max(1)
    }
}
