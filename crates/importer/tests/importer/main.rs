//! The importer's binary on real files and a real Kafka.

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
