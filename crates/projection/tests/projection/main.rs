//! A projection on a real Kafka and a real Postgres.

mod auction;
mod division;
mod every_part;
mod fixture;
mod lifecycle;
mod records;
mod timers;
