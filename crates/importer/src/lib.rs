//! The importer: a directory of CSV files becomes events on Kafka. Each row is acknowledged before its file
//! is finished; refused rows come back on the errors topic and in `rejected/`. It knows event types from
//! their declarations only.
//!
//! `engine` is the loop, `find` finds files, `read` turns their bytes into rows, `send` sends these to Kafka,
//! and `finish` decides when a file is complete and moves it. `import_file` and `check_file` are for the command
//! line.

mod backoff;
mod check_file;
mod directory;
mod engine;
mod find;
mod finish;
mod import_file;
mod metrics;
mod progress;
mod read;
mod send;
mod service;
mod settings;

pub use check_file::{RefusedRow, check_file};
pub use finish::receipt::Receipt;
pub use import_file::{ImportProgress, ImportReport, Input, StoppedAt, import_file};
pub use service::run;
pub use settings::Settings;
