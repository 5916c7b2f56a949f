//! What is imported and applied: generated rows, as a file or as records of the events topic.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Result, ensure};
use events::{
    Header, Row, RowReader,
    generate::{Generator, Shape},
    stock::{CSV, EVENT_TYPE},
};
use rdkafka::{
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, Producer},
    types::RDKafkaErrorCode,
};
use runtime::kafka;
use std::time::Duration;

use crate::world::Round;

/// The same rows in every run.
const SEED: u64 = 1;

/// Incoming and sales that fit, and nothing else: 50 stores x 2,000 items.
pub(crate) fn plain() -> Shape {
    Shape { early: 0.0, hopeless: 0.0, duplicates: 0.0, conflicts: 0.0, bad: 0.0, ..Shape::default() }
}

/// As [`plain`], with 1,000,000 cards, drawn at random.
pub(crate) fn million_cards() -> Shape {
    Shape { stores: 500, ..plain() }
}

/// Writes a file of generated rows.
pub(crate) fn write_csv(path: &Path, rows: u64, shape: Shape) -> Result<()> {
    let mut generator = Generator::new(SEED, shape)?;
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "{}", CSV.header_line())?;
    let mut line = Vec::new();
    for _ in 0..rows {
        line.clear();
        generator.write_row(&mut line);
        out.write_all(&line)?;
    }
    Ok(out.flush()?)
}

/// Key and payload of every row of a file that the importer accepts.
pub(crate) fn records(file: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let text = std::fs::read(file)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let reader = RowReader::new(Header::read(lines.next().unwrap_or_default())?);
    let mut row = Row::default();
    let mut records = Vec::new();
    for line in lines {
        if reader.read(line, &mut row).is_ok() {
            records.push((row.key.clone(), row.payload.clone()));
        }
    }
    Ok(records)
}

/// Fills the round's events topic with what the importer accepts of so many generated rows, without
/// a file and in constant memory.
pub(crate) fn fill(round: &Round, rows: u64, shape: Shape) -> Result<()> {
    let mut generator = Generator::new(SEED, shape)?;
    let reader = RowReader::new(Header::read(CSV.header_line().as_bytes())?);
    let producer: BaseProducer = kafka::producer(&round.kafka, "bench").create()?;
    let topic = round.kafka.topic_of(&EVENT_TYPE);
    let (mut line, mut row) = (Vec::new(), Row::default());
    for _ in 0..rows {
        line.clear();
        generator.write_row(&mut line);
        if reader.read(line.trim_ascii_end(), &mut row).is_ok() {
            send(&producer, topic, &row.key, &row.payload)?;
        }
    }
    producer.flush(Duration::from_secs(600))?;
    Ok(())
}

/// Sends a record, after waiting for room in the producer's queue.
pub(crate) fn send(producer: &BaseProducer, topic: &str, key: &[u8], payload: &[u8]) -> Result<()> {
    let mut record = BaseRecord::to(topic).key(key).payload(payload);
    while let Err((error, unsent)) = producer.send(record) {
        ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "{error}");
        record = unsent;
        producer.poll(Duration::from_millis(10));
    }
    Ok(())
}
