//! Kafka's side: which partitions this process reads, how far, and when their records are applied.

pub(crate) mod assignment;
mod partition;
pub(crate) mod probe;
pub(crate) mod rebalance;
mod topic_identity;
