//! What travels on Kafka: event types with their JSON schemas, topics and CSV columns, and the dead
//! letters that carry refusals back. No I/O; depends on no other crate of the workspace.

pub mod csv;
pub mod dead_letter;
pub mod event_type;
pub mod generate;
pub mod message;
pub mod refusal;
pub mod timestamp;
pub mod types;

pub use csv::{
    header::{Header, HeaderError},
    kind::Kind,
    row::{Row, RowError, RowReader},
};
pub use event_type::{Column, CsvForm, EVENT_TYPES, EventType};
pub use message::Message;
pub use refusal::{Refusal, RefusalClass};
pub use timestamp::Timestamp;
pub use types::stock;
