//! What every binary shares: settings from the environment, logs, metrics and health, shutdown,
//! and the one place that sets up Kafka clients and Postgres pools. Knows no service.

pub mod env_file;
pub mod health;
pub mod kafka;
pub mod lifecycle;
pub mod logs;
pub mod metrics;
pub mod postgres;
pub mod secret;
pub mod service;
pub mod settings;
pub mod topic_partition;

pub use secret::Secret;
pub use settings::{Environment, KafkaSettings, PostgresSettings, SettingsError};
pub use topic_partition::TopicPartition;
