//! Every event type: its declaration, its struct, and how a record becomes one.

pub mod stock;
