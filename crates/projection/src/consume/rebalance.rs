//! What Kafka's consumer group decides, taken down for the consumer's thread.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    types::RDKafkaRespErr,
};

use crate::TopicPartition;

/// What the group decided.
pub(crate) enum Rebalance {
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<TopicPartition>),
}

/// Takes down what the group decides; the consumer's thread acts on it.
#[derive(Default)]
pub(crate) struct RebalanceListener {
    rebalances: Mutex<Vec<Rebalance>>,
    closing: AtomicBool,
}

impl RebalanceListener {
    /// What was decided since the last time.
    pub(crate) fn take_rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut *self.rebalances.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on partitions are given up without asking: the consumer is being closed.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

impl ClientContext for RebalanceListener {}

impl ConsumerContext for RebalanceListener {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let list = partitions.elements().iter().map(|one| TopicPartition::new(one.topic(), one.partition())).collect();
        if self.closing.load(Ordering::Relaxed) {
            // whatever is decided: a client that is being closed takes any answer as giving up all
            if let Err(error) = consumer.incremental_unassign(partitions) {
                tracing::debug!("leaving the group: {error}");
            }
            return;
        }
        let rebalance = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assigned(list),
            _ => Rebalance::Revoked(list),
        };
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push(rebalance);
    }
}
