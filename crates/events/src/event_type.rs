//! One event type = one declaration: name, topic, columns, key. Everything else (recognising a
//! file by its header, checking a row, the JSON schema) is derived from it.

use serde_json::{Map, Value, json};

use crate::{Kind, stock};

/// A kind of event that producers send and services consume.
#[derive(Debug)]
pub struct EventType {
    /// For people: `stock`.
    pub name: &'static str,
    /// The environment variable that names its topic, and the topic when it is unset.
    pub topic: (&'static str, &'static str),
    /// The columns of its CSV files and the fields of its JSON, in this order.
    pub columns: &'static [Column],
    /// Positions in `columns` whose values, joined by `-`, are the Kafka key: records of one key
    /// keep their order.
    pub key: &'static [usize],
}

/// A column of a CSV file, a string field of the JSON object.
#[derive(Debug)]
pub struct Column {
    /// Its name in the header line and in JSON.
    pub name: &'static str,
    /// What its values look like.
    pub kind: Kind,
    /// One sentence for people.
    pub description: &'static str,
}

/// Every event type of the house. The importer and the command line know types from here only.
pub const EVENT_TYPES: &[&EventType] = &[&stock::EVENT_TYPE];

impl EventType {
    /// The JSON schema (draft 2020-12) of a record on this type's topic, as the importer writes
    /// it: every column a string, further fields allowed.
    pub fn schema(&self) -> Value {
        let properties: Map<String, Value> = self
            .columns
            .iter()
            .map(|column| {
                let mut schema = column.kind.schema();
                schema["description"] = json!(column.description);
                (column.name.to_owned(), schema)
            })
            .collect();
        let required: Vec<_> = self.columns.iter().map(|column| column.name).collect();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "type": "object",
            "properties": properties,
            "required": required,
        })
    }

    /// The header line that a file of this type begins with, without a line break.
    pub fn header_line(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|column| column.name).collect();
        names.join(",")
    }
}
