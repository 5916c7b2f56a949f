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
pub(crate) enum Change {
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<TopicPartition>),
}

/// Takes down what the group decides; the consumer's thread acts on it.
#[derive(Default)]
pub(crate) struct Context {
    changes: Mutex<Vec<Change>>,
    closing: AtomicBool,
}

impl Context {
    /// What was decided since the last time.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on partitions are given up without asking: the consumer is being closed.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let list = partitions.elements().iter().map(|one| TopicPartition::new(one.topic(), one.partition())).collect();
        if self.closing.load(Ordering::Relaxed) {
            // whatever is decided: a client that is being closed takes any answer as giving up all
            if let Err(error) = consumer.incremental_unassign(partitions) {
                tracing::debug!("leaving the group: {error}");
            }
            return;
        }
        let change = match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assigned(list),
            _ => Change::Revoked(list),
        };
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}
