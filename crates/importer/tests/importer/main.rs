//! The importer's binary over real files and a real Kafka: every case a directory of files may be.

mod arrival;
mod blocked;
mod broken;
mod broker;
mod crash;
mod fixture;
mod import_file;
mod late;
mod many;
mod refusals;
mod writers;
