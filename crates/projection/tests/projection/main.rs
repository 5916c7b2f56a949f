//! A projection on a real Kafka and a real Postgres.

mod division;
mod fixture;
mod lifecycle;
mod records;
mod timers;
