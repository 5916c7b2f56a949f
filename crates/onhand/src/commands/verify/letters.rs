//! The dead letters: what was refused, on the errors topic and in the outbox.

use std::ops::ControlFlow;

use anyhow::Result;
use events::dead_letter::header;
use hashbrown::HashMap;
use rdkafka::{
    Message,
    consumer::BaseConsumer,
    message::{BorrowedMessage, Headers},
};
use runtime::TopicPartition;
use uuid::Uuid;

use super::{
    entry::{CLAIM, Claim, Class, claim},
    report::{Difference, Differences, Kind},
    sorter::{Scratch, Sorted, Sorter},
    topic,
};
use crate::system::topic_reader;

/// A refused row: the id of its letter, then the number of its file.
const ROW: usize = 20;

/// Takes in dead letters, repeats among them.
pub(super) struct Letters<'a> {
    /// The topic whose refusals are wanted.
    topic: &'a str,
    /// How far it was read: what comes after is refused later than the tables are looked at.
    read: &'a [(i32, i64)],
    claims: &'a mut Sorter<CLAIM>,
    rows: Sorter<ROW>,
    files: HashMap<String, u32>,
    /// Claims come in this order: of two refusals of one record, the later one counts.
    order: u64,
}

impl<'a> Letters<'a> {
    /// The refusals of records go to `claims`.
    pub(super) fn new(
        topic: &'a str,
        read: &'a [(i32, i64)],
        claims: &'a mut Sorter<CLAIM>,
        scratch: &Scratch,
    ) -> Letters<'a> {
        Letters { topic, read, claims, rows: Sorter::new(scratch), files: HashMap::new(), order: 0 }
    }

    /// Takes in all letters of the errors topic. Blocks.
    pub(super) fn read(
        &mut self,
        consumer: &BaseConsumer,
        errors_topic: &str,
        differences: &mut Differences,
    ) -> Result<()> {
        for (partition, low, high) in topic::partitions(consumer, errors_topic)? {
            let mut ended = Ok(());
            topic_reader::range(consumer, &TopicPartition::new(errors_topic, partition), low..high, |message| {
                let get = |name: &str| header_of(message, name);
                ended = self.add(get, message.payload().unwrap_or_default(), differences);
                if ended.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            ended?;
        }
        Ok(())
    }

    /// Takes in a letter by its headers and payload, and checks that it has its reason and place.
    pub(super) fn add(
        &mut self,
        get: impl Fn(&str) -> Option<String>,
        payload: &[u8],
        differences: &mut Differences,
    ) -> Result<()> {
        let Some(id) = get(events::Message::ID_HEADER) else { return Ok(()) };
        let mut differ = |what: String| {
            differences.add(Kind::DeadLetter, || Difference::new(format!("errors: {id} {what}")));
        };
        let object: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        if object["error"].as_str().is_none_or(str::is_empty) {
            differ("has no reason".into());
        }
        match get(header::CONNECTOR).as_deref() {
            Some("stock") if get(header::TOPIC).as_deref() == Some(self.topic) => {
                let number = |name| get(name)?.parse::<i64>().ok();
                let partition = number(header::PARTITION).and_then(|partition| i32::try_from(partition).ok());
                let (Some(partition), Some(offset), Some(name)) =
                    (partition, number(header::OFFSET), get(header::CLASS))
                else {
                    differ("does not say which record it refuses".into());
                    return Ok(());
                };
                if !self.read.iter().any(|(read, next)| *read == partition && offset < *next) {
                    return Ok(());
                }
                let class = Class::of(&name);
                if class == Class::Unknown {
                    differ(format!("refuses record {partition}:{offset} as {name}, which no rule of stock is"));
                }
                self.claims.push(claim((partition, offset), self.order, Claim::Refused(class)))?;
                self.order += 1;
            }
            Some("importer") => {
                if object["file"].is_null() || object["line"].is_null() || object["byte"].is_null() {
                    differ("does not say its file, line and byte".into());
                }
                let next = self.files.len() as u32;
                let file = *self.files.entry_ref(object["file"].as_str().unwrap_or_default()).or_insert(next);
                let id = Uuid::try_parse(&id).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()));
                let mut row = [0; ROW];
                row[..16].copy_from_slice(id.as_bytes());
                row[16..].copy_from_slice(&file.to_be_bytes());
                self.rows.push(row)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Refused rows by the name of their file, repeats counted once.
    pub(super) fn rows(self, scratch: &Scratch) -> Result<HashMap<String, u64>> {
        let mut counts = vec![0; self.files.len()];
        let mut rows = Sorted::new(vec![self.rows], scratch)?;
        let mut last = None;
        while let Some(row) = rows.next()? {
            let (id, file) = row.split_at(16);
            if last.replace(<[u8; 16]>::try_from(id)?).is_none_or(|last| last != *id) {
                counts[u32::from_be_bytes(file.try_into()?) as usize] += 1;
            }
        }
        Ok(self.files.into_iter().map(|(name, file)| (name, counts[file as usize])).collect())
    }
}

/// A header of a record, as text.
fn header_of(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    Some(String::from_utf8_lossy(header.value?).into_owned())
}
