//! A line of a CSV file to a record of a topic.

pub mod header;
pub mod kind;
pub mod row;
