//! Dead letters: what is refused comes back on the errors topic with its reason and its location
//! in the source. Headers follow Kafka Connect's convention for dead letter queues (KIP-298), and
//! `ce_id` is a CloudEvents id: the same refusal always has the same, so readers can drop repeats.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Message, Refusal, RefusalClass};

/// A dead letter must fit where its record did, although JSON and base64 take more bytes: of a larger
/// record it holds only the first bytes, and the headers say where the whole record is. Bytes.
const FULL_SIZE: usize = 64 << 10;
/// Longer reasons are cut. Bytes.
const MAX_REASON: usize = 2_000;

/// Where a record is.
#[derive(Debug, Clone, Copy)]
pub struct RecordLocation<'a> {
    /// Which service refuses: `stock`.
    pub service: &'a str,
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
}

/// Where a row of a file is.
#[derive(Debug, Clone, Copy)]
pub struct RowLocation<'a> {
    /// The file's name, without its directory.
    pub file: &'a str,
    /// The line, counted from 1; the header is line 1.
    pub line: u64,
    /// The line's first byte, counted from 0 (in the unpacked text, for a `.csv.gz`).
    pub byte: u64,
    /// The first column that is wrong, when known.
    pub column: Option<&'a str>,
}

/// Header names of Kafka Connect's dead letter queues.
pub mod header {
    /// The topic of the refused record.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// Its partition.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// Its offset.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// Who refused.
    pub const CONNECTOR: &str = "__connect.errors.connector.name";
    /// The kind of refusal.
    pub const CLASS: &str = "__connect.errors.exception.class.name";
    /// The reason, the same as `error` in the payload.
    pub const MESSAGE: &str = "__connect.errors.exception.message";
}

/// The refusal of a record: its own fields and `error`; `raw` where it is not a JSON object. The key is
/// the record's own, if it has one of up to 64 KiB.
pub fn of_record(
    errors_topic: &str,
    location: RecordLocation<'_>,
    key: Option<&[u8]>,
    payload: &[u8],
    refusal: &Refusal,
) -> Message {
    let mut object = match serde_json::from_slice(payload) {
        Ok(Value::Object(object)) if payload.len() <= FULL_SIZE => object,
        _ => raw(payload),
    };
    let error = shortened(&refusal.error);
    object.insert("error".into(), error.as_str().into());
    let RecordLocation { service, topic, partition, offset } = location;
    // a topic that was created again has other records at the same offsets
    let content = Uuid::new_v5(&Uuid::NAMESPACE_OID, payload).to_string();
    Message {
        topic: errors_topic.to_owned(),
        key: key.filter(|key| key.len() <= FULL_SIZE).map(<[u8]>::to_vec),
        payload: Value::Object(object).to_string().into_bytes(),
        ce_id: id(&[service, topic, &partition.to_string(), &offset.to_string(), &content]),
        headers: vec![
            (header::TOPIC, topic.to_owned()),
            (header::PARTITION, partition.to_string()),
            (header::OFFSET, offset.to_string()),
            (header::CONNECTOR, service.to_owned()),
            (header::CLASS, refusal.class.to_string()),
            (header::MESSAGE, error),
        ],
    }
}

/// The refusal of a row: its columns (else the line as `raw`), `error` and its location. `topic` is
/// where the row would have gone.
pub fn of_row(
    errors_topic: &str,
    location: RowLocation<'_>,
    topic: &str,
    line: &[u8],
    error: &crate::RowError,
) -> Message {
    let mut object = match &error.columns {
        Some(columns) => columns.iter().map(|(name, text)| ((*name).into(), text.as_str().into())).collect(),
        None => raw(line),
    };
    object.insert("error".into(), error.error.as_str().into());
    object.insert("file".into(), location.file.into());
    object.insert("line".into(), location.line.into());
    object.insert("byte".into(), location.byte.into());
    if let Some(column) = location.column {
        object.insert("column".into(), column.into());
    }
    let content = Uuid::new_v5(&Uuid::NAMESPACE_OID, line).to_string();
    let class = if error.columns.is_some() { RefusalClass::InvalidRow } else { RefusalClass::UnreadableRow };
    Message {
        topic: errors_topic.to_owned(),
        key: None,
        payload: Value::Object(object).to_string().into_bytes(),
        ce_id: id(&["importer", location.file, &location.byte.to_string(), &content]),
        headers: vec![
            (header::TOPIC, topic.to_owned()),
            (header::CONNECTOR, "importer".to_owned()),
            (header::CLASS, class.to_string()),
            (header::MESSAGE, error.error.clone()),
        ],
    }
}

fn shortened(error: &str) -> String {
    match error.char_indices().find(|(at, _)| *at >= MAX_REASON) {
        Some((at, _)) => format!("{}...", &error[..at]),
        None => error.to_owned(),
    }
}

/// `{"raw": ...}`: the bytes as text, and in base64 where they are not UTF-8; of many bytes the
/// beginning, and `raw_bytes`, how many there are.
fn raw(bytes: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    let all = bytes.len();
    let bytes = &bytes[..all.min(FULL_SIZE)];
    if all > FULL_SIZE {
        object.insert("raw_bytes".into(), all.into());
    }
    object.insert("raw".into(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        object.insert("raw_base64".into(), base64(bytes).into());
    }
    object
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

/// A name-based UUID over the parts.
fn id(parts: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\u{1f}").as_bytes()).to_string()
}
