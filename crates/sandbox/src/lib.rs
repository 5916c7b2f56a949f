//! A private Postgres and a private Apache Kafka as child processes: for trying onhand, testing
//! and measuring it on a machine that has neither. It knows nothing about events or services, and no
//! service may depend on it.
//!
//! The servers end with the process that started them, even if it is killed (on Linux; elsewhere the
//! next start stops the servers of an earlier run).

mod account;
mod cache;
pub mod java;
mod kafka;
pub mod maven;
mod ports;
mod postgres;
mod process;
mod shared;
mod spawner;
mod sql;
mod start;
pub mod testing;

pub use kafka::Kafka;
pub use postgres::{PgAddress, Postgres};
pub use shared::{Shared, shared};
pub use start::{Sandbox, StartError};

/// FNV-1a, for names of files: the same in every build, unlike the standard library's hash.
fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:010x}", hash >> 24)
}
