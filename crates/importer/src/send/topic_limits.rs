//! How large a record each topic takes: its `max.message.bytes`, asked for once.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use runtime::KafkaSettings;

/// Kafka's default.
const DEFAULT_MAX_BYTES: usize = 1_048_588;
/// What Kafka adds to a batch of one record, at most: its header, lengths, times.
const BATCH_OVERHEAD: usize = 100;
/// What it adds to each of a record's headers.
const HEADER_OVERHEAD: usize = 10;

/// `max.message.bytes` by topic.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicLimits {
    topics: HashMap<String, usize>,
}

impl TopicLimits {
    /// Asks the broker. What it does not say is taken to be Kafka's default. Blocks for a few seconds
    /// at most.
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
                tracing::warn!("Kafka does not tell max.message.bytes ({error}): taken to be {DEFAULT_MAX_BYTES}");
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
                        "Kafka does not tell max.message.bytes of {name} ({error}): taken to be {DEFAULT_MAX_BYTES}"
                    );
                }
            }
        }
        limits
    }

    /// Whether a record of this topic fits, as it is before it is compressed.
    pub(crate) fn fits(&self, topic: &str, bytes: usize, headers: usize) -> bool {
        bytes + BATCH_OVERHEAD + headers * HEADER_OVERHEAD
            <= self.topics.get(topic).copied().unwrap_or(DEFAULT_MAX_BYTES)
    }

    /// The largest batch that every topic takes.
    pub(crate) fn smallest(&self) -> usize {
        self.topics.values().copied().min().unwrap_or(DEFAULT_MAX_BYTES).max(1)
    }
}
