//! The importer: a directory of CSV files becomes events on Kafka. Each row is acknowledged before
//! its file counts as done; what is refused comes back on the errors topic and in `rejected/`.
//! It knows event types from their declarations only.

mod backoff;
mod desk;
mod directory;
mod engine;
mod figures;
mod finish;
mod flight;
mod import;
mod late_growth;
mod limits;
mod lines;
mod mark;
mod mover;
mod names;
mod partitions;
mod quiet;
mod reading;
mod receipt;
mod refused;
mod scan;
mod sender;
mod service;
mod settings;
mod single;
mod source;
mod trouble;
mod wake;

pub use receipt::Receipt;
pub use service::run;
pub use settings::Settings;
pub use single::{Pace, import_file};
