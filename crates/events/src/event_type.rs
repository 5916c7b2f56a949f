//! An event type is declared once: its name, its topic, its JSON schema, and its CSV columns if it
//! can be imported from files. Recognizing a file by its header and checking a row follow from that.

use serde_json::{Map, Value, json};

use crate::{Kind, stock};

/// A kind of event that producers send and services consume.
#[derive(Debug)]
pub struct EventType {
    /// For people: `stock`.
    pub name: &'static str,
    /// The environment variable that names its topic, and the topic when it is unset.
    pub topic: (&'static str, &'static str),
    /// The JSON schema of a record's payload, without `title` and `$schema`. A type whose records are
    /// the rows of its CSV form takes [`CsvForm::schema`]; nested types write their own.
    pub payload: fn() -> Value,
    /// How it is written in files; none for a type that only comes by Kafka.
    pub csv: Option<&'static CsvForm>,
}

/// How events of a type are written in CSV files, a row each. The record of a row is a flat JSON
/// object: the columns in their order, each a string.
#[derive(Debug)]
pub struct CsvForm {
    /// The columns; the first one is required.
    pub columns: &'static [Column],
    /// Positions in `columns` of required columns whose values, joined by `-`, are the Kafka key:
    /// records of one key keep their order.
    pub key: &'static [usize],
}

/// A column of a CSV file, a string field of the JSON object.
#[derive(Debug)]
pub struct Column {
    /// Its name in the header line and in JSON.
    pub name: &'static str,
    /// What its values look like.
    pub kind: Kind,
    /// Whether each row must have a value. If not, a file may lack the column, and a record whose
    /// row has no value lacks the field.
    pub required: bool,
    /// One sentence for people.
    pub description: &'static str,
}

/// Every event type of the project. The importer and the command line know types from here only.
pub const EVENT_TYPES: &[&EventType] = &[&stock::EVENT_TYPE];

impl EventType {
    /// The JSON schema (draft 2020-12) of a record's payload; further fields are allowed.
    pub fn schema(&self) -> Value {
        let mut schema = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": self.name });
        if let (Value::Object(schema), Value::Object(payload)) = (&mut schema, (self.payload)()) {
            schema.extend(payload);
        }
        schema
    }
}

impl CsvForm {
    /// The JSON schema of the records that the importer writes.
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
        let required: Vec<_> = self.columns.iter().filter(|column| column.required).map(|column| column.name).collect();
        json!({ "type": "object", "properties": properties, "required": required })
    }

    /// The header line of a file with every column, without a line break.
    pub fn header_line(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|column| column.name).collect();
        names.join(",")
    }
}
