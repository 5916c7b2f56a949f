//! Rows on their way to Kafka, and refused ones to `rejected/`.

pub(crate) mod in_flight;
pub(crate) mod partition_health;
pub(crate) mod producer;
pub(crate) mod refused_rows;
pub(crate) mod sink;
pub(crate) mod topic_limits;
