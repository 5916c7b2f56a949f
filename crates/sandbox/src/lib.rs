//! A private Postgres and a private Apache Kafka as child processes: for trying onhand, testing
//! and measuring it on a machine that has neither. It knows nothing of events or services, and no
//! service may depend on it.
//!
//! The servers live no longer than the process that started them, even when that one is killed
//! (on Linux; elsewhere the next start stops what an earlier run left behind).

mod account;
mod cache;
mod kafka;
mod maven;
mod nursery;
mod ports;
mod postgres;
mod process;
mod shared;
mod sql;
mod start;

pub use kafka::Kafka;
pub use postgres::{PgAddress, Postgres};
pub use shared::{Shared, shared};
pub use start::{Sandbox, StartError};
