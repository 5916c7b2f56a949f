//! What travels: event types with their CSV columns, JSON schemas, Kafka keys and topics, and the
//! dead letters that carry refusals back. No I/O, and knows no other crate of the house.

pub mod dead_letter;
pub mod event_type;
pub mod generate;
pub mod header;
pub mod kind;
pub mod row;
pub mod stock;
pub mod timestamp;

pub use dead_letter::{DeadLetter, Refusal};
pub use event_type::{Column, EVENT_TYPES, EventType};
pub use header::{Header, HeaderError};
pub use kind::Kind;
pub use row::{Row, RowError, RowReader};
pub use timestamp::Timestamp;
